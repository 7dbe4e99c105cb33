//! `ttrec convert`: a checkpoint's tables, or its whole model, into a blob, streamed.

use crate::{
    outcome::Outcome,
    output::{self, WriteError},
    progress::Terminal,
    resume::ResumeDirectory,
};
use anyhow::Result;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use std::path::{Path, PathBuf};
use ttrec::repr::Combine;
use ttrec_convert::{
    Checkpoint, Options, ResumeCache, Spec, convert, detect, memory_size, with_qr_operation,
};

/// Turn a trained checkpoint into a blob.
///
/// Which tensors become which tables is said by a spec, a TOML file with one `[[table]]` each.
/// Without one, the tables that the checkpoint seems to hold are listed, as a spec to begin with;
/// if there is just one, or they are those of a DLRM, and nothing is missing, they are converted: a
/// DLRM whole, with its perceptrons, so that `ttrec score` and `ttrec rank` can run it.
#[derive(clap::Args)]
#[command(after_help = "\
A spec:
  [[table]]
  name = \"item\"                 # in the blob
  prefix = \"emb.item.\"          # what stands before the dialect's own keys (default: nothing)
  dialect = \"fbtt\"              # or another (default: as the keys show)
  num_embeddings = 1000         # FBTT does not store it
  column_factors = [4, 4, 4]    # nor these; `ranks` (the inner ones) would do as well
  dtype = \"f16\"                 # f32, f16, bf16, i8; i4 if dense (default: as in the checkpoint)

  [[table]]
  name = \"word\"
  tensor = \"embeddings.word_embeddings.weight\"   # a dense tensor, by its full name

Dialects:
  fbtt       FBTT; `table = 1` picks the second of several tables in one set of cores
  el-rec     EL-Rec
  hetu       Hetu; never recognised by itself, as its keys are EL-Rec's
  tltorch    tensorly-torch (blocktt)
  t3nsor     t3nsor
  dlrm       facebookresearch/dlrm: plain, quotient-remainder (`qr_operation` = \"mult\", \"add\" \
                        or \"concat\") and mixed
             dimension
  torchrec   TorchRec
  dense      one tensor of rows x columns

A DLRM (its own names, or TorchRec's) becomes one with a [model] before the tables, which are then \
                        its own, in its order:
  [model]
  dtype = \"f16\"                 # f32, f16, bf16, i8: of the layers' weights (default: f32)
  prefix = \"model.\"             # what stands before bot_l.0.weight or dense_arch. (default: \
                        nothing)

A dense table becomes a tensor train with `representation = \"tt\"` and `rank`, `ranks` or \
                        `tolerance` (relative error), and,
if wanted, `row_factors`, `column_factors`, `sweeps` (refinements); or short rows and a projection \
                        with
`representation = \"low-rank\"` and `rank` or `tolerance`. The rows of the former may be sorted \
                        first, so that those that share
slices are alike, for four bytes an index: `row_order = \"similarity\"`, or \"frequency\" with \
                        --frequencies.

A hashed table, whose index i stands for row i modulo its rows, has `index_map = \"modulo\"`, its \
                        indices as `num_embeddings`,
and its rows, if the checkpoint does not store them, as `num_rows`.

No tensor train stores `num_embeddings`; tltorch and t3nsor store all other facts.")]
pub(crate) struct Args {
    /// .safetensors, or the .safetensors.index.json of several, torch .pt (zip or legacy), .npy or
    /// .npz; nothing in it is executed
    checkpoint: PathBuf,
    /// Where the blob goes; it appears whole or not at all
    #[arg(short, long, value_name = "BLOB")]
    output: PathBuf,
    /// Which tensors become which tables
    #[arg(long, value_name = "SPEC.toml")]
    spec: Option<PathBuf>,
    /// What makes one row of two in DLRM's quotient-remainder tables, where the spec does not say
    #[arg(long, value_name = "OPERATION", value_parser = operation())]
    qr_operation: Option<Combine>,
    /// How often each row is asked for, as `ttrec cache` reads it: a factorisation then counts a
    /// row's error by it
    #[arg(long, value_name = "FILE.npz")]
    frequencies: Option<PathBuf>,
    /// How much a factorisation may hold in memory: 2GiB, 500MB
    #[arg(long, value_name = "SIZE", default_value = "512MiB", value_parser = memory_size)]
    memory: u64,
    /// Keep each finished factorisation in DIR until the blob is written: a conversion that was
    /// interrupted goes on from there
    #[arg(long, value_name = "DIR")]
    resume: Option<PathBuf>,
}

/// The operations of quotient-remainder tables, by name.
pub(crate) fn operation() -> impl TypedValueParser<Value = Combine> {
    PossibleValuesParser::new(["mult", "add", "concat"])
        .try_map(|name| Combine::from_name(&name).ok_or("expected mult, add or concat"))
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    let checkpoint = Checkpoint::open(&args.checkpoint)?;
    let inputs: Vec<&Path> = checkpoint
        .files()
        .chain(args.spec.as_deref())
        .chain(args.frequencies.as_deref())
        .collect();
    output::refuse_inputs(&args.output, &inputs)?;
    let (spec, origin) = match &args.spec {
        Some(path) => (Spec::open(path)?, path.display().to_string()),
        None => (
            detect(&checkpoint, args.qr_operation)?,
            "what the checkpoint says of itself".to_owned(),
        ),
    };
    let spec = with_qr_operation(&checkpoint, spec, args.qr_operation);
    let resume = args.resume.as_deref().map(ResumeDirectory::open).transpose()?;
    let options = Options {
        memory: args.memory,
        frequencies: args.frequencies.as_deref(),
        resume: resume.as_ref().map(|resume| resume as &dyn ResumeCache),
    };
    let total_len = write(&checkpoint, &spec, &options, &args.output)
        .map_err(|error| name_input(error, &origin))?;
    let tables = spec.tables.len();
    let (s, model) = (
        if tables == 1 { "" } else { "s" },
        if spec.model.is_some() { " and a model" } else { "" },
    );
    output::print(|out| {
        writeln!(out, "{}: {tables} table{s}{model}, {total_len} bytes", args.output.display())
    })?;
    Ok(Outcome::Done)
}

/// Converts the tables of `spec` to a blob at `path`; returns its length in bytes.
pub(crate) fn write(
    checkpoint: &Checkpoint,
    spec: &Spec,
    options: &Options<'_>,
    path: &Path,
) -> Result<u64> {
    let progress = Terminal::default();
    let conversion = convert(checkpoint, spec, options, &progress).map_err(output::resumed)?;
    output::write(path, |file| conversion.write(file))?;
    conversion.forget();
    Ok(conversion.total_len())
}

/// Says where the facts came from, but leaves errors of writing as they are.
fn name_input(error: anyhow::Error, origin: &str) -> anyhow::Error {
    if error.is::<WriteError>() {
        error
    } else {
        error.context(format!("with {origin}"))
    }
}
