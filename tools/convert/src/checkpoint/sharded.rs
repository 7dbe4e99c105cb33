//! Checkpoints in several files: an index (`model.safetensors.index.json`,
//! `pytorch_model.bin.index.json`) maps tensors to files in its directory.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::mapped::Mapped;
use super::safetensors::{Distinct, plain};
use super::{CheckpointError, Tensor};

/// As for the header of one file.
const MAX_INDEX: usize = 16 << 20;

#[derive(Deserialize)]
struct Index {
    /// Tensor to file. Other entries, such as `metadata`, are ignored.
    weight_map: Option<Distinct<String>>,
}

/// Whether a file that starts with `bytes` is a JSON object. A safetensors file may begin with a
/// brace or a space, too, but its first eight bytes are the length of a header, which is never so
/// long that none of them is zero.
pub(super) fn is_index(bytes: &[u8]) -> bool {
    bytes.trim_ascii_start().starts_with(b"{") && !bytes.iter().take(8).any(|&b| b == 0)
}

/// The path of a file that the file at `path` refers to by name, in the same directory.
///
/// # Errors
/// If it is in another directory.
pub(super) fn beside(path: &Path, file: &str) -> Result<PathBuf, String> {
    if Path::new(file).file_name() == Some(OsStr::new(file)) && !file.contains(['/', '\\', '\0']) {
        return Ok(path.with_file_name(file));
    }
    Err(format!("it refers to {file:?}: expected the name of a file in the same directory"))
}

pub(super) fn read(path: &Arc<Path>, map: &Mapped) -> Result<Vec<Tensor>, CheckpointError> {
    let malformed =
        |reason: String| CheckpointError::file(path, format!("index of shards: {reason}"));
    let bytes = map.as_ref();
    if bytes.len() > MAX_INDEX {
        return Err(malformed(format!("{} bytes, expected at most {MAX_INDEX}", bytes.len())));
    }
    let Index { weight_map } = serde_json::from_slice(bytes).map_err(|error| match error {
        error if error.is_data() => malformed(plain(&error)),
        error => malformed(format!(
            "JSON that is malformed or cut short at line {}, column {}",
            error.line(),
            error.column()
        )),
    })?;
    let Some(Distinct(places)) = weight_map else {
        let reason = "JSON without `weight_map`: expected an index of shards, such as \
                      model.safetensors.index.json, or the checkpoint itself";
        return Err(CheckpointError::file(path, reason));
    };
    let mut listed: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (tensor, file) in &places {
        listed.entry(file).or_default().push(tensor);
    }
    let mut tensors: BTreeMap<String, Tensor> = BTreeMap::new();
    for (file, names) in &listed {
        let refused = |reason| CheckpointError::tensor(path, names[0], reason);
        let shard: Arc<Path> = beside(path, file).map_err(refused)?.into();
        let map = Mapped::open(&shard)
            .map_err(|error| CheckpointError::Io { path: shard.to_path_buf(), error })?;
        if is_index(map.as_ref()) {
            let reason = "an index of other files: expected .safetensors or torch .bin";
            return Err(CheckpointError::file(&shard, reason));
        }
        for tensor in super::read(&shard, map)?.tensors {
            match places.get(tensor.name()) {
                // The index decides what the checkpoint holds.
                None => {}
                Some(place) if place == file => {
                    tensors.insert(tensor.name().to_owned(), tensor);
                }
                Some(place) => {
                    let reason = format!("also in this file, but the index says {place:?}");
                    return Err(CheckpointError::tensor(&shard, tensor.name(), reason));
                }
            }
        }
        if let Some(missing) = names.iter().find(|name| !tensors.contains_key(**name)) {
            let reason = "not in the file, but the index says that it is";
            return Err(CheckpointError::tensor(&shard, missing, reason));
        }
    }
    Ok(tensors.into_values().collect())
}
