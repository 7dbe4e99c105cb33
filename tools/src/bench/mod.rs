//! `ttrec bench`: how fast the kernels and tables are here, beside what the core and its memory can do at best. For
//! devices where criterion cannot go; `benches/` is its counterpart for a developer's machine.
//!
//! One thread. Nothing is timed before its answer has been compared with a plain f64 loop. Times are the least of several
//! repetitions, and the roofline is measured between them, so that a change of frequency hits both.

mod contents;
mod kernels;
mod roofline;
mod tables;

use crate::{Outcome, blob_file, output};
use anyhow::Result;
use clap::ValueEnum;
use roofline::Roofline;
use serde::Serialize;
use std::io::{self, Write};

/// Measure kernels and tables on this device.
///
/// Prints a roofline (the core's multiply-add peak and its memory bandwidth, both measured in this run, on one thread) and
/// what fraction of it each kernel and table reaches. Every answer is checked before it is timed. Takes about a minute and
/// up to half of the available memory.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to measure; default: both
    #[arg(long, value_enum)]
    suite: Option<Suite>,
    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,
    /// Smaller tables and fewer repetitions: a few seconds, rougher figures
    #[arg(long)]
    quick: bool,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Suite {
    Kernels,
    Tables,
}

#[derive(Serialize)]
struct Report {
    tier: &'static str,
    fma_peak_gflops: f64,
    memory_gbps: f64,
    /// What was made smaller than usual, and why.
    notes: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    kernels: Vec<KernelFigure>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tables: Vec<TableFigure>,
}

#[derive(Serialize)]
struct KernelFigure {
    name: String,
    tier: &'static str,
    gflops: f64,
    peak_fraction: f64,
}

#[derive(Serialize)]
struct TableFigure {
    name: String,
    tier: &'static str,
    ns_per_lookup: f64,
    /// Of the multiply-add peak, by the operations of multiplying each row out by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_fraction: Option<f64>,
    /// Of the memory bandwidth; above 1 where caches hold the rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_fraction: Option<f64>,
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    let tier = blob_file::tier()?;
    let wants = |suite| args.suite.is_none_or(|wanted| wanted == suite);
    let mut roofline = Roofline::new(tier, args.quick)?;
    let mut notes = roofline.notes();
    let kernels = if wants(Suite::Kernels) { kernels::measure(&mut roofline, args.quick)? } else { Vec::new() };
    let tables =
        if wants(Suite::Tables) { tables::measure(&mut roofline, args.quick, &mut notes)? } else { Vec::new() };

    let (peak, memory) = (roofline.flops(), roofline.bytes_per_second());
    let kernels = kernels.into_iter().map(|(name, flops)| KernelFigure {
        name,
        tier: tier.name(),
        gflops: flops / 1e9,
        peak_fraction: flops / peak,
    });
    let tables = tables.into_iter().map(|table| TableFigure {
        name: table.name,
        tier: tier.name(),
        ns_per_lookup: table.seconds * 1e9,
        peak_fraction: table.flops.map(|flops| flops / table.seconds / peak),
        memory_fraction: table.bytes.map(|bytes| bytes / table.seconds / memory),
    });
    let report = Report {
        tier: tier.name(),
        fma_peak_gflops: peak / 1e9,
        memory_gbps: memory / 1e9,
        notes,
        kernels: kernels.collect(),
        tables: tables.collect(),
    };
    output::print(|mut out| {
        if args.json {
            serde_json::to_writer_pretty(&mut out, &report)?;
            writeln!(out)
        } else {
            print(out, &report)
        }
    })?;
    Ok(Outcome::Done)
}

fn print(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    let Report { tier, fma_peak_gflops, memory_gbps, .. } = report;
    writeln!(out, "{tier}, one thread: multiply-adds {fma_peak_gflops:.1} GFLOP/s, memory {memory_gbps:.1} GB/s")?;
    for note in &report.notes {
        writeln!(out, "note: {note}")?;
    }
    if !report.kernels.is_empty() {
        writeln!(out, "\n{:28} {:>9} {:>8}", "kernel", "GFLOP/s", "of peak")?;
        for KernelFigure { name, gflops, peak_fraction, .. } in &report.kernels {
            writeln!(out, "{name:28} {gflops:>9.1} {peak_fraction:>8.2}")?;
        }
    }
    if !report.tables.is_empty() {
        writeln!(out, "\n{:28} {:>9} {:>8} {:>9}", "table", "ns/lookup", "of peak", "of memory")?;
        for TableFigure { name, ns_per_lookup, peak_fraction, memory_fraction, .. } in &report.tables {
            let fraction = |fraction: &Option<f64>| fraction.map_or(String::new(), |fraction| format!("{fraction:.2}"));
            let (peak, memory) = (fraction(peak_fraction), fraction(memory_fraction));
            writeln!(out, "{name:28} {ns_per_lookup:>9.1} {peak:>8} {memory:>9}")?;
        }
    }
    Ok(())
}
