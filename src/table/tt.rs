//! Tensor-train rows: the chain `G_0[i_0] . G_1[i_1] ... G_{d-1}[i_{d-1}]`, multiplied out from the
//! left.
//!
//! `X_1 = G_0[i_0]` is `q_0 x r_1`; a step takes `X_k` (`q_0..q_{k-1} x r_k`) times `G_k[i_k]`
//! (`r_k x q_k r_{k+1}`) and yields `X_{k+1}`, which is already row-major in the column digits. The
//! last step writes the row.

use crate::{
    dtype::Elements,
    isa::Tier,
    kernel::{Consistent, Dims, Epilogue, SmallRow, chain_step, multiply_rows, widen},
    repr::TtCores,
    shape::{MAX_CORES, TtShape},
};

/// Reorders the columns of a product of the cores, or of a sum of such products, if the least
/// significant digit of a column belongs to core 0. `scratch` has at least `embedding_dim`
/// elements.
pub(crate) fn reorder_columns(shape: &TtShape, row: &mut [f32], scratch: &mut [f32]) -> Consistent {
    let stored = scratch.get_mut(..row.len())?;
    stored.iter_mut().zip(&*row).for_each(|(to, from)| *to = *from);
    // Column (j_0, .., j_{d-1}) is stored at (j_0, .., j_{d-1}) of q_0 x .. x q_{d-1}, row-major,
    // but counts j_0 fastest: q_0 adjacent columns are stored `stride` elements apart.
    let q = shape.column_factor(0).max(1);
    let stride = row.len().checked_div(q)?.max(1);
    for (run, columns) in row.chunks_exact_mut(q).enumerate() {
        let first = shape.position_of_column(run.wrapping_mul(q));
        let from = stored.get(first..)?.iter().step_by(stride);
        columns.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    }
    Some(())
}

/// Combines row `row` with `out`, as `epilogue` says.
pub(super) fn write_row(
    tier: Tier,
    tt: &TtCores<'_>,
    row: u64,
    out: &mut [f32],
    workspace: &mut [f32],
    epilogue: Epilogue<'_>,
) -> Consistent {
    let shape = &tt.shape;
    let digits = shape.padded_digits(row);
    let stored = match &tt.prefixes {
        Some(prefixes) => prefixes.product(shape.prefix(row), shape.prefix_len()),
        None => None,
    };
    if stored.is_none()
        && tt.is_small
        && !tier.is_scalar()
        && let Some((add, weight)) = epilogue.scale()
    {
        let row = SmallRow { digits, out: 0, weight };
        return multiply_rows(tier, tt, &[row], add, workspace, out);
    }
    let last = shape.num_cores().checked_sub(1)?;
    let x = match stored {
        Some(product) => product,
        None => prefix_product(tier, tt, &digits, workspace)?,
    };
    let (slice, scale) = slice(tt, last, &digits)?;
    let (r, n) = step_size(shape, last);
    let m = shape.prefix_len().checked_div(r)?;
    chain_step(tier, Dims { m, r, n }, x, slice, out, epilogue.times(scale))
}

/// The product of the first d - 1 slices of a row. It is one of the workspace's two partial
/// products.
pub(super) fn prefix_product<'w>(
    tier: Tier,
    tt: &TtCores<'_>,
    digits: &[u32; MAX_CORES],
    workspace: &'w mut [f32],
) -> Option<&'w [f32]> {
    let shape = &tt.shape;
    let (mut x, mut spare) = workspace.split_at_mut_checked(shape.partial_len())?;
    let (first, scale) = slice(tt, 0, digits)?;
    let mut m = shape.column_factor(0);
    widen(tier, first, scale, -0.0, x.get_mut(..first.len())?, Epilogue::Store)?;
    for k in 1..shape.num_cores().checked_sub(1)? {
        let (r, n) = step_size(shape, k);
        let (from, to) = (x.get(..m.checked_mul(r)?)?, spare.get_mut(..m.checked_mul(n)?)?);
        // Each step multiplies by the scale of its slice: the product of many small scales could
        // underflow.
        let (slice, scale) = slice(tt, k, digits)?;
        chain_step(tier, Dims { m, r, n }, from, slice, to, Epilogue::Store.times(scale))?;
        core::mem::swap(&mut x, &mut spare);
        m = m.checked_mul(shape.column_factor(k))?;
    }
    x.get(..shape.prefix_len())
}

/// The slice of core k that these digits select, and its scale (1 if it has none).
fn slice<'a>(tt: &TtCores<'a>, k: usize, digits: &[u32; MAX_CORES]) -> Option<(Elements<'a>, f32)> {
    let (core, digit) = (tt.cores.get(k)?, *digits.get(k)? as usize);
    Some((core.slices.chunk(digit, tt.shape.slice_len(k))?, core.scale(digit)?))
}

/// Rows and columns of `G_k[i_k]` as the right operand of step k: `r_k` and `q_k r_{k+1}`.
pub(crate) fn step_size(shape: &TtShape, k: usize) -> (usize, usize) {
    (shape.rank(k), shape.column_factor(k).saturating_mul(shape.rank(k.saturating_add(1))))
}
