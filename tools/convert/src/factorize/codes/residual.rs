//! Residual quantisation: an entry of each book is added up to a row. Each book is first learned
//! from what the books before it leave; then codes and books are improved in turn, the codes by a
//! beam search, the books by least squares, one after another.

use super::{
    Shape,
    k_means::{Clusters, Points},
    product::{Learned, columns_of},
    rotation::Directions,
    sums::Sums,
    training::Training,
};
use crate::progress::Step;
use anyhow::Result;
use rayon::prelude::*;

/// Improvements of each book while it is learned.
const FIRST: usize = 8;
/// Improvements of all codes and books.
const ROUNDS: usize = 6;

/// The steps of learning.
pub(super) fn steps(shape: &Shape) -> usize {
    shape.books + ROUNDS
}

pub(super) fn learn(
    training: &Training,
    directions: Option<&Directions>,
    shape: &Shape,
    step: &Step<'_>,
) -> Result<Learned> {
    let (count, rank, books) = (training.count, shape.rank, shape.books);
    let rotation = directions.map(|directions| directions.deal(&[rank], shape.bits)).transpose()?;
    let columns = columns_of(training, rotation.as_deref());
    let rows: Vec<f32> = (0..count * rank)
        .into_par_iter()
        .map(|at| columns[at % rank * count + at / rank])
        .collect();
    let mut rest = columns;
    let mut learned = Vec::new();
    for book in 0..books {
        let points = points(training, &rest);
        let mut clusters = points.start(shape.book_len(), book as u64);
        (0..FIRST).for_each(|_| points.improve(&mut clusters));
        subtract(&mut rest, count, &clusters.entries, &clusters.codes);
        learned.push(clusters);
        step.add(1);
    }
    for _ in 0..ROUNDS {
        let entries: Vec<f32> = learned.iter().flat_map(|book| &book.entries).copied().collect();
        let codes = Sums::new(shape, &entries).encode(&rows);
        let all = rest.par_chunks_exact_mut(count).enumerate();
        all.for_each(|(column, rest)| {
            for (at, (rest, codes)) in rest.iter_mut().zip(codes.chunks_exact(books)).enumerate() {
                let entry = |(book, &code): (&Clusters, &u16)| {
                    book.entries[usize::from(code) * rank + column]
                };
                *rest =
                    rows[at * rank + column] - learned.iter().zip(codes).map(entry).sum::<f32>();
            }
        });
        for (book, clusters) in learned.iter_mut().enumerate() {
            let of_book = codes[book..].iter().step_by(books);
            clusters.codes.iter_mut().zip(of_book).for_each(|(to, &code)| *to = code);
            let points = points(training, &rest);
            let (mut change, masses) = points.means(&clusters.codes, shape.book_len());
            let unused = change.chunks_exact_mut(rank).zip(masses).filter(|(_, mass)| *mass <= 0.0);
            unused.for_each(|(change, _)| change.fill(0.0));
            subtract(&mut rest, count, &change, &clusters.codes);
            clusters.entries.iter_mut().zip(change).for_each(|(x, change)| *x += change);
        }
        step.add(1);
    }
    let books = learned.into_iter().map(|clusters| clusters.entries).collect();
    Ok(Learned { rotation, books })
}

fn points<'t>(training: &'t Training, columns: &'t [f32]) -> Points<'t> {
    Points { columns, count: training.count, weights: training.weights.as_deref() }
}

/// Subtracts from each point the entry of its code.
fn subtract(columns: &mut [f32], count: usize, entries: &[f32], codes: &[u16]) {
    let width = columns.len() / count;
    columns.par_chunks_exact_mut(count).enumerate().for_each(|(at, column)| {
        let pairs = column.iter_mut().zip(codes);
        pairs.for_each(|(x, &code)| *x -= entries[usize::from(code) * width + at]);
    });
}
