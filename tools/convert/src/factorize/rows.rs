//! The rows of a dense table, independent of their storage.

use anyhow::Result;

/// A dense table of f32, read in blocks of rows.
pub(crate) trait Rows: Sync {
    fn num_embeddings(&self) -> u64;

    fn embedding_dim(&self) -> usize;

    /// Fills `out`, whole rows, from row `first` on.
    fn read(&self, first: u64, out: &mut [f32]) -> Result<()>;
}
