//! Register tiles whose vectors each hold columns of one row.

use super::{Job, Product};
use crate::{
    dtype::Weight,
    isa::{Isa, Op},
    kernel::Consistent,
};
use core::ops::Range;

/// Tiles of `M` rows and `V` vectors (or `WIDTH` columns, unless that is 0), over ranges of rows
/// and columns that they fill exactly.
pub(super) struct Strip<
    'p,
    's,
    'o,
    W,
    const M: usize,
    const V: usize,
    const WIDTH: usize,
    const ADD: bool,
> {
    pub(super) product: &'p mut Product<'s, 'o, W>,
    pub(super) rows: Range<usize>,
    pub(super) columns: Range<usize>,
}

impl<W: Weight, const M: usize, const V: usize, const WIDTH: usize, const ADD: bool> Op
    for Strip<'_, '_, '_, W, M, V, WIDTH, ADD>
{
    type Output = Consistent;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Consistent {
        let jobs = self.product.jobs;
        for job in jobs {
            // Rows innermost: the columns of the right operand stay in the nearest cache.
            let mut column = self.columns.start;
            while column < self.columns.end {
                let width = match WIDTH {
                    0 => V * I::LANES,
                    _ => WIDTH,
                };
                let mut row = self.rows.start;
                while row < self.rows.end {
                    tile::<I, W, M, V, ADD>(isa, self.product, job, row, column, width)?;
                    row += M;
                }
                column += width;
            }
        }
        Some(())
    }
}

/// `M` rows from `row` on and `width` columns, `V` vectors or part of one, from `column` on.
#[inline(always)]
fn tile<I: Isa, W: Weight, const M: usize, const V: usize, const ADD: bool>(
    isa: I,
    product: &mut Product<'_, '_, W>,
    job: &Job<'_, W>,
    row: usize,
    column: usize,
    width: usize,
) -> Consistent {
    let (r, n) = (product.r, product.n);
    let mut lhs: [&[f32]; M] = [&[]; M];
    let mut x = job.x.get(row * r..)?;
    for a in 0..M {
        (lhs[a], x) = x.split_at_checked(r)?;
    }
    let mut sums = [[isa.splat(0.0); V]; M];
    let first = job.out + row * product.stride + column - product.first;
    if product.resume {
        for a in 0..M {
            let out = product.out.get(first + a * product.stride..)?.get(..width)?;
            for v in 0..V {
                sums[a][v] = isa.load_f32(out.get(v * I::LANES..)?);
            }
        }
    }
    let mut slice = job.slice;
    if I::QUADS && r >= 4 {
        let mut quads: [&[[f32; 4]]; M] = [&[]; M];
        for a in 0..M {
            (quads[a], lhs[a]) = lhs[a].as_chunks();
        }
        // All blocks are as long as the first. These checks make those in the loop redundant.
        let block = slice.get(..4 * n)?;
        part(block, column, width)?;
        part(block, n + column, width)?;
        part(block, 2 * n + column, width)?;
        part(block, 3 * n + column, width)?;
        'blocks: for k in 0.. {
            let mut lhs = [isa.quad(&[0.0; 4]); M];
            for a in 0..M {
                // All rows have the same length. A loop to `r / 4` would check the bound twice.
                let Some(quad) = quads[a].get(k) else { break 'blocks };
                lhs[a] = isa.quad(quad);
            }
            let (block, rest) = slice.split_at_checked(4 * n)?;
            slice = rest;
            multiply_add::<I, W, M, V, 0>(isa, &lhs, part(block, column, width)?, &mut sums);
            multiply_add::<I, W, M, V, 1>(isa, &lhs, part(block, n + column, width)?, &mut sums);
            multiply_add::<I, W, M, V, 2>(
                isa,
                &lhs,
                part(block, 2 * n + column, width)?,
                &mut sums,
            );
            multiply_add::<I, W, M, V, 3>(
                isa,
                &lhs,
                part(block, 3 * n + column, width)?,
                &mut sums,
            );
        }
    }
    let rest = if I::QUADS { r % 4 } else { r };
    if rest > 0 && column <= n && width <= n - column {
        let mut k = 0;
        // do-while: LLVM then keeps the accumulators in registers. With a loop that may run no
        // times it spills them on NEON (`.ci/neon-pipes` checks it).
        loop {
            let (row, after) = slice.split_at_checked(n)?;
            slice = after;
            let rhs = load_row::<I, W, V>(isa, row.get(column..)?.get(..width)?);
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
    }

    let scale = isa.splat(job.scale);
    for a in 0..M {
        let out = product.out.get_mut(first + a * product.stride..)?.get_mut(..width)?;
        for v in 0..V {
            let out = out.get_mut(v * I::LANES..)?;
            isa.store(finished::<I, W, ADD>(isa, scale, sums[a][v], out), out);
        }
    }
    Some(())
}

/// The new value of an element of the output whose chain is complete.
#[inline(always)]
pub(super) fn finished<I: Isa, W: Weight, const ADD: bool>(
    isa: I,
    scale: I::F32,
    sum: I::F32,
    out: &[f32],
) -> I::F32 {
    if ADD {
        isa.fma(scale, sum, isa.load_f32(out))
    } else if W::SCALED {
        isa.mul(scale, sum)
    } else {
        sum
    }
}

/// Adds lane `LANE` of each left operand times a row of the slice.
#[inline(always)]
pub(super) fn multiply_add<I: Isa, W: Weight, const M: usize, const V: usize, const LANE: usize>(
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
pub(super) fn load_row<I: Isa, W: Weight, const V: usize>(isa: I, row: &[W]) -> [I::F32; V] {
    let mut vectors = [isa.splat(0.0); V];
    for v in 0..V {
        vectors[v] = W::load(isa, row.get(v * I::LANES..).unwrap_or_default());
    }
    vectors
}
