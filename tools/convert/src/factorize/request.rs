//! The factorisation that a spec requests for a dense table: a tensor train, a low-rank product or
//! codes.

use super::{
    Factors, Job, Limits, LowRank, Rows, TtSvd,
    codes::{Codebooks, Learner, ROWS_PER_ENTRY, Shape},
    order::{Order, Ordered},
    suggest_shape,
};
use crate::spec::{Combining, Representation, RowOrder, TableSpec};
use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use std::ops::RangeInclusive;
use ttrec::{
    TtShape,
    limits::{MAX_BOOK_LEN, MAX_NUM_BOOKS},
};

/// The default of `sweeps`: the first refinement brings most of the gain.
pub(crate) const DEFAULT_SWEEPS: u32 = 1;
/// The default of `bits`: a code is a byte.
const DEFAULT_BITS: u32 = 8;
/// The most entries of all books together that are added: their products with each other are held
/// in memory.
const MAX_ADDED: usize = 1 << 13;
/// The bits that a code can have.
const BITS: RangeInclusive<u32> = 4..=MAX_BOOK_LEN.ilog2();

/// A checked request.
#[derive(Clone, Debug, Serialize)]
pub(crate) enum Request {
    /// A tensor train.
    Tt {
        row_order: Option<RowOrder>,
        row_factors: Vec<u32>,
        column_factors: Vec<u32>,
        ranks: Option<Vec<u32>>,
        target: Target,
        sweeps: u32,
    },
    /// Short rows and a projection.
    LowRank { target: Target },
    /// Codes.
    Codes(Shape),
}

/// The limits of a factorisation; at least one is set.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Target {
    /// The largest rank.
    pub(crate) rank: Option<u32>,
    /// The largest relative error.
    pub(crate) tolerance: Option<f64>,
}

/// The result of a factorisation.
pub(crate) enum Factorized {
    /// Each core is its slices one after another; `places`, if the rows are reordered, has the row
    /// of each index.
    Tt { shape: TtShape, cores: Vec<Vec<f32>>, places: Option<Vec<u32>> },
    /// `basis` is `embedding_dim x rank`, row-major, its columns orthonormal.
    LowRank { rank: usize, basis: Vec<f32> },
    /// Books, of which no row is coded yet.
    Codes(Codebooks),
}

impl Request {
    /// The factorisation of a dense table that `spec` requests, if any.
    pub(crate) fn of_dense(
        spec: &TableSpec,
        num_embeddings: u64,
        embedding_dim: usize,
    ) -> Result<Option<Self>> {
        match spec.representation {
            None | Some(Representation::Dense) => {
                refuse(spec, "a table that stays dense")?;
                Ok(None)
            }
            Some(Representation::Tt) => tt(spec, num_embeddings, embedding_dim).map(Some),
            Some(Representation::LowRank) => low_rank(spec, embedding_dim).map(Some),
            Some(Representation::Codes) => codes(spec, embedding_dim).map(Some),
        }
    }

    /// Refuses a factorisation of a table that is not dense; `is` is its representation.
    pub(crate) fn of_factors(spec: &TableSpec, is: Representation) -> Result<()> {
        if let Some(other) = spec.representation.filter(|&requested| requested != is) {
            bail!(
                "`representation` is {other:?}, but the table is {is:?} in the checkpoint: only \
                 dense tables are factorised"
            );
        }
        refuse(spec, "a table that is not dense in the checkpoint")
    }

    /// The requested tolerance, if any.
    pub(crate) fn tolerance(&self) -> Option<f64> {
        match self {
            Self::Tt { target, .. } | Self::LowRank { target } => target.tolerance,
            Self::Codes(_) => None,
        }
    }

    /// Factorises `rows`; `weights`, one per row, say how much each row's error counts in the
    /// refinement.
    pub(crate) fn run(
        &self,
        rows: &dyn Rows,
        weights: Option<&[f32]>,
        job: &Job<'_>,
    ) -> Result<Factorized> {
        match self {
            Self::LowRank { target: Target { rank, tolerance } } => {
                let found = LowRank::analyse(rows, job)?;
                let within = tolerance.map_or(usize::MAX, |tolerance| found.rank_for(tolerance));
                let rank = within
                    .min(rank.map_or(usize::MAX, |rank| rank as usize))
                    .min(rows.embedding_dim());
                Ok(Factorized::LowRank { rank, basis: found.basis(rank) })
            }
            Self::Codes(shape) => {
                let learner =
                    Learner::new(rows, weights, shape.bits, ROWS_PER_ENTRY, shape.projected, job)?;
                learner.learn(shape, job).map(Factorized::Codes)
            }
            Self::Tt { row_order, row_factors, column_factors, ranks, target, sweeps } => {
                let order = row_order
                    .map(|order| Order::of(order, row_factors, rows, weights, job))
                    .transpose()?;
                let sorted = order
                    .as_ref()
                    .map(|order| (Ordered { rows, order }, weights.map(|w| order.sorted(w))));
                let (rows, weights) = match &sorted {
                    Some((rows, weights)) => (rows as &dyn Rows, weights.as_deref()),
                    None => (rows, weights),
                };
                let largest =
                    ranks.as_ref().and_then(|ranks| ranks.iter().max()).or(target.rank.as_ref());
                let limits = Limits {
                    max_rank: largest.map_or(usize::MAX, |&rank| rank as usize),
                    tolerance: target.tolerance,
                    job: *job,
                };
                let factors =
                    Factors { rows: row_factors.clone(), columns: column_factors.clone() };
                let found = TtSvd::analyse(rows, &factors, &limits)?;
                let within = || target.tolerance.and_then(|tolerance| found.ranks_for(tolerance));
                let ranks = ranks.clone().or_else(within).unwrap_or_else(|| found.max_ranks());
                let refined = found.refine(&ranks, rows, weights, *sweeps, &limits)?;
                let shape = TtShape::new(
                    rows.num_embeddings(),
                    row_factors,
                    column_factors,
                    &refined.ranks,
                )?;
                let places = order.map(|order| order.places());
                Ok(Factorized::Tt { shape, cores: refined.cores, places })
            }
        }
    }
}

fn refuse(spec: &TableSpec, what: &str) -> Result<()> {
    ensure!(
        spec.row_order.is_none(),
        "`row_order` does not apply to {what}, only to dense tables with representation = \"tt\""
    );
    let given = [
        ("rank", spec.rank.is_some()),
        ("tolerance", spec.tolerance.is_some()),
        ("sweeps", spec.sweeps.is_some()),
    ];
    if let Some((field, _)) = given.iter().find(|(_, given)| *given) {
        bail!(
            "`{field}` does not apply to {what}: it needs representation = \"tt\" or \"low-rank\""
        );
    }
    refuse_codes(spec, what)
}

/// Refuses the keys that only codes have.
fn refuse_codes(spec: &TableSpec, what: &str) -> Result<()> {
    let given = [
        ("books", spec.books.is_some()),
        ("bits", spec.bits.is_some()),
        ("combine", spec.combine.is_some()),
        ("rotation", spec.rotation.is_some()),
    ];
    match given.iter().find(|(_, given)| *given) {
        Some((field, _)) => {
            bail!("`{field}` does not apply to {what}: it needs representation = \"codes\"")
        }
        None => Ok(()),
    }
}

fn codes(spec: &TableSpec, embedding_dim: usize) -> Result<Request> {
    let given = [
        ("tolerance", spec.tolerance.is_some()),
        ("sweeps", spec.sweeps.is_some()),
        ("row_order", spec.row_order.is_some()),
        ("ranks", spec.ranks.is_some()),
        ("row_factors", spec.row_factors.is_some()),
        ("column_factors", spec.column_factors.is_some()),
    ];
    if let Some((field, _)) = given.iter().find(|(_, given)| *given) {
        bail!("`{field}` does not apply to \"codes\": set `books`, `bits` and `rank`");
    }
    let books = spec.books.context("`books` is missing: the number of codes of a row")? as usize;
    ensure!(
        (1..=MAX_NUM_BOOKS).contains(&books),
        "`books` is {books}: expected 1 to {MAX_NUM_BOOKS}"
    );
    let bits = spec.bits.unwrap_or(DEFAULT_BITS);
    ensure!(BITS.contains(&bits), "`bits` is {bits}: expected {} to {}", BITS.start(), BITS.end());
    let rank = spec.rank.map_or(embedding_dim, |rank| rank as usize);
    ensure!(
        (1..=embedding_dim).contains(&rank),
        "`rank` is {rank}: expected 1 to {embedding_dim}, the columns of the table"
    );
    ensure!(
        spec.rotation != Some(false) || spec.rank.is_none(),
        "`rank` needs a rotation: remove `rotation` or `rank`"
    );
    let projected = spec.rank.is_some() || spec.rotation == Some(true);
    let combine = spec.combine.unwrap_or(Combining::Concat);
    if combine == Combining::Concat {
        ensure!(
            books <= rank,
            "`books` is {books}: entries put end to end need a column each, and there are {rank}"
        );
        ensure!(
            projected || rank.is_multiple_of(books),
            "`books` is {books}: it must divide the {rank} columns of the table, or set \
             `rotation` to true"
        );
    }
    let entries = books.saturating_mul(1 << bits);
    ensure!(
        combine == Combining::Concat || entries <= MAX_ADDED,
        "`books` is {books}: with `bits` {bits} the books have {entries} entries, and entries that \
         are added can be at most {MAX_ADDED}"
    );
    Ok(Request::Codes(Shape { combine, books, bits, rank, projected }))
}

fn target(spec: &TableSpec) -> Result<Target> {
    if let Some(tolerance) = spec.tolerance {
        ensure!(
            tolerance > 0.0 && tolerance < 1.0,
            "`tolerance` is {tolerance}: expected more than 0 and less than 1"
        );
    }
    ensure!(spec.rank != Some(0), "`rank` is 0: expected at least 1");
    Ok(Target { rank: spec.rank, tolerance: spec.tolerance })
}

fn low_rank(spec: &TableSpec, embedding_dim: usize) -> Result<Request> {
    refuse_codes(spec, "\"low-rank\"")?;
    let target = target(spec)?;
    ensure!(
        spec.sweeps.is_none(),
        "`sweeps` does not apply to \"low-rank\": its error is already minimal"
    );
    ensure!(
        spec.row_order.is_none(),
        "`row_order` does not apply to \"low-rank\": it does not depend on the order of the rows"
    );
    ensure!(
        target.rank.is_some() || target.tolerance.is_some(),
        "`rank` or `tolerance` is missing"
    );
    if let Some(rank) = target.rank {
        ensure!(
            rank as usize <= embedding_dim,
            "`rank` is {rank}: the table has {embedding_dim} columns"
        );
    }
    Ok(Request::LowRank { target })
}

fn tt(spec: &TableSpec, num_embeddings: u64, embedding_dim: usize) -> Result<Request> {
    refuse_codes(spec, "\"tt\"")?;
    let target = target(spec)?;
    ensure!(
        spec.row_order.is_none() || spec.index_map.is_none(),
        "`row_order` does not apply to a hashed table: remove `row_order` or `index_map`"
    );
    ensure!(
        spec.ranks.is_some() || target.rank.is_some() || target.tolerance.is_some(),
        "`rank`, `ranks` or `tolerance` is missing"
    );
    ensure!(
        spec.ranks.is_none() || spec.rank.is_none(),
        "`rank` and `ranks` are both set: set one of them"
    );
    ensure!(
        spec.ranks.is_none() || spec.tolerance.is_none(),
        "`ranks` and `tolerance` are both set: set one of them"
    );
    let lengths = [&spec.row_factors, &spec.column_factors].map(|list| list.as_ref().map(Vec::len));
    let of_ranks = spec.ranks.as_ref().map(|ranks| ranks.len().saturating_add(1));
    let d = lengths.into_iter().chain([of_ranks]).flatten().next().unwrap_or(3);
    let suggested = suggest_shape(num_embeddings, embedding_dim, d)?;
    let row_factors = spec.row_factors.clone().unwrap_or(suggested.rows);
    let column_factors = spec.column_factors.clone().unwrap_or(suggested.columns);
    // Without ranks in the spec, check the shape with ranks of 1.
    let ranks = spec
        .ranks
        .clone()
        .unwrap_or_else(|| vec![1; row_factors.len().saturating_sub(1)]);
    let shape =
        TtShape::new(num_embeddings, &row_factors, &column_factors, &ranks).with_context(|| {
            format!(
                "`row_factors` {row_factors:?}, `column_factors` {column_factors:?}, ranks \
                 {ranks:?}"
            )
        })?;
    ensure!(
        shape.embedding_dim() == embedding_dim,
        "`column_factors` {column_factors:?} make {} columns: the table has {embedding_dim}",
        shape.embedding_dim()
    );
    let side = |cores: std::ops::Range<usize>| {
        cores.fold(1u64, |n, k| {
            n.saturating_mul(u64::from(row_factors[k]))
                .saturating_mul(column_factors[k].into())
        })
    };
    for (k, &rank) in ranks.iter().enumerate() {
        let most = side(0..k + 1).min(side(k + 1..row_factors.len()));
        ensure!(
            u64::from(rank) <= most,
            "`ranks` is {ranks:?}: rank {k} can be at most {most} for these factors"
        );
    }
    let sweeps = spec.sweeps.unwrap_or(DEFAULT_SWEEPS);
    let (row_order, ranks) = (spec.row_order, spec.ranks.clone());
    Ok(Request::Tt { row_order, row_factors, column_factors, ranks, target, sweeps })
}
