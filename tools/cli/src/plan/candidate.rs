//! Candidates: the ways to store a table that `convert` can write, each with its bytes, its error
//! and its time.

use super::{
    as_trained, cost, low_rank,
    sample::{Matrix, Sample, squared_norm},
    tensor_train,
};
use crate::{
    checkpoint::Checkpoint,
    dialect::{Source, Weights},
    factorize::{Rows, TensorRows},
    spec::{self, TableSpec},
};
use anyhow::{Context as _, Result};
use ttrec::{
    TtShape,
    blob::{Layout, WeightsSpec},
    dtype::Dtype,
};

/// What is held of a table at most, in elements, unless the memory is less: 64 MiB as f32.
const MOST_ELEMENTS: u64 = 16 << 20;

/// What bears on all candidates of a table.
pub(crate) struct Options<'o> {
    /// Rows that are asked for, ascending, and how often; all alike if there are none.
    pub(crate) frequencies: Option<&'o [(u64, f64)]>,
    /// Bytes to hold at most.
    pub(crate) memory: u64,
    /// More bytes are of no use.
    pub(crate) most_bytes: u64,
}

/// One way to store a table.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    /// What `convert` has to be told.
    pub(crate) spec: TableSpec,
    pub(crate) representation: Representation,
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
pub(crate) enum Representation {
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
    pub(super) options: &'c Options<'c>,
    pub(super) sample: &'c Sample,
    /// The rows of `sample`.
    pub(super) values: &'c Matrix,
    /// Their squared norm.
    pub(super) energy: f64,
}

impl Context<'_> {
    /// The candidate that is stored as `weights` and has this squared error on the sample.
    pub(super) fn candidate(
        &self,
        representation: Representation,
        weights: WeightsSpec,
        squared_error: f64,
        nanoseconds: f64,
    ) -> Result<Candidate> {
        let (WeightsSpec::Dense { dtype, .. }
        | WeightsSpec::Tt { dtype, .. }
        | WeightsSpec::Projected { dtype, .. }
        | WeightsSpec::QuotientRemainder { dtype, .. }) = weights;
        let found = TableSpec { dtype: Some(dtype), ..self.found.clone() };
        let spec = match &representation {
            Representation::Dense | Representation::AsTrained { .. } => found,
            Representation::LowRank { rank } => TableSpec {
                representation: Some(spec::Representation::LowRank),
                rank: Some(u32::try_from(*rank)?),
                ..found
            },
            Representation::Tt { shape, sweeps } => TableSpec {
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
            dtype,
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

/// Every way to store the table that `found` describes.
pub(crate) fn candidates(
    checkpoint: &Checkpoint,
    found: &TableSpec,
    options: &Options<'_>,
) -> Result<Candidates> {
    let source = Source::open(checkpoint, &TableSpec { dtype: Some(Dtype::F32), ..found.clone() })?;
    let place = || format!("{}: table {:?}", checkpoint.path().display(), source.name);
    match (&source.weights, source.hashed) {
        (Weights::Dense { tensor, .. }, None) => {
            of_dense(&source.name, found, &TensorRows::new(tensor)?, options).with_context(place)
        }
        _ => as_trained::candidates(checkpoint, &source, found, options).with_context(place),
    }
}

/// How many rows of so many columns are held.
pub(super) fn most_rows(columns: usize, options: &Options<'_>) -> usize {
    let elements = MOST_ELEMENTS.min(options.memory / 16);
    usize::try_from(elements / columns as u64).unwrap_or(usize::MAX).max(1024)
}

/// Every way to store a table of these rows.
pub(super) fn of_dense(
    name: &str,
    found: &TableSpec,
    rows: &dyn Rows,
    options: &Options<'_>,
) -> Result<Candidates> {
    let (num_embeddings, embedding_dim) = (rows.num_embeddings(), rows.embedding_dim());
    let sample =
        Sample::draw(num_embeddings, most_rows(embedding_dim, options), options.frequencies);
    let values = sample.read(rows)?;
    let energy = sample.sum(&values, squared_norm);
    let context = Context { name, found, options, sample: &sample, values: &values, energy };

    let mut list = Vec::new();
    for &dtype in Dtype::ALL {
        // Values that have no finite form in this type rule it out.
        let Some(error) = sample.coding_error(&values, embedding_dim, dtype)? else { continue };
        let weights = WeightsSpec::Dense { num_embeddings, embedding_dim, dtype };
        let nanoseconds = cost::dense(dtype.row_len(embedding_dim));
        list.push(context.candidate(Representation::Dense, weights, error, nanoseconds)?);
    }
    list.extend(low_rank::candidates(&context, rows)?);
    let (trains, bounds) = tensor_train::candidates(&context, rows, &list)?;
    list.extend(trains);
    list.sort_by_key(|candidate| candidate.bytes);
    let (rows_measured, complete) = (sample.ids.len(), sample.complete);
    Ok(Candidates {
        name: name.to_owned(),
        num_embeddings,
        embedding_dim,
        list,
        energy,
        rows_measured,
        complete,
        trains: bounds,
    })
}
