//! Encoding: from f32 to the stored dtypes, which a writer of blobs does once, ahead of time.

use super::{Dtype, bf16, f16};
use core::fmt;

/// Why a value cannot be stored.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum EncodeError {
    /// A value is NaN or infinite, would become infinite in the narrower dtype, or is so far above
    /// the least value of its row that the difference is not finite.
    OutOfRange {
        /// The position of the value in the input.
        position: usize,
        /// The value.
        value: f32,
        /// The requested dtype.
        dtype: Dtype,
    },
    /// Values of i8 and i4 need a scale, which [`encode`] does not store.
    NeedsScale {
        /// The requested dtype.
        dtype: Dtype,
    },
    /// The number of values is not a multiple of the row length.
    BrokenRow {
        /// Values given.
        found: usize,
        /// Values in a row.
        embedding_dim: usize,
    },
    /// The output is not as long as the encoded values.
    OutputLen {
        /// Bytes given.
        found: usize,
        /// Bytes needed.
        expected: usize,
    },
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::OutOfRange { position, value, dtype } => {
                write!(
                    f,
                    "value {value} at position {position} cannot be stored as a finite {}",
                    dtype.name()
                )
            }
            Self::NeedsScale { dtype } => {
                write!(f, "{} values need a scale: encode slices or rows", dtype.name())
            }
            Self::BrokenRow { found, embedding_dim } => {
                write!(f, "{found} values: expected a multiple of embedding_dim, {embedding_dim}")
            }
            Self::OutputLen { found, expected } => {
                write!(f, "output of {found} bytes: expected {expected}")
            }
        }
    }
}

impl core::error::Error for EncodeError {}

/// Writes `values` as f32, f16 or bf16 (round to nearest, ties to even) into `out`, which has
/// [`Dtype::bytes_of`] `values.len()` bytes.
///
/// # Errors
/// [`EncodeError::OutOfRange`] for a value that `dtype` cannot hold; [`EncodeError::OutputLen`];
/// [`EncodeError::NeedsScale`] for i8 and i4: use [`encode_slice`] or [`encode_rows`].
pub fn encode(values: &[f32], dtype: Dtype, out: &mut [u8]) -> Result<(), EncodeError> {
    if matches!(dtype, Dtype::I8 | Dtype::I4) {
        return Err(EncodeError::NeedsScale { dtype });
    }
    check_len(out.len(), dtype.bytes_of(values.len()))?;
    check_finite(values, dtype)?;
    for (&value, out) in values.iter().zip(out.chunks_exact_mut(dtype.bytes_of(1))) {
        match dtype {
            Dtype::F32 => out.copy_from_slice(&value.to_le_bytes()),
            Dtype::F16 => out.copy_from_slice(&f16::from_f32(value).to_le_bytes()),
            Dtype::Bf16 => out.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
            Dtype::I8 | Dtype::I4 => return Err(EncodeError::NeedsScale { dtype }),
        }
    }
    Ok(())
}

/// Writes one tensor-train slice into `out` and returns its scale: 1 for f32, f16 and bf16, `max
/// |x| / 127` for i8.
///
/// i8 stores the q for which `scale * q` is nearest to x: the error of `scale * q` is at most
/// `scale / 2`, plus the rounding of one f32 product.
///
/// # Errors
/// As [`encode`]; slices cannot be i4.
pub fn encode_slice(values: &[f32], dtype: Dtype, out: &mut [u8]) -> Result<f32, EncodeError> {
    if dtype != Dtype::I8 {
        return encode(values, dtype, out).map(|()| 1.0);
    }
    check_len(out.len(), values.len())?;
    check_finite(values, dtype)?;
    let largest = values.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    let scale = scale_of(largest);
    for (&value, out) in values.iter().zip(out) {
        *out = (steps(value, scale, 0.0) as i8).cast_unsigned();
    }
    Ok(scale)
}

/// Writes the weights of a layer, `inputs x outputs`, row-major, into `out`, and the scale of each
/// column into `scales`, one per output: 1 for f32, f16 and bf16, `max |x| / 127` of the column for
/// i8.
///
/// # Errors
/// As [`encode_slice`]; [`EncodeError::BrokenRow`] if the number of values is not a multiple of the
/// number of scales.
pub fn encode_layer(
    values: &[f32],
    dtype: Dtype,
    out: &mut [u8],
    scales: &mut [f32],
) -> Result<(), EncodeError> {
    let outputs = scales.len();
    if outputs == 0 || !values.len().is_multiple_of(outputs) {
        return Err(EncodeError::BrokenRow { found: values.len(), embedding_dim: outputs });
    }
    if dtype != Dtype::I8 {
        scales.fill(1.0);
        return encode(values, dtype, out);
    }
    check_len(out.len(), values.len())?;
    check_finite(values, dtype)?;
    scales.fill(0.0);
    for row in values.chunks_exact(outputs) {
        scales
            .iter_mut()
            .zip(row)
            .for_each(|(largest, x)| *largest = largest.max(x.abs()));
    }
    scales.iter_mut().for_each(|largest| *largest = scale_of(*largest));
    for (row, out) in values.chunks_exact(outputs).zip(out.chunks_exact_mut(outputs)) {
        for ((&value, &scale), out) in row.iter().zip(&*scales).zip(out) {
            *out = (steps(value, scale, 0.0) as i8).cast_unsigned();
        }
    }
    Ok(())
}

/// The scale of i8 values up to `largest`. A scale must be positive and is kept normal: if all
/// values are 0, or nearly 0, every q is 0 with a scale of 1.
fn scale_of(largest: f32) -> f32 {
    if (largest / 127.0).is_normal() {
        largest / 127.0
    } else {
        1.0
    }
}

/// Writes dense rows of `embedding_dim` values into `out`, [`Dtype::row_len`] bytes each.
///
/// An i8 or i4 row is `x = scale * q + offset`. Its scale and offset are such that the values of q
/// cover the range of the row, from its least to its largest value.
///
/// - i8: q is from -128 to 127, and `scale = (max - min) / 255`. The error of an element is at most
///   `scale / 2`, plus f32 rounding. A row whose scale would not be a normal f32 stores its least
///   value for every element, so that the error is at most the range.
/// - i4: q is from 0 to 15, and `scale = (max - min) / 15`. Scale and offset are rounded to f16, by
///   up to 2^-11 of their magnitude, and q multiplies the error of the scale by up to 15. The error
///   of an element is at most `scale / 2 + 2^-11 (|offset| + 15 scale) + 2^-21`; the last term is
///   for scales and offsets below the least normal f16.
///
/// # Errors
/// As [`encode`], but also for i8 and i4; [`EncodeError::BrokenRow`].
pub fn encode_rows(
    values: &[f32],
    embedding_dim: usize,
    dtype: Dtype,
    out: &mut [u8],
) -> Result<(), EncodeError> {
    if !matches!(dtype, Dtype::I8 | Dtype::I4) {
        return encode(values, dtype, out);
    }
    let embedding_dim = embedding_dim.max(1);
    let row_len = dtype.row_len(embedding_dim);
    check_len(out.len(), values.len().div_ceil(embedding_dim).saturating_mul(row_len))?;
    if !values.len().is_multiple_of(embedding_dim) {
        return Err(EncodeError::BrokenRow { found: values.len(), embedding_dim });
    }
    check_finite(values, dtype)?;
    for (row, out) in values.chunks_exact(embedding_dim).zip(out.chunks_exact_mut(row_len)) {
        let (header, elements) = out.split_at_mut(dtype.row_header_len());
        let (scale_out, offset_out) = header.split_at_mut(dtype.row_header_len() / 2);
        let low = row.iter().fold(f32::INFINITY, |low, &x| low.min(x));
        let high = row.iter().fold(f32::NEG_INFINITY, |high, &x| high.max(x));
        let range = f64::from(high) - f64::from(low);
        if !(high - low).is_finite() {
            let position = values.iter().position(|&x| x == high).unwrap_or_default();
            return Err(EncodeError::OutOfRange { position, value: high, dtype });
        }
        if dtype == Dtype::I8 {
            let step = (range / 255.0) as f32;
            // The least value is q = -128. Without a range every element is the offset.
            let (scale, offset) = if step.is_normal() {
                (step, (f64::from(low) + 128.0 * f64::from(step)) as f32)
            } else {
                (1.0, low)
            };
            scale_out.copy_from_slice(&scale.to_le_bytes());
            offset_out.copy_from_slice(&offset.to_le_bytes());
            for (&x, out) in row.iter().zip(elements) {
                // The cast saturates, so that -128.4 and 127.6 stay in range.
                *out = (steps(x, scale, offset) as i8).cast_unsigned();
            }
        } else {
            let offset = f16::from_f32(low);
            // Without a range every element is the offset, whatever the scale. A scale that would
            // round to 0 becomes the least positive f16.
            let scale = match f16::from_f64(range / 15.0) {
                _ if range == 0.0 => f16::ONE,
                scale if scale == f16::ZERO => f16::MIN_POSITIVE_SUBNORMAL,
                scale => scale,
            };
            scale_out.copy_from_slice(&scale.to_le_bytes());
            offset_out.copy_from_slice(&offset.to_le_bytes());
            let nibble = |x: f32| steps(x, scale.to_f32(), offset.to_f32()).clamp(0.0, 15.0) as u8;
            for (pair, out) in row.chunks(2).zip(elements) {
                let mut nibbles = pair.iter().map(|&x| nibble(x));
                *out = nibbles.next().unwrap_or_default() | nibbles.next().unwrap_or_default() << 4;
            }
        }
    }
    Ok(())
}

/// The integer q for which `scale * q + offset` is nearest to `x`.
fn steps(x: f32, scale: f32, offset: f32) -> f64 {
    libm::rint((f64::from(x) - f64::from(offset)) / f64::from(scale))
}

fn check_len(found: usize, expected: usize) -> Result<(), EncodeError> {
    if found == expected {
        Ok(())
    } else {
        Err(EncodeError::OutputLen { found, expected })
    }
}

fn check_finite(values: &[f32], dtype: Dtype) -> Result<(), EncodeError> {
    let fits = |&x: &f32| match dtype {
        Dtype::F32 | Dtype::I8 => x.is_finite(),
        // The scale and the offset of an i4 row are f16, and may be as large as the values.
        Dtype::F16 | Dtype::I4 => f16::from_f32(x).is_finite(),
        Dtype::Bf16 => bf16::from_f32(x).is_finite(),
    };
    match values.iter().enumerate().find(|(_, x)| !fits(x)) {
        Some((position, &value)) => Err(EncodeError::OutOfRange { position, value, dtype }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i8_slices_stay_within_half_a_step() {
        let values = [0.3f32, -1.7, 0.0, 1.0e-3, 1.699];
        let mut out = [0; 5];
        let scale = encode_slice(&values, Dtype::I8, &mut out).unwrap();
        assert_eq!(scale, 1.7 / 127.0);
        assert_eq!(out[1] as i8, -127);
        for (x, q) in values.iter().zip(out) {
            assert!((x - scale * f32::from(q as i8)).abs() <= scale * 0.5001, "{x}");
        }
    }

    #[test]
    fn i8_rows_stay_within_half_a_step_of_their_own_range() {
        let values = [5.0f32, 5.25, 5.5, -1e38, 1e38, 0.0, 7.5, 7.5, 7.5, 1e-42, 0.0, 0.0];
        let mut out = [0; 4 * (8 + 3)];
        encode_rows(&values, 3, Dtype::I8, &mut out).unwrap();
        for (row, out) in values.chunks(3).zip(out.chunks(8 + 3)) {
            let scale = f32::from_le_bytes(out[..4].try_into().unwrap());
            let offset = f32::from_le_bytes(out[4..8].try_into().unwrap());
            assert!(scale > 0.0 && scale.is_finite() && offset.is_finite());
            for (&x, &q) in row.iter().zip(&out[8..]) {
                let back = f64::from(scale) * f64::from(q as i8) + f64::from(offset);
                let step = f64::from(row.iter().fold(f32::MIN, |a, &b| a.max(b)))
                    - f64::from(row.iter().fold(f32::MAX, |a, &b| a.min(b)));
                let bound = step / 255.0 * 0.5001 + 1e-6 * f64::from(x.abs()) + 1e-40;
                assert!((back - f64::from(x)).abs() <= bound, "{x} became {back}");
            }
        }
    }

    #[test]
    fn i4_rows_stay_within_their_bound() {
        let values = [
            5.0f32, 5.25, 5.5, -60e3, 60e3, 0.1, 7.5, 7.5, 7.5, 1e-6, 0.0, -1e-6, 1000.0, 1000.5,
            1001.0,
        ];
        let mut out = [0; 5 * 6];
        encode_rows(&values, 3, Dtype::I4, &mut out).unwrap();
        for (row, out) in values.chunks(3).zip(out.chunks(6)) {
            let header = |at: usize| f64::from(f16::from_le_bytes([out[at], out[at + 1]]).to_f32());
            let (scale, offset) = (header(0), header(2));
            let bound = scale / 2.0
                + f64::powi(2.0, -11) * (offset.abs() + 15.0 * scale)
                + f64::powi(2.0, -21);
            for (&x, q) in row.iter().zip([out[4] & 15, out[4] >> 4, out[5]]) {
                let back = scale * f64::from(q) + offset;
                assert!((back - f64::from(x)).abs() <= bound, "{x} became {back}, bound {bound}");
            }
        }
    }

    #[test]
    fn quantised_values_need_a_scale() {
        assert_eq!(
            encode(&[1.0], Dtype::I8, &mut [0]),
            Err(EncodeError::NeedsScale { dtype: Dtype::I8 })
        );
        assert_eq!(
            encode_slice(&[1.0], Dtype::I4, &mut [0]),
            Err(EncodeError::NeedsScale { dtype: Dtype::I4 })
        );
    }

    #[test]
    fn values_without_a_finite_form_are_refused_by_position() {
        for (dtype, value) in [
            (Dtype::F32, f32::NAN),
            (Dtype::F16, 65_520.0),
            (Dtype::Bf16, f32::MAX),
            (Dtype::I8, f32::NEG_INFINITY),
        ] {
            let values = [0.0, 1.0, value];
            let mut out = [0; 3 * 4 + 8];
            let refused = |result: Result<(), EncodeError>| match result.unwrap_err() {
                EncodeError::OutOfRange { position, dtype: d, .. } => {
                    assert_eq!((position, d), (2, dtype))
                }
                other => panic!("{other}"),
            };
            if dtype.suits_cores() {
                refused(encode_slice(&values, dtype, &mut out[..dtype.bytes_of(3)]).map(drop));
            }
            refused(encode_rows(&values, 3, dtype, &mut out[..dtype.row_len(3)]));
        }
    }

    #[test]
    fn a_short_output_is_refused() {
        let wrong = Err(EncodeError::OutputLen { found: 5, expected: 6 });
        assert_eq!(encode(&[0.0; 3], Dtype::F16, &mut [0; 5]), wrong);
        let wrong = EncodeError::OutputLen { found: 21, expected: 22 };
        assert_eq!(encode_rows(&[0.0; 6], 3, Dtype::I8, &mut [0; 21]), Err(wrong));
    }
}
