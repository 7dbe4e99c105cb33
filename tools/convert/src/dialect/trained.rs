//! `ttrec train`: a safetensors file whose metadata lists its tables, each in another dialect.

use super::{Dialect, Survey, Weights};
use crate::{checkpoint::Checkpoint, spec::TableSpec};
use anyhow::{Result, bail};
use serde::Deserialize;

/// The key of the metadata entry, a JSON object.
pub const FACTS: &str = "ttrec";

/// The fields of the object that a converter needs.
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
            "do not set `dialect = \"ttrec\"`: checkpoints of `ttrec train` record the dialect \
             of each table"
        )
    }
}
