//! Bytes aligned to 64, as a blob must be: in the binary, and on the heap.

use core::ops::Deref;

/// Bytes aligned for [`Blob::parse`](crate::Blob::parse); made by
/// [`include_blob!`](crate::include_blob).
#[derive(Debug)]
#[repr(C, align(64))]
pub struct AlignedBytes<B: ?Sized = [u8]>(
    #[doc(hidden)] // only for `include_blob!`
    pub  B,
);

impl Deref for AlignedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// Includes a file, as [`include_bytes!`] does, with the alignment that
/// [`Blob::parse`](crate::Blob::parse) asks for: a `&'static AlignedBytes`.
///
/// ```
/// static MODEL: &ttrec::AlignedBytes = ttrec::include_blob!("../tests/golden/two_tables.ttr");
/// let blob = ttrec::Blob::parse(MODEL)?;
/// # assert_eq!(blob.num_tables(), 2);
/// # Ok::<(), ttrec::BlobError>(())
/// ```
#[macro_export]
macro_rules! include_blob {
    ($path:expr) => {{
        const ALIGNED: &$crate::AlignedBytes = &$crate::AlignedBytes(*include_bytes!($path));
        ALIGNED
    }};
}

#[cfg(feature = "alloc")]
pub use owned::AlignedBuf;

#[cfg(feature = "alloc")]
mod owned {
    use alloc::{vec, vec::Vec};
    use bytemuck::{Pod, Zeroable};
    use core::ops::{Deref, DerefMut};

    /// One cache line: an element type that makes a `Vec` aligned.
    #[derive(Clone, Copy, Debug, Pod, Zeroable)]
    #[repr(C, align(64))]
    struct Line([u8; 64]);

    /// Heap bytes aligned for [`Blob::parse`](crate::Blob::parse).
    ///
    /// ```
    /// # let received: &[u8] = ttrec::include_blob!("../tests/golden/two_tables.ttr");
    /// let buf = ttrec::AlignedBuf::from_slice(received);
    /// let blob = ttrec::Blob::parse(&buf)?;
    /// # Ok::<(), ttrec::BlobError>(())
    /// ```
    #[derive(Clone, Debug)]
    pub struct AlignedBuf {
        lines: Vec<Line>,
        len: usize,
    }

    impl AlignedBuf {
        /// `len` zero bytes.
        pub fn zeroed(len: usize) -> Self {
            Self { lines: vec![Line::zeroed(); len.div_ceil(64)], len }
        }

        /// A copy of `bytes`.
        pub fn from_slice(bytes: &[u8]) -> Self {
            let mut buf = Self::zeroed(bytes.len());
            buf.copy_from_slice(bytes);
            buf
        }
    }

    impl Deref for AlignedBuf {
        type Target = [u8];

        fn deref(&self) -> &[u8] {
            &bytemuck::cast_slice(&self.lines)[..self.len]
        }
    }

    impl DerefMut for AlignedBuf {
        fn deref_mut(&mut self) -> &mut [u8] {
            &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
        }
    }
}
