//! `ttrec lookup`: rows or pooled bags of one table, for an npz file of indices.

use crate::{
    bags_file::{BagsFile, Mode},
    blob_file::BlobFile,
    npz::write_npy,
    outcome::Outcome,
    output,
};
use anyhow::Result;
use std::path::PathBuf;

/// Look up rows, or pool bags of rows.
///
/// The npz file holds `indices` and `offsets` in the format of torch.nn.EmbeddingBag with
/// include_last_offset=True (bag b is `indices[offsets[b]..offsets[b + 1]]`), of any integer type,
/// and with --weighted one element of `weights` per index. The output is a float32 .npy array: one
/// row per index (rows) or per bag (sum, mean, max).
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A blob
    blob: PathBuf,
    /// The table
    #[arg(long, value_name = "NAME")]
    table: String,
    /// indices, offsets and, with --weighted, weights
    #[arg(long, value_name = "FILE.npz")]
    bags: PathBuf,
    /// How to pool the rows of a bag; an empty bag gives zeros
    #[arg(long, value_enum)]
    mode: Mode,
    /// Multiply each row by its weight; with --mode sum
    #[arg(long)]
    weighted: bool,
    /// The .npy array to write
    #[arg(short, long, value_name = "OUT.npy")]
    output: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    output::refuse_inputs(&args.output, &[&args.blob, &args.bags])?;
    let file = BlobFile::open(&args.blob)?;
    let blob = file.blob()?;
    let table = file.table(&blob, &args.table)?;
    let bags = BagsFile::read(&args.bags, args.weighted)?;
    let pooled = bags.look_up(&table, args.mode)?;

    let columns = table.embedding_dim() as u64;
    let rows = pooled.len() as u64 / columns;
    write_npy(&args.output, &[rows, columns], &pooled)?;
    output::print(|out| writeln!(out, "{}: {rows} x {columns} float32", args.output.display()))?;
    Ok(Outcome::Done)
}
