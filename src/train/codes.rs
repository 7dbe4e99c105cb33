//! Trainable tables of codes. The codes that choose entries of the books are given, and stay the
//! same. Either the entries are learned, or the rows that will be coded again.

use super::{
    Embedding, Optimizer, Parameters, Quantity, TrainError, Unsupported,
    dense::{DenseShape, check_len, step_rows, step_slices},
    rounding::Rounding,
    state::{Sealed, State, Step},
    view,
};
use crate::{
    LookupError, Table, Tier,
    dtype::{Dtype, Elements},
    kernel::Consistent,
    repr::{
        CodeDtype, Codebook, Combine, Weights,
        codebook::{self, Support},
    },
    shape::check_num_embeddings,
};
use std::{vec, vec::Vec};

/// The shape of a [`CodesTable`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodesShape {
    /// Number of rows.
    pub num_embeddings: u64,
    /// Elements of a row.
    pub embedding_dim: usize,
    /// Number of books, which is also the number of codes of a row.
    pub num_books: usize,
    /// Entries of a book.
    pub book_len: usize,
    /// How a row is made of its entries: [`Combine::Concat`] or [`Combine::Add`].
    pub combine: Combine,
}

impl CodesShape {
    /// Elements of an entry: `embedding_dim`, or `embedding_dim / num_books` if entries are put end
    /// to end.
    pub fn entry_len(&self) -> usize {
        codebook::entry_len(self.combine, self.num_books, self.embedding_dim)
    }

    /// Elements of all books.
    pub fn books_len(&self) -> usize {
        self.num_books.saturating_mul(self.book_len).saturating_mul(self.entry_len())
    }

    /// Checks the shape. Returns the number of codes of all rows, and of elements of all books.
    fn check(&self) -> Result<(usize, usize), TrainError> {
        let Self { num_embeddings, embedding_dim, num_books, book_len, combine } = *self;
        check_num_embeddings(num_embeddings)?;
        codebook::check(combine, num_books, book_len, embedding_dim)?;
        if combine == Combine::Mult {
            return Err(TrainError::Unsupported(Unsupported::MultipliedEntries));
        }
        let num_rows = u32::try_from(num_embeddings)
            .map_err(|_| Quantity::Rows.above(num_embeddings, u32::MAX.into()))?;
        // This does not overflow: there are at most 2^26 entries.
        let entries = num_books * book_len;
        Ok((check_len(num_rows as usize, num_books)?, check_len(entries, self.entry_len())?))
    }
}

/// A trainable table whose rows are made of entries of a few books. The codes that choose a row's
/// entries are given, for instance by clustering rows, and stay the same. A blob stores the table
/// as [`WeightsSpec::Codebook`](crate::blob::WeightsSpec::Codebook). Each entry is a slice for the
/// [`Optimizer`], or each row with [`with_rows`](Self::with_rows).
///
/// ```
/// use ttrec::{
///     Bags, Pooling,
///     repr::Combine,
///     train::{Checkpointed, CodesShape, CodesTable, Embedding, Optimizer},
/// };
///
/// let (num_embeddings, embedding_dim, num_books, book_len) = (3, 4, 2, 16);
/// let combine = Combine::Concat;
/// let shape = CodesShape { num_embeddings, embedding_dim, num_books, book_len, combine };
/// let codes = [0, 1, 0, 2, 5, 1]; // entries 0 and 1 for row 0
/// let mut table = CodesTable::new(shape, &codes, vec![0.0; 2 * 16 * 2], Optimizer::Sgd)?;
/// let bags = Bags::new(&[0u32], &[0, 1])?;
/// table.step(&bags, Pooling::Sum, &[1.0, 2.0, 3.0, 4.0], 1.0)?;
/// let books = table.parameters()[0].values();
/// assert_eq!((&books[..2], &books[(16 + 1) * 2..][..2]), (&[-1.0, -2.0][..], &[-3.0, -4.0][..]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct CodesTable {
    shape: CodesShape,
    code_dtype: CodeDtype,
    /// The codes, as a blob stores them.
    codes: Vec<u8>,
    support: Support,
    /// Its parameters are the entries of all books and, if they are learned instead, the rows.
    state: State,
}

impl CodesTable {
    /// A table of these codes, `num_embeddings x num_books`, row by row, and books, `num_books x
    /// book_len x entry_len`.
    ///
    /// # Errors
    /// [`TrainError::Shape`]; [`Unsupported::MultipliedEntries`]; [`Quantity::Codes`] or
    /// [`Quantity::Values`] for another number of codes or of elements of books;
    /// [`TrainError::Code`] for a code that is no entry.
    pub fn new(
        shape: CodesShape,
        codes: &[u16],
        books: Vec<f32>,
        optimizer: Optimizer,
    ) -> Result<Self, TrainError> {
        let (num_codes, books_len) = shape.check()?;
        Quantity::Codes.check(codes.len(), num_codes as u64)?;
        Quantity::Values(0).check(books.len(), books_len as u64)?;
        let CodesShape { num_books, book_len, .. } = shape;
        if let Some(position) = codes.iter().position(|&code| usize::from(code) >= book_len) {
            return Err(TrainError::Code { position, book_len });
        }
        let code_dtype = CodeDtype::for_book_len(book_len);
        let row_len = code_dtype.row_len(num_books);
        let mut bytes = vec![0; codes.len() / num_books * row_len];
        for (row, out) in codes.chunks_exact(num_books).zip(bytes.chunks_exact_mut(row_len)) {
            code_dtype.encode_row(row, out);
        }
        let books = Parameters::new(books, shape.entry_len(), optimizer);
        // The feature `train` has the feature `codebooks`.
        let support = Support::get().ok_or(TrainError::Lookup(LookupError::Inconsistent))?;
        let state = State::new(vec![books], optimizer);
        Ok(Self { shape, code_dtype, codes: bytes, support, state })
    }

    /// The same table, whose books are learned as `dtype`: see [`TtTable::with_dtype`]. The entries
    /// of a book of i8 have one scale.
    ///
    /// # Errors
    /// [`Unsupported::Dtype`] for a type that books cannot have.
    ///
    /// [`TtTable::with_dtype`]: super::TtTable::with_dtype
    pub fn with_dtype(mut self, dtype: Dtype) -> Result<Self, TrainError> {
        if !dtype.suits_cores() {
            return Err(TrainError::Unsupported(Unsupported::Dtype { dtype }));
        }
        self.state.round_together(1, Rounding::Slice(dtype), self.shape.book_len);
        Ok(self)
    }

    /// The same table, which learns these rows, `num_embeddings x embedding_dim`, row-major, and
    /// leaves its books as they are. Lookups and gradients use the coded rows, and the optimiser
    /// moves `rows` by these gradients: the straight-through estimator. Code the rows again every
    /// few steps, and make a table of the new codes, books and these rows. The rows are the second
    /// of the [`parameters`](super::Checkpointed::parameters).
    ///
    /// # Errors
    /// [`Quantity::Values`] for another number of values; [`TrainError::Shape`] for more than
    /// memory can hold.
    pub fn with_rows(mut self, rows: Vec<f32>) -> Result<Self, TrainError> {
        let CodesShape { num_embeddings, embedding_dim, .. } = self.shape;
        let len = DenseShape { num_embeddings, embedding_dim }.check()?;
        Quantity::Values(1).check(rows.len(), len as u64)?;
        self.state.parameters.truncate(1);
        self.state
            .parameters
            .push(Parameters::new(rows, embedding_dim, self.state.optimizer));
        Ok(self)
    }

    /// The same table, with the instructions of `tier`.
    #[must_use]
    pub fn with_tier(mut self, tier: Tier) -> Self {
        self.state.tier = tier;
        self
    }
}

impl Embedding for CodesTable {
    fn table(&self) -> Table<'_> {
        let CodesShape { num_embeddings, embedding_dim, num_books, book_len, combine } = self.shape;
        let weights = Weights::Codebook(Codebook {
            codes: &self.codes,
            code_dtype: self.code_dtype,
            books: Elements::from_f32(self.state.parameters[0].values()),
            scales: &[],
            projection: None,
            combine,
            num_books,
            book_len,
            inner_dim: embedding_dim,
            support: self.support,
        });
        view(weights, num_embeddings, embedding_dim, self.state.tier)
    }
}

impl Sealed for CodesTable {
    fn state(&self) -> &State {
        &self.state
    }

    fn state_mut(&mut self) -> &mut State {
        &mut self.state
    }

    /// Moves the rows if they are learned, otherwise the entries. The gradient of an entry is the
    /// sum of the gradients of all rows that have the entry, in the entry's columns.
    fn apply(&mut self, step: &Step<'_>) -> Consistent {
        let State { parameters, lookups, .. } = &mut self.state;
        if let Some(rows) = parameters.get_mut(1) {
            return step_rows(rows, lookups, step);
        }
        let CodesShape { embedding_dim: dim, num_books, book_len, combine, .. } = self.shape;
        let (codes, dtype) = (&self.codes, self.code_dtype);
        let (row_len, entry_len) = (dtype.row_len(num_books), self.shape.entry_len());
        let mut entries = parameters.first_mut()?.slices_mut();
        let num_entries = (num_books * book_len) as u32;
        for book in 0..num_books {
            let first = if combine == Combine::Concat {
                book * entry_len
            } else {
                0
            };
            let columns = first..first + entry_len;
            let entry_of = |row: u32| {
                let codes = codes.get(row as usize * row_len..).unwrap_or_default();
                (book * book_len) as u32 + u32::from(dtype.get(codes, book).unwrap_or_default())
            };
            step_slices(&mut entries, num_entries, lookups, step, (dim, columns), entry_of)?;
        }
        parameters.first_mut()?.round();
        Some(())
    }
}
