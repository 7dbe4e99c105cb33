//! `ttrec verify`: checks a blob's checksums, and compares it with its checkpoint.

use crate::{
    blob_file::{self, BlobFile},
    outcome::Outcome,
    output,
    progress::Terminal,
};
use anyhow::Result;
use serde::Serialize;
use std::{
    io::{self, Write},
    path::PathBuf,
};
use ttrec::{Table, dtype::Dtype, repr};
use ttrec_convert::{
    Checkpoint, Frequencies, Source, Spec,
    compare::{self, Comparison, LayerComparison},
};

/// Check a blob's checksums, and with --against every row.
///
/// With --against, each row is rebuilt from the blob and, in double precision, from the
/// checkpoint's numbers as f32. Prints the relative error of each table (Frobenius norm of the
/// difference over that of the table) and the row with the largest error (norm of its difference
/// over the root mean square norm of the table's rows).
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A blob
    blob: PathBuf,
    /// The checkpoint that it was converted from
    #[arg(long, value_name = "CHECKPOINT")]
    against: Option<PathBuf>,
    /// The spec of the conversion; needed only if names and shapes are ambiguous
    #[arg(long, value_name = "SPEC.toml", requires = "against")]
    spec: Option<PathBuf>,
    /// How often each row occurs, in the format of `ttrec cache`: also prints the error weighted by
    /// frequency
    #[arg(long, value_name = "FILE.npz", requires = "against")]
    frequencies: Option<PathBuf>,
    /// Exit with code 1 if a relative error exceeds E [default: by type, times the number of cores:
    /// f32 1e-6, f16 2^-11, bf16 2^-8, i8 2e-2, i4 2e-1; for factorised dense tables the spec's
    /// `tolerance`, if any]
    #[arg(long, value_name = "E", requires = "against")]
    max_error: Option<f64>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct VerifyReport {
    payload: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    damage: Option<String>,
    tables: Vec<VerifiedTable>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    layers: Vec<VerifiedLayer>,
}

#[derive(Serialize)]
struct VerifiedLayer {
    #[serde(flatten)]
    error: LayerComparison,
    max_error: f64,
}

#[derive(Serialize)]
struct VerifiedTable {
    name: String,
    dtype: &'static str,
    num_embeddings: u64,
    #[serde(flatten)]
    error: Comparison,
    /// `None` for a factorised table if neither the spec nor the command line sets a limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_error: Option<f64>,
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    let file = BlobFile::open(&args.blob)?;
    let blob = file.blob()?;
    let damage = blob_file::damage(&blob);
    let payload = if damage.is_some() { "damaged" } else { "ok" };
    let mut report = VerifyReport { payload, damage, tables: Vec::new(), layers: Vec::new() };

    if let (None, Some(path)) = (&report.damage, &args.against) {
        let checkpoint = Checkpoint::open(path)?;
        let spec = args.spec.as_deref().map(Spec::open).transpose()?;
        let frequencies = args
            .frequencies
            .as_deref()
            .map(|path| Frequencies::open(path, blob.tables().map(|table| table.name())))
            .transpose()?;
        let tier = blob_file::tier()?;
        let progress = Terminal::default();
        for table in blob.tables().map(|table| table.with_tier(tier)) {
            let source = compare::origin(&checkpoint, spec.as_ref(), &table)?;
            let counts = frequencies
                .as_ref()
                .map(|frequencies| frequencies.rows(table.name(), table.num_embeddings()))
                .transpose()?
                .flatten();
            let error = compare::compare(&table, &source, counts.as_deref(), &progress)?;
            report.tables.push(VerifiedTable {
                name: table.name().to_owned(),
                dtype: table.data().dtype().name(),
                num_embeddings: table.num_embeddings(),
                error,
                max_error: args.max_error.or_else(|| default_max_error(&source, &table)),
            });
        }
        let layer = |(error, layer): (LayerComparison, ttrec::blob::Layer<'_>)| {
            let max_error = args.max_error.unwrap_or(rounding(layer.weights.dtype()));
            VerifiedLayer { error, max_error }
        };
        report.layers = compare::layers(&checkpoint, spec.as_ref(), &blob)?
            .into_iter()
            .zip(blob.layers())
            .map(layer)
            .collect();
    }

    output::print(|mut out| {
        if args.json {
            serde_json::to_writer_pretty(&mut out, &report)?;
            writeln!(out)
        } else {
            print(out, file.path().display(), &report)
        }
    })?;
    // `<=` also fails an error that is NaN.
    let within =
        |table: &VerifiedTable| table.max_error.is_none_or(|max| table.error.relative_error <= max);
    let layer_within = |layer: &VerifiedLayer| layer.error.relative_error <= layer.max_error;
    let good = report.damage.is_none()
        && report.tables.iter().all(within)
        && report.layers.iter().all(layer_within);
    Ok(if good { Outcome::Done } else { Outcome::Differs })
}

fn print(
    out: &mut dyn Write,
    path: std::path::Display<'_>,
    report: &VerifyReport,
) -> io::Result<()> {
    match &report.damage {
        Some(damage) => writeln!(out, "{path}: damaged: {damage}")?,
        None => writeln!(out, "{path}: every checksum matches")?,
    }
    for VerifiedLayer { error, max_error } in &report.layers {
        let LayerComparison { name, dtype, inputs, outputs, relative_error, .. } = error;
        let verdict = if relative_error <= max_error { "within" } else { "ABOVE" };
        writeln!(
            out,
            "{}: {inputs} x {outputs}, {dtype}: relative error {relative_error:.3e} ({verdict} \
             {max_error:.3e})",
            name.escape_debug()
        )?;
    }
    for table in &report.tables {
        let Comparison { relative_error, largest_row_error, largest_row_error_at, .. } =
            table.error;
        let verdict = match table.max_error {
            Some(max) if relative_error <= max => format!("within {max:.3e}"),
            Some(max) => format!("ABOVE {max:.3e}"),
            None => "factorised: pass --max-error to check the error".to_owned(),
        };
        writeln!(
            out,
            "{}: {} rows, {}: relative error {relative_error:.3e} ({verdict}), largest row error \
             {largest_row_error:.3e} in row {largest_row_error_at}",
            table.name.escape_debug(),
            table.num_embeddings,
            table.dtype
        )?;
    }
    Ok(())
}

/// Rounding each core once moves a row by about the unit roundoff; i8 depends on how the values
/// spread.
fn default_max_error(source: &Source<'_>, table: &Table<'_>) -> Option<f64> {
    let per_core = rounding(table.data().dtype());
    let rounding = match table.data().weights() {
        repr::Weights::Projected(_) | repr::Weights::QuotientRemainder(_) => 2.0 * per_core,
        repr::Weights::Codebook(codebook) if codebook.projection().is_some() => 2.0 * per_core,
        repr::Weights::Tt(tt) => per_core * tt.shape().num_cores() as f64,
        _ => per_core,
    };
    if compare::is_factorized(source, table) {
        source.tolerance().map(|tolerance| tolerance + rounding)
    } else {
        Some(rounding)
    }
}

/// The relative error that storing numbers as `dtype` may bring.
fn rounding(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F32 => 1e-6,
        Dtype::F16 => f64::powi(2.0, -11),
        Dtype::Bf16 => f64::powi(2.0, -8),
        Dtype::I8 => 2e-2,
        _ => 2e-1,
    }
}
