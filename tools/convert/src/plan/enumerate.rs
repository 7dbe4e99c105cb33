//! All candidates of a table.

use super::{
    as_trained,
    candidate::{Candidates, Context, Form, Search, most_rows},
    codes, low_rank,
    sample::{Sample, squared_norm},
    tensor_train,
};
use crate::{
    checkpoint::Checkpoint,
    dialect::{Source, Weights, learned_dtype},
    factorize::Rows,
    progress::Share,
    spec::TableSpec,
};
use anyhow::{Context as _, Result};
use ttrec::{blob::WeightsSpec, dtype::Dtype};

/// All candidates of the table that `found` describes.
pub(crate) fn candidates(
    checkpoint: &Checkpoint,
    found: &TableSpec,
    options: &Search<'_>,
) -> Result<Candidates> {
    let source = Source::open(checkpoint, &TableSpec { dtype: Some(Dtype::F32), ..found.clone() })?;
    let place = || format!("{}: table {:?}", checkpoint.path().display(), source.name);
    let all = match (&source.weights, source.hashed) {
        (Weights::Dense(rows), None) => of_dense(&source.name, found, rows, options),
        _ => as_trained::candidates(checkpoint, &source, found, options),
    };
    let mut all = all.with_context(place)?;
    // Values that were learned in a type gain nothing from more bytes than they have in it.
    let learned = learned_dtype(checkpoint, found).and_then(|dtype| {
        let is_plain = |form: &Form| matches!(form, Form::Dense | Form::AsTrained { .. });
        all.list.iter().find(|of| of.dtype == dtype && is_plain(&of.representation))
    });
    let most = learned.map_or(u64::MAX, |candidate| candidate.bytes);
    all.list.retain(|candidate| candidate.bytes <= most);
    Ok(all)
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
        list.push(context.candidate(Form::Dense, weights, error)?);
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
