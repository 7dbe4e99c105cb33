//! Product quantisation: the columns of a row are shared out among the books, and each book codes
//! its own.

use super::{
    Shape,
    k_means::{Clusters, Points},
    rotation::{Directions, nearest_rotation, rotated},
    training::Training,
};
use crate::progress::Step;
use anyhow::Result;
use rayon::prelude::*;

/// Improvements of the books before the first new rotation.
const FIRST: usize = 4;
/// New rotations, each followed by one improvement of the books.
const ROTATIONS: usize = 4;
/// Improvements of the books after the last rotation.
const LAST: usize = 8;
/// All improvements.
pub(super) const STEPS: usize = FIRST + ROTATIONS + LAST;

/// Books, and the rotation of the rows that they code.
pub(super) struct Learned {
    /// `dim x rank`, column-major.
    pub(super) rotation: Option<Vec<f32>>,
    /// The entries of each book, as wide as its columns.
    pub(super) books: Vec<Vec<f32>>,
}

pub(super) fn learn(
    training: &Training,
    directions: Option<&Directions>,
    shape: &Shape,
    step: &Step<'_>,
) -> Result<Learned> {
    let widths = shape.widths();
    let mut rotation =
        directions.map(|directions| directions.deal(&widths, shape.bits)).transpose()?;
    let mut columns = columns_of(training, rotation.as_deref());
    let mut clusters: Vec<Clusters> = of_books(training, &columns, &widths)
        .enumerate()
        .map(|(book, points)| points.start(shape.book_len(), book as u64))
        .collect();
    let rotations = if rotation.is_some() { ROTATIONS } else { 0 };
    for at in 0..STEPS {
        if (FIRST..FIRST + rotations).contains(&at) {
            decode(training.count, &clusters, &mut columns);
            let next = nearest_rotation(training, &columns)?;
            columns = rotated(training, &next);
            rotation = Some(next);
        }
        of_books(training, &columns, &widths)
            .zip(&mut clusters)
            .for_each(|(points, clusters)| points.improve(clusters));
        step.add(1);
    }
    let books = clusters.into_iter().map(|clusters| clusters.entries).collect();
    Ok(Learned { rotation, books })
}

/// The columns of each book.
fn of_books<'t>(
    training: &'t Training,
    mut columns: &'t [f32],
    widths: &[usize],
) -> impl IndexedParallelIterator<Item = Points<'t>> {
    let count = training.count;
    let points = widths.iter().map(|width| {
        let (of_book, rest) = columns.split_at(width * count);
        columns = rest;
        Points { columns: of_book, count, weights: training.weights.as_deref() }
    });
    points.collect::<Vec<_>>().into_par_iter()
}

/// Writes the entry of each point into `columns`.
fn decode(count: usize, clusters: &[Clusters], mut columns: &mut [f32]) {
    let mut parts = Vec::new();
    for clusters in clusters {
        let (of_book, rest) = columns.split_at_mut(clusters.width * count);
        columns = rest;
        parts.push((clusters, of_book));
    }
    parts.into_par_iter().for_each(|(clusters, columns)| {
        for (at, column) in columns.chunks_exact_mut(count).enumerate() {
            for (x, &code) in column.iter_mut().zip(&clusters.codes) {
                *x = clusters.entries[usize::from(code) * clusters.width + at];
            }
        }
    });
}

/// The rows times the rotation, if there is one: one column after another.
pub(super) fn columns_of(training: &Training, rotation: Option<&[f32]>) -> Vec<f32> {
    if let Some(rotation) = rotation {
        return rotated(training, rotation);
    }
    let mut columns = vec![0.0; training.values.len()];
    columns
        .par_chunks_exact_mut(training.count)
        .enumerate()
        .for_each(|(at, column)| {
            let values = training.values[at..].iter().step_by(training.dim);
            column.iter_mut().zip(values).for_each(|(x, &value)| *x = value);
        });
    columns
}
