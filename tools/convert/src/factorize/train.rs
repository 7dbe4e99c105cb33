//! A tensor train in double precision, and its truncation to smaller ranks.

use crate::matrix::{Mat, Svd, eigen, svd};
use anyhow::Result;

/// Cores as matrices: core k has a row for each (i_k, j_k, s), s < r_k the fastest, and a column
/// for each t < r_{k+1}.
///
/// Canonical: the columns of every core but the last are orthonormal, and the product of the cores
/// to the right of a bond has orthogonal rows, whose squared norms are the bond's energies,
/// descending.
pub(crate) struct Train {
    pub(super) cores: Vec<Mat>,
    /// One list per bond.
    pub(crate) energies: Vec<Vec<f64>>,
}

impl Train {
    /// Makes any cores canonical.
    pub(crate) fn new(mut cores: Vec<Mat>) -> Result<Self> {
        let d = cores.len();
        for k in 0..d - 1 {
            orthonormal_to_the_left(&mut cores, k)?;
        }
        let mut energies = vec![Vec::new(); d - 1];
        let mut right = vec![1.0];
        for k in (1..d).rev() {
            let rank = cores[k - 1].ncols();
            let mut gram = Mat::zeros(rank, rank);
            for x in 0..cores[k].nrows() / rank {
                let slice = cores[k].rows(x * rank, rank).into_owned();
                gram += weigh(&slice, &right) * slice.transpose();
            }
            let spectrum = eigen(gram)?;
            cores[k] = multiply_left(&spectrum.vectors.transpose(), &cores[k]);
            cores[k - 1] = &cores[k - 1] * &spectrum.vectors;
            right.clone_from(&spectrum.values);
            energies[k - 1] = spectrum.values;
        }
        Ok(Self { cores, energies })
    }

    /// The best cores of these inner ranks, bond by bond, and the squared error that this adds.
    pub(crate) fn truncate(&self, ranks: &[usize]) -> Result<(Vec<Mat>, f64)> {
        let tail = |energies: &[f64], rank: usize| energies.iter().skip(rank).sum::<f64>();
        let mut error = tail(&self.energies[0], ranks[0]);
        let mut cores =
            vec![self.cores[0].columns(0, ranks[0].min(self.cores[0].ncols())).into_owned()];
        // The change of basis of the bond by the cores to its left.
        let mut change = Mat::identity(cores[0].ncols(), self.cores[0].ncols());
        for (k, &rank) in ranks.iter().enumerate().skip(1) {
            let core = multiply_left(&change, &self.cores[k]);
            let roots: Vec<f64> = self.energies[k].iter().map(|energy| energy.sqrt()).collect();
            let svd = svd(&weigh(&core, &roots))?;
            let rank = rank.min(svd.values.len());
            error += svd.values[rank..].iter().map(|value| value * value).sum::<f64>();
            let left = svd.u.columns(0, rank).into_owned();
            change = left.transpose() * &core;
            cores.push(left);
        }
        cores.push(multiply_left(&change, &self.cores[ranks.len()]));
        Ok((cores, error))
    }

    /// The same product, of cores that training can continue from: both sides of a bond carry its
    /// energies alike, and the elements of all cores have the same root mean square.
    pub(crate) fn balanced(mut self) -> Vec<Mat> {
        for (k, energies) in self.energies.iter().enumerate() {
            // Where there is no energy, the left side stays, so that training can use the bond.
            let root = |&energy: &f64| if energy > 0.0 { energy.sqrt().sqrt() } else { 1.0 };
            let roots: Vec<f64> = energies.iter().map(root).collect();
            self.cores[k] = weigh(&self.cores[k], &roots);
            for (at, mut row) in self.cores[k + 1].row_iter_mut().enumerate() {
                row /= roots[at % roots.len()];
            }
        }
        let sizes = self.cores.iter().map(|core| core.norm() / (core.len() as f64).sqrt());
        let sizes: Vec<f64> = sizes.collect();
        let mean = sizes.iter().map(|size| size.powf(1.0 / sizes.len() as f64)).product::<f64>();
        if mean > 0.0 {
            self.cores.iter_mut().zip(sizes).for_each(|(core, size)| *core *= mean / size);
        }
        self.cores
    }
}

/// Core k of slices of `[r_k, q_k, r_{k+1}]` elements, one after another.
pub(crate) fn of_slices(slices: &[f32], [left, columns, right]: [usize; 3]) -> Mat {
    Mat::from_fn(slices.len() / right, right, |row, t| {
        let (s, j, i) = (row % left, row / left % columns, row / left / columns);
        slices[((i * left + s) * columns + j) * right + t].into()
    })
}

/// The slices of each core, one after another; the opposite of [`of_slices`].
pub(crate) fn slices(cores: &[Mat], columns: &[u32]) -> Vec<Vec<f32>> {
    let mut left = 1;
    let mut out = Vec::new();
    for (core, &q) in cores.iter().zip(columns) {
        let (q, right) = (q as usize, core.ncols());
        let slices = core.nrows() / (q * left);
        let element = |at: usize| {
            let (t, j, s, i) =
                (at % right, at / right % q, at / right / q % left, at / right / q / left);
            core[((i * q + j) * left + s, t)] as f32
        };
        out.push((0..slices * left * q * right).map(element).collect());
        left = right;
    }
    out
}

/// Makes the columns of core k orthonormal; core k + 1 absorbs the rest.
pub(super) fn orthonormal_to_the_left(cores: &mut [Mat], k: usize) -> Result<()> {
    let Svd { u, values, v } = svd(&cores[k])?;
    cores[k] = u;
    cores[k + 1] = multiply_left(&weigh(&v, &values).transpose(), &cores[k + 1]);
    Ok(())
}

/// Makes the rows of all cores but the first orthonormal, each read as a matrix of r_k rows.
pub(super) fn orthonormal_to_the_right(cores: &mut [Mat]) -> Result<()> {
    for k in (1..cores.len()).rev() {
        let (rank, columns) = (cores[k - 1].ncols(), cores[k].ncols());
        let core = &cores[k];
        let wide = Mat::from_fn(core.nrows() / rank * columns, rank, |at, s| {
            core[(at / columns * rank + s, at % columns)]
        });
        let Svd { u: rows, values, v } = svd(&wide)?;
        let rank = rows.ncols();
        cores[k - 1] = &cores[k - 1] * weigh(&v, &values);
        cores[k] = Mat::from_fn(rows.nrows() / columns * rank, columns, |row, t| {
            rows[(row / rank * columns + t, row % rank)]
        });
    }
    Ok(())
}

/// `matrix diag(weights)`.
fn weigh(matrix: &Mat, weights: &[f64]) -> Mat {
    Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| matrix[(i, j)] * weights[j])
}

/// `left` times each slice of a core: another basis on its left bond.
fn multiply_left(left: &Mat, core: &Mat) -> Mat {
    let (to, from) = (left.nrows(), left.ncols());
    let mut out = Mat::zeros(core.nrows() / from * to, core.ncols());
    for x in 0..core.nrows() / from {
        out.rows_mut(x * to, to).gemm(1.0, left, &core.rows(x * from, from), 0.0);
    }
    out
}
