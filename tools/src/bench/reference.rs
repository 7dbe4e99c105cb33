//! What an answer must be: a plain f64 loop over the bytes of a blob, by `docs/format.md` alone, that shares no code with
//! what it checks.

use super::traffic::Batch;
use anyhow::{Context, Result, ensure};
use half::{bf16, f16};
use ttrec::{
    Blob, DigitOrder, Pooling, TtShape,
    bag::Index,
    blob::{Role, Weights},
    dtype::Dtype,
};

/// Bags of a batch that are compared.
const SAMPLE: usize = 8;
/// Lookups after which no further bag is.
const SAMPLE_LOOKUPS: usize = 1_000;

/// One table of a blob, as it is stored.
pub(super) struct Stored<'b> {
    bytes: &'b [u8],
    blob: Blob<'b>,
    position: usize,
    dim: usize,
    /// `None`: the table is dense.
    tt: Option<TtShape>,
}

/// A row, and the sums of the absolute values of its elements' terms, which roundings are relative to.
pub(super) struct Row {
    elements: Vec<f64>,
    magnitudes: Vec<f64>,
}

impl<'b> Stored<'b> {
    pub(super) fn new(bytes: &'b [u8], blob: Blob<'b>, table: &str) -> Result<Self> {
        let position = blob.position(table).context("a table is missing")?;
        let data = blob.table_data(position).context("a table is missing")?;
        let tt = match &data.weights {
            Weights::Tt(tt) => Some(tt.shape),
            Weights::Dense(_) => None,
        };
        Ok(Self { bytes, blob, position, dim: data.embedding_dim, tt })
    }

    /// The bytes of a section and the type of their elements; f32 for ids, which have none.
    pub(super) fn section(&self, role: Role) -> Result<(Dtype, &'b [u8])> {
        let section = self.blob.sections(self.position).find(|section| section.role == role);
        let section = section.with_context(|| format!("no section {role:?}"))?;
        let bytes = self.bytes.get(section.offset as usize..).and_then(|rest| rest.get(..section.len as usize));
        Ok((section.dtype.unwrap_or(Dtype::F32), bytes.context("a section is outside the blob")?))
    }

    pub(super) fn row(&self, row: u64) -> Result<Row> {
        if let Ok((_, ids)) = self.section(Role::OverrideIds)
            && let Some(position) = ids.chunks_exact(8).position(|id| id == row.to_le_bytes())
        {
            return self.dense_row(Role::OverrideRows, position);
        }
        match &self.tt {
            Some(shape) => self.tt_row(shape, row),
            None => self.dense_row(Role::Rows, row as usize),
        }
    }

    fn dense_row(&self, role: Role, position: usize) -> Result<Row> {
        let (dtype, rows) = self.section(role)?;
        let row = &rows[position * dtype.row_len(self.dim)..][..dtype.row_len(self.dim)];
        let (scale, offset) = match dtype {
            Dtype::I8 => (element(Dtype::F32, row, 0), element(Dtype::F32, row, 1)),
            Dtype::I4 => (element(Dtype::F16, row, 0), element(Dtype::F16, row, 1)),
            _ => (1.0, 0.0),
        };
        let stored = &row[dtype.row_header_len()..];
        let products = || (0..self.dim).map(|column| scale * element(dtype, stored, column));
        Ok(Row {
            elements: products().map(|x| x + offset).collect(),
            magnitudes: products().map(|x| x.abs() + offset.abs()).collect(),
        })
    }

    fn tt_row(&self, shape: &TtShape, row: u64) -> Result<Row> {
        let (mut x, mut size) = (vec![1.0], vec![1.0]);
        for (k, digit) in digits(shape, row).into_iter().enumerate() {
            let (dtype, core) = self.section(Role::Core(k))?;
            let scale = match dtype {
                Dtype::I8 => element(Dtype::F32, self.section(Role::Scales(k))?.1, digit),
                _ => 1.0,
            };
            let start = digit * shape.slice_len(k);
            let (r, n) = (shape.rank(k), shape.slice_len(k) / shape.rank(k));
            let step = |x: &[f64], of: fn(f64) -> f64| -> Vec<f64> {
                let product = |i: usize, j: usize| {
                    (0..r).map(|at| x[i * r + at] * of(scale * element(dtype, core, start + at * n + j))).sum()
                };
                (0..x.len() / r * n).map(|at| product(at / n, at % n)).collect()
            };
            (x, size) = (step(&x, |g| g), step(&size, f64::abs));
        }
        Ok(Row { elements: x, magnitudes: size })
    }

    /// How many roundings a row's elements have seen.
    fn terms(&self) -> usize {
        self.tt.map_or(0, |shape| shape.inner_ranks().iter().sum::<u32>() as usize)
    }

    /// Refuses `found` if it is not row `row`.
    pub(super) fn check_row(&self, name: &str, row: u64, found: &[f32]) -> Result<()> {
        let Row { elements, magnitudes } = self.row(row)?;
        check(&format!("{name}, row {row}"), found, &elements, &magnitudes, self.terms())
    }

    /// Compares the first bags of a batch.
    pub(super) fn check_bags<I: Index>(
        &self,
        name: &str,
        batch: &Batch<'_, I>,
        pooling: Pooling,
        out: &[f32],
    ) -> Result<()> {
        let mut lookups = 0;
        for (bag, (ends, out)) in batch.offsets.windows(2).zip(out.chunks(self.dim)).take(SAMPLE).enumerate() {
            let range = ends[0].to_u64() as usize..ends[1].to_u64() as usize;
            let (mut expected, mut magnitudes) = (vec![0.0; self.dim], vec![0.0; self.dim]);
            for position in range.clone() {
                let weight = batch.weights.map_or(1.0, |weights| f64::from(weights[position]));
                let row = self.row(batch.indices[position].to_u64())?;
                for (column, (x, size)) in row.elements.into_iter().zip(row.magnitudes).enumerate() {
                    let (sum, magnitude) = (&mut expected[column], &mut magnitudes[column]);
                    if pooling == Pooling::Max {
                        *sum = if position == range.start { x } else { x.max(*sum) };
                        *magnitude = size.max(*magnitude);
                    } else {
                        *sum += weight * x;
                        *magnitude += weight.abs() * size;
                    }
                }
            }
            if pooling == Pooling::Mean && !range.is_empty() {
                expected.iter_mut().chain(&mut magnitudes).for_each(|sum| *sum /= range.len() as f64);
            }
            check(&format!("{name}, bag {bag}"), out, &expected, &magnitudes, range.len() + self.terms())?;
            lookups += range.len();
            if lookups > SAMPLE_LOOKUPS {
                break;
            }
        }
        Ok(())
    }
}

fn digits(shape: &TtShape, mut row: u64) -> Vec<usize> {
    let mut digit = |p: &u32| {
        let digit = row % u64::from(*p);
        row /= u64::from(*p);
        digit as usize
    };
    match shape.digit_order() {
        DigitOrder::LeastSignificantFirst => shape.row_factors().iter().map(digit).collect(),
        DigitOrder::MostSignificantFirst => {
            let mut digits: Vec<usize> = shape.row_factors().iter().rev().map(&mut digit).collect();
            digits.reverse();
            digits
        }
    }
}

/// Element `at` of `stored`, before any scale.
pub(super) fn element(dtype: Dtype, stored: &[u8], at: usize) -> f64 {
    let bytes = &stored[at * dtype.bytes_of(2) / 2..];
    match dtype {
        Dtype::F32 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]).into(),
        Dtype::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).into(),
        Dtype::Bf16 => bf16::from_le_bytes([bytes[0], bytes[1]]).into(),
        Dtype::I8 => bytes[0].cast_signed().into(),
        Dtype::I4 => (bytes[0] >> (at % 2 * 4) & 15).into(),
    }
}

/// Refuses `found` where it is further from `expected` than `terms` roundings of f32 can take a sum whose terms have
/// absolute values that add up to `magnitude`. Says nothing of what f32 cannot hold.
pub(super) fn check(name: &str, found: &[f32], expected: &[f64], magnitudes: &[f64], terms: usize) -> Result<()> {
    let rounding = (terms + 4) as f64 * f64::from(f32::EPSILON);
    for (((at, &found), expected), &magnitude) in found.iter().enumerate().zip(expected).zip(magnitudes) {
        let close = (f64::from(found) - expected).abs() <= rounding * magnitude + f64::from(f32::MIN_POSITIVE);
        // NaN compares with nothing.
        let holds = magnitude < f64::from(f32::MAX);
        ensure!(close || !holds, "{name}: wrong answer: element {at} is {found}, not {expected}; nothing was timed");
    }
    ensure!(found.len() == expected.len(), "{name}: {} elements, not {}", found.len(), expected.len());
    Ok(())
}
