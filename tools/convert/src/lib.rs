//! Converts trained embedding tables to blobs of [`ttrec`]: the library of the command `ttrec`.
//!
//! A [`Checkpoint`] is a file of named tensors: `.safetensors` (one file, or several with an
//! index), torch `.pt`, `.npy`, `.npz`, `.onnx` or word vectors. It is mapped and treated as
//! hostile: nothing in it is executed, and every declared size is checked. A [`Spec`] says which
//! tensors to convert and how to store them; [`detect`] makes one from the names of the tensors.
//! [`convert()`] opens the tables, factorises dense ones as the spec says, and returns a
//! [`Conversion`], which streams the blob to a file or builds it in memory.
//!
//! [`plan()`] chooses a representation, ranks and a type for each table within a budget, and
//! returns the spec. [`compare`] compares a blob with its checkpoint. [`cache`] adds the most
//! frequent rows and products to a blob.
//!
//! This crate does not print and does not handle signals: progress and notes go to a [`Progress`];
//! `()` ignores them. Work uses the threads of the current rayon pool; results do not depend on
//! their number.
//!
//! # Example
//!
//! ```no_run
//! use std::path::Path;
//! use ttrec::Blob;
//! use ttrec_convert::{Checkpoint, Options, Spec, convert};
//!
//! let checkpoint = Checkpoint::open(Path::new("dlrm.pt"))?;
//! let spec = Spec::from_toml(
//!     r#"
//!     [[table]]
//!     name = "item"
//!     tensor = "emb_l.0.weight"
//!     representation = "low-rank"
//!     tolerance = 0.05
//!     dtype = "i8"
//!     "#,
//! )?;
//! let bytes = convert(&checkpoint, &spec, &Options::default(), &())?.to_blob()?;
//!
//! let blob = Blob::parse(&bytes)?;
//! let item = blob.table("item")?;
//! let mut row = vec![0.0; item.embedding_dim()];
//! item.lookup(7, &mut row, &mut vec![0.0; item.workspace_len(1)])?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod allocate;
mod budget;
pub mod cache;
pub mod checkpoint;
pub mod compare;
mod contraction_order;
mod convert;
mod dialect;
mod error;
mod factorize;
mod frequencies;
#[cfg(test)]
mod hostile;
mod in_memory;
mod matrix;
pub mod plan;
mod progress;
mod sink;
pub mod spec;
mod toml_error;
pub mod trained;

pub use allocate::zeros;
pub use budget::{Budget, memory_size};
pub use checkpoint::Checkpoint;
pub use convert::{Conversion, Options, convert, detect};
pub use dialect::{Source, StoredAs, with_qr_operation};
pub use error::Error;
pub use factorize::ResumeCache;
pub use frequencies::{Frequencies, add_up};
pub use plan::plan;
pub use progress::Progress;
pub use spec::Spec;
#[doc(hidden)]
pub use toml_error::toml_mistake;

/// Shapes of tensor trains.
pub mod shape {
    pub use crate::factorize::{Factors, suggest_shape, widest_first};
}
