//! `ttrec train`: a safetensors file whose metadata lists its tables, each in another dialect.

use super::{Dialect, Survey, Weights};
use crate::{checkpoint::Checkpoint, spec::TableSpec};
use anyhow::{Result, bail};
use serde::Deserialize;
use ttrec::dtype::Dtype;

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

impl TrainedTables {
    fn of(checkpoint: &Checkpoint) -> Option<Self> {
        let facts: Self = serde_json::from_str(checkpoint.metadata(FACTS)?).ok()?;
        Some(facts).filter(|facts| !facts.tables.is_empty())
    }
}

/// The type that `ttrec train` learned the values of a table in, if it wrote the checkpoint and
/// learned them in a type other than f32.
pub(crate) fn learned_dtype(checkpoint: &Checkpoint, table: &TableSpec) -> Option<Dtype> {
    let facts = TrainedTables::of(checkpoint)?;
    facts.tables.into_iter().find(|of| of.prefix == table.prefix)?.dtype
}

pub(super) struct Trained;

impl Dialect for Trained {
    fn name(&self) -> &'static str {
        "ttrec"
    }

    fn detect(&self, survey: &mut Survey<'_>) {
        if let Some(TrainedTables { tables, features }) = TrainedTables::of(survey.checkpoint) {
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
