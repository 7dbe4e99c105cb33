//! Which rows a set of the cache holds: the most frequently requested ones, estimated with one
//! counter per way.

use crate::table::cached::{KNOWN, NO_INDEX, Set, WAYS, way_of};

impl Set {
    pub(crate) const EMPTY: Self = Self { indices: [NO_INDEX; KNOWN], counts: [0; KNOWN] };

    /// The index that a way counts, if it is in use.
    #[cfg(feature = "train")]
    pub(crate) fn index(&self, way: usize) -> Option<u32> {
        self.indices.get(way).copied().filter(|&index| index != NO_INDEX)
    }

    /// All indices that the set counts.
    #[cfg(feature = "train")]
    pub(crate) fn indices(&self) -> impl Iterator<Item = u32> {
        self.indices.into_iter().filter(|&index| index != NO_INDEX)
    }

    /// Counts one request; returns whether the row of `index` is held.
    pub(crate) fn record(&mut self, index: u32) -> bool {
        let way = way_of(&self.indices, index);
        let counted = way.unwrap_or_else(|| {
            // A new index inherits the count of the rarest one, so that no count is ever too low
            // (the Space-Saving algorithm: Metwally, Agrawal and El Abbadi, "Efficient
            // computation of frequent and top-k elements in data streams", 2005).
            (WAYS..KNOWN).min_by_key(|&way| self.counts.get(way)).unwrap_or(WAYS)
        });
        if let (Some(tag), Some(count)) =
            (self.indices.get_mut(counted), self.counts.get_mut(counted))
        {
            *tag = index;
            *count = count.saturating_add(1);
        }
        way.is_some_and(|way| way < WAYS)
    }

    /// The most frequent index whose row is not held, if it is more frequent than the rarest index
    /// whose row is held. Returns the way of that rarest index, the way of the frequent index, and
    /// the frequent index.
    pub(crate) fn best_exchange(&self) -> Option<(usize, usize, u32)> {
        let rarest = (0..WAYS).min_by_key(|&way| self.counts.get(way))?;
        let best = (WAYS..KNOWN).max_by_key(|&way| self.counts.get(way))?;
        let gains = self.counts.get(best) > self.counts.get(rarest);
        gains.then_some((rarest, best, *self.indices.get(best)?))
    }

    /// Swaps two ways.
    pub(crate) fn exchange(&mut self, a: usize, b: usize) {
        self.counts.swap(a, b);
        self.indices.swap(a, b);
    }

    /// Halves all counts, so that old requests weigh less.
    pub(crate) fn halve_counts(&mut self) {
        self.counts.iter_mut().for_each(|count| *count /= 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_stay_at_their_limit_and_halve_from_there() {
        let mut set = Set::EMPTY;
        set.indices[WAYS] = 7;
        set.counts[WAYS] = u32::MAX - 1;
        for _ in 0..3 {
            assert!(!set.record(7));
        }
        assert_eq!((set.indices[WAYS], set.counts[WAYS]), (7, u32::MAX));
        set.halve_counts();
        assert_eq!(set.counts[WAYS], u32::MAX / 2);
    }
}
