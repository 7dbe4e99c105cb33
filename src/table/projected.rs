//! Projected rows: a short row times a matrix that all rows share.

use super::dense;
use crate::{
    isa::Tier,
    kernel::{Consistent, Dims, Epilogue, chain_step},
    repr::Projected,
};

/// Combines row `row` with `out`, as `epilogue` says.
pub(super) fn write_row(
    tier: Tier,
    table: &Projected<'_>,
    row: usize,
    out: &mut [f32],
    workspace: &mut [f32],
    epilogue: Epilogue<'_>,
) -> Consistent {
    let short = workspace.get_mut(..table.rank())?;
    dense::write_row(tier, &table.rows, row, short, Epilogue::Store)?;
    chain_step(
        tier,
        Dims { m: 1, r: table.rank(), n: out.len() },
        short,
        table.projection,
        out,
        epilogue,
    )
}
