//! Codes and books that were learned elsewhere: an array `codes` of one integer for each book of
//! each row, an array `books` of `num_books x book_len x entry_len`, and optionally an array
//! `projection` (or `rotation`), which rows are multiplied by.

use super::{Dialect, Survey, Weights, refuse, require, require_float};
use crate::{
    checkpoint::{Checkpoint, Tensor, faiss},
    spec::{Combining, TableSpec},
};
use anyhow::{Context, Result, bail, ensure};
use ttrec::{
    blob::{self, Layout, WeightsSpec},
    dtype::Dtype,
    repr::{CodeDtype, Combine},
};

pub(super) struct Codes;

/// A table of codes in a checkpoint.
pub(crate) struct CodedRows<'c> {
    pub(crate) codes: &'c Tensor,
    pub(crate) books: &'c Tensor,
    /// `inner_dim x embedding_dim`.
    pub(crate) projection: Option<&'c Tensor>,
    pub(crate) combine: Combine,
    pub(crate) num_rows: u64,
    pub(crate) num_books: usize,
    pub(crate) book_len: usize,
    pub(crate) inner_dim: usize,
    pub(crate) embedding_dim: usize,
}

impl Dialect for Codes {
    fn name(&self) -> &'static str {
        "codes"
    }

    fn detect(&self, survey: &mut Survey<'_>) {
        for (prefix, codes) in survey.first_cores("codes") {
            let books = survey.checkpoint.tensor(&format!("{prefix}books"));
            // As `state_dict` keys have them: the name is alone, or follows a dot.
            let is_key = prefix.is_empty() || prefix.ends_with('.');
            if !is_key || codes.shape().len() != 2 || books.is_none() {
                continue;
            }
            for key in ["codes", "books", "projection", "rotation"] {
                survey.take(&format!("{prefix}{key}"));
            }
            survey.offer(TableSpec { prefix: Some(prefix.to_owned()), ..TableSpec::default() });
        }
    }

    fn open<'c>(&self, checkpoint: &'c Checkpoint, spec: &TableSpec) -> Result<Weights<'c>> {
        for (given, field) in [
            (spec.tensor.is_some(), "tensor"),
            (spec.table.is_some(), "table"),
            (spec.row_factors.is_some(), "row_factors"),
            (spec.column_factors.is_some(), "column_factors"),
            (spec.ranks.is_some(), "ranks"),
            (spec.dtype == Some(Dtype::I4), "dtype = \"i4\""),
        ] {
            refuse(given, field, self.name())?;
        }
        let prefix = spec.prefix.as_deref().unwrap_or_default();
        let tensor = |key: &str| checkpoint.tensor(&format!("{prefix}{key}"));
        let projection = match (tensor("projection"), tensor("rotation")) {
            (Some(_), Some(_)) => bail!("it has both a projection and a rotation: remove one"),
            (projection, rotation) => projection.or(rotation),
        };
        let codes = require(checkpoint, &format!("{prefix}codes"))?;
        let books = require(checkpoint, &format!("{prefix}books"))?;
        let known = checkpoint.metadata(faiss::COMBINE).and_then(Combine::from_name);
        let given = spec.combine.map(|combine| match combine {
            Combining::Concat => Combine::Concat,
            Combining::Add => Combine::Add,
        });
        ensure!(
            given.is_none() || known.is_none() || given == known,
            "`combine` is {:?}, but the file says {:?}",
            given.map_or("", Combine::name),
            known.map_or("", Combine::name)
        );
        let rows = CodedRows::new([codes, books], projection, given.or(known))?;
        if let Some(given) = spec.num_embeddings {
            let found = rows.num_rows;
            ensure!(given == found, "`num_embeddings` is {given}, but there are {found} rows");
        }
        Ok(Weights::Codebook(rows))
    }
}

impl<'c> CodedRows<'c> {
    fn new(
        [codes, books]: [&'c Tensor; 2],
        projection: Option<&'c Tensor>,
        combine: Option<Combine>,
    ) -> Result<Self> {
        require_float(books)?;
        let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let (&[num_rows, num_books], &[found, book_len, entry_len]) =
            (codes.shape(), books.shape())
        else {
            bail!(
                "`codes` has the shape {:?} and `books` {:?}: expected rows x books, and books x \
                 entries x columns",
                codes.shape(),
                books.shape()
            );
        };
        ensure!(
            found == num_books && num_books > 0,
            "`codes` has {num_books} codes in a row, but there are {found} books"
        );
        let end_to_end = num_books.saturating_mul(entry_len);
        let inner = match projection {
            None => None,
            Some(matrix) => {
                require_float(matrix)?;
                let &[inner, columns] = matrix.shape() else {
                    let (name, shape) = (matrix.name(), matrix.shape());
                    bail!("tensor {name:?} has shape {shape:?}: expected a matrix");
                };
                Some([inner, columns])
            }
        };
        let combine = match (combine, inner) {
            (Some(combine), _) => combine,
            // Both are the same, but for the word.
            (None, _) if num_books == 1 => Combine::Concat,
            (None, Some([inner, _])) if inner == end_to_end => Combine::Concat,
            (None, Some([inner, _])) if inner == entry_len => Combine::Add,
            (None, _) => bail!(
                "`combine` is missing: set it to \"concat\" if the {num_books} entries of a row, \
                 of {entry_len} columns each, are put end to end, or to \"add\" if they are added"
            ),
        };
        let inner_dim = if combine == Combine::Concat {
            end_to_end
        } else {
            entry_len
        };
        let embedding_dim = match inner {
            None => inner_dim,
            Some([inner, columns]) => {
                ensure!(
                    inner == inner_dim,
                    "the projection has {inner} rows, but the entries make {inner_dim} columns"
                );
                columns
            }
        };
        let rows = Self {
            codes,
            books,
            projection,
            combine,
            num_rows,
            num_books: size(num_books),
            book_len: size(book_len),
            inner_dim: size(inner_dim),
            embedding_dim: size(embedding_dim),
        };
        // No table has other sizes.
        Layout::new(&[blob::TableSpec::new("codes", rows.layout(Dtype::F32, Dtype::F32))])?;
        Ok(rows)
    }

    /// How the table is stored.
    pub(crate) fn layout(&self, dtype: Dtype, projection: Dtype) -> WeightsSpec {
        WeightsSpec::Codebook {
            num_embeddings: self.num_rows,
            embedding_dim: self.embedding_dim,
            num_books: self.num_books,
            book_len: self.book_len,
            inner_dim: self.inner_dim,
            combine: self.combine,
            codes: self.code_dtype(),
            dtype,
            projection: self.projection.map(|_| projection),
        }
    }

    pub(crate) fn code_dtype(&self) -> CodeDtype {
        CodeDtype::for_book_len(self.book_len)
    }

    /// Columns of an entry.
    pub(crate) fn entry_len(&self) -> usize {
        match self.combine {
            Combine::Concat => self.inner_dim / self.num_books,
            _ => self.inner_dim,
        }
    }

    /// Reads the codes of `count` rows, row by row.
    pub(crate) fn read_codes(&self, first: u64, count: usize) -> Result<Vec<u16>> {
        let mut codes = vec![0; count * self.num_books];
        let start = first * self.num_books as u64;
        self.codes.read_i64(start, &mut codes)?;
        let code = |(position, &code): (u64, &i64)| {
            let entry = u16::try_from(code).ok().filter(|&c| usize::from(c) < self.book_len);
            entry.with_context(|| {
                let row = (start + position) / self.num_books as u64;
                format!("row {row} has the code {code}: a book has {} entries", self.book_len)
            })
        };
        (0..).zip(&codes).map(code).collect()
    }

    /// Reads the entries of a book.
    pub(crate) fn read_book(&self, book: usize, out: &mut Vec<f32>) -> Result<()> {
        let len = self.book_len * self.entry_len();
        out.resize(len, 0.0);
        Ok(self.books.read_f32(book as u64 * len as u64, out)?)
    }
}
