//! The few loops that everything is made of, generic over the stored dtype and over what happens to a finished element.
//!
//! Every output element is one chain of multiply-adds over the rank, in order: its bits depend neither on where it
//! stands in a block nor on what else is computed with it.

#![deny(clippy::indexing_slicing)]

use crate::dtype::Weight;

/// Output columns that are accumulated together.
const BLOCK: usize = 8;

/// What becomes of a finished element.
pub(crate) trait Epilogue: Copy {
    /// Puts `value` where `out` is.
    fn put(self, value: f32, out: &mut f32);
}

/// Replaces what was there.
#[derive(Clone, Copy)]
pub(crate) struct Store;

/// Replaces what was there by a multiple of the value.
#[derive(Clone, Copy)]
pub(crate) struct StoreScaled(pub(crate) f32);

/// Adds the value.
#[derive(Clone, Copy)]
pub(crate) struct Add;

/// Adds the value times a weight.
#[derive(Clone, Copy)]
pub(crate) struct AddScaled(pub(crate) f32);

/// Keeps the larger, and what was there where they do not compare (as `torch.nn.EmbeddingBag` does).
#[derive(Clone, Copy)]
pub(crate) struct Max;

impl Epilogue for Store {
    #[inline(always)]
    fn put(self, value: f32, out: &mut f32) {
        *out = value;
    }
}

impl Epilogue for StoreScaled {
    #[inline(always)]
    fn put(self, value: f32, out: &mut f32) {
        *out = self.0 * value;
    }
}

impl Epilogue for Add {
    #[inline(always)]
    fn put(self, value: f32, out: &mut f32) {
        *out += value;
    }
}

impl Epilogue for AddScaled {
    #[inline(always)]
    fn put(self, value: f32, out: &mut f32) {
        *out += self.0 * value;
    }
}

impl Epilogue for Max {
    #[inline(always)]
    fn put(self, value: f32, out: &mut f32) {
        if value > *out {
            *out = value;
        }
    }
}

/// One step of the chain: `out[m x n] <- x[m x r] . slice[r x n]`, for as many rows m as `out` has.
pub(crate) fn chain_step<W: Weight, E: Epilogue>(
    x: &[f32],
    slice: &[W],
    r: usize,
    n: usize,
    out: &mut [f32],
    epilogue: E,
) {
    // Ranks and widths are never 0; `max` spares `chunks_exact` its check.
    let (r, n) = (r.max(1), n.max(1));
    let mut rows = x.chunks_exact(r);
    for out in out.chunks_exact_mut(n) {
        let Some(x) = rows.next() else { return };
        for (block, out) in out.chunks_mut(BLOCK).enumerate() {
            let mut sums = [0.0; BLOCK];
            let rows = slice.chunks_exact(n).map(|row| row.get(block * BLOCK..).unwrap_or_default());
            for (&x, row) in x.iter().zip(rows) {
                match row.first_chunk::<BLOCK>() {
                    Some(row) => sums.iter_mut().zip(row).for_each(|(sum, w)| *sum += x * w.widen()),
                    None => sums.iter_mut().zip(row).for_each(|(sum, w)| *sum += x * w.widen()),
                }
            }
            out.iter_mut().zip(sums).for_each(|(out, sum)| epilogue.put(sum, out));
        }
    }
}

/// `out <- scale * stored + offset`: one dense row, or the first slice of a chain.
pub(crate) fn widen_row<W: Weight, E: Epilogue>(stored: &[W], scale: f32, offset: f32, out: &mut [f32], epilogue: E) {
    for (out, stored) in out.iter_mut().zip(stored) {
        epilogue.put(scale * stored.widen() + offset, out);
    }
}
