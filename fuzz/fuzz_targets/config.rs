//! Any bytes as a spec and as the config of a training run: `cargo +nightly fuzz run config` from
//! the repository's root; `fuzz/seeds` writes the files to start from.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ttrec_fuzz::config(bytes));
