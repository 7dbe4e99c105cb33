//! Why a table refused a lookup or bags.

use core::fmt;

/// No table has the name that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoSuchTable;

impl fmt::Display for NoSuchTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no table of the blob has this name")
    }
}

impl core::error::Error for NoSuchTable {}

/// Why a table refused a lookup or bags. The output is left unmodified, except with
/// [`Inconsistent`](Self::Inconsistent).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LookupError {
    /// An index is not below `num_embeddings`.
    IndexOutOfRange {
        /// Its position in `indices` (0 for a single lookup).
        position: usize,
        /// The index.
        index: u64,
        /// Rows of the table.
        num_embeddings: u64,
    },
    /// An index of a signed type is negative.
    NegativeIndex {
        /// Its position in `indices`.
        position: usize,
        /// The index.
        index: i64,
    },
    /// The output is not `bags x embedding_dim` (or `embedding_dim`) long.
    OutputLen {
        /// Elements given.
        found: usize,
        /// Elements needed.
        expected: usize,
    },
    /// The workspace is shorter than [`Table::workspace_len`](crate::Table::workspace_len).
    WorkspaceLen {
        /// Elements given.
        found: usize,
        /// Elements needed.
        expected: usize,
    },
    /// The memory for a [`RowCache`](crate::cache::RowCache) has no room for a set of rows.
    CacheLen {
        /// Elements given.
        found: usize,
        /// Elements needed.
        expected: usize,
    },
    /// A prefix is not below the table's number of prefixes; a dense table has none.
    PrefixOutOfRange {
        /// The prefix.
        prefix: u64,
        /// Prefixes of the table.
        num_prefixes: u64,
    },
    /// `per_sample_weights` with another pooling than sum: `torch.nn.EmbeddingBag` refuses them
    /// too.
    WeightsPooling,
    /// Tables that are pooled together have different numbers of bags.
    NumBags {
        /// Bags of this table.
        found: usize,
        /// Bags of the first table.
        expected: usize,
    },
    /// The table's view contradicts itself. [`Blob::parse`](crate::Blob::parse) rules this out: it
    /// would be a defect of this crate, reported instead of a panic.
    Inconsistent,
}

impl fmt::Display for LookupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::IndexOutOfRange { position, index, num_embeddings } => {
                write!(
                    f,
                    "index {index} at position {position}: the table has {num_embeddings} rows"
                )
            }
            Self::NegativeIndex { position, index } => {
                write!(f, "index {index} at position {position} is negative")
            }
            Self::OutputLen { found, expected } => {
                write!(f, "output of {found} elements: expected {expected}")
            }
            Self::WorkspaceLen { found, expected } => {
                write!(f, "workspace of {found} elements: expected at least {expected}")
            }
            Self::CacheLen { found, expected } => {
                write!(f, "cache memory of {found} elements: expected at least {expected}")
            }
            Self::PrefixOutOfRange { prefix, num_prefixes } => {
                write!(f, "prefix {prefix}: the table has {num_prefixes} prefixes")
            }
            Self::WeightsPooling => write!(f, "per_sample_weights work with sum pooling only"),
            Self::NumBags { found, expected } => {
                write!(f, "{found} bags: the first table has {expected}")
            }
            Self::Inconsistent => {
                write!(f, "the table view contradicts itself: please report this")
            }
        }
    }
}

impl core::error::Error for LookupError {}
