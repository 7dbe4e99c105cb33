//! Rows of the checkpoint in double precision: a plain matrix chain that shares no code with the
//! library's kernels, and reads slices when it needs them.

use crate::{
    allocate::zeros,
    dialect::{CodedRows, Core, Overrides, Source, TableRows, Weights},
};
use anyhow::Result;
use ttrec::{DigitOrder, TtShape, repr::Combine};

/// Reads rows of a table; each thread has its own.
pub(crate) struct Reference<'w, 'c> {
    source: &'w Source<'c>,
    buffer: Vec<f32>,
    /// The projection of a projected or codebook table, read on first use.
    projection: Vec<f32>,
    /// The books of a codebook table, read on first use.
    books: Vec<f32>,
    chain: Vec<Link>,
}

/// A core's part of the current row, kept because the next row often shares it.
#[derive(Default)]
struct Link {
    digit: Option<u64>,
    slice: Vec<f64>,
    /// The product of the slices up to this one.
    product: Vec<f64>,
}

impl<'w, 'c> Reference<'w, 'c> {
    pub(crate) fn new(source: &'w Source<'c>) -> Self {
        let links = match &source.weights {
            Weights::Tt { cores, .. } => cores.len(),
            _ => 0,
        };
        Self {
            source,
            buffer: Vec::new(),
            projection: Vec::new(),
            books: Vec::new(),
            chain: (0..links).map(|_| Link::default()).collect(),
        }
    }

    /// Reads the rows of the indices from `first` on, as many as `out` holds.
    pub(crate) fn rows(&mut self, first: u64, out: &mut [f64]) -> Result<()> {
        if self.source.hashed.is_none() {
            return self.stored_rows(first, out);
        }
        let columns = self.source.weights.embedding_dim();
        (first..)
            .zip(out.chunks_exact_mut(columns))
            .try_for_each(|(index, out)| self.stored_rows(self.source.row_of(index), out))
    }

    fn stored_rows(&mut self, first: u64, out: &mut [f64]) -> Result<()> {
        let columns = self.source.weights.embedding_dim();
        match &self.source.weights {
            Weights::Dense(rows) => {
                self.buffer.resize(out.len(), 0.0);
                rows.read(first, &mut self.buffer)?;
                widen(&self.buffer, out);
                Ok(())
            }
            Weights::Projected { rows, projection, .. } => {
                let rank = &rows.columns;
                if self.projection.is_empty() {
                    self.projection = zeros(rank * columns)?;
                    projection.read_f32(0, &mut self.projection)?;
                }
                let rows = read(rows, first, out.len() / columns, &mut self.buffer)?;
                for (out, row) in out.chunks_exact_mut(columns).zip(rows.chunks_exact(*rank)) {
                    // The checkpoint's projection is embedding_dim x rank.
                    for (out, weights) in out.iter_mut().zip(self.projection.chunks_exact(*rank)) {
                        *out = row
                            .iter()
                            .zip(weights)
                            .map(|(&x, &w)| f64::from(x) * f64::from(w))
                            .sum();
                    }
                }
                Ok(())
            }
            Weights::QuotientRemainder { parts, num_remainders, combine, .. } => {
                let divisor = u64::from(*num_remainders);
                for (row, out) in (first..).zip(out.chunks_exact_mut(columns)) {
                    let (first, rest) = out.split_at_mut(parts[0].columns);
                    widen(read(&parts[0], row / divisor, 1, &mut self.buffer)?, first);
                    let second = read(&parts[1], row % divisor, 1, &mut self.buffer)?;
                    let pairs = first.iter_mut().zip(second);
                    match combine {
                        Combine::Mult => pairs.for_each(|(x, &y)| *x *= f64::from(y)),
                        Combine::Add => pairs.for_each(|(x, &y)| *x += f64::from(y)),
                        _ => widen(second, rest),
                    }
                }
                Ok(())
            }
            Weights::Codebook(rows) => self.decode(rows, first, out),
            Weights::Tt { shape, cores, overrides } => {
                (first..).zip(out.chunks_exact_mut(columns)).try_for_each(|(row, out)| {
                    match overrides.as_ref().and_then(|overrides| position(overrides, row)) {
                        Some((overrides, at)) => {
                            self.buffer.resize(columns, 0.0);
                            overrides.read(at, &mut self.buffer)?;
                            widen(&self.buffer, out);
                            Ok(())
                        }
                        None => self.multiply(shape, cores, row, out),
                    }
                })
            }
        }
    }

    fn decode(&mut self, rows: &CodedRows<'_>, first: u64, out: &mut [f64]) -> Result<()> {
        let (columns, entry_len) = (rows.embedding_dim, rows.entry_len());
        if self.books.is_empty() {
            let mut book = Vec::new();
            for number in 0..rows.num_books {
                rows.read_book(number, &mut book)?;
                self.books.extend_from_slice(&book);
            }
            if let Some(matrix) = rows.projection {
                self.projection = zeros(rows.inner_dim * columns)?;
                matrix.read_f32(0, &mut self.projection)?;
            }
        }
        let codes = rows.read_codes(first, out.len() / columns)?;
        let mut inner = vec![0.0; rows.inner_dim];
        for (out, codes) in out.chunks_exact_mut(columns).zip(codes.chunks_exact(rows.num_books)) {
            inner.fill(0.0);
            for (book, &code) in codes.iter().enumerate() {
                let start = if rows.combine == Combine::Concat {
                    book * entry_len
                } else {
                    0
                };
                let entry = book * rows.book_len + usize::from(code);
                let entry = &self.books[entry * entry_len..][..entry_len];
                inner[start..].iter_mut().zip(entry).for_each(|(x, &y)| *x += f64::from(y));
            }
            if rows.projection.is_none() {
                out.copy_from_slice(&inner);
                continue;
            }
            out.fill(0.0);
            for (x, matrix) in inner.iter().zip(self.projection.chunks_exact(columns)) {
                out.iter_mut().zip(matrix).for_each(|(out, &w)| *out += x * f64::from(w));
            }
        }
        Ok(())
    }

    fn multiply(
        &mut self,
        shape: &TtShape,
        cores: &[Core<'_>],
        row: u64,
        out: &mut [f64],
    ) -> Result<()> {
        // The row index in mixed radix, from the least significant digit.
        let mut rest = row;
        let mut digits = vec![0; cores.len()];
        let mut take = |(digit, &p): (&mut u64, &u32)| {
            *digit = rest % u64::from(p);
            rest /= u64::from(p);
        };
        let pairs = digits.iter_mut().zip(shape.row_factors());
        match shape.digit_order() {
            DigitOrder::MostSignificantFirst => pairs.rev().for_each(&mut take),
            DigitOrder::LeastSignificantFirst => pairs.for_each(&mut take),
        }
        let mut changed = false;
        for (k, core) in cores.iter().enumerate() {
            let (before, from_here) = self.chain.split_at_mut(k);
            let link = &mut from_here[0];
            if link.digit != Some(digits[k]) {
                link.digit = None;
                self.buffer.resize(core.slice_len(), 0.0);
                core.read(digits[k], &mut self.buffer)?;
                link.slice = self.buffer.iter().copied().map(f64::from).collect();
                link.digit = Some(digits[k]);
                changed = true;
            }
            if changed {
                let left = before.last().map_or(&[1.0][..], |before| &before.product);
                let (r, n) = (shape.rank(k), shape.column_factor(k) * shape.rank(k + 1));
                link.product.clear();
                link.product.resize(left.len() / r * n, 0.0);
                for (left, product) in left.chunks_exact(r).zip(link.product.chunks_exact_mut(n)) {
                    for (a, row) in left.iter().zip(link.slice.chunks_exact(n)) {
                        product.iter_mut().zip(row).for_each(|(product, b)| *product += a * b);
                    }
                }
            }
        }
        if let Some(last) = self.chain.last() {
            out.copy_from_slice(&last.product);
        }
        Ok(())
    }
}

/// `count` rows from `first` on.
fn read<'b>(
    rows: &TableRows<'_>,
    first: u64,
    count: usize,
    buffer: &'b mut Vec<f32>,
) -> Result<&'b [f32]> {
    buffer.resize(count * rows.columns, 0.0);
    rows.read(first, buffer)?;
    Ok(buffer)
}

fn widen(from: &[f32], to: &mut [f64]) {
    to.iter_mut().zip(from).for_each(|(to, &from)| *to = from.into());
}

/// The position of an overridden row.
fn position<'o, 'c>(
    overrides: &'o Overrides<'c>,
    row: u64,
) -> Option<(&'o Overrides<'c>, Option<u64>)> {
    let at = overrides.ids.binary_search_by_key(&row, |(id, _)| *id).ok()?;
    Some((overrides, overrides.ids[at].1))
}
