//! Bags of an npz file, as `torch.nn.EmbeddingBag` takes them.

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use std::{
    borrow::Cow,
    path::{Path, PathBuf},
};
use ttrec::{Bags, BagsError, Pooling, Table};
use ttrec_convert::{Checkpoint, checkpoint::Tensor, zeros};

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub(crate) enum Mode {
    /// One row per index
    Rows,
    /// Their sum
    Sum,
    /// Their mean
    Mean,
    /// The largest of each column
    Max,
}

impl Mode {
    /// Rows are bags of one; the largest of one row is the row, bit for bit.
    pub(crate) fn pooling(self) -> Pooling {
        match self {
            Self::Sum => Pooling::Sum,
            Self::Mean => Pooling::Mean,
            Self::Rows | Self::Max => Pooling::Max,
        }
    }
}

/// The bags of an npz file.
pub(crate) struct BagsFile {
    path: PathBuf,
    indices: Vec<u64>,
    offsets: Vec<u64>,
    weights: Option<Vec<f32>>,
}

impl BagsFile {
    /// Reads `indices` and `offsets`, and `weights` if `weighted`.
    pub(crate) fn read(path: &Path, weighted: bool) -> Result<Self> {
        Self::read_arrays(path, "indices", weighted)
    }

    /// The same where the indices have another name.
    pub(crate) fn read_arrays(path: &Path, indices: &str, weighted: bool) -> Result<Self> {
        Self::of(&Checkpoint::open(path)?, [indices, "offsets", "weights"], weighted)
    }

    /// The bags of the arrays of these names in an open file.
    pub(crate) fn of(
        file: &Checkpoint,
        [indices, offsets, weights]: [&str; 3],
        weighted: bool,
    ) -> Result<Self> {
        let path = file.path();
        let vector = |name: &str| -> Result<&Tensor> {
            let array = file
                .tensor(name)
                .with_context(|| format!("{}: no array {name:?}", path.display()))?;
            array.vector_len()?;
            Ok(array)
        };
        let integers = |name: &str| -> Result<Vec<u64>> {
            let array = vector(name)?;
            let mut values = vec![0; usize::try_from(array.len())?];
            array.read_i64(0, &mut values)?;
            if let Some(position) = values.iter().position(|&value| value < 0) {
                bail!(
                    "{}: {name}[{position}] is {}: expected 0 or more",
                    path.display(),
                    values[position]
                );
            }
            Ok(values.into_iter().map(i64::cast_unsigned).collect())
        };
        let weights = if weighted {
            let array = vector(weights)?;
            let mut values = vec![0.0; usize::try_from(array.len())?];
            array.read_f32(0, &mut values)?;
            Some(values)
        } else {
            None
        };
        Ok(Self {
            path: path.to_owned(),
            indices: integers(indices)?,
            offsets: integers(offsets)?,
            weights,
        })
    }

    /// One row per index or per bag, end to end.
    pub(crate) fn look_up(&self, table: &Table<'_>, mode: Mode) -> Result<Vec<f32>> {
        let rows = if mode == Mode::Rows {
            self.indices.len()
        } else {
            self.offsets.len().saturating_sub(1)
        };
        let out = zeros(rows.saturating_mul(table.embedding_dim()))?;
        let mut workspace = zeros(table.workspace_len(1))?;
        self.try_look_up(table, mode, out, &mut workspace)
            .with_context(|| format!("{}: table {:?}", self.path.display(), table.name()))
    }

    fn try_look_up(
        &self,
        table: &Table<'_>,
        mode: Mode,
        mut out: Vec<f32>,
        workspace: &mut [f32],
    ) -> Result<Vec<f32>> {
        table.pool(&self.bags(&self.offsets(mode))?, mode.pooling(), &mut out, workspace)?;
        Ok(out)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The offsets of the bags that `mode` pools.
    pub(crate) fn offsets(&self, mode: Mode) -> Cow<'_, [u64]> {
        match mode {
            Mode::Rows => (0..=self.indices.len() as u64).collect(),
            Mode::Sum | Mode::Mean | Mode::Max => Cow::Borrowed(&self.offsets),
        }
    }

    /// The bags between these offsets.
    pub(crate) fn bags<'s>(&'s self, offsets: &'s [u64]) -> Result<Bags<'s>, BagsError> {
        let bags = Bags::new(&self.indices, offsets)?;
        match &self.weights {
            Some(weights) => bags.with_per_sample_weights(weights),
            None => Ok(bags),
        }
    }

    /// The bags as the file has them.
    pub(crate) fn all(&self) -> Result<Bags<'_>, BagsError> {
        self.bags(&self.offsets)
    }

    /// The indices of all bags.
    pub(crate) fn indices(&self) -> &[u64] {
        &self.indices
    }
}
