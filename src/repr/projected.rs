//! Projected tables: short rows, and a matrix that widens them.

use super::Rows;
use crate::dtype::Elements;

/// A projected table: mixed dimensions (Ginart et al., "Mixed dimension embeddings with application
/// to memory-efficient recommendation systems", 2019), or a matrix of low rank. Row i is short row
/// i times the projection.
#[derive(Clone, Copy, Debug)]
pub struct Projected<'a> {
    pub(crate) rows: Rows<'a>,
    pub(crate) projection: Elements<'a>,
}

impl<'a> Projected<'a> {
    /// The short rows, of [`rank`](Self::rank) elements.
    pub fn rows(&self) -> Rows<'a> {
        self.rows
    }

    /// The matrix, `rank x embedding_dim`, row-major; f32, f16 or bf16.
    pub fn projection(&self) -> Elements<'a> {
        self.projection
    }

    /// Elements per short row.
    pub fn rank(&self) -> usize {
        self.rows.embedding_dim
    }
}
