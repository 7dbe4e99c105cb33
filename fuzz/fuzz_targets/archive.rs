//! Any bytes as a zip archive of torch or numpy, or a .npy file: `cargo +nightly fuzz run archive`
//! from the repository's root; `fuzz/seeds` writes the files to start from.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ttrec_fuzz::checkpoint(bytes));
