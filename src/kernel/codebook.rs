//! Bags over codebook tables.
//!
//! Product quantisation with 256 entries a book is what most tables have: codes are bytes, and every
//! byte is an entry, so that the entry of a code is found without a multiplication or a check
//! ([`PoolBytes`]). For all other books, the codes of a few rows first become the positions of their
//! entries ([`EntryStarts`]), whose sums are then taken book by book ([`PoolEntries`]).

use super::rows::{AHEAD, nth_row, prefetch_all};
use crate::{
    dtype::{Weight, with_core_elements},
    index::Indices,
    isa::{Isa, Op, Tier},
    kernel::Consistent,
    pooling::Pooling,
    repr::{CodeDtype, Codebook, Combine},
};
use core::ops::Range;

/// Bags of rows of a codebook table, which are pooled as they are before the projection.
pub(crate) struct CodeBags<'s> {
    /// The numbers of the rows.
    pub(crate) rows: &'s [u32],
    /// Bag b is `rows[offsets[b]..offsets[b + 1]]`.
    pub(crate) offsets: Indices<'s>,
    pub(crate) weights: Option<&'s [f32]>,
    pub(crate) pooling: Pooling,
}

/// Whether [`pool_codes`] can pool rows of this table, a few of `at_once` codes at a time.
pub(crate) fn can_pool_codes(tier: Tier, table: &Codebook<'_>, at_once: usize) -> bool {
    !tier.is_scalar()
        && table.num_books <= at_once
        && u32::try_from(table.books.len()).is_ok_and(|len| len < u32::MAX)
}

/// Pools bags into rows of `inner_dim` elements that are `out_stride` elements apart. `starts` has
/// room for the codes of one row at least, and [`can_pool_codes`] has agreed.
pub(crate) fn pool_codes(
    tier: Tier,
    table: &Codebook<'_>,
    bags: &CodeBags<'_>,
    out: &mut [f32],
    out_stride: usize,
    starts: &mut [u32],
) -> Consistent {
    let at_once = starts.len().checked_div(table.num_books)?;
    let entry_len = table.entry_len();
    let num_bags = bags.offsets.len().checked_sub(1)?;
    let (mut first, last) = (bags.offsets.range(0)?.start, bags.offsets.range(num_bags - 1)?.end);
    let is_concat = table.combine == Combine::Concat;
    let is_of_bytes = is_concat && table.code_dtype == CodeDtype::U8 && table.book_len == 256;
    let first_book = if is_of_bytes {
        with_core_elements!(table.books, books => tier.run_vector(PoolBytes {
            books,
            scales: table.scales,
            codes: table.codes,
            entry_len,
            num_books: table.num_books,
            bags,
            out: &mut *out,
            out_stride,
        }))???
    } else {
        0
    };
    let mut bag = if first_book == table.num_books { num_bags } else { 0 };
    while bag < num_bags {
        let rows = first..last.min(first + at_once);
        let starts = starts.get_mut(..rows.len() * table.num_books)?;
        tier.run_vector(EntryStarts {
            codes: table.codes,
            dtype: table.code_dtype,
            last: table.book_len.checked_sub(1)? as u32,
            entry_len: entry_len as u32,
            book_stride: (table.book_len * entry_len) as u32,
            num_books: table.num_books,
            rows: bags.rows.get(rows.start..)?,
            starts: &mut *starts,
        })??;
        first = rows.end;
        bag = with_core_elements!(table.books, books => tier.run_vector(PoolEntries {
            books,
            scales: table.scales,
            entry_len,
            first_book,
            num_books: table.num_books,
            is_concat,
            starts,
            rows,
            bag,
            bags,
            out: &mut *out,
            out_stride,
        }))???;
    }
    Some(())
}

/// Pools the entries of books of 256 entries whose codes are bytes, several books at a time.
struct PoolBytes<'s, 'o, W> {
    /// All books, one after another.
    books: &'s [W],
    /// One for each book, if the elements are scaled.
    scales: &'s [f32],
    codes: &'s [u8],
    entry_len: usize,
    num_books: usize,
    bags: &'s CodeBags<'s>,
    out: &'o mut [f32],
    out_stride: usize,
}

impl<W: Weight> Op for PoolBytes<'_, '_, W> {
    /// How many books have been pooled: none if their entries have another length, and a multiple of
    /// those that are pooled at a time. `None` if something is out of bounds.
    type Output = Option<usize>;

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) -> Option<usize> {
        match self.entry_len {
            4 => self.bags::<_, 4, 1, 8>(isa.narrow()),
            8 if const { I::LANES == 4 } => self.bags::<_, 8, 2, 4>(isa),
            8 if const { I::LANES == 8 } => self.bags::<_, 8, 1, 8>(isa),
            8 if const { I::LANES == 16 } => self.bags::<_, 8, 1, 8>(isa.half()),
            16 if const { I::LANES == 4 } => self.bags::<_, 16, 4, 4>(isa),
            16 if const { I::LANES == 8 } => self.bags::<_, 16, 2, 4>(isa),
            16 if const { I::LANES == 16 } => self.bags::<_, 16, 1, 8>(isa),
            _ => Some(0),
        }
    }
}

impl<W: Weight> PoolBytes<'_, '_, W> {
    /// All bags, for as many books as `B` divides. Entries have `E` columns in `V` vectors.
    #[inline(always)]
    fn bags<I: Isa, const E: usize, const V: usize, const B: usize>(
        &mut self,
        isa: I,
    ) -> Option<usize> {
        let (entries, _) = self.books.as_chunks::<E>();
        let (books, _) = entries.as_chunks::<256>();
        let (blocks, rest) = books.as_chunks::<B>();
        let num_bags = self.bags.offsets.len().saturating_sub(1);
        for bag in 0..num_bags {
            let range = self.bags.offsets.range(bag)?;
            for (block, books) in blocks.iter().enumerate() {
                self.bag::<I, E, V, B>(isa, bag, range.clone(), block * B, books)?;
            }
        }
        Some(self.num_books.saturating_sub(rest.len()))
    }

    /// The books from `first` on, for one bag.
    #[inline(always)]
    fn bag<I: Isa, const E: usize, const V: usize, const B: usize>(
        &mut self,
        isa: I,
        bag: usize,
        range: Range<usize>,
        first: usize,
        books: &[[[W; E]; 256]; B],
    ) -> Consistent {
        let CodeBags { rows, weights, pooling, .. } = *self.bags;
        let mut scales = [isa.splat(1.0); B];
        if W::SCALED {
            let of_books: &[f32; B] = self.scales.get(first..)?.first_chunk()?;
            scales = of_books.map(|scale| isa.splat(scale));
        }
        let mut sums = [[isa.splat(0.0); V]; B];
        for position in range.clone() {
            let codes = nth_row(self.codes, self.num_books, *rows.get(position)? as usize)?;
            let codes: &[u8; B] = codes.get(first..)?.first_chunk()?;
            if first == 0
                && let Some(&next) = rows.get(position + AHEAD)
            {
                prefetch_all(isa, nth_row(self.codes, self.num_books, next as usize)?, false);
            }
            let weight = match weights {
                Some(weights) => *weights.get(position)?,
                None => 1.0,
            };
            let weight = isa.splat(weight);
            let of_books = books.iter().zip(codes).zip(scales);
            for (sums, ((book, &code), scale)) in sums.iter_mut().zip(of_books) {
                let entry: &[W; E] = book.get(usize::from(code))?;
                for (sum, x) in sums.iter_mut().zip(entry.chunks_exact(I::LANES)) {
                    let x = W::load(isa, x);
                    let x = if W::SCALED { isa.mul(scale, x) } else { x };
                    *sum = if pooling != Pooling::Max {
                        // A product with 1 is exact.
                        isa.fma(weight, x, *sum)
                    } else if position == range.start {
                        x
                    } else {
                        isa.max(x, *sum)
                    };
                }
            }
        }
        if pooling == Pooling::Mean && range.len() > 1 {
            let count = isa.splat(range.len() as f32);
            sums = sums.map(|entry| entry.map(|sum| isa.div(sum, count)));
        }
        let out = self.out.get_mut(bag * self.out_stride + first * E..)?.get_mut(..B * E)?;
        for (&sum, out) in sums.iter().flatten().zip(out.chunks_exact_mut(I::LANES)) {
            isa.store(sum, out);
        }
        Some(())
    }
}

/// Where the entries of a few rows begin among the books.
struct EntryStarts<'s, 'o> {
    codes: &'s [u8],
    dtype: CodeDtype,
    /// The last entry of a book.
    last: u32,
    entry_len: u32,
    book_stride: u32,
    num_books: usize,
    /// The rows, and those that are looked up next.
    rows: &'s [u32],
    /// One for each book of each row.
    starts: &'o mut [u32],
}

impl Op for EntryStarts<'_, '_> {
    /// `None` if a row is out of bounds.
    type Output = Consistent;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Consistent {
        let Self { codes, dtype, num_books, rows, .. } = self;
        let row_len = dtype.row_len(num_books);
        // Below 2^32, as the books have fewer elements.
        let start = |first: u32, code: u32| {
            first.wrapping_add(code.min(self.last).wrapping_mul(self.entry_len))
        };
        let steps: [u32; 8] = core::array::from_fn(|at| self.book_stride.wrapping_mul(at as u32));
        let ahead = rows.get(AHEAD..).unwrap_or_default();
        for (at, (starts, &row)) in
            self.starts.chunks_exact_mut(num_books.max(1)).zip(rows).enumerate()
        {
            if let Some(&next) = ahead.get(at) {
                prefetch_all(isa, nth_row(codes, row_len, next as usize)?, false);
            }
            let row = nth_row(codes, row_len, row as usize)?;
            let mut first = 0u32;
            if dtype == CodeDtype::U8 {
                // Eight at a time, which the compiler turns into vectors.
                let (eights, starts) = starts.as_chunks_mut::<8>();
                let (codes, others) = row.as_chunks::<8>();
                for (to, codes) in eights.iter_mut().zip(codes) {
                    for ((to, &code), step) in to.iter_mut().zip(codes).zip(steps) {
                        *to = start(first.wrapping_add(step), code.into());
                    }
                    first = first.wrapping_add(self.book_stride.wrapping_mul(8));
                }
                for (to, &code) in starts.iter_mut().zip(others) {
                    *to = start(first, code.into());
                    first = first.wrapping_add(self.book_stride);
                }
            } else {
                for (book, to) in starts.iter_mut().enumerate() {
                    *to = start(first, dtype.get(row, book)?.into());
                    first = first.wrapping_add(self.book_stride);
                }
            }
        }
        Some(())
    }
}

/// Pools entries of a few rows.
struct PoolEntries<'s, 'o, W> {
    /// All books, one after another.
    books: &'s [W],
    /// One for each book, if the elements are scaled.
    scales: &'s [f32],
    entry_len: usize,
    /// The first book that is left to pool, if entries are put end to end.
    first_book: usize,
    num_books: usize,
    /// Whether entries are put end to end, or else added.
    is_concat: bool,
    /// Where the entries of the rows begin.
    starts: &'s [u32],
    /// The positions of these rows among those of the bags.
    rows: Range<usize>,
    /// The bag of the first row.
    bag: usize,
    bags: &'s CodeBags<'s>,
    out: &'o mut [f32],
    out_stride: usize,
}

impl<W: Weight> Op for PoolEntries<'_, '_, W> {
    /// The first bag that has rows left; `None` if something is out of bounds.
    type Output = Option<usize>;

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) -> Option<usize> {
        let num_bags = self.bags.offsets.len().saturating_sub(1);
        let mut bag = self.bag;
        while bag < num_bags {
            let range = self.bags.offsets.range(bag)?;
            let rows = range.start.max(self.rows.start)..range.end.min(self.rows.end);
            if rows.is_empty() && !range.is_empty() {
                break;
            }
            let is_last = range.end <= self.rows.end;
            let run = Run { bag, rows, range };
            self.entries(isa, &run)?;
            if !is_last {
                break;
            }
            bag += 1;
        }
        Some(bag)
    }
}

/// The rows of a bag that are pooled now.
struct Run {
    bag: usize,
    rows: Range<usize>,
    /// All rows of the bag.
    range: Range<usize>,
}

/// Some columns of a bag.
struct Block {
    /// The books of these columns: one, or those that are added.
    books: Range<usize>,
    /// The first column in an entry.
    column: usize,
    /// Columns of each vector: all lanes, or fewer.
    step: usize,
}

impl<W: Weight> PoolEntries<'_, '_, W> {
    #[inline(always)]
    fn entries<I: Isa>(&mut self, isa: I, run: &Run) -> Consistent {
        if self.is_concat {
            let mut books = self.first_book..self.num_books;
            books.try_for_each(|book| self.entry(isa, run, book..book + 1))
        } else {
            self.entry(isa, run, 0..self.num_books)
        }
    }

    /// The sum of the entries of these books, some columns at a time.
    #[inline(always)]
    fn entry<I: Isa>(&mut self, isa: I, run: &Run, books: Range<usize>) -> Consistent {
        let mut column = 0;
        while self.entry_len - column >= I::LANES {
            let block = Block { books: books.clone(), column, step: I::LANES };
            column += I::LANES
                * match (self.entry_len - column) / I::LANES {
                    4.. => self.block::<I, 4, true>(isa, run, block)?,
                    2.. => self.block::<I, 2, true>(isa, run, block)?,
                    _ => self.block::<I, 1, true>(isa, run, block)?,
                };
        }
        while column < self.entry_len {
            let step = (self.entry_len - column).min(4);
            let block = Block { books: books.clone(), column, step };
            self.block::<_, 1, false>(isa.narrow(), run, block)?;
            column += step;
        }
        Some(())
    }

    /// One block in `V` vectors of adjacent columns, of all lanes if `FULL`. Returns `V`.
    #[inline(always)]
    fn block<I: Isa, const V: usize, const FULL: bool>(
        &mut self,
        isa: I,
        run: &Run,
        Block { books, column, step }: Block,
    ) -> Option<usize> {
        let step = if FULL { I::LANES } else { step };
        let first = if self.is_concat {
            books.start * self.entry_len
        } else {
            0
        };
        let out = run.bag * self.out_stride + first + column;
        let mut sums = [isa.splat(0.0); V];
        if run.rows.start > run.range.start {
            let out = self.out.get(out..out + V * step)?;
            for (sum, out) in sums.iter_mut().zip(out.chunks(step.max(1))) {
                *sum = isa.load_f32(out);
            }
        }
        let is_max = self.bags.pooling == Pooling::Max;
        let of_rows = self.starts.chunks_exact(self.num_books.max(1));
        let of_rows = of_rows.skip(run.rows.start - self.rows.start);
        for (position, starts) in run.rows.clone().zip(of_rows) {
            let starts = starts.get(books.start..books.end)?;
            let mut row = [isa.splat(0.0); V];
            for (book, &start) in books.clone().zip(starts) {
                let scale = match self.scales.get(book) {
                    Some(&scale) if W::SCALED => isa.splat(scale),
                    _ => isa.splat(1.0),
                };
                let start = start as usize + column;
                for (to, at) in row.iter_mut().zip(0..) {
                    let x = self.load::<I, FULL>(isa, start + at * step, step, scale)?;
                    *to = if book == books.start { x } else { isa.add(*to, x) };
                }
            }
            if is_max && position == run.range.start {
                sums = row;
            } else if is_max {
                sums.iter_mut().zip(row).for_each(|(sum, x)| *sum = isa.max(x, *sum));
            } else {
                // A product with 1 is exact.
                let weight = match self.bags.weights {
                    Some(weights) => *weights.get(position)?,
                    None => 1.0,
                };
                let weight = isa.splat(weight);
                sums.iter_mut().zip(row).for_each(|(sum, x)| *sum = isa.fma(weight, x, *sum));
            }
        }
        let count = run.range.len();
        if self.bags.pooling == Pooling::Mean && count > 1 && run.rows.end == run.range.end {
            let count = isa.splat(count as f32);
            sums = sums.map(|sum| isa.div(sum, count));
        }
        let out = self.out.get_mut(out..out + V * step)?;
        for (&sum, out) in sums.iter().zip(out.chunks_mut(step.max(1))) {
            isa.store(sum, out);
        }
        Some(V)
    }

    /// `len` elements from `start` on, times the scale of the book.
    #[inline(always)]
    fn load<I: Isa, const FULL: bool>(
        &self,
        isa: I,
        start: usize,
        len: usize,
        scale: I::F32,
    ) -> Option<I::F32> {
        let units = |len: usize| self.books.get(start..start + len);
        // With the length known, the compiler copies no slice.
        let value = match len {
            _ if FULL => W::load(isa, units(I::LANES)?),
            1 => W::load(isa, units(1)?),
            2 => W::load(isa, units(2)?),
            3 => W::load(isa, units(3)?),
            _ => W::load(isa, units(len)?),
        };
        Some(if W::SCALED { isa.mul(scale, value) } else { value })
    }
}
