//! `ttrec score`: the scores of a batch of samples.

use crate::{
    bags_file::BagOptions,
    blob_file::{self, BlobFile},
    npz::write_npy,
    outcome::Outcome,
    output,
    samples::{Samples, missing},
};
use anyhow::{Context, Result, ensure};
use std::path::PathBuf;
use ttrec::{Bags, Ranker};
use ttrec_convert::zeros;

/// Score a batch of samples with a blob's model.
///
/// The npz file holds `dense` (samples x features), unless the model has no dense features, and
/// `indices_T`, `offsets_T` and optionally `weights_T` for each table T of the model, from 0 in the
/// order that `ttrec inspect` lists. Other formats of bags are those of `ttrec lookup --help`. If
/// there is `dense`, `indices_T` alone may hold one index per sample. The output is a float32 .npy
/// array: one score per sample.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A blob with a model
    blob: PathBuf,
    /// The samples
    #[arg(long, value_name = "FILE.npz")]
    batch: PathBuf,
    /// Write the scores before the sigmoid
    #[arg(long)]
    logits: bool,
    #[command(flatten)]
    options: BagOptions,
    /// The .npy array to write
    #[arg(short, long, value_name = "OUT.npy")]
    output: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    output::refuse_inputs(&args.output, &[&args.blob, &args.batch])?;
    let file = BlobFile::open(&args.blob)?;
    let blob = file.blob()?;
    let ranker = file.ranker(&blob)?;
    let samples = Samples::read(&args.batch, &ranker, args.options)?;
    let scores =
        score(&ranker, &samples, args.logits).with_context(|| samples.path().to_owned())?;
    write_npy(&args.output, &[scores.len() as u64], &scores)?;
    output::print(|out| writeln!(out, "{}: {} float32", args.output.display(), scores.len()))?;
    Ok(Outcome::Done)
}

fn score(ranker: &Ranker<'_>, samples: &Samples, logits: bool) -> Result<Vec<f32>> {
    let dense = samples.dense().context("array \"dense\" is missing")?;
    let bag = |table| samples.bags(table)?.ok_or_else(|| missing(samples.path(), ranker, table));
    let bags: Vec<Bags<'_>> = (0..ranker.num_tables()).map(bag).collect::<Result<_>>()?;
    let mut out = zeros(samples.count(ranker)?)?;
    ensure!(!out.is_empty(), "the file has no samples");
    let mut workspace = zeros(ranker.workspace_len(out.len()))?;
    if logits {
        ranker.logits(dense, &bags, &mut out, &mut workspace)?;
    } else {
        ranker.score(dense, &bags, &mut out, &mut workspace)?;
    }
    Ok(out)
}

impl BlobFile {
    pub(crate) fn ranker<'b>(&self, blob: &ttrec::Blob<'b>) -> Result<Ranker<'b>> {
        let ranker = blob.ranker().with_context(|| format!("{}", self.path().display()))?;
        Ok(ranker.with_tier(blob_file::tier()?))
    }
}
