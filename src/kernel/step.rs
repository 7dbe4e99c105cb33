//! The matrix product `X . G`, a register tile at a time.
//!
//! Each element of the product is one chain `s <- s + x_k * g_k`, k ascending from 0, whatever tile it falls in: its bits
//! depend neither on the number of rows nor on its neighbours.

// Tiles are arrays of constant size, indexed by loops that unroll; slices, whose lengths the compiler cannot see, are not.
#![allow(clippy::indexing_slicing, clippy::needless_range_loop)]

use super::Epilogue;
use crate::{
    dtype::{Elements, Weight},
    isa::{Isa, Op, Pairs, Tier},
};
use core::ops::Range;

/// `out[m x n] <- x[m x r] . slice[r x n]`, all row-major: one step of a tensor-train chain, or a linear layer whose weights
/// are stored inputs x outputs. i8 elements are taken as they are: scales belong to the epilogue.
///
/// `None`, with nothing done, if the lengths do not fit `[m, r, n]`, if r is 0, or for i4.
pub fn chain_step(
    tier: Tier,
    [m, r, n]: [usize; 3],
    x: &[f32],
    slice: Elements<'_>,
    out: &mut [f32],
    epilogue: Epilogue<'_>,
) -> Option<()> {
    let fits = m.checked_mul(r)? == x.len() && r.checked_mul(n)? == slice.len() && m.checked_mul(n)? == out.len();
    if !(fits && epilogue.fits(n) && r > 0) {
        return None;
    }
    match slice {
        Elements::F32(slice) => step(tier, [m, r, n], x, slice, out, epilogue),
        Elements::F16(slice) => step(tier, [m, r, n], x, slice, out, epilogue),
        Elements::Bf16(slice) => step(tier, [m, r, n], x, slice, out, epilogue),
        Elements::I8(slice) => step(tier, [m, r, n], x, slice, out, epilogue),
        Elements::I4(_) => None,
    }
}

fn step<W: Weight>(
    tier: Tier,
    [m, r, n]: [usize; 3],
    x: &[f32],
    slice: &[W],
    out: &mut [f32],
    epilogue: Epilogue<'_>,
) -> Option<()> {
    if m == 0 || n == 0 {
        return Some(());
    }
    let product = |out| Product { x, slice, m, r, n, first: 0, end: n, out, stride: n, add: None };
    match epilogue {
        Epilogue::Store => tier.run(product(out)),
        Epilogue::AddScaled(weight) if !tier.is_scalar() => tier.run(Product { add: Some(weight), ..product(out) }),
        Epilogue::StoreScaled(_) | Epilogue::Bias { .. } => {
            tier.run(product(&mut *out))?;
            out.chunks_exact_mut(n).for_each(|row| epilogue.finish(tier, row));
            Some(())
        }
        Epilogue::AddScaled(_) | Epilogue::Max => {
            // What is there must stay until the product is known: row by row.
            for (row, out) in out.chunks_exact_mut(n).enumerate() {
                let x = x.get(row * r..)?.get(..r)?;
                epilogue.apply(tier, 0, out, |columns, out| {
                    let stride = out.len();
                    let (first, end) = (columns.start, columns.end);
                    tier.run(Product { x, slice, m: 1, r, n, first, end, out, stride, add: None })
                })?;
            }
            Some(())
        }
    }
}

/// Stands for a width of tiles that is known only when they are run: at most a vector.
const ANY: usize = usize::MAX;

/// Columns `first..end` of the product: `out[i * stride + j]` becomes row i of column `first + j`, or, with `add`, has that
/// times a weight added to it.
struct Product<'s, W> {
    x: &'s [f32],
    slice: &'s [W],
    m: usize,
    r: usize,
    n: usize,
    first: usize,
    end: usize,
    out: &'s mut [f32],
    stride: usize,
    add: Option<f32>,
}

impl<W: Weight> Op for Product<'_, W> {
    /// `None` if anything is out of bounds.
    type Output = Option<()>;

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) -> Option<()> {
        let mut row = 0;
        while row < self.m {
            let (rows, end) = next_rows::<I>(row, self.m, self.end - self.first);
            let column = self.vectors(isa, rows, row..end, self.first)?;
            let column = if isa.pairs().is_some() { self.four_columns(isa, row..end, column)? } else { column };
            match self.end - column {
                0 => {}
                _ if I::SMALL => self.strip::<I, ANY>(isa, 1, 1, row..end, column..self.end)?,
                1 => self.partial::<I, 1>(isa, row..end, column)?,
                2 => self.partial::<I, 2>(isa, row..end, column)?,
                _ => self.partial::<I, 3>(isa, row..end, column)?,
            }
            row = end;
        }
        Some(())
    }
}

impl<W: Weight> Product<'_, W> {
    /// Whole vectors from `column` on, for `rows` rows at a time; returns where they end.
    #[inline(always)]
    fn vectors<I: Isa>(&mut self, isa: I, rows: usize, range: Range<usize>, mut column: usize) -> Option<usize> {
        let widest = I::tile_vectors(rows);
        let least = if I::SMALL { widest * I::LANES } else { I::LANES };
        while self.end - column >= least {
            let left = (self.end - column) / I::LANES;
            let (vectors, count) = match left % widest {
                // Two tiles of two rather than one of three and one of one.
                1 if widest == 3 && left == 4 => (2, 2),
                1 if widest == 3 && left > 4 => (3, left / 3 - 1),
                _ if left >= widest => (widest, left / widest),
                _ => (1 << left.ilog2(), 1),
            };
            let end = column + count * vectors * I::LANES;
            self.strip::<I, 0>(isa, rows, vectors, range.clone(), column..end)?;
            column = end;
        }
        Some(column)
    }

    /// The last `WIDTH` columns, fewer than any vector has lanes.
    #[inline(always)]
    fn partial<I: Isa, const WIDTH: usize>(&mut self, isa: I, range: Range<usize>, column: usize) -> Option<()> {
        let fours = range.start + range.len() / 4 * 4;
        for (rows, range) in [(4, range.start..fours), (1, fours..range.end)] {
            self.strip::<_, WIDTH>(isa.narrow(), rows, 1, range, column..column + WIDTH)?;
        }
        Some(())
    }

    /// Four columns from `column` on, if there are as many, two rows to a vector; returns where they end.
    #[inline(always)]
    fn four_columns<I: Isa>(&mut self, isa: I, rows: Range<usize>, column: usize) -> Option<usize> {
        if self.end - column < 4 {
            return Some(column);
        }
        match self.add {
            None => isa.call(PairStrip::<'_, '_, W, false> { product: self, rows, column })?,
            Some(_) => isa.call(PairStrip::<'_, '_, W, true> { product: self, rows, column })?,
        }
        Some(column + 4)
    }

    /// The given rows and columns in tiles of `height x vectors`, or of `WIDTH` columns unless that is 0.
    #[inline(always)]
    fn strip<I: Isa, const WIDTH: usize>(
        &mut self,
        isa: I,
        height: usize,
        vectors: usize,
        rows: Range<usize>,
        columns: Range<usize>,
    ) -> Option<()> {
        macro_rules! strip {
            ($M:literal, $V:literal) => {
                match self.add {
                    Some(_) if I::SMALL => None,
                    None => isa.call(Strip::<'_, '_, W, $M, $V, WIDTH, false> { product: self, rows, columns }),
                    Some(_) => isa.call(Strip::<'_, '_, W, $M, $V, WIDTH, true> { product: self, rows, columns }),
                }
            };
        }
        let whole = WIDTH == 0 && I::MAX_ROWS > 1;
        let wide = WIDTH == 0 && I::MAX_VECTORS == 8;
        let pair = WIDTH == 0 && I::MAX_VECTORS >= 2;
        if I::SMALL && WIDTH == 0 {
            return strip!(1, 2);
        }
        match (height, vectors) {
            (1, 8) if wide => strip!(1, 8),
            (1, 4) if wide => strip!(1, 4),
            (2, 4) if wide => strip!(2, 4),
            (3, 4) if wide && I::MAX_ROWS == 4 => strip!(3, 4),
            (4, 4) if wide && I::MAX_ROWS == 4 => strip!(4, 4),
            (3, 3) if wide && I::MAX_ROWS == 6 => strip!(3, 3),
            (4, 3) if wide && I::MAX_ROWS == 6 => strip!(4, 3),
            (1, 2) if pair => strip!(1, 2),
            (2, 2) if pair && whole => strip!(2, 2),
            (3, 2) if pair && whole => strip!(3, 2),
            (4, 2) if pair && whole => strip!(4, 2),
            (6, 2) if pair && I::MAX_ROWS == 6 => strip!(6, 2),
            (2, _) if whole => strip!(2, 1),
            (3, _) if whole => strip!(3, 1),
            (6, _) if whole => strip!(6, 1),
            (8, _) if whole => strip!(8, 1),
            (4, _) if I::MAX_ROWS > 1 => strip!(4, 1),
            // A tier without taller tiles goes row by row.
            _ => strip!(1, 1),
        }
    }
}

/// Tiles of `M` rows and `V` vectors (or `WIDTH` columns, unless that is 0), over ranges of rows and columns that they fill
/// exactly.
struct Strip<'p, 's, W, const M: usize, const V: usize, const WIDTH: usize, const ADD: bool> {
    product: &'p mut Product<'s, W>,
    rows: Range<usize>,
    columns: Range<usize>,
}

impl<W: Weight, const M: usize, const V: usize, const WIDTH: usize, const ADD: bool> Op
    for Strip<'_, '_, W, M, V, WIDTH, ADD>
{
    type Output = Option<()>;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Option<()> {
        // The right operand stays in the nearest cache while the rows go by.
        let mut column = self.columns.start;
        while column < self.columns.end {
            let width = match WIDTH {
                0 => V * I::LANES,
                ANY => (self.columns.end - column).min(I::LANES),
                _ => WIDTH,
            };
            let mut row = self.rows.start;
            while row < self.rows.end {
                tile::<I, W, M, V, ADD>(isa, self.product, row, column, width)?;
                row += M;
            }
            column += width;
        }
        Some(())
    }
}

/// `M` rows from `row` on and `width` columns, `V` vectors or part of one, from `column` on.
#[inline(always)]
fn tile<I: Isa, W: Weight, const M: usize, const V: usize, const ADD: bool>(
    isa: I,
    product: &mut Product<'_, W>,
    row: usize,
    column: usize,
    width: usize,
) -> Option<()> {
    let (r, n) = (product.r, product.n);
    let mut lhs: [&[f32]; M] = [&[]; M];
    let mut x = product.x.get(row * r..)?;
    for a in 0..M {
        (lhs[a], x) = x.split_at_checked(r)?;
    }
    let mut sums = [[isa.splat(0.0); V]; M];
    let mut slice = product.slice;
    if I::QUADS && r >= 4 {
        let mut quads: [&[[f32; 4]]; M] = [&[]; M];
        for a in 0..M {
            (quads[a], lhs[a]) = lhs[a].as_chunks();
        }
        // What holds of the first block holds of all: asked here, one by one, it is not asked again in the loop.
        let block = slice.get(..4 * n)?;
        part(block, column, width)?;
        part(block, n + column, width)?;
        part(block, 2 * n + column, width)?;
        part(block, 3 * n + column, width)?;
        'blocks: for k in 0.. {
            let mut lhs = [isa.quad(&[0.0; 4]); M];
            for a in 0..M {
                // All rows end here; a loop that counted to `r / 4` would ask twice.
                let Some(quad) = quads[a].get(k) else { break 'blocks };
                lhs[a] = isa.quad(quad);
            }
            let (block, rest) = slice.split_at_checked(4 * n)?;
            slice = rest;
            multiply_add::<I, W, M, V, 0>(isa, &lhs, part(block, column, width)?, &mut sums);
            multiply_add::<I, W, M, V, 1>(isa, &lhs, part(block, n + column, width)?, &mut sums);
            multiply_add::<I, W, M, V, 2>(isa, &lhs, part(block, 2 * n + column, width)?, &mut sums);
            multiply_add::<I, W, M, V, 3>(isa, &lhs, part(block, 3 * n + column, width)?, &mut sums);
        }
    }
    let rest = if I::QUADS { r % 4 } else { r };
    let mut k = 0;
    // Without a loop that may run no times, the sums stay in the registers they start in.
    while !I::QUADS || k < rest {
        let rhs = load_row::<I, W, V>(isa, slice.get(k * n + column..)?.get(..width)?);
        for a in 0..M {
            let lhs = isa.splat(*lhs[a].get(k)?);
            for v in 0..V {
                sums[a][v] = isa.fma(rhs[v], lhs, sums[a][v]);
            }
        }
        k += 1;
        if k == rest {
            break;
        }
    }

    let weight = isa.splat(product.add.unwrap_or(1.0));
    let mut rows =
        product.out.get_mut(row * product.stride + column - product.first..)?.chunks_mut(product.stride.max(1));
    for a in 0..M {
        let out = rows.next()?.get_mut(..width)?;
        for v in 0..V {
            let out = out.get_mut(v * I::LANES..)?;
            let sum = if ADD { isa.fma(weight, sums[a][v], isa.load_f32(out)) } else { sums[a][v] };
            isa.store(sum, out);
        }
    }
    Some(())
}

/// Four columns of a range of rows.
struct PairStrip<'p, 's, W, const ADD: bool> {
    product: &'p mut Product<'s, W>,
    rows: Range<usize>,
    column: usize,
}

impl<W: Weight, const ADD: bool> Op for PairStrip<'_, '_, W, ADD> {
    type Output = Option<()>;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Option<()> {
        let Self { product, rows, column } = self;
        let pairs = isa.pairs()?;
        let mut row = rows.start;
        while row < rows.end {
            row += match rows.end - row {
                13.. => pair_tile::<_, W, 8, ADD>(pairs, product, row, rows.end, column)?,
                5.. => pair_tile::<_, W, 4, ADD>(pairs, product, row, rows.end, column)?,
                3.. => pair_tile::<_, W, 2, ADD>(pairs, product, row, rows.end, column)?,
                _ => pair_tile::<_, W, 1, ADD>(pairs, product, row, rows.end, column)?,
            };
        }
        Some(())
    }
}

/// Up to `2 N` rows from `row` on, as far as `end`, in `N` vectors of two; returns how many. Where there are fewer, the last
/// one is computed again.
#[inline(always)]
fn pair_tile<P: Pairs, W: Weight, const N: usize, const ADD: bool>(
    pairs: P,
    product: &mut Product<'_, W>,
    row: usize,
    end: usize,
    column: usize,
) -> Option<usize> {
    let (r, n, narrow) = (product.r, product.n, pairs.narrow());
    let mut lhs: [[&[f32]; 2]; N] = [[&[]; 2]; N];
    let mut x = product.x.get(row * r..end * r)?;
    let mut latest: &[f32] = &[];
    for a in 0..N {
        for half in 0..2 {
            if let Some((next, rest)) = x.split_at_checked(r) {
                (latest, x) = (next, rest);
            }
            lhs[a][half] = latest;
        }
    }
    let zero = pairs.join(narrow.splat(0.0), narrow.splat(0.0));
    let mut sums = [zero; N];
    let mut slice = product.slice;
    for k in 0..r / 4 {
        let (block, rest) = slice.split_at_checked(4 * n)?;
        slice = rest;
        let mut rhs = [zero; 4];
        for lane in 0..4 {
            let half = W::load(narrow, block.get(lane * n + column..)?.get(..4)?);
            rhs[lane] = pairs.join(half, half);
        }
        for a in 0..N {
            let [low, high] = lhs[a];
            let (low, high) = (low.get(4 * k..)?.get(..4)?, high.get(4 * k..)?.get(..4)?);
            let quad = pairs.join(narrow.load_f32(low), narrow.load_f32(high));
            sums[a] = pairs.multiply_add_lane::<0>(quad, rhs[0], sums[a]);
            sums[a] = pairs.multiply_add_lane::<1>(quad, rhs[1], sums[a]);
            sums[a] = pairs.multiply_add_lane::<2>(quad, rhs[2], sums[a]);
            sums[a] = pairs.multiply_add_lane::<3>(quad, rhs[3], sums[a]);
        }
    }
    for k in 0..r % 4 {
        let rhs = W::load(narrow, slice.get(k * n + column..)?.get(..4)?);
        let rhs = pairs.join(rhs, rhs);
        for a in 0..N {
            let [low, high] = lhs[a];
            let k = r / 4 * 4 + k;
            let both = pairs.join(narrow.splat(*low.get(k)?), narrow.splat(*high.get(k)?));
            sums[a] = pairs.multiply_add(both, rhs, sums[a]);
        }
    }
    let weight = narrow.splat(product.add.unwrap_or(1.0));
    let count = (end - row).min(2 * N);
    let out = product.out.get_mut(row * product.stride + column - product.first..)?;
    let mut rows = out.chunks_mut(product.stride.max(1)).take(count);
    for a in 0..N {
        for half in pairs.halves(sums[a]) {
            if let Some(out) = rows.next() {
                let out = out.get_mut(..4)?;
                let sum = if ADD { narrow.fma(weight, half, narrow.load_f32(out)) } else { half };
                narrow.store(sum, out);
            }
        }
    }
    Some(count)
}

/// Adds lane `LANE` of each left operand times a row of the slice.
#[inline(always)]
fn multiply_add<I: Isa, W: Weight, const M: usize, const V: usize, const LANE: usize>(
    isa: I,
    lhs: &[I::Quad<'_>; M],
    row: &[W],
    sums: &mut [[I::F32; V]; M],
) {
    let rhs = load_row::<I, W, V>(isa, row);
    for a in 0..M {
        for v in 0..V {
            sums[a][v] = isa.fma_lane::<LANE>(lhs[a], rhs[v], sums[a][v]);
        }
    }
}

#[inline(always)]
fn part<T>(xs: &[T], start: usize, len: usize) -> Option<&[T]> {
    xs.get(start..)?.get(..len)
}

/// `V` vectors of a slice's row.
#[inline(always)]
fn load_row<I: Isa, W: Weight, const V: usize>(isa: I, row: &[W]) -> [I::F32; V] {
    let mut vectors = [isa.splat(0.0); V];
    for v in 0..V {
        vectors[v] = W::load(isa, row.get(v * I::LANES..).unwrap_or_default());
    }
    vectors
}

/// How many rows the next tiles take, and where they end: so that no tile has too few sums to hide a multiply-add's
/// latency, and none more than there are registers.
#[inline(always)]
fn next_rows<I: Isa>(row: usize, m: usize, columns: usize) -> (usize, usize) {
    let left = m - row;
    // Tiles of one vector can be taller.
    let tallest = if columns < 2 * I::LANES && I::MAX_ROWS > 1 { 8 } else { I::MAX_ROWS };
    if left > tallest + 2 || left == tallest {
        // Two tiles of middling height at the end, rather than one tall and one flat.
        let blocks = if matches!(left % tallest, 1 | 2) { left / tallest - 1 } else { left / tallest };
        return (tallest, row + tallest * blocks);
    }
    let rows = match left {
        5 => 3,
        6 if tallest < 6 => 3,
        7 | 8 => 4,
        9 | 10 => 6,
        _ => left,
    };
    (rows.min(tallest), row + rows.min(tallest))
}
