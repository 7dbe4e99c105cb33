//! Why a table or a model refused what it was given.

use crate::{LookupError, PoolTablesError, ShapeError};
use core::fmt;

/// Why a table could not be made to learn, or learn from a batch. Nothing has changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TrainError {
    /// The bags do not suit the table, or each other.
    Lookup(LookupError),
    /// The shape cannot be.
    Shape(ShapeError),
    /// The least significant digit of a column belongs to core 0
    /// ([`TtShape::column_order`](crate::TtShape::column_order)).
    ColumnOrder,
    /// More rows, padded ones of a tensor train included, than fit 32 bits.
    TooManyRows {
        /// Rows asked for, saturated.
        found: u64,
    },
    /// The gradient is not `bags x embedding_dim` long.
    GradientLen {
        /// Elements given.
        found: usize,
        /// Elements needed.
        expected: usize,
    },
    /// [`Pooling::Max`](crate::Pooling::Max): sums and means are learned here.
    MaxPooling,
    /// More lookups or bags than fit 32 bits.
    BatchLen {
        /// How many.
        found: usize,
    },
    /// Another number of cores than the shape's.
    CoreCount {
        /// Cores given.
        found: usize,
        /// Cores of the shape.
        expected: usize,
    },
    /// Values of a core or of a dense table are not as many as its shape says.
    ValuesLen {
        /// Which core; 0 for a dense table.
        core: usize,
        /// Elements given.
        found: usize,
        /// Elements needed.
        expected: u64,
    },
    /// A table whose rows hashed indices cannot share.
    NotHashable {
        /// Its rows.
        num_rows: u64,
        /// Indices that were to share them.
        num_embeddings: u64,
    },
    /// A model has neither dense features nor tables.
    NoFeatures,
    /// The rows of a table are not as long as the other vectors of its model.
    EmbeddingDim {
        /// Position of the table.
        table: usize,
        /// Its columns.
        found: usize,
        /// Those of the others: the bottom MLP's outputs, or the first table's columns.
        expected: usize,
    },
    /// A bottom MLP without dense features, or dense features without a bottom MLP.
    BottomMlp {
        /// Dense features.
        dense_dim: usize,
        /// Layers.
        layers: usize,
    },
    /// The top MLP does not end in one output. (Without layers: the interaction does not.)
    TopMlp {
        /// Outputs.
        found: usize,
    },
    /// A layer with no, or too many, inputs or outputs.
    LayerLen {
        /// How many.
        found: usize,
        /// The most allowed.
        limit: usize,
    },
    /// Dense features are not `samples x dense_dim`.
    DenseLen {
        /// Elements given.
        found: usize,
        /// Elements needed.
        expected: usize,
    },
    /// A dense feature is not finite.
    DenseFeature {
        /// Its position among all of the batch.
        position: usize,
    },
    /// Bags for another number of tables than the model has.
    NumTables {
        /// Tables that bags are given for.
        found: usize,
        /// Tables of the model.
        expected: usize,
    },
    /// The bags of a table do not suit it, or are not as many as the samples.
    Table(PoolTablesError),
    /// What was counted elsewhere does not suit the table.
    Counters,
    /// A learning rate is below 0 or not finite.
    LearningRate,
    /// A label is not from 0 to 1.
    Label {
        /// Position of its sample.
        sample: usize,
    },
}

impl fmt::Display for TrainError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Lookup(error) => write!(f, "{error}"),
            Self::Shape(error) => write!(f, "{error}"),
            Self::ColumnOrder => {
                write!(
                    f,
                    "columns whose least significant digit is core 0's: expected the last core's"
                )
            }
            Self::TooManyRows { found } => {
                write!(f, "{found} rows, padding included: at most 2^32 - 1 can be trained")
            }
            Self::GradientLen { found, expected } => {
                write!(f, "gradient of {found} elements: expected {expected}")
            }
            Self::MaxPooling => write!(f, "max pooling cannot be trained: sum and mean can"),
            Self::BatchLen { found } => {
                write!(f, "{found} lookups or bags in a batch: at most 2^32 - 1")
            }
            Self::CoreCount { found, expected } => {
                write!(f, "{found} cores: the shape has {expected}")
            }
            Self::ValuesLen { core, found, expected } => {
                write!(f, "core {core}: {found} values, expected {expected}")
            }
            Self::NotHashable { num_rows, num_embeddings } => write!(
                f,
                "{num_embeddings} hashed indices over {num_rows} rows: at least as many are \
                 needed, and a row for each index of the table below, none stored apart"
            ),
            Self::NoFeatures => write!(f, "a model without dense features and without tables"),
            Self::EmbeddingDim { table, found, expected } => {
                write!(
                    f,
                    "table {table}: rows of {found} columns, expected {expected} as other vectors \
                     have"
                )
            }
            Self::BottomMlp { dense_dim, layers } => {
                write!(
                    f,
                    "bottom MLP of {layers} layers for {dense_dim} dense features: either both \
                     are 0 or neither"
                )
            }
            Self::TopMlp { found } => {
                write!(f, "top MLP with {found} outputs: expected 1, the logit")
            }
            Self::LayerLen { found, limit } => {
                write!(f, "layer with {found} inputs or outputs: expected 1 to {limit}")
            }
            Self::DenseLen { found, expected } => {
                write!(f, "{found} dense features: expected {expected}")
            }
            Self::DenseFeature { position } => {
                write!(f, "dense feature {position} of the batch is not finite")
            }
            Self::NumTables { found, expected } => {
                write!(f, "bags for {found} tables: the model has {expected}")
            }
            Self::Table(error) => write!(f, "{error}"),
            Self::Counters => write!(f, "counters are not those of a table of this kind and size"),
            Self::LearningRate => write!(f, "a learning rate is below 0 or not finite"),
            Self::Label { sample } => write!(f, "label of sample {sample}: expected 0 to 1"),
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
