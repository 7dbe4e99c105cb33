//! Bags over codebook tables, straight into registers: the entries of several books at a time if
//! they are put end to end ([`PoolConcat`]), or some columns of a wide entry or of the sum of all
//! books ([`PoolSums`]).

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

/// Books whose entries are pooled at a time: so many sums fit into registers on every tier, and
/// their codes are whole bytes in every type.
const BOOKS: usize = 8;
/// Bytes that the nearest cache is sure to keep, so that prefetching them is of no use.
const NEAREST: usize = 32 << 10;
/// The most lanes of a vector that may reach beyond the last entry.
const TAIL: usize = 4;

/// Bags of rows of a codebook table, which are pooled as they are before the projection.
#[derive(Clone, Copy)]
pub(crate) struct CodeBags<'s> {
    /// The numbers of the rows.
    pub(crate) rows: &'s [u32],
    /// Bag b is `rows[offsets[b]..offsets[b + 1]]`.
    pub(crate) offsets: Indices<'s>,
    pub(crate) weights: Option<&'s [f32]>,
    pub(crate) pooling: Pooling,
}

/// Pools bags into rows of `inner_dim` elements that are `out_stride` elements apart; `None` on the
/// scalar tier, too, which has no such kernel.
pub(crate) fn pool_codes(
    tier: Tier,
    table: &Codebook<'_>,
    bags: &CodeBags<'_>,
    out: &mut [f32],
    out_stride: usize,
) -> Consistent {
    let &Codebook { codes, code_dtype, num_books, scales, .. } = table;
    let codes = Codes {
        codes,
        dtype: code_dtype,
        num_books,
        row_len: code_dtype.row_len(num_books),
        last: table.book_len.checked_sub(1)?,
    };
    with_core_elements!(table.books, books => {
        let entries = Entries::new(books, scales, table.entry_len(), table.book_len);
        let pool = Pool { codes, entries, bags: *bags, out, out_stride };
        match table.combine {
            Combine::Concat if !pool.is_wide() => tier.run_vector(PoolConcat(pool)),
            Combine::Concat => tier.run_vector(PoolSums { pool, group: 1 }),
            _ => tier.run_vector(PoolSums { pool, group: num_books }),
        }
    })??
}

/// The codes of all rows.
#[derive(Clone, Copy)]
struct Codes<'s> {
    codes: &'s [u8],
    dtype: CodeDtype,
    num_books: usize,
    /// The bytes of a row.
    row_len: usize,
    /// The last entry of a book.
    last: usize,
}

impl<'s> Codes<'s> {
    #[inline(always)]
    fn row(&self, row: u32) -> Option<&'s [u8]> {
        nth_row(self.codes, self.row_len, row as usize)
    }

    /// Whether each byte is a code that has an entry.
    fn are_bytes(&self) -> bool {
        self.dtype == CodeDtype::U8 && self.last == 255
    }

    /// The entries of [`BOOKS`] books from `first` on; where there are fewer books, the last one's.
    #[inline(always)]
    fn entries(&self, row: &[u8], first: usize) -> Option<[usize; BOOKS]> {
        let mut entries = [0; BOOKS];
        let in_half_byte = self.dtype == CodeDtype::U12 && !first.is_multiple_of(2);
        if first + BOOKS > self.num_books || in_half_byte {
            for (entry, book) in entries.iter_mut().zip(first..) {
                *entry = self.entry(row, book.min(self.num_books - 1))?;
            }
            return Some(entries);
        }
        match self.dtype {
            CodeDtype::U8 => {
                let codes: &[u8; BOOKS] = row.get(first..)?.first_chunk()?;
                entries = codes.map(usize::from);
            }
            CodeDtype::U12 => {
                let codes: &[u8; BOOKS / 2 * 3] = row.get(first / 2 * 3..)?.first_chunk()?;
                for (entries, &[low, middle, high]) in
                    entries.as_chunks_mut().0.iter_mut().zip(codes.as_chunks().0)
                {
                    let [low, middle, high] = [low, middle, high].map(usize::from);
                    *entries = [low | (middle & 0xF) << 8, middle >> 4 | high << 4];
                }
            }
            CodeDtype::U16 => {
                let codes: &[u8; BOOKS * 2] = row.get(first * 2..)?.first_chunk()?;
                for (entry, &code) in entries.iter_mut().zip(codes.as_chunks().0) {
                    *entry = u16::from_le_bytes(code).into();
                }
            }
        }
        Some(entries.map(|entry| entry.min(self.last)))
    }

    /// The entry of one book.
    #[inline(always)]
    fn entry(&self, row: &[u8], book: usize) -> Option<usize> {
        Some(usize::from(self.dtype.get(row, book)?).min(self.last))
    }
}

/// The entries of all books.
#[derive(Clone, Copy)]
struct Entries<'s, W> {
    /// One book after another.
    books: &'s [W],
    /// One for each book, if the elements are scaled.
    scales: &'s [f32],
    entry_len: usize,
    book_stride: usize,
    /// The last elements, followed by zeros: what vectors that reach beyond the last entry read.
    tail: [W; 2 * TAIL],
}

impl<'s, W: Weight + Default> Entries<'s, W> {
    fn new(books: &'s [W], scales: &'s [f32], entry_len: usize, book_len: usize) -> Self {
        let mut tail = [W::default(); 2 * TAIL];
        let last = books.len().saturating_sub(TAIL);
        tail.iter_mut()
            .zip(books.iter().skip(last))
            .for_each(|(to, &element)| *to = element);
        Self { books, scales, entry_len, book_stride: book_len * entry_len, tail }
    }

    /// What the elements of a book are multiplied by.
    #[inline(always)]
    fn scale<I: Isa>(&self, isa: I, book: usize) -> Option<I::F32> {
        Some(isa.splat(if W::SCALED { *self.scales.get(book)? } else { 1.0 }))
    }

    #[inline(always)]
    fn scales<I: Isa, const B: usize>(&self, isa: I, books: [usize; B]) -> Option<[I::F32; B]> {
        let mut scales = [isa.splat(1.0); B];
        for (scale, book) in scales.iter_mut().zip(books) {
            *scale = self.scale(isa, book)?;
        }
        Some(scales)
    }

    /// A vector of elements from `start` on, times `scale`. Where entries are narrower than the
    /// vector, other elements follow them.
    #[inline(always)]
    fn load<I: Isa>(&self, isa: I, start: usize, scale: I::F32) -> Option<I::F32> {
        let units = match self.books.get(start..)?.get(..I::LANES) {
            Some(units) => units,
            None if I::LANES <= TAIL => {
                let start = start.checked_sub(self.books.len().saturating_sub(TAIL))?;
                self.tail.get(start..)?.get(..I::LANES)?
            }
            None => return None,
        };
        let x = W::load(isa, units);
        Some(if W::SCALED { isa.mul(scale, x) } else { x })
    }
}

/// Some vectors of each row.
// A trait and not a closure, which the compiler does not always inline: then the vectors go through
// memory.
trait Part<I: Isa, const V: usize> {
    /// Whether rows without weights have a loop of their own, which adds faster than it multiplies:
    /// of numbers, the sums are the same.
    const ADDS: bool = false;
    /// The codes of these vectors in a row.
    type Codes<'r>;
    fn codes<'r>(&self, row: &'r [u8]) -> Option<Self::Codes<'r>>;
    /// The vectors from number `at * V` on.
    fn vectors(&self, isa: I, codes: &Self::Codes<'_>, at: usize) -> Option<[I::F32; V]>;
}

/// What both kernels work on.
struct Pool<'s, 'o, W> {
    codes: Codes<'s>,
    entries: Entries<'s, W>,
    bags: CodeBags<'s>,
    out: &'o mut [f32],
    out_stride: usize,
}

impl<W: Weight + Default> Pool<'_, '_, W> {
    fn num_bags(&self) -> usize {
        self.bags.offsets.len().saturating_sub(1)
    }

    /// Whether entries fill the vectors of every tier, and too few books have them for
    /// [`PoolConcat`].
    fn is_wide(&self) -> bool {
        let Self { codes, entries, .. } = self;
        entries.entry_len > 16 && codes.num_books < BOOKS
            || entries.entry_len == 16 && codes.num_books < 4
    }

    /// Pools some vectors of the rows of a bag.
    #[inline(always)]
    fn pool<I: Isa, P: Part<I, V>, const V: usize, const B: usize>(
        &self,
        isa: I,
        range: &Range<usize>,
        part: &P,
    ) -> Option<[[I::F32; V]; B]> {
        let CodeBags { rows, weights, pooling, .. } = self.bags;
        let mut sums = [[isa.splat(0.0); V]; B];
        let found = rows.get(range.clone())?;
        if P::ADDS && pooling != Pooling::Max && weights.is_none() {
            for &row in found {
                let row = self.codes.row(row)?;
                add_row(isa, part, row, &mut sums, |sum, x| isa.add(sum, x))?;
            }
        } else {
            for (&row, position) in found.iter().zip(range.clone()) {
                let weight = match weights {
                    Some(weights) => *weights.get(position)?,
                    None => 1.0,
                };
                let (is_first, weight) = (position == range.start, isa.splat(weight));
                let row = self.codes.row(row)?;
                add_row(isa, part, row, &mut sums, |sum, x| {
                    if pooling != Pooling::Max {
                        // A product with 1 is exact.
                        isa.fma(weight, x, sum)
                    } else if is_first {
                        x
                    } else {
                        isa.max(x, sum)
                    }
                })?;
            }
        }
        if pooling == Pooling::Mean && range.len() > 1 {
            let count = isa.splat(range.len() as f32);
            // Not `map`, which the compiler does not always inline.
            for sum in sums.as_flattened_mut() {
                *sum = isa.div(*sum, count);
            }
        }
        Some(sums)
    }

    /// Writes the columns of a bag from `column` on, of which the vector may have more.
    #[inline(always)]
    fn store<I: Isa>(&mut self, isa: I, bag: usize, column: usize, sum: I::F32) -> Consistent {
        let len = self.entries.entry_len.min(I::LANES);
        let out = self.out.get_mut(bag * self.out_stride + column..)?.get_mut(..len)?;
        isa.store(sum, out);
        Some(())
    }
}

/// Combines some vectors of a row with what `sums` has of the rows before it.
#[inline(always)]
fn add_row<I: Isa, P: Part<I, V>, const V: usize, const B: usize>(
    isa: I,
    part: &P,
    row: &[u8],
    sums: &mut [[I::F32; V]; B],
    combine: impl Fn(I::F32, I::F32) -> I::F32,
) -> Consistent {
    let codes = part.codes(row)?;
    for (at, sums) in sums.iter_mut().enumerate() {
        for (sum, x) in sums.iter_mut().zip(part.vectors(isa, &codes, at)?) {
            *sum = combine(*sum, x);
        }
    }
    Some(())
}

/// Prefetches the codes of as many rows as a bag has, from [`AHEAD`] rows after it on.
// Not inlined, since it is the same for every type of entries.
#[inline(never)]
fn prefetch<I: Isa>(isa: I, codes: &Codes<'_>, rows: &[u32], bag: &Range<usize>) {
    if codes.codes.len() > NEAREST {
        let ahead = rows.get(bag.start + AHEAD..).unwrap_or_default();
        for row in ahead.iter().take(bag.len()).filter_map(|&row| codes.row(row)) {
            prefetch_all(isa, row, false);
        }
    }
}

/// Entries that are put end to end.
struct PoolConcat<'s, 'o, W>(Pool<'s, 'o, W>);

impl<W: Weight + Default> Op for PoolConcat<'_, '_, W> {
    /// `None` if something is out of bounds.
    type Output = Consistent;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Consistent {
        let Pool { codes, entries, .. } = self.0;
        if codes.are_bytes() {
            match (entries.entry_len, codes.num_books) {
                (4, 8..) => return self.bytes::<_, 4, 1, 8>(isa.narrow()),
                (4, 4..) => return self.bytes::<_, 4, 1, 4>(isa.narrow()),
                (8, 4..) if const { I::LANES == 4 } => return self.bytes::<_, 8, 2, 4>(isa),
                (8, 8..) if const { I::LANES == 8 } => return self.bytes::<_, 8, 1, 8>(isa),
                (8, 4..) if const { I::LANES == 8 } => return self.bytes::<_, 8, 1, 4>(isa),
                (8, 8..) if const { I::LANES > 8 } => return self.bytes::<_, 8, 1, 8>(isa.half()),
                (8, 4..) if const { I::LANES > 8 } => return self.bytes::<_, 8, 1, 4>(isa.half()),
                (16, 4..) if const { I::LANES == 4 } => return self.bytes::<_, 16, 4, 4>(isa),
                (16, 4..) if const { I::LANES == 8 } => return self.bytes::<_, 16, 2, 4>(isa),
                (16, 4..) if const { I::LANES > 8 } => return self.bytes::<_, 16, 1, 4>(isa),
                _ => {}
            }
        }
        match entries.entry_len {
            // Wider vectors would be a fifth more code, and are seldom filled.
            8.. if const { I::LANES == 8 } => self.books(isa),
            8.. => self.books(isa.half()),
            _ => self.books(isa.narrow()),
        }
    }
}

impl<W: Weight + Default> PoolConcat<'_, '_, W> {
    /// At least `B` books of 256 entries of `E` elements, `V` vectors, and codes that are bytes.
    #[inline(always)]
    fn bytes<I: Isa, const E: usize, const V: usize, const B: usize>(
        mut self,
        isa: I,
    ) -> Consistent {
        let Pool { codes, entries, .. } = self.0;
        let all = entries.books.as_chunks::<E>().0.as_chunks::<256>().0;
        // The last books may overlap those before them.
        let last = codes.num_books.checked_sub(B)?;
        for bag in 0..self.0.num_bags() {
            let range = self.0.bags.offsets.range(bag)?;
            prefetch(isa, &codes, self.0.bags.rows, &range);
            for first in (0..codes.num_books).step_by(B) {
                let first = first.min(last);
                let books = all.get(first..)?.first_chunk::<B>()?;
                let scales = entries.scales(isa, core::array::from_fn(|at| first + at))?;
                let part = Bytes { books, first, scales };
                let sums = self.0.pool::<_, _, V, B>(isa, &range, &part)?;
                for (at, &sum) in sums.as_flattened().iter().enumerate() {
                    self.0.store(isa, bag, first * E + at * I::LANES, sum)?;
                }
            }
        }
        Some(())
    }

    /// All other books.
    #[inline(always)]
    fn books<I: Isa>(mut self, isa: I) -> Consistent {
        let Pool { codes, entries, .. } = self.0;
        // The last books and the last vector of an entry may overlap those before them.
        let last_book = codes.num_books.saturating_sub(BOOKS);
        let last_column = entries.entry_len.saturating_sub(I::LANES);
        for bag in 0..self.0.num_bags() {
            let range = self.0.bags.offsets.range(bag)?;
            prefetch(isa, &codes, self.0.bags.rows, &range);
            for first in (0..codes.num_books).step_by(BOOKS) {
                let first = first.min(last_book);
                let books: [usize; BOOKS] =
                    core::array::from_fn(|at| (first + at).min(codes.num_books - 1));
                let scales = entries.scales(isa, books)?;
                for column in (0..entries.entry_len).step_by(I::LANES) {
                    let column = column.min(last_column);
                    let starts = books.map(|book| book * entries.book_stride + column);
                    let part = Books { codes, entries, first, starts, scales };
                    let sums = self.0.pool::<_, _, 1, BOOKS>(isa, &range, &part)?;
                    for ([sum], book) in sums.into_iter().zip(books) {
                        self.0.store(isa, bag, book * entries.entry_len + column, sum)?;
                    }
                }
            }
        }
        Some(())
    }
}

/// Entries of `B` books of 256. Every byte is a code, so that its entry is found without a
/// multiplication or a check.
struct Bytes<'s, F, W, const E: usize, const B: usize> {
    books: &'s [[[W; E]; 256]; B],
    /// The first of these books.
    first: usize,
    scales: [F; B],
}

impl<I: Isa, W: Weight, const E: usize, const V: usize, const B: usize> Part<I, V>
    for Bytes<'_, I::F32, W, E, B>
{
    const ADDS: bool = true;
    type Codes<'r> = &'r [u8; B];

    #[inline(always)]
    fn codes<'r>(&self, row: &'r [u8]) -> Option<&'r [u8; B]> {
        row.get(self.first..)?.first_chunk()
    }

    #[inline(always)]
    fn vectors(&self, isa: I, codes: &&[u8; B], at: usize) -> Option<[I::F32; V]> {
        let entry: &[W; E] = self.books.get(at)?.get(usize::from(*codes.get(at)?))?;
        let mut vectors = [isa.splat(0.0); V];
        for (vector, units) in vectors.iter_mut().zip(entry.chunks_exact(I::LANES)) {
            let x = W::load(isa, units);
            *vector = if W::SCALED {
                isa.mul(*self.scales.get(at)?, x)
            } else {
                x
            };
        }
        Some(vectors)
    }
}

/// A vector of the entries of eight books.
struct Books<'s, F, W> {
    codes: Codes<'s>,
    entries: Entries<'s, W>,
    /// The first of these books.
    first: usize,
    /// Where the vector of the first entry of each book begins.
    starts: [usize; BOOKS],
    scales: [F; BOOKS],
}

impl<I: Isa, W: Weight + Default> Part<I, 1> for Books<'_, I::F32, W> {
    type Codes<'r> = [usize; BOOKS];

    #[inline(always)]
    fn codes(&self, row: &[u8]) -> Option<[usize; BOOKS]> {
        self.codes.entries(row, self.first)
    }

    #[inline(always)]
    fn vectors(&self, isa: I, entries: &[usize; BOOKS], at: usize) -> Option<[I::F32; 1]> {
        let start = self.starts.get(at)? + entries.get(at)? * self.entries.entry_len;
        Some([self.entries.load(isa, start, *self.scales.get(at)?)?])
    }
}

/// The sums of `group` books at a time, put end to end: of all books, or of each alone.
struct PoolSums<'s, 'o, W> {
    pool: Pool<'s, 'o, W>,
    group: usize,
}

impl<W: Weight + Default> Op for PoolSums<'_, '_, W> {
    /// `None` if something is out of bounds.
    type Output = Consistent;

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) -> Consistent {
        let Pool { codes, entries, .. } = self.pool;
        for bag in 0..self.pool.num_bags() {
            let range = self.pool.bags.offsets.range(bag)?;
            prefetch(isa, &codes, self.pool.bags.rows, &range);
            for first in (0..codes.num_books).step_by(self.group) {
                let (entry_len, mut column) = (entries.entry_len, 0);
                while entry_len - column >= 4 * I::LANES {
                    self.columns::<_, 4>(isa, bag, first, column)?;
                    column += 4 * I::LANES;
                }
                while column < entry_len {
                    column = if entry_len >= I::LANES {
                        // The last vector may overlap the one before it.
                        column = column.min(entry_len - I::LANES);
                        self.columns::<_, 1>(isa, bag, first, column)?;
                        column + I::LANES
                    } else {
                        let isa = isa.narrow();
                        column = column.min(entry_len.saturating_sub(TAIL));
                        self.columns::<_, 1>(isa, bag, first, column)?;
                        column + TAIL
                    }
                }
            }
        }
        Some(())
    }
}

impl<W: Weight + Default> PoolSums<'_, '_, W> {
    /// The columns of a bag's group from `column` on, in `V` vectors.
    #[inline(always)]
    fn columns<I: Isa, const V: usize>(
        &mut self,
        isa: I,
        bag: usize,
        first: usize,
        column: usize,
    ) -> Consistent {
        let Pool { codes, entries, .. } = self.pool;
        let range = self.pool.bags.offsets.range(bag)?;
        let part = Sum { codes, entries, books: first..first + self.group, column };
        let [sums] = self.pool.pool::<_, _, V, 1>(isa, &range, &part)?;
        let column = first / self.group * entries.entry_len + column;
        for (at, sum) in sums.into_iter().enumerate() {
            self.pool.store(isa, bag, column + at * I::LANES, sum)?;
        }
        Some(())
    }
}

/// Some columns of the sum of some books.
struct Sum<'s, W> {
    codes: Codes<'s>,
    entries: Entries<'s, W>,
    books: Range<usize>,
    column: usize,
}

impl<I: Isa, W: Weight + Default, const V: usize> Part<I, V> for Sum<'_, W> {
    type Codes<'r> = &'r [u8];

    #[inline(always)]
    fn codes<'r>(&self, row: &'r [u8]) -> Option<&'r [u8]> {
        Some(row)
    }

    #[inline(always)]
    fn vectors(&self, isa: I, row: &&[u8], _: usize) -> Option<[I::F32; V]> {
        let Self { codes, ref entries, ref books, column } = *self;
        let mut sums = [isa.splat(0.0); V];
        for book in books.clone() {
            let entry = codes.entry(row, book)?;
            let start = book * entries.book_stride + entry * entries.entry_len + column;
            let scale = entries.scale(isa, book)?;
            for (at, sum) in sums.iter_mut().enumerate() {
                let x = entries.load(isa, start + at * I::LANES, scale)?;
                *sum = if book == books.start { x } else { isa.add(*sum, x) };
            }
        }
        Some(sums)
    }
}
