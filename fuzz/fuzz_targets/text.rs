//! Any bytes as rows of text, Criteo's among them, and as a vocabulary: `cargo +nightly fuzz run
//! text` from the repository's root; `fuzz/seeds` writes the files to start from.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ttrec_fuzz::text(bytes));
