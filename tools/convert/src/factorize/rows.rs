//! The rows of a dense table, independent of their storage.

use crate::checkpoint::Tensor;
use anyhow::{Result, bail};

/// A dense table of f32, read in blocks of rows.
pub(crate) trait Rows: Sync {
    fn num_embeddings(&self) -> u64;

    fn embedding_dim(&self) -> usize;

    /// Fills `out`, whole rows, from row `first` on.
    fn read(&self, first: u64, out: &mut [f32]) -> Result<()>;
}

/// A matrix tensor of a checkpoint.
pub(crate) struct TensorRows<'c> {
    tensor: &'c Tensor,
    num_embeddings: u64,
    embedding_dim: usize,
}

impl<'c> TensorRows<'c> {
    /// The rows of `tensor`, which must be a matrix.
    pub(crate) fn new(tensor: &'c Tensor) -> Result<Self> {
        let &[rows, columns] = tensor.shape() else {
            bail!(
                "tensor {:?} has shape {:?}: expected rows x columns",
                tensor.name(),
                tensor.shape()
            );
        };
        Ok(Self { tensor, num_embeddings: rows, embedding_dim: usize::try_from(columns)? })
    }
}

impl Rows for TensorRows<'_> {
    fn num_embeddings(&self) -> u64 {
        self.num_embeddings
    }

    fn embedding_dim(&self) -> usize {
        self.embedding_dim
    }

    fn read(&self, first: u64, out: &mut [f32]) -> Result<()> {
        self.tensor.stream_f32(first * self.embedding_dim as u64, out)?;
        match out.iter().position(|x| !x.is_finite()) {
            Some(at) => {
                let (row, column) =
                    (first + (at / self.embedding_dim) as u64, at % self.embedding_dim);
                bail!(
                    "tensor {:?}, row {row}, column {column}: {} cannot be factorised",
                    self.tensor.name(),
                    out[at]
                );
            }
            None => Ok(()),
        }
    }
}
