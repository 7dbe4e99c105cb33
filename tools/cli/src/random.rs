//! Reproducible pseudo-random numbers, computed from a seed and a position, without state.

/// The number at `position` of the SplitMix64 stream `seed`.
pub(crate) fn random(seed: u64, position: u64) -> u64 {
    let z = seed.wrapping_add((position.wrapping_add(1)).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ z >> 31
}

/// A number in `0.0..1.0`.
pub(crate) fn uniform(seed: u64, position: u64) -> f64 {
    // 53 bits fill the mantissa of an f64.
    (random(seed, position) >> 11) as f64 / (1u64 << 53) as f64
}

/// An integer in `0..limit` (Lemire, "Fast random integer generation in an interval", 2019; biased
/// by less than limit / 2^64). 0 if `limit` is 0.
pub(crate) fn below(limit: u32, seed: u64, position: u64) -> u32 {
    ((u128::from(random(seed, position)) * u128::from(limit)) >> 64) as u32
}
