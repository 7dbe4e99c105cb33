//! Alternative representations of a table, with bytes and error: all that `plan` considers for it;
//! or, if it was trained in another form or is too large for a plan of all its rows, a few that are
//! measured here by encoding and decoding rows.

use super::{
    candidate::{Candidate, Form, Search, f32_bytes},
    choose::{Item, front},
    enumerate::of_dense,
    explain,
    low_rank::{mix, project},
    runs::Runs,
    sample::{Matrix, Sample, squared_norm},
};
use crate::{
    dialect::{Source, Weights},
    error::Error,
    factorize::{DEFAULT_MEMORY, Job, LowRank, Rows},
    in_memory,
    progress::{Progress, Step},
    spec::TableSpec,
};
use anyhow::{Context, Result};
use ttrec::{AlignedBuf, Blob, blob::Layout, dtype::Dtype};

/// Larger tensor trains are not measured in each dtype.
const MAX_PARAMETERS: u64 = 1 << 26;

/// The units of the families that this module measures, which are fewer than those of a plan.
const OWN: u64 = 300;
/// The units of the step for a table.
const UNITS: u64 = OWN + Search::UNITS;

/// An alternative representation of a table.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Alternative {
    /// A short description for plots, such as "i8" or "i8 rank 96".
    pub representation: String,
    /// The full description, such as "i8 rows of rank 96".
    pub name: String,
    /// The bytes in a blob.
    pub bytes: u64,
    /// The relative error over all rows.
    pub error: f64,
    /// Whether tables list it, or only plots show it.
    pub listed: bool,
}

/// Alternatives that differ in one setting.
#[non_exhaustive]
pub struct Family {
    /// The representation of the family.
    pub kind: Kind,
    /// By bytes, ascending.
    pub candidates: Vec<Alternative>,
}

/// A kind of representation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// Rows of each stored type.
    Dense,
    /// Short rows and a projection.
    LowRank,
    /// Codes of entries of a few books.
    Codes,
    /// A tensor train.
    TensorTrain,
    /// The best of all families, which [`plan`](super::plan()) chooses from.
    Planned,
}

/// The alternatives of a table, and its spectrum.
#[non_exhaustive]
pub struct Alternatives {
    /// The squared singular values of the table, descending; empty if it is too wide, or has values
    /// that are not finite.
    pub energies: Vec<f64>,
    /// The alternatives, by family.
    pub families: Vec<Family>,
    /// The number of measured rows, if not all.
    pub rows_measured: Option<u64>,
}

/// Measures alternatives on the rows of `source`, or on a sample of a large table.
///
/// # Errors
/// If the rows cannot be read.
pub fn alternatives(source: &Source<'_>, progress: &dyn Progress) -> Result<Alternatives, Error> {
    let step = Step::new(progress, &format!("{}: alternatives", source.name()), UNITS);
    let sample = Runs::of(source);
    let job = Job { name: source.name(), memory: DEFAULT_MEMORY, progress };
    let spectrum = LowRank::analyse(&sample, &job).ok();
    Ok(Alternatives {
        energies: spectrum.as_ref().map_or(Vec::new(), |spectrum| spectrum.energies().to_vec()),
        families: families(source, &sample, spectrum.as_ref(), progress, &step)?,
        rows_measured: (!sample.is_whole()).then(|| sample.num_embeddings()),
    })
}

/// All families that can hold this table.
fn families(
    source: &Source<'_>,
    sample: &Runs<'_, '_>,
    spectrum: Option<&LowRank>,
    progress: &dyn Progress,
    step: &Step<'_>,
) -> Result<Vec<Family>> {
    let found = |families: &mut Vec<Family>, kind, candidates| {
        step.add(OWN / 3);
        families.push(Family { kind, candidates });
    };
    let weights = &source.weights;
    if let (Weights::Dense(rows), None, true) = (weights, source.hashed, sample.is_whole())
        && let Some(families) = planned(&source.name, rows, progress, step)?
    {
        return Ok(families);
    }
    let rows = Measured::read(sample)?;
    let mut families = Vec::new();
    found(&mut families, Kind::Dense, dense(weights, &rows)?);
    if let Some(spectrum) = spectrum {
        found(&mut families, Kind::LowRank, low_rank(weights, &rows, spectrum)?);
    }
    found(&mut families, Kind::TensorTrain, cores(weights, &rows)?);
    families.retain(|family| !family.candidates.is_empty());
    families
        .iter_mut()
        .for_each(|family| family.candidates.sort_by_key(|candidate| candidate.bytes));
    Ok(families)
}

/// What `plan` considers: rows of each type, and of each other family, and of all, what nothing
/// else beats in bytes and error, down to 1/64 of the f32 bytes. `None` for a table that is too
/// large, or has values that are not finite.
fn planned(
    name: &str,
    rows: &dyn Rows,
    progress: &dyn Progress,
    step: &Step<'_>,
) -> Result<Option<Vec<Family>>> {
    let options =
        Search { frequencies: None, memory: DEFAULT_MEMORY, most_bytes: u64::MAX, progress, step };
    let Ok(found) = of_dense(name, &TableSpec::default(), rows, &options) else { return Ok(None) };
    let f32_bytes = f32_bytes(rows.num_embeddings(), rows.embedding_dim());
    let kinds = [Kind::Dense, Kind::LowRank, Kind::Codes, Kind::TensorTrain, Kind::Planned];
    let family = |kind| -> Result<Family> {
        let of_kind = |c: &&Candidate| kind == Kind::Planned || kind_of(c) == kind;
        let list: Vec<&Candidate> = found.list.iter().filter(of_kind).collect();
        let item =
            |c: &&Candidate| Item { bytes: c.bytes, error: c.error, nanoseconds: c.nanoseconds };
        let items: Vec<Item> = list.iter().map(item).collect();
        // Rows of each type are few, and all of them say something.
        let kept = match kind {
            Kind::Dense => (0..list.len()).collect(),
            _ => front(&items),
        };
        let curve: Vec<&Candidate> = kept.into_iter().map(|at| list[at]).collect();
        // Tables list those of a half, a quarter, and so on; what is best has its own family.
        let within = |part: i32| {
            curve.iter().rposition(|c| c.bytes as f64 <= f32_bytes / f64::from(1 << part))
        };
        let halves: Vec<usize> = (0..=6).filter_map(within).collect();
        let smallest = halves.last().copied().filter(|_| kind != Kind::Dense).unwrap_or(0);
        let candidate = |(at, c): (usize, &&Candidate)| {
            let layout = Layout::new(std::slice::from_ref(&c.layout))?;
            Ok(Alternative {
                representation: explain::shortly(c),
                name: explain::describe(c).trim_start_matches("a ").to_owned(),
                bytes: layout.sections().iter().map(|section| section.len).sum(),
                error: c.error,
                listed: match kind {
                    Kind::Planned => false,
                    Kind::Dense => true,
                    _ => halves.contains(&at),
                },
            })
        };
        let candidates = curve.iter().enumerate().skip(smallest).map(candidate);
        Ok(Family { kind, candidates: candidates.collect::<Result<_>>()? })
    };
    let mut families = kinds.into_iter().map(family).collect::<Result<Vec<_>>>()?;
    families.retain(|family| !family.candidates.is_empty());
    Ok(Some(families))
}

fn kind_of(candidate: &Candidate) -> Kind {
    match candidate.representation {
        Form::Dense => Kind::Dense,
        Form::LowRank { .. } => Kind::LowRank,
        Form::Codes { .. } => Kind::Codes,
        Form::Tt { .. } | Form::AsTrained { .. } => Kind::TensorTrain,
    }
}

/// Dense rows of every dtype that can hold them.
fn dense(weights: &Weights<'_>, rows: &Measured<'_, '_>) -> Result<Vec<Alternative>> {
    let columns = rows.values.columns;
    let mut found = Vec::new();
    for &dtype in Dtype::ALL {
        let Some(error) = rows.sample.coding_error(&rows.values, columns, dtype)? else { continue };
        let bytes = weights.num_embeddings().saturating_mul(dtype.row_len(columns) as u64);
        let representation = dtype.name().to_owned();
        let name = format!("{representation} rows");
        let error = rows.relative(error);
        found.push(Alternative { representation, name, bytes, error, listed: true });
    }
    Ok(found)
}

/// Rows of fewer columns in i8, and a projection in f16. The directions are orthonormal, so that
/// errors in these columns are errors in the rows.
fn low_rank(
    weights: &Weights<'_>,
    rows: &Measured<'_, '_>,
    spectrum: &LowRank,
) -> Result<Vec<Alternative>> {
    let columns = rows.values.columns;
    let mut ranks: Vec<usize> = [16, 8, 4, 2]
        .map(|part| columns / part)
        .into_iter()
        .filter(|&rank| rank > 0)
        .collect();
    ranks.dedup();
    let projected = project(&rows.values, &spectrum.directions(columns));
    let mut found = Vec::new();
    for rank in ranks {
        let short = mix(&projected, rank);
        let Some(rounding) = rows.sample.coding_error(&short, rank, Dtype::I8)? else { continue };
        let left_out: f64 = spectrum.energies()[rank..].iter().sum();
        let short_rows = weights.num_embeddings().saturating_mul(Dtype::I8.row_len(rank) as u64);
        let bytes = short_rows.saturating_add(Dtype::F16.bytes_of(rank * columns) as u64);
        let error = rows.relative(rounding + left_out);
        let representation = format!("i8 rank {rank}");
        let name = format!("i8 rows of rank {rank}");
        found.push(Alternative { representation, name, bytes, error, listed: true });
    }
    Ok(found)
}

/// The same cores in every dtype for cores; overridden rows stay exact.
fn cores(weights: &Weights<'_>, rows: &Measured<'_, '_>) -> Result<Vec<Alternative>> {
    let Weights::Tt { shape, cores, overrides } = weights else { return Ok(Vec::new()) };
    if shape.num_parameters() > MAX_PARAMETERS {
        return Ok(Vec::new());
    }
    let mut blobs = Vec::new();
    for dtype in Dtype::ALL.iter().copied().filter(|dtype| dtype.suits_cores()) {
        let stored = in_memory::tensor_train(*shape, dtype, |k, slice, out| {
            Ok(cores.get(k).context("a core is missing")?.read(slice, out)?)
        })?;
        blobs.extend(stored.map(|blob| (dtype.name().to_owned(), blob)));
    }
    let apart = |row: u64| {
        overrides
            .as_ref()
            .is_some_and(|o| o.ids.binary_search_by_key(&row, |(id, _)| *id).is_ok())
    };
    let columns = rows.values.columns;
    let bytes = overrides
        .as_ref()
        .map_or(0, |o| o.ids.len() * (size_of::<u64>() + Dtype::F32.row_len(columns)));
    rows.trains(&blobs, bytes as u64, apart)
}

/// The rows that alternatives are measured on.
struct Measured<'w, 'c> {
    runs: &'w Runs<'w, 'c>,
    sample: Sample,
    values: Matrix,
    energy: f64,
}

impl<'w, 'c> Measured<'w, 'c> {
    fn read(runs: &'w Runs<'w, 'c>) -> Result<Self> {
        let sample = Sample::all(runs.num_embeddings());
        let values = sample.read(runs)?;
        let energy = sample.sum(&values, squared_norm);
        Ok(Self { runs, sample, values, energy })
    }

    fn relative(&self, squared_error: f64) -> f64 {
        (squared_error / if self.energy > 0.0 { self.energy } else { 1.0 }).sqrt()
    }

    /// The error of a tensor train over the rows that are not overridden; the overrides add
    /// `bytes`.
    fn trains(
        &self,
        trains: &[(String, AlignedBuf)],
        bytes: u64,
        apart: impl Fn(u64) -> bool + Sync,
    ) -> Result<Vec<Alternative>> {
        let row_of = |position| Some(self.runs.row(position)).filter(|&row| !apart(row));
        let alternative = |(representation, blob): &(String, AlignedBuf)| {
            let error = self.sample.lookup_error(&self.values, blob, row_of)?;
            let stored: u64 = Blob::parse(blob)?
                .tables()
                .flat_map(|table| table.sections())
                .map(|section| section.len)
                .sum();
            Ok(Alternative {
                representation: representation.clone(),
                name: format!("tensor train in {representation}"),
                bytes: stored + bytes,
                error: self.relative(error),
                listed: true,
            })
        };
        trains.iter().map(alternative).collect()
    }
}
