//! Any bytes as rows of Parquet: `cargo +nightly fuzz run parquet` from the repository's root;
//! `fuzz/seeds` writes the files to start from.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ttrec_fuzz::parquet(bytes));
