//! Steps of the optimisers, element by element over one slice: each product, sum, root and quotient rounded by itself, so
//! that a step has the same bits on every tier. [`crate::train::Optimizer`] says what they are for.

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
