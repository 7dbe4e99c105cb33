//! Refinement of a tensor train by alternating least squares, weighted by row.
//!
//! With all cores but one fixed the error is quadratic in that one, and its slices do not meet in it: slice i_k answers for the
//! rows with this digit alone. For a row with products L to the left (a x r_k) and R to the right (r_{k+1} x b) the part of
//! the row with column digit j is approximated by `L X_j R`. The normal equations of X_j,
//! `sum w L^T L X_j R R^T = sum w L^T E_j R^T`, have (r_k r_{k+1})^2 numbers: they are never formed, but solved by conjugate
//! gradients from the slice as it is. A slice is replaced only by one of less error, so that the whole never gets worse.

use super::{
    Rows,
    shape::Factors,
    train::{orthonormal_to_the_left, orthonormal_to_the_right},
};
use crate::progress::Progress;
use anyhow::{Result, ensure};
use faer::Mat;
use rayon::prelude::*;
use std::ops::Range;

/// Steps of conjugate gradients: they stop earlier once the gradient is this much smaller than at first.
const STEPS: usize = 40;
const SMALLER: f64 = 1e-12;
/// Rows that are read at once, as far as one slice has them in a piece, in elements.
const READ: usize = 1 << 16;

/// A table to approximate.
pub(super) struct Als<'a> {
    pub(super) rows: &'a dyn Rows,
    /// One per row; all 1 if there are none.
    pub(super) weights: Option<&'a [f32]>,
    pub(super) factors: &'a Factors,
    pub(super) memory: u64,
    pub(super) name: &'a str,
}

/// Weighted squares: of the table, and of what the cores miss.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Squares {
    pub(super) norm: f64,
    pub(super) error: f64,
}

impl Als<'_> {
    /// Refines all cores `sweeps` times.
    pub(super) fn refine(&self, cores: &mut [Mat<f64>], sweeps: u32) -> Result<Option<Squares>> {
        let d = cores.len();
        let mut progress = Progress::new(&format!("{}: refinement", self.name), u64::from(sweeps) * d as u64);
        let mut squares = None;
        for _ in 0..sweeps {
            orthonormal_to_the_right(cores);
            for k in 0..d {
                let (core, after) = self.solve(cores, k)?;
                cores[k] = core;
                squares = Some(after);
                progress.add(1);
                if k + 1 < d {
                    orthonormal_to_the_left(cores, k);
                }
            }
        }
        Ok(squares)
    }

    /// The best core k, and what is missed with it.
    fn solve(&self, cores: &[Mat<f64>], k: usize) -> Result<(Mat<f64>, Squares)> {
        let (p, q) = (&self.factors.rows, &self.factors.columns);
        let product = |list: &[u32]| list.iter().map(|&x| x as usize).product::<usize>();
        let (ranks, q_k) = ((rank(cores, k), cores[k].ncols()), q[k] as usize);
        let sides = (product(&p[..k]), product(&p[k + 1..]));
        let widths = (product(&q[..k]), product(&q[k + 1..]));
        let needed = 4 * (sides.0 * widths.0 * ranks.0) as u64 + 4 * (sides.1 * widths.1 * ranks.1) as u64;
        ensure!(
            needed <= self.memory,
            "too little memory: a sweep over core {k} needs {needed} bytes; `sweeps = 0` needs none"
        );
        let step = Step {
            als: self,
            left: left_products(&cores[..k], q),
            right: right_products(cores, k, q),
            p: p[k] as usize,
            q: q_k,
            ranks,
            sides,
            widths,
        };
        // Neighbouring slices share pieces of the table where it has few rows for each of them.
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

/// All that is fixed while one core is solved for.
struct Step<'a> {
    als: &'a Als<'a>,
    /// For each combination of digits on the left, a x r_k.
    left: Vec<f32>,
    /// For each combination of digits on the right, b x r_{k+1}: R transposed.
    right: Vec<f32>,
    p: usize,
    q: usize,
    ranks: (usize, usize),
    sides: (usize, usize),
    widths: (usize, usize),
}

/// The normal equations of one slice, as far as they have been summed.
struct Normal {
    /// Right-hand sides, (j, s, t).
    target: Vec<f64>,
    /// `sum w R R^T` for each combination on the left; the last core has `sum w L^T L` instead, once.
    grams: Vec<f32>,
    norm: f64,
}

impl Step<'_> {
    fn last(&self) -> bool {
        self.sides.1 == 1
    }

    fn slice(&self, core: &Mat<f64>, i: usize) -> Vec<f64> {
        let rows = self.q * self.ranks.0;
        (0..rows * self.ranks.1).map(|at| core[(i * rows + at / self.ranks.1, at % self.ranks.1)]).collect()
    }

    fn solve(&self, slices: Range<usize>, old: Vec<Vec<f64>>) -> Result<Vec<(Vec<f64>, Squares)>> {
        let (r, t) = self.ranks;
        let grams = if self.last() { r * r } else { self.sides.0 * t * t };
        let normal = || Normal { target: vec![0.0; self.q * r * t], grams: vec![0.0; grams], norm: 0.0 };
        let mut normals: Vec<Normal> = slices.clone().map(|_| normal()).collect();
        let dim = self.als.rows.embedding_dim();
        let num_embeddings = self.als.rows.num_embeddings() as usize;
        let mut values = Vec::new();
        let mut scratch = Scratch { product: vec![0.0; self.widths.0 * self.q * t], gram: vec![0.0; t * t] };
        for lambda in 0..self.sides.0 {
            let first = (lambda * self.p + slices.start) * self.sides.1;
            let end = (first + slices.len() * self.sides.1).min(num_embeddings);
            let mut row = first;
            while row < end {
                // One slice, or several where each has few rows.
                let count = (READ / dim).max(1).min(end - row);
                values.resize(count * dim, 0.0);
                self.als.rows.read(row as u64, &mut values)?;
                for (values, rows) in pieces(&values, dim, row - first, self.sides.1) {
                    let normal = &mut normals[rows.start / self.sides.1];
                    self.add(normal, lambda, rows.start % self.sides.1, first + rows.start, values, &mut scratch);
                }
                row += count;
            }
        }
        Ok(normals.iter().zip(old).map(|(normal, old)| self.descend(normal, old)).collect())
    }

    /// Adds rows of one slice that stand together, the first of them with combination `rho` on the right.
    fn add(&self, normal: &mut Normal, lambda: usize, rho: usize, row: usize, values: &[f32], scratch: &mut Scratch) {
        let ((r, t), (a, b)) = (self.ranks, self.widths);
        let left = &self.left[lambda * a * r..][..a * r];
        let Scratch { product, gram } = scratch;
        product.fill(0.0);
        gram.fill(0.0);
        for (at, values) in values.chunks(a * self.q * b).enumerate() {
            let weight = self.als.weights.map_or(1.0, |weights| weights[row + at]);
            if weight == 0.0 {
                continue;
            }
            let right = &self.right[(rho + at) * b * t..][..b * t];
            for (values, product) in values.chunks(b).zip(product.chunks_mut(t)) {
                for (&value, right) in values.iter().zip(right.chunks(t)) {
                    axpy(weight * value, right, product);
                }
            }
            normal.norm += f64::from(weight) * values.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
            for right in right.chunks(t) {
                for (&x, gram) in right.iter().zip(gram.chunks_mut(t)) {
                    axpy(weight * x, right, gram);
                }
            }
        }
        for (a, left) in left.chunks(r).enumerate() {
            for j in 0..self.q {
                let product = &product[(a * self.q + j) * t..][..t];
                for (&x, target) in left.iter().zip(normal.target[j * r * t..].chunks_mut(t)) {
                    target.iter_mut().zip(product).for_each(|(y, &p)| *y += f64::from(x * p));
                }
            }
        }
        if self.last() {
            for left in left.chunks(r) {
                for (&x, sums) in left.iter().zip(normal.grams.chunks_mut(r)) {
                    axpy(gram[0] * x, left, sums);
                }
            }
        } else {
            axpy(1.0, gram, &mut normal.grams[lambda * t * t..][..t * t]);
        }
    }

    /// The normal matrix times `x`.
    fn apply(&self, normal: &Normal, x: &[f64], out: &mut [f64]) {
        let ((r, t), a) = (self.ranks, self.widths.0);
        out.fill(0.0);
        let mut half = vec![0.0f64; t];
        let mut whole = vec![0.0f64; t];
        for (x, out) in x.chunks(r * t).zip(out.chunks_mut(r * t)) {
            if self.last() {
                for (gram, out) in normal.grams.chunks(r).zip(out) {
                    *out = gram.iter().zip(x).map(|(&g, x)| f64::from(g) * x).sum();
                }
                continue;
            }
            for (left, gram) in self.left.chunks(a * r).zip(normal.grams.chunks(t * t)) {
                for left in left.chunks(r) {
                    half.fill(0.0);
                    whole.fill(0.0);
                    for (&l, x) in left.iter().zip(x.chunks(t)) {
                        half.iter_mut().zip(x).for_each(|(h, x)| *h += f64::from(l) * x);
                    }
                    for (&h, gram) in half.iter().zip(gram.chunks(t)) {
                        whole.iter_mut().zip(gram).for_each(|(w, &g)| *w += h * f64::from(g));
                    }
                    for (&l, out) in left.iter().zip(out.chunks_mut(t)) {
                        out.iter_mut().zip(&whole).for_each(|(o, w)| *o += f64::from(l) * w);
                    }
                }
            }
        }
    }

    /// Conjugate gradients from `old`: the slice with the least error on the way, and its squares.
    fn descend(&self, normal: &Normal, old: Vec<f64>) -> (Vec<f64>, Squares) {
        let mut x = old.clone();
        let mut product = vec![0.0; x.len()];
        self.apply(normal, &x, &mut product);
        let mut residual: Vec<f64> = normal.target.iter().zip(&product).map(|(t, p)| t - p).collect();
        // The error less the norm: x (A x) - 2 x b = -x b - x residual.
        let value = |x: &[f64], residual: &[f64]| -dot(x, &normal.target) - dot(x, residual);
        let before = value(&x, &residual);
        let mut direction = residual.clone();
        let mut square = dot(&residual, &residual);
        let enough = square * SMALLER;
        for _ in 0..STEPS {
            if square <= enough {
                break;
            }
            self.apply(normal, &direction, &mut product);
            let curvature = dot(&direction, &product);
            if curvature.is_nan() || curvature <= 0.0 {
                break;
            }
            let length = square / curvature;
            x.iter_mut().zip(&direction).for_each(|(x, d)| *x += length * d);
            residual.iter_mut().zip(&product).for_each(|(r, p)| *r -= length * p);
            let next = dot(&residual, &residual);
            direction.iter_mut().zip(&residual).for_each(|(d, r)| *d = r + next / square * *d);
            square = next;
        }
        self.apply(normal, &x, &mut product);
        residual = normal.target.iter().zip(&product).map(|(t, p)| t - p).collect();
        let after = value(&x, &residual);
        let (x, value) = if after < before { (x, after) } else { (old, before) };
        (x, Squares { norm: normal.norm, error: normal.norm + value })
    }
}

/// Sums of one piece.
struct Scratch {
    /// `sum w E R^T`, (a, j) x t.
    product: Vec<f32>,
    /// `sum w R R^T`.
    gram: Vec<f32>,
}

/// Splits rows, the first of which is number `first`, where a slice of `run` rows ends; with the range of their numbers.
fn pieces(values: &[f32], dim: usize, first: usize, run: usize) -> impl Iterator<Item = (&[f32], Range<usize>)> {
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

fn axpy(factor: f32, x: &[f32], to: &mut [f32]) {
    to.iter_mut().zip(x).for_each(|(to, x)| *to += factor * x);
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `r_k`.
fn rank(cores: &[Mat<f64>], k: usize) -> usize {
    k.checked_sub(1).map_or(1, |k| cores[k].ncols())
}

/// For each combination of the digits of these cores, the first digit slowest, (columns) x r.
fn left_products(cores: &[Mat<f64>], q: &[u32]) -> Vec<f32> {
    let mut products = vec![1.0f32];
    let mut columns = 1;
    for (k, core) in cores.iter().enumerate() {
        let (r, t, q) = (rank(cores, k), core.ncols(), q[k] as usize);
        let slices = core.nrows() / (q * r);
        let slice = |product: &[f32], out: &mut Vec<f32>, i: usize| {
            for x in product.chunks(r) {
                for j in 0..q {
                    out.extend((0..t).map(|t| {
                        let terms = x.iter().enumerate().map(|(s, &x)| f64::from(x) * core[((i * q + j) * r + s, t)]);
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

/// For each combination of the digits of the cores right of core k, the first digit slowest, (columns) x r_{k+1}.
fn right_products(cores: &[Mat<f64>], k: usize, q: &[u32]) -> Vec<f32> {
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
                            let terms =
                                x.iter().enumerate().map(|(t, &x)| f64::from(x) * core[((i * q + j) * r + s, t)]);
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
