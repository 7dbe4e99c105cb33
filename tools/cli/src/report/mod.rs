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
use anyhow::{Result, bail};
use std::path::{Path, PathBuf};
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

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    let file = BlobFile::open(&args.blob)?;
    let blob = file.blob()?;
    let checkpoint = Checkpoint::open(&args.against)?;
    let given = [Some(args.blob.as_path()), args.spec.as_deref(), args.frequencies.as_deref()];
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
    let page =
        page::page(&args.blob, &args.against, blob.as_bytes().len() as u64, &tables, &layers);

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
