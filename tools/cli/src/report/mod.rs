//! `ttrec report`: an HTML page about a conversion. For programs, `verify --json` and
//! `inspect --json` print the same facts.

mod explain;
mod numbers;
mod page;
pub(crate) mod plot;

use crate::{
    blob_file::{self, BlobFile},
    inspect::{self, TableSummary},
    outcome::Outcome,
    output::{self, Output},
    progress::Terminal,
};
use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use std::{
    fs,
    path::{Path, PathBuf},
};
use ttrec_convert::{
    Checkpoint, Frequencies, Source, Spec, StoredAs,
    compare::{self, Comparison, LayerComparison},
    plan::{self, Family},
};

/// Write an HTML page about a conversion: bytes, errors, and alternatives of the same size.
///
/// The page is one file that needs no network and no script. Every row and layer is compared with
/// the checkpoint, as `verify` does. Alternatives are measured on all rows, or on a sample of a
/// large table; the page says which.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A blob
    blob: PathBuf,
    /// The checkpoint that it was converted from
    #[arg(long, value_name = "CHECKPOINT")]
    against: PathBuf,
    /// The spec of the conversion; needed only if names and shapes are ambiguous
    #[arg(long, value_name = "SPEC.toml")]
    spec: Option<PathBuf>,
    /// How often each row occurs, in the format of `ttrec cache`: also shows the error weighted by
    /// frequency
    #[arg(long, value_name = "FILE.npz")]
    frequencies: Option<PathBuf>,
    /// What `ttrec plan --judge METRIC --json` printed for this blob: also draws what the whole
    /// model loses over its bytes
    #[arg(long, value_name = "PLAN.json")]
    plan: Option<PathBuf>,
    /// The page to write; it is replaced only when complete
    #[arg(short, long, value_name = "REPORT.html")]
    output: PathBuf,
}

/// The facts of a table on the page.
struct TableReport {
    summary: TableSummary,
    /// Bytes of the table in the checkpoint.
    before: u64,
    /// The representation in the checkpoint.
    trained_as: StoredAs,
    comparison: Comparison,
    /// The share of the squared norm that ranks 1, 2, ... keep.
    kept: Vec<f64>,
    families: Vec<Family>,
    /// The number of rows that alternatives were measured on, if not all.
    sampled: Option<u64>,
}

/// A plan whose choices were judged, as `plan --json` prints it.
#[derive(Deserialize)]
struct JudgedPlan {
    bytes: u64,
    judgement: Option<Judged>,
}

/// What whole models lose.
#[derive(Deserialize)]
struct Judged {
    metric: String,
    increase: f64,
    max_increase: Option<f64>,
    choices: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    bytes: u64,
    increase: f64,
}

impl Judged {
    /// The judgement of a plan for a blob of so many bytes.
    fn read(path: &Path, blob_bytes: u64) -> Result<Self> {
        let place = || path.display().to_string();
        let text = fs::read_to_string(path).with_context(place)?;
        let JudgedPlan { bytes, judgement } = serde_json::from_str(&text).with_context(place)?;
        ensure!(
            bytes == blob_bytes,
            "{}: a plan of {bytes} bytes: expected that of the blob, of {blob_bytes} bytes",
            place()
        );
        let judged = judgement.filter(|judged| judged.max_increase.is_some());
        judged.with_context(|| {
            format!("{}: has no judged choices: write it with `ttrec plan --judge`", place())
        })
    }
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    let file = BlobFile::open(&args.blob)?;
    let blob = file.blob()?;
    let checkpoint = Checkpoint::open(&args.against)?;
    let given =
        [Some(&args.blob), args.spec.as_ref(), args.frequencies.as_ref(), args.plan.as_ref()];
    let given = given.map(|path| path.map(PathBuf::as_path));
    let inputs: Vec<&Path> = checkpoint.files().chain(given.into_iter().flatten()).collect();
    output::refuse_inputs(&args.output, &inputs)?;
    if let Some(damage) = blob_file::damage(&blob) {
        bail!("{}: damaged: {damage}", args.blob.display());
    }
    let spec = args.spec.as_deref().map(Spec::open).transpose()?;
    let frequencies = args
        .frequencies
        .as_deref()
        .map(|path| Frequencies::open(path, blob.tables().map(|table| table.name())))
        .transpose()?;
    let tier = blob_file::tier()?;
    let bytes = blob.as_bytes().len() as u64;
    let judged = args.plan.as_deref().map(|path| Judged::read(path, bytes)).transpose()?;
    let progress = Terminal::default();

    let mut tables = Vec::new();
    for (table, summary) in blob.tables().zip(inspect::summarise(&blob).tables) {
        let table = table.with_tier(tier);
        let source = compare::origin(&checkpoint, spec.as_ref(), &table)?;
        let counts = frequencies
            .as_ref()
            .map(|frequencies| frequencies.rows(table.name(), table.num_embeddings()))
            .transpose()?
            .flatten();
        let comparison = compare::compare(&table, &source, counts.as_deref(), &progress)?;
        tables.push(study(summary, &source, comparison, &progress)?);
    }
    let layers = compare::layers(&checkpoint, spec.as_ref(), &blob)?;
    let page = page::page(&args.blob, &args.against, bytes, &tables, &layers, judged.as_ref());

    let mut output = Output::create(&args.output)?;
    output.write(|file| file.write_all(page.as_bytes()))?;
    output.commit()?;
    let (count, path) = (tables.len(), args.output.display());
    output::print(|out| {
        writeln!(out, "{path}: {count} table{}", if count == 1 { "" } else { "s" })
    })?;
    Ok(Outcome::Done)
}

/// The bytes of all layers in the checkpoint, and in the blob.
fn layer_bytes(layers: &[LayerComparison]) -> [u64; 2] {
    layers.iter().fold([0, 0], |[before, after], layer| {
        [before + layer.checkpoint_bytes, after + layer.bytes]
    })
}

fn study(
    summary: TableSummary,
    source: &Source<'_>,
    comparison: Comparison,
    progress: &Terminal,
) -> Result<TableReport> {
    let alternatives = plan::alternatives(source, progress)?;
    Ok(TableReport {
        before: source.checkpoint_bytes(),
        trained_as: source.stored_as(),
        comparison,
        kept: cumulative(&alternatives.energies),
        families: alternatives.families,
        sampled: alternatives.rows_measured,
        summary,
    })
}

fn cumulative(energies: &[f64]) -> Vec<f64> {
    let total: f64 = energies.iter().sum();
    let mut sum = 0.0;
    let share = |energy: &f64| {
        sum += energy;
        if total > 0.0 { (sum / total).min(1.0) } else { 1.0 }
    };
    energies.iter().map(share).collect()
}
