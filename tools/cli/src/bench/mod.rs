//! `ttrec bench`: measures kernels and tables against the peak of the core and its memory, and
//! batches of bags against dense tables. It is for devices on which criterion does not run;
//! `benches/` is for developers.
//!
//! It uses one thread. Each result is checked before it is timed. A time is the sum, over the parts
//! of a pass, of the least time of each part in several repetitions. The peak is measured between
//! repetitions, so that a change of clock frequency affects both.

mod batch;
mod catalogue;
mod kernels;
mod model;
mod payload;
mod roofline;
mod tables;
mod traffic;
mod user_traffic;
mod workloads;

use crate::{
    bags_file::{BagOptions, BagsFile, Mode},
    blob_file::{self, BlobFile},
    outcome::Outcome,
    output,
};
use anyhow::Result;
use batch::Baseline;
use clap::ValueEnum;
use roofline::Roofline;
use serde::Serialize;
use std::{
    io::{self, Write},
    path::PathBuf,
};

/// Measure kernels, tables, batches or a blob on this device.
///
/// Prints a roofline (the core's multiply-add peak and its memory bandwidth, both measured in this
/// run, on one thread) and the fraction of it that each kernel and table reaches. Batches of bags
/// are compared with dense f32 tables, and so is the search for the best of all rows. Results are
/// checked before they are timed. Takes some minutes and up to half of the available memory.
///
/// With a blob and a file of bags in the formats of `ttrec lookup`, it measures these instead, all
/// bags as one batch. With a blob and a file of samples, it measures the blob's model.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A blob to measure instead of the suites
    #[arg(requires = "own", conflicts_with_all = ["suite", "retail"])]
    blob: Option<PathBuf>,
    /// Bags, in the formats of `ttrec lookup`
    #[arg(long, value_name = "FILE", requires = "blob", group = "own")]
    bags: Option<PathBuf>,
    /// Samples for the blob's model, in the format of `ttrec score`
    #[arg(long, value_name = "FILE.npz", requires = "blob", group = "own")]
    batch: Option<PathBuf>,
    /// Samples to score at a time
    #[arg(long, value_name = "N", default_value_t = 128, requires = "batch")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    samples: u32,
    /// The table; may be omitted if the blob has only one
    #[arg(long, value_name = "NAME", requires = "blob")]
    table: Option<String>,
    /// How to pool the rows of a bag
    #[arg(long, value_enum, default_value = "sum", requires = "blob")]
    mode: Mode,
    /// Multiply each row by its weight; with --mode sum
    #[arg(long, requires = "blob")]
    weighted: bool,
    /// The suite to measure [default: all]
    #[arg(long, value_enum)]
    suite: Option<Suite>,
    /// A retailer's baskets for the batch suite, as offsets and items (FIMI's retail data, which
    /// is not bundled)
    #[arg(long, value_name = "FILE.npz")]
    retail: Option<PathBuf>,
    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,
    /// Smaller tables and fewer repetitions: takes seconds, less precise
    #[arg(long)]
    quick: bool,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Suite {
    Kernels,
    Tables,
    Batch,
    Catalogue,
}

#[derive(Serialize)]
struct BenchReport {
    tier: &'static str,
    fma_peak_gflops: f64,
    memory_gbps: f64,
    /// Measurements that were reduced or skipped, and the reason.
    notes: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    kernels: Vec<KernelFigure>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tables: Vec<TableFigure>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    workloads: Vec<WorkloadFigure>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    catalogue: Vec<CatalogueFigure>,
    #[serde(skip_serializing_if = "Option::is_none")]
    own: Option<OwnFigure>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<ModelFigure>,
}

#[derive(Serialize)]
struct ModelFigure {
    tier: &'static str,
    samples: usize,
    /// The number of samples that are scored together.
    batch: usize,
    us_per_sample: f64,
    workspace_bytes: usize,
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
    /// The fraction of the multiply-add peak, by the operations of computing each row alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_fraction: Option<f64>,
    /// The fraction of the memory bandwidth; above 1 if caches hold the rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_fraction: Option<f64>,
}

#[derive(Serialize)]
struct WorkloadFigure {
    name: String,
    tier: &'static str,
    ns_per_lookup: f64,
    /// The fraction of the multiply-add peak, by the operations of computing each row alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_fraction: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dense_ns_per_lookup: Option<f64>,
    /// The time as a multiple of the dense tables' time.
    #[serde(skip_serializing_if = "Option::is_none")]
    times_dense: Option<f64>,
    /// The same three with cold caches at the start of a pass over all batches.
    #[serde(skip_serializing_if = "Option::is_none")]
    cold_ns_per_lookup: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cold_dense_ns_per_lookup: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cold_times_dense: Option<f64>,
    /// The time of the kernels that a lookup calls, alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    bare_ns_per_lookup: Option<f64>,
    /// The time of the same lookups one by one.
    #[serde(skip_serializing_if = "Option::is_none")]
    single_ns_per_lookup: Option<f64>,
    /// The hit rate of a row cache, and the time to record a lookup.
    #[serde(skip_serializing_if = "Option::is_none")]
    hit_rate: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    record_ns_per_lookup: Option<f64>,
    workspace_bytes: usize,
}

#[derive(Serialize)]
struct CatalogueFigure {
    name: String,
    tier: &'static str,
    queries: usize,
    ms_per_query: f64,
    /// The time of a dense f32 table as a multiple of this one.
    dense_times: f64,
    /// The fraction of the multiply-add peak, by the operations of the contraction.
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_fraction: Option<f64>,
    /// The fraction of the memory bandwidth.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_fraction: Option<f64>,
    workspace_bytes: usize,
}

#[derive(Serialize)]
struct OwnFigure {
    table: String,
    tier: &'static str,
    bags: usize,
    lookups: usize,
    ns_per_lookup: f64,
    ns_per_bag: f64,
    /// The fraction of the multiply-add peak, by the operations of computing each row alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_fraction: Option<f64>,
    workspace_bytes: usize,
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    let tier = blob_file::tier()?;
    let model = args.blob.as_ref().zip(args.batch.as_ref());
    let model = model
        .map(|(blob, batch)| Ok::<_, anyhow::Error>((BlobFile::open(blob)?, batch)))
        .transpose()?;
    let own = match (&args.blob, &args.bags) {
        (Some(blob), Some(bags)) => {
            let blob = BlobFile::open(blob)?;
            Some((blob, BagsFile::read(bags, args.weighted, BagOptions::default())?))
        }
        _ => None,
    };
    let retail = args
        .retail
        .as_deref()
        .map(|path| BagsFile::read_arrays(path, "items", false, BagOptions::default()))
        .transpose()?;
    let wants = |suite| args.blob.is_none() && args.suite.is_none_or(|wanted| wanted == suite);
    let mut roofline = Roofline::new(tier, args.quick)?;
    let mut notes = roofline.notes();
    let kernels = if wants(Suite::Kernels) {
        kernels::measure(&mut roofline, args.quick)?
    } else {
        Vec::new()
    };
    let tables = if wants(Suite::Tables) {
        tables::measure(&mut roofline, args.quick, &mut notes)?
    } else {
        Vec::new()
    };
    let workloads = if wants(Suite::Batch) {
        batch::measure(&mut roofline, args.quick, retail.as_ref(), &mut notes)?
    } else {
        Vec::new()
    };
    let catalogue = if wants(Suite::Catalogue) {
        catalogue::measure(&mut roofline, args.quick, &mut notes)?
    } else {
        Vec::new()
    };
    let measure_own = |(blob, bags)| {
        user_traffic::measure(&mut roofline, blob, args.table.as_deref(), bags, args.mode)
    };
    let own = own.as_ref().map(|(blob, bags)| (blob, bags)).map(measure_own).transpose()?;

    let measure_model = |(blob, batch): &(BlobFile, &PathBuf)| {
        model::measure(&mut roofline, blob, batch, args.samples as usize)
    };
    let model = model.as_ref().map(measure_model).transpose()?;

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
    let workloads = workloads.into_iter().map(|workload| {
        let beside = |wanted| {
            workload
                .beside
                .filter(|(found, _)| *found == wanted)
                .map(|(_, seconds)| seconds * 1e9)
        };
        let ns_per_lookup = workload.seconds * 1e9;
        WorkloadFigure {
            tier: tier.name(),
            ns_per_lookup,
            peak_fraction: workload.flops.map(|flops| flops / workload.seconds / peak),
            dense_ns_per_lookup: beside(Baseline::Dense),
            times_dense: beside(Baseline::Dense).map(|dense| ns_per_lookup / dense),
            cold_ns_per_lookup: workload.cold.map(|[seconds, _]| seconds * 1e9),
            cold_dense_ns_per_lookup: workload.cold.map(|[_, dense]| dense * 1e9),
            cold_times_dense: workload.cold.map(|[seconds, dense]| seconds / dense),
            bare_ns_per_lookup: beside(Baseline::Bare),
            single_ns_per_lookup: beside(Baseline::Single),
            hit_rate: workload.cache.map(|[hit_rate, _]| hit_rate),
            record_ns_per_lookup: workload.cache.map(|[_, seconds]| seconds * 1e9),
            workspace_bytes: workload.workspace_bytes,
            name: workload.name,
        }
    });
    let catalogue = catalogue.into_iter().map(|table| CatalogueFigure {
        name: table.name,
        tier: tier.name(),
        queries: table.queries,
        ms_per_query: table.seconds * 1e3,
        dense_times: table.dense / table.seconds,
        peak_fraction: table.flops.map(|flops| flops / table.seconds / peak),
        memory_fraction: table.bytes.map(|bytes| bytes / table.seconds / memory),
        workspace_bytes: table.workspace_bytes,
    });
    let own = own.map(|own| OwnFigure {
        table: own.table,
        tier: tier.name(),
        bags: own.bags,
        lookups: own.lookups,
        ns_per_lookup: own.seconds * 1e9 / own.lookups as f64,
        ns_per_bag: own.seconds * 1e9 / own.bags as f64,
        peak_fraction: own.flops.map(|flops| flops * own.lookups as f64 / own.seconds / peak),
        workspace_bytes: own.workspace_bytes,
    });
    let model = model.map(|model| ModelFigure {
        tier: tier.name(),
        samples: model.samples,
        batch: model.batch,
        us_per_sample: model.seconds * 1e6 / model.samples as f64,
        workspace_bytes: model.workspace_bytes,
    });
    let report = BenchReport {
        tier: tier.name(),
        fma_peak_gflops: peak / 1e9,
        memory_gbps: memory / 1e9,
        notes,
        kernels: kernels.collect(),
        tables: tables.collect(),
        workloads: workloads.collect(),
        catalogue: catalogue.collect(),
        own,
        model,
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

fn print(out: &mut dyn Write, report: &BenchReport) -> io::Result<()> {
    let BenchReport { tier, fma_peak_gflops, memory_gbps, .. } = report;
    writeln!(
        out,
        "{tier}, one thread: multiply-adds {fma_peak_gflops:.1} GFLOP/s, memory {memory_gbps:.1} \
         GB/s"
    )?;
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
        for TableFigure { name, ns_per_lookup, peak_fraction, memory_fraction, .. } in
            &report.tables
        {
            let (peak, memory) = (fraction(peak_fraction), fraction(memory_fraction));
            writeln!(out, "{name:28} {ns_per_lookup:>9.1} {peak:>8} {memory:>9}")?;
        }
    }
    if !report.workloads.is_empty() {
        writeln!(
            out,
            "\n{:28} {:>9} {:>8}  {:16} {:>6} {:>12}",
            "workload", "ns/lookup", "of peak", "beside", "times", "cold, times"
        )?;
        for workload in &report.workloads {
            let WorkloadFigure { name, ns_per_lookup, peak_fraction, .. } = workload;
            let baselines = [
                ("dense", workload.dense_ns_per_lookup),
                ("bare", workload.bare_ns_per_lookup),
                ("single", workload.single_ns_per_lookup),
            ];
            let beside = baselines.into_iter().find_map(|(what, ns)| Some((what, ns?)));
            let (beside, times) = match beside {
                Some((what, ns)) => (format!("{what:6} {ns:>9.1}"), Some(ns_per_lookup / ns)),
                None => (String::new(), None),
            };
            let (peak, times, cold) =
                (fraction(peak_fraction), fraction(&times), fraction(&workload.cold_times_dense));
            writeln!(
                out,
                "{name:28} {ns_per_lookup:>9.1} {peak:>8}  {beside:16} {times:>6} {cold:>12}"
            )?;
        }
    }
    if !report.catalogue.is_empty() {
        writeln!(
            out,
            "\n{:24} {:>7} {:>9} {:>8} {:>9} {:>12} {:>9}",
            "catalogue", "queries", "ms/query", "of peak", "of memory", "dense, times", "workspace"
        )?;
        for figure in &report.catalogue {
            let CatalogueFigure {
                name, queries, ms_per_query, dense_times, workspace_bytes, ..
            } = figure;
            let (peak, memory) =
                (fraction(&figure.peak_fraction), fraction(&figure.memory_fraction));
            writeln!(
                out,
                "{name:24} {queries:>7} {ms_per_query:>9.2} {peak:>8} {memory:>9} \
                 {dense_times:>12.2} {workspace_bytes:>9}"
            )?;
        }
    }
    if let Some(own) = &report.own {
        let OwnFigure {
            table,
            bags,
            lookups,
            ns_per_lookup,
            ns_per_bag,
            peak_fraction,
            workspace_bytes,
            ..
        } = own;
        // Escaped, so that names cannot inject terminal control sequences.
        let table = table.escape_debug();
        writeln!(
            out,
            "\n{table}: {bags} bags, {lookups} lookups, {workspace_bytes} bytes of workspace"
        )?;
        let peak =
            peak_fraction.map_or(String::new(), |fraction| format!(", {fraction:.2} of peak"));
        writeln!(out, "{ns_per_lookup:.1} ns/lookup, {ns_per_bag:.1} ns/bag{peak}")?;
    }
    if let Some(ModelFigure { samples, batch, us_per_sample, workspace_bytes, .. }) = &report.model
    {
        writeln!(
            out,
            "\n{samples} samples, {batch} at a time, {workspace_bytes} bytes of workspace"
        )?;
        writeln!(out, "{us_per_sample:.2} us/sample")?;
    }
    Ok(())
}

fn fraction(fraction: &Option<f64>) -> String {
    fraction.map_or(String::new(), |fraction| format!("{fraction:.2}"))
}
