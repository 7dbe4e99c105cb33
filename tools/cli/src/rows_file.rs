//! Rows in the format of training data, encoded as training encoded them, and scored.

use crate::{
    data::{Batch, Dataset, Pass, Split, Vocabulary},
    output,
    progress::Bar,
    train::{self, OutputDirectory, TrainCheckpoint},
};
use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use ttrec::{Bags, Ranker};
use ttrec_convert::zeros;

/// The rows to score.
#[derive(clap::Args)]
pub(crate) struct RowsOptions {
    /// Instead of --batch: files of rows in the format of the training data, with or without labels
    #[arg(long, value_name = "FILE", num_args = 1.., requires = "vocabulary")]
    data: Vec<PathBuf>,
    /// The vocabulary.csv of `ttrec train`; the checkpoint in the same directory says how columns
    /// are encoded
    #[arg(long, value_name = "FILE.csv", requires = "data")]
    vocabulary: Option<PathBuf>,
}

/// Rows that are scored at once.
const ROWS: usize = 4096;

impl RowsOptions {
    pub(crate) fn inputs(&self) -> impl Iterator<Item = &Path> {
        self.data.iter().chain(&self.vocabulary).map(PathBuf::as_path)
    }

    /// Scores the rows, and prints the share of unknown values.
    pub(crate) fn score(&self, ranker: &Ranker<'_>, logits: bool) -> Result<Vec<f32>> {
        let path = self.vocabulary.as_ref().context("--data needs --vocabulary")?;
        let beside = OutputDirectory::of(path);
        let config = TrainCheckpoint::open(&beside.checkpoint())
            .context("--vocabulary needs the checkpoint of its run")?
            .facts
            .config;
        ensure!(
            !config.data.is_of_items(),
            "{}: is of interactions or sessions, whose negatives are drawn: score indices with \
             --batch",
            path.display()
        );
        let dataset = config.data.open_files(self.data.clone(), Vocabulary::read(path)?)?;
        ensure_same(&*dataset, ranker, path)?;

        let mut pass = dataset.pass(Split::Test, 0)?;
        let bar = Bar::new("rows", 0);
        let scores = score_pass(&mut *pass, ranker, logits, &bar, |_| ())?;
        drop(bar);
        if let Some(complaint) = pass.complaint() {
            bail!("{complaint}\nevery row needs a score");
        }
        ensure!(!scores.is_empty(), "{}: has no rows", self.data[0].display());
        let unknown = pass.unknown();
        train::warn_of_unknown("the data", &unknown);
        output::print(|out| write!(out, "{}", train::unknown_line("data", &unknown)))?;
        Ok(scores)
    }
}

/// Scores the rest of a pass, and calls `each` with every batch.
pub(crate) fn score_pass(
    pass: &mut dyn Pass,
    ranker: &Ranker<'_>,
    logits: bool,
    bar: &Bar,
    mut each: impl FnMut(&Batch),
) -> Result<Vec<f32>> {
    let (mut scores, mut batch, mut workspace) = (Vec::new(), Batch::default(), Vec::new());
    loop {
        pass.next(ROWS, &mut batch)?;
        if batch.len() == 0 {
            return Ok(scores);
        }
        let bags = batch.features.iter().map(|feature| feature.bags());
        let bags: Vec<Bags<'_>> = bags.collect::<Result<_, _>>()?;
        let start = scores.len();
        scores.resize(start + batch.len(), 0.0);
        let (out, needed) = (&mut scores[start..], ranker.workspace_len(batch.len()));
        if workspace.len() < needed {
            workspace = zeros(needed)?;
        }
        if logits {
            ranker.logits(&batch.dense, &bags, out, &mut workspace)?;
        } else {
            ranker.score(&batch.dense, &bags, out, &mut workspace)?;
        }
        each(&batch);
        bar.add(batch.len() as u64);
    }
}

/// Checks that the data have the features of the model.
pub(crate) fn ensure_same(dataset: &dyn Dataset, ranker: &Ranker<'_>, path: &Path) -> Result<()> {
    let features = dataset.features().iter();
    let wanted: Vec<_> = features.map(|f| (&*f.name, u64::from(f.num_embeddings))).collect();
    let found: Vec<_> = ranker.tables().map(|t| (t.name(), t.num_embeddings())).collect();
    let differs = found.iter().zip(&wanted).find(|(found, wanted)| found != wanted);
    let place = path.display();
    if let Some(((name, rows), (wanted_name, wanted_rows))) = differs {
        bail!(
            "{place}: has {wanted_rows} categories of {wanted_name:?}, but the blob's table there \
             is {name:?} of {rows} rows: expected the vocabulary of the blob's training run"
        );
    }
    let (found, wanted) = (found.len(), wanted.len());
    ensure!(
        found == wanted,
        "{place}: has {wanted} features, but the model of the blob takes {found}"
    );
    let (found, wanted) = (ranker.num_dense(), dataset.dense_dim());
    ensure!(
        found == wanted,
        "{place}: its run has {wanted} dense features, but the blob has {found}"
    );
    Ok(())
}
