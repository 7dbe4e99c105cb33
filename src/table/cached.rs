//! Rows that are kept multiplied out, by the sets of a cache: what [`crate::cache::RowCache`] fills
//! and lookups read.

/// Rows that a set holds.
pub(crate) const WAYS: usize = 32;
/// Rows that a set knows: those that it holds, and as many that could take their place.
const KNOWN: usize = 2 * WAYS;
/// Stands for no row.
const NO_ROW: u32 = u32::MAX;

/// What a set knows of its rows, the held ones first.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct Set {
    rows: [u32; KNOWN],
    counts: [u32; KNOWN],
}

pub(crate) const SET_WORDS: usize = size_of::<Set>() / size_of::<f32>();

impl Set {
    pub(crate) const EMPTY: Self = Self { rows: [NO_ROW; KNOWN], counts: [0; KNOWN] };

    /// The way that holds `row`.
    #[inline(always)]
    fn held(&self, row: u32) -> Option<usize> {
        way_of(self.rows.first_chunk::<WAYS>()?, row)
    }

    /// The row that a way holds, or would.
    #[cfg(feature = "train")]
    pub(crate) fn row(&self, way: usize) -> Option<u32> {
        self.rows.get(way).copied().filter(|&row| row != NO_ROW)
    }

    /// All rows that it knows.
    #[cfg(feature = "train")]
    pub(crate) fn rows(&self) -> impl Iterator<Item = u32> {
        self.rows.into_iter().filter(|&row| row != NO_ROW)
    }

    /// Counts one request; whether the row is held.
    pub(crate) fn record(&mut self, row: u32) -> bool {
        let way = way_of(&self.rows, row);
        let known = way.unwrap_or_else(|| {
            // Whoever is new takes over the count of the rarest, so that the count is never too low
            // (the Space-Saving algorithm: Metwally, Agrawal and El Abbadi, "Efficient
            // computation of frequent and top-k elements in data streams", 2005).
            (WAYS..KNOWN).min_by_key(|&way| self.counts.get(way)).unwrap_or(WAYS)
        });
        if let (Some(tag), Some(count)) = (self.rows.get_mut(known), self.counts.get_mut(known)) {
            *tag = row;
            *count = count.saturating_add(1);
        }
        way.is_some_and(|way| way < WAYS)
    }

    /// A row that is asked for more often than one that is held: the way that it should take, where
    /// it is now, and the row.
    pub(crate) fn best_exchange(&self) -> Option<(usize, usize, u32)> {
        let rarest = (0..WAYS).min_by_key(|&way| self.counts.get(way))?;
        let best = (WAYS..KNOWN).max_by_key(|&way| self.counts.get(way))?;
        let gains = self.counts.get(best) > self.counts.get(rarest);
        gains.then_some((rarest, best, *self.rows.get(best)?))
    }

    /// Lets two ways change their places.
    pub(crate) fn exchange(&mut self, a: usize, b: usize) {
        self.counts.swap(a, b);
        self.rows.swap(a, b);
    }

    /// Makes what was asked for long ago weigh less.
    pub(crate) fn halve_counts(&mut self) {
        self.counts.iter_mut().for_each(|count| *count /= 2);
    }
}

/// The position of `row`, which occurs once at most.
#[inline(always)]
fn way_of<const N: usize>(rows: &[u32; N], row: u32) -> Option<usize> {
    // Every row is looked at, so that the compiler can look at several at once.
    let found = rows
        .iter()
        .zip(1u32..)
        .fold(0, |found, (&other, at)| found | if other == row { at } else { 0 });
    found.checked_sub(1).map(|at| at as usize)
}

/// The set of `row`, of `num_sets`: a multiplicative hash, scaled to their number.
#[inline(always)]
pub(crate) fn set_of(row: u32, num_sets: usize) -> usize {
    let hash = row.wrapping_mul(0x9E37_79B1);
    ((u64::from(hash).wrapping_mul(num_sets as u64)) >> 32) as usize
}

/// The row, if it can be cached: if it is not [`NO_ROW`] or beyond.
#[inline(always)]
pub(crate) fn known(row: u64) -> Option<u32> {
    u32::try_from(row).ok().filter(|&row| row != NO_ROW)
}

/// What is cached, for those who look rows up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CachedRows<'c> {
    pub(crate) sets: &'c [Set],
    /// [`WAYS`] rows for each set; those that are not in use are anything.
    pub(crate) rows: &'c [f32],
}

impl CachedRows<'_> {
    /// The position of `row` among the cached ones.
    #[inline(always)]
    pub(crate) fn position(&self, row: u64) -> Option<usize> {
        let row = known(row)?;
        let set = set_of(row, self.sets.len());
        Some(set.wrapping_mul(WAYS).wrapping_add(self.sets.get(set)?.held(row)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_stay_at_their_limit_and_halve_from_there() {
        let mut set = Set::EMPTY;
        set.rows[WAYS] = 7;
        set.counts[WAYS] = u32::MAX - 1;
        for _ in 0..3 {
            assert!(!set.record(7));
        }
        assert_eq!((set.rows[WAYS], set.counts[WAYS]), (7, u32::MAX));
        set.halve_counts();
        assert_eq!(set.counts[WAYS], u32::MAX / 2);
    }
}
