//! What an answer must be: a plain f64 loop over the bytes of a blob, by `docs/format.md` alone,
//! that shares no code with what it checks.

use super::traffic::Batch;
use anyhow::{Context, Result, bail, ensure};
use half::{bf16, f16};
use ttrec::{
    Blob, DigitOrder, Pooling, Table, TtShape,
    bag::Index,
    blob::Role,
    dtype::Dtype,
    repr::{Combine, IndexMap, QuotientRemainder, TableData, Weights},
};

/// Bags of a batch that are compared.
const SAMPLE: usize = 8;
/// Lookups after which no further bag is.
const SAMPLE_LOOKUPS: usize = 1_000;

/// One table of a blob, as it is stored.
pub(super) struct Stored<'b> {
    bytes: &'b [u8],
    table: Table<'b>,
    data: TableData<'b>,
}

/// A row or a bag of rows, and the sums of the absolute values of its elements' terms, which
/// roundings are relative to.
pub(super) struct Row {
    elements: Vec<f64>,
    magnitudes: Vec<f64>,
}

impl Row {
    pub(super) fn elements(&self) -> &[f64] {
        &self.elements
    }
}

impl<'b> Stored<'b> {
    pub(super) fn new(bytes: &'b [u8], blob: Blob<'b>, table: &str) -> Result<Self> {
        let table = blob.table(table)?;
        Ok(Self { bytes, table, data: *table.data() })
    }

    /// The bytes of a section and the type of their elements; f32 for ids, which have none.
    pub(super) fn section(&self, role: Role) -> Result<(Dtype, &'b [u8])> {
        let section = self.table.sections().find(|section| section.role == role);
        let section = section.with_context(|| format!("no section {role:?}"))?;
        let bytes = self
            .bytes
            .get(section.offset as usize..)
            .and_then(|rest| rest.get(..section.len as usize));
        Ok((section.dtype.unwrap_or(Dtype::F32), bytes.context("a section is outside the blob")?))
    }

    pub(super) fn row(&self, row: u64) -> Result<Row> {
        let stored = self.row_as_stored(row)?;
        let Weights::Tt(tt) = self.data.weights() else { return Ok(stored) };
        let in_place = |row: Vec<f64>| {
            (0..row.len())
                .map(|column| row[tt.shape().position_of_column(column)])
                .collect()
        };
        Ok(Row { elements: in_place(stored.elements), magnitudes: in_place(stored.magnitudes) })
    }

    fn row_as_stored(&self, row: u64) -> Result<Row> {
        if let Some(position) = self.position_apart(row) {
            return self.dense_row(Role::OverrideRows, self.data.embedding_dim(), position);
        }
        let stored = self.row_of(row)?;
        match self.data.weights() {
            Weights::Dense(_) => {
                self.dense_row(Role::Rows, self.data.embedding_dim(), stored as usize)
            }
            Weights::Tt(tt) => self.tt_row(tt.shape(), stored),
            Weights::Projected(table) => {
                let short = self.dense_row(Role::Rows, table.rank(), stored as usize)?;
                let (dtype, projection) = self.section(Role::Projection)?;
                let dim = self.data.embedding_dim();
                let product = |x: &[f64], of: fn(f64) -> f64| -> Vec<f64> {
                    let terms = |j: usize| {
                        x.iter()
                            .enumerate()
                            .map(move |(k, x)| x * of(element(dtype, projection, k * dim + j)))
                    };
                    (0..dim).map(|j| terms(j).sum()).collect()
                };
                Ok(Row {
                    elements: product(&short.elements, |g| g),
                    magnitudes: product(&short.magnitudes, f64::abs),
                })
            }
            Weights::QuotientRemainder(table) => {
                let [first, second] = self.parts(table, row)?;
                Ok(combine(table.combine(), first, second))
            }
            other => bail!("a {} table has no reference", other.name()),
        }
    }

    fn position_apart(&self, index: u64) -> Option<usize> {
        let (_, ids) = self.section(Role::OverrideIds).ok()?;
        ids.chunks_exact(8).position(|id| id == index.to_le_bytes())
    }

    /// The stored row of an index.
    fn row_of(&self, index: u64) -> Result<u64> {
        Ok(match self.data.index_map() {
            IndexMap::Identity => index,
            IndexMap::Modulo => index % self.data.num_rows(),
            IndexMap::Remapped(_) => {
                let (_, rows) = self.section(Role::RemappedRows)?;
                let row =
                    rows.as_chunks::<4>().0.get(index as usize).context("an index has no row")?;
                u32::from_le_bytes(*row).into()
            }
            other => bail!("the index map {} has no reference", other.name()),
        })
    }

    /// The two rows that the row of an index is made of.
    fn parts(&self, table: &QuotientRemainder<'_>, index: u64) -> Result<[Row; 2]> {
        let (row, num_remainders) = (self.row_of(index)?, u64::from(table.num_remainders()));
        let columns = [table.quotients().embedding_dim(), table.remainders().embedding_dim()];
        Ok([
            self.dense_row(Role::Rows, columns[0], (row / num_remainders) as usize)?,
            self.dense_row(Role::RemainderRows, columns[1], (row % num_remainders) as usize)?,
        ])
    }

    fn dense_row(&self, role: Role, columns: usize, position: usize) -> Result<Row> {
        let (dtype, rows) = self.section(role)?;
        let row = &rows[position * dtype.row_len(columns)..][..dtype.row_len(columns)];
        let (scale, offset) = match dtype {
            Dtype::I8 => (element(Dtype::F32, row, 0), element(Dtype::F32, row, 1)),
            Dtype::I4 => (element(Dtype::F16, row, 0), element(Dtype::F16, row, 1)),
            _ => (1.0, 0.0),
        };
        let stored = &row[dtype.row_header_len()..];
        let products = || (0..columns).map(|column| scale * element(dtype, stored, column));
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
                    (0..r)
                        .map(|at| {
                            x[i * r + at] * of(scale * element(dtype, core, start + at * n + j))
                        })
                        .sum()
                };
                (0..x.len() / r * n).map(|at| product(at / n, at % n)).collect()
            };
            (x, size) = (step(&x, |g| g), step(&size, f64::abs));
        }
        Ok(Row { elements: x, magnitudes: size })
    }

    /// How many roundings a row's elements have seen.
    fn terms(&self) -> usize {
        match self.data.weights() {
            Weights::Tt(tt) => tt.shape().inner_ranks().iter().sum::<u32>() as usize,
            Weights::Projected(table) => table.rank() + 2,
            Weights::QuotientRemainder(_) => 2,
            _ => 0,
        }
    }

    /// Refuses `found` if it is not row `row`.
    pub(super) fn check_row(&self, name: &str, row: u64, found: &[f32]) -> Result<()> {
        let Row { elements, magnitudes } = self.row(row)?;
        check(&format!("{name}, row {row}"), found, &elements, &magnitudes, self.terms())
    }

    fn bag<I: Index + Into<u64>>(
        &self,
        batch: &Batch<'_, I>,
        range: std::ops::Range<usize>,
        pooling: Pooling,
    ) -> Result<Row> {
        let dim = self.data.embedding_dim();
        let lookups = range.map(|position| {
            let weight = batch.weights.map_or(1.0, |weights| f64::from(weights[position]));
            (batch.indices[position].into(), weight)
        });
        let Weights::QuotientRemainder(table) = self.data.weights() else {
            let rows = lookups.map(|(index, weight)| Ok((self.row(index)?, weight)));
            return Ok(pool(rows.collect::<Result<_>>()?, dim, pooling));
        };
        // Each part is pooled by itself; rows that are stored apart count as a bag's others, which
        // come first.
        let (mut parts, mut apart) = ([Vec::new(), Vec::new()], Vec::new());
        for (index, weight) in lookups {
            if self.position_apart(index).is_some() {
                apart.push((self.row(index)?, weight));
            } else {
                let [first, second] = self.parts(table, index)?;
                parts[0].push((first, weight));
                parts[1].push((second, weight));
            }
        }
        let (count, [first, second]) = (parts[0].len(), parts);
        let first = pool(first, table.quotients().embedding_dim(), pooling);
        let second = pool(second, table.remainders().embedding_dim(), pooling);
        let mut others = combine(table.combine(), first, second);
        if apart.is_empty() || count == 0 {
            return Ok(if apart.is_empty() {
                others
            } else {
                pool(apart, dim, pooling)
            });
        }
        let of_all = (apart.len() + count) as f64;
        if pooling == Pooling::Max {
            apart.insert(0, (others, 1.0));
            return Ok(pool(apart, dim, pooling));
        }
        let is_mean = pooling == Pooling::Mean;
        if is_mean {
            others
                .elements
                .iter_mut()
                .chain(&mut others.magnitudes)
                .for_each(|mean| *mean *= count as f64);
        }
        apart.push((others, 1.0));
        let mut sum = pool(apart, dim, Pooling::Sum);
        if is_mean {
            sum.elements
                .iter_mut()
                .chain(&mut sum.magnitudes)
                .for_each(|sum| *sum /= of_all);
        }
        Ok(sum)
    }

    /// Compares the first bags of a batch.
    pub(super) fn check_bags<I: Index + Into<u64>>(
        &self,
        name: &str,
        batch: &Batch<'_, I>,
        pooling: Pooling,
        out: &[f32],
    ) -> Result<()> {
        let mut lookups = 0;
        for (bag, (ends, out)) in batch
            .offsets
            .windows(2)
            .zip(out.chunks(self.data.embedding_dim()))
            .take(SAMPLE)
            .enumerate()
        {
            let range = ends[0].into() as usize..ends[1].into() as usize;
            let Row { elements, magnitudes } = self.bag(batch, range.clone(), pooling)?;
            check(
                &format!("{name}, bag {bag}"),
                out,
                &elements,
                &magnitudes,
                2 * range.len() + self.terms(),
            )?;
            lookups += range.len();
            if lookups > SAMPLE_LOOKUPS {
                break;
            }
        }
        Ok(())
    }
}

/// Pools rows of `columns` columns, each with its weight.
fn pool(rows: Vec<(Row, f64)>, columns: usize, pooling: Pooling) -> Row {
    let count = rows.len();
    let (mut elements, mut magnitudes) = (vec![0.0; columns], vec![0.0; columns]);
    for (position, (row, weight)) in rows.into_iter().enumerate() {
        for (column, (x, size)) in row.elements.into_iter().zip(row.magnitudes).enumerate() {
            let (sum, magnitude) = (&mut elements[column], &mut magnitudes[column]);
            if pooling == Pooling::Max {
                *sum = if position == 0 { x } else { x.max(*sum) };
                *magnitude = size.max(*magnitude);
            } else {
                *sum += weight * x;
                *magnitude += weight.abs() * size;
            }
        }
    }
    if pooling == Pooling::Mean && count > 0 {
        elements.iter_mut().chain(&mut magnitudes).for_each(|sum| *sum /= count as f64);
    }
    Row { elements, magnitudes }
}

/// One row of the two that a quotient-remainder table has for it.
fn combine(how: Combine, first: Row, second: Row) -> Row {
    let both = |a: Vec<f64>, b: Vec<f64>| -> Vec<f64> {
        match how {
            Combine::Mult => a.iter().zip(b).map(|(a, b)| a * b).collect(),
            Combine::Add => a.iter().zip(b).map(|(a, b)| a + b).collect(),
            _ => a.into_iter().chain(b).collect(),
        }
    };
    Row {
        elements: both(first.elements, second.elements),
        magnitudes: both(first.magnitudes, second.magnitudes),
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
        _ => (bytes[0] >> (at % 2 * 4) & 15).into(),
    }
}

/// Refuses `found` where it is further from `expected` than `terms` roundings of f32 can take a sum
/// whose terms have absolute values that add up to `magnitude`. Says nothing of what f32 cannot
/// hold.
pub(super) fn check(
    name: &str,
    found: &[f32],
    expected: &[f64],
    magnitudes: &[f64],
    terms: usize,
) -> Result<()> {
    let rounding = (terms + 4) as f64 * f64::from(f32::EPSILON);
    for (((at, &found), expected), &magnitude) in
        found.iter().enumerate().zip(expected).zip(magnitudes)
    {
        let close = (f64::from(found) - expected).abs()
            <= rounding * magnitude + f64::from(f32::MIN_POSITIVE);
        // NaN compares with nothing.
        let holds = magnitude < f64::from(f32::MAX);
        ensure!(
            close || !holds,
            "{name}: wrong answer: element {at} is {found}, not {expected}; nothing was timed"
        );
    }
    ensure!(
        found.len() == expected.len(),
        "{name}: {} elements, not {}",
        found.len(),
        expected.len()
    );
    Ok(())
}
