//! Samples of a model in an npz file, as DLRM's inputs are: `dense`, samples x features, and for
//! each table t of the model `indices_t` and `offsets_t`, the last one included, and perhaps
//! `weights_t`.

use crate::bags_file::BagsFile;
use anyhow::{Context, Result, ensure};
use std::path::Path;
use ttrec::{Bags, Ranker};
use ttrec_convert::Checkpoint;

/// What one file says of the samples.
pub(crate) struct Samples {
    path: String,
    dense: Option<Vec<f32>>,
    /// By table of the model.
    tables: Vec<Option<BagsFile>>,
}

impl Samples {
    /// Reads whatever of a model's inputs is there.
    pub(crate) fn read(path: &Path, ranker: &Ranker<'_>) -> Result<Self> {
        let file = Checkpoint::open(path)?;
        let dense = file.tensor("dense").map(|array| {
            let (columns, shape) = (ranker.num_dense() as u64, array.shape());
            let fits = matches!(shape, [_, found] if *found == columns);
            ensure!(
                fits,
                "{}: \"dense\" has shape {shape:?}: expected samples x {columns}",
                path.display()
            );
            let mut values = ttrec_convert::zeros(usize::try_from(array.len())?)?;
            array.read_f32(0, &mut values)?;
            Ok(values)
        });
        // A model of tables alone has none to give.
        let dense = dense.or_else(|| (ranker.num_dense() == 0).then(|| Ok(Vec::new())));
        let table = |t: usize| {
            let [indices, offsets, weights] =
                ["indices", "offsets", "weights"].map(|name| format!("{name}_{t}"));
            let weighted = file.tensor(&weights).is_some();
            let names = [&*indices, &*offsets, &*weights];
            file.tensor(&indices).map(|_| BagsFile::of(&file, names, weighted)).transpose()
        };
        let tables = (0..ranker.num_tables()).map(table).collect::<Result<_>>()?;
        Ok(Self { path: path.display().to_string(), dense: dense.transpose()?, tables })
    }

    /// The dense features, if they are there.
    pub(crate) fn dense(&self) -> Option<&[f32]> {
        self.dense.as_deref()
    }

    /// How many samples the dense features are of, or without any the first table's bags.
    pub(crate) fn count(&self, ranker: &Ranker<'_>) -> Result<usize> {
        match self.dense().unwrap_or_default().len().checked_div(ranker.num_dense()) {
            Some(count) => Ok(count),
            None => Ok(self.bags(0)?.map_or(0, |bags| bags.len())),
        }
    }

    /// The bags of table `table` of the model, if they are there.
    pub(crate) fn bags(&self, table: usize) -> Result<Option<Bags<'_>>> {
        let Some(Some(bags)) = self.tables.get(table) else { return Ok(None) };
        let all = bags.all().with_context(|| format!("{}: offsets_{table}", self.path))?;
        Ok(Some(all))
    }

    /// Where they are.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }
}

/// The error for an input that no file has.
pub(crate) fn missing(path: &str, ranker: &Ranker<'_>, table: usize) -> anyhow::Error {
    let name = ranker.tables().nth(table).map_or("", |table| table.name());
    anyhow::anyhow!(
        "{path}: no array \"indices_{table}\": the bags of table {name:?}, number {table} of the \
         model"
    )
}
