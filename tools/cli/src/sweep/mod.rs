//! `ttrec sweep`: trains a model with several representations of its tables, and with several
//! values of other fields of its config, each with its best learning rate.

mod results;
mod stored;

use crate::{
    data::{self, Dataset, Split, Vocabulary},
    outcome::Outcome,
    output::{self, Output, WriteError},
    tagged,
    train::{
        self, Learner, OutputDirectory, TrainReport,
        config::{Config, Model, Representation, Train},
    },
};
use anyhow::{Context, Result, anyhow, bail, ensure};
use results::{Omitted, RunResult};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};
use ttrec_convert::Budget;

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
  stored = [\"1%\", \"4%\"]         # also compare each as `ttrec plan` stores it in these budgets
  representations = [
    { representation = \"dense\" },
    { representation = \"tt\", rank = 16 },
    { representation = \"hashed\", like_rank = 16 },   # of the same size
  ]
  [sweep.vary]                   # any other fields; all combinations are trained
  \"model.embedding_dim\" = [16, 32]
  \"data.negatives\" = [1, 4]")]
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
    /// The budgets that each trained model is also stored in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    stored: Vec<String>,
    /// Default: that of `[model]`.
    #[serde(default)]
    representations: Vec<Representation>,
    /// Fields of the config, such as `model.embedding_dim`, and the values that each takes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    vary: BTreeMap<String, Vec<toml::Value>>,
}

/// A finished run and its result.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Finished {
    config: Config,
    report: TrainReport,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    stored: stored::Reports,
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    let config: SweepConfig = train::config::read(&args.config)?;
    let sweep = Prepared::new(config).with_context(|| args.config.display().to_string())?;
    let data_dir = args.data_dir.clone().unwrap_or_else(|| train::directory_of(&args.config));
    compare(args, &sweep, &data_dir).with_context(|| args.config.display().to_string())
}

/// Opens the data of a variant, with a vocabulary of their own.
fn open(variant: &Variant, data_dir: &Path, output: &Path) -> Result<Box<dyn Dataset + Sync>> {
    let place = OutputDirectory::new(&output.join(file_name(&variant.data)))?;
    let kept = if place.vocabulary().exists() {
        Some(Vocabulary::read(&place.vocabulary())?)
    } else {
        None
    };
    let is_new = kept.is_none();
    let dataset = variant.config.data.open(data_dir, kept)?;
    if is_new {
        dataset.vocabulary().write(&place.vocabulary())?;
    }
    Ok(dataset)
}

/// A representation of a variant that can be trained, and the bytes that its tables may have.
struct Planned<'s> {
    variant: &'s Variant,
    representation: &'s Representation,
    bytes: RangeInclusive<u64>,
}

impl Planned<'_> {
    fn name(&self) -> String {
        self.variant.name(&self.representation.to_string())
    }
}

fn compare(args: &Args, sweep: &Prepared, data_dir: &Path) -> Result<Outcome> {
    let (mut results, mut omitted, mut planned) = (Vec::new(), Vec::new(), Vec::new());
    // All of them before the first run, so that a mistake in the last is found at once.
    for variants in sweep.variants.chunk_by(|a, b| a.data == b.data) {
        let dataset = open(&variants[0], data_dir, &args.output)?;
        ensure!(
            sweep.rates.len() == 1 || dataset.has(Split::Valid),
            "several `learning_rates` need a validation split: set `valid_fraction` or `valid`"
        );
        ensure!(
            dataset.has(Split::Valid) || dataset.has(Split::Test),
            "a sweep compares by the test or the validation split: set `test`, `valid` or \
             `valid_fraction`"
        );
        for (variant, representation) in
            variants.iter().flat_map(|v| v.representations.iter().map(move |r| (v, r)))
        {
            match sweep.bytes(variant, representation, &*dataset) {
                Ok(bytes) => planned.push(Planned { variant, representation, bytes }),
                Err(reason) => {
                    omitted.push(Omitted::new(variant.name(&representation.to_string()), &reason));
                }
            }
        }
    }
    for planned in planned.chunk_by(|a, b| a.variant.data == b.variant.data) {
        let dataset = open(planned[0].variant, data_dir, &args.output)?;
        for planned in planned {
            results.extend(runs(args, sweep, planned, (&*dataset, data_dir), &mut omitted)?);
            // After each representation, so that results can be read during the sweep.
            results::write(&args.output, &results, &omitted, &sweep.rates)?;
        }
    }
    let reason = || {
        let first: Option<&Omitted> = omitted.first();
        let why = first.map_or_else(String::new, |o| format!(": {}: {}", o.name, o.reason));
        format!("no representation can be trained{why}")
    };
    ensure!(!results.is_empty(), reason());
    let table = results::table(&results, &omitted, &sweep.rates);
    output::print(|out| out.write_all(table.as_bytes()))?;
    Ok(Outcome::Done)
}

/// All runs of a representation: with the first seed and every learning rate, then with the other
/// seeds and the best rate.
fn runs(
    args: &Args,
    sweep: &Prepared,
    planned: &Planned<'_>,
    data: (&(dyn Dataset + Sync), &Path),
    omitted: &mut Vec<Omitted>,
) -> Result<Vec<RunResult>> {
    let Planned { variant, representation, bytes } = planned;
    let (name, kind) = (planned.name(), variant.name(&representation.kind()));
    let mut run = |rate: f64, seed: u64| -> Result<Option<RunResult>> {
        let config = variant.config_of(representation, rate, seed);
        let select = config.train.select();
        match finish(&config, &sweep.stored, bytes, data, &args.output, &name) {
            Ok(Finished { report, stored, .. }) => {
                let (name, kind) = (name.clone(), kind.clone());
                Ok(Some(RunResult { name, kind, rate, seed, select, report, stored }))
            }
            Err(error) if error.is::<WriteError>() => Err(error),
            Err(reason) => {
                let name = format!("{name}, learning rate {rate}, seed {seed}");
                omitted.push(Omitted::new(name, &reason));
                Ok(None)
            }
        }
    };
    let (&first, others) = sweep.seeds.split_first().context("`seeds` is empty")?;
    let mut runs = Vec::new();
    for &rate in &sweep.rates {
        runs.extend(run(rate, first)?);
    }
    let Some(best) = results::best_rate(&runs) else { return Ok(runs) };
    for &seed in others {
        runs.extend(run(best, seed)?);
    }
    for budget in &sweep.stored {
        let chosen = runs.iter_mut().filter(|run| run.rate == best);
        let stored: Vec<_> = chosen.filter_map(|run| run.take_stored(budget)).collect();
        for found in stored {
            match found {
                Ok(result) => runs.push(result),
                Err(reason) => omitted.push(reason),
            }
        }
    }
    Ok(runs)
}

/// A config in which the varied fields have values, and their names.
struct Variant {
    /// All varied fields with their values, and those of the data alone.
    fields: String,
    data: String,
    config: Config,
    representations: Vec<Representation>,
}

impl Variant {
    /// The name of something in this variant.
    fn name(&self, of: &str) -> String {
        format!("{of}{}", self.fields)
    }

    /// The config of one run.
    fn config_of(&self, table: &Representation, learning_rate: f64, seed: u64) -> Config {
        let Config { data, model, train } = self.config.clone();
        let model = Model { table: table.clone(), ..model };
        Config { data, model, train: Train { learning_rate, seed, ..train } }
    }
}

/// Fields that have lists of their own.
const LISTED: [(&str, &str); 3] = [
    ("model.table", "representations"),
    ("train.learning_rate", "learning_rates"),
    ("train.seed", "seeds"),
];
/// The most variants: each is trained several times.
const MAX_VARIANTS: usize = 10_000;

/// All combinations of the values of the varied fields. Those of equal data are neighbours, because
/// `data` is before `model` and `train` in the order of names.
fn variants(config: &SweepConfig) -> Result<Vec<Variant>> {
    let Sweep { vary, representations, .. } = &config.sweep;
    let mut combinations = vec![Vec::new()];
    for (field, values) in vary {
        if let Some((_, list)) = LISTED.iter().find(|(listed, _)| listed == field) {
            bail!("`vary` has {field:?}: put its values into `{list}`");
        }
        ensure!(!values.is_empty(), "`vary` has no values of {field:?}: expected at least one");
        let count = combinations.len().saturating_mul(values.len());
        ensure!(
            count <= MAX_VARIANTS,
            "`vary` has {count} combinations or more: expected at most {MAX_VARIANTS}"
        );
        combinations = combinations
            .iter()
            .flat_map(|before: &Vec<(&String, &toml::Value)>| {
                values.iter().map(move |value| [&before[..], &[(field, value)]].concat())
            })
            .collect();
    }
    let SweepConfig { data, model, train, .. } = config.clone();
    let base = toml::Value::try_from(&Config { data, model, train })?;
    let one = |chosen: &Vec<(&String, &toml::Value)>| -> Result<Variant> {
        let (mut changed, mut fields, mut of_data) = (base.clone(), String::new(), String::new());
        for (field, value) in chosen {
            set(&mut changed, field, value).with_context(|| format!("`vary` has {field:?}"))?;
            let name = field.split_once('.').map_or(field.as_str(), |(_, name)| name);
            let text = format!(", {name} {}", value.to_string().trim_matches('"'));
            fields += &text;
            if field.starts_with("data.") {
                of_data += &text;
            }
        }
        let mistaken = || format!("with `vary`{fields}");
        let config: Config = tagged::parse(&toml::to_string(&changed)?).with_context(mistaken)?;
        let default = vec![config.model.table.clone()];
        let representations = if representations.is_empty() {
            default
        } else {
            representations.clone()
        };
        Ok(Variant { fields, data: of_data, config, representations })
    };
    combinations.iter().map(one).collect()
}

/// Sets the field of this dotted name.
fn set(config: &mut toml::Value, field: &str, value: &toml::Value) -> Result<()> {
    let mut at = config;
    for name in field.split('.') {
        let table = at.as_table_mut().context("there is no such field")?;
        at = table.entry(name).or_insert_with(|| toml::Value::Table(toml::Table::new()));
    }
    *at = value.clone();
    Ok(())
}

/// A checked config.
struct Prepared {
    variants: Vec<Variant>,
    seeds: Vec<u64>,
    rates: Vec<f64>,
    budget: Option<u64>,
    stored: Vec<String>,
}

impl Prepared {
    fn new(config: SweepConfig) -> Result<Self> {
        let variants = variants(&config)?;
        let Sweep { seeds, learning_rates, budget, stored, representations, .. } = config.sweep;
        ensure!(!seeds.is_empty(), "`seeds` is empty: expected at least one");
        for (at, one) in representations.iter().enumerate() {
            ensure!(
                !representations[..at].contains(one),
                "{one} occurs twice in `representations`"
            );
        }
        let budget = budget.as_ref().map(|text| {
            ttrec_convert::memory_size(text)
                .map_err(|reason| anyhow!("`budget` is {text:?}: {reason}"))
        });
        for text in &stored {
            let budget: Result<Budget, String> = text.parse();
            budget.map_err(|reason| anyhow!("`stored` has {text:?}: {reason}"))?;
        }
        let rates = if learning_rates.is_empty() {
            vec![config.train.learning_rate]
        } else {
            learning_rates
        };
        for variant in &variants {
            for &rate in &rates {
                let config = variant.config_of(&variant.representations[0], rate, seeds[0]);
                config.check().with_context(|| match &*variant.fields {
                    "" => "[train]".to_owned(),
                    fields => format!("with `vary`{fields}"),
                })?;
            }
        }
        Ok(Self { variants, seeds, rates, budget: budget.transpose()?, stored })
    }

    /// The bytes that the tables of a representation may have, if it can be trained.
    fn bytes(
        &self,
        variant: &Variant,
        representation: &Representation,
        dataset: &dyn Dataset,
    ) -> Result<RangeInclusive<u64>> {
        let config = variant.config_of(representation, self.rates[0], 0);
        let tables = train::plan(&config.model, dataset.features())?;
        let bytes = train::bytes(&tables);
        if let Some(budget) = self.budget {
            let most = bytes.end();
            ensure!(*most <= budget, "{most} bytes exceed the budget of {budget}");
        }
        train::build(&config, dataset)?;
        Ok(bytes)
    }
}

/// A name without characters that a file system may not allow.
fn file_name(name: &str) -> String {
    name.replace(|c: char| !c.is_ascii_alphanumeric() && c != '.', "-")
}

/// Runs a config, or returns its result if it is finished. `bytes` are those that its tables may
/// have.
fn finish(
    config: &Config,
    budgets: &[String],
    bytes: &RangeInclusive<u64>,
    (dataset, data_dir): (&(dyn Dataset + Sync), &Path),
    output: &Path,
    name: &str,
) -> Result<Finished> {
    let Train { learning_rate, seed, .. } = config.train;
    let plain = file_name(name);
    let directory = output.join(format!("{plain}-rate-{learning_rate}-seed-{seed}"));
    let path = directory.join("result.json");
    let found = fs::read(&path)
        .ok()
        .and_then(|text| serde_json::from_slice::<Finished>(&text).ok());
    // Another version of this command may choose other shapes, and so other bytes.
    let is_same = |finished: &Finished| {
        finished.config == *config
            && bytes.contains(&finished.report.bytes[0])
            && budgets.iter().all(|budget| finished.stored.contains_key(budget))
    };
    if let Some(finished) = found.filter(is_same) {
        return Ok(finished);
    }
    let place = OutputDirectory::new(&directory)?;
    let mut learner = Learner::new(config, dataset, data_dir, &place)?;
    if !place.checkpoint().exists() || learner.resume().is_err() {
        // There is no checkpoint, or it is damaged or of another run.
        learner = Learner::new(config, dataset, data_dir, &place)?;
        learner.init(data_dir)?;
    }
    let report = learner.run(false)?;
    output::print(|out| {
        writeln!(out, "{name}, learning rate {learning_rate}, seed {seed}: {report}")
    })?;
    // The model of the report.
    let checkpoint = if dataset.has(Split::Valid) {
        place.best()
    } else {
        place.checkpoint()
    };
    // Ranking all items by a deeper top would take longer than training.
    let ranks = config.model.top.len() <= 1;
    let stored = stored::reports(&checkpoint, budgets, dataset, &report, ranks)?;
    let finished = Finished { config: config.clone(), report, stored };
    let mut output = Output::create(&path)?;
    output.write(|out| Ok(serde_json::to_writer_pretty(out, &finished)?))?;
    output.commit()?;
    // A finished run does not need its checkpoints.
    for path in [place.checkpoint(), place.best()] {
        let _ = fs::remove_file(path);
    }
    Ok(finished)
}
