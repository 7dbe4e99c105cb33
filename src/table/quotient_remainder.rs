//! Quotient-remainder rows: one row of each of two dense tables, combined.

use super::dense;
use crate::{
    dtype::Elements,
    isa::Tier,
    kernel::{Consistent, Epilogue, widen},
    repr::{Combine, QuotientRemainder},
};

/// The workspace of a lookup holds a quotient row and a remainder row.
pub(super) fn workspace_len(table: &QuotientRemainder<'_>) -> usize {
    table.quotients.embedding_dim.saturating_add(table.remainders.embedding_dim)
}

/// Combines row `row` with `out`, as `epilogue` says.
pub(super) fn write_row(
    tier: Tier,
    table: &QuotientRemainder<'_>,
    row: u64,
    out: &mut [f32],
    workspace: &mut [f32],
    epilogue: Epilogue<'_>,
) -> Consistent {
    let parts = workspace.get_mut(..workspace_len(table))?;
    let (first, second) = parts.split_at_mut_checked(table.quotients.embedding_dim)?;
    let num_remainders = u64::from(table.num_remainders);
    let (quotient, remainder) =
        (row.checked_div(num_remainders)?, row.checked_rem(num_remainders)?);
    dense::write_row(
        tier,
        &table.quotients,
        usize::try_from(quotient).ok()?,
        first,
        Epilogue::Store,
    )?;
    dense::write_row(
        tier,
        &table.remainders,
        usize::try_from(remainder).ok()?,
        second,
        Epilogue::Store,
    )?;
    combine(table.combine, first, second);
    // If the rows are concatenated, `parts` is the result: they are adjacent.
    widen(tier, Elements::from_f32(parts.get(..out.len())?), 1.0, -0.0, out, epilogue)
}

/// Combines two rows (or several pairs, end to end) into `first`. For concatenation the caller has
/// put the rows in their places.
pub(crate) fn combine(how: Combine, first: &mut [f32], second: &[f32]) {
    let pairs = first.iter_mut().zip(second);
    match how {
        Combine::Mult => pairs.for_each(|(x, y)| *x *= y),
        Combine::Add => pairs.for_each(|(x, y)| *x += y),
        Combine::Concat => {}
    }
}
