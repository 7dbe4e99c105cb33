//! The integration tests of the library, one module a subject. `tests/no_alloc.rs` has a binary of
//! its own, since it replaces the global allocator.

mod support;

#[cfg(feature = "alloc")]
mod agreement;
mod alignment;
#[cfg(feature = "alloc")]
mod batch;
#[cfg(feature = "alloc")]
mod cache;
#[cfg(feature = "alloc")]
mod dlrm;
mod format;
mod golden_blob;
#[cfg(feature = "alloc")]
mod hostile;
mod kernels;
#[cfg(feature = "alloc")]
mod padding;
#[cfg(feature = "alloc")]
mod pool_tables;
mod readme;
#[cfg(feature = "alloc")]
mod rejection;
#[cfg(feature = "alloc")]
mod representations;
#[cfg(feature = "alloc")]
mod retrieval;
#[cfg(feature = "train")]
mod train;
#[cfg(feature = "train")]
mod train_cache;
#[cfg(feature = "train")]
mod train_codes;
#[cfg(feature = "train")]
mod train_dlrm;
