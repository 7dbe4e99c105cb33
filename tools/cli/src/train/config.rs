//! The config of a training run: a TOML file.

use crate::{
    data::{self, NegativeSampling},
    tagged::{self, tagged},
};
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{
    collections::BTreeMap,
    fmt,
    num::{NonZeroU32, NonZeroU64},
    path::{Path, PathBuf},
};
use ttrec::{
    dtype::Dtype,
    limits::MAX_EMBEDDING_DIM,
    train::{Initializer, LearningRates, Optimizer, Regularization},
};
use ttrec_convert::spec::Combining;

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
    /// Codes of entries of a few books.
    Codes(Codes),
}

tagged! { Representation, "representation",
    "dense" => Dense, "tt" => Tt, "hashed" => Hashed, "hashed-tt" => HashedTt,
    "quotient-remainder" => QuotientRemainder, "codes" => Codes
}

impl Default for Representation {
    fn default() -> Self {
        Self::Dense(Dense::default())
    }
}

impl Representation {
    fn name(&self) -> &'static str {
        match self {
            Self::Dense(_) => "dense",
            Self::Tt(_) => "tt",
            Self::Hashed(_) => "hashed",
            Self::HashedTt(_) => "hashed-tt",
            Self::QuotientRemainder(_) => "quotient-remainder",
            Self::Codes(_) => "codes",
        }
    }

    /// The type that its values are learned as.
    pub(crate) fn dtype(&self) -> Dtype {
        match self {
            Self::Dense(Dense { dtype })
            | Self::Tt(Tt { dtype, .. })
            | Self::Hashed(Hashed { dtype, .. })
            | Self::HashedTt(HashedTt { dtype, .. })
            | Self::QuotientRemainder(QuotientRemainder { dtype, .. })
            | Self::Codes(Codes { dtype, .. }) => dtype.dtype(),
        }
    }

    /// The representation without its sizes.
    pub(crate) fn kind(&self) -> String {
        let of_kind = match self {
            Self::Tt(Tt { cache: Some(_), .. }) => ", cached",
            Self::Tt(Tt { rank: Rank::Auto, .. }) => ", rank auto",
            _ => "",
        };
        match self.dtype() {
            Dtype::F32 => format!("{}{of_kind}", self.name()),
            dtype => format!("{}{of_kind}, {}", self.name(), dtype.name()),
        }
    }
}

impl fmt::Display for Representation {
    /// The kind, and the fields that differ from their defaults.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        let Ok(toml::Value::Table(fields)) = toml::Value::try_from(self) else { return Ok(()) };
        let plain = |field: &str, value: &toml::Value| match field {
            "representation" => true,
            "cores" => *value == toml::Value::from(3),
            "initializer" => value.as_str() == Some("sampled-gaussian"),
            "scale" => value.as_float() == Some(1.0),
            "operation" => value.as_str() == Some("mult"),
            "bits" => *value == toml::Value::from(8),
            "combine" => value.as_str() == Some("concat"),
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
pub(crate) struct Dense {
    #[serde(default, skip_serializing_if = "Learned::is_f32")]
    pub(crate) dtype: Learned,
}

/// The type that the values of a table are learned as, and stored as by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Learned {
    #[default]
    F32,
    F16,
    Bf16,
    I8,
    I4,
}

impl Learned {
    fn is_f32(&self) -> bool {
        *self == Self::F32
    }

    fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::Bf16,
            Self::I8 => Dtype::I8,
            Self::I4 => Dtype::I4,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tt {
    /// The inner ranks, each limited by the largest useful rank of its bond.
    pub(crate) rank: Rank,
    /// With `rank = "auto"`: the size of all tables of the model together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) budget: Option<String>,
    /// With `rank = "auto"`: steps before the ranks are chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) warm_up: Option<u64>,
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
    #[serde(default, skip_serializing_if = "Learned::is_f32")]
    pub(crate) dtype: Learned,
    /// Rows that are trained outside the cores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cache: Option<Cache>,
}

impl Default for Tt {
    fn default() -> Self {
        Self {
            rank: Rank::Auto,
            budget: None,
            warm_up: None,
            cores: three(),
            row_factors: None,
            column_factors: None,
            initializer: Draw::default(),
            scale: unchanged(),
            dtype: Learned::default(),
            cache: None,
        }
    }
}

/// The inner ranks of a tensor train.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rank {
    Given(u32),
    /// Chosen after a warm-up.
    Auto,
}

const AUTO: &str = "auto";

impl Serialize for Rank {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Given(rank) => serializer.serialize_u32(*rank),
            Self::Auto => serializer.serialize_str(AUTO),
        }
    }
}

impl<'de> Deserialize<'de> for Rank {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Given;

        impl de::Visitor<'_> for Given {
            type Value = Rank;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a number or {AUTO:?}")
            }

            fn visit_i64<E: de::Error>(self, rank: i64) -> Result<Rank, E> {
                let wrong = || E::invalid_value(de::Unexpected::Signed(rank), &self);
                u32::try_from(rank).map(Rank::Given).map_err(|_| wrong())
            }

            fn visit_u64<E: de::Error>(self, rank: u64) -> Result<Rank, E> {
                let wrong = || E::invalid_value(de::Unexpected::Unsigned(rank), &self);
                u32::try_from(rank).map(Rank::Given).map_err(|_| wrong())
            }

            fn visit_str<E: de::Error>(self, rank: &str) -> Result<Rank, E> {
                let wrong = || E::invalid_value(de::Unexpected::Str(rank), &self);
                (rank == AUTO).then_some(Rank::Auto).ok_or_else(wrong)
            }
        }

        deserializer.deserialize_any(Given)
    }
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
    #[serde(default, skip_serializing_if = "Learned::is_f32")]
    pub(crate) dtype: Learned,
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
    #[serde(default, skip_serializing_if = "Learned::is_f32")]
    pub(crate) dtype: Learned,
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
    #[serde(default, skip_serializing_if = "Learned::is_f32")]
    pub(crate) dtype: Learned,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Codes {
    /// The number of books, and of codes of a row.
    pub(crate) books: u32,
    /// The bits of a code.
    #[serde(default = "eight")]
    pub(crate) bits: u32,
    #[serde(default)]
    pub(crate) combine: Combining,
    /// Steps in which dense rows are learned, before they are coded.
    #[serde(default)]
    pub(crate) warm_up: u64,
    /// Steps between further codings of the rows, which are then learned instead of the books.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) recode_every: Option<NonZeroU64>,
    /// The type of the books.
    #[serde(default, skip_serializing_if = "Learned::is_f32")]
    pub(crate) dtype: Learned,
}

fn eight() -> u32 {
    8
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
    /// The checkpoint that the first values come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) init: Option<PathBuf>,
    /// The spec that opens it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) init_spec: Option<PathBuf>,
    #[serde(default)]
    pub(crate) loss: Loss,
    pub(crate) learning_rate: f64,
    /// The learning rate of the MLPs; default: `learning_rate`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) layers_learning_rate: Option<f64>,
    /// Steps in which the learning rates rise to what they are.
    #[serde(default)]
    pub(crate) warm_up: u64,
    #[serde(default)]
    pub(crate) schedule: Schedule,
    /// The factor of the learning rates after each epoch, or after each `decay_every` steps.
    #[serde(default = "unchanged")]
    pub(crate) decay: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) decay_every: Option<NonZeroU64>,
    /// Steps after which the learning rates are 0; default: all steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cosine_steps: Option<NonZeroU64>,
    /// The weight of the squared lengths of the vectors that the tables give.
    #[serde(default)]
    pub(crate) l2: f64,
    /// Decoupled weight decay of the layers.
    #[serde(default)]
    pub(crate) weight_decay: f64,
    /// The greatest length of the gradient of a row or slice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) clip_norm: Option<f64>,
    /// The share of the hidden outputs of the MLPs that a step sets to 0.
    #[serde(default)]
    pub(crate) dropout: f64,
    /// Labels become `(1 - label_smoothing) label + label_smoothing / 2`.
    #[serde(default)]
    pub(crate) label_smoothing: f64,
    /// Examples in a step; of a loss that ranks items, items with their negatives.
    #[serde(default = "default_batch")]
    pub(crate) batch: usize,
    #[serde(default = "default_epochs")]
    pub(crate) epochs: u32,
    #[serde(default)]
    pub(crate) seed: u64,
    /// The number of threads; it does not change the result.
    #[serde(default = "default_threads")]
    pub(crate) threads: usize,
    /// The metric on the validation split that chooses the best model; the default depends on the
    /// loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) select: Option<Select>,
    /// Training ends after this many evaluations on the validation split without a better metric.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) patience: Option<NonZeroU32>,
    /// Steps between evaluations within an epoch; default: only at the end of each epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) evaluate_every: Option<NonZeroU64>,
    /// Steps between checkpoints within an epoch; 0: only at the end of each epoch.
    #[serde(default = "default_checkpoint_every")]
    pub(crate) checkpoint_every: u64,
}

impl Train {
    /// The metric on the validation split that chooses the best model.
    pub(crate) fn select(&self) -> Select {
        self.select.unwrap_or(match self.loss {
            Loss::CrossEntropy => Select::LogLoss,
            Loss::Bpr | Loss::Softmax => Select::Ndcg,
        })
    }

    pub(crate) fn regularization(&self) -> Regularization {
        let &Self { l2, weight_decay, clip_norm, dropout, .. } = self;
        let clip_norm = clip_norm.unwrap_or(f64::INFINITY);
        Regularization { l2, weight_decay, clip_norm, dropout }
    }

    /// The learning rates of step `step`, from 0, which is in epoch `epoch`, of `steps` in all.
    pub(crate) fn rates(&self, step: u64, epoch: u32, steps: Option<u64>) -> LearningRates {
        let &Self { learning_rate, layers_learning_rate, decay, warm_up, .. } = self;
        let risen = ((step + 1) as f64 / warm_up.max(1) as f64).min(1.0);
        let left = match self.schedule {
            Schedule::Step => {
                let times = self.decay_every.map_or(epoch.into(), |every| step / u64::from(every));
                decay.powi(i32::try_from(times).unwrap_or(i32::MAX))
            }
            Schedule::Cosine => {
                let share = step as f64 / steps.unwrap_or(u64::MAX).max(1) as f64;
                (1.0 + (std::f64::consts::PI * share.min(1.0)).cos()) / 2.0
            }
        };
        let [layers, tables] = [layers_learning_rate.unwrap_or(learning_rate), learning_rate];
        LearningRates { layers: layers * risen * left, tables: tables * risen * left }
    }
}

/// What training reduces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Loss {
    /// Binary cross-entropy of each example.
    #[default]
    #[serde(rename = "bce")]
    CrossEntropy,
    /// Bayesian personalised ranking: of an item and each of its negatives.
    Bpr,
    /// The cross-entropy of an item among its negatives.
    Softmax,
}

/// How the learning rates change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Schedule {
    /// By the factor `decay`.
    #[default]
    Step,
    /// Along half a cosine, to 0.
    Cosine,
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
pub(super) const MAX_BATCH: usize = 1 << 24;

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
            self.train.init.is_some() || self.train.init_spec.is_none(),
            "`init_spec` is set, but there is no `init` for it to open"
        );
        self.check_loss()?;
        self.check_schedule()?;
        self.check_regularization()?;
        let (dim, most) = (self.model.embedding_dim, MAX_EMBEDDING_DIM);
        ensure!(
            (1..=most as usize).contains(&dim),
            "`embedding_dim` is {dim}: expected 1 to {most}"
        );
        Ok(())
    }

    fn check_loss(&self) -> Result<()> {
        let Train { loss, label_smoothing, .. } = self.train;
        let select = self.train.select();
        ensure!(
            select != Select::Ndcg || loss != Loss::CrossEntropy || self.data.is_of_items(),
            "`select` is \"ndcg\", but the data have no items to rank: expected `format` to be \
             \"interactions\" or \"sessions\""
        );
        let sampling = self.data.negative_sampling();
        if loss != Loss::CrossEntropy {
            ensure!(
                sampling.is_some(),
                "`loss` ranks an item before others, but the data have no items: expected \"bce\", \
                 or `format` to be \"interactions\" or \"sessions\""
            );
            ensure!(
                select != Select::LogLoss,
                "`select` is \"log-loss\", but the logits of a loss that ranks items are no log \
                 odds: expected \"ndcg\" or \"auc\""
            );
            ensure!(
                label_smoothing == 0.0,
                "`label_smoothing` is for labels: expected `loss` to be \"bce\""
            );
        }
        ensure!(
            (0.0..1.0).contains(&label_smoothing),
            "`label_smoothing` is {label_smoothing}: expected 0 to less than 1"
        );
        if sampling == Some(NegativeSampling::InBatch) {
            ensure!(
                loss == Loss::Softmax,
                "`negative_sampling` is \"in-batch\": expected `loss` to be \"softmax\""
            );
            ensure!(
                self.model.top.is_empty(),
                "`negative_sampling` is \"in-batch\", which compares all contexts with all items \
                 of a step: expected a model without `top`, whose logit is a product"
            );
        }
        Ok(())
    }

    fn check_schedule(&self) -> Result<()> {
        let Train { schedule, decay, decay_every, cosine_steps, .. } = self.train;
        match schedule {
            Schedule::Step => {
                ensure!(cosine_steps.is_none(), "`cosine_steps` is for `schedule = \"cosine\"`")
            }
            Schedule::Cosine => ensure!(
                decay == 1.0 && decay_every.is_none(),
                "`schedule` is \"cosine\", which `decay` and `decay_every` are not for"
            ),
        }
        ensure!(
            decay_every.is_none() || decay != 1.0,
            "`decay_every` has nothing to do while `decay` is 1: set `decay` too"
        );
        Ok(())
    }

    fn check_regularization(&self) -> Result<()> {
        self.train.regularization().check()?;
        let Train { weight_decay, dropout, .. } = self.train;
        let Model { bottom, top, .. } = &self.model;
        let longest = bottom.len().max(top.len());
        ensure!(
            weight_decay == 0.0 || longest > 0,
            "`weight_decay` is of layers, but the model has none: set `l2`, which is of tables"
        );
        ensure!(
            dropout == 0.0 || longest > 1,
            "`dropout` is of hidden layers, but the model has none"
        );
        Ok(())
    }

    /// Whether a run of this config can continue a run of `before`: only `epochs`, `threads` and
    /// `checkpoint_every` may differ, and `epochs` only if it does not decide the learning rates.
    pub(crate) fn continues(&self, before: &Self) -> bool {
        let Train { threads, epochs, checkpoint_every, .. } = before.train;
        let follows_epochs =
            self.train.schedule == Schedule::Cosine && self.train.cosine_steps.is_none();
        let epochs = if follows_epochs { self.train.epochs } else { epochs };
        let same = Train { threads, epochs, checkpoint_every, ..self.train.clone() };
        Self { train: same, ..self.clone() } == *before
    }
}
