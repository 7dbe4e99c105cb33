//! The training loop: epochs of steps, with checkpoints.
//!
//! The result depends only on the config and the data. A checkpoint holds the whole state of
//! training, so that a resumed run gives the same bits.

use super::{
    checkpoint::{self, Best, CurvePoint, TrainCheckpoint, TrainProgress},
    config::{Config, Loss, MAX_BATCH, Schedule, Select, Train},
    curves, init,
    metrics::{Neighbours, Quality, Scores},
    ranking, ranks,
    tables::Planned,
};
use crate::{
    blob_file,
    catalogue::threads,
    data::{Batch, Dataset, Split, Unknown},
    output,
    progress::Bar,
    random::random,
};
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    path::{Path, PathBuf},
};
use ttrec::{
    Bags,
    blob::ModelTable,
    train::{self, Dlrm, DlrmSpec, LearningRates, Objective},
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
    /// Examples in a step.
    step_len: usize,
    /// All steps, if the schedule of the learning rates depends on them.
    num_steps: Option<u64>,
    /// From the output directory.
    data_dir: PathBuf,
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
    let tables = ranks::plan(&config.model, dataset.features())?;
    let is_early = tables.iter().any(|planned| planned.search.is_some_and(|s| s.warm_up == 0));
    ensure!(
        !is_early || config.train.init.is_some(),
        "`rank` is \"auto\" without a `warm_up`, so that the ranks would be those of drawn values: \
         set `warm_up`, or `init`"
    );
    let optimizer = config.train.optimizer.optimizer();
    let seed = |part: u64| random(config.train.seed, part);
    let built = tables
        .iter()
        .zip(1..)
        .map(|(planned, part)| planned.build(optimizer, seed(part)));
    let features = dataset.features().iter();
    let features =
        features.map(|feature| ModelTable { table: feature.table, pooling: feature.pooling });
    let spec = DlrmSpec {
        dense_dim: dataset.dense_dim(),
        bottom: config.model.bottom.clone(),
        top: config.model.top.clone(),
        optimizer,
        seed: seed(0),
        tier: blob_file::tier()?,
    };
    let features: Vec<_> = features.collect();
    let model = Dlrm::new(&spec, built.collect::<Result<_>>()?, &features).context("[model]")?;
    Ok((model.with_regularization(config.train.regularization())?, tables))
}

/// All steps of a run, if the schedule of its learning rates depends on them.
fn num_steps(config: &Config, dataset: &dyn Dataset, step_len: usize) -> Result<Option<u64>> {
    let Train { schedule, cosine_steps, .. } = config.train;
    if let (Schedule::Step, _) | (_, Some(_)) = (schedule, cosine_steps) {
        return Ok(cosine_steps.map(u64::from));
    }
    let steps = all_steps(config, dataset, step_len).context(
        "`schedule` is \"cosine\", but how many examples an epoch has is known only after it: set \
         `cosine_steps`",
    )?;
    Ok(Some(steps))
}

/// All steps of a run, if their number is known beforehand.
fn all_steps(config: &Config, dataset: &dyn Dataset, step_len: usize) -> Option<u64> {
    let examples = dataset.num_examples(Split::Train)?;
    Some(examples.div_ceil(step_len as u64).saturating_mul(config.train.epochs.into()))
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

/// Checks that the warm-up of all tables ends within these steps.
fn ensure_settled(tables: &[Planned], steps: u64) -> Result<()> {
    let warm_up = |planned: &Planned| planned.warm_up().filter(|&warm_up| warm_up >= steps);
    if let Some((Planned { name, .. }, warm_up)) =
        tables.iter().find_map(|planned| Some((planned, warm_up(planned)?)))
    {
        bail!(
            "table {name:?}: its `warm_up` is {warm_up} steps, but training has {steps}, so that \
             none follows it: lower `warm_up`, or raise `epochs`"
        );
    }
    Ok(())
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
        data_dir: &Path,
        place: &OutputDirectory,
    ) -> Result<Self> {
        let Train { batch, patience, evaluate_every, .. } = config.train;
        for (key, is_set) in
            [("patience", patience.is_some()), ("evaluate_every", evaluate_every.is_some())]
        {
            ensure!(
                !is_set || dataset.has(Split::Valid),
                "`{key}` needs a validation split: set `valid_fraction` or `valid`"
            );
        }
        let group = match config.train.loss {
            Loss::CrossEntropy => 1,
            Loss::Bpr | Loss::Softmax => dataset.group().unwrap_or(1),
        };
        let step_len = batch.checked_mul(group).filter(|&len| len <= MAX_BATCH);
        let step_len = step_len.with_context(|| {
            format!("{batch} items with {} negatives each in a step: lower `batch`", group - 1)
        })?;
        // Before the first epoch, which may take hours.
        for split in [Split::Valid, Split::Test].into_iter().filter(|&split| dataset.has(split)) {
            let mut batch = Batch::default();
            dataset.pass(split, 0)?.next(1, &mut batch)?;
            ensure_some(batch.len() > 0, split)?;
        }
        let (model, tables) = build(config, dataset)?;
        if let Some(steps) = all_steps(config, dataset, step_len) {
            ensure_settled(&tables, steps)?;
        }
        Ok(Self {
            config: config.clone(),
            dataset,
            step_len,
            num_steps: num_steps(config, dataset, step_len)?,
            data_dir: place.path_to(data_dir)?,
            place: place.clone(),
            tables,
            model,
            progress: TrainProgress::default(),
            threads: threads(config.train.threads)?,
        })
    }

    /// Takes the first values from the checkpoint of the config, if it has one.
    pub(crate) fn init(&mut self, data_dir: &Path) -> Result<()> {
        let Train { init, init_spec, .. } = &self.config.train;
        if let Some(path) = init {
            let spec = init_spec.as_ref().map(|spec| data_dir.join(spec));
            init::take(&data_dir.join(path), spec.as_deref(), &mut self.model, &self.tables)
                .context("`init`")?;
        }
        self.settle()
    }

    /// Codes the rows of tables for which this is due, and chooses ranks after a warm-up.
    fn settle(&mut self) -> Result<()> {
        let steps = self.model.steps();
        let optimizer = self.config.train.optimizer.optimizer();
        for (planned, table) in self.tables.iter_mut().zip(self.model.tables_mut()) {
            let Some(coding) = planned.coding_after(steps) else { continue };
            let count = planned.num_embeddings as usize;
            let weights = self.dataset.vocabulary().weights(&planned.name, count);
            let coded = coding.code(&mut **table, weights.as_deref(), optimizer);
            *table = Box::new(coded.with_context(|| format!("table {:?}", planned.name))?);
            if let Some(coded) = planned.coded() {
                *planned = coded;
            }
        }
        if self
            .tables
            .iter()
            .any(|planned| planned.search.is_some_and(|s| s.warm_up == steps))
        {
            ranks::choose(&mut self.tables, self.model.tables_mut(), optimizer)
                .context("`rank = \"auto\"`")?;
        }
        Ok(())
    }

    /// Continues from the checkpoint in the output directory.
    pub(crate) fn resume(&mut self) -> Result<()> {
        let checkpoint = TrainCheckpoint::open(&self.place.checkpoint())?;
        ensure!(
            checkpoint.facts.config.continues(&self.config),
            "{}: was trained with another config; only `threads` and `checkpoint_every` may differ \
             when resuming, and `epochs` unless a cosine schedule depends on it",
            self.place.checkpoint().display()
        );
        checkpoint.restore(&mut self.model, &mut self.tables)?;
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

    /// Whether `patience` evaluations have passed without a better model.
    fn has_given_up(&self) -> bool {
        let TrainProgress { evaluations, best, .. } = &self.progress;
        let last = best.as_ref().map_or(0, |best| best.evaluation);
        self.config
            .train
            .patience
            .is_some_and(|patience| evaluations.saturating_sub(last) >= patience.get())
    }

    /// The learning rates of the next step.
    fn rates(&self) -> LearningRates {
        self.config.train.rates(self.model.steps(), self.progress.epoch, self.num_steps)
    }

    /// Whether an evaluation within the epoch follows its last step.
    fn is_evaluated(&self) -> bool {
        let every = self.config.train.evaluate_every;
        every.is_some_and(|every| self.progress.step.is_multiple_of(every.get()))
    }

    /// Takes a step.
    fn step(&mut self, batch: &mut Batch) -> Result<f64> {
        let Train { loss, label_smoothing, .. } = self.config.train;
        let (rates, group) = (self.rates(), self.dataset.group().unwrap_or(1));
        if label_smoothing > 0.0 {
            let smoothed =
                |y: f32| (f64::from(y) * (1.0 - label_smoothing) + label_smoothing / 2.0) as f32;
            batch.labels.iter_mut().for_each(|y| *y = smoothed(*y));
        }
        let Batch { labels, weights, log_frequencies, features, .. } = &*batch;
        let ids = features.get(1).map_or(&[][..], |items| &items.indices);
        let objective = match loss {
            Loss::CrossEntropy => Objective::CrossEntropy { labels, weights },
            Loss::Bpr => Objective::Bpr { group },
            Loss::Softmax if group == 1 => Objective::InBatch { ids, log_frequencies },
            Loss::Softmax => Objective::Softmax { group, log_frequencies },
        };
        let model = &mut self.model;
        with_view(batch, |view| model.minimize(view, &objective, rates))
    }

    /// Runs the rest of the current epoch, or until training gives up.
    fn epoch(&mut self, print: bool) -> Result<()> {
        let Train { checkpoint_every, seed, epochs, .. } = self.config.train;
        let (size, epoch) = (self.step_len, self.progress.epoch);
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
            neighbours.add(&batch.labels);
            let loss = self.step(&mut batch)?;
            ensure!(
                loss.is_finite(),
                "the loss is {loss} in step {} of epoch {}: a smaller `learning_rate` may help",
                self.progress.step + 1,
                epoch + 1
            );
            self.settle()?;
            self.progress.step += 1;
            for losses in [&mut self.progress.since_point, &mut self.progress.of_epoch] {
                losses.add(batch.len() as u64, loss);
            }
            bar.add(batch.len() as u64);
            if self.is_evaluated() {
                self.evaluate(print)?;
                self.checkpoint()?;
                if self.has_given_up() {
                    return Ok(());
                }
            } else if checkpoint_every > 0 && self.progress.step.is_multiple_of(checkpoint_every) {
                self.point(None);
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
        self.end_epoch(print)
    }

    /// Adds a point to the curve of the loss.
    fn point(&mut self, valid: Option<Quality>) {
        // That of the last step.
        let (step, epoch) = (self.model.steps().saturating_sub(1), self.progress.epoch);
        let learning_rate = self.config.train.rates(step, epoch, self.num_steps).tables;
        let TrainProgress { step, since_point, points, .. } = &mut self.progress;
        // No step since the last point: a checkpoint was due at the end of the epoch.
        let before = points.last().map_or(0.0, |point| point.loss);
        let loss = since_point.take().unwrap_or(before);
        points.push(CurvePoint { epoch: epoch + 1, step: *step, learning_rate, loss, valid });
    }

    /// Evaluates the model on the validation split, if there is one, and writes it if it is the
    /// best. A checkpoint must follow: a run that resumes from the previous one does all this
    /// again.
    ///
    /// While the warm-up of a table lasts, no model is the best one.
    fn evaluate(&mut self, print: bool) -> Result<()> {
        let is_first = self.is_first_evaluation();
        let valid = self.quality(Split::Valid, print && is_first)?;
        self.point(valid);
        let select = self.config.train.select();
        let TrainProgress { epoch, step, evaluations, best, .. } = &mut self.progress;
        let Some(quality) = valid else { return Ok(()) };
        let is_settled = self.tables.iter().all(|planned| planned.warm_up().is_none());
        *evaluations += u32::from(is_settled);
        if print && self.config.train.evaluate_every.is_some() {
            output::print(|out| {
                writeln!(out, "epoch {}, step {step}: validation: {quality}", *epoch + 1)
            })?;
        }
        if is_settled
            && best.as_ref().is_none_or(|best| quality.is_better_than(&best.quality, select))
        {
            *best = Some(Best { epoch: *epoch + 1, evaluation: *evaluations, quality });
            self.write(OutputDirectory::best)?;
        }
        Ok(())
    }

    /// Whether no model was evaluated yet.
    fn is_first_evaluation(&self) -> bool {
        self.progress.points.iter().all(|point| point.valid.is_none())
    }

    fn end_epoch(&mut self, print: bool) -> Result<()> {
        if !self.is_evaluated() {
            self.evaluate(print)?;
        }
        let TrainProgress { epoch, step, of_epoch, points, .. } = &mut self.progress;
        (*epoch, *step) = (*epoch + 1, 0);
        let loss = of_epoch.take().unwrap_or_default();
        if let Some(point) = points.last().filter(|_| print) {
            output::print(|out| match &point.valid {
                Some(valid) => writeln!(out, "epoch {epoch}: loss {loss:.5}, validation: {valid}"),
                None => writeln!(out, "epoch {epoch}: loss {loss:.5}"),
            })?;
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
        if split == Split::Test || self.is_first_evaluation() {
            warn_of_unknown(&format!("the {} split", split.name()), &scored.unknown);
        }
        let wanted = self.config.train.select() == Select::Ndcg;
        let ranking = ranking::rank(&mut self.model, self.dataset, split, wanted)?;
        Ok(Some(Quality { ranking, ..scored.scores.quality() }))
    }

    fn write(&self, file: impl Fn(&OutputDirectory) -> PathBuf) -> Result<()> {
        checkpoint::write(
            &file(&self.place),
            &self.model,
            &self.tables,
            (&self.config, &self.data_dir),
            &self.progress,
        )
    }

    fn checkpoint(&self) -> Result<()> {
        curves::write(&self.place.curves("csv"), &self.place.curves("svg"), &self.progress.points)?;
        self.write(OutputDirectory::checkpoint)
    }

    /// Reports on the model that is best on the validation split, or on the last one.
    fn report(mut self, print: bool) -> Result<TrainReport> {
        ensure_settled(&self.tables, self.model.steps())?;
        if self
            .progress
            .best
            .as_ref()
            .is_some_and(|best| best.evaluation != self.progress.evaluations)
        {
            TrainCheckpoint::open(&self.place.best())?
                .restore(&mut self.model, &mut self.tables)?;
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
