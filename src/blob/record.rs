//! The fixed-size records of a blob's header and directory (`docs/format.md`).

use bytemuck::{Pod, Zeroable};

/// `\x89TTR\r\n\x1a\n`: not text, and changed by any transfer that treats it as text.
pub(crate) const MAGIC: [u8; 8] = *b"\x89TTR\r\n\x1a\n";

/// Codes of [`TableRecord::kind`].
pub(crate) mod kind {
    pub(crate) const DENSE: u16 = 1;
    pub(crate) const TT: u16 = 2;
    pub(crate) const PROJECTED: u16 = 3;
    pub(crate) const QUOTIENT_REMAINDER: u16 = 4;
    pub(crate) const CODEBOOK: u16 = 5;
    /// The last kind that this library was compiled for.
    pub(crate) const LAST: u16 = if cfg!(feature = "codebooks") {
        CODEBOOK
    } else {
        QUOTIENT_REMAINDER
    };
}

/// Codes of [`TableRecord::index_map`].
pub(crate) mod index_map {
    pub(crate) const IDENTITY: u8 = 0;
    pub(crate) const MODULO: u8 = 1;
    pub(crate) const REMAPPED: u8 = 2;
}

/// Codes of [`SectionRecord::role`].
pub(crate) mod role {
    pub(crate) const ROWS: u16 = 1;
    pub(crate) const CORE: u16 = 2;
    pub(crate) const SCALES: u16 = 3;
    pub(crate) const OVERRIDE_IDS: u16 = 4;
    pub(crate) const OVERRIDE_ROWS: u16 = 5;
    pub(crate) const PREFIX_IDS: u16 = 6;
    pub(crate) const PREFIX_PRODUCTS: u16 = 7;
    pub(crate) const PROJECTION: u16 = 8;
    pub(crate) const REMAPPED_ROWS: u16 = 9;
    pub(crate) const OVERRIDE_INDEX: u16 = 10;
    pub(crate) const PREFIX_INDEX: u16 = 11;
    pub(crate) const LAYER_WEIGHTS: u16 = 12;
    pub(crate) const LAYER_SCALES: u16 = 13;
    pub(crate) const LAYER_BIAS: u16 = 14;
    pub(crate) const CODES: u16 = 16;
    pub(crate) const BOOKS: u16 = 17;
}

/// The dtype code of a section of u64 ids, or of an index of them.
pub(crate) const DTYPE_U64: u8 = 0x40;

/// The first 64 bytes of a blob.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Header {
    pub(crate) magic: [u8; 8],
    pub(crate) version: u32,
    pub(crate) flags: u32,
    pub(crate) total_len: u64,
    pub(crate) num_tables: u32,
    pub(crate) num_sections: u32,
    pub(crate) names_len: u32,
    /// CRC-32C of header (with this field zero), records and names.
    pub(crate) checksum: u32,
    /// 0 if there is no model.
    pub(crate) num_layers: u32,
    pub(crate) num_model_tables: u32,
    pub(crate) interaction: u8,
    pub(crate) reserved: [u8; 15],
}

/// One table.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct TableRecord {
    pub(crate) kind: u16,
    pub(crate) index_map: u8,
    pub(crate) layout: u8,
    pub(crate) name_offset: u32,
    pub(crate) name_len: u32,
    pub(crate) first_section: u32,
    pub(crate) num_sections: u32,
    pub(crate) embedding_dim: u32,
    pub(crate) num_embeddings: u64,
    pub(crate) num_cores: u8,
    pub(crate) digit_order: u8,
    pub(crate) combine: u8,
    pub(crate) column_order: u8,
    pub(crate) row_factors: [u32; 6],
    pub(crate) column_factors: [u32; 6],
    pub(crate) inner_ranks: [u32; 5],
    /// Number of stored rows; 0 without an index map.
    pub(crate) num_rows: u64,
    pub(crate) reserved_tail: [u8; 16],
}

/// One section: a run of bytes with one role.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct SectionRecord {
    pub(crate) offset: u64,
    /// Bytes before the padding.
    pub(crate) len: u64,
    /// CRC-32C of the bytes and their padding.
    pub(crate) checksum: u32,
    pub(crate) role: u16,
    pub(crate) dtype: u8,
    /// The core that slices or scales belong to, the part that rows belong to, or the layer that
    /// weights, scales or a bias belong to.
    pub(crate) core: u8,
    pub(crate) reserved: [u8; 8],
}

/// One layer of a model.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct LayerRecord {
    pub(crate) inputs: u32,
    pub(crate) outputs: u32,
    pub(crate) first_section: u32,
    pub(crate) num_sections: u32,
    pub(crate) stack: u8,
    pub(crate) activation: u8,
    pub(crate) reserved: [u8; 14],
}

const _: () = assert!(
    size_of::<Header>() == 64
        && size_of::<TableRecord>() == 128
        && size_of::<SectionRecord>() == 32
);
const _: () = assert!(size_of::<LayerRecord>() == 32);
