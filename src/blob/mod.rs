//! The blob: one flat little-endian file of named tables, read in place (flash, `include_blob!`,
//! mmap).
//!
//! `docs/format.md` is the specification. [`Blob::parse`] checks every number in the header and the
//! directory, once. It does not read the payload, so that opening a gigabyte reads a page or two.
//! Afterwards a lookup can fail only for its own arguments. [`Blob::verify_payload`] reads
//! everything and compares checksums.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

mod error;
mod model;
mod parse;
mod record;
mod section;
#[cfg(feature = "alloc")]
mod writer;

pub(crate) use crate::limits::{
    ALIGNMENT, MAX_LAYER_WIDTH, MAX_LAYERS, MAX_MODEL_TABLES, MAX_NAME_LEN, MAX_TABLES, VERSION,
};
#[cfg(feature = "alloc")]
pub use error::LayoutError;
pub use error::{BlobError, Location, Rule};
pub use model::{Activation, Interaction, Layer, ModelTable, Stack};
pub use section::{Role, Section};
#[cfg(feature = "alloc")]
pub use writer::{
    IndexMapSpec, LayerSpec, Layout, ModelSpec, OverridesSpec, SectionChecksum, SectionPlan,
    TableSpec, WeightsSpec,
};

use crate::repr::TableData;
use error::ErrorSlot;
use parse::Sections;
use record::{LayerRecord, SectionRecord, TableRecord};

/// A parsed blob: borrowed bytes whose directory has been checked. Cheap to copy, `Send` and
/// `Sync`.
///
/// ```
/// use ttrec::Blob;
///
/// # let bytes = ttrec::include_blob!("../../tests/golden/two_tables.ttr");
/// let blob = Blob::parse(bytes)?; // reads the header and the directory only
/// for table in blob.tables() {
///     println!("{}: {} x {}", table.name(), table.num_embeddings(), table.embedding_dim());
/// }
/// # assert_eq!(blob.num_tables(), 2);
/// blob.verify_payload()?; // reads everything, for instance after a download
/// # Ok::<(), ttrec::BlobError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Blob<'a> {
    bytes: &'a [u8],
    tables: &'a [TableRecord],
    sections: &'a [SectionRecord],
    layers: &'a [LayerRecord],
    /// Of a model.
    interaction: Interaction,
    model_tables: &'a [u32],
    names: &'a [u8],
}

/// CRC-32C (Castagnoli; "CRC-32/ISCSI") of the chunks given so far.
pub(crate) struct Checksum(crc::Digest<'static, u32, ChecksumTable>);

/// With `std`, sixteen tables, for sixteen bytes at a time. Without, one table of a kilobyte. On
/// 32-bit boards without an operating system, no table: flash is scarce there, and only the head of
/// a blob, which is short, is always checked.
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

/// The checksum of header and directory, computed with the header's checksum field set to 0.
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
        let record = self.tables.get(position)?;
        ErrorSlot::with(|slot| self.read_table(position, record, slot)).ok()
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
        let sections = record.and_then(|record| {
            ErrorSlot::with(|slot| self.sections_of_table(position, record, slot)).ok()
        });
        sections.into_iter().flat_map(Sections::iter)
    }
}
