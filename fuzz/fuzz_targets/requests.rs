//! Any bytes as the arrays of a request: `cargo +nightly fuzz run requests` from the repository's
//! root; `fuzz/seeds` writes the files to start from.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ttrec_fuzz::requests(bytes));
