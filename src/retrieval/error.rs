//! Why queries were refused.

use crate::LookupError;
use core::fmt;

/// Why a table refused queries. The output is left unmodified, except with
/// [`Inconsistent`](Self::Inconsistent).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RetrievalError {
    /// The number of elements is not a multiple of `embedding_dim`.
    QueriesLen {
        /// Elements given.
        found: usize,
        /// Elements of a query.
        embedding_dim: usize,
    },
    /// The output has the wrong length for these queries.
    OutputLen {
        /// Elements given.
        found: usize,
        /// Elements needed.
        expected: usize,
    },
    /// The workspace is shorter than
    /// [`Table::retrieval_workspace_len`](crate::Table::retrieval_workspace_len).
    WorkspaceLen {
        /// Elements given.
        found: usize,
        /// The least that are needed.
        expected: usize,
    },
    /// The range of indices ends before it begins, or past the table's last row.
    Rows {
        /// The first index.
        start: u64,
        /// The index after the last.
        end: u64,
        /// Rows of the table.
        num_embeddings: u64,
    },
    /// There is no such part: parts are numbered from 0.
    Part {
        /// The part asked for.
        part: usize,
        /// The number of parts.
        parts: usize,
    },
    /// The lists of excluded indices are neither one for each query nor one for all.
    ExcludedLists {
        /// Lists given.
        found: usize,
        /// The number of queries.
        expected: usize,
    },
    /// An excluded index is not one of the table's.
    ExcludedIndex(LookupError),
    /// An excluded index is smaller than the one before it in its list.
    ExcludedOrder {
        /// Its position among the indices of all lists.
        position: usize,
    },
    /// The table of biases is not a dense table of one column and as many rows.
    Bias {
        /// Rows of the table of biases.
        num_embeddings: u64,
        /// Its columns.
        embedding_dim: usize,
        /// Rows of the table that is searched.
        expected: u64,
    },
    /// The table's view contradicts itself. [`Blob::parse`](crate::Blob::parse) rules this out: it
    /// would be a defect of this crate, reported instead of a panic.
    Inconsistent,
}

impl fmt::Display for RetrievalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::QueriesLen { found, embedding_dim } => {
                write!(
                    f,
                    "queries of {found} elements: expected a multiple of embedding_dim, \
                     {embedding_dim}"
                )
            }
            Self::OutputLen { found, expected } => {
                write!(f, "output of {found} elements: expected {expected}")
            }
            Self::WorkspaceLen { found, expected } => {
                write!(f, "workspace of {found} elements: expected at least {expected}")
            }
            Self::Rows { start, end, num_embeddings } => {
                write!(f, "rows {start} to {end}: the table has {num_embeddings} rows")
            }
            Self::Part { part, parts } => {
                write!(f, "part {part} of {parts}: parts are numbered from 0")
            }
            Self::ExcludedLists { found, expected } => write!(
                f,
                "{found} lists of excluded indices: expected one for each of {expected} queries, \
                 or one for all"
            ),
            Self::ExcludedIndex(error) => write!(f, "excluded indices: {error}"),
            Self::ExcludedOrder { position } => write!(
                f,
                "the excluded index at position {position} is smaller than the one before it: \
                 sort each list"
            ),
            Self::Bias { num_embeddings, embedding_dim, expected } => write!(
                f,
                "biases of {num_embeddings} x {embedding_dim}: expected a dense table of \
                 {expected} x 1"
            ),
            Self::Inconsistent => {
                write!(f, "the table view contradicts itself: please report this")
            }
        }
    }
}

impl core::error::Error for RetrievalError {}
