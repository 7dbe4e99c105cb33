//! Format version 1 once more: field positions, the directory as a naive reader sees it, CRC-32C,
//! and the resealing of a head that was patched.

use std::ops::Range;

pub(crate) const ALIGNMENT: usize = 64;
pub(crate) const HEADER_LEN: usize = 64;
pub(crate) const TABLE_LEN: usize = 128;
pub(crate) const SECTION_LEN: usize = 32;
pub(crate) const LAYER_LEN: usize = 32;

/// Positions of the header's fields.
pub(crate) mod header {
    pub(crate) const VERSION: usize = 8;
    pub(crate) const FLAGS: usize = 12;
    pub(crate) const TOTAL_LEN: usize = 16;
    pub(crate) const NUM_TABLES: usize = 24;
    pub(crate) const NUM_SECTIONS: usize = 28;
    pub(crate) const NAMES_LEN: usize = 32;
    pub(crate) const CHECKSUM: usize = 36;
    pub(crate) const NUM_LAYERS: usize = 40;
    pub(crate) const NUM_MODEL_TABLES: usize = 44;
    pub(crate) const INTERACTION: usize = 48;
    pub(crate) const RESERVED: usize = 49;
}

/// Positions of a table record's fields.
pub(crate) mod table {
    pub(crate) const KIND: usize = 0;
    pub(crate) const INDEX_MAP: usize = 2;
    pub(crate) const LAYOUT: usize = 3;
    pub(crate) const NAME_OFFSET: usize = 4;
    pub(crate) const NAME_LEN: usize = 8;
    pub(crate) const FIRST_SECTION: usize = 12;
    pub(crate) const NUM_SECTIONS: usize = 16;
    pub(crate) const EMBEDDING_DIM: usize = 20;
    pub(crate) const NUM_EMBEDDINGS: usize = 24;
    pub(crate) const NUM_CORES: usize = 32;
    pub(crate) const DIGIT_ORDER: usize = 33;
    pub(crate) const COMBINE: usize = 34;
    pub(crate) const COLUMN_ORDER: usize = 35;
    pub(crate) const ROW_FACTORS: usize = 36;
    pub(crate) const COLUMN_FACTORS: usize = 60;
    pub(crate) const INNER_RANKS: usize = 84;
    pub(crate) const NUM_ROWS: usize = 104;
    pub(crate) const RESERVED_TAIL: usize = 112;
}

/// Positions of a section record's fields.
pub(crate) mod section {
    pub(crate) const OFFSET: usize = 0;
    pub(crate) const LEN: usize = 8;
    pub(crate) const CHECKSUM: usize = 16;
    pub(crate) const ROLE: usize = 20;
    pub(crate) const DTYPE: usize = 22;
    pub(crate) const CORE: usize = 23;
    pub(crate) const RESERVED: usize = 24;
}

/// Positions of a layer record's fields.
pub(crate) mod layer {
    pub(crate) const INPUTS: usize = 0;
    pub(crate) const OUTPUTS: usize = 4;
    pub(crate) const FIRST_SECTION: usize = 8;
    pub(crate) const NUM_SECTIONS: usize = 12;
    pub(crate) const STACK: usize = 16;
    pub(crate) const ACTIVATION: usize = 17;
    pub(crate) const RESERVED: usize = 18;
}

pub(crate) const STACK_BOTTOM: u8 = 1;
pub(crate) const STACK_TOP: u8 = 2;
pub(crate) const KIND_DENSE: u16 = 1;
pub(crate) const KIND_TT: u16 = 2;
pub(crate) const KIND_PROJECTED: u16 = 3;
pub(crate) const KIND_QUOTIENT_REMAINDER: u16 = 4;
pub(crate) const KIND_CODEBOOK: u16 = 5;
pub(crate) const COMBINE_MULT: u8 = 1;
pub(crate) const COMBINE_ADD: u8 = 2;
pub(crate) const COMBINE_CONCAT: u8 = 3;
pub(crate) const ROLE_ROWS: u16 = 1;
pub(crate) const ROLE_CORE: u16 = 2;
pub(crate) const ROLE_SCALES: u16 = 3;
pub(crate) const ROLE_OVERRIDE_IDS: u16 = 4;
pub(crate) const ROLE_OVERRIDE_ROWS: u16 = 5;
pub(crate) const ROLE_PREFIX_IDS: u16 = 6;
pub(crate) const ROLE_PREFIX_PRODUCTS: u16 = 7;
pub(crate) const ROLE_PROJECTION: u16 = 8;
pub(crate) const ROLE_REMAPPED_ROWS: u16 = 9;
pub(crate) const ROLE_OVERRIDE_INDEX: u16 = 10;
pub(crate) const ROLE_PREFIX_INDEX: u16 = 11;
pub(crate) const ROLE_LAYER_WEIGHTS: u16 = 12;
pub(crate) const ROLE_LAYER_SCALES: u16 = 13;
pub(crate) const ROLE_LAYER_BIAS: u16 = 14;
pub(crate) const ROLE_CODES: u16 = 16;
pub(crate) const ROLE_BOOKS: u16 = 17;
pub(crate) const DTYPE_F32: u8 = 1;
pub(crate) const DTYPE_F16: u8 = 2;
pub(crate) const DTYPE_BF16: u8 = 3;
pub(crate) const DTYPE_I8: u8 = 4;
pub(crate) const DTYPE_I4: u8 = 5;
pub(crate) const DTYPE_U64: u8 = 0x40;
pub(crate) const DTYPE_U32: u8 = 0x41;
pub(crate) const DTYPE_U8: u8 = 0x42;
pub(crate) const DTYPE_U12: u8 = 0x43;
pub(crate) const DTYPE_U16: u8 = 0x44;

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

pub(crate) fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

pub(crate) fn num_tables(bytes: &[u8]) -> usize {
    u32_at(bytes, header::NUM_TABLES) as usize
}

pub(crate) fn num_sections(bytes: &[u8]) -> usize {
    u32_at(bytes, header::NUM_SECTIONS) as usize
}

/// Where table record `position` starts.
pub(crate) fn table_at(position: usize) -> usize {
    HEADER_LEN + position * TABLE_LEN
}

/// Where section record `position` starts.
pub(crate) fn section_at(bytes: &[u8], position: usize) -> usize {
    table_at(num_tables(bytes)) + position * SECTION_LEN
}

pub(crate) fn num_layers(bytes: &[u8]) -> usize {
    u32_at(bytes, header::NUM_LAYERS) as usize
}

pub(crate) fn num_model_tables(bytes: &[u8]) -> usize {
    u32_at(bytes, header::NUM_MODEL_TABLES) as usize
}

/// Where layer record `position` starts.
pub(crate) fn layer_at(bytes: &[u8], position: usize) -> usize {
    section_at(bytes, num_sections(bytes)) + position * LAYER_LEN
}

/// Where the number of the model's table `position` stands.
pub(crate) fn model_table_at(bytes: &[u8], position: usize) -> usize {
    layer_at(bytes, num_layers(bytes)) + position * 4
}

/// Whether the model's table `position` is averaged.
pub(crate) fn is_mean(bytes: &[u8], position: usize) -> bool {
    u32_at(bytes, model_table_at(bytes, position)) >> 31 == 1
}

/// Which table the model's table `position` is.
pub(crate) fn model_table(bytes: &[u8], position: usize) -> usize {
    (u32_at(bytes, model_table_at(bytes, position)) & 0x7FFF_FFFF) as usize
}

/// Where the names start.
pub(crate) fn names_at(bytes: &[u8]) -> usize {
    model_table_at(bytes, num_model_tables(bytes))
}

/// Where the head ends and the first section starts, as the header's counts have it.
pub(crate) fn head_len(bytes: &[u8]) -> usize {
    (names_at(bytes) + u32_at(bytes, header::NAMES_LEN) as usize).next_multiple_of(ALIGNMENT)
}

/// One section record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Section {
    pub(crate) position: usize,
    pub(crate) offset: usize,
    pub(crate) len: usize,
    pub(crate) checksum: u32,
    pub(crate) role: u16,
    pub(crate) dtype: u8,
    pub(crate) core: u8,
}

impl Section {
    pub(crate) fn read(bytes: &[u8], position: usize) -> Self {
        let at = section_at(bytes, position);
        Self {
            position,
            offset: u64_at(bytes, at + section::OFFSET) as usize,
            len: u64_at(bytes, at + section::LEN) as usize,
            checksum: u32_at(bytes, at + section::CHECKSUM),
            role: u16_at(bytes, at + section::ROLE),
            dtype: bytes[at + section::DTYPE],
            core: bytes[at + section::CORE],
        }
    }

    pub(crate) fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.len
    }

    /// With the zeros that follow.
    pub(crate) fn padded_range(&self) -> Range<usize> {
        self.offset..(self.offset + self.len).next_multiple_of(ALIGNMENT)
    }
}

/// Bytes of `count` elements of the dtype with this code.
pub(crate) fn bytes_of(dtype: u8, count: usize) -> usize {
    match dtype {
        DTYPE_F32 => 4 * count,
        DTYPE_F16 | DTYPE_BF16 => 2 * count,
        DTYPE_I8 => count,
        DTYPE_I4 => count.div_ceil(2),
        _ => panic!("dtype {dtype}"),
    }
}

/// The dtype of a dense row's scale and of its offset, which stand before its elements; `None` if
/// it has neither.
pub(crate) fn row_header(dtype: u8) -> Option<u8> {
    match dtype {
        DTYPE_I8 => Some(DTYPE_F32),
        DTYPE_I4 => Some(DTYPE_F16),
        _ => None,
    }
}

/// Bytes of a dense row.
pub(crate) fn row_len(dtype: u8, dim: usize) -> usize {
    row_header(dtype).map_or(0, |header| bytes_of(header, 2)) + bytes_of(dtype, dim)
}

/// The sections of table `position`.
pub(crate) fn sections_of(bytes: &[u8], position: usize) -> Vec<Section> {
    let at = table_at(position);
    let first = u32_at(bytes, at + table::FIRST_SECTION) as usize;
    let count = u32_at(bytes, at + table::NUM_SECTIONS) as usize;
    (first..first + count).map(|section| Section::read(bytes, section)).collect()
}

/// The sections of layer `position`.
pub(crate) fn sections_of_layer(bytes: &[u8], position: usize) -> Vec<Section> {
    let at = layer_at(bytes, position);
    let first = u32_at(bytes, at + layer::FIRST_SECTION) as usize;
    let count = u32_at(bytes, at + layer::NUM_SECTIONS) as usize;
    (first..first + count).map(|section| Section::read(bytes, section)).collect()
}

/// The name of table `position`.
pub(crate) fn name_of(bytes: &[u8], position: usize) -> &str {
    let at = table_at(position);
    let start = names_at(bytes) + u32_at(bytes, at + table::NAME_OFFSET) as usize;
    str::from_utf8(&bytes[start..start + u32_at(bytes, at + table::NAME_LEN) as usize]).unwrap()
}

/// The index of ids below `limit`, id by id.
pub(crate) fn fill_id_index(ids: &[u64], limit: u64, out: &mut [u8]) {
    assert_eq!(out.len() as u64, limit.div_ceil(384) * 64);
    out.fill(0);
    for (run, first) in out.chunks_exact_mut(64).zip((0..).step_by(384)) {
        let before = |id: u64| ids.iter().filter(|&&other| other < id).count();
        put(run, 0, &(before(first) as u32).to_le_bytes());
        for word in 0..6 {
            let in_run = before(first + 64 * word) - before(first);
            put(run, 4 + 2 * word as usize, &(in_run as u16).to_le_bytes());
        }
        for id in ids.iter().filter_map(|id| id.checked_sub(first)).filter(|&id| id < 384) {
            run[16 + id as usize / 8] |= 1 << (id % 8);
        }
    }
}

/// CRC-32C, from its reflected polynomial.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    static TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut i = 0;
        while i < 256 * 8 {
            let (byte, bit) = (i / 8, i % 8);
            let crc: u32 = if bit == 0 { byte as u32 } else { table[byte] };
            table[byte] = (crc >> 1) ^ (0x82f6_3b78 * (crc & 1));
            i += 1;
        }
        table
    };
    !bytes
        .iter()
        .fold(!0, |crc: u32, &byte| (crc >> 8) ^ TABLE[usize::from(crc as u8 ^ byte)])
}

/// Makes header and directory match their checksum again; `false` if the header's counts reach past
/// the end, so that there is nothing to make match.
pub(crate) fn reseal(bytes: &mut [u8]) -> bool {
    if bytes.len() < HEADER_LEN || head_len(bytes) > bytes.len() {
        return false;
    }
    put(bytes, header::CHECKSUM, &[0; 4]);
    let checksum = crc32c(&bytes[..head_len(bytes)]);
    put(bytes, header::CHECKSUM, &checksum.to_le_bytes());
    true
}

/// Makes section `position`, and then the head, match its checksum again.
pub(crate) fn reseal_section(bytes: &mut [u8], position: usize) {
    let checksum = crc32c(&bytes[Section::read(bytes, position).padded_range()]);
    let at = section_at(bytes, position) + section::CHECKSUM;
    put(bytes, at, &checksum.to_le_bytes());
    assert!(reseal(bytes));
}

/// Bytes that start on a multiple of [`ALIGNMENT`], with or without the crate's `alloc`.
pub(crate) struct Aligned {
    bytes: Vec<u8>,
    start: usize,
}

impl std::ops::Deref for Aligned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

/// A blob of one dense table called `t`, whose rows are these bytes.
pub(crate) fn dense_blob(rows: &[u8], num_embeddings: u64, dim: usize, dtype: u8) -> Aligned {
    let head_len = (HEADER_LEN + TABLE_LEN + SECTION_LEN + 1).next_multiple_of(ALIGNMENT);
    let total_len = (head_len + rows.len()).next_multiple_of(ALIGNMENT);
    let mut bytes = vec![0; total_len + ALIGNMENT - 1];
    let start = bytes.as_ptr().addr().wrapping_neg() % ALIGNMENT;
    bytes.truncate(start + total_len);

    let blob = &mut bytes[start..];
    put(blob, 0, &[0x89, 0x54, 0x54, 0x52, 0x0d, 0x0a, 0x1a, 0x0a]);
    put(blob, header::VERSION, &1u32.to_le_bytes());
    put(blob, header::TOTAL_LEN, &(total_len as u64).to_le_bytes());
    for field in [header::NUM_TABLES, header::NUM_SECTIONS, header::NAMES_LEN] {
        put(blob, field, &1u32.to_le_bytes());
    }
    let at = table_at(0);
    put(blob, at + table::KIND, &KIND_DENSE.to_le_bytes());
    put(blob, at + table::NAME_LEN, &1u32.to_le_bytes());
    put(blob, at + table::NUM_SECTIONS, &1u32.to_le_bytes());
    put(blob, at + table::EMBEDDING_DIM, &(dim as u32).to_le_bytes());
    put(blob, at + table::NUM_EMBEDDINGS, &num_embeddings.to_le_bytes());
    let at = section_at(blob, 0);
    put(blob, at + section::OFFSET, &(head_len as u64).to_le_bytes());
    put(blob, at + section::LEN, &(rows.len() as u64).to_le_bytes());
    put(blob, at + section::ROLE, &ROLE_ROWS.to_le_bytes());
    blob[at + section::DTYPE] = dtype;
    let at = names_at(blob);
    blob[at] = b't';
    put(blob, head_len, rows);
    reseal_section(blob, 0);
    Aligned { bytes, start }
}

#[test]
fn crc32c_has_the_check_value_of_its_catalogue_entry() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
}
