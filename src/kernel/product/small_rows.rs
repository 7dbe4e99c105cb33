//! Rows of a tensor train, each multiplied out by itself. This is for tables whose rows take few
//! multiply-adds: finding the lookups that share some of them would take longer.
//!
//! A group of rows takes each step together, so that the sizes of the step are read once for all
//! rows.

use super::{Job, Product, tile::multiply};
use crate::{
    dtype::{Weight, with_core_elements},
    isa::{Isa, Op, Operands, Tier},
    kernel::{Consistent, Dims, GatherRows},
    repr::TtCores,
    shape::MAX_CORES,
};

/// A row, times `weight`, whose elements go to the output from `out` on.
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
/// room for the partial products of all rows. All cores have the same dtype, and in each step the
/// number of columns of a product is a multiple of four. `None` if one of these conditions does not
/// hold, if anything is out of bounds, or on the scalar tier.
pub(crate) fn multiply_rows(
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
        let shape = &tt.shape;
        let last = shape.num_cores().checked_sub(1)?;
        let (mut x, mut next) = partials.split_at_mut_checked(rows.len() * shape.partial_len())?;
        let mut m = shape.column_factor(0);
        // f32 slices are multiplied where they are.
        let stored = W::elements(first).as_f32();
        if stored.is_none() {
            let scales = tt.cores.first()?.scales;
            let digits = rows.iter().map(|row| row.digits[0] as usize);
            let len = shape.slice_len(0);
            GatherRows { stored: first, scales, len, rows: digits, out: &mut *x }.run(isa)?;
        }
        for k in 1..=last {
            let core = tt.cores.get(k)?;
            let n = shape.column_factor(k) * shape.rank(k + 1);
            let is_last = k == last;
            Step {
                rows,
                k,
                dims: Dims { m, r: shape.rank(k), n },
                x: match stored {
                    Some(stored) if k == 1 => stored,
                    _ => &*x,
                },
                x_by_digit: k == 1 && stored.is_some(),
                slices: W::units(core.slices)?,
                scales: core.scales,
                out: if is_last { &mut *out } else { &mut *next },
                is_last,
                add: add && is_last,
            }
            .run(isa)?;
            core::mem::swap(&mut x, &mut next);
            m *= shape.column_factor(k);
        }
        Some(())
    }
}

/// Step k of some rows.
struct Step<'s, 'o, W> {
    rows: &'s [SmallRow],
    k: usize,
    dims: Dims,
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
    fn run<I: Isa>(self, isa: I) -> Consistent {
        let Dims { m, n, .. } = self.dims;
        if n % I::LANES == 0 {
            match (m, n / I::LANES) {
                (1, 1) => return self.in_tiles::<_, 1, 1>(isa),
                (1, 2) => return self.in_tiles::<_, 1, 2>(isa),
                (1, 4) => return self.in_tiles::<_, 1, 4>(isa),
                (2, 1) => return self.in_tiles::<_, 2, 1>(isa),
                (2, 2) => return self.in_tiles::<_, 2, 2>(isa),
                (2, 4) => return self.in_tiles::<_, 2, 4>(isa),
                (4, 1) => return self.in_tiles::<_, 4, 1>(isa),
                (4, 2) => return self.in_tiles::<_, 4, 2>(isa),
                // Where there are registers for sixteen sums of four lanes.
                (2, 8) if I::QUADS => return self.in_tiles::<_, 2, 8>(isa),
                (4, 4) if I::QUADS => return self.in_tiles::<_, 4, 4>(isa),
                _ => {}
            }
        }
        if I::LANES > 8 && n == 8 {
            match m {
                1 => return self.in_tiles::<_, 1, 1>(isa.half()),
                2 => return self.in_tiles::<_, 2, 1>(isa.half()),
                4 => return self.in_tiles::<_, 4, 1>(isa.half()),
                _ => {}
            }
        }
        if I::LANES > 4 && n == 4 {
            match m {
                1 => return self.in_tiles::<_, 1, 1>(isa.narrow()),
                2 => return self.in_tiles::<_, 2, 1>(isa.narrow()),
                4 => return self.in_tiles::<_, 4, 1>(isa.narrow()),
                _ => {}
            }
        }
        self.run_products(isa)
    }

    /// What row `at` is multiplied by, and where its product goes.
    #[inline(always)]
    fn job(&self, at: usize, row: &SmallRow) -> Option<Job<'s, W>> {
        let Dims { m, r, n } = self.dims;
        let digit = *row.digits.get(self.k)? as usize;
        let x_at = if self.x_by_digit { row.digits[0] as usize } else { at };
        let scale = if W::SCALED { *self.scales.get(digit)? } else { 1.0 };
        let (out, scale) = if self.is_last {
            (row.out, scale * row.weight)
        } else {
            (at * m * n, scale)
        };
        let x = self.x.get(x_at.wrapping_mul(m * r)..)?;
        let slice = self.slices.get(digit.wrapping_mul(r * n)..)?;
        Some(Job { m, x, slice, out, scale })
    }

    /// Runs the step in tiles of `M` rows and `V` vectors, the size of a product.
    #[inline(always)]
    fn in_tiles<I: Isa, const M: usize, const V: usize>(mut self, isa: I) -> Consistent {
        let n = V * I::LANES;
        self.dims = Dims { m: M, n, ..self.dims };
        for (at, row) in self.rows.iter().enumerate() {
            let Job { x, slice, out, scale, .. } = self.job(at, row)?;
            let operands = Operands::<W, M>::new(x, slice, [self.dims.r, n], 0, n)?;
            let mut sums = [[isa.splat(0.0); V]; M];
            multiply(isa, operands, &mut sums);
            let mut out = self.out.get_mut(out..)?.get_mut(..M * n)?;
            let scale = isa.splat(scale);
            for sum in sums.as_flattened() {
                let (these, after) = out.split_at_mut_checked(I::LANES)?;
                out = after;
                // The sum of a product and -0.0 is the product.
                let base = if self.add { isa.load_f32(these) } else { isa.splat(-0.0) };
                isa.store(isa.fma(scale, *sum, base), these);
            }
        }
        Some(())
    }

    /// Runs the step with products of any size.
    #[inline(always)]
    fn run_products<I: Isa>(self, isa: I) -> Consistent {
        let mut jobs = [Job::EMPTY; JOBS];
        for (rows, first) in self.rows.chunks(JOBS).zip((0..).step_by(JOBS)) {
            for ((to, row), at) in jobs.iter_mut().zip(rows).zip(first..) {
                *to = self.job(at, row)?;
            }
            let jobs = jobs.get(..rows.len())?;
            isa.call(Product::whole(jobs, self.dims, &mut *self.out, self.add))?;
        }
        Some(())
    }
}
