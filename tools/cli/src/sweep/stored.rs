//! What a trained model is worth in a smaller blob: `stored` of a sweep.

use crate::{
    blob_file,
    data::{Dataset, Split},
    plan::{blob_in_memory, scored},
    train::{Quality, TrainReport, rank_stored},
};
use anyhow::{Result, anyhow};
use std::{collections::BTreeMap, path::Path};
use ttrec::Blob;
use ttrec_convert::{
    Checkpoint, Options, Spec,
    plan::{self, Bounds},
};

/// A report for each budget, or the reason why there is none.
pub(super) type Reports = BTreeMap<String, Result<TrainReport, String>>;

/// Stores the model of a checkpoint within each budget, as `ttrec plan` and `ttrec convert` do, and
/// evaluates the blobs. `ranks` says whether all items are ranked too.
pub(super) fn reports(
    checkpoint: &Path,
    budgets: &[String],
    dataset: &dyn Dataset,
    trained: &TrainReport,
    ranks: bool,
) -> Result<Reports> {
    if budgets.is_empty() {
        return Ok(Reports::new());
    }
    let checkpoint = Checkpoint::open(checkpoint)?;
    let spec = plan::detect(&checkpoint)?;
    let report = |budget: &String| {
        let report = report(&checkpoint, &spec, budget, dataset, trained, ranks);
        (budget.clone(), report.map_err(|reason| format!("{reason:#}")))
    };
    Ok(budgets.iter().map(report).collect())
}

fn report(
    checkpoint: &Checkpoint,
    spec: &Spec,
    budget: &str,
    dataset: &dyn Dataset,
    trained: &TrainReport,
    ranks: bool,
) -> Result<TrainReport> {
    let options = Options::default();
    let bounds = Bounds {
        budget: Some(budget.parse().map_err(|reason: String| anyhow!(reason))?),
        max_error: None,
        max_nanoseconds: None,
        frequencies: None,
        judge: None,
        memory: options.memory,
    };
    let plan = plan::plan(checkpoint, spec, &bounds, &())?;
    let bytes = blob_in_memory(checkpoint, &plan.spec(), &options)?;
    let blob = Blob::parse(&bytes)?;
    let ranker = blob.ranker()?.with_tier(blob_file::tier()?);
    let quality = |split: Split| -> Result<Option<Quality>> {
        if !dataset.has(split) {
            return Ok(None);
        }
        let ranking = if ranks && dataset.queries(split).is_some() {
            Some(rank_stored(&ranker, dataset, split)?)
        } else {
            None
        };
        Ok(Some(Quality { ranking, ..scored(&ranker, dataset, split)?.quality() }))
    };
    Ok(TrainReport {
        bytes: [plan.tables.iter().map(|table| table.chosen.bytes).sum(), trained.bytes[1]],
        epoch: trained.epoch,
        valid: quality(Split::Valid)?,
        test: quality(Split::Test)?,
    })
}
