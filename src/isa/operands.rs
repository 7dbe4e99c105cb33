//! The operands of register tiles, step by step, and the rows of a tile's output. The bounds are
//! checked once, before the first step.

use core::{marker::PhantomData, ptr, slice};

/// The operands of `J` products of the same size, which advance together. A left operand is the
/// first `M` rows of a row-major matrix with r columns. A right operand is `width` adjacent columns
/// of a row-major matrix with r rows. Step k takes column k of the left operand and row k of the
/// right operand, in ascending order of k.
pub(crate) struct Operands<'m, T, const M: usize, const J: usize = 1> {
    /// The operands from step k on.
    steps: Steps<'m, T, M, J, 0>,
    /// The steps that are left: r - k.
    left: usize,
}

impl<'m, T, const M: usize, const J: usize> Operands<'m, T, M, J> {
    /// The left and the right matrix of each product. The right one has n columns; the operand is
    /// the `width` columns from `first` on. `None` if a matrix is too small.
    #[inline(always)]
    pub(crate) fn new(
        products: [(&'m [f32], &'m [T]); J],
        [r, n]: [usize; 2],
        first: usize,
        width: usize,
    ) -> Option<Self> {
        let (lhs_len, rhs_len) = (M.checked_mul(r)?, r.checked_mul(n)?);
        let mut fits = first.checked_add(width)? <= n;
        let (mut lhs, mut rhs) = ([ptr::null(); J], [ptr::null(); J]);
        for (j, (left, right)) in products.into_iter().enumerate() {
            fits &= lhs_len <= left.len() && rhs_len <= right.len();
            (lhs[j], rhs[j]) = (left.as_ptr(), right.as_ptr().wrapping_add(first));
        }
        let rhs_stride = n.wrapping_mul(size_of::<T>());
        fits.then(|| Self {
            steps: Steps {
                lhs,
                // In bytes, so that the CPU's addressing reaches several rows from one pointer.
                lhs_strides: Strides::new(r.wrapping_mul(size_of::<f32>()), M),
                rhs,
                rhs_stride,
                // The width of a whole matrix is often a constant. Then the compiler knows all
                // offsets, and none has to be hidden.
                rhs_triple: if width == n {
                    rhs_stride.wrapping_mul(3)
                } else {
                    opaque(rhs_stride.wrapping_mul(3))
                },
                width,
                matrices: PhantomData,
            },
            left: r,
        })
    }

    /// The next `N` steps; `None` if fewer are left.
    #[inline(always)]
    pub(crate) fn next<const N: usize>(&mut self) -> Option<Steps<'m, T, M, J, N>> {
        self.left = self.left.checked_sub(N)?;
        let Steps { lhs, lhs_strides, rhs, rhs_stride, rhs_triple, width, matrices } = self.steps;
        for j in 0..J {
            self.steps.lhs[j] = lhs[j].wrapping_add(N);
            self.steps.rhs[j] = rhs[j].wrapping_byte_add(N.wrapping_mul(rhs_stride));
        }
        Some(Steps { lhs, lhs_strides, rhs, rhs_stride, rhs_triple, width, matrices })
    }
}

/// `N` steps of [`Operands`]. Pointers rather than references: `Option` would keep its tag in a
/// reference, and each loop over steps would test it for null.
pub(crate) struct Steps<'m, T, const M: usize, const J: usize, const N: usize> {
    /// Element k of the first row of each left operand.
    lhs: [*const f32; J],
    lhs_strides: Strides,
    /// The first column of each right operand, in row k. Rows are `rhs_stride` bytes apart.
    rhs: [*const T; J],
    rhs_stride: usize,
    /// `rhs_stride` times 3, kept for the reason that [`Strides`] gives.
    rhs_triple: usize,
    width: usize,
    matrices: PhantomData<(&'m [f32], &'m [T])>,
}

impl<'m, T, const M: usize, const J: usize, const N: usize> Steps<'m, T, M, J, N> {
    /// `N` elements of each row of product j's left operand.
    #[inline(always)]
    pub(crate) fn lhs(&self, j: usize) -> [&'m [f32; N]; M] {
        let first = self.lhs[j];
        core::array::from_fn(|a| {
            let row = first.wrapping_byte_add(self.lhs_strides.of(a));
            // SAFETY: `row` is element a r + k of matrix j, which is borrowed for 'm, and
            // k + N <= r: `next` has seen that N steps were left. So a r + k + N <= (a + 1) r
            // <= M r, which is at most the length of the matrix.
            unsafe { &*row.cast() }
        })
    }

    /// `N` rows of product j's right operand.
    #[inline(always)]
    pub(crate) fn rhs(&self, j: usize) -> [&'m [T]; N] {
        let first = self.rhs[j];
        core::array::from_fn(|i| {
            let offset = match i {
                3 => self.rhs_triple,
                _ => i.wrapping_mul(self.rhs_stride),
            };
            let row = first.wrapping_byte_add(offset);
            // SAFETY: row k + i has its columns from (k + i) n + first on. As above, k + i < r, so
            // that (k + i) n + first + width <= (k + i + 1) n <= r n, which is at most the length
            // of the matrix, which is borrowed for 'm.
            unsafe { slice::from_raw_parts(row, self.width) }
        })
    }
}

/// Multiples of a stride, whose values [`opaque`] hides from the compiler. If the compiler knew how
/// they are related, it would compute each from the one before, in every step of a product. But the
/// CPU's addressing can add a stride times 1, 2, 4 or 8 to a pointer at no cost.
#[derive(Clone, Copy)]
struct Strides {
    /// The stride times 1, 3, 5 and 7.
    odd: [usize; 4],
    /// The stride times 8, 16 and 24.
    eights: [usize; 3],
}

impl Strides {
    /// The multiples below `count`, which is at most 32.
    #[inline(always)]
    fn new(stride: usize, count: usize) -> Self {
        let multiple = |by: usize| {
            if by < count { opaque(stride.wrapping_mul(by)) } else { 0 }
        };
        // Not `array::map`, which the compiler calls instead of inlining it.
        Self {
            odd: [multiple(1), multiple(3), multiple(5), multiple(7)],
            eights: [multiple(8), multiple(16), multiple(24)],
        }
    }

    /// The stride times `by`.
    #[inline(always)]
    fn of(&self, by: usize) -> usize {
        let [one, three, five, seven] = self.odd;
        let [eight, sixteen, twenty_four] = self.eights;
        let rest = match by % 8 {
            0 => 0,
            1 => one,
            2 => one.wrapping_mul(2),
            3 => three,
            4 => one.wrapping_mul(4),
            5 => five,
            6 => three.wrapping_mul(2),
            _ => seven,
        };
        rest.wrapping_add(match by / 8 {
            0 => 0,
            1 => eight,
            2 => sixteen,
            _ => twenty_four,
        })
    }
}

/// Returns `x`, and hides from the compiler what value it has.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn opaque(mut x: usize) -> usize {
    // SAFETY: the assembly contains no instructions.
    unsafe {
        core::arch::asm!(
            "/* {0} */",
            inout(reg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    x
}

/// Returns `x`. There is nothing to hide: only x86 multiplies in an address.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn opaque(x: usize) -> usize {
    x
}

/// The first `M` rows of an output. Each has `width` elements, and they begin `stride` elements
/// apart.
pub(crate) struct OutputRows<'o, const M: usize> {
    first: *mut f32,
    stride: usize,
    width: usize,
    output: PhantomData<&'o mut [f32]>,
}

impl<'o, const M: usize> OutputRows<'o, M> {
    /// `None` if the output is too small.
    #[inline(always)]
    pub(crate) fn new(out: &'o mut [f32], stride: usize, width: usize) -> Option<Self> {
        let end = M.saturating_sub(1).checked_mul(stride)?.checked_add(width)?;
        (end <= out.len()).then_some(Self {
            first: out.as_mut_ptr(),
            stride,
            width,
            output: PhantomData,
        })
    }

    /// Row `a`, or an empty slice if `a` is not below `M`.
    #[inline(always)]
    pub(crate) fn row(&mut self, a: usize) -> &mut [f32] {
        if a >= M {
            return &mut [];
        }
        let row = self.first.wrapping_add(a.wrapping_mul(self.stride));
        // SAFETY: a stride + width <= (M - 1) stride + width, which is at most the length of the
        // output, which is borrowed for 'o. The result borrows `self`, so that no two rows can be
        // borrowed at once.
        unsafe { slice::from_raw_parts_mut(row, self.width) }
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
            let new = || Operands::<_, 3>::new([(&lhs, &rhs)], [5, 7], first, width).unwrap();
            let mut operands = new();
            let steps = operands.next::<4>().unwrap();
            assert_eq!(
                steps.lhs(0),
                [[0.0, 1.0, 2.0, 3.0], [5.0, 6.0, 7.0, 8.0], [10.0, 11.0, 12.0, 13.0]].each_ref()
            );
            assert_eq!(steps.rhs(0), [0, 1, 2, 3].map(columns));
            assert!(operands.next::<2>().is_none());
            let step = operands.next::<1>().unwrap();
            assert_eq!((step.lhs(0), step.rhs(0)), ([&[4.0], &[9.0], &[14.0]], [columns(4)]));
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
            let operands = Operands::<_, 3>::new([(&lhs[..lhs_len], &rhs)], [r, n], first, width);
            assert!(operands.is_none(), "{lhs_len} {r} {n} {first} {width}");
        }
        assert!(
            Operands::<u16, 3>::new([(&[], &[])], [0, 7], 0, 7)
                .unwrap()
                .next::<1>()
                .is_none()
        );
    }

    #[test]
    fn strides_are_multiplied() {
        let strides = Strides::new(12, 32);
        for by in 0..32 {
            assert_eq!(strides.of(by), 12 * by);
        }
    }

    #[test]
    fn rows_of_an_output_are_those_of_the_slice() {
        let mut out: Vec<f32> = (0..11u8).map(f32::from).collect();
        let mut rows = OutputRows::<3>::new(&mut out, 4, 3).unwrap();
        assert_eq!(rows.row(0), [0.0, 1.0, 2.0]);
        assert_eq!(rows.row(2), [8.0, 9.0, 10.0]);
        assert!(rows.row(3).is_empty());
        for (len, stride, width) in [(10, 4, 3), (11, 5, 3), (11, 4, 4), (11, usize::MAX, 0)] {
            let rows = OutputRows::<3>::new(&mut out[..len], stride, width);
            assert!(rows.is_none(), "{len} {stride} {width}");
        }
    }
}
