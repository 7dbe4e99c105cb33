//! Compares a blob's tables, row by row, and layers with their checkpoint, for `verify` and
//! `report`.
//!
//! Each row is looked up in the blob, and rebuilt from the checkpoint in double precision. Threads
//! share the rows; sums are added in the order of the rows, so that the result does not depend on
//! the number of threads.

mod distribution;
mod layers;
mod origin;
mod reference;

pub use distribution::HistogramBar;
pub use layers::{LayerComparison, layers, relative_error};
pub(crate) use layers::{layers_of, together};
pub use origin::{is_factorized, origin};
pub(crate) use reference::Reference;

use crate::{
    allocate::zeros,
    dialect::Source,
    error::Error,
    progress::{Progress, Step},
};
use anyhow::Result;
use distribution::Distribution;
use rayon::prelude::*;
use serde::Serialize;
use std::{
    cmp::Ordering,
    sync::{Mutex, PoisonError},
};
use ttrec::Table;

/// Elements that a thread rebuilds at once.
const AT_ONCE: usize = 1 << 16;
/// The number of worst rows that are kept.
const WORST: usize = 10;

/// The comparison of a table with its source. A row's error is the norm of its difference over the
/// root mean square norm of the table's rows; the table's error is the same for the whole.
#[derive(Serialize)]
pub struct Comparison {
    /// The error of the whole table.
    pub relative_error: f64,
    /// The error weighted by frequency.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weighted_relative_error: Option<f64>,
    /// The largest error of a row.
    pub largest_row_error: f64,
    /// That row.
    pub largest_row_error_at: u64,
    /// Quantiles of the rows' errors.
    pub row_error_quantiles: Quantiles,
    /// The ten rows with the largest errors, the worst first.
    pub worst_rows: Vec<WorstRow>,
    /// The root mean square norm of the rows.
    pub row_norm: f64,
    #[serde(skip)]
    distribution: Distribution,
}

/// Quantiles of the rows' errors, to within 1 %.
#[derive(Serialize)]
pub struct Quantiles {
    /// Of half the rows.
    pub median: f64,
    /// Of 90 %.
    pub p90: f64,
    /// Of 99 %.
    pub p99: f64,
    #[serde(rename = "p99.9")]
    /// Of 99.9 %.
    pub p999: f64,
}

/// A row with a large error.
#[derive(Clone, Copy, Serialize)]
pub struct WorstRow {
    /// The row.
    pub row: u64,
    /// Its error.
    pub error: f64,
    /// The row's own norm.
    pub norm: f64,
}

/// Sums of squares over some rows.
#[derive(Clone, Copy, Default)]
struct Sums {
    difference: f64,
    norm: f64,
    weighted_difference: f64,
    weighted_norm: f64,
}

/// Results that do not depend on the order of the rows.
struct Ranking<'p> {
    distribution: Distribution,
    worst: Vec<WorstRow>,
    step: Step<'p>,
}

impl Comparison {
    /// A histogram of the rows' errors in at most `count` bars.
    pub fn bars(&self, count: usize) -> Vec<HistogramBar> {
        self.distribution.bars(count, self.row_norm)
    }

    /// The number of rows that equal the checkpoint's.
    pub fn exact_rows(&self) -> u64 {
        self.distribution.zeros()
    }
}

/// Compares every row of `table` with the one of `source`; `frequencies` has the rows that occur,
/// ascending.
///
/// # Errors
/// If a row of the checkpoint cannot be read, or one of the blob cannot be looked up.
pub fn compare(
    table: &Table<'_>,
    source: &Source<'_>,
    frequencies: Option<&[(u64, f64)]>,
    progress: &dyn Progress,
) -> Result<Comparison, Error> {
    let (rows, columns) = (table.num_embeddings(), table.embedding_dim());
    let at_once = (AT_ONCE / columns + 1) as u64;
    let step = Step::new(progress, &format!("{}: rows", table.name()), rows);
    let ranking =
        Mutex::new(Ranking { distribution: Distribution::new(), worst: Vec::new(), step });
    let workspace = zeros(table.workspace_len(1))?;
    let buffers = || {
        (
            Reference::new(source),
            vec![0.0; columns],
            workspace.clone(),
            vec![0.0; at_once as usize * columns],
        )
    };
    let part = |buffers: &mut (Reference<'_, '_>, Vec<f32>, Vec<f32>, Vec<f64>),
                part: u64|
     -> Result<Sums> {
        let (reference, ours, workspace, theirs) = buffers;
        let first = part * at_once;
        let count = at_once.min(rows - first);
        let theirs = &mut theirs[..count as usize * columns];
        reference.rows(first, theirs)?;
        let mut weight = weights_from(frequencies, first);
        let mut sums = Sums::default();
        let mut compared = Vec::with_capacity(count as usize);
        for (row, theirs) in (first..).zip(theirs.chunks_exact(columns)) {
            table.lookup(row, ours, workspace)?;
            let difference: f64 =
                ours.iter().zip(theirs).map(|(&a, &b)| (f64::from(a) - b).powi(2)).sum();
            let norm: f64 = theirs.iter().map(|x| x * x).sum();
            let weight = weight(row);
            sums.add(&Sums {
                difference,
                norm,
                weighted_difference: weight * difference,
                weighted_norm: weight * norm,
            });
            compared.push(WorstRow { row, error: difference.sqrt(), norm: norm.sqrt() });
        }
        ranking.lock().unwrap_or_else(PoisonError::into_inner).add(compared);
        Ok(sums)
    };
    let parts: Vec<Sums> = (0..rows.div_ceil(at_once))
        .into_par_iter()
        .map_init(buffers, part)
        .collect::<Result<_>>()?;
    let mut sums = Sums::default();
    parts.iter().for_each(|part| sums.add(part));

    let Ranking { distribution, mut worst, .. } =
        ranking.into_inner().unwrap_or_else(PoisonError::into_inner);
    // The error of a table of zeros is absolute.
    let row_norm = if sums.norm > 0.0 {
        (sums.norm / rows as f64).sqrt()
    } else {
        1.0
    };
    worst.iter_mut().for_each(|worst| worst.error /= row_norm);
    let largest = worst[0];
    // The distribution is approximate, but the largest error is exact.
    let quantile = |share| f64::min(distribution.quantile(share) / row_norm, largest.error);
    Ok(Comparison {
        relative_error: ratio(sums.difference, sums.norm),
        weighted_relative_error: frequencies
            .map(|_| ratio(sums.weighted_difference, sums.weighted_norm)),
        largest_row_error: largest.error,
        largest_row_error_at: largest.row,
        row_error_quantiles: Quantiles {
            median: quantile(0.5),
            p90: quantile(0.9),
            p99: quantile(0.99),
            p999: quantile(0.999),
        },
        worst_rows: worst,
        row_norm,
        distribution,
    })
}

fn ratio(difference: f64, norm: f64) -> f64 {
    (difference / if norm > 0.0 { norm } else { 1.0 }).sqrt()
}

/// The frequencies of consecutive rows from `first` on.
fn weights_from(frequencies: Option<&[(u64, f64)]>, first: u64) -> impl FnMut(u64) -> f64 {
    let frequencies = frequencies.unwrap_or_default();
    let mut rest = &frequencies[frequencies.partition_point(|(row, _)| *row < first)..];
    move |row| match rest {
        [(next, frequency), after @ ..] if *next == row => {
            rest = after;
            *frequency
        }
        _ => 0.0,
    }
}

impl Sums {
    fn add(&mut self, other: &Self) {
        self.difference += other.difference;
        self.norm += other.norm;
        self.weighted_difference += other.weighted_difference;
        self.weighted_norm += other.weighted_norm;
    }
}

impl Ranking<'_> {
    fn add(&mut self, mut rows: Vec<WorstRow>) {
        self.step.add(rows.len() as u64);
        rows.iter().for_each(|row| self.distribution.add(row.error));
        if let [.., least] = self.worst[..]
            && self.worst.len() == WORST
        {
            rows.retain(|row| by_error(row, &least).is_lt());
        }
        self.worst.append(&mut rows);
        self.worst.sort_unstable_by(by_error);
        self.worst.truncate(WORST);
    }
}

/// Orders the worst first; NaN is worse than any number.
fn by_error(a: &WorstRow, b: &WorstRow) -> Ordering {
    let rank = |row: &WorstRow| if row.error.is_nan() { f64::INFINITY } else { row.error };
    rank(b).total_cmp(&rank(a)).then(a.row.cmp(&b.row))
}
