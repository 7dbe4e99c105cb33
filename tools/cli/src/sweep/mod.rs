//! `ttrec sweep`: trains the same model with several representations of its tables, each with its
//! best learning rate.

mod results;

use crate::{
    data::{self, Dataset, Split, Vocabulary},
    outcome::Outcome,
    output::{self, Output, WriteError},
    train::{
        self, Learner, OutputDirectory, TrainReport,
        config::{Config, Model, Representation, Train},
    },
};
use anyhow::{Context, Result, ensure};
use results::{Omitted, RunResult};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Train a model with its tables in several representations, and compare AUC, log-loss and, over
/// all items, recall and NDCG by bytes.
///
/// Each representation is trained with every learning rate. The rate that is best on the validation
/// split is then trained with all seeds; the test split decides nothing. Finished runs are not
/// repeated, so the same command continues an interrupted sweep, and tries runs again that failed.
/// What cannot be trained is skipped, and the results list it with the reason.
#[derive(clap::Args)]
#[command(after_help = "\
A config is one of `ttrec train`, and:
  [sweep]
  seeds = [1, 2, 3]
  learning_rates = [0.003, 0.01, 0.03]
  budget = \"1MiB\"                # of all tables; larger representations are skipped
  representations = [
    { representation = \"dense\" },
    { representation = \"tt\", rank = 16 },
    { representation = \"hashed\", like_rank = 16 },   # of the same size
  ]")]
pub(crate) struct Args {
    /// The config: that of `ttrec train`, and a section `[sweep]`
    config: PathBuf,
    /// Directory for results.csv, results.md, results.svg and a directory for each run; created if
    /// missing
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Directory that relative paths in the config start from [default: the config's directory]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct SweepConfig {
    data: data::Config,
    model: Model,
    train: Train,
    sweep: Sweep,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Sweep {
    seeds: Vec<u64>,
    /// Default: the learning rate of `[train]`.
    #[serde(default)]
    learning_rates: Vec<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    budget: Option<String>,
    representations: Vec<Representation>,
}

/// A finished run and its result.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Finished {
    config: Config,
    report: TrainReport,
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    let config: SweepConfig = train::config::read(&args.config)?;
    let sweep = Prepared::new(&config).with_context(|| args.config.display().to_string())?;
    let data_dir = args.data_dir.clone().unwrap_or_else(|| train::directory_of(&args.config));
    let place = OutputDirectory::new(&args.output)?;
    compare(args, &sweep, &data_dir, &place).with_context(|| args.config.display().to_string())
}

fn compare(
    args: &Args,
    sweep: &Prepared<'_>,
    data_dir: &Path,
    place: &OutputDirectory,
) -> Result<Outcome> {
    let config = sweep.config;
    let kept = if place.vocabulary().exists() {
        Some(Vocabulary::read(&place.vocabulary())?)
    } else {
        None
    };
    let is_new = kept.is_none();
    let dataset = config.data.open(data_dir, kept)?;
    if is_new {
        dataset.vocabulary().write(&place.vocabulary())?;
    }
    ensure!(
        sweep.rates.len() == 1 || dataset.has(Split::Valid),
        "several `learning_rates` need a validation split: set `valid_fraction` or `valid`"
    );

    ensure!(
        dataset.has(Split::Valid) || dataset.has(Split::Test),
        "a sweep compares by the test or the validation split: set `test`, `valid` or \
         `valid_fraction`"
    );

    let (mut results, mut omitted, mut planned) = (Vec::new(), Vec::new(), Vec::new());
    // All of them before the first run, so that a mistake in the last is found at once.
    for representation in &config.sweep.representations {
        match sweep.bytes(representation, &*dataset) {
            Ok(bytes) => planned.push((representation, bytes)),
            Err(reason) => omitted.push(Omitted::new(representation.to_string(), &reason)),
        }
    }
    for (representation, bytes) in planned {
        let name = representation.to_string();
        let mut run = |rate: f64, seed: u64| -> Result<Option<RunResult>> {
            let config = sweep.config_of(representation, rate, seed);
            match finish(&config, bytes, &*dataset, &args.output, &name) {
                Ok(Finished { report, .. }) => {
                    let (name, kind) = (name.clone(), representation.kind());
                    Ok(Some(RunResult { name, kind, rate, seed, report }))
                }
                Err(error) if error.is::<WriteError>() => Err(error),
                Err(reason) => {
                    let name = format!("{name}, learning rate {rate}, seed {seed}");
                    omitted.push(Omitted::new(name, &reason));
                    Ok(None)
                }
            }
        };
        let (&first, others) = config.sweep.seeds.split_first().context("`seeds` is empty")?;
        let mut runs = Vec::new();
        for &rate in &sweep.rates {
            runs.extend(run(rate, first)?);
        }
        if let Some(rate) = results::best_rate(&runs, config.train.select) {
            for &seed in others {
                runs.extend(run(rate, seed)?);
            }
        }
        results.extend(runs);
        // After each representation, so that results can be read during the sweep.
        results::write(&args.output, &results, &omitted, &sweep.rates, config.train.select)?;
    }
    let reason = || {
        let first: Option<&Omitted> = omitted.first();
        let why = first.map_or_else(String::new, |o| format!(": {}: {}", o.name, o.reason));
        format!("no representation can be trained{why}")
    };
    ensure!(!results.is_empty(), reason());
    let table = results::table(&results, &omitted, &sweep.rates, config.train.select);
    output::print(|out| out.write_all(table.as_bytes()))?;
    Ok(Outcome::Done)
}

/// A checked config.
struct Prepared<'c> {
    config: &'c SweepConfig,
    rates: Vec<f64>,
    budget: Option<u64>,
}

impl<'c> Prepared<'c> {
    fn new(config: &'c SweepConfig) -> Result<Self> {
        let Sweep { seeds, learning_rates, budget, representations } = &config.sweep;
        ensure!(!seeds.is_empty(), "`seeds` is empty: expected at least one");
        ensure!(!representations.is_empty(), "`representations` is empty: expected at least one");
        for (at, one) in representations.iter().enumerate() {
            ensure!(
                !representations[..at].contains(one),
                "{one} occurs twice in `representations`"
            );
        }
        let budget = budget.as_ref().map(|text| {
            ttrec_convert::memory_size(text)
                .map_err(|reason| anyhow::anyhow!("`budget` is {text:?}: {reason}"))
        });
        let default = vec![config.train.learning_rate];
        let rates = if learning_rates.is_empty() {
            default
        } else {
            learning_rates.clone()
        };
        let prepared = Self { config, rates, budget: budget.transpose()? };
        for &rate in &prepared.rates {
            prepared.config_of(&representations[0], rate, seeds[0]).check()?;
        }
        Ok(prepared)
    }

    /// The bytes of the tables of a representation, if it can be trained.
    fn bytes(&self, representation: &Representation, dataset: &dyn Dataset) -> Result<u64> {
        let config = self.config_of(representation, self.rates[0], 0);
        let tables = train::plan(&config.model, dataset.features())?;
        let bytes = tables.iter().map(train::Planned::bytes).sum();
        if let Some(budget) = self.budget {
            ensure!(bytes <= budget, "{bytes} bytes exceed the budget of {budget}");
        }
        train::build(&config, dataset)?;
        Ok(bytes)
    }

    /// The config of one run.
    fn config_of(&self, representation: &Representation, learning_rate: f64, seed: u64) -> Config {
        let SweepConfig { data, model, train, .. } = self.config.clone();
        let model = Model { table: representation.clone(), ..model };
        Config { data, model, train: Train { learning_rate, seed, ..train } }
    }
}

/// Runs a config, or returns its result if it is finished. `bytes` are those of its tables.
fn finish(
    config: &Config,
    bytes: u64,
    dataset: &(dyn Dataset + Sync),
    output: &Path,
    name: &str,
) -> Result<Finished> {
    let Train { learning_rate, seed, .. } = config.train;
    let plain = name.replace(|c: char| !c.is_ascii_alphanumeric() && c != '.', "-");
    let directory = output.join(format!("{plain}-rate-{learning_rate}-seed-{seed}"));
    let path = directory.join("result.json");
    let found = fs::read(&path)
        .ok()
        .and_then(|text| serde_json::from_slice::<Finished>(&text).ok());
    // Another version of this command may choose other shapes, and so other bytes.
    let is_same =
        |finished: &Finished| finished.config == *config && finished.report.bytes[0] == bytes;
    if let Some(finished) = found.filter(is_same) {
        return Ok(finished);
    }
    let place = OutputDirectory::new(&directory)?;
    let mut learner = Learner::new(config, dataset, &place)?;
    if place.checkpoint().exists() && learner.resume().is_err() {
        // The checkpoint is damaged, or of another run.
        learner = Learner::new(config, dataset, &place)?;
    }
    let report = learner.run(false)?;
    output::print(|out| {
        writeln!(out, "{name}, learning rate {learning_rate}, seed {seed}: {report}")
    })?;
    let finished = Finished { config: config.clone(), report };
    let mut output = Output::create(&path)?;
    output.write(|out| Ok(serde_json::to_writer_pretty(out, &finished)?))?;
    output.commit()?;
    // A finished run does not need its checkpoints.
    for path in [place.checkpoint(), place.best()] {
        let _ = fs::remove_file(path);
    }
    Ok(finished)
}
