//! Dense rows, widened in place.

use crate::{
    isa::Tier,
    kernel::{Consistent, Epilogue, widen},
    repr::Rows,
};

/// Combines the stored row at `position` with `out`, as `epilogue` says.
pub(crate) fn write_row(
    tier: Tier,
    rows: &Rows<'_>,
    position: usize,
    out: &mut [f32],
    epilogue: Epilogue<'_>,
) -> Consistent {
    let (scale, offset, row) = rows.row(position)?;
    widen(tier, row, scale, offset, out, epilogue)
}
