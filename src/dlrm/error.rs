//! Why a model was not scored.

use crate::LookupError;
use core::fmt;

/// The blob has tables only, and no model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoModel;

impl fmt::Display for NoModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the blob has no model")
    }
}

impl core::error::Error for NoModel {}

/// Why a [`Ranker`](crate::dlrm::Ranker) refused its arguments. The output is left unmodified,
/// except with [`Inconsistent`](Self::Inconsistent).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ScoreError {
    /// The dense features are not as many as the samples need.
    /// [`Ranker::rank`](crate::dlrm::Ranker::rank) also accepts those of one sample.
    DenseLen {
        /// Elements given.
        found: usize,
        /// Elements needed for each of the samples.
        expected: usize,
    },
    /// The number of lists of bags is not the number of the model's tables.
    BagLists {
        /// Lists given.
        found: usize,
        /// Tables of the model.
        expected: usize,
    },
    /// The bags of one table were refused.
    Table {
        /// Its position among the model's tables
        /// ([`Blob::model_tables`](crate::Blob::model_tables)).
        table: usize,
        /// The error.
        error: LookupError,
    },
    /// The workspace is smaller than [`Ranker::workspace_len`](crate::dlrm::Ranker::workspace_len).
    WorkspaceLen {
        /// Elements given.
        found: usize,
        /// The least that are needed.
        expected: usize,
    },
    /// The model's view contradicts itself. [`Blob::parse`](crate::Blob::parse) rules this out: it
    /// would be a defect of this crate, reported instead of a panic.
    Inconsistent,
}

impl fmt::Display for ScoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::DenseLen { found, expected } => {
                write!(f, "{found} dense features: expected {expected}")
            }
            Self::BagLists { found, expected } => {
                write!(
                    f,
                    "{found} lists of bags: expected one for each of the model's {expected} tables"
                )
            }
            Self::Table { table, error } => write!(f, "table {table} of the model: {error}"),
            Self::WorkspaceLen { found, expected } => {
                write!(f, "workspace of {found} elements: expected at least {expected}")
            }
            Self::Inconsistent => {
                write!(f, "the model view contradicts itself: please report this")
            }
        }
    }
}

impl core::error::Error for ScoreError {}
