//! `ttrec train`: trains a DLRM whose tables have the representation that the blob will have.
//!
//! An output directory holds `checkpoint.safetensors`, rewritten at every checkpoint,
//! `best.safetensors` if there is a validation split, `vocabulary.csv`, `frequencies.npz`,
//! `curves.csv` and `curves.svg`.

mod checkpoint;
pub(crate) mod config;
mod curves;
mod eval;
mod init;
mod learn;
mod metrics;
mod ranking;
mod ranks;
mod tables;

use crate::{
    data::{Dataset, Vocabulary},
    outcome::Outcome,
    output,
};
use anyhow::{Context, Result, ensure};
pub(crate) use checkpoint::TrainCheckpoint;
use config::{Config, Train};
pub(crate) use eval::{EvalArgs, WhichSplit, evaluate};
pub(crate) use learn::{
    Learner, OutputDirectory, TrainReport, build, unknown_line, warn_of_unknown,
};
pub(crate) use metrics::{Quality, Scores};
pub(crate) use ranking::{Ranking, rank_stored};
pub(crate) use ranks::{bytes, plan};
use std::{
    fs,
    path::{Component, Path, PathBuf},
};

/// Train a ranking model with tensor-train, dense, hashed, quotient-remainder or coded tables.
///
/// The model is a DLRM: a bottom MLP for dense features, tables for categories, the dot products of
/// all pairs of these vectors, and a top MLP that gives one probability.
/// `ttrec convert DIR/best.safetensors -o model.ttr` makes a blob of it.
#[derive(clap::Args)]
#[command(after_help = "\
A config:
  [data]
  format = \"criteo\"             # or csv, parquet, interactions, sessions
  train = [\"day_0.gz\"]          # files, directories, or patterns: data/part-*.gz
  test = [\"day_1.gz\"]
  valid_fraction = 0.05         # the validation split: chooses the best epoch

  [model]
  embedding_dim = 16
  bottom = [512, 256, 64, 16]   # outputs of each layer; the last is as wide as a table
  top = [512, 256, 1]
  table = { representation = \"tt\", rank = 32 }   # or dense, hashed, hashed-tt,
                                                 # quotient-remainder, codes;
                                                 # rank = \"auto\", budget = \"1%\", warm_up = 1000
  dense_below = 10000           # smaller tables are dense

  [model.tables.C3]
  representation = \"tt\"
  rank = 16
  cache = { rows = 512, warm_up = 1000, refresh = 5000 }

  [train]
  optimizer = \"adagrad\"         # or sgd, row-wise-adagrad, adam
  loss = \"bce\"                  # or, for interactions and sessions, bpr, softmax
  learning_rate = 0.05
  batch = 128
  epochs = 3
  patience = 1

docs/train.md lists every key.")]
pub(crate) struct Args {
    /// The config: data, model and training (TOML)
    config: PathBuf,
    /// Directory for checkpoints, curves and the vocabulary; created if missing
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Directory that relative paths in the config start from [default: the config's directory]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Continue from the checkpoint in the output directory, or start if there is none
    #[arg(long)]
    resume: bool,
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    let config = Config::read(&args.config)?;
    let data_dir = args.data_dir.clone().unwrap_or_else(|| directory_of(&args.config));
    let place = OutputDirectory::new(&args.output)?;
    ensure!(
        args.resume || !place.checkpoint().exists(),
        "{}: already exists: pass --resume to continue, or choose another directory",
        place.checkpoint().display()
    );
    let train = || {
        let resumes = args.resume && place.checkpoint().exists();
        if !resumes {
            // Before the data, which may take long to read, and whose vocabulary is written.
            find_init(&config, &data_dir)?;
        }
        let dataset = open_data(&config, &data_dir, &place, args.resume)?;
        let mut learner = Learner::new(&config, &*dataset, &data_dir, &place)?;
        if resumes {
            learner.resume()?;
        } else {
            learner.init(&data_dir)?;
        }
        learner.run(true)
    };
    let report = train().with_context(|| args.config.display().to_string())?;
    output::print(|out| writeln!(out, "{report}"))?;
    Ok(Outcome::Done)
}

/// Fails if a file of a warm start is missing.
fn find_init(config: &Config, data_dir: &Path) -> Result<()> {
    let Train { init, init_spec, .. } = &config.train;
    for (key, path) in [("init", init), ("init_spec", init_spec)] {
        let Some(path) = path else { continue };
        let path = data_dir.join(path);
        fs::metadata(&path).with_context(|| format!("`{key}`: {}", path.display()))?;
    }
    Ok(())
}

/// Opens the data with the vocabulary in the output directory, or writes a new one.
fn open_data(
    config: &Config,
    data_dir: &Path,
    place: &OutputDirectory,
    resume: bool,
) -> Result<Box<dyn Dataset + Sync>> {
    let kept = if resume && place.vocabulary().exists() {
        Some(Vocabulary::read(&place.vocabulary())?)
    } else {
        None
    };
    let is_new = kept.is_none();
    let dataset = config.data.open(data_dir, kept)?;
    if is_new {
        dataset.vocabulary().write_frequencies(&place.frequencies())?;
        dataset.vocabulary().write(&place.vocabulary())?;
    }
    Ok(dataset)
}

/// The directory that relative paths of a config start from.
pub(crate) fn directory_of(config: &Path) -> PathBuf {
    config.parent().map(Path::to_owned).unwrap_or_default()
}

impl OutputDirectory {
    /// The directory of one of its files.
    pub(crate) fn of(file: &Path) -> Self {
        Self(directory_of(file))
    }

    /// Another directory, as a path from this one, so that both can be moved together.
    fn path_to(&self, directory: &Path) -> Result<PathBuf> {
        let whole = |path: &Path| {
            let path = Path::new(".").join(path);
            let found = fs::canonicalize(&path);
            found.with_context(|| format!("{}: cannot find the directory", path.display()))
        };
        let (from, to) = (whole(&self.0)?, whole(directory)?);
        let pairs = from.components().zip(to.components());
        let shared = pairs.take_while(|(a, b)| a == b).count();
        if shared == 0 {
            return Ok(to);
        }
        let up = from.components().skip(shared).map(|_| Component::ParentDir);
        Ok(up.chain(to.components().skip(shared)).collect())
    }

    pub(crate) fn new(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory)
            .with_context(|| format!("{}: cannot create the directory", directory.display()))?;
        Ok(Self(directory.to_owned()))
    }
}
