//! Lookups and bags through the C entry points allocate nothing, and neither do their failures.

#![allow(
    clippy::undocumented_unsafe_blocks,
    clippy::multiple_unsafe_ops_per_block,
    reason = "calls of the C ABI, with pointers to live vectors"
)]

#[path = "../../tests/it/support/counting.rs"]
mod counting;
#[path = "it/support/mod.rs"]
mod support;

use counting::allocator_calls;
use std::ptr;
use support::{DLRM, Open, TWO_TABLES, dim, u32_bags, workspace_len};
use ttrec_capi::{abi::*, ttrec_status as Status};

#[test]
fn calls_allocate_nothing_whether_they_succeed_or_fail() {
    let mut open = None;
    assert!(
        allocator_calls(|| open = Some(Open::borrowed(TWO_TABLES).unwrap())) > 1,
        "the counter counts"
    );
    let open = open.unwrap();
    let tables = open.tables();
    let (indices, offsets) = ([1u32, 2, 3, 19], [0u32, 2, 4]);
    let bags = [*u32_bags(&indices, &offsets, None); 32];
    let wrong = *u32_bags(&[u32::MAX; 4], &offsets, None);
    let many = [tables[0]; 32];
    let width: usize = dim(tables[0]);
    let mut out = vec![0.0; 2 * 32 * width];
    let mut workspace =
        vec![0.0; tables.iter().map(|&table| workspace_len(table)).max().unwrap() + 1000];
    let (out, workspace, len) = (out.as_mut_ptr(), workspace.as_mut_ptr(), workspace.len());
    let calls = allocator_calls(|| unsafe {
        for &table in &tables {
            let dim = dim(table);
            assert_eq!(ttrec_table_lookup(table, 7, out, dim, workspace, len), Status::Ok);
            assert_eq!(
                ttrec_table_lookup(table, u64::MAX, out, dim, workspace, len),
                Status::IndexOutOfRange
            );
            for pooling in 0..3 {
                assert_eq!(
                    ttrec_table_bag(table, &bags[0], pooling, out, 2 * dim, workspace, len),
                    Status::Ok
                );
                let status = ttrec_table_bag(table, &wrong, pooling, out, 2 * dim, workspace, len);
                assert_eq!(status, Status::IndexOutOfRange);
            }
            assert_eq!(
                ttrec_table_bag(ptr::null(), &bags[0], 0, out, 2 * dim, workspace, len),
                Status::Null
            );
        }
        let all = 2 * 32 * width;
        assert_eq!(
            ttrec_pool_tables(many.as_ptr(), bags.as_ptr(), 32, 0, out, all, workspace, len),
            Status::Ok
        );
        assert_eq!(
            ttrec_pool_tables(many.as_ptr(), bags.as_ptr(), 31, 0, out, all, workspace, len),
            Status::Length
        );
    });
    assert_eq!(calls, 0);
}

#[test]
fn scores_allocate_nothing_whether_they_succeed_or_fail() {
    let open = Open::borrowed(DLRM).unwrap();
    let ranker = open.ranker().unwrap();
    let bags = [*u32_bags(&[1, 2, 39], &[0, 2, 3], None); 4];
    let wrong = [*u32_bags(&[u32::MAX; 3], &[0, 2, 3], None); 4];
    let (dense, mut out) = ([0.5; 26], [0.0; 2]);
    let mut workspace = vec![0.0; unsafe { ttrec_ranker_batch_workspace_len(ranker, 2) }];
    let (out, workspace, len) = (out.as_mut_ptr(), workspace.as_mut_ptr(), workspace.len());
    let calls = allocator_calls(|| {
        for scorer in
            [ttrec_ranker_score, ttrec_ranker_logits, ttrec_ranker_rank] as [support::Scorer; 3]
        {
            let call = |bags: &[_], len| unsafe {
                scorer(
                    ranker,
                    dense.as_ptr(),
                    dense.len(),
                    bags.as_ptr(),
                    bags.len(),
                    out,
                    2,
                    workspace,
                    len,
                )
            };
            assert_eq!(call(&bags, len), Status::Ok);
            assert_eq!(call(&wrong, len), Status::IndexOutOfRange);
            assert_eq!(call(&bags[..3], len), Status::Length);
            assert_eq!(call(&bags, 1), Status::Length);
        }
    });
    assert_eq!(calls, 0);
}
