//! facebookresearch/dlrm: table t is `emb_l.{t}.weight`, rows by columns; or quotient-remainder
//! (`weight_q`, `weight_r`), or of mixed dimension (`embs.weight`, and `proj.weight` that widens
//! its rows; without one, they are as wide as the others).
//!
//! It stores neither how quotient and remainder rows are combined, nor the number of rows of such a
//! table: all pairs, unless the spec has a smaller number.

use super::{
    Dialect, Survey, TableRows, Weights, dense, model::natural, refuse, require, require_float,
};
use crate::{
    checkpoint::{Checkpoint, Tensor},
    spec::TableSpec,
};
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeSet;
use ttrec::repr::Combine;

pub(super) struct Dlrm;

impl Dialect for Dlrm {
    fn name(&self) -> &'static str {
        "dlrm"
    }

    fn detect(&self, survey: &mut Survey<'_>) {
        let (mut models, mut prefixes) = (BTreeSet::new(), BTreeSet::new());
        for tensor in survey.free() {
            if let Some((model, prefix)) = parse(tensor.name()) {
                survey.take(tensor.name());
                models.insert(model);
                prefixes.insert(prefix);
            }
        }
        // The weights of the MLPs and the optimizer's state of a table can look like tables.
        for tensor in survey.free() {
            let name = tensor.name();
            let of_a_model = ["bot_l.", "top_l."]
                .iter()
                .any(|part| model(name, part).is_some_and(|m| models.contains(m)));
            if of_a_model || !models.is_empty() && name.starts_with("opt_state_dict.") {
                survey.take(name);
            }
        }
        // In the order of the model.
        let mut prefixes: Vec<&str> = prefixes.into_iter().collect();
        prefixes.sort_by_cached_key(|prefix| natural(prefix));
        for prefix in prefixes {
            let spec = TableSpec { prefix: Some(prefix.to_owned()), ..TableSpec::default() };
            match Parts::of(survey.checkpoint, prefix) {
                Ok(_) => survey.offer(spec),
                Err(error) => survey.refuse(spec, error.to_string()),
            }
        }
    }

    fn open<'c>(&self, checkpoint: &'c Checkpoint, spec: &TableSpec) -> Result<Weights<'c>> {
        refuse(spec.tensor.is_some(), "tensor", self.name())?;
        let prefix = spec
            .prefix
            .as_deref()
            .context("`prefix` is missing: the table's, such as \"emb_l.0.\"")?;
        let weights = weights_of(prefix).and_then(|name| checkpoint.tensor(&name));
        let table = |tensor| {
            let rows = dense::table(checkpoint, tensor, self.name(), spec)?;
            weights.map_or(Ok(rows), |weights| rows.weighted(weights))
        };
        match Parts::of(checkpoint, prefix)? {
            Parts::Whole(tensor) => table(tensor).map(Weights::Dense),
            Parts::MixedDimension { rows, projection } => mixed_dimension(table(rows)?, projection),
            Parts::QuotientRemainder(tensors) => {
                if let Some(weights) = weights {
                    bail!(
                        "tensor {:?}: learned weights of the rows of a quotient-remainder table \
                         cannot be converted, because its rows share their parts",
                        weights.name()
                    );
                }
                quotient_remainder(checkpoint, tensors, spec)
            }
        }
    }
}

/// The name of the learned weights of a table's rows (`--weighted-pooling=learned`): `v_W_l.t` for
/// the prefix `emb_l.t.`.
fn weights_of(prefix: &str) -> Option<String> {
    let (model, table) = prefix.strip_suffix('.')?.rsplit_once("emb_l.")?;
    Some(format!("{model}v_W_l.{table}"))
}

/// The prefix of `part` in a tensor's name: empty, or the path of the model.
fn model<'n>(name: &'n str, part: &str) -> Option<&'n str> {
    name.find(part)
        .map(|at| &name[..at])
        .filter(|model| model.is_empty() || model.ends_with('.'))
}

/// The prefixes of the model and of the table that a tensor belongs to.
fn parse(name: &str) -> Option<(&str, &str)> {
    let model = model(name, "emb_l.")?;
    let (table, key) = name[model.len()..].strip_prefix("emb_l.")?.split_once('.')?;
    let number = !table.is_empty() && table.bytes().all(|b| b.is_ascii_digit());
    let known = ["weight", "weight_q", "weight_r", "embs.weight", "proj.weight"].contains(&key);
    (number && known).then(|| (model, &name[..name.len() - key.len()]))
}

/// The tensors of one table.
enum Parts<'c> {
    Whole(&'c Tensor),
    MixedDimension { rows: &'c Tensor, projection: &'c Tensor },
    QuotientRemainder([&'c Tensor; 2]),
}

impl<'c> Parts<'c> {
    fn of(checkpoint: &'c Checkpoint, prefix: &str) -> Result<Self> {
        let tensor = |key: &str| checkpoint.tensor(&format!("{prefix}{key}"));
        let require = |key: &str| require(checkpoint, &format!("{prefix}{key}"));
        if tensor("weight_q").is_some() || tensor("weight_r").is_some() {
            return Ok(Self::QuotientRemainder([require("weight_q")?, require("weight_r")?]));
        }
        if tensor("proj.weight").is_some() {
            return Ok(Self::MixedDimension {
                rows: require("embs.weight")?,
                projection: require("proj.weight")?,
            });
        }
        Ok(Self::Whole(tensor("embs.weight").map_or_else(|| require("weight"), Ok)?))
    }
}

/// Rows of `rank` columns, and a linear layer that widens them.
fn mixed_dimension<'c>(rows: TableRows<'c>, projection: &'c Tensor) -> Result<Weights<'c>> {
    let rank = rows.columns;
    require_float(projection)?;
    let (name, shape) = (projection.name(), projection.shape());
    let embedding_dim = match *shape {
        [columns, found] if found == rank as u64 => usize::try_from(columns).ok(),
        _ => None,
    };
    let embedding_dim = embedding_dim.with_context(|| {
        format!("tensor {name:?} has shape {shape:?}: expected embedding_dim x {rank}")
    })?;
    Ok(Weights::Projected { rows, embedding_dim, projection })
}

/// Row i combines row i / c of the quotients and row i mod c of the c remainders.
fn quotient_remainder<'c>(
    checkpoint: &'c Checkpoint,
    tensors: [&'c Tensor; 2],
    spec: &TableSpec,
) -> Result<Weights<'c>> {
    // The table's number of rows is not that of either tensor.
    let part = |tensor| {
        let spec = TableSpec { num_embeddings: None, ..spec.clone() };
        dense::table(checkpoint, tensor, "dlrm", &spec)
    };
    let parts = [part(tensors[0])?, part(tensors[1])?];
    let (rows, columns) = (parts.map(|part| part.num_rows), parts.map(|part| part.columns));
    let num_remainders = u32::try_from(rows[1]).ok().filter(|&rows| rows > 0);
    let num_remainders = num_remainders
        .with_context(|| format!("tensor {:?}: {} rows", tensors[1].name(), rows[1]))?;
    let combine = match (spec.qr_operation, columns[0] == columns[1]) {
        (Some(combine), _) => combine,
        // Only concatenated rows may differ in length.
        (None, false) => Combine::Concat,
        (None, true) => bail!(
            "`qr_operation` is missing: set it to \"mult\", \"add\" or \"concat\", or pass \
             --qr-operation (both parts have {} columns)",
            columns[0]
        ),
    };
    ensure!(
        combine == Combine::Concat || columns[0] == columns[1],
        "`qr_operation` is {:?}, but tensors {:?} and {:?} have {} and {} columns",
        combine.name(),
        tensors[0].name(),
        tensors[1].name(),
        columns[0],
        columns[1]
    );
    let most = rows[0]
        .checked_mul(rows[1])
        .context("the product of quotient and remainder rows is too large")?;
    let num_embeddings = spec.num_embeddings.unwrap_or(most);
    ensure!(
        num_embeddings.div_ceil(rows[1]) == rows[0],
        "`num_embeddings` is {num_embeddings}, but {} quotient and {} remainder rows fit {} to \
         {most}",
        rows[0],
        rows[1],
        most.saturating_sub(rows[1] - 1)
    );
    Ok(Weights::QuotientRemainder { num_embeddings, num_remainders, columns, combine, parts })
}
