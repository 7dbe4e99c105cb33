//! TT-SVD (Oseledets 2011) of a table that is read in blocks.
//!
//! The rows of the first unfolding are the digits (i_0, j_0): few. Their Gram matrix, one pass,
//! gives the basis of the first core; the table projected on it, a second pass, is small enough to
//! hold, and the other cores come from it.

use super::{
    Job, Rows,
    als::{Als, Squares},
    gram::Gram,
    shape::Factors,
    train::{Train, slices},
    unfolding::Unfolding,
};
use crate::{
    matrix::{Eigen, Mat, View, multiply},
    progress::Step,
};
use anyhow::{Result, ensure};
use rayon::prelude::*;

/// The limits of an analysis.
#[derive(Clone, Copy)]
pub(crate) struct Limits<'l> {
    /// The largest rank of any bond.
    pub(crate) max_rank: usize,
    /// The largest relative error of the cores; ranks that it does not need are dropped.
    pub(crate) tolerance: Option<f64>,
    pub(crate) job: Job<'l>,
}

impl Default for Limits<'_> {
    fn default() -> Self {
        Self { max_rank: 128, tolerance: None, job: Job::default() }
    }
}

/// A table as a tensor train of the largest requested ranks; smaller ranks need no other pass over
/// the table.
pub(crate) struct TtSvd {
    factors: Factors,
    /// Squared norm of the table.
    total: f64,
    /// Squared error of the train.
    base: f64,
    train: Train,
}

/// Refined cores.
pub(crate) struct Refined {
    /// The inner ranks: the requested ones, or less if the cores need less.
    pub(crate) ranks: Vec<u32>,
    /// Each as its slices one after another.
    pub(crate) cores: Vec<Vec<f32>>,
    /// The relative error (Frobenius), weighted if there were weights.
    ///
    /// Without sweeps it is never weighted, and if the factors make more rows than the table has it
    /// is an upper bound, because the padding counts. For ranks below those of an analysis that was
    /// itself truncated it is an estimate, usually to 1 %: the errors of both truncations are
    /// treated as orthogonal.
    pub(crate) error: f64,
}

impl TtSvd {
    /// Reads the table twice.
    ///
    /// # Errors
    /// If the factors do not cover the table, it has values that are not finite, or the memory
    /// limit is too small.
    pub(crate) fn analyse(rows: &dyn Rows, factors: &Factors, limits: &Limits<'_>) -> Result<Self> {
        let (p, q) = (&factors.rows, &factors.columns);
        let d = p.len();
        // The ranks of a shape to check are not known yet.
        ttrec::TtShape::new(rows.num_embeddings(), p, q, &vec![1; d.saturating_sub(1)])?;
        let dim: usize = q.iter().map(|&q| q as usize).product();
        ensure!(
            dim == rows.embedding_dim(),
            "column factors {q:?} make {dim} columns: the table has {}",
            rows.embedding_dim()
        );
        ensure!(limits.max_rank > 0, "rank 0: expected at least 1");

        let unfolding = Unfolding::new(rows, p, q);
        let height = unfolding.height();
        let needed = Gram::bytes(height);
        ensure!(
            needed <= limits.job.memory,
            "the memory limit of {} bytes is too small: {height} rows of the first unfolding \
             need {needed}",
            limits.job.memory
        );
        let at_once = unfolding.at_once((limits.job.memory / 8).min(64 << 20));
        let p1 = p[1] as usize;
        let mut block = Vec::new();

        let mut gram = Gram::new(height);
        let step =
            Step::new(limits.job.progress, &format!("{}: Gram matrix", limits.job.name), p1 as u64);
        for start in (0..p1).step_by(at_once) {
            let slabs = start..p1.min(start + at_once);
            step.add(slabs.len() as u64);
            unfolding.read(slabs, &mut block)?;
            gram.add(of_height(&block, height));
        }
        let spectrum = gram.eigen()?;
        let total: f64 = spectrum.values.iter().sum();
        // Each bond gets an equal share of the error.
        let spend = limits
            .tolerance
            .map_or(0.0, |tolerance| tolerance * tolerance * total / (d - 1) as f64);
        let pick = |spectrum: &Eigen| rank_within(&spectrum.values, spend).min(limits.max_rank);

        let rank = pick(&spectrum);
        let mut base: f64 = spectrum.values[rank..].iter().sum();
        let basis = spectrum.vectors.columns(0, rank).into_owned();
        let mut carry = project(&unfolding, &basis, at_once, &mut block, limits)?;
        drop(block);
        let mut cores = vec![basis];

        for k in 1..d - 1 {
            let height = p[k] as usize * q[k] as usize * cores[k - 1].ncols();
            let matrix = of_height(&carry, height);
            let width = matrix.columns();
            let on_the_right = k + 2 == d && width < height;
            let needed = Gram::bytes(width.min(height)) + carry.len() as u64 * 4;
            ensure!(
                needed <= limits.job.memory,
                "the memory limit of {} bytes is too small: core {k} needs \
                 {needed}",
                limits.job.memory
            );
            let mut gram = Gram::new(if on_the_right { width } else { height });
            gram.add(if on_the_right { matrix.transpose() } else { matrix });
            let spectrum = gram.eigen()?;
            let rank = pick(&spectrum);
            base += spectrum.values[rank..].iter().sum::<f64>();
            let basis = spectrum.vectors.columns(0, rank).into_owned();
            if on_the_right {
                let product = times(matrix, View::row_major(&row_major(&basis), rank));
                let product = product.into_iter().map(f64::from);
                cores.push(Mat::from_row_iterator(height, rank, product));
                // Rows (i, j, s) with one column.
                let last = Mat::from_fn(width * rank, 1, |row, _| basis[(row / rank, row % rank)]);
                cores.push(last);
            } else {
                let projected =
                    times(View::row_major(&row_major(&basis), rank).transpose(), matrix);
                cores.push(basis);
                let width_next = p[k + 1] as usize * q[k + 1] as usize;
                let rest = width / width_next;
                let mut next = vec![0.0; rank * width];
                for (at, out) in next.chunks_mut(rest).enumerate() {
                    let (x, s) = (at / rank, at % rank);
                    out.iter_mut()
                        .enumerate()
                        .for_each(|(column, out)| *out = projected[s * width + x * rest + column]);
                }
                carry = next;
            }
        }
        if cores.len() < d {
            cores.push(Mat::from_fn(carry.len(), 1, |row, _| f64::from(carry[row])));
        }
        drop(carry);
        Ok(Self { factors: factors.clone(), total, base, train: Train::new(cores)? })
    }

    /// The factors of the shape.
    pub(crate) fn factors(&self) -> &Factors {
        &self.factors
    }

    /// The largest available inner ranks.
    pub(crate) fn max_ranks(&self) -> Vec<u32> {
        self.train.energies.iter().map(|energies| energies.len() as u32).collect()
    }

    /// A lower bound of the relative error of all trains with these inner ranks: the largest
    /// truncation error of a single unfolding.
    pub(crate) fn least_error(&self, ranks: &[u32]) -> f64 {
        let tail =
            |(energies, &rank): (&Vec<f64>, &u32)| energies.iter().skip(rank as usize).sum::<f64>();
        let tails: Vec<f64> = self.train.energies.iter().zip(ranks).map(tail).collect();
        let share = (self.base + tails.iter().sum::<f64>()) / tails.len().max(1) as f64;
        self.relative(tails.into_iter().fold(share, f64::max))
    }

    /// The smallest inner ranks whose error bound meets the tolerance, with an equal share for each
    /// bond.
    pub(crate) fn ranks_for(&self, tolerance: f64) -> Option<Vec<u32>> {
        let spend = tolerance * tolerance * self.total - self.base;
        let share = spend / self.train.energies.len() as f64;
        (spend >= 0.0)
            .then(|| self.train.energies.iter().map(|e| rank_within(e, share) as u32).collect())
    }

    /// The cores at these inner ranks, refined on the table in `sweeps` sweeps, with each row's
    /// error times its weight. Without sweeps the table is not read.
    pub(crate) fn refine(
        &self,
        ranks: &[u32],
        rows: &dyn Rows,
        weights: Option<&[f32]>,
        sweeps: u32,
        limits: &Limits<'_>,
    ) -> Result<Refined> {
        let (mut cores, added) = self.truncate(ranks)?;
        let als = Als { rows, weights, factors: &self.factors, job: limits.job };
        let squares = als.refine(&mut cores, sweeps)?;
        let error = match squares {
            Some(Squares { norm, error }) if norm > 0.0 => (error.max(0.0) / norm).sqrt(),
            Some(_) => 0.0,
            // No sweeps, or no sweep with a gain.
            None => self.relative(self.base + added),
        };
        let ranks = cores[..cores.len() - 1].iter().map(|core| core.ncols() as u32).collect();
        Ok(Refined { ranks, cores: slices(&cores, &self.factors.columns), error })
    }

    fn truncate(&self, ranks: &[u32]) -> Result<(Vec<Mat>, f64)> {
        let bonds = self.train.energies.len();
        ensure!(
            ranks.len() == bonds && !ranks.contains(&0),
            "ranks {ranks:?}: expected {bonds}, each at least 1"
        );
        self.train.truncate(&ranks.iter().map(|&r| r as usize).collect::<Vec<_>>())
    }

    fn relative(&self, error: f64) -> f64 {
        if self.total > 0.0 {
            (error.max(0.0) / self.total).sqrt()
        } else {
            0.0
        }
    }
}

/// How many of these energies, descending, to keep so that the others sum to at most `spend`; at
/// least one.
fn rank_within(energies: &[f64], spend: f64) -> usize {
    let mut tail = 0.0;
    let dropped = energies.iter().rev().take_while(|&&energy| {
        tail += energy;
        tail <= spend
    });
    (energies.len() - dropped.count()).max(1)
}

/// The table on this basis of the first unfolding's rows: a row for each (i_1, j_1, s), s the
/// fastest, row-major.
fn project(
    unfolding: &Unfolding<'_>,
    basis: &Mat,
    at_once: usize,
    block: &mut Vec<f32>,
    limits: &Limits<'_>,
) -> Result<Vec<f32>> {
    let (p1, q1) = unfolding.second();
    let (height, rank, width) = (basis.nrows(), basis.ncols(), unfolding.width());
    let rest = width / q1;
    let needed = (p1 * width) as u64 * rank as u64 * 4;
    ensure!(
        needed <= limits.job.memory,
        "the memory limit of {} bytes is too small: the table at rank {rank} needs \
         {needed}",
        limits.job.memory
    );
    // Of the transpose, row-major.
    let basis: Vec<f32> = basis.iter().map(|&x| x as f32).collect();
    let basis = View::row_major(&basis, height);
    let mut carry = vec![0.0; p1 * width * rank];
    let step =
        Step::new(limits.job.progress, &format!("{}: projection", limits.job.name), p1 as u64);
    for start in (0..p1).step_by(at_once) {
        let slabs = start..p1.min(start + at_once);
        step.add(slabs.len() as u64);
        unfolding.read(slabs.clone(), block)?;
        let matrix = of_height(block, height);
        let to = &mut carry[start * width * rank..slabs.end * width * rank];
        to.par_chunks_mut(rank * rest).enumerate().for_each(|(x, to)| {
            multiply(basis, matrix.some_columns(x * rest, rest), to);
        });
    }
    Ok(carry)
}

/// A matrix of `rows` rows, row-major.
fn of_height(values: &[f32], rows: usize) -> View<'_> {
    View::row_major(values, values.len() / rows)
}

/// The elements in f32, row-major.
fn row_major(matrix: &Mat) -> Vec<f32> {
    matrix.transpose().iter().map(|&x| x as f32).collect()
}

/// A product, row-major, its rows shared among the threads.
fn times(a: View<'_>, b: View<'_>) -> Vec<f32> {
    const AT_ONCE: usize = 64;
    let mut out = vec![0.0; a.rows() * b.columns()];
    out.par_chunks_mut(AT_ONCE * b.columns()).enumerate().for_each(|(i, out)| {
        multiply(a.some_rows(i * AT_ONCE, out.len() / b.columns()), b, out);
    });
    out
}
