//! The lookups of a batch, sorted so that lookups of the same row or prefix are adjacent.

use super::{Quantity, TrainError, Unsupported};
use crate::{
    Bags, Pooling, Table,
    bag::{self, sort},
};
use std::vec::Vec;

/// Lookups sorted by key, those of equal keys by position. Steps reuse its memory.
#[derive(Debug, Default)]
pub(super) struct SortedLookups {
    /// `key << 32 | position`.
    entries: Vec<u64>,
    spare: Vec<u64>,
    bag_of: Vec<u32>,
    /// The factor of each lookup's row in its bag; empty if all factors are 1.
    scales: Vec<f32>,
}

/// One lookup. The gradient of its row is `scale` times the gradient of its bag.
#[derive(Clone, Copy)]
pub(super) struct Lookup {
    pub(super) position: usize,
    pub(super) bag: usize,
    pub(super) scale: f32,
}

impl SortedLookups {
    /// Sorts the lookups of checked `bags` by the `key` of their row, which is below `limit`.
    pub(super) fn sort(
        &mut self,
        bags: &Bags<'_>,
        pooling: Pooling,
        limit: u32,
        key: impl Fn(u32) -> u32,
    ) {
        let entry = |(index, position)| u64::from(key(index as u32)) << 32 | position;
        self.entries.clear();
        self.entries.extend(bags.indices().zip(0u64..).map(entry));
        self.spare.resize(self.entries.len(), 0);
        if sort(&mut self.entries, &mut self.spare, limit) {
            core::mem::swap(&mut self.entries, &mut self.spare);
        }

        self.bag_of.clear();
        self.scales.clear();
        self.scales.extend_from_slice(bags.per_sample_weights().unwrap_or_default());
        for (bag, lookups) in
            (0..bags.len()).zip(0u32..).filter_map(|(at, bag)| Some((bag, bags.range(at)?)))
        {
            self.bag_of.resize(lookups.end, bag);
            if pooling == Pooling::Mean {
                self.scales.resize(lookups.end, 1.0 / lookups.len() as f32);
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The key of entry `at`.
    pub(super) fn key(&self, at: usize) -> u32 {
        (self.entries[at] >> 32) as u32
    }

    /// Entry `at`.
    pub(super) fn lookup(&self, at: usize) -> Lookup {
        let position = self.entries[at] as u32 as usize;
        let scale = if self.scales.is_empty() {
            1.0
        } else {
            self.scales[position]
        };
        Lookup { position, bag: self.bag_of[position] as usize, scale }
    }

    /// The end of the entries that have the key of entry `at`.
    pub(super) fn end_of_key(&self, at: usize) -> usize {
        let key = self.key(at);
        self.entries[at..]
            .iter()
            .position(|entry| (entry >> 32) as u32 != key)
            .map_or(self.len(), |count| at + count)
    }
}

/// Some lookups of a batch, in bags. Steps reuse its memory.
#[derive(Debug, Default)]
pub(super) struct LookupList {
    indices: Vec<u32>,
    offsets: Vec<u32>,
    weights: Vec<f32>,
}

impl LookupList {
    pub(super) fn clear(&mut self) {
        self.indices.clear();
        self.offsets.clear();
        self.offsets.push(0);
        self.weights.clear();
    }

    /// Adds a lookup to the bag that is open.
    pub(super) fn push(&mut self, index: u32, weight: f32) {
        self.indices.push(index);
        self.weights.push(weight);
    }

    /// Ends the bag that is open.
    pub(super) fn end_bag(&mut self) {
        self.offsets.push(self.indices.len() as u32);
    }

    /// Appends checked `bags`.
    pub(super) fn append(&mut self, bags: &Bags<'_>, pooling: Pooling) {
        let (first, start) = (self.indices.len(), self.indices.len() as u32);
        self.indices.extend(bags.indices().map(|index| index as u32));
        self.offsets.extend(bags.offsets().skip(1).map(|offset| start + offset as u32));
        self.weights.extend_from_slice(bags.per_sample_weights().unwrap_or_default());
        self.weights.resize(self.indices.len(), 1.0);
        if pooling == Pooling::Mean {
            for range in (0..bags.len()).filter_map(|bag| bags.range(bag)) {
                let share = 1.0 / range.len() as f32;
                self.weights[first..][range].fill(share);
            }
        }
    }

    /// As bags to be summed: the weights include what mean pooling divides by.
    pub(super) fn bags(&self) -> Option<Bags<'_>> {
        Bags::new(&self.indices, &self.offsets)
            .ok()?
            .with_per_sample_weights(&self.weights)
            .ok()
    }
}

/// Refuses bags, or a gradient, that a table cannot learn from.
pub(super) fn check(
    table: &Table<'_>,
    bags: &Bags<'_>,
    pooling: Pooling,
    gradient: &[f32],
) -> Result<(), TrainError> {
    check_bags(table, bags, pooling)?;
    let expected = bags.len().saturating_mul(table.embedding_dim());
    Quantity::Gradient.check(gradient.len(), expected as u64)
}

/// Refuses bags that a table cannot learn from.
pub(super) fn check_bags(
    table: &Table<'_>,
    bags: &Bags<'_>,
    pooling: Pooling,
) -> Result<(), TrainError> {
    if pooling == Pooling::Max {
        return Err(TrainError::Unsupported(Unsupported::MaxPooling));
    }
    if bags.has_padding() {
        return Err(TrainError::Unsupported(Unsupported::Padding));
    }
    let longest = bags.num_indices().max(bags.len());
    if u32::try_from(longest).is_err() {
        return Err(Quantity::Lookups.above(longest as u64, u32::MAX.into()));
    }
    Ok(bag::check_bags(bags, table.num_embeddings(), pooling)?)
}
