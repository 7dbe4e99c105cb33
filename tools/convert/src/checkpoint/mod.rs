//! Trained checkpoints as named tensors: `.safetensors` (one file, or several with an index), torch
//! `.pt`/`.pth` (zip and legacy), `.npy` and `.npz`, distinguished by content.
//!
//! Checkpoints are untrusted. Every declared size is checked against the bytes of the file before
//! anything is allocated, compressed data must not exceed a ratio (see `archive`), the cost of a
//! pickle is bounded before it is parsed (see `pickle`), and no reader executes code from a file.

mod archive;
mod mapped;
mod numpy;
mod pickle;
mod safetensors;
mod sharded;
mod tensor;
mod torch;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};

pub use mapped::Mapped;
pub use tensor::{ElementType, Tensor};

/// Why a checkpoint cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file cannot be opened or mapped.
    #[error("{}: {error}", path.display())]
    Io {
        /// The checkpoint.
        path: PathBuf,
        /// The error of the operating system.
        error: io::Error,
    },
    /// The container is invalid.
    #[error("{}: {reason}", path.display())]
    File {
        /// The checkpoint.
        path: PathBuf,
        /// What was found and what was expected.
        reason: String,
    },
    /// A tensor or member is invalid, or does not have the requested elements.
    #[error("{}: `{}`: {reason}", path.display(), tensor.escape_debug())]
    Tensor {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor or member.
        tensor: String,
        /// What was found and what was expected.
        reason: String,
    },
}

impl CheckpointError {
    fn file(path: &Path, reason: impl ToString) -> Self {
        Self::File { path: path.to_owned(), reason: reason.to_string() }
    }

    fn tensor(path: &Path, tensor: &str, reason: impl ToString) -> Self {
        Self::Tensor {
            path: path.to_owned(),
            tensor: tensor.to_owned(),
            reason: reason.to_string(),
        }
    }
}

/// An open checkpoint.
///
/// Tensors that are row-major in the file are decoded from a mapping of the file on each read, and
/// never loaded: `.safetensors`, `.npy`, uncompressed `.npz`, and the tensors of a `state_dict` in
/// a `.pt` file. Others (compressed ones, transposed views, legacy `.pt` files) are decoded whole
/// on first use; the last used ones are kept, up to 256 MiB or one tensor. If the container has
/// checksums, a tensor's checksum is checked before first use.
pub struct Checkpoint {
    path: Arc<Path>,
    tensors: BTreeMap<String, Tensor>,
    metadata: Metadata,
    unreadable: Unreadable,
}

/// Why arrays beside the tensors cannot be read, by name.
type Unreadable = BTreeMap<String, String>;

/// Texts by name, from the header of a safetensors file.
type Metadata = BTreeMap<String, String>;

impl Checkpoint {
    /// Opens the checkpoint at `path`; the content decides the container.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let path: Arc<Path> = path.into();
        let map = Mapped::open(&path)
            .map_err(|error| CheckpointError::Io { path: path.to_path_buf(), error })?;
        let (list, metadata, unreadable) = contain(|| read(&path, map))
            .unwrap_or_else(|panic| Err(CheckpointError::file(&path, panic)))?;
        let mut tensors = BTreeMap::new();
        for tensor in list {
            let name = tensor.name().to_owned();
            if tensors.insert(name.clone(), tensor).is_some() {
                let reason = "duplicate tensor name";
                return Err(CheckpointError::tensor(&path, &name, reason));
            }
        }
        Ok(Self { path, tensors, metadata, unreadable })
    }

    /// The path of the checkpoint, or of the index of several files.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files of the checkpoint.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let shards: BTreeSet<&Path> = self.tensors.values().map(Tensor::file).collect();
        [self.path()].into_iter().chain(shards)
    }

    /// All tensors in name order.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.tensors.values()
    }

    /// The tensor called `name`.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// The tensor called `name`, if there is an array of that name.
    ///
    /// # Errors
    /// If the elements of the array are not numbers.
    pub fn find(&self, name: &str) -> Result<Option<&Tensor>, CheckpointError> {
        match self.unreadable.get(name) {
            Some(reason) => Err(CheckpointError::tensor(&self.path, name, reason)),
            None => Ok(self.tensor(name)),
        }
    }

    /// The text called `name` in the header of a safetensors file.
    pub fn metadata(&self, name: &str) -> Option<&str> {
        self.metadata.get(name).map(String::as_str)
    }
}

/// Reads the tensor list of the container found in `map`.
fn read(
    path: &Arc<Path>,
    map: Mapped,
) -> Result<(Vec<Tensor>, Metadata, Unreadable), CheckpointError> {
    let alone = |tensors| (tensors, Metadata::new(), Unreadable::new());
    let bytes = map.as_ref();
    if bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"PK\x05\x06") {
        let archive = archive::open(path, &map)?;
        if archive.names.iter().any(|name| torch::is_pickle_member(name)) {
            return torch::read_zip(path, &map, archive).map(alone);
        }
        let (tensors, unreadable) = numpy::read_npz(path, &map, archive)?;
        return Ok((tensors, Metadata::new(), unreadable));
    }
    if bytes.starts_with(numpy::MAGIC) {
        return numpy::read_npy(path, &map).map(alone);
    }
    if sharded::is_index(bytes) {
        return sharded::read(path, &map).map(alone);
    }
    // The length of the JSON header, then its opening brace.
    if bytes.get(8) == Some(&b'{') {
        let (tensors, metadata) = safetensors::read(path, &map)?;
        return Ok((tensors, metadata, Unreadable::new()));
    }
    if torch::is_legacy(bytes) {
        return torch::read_legacy(path, &map).map(alone);
    }
    let reason = if bytes.get(257..262) == Some(b"ustar") {
        "torch checkpoint in tar form (before 2017): save it again with a newer torch"
    } else {
        "not a checkpoint that ttrec can read: expected .safetensors, .safetensors.index.json, \
         torch .pt (zip or legacy), .npy or .npz"
    };
    Err(CheckpointError::file(path, reason))
}

thread_local! {
    /// Whether this thread is within [`contain`].
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// Parses hostile bytes; turns a panic into an error, and prints nothing on stderr.
///
/// Some libraries add or multiply declared sizes unchecked, which panics when overflow checks are
/// on, and none guarantees not to panic.
fn contain<T>(parse: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    // The error has the message; a printed panic would look like a bug of this program.
    HOOK.call_once(|| {
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !CONTAINED.get() {
                report(info);
            }
        }));
    });
    let outer = CONTAINED.replace(true);
    // The closure owns everything that a panic may leave inconsistent.
    let outcome = panic::catch_unwind(AssertUnwindSafe(parse));
    CONTAINED.set(outer);
    outcome.map_err(|panic| {
        let message = panic
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        format!("malformed: {}", message.unwrap_or("the parser failed"))
    })
}
