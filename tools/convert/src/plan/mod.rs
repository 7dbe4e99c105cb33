//! Chooses a representation, a shape and ranks for each table of a checkpoint within a budget, as a
//! spec for [`convert`](crate::convert).

mod allowed;
mod alternatives;
mod as_trained;
mod candidate;
mod choose;
mod codes;
mod cost;
mod enumerate;
mod explain;
mod judge;
mod layers;
mod low_rank;
mod runs;
mod sample;
mod tensor_train;

pub use alternatives::{Alternative, Alternatives, Family, Kind, alternatives};
pub use explain::size;
pub use judge::{Judge, JudgedChoice, Judgement};

use crate::{
    budget::Budget,
    checkpoint::Checkpoint,
    dialect::{Model, Source, Survey, named_after_file},
    error::Error,
    frequencies::Frequencies,
    progress::{Progress, Step},
    spec::{Combining, ModelSpec, Spec, TableSpec},
};
use allowed::{Allowed, Chosen};
use anyhow::{Context, Result, bail, ensure};
use candidate::{Candidate, Candidates, Form, Search, f32_bytes, head_bytes};
use choose::Item;
use enumerate::candidates;
use layers::Layers;
use serde::Serialize;
use std::path::Path;
use ttrec::blob::Layout;

/// The limits of a plan.
#[derive(Clone, Copy)]
pub struct Bounds<'b> {
    /// The largest size of the blob; without it, the plan is the smallest within the other limits.
    pub budget: Option<Budget>,
    /// The largest relative error of each table, and of all layers together.
    pub max_error: Option<f64>,
    /// The longest estimated time of a lookup, in any table.
    pub max_nanoseconds: Option<f64>,
    /// A file of [`Frequencies`]: a row's error counts as often as the row is looked up.
    pub frequencies: Option<&'b Path>,
    /// Measures whole models.
    pub judge: Option<Judge<'b>>,
    /// The memory limit in bytes.
    pub memory: u64,
}

/// The tables of a checkpoint and its model, detected from the names of the tensors.
///
/// # Errors
/// If no table is found, or a table cannot be converted.
pub fn detect(checkpoint: &Checkpoint) -> Result<Spec, Error> {
    Ok(try_detect(checkpoint)?)
}

/// Chooses how to store each table of `spec`: the choice with the least squared error within
/// `bounds`, or the smallest one whose loss a judge accepts.
///
/// # Errors
/// If `spec` does not fit the checkpoint, or nothing is within `bounds`.
pub fn plan(
    checkpoint: &Checkpoint,
    spec: &Spec,
    bounds: &Bounds<'_>,
    progress: &dyn Progress,
) -> Result<Plan, Error> {
    Ok(try_plan(checkpoint, spec, bounds, progress)?)
}

fn try_detect(checkpoint: &Checkpoint) -> Result<Spec> {
    let path = checkpoint.path().display();
    let survey = Survey::of(checkpoint);
    let model = Model::around(&survey);
    let Survey { tables, refused, .. } = survey;
    if let Some((_, reason)) = refused.first() {
        bail!("{path}: {reason}; name the tables to plan in a --spec");
    }
    ensure!(
        !tables.is_empty(),
        "{path}: no tensor looks like an embedding table: name one in a --spec"
    );
    let mut tables = match tables.as_slice() {
        [only] => vec![named_after_file(checkpoint, only)],
        _ => tables,
    };
    // A spec may only have `pooling` with a model.
    if model.is_none() {
        tables.iter_mut().for_each(|table| table.pooling = None);
    }
    Ok(Spec { model, tables })
}

fn try_plan(
    checkpoint: &Checkpoint,
    spec: &Spec,
    bounds: &Bounds<'_>,
    progress: &dyn Progress,
) -> Result<Plan> {
    let Spec { model, tables: found } = spec;
    let sources = found
        .iter()
        .map(|found| Source::open(checkpoint, found))
        .collect::<Result<Vec<_>>>();
    let sources =
        sources.context("name the tables, and what the checkpoint does not store, in a --spec")?;
    let dims: Vec<usize> = sources.iter().map(|source| source.weights.embedding_dim()).collect();
    let layers = model
        .as_ref()
        .map(|model| Layers::of(checkpoint, model, found, &dims, bounds.memory))
        .transpose()?;
    let f32_bytes = sources
        .iter()
        .map(|source| f32_bytes(source.num_embeddings(), source.weights.embedding_dim()));
    let f32_bytes =
        f32_bytes.sum::<f64>() + layers.as_ref().map_or(0.0, |layers| layers.f32_bytes as f64);
    let budget = bounds.budget.map(|budget| budget.bytes(f32_bytes));
    let names = sources.iter().map(|source| source.name.clone()).collect();
    let frequencies = bounds.frequencies.map(|path| Frequencies::read(path, names)).transpose()?;

    let of_layers = layers.iter().flat_map(|layers| &layers.list).map(|stored| stored.bytes);
    let layer_bytes = of_layers.min().unwrap_or(0);
    // Before the tables are measured, which takes longer.
    let (least, given) = (layer_bytes + head_bytes()?, budget.unwrap_or(u64::MAX));
    ensure!(
        given >= least,
        "{}: a budget of {} is too small: the model's layers alone need {least} bytes",
        checkpoint.path().display(),
        size(given as f64)
    );

    // One table after another, so that only the candidates are held in memory, not the tables.
    let step = Step::new(progress, "candidates", Search::UNITS * sources.len() as u64);
    let mut tables = Vec::new();
    for (found, source) in found.iter().zip(&sources) {
        let counts = frequencies
            .as_ref()
            .map(|frequencies| frequencies.of(&source.name))
            .transpose()?
            .flatten();
        let asked = counts.map(|counts| counts.read(source.num_embeddings())).transpose()?;
        let search = Search {
            frequencies: asked.as_deref().filter(|asked| !asked.is_empty()),
            memory: bounds.memory,
            most_bytes: budget.map_or(u64::MAX, |budget| budget.saturating_sub(layer_bytes)),
            progress,
            step: &step,
        };
        tables.push(candidates(checkpoint, found, &search)?);
    }
    drop(step);
    let place = || checkpoint.path().display().to_string();
    let allowed = Allowed::new(&tables, layers.as_ref(), budget, bounds).with_context(place)?;
    let (chosen, judgement) = match &bounds.judge {
        Some(judge) => {
            let judged = judge::choose(&allowed, spec, judge, progress).with_context(place)?;
            (judged.0, Some(judged.1))
        }
        None => (allowed.choose().with_context(place)?, None),
    };
    let plan = Plan::new(&tables, layers.as_ref(), &chosen, budget)?;
    let sensible = allowed.sensible_budget();
    Ok(Plan { judgement, sensible_budget: sensible, ..plan })
}

/// The choice for each table, its cost, and the other candidates.
#[derive(Debug, Serialize)]
#[non_exhaustive]
pub struct Plan {
    /// The largest size of the blob in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<u64>,
    /// The length of the whole blob.
    pub bytes: u64,
    /// The bytes of the tables and layers as f32.
    pub f32_bytes: u64,
    /// The relative error of all tables and layers together.
    pub error: f64,
    /// The smallest useful budget in bytes. `None` if the budget is large enough.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sensible_budget: Option<u64>,
    /// The loss of the whole model, if there is a judge.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub judgement: Option<Judgement>,
    /// The layers of the model, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers: Option<LayersPlan>,
    /// The tables, in the order of the spec.
    pub tables: Vec<TablePlan>,
}

/// The plan of a model's layers.
#[derive(Debug, Serialize)]
#[non_exhaustive]
pub struct LayersPlan {
    /// The number of layers.
    pub count: usize,
    /// Their bytes as f32.
    pub f32_bytes: u64,
    /// The name of their type in the blob.
    pub dtype: &'static str,
    /// The bytes that they add to the blob.
    pub bytes: u64,
    /// The relative error of all layers together.
    pub error: f64,
    /// A summary in one line.
    #[serde(skip)]
    pub outcome: String,
    #[serde(skip)]
    spec: ModelSpec,
}

/// The plan of a table.
#[derive(Debug, Serialize)]
#[non_exhaustive]
pub struct TablePlan {
    /// The table's name.
    pub name: String,
    /// The number of indices.
    pub num_embeddings: u64,
    /// The elements of a row.
    pub embedding_dim: usize,
    /// The bytes of the table as f32.
    pub f32_bytes: u64,
    /// The chosen candidate.
    #[serde(flatten)]
    pub chosen: Point,
    /// The rows that errors were measured on.
    pub rows_measured: usize,
    /// A summary in one line.
    #[serde(skip)]
    pub outcome: String,
    /// The reason, in sentences; may be empty.
    pub why: String,
    /// The candidates that no other beats in both bytes and error, by bytes.
    pub candidates: Vec<Point>,
    #[serde(skip)]
    spec: TableSpec,
}

/// A candidate in numbers.
#[derive(Debug, Serialize)]
#[non_exhaustive]
pub struct Point {
    /// `dense`, `low-rank`, `tt`, `codes`, or the representation in the checkpoint.
    pub representation: &'static str,
    /// The name of the stored type.
    pub dtype: &'static str,
    /// The rank of short rows, the inner ranks of a tensor train, or the number of columns that
    /// codes and a projection are made of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ranks: Option<Vec<u32>>,
    /// The row factors of a tensor train.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub row_factors: Option<Vec<u32>>,
    /// The column factors of a tensor train.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column_factors: Option<Vec<u32>>,
    /// The number of codes of a row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub books: Option<u32>,
    /// The bits of a code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bits: Option<u32>,
    /// How the entries of a row of codes make it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub combine: Option<Combining>,
    /// The bytes that it adds to the blob.
    pub bytes: u64,
    /// Its relative error.
    pub error: f64,
    /// The estimated time of a lookup.
    pub nanoseconds: f64,
}

impl Point {
    fn new(candidate: &Candidate) -> Self {
        let (representation, shape, ranks) = match &candidate.representation {
            Form::Dense => ("dense", None, None),
            Form::LowRank { rank } => ("low-rank", None, Some(vec![*rank as u32])),
            Form::Tt { shape, .. } => ("tt", Some(shape), Some(shape.inner_ranks().to_vec())),
            Form::Codes { shape } => {
                ("codes", None, shape.projected.then(|| vec![shape.rank as u32]))
            }
            Form::AsTrained { what } => (*what, None, None),
        };
        let codes = match &candidate.representation {
            Form::Codes { shape } => Some(shape),
            _ => None,
        };
        Self {
            representation,
            dtype: candidate.dtype.name(),
            ranks,
            row_factors: shape.map(|shape| shape.row_factors().to_vec()),
            column_factors: shape.map(|shape| shape.column_factors().to_vec()),
            books: codes.map(|shape| shape.books as u32),
            bits: codes.map(|shape| shape.bits),
            combine: codes.map(|shape| shape.combine),
            bytes: candidate.bytes,
            error: candidate.error,
            nanoseconds: candidate.nanoseconds,
        }
    }
}

impl Plan {
    fn new(
        tables: &[Candidates],
        layers: Option<&Layers>,
        chosen: &Chosen<'_>,
        budget: Option<u64>,
    ) -> Result<Self> {
        let layers = layers.zip(chosen.layers);
        let errors = tables
            .iter()
            .zip(&chosen.tables)
            .map(|(table, chosen)| (chosen.error, table.energy));
        let errors = errors.chain(layers.map(|(layers, stored)| (stored.error, layers.energy)));
        let (squared, energy) = errors.fold((0.0, 0.0), |sums, (error, energy)| {
            (sums.0 + error.powi(2) * energy, sums.1 + energy)
        });
        let layouts: Vec<_> =
            chosen.tables.iter().map(|candidate| candidate.layout.clone()).collect();
        let f32_bytes = tables.iter().map(Candidates::f32_bytes).sum::<f64>() as u64;
        let table = |(table, chosen): (&Candidates, &&Candidate)| {
            let item =
                |c: &Candidate| Item { bytes: c.bytes, error: c.error, nanoseconds: c.nanoseconds };
            let items: Vec<Item> = table.list.iter().map(item).collect();
            TablePlan {
                name: table.name.clone(),
                num_embeddings: table.num_embeddings,
                embedding_dim: table.embedding_dim,
                f32_bytes: table.f32_bytes() as u64,
                chosen: Point::new(chosen),
                rows_measured: table.rows_measured,
                outcome: explain::outcome(table, chosen),
                why: explain::reason(table, chosen),
                spec: chosen.spec.clone(),
                candidates: choose::front(&items)
                    .into_iter()
                    .map(|at| Point::new(&table.list[at]))
                    .collect(),
            }
        };
        Ok(Self {
            budget,
            bytes: Layout::with_model(&layouts, layers.map(|(_, stored)| &stored.layout))?
                .total_len(),
            f32_bytes: f32_bytes + layers.map_or(0, |(layers, _)| layers.f32_bytes),
            error: if energy > 0.0 {
                (squared / energy).sqrt()
            } else {
                squared.sqrt()
            },
            sensible_budget: None,
            judgement: None,
            layers: layers.map(|(layers, stored)| LayersPlan {
                count: layers.count,
                f32_bytes: layers.f32_bytes,
                dtype: stored.dtype.name(),
                bytes: stored.bytes,
                error: stored.error,
                outcome: explain::layers(layers, stored),
                spec: stored.spec.clone(),
            }),
            tables: tables.iter().zip(&chosen.tables).map(table).collect(),
        })
    }

    /// The spec to convert with.
    pub fn spec(&self) -> Spec {
        Spec {
            model: self.layers.as_ref().map(|layers| layers.spec.clone()),
            tables: self.tables.iter().map(|table| table.spec.clone()).collect(),
        }
    }

    /// The spec as TOML, with the reason above each part; `title` is what was planned.
    ///
    /// # Errors
    /// If a part has no form in TOML.
    pub fn to_toml(&self, title: &str) -> Result<String, Error> {
        let mut text = format!("# {}: {}\n", title.escape_debug(), self.summary());
        let write = |spec: &Spec| {
            toml::to_string(spec)
                .map_err(|error| Error::Input(format!("cannot write the spec: {error}")))
        };
        if let Some(layers) = &self.layers {
            text += &format!("\n# {}\n", layers.outcome);
            text += &write(&Spec { model: Some(layers.spec.clone()), tables: Vec::new() })?;
        }
        for table in &self.tables {
            text += &format!("\n# {}\n", table.outcome);
            if !table.why.is_empty() {
                text += &format!("# {}\n", table.why);
            }
            text += &write(&Spec { model: None, tables: vec![table.spec.clone()] })?;
        }
        Ok(text)
    }

    /// A warning in one sentence, if the budget leaves almost nothing of the tables.
    pub fn warning(&self) -> Option<String> {
        let least = self.sensible_budget?;
        let percent = (least as f64 / self.f32_bytes as f64 * 1000.0).ceil() / 10.0;
        Some(format!(
            "this budget leaves an {}: the smallest that leaves less than {} % is {least} bytes \
             ({percent} %)",
            explain::error(self.error),
            allowed::SENSELESS * 100.0
        ))
    }

    /// The bytes and the error of the plan in one line.
    pub fn summary(&self) -> String {
        let budget = self.budget.map(|budget| format!(" of {budget}")).unwrap_or_default();
        let times = self.f32_bytes as f64 / self.bytes as f64;
        let error = explain::error(self.error);
        format!("{} bytes{budget}, {times:.1}x smaller than f32, {error}", self.bytes)
    }
}
