//! The row cache. The rows that it holds are compared with counts of the requests, and its results
//! with a blob that has the same rows as overrides, and with the table without a cache.

use crate::support::{
    format,
    random::{Values, build},
    rng::Rng,
};
use std::collections::HashMap;
use ttrec::{
    AlignedBuf, Bags, Blob, LookupError, Pooling, Table, Tier, TtShape,
    blob::{Layout, OverridesSpec, Role, TableSpec, WeightsSpec},
    cache::RowCache,
    dtype::Dtype,
};

const SET: usize = 32;

fn tt(num_embeddings: u64, p: &[u32], q: &[u32], r: &[u32], dtype: Dtype) -> WeightsSpec {
    WeightsSpec::Tt { shape: TtShape::new(num_embeddings, p, q, r).unwrap(), dtype }
}

fn spec(weights: WeightsSpec, overrides: u64) -> TableSpec {
    let overrides =
        (overrides > 0).then_some(OverridesSpec { count: overrides, dtype: Dtype::F32 });
    TableSpec { overrides, ..TableSpec::new("t", weights) }
}

fn blob_of(weights: WeightsSpec, overrides: u64) -> AlignedBuf {
    build(&[spec(weights, overrides)], 7, Values::Reals)
}

/// The table of `buf` with these rows, as it computes them, as overrides.
fn with_overrides(buf: &[u8], weights: WeightsSpec, rows: &[u64], tier: Tier) -> AlignedBuf {
    let table = Blob::parse(buf).unwrap().table("t").unwrap().with_tier(tier);
    // The other sections are in the same order in both blobs.
    let override_roles =
        [format::ROLE_OVERRIDE_IDS, format::ROLE_OVERRIDE_INDEX, format::ROLE_OVERRIDE_ROWS];
    let mut rest = format::sections_of(buf, 0)
        .into_iter()
        .filter(|section| !override_roles.contains(&section.role));
    Layout::new(&[spec(weights, rows.len() as u64)])
        .unwrap()
        .build(|plan, out| match plan.role {
            Role::OverrideIds => {
                out.chunks_exact_mut(8)
                    .zip(rows)
                    .for_each(|(out, row)| out.copy_from_slice(&row.to_le_bytes()));
            }
            Role::OverrideIndex => format::fill_id_index(rows, table.num_embeddings(), out),
            Role::OverrideRows => {
                let mut row_out = vec![0.0; table.embedding_dim()];
                for (out, &row) in out.chunks_exact_mut(4 * table.embedding_dim()).zip(rows) {
                    table
                        .lookup(row, &mut row_out, &mut vec![0.0; table.workspace_len(1)])
                        .unwrap();
                    out.chunks_exact_mut(4)
                        .zip(&row_out)
                        .for_each(|(out, x)| out.copy_from_slice(&x.to_le_bytes()));
                }
            }
            _ => out.copy_from_slice(&buf[rest.next().unwrap().range()]),
        })
}

fn pool(
    table: &Table<'_>,
    (indices, offsets): &(Vec<u64>, Vec<u64>),
    mode: usize,
    sequential: bool,
) -> Vec<u32> {
    let bags = Bags::new(indices, offsets).unwrap();
    let weights: Vec<f32> = (0..indices.len()).map(|at| at as f32 * 0.37 - 3.0).collect();
    let (bags, pooling) = match mode {
        0 => (bags, Pooling::Sum),
        1 => (bags, Pooling::Mean),
        2 => (bags, Pooling::Max),
        _ => (bags.with_per_sample_weights(&weights).unwrap(), Pooling::Sum),
    };
    let bags = if sequential { bags.sequential() } else { bags };
    let mut out = vec![f32::NAN; bags.len() * table.embedding_dim()];
    table
        .pool(&bags, pooling, &mut out, &mut vec![0.0; table.workspace_len(indices.len())])
        .unwrap();
    out.iter().map(|x| x.to_bits()).collect()
}

/// Rows of which the low ones are asked for more.
fn skewed(rng: &mut Rng, num_embeddings: u64) -> u64 {
    let bound = 1 + rng.below(num_embeddings);
    rng.below(bound)
}

#[test]
fn results_have_the_bits_of_rows_stored_apart_and_in_index_order_of_no_cache() {
    let shapes = [
        (tt(990, &[10, 10, 10], &[2, 2, 4], &[16, 40], Dtype::F32), true),
        (tt(1000, &[10, 10, 10], &[4, 4, 4], &[16, 17], Dtype::I8), true),
        // The rows of these are always added in the order of the indices.
        (tt(1000, &[40, 25], &[4, 8], &[7], Dtype::F16), false),
        (WeightsSpec::Dense { num_embeddings: 700, embedding_dim: 19, dtype: Dtype::I4 }, false),
    ];
    for (weights, is_reordered) in shapes {
        let buf = blob_of(weights, 0);
        for tier in Tier::available() {
            let plain = Blob::parse(&buf).unwrap().table("t").unwrap().with_tier(tier);
            let (n, mut rng) = (plain.num_embeddings(), Rng::new(3));
            let mut memory = vec![f32::NAN; RowCache::memory_len(&plain, 3 * SET)];
            let mut cache = RowCache::new(&plain, &mut memory).unwrap();
            for _ in 0..4 {
                let indices: Vec<u64> = (0..500).map(|_| skewed(&mut rng, n)).collect();
                cache.record(&indices);
                cache.refresh(&mut vec![0.0; plain.workspace_len(1)]).unwrap();
            }
            let rows: Vec<u64> = (0..n).filter(|&row| cache.contains(row)).collect();
            assert_eq!(rows.len(), 3 * SET, "all of it is in use");
            let overridden = with_overrides(&buf, weights, &rows, tier);
            let overridden = Blob::parse(&overridden).unwrap().table("t").unwrap().with_tier(tier);
            let cached = cache.table();
            assert_eq!(cached.tier(), tier);

            let indices: Vec<u64> = (0..800).map(|_| skewed(&mut rng, n)).collect();
            let bags = (indices, vec![0, 0, 1, 20, 60, 61, 400, 800]);
            let mut moved = 0;
            for mode in 0..4 {
                let with_cache = pool(&cached, &bags, mode, false);
                assert_eq!(with_cache, pool(&overridden, &bags, mode, false), "mode {mode}");
                let in_order = pool(&plain, &bags, mode, true);
                assert_eq!(
                    pool(&cached, &bags, mode, true),
                    in_order,
                    "in index order, mode {mode}"
                );
                moved += usize::from(with_cache != in_order);
                if mode == 2 {
                    assert_eq!(with_cache, in_order, "maxima");
                }
            }
            assert_eq!(moved > 0, is_reordered, "whether the order of sums mattered");
            let (mut found, mut expected) =
                (vec![0.0; plain.embedding_dim()], vec![0.0; plain.embedding_dim()]);
            for row in 0..n {
                cached.lookup(row, &mut found, &mut vec![0.0; plain.workspace_len(1)]).unwrap();
                plain
                    .lookup(row, &mut expected, &mut vec![0.0; plain.workspace_len(1)])
                    .unwrap();
                assert_eq!(found, expected, "row {row}");
            }
        }
    }
}

#[test]
fn rows_stored_apart_are_never_cached_and_keep_their_place_in_a_sum() {
    let weights = tt(990, &[10, 10, 10], &[2, 2, 4], &[5, 6], Dtype::F32);
    let buf = blob_of(weights, 200);
    let table = Blob::parse(&buf).unwrap().table("t").unwrap();
    let stored: Vec<u64> = table.data().overrides().unwrap().ids().to_vec();
    let mut memory = vec![0.0; RowCache::memory_len(&table, 500)];
    let mut cache = RowCache::new(&table, &mut memory).unwrap();
    let all: Vec<u64> = (0..990).collect();
    cache.record(&all);
    assert_eq!(cache.statistics().lookups, 990 - 200);
    cache.refresh(&mut vec![0.0; table.workspace_len(1)]).unwrap();
    assert!(stored.iter().all(|&row| !cache.contains(row)));
    assert!(all.iter().filter(|&&row| cache.contains(row)).count() > 300);

    // Bags of overridden, cached and other rows: the same bits as if the cached rows were
    // overrides.
    let rows: Vec<u64> = all
        .iter()
        .copied()
        .filter(|&row| stored.contains(&row) || cache.contains(row))
        .collect();
    let both = with_overrides(&buf, weights, &rows, table.tier());
    let both = Blob::parse(&both).unwrap().table("t").unwrap();
    let mut rng = Rng::new(1);
    let indices: Vec<u64> = (0..700).map(|_| rng.below(990)).collect();
    let bags = (indices, (0..=7).map(|bag| 100 * bag).collect());
    for mode in 0..4 {
        assert_eq!(
            pool(&cache.table(), &bags, mode, false),
            pool(&both, &bags, mode, false),
            "mode {mode}"
        );
    }
}

#[test]
fn another_tier_looks_into_a_cache_if_its_rows_have_the_same_bits() {
    for dtype in [Dtype::F32, Dtype::I8] {
        let buf = blob_of(tt(990, &[10, 10, 10], &[2, 2, 4], &[5, 6], dtype), 0);
        let of_blob = Blob::parse(&buf).unwrap().table("t").unwrap();
        let all: Vec<u64> = (0..990).collect();
        let bags = (all.clone(), vec![0, 990]);
        for filled_by in Tier::available() {
            let table = of_blob.with_tier(filled_by);
            let mut memory = vec![0.0; RowCache::memory_len(&table, 2000)];
            let mut cache = RowCache::new(&table, &mut memory).unwrap();
            cache.record(&all);
            cache.refresh(&mut vec![0.0; table.workspace_len(1)]).unwrap();
            for tier in Tier::available() {
                let (cached, plain) = (cache.table().with_tier(tier), of_blob.with_tier(tier));
                assert_eq!(
                    pool(&cached, &bags, 2, false),
                    pool(&plain, &bags, 2, false),
                    "{filled_by:?} {tier:?}"
                );
                let (mut found, mut expected) = ([0.0; 16], [0.0; 16]);
                for row in 0..990 {
                    cached.lookup(row, &mut found, &mut vec![0.0; plain.workspace_len(1)]).unwrap();
                    plain
                        .lookup(row, &mut expected, &mut vec![0.0; plain.workspace_len(1)])
                        .unwrap();
                    assert_eq!(
                        found, expected,
                        "row {row}, filled by {filled_by:?}, read by {tier:?}"
                    );
                }
            }
            // A cache for a table that has one is a cache for the table.
            let mut memory = vec![0.0; RowCache::memory_len(&table, 1)];
            let second = RowCache::new(&cache.table(), &mut memory).unwrap();
            assert_eq!(pool(&second.table(), &bags, 0, false), pool(&table, &bags, 0, false));
        }
    }
}

#[test]
fn the_last_row_that_has_a_place_in_a_set_is_cached_and_those_after_it_are_not() {
    let buf = blob_of(tt(1 << 33, &[1 << 16, 1 << 17], &[1, 1], &[1], Dtype::F32), 0);
    let table = Blob::parse(&buf).unwrap().table("t").unwrap();
    let mut memory = vec![0.0; RowCache::memory_len(&table, 1)];
    let mut cache = RowCache::new(&table, &mut memory).unwrap();
    let last = u64::from(u32::MAX) - 1;
    let rows = [0, last, last + 1, last + 2, (1 << 33) - 1];
    for _ in 0..3 {
        cache.record(&rows);
        cache.refresh(&mut vec![0.0; table.workspace_len(1)]).unwrap();
    }
    assert_eq!(rows.map(|row| cache.contains(row)), [true, true, false, false, false]);
    assert_eq!((cache.statistics().lookups, cache.statistics().hits), (15, 4));
    let (mut found, mut expected) = ([0.0], [0.0]);
    for row in rows {
        cache
            .table()
            .lookup(row, &mut found, &mut vec![0.0; table.workspace_len(1)])
            .unwrap();
        table
            .lookup(row, &mut expected, &mut vec![0.0; table.workspace_len(1)])
            .unwrap();
        assert_eq!(found, expected, "row {row}");
    }
}

#[test]
fn what_is_asked_for_most_is_kept_and_what_no_longer_is_goes() {
    let buf =
        blob_of(WeightsSpec::Dense { num_embeddings: 64, embedding_dim: 1, dtype: Dtype::F32 }, 0);
    let table = Blob::parse(&buf).unwrap().table("t").unwrap();
    let mut memory = vec![0.0; RowCache::memory_len(&table, 1)];
    let mut cache = RowCache::new(&table, &mut memory).unwrap();
    assert_eq!(cache.capacity(), SET);
    // No more rows than a set knows: all counts are exact. Row i is asked for 1 + 29 i mod 61
    // times, by turns.
    let mut counts = HashMap::new();
    for round in 0..61u32 {
        let asked: Vec<u32> = (0..60).filter(|row| row * 29 % 61 >= round).collect();
        cache.record(&asked);
        asked.iter().for_each(|&row| *counts.entry(row).or_insert(0) += 1);
    }
    let statistics = cache.statistics();
    assert_eq!((statistics.lookups, statistics.hits), (counts.values().sum(), 0));
    assert_eq!(cache.refresh(&mut []), Ok(SET));
    let mut by_count: Vec<u32> = (0..60).collect();
    by_count.sort_by_key(|row| std::cmp::Reverse(counts[row]));
    for (place, &row) in by_count.iter().enumerate() {
        assert_eq!(
            cache.contains(row.into()),
            place < SET,
            "row {row}, asked for {} times",
            counts[&row]
        );
    }
    assert_eq!(cache.refresh(&mut []), Ok(0), "nothing has changed");

    cache.reset_statistics();
    cache.record(&by_count);
    assert_eq!((cache.statistics().lookups, cache.statistics().hits), (60, 32));
    // Counts have been halved twice, from at most 61: who is asked for 100 times from now on is in.
    let late = by_count[SET..].to_vec();
    (0..100).for_each(|_| cache.record(&late));
    assert_eq!(cache.refresh(&mut []), Ok(60 - SET));
    assert!(late.iter().all(|&row| cache.contains(row.into())));
}

/// Whether the next row is one of the `hot` most popular ones is known in advance: as a share of
/// all.
fn zipf_share(hot: usize, all: usize) -> f64 {
    let sum = |n: usize| (1..=n).map(|k| 1.0 / k as f64).sum::<f64>();
    sum(hot) / sum(all)
}

#[test]
fn skewed_traffic_hits_nearly_as_often_as_it_could_and_again_after_it_has_changed() {
    const ROWS: usize = 20_000;
    let buf = blob_of(
        WeightsSpec::Dense { num_embeddings: ROWS as u64, embedding_dim: 1, dtype: Dtype::I8 },
        0,
    );
    let table = Blob::parse(&buf).unwrap().table("t").unwrap();
    let mut memory = vec![0.0; RowCache::memory_len(&table, 800)];
    let mut cache = RowCache::new(&table, &mut memory).unwrap();
    let best = zipf_share(cache.capacity(), ROWS);
    let cumulative: Vec<f64> = (1..=ROWS)
        .scan(0.0, |sum, k| {
            *sum += 1.0 / k as f64;
            Some(*sum)
        })
        .collect();
    let mut rng = Rng::new(5);
    for popularity in [1, 7919] {
        for batch in 0..60 {
            let mut draw = || {
                let at = rng.below(1 << 53) as f64 / (1u64 << 53) as f64 * cumulative[ROWS - 1];
                (cumulative.partition_point(|&sum| sum < at) * popularity % ROWS) as u32
            };
            let indices: Vec<u32> = (0..5000).map(|_| draw()).collect();
            if batch == 50 {
                cache.reset_statistics();
            }
            cache.record(&indices);
            if batch % 3 == 0 {
                cache.refresh(&mut []).unwrap();
            }
        }
        let found = cache.statistics().hit_rate();
        assert!(found > 0.9 * best, "popularity {popularity}: {found}, of {best} at best");
        assert!(
            found < 1.1 * best,
            "popularity {popularity}: {found} is more than possible, {best}"
        );
    }
}

#[test]
fn memory_and_workspace_are_checked_and_unknown_rows_ignored() {
    let buf = blob_of(tt(990, &[10, 10, 10], &[2, 2, 4], &[5, 6], Dtype::F32), 0);
    let table = Blob::parse(&buf).unwrap().table("t").unwrap();
    let of_set = RowCache::memory_len(&table, 1);
    assert_eq!(of_set, SET * (16 + 4));
    assert_eq!(RowCache::memory_len(&table, 0), 0);
    assert_eq!(RowCache::memory_len(&table, SET + 1), 2 * of_set);
    assert_eq!(RowCache::memory_len(&table, usize::MAX), usize::MAX);
    for found in [0, 1, of_set - 1] {
        let refused = RowCache::new(&table, &mut vec![0.0; found]).map(|_| ()).unwrap_err();
        assert_eq!(refused, LookupError::CacheLen { found, expected: of_set });
        assert_eq!(
            refused.to_string(),
            format!("cache memory of {found} elements: expected at least {of_set}")
        );
    }
    let mut memory = vec![0.0; 3 * of_set - 1];
    let mut cache = RowCache::new(&table, &mut memory).unwrap();
    assert_eq!(cache.capacity(), 2 * SET);
    cache.record(&[990u64, u64::from(u32::MAX), u64::MAX, 1 << 32]);
    assert_eq!(cache.statistics().lookups, 0);
    assert_eq!(cache.statistics().hit_rate(), 0.0);
    cache.record(&[1u32, 1]);
    let expected = table.workspace_len(1);
    let short = cache.refresh(&mut vec![0.0; expected - 1]);
    assert_eq!(short, Err(LookupError::WorkspaceLen { found: expected - 1, expected }));
    assert!(!cache.contains(1));
    assert_eq!(cache.refresh(&mut vec![0.0; table.workspace_len(1)]), Ok(1));
    assert!(
        cache.contains(1)
            && !cache.contains(990)
            && !cache.contains(u32::MAX.into())
            && !cache.contains(1 << 32)
    );
}
