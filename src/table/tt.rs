//! Tensor-train rows: the chain `G_0[i_0] . G_1[i_1] ... G_{d-1}[i_{d-1}]`, multiplied out from the left.
//!
//! `X_1 = G_0[i_0]` is `q_0 x r_1`; a step takes `X_k` (`q_0..q_{k-1} x r_k`) times `G_k[i_k]` (`r_k x q_k r_{k+1}`) and
//! yields `X_{k+1}`, which is already row-major in the column digits. The last step writes the row.

use crate::{
    blob::TtCores,
    dtype::{Dtype, Elements},
    isa::Tier,
    kernel::{Epilogue, chain_step, widen},
    shape::TtShape,
};

/// What a lookup or a bag needs at least: the partial products of one prefix, and the sum of some slices of the last core.
pub(super) fn workspace_len(shape: &TtShape) -> usize {
    let last = shape.num_cores().saturating_sub(1);
    shape.partial_len().saturating_mul(num_partials(shape)).saturating_add(shape.slice_len(last))
}

/// How many partial products are kept, used in turn: one is enough for two cores.
pub(crate) fn num_partials(shape: &TtShape) -> usize {
    if shape.num_cores() > 2 { 2 } else { 1 }
}

/// Gives every element of row `row` to `epilogue`.
pub(super) fn put_row(
    tier: Tier,
    tt: &TtCores<'_>,
    row: u64,
    out: &mut [f32],
    workspace: &mut [f32],
    epilogue: Epilogue<'_>,
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

    // Each slice's scale goes in with its own step, lest a product of many small ones underflow.
    let (mut x, mut spare) = workspace.split_at_mut_checked(shape.partial_len())?;
    let mut m = shape.column_factor(0);
    widen(tier, first.0, first.1, -0.0, x.get_mut(..first.0.len())?, Epilogue::Store)?;
    for (k, (slice, scale)) in (1..).zip(middle) {
        let (r, n) = step_size(shape, k);
        let (from, to) = (x.get(..m.checked_mul(r)?)?, spare.get_mut(..m.checked_mul(n)?)?);
        chain_step(tier, [m, r, n], from, *slice, to, Epilogue::Store.times(*scale))?;
        core::mem::swap(&mut x, &mut spare);
        m = m.checked_mul(shape.column_factor(k))?;
    }
    let (r, n) = step_size(shape, middle.len().checked_add(1)?);
    chain_step(tier, [m, r, n], x.get(..m.checked_mul(r)?)?, last.0, out, epilogue.times(last.1))
}

/// Rows and columns of `G_k[i_k]` as the right operand of step k: `r_k` and `q_k r_{k+1}`.
pub(crate) fn step_size(shape: &TtShape, k: usize) -> (usize, usize) {
    (shape.rank(k), shape.column_factor(k).saturating_mul(shape.rank(k.saturating_add(1))))
}
