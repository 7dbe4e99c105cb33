//! Why bags were refused.

use crate::LookupError;
use core::fmt;

/// Why [`Bags`](crate::Bags) could not be made of what was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BagsError {
    /// `offsets` is empty; it has one more element than there are bags.
    OffsetsEmpty,
    /// An offset of a signed type is negative.
    NegativeOffset {
        /// Its position in `offsets`.
        position: usize,
        /// The offset.
        offset: i64,
    },
    /// `offsets` does not start at 0, decreases, or does not end at the number of indices.
    Offsets {
        /// Position of the first offset that is wrong.
        position: usize,
        /// Its value.
        found: u64,
        /// The number of indices.
        num_indices: usize,
    },
    /// `per_sample_weights` does not have one weight per index.
    WeightsLen {
        /// Weights given.
        found: usize,
        /// Indices given.
        expected: usize,
    },
}

impl fmt::Display for BagsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::OffsetsEmpty => write!(
                f,
                "offsets is empty: expected one more than there are bags, starting with 0"
            ),
            Self::NegativeOffset { position, offset } => {
                write!(f, "offset {offset} at position {position} is negative")
            }
            Self::Offsets { position, found, num_indices } => write!(
                f,
                "offset {found} at position {position}: offsets start at 0, never decrease and \
                 end at the number of indices, {num_indices}"
            ),
            Self::WeightsLen { found, expected } => {
                write!(f, "{found} per_sample_weights: expected one per index, {expected}")
            }
        }
    }
}

impl core::error::Error for BagsError {}

/// Why [`pool_tables`](crate::bag::pool_tables) refused. The output is left unmodified, except with
/// [`LookupError::Inconsistent`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolTablesError {
    /// Position of the table among those given; `None` if the error is not about one table.
    pub table: Option<usize>,
    /// What is wrong.
    pub error: LookupError,
}

impl fmt::Display for PoolTablesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.table {
            Some(table) => write!(f, "table {table}: {}", self.error),
            None => self.error.fmt(f),
        }
    }
}

impl core::error::Error for PoolTablesError {}
