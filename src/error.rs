//! The ways things fail, one small `Copy` enum per stage: a shape that cannot exist, bytes that are
//! not a blob, a lookup whose arguments do not fit. Every message says what was found and what was
//! expected; a caller adds the file and table names it knows.

use core::fmt;

/// Why a [`TtShape`](crate::TtShape) was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ShapeError {
    /// The number of cores is outside `2..=`[`MAX_CORES`](crate::shape::MAX_CORES).
    CoreCount {
        /// Cores asked for.
        found: usize,
    },
    /// `row_factors`, `column_factors` and inner `ranks` do not describe the same number of cores.
    Lengths {
        /// Number of row factors (d).
        row_factors: usize,
        /// Number of column factors, which must be d.
        column_factors: usize,
        /// Number of inner ranks, which must be d - 1.
        ranks: usize,
    },
    /// A factor or rank is zero or above its limit.
    Factor {
        /// `"row factor"`, `"column factor"` or `"rank"`.
        what: &'static str,
        /// Position in its list.
        position: usize,
        /// The value given.
        found: u64,
        /// The largest value allowed; the smallest is 1.
        limit: u64,
    },
    /// `num_embeddings` is zero or above [`MAX_NUM_EMBEDDINGS`](crate::shape::MAX_NUM_EMBEDDINGS).
    NumEmbeddings {
        /// Rows asked for.
        found: u64,
    },
    /// The product of the row factors is smaller than `num_embeddings`, or above 2^48.
    RowFactors {
        /// Product of the row factors, saturated.
        product: u64,
        /// Rows that it must hold.
        num_embeddings: u64,
    },
    /// `embedding_dim` (the product of the column factors) is zero or above
    /// [`MAX_EMBEDDING_DIM`](crate::shape::MAX_EMBEDDING_DIM).
    EmbeddingDim {
        /// Columns asked for, saturated.
        found: u64,
    },
    /// The two parts of a quotient-remainder table do not make rows of `embedding_dim` columns for
    /// all of its rows.
    QuotientRemainder {
        /// Quotient and remainder rows: `ceil(num_rows / remainder rows)` of the former, 1 to 2^31
        /// - 1 of each.
        rows: [u32; 2],
        /// Their columns: `embedding_dim` both, or in sum if they are put end to end.
        columns: [usize; 2],
    },
    /// The table, one slice or the lookup's scratch would not fit this machine's address space.
    TooLarge,
}

impl fmt::Display for ShapeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use crate::limits::{MAX_CORES, MAX_EMBEDDING_DIM, MAX_NUM_EMBEDDINGS};
        match *self {
            Self::CoreCount { found } => {
                write!(f, "{found} cores: a tensor train has 2 to {MAX_CORES}")
            }
            Self::Lengths { row_factors, column_factors, ranks } => write!(
                f,
                "{row_factors} row factors, {column_factors} column factors and {ranks} inner \
                 ranks: d cores need d, d and d - 1"
            ),
            Self::Factor { what, position, found, limit } => {
                write!(f, "{what} {position} is {found}: expected 1 to {limit}")
            }
            Self::NumEmbeddings { found } => {
                write!(f, "num_embeddings is {found}: expected 1 to {MAX_NUM_EMBEDDINGS}")
            }
            Self::RowFactors { product, num_embeddings } => write!(
                f,
                "the row factors multiply to {product}: expected at least num_embeddings = \
                 {num_embeddings} and at most 2^48"
            ),
            Self::EmbeddingDim { found } => {
                write!(f, "embedding_dim is {found}: expected 1 to {MAX_EMBEDDING_DIM}")
            }
            Self::QuotientRemainder { rows: [quotients, remainders], columns: [first, second] } => {
                write!(
                    f,
                    "{quotients} x {first} quotient and {remainders} x {second} remainder rows do \
                     not combine to rows of embedding_dim columns, one for each of num_rows"
                )
            }
            Self::TooLarge => write!(f, "the table does not fit this machine's address space"),
        }
    }
}

impl core::error::Error for ShapeError {}

/// Why bytes were refused as a blob, or a table could not be had from one.
///
/// `table` and `section` are positions in the directory (`docs/format.md`), since a refused blob
/// may have no names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BlobError {
    /// The buffer does not start on a multiple of [`ALIGNMENT`](crate::blob::ALIGNMENT) bytes.
    Misaligned {
        /// How many bytes past the last aligned address it starts.
        excess: usize,
    },
    /// The buffer ends before the header or the directory does.
    Truncated {
        /// Bytes given.
        len: u64,
        /// Bytes needed to go on.
        needed: u64,
    },
    /// The first eight bytes are not the format's magic.
    Magic,
    /// The format version is not one that this reader knows.
    Version {
        /// Version in the header.
        found: u32,
    },
    /// A header flag is set that this reader does not know.
    Flags {
        /// Flags in the header.
        found: u32,
    },
    /// The header's total length differs from the buffer's: bytes were cut off or appended.
    TotalLength {
        /// Length in the header.
        declared: u64,
        /// Length of the buffer.
        actual: u64,
    },
    /// A count in the header is above its limit.
    Count {
        /// `"tables"`, `"layers"`, `"tables of the model"`, `"sections"` or `"name bytes"`.
        what: &'static str,
        /// The count in the header.
        found: u64,
        /// The largest count allowed.
        limit: u64,
    },
    /// Header and directory do not match their checksum.
    DirectoryChecksum {
        /// Checksum in the header.
        stored: u32,
        /// Checksum of the bytes.
        computed: u32,
    },
    /// Bytes that must be zero in version 1 are not.
    Reserved {
        /// `"header"`, `"table"`, `"section"`, `"layer"` or `"names"`.
        what: &'static str,
        /// Which one.
        position: usize,
    },
    /// A code in a table's record is not one that this reader knows.
    TableCode {
        /// Table position.
        table: usize,
        /// `"kind"`, `"index map"`, `"layout"`, `"digit order"` or `"combine"`.
        field: &'static str,
        /// The code found.
        found: u32,
    },
    /// A table's name is empty, too long, not UTF-8 or not where the names before it end.
    Name {
        /// Table position.
        table: usize,
    },
    /// Names are not in strictly ascending byte order, so one is out of place or there twice.
    NameOrder {
        /// Position of the second table of the offending pair.
        table: usize,
    },
    /// The numbers of a table's shape cannot be.
    Shape {
        /// Table position.
        table: usize,
        /// What is wrong with them.
        error: ShapeError,
    },
    /// A table does not own the sections that follow the ones of the table before it, or sections
    /// are left over.
    SectionOwner {
        /// Table position; the number of tables when sections are left over.
        table: usize,
    },
    /// A section is not the one that its table needs at this place.
    SectionRole {
        /// Section position.
        section: usize,
        /// Role code found.
        found: u32,
    },
    /// A section's dtype is unknown or not allowed for its role.
    SectionDtype {
        /// Section position.
        section: usize,
        /// Dtype code found.
        found: u32,
    },
    /// A section does not start where the one before it ends, rounded up to 64 bytes.
    SectionOffset {
        /// Section position.
        section: usize,
        /// Offset in the directory.
        found: u64,
        /// Offset expected.
        expected: u64,
    },
    /// A section's length is not what its table's shape needs.
    SectionLength {
        /// Section position.
        section: usize,
        /// Bytes in the directory.
        found: u64,
        /// Bytes needed; 0 where no one length is: the section is empty, longer than the blob, or
        /// ends within an element.
        expected: u64,
    },
    /// No table has the name asked for.
    NoSuchTable,
    /// The header names an interaction that this reader does not know, or one without layers, or
    /// layers without one.
    Interaction {
        /// The code found.
        found: u8,
    },
    /// A code in a layer's record is not one that this reader knows.
    LayerCode {
        /// Layer position, those of the bottom perceptron first.
        layer: usize,
        /// `"stack"` or `"activation"`.
        field: &'static str,
        /// The code found.
        found: u8,
    },
    /// A layer's width is not what the layers and tables before it make, or what a model has at its
    /// end.
    LayerWidth {
        /// Layer position.
        layer: usize,
        /// `"inputs"` or `"outputs"`.
        field: &'static str,
        /// The width found.
        found: u32,
        /// The width needed; 0 where it is 1 to [`MAX_LAYER_WIDTH`](crate::blob::MAX_LAYER_WIDTH).
        expected: u64,
    },
    /// The layers are not those of a bottom perceptron and then those of a top one, or a sigmoid is
    /// not at the end.
    LayerOrder {
        /// Position of the first layer that is out of place; the number of layers where some are
        /// missing.
        layer: usize,
    },
    /// A layer does not own the sections that follow those of the layer, or table, before it, or
    /// has another number of them.
    LayerSections {
        /// Layer position.
        layer: usize,
    },
    /// The model looks up a table that is not there.
    ModelTable {
        /// Position in the list of the model's tables.
        position: usize,
        /// The table position found.
        found: u32,
    },
    /// A table of the model has rows of another width than the bottom perceptron makes.
    ModelDim {
        /// Table position.
        table: usize,
        /// Its embedding_dim.
        found: u32,
        /// Outputs of the bottom perceptron; without one, the embedding_dim of the model's first
        /// table.
        expected: usize,
    },
    /// A layer's bytes do not match their checksum.
    LayerChecksum {
        /// Layer position.
        layer: usize,
        /// Section position.
        section: usize,
    },
    /// A scale of a layer's weights is not finite and positive.
    LayerScale {
        /// Layer position.
        layer: usize,
        /// Which output's.
        position: usize,
    },
    /// The blob has no model, or no layer at the position asked for.
    NoModel,
    /// A section's bytes do not match its checksum.
    PayloadChecksum {
        /// Table position.
        table: usize,
        /// Section position.
        section: usize,
    },
    /// A quantisation scale is not finite and positive, or an offset is not finite.
    Scale {
        /// Table position.
        table: usize,
        /// Section position.
        section: usize,
        /// Slice or row whose scale it is.
        position: u64,
    },
    /// Prefix ids are not strictly ascending, not below the number of prefixes, or not where their
    /// index has them.
    PrefixIds {
        /// Table position.
        table: usize,
        /// Position among the ids.
        position: usize,
    },
    /// The number of stored rows is not 0 where there is one for each index, or else not 1 to
    /// `num_embeddings`.
    NumRows {
        /// Table position.
        table: usize,
        /// The number found.
        found: u64,
        /// Indices of the table.
        num_embeddings: u64,
    },
    /// An index is mapped to a row that is not below the number of stored rows.
    RemappedRow {
        /// Table position.
        table: usize,
        /// The index.
        position: usize,
    },
    /// Override ids are not strictly ascending, not below `num_embeddings`, or not where their
    /// index has them.
    OverrideIds {
        /// Table position.
        table: usize,
        /// Position among the ids.
        position: usize,
    },
}

impl fmt::Display for BlobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use crate::limits::{ALIGNMENT, MAX_LAYER_WIDTH, MAX_NAME_LEN, VERSION};
        match *self {
            Self::Misaligned { excess } => write!(
                f,
                "the buffer starts {excess} bytes past a multiple of {ALIGNMENT}: it must be \
                 {ALIGNMENT}-byte aligned (mmap, include_blob! and AlignedBuf are)"
            ),
            Self::Truncated { len, needed } => write!(f, "{len} bytes: expected at least {needed}"),
            Self::Magic => write!(f, "not a ttrec blob: the first 8 bytes are not its magic"),
            Self::Version { found } => {
                write!(f, "format version {found}: this reader knows version {VERSION}")
            }
            Self::Flags { found } => write!(f, "header flags {found:#x}: this reader knows none"),
            Self::TotalLength { declared, actual } => {
                write!(f, "{actual} bytes: the header says {declared}")
            }
            Self::Count { what, found, limit } => {
                write!(f, "{found} {what}: expected at most {limit}")
            }
            Self::DirectoryChecksum { stored, computed } => {
                write!(f, "directory checksum {computed:#010x}: the header says {stored:#010x}")
            }
            Self::Reserved { what, position } => {
                write!(f, "reserved bytes of {what} {position} are not zero")
            }
            Self::TableCode { table, field, found } => {
                write!(
                    f,
                    "table {table}: unknown {field} {found}; a newer ttrec may have written this \
                     blob"
                )
            }
            Self::Name { table } => write!(
                f,
                "table {table}: the name must be 1 to {} bytes of UTF-8 that start where the name \
                 before it ends",
                MAX_NAME_LEN
            ),
            Self::NameOrder { table } => {
                write!(f, "table {table}: names must be unique and in ascending byte order")
            }
            Self::Shape { table, error } => write!(f, "table {table}: {error}"),
            Self::SectionOwner { table } => {
                write!(f, "table {table}: its sections do not follow those of the table before it")
            }
            Self::SectionRole { section, found } => {
                write!(f, "section {section}: role {found} is not the one its table needs here")
            }
            Self::SectionDtype { section, found } => {
                write!(f, "section {section}: dtype {found} is unknown or does not suit its role")
            }
            Self::SectionOffset { section, found, expected } => {
                write!(f, "section {section}: offset {found}, expected {expected}")
            }
            Self::SectionLength { section, found, expected: 0 } => {
                write!(
                    f,
                    "section {section}: {found} bytes: none, more than the blob has left, or a \
                     broken element"
                )
            }
            Self::SectionLength { section, found, expected } => {
                write!(f, "section {section}: {found} bytes, expected {expected}")
            }
            Self::NoSuchTable => write!(f, "no table has this name"),
            Self::Interaction { found } => write!(
                f,
                "interaction {found}: expected 1 (dot) with layers, 0 without; a newer ttrec may \
                 have written this blob"
            ),
            Self::LayerCode { layer, field, found } => {
                write!(
                    f,
                    "layer {layer}: unknown {field} {found}; a newer ttrec may have written this \
                     blob"
                )
            }
            Self::LayerWidth { layer, field, found, expected: 0 } => {
                write!(f, "layer {layer}: {found} {field}: expected 1 to {MAX_LAYER_WIDTH}")
            }
            Self::LayerWidth { layer, field, found, expected } => {
                write!(f, "layer {layer}: {found} {field}: expected {expected}")
            }
            Self::LayerOrder { layer } => write!(
                f,
                "layer {layer}: expected layers of a bottom perceptron, then of a top one, and a \
                 sigmoid at the end only; a bottom may be missing where there are two tables"
            ),
            Self::LayerSections { layer } => {
                write!(
                    f,
                    "layer {layer}: its sections do not follow those before it, or are not those \
                     of a layer"
                )
            }
            Self::ModelTable { position, found } => {
                write!(
                    f,
                    "table {position} of the model is said to be table {found}, which is not there"
                )
            }
            Self::ModelDim { table, found, expected } => write!(
                f,
                "table {table}: embedding_dim {found}, but the model's vectors, those of its \
                 bottom perceptron or first table, have {expected}"
            ),
            Self::LayerChecksum { layer, section } => {
                write!(f, "layer {layer}, section {section}: the bytes do not match their checksum")
            }
            Self::LayerScale { layer, position } => {
                write!(
                    f,
                    "layer {layer}: the scale of output {position} is not finite and positive"
                )
            }
            Self::NoModel => write!(f, "the blob has no model"),
            Self::PayloadChecksum { table, section } => {
                write!(f, "table {table}, section {section}: the bytes do not match their checksum")
            }
            Self::Scale { table, section, position } => write!(
                f,
                "table {table}, section {section}: scale {position} is not finite and positive, \
                 or its offset not finite"
            ),
            Self::PrefixIds { table, position } => write!(
                f,
                "table {table}: prefix id {position} is not above the one before it and below the \
                 number of prefixes, or its index has it elsewhere"
            ),
            Self::NumRows { table, found, num_embeddings } => write!(
                f,
                "table {table}: num_rows is {found}: expected 1 to num_embeddings = \
                 {num_embeddings} with an index map, 0 without"
            ),
            Self::RemappedRow { table, position } => {
                write!(
                    f,
                    "table {table}: index {position} is mapped to a row that the table does not \
                     have"
                )
            }
            Self::OverrideIds { table, position } => write!(
                f,
                "table {table}: override id {position} is not above the one before it and below \
                 num_embeddings, or its index has it elsewhere"
            ),
        }
    }
}

impl core::error::Error for BlobError {}

/// Why a lookup or a bag was refused. Nothing has been written to the output then, but with
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
    /// `offsets` is empty; it holds one more element than there are bags.
    OffsetsEmpty,
    /// `offsets` does not start at 0, falls, or does not end at the number of indices.
    Offsets {
        /// Position of the first offset that is wrong.
        position: usize,
        /// Its value.
        found: u64,
        /// The number of indices.
        num_indices: usize,
    },
    /// `per_sample_weights` has not one weight per index.
    WeightsLen {
        /// Weights given.
        found: usize,
        /// Indices given.
        expected: usize,
    },
    /// `per_sample_weights` go with sum pooling only, as in `torch.nn.EmbeddingBag`.
    WeightsPooling,
    /// Tables that are pooled together have one number of bags.
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
            Self::OffsetsEmpty => write!(
                f,
                "offsets is empty: expected one more than there are bags, starting with 0"
            ),
            Self::Offsets { position, found, num_indices } => write!(
                f,
                "offset {found} at position {position}: offsets start at 0, never fall and end at \
                 the number of indices, {num_indices}"
            ),
            Self::WeightsLen { found, expected } => {
                write!(f, "{found} per_sample_weights: expected one per index, {expected}")
            }
            Self::WeightsPooling => write!(f, "per_sample_weights go with sum pooling only"),
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

/// Why a [`Ranker`](crate::dlrm::Ranker) refused: nothing has been written then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ScoreError {
    /// The dense features are not those of each sample or, where one user has many candidates, of
    /// one.
    DenseLen {
        /// Elements given.
        found: usize,
        /// Elements needed for each of the samples.
        expected: usize,
    },
    /// Not one list of bags per table of the model.
    BagLists {
        /// Lists given.
        found: usize,
        /// Tables of the model.
        expected: usize,
    },
    /// What is wrong with the bags of one table.
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

impl core::error::Error for ScoreError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Table { error, .. } => Some(error),
            _ => None,
        }
    }
}

/// Why [`pool_tables`](crate::bag::pool_tables) refused: nothing has been written then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolTablesError {
    /// Position of the table among those given; 0 if it is not one table's fault.
    pub table: usize,
    /// What is wrong with it or its bags.
    pub error: LookupError,
}

impl fmt::Display for PoolTablesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "table {}: {}", self.table, self.error)
    }
}

impl core::error::Error for PoolTablesError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        Some(&self.error)
    }
}
