//! Any bytes as a safetensors file, or an index of shards: `cargo +nightly fuzz run safetensors`
//! from the repository's root; `fuzz/seeds` writes the files to start from.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ttrec_fuzz::checkpoint(bytes));
