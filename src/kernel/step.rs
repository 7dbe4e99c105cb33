//! The matrix product `X . G`, a register tile at a time.
//!
//! Each element of the product is one chain `s <- s + x_k * g_k`, k ascending from 0, whatever tile it falls in: its bits
//! depend neither on the number of rows nor on its neighbours.

// Tiles are arrays of constant size, indexed by loops that unroll; slices, whose lengths the compiler cannot see, are not.
#![allow(clippy::indexing_slicing, clippy::needless_range_loop)]

use super::Epilogue;
use crate::{
    dtype::{Elements, Weight, with_core_elements},
    isa::{Groups, Isa, MAX_GROUP, Op, Tier, WideF32},
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
    with_core_elements!(slice, slice => step(tier, [m, r, n], x, slice, out, epilogue))?
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
    match epilogue {
        Epilogue::Store => store_products(tier, [r, n], &[Job { m, x, slice, out: 0, scale: 1.0 }], out),
        Epilogue::StoreScaled(scale) if W::SCALED => {
            store_products(tier, [r, n], &[Job { m, x, slice, out: 0, scale }], out)
        }
        Epilogue::AddScaled(scale) => add_products(tier, [m, r, n], &[Job { m, x, slice, out: 0, scale }], out),
        Epilogue::StoreScaled(_) | Epilogue::Bias { .. } => {
            store_products(tier, [r, n], &[Job { m, x, slice, out: 0, scale: 1.0 }], out)?;
            out.chunks_exact_mut(n).for_each(|row| epilogue.finish(tier, row));
            Some(())
        }
        Epilogue::MaxScaled(_) => row_by_row(tier, [r, n], x, slice, out, epilogue),
    }
}

/// A product whose elements are combined with what is there, which must stay until they are known: row by row.
fn row_by_row<W: Weight>(
    tier: Tier,
    [r, n]: [usize; 2],
    x: &[f32],
    slice: &[W],
    out: &mut [f32],
    epilogue: Epilogue<'_>,
) -> Option<()> {
    for (row, out) in out.chunks_exact_mut(n).enumerate() {
        let jobs = &[Job { m: 1, x: x.get(row * r..)?.get(..r)?, slice, out: 0, scale: 1.0 }];
        epilogue.apply(tier, 0, out, |columns, out| {
            let (first, end, stride) = (columns.start, columns.end, out.len());
            tier.run(Product { jobs, m: 1, r, n, first, end, out, stride, add: false })
        })?;
    }
    Some(())
}

/// One product of several: `x[m x r] . slice[r x n]`, for the elements of the output from `out` on.
#[derive(Clone, Copy)]
pub(crate) struct Job<'s, W> {
    pub(crate) m: usize,
    pub(crate) x: &'s [f32],
    pub(crate) slice: &'s [W],
    pub(crate) out: usize,
    /// What the product is multiplied by, if it is added, or if the dtype has scales.
    pub(crate) scale: f32,
}

impl<W> Job<'_, W> {
    /// No rows.
    pub(crate) const EMPTY: Self = Self { m: 0, x: &[], slice: &[], out: 0, scale: 1.0 };
}

/// Products of any numbers of rows, each replacing what is there. `None` if anything is out of bounds.
pub(crate) fn store_products<W: Weight>(
    tier: Tier,
    [r, n]: [usize; 2],
    jobs: &[Job<'_, W>],
    out: &mut [f32],
) -> Option<()> {
    tier.run(StoreProducts { jobs, r, n, out })
}

struct StoreProducts<'s, 'o, W> {
    jobs: &'s [Job<'s, W>],
    r: usize,
    n: usize,
    out: &'o mut [f32],
}

impl<W: Weight> Op for StoreProducts<'_, '_, W> {
    type Output = Option<()>;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Option<()> {
        let Self { jobs, r, n, out } = self;
        for job in jobs {
            let jobs = core::slice::from_ref(job);
            Product { jobs, m: job.m, r, n, first: 0, end: n, out: &mut *out, stride: n, add: false }.run(isa)?;
        }
        Some(())
    }
}

/// Products of `m` rows each, added to what is there, one job after the other. `None` if anything is out of bounds.
pub(crate) fn add_products<W: Weight>(
    tier: Tier,
    [m, r, n]: [usize; 3],
    jobs: &[Job<'_, W>],
    out: &mut [f32],
) -> Option<()> {
    if tier.is_scalar() {
        // Which would rather be small than fast: without tiles that add.
        return jobs.iter().try_for_each(|job| {
            let out = out.get_mut(job.out..)?.get_mut(..m.checked_mul(n)?)?;
            row_by_row(tier, [r, n], job.x, job.slice, out, Epilogue::AddScaled(job.scale))
        });
    }
    tier.run(Product { jobs, m, r, n, first: 0, end: n, out, stride: n, add: true })
}

/// Stands for a width of tiles that is known only when they are run: at most a vector.
const ANY: usize = usize::MAX;

/// Columns `first..end` of products of `m` rows each: element `i * stride + j` from a job's `out` on becomes row i of column
/// `first + j`, times its scale if the dtype has one; or, with `add`, has that times the scale added to it.
struct Product<'s, 'o, W> {
    jobs: &'s [Job<'s, W>],
    m: usize,
    r: usize,
    n: usize,
    first: usize,
    end: usize,
    out: &'o mut [f32],
    stride: usize,
    add: bool,
}

impl<W: Weight> Op for Product<'_, '_, W> {
    /// `None` if anything is out of bounds.
    type Output = Option<()>;

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) -> Option<()> {
        let mut row = 0;
        while row < self.m {
            let (rows, end) = next_rows::<I>(row, self.m, self.end - self.first);
            let mut column = self.vectors(isa, rows, row..end, self.first)?;
            if I::HAS_EIGHTS {
                column = self.few_columns::<I, 8>(isa, row..end, column)?;
            }
            if I::HAS_FOURS {
                column = self.few_columns::<I, 4>(isa, row..end, column)?;
            }
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

impl<W: Weight> Product<'_, '_, W> {
    /// Whole vectors from `column` on, for `rows` rows at a time; returns where they end.
    #[inline(always)]
    fn vectors<I: Isa>(&mut self, isa: I, rows: usize, range: Range<usize>, mut column: usize) -> Option<usize> {
        let widest = I::tile_vectors(rows);
        let least = if I::SMALL { widest * I::LANES } else { I::LANES };
        while self.end - column >= least {
            let left = (self.end - column) / I::LANES;
            let tiles = divide(left, widest);
            let (vectors, count) = match left - tiles * widest {
                // Two tiles of two rather than one of three and one of one.
                1 if widest == 3 && left == 4 => (2, 2),
                1 if widest == 3 && left > 4 => (3, tiles - 1),
                _ if tiles > 0 => (widest, tiles),
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

    /// `C` columns from `column` on, if there are as many, several rows to a vector; returns where they end.
    #[inline(always)]
    fn few_columns<I: Isa, const C: usize>(&mut self, isa: I, rows: Range<usize>, column: usize) -> Option<usize> {
        if self.end - column < C {
            return Some(column);
        }
        if self.add {
            isa.call(FewColumns::<'_, '_, '_, W, C, true> { product: self, rows, column })?;
        } else {
            isa.call(FewColumns::<'_, '_, '_, W, C, false> { product: self, rows, column })?;
        }
        Some(column + C)
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
                    true if I::SMALL => None,
                    false => isa.call(Strip::<'_, '_, '_, W, $M, $V, WIDTH, false> { product: self, rows, columns }),
                    true => isa.call(Strip::<'_, '_, '_, W, $M, $V, WIDTH, true> { product: self, rows, columns }),
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
            (3, 4) if wide && I::MAX_SUMS >= 16 => strip!(3, 4),
            (4, 4) if wide && I::MAX_SUMS >= 16 => strip!(4, 4),
            (6, 4) if wide && I::MAX_SUMS == 24 => strip!(6, 4),
            (3, 3) if wide && I::MAX_SUMS == 12 => strip!(3, 3),
            (4, 3) if wide && I::MAX_SUMS == 12 => strip!(4, 3),
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
struct Strip<'p, 's, 'o, W, const M: usize, const V: usize, const WIDTH: usize, const ADD: bool> {
    product: &'p mut Product<'s, 'o, W>,
    rows: Range<usize>,
    columns: Range<usize>,
}

impl<W: Weight, const M: usize, const V: usize, const WIDTH: usize, const ADD: bool> Op
    for Strip<'_, '_, '_, W, M, V, WIDTH, ADD>
{
    type Output = Option<()>;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Option<()> {
        let jobs = self.product.jobs;
        for job in jobs {
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
) -> Option<()> {
    let (r, n) = (product.r, product.n);
    let mut lhs: [&[f32]; M] = [&[]; M];
    let mut x = job.x.get(row * r..)?;
    for a in 0..M {
        (lhs[a], x) = x.split_at_checked(r)?;
    }
    let mut sums = [[isa.splat(0.0); V]; M];
    let mut slice = job.slice;
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
    if rest > 0 && column <= n && width <= n - column {
        let mut k = 0;
        // A loop that never runs no times: the sums stay in the registers they start in.
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
    let first = job.out + row * product.stride + column - product.first;
    for a in 0..M {
        let out = product.out.get_mut(first + a * product.stride..)?.get_mut(..width)?;
        for v in 0..V {
            let out = out.get_mut(v * I::LANES..)?;
            isa.store(finished::<I, W, ADD>(isa, scale, sums[a][v], out), out);
        }
    }
    Some(())
}

/// `C` columns of a range of rows: 4 or 8.
struct FewColumns<'p, 's, 'o, W, const C: usize, const ADD: bool> {
    product: &'p mut Product<'s, 'o, W>,
    rows: Range<usize>,
    column: usize,
}

impl<W: Weight, const C: usize, const ADD: bool> Op for FewColumns<'_, '_, '_, W, C, ADD> {
    type Output = Option<()>;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Option<()> {
        if C == 8 { self.in_groups(isa.eights()?) } else { self.in_groups(isa.fours()?) }
    }
}

impl<W: Weight, const C: usize, const ADD: bool> FewColumns<'_, '_, '_, W, C, ADD> {
    #[inline(always)]
    fn in_groups<G: Groups>(self, groups: G) -> Option<()> {
        let Self { product, rows, column } = self;
        let mut jobs = product.jobs;
        // Few rows have too few sums to hide a multiply-add's latency: those of several jobs at once.
        if ADD && product.n == C && rows == (0..product.m) && product.m.is_multiple_of(G::ROWS) {
            jobs = match product.m / G::ROWS {
                1 => jobs_of_few_columns::<G, W, C, 8, 1>(groups, product, jobs)?,
                2 => jobs_of_few_columns::<G, W, C, 4, 2>(groups, product, jobs)?,
                4 => jobs_of_few_columns::<G, W, C, 2, 4>(groups, product, jobs)?,
                8 => jobs_of_few_columns::<G, W, C, 1, 8>(groups, product, jobs)?,
                _ => jobs,
            };
        }
        for job in jobs {
            let mut row = rows.start;
            while row < rows.end {
                row += match (rows.end - row).div_ceil(G::ROWS) {
                    7.. => grouped_tile::<G, W, C, 8, ADD>(groups, product, job, row, rows.end, column)?,
                    3.. => grouped_tile::<G, W, C, 4, ADD>(groups, product, job, row, rows.end, column)?,
                    2 => grouped_tile::<G, W, C, 2, ADD>(groups, product, job, row, rows.end, column)?,
                    _ => grouped_tile::<G, W, C, 1, ADD>(groups, product, job, row, rows.end, column)?,
                };
            }
        }
        Some(())
    }
}

/// As many rows from `row` on as `N` vectors hold, as far as `end`; returns how many. Where there are fewer, the last one is
/// computed again.
#[inline(always)]
fn grouped_tile<G: Groups, W: Weight, const C: usize, const N: usize, const ADD: bool>(
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
    match r - k {
        1 => add_grouped::<G, W, C, N, 1>(groups, &lhs, k, slice, n, column, &mut sums)?,
        2 => add_grouped::<G, W, C, N, 2>(groups, &lhs, k, slice, n, column, &mut sums)?,
        3 => add_grouped::<G, W, C, N, 3>(groups, &lhs, k, slice, n, column, &mut sums)?,
        _ => {}
    }
    let narrow = groups.narrow();
    let scale = narrow.splat(job.scale);
    let count = (end - row).min(G::ROWS * N);
    let first = job.out + row * product.stride + column - product.first;
    for a in 0..N {
        for (of, sum) in groups.parts(sums[a]).into_iter().enumerate().take(G::ROWS) {
            if G::ROWS * a + of < count {
                let out = product.out.get_mut(first + (G::ROWS * a + of) * product.stride..)?.get_mut(..C)?;
                narrow.store(finished::<_, W, ADD>(narrow, scale, sum, out), out);
            }
        }
    }
    Some(count)
}

/// Adds the products of the `K <= 4` elements from `k` on of each row, and of as many rows of `slice`, to the sums.
#[inline(always)]
fn add_grouped<G: Groups, W: Weight, const C: usize, const N: usize, const K: usize>(
    groups: G,
    lhs: &[[&[f32]; MAX_GROUP]; N],
    k: usize,
    slice: &[W],
    n: usize,
    column: usize,
    sums: &mut [WideF32<G>; N],
) -> Option<()> {
    let mut rhs = [groups.wide().splat(0.0); K];
    for lane in 0..K {
        rhs[lane] = groups.repeat(W::load(groups.narrow(), slice.get(lane * n + column..)?.get(..C)?));
    }
    for a in 0..N {
        let mut quads = [[0.0; 4]; MAX_GROUP];
        for of in 0..G::ROWS {
            quads[of].get_mut(..K)?.copy_from_slice(lhs[a][of].get(k..k + K)?);
        }
        let quads = groups.quads(&quads);
        let sum = groups.fma_lane::<0>(quads, rhs[0], sums[a]);
        let sum = if K > 1 { groups.fma_lane::<1>(quads, rhs[1 % K], sum) } else { sum };
        let sum = if K > 2 { groups.fma_lane::<2>(quads, rhs[2 % K], sum) } else { sum };
        sums[a] = if K > 3 { groups.fma_lane::<3>(quads, rhs[3 % K], sum) } else { sum };
    }
    Some(())
}

/// Adds the products of `J` jobs at a time, of `C` columns each and rows for `N` vectors; returns the jobs that are left.
#[inline(always)]
fn jobs_of_few_columns<'j, 's, G: Groups, W: Weight, const C: usize, const J: usize, const N: usize>(
    groups: G,
    product: &mut Product<'_, '_, W>,
    mut jobs: &'j [Job<'s, W>],
) -> Option<&'j [Job<'s, W>]> {
    let (r, wide) = (product.r, groups.wide());
    while let Some((group, rest)) = jobs.split_first_chunk::<J>() {
        jobs = rest;
        let mut lhs: [[[&[f32]; MAX_GROUP]; N]; J] = [[[&[]; MAX_GROUP]; N]; J];
        let mut slices: [&[[W; C]]; J] = [&[]; J];
        for j in 0..J {
            let mut x = group[j].x;
            for a in 0..N {
                for of in 0..G::ROWS {
                    (lhs[j][a][of], x) = x.split_at_checked(r)?;
                }
            }
            slices[j] = group[j].slice.as_chunks().0.get(..r)?;
        }
        let mut sums = [[wide.splat(0.0); N]; J];
        let mut k = 0;
        while k + 4 <= r {
            for j in 0..J {
                let slice = slices[j].get(k..k + 4)?.as_flattened();
                add_grouped::<G, W, C, N, 4>(groups, &lhs[j], k, slice, C, 0, &mut sums[j])?;
            }
            k += 4;
        }
        while k < r {
            for j in 0..J {
                let slice = slices[j].get(k..k + 1)?.as_flattened();
                add_grouped::<G, W, C, N, 1>(groups, &lhs[j], k, slice, C, 0, &mut sums[j])?;
            }
            k += 1;
        }
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

/// What becomes of a finished chain.
#[inline(always)]
fn finished<I: Isa, W: Weight, const ADD: bool>(isa: I, scale: I::F32, sum: I::F32, out: &[f32]) -> I::F32 {
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
        let tiles = divide(left, tallest);
        // Two tiles of middling height at the end, rather than one tall and one flat.
        let blocks = if matches!(left - tiles * tallest, 1 | 2) { tiles - 1 } else { tiles };
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

/// `n / tile`, for the heights and widths that tiles have: a division by a number that the compiler cannot see takes as long
/// as a small tile.
#[inline(always)]
fn divide(n: usize, tile: usize) -> usize {
    match tile {
        8 => n / 8,
        6 => n / 6,
        4 => n / 4,
        3 => n / 3,
        2 => n / 2,
        _ => n,
    }
}
