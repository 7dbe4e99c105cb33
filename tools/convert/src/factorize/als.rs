//! Refinement of a tensor train by alternating least squares, weighted by row.
//!
//! With all cores but one fixed, the error is quadratic in that core, and its slices are
//! independent: slice i_k only affects the rows with this digit. For a row with products L to the
//! left (a x r_k) and R to the right (r_{k+1} x b) the part of the row with column digit j is
//! approximated by `L X_j R`. The normal equations of X_j,
//! `sum w L^T L X_j R R^T = sum w L^T E_j R^T`, have (r_k r_{k+1})^2 numbers: they are never
//! formed, but solved by conjugate gradients from the current slice. A slice is replaced only by
//! one with less error, so that the total error never grows.

use super::{
    Job, Rows,
    normal::{Grams, Matrix, Normal},
    shape::Factors,
    train::{orthonormal_to_the_left, orthonormal_to_the_right},
};
use crate::{
    matrix::{Mat, View, multiply},
    progress::Step,
};
use anyhow::{Result, ensure};
use rayon::prelude::*;
use std::ops::Range;

/// The most elements of consecutive rows that are read at once.
const READ: usize = 1 << 16;
/// The rounding error of a squared error of 0, relative to the table's squared norm.
const ROUNDING: f64 = 1e-5;

/// A table to approximate.
pub(super) struct Als<'a> {
    pub(super) rows: &'a dyn Rows,
    /// One per row; `None`: all are 1.
    pub(super) weights: Option<&'a [f32]>,
    pub(super) factors: &'a Factors,
    pub(super) job: Job<'a>,
}

/// Weighted squared norms of the table and of the error.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Squares {
    pub(super) norm: f64,
    pub(super) error: f64,
}

impl Als<'_> {
    /// Refines all cores `sweeps` times, or until a sweep gains nothing.
    pub(super) fn refine(&self, cores: &mut Vec<Mat>, sweeps: u32) -> Result<Option<Squares>> {
        let d = cores.len();
        let step = Step::new(
            self.job.progress,
            &format!("{}: refinement", self.job.name),
            u64::from(sweeps) * d as u64,
        );
        let mut best: Option<Squares> = None;
        for _ in 0..sweeps {
            let mut next = cores.clone();
            let mut squares = Squares::default();
            orthonormal_to_the_right(&mut next)?;
            for k in 0..d {
                (next[k], squares) = self.solve(&next, k)?;
                step.add(1);
                if k + 1 < d {
                    orthonormal_to_the_left(&mut next, k)?;
                }
            }
            // If rounding exceeds the gain, the previous sweep was as good.
            let sound = squares.error >= -ROUNDING * squares.norm;
            if !sound || best.is_some_and(|best| squares.error >= best.error) {
                break;
            }
            *cores = next;
            best = Some(squares);
        }
        Ok(best)
    }

    /// The best core k, and the squared error with it.
    fn solve(&self, cores: &[Mat], k: usize) -> Result<(Mat, Squares)> {
        let (p, q) = (&self.factors.rows, &self.factors.columns);
        let product = |list: &[u32]| list.iter().map(|&x| x as usize).product::<usize>();
        let (ranks, q_k) = ((rank(cores, k), cores[k].ncols()), q[k] as usize);
        let sides = (product(&p[..k]), product(&p[k + 1..]));
        let widths = (product(&q[..k]), product(&q[k + 1..]));
        let needed =
            4 * (sides.0 * widths.0 * ranks.0) as u64 + 4 * (sides.1 * widths.1 * ranks.1) as u64;
        ensure!(
            needed <= self.job.memory,
            "the memory limit of {} bytes is too small: a sweep over core {k} needs {needed}; \
             `sweeps = 0` needs none",
            self.job.memory
        );
        let step = CoreProblem {
            als: self,
            common: None,
            left: left_products(&cores[..k], q),
            right: right_products(cores, k, q),
            p: p[k] as usize,
            q: q_k,
            ranks,
            sides,
            widths,
        };
        let common = self
            .weights
            .is_none()
            .then(|| Grams { left: gram(&step.left, ranks.0), right: gram(&step.right, ranks.1) });
        let step = CoreProblem { common, ..step };
        // Neighbouring slices share pieces of the table if each has few rows.
        let at_once = (READ / (sides.1 * self.rows.embedding_dim())).clamp(1, step.p);
        let starts: Vec<usize> = (0..step.p).step_by(at_once).collect();
        let len = q_k * ranks.0 * ranks.1;
        let solved = starts.into_par_iter().map(|start| {
            let slices = start..step.p.min(start + at_once);
            let old = slices.clone().map(|i| step.slice(&cores[k], i)).collect();
            step.solve(slices, old)
        });
        let mut squares = Squares::default();
        let mut core = Mat::zeros(cores[k].nrows(), cores[k].ncols());
        let mut i = 0;
        for chunk in solved.collect::<Result<Vec<_>>>()? {
            for (slice, of_slice) in chunk {
                squares.norm += of_slice.norm;
                squares.error += of_slice.error;
                // Both have (j, s, t) in this order.
                for at in 0..len {
                    core[(i * q_k * ranks.0 + at / ranks.1, at % ranks.1)] = slice[at];
                }
                i += 1;
            }
        }
        Ok((core, squares))
    }
}

/// The data that is fixed while one core is solved for.
struct CoreProblem<'a> {
    als: &'a Als<'a>,
    /// For each combination of digits on the left, a x r_k.
    left: Vec<f32>,
    /// The sum over all combinations, if all rows weigh the same.
    common: Option<Grams>,
    /// For each combination of digits on the right, b x r_{k+1}: R transposed.
    right: Vec<f32>,
    p: usize,
    q: usize,
    ranks: (usize, usize),
    sides: (usize, usize),
    widths: (usize, usize),
}

impl CoreProblem<'_> {
    fn slice(&self, core: &Mat, i: usize) -> Vec<f64> {
        let rows = self.q * self.ranks.0;
        (0..rows * self.ranks.1)
            .map(|at| core[(i * rows + at / self.ranks.1, at % self.ranks.1)])
            .collect()
    }

    fn solve(&self, slices: Range<usize>, old: Vec<Vec<f64>>) -> Result<Vec<(Vec<f64>, Squares)>> {
        let (r, t) = self.ranks;
        let dim = self.als.rows.embedding_dim();
        let num_embeddings = self.als.rows.num_embeddings() as usize;
        let normal = |slice: usize| Normal {
            left: &self.left,
            a: self.widths.0,
            ranks: self.ranks,
            matrix: self.matrix(slice, num_embeddings),
            target: vec![0.0; self.q * r * t],
            norm: 0.0,
        };
        let mut normals: Vec<Normal<'_>> = slices.clone().map(normal).collect();
        let mut values = Vec::new();
        let mut scratch = Scratch::default();
        for lambda in 0..self.sides.0 {
            let first = (lambda * self.p + slices.start) * self.sides.1;
            let end = (first + slices.len() * self.sides.1).min(num_embeddings);
            let mut row = first;
            while row < end {
                // One slice, or several if each has few rows.
                let count = (READ / dim).max(1).min(end - row);
                values.resize(count * dim, 0.0);
                self.als.rows.read(row as u64, &mut values)?;
                for (values, rows) in pieces(&values, dim, row - first, self.sides.1) {
                    let normal = &mut normals[rows.start / self.sides.1];
                    self.add(
                        normal,
                        lambda,
                        rows.start % self.sides.1,
                        first + rows.start,
                        values,
                        &mut scratch,
                    );
                }
                row += count;
            }
        }
        let descend = |(normal, old): (&Normal<'_>, Vec<f64>)| {
            let (slice, error) = normal.descend(old);
            (slice, Squares { norm: normal.norm, error })
        };
        Ok(normals.iter().zip(old).map(descend).collect())
    }

    /// The matrix of a slice before any weighted row is added: with equal weights, all of it.
    fn matrix(&self, slice: usize, num_embeddings: usize) -> Matrix<'_> {
        let ((r, t), b) = (self.ranks, self.widths.1);
        let Some(common) = &self.common else {
            return if self.sides.1 == 1 && t == 1 {
                Matrix::Dense(vec![0.0; r * r])
            } else {
                Matrix::Products { common: None, first: 0, grams: vec![0.0; self.sides.0 * t * t] }
            };
        };
        // Combinations on the left whose rows are padding, at least the last of them.
        let first = (num_embeddings / self.sides.1).saturating_sub(slice).div_ceil(self.p);
        let mut grams = Vec::new();
        for lambda in first..self.sides.0 {
            let there = num_embeddings.saturating_sub((lambda * self.p + slice) * self.sides.1);
            grams.extend(
                gram(&self.right[there.min(self.sides.1) * b * t..], t)
                    .into_iter()
                    .map(|x| -x as f32),
            );
        }
        Matrix::Products { common: Some(common), first, grams }
    }

    /// Adds consecutive rows of one slice, the first one with combination `rho` on the right.
    fn add(
        &self,
        normal: &mut Normal<'_>,
        lambda: usize,
        rho: usize,
        row: usize,
        values: &[f32],
        scratch: &mut Scratch,
    ) {
        let ((r, t), (a, b)) = (self.ranks, self.widths);
        let (height, rows) = (a * self.q, values.len() / (a * self.q * b));
        let weights = self.als.weights.map(|weights| &weights[row..row + rows]);
        let weight = |at: usize| weights.map_or(1.0, |weights| weights[at]);
        let left = &self.left[lambda * a * r..][..a * r];
        let right = &self.right[rho * b * t..][..rows * b * t];
        let right_columns = View::row_major(right, t);

        // The rows side by side, (a, j) x (row, b), and times R^T.
        let Scratch { wide, product } = scratch;
        wide.clear();
        wide.resize(height * rows * b, 0.0);
        for (at, values) in values.chunks(height * b).enumerate() {
            for (values, wide) in values.chunks(b).zip(wide.chunks_mut(rows * b)) {
                wide[at * b..][..b]
                    .iter_mut()
                    .zip(values)
                    .for_each(|(to, &x)| *to = weight(at) * x);
            }
            normal.norm += f64::from(weight(at))
                * values.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
        }
        product.resize(height * t, 0.0);
        multiply(View::row_major(wide, rows * b), right_columns, product);
        for (left, product) in left.chunks(r).zip(product.chunks(self.q * t)) {
            for (product, target) in product.chunks(t).zip(normal.target.chunks_mut(r * t)) {
                // With one column, the inner loop is over s.
                if let &[x] = product {
                    target.iter_mut().zip(left).for_each(|(y, &l)| *y += f64::from(l * x));
                    continue;
                }
                for (&l, target) in left.iter().zip(target.chunks_mut(t)) {
                    target.iter_mut().zip(product).for_each(|(y, &x)| *y += f64::from(l * x));
                }
            }
        }

        match &mut normal.matrix {
            Matrix::Products { common: Some(_), .. } => {}
            Matrix::Products { grams, .. } => {
                wide.clear();
                wide.resize(t * rows * b, 0.0);
                for (at, column) in right.chunks(t).enumerate() {
                    (0..t).for_each(|s| wide[s * rows * b + at] = weight(at / b) * column[s]);
                }
                product.resize(t * t, 0.0);
                multiply(View::row_major(wide, rows * b), right_columns, &mut product[..t * t]);
                grams[lambda * t * t..][..t * t]
                    .iter_mut()
                    .zip(&*product)
                    .for_each(|(sum, x)| *sum += x);
            }
            Matrix::Dense(matrix) => {
                let weight = f64::from((0..rows).map(weight).sum::<f32>());
                for left in left.chunks(r) {
                    for (&x, sums) in left.iter().zip(matrix.chunks_mut(r)) {
                        let x = weight * f64::from(x);
                        sums.iter_mut().zip(left).for_each(|(sum, &y)| *sum += x * f64::from(y));
                    }
                }
            }
        }
    }
}

/// Room for one piece.
#[derive(Default)]
struct Scratch {
    /// Its rows side by side.
    wide: Vec<f32>,
    /// Their product.
    product: Vec<f32>,
}

/// Splits rows, the first of which is number `first`, where a slice of `run` rows ends; with the
/// range of their numbers.
fn pieces(
    values: &[f32],
    dim: usize,
    first: usize,
    run: usize,
) -> impl Iterator<Item = (&[f32], Range<usize>)> {
    let rows = values.len() / dim;
    let mut at = 0;
    std::iter::from_fn(move || {
        if at == rows {
            return None;
        }
        let count = (run - (first + at) % run).min(rows - at);
        let piece = (&values[at * dim..(at + count) * dim], first + at..first + at + count);
        at += count;
        Some(piece)
    })
}

/// The sum of `x x^T` over these vectors of n numbers.
fn gram(vectors: &[f32], n: usize) -> Vec<f64> {
    // Rows of the result are independent sums, each over the vectors in order.
    let mut sums = vec![0.0; n * n];
    sums.par_chunks_mut(n).enumerate().for_each(|(s, sums)| {
        for vector in vectors.chunks(n) {
            sums.iter_mut()
                .zip(vector)
                .for_each(|(sum, &x)| *sum += f64::from(vector[s]) * f64::from(x));
        }
    });
    sums
}

/// `r_k`.
fn rank(cores: &[Mat], k: usize) -> usize {
    k.checked_sub(1).map_or(1, |k| cores[k].ncols())
}

/// For each combination of the digits of these cores, the first digit slowest, (columns) x r.
fn left_products(cores: &[Mat], q: &[u32]) -> Vec<f32> {
    let mut products = vec![1.0f32];
    let mut columns = 1;
    for (k, core) in cores.iter().enumerate() {
        let (r, t, q) = (rank(cores, k), core.ncols(), q[k] as usize);
        let slices = core.nrows() / (q * r);
        let slice = |product: &[f32], out: &mut Vec<f32>, i: usize| {
            for x in product.chunks(r) {
                for j in 0..q {
                    out.extend((0..t).map(|t| {
                        let terms = x
                            .iter()
                            .enumerate()
                            .map(|(s, &x)| f64::from(x) * core[((i * q + j) * r + s, t)]);
                        terms.sum::<f64>() as f32
                    }));
                }
            }
        };
        let each = products.par_chunks(columns * r).map(|product| {
            let mut out = Vec::with_capacity(slices * columns * q * t);
            (0..slices).for_each(|i| slice(product, &mut out, i));
            out
        });
        products = each.collect::<Vec<_>>().concat();
        columns *= q;
    }
    products
}

/// For each combination of the digits of the cores right of core k, the first digit slowest,
/// (columns) x r_{k+1}.
fn right_products(cores: &[Mat], k: usize, q: &[u32]) -> Vec<f32> {
    let mut products = vec![1.0f32];
    let mut columns = 1;
    for k in (k + 1..cores.len()).rev() {
        let (core, r, q) = (&cores[k], rank(cores, k), q[k] as usize);
        let t = core.ncols();
        let each = (0..core.nrows() / (q * r)).into_par_iter().map(|i| {
            let mut out = Vec::with_capacity(products.len() / t * q * r);
            for product in products.chunks(columns * t) {
                for j in 0..q {
                    for x in product.chunks(t) {
                        out.extend((0..r).map(|s| {
                            let terms = x
                                .iter()
                                .enumerate()
                                .map(|(t, &x)| f64::from(x) * core[((i * q + j) * r + s, t)]);
                            terms.sum::<f64>() as f32
                        }));
                    }
                }
            }
            out
        });
        products = each.collect::<Vec<_>>().concat();
        columns *= q;
    }
    products
}
