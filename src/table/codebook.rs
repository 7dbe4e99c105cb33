//! Rows of codebook tables: entries of a few books, put end to end or added.

use crate::{
    dtype::Elements,
    isa::Tier,
    kernel::{Consistent, Dims, Epilogue, chain_step, widen},
    repr::{Codebook, Combine},
};

/// Combines row `row` with `out`, as `epilogue` says.
pub(super) fn write_row(
    tier: Tier,
    table: &Codebook<'_>,
    row: usize,
    out: &mut [f32],
    workspace: &mut [f32],
    epilogue: Epilogue<'_>,
) -> Consistent {
    let inner = workspace.get_mut(..table.inner_dim)?;
    write_inner_row(tier, table, row, inner)?;
    let Some(projection) = table.projection else {
        return widen(tier, Elements::from_f32(inner), 1.0, -0.0, out, epilogue);
    };
    let size = Dims { m: 1, r: inner.len(), n: out.len() };
    chain_step(tier, size, inner, projection, out, epilogue)
}

/// Writes row `row` as it is before the projection.
pub(crate) fn write_inner_row(
    tier: Tier,
    table: &Codebook<'_>,
    row: usize,
    out: &mut [f32],
) -> Consistent {
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
