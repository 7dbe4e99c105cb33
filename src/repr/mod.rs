//! What a table is stored as.
//!
//! The [`IndexMap`] gives the stored row of an index: the row of the same number, row `index mod
//! num_rows`, or the row that a list gives. [`Weights`] store the rows, in one of five
//! representations:
//!
//! - *dense*: every row, with a scale and an offset if its elements are i8 or i4;
//! - *tensor train*: `G_0[i_0] G_1[i_1] .. G_{d-1}[i_{d-1}]`, one slice of each core, by the digits
//!   of i ([`TtShape`](crate::TtShape));
//! - *projected*: a short row times a matrix that all rows share;
//! - *quotient-remainder*: the product, the sum or the concatenation of row `i / n` of one table
//!   and row `i mod n` of another, of n rows;
//! - *codebook*: entries of a few books, put end to end or added.
//!
//! [`Overrides`] replace the rows of some indices. All of these types are views: of a blob's bytes,
//! or of a table that is being trained.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

pub(crate) mod codebook;
pub(crate) mod id_index;
mod overrides;
mod projected;
mod quotient_remainder;
mod row_numbers;
mod rows;
mod tt;

pub use codebook::{CodeDtype, Codebook};
#[cfg(feature = "alloc")]
pub use id_index::{id_index, id_index_len};
pub use overrides::Overrides;
pub use projected::Projected;
pub use quotient_remainder::{Combine, QuotientRemainder};
pub use row_numbers::{RowNumberDtype, RowNumbers};
pub use rows::Rows;
pub(crate) use tt::SmallStep;
pub use tt::{Core, Prefixes, TtCores};

use crate::dtype::Dtype;

/// What a [`Table`](crate::Table) is stored as: its index map, weights and overrides.
#[derive(Clone, Copy, Debug)]
pub struct TableData<'a> {
    pub(crate) name: &'a str,
    pub(crate) num_embeddings: u64,
    pub(crate) embedding_dim: usize,
    pub(crate) index_map: IndexMap<'a>,
    pub(crate) num_rows: u64,
    pub(crate) weights: Weights<'a>,
    pub(crate) overrides: Option<Overrides<'a>>,
}

impl<'a> TableData<'a> {
    /// How an index becomes the number of a stored row.
    pub fn index_map(&self) -> IndexMap<'a> {
        self.index_map
    }

    /// Number of rows that [`weights`](Self::weights) store: `num_embeddings` with
    /// [`IndexMap::Identity`], or fewer.
    pub fn num_rows(&self) -> u64 {
        self.num_rows
    }

    /// The stored numbers, in their representation.
    pub fn weights(&self) -> &Weights<'a> {
        &self.weights
    }

    /// The rows that replace those of some indices.
    pub fn overrides(&self) -> Option<Overrides<'a>> {
        self.overrides
    }

    /// The stored type: of the rows (of a quotient-remainder table, the quotient ones), of the
    /// first core, or of the books.
    pub fn dtype(&self) -> Dtype {
        match &self.weights {
            Weights::Dense(rows)
            | Weights::Projected(Projected { rows, .. })
            | Weights::QuotientRemainder(QuotientRemainder { quotients: rows, .. }) => rows.dtype(),
            Weights::Codebook(codebook) => codebook.books.dtype(),
            Weights::Tt(tt) => tt.cores.first().map_or(Dtype::F32, |core| core.slices.dtype()),
        }
    }
}

/// The stored numbers of a table, in one of the representations that a table can have.
#[non_exhaustive]
#[derive(Clone, Copy, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "a view without an allocator has no box to put it in"
)]
pub enum Weights<'a> {
    /// Every row.
    Dense(Rows<'a>),
    /// Cores of a tensor train.
    Tt(TtCores<'a>),
    /// Short rows, and a matrix that widens them.
    Projected(Projected<'a>),
    /// Quotient rows and remainder rows, which combine to rows.
    QuotientRemainder(QuotientRemainder<'a>),
    /// Codes of entries of a few books.
    Codebook(Codebook<'a>),
}

impl Weights<'_> {
    /// The name used in specs and listings.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Dense(_) => "dense",
            Self::Tt(_) => "tt",
            Self::Projected(_) => "projected",
            Self::QuotientRemainder(_) => "quotient_remainder",
            Self::Codebook(_) => "codebook",
        }
    }
}

/// How an index becomes the number of a stored row.
#[non_exhaustive]
#[derive(Clone, Copy, Debug)]
pub enum IndexMap<'a> {
    /// Index i is row i.
    Identity,
    /// Index i is row `i mod num_rows`: a hashed table.
    Modulo,
    /// The row of each index, in the order of the indices (FBGEMM's `index_remappings`).
    Remapped(RowNumbers<'a>),
}

impl IndexMap<'_> {
    /// The name used in specs and listings.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Modulo => "modulo",
            Self::Remapped(_) => "remapped",
        }
    }
}
