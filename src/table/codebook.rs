//! Rows of codebook tables: entries of a few books, put end to end or added.

use crate::{
    dtype::Elements,
    index::Indices,
    isa::Tier,
    kernel::{CodeBags, Consistent, Dims, Epilogue, chain_step, pool_codes, widen},
    pooling::Pooling,
    repr::{Codebook, Combine},
};

/// The workspace of a lookup holds a row before the projection; that of a bag also holds their sum,
/// if there is a projection.
pub(super) fn workspace_len(table: &Codebook<'_>) -> usize {
    if table.projection.is_some() {
        table.inner_dim.saturating_mul(2)
    } else {
        table.inner_dim
    }
}

/// Combines row `row` with `out`, as `epilogue` says.
pub(super) fn write_row(
    tier: Tier,
    table: &Codebook<'_>,
    row: usize,
    out: &mut [f32],
    workspace: &mut [f32],
    epilogue: Epilogue<'_>,
) -> Consistent {
    let Some(projection) = table.projection else {
        return write_inner_row(tier, table, row, out, workspace, epilogue);
    };
    let (inner, scratch) = workspace.split_at_mut_checked(table.inner_dim)?;
    write_inner_row(tier, table, row, inner, scratch, Epilogue::Store)?;
    let size = Dims { m: 1, r: inner.len(), n: out.len() };
    chain_step(tier, size, inner, projection, out, epilogue)
}

/// Combines row `row`, as it is before the projection, with `out`, as `epilogue` says. `scratch`
/// has room for such a row.
pub(crate) fn write_inner_row(
    tier: Tier,
    table: &Codebook<'_>,
    row: usize,
    out: &mut [f32],
    scratch: &mut [f32],
    epilogue: Epilogue<'_>,
) -> Consistent {
    if epilogue == Epilogue::Store {
        return store_inner_row(tier, table, row, out);
    }
    let inner = scratch.get_mut(..table.inner_dim)?;
    store_inner_row(tier, table, row, inner)?;
    widen(tier, Elements::from_f32(inner), 1.0, -0.0, out, epilogue)
}

/// Writes a row as it is before the projection.
fn store_inner_row(tier: Tier, table: &Codebook<'_>, row: usize, out: &mut [f32]) -> Consistent {
    if !tier.is_scalar()
        && let Ok(number) = u32::try_from(row)
        && write_inner_rows(tier, table, &[number], &[0, 1], out).is_some()
    {
        return Some(());
    }
    let entry_len = table.entry_len();
    for (book, code) in table.row_codes(row)?.enumerate() {
        let (scale, entry) = table.entry(book, code)?;
        let (out, epilogue) = match table.combine {
            Combine::Concat => (out.chunks_mut(entry_len.max(1)).nth(book)?, Epilogue::Store),
            _ if book == 0 => (&mut *out, Epilogue::Store),
            _ => (&mut *out, Epilogue::AddScaled(1.0)),
        };
        widen(tier, entry, scale, -0.0, out, epilogue)?;
    }
    Some(())
}

/// Writes rows as they are before the projection, one after another; `None` on the scalar tier,
/// too. `offsets` counts up from 0 to the number of rows.
pub(crate) fn write_inner_rows(
    tier: Tier,
    table: &Codebook<'_>,
    rows: &[u32],
    offsets: &[u32],
    out: &mut [f32],
) -> Consistent {
    // The maximum of one row is the row.
    let (weights, pooling, offsets) = (None, Pooling::Max, Indices::U32(offsets));
    pool_codes(tier, table, &CodeBags { rows, offsets, weights, pooling }, out, table.inner_dim)
}
