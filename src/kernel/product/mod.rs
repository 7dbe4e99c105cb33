//! The matrix product `X . G`, a register tile at a time.
//!
//! Each element of the product is one chain `s <- s + x_k * g_k`, k ascending from 0, whatever tile
//! it falls in: its bits depend neither on the number of rows nor on its neighbours.
//!
//! # How large a tile is
//!
//! A tile of M rows and V vectors keeps M V sums in registers. For each k it loads V vectors of G
//! and M elements of X, and does M V multiply-adds.
//!
//! - A multiply-add has a latency of 4 cycles, and a core starts 2 of them in a cycle (Zen,
//!   Skylake, Cortex-A76). A sum cannot go on before its last multiply-add is done, so 4 x 2 = 8
//!   sums must be in flight to keep the core busy.
//! - A core also loads 2 operands in a cycle, so M + V should not exceed M V: a flat or a narrow
//!   tile waits for loads. The more sums a tile has, the fewer loads each multiply-add needs.
//! - Sums, V vectors of G and the broadcast elements of X (one; on NEON four of each row, since a
//!   broadcast from memory would take the multiply-add's pipes) must fit the registers: 16 with
//!   AVX2, 32 with AVX-512 and NEON.
//!
//! Vectors of the widest tile by its rows, and its sums ([`Isa::TILES`]):
//!
//! | rows    | 1      | 2     | 3      | 4      | 6      | 8     |
//! |---------|--------|-------|--------|--------|--------|-------|
//! | AVX-512 | 8 (8)  | 4 (8) | 4 (12) | 4 (16) | 4 (24) | 1 (8) |
//! | AVX2    | 8 (8)  | 4 (8) | 3 (9)  | 3 (12) | 2 (12) | 1 (8) |
//! | NEON    | 8 (8)  | 4 (8) | 4 (12) | 4 (16) | 1 (6)  | 1 (8) |
//!
//! AVX2 has smaller tiles for slices of f16 ([`Isa::TILES_F16`]): 2 vectors of 4 rows, 1 of 6.
//!
//! Where fewer columns are left, narrower tiles of the same rows take them. Tiles of 8 rows are for
//! products of a single vector, where the height alone has to make up the 8 sums.
//!
//! Other numbers of rows are divided so that no tile is flat ([`next_rows`]): 5 rows are 3 + 2 and
//! not 4 + 1, 7 are 4 + 3 and not 6 + 1, 8 are 4 + 4 and not 6 + 2, 9 are 6 + 3. With more rows,
//! tiles of the tallest height are followed by such a pair.
//!
//! Products of few rows *and* few columns have too few sums whatever the tile: `multi_job` and
//! `grouped` compute several products, or several rows of a vector, side by side.

// Tiles are arrays of constant size, indexed by loops that unroll; slices, whose lengths the
// compiler cannot see, are not.
#![allow(clippy::indexing_slicing, clippy::needless_range_loop)]

mod grouped;
mod multi_job;
mod scalar;
mod small_rows;
mod tile;

use super::Epilogue;
use crate::{
    dtype::{Elements, Weight, with_core_elements},
    isa::{Isa, Op, Tier},
    kernel::{Consistent, Dims},
};
use core::ops::Range;
use grouped::{FewColumns, GroupedJobs};
use multi_job::MultiJob;
pub(super) use scalar::{Start, product as scalar_product};
pub(crate) use small_rows::{SmallRow, multiply_rows, write_small_row};
use tile::Strip;

/// `out[m x n] <- x[m x r] . slice[r x n]`, all row-major: one step of a tensor-train chain, or a
/// linear layer whose weights are stored inputs x outputs. i8 elements are not scaled: scales
/// belong to the epilogue.
///
/// `None`, with nothing done, if the lengths do not fit `Dims`, if r is 0, or for i4.
pub fn chain_step(
    tier: Tier,
    Dims { m, r, n }: Dims,
    x: &[f32],
    slice: Elements<'_>,
    out: &mut [f32],
    epilogue: Epilogue<'_>,
) -> Consistent {
    let fits = m.checked_mul(r)? == x.len()
        && r.checked_mul(n)? == slice.len()
        && m.checked_mul(n)? == out.len();
    if !(fits && epilogue.fits(n) && r > 0 && slice.dtype().suits_cores()) {
        return None;
    }
    if let Some(isa) = tier.scalar() {
        return scalar_product(
            isa,
            Dims { m, r, n },
            x,
            slice,
            Start::With(0.0),
            (out, n),
            epilogue,
        );
    }
    with_core_elements!(slice, slice => step(tier, Dims { m, r, n }, x, slice, out, epilogue))?
}

fn step<W: Weight>(
    tier: Tier,
    Dims { m, r, n }: Dims,
    x: &[f32],
    slice: &[W],
    out: &mut [f32],
    epilogue: Epilogue<'_>,
) -> Consistent {
    if m == 0 || n == 0 {
        return Some(());
    }
    let store = |scale, out| {
        let jobs = &[Job { m, x, slice, out: 0, scale }];
        tier.run_vector(Product::whole(jobs, Dims { m, r, n }, out, false)).flatten()
    };
    match epilogue {
        Epilogue::Store => store(1.0, out),
        Epilogue::StoreScaled(scale) if W::SCALED => store(scale, out),
        Epilogue::MaxScaled(_) => row_by_row(tier, r, n, x, slice, out, epilogue),
        Epilogue::AddScaled(scale) => {
            add_products(tier, Dims { m, r, n }, &[Job { m, x, slice, out: 0, scale }], out)
        }
        Epilogue::StoreScaled(_) | Epilogue::Bias { .. } => {
            store(1.0, &mut *out)?;
            out.chunks_exact_mut(n.max(1)).for_each(|row| epilogue.finish(tier, row));
            Some(())
        }
    }
}

/// A product that is combined with the output in a way that needs each element's final value: the
/// output must stay until then, so each row is computed in a buffer.
fn row_by_row<W: Weight>(
    tier: Tier,
    r: usize,
    n: usize,
    x: &[f32],
    slice: &[W],
    out: &mut [f32],
    epilogue: Epilogue<'_>,
) -> Consistent {
    for (row, out) in out.chunks_exact_mut(n.max(1)).enumerate() {
        let jobs = &[Job { m: 1, x: x.get(row * r..)?.get(..r)?, slice, out: 0, scale: 1.0 }];
        epilogue.apply(tier, 0, out, |columns, out| {
            let (first, end, stride) = (columns.start, columns.end, out.len());
            let whole = Product::whole(jobs, Dims { m: 1, r, n }, out, false);
            tier.run_vector(Product { first, end, stride, ..whole }).flatten()
        })?;
    }
    Some(())
}

/// One product of a list: `x[m x r] . slice[r x n]`, whose elements go to the output from `out` on.
#[derive(Clone, Copy)]
pub(crate) struct Job<'s, W> {
    pub(crate) m: usize,
    pub(crate) x: &'s [f32],
    pub(crate) slice: &'s [W],
    pub(crate) out: usize,
    /// A factor of the product, if the product is added or the dtype has scales.
    pub(crate) scale: f32,
}

impl<W> Job<'_, W> {
    /// No rows.
    pub(crate) const EMPTY: Self = Self { m: 0, x: &[], slice: &[], out: 0, scale: 1.0 };
}

/// The matrices of jobs of the same size.
#[inline(always)]
fn operands<'s, W, const J: usize>(jobs: &[Job<'s, W>; J]) -> [(&'s [f32], &'s [W]); J] {
    core::array::from_fn(|j| (jobs[j].x, jobs[j].slice))
}

/// Products of any numbers of rows, which overwrite the output. `None` if anything is out of
/// bounds.
pub(crate) fn store_products<W: Weight>(
    tier: Tier,
    r: usize,
    n: usize,
    jobs: &[Job<'_, W>],
    out: &mut [f32],
) -> Consistent {
    if let Some(isa) = tier.scalar() {
        return scalar::products(isa, r, n, jobs, out, |scale| {
            Epilogue::Store.times(if W::SCALED { scale } else { 1.0 })
        });
    }
    tier.run_vector(StoreProducts { jobs, r, n, out }).flatten()
}

struct StoreProducts<'s, 'o, W> {
    jobs: &'s [Job<'s, W>],
    r: usize,
    n: usize,
    out: &'o mut [f32],
}

impl<W: Weight> Op for StoreProducts<'_, '_, W> {
    type Output = Consistent;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Consistent {
        let Self { jobs, r, n, out } = self;
        for job in jobs {
            let jobs = core::slice::from_ref(job);
            Product::whole(jobs, Dims { m: job.m, r, n }, &mut *out, false).run(isa)?;
        }
        Some(())
    }
}

/// `x[m x r] . slice[r x n]`, whose row i overwrites the output at `i * stride`. `None` if anything
/// is out of bounds.
pub(crate) fn store_rows(
    tier: Tier,
    Dims { m, r, n }: Dims,
    x: &[f32],
    slice: Elements<'_>,
    out: &mut [f32],
    stride: usize,
) -> Consistent {
    if let Some(isa) = tier.scalar() {
        return scalar_product(
            isa,
            Dims { m, r, n },
            x,
            slice,
            Start::With(0.0),
            (out, stride),
            Epilogue::Store,
        );
    }
    with_core_elements!(slice, slice => {
        let jobs = &[Job { m, x, slice, out: 0, scale: 1.0 }];
        let whole = Product::whole(jobs, Dims { m, r, n }, out, false);
        tier.run_vector(Product { stride, ..whole }).flatten()
    })?
}

/// `out + x[m x r] . slice[r x n]`, ended by `epilogue`: continues the chains of the product in
/// `out`, as if the columns of that product's left operand came before those of `x`, and the rows
/// of its right operand before those of `slice`. `None` if anything is out of bounds.
pub(crate) fn resume_rows(
    tier: Tier,
    Dims { m, r, n }: Dims,
    x: &[f32],
    slice: Elements<'_>,
    out: &mut [f32],
    epilogue: Epilogue<'_>,
) -> Consistent {
    if let Some(isa) = tier.scalar() {
        return scalar_product(isa, Dims { m, r, n }, x, slice, Start::Resume, (out, n), epilogue);
    }
    if r > 0 {
        with_core_elements!(slice, slice => {
            let jobs = &[Job { m, x, slice, out: 0, scale: 1.0 }];
            let product = Product::whole(jobs, Dims { m, r, n }, &mut *out, false);
            tier.run_vector(Product { resume: true, ..product }).flatten()
        })??;
    }
    out.chunks_exact_mut(n.max(1)).for_each(|row| epilogue.finish(tier, row));
    Some(())
}

/// Products of `m` rows each, which are added to the output, one job after another. `None` if
/// anything is out of bounds.
pub(crate) fn add_products<W: Weight>(
    tier: Tier,
    Dims { m, r, n }: Dims,
    jobs: &[Job<'_, W>],
    out: &mut [f32],
) -> Consistent {
    if let Some(isa) = tier.scalar() {
        return scalar::products(isa, r, n, jobs, out, Epilogue::AddScaled);
    }
    tier.run_vector(Product::whole(jobs, Dims { m, r, n }, out, true)).flatten()
}

/// Columns `first..end` of products of `m` rows each. The element of row i and column `first + j`
/// goes to `out[job.out + i * stride + j]`, times the job's scale if the dtype has scales. With
/// `add`, the element times the scale is added instead.
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
    /// Whether the sums begin with the elements of the output.
    resume: bool,
}

impl<W: Weight> Op for Product<'_, '_, W> {
    /// `None` if anything is out of bounds.
    type Output = Consistent;

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) -> Consistent {
        if self.add {
            self.jobs = self.several_at_once(isa)?;
        }
        let mut row = 0;
        while row < self.m && !self.jobs.is_empty() {
            let (rows, end) = next_rows::<I, W>(row, self.m, self.end - self.first);
            let mut column = self.vectors(isa, rows, row..end, self.first)?;
            // Computing four columns takes less time than computing one, two or three. Some are
            // then computed twice, with the same bits.
            let again = (self.end - column).next_multiple_of(4) - (self.end - column);
            if !self.add && !self.resume && column - self.first >= again {
                column -= again;
            }
            // Groups of rows cannot begin with the sums in the output.
            if !self.resume && isa.eights().is_some() {
                column = self.few_columns::<I, 8>(isa, row..end, column)?;
            }
            if !self.resume && isa.fours().is_some() {
                // Vectors of half as many rows give twice as many sums, which few rows need.
                column = if isa.half().fours().is_some() && end - row < 32 {
                    self.few_columns::<I::Half, 4>(isa.half(), row..end, column)?
                } else {
                    self.few_columns::<I, 4>(isa, row..end, column)?
                };
            }
            while self.end - column >= 4 {
                self.partial::<I, 4>(isa, row..end, column)?;
                column += 4;
            }
            match self.end - column {
                0 => {}
                1 => self.partial::<I, 1>(isa, row..end, column)?,
                2 => self.partial::<I, 2>(isa, row..end, column)?,
                _ => self.partial::<I, 3>(isa, row..end, column)?,
            }
            row = end;
        }
        Some(())
    }
}

impl<'s, 'o, W: Weight> Product<'s, 'o, W> {
    /// All columns of the product. Only such a product may add: computing several jobs at once
    /// relies on rows that lie end to end.
    #[inline(always)]
    fn whole(
        jobs: &'s [Job<'s, W>],
        Dims { m, r, n }: Dims,
        out: &'o mut [f32],
        add: bool,
    ) -> Self {
        Self { jobs, m, r, n, first: 0, end: n, out, stride: n, add, resume: false }
    }

    /// Computes jobs of few rows and columns several at a time: a single one has too few sums to
    /// hide a multiply-add's latency. Returns the jobs that are left.
    #[inline(always)]
    fn several_at_once<I: Isa>(&mut self, isa: I) -> Option<&'s [Job<'s, W>]> {
        macro_rules! multi_job {
            ($M:literal, $V:literal, $J:literal) => {
                isa.call(MultiJob::<'_, '_, '_, W, $M, $V, $J> { product: self })
            };
        }
        if isa.fours().is_some() && self.n == 4 {
            self.jobs = isa.call(GroupedJobs::<'_, '_, '_, W, 4> { product: &mut *self })?;
            if isa.half().fours().is_some() {
                self.jobs =
                    isa.half().call(GroupedJobs::<'_, '_, '_, W, 4> { product: &mut *self })?;
            }
            return Some(self.jobs);
        }
        if isa.eights().is_some() && self.n == 8 {
            return isa.call(GroupedJobs::<'_, '_, '_, W, 8> { product: self });
        }
        if I::QUADS || !self.n.is_multiple_of(I::LANES) {
            return Some(self.jobs);
        }
        // Eight sums: more would need more addresses than there are registers.
        match (self.m, self.n / I::LANES) {
            (1, 1) => multi_job!(1, 1, 8),
            (2, 1) => multi_job!(2, 1, 4),
            (4, 1) => multi_job!(4, 1, 2),
            (1, 2) => multi_job!(1, 2, 4),
            (2, 2) => multi_job!(2, 2, 2),
            _ => Some(self.jobs),
        }
    }

    /// Whole vectors from `column` on, for `rows` rows at a time; returns where they end.
    #[inline(always)]
    fn vectors<I: Isa>(
        &mut self,
        isa: I,
        rows: usize,
        range: Range<usize>,
        mut column: usize,
    ) -> Option<usize> {
        let widest = tile_vectors::<I, W>(rows);
        while self.end - column >= I::LANES {
            let left = (self.end - column) / I::LANES;
            let tiles = divide(left, widest);
            let (vectors, count) = match left - tiles * widest {
                // Two tiles of two vectors rather than one of three and one of one.
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

    /// `WIDTH` columns from `column` on, at most four.
    #[inline(always)]
    fn partial<I: Isa, const WIDTH: usize>(
        &mut self,
        isa: I,
        range: Range<usize>,
        column: usize,
    ) -> Consistent {
        let fours = range.start + range.len() / 4 * 4;
        for (rows, range) in [(4, range.start..fours), (1, fours..range.end)] {
            self.strip::<_, WIDTH>(isa.narrow(), rows, 1, range, column..column + WIDTH)?;
        }
        Some(())
    }

    /// `C` columns from `column` on, if that many are left, with several rows per vector. Returns
    /// where they end.
    #[inline(always)]
    fn few_columns<I: Isa, const C: usize>(
        &mut self,
        isa: I,
        rows: Range<usize>,
        column: usize,
    ) -> Option<usize> {
        if self.end - column < C {
            return Some(column);
        }
        isa.call(FewColumns::<'_, '_, '_, W, C> { product: self, rows, column })?;
        Some(column + C)
    }

    /// The given rows and columns in tiles of `height x vectors`, or of `WIDTH` columns unless that
    /// is 0.
    #[inline(always)]
    fn strip<I: Isa, const WIDTH: usize>(
        &mut self,
        isa: I,
        height: usize,
        vectors: usize,
        rows: Range<usize>,
        columns: Range<usize>,
    ) -> Consistent {
        macro_rules! tiles {
            ($($M:literal x $V:literal)+) => {
                match (height, vectors) {
                    // A constant condition, so that no code is generated for the other tiles.
                    $(
                        ($M, $V) if const { is_used(tiles::<I, W>(), [$M, $V], WIDTH) } => {
                            let product = self;
                            isa.call(Strip::<'_, '_, '_, W, $M, $V, WIDTH> {
                                product, rows, columns,
                            })
                        }
                    )+
                    _ => None,
                }
            };
        }
        tiles! {
            1 x 8  1 x 4  1 x 2  1 x 1
            2 x 4  2 x 2  2 x 1
            3 x 4  3 x 3  3 x 2  3 x 1
            4 x 4  4 x 3  4 x 2  4 x 1
            6 x 4  6 x 2  6 x 1
            8 x 1
        }
    }
}

/// The tiles of a tier for right operands of a type.
const fn tiles<I: Isa, W: Weight>() -> &'static [[usize; 2]] {
    if W::IS_F16 { I::TILES_F16 } else { I::TILES }
}

/// Whether a tier with these `tiles` ever runs a tile of this size. With `width`, for the last
/// columns of a product, tiles have one vector, and four rows or one.
const fn is_used(tiles: &[[usize; 2]], [rows, vectors]: [usize; 2], width: usize) -> bool {
    let widest = widest(tiles, rows);
    let is_for_ends = vectors == 1 && (rows == 4 || rows == 1);
    (width == 0 || is_for_ends)
        && (vectors == widest || vectors < widest && vectors.is_power_of_two())
}

/// How many vectors wide a tier's `tiles` of so many rows are; 0 if it has none.
pub(super) const fn widest(tiles: &[[usize; 2]], rows: usize) -> usize {
    match tiles {
        [] => 0,
        [[height, vectors], ..] if *height == rows => *vectors,
        [_, others @ ..] => widest(others, rows),
    }
}

/// The most rows of a tier's `tiles` of at least `vectors` vectors.
pub(super) const fn tallest(tiles: &[[usize; 2]], vectors: usize) -> usize {
    match tiles {
        [] => 0,
        [[rows, width], others @ ..] => {
            let other_rows = tallest(others, vectors);
            if *width >= vectors && *rows > other_rows {
                *rows
            } else {
                other_rows
            }
        }
    }
}

/// The widest tile of so many rows, for the heights that [`next_rows`] gives.
#[inline(always)]
fn tile_vectors<I: Isa, W: Weight>(rows: usize) -> usize {
    match rows {
        1 => const { widest(tiles::<I, W>(), 1) },
        2 => const { widest(tiles::<I, W>(), 2) },
        3 => const { widest(tiles::<I, W>(), 3) },
        4 => const { widest(tiles::<I, W>(), 4) },
        6 => const { widest(tiles::<I, W>(), 6) },
        _ => const { widest(tiles::<I, W>(), 8) },
    }
}

/// How many rows each of the next tiles has, and where the last of them ends, as the module's
/// documentation derives it. `columns` are those of the product.
#[inline(always)]
fn next_rows<I: Isa, W: Weight>(row: usize, m: usize, columns: usize) -> (usize, usize) {
    let left = m - row;
    // Tiles of one vector may be taller.
    let tallest = if columns < 2 * I::LANES {
        const { tallest(tiles::<I, W>(), 1) }
    } else {
        const { tallest(tiles::<I, W>(), 2) }
    };
    if left > tallest + 2 || left == tallest {
        let tiles = divide(left, tallest);
        // Rather than leave one or two rows, give up a tall tile: two of middling height follow.
        let blocks = if matches!(left - tiles * tallest, 1 | 2) {
            tiles - 1
        } else {
            tiles
        };
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

/// `n / tile`, for the heights and widths that tiles have. A division by a number that the compiler
/// does not know would take as long as a small tile.
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
