//! The results of a sweep, as tables and plots.

use super::stored::Reports;
use crate::{
    output::Output,
    report::plot::{self, Line},
    train::{Quality, Ranking, TrainReport, config::Select},
};
use anyhow::{Result, anyhow};
use std::{fmt::Write as _, path::Path};

/// The result of one run.
pub(super) struct RunResult {
    /// The representation.
    pub(super) name: String,
    /// The representation without its sizes.
    pub(super) kind: String,
    pub(super) rate: f64,
    pub(super) seed: u64,
    /// The metric that chooses the rate.
    pub(super) select: Select,
    pub(super) report: TrainReport,
    /// The model in smaller blobs, by their budgets.
    pub(super) stored: Reports,
}

impl RunResult {
    /// Takes the report of this budget out, as a result of its own.
    pub(super) fn take_stored(&mut self, budget: &str) -> Option<Result<Self, Omitted>> {
        let name = format!("{}, stored in {budget}", self.name);
        let Self { rate, seed, select, .. } = *self;
        let kind = format!("{}, stored", self.kind);
        Some(match self.stored.remove(budget)? {
            Ok(report) => {
                Ok(Self { name, kind, rate, seed, select, report, stored: Reports::new() })
            }
            Err(reason) => Err(Omitted::new(format!("{name}, seed {seed}"), &anyhow!(reason))),
        })
    }
}

/// What the sweep left out.
pub(super) struct Omitted {
    /// A representation, or one of its runs.
    pub(super) name: String,
    pub(super) reason: String,
}

impl Omitted {
    /// Also prints the reason.
    pub(super) fn new(name: String, reason: &anyhow::Error) -> Self {
        eprintln!("ttrec: {name}: skipped: {reason:#}");
        Self { name, reason: format!("{reason:#}") }
    }
}

/// The rate with the best model on the validation split, or the first without such a split.
pub(super) fn best_rate(tuned: &[RunResult]) -> Option<f64> {
    let valid = |result: &RunResult| result.report.valid;
    let better = |best: &'_ RunResult, other: &'_ RunResult| match (valid(best), valid(other)) {
        (Some(valid), Some(other)) => other.is_better_than(&valid, best.select),
        (valid, other) => valid.is_none() && other.is_some(),
    };
    let best = tuned
        .iter()
        .reduce(|best, other| if better(best, other) { other } else { best });
    best.map(|result| result.rate)
}

/// The runs of one representation with its best rate.
struct Summary<'r> {
    name: &'r str,
    kind: &'r str,
    /// The bytes of the tables, and of dense tables of the same shapes.
    bytes: [u64; 2],
    rate: f64,
    /// Whether it is the smallest or largest rate of the sweep, so that a rate beyond it may be
    /// better. Rates with which training failed count: what is beyond them is known.
    at_the_edge: bool,
    runs: Vec<&'r TrainReport>,
}

fn summaries<'r>(results: &'r [RunResult], rates: &'r [f64]) -> impl Iterator<Item = Summary<'r>> {
    results.chunk_by(|a, b| a.name == b.name).filter_map(move |runs| {
        let first = runs.first()?;
        let tuned = runs.iter().take_while(|run| run.seed == first.seed).count();
        let rate = best_rate(&runs[..tuned])?;
        let chosen = runs.iter().filter(|run| run.rate == rate);
        Some(Summary {
            name: &first.name,
            kind: &first.kind,
            bytes: first.report.bytes,
            rate,
            at_the_edge: rates.len() > 1
                && (rates.iter().all(|&other| other >= rate)
                    || rates.iter().all(|&other| other <= rate)),
            runs: chosen.map(|run| &run.report).collect(),
        })
    })
}

/// The mean and the standard deviation of some numbers.
fn mean_and_spread(numbers: impl Iterator<Item = f64> + Clone) -> Option<(f64, f64)> {
    let count = numbers.clone().count() as f64;
    let mean = numbers.clone().sum::<f64>() / count;
    let squares: f64 = numbers.map(|number| (number - mean) * (number - mean)).sum();
    (count > 0.0).then(|| (mean, (squares / (count - 1.0).max(1.0)).sqrt()))
}

impl Summary<'_> {
    /// The mean and standard deviation of a metric on the test split, or without one on the
    /// validation split.
    fn of(&self, number: fn(&Quality) -> Option<f64>) -> Option<(f64, f64)> {
        let judged = |report: &&TrainReport| report.judged().as_ref().and_then(number);
        mean_and_spread(self.runs.iter().filter_map(judged))
    }
}

/// A table in Markdown: a row for each representation, then for each omission.
pub(super) fn table(results: &[RunResult], omitted: &[Omitted], rates: &[f64]) -> String {
    let ranks = results
        .iter()
        .any(|run| run.report.judged().is_some_and(|q| q.ranking.is_some()));
    let (names, ends) = if ranks {
        (" recall@20 | NDCG@20 |", "---:|---:|")
    } else {
        ("", "")
    };
    let mut text = format!(
        "| tables | bytes | times smaller | learning rate | seeds | AUC | log-loss | accuracy \
         |{names}\n|---|---:|---:|---:|---:|---:|---:|---:|{ends}\n",
    );
    for summary in summaries(results, rates) {
        let [bytes, dense] = summary.bytes;
        let number = |number: fn(&Quality) -> Option<f64>| match summary.of(number) {
            Some((mean, spread)) if summary.runs.len() > 1 => format!("{mean:.4} ± {spread:.4}"),
            Some((mean, _)) => format!("{mean:.4}"),
            None => "none".to_owned(),
        };
        let edge = if summary.at_the_edge { " (at the edge)" } else { "" };
        let (auc, log_loss, accuracy) =
            (number(|q| q.auc), number(|q| Some(q.log_loss)), number(|q| Some(q.accuracy)));
        let ranking = ranks.then(|| {
            let recall = number(|q| Some(q.ranking?.recall_20));
            format!(" {recall} | {} |", number(|q| Some(q.ranking?.ndcg_20)))
        });
        let ranking = ranking.unwrap_or_default();
        let _ = writeln!(
            text,
            "| {} | {bytes} | {:.1} | {}{edge} | {} | {auc} | {log_loss} | {accuracy} |{ranking}",
            summary.name,
            dense as f64 / bytes.max(1) as f64,
            summary.rate,
            summary.runs.len()
        );
    }
    for Omitted { name, reason } in omitted {
        let reason = reason.replace('|', "\\|").replace('\n', " ");
        let ends = if ranks { " | |" } else { "" };
        let _ = writeln!(text, "| {name} | skipped: {reason} | | | | | | |{ends}");
    }
    text
}

fn csv(results: &[RunResult]) -> Result<Vec<u8>> {
    let mut csv = csv::Writer::from_writer(Vec::new());
    let of_quality =
        ["auc", "log_loss", "accuracy", "calibration"].into_iter().chain(Ranking::NAMES);
    let names =
        ["tables", "bytes", "dense_bytes", "learning_rate", "seed", "epoch"].map(str::to_owned);
    let judged = ["valid", "test"]
        .iter()
        .flat_map(|split| of_quality.clone().map(move |what| format!("{split}_{what}")));
    csv.write_record(names.into_iter().chain(judged))?;
    for RunResult { name, rate, seed, report, .. } in results {
        let [bytes, dense] = report.bytes;
        let facts = [
            bytes.to_string(),
            dense.to_string(),
            rate.to_string(),
            seed.to_string(),
            report.epoch.to_string(),
        ];
        let known =
            |number: Option<f64>| number.map_or_else(String::new, |number| number.to_string());
        let numbers = [report.valid, report.test].into_iter().flat_map(|quality| {
            let of = |number: fn(Quality) -> Option<f64>| known(quality.and_then(number));
            let numbers = [
                of(|q| q.auc),
                of(|q| Some(q.log_loss)),
                of(|q| Some(q.accuracy)),
                of(|q| q.calibration),
            ];
            let ranking = Ranking::values(quality.and_then(|quality| quality.ranking));
            numbers.into_iter().chain(ranking.map(known))
        });
        csv.write_record([name.clone()].into_iter().chain(facts).chain(numbers))?;
    }
    Ok(csv.into_inner()?)
}

/// AUC, log-loss and NDCG against bytes, a line for each kind of table.
fn picture(results: &[RunResult], rates: &[f64]) -> String {
    let summaries: Vec<Summary<'_>> = summaries(results, rates).collect();
    let kinds = || {
        summaries
            .iter()
            .zip(0..)
            .filter(|(summary, at)| summaries[..*at].iter().all(|s| s.kind != summary.kind))
    };
    let lines = |number: fn(&Quality) -> Option<f64>| -> Vec<Line> {
        let line = |((summary, _), class): ((&Summary<'_>, usize), &&'static str)| {
            let alike = summaries.iter().filter(|other| other.kind == summary.kind);
            let point =
                |summary: &Summary<'_>| Some((summary.bytes[0] as f64, summary.of(number)?.0));
            let mut points: Vec<_> = alike.filter_map(point).collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            Line { name: summary.kind.to_owned(), class, points }
        };
        kinds().zip(plot::CLASSES.iter().cycle()).map(line).collect()
    };
    plot::page(&[
        plot::lines_over_bytes(&lines(|quality| quality.auc), "AUC"),
        plot::lines_over_bytes(&lines(|quality| Some(quality.log_loss)), "log-loss"),
        plot::lines_over_bytes(&lines(|quality| Some(quality.ranking?.ndcg_20)), "NDCG@20"),
    ])
}

/// Writes `results.csv`, `results.md` and `results.svg`.
pub(super) fn write(
    directory: &Path,
    results: &[RunResult],
    omitted: &[Omitted],
    rates: &[f64],
) -> Result<()> {
    let files = [
        ("results.csv", csv(results)?),
        ("results.md", table(results, omitted, rates).into_bytes()),
        ("results.svg", picture(results, rates).into_bytes()),
    ];
    for (name, bytes) in files {
        let mut output = Output::create(&directory.join(name))?;
        output.write(|out| out.write_all(&bytes))?;
        output.commit()?;
    }
    Ok(())
}
