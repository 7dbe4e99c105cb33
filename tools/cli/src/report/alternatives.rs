//! What else a table could be stored as, how many bytes that takes and what it loses: found by
//! storing its rows so, and reading them again. Beside what was settled beforehand, so that reports
//! compare, there is what `plan` takes in fewer and fewer bytes.

use super::sample::Sample;
use crate::{
    dialect::{Source, Weights},
    factorize::{DEFAULT_MEMORY, LowRank, Options, Rows, TensorRows, TtSvd, mixing, suggest_shape},
    plan, trial,
};
use anyhow::{Context, Result};
use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};
use rayon::prelude::*;
use ttrec::{AlignedBuf, Blob, TtShape, blob::Layout, dtype::Dtype};

/// Larger trains are not stored once more for each dtype.
const MAX_PARAMETERS: u64 = 1 << 26;
/// Of the tensor trains that a dense table is made into.
const RANKS: [u32; 4] = [8, 16, 32, 64];

/// A way to store a table.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    /// In a few words, such as "i8" or "rank 96".
    pub(crate) representation: String,
    /// Whole, where the family's name and these few words are not.
    pub(crate) name: Option<String>,
    pub(crate) bytes: u64,
    /// Relative, over all rows.
    pub(crate) error: f64,
    /// Whether it is one of the few that are worth a line of text.
    pub(crate) listed: bool,
}

impl Candidate {
    fn new(representation: String, bytes: u64, error: f64) -> Self {
        Self { representation, name: None, bytes, error, listed: true }
    }
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
    Planned,
}

/// All families that can hold this table.
pub(super) fn alternatives(
    source: &Source<'_>,
    sample: &Sample<'_, '_>,
    spectrum: Option<&LowRank>,
) -> Result<Vec<Family>> {
    let weights = &source.weights;
    let mut families = vec![Family { kind: Kind::Dense, candidates: dense(weights, sample)? }];
    if let Some(spectrum) = spectrum {
        families
            .push(Family { kind: Kind::LowRank, candidates: low_rank(weights, sample, spectrum)? });
    }
    let trains = match weights {
        Weights::Tt { .. } => cores(weights, sample)?,
        // Ranks of a part of the rows say nothing about those of the whole.
        Weights::Dense { .. } if sample.is_whole() && spectrum.is_some() => factorised(sample)?,
        _ => Vec::new(),
    };
    families.push(Family { kind: Kind::TensorTrain, candidates: trains });
    if let (Weights::Dense { tensor, .. }, None, true) = (weights, source.hashed, sample.is_whole())
    {
        families.push(Family {
            kind: Kind::Planned,
            candidates: planned(&source.name, &TensorRows::new(tensor)?)?,
        });
    }
    families.retain(|family| !family.candidates.is_empty());
    families
        .iter_mut()
        .for_each(|family| family.candidates.sort_by_key(|candidate| candidate.bytes));
    Ok(families)
}

/// What `plan` takes, down to 1/64 of the f32 bytes; those candidates are listed that a half, a
/// quarter, and so on would bring, but for dense rows, which have a family of their own.
fn planned(name: &str, rows: &dyn Rows) -> Result<Vec<Candidate>> {
    // A table that is too large for it, or holds what is no number, has none.
    let Ok(curve) = plan::curve(name, rows, DEFAULT_MEMORY) else { return Ok(Vec::new()) };
    let f32_bytes = plan::f32_bytes(rows.num_embeddings(), rows.embedding_dim());
    let within =
        |part: i32| curve.iter().rposition(|c| c.bytes as f64 <= f32_bytes / f64::from(1 << part));
    let listed: Vec<usize> = (1..=6).filter_map(within).collect();
    let smallest = listed.last().copied().unwrap_or(0);
    let candidate = |(at, c): (usize, &plan::Candidate)| {
        let layout = Layout::new(std::slice::from_ref(&c.layout))?;
        Ok(Candidate {
            representation: plan::words::shortly(c),
            name: Some(plan::words::describe(c).trim_start_matches("a ").to_owned()),
            bytes: layout.sections().iter().map(|section| section.len).sum(),
            error: c.error,
            listed: listed.contains(&at) && c.representation != plan::Representation::Dense,
        })
    };
    curve.iter().enumerate().skip(smallest).map(candidate).collect()
}

/// Dense rows of every dtype that can hold them.
fn dense(weights: &Weights<'_>, sample: &Sample<'_, '_>) -> Result<Vec<Candidate>> {
    let columns = sample.embedding_dim();
    let mut norm = 0.0;
    let mut differences = vec![Some(0.0); Dtype::ALL.len()];
    sample.for_each_block(|_, rows| {
        norm += rows.iter().map(|x| x * x).sum::<f64>();
        differences.par_iter_mut().zip(Dtype::ALL).try_for_each(|(sum, &dtype)| {
            if let Some(before) = *sum {
                *sum =
                    stored_difference(rows, columns, dtype)?.map(|difference| before + difference);
            }
            Ok(())
        })
    })?;
    let candidate = |(dtype, difference): (Dtype, Option<f64>)| {
        let bytes = weights.num_embeddings().saturating_mul(dtype.row_len(columns) as u64);
        Some(Candidate::new(dtype.name().to_owned(), bytes, relative(difference?, norm)))
    };
    Ok(Dtype::ALL.iter().copied().zip(differences).filter_map(candidate).collect())
}

/// Rows of fewer columns in i8, and a projection in f16. The directions are orthonormal: what is
/// lost in these columns is lost in the rows.
fn low_rank(
    weights: &Weights<'_>,
    sample: &Sample<'_, '_>,
    spectrum: &LowRank,
) -> Result<Vec<Candidate>> {
    let columns = sample.embedding_dim();
    let mut ranks: Vec<usize> = [16, 8, 4, 2]
        .map(|part| columns / part)
        .into_iter()
        .filter(|&rank| rank > 0)
        .collect();
    ranks.dedup();
    let Some(&largest) = ranks.last() else { return Ok(Vec::new()) };
    let basis: Vec<f64> = spectrum.directions(largest).into_iter().map(f64::from).collect();
    let mut differences = vec![Some(0.0); ranks.len()];
    sample.for_each_block(|_, rows| {
        let projected = project(rows, columns, &basis, largest);
        differences.par_iter_mut().zip(&ranks).try_for_each(|(sum, &rank)| {
            if let Some(before) = *sum {
                let rows: Vec<f64> =
                    projected.chunks_exact(largest).flat_map(|row| &row[..rank]).copied().collect();
                let rows = project(&rows, rank, &mixing(rank), rank);
                *sum = stored_difference(&rows, rank, Dtype::I8)?
                    .map(|difference| before + difference);
            }
            Ok(())
        })
    })?;
    let norm: f64 = spectrum.energies().iter().sum();
    let candidate = |(&rank, rounding): (&usize, Option<f64>)| {
        let rows = weights.num_embeddings().saturating_mul(Dtype::I8.row_len(rank) as u64);
        let left_out: f64 = spectrum.energies()[rank..].iter().sum();
        let bytes = rows.saturating_add(Dtype::F16.bytes_of(rank * columns) as u64);
        Some(Candidate::new(format!("rank {rank}"), bytes, relative(rounding? + left_out, norm)))
    };
    Ok(ranks.iter().zip(differences).filter_map(candidate).collect())
}

/// `rows` times a basis of `rank` directions, both row-major.
fn project(rows: &[f64], columns: usize, basis: &[f64], rank: usize) -> Vec<f64> {
    let count = rows.len() / columns;
    let mut out = vec![0.0; count * rank];
    matmul(
        MatMut::from_row_major_slice_mut(&mut out, count, rank),
        Accum::Replace,
        MatRef::from_row_major_slice(rows, count, columns),
        MatRef::from_row_major_slice(basis, columns, rank),
        1.0,
        Par::rayon(0),
    );
    out
}

/// Tensor trains of a dense table, at several ranks, with f16 cores.
fn factorised(sample: &Sample<'_, '_>) -> Result<Vec<Candidate>> {
    let factors = suggest_shape(sample.num_embeddings(), sample.embedding_dim(), 3)?;
    let options = Options { max_rank: RANKS[RANKS.len() - 1] as usize, ..Options::default() };
    // A table that is too large for it in this memory, or holds what is no number, has none.
    let Ok(svd) = TtSvd::analyse(sample, &factors, &options) else { return Ok(Vec::new()) };
    let mut trains: Vec<(String, AlignedBuf)> = Vec::new();
    let mut largest = None;
    for rank in RANKS {
        let ranks: Vec<u32> = svd.max_ranks().iter().map(|&most| rank.min(most)).collect();
        if largest.replace(ranks.clone()).as_ref() == Some(&ranks) {
            break;
        }
        let shape = TtShape::new(sample.num_embeddings(), &factors.rows, &factors.columns, &ranks)?;
        let cores = svd.cores(&ranks)?;
        let stored = trial::of_cores(shape, Dtype::F16, &cores)?;
        trains.extend(stored.map(|blob| (format!("R {rank}"), blob)));
    }
    measure(&trains, sample, 0, |_| false)
}

/// The same cores in every dtype that suits them; rows that are stored apart stay exact.
fn cores(weights: &Weights<'_>, sample: &Sample<'_, '_>) -> Result<Vec<Candidate>> {
    let Weights::Tt { shape, cores, overrides } = weights else { return Ok(Vec::new()) };
    if shape.num_parameters() > MAX_PARAMETERS {
        return Ok(Vec::new());
    }
    let mut blobs = Vec::new();
    for dtype in Dtype::ALL.iter().copied().filter(|dtype| dtype.suits_cores()) {
        let stored = trial::tensor_train(*shape, dtype, |k, slice, out| {
            Ok(cores.get(k).context("a core is missing")?.read(slice, out)?)
        })?;
        blobs.extend(stored.map(|blob| (dtype.name().to_owned(), blob)));
    }
    let apart = |row: u64| {
        overrides
            .as_ref()
            .is_some_and(|o| o.ids.binary_search_by_key(&row, |(id, _)| *id).is_ok())
    };
    let columns = sample.embedding_dim();
    let bytes = overrides
        .as_ref()
        .map_or(0, |o| o.ids.len() * (size_of::<u64>() + Dtype::F32.row_len(columns)));
    measure(&blobs, sample, bytes as u64, apart)
}

/// What tensor trains lose of the rows but those that are stored apart, which take `bytes` more.
fn measure(
    trains: &[(String, AlignedBuf)],
    sample: &Sample<'_, '_>,
    bytes: u64,
    apart: impl Fn(u64) -> bool,
) -> Result<Vec<Candidate>> {
    let columns = sample.embedding_dim();
    let mut norm = 0.0;
    let mut differences = vec![0.0; trains.len()];
    sample.for_each_block(|first, rows| {
        norm += rows.iter().map(|x| x * x).sum::<f64>();
        let ids = (first..).map(|position| sample.row(position));
        let block: Vec<(u64, &[f64])> =
            ids.zip(rows.chunks_exact(columns)).filter(|(id, _)| !apart(*id)).collect();
        differences.par_iter_mut().zip(trains).try_for_each(|(sum, (_, blob))| {
            *sum += difference(blob, &block)?;
            Ok(())
        })
    })?;
    let candidate = |((representation, blob), difference): (&(String, AlignedBuf), f64)| {
        let tables = Blob::parse(blob)?.tables();
        let stored: u64 = tables.flat_map(|t| t.sections()).map(|section| section.len).sum();
        Ok(Candidate::new(representation.clone(), stored + bytes, relative(difference, norm)))
    };
    trains.iter().zip(differences).map(candidate).collect()
}

/// The squared difference that storing these rows as `dtype` makes; `None` if it cannot hold them.
fn stored_difference(rows: &[f64], columns: usize, dtype: Dtype) -> Result<Option<f64>> {
    let narrow: Vec<f32> = rows.iter().map(|&x| x as f32).collect();
    let Some(blob) = trial::rows(&narrow, columns, dtype)? else { return Ok(None) };
    let rows: Vec<(u64, &[f64])> = (0..).zip(rows.chunks_exact(columns)).collect();
    Ok(Some(difference(&blob, &rows)?))
}

/// The squared difference between these rows and those of the blob's table.
fn difference(blob: &[u8], rows: &[(u64, &[f64])]) -> Result<f64> {
    let table = trial::table(blob)?;
    let (mut ours, mut workspace) =
        (vec![0.0; table.embedding_dim()], vec![0.0; table.workspace_len(1)]);
    let mut sum = 0.0;
    for (id, theirs) in rows {
        table.lookup(*id, &mut ours, &mut workspace)?;
        sum += ours.iter().zip(*theirs).map(|(&a, b)| (f64::from(a) - b).powi(2)).sum::<f64>();
    }
    Ok(sum)
}

fn relative(difference: f64, norm: f64) -> f64 {
    (difference / if norm > 0.0 { norm } else { 1.0 }).sqrt()
}
