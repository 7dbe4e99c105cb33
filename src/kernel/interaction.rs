//! The dot interaction, and the transpose that it and other products with a transposed operand need
//! before [`chain_step`].

use super::{Epilogue, chain_step};
use crate::{
    dtype::Elements,
    isa::{FourLanes, Isa, Op, Tier},
    kernel::{Consistent, Dims},
};

/// Rows and columns that are transposed together, in registers.
const BLOCK: usize = 4;
/// Elements that fit the nearest cache, so that the order of writes does not matter.
const NEAR: usize = 1 << 13;
/// Columns of a larger matrix that are transposed before the next ones: a cache line of x. They are
/// as many rows of the result, and if these are a power of two apart, the nearest cache has no room
/// for more of their lines.
const PANEL: usize = 16;

/// `out[n x m] <- x[m x n]'`. With it, [`chain_step`] makes the products that gradients need: `g .
/// G'` as `chain_step(g, G')`, and `X' . g` as `chain_step(X', g)`.
///
/// `None`, with nothing done, unless `x` and `out` are `m n` long.
pub fn transpose(tier: Tier, x: &[f32], n: usize, out: &mut [f32]) -> Consistent {
    let m = x.len().checked_div(n)?;
    if m.checked_mul(n)? != x.len() || x.len() != out.len() {
        return None;
    }
    tier.run(Transpose { x, m, n, out })
}

struct Transpose<'s, 'o> {
    x: &'s [f32],
    m: usize,
    n: usize,
    out: &'o mut [f32],
}

impl Op for Transpose<'_, '_> {
    type Output = Consistent;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Consistent {
        let Self { x, m, n, out } = self;
        let isa = isa.narrow();
        // A tier without register tiles prefers small code: it transposes element by element.
        let (whole_rows, whole_columns) = if I::TILES.is_empty() {
            (0, 0)
        } else {
            (m - m % BLOCK, n - n % BLOCK)
        };
        let panel = if x.len() <= NEAR { n } else { PANEL };
        for first in (0..whole_columns).step_by(panel.max(1)) {
            let columns = first..whole_columns.min(first + panel);
            for (rows, row) in
                x.chunks_exact(n.saturating_mul(BLOCK).max(1)).zip((0..).step_by(BLOCK))
            {
                let mut rest = rows;
                let mut blocks: [&[[f32; BLOCK]]; BLOCK] = [&[]; BLOCK];
                for blocks in &mut blocks {
                    let (row, after) = rest.split_at_checked(n)?;
                    (*blocks, rest) = (row.get(columns.clone())?.as_chunks().0, after);
                }
                let [a, b, c, d] = blocks;
                for ((((a, b), c), d), column) in
                    a.iter().zip(b).zip(c).zip(d).zip((first..).step_by(BLOCK))
                {
                    let block = [a, b, c, d].map(|row| isa.load_f32(row));
                    let to = out.get_mut(column * m + row..)?;
                    for (at, vector) in isa.transpose(block).into_iter().enumerate() {
                        isa.store(vector, to.get_mut(at * m..)?.first_chunk_mut::<BLOCK>()?);
                    }
                }
            }
        }
        // The rest: the last columns of the whole blocks of rows, then the last rows.
        for (rows, columns) in [(0..whole_rows, whole_columns..n), (whole_rows..m, 0..n)] {
            for column in columns {
                for row in rows.clone() {
                    *out.get_mut(column * m + row)? = *x.get(row * n + column)?;
                }
            }
        }
        Some(())
    }
}

/// f32 elements of scratch that [`dot_interaction`] needs for `num_features` vectors of `dim`
/// elements.
pub fn dot_interaction_workspace_len(num_features: usize, dim: usize) -> usize {
    num_features
        .saturating_mul(dim)
        .saturating_add(num_features.saturating_mul(num_features))
}

/// DLRM's dot interaction of one sample: the dot product of each pair of `features` (`num_features
/// x dim`), in the order (1,0), (2,0), (2,1), (3,0), ...: `num_features (num_features - 1) / 2`
/// elements (DLRM, `interact_features`).
///
/// `None`, with nothing done, if the lengths do not fit.
pub fn dot_interaction(
    tier: Tier,
    features: &[f32],
    num_features: usize,
    out: &mut [f32],
    workspace: &mut [f32],
) -> Consistent {
    dot_interaction_from(tier, features, num_features, 0, false, out, workspace)
}

/// As [`dot_interaction`], but without the pairs of the first `first` features with each other,
/// which are those before (`first`, 0). With `itself`, each feature also makes a pair with itself:
/// (0,0), (1,0), (1,1), (2,0), ...
pub(crate) fn dot_interaction_from(
    tier: Tier,
    features: &[f32],
    num_features: usize,
    first: usize,
    itself: bool,
    out: &mut [f32],
    workspace: &mut [f32],
) -> Consistent {
    let f = num_features;
    let dim = features.len().checked_div(f)?;
    let others = |f: usize| {
        if itself {
            f.checked_add(1)
        } else {
            Some(f.saturating_sub(1))
        }
    };
    let pairs = |f: usize| Some(f.checked_mul(others(f)?)? / 2);
    let expected = pairs(f)?.checked_sub(pairs(first)?)?;
    if f == 0 || f.checked_mul(dim)? != features.len() || out.len() != expected {
        return None;
    }
    // Feature 0 is in no pair with a feature before it.
    let first = first.max(usize::from(!itself));
    let workspace = workspace.get_mut(..dot_interaction_workspace_len(f, dim))?;
    let (columns, products) = workspace.split_at_mut_checked(features.len())?;
    transpose(tier, features, dim, columns)?;
    let rows = f.checked_sub(first)?;
    let (features, products) =
        (features.get(first.checked_mul(dim)?..)?, products.get_mut(..rows.checked_mul(f)?)?);
    chain_step(
        tier,
        Dims { m: rows, r: dim, n: f },
        features,
        Elements::from_f32(columns),
        products,
        Epilogue::Store,
    )?;
    let mut rest = out;
    for (row, products) in (first..).zip(products.chunks_exact(f)) {
        let (out, after) = rest.split_at_mut_checked(row.checked_add(usize::from(itself))?)?;
        // `copy_from_slice` would link the panic handler.
        out.iter_mut().zip(products).for_each(|(out, &product)| *out = product);
        rest = after;
    }
    Some(())
}
