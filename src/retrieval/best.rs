//! The best rows so far: a heap of k rows for each query, in the caller's output.

use super::RetrievalError;

/// An index and its score.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct Scored {
    /// The index of the row.
    pub index: u64,
    /// Its inner product with the query, plus its bias if there is one.
    pub score: f32,
}

impl Scored {
    /// The absence of a row: the index `u64::MAX` (-1 as an `i64`) and the score negative infinity.
    /// If fewer rows are found than a list has room for, the rest of the list is `NONE`.
    pub const NONE: Self = Self { index: u64::MAX, score: f32::NEG_INFINITY };

    /// Whether this is [`NONE`](Self::NONE), which is not a row.
    pub fn is_none(&self) -> bool {
        self.index == u64::MAX
    }

    /// Whether this row comes before `other`: by the larger score, then by the smaller index.
    fn is_better(&self, other: &Self) -> bool {
        self.score > other.score || self.score == other.score && self.index < other.index
    }
}

/// A heap whose root is the worst of its rows. A list of [`Scored::NONE`] is a heap, and so is a
/// list that is sorted from the worst row to the best.
pub(super) struct Heap<'l>(pub(super) &'l mut [Scored]);

impl Heap<'_> {
    /// The worst score in the heap: a row with a lower score is not one of the best. NaN if the
    /// heap has room for no row.
    pub(super) fn bound(&self) -> f32 {
        self.0.first().map_or(f32::NAN, |worst| worst.score)
    }

    /// Replaces the worst row with `row`, if that is better.
    pub(super) fn offer(&mut self, row: Scored) {
        if self.0.first().is_some_and(|worst| row.is_better(worst)) {
            sift(self.0, row);
        }
    }

    /// Sorts the rows, best first. The list is then no longer a heap.
    pub(super) fn sort(self) {
        let mut heap = self.0;
        while let Some((last, rest)) = heap.split_last_mut() {
            if let Some(&worst) = rest.first() {
                let row = core::mem::replace(last, worst);
                sift(rest, row);
            }
            heap = rest;
        }
    }
}

/// Replaces the root of a heap with `row`.
fn sift(heap: &mut [Scored], row: Scored) {
    let mut hole = 0usize;
    loop {
        let left = hole.saturating_mul(2).saturating_add(1);
        let right = left.saturating_add(1);
        let child = match (heap.get(left), heap.get(right)) {
            (Some(a), Some(b)) if a.is_better(b) => right,
            (Some(_), _) => left,
            (None, _) => break,
        };
        match heap.get(child) {
            Some(&worse) if row.is_better(&worse) => {
                if let Some(at) = heap.get_mut(hole) {
                    *at = worse;
                }
            }
            _ => break,
        }
        hole = child;
    }
    if let Some(at) = heap.get_mut(hole) {
        *at = row;
    }
}

/// Merges `others` into `best`. Both are results of [`Table::top_k`](crate::Table::top_k) for the
/// same queries, but for different rows: another range, or another [part](super::Search::part).
/// Both have one list for each query, of `k` rows, best first.
///
/// # Errors
/// [`RetrievalError::OutputLen`] if `best` and `others` differ in length, or are not whole lists of
/// `k` rows.
pub fn merge_top_k(k: usize, best: &mut [Scored], others: &[Scored]) -> Result<(), RetrievalError> {
    if best.len() != others.len() || best.len().checked_rem(k).unwrap_or(best.len()) != 0 {
        return Err(RetrievalError::OutputLen { found: best.len(), expected: others.len() });
    }
    for (best, others) in best.chunks_exact_mut(k.max(1)).zip(others.chunks_exact(k.max(1))) {
        best.reverse();
        let mut heap = Heap(best);
        others.iter().for_each(|&row| heap.offer(row));
        heap.sort();
    }
    Ok(())
}
