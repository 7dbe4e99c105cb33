//! Dense tables: one tensor of `num_embeddings x embedding_dim`.

use super::{Dialect, Weights, refuse, require, require_float};
use crate::{
    checkpoint::{Checkpoint, ElementType, Tensor},
    spec::TableSpec,
};
use anyhow::{Context, Result, bail, ensure};

pub(super) struct Dense;

impl Dialect for Dense {
    fn name(&self) -> &'static str {
        "dense"
    }

    fn detect(&self, checkpoint: &Checkpoint) -> Vec<TableSpec> {
        let tables = checkpoint.tensors().filter(|tensor| looks_like_a_table(tensor));
        tables.map(|tensor| TableSpec { tensor: Some(tensor.name().to_owned()), ..TableSpec::default() }).collect()
    }

    fn open<'c>(&self, checkpoint: &'c Checkpoint, spec: &TableSpec) -> Result<Weights<'c>> {
        refuse(spec.prefix.is_some(), "prefix", self.name())?;
        refuse(spec.row_factors.is_some(), "row_factors", self.name())?;
        refuse(spec.column_factors.is_some(), "column_factors", self.name())?;
        refuse(spec.ranks.is_some(), "ranks", self.name())?;
        let name = spec.tensor.as_ref().context("`tensor` is missing: the full name of the dense tensor")?;
        let tensor = require(checkpoint, name)?;
        require_float(tensor)?;
        let &[rows, columns] = tensor.shape() else {
            bail!("tensor {name:?} has shape {:?}: expected rows x columns", tensor.shape());
        };
        if let Some(given) = spec.num_embeddings {
            ensure!(given == rows, "`num_embeddings` is {given}, but tensor {name:?} has {rows} rows");
        }
        let embedding_dim = usize::try_from(columns).with_context(|| format!("tensor {name:?}: {columns} columns"))?;
        Ok(Weights::Dense { num_embeddings: rows, embedding_dim, tensor })
    }
}

/// A guess for the offer: two-dimensional floats that are called an embedding, or are far taller than wide.
fn looks_like_a_table(tensor: &Tensor) -> bool {
    let &[rows, columns] = tensor.shape() else { return false };
    let float = !matches!(
        tensor.element_type(),
        ElementType::Bool
            | ElementType::I8
            | ElementType::U8
            | ElementType::I16
            | ElementType::U16
            | ElementType::I32
            | ElementType::U32
            | ElementType::I64
            | ElementType::U64
    );
    let name = tensor.name().to_ascii_lowercase();
    float && columns > 0 && (name.contains("emb") || rows / 8 >= columns)
}
