//! Dense rows: one widened, or many pooled straight into registers.

use super::{Epilogue, Start, scalar_product, widest};
use crate::{
    dtype::{Elements, Weight, with_elements},
    index::{Indices, Integer},
    isa::{Isa, Op, Tier},
    kernel::{Consistent, Dims},
    pooling::Pooling,
};
use core::ops::Range;

/// `out <- scale * stored + offset`, element by element: a slice, or a dense row without its
/// header.
///
/// Takes the first `out.len()` elements of `stored`. `None`, with nothing done, if there are fewer,
/// or if the epilogue has a bias of another length.
pub fn widen(
    tier: Tier,
    stored: Elements<'_>,
    scale: f32,
    offset: f32,
    out: &mut [f32],
    epilogue: Epilogue<'_>,
) -> Consistent {
    if stored.len() < stored.units_of(out.len()) || !epilogue.fits(out.len()) {
        return None;
    }
    if let Some(isa) = tier.scalar() {
        // A product with a 1 x 1 left operand, whose sums begin with the offset.
        let n = out.len();
        return scalar_product(
            isa,
            Dims { m: 1, r: 1, n },
            &[scale],
            stored,
            Start::With(offset),
            (out, n),
            epilogue,
        );
    }
    with_elements!(stored, stored => match epilogue {
        Epilogue::Store | Epilogue::AddScaled(_) => {
            let add = match epilogue {
                Epilogue::AddScaled(weight) => Some(weight),
                _ => None,
            };
            tier.run(Widen { stored, scale, offset, add, out });
            Some(())
        }
        _ => epilogue.apply(tier, 0, out, |columns, out| {
            // Pieces begin at even columns, where i4 elements begin a byte.
            let stored = stored.get(units_before(stored, columns.start)..)?;
            tier.run(Widen { stored, scale, offset, add: None, out });
            Some(())
        }),
    })
}

/// The number of units that hold `columns` elements: an even number, if a unit holds two.
fn units_before<W: Weight>(_: &[W], columns: usize) -> usize {
    columns / W::PER_UNIT
}

struct Widen<'s, 'o, W> {
    stored: &'s [W],
    scale: f32,
    offset: f32,
    /// The weight with which elements are added to `out`; `None` if they replace it.
    add: Option<f32>,
    out: &'o mut [f32],
}

impl<W: Weight> Op for Widen<'_, '_, W> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { stored, scale, offset, add, out } = self;
        let (scale, offset) = (isa.splat(scale), isa.splat(offset));
        let units = I::LANES / W::PER_UNIT;
        let mut vectors = out.chunks_exact_mut(I::LANES);
        let whole = vectors.len();
        for (out, stored) in vectors.by_ref().zip(stored.chunks_exact(units)) {
            widen_vector(isa, stored, scale, offset, add, out);
        }
        let rest = vectors.into_remainder();
        if !rest.is_empty() {
            let stored = stored.get(whole * units..).unwrap_or_default();
            widen_vector(isa, stored, scale, offset, add, rest);
        }
    }
}

/// Widens a whole vector, or the last elements, which fill only a part of one.
#[inline(always)]
fn widen_vector<I: Isa, W: Weight>(
    isa: I,
    stored: &[W],
    scale: I::F32,
    offset: I::F32,
    add: Option<f32>,
    out: &mut [f32],
) {
    let value = isa.fma(scale, W::load(isa, stored), offset);
    let value = match add {
        Some(weight) => isa.fma(isa.splat(weight), value, isa.load_f32(out)),
        None => value,
    };
    isa.store(value, out);
}

/// A vector of a stored row, with the scale and the offset of the row if its dtype has them.
#[inline(always)]
fn scaled<I: Isa, W: Weight>(isa: I, units: &[W], scale: I::F32, offset: I::F32) -> I::F32 {
    let stored = W::load(isa, units);
    if W::SCALED {
        isa.fma(scale, stored, offset)
    } else {
        stored
    }
}

/// Bags over dense rows, row by row straight into registers.
pub(crate) struct PoolRows<'s, W, X> {
    /// All rows, `row_stride` units each.
    pub(crate) stored: &'s [W],
    pub(crate) row_stride: usize,
    pub(crate) embedding_dim: usize,
    /// Bag b is `indices[offsets[b]..offsets[b + 1]]`.
    pub(crate) indices: &'s [X],
    pub(crate) offsets: Indices<'s>,
    pub(crate) weights: Option<&'s [f32]>,
    pub(crate) pooling: Pooling,
    /// Pooled rows, `out_stride` elements apart.
    pub(crate) out: &'s mut [f32],
    pub(crate) out_stride: usize,
}

/// Bags of one row each, without weights: a sum or a mean is the row.
pub(crate) struct TakeRows<'s, W, X> {
    /// All rows, `row_stride` units each.
    pub(crate) stored: &'s [W],
    pub(crate) row_stride: usize,
    pub(crate) embedding_dim: usize,
    /// The row of each bag.
    pub(crate) indices: &'s [X],
    /// Pooled rows, `out_stride` elements apart.
    pub(crate) out: &'s mut [f32],
    pub(crate) out_stride: usize,
}

/// Rows that are added one by one, each at its position in the output.
pub(crate) struct AddRows<'s, 'o, W> {
    /// All rows, `row_stride` units each.
    pub(crate) stored: &'s [W],
    pub(crate) row_stride: usize,
    pub(crate) embedding_dim: usize,
    pub(crate) jobs: &'s [AddRow],
    pub(crate) out: &'o mut [f32],
}

/// Adds row `row`, times `weight`, to the elements of the output from `out` on.
#[derive(Clone, Copy)]
pub(crate) struct AddRow {
    pub(crate) row: usize,
    pub(crate) out: usize,
    pub(crate) weight: f32,
}

impl AddRow {
    /// For arrays that are yet to be filled.
    pub(crate) const EMPTY: Self = Self { row: 0, out: 0, weight: 0.0 };
}

impl<W: Weight> Op for AddRows<'_, '_, W> {
    /// `None` if a row is out of bounds.
    type Output = Consistent;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Consistent {
        let Self { stored, row_stride, embedding_dim, jobs, out } = self;
        let whole_lines = are_whole_lines::<W>(row_stride);
        for (at, job) in jobs.iter().enumerate() {
            if let Some(next) = jobs.get(at + AHEAD) {
                prefetch_all(isa, nth_row(stored, row_stride, next.row)?, whole_lines);
            }
            let out = out.get_mut(job.out..)?.get_mut(..embedding_dim)?;
            let (scale, offset, stored) =
                W::split_row_in(isa, nth_row(stored, row_stride, job.row)?)?;
            let weight = isa.splat(job.weight);
            for (out, units) in out.chunks_mut(I::LANES).zip(stored.chunks(I::LANES / W::PER_UNIT))
            {
                let value = scaled(isa, units, scale, offset);
                isa.store(isa.fma(weight, value, isa.load_f32(out)), out);
            }
        }
        Some(())
    }
}

/// Rows of `len` elements that are copied one after another, each times its scale if it has one.
pub(crate) struct GatherRows<'s, 'o, W, R> {
    pub(crate) stored: &'s [W],
    pub(crate) scales: &'s [f32],
    pub(crate) len: usize,
    /// Which rows.
    pub(crate) rows: R,
    pub(crate) out: &'o mut [f32],
}

impl<W: Weight, R: Iterator<Item = usize>> Op for GatherRows<'_, '_, W, R> {
    /// `None` if a row is out of bounds.
    type Output = Consistent;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Consistent {
        let len = self.len.max(1);
        let outs = self.out.chunks_exact_mut(len);
        if let Some(stored) = W::elements(self.stored).as_f32() {
            for (row, out) in self.rows.zip(outs) {
                out.copy_from_slice(nth_row(stored, len, row)?);
            }
            return Some(());
        }
        for (row, out) in self.rows.zip(outs) {
            let stored = nth_row(self.stored, self.len, row)?;
            let scale = isa.splat(if W::SCALED { *self.scales.get(row)? } else { 1.0 });
            let widened = |units: &[W]| {
                let value = W::load(isa, units);
                if W::SCALED { isa.mul(scale, value) } else { value }
            };
            // Whole vectors by themselves: with a check of each length, one takes 21 instructions.
            let mut vectors = out.chunks_exact_mut(I::LANES);
            let mut stored = stored.chunks_exact(I::LANES);
            for (out, units) in vectors.by_ref().zip(stored.by_ref()) {
                isa.store(widened(units), out);
            }
            if !self.len.is_multiple_of(I::LANES) {
                isa.store(widened(stored.remainder()), vectors.into_remainder());
            }
        }
        Some(())
    }
}

#[inline(always)]
pub(super) fn nth_row<W>(stored: &[W], row_stride: usize, row: usize) -> Option<&[W]> {
    // The product does not wrap: the caller has checked that the row exists.
    stored.get(row.wrapping_mul(row_stride)..)?.get(..row_stride)
}

/// Prefetches all of `xs`, which may begin anywhere in a cache line unless `whole_lines`.
#[inline(always)]
pub(super) fn prefetch_all<I: Isa, T>(isa: I, xs: &[T], whole_lines: bool) {
    for line in xs.chunks(CACHE_LINE / size_of::<T>()) {
        isa.prefetch(line);
    }
    if !whole_lines && let Some(last) = xs.len().checked_sub(1).and_then(|last| xs.get(last..)) {
        isa.prefetch(last);
    }
}

/// Whether rows of `row_stride` units fill whole cache lines. Each then begins at a cache line,
/// because the first one does.
#[inline(always)]
fn are_whole_lines<T>(row_stride: usize) -> bool {
    (row_stride * size_of::<T>()).is_multiple_of(CACHE_LINE)
}

/// Prefetches all of `xs`.
pub(crate) struct Prefetch<'s> {
    pub(crate) xs: &'s [f32],
}

impl Op for Prefetch<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        prefetch_all(isa, self.xs, false);
    }
}

/// How many lookups ahead a row is prefetched: enough to hide a memory access (some 100 ns), few
/// enough for the CPU's line fill buffers.
pub(super) const AHEAD: usize = 32;
/// Bytes that one prefetch loads.
const CACHE_LINE: usize = 64;

/// Whether [`TakeRows`] can take rows of `embedding_dim` elements: they fill vectors, of which the
/// last two may overlap, and each vector begins with a unit.
pub(crate) fn takes_rows<W: Weight>(_: &[W], embedding_dim: usize) -> bool {
    embedding_dim >= 4 && embedding_dim.is_multiple_of(W::PER_UNIT)
}

impl<W: Weight, X: Integer> Op for TakeRows<'_, W, X> {
    /// `None` if a row is out of bounds.
    type Output = Consistent;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Consistent {
        if self.embedding_dim >= I::LANES {
            self.in_vectors(isa)
        } else if self.embedding_dim >= I::Half::LANES {
            self.in_vectors(isa.half())
        } else {
            self.in_vectors(isa.narrow())
        }
    }
}

impl<W: Weight, X: Integer> TakeRows<'_, W, X> {
    #[inline(always)]
    fn in_vectors<I: Isa>(self, isa: I) -> Consistent {
        let Self { stored, row_stride, embedding_dim, indices, mut out, out_stride } = self;
        let whole_lines = are_whole_lines::<W>(row_stride);
        let (one, zero) = (isa.splat(1.0), isa.splat(0.0));
        for (at, index) in indices.iter().enumerate() {
            if let Some(next) = indices.get(at + AHEAD) {
                let row = nth_row(stored, row_stride, next.to_usize()?)?;
                prefetch_all(isa, row, whole_lines);
            }
            let row = nth_row(stored, row_stride, index.to_usize()?)?;
            let (scale, offset, row) = W::split_row_in(isa, row)?;
            let to = out.get_mut(..embedding_dim)?;
            each_vector::<I>(embedding_dim, |column| {
                let units = row.get(column / W::PER_UNIT..)?.get(..I::LANES / W::PER_UNIT)?;
                let value = scaled(isa, units, scale, offset);
                // Added to zeros, as the rows of any bag: that changes the sign of a zero.
                isa.store(isa.fma(one, value, zero), to.get_mut(column..)?.get_mut(..I::LANES)?);
                Some(())
            })?;
            out = out.get_mut(out_stride..).unwrap_or_default();
        }
        Some(())
    }
}

/// Calls `f` with the first column of each vector of a row. The last two vectors may overlap: a
/// vector of a few columns would take several times as long.
#[inline(always)]
fn each_vector<I: Isa>(embedding_dim: usize, mut f: impl FnMut(usize) -> Consistent) -> Consistent {
    let last = embedding_dim.checked_sub(I::LANES)?;
    let mut column = 0;
    loop {
        f(column)?;
        if column == last {
            return Some(());
        }
        column = last.min(column + I::LANES);
    }
}

/// Sets rows of an output to zeros.
pub(crate) struct ZeroRows<'o> {
    pub(crate) out: &'o mut [f32],
    pub(crate) count: usize,
    /// Rows begin so many elements apart.
    pub(crate) stride: usize,
    pub(crate) embedding_dim: usize,
}

impl Op for ZeroRows<'_> {
    /// `None` if a row is out of bounds.
    type Output = Consistent;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Consistent {
        let Self { mut out, count, stride, embedding_dim } = self;
        for _ in 0..count {
            let row = out.get_mut(..embedding_dim)?;
            if embedding_dim < I::LANES {
                row.fill(0.0);
            } else {
                each_vector::<I>(embedding_dim, |column| {
                    isa.store(isa.splat(0.0), row.get_mut(column..)?.get_mut(..I::LANES)?);
                    Some(())
                })?;
            }
            out = out.get_mut(stride..).unwrap_or_default();
        }
        Some(())
    }
}

impl<W: Weight, X: Integer> Op for PoolRows<'_, W, X> {
    /// `None` if a bag or a row is out of bounds.
    type Output = Consistent;

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) -> Consistent {
        for bag in 0..self.offsets.len().saturating_sub(1) {
            let range = self.offsets.range(bag)?;
            let mut column = self.columns(isa, bag, &range)?;
            // Fewer columns than a vector has are at most one of half as many lanes, and so on.
            let (half, narrow) = (I::Half::LANES, I::Narrow::LANES);
            if I::LANES > 8 && self.embedding_dim - column >= half {
                column += self.block::<_, 1>(isa.half(), bag, &range, column, half)?;
            }
            if I::LANES > 4 && self.embedding_dim - column >= narrow {
                column += self.block::<_, 1>(isa.narrow(), bag, &range, column, narrow)?;
            }
            if column < self.embedding_dim {
                // The last vector may overlap the one before it: a load of a few elements takes
                // several times as long. It has to begin with a unit.
                let whole = self.embedding_dim.saturating_sub(4);
                let first = if whole > 0 && whole.is_multiple_of(W::PER_UNIT) {
                    whole
                } else {
                    column
                };
                let left = self.embedding_dim - first;
                self.block::<_, 1>(isa.narrow(), bag, &range, first, left)?;
            }
        }
        Some(())
    }
}

impl<W: Weight, X: Integer> PoolRows<'_, W, X> {
    /// Whole vectors; returns where they end.
    #[inline(always)]
    fn columns<I: Isa>(&mut self, isa: I, bag: usize, range: &Range<usize>) -> Option<usize> {
        let mut column = 0;
        while self.embedding_dim - column >= I::LANES {
            let vectors = (self.embedding_dim - column) / I::LANES;
            column += match vectors {
                8.. if const { widest(I::TILES, 1) == 8 } => {
                    self.block::<I, 8>(isa, bag, range, column, 8 * I::LANES)?
                }
                4.. if I::LANES > 8 => self.block::<I, 4>(isa, bag, range, column, 4 * I::LANES)?,
                2.. if const { widest(I::TILES, 1) >= 2 } => {
                    self.block::<I, 2>(isa, bag, range, column, 2 * I::LANES)?
                }
                _ => self.block::<I, 1>(isa, bag, range, column, I::LANES)?,
            };
        }
        Some(column)
    }

    /// `width` columns of one bag in `V` vectors; returns `width`.
    #[inline(always)]
    fn block<I: Isa, const V: usize>(
        &mut self,
        isa: I,
        bag: usize,
        range: &Range<usize>,
        column: usize,
        width: usize,
    ) -> Option<usize> {
        let mut sums = if self.pooling == Pooling::Max {
            self.fold::<I, V>(isa, range, column, width, |sum, row, at| {
                Some(if at == 0 { row } else { isa.max(row, sum) })
            })?
        } else {
            let weights =
                self.weights.map(|weights| weights.get(range.clone()).unwrap_or_default());
            self.fold::<I, V>(isa, range, column, width, |sum, row, at| {
                // A product with 1 is exact.
                let weight = weights.map_or(Some(1.0), |weights| weights.get(at).copied())?;
                Some(isa.fma(isa.splat(weight), row, sum))
            })?
        };
        if self.pooling == Pooling::Mean && range.len() > 1 {
            let count = isa.splat(range.len() as f32);
            // Not `map`, which the compiler does not inline: the vectors would go through memory.
            for sum in &mut sums {
                *sum = isa.div(*sum, count);
            }
        }
        let out = self.out.get_mut(bag * self.out_stride + column..)?.get_mut(..width)?;
        for (&sum, out) in sums.iter().zip(out.chunks_mut(I::LANES)) {
            isa.store(sum, out);
        }
        Some(width)
    }

    /// Folds the rows of a bag with `combine(sum, row, position in the bag)`, from zeros.
    #[inline(always)]
    fn fold<I: Isa, const V: usize>(
        &self,
        isa: I,
        range: &Range<usize>,
        column: usize,
        width: usize,
        combine: impl Fn(I::F32, I::F32, usize) -> Option<I::F32>,
    ) -> Option<[I::F32; V]> {
        let (first, units) = (column / W::PER_UNIT, width.div_ceil(W::PER_UNIT));
        let indices = self.indices.get(range.clone())?;
        let ahead = self.indices.get(range.start + AHEAD..).unwrap_or_default();
        let whole_lines = are_whole_lines::<W>(self.row_stride);
        let mut sums = [isa.splat(0.0); V];
        for (at, index) in indices.iter().enumerate() {
            if let Some(next) = ahead.get(at)
                && let Some(row) = self.row(next)
                && let Some(block) =
                    row.get(first..).and_then(|row| row.get(..W::ROW_HEADER + units))
            {
                prefetch_all(isa, block, whole_lines);
            }
            let (scale, offset, row) = W::split_row_in(isa, self.row(index)?)?;
            let row = row.get(first..)?.get(..units)?;
            for (sum, units) in sums.iter_mut().zip(row.chunks(I::LANES / W::PER_UNIT)) {
                let value = scaled(isa, units, scale, offset);
                *sum = combine(*sum, value, at)?;
            }
        }
        Some(sums)
    }

    #[inline(always)]
    fn row(&self, index: &X) -> Option<&[W]> {
        nth_row(self.stored, self.row_stride, index.to_usize()?)
    }
}
