//! Adds rows and prefix products to a blob, so that lookups do not compute them.

mod choose;

pub use choose::{Choice, Demand, Hits, choose};

use crate::{
    allocate::zeros,
    contraction_order::in_stored_order,
    error::Error,
    frequencies::Frequencies,
    progress::{Progress, Step},
    sink::{self, Sink},
};
use anyhow::{Context, Result, bail, ensure};
use std::io::{Seek, Write};
use ttrec::{
    AlignedBuf, Blob, Table,
    blob::{
        self, IndexMapSpec, LayerSpec, Layout, ModelSpec, OverridesSpec, Role, SectionPlan, Stack,
        TableSpec, WeightsSpec,
    },
    dtype::Dtype,
    repr::{self, IndexMap, Prefixes, Weights},
};

/// The demand on each table; `None` for tables without frequencies and for other representations
/// than tensor trains, which are not changed. Batches have `batch` lookups per table, which share
/// products.
///
/// # Errors
/// If the frequencies do not fit the tables, or no table can use them.
pub fn demands<'a>(
    tables: &[Table<'a>],
    frequencies: &Frequencies,
    batch: u64,
) -> Result<Vec<Option<Demand<'a>>>, Error> {
    Ok(try_demands(tables, frequencies, batch)?)
}

/// Writes the blob in `bytes`, whose tables are `tables`, with the rows and prefix products of
/// `choice`; returns its length in bytes.
///
/// # Errors
/// If `bytes` is not a valid blob, or `out` fails ([`Error::Output`]).
pub fn write(
    bytes: &[u8],
    tables: &[Table<'_>],
    choice: &Choice,
    out: &mut (impl Write + Seek),
    progress: &dyn Progress,
) -> Result<u64, Error> {
    let enlarged = Enlarged::new(bytes, tables, choice, progress)?;
    let section = |plan: &SectionPlan, sink: &mut Sink<'_>| enlarged.write_section(plan, sink);
    sink::write(out, enlarged.layout.clone(), section)?;
    Ok(enlarged.layout.total_len())
}

/// The same in memory.
///
/// # Errors
/// If `bytes` is not a valid blob.
pub fn to_blob(
    bytes: &[u8],
    tables: &[Table<'_>],
    choice: &Choice,
    progress: &dyn Progress,
) -> Result<AlignedBuf, Error> {
    let enlarged = Enlarged::new(bytes, tables, choice, progress)?;
    let section = |plan: &SectionPlan, sink: &mut Sink<'_>| enlarged.write_section(plan, sink);
    Ok(sink::build(enlarged.layout.clone(), section)?)
}

fn try_demands<'a>(
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

/// A blob with more rows and prefix products.
struct Enlarged<'e> {
    bytes: &'e [u8],
    blob: Blob<'e>,
    tables: &'e [Table<'e>],
    /// The ids in the sections of each table; none if nothing is added and the sections are copied.
    rows: Vec<Vec<u64>>,
    prefixes: Vec<Vec<u64>>,
    layout: Layout,
    progress: &'e dyn Progress,
}

impl<'e> Enlarged<'e> {
    fn new(
        bytes: &'e [u8],
        tables: &'e [Table<'e>],
        choice: &Choice,
        progress: &'e dyn Progress,
    ) -> Result<Self> {
        let blob = Blob::parse(bytes)?;
        let union = |existing: &[u64], added: &[u64]| {
            let mut ids = if added.is_empty() {
                Vec::new()
            } else {
                [existing, added].concat()
            };
            ids.sort_unstable();
            ids
        };
        let rows = |(table, added): (&Table<'_>, &Vec<u64>)| {
            union(table.data().overrides().map_or(&[], |overrides| overrides.ids()), added)
        };
        let prefixes = |(table, added): (&Table<'_>, &Vec<u64>)| {
            union(prefixes(table).map_or(&[], |existing| existing.ids()), added)
        };
        let rows: Vec<Vec<u64>> = tables.iter().zip(&choice.rows).map(rows).collect();
        let prefixes: Vec<Vec<u64>> = tables.iter().zip(&choice.prefixes).map(prefixes).collect();
        let specs = tables.iter().zip(rows.iter().zip(&prefixes));
        let specs = specs.map(|(table, (rows, prefixes))| {
            spec(table, rows.len(), prefixes.len())
                .with_context(|| format!("table {:?}", table.name()))
        });
        let specs = specs.collect::<Result<Vec<_>>>()?;
        let layout = Layout::with_model(&specs, model(&blob).as_ref())?;
        Ok(Self { bytes, blob, tables, rows, prefixes, layout, progress })
    }

    fn write_section(&self, plan: &SectionPlan, sink: &mut Sink<'_>) -> Result<()> {
        if plan.table == self.tables.len() {
            return sink.put(self.section(plan)?);
        }
        let (table, rows, prefixes) =
            (&self.tables[plan.table], &self.rows[plan.table], &self.prefixes[plan.table]);
        match plan.role {
            Role::OverrideIds if !rows.is_empty() => sink.put(bytemuck::cast_slice(rows)),
            Role::OverrideIndex => {
                let existing =
                    table.data().overrides().map_or(&[][..], |overrides| overrides.ids());
                write_index(
                    if rows.is_empty() { existing } else { rows },
                    table.num_embeddings(),
                    sink,
                )
            }
            Role::OverrideRows if !rows.is_empty() => write_rows(table, rows, sink, self.progress),
            Role::PrefixIds if !prefixes.is_empty() => sink.put(bytemuck::cast_slice(prefixes)),
            Role::PrefixIndex => {
                let Weights::Tt(tt) = table.data().weights() else {
                    bail!("a dense table has no prefixes")
                };
                let existing = tt.prefixes().map_or(&[][..], |existing| existing.ids());
                write_index(
                    if prefixes.is_empty() { existing } else { prefixes },
                    tt.shape().num_prefixes(),
                    sink,
                )
            }
            Role::PrefixProducts if !prefixes.is_empty() => {
                write_products(table, prefixes, sink, self.progress)
            }
            _ => sink.put(self.section(plan)?),
        }
    }

    /// The bytes of an unchanged section.
    fn section(&self, plan: &SectionPlan) -> Result<&'e [u8]> {
        let blob = &self.blob;
        let of_layers = || (0..blob.num_layers()).flat_map(|layer| blob.layer_sections(layer));
        let table = blob.tables().nth(plan.table);
        let mut sections = table.into_iter().flat_map(|table| table.sections()).chain(of_layers());
        let section = sections.find(|section| section.role == plan.role);
        let section = section.with_context(|| format!("no section {:?}", plan.role))?;
        let (start, len) = (usize::try_from(section.offset)?, usize::try_from(section.len)?);
        self.bytes
            .get(start..)
            .and_then(|rest| rest.get(..len))
            .context("a section is outside the blob")
    }
}

/// The unchanged model, which refers to tables by position.
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
    blob.interaction().map(|interaction| ModelSpec {
        tables: blob.model_tables().collect(),
        interaction,
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

/// The table with this many rows and prefixes; 0 keeps the present ones.
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
            embedding_dim: table.embedding_dim(),
            rank: projected.rank(),
            dtype,
            projection: projected.projection().dtype(),
        },
        Weights::QuotientRemainder(parts) => {
            // The format allows it, the writer does not.
            ensure!(
                parts.remainders().dtype() == dtype,
                "its parts have different types, which `cache` does not support"
            );
            WeightsSpec::QuotientRemainder {
                num_embeddings: data.num_rows(),
                num_remainders: parts.num_remainders(),
                columns: [parts.quotients().embedding_dim(), parts.remainders().embedding_dim()],
                combine: parts.combine(),
                dtype,
            }
        }
        Weights::Codebook(codebook) => WeightsSpec::Codebook {
            num_embeddings: data.num_rows(),
            embedding_dim: table.embedding_dim(),
            num_books: codebook.num_books(),
            book_len: codebook.book_len(),
            inner_dim: codebook.inner_dim(),
            combine: codebook.combine(),
            codes: codebook.code_dtype(),
            dtype,
            projection: codebook.projection().map(|projection| projection.dtype()),
        },
        Weights::Tt(tt) => {
            let mut cores = tt.cores().iter();
            // The format allows it, the writer does not.
            ensure!(
                cores.all(|core| core.slices().dtype() == dtype),
                "its cores have different types, which `cache` does not support"
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
    let num_embeddings = table.num_embeddings();
    let index_map = match data.index_map() {
        IndexMap::Identity => IndexMapSpec::Identity,
        IndexMap::Modulo => IndexMapSpec::Modulo { num_embeddings },
        IndexMap::Remapped(rows) => IndexMapSpec::Remapped { num_embeddings, dtype: rows.dtype() },
        other => bail!("the index map {} cannot be written", other.name()),
    };
    let num_prefixes = num_prefixes as u64;
    Ok(TableSpec { index_map, num_prefixes, overrides, ..TableSpec::new(table.name(), weights) })
}

fn write_index(ids: &[u64], limit: u64, sink: &mut Sink<'_>) -> Result<()> {
    repr::id_index(ids, limit).try_for_each(|line| sink.put(&line))
}

/// Rows as lookups return them, including overridden rows.
fn write_rows(
    table: &Table<'_>,
    ids: &[u64],
    sink: &mut Sink<'_>,
    progress: &dyn Progress,
) -> Result<()> {
    let (mut row, mut workspace) = (zeros(table.embedding_dim())?, zeros(table.workspace_len(1))?);
    let step = Step::new(progress, &format!("{}: rows", table.name()), ids.len() as u64);
    ids.iter().try_for_each(|&id| {
        table.lookup(id, &mut row, &mut workspace)?;
        step.add(1);
        match table.data().weights() {
            Weights::Tt(tt) => sink.put(bytemuck::cast_slice(&in_stored_order(tt.shape(), &row))),
            _ => sink.put(bytemuck::cast_slice(&row)),
        }
    })
}

fn write_products(
    table: &Table<'_>,
    ids: &[u64],
    sink: &mut Sink<'_>,
    progress: &dyn Progress,
) -> Result<()> {
    let Weights::Tt(tt) = table.data().weights() else { bail!("a dense table has no prefixes") };
    let len = tt.shape().prefix_len();
    let (mut product, mut workspace) = (zeros(len)?, zeros(table.workspace_len(1))?);
    let step = Step::new(progress, &format!("{}: prefixes", table.name()), ids.len() as u64);
    ids.iter().try_for_each(|&id| {
        step.add(1);
        // Existing products are copied, so that no row changes its bits: another machine may have
        // rounded them differently.
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
