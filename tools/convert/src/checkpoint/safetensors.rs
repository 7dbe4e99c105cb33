//! The safetensors container: a JSON header, then the tensors back to back.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::path::Path;
use std::sync::Arc;

use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::mapped::Mapped;
use super::tensor::{Data, ElementLayout};
use super::{CheckpointError, Contents, ElementType, Tensor};

/// Parsing the header takes up to some 15 times its size; 16 MiB describe over 100,000 tensors.
const MAX_HEADER: usize = 16 << 20;

const AGAIN: &str = "save, copy or download it again";

/// A tensor in the header, as far as it says where the file ends.
#[derive(Deserialize)]
struct Entry {
    data_offsets: Option<[u64; 2]>,
}

pub(super) fn read(path: &Arc<Path>, map: &Mapped) -> Result<Contents, CheckpointError> {
    let bytes = map.as_ref();
    let malformed = |reason: &dyn fmt::Display| {
        CheckpointError::file(path, format!("safetensors header: {}", plain(reason)))
    };
    let header_len = bytes
        .first_chunk()
        .and_then(|&len| usize::try_from(u64::from_le_bytes(len)).ok())
        .filter(|&len| len <= MAX_HEADER)
        .ok_or_else(|| malformed(&format_args!("expected at most {MAX_HEADER} bytes")))?;
    let data_start = 8 + header_len;
    let header = bytes.get(8..data_start).ok_or_else(|| {
        malformed(&format_args!("longer than the file, which was cut short: {AGAIN}"))
    })?;
    // The library silently keeps the last of two equal names.
    let Distinct(entries) =
        serde_json::from_slice::<Distinct<Entry>>(header).map_err(|e| malformed(&e))?;
    let end = entries.values().filter_map(|entry| Some(entry.data_offsets?[1])).max();
    let (end, held) = (end.unwrap_or(0), (bytes.len() - data_start) as u64);
    if end > held {
        return Err(malformed(&format_args!(
            "describes {end} bytes of tensors, but the file, which was cut short, has {held}: \
             {AGAIN}"
        )));
    }
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| malformed(&e))?;

    let mut contents = Contents::default();
    for (name, info) in metadata.tensors() {
        let Some(element_type) = element_type(info.dtype) else {
            let reason = format!(
                "its elements are {}: expected float, integer or bool of 8 to 64 bits",
                info.dtype
            );
            contents.unreadable.insert(name, reason);
            continue;
        };
        let (start, end) = info.data_offsets;
        let range = data_start.saturating_add(start)..data_start.saturating_add(end);
        let shape = info.shape.iter().map(|&extent| extent as u64).collect();
        let data = Data::Mapped(map.clone(), range, None);
        let layout = ElementLayout::ROW_MAJOR_LE;
        contents
            .tensors
            .push(Tensor::new(path, name, element_type, shape, layout, data)?);
    }
    let texts = metadata.metadata().iter().flatten();
    contents.metadata = texts.map(|(key, text)| (key.clone(), text.clone())).collect();
    Ok(contents)
}

/// What a parser of JSON says, with the byte in place of the column of the only line.
pub(super) fn plain(error: &dyn fmt::Display) -> String {
    let text = error.to_string();
    let text = text.strip_prefix("invalid JSON in header: ").unwrap_or(&text);
    match text.rsplit_once(" at line 1 column ") {
        Some((what, byte)) => format!("{what}, at byte {byte}"),
        None => text.to_owned(),
    }
}

fn element_type(dtype: Dtype) -> Option<ElementType> {
    Some(match dtype {
        Dtype::F64 => ElementType::F64,
        Dtype::F32 => ElementType::F32,
        Dtype::F16 => ElementType::F16,
        Dtype::BF16 => ElementType::Bf16,
        Dtype::I64 => ElementType::I64,
        Dtype::I32 => ElementType::I32,
        Dtype::I16 => ElementType::I16,
        Dtype::I8 => ElementType::I8,
        Dtype::U64 => ElementType::U64,
        Dtype::U32 => ElementType::U32,
        Dtype::U16 => ElementType::U16,
        Dtype::U8 => ElementType::U8,
        Dtype::BOOL => ElementType::Bool,
        _ => return None,
    })
}

/// A JSON object whose keys, names of tensors, differ.
pub(super) struct Distinct<V>(pub(super) BTreeMap<String, V>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Distinct<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<V>(PhantomData<V>);

        impl<'de, V: Deserialize<'de>> Visitor<'de> for Entries<V> {
            type Value = Distinct<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of distinct tensor names")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Distinct<V>, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, V>()? {
                    if entries.contains_key(&key) {
                        return Err(A::Error::custom(format_args!(
                            "two tensors named `{}`",
                            key.escape_debug()
                        )));
                    }
                    entries.insert(key, value);
                }
                Ok(Distinct(entries))
            }
        }

        deserializer.deserialize_map(Entries(PhantomData))
    }
}
