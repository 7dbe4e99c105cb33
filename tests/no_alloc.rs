//! Parsing, looking up and pooling allocate nothing.

#[path = "it/support/counting.rs"]
mod counting;
#[path = "it/support/mod.rs"]
mod support;

use counting::allocator_calls;
use std::hint::black_box;
use ttrec::{
    AlignedBytes, Bags, Blob, Pooling, Scored, Search, Tier, cache::RowCache, include_blob,
    merge_top_k,
};

#[test]
fn the_counter_counts() {
    assert_eq!(allocator_calls(|| ()), 0);
    assert_eq!(allocator_calls(|| drop(black_box(Box::new(1)))), 2);
    assert_eq!(allocator_calls(|| drop(black_box(vec![0u8; 100]))), 2);
    let mut grown = Vec::with_capacity(1);
    assert_eq!(allocator_calls(|| grown.resize(1000, 1u8)), 1);
}

/// Dense features of any model here.
const DENSE: [f32; 64] = [0.5; 64];

/// Everything there is on the lookup path, and the errors on it. Returns the number of tables seen.
fn assert_no_allocation(bytes: &[u8]) -> usize {
    let mut workspace = vec![0.0; 1 << 14];
    let mut out = vec![0.0; 1 << 10];
    let (mut queries, mut scores) = (vec![0.0; 1 << 10], vec![0.0; 1000]);
    let (mut best, mut large) = ([Scored::NONE; 14], vec![0.0; 1 << 18]);
    let mut many = [0; 600];
    let mut memory = vec![0.0; 1 << 14];
    let mut num_tables = 0;
    let calls = allocator_calls(|| {
        let blob = Blob::parse(bytes).unwrap();
        blob.verify_payload().unwrap();
        assert!(blob.table("no such table").is_err());
        assert!(Blob::parse(&bytes[..bytes.len() - 1]).is_err());
        let on_every_tier = |name| Tier::available().map(move |tier| (name, tier));
        for (name, tier) in blob.tables().flat_map(|table| on_every_tier(table.name())) {
            let table = blob.table(name).unwrap().with_tier(tier);
            let (n, dim) = (table.num_embeddings(), table.embedding_dim());
            // Every row, overridden or not; then one too many.
            for row in 0..n {
                table.lookup(row, &mut out[..dim], &mut workspace).unwrap();
            }
            assert!(table.lookup(n, &mut out[..dim], &mut workspace).is_err());
            queries.fill(0.5);
            let rows = 0..n.min(500);
            let scores = &mut scores[..2 * rows.end as usize];
            table.scores(&queries[..2 * dim], rows, scores, &mut large).unwrap();
            let known = [0, n - 1];
            let search = Search::new(7).without(Bags::new(&known, &[0, 2]).unwrap());
            table.top_k(&queries[..2 * dim], &search, &mut best, &mut large).unwrap();
            let others = best;
            merge_top_k(7, &mut best, &others).unwrap();
            assert!(table.top_k(&queries[1..2 * dim], &search, &mut best, &mut large).is_err());
            let last = n - 1;
            let indices = [0, last, last, n / 2];
            let wide = Bags::new(&indices, &[0, 2, 2, 4]).unwrap();
            let indices = indices.map(|index| index as u32);
            let narrow = Bags::new(&indices, &[0, 2, 2, 4]).unwrap();
            for pooling in [Pooling::Sum, Pooling::Mean, Pooling::Max] {
                table.pool(&wide, pooling, &mut out[..3 * dim], &mut workspace).unwrap();
                table.pool(&narrow, pooling, &mut out[..3 * dim], &mut workspace).unwrap();
            }
            let weighted = narrow.with_per_sample_weights(&[0.5, 1.0, 1.5, 2.0]).unwrap();
            table
                .pool(&weighted, Pooling::Sum, &mut out[..3 * dim], &mut workspace)
                .unwrap();
            assert!(
                table
                    .pool(&weighted, Pooling::Max, &mut out[..3 * dim], &mut workspace)
                    .is_err()
            );
            // Enough lookups to be sorted every way there is, in one go or, with the least
            // workspace, in several.
            (0..).zip(&mut many).for_each(|(i, row)| *row = (i * i / 3) % n);
            let batch = Bags::new(&many, &[0, 40, 100, 600]).unwrap();
            let mut cache = RowCache::new(&table, &mut memory).unwrap();
            cache.record(&many);
            cache.refresh(&mut workspace).unwrap();
            for (table, workspace_len) in [
                (table, table.workspace_len(1)),
                (table, table.workspace_len(many.len())),
                (cache.table(), table.workspace_len(many.len())),
            ] {
                let workspace = &mut workspace[..workspace_len];
                for pooling in [Pooling::Sum, Pooling::Mean, Pooling::Max] {
                    table.pool(&batch, pooling, &mut out[..3 * dim], workspace).unwrap();
                    table
                        .pool(&batch.sequential(), pooling, &mut out[..3 * dim], workspace)
                        .unwrap();
                }
            }
        }
        if let Ok(ranker) = blob.ranker() {
            for tier in Tier::available() {
                let ranker = ranker.with_tier(tier);
                let bags = [Bags::new(&[0u64, 1, 2], &[0, 1, 1, 3]).unwrap(); 8];
                let bags = &bags[..ranker.num_tables()];
                let (dense, scores) = (&DENSE[..3 * ranker.num_dense()], &mut out[..3]);
                for len in [ranker.workspace_len(1), ranker.workspace_len(3)] {
                    ranker.score(dense, bags, scores, &mut workspace[..len]).unwrap();
                    ranker.logits(dense, bags, scores, &mut workspace[..len]).unwrap();
                    ranker
                        .rank(&dense[..ranker.num_dense()], bags, scores, &mut workspace[..len])
                        .unwrap();
                }
                assert!(ranker.score(dense, bags, scores, &mut []).is_err());
            }
        }
        num_tables = blob.num_tables();
        black_box(&out);
    });
    assert_eq!(calls, 0);
    num_tables
}

static TWO_TABLES: &AlignedBytes = include_blob!("golden/two_tables.ttr");

#[test]
fn the_golden_blob_is_read_without_allocation() {
    assert_eq!(assert_no_allocation(TWO_TABLES), 2);
}

#[cfg(feature = "alloc")]
#[test]
fn every_representation_and_dtype_is_read_without_allocation() {
    use support::{format, oracle::Reference};

    let (mut kinds, mut maps) =
        (std::collections::BTreeSet::new(), std::collections::BTreeSet::new());
    for buf in support::random::one_of_each() {
        let num_tables = assert_no_allocation(&buf);
        for position in 0..num_tables {
            let reference = Reference::new(&buf, position);
            kinds.insert((reference.kind(), reference.dtype()));
            maps.insert((reference.index_map(), reference.kind()));
            let overrides = format::sections_of(&buf, position);
            let overrides = overrides.iter().filter(|s| s.role == format::ROLE_OVERRIDE_ROWS);
            kinds.extend(overrides.map(|s| (format::KIND_DENSE, s.dtype)));
        }
    }
    assert_eq!(
        kinds.len(),
        5 + 4 + 4 + 3 + 3,
        "dense in five dtypes, tensor trains and books in four, the others in three"
    );
    assert_eq!(maps.len(), 5 + 4 + 4, "every kind, and four of them with each index map");
}
