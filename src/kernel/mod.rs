//! The loops in which lookups, bags, scores and training spend their time. Each is written once,
//! generic over the tier ([`crate::isa`]) and the stored dtype, and validates lengths on entry.
//!
//! - [`chain_step`]: the matrix product of a tensor-train step, of a linear layer, and (with
//!   [`transpose`]) of the dot interaction and of the gradients;
//! - [`widen`]: one stored row or slice as f32;
//! - `sgd`, `adagrad`, `row_wise_adagrad`, `adam` (feature `train`): the update of a slice by its
//!   gradient; `sgd_of_few`: gradients and update of a slice for few rows, in one pass;
//!   `exponentials`: those of a softmax, and their sum;
//! - `pool_codes`: bags of codebook rows;
//! - `PoolRows`, `TakeRows`, `AddRows`, `GatherRows`: bags of dense rows, bags of one row each,
//!   rows added at given positions, rows copied one after another;
//! - `reaching`: the elements of a product that reach a bound; `RowProducts`: inner products of a
//!   vector with stored rows.
//!
//! Use [`crate::Table`] to look up rows. The loops are public for benchmarks and custom engines.

#![deny(clippy::indexing_slicing)]

mod codebook;
#[cfg(feature = "train")]
mod exponentials;
mod interaction;
mod product;
mod reaching;
mod roofline;
mod row_products;
mod rows;
#[cfg(feature = "train")]
mod update;

pub(crate) use codebook::{CodeBags, pool_codes};
#[cfg(feature = "train")]
pub(crate) use exponentials::exponentials;
pub(crate) use interaction::dot_interaction_from;
pub use interaction::{dot_interaction, dot_interaction_workspace_len, transpose};
pub use product::chain_step;
pub(crate) use product::{
    Job, SmallRow, add_products, multiply_rows, resume_rows, store_products, store_rows,
    write_small_row,
};
use product::{Start, scalar_product, widest};
pub(crate) use reaching::{MAX_PANEL, MAX_TILE, Reaching, panel_widths, panels};
pub use roofline::{fma_chains, read_all};
pub(crate) use row_products::{ByteRowProducts, RowProducts};
pub use rows::widen;
pub(crate) use rows::{
    AddRow, AddRows, GatherRows, PoolRows, Prefetch, TakeRows, ZeroRows, takes_rows,
};
#[cfg(feature = "train")]
pub use update::{AdamFactors, FEW, adagrad, adam, row_wise_adagrad, sgd, sgd_of_few};

use crate::isa::{Isa, Op, Tier};
use core::ops::Range;

/// The result of a step whose arguments were checked before. `None` means that they contradict each
/// other: a defect of this crate, never the fault of a blob or of a user's arguments. Public
/// functions turn it into an error (`Inconsistent`).
///
/// It is an `Option` because nearly all of its sources are `get` of a slice, so that `?` suffices.
pub type Consistent<T = ()> = Option<T>;

/// The sizes of a product `x[m x r] . g[r x n]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dims {
    /// Rows of the left operand and of the product.
    pub m: usize,
    /// Columns of the left operand, rows of the right one: the length of each chain.
    pub r: usize,
    /// Columns of the right operand and of the product.
    pub n: usize,
}

/// How a computed element x is combined with the element of the output.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Epilogue<'e> {
    /// `out = x`
    Store,
    /// `out = scale * x`
    StoreScaled(f32),
    /// `out += weight * x`
    AddScaled(f32),
    /// `out = max(out, scale * x)`; if either is NaN, `out` stays (as in `torch.nn.EmbeddingBag`).
    MaxScaled(f32),
    /// The end of a linear layer: `out = scale * x + bias`, with the scale and bias of the column,
    /// and at least 0 if `relu`.
    Bias {
        /// One per output column, or none.
        scales: &'e [f32],
        /// One per output column.
        bias: &'e [f32],
        /// Whether negative values become zero.
        relu: bool,
    },
}

/// Elements that are computed into a buffer before they are combined with the output.
const BUFFER: usize = 64;

impl Epilogue<'_> {
    /// Whether its scales and bias fit rows of `n` elements.
    fn fits(self, n: usize) -> bool {
        match self {
            Self::Bias { scales, bias, .. } => {
                bias.len() == n && (scales.is_empty() || scales.len() == n)
            }
            _ => true,
        }
    }

    /// Whether it adds, and the factor of what it adds, if it only adds or stores.
    pub(crate) fn scale(self) -> Option<(bool, f32)> {
        match self {
            Self::Store => Some((false, 1.0)),
            Self::AddScaled(scale) => Some((true, scale)),
            Self::StoreScaled(_) | Self::MaxScaled(_) | Self::Bias { .. } => None,
        }
    }

    /// The same epilogue for elements that must be multiplied by `scale` first: those of an i8
    /// slice.
    pub(crate) fn times(self, scale: f32) -> Self {
        match self {
            Self::Store if scale == 1.0 => self,
            Self::Store => Self::StoreScaled(scale),
            Self::StoreScaled(by) => Self::StoreScaled(by * scale),
            Self::AddScaled(by) => Self::AddScaled(by * scale),
            Self::MaxScaled(by) => Self::MaxScaled(by * scale),
            // A layer has a scale per column instead.
            Self::Bias { .. } => self,
        }
    }

    /// Computes the columns of one row, `out` from column `first` on: in place if the epilogue
    /// overwrites them, else [`BUFFER`] columns at a time through a buffer.
    fn apply(
        self,
        tier: Tier,
        first: usize,
        out: &mut [f32],
        mut compute: impl FnMut(Range<usize>, &mut [f32]) -> Consistent,
    ) -> Consistent {
        if self == Self::Store {
            return compute(first..first.checked_add(out.len())?, out);
        }
        let mut buffer = [0.0; BUFFER];
        for (out, column) in out.chunks_mut(BUFFER).zip((first..).step_by(BUFFER)) {
            let values = buffer.get_mut(..out.len())?;
            compute(column..column.checked_add(out.len())?, values)?;
            tier.run(Combine { values, column, out, epilogue: self });
        }
        Some(())
    }

    /// Combines a vector of elements, of the columns from `column` on, with `out`.
    #[inline(always)]
    fn combine<I: Isa>(self, isa: I, v: I::F32, column: usize, out: &[f32]) -> I::F32 {
        match self {
            Self::Store => v,
            Self::StoreScaled(scale) => isa.mul(isa.splat(scale), v),
            Self::AddScaled(weight) => isa.fma(isa.splat(weight), v, isa.load_f32(out)),
            Self::MaxScaled(scale) => isa.max(isa.mul(isa.splat(scale), v), isa.load_f32(out)),
            Self::Bias { scales, bias, relu } => {
                let bias = isa.load_f32(bias.get(column..).unwrap_or_default());
                let v = match scales.get(column..) {
                    Some(scales) if !scales.is_empty() => isa.fma(isa.load_f32(scales), v, bias),
                    _ => isa.add(v, bias),
                };
                if relu { isa.max(isa.splat(0.0), v) } else { v }
            }
        }
    }

    /// Applies the epilogue to a row that was computed in place.
    pub(crate) fn finish(self, tier: Tier, row: &mut [f32]) {
        let mut buffer = [0.0; BUFFER];
        for (out, column) in row.chunks_mut(BUFFER).zip((0..).step_by(BUFFER)) {
            let values = buffer.get_mut(..out.len()).unwrap_or_default();
            values.iter_mut().zip(&*out).for_each(|(to, from)| *to = *from);
            tier.run(Combine { values, column, out, epilogue: self });
        }
    }
}

/// Combines `values` with `out`, whose first column is `column`.
struct Combine<'s> {
    values: &'s [f32],
    column: usize,
    out: &'s mut [f32],
    epilogue: Epilogue<'s>,
}

impl Op for Combine<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let vectors = self.out.chunks_mut(I::LANES).zip(self.values.chunks(I::LANES));
        for ((out, values), column) in vectors.zip((self.column..).step_by(I::LANES)) {
            isa.store(self.epilogue.combine(isa, isa.load_f32(values), column, out), out);
        }
    }
}
