//! `--judge`: what the model of a plan loses on examples.

use super::positive;
use crate::{
    bags_file::BagOptions,
    blob_file,
    data::{Batch, Dataset, Split, Vocabulary},
    progress::Bar,
    rows_file::{ensure_same, score_pass},
    samples::Samples,
    score::score,
    train::{OutputDirectory, Scores, TrainCheckpoint, WhichSplit, rank_stored},
};
use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use std::{
    cell::OnceCell,
    path::{Path, PathBuf},
};
use ttrec::{AlignedBuf, Blob, Ranker};
use ttrec_convert::{Checkpoint, Options, Spec, convert, zeros};

#[derive(clap::Args)]
#[command(next_help_heading = "Judging whole models")]
pub(super) struct JudgeOptions {
    /// Measure this metric of the whole model on examples: those of the run of `ttrec train`, or
    /// those of --samples or --data
    #[arg(long, value_name = "METRIC",
        conflicts_with_all = ["max_auc_loss", "max_logloss_increase"])]
    judge: Option<Metric>,
    /// How much worse the metric may get than with everything as f32: `plan` makes the smallest
    /// blob within this and all other bounds
    #[arg(long, value_name = "E", requires = "judge", value_parser = positive,
        allow_negative_numbers = true)]
    max_loss: Option<f64>,
    /// Short for --judge auc --max-loss E
    #[arg(long, value_name = "E", value_parser = positive, allow_negative_numbers = true,
        conflicts_with = "max_logloss_increase")]
    max_auc_loss: Option<f64>,
    /// Short for --judge log-loss --max-loss E
    #[arg(long, value_name = "E", value_parser = positive, allow_negative_numbers = true)]
    max_logloss_increase: Option<f64>,
    /// Samples in the format of `ttrec score`, with an array `label`, which has a number from 0 to
    /// 1 for each
    #[arg(long, value_name = "FILE.npz", conflicts_with_all = ["data", "data_dir", "split"])]
    samples: Option<PathBuf>,
    /// Files in the format of the data that `ttrec train` learned from
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["data_dir", "split"])]
    data: Vec<PathBuf>,
    /// Directory that relative paths in the config of `ttrec train` start from [default: the
    /// current directory]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The split of that config [default: valid if there is one, otherwise test]
    #[arg(long, value_enum)]
    split: Option<WhichSplit>,
    #[command(flatten)]
    bags: BagOptions,
}

/// What gets worse.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub(super) enum Metric {
    /// The probability that an example labelled 1 scores above one labelled 0
    Auc,
    /// The mean binary cross-entropy
    LogLoss,
    /// The share of a context's items that are among the best 20 of all items
    #[value(name = "recall@20")]
    Recall,
}

impl Metric {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Auc => "auc",
            Self::LogLoss => "log-loss",
            Self::Recall => "recall@20",
        }
    }
}

/// The examples to judge by.
enum Source<'o> {
    Samples {
        path: &'o Path,
        bags: &'o BagOptions,
        /// Read with the first model, which says what a file has to have.
        read: OnceCell<(Samples, Vec<f32>)>,
    },
    Split {
        dataset: Box<dyn Dataset + Sync>,
        split: Split,
        vocabulary: PathBuf,
    },
}

pub(super) struct Examples<'o> {
    pub(super) metric: Metric,
    pub(super) max_increase: Option<f64>,
    source: Source<'o>,
}

impl JudgeOptions {
    pub(super) fn inputs(&self) -> impl Iterator<Item = &Path> {
        self.samples.iter().chain(&self.data).map(PathBuf::as_path)
    }

    /// The examples; `None` if there is nothing to judge. `has_model` says whether the checkpoint
    /// has one.
    pub(super) fn open(&self, checkpoint: &Path, has_model: bool) -> Result<Option<Examples<'_>>> {
        let (metric, max_increase) = match *self {
            Self { judge: Some(metric), max_loss, .. } => (metric, max_loss),
            Self { max_auc_loss: Some(most), .. } => (Metric::Auc, Some(most)),
            Self { max_logloss_increase: Some(most), .. } => (Metric::LogLoss, Some(most)),
            _ => {
                ensure!(
                    self.inputs().next().is_none()
                        && self.data_dir.is_none()
                        && self.split.is_none()
                        && self.bags.are_default(),
                    "examples are for --judge: pass --judge METRIC too"
                );
                return Ok(None);
            }
        };
        ensure!(
            has_model,
            "{}: --judge scores a model, but the checkpoint has only tables: name its layers in \
             the [model] of a --spec",
            checkpoint.display()
        );
        ensure!(
            self.samples.is_some() || self.bags.are_default(),
            "--padding-idx and --include-last-offset are for --samples"
        );
        let source = match &self.samples {
            Some(path) => {
                ensure!(
                    metric != Metric::Recall,
                    "--judge recall@20 ranks all items for the contexts of a split: --samples has \
                     no contexts"
                );
                Source::Samples { path, bags: &self.bags, read: OnceCell::new() }
            }
            None => self.split_of(checkpoint)?,
        };
        Ok(Some(Examples { metric, max_increase, source }))
    }

    fn split_of(&self, checkpoint: &Path) -> Result<Source<'_>> {
        let trained =
            TrainCheckpoint::open(checkpoint).context("--judge needs examples: pass --samples")?;
        let data_dir = trained.data_dir(self.data_dir.as_deref());
        let config = trained.facts.config;
        let path = OutputDirectory::of(checkpoint).vocabulary();
        let vocabulary = Vocabulary::read(&path)?;
        let dataset = if self.data.is_empty() {
            config.data.open(&data_dir, Some(vocabulary))?
        } else {
            config.data.open_files(self.data.clone(), vocabulary).context("--data")?
        };
        let split = match self.split {
            Some(split) => split.split(),
            None if self.data.is_empty() && dataset.has(Split::Valid) => Split::Valid,
            None => Split::Test,
        };
        Ok(Source::Split { dataset, split, vocabulary: path })
    }
}

impl Examples<'_> {
    /// The loss of the model that `spec` converts to.
    pub(super) fn loss(
        &self,
        checkpoint: &Checkpoint,
        spec: &Spec,
        options: &Options<'_>,
    ) -> Result<f64> {
        let bytes = blob_in_memory(checkpoint, spec, options)?;
        let blob = Blob::parse(&bytes)?;
        let ranker = blob.ranker()?.with_tier(blob_file::tier()?);
        let scores = match &self.source {
            Source::Samples { path, bags, read } => {
                let (samples, labels) = match read.get() {
                    Some(read) => read,
                    None => {
                        let found = labelled(path, &ranker, bags)?;
                        read.get_or_init(|| found)
                    }
                };
                let logits =
                    score(&ranker, samples, true).with_context(|| samples.path().to_owned())?;
                Scores { logits, labels: labels.clone() }
            }
            Source::Split { dataset, split, vocabulary } => {
                ensure_same(&**dataset, &ranker, vocabulary)?;
                if self.metric == Metric::Recall {
                    let ranking = rank_stored(&ranker, &**dataset, *split)?;
                    return Ok(1.0 - ranking.recall_20);
                }
                scored(&ranker, &**dataset, *split)?
            }
        };
        let quality = scores.quality();
        Ok(match self.metric {
            Metric::LogLoss => quality.log_loss,
            _ => 1.0 - quality.auc.context("AUC needs examples of both labels")?,
        })
    }
}

/// The blob that `spec` converts to.
pub(crate) fn blob_in_memory(
    checkpoint: &Checkpoint,
    spec: &Spec,
    options: &Options<'_>,
) -> Result<AlignedBuf> {
    let conversion = convert(checkpoint, spec, options, &())?;
    let (needed, memory) = (conversion.total_len(), options.memory);
    ensure!(
        needed <= memory,
        "the memory limit of {memory} bytes is too small: a blob to judge takes {needed}"
    );
    Ok(conversion.to_blob()?)
}

/// The samples of a file and their labels.
fn labelled(path: &Path, ranker: &Ranker<'_>, bags: &BagOptions) -> Result<(Samples, Vec<f32>)> {
    let samples = Samples::read(path, ranker, bags)?;
    let file = Checkpoint::open(path)?;
    let place = path.display();
    let array = file.find("label")?.with_context(|| {
        format!("{place}: array \"label\" is missing: --judge needs a number for each sample")
    })?;
    let (found, expected) = (array.len(), samples.count(ranker)? as u64);
    ensure!(
        found == expected,
        "{place}: \"label\" has {found} numbers: expected {expected}, one for each sample"
    );
    let mut labels = zeros(usize::try_from(found)?)?;
    array.read_f32(0, &mut labels)?;
    if let Some(at) = labels.iter().position(|label| !(0.0..=1.0).contains(label)) {
        bail!("{place}: \"label\" of sample {at} is {}: expected 0 to 1", labels[at]);
    }
    Ok((samples, labels))
}

/// The scores of a split by the model of a blob.
pub(crate) fn scored(ranker: &Ranker<'_>, dataset: &dyn Dataset, split: Split) -> Result<Scores> {
    let mut pass = dataset.pass(split, 0)?;
    let mut labels = Vec::new();
    let each = |batch: &Batch| labels.extend_from_slice(&batch.labels);
    let logits = score_pass(&mut *pass, ranker, true, &Bar::hidden(), each)?;
    ensure!(!logits.is_empty(), "the {} split has no examples", split.name());
    if let Some(at) = labels.iter().position(|label| label.is_nan()) {
        bail!("example {at} has no label: --judge needs one for each");
    }
    Ok(Scores { logits, labels })
}
