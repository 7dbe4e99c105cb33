//! From which end a tensor train is multiplied out: a blob's cores are multiplied from the left, so
//! where the other way is less work they are written in reverse, each slice transposed.

use std::borrow::Cow;
use ttrec::{DigitOrder, TtShape};

/// What it takes to put a column of a bag in its place afterwards, in FLOP of the products that are
/// saved for it.
const COLUMN_FLOPS: u64 = 100;

/// A tensor train, and as what a blob has it.
#[derive(Clone, Copy)]
pub(crate) struct ContractionOrder {
    given: TtShape,
    stored: TtShape,
}

impl ContractionOrder {
    pub(crate) fn of(given: &TtShape) -> Self {
        let placing = COLUMN_FLOPS * given.embedding_dim() as u64;
        let saves =
            given.flops_right_to_left().saturating_add(placing) < given.flops_left_to_right();
        let stored = if saves {
            given.reversed().unwrap_or(*given)
        } else {
            *given
        };
        Self { given: *given, stored }
    }

    /// The shape that the blob has.
    pub(crate) fn stored(&self) -> &TtShape {
        &self.stored
    }

    fn is_reversed(&self) -> bool {
        self.stored.column_order() != self.given.column_order()
    }

    /// The given core that is core k of the blob.
    pub(crate) fn core(&self, k: usize) -> usize {
        if self.is_reversed() {
            self.given.num_cores() - 1 - k
        } else {
            k
        }
    }

    /// Where in a slice of the given core that is core k of the blob the blob's element `at` is.
    pub(crate) fn element(&self, k: usize, at: usize) -> usize {
        if !self.is_reversed() {
            return at;
        }
        let (r, q, s) =
            (self.stored.rank(k), self.stored.column_factor(k), self.stored.rank(k + 1));
        let (a, b, c) = (at / s / q, at / s % q, at % s);
        (c * q + b) * r + a
    }

    /// A slice of the given core that is core k of the blob, as the blob has it.
    pub(crate) fn slice<'s>(&self, k: usize, given: &'s [f32]) -> Cow<'s, [f32]> {
        if self.is_reversed() {
            (0..given.len()).map(|at| given[self.element(k, at)]).collect()
        } else {
            Cow::Borrowed(given)
        }
    }

    /// A row in the column order of overridden rows in the blob.
    pub(crate) fn row<'r>(&self, row: &'r [f32]) -> Cow<'r, [f32]> {
        in_stored_order(&self.stored, row)
    }
}

/// A row with its elements where a blob's cores put them.
pub(crate) fn in_stored_order<'r>(shape: &TtShape, row: &'r [f32]) -> Cow<'r, [f32]> {
    if shape.column_order() == DigitOrder::MostSignificantFirst {
        return Cow::Borrowed(row);
    }
    let mut stored = vec![0.0; row.len()];
    row.iter()
        .enumerate()
        .for_each(|(column, &x)| stored[shape.position_of_column(column)] = x);
    stored.into()
}
