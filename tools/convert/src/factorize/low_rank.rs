//! Low rank: rows of r columns and an r x embedding_dim projection, from the spectrum of the
//! columns' Gram matrix.

use super::{Job, Rows, gram::Gram};
use crate::{
    matrix::{Eigen, Mat, View, multiply},
    progress::Step,
};
use anyhow::{Result, ensure};
use rayon::prelude::*;

/// The spectrum of the D x D Gram matrix of a table's columns.
pub(crate) struct LowRank {
    spectrum: Eigen,
}

impl LowRank {
    /// Reads the table once.
    pub(crate) fn analyse(rows: &dyn Rows, job: &Job<'_>) -> Result<Self> {
        let Job { name, memory, progress } = *job;
        let dim = rows.embedding_dim();
        let needed = Gram::bytes(dim);
        ensure!(
            needed <= memory,
            "the memory limit of {memory} bytes is too small: {dim} columns need {needed}"
        );
        let at_once = ((8 << 20) / (4 * dim as u64)).max(1);
        let mut gram = Gram::new(dim);
        let step = Step::new(progress, &format!("{name}: Gram matrix"), rows.num_embeddings());
        let mut block = Vec::new();
        for first in (0..rows.num_embeddings()).step_by(at_once as usize) {
            let count = at_once.min(rows.num_embeddings() - first);
            block.resize(count as usize * dim, 0.0);
            rows.read(first, &mut block)?;
            gram.add(View::row_major(&block, dim).transpose());
            step.add(count);
        }
        Ok(Self { spectrum: gram.eigen()? })
    }

    /// The squared singular values, descending.
    pub(crate) fn energies(&self) -> &[f64] {
        &self.spectrum.values
    }

    /// The relative error (Frobenius) at this rank.
    pub(crate) fn error_at(&self, rank: usize) -> f64 {
        let total: f64 = self.energies().iter().sum();
        let tail: f64 = self.energies().iter().skip(rank).sum();
        if total > 0.0 { (tail / total).sqrt() } else { 0.0 }
    }

    /// The smallest rank, at least 1, whose relative error is at most `tolerance`.
    pub(crate) fn rank_for(&self, tolerance: f64) -> usize {
        (1..self.energies().len())
            .find(|&rank| self.error_at(rank) <= tolerance)
            .unwrap_or(self.energies().len())
    }

    /// V, `embedding_dim x rank`, row-major: the directions in which the table is largest, the
    /// largest first.
    pub(crate) fn directions(&self, rank: usize) -> Vec<f32> {
        let vectors = &self.spectrum.vectors;
        let (dim, rank) = (vectors.nrows(), rank.min(vectors.ncols()));
        (0..dim * rank).map(|at| vectors[(at / rank, at % rank)] as f32).collect()
    }

    /// V M, `embedding_dim x rank`, row-major, with the [`mixing`] matrix M: the rows of the table
    /// times it are the rows to store, and its transpose is the projection.
    pub(crate) fn basis(&self, rank: usize) -> Vec<f32> {
        let rank = rank.min(self.spectrum.vectors.ncols());
        let mixing = mixing(rank);
        let mixed =
            self.spectrum.vectors.columns(0, rank) * Mat::from_row_slice(rank, rank, &mixing);
        (0..mixed.nrows() * rank)
            .map(|at| mixed[(at / rank, at % rank)] as f32)
            .collect()
    }
}

/// An orthogonal matrix, `rank x rank`, row-major, that spreads each direction over all columns:
/// the discrete Hartley transform. Without it the first columns of a short row are far larger than
/// the last ones, which one scale for the row then rounds coarsely; mixed columns are of equal
/// size.
pub(crate) fn mixing(rank: usize) -> Vec<f64> {
    let element = |at: usize| {
        let (i, j) = (at / rank, at % rank);
        let (sin, cos) = (std::f64::consts::TAU * (i * j % rank) as f64 / rank as f64).sin_cos();
        (cos + sin) / (rank as f64).sqrt()
    };
    (0..rank * rank).map(element).collect()
}

/// Gives the rows of the table times `basis`, some of them at once, in order.
pub(crate) fn for_each_short_row(
    rows: &dyn Rows,
    basis: &[f32],
    rank: usize,
    mut put: impl FnMut(&[f32]) -> Result<()>,
) -> Result<()> {
    let dim = rows.embedding_dim();
    let basis = View::row_major(basis, rank);
    let at_once = ((1 << 20) / dim as u64).max(1);
    let (mut block, mut short) = (Vec::new(), Vec::new());
    for first in (0..rows.num_embeddings()).step_by(at_once as usize) {
        let count = at_once.min(rows.num_embeddings() - first) as usize;
        block.resize(count * dim, 0.0);
        short.resize(count * rank, 0.0);
        rows.read(first, &mut block)?;
        let of_threads = count.div_ceil(16);
        short
            .par_chunks_mut(of_threads * rank)
            .zip(block.par_chunks(of_threads * dim))
            .for_each(|(short, block)| {
                multiply(View::row_major(block, dim), basis, short);
            });
        put(&short)?;
    }
    Ok(())
}
