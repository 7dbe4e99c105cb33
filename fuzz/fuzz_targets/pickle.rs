//! Any bytes as the pickle of a torch checkpoint: `cargo +nightly fuzz run pickle` from the
//! repository's root; `fuzz/seeds` writes the files to start from.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ttrec_fuzz::pickle(bytes));
