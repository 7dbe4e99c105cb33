//! Any bytes as an ONNX model: `cargo +nightly fuzz run onnx` from the repository's root;
//! `fuzz/seeds` writes the files to start from.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ttrec_fuzz::checkpoint(bytes));
