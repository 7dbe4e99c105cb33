//! The rows that a report measures: all, or for a large table evenly spaced runs, so that it takes
//! seconds.

use crate::{
    compare::Reference,
    dialect::{Source, Weights},
    factorize::Rows,
};
use anyhow::Result;
use rayon::prelude::*;

/// The length of a run.
const RUN: u64 = 64;
/// The most elements that are measured.
const LIMIT: u64 = 1 << 25;

pub(super) struct Runs<'w, 'c> {
    source: &'w Source<'c>,
    runs: u64,
}

impl<'w, 'c> Runs<'w, 'c> {
    pub(super) fn of(source: &'w Source<'c>) -> Self {
        let weights = &source.weights;
        let limit = (LIMIT / weights.embedding_dim() as u64).max(1);
        Self { source, runs: weights.num_embeddings().min(limit).div_ceil(RUN) }
    }

    fn weights(&self) -> &'w Weights<'c> {
        &self.source.weights
    }

    /// Whether it is the whole table.
    pub(super) fn is_whole(&self) -> bool {
        self.num_embeddings() == self.weights().num_embeddings()
    }

    /// The row of the table at a position of the sample.
    pub(super) fn row(&self, position: u64) -> u64 {
        let all = self.weights().num_embeddings().div_ceil(RUN);
        let (run, at) = (position / RUN, position % RUN);
        // In 128 bits the product cannot overflow.
        (u128::from(run) * u128::from(all) / u128::from(self.runs)) as u64 * RUN + at
    }

    fn read_wide(&self, first: u64, out: &mut [f64]) -> Result<()> {
        let columns = self.embedding_dim();
        // Up to the end of a run, then whole runs.
        let whole = (RUN - first % RUN) as usize * columns;
        let (head, rest) = out.split_at_mut(whole.min(out.len()));
        Reference::new(self.source).rows(self.row(first), head)?;
        let from = first + (head.len() / columns) as u64;
        rest.par_chunks_mut(RUN as usize * columns).enumerate().try_for_each_init(
            || Reference::new(self.source),
            |reference, (run, rows)| reference.rows(self.row(from + run as u64 * RUN), rows),
        )
    }
}

impl Rows for Runs<'_, '_> {
    /// The number of rows of the sample, not of the table.
    fn num_embeddings(&self) -> u64 {
        // Only the last run of a table can be shorter, and it is in the sample only if all runs
        // are.
        let rows = self.weights().num_embeddings();
        if self.runs == rows.div_ceil(RUN) {
            rows
        } else {
            self.runs * RUN
        }
    }

    fn embedding_dim(&self) -> usize {
        self.weights().embedding_dim()
    }

    fn read(&self, first: u64, out: &mut [f32]) -> Result<()> {
        let mut wide = vec![0.0; out.len()];
        self.read_wide(first, &mut wide)?;
        out.iter_mut().zip(wide).for_each(|(out, x)| *out = x as f32);
        Ok(())
    }
}
