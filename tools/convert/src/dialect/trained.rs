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
    /// The table of each categorical feature, by name; empty if feature i has table i.
    #[serde(default)]
    features: Vec<String>,
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
        let facts = facts.filter(|facts| !facts.tables.is_empty());
        if let Some(TrainedTables { tables, features }) = facts {
            survey.offer_all(tables, features);
        }
    }

    fn open<'c>(&self, _: &'c Checkpoint, _: &TableSpec) -> Result<Weights<'c>> {
        bail!(
            "do not set `dialect = \"ttrec\"`: checkpoints of `ttrec train` record the dialect \
             of each table"
        )
    }
}
