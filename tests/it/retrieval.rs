//! Scores of all rows, and the best rows: by the f64 oracle, by the chain that the documentation
//! says, and the same bits however the work is divided.

use crate::support::{
    format::KIND_TT,
    oracle::{Approx, Reference, Train},
    random::{self, CORE_DTYPES, Values, build, codebook, num_rows, tt_shape},
    rng::Rng,
    tiers,
};
use proptest::{prelude::*, sample::select};
use std::{cmp::Ordering, ops::Range};
use ttrec::{
    Bags, Blob, DigitOrder, LookupError, RetrievalError, Scored, Search, Table, TtShape,
    blob::{IndexMapSpec, TableSpec, WeightsSpec},
    cache::RowCache,
    dtype::Dtype,
    merge_top_k,
    repr::{CodeDtype, Combine},
};

/// The walk over a tensor train that `docs/numerics.md` says: its shape in the order of the walk,
/// and where it is cut.
struct Walk {
    train: Train,
    is_reversed: bool,
    cut: usize,
}

impl Walk {
    fn of(reference: &Reference<'_>) -> Self {
        let d = reference.train().p.len();
        let mut best: Option<(u64, Self)> = None;
        for cut in 1..d {
            for is_reversed in [false, true] {
                let mut train = reference.train();
                if is_reversed {
                    train.p.reverse();
                    train.q.reverse();
                    train.r.reverse();
                    train.least_first = !train.least_first;
                }
                let walk = Self { train, is_reversed, cut };
                let Train { p, q, r, .. } = &walk.train;
                let partial = |k: usize| (q[..k].iter().product::<usize>() * r[k]) as u64;
                let rows = |cores: Range<usize>| p[cores].iter().product::<usize>() as u64;
                let step = |k: usize| partial(k) * (q[k] * r[k + 1]) as u64;
                let prefixes: u64 = (1..cut).map(|k| rows(0..k + 1) * step(k)).sum();
                let contractions: u64 = (cut..d).map(|k| rows(k..d) * step(k)).sum();
                let scores = rows(0..cut).next_multiple_of(8) * rows(cut..d) * partial(cut);
                let work = prefixes + contractions + scores;
                let fits = cut == 1 || rows(0..cut) * partial(cut) <= 1 << 16;
                if fits && best.as_ref().is_none_or(|(least, _)| work < *least) {
                    best = Some((work, walk));
                }
            }
        }
        best.unwrap().1
    }

    /// The digits of a row, and slice k of it as `[a][j][b]`, in the order of the walk.
    fn slice(&self, reference: &Reference<'_>, row: u64, k: usize) -> Vec<f32> {
        let Train { p, q, r, .. } = &self.train;
        let digit = row as usize / self.train.place(k) % p[k];
        let stored = if self.is_reversed { p.len() - 1 - k } else { k };
        let (values, scale) = reference.slice(stored, digit, r[k] * q[k] * r[k + 1]);
        let values: Vec<f32> = values
            .iter()
            .map(|&x| x as f32 * scale.map_or(1.0, |scale| scale as f32))
            .collect();
        if !self.is_reversed {
            return values;
        }
        let (a, j, b) = (r[k], q[k], r[k + 1]);
        let element = |at: usize| values[(at % b * j + at / b % j) * a + at / b / j];
        (0..a * j * b).map(element).collect()
    }

    /// The elements of a query in the order of the walk.
    fn query(&self, reference: &Reference<'_>, query: &[f32]) -> Vec<f32> {
        let d = self.train.q.len();
        // Position of each column in the product of the cores as they are stored.
        let columns = reference.in_column_order((0..query.len()).collect());
        let mut stored = vec![0.0; query.len()];
        columns.iter().zip(query).for_each(|(&position, &x)| stored[position] = x);
        if !self.is_reversed {
            return stored;
        }
        let q = &self.train.q;
        let element = |position: usize| {
            let (mut rest, mut digits) = (position, vec![0; d]);
            for k in (0..d).rev() {
                (digits[k], rest) = (rest % q[k], rest / q[k]);
            }
            stored[(0..d).rev().fold(0, |at, k| at * q[k] + digits[k])]
        };
        (0..query.len()).map(element).collect()
    }

    /// The score of a row, chain by chain.
    fn score(&self, reference: &Reference<'_>, row: u64, query: &[f32]) -> f32 {
        let Train { p, q, r, .. } = &self.train;
        let d = p.len();
        let mut contracted = self.query(reference, query);
        for k in (self.cut..d).rev() {
            let slice = self.slice(reference, row, k);
            contracted = contracted
                .chunks(q[k] * r[k + 1])
                .flat_map(|x| slice.chunks(q[k] * r[k + 1]).map(move |g| (x.to_vec(), g.to_vec())))
                .map(|(x, g)| chain(&x, &g))
                .collect();
        }
        let mut prefix = self.slice(reference, row, 0);
        for k in 1..self.cut {
            let slice = self.slice(reference, row, k);
            let n = q[k] * r[k + 1];
            prefix = prefix
                .chunks(r[k])
                .flat_map(|x| {
                    let slice = &slice;
                    (0..n).map(move |column| {
                        let g: Vec<f32> = (0..x.len()).map(|a| slice[a * n + column]).collect();
                        chain(x, &g)
                    })
                })
                .collect();
        }
        chain(&contracted, &prefix)
    }

    /// How many roundings a product passes through, at most: the lengths of its chains, and the
    /// scale of each slice.
    fn num_roundings(&self) -> usize {
        let Train { p, q, r, .. } = &self.train;
        let columns: usize = q[..self.cut].iter().product();
        let contractions: usize = (self.cut..p.len()).map(|k| q[k] * r[k + 1]).sum();
        let prefixes: usize = r[1..self.cut].iter().sum();
        contractions + prefixes + columns * r[self.cut] + p.len()
    }
}

/// `s <- s + x_j * g_j` from 0, each rounded once.
fn chain(x: &[f32], g: &[f32]) -> f32 {
    x.iter().zip(g).fold(0.0, |s, (&x, &g)| x.mul_add(g, s))
}

/// The sum of the products of a query's elements and one element of each core, and the sum of their
/// magnitudes, times the query's.
fn exact_score(reference: &Reference<'_>, row: u64, query: &[f32]) -> (f64, f64) {
    let Train { p, q, r, .. } = &reference.train();
    let train = reference.train();
    let slices: Vec<Vec<f64>> = (0..p.len())
        .map(|k| {
            let digit = row as usize / train.place(k) % p[k];
            let (values, scale) = reference.slice(k, digit, r[k] * q[k] * r[k + 1]);
            values.into_iter().map(|x| x * scale.unwrap_or(1.0)).collect()
        })
        .collect();
    let element = |j: usize, magnitude: bool| {
        let mut x = vec![1.0];
        for k in 0..p.len() {
            let column = j / q[k + 1..].iter().product::<usize>() % q[k];
            let entry = |a: usize, b: usize| {
                let entry = slices[k][(a * q[k] + column) * r[k + 1] + b];
                if magnitude { entry.abs() } else { entry }
            };
            x = (0..r[k + 1])
                .map(|b| x.iter().enumerate().map(|(a, x)| x * entry(a, b)).sum())
                .collect();
        }
        x[0]
    };
    let columns = reference.in_column_order((0..query.len()).collect());
    columns.iter().zip(query).fold((0.0, 0.0), |(sum, size), (&column, &x)| {
        let x = f64::from(x);
        (sum + x * element(column, false), size + x.abs() * element(column, true))
    })
}

/// A score, and how far the computed one may be off.
fn oracle(table: &Table<'_>, reference: &Reference<'_>, index: u64, query: &[f32]) -> Approx {
    let is_override = reference.override_ids().contains(&index);
    let gamma = |n: usize| {
        let nu = n as f64 * 2f64.powi(-24);
        nu / (1.0 - nu) * (1.0 + 2f64.powi(-20))
    };
    let is_mapped = reference.index_map() != 0;
    match table.data().weights() {
        ttrec::repr::Weights::Tt(_) if !is_override && !is_mapped => {
            let (value, magnitude) = exact_score(reference, index, query);
            let n = Walk::of(reference).num_roundings();
            Approx { value, error: gamma(n) * magnitude + 1e-40 * n as f64 }
        }
        ttrec::repr::Weights::Projected(projected) if !is_override => {
            let (rank, dim) = (projected.rank(), table.embedding_dim());
            let short = &reference.parts(index)[0];
            let (mut value, mut error) = (0.0, 0.0);
            for (k, x) in short.iter().enumerate() {
                for (j, &q) in query.iter().enumerate() {
                    let p = f64::from(projected.projection().get(k * dim + j).unwrap());
                    value += x.value * p * f64::from(q);
                    let size = (p * f64::from(q)).abs();
                    error += gamma(rank + dim) * (x.value.abs() + x.error) * size + x.error * size;
                }
            }
            Approx { value, error: error + 1e-40 }
        }
        ttrec::repr::Weights::Codebook(codebook) if !is_override => {
            let dim = table.embedding_dim();
            let entries = reference.entries(reference.row_of(index) as usize);
            let n = dim + codebook.entry_len() + entries.len() + 1;
            let (mut value, mut error) = (0.0, 1e-40);
            let mut add = |x: Approx, factor: f64| {
                value += x.value * factor;
                let size = (x.value.abs() + x.error) * factor.abs();
                error += gamma(n) * size + x.error * factor.abs();
            };
            for (first, entry) in entries {
                for (k, x) in (first..).zip(entry) {
                    match codebook.projection() {
                        None => add(x, query[k].into()),
                        Some(projection) => query.iter().enumerate().for_each(|(j, &q)| {
                            let p = f64::from(projection.get(k * dim + j).unwrap());
                            add(x, p * f64::from(q));
                        }),
                    }
                }
            }
            Approx { value, error }
        }
        _ => Approx::dot(
            reference.row(index).into_iter().zip(query.iter().map(|&q| f64::from(q))),
            0,
        ),
    }
}

fn draw_queries(count: usize, dim: usize, rng: &mut Rng) -> Vec<f32> {
    (0..count * dim).map(|_| rng.below(4001) as f32 / 1000.0 - 2.0).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

fn scores(table: &Table<'_>, queries: &[f32], rows: Range<u64>, workspace_len: usize) -> Vec<f32> {
    let count = queries.len() / table.embedding_dim();
    let mut out = vec![f32::NAN; count * (rows.end - rows.start) as usize];
    table
        .scores(queries, rows, &mut out, &mut vec![f32::NAN; workspace_len])
        .unwrap();
    out
}

fn all_scores(table: &Table<'_>, queries: &[f32]) -> Vec<f32> {
    scores(table, queries, 0..table.num_embeddings(), table.retrieval_workspace_len(1))
}

fn top_k(table: &Table<'_>, queries: &[f32], search: &Search<'_>) -> Vec<Scored> {
    let count = queries.len() / table.embedding_dim();
    let mut out = vec![Scored { index: 7, score: f32::NAN }; count * search.k()];
    let mut workspace = vec![f32::NAN; table.retrieval_workspace_len(count)];
    table.top_k(queries, search, &mut out, &mut workspace).unwrap();
    out
}

/// The best `k` of the rows that `is_in` admits, by sorting all.
fn sorted(scores: &[f32], k: usize, is_in: impl Fn(u64) -> bool) -> Vec<Scored> {
    let mut all: Vec<Scored> = (0..)
        .zip(scores)
        .map(|(index, &score)| Scored { index, score })
        .filter(|row| !row.score.is_nan() && is_in(row.index))
        .collect();
    all.sort_by(|a, b| match b.score.partial_cmp(&a.score).unwrap() {
        Ordering::Equal => a.index.cmp(&b.index),
        order => order,
    });
    all.resize(k.max(all.len()), Scored::NONE);
    all.truncate(k);
    all
}

/// The scores of a table by the oracle, and the same bits for every tier that fuses, range,
/// workspace and number of queries.
fn check_scores(spec: TableSpec, seed: u64) {
    let buf = build(&[spec], seed, Values::Reals);
    let blob = Blob::parse(&buf).unwrap();
    let reference = Reference::new(&buf, 0);
    let table = blob.tables().next().unwrap();
    let mut rng = Rng::new(seed);
    let (n, dim) = (table.num_embeddings(), table.embedding_dim());
    let queries = draw_queries(11, dim, &mut rng);
    let mut by_tier = Vec::new();
    for tier in tiers::available() {
        let table = table.with_tier(tier);
        let what = || format!("{} {:?}", tier.name(), table.data().weights());
        let first = all_scores(&table, &queries[..dim]);
        for _ in 0..20 {
            let index = rng.below(n);
            let (found, expected) =
                (first[index as usize], oracle(&table, &reference, index, &queries[..dim]));
            assert!(expected.admits(found), "row {index}: {found} for {expected:?} of {}", what());
            if tiers::fuses(tier)
                && (reference.kind(), reference.index_map()) == (KIND_TT, 0)
                && !reference.override_ids().contains(&index)
            {
                let walk = Walk::of(&reference);
                let expected = walk.score(&reference, index, &queries[..dim]);
                assert_eq!(found.to_bits(), expected.to_bits(), "row {index} of {}", what());
            }
        }
        // Every number of queries, with the least and the best workspace.
        for count in [2, 8, 11] {
            let queries = &queries[..count * dim];
            let least = all_scores(&table, queries);
            assert_eq!(bits(&least[..n as usize]), bits(&first), "{count} queries, {}", what());
            let best = scores(&table, queries, 0..n, table.retrieval_workspace_len(count));
            assert_eq!(bits(&best), bits(&least), "{count} queries, {}", what());
        }
        let all = all_scores(&table, &queries);
        for _ in 0..6 {
            let start = rng.below(n);
            let rows = start..start + rng.below(n - start + 1);
            let found = scores(&table, &queries, rows.clone(), table.retrieval_workspace_len(3));
            let len = (rows.end - rows.start) as usize;
            for query in 0..11 {
                let expected = &all[query * n as usize + start as usize..][..len];
                assert_eq!(
                    bits(&found[query * len..][..len]),
                    bits(expected),
                    "{rows:?} {}",
                    what()
                );
            }
        }
        by_tier.push((tier, bits(&all)));
    }
    tiers::assert_fused_agree(&by_tier);
}

/// The best rows by sorting all scores, in every way that the work can be divided.
fn check_top_k(spec: TableSpec, seed: u64, values: Values) {
    let buf = build(&[spec.clone(), bias_of(&spec)], seed, values);
    let blob = Blob::parse(&buf).unwrap();
    let table = blob.table(&spec.name).unwrap();
    let bias = blob.table("bias").unwrap();
    let mut rng = Rng::new(seed);
    let (n, dim) = (table.num_embeddings(), table.embedding_dim());
    let queries = match values {
        Values::Integers => (0..3 * dim).map(|_| rng.below(3) as f32 - 1.0).collect(),
        Values::Reals => draw_queries(3, dim, &mut rng),
    };
    let mut excluded: Vec<Vec<u64>> =
        (0..3).map(|_| (0..rng.below(9)).map(|_| rng.below(n)).collect()).collect();
    excluded.iter_mut().for_each(|list| list.sort_unstable());
    let mut offsets = vec![0];
    for list in &excluded {
        offsets.push(offsets.last().unwrap() + list.len() as u64);
    }
    let lists = excluded.concat();
    let lists = Bags::new(&lists, &offsets).unwrap();
    let biases = all_scores(&bias, &[1.0]);
    for tier in tiers::available() {
        let table = table.with_tier(tier);
        let all = all_scores(&table, &queries);
        let start = rng.below(n);
        let rows = start..start + rng.below(n - start + 1);
        for k in [1, 2, 10, n as usize + 3] {
            let expected = |query: usize, biased: bool, is_in: &dyn Fn(u64) -> bool| {
                let mut scores = all[query * n as usize..][..n as usize].to_vec();
                if biased {
                    scores.iter_mut().zip(&biases).for_each(|(score, bias)| *score += bias);
                }
                sorted(&scores, k, is_in)
            };
            let search = Search::new(k);
            let found = top_k(&table, &queries, &search);
            for query in 0..3 {
                assert_eq!(found[query * k..][..k], expected(query, false, &|_| true));
            }
            let search = search.without(lists).with_bias(bias).in_rows(rows.clone());
            let found = top_k(&table, &queries, &search);
            for query in 0..3 {
                let is_in = |index: u64| rows.contains(&index) && !excluded[query].contains(&index);
                assert_eq!(found[query * k..][..k], expected(query, true, &is_in));
            }
            for parts in [2, 3, 7] {
                let mut merged = top_k(&table, &queries, &search.part(parts - 1, parts));
                for part in 0..parts - 1 {
                    let other = top_k(&table, &queries, &search.part(part, parts));
                    merge_top_k(k, &mut merged, &other).unwrap();
                }
                assert_eq!(merged, found, "{parts} parts");
            }
        }
    }
}

fn bias_of(spec: &TableSpec) -> TableSpec {
    let num_embeddings = match (spec.index_map, spec.weights) {
        (
            IndexMapSpec::Modulo { num_embeddings } | IndexMapSpec::Remapped { num_embeddings, .. },
            _,
        ) => num_embeddings,
        (_, weights) => num_rows(&weights),
    };
    let dtype = Dtype::ALL[spec.name.len() % 5];
    TableSpec::new("bias", WeightsSpec::Dense { num_embeddings, embedding_dim: 1, dtype })
}

/// Tables of any kind that are small enough to score every row often.
fn tables(max_rank: u32, max_dim: u32) -> impl Strategy<Value = Vec<TableSpec>> {
    let few_rows = |spec: &TableSpec| num_rows(&spec.weights) <= MOST_ROWS;
    random::tables(max_rank, max_dim)
        .prop_map(move |tables| tables.into_iter().filter(few_rows).collect())
}

const MOST_ROWS: u64 = 4000;

fn plain(spec: &TableSpec) -> TableSpec {
    TableSpec { num_prefixes: 0, name: "t".into(), ..spec.clone() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if tiers::few_cases() { 4 } else { 48 }))]

    #[test]
    fn scores_of_any_table_agree_with_the_oracle(tables in tables(7, 64), seed: u64) {
        tables.iter().for_each(|spec| check_scores(plain(spec), seed));
    }

    #[test]
    fn scores_of_any_tensor_train_are_the_chain_of_the_documentation(
        shape in tt_shape(9, 80)
            .prop_filter("few rows", |shape| shape.num_embeddings() <= MOST_ROWS),
        dtype in select(&CORE_DTYPES[..]),
        seed: u64,
    ) {
        check_scores(TableSpec::new("t", WeightsSpec::Tt { shape, dtype }), seed);
    }

    #[test]
    fn the_best_rows_are_those_of_all_rows_sorted(tables in tables(5, 64), seed: u64) {
        for spec in tables {
            check_top_k(plain(&spec), seed, Values::Reals);
            // Small integers: many rows have the same score.
            check_top_k(plain(&spec), seed, Values::Integers);
        }
    }
}

fn tt(num_embeddings: u64, p: &[u32], q: &[u32], r: &[u32], order: DigitOrder) -> TableSpec {
    let shape = TtShape::new(num_embeddings, p, q, r).unwrap().with_digit_order(order);
    TableSpec::new("t", WeightsSpec::Tt { shape, dtype: Dtype::F32 })
}

const ORDERS: [DigitOrder; 2] =
    [DigitOrder::MostSignificantFirst, DigitOrder::LeastSignificantFirst];

#[test]
fn tensor_trains_of_many_prefixes_and_last_digits_are_walked_in_blocks() {
    for (i, order) in ORDERS.into_iter().enumerate() {
        let shapes = [
            // More prefixes, or last digits, than are held at once.
            tt(20_999, &[3000, 7], &[4, 4], &[16], order),
            tt(20_999, &[7, 3000], &[4, 4], &[16], order),
            tt(20_000, &[5, 4001], &[8, 2], &[9], order),
            // Prefixes of one, two and three slices.
            tt(11_999, &[100, 10, 12], &[2, 3, 8], &[5, 6], order),
            tt(12_345, &[9, 11, 5, 26], &[1, 1, 2, 8], &[2, 3, 9], order),
            tt(14_000, &[6, 4, 5, 5, 25], &[1, 2, 1, 2, 2], &[2, 3, 4, 8], order),
            tt(16_000, &[5, 5, 5, 5, 5, 6], &[2, 1, 2, 1, 2, 1], &[3, 5, 5, 4, 3], order),
        ];
        for (j, spec) in shapes.into_iter().enumerate() {
            check_scores(spec.clone(), (i * 10 + j) as u64);
            check_top_k(spec, j as u64, Values::Integers);
        }
    }
}

/// A table of each kind.
fn kinds() -> Vec<TableSpec> {
    let dense = |dtype| WeightsSpec::Dense { num_embeddings: 300, embedding_dim: 35, dtype };
    let shape = TtShape::new(300, &[5, 9, 7], &[2, 2, 4], &[5, 3]).unwrap();
    let parts = |combine| WeightsSpec::QuotientRemainder {
        num_embeddings: 300,
        num_remainders: 17,
        columns: [12, 12],
        combine,
        dtype: Dtype::F32,
    };
    let projected = WeightsSpec::Projected {
        num_embeddings: 300,
        embedding_dim: 21,
        rank: 6,
        dtype: Dtype::I8,
        projection: Dtype::F32,
    };
    let mut kinds: Vec<WeightsSpec> = Dtype::ALL.iter().copied().map(dense).collect();
    kinds.extend(Combine::ALL.iter().copied().map(parts));
    kinds.extend([projected, WeightsSpec::Tt { shape, dtype: Dtype::F32 }]);
    let (concat, add, half) = (Combine::Concat, Combine::Add, Some(Dtype::F16));
    kinds.extend([
        codebook(300, concat, [4, 16], [20, 20], CodeDtype::U8, Dtype::F32, None),
        codebook(300, add, [3, 70], [18, 18], CodeDtype::U12, Dtype::I8, None),
        codebook(300, concat, [2, 9], [6, 21], CodeDtype::U16, Dtype::F16, half),
        // Of so many entries that products with all of them are not stored.
        codebook(300, add, [2, 40_000], [3, 3], CodeDtype::U16, Dtype::I8, None),
    ]);
    kinds.into_iter().map(|weights| TableSpec::new("t", weights)).collect()
}

#[test]
fn rows_whose_score_is_nan_are_left_out_and_infinite_scores_are_scores() {
    for spec in kinds() {
        let buf = build(std::slice::from_ref(&spec), 4, Values::Integers);
        let table = Blob::parse(&buf).unwrap().table("t").unwrap();
        let dim = table.embedding_dim();
        for table in tiers::available().into_iter().map(|tier| table.with_tier(tier)) {
            for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
                let mut query = vec![0.5; dim];
                query[dim / 2] = value;
                let all = all_scores(&table, &query);
                for k in [3, 300] {
                    let found = top_k(&table, &query, &Search::new(k));
                    assert_eq!(found, sorted(&all, k, |_| true), "{value} {spec:?}");
                }
            }
            let none = top_k(&table, &vec![f32::NAN; dim], &Search::new(5));
            assert!(none.iter().all(Scored::is_none), "{spec:?}");
            // All rows are equally good.
            let zeros = top_k(&table, &vec![0.0; dim], &Search::new(5));
            assert!(zeros.iter().map(|row| row.index).eq(0..5), "{spec:?} {zeros:?}");
        }
    }
}

#[test]
fn a_cache_changes_no_score() {
    for spec in kinds() {
        let buf = build(&[spec], 9, Values::Reals);
        let table = Blob::parse(&buf).unwrap().table("t").unwrap();
        let mut memory = vec![0.0; RowCache::memory_len(&table, 64)];
        let mut cache = RowCache::new(&table, &mut memory).unwrap();
        let indices: Vec<u64> = (0..64).collect();
        (0..3).for_each(|_| cache.record(&indices));
        assert!(cache.refresh(&mut vec![0.0; table.workspace_len(1)]).unwrap() > 16);
        let queries = draw_queries(2, table.embedding_dim(), &mut Rng::new(1));
        assert_eq!(
            bits(&all_scores(&cache.table(), &queries)),
            bits(&all_scores(&table, &queries))
        );
    }
}

#[test]
fn wrong_arguments_are_refused_and_leave_the_output_unmodified() {
    let one = |n| WeightsSpec::Dense { num_embeddings: n, embedding_dim: 1, dtype: Dtype::F32 };
    let shape = TtShape::new(300, &[20, 15], &[1, 1], &[2]).unwrap();
    for spec in kinds() {
        let tables = [
            spec,
            TableSpec::new("few", one(299)),
            TableSpec::new("train", WeightsSpec::Tt { shape, dtype: Dtype::F32 }),
        ];
        let buf = build(&tables, 4, Values::Reals);
        let blob = Blob::parse(&buf).unwrap();
        let table = blob.table("t").unwrap();
        let dim = table.embedding_dim();
        let queries = vec![1.0; 2 * dim];
        let least = table.retrieval_workspace_len(1);
        assert!(table.retrieval_workspace_len(2) >= least);
        let scores = |queries: &[f32], rows, out: usize, workspace: usize| {
            let mut out = vec![7.0; out];
            let result = table.scores(queries, rows, &mut out, &mut vec![0.0; workspace]);
            assert!(result.is_ok() || out.iter().all(|&x| x == 7.0));
            result.unwrap_err()
        };
        let embedding_dim = dim;
        assert_eq!(
            scores(&queries[1..], 0..1, 1, least),
            RetrievalError::QueriesLen { found: 2 * dim - 1, embedding_dim }
        );
        let rows = |start, end| RetrievalError::Rows { start, end, num_embeddings: 300 };
        assert_eq!(scores(&queries, 0..301, 602, least), rows(0, 301));
        #[expect(clippy::reversed_empty_ranges, reason = "it is refused")]
        let reversed = 5..4;
        assert_eq!(scores(&queries, reversed, 0, least), rows(5, 4));
        assert_eq!(scores(&queries, u64::MAX..u64::MAX, 0, least), rows(u64::MAX, u64::MAX));
        assert_eq!(
            scores(&queries, 1..4, 5, least),
            RetrievalError::OutputLen { found: 5, expected: 6 }
        );
        assert_eq!(
            scores(&queries, 1..4, 6, least - 1),
            RetrievalError::WorkspaceLen { found: least - 1, expected: least }
        );

        let best = |search: &Search<'_>, out: usize| {
            let sentinel = Scored { index: 3, score: 7.0 };
            let mut out = vec![sentinel; out];
            let result = table.top_k(&queries, search, &mut out, &mut vec![0.0; least]);
            assert!(result.is_ok() || out.iter().all(|&row| row == sentinel));
            result
        };
        let search = Search::new(2);
        assert_eq!(best(&search, 4), Ok(()));
        assert_eq!(best(&Search::new(0), 0), Ok(()));
        assert_eq!(best(&search, 5), Err(RetrievalError::OutputLen { found: 5, expected: 4 }));
        assert_eq!(
            best(&Search::new(usize::MAX), 4),
            Err(RetrievalError::OutputLen { found: 4, expected: usize::MAX })
        );
        assert_eq!(best(&search.in_rows(0..301), 4), Err(rows(0, 301)));
        assert_eq!(best(&search.part(3, 3), 4), Err(RetrievalError::Part { part: 3, parts: 3 }));
        assert_eq!(best(&search.part(0, 0), 4), Err(RetrievalError::Part { part: 0, parts: 0 }));
        assert_eq!(best(&search.part(usize::MAX - 1, usize::MAX), 4), Ok(()));
        let without = |indices: &[i64], offsets: &[i64]| {
            best(&search.without(Bags::new(indices, offsets).unwrap()), 4)
        };
        assert_eq!(without(&[1, 1, 5], &[0, 3]), Ok(()));
        assert_eq!(
            without(&[1], &[0, 1, 1, 1]),
            Err(RetrievalError::ExcludedLists { found: 3, expected: 2 })
        );
        assert_eq!(
            without(&[1, 5, 4], &[0, 3]),
            Err(RetrievalError::ExcludedOrder { position: 2 })
        );
        let error = LookupError::NegativeIndex { position: 1, index: -1 };
        assert_eq!(without(&[5, -1], &[0, 1, 2]), Err(RetrievalError::ExcludedIndex(error)));
        for bias in ["few", "train"] {
            let found = best(&search.with_bias(blob.table(bias).unwrap()), 4).unwrap_err();
            assert!(found.to_string().contains("expected a dense table of 300 x 1"), "{found}");
        }
        // As much memory as the caller gives, not as a hostile count asks for.
        assert!(table.retrieval_workspace_len(usize::MAX) <= table.retrieval_workspace_len(64));
    }
    let lists = [Scored::NONE; 6];
    for (k, len) in [(4, 6), (0, 6), (3, 5)] {
        let result = merge_top_k(k, &mut [Scored::NONE; 6], &lists[..len]);
        assert_eq!(result, Err(RetrievalError::OutputLen { found: 6, expected: len }));
    }
    assert_eq!(merge_top_k(3, &mut [Scored::NONE; 6], &lists), Ok(()));
}
