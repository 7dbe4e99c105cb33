//! numpy's `.npy` (one array) and `.npz` (a zip archive of `.npy` members).

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use npyz::{DType, Endianness, NpyHeader, Order, TypeChar};

use super::archive::{self, Archive, Members, Stored};
use super::mapped::Mapped;
use super::tensor::{Cache, Data, Layout};
use super::{CheckpointError, ElementType, Tensor, contain};

pub(super) const MAGIC: &[u8] = b"\x93NUMPY";

/// numpy itself refuses longer header texts.
const MAX_HEADER: usize = 10_000;
/// A plain header opens one dict and one tuple. The parser takes exponential time in nested braces,
/// and structured types, which nest, are not tensors.
const MAX_BRACKETS: usize = 4;

/// What a `.npy` header says.
struct Header {
    element_type: ElementType,
    shape: Vec<u64>,
    layout: Layout,
    /// Bytes before the elements.
    len: usize,
}

impl Header {
    fn parse(start: &[u8]) -> Result<Self, String> {
        let expected = "expected a .npy header";
        let prefix = match start.get(6) {
            _ if !start.starts_with(MAGIC) => return Err(expected.to_owned()),
            Some(1) => 10,
            _ => 12,
        };
        let text_len = match *start.get(8..prefix).ok_or(expected)? {
            [a, b] => usize::from(u16::from_le_bytes([a, b])),
            [a, b, c, d] => u32::from_le_bytes([a, b, c, d]) as usize,
            _ => return Err(expected.to_owned()),
        };
        if text_len > MAX_HEADER {
            return Err(format!(".npy header of {text_len} bytes, expected at most {MAX_HEADER}"));
        }
        let len = prefix + text_len;
        let header = start.get(..len).ok_or(expected)?;
        if header.iter().filter(|b| b"([{".contains(b)).count() > MAX_BRACKETS {
            return Err("structured element type, expected a plain one".to_owned());
        }
        let header = NpyHeader::from_reader(header).map_err(|e| format!(".npy header: {e}"))?;
        let dtype = header.dtype();
        let (element_type, big_endian) = match &dtype {
            DType::Plain(plain) => {
                let big_endian = plain.endianness() == Endianness::Big;
                element_type(plain.type_char(), plain.size_field()).zip(Some(big_endian))
            }
            DType::Array(..) | DType::Record(_) => None,
        }
        .ok_or_else(|| {
            let found = dtype.descr();
            format!("element type {found}, expected float, integer or bool of at most 64 bits")
        })?;
        Ok(Self {
            element_type,
            shape: header.shape().to_vec(),
            layout: Layout { big_endian, column_major: header.order() == Order::Fortran },
            len,
        })
    }
}

fn element_type(kind: TypeChar, size: u64) -> Option<ElementType> {
    Some(match (kind, size) {
        (TypeChar::Float, 8) => ElementType::F64,
        (TypeChar::Float, 4) => ElementType::F32,
        (TypeChar::Float, 2) => ElementType::F16,
        (TypeChar::Int, 8) => ElementType::I64,
        (TypeChar::Int, 4) => ElementType::I32,
        (TypeChar::Int, 2) => ElementType::I16,
        (TypeChar::Int, 1) => ElementType::I8,
        (TypeChar::Uint, 8) => ElementType::U64,
        (TypeChar::Uint, 4) => ElementType::U32,
        (TypeChar::Uint, 2) => ElementType::U16,
        (TypeChar::Uint, 1) => ElementType::U8,
        (TypeChar::Bool, 1) => ElementType::Bool,
        _ => return None,
    })
}

/// The array of a `.npy` file, named after the file.
pub(super) fn read_npy(path: &Arc<Path>, map: &Mapped) -> Result<Vec<Tensor>, CheckpointError> {
    let bytes = map.as_ref();
    let header = Header::parse(bytes).map_err(|reason| CheckpointError::file(path, reason))?;
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let data = Data::Mapped(map.clone(), header.len..bytes.len(), None);
    tensor(path, name.into_owned(), header, data).map(|tensor| vec![tensor])
}

/// The arrays of a `.npz` file; members that are not `.npy` are no arrays to numpy either.
pub(super) fn read_npz(
    path: &Arc<Path>,
    map: &Mapped,
    Archive { mut members, names }: Archive,
) -> Result<Vec<Tensor>, CheckpointError> {
    let cache = Arc::new(Cache::default());
    let mut tensors = Vec::new();
    for (index, file_name) in names.iter().enumerate() {
        let Some(name) = npyz::npz::array_name_from_file_name(file_name) else {
            continue;
        };
        let (header, stored) = member_header(map, &mut members, index)
            .map_err(|reason| CheckpointError::tensor(path, name, reason))?;
        let data = match stored {
            Some(Stored { range, checked }) => Data::Mapped(
                map.clone(),
                range.start.saturating_add(header.len)..range.end,
                checked,
            ),
            None => {
                let (members, header_len) = (members.clone(), header.len);
                let load = move || {
                    let mut bytes = contain(|| archive::read(&mut members.clone(), index))??;
                    bytes.drain(..header_len.min(bytes.len()));
                    Ok(bytes)
                };
                let (cache, load) = (Arc::clone(&cache), Box::new(load));
                Data::Decoded { cache, id: index, load }
            }
        };
        tensors.push(tensor(path, name.to_owned(), header, data)?);
    }
    if tensors.is_empty() {
        let reason = "zip archive, expected data.pkl (torch) or .npy members (numpy) in it";
        return Err(CheckpointError::file(path, reason));
    }
    Ok(tensors)
}

/// The header of a member and, if it is stored as it is, the bytes of the file it occupies.
fn member_header(
    map: &Mapped,
    members: &mut Members,
    index: usize,
) -> Result<(Header, Option<Stored>), String> {
    let stored = archive::stored(map, members, index)?;
    let member = members.by_index(index).map_err(|e| e.to_string())?;
    let size = member.size();
    let mut start = Vec::new();
    member
        .take(12 + MAX_HEADER as u64)
        .read_to_end(&mut start)
        .map_err(|e| e.to_string())?;
    let header = Header::parse(&start)?;
    // Before anything is decompressed for it, a shape must fit the size the member declares.
    let declared = header
        .shape
        .iter()
        .try_fold(header.element_type.size(), |len, &d| len.checked_mul(d));
    if declared.and_then(|len| len.checked_add(header.len as u64)) != Some(size) {
        return Err(format!(
            "shape {:?} of {} does not fit its {size} bytes",
            header.shape, header.element_type
        ));
    }
    Ok((header, stored))
}

fn tensor(
    path: &Arc<Path>,
    name: String,
    header: Header,
    data: Data,
) -> Result<Tensor, CheckpointError> {
    let Header { element_type, shape, layout, .. } = header;
    Tensor::new(path, name, element_type, shape, layout, data)
}
