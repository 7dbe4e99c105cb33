//! Products with a transposed operand: transpose, then [`chain_step`].

use super::{Epilogue, chain_step};
use crate::{dtype::Elements, isa::Tier};

/// Rows and columns that are transposed together: both sides stay in a few cache lines.
const BLOCK: usize = 8;

/// `out[n x m] <- x[m x n]'`. With it, [`chain_step`] makes the products that gradients need: `g . G'` as
/// `chain_step(g, G')`, and `X' . g` as `chain_step(X', g)`.
///
/// `None`, with nothing done, unless `x` and `out` are `m n` long.
pub fn transpose(x: &[f32], n: usize, out: &mut [f32]) -> Option<()> {
    let m = x.len().checked_div(n)?;
    if m.checked_mul(n)? != x.len() || x.len() != out.len() {
        return None;
    }
    for row in (0..m).step_by(BLOCK) {
        for column in (0..n).step_by(BLOCK) {
            for (at, out) in out.chunks_exact_mut(m.max(1)).enumerate().skip(column).take(BLOCK) {
                let from = x.get(row * n + at..)?.iter().step_by(n);
                out.get_mut(row..)?.iter_mut().zip(from).take(BLOCK).for_each(|(to, &from)| *to = from);
            }
        }
    }
    Some(())
}

/// f32 elements of scratch that [`dot_interaction`] needs for `num_features` vectors of `dim` elements.
pub fn dot_interaction_workspace_len(num_features: usize, dim: usize) -> usize {
    num_features.saturating_mul(dim).saturating_add(num_features.saturating_mul(num_features))
}

/// DLRM's dot interaction of one sample: the dot product of each pair of `features` (`num_features x dim`), in the order
/// (1,0), (2,0), (2,1), (3,0), ...: `num_features (num_features - 1) / 2` elements (DLRM, `interact_features`).
///
/// `None`, with nothing done, if the lengths do not fit.
pub fn dot_interaction(
    tier: Tier,
    features: &[f32],
    num_features: usize,
    out: &mut [f32],
    workspace: &mut [f32],
) -> Option<()> {
    let f = num_features;
    let dim = features.len().checked_div(f)?;
    let pairs = f.checked_mul(f.checked_sub(1)?)? / 2;
    if f.checked_mul(dim)? != features.len() || out.len() != pairs {
        return None;
    }
    let workspace = workspace.get_mut(..dot_interaction_workspace_len(f, dim))?;
    let (columns, products) = workspace.split_at_mut_checked(features.len())?;
    transpose(features, dim, columns)?;
    chain_step(tier, [f, dim, f], features, Elements::F32(columns), products, Epilogue::Store)?;
    let below = products.chunks_exact(f).enumerate().flat_map(|(row, products)| products.iter().take(row));
    out.iter_mut().zip(below).for_each(|(out, &product)| *out = product);
    Some(())
}
