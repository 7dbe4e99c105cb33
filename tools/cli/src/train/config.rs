//! The config of a training run: a TOML file.

use crate::{
    data,
    tagged::{self, tagged},
};
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
    /// The representation of features that `tables` does not name.
    #[serde(default)]
    pub(crate) table: Representation,
    /// The representations of single features, by name.
    #[serde(default)]
    pub(crate) tables: BTreeMap<String, Representation>,
    /// Tables with fewer rows are dense, unless `tables` names them.
    #[serde(default)]
    pub(crate) dense_below: u32,
}

/// The representation of a table, in training and in the blob.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "representation", rename_all = "kebab-case")]
pub(crate) enum Representation {
    /// A row for each index.
    Dense(Dense),
    /// A tensor train.
    Tt(Tt),
    /// Index modulo rows.
    Hashed(Hashed),
    /// Index modulo rows, with the rows of a tensor train.
    HashedTt(HashedTt),
    /// Quotient and remainder rows.
    QuotientRemainder(QuotientRemainder),
}

tagged! { Representation, "representation",
    "dense" => Dense, "tt" => Tt, "hashed" => Hashed, "hashed-tt" => HashedTt,
    "quotient-remainder" => QuotientRemainder
}

impl Default for Representation {
    fn default() -> Self {
        Self::Dense(Dense {})
    }
}

impl Representation {
    /// The representation without its sizes.
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
    /// The kind, and the fields that differ from their defaults.
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
        let mut shown = fields.iter().filter(|(field, value)| !plain(field, value));
        shown.try_for_each(|(field, value)| match value {
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
    /// The inner ranks, each limited by the largest useful rank of its bond.
    pub(crate) rank: u32,
    #[serde(default = "three")]
    pub(crate) cores: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) row_factors: Option<Vec<u32>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) column_factors: Option<Vec<u32>>,
    #[serde(default)]
    pub(crate) initializer: Draw,
    /// The factor of the initial rows.
    #[serde(default = "unchanged")]
    pub(crate) scale: f64,
    /// Rows that are trained outside the cores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cache: Option<Cache>,
}

/// A cache of the most frequent rows, outside the cores (TT-Rec, section 4.3).
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Cache {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rows: Option<u32>,
    /// Instead of `rows`: a share of the table's rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) share: Option<f64>,
    /// Steps before the first rows are cached.
    #[serde(default)]
    pub(crate) warm_up: u64,
    /// Steps between changes of the cached rows; 0: never.
    #[serde(default)]
    pub(crate) refresh: u64,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Hashed {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) num_rows: Option<u32>,
    /// Instead of `num_rows`: as many rows as fit into this many bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) bytes: Option<u64>,
    /// Instead of `num_rows`: as many rows as fit into the bytes of a tensor train of this rank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) like_rank: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HashedTt {
    /// The rows of the tensor train.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) num_rows: Option<u32>,
    /// Instead of `num_rows`: a share of the indices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) share: Option<f64>,
    pub(crate) rank: u32,
    #[serde(default = "three")]
    pub(crate) cores: usize,
    #[serde(default)]
    pub(crate) initializer: Draw,
    /// The factor of the initial rows.
    #[serde(default = "unchanged")]
    pub(crate) scale: f64,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct QuotientRemainder {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) num_remainders: Option<u32>,
    /// Instead of `num_remainders`: the fewest remainder rows with which both parts fit into this
    /// many bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) bytes: Option<u64>,
    /// As `bytes`, for the bytes of a tensor train of this rank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) like_rank: Option<u32>,
    #[serde(default)]
    pub(crate) operation: Operation,
}

/// How quotient and remainder rows are combined.
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

/// The distribution of the initial values.
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

/// The training parameters.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Train {
    #[serde(default)]
    pub(crate) optimizer: OptimizerName,
    pub(crate) learning_rate: f64,
    /// The learning rate of the MLPs; default: `learning_rate`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) layers_learning_rate: Option<f64>,
    /// The factor of the learning rates after each epoch.
    #[serde(default = "unchanged")]
    pub(crate) decay: f64,
    /// Examples in a step.
    #[serde(default = "default_batch")]
    pub(crate) batch: usize,
    #[serde(default = "default_epochs")]
    pub(crate) epochs: u32,
    #[serde(default)]
    pub(crate) seed: u64,
    /// The number of threads; it does not change the result.
    #[serde(default = "default_threads")]
    pub(crate) threads: usize,
    /// The metric on the validation split that chooses the best epoch.
    #[serde(default)]
    pub(crate) select: Select,
    /// Training ends after more than this many epochs without a better metric on the validation
    /// split.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) patience: Option<u32>,
    /// Steps between checkpoints within an epoch; 0: only at the end of each epoch.
    #[serde(default = "default_checkpoint_every")]
    pub(crate) checkpoint_every: u64,
}

/// The metric by which models are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Select {
    /// Smaller log-loss, which training minimises.
    #[default]
    LogLoss,
    /// Larger AUC, for uses that only need the order of scores, not probabilities.
    Auc,
    /// Larger NDCG@20 over all items, for `interactions` and `sessions`.
    Ndcg,
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

/// Reads a TOML config of `train` or `sweep`.
pub(crate) fn read<C: serde::de::DeserializeOwned>(path: &Path) -> Result<C> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("{}: cannot read", path.display()))?;
    tagged::parse(&text).with_context(|| format!("{}: invalid config", path.display()))
}

impl Config {
    /// Reads and checks the config at `path`.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let config: Self = read(path)?;
        config.check().with_context(|| path.display().to_string())?;
        Ok(config)
    }

    /// Refuses numbers that training cannot use.
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
        ensure!(
            self.train.select != Select::Ndcg || self.data.is_of_items(),
            "`select` is \"ndcg\", but the data have no items to rank: expected `format` to be \
             \"interactions\" or \"sessions\""
        );
        let (dim, most) = (self.model.embedding_dim, MAX_EMBEDDING_DIM);
        ensure!(
            (1..=most as usize).contains(&dim),
            "`embedding_dim` is {dim}: expected 1 to {most}"
        );
        Ok(())
    }

    /// Whether a run of this config can continue a run of `before`: only `epochs`, `threads` and
    /// `checkpoint_every` may differ.
    pub(crate) fn continues(&self, before: &Self) -> bool {
        let Train { threads, epochs, checkpoint_every, .. } = before.train;
        let same = Train { threads, epochs, checkpoint_every, ..self.train.clone() };
        Self { train: same, ..self.clone() } == *before
    }
}
