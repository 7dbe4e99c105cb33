//! Tensor-train rows: the chain `G_0[i_0] . G_1[i_1] ... G_{d-1}[i_{d-1}]`, multiplied out from the left.
//!
//! `X_1 = G_0[i_0]` is `q_0 x r_1`; a step takes `X_k` (`q_0..q_{k-1} x r_k`) times `G_k[i_k]` (`r_k x q_k r_{k+1}`) and
//! yields `X_{k+1}`, which is already row-major in the column digits. The last step writes the row.

use crate::{
    blob::TtCores,
    dtype::{Dtype, Elements, with_elements},
    kernel::{Epilogue, Store, StoreScaled, chain_step, widen_row},
    shape::TtShape,
};

/// Two partial products, used in turn; one is enough for two cores.
pub(super) fn workspace_len(shape: &TtShape) -> usize {
    let buffers = if shape.num_cores() > 2 { 2 } else { 1 };
    shape.partial_len().saturating_mul(buffers)
}

/// Gives every element of row `row` to `epilogue`.
pub(super) fn put_row<E: Epilogue>(
    tt: &TtCores<'_>,
    row: u64,
    out: &mut [f32],
    workspace: &mut [f32],
    epilogue: E,
) -> Option<()> {
    let shape = &tt.shape;
    let mut slices = [(Elements::F32(&[]), 1.0); crate::shape::MAX_CORES];
    let digits = shape.digits(row);
    for (k, ((slice, core), &digit)) in
        slices.iter_mut().zip(&tt.cores).zip(&digits).take(shape.num_cores()).enumerate()
    {
        slice.0 = core.slices.chunk(digit as usize, shape.slice_len(k))?;
        if core.slices.dtype() == Dtype::I8 {
            slice.1 = *core.scales.get(digit as usize)?;
        }
    }
    let (first, rest) = slices.get(..shape.num_cores())?.split_first()?;
    let (last, middle) = rest.split_last()?;

    // Each slice's scale goes in with its own step, lest a product of many small ones underflow. The last step belongs to
    // the epilogue, so its scale goes in with the step before.
    let scale_before_last = |is_before_last: bool| if is_before_last { last.1 } else { 1.0 };
    let (mut x, mut spare) = workspace.split_at_mut_checked(shape.partial_len())?;
    let scale = first.1 * scale_before_last(middle.is_empty());
    with_elements!(first.0, first => widen_row(first, scale, -0.0, x, Store));
    let mut len = first.0.len();
    let mut k = 1usize;
    for (slice, scale) in middle {
        let (r, n) = step_size(shape, k);
        let next_len = len.checked_div(r)?.checked_mul(n)?;
        let (from, to) = (x.get(..len)?, spare.get_mut(..next_len)?);
        let scale = *scale * scale_before_last(k == middle.len());
        with_elements!(slice, slice => chain_step(from, slice, r, n, to, StoreScaled(scale)));
        core::mem::swap(&mut x, &mut spare);
        len = next_len;
        k = k.checked_add(1)?;
    }
    let (r, n) = step_size(shape, k);
    with_elements!(last.0, last => chain_step(x.get(..len)?, last, r, n, out, epilogue));
    Some(())
}

/// Rows and columns of `G_k[i_k]` as the right operand of step k: `r_k` and `q_k r_{k+1}`.
fn step_size(shape: &TtShape, k: usize) -> (usize, usize) {
    (shape.rank(k), shape.column_factor(k).saturating_mul(shape.rank(k.saturating_add(1))))
}
