//! Gram matrices `A A^T` of matrices that come in blocks of columns, and their leading
//! eigenvectors.
//!
//! Products of a few hundred columns are summed in f32, at the speed of the CPU's widest vectors;
//! these sums are added in f64. So the rounding error is that of a short f32 sum for tables of any
//! length, and does not drift.

use anyhow::{Result, anyhow};
use faer::{Accum, Mat, MatRef, Par, Side, linalg::matmul::matmul};
use rayon::prelude::*;

/// Rows and columns of a tile: two panels of [`DEPTH`] columns stay in the L2 cache.
const TILE: usize = 128;
/// Columns that are summed in f32.
const DEPTH: usize = 512;

/// The lower triangle of a Gram matrix, in tiles, each of which only one thread at a time adds to:
/// every sum is in the order of the columns, so that the number of threads does not matter.
pub(super) struct Gram {
    n: usize,
    tiles: Vec<Tile>,
}

struct Tile {
    row: usize,
    column: usize,
    sum: Mat<f64>,
}

impl Gram {
    /// Bytes that a Gram matrix of n rows and its eigenvectors take.
    pub(super) fn bytes(n: usize) -> u64 {
        (n as u64).saturating_mul(n as u64).saturating_mul(8 * 4)
    }

    pub(super) fn new(n: usize) -> Self {
        let starts = || (0..n).step_by(TILE);
        let tile = |row: usize, column: usize| Tile {
            row,
            column,
            sum: Mat::zeros(TILE.min(n - row), TILE.min(n - column)),
        };
        let tiles =
            starts().flat_map(|row| starts().filter(move |&c| c <= row).map(move |c| (row, c)));
        Self { n, tiles: tiles.map(|(row, column)| tile(row, column)).collect() }
    }

    /// Adds `block block^T`.
    pub(super) fn add(&mut self, block: MatRef<'_, f32>) {
        self.tiles.par_iter_mut().for_each(|tile| {
            let (rows, columns) = (tile.sum.nrows(), tile.sum.ncols());
            let mut product = Mat::<f32>::zeros(rows, columns);
            for start in (0..block.ncols()).step_by(DEPTH) {
                let depth = DEPTH.min(block.ncols() - start);
                let a = block.submatrix(tile.row, start, rows, depth);
                let b = block.submatrix(tile.column, start, columns, depth);
                matmul(product.as_mut(), Accum::Replace, a, b.transpose(), 1.0, Par::Seq);
                for column in 0..columns {
                    let sums = tile.sum.col_as_slice_mut(column);
                    sums.iter_mut()
                        .zip(product.col_as_slice(column))
                        .for_each(|(sum, &x)| *sum += f64::from(x));
                }
            }
        });
    }

    /// All eigenvalues, descending, and eigenvectors.
    pub(super) fn eigen(self) -> Result<Eigen> {
        let mut full = Mat::zeros(self.n, self.n);
        for tile in &self.tiles {
            full.submatrix_mut(tile.row, tile.column, tile.sum.nrows(), tile.sum.ncols())
                .copy_from(&tile.sum);
        }
        drop(self.tiles);
        eigen(full.as_ref())
    }
}

/// The spectrum of a Gram matrix.
pub(super) struct Eigen {
    /// Descending; never below 0.
    pub(super) values: Vec<f64>,
    /// A column for each value.
    pub(super) vectors: Mat<f64>,
}

/// The spectrum of a symmetric matrix, of which the lower triangle is read.
pub(super) fn eigen(matrix: MatRef<'_, f64>) -> Result<Eigen> {
    // One thread: how faer splits its work depends on their number, and with it the rounding.
    faer::set_global_parallelism(Par::Seq);
    let n = matrix.nrows();
    let found = matrix
        .self_adjoint_eigen(Side::Lower)
        .map_err(|_| anyhow!("the eigenvalues did not converge"))?;
    let values = (0..n).rev().map(|i| found.S().column_vector()[i].max(0.0)).collect();
    let vectors = found.U();
    let vectors = Mat::from_fn(n, n, |i, j| vectors[(i, n - 1 - j)]);
    Ok(Eigen { values, vectors })
}
