//! Several tables pooled in one call: each has the bits that it has alone, and nothing is written
//! when anything is wrong.

use crate::support::random::one_of_each;
use ttrec::{Bags, Blob, LookupError, PoolTablesError, Pooling, Table, Tier, bag::pool_tables};

const NUM_BAGS: usize = 60;
const SENTINEL: f32 = -7.0e37;

/// Bags of 0 to 3 rows: enough lookups to be sorted.
fn bags_of(table: &Table<'_>, seed: u64) -> (Vec<u64>, Vec<u64>) {
    let mut offsets = vec![0];
    offsets.extend((0..NUM_BAGS as u64).scan(0, |end, bag| {
        *end += (bag + seed) % 4;
        Some(*end)
    }));
    let indices = (0..offsets[NUM_BAGS])
        .map(|position| (position * 7919 + seed) % table.num_embeddings())
        .collect();
    (indices, offsets)
}

#[test]
fn tables_pooled_together_have_the_bits_they_have_alone() {
    for buf in one_of_each() {
        let blob = Blob::parse(&buf).unwrap();
        for tier in Tier::available() {
            let tables: Vec<Table<'_>> = blob.tables().map(|table| table.with_tier(tier)).collect();
            let lists: Vec<_> =
                tables.iter().zip(0..).map(|(table, seed)| bags_of(table, seed)).collect();
            let bags = |t: usize| Bags::new(&lists[t].0, &lists[t].1).unwrap();
            let together: Vec<_> =
                tables.iter().enumerate().map(|(t, table)| (table, bags(t))).collect();
            let width: usize = tables.iter().map(Table::embedding_dim).sum();
            let workspace_len =
                tables.iter().map(|table| table.workspace_len(2 * NUM_BAGS)).max().unwrap();
            for pooling in [Pooling::Sum, Pooling::Mean, Pooling::Max] {
                let mut out = vec![SENTINEL; NUM_BAGS * width];
                pool_tables(&together, pooling, &mut out, &mut vec![f32::NAN; workspace_len])
                    .unwrap();
                let mut first = 0;
                for (table, bags) in &together {
                    let dim = table.embedding_dim();
                    let mut alone = vec![f32::NAN; NUM_BAGS * dim];
                    table
                        .pool(bags, pooling, &mut alone, &mut vec![0.0; table.workspace_len(1)])
                        .unwrap();
                    for (row, alone) in out.chunks_exact(width).zip(alone.chunks_exact(dim)) {
                        assert_eq!(row[first..first + dim], *alone, "{} {pooling:?}", table.name());
                    }
                    first += dim;
                }
                assert_eq!(first, width);
            }
        }
    }
}

#[test]
fn no_bags_of_several_tables_need_no_output() {
    for buf in one_of_each() {
        let tables: Vec<Table<'_>> = Blob::parse(&buf).unwrap().tables().collect();
        let none = Bags::new(&[], &[0u32]).unwrap();
        let lists: Vec<_> = tables.iter().map(|table| (*table, none)).collect();
        let workspace_len = tables.iter().map(|table| table.workspace_len(1)).max().unwrap();
        pool_tables(&lists, Pooling::Sum, &mut [], &mut vec![0.0; workspace_len]).unwrap();
    }
}

#[test]
fn whatever_is_wrong_with_a_table_is_said_and_nothing_is_written() {
    let blobs = one_of_each();
    let blob = Blob::parse(&blobs[0]).unwrap();
    let (first, tt) = (blob.tables().next().unwrap(), blob.tables().last().unwrap());
    assert!(tt.workspace_len(1) > 0, "a tensor train comes last");
    let width = first.embedding_dim() + tt.embedding_dim();
    let refused = |lists: [&[u64]; 2], offsets: [&[u64]; 2], out_len, workspace_len| {
        let bags = |t: usize| Bags::new(lists[t], offsets[t]).unwrap();
        let mut out = vec![SENTINEL; out_len];
        let mut workspace = vec![0.0; workspace_len];
        let error =
            pool_tables(&[(first, bags(0)), (tt, bags(1))], Pooling::Sum, &mut out, &mut workspace)
                .unwrap_err();
        assert!(out.iter().all(|&x| x == SENTINEL), "{error}");
        error
    };
    let enough = tt.workspace_len(1);
    let error = refused([&[0, 1], &[0]], [&[0, 1, 2], &[0, 1]], 2 * width, enough);
    assert_eq!(
        error,
        PoolTablesError { table: Some(1), error: LookupError::NumBags { found: 1, expected: 2 } }
    );
    let error = refused([&[0], &[0]], [&[0, 1], &[0, 1]], width + 1, enough);
    assert_eq!(error.error, LookupError::OutputLen { found: width + 1, expected: width });
    let error = refused([&[0], &[0]], [&[0, 1], &[0, 1]], width, enough - 1);
    assert_eq!(
        error,
        PoolTablesError {
            table: Some(1),
            error: LookupError::WorkspaceLen { found: enough - 1, expected: enough }
        }
    );
    let n = tt.num_embeddings();
    let error = refused([&[0], &[n]], [&[0, 1], &[0, 1]], width, enough);
    assert_eq!(error.table, Some(1));
    assert_eq!(
        error.error,
        LookupError::IndexOutOfRange { position: 0, index: n, num_embeddings: n }
    );
    assert!(error.to_string().starts_with("table 1: index "), "{error}");
    pool_tables::<&Table<'_>>(&[], Pooling::Sum, &mut [], &mut []).unwrap();
}
