//! The exponentials of a softmax.

use crate::isa::{Isa, Op, Tier};

/// Partial sums: element i goes to partial sum `i mod SUMS`, and then these are added up.
const SUMS: usize = 16;
/// Exponents below this have the exponential 0: e^-87 is hardly more than the least normal number.
const LEAST: f32 = -87.0;
/// ln 2 in two parts, so that multiples of the first part are exact.
const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
/// From this number on floats are integers: `x + INTEGERS - INTEGERS` rounds x.
const INTEGERS: f32 = 12_582_912.0;

/// `x <- exp(x - shift)`, and the sum of these. `x - shift` is at most 87, which a softmax ensures
/// by shifting by the largest x. Errors are below 2^-22 of the exponential.
///
/// A plain loop, as the optimisers' steps: the compiler vectorises it for each tier, and each
/// operation is rounded separately, so all tiers have the same bits.
pub(crate) fn exponentials(tier: Tier, shift: f32, values: &mut [f32]) -> f32 {
    tier.run(Exponentials { shift, values })
}

struct Exponentials<'v> {
    shift: f32,
    values: &'v mut [f32],
}

/// exp(x) as 2^n exp(r), with x = n ln 2 + r and |r| at most ln(2) / 2 (the polynomial is that of
/// Moshier's Cephes library, `expf`).
#[inline(always)]
fn exponential(x: f32) -> f32 {
    let shifted = x.max(LEAST) * core::f32::consts::LOG2_E + INTEGERS;
    let n = shifted - INTEGERS;
    let r = x.max(LEAST) - n * LN_2[0] - n * LN_2[1];
    let mut sum = 1.987_569_1e-4;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        sum = sum * r + coefficient;
    }
    // The last bits of `shifted` are n; those of the power are n + 127.
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    let exponential = (sum * r * r + r + 1.0) * power;
    if x < LEAST { 0.0 } else { exponential }
}

impl Op for Exponentials<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<I: Isa>(self, _: I) -> f32 {
        let mut sums = [0.0; SUMS];
        let (whole, rest) = self.values.as_chunks_mut::<SUMS>();
        for chunk in whole {
            for (x, sum) in chunk.iter_mut().zip(&mut sums) {
                *x = exponential(*x - self.shift);
                *sum += *x;
            }
        }
        for (x, sum) in rest.iter_mut().zip(&mut sums) {
            *x = exponential(*x - self.shift);
            *sum += *x;
        }
        sums.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn exponentials_and_their_sum_are_those_of_f64() {
        for len in [0, 1, 15, 16, 17, 33, 1000] {
            let xs: Vec<f32> = (0..len).map(|i| (i * 37 % 1000) as f32 * -0.09).collect();
            let mut bits = Vec::new();
            for tier in Tier::available() {
                let mut found = xs.clone();
                let sum = exponentials(tier, 1.5, &mut found);
                for (x, found) in xs.iter().zip(&found) {
                    let expected = f64::from(x - 1.5).exp();
                    let bound = expected / f64::from(1 << 22) + 1.7e-38;
                    assert!((f64::from(*found) - expected).abs() <= bound, "{x}: {found}");
                }
                let expected: f64 = found.iter().map(|&x| f64::from(x)).sum();
                assert!((f64::from(sum) - expected).abs() <= 1e-6 * expected, "{sum} {expected}");
                bits.push((found.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), sum.to_bits()));
            }
            assert!(bits.iter().all(|other| Some(other) == bits.first()));
        }
        let mut ends = [f32::NEG_INFINITY, 0.0, -88.0];
        assert_eq!((exponentials(Tier::best(), 0.0, &mut ends), ends), (1.0, [0.0, 1.0, 0.0]));
    }
}
