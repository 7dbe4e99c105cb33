//! The rotation of a product quantiser (Ge et al., "Optimized product quantization for approximate
//! nearest neighbor search", 2013): directions of the rows, dealt out to the books so that each
//! book has as much to say as the others.

use super::{Shape, training::Training};
use crate::{
    factorize::gram::Gram,
    matrix::{Eigen, Mat, Svd, View, eigen, multiply, svd},
    spec::Combining,
};
use anyhow::Result;
use rayon::prelude::*;

/// Columns of a product that one thread computes at once.
const AT_ONCE: usize = 64;
/// Variances that are smaller in relation to the largest are lost in rounding.
const NEGLIGIBLE: f64 = 1e-12;
/// How many times the error of the best codes of normally distributed rows codes of a few columns
/// have that are put end to end, and added codes. Rows are not normally distributed, which is why
/// the latter is below 1: it is 0.75 to 0.95 for 2 to 8 codes of the users of a Gowalla model.
const OVERHEAD: f64 = 1.5;
const OVERHEAD_ADDED: f64 = 0.75;

/// The directions in which the rows are largest, and the variance of the rows in each of them.
pub(crate) struct Directions {
    /// Eigenvectors of the Gram matrix, as columns, the largest first.
    spectrum: Eigen,
    /// The mean row in these directions, and the weight of all rows.
    mean: Vec<f64>,
    weight: f64,
}

impl Directions {
    pub(super) fn of(training: &Training) -> Result<Self> {
        let Training { dim, count, ref values, ref weights, .. } = *training;
        let mut gram = Gram::new(dim);
        let (mut sum, mut weight) = (vec![0.0; dim], 0.0);
        let mut block = Vec::new();
        for first in (0..count).step_by(training.at_once()) {
            let rows = training.at_once().min(count - first);
            block.clear();
            block.extend_from_slice(&values[first * dim..][..rows * dim]);
            for (at, row) in block.chunks_exact_mut(dim).enumerate() {
                let of_row = weights.as_ref().map_or(1.0, |weights| weights[first + at]);
                weight += f64::from(of_row);
                sum.iter_mut()
                    .zip(&*row)
                    .for_each(|(sum, &x)| *sum += f64::from(of_row) * f64::from(x));
                row.iter_mut().for_each(|x| *x *= of_row.sqrt());
            }
            gram.add(View::row_major(&block, dim).transpose());
        }
        let spectrum = gram.eigen()?;
        let mean = (0..dim)
            .map(|at| {
                let vector = spectrum.vectors.column(at);
                vector.iter().zip(&sum).map(|(v, sum)| v * sum).sum::<f64>() / weight
            })
            .collect();
        Ok(Self { spectrum, mean, weight })
    }

    /// The number of directions that leaves the least error for the bytes of codes of this shape,
    /// whatever its rank: what is left out and what rounding leaves, and for each direction what
    /// its bytes could have bought as codes. A direction whose variance is less than what rounding
    /// leaves in others keeps it.
    pub(crate) fn rank_for(&self, shape: &Shape, num_embeddings: u64) -> usize {
        let dim = self.mean.len();
        let total: f64 = self.spectrum.values.iter().sum();
        let nats = std::f64::consts::LN_2 * 2.0 * f64::from(shape.bits);
        let per_code = self.per_code(shape, num_embeddings);
        // Entries that are put end to end need a direction each.
        let (least, overhead) = match shape.combine {
            Combining::Concat => (shape.books, OVERHEAD),
            Combining::Add => (1, OVERHEAD_ADDED),
        };
        let (mut left_out, mut kept) = (total, 0.0);
        // The directions that are rounded, and the sum of the logarithms of their variances.
        let (mut rounded, mut logs) = (0.0f64, 0.0);
        let level = |rounded: f64, logs: f64| (logs - nats * shape.books as f64) / rounded;
        let mut best = (f64::INFINITY, dim);
        for (at, (value, mean)) in self.spectrum.values.iter().zip(&self.mean).enumerate() {
            let variance = value - self.weight * mean * mean;
            let variance = variance.max(total * NEGLIGIBLE + f64::MIN_POSITIVE);
            left_out -= value;
            if rounded == 0.0 || variance.ln() > level(rounded, logs) {
                rounded += 1.0;
                logs += variance.ln();
            } else {
                kept += variance;
            }
            let rank = (at + 1) as f64;
            let rounding = overhead * level(rounded, logs).exp();
            let cost = left_out + kept + rounding * (rounded + nats * rank / per_code);
            if at + 1 >= least && cost < best.0 {
                best = (cost, at + 1);
            }
        }
        best.1
    }

    /// How many directions take as many bytes as one code of this shape for each row.
    pub(crate) fn per_code(&self, shape: &Shape, num_embeddings: u64) -> f64 {
        // A row of the projection, and a column of books.
        let bytes = (2 * self.mean.len() + shape.entries_per_column()) as f64;
        num_embeddings as f64 * f64::from(shape.bits) / 8.0 / bytes
    }

    /// The variances of the rows around their mean within the first `rank` directions, times the
    /// weight of all rows, and the orthonormal directions that have them, the largest first.
    fn variances(&self, rank: usize) -> Result<Eigen> {
        let covariance = Mat::from_fn(rank, rank, |i, j| {
            let diagonal = if i == j { self.spectrum.values[i] } else { 0.0 };
            diagonal - self.weight * self.mean[i] * self.mean[j]
        });
        let Eigen { values, vectors } = eigen(covariance)?;
        Ok(Eigen { values, vectors: self.spectrum.vectors.columns(0, rank) * vectors })
    }

    /// `dim x rank`, column-major: the directions for books of these widths, one book after
    /// another.
    pub(super) fn deal(&self, widths: &[usize], bits: u32) -> Result<Vec<f32>> {
        let rank = widths.iter().sum();
        let found = self.variances(rank)?;
        let order = deal(&found.values, widths, bits);
        let found = found.vectors.select_columns(&order);
        Ok(found.iter().map(|&x| x as f32).collect())
    }
}

/// The numbers of the directions of each book, one book after another, for variances that descend.
///
/// A book of w columns and b bits has an error of about `w (v_1 .. v_w)^(1/w) 2^(-2 b / w)`. The
/// sum over all books is least if the books have equal products of variances. A book that is a
/// column narrower is dealt with as if it had one more direction, of the variance that rounding
/// leaves.
pub(super) fn deal(variances: &[f64], widths: &[usize], bits: u32) -> Vec<usize> {
    let least = variances.first().copied().unwrap_or(0.0) * NEGLIGIBLE + f64::MIN_POSITIVE;
    let logs: Vec<f64> = variances.iter().map(|v| v.max(least).ln()).collect();
    // In the unit of the smallest variance, so that no product falls while a book is filled.
    let unit = logs.last().copied().unwrap_or(0.0);
    let widest = widths.iter().copied().max().unwrap_or(0);
    let level = level(&logs, widths.len(), bits) - unit;
    let mut books: Vec<(f64, Vec<usize>)> = widths
        .iter()
        .map(|&width| ((widest - width) as f64 * level, Vec::with_capacity(width)))
        .collect();
    for (at, log) in logs.iter().enumerate() {
        let free = books.iter_mut().zip(widths).filter(|(book, width)| book.1.len() < **width);
        if let Some((book, _)) = free.min_by(|(a, _), (b, _)| a.0.total_cmp(&b.0)) {
            book.0 += log - unit;
            book.1.push(at);
        }
    }
    books.into_iter().flat_map(|(_, taken)| taken).collect()
}

/// The logarithm of the variance that rounding leaves in each of these directions, if `books` codes
/// of `bits` bits are shared out among them.
fn level(logs: &[f64], books: usize, bits: u32) -> f64 {
    let nats = 2.0 * std::f64::consts::LN_2 * f64::from(bits) * books as f64;
    (logs.iter().sum::<f64>() - nats) / logs.len().max(1) as f64
}

/// The orthonormal columns, `dim x rank`, whose products with the rows are nearest to `coded`, rank
/// columns of the rows' length: an orthogonal Procrustes problem.
pub(super) fn nearest_rotation(training: &Training, coded: &[f32]) -> Result<Vec<f32>> {
    let Training { dim, count, ref values, ref weights, .. } = *training;
    let rank = coded.len() / count;
    let rows = View::row_major(values, dim);
    // `dim x rank`, column-major.
    let mut product = vec![0.0; dim * rank];
    let chunks = product.par_chunks_mut(AT_ONCE * dim);
    chunks.zip(coded.par_chunks(AT_ONCE * count)).for_each(|(product, coded)| {
        let weighted: Vec<f32>;
        let coded = match weights {
            None => coded,
            Some(weights) => {
                weighted = coded.iter().zip(weights.iter().cycle()).map(|(x, w)| x * w).collect();
                &weighted
            }
        };
        multiply(View::row_major(coded, count), rows, product);
    });
    let product = Mat::from_iterator(dim, rank, product.into_iter().map(f64::from));
    let Svd { u, v, .. } = svd(&product)?;
    Ok((u * v.transpose()).iter().map(|&x| x as f32).collect())
}

/// The rows times `rotation`, `dim x rank`: one column after another.
pub(super) fn rotated(training: &Training, rotation: &[f32]) -> Vec<f32> {
    let Training { dim, count, ref values, .. } = *training;
    let rows = View::row_major(values, dim).transpose();
    let mut out = vec![0.0; rotation.len() / dim * count];
    out.par_chunks_mut(AT_ONCE * count)
        .zip(rotation.par_chunks(AT_ONCE * dim))
        .for_each(|(out, rotation)| multiply(View::row_major(rotation, dim), rows, out));
    out
}
