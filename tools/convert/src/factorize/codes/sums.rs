//! The codes of rows that are sums of entries, one of each book: a beam search, which keeps a few of
//! the best sums after each book.
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

/// One of the best sums so far.
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
}

impl WithSimd for Search<'_> {
    type Output = ();

    // Loops instead of closures, which are not compiled for the CPU's vectors.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { sums, products, codes } = self;
        let (entries, book_len) = (sums.halves.len(), sums.book_len);
        let books = entries / book_len;
        let mut distances = vec![0.0; book_len];
        // The codes of each sum.
        let (mut kept, mut extended) = (vec![0; BEAM * books], vec![0; BEAM * books]);
        let mut others = Vec::with_capacity(books);
        for (products, codes) in products.chunks_exact(entries).zip(codes.chunks_exact_mut(books)) {
            let mut found = [Found { distance: 0.0, ..Found::NONE }; BEAM];
            let mut count = 1;
            for book in 0..books {
                let first = book * book_len;
                let halves = S::as_simd_f32s(&sums.halves[first..][..book_len]).0;
                let products = S::as_simd_f32s(&products[first..][..book_len]).0;
                let before = std::mem::replace(&mut found, [Found::NONE; BEAM]);
                for (sum, before) in before[..count].iter().enumerate() {
                    others.clear();
                    for (other, &code) in kept[sum * books..][..book].iter().enumerate() {
                        let entry = other * book_len + usize::from(code);
                        let other = &sums.products[entry * entries + first..][..book_len];
                        others.push(S::as_simd_f32s(other).0);
                    }
                    let before = simd.splat_f32s(before.distance);
                    let out = S::as_mut_simd_f32s(&mut distances).0;
                    for at in 0..out.len() {
                        let mut x = simd.sub_f32s(simd.add_f32s(before, halves[at]), products[at]);
                        for other in &others {
                            x = simd.add_f32s(x, other[at]);
                        }
                        out[at] = x;
                    }
                    insert(&mut found, &distances, sum);
                }
                count = BEAM;
                for (sum, found) in found.iter().enumerate() {
                    let extended = &mut extended[sum * books..][..book + 1];
                    let before = &kept[usize::from(found.sum) * books..][..book];
                    extended[..book].copy_from_slice(before);
                    extended[book] = found.code;
                }
                std::mem::swap(&mut kept, &mut extended);
            }
            codes.copy_from_slice(&kept[..books]);
        }
    }
}

/// Inserts the sums with these distances that are among the best, in their order.
#[inline(always)]
fn insert(found: &mut [Found; BEAM], distances: &[f32], sum: usize) {
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
