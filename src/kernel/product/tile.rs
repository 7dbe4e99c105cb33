//! Register tiles whose vectors each hold columns of one row.

use super::Product;
use crate::{
    dtype::Weight,
    isa::{Isa, Op, Operands, OutputRows},
    kernel::Consistent,
};
use core::ops::Range;

/// Tiles of `M` rows and `V` vectors (or `WIDTH` columns, unless that is 0), over ranges of rows
/// and columns that they fill exactly.
pub(super) struct Strip<'p, 's, 'o, W, const M: usize, const V: usize, const WIDTH: usize> {
    pub(super) product: &'p mut Product<'s, 'o, W>,
    pub(super) rows: Range<usize>,
    pub(super) columns: Range<usize>,
}

impl<W: Weight, const M: usize, const V: usize, const WIDTH: usize> Op
    for Strip<'_, '_, '_, W, M, V, WIDTH>
{
    type Output = Consistent;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Consistent {
        let Self { product, rows, columns } = self;
        // By value: behind a reference, they would be read again for each tile.
        let Product { jobs, r, n, first, stride, add, resume, .. } = *product;
        let out = &mut *product.out;
        let width = match WIDTH {
            0 => V * I::LANES,
            _ => WIDTH,
        };
        for job in jobs {
            // Rows innermost: the columns of the right operand stay in the nearest cache.
            let mut column = columns.start;
            while column < columns.end {
                let mut x = job.x.get(rows.start * r..)?;
                let mut start = job.out + rows.start * stride + column - first;
                let mut row = rows.start;
                while row < rows.end {
                    let operands = Operands::<W, M>::new([(x, job.slice)], [r, n], column, width)?;
                    let out = out.get_mut(start..)?;
                    let ends = Ends { scale: job.scale, add, resume };
                    tile::<I, W, M, V>(isa, operands, ends, stride, width, out)?;
                    x = x.get(M * r..)?;
                    start += M * stride;
                    row += M;
                }
                column += width;
            }
        }
        Some(())
    }
}

/// How the chains of a product begin and end, as [`Product`] says.
struct Ends {
    scale: f32,
    add: bool,
    resume: bool,
}

/// `M` rows of `width` columns, `V` vectors or part of one, `stride` apart, from the start of `out`
/// on.
#[inline(always)]
fn tile<I: Isa, W: Weight, const M: usize, const V: usize>(
    isa: I,
    operands: Operands<'_, W, M>,
    Ends { scale, add, resume }: Ends,
    stride: usize,
    width: usize,
    out: &mut [f32],
) -> Consistent {
    let mut sums = [[[isa.splat(0.0); V]; M]];
    if resume {
        for a in 0..M {
            let out = out.get(a * stride..)?.get(..width)?;
            for v in 0..V {
                sums[0][a][v] = isa.load_f32(out.get(v * I::LANES..)?);
            }
        }
    }
    multiply::<I, W, M, V, 1>(isa, operands, &mut sums);
    store::<I, W, M, V>(isa, scale, add, &sums[0], OutputRows::new(out, stride, width)?);
    Some(())
}

/// Stores the sums of a tile, or adds them to the output, as [`finished`] says.
#[inline(always)]
pub(super) fn store<I: Isa, W: Weight, const M: usize, const V: usize>(
    isa: I,
    scale: f32,
    add: bool,
    sums: &[[I::F32; V]; M],
    out: OutputRows<'_, M>,
) {
    // One test for all rows.
    if add {
        store_sums::<I, W, M, V, true>(isa, scale, sums, out);
    } else {
        store_sums::<I, W, M, V, false>(isa, scale, sums, out);
    }
}

#[inline(always)]
fn store_sums<I: Isa, W: Weight, const M: usize, const V: usize, const ADD: bool>(
    isa: I,
    scale: f32,
    sums: &[[I::F32; V]; M],
    mut out: OutputRows<'_, M>,
) {
    let scale = isa.splat(scale);
    for a in 0..M {
        let out = out.row(a);
        for v in 0..V {
            let out = out.get_mut(v * I::LANES..).unwrap_or_default();
            isa.store(finished::<I, W>(isa, scale, ADD, sums[a][v], out), out);
        }
    }
}

/// The new value of an element of the output whose chain is complete.
#[inline(always)]
pub(super) fn finished<I: Isa, W: Weight>(
    isa: I,
    scale: I::F32,
    add: bool,
    sum: I::F32,
    out: &[f32],
) -> I::F32 {
    if add {
        isa.fma(scale, sum, isa.load_f32(out))
    } else if W::SCALED {
        isa.mul(scale, sum)
    } else {
        sum
    }
}

/// Adds the product of each pair of operands to its sums.
#[inline(always)]
pub(super) fn multiply<I: Isa, W: Weight, const M: usize, const V: usize, const J: usize>(
    isa: I,
    mut operands: Operands<'_, W, M, J>,
    sums: &mut [[[I::F32; V]; M]; J],
) {
    while let Some(steps) = operands.next::<4>() {
        for j in 0..J {
            let (lhs, rhs) = (steps.lhs(j), steps.rhs(j));
            let mut quads = [isa.quad(&[0.0; 4]); M];
            for a in 0..M {
                quads[a] = isa.quad(lhs[a]);
            }
            multiply_add::<I, W, M, V, 0>(isa, &quads, rhs[0], &mut sums[j]);
            multiply_add::<I, W, M, V, 1>(isa, &quads, rhs[1], &mut sums[j]);
            multiply_add::<I, W, M, V, 2>(isa, &quads, rhs[2], &mut sums[j]);
            multiply_add::<I, W, M, V, 3>(isa, &quads, rhs[3], &mut sums[j]);
        }
    }
    while let Some(step) = operands.next::<1>() {
        for j in 0..J {
            let (lhs, [rhs]) = (step.lhs(j), step.rhs(j));
            let rhs = load_row::<I, W, V>(isa, rhs);
            for a in 0..M {
                let lhs = isa.splat(lhs[a][0]);
                for v in 0..V {
                    sums[j][a][v] = isa.fma(rhs[v], lhs, sums[j][a][v]);
                }
            }
        }
    }
}

/// Adds lane `LANE` of each left operand times a row of the right one.
#[inline(always)]
fn multiply_add<I: Isa, W: Weight, const M: usize, const V: usize, const LANE: usize>(
    isa: I,
    lhs: &[I::Quad<'_>; M],
    rhs: &[W],
    sums: &mut [[I::F32; V]; M],
) {
    let rhs = load_row::<I, W, V>(isa, rhs);
    for a in 0..M {
        for v in 0..V {
            sums[a][v] = isa.fma_lane::<LANE>(lhs[a], rhs[v], sums[a][v]);
        }
    }
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
