//! The list of a remapped table: the row number of each index.

use crate::codes::codes;

/// The row number of each index, in the order of the indices: unsigned little-endian integers of
/// one width.
#[derive(Clone, Copy, Debug)]
pub struct RowNumbers<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) dtype: RowNumberDtype,
}

impl<'a> RowNumbers<'a> {
    /// Their stored type.
    pub fn dtype(&self) -> RowNumberDtype {
        self.dtype
    }

    /// The row number of an index.
    #[inline(always)]
    pub(crate) fn get(&self, index: u64) -> Option<u32> {
        let len = self.dtype.bytes();
        let start = usize::try_from(index).ok()?.checked_mul(len)?;
        let bytes = self.bytes.get(start..)?;
        match self.dtype {
            RowNumberDtype::U8 => bytes.first().map(|&row| row.into()),
            RowNumberDtype::U16 => Some(u16::from_le_bytes(*bytes.first_chunk()?).into()),
            RowNumberDtype::U24 => {
                let [low, middle, high] = *bytes.first_chunk()?;
                Some(u32::from_le_bytes([low, middle, high, 0]))
            }
            RowNumberDtype::U32 => Some(u32::from_le_bytes(*bytes.first_chunk()?)),
        }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = u32> + use<'a> {
        let rows = *self;
        (0..).map_while(move |index| rows.get(index))
    }
}

/// The stored type of row numbers. The discriminants are the codes of `docs/format.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[repr(u8)]
pub enum RowNumberDtype {
    /// One byte.
    U8 = 0x42,
    /// Two bytes.
    U16 = 0x44,
    /// Three bytes.
    U24 = 0x45,
    /// Four bytes.
    U32 = 0x41,
}

codes!(RowNumberDtype: U8 "u8", U16 "u16", U24 "u24", U32 "u32");

impl RowNumberDtype {
    /// The narrowest type for the numbers of so many rows.
    pub fn for_rows(num_rows: u64) -> Self {
        match num_rows {
            0..=0x100 => Self::U8,
            0x101..=0x1_0000 => Self::U16,
            0x1_0001..=0x100_0000 => Self::U24,
            _ => Self::U32,
        }
    }

    /// Bytes of a row number.
    pub fn bytes(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::U16 => 2,
            Self::U24 => 3,
            Self::U32 => 4,
        }
    }

    /// Writes row numbers into their bytes. Numbers that are too large lose their upper bits.
    pub fn encode(self, rows: &[u32], out: &mut [u8]) {
        for (to, row) in out.chunks_exact_mut(self.bytes()).zip(rows) {
            to.iter_mut().zip(row.to_le_bytes()).for_each(|(to, byte)| *to = byte);
        }
    }
}
