//! `ttrec eval`: evaluates the model of a checkpoint.

use super::{
    OutputDirectory,
    checkpoint::TrainCheckpoint,
    learn::{Scored, build, score, unknown_line, warn_of_unknown},
    metrics::Quality,
    ranking::rank,
};
use crate::{
    catalogue::threads,
    data::{Batch, Split, Vocabulary},
    outcome::Outcome,
    output,
};
use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde::Serialize;
use std::{collections::BTreeMap, path::PathBuf};

/// Evaluate a trained model: AUC, log-loss, accuracy and calibration.
///
/// If the data are interactions or sessions, it also ranks all items for each context (a user, or
/// the items of a session so far), without the items that the context already has, and prints
/// recall and NDCG at 10 and 20.
///
/// A checkpoint of `ttrec train` records its model and its data. `vocabulary.csv` must be in the
/// same directory.
#[derive(clap::Args)]
pub(crate) struct EvalArgs {
    /// checkpoint.safetensors or best.safetensors
    checkpoint: PathBuf,
    /// Test files to use instead of the config's; without labels there are no metrics
    #[arg(long, value_name = "FILE", num_args = 1..)]
    data: Vec<PathBuf>,
    /// Directory that relative paths in the config start from [default: as in training]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The split to evaluate on
    #[arg(long, value_enum, default_value = "test")]
    split: WhichSplit,
    /// Threads to score with
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: u16,
    /// Also write the examples, in the format of `ttrec score`, with `label` and the model's `prob`
    #[arg(long, value_name = "FILE.npz")]
    samples: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A split, on the command line.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum WhichSplit {
    /// The test split
    Test,
    /// The validation split
    Valid,
    /// The training split
    Train,
}

impl WhichSplit {
    pub(crate) fn split(self) -> Split {
        match self {
            Self::Test => Split::Test,
            Self::Valid => Split::Valid,
            Self::Train => Split::Train,
        }
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Evaluation<'u> {
    /// `None` without labels.
    #[serde(flatten)]
    quality: Option<Quality>,
    /// The share of unknown values of each column.
    unknown: BTreeMap<&'u str, f64>,
}

pub(crate) fn evaluate(args: &EvalArgs) -> Result<Outcome> {
    let checkpoint = TrainCheckpoint::open(&args.checkpoint)?;
    let place = || args.checkpoint.display().to_string();
    evaluate_checkpoint(args, &checkpoint).with_context(place)
}

fn evaluate_checkpoint(args: &EvalArgs, checkpoint: &TrainCheckpoint) -> Result<Outcome> {
    let config = &checkpoint.facts.config;
    let beside = OutputDirectory::of(&args.checkpoint);
    let vocabulary = Vocabulary::read(&beside.vocabulary())?;
    let split = args.split.split();
    ensure!(
        args.data.is_empty() || split == Split::Test,
        "--data can only be used with --split test"
    );
    let dataset = if args.data.is_empty() {
        config
            .data
            .open(&checkpoint.data_dir(args.data_dir.as_deref()), Some(vocabulary))?
    } else {
        config
            .data
            .clone()
            .open_files(args.data.clone(), vocabulary)
            .context("--data")?
    };
    let (mut model, mut tables) = build(config, &*dataset)?;
    checkpoint.restore(&mut model, &mut tables)?;
    let mut samples = Batch::default();
    let keep = |batch: &Batch| args.samples.iter().try_for_each(|_| samples.append(batch));
    let threads = threads(args.threads.into())?;
    let Scored { scores, complaint, unknown } =
        threads.install(|| score(&mut model, &*dataset, split, keep))?;
    if let Some(complaint) = complaint {
        eprintln!("ttrec: {complaint}");
    }
    let labelled = scores.labels.iter().filter(|label| !label.is_nan()).count();
    let examples = scores.labels.len();
    ensure!(
        labelled == 0 || labelled == examples,
        "{labelled} of {examples} rows have a label: expected all or none"
    );
    if let Some(path) = &args.samples {
        samples.write(path, &scores.probabilities())?;
    }
    let ranking = threads.install(|| rank(&mut model, &*dataset, split, true))?;
    let quality = (labelled > 0).then(|| Quality { ranking, ..scores.quality() });
    warn_of_unknown(&format!("the {} split", split.name()), &unknown);
    output::print(|mut out| {
        if args.json {
            let unknown = unknown.iter().map(|u| (u.column.as_str(), u.share)).collect();
            serde_json::to_writer_pretty(&mut out, &Evaluation { quality, unknown })?;
            writeln!(out)
        } else {
            match quality {
                Some(quality) => writeln!(out, "{}: {quality}", split.name())?,
                None => writeln!(out, "{}: {examples} examples without labels", split.name())?,
            }
            write!(out, "{}", unknown_line(split.name(), &unknown))
        }
    })?;
    Ok(Outcome::Done)
}
