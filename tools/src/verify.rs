//! `ttrec verify`: is the blob whole, and how far is it from the checkpoint it came from?

use crate::{
    Outcome,
    blob_file::{self, BlobFile},
    checkpoint::{Checkpoint, Tensor},
    dialect::{Core, Source, Survey, Weights, table_name},
    lookup::zeros,
    output,
    progress::Progress,
    spec::{Spec, TableSpec},
};
use anyhow::{Context, Result, anyhow, bail};
use serde::Serialize;
use std::{
    io::{self, Write},
    path::PathBuf,
};
use ttrec::{
    DigitOrder, Table, TtShape,
    blob::{self, Combine},
    dtype::Dtype,
};

/// Check a blob: its checksums, and with --against its every row.
///
/// With --against, each row is rebuilt from the blob and, in double precision, from the checkpoint's numbers as f32. Printed are the
/// relative error of the table (Frobenius norm of the difference over that of the table) and the row that is furthest off
/// (norm of its difference over the root mean square norm of the table's rows).
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A blob
    blob: PathBuf,
    /// The checkpoint that it was converted from
    #[arg(long, value_name = "CHECKPOINT")]
    against: Option<PathBuf>,
    /// The spec that it was converted with; needed only where names and shapes leave a doubt
    #[arg(long, value_name = "SPEC.toml", requires = "against")]
    spec: Option<PathBuf>,
    /// Exit with 1 if a table's relative error is above E [default: by dtype, for each core: f32 1e-6, f16 2^-11, bf16 2^-8,
    /// i8 2e-2, i4 2e-1; where the blob has factors of a dense table, none but the spec's `tolerance`]
    #[arg(long, value_name = "E", requires = "against")]
    max_error: Option<f64>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    payload: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    damage: Option<String>,
    tables: Vec<TableReport>,
}

#[derive(Serialize)]
struct TableReport {
    name: String,
    dtype: &'static str,
    num_embeddings: u64,
    #[serde(flatten)]
    error: TableError,
    /// `None`: the error of a factorisation was a choice, and nobody said which.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_error: Option<f64>,
}

/// How far a table is from its source.
#[derive(Serialize)]
struct TableError {
    relative_error: f64,
    largest_row_error: f64,
    largest_row_error_at: u64,
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    let file = BlobFile::open(&args.blob)?;
    let blob = file.blob()?;
    let damage = blob_file::damage(&blob);
    let payload = if damage.is_some() { "damaged" } else { "ok" };
    let mut report = Report { payload, damage, tables: Vec::new() };

    if let (None, Some(path)) = (&report.damage, &args.against) {
        let checkpoint = Checkpoint::open(path)?;
        let spec = args.spec.as_deref().map(Spec::read).transpose()?;
        let tier = blob_file::tier()?;
        for table in blob.tables().map(|table| table.with_tier(tier)) {
            let source = match &spec {
                Some(spec) => source_by_spec(&checkpoint, spec, &table)?,
                None => source_by_shape(&checkpoint, &table)?,
            };
            let error = compare(&table, &source)?;
            report.tables.push(TableReport {
                name: table.name().to_owned(),
                dtype: table.data().dtype().name(),
                num_embeddings: table.num_embeddings(),
                error,
                max_error: args.max_error.or_else(|| default_max_error(&source, &table)),
            });
        }
    }

    output::print(|mut out| {
        if args.json {
            serde_json::to_writer_pretty(&mut out, &report)?;
            writeln!(out)
        } else {
            print(out, file.path().display(), &report)
        }
    })?;
    // Not `>`: an error that is not a number has to fail, too.
    let within = |table: &TableReport| table.max_error.is_none_or(|max| table.error.relative_error <= max);
    let good = report.damage.is_none() && report.tables.iter().all(within);
    Ok(if good { Outcome::Done } else { Outcome::Differs })
}

fn print(out: &mut dyn Write, path: std::path::Display<'_>, report: &Report) -> io::Result<()> {
    match &report.damage {
        Some(damage) => writeln!(out, "{path}: damaged: {damage}")?,
        None => writeln!(out, "{path}: every checksum matches")?,
    }
    for table in &report.tables {
        let TableError { relative_error, largest_row_error, largest_row_error_at } = table.error;
        let verdict = match table.max_error {
            Some(max) if relative_error <= max => format!("within {max:.3e}"),
            Some(max) => format!("ABOVE {max:.3e}"),
            None => "factorised; for a verdict give --max-error".to_owned(),
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

/// Rounding each core once moves a row by about the unit roundoff; i8 depends on how the values spread.
fn default_max_error(source: &Source<'_>, table: &Table<'_>) -> Option<f64> {
    let per_core = match table.data().dtype() {
        Dtype::F32 => 1e-6,
        Dtype::F16 => f64::powi(2.0, -11),
        Dtype::Bf16 => f64::powi(2.0, -8),
        Dtype::I8 => 2e-2,
        Dtype::I4 => 2e-1,
    };
    let rounding = match &table.data().weights {
        blob::Weights::Dense(_) => per_core,
        blob::Weights::Projected(_) | blob::Weights::QuotientRemainder(_) => 2.0 * per_core,
        blob::Weights::Tt(tt) => per_core * tt.shape.num_cores() as f64,
    };
    if is_factorized(source, table) {
        source.factorize.as_ref()?.tolerance().map(|tolerance| tolerance + rounding)
    } else {
        Some(rounding)
    }
}

/// Whether the blob has factors of what is a dense table in the checkpoint.
fn is_factorized(source: &Source<'_>, table: &Table<'_>) -> bool {
    let factors = matches!(table.data().weights, blob::Weights::Tt(_) | blob::Weights::Projected(_));
    factors && matches!(source.weights, Weights::Dense { .. })
}

fn source_by_spec<'c>(checkpoint: &'c Checkpoint, spec: &Spec, table: &Table<'_>) -> Result<Source<'c>> {
    for candidate in &spec.tables {
        let source = Source::open(checkpoint, candidate)?;
        if source.name == table.name() {
            return if fits(&source, table) {
                Ok(source)
            } else {
                Err(anyhow!("table {:?}: its shape in the blob is not the one of the spec", table.name()))
            };
        }
    }
    bail!("table {:?} of the blob is not in the spec", table.name())
}

/// Finds the table in the checkpoint by what the blob knows of it: the one of that name, else the only one of that shape.
fn source_by_shape<'c>(checkpoint: &'c Checkpoint, table: &Table<'_>) -> Result<Source<'c>> {
    let mut fitting: Vec<Source<'c>> = Vec::new();
    let found = Survey::of(checkpoint).tables.into_iter().chain(dense_by_name(checkpoint, table));
    // As the checkpoint has it rather than factors of what it has.
    let (as_is, dense): (Vec<_>, Vec<_>) =
        found.map(|found| (complete(found.clone(), table), before_factors(found, table))).unzip();
    for spec in as_is.into_iter().chain(dense.into_iter().flatten()) {
        let same_name = table_name(&spec).as_deref() == Some(table.name());
        let spec = TableSpec { name: Some(table.name().to_owned()), ..spec };
        let Ok(source) = Source::open(checkpoint, &spec) else { continue };
        if !fits(&source, table) {
            continue;
        }
        if same_name {
            return Ok(source);
        }
        // One tensor may have been found in two ways.
        let first = |source: &Source<'_>| source.weights.tensors()[0].name().to_owned();
        if fitting.iter().all(|other| first(other) != first(&source)) {
            fitting.push(source);
        }
    }
    let path = checkpoint.path().display();
    match fitting.len() {
        1 => fitting.pop().context("one table fits"),
        0 => bail!("{path}: nothing there fits table {:?} of the blob: give --spec", table.name()),
        n => bail!("{path}: {n} tensors fit table {:?} of the blob: give --spec", table.name()),
    }
}

/// A tensor of the table's very name, should nothing about it look like a table.
fn dense_by_name(checkpoint: &Checkpoint, table: &Table<'_>) -> Option<TableSpec> {
    checkpoint
        .tensor(table.name())
        .map(|tensor| TableSpec { tensor: Some(tensor.name().to_owned()), ..TableSpec::default() })
}

/// A found table with the facts that the blob adds.
fn complete(found: TableSpec, table: &Table<'_>) -> TableSpec {
    let data = table.data();
    let hashed = matches!(data.index_map, blob::IndexMap::Modulo);
    let facts = TableSpec {
        num_embeddings: Some(table.num_embeddings()),
        index_map: hashed.then(|| "modulo".to_owned()),
        num_rows: hashed.then_some(data.num_rows),
        dtype: Some(data.dtype()),
        ..found
    };
    match &data.weights {
        blob::Weights::Dense(_) | blob::Weights::Projected(_) => facts,
        blob::Weights::QuotientRemainder(parts) => {
            TableSpec { qr_operation: Some(parts.combine.name().to_owned()), ..facts }
        }
        blob::Weights::Tt(tt) => TableSpec {
            row_factors: Some(tt.shape.row_factors().to_vec()),
            column_factors: Some(tt.shape.column_factors().to_vec()),
            ranks: Some(tt.shape.inner_ranks().to_vec()),
            ..facts
        },
    }
}

/// A found table as the dense one that the blob may have factors of; nothing if the blob's is no such table.
fn before_factors(found: TableSpec, table: &Table<'_>) -> Option<TableSpec> {
    let data = table.data();
    let factors = matches!(data.weights, blob::Weights::Tt(_) | blob::Weights::Projected(_));
    let same_rows = matches!(data.index_map, blob::IndexMap::Identity);
    (factors && same_rows).then_some(TableSpec { dtype: Some(Dtype::F32), ..found })
}

fn fits(source: &Source<'_>, table: &Table<'_>) -> bool {
    let (weights, data) = (&source.weights, table.data());
    let same_kind = match (weights, &data.weights) {
        (Weights::Dense { .. }, blob::Weights::Dense(_)) => true,
        (Weights::Tt { shape, .. }, blob::Weights::Tt(tt)) => *shape == tt.shape,
        (Weights::Projected { rank, .. }, blob::Weights::Projected(found)) => *rank == found.rank(),
        (
            Weights::QuotientRemainder { num_remainders, combine, columns, .. },
            blob::Weights::QuotientRemainder(found),
        ) => {
            let found_columns = [found.quotients.embedding_dim, found.remainders.embedding_dim];
            (num_remainders, combine, columns) == (&found.num_remainders, &found.combine, &found_columns)
        }
        _ => is_factorized(source, table),
    };
    let same_map = source.hashed.is_some() == matches!(data.index_map, blob::IndexMap::Modulo);
    let same_rows = source.hashed.is_none() || weights.num_embeddings() == data.num_rows;
    let same_size =
        source.num_embeddings() == table.num_embeddings() && weights.embedding_dim() == table.embedding_dim();
    same_kind && same_map && same_rows && same_size
}

/// Rebuilds every row twice and sums the squares of the difference.
fn compare(table: &Table<'_>, source: &Source<'_>) -> Result<TableError> {
    let rows = table.num_embeddings();
    let mut reference = Reference::new(&source.weights)?;
    let mut ours = vec![0.0f32; table.embedding_dim()];
    let mut theirs = vec![0.0f64; table.embedding_dim()];
    let mut workspace = zeros(table.workspace_len())?;
    let mut progress = Progress::new(&format!("{}: rows", table.name()), rows);
    let (mut difference, mut norm, mut largest, mut largest_at) = (0.0, 0.0, 0.0, 0);
    for row in 0..rows {
        table.lookup(row, &mut ours, &mut workspace)?;
        reference.row(source.row_of(row), &mut theirs)?;
        let row_difference: f64 = ours.iter().zip(&theirs).map(|(&a, &b)| (f64::from(a) - b).powi(2)).sum();
        difference += row_difference;
        norm += theirs.iter().map(|x| x * x).sum::<f64>();
        if row_difference > largest || !row_difference.is_finite() {
            (largest, largest_at) = (row_difference, row);
        }
        if row % 1024 == 1023 {
            progress.add(1024);
        }
    }
    // A table of zeros has no scale of its own: its error is absolute.
    let norm = if norm > 0.0 { norm } else { 1.0 };
    Ok(TableError {
        relative_error: (difference / norm).sqrt(),
        largest_row_error: (largest / (norm / rows as f64)).sqrt(),
        largest_row_error_at: largest_at,
    })
}

/// Rows of the checkpoint in double precision: a plain matrix chain that shares nothing with the library's kernels.
enum Reference<'c> {
    Dense {
        tensor: &'c Tensor,
        buffer: Vec<f32>,
    },
    /// The projection is `embedding_dim x rank`, as in the checkpoint.
    Projected {
        tensor: &'c Tensor,
        projection: Vec<f32>,
        buffer: Vec<f32>,
    },
    QuotientRemainder {
        tensors: [&'c Tensor; 2],
        num_remainders: u64,
        combine: Combine,
        buffers: [Vec<f32>; 2],
    },
    Tt {
        shape: TtShape,
        cores: Vec<Vec<f64>>,
        overrides: Vec<(u64, Vec<f64>)>,
    },
}

impl<'c> Reference<'c> {
    fn new(weights: &Weights<'c>) -> Result<Self> {
        let (shape, cores, overrides) = match weights {
            Weights::Dense { tensor, embedding_dim, .. } => {
                return Ok(Self::Dense { tensor, buffer: zeros(*embedding_dim)? });
            }
            Weights::Projected { tensor, projection, rank, embedding_dim, .. } => {
                let mut values = zeros(rank.checked_mul(*embedding_dim).context("a projection of too many numbers")?)?;
                projection.read_f32(0, &mut values)?;
                return Ok(Self::Projected { tensor, projection: values, buffer: zeros(*rank)? });
            }
            Weights::QuotientRemainder { tensors, num_remainders, combine, columns: [first, second], .. } => {
                let buffers = [zeros(*first)?, zeros(*second)?];
                let (tensors, num_remainders) = (*tensors, u64::from(*num_remainders));
                return Ok(Self::QuotientRemainder { tensors, num_remainders, combine: *combine, buffers });
            }
            Weights::Tt { shape, cores, overrides } => (shape, cores, overrides),
        };
        let read = |tensor: &Tensor, start: u64, len: u64| -> Result<Vec<f64>> {
            let mut values = vec![0.0; usize::try_from(len)?];
            tensor.read_f32(start, &mut values)?;
            Ok(values.into_iter().map(f64::from).collect())
        };
        let columns = shape.embedding_dim() as u64;
        let cores = cores.iter().map(read_core).collect::<Result<_>>()?;
        let overrides = match overrides {
            Some(overrides) => {
                let row = |&(id, at): &(u64, u64)| Ok((id, read(overrides.tensor, at * columns, columns)?));
                overrides.ids.iter().map(row).collect::<Result<_>>()?
            }
            None => Vec::new(),
        };
        Ok(Self::Tt { shape: *shape, cores, overrides })
    }

    fn row(&mut self, row: u64, out: &mut [f64]) -> Result<()> {
        match self {
            Self::Projected { tensor, projection, buffer } => {
                tensor.read_f32(row * buffer.len() as u64, buffer)?;
                for (out, weights) in out.iter_mut().zip(projection.chunks_exact(buffer.len())) {
                    *out = buffer.iter().zip(weights).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
                }
            }
            Self::QuotientRemainder { tensors, num_remainders, combine, buffers: [first, second] } => {
                tensors[0].read_f32(row / *num_remainders * first.len() as u64, first)?;
                tensors[1].read_f32(row % *num_remainders * second.len() as u64, second)?;
                let pairs = first.iter().zip(second.iter()).map(|(&x, &y)| (f64::from(x), f64::from(y)));
                match combine {
                    Combine::Mult => out.iter_mut().zip(pairs).for_each(|(out, (x, y))| *out = x * y),
                    Combine::Add => out.iter_mut().zip(pairs).for_each(|(out, (x, y))| *out = x + y),
                    Combine::Concat => {
                        out.iter_mut().zip(first.iter().chain(second.iter())).for_each(|(out, &x)| *out = f64::from(x));
                    }
                }
            }
            Self::Dense { tensor, buffer } => {
                tensor.read_f32(row * buffer.len() as u64, buffer)?;
                out.iter_mut().zip(buffer).for_each(|(out, x)| *out = f64::from(*x));
            }
            Self::Tt { shape, cores, overrides } => {
                if let Ok(position) = overrides.binary_search_by_key(&row, |(id, _)| *id) {
                    out.copy_from_slice(&overrides[position].1);
                    return Ok(());
                }
                // The row index in mixed radix; digits come off its low end.
                let mut rest = row;
                let mut digits = vec![0; cores.len()];
                let mut take = |(digit, &p): (&mut usize, &u32)| {
                    *digit = (rest % u64::from(p)) as usize;
                    rest /= u64::from(p);
                };
                let pairs = digits.iter_mut().zip(shape.row_factors());
                match shape.digit_order() {
                    DigitOrder::MostSignificantFirst => pairs.rev().for_each(&mut take),
                    DigitOrder::LeastSignificantFirst => pairs.for_each(&mut take),
                }
                let mut x = vec![1.0];
                for (k, core) in cores.iter().enumerate() {
                    let (r, n) = (shape.rank(k), shape.column_factor(k) * shape.rank(k + 1));
                    let slice = &core[digits[k] * r * n..][..r * n];
                    let element = |i: usize| (0..r).map(|j| x[i / n * r + j] * slice[j * n + i % n]).sum();
                    x = (0..x.len() / r * n).map(element).collect();
                }
                out.copy_from_slice(&x);
            }
        }
        Ok(())
    }
}

/// A core as f64, slice after slice.
fn read_core(core: &Core<'_>) -> Result<Vec<f64>> {
    let mut slice = vec![0.0; core.slice_len()];
    let mut values = Vec::new();
    for i in 0..core.slices() {
        core.read(i, &mut slice)?;
        values.extend(slice.iter().copied().map(f64::from));
    }
    Ok(values)
}
