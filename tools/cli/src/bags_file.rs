//! Bags of an npz file, in the format of `torch.nn.EmbeddingBag`.

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
    /// Sum
    Sum,
    /// Mean
    Mean,
    /// Maximum of each column
    Max,
}

impl Mode {
    /// [`Mode::Rows`] pools bags of one index: the maximum of one row is that row, bit for bit.
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

    /// Like [`read`](Self::read), but the indices are the array `indices`.
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
                .with_context(|| format!("{}: array {name:?} is missing", path.display()))?;
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
        let mut out = zeros(rows.saturating_mul(table.embedding_dim()))?;
        let mut workspace = zeros(table.workspace_len(1))?;
        let mut pooled = || -> Result<()> {
            let offsets = self.offsets(mode);
            Ok(table.pool(&self.bags(&offsets)?, mode.pooling(), &mut out, &mut workspace)?)
        };
        pooled().with_context(|| format!("{}: table {:?}", self.path.display(), table.name()))?;
        Ok(out)
    }

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

    pub(crate) fn indices(&self) -> &[u64] {
        &self.indices
    }
}
