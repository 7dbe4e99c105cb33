//! The first values of a table: seeded draws whose products have the variance with which dense
//! tables start.
//!
//! DLRM draws the rows of a dense table of N rows from U(-1/sqrt(N), 1/sqrt(N)), whose variance is
//! 1/(3N). TT-Rec (section 3.2) wants the same of rows that are products of cores: N(0, 1/(3N)).
//! Each of their elements is a sum of `r_1 .. r_{d-1}` products of d draws, so each draw has the
//! standard deviation
//!
//! ```text
//! (1/sqrt(3N) / sqrt(r_1 .. r_{d-1}))^(1/d)
//! ```
//!
//! A product of d Gaussians has most of its mass near zero. The paper's *sampled Gaussian*
//! therefore rejects each draw with |x| < 2 of a standard normal. The draws that remain have the
//! variance `1 + 2 phi(2) / (1 - Phi(2)) = 5.746` and are divided by its root. (FBTT's code takes
//! neither the ranks nor this root into account.)

use crate::{repr::Combine, shape::TtShape};
use rand_pcg::{
    Pcg64,
    rand_core::{Rng, SeedableRng},
};
use std::vec::Vec;

/// The least magnitude that [`Initializer::SampledGaussian`] keeps of a standard normal.
const KEPT: f64 = 2.0;
/// The variance of a standard normal beyond [`KEPT`].
const KEPT_VARIANCE: f64 = 5.746_431_065_852_677;

/// How the first values of a table are drawn. With each, an element of a row has the variance
/// 1/(3N), where N is `num_embeddings`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Initializer {
    /// Normal, without draws within two standard deviations of zero (TT-Rec, section 3.2). For
    /// rows that are not products, as [`Gaussian`](Self::Gaussian).
    #[default]
    SampledGaussian,
    /// Normal.
    Gaussian,
    /// Uniform, as DLRM draws dense tables.
    Uniform,
}

impl Initializer {
    /// All cores, drawn one after another from one generator.
    pub(super) fn cores(self, shape: &TtShape, seed: u64) -> Vec<Vec<f32>> {
        let paths: f64 = shape.inner_ranks().iter().map(|&r| f64::from(r)).product();
        let deviation = libm::pow(
            row_deviation(shape.num_embeddings()) / paths.sqrt(),
            1.0 / shape.num_cores() as f64,
        );
        let mut draws = Draws::new(seed);
        (0..shape.num_cores())
            .map(|k| self.fill(&mut draws, deviation, shape.core_len(k) as usize))
            .collect()
    }

    /// The rows of a dense table.
    pub(super) fn rows(self, num_embeddings: u64, len: usize, seed: u64) -> Vec<f32> {
        self.for_rows().fill(&mut Draws::new(seed), row_deviation(num_embeddings), len)
    }

    /// The two parts of a quotient-remainder table, drawn one after another. Their product (as of
    /// two cores of rank 1), sum or concatenation has the variance 1/(3N).
    pub(super) fn parts(
        self,
        num_embeddings: u64,
        combine: Combine,
        lens: [usize; 2],
        seed: u64,
    ) -> [Vec<f32>; 2] {
        let deviation = row_deviation(num_embeddings);
        let (initializer, deviation) = match combine {
            Combine::Mult => (self, deviation.sqrt()),
            Combine::Add => (self.for_rows(), deviation / 2.0f64.sqrt()),
            Combine::Concat => (self.for_rows(), deviation),
        };
        let mut draws = Draws::new(seed);
        lens.map(|len| initializer.fill(&mut draws, deviation, len))
    }

    /// The initialiser of elements that are not multiplied with others.
    fn for_rows(self) -> Self {
        if self == Self::SampledGaussian {
            Self::Gaussian
        } else {
            self
        }
    }

    fn fill(self, draws: &mut Draws, deviation: f64, len: usize) -> Vec<f32> {
        let draw = |_| match self {
            Self::SampledGaussian => draws.tail() * deviation / KEPT_VARIANCE.sqrt(),
            Self::Gaussian => draws.normal() * deviation,
            Self::Uniform => (2.0 * draws.uniform() - 1.0) * deviation * 3.0f64.sqrt(),
        };
        (0..len).map(draw).map(|x| x as f32).collect()
    }
}

/// The standard deviation of an element of a row.
fn row_deviation(num_embeddings: u64) -> f64 {
    1.0 / (3.0 * num_embeddings as f64).sqrt()
}

/// Draws that a seed determines on every platform: they use `libm`, not the platform's functions.
pub(super) struct Draws(Pcg64);

impl Draws {
    pub(super) fn new(seed: u64) -> Self {
        Self(Pcg64::seed_from_u64(seed))
    }

    /// 64 random bits.
    pub(super) fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Uniform between 0 and 1, both excluded.
    pub(super) fn uniform(&mut self) -> f64 {
        ((self.0.next_u64() >> 12) as f64 + 0.5) / (1u64 << 52) as f64
    }

    /// Standard normal (Box and Muller, 1958).
    pub(super) fn normal(&mut self) -> f64 {
        let radius = (-2.0 * libm::log(self.uniform())).sqrt();
        radius * libm::cos(core::f64::consts::TAU * self.uniform())
    }

    /// Standard normal outside of [`KEPT`] standard deviations (Marsaglia, "Generating a variable
    /// from the tail of the normal distribution", 1964). Rejection of plain draws would have the
    /// same distribution, but keep one draw in 22.
    fn tail(&mut self) -> f64 {
        loop {
            let x = (KEPT * KEPT - 2.0 * libm::log(self.uniform())).sqrt();
            let accepted = self.uniform() * x < KEPT;
            if accepted {
                return if self.0.next_u64() >> 63 == 0 { x } else { -x };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(xs: &[f64]) -> (f64, f64) {
        let mean = xs.iter().sum::<f64>() / xs.len() as f64;
        (mean, xs.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / xs.len() as f64)
    }

    #[test]
    fn draws_have_the_moments_that_are_divided_by() {
        let mut draws = Draws::new(1);
        let tails: Vec<f64> = (0..200_000).map(|_| draws.tail()).collect();
        let (mean, variance) = moments(&tails);
        assert!(tails.iter().all(|x| x.abs() >= KEPT));
        // 1 + 2 phi(2) / (1 - Phi(2)) with phi and Phi from tables.
        let from_tables = 1.0 + 2.0 * 0.053_990_966_513_188_06 / 0.022_750_131_948_179_21;
        assert!((KEPT_VARIANCE - from_tables).abs() < 1e-9, "{from_tables}");
        assert!(mean.abs() < 0.03 && (variance - KEPT_VARIANCE).abs() < 0.03, "{mean} {variance}");
        // How much lies beyond 3: (1 - Phi(3)) / (1 - Phi(2)).
        let beyond = tails.iter().filter(|x| x.abs() > 3.0).count() as f64 / tails.len() as f64;
        assert!((beyond - 0.001_349_898 / 0.022_750_132).abs() < 0.002, "{beyond}");

        let normals: Vec<f64> = (0..200_000).map(|_| draws.normal()).collect();
        let (mean, variance) = moments(&normals);
        assert!(mean.abs() < 0.01 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
        let beyond = normals.iter().filter(|x| x.abs() > 2.0).count() as f64 / normals.len() as f64;
        assert!((beyond - 0.0455).abs() < 0.002, "{beyond}");
    }
}
