//! Bags over codebook tables. The codes of a few rows become the positions of their entries, and
//! the entries are then added straight into registers.

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
    let mut bag = 0;
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
            num_books: table.num_books,
            is_concat: table.combine == Combine::Concat,
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
    /// The books of these columns: one for each vector, or else those that are added.
    books: Range<usize>,
    /// The first column in an entry.
    column: usize,
    /// Columns of each vector: all lanes, or fewer.
    step: usize,
}

impl<W: Weight> PoolEntries<'_, '_, W> {
    #[inline(always)]
    fn entries<I: Isa>(&mut self, isa: I, run: &Run) -> Consistent {
        if !self.is_concat {
            return self.entry(isa, run, 0..self.num_books);
        }
        match self.entry_len {
            len if len == I::LANES => self.short_entries(isa, run),
            8 if I::LANES > 8 => self.short_entries(isa.half(), run),
            4 if I::LANES > 4 => self.short_entries(isa.narrow(), run),
            _ => (0..self.num_books).try_for_each(|book| self.entry(isa, run, book..book + 1)),
        }
    }

    /// Entries of as many columns as a vector has lanes, of several books at a time.
    #[inline(always)]
    fn short_entries<I: Isa>(&mut self, isa: I, run: &Run) -> Consistent {
        let mut book = 0;
        while book < self.num_books {
            let block =
                |count: usize| Block { books: book..book + count, column: 0, step: I::LANES };
            book += match self.num_books - book {
                8.. => self.block::<I, 8, true, true>(isa, run, block(8))?,
                4.. => self.block::<I, 4, true, true>(isa, run, block(4))?,
                _ => self.block::<I, 1, true, true>(isa, run, block(1))?,
            };
        }
        Some(())
    }

    /// The sum of the entries of these books, some columns at a time.
    #[inline(always)]
    fn entry<I: Isa>(&mut self, isa: I, run: &Run, books: Range<usize>) -> Consistent {
        let mut column = 0;
        while self.entry_len - column >= I::LANES {
            let block = Block { books: books.clone(), column, step: I::LANES };
            column += I::LANES
                * match (self.entry_len - column) / I::LANES {
                    4.. => self.block::<I, 4, false, true>(isa, run, block)?,
                    2.. => self.block::<I, 2, false, true>(isa, run, block)?,
                    _ => self.block::<I, 1, false, true>(isa, run, block)?,
                };
        }
        while column < self.entry_len {
            let step = (self.entry_len - column).min(4);
            let block = Block { books: books.clone(), column, step };
            self.block::<_, 1, false, false>(isa.narrow(), run, block)?;
            column += step;
        }
        Some(())
    }

    /// One block in `V` vectors: one for each book if `ACROSS`, or else of adjacent columns; of
    /// all lanes if `FULL`. Returns `V`.
    #[inline(always)]
    fn block<I: Isa, const V: usize, const ACROSS: bool, const FULL: bool>(
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
        let scales = self.scales_of::<I, V, ACROSS>(isa, &books)?;
        let is_max = self.bags.pooling == Pooling::Max;
        let of_rows = self.starts.chunks_exact(self.num_books.max(1));
        let of_rows = of_rows.skip(run.rows.start - self.rows.start);
        for (position, starts) in run.rows.clone().zip(of_rows) {
            let starts = starts.get(books.start..books.end)?;
            let mut row = [isa.splat(0.0); V];
            if ACROSS {
                let starts: &[u32; V] = starts.first_chunk()?;
                for ((to, &start), scale) in row.iter_mut().zip(starts).zip(scales) {
                    *to = self.load::<I, FULL>(isa, start as usize, step, scale)?;
                }
            } else {
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

    /// The scale of the book of each vector, if each has a book and a scale.
    #[inline(always)]
    fn scales_of<I: Isa, const V: usize, const ACROSS: bool>(
        &self,
        isa: I,
        books: &Range<usize>,
    ) -> Option<[I::F32; V]> {
        if !W::SCALED || !ACROSS {
            return Some([isa.splat(1.0); V]);
        }
        let scales: &[f32; V] = self.scales.get(books.clone())?.first_chunk()?;
        Some(scales.map(|scale| isa.splat(scale)))
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
