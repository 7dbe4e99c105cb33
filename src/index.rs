//! The integer types that indices and offsets may have, and slices of any of them.
//!
//! The caller's integer type is erased here, so that the pooling engine is compiled once, for
//! [`Indices`], and not again in each crate that calls it.

use core::ops::Range;
use sealed::Sealed;

/// An integer type of indices and offsets: `u32`, `u64`, `i32` or `i64`.
pub trait Index: Sealed {}

mod sealed {
    use super::Indices;

    pub trait Sealed: Copy {
        const IS_SIGNED: bool;

        fn erase(integers: &[Self]) -> Indices<'_>;
    }
}

macro_rules! index {
    ($($Integer:ident as $Width:ident, $is_signed:literal;)+) => {
        $(
            impl Index for $Integer {}

            impl Sealed for $Integer {
                const IS_SIGNED: bool = $is_signed;

                #[inline]
                fn erase(integers: &[Self]) -> Indices<'_> {
                    Indices::$Width(bytemuck::must_cast_slice(integers))
                }
            }
        )+
    };
}
index! {
    u32 as U32, false;
    i32 as U32, true;
    u64 as U64, false;
    i64 as U64, true;
}

/// Indices or offsets. Signed integers keep their bits, so that a negative integer is larger than
/// any that is not.
#[derive(Clone, Copy, Debug)]
pub enum Indices<'a> {
    U32(&'a [u32]),
    U64(&'a [u64]),
}

/// Runs `$body` with the slice, which is of `u32` or of `u64`.
macro_rules! with_integers {
    ($indices:expr, $integers:ident => $body:expr) => {
        match $indices {
            $crate::index::Indices::U32($integers) => $body,
            $crate::index::Indices::U64($integers) => $body,
        }
    };
}
pub(crate) use with_integers;

impl<'a> Indices<'a> {
    pub(crate) fn len(self) -> usize {
        with_integers!(self, integers => integers.len())
    }

    #[inline(always)]
    pub(crate) fn get(self, position: usize) -> Option<u64> {
        with_integers!(self, integers => integers.get(position).map(|&integer| integer.to_u64()))
    }

    #[inline(always)]
    pub(crate) fn slice(self, range: Range<usize>) -> Option<Self> {
        Some(match self {
            Self::U32(integers) => Self::U32(integers.get(range)?),
            Self::U64(integers) => Self::U64(integers.get(range)?),
        })
    }

    /// The range from the integer at `position` to the next integer: that of a bag, if these are
    /// offsets.
    #[inline(always)]
    pub(crate) fn range(self, position: usize) -> Option<Range<usize>> {
        with_integers!(self, integers => {
            let [start, end] = integers.get(position..)?.first_chunk()?;
            Some(start.to_usize()?..end.to_usize()?)
        })
    }

    pub(crate) fn iter(self) -> impl ExactSizeIterator<Item = u64> + Clone + 'a {
        // Iterates over positions: with the length known, each step only matches on the type.
        (0..self.len()).map(move |position| self.get(position).unwrap_or_default())
    }

    /// The least value that is a negative integer of the caller's type, if that `is_signed`.
    pub(crate) fn first_negative(self, is_signed: bool) -> u64 {
        match self {
            _ if !is_signed => u64::MAX,
            Self::U32(_) => 1 << 31,
            Self::U64(_) => 1 << 63,
        }
    }

    /// The integer at `position` as a signed integer, if it is negative.
    pub(crate) fn negative(self, position: usize) -> Option<i64> {
        let value = match self {
            Self::U32(integers) => integers.get(position)?.cast_signed().into(),
            Self::U64(integers) => integers.get(position)?.cast_signed(),
        };
        Some(value).filter(|&value| value < 0)
    }
}

/// An integer of [`Indices`].
pub(crate) trait Integer: Copy + Ord {
    fn to_u64(self) -> u64;

    /// The value, if it fits this machine's address space.
    #[inline(always)]
    fn to_usize(self) -> Option<usize> {
        usize::try_from(self.to_u64()).ok()
    }
}

impl Integer for u32 {
    #[inline(always)]
    fn to_u64(self) -> u64 {
        self.into()
    }
}

impl Integer for u64 {
    #[inline(always)]
    fn to_u64(self) -> u64 {
        self
    }
}
