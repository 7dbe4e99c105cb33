//! The nearest entry of a book for many points.
//!
//! The squared distance of a point x and an entry c is `|x|^2 + 2 (|c|^2 / 2 - x c)`, of which only
//! the part in parentheses depends on the entry. The product with four entries at once and the
//! comparison are one loop: entries are so narrow that a matrix product would spend most of its
//! time on storing the distances.

use pulp::{Arch, Simd, WithSimd};

/// Points that are compared at once: twice the lanes of the widest vectors.
const BLOCK: usize = 32;
/// Entries that are compared at once. A book has a multiple of them.
const ENTRIES: usize = 4;

/// A book, arranged for the search.
pub(super) struct Searched {
    width: usize,
    /// The negative elements of every four entries, column for column.
    elements: Vec<f32>,
    /// Half of the squared norm of each entry.
    halves: Vec<f32>,
}

impl Searched {
    /// `entries` are rows of `width` elements.
    pub(super) fn new(entries: &[f32], width: usize) -> Self {
        let element = |entries: &[f32], at: usize| -entries[at % ENTRIES * width + at / ENTRIES];
        let of_four = |entries: &[f32]| {
            (0..ENTRIES * width).map(|at| element(entries, at)).collect::<Vec<_>>()
        };
        let half = |entry: &[f32]| entry.iter().map(|x| x * x).sum::<f32>() / 2.0;
        Self {
            width,
            elements: entries.chunks_exact(ENTRIES * width).flat_map(of_four).collect(),
            halves: entries.chunks_exact(width).map(half).collect(),
        }
    }

    /// The nearest entry of each point, and half of the squared distance without the point's own
    /// norm. `columns` holds the points column by column, each column `stride` elements after the
    /// one before it.
    pub(super) fn nearest(
        &self,
        columns: &[f32],
        stride: usize,
        codes: &mut [u16],
        distances: &mut [f32],
    ) {
        Arch::new().dispatch(Search { book: self, columns, stride, codes, distances });
    }
}

struct Search<'s> {
    book: &'s Searched,
    columns: &'s [f32],
    stride: usize,
    codes: &'s mut [u16],
    distances: &'s mut [f32],
}

impl WithSimd for Search<'_> {
    type Output = ();

    // Loops instead of closures, which are not compiled for the CPU's vectors.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { book, columns, stride, codes, distances } = self;
        let of_block = BLOCK / S::F32_LANES;
        let mut points = vec![0.0; book.width * BLOCK];
        let (mut least, mut nearest) = ([0.0f32; BLOCK], [0u32; BLOCK]);
        let blocks = codes.chunks_mut(BLOCK).zip(distances.chunks_mut(BLOCK));
        for (block, (codes, distances)) in blocks.enumerate() {
            for (column, points) in points.chunks_exact_mut(BLOCK).enumerate() {
                let from = column * stride + block * BLOCK;
                points[..codes.len()].copy_from_slice(&columns[from..][..codes.len()]);
            }
            let points = S::as_simd_f32s(&points).0;
            let least_of = S::as_mut_simd_f32s(&mut least).0;
            let nearest_of = S::as_mut_simd_u32s(&mut nearest).0;
            for at in (0..of_block).step_by(2) {
                let mut low = [simd.splat_f32s(f32::INFINITY); 2];
                let mut low_at = [simd.splat_u32s(0); 2];
                let mut number = 0;
                let entries = book.elements.chunks_exact(ENTRIES * book.width);
                for (elements, halves) in entries.zip(book.halves.as_chunks::<ENTRIES>().0) {
                    let mut sums = [[simd.splat_f32s(0.0); 2]; ENTRIES];
                    for (sums, &half) in sums.iter_mut().zip(halves) {
                        *sums = [simd.splat_f32s(half); 2];
                    }
                    let elements = elements.as_chunks::<ENTRIES>().0;
                    for (elements, points) in elements.iter().zip(points.chunks_exact(of_block)) {
                        let pair = [points[at], points[at + 1]];
                        for (sums, &element) in sums.iter_mut().zip(elements) {
                            let element = simd.splat_f32s(element);
                            sums[0] = simd.mul_add_f32s(element, pair[0], sums[0]);
                            sums[1] = simd.mul_add_f32s(element, pair[1], sums[1]);
                        }
                    }
                    for sums in &sums {
                        let this = simd.splat_u32s(number);
                        for half in 0..2 {
                            let less = simd.less_than_f32s(sums[half], low[half]);
                            low[half] = simd.select_f32s(less, sums[half], low[half]);
                            low_at[half] = simd.select_u32s(less, this, low_at[half]);
                        }
                        number += 1;
                    }
                }
                least_of[at..at + 2].copy_from_slice(&low);
                nearest_of[at..at + 2].copy_from_slice(&low_at);
            }
            for (code, &nearest) in codes.iter_mut().zip(&nearest) {
                *code = nearest as u16;
            }
            distances.copy_from_slice(&least[..distances.len()]);
        }
    }
}
