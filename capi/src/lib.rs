//! ttrec from C and C++: a blob is opened once, and then any number of threads look rows up in it,
//! pool bags and score samples.
//!
//! `include/ttrec.h`, made of [`abi`] and the types beside it, is the reference; a test keeps it in
//! step. The way of a call: an entry point of [`abi`], `boundary`, which turns pointers into
//! references after checking what can be checked, the Rust library, and a status, with a text that
//! `last_error` keeps.
//!
//! Unsafe operations are in `boundary` alone. [`abi`] has the attributes that export its functions,
//! which count as unsafe code, and vouches for its callers' promise, once per function.

#![deny(unsafe_code)]
#![allow(non_camel_case_types, reason = "types have the names that they have in the header")]

#[allow(unsafe_code, reason = "exported names, and the promise of those who call them")]
pub mod abi;
mod bags;
#[allow(unsafe_code, reason = "pointers from C")]
mod boundary;
mod last_error;
mod status;

pub use bags::{ttrec_bags, ttrec_index_type, ttrec_pooling};
pub use boundary::{ttrec_blob, ttrec_ranker, ttrec_table};
pub use status::ttrec_status;
