//! Gram matrices `A A^T` of matrices that come in blocks of columns, and their leading
//! eigenvectors.
//!
//! Products of a few hundred columns are summed in f32, at the speed of the CPU's widest vectors;
//! these sums are added in f64. So the rounding error is that of a short f32 sum for tables of any
//! length, and does not drift.

use crate::matrix::{Eigen, Mat, View, eigen, multiply};
use anyhow::Result;
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
    rows: usize,
    columns: usize,
    /// Row-major.
    sums: Vec<f64>,
}

impl Gram {
    /// Bytes that a Gram matrix of n rows and its eigenvectors take.
    pub(super) fn bytes(n: usize) -> u64 {
        (n as u64).saturating_mul(n as u64).saturating_mul(8 * 4)
    }

    pub(super) fn new(n: usize) -> Self {
        let starts = || (0..n).step_by(TILE);
        let tile = |row: usize, column: usize| {
            let (rows, columns) = (TILE.min(n - row), TILE.min(n - column));
            Tile { row, column, rows, columns, sums: vec![0.0; rows * columns] }
        };
        let tiles =
            starts().flat_map(|row| starts().filter(move |&c| c <= row).map(move |c| (row, c)));
        Self { n, tiles: tiles.map(|(row, column)| tile(row, column)).collect() }
    }

    /// Adds `block block^T`.
    pub(super) fn add(&mut self, block: View<'_>) {
        // One of the two is a copy, which the tiles would otherwise make of their parts many times.
        let (left, right) = (block.elements(), block.transpose().elements());
        let left = View::row_major(&left, block.columns());
        let right = View::row_major(&right, block.rows());
        self.tiles.par_iter_mut().for_each(|tile| {
            let mut product = vec![0.0; tile.sums.len()];
            for start in (0..block.columns()).step_by(DEPTH) {
                let depth = DEPTH.min(block.columns() - start);
                let a = left.some_rows(tile.row, tile.rows).some_columns(start, depth);
                let b = right.some_rows(start, depth).some_columns(tile.column, tile.columns);
                multiply(a, b, &mut product);
                tile.sums.iter_mut().zip(&product).for_each(|(sum, &x)| *sum += f64::from(x));
            }
        });
    }

    /// All eigenvalues, descending, and eigenvectors.
    pub(super) fn eigen(self) -> Result<Eigen> {
        let mut full = Mat::zeros(self.n, self.n);
        for tile in self.tiles {
            for (at, sum) in tile.sums.into_iter().enumerate() {
                full[(tile.row + at / tile.columns, tile.column + at % tile.columns)] = sum;
            }
        }
        eigen(full)
    }
}
