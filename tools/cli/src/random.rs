//! Reproducible pseudo-random numbers, each by its place in a stream: none depends on which were
//! asked for before.

/// SplitMix64: the `position`th number of the stream `seed`.
pub(crate) fn random(seed: u64, position: u64) -> u64 {
    let z = seed.wrapping_add((position.wrapping_add(1)).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ z >> 31
}

/// The same, from 0 up to 1.
pub(crate) fn uniform(seed: u64, position: u64) -> f64 {
    // 53 bits: every f64 there.
    (random(seed, position) >> 11) as f64 / (1u64 << 53) as f64
}

/// The same, an integer from 0 up to `limit` (Lemire, "Fast random integer generation in an
/// interval", 2019; biased by less than limit / 2^64). 0 if there is none.
pub(crate) fn below(limit: u32, seed: u64, position: u64) -> u32 {
    ((u128::from(random(seed, position)) * u128::from(limit)) >> 64) as u32
}
