//! The codes of rows, for books as they are stored.

use super::{Codebooks, Shape, nearest::Searched, sums::Sums};
use crate::{
    factorize::Rows,
    matrix::{View, multiply},
    progress::Step,
    spec::Combining,
};
use anyhow::Result;
use half::{bf16, f16};
use rayon::prelude::*;
use ttrec::dtype::{self, Dtype, EncodeError};

/// Rows that one thread encodes at once.
const CHUNK: usize = 512;
/// Elements that are read at once.
const AT_ONCE: usize = 1 << 22;

/// Books as they are stored, ready to code rows.
pub(crate) struct Encoder {
    shape: Shape,
    /// `books x book_len x width`, rounded.
    entries: Vec<f32>,
    /// `inner_dim x embedding_dim`, rounded.
    projection: Option<Vec<f32>>,
    search: Search,
    /// The bytes of the books, and the scale of each of them.
    pub(crate) books: Vec<u8>,
    pub(crate) scales: Vec<f32>,
    /// The bytes of the projection.
    pub(crate) projection_bytes: Vec<u8>,
}

/// Books, ready to be searched.
enum Search {
    Concat(Vec<Searched>),
    Add(Sums),
}

impl Encoder {
    /// Books as `books`, with a projection as `projection`.
    pub(crate) fn new(
        codebooks: &Codebooks,
        books: Dtype,
        projection: Dtype,
    ) -> Result<Self, EncodeError> {
        let shape = codebooks.shape;
        let of_book = shape.book_len() * shape.width();
        let (mut bytes, mut scales, mut entries) = (Vec::new(), Vec::new(), Vec::new());
        for book in codebooks.entries.chunks_exact(of_book) {
            let (stored, scale, rounded) = round(book, books)?;
            bytes.extend(stored);
            scales.push(scale);
            entries.extend(rounded);
        }
        let (projection_bytes, rounded) = match &codebooks.projection {
            None => (Vec::new(), None),
            Some(values) => {
                let (bytes, _, rounded) = round(values, projection)?;
                (bytes, Some(rounded))
            }
        };
        let search = match shape.combine {
            Combining::Concat => {
                let books = entries.chunks_exact(of_book);
                Search::Concat(books.map(|book| Searched::new(book, shape.width())).collect())
            }
            Combining::Add => Search::Add(Sums::new(&shape, &entries)),
        };
        Ok(Self {
            shape,
            entries,
            projection: rounded,
            search,
            books: bytes,
            scales,
            projection_bytes,
        })
    }

    /// Gives the codes of all rows, some of them at once, in order, one row after another.
    pub(crate) fn for_each(
        &self,
        rows: &dyn Rows,
        step: &Step<'_>,
        mut put: impl FnMut(&[u16]) -> Result<()>,
    ) -> Result<()> {
        let dim = rows.embedding_dim();
        let at_once = (AT_ONCE / dim).max(1) as u64;
        let mut values = Vec::new();
        for first in (0..rows.num_embeddings()).step_by(at_once as usize) {
            let count = at_once.min(rows.num_embeddings() - first);
            values.resize(count as usize * dim, 0.0);
            rows.read(first, &mut values)?;
            put(&self.encode(&values, dim).0)?;
            step.add(count);
        }
        Ok(())
    }

    /// The codes of these rows, one row after another, and the squared error of each.
    pub(crate) fn encode(&self, rows: &[f32], dim: usize) -> (Vec<u16>, Vec<f64>) {
        let (count, books) = (rows.len() / dim, self.shape.books);
        let (mut codes, mut errors) = (vec![0; count * books], vec![0.0; count]);
        rows.par_chunks(CHUNK * dim)
            .zip(codes.par_chunks_mut(CHUNK * books))
            .zip(errors.par_chunks_mut(CHUNK))
            .for_each(|((rows, codes), errors)| self.encode_chunk(rows, dim, codes, errors));
        (codes, errors)
    }

    fn encode_chunk(&self, rows: &[f32], dim: usize, codes: &mut [u16], errors: &mut [f64]) {
        let (count, inner) = (errors.len(), self.shape.inner_dim());
        let turned;
        let inner_rows = match &self.projection {
            None => rows,
            Some(projection) => {
                turned = product(rows, View::row_major(projection, dim).transpose());
                &turned
            }
        };
        match &self.search {
            Search::Add(sums) => codes.copy_from_slice(&sums.encode(inner_rows)),
            Search::Concat(books) => {
                let width = self.shape.width();
                let (mut columns, mut distances) = (vec![0.0; width * count], vec![0.0; count]);
                let mut of_book = vec![0; count];
                for (book, searched) in books.iter().enumerate() {
                    for (at, column) in columns.chunks_exact_mut(count).enumerate() {
                        let values = inner_rows[book * width + at..].iter().step_by(inner);
                        column.iter_mut().zip(values).for_each(|(x, &value)| *x = value);
                    }
                    searched.nearest(&columns, count, &mut of_book, &mut distances);
                    let codes = codes[book..].iter_mut().step_by(books.len());
                    codes.zip(&of_book).for_each(|(code, &of_book)| *code = of_book);
                }
            }
        }
        let decoded = self.decode(codes);
        let decoded = match &self.projection {
            None => decoded,
            Some(projection) => product(&decoded, View::row_major(projection, dim)),
        };
        let pairs = rows.chunks_exact(dim).zip(decoded.chunks_exact(dim));
        for (error, (row, decoded)) in errors.iter_mut().zip(pairs) {
            let squares = row.iter().zip(decoded).map(|(&a, &b)| f64::from(a - b).powi(2));
            *error = squares.sum();
        }
    }

    /// What codes mean, before the projection.
    fn decode(&self, codes: &[u16]) -> Vec<f32> {
        let (books, width) = (self.shape.books, self.shape.width());
        let entry = |book: usize, code: u16| {
            &self.entries[(book * self.shape.book_len() + usize::from(code)) * width..][..width]
        };
        let mut rows = Vec::with_capacity(codes.len() / books * self.shape.inner_dim());
        for codes in codes.chunks_exact(books) {
            let start = rows.len();
            for (book, &code) in codes.iter().enumerate() {
                match self.shape.combine {
                    Combining::Add if book > 0 => rows[start..]
                        .iter_mut()
                        .zip(entry(book, code))
                        .for_each(|(sum, x)| *sum += x),
                    _ => rows.extend_from_slice(entry(book, code)),
                }
            }
        }
        rows
    }
}

#[cfg(test)]
impl Encoder {
    /// The books and the projection as they are stored.
    pub(super) fn stored(&self) -> (&[f32], Option<&[f32]>) {
        (&self.entries, self.projection.as_deref())
    }
}

/// Rows times a matrix.
fn product(rows: &[f32], matrix: View<'_>) -> Vec<f32> {
    let rows = View::row_major(rows, matrix.rows());
    let mut out = vec![0.0; rows.rows() * matrix.columns()];
    multiply(rows, matrix, &mut out);
    out
}

/// The values as `dtype`: their bytes, their scale, and the values that these mean.
fn round(values: &[f32], dtype: Dtype) -> Result<(Vec<u8>, f32, Vec<f32>), EncodeError> {
    let mut bytes = vec![0; dtype.bytes_of(values.len())];
    let scale = dtype::encode_slice(values, dtype, &mut bytes)?;
    let halves = || bytes.as_chunks::<2>().0.iter();
    let rounded = match dtype {
        Dtype::F16 => halves().map(|&half| f16::from_le_bytes(half).to_f32()).collect(),
        Dtype::Bf16 => halves().map(|&half| bf16::from_le_bytes(half).to_f32()).collect(),
        Dtype::I8 => bytes.iter().map(|&q| scale * f32::from(q.cast_signed())).collect(),
        _ => values.to_vec(),
    };
    Ok((bytes, scale, rounded))
}
