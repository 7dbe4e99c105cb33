//! `ttrec cache`: stores the most frequent rows and prefix products in a blob.

use crate::{
    blob_file::{self, BlobFile},
    outcome::Outcome,
    output,
    progress::Terminal,
};
use anyhow::{Result, bail};
use serde::Serialize;
use std::{
    io::{self, Write},
    path::PathBuf,
};
use ttrec::Table;
use ttrec_convert::{
    Budget, Frequencies,
    cache::{self, Demand, Hits},
};

/// Add the most frequent rows and partial products to a blob's tensor-train tables.
///
/// The new blob is BLOB plus, for its tensor-train tables, the most frequent rows and the products
/// of the most frequent prefixes (the part that rows with equal digits except the last share), so
/// that lookups do not compute them. The values of rows do not change. `cache` estimates from the
/// frequencies which rows and prefixes save most time per byte.
#[derive(clap::Args)]
#[command(after_help = "\
Frequencies:
  For a table \"item\" either an array \"item\" of num_embeddings numbers (counts or frequencies),
  or \"item.indices\" and \"item.counts\" of one length, as numpy.unique(log, return_counts=True)
  returns them. Other tables, and dense tables, are not changed.

Budget:
  It limits the bytes added to all tables together: 8 for the id of each row or prefix, its f32
  elements, and an index of the ids (a sixth of a byte for each row or prefix that the table has,
  where 256 or more are stored and the index pays). The file grows by at most that, plus directory
  records and padding. If BLOB has overrides in a type narrower than f32 and rows are added to the
  same table, those become f32 and add bytes too.")]
pub(crate) struct Args {
    /// A blob
    blob: PathBuf,
    /// How often each row occurs
    #[arg(long, value_name = "FILE.npz")]
    frequencies: PathBuf,
    /// Bytes to add: 28MiB, 500KB, 1234, or 1% (of the tables that have frequencies, as dense f32)
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true)]
    budget: Budget,
    /// Lookups per table in a typical batch; a batch computes shared products once
    #[arg(long, value_name = "N", default_value = "1000")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    batch: u64,
    /// The blob to write; it is replaced only when complete
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct CacheReport {
    bytes: u64,
    budget: u64,
    tables: Vec<Additions>,
}

/// What was added to a table.
#[derive(Serialize)]
struct Additions {
    name: String,
    rows: usize,
    prefixes: usize,
    bytes: u64,
    /// `None` if the table has no frequencies, or is dense.
    #[serde(rename = "served", skip_serializing_if = "Option::is_none")]
    hits: Option<Hits>,
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    output::refuse_inputs(&args.output, &[&args.blob, &args.frequencies])?;
    let file = BlobFile::open(&args.blob)?;
    let blob = file.blob()?;
    let frequencies =
        Frequencies::open(&args.frequencies, blob.tables().map(|table| table.name()))?;
    if let Some(damage) = blob_file::damage(&blob) {
        bail!("{}: damaged: {damage}", file.path().display());
    }
    let tier = blob_file::tier()?;
    let tables: Vec<Table<'_>> = blob.tables().map(|table| table.with_tier(tier)).collect();
    let demands = cache::demands(&tables, &frequencies, args.batch)?;
    let budget = args.budget.bytes(demands.iter().flatten().map(Demand::dense_bytes).sum());
    let progress = Terminal::default();
    let choice = cache::choose(&demands, budget, &progress);
    let bytes = output::write(&args.output, |out| {
        cache::write(file.bytes(), &tables, &choice, out, &progress)
    })
    .map_err(|error| match error.is::<output::WriteError>() {
        true => error,
        false => error.context(file.path().display().to_string()),
    })?;

    let report = tables.iter().zip(&demands).enumerate().map(|(position, (table, demand))| {
        let (rows, prefixes) = (&choice.rows[position], &choice.prefixes[position]);
        Additions {
            name: table.name().to_owned(),
            rows: rows.len(),
            prefixes: prefixes.len(),
            bytes: demand.as_ref().map_or(0, |demand| {
                demand.bytes_of_rows(rows.len()) + demand.bytes_of_products(prefixes.len())
            }),
            hits: demand.as_ref().map(|demand| demand.hits(rows, prefixes)),
        }
    });
    let report = CacheReport { bytes, budget, tables: report.collect() };
    output::print(|mut out| {
        if args.json {
            serde_json::to_writer_pretty(&mut out, &report)?;
            writeln!(out)
        } else {
            print(out, args.output.display(), &report)
        }
    })?;
    Ok(Outcome::Done)
}

fn print(
    out: &mut dyn Write,
    path: std::path::Display<'_>,
    report: &CacheReport,
) -> io::Result<()> {
    for Additions { name, rows, prefixes, bytes, hits } in &report.tables {
        let name = name.escape_debug();
        match hits {
            Some(Hits { by_row, by_prefix, computed }) => writeln!(
                out,
                "{name}: {rows} rows and {prefixes} prefixes added, {bytes} bytes; {:.1}% of \
                 lookups find their row stored, {:.1}% their prefix; {:.1}% are computed",
                by_row * 100.0,
                by_prefix * 100.0,
                computed * 100.0
            )?,
            None => writeln!(out, "{name}: unchanged")?,
        }
    }
    let added: u64 = report.tables.iter().map(|table| table.bytes).sum();
    writeln!(out, "{path}: {} bytes, {added} of them new (budget {})", report.bytes, report.budget)
}
