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
/// An i8 or i4 row is `x = scale * q + offset`.
///
/// - i8: q is from -128 to 127, and covers the range of the row: `scale = (max - min) / 255`. The
///   error of an element is at most `scale / 2`, plus f32 rounding. A row whose scale would not be
///   a normal f32 stores its least value for every element, so that the error is at most the range.
/// - i4: q is from 0 to 15. Scale and offset are f16, and those of least squared error that a
///   search from several ranges finds. The first of these is the whole range of the row, with
///   `scale = (max - min) / 15`. There each element is off by at most
///   `e = scale / 2 + 2^-11 (|min| + 15 scale) + 2^-21`, because scale and offset are rounded to
///   f16; the last term is for those below the least normal f16. So the squared errors of a row sum
///   to at most `embedding_dim e^2`. An element outside the range found becomes q = 0 or 15, and
///   may be off by more than half a step.
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
            let Grid { scale, offset } = Grid::of(row, low, high);
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

/// The scale and the offset of an i4 row.
#[derive(Clone, Copy)]
struct Grid {
    scale: f16,
    offset: f16,
}

/// How far i4 values are from the elements of a row, and the least-squares grid for these values.
struct Fit {
    squared_error: f64,
    scale: f64,
    offset: f64,
}

impl Grid {
    /// The largest i4 value.
    const LAST: f64 = 15.0;
    /// How much of the row's range an end may give up at first, in sixteenths. A few far elements
    /// cost less outside of the range than they widen its steps.
    const CUTS: [u8; 3] = [0, 1, 2];
    /// The most refinements.
    const ROUNDS: usize = 6;

    /// The grid that covers a row from `low` to `high`, or one of less squared error.
    fn of(row: &[f32], low: f32, high: f32) -> Self {
        let (first, last) = (f64::from(low), f64::from(high));
        let covering = Self::between(first, last);
        // Without a range every element is the offset.
        if first == last {
            return covering;
        }
        let (mut best, mut fit) = (covering, covering.fit(row));
        let part = |sixteenths: u8| (last - first) * f64::from(sixteenths) / 16.0;
        let starts = Self::CUTS.map(|below| {
            Self::CUTS.map(|above| Self::between(first + part(below), last - part(above)))
        });
        for start in starts.into_iter().flatten() {
            let other = start.fit(row);
            if other.squared_error < fit.squared_error {
                (best, fit) = (start, other);
            }
        }
        for _ in 0..Self::ROUNDS {
            let next = Self::rounded(fit.scale, fit.offset);
            if !next.is_usable() {
                break;
            }
            let other = next.fit(row);
            if other.squared_error >= fit.squared_error {
                break;
            }
            (best, fit) = (next, other);
        }
        best
    }

    /// The grid whose ends are `first` and `last`.
    fn between(first: f64, last: f64) -> Self {
        Self::rounded((last - first) / Self::LAST, first)
    }

    fn rounded(scale: f64, offset: f64) -> Self {
        let scale = match f16::from_f64(scale) {
            // Without a range, any scale will do.
            _ if scale == 0.0 => f16::ONE,
            // A scale that would round to 0 becomes the least positive f16.
            rounded if rounded == f16::ZERO => f16::MIN_POSITIVE_SUBNORMAL,
            rounded => rounded,
        };
        Self { scale, offset: f16::from_f64(offset) }
    }

    fn is_usable(self) -> bool {
        self.scale > f16::ZERO && self.scale.is_finite() && self.offset.is_finite()
    }

    /// Fits the elements of a row to the values that they have on this grid.
    fn fit(self, row: &[f32]) -> Fit {
        let (scale, offset) = (f64::from(self.scale.to_f32()), f64::from(self.offset.to_f32()));
        let per_step = 1.0 / scale;
        let (mut squared_error, mut sum, mut products) = (0.0, 0.0, 0.0);
        let (mut values, mut squares) = (0u64, 0u64);
        for &x in row {
            // Less the offset, so that the sums do not cancel.
            let x = f64::from(x) - offset;
            // Rounded to the nearest, as a cast truncates.
            let value = ((x * per_step).clamp(0.0, Self::LAST) + 0.5) as u32;
            let difference = x - scale * f64::from(value);
            squared_error += difference * difference;
            sum += x;
            products += x * f64::from(value);
            values += u64::from(value);
            squares += u64::from(value * value);
        }
        let (count, values, squares) = (row.len() as f64, values as f64, squares as f64);
        // 0 / 0 if all values are equal: such a grid is not usable.
        let slope = (count * products - sum * values) / (count * squares - values * values);
        let intercept = (sum - slope * values) / count;
        Fit { squared_error, scale: slope, offset: offset + intercept }
    }
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
    extern crate std;
    use std::{vec, vec::Vec};

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

    /// The elements that an i4 row stands for, its scale, and its values of q.
    fn decode_i4(out: &[u8], columns: usize) -> (Vec<f64>, f64, Vec<u8>) {
        let header = |at: usize| f64::from(f16::from_le_bytes([out[at], out[at + 1]]).to_f32());
        let nibbles = out[4..].iter().flat_map(|pair| [pair & 15, pair >> 4]);
        let values: Vec<u8> = nibbles.take(columns).collect();
        let back = values.iter().map(|&q| header(0) * f64::from(q) + header(2)).collect();
        (back, header(0), values)
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
            let low = f64::from(row.iter().fold(f32::MAX, |a, &b| a.min(b)));
            let high = f64::from(row.iter().fold(f32::MIN, |a, &b| a.max(b)));
            let scale = (high - low) / 15.0;
            let bound = scale / 2.0
                + f64::powi(2.0, -11) * (low.abs() + 15.0 * scale)
                + f64::powi(2.0, -21);
            let (back, ..) = decode_i4(out, 3);
            let sum: f64 = row.iter().zip(back).map(|(&x, y)| (f64::from(x) - y).powi(2)).sum();
            assert!(sum <= 3.0 * bound * bound, "{row:?}: {sum:e}, bound {bound:e}");
        }
    }

    /// Sums of uniform numbers, nearly normal, and every seventh row with an element far away.
    fn normal_rows(rows: usize, columns: usize) -> Vec<f32> {
        let mut state = 1u32;
        let mut uniform = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        let mut normal = || (0..12).map(|_| uniform()).sum::<f32>();
        let far = |at: usize| if at.is_multiple_of(7 * columns) { 4.0 } else { 1.0 };
        (0..rows * columns).map(|at| far(at) * normal() * 0.03 + 0.01).collect()
    }

    #[test]
    fn i4_rows_have_less_error_than_their_whole_range_gives() {
        for columns in [2, 3, 8, 17, 64, 384] {
            let values = normal_rows(60, columns);
            let row_len = Dtype::I4.row_len(columns);
            let mut out = vec![0; 60 * row_len];
            encode_rows(&values, columns, Dtype::I4, &mut out).unwrap();
            let (mut found, mut covering) = (0.0, 0.0);
            for (row, out) in values.chunks(columns).zip(out.chunks(row_len)) {
                let low = row.iter().fold(f32::MAX, |a, &b| a.min(b));
                let high = row.iter().fold(f32::MIN, |a, &b| a.max(b));
                // The grid of the whole range, in f16 as it would be stored.
                let scale = f64::from(f16::from_f64((f64::from(high) - f64::from(low)) / 15.0));
                let offset = f64::from(f16::from_f32(low));
                let on_grid = |x: f64| ((x - offset) / scale).round().clamp(0.0, 15.0);
                let whole: f64 = row
                    .iter()
                    .map(|&x| f64::from(x))
                    .map(|x| (x - scale * on_grid(x) - offset).powi(2))
                    .sum();
                let (back, step, q) = decode_i4(out, columns);
                let mut sum = 0.0;
                for ((&x, back), q) in row.iter().zip(back).zip(q) {
                    let error = (f64::from(x) - back).abs();
                    assert!(error <= step * 0.500_001 || q == 0 || q == 15, "{x} became {back}");
                    sum += error * error;
                }
                assert!(sum <= whole * (1.0 + 1e-9), "{columns} columns: {sum:e} above {whole:e}");
                (found, covering) = (found + sum, covering + whole);
            }
            // With many elements, the ends of a range are rare.
            let most = if columns >= 64 { 0.9 } else { 1.0 };
            assert!(found <= covering * most, "{columns} columns: {found:e} of {covering:e}");
        }
    }

    #[test]
    fn i4_rows_that_have_a_grid_are_exact() {
        let values: Vec<f32> = (0..40).map(|at| 0.25 * (at * 7 % 16) as f32 - 1.5).collect();
        let mut out = vec![0; Dtype::I4.row_len(40)];
        encode_rows(&values, 40, Dtype::I4, &mut out).unwrap();
        let (back, scale, _) = decode_i4(&out, 40);
        assert_eq!(scale, 0.25);
        assert!(values.iter().zip(back).all(|(&x, back)| f64::from(x) == back));
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
