//! Rows of a tensor train, each multiplied out by itself: for tables whose rows take so few
//! multiply-adds that finding the lookups which share some of them would take longer.
//!
//! A group of rows takes each step together, so that the sizes of the step are looked at once.

use super::tile::{load_row, multiply_add};
use crate::{
    dtype::{Weight, with_core_elements},
    isa::{Columns, Isa, Op, Tier},
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
    /// For arrays that are yet to be filled.
    pub(crate) const EMPTY: Self = Self { digits: [0; MAX_CORES], out: 0, weight: 0.0 };
}

/// Adds rows to the output, one after another, or writes them to it. `partials` has room for the
/// partial products of one row or more. All cores have one dtype, and the products of each step
/// have a multiple of four columns. `None` if that is not so, if anything is out of bounds, or on
/// the scalar tier.
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
        let len = shape.partial_len().max(1);
        // A step reads one partial product and writes another; two cores need only one.
        let of_row = if last > 1 { 2 * len } else { len };
        let room = (partials.len() / of_row).max(1);
        let (even, odd) = partials.split_at_mut_checked(room * len)?;
        for rows in rows.chunks(room) {
            let (mut x, mut next) = (&mut *even, &mut *odd);
            let mut m = shape.column_factor(0);
            // f32 slices are multiplied where they are.
            let stored = W::elements(first).as_f32();
            if stored.is_none() {
                let scales = tt.cores.first()?.scales;
                let digits = rows.iter().map(|row| row.digits[0] as usize);
                GatherRows {
                    stored: first,
                    scales,
                    len: shape.slice_len(0),
                    rows: digits,
                    out: &mut *x,
                }
                .run(isa)?;
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
        }
        Some(())
    }
}

/// A slice of a core, and its scale.
#[inline(always)]
fn slice<'s, W: Weight>(
    slices: &'s [W],
    scales: &[f32],
    digit: u32,
    len: usize,
) -> Option<(&'s [W], f32)> {
    let slice = slices.get((digit as usize).wrapping_mul(len)..)?.get(..len)?;
    Some((slice, if W::SCALED { *scales.get(digit as usize)? } else { 1.0 }))
}

/// Step k of some rows.
struct Step<'s, 'o, W> {
    rows: &'s [SmallRow],
    k: usize,
    dims: Dims,
    /// Left operands: of each row in turn, or of each digit of core 0.
    x: &'s [f32],
    x_by_digit: bool,
    slices: &'s [W],
    scales: &'s [f32],
    /// The products: of each row in turn, or the output.
    out: &'o mut [f32],
    is_last: bool,
    /// Whether the products are added to the output.
    add: bool,
}

impl<W: Weight> Step<'_, '_, W> {
    /// Runs it with the largest tile that divides the product.
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Consistent {
        let Dims { m, n, .. } = self.dims;
        if n % I::LANES == 0 {
            match (m % 4, n / I::LANES % 4) {
                (0, 0 | 2) => isa.call(Tiles::<_, 4, 2>(self)),
                (0, _) => isa.call(Tiles::<_, 4, 1>(self)),
                (2, 0) => isa.call(Tiles::<_, 2, 4>(self)),
                (2, 2) => isa.call(Tiles::<_, 2, 2>(self)),
                (2, _) => isa.call(Tiles::<_, 2, 1>(self)),
                (_, 0) => isa.call(Tiles::<_, 1, 4>(self)),
                (_, 2) => isa.call(Tiles::<_, 1, 2>(self)),
                _ => isa.call(Tiles::<_, 1, 1>(self)),
            }
        } else if I::LANES > 8 && n % 8 == 0 {
            match m % 4 {
                0 => isa.half().call(Tiles::<_, 4, 1>(self)),
                2 => isa.half().call(Tiles::<_, 2, 1>(self)),
                _ => isa.half().call(Tiles::<_, 1, 1>(self)),
            }
        } else {
            match m % 4 {
                0 => isa.narrow().call(Tiles::<_, 4, 1>(self)),
                2 => isa.narrow().call(Tiles::<_, 2, 1>(self)),
                _ => isa.narrow().call(Tiles::<_, 1, 1>(self)),
            }
        }
    }
}

/// A step in tiles of `M` rows and `V` vectors.
struct Tiles<'s, 'o, W, const M: usize, const V: usize>(Step<'s, 'o, W>);

impl<W: Weight, const M: usize, const V: usize> Op for Tiles<'_, '_, W, M, V> {
    type Output = Consistent;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Consistent {
        let Self(Step { rows, k, dims, x, x_by_digit, slices, scales, out, is_last, add }) = self;
        let Dims { m, r, n } = dims;
        for (at, row) in rows.iter().enumerate() {
            let [first, ..] = row.digits;
            let (slice, scale) = slice(slices, scales, *row.digits.get(k)?, r * n)?;
            let mut x = x.get(if x_by_digit { first as usize } else { at } * m * r..)?;
            let (mut out, scale) = if is_last {
                (out.get_mut(row.out..)?.get_mut(..m * n)?, scale * row.weight)
            } else {
                (out.get_mut(at * m * n..)?.get_mut(..m * n)?, scale)
            };
            while !out.is_empty() {
                let mut lhs: [&[f32]; M] = [&[]; M];
                for lhs in &mut lhs {
                    (*lhs, x) = x.split_at_checked(r)?;
                }
                let (these, after) = out.split_at_mut_checked(M * n)?;
                out = after;
                let mut column = 0;
                while column < n {
                    let rhs = Columns::new(slice, [r, n], column, V * I::LANES)?;
                    tile::<I, W, M, V>(isa, lhs, rhs, scale, add, [n, column], these)?;
                    column += V * I::LANES;
                }
            }
        }
        Some(())
    }
}

/// `scale lhs . rhs`, added to the `M` rows of `out`, which are `n` apart, from `column` on, or
/// written to them.
#[inline(always)]
fn tile<I: Isa, W: Weight, const M: usize, const V: usize>(
    isa: I,
    mut lhs: [&[f32]; M],
    mut rhs: Columns<'_, W>,
    scale: f32,
    add: bool,
    [n, column]: [usize; 2],
    out: &mut [f32],
) -> Consistent {
    let mut sums = [[isa.splat(0.0); V]; M];
    let mut quads: [&[[f32; 4]]; M] = [&[]; M];
    for a in 0..M {
        (quads[a], lhs[a]) = lhs[a].as_chunks();
    }
    for k in 0..quads[0].len() {
        let four = rhs.next_rows::<4>()?;
        let mut lhs = [isa.quad(&[0.0; 4]); M];
        for a in 0..M {
            lhs[a] = isa.quad(quads[a].get(k)?);
        }
        multiply_add::<I, W, M, V, 0>(isa, &lhs, four[0], &mut sums);
        multiply_add::<I, W, M, V, 1>(isa, &lhs, four[1], &mut sums);
        multiply_add::<I, W, M, V, 2>(isa, &lhs, four[2], &mut sums);
        multiply_add::<I, W, M, V, 3>(isa, &lhs, four[3], &mut sums);
    }
    for k in 0..lhs[0].len() {
        let [row] = rhs.next_rows()?;
        let rhs = load_row::<I, W, V>(isa, row);
        for a in 0..M {
            let lhs = isa.splat(*lhs[a].get(k)?);
            for v in 0..V {
                sums[a][v] = isa.fma(rhs[v], lhs, sums[a][v]);
            }
        }
    }
    let scale = isa.splat(scale);
    for a in 0..M {
        let out = out.get_mut(a * n + column..)?.get_mut(..V * I::LANES)?;
        for v in 0..V {
            let out = out.get_mut(v * I::LANES..)?;
            // The sum of a product and -0.0 is the product.
            let base = if add { isa.load_f32(out) } else { isa.splat(-0.0) };
            isa.store(isa.fma(scale, sums[a][v], base), out);
        }
    }
    Some(())
}
