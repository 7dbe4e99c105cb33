//! facebookresearch/dlrm: table t is `emb_l.{t}.weight`, rows by columns. Two other kinds are recognised but not converted:
//! quotient-remainder (`weight_q`, `weight_r`) and mixed-dimension (`embs.weight`, and `proj.weight` that widens its rows;
//! without one, the rows are already as wide as the others).

use super::{Dialect, Survey, Weights, dense, refuse, require};
use crate::{
    checkpoint::{Checkpoint, Tensor},
    spec::TableSpec,
};
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;

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
        // Weights of the two perceptrons, and what the optimizer keeps for each table, can look like tables.
        for tensor in survey.free() {
            let name = tensor.name();
            let of_a_model =
                ["bot_l.", "top_l."].iter().any(|part| model(name, part).is_some_and(|m| models.contains(m)));
            if of_a_model || !models.is_empty() && name.starts_with("opt_state_dict.") {
                survey.take(name);
            }
        }
        for prefix in prefixes {
            let spec = TableSpec { prefix: Some(prefix.to_owned()), ..TableSpec::default() };
            match table(survey.checkpoint, prefix) {
                Ok(_) => survey.offer(spec),
                Err(error) => survey.refuse(spec, error.to_string()),
            }
        }
    }

    fn open<'c>(&self, checkpoint: &'c Checkpoint, spec: &TableSpec) -> Result<Weights<'c>> {
        refuse(spec.tensor.is_some(), "tensor", self.name())?;
        let prefix = spec.prefix.as_deref().context("`prefix` is missing: the table's, such as \"emb_l.0.\"")?;
        dense::table(table(checkpoint, prefix)?, self.name(), spec)
    }
}

/// What stands before `part` in a tensor's name: nothing, or the path of the model.
fn model<'n>(name: &'n str, part: &str) -> Option<&'n str> {
    name.find(part).map(|at| &name[..at]).filter(|model| model.is_empty() || model.ends_with('.'))
}

/// The prefixes of the model and of the table that a tensor belongs to.
fn parse(name: &str) -> Option<(&str, &str)> {
    let model = model(name, "emb_l.")?;
    let (table, key) = name[model.len()..].strip_prefix("emb_l.")?.split_once('.')?;
    let number = !table.is_empty() && table.bytes().all(|b| b.is_ascii_digit());
    let known = ["weight", "weight_q", "weight_r", "embs.weight", "proj.weight"].contains(&key);
    (number && known).then(|| (model, &name[..name.len() - key.len()]))
}

/// The tensor that is the whole table.
fn table<'c>(checkpoint: &'c Checkpoint, prefix: &str) -> Result<&'c Tensor> {
    let tensor = |key: &str| checkpoint.tensor(&format!("{prefix}{key}"));
    if tensor("weight_q").is_some() || tensor("weight_r").is_some() {
        bail!(
            "{prefix:?} is a quotient-remainder table (`weight_q` and `weight_r`): these cannot be converted yet, as a blob \
             has no form for them"
        );
    }
    if tensor("proj.weight").is_some() {
        bail!(
            "{prefix:?} is a mixed-dimension table (`embs.weight` and `proj.weight`): these cannot be converted yet, as a \
             blob has no form for them"
        );
    }
    tensor("embs.weight").map_or_else(|| require(checkpoint, &format!("{prefix}weight")), Ok)
}
