//! `ttrec topk`: the rows of a table with the largest products with each query.

use crate::{
    bags_file::{BagOptions, BagsFile, Mode},
    blob_file::BlobFile,
    catalogue::{Catalogue, threads},
    npz::Npz,
    outcome::Outcome,
    output,
    progress::Bar,
};
use anyhow::{Context, Result, bail, ensure};
use std::{
    ops::Range,
    path::{Path, PathBuf},
};
use ttrec::{Table, repr::Weights};
use ttrec_convert::{Checkpoint, zeros};

/// Find the rows of a table that have the largest inner products with each query.
///
/// The search is exact: it scores all rows. Of rows with equal scores, the one with the smaller
/// index comes first. OUT.npz holds `indices` (int64) and `scores` (float32), queries x K, the best
/// first. If --exclude leaves fewer than K rows, the places after them have index -1 and score
/// -inf.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A blob
    blob: PathBuf,
    /// The table
    #[arg(long, value_name = "NAME")]
    table: String,
    /// The queries: an array of queries x columns of the table
    #[arg(long, value_name = "Q.npy")]
    queries: PathBuf,
    /// How many rows to find for each query
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..))]
    k: u32,
    /// Indices to leave out: a bag for each query, in the formats of `ttrec lookup`
    #[arg(long, value_name = "FILE.npz")]
    exclude: Option<PathBuf>,
    /// Threads to search with; they do not change the result
    #[arg(long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: u16,
    /// Add a bias to the score of each row: the row of the same index in this dense table of one
    /// column
    #[arg(long, value_name = "TABLE")]
    bias: Option<String>,
    /// The npz file to write
    #[arg(short, long, value_name = "OUT.npz")]
    output: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    let inputs = [&args.blob, &args.queries].into_iter().chain(&args.exclude);
    output::refuse_inputs(&args.output, &inputs.map(PathBuf::as_path).collect::<Vec<_>>())?;
    let file = BlobFile::open(&args.blob)?;
    let blob = file.blob()?;
    let table = file.table(&blob, &args.table)?;
    let (k, rows) = (args.k as usize, table.num_embeddings());
    ensure!(k as u64 <= rows, "--k {k}: table {:?} has {rows} rows", table.name());
    let bias = match &args.bias {
        Some(name) => {
            let bias = file.table(&blob, name)?;
            let (found, columns) = (bias.num_embeddings(), bias.embedding_dim());
            ensure!(
                columns == 1 && found == rows && matches!(bias.data().weights(), Weights::Dense(_)),
                "--bias {name:?}: the table has {found} rows of {columns} columns: expected a \
                 dense table of {rows} rows of 1 column"
            );
            Some(bias)
        }
        None => None,
    };
    let queries = read_queries(&args.queries, &table)?;
    let count = queries.len() / table.embedding_dim();
    let excluded = match &args.exclude {
        Some(path) => Lists::read(path, &table, count)?,
        None => Lists::default(),
    };

    let known = |query: usize, out: &mut Vec<u64>| out.extend_from_slice(excluded.list(query));
    let catalogue = Catalogue { table, k, bias, known };
    let bar = Bar::new("queries", count as u64);
    let best = threads(args.threads.into())?.install(|| catalogue.best(&queries, &bar));
    drop(bar);
    let best = best.with_context(|| format!("{}: table {:?}", args.blob.display(), args.table))?;

    let shape = [count as u64, k as u64];
    let indices: Vec<i64> = best.iter().map(|found| found.index.cast_signed()).collect();
    let scores: Vec<f32> = best.iter().map(|found| found.score).collect();
    let mut npz = Npz::new();
    npz.add("indices", &shape, &indices)?;
    npz.add("scores", &shape, &scores)?;
    npz.write(&args.output)?;
    let path = args.output.display();
    output::print(|out| writeln!(out, "{path}: indices and scores, {count} x {k}"))?;
    Ok(Outcome::Done)
}

/// Reads queries x columns of the table, all finite.
fn read_queries(path: &Path, table: &Table<'_>) -> Result<Vec<f32>> {
    let (file, place) = (Checkpoint::open(path)?, path.display());
    let mut arrays = file.tensors();
    let (Some(array), None) = (arrays.next(), arrays.next()) else {
        bail!("{place}: expected one array, of queries x columns");
    };
    let (shape, columns) = (array.shape(), table.embedding_dim());
    ensure!(
        matches!(shape, [_, found] if *found == columns as u64),
        "{place}: the array has shape {shape:?}: expected queries x {columns}, the columns of \
         table {:?}",
        table.name()
    );
    let mut queries = zeros(usize::try_from(array.len())?)?;
    array.read_f32(0, &mut queries)?;
    ensure!(!queries.is_empty(), "{place}: the file has no queries");
    if let Some(position) = queries.iter().position(|value| !value.is_finite()) {
        let (query, column) = (position / columns, position % columns);
        let value = queries[position];
        bail!(
            "{place}: column {column} of query {query} is {value} in f32: expected a finite number"
        );
    }
    Ok(queries)
}

/// Sorted lists of indices; without any, every list is empty.
#[derive(Default)]
struct Lists {
    indices: Vec<u64>,
    ranges: Vec<Range<usize>>,
}

impl Lists {
    fn list(&self, at: usize) -> &[u64] {
        self.ranges.get(at).map_or(&[], |range| &self.indices[range.clone()])
    }

    /// Reads `count` bags of indices of `table`.
    fn read(path: &Path, table: &Table<'_>, count: usize) -> Result<Self> {
        let (file, place) = (Checkpoint::open(path)?, path.display());
        let names = ["indices", "offsets", "lengths", "weights"];
        let bags = BagsFile::of(&file, names, false, &BagOptions::default(), Some(count))?;
        let found = bags.all().with_context(|| place.to_string())?.len();
        ensure!(found == count, "{place}: has {found} bags: expected {count}, one for each query");
        let (mut indices, rows) = (bags.indices().to_vec(), table.num_embeddings());
        if let Some(position) = indices.iter().position(|&index| index >= rows) {
            bail!(
                "{place}: table {:?}: index {} at position {position}: the table has {rows} rows",
                table.name(),
                indices[position]
            );
        }
        let offsets = bags.offsets(Mode::Sum)?;
        let range = |ends: &[u64]| Ok(usize::try_from(ends[0])?..usize::try_from(ends[1])?);
        let ranges = offsets.windows(2).map(range).collect::<Result<Vec<_>>>()?;
        for range in &ranges {
            indices[range.clone()].sort_unstable();
        }
        Ok(Self { indices, ranges })
    }
}
