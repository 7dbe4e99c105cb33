//! Candidates: the ways to store a table that `convert` can write, each with its bytes, its error
//! and its time.

use super::sample::{Matrix, Sample};
use crate::{
    factorize::Job,
    progress::Progress,
    spec::{self, TableSpec},
};
use anyhow::Result;
use ttrec::{
    TtShape,
    blob::{Layout, WeightsSpec},
    dtype::Dtype,
};

/// What is held of a table at most, in elements, unless the memory is less: 64 MiB as f32.
const MOST_ELEMENTS: u64 = 16 << 20;

/// What bears on all candidates of a table.
pub(crate) struct Search<'o> {
    /// Rows that are asked for, ascending, and how often; all alike if there are none.
    pub(crate) frequencies: Option<&'o [(u64, f64)]>,
    /// Bytes to hold at most.
    pub(crate) memory: u64,
    /// More bytes are of no use.
    pub(crate) most_bytes: u64,
    pub(crate) progress: &'o dyn Progress,
}

/// One way to store a table.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    /// What `convert` has to be told.
    pub(crate) spec: TableSpec,
    pub(crate) representation: Form,
    pub(crate) dtype: Dtype,
    /// What `convert` makes of it.
    pub(crate) layout: ttrec::blob::TableSpec,
    /// What it adds to a blob: sections, padding, directory; the last rounded up to a line of the
    /// alignment.
    pub(crate) bytes: u64,
    /// Relative (Frobenius), by frequency if there are any.
    pub(crate) error: f64,
    /// For a lookup alone, estimated.
    pub(crate) nanoseconds: f64,
}

/// What a candidate stores.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Form {
    /// Rows as they are.
    Dense,
    /// Short rows and a projection.
    LowRank { rank: usize },
    /// A tensor train of a dense table.
    Tt { shape: TtShape, sweeps: u32 },
    /// What the checkpoint has, as it is: a tensor train and so on.
    AsTrained { what: &'static str },
}

/// All candidates of a table.
pub(crate) struct Candidates {
    pub(crate) name: String,
    pub(crate) num_embeddings: u64,
    pub(crate) embedding_dim: usize,
    /// By bytes, ascending.
    pub(crate) list: Vec<Candidate>,
    /// Squared norm of the table, by frequency if there are any; its rows then weigh 1 on average.
    pub(crate) energy: f64,
    /// Rows that errors were measured on.
    pub(crate) rows_measured: usize,
    /// Whether these are all that weigh anything.
    pub(crate) complete: bool,
    /// Bytes of tensor trains, and what error they have at least: of shapes and ranks that were
    /// looked at, worth storing or not.
    pub(crate) trains: Vec<(u64, f64)>,
}

impl Candidates {
    /// What the table takes as f32 rows.
    pub(crate) fn f32_bytes(&self) -> f64 {
        f32_bytes(self.num_embeddings, self.embedding_dim)
    }
}

/// What a table of this size takes as f32 rows.
pub(crate) fn f32_bytes(num_embeddings: u64, embedding_dim: usize) -> f64 {
    num_embeddings as f64 * Dtype::F32.row_len(embedding_dim) as f64
}

/// What the makers of candidates share.
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
        nanoseconds: f64,
    ) -> Result<Candidate> {
        let found = TableSpec { dtype: Some(weights.dtype()), ..self.found.clone() };
        let spec = match &representation {
            Form::Dense | Form::AsTrained { .. } => found,
            Form::LowRank { rank } => TableSpec {
                representation: Some(spec::Representation::LowRank),
                rank: Some(u32::try_from(*rank)?),
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
        // As `verify` says it of a table of zeros.
        (squared_error.max(0.0) / if self.energy > 0.0 { self.energy } else { 1.0 }).sqrt()
    }
}

/// What a table adds to a blob, rounded up to whole lines of its alignment.
pub(super) fn bytes(table: &ttrec::blob::TableSpec) -> Result<u64> {
    Ok(Layout::new(std::slice::from_ref(table))?.total_len() - head_bytes()?)
}

/// What a blob takes without any table.
pub(super) fn head_bytes() -> Result<u64> {
    Ok(Layout::new(&[])?.total_len())
}

/// How many rows of so many columns are held.
pub(super) fn most_rows(columns: usize, options: &Search<'_>) -> usize {
    let elements = MOST_ELEMENTS.min(options.memory / 16);
    usize::try_from(elements / columns as u64).unwrap_or(usize::MAX).max(1024)
}
