//! An index of ascending ids: a bit for each possible id, and counts of the bits before it. A
//! search reads one cache line, where a binary search reads one for each halving.

use bytemuck::{Pod, Zeroable};

const WORDS: usize = 6;

/// Number of possible ids that a line covers.
pub(crate) const IDS_PER_LINE: u64 = 64 * WORDS as u64;

/// One cache line: a bit for each of [`IDS_PER_LINE`] consecutive ids, set if the id is in the
/// list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Line {
    /// Number of listed ids before the first of this line.
    before: u32,
    /// Number of listed ids of this line before the first of each word.
    before_word: [u16; WORDS],
    words: [u64; WORDS],
}

/// The position of `id` in the list, if it is listed. Any position, if the lines contradict the
/// list.
#[inline]
pub(crate) fn position_in(lines: &[Line], id: u64) -> Option<usize> {
    let line = lines.get(usize::try_from(id / IDS_PER_LINE).ok()?)?;
    let bit = id % IDS_PER_LINE;
    let at = (bit / 64) as usize;
    let (word, before) = (line.words.get(at)?, line.before_word.get(at)?);
    let mask = 1u64.wrapping_shl((bit % 64) as u32);
    // Counted even if the id is not listed: a branch that cannot be predicted costs more.
    let before_in_word = (word & mask.wrapping_sub(1)).count_ones();
    let position = line.before.wrapping_add((*before).into()).wrapping_add(before_in_word) as usize;
    (word & mask != 0).then_some(position)
}

/// The position of `id` among ascending `ids`. `index` is empty if they have none.
#[inline]
pub(crate) fn position(ids: &[u64], index: &[Line], id: u64) -> Option<usize> {
    if !index.is_empty() {
        // The index is payload, which parsing does not check: the position may be out of range.
        return position_in(index, id).filter(|&position| position < ids.len());
    }
    let (first, last) = (ids.first()?, ids.last()?);
    if id < *first || id > *last {
        return None;
    }
    // In a table that is sorted by frequency, the listed ids are often the first ones, without
    // gaps: then this guess is right.
    let guess = usize::try_from(id.wrapping_sub(*first)).ok()?;
    if ids.get(guess) == Some(&id) {
        Some(guess)
    } else {
        ids.binary_search(&id).ok()
    }
}

/// Bytes of the index that the writer adds to `count` ids below `limit`, each of an item of
/// `item_len` bytes. 0, for no index, if there are few ids, or if the index would be longer than
/// half of the items.
#[cfg(feature = "alloc")]
pub fn id_index_len(count: u64, limit: u64, item_len: usize) -> u64 {
    let (len, served) = (byte_len(limit), count.saturating_mul(item_len as u64));
    if (256..=u32::MAX.into()).contains(&count) && len <= served / 2 {
        len
    } else {
        0
    }
}

/// Bytes of the lines for ids below `limit`.
#[cfg(feature = "alloc")]
fn byte_len(limit: u64) -> u64 {
    limit.div_ceil(IDS_PER_LINE).saturating_mul(size_of::<Line>() as u64)
}

/// The contents of a section of role [`OverrideIndex`](crate::blob::Role::OverrideIndex) or
/// [`PrefixIndex`](crate::blob::Role::PrefixIndex), 64 bytes at a time. `ids` ascend and are below
/// `limit`: the number of indices, or of prefixes.
#[cfg(feature = "alloc")]
pub fn id_index(ids: &[u64], limit: u64) -> impl Iterator<Item = [u8; 64]> {
    lines(ids, limit).map(bytemuck::cast)
}

#[cfg(feature = "alloc")]
fn lines(ids: &[u64], limit: u64) -> impl Iterator<Item = Line> {
    let mut rest = ids;
    let mut before = 0u32;
    (0..limit.div_ceil(IDS_PER_LINE)).map(move |number| {
        let first = number.saturating_mul(IDS_PER_LINE);
        let count = rest.partition_point(|&id| id.saturating_sub(first) < IDS_PER_LINE);
        let (ids, after) = rest.split_at_checked(count).unwrap_or((rest, &[]));
        let mut line = Line { before, ..Line::default() };
        for bit in ids.iter().map(|id| id.saturating_sub(first)) {
            if let Some(word) = line.words.get_mut((bit / 64) as usize) {
                *word |= 1 << (bit % 64);
            }
        }
        let mut before_in_line = 0u16;
        for (to, word) in line.before_word.iter_mut().zip(&line.words) {
            *to = before_in_line;
            before_in_line = before_in_line.saturating_add(word.count_ones() as u16);
        }
        rest = after;
        before = before.saturating_add(before_in_line.into());
        line
    })
}

#[cfg(all(test, feature = "alloc"))]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn every_id_is_found_where_it_stands_and_no_other_is() {
        let cases: [(u64, Vec<u64>); 6] = [
            (1, [0].into()),
            (383, (0..383).collect()),
            (384, [0, 63, 64, 383].into()),
            (385, [384].into()),
            (5_000, (0..5_000).filter(|id| id * id % 7 == 2).collect()),
            (100_000, [0, 1, 2, 40_000, 40_319, 40_320, 99_999].into()),
        ];
        for (limit, ids) in cases {
            let lines: Vec<Line> = lines(&ids, limit).collect();
            assert_eq!(size_of_val(&lines[..]) as u64, byte_len(limit));
            for id in 0..limit + 1000 {
                assert_eq!(
                    position_in(&lines, id),
                    ids.iter().position(|&there| there == id),
                    "{id} of {limit}"
                );
            }
            assert_eq!(position_in(&lines, u64::MAX), None);
        }
    }
}
