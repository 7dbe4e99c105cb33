//! Factorisations against plain double-precision oracles that share nothing with them.

use super::*;
use anyhow::Result;
use faer::Mat;

/// A table in memory.
pub(super) struct Table {
    pub(super) columns: usize,
    pub(super) values: Vec<f32>,
}

impl Rows for Table {
    fn num_embeddings(&self) -> u64 {
        (self.values.len() / self.columns) as u64
    }

    fn embedding_dim(&self) -> usize {
        self.columns
    }

    fn read(&self, first: u64, out: &mut [f32]) -> Result<()> {
        let start = first as usize * self.columns;
        out.copy_from_slice(&self.values[start..start + out.len()]);
        Ok(())
    }
}

/// Numbers in -1 .. 1 that look random.
pub(super) fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 40) as f32 / (1 << 23) as f32) - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// The first rows of the table that cores of `p_k x r_k x q_k x r_{k+1}` multiply out to, digit by digit.
fn expand(cores: &[Vec<f32>], factors: &Factors, rows: usize) -> Vec<f64> {
    let d = cores.len();
    let mut out = Vec::new();
    for row in 0..rows {
        let mut digits = vec![0; d];
        let mut rest = row;
        for k in (0..d).rev() {
            digits[k] = rest % factors.rows[k] as usize;
            rest /= factors.rows[k] as usize;
        }
        let mut x = vec![1.0f64];
        let mut left = 1;
        for (k, core) in cores.iter().enumerate() {
            let slice_len = core.len() / factors.rows[k] as usize;
            let n = slice_len / left;
            let slice = &core[digits[k] * slice_len..][..slice_len];
            let products = x
                .chunks(left)
                .flat_map(|x| (0..n).map(|j| (0..left).map(|s| x[s] * f64::from(slice[s * n + j])).sum()));
            x = products.collect();
            left = n / factors.columns[k] as usize;
        }
        out.extend(x);
    }
    out
}

fn relative_error(table: &Table, ours: &[f64]) -> f64 {
    let difference: f64 = table.values.iter().zip(ours).map(|(&a, b)| (f64::from(a) - b).powi(2)).sum();
    let norm: f64 = table.values.iter().map(|&a| f64::from(a).powi(2)).sum();
    (difference / norm).sqrt()
}

/// TT-SVD as it is defined: dense SVDs of the whole unfoldings. Its error at these ranks, and the sum of the squares of the
/// parts of the true singular values past them, both relative.
fn oracle(table: &Table, factors: &Factors, ranks: &[u32]) -> (f64, f64) {
    let (p, q) = (&factors.rows, &factors.columns);
    let d = p.len();
    let m: Vec<usize> = p.iter().zip(q).map(|(&p, &q)| (p * q) as usize).collect();
    // The tensor with axes (i_k, j_k), the first the slowest.
    let mut tensor = vec![0.0f64; m.iter().product()];
    for (at, &value) in table.values.iter().enumerate() {
        let (mut row, mut column) = (at / table.columns, at % table.columns);
        let (mut place, mut stride) = (0, 1);
        for k in (0..d).rev() {
            let (p, q) = (p[k] as usize, q[k] as usize);
            place += (row % p * q + column % q) * stride;
            (row, column, stride) = (row / p, column / q, stride * m[k]);
        }
        tensor[place] = f64::from(value);
    }
    let norm: f64 = tensor.iter().map(|x| x * x).sum();
    let unfold = |values: &[f64], rows: usize| {
        Mat::from_fn(rows, values.len() / rows, |i, j| values[i * (values.len() / rows) + j])
    };
    let mut bound = 0.0;
    for k in 1..d {
        let values = unfold(&tensor, m[..k].iter().product()).singular_values().unwrap();
        bound += values.iter().skip(ranks[k - 1] as usize).map(|v| v * v).sum::<f64>();
    }
    let (mut carry, mut rank, mut error) = (tensor, 1, 0.0);
    for k in 1..d {
        let svd = unfold(&carry, rank * m[k - 1]).thin_svd().unwrap();
        let values = svd.S().column_vector();
        rank = (ranks[k - 1] as usize).min(values.nrows());
        error += (rank..values.nrows()).map(|i| values[i] * values[i]).sum::<f64>();
        let rest = svd.V().nrows();
        carry = (0..rank * rest).map(|at| values[at / rest] * svd.V()[(at % rest, at / rest)]).collect();
    }
    ((error / norm).sqrt(), (bound / norm).sqrt())
}

fn factors(rows: &[u32], columns: &[u32]) -> Factors {
    Factors { rows: rows.to_vec(), columns: columns.to_vec() }
}

/// Shapes of 2, 3 and 4 cores, padded and not, and ranks that each of them can have.
fn cases() -> Vec<(Factors, usize, Vec<u32>)> {
    vec![
        (factors(&[7, 9], &[3, 5]), 63, vec![6]),
        (factors(&[7, 9], &[3, 5]), 55, vec![21]),
        (factors(&[5, 6, 7], &[2, 3, 4]), 210, vec![4, 7]),
        (factors(&[5, 6, 7], &[2, 3, 4]), 171, vec![10, 28]),
        (factors(&[8, 3, 2], &[4, 1, 2]), 45, vec![5, 3]),
        (factors(&[3, 4, 5, 4], &[2, 2, 1, 3]), 229, vec![5, 9, 4]),
    ]
}

#[test]
fn a_tensor_train_is_found_again() {
    for (factors, rows, ranks) in cases() {
        let all: Vec<usize> = [1].into_iter().chain(ranks.iter().map(|&r| r as usize)).chain([1]).collect();
        let d = ranks.len() + 1;
        let cores: Vec<Vec<f32>> = (0..d)
            .map(|k| noise(k as u64 + 7, factors.rows[k] as usize * all[k] * factors.columns[k] as usize * all[k + 1]))
            .collect();
        let columns: u32 = factors.columns.iter().product();
        let values = expand(&cores, &factors, factors.rows.iter().product::<u32>() as usize);
        let values = values[..].iter().map(|&x| x as f32).collect();
        let table = Table { columns: columns as usize, values };
        let found = TtSvd::analyse(&table, &factors, &Options::default()).unwrap();
        let error =
            relative_error(&table, &expand(&found.cores(&ranks).unwrap(), &factors, table.num_embeddings() as usize));
        assert!(error < 1e-6, "{factors:?} {rows} {ranks:?}: {error}");
        assert!(found.error_at(&ranks).unwrap() < 1e-3, "{:?}", found.error_at(&ranks));
    }
}

#[test]
fn the_error_is_that_of_plain_tt_svd() {
    for (factors, rows, ranks) in cases() {
        let columns: u32 = factors.columns.iter().product();
        let table = Table { columns: columns as usize, values: noise(3, rows * columns as usize) };
        for ranks in [ranks.clone(), ranks.iter().map(|r| r / 2 + 1).collect(), vec![1; ranks.len()]] {
            let (plain, bound) = oracle(&table, &factors, &ranks);
            for max_rank in [*ranks.iter().max().unwrap() as usize, 1000] {
                let options = Options { max_rank, ..Options::default() };
                let found = TtSvd::analyse(&table, &factors, &options).unwrap();
                let measured = relative_error(&table, &expand(&found.cores(&ranks).unwrap(), &factors, rows));
                let told = found.error_at(&ranks).unwrap();
                assert!((told - measured).abs() < 1e-5, "{factors:?} {ranks:?}: {told}, measured {measured}");
                assert!(measured <= bound + 1e-6, "{factors:?} {ranks:?}: {measured} above the bound {bound}");
                assert!(measured <= plain * 1.01 + 1e-6, "{factors:?} {ranks:?}: {measured}, plain {plain}");
                assert!(measured <= found.error_bound(&ranks) + 1e-6);
            }
        }
    }
}
