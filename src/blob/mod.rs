//! The blob: one flat little-endian file of named tables, used where it lies (flash,
//! `include_blob!`, mmap).
//!
//! `docs/format.md` is the specification. [`Blob::parse`] reads the header and the directory and
//! checks every number in them, once, strictly; it never touches the payload, so that opening a
//! gigabyte costs a page or two. Afterwards a lookup can fail only for its own arguments.
//! [`Blob::verify_payload`] reads everything and compares checksums.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

mod error;
mod id_index;
mod model;
mod parse;
mod record;
#[cfg(feature = "alloc")]
mod writer;

pub(crate) use crate::limits::{
    ALIGNMENT, MAX_LAYER_WIDTH, MAX_LAYERS, MAX_MODEL_TABLES, MAX_NAME_LEN, MAX_TABLES, VERSION,
};
#[cfg(feature = "alloc")]
pub use error::LayoutError;
pub use error::{BlobError, Location, Rule};
#[cfg(feature = "alloc")]
pub use id_index::{id_index, id_index_len};
pub(crate) use model::top_inputs;
pub use model::{Activation, Layer, ModelTable, Stack};
#[cfg(feature = "alloc")]
pub use writer::{
    IndexMapSpec, LayerSpec, Layout, ModelSpec, OverridesSpec, SectionChecksum, SectionPlan,
    TableSpec, WeightsSpec,
};

use crate::{
    codes::codes,
    dtype::{Dtype, Elements},
    shape::{MAX_CORES, MAX_ROW_FACTOR, ShapeError, TtShape, check_embedding_dim, check_factors},
};
use id_index::Line;
use parse::Sections;
use record::{LayerRecord, SectionRecord, TableRecord};

/// A parsed blob: a borrowed buffer whose directory has been checked.
#[derive(Clone, Copy, Debug)]
pub struct Blob<'a> {
    bytes: &'a [u8],
    tables: &'a [TableRecord],
    sections: &'a [SectionRecord],
    layers: &'a [LayerRecord],
    model_tables: &'a [u32],
    names: &'a [u8],
}

/// What a section holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The rows of a dense table, the short ones of a projected table, or the quotient rows of a
    /// quotient-remainder table.
    Rows,
    /// The remainder rows of a quotient-remainder table.
    RemainderRows,
    /// The matrix that the rows of a projected table are multiplied by.
    Projection,
    /// The slices of a core, one after another.
    Core(usize),
    /// The scale of each slice of an i8 core.
    Scales(usize),
    /// Numbers of the prefixes whose products are stored.
    PrefixIds,
    /// Where each of these stands ([`id_index`]).
    PrefixIndex,
    /// The products of these prefixes.
    PrefixProducts,
    /// The row of each index.
    RemappedRows,
    /// Ids of the rows that are stored apart.
    OverrideIds,
    /// Where each of these stands ([`id_index`]).
    OverrideIndex,
    /// The rows that are stored apart.
    OverrideRows,
    /// The weights of a layer of the model.
    LayerWeights(usize),
    /// The scale of each output of a layer with i8 weights.
    LayerScales(usize),
    /// The bias of a layer.
    LayerBias(usize),
}

/// One table as it lies in a blob.
#[derive(Clone, Copy, Debug)]
pub struct TableData<'a> {
    /// Its name, unique in the blob.
    pub name: &'a str,
    /// Indices that it has rows for.
    pub num_embeddings: u64,
    /// Columns.
    pub embedding_dim: usize,
    /// Which stored row an index stands for.
    pub index_map: IndexMap<'a>,
    /// Rows that `weights` have: `num_embeddings` with [`IndexMap::Identity`], or fewer.
    pub num_rows: u64,
    /// The stored numbers.
    pub weights: Weights<'a>,
    /// What replaces the rows of some indices.
    pub overrides: Option<Overrides<'a>>,
}

/// The representations a table can have.
#[derive(Clone, Copy, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "a view without an allocator has no box to put it in"
)]
pub enum Weights<'a> {
    /// Every row as it is.
    Dense(Rows<'a>),
    /// Cores of a tensor train.
    Tt(TtCores<'a>),
    /// Short rows, and a matrix that widens them.
    Projected(Projected<'a>),
    /// Two dense tables, of whose rows each row is made.
    QuotientRemainder(QuotientRemainder<'a>),
}

/// From an index to the row that is stored for it.
#[derive(Clone, Copy, Debug)]
pub enum IndexMap<'a> {
    /// Index i is row i.
    Identity,
    /// Index i is row `i mod num_rows`: a hashed table.
    Modulo,
    /// The row of each index, in the order of the indices (FBGEMM's `index_remappings`).
    Remapped(&'a [u32]),
}

/// Dense rows, one after another.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// `rows x row_stride` elements.
    pub elements: Elements<'a>,
    /// Columns.
    pub embedding_dim: usize,
}

/// A projected table: mixed dimensions (Ginart et al., "Mixed dimension embeddings with application
/// to memory-efficient recommendation systems", 2019), or a matrix of low rank. A row is its short
/// row times the projection.
#[derive(Clone, Copy, Debug)]
pub struct Projected<'a> {
    /// Rows of `rank` columns.
    pub rows: Rows<'a>,
    /// `rank x embedding_dim`, row-major; f32, f16 or bf16.
    pub projection: Elements<'a>,
}

impl Projected<'_> {
    /// Columns of the short rows.
    pub fn rank(&self) -> usize {
        self.rows.embedding_dim
    }
}

/// A quotient-remainder table (Shi et al., "Compositional embeddings using complementary
/// partitions", 2019): row i is made of quotient row `i / num_remainders` and remainder row `i mod
/// num_remainders`.
#[derive(Clone, Copy, Debug)]
pub struct QuotientRemainder<'a> {
    /// `ceil(num_rows / num_remainders)` rows.
    pub quotients: Rows<'a>,
    /// `num_remainders` rows.
    pub remainders: Rows<'a>,
    /// Number of remainder rows.
    pub num_remainders: u32,
    /// What makes one row of two.
    pub combine: Combine,
}

/// How the two rows of a [`QuotientRemainder`] become one. The discriminants are the codes of
/// `docs/format.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Combine {
    /// The product, element by element.
    Mult = 1,
    /// The sum, element by element.
    Add = 2,
    /// The quotient row and after it the remainder row.
    Concat = 3,
}

codes!(Combine: Mult "mult", Add "add", Concat "concat");

impl Combine {
    /// How many quotient rows `num_rows` rows have, and the columns of the rows that two of
    /// `columns` become.
    pub(crate) fn check(
        self,
        num_rows: u64,
        num_remainders: u32,
        columns: [usize; 2],
    ) -> Result<(u32, usize), ShapeError> {
        let quotients = num_rows.div_ceil(u64::from(num_remainders.max(1)));
        let quotients = u32::try_from(quotients).unwrap_or(u32::MAX);
        check_factors("row factor", &[quotients, num_remainders], MAX_ROW_FACTOR)?;
        let [first, second] = columns;
        let embedding_dim = match self {
            Self::Concat => first.saturating_add(second),
            Self::Mult | Self::Add => first,
        };
        let fits = self == Self::Concat || first == second;
        if !fits || first == 0 || second == 0 {
            return Err(ShapeError::QuotientRemainder {
                rows: [quotients, num_remainders],
                columns,
            });
        }
        check_embedding_dim(embedding_dim as u64)?;
        Ok((quotients, embedding_dim))
    }
}

/// The cores of a tensor-train table.
#[derive(Clone, Copy, Debug)]
pub struct TtCores<'a> {
    /// Rows, factors and ranks.
    pub shape: TtShape,
    /// The first `shape.num_cores()` are in use.
    pub cores: [Core<'a>; MAX_CORES],
    /// Products that need not be computed.
    pub prefixes: Option<Prefixes<'a>>,
}

/// What the first d - 1 cores multiply out to, for some prefixes: those of rows that are asked for
/// often.
#[derive(Clone, Copy, Debug)]
pub struct Prefixes<'a> {
    /// Which prefixes ([`TtShape::prefix`]), strictly ascending.
    pub ids: &'a [u64],
    /// Their products, [`TtShape::prefix_len`] elements per id.
    pub products: &'a [f32],
    pub(crate) index: &'a [Line],
}

/// One core: `p_k` slices of `r_k x q_k x r_{k+1}` elements, each row-major, one after another.
#[derive(Clone, Copy, Debug)]
pub struct Core<'a> {
    /// The slices.
    pub slices: Elements<'a>,
    /// One scale per slice if they are i8, else empty.
    pub scales: &'a [f32],
}

/// Exact rows that replace what the table says of some indices (FBTT's trained cache).
#[derive(Clone, Copy, Debug)]
pub struct Overrides<'a> {
    /// Which indices, strictly ascending.
    pub ids: &'a [u64],
    /// Their rows, one per id.
    pub rows: Rows<'a>,
    pub(crate) index: &'a [Line],
}

/// One section of the directory, for listings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// What it holds.
    pub role: Role,
    /// Its element type; `None` for ids and row numbers.
    pub dtype: Option<Dtype>,
    /// Bytes from the start of the blob.
    pub offset: u64,
    /// Bytes, without padding.
    pub len: u64,
}

impl<'a> Rows<'a> {
    /// Elements (bytes, if they are i4) from one row to the next: the header, where there is one,
    /// counts.
    pub(crate) fn row_stride(&self) -> usize {
        let dtype = self.dtype();
        self.elements.units_of(self.embedding_dim).saturating_add(match dtype {
            Dtype::I8 | Dtype::I4 => dtype.row_header_len(),
            _ => 0,
        })
    }

    /// Scale, offset and elements of the row at `position`.
    pub(crate) fn row(&self, position: usize) -> Option<(f32, f32, Elements<'a>)> {
        self.elements.chunk(position, self.row_stride())?.split_row()
    }

    /// The stored type.
    pub fn dtype(&self) -> Dtype {
        self.elements.dtype()
    }
}

impl Core<'_> {
    /// What the elements of a slice are multiplied by.
    #[inline]
    pub(crate) fn scale(&self, slice: usize) -> Option<f32> {
        if self.slices.dtype() == Dtype::I8 {
            self.scales.get(slice).copied()
        } else {
            Some(1.0)
        }
    }
}

impl<'a> Prefixes<'a> {
    /// The product of a prefix, if it is stored: `len` elements.
    #[inline]
    pub(crate) fn product(&self, prefix: u64, len: usize) -> Option<&'a [f32]> {
        let start = position(self.ids, self.index, prefix)?.checked_mul(len)?;
        self.products.get(start..)?.get(..len)
    }
}

impl Overrides<'_> {
    /// The position of `index` among the ids.
    #[inline]
    pub(crate) fn position(&self, index: u64) -> Option<usize> {
        position(self.ids, self.index, index)
    }
}

/// The position of `id` among ascending `ids`, which may have an index.
#[inline]
fn position(ids: &[u64], index: &[Line], id: u64) -> Option<usize> {
    if !index.is_empty() {
        // It came with the payload, so it may be wrong; but so may the ids.
        return id_index::position(index, id).filter(|&position| position < ids.len());
    }
    let (first, last) = (ids.first()?, ids.last()?);
    if id < *first || id > *last {
        return None;
    }
    // Of a table that is sorted by frequency, those asked for often are the first ones: a guess
    // that is often right.
    let guess = usize::try_from(id.wrapping_sub(*first)).ok()?;
    if ids.get(guess) == Some(&id) {
        Some(guess)
    } else {
        ids.binary_search(&id).ok()
    }
}

impl TableData<'_> {
    /// The stored type: of the rows (of a quotient-remainder table, the quotient ones), or of the
    /// first core.
    pub fn dtype(&self) -> Dtype {
        match &self.weights {
            Weights::Dense(rows)
            | Weights::Projected(Projected { rows, .. })
            | Weights::QuotientRemainder(QuotientRemainder { quotients: rows, .. }) => rows.dtype(),
            Weights::Tt(tt) => tt.cores.first().map_or(Dtype::F32, |core| core.slices.dtype()),
        }
    }
}

/// CRC-32C (Castagnoli; "CRC-32/ISCSI") of the chunks given so far.
pub(crate) struct Checksum(crc::Digest<'static, u32, ChecksumTable>);

/// With `std` the checksum is table-driven sixteen bytes at a time; without, by one table; and
/// where flash is dear, by none: a kilobyte less, and the head of a blob is short.
#[cfg(feature = "std")]
type ChecksumTable = crc::Table<16>;
#[cfg(all(not(feature = "std"), not(all(target_os = "none", target_pointer_width = "32"))))]
type ChecksumTable = crc::Table<1>;
#[cfg(all(not(feature = "std"), target_os = "none", target_pointer_width = "32"))]
type ChecksumTable = crc::NoTable;

static CASTAGNOLI: crc::Crc<u32, ChecksumTable> =
    crc::Crc::<u32, ChecksumTable>::new(&crc::CRC_32_ISCSI);

impl Checksum {
    pub(crate) fn new() -> Self {
        Self(CASTAGNOLI.digest())
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn finish(self) -> u32 {
        self.0.finalize()
    }
}

/// The checksum of header and directory: as if the header's own checksum field were zero.
pub(crate) fn directory_checksum(header: &record::Header, rest: &[u8]) -> u32 {
    let mut checksum = Checksum::new();
    checksum.update(bytemuck::bytes_of(&record::Header { checksum: 0, ..*header }));
    checksum.update(rest);
    checksum.finish()
}

/// `n` rounded up to the alignment of sections.
pub(crate) fn align_up(n: u64) -> Option<u64> {
    n.checked_next_multiple_of(ALIGNMENT as u64)
}

impl<'a> Blob<'a> {
    /// Number of tables.
    pub fn num_tables(&self) -> usize {
        self.tables.len()
    }

    /// The bytes of the blob.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The table at `position`, in name order; `None` past the last.
    pub(crate) fn table_data(&self, position: usize) -> Option<TableData<'a>> {
        self.read_table(position, self.tables.get(position)?).ok()
    }

    /// The position of the table called `name`.
    pub(crate) fn position(&self, name: &str) -> Option<usize> {
        self.tables
            .binary_search_by(|record| self.name_bytes(record).cmp(name.as_bytes()))
            .ok()
    }

    /// The sections of the table at `position`, in file order.
    pub(crate) fn sections(&self, position: usize) -> impl Iterator<Item = Section> + use<'a> {
        let record = self.tables.get(position);
        let sections = record.and_then(|record| self.sections_of_table(position, record).ok());
        sections.into_iter().flat_map(Sections::iter)
    }
}

impl Section {
    fn read(record: &SectionRecord) -> Option<Self> {
        Some(Self {
            role: Role::from_codes(record.role, record.core)?,
            dtype: Dtype::from_code(record.dtype),
            offset: record.offset,
            len: record.len,
        })
    }
}

impl Role {
    fn codes(self) -> (u16, u8) {
        use record::role;
        match self {
            Self::Rows => (role::ROWS, 0),
            Self::RemainderRows => (role::ROWS, 1),
            // A core's position is below MAX_CORES, a layer's below MAX_LAYERS.
            Self::Core(k) => (role::CORE, k as u8),
            Self::Scales(k) => (role::SCALES, k as u8),
            Self::PrefixIds => (role::PREFIX_IDS, 0),
            Self::PrefixProducts => (role::PREFIX_PRODUCTS, 0),
            Self::PrefixIndex => (role::PREFIX_INDEX, 0),
            Self::OverrideIndex => (role::OVERRIDE_INDEX, 0),
            Self::OverrideIds => (role::OVERRIDE_IDS, 0),
            Self::OverrideRows => (role::OVERRIDE_ROWS, 0),
            Self::Projection => (role::PROJECTION, 0),
            Self::RemappedRows => (role::REMAPPED_ROWS, 0),
            Self::LayerWeights(layer) => (role::LAYER_WEIGHTS, layer as u8),
            Self::LayerScales(layer) => (role::LAYER_SCALES, layer as u8),
            Self::LayerBias(layer) => (role::LAYER_BIAS, layer as u8),
        }
    }

    fn from_codes(role: u16, core: u8) -> Option<Self> {
        use record::role as code;
        Some(match role {
            code::ROWS if core == 0 => Self::Rows,
            code::ROWS => Self::RemainderRows,
            code::CORE => Self::Core(core.into()),
            code::SCALES => Self::Scales(core.into()),
            code::PREFIX_IDS => Self::PrefixIds,
            code::PREFIX_PRODUCTS => Self::PrefixProducts,
            code::PREFIX_INDEX => Self::PrefixIndex,
            code::OVERRIDE_INDEX => Self::OverrideIndex,
            code::OVERRIDE_IDS => Self::OverrideIds,
            code::OVERRIDE_ROWS => Self::OverrideRows,
            code::PROJECTION => Self::Projection,
            code::REMAPPED_ROWS => Self::RemappedRows,
            code::LAYER_WEIGHTS => Self::LayerWeights(core.into()),
            code::LAYER_SCALES => Self::LayerScales(core.into()),
            code::LAYER_BIAS => Self::LayerBias(core.into()),
            _ => return None,
        })
    }
}
