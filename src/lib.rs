//! Tensor-train embedding tables (TT-Rec) for the edge.
//!
//! Recommendation models are mostly embedding tables: gigabytes of rows, of which a request looks
//! up a few. [TT-Rec](https://arxiv.org/abs/2101.11714) stores a table as a *tensor train*: a few
//! small cores, together 4 to 220 times smaller than the table, from which rows are computed on
//! demand. This crate looks up rows and pools them from one flat file, the *blob*, in place: in
//! flash, in the binary, or memory-mapped. It is `no_std`, and lookups do not allocate.
//!
//! Blobs are written by the command `ttrec convert` from PyTorch checkpoints, or with
//! [`blob::Layout`]. Besides tensor trains, a blob stores dense tables (f32 to 4 bits), tables of
//! low rank, hashed and quotient-remainder tables, and the layers of a DLRM.
//!
//! # Walkthrough
//!
//! ```
//! use ttrec::{AlignedBytes, Bags, Blob, Pooling, Workspace, include_blob};
//!
//! // A blob in the binary. `Blob::parse` checks the directory and reads nothing else.
//! static MODEL: &AlignedBytes = include_blob!("../tests/golden/two_tables.ttr");
//! let blob = Blob::parse(MODEL)?;
//! let item = blob.table("item")?;
//! assert_eq!((item.num_embeddings(), item.embedding_dim()), (4000, 16));
//!
//! // The row of index 42.
//! let mut workspace = Workspace::new();
//! let mut row = [0.0; 16];
//! item.lookup(42, &mut row, workspace.for_table(&item, 1))?;
//!
//! // Two bags, as `torch.nn.EmbeddingBag` takes them: indices 42 and 7, and index 999.
//! let bags = Bags::new(&[42u32, 7, 999], &[0, 2, 3])?;
//! let mut pooled = [0.0; 2 * 16];
//! item.pool(&bags, Pooling::Mean, &mut pooled, workspace.for_table(&item, 3))?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`bag::pool_tables`] pools the bags of several tables, [`Ranker`] computes the scores of a
//! blob's model, and [`cache::RowCache`] keeps the most frequently requested rows of a table.
//!
//! # What a tensor train is
//!
//! A table of N rows and D columns is factorised as N <= p_0 p_1 .. p_{d-1} and D = q_0 q_1 ..
//! q_{d-1}, for d of 2 to 6. *Core* k is a stack of p_k *slices* of r_k x q_k x r_{k+1} numbers;
//! the r_k are the *ranks*, and r_0 = r_d = 1. The digits i_0, .., i_{d-1} of row i in the mixed
//! radix p choose one slice of each core, and the row is their product:
//!
//! ```text
//! row(i)[j] = G_0[i_0][j_0] . G_1[i_1][j_1] . .. . G_{d-1}[i_{d-1}][j_{d-1}]
//! ```
//!
//! where j_0, .., j_{d-1} are the digits of column j in the mixed radix q, and G_k\[i_k\]\[j_k\] is
//! an r_k x r_{k+1} matrix. 11,000,000 rows of 64 columns in three cores of rank 32 have 983,040
//! numbers instead of 704,000,000. [`TtShape`] computes such sizes. The digits of a row except the
//! last one are its *prefix*: rows with the same prefix share the product of these slices, which
//! makes bags faster than lookups.
//!
//! # Blobs and alignment
//!
//! A blob is little-endian: a header, a directory of tables and sections, and the sections, each at
//! a multiple of [`limits::ALIGNMENT`] (64) bytes. Numbers are read in place, so the blob's first
//! byte must be at a multiple of 64 too. [`include_blob!`] and [`AlignedBuf`] align it; a memory
//! mapping begins on a page, which is aligned. `docs/format.md` specifies the format.
//!
//! # Workspaces
//!
//! A lookup or a bag needs scratch memory for partial products: a *workspace*, which the caller
//! lends. Any `&mut [f32]` will do, whatever its values are.
//!
//! - [`Table::workspace_len(1)`](Table::workspace_len) elements are enough for every call.
//! - [`Table::workspace_len(n)`](Table::workspace_len) elements make bags of n indices in total
//!   fastest. Elements beyond that are not used.
//! - [`Ranker::workspace_len`] is the same for samples.
//! - With the feature `alloc`, [`Workspace`] is a workspace that grows to the length needed.
//!   Without the feature, use an array: its length can be a constant that `ttrec inspect` shows.
//!
//! # Codebooks
//!
//! Without default features, codebook tables need the feature `codebooks`: a firmware that has none
//! does not need the code for them. A blob that has one is then refused.
//!
//! # Threads
//!
//! [`Blob`], [`Table`], [`Ranker`] and [`Bags`] are views that are `Copy`, `Send` and `Sync`, and
//! nothing takes a lock: share them, and give each thread its own output and workspace. The library
//! starts no threads, except in the feature `train`, which uses rayon.
//!
//! # What is bit-exact
//!
//! The best instructions of the CPU are found at run time ([`Tier`]). The AVX-512, AVX2 and NEON
//! tiers compute the same bits; the scalar tier rounds products separately. A row's bits depend on
//! the table and the tier alone. A bag's bits depend on that bag, not on the batch, the workspace
//! or the thread. `docs/numerics.md` states the order of every sum, and bounds the error of each
//! dtype.
//!
//! # Panics and errors
//!
//! The lookup path (parsing, lookups, bags and scores) does not allocate and cannot panic: a check
//! links it for Cortex-M and finds no call to the panic handler. A blob is validated when it is
//! parsed; later calls fail only for their own arguments: an index out of range, or a wrong length.
//! On error the output is left unmodified. Errors are `Copy`, except the blob writer's. Every
//! error displays as one complete sentence, which includes that of an inner error, and has no
//! [`source`](core::error::Error::source): a chain of errors prints nothing twice.
//!
//! # Features
//!
//! - `std` (default): `alloc`, and faster checksums ([`Blob::verify_payload`]). Lookups are the
//!   same.
//! - `alloc`: the blob writer ([`blob::Layout`]), [`AlignedBuf`] and [`Workspace`].
//! - `train`: `std`, and trainable tables in the module `train`.
//!
//! # Versions
//!
//! The minimum supported Rust version is 1.89, the first with AVX-512 intrinsics. Raising it is a
//! minor release. Blobs of format version 1 stay readable in all releases.
//!
//! The public API follows semantic versioning, except for
//!
//! - the module `kernel`, and everything else that is `#[doc(hidden)]`, which is public for
//!   benchmarks;
//! - the module `train`, until 1.0.
//!
//! # Security
//!
//! Blobs and arguments may be hostile: for any bytes, parsing and lookups return a result or an
//! error, within the buffers that they are given. Checksums find accidents, not forgeries: sign
//! blobs that come over a network. All `unsafe` code is in the module [`isa`]. `docs/security.md`
//! says what is guaranteed and what is not.

#![no_std]
#![cfg_attr(
    not(feature = "codebooks"),
    allow(unreachable_patterns, unreachable_code, reason = "there is no codebook table")
)]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![deny(unsafe_code)] // but in `isa`

#[cfg(target_endian = "big")]
compile_error!("blobs are little-endian and used in place: big-endian targets are not supported");

#[cfg(feature = "alloc")]
extern crate alloc;
#[cfg(feature = "std")]
extern crate std;

mod aligned;
pub mod bag;
pub mod blob;
pub mod cache;
mod codes;
mod divisor;
pub mod dlrm;
pub mod dtype;
mod index;
pub mod isa;
#[doc(hidden)]
pub mod kernel;
pub mod limits;
mod pooling;
pub mod repr;
pub mod retrieval;
pub mod shape;
pub mod table;
#[cfg(feature = "train")]
pub mod train;
#[cfg(feature = "alloc")]
mod workspace;

#[cfg(feature = "alloc")]
pub use aligned::AlignedBuf;
pub use aligned::AlignedBytes;
pub use bag::{Bags, BagsError, PoolTablesError, Pooling};
pub use blob::{Blob, BlobError};
pub use dlrm::{NoModel, Ranker, ScoreError};
pub use isa::Tier;
pub use retrieval::{RetrievalError, Scored, Search, merge_top_k};
pub use shape::{DigitOrder, ShapeError, TtShape};
pub use table::{LookupError, NoSuchTable, Table};
#[cfg(feature = "alloc")]
pub use workspace::Workspace;
