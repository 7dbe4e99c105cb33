//! Scores and the best rows through the C functions: wrong arguments are refused and leave the
//! outputs unmodified; with correct ones the results have the library's bits.

#![allow(
    clippy::undocumented_unsafe_blocks,
    clippy::multiple_unsafe_ops_per_block,
    reason = "calls of the C ABI, with pointers to live vectors, or deliberately wrong ones"
)]

use crate::support::{
    Open, TWO_TABLES, dim, i64_bags, last_error, num_embeddings, output, u32_bags,
};
use std::ptr;
use ttrec::{Bags, Blob, Scored, Search};
use ttrec_capi::{
    abi::*, ttrec_bags, ttrec_scored, ttrec_search, ttrec_status as Status, ttrec_table,
};

fn queries(table: *const ttrec_table, count: usize) -> Vec<f32> {
    (0..count * dim(table)).map(|i| (i % 7) as f32 - 2.5).collect()
}

fn scores(
    table: *const ttrec_table,
    queries: &[f32],
    rows: (u64, u64),
    len: usize,
) -> Result<Vec<f32>, Status> {
    let workspace_len = unsafe { ttrec_table_retrieval_workspace_len(table, 1) };
    output(len, workspace_len, |out, len, workspace, workspace_len| unsafe {
        let (data, queries_len) = (queries.as_ptr(), queries.len());
        ttrec_table_scores(
            table,
            data,
            queries_len,
            rows.0,
            rows.1,
            out,
            len,
            workspace,
            workspace_len,
        )
    })
}

const SENTINEL: ttrec_scored = ttrec_scored { index: 77, score: -7.0 };

fn pairs(rows: &[ttrec_scored]) -> Vec<(u64, u32)> {
    rows.iter().map(|row| (row.index, row.score.to_bits())).collect()
}

/// What ttrec_table_top_k() writes; nothing, if it fails.
fn top_k(
    table: *const ttrec_table,
    queries: &[f32],
    search: &ttrec_search,
    len: usize,
) -> Result<Vec<(u64, u32)>, Status> {
    let mut out = vec![SENTINEL; len + 2];
    let mut workspace = vec![0.0; unsafe { ttrec_table_retrieval_workspace_len(table, 1) }];
    let status = unsafe {
        ttrec_table_top_k(
            table,
            queries.as_ptr(),
            queries.len(),
            search,
            out[1..].as_mut_ptr(),
            len,
            workspace.as_mut_ptr(),
            workspace.len(),
        )
    };
    let out = pairs(&out);
    let untouched = pairs(&[SENTINEL])[0];
    assert!(out[0] == untouched && out[len + 1] == untouched, "wrote around the output");
    if status == Status::Ok {
        return Ok(out[1..=len].to_vec());
    }
    assert!(out.iter().all(|&row| row == untouched), "a call that failed wrote: {status:?}");
    Err(status)
}

#[track_caller]
fn refused<T: std::fmt::Debug>(found: Result<T, Status>, status: Status, said: &str) {
    assert_eq!(found.unwrap_err(), status, "{}", last_error());
    assert!(last_error().contains(said), "{}", last_error());
}

#[test]
fn results_have_the_bits_of_the_library() {
    let open = Open::borrowed(TWO_TABLES).unwrap();
    let blob = Blob::parse(TWO_TABLES).unwrap();
    for name in ["item", "user"] {
        let (table, library) = (open.table(name), blob.table(name).unwrap());
        let queries = queries(table, 3);
        let mut workspace = vec![0.0; library.retrieval_workspace_len(3)];
        let mut expected = vec![0.0; 3 * 11];
        library.scores(&queries, 4..15, &mut expected, &mut workspace).unwrap();
        assert_eq!(scores(table, &queries, (4, 11), 33).unwrap(), expected);

        let lists = Bags::new(&[1i64, 2, 9], &[0, 1, 2, 3]).unwrap();
        let search = Search::new(6).without(lists).in_rows(0..17);
        let mut expected = [Scored::NONE; 18];
        library.top_k(&queries, &search, &mut expected, &mut workspace).unwrap();
        let expected: Vec<(u64, u32)> =
            expected.iter().map(|row| (row.index, row.score.to_bits())).collect();
        let lists = i64_bags(&[1, 2, 9], &[0, 1, 2, 3], None);
        let whole =
            ttrec_search { end_row: 17, excluded: &raw const *lists, ..ttrec_search_best(6) };
        assert_eq!(top_k(table, &queries, &whole, 18).unwrap(), expected);
        let part = |part| {
            let search = ttrec_search { part, num_parts: 2, ..whole };
            let rows = top_k(table, &queries, &search, 18).unwrap();
            let row = |&(index, score)| ttrec_scored { index, score: f32::from_bits(score) };
            rows.iter().map(row).collect::<Vec<_>>()
        };
        let (mut merged, other) = (part(0), part(1));
        let status = unsafe { ttrec_merge_top_k(6, merged.as_mut_ptr(), other.as_ptr(), 18) };
        assert_eq!((status, pairs(&merged)), (Status::Ok, expected));
    }
}

#[test]
fn wrong_arguments_are_refused() {
    let open = Open::borrowed(TWO_TABLES).unwrap();
    let (item, n) = (open.table("item"), num_embeddings(open.table("item")));
    let two = queries(item, 2);
    let null = ptr::null();
    assert_eq!(unsafe { ttrec_table_retrieval_workspace_len(null, 1) }, 0);
    refused(scores(null, &two, (0, 1), 2), Status::Null, "table");
    refused(scores(item, &two[1..], (0, 1), 2), Status::Length, "queries of");
    refused(scores(item, &two, (0, 3), 5), Status::Length, "output of 5 elements: expected 6");
    refused(scores(item, &two, (n, 1), 2), Status::IndexOutOfRange, "the table has 4000 rows");
    refused(scores(item, &two, (5, u64::MAX), 2), Status::IndexOutOfRange, "rows 5 to");
    assert!(scores(item, &[], (0, n), 0).unwrap().is_empty());
    assert!(scores(item, &two, (n, 0), 0).unwrap().is_empty());

    let best = ttrec_search_best(3);
    let search = |search: ttrec_search| top_k(item, &two, &search, 6);
    assert!(search(best).is_ok());
    refused(top_k(item, &two, &best, 5), Status::Length, "output of 5 elements: expected 6");
    refused(top_k(item, &two[1..], &best, 6), Status::Length, "queries of");
    let huge = ttrec_search { k: usize::MAX, ..best };
    refused(search(huge), Status::Length, "output of 6 elements");
    refused(
        search(ttrec_search { first_row: 4, end_row: 3, ..best }),
        Status::IndexOutOfRange,
        "rows 4 to 3",
    );
    refused(search(ttrec_search { end_row: n + 1, ..best }), Status::IndexOutOfRange, "4001");
    refused(
        search(ttrec_search { part: 2, num_parts: 2, ..best }),
        Status::Argument,
        "part 2 of 2",
    );
    refused(search(ttrec_search { num_parts: 0, ..best }), Status::Argument, "part 0 of 0");
    refused(search(ttrec_search { bias: item, ..best }), Status::Argument, "biases of 4000 x");
    let with = |bags: &ttrec_bags| search(ttrec_search { excluded: bags, ..best });
    refused(with(&u32_bags(&[1], &[0, 1, 1, 1], None)), Status::NumBags, "3 lists");
    refused(with(&u32_bags(&[4000], &[0, 1], None)), Status::IndexOutOfRange, "index 4000");
    refused(with(&i64_bags(&[-1], &[0, 1], None)), Status::IndexOutOfRange, "negative");
    refused(with(&u32_bags(&[3, 2], &[0, 2], None)), Status::Argument, "sort each list");
    refused(with(&u32_bags(&[3, 2], &[0, 1], None)), Status::Offsets, "offset");
    let bags = u32_bags(&[3], &[0, 1], None);
    refused(with(&ttrec_bags { index_type: 9, ..*bags }), Status::Argument, "index_type 9");
    refused(with(&ttrec_bags { indices: ptr::null(), ..*bags }), Status::Null, "indices");
    assert!(with(&bags).is_ok());

    let mut rows = [SENTINEL; 4];
    let mut merge =
        |k, len| unsafe { ttrec_merge_top_k(k, rows.as_mut_ptr(), [SENTINEL; 4].as_ptr(), len) };
    assert_eq!(merge(3, 4), Status::Length);
    assert_eq!(merge(0, 4), Status::Length);
    assert_eq!(merge(2, 4), Status::Ok);
    let others: *const ttrec_scored = rows.as_ptr();
    assert_eq!(unsafe { ttrec_merge_top_k(2, rows.as_mut_ptr(), others, 4) }, Status::Overlap);
    assert_eq!(unsafe { ttrec_merge_top_k(2, ptr::null_mut(), others, 4) }, Status::Null);
    assert_eq!(unsafe { ttrec_merge_top_k(2, ptr::null_mut(), ptr::null(), 0) }, Status::Ok);
}

#[test]
fn outputs_may_not_overlap_what_is_read() {
    let open = Open::borrowed(TWO_TABLES).unwrap();
    let item = open.table("item");
    let mut workspace = vec![0.0; unsafe { ttrec_table_retrieval_workspace_len(item, 1) }];
    let mut query = queries(item, 1);
    let (data, len) = (query.as_mut_ptr(), query.len());
    let status = unsafe {
        let (workspace, workspace_len) = (workspace.as_mut_ptr(), workspace.len());
        ttrec_table_scores(item, data, len, 0, 2, data, 2, workspace, workspace_len)
    };
    assert_eq!(status, Status::Overlap);
    let mut out = [SENTINEL; 2];
    let search = ttrec_search_best(2);
    let status = unsafe {
        ttrec_table_top_k(
            item,
            data,
            len,
            out.as_mut_ptr().cast(),
            out.as_mut_ptr(),
            2,
            workspace.as_mut_ptr(),
            workspace.len(),
        )
    };
    assert_ne!(status, Status::Ok);
    let status = unsafe {
        let (workspace, workspace_len) = (workspace.as_mut_ptr(), workspace.len());
        ttrec_table_top_k(
            item,
            data,
            len,
            ptr::null(),
            out.as_mut_ptr(),
            2,
            workspace,
            workspace_len,
        )
    };
    assert_eq!(status, Status::Null);
    let status = unsafe {
        let (workspace, workspace_len) = (workspace.as_mut_ptr(), workspace.len());
        let out = out.as_mut_ptr().wrapping_byte_add(4);
        ttrec_table_top_k(item, data, len, &search, out, 1, workspace, workspace_len)
    };
    assert_eq!(status, Status::Misaligned);
}
