//! Trained checkpoints as named tensors: `.safetensors` (one file, or several with an index), torch
//! `.pt`/`.pth` (zip and legacy), `.npy`, `.npz`, `.onnx`, word vectors and indexes of FAISS,
//! distinguished by content; and directories of `torch.distributed.checkpoint`. Files of other
//! programs are refused by name.
//!
//! Checkpoints are untrusted. Every declared size is checked against the bytes of the file before
//! anything is allocated, compressed data must not exceed a ratio (see `archive`), the cost of a
//! pickle is bounded before it is parsed (see `pickle`), and no reader executes code from a file.

mod archive;
mod distributed;
pub(crate) mod faiss;
mod foreign;
mod mapped;
mod numpy;
mod onnx;
mod parts;
mod pickle;
mod protobuf;
mod safetensors;
mod sharded;
mod tensor;
mod torch;
mod word_vectors;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
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
    /// The names in the order of the file, if it has one of its own.
    order: Option<Vec<String>>,
    /// Tensors that cannot be read, each with the reason.
    unreadable: BTreeMap<String, String>,
    /// The prefixes of the tensors of optimizers.
    optimizers: Vec<String>,
    metadata: BTreeMap<String, String>,
}

/// The names that torch's optimizers give their tensors. Tables do not have these names.
const OPTIMIZER_STATE: [&str; 9] = [
    "exp_avg",
    "exp_avg_sq",
    "max_exp_avg_sq",
    "exp_inf",
    "momentum_buffer",
    "square_avg",
    "grad_avg",
    "acc_delta",
    "row_sum_squares",
];

/// What a container holds.
#[derive(Default)]
struct Contents {
    tensors: Vec<Tensor>,
    /// Whether the order of the tensors is that of the program that wrote them.
    is_ordered: bool,
    /// Tensors that cannot be read, each with the reason.
    unreadable: BTreeMap<String, String>,
    /// The prefixes of the tensors of optimizers.
    optimizers: Vec<String>,
    /// Texts by name, from the header of a safetensors file.
    metadata: BTreeMap<String, String>,
}

impl From<Vec<Tensor>> for Contents {
    fn from(tensors: Vec<Tensor>) -> Self {
        Self { tensors, ..Self::default() }
    }
}

impl Checkpoint {
    /// Opens the checkpoint at `path`; the content decides the container.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let path: Arc<Path> = match path.join(distributed::METADATA) {
            metadata if metadata.is_file() => metadata.into(),
            _ if path.is_dir() => {
                return Err(CheckpointError::file(path, foreign::describe_directory(path)));
            }
            _ => path.into(),
        };
        let map = Mapped::open(&path)
            .map_err(|error| CheckpointError::Io { path: path.to_path_buf(), error })?;
        let Contents { tensors: list, is_ordered, unreadable, optimizers, metadata } =
            contain(|| read(&path, map))
                .unwrap_or_else(|panic| Err(CheckpointError::file(&path, panic)))?;
        let order = || list.iter().map(|tensor| tensor.name().to_owned()).collect();
        let order = is_ordered.then(order);
        let mut tensors = BTreeMap::new();
        for tensor in list {
            let name = tensor.name().to_owned();
            if tensors.insert(name.clone(), tensor).is_some() {
                let reason = "duplicate tensor name";
                return Err(CheckpointError::tensor(&path, &name, reason));
            }
        }
        Ok(Self { path, tensors, order, unreadable, optimizers, metadata })
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

    /// The tensor called `name`, if the checkpoint has one.
    ///
    /// # Errors
    /// If it has one that cannot be read.
    pub fn find(&self, name: &str) -> Result<Option<&Tensor>, CheckpointError> {
        match self.unreadable.get(name) {
            Some(reason) => Err(CheckpointError::tensor(&self.path, name, reason)),
            None => Ok(self.tensor(name)),
        }
    }

    /// The tensors that cannot be read, by name, each with the reason: an element type or a form
    /// that this crate does not know.
    pub fn unreadable(&self) -> impl Iterator<Item = (&str, &str)> {
        self.unreadable.iter().map(|(name, reason)| (name.as_str(), reason.as_str()))
    }

    /// The names of the tensors in the order of the program that wrote them; `None` if the
    /// container does not keep it: safetensors sorts names.
    pub fn order(&self) -> Option<&[String]> {
        self.order.as_deref()
    }

    /// Whether the tensor called `name` is the state of an optimizer, such as the moments of Adam,
    /// which have the shapes of the tables: it lies beside `param_groups`, or is named as one.
    pub fn is_optimizer_state(&self, name: &str) -> bool {
        // Only pickles have the dicts of an optimizer; other files have nothing but names.
        let named = name.split('.').any(|part| {
            let part = part.to_ascii_lowercase();
            part.contains("optimizer") || part == "opt_state_dict" || part == "optim"
        });
        let moment = name.rsplit('.').next().is_some_and(|last| OPTIMIZER_STATE.contains(&last));
        named || moment || self.optimizers.iter().any(|prefix| name.starts_with(prefix))
    }

    /// The text called `name` in the header of a safetensors file, or a fact of a FAISS index.
    pub fn metadata(&self, name: &str) -> Option<&str> {
        self.metadata.get(name).map(String::as_str)
    }
}

/// Reads the tensor list of the container found in `map`.
fn read(path: &Arc<Path>, map: Mapped) -> Result<Contents, CheckpointError> {
    let bytes = map.as_ref();
    if path.file_name() == Some(OsStr::new(distributed::METADATA)) {
        return distributed::read(path, &map);
    }
    if path.extension() == Some(OsStr::new("distcp")) {
        let reason = "a part of a checkpoint of torch.distributed.checkpoint: give its directory, \
                      which has the file .metadata";
        return Err(CheckpointError::file(path, reason));
    }
    if bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"PK\x05\x06") {
        let archive = archive::open(path, &map)?;
        if let Some(reason) = foreign::describe_archive(&archive.names) {
            return Err(CheckpointError::file(path, reason));
        }
        if archive.names.iter().any(|name| torch::is_pickle_member(name)) {
            return torch::read_zip(path, &map, archive);
        }
        return numpy::read_npz(path, &map, archive);
    }
    if faiss::is_index(bytes) {
        return faiss::read(path, &map);
    }
    if bytes.starts_with(numpy::MAGIC) {
        return numpy::read_npy(path, &map).map(Contents::from);
    }
    if sharded::is_index(bytes) {
        return sharded::read(path, &map).map(Contents::from);
    }
    if onnx::is_model(bytes) {
        return onnx::read(path, &map);
    }
    // The length of the JSON header, then its opening brace.
    if bytes.get(8) == Some(&b'{') {
        return safetensors::read(path, &map);
    }
    if torch::is_legacy(bytes) {
        return torch::read_legacy(path, &map);
    }
    let word_vectors =
        word_vectors::find(&map).map_err(|reason| CheckpointError::file(path, reason))?;
    if let Some(layout) = word_vectors {
        return word_vectors::read(path, &map, layout).map(Contents::from);
    }
    let reason = foreign::describe(path, bytes).unwrap_or(
        "not a checkpoint that ttrec can read: expected .safetensors, .safetensors.index.json, \
         torch .pt (zip or legacy), .npy, .npz, .onnx, word vectors or a FAISS index of codes",
    );
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
