//! The spec: a TOML file that says which tensors become which tables, and what the checkpoint
//! itself does not store.

use crate::factorize::RowOrder;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::path::Path;
use ttrec::dtype::Dtype;

/// A whole spec file.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Spec {
    /// The model around the tables, which are then its own, in their order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) model: Option<ModelSpec>,
    /// One `[[table]]` each.
    #[serde(default, rename = "table", skip_serializing_if = "Vec::is_empty")]
    pub(crate) tables: Vec<TableSpec>,
}

/// `[model]`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ModelSpec {
    /// What stands before the names of its layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) prefix: Option<String>,
    /// How the layers are named: `dlrm` or `torchrec`; default: as the names show.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) dialect: Option<String>,
    /// The stored type of the layers' weights; default: f32.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "dtype_name")]
    pub(crate) dtype: Option<Dtype>,
}

/// One `[[table]]`. What is unambiguous in the checkpoint may be left out.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TableSpec {
    /// The table's name in the blob; default: `tensor`, or `prefix` without its last dot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    /// The full name of a dense tensor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tensor: Option<String>,
    /// What stands before the dialect's own keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) prefix: Option<String>,
    /// Which one, from 0, where FBTT's cores hold several tables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) table: Option<u64>,
    /// How the table is stored: `fbtt`, `dense` and so on; default: `dense` with `tensor`, else
    /// what the keys show.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) dialect: Option<String>,
    /// Rows; with `index_map`, indices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) num_embeddings: Option<u64>,
    /// Which row an index stands for, if not its own: `modulo` for a hashed table, index modulo
    /// the number of rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) index_map: Option<String>,
    /// With `index_map`, the rows of the table, where the checkpoint does not store them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) num_rows: Option<u64>,
    /// What makes one row of two in a quotient-remainder table: `mult`, `add` or `concat`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) qr_operation: Option<String>,
    /// p, one per core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) row_factors: Option<Vec<u32>>,
    /// q, one per core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) column_factors: Option<Vec<u32>>,
    /// The inner ranks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ranks: Option<Vec<u32>>,
    /// What the table becomes; default: as the checkpoint has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) representation: Option<Representation>,
    /// The rank of a low-rank table, or the largest of a factorised tensor train.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rank: Option<u32>,
    /// The relative error (Frobenius) that picks ranks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tolerance: Option<f64>,
    /// Refinements of all cores after a factorisation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) sweeps: Option<u32>,
    /// What the rows of a factorised tensor train are sorted by first; default: they stay as they
    /// are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) row_order: Option<RowOrder>,
    /// What becomes of the rows of a bag in a model; default: their sum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pooling: Option<Pooling>,
    /// The stored type in the blob; default: the checkpoint's own.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "dtype_name")]
    pub(crate) dtype: Option<Dtype>,
}

/// What a model makes of the rows of a bag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Pooling {
    Sum,
    Mean,
}

/// What a table is stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Representation {
    /// Rows as they are.
    Dense,
    /// A tensor train.
    Tt,
    /// Short rows and a projection.
    LowRank,
}

impl Spec {
    /// Reads the spec at `path`.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("{}: cannot read", path.display()))?;
        let spec =
            Self::parse(&text).with_context(|| format!("{}: not a usable spec", path.display()))?;
        Ok(spec)
    }

    /// Reads a spec from its text.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let spec: Self = toml::from_str(text)?;
        ensure!(!spec.tables.is_empty() || spec.model.is_some(), "it has no [[table]]");
        Ok(spec)
    }
}

mod dtype_name {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use ttrec::dtype::Dtype;

    pub(super) fn serialize<S: Serializer>(
        dtype: &Option<Dtype>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        match dtype {
            Some(dtype) => to.serialize_str(dtype.name()),
            None => to.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Dtype>, D::Error> {
        let name = String::deserialize(from)?;
        match Dtype::from_name(&name) {
            Some(dtype) => Ok(Some(dtype)),
            None => Err(D::Error::custom(format_args!(
                "dtype {name:?}: expected f32, f16, bf16, i8 or i4"
            ))),
        }
    }
}
