//! The rows of a tensor train that are learned as rows of f32, because they are looked up most
//! (TT-Rec, section 4.3).
//!
//! As in [`RowCache`](crate::cache::RowCache), a set-associative cache counts lookups, and at
//! certain steps the most frequent rows take the places of the least frequent ones. A row that
//! enters starts with the values that the cores give it. A row that leaves is *folded* into the
//! cores: gradient descent moves them so that their own row comes nearer to it. A step that does
//! not reduce the squared distance is undone, so folding never makes the cores worse. The distance
//! that remains is lost, since the cores cannot change one row without others.

use super::{Parameters, TrainError, lookups::LookupList};
use crate::{
    Bags, Pooling,
    kernel::Consistent,
    table::cached::{CachedRows, Set, WAYS, set_of},
};
use std::{vec, vec::Vec};

/// Steps of gradient descent for the rows that leave the cache at one refresh.
pub(super) const FOLDING_STEPS: usize = 24;

/// The cache of a [`TtTable`](super::TtTable): its size, and when its rows change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSpec {
    /// The least number of rows that the cache has room for.
    pub rows: u32,
    /// Steps after which the first rows enter.
    pub warm_up: u64,
    /// Steps between later changes; with 0 there are none.
    pub refresh: u64,
}

impl CacheSpec {
    /// Rows that the cache has room for: `rows`, rounded up to whole sets of 32.
    pub fn capacity(&self) -> usize {
        self.num_sets() * WAYS
    }

    fn num_sets(&self) -> usize {
        (self.rows as usize).div_ceil(WAYS).max(1)
    }

    /// Whether rows enter and leave after step `steps`.
    fn is_due(&self, steps: u64) -> bool {
        let since = steps.checked_sub(self.warm_up.max(1));
        since.is_some_and(|since| {
            since == 0 || self.refresh > 0 && since.is_multiple_of(self.refresh)
        })
    }
}

#[derive(Debug)]
pub(super) struct Cache {
    spec: CacheSpec,
    sets: Vec<Set>,
    /// Rows of the table.
    num_embeddings: u64,
    /// The lookups of the rows in the cache, by their positions in it.
    pub(super) held: LookupList,
    /// The lookups of all other rows.
    pub(super) others: LookupList,
}

/// Rows that leave the cache.
pub(super) struct Leaving {
    pub(super) rows: Vec<u32>,
    /// Their learned values, row-major.
    pub(super) values: Vec<f32>,
}

impl Cache {
    /// An empty cache for a table of `num_embeddings` rows.
    pub(super) fn new(spec: CacheSpec, num_embeddings: u64) -> Self {
        let (sets, held) = (vec![Set::EMPTY; spec.num_sets()], LookupList::default());
        Self { spec, sets, num_embeddings, held, others: LookupList::default() }
    }

    /// The rows, for lookups that read them instead of the cores.
    pub(super) fn view<'c>(&'c self, rows: &'c Parameters) -> CachedRows<'c> {
        CachedRows { sets: &self.sets, rows: rows.values() }
    }

    /// Counts the lookups of checked `bags`, and divides them into `held` and `others`.
    pub(super) fn divide(&mut self, bags: &Bags<'_>, pooling: Pooling) -> Consistent {
        let Self { sets, held, others, .. } = self;
        held.clear();
        others.clear();
        for bag in 0..bags.len() {
            let range = bags.range(bag)?;
            let mean = if pooling == Pooling::Mean {
                1.0 / range.len() as f32
            } else {
                1.0
            };
            for at in range {
                let row = bags.index(at)? as u32;
                let position = CachedRows { sets, rows: &[] }.position(row.into());
                let (to, index) =
                    position.map_or((&mut *others, row), |position| (&mut *held, position as u32));
                let weights = bags.per_sample_weights();
                let weight = weights.map_or(Some(mean), |weights| weights.get(at).copied())?;
                to.push(index, weight);
                let set = set_of(row, sets.len());
                sets.get_mut(set)?.record(row);
            }
            for lookups in [&mut *held, &mut *others] {
                lookups.end_bag();
            }
        }
        Some(())
    }

    /// Exchanges rows if they are due after step `steps`. `row_of` computes a row from the cores.
    pub(super) fn refresh(
        &mut self,
        steps: u64,
        rows: &mut Parameters,
        mut row_of: impl FnMut(u32, &mut [f32]) -> Consistent,
    ) -> Option<Leaving> {
        let mut leaving = Leaving { rows: Vec::new(), values: Vec::new() };
        if !self.spec.is_due(steps) {
            return Some(leaving);
        }
        for (set, first) in self.sets.iter_mut().zip((0..).step_by(WAYS)) {
            while let Some((way, from, row)) = set.best_exchange() {
                let values = rows.reset_slice(first + way)?;
                if let Some(old) = set.index(way) {
                    leaving.rows.push(old);
                    leaving.values.extend_from_slice(values);
                }
                row_of(row, values)?;
                set.exchange(way, from);
            }
            set.halve_counts();
        }
        Some(leaving)
    }

    /// The rows in the cache, ascending, and the position of each in it.
    pub(super) fn rows(&self) -> Vec<(u64, usize)> {
        let row = |set: &Set, way: usize, first: usize| Some((set.index(way)?.into(), first + way));
        let rows = |(set, first): (&Set, usize)| {
            (0..WAYS).filter_map(|way| row(set, way, first)).collect()
        };
        let mut rows: Vec<_> =
            self.sets.iter().zip((0..).step_by(WAYS)).flat_map::<Vec<_>, _>(rows).collect();
        rows.sort_unstable();
        rows
    }

    pub(super) fn counters(&self) -> Vec<u64> {
        let pairs: &[[u32; 2]] = bytemuck::cast_slice(&self.sets);
        pairs
            .iter()
            .map(|&[low, high]| u64::from(low) | u64::from(high) << 32)
            .collect()
    }

    /// Restores what [`counters`](Self::counters) returned.
    pub(super) fn set_counters(&mut self, counters: &[u64]) -> Result<(), TrainError> {
        let words: &[u32] = bytemuck::cast_slice(counters);
        let sets: &[Set] = bytemuck::try_cast_slice(words).map_err(|_| TrainError::Counters)?;
        let is_possible = |(at, set): (usize, &Set)| {
            let mut rows: Vec<u32> = set.indices().collect();
            rows.sort_unstable();
            let is_here =
                |&row: &u32| u64::from(row) < self.num_embeddings && set_of(row, sets.len()) == at;
            rows.iter().all(is_here) && rows.is_sorted_by(|a, b| a < b)
        };
        if sets.len() != self.sets.len() || !sets.iter().enumerate().all(is_possible) {
            return Err(TrainError::Counters);
        }
        self.sets.copy_from_slice(sets);
        Ok(())
    }
}
