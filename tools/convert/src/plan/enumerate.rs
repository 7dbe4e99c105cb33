//! All candidates of a table.

use super::{
    as_trained,
    candidate::{Candidate, Candidates, Context, Form, Search, most_rows},
    choose::{Item, front},
    codes, cost, low_rank,
    sample::{Sample, squared_norm},
    tensor_train,
};
use crate::{
    checkpoint::Checkpoint,
    dialect::{Source, Weights},
    factorize::Rows,
    progress::{Progress, Share, Step},
    spec::TableSpec,
};
use anyhow::{Context as _, Result};
use ttrec::{blob::WeightsSpec, dtype::Dtype};

/// The choices of a plan for a dense table with growing budgets: the candidates that no other beats
/// in bytes and error, by bytes.
pub(super) fn curve(
    name: &str,
    rows: &dyn Rows,
    memory: u64,
    progress: &dyn Progress,
    step: &Step<'_>,
) -> Result<Vec<Candidate>> {
    let options = Search { frequencies: None, memory, most_bytes: u64::MAX, progress, step };
    let list = of_dense(name, &TableSpec::default(), rows, &options)?.list;
    let item = |c: &Candidate| Item { bytes: c.bytes, error: c.error, nanoseconds: c.nanoseconds };
    let items: Vec<Item> = list.iter().map(item).collect();
    Ok(front(&items).into_iter().map(|at| list[at].clone()).collect())
}

/// All candidates of the table that `found` describes.
pub(crate) fn candidates(
    checkpoint: &Checkpoint,
    found: &TableSpec,
    options: &Search<'_>,
) -> Result<Candidates> {
    let source = Source::open(checkpoint, &TableSpec { dtype: Some(Dtype::F32), ..found.clone() })?;
    let place = || format!("{}: table {:?}", checkpoint.path().display(), source.name);
    match (&source.weights, source.hashed) {
        (Weights::Dense(rows), None) => {
            of_dense(&source.name, found, rows, options).with_context(place)
        }
        _ => as_trained::candidates(checkpoint, &source, found, options).with_context(place),
    }
}

/// All candidates of a dense table with these rows.
pub(super) fn of_dense(
    name: &str,
    found: &TableSpec,
    rows: &dyn Rows,
    options: &Search<'_>,
) -> Result<Candidates> {
    let (num_embeddings, embedding_dim) = (rows.num_embeddings(), rows.embedding_dim());
    let sample =
        Sample::draw(num_embeddings, most_rows(embedding_dim, options), options.frequencies);
    let values = sample.read(rows)?;
    let energy = sample.sum(&values, squared_norm);
    let context = Context { name, found, options, sample: &sample, values: &values, energy };

    let mut list = Vec::new();
    let (few, many) = (Search::UNITS / 10, Search::UNITS * 4 / 10);
    let share = Share::new(options.step, few);
    for (at, &dtype) in Dtype::ALL.iter().enumerate() {
        share.reach(at, Dtype::ALL.len());
        // Values that overflow rule this type out.
        let Some(error) = sample.coding_error(&values, embedding_dim, dtype)? else { continue };
        let weights = WeightsSpec::Dense { num_embeddings, embedding_dim, dtype };
        let nanoseconds = cost::dense(dtype.row_len(embedding_dim));
        list.push(context.candidate(Form::Dense, weights, error, nanoseconds)?);
    }
    drop(share);
    let share = Share::new(options.step, few);
    list.extend(low_rank::candidates(&context, rows, &share)?);
    drop(share);
    let share = Share::new(options.step, many);
    list.extend(codes::candidates(&context, rows, &share)?);
    drop(share);
    let share = Share::new(options.step, many);
    let (trains, bounds) = tensor_train::candidates(&context, rows, &list, &share)?;
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
