//! The spec: a TOML file that says which tensors become which tables, and what the checkpoint
//! itself does not store.

use crate::error::Error;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::path::Path;
use ttrec::{dtype::Dtype, repr::Combine};

/// A whole spec file.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// The model around the tables, which are then its own, in their order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelSpec>,
    /// One `[[table]]` each.
    #[serde(default, rename = "table", skip_serializing_if = "Vec::is_empty")]
    pub tables: Vec<TableSpec>,
}

/// `[model]`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// What stands before the names of its layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// How the layers are named: `dlrm` or `torchrec`; default: as the names show.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dialect: Option<String>,
    /// The stored type of the layers' weights; default: f32.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "by_name")]
    pub dtype: Option<Dtype>,
}

/// One `[[table]]`. What is unambiguous in the checkpoint may be left out.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TableSpec {
    /// The table's name in the blob; default: `tensor`, or `prefix` without its last dot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The full name of a dense tensor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tensor: Option<String>,
    /// What stands before the dialect's own keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// Which one, from 0, where FBTT's cores hold several tables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u64>,
    /// How the table is stored: `fbtt`, `dense` and so on; default: `dense` with `tensor`, else
    /// what the keys show.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dialect: Option<String>,
    /// Rows; with `index_map`, indices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_embeddings: Option<u64>,
    /// Which row an index stands for, if not its own: `modulo` for a hashed table, index modulo
    /// the number of rows.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "by_name")]
    pub index_map: Option<IndexMapping>,
    /// With `index_map`, the rows of the table, where the checkpoint does not store them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_rows: Option<u64>,
    /// What makes one row of two in a quotient-remainder table: `mult`, `add` or `concat`.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "by_name")]
    pub qr_operation: Option<Combine>,
    /// p, one per core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row_factors: Option<Vec<u32>>,
    /// q, one per core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column_factors: Option<Vec<u32>>,
    /// The inner ranks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ranks: Option<Vec<u32>>,
    /// What the table becomes; default: as the checkpoint has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub representation: Option<Representation>,
    /// The rank of a low-rank table, or the largest of a factorised tensor train.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<u32>,
    /// The relative error (Frobenius) that picks ranks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tolerance: Option<f64>,
    /// Refinements of all cores after a factorisation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sweeps: Option<u32>,
    /// What the rows of a factorised tensor train are sorted by first; default: they stay as they
    /// are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row_order: Option<RowOrder>,
    /// What becomes of the rows of a bag in a model; default: their sum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pooling: Option<Pooling>,
    /// The stored type in the blob; default: the checkpoint's own.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "by_name")]
    pub dtype: Option<Dtype>,
}

/// What a table is sorted by before it becomes a tensor train.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RowOrder {
    /// The rows that are asked for most come first.
    Frequency,
    /// Rows that are alike stand together.
    Similarity,
}

/// Which row an index stands for, if not its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum IndexMapping {
    /// Index modulo the number of rows: a hashed table.
    Modulo,
}

/// What a model makes of the rows of a bag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pooling {
    /// Their sum.
    Sum,
    /// Their mean.
    Mean,
}

/// What a table is stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Representation {
    /// Rows as they are.
    Dense,
    /// A tensor train.
    Tt,
    /// Short rows and a projection.
    LowRank,
}

impl Spec {
    /// Reads the spec at `path`.
    ///
    /// # Errors
    /// If the file cannot be read, or is no spec.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("{}: cannot read", path.display()))?;
        Ok(Self::parse(&text).with_context(|| format!("{}: not a usable spec", path.display()))?)
    }

    /// Reads a spec from its text.
    ///
    /// # Errors
    /// If it is no TOML, has unknown fields, or neither a table nor a model.
    pub fn from_toml(text: &str) -> Result<Self, Error> {
        Ok(Self::parse(text)?)
    }

    fn parse(text: &str) -> Result<Self> {
        let spec: Self = toml::from_str(text)?;
        ensure!(!spec.tables.is_empty() || spec.model.is_some(), "it has no [[table]]");
        Ok(spec)
    }
}

/// Enums that specs write by a name of the field's own, with an error that lists the names.
mod by_name {
    use super::IndexMapping;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use ttrec::{dtype::Dtype, repr::Combine};

    pub(super) trait Named: Copy {
        const FIELD: &'static str;
        const EXPECTED: &'static str;
        fn name(self) -> &'static str;
        fn from_name(name: &str) -> Option<Self>;
    }

    impl Named for Dtype {
        const FIELD: &'static str = "dtype";
        const EXPECTED: &'static str = "f32, f16, bf16, i8 or i4";
        fn name(self) -> &'static str {
            Self::name(self)
        }
        fn from_name(name: &str) -> Option<Self> {
            Self::from_name(name)
        }
    }

    impl Named for Combine {
        const FIELD: &'static str = "qr_operation";
        const EXPECTED: &'static str = "mult, add or concat";
        fn name(self) -> &'static str {
            Self::name(self)
        }
        fn from_name(name: &str) -> Option<Self> {
            Self::from_name(name)
        }
    }

    impl Named for IndexMapping {
        const FIELD: &'static str = "index_map";
        const EXPECTED: &'static str = "\"modulo\"";
        fn name(self) -> &'static str {
            match self {
                Self::Modulo => "modulo",
            }
        }
        fn from_name(name: &str) -> Option<Self> {
            (name == "modulo").then_some(Self::Modulo)
        }
    }

    pub(super) fn serialize<T: Named, S: Serializer>(
        value: &Option<T>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => to.serialize_str(value.name()),
            None => to.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, T: Named, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<T>, D::Error> {
        let name = String::deserialize(from)?;
        T::from_name(&name).map(Some).ok_or_else(|| {
            D::Error::custom(format_args!("{} {name:?}: expected {}", T::FIELD, T::EXPECTED))
        })
    }
}
