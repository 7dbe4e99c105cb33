//! The training loop: epochs of steps, with checkpoints.
//!
//! The result depends only on the config and the data. A checkpoint holds the whole state of
//! training, so that a resumed run gives the same bits.

use super::{
    checkpoint::{self, Best, CurvePoint, TrainCheckpoint, TrainProgress},
    config::{Config, Select, Train},
    curves,
    metrics::{Neighbours, Quality, Scores},
    ranking,
    tables::{self, Planned},
};
use crate::{
    blob_file,
    catalogue::threads,
    data::{Batch, Dataset, Split, Unknown},
    output,
    progress::Bar,
    random::random,
};
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::{fmt, path::PathBuf};
use ttrec::{
    Bags,
    train::{self, Dlrm, DlrmSpec, Feature, LearningRates},
};

/// The files of an output directory.
#[derive(Clone, Debug)]
pub(crate) struct OutputDirectory(pub(super) PathBuf);

impl OutputDirectory {
    pub(crate) fn checkpoint(&self) -> PathBuf {
        self.0.join("checkpoint.safetensors")
    }

    pub(crate) fn best(&self) -> PathBuf {
        self.0.join("best.safetensors")
    }

    pub(crate) fn vocabulary(&self) -> PathBuf {
        self.0.join("vocabulary.csv")
    }

    pub(crate) fn frequencies(&self) -> PathBuf {
        self.0.join("frequencies.npz")
    }

    fn curves(&self, extension: &str) -> PathBuf {
        self.0.join("curves").with_extension(extension)
    }
}

/// A training run.
pub(crate) struct Learner<'d> {
    config: Config,
    dataset: &'d (dyn Dataset + Sync),
    place: OutputDirectory,
    tables: Vec<Planned>,
    model: Dlrm,
    progress: TrainProgress,
    threads: rayon::ThreadPool,
}

/// The result of a training run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct TrainReport {
    /// The bytes of the tables, and of dense tables of the same shapes.
    pub(crate) bytes: [u64; 2],
    /// The epoch, from 1, of the reported model.
    pub(crate) epoch: u32,
    pub(crate) valid: Option<Quality>,
    pub(crate) test: Option<Quality>,
}

/// The model that a config describes, and its tables.
pub(crate) fn build(config: &Config, dataset: &dyn Dataset) -> Result<(Dlrm, Vec<Planned>)> {
    ensure!(
        dataset.features().len() > 1 || dataset.dense_dim() > 0,
        "the data have one categorical column and nothing else: a model multiplies the vectors of \
         at least two columns: add one to `categorical` or `dense`"
    );
    let tables = tables::plan(&config.model, dataset.features())?;
    let optimizer = config.train.optimizer.optimizer();
    let seed = |part: u64| random(config.train.seed, part);
    let features =
        tables
            .iter()
            .zip(dataset.features())
            .zip(1..)
            .map(|((planned, feature), part)| {
                Ok(Feature {
                    table: planned.build(optimizer, seed(part))?,
                    pooling: feature.pooling,
                })
            });
    let spec = DlrmSpec {
        dense_dim: dataset.dense_dim(),
        bottom: config.model.bottom.clone(),
        top: config.model.top.clone(),
        optimizer,
        seed: seed(0),
        tier: blob_file::tier()?,
    };
    let model = Dlrm::new(&spec, features.collect::<Result<_>>()?).context("[model]")?;
    Ok((model, tables))
}

/// Calls `run` with the library's view of a batch.
fn with_view<T>(
    batch: &Batch,
    run: impl FnOnce(&train::Batch<'_>) -> Result<T, train::TrainError>,
) -> Result<T> {
    let bags = batch
        .features
        .iter()
        .map(|feature| feature.bags())
        .collect::<Result<Vec<Bags<'_>>, _>>()?;
    Ok(run(&train::Batch { dense: &batch.dense, bags: &bags })?)
}

/// Checks that a split has examples, because the metrics of none would be perfect.
fn ensure_some(found: bool, split: Split) -> Result<()> {
    let remedy = match split {
        Split::Train => "check the `train` files",
        Split::Valid => "check the `valid` files, or set a larger `valid_fraction`",
        Split::Test => "check the `test` files",
    };
    ensure!(found, "the {} split has no examples: {remedy}", split.name());
    Ok(())
}

/// The largest correlation of neighbouring labels without a warning.
const SORTED: f64 = 0.2;

/// Examples in a batch of scoring.
const SCORED: usize = 4096;

/// The scores of a split.
pub(super) struct Scored {
    pub(super) scores: Scores,
    /// A sentence about skipped rows.
    pub(super) complaint: Option<String>,
    pub(super) unknown: Vec<Unknown>,
}

/// Scores all examples of a split, and calls `each` with every batch.
pub(super) fn score(
    model: &mut Dlrm,
    dataset: &dyn Dataset,
    split: Split,
    mut each: impl FnMut(&Batch) -> Result<()>,
) -> Result<Scored> {
    let mut pass = dataset.pass(split, 0)?;
    let bar =
        Bar::new(&format!("{}: examples", split.name()), dataset.num_examples(split).unwrap_or(0));
    let (mut scores, mut batch) = (Scores::default(), Batch::default());
    loop {
        pass.next(SCORED, &mut batch)?;
        if batch.len() == 0 {
            ensure_some(!scores.labels.is_empty(), split)?;
            let (complaint, unknown) = (pass.complaint(), pass.unknown());
            return Ok(Scored { scores, complaint, unknown });
        }
        let start = scores.logits.len();
        scores.logits.resize(start + batch.len(), 0.0);
        with_view(&batch, |view| model.logits(view, &mut scores.logits[start..]))?;
        scores.labels.extend_from_slice(&batch.labels);
        each(&batch)?;
        bar.add(batch.len() as u64);
    }
}

/// The line about the unknown values of what is called `name`; empty if no column can have any.
pub(crate) fn unknown_line(name: &str, unknown: &[Unknown]) -> String {
    let shares: Vec<String> = unknown
        .iter()
        .map(|Unknown { column, share, .. }| format!("{column} {:.2} %", 100.0 * share))
        .collect();
    if shares.is_empty() {
        String::new()
    } else {
        format!("{name}: unknown values: {}\n", shares.join(", "))
    }
}

/// By how much the share of unknown values may exceed that of rare values in training.
const ALARMING: f64 = 0.25;

/// Warns of columns of which `place` has many unknown values.
pub(crate) fn warn_of_unknown(place: &str, unknown: &[Unknown]) {
    for Unknown { column, share, trained } in unknown {
        if share - trained > ALARMING {
            eprintln!(
                "ttrec: warning: {:.1} % of the values of column {column:?} in {place} are \
                 unknown: check that the files write them as the training files do (5 and 5.0 \
                 differ)",
                100.0 * share
            );
        }
    }
}

impl<'d> Learner<'d> {
    /// An untrained model.
    pub(crate) fn new(
        config: &Config,
        dataset: &'d (dyn Dataset + Sync),
        place: &OutputDirectory,
    ) -> Result<Self> {
        ensure!(
            config.train.patience.is_none() || dataset.has(Split::Valid),
            "`patience` needs a validation split: set `valid_fraction` or `valid`"
        );
        // Before the first epoch, which may take hours.
        for split in [Split::Valid, Split::Test].into_iter().filter(|&split| dataset.has(split)) {
            let mut batch = Batch::default();
            dataset.pass(split, 0)?.next(1, &mut batch)?;
            ensure_some(batch.len() > 0, split)?;
        }
        let (model, tables) = build(config, dataset)?;
        Ok(Self {
            config: config.clone(),
            dataset,
            place: place.clone(),
            tables,
            model,
            progress: TrainProgress::default(),
            threads: threads(config.train.threads)?,
        })
    }

    /// Continues from the checkpoint in the output directory.
    pub(crate) fn resume(&mut self) -> Result<()> {
        let checkpoint = TrainCheckpoint::open(&self.place.checkpoint())?;
        ensure!(
            checkpoint.facts.config.continues(&self.config),
            "{}: was trained with another config; only `epochs`, `threads` and \
             `checkpoint_every` may differ when resuming",
            self.place.checkpoint().display()
        );
        checkpoint.restore(&mut self.model, &self.tables)?;
        self.progress = checkpoint.facts.progress;
        Ok(())
    }

    /// Trains to the end and scores the test split; with `print`, prints each epoch.
    pub(crate) fn run(mut self, print: bool) -> Result<TrainReport> {
        let threads = std::mem::replace(&mut self.threads, threads(1)?);
        threads.install(|| {
            while self.progress.epoch < self.config.train.epochs && !self.has_given_up() {
                self.epoch(print)?;
            }
            self.report(print)
        })
    }

    /// Whether `patience` epochs have passed without a better model.
    fn has_given_up(&self) -> bool {
        let TrainProgress { epoch, best, .. } = &self.progress;
        let last = best.as_ref().map_or(0, |best| best.epoch);
        self.config
            .train
            .patience
            .is_some_and(|patience| epoch.saturating_sub(last) > patience)
    }

    fn rates(&self) -> LearningRates {
        let Train { learning_rate, layers_learning_rate, decay, .. } = self.config.train;
        let decayed = (0..self.progress.epoch).fold(1.0, |decayed, _| decayed * decay);
        let layers = layers_learning_rate.unwrap_or(learning_rate);
        LearningRates { layers: layers * decayed, tables: learning_rate * decayed }
    }

    /// Runs the rest of the current epoch.
    fn epoch(&mut self, print: bool) -> Result<()> {
        let Train { batch: size, checkpoint_every, seed, epochs, .. } = self.config.train;
        let (rates, epoch) = (self.rates(), self.progress.epoch);
        let dataset = self.dataset;
        let mut pass = dataset.pass(Split::Train, random(random(seed, u64::MAX), epoch.into()))?;
        let done = self.progress.step.saturating_mul(size as u64);
        let bar = Bar::new(
            &format!("epoch {} of {epochs}", epoch + 1),
            dataset.num_examples(Split::Train).unwrap_or(0),
        );
        pass.skip(done)?;
        bar.add(done);
        let (mut batch, mut neighbours) = (Batch::default(), Neighbours::default());
        loop {
            pass.next(size, &mut batch)?;
            if batch.len() == 0 {
                break;
            }
            let model = &mut self.model;
            let loss = with_view(&batch, |view| model.step(view, &batch.labels, rates))?;
            ensure!(
                loss.is_finite(),
                "the loss is {loss} in step {} of epoch {}: a smaller `learning_rate` may help",
                self.progress.step + 1,
                epoch + 1
            );
            neighbours.add(&batch.labels);
            self.progress.step += 1;
            self.progress.examples += batch.len() as u64;
            self.progress.loss += loss * batch.len() as f64;
            bar.add(batch.len() as u64);
            if checkpoint_every > 0 && self.progress.step.is_multiple_of(checkpoint_every) {
                self.point(rates.tables, None);
                self.checkpoint()?;
            }
        }
        drop(bar);
        ensure_some(self.progress.step > 0, Split::Train)?;
        let complaint = pass.complaint();
        if let Some(complaint) = complaint.filter(|_| print && epoch == 0) {
            eprintln!("ttrec: {complaint}");
        }
        if let Some(correlation) = neighbours.correlation().filter(|_| epoch == 0)
            && correlation > SORTED
        {
            eprintln!(
                "ttrec: warning: the training examples are sorted by label: neighbouring labels \
                 have a correlation of {correlation:.2}, expected about 0: shuffle the rows of \
                 the files, or raise `shuffle`"
            );
        }
        self.end_epoch(rates.tables, print)
    }

    /// Adds a point to the curve of the loss.
    fn point(&mut self, learning_rate: f64, valid: Option<Quality>) {
        let TrainProgress { epoch, step, examples, loss, points, .. } = &mut self.progress;
        // No step since the last point: a checkpoint was due at the end of the epoch.
        let loss = if *examples == 0 {
            points.last().map_or(0.0, |point| point.loss)
        } else {
            *loss / *examples as f64
        };
        points.push(CurvePoint { epoch: *epoch + 1, step: *step, learning_rate, loss, valid });
        (self.progress.examples, self.progress.loss) = (0, 0.0);
    }

    fn end_epoch(&mut self, learning_rate: f64, print: bool) -> Result<()> {
        let valid = self.quality(Split::Valid, print && self.progress.epoch == 0)?;
        self.point(learning_rate, valid);
        let select = self.config.train.select;
        let TrainProgress { epoch, step, best, points, .. } = &mut self.progress;
        (*epoch, *step) = (*epoch + 1, 0);
        let better = valid.filter(|valid| {
            best.as_ref().is_none_or(|best| valid.is_better_than(&best.quality, select))
        });
        if let Some(quality) = better {
            *best = Some(Best { epoch: *epoch, quality });
        }
        if let Some(point) = points.last().filter(|_| print) {
            output::print(|out| match &point.valid {
                Some(valid) => {
                    writeln!(out, "epoch {epoch}: loss {:.5}, validation: {valid}", point.loss)
                }
                None => writeln!(out, "epoch {epoch}: loss {:.5}", point.loss),
            })?;
        }
        // In this order: a run that resumes from the previous checkpoint writes both again.
        if better.is_some() {
            self.write(OutputDirectory::best)?;
        }
        self.checkpoint()
    }

    /// The metrics on a split, if there is one; with `print`, prints what is unknown in it.
    fn quality(&mut self, split: Split, print: bool) -> Result<Option<Quality>> {
        if !self.dataset.has(split) {
            return Ok(None);
        }
        let scored = score(&mut self.model, self.dataset, split, |_| Ok(()))?;
        if print {
            output::print(|out| write!(out, "{}", unknown_line(split.name(), &scored.unknown)))?;
        }
        if split == Split::Test || self.progress.epoch == 0 {
            warn_of_unknown(&format!("the {} split", split.name()), &scored.unknown);
        }
        let wanted = self.config.train.select == Select::Ndcg;
        let ranking = ranking::rank(&mut self.model, self.dataset, split, wanted)?;
        Ok(Some(Quality { ranking, ..scored.scores.quality() }))
    }

    fn write(&self, file: impl Fn(&OutputDirectory) -> PathBuf) -> Result<()> {
        checkpoint::write(
            &file(&self.place),
            &self.model,
            &self.tables,
            &self.config,
            &self.progress,
        )
    }

    fn checkpoint(&self) -> Result<()> {
        curves::write(&self.place.curves("csv"), &self.place.curves("svg"), &self.progress.points)?;
        self.write(OutputDirectory::checkpoint)
    }

    /// Reports on the model of the best epoch on the validation split, or of the last epoch.
    fn report(mut self, print: bool) -> Result<TrainReport> {
        if self
            .progress
            .best
            .as_ref()
            .is_some_and(|best| best.epoch != self.progress.epoch)
        {
            TrainCheckpoint::open(&self.place.best())?.restore(&mut self.model, &self.tables)?;
        }
        let test = self.quality(Split::Test, print)?;
        let TrainProgress { epoch, best, .. } = &self.progress;
        let (epoch, valid) =
            best.as_ref().map_or((*epoch, None), |best| (best.epoch, Some(best.quality)));
        let sum = |bytes: fn(&Planned) -> u64| self.tables.iter().map(bytes).sum();
        Ok(TrainReport {
            bytes: [sum(Planned::bytes), sum(Planned::dense_bytes)],
            epoch,
            valid,
            test,
        })
    }
}

impl TrainReport {
    /// The metrics on the test split, or without one on the validation split.
    pub(crate) fn judged(&self) -> Option<Quality> {
        self.test.or(self.valid)
    }
}

impl fmt::Display for Quality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { examples, auc, log_loss, accuracy, calibration, ranking } = self;
        let known = |number: &Option<f64>| {
            number.map_or_else(|| "none".to_owned(), |number| format!("{number:.5}"))
        };
        let (auc, calibration) = (known(auc), known(calibration));
        write!(
            f,
            "AUC {auc}, log-loss {log_loss:.5}, accuracy {accuracy:.5}, calibration \
             {calibration}, {examples} examples"
        )?;
        ranking.iter().try_for_each(|ranking| write!(f, "; {ranking}"))
    }
}

impl fmt::Display for TrainReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [bytes, dense] = self.bytes;
        let ratio = dense as f64 / bytes.max(1) as f64;
        write!(
            f,
            "epoch {}: tables of {bytes} bytes, {ratio:.1} times smaller than dense",
            self.epoch
        )?;
        for (what, quality) in [("validation", &self.valid), ("test", &self.test)] {
            if let Some(quality) = quality {
                write!(f, "\n{what}: {quality}")?;
            }
        }
        Ok(())
    }
}
