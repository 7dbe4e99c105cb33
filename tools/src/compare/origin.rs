//! Where in a checkpoint a blob's table came from: as the spec says, or else by what the blob knows of the table.

use crate::{
    checkpoint::Checkpoint,
    dialect::{Source, Survey, Weights, table_name},
    spec::{Spec, TableSpec},
};
use anyhow::{Context, Result, anyhow, bail};
use ttrec::{Table, blob};

/// The table of the checkpoint that `table` was converted from.
pub(crate) fn origin<'c>(checkpoint: &'c Checkpoint, spec: Option<&Spec>, table: &Table<'_>) -> Result<Source<'c>> {
    match spec {
        Some(spec) => by_spec(checkpoint, spec, table),
        None => by_shape(checkpoint, table),
    }
}

fn by_spec<'c>(checkpoint: &'c Checkpoint, spec: &Spec, table: &Table<'_>) -> Result<Source<'c>> {
    for candidate in &spec.tables {
        let source = Source::open(checkpoint, candidate)?;
        if source.name == table.name() {
            return if fits(&source.weights, table) {
                Ok(source)
            } else {
                Err(anyhow!("table {:?}: its shape in the blob is not the one of the spec", table.name()))
            };
        }
    }
    bail!("table {:?} of the blob is not in the spec", table.name())
}

/// Finds the table in the checkpoint by what the blob knows of it: the one of that name, else the only one of that shape;
/// tables of the same kind go before those that would have been made into it.
fn by_shape<'c>(checkpoint: &'c Checkpoint, table: &Table<'_>) -> Result<Source<'c>> {
    let (mut same_kind, mut others): (Vec<Source<'c>>, Vec<Source<'c>>) = (Vec::new(), Vec::new());
    for found in Survey::of(checkpoint).tables.into_iter().chain(dense_by_name(checkpoint, table)) {
        let same_name = table_name(&found).as_deref() == Some(table.name());
        let found = TableSpec {
            name: Some(table.name().to_owned()),
            num_embeddings: Some(table.num_embeddings()),
            dtype: Some(table.data().dtype()),
            ..found
        };
        let open = |spec: &TableSpec| Source::open(checkpoint, spec).ok();
        // A dense table has no use for the facts of a tensor train.
        let Some(source) = open(&complete(found.clone(), table)).or_else(|| open(&found)) else { continue };
        if !fits(&source.weights, table) {
            continue;
        }
        if same_name {
            return Ok(source);
        }
        if is_tt(&source.weights) == matches!(table.data().weights, blob::Weights::Tt(_)) {
            same_kind.push(source);
        } else {
            others.push(source);
        }
    }
    let path = checkpoint.path().display();
    let mut fitting = if same_kind.is_empty() { others } else { same_kind };
    match fitting.len() {
        1 => fitting.pop().context("one table fits"),
        0 => bail!("{path}: nothing there fits table {:?} of the blob: give --spec", table.name()),
        n => bail!("{path}: {n} tensors fit table {:?} of the blob: give --spec", table.name()),
    }
}

/// A tensor of the table's very name, should nothing about it look like a table.
fn dense_by_name(checkpoint: &Checkpoint, table: &Table<'_>) -> Option<TableSpec> {
    checkpoint
        .tensor(table.name())
        .map(|tensor| TableSpec { tensor: Some(tensor.name().to_owned()), ..TableSpec::default() })
}

/// A found table with the facts that the blob adds, the shape of its tensor train among them.
fn complete(found: TableSpec, table: &Table<'_>) -> TableSpec {
    match &table.data().weights {
        blob::Weights::Dense(_) => found,
        blob::Weights::Tt(tt) => TableSpec {
            row_factors: Some(tt.shape.row_factors().to_vec()),
            column_factors: Some(tt.shape.column_factors().to_vec()),
            ranks: Some(tt.shape.inner_ranks().to_vec()),
            ..found
        },
    }
}

/// A tensor train comes from itself, or from a dense table; a dense table from any.
fn fits(weights: &Weights<'_>, table: &Table<'_>) -> bool {
    let same_shape = match (weights, &table.data().weights) {
        (Weights::Tt { shape, .. }, blob::Weights::Tt(tt)) => *shape == tt.shape,
        _ => true,
    };
    same_shape && weights.num_embeddings() == table.num_embeddings() && weights.embedding_dim() == table.embedding_dim()
}

fn is_tt(weights: &Weights<'_>) -> bool {
    matches!(weights, Weights::Tt { .. })
}
