//! torch checkpoints: the zip container of torch 1.6 and later, and the pickle stream before it.
//!
//! The pickle says where each tensor lies in which storage. Tensors that are row-major without gaps
//! are read from the file in parts; others are gathered whole on first use.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::archive::{self, Archive, Members, StoredMember};
use super::mapped::{Checked, Mapped};
use super::pickle::{self, Location, Named, Pickle, Place, Shards, Tensors};
use super::tensor::{Data, DecodedCache, ElementLayout};
use super::{CheckpointError, Contents, ElementType, Tensor, contain, parts};

/// An expanded view (stride 0) is larger than its storage. A tensor may take as much as the whole
/// file and this beyond.
const MAX_EXPANSION: usize = 64 << 20;

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

/// The bytes of a storage.
#[derive(Clone)]
enum Storage {
    /// They lie in the file.
    Mapped(Range<usize>, Option<Arc<Checked>>),
    /// They are a compressed member of the archive.
    Compressed { members: Arc<Mutex<Members>>, index: usize },
    /// They cannot be found, for this reason.
    Missing(String),
}

pub(super) fn read_zip(
    path: &Arc<Path>,
    map: &Mapped,
    Archive { mut members, names }: Archive,
) -> Result<Contents, CheckpointError> {
    let mut pickles = names.iter().enumerate().filter(|(_, name)| is_pickle_member(name));
    let (index, name) = match (pickles.next(), pickles.next()) {
        (Some(pickle), None) => pickle,
        (_, second) => {
            let name = second.map_or("data.pkl", |(_, name)| name);
            let reason = "expected one pickle of this name in the archive";
            return Err(CheckpointError::tensor(path, name, reason));
        }
    };
    let refused = |reason| CheckpointError::tensor(path, name, reason);
    let bytes = archive::read(&mut members, index).map_err(refused)?;
    let pickle = pickle::read(&bytes).map_err(refused)?;
    let tensors = pickle.tensors().map_err(refused)?;

    let root = name.strip_suffix("data.pkl").unwrap_or_default();
    let byte_order = match members.index_for_name(&format!("{root}byteorder")) {
        Some(index) => archive::read(&mut members, index).map_err(refused)?,
        None => Vec::new(),
    };
    let mut found: BTreeMap<String, Storage> = BTreeMap::new();
    let shared = Arc::new(Mutex::new(members.clone()));
    let mut find = |key: &str| {
        let storage = || {
            let member = format!("{root}data/{key}");
            let Some(index) = members.index_for_name(&member) else {
                return Storage::Missing(format!("the archive has no member {member:?}"));
            };
            match archive::stored(map, &mut members, index) {
                Ok(Some(StoredMember { range, checked })) => Storage::Mapped(range, checked),
                Ok(None) => Storage::Compressed { members: Arc::clone(&shared), index },
                Err(reason) => Storage::Missing(reason),
            }
        };
        found.entry(key.to_owned()).or_insert_with(storage).clone()
    };
    read(path, map, tensors, byte_order.starts_with(b"big"), &mut find)
}

/// Magic number, protocol version, system info, the object, storage keys: a pickle each. Then the
/// storages, each after its number of elements.
pub(super) fn read_legacy(path: &Arc<Path>, map: &Mapped) -> Result<Contents, CheckpointError> {
    let refused = |reason: String| CheckpointError::file(path, reason);
    let mut rest = map.as_ref();
    let mut next = || -> Result<Pickle<'_>, CheckpointError> {
        let pickle = pickle::read(rest).map_err(refused)?;
        rest = pickle.rest;
        Ok(pickle)
    };
    let (_magic, _version) = (next()?, next()?);
    let big_endian = next()?.flag("little_endian") == Some(false);
    let object = next()?;
    let keys = next()?;
    let keys = keys.texts().ok_or_else(|| {
        refused("pickle: expected a list of the storages after the object".to_owned())
    })?;
    let sizes = object.storages();
    let mut found: HashMap<&str, Storage> = HashMap::new();
    let len = map.as_ref().len();
    let mut at = len - rest.len();
    for key in keys {
        let bytes = map.as_ref();
        let count = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
        let size = sizes.get(key).copied().flatten();
        let range = count.zip(size).and_then(|(&count, size)| {
            let start = at.checked_add(8)?;
            let count = usize::try_from(u64::from_le_bytes(count)).ok()?;
            let end = start.checked_add(count.checked_mul(usize::try_from(size).ok()?)?)?;
            (end <= len).then_some(start..end)
        });
        // The place of a storage is known if those before it are.
        let Some(range) = range else { break };
        at = range.end;
        found.insert(key, Storage::Mapped(range, None));
    }
    let mut find = |key: &str| {
        let missing = || {
            Storage::Missing(
                "its storage cannot be found: the file is cut short, or a storage before it has a \
                 type that is not known"
                    .to_owned(),
            )
        };
        found.get(key).cloned().unwrap_or_else(missing)
    };
    read(path, map, object.tensors().map_err(refused)?, big_endian, &mut find)
}

/// The tensors, in the order of the file.
fn read(
    path: &Arc<Path>,
    map: &Mapped,
    Tensors { named, optimizers }: Tensors,
    big_endian: bool,
    find: &mut dyn FnMut(&str) -> Storage,
) -> Result<Contents, CheckpointError> {
    let layout = ElementLayout { big_endian, column_major: false };
    let cache = Arc::new(DecodedCache::default());
    let ids = Cell::new(0);
    let next_id = || ids.replace(ids.get() + 1);
    let mut tensor_at = |name: &str, place: &Arc<Location>| -> Result<Tensor, String> {
        let element_type = place
            .element_type
            .clone()
            .map_err(|found| format!("its elements are {found}"))?;
        let data = data(map, place, element_type, find, (&cache, next_id()));
        Tensor::new(path, name.to_owned(), element_type, place.shape.clone(), layout, data)
            .map_err(|error| error.to_string())
    };
    let mut contents = Contents { optimizers, is_ordered: true, ..Contents::default() };
    let mut names = BTreeSet::new();
    for Named { name, place } in named {
        if !names.insert(name.clone()) {
            let reason = format!("two tensors named `{}`, expected one", name.escape_debug());
            return Err(CheckpointError::file(path, reason));
        }
        // DLRM and many others store the model and the optimizer's state in one dict.
        let name = match name.strip_prefix("state_dict.") {
            Some(inner) => inner.to_owned(),
            // A lone tensor is named after the file, as in a .npy file.
            None if name.is_empty() => {
                path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
            }
            None => name,
        };
        let tensor = place.and_then(|place| match place {
            Place::Whole(place) => tensor_at(&name, &place),
            Place::Shards(shards) => {
                let Shards { shape, parts } = &*shards;
                let places = parts.iter().map(|(place, offsets)| (&offsets[..], &place.shape[..]));
                parts::check(shape, places)?;
                let part = |(place, offsets): &(_, Vec<u64>)| {
                    Ok((tensor_at(&name, place)?, offsets.clone()))
                };
                let parts = parts.iter().map(part).collect::<Result<_, String>>()?;
                let limit = (map.as_ref().len() as u64).saturating_add(MAX_EXPANSION as u64);
                parts::join(path, shape, parts, limit, (&cache, next_id()))
            }
        });
        match tensor {
            Ok(tensor) => contents.tensors.push(tensor.renamed(name)),
            Err(reason) => drop(contents.unreadable.insert(name, reason)),
        }
    }
    Ok(contents)
}

/// The elements at `place`.
fn data(
    map: &Mapped,
    place: &Arc<Location>,
    element_type: ElementType,
    find: &mut dyn FnMut(&str) -> Storage,
    (cache, id): (&Arc<DecodedCache>, usize),
) -> Data {
    let storage = find(&place.storage);
    if let Storage::Mapped(range, checked) = &storage
        && !place.negated
        && let Some(range) = row_major(place, element_type, range)
    {
        return Data::Mapped(map.clone(), range, checked.clone());
    }
    let gather = Gather { place: Arc::clone(place), element_type, file_len: map.as_ref().len() };
    let map = map.clone();
    let load = move || match &storage {
        Storage::Mapped(range, checked) => {
            checked.as_deref().map_or(Ok(()), Checked::check)?;
            gather.gather(map.as_ref().get(range.clone()).unwrap_or_default())
        }
        Storage::Compressed { members, index } => {
            let mut members = members.lock().unwrap_or_else(PoisonError::into_inner);
            let bytes = contain(|| archive::read(&mut members, *index))??;
            gather.gather(&bytes)
        }
        Storage::Missing(reason) => Err(reason.clone()),
    };
    Data::Decoded { cache: Arc::clone(cache), id, load: Box::new(load) }
}

/// The bytes of a tensor in the file, if it is row-major without gaps and its storage has them all.
fn row_major(
    place: &Location,
    element_type: ElementType,
    storage: &Range<usize>,
) -> Option<Range<usize>> {
    let mut count = 1_u64;
    for (&extent, &stride) in place.shape.iter().zip(&place.strides).rev() {
        if extent != 1 && stride != count {
            return None;
        }
        count = count.checked_mul(extent)?;
    }
    let bytes = |elements: u64| usize::try_from(elements.checked_mul(element_type.size())?).ok();
    let start = storage.start.checked_add(bytes(place.offset)?)?;
    let end = start.checked_add(bytes(count)?)?;
    (place.shape.len() == place.strides.len() && end <= storage.end).then_some(start..end)
}

/// A tensor that is copied from its storage, element by element.
struct Gather {
    place: Arc<Location>,
    element_type: ElementType,
    file_len: usize,
}

impl Gather {
    fn gather(&self, storage: &[u8]) -> Result<Vec<u8>, String> {
        let Location { offset, shape, strides, negated, .. } = &*self.place;
        let limit = self.file_len.saturating_add(MAX_EXPANSION);
        if shape.len() != strides.len() {
            return Err(format!("shape {shape:?} and strides {strides:?} differ in length"));
        }
        let size = self.element_type.size() as usize;
        let count = shape.iter().try_fold(size as u64, |count, &extent| count.checked_mul(extent));
        let len = count.and_then(|count| usize::try_from(count).ok()).unwrap_or(usize::MAX);
        if len > limit {
            return Err(format!(
                "{len} bytes in a file of {}, expected at most {limit}",
                self.file_len
            ));
        }
        if len == 0 {
            return Ok(Vec::new());
        }
        let last = shape.iter().zip(strides).try_fold(*offset, |last, (&extent, &stride)| {
            last.checked_add((extent - 1).checked_mul(stride)?)
        });
        let held = storage.len() / size;
        if last.is_none_or(|last| last >= held as u64) {
            return Err(format!(
                "shape {shape:?} with strides {strides:?} from element {offset} on: its storage \
                 has {held} elements"
            ));
        }
        let mut out = Vec::with_capacity(len);
        let mut position = vec![0_u64; shape.len()];
        // Every position is at most `last`.
        let mut at = *offset;
        loop {
            let start = at as usize * size;
            out.extend_from_slice(&storage[start..start + size]);
            let mut k = shape.len();
            loop {
                let Some(next) = k.checked_sub(1) else {
                    if *negated {
                        self.negate(&mut out);
                    }
                    return Ok(out);
                };
                k = next;
                position[k] += 1;
                at += strides[k];
                if position[k] < shape[k] {
                    break;
                }
                at -= strides[k] * shape[k];
                position[k] = 0;
            }
        }
    }

    /// Changes the sign of every element.
    fn negate(&self, bytes: &mut [u8]) {
        use ElementType as T;
        let size = self.element_type.size() as usize;
        for element in bytes.chunks_exact_mut(size) {
            match self.element_type {
                // `torch.save` writes little-endian, and the sign is the highest bit.
                T::F64 | T::F32 | T::F16 | T::Bf16 => element[size - 1] ^= 0x80,
                _ => {
                    let mut carry = true;
                    for byte in element {
                        (*byte, carry) = (!*byte).overflowing_add(u8::from(carry));
                    }
                }
            }
        }
    }
}
