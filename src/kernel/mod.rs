//! The few loops that everything is made of. Each is written once, generic over the tier
//! ([`crate::isa`]) and the stored dtype, and checks its lengths at the door.
//!
//! - [`chain_step`]: the matrix product of a tensor-train step, of a linear layer, and (with
//!   [`transpose`]) of the dot interaction and of the gradients;
//! - [`widen`]: one stored row or slice;
//! - `sgd`, `adagrad`, `row_wise_adagrad`, `adam` (feature `train`): what a gradient does to a
//!   slice; `sgd_of_few`: what few rows of a product do, in one pass;
//! - `PoolRows`, `AddRows`, `GatherRows`: bags over dense rows, rows added here and there, rows put
//!   end to end.
//!
//! [`crate::Table`] is the way to look rows up; these are public for benchmarks and for engines of
//! one's own.

#![deny(clippy::indexing_slicing)]

mod interaction;
mod peak;
mod rows;
mod step;
#[cfg(feature = "train")]
mod update;

pub(crate) use interaction::dot_interaction_from;
pub use interaction::{dot_interaction, dot_interaction_workspace_len, transpose};
pub use peak::{fma_chains, read_all};
pub(crate) use rows::{AddRow, AddRows, GatherRows, PoolRows, Prefetch};
pub use rows::{Pooling, widen};
pub use step::chain_step;
pub(crate) use step::{Job, add_products, resume_rows, store_products, store_rows};
use step::{Start, small_product, widest};
#[cfg(feature = "train")]
pub use update::{AdamFactors, FEW, adagrad, adam, row_wise_adagrad, sgd, sgd_of_few};

use crate::isa::{Isa, Op, Tier};
use core::ops::Range;

/// What becomes of a finished element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Epilogue<'e> {
    /// It replaces what was there.
    Store,
    /// It replaces what was there, times a scale.
    StoreScaled(f32),
    /// It is added, times a weight.
    AddScaled(f32),
    /// Times a scale, it is compared with what was there: the larger stays, and what was there
    /// where they do not compare (as in `torch.nn.EmbeddingBag`).
    MaxScaled(f32),
    /// A linear layer's end: times its column's scale if there are any, plus its column's bias, and
    /// not below zero if `relu`, it replaces what was there.
    Bias {
        /// One per output column, or none.
        scales: &'e [f32],
        /// One per output column.
        bias: &'e [f32],
        /// Whether negative values become zero.
        relu: bool,
    },
}

/// Elements that wait in a buffer until they can be combined with what is there.
const BUFFER: usize = 64;

impl Epilogue<'_> {
    /// Whether it can end rows of `n` elements.
    fn fits(self, n: usize) -> bool {
        match self {
            Self::Bias { scales, bias, .. } => {
                bias.len() == n && (scales.is_empty() || scales.len() == n)
            }
            _ => true,
        }
    }

    /// The same, of elements that are to be multiplied by `scale` first: of an i8 slice.
    pub(crate) fn times(self, scale: f32) -> Self {
        match self {
            Self::Store if scale == 1.0 => self,
            Self::Store => Self::StoreScaled(scale),
            Self::StoreScaled(by) => Self::StoreScaled(by * scale),
            Self::AddScaled(by) => Self::AddScaled(by * scale),
            Self::MaxScaled(by) => Self::MaxScaled(by * scale),
            // A layer's scales are those of its columns.
            Self::Bias { .. } => self,
        }
    }

    /// Fills the columns of one row, `out` from `first` on, with what `compute` makes of them: in
    /// place where nothing there is needed any more, else through a buffer, [`BUFFER`] columns
    /// at a time.
    fn apply(
        self,
        tier: Tier,
        first: usize,
        out: &mut [f32],
        mut compute: impl FnMut(Range<usize>, &mut [f32]) -> Option<()>,
    ) -> Option<()> {
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

    /// What becomes of a vector of elements in the columns from `column` on, where `out` is.
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

    /// Puts what is in `row` back where it is, as finished elements.
    pub(crate) fn finish(self, tier: Tier, row: &mut [f32]) {
        let mut buffer = [0.0; BUFFER];
        for (out, column) in row.chunks_mut(BUFFER).zip((0..).step_by(BUFFER)) {
            let values = buffer.get_mut(..out.len()).unwrap_or_default();
            values.iter_mut().zip(&*out).for_each(|(to, from)| *to = *from);
            tier.run(Combine { values, column, out, epilogue: self });
        }
    }
}

/// Combines finished `values` with what is in `out`, in columns from `column`.
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
