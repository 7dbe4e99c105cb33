//! Any bytes as the `.metadata` of a directory of `torch.distributed.checkpoint`: `cargo +nightly
//! fuzz run distributed` from the repository's root; `fuzz/seeds` writes the files to start from.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ttrec_fuzz::distributed(bytes));
