//! Quotient-remainder tables, whose rows combine a row of each of two dense tables: `row i =
//! combine(quotients[i / n], remainders[i mod n])`, with n remainder rows.

use super::Rows;
use crate::{
    codes::codes,
    shape::{MAX_ROW_FACTOR, ShapeError, check_embedding_dim, check_factors},
};

/// A quotient-remainder table (Shi et al., "Compositional embeddings using complementary
/// partitions", 2019): row i combines quotient row `i / num_remainders` and remainder row `i mod
/// num_remainders`.
#[derive(Clone, Copy, Debug)]
pub struct QuotientRemainder<'a> {
    pub(crate) quotients: Rows<'a>,
    pub(crate) remainders: Rows<'a>,
    pub(crate) num_remainders: u32,
    pub(crate) combine: Combine,
}

impl<'a> QuotientRemainder<'a> {
    /// The quotient rows: `ceil(num_rows / num_remainders)`.
    pub fn quotients(&self) -> Rows<'a> {
        self.quotients
    }

    /// The remainder rows.
    pub fn remainders(&self) -> Rows<'a> {
        self.remainders
    }

    /// Number of remainder rows.
    pub fn num_remainders(&self) -> u32 {
        self.num_remainders
    }

    /// How a quotient row and a remainder row become one.
    pub fn combine(&self) -> Combine {
        self.combine
    }
}

/// How the two rows of a [`QuotientRemainder`] become one. The discriminants are the codes of
/// `docs/format.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[repr(u8)]
pub enum Combine {
    /// The product, element by element.
    Mult = 1,
    /// The sum, element by element.
    Add = 2,
    /// The quotient row, followed by the remainder row.
    Concat = 3,
}

codes!(Combine: Mult "mult", Add "add", Concat "concat");

impl Combine {
    /// The number of quotient rows that `num_rows` rows need, and the columns of a combined row.
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
