//! Why bytes were refused as a blob, or tables cannot be laid out as one.

use crate::ShapeError;
#[cfg(feature = "alloc")]
use crate::{
    dtype::Dtype,
    limits::{MAX_LAYER_WIDTH, MAX_LAYERS, MAX_MODEL_TABLES, MAX_NAME_LEN, MAX_TABLES},
    repr::RowNumberDtype,
};
#[cfg(feature = "alloc")]
use alloc::string::String;
use core::{cell::Cell, fmt};

/// Why bytes were refused as a blob: the place, the rule of `docs/format.md` that does not hold
/// there, and what was found and expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobError {
    at: Location,
    broken: Broken,
}

/// A rule that does not hold, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    Shape(ShapeError),
    Rule { rule: Rule, found: u64, expected: u64 },
}

/// A place in a blob. Tables, sections and layers are numbered as in the directory, since a refused
/// blob may have no names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Location {
    /// The bytes as a whole.
    Buffer,
    /// The header.
    Header,
    /// The names of the tables.
    Names,
    /// A table.
    Table(usize),
    /// A section.
    Section(usize),
    /// An element of a section: a row, slice, id or scale.
    Element {
        /// The section.
        section: usize,
        /// Position of the element.
        position: u64,
    },
    /// A layer of the model, those of the bottom perceptron first.
    Layer(usize),
    /// An entry in the list of the model's tables.
    ModelTable(usize),
    /// The model as a whole.
    Model,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Buffer => write!(f, "the buffer"),
            Self::Header => write!(f, "the header"),
            Self::Names => write!(f, "the names"),
            Self::Table(table) => write!(f, "table {table}"),
            Self::Section(section) => write!(f, "section {section}"),
            Self::Element { section, position } => {
                write!(f, "section {section}, position {position}")
            }
            Self::Layer(layer) => write!(f, "layer {layer}"),
            Self::ModelTable(position) => write!(f, "model table {position}"),
            Self::Model => write!(f, "the model"),
        }
    }
}

/// Makes [`Rule`], and the sentence for each: after the place, and with the numbers that a
/// [`BlobError`] has.
macro_rules! rules {
    ($found:ident, $expected:ident; $($(#[$doc:meta])* $rule:ident $text:literal)*) => {
        /// A rule of `docs/format.md`. What [`BlobError::found`] and [`BlobError::expected`] count
        /// is in the sentence that [`BlobError`] displays; they are 0 where it has no number.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum Rule {
            /// The numbers of a table are a valid shape; [`BlobError::shape`] has the error.
            Shape,
            $($(#[$doc])* $rule,)*
        }

        impl fmt::Display for BlobError {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                // Bytes without the magic have no header.
                if self.rule() != Rule::Magic {
                    write!(f, "{}: ", self.at)?;
                }
                match self.broken {
                    Broken::Shape(error) => error.fmt(f),
                    Broken::Rule { rule, found: $found, expected: $expected } => match rule {
                        Rule::Shape => Ok(()),
                        $(Rule::$rule => write!(f, $text),)*
                    },
                }
            }
        }
    };
}

rules! { found, expected;
    /// The buffer starts on a multiple of [`ALIGNMENT`](crate::limits::ALIGNMENT) bytes.
    Alignment "starts {found} bytes past a multiple of {expected}: align it as mmap, \
        include_blob! and AlignedBuf do"
    /// The buffer holds the header and the directory.
    Truncated "{found} bytes: expected at least {expected}"
    /// The blob starts with the magic.
    Magic "not a ttrec blob: the first 8 bytes are not its magic"
    /// The format version is known.
    Version "format version {found}: this reader knows version {expected}"
    /// No flag is set.
    Flags "flags {found:#x}: this reader knows none; a newer ttrec may have written this blob"
    /// The file is as long as the header says.
    TotalLen "{found} bytes: the header says {expected}"
    /// Reserved bytes, unused fields and padding are 0.
    Reserved "reserved bytes are not zero; a newer ttrec may have written this blob"
    /// Header and directory, or a section with its padding, match their checksum.
    Checksum "the bytes have checksum {found:#010x}: expected {expected:#010x}"

    /// A blob has no more tables than [`MAX_TABLES`](crate::limits::MAX_TABLES).
    NumTables "num_tables is {found}: expected at most {expected}"
    /// A blob has no more sections than its tables and layers can own.
    NumSections "num_sections is {found}: expected at most {expected}"
    /// The names take no more bytes than `num_tables` names of the greatest length.
    NamesLen "names_len is {found}: expected at most {expected}"
    /// A model has no more layers than [`MAX_LAYERS`](crate::limits::MAX_LAYERS).
    NumLayers "num_layers is {found}: expected at most {expected}"
    /// A model has no more tables than [`MAX_MODEL_TABLES`](crate::limits::MAX_MODEL_TABLES), and
    /// without layers none.
    NumModelTables "num_model_tables is {found}: expected at most {expected}"
    /// The interaction is known; it is 0 without layers.
    Interaction "interaction {found}: expected at most {expected}, and 0 only without a model; a \
        newer ttrec may have written this blob"

    /// A name has 1 to [`MAX_NAME_LEN`](crate::limits::MAX_NAME_LEN) bytes.
    NameLen "the name has {found} bytes: expected 1 to {expected}"
    /// A name starts where the name before it ends.
    NameOffset "the name starts at byte {found} of the names: expected {expected}"
    /// A name ends among the names.
    NameEnd "the name ends at byte {found} of the names: they have {expected}"
    /// Names are UTF-8.
    NameUtf8 "the name is not UTF-8"
    /// Names are in strictly ascending byte order.
    NameOrder "the name is not above the name before it: names are unique and in byte order"
    /// Every byte of the names belongs to a table.
    NamesEnd "{found} bytes belong to tables: names_len is {expected}"

    /// The kind of a table is known.
    Kind "kind {found}: expected 1 to {expected}; a newer ttrec may have written this blob"
    /// The index map is known.
    IndexMap "index_map {found}: expected 0 to {expected}; a newer ttrec may have written this blob"
    /// The layout is known.
    Layout "layout {found}: expected {expected}; a newer ttrec may have written this blob"
    /// The order of the digits of a row is known.
    DigitOrder "digit_order {found}: expected 0 to {expected}; a newer ttrec may have written this \
        blob"
    /// The order of the digits of a column is known.
    ColumnOrder "column_order {found}: expected 0 to {expected}; a newer ttrec may have written \
        this blob"
    /// The operation that combines two rows is known.
    Combine "combine {found}: expected 1 to {expected}; a newer ttrec may have written this blob"
    /// The entries of a codebook table are added or put end to end.
    CodebookCombine "combine {found}: expected 2 or {expected} in a codebook table; a newer ttrec \
        may have written this blob"
    /// A table with an index map stores 1 to `num_embeddings` rows.
    NumRows "num_rows is {found}: expected 1 to num_embeddings = {expected}"
    /// Without an index map, `num_rows` is 0.
    NumRowsUnmapped "num_rows is {found}: expected {expected}, as index_map is 0"

    /// The sections of a table or layer start where those before it end.
    FirstSection "first_section is {found}: expected {expected}, where those before it end"
    /// The sections of a table or layer are among those of the blob.
    LastSection "its sections end at {found}: the blob has {expected}"
    /// A table or layer has all sections that it needs.
    MissingSection "it has {found} sections: it needs at least {expected}"
    /// A table or layer has no section that it does not need.
    ExtraSection "it has {found} sections: expected {expected}"
    /// Every section belongs to a table or layer.
    Owner "belongs to no table or layer"
    /// A section has the role that its table or layer needs next.
    Role "role {found}: its table or layer needs role {expected} here"
    /// A section belongs to the core, part or layer that comes next.
    Core "core {found}: its table or layer needs {expected} here"
    /// A section's dtype is known, and allowed for its role.
    Dtype "dtype {found}: unknown, or not allowed for role {expected}"
    /// A section starts where the one before it ends, rounded up to 64 bytes.
    Offset "offset is {found}: expected {expected}"
    /// A section is not empty.
    Empty "it is empty"
    /// A section ends within the blob.
    End "len is {found}: the blob has {expected} bytes left"
    /// A section is as long as its table's shape or its layer's widths need.
    Len "len is {found}: expected {expected}"
    /// The last section ends the blob.
    BlobEnd "the last section ends at byte {found}: the blob has {expected}"

    /// The perceptron of a layer is known.
    Stack "stack {found}: expected 1 to {expected}; a newer ttrec may have written this blob"
    /// The activation of a layer is known.
    Activation "activation {found}: expected 0 to {expected}; a newer ttrec may have written this \
        blob"
    /// A layer has 1 to [`MAX_LAYER_WIDTH`](crate::limits::MAX_LAYER_WIDTH) inputs.
    Inputs "inputs is {found}: expected 1 to {expected}"
    /// A layer has 1 to [`MAX_LAYER_WIDTH`](crate::limits::MAX_LAYER_WIDTH) outputs.
    Outputs "outputs is {found}: expected 1 to {expected}"
    /// A layer takes what the layers and tables before it make.
    InputWidth "inputs is {found}: the layers and tables before it make {expected}"
    /// The last layer has one output.
    OutputWidth "outputs is {found}: the last layer has {expected}"
    /// Layers of the bottom perceptron come before those of the top one.
    StackOrder "a layer of the bottom perceptron comes after the top one"
    /// A model without a bottom perceptron has two tables at least.
    NoBottom "without a bottom perceptron a model has at least {expected} tables: found {found}"
    /// A model has a top perceptron.
    NoTop "it has no top perceptron"
    /// Only the last layer may have a sigmoid.
    Sigmoid "only the last layer may have a sigmoid"
    /// The model's tables are tables of the blob.
    ModelTable "refers to table {found}, but the blob has {expected} tables"
    /// The rows of the model's tables are as long as the bottom perceptron's output, or without one
    /// as those of the first table.
    ModelDim "embedding_dim is {found}: the other vectors of the model have {expected}"

    /// Scales are finite and above 0, and offsets finite.
    Scale "the scale is not finite and above 0, or the offset not finite"
    /// Ids ascend strictly, and are below the number of what they are ids of.
    Ids "id {found}: ids ascend strictly and are below {expected}"
    /// The index of ids has each id at its position.
    IdIndex "the index does not have id {found} at this position"
    /// A code is the number of an entry of its book.
    Code "code {found}: a book has {expected} entries"
    /// The row of an index is a stored row.
    RemappedRow "row {found}: the table stores {expected} rows"
}

impl BlobError {
    fn new(at: Location, rule: Rule, found: u64, expected: u64) -> Self {
        Self { at, broken: Broken::Rule { rule, found, expected } }
    }

    /// Where the rule does not hold.
    pub fn location(&self) -> Location {
        self.at
    }

    /// The rule that does not hold.
    pub fn rule(&self) -> Rule {
        match self.broken {
            Broken::Shape(_) => Rule::Shape,
            Broken::Rule { rule, .. } => rule,
        }
    }

    /// What is wrong with a table's shape, if the rule is [`Rule::Shape`].
    pub fn shape(&self) -> Option<ShapeError> {
        match self.broken {
            Broken::Shape(error) => Some(error),
            Broken::Rule { .. } => None,
        }
    }

    /// The number found.
    pub fn found(&self) -> u64 {
        match self.broken {
            Broken::Shape(_) => 0,
            Broken::Rule { found, .. } => found,
        }
    }

    /// The number expected, or a bound on it.
    pub fn expected(&self) -> u64 {
        match self.broken {
            Broken::Shape(_) => 0,
            Broken::Rule { expected, .. } => expected,
        }
    }
}

impl core::error::Error for BlobError {}

/// Where the parser leaves its error. An error takes some 50 bytes: returned from each of the
/// parser's many checks, it made the firmware 7 % larger.
pub(super) struct ErrorSlot(Cell<BlobError>);

/// A rule does not hold: the [`ErrorSlot`] says which.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refused;

impl ErrorSlot {
    /// Runs a parser that leaves its error in a slot.
    pub(super) fn with<T>(
        parser: impl FnOnce(&Self) -> Result<T, Refused>,
    ) -> Result<T, BlobError> {
        let slot = Self(Cell::new(BlobError::new(Location::Buffer, Rule::Magic, 0, 0)));
        parser(&slot).map_err(|Refused| slot.0.get())
    }

    pub(super) fn at(&self, at: Location) -> Place<'_> {
        Place { at, slot: self }
    }
}

/// A place in a blob, where rules are checked.
#[derive(Clone, Copy)]
pub(super) struct Place<'e> {
    at: Location,
    slot: &'e ErrorSlot,
}

impl<'e> Place<'e> {
    /// Another place in the same blob.
    pub(super) fn at(&self, at: Location) -> Self {
        Self { at, ..*self }
    }

    /// Leaves the error that a rule does not hold here.
    pub(super) fn refuse(&self, rule: Rule, found: u64, expected: u64) -> Refused {
        self.slot.0.set(BlobError::new(self.at, rule, found, expected));
        Refused
    }

    pub(super) fn refuse_shape(&self, error: ShapeError) -> Refused {
        self.slot.0.set(BlobError { at: self.at, broken: Broken::Shape(error) });
        Refused
    }

    /// Refuses anything but `found == expected`.
    pub(super) fn equal(&self, rule: Rule, found: u64, expected: u64) -> Result<(), Refused> {
        if found == expected {
            Ok(())
        } else {
            Err(self.refuse(rule, found, expected))
        }
    }

    /// Refuses more than `most`.
    pub(super) fn at_most(&self, rule: Rule, found: u64, most: u64) -> Result<(), Refused> {
        if found <= most {
            Ok(())
        } else {
            Err(self.refuse(rule, found, most))
        }
    }

    /// Refuses 0 and more than `most`.
    pub(super) fn one_to(&self, rule: Rule, found: u64, most: u64) -> Result<(), Refused> {
        if found != 0 && found <= most {
            Ok(())
        } else {
            Err(self.refuse(rule, found, most))
        }
    }

    /// Refuses what breaks a rule without numbers.
    pub(super) fn holds(&self, rule: Rule, holds: bool) -> Result<(), Refused> {
        if holds { Ok(()) } else { Err(self.refuse(rule, 0, 0)) }
    }
}

/// Why tables and a model cannot be laid out as a blob.
#[cfg(feature = "alloc")]
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LayoutError {
    /// More tables than [`MAX_TABLES`].
    NumTables {
        /// How many.
        found: usize,
    },
    /// A name that is empty, or longer than [`MAX_NAME_LEN`] bytes.
    Name {
        /// The name.
        table: String,
    },
    /// Two tables of one name.
    DuplicateName {
        /// The name.
        table: String,
    },
    /// The numbers of a table are not those of a shape.
    Shape {
        /// The table's name.
        table: String,
        /// What is wrong with them.
        error: ShapeError,
    },
    /// A dtype that cores, books or projections cannot have.
    Dtype {
        /// The table's name.
        table: String,
        /// The dtype.
        found: Dtype,
    },
    /// Entries of a codebook table that are neither added nor put end to end.
    Combine {
        /// The table's name.
        table: String,
    },
    /// More rows than indices.
    NumRows {
        /// The table's name.
        table: String,
        /// Number of stored rows.
        found: u64,
        /// Number of indices. They can share at most as many rows.
        num_embeddings: u64,
    },
    /// Row numbers of a type that is too narrow for them.
    RowNumbers {
        /// The table's name.
        table: String,
        /// The type of the row numbers.
        found: RowNumberDtype,
        /// Number of stored rows. The type has to hold every number below it.
        num_rows: u64,
    },
    /// More prefix products than prefixes; only a tensor train has prefixes.
    NumPrefixes {
        /// The table's name.
        table: String,
        /// Products.
        found: u64,
        /// Prefixes.
        num_prefixes: u64,
    },
    /// No overrides, or more than indices.
    NumOverrides {
        /// The table's name.
        table: String,
        /// Overrides.
        found: u64,
        /// Indices.
        num_embeddings: u64,
    },
    /// More layers than [`MAX_LAYERS`].
    NumLayers {
        /// How many.
        found: usize,
    },
    /// More tables of the model than [`MAX_MODEL_TABLES`].
    NumModelTables {
        /// How many.
        found: usize,
    },
    /// A model without a layer of the top perceptron.
    NoTop,
    /// A model without a bottom perceptron and with fewer than two tables.
    NoBottom {
        /// The model's tables.
        num_tables: usize,
    },
    /// A table of the model is none of those given.
    ModelTable {
        /// Its position in the list of the model's tables.
        position: usize,
        /// The position given.
        found: usize,
        /// How many tables there are.
        num_tables: usize,
    },
    /// A table of the model has rows of another length than the model's other vectors.
    ModelDim {
        /// The table's name.
        table: String,
        /// Its embedding_dim.
        found: usize,
        /// Outputs of the bottom perceptron; without one, the first table's embedding_dim.
        expected: usize,
    },
    /// A layer without inputs or outputs, or with more than [`MAX_LAYER_WIDTH`].
    LayerWidth {
        /// The layer, those of the bottom perceptron first.
        layer: usize,
        /// `"inputs"` or `"outputs"`.
        field: &'static str,
        /// How many.
        found: usize,
    },
    /// The inputs of a layer are not as many as the layers and tables before it make, or the last
    /// layer does not have one output.
    LayerFit {
        /// The layer, those of the bottom perceptron first.
        layer: usize,
        /// `"inputs"` or `"outputs"`.
        field: &'static str,
        /// How many.
        found: usize,
        /// How many it needs.
        expected: usize,
    },
    /// A dtype that the weights of a layer cannot have.
    LayerDtype {
        /// The layer, those of the bottom perceptron first.
        layer: usize,
        /// The dtype.
        found: Dtype,
    },
    /// A sigmoid before the last layer.
    Sigmoid {
        /// The layer, those of the bottom perceptron first.
        layer: usize,
    },
    /// The blob would have 2^64 bytes or more.
    TooLarge,
}

#[cfg(feature = "alloc")]
impl fmt::Display for LayoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NumTables { found } => {
                write!(f, "{found} tables: a blob has at most {MAX_TABLES}")
            }
            Self::Name { table } => write!(
                f,
                "table {table:?}: the name has {} bytes: expected 1 to {MAX_NAME_LEN}",
                table.len()
            ),
            Self::DuplicateName { table } => write!(f, "duplicate table name {table:?}"),
            Self::Shape { table, error } => write!(f, "table {table:?}: {error}"),
            Self::Dtype { table, found } => write!(
                f,
                "table {table:?}: {} cores, books or projection: cores and books are f32, f16, \
                 bf16 or i8, and projections f32, f16 or bf16",
                found.name()
            ),
            Self::Combine { table } => write!(
                f,
                "table {table:?}: entries of a codebook table are added or put end to end, not \
                 multiplied"
            ),
            Self::NumRows { table, found, num_embeddings } => write!(
                f,
                "table {table:?}: {found} rows: expected at most one for each of the \
                 {num_embeddings} indices"
            ),
            Self::RowNumbers { table, found, num_rows } => write!(
                f,
                "table {table:?}: row numbers of type {}: {num_rows} rows need {}",
                found.name(),
                RowNumberDtype::for_rows(*num_rows).name()
            ),
            Self::NumPrefixes { table, found, num_prefixes } => {
                write!(
                    f,
                    "table {table:?}: {found} prefix products: it has {num_prefixes} prefixes"
                )
            }
            Self::NumOverrides { table, found, num_embeddings } => write!(
                f,
                "table {table:?}: {found} overrides: expected 1 to num_embeddings = \
                 {num_embeddings}"
            ),
            Self::NumLayers { found } => {
                write!(f, "{found} layers: a model has at most {MAX_LAYERS}")
            }
            Self::NumModelTables { found } => {
                write!(f, "{found} tables of the model: expected at most {MAX_MODEL_TABLES}")
            }
            Self::NoTop => write!(f, "the model has no top perceptron"),
            Self::NoBottom { num_tables } => write!(
                f,
                "{num_tables} tables of a model without a bottom perceptron: expected at least 2"
            ),
            Self::ModelTable { position, found, num_tables } => write!(
                f,
                "model table {position} refers to table {found}, but there are {num_tables} tables"
            ),
            Self::ModelDim { table, found, expected } => write!(
                f,
                "table {table:?}: embedding_dim is {found}: the other vectors of the model have \
                 {expected}"
            ),
            Self::LayerWidth { layer, field, found } => {
                write!(f, "layer {layer}: {found} {field}: expected 1 to {MAX_LAYER_WIDTH}")
            }
            Self::LayerFit { layer, field, found, expected } => {
                write!(f, "layer {layer}: {found} {field}: expected {expected}")
            }
            Self::LayerDtype { layer, found } => {
                write!(f, "layer {layer}: {} weights: expected f32, f16, bf16 or i8", found.name())
            }
            Self::Sigmoid { layer } => {
                write!(f, "layer {layer}: only the last layer may have a sigmoid")
            }
            Self::TooLarge => write!(f, "the blob would have 2^64 bytes or more"),
        }
    }
}

#[cfg(feature = "alloc")]
impl core::error::Error for LayoutError {}
