//! `ttrec lookup`: rows or pooled bags of one table, for a file of indices.

use crate::{
    bags_file::{BagOptions, BagsFile, Mode},
    blob_file::BlobFile,
    npz::write_npy,
    outcome::Outcome,
    output,
};
use anyhow::{Result, ensure};
use std::path::PathBuf;

/// Look up rows, or pool bags of rows.
///
/// The output is a float32 .npy array: one row per index with --mode rows, otherwise one row per
/// bag.
#[derive(clap::Args)]
#[command(after_help = "\
Files of bags:
  An npz file holds `indices`, of any integer type. One of these says where bags end:
  - `offsets`, as torch.nn.EmbeddingBag takes them: bag b is `indices[offsets[b]..offsets[b + 1]]`;
    the last offset, which is the number of indices, may be left out (include_last_offset=False);
  - `lengths`, the number of indices of each bag, as torchrec has them;
  - two dimensions of `indices`: each row is a bag.
  For --mode rows, indices are enough. With --weighted, the file also holds `weights`, one for each
  index. A .npy file holds indices only.")]
pub(crate) struct Args {
    /// A blob
    blob: PathBuf,
    /// The table
    #[arg(long, value_name = "NAME")]
    table: String,
    /// The indices, in bags
    #[arg(long, value_name = "FILE", required_unless_present = "ids")]
    bags: Option<PathBuf>,
    /// These indices, as one bag: 42,7
    #[arg(long, value_name = "INDICES", value_delimiter = ',', conflicts_with = "bags")]
    ids: Vec<u64>,
    /// How to pool the rows of a bag; an empty bag gives zeros
    #[arg(long, value_enum)]
    mode: Mode,
    /// Multiply each row by its weight; with --mode sum
    #[arg(long, conflicts_with = "ids")]
    weighted: bool,
    #[command(flatten)]
    options: BagOptions,
    /// The .npy array to write
    #[arg(short, long, value_name = "OUT.npy")]
    output: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    let bags = args.bags.as_deref();
    output::refuse_inputs(&args.output, &[&args.blob, bags.unwrap_or(&args.blob)])?;
    let file = BlobFile::open(&args.blob)?;
    let blob = file.blob()?;
    let table = file.table(&blob, &args.table)?;
    let bags = match bags {
        Some(path) => BagsFile::read(path, args.weighted, &args.options)?,
        None => BagsFile::of_ids(&args.ids),
    };
    args.options.check(&[table])?;
    let padding_idx = args.options.padding_idx(&table);
    ensure!(
        padding_idx.is_none() || args.mode != Mode::Rows,
        "--padding-idx is for bags, --mode sum, mean or max: torch.nn.Embedding looks up the row \
         of padding_idx like any other"
    );
    let bags = bags.excluding(padding_idx);
    let pooled = bags.look_up(&table, args.mode)?;

    let shape = bags.shape(&table, args.mode)?;
    write_npy(&args.output, &shape, &pooled)?;
    let extents: Vec<String> = shape.iter().map(u64::to_string).collect();
    let path = args.output.display();
    output::print(|out| writeln!(out, "{path}: {} float32", extents.join(" x ")))?;
    Ok(Outcome::Done)
}
