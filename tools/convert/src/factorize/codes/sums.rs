//! The codes of rows that are sums of entries, one of each book: a beam search, which keeps a few
//! of the best sums after each book.
//!
//! The squared distance of a row x and a sum of entries is `|x|^2` and twice this: the half of the
//! squared norm of each entry, less its product with x, and the product of each two entries.

use super::Shape;
use crate::matrix::{View, multiply};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Sums that the search keeps after each book.
const BEAM: usize = 8;
/// Rows that one thread codes at once.
const CHUNK: usize = 256;
/// Distances that are compared at once. A book has a multiple of them.
const BLOCK: usize = 16;

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
        let books = self.halves.len() / self.book_len;
        let mut codes = vec![0; rows.len() / self.rank * books];
        rows.par_chunks(CHUNK * self.rank)
            .zip(codes.par_chunks_mut(CHUNK * books))
            .for_each_init(Vec::new, |products, (rows, codes)| {
                products.resize(rows.len() / self.rank * self.halves.len(), 0.0);
                let entries = View::row_major(&self.entries, self.rank);
                multiply(View::row_major(rows, self.rank), entries.transpose(), products);
                Arch::new().dispatch(Search { sums: self, products, codes });
            });
        codes
    }
}

/// The search for the codes of some rows.
struct Search<'s> {
    sums: &'s Sums,
    /// The product of each row with each entry.
    products: &'s [f32],
    codes: &'s mut [u16],
}

/// The best sums of a row so far, the best first.
type Best = [Found; BEAM];

/// A sum of entries.
#[derive(Clone, Copy)]
struct Found {
    /// Half of the squared distance from the row, without the row's norm.
    distance: f32,
    /// The sum that it extends, and the code that it adds.
    sum: u16,
    code: u16,
}

impl Found {
    /// Farther than any sum.
    const NONE: Self = Self { distance: f32::INFINITY, sum: 0, code: 0 };
    /// The sum of no entries.
    const EMPTY: Self = Self { distance: 0.0, ..Self::NONE };
}

impl WithSimd for Search<'_> {
    type Output = ();

    // Loops instead of closures, which are not compiled for the CPU's vectors. One book after
    // another is searched for all rows, so that its products with others stay in the cache.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { sums, products, codes } = self;
        let (entries, book_len) = (sums.halves.len(), sums.book_len);
        let (books, rows) = (entries / book_len, products.len() / entries);
        let mut best = vec![[Found::EMPTY; BEAM]; rows];
        // The codes of each sum of each row.
        let mut kept = vec![0; rows * BEAM * books];
        let (mut before, mut distances) = (vec![0; BEAM * books], vec![0.0; book_len]);
        for book in 0..books {
            let first = book * book_len;
            let halves = S::as_simd_f32s(&sums.halves[first..][..book_len]).0;
            let count = if book == 0 { 1 } else { BEAM };
            for (row, best) in best.iter_mut().enumerate() {
                let kept = &mut kept[row * BEAM * books..][..BEAM * books];
                let products = S::as_simd_f32s(&products[row * entries + first..][..book_len]).0;
                let mut found = [Found::NONE; BEAM];
                for sum in 0..count {
                    let out = S::as_mut_simd_f32s(&mut distances).0;
                    let start = simd.splat_f32s(best[sum].distance);
                    for at in 0..out.len() {
                        out[at] = simd.sub_f32s(simd.add_f32s(start, halves[at]), products[at]);
                    }
                    for other in 0..book {
                        let entry = other * book_len + usize::from(kept[sum * books + other]);
                        let with = &sums.products[entry * entries + first..][..book_len];
                        let with = S::as_simd_f32s(with).0;
                        for at in 0..out.len() {
                            out[at] = simd.add_f32s(out[at], with[at]);
                        }
                    }
                    insert(&mut found, &distances, sum);
                }
                before.copy_from_slice(kept);
                for (sum, found) in found.iter().enumerate() {
                    let kept = &mut kept[sum * books..][..book + 1];
                    kept[..book].copy_from_slice(&before[usize::from(found.sum) * books..][..book]);
                    kept[book] = found.code;
                }
                *best = found;
            }
        }
        let kept = kept.chunks_exact(BEAM * books);
        codes
            .chunks_exact_mut(books)
            .zip(kept)
            .for_each(|(codes, kept)| codes.copy_from_slice(&kept[..books]));
    }
}

/// Inserts the sums with these distances that are among the best.
#[inline(always)]
fn insert(found: &mut Best, distances: &[f32], sum: usize) {
    for (block, distances) in distances.as_chunks::<BLOCK>().0.iter().enumerate() {
        let farthest = found[BEAM - 1].distance;
        let mut near = false;
        for &distance in distances {
            near |= distance < farthest;
        }
        if !near {
            continue;
        }
        for (lane, &distance) in distances.iter().enumerate() {
            if distance < found[BEAM - 1].distance {
                let mut place = BEAM - 1;
                while place > 0 && distance < found[place - 1].distance {
                    found[place] = found[place - 1];
                    place -= 1;
                }
                let code = (block * BLOCK + lane) as u16;
                found[place] = Found { distance, sum: sum as u16, code };
            }
        }
    }
}
