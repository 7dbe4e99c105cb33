//! The types of stored elements, and their conversion from and to f32.
//!
//! f32, f16 and bf16 elements are values. i8 elements need a scale: a tensor-train slice has a
//! scale (`x = scale * q`), and a dense row begins with a scale and an offset (`x = scale * q +
//! offset`). A dense row of i4 also begins with a scale and an offset.

mod quantize;

use crate::{codes::codes, isa::Isa};
use bytemuck::{Pod, Zeroable};

pub(crate) use half::{bf16, f16};
pub use quantize::{EncodeError, encode, encode_layer, encode_rows, encode_slice};

/// The type of a stored element. The discriminants are the codes of `docs/format.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
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
    /// Unsigned half-bytes, two to a byte, with a scale and an offset per row; dense tables only.
    I4 = 5,
}

codes!(Dtype: F32 "f32", F16 "f16", Bf16 "bf16", I8 "i8", I4 "i4");

impl Dtype {
    /// Number of bytes of `count` elements. An odd last element of i4 takes a whole byte.
    pub fn bytes_of(self, count: usize) -> usize {
        match self {
            Self::F32 => count.saturating_mul(4),
            Self::F16 | Self::Bf16 => count.saturating_mul(2),
            Self::I8 => count,
            Self::I4 => count.div_ceil(2),
        }
    }

    /// Number of bytes before the elements of a dense row: scale and offset, as two f32 (i8) or two
    /// f16 (i4), little-endian.
    pub fn row_header_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 0,
            Self::I8 => 8,
            Self::I4 => 4,
        }
    }

    /// Number of bytes of a dense row of `embedding_dim` elements, including its scale and offset
    /// if the dtype has them.
    pub fn row_len(self, embedding_dim: usize) -> usize {
        self.bytes_of(embedding_dim).saturating_add(self.row_header_len())
    }

    /// Whether the projection of a projected table can be stored in this dtype.
    pub fn suits_projections(self) -> bool {
        self.row_header_len() == 0
    }

    /// Whether tensor-train slices and the weights of a layer can be stored in this dtype.
    pub fn suits_cores(self) -> bool {
        self != Self::I4
    }
}

/// A unit of storage: one element, or the two of [`Nibbles`].
pub(crate) trait Weight: Copy + 'static {
    /// Elements in a unit.
    const PER_UNIT: usize;
    /// Whether a dense row has a scale and an offset.
    const SCALED: bool = false;
    /// Whether the elements are f16.
    const IS_F16: bool = false;
    /// Units before the elements of a dense row.
    const ROW_HEADER: usize = 0;
    /// The first `LANES` elements of `units`, without a scale; zeros where there are fewer.
    fn load<I: Isa>(isa: I, units: &[Self]) -> I::F32;
    /// The units as [`Elements`].
    fn elements(units: &[Self]) -> Elements<'_>;
    /// The units of `elements`, if they are of this type.
    fn units(elements: Elements<'_>) -> Option<&[Self]>;
    /// The scale, offset and elements of a dense row.
    #[inline(always)]
    fn split_row(row: &[Self]) -> Option<(f32, f32, &[Self])> {
        // Adding -0.0 changes no value, not even -0.0; adding 0.0 would make it 0.0.
        Some((1.0, -0.0, row))
    }
    /// [`split_row`](Self::split_row) with scale and offset in all lanes.
    #[inline(always)]
    fn split_row_in<I: Isa>(isa: I, row: &[Self]) -> Option<(I::F32, I::F32, &[Self])> {
        let (scale, offset, row) = Self::split_row(row)?;
        Some((isa.splat(scale), isa.splat(offset), row))
    }
}

/// Two unsigned half-bytes: the low one is the element of the even column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub(crate) struct Nibbles(u8);

/// [`Weight::elements`] and [`Weight::units`] of a variant of `Values`.
macro_rules! stored_as {
    ($variant:ident) => {
        #[inline(always)]
        fn elements(units: &[Self]) -> Elements<'_> {
            Elements(Values::$variant(units))
        }
        #[inline(always)]
        fn units(elements: Elements<'_>) -> Option<&[Self]> {
            match elements.0 {
                Values::$variant(units) => Some(units),
                _ => None,
            }
        }
    };
}

impl Weight for f32 {
    const PER_UNIT: usize = 1;
    #[inline(always)]
    fn load<I: Isa>(isa: I, units: &[Self]) -> I::F32 {
        isa.load_f32(units)
    }
    stored_as!(F32);
}

impl Weight for f16 {
    const PER_UNIT: usize = 1;
    const IS_F16: bool = true;
    #[inline(always)]
    fn load<I: Isa>(isa: I, units: &[Self]) -> I::F32 {
        isa.load_f16(units)
    }
    stored_as!(F16);
}

impl Weight for bf16 {
    const PER_UNIT: usize = 1;
    #[inline(always)]
    fn load<I: Isa>(isa: I, units: &[Self]) -> I::F32 {
        isa.load_bf16(units)
    }
    stored_as!(Bf16);
}

impl Weight for i8 {
    const PER_UNIT: usize = 1;
    const SCALED: bool = true;
    const ROW_HEADER: usize = 8;
    #[inline(always)]
    fn load<I: Isa>(isa: I, units: &[Self]) -> I::F32 {
        isa.load_i8(units)
    }
    stored_as!(I8);
    #[inline(always)]
    fn split_row(row: &[Self]) -> Option<(f32, f32, &[Self])> {
        let (scale, row) = row.split_first_chunk::<4>()?;
        let (offset, row) = row.split_first_chunk::<4>()?;
        let float = |bytes: &[i8; 4]| f32::from_le_bytes(bytes.map(i8::cast_unsigned));
        Some((float(scale), float(offset), row))
    }
}

impl Weight for Nibbles {
    const PER_UNIT: usize = 2;
    const SCALED: bool = true;
    const ROW_HEADER: usize = 4;
    #[inline(always)]
    fn load<I: Isa>(isa: I, units: &[Self]) -> I::F32 {
        isa.load_u4(bytemuck::cast_slice(units))
    }
    stored_as!(I4);
    #[inline(always)]
    fn split_row(row: &[Self]) -> Option<(f32, f32, &[Self])> {
        let (scale, row) = row.split_first_chunk::<2>()?;
        let (offset, row) = row.split_first_chunk::<2>()?;
        let float = |bytes: &[Self; 2]| f16::from_le_bytes(bytes.map(|byte| byte.0)).to_f32_const();
        Some((float(scale), float(offset), row))
    }
    #[inline(always)]
    fn split_row_in<I: Isa>(isa: I, row: &[Self]) -> Option<(I::F32, I::F32, &[Self])> {
        // The tier widens the two f16: it has an instruction for that.
        let (scale, row) = row.split_first_chunk::<2>()?;
        let (offset, row) = row.split_first_chunk::<2>()?;
        let header = [scale, offset].map(|bytes| f16::from_le_bytes(bytes.map(|byte| byte.0)));
        let mut lanes = [0.0; 4];
        isa.narrow().store(isa.narrow().load_f16(&header), &mut lanes);
        let [scale, offset, ..] = lanes;
        Some((isa.splat(scale), isa.splat(offset), row))
    }
}

/// Borrowed stored elements, all of one type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Elements<'a>(pub(crate) Values<'a>);

/// The elements of [`Elements`], by their types.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Values<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
    I8(&'a [i8]),
    I4(&'a [Nibbles]),
}

/// Runs `$body` with the slice of an [`Elements`], whatever its type.
macro_rules! with_elements {
    ($elements:expr, $slice:ident => $body:expr) => {
        match $elements.0 {
            $crate::dtype::Values::F32($slice) => $body,
            $crate::dtype::Values::F16($slice) => $body,
            $crate::dtype::Values::Bf16($slice) => $body,
            $crate::dtype::Values::I8($slice) => $body,
            $crate::dtype::Values::I4($slice) => $body,
        }
    };
}
pub(crate) use with_elements;

/// As `with_elements!`, for the elements of a core, which are never i4: `None` if they are.
macro_rules! with_core_elements {
    ($elements:expr, $slice:ident => $body:expr) => {
        match $elements.0 {
            $crate::dtype::Values::F32($slice) => Some($body),
            $crate::dtype::Values::F16($slice) => Some($body),
            $crate::dtype::Values::Bf16($slice) => Some($body),
            $crate::dtype::Values::I8($slice) => Some($body),
            $crate::dtype::Values::I4(_) => None,
        }
    };
}
pub(crate) use with_core_elements;

impl<'a> Elements<'a> {
    /// Elements of [`Dtype::F32`].
    pub const fn from_f32(values: &'a [f32]) -> Self {
        Self(Values::F32(values))
    }

    /// The bytes as elements of `dtype`, or `None` if they are misaligned for it or not a whole
    /// number of elements.
    pub fn from_bytes(bytes: &'a [u8], dtype: Dtype) -> Option<Self> {
        Some(Self(match dtype {
            Dtype::F32 => Values::F32(bytemuck::try_cast_slice(bytes).ok()?),
            Dtype::F16 => Values::F16(bytemuck::try_cast_slice(bytes).ok()?),
            Dtype::Bf16 => Values::Bf16(bytemuck::try_cast_slice(bytes).ok()?),
            Dtype::I8 => Values::I8(bytemuck::cast_slice(bytes)),
            Dtype::I4 => Values::I4(bytemuck::cast_slice(bytes)),
        }))
    }

    /// The stored type.
    pub fn dtype(&self) -> Dtype {
        match self.0 {
            Values::F32(_) => Dtype::F32,
            Values::F16(_) => Dtype::F16,
            Values::Bf16(_) => Dtype::Bf16,
            Values::I8(_) => Dtype::I8,
            Values::I4(_) => Dtype::I4,
        }
    }

    /// The elements, if they are stored as f32.
    pub fn as_f32(&self) -> Option<&'a [f32]> {
        match self.0 {
            Values::F32(values) => Some(values),
            _ => None,
        }
    }

    /// The bytes of the elements.
    pub fn as_bytes(&self) -> &'a [u8] {
        with_elements!(self, elements => bytemuck::cast_slice(elements))
    }

    /// Element `position`, widened, without a scale or offset. `None` past the end, and for
    /// [`Dtype::I4`]: its rows begin on whole bytes, so an element's position depends on the length
    /// of a row.
    pub fn get(&self, position: usize) -> Option<f32> {
        match self.0 {
            Values::F32(values) => values.get(position).copied(),
            Values::F16(values) => values.get(position).map(|x| x.to_f32_const()),
            Values::Bf16(values) => values.get(position).map(|x| x.to_f32_const()),
            Values::I8(values) => values.get(position).map(|&x| x.into()),
            Values::I4(_) => None,
        }
    }

    /// Number of elements, or of bytes if they are i4.
    pub fn len(&self) -> usize {
        with_elements!(self, elements => elements.len())
    }

    /// Number of units, as [`len`](Self::len) counts them, that hold `count` columns.
    pub(crate) fn units_of(&self, count: usize) -> usize {
        if self.dtype() == Dtype::I4 {
            count.div_ceil(2)
        } else {
            count
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Elements (bytes, if they are i4) `index * len .. (index + 1) * len`.
    pub(crate) fn chunk(&self, index: usize, len: usize) -> Option<Self> {
        let start = index.checked_mul(len)?;
        self.range(start..start.checked_add(len)?)
    }

    /// The scale, the offset and the elements of a dense row.
    #[inline(always)]
    pub(crate) fn split_row(&self) -> Option<(f32, f32, Self)> {
        fn split<W: Weight>(row: &[W]) -> Option<(f32, f32, Elements<'_>)> {
            let (scale, offset, row) = W::split_row(row)?;
            Some((scale, offset, W::elements(row)))
        }
        with_elements!(self, row => split(row))
    }

    /// Elements (bytes, if they are i4) in this range.
    pub(crate) fn range(&self, range: core::ops::Range<usize>) -> Option<Self> {
        Some(Self(match self.0 {
            Values::F32(elements) => Values::F32(elements.get(range)?),
            Values::F16(elements) => Values::F16(elements.get(range)?),
            Values::Bf16(elements) => Values::Bf16(elements.get(range)?),
            Values::I8(elements) => Values::I8(elements.get(range)?),
            Values::I4(elements) => Values::I4(elements.get(range)?),
        }))
    }
}
