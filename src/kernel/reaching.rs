//! A matrix product for a caller that needs only the elements that reach a bound. A tile of the
//! product stays in registers; it is written to memory only if one of its elements reaches the
//! bound.
//!
//! The right operand is stored in *panels*, which are as wide as a tile, so that a tile reads
//! adjacent cache lines.

// As in `product`: tiles are arrays of constant size, indexed by loops that unroll.
#![allow(clippy::indexing_slicing, clippy::needless_range_loop)]

use super::{Consistent, product::tallest, widest};
use crate::isa::{Isa, Op, Tier};
use core::ops::Range;

/// The most columns of a panel: four vectors of sixteen lanes.
pub(crate) const MAX_PANEL: usize = 64;

/// The most elements of a tile: six rows of a panel.
pub(crate) const MAX_TILE: usize = 6 * MAX_PANEL;

/// The widths of a tier's panels in columns: the width of a vector, and that of the widest tile.
pub(crate) fn panel_widths(tier: Tier) -> [usize; 2] {
    tier.run(PanelWidths)
}

struct PanelWidths;

impl Op for PanelWidths {
    type Output = [usize; 2];

    #[inline(always)]
    fn run<I: Isa>(self, _: I) -> [usize; 2] {
        [I::LANES, I::LANES * most_vectors::<I>()]
    }
}

const fn most_vectors<I: Isa>() -> usize {
    match widest(I::TILES, tallest(I::TILES, 2)) {
        0 => 1,
        vectors => vectors,
    }
}

/// The columns of each panel, for a right operand of `n` columns. A panel is a whole number of
/// vectors, so the last panel may repeat columns of the panel before it. If `n` is less than the
/// lanes of a vector, there is one panel of `n` columns.
pub(crate) fn panels([lanes, most]: [usize; 2], n: usize) -> impl Iterator<Item = Range<usize>> {
    let mut first = 0;
    core::iter::from_fn(move || {
        let left = n.checked_sub(first).filter(|&left| left > 0)?;
        let mut width = most;
        while width > lanes && (width > n || width / 2 >= left) {
            width /= 2;
        }
        first = n.min(first + width);
        Some(first.saturating_sub(width)..first)
    })
}

/// Rows times one panel.
pub(crate) struct Reaching<'s, 'f> {
    /// Rows of `r` elements.
    pub(crate) x: &'s [f32],
    pub(crate) r: usize,
    /// `r` rows of `width` columns, a whole number of vectors.
    pub(crate) panel: &'s [f32],
    pub(crate) width: usize,
    pub(crate) bound: f32,
    /// Memory for a tile. Its values do not matter.
    pub(crate) tile: &'s mut [f32; MAX_TILE],
    /// Takes the number of a row and its elements, and returns the new bound.
    pub(crate) found: &'f mut dyn FnMut(usize, &[f32]) -> Option<f32>,
}

impl Op for Reaching<'_, '_> {
    /// `None` if anything is out of bounds.
    type Output = Consistent;

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) -> Consistent {
        match self.width / I::LANES {
            4 if const { most_vectors::<I>() == 4 } => self.rows::<I, 4>(isa),
            2 => self.rows::<I, 2>(isa),
            1 => self.rows::<I, 1>(isa),
            _ => None,
        }
    }
}

impl Reaching<'_, '_> {
    #[inline(always)]
    fn rows<I: Isa, const V: usize>(&mut self, isa: I) -> Consistent {
        let panel = self.panel.get(..self.r.checked_mul(V * I::LANES)?)?;
        let mut rest = self.x;
        let mut row = 0;
        while !rest.is_empty() {
            // Five rows are 3 + 2, seven 4 + 3, eight 4 + 4: no tile is flat.
            row += match rest.len() / self.r {
                8 | 7 | 4 => self.tile::<I, 4, V>(isa, &mut rest, panel, row)?,
                6.. if const { tallest(I::TILES, 2) == 6 } => {
                    self.tile::<I, 6, V>(isa, &mut rest, panel, row)?
                }
                6.. => self.tile::<I, 4, V>(isa, &mut rest, panel, row)?,
                5 | 3 => self.tile::<I, 3, V>(isa, &mut rest, panel, row)?,
                2 => self.tile::<I, 2, V>(isa, &mut rest, panel, row)?,
                _ => self.tile::<I, 1, V>(isa, &mut rest, panel, row)?,
            };
        }
        Some(())
    }

    /// The next `M` rows; returns `M`.
    #[inline(always)]
    fn tile<I: Isa, const M: usize, const V: usize>(
        &mut self,
        isa: I,
        rest: &mut &[f32],
        panel: &[f32],
        row: usize,
    ) -> Option<usize> {
        let mut x: [&[f32]; M] = [&[]; M];
        for a in 0..M {
            (x[a], *rest) = rest.split_at_checked(self.r)?;
        }
        let mut sums = [[isa.splat(0.0); V]; M];
        for (k, columns) in panel.chunks_exact(V * I::LANES).enumerate() {
            let mut rhs = [isa.splat(0.0); V];
            for v in 0..V {
                rhs[v] = isa.load_f32(columns.get(v * I::LANES..)?);
            }
            for a in 0..M {
                let lhs = isa.splat(*x[a].get(k)?);
                for v in 0..V {
                    sums[a][v] = isa.fma(rhs[v], lhs, sums[a][v]);
                }
            }
        }
        if isa.any_at_least(sums.as_flattened(), isa.splat(self.bound)) {
            for a in 0..M {
                for v in 0..V {
                    isa.store(sums[a][v], self.tile.get_mut((a * V + v) * I::LANES..)?);
                }
            }
            self.hand_on(row, M)?;
        }
        Some(M)
    }

    /// Hands on the tile. Not inlined: the loop needs all registers for its sums.
    #[cold]
    #[inline(never)]
    fn hand_on(&mut self, row: usize, rows: usize) -> Consistent {
        for (row, scores) in (row..).zip(self.tile.chunks_exact(self.width).take(rows)) {
            self.bound = (self.found)(row, scores)?;
        }
        Some(())
    }
}
