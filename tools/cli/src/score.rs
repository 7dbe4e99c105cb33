//! `ttrec score`: the scores of a batch of samples.

use crate::{
    bags_file::BagOptions,
    blob_file::{self, BlobFile},
    expected,
    npz::write_npy,
    outcome::Outcome,
    output,
    rows_file::RowsOptions,
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
/// the file has `dense`, `indices_T` may hold one index per sample, without `offsets_T`. The output
/// is a float32 .npy array: one score per sample.
///
/// With --data and --vocabulary, the samples are rows in the format of the data that `ttrec train`
/// learned from, and are encoded in the same way.
///
/// --against proves that the model is the one that was trained, including the order of the tables,
/// the pooling and the layers.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A blob with a model
    blob: PathBuf,
    /// The samples
    #[arg(
        long,
        value_name = "FILE.npz",
        required_unless_present = "data",
        conflicts_with = "data"
    )]
    batch: Option<PathBuf>,
    #[command(flatten)]
    rows: RowsOptions,
    /// Write the scores before the sigmoid
    #[arg(long)]
    logits: bool,
    #[command(flatten)]
    options: BagOptions,
    /// Compare the scores with these, which the training program computed for the same samples:
    /// one number for each
    #[arg(long, value_name = "EXPECTED.npy")]
    against: Option<PathBuf>,
    /// With --against, exit with code 1 if a score differs by more than E
    #[arg(long, value_name = "E", requires = "against", default_value_t = expected::MAX_ERROR)]
    max_error: f64,
    /// The .npy array to write
    #[arg(short, long, value_name = "OUT.npy", required_unless_present = "against")]
    output: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    if let Some(output) = &args.output {
        let inputs = [&args.blob].into_iter().chain(&args.batch).chain(&args.against);
        let inputs = inputs.map(PathBuf::as_path).chain(args.rows.inputs());
        output::refuse_inputs(output, &inputs.collect::<Vec<_>>())?;
    }
    let file = BlobFile::open(&args.blob)?;
    let blob = file.blob()?;
    let ranker = file.ranker(&blob)?;
    let (scores, samples) = match &args.batch {
        Some(batch) => {
            let samples = Samples::read(batch, &ranker, &args.options)?;
            let scores =
                score(&ranker, &samples, args.logits).with_context(|| samples.path().to_owned())?;
            (scores, samples.path().to_owned())
        }
        None => (args.rows.score(&ranker, args.logits)?, "--data".to_owned()),
    };
    if let Some(output) = &args.output {
        write_npy(output, &[scores.len() as u64], &scores)?;
        output::print(|out| writeln!(out, "{}: {} float32", output.display(), scores.len()))?;
    }
    match &args.against {
        Some(path) => {
            let scores = (&scores[..], samples.as_str());
            expected::compare(&ranker, scores, args.logits, path, args.max_error)
        }
        None => Ok(Outcome::Done),
    }
}

/// The scores of the samples, or their logits.
pub(crate) fn score(ranker: &Ranker<'_>, samples: &Samples, logits: bool) -> Result<Vec<f32>> {
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
