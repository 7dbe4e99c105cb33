//! The cores of a tensor train, whose slices multiply out to a row, and products of prefixes that
//! need not be computed ([`TtShape`] has the formula).

use super::id_index::{Line, position};
use crate::{
    dtype::{Dtype, Elements},
    shape::{MAX_CORES, TtShape},
};

/// The cores of a tensor-train table.
#[derive(Clone, Copy, Debug)]
pub struct TtCores<'a> {
    pub(crate) shape: TtShape,
    /// The first `shape.num_cores()` are in use.
    pub(crate) cores: [Core<'a>; MAX_CORES],
    pub(crate) prefixes: Option<Prefixes<'a>>,
}

impl<'a> TtCores<'a> {
    /// Rows, factors and ranks.
    pub fn shape(&self) -> &TtShape {
        &self.shape
    }

    /// The cores, in order.
    pub fn cores(&self) -> &[Core<'a>] {
        self.cores.get(..self.shape.num_cores()).unwrap_or_default()
    }

    /// Products that need not be computed.
    pub fn prefixes(&self) -> Option<Prefixes<'a>> {
        self.prefixes
    }
}

/// One core: `p_k` slices of `r_k x q_k x r_{k+1}` elements, each row-major, one after another.
#[derive(Clone, Copy, Debug)]
pub struct Core<'a> {
    pub(crate) slices: Elements<'a>,
    pub(crate) scales: &'a [f32],
}

impl<'a> Core<'a> {
    /// The slices.
    pub fn slices(&self) -> Elements<'a> {
        self.slices
    }

    /// One scale per slice if they are i8, else empty.
    pub fn scales(&self) -> &'a [f32] {
        self.scales
    }

    /// What the elements of a slice are multiplied by.
    #[inline]
    pub(crate) fn scale(&self, slice: usize) -> Option<f32> {
        if self.slices.dtype() == Dtype::I8 {
            self.scales.get(slice).copied()
        } else {
            Some(1.0)
        }
    }
}

/// What the first d - 1 cores multiply out to, for some prefixes: those of rows that are asked for
/// often.
#[derive(Clone, Copy, Debug)]
pub struct Prefixes<'a> {
    pub(crate) ids: &'a [u64],
    pub(crate) products: &'a [f32],
    pub(crate) index: &'a [Line],
}

impl<'a> Prefixes<'a> {
    /// Which prefixes ([`TtShape::prefix`]), strictly ascending.
    pub fn ids(&self) -> &'a [u64] {
        self.ids
    }

    /// Their products, [`TtShape::prefix_len`] elements per id.
    pub fn products(&self) -> &'a [f32] {
        self.products
    }

    /// The product of a prefix, if it is stored: `len` elements.
    #[inline]
    pub(crate) fn product(&self, prefix: u64, len: usize) -> Option<&'a [f32]> {
        let start = position(self.ids, self.index, prefix)?.checked_mul(len)?;
        self.products.get(start..)?.get(..len)
    }
}
