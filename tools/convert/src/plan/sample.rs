//! The rows that errors are measured on: all of a table that fits into memory, else a sample.
//!
//! Without frequencies each row weighs 1. With frequencies, rows weigh in proportion to them, and 1
//! on average. A sample is then drawn in proportion to the frequencies, because frequent rows
//! decide the error.

use crate::{factorize::Rows, in_memory};
use anyhow::Result;
use rayon::prelude::*;
use ttrec::dtype::Dtype;

/// Rows that are encoded and decoded at once.
const CHUNK: usize = 256;
/// Rows that one thread looks up at once.
const LOOKED_UP: usize = 4096;
/// Elements that are read at once.
const AT_ONCE: usize = 1 << 20;

/// Rows of a table, and how much each of them weighs.
pub(super) struct Sample {
    pub(super) ids: Vec<u64>,
    pub(super) weights: Vec<f64>,
    /// Whether these are all rows with a weight above 0.
    pub(super) complete: bool,
}

impl Sample {
    /// A sample of at most `most` of `num_embeddings` rows; `asked` has ids, ascending, and their
    /// frequencies.
    pub(super) fn draw(num_embeddings: u64, most: usize, asked: Option<&[(u64, f64)]>) -> Self {
        let rows = num_embeddings as f64;
        let Some(asked) = asked else {
            let complete = num_embeddings <= most as u64;
            let count = if complete { num_embeddings } else { most as u64 };
            // The middle of each of `count` equal parts.
            let id = |k: u64| {
                ((u128::from(2 * k + 1) * u128::from(num_embeddings)) / u128::from(2 * count))
                    as u64
            };
            let weight = rows / count as f64;
            return Self {
                ids: (0..count).map(id).collect(),
                weights: vec![weight; count as usize],
                complete,
            };
        };
        let total: f64 = asked.iter().map(|(_, frequency)| frequency).sum();
        if asked.len() <= most {
            let (ids, weights) =
                asked.iter().map(|&(id, frequency)| (id, frequency / total * rows)).unzip();
            return Self { ids, weights, complete: true };
        }
        // Equal steps through the cumulated frequencies: a row is drawn in proportion to its
        // frequency.
        let step = total / most as f64;
        let (mut ids, mut weights, mut end, mut met) = (Vec::new(), Vec::new(), 0.0, 0);
        for &(id, frequency) in asked {
            end += frequency;
            let before = met;
            while met < most && (met as f64 + 0.5) * step < end {
                met += 1;
            }
            if met > before {
                ids.push(id);
                weights.push((met - before) as f64 * rows / most as f64);
            }
        }
        Self { ids, weights, complete: false }
    }

    /// Every row, once.
    pub(super) fn all(num_embeddings: u64) -> Self {
        let (ids, weights) = (0..num_embeddings).map(|id| (id, 1.0)).unzip();
        Self { ids, weights, complete: true }
    }

    /// Reads the rows, one after another.
    pub(super) fn read(&self, rows: &dyn Rows) -> Result<Matrix> {
        let columns = rows.embedding_dim();
        let mut values = vec![0.0; self.ids.len() * columns];
        if self.ids.len() as u64 == rows.num_embeddings() {
            let block = (AT_ONCE / columns).max(1) * columns;
            for (at, values) in values.chunks_mut(block).enumerate() {
                rows.read((at * block / columns) as u64, values)?;
            }
            return Ok(Matrix { values, columns });
        }
        self.ids
            .iter()
            .zip(values.chunks_exact_mut(columns))
            .try_for_each(|(&id, row)| rows.read(id, row))?;
        Ok(Matrix { values, columns })
    }

    /// The weighted sum of `of` over the rows.
    pub(super) fn sum<'m>(&self, matrix: &'m Matrix, of: impl Fn(&'m [f32]) -> f64) -> f64 {
        let rows = matrix.values.chunks_exact(matrix.columns);
        self.weights.iter().zip(rows).map(|(weight, row)| weight * of(row)).sum()
    }

    /// The weighted squared error of the first `columns` columns as dense rows of `dtype`; `None`
    /// if a value overflows.
    pub(super) fn coding_error(
        &self,
        matrix: &Matrix,
        columns: usize,
        dtype: Dtype,
    ) -> Result<Option<f64>> {
        let chunks: Vec<_> = self
            .weights
            .chunks(CHUNK)
            .zip(matrix.values.chunks(CHUNK * matrix.columns))
            .collect();
        let error = |&(weights, values): &(&[f64], &[f32])| -> Result<Option<f64>> {
            let rows: Vec<f32> = values
                .chunks_exact(matrix.columns)
                .flat_map(|row| &row[..columns])
                .copied()
                .collect();
            let Some(blob) = in_memory::rows(&rows, columns, dtype)? else { return Ok(None) };
            let table = in_memory::table(&blob)?;
            let (mut stored, mut workspace) =
                (vec![0.0; columns], vec![0.0; table.workspace_len(1)]);
            let mut sum = 0.0;
            for (at, (row, weight)) in rows.chunks_exact(columns).zip(weights).enumerate() {
                table.lookup(at as u64, &mut stored, &mut workspace)?;
                sum += weight * squared_distance(row, &stored);
            }
            Ok(Some(sum))
        };
        // Summed in the order of the rows, so that the number of threads does not matter.
        let sums = chunks.par_iter().map(error).collect::<Result<Vec<_>>>()?;
        Ok(sums.into_iter().sum())
    }
}

impl Sample {
    /// The weighted squared error of the rows of a blob in memory; `row_of` maps an id to a row of
    /// that blob, or to none if the row is exact.
    pub(super) fn lookup_error(
        &self,
        matrix: &Matrix,
        trial: &[u8],
        row_of: impl Fn(u64) -> Option<u64> + Sync,
    ) -> Result<f64> {
        let table = in_memory::table(trial)?;
        let chunks: Vec<_> = self
            .ids
            .chunks(LOOKED_UP)
            .zip(self.weights.chunks(LOOKED_UP))
            .zip(matrix.values.chunks(LOOKED_UP * matrix.columns))
            .collect();
        let error = |&((ids, weights), values): &((&[u64], &[f64]), &[f32])| -> Result<f64> {
            let (mut row, mut workspace) =
                (vec![0.0; matrix.columns], vec![0.0; table.workspace_len(1)]);
            let mut sum = 0.0;
            for ((&id, weight), wanted) in
                ids.iter().zip(weights).zip(values.chunks_exact(matrix.columns))
            {
                let Some(id) = row_of(id) else { continue };
                table.lookup(id, &mut row, &mut workspace)?;
                sum += weight * squared_distance(wanted, &row);
            }
            Ok(sum)
        };
        Ok(chunks.par_iter().map(error).collect::<Result<Vec<_>>>()?.iter().sum())
    }
}

/// Rows of one length, one after another.
pub(super) struct Matrix {
    pub(super) values: Vec<f32>,
    pub(super) columns: usize,
}

pub(super) fn squared_distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum()
}

pub(super) fn squared_norm(row: &[f32]) -> f64 {
    row.iter().map(|&x| f64::from(x).powi(2)).sum()
}
