//! Low rank: short rows and a projection. The spectrum of the columns gives the truncation error of
//! a rank; encoding projected rows gives the rounding error.

use super::{
    candidate::{Candidate, Context, Form},
    sample::{Matrix, Sample, squared_norm},
};
use crate::{
    factorize::{LowRank, Rows, mixing},
    matrix::{View, multiply},
    progress::Share,
};
use anyhow::{Result, bail};
use rayon::prelude::*;
use ttrec::{
    blob::WeightsSpec,
    dtype::{self, Dtype},
};

/// The stored types that are tried for the short rows.
const DTYPES: [Dtype; 3] = [Dtype::F16, Dtype::I8, Dtype::I4];
/// The type in which `convert` stores the projection.
pub(super) const PROJECTION: Dtype = Dtype::F16;
/// The number of rows whose rounding is measured: it hardly differs between rows.
const ROUNDED: usize = 8192;
/// The most columns: eigenvectors of more take minutes.
pub(super) const MAX_COLUMNS: usize = 2048;
/// Rows that are projected at once.
const CHUNK: usize = 256;

/// Every rank, in each stored type.
pub(super) fn candidates(
    context: &Context<'_>,
    rows: &dyn Rows,
    share: &Share<'_>,
) -> Result<Vec<Candidate>> {
    let (n, columns) = (rows.num_embeddings(), rows.embedding_dim());
    let ranks = usize::try_from(n).unwrap_or(usize::MAX).min(columns).saturating_sub(1);
    if ranks == 0 || columns > MAX_COLUMNS {
        return Ok(Vec::new());
    }
    let spectrum = LowRank::analyse(rows, &context.job())?;
    let directions = spectrum.directions(columns);
    let energies = column_energies(context.sample, context.values, &directions);

    let few = Sample::draw(n, ROUNDED, context.options.frequencies);
    let projected = project(&few.read(rows)?, &directions);
    let rounded_energy = few.sum(&projected, squared_norm).max(f64::MIN_POSITIVE);
    // The relative rounding errors at some ranks, for each type of the short rows and for the
    // projection.
    let mut rounding: [Vec<(f64, f64)>; DTYPES.len()] = Default::default();
    let grid = grid(ranks);
    for (at, &rank) in grid.iter().enumerate() {
        share.reach(at, grid.len());
        let short = mix(&projected, rank);
        let projection =
            f64::from(rank as u32).recip() * projection_error(&spectrum.basis(rank), rank)?;
        let projection = projection * few.sum(&short, squared_norm);
        for (dtype, points) in DTYPES.into_iter().zip(&mut rounding) {
            if let Some(error) = few.coding_error(&short, rank, dtype)? {
                points.push((rank as f64, (error + projection) / rounded_energy));
            }
        }
    }

    let mut found = Vec::new();
    for (dtype, points) in DTYPES.into_iter().zip(rounding) {
        let (mut kept, last) = (0.0, points.last().map_or(0.0, |&(rank, _)| rank));
        // Above the last point, values overflow this type.
        for rank in (1..=ranks).take_while(|&rank| rank as f64 <= last) {
            kept += energies[rank - 1];
            let squared = (context.energy - kept).max(0.0)
                + interpolate(&points, rank as f64) * context.energy;
            let weights = WeightsSpec::Projected {
                num_embeddings: n,
                embedding_dim: columns,
                rank,
                dtype,
                projection: PROJECTION,
            };
            found.push(context.candidate(Form::LowRank { rank }, weights, squared)?);
        }
    }
    Ok(found)
}

/// The squared error of a stored projection.
fn projection_error(basis: &[f32], rank: usize) -> Result<f64> {
    let mut bytes = vec![0; PROJECTION.bytes_of(rank)];
    basis.chunks_exact(rank).try_fold(0.0, |sum, row| {
        dtype::encode(row, PROJECTION, &mut bytes)?;
        Ok(sum + encoded_error(row, &bytes)?)
    })
}

/// Short rows as `convert` stores them.
pub(super) fn mix(projected: &Matrix, rank: usize) -> Matrix {
    let mixing: Vec<f32> = mixing(rank).into_iter().map(|x| x as f32).collect();
    let directions: Vec<f32> = projected
        .values
        .chunks_exact(projected.columns)
        .flat_map(|row| &row[..rank])
        .copied()
        .collect();
    project(&Matrix { values: directions, columns: rank }, &mixing)
}

/// Ranks to measure: each about an eighth above the one before it.
fn grid(ranks: usize) -> Vec<usize> {
    let mut grid: Vec<usize> = std::iter::successors(Some(1), |&rank| Some(rank + rank / 8 + 1))
        .take_while(|&rank| rank < ranks)
        .collect();
    grid.push(ranks);
    grid
}

/// Linear interpolation at `x` between these ascending points, which enclose it.
pub(super) fn interpolate(points: &[(f64, f64)], x: f64) -> f64 {
    let above = points.partition_point(|&(at, _)| at < x).min(points.len() - 1);
    let (b, b_value) = points[above];
    let (a, a_value) = points[above.saturating_sub(1)];
    if b > a {
        a_value + (b_value - a_value) * (x - a) / (b - a)
    } else {
        b_value
    }
}

fn encoded_error(row: &[f32], bytes: &[u8]) -> Result<f64> {
    let stored = |bytes: &[u8]| match *bytes {
        [low, high] => Ok(f64::from(half::f16::from_le_bytes([low, high]))),
        _ => bail!("a projection of another type than f16"),
    };
    row.iter()
        .zip(bytes.chunks(2))
        .map(|(&x, bytes)| Ok((stored(bytes)? - f64::from(x)).powi(2)))
        .sum()
}

/// These rows on the basis, `columns x columns`, row-major.
pub(super) fn project(rows: &Matrix, basis: &[f32]) -> Matrix {
    let columns = rows.columns;
    let mut values = vec![0.0; rows.values.len()];
    let chunks = values
        .par_chunks_mut(CHUNK * columns)
        .zip(rows.values.par_chunks(CHUNK * columns));
    let basis = View::row_major(basis, columns);
    chunks.for_each(|(out, rows)| multiply(View::row_major(rows, columns), basis, out));
    Matrix { values, columns }
}

/// The weighted squared norm of each column of these rows on the basis.
fn column_energies(sample: &Sample, rows: &Matrix, basis: &[f32]) -> Vec<f64> {
    let columns = rows.columns;
    let chunks: Vec<_> =
        rows.values.chunks(CHUNK * columns).zip(sample.weights.chunks(CHUNK)).collect();
    let sums = chunks.par_iter().map_init(Vec::new, |out, (rows, weights)| {
        out.resize(rows.len(), 0.0);
        multiply(View::row_major(rows, columns), View::row_major(basis, columns), out);
        let mut sums = vec![0.0; columns];
        for (row, weight) in out.chunks_exact(columns).zip(*weights) {
            sums.iter_mut()
                .zip(row)
                .for_each(|(sum, &y)| *sum += weight * f64::from(y).powi(2));
        }
        sums
    });
    // In the order of the rows, so that the number of threads does not matter.
    let sums: Vec<Vec<f64>> = sums.collect();
    (0..columns).map(|column| sums.iter().map(|sums| sums[column]).sum()).collect()
}
