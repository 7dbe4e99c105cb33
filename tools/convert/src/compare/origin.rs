//! Finds the source of a blob's table in a checkpoint, by the spec or by name and shape.

use crate::{
    checkpoint::Checkpoint,
    dialect::{Source, Survey, Weights},
    error::Error,
    spec::{Combining, IndexMapping, Spec, TableSpec},
};
use anyhow::{Context, Result, anyhow, bail};
use ttrec::{
    DigitOrder, Table, TtShape,
    dtype::Dtype,
    repr::{self, Combine},
};

/// The table of the checkpoint that `table` was converted from.
///
/// # Errors
/// If `spec` has no such table, or without a spec if no table fits or several do.
pub fn origin<'c>(
    checkpoint: &'c Checkpoint,
    spec: Option<&Spec>,
    table: &Table<'_>,
) -> Result<Source<'c>, Error> {
    Ok(match spec {
        Some(spec) => by_spec(checkpoint, spec, table),
        None => by_shape(checkpoint, table),
    }?)
}

/// Whether the table is dense in the checkpoint, and a tensor train, low-rank or codes in the blob.
pub fn is_factorized(source: &Source<'_>, table: &Table<'_>) -> bool {
    may_be_factorized(table) && matches!(source.weights, Weights::Dense(_))
}

fn may_be_factorized(table: &Table<'_>) -> bool {
    use repr::Weights::{Codebook, Projected, Tt};
    matches!(table.data().weights(), Tt(_) | Projected(_) | Codebook(_))
}

fn by_spec<'c>(checkpoint: &'c Checkpoint, spec: &Spec, table: &Table<'_>) -> Result<Source<'c>> {
    let path = checkpoint.path().display();
    for candidate in &spec.tables {
        let source = Source::open(checkpoint, candidate)?;
        if source.name == table.name() {
            return if fits(&source, table) {
                Ok(source)
            } else {
                Err(anyhow!(
                    "{path}: table {:?}: its shape in the blob differs from that of the spec",
                    table.name()
                ))
            };
        }
    }
    bail!("{path}: table {:?} of the blob is not in the spec", table.name())
}

/// Finds the table of the same name in the checkpoint, or else the only one of the same shape.
fn by_shape<'c>(checkpoint: &'c Checkpoint, table: &Table<'_>) -> Result<Source<'c>> {
    let mut fitting: Vec<Source<'c>> = Vec::new();
    let found = Survey::of(checkpoint)
        .tables
        .into_iter()
        .chain(dense_by_name(checkpoint, table));
    // Prefer a table stored alike to a dense one that may have been factorised.
    let (as_is, dense): (Vec<_>, Vec<_>) = found
        .map(|found| (complete(found.clone(), table), before_factors(found, table)))
        .unzip();
    for spec in as_is.into_iter().chain(dense.into_iter().flatten()) {
        let same_name = spec.blob_name().as_deref() == Some(table.name());
        let spec = TableSpec { name: Some(table.name().to_owned()), ..spec };
        let Ok(source) = Source::open(checkpoint, &spec) else { continue };
        if !fits(&source, table) {
            continue;
        }
        if same_name {
            return Ok(source);
        }
        // Both ways may have found the same tensor.
        let first = |source: &Source<'_>| source.weights.tensors()[0].name().to_owned();
        if fitting.iter().all(|other| first(other) != first(&source)) {
            fitting.push(source);
        }
    }
    let path = checkpoint.path().display();
    match fitting.len() {
        1 => fitting.pop().context("one table fits"),
        0 => bail!(
            "{path}: no table of the checkpoint has the shape of {:?}: pass the --spec of the \
             conversion",
            table.name()
        ),
        n => bail!(
            "{path}: {n} tables of the checkpoint have the shape of {:?}: pass the --spec of the \
             conversion",
            table.name()
        ),
    }
}

/// The tensor with the name of the table, for tensors that do not look like tables.
fn dense_by_name(checkpoint: &Checkpoint, table: &Table<'_>) -> Option<TableSpec> {
    checkpoint
        .tensor(table.name())
        .map(|tensor| TableSpec { tensor: Some(tensor.name().to_owned()), ..TableSpec::default() })
}

/// Completes a found table with facts of the blob.
fn complete(found: TableSpec, table: &Table<'_>) -> TableSpec {
    let data = table.data();
    let hashed = matches!(data.index_map(), repr::IndexMap::Modulo);
    let facts = TableSpec {
        num_embeddings: Some(table.num_embeddings()),
        index_map: hashed.then_some(IndexMapping::Modulo),
        num_rows: hashed.then_some(data.num_rows()),
        dtype: Some(data.dtype()),
        ..found
    };
    match data.weights() {
        repr::Weights::Dense(_) | repr::Weights::Projected(_) => facts,
        repr::Weights::Codebook(codebook) => {
            let combine = match codebook.combine() {
                Combine::Concat => Combining::Concat,
                _ => Combining::Add,
            };
            // Dense tables that became codes have no such fact.
            let is_coded = facts.dialect.as_deref() == Some("codes");
            TableSpec { combine: is_coded.then_some(combine), ..facts }
        }
        repr::Weights::QuotientRemainder(parts) => {
            TableSpec { qr_operation: Some(parts.combine()), ..facts }
        }
        repr::Weights::Tt(tt) => {
            let shape = as_given(tt.shape());
            TableSpec {
                // Hetu's keys are EL-Rec's, but only Hetu's core 0 takes the least significant
                // digit.
                dialect: match (shape.digit_order(), facts.dialect.as_deref()) {
                    (DigitOrder::LeastSignificantFirst, Some("el-rec")) => Some("hetu".to_owned()),
                    _ => facts.dialect.clone(),
                },
                row_factors: Some(shape.row_factors().to_vec()),
                column_factors: Some(shape.column_factors().to_vec()),
                ranks: Some(shape.inner_ranks().to_vec()),
                ..facts
            }
        }
        _ => facts,
    }
}

/// A found table as a dense one, if the blob's table may be a factorisation of it.
fn before_factors(found: TableSpec, table: &Table<'_>) -> Option<TableSpec> {
    let data = table.data();
    let own_rows = !matches!(data.index_map(), repr::IndexMap::Modulo);
    (may_be_factorized(table) && own_rows).then_some(TableSpec { dtype: Some(Dtype::F32), ..found })
}

/// The shape before its cores were reversed, if they were.
fn as_given(stored: &TtShape) -> TtShape {
    match stored.column_order() {
        DigitOrder::MostSignificantFirst => *stored,
        DigitOrder::LeastSignificantFirst => stored.reversed().unwrap_or(*stored),
    }
}

fn fits(source: &Source<'_>, table: &Table<'_>) -> bool {
    let (weights, data) = (&source.weights, table.data());
    let same_kind = match (weights, data.weights()) {
        (Weights::Dense(_), repr::Weights::Dense(_)) => true,
        (Weights::Tt { shape, .. }, repr::Weights::Tt(tt)) => *shape == as_given(tt.shape()),
        (Weights::Projected { rows, .. }, repr::Weights::Projected(found)) => {
            rows.columns == found.rank()
        }
        (
            Weights::QuotientRemainder { num_remainders, combine, columns, .. },
            repr::Weights::QuotientRemainder(found),
        ) => {
            let found_columns =
                [found.quotients().embedding_dim(), found.remainders().embedding_dim()];
            (num_remainders, combine, columns)
                == (&found.num_remainders(), &found.combine(), &found_columns)
        }
        (Weights::Codebook(rows), repr::Weights::Codebook(found)) => {
            (rows.num_books, rows.book_len, rows.inner_dim, rows.combine)
                == (found.num_books(), found.book_len(), found.inner_dim(), found.combine())
                && rows.projection.is_some() == found.projection().is_some()
        }
        _ => is_factorized(source, table),
    };
    let same_map = source.hashed.is_some() == matches!(data.index_map(), repr::IndexMap::Modulo);
    let same_rows = source.hashed.is_none() || weights.num_embeddings() == data.num_rows();
    let same_size = source.num_embeddings() == table.num_embeddings()
        && weights.embedding_dim() == table.embedding_dim();
    same_kind && same_map && same_rows && same_size
}
