//! Tables that were trained as tensor trains, projected, quotient-remainder or hashed tables. They
//! keep their representation, and only the stored type is chosen. Each type is measured as
//! `convert` writes it.

use super::{
    candidate::{Candidate, Candidates, Form, Search, bytes, most_rows},
    cost,
    sample::{Sample, squared_distance, squared_norm},
};
use crate::{checkpoint::Checkpoint, dialect::Source, progress::Share, sink, spec::TableSpec};
use anyhow::{Result, ensure};
use rayon::prelude::*;
use ttrec::{AlignedBuf, Blob, Table, blob::Layout, dtype::Dtype, repr::Weights};

/// Rows that one thread looks up at once.
const CHUNK: usize = 256;

/// The table, which is `source` as f32, in each stored type.
pub(super) fn candidates(
    checkpoint: &Checkpoint,
    source: &Source<'_>,
    found: &TableSpec,
    options: &Search<'_>,
) -> Result<Candidates> {
    let layout = source.layout();
    let (len, memory) = (Layout::new(std::slice::from_ref(&layout))?.total_len(), options.memory);
    // The table as f32, and in another type.
    ensure!(
        len.saturating_mul(2) <= memory,
        "the memory limit of {memory} bytes is too small: {} are needed",
        len.saturating_mul(2)
    );
    let exact = build(source)?;
    let exact = Blob::parse(&exact)?;
    let exact = exact.table(&source.name)?;
    let (num_embeddings, embedding_dim) = (exact.num_embeddings(), exact.embedding_dim());
    let sample =
        Sample::draw(num_embeddings, most_rows(embedding_dim, options), options.frequencies);
    let norm = |row: &[f32], _: &[f32]| squared_norm(row);
    let energy = sum(&sample, [&exact, &exact], norm)?;

    let mut list = Vec::new();
    let share = Share::new(options.step, Search::UNITS);
    for (at, &dtype) in Dtype::ALL.iter().enumerate() {
        share.reach(at, Dtype::ALL.len());
        let spec = TableSpec { dtype: Some(dtype), ..found.clone() };
        // Cores are never i4.
        let Ok(stored) = Source::open(checkpoint, &spec) else { continue };
        // The f32 table could be built: an error here means that values overflow this type.
        let Ok(blob) = build(&stored) else { continue };
        let blob = Blob::parse(&blob)?;
        let table = blob.table(&source.name)?;
        let error = sum(&sample, [&exact, &table], squared_distance)?;
        let layout = stored.layout();
        list.push(Candidate {
            spec,
            representation: Form::AsTrained { what: what(&table) },
            dtype,
            bytes: bytes(&layout)?,
            nanoseconds: cost::lookup(&layout.weights)?,
            layout,
            error: (error / if energy > 0.0 { energy } else { 1.0 }).sqrt(),
        });
    }
    list.sort_by_key(|candidate| candidate.bytes);
    let (name, trains) = (source.name.clone(), Vec::new());
    let (rows_measured, complete) = (sample.ids.len(), sample.complete);
    Ok(Candidates {
        name,
        num_embeddings,
        embedding_dim,
        list,
        energy,
        rows_measured,
        complete,
        trains,
    })
}

/// A blob of this table alone.
fn build(source: &Source<'_>) -> Result<AlignedBuf> {
    sink::build(Layout::new(&[source.layout()])?, |plan, sink| {
        source.write_section(plan, sink, &())
    })
}

/// The weighted sum of `of` over the rows of the sample in both tables.
fn sum(
    sample: &Sample,
    tables: [&Table<'_>; 2],
    of: impl Fn(&[f32], &[f32]) -> f64 + Sync,
) -> Result<f64> {
    let chunks: Vec<_> = sample.ids.chunks(CHUNK).zip(sample.weights.chunks(CHUNK)).collect();
    let sum = |&(ids, weights): &(&[u64], &[f64])| -> Result<f64> {
        let mut rows = tables.map(|table| vec![0.0; table.embedding_dim()]);
        let mut workspaces = tables.map(|table| vec![0.0; table.workspace_len(1)]);
        let mut sum = 0.0;
        for (&id, weight) in ids.iter().zip(weights) {
            for ((table, row), workspace) in tables.iter().zip(&mut rows).zip(&mut workspaces) {
                table.lookup(id, row, workspace)?;
            }
            sum += weight * of(&rows[0], &rows[1]);
        }
        Ok(sum)
    };
    // In the order of the rows, so that the number of threads does not matter.
    Ok(chunks.par_iter().map(sum).collect::<Result<Vec<_>>>()?.iter().sum())
}

/// What a table is, in words.
fn what(table: &Table<'_>) -> &'static str {
    match table.data().weights() {
        Weights::Dense(_) => "hashed rows",
        Weights::Tt(_) => "tensor train",
        Weights::Projected(_) => "projected rows",
        Weights::QuotientRemainder(_) => "quotient-remainder rows",
        Weights::Codebook(_) => "codes",
        other => other.name(),
    }
}
