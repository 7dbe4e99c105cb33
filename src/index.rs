//! The integer types that indices and offsets may have.

/// An integer type of indices and offsets: `u32` or `u64`.
pub trait Index: Copy + sealed::Sealed {
    /// The value.
    fn to_u64(self) -> u64;

    /// The value, if it fits this machine's address space.
    fn to_usize(self) -> Option<usize> {
        usize::try_from(self.to_u64()).ok()
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for u32 {}
    impl Sealed for u64 {}
}

impl Index for u32 {
    #[inline(always)]
    fn to_u64(self) -> u64 {
        self.into()
    }
}

impl Index for u64 {
    #[inline(always)]
    fn to_u64(self) -> u64 {
        self
    }
}
