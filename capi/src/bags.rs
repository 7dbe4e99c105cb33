//! Bags as C passes them, converted to the library's.

use crate::{
    boundary::{Given, Plain},
    status::Error,
};
use std::ffi::c_void;
use ttrec::{Bags, BagsError, Pooling, bag::Index};

/// How the rows of a bag are pooled into one, as in torch.nn.EmbeddingBag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ttrec_pooling {
    /// The sum, of rows times weights if there are weights.
    Sum = 0,
    /// The sum divided by the number of rows. Takes no weights.
    Mean = 1,
    /// The largest value of each column. Takes no weights.
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
    /// int32_t
    I32 = 2,
}

/// Bags of indices, as torch.nn.EmbeddingBag takes them with include_last_offset=True: bag b is
/// `indices[offsets[b]]` to `indices[offsets[b + 1] - 1]`. ttrec_bags_u32(), ttrec_bags_i64()
/// and ttrec_bags_i32() fill this struct.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ttrec_bags {
    /// A ttrec_index_type, the type of `indices` and `offsets`.
    pub index_type: u32,
    /// The indices, bag after bag.
    pub indices: *const c_void,
    /// The number of indices.
    pub num_indices: usize,
    /// `num_bags + 1` offsets. They start at 0, never decrease, and end at `num_indices`.
    pub offsets: *const c_void,
    /// The number of bags.
    pub num_bags: usize,
    /// A weight for each index, for TTREC_POOLING_SUM only; or null.
    pub per_sample_weights: *const f32,
    /// Whether `padding_idx` is left out of the bags: 0 for no, which the functions above set.
    pub has_padding_idx: u32,
    /// An index whose row is neither summed nor compared, and does not count in a mean.
    pub padding_idx: u64,
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
    /// Bags without padding.
    pub(crate) fn new(
        (index_type, indices, num_indices): (ttrec_index_type, *const c_void, usize),
        offsets: *const c_void,
        num_bags: usize,
        per_sample_weights: *const f32,
    ) -> Self {
        Self {
            index_type: index_type as u32,
            indices,
            num_indices,
            offsets,
            num_bags,
            per_sample_weights,
            has_padding_idx: 0,
            padding_idx: 0,
        }
    }

    /// The library's bags over the same arrays. The outer error is about the arrays' memory, the
    /// inner one about their values.
    pub(crate) fn read<'c>(
        &self,
        given: &Given<'c>,
    ) -> Result<Result<Bags<'c>, BagsError>, Error<'c>> {
        match self.index_type {
            n if n == ttrec_index_type::U32 as u32 => self.read_as::<u32>(given),
            n if n == ttrec_index_type::I64 as u32 => self.read_as::<i64>(given),
            n if n == ttrec_index_type::I32 as u32 => self.read_as::<i32>(given),
            found => Err(Error::IndexType { found }),
        }
    }

    fn read_as<'c, I: Index + Plain>(
        &self,
        given: &Given<'c>,
    ) -> Result<Result<Bags<'c>, BagsError>, Error<'c>> {
        let num_offsets = self
            .num_bags
            .checked_add(1)
            .ok_or(Error::TooLong { what: "offsets", len: self.num_bags })?;
        let indices = given.slice(self.indices.cast::<I>(), self.num_indices, "indices")?;
        let offsets = given.slice(self.offsets.cast::<I>(), num_offsets, "offsets")?;
        let mut bags = Bags::new(indices, offsets);
        if !self.per_sample_weights.is_null() {
            let weights =
                given.slice(self.per_sample_weights, self.num_indices, "per_sample_weights")?;
            bags = bags.and_then(|bags| bags.with_per_sample_weights(weights));
        }
        if self.has_padding_idx != 0 {
            bags = bags.map(|bags| bags.with_padding_idx(self.padding_idx));
        }
        Ok(bags)
    }
}
