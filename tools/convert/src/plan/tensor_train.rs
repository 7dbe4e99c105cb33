//! Tensor trains of a dense table, in a few shapes and many ranks.
//!
//! The spectra of the unfoldings give a lower bound of the error of any train of given ranks. If
//! another candidate of the same size has less error, the train is skipped. Otherwise it is made,
//! refined as by `convert`, and looked up.

use super::{
    candidate::{Candidate, Context, Form, bytes},
    sample::{Matrix, Sample, squared_norm},
};
use crate::{
    factorize::{DEFAULT_SWEEPS, Factors, Limits, Rows, TtSvd, suggest_shape},
    in_memory,
    progress::Share,
};
use anyhow::Result;
use ttrec::{
    TtShape,
    blob::{TableSpec, WeightsSpec},
    dtype::Dtype,
};

/// The stored types that are tried for cores.
const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::I8];
/// The most rows of a first unfolding: eigenvectors of more take too long.
const MAX_HEIGHT: u64 = 512;
/// The largest rank: larger trains are seldom smaller than quantised rows, and never faster.
const MAX_RANK: usize = 256;
/// The most elements of a table whose trains are refined.
const REFINED: u64 = 4 << 20;
/// Smaller errors are lost in the rounding of squared singular values.
const SURE: f64 = 1e-3;
/// The number of rows at which trains are measured.
const LOOKED_UP: usize = 4096;

/// The bytes and the least error of a train.
type Bound = (u64, f64);

/// The trains that may be worth storing, and the bytes and least error of all that were considered.
pub(super) fn candidates(
    context: &Context<'_>,
    rows: &dyn Rows,
    others: &[Candidate],
    share: &Share<'_>,
) -> Result<(Vec<Candidate>, Vec<Bound>)> {
    let (mut found, mut bounds) = (Vec::new(), Vec::new());
    // A tensor train has no row of its own that could be zeros.
    if context.found.padding_idx.is_some() {
        return Ok((found, bounds));
    }
    let few = Sample::draw(rows.num_embeddings(), LOOKED_UP, context.options.frequencies);
    let lookups = LookedUp { values: few.read(rows)?, sample: few };
    let weights = weights(context, rows.num_embeddings())?;
    let shapes = shapes(rows.num_embeddings(), rows.embedding_dim());
    for (at, factors) in shapes.iter().enumerate() {
        let Some(limits) = limits(context, rows, factors) else { continue };
        let train = TtSvd::analyse(rows, factors, &limits)?;
        let lists = ranks(context, rows.num_embeddings(), &train)?;
        let count = lists.len();
        for (list, ranks) in lists.into_iter().enumerate() {
            share.reach(at * count + list, shapes.len() * count);
            let shape =
                TtShape::new(rows.num_embeddings(), &factors.rows, &factors.columns, &ranks)?;
            let least = train.least_error(&ranks);
            let bytes =
                |dtype| bytes(&TableSpec::new(context.name, WeightsSpec::Tt { shape, dtype }));
            bounds.push((bytes(Dtype::I8)?, least));
            // With frequencies there is no lower bound: a train may be better on frequent rows.
            let margin = if weights.is_some() { 0.5 } else { 1.0 };
            // The bounds of the smallest trains are bounds of the table.
            let smallest = ranks.iter().all(|&rank| rank == 1);
            let mut dtypes = Vec::new();
            for dtype in DTYPES {
                let bytes = bytes(dtype)?;
                let beaten =
                    |other: &Candidate| other.bytes <= bytes && other.error <= least * margin;
                if (bytes <= context.options.most_bytes || smallest) && !others.iter().any(beaten) {
                    dtypes.push(dtype);
                }
            }
            if dtypes.is_empty() {
                continue;
            }
            let sweeps = sweeps(rows, &shape);
            let refined = train.refine(&ranks, rows, weights.as_deref(), sweeps, &limits)?;
            let shape = TtShape::new(
                rows.num_embeddings(),
                &factors.rows,
                &factors.columns,
                &refined.ranks,
            )?;
            let Some(exact) = lookups.error(shape, &refined.cores, Dtype::F32)? else { continue };
            for dtype in dtypes {
                let Some(error) = lookups.error(shape, &refined.cores, dtype)? else { continue };
                let squared = match weights {
                    // All rows give the truncation error, and some of them the rounding error.
                    None if refined.error > SURE => {
                        refined.error.powi(2) + (error - exact).max(0.0)
                    }
                    _ => error,
                };
                found.push(context.candidate(
                    Form::Tt { shape, sweeps },
                    WeightsSpec::Tt { shape, dtype },
                    squared * context.energy,
                )?);
            }
        }
    }
    Ok((found, bounds))
}

/// A weight for each row, as `convert` weighs them.
pub(super) fn weights(context: &Context<'_>, num_embeddings: u64) -> Result<Option<Vec<f32>>> {
    let weights = context
        .options
        .frequencies
        .map(|counts| crate::convert::weights(counts, num_embeddings));
    weights.transpose()
}

/// Two and three cores of near-square cuts, and the same with the narrowest first core.
fn shapes(num_embeddings: u64, embedding_dim: usize) -> Vec<Factors> {
    let mut shapes: Vec<Factors> = Vec::new();
    for d in [2, 3] {
        let Ok(suggested) = suggest_shape(num_embeddings, embedding_dim, d) else { continue };
        let mut narrow = suggested.clone();
        if let [first, .., last] = narrow.columns.as_mut_slice() {
            (*first, *last) = (1, *first * *last);
        }
        shapes.extend([suggested, narrow]);
    }
    shapes.retain(|factors| {
        u64::from(factors.rows[0]) * u64::from(factors.columns[0]) <= MAX_HEIGHT
            && factors.rows.iter().all(|&p| p > 1)
    });
    shapes.dedup();
    shapes
}

/// The limits of an analysis in the available memory; `None` if the memory is too small.
fn limits<'c>(context: &'c Context<'_>, rows: &dyn Rows, factors: &Factors) -> Option<Limits<'c>> {
    let height = u64::from(factors.rows[0]) * u64::from(factors.columns[0]);
    let padded: u64 = factors.rows.iter().map(|&p| u64::from(p)).product();
    let per_rank = padded.saturating_mul(rows.embedding_dim() as u64).saturating_mul(4) / height;
    let memory = context.options.memory;
    let max_rank = usize::try_from(memory / 4 / per_rank.max(1)).unwrap_or(MAX_RANK).min(MAX_RANK);
    (max_rank > 0 && height.saturating_mul(height).saturating_mul(64) <= memory).then(|| Limits {
        max_rank,
        tolerance: None,
        job: context.job(),
    })
}

/// The number of refinements: none if the train is nearly as large as the table, so that there is
/// nothing to gain, or if a refinement takes minutes.
fn sweeps(rows: &dyn Rows, shape: &TtShape) -> u32 {
    let elements = rows.num_embeddings().saturating_mul(rows.embedding_dim() as u64);
    if elements <= REFINED && shape.num_parameters() <= elements / 4 {
        DEFAULT_SWEEPS
    } else {
        0
    }
}

/// The ranks to consider: equal for all bonds, growing by half each time, and for each stored type
/// the largest that fit.
fn ranks(context: &Context<'_>, num_embeddings: u64, train: &TtSvd) -> Result<Vec<Vec<u32>>> {
    let (factors, most) = (train.factors(), train.max_ranks());
    let largest = most.iter().copied().max().unwrap_or(1);
    let alike = |rank: u32| most.iter().map(|&most| rank.min(most)).collect::<Vec<_>>();
    let fits = |rank: u32, dtype| -> Result<bool> {
        let shape = TtShape::new(num_embeddings, &factors.rows, &factors.columns, &alike(rank))?;
        Ok(bytes(&TableSpec::new(context.name, WeightsSpec::Tt { shape, dtype }))?
            <= context.options.most_bytes)
    };
    let mut ranks: Vec<u32> = std::iter::successors(Some(1), |&rank| Some(rank + rank / 2 + 1))
        .take_while(|&rank| rank < largest)
        .collect();
    ranks.push(largest);
    for dtype in DTYPES {
        let (mut low, mut high) = (0, largest + 1);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            *(if fits(middle, dtype)? { &mut low } else { &mut high }) = middle;
        }
        ranks.extend((low > 0).then_some(low));
    }
    ranks.sort_unstable();
    ranks.dedup();
    let mut lists: Vec<Vec<u32>> = ranks.into_iter().map(alike).collect();
    lists.dedup();
    Ok(lists)
}

/// The rows at which trains are measured.
struct LookedUp {
    sample: Sample,
    values: Matrix,
}

impl LookedUp {
    /// The relative squared error of these cores as `dtype`; `None` if a value overflows.
    fn error(&self, shape: TtShape, cores: &[Vec<f32>], dtype: Dtype) -> Result<Option<f64>> {
        let Some(blob) = in_memory::of_cores(shape, dtype, cores)? else { return Ok(None) };
        let error = self.sample.lookup_error(&self.values, &blob, Some)?;
        let norm = self.sample.sum(&self.values, squared_norm);
        Ok(Some(if norm > 0.0 { error / norm } else { 0.0 }))
    }
}
