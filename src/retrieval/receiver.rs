//! Where scores go.

#![allow(
    clippy::arithmetic_side_effects,
    reason = "indices of rows of a table, of at most 2^48, and positions within slices"
)]

use super::best::{Heap, Scored};
use crate::{
    bag::Bags,
    kernel::{Consistent, Epilogue},
    repr::{IndexMap, Overrides, Weights},
    table::Table,
};
use core::ops::Range;

/// Scores that are compared with a bound together.
const CHUNK: usize = 32;

/// Takes runs of scores: writes those of a range of indices out, or keeps the best.
pub(super) struct Receiver<'r> {
    /// Scores of other indices are dropped.
    pub(super) rows: Range<u64>,
    /// The number of the first query of this walk.
    pub(super) first_query: usize,
    /// Indices whose scores another walk gives.
    pub(super) overrides: Option<Overrides<'r>>,
    pub(super) excluded: Option<&'r Bags<'r>>,
    pub(super) bias: Option<&'r Table<'r>>,
    pub(super) target: Target<'r>,
}

pub(super) enum Target<'r> {
    /// All scores, `len` for each query.
    All { out: &'r mut [f32], len: usize },
    /// A heap of `k` rows for each query.
    Best { out: &'r mut [Scored], k: usize },
}

impl Receiver<'_> {
    /// The bound below which a query's scores do not matter, if there is one for all of them.
    pub(super) fn bound(&mut self, query: usize) -> Option<f32> {
        match &mut self.target {
            Target::Best { out, k } if self.bias.is_none() => {
                let list = out.get_mut((self.first_query + query) * *k..)?.get_mut(..*k)?;
                Some(Heap(list).bound())
            }
            _ => None,
        }
    }

    /// Takes the scores of the indices `first`, `first + step`, and so on.
    pub(super) fn run(
        &mut self,
        query: usize,
        first: u64,
        step: u64,
        scores: &[f32],
    ) -> Consistent {
        let query = self.first_query + query;
        match &mut self.target {
            Target::All { out, len } => {
                let out = out.get_mut(query * *len..)?.get_mut(..*len)?;
                let mut index = first;
                for &score in scores {
                    if self.rows.contains(&index) {
                        *out.get_mut(usize::try_from(index - self.rows.start).ok()?)? = score;
                    }
                    index += step;
                }
            }
            Target::Best { out, k } => {
                let mut heap = Heap(out.get_mut(query * *k..)?.get_mut(..*k)?);
                let mut first = first;
                for scores in scores.chunks(CHUNK) {
                    let mut sums = [f32::NAN; CHUNK];
                    sums.iter_mut().zip(scores).for_each(|(to, from)| *to = *from);
                    if let Some(bias) = self.bias {
                        add_bias(bias, first, step, sums.get_mut(..scores.len())?)?;
                    }
                    let bound = heap.bound();
                    // No early exit: the compiler then compares several scores at once.
                    if sums.iter().fold(false, |any, &sum| any | (sum >= bound)) {
                        let mut next = first;
                        for &score in &sums {
                            let index = next;
                            next += step;
                            if score >= heap.bound()
                                && self.rows.contains(&index)
                                && !is_stored_elsewhere(&self.overrides, index)
                                && !is_excluded(self.excluded, query, index)
                            {
                                heap.offer(Scored { index, score });
                            }
                        }
                    }
                    first += step * scores.len() as u64;
                }
            }
        }
        Some(())
    }
}

fn is_stored_elsewhere(overrides: &Option<Overrides<'_>>, index: u64) -> bool {
    overrides.as_ref().is_some_and(|overrides| overrides.position(index).is_some())
}

/// Whether the query's list has `index`: a binary search.
fn is_excluded(lists: Option<&Bags<'_>>, query: usize, index: u64) -> bool {
    let Some(lists) = lists else { return false };
    let list = if lists.len() == 1 { 0 } else { query };
    let Range { mut start, mut end } = lists.range(list).unwrap_or_default();
    while start < end {
        let middle = start + (end - start) / 2;
        match lists.index(middle) {
            Some(found) if found < index => start = middle + 1,
            Some(found) if found == index => return true,
            _ => end = middle,
        }
    }
    false
}

/// Adds the biases of the indices `first`, `first + step`, and so on; of indices past the last row,
/// nothing.
fn add_bias(bias: &Table<'_>, first: u64, step: u64, sums: &mut [f32]) -> Consistent {
    let data = bias.data();
    let plain = match (&data.weights, data.index_map, data.overrides) {
        (Weights::Dense(rows), IndexMap::Identity, None) => rows.elements.as_f32(),
        _ => None,
    };
    if let (Some(values), Ok(first), Ok(step)) =
        (plain, usize::try_from(first), usize::try_from(step))
    {
        let values = values.get(first..).unwrap_or_default().iter().step_by(step.max(1));
        sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
        return Some(());
    }
    let mut index = first;
    for sum in sums {
        if index < bias.num_embeddings() {
            let mut value = [0.0];
            bias.write_row(index, &mut value, &mut [], Epilogue::Store)?;
            *sum += value[0];
        }
        index += step;
    }
    Some(())
}
