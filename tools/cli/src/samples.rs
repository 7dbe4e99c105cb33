//! Samples of a model in an npz file: `dense`, samples x features, and for each table t of the
//! model `indices_t`, `offsets_t` or `lengths_t`, and optionally `weights_t`.

use crate::bags_file::{BagOptions, BagsFile};
use anyhow::{Context, Result, bail, ensure};
use std::path::Path;
use ttrec::{Bags, Ranker, Table};
use ttrec_convert::Checkpoint;

/// The arrays of one file. `rank` spreads the inputs over two files, so each may be missing.
pub(crate) struct Samples {
    path: String,
    dense: Option<Vec<f32>>,
    /// By table of the model.
    tables: Vec<Option<BagsFile>>,
}

impl Samples {
    /// Reads those of the model's inputs that the file has.
    pub(crate) fn read(path: &Path, ranker: &Ranker<'_>, options: &BagOptions) -> Result<Self> {
        options.check(&ranker.tables().collect::<Vec<_>>())?;
        let file = Checkpoint::open(path)?;
        let dense = file.find("dense")?.map(|array| {
            let (columns, shape) = (ranker.num_dense() as u64, array.shape());
            let fits = matches!(shape, [_, found] if *found == columns);
            ensure!(
                fits,
                "{}: \"dense\" has shape {shape:?}: expected samples x {columns}",
                path.display()
            );
            let mut values = ttrec_convert::zeros(usize::try_from(array.len())?)?;
            array.read_f32(0, &mut values)?;
            if let Some(position) = values.iter().position(|value| !value.is_finite()) {
                let (sample, feature) =
                    (position / ranker.num_dense(), position % ranker.num_dense());
                bail!(
                    "{}: \"dense\": feature {feature} of sample {sample} is {} in f32: expected a \
                     finite number",
                    path.display(),
                    values[position]
                );
            }
            Ok(values)
        });
        // A model without dense features needs no array.
        let dense = dense.or_else(|| (ranker.num_dense() == 0).then(|| Ok(Vec::new())));
        let dense = dense.transpose()?;
        let count = dense.as_ref().and_then(|dense| dense.len().checked_div(ranker.num_dense()));
        let bags = |(t, table): (usize, Table<'_>)| -> Result<Option<BagsFile>> {
            let [indices, offsets, lengths, weights] =
                ["indices", "offsets", "lengths", "weights"].map(|name| format!("{name}_{t}"));
            if file.find(&indices)?.is_none() {
                return Ok(None);
            }
            let weighted = file.find(&weights)?.is_some();
            let names = [&*indices, &*offsets, &*lengths, &*weights];
            let bags = BagsFile::of(&file, names, weighted, options, count)?;
            Ok(Some(bags.excluding(options.padding_idx(&table))))
        };
        let tables = ranker.tables().enumerate().map(bags).collect::<Result<_>>()?;
        Ok(Self { path: path.display().to_string(), dense, tables })
    }

    /// The dense features, if the file has them.
    pub(crate) fn dense(&self) -> Option<&[f32]> {
        self.dense.as_deref()
    }

    /// The number of samples of the dense features, or of table 0's bags if there are none.
    pub(crate) fn count(&self, ranker: &Ranker<'_>) -> Result<usize> {
        match self.dense().unwrap_or_default().len().checked_div(ranker.num_dense()) {
            Some(count) => Ok(count),
            None => Ok(self.bags(0)?.map_or(0, |bags| bags.len())),
        }
    }

    /// The bags of the model's table `table`, if the file has them.
    pub(crate) fn bags(&self, table: usize) -> Result<Option<Bags<'_>>> {
        let Some(Some(bags)) = self.tables.get(table) else { return Ok(None) };
        let all = bags.all().with_context(|| format!("{}: indices_{table}", self.path))?;
        Ok(Some(all))
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }
}

/// The error for bags that no file has.
pub(crate) fn missing(path: &str, ranker: &Ranker<'_>, table: usize) -> anyhow::Error {
    let name = ranker.tables().nth(table).map_or("", |table| table.name());
    anyhow::anyhow!(
        "{path}: array \"indices_{table}\" is missing: the bags of the model's table {table}, \
         {name:?}"
    )
}
