//! The first unfolding of a table: a row for each (i_0, j_0), a column for each of the other
//! digits.

use super::Rows;
use anyhow::Result;
use rayon::prelude::*;
use std::ops::Range;

/// Where the elements of the first unfolding are in the table.
pub(super) struct Unfolding<'r> {
    rows: &'r dyn Rows,
    p: Vec<usize>,
    q: Vec<usize>,
    /// Rows of the table per value of i_1: `p_2 .. p_{d-1}`.
    run: usize,
    /// For each piece of `q_{d-1}` neighbours in the columns of one value of i_1, its place in
    /// `run` rows.
    pieces: Vec<usize>,
}

impl<'r> Unfolding<'r> {
    pub(super) fn new(rows: &'r dyn Rows, p: &[u32], q: &[u32]) -> Self {
        let p: Vec<usize> = p.iter().map(|&p| p as usize).collect();
        let q: Vec<usize> = q.iter().map(|&q| q as usize).collect();
        let (d, run) = (p.len(), p[2..].iter().product());
        // Row and column of the table, as the digits j_1, (i_2, j_2), .. are appended.
        let mut places = vec![(0, 0)];
        for k in 1..d {
            let row_digits = if k == 1 { 1 } else { p[k] };
            // The digit j_{d-1} stays a run.
            let column_digits = if k + 1 == d { 1 } else { q[k] };
            let append = |&(row, column): &(usize, usize)| {
                (0..row_digits * column_digits).map(move |x| {
                    (
                        row * row_digits + x / column_digits,
                        column * column_digits + x % column_digits,
                    )
                })
            };
            places = places.iter().flat_map(append).collect();
        }
        let (dim, last) = (rows.embedding_dim(), q[d - 1]);
        let pieces = places.into_iter().map(|(row, column)| row * dim + column * last).collect();
        Self { rows, p, q, run, pieces }
    }

    /// Rows: `p_0 q_0`.
    pub(super) fn height(&self) -> usize {
        self.p[0] * self.q[0]
    }

    /// `p_1` and `q_1`.
    pub(super) fn second(&self) -> (usize, usize) {
        (self.p[1], self.q[1])
    }

    /// Columns of one value of i_1.
    pub(super) fn width(&self) -> usize {
        self.pieces.len() * self.q[self.q.len() - 1]
    }

    /// How many values of i_1 to read at once, so that it takes at most `bytes`, if one does.
    pub(super) fn at_once(&self, bytes: u64) -> usize {
        let one = (self.height() as u64).saturating_mul(self.width() as u64).saturating_mul(4);
        usize::try_from(bytes / one.max(1)).unwrap_or(usize::MAX).clamp(1, self.p[1])
    }

    /// The columns of these values of i_1, row-major; zeros where the table has no rows.
    pub(super) fn read(&self, slabs: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        let (dim, q0, last) = (self.rows.embedding_dim(), self.q[0], self.q[self.q.len() - 1]);
        let count = slabs.len();
        let width = count * self.width();
        out.clear();
        out.resize(self.height() * width, 0.0);
        out.par_chunks_mut(q0 * width).enumerate().try_for_each_init(
            Vec::new,
            |values, (i0, out)| {
                let first = ((i0 * self.p[1] + slabs.start) * self.run) as u64;
                let there =
                    self.rows.num_embeddings().saturating_sub(first).min((count * self.run) as u64)
                        as usize;
                values.clear();
                values.resize(count * self.run * dim, 0.0);
                if there > 0 {
                    self.rows.read(first, &mut values[..there * dim])?;
                }
                for (j0, out) in out.chunks_mut(width).enumerate() {
                    for (slab, out) in
                        values.chunks(self.run * dim).zip(out.chunks_mut(self.width()))
                    {
                        let slab = &slab[j0 * (dim / q0)..];
                        for (&piece, out) in self.pieces.iter().zip(out.chunks_mut(last)) {
                            out.copy_from_slice(&slab[piece..piece + last]);
                        }
                    }
                }
                Ok(())
            },
        )
    }
}
