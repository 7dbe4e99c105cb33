//! Matrix products and decompositions.
//!
//! Products of the table's values are in f32, by the kernels of [`ttrec`]: their bits do not depend
//! on the number of threads, nor on the instruction set, if it has fused multiply-add.
//! Decompositions are in f64, by nalgebra. [`View`] is a matrix of f32 with any strides, so that a
//! transpose copies nothing.

use anyhow::{Context, Result};
use nalgebra::{DMatrix, SymmetricEigen};
use std::borrow::Cow;
use ttrec::{
    Tier,
    dtype::Elements,
    kernel::{Dims, Epilogue, chain_step},
};

/// The rows and columns of a block of the left operand. A block stays in the L2 cache, and the
/// columns of the right operand that a register tile reads stay in the L1 cache.
const BLOCK: [usize; 2] = [128, 256];

/// A matrix of f64 that owns its elements.
pub(crate) type Mat = DMatrix<f64>;

/// A matrix whose element (i, j) is `values[i * row_stride + j * column_stride]`.
#[derive(Clone, Copy)]
pub(crate) struct View<'m> {
    values: &'m [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'m> View<'m> {
    /// Rows one after another, `columns` elements each.
    pub(crate) fn row_major(values: &'m [f32], columns: usize) -> Self {
        let rows = values.len() / columns.max(1);
        Self { values, rows, columns, row_stride: columns, column_stride: 1 }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    pub(crate) fn transpose(self) -> Self {
        Self {
            values: self.values,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }

    /// Rows `first..first + count`.
    pub(crate) fn some_rows(self, first: usize, count: usize) -> Self {
        let values = self.values.get(first * self.row_stride..).unwrap_or_default();
        Self { values, rows: count, ..self }
    }

    /// Columns `first..first + count`.
    pub(crate) fn some_columns(self, first: usize, count: usize) -> Self {
        self.transpose().some_rows(first, count).transpose()
    }

    /// The elements, row-major.
    pub(crate) fn elements(&self) -> Cow<'m, [f32]> {
        if self.column_stride == 1 && (self.row_stride == self.columns || self.rows == 1) {
            return Cow::Borrowed(&self.values[..self.rows * self.columns]);
        }
        let mut copy = vec![0.0; self.rows * self.columns];
        if self.column_stride == 1 {
            for (i, row) in copy.chunks_exact_mut(self.columns.max(1)).enumerate() {
                row.copy_from_slice(&self.values[i * self.row_stride..][..self.columns]);
            }
            return Cow::Owned(copy);
        }
        // In blocks, so that each cache line is read once.
        for (block, rows) in copy.chunks_mut(16 * self.columns.max(1)).enumerate() {
            for first in (0..self.columns).step_by(16) {
                for (i, row) in rows.chunks_exact_mut(self.columns).enumerate() {
                    let start = (block * 16 + i) * self.row_stride;
                    let columns = first..self.columns.min(first + 16);
                    for (to, j) in row[columns.clone()].iter_mut().zip(columns) {
                        *to = self.values[start + j * self.column_stride];
                    }
                }
            }
        }
        Cow::Owned(copy)
    }
}

/// `out <- a b`, row-major.
pub(crate) fn multiply(a: View<'_>, b: View<'_>, out: &mut [f32]) {
    assert_eq!((a.columns, a.rows * b.columns), (b.rows, out.len()), "sizes of a product");
    let tier = Tier::best();
    let n = b.columns;
    out.fill(0.0);
    for first in (0..b.rows).step_by(BLOCK[1]) {
        let r = BLOCK[1].min(b.rows - first);
        let right = b.some_rows(first, r).elements();
        for (block, out) in out.chunks_mut(BLOCK[0] * n.max(1)).enumerate() {
            let m = out.len() / n;
            let left = a.some_rows(block * BLOCK[0], m).some_columns(first, r).elements();
            let right = Elements::from_f32(&right);
            chain_step(tier, Dims { m, r, n }, &left, right, out, Epilogue::AddScaled(1.0))
                .expect("operands of these sizes");
        }
    }
}

/// The spectrum of a symmetric matrix without negative eigenvalues.
pub(crate) struct Eigen {
    /// Descending; never below 0.
    pub(crate) values: Vec<f64>,
    /// A column for each value.
    pub(crate) vectors: Mat,
}

/// The spectrum of a symmetric matrix, of which the lower triangle is read.
pub(crate) fn eigen(matrix: Mat) -> Result<Eigen> {
    let n = matrix.nrows();
    // Each value takes a few iterations.
    let SymmetricEigen { eigenvalues, eigenvectors } =
        SymmetricEigen::try_new(matrix, f64::EPSILON, 1000 * n.max(1))
            .context("the eigenvalues did not converge")?;
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| eigenvalues[b].total_cmp(&eigenvalues[a]));
    Ok(Eigen {
        values: order.iter().map(|&at| eigenvalues[at].max(0.0)).collect(),
        vectors: eigenvectors.select_columns(&order),
    })
}

/// `U diag(values) V^T`, with as many values as the matrix has rows or columns.
pub(crate) struct Svd {
    /// A column for each value. Columns are orthonormal, also those of values that are 0.
    pub(crate) u: Mat,
    /// Descending.
    pub(crate) values: Vec<f64>,
    /// A column for each value.
    pub(crate) v: Mat,
}

/// The lowest inverse condition number (smallest singular value divided by largest) for which the
/// normalised columns of `M V` are orthogonal to 1e-6.
const WELL_CONDITIONED: f64 = 1e-5;

/// The singular values and vectors of a matrix.
///
/// From the spectrum of `M^T M`, since nalgebra's own decomposition gives wrong values for some
/// matrices with zeros. The columns of `M V` are orthogonal, and their norms are the values, to
/// more digits than the roots of the eigenvalues have: the product of the three differs from the
/// matrix by less than the rounding of f32.
pub(crate) fn svd(matrix: &Mat) -> Result<Svd> {
    if matrix.nrows() < matrix.ncols() {
        let Svd { u, values, v } = svd(&matrix.transpose())?;
        return Ok(Svd { u: v, values, v: u });
    }
    let v = eigen(matrix.transpose() * matrix)?.vectors;
    let mut u = matrix * &v;
    let mut values: Vec<f64> = u.column_iter().map(|column| column.norm()).collect();
    let extremes = values.iter().fold((f64::INFINITY, 0f64), |(a, b), &x| (a.min(x), b.max(x)));
    if extremes.0 > WELL_CONDITIONED * extremes.1 {
        for (mut column, value) in u.column_iter_mut().zip(&values) {
            column /= *value;
        }
        // A step of Newton and Schulz squares what they lack.
        let n = values.len();
        u = &u * (Mat::identity(n, n) * 1.5 - u.transpose() * &u * 0.5);
    } else {
        let r;
        (u, r) = u.qr().unpack();
        for ((mut column, value), &pivot) in u.column_iter_mut().zip(&mut values).zip(&r.diagonal())
        {
            column *= pivot.signum();
            *value = pivot.abs();
        }
    }
    Ok(Svd { u, values, v })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers in [-1, 1), the same in every run.
    fn noise() -> impl FnMut() -> f64 {
        let mut state = 1u64;
        move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 32) as f64 / f64::from(1u32 << 31) - 1.0
        }
    }

    #[test]
    fn products_of_views_are_sums_of_products() {
        let mut next = noise();
        let values: Vec<f32> = (0..7 * 11).map(|_| next() as f32).collect();
        let (a, b) = (View::row_major(&values, 11), View::row_major(&values, 7));
        let pairs = [
            (a, b),
            (a, a.transpose()),
            (a.transpose(), a),
            (a.some_rows(2, 5).some_columns(3, 4), b.some_rows(6, 4).some_columns(1, 1)),
        ];
        for (a, b) in pairs {
            let mut out = vec![f32::NAN; a.rows() * b.columns()];
            multiply(a, b, &mut out);
            let at = |m: View<'_>, i, j| m.values[i * m.row_stride + j * m.column_stride];
            for (place, out) in out.iter().enumerate() {
                let (i, j) = (place / b.columns(), place % b.columns());
                let sum: f32 = (0..a.columns()).map(|k| at(a, i, k) * at(b, k, j)).sum();
                assert!((out - sum).abs() < 1e-5, "({i}, {j}): {out}, {sum}");
            }
        }
    }

    /// Of every shape: full and deficient ranks, zeros, and rows of very different size.
    #[test]
    fn singular_values_and_vectors_make_the_matrix() {
        let mut next = noise();
        for case in 0..400 {
            let (rows, columns) = (1 + case * 7 % 33, 1 + case * 5 % 29);
            let rank = 1 + case % rows.min(columns);
            let mut any = |rows, columns| Mat::from_fn(rows, columns, |_, _| next());
            let matrix = match case % 4 {
                0 => any(rows, columns),
                1 => any(rows, rank) * any(rank, columns),
                2 => any(rows, columns).map(|x| if x < 0.3 { 0.0 } else { x }),
                _ => {
                    let mut graded = any(rows, columns);
                    for (i, mut row) in graded.row_iter_mut().enumerate() {
                        row *= 10f64.powi(-(i as i32));
                    }
                    graded
                }
            } * [1.0, 1e-10, 1e8, 0.0][case % 7 % 4];
            let Svd { u, values, v } = svd(&matrix).unwrap();
            assert!(values.is_sorted_by(|a, b| a + 1e-7 * values[0] >= *b), "{case}: {values:?}");
            let one = Mat::identity(values.len(), values.len());
            let scale = Mat::from_diagonal(&values.into());
            let apart = [
                (&u * scale * v.transpose() - &matrix).norm() / matrix.norm().max(1e-300),
                (u.tr_mul(&u) - &one).norm(),
                (v.tr_mul(&v) - &one).norm(),
            ];
            let far = [1e-7, 1e-9, 1e-9];
            assert!(apart.iter().zip(&far).all(|(apart, far)| apart < far), "{case}: {apart:?}");
        }
    }
}
