//! The rows that a report studies: all, or for a large table runs of them, evenly spread, so that it takes seconds.

use crate::{compare::Reference, dialect::Weights};
use anyhow::Result;
use rayon::prelude::*;

/// Rows that lie together, and are read together.
const RUN: u64 = 64;
/// Elements that are studied at most.
const LIMIT: u64 = 1 << 25;
/// Elements that are held at once.
const AT_ONCE: usize = 1 << 20;

pub(super) struct Sample<'w, 'c> {
    weights: &'w Weights<'c>,
    /// The first row of each run.
    runs: Vec<u64>,
}

impl<'w, 'c> Sample<'w, 'c> {
    pub(super) fn of(weights: &'w Weights<'c>) -> Self {
        let rows = weights.num_embeddings();
        let limit = (LIMIT / weights.embedding_dim() as u64).max(1);
        let runs = rows.min(limit).div_ceil(RUN);
        // In 128 bits the product cannot overflow.
        let first = |run: u64| (u128::from(run) * u128::from(rows.div_ceil(RUN)) / u128::from(runs)) as u64 * RUN;
        Self { weights, runs: (0..runs).map(first).collect() }
    }

    /// How many rows it has.
    pub(super) fn rows(&self) -> u64 {
        self.runs.iter().map(|&first| self.run_len(first)).sum()
    }

    /// Whether it is the whole table.
    pub(super) fn is_whole(&self) -> bool {
        self.rows() == self.weights.num_embeddings()
    }

    pub(super) fn columns(&self) -> usize {
        self.weights.embedding_dim()
    }

    fn run_len(&self, first: u64) -> u64 {
        RUN.min(self.weights.num_embeddings() - first)
    }

    /// Gives the rows, as many at once as memory is meant to hold, to `visit`.
    pub(super) fn for_each_block(&self, mut visit: impl FnMut(&[f64]) -> Result<()>) -> Result<()> {
        let columns = self.columns();
        let runs_at_once = (AT_ONCE / (columns * RUN as usize)).max(1);
        for runs in self.runs.chunks(runs_at_once) {
            let mut rows = vec![0.0; runs.iter().map(|&first| self.run_len(first) as usize * columns).sum()];
            // Only the last run of a table is shorter than the others.
            let parts = rows.par_chunks_mut(RUN as usize * columns).zip(runs);
            parts.try_for_each_init(|| Reference::new(self.weights), |reference, (rows, &first)| reference.rows(first, rows))?;
            visit(&rows)?;
        }
        Ok(())
    }
}
