//! What `ttrec train` needs: parts of the format of its checkpoints, and two ways to approximate
//! rows in memory: the cores of a tensor train of a given shape, and books and codes.

use crate::{
    error::Error,
    factorize::{
        CodesShape, DEFAULT_SWEEPS, Encoder, Factorized, Factors, Job, Limits, Request, Rows, TtSvd,
    },
    spec::{Combining, Representation, TableSpec},
};
use anyhow::{Context, Result, bail, ensure};
use ttrec::{DigitOrder, TtShape, dtype::Dtype};

pub use crate::dialect::{FACTS, digit_strides};

/// Rows in the order in which the first core has the most significant digit. Digits that no row has
/// make rows of zeros.
struct ByDigits<'v> {
    values: &'v [f32],
    shape: &'v TtShape,
    strides: Vec<i64>,
}

impl ByDigits<'_> {
    /// The row whose digits are those of `number`.
    fn row(&self, mut number: u64) -> u64 {
        let digits = self.shape.row_factors().iter().zip(&self.strides).rev();
        digits.fold(0, |row, (&p, &stride)| {
            let digit = number % u64::from(p);
            number /= u64::from(p);
            row + digit * stride.cast_unsigned()
        })
    }
}

impl Rows for ByDigits<'_> {
    fn num_embeddings(&self) -> u64 {
        self.shape.row_factors().iter().map(|&p| u64::from(p)).product()
    }

    fn embedding_dim(&self) -> usize {
        self.shape.embedding_dim()
    }

    fn read(&self, first: u64, out: &mut [f32]) -> Result<()> {
        let dim = self.embedding_dim();
        for (out, number) in out.chunks_exact_mut(dim).zip(first..) {
            let at = usize::try_from(self.row(number))?.saturating_mul(dim);
            match self.values.get(at..).and_then(|rows| rows.get(..dim)) {
                Some(row) => out.copy_from_slice(row),
                None => out.fill(0.0),
            }
        }
        Ok(())
    }
}

/// Sets the cores of a tensor train of `shape`, each its slices one after another, so that its rows
/// are near `values`, one row after another.
///
/// Rows that need smaller ranks than the shape's leave some of the old values: where a bond has
/// room, what the core before it gives stays as it is, and the core after it ignores that, so that
/// training can still use it.
///
/// # Errors
/// If the number of values is not that of the shape's rows, or the rows cannot be factorised.
#[doc(hidden)]
pub fn set_cores(values: &[f32], shape: &TtShape, cores: &mut [&mut [f32]]) -> Result<(), Error> {
    Ok(set(values, shape, cores)?)
}

fn set(values: &[f32], shape: &TtShape, cores: &mut [&mut [f32]]) -> Result<()> {
    let (found, dim) = (values.len() as u64, shape.embedding_dim() as u64);
    ensure!(Some(found) == shape.num_embeddings().checked_mul(dim), "{found} values of rows");
    ensure!(
        shape.column_order() == DigitOrder::MostSignificantFirst,
        "the first core has the least significant digit of a column"
    );
    let strides = digit_strides(shape.row_factors(), shape.digit_order());
    let rows = ByDigits { values, shape, strides };
    let max_rank = shape.inner_ranks().iter().copied().max().unwrap_or(1) as usize;
    let limits = Limits { max_rank, tolerance: None, job: Job::default() };
    let (of_rows, of_columns) = (shape.row_factors(), shape.column_factors());
    let factors = Factors { rows: of_rows.to_vec(), columns: of_columns.to_vec() };
    let train = TtSvd::analyse(&rows, &factors, &limits)?;
    let train = train.refine(shape.inner_ranks(), &rows, None, DEFAULT_SWEEPS, &limits)?;
    let rank = |k: usize| match k.checked_sub(1) {
        Some(bond) => train.ranks.get(bond).map_or(1, |&rank| rank as usize),
        None => 1,
    };
    for (k, (core, found)) in cores.iter_mut().zip(&train.cores).enumerate() {
        let (r, q, s) = (shape.rank(k), shape.column_factor(k), shape.rank(k + 1));
        let (r_found, s_found) = (rank(k), rank(k + 1));
        let slices = core.chunks_exact_mut(r * q * s);
        let found = found.chunks_exact(r_found * q * s_found);
        ensure!(slices.len() == found.len(), "core {k} has other slices than its shape");
        for (slice, found) in slices.zip(found) {
            for (at, value) in slice.iter_mut().enumerate() {
                let (a, b, c) = (at / s / q, at / s % q, at % s);
                if a >= r_found {
                    *value = 0.0;
                } else if c < s_found {
                    let at = (a * q + b) * s_found + c;
                    *value = *found.get(at).context("a core is short")?;
                }
            }
        }
    }
    Ok(())
}

/// Rows in memory, one after another.
struct InMemory<'v> {
    values: &'v [f32],
    columns: usize,
}

impl Rows for InMemory<'_> {
    fn num_embeddings(&self) -> u64 {
        (self.values.len() / self.columns) as u64
    }

    fn embedding_dim(&self) -> usize {
        self.columns
    }

    fn read(&self, first: u64, out: &mut [f32]) -> Result<()> {
        let start = usize::try_from(first)?.saturating_mul(self.columns);
        let rows = self.values.get(start..).and_then(|rows| rows.get(..out.len()));
        out.copy_from_slice(rows.context("there are no such rows")?);
        Ok(())
    }
}

/// The number and the size of the books that rows are coded with.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Books {
    /// The number of books.
    pub count: u32,
    /// The bits of a code.
    pub bits: u32,
    /// How a row is made of its entries.
    pub combine: Combining,
}

impl Books {
    fn shape(&self, num_embeddings: u64, embedding_dim: usize) -> Result<CodesShape> {
        let &Self { count, bits, combine } = self;
        let spec = TableSpec {
            representation: Some(Representation::Codes),
            books: Some(count),
            bits: Some(bits),
            combine: Some(combine),
            ..TableSpec::default()
        };
        match Request::of_dense(&spec, num_embeddings, embedding_dim)? {
            Some(Request::Codes(shape)) => Ok(shape),
            _ => bail!("these are no codes"),
        }
    }

    /// Checks that a table of this size can have such books.
    ///
    /// # Errors
    /// If it cannot.
    pub fn check(&self, num_embeddings: u64, embedding_dim: usize) -> Result<(), Error> {
        Ok(self.shape(num_embeddings, embedding_dim).map(|_| ())?)
    }

    /// Learns books from rows of `columns` elements, and codes the rows. Returns the entries, one
    /// book after another, and the codes, one row after another. `weights`, one per row, say how
    /// much each row's error counts.
    ///
    /// # Errors
    /// If the numbers do not suit the rows, or a value is not finite.
    pub fn learn(
        &self,
        values: &[f32],
        columns: usize,
        weights: Option<&[f32]>,
    ) -> Result<(Vec<f32>, Vec<u16>), Error> {
        Ok(self.learn_from(&InMemory { values, columns }, weights)?)
    }

    fn learn_from(
        &self,
        rows: &InMemory<'_>,
        weights: Option<&[f32]>,
    ) -> Result<(Vec<f32>, Vec<u16>)> {
        let request = Request::Codes(self.shape(rows.num_embeddings(), rows.columns)?);
        let Factorized::Codes(books) = request.run(rows, weights, &Job::default())? else {
            bail!("these are no codes")
        };
        let encoder = Encoder::new(&books, Dtype::F32, Dtype::F32)?;
        let (codes, _) = encoder.encode(rows.values, rows.columns);
        Ok((books.entries, codes))
    }
}
