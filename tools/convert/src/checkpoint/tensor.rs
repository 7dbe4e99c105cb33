//! One tensor of a checkpoint and the decoding of its elements.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use half::{bf16, f16};

use super::CheckpointError;
use super::mapped::{Checked, Mapped};

/// The element types a checkpoint may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ElementType {
    /// IEEE 754 binary64.
    F64,
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
    /// Signed 64-bit integer.
    I64,
    /// Signed 32-bit integer.
    I32,
    /// Signed 16-bit integer.
    I16,
    /// Signed 8-bit integer.
    I8,
    /// Unsigned 64-bit integer.
    U64,
    /// Unsigned 32-bit integer.
    U32,
    /// Unsigned 16-bit integer.
    U16,
    /// Unsigned 8-bit integer.
    U8,
    /// One byte, true unless zero.
    Bool,
}

impl ElementType {
    /// Bytes of one element.
    pub fn size(self) -> u64 {
        match self {
            Self::F64 | Self::I64 | Self::U64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 | Self::U16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F64 => "f64",
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::I64 => "i64",
            Self::I32 => "i32",
            Self::I16 => "i16",
            Self::I8 => "i8",
            Self::U64 => "u64",
            Self::U32 => "u32",
            Self::U16 => "u16",
            Self::U8 => "u8",
            Self::Bool => "bool",
        })
    }
}

/// The layout of the elements in the tensor's bytes.
#[derive(Clone, Copy)]
pub(super) struct ElementLayout {
    pub(super) big_endian: bool,
    /// First dimension fastest (numpy's Fortran order).
    pub(super) column_major: bool,
}

impl ElementLayout {
    pub(super) const ROW_MAJOR_LE: Self = Self { big_endian: false, column_major: false };
}

/// The source of the tensor's bytes.
pub(super) enum Data {
    /// The mapped file, checked by the checksum of the member, if any.
    Mapped(Mapped, Range<usize>, Option<Arc<Checked>>),
    /// Produced by `load` on first use and kept in `cache` for the calls that follow.
    Decoded {
        cache: Arc<DecodedCache>,
        id: usize,
        load: Box<dyn Fn() -> Result<Vec<u8>, String> + Send + Sync>,
    },
}

/// The bytes of the last used tensors.
///
/// Consumers read a tensor in small chunks and several tensors in turns, so whole tensors are kept;
/// those least recently used go once more than [`Cache::CAPACITY`] is held, so that a converter
/// which walks all tables of a model never holds the whole model.
#[derive(Default)]
pub(super) struct DecodedCache(Mutex<VecDeque<(usize, Arc<Vec<u8>>)>>);

impl DecodedCache {
    /// A tensor larger than this is kept alone.
    const CAPACITY: usize = 256 << 20;

    fn get(
        &self,
        id: usize,
        load: impl FnOnce() -> Result<Vec<u8>, String>,
    ) -> Result<Arc<Vec<u8>>, String> {
        // No code path leaves the queue half updated, so a poisoned lock is still sound.
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = match kept.iter().position(|(held, _)| *held == id) {
            Some(at) => kept.remove(at),
            None => None,
        };
        let bytes = match entry {
            Some((_, bytes)) => bytes,
            None => Arc::new(load()?),
        };
        kept.push_back((id, Arc::clone(&bytes)));
        let mut held: usize = kept.iter().map(|(_, bytes)| bytes.len()).sum();
        while held > Self::CAPACITY && kept.len() > 1 {
            held -= kept.pop_front().map_or(0, |(_, bytes)| bytes.len());
        }
        Ok(bytes)
    }
}

/// A named tensor; its elements are decoded only when read.
pub struct Tensor {
    file: Arc<Path>,
    name: String,
    element_type: ElementType,
    shape: Vec<u64>,
    len: u64,
    byte_len: usize,
    layout: ElementLayout,
    data: Data,
}

/// Decodes elements of any type to `$float`, each rounded once.
macro_rules! decode_floats {
    ($tensor:expr, $window:expr, $start:expr, $out:expr, $float:ty) => {{
        use ElementType as T;
        let (tensor, window, start, out) = ($tensor, $window, $start, $out);
        match tensor.element_type {
            T::F64 => tensor.decode(window, start, out, |b| Ok(f64::from_le_bytes(b) as $float)),
            T::F32 => tensor.decode(window, start, out, |b| Ok(f32::from_le_bytes(b).into())),
            T::F16 => tensor.decode(window, start, out, |b| Ok(f16::from_le_bytes(b).into())),
            T::Bf16 => tensor.decode(window, start, out, |b| Ok(bf16::from_le_bytes(b).into())),
            T::I64 => tensor.decode(window, start, out, |b| Ok(i64::from_le_bytes(b) as $float)),
            T::I32 => tensor.decode(window, start, out, |b| Ok(i32::from_le_bytes(b) as $float)),
            T::I16 => tensor.decode(window, start, out, |b| Ok(i16::from_le_bytes(b).into())),
            T::I8 => tensor.decode(window, start, out, |b| Ok(i8::from_le_bytes(b).into())),
            T::U64 => tensor.decode(window, start, out, |b| Ok(u64::from_le_bytes(b) as $float)),
            T::U32 => tensor.decode(window, start, out, |b| Ok(u32::from_le_bytes(b) as $float)),
            T::U16 => tensor.decode(window, start, out, |b| Ok(u16::from_le_bytes(b).into())),
            T::U8 => tensor.decode(window, start, out, |[b]| Ok(b.into())),
            T::Bool => tensor.decode(window, start, out, |[b]| Ok((b != 0).into())),
        }
    }};
}

impl Tensor {
    pub(super) fn new(
        file: &Arc<Path>,
        name: String,
        element_type: ElementType,
        shape: Vec<u64>,
        layout: ElementLayout,
        data: Data,
    ) -> Result<Self, CheckpointError> {
        let len = shape.iter().try_fold(1_u64, |len, &d| len.checked_mul(d));
        let byte_len = len
            .and_then(|len| len.checked_mul(element_type.size()))
            .and_then(|bytes| usize::try_from(bytes).ok());
        let (Some(len), Some(byte_len)) = (len, byte_len) else {
            let reason = format!("shape {shape:?} of {element_type} exceeds the address space");
            return Err(CheckpointError::tensor(file, &name, reason));
        };
        let tensor =
            Self { file: Arc::clone(file), name, element_type, shape, len, byte_len, layout, data };
        if let Data::Mapped(map, range, _) = &tensor.data {
            let held = map.as_ref().get(range.clone()).map_or(0, <[u8]>::len);
            tensor.check_byte_len(held)?;
        }
        Ok(tensor)
    }

    /// The tensor under another name.
    pub(super) fn renamed(self, name: String) -> Self {
        Self { name, ..self }
    }

    /// Whether its elements lie row-major in the order of this machine's files, little-endian.
    pub(super) fn is_plain(&self) -> bool {
        !self.layout.big_endian && !self.layout.column_major
    }

    /// All its bytes, in the order of the file.
    pub(super) fn bytes(&self) -> Result<Vec<u8>, CheckpointError> {
        let bytes = match &self.data {
            Data::Mapped(map, range, checked) => {
                self.check(checked.as_deref())?;
                map.as_ref().get(range.clone()).unwrap_or_default().to_vec()
            }
            Data::Decoded { load, .. } => load().map_err(|reason| self.error(reason))?,
        };
        self.check_byte_len(bytes.len())?;
        Ok(bytes)
    }

    /// The file that holds it.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Name within the checkpoint.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Type of the stored elements.
    pub fn element_type(&self) -> ElementType {
        self.element_type
    }

    /// Extents, outermost first; empty for a scalar.
    pub fn shape(&self) -> &[u64] {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the tensor has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of elements, if the tensor has one dimension.
    ///
    /// # Errors
    /// If it has another number of dimensions.
    pub fn vector_len(&self) -> Result<u64, CheckpointError> {
        let (name, shape) = (self.name(), self.shape());
        if shape.len() == 1 {
            return Ok(self.len());
        }
        let reason = format!("{name:?} has shape {shape:?}: expected one dimension");
        Err(CheckpointError::file(self.file(), reason))
    }

    /// Decodes elements `start..start + out.len()` in row-major order, whatever order the file
    /// holds them in, rounding to the nearest `f32`.
    pub fn read_f32(&self, start: u64, out: &mut [f32]) -> Result<(), CheckpointError> {
        self.decode_f32(None, start, out)
    }

    /// As [`read_f32`](Self::read_f32), but reads the file instead of its mapping, so that a pass
    /// over a whole table does not keep it in memory.
    pub fn stream_f32(&self, start: u64, out: &mut [f32]) -> Result<(), CheckpointError> {
        let Data::Mapped(map, range, checked) = &self.data else {
            return self.read_f32(start, out);
        };
        // An empty read needs no bytes, so `read_f32` does not compare their checksum either.
        if self.layout.column_major || out.is_empty() {
            return self.read_f32(start, out);
        }
        self.check_range(start, out.len())?;
        self.check(checked.as_deref())?;
        let size = self.element_type.size();
        let place = range.start as u64 + start * size;
        let failed = |error: std::io::Error| self.error(format!("cannot read: {error}"));
        if self.element_type == ElementType::F32
            && !self.layout.big_endian
            && cfg!(target_endian = "little")
        {
            return map.read_at(place, bytemuck::cast_slice_mut(out)).map_err(failed);
        }
        let mut bytes = vec![0; out.len() * size as usize];
        map.read_at(place, &mut bytes).map_err(failed)?;
        self.decode_f32(Some(&bytes), start, out)
    }

    fn decode_f32(
        &self,
        window: Option<&[u8]>,
        start: u64,
        out: &mut [f32],
    ) -> Result<(), CheckpointError> {
        decode_floats!(self, window, start, out, f32)
    }

    /// As [`read_f32`](Self::read_f32), rounding to the nearest `f64`.
    pub fn read_f64(&self, start: u64, out: &mut [f64]) -> Result<(), CheckpointError> {
        decode_floats!(self, None, start, out, f64)
    }

    /// Reads elements `start..start + out.len()`, which must be u8, in row-major order.
    pub(crate) fn read_u8(&self, start: u64, out: &mut [u8]) -> Result<(), CheckpointError> {
        if self.element_type != ElementType::U8 {
            return Err(self.error(format!("its elements are {}: expected u8", self.element_type)));
        }
        self.decode(None, start, out, |[b]| Ok(b))
    }

    /// Decodes elements `start..start + out.len()` in row-major order to `i64`. A value that is not
    /// an integer within `i64` is an error that names its position.
    pub fn read_i64(&self, start: u64, out: &mut [i64]) -> Result<(), CheckpointError> {
        use ElementType as T;
        match self.element_type {
            T::F64 => self.decode(None, start, out, |b| integer(f64::from_le_bytes(b))),
            T::F32 => self.decode(None, start, out, |b| integer(f32::from_le_bytes(b).into())),
            T::F16 => self.decode(None, start, out, |b| integer(f16::from_le_bytes(b).to_f64())),
            T::Bf16 => self.decode(None, start, out, |b| integer(bf16::from_le_bytes(b).to_f64())),
            T::I64 => self.decode(None, start, out, |b| Ok(i64::from_le_bytes(b))),
            T::I32 => self.decode(None, start, out, |b| Ok(i32::from_le_bytes(b).into())),
            T::I16 => self.decode(None, start, out, |b| Ok(i16::from_le_bytes(b).into())),
            T::I8 => self.decode(None, start, out, |b| Ok(i8::from_le_bytes(b).into())),
            T::U64 => self.decode(None, start, out, |b| {
                let value = u64::from_le_bytes(b);
                i64::try_from(value).map_err(|_| format!("{value}, expected at most {}", i64::MAX))
            }),
            T::U32 => self.decode(None, start, out, |b| Ok(u32::from_le_bytes(b).into())),
            T::U16 => self.decode(None, start, out, |b| Ok(u16::from_le_bytes(b).into())),
            T::U8 => self.decode(None, start, out, |[b]| Ok(b.into())),
            T::Bool => self.decode(None, start, out, |[b]| Ok(i64::from(b != 0))),
        }
    }

    /// Fills `out` from the `N`-byte elements at `start`; `convert` gets little-endian bytes and
    /// returns a description of a value that it cannot represent. `window` holds the bytes of these
    /// elements only, row-major.
    fn decode<const N: usize, T>(
        &self,
        window: Option<&[u8]>,
        start: u64,
        out: &mut [T],
        convert: impl Fn([u8; N]) -> Result<T, String>,
    ) -> Result<(), CheckpointError> {
        self.check_range(start, out.len())?;
        if out.is_empty() {
            return Ok(());
        }
        let mut decoded = Arc::default();
        let (bytes, first) = match window {
            Some(window) => (window, start),
            None => (self.held(&mut decoded)?, 0),
        };
        let (elements, _) = bytes.as_chunks::<N>();
        for (slot, position) in out.iter_mut().zip(start..) {
            let at = if self.layout.column_major {
                self.column_major(position)
            } else {
                position
            };
            let mut raw = elements[(at - first) as usize];
            if self.layout.big_endian {
                raw.reverse();
            }
            *slot = convert(raw)
                .map_err(|found| self.error(format!("element {position} is {found}")))?;
        }
        Ok(())
    }

    /// The bytes of all elements. `decoded` keeps them while they are used.
    fn held<'t>(&'t self, decoded: &'t mut Arc<Vec<u8>>) -> Result<&'t [u8], CheckpointError> {
        let bytes = match &self.data {
            Data::Mapped(map, range, checked) => {
                self.check(checked.as_deref())?;
                &map.as_ref()[range.clone()]
            }
            Data::Decoded { cache, id, load } => {
                *decoded = cache.get(*id, load).map_err(|reason| self.error(reason))?;
                decoded.as_slice()
            }
        };
        self.check_byte_len(bytes.len())?;
        Ok(bytes)
    }

    fn check_range(&self, start: u64, count: usize) -> Result<(), CheckpointError> {
        if start.checked_add(count as u64).is_some_and(|end| end <= self.len) {
            return Ok(());
        }
        let end = start.saturating_add(count as u64);
        Err(self
            .error(format!("elements {start}..{end} requested, but the tensor has {}", self.len)))
    }

    /// Storage position of the element at row-major `position` when the first dimension is fastest.
    fn column_major(&self, mut position: u64) -> u64 {
        let mut stride = self.len;
        let mut at = 0;
        for &extent in self.shape.iter().rev() {
            stride /= extent;
            at += position % extent * stride;
            position /= extent;
        }
        at
    }

    fn check(&self, checked: Option<&Checked>) -> Result<(), CheckpointError> {
        checked.map_or(Ok(()), Checked::check).map_err(|reason| self.error(reason))
    }

    fn check_byte_len(&self, held: usize) -> Result<(), CheckpointError> {
        if held == self.byte_len {
            return Ok(());
        }
        Err(self.error(format!(
            "shape {:?} of {} takes {} bytes, but the file holds {held}",
            self.shape, self.element_type, self.byte_len
        )))
    }

    fn error(&self, reason: String) -> CheckpointError {
        CheckpointError::tensor(&self.file, &self.name, reason)
    }
}

/// `value` as an exact integer, or a description of it.
fn integer(value: f64) -> Result<i64, String> {
    const BOUND: f64 = 9_223_372_036_854_775_808.0; // 2^63, which `i64` just misses.
    if value.fract() == 0.0 && (-BOUND..BOUND).contains(&value) {
        Ok(value as i64)
    } else {
        Err(format!("{value}, expected a 64-bit integer"))
    }
}
