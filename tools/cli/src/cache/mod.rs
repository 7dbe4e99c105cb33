//! `ttrec cache`: a blob once more, with what is asked for most already multiplied out.

mod choose;

use crate::{
    Outcome,
    blob_file::{self, BlobFile, Sink},
    budget::Budget,
    direction::in_stored_order,
    frequencies::Frequencies,
    lookup::zeros,
    output,
    progress::Progress,
};
use anyhow::{Context, Result, bail, ensure};
pub(crate) use choose::Demand;
use choose::{Choice, Served};
use serde::Serialize;
use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};
use ttrec::{
    Blob, Table,
    blob::{
        self, IndexMapSpec, LayerSpec, Layout, ModelSpec, OverridesSpec, Role, SectionPlan, Stack,
        TableSpec, WeightsSpec,
    },
    dtype::Dtype,
    repr::{self, IndexMap, Prefixes, Weights},
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
struct Report {
    bytes: u64,
    budget: u64,
    tables: Vec<TableReport>,
}

/// What was added to a table.
#[derive(Serialize)]
struct TableReport {
    name: String,
    rows: usize,
    prefixes: usize,
    bytes: u64,
    /// `None`: it has no frequencies, or is dense.
    #[serde(skip_serializing_if = "Option::is_none")]
    served: Option<Served>,
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    output::refuse_inputs(&args.output, &[&args.blob, &args.frequencies])?;
    let file = BlobFile::open(&args.blob)?;
    let blob = file.blob()?;
    let frequencies = Frequencies::of_blob(&args.frequencies, &blob)?;
    if let Some(damage) = blob_file::damage(&blob) {
        bail!("{}: damaged: {damage}", file.path().display());
    }
    let tier = blob_file::tier()?;
    let tables: Vec<Table<'_>> = blob.tables().map(|table| table.with_tier(tier)).collect();
    let demands = demands(&tables, &frequencies, args.batch)?;
    let budget = args.budget.bytes(demands.iter().flatten().map(Demand::dense_bytes).sum());
    let (choice, bytes) = store(&args.output, &file, &tables, &demands, budget)?;

    let report = tables.iter().zip(&demands).enumerate().map(|(position, (table, demand))| {
        let (rows, prefixes) = (&choice.rows[position], &choice.prefixes[position]);
        TableReport {
            name: table.name().to_owned(),
            rows: rows.len(),
            prefixes: prefixes.len(),
            bytes: demand.as_ref().map_or(0, |demand| {
                demand.bytes_of_rows(rows.len()) + demand.bytes_of_products(prefixes.len())
            }),
            served: demand.as_ref().map(|demand| demand.served(rows, prefixes)),
        }
    });
    let report = Report { bytes, budget, tables: report.collect() };
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

fn print(out: &mut dyn Write, path: std::path::Display<'_>, report: &Report) -> io::Result<()> {
    for TableReport { name, rows, prefixes, bytes, served } in &report.tables {
        let name = name.escape_debug();
        match served {
            Some(Served { by_row, by_prefix, computed }) => writeln!(
                out,
                "{name}: {rows} rows and {prefixes} prefixes added, {bytes} bytes; of the lookups \
                 {:.1}% find their row, {:.1}% their prefix, {:.1}% are computed",
                by_row * 100.0,
                by_prefix * 100.0,
                computed * 100.0
            )?,
            None => writeln!(out, "{name}: as it was")?,
        }
    }
    let added: u64 = report.tables.iter().map(|table| table.bytes).sum();
    writeln!(
        out,
        "{path}: {} bytes, {added} of them added within a budget of {}",
        report.bytes, report.budget
    )
}

/// By table; `None` for those that are left as they are.
fn demands<'a>(
    tables: &[Table<'a>],
    frequencies: &Frequencies,
    batch: u64,
) -> Result<Vec<Option<Demand<'a>>>> {
    let demand = |table: &Table<'a>| -> Result<Option<Demand<'a>>> {
        let Some(source) = frequencies.of(table.name())? else { return Ok(None) };
        let Weights::Tt(tt) = table.data().weights() else { return Ok(None) };
        Ok(Some(Demand::new(table, tt, source.read(table.num_embeddings())?, batch)))
    };
    let demands = tables.iter().map(demand).collect::<Result<Vec<_>>>()?;
    if demands.iter().all(Option::is_none) {
        let is_tt = |table: &&Table<'_>| matches!(table.data().weights(), Weights::Tt(_));
        let names: Vec<&str> = tables.iter().filter(is_tt).map(Table::name).collect();
        bail!(frequencies.none_fit(&names));
    }
    Ok(demands)
}

/// Writes the blob of `file`, which holds `tables`, once more to `path`, with what is best stored
/// in `budget` bytes; returns what that is, and the length of the new blob in bytes.
pub(crate) fn store(
    path: &Path,
    file: &BlobFile,
    tables: &[Table<'_>],
    demands: &[Option<Demand<'_>>],
    budget: u64,
) -> Result<(Choice, u64)> {
    let choice = choose::choose(demands, budget);
    let bytes = write(path, file, tables, &choice)?;
    Ok((choice, bytes))
}

/// Streams the new blob to `path`; returns its length in bytes.
fn write(path: &Path, file: &BlobFile, tables: &[Table<'_>], choice: &Choice) -> Result<u64> {
    let blob = file.blob()?;
    // What sections of ids will hold; where nothing is added the sections stay as they are.
    let union = |there: &[u64], added: &[u64]| {
        let mut ids = if added.is_empty() {
            Vec::new()
        } else {
            [there, added].concat()
        };
        ids.sort_unstable();
        ids
    };
    let rows = |(table, added): (&Table<'_>, &Vec<u64>)| {
        union(table.data().overrides().map_or(&[], |overrides| overrides.ids()), added)
    };
    let prefixes = |(table, added): (&Table<'_>, &Vec<u64>)| {
        union(prefixes(table).map_or(&[], |there| there.ids()), added)
    };
    let rows: Vec<Vec<u64>> = tables.iter().zip(&choice.rows).map(rows).collect();
    let prefixes: Vec<Vec<u64>> = tables.iter().zip(&choice.prefixes).map(prefixes).collect();
    let specs = tables.iter().zip(rows.iter().zip(&prefixes));
    let specs = specs.map(|(table, (rows, prefixes))| {
        spec(table, rows.len(), prefixes.len())
            .with_context(|| format!("{}: table {:?}", file.path().display(), table.name()))
    });
    let layout = Layout::with_model(&specs.collect::<Result<Vec<_>>>()?, model(&blob).as_ref())?;

    blob_file::write(path, layout, |plan, sink| {
        if plan.table == tables.len() {
            return sink.put(section(file, &blob, plan)?);
        }
        let (table, rows, prefixes) =
            (&tables[plan.table], &rows[plan.table], &prefixes[plan.table]);
        match plan.role {
            Role::OverrideIds if !rows.is_empty() => sink.put(bytemuck::cast_slice(rows)),
            Role::OverrideIndex => {
                let there = table.data().overrides().map_or(&[][..], |overrides| overrides.ids());
                write_index(
                    if rows.is_empty() { there } else { rows },
                    table.num_embeddings(),
                    sink,
                )
            }
            Role::OverrideRows if !rows.is_empty() => write_rows(table, rows, sink),
            Role::PrefixIds if !prefixes.is_empty() => sink.put(bytemuck::cast_slice(prefixes)),
            Role::PrefixIndex => {
                let Weights::Tt(tt) = table.data().weights() else {
                    bail!("a dense table has no prefixes")
                };
                let there = tt.prefixes().map_or(&[][..], |there| there.ids());
                write_index(
                    if prefixes.is_empty() { there } else { prefixes },
                    tt.shape().num_prefixes(),
                    sink,
                )
            }
            Role::PrefixProducts if !prefixes.is_empty() => write_products(table, prefixes, sink),
            _ => sink.put(section(file, &blob, plan)?),
        }
    })
}

/// The model as it is, which takes tables by their positions.
fn model(blob: &Blob<'_>) -> Option<ModelSpec> {
    let layers = |stack| {
        let of_stack = blob.layers().filter(move |layer| layer.stack == stack);
        let layer = |layer: blob::Layer<'_>| LayerSpec {
            inputs: layer.inputs,
            outputs: layer.outputs,
            activation: layer.activation,
            dtype: layer.weights.dtype(),
        };
        of_stack.map(layer).collect()
    };
    let tables = blob.model_tables().collect();
    (blob.num_layers() > 0).then(|| ModelSpec {
        tables,
        bottom: layers(Stack::Bottom),
        top: layers(Stack::Top),
    })
}

fn prefixes<'a>(table: &Table<'a>) -> Option<Prefixes<'a>> {
    match table.data().weights() {
        Weights::Tt(tt) => tt.prefixes(),
        _ => None,
    }
}

/// The table with so many rows and prefixes stored; 0 for as many as there are.
fn spec(table: &Table<'_>, rows: usize, num_prefixes: usize) -> Result<TableSpec> {
    let data = table.data();
    let dtype = data.dtype();
    let weights = match data.weights() {
        Weights::Dense(rows) => {
            let (num_embeddings, embedding_dim) = (data.num_rows(), rows.embedding_dim());
            WeightsSpec::Dense { num_embeddings, embedding_dim, dtype }
        }
        Weights::Projected(projected) => WeightsSpec::Projected {
            num_embeddings: data.num_rows(),
            embedding_dim: data.embedding_dim(),
            rank: projected.rank(),
            dtype,
            projection: projected.projection().dtype(),
        },
        Weights::QuotientRemainder(parts) => {
            // The format allows it, the writer does not.
            ensure!(
                parts.remainders().dtype() == dtype,
                "its two parts differ in type: expected one for both"
            );
            WeightsSpec::QuotientRemainder {
                num_embeddings: data.num_rows(),
                num_remainders: parts.num_remainders(),
                columns: [parts.quotients().embedding_dim(), parts.remainders().embedding_dim()],
                combine: parts.combine(),
                dtype,
            }
        }
        Weights::Tt(tt) => {
            let mut cores = tt.cores().iter();
            // The format allows it, the writer does not.
            ensure!(
                cores.all(|core| core.slices().dtype() == dtype),
                "its cores differ in type: expected one for all"
            );
            WeightsSpec::Tt { shape: *tt.shape(), dtype }
        }
        other => bail!("a {} table cannot be written", other.name()),
    };
    let overrides = match (rows, data.overrides()) {
        (0, there) => there.map(|there| OverridesSpec {
            count: there.ids().len() as u64,
            dtype: there.rows().dtype(),
        }),
        (count, _) => Some(OverridesSpec { count: count as u64, dtype: Dtype::F32 }),
    };
    let num_prefixes = match num_prefixes {
        0 => prefixes(table).map_or(0, |there| there.ids().len()),
        count => count,
    };
    let num_embeddings = data.num_embeddings();
    let index_map = match data.index_map() {
        IndexMap::Identity => IndexMapSpec::Identity,
        IndexMap::Modulo => IndexMapSpec::Modulo { num_embeddings },
        IndexMap::Remapped(_) => IndexMapSpec::Remapped { num_embeddings },
        other => bail!("the index map {} cannot be written", other.name()),
    };
    let num_prefixes = num_prefixes as u64;
    Ok(TableSpec { index_map, num_prefixes, overrides, ..TableSpec::new(table.name(), weights) })
}

fn write_index(ids: &[u64], limit: u64, sink: &mut Sink<'_>) -> Result<()> {
    repr::id_index(ids, limit).try_for_each(|line| sink.put(&line))
}

/// Rows as lookups give them, those that are stored apart among them.
fn write_rows(table: &Table<'_>, ids: &[u64], sink: &mut Sink<'_>) -> Result<()> {
    let (mut row, mut workspace) = (zeros(table.embedding_dim())?, zeros(table.workspace_len(1))?);
    let mut progress = Progress::new(&format!("{}: rows", table.name()), ids.len() as u64);
    ids.iter().try_for_each(|&id| {
        table.lookup(id, &mut row, &mut workspace)?;
        progress.add(1);
        match table.data().weights() {
            Weights::Tt(tt) => sink.put(bytemuck::cast_slice(&in_stored_order(&tt.shape(), &row))),
            _ => sink.put(bytemuck::cast_slice(&row)),
        }
    })
}

fn write_products(table: &Table<'_>, ids: &[u64], sink: &mut Sink<'_>) -> Result<()> {
    let Weights::Tt(tt) = table.data().weights() else { bail!("a dense table has no prefixes") };
    let len = tt.shape().prefix_len();
    let (mut product, mut workspace) = (zeros(len)?, zeros(table.workspace_len(1))?);
    let mut progress = Progress::new(&format!("{}: prefixes", table.name()), ids.len() as u64);
    ids.iter().try_for_each(|&id| {
        progress.add(1);
        // One that is there stays, lest a row change its bits: another machine may have rounded it
        // otherwise.
        if let Some(there) = tt.prefixes()
            && let Ok(position) = there.ids().binary_search(&id)
        {
            let product = there
                .products()
                .chunks_exact(len)
                .nth(position)
                .context("a prefix product is missing")?;
            return sink.put(bytemuck::cast_slice(product));
        }
        table.prefix_product(id, &mut product, &mut workspace)?;
        sink.put(bytemuck::cast_slice(&product))
    })
}

/// A section as it is in the blob.
fn section<'b>(file: &'b BlobFile, blob: &Blob<'_>, plan: &SectionPlan) -> Result<&'b [u8]> {
    let of_layers = || (0..blob.num_layers()).flat_map(|layer| blob.layer_sections(layer));
    let table = blob.tables().nth(plan.table);
    let mut sections = table.into_iter().flat_map(|table| table.sections()).chain(of_layers());
    let section = sections.find(|section| section.role == plan.role);
    let section = section.with_context(|| format!("no section {:?}", plan.role))?;
    let (start, len) = (usize::try_from(section.offset)?, usize::try_from(section.len)?);
    file.bytes()
        .get(start..)
        .and_then(|rest| rest.get(..len))
        .context("a section is outside the blob")
}
