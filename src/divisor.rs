//! Division of many numbers by the same number, with a multiplication for each.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]
#![cfg_attr(test, allow(clippy::arithmetic_side_effects))]

/// A divisor, stored as its reciprocal (Lemire, Kaser and Kurz, "Faster remainder by direct
/// computation", 2019). Exact for 32-bit numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Divisor {
    by: u32,
    /// `ceil(2^64 / by)`; 0 for 1, which would need a bit more.
    reciprocal: u64,
}

impl Divisor {
    /// `by` is not 0.
    pub(crate) fn new(by: u32) -> Self {
        let by = by.max(1);
        let floor = u64::MAX.checked_div(u64::from(by)).unwrap_or(u64::MAX);
        Self { by, reciprocal: floor.wrapping_add(1) }
    }

    #[inline(always)]
    pub(crate) fn by(self) -> u32 {
        self.by
    }

    /// Quotient and remainder of `n`. Takes longer if `n` has more than 32 bits.
    #[inline(always)]
    pub(crate) fn divide_u64(self, n: u64) -> (u64, u32) {
        if let Ok(n) = u32::try_from(n) {
            let (quotient, remainder) = self.divide(n);
            return (quotient.into(), remainder);
        }
        let quotient = n.checked_div(self.by.into()).unwrap_or(0);
        (quotient, n.wrapping_sub(quotient.wrapping_mul(self.by.into())) as u32)
    }

    /// Quotient and remainder of `n`.
    #[inline(always)]
    pub(crate) fn divide(self, n: u32) -> (u32, u32) {
        let quotient = if cfg!(not(target_pointer_width = "64")) {
            // A multiplication of 64 by 64 bits takes longer than a division of 32 by 32 bits.
            n.checked_div(self.by).unwrap_or(0)
        } else if self.reciprocal == 0 {
            n
        } else {
            (u128::from(self.reciprocal).wrapping_mul(u128::from(n)) >> 64) as u32
        };
        (quotient, n.wrapping_sub(quotient.wrapping_mul(self.by)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotients_and_remainders_are_exact() {
        for by in [1, 2, 3, 7, 64, 641, 65_535, 65_537, 1 << 31, u32::MAX - 1, u32::MAX] {
            let divisor = Divisor::new(by);
            for near in
                [0, u64::from(by), u64::from(u32::MAX), 1 << 40, u64::from(by) * 3, u64::MAX]
            {
                for n in near.saturating_sub(2)..near.saturating_add(3) {
                    let expected = (n / u64::from(by), (n % u64::from(by)) as u32);
                    assert_eq!(divisor.divide_u64(n), expected, "{n} / {by}");
                }
            }
        }
    }
}
