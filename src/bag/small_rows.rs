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
    let digits = Digits::new(&tt.shape);
    let row_of = RowOf::new(table.data());
    let len = tt.shape.partial_len().saturating_mul(tt.shape.num_partials());
    let room = workspace.len().checked_div(len).unwrap_or(ROWS).clamp(1, ROWS);
    let mut rows = [SmallRow::EMPTY; ROWS];
    let rows = rows.get_mut(..room)?;
    let mut count = 0usize;
    for bag in 0..bags.len() {
        out.row(bag)?.fill(0.0);
        for position in bags.range(bag)? {
            let index = bags.indices.get(position)?;
            if bags.is_padding(index) {
                continue;
            }
            let weight = match bags.per_sample_weights {
                Some(weights) => *weights.get(position)?,
                None => 1.0,
            };
            if let Some(stored) = table.stored_row(index) {
                // Rows are added in order: first those before this one.
                let before = rows.get(..core::mem::take(&mut count))?;
                multiply_rows(table.tier(), tt, before, true, workspace, out.rows)?;
                table.write_stored_row(stored, out.row(bag)?, Epilogue::AddScaled(weight))?;
                continue;
            }
            let row = rows.get_mut(count)?;
            (row.out, row.weight) = (out.start(bag), weight);
            let number = row_of.row(index);
            match (&digits, u32::try_from(number)) {
                (Some(digits), Ok(number)) => digits.write_all(number, &mut row.digits),
                _ => row.digits = tt.shape.padded_digits(number),
            }
            count = count.wrapping_add(1);
            if count == room {
                multiply_rows(table.tier(), tt, rows, true, workspace, out.rows)?;
                count = 0;
            }
        }
    }
    multiply_rows(table.tier(), tt, rows.get(..count)?, true, workspace, out.rows)?;
    if mean {
        for bag in 0..bags.len() {
            divide(out.row(bag)?, bags.num_rows(bag)?);
        }
    }
    Some(())
}
