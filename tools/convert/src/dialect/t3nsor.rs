//! t3nsor (`TTEmbedding`): `parameters.{k}` of `r_k x p_k x q_k x r_{k+1}`, core 0 most
//! significant.

use super::{Dialect, Survey, Weights, refuse, tltorch};
use crate::{checkpoint::Checkpoint, spec::TableSpec};
use anyhow::Result;

pub(super) struct T3nsor;

impl Dialect for T3nsor {
    fn name(&self) -> &'static str {
        "t3nsor"
    }

    fn detect(&self, survey: &mut Survey<'_>) {
        for (prefix, first) in survey.first_cores("parameters.0") {
            // Other programs use this name too; only here the first dimension is the rank 1.
            if let [1, _, _, _] = first.shape() {
                survey.take_numbered(&format!("{prefix}parameters."));
                // `TTLinear` has the same cores, and a bias.
                if !survey.take(&format!("{prefix}bias")) {
                    let prefix = Some(prefix.to_owned());
                    survey.offer(TableSpec { prefix, ..TableSpec::default() });
                }
            }
        }
    }

    fn open<'c>(&self, checkpoint: &'c Checkpoint, spec: &TableSpec) -> Result<Weights<'c>> {
        refuse(spec.table.is_some(), "table", self.name())?;
        tltorch::open(checkpoint, "parameters.", "t3nsor", self.name(), spec)
    }
}
