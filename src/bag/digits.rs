//! Digits of many rows of one table, with multiplications instead of divisions.
//!
//! A row's number is split in two: its last digit, which selects the slice of the last core, and
//! its prefix, the other digits. Batches sort lookups by a *key* of the prefix. It counts the same
//! prefixes as [`TtShape::prefix`], but in another order: by the digit of the last core but one
//! first. Its slice is usually the largest, and in this order prefixes that share it are adjacent.

use crate::{
    divisor::Divisor,
    kernel::SmallRow,
    shape::{DigitOrder, MAX_CORES, TtShape},
};

/// Splits the rows of one table into a prefix and a last digit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Digits {
    order: DigitOrder,
    /// Splits a row into prefix and last digit: `p_{d-1}`, or `p_0 .. p_{d-2}` if the last digit is
    /// the most significant.
    split: Divisor,
    /// `p_0, .., p_{d-2}`: the first `num_inner` are in use.
    inner: [Divisor; MAX_CORES],
    num_inner: usize,
}

impl Digits {
    /// `None` for a table whose padded rows do not fit 32 bits.
    pub(crate) fn new(shape: &TtShape) -> Option<Self> {
        shape.row_factors().iter().try_fold(1u32, |rows, &p| rows.checked_mul(p))?;
        let (&last, factors) = shape.row_factors().split_last()?;
        let mut inner = [Divisor::new(1); MAX_CORES];
        for (to, &p) in inner.iter_mut().zip(factors) {
            *to = Divisor::new(p);
        }
        let order = shape.digit_order();
        let split = match order {
            DigitOrder::MostSignificantFirst => last,
            DigitOrder::LeastSignificantFirst => {
                factors.iter().fold(1u32, |product, &p| product.wrapping_mul(p))
            }
        };
        Some(Self { order, split: Divisor::new(split), inner, num_inner: factors.len() })
    }

    /// The number of prefixes. Keys are below it.
    pub(crate) fn num_prefixes(&self) -> u32 {
        self.inner().iter().fold(1, |prefixes, p| prefixes.wrapping_mul(p.by()))
    }

    /// The key of a row's prefix `i_0, .., i_{d-2}`, with `i_{d-2}` as the most significant digit
    /// and `i_0` as the least: `(i_{d-2} p_{d-3} + i_{d-3}) p_{d-4} + ..`.
    #[inline(always)]
    pub(crate) fn prefix_key(&self, row: u32) -> u32 {
        let (quotient, remainder) = self.split.divide(row);
        match self.order {
            // The table counts its rows in this order.
            DigitOrder::LeastSignificantFirst => remainder,
            DigitOrder::MostSignificantFirst => {
                let (mut key, mut rest) = (0u32, quotient);
                for p in self.inner().iter().skip(1).rev() {
                    let (quotient, digit) = p.divide(rest);
                    (key, rest) = (key.wrapping_mul(p.by()).wrapping_add(digit), quotient);
                }
                let first = self.inner().first().map_or(1, |p| p.by());
                key.wrapping_mul(first).wrapping_add(rest)
            }
        }
    }

    /// The number of a row's prefix, as [`TtShape::prefix`].
    #[inline(always)]
    pub(crate) fn prefix(&self, row: u32) -> u32 {
        let (quotient, remainder) = self.split.divide(row);
        match self.order {
            DigitOrder::MostSignificantFirst => quotient,
            DigitOrder::LeastSignificantFirst => remainder,
        }
    }

    /// Writes the digits `i_0, .., i_{d-2}` of the prefix with this key, and leaves the others.
    #[inline(always)]
    pub(crate) fn write_prefix(&self, key: u32, digits: &mut [u32; MAX_CORES]) {
        let mut rest = key;
        let Some((_, factors)) = self.inner().split_last() else { return };
        let mut digits = digits.iter_mut();
        for (p, digit) in factors.iter().zip(digits.by_ref()) {
            (rest, *digit) = p.divide(rest);
        }
        // Keys are below the product of all factors, so that the rest is the last digit.
        if let Some(last) = digits.next() {
            *last = rest;
        }
    }

    /// The digits that [`write_prefix`](Self::write_prefix) writes. Entries past them are 0.
    #[cfg(any(test, feature = "train"))]
    pub(crate) fn prefix_digits(&self, key: u32) -> [u32; MAX_CORES] {
        let mut digits = [0; MAX_CORES];
        self.write_prefix(key, &mut digits);
        digits
    }

    /// The digit `i_{d-1}` of a row.
    #[inline(always)]
    pub(crate) fn last(&self, row: u32) -> u32 {
        let (quotient, remainder) = self.split.divide(row);
        match self.order {
            DigitOrder::MostSignificantFirst => remainder,
            DigitOrder::LeastSignificantFirst => quotient,
        }
    }

    /// Writes all digits of each row. A number is divided by one factor after another: what is left
    /// of it is its last quotient.
    pub(crate) fn write_all(&self, numbers: &mut [u64], rows: &mut [SmallRow]) {
        let last = self.num_inner;
        let mut divide = |p: Divisor, position: usize| {
            for (number, row) in numbers.iter_mut().zip(&mut *rows) {
                let (quotient, digit) = p.divide(*number as u32);
                *number = quotient.into();
                if let Some(to) = row.digits.get_mut(position) {
                    *to = digit;
                }
            }
        };
        let rest = match self.order {
            DigitOrder::MostSignificantFirst => {
                divide(self.split, last);
                for (&p, position) in self.inner().iter().zip(0..last).skip(1).rev() {
                    divide(p, position);
                }
                0
            }
            DigitOrder::LeastSignificantFirst => {
                for (&p, position) in self.inner().iter().zip(0..) {
                    divide(p, position);
                }
                last
            }
        };
        for (&mut number, row) in numbers.iter_mut().zip(rows) {
            if let Some(to) = row.digits.get_mut(rest) {
                *to = number as u32;
            }
        }
    }

    #[inline(always)]
    fn inner(&self) -> &[Divisor] {
        self.inner.get(..self.num_inner).unwrap_or_default()
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, clippy::indexing_slicing)]
mod tests {
    use super::*;
    extern crate std;
    use std::vec::Vec;

    #[test]
    fn dividing_by_multiplying_is_exact_at_every_edge() {
        for by in
            [1, 2, 3, 5, 7, 250, 641, 65_535, 65_536, 65_537, 0x7FFF_FFFF, 0x8000_0000, u32::MAX]
        {
            let multiples = (0..40)
                .flat_map(|k| [k * (u32::MAX / by / 40), u32::MAX / by - k.min(u32::MAX / by)]);
            let edges = multiples
                .map(|k| k * by)
                .flat_map(|n| [n.wrapping_sub(1), n, n.saturating_add(1)]);
            for n in edges.chain([0, 1, u32::MAX - 1, u32::MAX]) {
                assert_eq!(Divisor::new(by).divide(n), (n / by, n % by), "{n} / {by}");
            }
        }
    }

    #[test]
    fn digits_are_those_of_the_shape_and_keys_sort_by_the_last_core_but_one() {
        for (p, q, r) in [
            (&[7, 5, 3, 2][..], &[1, 2, 1, 3][..], &[1, 5, 2][..]),
            (&[6, 4, 9], &[2, 2, 2], &[3, 2]),
            (&[13, 1], &[1, 1], &[1]),
            (&[1, 7], &[1, 1], &[1]),
        ] {
            let shape = TtShape::new(p.iter().map(|&p| u64::from(p)).product(), p, q, r).unwrap();
            let (prefix_len, num_prefixes) = (p.len() - 1, p[..p.len() - 1].iter().product());
            for order in [DigitOrder::MostSignificantFirst, DigitOrder::LeastSignificantFirst] {
                let shape = shape.with_digit_order(order);
                let digits = Digits::new(&shape).unwrap();
                assert_eq!(digits.num_prefixes(), num_prefixes);
                let mut prefixes = Vec::new();
                for row in 0..shape.num_embeddings() as u32 {
                    let expected = shape.padded_digits(row.into());
                    assert_eq!(digits.last(row), expected[prefix_len]);
                    assert_eq!(u64::from(digits.prefix(row)), shape.prefix(row.into()));
                    let mut rows = [SmallRow::EMPTY];
                    digits.write_all(&mut [row.into()], &mut rows);
                    assert_eq!(rows[0].digits, expected);
                    let key = digits.prefix_key(row);
                    assert_eq!(digits.prefix_digits(key)[..prefix_len], expected[..prefix_len]);
                    prefixes.push((
                        expected[..prefix_len].iter().rev().copied().collect::<Vec<_>>(),
                        key,
                    ));
                }
                prefixes.sort();
                prefixes.dedup();
                let keys = prefixes.iter().map(|(_, key)| *key);
                assert!(keys.eq(0..num_prefixes), "{prefixes:?}");
            }
        }
    }

    #[test]
    fn a_table_of_more_than_32_bits_is_refused() {
        let shape = TtShape::new(1 << 33, &[1 << 16, 1 << 17], &[1, 1], &[1]).unwrap();
        assert!(Digits::new(&shape).is_none());
    }
}
