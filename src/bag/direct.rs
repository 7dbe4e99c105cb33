//! Bags over tensor trains whose rows are small: each row is multiplied out and added to its bag in
//! the order of the indices.

use super::{Bags, chain::Output, digits::Digits, divide};
use crate::{
    kernel::{ChainedRow, Consistent, Epilogue, chain_rows},
    repr::{Prefixes, TtCores},
    shape::TtShape,
    table::{Table, index_map::RowOf, num_partials},
};

/// Rows that one call of the kernel takes.
const ROWS: usize = 32;
/// Lookups from which on a batch divides by multiplying.
const FEW: usize = 4;

/// The f32 elements of workspace with which a batch of `num_lookups` is fastest.
pub(super) fn best_workspace_len(shape: &TtShape, num_lookups: usize) -> usize {
    shape
        .partial_len()
        .saturating_mul(num_partials(shape))
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
    // For a few lookups the reciprocals would take longer than divisions.
    let digits = if bags.indices.len() < FEW {
        None
    } else {
        Digits::new(&tt.shape)
    };
    let row_of = RowOf::new(table.data());
    let mut rows = [ChainedRow::EMPTY; ROWS];
    let mut count = 0usize;
    for bag in 0..bags.len() {
        out.row(bag)?.fill(0.0);
        for position in bags.range(bag)? {
            let index = bags.indices.get(position)?;
            let weight = match bags.per_sample_weights {
                Some(weights) => *weights.get(position)?,
                None => 1.0,
            };
            if need_not_compute(table, tt, index) {
                // Rows are added in order: first those before this one.
                let before = rows.get(..core::mem::take(&mut count))?;
                chain_rows(table.tier(), tt, before, true, workspace, out.rows)?;
                table.write_row(index, out.row(bag)?, workspace, Epilogue::AddScaled(weight))?;
                continue;
            }
            let row = rows.get_mut(count)?;
            (row.out, row.weight) = (out.start(bag), weight);
            match (&digits, u32::try_from(row_of.row(index))) {
                (Some(digits), Ok(number)) => digits.write_all(number, &mut row.digits),
                _ => row.digits = tt.shape.padded_digits(row_of.row(index)),
            }
            count = count.wrapping_add(1);
            if count == ROWS {
                chain_rows(table.tier(), tt, &rows, true, workspace, out.rows)?;
                count = 0;
            }
        }
    }
    chain_rows(table.tier(), tt, rows.get(..count)?, true, workspace, out.rows)?;
    if mean {
        for bag in 0..bags.len() {
            divide(out.row(bag)?, bags.range(bag)?.len());
        }
    }
    Some(())
}

/// Whether the row of `index`, or the product of its prefix, is stored.
#[inline(always)]
fn need_not_compute(table: &Table<'_>, tt: &TtCores<'_>, index: u64) -> bool {
    let has_product = |prefixes: &Prefixes<'_>| {
        let prefix = tt.shape.prefix(table.row_of(index));
        prefixes.product(prefix, tt.shape.prefix_len()).is_some()
    };
    table.has_stored_rows() && table.stored_row(index).is_some()
        || tt.prefixes.as_ref().is_some_and(has_product)
}
