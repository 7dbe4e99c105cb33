//! What the integration tests share. Nothing here calls into the crate's own reader, decoder,
//! kernels or checksum: what is checked and what it is checked with have no code in common. (Only
//! `random` uses the crate's writer, to lay blobs out.)

#![allow(dead_code, reason = "each test binary uses a part of this")]

pub(crate) mod format;
pub(crate) mod model;
pub(crate) mod oracle;
pub(crate) mod rng;
pub(crate) mod tiers;

#[cfg(feature = "alloc")]
pub(crate) mod random;
