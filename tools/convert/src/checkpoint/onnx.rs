//! ONNX models: the initializers of the graph, by their names.
//!
//! Elements in raw form, in the model or in files of the same directory, are read as needed. Those
//! in lists of numbers are decoded whole on first use.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::mapped::Mapped;
use super::protobuf::{Fields, Malformed, Value, packed};
use super::tensor::{Data, DecodedCache, ElementLayout};
use super::{CheckpointError, Contents, ElementType, Tensor, sharded};

/// A description takes some hundred bytes, and as little as eight in the file. Models have fewer.
const MAX_INITIALIZERS: usize = 1 << 17;

const MAX_DIMENSIONS: usize = 64;

/// The field of a model that is its graph.
const GRAPH: u64 = 7;

/// The numbers of the fields of a tensor.
mod field {
    pub(super) const DIMS: u64 = 1;
    pub(super) const DATA_TYPE: u64 = 2;
    pub(super) const SEGMENT: u64 = 3;
    pub(super) const FLOAT_DATA: u64 = 4;
    pub(super) const INT32_DATA: u64 = 5;
    pub(super) const INT64_DATA: u64 = 7;
    pub(super) const NAME: u64 = 8;
    pub(super) const RAW_DATA: u64 = 9;
    pub(super) const DOUBLE_DATA: u64 = 10;
    pub(super) const UINT64_DATA: u64 = 11;
    pub(super) const EXTERNAL_DATA: u64 = 13;
    pub(super) const DATA_LOCATION: u64 = 14;
}

/// The types of elements, by their codes.
const TYPES: [&str; 24] = [
    "UNDEFINED",
    "FLOAT",
    "UINT8",
    "INT8",
    "UINT16",
    "INT16",
    "INT32",
    "INT64",
    "STRING",
    "BOOL",
    "FLOAT16",
    "DOUBLE",
    "UINT32",
    "UINT64",
    "COMPLEX64",
    "COMPLEX128",
    "BFLOAT16",
    "FLOAT8E4M3FN",
    "FLOAT8E4M3FNUZ",
    "FLOAT8E5M2",
    "FLOAT8E5M2FNUZ",
    "UINT4",
    "INT4",
    "FLOAT4E2M1",
];

/// The type of this code, and the field that lists such elements as numbers.
fn element_type(code: u64) -> Result<(ElementType, u64), String> {
    use field::{DOUBLE_DATA, FLOAT_DATA, INT32_DATA, INT64_DATA, UINT64_DATA};
    Ok(match code {
        1 => (ElementType::F32, FLOAT_DATA),
        2 => (ElementType::U8, INT32_DATA),
        3 => (ElementType::I8, INT32_DATA),
        4 => (ElementType::U16, INT32_DATA),
        5 => (ElementType::I16, INT32_DATA),
        6 => (ElementType::I32, INT32_DATA),
        7 => (ElementType::I64, INT64_DATA),
        9 => (ElementType::Bool, INT32_DATA),
        10 => (ElementType::F16, INT32_DATA),
        11 => (ElementType::F64, DOUBLE_DATA),
        12 => (ElementType::U32, UINT64_DATA),
        13 => (ElementType::U64, UINT64_DATA),
        16 => (ElementType::Bf16, INT32_DATA),
        _ => {
            let name = usize::try_from(code).ok().and_then(|code| TYPES.get(code));
            let found = name.map_or_else(|| format!("of type {code}"), |name| (*name).to_owned());
            return Err(format!(
                "its elements are {found}: expected float, integer or bool of 8 to 64 bits"
            ));
        }
    })
}

/// A tensor as the model describes it.
#[derive(Default)]
struct Initializer {
    name: String,
    data_type: u64,
    dims: Vec<u64>,
    raw: Option<Range<usize>>,
    /// The entries that say where in which file the elements are, by key.
    external: BTreeMap<String, String>,
    is_external: bool,
    is_segment: bool,
}

/// Whether `bytes` are a model: its version, then other fields up to the graph.
pub(super) fn is_model(bytes: &[u8]) -> bool {
    // Few fields are before the graph: others are not looked at, whatever the file.
    let mut fields = Fields::new(bytes, 0..bytes.len()).take(1 << 10);
    matches!(fields.next(), Some(Ok((1, Value::Number(1..100)))))
        && fields.any(|field| {
            matches!(field, Ok((GRAPH, Value::Bytes(_))) | Err(Malformed(Some(GRAPH))))
        })
}

pub(super) fn read(path: &Arc<Path>, map: &Mapped) -> Result<Contents, CheckpointError> {
    let bytes = map.as_ref();
    let refused = |reason: &str| CheckpointError::file(path, format!("ONNX model: {reason}"));
    let malformed = |_: Malformed| refused("malformed, or cut short: save or download it again");
    let (mut contents, mut files) = (Contents::default(), BTreeMap::new());
    let cache = Arc::new(DecodedCache::default());
    let mut names = BTreeSet::new();
    for graph in Fields::new(bytes, 0..bytes.len()) {
        let (GRAPH, Value::Bytes(graph)) = graph.map_err(malformed)? else { continue };
        for field in Fields::new(bytes, graph) {
            // An initializer, or a sparse one, whose first field is a tensor with its name.
            let (sparse, message) = match field.map_err(malformed)? {
                (5, Value::Bytes(message)) => (false, message),
                (15, Value::Bytes(message)) => (true, message),
                _ => continue,
            };
            let message = if sparse {
                let first = Fields::new(bytes, message).next().transpose().map_err(malformed)?;
                let Some((1, Value::Bytes(values))) = first else { continue };
                values
            } else {
                message
            };
            let found = Initializer::parse(bytes, message.clone()).map_err(malformed)?;
            if names.len() == MAX_INITIALIZERS {
                return Err(refused(&format!(
                    "more than {MAX_INITIALIZERS} initializers, expected fewer"
                )));
            }
            if !names.insert(found.name.clone()) {
                return Err(CheckpointError::tensor(path, &found.name, "duplicate tensor name"));
            }
            let tensor = if sparse {
                Err("it is sparse: expected a tensor that lists all of its elements".to_owned())
            } else {
                found.element_type()
            };
            let (element_type, listed) = match tensor {
                Ok(found) => found,
                Err(reason) => {
                    contents.unreadable.insert(found.name, reason);
                    continue;
                }
            };
            let (file, data) = if found.is_external {
                let (file, map) = open(path, &found, &mut files)?;
                let range = found
                    .external_range(map.as_ref().len())
                    .map_err(|reason| CheckpointError::tensor(&file, &found.name, reason))?;
                (file, Data::Mapped(map, range, None))
            } else if let Some(range) = found.raw {
                (Arc::clone(path), Data::Mapped(map.clone(), range, None))
            } else {
                let (map, id) = (map.clone(), names.len());
                let load = move || list(map.as_ref(), message.clone(), listed, element_type);
                let cache = Arc::clone(&cache);
                (Arc::clone(path), Data::Decoded { cache, id, load: Box::new(load) })
            };
            let layout = ElementLayout::ROW_MAJOR_LE;
            let (name, shape) = (found.name.clone(), found.dims);
            match Tensor::new(&file, name, element_type, shape, layout, data) {
                Ok(tensor) => contents.tensors.push(tensor),
                Err(error) => drop(contents.unreadable.insert(found.name, error.to_string())),
            }
        }
    }
    Ok(contents)
}

impl Initializer {
    fn parse(bytes: &[u8], message: Range<usize>) -> Result<Self, Malformed> {
        let mut found = Self::default();
        let text = |range: Range<usize>| {
            String::from_utf8(bytes[range].to_vec()).map_err(|_| Malformed(None))
        };
        for field in Fields::new(bytes, message) {
            match field? {
                (field::DIMS, Value::Number(extent)) => found.push(Some(extent))?,
                (field::DIMS, Value::Bytes(range)) => {
                    packed(&bytes[range]).try_for_each(|extent| found.push(extent))?;
                }
                (field::DATA_TYPE, Value::Number(code)) => found.data_type = code,
                (field::SEGMENT, _) => found.is_segment = true,
                (field::NAME, Value::Bytes(range)) => found.name = text(range)?,
                (field::RAW_DATA, Value::Bytes(range)) => found.raw = Some(range),
                (field::EXTERNAL_DATA, Value::Bytes(entry)) => {
                    let (mut key, mut value) = (String::new(), String::new());
                    for part in Fields::new(bytes, entry) {
                        match part? {
                            (1, Value::Bytes(range)) => key = text(range)?,
                            (2, Value::Bytes(range)) => value = text(range)?,
                            _ => {}
                        }
                    }
                    found.external.insert(key, value);
                }
                (field::DATA_LOCATION, Value::Number(place)) => found.is_external = place != 0,
                _ => {}
            }
        }
        Ok(found)
    }

    /// Adds a dimension.
    fn push(&mut self, extent: Option<u64>) -> Result<(), Malformed> {
        if self.dims.len() == MAX_DIMENSIONS {
            return Err(Malformed(Some(field::DIMS)));
        }
        self.dims.push(extent.ok_or(Malformed(Some(field::DIMS)))?);
        Ok(())
    }

    /// As the function of this name, or why the tensor cannot be read.
    fn element_type(&self) -> Result<(ElementType, u64), String> {
        if self.is_segment {
            return Err("it is a part of a tensor: expected a whole one".to_owned());
        }
        element_type(self.data_type)
    }

    /// The bytes of the elements in a file of `len` bytes.
    fn external_range(&self, len: usize) -> Result<Range<usize>, String> {
        let number = |key: &str, otherwise: usize| match self.external.get(key) {
            None => Ok(otherwise),
            Some(text) => text.parse().map_err(|_| {
                format!("the model says {key} = {text:?}: expected a number of bytes")
            }),
        };
        let start = number("offset", 0)?;
        let count = number("length", len.saturating_sub(start))?;
        start.checked_add(count).filter(|&end| end <= len).map(|end| start..end).ok_or_else(|| {
            format!(
                "{count} bytes from byte {start} on, but the file has {len}: it was cut short, or \
                 is of another model"
            )
        })
    }
}

/// The file that has the elements of an external tensor; `files` has those that are open.
fn open(
    path: &Path,
    tensor: &Initializer,
    files: &mut BTreeMap<String, (Arc<Path>, Mapped)>,
) -> Result<(Arc<Path>, Mapped), CheckpointError> {
    let name = tensor.external.get("location").map_or("", String::as_str);
    if let Some((file, map)) = files.get(name) {
        return Ok((Arc::clone(file), map.clone()));
    }
    let file: Arc<Path> = sharded::beside(path, name)
        .map_err(|reason| CheckpointError::tensor(path, &tensor.name, reason))?
        .into();
    let map = Mapped::open(&file).map_err(|error| {
        let reason = format!(
            "the model stores the tensor in {name:?}, which has to be in the same directory: \
             {error}"
        );
        CheckpointError::tensor(path, &tensor.name, reason)
    })?;
    files.insert(name.to_owned(), (Arc::clone(&file), map.clone()));
    Ok((file, map))
}

/// The elements that the field `listed` of a tensor has, as bytes.
fn list(
    bytes: &[u8],
    message: Range<usize>,
    listed: u64,
    element_type: ElementType,
) -> Result<Vec<u8>, String> {
    let malformed = || "its elements are malformed".to_owned();
    let size = element_type.size() as usize;
    // Their elements have a fixed size, and those of other lists do not.
    let is_fixed = matches!(listed, field::FLOAT_DATA | field::DOUBLE_DATA);
    let mut out = Vec::new();
    let push = |out: &mut Vec<u8>, number: Option<u64>| {
        let number = number.ok_or_else(malformed)?;
        if !fits(number, element_type) {
            return Err(format!("{} does not fit in {element_type}", number.cast_signed()));
        }
        out.extend_from_slice(&number.to_le_bytes()[..size]);
        Ok(())
    };
    for field in Fields::new(bytes, message) {
        match field.map_err(|_| malformed())? {
            (number, Value::Number(_)) if number == listed && is_fixed => return Err(malformed()),
            (number, Value::Number(value)) if number == listed => push(&mut out, Some(value))?,
            (number, Value::Bytes(range)) if number == listed => match is_fixed {
                true => out.extend_from_slice(&bytes[range]),
                false => packed(&bytes[range]).try_for_each(|number| push(&mut out, number))?,
            },
            _ => {}
        }
    }
    Ok(out)
}

/// Whether an element of this type has the value of `number`, which is signed in two's complement.
/// Floats are listed as the bits that they consist of.
fn fits(number: u64, element_type: ElementType) -> bool {
    let (signed, bits) = (number.cast_signed(), 8 * element_type.size());
    match element_type {
        ElementType::I64 | ElementType::U64 => true,
        ElementType::I32 | ElementType::I16 | ElementType::I8 => {
            let bound = 1_i64 << (bits - 1);
            (-bound..bound).contains(&signed)
        }
        _ => number >> bits == 0,
    }
}
