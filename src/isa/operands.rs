//! The operands of a register tile, step by step. The bounds are checked once, before the first
//! step.

use core::{marker::PhantomData, slice};

/// The operands of a product. The left operand is the first `M` rows of a row-major matrix with r
/// columns. The right operand is `width` adjacent columns of a row-major matrix with r rows. Step k
/// takes column k of the left operand and row k of the right operand, in ascending order of k.
pub(crate) struct Operands<'m, T, const M: usize> {
    /// Element k of the left operand's first row. Rows are `lhs_stride` bytes apart.
    lhs: *const f32,
    lhs_stride: usize,
    /// The right operand's first column, in row k. Rows are `rhs_stride` bytes apart.
    rhs: *const T,
    rhs_stride: usize,
    /// r - k.
    left: usize,
    width: usize,
    matrices: PhantomData<(&'m [f32], &'m [T])>,
}

impl<'m, T, const M: usize> Operands<'m, T, M> {
    /// The matrix of the right operand has n columns; the operand is the `width` columns from
    /// `first` on. `None` if either matrix is too small.
    #[inline(always)]
    pub(crate) fn new(
        lhs: &'m [f32],
        rhs: &'m [T],
        [r, n]: [usize; 2],
        first: usize,
        width: usize,
    ) -> Option<Self> {
        let fits = M.checked_mul(r)? <= lhs.len()
            && r.checked_mul(n)? <= rhs.len()
            && first.checked_add(width)? <= n;
        fits.then(|| Self {
            lhs: lhs.as_ptr(),
            // In bytes, so that the CPU's addressing reaches several rows from one pointer.
            lhs_stride: r.wrapping_mul(size_of::<f32>()),
            rhs: rhs.as_ptr().wrapping_add(first),
            rhs_stride: n.wrapping_mul(size_of::<T>()),
            left: r,
            width,
            matrices: PhantomData,
        })
    }

    /// The next `N` steps; `None` if fewer are left.
    #[inline(always)]
    pub(crate) fn next<const N: usize>(&mut self) -> Option<Steps<'m, T, M, N>> {
        self.left = self.left.checked_sub(N)?;
        let Self { lhs, lhs_stride, rhs, rhs_stride, width, .. } = *self;
        self.lhs = lhs.wrapping_add(N);
        self.rhs = rhs.wrapping_byte_add(N.wrapping_mul(rhs_stride));
        Some(Steps { lhs, lhs_stride, rhs, rhs_stride, width, matrices: PhantomData })
    }
}

/// `N` steps of [`Operands`]. Pointers rather than references: `Option` would keep its tag in a
/// reference, and each loop over steps would test it for null.
pub(crate) struct Steps<'m, T, const M: usize, const N: usize> {
    lhs: *const f32,
    lhs_stride: usize,
    rhs: *const T,
    rhs_stride: usize,
    width: usize,
    matrices: PhantomData<(&'m [f32], &'m [T])>,
}

impl<'m, T, const M: usize, const N: usize> Steps<'m, T, M, N> {
    /// `N` elements of each row of the left operand.
    #[inline(always)]
    pub(crate) fn lhs(&self) -> [&'m [f32; N]; M] {
        core::array::from_fn(|a| {
            let row = self.lhs.wrapping_byte_add(a.wrapping_mul(self.lhs_stride));
            // SAFETY: `lhs` is element k of the matrix, which is borrowed for 'm, and k + N <= r:
            // `next` has seen that N steps were left. So a r + k + N <= (a + 1) r <= M r, which is
            // at most the length of the matrix.
            unsafe { &*row.cast() }
        })
    }

    /// `N` rows of the right operand.
    #[inline(always)]
    pub(crate) fn rhs(&self) -> [&'m [T]; N] {
        core::array::from_fn(|i| {
            let row = self.rhs.wrapping_byte_add(i.wrapping_mul(self.rhs_stride));
            // SAFETY: row k + i has its columns from (k + i) n + first on. As above, k + i < r, so
            // that (k + i) n + first + width <= (k + i + 1) n <= r n, which is at most the length
            // of the matrix, which is borrowed for 'm.
            unsafe { slice::from_raw_parts(row, self.width) }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use std::vec::Vec;

    #[test]
    fn operands_are_those_of_the_matrices() {
        let lhs: Vec<f32> = (0..15u8).map(f32::from).collect();
        let rhs: Vec<u16> = (0..35).collect();
        for (first, width) in (0..=7).flat_map(|first| (0..=7 - first).map(move |w| (first, w))) {
            let columns = |row: usize| &rhs[7 * row + first..7 * row + first + width];
            let new = || Operands::<_, 3>::new(&lhs, &rhs, [5, 7], first, width).unwrap();
            let mut operands = new();
            let steps = operands.next::<4>().unwrap();
            assert_eq!(
                steps.lhs(),
                [[0.0, 1.0, 2.0, 3.0], [5.0, 6.0, 7.0, 8.0], [10.0, 11.0, 12.0, 13.0]].each_ref()
            );
            assert_eq!(steps.rhs(), [0, 1, 2, 3].map(columns));
            assert!(operands.next::<2>().is_none());
            let step = operands.next::<1>().unwrap();
            assert_eq!((step.lhs(), step.rhs()), ([&[4.0], &[9.0], &[14.0]], [columns(4)]));
            assert!(operands.next::<1>().is_none());
        }
    }

    #[test]
    fn matrices_of_other_sizes_are_refused() {
        let (lhs, rhs) = ([0.0; 15], [0u16; 35]);
        for (lhs_len, [r, n], first, width) in [
            (14, [5, 7], 0, 7),
            (15, [6, 5], 0, 1),
            (15, [5, 8], 0, 1),
            (15, [5, 7], 1, 7),
            (15, [5, 7], 8, 0),
            (15, [5, 7], usize::MAX, 1),
            (15, [usize::MAX, 2], 0, 1),
            (15, [usize::MAX / 3, 4], 0, 1),
        ] {
            let operands = Operands::<_, 3>::new(&lhs[..lhs_len], &rhs, [r, n], first, width);
            assert!(operands.is_none(), "{lhs_len} {r} {n} {first} {width}");
        }
        assert!(Operands::<u16, 3>::new(&[], &[], [0, 7], 0, 7).unwrap().next::<1>().is_none());
    }
}
