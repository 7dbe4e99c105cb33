//! `ttrec lookup`: rows or pooled bags of one table, for an npz file of indices.

use crate::{
    Outcome,
    blob_file::BlobFile,
    checkpoint::{Checkpoint, Tensor},
    npz::write_npy,
    output,
};
use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use std::{
    borrow::Cow,
    path::{Path, PathBuf},
};
use ttrec::{Bags, BagsError, Pooling, Table};

/// Look rows up, or pool bags of them.
///
/// The npz file holds `indices` and `offsets` as torch.nn.EmbeddingBag takes them with
/// include_last_offset=True (bag b is `indices[offsets[b]..offsets[b + 1]]`), of any integer type,
/// and with --weighted one `weights` per index. The output is a float32 .npy array: one row per
/// index (rows) or per bag (sum, mean, max).
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A blob
    blob: PathBuf,
    /// Which of its tables
    #[arg(long, value_name = "NAME")]
    table: String,
    /// indices, offsets and perhaps weights
    #[arg(long, value_name = "FILE.npz")]
    bags: PathBuf,
    /// What becomes of the rows of a bag; an empty bag is zeros
    #[arg(long, value_enum)]
    mode: Mode,
    /// Multiply each row by its weight; with --mode sum
    #[arg(long)]
    weighted: bool,
    /// Where the .npy array goes
    #[arg(short, long, value_name = "OUT.npy")]
    output: PathBuf,
}

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

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    output::refuse_inputs(&args.output, &[&args.blob, &args.bags])?;
    let file = BlobFile::open(&args.blob)?;
    let blob = file.blob()?;
    let table = file.table(&blob, &args.table)?;
    let bags = BagsFile::read(&args.bags, args.weighted)?;
    let pooled = bags.look_up(&table, args.mode)?;

    let columns = table.embedding_dim() as u64;
    let rows = pooled.len() as u64 / columns;
    write_npy(&args.output, &[rows, columns], &pooled)?;
    output::print(|out| writeln!(out, "{}: {rows} x {columns} float32", args.output.display()))?;
    Ok(Outcome::Done)
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
            vector_len(path, array)?;
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

    /// The weights of all indices, if they were read.
    pub(crate) fn weights(&self) -> Option<&[f32]> {
        self.weights.as_deref()
    }

    /// The indices of all bags.
    pub(crate) fn indices(&self) -> &[u64] {
        &self.indices
    }
}

/// The length of an array of the file at `path`, which must have one dimension.
pub(crate) fn vector_len(path: &Path, array: &Tensor) -> Result<u64> {
    let (name, shape) = (array.name(), array.shape());
    ensure!(
        shape.len() == 1,
        "{}: {name:?} has shape {shape:?}: expected one dimension",
        path.display()
    );
    Ok(array.len())
}

/// `len` zeros, or an error where an allocation would end the process: lengths come from files.
pub(crate) fn zeros(len: usize) -> Result<Vec<f32>> {
    let mut zeros = Vec::new();
    zeros
        .try_reserve_exact(len)
        .with_context(|| format!("{len} float32 elements do not fit in memory"))?;
    zeros.resize(len, 0.0);
    Ok(zeros)
}
