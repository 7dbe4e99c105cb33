//! Codebook tables, whose rows are made of entries of a few books: product, additive and residual
//! quantisation.

use super::Combine;
use crate::{
    codes::codes,
    dtype::{Dtype, Elements},
    limits::{MAX_BOOK_LEN, MAX_NUM_BOOKS},
    shape::{ShapeError, check_embedding_dim},
};

/// A codebook table (Jegou et al., "Product quantization for nearest neighbor search", 2011;
/// Babenko and Lempitsky, "Additive quantization for extreme vector compression", 2014): a row is
/// one code for each book, each the number of an entry of its book. The entries are put end to end
/// ([`Combine::Concat`]) or added ([`Combine::Add`]), and then multiplied by the projection, if
/// there is one.
#[derive(Clone, Copy, Debug)]
pub struct Codebook<'a> {
    pub(crate) codes: &'a [u8],
    pub(crate) code_dtype: CodeDtype,
    pub(crate) books: Elements<'a>,
    pub(crate) scales: &'a [f32],
    pub(crate) projection: Option<Elements<'a>>,
    pub(crate) combine: Combine,
    pub(crate) num_books: usize,
    pub(crate) book_len: usize,
    pub(crate) inner_dim: usize,
    #[expect(dead_code, reason = "its type says whether the struct can exist")]
    pub(crate) support: Support,
}

/// The feature `codebooks`. Without it this type has no value, so that there is no [`Codebook`],
/// and the compiler leaves out all code that needs one.
#[cfg(feature = "codebooks")]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Support(());

/// As above.
#[cfg(not(feature = "codebooks"))]
#[derive(Clone, Copy, Debug)]
pub(crate) enum Support {}

impl Support {
    /// The value, if there is one.
    #[cfg(feature = "codebooks")]
    pub(crate) fn get() -> Option<Self> {
        Some(Self(()))
    }

    /// As above.
    #[cfg(not(feature = "codebooks"))]
    pub(crate) fn get() -> Option<Self> {
        None
    }
}

impl<'a> Codebook<'a> {
    /// Number of books: codes of a row.
    pub fn num_books(&self) -> usize {
        self.num_books
    }

    /// Number of entries of a book.
    pub fn book_len(&self) -> usize {
        self.book_len
    }

    /// Columns of a row before the projection; `embedding_dim` if there is none.
    pub fn inner_dim(&self) -> usize {
        self.inner_dim
    }

    /// Columns of an entry: `inner_dim`, or `inner_dim / num_books` if entries are put end to end.
    pub fn entry_len(&self) -> usize {
        entry_len(self.combine, self.num_books, self.inner_dim)
    }

    /// Whether the entries of a row are put end to end or added.
    pub fn combine(&self) -> Combine {
        self.combine
    }

    /// The codes of all rows, [`CodeDtype::row_len`] bytes each.
    pub fn codes(&self) -> &'a [u8] {
        self.codes
    }

    /// The stored type of the codes.
    pub fn code_dtype(&self) -> CodeDtype {
        self.code_dtype
    }

    /// The books, one after another: `num_books x book_len x entry_len` elements.
    pub fn books(&self) -> Elements<'a> {
        self.books
    }

    /// One scale for each book if their elements are i8, else empty.
    pub fn scales(&self) -> &'a [f32] {
        self.scales
    }

    /// The matrix that rows are multiplied by, `inner_dim x embedding_dim`, row-major; f32, f16 or
    /// bf16.
    pub fn projection(&self) -> Option<Elements<'a>> {
        self.projection
    }

    /// The codes of the row at `position`, one for each book, as they are stored: a blob that has
    /// not been verified may have codes that are no entries.
    pub fn row_codes(&self, position: usize) -> Option<impl Iterator<Item = u16> + use<'a>> {
        let len = self.code_dtype.row_len(self.num_books);
        let start = position.checked_mul(len)?;
        let row = self.codes.get(start..start.checked_add(len)?)?;
        let dtype = self.code_dtype;
        Some((0..self.num_books).map_while(move |book| dtype.get(row, book)))
    }

    /// The scale of a book, and its entry of this number. An entry that does not exist is the last
    /// one.
    pub(crate) fn entry(&self, book: usize, code: u16) -> Option<(f32, Elements<'a>)> {
        let entry = usize::from(code).min(self.book_len.saturating_sub(1));
        let position = book.checked_mul(self.book_len)?.checked_add(entry)?;
        Some((self.scale(book)?, self.books.chunk(position, self.entry_len())?))
    }

    /// What the elements of a book are multiplied by.
    pub(crate) fn scale(&self, book: usize) -> Option<f32> {
        if self.books.dtype() == Dtype::I8 {
            self.scales.get(book).copied()
        } else {
            Some(1.0)
        }
    }
}

/// Columns of an entry.
pub(crate) fn entry_len(combine: Combine, num_books: usize, inner_dim: usize) -> usize {
    match combine {
        Combine::Concat => inner_dim.checked_div(num_books).unwrap_or(0),
        Combine::Mult | Combine::Add => inner_dim,
    }
}

/// Refuses numbers that no codebook table has.
pub(crate) fn check(
    combine: Combine,
    num_books: usize,
    book_len: usize,
    inner_dim: usize,
) -> Result<(), ShapeError> {
    check_embedding_dim(inner_dim as u64)?;
    let fits = (1..=MAX_NUM_BOOKS).contains(&num_books)
        && (1..=MAX_BOOK_LEN).contains(&book_len)
        && (combine != Combine::Concat || inner_dim.is_multiple_of(num_books));
    if fits {
        Ok(())
    } else {
        Err(ShapeError::Codebook { num_books, book_len, inner_dim })
    }
}

/// The stored type of codes. The discriminants are the codes of `docs/format.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[repr(u8)]
pub enum CodeDtype {
    /// Bytes.
    U8 = 0x42,
    /// Two codes in three bytes, each row rounded up to a whole byte.
    U12 = 0x43,
    /// Two bytes, little-endian.
    U16 = 0x44,
}

codes!(CodeDtype: U8 "u8", U12 "u12", U16 "u16");

impl CodeDtype {
    /// The smallest type that can number `book_len` entries.
    pub fn for_book_len(book_len: usize) -> Self {
        match book_len {
            0..=0x100 => Self::U8,
            0x101..=0x1000 => Self::U12,
            _ => Self::U16,
        }
    }

    /// Bytes of a row of `num_books` codes.
    pub fn row_len(self, num_books: usize) -> usize {
        match self {
            Self::U8 => num_books,
            Self::U12 => num_books.saturating_mul(3).div_ceil(2),
            Self::U16 => num_books.saturating_mul(2),
        }
    }

    /// The code at `position` of a row.
    #[inline(always)]
    pub(crate) fn get(self, row: &[u8], position: usize) -> Option<u16> {
        let pair = |start: usize| Some(u16::from_le_bytes(*row.get(start..)?.first_chunk()?));
        match self {
            Self::U8 => row.get(position).map(|&code| code.into()),
            // Byte 3k is the low byte of code 2k, byte 3k + 2 the high one of code 2k + 1.
            Self::U12 => {
                let start = position.checked_mul(3)? / 2;
                if position.is_multiple_of(2) {
                    Some(pair(start)? & 0xFFF)
                } else {
                    Some(pair(start)? >> 4)
                }
            }
            Self::U16 => pair(position.checked_mul(2)?),
        }
    }

    /// Writes a row of codes into its `row_len` bytes. Codes that are too large lose their upper
    /// bits.
    pub fn encode_row(self, codes: &[u16], out: &mut [u8]) {
        match self {
            Self::U8 => out.iter_mut().zip(codes).for_each(|(to, &code)| *to = code as u8),
            Self::U12 => {
                for (to, pair) in out.chunks_mut(3).zip(codes.chunks(2)) {
                    let (low, high) = match *pair {
                        [low, high] => (low, high),
                        [low] => (low, 0),
                        _ => (0, 0),
                    };
                    let bits = u32::from(low & 0xFFF) | u32::from(high & 0xFFF) << 12;
                    to.iter_mut().zip(bits.to_le_bytes()).for_each(|(to, byte)| *to = byte);
                }
            }
            Self::U16 => {
                for (to, code) in out.chunks_mut(2).zip(codes) {
                    to.iter_mut().zip(code.to_le_bytes()).for_each(|(to, byte)| *to = byte);
                }
            }
        }
    }
}
