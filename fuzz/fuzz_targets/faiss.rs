//! Any bytes as an index of FAISS: `cargo +nightly fuzz run faiss` from the repository's root;
//! `fuzz/seeds` writes the files to start from.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ttrec_fuzz::checkpoint(bytes));
