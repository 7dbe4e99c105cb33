//! Why a trainable table or model refused its arguments.

use crate::{LookupError, PoolTablesError, ShapeError, dtype::Dtype};
use core::fmt;

/// Why a trainable table or model could not be built, or could not learn from a batch. Nothing has
/// changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TrainError {
    /// The bags do not suit the table, or contradict themselves.
    Lookup(LookupError),
    /// The bags of one categorical feature do not suit its table, or are not as many as the
    /// samples. `table` is the position of the feature.
    Table(PoolTablesError),
    /// The shape cannot exist.
    Shape(ShapeError),
    /// There are more or fewer of something than expected.
    Count {
        /// What was counted.
        of: Quantity,
        /// How many there are.
        found: u64,
        /// How many are expected.
        expected: u64,
    },
    /// There are none of something, or more than a limit.
    Limit {
        /// What was counted.
        of: Quantity,
        /// How many there are; a number of rows is saturated.
        found: u64,
        /// The most that there may be.
        limit: u64,
    },
    /// This crate does not train such tables or models.
    Unsupported(Unsupported),
    /// A categorical feature has a table that the model does not have.
    NoTable {
        /// The position of the feature.
        feature: usize,
        /// The position of its table.
        table: usize,
        /// Tables of the model.
        num_tables: usize,
    },
    /// A dense feature is not finite.
    DenseFeature {
        /// Its position in [`Batch::dense`](super::Batch::dense).
        position: usize,
    },
    /// A label is not from 0 to 1.
    Label {
        /// Position of its sample.
        sample: usize,
    },
    /// The weight of a sample is negative or not finite.
    Weight {
        /// Position of the sample.
        sample: usize,
    },
    /// A log-frequency is not finite, or is infinite and of a positive sample.
    LogFrequency {
        /// Position of its sample.
        sample: usize,
    },
    /// A code is no entry of its book.
    Code {
        /// Its position among the codes of all rows.
        position: usize,
        /// Entries of a book.
        book_len: usize,
    },
    /// A learning rate is negative or not finite.
    LearningRate,
    /// A field of [`Regularization`](super::Regularization) is out of range.
    Regularization {
        /// Its name.
        field: &'static str,
    },
    /// The counters to be restored are not those of a table of this kind and size.
    Counters,
}

/// What [`TrainError`] counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Quantity {
    /// Rows of a table, including the padding rows of a tensor train.
    Rows,
    /// Cores of a tensor train.
    Cores,
    /// Values of the parameters at this position ([`Checkpointed`](super::Checkpointed)).
    Values(usize),
    /// Elements of the gradient of pooled rows: bags times `embedding_dim`.
    Gradient,
    /// Lookups or bags of a batch.
    Lookups,
    /// Dense features of a batch: samples times `dense_dim`.
    DenseFeatures,
    /// Lists of bags in a batch: one for each categorical feature of the model.
    BagLists,
    /// Codes of all rows: rows times books.
    Codes,
    /// Samples of a batch, in whole groups.
    Samples,
    /// Weights of samples.
    Weights,
    /// Log-frequencies of samples.
    LogFrequencies,
    /// Columns of the table at this position in a model, all of whose vectors are equally long.
    Columns(usize),
    /// Inputs or outputs of a layer.
    LayerWidth,
    /// Outputs of a model.
    Outputs,
}

/// What cannot be trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unsupported {
    /// [`Pooling::Max`](crate::Pooling::Max).
    MaxPooling,
    /// [`Bags::with_padding_idx`](crate::Bags::with_padding_idx).
    Padding,
    /// A tensor train whose core 0 has the least significant digit of a column
    /// ([`TtShape::column_order`](crate::TtShape::column_order)).
    ColumnOrder,
    /// Fewer hashed indices than rows, or rows that are hashed themselves or have a cache.
    HashedRows {
        /// Rows of the table.
        num_rows: u64,
        /// Indices that share the rows.
        num_embeddings: u64,
    },
    /// Cores of a type that they cannot be stored as.
    Dtype {
        /// The type.
        dtype: Dtype,
    },
    /// Codes whose entries are multiplied ([`Combine::Mult`](crate::repr::Combine::Mult)).
    MultipliedEntries,
    /// A model without dense and without categorical features.
    NoFeatures,
    /// A model whose only vector has nothing to interact with: one categorical feature, no dense
    /// features.
    NoInteraction,
    /// Groups of samples without a negative one.
    Group {
        /// Samples of a group.
        group: usize,
    },
    /// [`Objective::InBatch`](super::Objective::InBatch) for a model that is not the product of two
    /// categorical features.
    InBatch,
    /// Dense features without a bottom MLP, or a bottom MLP without dense features.
    BottomMlp {
        /// Dense features of a sample.
        dense_dim: usize,
        /// Layers of the bottom MLP.
        layers: usize,
    },
}

impl Quantity {
    pub(super) fn check(self, found: usize, expected: u64) -> Result<(), TrainError> {
        match found as u64 {
            found if found == expected => Ok(()),
            found => Err(TrainError::Count { of: self, found, expected }),
        }
    }

    /// One for each sample, or none at all.
    pub(super) fn check_unless_empty(self, found: usize, samples: usize) -> Result<(), TrainError> {
        if found == 0 {
            Ok(())
        } else {
            self.check(found, samples as u64)
        }
    }

    /// Why the expected number is that, at the end of a message.
    fn reason(self) -> &'static str {
        match self {
            Self::BagLists => ", one for each categorical feature of the model",
            Self::Columns(_) => ", as in the other vectors of the model",
            Self::Outputs => ", the logit",
            Self::Samples => ", to have whole groups",
            _ => "",
        }
    }

    pub(super) fn above(self, found: u64, limit: u64) -> TrainError {
        TrainError::Limit { of: self, found, limit }
    }
}

impl fmt::Display for TrainError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lookup(error) => write!(f, "{error}"),
            Self::Table(error) => write!(f, "{error}"),
            Self::Shape(error) => write!(f, "{error}"),
            Self::Count { of, found, expected } => {
                write!(f, "{found} {of}: expected {expected}{}", of.reason())
            }
            Self::Limit { of, found, limit } => write!(f, "{found} {of}: expected 1 to {limit}"),
            Self::Unsupported(what) => write!(f, "{what}"),
            Self::NoTable { feature, table, num_tables } => write!(
                f,
                "feature {feature} has table {table}, but the model has {num_tables} tables"
            ),
            Self::DenseFeature { position } => {
                write!(f, "dense feature {position} of the batch is not finite")
            }
            Self::Label { sample } => {
                write!(f, "the label of sample {sample} is out of range: expected 0 to 1")
            }
            Self::Weight { sample } => {
                write!(f, "the weight of sample {sample} is negative or not finite")
            }
            Self::LogFrequency { sample } => write!(
                f,
                "the log-frequency of sample {sample} is not finite: only that of a negative \
                 sample may be infinite"
            ),
            Self::Regularization { field } => {
                let range = match *field {
                    "dropout" => "0 to less than 1",
                    "clip_norm" => "more than 0",
                    _ => "0 or more, and finite",
                };
                write!(f, "`{field}` is out of range: expected {range}")
            }
            Self::Code { position, book_len } => {
                write!(f, "code {position} is no entry: a book has {book_len} entries")
            }
            Self::LearningRate => {
                write!(f, "a learning rate is negative or not finite: expected 0 or more")
            }
            Self::Counters => {
                write!(f, "the counters are those of a table of another kind, size or cache")
            }
        }
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rows => write!(f, "rows, including padding"),
            Self::Cores => write!(f, "cores"),
            Self::Values(part) => write!(f, "values for parameters {part}"),
            Self::Gradient => write!(f, "elements in the gradient"),
            Self::Lookups => write!(f, "lookups or bags in a batch"),
            Self::DenseFeatures => write!(f, "dense features in the batch"),
            Self::BagLists => write!(f, "lists of bags"),
            Self::Codes => write!(f, "codes"),
            Self::Samples => write!(f, "samples in the batch"),
            Self::Weights => write!(f, "weights of samples"),
            Self::LogFrequencies => write!(f, "log-frequencies"),
            Self::Columns(table) => write!(f, "columns in table {table}"),
            Self::LayerWidth => write!(f, "inputs or outputs of a layer"),
            Self::Outputs => write!(f, "outputs of the model"),
        }
    }
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MaxPooling => write!(f, "max pooling cannot be trained: use sum or mean"),
            Self::Padding => {
                write!(f, "bags with padding cannot be trained: leave its index out of the bags")
            }
            Self::ColumnOrder => write!(
                f,
                "core 0 has the least significant digit of a column: only tensor trains whose last \
                 core has it can be trained"
            ),
            Self::HashedRows { num_rows, num_embeddings } => write!(
                f,
                "{num_embeddings} hashed indices over {num_rows} rows: a hashed table needs at \
                 least as many indices as rows, over a table that has no cache and is not hashed"
            ),
            Self::Dtype { dtype } => write!(
                f,
                "the cores of a tensor train cannot be {}: expected f32, f16, bf16 or i8",
                dtype.name()
            ),
            Self::MultipliedEntries => write!(
                f,
                "the entries of a row of codes are not multiplied: put them end to end, or add them"
            ),
            Self::Group { group } => write!(
                f,
                "groups of {group} samples: expected a positive one and at least one negative one"
            ),
            Self::InBatch => write!(
                f,
                "a softmax over the items of a batch needs a model that is the product of two \
                 categorical features: leave out dense features and layers"
            ),
            Self::NoFeatures => {
                write!(f, "the model has no features: add categorical or dense features")
            }
            Self::NoInteraction => write!(
                f,
                "the interaction of one categorical feature without a bottom MLP has 0 outputs: \
                 add categorical or dense features"
            ),
            Self::BottomMlp { dense_dim, layers } => write!(
                f,
                "{dense_dim} dense features and {layers} layers in the bottom MLP: give both or \
                 neither"
            ),
        }
    }
}

impl core::error::Error for TrainError {}

impl From<LookupError> for TrainError {
    fn from(error: LookupError) -> Self {
        Self::Lookup(error)
    }
}

impl From<ShapeError> for TrainError {
    fn from(error: ShapeError) -> Self {
        Self::Shape(error)
    }
}
