//! Dense tables: one tensor of `num_embeddings x embedding_dim`.

use super::{Dialect, Survey, TableRows, Weights, refuse, require};
use crate::{
    checkpoint::{Checkpoint, ElementType, Tensor},
    spec::{Representation, TableSpec},
};
use anyhow::{Context, Result, ensure};

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
        // A file of one matrix, such as word vectors, is a table of any size.
        let is_alone = survey.checkpoint.tensors().nth(1).is_none();
        let tables = survey.free().into_iter();
        let mut tables: Vec<&Tensor> =
            tables.filter(|t| looks_like_a_table(t, is_alone) && !has_bias(t)).collect();
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
        table(checkpoint, require(checkpoint, name)?, self.name(), spec).map(Weights::Dense)
    }
}

/// The dense table that is this tensor.
pub(super) fn table<'c>(
    checkpoint: &'c Checkpoint,
    tensor: &'c Tensor,
    dialect: &str,
    spec: &TableSpec,
) -> Result<TableRows<'c>> {
    refuse(spec.table.is_some(), "table", dialect)?;
    // These are the factors of a factorisation.
    if spec.representation != Some(Representation::Tt) {
        refuse(spec.row_factors.is_some(), "row_factors", dialect)?;
        refuse(spec.column_factors.is_some(), "column_factors", dialect)?;
        refuse(spec.ranks.is_some(), "ranks", dialect)?;
    }
    let table = TableRows::of(checkpoint, tensor, spec)?;
    if let Some(given) = spec.num_embeddings {
        let (name, rows) = (tensor.name(), table.num_rows);
        ensure!(given == rows, "`num_embeddings` is {given}, but tensor {name:?} has {rows} rows");
    }
    Ok(table)
}

/// A guess at the tables to offer: matrices of floats, or of quantised rows, that are named like an
/// embedding, and float ones that are far taller than wide, or alone.
fn looks_like_a_table(tensor: &Tensor, is_alone: bool) -> bool {
    let &[rows, columns] = tensor.shape() else { return false };
    let name = tensor.name().to_ascii_lowercase();
    let is_known = match tensor.element_type() {
        ElementType::F64 | ElementType::F32 | ElementType::F16 | ElementType::Bf16 => true,
        // Quantised rows.
        ElementType::U8 => name.contains("emb") && name.ends_with("weight"),
        _ => false,
    };
    // The scales and offsets of such rows.
    let is_apart = name.ends_with("weight_qscale") || name.ends_with("weight_qbias");
    // A column by itself is more often a vector of another kind.
    let is_tall = columns > 1 && rows / 8 >= columns;
    let is_likely = is_alone || name.contains("emb") || is_tall;
    is_known && !is_apart && columns > 0 && is_likely
}
