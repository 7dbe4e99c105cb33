//! The singular values of a table, as its columns' Gram matrix has them: how much of the table few directions hold.

use super::sample::Sample;
use anyhow::{Result, anyhow};
use faer::{Accum, Mat, MatRef, Par, Side, linalg::matmul::matmul};

/// More columns than this would take minutes.
const MAX_COLUMNS: usize = 2048;

pub(super) struct Spectrum {
    /// The squared singular values, descending.
    pub(super) energies: Vec<f64>,
    /// A column for each of them.
    vectors: Mat<f64>,
}

impl Spectrum {
    /// `None` if the table has too many columns for it, or holds what is not finite.
    pub(super) fn of(sample: &Sample<'_, '_>) -> Result<Option<Self>> {
        let n = sample.columns();
        if n > MAX_COLUMNS {
            return Ok(None);
        }
        let mut gram = Mat::<f64>::zeros(n, n);
        sample.for_each_block(|rows| {
            let rows = MatRef::from_row_major_slice(rows, rows.len() / n, n);
            matmul(gram.as_mut(), Accum::Add, rows.transpose(), rows, 1.0, Par::rayon(0));
            Ok(())
        })?;
        if !gram.norm_l2().is_finite() {
            return Ok(None);
        }
        let found = gram.self_adjoint_eigen(Side::Lower).map_err(|_| anyhow!("the eigenvalues did not converge"))?;
        let vectors = found.U();
        Ok(Some(Self {
            energies: (0..n).rev().map(|i| found.S().column_vector()[i].max(0.0)).collect(),
            vectors: Mat::from_fn(n, n, |i, j| vectors[(i, n - 1 - j)]),
        }))
    }

    /// The rows on the first `rank` directions, row-major.
    pub(super) fn project(&self, rows: &[f64], rank: usize) -> Vec<f64> {
        let n = self.energies.len();
        let rows = MatRef::from_row_major_slice(rows, rows.len() / n, n);
        let mut out = vec![0.0; rows.nrows() * rank];
        let to = faer::MatMut::from_row_major_slice_mut(&mut out, rows.nrows(), rank);
        matmul(to, Accum::Replace, rows, self.vectors.subcols(0, rank), 1.0, Par::rayon(0));
        out
    }

    /// The share of the table that the first 1, 2, and so on directions hold.
    pub(super) fn cumulative(&self) -> Vec<f64> {
        let total: f64 = self.energies.iter().sum();
        let mut sum = 0.0;
        let share = |energy: &f64| {
            sum += energy;
            if total > 0.0 { (sum / total).min(1.0) } else { 1.0 }
        };
        self.energies.iter().map(share).collect()
    }
}
