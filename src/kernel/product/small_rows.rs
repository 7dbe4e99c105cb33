//! Rows of a tensor train, each multiplied out by itself. This is for tables whose rows take few
//! multiply-adds: finding the lookups that share some of them would take longer.
//!
//! A group of rows takes each step together, so that the sizes of the step are read once for all
//! rows.

use super::{Job, Product, grouped, tile};
use crate::{
    dtype::{Weight, with_core_elements},
    isa::{Groups, Isa, Op, Operands, OutputRows, Tier},
    kernel::{Consistent, Dims, GatherRows},
    repr::{SmallStep, TtCores},
    shape::MAX_CORES,
};

/// A row, times `weight`, whose elements go to the output from `out` on. Only a row that is added
/// to the output has a weight other than 1.
#[derive(Clone, Copy)]
pub(crate) struct SmallRow {
    pub(crate) digits: [u32; MAX_CORES],
    pub(crate) out: usize,
    pub(crate) weight: f32,
}

impl SmallRow {
    /// Fills an array before its rows are known.
    pub(crate) const EMPTY: Self = Self { digits: [0; MAX_CORES], out: 0, weight: 0.0 };
}

/// Products that one call computes, if no tile has the size of a product.
const JOBS: usize = 8;

/// Adds rows to the output, one after another, or, without `add`, writes them to it. `partials` has
/// room for the partial products of all rows. The table has small rows. `None` if one of these
/// conditions does not hold, if anything is out of bounds, or on the scalar tier.
pub(crate) fn multiply_rows(
    tier: Tier,
    tt: &TtCores<'_>,
    rows: &[SmallRow],
    add: bool,
    partials: &mut [f32],
    out: &mut [f32],
) -> Consistent {
    multiply(tier, tt, rows, add, partials, out)
}

/// Writes one row to the output, as [`multiply_rows`] does without `add`. It is inlined, because a
/// call would be a large part of the time for a single row.
#[inline(always)]
pub(crate) fn write_small_row(
    tier: Tier,
    tt: &TtCores<'_>,
    row: u64,
    partials: &mut [f32],
    out: &mut [f32],
) -> Consistent {
    let mut rows = [SmallRow { weight: 1.0, ..SmallRow::EMPTY }];
    let [small] = &mut rows;
    tt.shape.write_digits(row, &mut small.digits);
    multiply(tier, tt, &rows, false, partials, out)
}

#[inline(always)]
fn multiply(
    tier: Tier,
    tt: &TtCores<'_>,
    rows: &[SmallRow],
    add: bool,
    partials: &mut [f32],
    out: &mut [f32],
) -> Consistent {
    with_core_elements!(tt.cores.first()?.slices, first => {
        tier.run_vector(SmallRows { tt, first, rows, add, partials, out }).flatten()
    })?
}

struct SmallRows<'s, 'w, 'o, W> {
    tt: &'s TtCores<'s>,
    /// The slices of core 0.
    first: &'s [W],
    rows: &'s [SmallRow],
    add: bool,
    partials: &'w mut [f32],
    out: &'o mut [f32],
}

impl<W: Weight> Op for SmallRows<'_, '_, '_, W> {
    type Output = Consistent;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Consistent {
        let Self { tt, first, rows, add, partials, out } = self;
        let len = rows.len() * tt.shape.partial_len();
        let (low, high) = partials.split_at_mut_checked(len)?;
        let num_cores = tt.shape.num_cores();
        if W::elements(first).as_f32().is_none() {
            let scales = tt.cores.first()?.scales;
            let digits = rows.iter().map(|row| row.digits[0] as usize);
            let len = tt.shape.slice_len(0);
            GatherRows { stored: first, scales, len, rows: digits, out: &mut *low }.run(isa)?;
        }
        for k in 1..num_cores {
            let (core, is_last) = (tt.cores.get(k)?, k + 1 == num_cores);
            // The steps read and write in turn.
            let (x, next) = if k % 2 == 1 {
                (&*low, &mut *high)
            } else {
                (&*high, &mut *low)
            };
            // f32 slices are multiplied where they are.
            let stored = if k == 1 { W::elements(first).as_f32() } else { None };
            let mut step = Step {
                rows,
                k,
                size: *tt.steps.get(k - 1)?,
                x: stored.unwrap_or(x),
                x_by_digit: stored.is_some(),
                slices: W::units(core.slices)?,
                scales: core.scales,
                out: if is_last { &mut *out } else { next },
                is_last,
                add: add && is_last,
            };
            step.run(isa)?;
        }
        Some(())
    }
}

/// Step k of some rows.
struct Step<'s, 'o, W> {
    rows: &'s [SmallRow],
    k: usize,
    size: SmallStep,
    /// The left operands: one for each row, in their order, or one for each digit of core 0.
    x: &'s [f32],
    x_by_digit: bool,
    slices: &'s [W],
    scales: &'s [f32],
    /// The products, one for each row, in their order; or, in the last step, the output.
    out: &'o mut [f32],
    is_last: bool,
    /// Whether the products are added to the output.
    add: bool,
}

impl<'s, W: Weight> Step<'s, '_, W> {
    /// Runs the step in a tile of the size of the product, if there is one. Because the sizes are
    /// then constants, a row takes half as many instructions.
    #[inline(always)]
    fn run<I: Isa>(&mut self, isa: I) -> Consistent {
        macro_rules! in_tiles {
            ($isa:expr, $Isa:ty: $($M:literal x $V:literal)+) => {
                $(
                    if self.size.class == const { SmallStep::size_class($M, $V * <$Isa>::LANES) } {
                        return InTiles::<'_, '_, '_, W, $M, $V>(self).run($isa);
                    }
                )+
            };
        }
        in_tiles!(isa, I: 1 x 1  1 x 2  1 x 4  2 x 1  2 x 2  2 x 4  4 x 1  4 x 2);
        // Constant conditions, so that no code is generated for tiles that a tier never runs.
        if const { I::QUADS } {
            // There are registers for sixteen sums of four lanes.
            in_tiles!(isa, I: 2 x 8  4 x 4);
        }
        // Four rows fill a vector of sixteen lanes.
        if const { I::LANES == 16 }
            && self.size.class == const { SmallStep::size_class(4, 4) }
            && let Some(fours) = isa.fours()
        {
            return self.run_fours(fours);
        }
        if const { I::LANES > 8 } {
            in_tiles!(isa.half(), I::Half: 1 x 1  2 x 1  4 x 1);
        }
        if const { I::LANES > 4 } {
            in_tiles!(isa.narrow(), I::Narrow: 1 x 1  2 x 1  4 x 1);
        }
        self.run_products(isa)
    }

    /// Runs the step with products of four rows of four columns, each of which fills a vector.
    #[inline(always)]
    fn run_fours<G: Groups>(&mut self, fours: G) -> Consistent {
        let dims = Dims { m: 4, r: self.size.r.into(), n: 4 };
        for (at, row) in self.rows.iter().enumerate() {
            let (x, slice, digit) = self.operands(dims, at, row)?;
            let operands = Operands::<W, 4>::new([(x, slice)], [dims.r, dims.n], 0, dims.n)?;
            let mut sums = [[fours.wide().splat(0.0)]];
            grouped::multiply(fours, operands, &mut sums);
            let (out, scale) = self.end(dims.m * dims.n, at, row, digit)?;
            let out = OutputRows::new(self.out.get_mut(out..)?, 16, 16)?;
            tile::store::<_, W, 1, 1>(fours.wide(), scale, self.add, &sums, out);
        }
        Some(())
    }

    /// The matrices that the step of row `at` multiplies, and the digit of the right one.
    #[inline(always)]
    fn operands(
        &self,
        Dims { m, r, n }: Dims,
        at: usize,
        row: &SmallRow,
    ) -> Option<(&'s [f32], &'s [W], usize)> {
        let digit = *row.digits.get(self.k)? as usize;
        let x_at = if self.x_by_digit { row.digits[0] as usize } else { at };
        let x = self.x.get(x_at.wrapping_mul(m * r)..)?;
        Some((x, self.slices.get(digit.wrapping_mul(r * n)..)?, digit))
    }

    /// Where the product of row `at`, of `len` elements, goes, and its factor. Asked for after the
    /// multiplication, which needs the registers.
    #[inline(always)]
    fn end(&self, len: usize, at: usize, row: &SmallRow, digit: usize) -> Option<(usize, f32)> {
        let scale = if W::SCALED { *self.scales.get(digit)? } else { 1.0 };
        let out = if self.is_last { row.out } else { at * len };
        Some((out, if self.add { scale * row.weight } else { scale }))
    }

    /// Runs the step with products of any size.
    #[inline(always)]
    fn run_products<I: Isa>(&mut self, isa: I) -> Consistent {
        let SmallStep { m, r, n, .. } = self.size;
        let dims = Dims { m: m.into(), r: r.into(), n: n.into() };
        let mut jobs = [Job::EMPTY; JOBS];
        for (rows, first) in self.rows.chunks(JOBS).zip((0..).step_by(JOBS)) {
            for ((to, row), at) in jobs.iter_mut().zip(rows).zip(first..) {
                let (x, slice, digit) = self.operands(dims, at, row)?;
                let (out, scale) = self.end(dims.m * dims.n, at, row, digit)?;
                *to = Job { m: dims.m, x, slice, out, scale };
            }
            let jobs = jobs.get(..rows.len())?;
            isa.call(Product::whole(jobs, dims, &mut *self.out, self.add))?;
        }
        Some(())
    }
}

/// A step whose products each fill a tile of `M` rows and `V` vectors.
struct InTiles<'a, 's, 'o, W, const M: usize, const V: usize>(&'a mut Step<'s, 'o, W>);

impl<W: Weight, const M: usize, const V: usize> Op for InTiles<'_, '_, '_, W, M, V> {
    type Output = Consistent;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Consistent {
        let step = self.0;
        let dims = Dims { m: M, r: step.size.r.into(), n: V * I::LANES };
        for (at, row) in step.rows.iter().enumerate() {
            let (x, slice, digit) = step.operands(dims, at, row)?;
            let operands = Operands::<W, M>::new([(x, slice)], [dims.r, dims.n], 0, dims.n)?;
            let mut sums = [[[isa.splat(0.0); V]; M]];
            tile::multiply(isa, operands, &mut sums);
            let (out, scale) = step.end(dims.m * dims.n, at, row, digit)?;
            let out = OutputRows::new(step.out.get_mut(out..)?, dims.n, dims.n)?;
            tile::store::<I, W, M, V>(isa, scale, step.add, &sums[0], out);
        }
        Some(())
    }
}
