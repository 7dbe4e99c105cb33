//! torch checkpoints: the zip container of torch 1.6 and later, and the pickle stream before it.
//!
//! pytorch-reader interprets the pickle without running any of it and gathers strided views into
//! row-major order. This module adds what it lacks: the cost of the pickle is bounded before it is
//! parsed, tensors of equal names are refused, and tensors that are row-major in the file are read
//! in parts: pytorch-reader reads whole tensors.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use pytorch_reader::{DType, PickleValue, PytorchReader};

use super::archive::{self, Archive, Members, StoredMember};
use super::mapped::{Checked, Mapped};
use super::pickle::Location;
use super::tensor::{Data, DecodedCache, ElementLayout};
use super::{CheckpointError, ElementType, Tensor, contain, pickle};

/// An expanded view (stride 0) is larger than its storage. A tensor may take as much as the whole
/// file and this beyond.
const MAX_EXPANSION: usize = 64 << 20;

/// Bytes of all tensor names together: a name is the path through nested dicts, so a small pickle
/// can spell very long ones.
const MAX_NAMES: usize = 64 << 20;

/// The magic number 0x1950a86a20f9469cfc6c of a legacy file, in binary and in text pickles.
const LEGACY_MAGIC: [&[u8]; 2] =
    [b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", b"119547037146038801333356"];

/// Whether a zip member of this name is the pickle of a torch checkpoint.
pub(super) fn is_pickle_member(name: &str) -> bool {
    name.strip_suffix("data.pkl")
        .is_some_and(|root| root.is_empty() || root.ends_with('/'))
}

/// Whether a file that starts with `bytes` is a legacy checkpoint.
pub(super) fn is_legacy(bytes: &[u8]) -> bool {
    let start = &bytes[..bytes.len().min(64)];
    LEGACY_MAGIC
        .iter()
        .any(|magic| start.windows(magic.len()).any(|window| window == *magic))
}

pub(super) fn read_zip(
    path: &Arc<Path>,
    map: &Mapped,
    Archive { mut members, names }: Archive,
) -> Result<Vec<Tensor>, CheckpointError> {
    let mut placed = Vec::new();
    for (index, name) in names.iter().enumerate().filter(|(_, name)| is_pickle_member(name)) {
        let places = archive::read(&mut members, index)
            .and_then(|bytes| pickle::check(&bytes, 1))
            .map_err(|reason| CheckpointError::tensor(path, name, reason))?;
        placed.push((name.strip_suffix("data.pkl").unwrap_or_default(), places));
    }
    // pytorch-reader decides which of several pickles counts.
    let (root, places) = if placed.len() == 1 {
        placed.remove(0)
    } else {
        Default::default()
    };
    let mut storages = Storages { map, members, root, found: BTreeMap::new() };
    read(path, map, |name, element_type, shape| {
        let place = places.get(name).filter(|place| place.shape == shape)?;
        storages.find(place, element_type)
    })
}

pub(super) fn read_legacy(path: &Arc<Path>, map: &Mapped) -> Result<Vec<Tensor>, CheckpointError> {
    // Magic number, protocol version, system info, the object, storage keys.
    pickle::check(map.as_ref(), 5).map_err(|reason| CheckpointError::file(path, reason))?;
    read(path, map, |_, _, _| None)
}

/// The uncompressed storages of an archive.
struct Storages<'m> {
    map: &'m Mapped,
    members: Members,
    /// The prefix of all member names.
    root: &'m str,
    found: BTreeMap<String, Option<StoredMember>>,
}

impl Storages<'_> {
    /// The bytes of the tensor at `place`, if it is row-major without gaps.
    fn find(
        &mut self,
        place: &Location,
        element_type: ElementType,
    ) -> Option<(Range<usize>, Option<Arc<Checked>>)> {
        let Self { map, members, root, found } = self;
        let stored = found.entry(place.storage.clone()).or_insert_with(|| {
            let index = members.index_for_name(&format!("{root}data/{}", place.storage))?;
            archive::stored(map, members, index).ok().flatten()
        });
        let StoredMember { range, checked } = stored.as_ref()?;
        let elements = row_major(&place.shape, &place.strides)?;
        let bytes =
            |elements: u64| usize::try_from(elements.checked_mul(element_type.size())?).ok();
        let start = range.start.checked_add(bytes(place.offset)?)?;
        let end = start.checked_add(bytes(elements)?)?;
        (end <= range.end).then(|| (start..end, checked.clone()))
    }
}

/// The number of elements, if they are row-major without gaps.
fn row_major(shape: &[u64], strides: &[u64]) -> Option<u64> {
    let mut count = 1_u64;
    for (&extent, &stride) in shape.iter().zip(strides).rev() {
        if extent != 1 && stride != count {
            return None;
        }
        count = count.checked_mul(extent)?;
    }
    (shape.len() == strides.len()).then_some(count)
}

/// The tensors; those that `find` finds are read from the file in parts.
fn read(
    path: &Arc<Path>,
    map: &Mapped,
    mut find: impl FnMut(&str, ElementType, &[u64]) -> Option<(Range<usize>, Option<Arc<Checked>>)>,
) -> Result<Vec<Tensor>, CheckpointError> {
    let malformed = |e: pytorch_reader::PytorchError| CheckpointError::file(path, e);
    let file_len = map.as_ref().len();
    let limit = file_len.saturating_add(MAX_EXPANSION);
    let root = PytorchReader::read_pickle_data(path, None).map_err(malformed)?;
    Names::default()
        .collect(&root, &mut String::new())
        .map_err(|reason| CheckpointError::file(path, reason))?;
    drop(root);

    let cache = Arc::new(DecodedCache::default());
    let tensors = PytorchReader::new(path).map_err(malformed)?.into_tensors();
    tensors
        .into_values()
        .enumerate()
        .map(|(id, tensor)| {
            let (name, dtype, shape, load) = tensor.into_parts();
            let (element_type, shape): (_, Vec<u64>) =
                (element_type(dtype), shape.into_iter().map(|extent| extent as u64).collect());
            let found = find(&name, element_type, &shape);
            // DLRM and many others store the model and the optimizer's state in one dict.
            let name = match name.strip_prefix("state_dict.") {
                Some(inner) => inner.to_owned(),
                None => name,
            };
            let (layout, data) = match found {
                Some((range, checked)) => {
                    (ElementLayout::ROW_MAJOR_LE, Data::Mapped(map.clone(), range, checked))
                }
                None => {
                    let load = Box::new(move || contain(&load)?.map_err(|e| e.to_string()));
                    // The reader returns the native byte order.
                    let layout = ElementLayout {
                        big_endian: cfg!(target_endian = "big"),
                        column_major: false,
                    };
                    (layout, Data::Decoded { cache: Arc::clone(&cache), id, load })
                }
            };
            let tensor = Tensor::new(path, name, element_type, shape, layout, data)?;
            if tensor.byte_len() > limit {
                let reason = format!(
                    "{} bytes in a file of {file_len}, expected at most {limit}",
                    tensor.byte_len()
                );
                return Err(CheckpointError::tensor(path, tensor.name(), reason));
            }
            Ok(tensor)
        })
        .collect()
}

fn element_type(dtype: DType) -> ElementType {
    match dtype {
        DType::F64 => ElementType::F64,
        DType::F32 => ElementType::F32,
        DType::F16 => ElementType::F16,
        DType::BF16 => ElementType::Bf16,
        DType::I64 => ElementType::I64,
        DType::I32 => ElementType::I32,
        DType::I16 => ElementType::I16,
        DType::I8 => ElementType::I8,
        DType::U64 => ElementType::U64,
        DType::U32 => ElementType::U32,
        DType::U16 => ElementType::U16,
        DType::U8 => ElementType::U8,
        DType::Bool => ElementType::Bool,
    }
}

/// The dotted names of all tensors, as pytorch-reader spells them; it silently keeps one of two
/// equal names (`{"a.b": x, "a": {"b": y}}`), and which one varies.
#[derive(Default)]
struct Names {
    seen: BTreeSet<String>,
    bytes: usize,
}

impl Names {
    fn collect(&mut self, value: &PickleValue, path: &mut String) -> Result<(), String> {
        match value {
            PickleValue::Dict(dict) => {
                for (key, value) in dict {
                    self.descend(key, value, path)?;
                }
            }
            PickleValue::List(items) => {
                for (index, value) in items.iter().enumerate() {
                    self.descend(&index.to_string(), value, path)?;
                }
            }
            PickleValue::Unsupported(kind) if kind == "torch.Tensor" => {
                self.bytes = self.bytes.saturating_add(path.len());
                if self.bytes > MAX_NAMES {
                    return Err(format!("tensor names beyond {MAX_NAMES} bytes in all"));
                }
                if !self.seen.insert(path.clone()) {
                    return Err(format!(
                        "two tensors named `{}`, expected one",
                        path.escape_debug()
                    ));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn descend(&mut self, key: &str, value: &PickleValue, path: &mut String) -> Result<(), String> {
        let len = path.len();
        if len > 0 {
            path.push('.');
        }
        path.push_str(key);
        self.collect(value, path)?;
        path.truncate(len);
        Ok(())
    }
}
