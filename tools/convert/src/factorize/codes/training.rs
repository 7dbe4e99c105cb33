//! The rows that books are learned from: all, or evenly spaced ones of a large table.

use crate::factorize::{Job, Rows};
use anyhow::{Result, ensure};

/// The rows for each entry of a book, or of a book of 256 entries, that make good entries: more
/// hardly make better ones.
pub(crate) const ROWS_PER_ENTRY: u64 = 256;
/// The fewest rows for each entry of a book, if the table has them.
const FEWEST_PER_ENTRY: u64 = 8;
/// Elements that are read at once.
const AT_ONCE: usize = 1 << 20;

/// Rows in memory.
pub(super) struct Training {
    pub(super) dim: usize,
    pub(super) count: usize,
    /// The rows of the table.
    all: u64,
    /// Row by row.
    pub(super) values: Vec<f32>,
    /// How much each row counts.
    pub(super) weights: Option<Vec<f32>>,
}

impl Training {
    /// At most `per_entry` rows for each entry of books of so many bits; `weights` has one number
    /// for each row of the table.
    pub(super) fn read(
        rows: &dyn Rows,
        weights: Option<&[f32]>,
        bits: u32,
        per_entry: u64,
        job: &Job<'_>,
    ) -> Result<Self> {
        let (all, dim) = (rows.num_embeddings(), rows.embedding_dim());
        let book_len = 1u64 << bits;
        // The row, what its codes mean, both in other directions, and the codes.
        let of_row = (4 + 4 + 4 + 2) * dim as u64 + 4;
        let most = (job.memory / of_row).min(book_len.max(256) * per_entry);
        let least = all.min(book_len * FEWEST_PER_ENTRY);
        ensure!(
            most >= least,
            "the memory limit of {} bytes is too small: books of {book_len} entries need {}",
            job.memory,
            least * of_row
        );
        let count = usize::try_from(all.min(most))?;
        let row = |at: usize| evenly(at, count, all);
        let mut values = vec![0.0; count * dim];
        if count as u64 == all {
            let block = (AT_ONCE / dim).max(1);
            for (at, values) in values.chunks_mut(block * dim).enumerate() {
                rows.read((at * block) as u64, values)?;
            }
        } else {
            for (at, values) in values.chunks_exact_mut(dim).enumerate() {
                rows.read(row(at), values)?;
            }
        }
        ensure!(
            values.iter().all(|x| x.is_finite()),
            "a value is not finite: rows with NaN or infinity have no codes"
        );
        let weight = |weights: &[f32]| (0..count).map(|at| weights[row(at) as usize]).collect();
        Ok(Self { dim, count, all, values, weights: weights.map(weight) })
    }

    /// The row of the table at a position.
    pub(super) fn row(&self, at: usize) -> u64 {
        evenly(at, self.count, self.all)
    }

    /// Rows that are worked on at once.
    pub(super) fn at_once(&self) -> usize {
        (AT_ONCE / self.dim).max(1)
    }
}

/// The position `at` of `count` evenly spaced ones among `all`.
fn evenly(at: usize, count: usize, all: u64) -> u64 {
    (at as u128 * u128::from(all) / count as u128) as u64
}
