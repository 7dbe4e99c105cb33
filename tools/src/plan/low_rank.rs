//! Low rank: short rows and a projection. The spectrum of the columns says what a rank leaves out, and rows that are
//! projected and encoded what rounding adds.

use super::{
    candidate::{Candidate, Context, Representation},
    cost,
    sample::{Matrix, Sample, squared_norm},
};
use crate::factorize::{LowRank, Rows};
use anyhow::{Result, bail};
use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};
use rayon::prelude::*;
use ttrec::{
    blob::WeightsSpec,
    dtype::{self, Dtype},
};

/// The stored types that are tried for the short rows.
const DTYPES: [Dtype; 3] = [Dtype::F16, Dtype::I8, Dtype::I4];
/// How `convert` stores the projection of such rows.
const PROJECTION: Dtype = Dtype::F16;
/// Rows whose rounding is measured: it hardly differs from row to row.
const ROUNDED: usize = 8192;
/// The most columns: the eigenvectors of more take minutes.
pub(super) const MAX_COLUMNS: usize = 2048;
/// Rows that are projected at once.
const CHUNK: usize = 256;

/// Every rank, in each stored type.
pub(super) fn candidates(context: &Context<'_>, rows: &dyn Rows) -> Result<Vec<Candidate>> {
    let (n, columns) = (rows.num_embeddings(), rows.embedding_dim());
    let ranks = usize::try_from(n).unwrap_or(usize::MAX).min(columns).saturating_sub(1);
    if ranks == 0 || columns > MAX_COLUMNS {
        return Ok(Vec::new());
    }
    let basis = LowRank::analyse(rows, context.options.memory, context.name)?.basis(columns);
    let energies = column_energies(context.sample, context.values, &basis);

    let few = Sample::draw(n, ROUNDED, context.options.frequencies);
    let projected = project(&few.read(rows)?, &basis);
    let rounded_energy = few.sum(&projected, squared_norm);
    // Squared error of each row of the projection, which is a column of the basis.
    let mut row = vec![0.0; columns];
    let mut bytes = vec![0; PROJECTION.bytes_of(columns)];
    let mut projection_errors = Vec::with_capacity(ranks);
    for rank in 0..ranks {
        row.iter_mut().zip(basis[rank..].iter().step_by(columns)).for_each(|(x, &v)| *x = v);
        dtype::encode(&row, PROJECTION, &mut bytes)?;
        projection_errors.push(encoded_error(&row, &bytes)?);
    }

    let mut found = Vec::new();
    for dtype in DTYPES {
        let mut rounding = Vec::new();
        for rank in grid(ranks) {
            let Some(error) = few.coding_error(&projected, rank, dtype)? else { break };
            rounding.push((rank as f64, error / rounded_energy.max(f64::MIN_POSITIVE)));
        }
        if rounding.last().is_none_or(|&(rank, _)| rank < ranks as f64) {
            continue;
        }
        let (mut kept, mut projection_error) = (0.0, 0.0);
        for rank in 1..=ranks {
            kept += energies[rank - 1];
            projection_error += energies[rank - 1] * projection_errors[rank - 1];
            let rounding = interpolate(&rounding, rank as f64) * context.energy;
            let squared = (context.energy - kept).max(0.0) + projection_error + rounding;
            let weights = WeightsSpec::Projected {
                num_embeddings: n,
                embedding_dim: columns,
                rank,
                dtype,
                projection: PROJECTION,
            };
            let nanoseconds = cost::low_rank(dtype.row_len(rank), rank, columns);
            found.push(context.candidate(Representation::LowRank { rank }, weights, squared, nanoseconds)?);
        }
    }
    Ok(found)
}

/// Ranks to measure: each about an eighth above the one before it.
fn grid(ranks: usize) -> Vec<usize> {
    let mut grid: Vec<usize> =
        std::iter::successors(Some(1), |&rank| Some(rank + rank / 8 + 1)).take_while(|&rank| rank < ranks).collect();
    grid.push(ranks);
    grid
}

/// The value at `x` on straight lines between these points, which ascend and reach from below it to above.
fn interpolate(points: &[(f64, f64)], x: f64) -> f64 {
    let above = points.partition_point(|&(at, _)| at < x).min(points.len() - 1);
    let (b, b_value) = points[above];
    let (a, a_value) = points[above.saturating_sub(1)];
    if b > a { a_value + (b_value - a_value) * (x - a) / (b - a) } else { b_value }
}

fn encoded_error(row: &[f32], bytes: &[u8]) -> Result<f64> {
    let stored = |bytes: &[u8]| match *bytes {
        [low, high] => Ok(f64::from(dtype::f16::from_le_bytes([low, high]))),
        _ => bail!("a projection of another type than f16"),
    };
    row.iter().zip(bytes.chunks(2)).map(|(&x, bytes)| Ok((stored(bytes)? - f64::from(x)).powi(2))).sum()
}

/// These rows on the basis, `columns x columns`, row-major.
fn project(rows: &Matrix, basis: &[f32]) -> Matrix {
    let columns = rows.columns;
    let mut values = vec![0.0; rows.values.len()];
    let chunks = values.par_chunks_mut(CHUNK * columns).zip(rows.values.par_chunks(CHUNK * columns));
    chunks.for_each(|(out, rows)| multiply(rows, basis, columns, out));
    Matrix { values, columns }
}

/// The weighted squared norm of each column of these rows on the basis.
fn column_energies(sample: &Sample, rows: &Matrix, basis: &[f32]) -> Vec<f64> {
    let columns = rows.columns;
    let chunks: Vec<_> = rows.values.chunks(CHUNK * columns).zip(sample.weights.chunks(CHUNK)).collect();
    let sums = chunks.par_iter().map_init(Vec::new, |out, (rows, weights)| {
        out.resize(rows.len(), 0.0);
        multiply(rows, basis, columns, out);
        let mut sums = vec![0.0; columns];
        for (row, weight) in out.chunks_exact(columns).zip(*weights) {
            sums.iter_mut().zip(row).for_each(|(sum, &y)| *sum += weight * f64::from(y).powi(2));
        }
        sums
    });
    // In the order of the rows, whatever the number of threads.
    let sums: Vec<Vec<f64>> = sums.collect();
    (0..columns).map(|column| sums.iter().map(|sums| sums[column]).sum()).collect()
}

fn multiply(rows: &[f32], basis: &[f32], columns: usize, out: &mut [f32]) {
    let count = rows.len() / columns;
    let rows = MatRef::from_row_major_slice(rows, count, columns);
    let basis = MatRef::from_row_major_slice(basis, columns, columns);
    matmul(MatMut::from_row_major_slice_mut(out, count, columns), Accum::Replace, rows, basis, 1.0, Par::Seq);
}
