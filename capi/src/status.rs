//! What a call says to C: a status for the program, a text for who reads its log.

use std::io;
use ttrec::{BagsError, BlobError, LookupError, NoModel, ScoreError, blob::Rule};

/// What came of a call. TTREC_STATUS_OK is 0; a later version may add others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub enum ttrec_status {
    /// It is done.
    Ok = 0,
    /// A pointer is null that must not be.
    Null = 1,
    /// A pointer is not aligned for what it points to, or a blob's bytes do not start on a multiple
    /// of 64.
    Misaligned = 2,
    /// A length is not the one that is needed, or longer than memory can be.
    Length = 3,
    /// Memory that is written overlaps other memory of the call.
    Overlap = 4,
    /// A pooling or index type is none of those there are, or they do not go together.
    Argument = 5,
    /// A file cannot be opened or mapped.
    Io = 6,
    /// Memory ran out.
    Memory = 7,
    /// The bytes are not a blob at all.
    NotABlob = 8,
    /// The blob is of a version, or has a kind of table, that this library does not know.
    Unsupported = 9,
    /// The blob is shorter or longer than it says.
    Truncated = 10,
    /// The blob contradicts itself or does not match its checksums.
    Corrupt = 11,
    /// No table has this name.
    NoSuchTable = 12,
    /// An index is negative or not below num_embeddings.
    IndexOutOfRange = 13,
    /// Offsets do not start at 0, fall, or do not end at the number of indices.
    Offsets = 14,
    /// Tables that are pooled together do not have the same number of bags, or those of a model not
    /// one for each sample.
    NumBags = 15,
    /// A defect of this library, caught at its boundary: please report it. Outputs may have been
    /// written.
    Internal = 16,
    /// The blob has tables only.
    NoModel = 17,
}

/// Why a call failed, with the names that it was about.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error<'c> {
    #[error("{what} is null")]
    Null { what: &'static str },
    #[error("{what} is not aligned to {alignment} bytes")]
    Misaligned { what: &'static str, alignment: usize },
    #[error("{what}: {len} elements do not fit the address space")]
    TooLong { what: &'static str, len: usize },
    #[error("{what} overlaps memory that the call writes")]
    Overlap { what: &'static str },
    #[error("pooling {found}: expected a ttrec_pooling, 0 (sum), 1 (mean) or 2 (max)")]
    Pooling { found: u32 },
    #[error("index_type {found}: expected a ttrec_index_type, 0 (u32) or 1 (i64)")]
    IndexType { found: u32 },
    #[error("the bags of table {position} have another index_type than those of table 0")]
    MixedIndexTypes { position: usize },
    #[cfg(not(unix))]
    #[error("path is not UTF-8")]
    PathNotUtf8,
    #[error("{path}: {error}")]
    File { path: String, error: io::Error },
    #[error("{path}: not a usable blob: {error}")]
    BlobFile { path: String, error: BlobError },
    #[error("no memory for {bytes} bytes")]
    Memory { bytes: usize },
    #[error(transparent)]
    Blob(#[from] BlobError),
    #[error(transparent)]
    NoModel(#[from] NoModel),
    #[error("no table {name:?}")]
    NoSuchTable { name: &'c str },
    #[error("no table has a name that is not UTF-8")]
    NameNotUtf8,
    #[error("no table {position}: the blob has {num_tables}")]
    TablePosition { position: usize, num_tables: usize },
    #[error("table {table:?}: {error}")]
    Lookup { table: &'c str, error: LookupError },
    #[error("table {table:?}: index {index} at position {position} is negative")]
    NegativeIndex { table: &'c str, position: usize, index: i64 },
    #[error("table {table:?}: {error}")]
    Bags { table: &'c str, error: BagsError },
    #[error(transparent)]
    Tables(LookupError),
    #[error("the model has no table {position}: it has {num_tables}")]
    ModelTable { position: usize, num_tables: usize },
    #[error(transparent)]
    Score(ScoreError),
    #[error("the library panicked: please report this")]
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
            Self::NegativeIndex { .. } => ttrec_status::IndexOutOfRange,
            Self::Lookup { error, .. } | Self::Tables(error) => of_lookup(*error),
            Self::Bags { error: BagsError::WeightsLen { .. }, .. } => ttrec_status::Length,
            Self::Bags { .. } => ttrec_status::Offsets,
            Self::Score(error) => of_score(*error),
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
        // Weights with another pooling than sum, and whatever a later library finds wrong with
        // arguments.
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
