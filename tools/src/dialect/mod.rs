//! Dialects: how each training program lays a table out in its checkpoints.
//!
//! A dialect finds its tables in a checkpoint ([`Dialect::detect`]) and, with the facts of a spec, turns one into a
//! [`Source`] ([`Dialect::open`]): a shape and readers of rows or slices. What the file does not say and the spec does not
//! give is named in the error; what contradicts the file is refused.

mod dense;
mod fbtt;

use crate::{
    checkpoint::{Checkpoint, ElementType, Tensor},
    spec::TableSpec,
};
use anyhow::{Context, Result, anyhow, bail, ensure};
use ttrec::{TtShape, dtype::Dtype};

/// Every dialect, the more telling ones first.
const DIALECTS: &[&dyn Dialect] = &[&fbtt::Fbtt, &dense::Dense];

/// One way to lay out a table.
pub(crate) trait Dialect {
    /// Its name in specs.
    fn name(&self) -> &'static str;
    /// The tables in `checkpoint` that look like this dialect's, as far as a spec would need to name them.
    fn detect(&self, checkpoint: &Checkpoint) -> Vec<TableSpec>;
    /// The table that `spec` describes.
    fn open<'c>(&self, checkpoint: &'c Checkpoint, spec: &TableSpec) -> Result<Weights<'c>>;
}

/// A table of a checkpoint, ready to be read.
pub(crate) struct Source<'c> {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) weights: Weights<'c>,
}

/// The numbers of a table, where they are.
pub(crate) enum Weights<'c> {
    Dense { num_embeddings: u64, embedding_dim: usize, tensor: &'c Tensor },
    Tt { shape: TtShape, cores: Vec<&'c Tensor>, overrides: Option<Overrides<'c>> },
}

/// Rows that were trained apart: row `ids[i].0` is row `ids[i].1` of `tensor`; ids ascend.
pub(crate) struct Overrides<'c> {
    pub(crate) ids: Vec<(u64, u64)>,
    pub(crate) tensor: &'c Tensor,
}

impl<'c> Source<'c> {
    /// The table that `spec` describes.
    pub(crate) fn open(checkpoint: &'c Checkpoint, spec: &TableSpec) -> Result<Self> {
        let what = || toml::to_string(spec).unwrap_or_default().trim_end().replace('\n', ", ");
        let name = table_name(spec).with_context(|| format!("`name` is missing in [[table]] {{ {} }}", what()))?;
        let weights = pick(checkpoint, spec)
            .and_then(|dialect| dialect.open(checkpoint, spec))
            .with_context(|| format!("{}: table {name:?}", checkpoint.path().display()))?;
        let stored = weights.tensors()[0].element_type();
        ensure!(
            spec.dtype.is_some() || weights.tensors().iter().all(|tensor| tensor.element_type() == stored),
            "{}: table {name:?}: its cores differ in type: give `dtype`",
            checkpoint.path().display()
        );
        let dtype = match (spec.dtype, stored) {
            (Some(dtype), _) => dtype,
            (None, ElementType::F32) => Dtype::F32,
            (None, ElementType::F16) => Dtype::F16,
            (None, ElementType::Bf16) => Dtype::Bf16,
            (None, other) => bail!(
                "{}: table {name:?}: its numbers are {other}: give `dtype` (f32, f16, bf16, i8 or i4)",
                checkpoint.path().display()
            ),
        };
        ensure!(
            dtype.suits_cores() || matches!(weights, Weights::Dense { .. }),
            "{}: table {name:?}: dtype {} is for dense tables, not for the cores of a tensor train",
            checkpoint.path().display(),
            dtype.name()
        );
        Ok(Self { name, dtype, weights })
    }
}

impl<'c> Weights<'c> {
    pub(crate) fn num_embeddings(&self) -> u64 {
        match self {
            Self::Dense { num_embeddings, .. } => *num_embeddings,
            Self::Tt { shape, .. } => shape.num_embeddings(),
        }
    }

    pub(crate) fn embedding_dim(&self) -> usize {
        match self {
            Self::Dense { embedding_dim, .. } => *embedding_dim,
            Self::Tt { shape, .. } => shape.embedding_dim(),
        }
    }

    fn tensors(&self) -> Vec<&'c Tensor> {
        match self {
            Self::Dense { tensor, .. } => vec![*tensor],
            Self::Tt { cores, .. } => cores.clone(),
        }
    }
}

/// Every table that a dialect sees in `checkpoint`, with the dialect filled in.
pub(crate) fn detect(checkpoint: &Checkpoint) -> Vec<TableSpec> {
    let named = |dialect: &&dyn Dialect| {
        let name = dialect.name().to_owned();
        let found = dialect.detect(checkpoint).into_iter();
        found.map(move |spec| TableSpec { dialect: Some(name.clone()), ..spec })
    };
    DIALECTS.iter().flat_map(named).collect()
}

fn table_name(spec: &TableSpec) -> Option<String> {
    let given = spec.name.clone().or_else(|| spec.tensor.clone());
    given
        .or_else(|| spec.prefix.as_ref().map(|prefix| prefix.trim_end_matches('.').to_owned()))
        .filter(|n| !n.is_empty())
}

/// The dialect that a spec names, or the one that its keys imply.
fn pick(checkpoint: &Checkpoint, spec: &TableSpec) -> Result<&'static dyn Dialect> {
    let by_name = |name: &str| DIALECTS.iter().copied().find(|dialect| dialect.name() == name);
    if let Some(name) = &spec.dialect {
        let known: Vec<&str> = DIALECTS.iter().map(|dialect| dialect.name()).collect();
        return by_name(name).with_context(|| format!("dialect {name:?}: expected one of {known:?}"));
    }
    if spec.tensor.is_some() {
        return by_name("dense").context("no dialect reads `tensor`");
    }
    let prefix = spec.prefix.as_deref().unwrap_or_default();
    let sees =
        |dialect: &&dyn Dialect| dialect.detect(checkpoint).iter().any(|found| found.prefix.as_deref() == Some(prefix));
    DIALECTS
        .iter()
        .copied()
        .find(sees)
        .with_context(|| format!("no dialect recognises the keys after prefix {prefix:?}: give `tensor`, or `dialect`"))
}

/// The tensor called `name`, or an error that names near ones.
fn require<'c>(checkpoint: &'c Checkpoint, name: &str) -> Result<&'c Tensor> {
    checkpoint.tensor(name).ok_or_else(|| {
        let near: Vec<&str> = checkpoint
            .tensors()
            .map(Tensor::name)
            .filter(|n| n.contains("emb") || n.contains("core"))
            .take(8)
            .collect();
        anyhow!(
            "no tensor {name:?} in the checkpoint (it has {} others, such as {near:?})",
            checkpoint.tensors().count()
        )
    })
}

/// Refuses a field of the spec that the dialect has no use for.
fn refuse(given: bool, field: &str, dialect: &str) -> Result<()> {
    ensure!(!given, "`{field}` does not go with dialect {dialect:?}");
    Ok(())
}

/// Refuses tensors that do not hold real numbers.
fn require_float(tensor: &Tensor) -> Result<()> {
    use ElementType::{Bf16, F16, F32, F64};
    let found = tensor.element_type();
    ensure!(matches!(found, F64 | F32 | F16 | Bf16), "tensor {:?} is {found}: expected a float type", tensor.name());
    Ok(())
}
