//! `ttrec sweep`: the same model with its tables stored in many ways, each with the learning rate
//! that suits it.

mod results;

use crate::{
    data::{self, Dataset, Split, Vocabulary},
    outcome::Outcome,
    output::{self, Output},
    train::{
        self, Learner, OutputDirectory, TrainReport,
        config::{Config, Model, Representation, Train},
    },
};
use anyhow::{Context, Result, ensure};
use results::RunResult;
use serde::{Deserialize, Serialize};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Learn a model with its tables in many representations, and compare: AUC and log-loss against
/// bytes.
///
/// Each representation is learned with every learning rate, and the rate whose model tells the
/// examples held out best is learned with all seeds. The examples of the test decide nothing. Runs
/// that are finished are not run again, so that an interrupted sweep goes on where it was.
#[derive(clap::Args)]
#[command(after_help = "\
A config is one of `ttrec train`, and:
  [sweep]
  seeds = [1, 2, 3]
  learning_rates = [0.003, 0.01, 0.03]
  budget = \"1MiB\"                # of all tables; what is larger is left out
  representations = [
    { representation = \"dense\" },
    { representation = \"tt\", rank = 16 },
    { representation = \"hashed\", like_rank = 16 },   # in as many bytes
  ]")]
pub(crate) struct Args {
    /// What is compared, and how it is learned
    config: PathBuf,
    /// Where results.csv, results.md, results.svg and a directory for each run go; made if it is
    /// not there
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Where the paths of the config begin; default: the config's directory
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
    /// Default: the one of `[train]`.
    #[serde(default)]
    learning_rates: Vec<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    budget: Option<String>,
    representations: Vec<Representation>,
}

/// One run, and what came of it.
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
    let kept = if place.vocabulary().exists() {
        Some(Vocabulary::read(&place.vocabulary())?)
    } else {
        None
    };
    let is_new = kept.is_none();
    let dataset = config.data.open(&data_dir, kept)?;
    if is_new {
        dataset.vocabulary().write(&place.vocabulary())?;
    }
    ensure!(
        sweep.rates.len() == 1 || dataset.has(Split::Valid),
        "several `learning_rates` go with examples that are held out: give `valid_fraction` or \
         `valid`"
    );

    let mut results = Vec::new();
    for representation in &config.sweep.representations {
        let name = representation.to_string();
        let with = |rate: f64, seed: u64| sweep.config(representation, rate, seed);
        let tables = train::plan(&with(sweep.rates[0], 0).model, dataset.features())?;
        let bytes: u64 = tables.iter().map(train::Planned::bytes).sum();
        if sweep.budget.is_some_and(|budget| bytes > budget) {
            eprintln!("ttrec: {name}: {bytes} bytes are more than the budget: left out");
            continue;
        }
        let run = |rate: f64, seed: u64| {
            let finished = finish(&with(rate, seed), bytes, &*dataset, &args.output, &name)?;
            Ok(RunResult {
                name: name.clone(),
                kind: representation.kind(),
                rate,
                seed,
                report: finished.report,
            })
        };
        let (&first, others) = config.sweep.seeds.split_first().context("`seeds` is empty")?;
        let tuned = sweep.rates.iter().map(|&rate| run(rate, first)).collect::<Result<Vec<_>>>()?;
        let rate =
            results::best_rate(&tuned, config.train.select).unwrap_or(config.train.learning_rate);
        results.extend(tuned);
        for &seed in others {
            results.push(run(rate, seed)?);
        }
        // As it goes on, so that there is something to look at.
        results::write(&args.output, &results, config.train.select)?;
    }
    ensure!(!results.is_empty(), "no representation is within the budget");
    output::print(|out| out.write_all(results::table(&results, config.train.select).as_bytes()))?;
    Ok(Outcome::Done)
}

/// A config that has been checked.
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
            ensure!(!representations[..at].contains(one), "`representations` has {one} twice");
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
            prepared.config(&representations[0], rate, seeds[0]).check()?;
        }
        Ok(prepared)
    }

    /// Of one run.
    fn config(&self, representation: &Representation, learning_rate: f64, seed: u64) -> Config {
        let SweepConfig { data, model, train, .. } = self.config.clone();
        let model = Model { table: representation.clone(), ..model };
        Config { data, model, train: Train { learning_rate, seed, ..train } }
    }
}

/// Runs what is not finished yet, with tables of `bytes`.
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
    // The shapes that a config leaves open may have changed.
    let is_same =
        |finished: &Finished| finished.config == *config && finished.report.bytes[0] == bytes;
    if let Some(finished) = found.filter(is_same) {
        return Ok(finished);
    }
    let place = OutputDirectory::new(&directory)?;
    let mut learner = Learner::new(config, dataset, &place)?;
    if place.checkpoint().exists() && learner.resume().is_err() {
        // Another run's, or none at all.
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
    // What was only for going on is no longer of use.
    for path in [place.checkpoint(), place.best()] {
        let _ = fs::remove_file(path);
    }
    Ok(finished)
}
