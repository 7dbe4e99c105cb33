//! The integration tests of the C library, one module a subject. `capi/tests/no_alloc.rs` has a
//! binary of its own, since it replaces the global allocator.

mod support;

mod arguments;
mod blobs;
mod examples;
mod header;
mod lifetimes;
mod ranker;
mod retrieval;
mod threads;
