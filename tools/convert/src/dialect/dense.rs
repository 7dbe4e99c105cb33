//! Dense tables: one tensor of `num_embeddings x embedding_dim`.

use super::{Dialect, Survey, Weights, refuse, require, require_float};
use crate::{
    checkpoint::{Checkpoint, ElementType, Tensor},
    spec::{Representation, TableSpec},
};
use anyhow::{Context, Result, bail, ensure};

pub(super) struct Dense;

impl Dialect for Dense {
    fn name(&self) -> &'static str {
        "dense"
    }

    fn detect(&self, survey: &mut Survey<'_>) {
        // A `Linear` has a weight of the form of a table, and a bias.
        let has_bias = |tensor: &Tensor| {
            let stem = tensor.name().strip_suffix("weight");
            stem.is_some_and(|stem| survey.checkpoint.tensor(&format!("{stem}bias")).is_some())
        };
        let tables = survey.free().into_iter();
        let mut tables: Vec<&Tensor> =
            tables.filter(|t| looks_like_a_table(t) && !has_bias(t)).collect();
        // A model may take them in this order.
        survey.sort(&mut tables);
        for tensor in tables {
            survey.offer(TableSpec {
                tensor: Some(tensor.name().to_owned()),
                ..TableSpec::default()
            });
        }
    }

    fn open<'c>(&self, checkpoint: &'c Checkpoint, spec: &TableSpec) -> Result<Weights<'c>> {
        refuse(spec.prefix.is_some(), "prefix", self.name())?;
        let name = spec
            .tensor
            .as_ref()
            .context("`tensor` is missing: the full name of the dense tensor")?;
        table(require(checkpoint, name)?, self.name(), spec)
    }
}

/// The dense table that is this tensor.
pub(super) fn table<'c>(
    tensor: &'c Tensor,
    dialect: &str,
    spec: &TableSpec,
) -> Result<Weights<'c>> {
    refuse(spec.table.is_some(), "table", dialect)?;
    // These are the factors of a factorisation.
    if spec.representation != Some(Representation::Tt) {
        refuse(spec.row_factors.is_some(), "row_factors", dialect)?;
        refuse(spec.column_factors.is_some(), "column_factors", dialect)?;
        refuse(spec.ranks.is_some(), "ranks", dialect)?;
    }
    require_float(tensor)?;
    let name = tensor.name();
    let &[rows, columns] = tensor.shape() else {
        bail!("tensor {name:?} has shape {:?}: expected rows x columns", tensor.shape());
    };
    if let Some(given) = spec.num_embeddings {
        ensure!(given == rows, "`num_embeddings` is {given}, but tensor {name:?} has {rows} rows");
    }
    let embedding_dim =
        usize::try_from(columns).with_context(|| format!("tensor {name:?}: {columns} columns"))?;
    Ok(Weights::Dense { num_embeddings: rows, embedding_dim, tensor })
}

/// A guess at the tables to offer: float matrices that are named like an embedding, or are far
/// taller than wide.
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
