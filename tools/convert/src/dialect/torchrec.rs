//! TorchRec (`EmbeddingBagCollection`): the table called NAME is `...embedding_bags.NAME.weight`,
//! rows by columns.

use super::{Dialect, Model, Survey, Weights, dense, model::natural, refuse, require};
use crate::{
    checkpoint::{Checkpoint, ElementType, Tensor},
    spec::{ModelSpec, TableSpec},
};
use anyhow::{Context, Result, ensure};

pub(super) struct Torchrec;

/// The names of dense layers in TorchRec's models (DLRM, DeepFM) and in its `MLP`.
const PERCEPTRONS: [&str; 6] =
    ["dense_arch", "inter_arch", "over_arch", "_mlp", "bottom_mlp", "top_mlp"];

impl Dialect for Torchrec {
    fn name(&self) -> &'static str {
        "torchrec"
    }

    fn detect(&self, survey: &mut Survey<'_>) {
        let mut found = false;
        // The model takes its tables in the order of its configuration, which is the order of the
        // file. Where the file has lost it, the order of the tables' numbers is a guess.
        let mut tensors = survey.free();
        let is_table = |tensor: &&&Tensor| parse(tensor.name()).is_some();
        let names = |tensors: &[&Tensor]| -> Vec<String> {
            tensors.iter().filter(is_table).map(|tensor| tensor.name().to_owned()).collect()
        };
        let by_text = names(&tensors);
        if survey.is_ordered() {
            survey.sort(&mut tensors);
        } else {
            tensors.sort_by_cached_key(|tensor| natural(tensor.name()));
            let is_torchrec = |model: &ModelSpec| model.dialect.as_deref() == Some(self.name());
            let has_model = Model::detect(survey.checkpoint).iter().any(is_torchrec);
            if has_model && names(&tensors) != by_text {
                let reason = format!(
                    "the file sorts its tensors by name, so that it has lost the order of the \
                     model's {} tables: list them in a spec, in the order of the model's \
                     configuration",
                    by_text.len()
                );
                survey.refuse(TableSpec::default(), reason);
            }
        }
        for tensor in tensors {
            if let Some((prefix, name)) = parse(tensor.name()) {
                survey.take(tensor.name());
                for part in ["_qscale", "_qbias"] {
                    survey.take(&format!("{}{part}", tensor.name()));
                }
                let (name, prefix) = (Some(name.to_owned()), Some(prefix.to_owned()));
                survey.offer(TableSpec { name, prefix, ..TableSpec::default() });
                found = true;
            }
        }
        // The weights of the MLPs can look like tables.
        let of_an_mlp =
            |tensor: &&Tensor| tensor.name().split('.').any(|part| PERCEPTRONS.contains(&part));
        for tensor in survey.free().into_iter().filter(|tensor| found && of_an_mlp(tensor)) {
            survey.take(tensor.name());
        }
    }

    fn open<'c>(&self, checkpoint: &'c Checkpoint, spec: &TableSpec) -> Result<Weights<'c>> {
        refuse(spec.tensor.is_some(), "tensor", self.name())?;
        let prefix = spec.prefix.as_deref();
        let prefix = prefix
            .context("`prefix` is missing: the table's, such as \"embedding_bags.t_cat_0.\"")?;
        let tensor = require(checkpoint, &format!("{prefix}weight"))?;
        let name = tensor.name();
        ensure!(
            tensor.element_type() != ElementType::U8
                || checkpoint.find(&format!("{name}_qscale"))?.is_some(),
            "tensor {name:?} is u8, without {name}_qscale: rows of torchrec.quant begin with their \
             scale and end with padding, so that their columns are not known: call \
             quant_prep_enable_quant_state_dict_split_scale_bias on the module before it is \
             quantised, and save clones of its tensors"
        );
        dense::table(checkpoint, tensor, self.name(), spec).map(Weights::Dense)
    }
}

/// The prefix and the name of the table that a tensor is.
fn parse(tensor: &str) -> Option<(&str, &str)> {
    let prefix = tensor.strip_suffix("weight")?;
    let (path, table) = prefix.strip_suffix('.')?.rsplit_once("embedding_bags.")?;
    let whole =
        (path.is_empty() || path.ends_with('.')) && !table.is_empty() && !table.contains('.');
    whole.then_some((prefix, table))
}
