//! Bags over tensor trains whose rows are small: each row is multiplied out and added to its bag in
//! the order of the indices.

use super::{Bags, chain::Output, digits::Digits, divide};
use crate::{
    kernel::{Consistent, Epilogue, SmallRow, multiply_rows},
    repr::TtCores,
    shape::TtShape,
    table::{Table, index_map::RowOf},
};

/// The most rows that one call of the kernel takes.
const ROWS: usize = 32;
/// From this many lookups on, [`pool`] takes less time than pooling row by row.
pub(super) const FEW: usize = 4;

/// The f32 elements of workspace with which a batch of `num_lookups` is fastest.
pub(super) fn best_workspace_len(shape: &TtShape, num_lookups: usize) -> usize {
    shape
        .partial_len()
        .saturating_mul(shape.num_partials())
        .saturating_mul(num_lookups.min(ROWS))
}

/// Sums or averages each bag. `None` if lengths contradict each other.
pub(super) fn pool(
    table: &Table<'_>,
    tt: &TtCores<'_>,
    bags: &Bags<'_>,
    mean: bool,
    out: &mut Output<'_>,
    workspace: &mut [f32],
) -> Consistent {
    let len = tt.shape.partial_len().saturating_mul(tt.shape.num_partials());
    let room = workspace.len().checked_div(len).unwrap_or(ROWS).clamp(1, ROWS);
    let (digits, row_of) = (Digits::new(&tt.shape), RowOf::new(table.data()));
    let has_stored_rows = table.has_stored_rows();
    let mut rows = [SmallRow::EMPTY; ROWS];
    let mut numbers = [0; ROWS];
    let mut count = 0usize;
    out.fill_zero(table.tier(), 0..bags.len())?;
    let mut add_rows = |rows: &mut [SmallRow], numbers: &mut [u64], out: &mut [f32]| {
        match &digits {
            Some(digits) => digits.write_all(numbers, rows),
            None => numbers.iter().zip(&mut *rows).for_each(|(&number, row)| {
                row.digits = tt.shape.padded_digits(number);
            }),
        }
        multiply_rows(table.tier(), tt, rows, true, workspace, out)
    };
    for bag in 0..bags.len() {
        let start = out.start(bag);
        for position in bags.range(bag)? {
            let index = bags.indices.get(position)?;
            if bags.is_padding(index) {
                continue;
            }
            let weight = match bags.per_sample_weights {
                Some(weights) => *weights.get(position)?,
                None => 1.0,
            };
            if has_stored_rows && let Some(stored) = table.stored_row(index) {
                // The rows of a bag are added in order: first those before this one.
                let last = count.checked_sub(1).and_then(|last| rows.get(last));
                if last.is_some_and(|row| row.out == start) {
                    let before = core::mem::take(&mut count);
                    add_rows(rows.get_mut(..before)?, numbers.get_mut(..before)?, out.rows)?;
                }
                table.write_stored_row(stored, out.row(bag)?, Epilogue::AddScaled(weight))?;
                continue;
            }
            *numbers.get_mut(count)? = row_of.row(index);
            let row = rows.get_mut(count)?;
            (row.out, row.weight) = (start, weight);
            count = count.wrapping_add(1);
            if count == room {
                add_rows(rows.get_mut(..room)?, numbers.get_mut(..room)?, out.rows)?;
                count = 0;
            }
        }
    }
    add_rows(rows.get_mut(..count)?, numbers.get_mut(..count)?, out.rows)?;
    if mean {
        for bag in 0..bags.len() {
            divide(out.row(bag)?, bags.num_rows(bag)?);
        }
    }
    Some(())
}
