//! Right operands of four or eight columns, where several rows share a vector.
//!
//! With four columns, a vector of sixteen lanes would be three quarters empty. So a *group* of rows
//! fills it: lanes 0 to 3 are the columns of the first row, lanes 4 to 7 those of the second, and
//! so on. A row of the right operand is repeated for each row of the group. The left operand must
//! be broadcast within each row's lanes: four of its elements per row are loaded as a quad, and
//! [`Groups::fma_lane`] selects one of them for each multiply-add. So chains advance four steps at
//! a time, and what is left of them one step at a time.

use super::{Job, Product, operands, tile::finished};
use crate::{
    dtype::Weight,
    isa::{Groups, Isa, MAX_GROUP, Op, Operands, Steps, WideF32},
    kernel::Consistent,
};
use core::ops::Range;

/// `C` columns, 4 or 8, of a range of rows.
pub(super) struct FewColumns<'p, 's, 'o, W, const C: usize> {
    pub(super) product: &'p mut Product<'s, 'o, W>,
    pub(super) rows: Range<usize>,
    pub(super) column: usize,
}

impl<W: Weight, const C: usize> Op for FewColumns<'_, '_, '_, W, C> {
    type Output = Consistent;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Consistent {
        if C == 8 {
            self.in_groups(isa.eights()?)
        } else {
            self.in_groups(isa.fours()?)
        }
    }
}

impl<W: Weight, const C: usize> FewColumns<'_, '_, '_, W, C> {
    #[inline(always)]
    fn in_groups<G: Groups>(self, groups: G) -> Consistent {
        let Self { product, rows, column } = self;
        for job in product.jobs {
            let mut row = rows.start;
            while row < rows.end {
                row += match (rows.end - row).div_ceil(G::ROWS) {
                    7.. => grouped_tile::<G, W, C, 8>(groups, product, job, row, rows.end, column)?,
                    3.. => grouped_tile::<G, W, C, 4>(groups, product, job, row, rows.end, column)?,
                    2 => grouped_tile::<G, W, C, 2>(groups, product, job, row, rows.end, column)?,
                    _ => grouped_tile::<G, W, C, 1>(groups, product, job, row, rows.end, column)?,
                };
            }
        }
        Some(())
    }
}

/// Computes as many rows from `row` on as `N` vectors hold, up to `end`, and returns their number.
/// If there are fewer, the last row fills the rest of the vectors, and is written once.
#[inline(always)]
fn grouped_tile<G: Groups, W: Weight, const C: usize, const N: usize>(
    groups: G,
    product: &mut Product<'_, '_, W>,
    job: &Job<'_, W>,
    row: usize,
    end: usize,
    column: usize,
) -> Option<usize> {
    let (r, n) = (product.r, product.n);
    let mut lhs = [[job.x.get(..r)?; MAX_GROUP]; N];
    for a in 0..N {
        for of in 0..G::ROWS {
            let row = (row + G::ROWS * a + of).min(end - 1);
            lhs[a][of] = job.x.get(row * r..)?.get(..r)?;
        }
    }
    let mut sums = [groups.wide().splat(0.0); N];
    let mut k = 0;
    let mut slice = job.slice;
    while k + 4 <= r {
        let (block, rest) = slice.split_at_checked(4 * n)?;
        slice = rest;
        add_grouped::<G, W, C, N, 4>(groups, &lhs, k, block, n, column, &mut sums)?;
        k += 4;
    }
    while k < r {
        let (block, rest) = slice.split_at_checked(n)?;
        slice = rest;
        add_grouped::<G, W, C, N, 1>(groups, &lhs, k, block, n, column, &mut sums)?;
        k += 1;
    }
    let narrow = groups.narrow();
    let scale = narrow.splat(job.scale);
    let count = (end - row).min(G::ROWS * N);
    let first = job.out + row * product.stride + column - product.first;
    for a in 0..N {
        for (of, sum) in groups.parts(sums[a]).into_iter().enumerate().take(G::ROWS) {
            if G::ROWS * a + of < count {
                let out = product
                    .out
                    .get_mut(first + (G::ROWS * a + of) * product.stride..)?
                    .get_mut(..C)?;
                narrow.store(finished::<_, W>(narrow, scale, product.add, sum, out), out);
            }
        }
    }
    Some(count)
}

/// Continues the chains by `K` steps, 1 to 4: elements `k` to `k + K` of each row of the left
/// operand, times the first `K` rows of `slice`.
#[inline(always)]
fn add_grouped<G: Groups, W: Weight, const C: usize, const N: usize, const K: usize>(
    groups: G,
    lhs: &[[&[f32]; MAX_GROUP]; N],
    k: usize,
    slice: &[W],
    n: usize,
    column: usize,
    sums: &mut [WideF32<G>; N],
) -> Consistent {
    let mut rhs = [groups.wide().splat(0.0); K];
    for lane in 0..K {
        rhs[lane] =
            groups.repeat(W::load(groups.narrow(), slice.get(lane * n + column..)?.get(..C)?));
    }
    for a in 0..N {
        let mut quads = [[0.0; 4]; MAX_GROUP];
        for of in 0..G::ROWS {
            quads[of].get_mut(..K)?.copy_from_slice(lhs[a][of].get(k..k + K)?);
        }
        add_quads(groups, &quads, &rhs, &mut sums[a]);
    }
    Some(())
}

/// Adds the first `K` elements of each row's quad times the rows `rhs`.
#[inline(always)]
fn add_quads<G: Groups, const K: usize>(
    groups: G,
    quads: &[[f32; 4]; MAX_GROUP],
    rhs: &[WideF32<G>; K],
    sum: &mut WideF32<G>,
) {
    let quads = groups.quads(quads);
    *sum = groups.fma_lane::<0>(quads, rhs[0], *sum);
    if K > 1 {
        *sum = groups.fma_lane::<1>(quads, rhs[1 % K], *sum);
    }
    if K > 2 {
        *sum = groups.fma_lane::<2>(quads, rhs[2 % K], *sum);
    }
    if K > 3 {
        *sum = groups.fma_lane::<3>(quads, rhs[3 % K], *sum);
    }
}

/// Products of `C` columns each, several of which are computed side by side and added to the
/// output.
pub(super) struct GroupedJobs<'p, 's, 'o, W, const C: usize> {
    pub(super) product: &'p mut Product<'s, 'o, W>,
}

impl<'s, W: Weight, const C: usize> Op for GroupedJobs<'_, 's, '_, W, C> {
    /// The jobs that are left.
    type Output = Option<&'s [Job<'s, W>]>;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Self::Output {
        if C == 8 {
            grouped_jobs::<_, W, C>(isa.eights()?, self.product)
        } else {
            grouped_jobs::<_, W, C>(isa.fours()?, self.product)
        }
    }
}

#[inline(always)]
fn grouped_jobs<'s, G: Groups, W: Weight, const C: usize>(
    groups: G,
    product: &mut Product<'s, '_, W>,
) -> Option<&'s [Job<'s, W>]> {
    macro_rules! at_once {
        ($($ROWS:literal: $($M:literal x $J:literal)+;)+) => {
            match product.m {
                // A constant condition, so that no code is generated for other numbers of rows.
                $($(
                    $M if const { G::ROWS == $ROWS } => {
                        grouped_jobs_at_once::<G, W, C, $J, { $M / $ROWS }, $M>(groups, product)
                    }
                )+)+
                _ => Some(product.jobs),
            }
        };
    }
    // Four sums where there are enough rows: permuting the operands of four, one in a cycle, takes
    // as long as the latency of their multiply-adds. The compiler would keep more jobs in memory.
    at_once! {
        2: 2 x 4  4 x 2  8 x 1  16 x 1;
        4: 4 x 4  8 x 2  16 x 1  32 x 1;
    }
}

/// Runs `J` jobs at a time, whose sums of `M` rows take `N` vectors each. Returns the jobs that are
/// left.
#[inline(always)]
fn grouped_jobs_at_once<
    's,
    G: Groups,
    W: Weight,
    const C: usize,
    const J: usize,
    const N: usize,
    const M: usize,
>(
    groups: G,
    product: &mut Product<'s, '_, W>,
) -> Option<&'s [Job<'s, W>]> {
    let (r, wide) = (product.r, groups.wide());
    let mut jobs = product.jobs;
    while let Some((group, rest)) = jobs.split_first_chunk::<J>() {
        jobs = rest;
        let operands = Operands::<W, M, J>::new(operands(group), [r, C], 0, C)?;
        let mut sums = [[wide.splat(0.0); N]; J];
        multiply(groups, operands, &mut sums);
        for j in 0..J {
            let scale = wide.splat(group[j].scale);
            let mut out = product.out.get_mut(group[j].out..)?.get_mut(..N * G::ROWS * C)?;
            for a in 0..N {
                let (these, after) = out.split_at_mut_checked(G::ROWS * C)?;
                out = after;
                wide.store(wide.fma(scale, sums[j][a], wide.load_f32(these)), these);
            }
        }
    }
    Some(jobs)
}

/// Adds products of `M` rows, which fill `N` vectors, to their sums.
#[inline(always)]
pub(super) fn multiply<G: Groups, W: Weight, const N: usize, const M: usize, const J: usize>(
    groups: G,
    mut operands: Operands<'_, W, M, J>,
    sums: &mut [[WideF32<G>; N]; J],
) {
    while let Some(steps) = operands.next::<4>() {
        for j in 0..J {
            add_steps::<G, W, N, M, J, 4>(groups, &steps, j, &mut sums[j]);
        }
    }
    while let Some(step) = operands.next::<1>() {
        for j in 0..J {
            add_steps::<G, W, N, M, J, 1>(groups, &step, j, &mut sums[j]);
        }
    }
}

/// Adds `K` steps of product j, whose sums of `M` rows take `N` vectors.
#[inline(always)]
fn add_steps<
    G: Groups,
    W: Weight,
    const N: usize,
    const M: usize,
    const J: usize,
    const K: usize,
>(
    groups: G,
    steps: &Steps<'_, W, M, J, K>,
    j: usize,
    sums: &mut [WideF32<G>; N],
) {
    let (lhs, slice) = (steps.lhs(j), steps.rhs(j));
    let mut rhs = [groups.wide().splat(0.0); K];
    for k in 0..K {
        rhs[k] = groups.repeat(W::load(groups.narrow(), slice[k]));
    }
    for a in 0..N {
        let mut quads = [[0.0; 4]; MAX_GROUP];
        for of in 0..G::ROWS {
            for k in 0..K {
                quads[of][k] = lhs[G::ROWS * a + of][k];
            }
        }
        add_quads(groups, &quads, &rhs, &mut sums[a]);
    }
}
