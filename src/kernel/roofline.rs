//! The roofline: loops that measure the most that a core and its memory can do, for comparison.

use crate::isa::{Isa, Op, Tier};

/// Independent sums, so that no multiply-add waits for another.
const CHAINS: usize = 12;

/// Runs `rounds` rounds of independent multiply-adds `s <- a * s + b` on vectors of the tier.
/// Returns the number of floating-point operations (two per multiply-add), and a value that depends
/// on all of them, so that none is optimised away.
pub fn fma_chains(tier: Tier, rounds: u64, a: f32, b: f32) -> (u64, f32) {
    tier.run(FmaChains { rounds, a, b })
}

struct FmaChains {
    rounds: u64,
    a: f32,
    b: f32,
}

impl Op for FmaChains {
    type Output = (u64, f32);

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> (u64, f32) {
        let (a, b) = (isa.splat(self.a), isa.splat(self.b));
        let mut sums = [b; CHAINS];
        for _ in 0..self.rounds {
            for sum in &mut sums {
                *sum = isa.fma(a, *sum, b);
            }
        }
        let total = sums.iter().fold(b, |total, &sum| isa.add(total, sum));
        let mut lanes = [0.0; 1];
        isa.store(total, &mut lanes);
        let [first] = lanes;
        (self.rounds * (CHAINS * I::LANES * 2) as u64, first)
    }
}

/// Reads every element of `xs` once and returns a sum over them: for measuring memory bandwidth.
pub fn read_all(tier: Tier, xs: &[f32]) -> f32 {
    tier.run(ReadAll { xs })
}

struct ReadAll<'s> {
    xs: &'s [f32],
}

impl Op for ReadAll<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> f32 {
        let mut sums = [isa.splat(0.0); 8];
        for block in self.xs.chunks(8 * I::LANES) {
            for (sum, xs) in sums.iter_mut().zip(block.chunks(I::LANES)) {
                *sum = isa.add(*sum, isa.load_f32(xs));
            }
        }
        let total = sums.iter().fold(isa.splat(0.0), |total, &sum| isa.add(total, sum));
        let mut lanes = [0.0; 16];
        isa.store(total, &mut lanes);
        lanes.iter().sum()
    }
}
