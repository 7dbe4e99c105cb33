//! Residual quantisation: an entry of each book is added up to a row. Each book is first learned
//! from what the books before it leave; then codes and books are improved in turn, the codes by a
//! beam search, the books by least squares, one after another.

use super::{
    Shape,
    k_means::{Clusters, Points},
    product::{Learned, columns_of},
    rotation::Directions,
    training::Training,
};
use crate::{
    matrix::{View, multiply},
    progress::Step,
};
use anyhow::Result;
use rayon::prelude::*;

/// Improvements of each book while it is learned.
const FIRST: usize = 8;
/// Improvements of all codes and books.
const ROUNDS: usize = 6;
/// Sums that the search keeps after each book.
const BEAM: usize = 8;
/// Rows that one thread codes at once.
const CHUNK: usize = 256;

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

/// Books whose entries are added, ready to code rows.
pub(super) struct Sums {
    book_len: usize,
    rank: usize,
    /// All entries, one book after another.
    entries: Vec<f32>,
    /// Half of the squared norm of each entry.
    halves: Vec<f32>,
    /// The product of each entry with every other.
    products: Vec<f32>,
}

/// A sum of entries: half of its squared distance from the row, without the row's norm, and codes.
#[derive(Clone)]
struct Sum {
    distance: f32,
    codes: Vec<u16>,
}

impl Sums {
    pub(super) fn new(shape: &Shape, entries: &[f32]) -> Self {
        let count = shape.books * shape.book_len();
        let matrix = View::row_major(entries, shape.rank);
        let mut products = vec![0.0; count * count];
        multiply(matrix, matrix.transpose(), &mut products);
        let half = |entry: &[f32]| entry.iter().map(|x| x * x).sum::<f32>() / 2.0;
        Self {
            book_len: shape.book_len(),
            rank: shape.rank,
            entries: entries.to_vec(),
            halves: entries.chunks_exact(shape.rank).map(half).collect(),
            products,
        }
    }

    /// The codes of these rows, one row after another.
    pub(super) fn encode(&self, rows: &[f32]) -> Vec<u16> {
        let chunks: Vec<Vec<u16>> =
            rows.par_chunks(CHUNK * self.rank).map(|rows| self.encode_chunk(rows)).collect();
        chunks.concat()
    }

    fn encode_chunk(&self, rows: &[f32]) -> Vec<u16> {
        let (count, entries) = (rows.len() / self.rank, self.halves.len());
        let mut products = vec![0.0; count * entries];
        let all = View::row_major(&self.entries, self.rank);
        multiply(View::row_major(rows, self.rank), all.transpose(), &mut products);
        products
            .chunks_exact(entries)
            .flat_map(|products| self.search(products))
            .collect()
    }

    /// The codes of the row that has these products with the entries: the best of the sums that
    /// are found by keeping a few of the best after each book.
    fn search(&self, products: &[f32]) -> Vec<u16> {
        let mut kept = vec![Sum { distance: 0.0, codes: Vec::new() }];
        let mut distances = Vec::new();
        for first in (0..products.len()).step_by(self.book_len) {
            let this = first..first + self.book_len;
            let mut found: Vec<(f32, usize, usize)> = Vec::new();
            for (at, sum) in kept.iter().enumerate() {
                distances.clear();
                let parts = self.halves[this.clone()].iter().zip(&products[this.clone()]);
                distances.extend(parts.map(|(half, product)| sum.distance + half - product));
                for (book, &code) in sum.codes.iter().enumerate() {
                    let entry = book * self.book_len + usize::from(code);
                    let with = &self.products[entry * products.len()..][this.clone()];
                    distances.iter_mut().zip(with).for_each(|(distance, x)| *distance += x);
                }
                for (code, &distance) in distances.iter().enumerate() {
                    if found.len() == BEAM && found[BEAM - 1].0 <= distance {
                        continue;
                    }
                    found.truncate(BEAM - 1);
                    let place = found.partition_point(|other| other.0 <= distance);
                    found.insert(place, (distance, at, code));
                }
            }
            let extended = found.into_iter().map(|(distance, at, code)| {
                let mut codes = kept[at].codes.clone();
                codes.push(code as u16);
                Sum { distance, codes }
            });
            kept = extended.collect();
        }
        kept.swap_remove(0).codes
    }
}
