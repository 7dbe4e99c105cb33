//! Bags over whole tables of FBTT's benchmark shape, as a ranker looks them up.

use super::{
    contents::{check, dense_row, element, fill_elements, fill_rows, random},
    roofline::{Roofline, available_memory, time},
};
use crate::progress::Progress;
use anyhow::{Context, Result};
use std::{hint::black_box, ops::Range};
use ttrec::{
    Bags, Blob, Pooling, Table, TtShape,
    blob::{Layout, Role, TableSpec, WeightsSpec},
    dtype::Dtype,
};

const ROWS: u64 = 11_000_000;
const DIM: usize = 64;
const LOOKUPS: usize = 10_240;
const BAG: usize = 20;
/// Batches in rotation: together their dense f32 rows are larger than most caches.
const BATCHES: usize = 20;
/// Bags that are compared with a plain loop.
const SAMPLE: usize = 8;

const ROW_FACTORS: [u32; 3] = [200, 220, 250];
const COLUMN_FACTORS: [[u32; 3]; 2] = [[4, 4, 4], [2, 2, 16]];
const RANKS: [u32; 3] = [16, 32, 64];

/// What was measured of one table.
pub(super) struct Measured {
    pub(super) name: String,
    /// Per looked-up row.
    pub(super) seconds: f64,
    /// Of multiplying out one row by itself, if it is a tensor train's.
    pub(super) flops: Option<f64>,
    /// Of one stored row, if it is a dense table's.
    pub(super) bytes: Option<f64>,
}

/// How row numbers are drawn.
#[derive(Clone, Copy)]
enum Ids {
    Uniform,
    /// By Zipf's law with exponent 1.05; popular rows lie anywhere.
    Zipf,
    /// The same; popular rows lie together, as in a table sorted by frequency.
    ZipfSorted,
}

impl Ids {
    const ALL: [Self; 3] = [Self::Uniform, Self::Zipf, Self::ZipfSorted];

    fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Zipf => "zipf",
            Self::ZipfSorted => "zipf-sorted",
        }
    }

    fn draw(self, rows: u64, random: u64) -> u32 {
        // 53 bits: every f64 from 0 up to 1.
        let uniform = (random >> 11) as f64 / (1u64 << 53) as f64;
        let rank = || {
            let exponent = 1.0 - 1.05;
            let whole = (rows as f64).powf(exponent) - 1.0;
            ((uniform * whole + 1.0).powf(1.0 / exponent) as u64).saturating_sub(1)
        };
        let row = match self {
            Self::Uniform => (uniform * rows as f64) as u64,
            Self::Zipf => rank() * 2_654_435_761 % rows,
            Self::ZipfSorted => rank(),
        };
        row.min(rows - 1) as u32
    }
}

/// How much is measured.
struct Extent {
    rows: u64,
    lookups: usize,
    /// Passes over all batches, of which the fastest counts.
    passes: u64,
    /// Batches of a tensor train, whose cores stay in a cache whatever the rows.
    tt_batches: usize,
}

/// Every table of the suite. What is smaller than usual goes into `notes`.
pub(super) fn measure(roofline: &mut Roofline, quick: bool, notes: &mut Vec<String>) -> Result<Vec<Measured>> {
    let usual = if quick {
        Extent { rows: 200_000, lookups: 1_000, passes: 2, tt_batches: 1 }
    } else {
        Extent { rows: ROWS, lookups: LOOKUPS, passes: 7, tt_batches: 2 }
    };
    let fits = (available_memory() / 2 / Dtype::F32.row_len(DIM)).max(1) as u64;
    let extent = Extent { rows: usual.rows.min(fits), ..usual };
    if extent.rows < ROWS {
        let why = if usual.rows < ROWS { "to be quick" } else { "to fit half of the available memory" };
        notes.push(format!("dense tables have {} rows, not {ROWS}, {why}", extent.rows));
    }

    let dense = [Dtype::F32, Dtype::F16, Dtype::I8, Dtype::I4].map(|dtype| {
        (
            format!("dense-{}", dtype.name()),
            WeightsSpec::Dense { num_embeddings: extent.rows, embedding_dim: DIM, dtype },
        )
    });
    let mut tables = dense.to_vec();
    for (q, rank, dtype) in COLUMN_FACTORS
        .iter()
        .flat_map(|q| RANKS.map(|rank| (q, rank)))
        .flat_map(|(q, rank)| [Dtype::F32, Dtype::I8].map(|dtype| (q, rank, dtype)))
    {
        let name = format!("tt-{}-q{}x{}x{}-r{rank}", dtype.name(), q[0], q[1], q[2]);
        tables.push((name, WeightsSpec::Tt { shape: TtShape::new(ROWS, &ROW_FACTORS, q, &[rank, rank])?, dtype }));
    }

    let mut measured = Vec::new();
    let mut progress = Progress::new("tables", tables.len() as u64);
    for (name, weights) in tables {
        measure_table(roofline, &extent, &name, weights, &mut measured)?;
        progress.add(1);
    }
    Ok(measured)
}

fn measure_table(
    roofline: &mut Roofline,
    extent: &Extent,
    name: &str,
    weights: WeightsSpec,
    measured: &mut Vec<Measured>,
) -> Result<()> {
    let spec = TableSpec { name: name.to_owned(), weights, overrides: None };
    let buf = Layout::new(&[spec])?.build(|plan, out| match (plan.role, plan.dtype.unwrap_or(Dtype::F32)) {
        (Role::Rows, dtype) => fill_rows(dtype, DIM, 1, out),
        (Role::Core(k), dtype) => fill_elements(dtype, k as u64, out),
        (_, dtype) => fill_elements(dtype, 9, out),
    });
    let blob = Blob::parse(&buf)?;
    let table = blob.table(name)?.with_tier(roofline.tier());
    let (flops, bytes, batches, ids) = match weights {
        WeightsSpec::Tt { shape, .. } => {
            (Some(shape.flops_left_to_right() as f64), None, extent.tt_batches, &[Ids::Uniform, Ids::ZipfSorted][..])
        }
        WeightsSpec::Dense { dtype, .. } => (None, Some(dtype.row_len(DIM) as f64), BATCHES, &Ids::ALL[..]),
    };
    let mut out = vec![0.0; extent.lookups / BAG * DIM];
    let mut workspace = table.workspace();
    for ids in ids {
        let name = format!("{name}-{}", ids.name());
        let mut draws = (0..).map(|position| ids.draw(table.num_embeddings(), random(2, position)));
        let indices: Vec<u32> = draws.by_ref().take(batches * extent.lookups).collect();
        let offsets: Vec<u32> = (0..=extent.lookups as u32).step_by(BAG).collect();
        let batches: Result<Vec<_>, _> =
            indices.chunks(extent.lookups).map(|batch| Bags::new(batch, &offsets)).collect();
        let batches = batches?;

        let first = batches.first().context("no batches")?;
        table.bag(first, Pooling::Sum, &mut out, &mut workspace)?;
        check_bags(&name, &buf, &blob, &table, first.indices(), &out)?;

        let mut seconds = f64::INFINITY;
        for _ in 0..extent.passes {
            roofline.measure_flops();
            if bytes.is_some() {
                roofline.measure_memory();
            }
            let mut result = Ok(());
            let pass = time(|| {
                result = batches.iter().try_for_each(|bags| {
                    table.bag(black_box(bags), Pooling::Sum, &mut out, &mut workspace)?;
                    black_box(&mut out);
                    Ok(())
                });
            });
            result.map_err(|error: ttrec::LookupError| error)?;
            seconds = seconds.min(pass);
        }
        measured.push(Measured { name, seconds: seconds / indices.len() as f64, flops, bytes });
    }
    Ok(())
}

/// Compares the first bags of a batch with a plain loop over the stored bytes.
fn check_bags(name: &str, buf: &[u8], blob: &Blob<'_>, table: &Table<'_>, indices: &[u32], out: &[f32]) -> Result<()> {
    let section = |role| -> Result<&[u8]> {
        let section = blob.sections(0).find(|section| section.role == role).context("a section is missing")?;
        let Range { start, end } = section.offset as usize..(section.offset + section.len) as usize;
        Ok(&buf[start..end])
    };
    let dtype = table.data().dtype();
    let tt = match &table.data().weights {
        ttrec::blob::Weights::Tt(tt) => Some(tt.shape),
        ttrec::blob::Weights::Dense(_) => None,
    };
    for (bag, (indices, out)) in indices.chunks(BAG).zip(out.chunks(DIM)).take(SAMPLE).enumerate() {
        let (mut expected, mut magnitude) = (vec![0.0; DIM], vec![0.0; DIM]);
        for &index in indices {
            let (row, size) = match &tt {
                Some(shape) => tt_row(shape, dtype, index, &section)?,
                None => {
                    let row = dense_row(dtype, DIM, section(Role::Rows)?, index as usize);
                    // Scaled elements may cancel against their offset, both below 16.
                    let size = row.iter().map(|x| x.abs() + 16.0).collect();
                    (row, size)
                }
            };
            expected.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
            magnitude.iter_mut().zip(size).for_each(|(sum, x)| *sum += x);
        }
        let terms = BAG + tt.map_or(0, |shape| shape.inner_ranks().iter().sum::<u32>() as usize);
        check(&format!("{name}, bag {bag}"), out, &expected, &magnitude, terms)?;
    }
    Ok(())
}

/// Row `row` of a tensor train of three cores, and the sums of the absolute values of its terms.
fn tt_row<'b>(
    shape: &TtShape,
    dtype: Dtype,
    row: u32,
    section: &impl Fn(Role) -> Result<&'b [u8]>,
) -> Result<(Vec<f64>, Vec<f64>)> {
    let (mut x, mut size) = (vec![1.0], vec![1.0]);
    let row = u64::from(row);
    let [_, p1, p2] = ROW_FACTORS.map(u64::from);
    for (k, digit) in [row / p2 / p1, row / p2 % p1, row % p2].into_iter().enumerate() {
        let scale = match dtype {
            Dtype::I8 => element(Dtype::F32, section(Role::Scales(k))?, digit as usize),
            _ => 1.0,
        };
        let (core, start) = (section(Role::Core(k))?, digit as usize * shape.slice_len(k));
        let (r, n) = (shape.rank(k), shape.slice_len(k) / shape.rank(k));
        let step = |x: &[f64], of: fn(f64) -> f64| -> Vec<f64> {
            let product = |i: usize, j: usize| {
                (0..r).map(|at| x[i * r + at] * of(scale * element(dtype, core, start + at * n + j))).sum()
            };
            (0..x.len() / r * n).map(|at| product(at / n, at % n)).collect()
        };
        (x, size) = (step(&x, |g| g), step(&size, f64::abs));
    }
    Ok((x, size))
}
