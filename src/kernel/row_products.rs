//! Inner products of a query with stored rows. Each product is one chain over the columns. Each
//! lane of a vector computes the product of another row, so rows are transposed in registers.

// As in `product`: arrays of constant size, indexed by loops that unroll.
#![allow(clippy::indexing_slicing, clippy::needless_range_loop)]

use super::Consistent;
use crate::{
    dtype::Weight,
    isa::{Isa, MAX_FOURS, Op, RowLanes},
};
use core::ops::Range;

/// The number of vectors whose chains run side by side, to hide the latency of a multiply-add.
const VECTORS: usize = 2;

/// How many bytes ahead rows are prefetched. The loop reads several rows at a time, which the
/// hardware does not recognise as one stream.
const AHEAD: usize = 8192;

/// The inner product of a query with each row.
pub(crate) struct RowProducts<'s, 'o, W> {
    /// The rows, `row_stride` units each.
    pub(crate) stored: &'s [W],
    pub(crate) row_stride: usize,
    pub(crate) query: &'s [f32],
    /// One element for each row.
    pub(crate) out: &'o mut [f32],
}

/// [`RowProducts`] of i8 rows, which are transposed four columns at a time, before they are
/// widened. Not for the scalar tier: its lanes are floats, which may not keep the bits of a NaN.
pub(crate) struct ByteRowProducts<'s, 'o>(pub(crate) RowProducts<'s, 'o, i8>);

type Narrow<L> = <<L as RowLanes>::Narrow as Isa>::F32;
type Wide<L> = <<L as RowLanes>::Wide as Isa>::F32;

impl<W: Weight> Op for RowProducts<'_, '_, W> {
    /// `None` if a row is out of bounds.
    type Output = Consistent;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Consistent {
        let Self { stored, row_stride, query, out } = self;
        let lanes = isa.rows();
        let height = 4 * VECTORS * <I::Rows as RowLanes>::FOURS;
        let mut rest = stored;
        let mut blocks = out.chunks_exact_mut(height);
        for out in &mut blocks {
            block::<_, W, VECTORS>(lanes, &mut rest, row_stride, query, out)?;
        }
        for out in blocks.into_remainder() {
            // A vector of the same row.
            let mut row = rest;
            rest = rest.get(row_stride..)?;
            block::<_, W, 1>(lanes, &mut row, 0, query, core::slice::from_mut(out))?;
        }
        Some(())
    }
}

impl Op for ByteRowProducts<'_, '_> {
    /// `None` if a row is out of bounds.
    type Output = Consistent;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Consistent {
        let RowProducts { stored, row_stride, query, out } = self.0;
        let height = 4 * VECTORS * <I::Rows as RowLanes>::FOURS;
        let mut rest = stored;
        let mut blocks = out.chunks_exact_mut(height);
        for out in &mut blocks {
            byte_block::<_, VECTORS>(isa.rows(), &mut rest, row_stride, query, out)?;
        }
        RowProducts { stored: rest, row_stride, query, out: blocks.into_remainder() }.run(isa)
    }
}

/// Prefetches `len` units, from [`AHEAD`] bytes after the first unit on.
#[inline(always)]
fn prefetch<I: Isa, W>(isa: I, units: &[W], len: usize) {
    let ahead = units.get(AHEAD / size_of::<W>()..).unwrap_or_default();
    for line in ahead.get(..len).unwrap_or(ahead).chunks(64 / size_of::<W>()) {
        isa.prefetch(line);
    }
}

/// `V` vectors of the next rows.
#[inline(always)]
fn block<L: RowLanes, W: Weight, const V: usize>(
    lanes: L,
    rest: &mut &[W],
    row_stride: usize,
    query: &[f32],
    out: &mut [f32],
) -> Consistent {
    let (wide, narrow) = (lanes.wide(), lanes.narrow());
    if V > 1 {
        prefetch(wide, rest, V * <L::Wide as Isa>::LANES * row_stride);
    }
    let units = W::ROW_HEADER + query.len().div_ceil(W::PER_UNIT);
    let empty = Rows::<L, W> {
        elements: [[&[]; 4]; MAX_FOURS],
        scales: [[narrow.splat(1.0); 4]; MAX_FOURS],
        offsets: [[narrow.splat(0.0); 4]; MAX_FOURS],
    };
    let mut rows = [empty; V];
    for rows in &mut rows {
        for four in 0..L::FOURS {
            for a in 0..4 {
                let row = rest.get(..units)?;
                *rest = rest.get(row_stride..)?;
                (rows.scales[four][a], rows.offsets[four][a], rows.elements[four][a]) =
                    W::split_row_in(narrow, row)?;
            }
        }
    }
    let mut sums = [wide.splat(0.0); V];
    let (quads, last) = query.as_chunks::<4>();
    let mut units = 0..4 / W::PER_UNIT;
    for quad in quads {
        for v in 0..V {
            let columns = rows[v].columns(lanes, units.clone())?;
            for j in 0..4 {
                sums[v] = wide.fma(wide.splat(quad[j]), columns[j], sums[v]);
            }
        }
        units = units.end..units.end + 4 / W::PER_UNIT;
    }
    let units = units.start..units.start + last.len().div_ceil(W::PER_UNIT);
    if !last.is_empty() {
        for v in 0..V {
            let columns = rows[v].columns(lanes, units.clone())?;
            for (&x, column) in last.iter().zip(columns) {
                sums[v] = wide.fma(wide.splat(x), column, sums[v]);
            }
        }
    }
    for (sum, out) in sums.into_iter().zip(out.chunks_mut(<L::Wide as Isa>::LANES)) {
        wide.store(sum, out);
    }
    Some(())
}

/// The rows of the lanes of a vector, in fours.
#[derive(Clone, Copy)]
struct Rows<'s, L: RowLanes, W> {
    elements: [[&'s [W]; 4]; MAX_FOURS],
    scales: [[Narrow<L>; 4]; MAX_FOURS],
    offsets: [[Narrow<L>; 4]; MAX_FOURS],
}

impl<L: RowLanes, W: Weight> Rows<'_, L, W> {
    /// The columns in these units, up to four: a vector for each.
    #[inline(always)]
    fn columns(&self, lanes: L, units: Range<usize>) -> Option<[Wide<L>; 4]> {
        let (wide, narrow) = (lanes.wide(), lanes.narrow());
        let mut columns = [wide.splat(0.0); 4];
        for a in 0..4 {
            let mut fours = [narrow.splat(0.0); MAX_FOURS];
            for four in 0..L::FOURS {
                let value = W::load(narrow, self.elements[four][a].get(units.clone())?);
                fours[four] = if W::SCALED {
                    narrow.fma(self.scales[four][a], value, self.offsets[four][a])
                } else {
                    value
                };
            }
            columns[a] = lanes.join(fours);
        }
        Some(lanes.transpose(columns))
    }
}

/// Columns that are transposed together: a vector of bytes.
const BYTES: usize = 16;

/// `V` vectors of the next rows.
#[inline(always)]
fn byte_block<L: RowLanes, const V: usize>(
    lanes: L,
    rest: &mut &[i8],
    row_stride: usize,
    query: &[f32],
    out: &mut [f32],
) -> Consistent {
    let (wide, narrow) = (lanes.wide(), lanes.narrow());
    prefetch(wide, rest, V * <L::Wide as Isa>::LANES * row_stride);
    let mut rows: [[[&[i8]; 4]; MAX_FOURS]; V] = [[[&[]; 4]; MAX_FOURS]; V];
    let mut scales = [wide.splat(0.0); V];
    let mut offsets = [wide.splat(0.0); V];
    for v in 0..V {
        let (mut scale, mut offset) = ([0.0; 4 * MAX_FOURS], [0.0; 4 * MAX_FOURS]);
        for four in 0..L::FOURS {
            for a in 0..4 {
                let row;
                (row, *rest) = rest.split_at_checked(row_stride)?;
                (scale[4 * four + a], offset[4 * four + a], rows[v][four][a]) = i8::split_row(row)?;
            }
        }
        (scales[v], offsets[v]) = (wide.load_f32(&scale), wide.load_f32(&offset));
    }
    let mut sums = [wide.splat(0.0); V];
    let (blocks, last) = query.as_chunks::<BYTES>();
    for (k, block) in blocks.iter().enumerate() {
        // Four columns in each lane, all vectors of the same columns side by side.
        let mut words = [[wide.splat(0.0); V]; 4];
        for v in 0..V {
            let mut quads = [wide.splat(0.0); 4];
            for a in 0..4 {
                let mut fours = [narrow.splat(0.0); MAX_FOURS];
                for four in 0..L::FOURS {
                    let bytes = rows[v][four][a].get(k * BYTES..)?.first_chunk::<BYTES>()?;
                    let words: [f32; 4] = bytemuck::must_cast(*bytes);
                    fours[four] = narrow.load_f32(&words);
                }
                quads[a] = lanes.join(fours);
            }
            let quads = lanes.transpose(quads);
            for a in 0..4 {
                words[a][v] = quads[a];
            }
        }
        for (words, &[a, b, c, d]) in words.iter().zip(block.as_chunks::<4>().0) {
            add_byte::<L, V, 0>(lanes, words, a, &scales, &offsets, &mut sums);
            add_byte::<L, V, 1>(lanes, words, b, &scales, &offsets, &mut sums);
            add_byte::<L, V, 2>(lanes, words, c, &scales, &offsets, &mut sums);
            add_byte::<L, V, 3>(lanes, words, d, &scales, &offsets, &mut sums);
        }
    }
    for (j, &x) in (query.len() - last.len()..).zip(last) {
        for v in 0..V {
            let mut column = [0.0; 4 * MAX_FOURS];
            for four in 0..L::FOURS {
                for a in 0..4 {
                    column[4 * four + a] = (*rows[v][four][a].get(j)?).into();
                }
            }
            let column = wide.fma(scales[v], wide.load_f32(&column), offsets[v]);
            sums[v] = wide.fma(wide.splat(x), column, sums[v]);
        }
    }
    for (sum, out) in sums.into_iter().zip(out.chunks_mut(<L::Wide as Isa>::LANES)) {
        wide.store(sum, out);
    }
    Some(())
}

/// Adds `x` times the elements in byte `BYTE` of each lane.
#[inline(always)]
fn add_byte<L: RowLanes, const V: usize, const BYTE: usize>(
    lanes: L,
    words: &[Wide<L>; V],
    x: f32,
    scales: &[Wide<L>; V],
    offsets: &[Wide<L>; V],
    sums: &mut [Wide<L>; V],
) {
    let wide = lanes.wide();
    let x = wide.splat(x);
    for v in 0..V {
        let column = wide.fma(scales[v], lanes.signed_byte::<BYTE>(words[v]), offsets[v]);
        sums[v] = wide.fma(x, column, sums[v]);
    }
}
