//! Factorisations against plain double-precision oracles that share nothing with them.

use super::{tt_svd::Refined, *};
use crate::matrix::{Mat, Svd, View, svd};
use anyhow::Result;

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

/// The first rows of the table that cores of `p_k x r_k x q_k x r_{k+1}` multiply out to, digit by
/// digit.
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
            let products = x.chunks(left).flat_map(|x| {
                (0..n).map(|j| (0..left).map(|s| x[s] * f64::from(slice[s * n + j])).sum())
            });
            x = products.collect();
            left = n / factors.columns[k] as usize;
        }
        out.extend(x);
    }
    out
}

fn relative_error(table: &Table, ours: &[f64]) -> f64 {
    let difference: f64 =
        table.values.iter().zip(ours).map(|(&a, b)| (f64::from(a) - b).powi(2)).sum();
    let norm: f64 = table.values.iter().map(|&a| f64::from(a).powi(2)).sum();
    (difference / norm).sqrt()
}

/// TT-SVD as it is defined: dense SVDs of the whole unfoldings. Its error at these ranks, and the
/// sum of the squares of the parts of the true singular values past them, both relative.
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
        let values = svd(&unfold(&tensor, m[..k].iter().product())).unwrap().values;
        bound += values.iter().skip(ranks[k - 1] as usize).map(|v| v * v).sum::<f64>();
    }
    let (mut carry, mut rank, mut error) = (tensor, 1, 0.0);
    for k in 1..d {
        let Svd { values, v, .. } = svd(&unfold(&carry, rank * m[k - 1])).unwrap();
        rank = (ranks[k - 1] as usize).min(values.len());
        error += values[rank..].iter().map(|value| value * value).sum::<f64>();
        let rest = v.nrows();
        carry = (0..rank * rest)
            .map(|at| values[at / rest] * v[(at % rest, at / rest)])
            .collect();
    }
    ((error / norm).sqrt(), (bound / norm).sqrt())
}

/// The cores at these ranks, as TT-SVD leaves them.
fn at(found: &TtSvd, ranks: &[u32], table: &Table) -> Refined {
    found.refine(ranks, table, None, 0, &Limits::default()).unwrap()
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
        // More than a whole slice of padding.
        (factors(&[8, 3, 2], &[4, 1, 2]), 31, vec![5, 3]),
        (factors(&[3, 4, 5, 4], &[2, 2, 1, 3]), 229, vec![5, 9, 4]),
    ]
}

#[test]
fn a_tensor_train_is_found_again() {
    for (factors, rows, ranks) in cases() {
        let all: Vec<usize> =
            [1].into_iter().chain(ranks.iter().map(|&r| r as usize)).chain([1]).collect();
        let d = ranks.len() + 1;
        let cores: Vec<Vec<f32>> = (0..d)
            .map(|k| {
                noise(
                    k as u64 + 7,
                    factors.rows[k] as usize * all[k] * factors.columns[k] as usize * all[k + 1],
                )
            })
            .collect();
        let columns: u32 = factors.columns.iter().product();
        let values = expand(&cores, &factors, factors.rows.iter().product::<u32>() as usize);
        let values = values[..].iter().map(|&x| x as f32).collect();
        let table = Table { columns: columns as usize, values };
        let found = TtSvd::analyse(&table, &factors, &Limits::default()).unwrap();
        let error = relative_error(
            &table,
            &expand(&at(&found, &ranks, &table).cores, &factors, table.num_embeddings() as usize),
        );
        assert!(error < 1e-6, "{factors:?} {rows} {ranks:?}: {error}");
        assert!(at(&found, &ranks, &table).error < 1e-3, "{factors:?} {rows} {ranks:?}");
    }
}

#[test]
fn the_error_is_that_of_plain_tt_svd() {
    for (factors, rows, ranks) in cases() {
        let columns: u32 = factors.columns.iter().product();
        let table = Table { columns: columns as usize, values: noise(3, rows * columns as usize) };
        for ranks in
            [ranks.clone(), ranks.iter().map(|r| r / 2 + 1).collect(), vec![1; ranks.len()]]
        {
            let (plain, bound) = oracle(&table, &factors, &ranks);
            for max_rank in [*ranks.iter().max().unwrap() as usize, 1000] {
                let limits = Limits { max_rank, ..Limits::default() };
                let found = TtSvd::analyse(&table, &factors, &limits).unwrap();
                let Refined { cores, error: reported, .. } = at(&found, &ranks, &table);
                let measured = relative_error(&table, &expand(&cores, &factors, rows));
                // The reported error includes padded rows.
                let padded = rows < factors.rows.iter().product::<u32>() as usize;
                // An estimate, as `refine` says.
                let off = if factors.rows.len() > 3 && max_rank != 1000 {
                    0.01 * measured
                } else {
                    1e-5
                };
                assert!(
                    measured < reported + off && (padded || reported < measured + off),
                    "{factors:?} {ranks:?}: {reported}, measured {measured}"
                );
                assert!(
                    measured <= bound + 1e-6,
                    "{factors:?} {ranks:?}: {measured} above the bound {bound}"
                );
                // A basis found for larger ranks at one bond is not quite the best for smaller ones
                // at another.
                let slack = if max_rank == 1000 { 1e-5 } else { 0.02 * plain };
                assert!(
                    reported <= plain + slack,
                    "{factors:?} {ranks:?}: {reported}, plain {plain}"
                );
            }
        }
    }
}

/// The weighted squared error of cores, relative to the weighted squares of the table, the root of
/// both.
fn weighted_error(table: &Table, weights: &[f32], ours: &[f64]) -> f64 {
    let (mut difference, mut norm) = (0.0, 0.0);
    for (i, (&a, b)) in table.values.iter().zip(ours).enumerate() {
        let weight = f64::from(weights[i / table.columns]);
        difference += weight * (f64::from(a) - b).powi(2);
        norm += weight * f64::from(a).powi(2);
    }
    (difference / norm).sqrt()
}

#[test]
fn sweeps_never_make_it_worse_and_follow_the_weights() {
    for (factors, rows, ranks) in cases() {
        let ranks: Vec<u32> = ranks.iter().map(|r| r / 2 + 1).collect();
        let columns = factors.columns.iter().product::<u32>() as usize;
        let table = Table { columns, values: noise(5, rows * columns) };
        // Some rows weigh nothing, some a lot.
        let uneven: Vec<f32> = (0..rows).map(|row| [0.0, 1.0, 1.0, 30.0][row * 7 % 4]).collect();
        let found = TtSvd::analyse(&table, &factors, &Limits::default()).unwrap();
        for weights in [vec![1.0; rows], uneven] {
            let mut last = weighted_error(
                &table,
                &weights,
                &expand(&at(&found, &ranks, &table).cores, &factors, rows),
            );
            let first = last;
            for sweeps in 1..4 {
                let refined = found
                    .refine(&ranks, &table, Some(&weights), sweeps, &Limits::default())
                    .unwrap();
                let measured =
                    weighted_error(&table, &weights, &expand(&refined.cores, &factors, rows));
                assert!(
                    (measured - refined.error).abs() < 1e-4,
                    "{factors:?} {ranks:?}: {} reported, {measured}",
                    refined.error
                );
                assert!(
                    measured <= last + 1e-6,
                    "{factors:?} {ranks:?}, sweep {sweeps}: {last} became {measured}"
                );
                last = measured;
            }
            if weights.contains(&30.0) {
                assert!(last < first * 0.98, "{factors:?} {ranks:?}: {first} only became {last}");
            }
        }
    }
}

#[test]
fn no_weights_are_equal_weights() {
    let (factors, rows, ranks) = cases().swap_remove(3);
    let columns = factors.columns.iter().product::<u32>() as usize;
    let table = Table { columns, values: noise(6, rows * columns) };
    let found = TtSvd::analyse(&table, &factors, &Limits::default()).unwrap();
    let [none, ones] = [None, Some(vec![1.0; rows])].map(|weights| {
        found.refine(&ranks, &table, weights.as_deref(), 2, &Limits::default()).unwrap()
    });
    assert!((none.error - ones.error).abs() < 1e-5, "{} without, {} with", none.error, ones.error);
    let [none, ones] = [none, ones].map(|refined| expand(&refined.cores, &factors, rows));
    assert!(none.iter().zip(&ones).all(|(a, b)| (a - b).abs() < 1e-3));
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let factors = factors(&[20, 17, 19], &[2, 3, 4]);
    let table = Table { columns: 24, values: noise(8, 6300 * 24) };
    let cores = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let found =
                TtSvd::analyse(&table, &factors, &Limits { max_rank: 12, ..Limits::default() })
                    .unwrap();
            let refined = found.refine(&[7, 9], &table, None, 1, &Limits::default()).unwrap();
            let low = LowRank::analyse(&table, &Job::default()).unwrap();
            (at(&found, &[7, 9], &table).cores, refined.cores, low.basis(5))
        })
    };
    let one = cores(1);
    assert!(one == cores(2) && one == cores(5));
}

#[test]
fn low_rank_is_the_svd() {
    let (rows, columns, rank) = (300, 20, 6);
    // Of rank 20, with decreasing singular values.
    let mut values = noise(9, rows * columns);
    values
        .iter_mut()
        .enumerate()
        .for_each(|(at, x)| *x *= 1.0 / (1 + at % columns) as f32);
    let table = Table { columns, values };
    let found = LowRank::analyse(&table, &Job::default()).unwrap();
    let full = Mat::from_fn(rows, columns, |i, j| f64::from(table.values[i * columns + j]));
    let singular = svd(&full).unwrap().values;
    for (energy, value) in found.energies().iter().zip(&singular) {
        assert!((energy - value * value).abs() < 1e-5 * singular[0] * singular[0]);
    }
    let basis = found.basis(rank);
    let mut short = Vec::new();
    for_each_short_row(&table, &basis, rank, |rows| {
        short.extend_from_slice(rows);
        Ok(())
    })
    .unwrap();
    let back = |i: usize, j: usize| {
        (0..rank)
            .map(|s| f64::from(short[i * rank + s]) * f64::from(basis[j * rank + s]))
            .sum()
    };
    let ours: Vec<f64> = (0..rows * columns).map(|at| back(at / columns, at % columns)).collect();
    let measured = relative_error(&table, &ours);
    let tail = |from: usize| singular.iter().skip(from).map(|v| v * v).sum::<f64>();
    let best = (tail(rank) / tail(0)).sqrt();
    assert!(
        (measured - best).abs() < 1e-5 && (found.error_at(rank) - best).abs() < 1e-5,
        "{measured}, best {best}"
    );
    assert_eq!(found.rank_for(best * 1.001), rank);
    assert_eq!(found.rank_for(1e-9), columns);
}

#[test]
fn mixed_directions_are_orthonormal_and_alike() {
    let (rows, columns) = (500, 24);
    let mut values = noise(3, rows * columns);
    // The first direction is a hundred times as long as the last.
    values
        .iter_mut()
        .enumerate()
        .for_each(|(at, x)| *x *= 0.01f32.powf((at % columns) as f32 / columns as f32));
    let found =
        LowRank::analyse(&Table { columns, values: values.clone() }, &Job::default()).unwrap();
    for rank in [1, 2, 3, 7, 16, 23, 24] {
        let basis = found.basis(rank);
        for (s, t) in (0..rank).flat_map(|s| (0..rank).map(move |t| (s, t))) {
            let dot: f64 =
                basis.chunks(rank).map(|row| f64::from(row[s]) * f64::from(row[t])).sum();
            assert!((dot - f64::from(s == t)).abs() < 1e-6, "rank {rank}: {s} {t}: {dot}");
        }
        let mut sizes = vec![0.0; rank];
        for row in values.chunks(columns) {
            for (s, size) in sizes.iter_mut().enumerate() {
                *size += row
                    .iter()
                    .zip(basis.chunks(rank))
                    .map(|(x, row)| x * row[s])
                    .sum::<f32>()
                    .powi(2);
            }
        }
        let largest = sizes.iter().fold(0f32, |largest, &size| largest.max(size));
        let mean = sizes.iter().sum::<f32>() / rank as f32;
        assert!(largest <= 2.5 * mean, "rank {rank}: {sizes:?}");
    }
}

#[test]
fn ranks_keep_the_tolerance() {
    let factors = factors(&[6, 7, 8], &[2, 2, 4]);
    // Smooth, so that ranks matter.
    let value = |at: usize| {
        ((at / 16) as f32 * 0.05 + (at % 16) as f32 * 0.7).sin()
            + 0.1 * ((at * at % 97) as f32 * 0.3).cos()
    };
    let table = Table { columns: 16, values: (0..330 * 16).map(value).collect() };
    let mut last = u32::MAX;
    for tolerance in [0.01, 0.05, 0.2, 0.6] {
        for analysed in [None, Some(tolerance)] {
            let limits = Limits { max_rank: usize::MAX, tolerance: analysed, ..Limits::default() };
            let found = TtSvd::analyse(&table, &factors, &limits).unwrap();
            let ranks = found.ranks_for(tolerance).unwrap();
            let measured =
                relative_error(&table, &expand(&at(&found, &ranks, &table).cores, &factors, 330));
            assert!(measured <= tolerance, "{tolerance}: {ranks:?} give {measured}");
            if analysed.is_none() {
                assert!(ranks.iter().sum::<u32>() < last, "{tolerance}: {ranks:?}");
                last = ranks.iter().sum();
            }
        }
    }
    let found =
        TtSvd::analyse(&table, &factors, &Limits { max_rank: 2, ..Limits::default() }).unwrap();
    assert_eq!(found.ranks_for(0.01), None);
}

#[test]
fn too_little_memory_says_how_much_it_takes() {
    let factors = factors(&[20, 17, 19], &[2, 3, 4]);
    let table = Table { columns: 24, values: noise(8, 6300 * 24) };
    for memory in [1000, 100_000] {
        let limits = Limits { job: Job { memory, ..Job::default() }, ..Limits::default() };
        let error = TtSvd::analyse(&table, &factors, &limits).err().unwrap().to_string();
        assert!(error.contains("memory limit") && error.contains("bytes"), "{error}");
    }
}

#[test]
fn f32_blocks_are_as_good_as_f64() {
    // A spectrum over five decades, mixed, so that no row is small.
    let (n, columns) = (40, 6000);
    let mix = Mat::from_fn(n, n, {
        let values = noise(12, n * n);
        move |i, j| f64::from(values[i * n + j])
    });
    let mix = mix.qr().q();
    let values = noise(11, n * columns);
    let scale = |i: usize| 10f64.powf(-(i as f64) * 5.0 / n as f64);
    let graded = Mat::from_fn(n, columns, |i, j| f64::from(values[i * columns + j]) * scale(i));
    let mixed = &mix * &graded;
    let block: Vec<f32> = mixed.iter().map(|&x| x as f32).collect();
    let exact = Mat::from_iterator(n, columns, block.iter().map(|&x| f64::from(x)));
    let mut gram = gram::Gram::new(n);
    gram.add(View::row_major(&block, n).transpose());
    let found = gram.eigen().unwrap().values;
    let expected = svd(&exact).unwrap().values;
    let largest = expected[0] * expected[0];
    for (k, (found, expected)) in found.iter().zip(&expected).enumerate() {
        // What docs/compress.md promises: squares to 1e-7 of the largest.
        let square = expected * expected;
        assert!(
            (found - square).abs() < 1e-7 * largest,
            "{k}: {found}, {square}, largest {largest}"
        );
    }
}
