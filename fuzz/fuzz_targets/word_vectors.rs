//! Any bytes as word vectors: `cargo +nightly fuzz run word_vectors` from the repository's root;
//! `fuzz/seeds` writes the files to start from.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ttrec_fuzz::checkpoint(bytes));
