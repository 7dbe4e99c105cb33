//! Candidates: representations of a table that `convert` can write, with bytes, error and time.

use super::{
    cost,
    sample::{Matrix, Sample},
};
use crate::{
    factorize::{CodesShape, Job},
    progress::{Progress, Step},
    spec::{self, TableSpec},
};
use anyhow::Result;
use ttrec::{
    TtShape,
    blob::{Layout, WeightsSpec},
    dtype::Dtype,
};

/// The most elements of a table in memory, unless the memory limit is smaller: 64 MiB as f32.
const MOST_ELEMENTS: u64 = 16 << 20;

/// The options for all candidates of a table.
pub(crate) struct Search<'o> {
    /// The rows that occur, ascending, and how often; `None`: all rows weigh the same.
    pub(crate) frequencies: Option<&'o [(u64, f64)]>,
    /// The memory limit in bytes.
    pub(crate) memory: u64,
    /// Larger candidates are dropped.
    pub(crate) most_bytes: u64,
    pub(crate) progress: &'o dyn Progress,
    /// The step that the search is a part of.
    pub(crate) step: &'o Step<'o>,
}

impl Search<'_> {
    /// The units that the search of a table adds to its step.
    pub(crate) const UNITS: u64 = 1000;
}

/// A representation of a table.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    /// The spec of the table for `convert`.
    pub(crate) spec: TableSpec,
    pub(crate) representation: Form,
    pub(crate) dtype: Dtype,
    /// The representation that `convert` writes.
    pub(crate) layout: ttrec::blob::TableSpec,
    /// The bytes that it adds to a blob: sections, padding and directory, which is rounded up to
    /// the alignment.
    pub(crate) bytes: u64,
    /// The relative error (Frobenius), weighted by frequencies if there are any.
    pub(crate) error: f64,
    /// The estimated time of a single lookup.
    pub(crate) nanoseconds: f64,
}

/// The stored form of a candidate.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Form {
    /// Dense rows.
    Dense,
    /// Short rows and a projection.
    LowRank { rank: usize },
    /// A tensor train of a dense table.
    Tt { shape: TtShape, sweeps: u32 },
    /// Codes.
    Codes { shape: CodesShape },
    /// The representation of the checkpoint: a tensor train, for example.
    AsTrained { what: &'static str },
}

/// All candidates of a table.
pub(crate) struct Candidates {
    pub(crate) name: String,
    pub(crate) num_embeddings: u64,
    pub(crate) embedding_dim: usize,
    /// By bytes, ascending.
    pub(crate) list: Vec<Candidate>,
    /// The squared norm of the table, weighted by frequencies if there are any; weights are 1 on
    /// average.
    pub(crate) energy: f64,
    /// The number of rows that errors were measured on.
    pub(crate) rows_measured: usize,
    /// Whether these are all rows with a weight above 0.
    pub(crate) complete: bool,
    /// The bytes and the least error of the tensor trains that were considered, including those
    /// that are no candidates.
    pub(crate) trains: Vec<(u64, f64)>,
}

impl Candidates {
    /// The bytes of the table as f32 rows.
    pub(crate) fn f32_bytes(&self) -> f64 {
        f32_bytes(self.num_embeddings, self.embedding_dim)
    }
}

/// The bytes of a table of this size as f32 rows.
pub(crate) fn f32_bytes(num_embeddings: u64, embedding_dim: usize) -> f64 {
    num_embeddings as f64 * Dtype::F32.row_len(embedding_dim) as f64
}

/// The data that all makers of candidates share.
pub(super) struct Context<'c> {
    pub(super) name: &'c str,
    pub(super) found: &'c TableSpec,
    pub(super) options: &'c Search<'c>,
    pub(super) sample: &'c Sample,
    /// The rows of `sample`.
    pub(super) values: &'c Matrix,
    /// Their squared norm.
    pub(super) energy: f64,
}

impl Context<'_> {
    pub(super) fn job(&self) -> Job<'_> {
        Job { name: self.name, memory: self.options.memory, progress: self.options.progress }
    }

    /// The candidate that is stored as `weights` and has this squared error on the sample.
    pub(super) fn candidate(
        &self,
        representation: Form,
        weights: WeightsSpec,
        squared_error: f64,
    ) -> Result<Candidate> {
        let nanoseconds = cost::lookup(&weights)?;
        let found = TableSpec { dtype: Some(weights.dtype()), ..self.found.clone() };
        let spec = match &representation {
            Form::Dense | Form::AsTrained { .. } => found,
            Form::LowRank { rank } => TableSpec {
                representation: Some(spec::Representation::LowRank),
                rank: Some(u32::try_from(*rank)?),
                ..found
            },
            Form::Codes { shape } => TableSpec {
                representation: Some(spec::Representation::Codes),
                books: Some(u32::try_from(shape.books)?),
                bits: Some(shape.bits),
                combine: (shape.combine == spec::Combining::Add).then_some(shape.combine),
                rotation: shape.projected.then_some(true),
                rank: (shape.projected && shape.rank < self.values.columns)
                    .then_some(u32::try_from(shape.rank)?),
                ..found
            },
            Form::Tt { shape, sweeps } => TableSpec {
                representation: Some(spec::Representation::Tt),
                row_factors: Some(shape.row_factors().to_vec()),
                column_factors: Some(shape.column_factors().to_vec()),
                ranks: Some(shape.inner_ranks().to_vec()),
                sweeps: Some(*sweeps),
                ..found
            },
        };
        let layout = ttrec::blob::TableSpec::new(self.name, weights);
        let bytes = bytes(&layout)?;
        Ok(Candidate {
            spec,
            representation,
            dtype: weights.dtype(),
            layout,
            bytes,
            error: self.relative(squared_error),
            nanoseconds,
        })
    }

    pub(super) fn relative(&self, squared_error: f64) -> f64 {
        // As `verify` prints it for a table of zeros.
        (squared_error.max(0.0) / if self.energy > 0.0 { self.energy } else { 1.0 }).sqrt()
    }
}

/// The bytes that a table adds to a blob, rounded up to the alignment.
pub(super) fn bytes(table: &ttrec::blob::TableSpec) -> Result<u64> {
    Ok(Layout::new(std::slice::from_ref(table))?.total_len() - head_bytes()?)
}

/// The bytes of a blob without tables.
pub(super) fn head_bytes() -> Result<u64> {
    Ok(Layout::new(&[])?.total_len())
}

/// The number of rows with this many columns that are held in memory.
pub(super) fn most_rows(columns: usize, options: &Search<'_>) -> usize {
    let elements = MOST_ELEMENTS.min(options.memory / 16);
    usize::try_from(elements / columns as u64).unwrap_or(usize::MAX).max(1024)
}
