//! `ttrec cache`: rows and prefix products that are looked up often, stored in a blob.

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

/// Store the rows and partial products that are asked for most beside a blob's tensor-train tables.
///
/// The new blob holds all that BLOB holds, and for its tensor-train tables hot rows, multiplied
/// out, and products of hot prefixes (what rows with the same digits but for the last one have in
/// common), so that lookups need not compute them. Rows keep their values bit for bit. Which rows
/// and prefixes save most time per byte is estimated from the frequencies.
#[derive(clap::Args)]
#[command(after_help = "\
Frequencies:
  For a table \"item\" either an array \"item\" of num_embeddings numbers (counts or frequencies),
  or \"item.indices\" and \"item.counts\" of one length, as numpy.unique(log, return_counts=True)
  gives them. Tables without either, and dense tables, are left as they are.

Budget:
  It bounds the bytes added for all tables together: 8 for the id of each row or prefix, its f32
  elements, and an index of the ids (a sixth of a byte for each row or prefix that the table has,
  where 256 or more are stored and it pays). The file grows by no more than that, but for directory
  records and padding, and for rows that BLOB itself stores apart in a narrower type than f32: \
                        where rows are added beside
  them, these become f32.")]
pub(crate) struct Args {
    /// A blob
    blob: PathBuf,
    /// How often each row is asked for
    #[arg(long, value_name = "FILE.npz")]
    frequencies: PathBuf,
    /// How many bytes to add: 28MiB, 500KB, 1234, or 1% (of what the tables that have frequencies
    /// would take as dense f32)
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true)]
    budget: Budget,
    /// How many lookups in a table come in a batch: what they share is computed once
    #[arg(long, value_name = "N", default_value = "1000", value_parser = clap::value_parser!(u64).range(1..))]
    batch: u64,
    /// Where the new blob goes; it appears whole or not at all
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
    /// `None`: it has no frequencies, or is dense.
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
                "{name}: {rows} rows and {prefixes} prefixes added, {bytes} bytes; of the lookups \
                 {:.1}% find their row, {:.1}% their prefix, {:.1}% are computed",
                by_row * 100.0,
                by_prefix * 100.0,
                computed * 100.0
            )?,
            None => writeln!(out, "{name}: unchanged")?,
        }
    }
    let added: u64 = report.tables.iter().map(|table| table.bytes).sum();
    writeln!(
        out,
        "{path}: {} bytes, {added} of them added within a budget of {}",
        report.bytes, report.budget
    )
}
