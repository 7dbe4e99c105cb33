//! Values that are learned as they will be stored. Lookups and gradients use the rounded values;
//! the optimiser moves the exact ones by these gradients, as if rounding had the derivative 1: the
//! *straight-through estimator* (Bengio, Leonard and Courville, "Estimating or propagating
//! gradients through stochastic neurons for conditional computation", 2013).

use crate::{
    dtype::{Dtype, Elements, encode_rows, encode_slice},
    isa::Tier,
    kernel::{Consistent, Epilogue, widen},
};
use std::vec;

/// How the values of a slice, or of several slices together, are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rounding {
    /// As a slice of a core, or as a book: i8 values have one scale.
    Slice(Dtype),
    /// As a dense row.
    Row(Dtype),
}

impl Rounding {
    /// Sets `stored` to the values that a blob would store for the slice `exact`. A slice that
    /// cannot be stored, because values are not finite or are too large, is not rounded.
    pub(super) fn round(self, exact: &[f32], stored: &mut [f32]) {
        if self.encode_and_decode(exact, stored).is_none() {
            stored.copy_from_slice(exact);
        }
    }

    fn encode_and_decode(self, exact: &[f32], stored: &mut [f32]) -> Consistent {
        let (dtype, len) = match self {
            Self::Slice(dtype) => (dtype, dtype.bytes_of(exact.len())),
            Self::Row(dtype) => (dtype, dtype.row_len(exact.len())),
        };
        // Aligned for every type.
        let mut words = vec![0u64; len.div_ceil(size_of::<u64>())];
        let bytes = bytemuck::cast_slice_mut::<u64, u8>(&mut words).get_mut(..len)?;
        let (scale, offset, elements) = match self {
            Self::Slice(_) => {
                let scale = encode_slice(exact, dtype, bytes).ok()?;
                (scale, -0.0, Elements::from_bytes(bytes, dtype)?)
            }
            Self::Row(_) => {
                encode_rows(exact, exact.len(), dtype, bytes).ok()?;
                Elements::from_bytes(bytes, dtype)?.split_row()?
            }
        };
        widen(Tier::best(), elements, scale, offset, stored, Epilogue::Store)
    }
}
