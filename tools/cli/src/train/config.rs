//! What is to be learned, from what and how: a TOML file.

use crate::data;
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, path::Path};
use ttrec::{
    limits::MAX_EMBEDDING_DIM,
    train::{Initializer, Optimizer},
};

/// A whole config.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    pub(crate) data: data::Config,
    pub(crate) model: Model,
    pub(crate) train: Train,
}

/// The model: a DLRM.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Model {
    /// Columns of every table.
    pub(crate) embedding_dim: usize,
    /// Outputs of each layer of the bottom MLP.
    #[serde(default)]
    pub(crate) bottom: Vec<usize>,
    /// Outputs of each layer of the top MLP; without any, the logit is the dot product of two
    /// vectors.
    #[serde(default)]
    pub(crate) top: Vec<usize>,
    /// What tables are that are not named in `tables`.
    #[serde(default)]
    pub(crate) table: Representation,
    /// By feature.
    #[serde(default)]
    pub(crate) tables: BTreeMap<String, Representation>,
    /// Tables of fewer rows, and not named, are dense.
    #[serde(default)]
    pub(crate) dense_below: u32,
}

/// What a table is stored as while it learns, and afterwards.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(tag = "representation", rename_all = "kebab-case")]
pub(crate) enum Representation {
    /// A row for each index.
    Dense(Dense),
    /// A tensor train.
    Tt(Tt),
    /// Index modulo rows.
    Hashed(Hashed),
    /// The same, the rows being a tensor train's.
    HashedTt(HashedTt),
    /// Quotient and remainder rows.
    QuotientRemainder(QuotientRemainder),
}

impl Default for Representation {
    fn default() -> Self {
        Self::Dense(Dense {})
    }
}

impl Representation {
    /// What it is, whatever its size.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Dense(_) => "dense",
            Self::Tt(Tt { cache: None, .. }) => "tt",
            Self::Tt(_) => "tt, cached",
            Self::Hashed(_) => "hashed",
            Self::HashedTt(_) => "hashed-tt",
            Self::QuotientRemainder(_) => "quotient-remainder",
        }
    }
}

impl fmt::Display for Representation {
    /// Its kind, and the fields that are not as they are by default.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind().trim_end_matches(", cached"))?;
        let Ok(toml::Value::Table(fields)) = toml::Value::try_from(self) else { return Ok(()) };
        let plain = |field: &str, value: &toml::Value| match field {
            "representation" => true,
            "cores" => *value == toml::Value::from(3),
            "initializer" => value.as_str() == Some("sampled-gaussian"),
            "scale" => value.as_float() == Some(1.0),
            "operation" => value.as_str() == Some("mult"),
            _ => false,
        };
        let mut told = fields.iter().filter(|(field, value)| !plain(field, value));
        told.try_for_each(|(field, value)| match value {
            toml::Value::Table(inner) => {
                write!(f, " {field}")?;
                inner.iter().try_for_each(|(field, value)| write!(f, " {field} {value}"))
            }
            value => write!(f, " {field} {}", value.to_string().trim_matches('"')),
        })
    }
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Dense {}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tt {
    /// All inner ranks, where they can be that large.
    pub(crate) rank: u32,
    #[serde(default = "three")]
    pub(crate) cores: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) row_factors: Option<Vec<u32>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) column_factors: Option<Vec<u32>>,
    #[serde(default)]
    pub(crate) initializer: Draw,
    /// What the first rows are multiplied by.
    #[serde(default = "unchanged")]
    pub(crate) scale: f64,
    /// Rows that are learned as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cache: Option<Cache>,
}

/// The rows that are asked for most, beside the cores (TT-Rec, section 4.3).
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Cache {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rows: Option<u32>,
    /// The same, as a share of the table's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) share: Option<f64>,
    /// Steps before the first rows enter.
    #[serde(default)]
    pub(crate) warm_up: u64,
    /// Steps between changes; 0 for none.
    #[serde(default)]
    pub(crate) refresh: u64,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Hashed {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) num_rows: Option<u32>,
    /// As many rows as fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) bytes: Option<u64>,
    /// As many rows as fit into the bytes of a tensor train of this rank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) like_rank: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HashedTt {
    /// Of the tensor train.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) num_rows: Option<u32>,
    /// The same, as a share of the indices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) share: Option<f64>,
    pub(crate) rank: u32,
    #[serde(default = "three")]
    pub(crate) cores: usize,
    #[serde(default)]
    pub(crate) initializer: Draw,
    /// What the first rows are multiplied by.
    #[serde(default = "unchanged")]
    pub(crate) scale: f64,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct QuotientRemainder {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) num_remainders: Option<u32>,
    /// The fewest remainder rows with which both parts fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) bytes: Option<u64>,
    /// The same, into the bytes of a tensor train of this rank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) like_rank: Option<u32>,
    #[serde(default)]
    pub(crate) operation: Operation,
}

/// What makes one row of two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Operation {
    #[default]
    Mult,
    Add,
}

fn three() -> usize {
    3
}

/// How the first values are drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Draw {
    #[default]
    SampledGaussian,
    Gaussian,
    Uniform,
}

impl Draw {
    pub(crate) fn initializer(self) -> Initializer {
        match self {
            Self::SampledGaussian => Initializer::SampledGaussian,
            Self::Gaussian => Initializer::Gaussian,
            Self::Uniform => Initializer::Uniform,
        }
    }
}

/// How it is learned.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Train {
    #[serde(default)]
    pub(crate) optimizer: OptimizerName,
    pub(crate) learning_rate: f64,
    /// Of the MLPs, if another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) layers_learning_rate: Option<f64>,
    /// What rates are multiplied by after each epoch.
    #[serde(default = "unchanged")]
    pub(crate) decay: f64,
    /// Examples of a step.
    #[serde(default = "default_batch")]
    pub(crate) batch: usize,
    #[serde(default = "default_epochs")]
    pub(crate) epochs: u32,
    #[serde(default)]
    pub(crate) seed: u64,
    /// Threads to learn with; what is learned is the same for any number.
    #[serde(default = "default_threads")]
    pub(crate) threads: usize,
    /// What makes one model better than another, of the examples held out.
    #[serde(default)]
    pub(crate) select: Select,
    /// Epochs without a better model, by the examples held out, after which learning ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) patience: Option<u32>,
    /// Steps after which a checkpoint is written, besides the end of each epoch; 0: never.
    #[serde(default = "default_checkpoint_every")]
    pub(crate) checkpoint_every: u64,
}

/// What a better model has less, or more, of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Select {
    /// Less of what is learned to be small.
    #[default]
    LogLoss,
    /// More, if order alone counts: whether the probabilities are right does not.
    Auc,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum OptimizerName {
    Sgd,
    #[default]
    Adagrad,
    RowWiseAdagrad,
    Adam,
}

impl OptimizerName {
    pub(crate) fn optimizer(self) -> Optimizer {
        match self {
            Self::Sgd => Optimizer::Sgd,
            Self::Adagrad => Optimizer::ADAGRAD,
            Self::RowWiseAdagrad => Optimizer::ROW_WISE_ADAGRAD,
            Self::Adam => Optimizer::ADAM,
        }
    }
}

fn unchanged() -> f64 {
    1.0
}

fn default_batch() -> usize {
    128
}

fn default_epochs() -> u32 {
    1
}

fn default_threads() -> usize {
    1
}

fn default_checkpoint_every() -> u64 {
    10_000
}

/// The largest batch: its bags are counted in 32 bits.
const MAX_BATCH: usize = 1 << 24;

/// Reads a TOML file of any of this command's kinds.
pub(crate) fn read<C: serde::de::DeserializeOwned>(path: &Path) -> Result<C> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("{}: cannot read", path.display()))?;
    toml::from_str(&text).with_context(|| format!("{}: not a usable config", path.display()))
}

impl Config {
    /// Reads and checks the config at `path`.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let config: Self = read(path)?;
        config.check().with_context(|| path.display().to_string())?;
        Ok(config)
    }

    /// Refuses numbers with which nothing can be learned.
    pub(crate) fn check(&self) -> Result<()> {
        let Train { learning_rate, layers_learning_rate, decay, batch, epochs, threads, .. } =
            self.train;
        let rates = [
            ("learning_rate", Some(learning_rate)),
            ("layers_learning_rate", layers_learning_rate),
        ];
        for (field, rate) in rates.into_iter().chain([("decay", Some(decay))]) {
            if let Some(rate) = rate.filter(|rate| !(*rate > 0.0 && rate.is_finite())) {
                bail!("`{field}` is {rate}: expected more than 0");
            }
        }
        ensure!((1..=MAX_BATCH).contains(&batch), "`batch` is {batch}: expected 1 to {MAX_BATCH}");
        ensure!(epochs > 0, "`epochs` is 0: expected at least 1");
        ensure!((1..=1024).contains(&threads), "`threads` is {threads}: expected 1 to 1024");
        let (dim, most) = (self.model.embedding_dim, MAX_EMBEDDING_DIM);
        ensure!(
            (1..=most as usize).contains(&dim),
            "`embedding_dim` is {dim}: expected 1 to {most}"
        );
        Ok(())
    }

    /// Whether what one has learned can be learned on by the other: they differ in nothing but how
    /// long it takes.
    pub(crate) fn continues(&self, before: &Self) -> bool {
        let Train { threads, epochs, checkpoint_every, .. } = before.train;
        let same = Train { threads, epochs, checkpoint_every, ..self.train.clone() };
        Self { train: same, ..self.clone() } == *before
    }
}
