//! `ttrec convert`: a checkpoint's tables, or its whole model, into a blob, streamed.

use crate::{
    bags_file::BagOptions,
    blob_file::BlobFile,
    expected,
    outcome::Outcome,
    output::{self, WriteError},
    progress::Terminal,
    resume::ResumeDirectory,
    samples::Samples,
    score::score,
};
use anyhow::{Context, Result, ensure};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use std::path::{Path, PathBuf};
use ttrec::repr::Combine;
use ttrec_convert::{
    Checkpoint, Options, ResumeCache, Spec, convert, detect, memory_size, with_qr_operation,
};

/// Turn a trained checkpoint into a blob.
///
/// A spec, a TOML file with one `[[table]]` for each table, says which tensors to convert and how
/// to store them. Without a spec, `convert` lists the tables that it finds, as a spec to complete.
/// If it finds exactly one table, or a whole DLRM, and nothing is missing, it converts that. A DLRM
/// includes its MLPs, so that `ttrec score` and `ttrec rank` can run it.
#[derive(clap::Args)]
#[command(after_help = "\
A spec:
  [[table]]
  name = \"item\"                 # in the blob
  prefix = \"emb.item.\"          # the prefix of the dialect's own keys (default: empty)
  dialect = \"fbtt\"              # or another (default: detected from the keys)
  num_embeddings = 1000         # FBTT does not store it
  column_factors = [4, 4, 4]    # nor these; set `ranks` (the inner ranks) instead if you know them
  dtype = \"f16\"                 # f32, f16, bf16, i8, and i4 for dense rows (default: the
                                # checkpoint's type)

  [[table]]
  name = \"word\"
  tensor = \"embeddings.word_embeddings.weight\"   # a dense tensor, by its full name

Dialects:
  fbtt       FBTT; `table = 1` selects the second of several tables in one set of cores (also of
             tltorch)
  el-rec     EL-Rec
  hetu       Hetu; never detected, because its keys are those of EL-Rec
  tltorch    tensorly-torch (blocktt)
  t3nsor     t3nsor
  dlrm       facebookresearch/dlrm: plain, quotient-remainder (`qr_operation` = \"mult\", \"add\" or
             \"concat\") and mixed dimension
  torchrec   TorchRec
  dense      one tensor of rows x columns

To convert a DLRM (named as in DLRM or TorchRec) with its MLPs, put a [model] before the tables,
and list the tables in the model's order:
  [model]
  dtype = \"f16\"                 # of the layers' weights: f32, f16, bf16, i8 (default: f32)
  prefix = \"model.\"             # the prefix of bot_l.0.weight or dense_arch. (default: empty)

If its layers have other names, name them. Such a model needs no [[table]]:
  [model]
  bottom = \"bottom.\"            # bottom.0.weight, bottom.2.weight
  top = [\"mlp.\", \"out.\"]      # mlp.0.weight, out.weight
  tables = [\"user.weight\", \"item.weight\"]  # in the order in which the model takes them
  pooling = \"mean\"              # of the rows of a bag: mean, the default of
                                # torch.nn.EmbeddingBag, or sum; also a key of [[table]]
  interaction = \"dot\"           # or dot-itself, or cat: the vectors, one after another

A dense table becomes a tensor train with `representation = \"tt\"` and `rank`, `ranks` or
`tolerance` (relative error), and optionally `row_factors`, `column_factors` and `sweeps`
(refinements); or short rows with a projection, with `representation = \"low-rank\"` and `rank` or
`tolerance`; or codes, with `representation = \"codes\"`, `books` (the number of codes of a row),
and optionally `bits`, `rotation`, `rank` and `combine`. `row_order = \"similarity\"` (or
\"frequency\", with --frequencies) sorts the rows of a tensor train first, so that rows that share
slices are alike; it costs two to four bytes an index.

Quantised rows of FBGEMM and TorchRec are dense tables, too: `quantized = \"byte\"` or \"nibble\"
says which, where the rows do not. `padding_idx = 0` makes a row zeros.

A hashed table (index i is row i modulo the rows) has `index_map = \"modulo\"`, the number of
indices in `num_embeddings` and, if the checkpoint does not store it, the number of rows in
`num_rows`.

No tensor train stores `num_embeddings`; tltorch and t3nsor store all other facts. docs/spec.md
lists every key.")]
pub(crate) struct Args {
    /// A .safetensors file, a .safetensors.index.json with its shards, a torch .pt (zip or legacy),
    /// a directory of torch.distributed.checkpoint, .npy, .npz, .onnx, word vectors (word2vec,
    /// GloVe, fastText) or a FAISS index of codes. Nothing in it is executed
    checkpoint: PathBuf,
    /// The blob to write; it is replaced only when complete
    #[arg(short, long, value_name = "BLOB")]
    output: PathBuf,
    /// A spec of the tensors to convert
    #[arg(long, value_name = "SPEC.toml")]
    spec: Option<PathBuf>,
    /// How DLRM's quotient and remainder rows are combined, for tables without `qr_operation` in
    /// the spec
    #[arg(long, value_name = "OPERATION", value_parser = operation())]
    qr_operation: Option<Combine>,
    /// How often each row occurs, in the format of `ttrec cache`: weighs the errors of rows in a
    /// factorisation
    #[arg(long, value_name = "FILE.npz")]
    frequencies: Option<PathBuf>,
    /// Memory limit of a factorisation, such as 2GiB or 500MB
    #[arg(long, value_name = "SIZE", default_value = "512MiB", value_parser = memory_size)]
    memory: u64,
    /// Score SAMPLES.npz with the blob, and compare the scores with those that the training program
    /// computed: the formats of `ttrec score`. The exit code is 1 if a score differs by more than
    /// --max-error; the blob is written in any case
    #[arg(long, num_args = 2, value_names = ["SAMPLES.npz", "EXPECTED.npy"])]
    check: Option<Vec<PathBuf>>,
    /// The largest difference that --check accepts
    #[arg(long, value_name = "E", requires = "check", default_value_t = expected::MAX_ERROR)]
    max_error: f64,
    /// With --check, the expected values are the scores before the sigmoid
    #[arg(long, requires = "check")]
    logits: bool,
    /// Keep finished factorisations in DIR until the blob is written, and reuse them after an
    /// interruption
    #[arg(long, value_name = "DIR")]
    resume: Option<PathBuf>,
    #[command(flatten, next_help_heading = "Bags of --check")]
    options: BagOptions,
}

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
        .chain(args.check.iter().flatten().map(PathBuf::as_path))
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
    ensure!(
        args.check.is_none() || spec.model.is_some(),
        "--check scores a model, but {origin} has no [model]"
    );
    ensure!(
        args.check.is_some() || args.options.are_default(),
        "--padding-idx and --include-last-offset are for the samples of --check"
    );
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
    let Some([samples, expected]) = args.check.as_deref() else { return Ok(Outcome::Done) };
    let file = BlobFile::open(&args.output)?;
    let blob = file.blob()?;
    let ranker = file.ranker(&blob)?;
    let samples = Samples::read(samples, &ranker, &args.options)?;
    let scores =
        score(&ranker, &samples, args.logits).with_context(|| samples.path().to_owned())?;
    let scores = (&scores[..], samples.path());
    expected::compare(&ranker, scores, args.logits, expected, args.max_error)
}

/// Converts the tables of `spec` to a blob at `path`, and prints the errors of those that it
/// factorises; returns the blob's length in bytes.
pub(crate) fn write(
    checkpoint: &Checkpoint,
    spec: &Spec,
    options: &Options<'_>,
    path: &Path,
) -> Result<u64> {
    let progress = Terminal::default();
    let conversion = convert(checkpoint, spec, options, &progress).map_err(output::resumed)?;
    output::write_blob(&conversion, path)?;
    conversion.forget();
    let file = BlobFile::open(path)?;
    conversion.note_errors(&file.blob()?)?;
    Ok(conversion.total_len())
}

/// Names the spec in the errors of a conversion; errors of writing name the output already.
fn name_input(error: anyhow::Error, origin: &str) -> anyhow::Error {
    if error.is::<WriteError>() {
        error
    } else {
        error.context(format!("with {origin}"))
    }
}
