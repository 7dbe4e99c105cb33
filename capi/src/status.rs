//! What a failed call reports: a status for the program, and a message for its log.

use std::io;
use ttrec::{BagsError, BlobError, LookupError, NoModel, RetrievalError, ScoreError, blob::Rule};

/// The result of a call. TTREC_STATUS_OK is 0. A later version may add other statuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub enum ttrec_status {
    /// The call succeeded.
    Ok = 0,
    /// A pointer is null, but must not be.
    Null = 1,
    /// A pointer is not aligned for its type, or the address of a blob is not a multiple of 64.
    Misaligned = 2,
    /// A length is wrong, or larger than the address space.
    Length = 3,
    /// An output overlaps other memory that was passed.
    Overlap = 4,
    /// A pooling or index type is unknown, or cannot be combined with another argument.
    Argument = 5,
    /// A file could not be opened or mapped.
    Io = 6,
    /// Memory could not be allocated.
    Memory = 7,
    /// The bytes are not a ttrec blob.
    NotABlob = 8,
    /// The blob's version, or the kind of one of its tables or layers, is unknown to this library.
    Unsupported = 9,
    /// The blob is shorter or longer than its header says.
    Truncated = 10,
    /// The blob is invalid, or does not match its checksums.
    Corrupt = 11,
    /// No table has this name.
    NoSuchTable = 12,
    /// An index is negative, or not less than num_embeddings.
    IndexOutOfRange = 13,
    /// Offsets do not start at 0, decrease, or do not end at the number of indices.
    Offsets = 14,
    /// Tables that are pooled together have different numbers of bags, or a table of a model does
    /// not have one bag for each sample.
    NumBags = 15,
    /// A bug in this library: please report it. Outputs may have been written.
    Internal = 16,
    /// The blob has no model, only tables.
    NoModel = 17,
}

/// Why a call failed. Borrows the names in its message, so that a failure allocates nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error<'c> {
    #[error("{what} is null")]
    Null { what: &'static str },
    #[error("{what} is not aligned to {alignment} bytes")]
    Misaligned { what: &'static str, alignment: usize },
    #[error("{what}: {len} elements are more than the address space holds")]
    TooLong { what: &'static str, len: usize },
    #[error("{what} overlaps an output of the call")]
    Overlap { what: &'static str },
    #[error("pooling {found}: expected a ttrec_pooling, 0 (sum), 1 (mean) or 2 (max)")]
    Pooling { found: u32 },
    #[error("index_type {found}: expected a ttrec_index_type, 0 (u32), 1 (i64) or 2 (i32)")]
    IndexType { found: u32 },
    #[error("bags {position}: another index_type than bags 0: expected the same for all tables")]
    MixedIndexTypes { position: usize },
    #[cfg(not(unix))]
    #[error("path is not valid UTF-8")]
    PathNotUtf8,
    #[error("{path}: {error}")]
    File { path: String, error: io::Error },
    #[error("{path}: not a usable blob: {error}")]
    BlobFile { path: String, error: BlobError },
    #[error("could not allocate {bytes} bytes")]
    Memory { bytes: usize },
    #[error(transparent)]
    Blob(#[from] BlobError),
    #[error(transparent)]
    NoModel(#[from] NoModel),
    #[error("no table {name:?}")]
    NoSuchTable { name: &'c str },
    #[error("no table has this name: it is not valid UTF-8")]
    NameNotUtf8,
    #[error("no table {position}: the blob has {num_tables}")]
    TablePosition { position: usize, num_tables: usize },
    #[error("table {table:?}: {error}")]
    Lookup { table: &'c str, error: LookupError },
    #[error("table {table:?}: {error}")]
    Bags { table: &'c str, error: BagsError },
    #[error(transparent)]
    Tables(LookupError),
    #[error("the model has no table {position}: it has {num_tables}")]
    ModelTable { position: usize, num_tables: usize },
    #[error(transparent)]
    Score(ScoreError),
    #[error("table {table:?}: {error}")]
    Retrieval { table: &'c str, error: RetrievalError },
    #[error(transparent)]
    Merge(RetrievalError),
    #[error("the library panicked: please report this bug")]
    Panic,
}

impl Error<'_> {
    pub(crate) fn status(&self) -> ttrec_status {
        match self {
            Self::Null { .. } => ttrec_status::Null,
            Self::Misaligned { .. } => ttrec_status::Misaligned,
            Self::TooLong { .. } => ttrec_status::Length,
            Self::Overlap { .. } => ttrec_status::Overlap,
            Self::Pooling { .. } | Self::IndexType { .. } | Self::MixedIndexTypes { .. } => {
                ttrec_status::Argument
            }
            Self::File { .. } => ttrec_status::Io,
            #[cfg(not(unix))]
            Self::PathNotUtf8 => ttrec_status::Io,
            Self::Memory { .. } => ttrec_status::Memory,
            Self::Blob(error) | Self::BlobFile { error, .. } => of_blob(*error),
            Self::NoModel(NoModel) => ttrec_status::NoModel,
            Self::NoSuchTable { .. }
            | Self::NameNotUtf8
            | Self::TablePosition { .. }
            | Self::ModelTable { .. } => ttrec_status::NoSuchTable,
            Self::Lookup { error, .. } | Self::Tables(error) => of_lookup(*error),
            Self::Bags { error: BagsError::WeightsLen { .. }, .. } => ttrec_status::Length,
            Self::Bags { .. } => ttrec_status::Offsets,
            Self::Score(error) => of_score(*error),
            Self::Retrieval { error, .. } | Self::Merge(error) => of_retrieval(*error),
            Self::Panic => ttrec_status::Internal,
        }
    }
}

fn of_blob(error: BlobError) -> ttrec_status {
    match error.rule() {
        Rule::Alignment => ttrec_status::Misaligned,
        Rule::Magic => ttrec_status::NotABlob,
        Rule::Version
        | Rule::Flags
        | Rule::Kind
        | Rule::IndexMap
        | Rule::Layout
        | Rule::DigitOrder
        | Rule::ColumnOrder
        | Rule::Combine
        | Rule::CodebookCombine
        | Rule::Stack
        | Rule::Activation
        | Rule::Interaction => ttrec_status::Unsupported,
        Rule::Truncated | Rule::TotalLen | Rule::BlobEnd => ttrec_status::Truncated,
        _ => ttrec_status::Corrupt,
    }
}

fn of_lookup(error: LookupError) -> ttrec_status {
    match error {
        LookupError::IndexOutOfRange { .. } | LookupError::NegativeIndex { .. } => {
            ttrec_status::IndexOutOfRange
        }
        LookupError::OutputLen { .. } | LookupError::WorkspaceLen { .. } => ttrec_status::Length,
        LookupError::NumBags { .. } => ttrec_status::NumBags,
        LookupError::Inconsistent => ttrec_status::Internal,
        // Weights with mean or max pooling, and errors that a later version of the library adds.
        _ => ttrec_status::Argument,
    }
}

fn of_score(error: ScoreError) -> ttrec_status {
    match error {
        ScoreError::DenseLen { .. }
        | ScoreError::BagLists { .. }
        | ScoreError::WorkspaceLen { .. } => ttrec_status::Length,
        ScoreError::Table { error, .. } => of_lookup(error),
        ScoreError::Inconsistent => ttrec_status::Internal,
        _ => ttrec_status::Argument,
    }
}

fn of_retrieval(error: RetrievalError) -> ttrec_status {
    match error {
        RetrievalError::QueriesLen { .. }
        | RetrievalError::OutputLen { .. }
        | RetrievalError::WorkspaceLen { .. } => ttrec_status::Length,
        RetrievalError::Rows { .. } => ttrec_status::IndexOutOfRange,
        RetrievalError::ExcludedIndex(error) => of_lookup(error),
        RetrievalError::ExcludedLists { .. } => ttrec_status::NumBags,
        RetrievalError::Inconsistent => ttrec_status::Internal,
        _ => ttrec_status::Argument,
    }
}
