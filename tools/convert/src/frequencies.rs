//! How often rows occur: the arrays of an npz file.

use crate::{
    checkpoint::{Checkpoint, Tensor},
    error::Error,
};
use anyhow::{Result, bail, ensure};
use std::path::Path;

const INDICES: &str = ".indices";
const COUNTS: &str = ".counts";
/// The most names that an error lists.
const LISTED: usize = 40;

/// The frequencies of tables.
pub struct Frequencies {
    file: Checkpoint,
    tables: Vec<String>,
}

/// The frequencies of one table.
pub(crate) enum Counts<'f> {
    /// One number for each row.
    Array { file: &'f Path, numbers: &'f Tensor },
    /// Numbers for some rows.
    Pair { file: &'f Path, indices: &'f Tensor, counts: &'f Tensor },
}

impl Frequencies {
    /// Opens the file at `path` for the tables of these names.
    ///
    /// # Errors
    /// If the file cannot be read, or has an array that belongs to no table.
    pub fn open<'n>(path: &Path, tables: impl IntoIterator<Item = &'n str>) -> Result<Self, Error> {
        Ok(Self::read(path, tables.into_iter().map(str::to_owned).collect())?)
    }

    /// Opens the file at `path` and refuses arrays that belong to none of these tables.
    pub(crate) fn read(path: &Path, tables: Vec<String>) -> Result<Self> {
        let file = Checkpoint::open(path)?;
        let has = |name: &str| tables.iter().any(|table| table == name);
        for name in file.tensors().map(Tensor::name) {
            let base = name.strip_suffix(INDICES).or_else(|| name.strip_suffix(COUNTS));
            if !has(name) && !base.is_some_and(has) {
                let names = &tables[..tables.len().min(LISTED)];
                bail!(
                    "{}: array {name:?} has the name of no table: expected {names:?}",
                    path.display()
                );
            }
        }
        Ok(Self { file, tables })
    }

    /// The frequencies of the table called `name`, if the file has any.
    pub(crate) fn of(&self, name: &str) -> Result<Option<Counts<'_>>> {
        let file = self.file.path();
        let half = |suffix: &str| {
            let name = format!("{name}{suffix}");
            // An array with the name of a table belongs to that table, whatever its suffix.
            let array = self.file.tensor(&name).filter(|_| !self.tables.contains(&name));
            (name, array)
        };
        Ok(match (self.file.tensor(name), half(INDICES), half(COUNTS)) {
            (None, (_, None), (_, None)) => None,
            (Some(numbers), (_, None), (_, None)) => Some(Counts::Array { file, numbers }),
            (None, (_, Some(indices)), (_, Some(counts))) => {
                Some(Counts::Pair { file, indices, counts })
            }
            (Some(_), (indices, _), (counts, _)) => {
                bail!(
                    "{}: has both {name:?} and {indices:?} or {counts:?}: keep one of the two",
                    file.display()
                )
            }
            (None, (indices, _), (counts, found)) => {
                let (found, missing) = if found.is_some() {
                    (counts, indices)
                } else {
                    (indices, counts)
                };
                bail!("{}: has array {found:?} but not {missing:?}", file.display())
            }
        })
    }

    /// The indices of the table called `name` that occur, ascending, and how often each does;
    /// `None` if the file has no array for the table.
    ///
    /// # Errors
    /// If the arrays do not fit a table of `num_embeddings`.
    pub fn rows(&self, name: &str, num_embeddings: u64) -> Result<Option<Vec<(u64, f64)>>, Error> {
        let rows = self.of(name)?.map(|source| source.read(num_embeddings)).transpose()?;
        Ok(rows.filter(|rows| !rows.is_empty()))
    }

    /// The error if no array belongs to one of the tensor-train tables.
    pub(crate) fn none_fit(&self, tables: &[&str]) -> String {
        let arrays: Vec<&str> = self.file.tensors().map(Tensor::name).take(LISTED).collect();
        let tables = &tables[..tables.len().min(LISTED)];
        format!(
            "{}: no array has the name of a tensor-train table: the tables are {tables:?}, the \
             arrays {arrays:?}",
            self.file.path().display()
        )
    }
}

impl Counts<'_> {
    /// The rows that occur, ascending, and how often; `num_embeddings` is the number of rows.
    pub(crate) fn read(&self, num_embeddings: u64) -> Result<Vec<(u64, f64)>> {
        match *self {
            Self::Array { file, numbers } => {
                let (name, len) = (numbers.name(), numbers.vector_len()?);
                let file = file.display();
                ensure!(
                    len == num_embeddings,
                    "{file}: {name:?} has {len} numbers: expected {num_embeddings}, one per row"
                );
                let mut rows = Vec::new();
                for_each_count(numbers, &file, |row, count| rows.push((row, count)))?;
                Ok(rows)
            }
            Self::Pair { file, indices, counts } => {
                let (len, expected) = (counts.vector_len()?, indices.vector_len()?);
                let (name, file) = (counts.name(), file.display());
                ensure!(
                    len == expected,
                    "{file}: {name:?} has {len} numbers: expected {expected}, one per index"
                );
                let mut ids = vec![0; usize::try_from(len)?];
                indices.read_i64(0, &mut ids)?;
                let in_range = |id: i64| u64::try_from(id).is_ok_and(|id| id < num_embeddings);
                if let Some(position) = ids.iter().position(|&id| !in_range(id)) {
                    let (name, last) = (indices.name(), num_embeddings - 1);
                    bail!(
                        "{file}: {name}[{position}] is {}: expected a row, 0 to {last}",
                        ids[position]
                    );
                }
                let mut rows = Vec::new();
                for_each_count(counts, &file, |at, count| {
                    rows.push((ids[at as usize].cast_unsigned(), count))
                })?;
                add_up(&mut rows);
                Ok(rows)
            }
        }
    }
}

/// Calls `put` with the positive numbers and their positions.
fn for_each_count(
    array: &Tensor,
    file: &std::path::Display<'_>,
    mut put: impl FnMut(u64, f64),
) -> Result<()> {
    let mut buffer = vec![0.0; 1 << 14];
    let mut start = 0;
    while start < array.len() {
        let count = (array.len() - start).min(buffer.len() as u64);
        let numbers = &mut buffer[..count as usize];
        array.read_f64(start, numbers)?;
        for (&number, position) in numbers.iter().zip(start..) {
            let name = array.name();
            ensure!(
                // With finite f32 numbers, sums and products in f64 stay finite.
                (0.0..=f64::from(f32::MAX)).contains(&number),
                "{file}: {name}[{position}] is {number}: expected 0 or more, and finite in f32"
            );
            if number > 0.0 {
                put(position, number);
            }
        }
        start += count;
    }
    Ok(())
}

/// Sorts frequencies by id, and adds up those of equal ids.
pub fn add_up(frequencies: &mut Vec<(u64, f64)>) {
    frequencies.sort_by_key(|(id, _)| *id);
    frequencies.dedup_by(|(next, frequency), (id, sum)| {
        let same = next == id;
        *sum += if same { *frequency } else { 0.0 };
        same
    });
}
