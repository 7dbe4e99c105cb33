//! The C and C++ interface of ttrec: a program opens a blob once, and then any number of threads
//! look up rows in it, pool bags and score samples.
//!
//! The reference is `include/ttrec.h`. cbindgen generates it from [`abi`] and the public types; a
//! test fails if it is out of date. A call enters at a function of [`abi`]. `boundary` checks the
//! pointers and turns them into references, the Rust library does the work, and the call returns a
//! status. If it fails, `last_error` keeps the message.
//!
//! All unsafe operations are in `boundary`, except one: [`abi`] makes the promise of its callers.
//! It also has the attributes that export its functions, which count as unsafe code.

#![deny(unsafe_code)]
#![allow(non_camel_case_types, reason = "types have the same names as in the header")]

#[allow(unsafe_code, reason = "exported names, and the promise of their callers")]
pub mod abi;
mod bags;
#[allow(unsafe_code, reason = "pointers from C")]
mod boundary;
mod last_error;
mod search;
mod status;

pub use bags::{ttrec_bags, ttrec_index_type, ttrec_pooling};
pub use boundary::{ttrec_blob, ttrec_ranker, ttrec_table};
pub use search::{ttrec_scored, ttrec_search};
pub use status::ttrec_status;
