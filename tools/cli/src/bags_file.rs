//! Bags of a file of arrays, in the formats of `torch.nn.EmbeddingBag`.

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use std::{
    borrow::Cow,
    iter::once,
    num::ParseIntError,
    path::{Path, PathBuf},
    str::FromStr,
};
use ttrec::{Bags, BagsError, Pooling, Table};
use ttrec_convert::{Checkpoint, checkpoint::Tensor, zeros};

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub(crate) enum Mode {
    /// One row per index
    Rows,
    /// Sum
    Sum,
    /// Mean
    Mean,
    /// Maximum of each column
    Max,
}

impl Mode {
    /// [`Mode::Rows`] pools bags of one index: the maximum of one row is that row, bit for bit.
    pub(crate) fn pooling(self) -> Pooling {
        match self {
            Self::Sum => Pooling::Sum,
            Self::Mean => Pooling::Mean,
            Self::Rows | Self::Max => Pooling::Max,
        }
    }
}

/// The options of the commands that read bags.
#[derive(clap::Args, Clone, Default)]
pub(crate) struct BagOptions {
    /// Whether the last offset is the number of indices, not the start of an empty last bag
    /// [default: true if it is that number]
    #[arg(long, value_name = "true|false")]
    include_last_offset: Option<bool>,
    /// Leave this index out of all bags, as torch.nn.EmbeddingBag does, or, with TABLE=INDEX, out
    /// of the bags of one table of a model. May be given several times
    #[arg(long, value_name = "[TABLE=]INDEX")]
    padding_idx: Vec<PaddingIdx>,
}

/// An index that is left out of its bags.
#[derive(Clone)]
struct PaddingIdx {
    /// `None`: of all tables.
    table: Option<String>,
    index: u64,
}

impl FromStr for PaddingIdx {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        let (table, index) = match text.rsplit_once('=') {
            Some((table, index)) => (Some(table.to_owned()), index),
            None => (None, text),
        };
        Ok(Self { table, index: index.parse()? })
    }
}

impl BagOptions {
    /// Whether no option is given.
    pub(crate) fn are_default(&self) -> bool {
        self.include_last_offset.is_none() && self.padding_idx.is_empty()
    }

    /// Refuses an index that none of these tables has.
    pub(crate) fn check(&self, tables: &[Table<'_>]) -> Result<()> {
        for padding in &self.padding_idx {
            let mut found = tables.iter().filter(|table| padding.is_of(table)).peekable();
            let Some(&first) = found.peek() else {
                let names: Vec<&str> = tables.iter().map(Table::name).collect();
                let name = padding.table.as_deref().unwrap_or_default();
                bail!("--padding-idx: no table {name:?}: expected one of {names:?}");
            };
            ensure!(
                found.any(|table| padding.index < table.num_embeddings()),
                "--padding-idx {}: table {:?} has {} rows",
                padding.index,
                first.name(),
                first.num_embeddings()
            );
        }
        Ok(())
    }

    /// The index that is left out of the bags of a table.
    pub(crate) fn padding_idx(&self, table: &Table<'_>) -> Option<u64> {
        let of_table = self.padding_idx.iter().filter(|padding| padding.is_of(table));
        of_table
            .max_by_key(|padding| padding.table.is_some())
            .map(|padding| padding.index)
    }
}

impl PaddingIdx {
    fn is_of(&self, table: &Table<'_>) -> bool {
        self.table.as_ref().is_none_or(|name| name == table.name())
    }
}

/// The bags of a file, or of the command line.
pub(crate) struct BagsFile {
    path: PathBuf,
    indices: Vec<u64>,
    /// The shape of the array of indices.
    shape: Vec<u64>,
    /// `None` if nothing says where bags end.
    offsets: Option<Vec<u64>>,
    weights: Option<Vec<f32>>,
    padding_idx: Option<u64>,
}

impl BagsFile {
    /// Reads `indices` and the ends of the bags, and `weights` if `weighted`.
    pub(crate) fn read(path: &Path, weighted: bool, options: &BagOptions) -> Result<Self> {
        Self::read_arrays(path, "indices", weighted, options)
    }

    /// Like [`read`](Self::read), but the indices are the array `indices`.
    pub(crate) fn read_arrays(
        path: &Path,
        indices: &str,
        weighted: bool,
        options: &BagOptions,
    ) -> Result<Self> {
        let names = [indices, "offsets", "lengths", "weights"];
        Self::of(&Checkpoint::open(path)?, names, weighted, options, None)
    }

    /// One bag of these indices.
    pub(crate) fn of_ids(ids: &[u64]) -> Self {
        let len = ids.len() as u64;
        Self {
            path: "--ids".into(),
            indices: ids.to_vec(),
            shape: vec![len],
            offsets: Some(vec![0, len]),
            weights: None,
            padding_idx: None,
        }
    }

    /// The bags of the arrays of these names in an open file. `num_bags` is their number, if the
    /// file says it elsewhere.
    pub(crate) fn of(
        file: &Checkpoint,
        [indices, offsets, lengths, weights]: [&str; 4],
        weighted: bool,
        options: &BagOptions,
        num_bags: Option<usize>,
    ) -> Result<Self> {
        let path = file.path();
        let missing = |name: &str| format!("{}: array {name:?} is missing", path.display());
        // A .npy file has one array, whose name is that of the file.
        let is_npy =
            path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("npy"));
        let only = file.tensors().next().filter(|_| is_npy);
        let array = match only {
            Some(array) => array,
            None => file.find(indices)?.with_context(|| missing(indices))?,
        };
        let find = |name: &str| -> Result<Option<&Tensor>> {
            Ok(file.find(name)?.filter(|found| found.name() != array.name()))
        };
        let weights = if weighted {
            let weights = find(weights)?.with_context(|| missing(weights))?;
            if weights.shape() != array.shape() {
                weights.vector_len()?;
            }
            let mut values = vec![0.0; usize::try_from(weights.len())?];
            weights.read_f32(0, &mut values)?;
            if let Some(position) = values.iter().position(|value| !value.is_finite()) {
                bail!(
                    "{}: {}[{position}] is {} in f32: expected a finite number",
                    path.display(),
                    weights.name(),
                    values[position]
                );
            }
            Some(values)
        } else {
            None
        };
        Ok(Self {
            path: path.to_owned(),
            indices: integers(array)?,
            shape: array.shape().to_vec(),
            offsets: offsets_of(array, find(offsets)?, find(lengths)?, options, num_bags)?,
            weights,
            padding_idx: None,
        })
    }

    /// The same bags without this index.
    pub(crate) fn excluding(self, padding_idx: Option<u64>) -> Self {
        Self { padding_idx, ..self }
    }

    /// One row per index or per bag, end to end.
    pub(crate) fn look_up(&self, table: &Table<'_>, mode: Mode) -> Result<Vec<f32>> {
        let pooled = || -> Result<Vec<f32>> {
            let offsets = self.offsets(mode)?;
            let bags = self.bags(&offsets)?;
            let mut out = zeros(bags.len().saturating_mul(table.embedding_dim()))?;
            let mut workspace = zeros(table.workspace_len(1))?;
            table.pool(&bags, mode.pooling(), &mut out, &mut workspace)?;
            Ok(out)
        };
        pooled().with_context(|| format!("{}: table {:?}", self.path.display(), table.name()))
    }

    /// The shape of what [`look_up`](Self::look_up) returns.
    pub(crate) fn shape(&self, table: &Table<'_>, mode: Mode) -> Result<Vec<u64>> {
        let mut shape = match mode {
            Mode::Rows => self.shape.clone(),
            Mode::Sum | Mode::Mean | Mode::Max => vec![self.all()?.len() as u64],
        };
        shape.push(table.embedding_dim() as u64);
        Ok(shape)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The offsets of the bags that `mode` pools.
    pub(crate) fn offsets(&self, mode: Mode) -> Result<Cow<'_, [u64]>> {
        match mode {
            Mode::Rows => Ok((0..=self.indices.len() as u64).collect()),
            Mode::Sum | Mode::Mean | Mode::Max => self.bag_offsets().map(Cow::Borrowed),
        }
    }

    fn bag_offsets(&self) -> Result<&[u64]> {
        self.offsets.as_deref().context(
            "no array of offsets or lengths says where bags end: add one, or give the indices two \
             dimensions, with a bag in each row",
        )
    }

    /// The bags between these offsets.
    pub(crate) fn bags<'s>(&'s self, offsets: &'s [u64]) -> Result<Bags<'s>, BagsError> {
        let mut bags = Bags::new(&self.indices, offsets)?;
        if let Some(weights) = &self.weights {
            bags = bags.with_per_sample_weights(weights)?;
        }
        Ok(match self.padding_idx {
            Some(padding_idx) => bags.with_padding_idx(padding_idx),
            None => bags,
        })
    }

    /// The bags as the file has them.
    pub(crate) fn all(&self) -> Result<Bags<'_>> {
        Ok(self.bags(self.bag_offsets()?)?)
    }

    pub(crate) fn indices(&self) -> &[u64] {
        &self.indices
    }
}

/// The elements of an array of indices, offsets or lengths.
fn integers(array: &Tensor) -> Result<Vec<u64>> {
    let mut values = vec![0; usize::try_from(array.len())?];
    array.read_i64(0, &mut values)?;
    if let Some(position) = values.iter().position(|&value| value < 0) {
        let (path, name, value) = (array.file().display(), array.name(), values[position]);
        bail!("{path}: {name}[{position}] is {value}: expected 0 or more");
    }
    Ok(values.into_iter().map(i64::cast_unsigned).collect())
}

/// Offsets, the last one included; `None` if nothing says where bags end.
fn offsets_of(
    indices: &Tensor,
    offsets: Option<&Tensor>,
    lengths: Option<&Tensor>,
    options: &BagOptions,
    num_bags: Option<usize>,
) -> Result<Option<Vec<u64>>> {
    let (path, name) = (indices.file().display(), indices.name());
    let (shape, num_indices) = (indices.shape(), indices.len());
    if let &[rows, columns] = shape {
        if let Some(array) = offsets.or(lengths) {
            let other = array.name();
            bail!(
                "{path}: each row of {name:?}, of shape {shape:?}, is a bag, but the file has \
                 {other:?} too: remove {other:?}, or give {name:?} one dimension"
            );
        }
        ensure!(
            columns > 0 || rows == 0,
            "{path}: {name:?} has shape {shape:?}: expected one column or more"
        );
        return Ok(Some((0..=num_indices).step_by(usize::try_from(columns)?.max(1)).collect()));
    }
    ensure!(
        shape.len() == 1,
        "{path}: {name:?} has shape {shape:?}: expected one dimension, or two with a bag in each \
         row"
    );
    let vector = |array: &Tensor| -> Result<Vec<u64>> {
        array.vector_len()?;
        integers(array)
    };
    if let Some(offsets) = offsets {
        let mut offsets = vector(offsets)?;
        let includes_last = options.include_last_offset.unwrap_or_else(|| match num_bags {
            Some(num_bags) => offsets.len() != num_bags,
            None => offsets.last().is_none_or(|&last| last == num_indices),
        });
        if !includes_last {
            offsets.push(num_indices);
        }
        return Ok(Some(offsets));
    }
    if let Some(array) = lengths {
        let lengths = vector(array)?;
        let sum: u128 = lengths.iter().map(|&length| u128::from(length)).sum();
        ensure!(
            sum == u128::from(num_indices),
            "{path}: the sum of {:?} is {sum}: expected the number of indices, {num_indices}",
            array.name()
        );
        return Ok(Some(ends(lengths.into_iter())));
    }
    let one_each = num_bags.is_some_and(|num_bags| num_bags as u64 == num_indices);
    Ok(one_each.then(|| (0..=num_indices).collect()))
}

/// The offsets of bags of these lengths, whose sum fits u64.
fn ends(lengths: impl Iterator<Item = u64>) -> Vec<u64> {
    let mut end = 0;
    let ends = lengths.map(|length| {
        end += length;
        end
    });
    once(0).chain(ends).collect()
}
