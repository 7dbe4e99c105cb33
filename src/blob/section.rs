//! The sections of a blob: runs of bytes, each with one role.

use super::record::{SectionRecord, role};
use crate::dtype::Dtype;

/// What a section holds.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The rows of a dense table, the short ones of a projected table, or the quotient rows of a
    /// quotient-remainder table.
    Rows,
    /// The remainder rows of a quotient-remainder table.
    RemainderRows,
    /// The codes of the rows of a codebook table.
    Codes,
    /// The books of a codebook table, one after another.
    Books,
    /// The matrix that the rows of a projected or codebook table are multiplied by.
    Projection,
    /// The slices of a core, one after another.
    Core(usize),
    /// The scale of each slice of an i8 core; for core 0 of a codebook table, of each i8 book.
    Scales(usize),
    /// The prefixes whose products are stored.
    PrefixIds,
    /// The index of the prefix ids ([`id_index`](crate::repr::id_index)).
    PrefixIndex,
    /// The products of these prefixes.
    PrefixProducts,
    /// The stored row of each index.
    RemappedRows,
    /// The indices that have an override.
    OverrideIds,
    /// The index of the override ids ([`id_index`](crate::repr::id_index)).
    OverrideIndex,
    /// The rows of the overrides.
    OverrideRows,
    /// The weights of a layer of the model.
    LayerWeights(usize),
    /// The scale of each output of a layer with i8 weights.
    LayerScales(usize),
    /// The bias of a layer.
    LayerBias(usize),
}

/// A section of a blob, as the directory lists it.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// What the section holds.
    pub role: Role,
    /// The element type; `None` for ids, their index, row numbers and codes.
    pub dtype: Option<Dtype>,
    /// Offset from the start of the blob, in bytes.
    pub offset: u64,
    /// Length without padding, in bytes.
    pub len: u64,
}

impl Section {
    pub(super) fn read(record: &SectionRecord) -> Option<Self> {
        Some(Self {
            role: Role::from_codes(record.role, record.core)?,
            dtype: Dtype::from_code(record.dtype),
            offset: record.offset,
            len: record.len,
        })
    }
}

impl Role {
    pub(super) fn codes(self) -> (u16, u8) {
        match self {
            Self::Rows => (role::ROWS, 0),
            Self::RemainderRows => (role::ROWS, 1),
            // A core's position is below MAX_CORES, a layer's below MAX_LAYERS.
            Self::Core(k) => (role::CORE, k as u8),
            Self::Scales(k) => (role::SCALES, k as u8),
            Self::Codes => (role::CODES, 0),
            Self::Books => (role::BOOKS, 0),
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

    fn from_codes(code: u16, core: u8) -> Option<Self> {
        Some(match code {
            role::ROWS if core == 0 => Self::Rows,
            role::ROWS => Self::RemainderRows,
            role::CORE => Self::Core(core.into()),
            role::SCALES => Self::Scales(core.into()),
            role::CODES => Self::Codes,
            role::BOOKS => Self::Books,
            role::PREFIX_IDS => Self::PrefixIds,
            role::PREFIX_PRODUCTS => Self::PrefixProducts,
            role::PREFIX_INDEX => Self::PrefixIndex,
            role::OVERRIDE_INDEX => Self::OverrideIndex,
            role::OVERRIDE_IDS => Self::OverrideIds,
            role::OVERRIDE_ROWS => Self::OverrideRows,
            role::PROJECTION => Self::Projection,
            role::REMAPPED_ROWS => Self::RemappedRows,
            role::LAYER_WEIGHTS => Self::LayerWeights(core.into()),
            role::LAYER_SCALES => Self::LayerScales(core.into()),
            role::LAYER_BIAS => Self::LayerBias(core.into()),
            _ => return None,
        })
    }
}
