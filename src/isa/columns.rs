//! Adjacent columns of a matrix, row by row, with one check of the bounds for all rows.

use core::{marker::PhantomData, slice};

/// `width` adjacent columns of a row-major matrix, row by row.
pub(crate) struct Columns<'m, T> {
    /// The first of the columns, in the next row.
    next: *const T,
    /// Rows that are left. Each has `width` elements from `next` on, plus `stride` for each row
    /// before it.
    left: usize,
    stride: usize,
    width: usize,
    matrix: PhantomData<&'m [T]>,
}

impl<'m, T> Columns<'m, T> {
    /// The columns from `first` on of a matrix of `r` rows of `n` columns. `None` if it is of
    /// another size, or has fewer columns.
    #[inline(always)]
    pub(crate) fn new(
        matrix: &'m [T],
        [r, n]: [usize; 2],
        first: usize,
        width: usize,
    ) -> Option<Self> {
        let fits = r.checked_mul(n)? == matrix.len() && first.checked_add(width)? <= n;
        // Row i has its columns from i n + first on, and i n + first + width <= (i + 1) n <= r n.
        fits.then(|| Self {
            next: matrix.as_ptr().wrapping_add(first),
            left: r,
            stride: n,
            width,
            matrix: PhantomData,
        })
    }

    /// The columns of the next `N` rows; `None` if fewer are left.
    #[inline(always)]
    pub(crate) fn next_rows<const N: usize>(&mut self) -> Option<[&'m [T]; N]> {
        self.left = self.left.checked_sub(N)?;
        let rows = core::array::from_fn(|i| {
            let row = self.next.wrapping_add(i.wrapping_mul(self.stride));
            // SAFETY: at least N rows were left, so that row i has `width` elements within the
            // matrix, which is borrowed for 'm.
            unsafe { slice::from_raw_parts(row, self.width) }
        });
        self.next = self.next.wrapping_add(N.wrapping_mul(self.stride));
        Some(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use std::vec::Vec;

    #[test]
    fn rows_are_those_of_the_matrix_and_other_sizes_are_refused() {
        let matrix: Vec<u16> = (0..35).collect();
        for (first, width) in (0..=7).flat_map(|first| (0..=7 - first).map(move |w| (first, w))) {
            let mut columns = Columns::new(&matrix, [5, 7], first, width).unwrap();
            let four = columns.next_rows::<4>().unwrap();
            assert!(columns.next_rows::<2>().is_none());
            let mut columns = Columns::new(&matrix, [5, 7], first, width).unwrap();
            for (i, row) in four.into_iter().enumerate() {
                assert_eq!(row, &matrix[7 * i + first..7 * i + first + width]);
                assert_eq!(columns.next_rows::<1>().unwrap(), [row]);
            }
            assert_eq!(
                columns.next_rows::<1>().unwrap(),
                [&matrix[28 + first..28 + first + width]]
            );
            assert!(columns.next_rows::<1>().is_none());
        }
        for ([r, n], first, width) in [
            ([5, 8], 0, 1),
            ([4, 7], 0, 1),
            ([5, 7], 1, 7),
            ([5, 7], 8, 0),
            ([5, 7], usize::MAX, 1),
            ([usize::MAX, 2], 0, 1),
        ] {
            assert!(Columns::new(&matrix, [r, n], first, width).is_none());
        }
        assert!(Columns::<u16>::new(&[], [0, 7], 0, 7).unwrap().next_rows::<1>().is_none());
    }
}
