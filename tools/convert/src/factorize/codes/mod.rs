//! Codes of a dense table: books are learned from its rows, and each row becomes the numbers of
//! entries, one in each book.
//!
//! Learning needs some rows in memory, at most as many as fit; writing reads the table block by
//! block. Results do not depend on the number of threads.

mod encoder;
mod k_means;
mod nearest;
mod product;
mod residual;
mod rotation;
mod sums;
#[cfg(test)]
mod tests;
mod training;

pub(crate) use encoder::Encoder;
pub(crate) use rotation::Directions;
pub(crate) use training::ROWS_PER_ENTRY;

use crate::{
    factorize::{Job, Rows},
    progress::Step,
    spec::Combining,
};
use anyhow::Result;
use serde::Serialize;
use training::Training;
use ttrec::{
    blob::WeightsSpec,
    dtype::Dtype,
    repr::{CodeDtype, Combine},
};

/// The shape of books and codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Shape {
    /// How the entries of a row make it.
    pub(crate) combine: Combining,
    /// The number of books.
    pub(crate) books: usize,
    /// The bits of a code.
    pub(crate) bits: u32,
    /// The number of columns that are coded: those of the table, or fewer.
    pub(crate) rank: usize,
    /// Whether a projection makes the columns of the table of those that are coded.
    pub(crate) projected: bool,
}

impl Shape {
    /// The entries of a book.
    pub(crate) fn book_len(&self) -> usize {
        1 << self.bits
    }

    /// The columns of a stored entry.
    pub(crate) fn width(&self) -> usize {
        match self.combine {
            Combining::Concat => self.rank.div_ceil(self.books),
            Combining::Add => self.rank,
        }
    }

    /// The columns of a row before the projection; more than `rank` if some books have a column
    /// less than others, which is stored as zeros.
    pub(crate) fn inner_dim(&self) -> usize {
        match self.combine {
            Combining::Concat => self.width() * self.books,
            Combining::Add => self.rank,
        }
    }

    /// The entries that have an element in a column.
    pub(crate) fn entries_per_column(&self) -> usize {
        match self.combine {
            Combining::Concat => self.book_len(),
            Combining::Add => self.book_len() * self.books,
        }
    }

    /// What a table of this size is stored as.
    pub(crate) fn layout(
        &self,
        num_embeddings: u64,
        embedding_dim: usize,
        dtype: Dtype,
        projection: Dtype,
    ) -> WeightsSpec {
        WeightsSpec::Codebook {
            num_embeddings,
            embedding_dim,
            num_books: self.books,
            book_len: self.book_len(),
            inner_dim: self.inner_dim(),
            combine: match self.combine {
                Combining::Concat => Combine::Concat,
                Combining::Add => Combine::Add,
            },
            codes: CodeDtype::for_book_len(self.book_len()),
            dtype,
            projection: self.projected.then_some(projection),
        }
    }

    /// The columns that each book codes.
    fn widths(&self) -> Vec<usize> {
        if self.combine == Combining::Add {
            return vec![self.rank; self.books];
        }
        let wide = self.books - (self.inner_dim() - self.rank);
        (0..self.books).map(|book| self.width() - usize::from(book >= wide)).collect()
    }
}

/// Books, and the projection of the columns that they code.
#[derive(Clone)]
pub(crate) struct Codebooks {
    pub(crate) shape: Shape,
    /// `books x book_len x width`.
    pub(crate) entries: Vec<f32>,
    /// `inner_dim x embedding_dim`, row-major.
    pub(crate) projection: Option<Vec<f32>>,
}

/// Learns books of one table.
pub(crate) struct Learner {
    training: Training,
    directions: Option<Directions>,
}

impl Learner {
    /// Reads the rows for books of so many bits, at most `per_entry` for each entry; `weights`, one
    /// per row, say how much each row's error counts.
    pub(crate) fn new(
        rows: &dyn Rows,
        weights: Option<&[f32]>,
        bits: u32,
        per_entry: u64,
        projected: bool,
        job: &Job<'_>,
    ) -> Result<Self> {
        let training = Training::read(rows, weights, bits, per_entry, job)?;
        let directions = projected.then(|| Directions::of(&training)).transpose()?;
        Ok(Self { training, directions })
    }

    /// The directions of the rows, if a projection was wanted.
    pub(crate) fn directions(&self) -> Option<&Directions> {
        self.directions.as_ref()
    }

    /// The number of rows that books are learned from.
    pub(crate) fn num_rows(&self) -> usize {
        self.training.count
    }

    /// The index of one of these rows in the table.
    pub(crate) fn row(&self, at: usize) -> u64 {
        self.training.row(at)
    }

    /// Learns books of this shape.
    pub(crate) fn learn(&self, shape: &Shape, job: &Job<'_>) -> Result<Codebooks> {
        let steps = match shape.combine {
            Combining::Concat => product::STEPS,
            Combining::Add => residual::steps(shape),
        };
        let step = Step::new(job.progress, &format!("{}: books", job.name), steps as u64);
        let directions = self.directions.as_ref().filter(|_| shape.projected);
        let learned = match shape.combine {
            Combining::Concat => product::learn(&self.training, directions, shape, &step)?,
            Combining::Add => residual::learn(&self.training, directions, shape, &step)?,
        };
        let (width, dim) = (shape.width(), self.training.dim);
        let mut entries = Vec::with_capacity(shape.inner_dim() * shape.book_len());
        for (book, narrow) in learned.books.iter().zip(shape.widths()) {
            for entry in book.chunks_exact(narrow) {
                entries.extend_from_slice(entry);
                entries.resize(entries.len() + width - narrow, 0.0);
            }
        }
        let projection = learned.rotation.map(|rotation| {
            let mut directions = rotation.chunks_exact(dim);
            let mut projection = vec![0.0; shape.inner_dim() * dim];
            // With sums this is one book: all of them share the columns.
            let books = projection.chunks_exact_mut(width * dim).zip(shape.widths());
            for (rows, narrow) in books {
                rows.chunks_exact_mut(dim)
                    .take(narrow)
                    .zip(&mut directions)
                    .for_each(|(row, direction)| row.copy_from_slice(direction));
            }
            projection
        });
        Ok(Codebooks { shape: *shape, entries, projection })
    }
}
