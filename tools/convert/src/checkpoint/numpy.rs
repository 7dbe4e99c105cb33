//! numpy's `.npy` (one array) and `.npz` (a zip archive of `.npy` members).

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use super::archive::{self, Archive, Members, StoredMember};
use super::mapped::Mapped;
use super::tensor::{Data, DecodedCache, ElementLayout};
use super::{CheckpointError, Contents, ElementType, Tensor, contain};

pub(super) const MAGIC: &[u8] = b"\x93NUMPY";

/// numpy itself refuses longer header texts.
const MAX_HEADER: usize = 10_000;

/// The contents of a `.npy` header.
struct Header {
    element_type: ElementType,
    shape: Vec<u64>,
    layout: ElementLayout,
    /// Bytes before the elements.
    len: usize,
}

impl Header {
    fn parse(start: &[u8]) -> Result<Self, String> {
        let expected = "expected a whole .npy header: was the file cut short?";
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
        let text = str::from_utf8(&header[prefix..]).map_err(|_| expected)?;
        let Dict { descr, fortran_order, shape } = Dict::parse(text)?;
        let (element_type, big_endian) = element_type(&descr).ok_or_else(|| {
            let found = descr.escape_debug();
            format!("element type '{found}', expected float, integer or bool of at most 64 bits")
        })?;
        let layout = ElementLayout { big_endian, column_major: fortran_order };
        Ok(Self { element_type, shape, layout, len })
    }
}

/// The type of a `descr` such as `<f4`, and whether it is big-endian.
fn element_type(descr: &str) -> Option<(ElementType, bool)> {
    let (order, kind) = descr.split_at_checked(1)?;
    let element_type = match kind {
        "f8" => ElementType::F64,
        "f4" => ElementType::F32,
        "f2" => ElementType::F16,
        "i8" => ElementType::I64,
        "i4" => ElementType::I32,
        "i2" => ElementType::I16,
        "i1" => ElementType::I8,
        "u8" => ElementType::U64,
        "u4" => ElementType::U32,
        "u2" => ElementType::U16,
        "u1" => ElementType::U8,
        "b1" => ElementType::Bool,
        // numpy has no bfloat16; ml_dtypes, which JAX saves with, writes it as two bytes.
        "V2" => return Some((ElementType::Bf16, order == ">")),
        _ => return None,
    };
    match order {
        "<" => Some((element_type, false)),
        ">" => Some((element_type, true)),
        // Single bytes have no byte order.
        "|" if element_type.size() == 1 => Some((element_type, false)),
        _ => None,
    }
}

/// The text of a header: a Python dict of three entries, in any order.
struct Dict {
    descr: String,
    fortran_order: bool,
    shape: Vec<u64>,
}

impl Dict {
    fn parse(text: &str) -> Result<Self, String> {
        let (mut descr, mut fortran_order, mut shape) = (None, None, None);
        let mut rest = Literal(text);
        rest.expect("{")?;
        while rest.expect("}").is_err() {
            let key = rest.string()?;
            rest.expect(":")?;
            match key {
                "descr" => descr = Some(rest.descr()?.to_owned()),
                "fortran_order" => fortran_order = Some(rest.bool()?),
                "shape" => shape = Some(rest.shape()?),
                _ => return Err(format!(".npy header: key {key:?}")),
            }
            if rest.expect(",").is_err() {
                rest.expect("}")?;
                break;
            }
        }
        let missing = |key: &str| format!(".npy header: no key {key:?}");
        Ok(Self {
            descr: descr.ok_or_else(|| missing("descr"))?,
            fortran_order: fortran_order.ok_or_else(|| missing("fortran_order"))?,
            shape: shape.ok_or_else(|| missing("shape"))?,
        })
    }
}

/// The rest of a header's text.
struct Literal<'t>(&'t str);

impl<'t> Literal<'t> {
    fn expect(&mut self, wanted: &str) -> Result<(), String> {
        match self.0.trim_start().strip_prefix(wanted) {
            Some(rest) => self.0 = rest,
            None => return Err(format!(".npy header: expected {wanted:?}")),
        }
        Ok(())
    }

    /// Without escapes: neither keys nor types have any.
    fn string(&mut self) -> Result<&'t str, String> {
        let expected = || ".npy header: expected a string".to_owned();
        let text = self.0.trim_start();
        let quote = text.chars().next().filter(|c| "'\"".contains(*c)).ok_or_else(expected)?;
        let (string, rest) = text[1..].split_once(quote).ok_or_else(expected)?;
        self.0 = rest;
        Ok(string)
    }

    fn descr(&mut self) -> Result<&'t str, String> {
        self.string()
            .map_err(|_| "structured element type, expected a plain one".to_owned())
    }

    fn bool(&mut self) -> Result<bool, String> {
        let is_true = self.expect("True").is_ok();
        if !is_true {
            self.expect("False")?;
        }
        Ok(is_true)
    }

    fn shape(&mut self) -> Result<Vec<u64>, String> {
        let mut shape = Vec::new();
        self.expect("(")?;
        while self.expect(")").is_err() {
            let text = self.0.trim_start();
            let end = text.find(|c: char| !c.is_ascii_digit() && c != '-').unwrap_or(text.len());
            let (extent, rest) = text.split_at(end);
            if extent.starts_with('-') {
                return Err(format!(".npy header: negative extent {extent}"));
            }
            let extent = extent.parse();
            shape.push(extent.map_err(|error| format!(".npy header: an extent: {error}"))?);
            // Python 2 wrote long integers with an L.
            self.0 = rest.strip_prefix('L').unwrap_or(rest);
            if self.expect(",").is_err() {
                self.expect(")")?;
                break;
            }
        }
        Ok(shape)
    }
}

/// The array of a `.npy` file, named after the file.
pub(super) fn read_npy(path: &Arc<Path>, map: &Mapped) -> Result<Vec<Tensor>, CheckpointError> {
    let bytes = map.as_ref();
    let header = Header::parse(bytes).map_err(|reason| CheckpointError::file(path, reason))?;
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let data = Data::Mapped(map.clone(), header.len..bytes.len(), None);
    tensor(path, name.into_owned(), header, data).map(|tensor| vec![tensor])
}

/// The arrays of a `.npz` file; like numpy, ignores members that are not `.npy`.
pub(super) fn read_npz(
    path: &Arc<Path>,
    map: &Mapped,
    Archive { mut members, names }: Archive,
) -> Result<Contents, CheckpointError> {
    let cache = Arc::new(DecodedCache::default());
    let mut contents = Contents::default();
    for (index, file_name) in names.iter().enumerate() {
        // numpy ends a name at a null.
        let file_name = file_name.split('\0').next().unwrap_or_default();
        let Some(name) = file_name.strip_suffix(".npy") else {
            continue;
        };
        let (header, stored) = match member_header(map, &mut members, index) {
            Ok(found) => found,
            // Text and objects are common beside the arrays of numbers.
            Err(reason) => {
                contents.unreadable.insert(name.to_owned(), reason);
                continue;
            }
        };
        let data = match stored {
            Some(StoredMember { range, checked }) => Data::Mapped(
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
        contents.tensors.push(tensor(path, name.to_owned(), header, data)?);
    }
    if contents.tensors.is_empty() && contents.unreadable.is_empty() {
        let reason = "zip archive, expected data.pkl (torch) or .npy members (numpy) in it";
        return Err(CheckpointError::file(path, reason));
    }
    Ok(contents)
}

/// The header of a member and, if it is uncompressed, its bytes in the file.
fn member_header(
    map: &Mapped,
    members: &mut Members,
    index: usize,
) -> Result<(Header, Option<StoredMember>), String> {
    let stored = archive::stored(map, members, index)?;
    let member = members.by_index(index).map_err(|e| e.to_string())?;
    let size = member.size();
    let mut start = Vec::new();
    member
        .take(12 + MAX_HEADER as u64)
        .read_to_end(&mut start)
        .map_err(|e| e.to_string())?;
    let header = Header::parse(&start)?;
    // Before anything is decompressed, the shape must match the declared size of the member.
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
