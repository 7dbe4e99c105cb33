//! Rows of a tensor train that are learned as they are, because they are asked for most (TT-Rec,
//! section 4.3).
//!
//! Which ones is found out as [`RowCache`](crate::cache::RowCache) does it: a set-associative cache
//! counts requests, and at certain steps the most frequent rows take the places of the least
//! frequent ones. A row that enters begins as the cores have it. A row that leaves is *folded* into
//! the cores: they are moved by gradient descent so that their row comes nearer to it.
//! It never gets worse: a step that does not lessen the squared distance is taken back. What
//! distance is left is lost, since a row of a tensor train cannot be set without its neighbours.

use super::{Parameters, TrainError};
use crate::{
    Bags, Pooling,
    table::cached::{CachedRows, Set, WAYS, set_of},
};
use std::{vec, vec::Vec};

/// Steps of gradient descent that are tried for rows that leave.
pub(super) const FOLDING_STEPS: usize = 24;

/// The cache of a [`TtTable`](super::TtTable): how many rows, and when they change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSpec {
    /// Rows that it has room for at least.
    pub rows: u32,
    /// Steps before the first rows enter.
    pub warm_up: u64,
    /// Steps from then on between changes; 0 for none.
    pub refresh: u64,
}

impl CacheSpec {
    /// Rows that it has room for: they come in sets of 32.
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
    /// Lookups of rows that are held, by their positions, and lookups of others.
    held: Lookups,
    pub(super) others: Lookups,
}

/// Some lookups of a batch, kept for their memory.
#[derive(Debug, Default)]
pub(super) struct Lookups {
    indices: Vec<u32>,
    offsets: Vec<u32>,
    weights: Vec<f32>,
}

impl Lookups {
    fn clear(&mut self) {
        self.indices.clear();
        self.offsets.clear();
        self.offsets.push(0);
        self.weights.clear();
    }

    /// As bags that are to be summed.
    pub(super) fn bags(&self) -> Option<Bags<'_>> {
        Bags::new(&self.indices, &self.offsets)
            .ok()?
            .with_per_sample_weights(&self.weights)
            .ok()
    }
}

/// Rows that leave.
pub(super) struct Leaving {
    pub(super) rows: Vec<u32>,
    /// As they were learned, one after another.
    pub(super) values: Vec<f32>,
}

impl Cache {
    pub(super) fn new(spec: CacheSpec) -> Self {
        let sets = vec![Set::EMPTY; spec.num_sets()];
        Self { spec, sets, held: Lookups::default(), others: Lookups::default() }
    }

    /// What lookups read before they compute.
    pub(super) fn view<'c>(&'c self, rows: &'c Parameters) -> CachedRows<'c> {
        CachedRows { sets: &self.sets, rows: rows.values() }
    }

    /// Counts the lookups of checked `bags`, and tells those of rows that are held from the others.
    pub(super) fn divide(&mut self, bags: &Bags<'_>, pooling: Pooling) -> Option<()> {
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
                to.indices.push(index);
                to.weights.push(
                    bags.per_sample_weights()
                        .map_or(Some(mean), |weights| weights.get(at).copied())?,
                );
                let set = set_of(row, sets.len());
                sets.get_mut(set)?.record(row);
            }
            for lookups in [&mut *held, &mut *others] {
                lookups.offsets.push(lookups.indices.len() as u32);
            }
        }
        Some(())
    }

    /// The lookups of rows that are held, by their positions.
    pub(super) fn held(&self) -> Option<Bags<'_>> {
        self.held.bags()
    }

    /// Lets rows enter and leave, if it is time. `row_of` computes a row from the cores.
    pub(super) fn refresh(
        &mut self,
        steps: u64,
        rows: &mut Parameters,
        mut row_of: impl FnMut(u32, &mut [f32]) -> Option<()>,
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

    /// The rows that are held, ascending, and the position of each.
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

    /// Takes over what [`counters`](Self::counters) gave, of a table of `num_embeddings` rows.
    pub(super) fn set_counters(
        &mut self,
        counters: &[u64],
        num_embeddings: u64,
    ) -> Result<(), TrainError> {
        let words: &[u32] = bytemuck::cast_slice(counters);
        let sets: &[Set] = bytemuck::try_cast_slice(words).map_err(|_| TrainError::Counters)?;
        let is_possible = |(at, set): (usize, &Set)| {
            let mut rows: Vec<u32> = set.indices().collect();
            rows.sort_unstable();
            let is_here =
                |&row: &u32| u64::from(row) < num_embeddings && set_of(row, sets.len()) == at;
            rows.iter().all(is_here) && rows.is_sorted_by(|a, b| a < b)
        };
        if sets.len() != self.sets.len() || !sets.iter().enumerate().all(is_possible) {
            return Err(TrainError::Counters);
        }
        self.sets.copy_from_slice(sets);
        Ok(())
    }
}
