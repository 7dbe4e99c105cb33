//! The optimisers' steps of one slice ([`crate::train::Optimizer`]).
//!
//! All but [`sgd_of_few`] are plain loops over elements, which the compiler vectorises for each
//! tier. Each product, sum, root and quotient is rounded separately, so a step has the same bits on
//! every tier.
//!
//! [`sgd_of_few`] is written with vectors. A slice is long (a middle core of rank 32 has slices of
//! thousands of elements), and the step of a few rows takes little time besides reading it. So one
//! pass over the slice G does both: it uses G for the gradient of the rows and moves it.

use crate::isa::{FourLanes, Isa, Op, Tier};
use crate::kernel::{Consistent, Dims};

/// Partial sums of a sum over elements: element i goes to partial sum `i mod SUMS`, and then these
/// are added up. Every tier can keep this order, because no vector has more lanes.
const SUMS: usize = 16;

/// `x <- x - learning_rate g`.
///
/// `None`, with nothing done, unless `gradient` is as long as `values`. The same holds for the
/// functions below.
pub fn sgd(tier: Tier, learning_rate: f32, gradient: &[f32], values: &mut [f32]) -> Consistent {
    (gradient.len() == values.len()).then(|| tier.run(Sgd { learning_rate, gradient, values }))
}

struct Sgd<'s, 'v> {
    learning_rate: f32,
    gradient: &'s [f32],
    values: &'v mut [f32],
}

impl Op for Sgd<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        for (x, g) in self.values.iter_mut().zip(self.gradient) {
            *x -= self.learning_rate * g;
        }
    }
}

/// `s <- s + g^2`, then `x <- x - learning_rate g / (sqrt(s) + epsilon)`; `sums` are as long as
/// `values`.
pub fn adagrad(
    tier: Tier,
    [learning_rate, epsilon]: [f32; 2],
    gradient: &[f32],
    sums: &mut [f32],
    values: &mut [f32],
) -> Consistent {
    let fits = gradient.len() == values.len() && sums.len() == values.len();
    fits.then(|| tier.run(Adagrad { learning_rate, epsilon, gradient, sums, values }))
}

struct Adagrad<'s, 'v> {
    learning_rate: f32,
    epsilon: f32,
    gradient: &'s [f32],
    sums: &'v mut [f32],
    values: &'v mut [f32],
}

impl Op for Adagrad<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        for ((x, s), g) in self.values.iter_mut().zip(self.sums).zip(self.gradient) {
            *s += g * g;
            *x -= self.learning_rate * g / (s.sqrt() + self.epsilon);
        }
    }
}

/// One s for all elements: `s <- s + mean(g^2)`, then `x <- x - learning_rate / (sqrt(s) + epsilon)
/// g`.
pub fn row_wise_adagrad(
    tier: Tier,
    [learning_rate, epsilon]: [f32; 2],
    gradient: &[f32],
    sum: &mut f32,
    values: &mut [f32],
) -> Consistent {
    if gradient.len() != values.len() {
        return None;
    }
    *sum += tier.run(MeanSquare { gradient });
    sgd(tier, learning_rate / (sum.sqrt() + epsilon), gradient, values)
}

struct MeanSquare<'s> {
    gradient: &'s [f32],
}

impl Op for MeanSquare<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<I: Isa>(self, _: I) -> f32 {
        let mut sums = [0.0; SUMS];
        let (whole, rest) = self.gradient.as_chunks::<SUMS>();
        for chunk in whole {
            sums.iter_mut().zip(chunk).for_each(|(sum, g)| *sum += g * g);
        }
        sums.iter_mut().zip(rest).for_each(|(sum, g)| *sum += g * g);
        sums.iter().sum::<f32>() / self.gradient.len().max(1) as f32
    }
}

/// The factors of an Adam step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamFactors {
    /// The learning rate with both corrections of bias: `learning_rate sqrt(1 - beta_2^t) / (1 -
    /// beta_1^t)`.
    pub step_size: f32,
    /// `1 - beta_1`.
    pub mean: f32,
    /// `1 - beta_2`.
    pub square: f32,
    /// Added to the root.
    pub epsilon: f32,
}

/// `m <- m + (1 - beta_1) (g - m)` and `v <- v + (1 - beta_2) (g^2 - v)`, then `x <- x - step_size
/// m / (sqrt(v) + epsilon)`; `means` and `squares` are as long as `values`.
pub fn adam(
    tier: Tier,
    factors: AdamFactors,
    gradient: &[f32],
    means: &mut [f32],
    squares: &mut [f32],
    values: &mut [f32],
) -> Consistent {
    let fits = [gradient.len(), means.len(), squares.len()]
        .iter()
        .all(|&len| len == values.len());
    fits.then(|| tier.run(Adam { factors, gradient, means, squares, values }))
}

struct Adam<'s, 'v> {
    factors: AdamFactors,
    gradient: &'s [f32],
    means: &'v mut [f32],
    squares: &'v mut [f32],
    values: &'v mut [f32],
}

impl Op for Adam<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        let AdamFactors { step_size, mean, square, epsilon } = self.factors;
        let state = self.means.iter_mut().zip(self.squares);
        for ((x, (m, v)), g) in self.values.iter_mut().zip(state).zip(self.gradient) {
            *m += mean * (g - *m);
            *v += square * (g * g - *v);
            *x -= step_size * *m / (v.sqrt() + epsilon);
        }
    }
}

/// The most rows that [`sgd_of_few`] takes.
pub const FEW: usize = 4;

/// The step of a slice G (`r x n`) that the `m` rows of `x` (`m x r`) were multiplied by, from the
/// gradient `d` (`m x n`) of the products, and the gradient of the rows: `dx <- d . G'`, then `G <-
/// G - learning_rate x' . d`. One pass over G: with few rows, the transposes that general products
/// need would take longer than the products.
///
/// A sum over columns is sixteen partial sums, by position, which are then added up. All tiers with
/// fused multiply-add keep this order and have the same bits.
///
/// `None`, with nothing done, if lengths contradict each other or there are no or more than [`FEW`]
/// rows.
pub fn sgd_of_few(
    tier: Tier,
    Dims { m, r, n }: Dims,
    learning_rate: f32,
    x: &[f32],
    d: &[f32],
    slice: &mut [f32],
    dx: &mut [f32],
) -> Consistent {
    let [x_len, d_len, slice_len] = [(m, r), (m, n), (r, n)].map(|(a, b)| a.checked_mul(b));
    let fits = x.len() == x_len?
        && d.len() == d_len?
        && slice.len() == slice_len?
        && dx.len() == x.len()
        && n > 0;
    let step = SgdOfFew { r, n, learning_rate, x, d, slice, dx };
    match m {
        _ if !fits => None,
        1 => tier.run(Rows::<1>(step)),
        2 => tier.run(Rows::<2>(step)),
        3 => tier.run(Rows::<3>(step)),
        FEW => tier.run(Rows::<FEW>(step)),
        _ => None,
    }
}

struct SgdOfFew<'s, 'v> {
    r: usize,
    n: usize,
    learning_rate: f32,
    x: &'s [f32],
    d: &'s [f32],
    slice: &'v mut [f32],
    dx: &'v mut [f32],
}

/// The loop for `M` rows of x and d, so that they are held in arrays of constant size.
struct Rows<'s, 'v, const M: usize>(SgdOfFew<'s, 'v>);

impl<const M: usize> Op for Rows<'_, '_, M> {
    type Output = Consistent;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Consistent {
        // Rows of G at a time: each vector of d that is loaded serves all of them. The partial sums
        // of A rows take A M registers of sixteen lanes, so only AVX-512 has room for more than one
        // row.
        match (I::LANES, M) {
            (SUMS, ..=2) => self.in_blocks::<I, 4>(isa),
            (SUMS, _) => self.in_blocks::<I, 2>(isa),
            _ => self.in_blocks::<I, 1>(isa),
        }
    }
}

impl<const M: usize> Rows<'_, '_, M> {
    #[inline(always)]
    fn in_blocks<I: Isa, const A: usize>(self, isa: I) -> Consistent {
        let SgdOfFew { r, n, learning_rate, x, d, slice, dx } = self.0;
        let mut rows = [(&[][..], [0.0; SUMS]); M];
        for ((whole, end), d) in rows.iter_mut().zip(d.chunks_exact(n)) {
            let (chunks, rest) = d.as_chunks::<SUMS>();
            *whole = chunks;
            end.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
        }
        let mut blocks = slice.chunks_exact_mut(n.saturating_mul(A));
        let mut a = 0;
        for block in &mut blocks {
            step_of_rows::<I, M, A>(isa, learning_rate, (r, n, a), x, &rows, block, dx)?;
            a += A;
        }
        for row in blocks.into_remainder().chunks_exact_mut(n) {
            step_of_rows::<I, M, 1>(isa, learning_rate, (r, n, a), x, &rows, row, dx)?;
            a += 1;
        }
        Some(())
    }
}

/// Moves rows `a` to `a + A` of G, which has r rows, and computes columns `a` to `a + A` of dx. `d`
/// are the rows of d, each as whole chunks of [`SUMS`] columns and a last chunk that is padded with
/// zeros.
#[inline(always)]
fn step_of_rows<I: Isa, const M: usize, const A: usize>(
    isa: I,
    learning_rate: f32,
    (r, n, a): (usize, usize, usize),
    x: &[f32],
    d: &[(&[[f32; SUMS]], [f32; SUMS]); M],
    mut block: &mut [f32],
    dx: &mut [f32],
) -> Consistent {
    // G moves by `factors[row of G][row of x]` times the rows of d.
    let mut factors = [[isa.splat(0.0); M]; A];
    for m in 0..M {
        let x: &[f32; A] = x.get(m * r + a..)?.first_chunk()?;
        for (factors, x) in factors.iter_mut().zip(x) {
            *factors.get_mut(m)? = isa.splat(-learning_rate * x);
        }
    }
    // `sums[row of G][row of d]` are the partial sums of an element of dx, in as many vectors as
    // sixteen lanes take.
    let mut sums = [[[isa.splat(0.0); MAX_PARTS]; M]; A];
    // Each row of G as whole chunks and the rest.
    let mut lines = core::array::from_fn::<(&mut [_], &mut [f32]), A, _>(|_| Default::default());
    for to in &mut lines {
        let (line, after) = core::mem::take(&mut block).split_at_mut_checked(n)?;
        (*to, block) = (line.as_chunks_mut::<SUMS>(), after);
    }
    let whole = d.first().map_or(0, |(whole, _)| whole.len());
    for at in 0..whole {
        for part in (0..SUMS).step_by(I::LANES) {
            let mut d_part = [isa.splat(0.0); M];
            for (to, (whole, _)) in d_part.iter_mut().zip(d) {
                *to = isa.load_f32(whole.get(at)?.get(part..)?);
            }
            for ((line, factors), sums) in lines.iter_mut().zip(&factors).zip(&mut sums) {
                let values = line.0.get_mut(at)?.get_mut(part..)?;
                step_of_part(isa, factors, &d_part, values, sums, part / I::LANES)?;
            }
        }
    }
    if lines.iter().any(|(_, rest)| !rest.is_empty()) {
        for ((line, factors), sums) in lines.iter_mut().zip(&factors).zip(&mut sums) {
            let mut chunk = [0.0; SUMS];
            chunk.iter_mut().zip(&*line.1).for_each(|(to, from)| *to = *from);
            for part in (0..SUMS).step_by(I::LANES) {
                let mut d_part = [isa.splat(0.0); M];
                for (to, (_, end)) in d_part.iter_mut().zip(d) {
                    *to = isa.load_f32(end.get(part..)?);
                }
                step_of_part(isa, factors, &d_part, chunk.get_mut(part..)?, sums, part / I::LANES)?;
            }
            line.1.iter_mut().zip(chunk).for_each(|(to, from)| *to = from);
        }
    }
    for m in 0..M {
        let mut row_sums = [[0.0; SUMS]; 4];
        for (to, sums) in row_sums.iter_mut().zip(&sums) {
            for (to, sum) in to.chunks_exact_mut(I::LANES).zip(sums.get(m)?) {
                isa.store(*sum, to);
            }
        }
        // `row_sums` has four rows, of which the first A are in use.
        let dx: &mut [f32; A] = dx.get_mut(m * r + a..)?.first_chunk_mut()?;
        dx.iter_mut()
            .zip(totals(isa.narrow(), row_sums))
            .for_each(|(dx, total)| *dx = total);
    }
    Some(())
}

/// The most vectors that [`SUMS`] elements take: those of four lanes.
const MAX_PARTS: usize = SUMS / 4;

/// One vector of a row of G, `values`: adds its products with each row of d to the partial sums,
/// and then moves it.
#[inline(always)]
fn step_of_part<I: Isa, const M: usize>(
    isa: I,
    factors: &[I::F32; M],
    d: &[I::F32; M],
    values: &mut [f32],
    sums: &mut [[I::F32; MAX_PARTS]; M],
    part: usize,
) -> Consistent {
    let old = isa.load_f32(values);
    let mut new = old;
    for ((d, sums), factor) in d.iter().zip(sums).zip(factors) {
        let sum = sums.get_mut(part)?;
        *sum = isa.fma(*d, old, *sum);
        new = isa.fma(*factor, *d, new);
    }
    isa.store(new, values);
    Some(())
}

/// The total of each of four rows of partial sums: quarters of a row are added as vectors, then the
/// four lanes of each row.
#[inline(always)]
fn totals<I: FourLanes>(isa: I, sums: [[f32; SUMS]; 4]) -> [f32; 4] {
    let mut quarters = [isa.splat(0.0); 4];
    for (to, sums) in quarters.iter_mut().zip(&sums) {
        let mut parts = [isa.splat(0.0); 4];
        for (to, part) in parts.iter_mut().zip(sums.as_chunks::<4>().0) {
            *to = isa.load_f32(part);
        }
        *to = sum_of_four(isa, parts);
    }
    let mut out = [0.0; 4];
    isa.store(sum_of_four(isa, isa.transpose(quarters)), &mut out);
    out
}

#[inline(always)]
fn sum_of_four<I: Isa>(isa: I, [a, b, c, d]: [I::F32; 4]) -> I::F32 {
    isa.add(isa.add(a, c), isa.add(b, d))
}
