//! `ttrec plan`: which representation, shape and rank each table of a checkpoint takes in a budget,
//! as a spec for `convert`.

use crate::{
    convert::operation,
    outcome::Outcome,
    output::{self, Output},
    progress::Terminal,
};
use anyhow::{Result, ensure};
use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};
use ttrec::{dtype::Dtype, repr::Combine};
use ttrec_convert::{
    Budget, Checkpoint, Spec, memory_size,
    plan::{self, Bounds, Plan},
    spec::ModelSpec,
    with_qr_operation,
};

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
    #[arg(long, value_name = "OPERATION", value_parser = operation())]
    qr_operation: Option<Combine>,
    /// The stored type of a model's layers: f32, f16, bf16, i8 [default: f32 or f16, whichever
    /// leaves less error in all]
    #[arg(long, value_name = "DTYPE", value_parser = layer_dtype)]
    layers: Option<Dtype>,
    /// How much to hold in memory
    #[arg(long, value_name = "SIZE", default_value = "512MiB", value_parser = memory_size)]
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
    let Spec { model, tables } = match &args.spec {
        Some(path) => Spec::open(path)?,
        None => plan::detect(&checkpoint)?,
    };
    ensure!(
        model.is_some() || args.layers.is_none(),
        "{}: --layers: there is no model around the tables",
        checkpoint.path().display()
    );
    let model = model.map(|model| ModelSpec { dtype: args.layers.or(model.dtype), ..model });
    let spec = with_qr_operation(&checkpoint, Spec { model, tables }, args.qr_operation);
    let bounds = Bounds {
        budget: args.budget,
        max_error: args.max_error,
        max_nanoseconds: args.max_nanoseconds,
        frequencies: args.frequencies.as_deref(),
        memory: args.memory,
    };
    let plan = plan::plan(&checkpoint, &spec, &bounds, &Terminal::default())?;

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
    writeln!(out, "{}: {}", path.display(), plan.summary())
}
