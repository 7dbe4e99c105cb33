//! `ttrec plan`: which representation, shape and rank each table of a checkpoint takes in a budget,
//! as a spec for `convert`.

mod as_trained;
mod candidate;
mod choose;
mod cost;
mod layers;
mod low_rank;
mod sample;
mod tensor_train;
pub(crate) mod words;

use crate::{
    Outcome,
    budget::Budget,
    checkpoint::Checkpoint,
    convert,
    dialect::{Model, Source, Survey, with_qr_operation},
    factorize::Rows,
    frequencies::Frequencies,
    output::{self, Output},
    spec::{ModelSpec, Spec, TableSpec},
};
use anyhow::{Context, Result, bail, ensure};
pub(crate) use candidate::{Candidate, Candidates, Options, Representation, candidates, f32_bytes};
use choose::Item;
use layers::{Layers, Stored};
use serde::Serialize;
use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};
use ttrec::{blob::Layout, dtype::Dtype, limits::ALIGNMENT};

/// Choose how to store each table of a checkpoint, by error, bytes and time, and write the spec
/// that `convert` takes.
///
/// Every table is tried as rows of each stored type, as short rows with a projection (low rank),
/// and as tensor trains of several shapes and ranks; one that was trained small stays what it is,
/// in each stored type. The layers of a model are f32 or f16. Of all choices within the budget the
/// one with the least squared error is taken.
#[derive(clap::Args)]
#[command(after_help = "\
Errors are relative, by Frobenius norm, as `ttrec verify` finds them. Those of very large tables \
                        are measured on a sample of
rows, and the plan says so. With --frequencies a row counts as often as it is asked for; `convert` \
                        needs the same file then.

Hashed and quotient-remainder tables have to be trained: they are not made of others. Neither is a \
                        projection that was
trained, or a tensor train, changed but for the type of its numbers.")]
#[command(group = clap::ArgGroup::new("bound").required(true).multiple(true).args(["budget", "max_error"]))]
pub(crate) struct Args {
    /// .safetensors, or the .safetensors.index.json of several, torch .pt (zip or legacy), .npy or
    /// .npz
    checkpoint: PathBuf,
    /// The most that the blob may take: 8MiB, 500KB, 1234, or 12% (of what its tables and layers
    /// take as f32)
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true)]
    budget: Option<Budget>,
    /// The most error that any table may have, and the layers together, 0 to 1: without --budget,
    /// the smallest blob within it
    #[arg(long, value_name = "E", value_parser = share, allow_negative_numbers = true)]
    max_error: Option<f64>,
    /// The longest that a lookup in any table may take, alone, as estimated
    #[arg(long, value_name = "NS", value_parser = positive, allow_negative_numbers = true)]
    max_nanoseconds: Option<f64>,
    /// How often each row is asked for, as `ttrec cache` takes it
    #[arg(long, value_name = "FILE.npz")]
    frequencies: Option<PathBuf>,
    /// The tables, what the checkpoint does not say of them, and the model around them [default:
    /// all that look like embedding tables, and the layers if it is a DLRM]
    #[arg(long, value_name = "SPEC.toml")]
    spec: Option<PathBuf>,
    /// What makes one row of two in DLRM's quotient-remainder tables
    #[arg(long, value_name = "OPERATION", value_parser = ["mult", "add", "concat"])]
    qr_operation: Option<String>,
    /// The stored type of a model's layers: f32, f16, bf16, i8 [default: f32 or f16, whichever
    /// leaves less error in all]
    #[arg(long, value_name = "DTYPE", value_parser = layer_dtype)]
    layers: Option<Dtype>,
    /// How much to hold in memory
    #[arg(long, value_name = "SIZE", default_value = "512MiB", value_parser = convert::memory_size)]
    memory: u64,
    /// Where the spec goes
    #[arg(short, long, value_name = "SPEC.toml")]
    output: PathBuf,
    /// Print JSON, with all candidates that are best for their bytes
    #[arg(long)]
    json: bool,
}

fn share(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "expected a number from 0 to 1".to_owned())?;
    if (0.0..=1.0).contains(&number) {
        Ok(number)
    } else {
        Err("expected a number from 0 to 1".to_owned())
    }
}

fn layer_dtype(text: &str) -> Result<Dtype, String> {
    let dtype = Dtype::from_name(text).filter(|dtype| dtype.suits_cores());
    dtype.ok_or_else(|| "expected f32, f16, bf16 or i8".to_owned())
}

fn positive(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "expected a number above 0".to_owned())?;
    if number > 0.0 && number.is_finite() {
        Ok(number)
    } else {
        Err("expected a number above 0".to_owned())
    }
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    let checkpoint = Checkpoint::open(&args.checkpoint)?;
    let more = [&args.spec, &args.frequencies].into_iter().filter_map(|path| path.as_deref());
    let inputs: Vec<&Path> = checkpoint.files().chain(more).collect();
    output::refuse_inputs(&args.output, &inputs)?;
    let Spec { model, tables: found } = what_to_plan(&checkpoint, args)?;
    let sources = found
        .iter()
        .map(|found| Source::open(&checkpoint, found))
        .collect::<Result<Vec<_>>>();
    let sources = sources.context(
        "tables, and what the checkpoint does not say of them, can be named in a --spec",
    )?;
    let layers = model
        .map(|model| Layers::of(&checkpoint, &model, &found, args.memory))
        .transpose()?;
    let f32_bytes = sources
        .iter()
        .map(|source| f32_bytes(source.num_embeddings(), source.weights.embedding_dim()));
    let f32_bytes =
        f32_bytes.sum::<f64>() + layers.as_ref().map_or(0.0, |layers| layers.f32_bytes as f64);
    let budget = args.budget.map(|budget| budget.bytes(f32_bytes));
    let names = sources.iter().map(|source| source.name.clone()).collect();
    let frequencies = args
        .frequencies
        .as_deref()
        .map(|path| Frequencies::open(path, names))
        .transpose()?;

    let of_layers = layers.iter().flat_map(|layers| &layers.list).map(|stored| stored.bytes);
    let layer_bytes = of_layers.min().unwrap_or(0);
    // Said before the tables are looked at, which takes longer.
    let (least, given) = (layer_bytes + candidate::head_bytes()?, budget.unwrap_or(u64::MAX));
    ensure!(
        given >= least,
        "{}: {} are too few: its layers alone take {least} bytes at least",
        checkpoint.path().display(),
        words::size(given as f64)
    );

    // Tables are looked at one after another, so that no more than the candidates of all are held.
    let mut tables = Vec::new();
    for (found, source) in found.iter().zip(&sources) {
        let counts = frequencies
            .as_ref()
            .map(|frequencies| frequencies.of(&source.name))
            .transpose()?
            .flatten();
        let asked = counts.map(|counts| counts.read(source.num_embeddings())).transpose()?;
        let options = Options {
            frequencies: asked.as_deref().filter(|asked| !asked.is_empty()),
            memory: args.memory,
            most_bytes: budget.map_or(u64::MAX, |budget| budget.saturating_sub(layer_bytes)),
        };
        tables.push(candidates(&checkpoint, found, &options)?);
    }
    let chosen = choose(&checkpoint, &tables, layers.as_ref(), budget, args)?;
    let plan = Plan::new(&tables, layers.as_ref(), &chosen, budget)?;

    let mut output = Output::create(&args.output)?;
    let spec = spec(&args.checkpoint, &plan, &chosen)?;
    output.write(|file| file.write_all(spec.as_bytes()))?;
    output.commit()?;
    output::print(|mut out| {
        if args.json {
            serde_json::to_writer_pretty(&mut out, &plan)?;
            writeln!(out)
        } else {
            print(out, &plan, &args.output)
        }
    })?;
    Ok(Outcome::Done)
}

/// What a plan takes of a dense table as its budget grows: by bytes, those candidates that none
/// beats in bytes and error.
pub(crate) fn curve(name: &str, rows: &dyn Rows, memory: u64) -> Result<Vec<Candidate>> {
    let options = Options { frequencies: None, memory, most_bytes: u64::MAX };
    let list = candidate::of_dense(name, &TableSpec::default(), rows, &options)?.list;
    let item = |c: &Candidate| Item { bytes: c.bytes, error: c.error, nanoseconds: c.nanoseconds };
    let items: Vec<Item> = list.iter().map(item).collect();
    Ok(choose::front(&items).into_iter().map(|at| list[at].clone()).collect())
}

/// The tables to plan, and the model around them, as far as specs name them.
fn what_to_plan(checkpoint: &Checkpoint, args: &Args) -> Result<Spec> {
    let path = checkpoint.path().display();
    let Spec { model, tables } = match &args.spec {
        Some(path) => Spec::read(path)?,
        None => {
            let survey = Survey::of(checkpoint);
            let model = Model::around(&survey);
            let Survey { tables, refused, .. } = survey;
            if let Some((_, reason)) = refused.first() {
                bail!("{path}: {reason}; name the tables to plan in a --spec");
            }
            ensure!(
                !tables.is_empty(),
                "{path}: nothing looks like an embedding table; name one in a --spec"
            );
            let tables = match tables.as_slice() {
                [only] => vec![convert::named_after_file(checkpoint, only)],
                _ => tables,
            };
            Spec { model, tables }
        }
    };
    ensure!(
        model.is_some() || args.layers.is_none(),
        "{path}: --layers: there is no model around the tables"
    );
    let model = model.map(|model| ModelSpec { dtype: args.layers.or(model.dtype), ..model });
    let operation = args.qr_operation.as_deref();
    let tables = tables
        .into_iter()
        .map(|table| with_qr_operation(checkpoint, table, operation))
        .collect();
    Ok(Spec { model, tables })
}

/// What is taken: a candidate for each table, and the layers in one type.
struct Chosen<'t> {
    tables: Vec<&'t Candidate>,
    layers: Option<&'t Stored>,
}

fn choose<'t>(
    checkpoint: &Checkpoint,
    tables: &'t [Candidates],
    layers: Option<&'t Layers>,
    budget: Option<u64>,
    args: &Args,
) -> Result<Chosen<'t>> {
    let path = checkpoint.path().display();
    let mut allowed: Vec<Vec<&Candidate>> = Vec::new();
    for table in tables {
        let within = |candidate: &&Candidate| {
            args.max_error.is_none_or(|most| candidate.error <= most)
                && args.max_nanoseconds.is_none_or(|most| candidate.nanoseconds <= most)
        };
        let list: Vec<&Candidate> = table.list.iter().filter(within).collect();
        let name = &table.name;
        ensure!(
            !list.is_empty(),
            "{path}: table {name:?}: nothing keeps --max-error and --max-nanoseconds"
        );
        allowed.push(list);
    }
    let within = |stored: &&Stored| args.max_error.is_none_or(|most| stored.error <= most);
    let stored: Vec<&Stored> =
        layers.iter().flat_map(|layers| &layers.list).filter(within).collect();
    ensure!(layers.is_none() || !stored.is_empty(), "{path}: its layers do not keep --max-error");
    // Without a budget, bytes are all that is left to save.
    let squared =
        |error: f64, energy: f64| if budget.is_some() { error.powi(2) * energy } else { 0.0 };
    let item = |table: &Candidates, candidate: &Candidate| Item {
        bytes: candidate.bytes,
        error: squared(candidate.error, table.energy),
        nanoseconds: candidate.nanoseconds,
    };
    let of_table = |(table, list): (&Candidates, &Vec<&Candidate>)| {
        list.iter().map(|c| item(table, c)).collect()
    };
    let of_layers = |layers: &Layers| {
        let item = |stored: &&Stored| Item {
            bytes: stored.bytes,
            error: squared(stored.error, layers.energy),
            nanoseconds: 0.0,
        };
        stored.iter().map(item).collect()
    };
    let items: Vec<Vec<Item>> =
        tables.iter().zip(&allowed).map(of_table).chain(layers.map(of_layers)).collect();
    let head = candidate::head_bytes()?;
    let budget = budget.unwrap_or(u64::MAX);
    // A blob is a whole number of lines.
    let capacity = (budget - budget % ALIGNMENT as u64).checked_sub(head);
    let taken = capacity.and_then(|capacity| choose::choose(&items, capacity));
    let taken = taken.with_context(|| {
        let least = |items: &[Vec<Item>]| {
            items
                .iter()
                .filter_map(|items| items.iter().map(|item| item.bytes).min())
                .sum::<u64>()
                + head
        };
        let of = match layers {
            Some(_) => format!("its tables and layers take {} bytes at least", least(&items)),
            None => format!("its tables take {} bytes at least", least(&items)),
        };
        format!("{path}: {} are too few: {of}", words::size(budget as f64))
    })?;
    Ok(Chosen {
        layers: stored.get(taken.get(tables.len()).copied().unwrap_or(0)).copied(),
        tables: allowed.iter().zip(taken).map(|(list, taken)| list[taken]).collect(),
    })
}

/// What comes of it, for people and programs.
#[derive(Serialize)]
struct Plan {
    #[serde(skip_serializing_if = "Option::is_none")]
    budget: Option<u64>,
    /// Of the whole blob.
    bytes: u64,
    f32_bytes: u64,
    /// Of all tables and layers together.
    error: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    layers: Option<LayersPlan>,
    tables: Vec<TablePlan>,
}

#[derive(Serialize)]
struct LayersPlan {
    count: usize,
    f32_bytes: u64,
    dtype: &'static str,
    bytes: u64,
    error: f64,
    #[serde(skip)]
    outcome: String,
}

#[derive(Serialize)]
struct TablePlan {
    name: String,
    num_embeddings: u64,
    embedding_dim: usize,
    f32_bytes: u64,
    #[serde(flatten)]
    chosen: Point,
    rows_measured: usize,
    #[serde(skip)]
    outcome: String,
    why: String,
    /// The candidates that none beats in bytes and error, by bytes.
    candidates: Vec<Point>,
}

/// A candidate in numbers.
#[derive(Serialize)]
struct Point {
    representation: &'static str,
    dtype: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    ranks: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    row_factors: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    column_factors: Option<Vec<u32>>,
    bytes: u64,
    error: f64,
    nanoseconds: f64,
}

impl Point {
    fn new(candidate: &Candidate) -> Self {
        let (representation, shape, ranks) = match &candidate.representation {
            Representation::Dense => ("dense", None, None),
            Representation::LowRank { rank } => ("low-rank", None, Some(vec![*rank as u32])),
            Representation::Tt { shape, .. } => {
                ("tt", Some(shape), Some(shape.inner_ranks().to_vec()))
            }
            Representation::AsTrained { what } => (*what, None, None),
        };
        Self {
            representation,
            dtype: candidate.dtype.name(),
            ranks,
            row_factors: shape.map(|shape| shape.row_factors().to_vec()),
            column_factors: shape.map(|shape| shape.column_factors().to_vec()),
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
                outcome: words::outcome(table, chosen),
                why: words::reason(table, chosen),
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
            layers: layers.map(|(layers, stored)| LayersPlan {
                count: layers.count,
                f32_bytes: layers.f32_bytes,
                dtype: stored.dtype.name(),
                bytes: stored.bytes,
                error: stored.error,
                outcome: words::layers(layers, stored),
            }),
            tables: tables.iter().zip(&chosen.tables).map(table).collect(),
        })
    }
}

/// The spec, and above each part why it is so.
fn spec(checkpoint: &Path, plan: &Plan, chosen: &Chosen<'_>) -> Result<String> {
    let name = checkpoint.file_name().unwrap_or_default().to_string_lossy();
    let mut text = format!("# {}: {}\n", name.escape_debug(), summary(plan));
    let write = |spec: &Spec| toml::to_string(spec).context("cannot write the spec");
    if let Some((layers, stored)) = plan.layers.as_ref().zip(chosen.layers) {
        text += &format!("\n# {}\n", layers.outcome);
        text += &write(&Spec { model: Some(stored.spec.clone()), tables: Vec::new() })?;
    }
    for (table, candidate) in plan.tables.iter().zip(&chosen.tables) {
        text += &format!("\n# {}\n", table.outcome);
        if !table.why.is_empty() {
            text += &format!("# {}\n", table.why);
        }
        text += &write(&Spec { model: None, tables: vec![candidate.spec.clone()] })?;
    }
    Ok(text)
}

fn summary(plan: &Plan) -> String {
    let budget = plan.budget.map(|budget| format!(" of {budget}")).unwrap_or_default();
    let times = plan.f32_bytes as f64 / plan.bytes as f64;
    format!("{} bytes{budget}, {times:.1}x less than f32, {}", plan.bytes, words::error(plan.error))
}

fn print(out: &mut dyn Write, plan: &Plan, path: &Path) -> io::Result<()> {
    if let Some(layers) = &plan.layers {
        writeln!(out, "{}", layers.outcome)?;
    }
    for table in &plan.tables {
        writeln!(out, "{}", table.outcome)?;
        if !table.why.is_empty() {
            writeln!(out, "  {}", table.why)?;
        }
    }
    writeln!(out, "{}: {}", path.display(), summary(plan))
}
