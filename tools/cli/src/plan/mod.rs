//! `ttrec plan`: chooses a representation, a shape and ranks for each table of a checkpoint within
//! a budget, and writes the spec for `convert`.

mod judge;

use crate::{
    convert::operation,
    outcome::Outcome,
    output::{self, Output},
    progress::Terminal,
    resume::ResumeMemory,
};
use anyhow::{Result, ensure};
use clap::ArgGroup;
use judge::JudgeOptions;
pub(crate) use judge::{blob_in_memory, scored};
use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};
use ttrec::{dtype::Dtype, repr::Combine};
use ttrec_convert::{
    Budget, Checkpoint, Options, Spec, memory_size,
    plan::{self, Bounds, Judge, Plan},
    spec::ModelSpec,
    with_qr_operation,
};

/// Choose how to store each table of a checkpoint within a budget, and write the spec for
/// `convert`.
///
/// Dense tables are tried as rows of each type, as short rows with a projection (low rank), and as
/// tensor trains of several shapes and ranks. A table that was trained as a tensor train,
/// projected, hashed or quotient-remainder table keeps its representation; only its type changes.
/// The layers of a model are f32 or f16. `plan` takes the choice with the smallest squared error
/// that fits the budget.
///
/// With --judge, it measures the whole model on examples, and takes the smallest choice whose AUC,
/// log-loss or recall is hardly worse than with everything stored as f32.
#[derive(clap::Args)]
#[command(after_help = "\
Errors are relative, by Frobenius norm, as `ttrec verify` prints them. Errors of very large tables
are measured on a sample of rows, and the plan says so. With --frequencies, rows weigh as often as
they occur; pass the same file to `convert`.

Dense tables are never made hashed or quotient-remainder tables: those have to be trained. Trained
projections and tensor trains keep their shape; only the type of their numbers changes.")]
#[command(group = ArgGroup::new("bound")
    .required(true).multiple(true)
    .args(["budget", "max_error", "max_loss", "max_auc_loss", "max_logloss_increase"]))]
pub(crate) struct Args {
    /// A .safetensors file, a .safetensors.index.json with its shards, a torch .pt (zip or legacy),
    /// a directory of torch.distributed.checkpoint, .npy, .npz, .onnx, word vectors (word2vec,
    /// GloVe, fastText) or a FAISS index of codes
    checkpoint: PathBuf,
    /// The largest size of the blob: 8MiB, 500KB, 1234 (bytes), or 12% (of its tables and layers as
    /// f32)
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true)]
    budget: Option<Budget>,
    /// The largest relative error, 0 to 1, of each table and of the layers together. Without
    /// --budget, `plan` makes the smallest blob within this error
    #[arg(long, value_name = "E", value_parser = share, allow_negative_numbers = true)]
    max_error: Option<f64>,
    /// The longest estimated time of a single lookup, in any table
    #[arg(long, value_name = "NS", value_parser = positive, allow_negative_numbers = true)]
    max_nanoseconds: Option<f64>,
    /// How often each row occurs, in the format of `ttrec cache`: weighs the errors of rows
    #[arg(long, value_name = "FILE.npz")]
    frequencies: Option<PathBuf>,
    /// A spec of the tables and the model [default: every tensor that looks like an embedding
    /// table, and the layers of a DLRM]
    #[arg(long, value_name = "SPEC.toml")]
    spec: Option<PathBuf>,
    /// How DLRM's quotient and remainder rows are combined
    #[arg(long, value_name = "OPERATION", value_parser = operation())]
    qr_operation: Option<Combine>,
    /// The stored type of a model's layers: f32, f16, bf16 or i8 [default: f32 or f16, the one that
    /// gives the smaller total error]
    #[arg(long, value_name = "DTYPE", value_parser = layer_dtype)]
    layers: Option<Dtype>,
    /// Memory limit, such as 2GiB or 500MB
    #[arg(long, value_name = "SIZE", default_value = "512MiB", value_parser = memory_size)]
    memory: u64,
    /// The spec to write
    #[arg(short, long, value_name = "SPEC.toml")]
    output: PathBuf,
    /// Print JSON, with every candidate that no other one beats in both bytes and error
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    judge: JudgeOptions,
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
    let inputs: Vec<&Path> = checkpoint.files().chain(more).chain(args.judge.inputs()).collect();
    output::refuse_inputs(&args.output, &inputs)?;
    let Spec { model, tables } = match &args.spec {
        Some(path) => Spec::open(path)?,
        None => plan::detect(&checkpoint)?,
    };
    ensure!(
        model.is_some() || args.layers.is_none(),
        "{}: --layers: the checkpoint has no model",
        checkpoint.path().display()
    );
    let model = model.map(|model| ModelSpec { dtype: args.layers.or(model.dtype), ..model });
    let spec = with_qr_operation(&checkpoint, Spec { model, tables }, args.qr_operation);
    let examples = args.judge.open(&args.checkpoint, spec.model.is_some())?;
    // Most choices of a judge differ in one table: the others are factorised once.
    let for_kept = args.memory / 4;
    let kept = ResumeMemory::new(for_kept);
    let options = Options {
        memory: args.memory - for_kept,
        frequencies: args.frequencies.as_deref(),
        resume: Some(&kept),
    };
    let loss = |spec: &Spec| match &examples {
        Some(examples) => Ok(examples.loss(&checkpoint, spec, &options)?),
        None => Ok(0.0),
    };
    let bounds = Bounds {
        budget: args.budget,
        max_error: args.max_error,
        max_nanoseconds: args.max_nanoseconds,
        frequencies: args.frequencies.as_deref(),
        judge: examples.as_ref().map(|examples| Judge {
            metric: examples.metric.name(),
            max_increase: examples.max_increase,
            loss: &loss,
        }),
        memory: args.memory,
    };
    let plan = plan::plan(&checkpoint, &spec, &bounds, &Terminal::default())?;
    if let Some(warning) = plan.warning() {
        eprintln!("ttrec: warning: {warning}");
    }

    let title = args.checkpoint.file_name().unwrap_or_default().to_string_lossy();
    let text = plan.to_toml(&title)?;
    let mut output = Output::create(&args.output)?;
    output.write(|file| file.write_all(text.as_bytes()))?;
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
    if let Some(judgement) = &plan.judgement {
        writeln!(out, "{judgement}")?;
    }
    writeln!(out, "{}: {}", path.display(), plan.summary())
}
