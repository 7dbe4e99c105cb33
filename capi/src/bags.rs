//! Bags as C hands them over, and as the library takes them.

use crate::{
    boundary::{Given, Plain},
    status::Error,
};
use std::ffi::c_void;
use ttrec::{Bags, BagsError, LookupError, Pooling, bag::Index};

/// How the rows of a bag become one, as in torch.nn.EmbeddingBag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ttrec_pooling {
    /// Their sum, each row times its weight if there are any.
    Sum = 0,
    /// Their sum divided by their number; no weights.
    Mean = 1,
    /// The largest of each column; no weights.
    Max = 2,
}

/// The integer type of indices and offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ttrec_index_type {
    /// uint32_t
    U32 = 0,
    /// int64_t
    I64 = 1,
}

/// Bags of indices, in torch.nn.EmbeddingBag's form with include_last_offset=True: bag b is
/// `indices[offsets[b]]` to `indices[offsets[b + 1] - 1]`. ttrec_bags_u32() and ttrec_bags_i64()
/// make one.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ttrec_bags {
    /// A ttrec_index_type: that of `indices` and `offsets`.
    pub index_type: u32,
    /// `num_indices` integers, bag after bag.
    pub indices: *const c_void,
    /// How many.
    pub num_indices: usize,
    /// `num_bags + 1` integers: the first 0, the last `num_indices`, none below the one before it.
    pub offsets: *const c_void,
    /// How many bags.
    pub num_bags: usize,
    /// One weight per index, for TTREC_POOLING_SUM; or null.
    pub per_sample_weights: *const f32,
}

/// An integer type that bags may have here.
pub(crate) trait BagIndex: Index + Plain {
    const TYPE: ttrec_index_type;
}

impl BagIndex for u32 {
    const TYPE: ttrec_index_type = ttrec_index_type::U32;
}

impl BagIndex for i64 {
    const TYPE: ttrec_index_type = ttrec_index_type::I64;
}

impl ttrec_pooling {
    /// The pooling with this number.
    pub(crate) fn of(number: u32) -> Result<Pooling, Error<'static>> {
        match number {
            n if n == Self::Sum as u32 => Ok(Pooling::Sum),
            n if n == Self::Mean as u32 => Ok(Pooling::Mean),
            n if n == Self::Max as u32 => Ok(Pooling::Max),
            found => Err(Error::Pooling { found }),
        }
    }
}

impl ttrec_bags {
    pub(crate) fn index_type(&self) -> Option<ttrec_index_type> {
        [ttrec_index_type::U32, ttrec_index_type::I64]
            .into_iter()
            .find(|&known| known as u32 == self.index_type)
    }

    /// The bags, whose integers are of type `I`; or, if their memory is right, what the library has
    /// against them.
    pub(crate) fn read<'c, I: BagIndex>(
        &self,
        given: &Given<'c>,
    ) -> Result<Result<Bags<'c>, BagsError>, Error<'c>> {
        let num_offsets = self
            .num_bags
            .checked_add(1)
            .ok_or(Error::TooLong { what: "offsets", len: self.num_bags })?;
        let indices = given.slice(self.indices.cast::<I>(), self.num_indices, "indices")?;
        let offsets = given.slice(self.offsets.cast::<I>(), num_offsets, "offsets")?;
        if self.per_sample_weights.is_null() {
            return Ok(Bags::new(indices, offsets));
        }
        let weights =
            given.slice(self.per_sample_weights, self.num_indices, "per_sample_weights")?;
        Ok(Bags::new(indices, offsets).and_then(|bags| bags.with_per_sample_weights(weights)))
    }
}

/// Why bags were refused by the table of this name.
pub(crate) fn refused(table: &str, error: LookupError) -> Error<'_> {
    match error {
        LookupError::NegativeIndex { position, index } => {
            Error::NegativeIndex { table, position, index }
        }
        error => Error::Lookup { table, error },
    }
}
