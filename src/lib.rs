//! Tensor-train embedding tables (TT-Rec) for the edge.
//!
//! Recommendation models are mostly embedding tables: gigabytes of rows, looked up a few at a time.
//! [TT-Rec](https://arxiv.org/abs/2101.11714) stores a table as a *tensor train* of small cores, 4 to 220 times smaller,
//! and rebuilds rows on demand. This crate looks rows up and pools them straight from one flat
//! file, the *blob*, where it lies: in flash, in the binary, or memory-mapped. It is `no_std` and
//! allocates nothing on the way to a row.
//!
//! ```
//! use ttrec::{AlignedBytes, Bags, Blob, Pooling, include_blob};
//!
//! static MODEL: &AlignedBytes = include_blob!("../tests/golden/two_tables.ttr");
//!
//! let blob = Blob::parse(MODEL)?; // touches the directory only
//! let item = blob.table("item")?;
//! let mut workspace = [0.0; 144]; // item.workspace_len()
//! let mut row = [0.0; 16]; // item.embedding_dim()
//! item.lookup(42, &mut row, &mut workspace)?;
//!
//! let bags = Bags::new(&[42u32, 7, 999], &[0, 2, 3])?; // rows 42 and 7; row 999
//! let mut pooled = [0.0; 2 * 16];
//! item.pool(&bags, Pooling::Mean, &mut pooled, &mut workspace)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The way of a lookup through the modules: bytes, [`blob`], [`table`], [`bag`], [`kernel`]s over
//! [`isa`] and [`dtype`], a row. The best instructions that the CPU has are found at run time.
//!
//! # Features
//! - `std` (default): `alloc`, and faster checksums. The lookup path is the same.
//! - `alloc`: the blob [writer](blob::Layout), [`AlignedBuf`], and owned workspaces.
//! - `train`: `std`, and tables that learn, in the module `train`.

#![no_std]
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
pub mod kernel;
mod limits;
pub mod shape;
pub mod table;
#[cfg(feature = "train")]
pub mod train;

#[cfg(feature = "alloc")]
pub use aligned::AlignedBuf;
pub use aligned::AlignedBytes;
pub use bag::{Bags, BagsError, PoolTablesError, Pooling};
pub use blob::{Blob, BlobError};
pub use dlrm::{NoModel, Ranker, ScoreError};
pub use isa::Tier;
pub use shape::{DigitOrder, ShapeError, TtShape};
pub use table::{LookupError, NoSuchTable, Table};
