//! A tensor train in double precision, and its truncation to smaller ranks.

use super::gram::eigen;
use anyhow::{Result, anyhow};
use faer::{Mat, MatRef};

/// Cores as matrices: core k has a row for each (i_k, j_k, s), s < r_k the fastest, and a column
/// for each t < r_{k+1}.
///
/// Canonical: the columns of every core but the last are orthonormal, and the product of the cores
/// to the right of a bond has orthogonal rows, whose squared norms are the bond's energies,
/// descending.
pub(super) struct Train {
    pub(super) cores: Vec<Mat<f64>>,
    /// One list per bond.
    pub(super) energies: Vec<Vec<f64>>,
}

impl Train {
    /// Makes any cores canonical.
    pub(super) fn new(mut cores: Vec<Mat<f64>>) -> Result<Self> {
        let d = cores.len();
        (0..d - 1).for_each(|k| orthonormal_to_the_left(&mut cores, k));
        let mut energies = vec![Vec::new(); d - 1];
        let mut right = vec![1.0];
        for k in (1..d).rev() {
            let rank = cores[k - 1].ncols();
            let mut gram = Mat::<f64>::zeros(rank, rank);
            for x in 0..cores[k].nrows() / rank {
                let slice = cores[k].subrows(x * rank, rank);
                gram += weigh(slice, &right) * slice.transpose();
            }
            let spectrum = eigen(gram.as_ref())?;
            cores[k] = multiply_left(spectrum.vectors.transpose(), cores[k].as_ref());
            cores[k - 1] = &cores[k - 1] * &spectrum.vectors;
            right.clone_from(&spectrum.values);
            energies[k - 1] = spectrum.values;
        }
        Ok(Self { cores, energies })
    }

    /// The best cores of these inner ranks, bond by bond, and the squared error that this adds.
    pub(super) fn truncate(&self, ranks: &[usize]) -> Result<(Vec<Mat<f64>>, f64)> {
        let tail = |energies: &[f64], rank: usize| energies.iter().skip(rank).sum::<f64>();
        let mut error = tail(&self.energies[0], ranks[0]);
        let mut cores =
            vec![self.cores[0].subcols(0, ranks[0].min(self.cores[0].ncols())).to_owned()];
        // The change of basis of the bond by the cores to its left.
        let mut change = Mat::<f64>::identity(cores[0].ncols(), self.cores[0].ncols());
        for (k, &rank) in ranks.iter().enumerate().skip(1) {
            let core = multiply_left(change.as_ref(), self.cores[k].as_ref());
            let roots: Vec<f64> = self.energies[k].iter().map(|energy| energy.sqrt()).collect();
            let svd = weigh(core.as_ref(), &roots)
                .thin_svd()
                .map_err(|_| anyhow!("the SVD did not converge"))?;
            let values = svd.S().column_vector();
            let rank = rank.min(values.nrows());
            error += (rank..values.nrows()).map(|i| values[i] * values[i]).sum::<f64>();
            let left = svd.U().subcols(0, rank).to_owned();
            change = left.transpose() * &core;
            cores.push(left);
        }
        cores.push(multiply_left(change.as_ref(), self.cores[ranks.len()].as_ref()));
        Ok((cores, error))
    }
}

/// Makes the columns of core k orthonormal; core k + 1 absorbs the triangular factor.
pub(super) fn orthonormal_to_the_left(cores: &mut [Mat<f64>], k: usize) {
    let qr = cores[k].qr();
    let carry = qr.thin_R().to_owned();
    cores[k] = qr.compute_thin_Q();
    cores[k + 1] = multiply_left(carry.as_ref(), cores[k + 1].as_ref());
}

/// Makes the rows of all cores but the first orthonormal, each read as a matrix of r_k rows.
pub(super) fn orthonormal_to_the_right(cores: &mut [Mat<f64>]) {
    for k in (1..cores.len()).rev() {
        let (rank, columns) = (cores[k - 1].ncols(), cores[k].ncols());
        let core = &cores[k];
        let wide = Mat::from_fn(core.nrows() / rank * columns, rank, |at, s| {
            core[(at / columns * rank + s, at % columns)]
        });
        let qr = wide.qr();
        let rows = qr.compute_thin_Q();
        let rank = rows.ncols();
        cores[k - 1] = &cores[k - 1] * qr.thin_R().transpose();
        cores[k] = Mat::from_fn(rows.nrows() / columns * rank, columns, |row, t| {
            rows[(row / rank * columns + t, row % rank)]
        });
    }
}

/// `matrix diag(weights)`.
fn weigh(matrix: MatRef<'_, f64>, weights: &[f64]) -> Mat<f64> {
    Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| matrix[(i, j)] * weights[j])
}

/// `left` times each slice of a core: another basis on its left bond.
fn multiply_left(left: MatRef<'_, f64>, core: MatRef<'_, f64>) -> Mat<f64> {
    let (to, from) = (left.nrows(), left.ncols());
    let mut out = Mat::zeros(core.nrows() / from * to, core.ncols());
    for x in 0..core.nrows() / from {
        out.subrows_mut(x * to, to).copy_from(left * core.subrows(x * from, from));
    }
    out
}
