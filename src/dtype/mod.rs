//! How a stored element becomes an f32, and an f32 a stored element.
//!
//! f32, f16 and bf16 are read where they lie. i8 needs a scale: a tensor-train slice has one (`x = scale * q`), a dense
//! row has a scale and an offset (`x = scale * q + offset`) in front of its elements.

mod quantize;

pub use half::{bf16, f16};
pub use quantize::{EncodeError, encode, encode_rows, encode_slice};

/// Bytes before the elements of a dense i8 row: its scale and its offset, both f32, little-endian.
pub const ROW_HEADER_LEN: usize = 8;

/// The type of a stored element. The discriminants are the codes of `docs/format.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Dtype {
    /// IEEE 754 binary32.
    F32 = 1,
    /// IEEE 754 binary16.
    F16 = 2,
    /// The upper half of a binary32.
    Bf16 = 3,
    /// Signed bytes with a scale per slice (tensor train) or a scale and an offset per row (dense).
    I8 = 4,
}

impl Dtype {
    /// Every dtype, in the order of their codes.
    pub const ALL: [Self; 4] = [Self::F32, Self::F16, Self::Bf16, Self::I8];

    /// The name used in specs and listings: `f32`, `f16`, `bf16`, `i8`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::I8 => "i8",
        }
    }

    /// The dtype with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name)
    }

    /// The dtype with this code in a blob.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|&dtype| dtype as u8 == code)
    }

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::I8 => 1,
        }
    }

    /// Bytes of one dense row of `embedding_dim` elements, with its scale and offset where it has them.
    pub fn row_len(self, embedding_dim: usize) -> usize {
        let header = if self == Self::I8 { ROW_HEADER_LEN } else { 0 };
        self.size().saturating_mul(embedding_dim).saturating_add(header)
    }
}

/// A stored element that widens to f32 without error.
pub(crate) trait Weight: Copy + 'static {
    /// The value, before any scale.
    fn widen(self) -> f32;
}

impl Weight for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Weight for f16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32_const()
    }
}

impl Weight for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32_const()
    }
}

impl Weight for i8 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from(self)
    }
}

/// A run of stored elements, borrowed from the blob.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Elements<'a> {
    /// [`Dtype::F32`]
    F32(&'a [f32]),
    /// [`Dtype::F16`]
    F16(&'a [f16]),
    /// [`Dtype::Bf16`]
    Bf16(&'a [bf16]),
    /// [`Dtype::I8`]
    I8(&'a [i8]),
}

/// Runs one expression, generic over the stored type, on whichever slice an [`Elements`] holds.
macro_rules! with_elements {
    ($elements:expr, $slice:ident => $body:expr) => {
        match $elements {
            $crate::dtype::Elements::F32($slice) => $body,
            $crate::dtype::Elements::F16($slice) => $body,
            $crate::dtype::Elements::Bf16($slice) => $body,
            $crate::dtype::Elements::I8($slice) => $body,
        }
    };
}
pub(crate) use with_elements;

impl<'a> Elements<'a> {
    /// The bytes as elements of `dtype`; `None` when they are misaligned for it or not a whole number of elements.
    pub fn from_bytes(bytes: &'a [u8], dtype: Dtype) -> Option<Self> {
        Some(match dtype {
            Dtype::F32 => Self::F32(bytemuck::try_cast_slice(bytes).ok()?),
            Dtype::F16 => Self::F16(bytemuck::try_cast_slice(bytes).ok()?),
            Dtype::Bf16 => Self::Bf16(bytemuck::try_cast_slice(bytes).ok()?),
            Dtype::I8 => Self::I8(bytemuck::cast_slice(bytes)),
        })
    }

    /// Which dtype they have.
    pub fn dtype(&self) -> Dtype {
        match self {
            Self::F32(_) => Dtype::F32,
            Self::F16(_) => Dtype::F16,
            Self::Bf16(_) => Dtype::Bf16,
            Self::I8(_) => Dtype::I8,
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        with_elements!(self, elements => elements.len())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Elements `index * len .. (index + 1) * len`.
    pub(crate) fn chunk(&self, index: usize, len: usize) -> Option<Self> {
        let start = index.checked_mul(len)?;
        let range = start..start.checked_add(len)?;
        Some(match self {
            Self::F32(elements) => Self::F32(elements.get(range)?),
            Self::F16(elements) => Self::F16(elements.get(range)?),
            Self::Bf16(elements) => Self::Bf16(elements.get(range)?),
            Self::I8(elements) => Self::I8(elements.get(range)?),
        })
    }
}
