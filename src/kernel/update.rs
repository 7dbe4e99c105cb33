//! Steps of the optimisers, element by element over one slice: each product, sum, root and quotient rounded by itself, so
//! that a step has the same bits on every tier (but for [`sgd_of_few`]). [`crate::train::Optimizer`] says what they are for.

use crate::isa::{Isa, Op, Tier};

/// Squares that are summed side by side, by position, before they are added up: a fixed order that every tier can follow.
const SUMS: usize = 16;

/// `x <- x - learning_rate g`.
///
/// `None`, with nothing done, unless `gradient` is as long as `values`; so for all that follow.
pub fn sgd(tier: Tier, learning_rate: f32, gradient: &[f32], values: &mut [f32]) -> Option<()> {
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

/// `s <- s + g^2`, then `x <- x - learning_rate g / (sqrt(s) + epsilon)`; `sums` are as long as `values`.
pub fn adagrad(
    tier: Tier,
    [learning_rate, epsilon]: [f32; 2],
    gradient: &[f32],
    sums: &mut [f32],
    values: &mut [f32],
) -> Option<()> {
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

/// With one s for all: `s <- s + mean(g^2)`, then `x <- x - learning_rate / (sqrt(s) + epsilon) g`.
pub fn row_wise_adagrad(
    tier: Tier,
    [learning_rate, epsilon]: [f32; 2],
    gradient: &[f32],
    sum: &mut f32,
    values: &mut [f32],
) -> Option<()> {
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

/// What an Adam step multiplies by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamFactors {
    /// The learning rate with both corrections of bias: `learning_rate sqrt(1 - beta_2^t) / (1 - beta_1^t)`.
    pub step_size: f32,
    /// `1 - beta_1`.
    pub mean: f32,
    /// `1 - beta_2`.
    pub square: f32,
    /// Added to the root.
    pub epsilon: f32,
}

/// `m <- m + (1 - beta_1) (g - m)` and `v <- v + (1 - beta_2) (g^2 - v)`, then `x <- x - step_size m / (sqrt(v) + epsilon)`;
/// `means` and `squares` are as long as `values`.
pub fn adam(
    tier: Tier,
    factors: AdamFactors,
    gradient: &[f32],
    means: &mut [f32],
    squares: &mut [f32],
    values: &mut [f32],
) -> Option<()> {
    let fits = [gradient.len(), means.len(), squares.len()].iter().all(|&len| len == values.len());
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

/// Rows that [`sgd_of_few`] takes at most.
pub const FEW: usize = 4;

/// The step of a slice G (`r x n`) that the `m` rows of `x` (`m x r`) were multiplied by, from the gradient `d` (`m x n`) of the
/// products, and the gradient of the rows: `dx <- d . G'`, then `G <- G - learning_rate x' . d`. One pass over G, where few rows are
/// not worth the transposes that products of many take.
///
/// Sums over columns are of sixteen, by their position, and then of these; so tiers that fuse agree.
///
/// `None`, with nothing done, if lengths contradict each other or there are no or more than [`FEW`] rows.
pub fn sgd_of_few(
    tier: Tier,
    [m, r, n]: [usize; 3],
    learning_rate: f32,
    x: &[f32],
    d: &[f32],
    slice: &mut [f32],
    dx: &mut [f32],
) -> Option<()> {
    let fits = x.len() == m * r && d.len() == m * n && slice.len() == r * n && dx.len() == m * r && n > 0;
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

struct Rows<'s, 'v, const M: usize>(SgdOfFew<'s, 'v>);

impl<const M: usize> Op for Rows<'_, '_, M> {
    type Output = Option<()>;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Option<()> {
        let SgdOfFew { r, n, learning_rate, x, d, slice, dx } = self.0;
        let mut rows = [(&[][..], [0.0; SUMS]); M];
        for ((whole, end), d) in rows.iter_mut().zip(d.chunks_exact(n)) {
            let (chunks, rest) = d.as_chunks::<SUMS>();
            *whole = chunks;
            end.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
        }
        let ends = rows.map(|(_, end)| end);
        for (a, slice) in slice.chunks_exact_mut(n).enumerate() {
            let mut factors = [isa.splat(0.0); M];
            for (factor, x) in factors.iter_mut().zip(x.get(a..)?.iter().step_by(r)) {
                *factor = isa.splat(-learning_rate * x);
            }
            let mut sums = [[isa.splat(0.0); MAX_PARTS]; M];
            let (whole, rest) = slice.as_chunks_mut::<SUMS>();
            for (at, chunk) in whole.iter_mut().enumerate() {
                let mut d = [&[0.0; SUMS]; M];
                for (d, (row, _)) in d.iter_mut().zip(&rows) {
                    *d = row.get(at)?;
                }
                step_of_chunk(isa, &factors, d, chunk, &mut sums);
            }
            if !rest.is_empty() {
                let mut chunk = [0.0; SUMS];
                chunk.iter_mut().zip(&*rest).for_each(|(to, from)| *to = *from);
                step_of_chunk(isa, &factors, ends.each_ref(), &mut chunk, &mut sums);
                rest.iter_mut().zip(chunk).for_each(|(to, from)| *to = from);
            }
            for (sums, dx) in sums.iter().zip(dx.get_mut(a..)?.iter_mut().step_by(r)) {
                let mut all = [0.0; SUMS];
                all.chunks_exact_mut(I::LANES).zip(sums).for_each(|(to, sum)| isa.store(*sum, to));
                *dx = total(all);
            }
        }
        Some(())
    }
}

/// Vectors that [`SUMS`] elements are at most.
const MAX_PARTS: usize = SUMS / 4;

/// Some columns of a row of G: what each row of d makes of them, before they move.
#[inline(always)]
fn step_of_chunk<I: Isa, const M: usize>(
    isa: I,
    factors: &[I::F32; M],
    d: [&[f32; SUMS]; M],
    chunk: &mut [f32; SUMS],
    sums: &mut [[I::F32; MAX_PARTS]; M],
) {
    for (part, values) in chunk.chunks_exact_mut(I::LANES).enumerate() {
        let old = isa.load_f32(values);
        let mut new = old;
        for ((d, sums), factor) in d.iter().zip(&mut *sums).zip(factors) {
            let (Some(d), Some(sum)) = (d.chunks_exact(I::LANES).nth(part), sums.get_mut(part)) else { return };
            let d = isa.load_f32(d);
            *sum = isa.fma(d, old, *sum);
            new = isa.fma(*factor, d, new);
        }
        isa.store(new, values);
    }
}

/// The sum of all, halves first.
#[inline(always)]
fn total(sums: [f32; SUMS]) -> f32 {
    fn halves<const N: usize, const H: usize>(sums: [f32; N]) -> [f32; H] {
        let mut out = [0.0; H];
        let (low, high) = sums.split_at(H);
        out.iter_mut().zip(low).zip(high).for_each(|((out, low), high)| *out = low + high);
        out
    }
    let [sum] = halves(halves::<4, 2>(halves::<8, 4>(halves::<SUMS, 8>(sums))));
    sum
}
