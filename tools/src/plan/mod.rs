//! `ttrec plan`: which representation, shape and rank each table of a checkpoint takes in a budget, as a spec for `convert`.

mod as_trained;
mod candidate;
mod choose;
mod cost;
mod low_rank;
mod sample;
mod tensor_train;
mod words;

use crate::{
    Outcome,
    budget::Budget,
    checkpoint::Checkpoint,
    convert,
    dialect::{Source, Survey, with_qr_operation},
    frequencies::Frequencies,
    output::{self, Output},
    spec::{Spec, TableSpec},
};
use anyhow::{Context, Result, bail, ensure};
pub(crate) use candidate::{Candidate, Candidates, Options, Representation, candidates, f32_bytes};
use choose::Item;
use serde::Serialize;
use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};
use ttrec::blob::{ALIGNMENT, Layout};

/// Choose how to store each table of a checkpoint, by error, bytes and time, and write the spec that `convert` takes.
///
/// Every table is tried as rows of each stored type, as short rows with a projection (low rank), and as tensor trains of several
/// shapes and ranks; one that was trained small stays what it is, in each stored type. Of all choices within the budget the
/// one with the least squared error is taken.
#[derive(clap::Args)]
#[command(after_help = "\
Errors are relative, by Frobenius norm, as `ttrec verify` finds them. Those of very large tables are measured on a sample of
rows, and the plan says so. With --frequencies a row counts as often as it is asked for; `convert` needs the same file then.

Hashed and quotient-remainder tables have to be trained: they are not made of others. Neither is a projection that was
trained, or a tensor train, changed but for the type of its numbers.")]
#[command(group = clap::ArgGroup::new("bound").required(true).multiple(true).args(["budget", "max_error"]))]
pub(crate) struct Args {
    /// .safetensors, or the .safetensors.index.json of several, torch .pt (zip or legacy), .npy or .npz
    checkpoint: PathBuf,
    /// The most that the blob may take: 8MiB, 500KB, 1234, or 12% (of what its tables take as f32)
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true)]
    budget: Option<Budget>,
    /// The most error that any table may have, 0 to 1: without --budget, the smallest blob within it
    #[arg(long, value_name = "E", value_parser = share, allow_negative_numbers = true)]
    max_error: Option<f64>,
    /// The longest that a lookup in any table may take, alone, as estimated
    #[arg(long, value_name = "NS", value_parser = positive, allow_negative_numbers = true)]
    max_nanoseconds: Option<f64>,
    /// How often each row is asked for, as `ttrec cache` takes it
    #[arg(long, value_name = "FILE.npz")]
    frequencies: Option<PathBuf>,
    /// The tables, and what the checkpoint does not say of them [default: all that look like embedding tables]
    #[arg(long, value_name = "SPEC.toml")]
    spec: Option<PathBuf>,
    /// What makes one row of two in DLRM's quotient-remainder tables
    #[arg(long, value_name = "OPERATION", value_parser = ["mult", "add", "concat"])]
    qr_operation: Option<String>,
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
    if (0.0..=1.0).contains(&number) { Ok(number) } else { Err("expected a number from 0 to 1".to_owned()) }
}

fn positive(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "expected a number above 0".to_owned())?;
    if number > 0.0 && number.is_finite() { Ok(number) } else { Err("expected a number above 0".to_owned()) }
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    let checkpoint = Checkpoint::open(&args.checkpoint)?;
    let more = [&args.spec, &args.frequencies].into_iter().filter_map(|path| path.as_deref());
    let inputs: Vec<&Path> = checkpoint.files().chain(more).collect();
    output::refuse_inputs(&args.output, &inputs)?;
    let found = tables(&checkpoint, args)?;
    let sources = found.iter().map(|found| Source::open(&checkpoint, found)).collect::<Result<Vec<_>>>();
    let sources = sources.context("tables, and what the checkpoint does not say of them, can be named in a --spec")?;
    let f32_bytes = sources.iter().map(|source| f32_bytes(source.num_embeddings(), source.weights.embedding_dim()));
    let budget = args.budget.map(|budget| budget.bytes(f32_bytes.sum()));
    let names = sources.iter().map(|source| source.name.clone()).collect();
    let frequencies = args.frequencies.as_deref().map(|path| Frequencies::open(path, names)).transpose()?;

    // Tables are looked at one after another, so that no more than the candidates of all are held.
    let mut tables = Vec::new();
    for (found, source) in found.iter().zip(&sources) {
        let counts = frequencies.as_ref().map(|frequencies| frequencies.of(&source.name)).transpose()?.flatten();
        let asked = counts.map(|counts| counts.read(source.num_embeddings())).transpose()?;
        let options = Options {
            frequencies: asked.as_deref().filter(|asked| !asked.is_empty()),
            memory: args.memory,
            most_bytes: budget.unwrap_or(u64::MAX),
        };
        tables.push(candidates(&checkpoint, found, &options)?);
    }
    let chosen = choose(&checkpoint, &tables, budget, args)?;
    let plan = Plan::new(&tables, &chosen, budget)?;

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

/// The tables to plan, as far as specs name them.
fn tables(checkpoint: &Checkpoint, args: &Args) -> Result<Vec<TableSpec>> {
    let path = checkpoint.path().display();
    let found = match &args.spec {
        Some(path) => Spec::read(path)?.tables,
        None => {
            let Survey { tables, refused, .. } = Survey::of(checkpoint);
            if let Some((_, reason)) = refused.first() {
                bail!("{path}: {reason}; name the tables to plan in a --spec");
            }
            ensure!(!tables.is_empty(), "{path}: nothing looks like an embedding table; name one in a --spec");
            match tables.as_slice() {
                [only] => vec![convert::named_after_file(checkpoint, only)],
                _ => tables,
            }
        }
    };
    let operation = args.qr_operation.as_deref();
    Ok(found.into_iter().map(|table| with_qr_operation(checkpoint, table, operation)).collect())
}

/// A candidate for each table.
fn choose<'t>(
    checkpoint: &Checkpoint,
    tables: &'t [Candidates],
    budget: Option<u64>,
    args: &Args,
) -> Result<Vec<&'t Candidate>> {
    let mut allowed: Vec<Vec<&Candidate>> = Vec::new();
    for table in tables {
        let within = |candidate: &&Candidate| {
            args.max_error.is_none_or(|most| candidate.error <= most)
                && args.max_nanoseconds.is_none_or(|most| candidate.nanoseconds <= most)
        };
        let list: Vec<&Candidate> = table.list.iter().filter(within).collect();
        let place = || format!("{}: table {:?}", checkpoint.path().display(), table.name);
        ensure!(!list.is_empty(), "{}: nothing keeps --max-error and --max-nanoseconds", place());
        allowed.push(list);
    }
    // Without a budget, bytes are all that is left to save.
    let item = |(table, candidate): (&Candidates, &Candidate)| Item {
        bytes: candidate.bytes,
        error: if budget.is_some() { candidate.error.powi(2) * table.energy } else { 0.0 },
        nanoseconds: candidate.nanoseconds,
    };
    let items: Vec<Vec<Item>> = tables
        .iter()
        .zip(&allowed)
        .map(|(table, list)| list.iter().map(|candidate| item((table, candidate))).collect())
        .collect();
    let head = candidate::head_bytes()?;
    let least = items.iter().map(|items| items.iter().map(|item| item.bytes).min().unwrap_or(0)).sum::<u64>() + head;
    let budget = budget.unwrap_or(u64::MAX);
    // A blob is a whole number of lines.
    let capacity = (budget - budget % ALIGNMENT as u64).checked_sub(head);
    let taken = capacity.and_then(|capacity| choose::choose(&items, capacity));
    let taken = taken.with_context(|| {
        let size = words::size(budget as f64);
        format!("{}: {size} are too few: its tables take {least} bytes at least", checkpoint.path().display())
    })?;
    Ok(allowed.iter().zip(taken).map(|(list, taken)| list[taken]).collect())
}

/// What comes of it, for people and programs.
#[derive(Serialize)]
struct Plan {
    #[serde(skip_serializing_if = "Option::is_none")]
    budget: Option<u64>,
    /// Of the whole blob.
    bytes: u64,
    f32_bytes: u64,
    /// Of all tables together.
    error: f64,
    tables: Vec<TablePlan>,
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
            Representation::Tt { shape, .. } => ("tt", Some(shape), Some(shape.inner_ranks().to_vec())),
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
    fn new(tables: &[Candidates], chosen: &[&Candidate], budget: Option<u64>) -> Result<Self> {
        let squared: f64 = tables.iter().zip(chosen).map(|(table, chosen)| chosen.error.powi(2) * table.energy).sum();
        let energy: f64 = tables.iter().map(|table| table.energy).sum();
        let layouts: Vec<_> = chosen.iter().map(|candidate| candidate.layout.clone()).collect();
        let table = |(table, chosen): (&Candidates, &&Candidate)| {
            let item = |c: &Candidate| Item { bytes: c.bytes, error: c.error, nanoseconds: c.nanoseconds };
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
                candidates: choose::front(&items).into_iter().map(|at| Point::new(&table.list[at])).collect(),
            }
        };
        Ok(Self {
            budget,
            bytes: Layout::new(&layouts)?.total_len(),
            f32_bytes: tables.iter().map(Candidates::f32_bytes).sum::<f64>() as u64,
            error: if energy > 0.0 { (squared / energy).sqrt() } else { squared.sqrt() },
            tables: tables.iter().zip(chosen).map(table).collect(),
        })
    }
}

/// The spec, and above each table why it is so.
fn spec(checkpoint: &Path, plan: &Plan, chosen: &[&Candidate]) -> Result<String> {
    let name = checkpoint.file_name().unwrap_or_default().to_string_lossy();
    let mut text = format!("# {}: {}\n", name.escape_debug(), summary(plan));
    for (table, candidate) in plan.tables.iter().zip(chosen) {
        text += &format!("\n# {}\n", table.outcome);
        if !table.why.is_empty() {
            text += &format!("# {}\n", table.why);
        }
        text += &toml::to_string(&Spec { model: None, tables: vec![candidate.spec.clone()] })
            .context("cannot write the spec")?;
    }
    Ok(text)
}

fn summary(plan: &Plan) -> String {
    let budget = plan.budget.map(|budget| format!(" of {budget}")).unwrap_or_default();
    let times = plan.f32_bytes as f64 / plan.bytes as f64;
    format!("{} bytes{budget}, {times:.1}x less than f32, {}", plan.bytes, words::error(plan.error))
}

fn print(out: &mut dyn Write, plan: &Plan, path: &Path) -> io::Result<()> {
    for table in &plan.tables {
        writeln!(out, "{}", table.outcome)?;
        if !table.why.is_empty() {
            writeln!(out, "  {}", table.why)?;
        }
    }
    writeln!(out, "{}: {}", path.display(), summary(plan))
}
