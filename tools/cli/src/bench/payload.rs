//! Reproducible pseudo-random stored elements.

use crate::random::random;
use anyhow::Result;
use half::f16;
use ttrec::{
    AlignedBuf,
    blob::{Layout, Role, TableSpec, WeightsSpec},
    dtype::Dtype,
};

/// Fills `out` with elements of `dtype`. Floats have random signs and mantissas and magnitudes from
/// 1/8 to 2: sums of their products stay far from subnormal and infinite numbers, with which
/// arithmetic may be slower.
pub(super) fn fill_elements(dtype: Dtype, seed: u64, out: &mut [u8]) {
    let (mask, exponent) = match dtype {
        Dtype::F32 => (0x80FF_FFFF_80FF_FFFF, 0x3F00_0000_3F00_0000),
        Dtype::F16 => (0xBFFF_BFFF_BFFF_BFFF, 0x3000_3000_3000_3000),
        Dtype::Bf16 => (0x80FF_80FF_80FF_80FF, 0x3F00_3F00_3F00_3F00),
        _ => (u64::MAX, 0),
    };
    for (word, position) in out.chunks_mut(8).zip(0..) {
        let bytes = (random(seed, position) & mask | exponent).to_le_bytes();
        word.copy_from_slice(&bytes[..word.len()]);
    }
}

/// Fills `out` with dense rows of `dim` elements: each i8 and i4 row with a scale and an offset of
/// its own.
pub(super) fn fill_rows(dtype: Dtype, dim: usize, seed: u64, out: &mut [u8]) {
    fill_elements(dtype, seed, out);
    if dtype.row_header_len() == 0 {
        return;
    }
    for (row, number) in out.chunks_exact_mut(dtype.row_len(dim)).zip(0u32..) {
        let (scale, offset) = ((1 + number % 3) as f32 / 64.0, (number % 11) as f32 - 5.0);
        if dtype == Dtype::I8 {
            row[..4].copy_from_slice(&scale.to_le_bytes());
            row[4..8].copy_from_slice(&offset.to_le_bytes());
        } else {
            row[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
            row[2..4].copy_from_slice(&f16::from_f32(offset).to_le_bytes());
        }
    }
}

/// A blob of these tables.
pub(super) fn build(tables: &[TableSpec]) -> Result<AlignedBuf> {
    Ok(Layout::new(tables)?.build(|plan, out| match (plan.role, &tables[plan.table].weights) {
        (Role::Rows, WeightsSpec::Dense { embedding_dim, dtype, .. }) => {
            fill_rows(*dtype, *embedding_dim, 1, out)
        }
        (Role::Core(k), WeightsSpec::Tt { dtype, .. }) => fill_elements(*dtype, k as u64, out),
        // Every byte is a code, of one of 256 entries.
        (Role::Codes, _) => fill_elements(Dtype::I8, 2, out),
        (Role::Books, WeightsSpec::Codebook { dtype, .. }) => fill_elements(*dtype, 3, out),
        (_, _) => fill_elements(Dtype::F32, 9, out),
    }))
}
