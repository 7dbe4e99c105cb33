//! Sorting lookups by prefix, within the caller's memory.
//!
//! `sort_unstable` needs no memory either, but it can panic if an order is not total, and the
//! lookup path must not link the panic handler. It is also slower: a radix sort of keys below a
//! known limit takes one pass for each 8 bits of the limit, two for most tables.

/// Bits of the key that one pass sorts by. The nearest cache holds 256 counters of 4 bytes and a
/// cache line of each bucket.
const RADIX_BITS: u32 = 8;
const BUCKETS: usize = 1 << RADIX_BITS;
/// Up to this number, insertion sort is faster: a counting pass begins with 256 counters.
const FEW: usize = 48;

/// Sorts `entries` by their high 32 bits, the key, which is below `limit`. Entries of equal keys
/// come in ascending order of their low 32 bits, and must do so already. Returns whether the sorted
/// entries are in `spare`. If `spare` is shorter than `entries`, the sort is an insertion sort in
/// place, which is slow for many entries.
pub(crate) fn sort(entries: &mut [u64], spare: &mut [u64], limit: u32) -> bool {
    let spare = spare.get_mut(..entries.len()).unwrap_or_default();
    if entries.len() <= FEW || spare.is_empty() {
        insertion_sort(entries);
        return false;
    }
    let (mut from, mut to) = (entries, spare);
    let mut in_spare = false;
    let bits = u32::BITS.saturating_sub(limit.saturating_sub(1).leading_zeros());
    for shift in (0..bits).step_by(RADIX_BITS as usize) {
        counting_pass(from, to, shift.saturating_add(32));
        core::mem::swap(&mut from, &mut to);
        in_spare = !in_spare;
    }
    in_spare
}

fn insertion_sort(entries: &mut [u64]) {
    for end in 1..entries.len() {
        let mut sorted = entries.get_mut(..=end).unwrap_or_default();
        while let [.., before, last] = sorted
            && *before > *last
        {
            core::mem::swap(before, last);
            sorted = sorted.split_last_mut().map_or(&mut [], |(_, sorted)| sorted);
        }
    }
}

/// A stable pass by the bits from `shift` on.
fn counting_pass(from: &[u64], to: &mut [u64], shift: u32) {
    let bucket = |entry: u64| (entry >> shift) as usize % BUCKETS;
    let mut starts = [0u32; BUCKETS];
    for &entry in from {
        if let Some(count) = starts.get_mut(bucket(entry)) {
            *count = count.wrapping_add(1);
        }
    }
    let mut start = 0u32;
    for count in &mut starts {
        start = start.wrapping_add(core::mem::replace(count, start));
    }
    for &entry in from {
        if let Some(start) = starts.get_mut(bucket(entry))
            && let Some(to) = to.get_mut(*start as usize)
        {
            *to = entry;
            *start = start.wrapping_add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use std::{vec, vec::Vec};

    #[test]
    fn entries_are_sorted_at_every_size_and_key_width_with_and_without_spare_memory() {
        let mut state = 1u64;
        for len in [0, 1, 2, FEW - 1, FEW, FEW + 1, 255, 256, 257, 3000] {
            for limit in [1, 2, 255, 256, 257, 65_536, 65_537, 1 << 24, u32::MAX] {
                let mut key = || {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (state >> 33) % u64::from(limit)
                };
                let mut entries: Vec<u64> =
                    (0..len as u64).map(|position| key() << 32 | position).collect();
                let mut expected = entries.clone();
                expected.sort_unstable();
                let (mut with, mut spare) = (entries.clone(), vec![7; len]);
                let in_spare = sort(&mut with, &mut spare, limit);
                assert_eq!(if in_spare { spare } else { with }, expected);
                assert!(!sort(&mut entries, &mut [], limit));
                assert_eq!(entries, expected);
            }
        }
    }
}
