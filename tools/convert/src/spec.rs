//! The spec: a TOML file that says which tensors to convert, how to store them, and the facts that
//! the checkpoint does not store.

use crate::{error::Error, toml_error::toml_mistake};
use anyhow::{Context, Result, anyhow, ensure};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{SeqAccess, Visitor},
};
use std::{fmt, path::Path};
use ttrec::{blob::Interaction, dtype::Dtype, repr::Combine};

/// A whole spec file.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// The model, whose tables are those that it lists, or those of the spec in their order.
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
    /// The prefix of all names of the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// The naming of the layers: `dlrm` or `torchrec`; default: detected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dialect: Option<String>,
    /// The layers of the bottom MLP; default: those of the dialect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bottom: Option<Prefixes>,
    /// The layers of the top MLP; default: those of the dialect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top: Option<Prefixes>,
    /// The names of its tables, in the model's order; default: all tables of the spec. A name that
    /// no `[[table]]` has is a tensor or, with a dot at its end, a prefix.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tables: Vec<String>,
    /// How it pools the rows of a bag, for tables that do not say it; default: their sum, if the
    /// layers have the names of DLRM or TorchRec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pooling: Option<Pooling>,
    /// The stored type of the layers' weights; default: f32.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "by_name")]
    pub dtype: Option<Dtype>,
    /// The interaction of the vectors; default: `dot`.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "by_name")]
    pub interaction: Option<Interaction>,
}

/// The prefixes of the names of layers, in the order of the layers: a text in TOML, or a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prefixes(pub Vec<String>);

impl<'de> Deserialize<'de> for Prefixes {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct OneOrMore;

        impl<'de> Visitor<'de> for OneOrMore {
            type Value = Prefixes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a prefix, or a list of prefixes")
            }

            fn visit_str<E>(self, prefix: &str) -> Result<Prefixes, E> {
                Ok(Prefixes(vec![prefix.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Prefixes, A::Error> {
                let mut prefixes = Vec::new();
                while let Some(prefix) = list.next_element()? {
                    prefixes.push(prefix);
                }
                Ok(Prefixes(prefixes))
            }
        }

        from.deserialize_any(OneOrMore)
    }
}

impl Serialize for Prefixes {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match &self.0[..] {
            [prefix] => to.serialize_str(prefix),
            list => to.collect_seq(list),
        }
    }
}

/// One `[[table]]`. Facts that are unambiguous in the checkpoint may be omitted.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TableSpec {
    /// The table's name in the blob; default: `tensor`, or `prefix` without its last dot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The full name of a dense tensor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tensor: Option<String>,
    /// The prefix of the dialect's own keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// The number of the table, from 0, if FBTT's cores hold several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u64>,
    /// The layout in the checkpoint: `fbtt`, `dense` and so on; default: `dense` with `tensor`,
    /// else detected from the keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dialect: Option<String>,
    /// The number of rows; with `index_map`, of indices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_embeddings: Option<u64>,
    /// The map from indices to rows: `modulo` for a hashed table, index modulo the number of rows;
    /// default: each index is a row.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "by_name")]
    pub index_map: Option<IndexMapping>,
    /// With `index_map`, the number of rows, if the checkpoint does not store it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_rows: Option<u64>,
    /// How quotient and remainder rows are combined: `mult`, `add` or `concat`.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "by_name")]
    pub qr_operation: Option<Combine>,
    /// The form of quantised rows, if the checkpoint does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantized: Option<Quantized>,
    /// A row that is zeros, whatever the checkpoint has for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub padding_idx: Option<u64>,
    /// p, one per core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row_factors: Option<Vec<u32>>,
    /// q, one per core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column_factors: Option<Vec<u32>>,
    /// The inner ranks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ranks: Option<Vec<u32>>,
    /// The representation in the blob; default: that of the checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub representation: Option<Representation>,
    /// The rank of a low-rank table, the largest of a factorised tensor train, or the number of
    /// columns that codes are made of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<u32>,
    /// The relative error (Frobenius) that determines the ranks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tolerance: Option<f64>,
    /// Refinements of all cores after a factorisation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sweeps: Option<u32>,
    /// The order into which a factorisation to a tensor train sorts the rows; default: unchanged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row_order: Option<RowOrder>,
    /// The number of books of codes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub books: Option<u32>,
    /// The bits of a code; default: 8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits: Option<u32>,
    /// How the entries of a row make it; default: they are put end to end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub combine: Option<Combining>,
    /// Whether rows are rotated before they are coded; default: no, unless there is a `rank`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<bool>,
    /// How a model pools the rows of a bag; default: their sum. Needs `[model]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pooling: Option<Pooling>,
    /// The stored type in the blob; default: the checkpoint's own.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "by_name")]
    pub dtype: Option<Dtype>,
}

/// The order of the rows of a tensor train.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RowOrder {
    /// The most frequent rows come first.
    Frequency,
    /// Similar rows are neighbours.
    Similarity,
}

/// A map from indices to rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum IndexMapping {
    /// Index modulo the number of rows: a hashed table.
    Modulo,
}

/// How a model pools the rows of a bag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pooling {
    /// Their sum.
    Sum,
    /// Their mean.
    Mean,
}

/// The form of quantised rows in a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Quantized {
    /// A byte for each element.
    Byte,
    /// A half-byte for each element, the low one of a byte first.
    Nibble,
}

/// A representation in the blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Representation {
    /// One stored row for each row.
    Dense,
    /// A tensor train.
    Tt,
    /// Short rows and a projection.
    LowRank,
    /// Codes: the numbers of entries, one in each of a few books.
    Codes,
}

/// How a row of codes is made of its entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Combining {
    /// They are put end to end: product quantisation.
    #[default]
    Concat,
    /// They are added: residual quantisation.
    Add,
}

impl ModelSpec {
    /// Whether `table` is the one that the model lists as `name`.
    pub(crate) fn lists(&self, name: &str, table: &TableSpec) -> bool {
        let full = self.full_name(name);
        let names = [table.name.as_ref(), table.tensor.as_ref(), table.prefix.as_ref()];
        let is = |found: &String| *found == name || *found == full;
        names.into_iter().flatten().any(is) || table.blob_name().is_some_and(|found| is(&found))
    }

    /// `name` after the prefix of the model.
    pub(crate) fn full_name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix.as_deref().unwrap_or_default())
    }
}

impl TableSpec {
    /// The name in the blob: `name`, else `tensor`, else the prefix.
    pub(crate) fn blob_name(&self) -> Option<String> {
        let given = self.name.clone().or_else(|| self.tensor.clone());
        given
            .or_else(|| self.prefix.as_ref().map(|prefix| prefix.trim_end_matches('.').to_owned()))
            .filter(|name| !name.is_empty())
    }
}

impl Spec {
    /// Reads the spec at `path`.
    ///
    /// # Errors
    /// If the file cannot be read, or is not a spec.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("{}: cannot read", path.display()))?;
        Ok(Self::parse(&text).with_context(|| format!("{}: invalid spec", path.display()))?)
    }

    /// Reads a spec from its text.
    ///
    /// # Errors
    /// If it is not TOML, has unknown fields, neither a table nor a model, or a `pooling` without a
    /// model.
    pub fn from_toml(text: &str) -> Result<Self, Error> {
        Ok(Self::parse(text)?)
    }

    fn parse(text: &str) -> Result<Self> {
        let mut spec: Self =
            toml::from_str(text).map_err(|error| anyhow!(toml_mistake(text, &error)))?;
        spec.add_tables_of_model();
        ensure!(!spec.tables.is_empty() || spec.model.is_some(), "has no [[table]]");
        if let Some(table) = spec.tables.iter().find(|table| table.pooling.is_some()) {
            ensure!(
                spec.model.is_some(),
                "table {:?}: `pooling` applies only to the tables of a model: remove it, or add \
                 [model]",
                table.blob_name().unwrap_or_default()
            );
        }
        Ok(spec)
    }
}

impl Spec {
    /// Adds the tables that only `[model]` lists.
    fn add_tables_of_model(&mut self) {
        let Some(model) = &self.model else { return };
        for name in &model.tables {
            if self.tables.iter().any(|table| model.lists(name, table)) {
                continue;
            }
            let (full, is_prefix) = (Some(model.full_name(name)), name.ends_with('.'));
            let (tensor, prefix) = if is_prefix { (None, full) } else { (full, None) };
            self.tables.push(TableSpec {
                name: Some(name.trim_end_matches('.').to_owned()),
                tensor,
                prefix,
                ..TableSpec::default()
            });
        }
    }
}

/// Serialises enums by name, with an error that lists the names.
mod by_name {
    use super::IndexMapping;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use ttrec::{blob::Interaction, dtype::Dtype, repr::Combine};

    pub(super) trait Named: Copy {
        const FIELD: &'static str;
        const EXPECTED: &'static str;
        fn name(self) -> &'static str;
        fn from_name(name: &str) -> Option<Self>;
    }

    macro_rules! named {
        ($($Type:ty: $field:literal, $expected:literal;)*) => {
            $(impl Named for $Type {
                const FIELD: &'static str = $field;
                const EXPECTED: &'static str = $expected;
                fn name(self) -> &'static str {
                    Self::name(self)
                }
                fn from_name(name: &str) -> Option<Self> {
                    Self::from_name(name)
                }
            })*
        };
    }
    named! {
        Dtype: "dtype", "f32, f16, bf16, i8 or i4";
        Combine: "qr_operation", "mult, add or concat";
        Interaction: "interaction", "\"dot\", \"dot-itself\" or \"cat\"";
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
