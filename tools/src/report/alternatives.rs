//! What else a table could be stored as, how many bytes that takes and what it loses: found by storing its rows so, and
//! reading them again.

use super::{sample::Sample, spectrum::Spectrum};
use crate::{compare, dialect::Weights};
use anyhow::{Context, Result};
use rayon::prelude::*;
use ttrec::{
    AlignedBuf, Blob, TtShape,
    blob::{Layout, Role, TableSpec, WeightsSpec},
    dtype::{self, Dtype, EncodeError},
};

/// A way to store a table.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    /// In a few words, such as "i8" or "rank 96".
    pub(crate) representation: String,
    pub(crate) bytes: u64,
    /// Relative, over all rows.
    pub(crate) error: f64,
}

/// Candidates that differ in one setting.
pub(crate) struct Family {
    pub(crate) kind: Kind,
    /// By bytes, ascending.
    pub(crate) candidates: Vec<Candidate>,
}

/// What a table can be stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Dense,
    LowRank,
    TensorTrain,
}

/// All families that can hold this table.
pub(super) fn alternatives(
    weights: &Weights<'_>,
    sample: &Sample<'_, '_>,
    spectrum: Option<&Spectrum>,
) -> Result<Vec<Family>> {
    let mut families = vec![Family { kind: Kind::Dense, candidates: dense(weights, sample)? }];
    if let Some(spectrum) = spectrum {
        families.push(Family { kind: Kind::LowRank, candidates: low_rank(weights, sample, spectrum)? });
    }
    if matches!(weights, Weights::Tt { .. }) {
        families.push(Family { kind: Kind::TensorTrain, candidates: other_cores(weights)? });
    }
    families.retain(|family| !family.candidates.is_empty());
    families.iter_mut().for_each(|family| family.candidates.sort_by_key(|candidate| candidate.bytes));
    Ok(families)
}

/// Dense rows of every dtype that can hold them.
fn dense(weights: &Weights<'_>, sample: &Sample<'_, '_>) -> Result<Vec<Candidate>> {
    let columns = sample.columns();
    let mut norm = 0.0;
    let mut differences = vec![Some(0.0); Dtype::ALL.len()];
    sample.for_each_block(|rows| {
        norm += rows.iter().map(|x| x * x).sum::<f64>();
        differences.par_iter_mut().zip(Dtype::ALL).try_for_each(|(sum, dtype)| {
            if let Some(before) = *sum {
                *sum = stored_difference(rows, columns, dtype)?.map(|difference| before + difference);
            }
            Ok(())
        })
    })?;
    let candidate = |(dtype, difference): (Dtype, Option<f64>)| {
        Some(Candidate {
            representation: dtype.name().to_owned(),
            bytes: weights.num_embeddings().saturating_mul(dtype.row_len(columns) as u64),
            error: relative(difference?, norm),
        })
    };
    Ok(Dtype::ALL.into_iter().zip(differences).filter_map(candidate).collect())
}

/// Rows of fewer columns in i8, and a projection in f16. The directions are orthonormal: what is lost in these columns is
/// lost in the rows.
fn low_rank(weights: &Weights<'_>, sample: &Sample<'_, '_>, spectrum: &Spectrum) -> Result<Vec<Candidate>> {
    let columns = sample.columns();
    let mut ranks: Vec<usize> = [16, 8, 4, 2].map(|part| columns / part).into_iter().filter(|&rank| rank > 0).collect();
    ranks.dedup();
    let Some(&largest) = ranks.last() else { return Ok(Vec::new()) };
    let mut differences = vec![Some(0.0); ranks.len()];
    sample.for_each_block(|rows| {
        let projected = spectrum.project(rows, largest);
        differences.par_iter_mut().zip(&ranks).try_for_each(|(sum, &rank)| {
            if let Some(before) = *sum {
                let rows: Vec<f64> = projected.chunks_exact(largest).flat_map(|row| &row[..rank]).copied().collect();
                *sum = stored_difference(&rows, rank, Dtype::I8)?.map(|difference| before + difference);
            }
            Ok(())
        })
    })?;
    let norm: f64 = spectrum.energies.iter().sum();
    let candidate = |(&rank, rounding): (&usize, Option<f64>)| {
        let rows = weights.num_embeddings().saturating_mul(Dtype::I8.row_len(rank) as u64);
        let left_out: f64 = spectrum.energies[rank..].iter().sum();
        Some(Candidate {
            representation: format!("rank {rank}"),
            bytes: rows.saturating_add(Dtype::F16.bytes_of(rank * columns) as u64),
            error: relative(rounding? + left_out, norm),
        })
    };
    Ok(ranks.iter().zip(differences).filter_map(candidate).collect())
}

/// The same cores in other dtypes.
fn other_cores(weights: &Weights<'_>) -> Result<Vec<Candidate>> {
    let Weights::Tt { shape, .. } = weights else { return Ok(Vec::new()) };
    let mut candidates = Vec::new();
    for dtype in Dtype::ALL.into_iter().filter(|dtype| dtype.suits_cores()) {
        let Some(blob) = store_cores(weights, shape, dtype)? else { continue };
        let blob = Blob::parse(&blob)?;
        let table = blob.table(NAME)?;
        let bytes = blob.sections(0).map(|section| section.len).sum();
        let error = compare::error_of_some_rows(&table, weights)?;
        candidates.push(Candidate { representation: dtype.name().to_owned(), bytes, error });
    }
    Ok(candidates)
}

/// A blob for a moment has a table of this name.
const NAME: &str = "candidate";

/// The squared difference that storing these rows as `dtype` makes; `None` if it cannot hold them.
fn stored_difference(rows: &[f64], columns: usize, dtype: Dtype) -> Result<Option<f64>> {
    let narrow: Vec<f32> = rows.iter().map(|&x| x as f32).collect();
    let num_embeddings = (rows.len() / columns) as u64;
    let weights = WeightsSpec::Dense { num_embeddings, embedding_dim: columns, dtype };
    let mut outcome: Result<(), EncodeError> = Ok(());
    let blob = layout(weights)?.build(|_, out| outcome = dtype::encode_rows(&narrow, columns, dtype, out));
    if outcome.is_err() {
        return Ok(None);
    }
    let blob = Blob::parse(&blob)?;
    let table = blob.table(NAME)?;
    let mut row = vec![0.0; columns];
    let mut sum = 0.0;
    for (at, exact) in (0..).zip(rows.chunks_exact(columns)) {
        table.lookup(at, &mut row, &mut [])?;
        sum += row.iter().zip(exact).map(|(&a, b)| (f64::from(a) - b).powi(2)).sum::<f64>();
    }
    Ok(Some(sum))
}

/// A tensor train with its cores in `dtype`; `None` if that cannot hold them.
fn store_cores(weights: &Weights<'_>, shape: &TtShape, dtype: Dtype) -> Result<Option<AlignedBuf>> {
    let Weights::Tt { cores, .. } = weights else { return Ok(None) };
    let mut outcome = Ok(());
    let mut holds = true;
    let blob = layout(WeightsSpec::Tt { shape: *shape, dtype })?.build(|section, out| {
        let (Role::Core(k) | Role::Scales(k)) = section.role else { return };
        let Some(core) = cores.get(k) else { return };
        let mut values = vec![0.0; core.slice_len()];
        let mut bytes = vec![0; dtype.bytes_of(values.len())];
        let len = if matches!(section.role, Role::Core(_)) { bytes.len() } else { 4 };
        for (slice, out) in (0..).zip(out.chunks_exact_mut(len)) {
            if let Err(error) = core.read(slice, &mut values) {
                outcome = Err(error);
                return;
            }
            match dtype::encode_slice(&values, dtype, &mut bytes) {
                Ok(_) if matches!(section.role, Role::Core(_)) => out.copy_from_slice(&bytes),
                Ok(scale) => out.copy_from_slice(&scale.to_le_bytes()),
                Err(_) => holds = false,
            }
        }
    });
    outcome?;
    Ok(holds.then_some(blob))
}

fn layout(weights: WeightsSpec) -> Result<Layout> {
    let table = TableSpec { name: NAME.to_owned(), weights, num_prefixes: 0, overrides: None };
    Layout::new(&[table]).context("a candidate has no layout")
}

fn relative(difference: f64, norm: f64) -> f64 {
    (difference / if norm > 0.0 { norm } else { 1.0 }).sqrt()
}
