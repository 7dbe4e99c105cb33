//! tensorly-torch (`FactorizedEmbedding`, blocktt): `weight.factors.factor_{k}` of `r_k x p_k x q_k
//! x r_{k+1}`, core 0 most significant, or of `r_k x tables x p_k x q_k x r_{k+1}` where
//! `from_embedding_list` put several tables into one set of factors. A `FactorizedLinear` has the
//! same keys, but usually also a `bias`. Factors of other decompositions (CP, Tucker) have the same
//! names, but not four dimensions.

use super::{Dialect, Survey, Weights, cores, refuse};
use crate::{checkpoint::Checkpoint, spec::TableSpec};
use anyhow::Result;

pub(super) struct Tltorch;

const STEM: &str = "weight.factors.factor_";

impl Dialect for Tltorch {
    fn name(&self) -> &'static str {
        "tltorch"
    }

    fn detect(&self, survey: &mut Survey<'_>) {
        for (prefix, first) in survey.first_cores(&format!("{STEM}0")) {
            survey.take_numbered(&format!("{prefix}{STEM}"));
            let spec = TableSpec { prefix: Some(prefix.to_owned()), ..TableSpec::default() };
            let bias = format!("{prefix}bias");
            if survey.take(&bias) {
                survey.refuse(
                    spec,
                    format!("tensor {bias:?} makes {prefix:?} a linear layer, not an embedding"),
                );
                continue;
            }
            match *first.shape() {
                [_, _, _, _] => survey.offer(spec),
                // `from_embedding_list`: several tables in one set of factors.
                [1, tables, _, _, _] => survey.offer_each(&spec, tables),
                _ => {
                    let (name, shape) = (first.name(), first.shape());
                    survey.refuse(
                        spec,
                        format!(
                            "tensor {name:?} has shape {shape:?}: of tensorly-torch, only blocktt \
                             can be converted"
                        ),
                    );
                }
            }
        }
    }

    fn open<'c>(&self, checkpoint: &'c Checkpoint, spec: &TableSpec) -> Result<Weights<'c>> {
        // Part of the error that asks for `num_embeddings`, because the keys may also be of a
        // linear layer.
        let program = "tensorly-torch (make sure that this is an embedding: a linear layer \
                       without bias has the same keys)";
        open(checkpoint, STEM, program, self.name(), spec)
    }
}

/// A table of cores `{stem}{k}` in four dimensions.
pub(super) fn open<'c>(
    checkpoint: &'c Checkpoint,
    stem: &str,
    program: &str,
    dialect: &str,
    spec: &TableSpec,
) -> Result<Weights<'c>> {
    refuse(spec.tensor.is_some(), "tensor", dialect)?;
    let stem = format!("{}{stem}", spec.prefix.as_deref().unwrap_or_default());
    let (shape, cores) = cores::open_blocks(checkpoint, &stem, [program, dialect], spec)?;
    Ok(Weights::Tt { shape, cores, overrides: None })
}
