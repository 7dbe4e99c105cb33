//! `ttrec train`: a safetensors file whose metadata say what its tables are, each as another
//! dialect would find it.

use super::{Dialect, Survey, Weights};
use crate::{checkpoint::Checkpoint, spec::TableSpec};
use anyhow::{Result, bail};
use serde::Deserialize;

/// The entry of the metadata: a JSON object.
pub const FACTS: &str = "ttrec";

/// What of it concerns a converter.
#[derive(Deserialize)]
struct TrainedTables {
    tables: Vec<TableSpec>,
}

pub(super) struct Trained;

impl Dialect for Trained {
    fn name(&self) -> &'static str {
        "ttrec"
    }

    fn detect(&self, survey: &mut Survey<'_>) {
        let facts = survey
            .checkpoint
            .metadata(FACTS)
            .and_then(|text| serde_json::from_str::<TrainedTables>(text).ok());
        if let Some(TrainedTables { tables }) = facts.filter(|facts| !facts.tables.is_empty()) {
            survey.offer_all(tables);
        }
    }

    fn open<'c>(&self, _: &'c Checkpoint, _: &TableSpec) -> Result<Weights<'c>> {
        bail!(
            "`dialect` is \"ttrec\": such a checkpoint names the dialect of each table itself: \
             expected that one"
        )
    }
}
