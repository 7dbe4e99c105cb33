//! Arguments of the C functions: each wrong one is refused with its status, and leaves the outputs
//! unmodified; with correct ones the results have the library's bits.

#![allow(
    clippy::undocumented_unsafe_blocks,
    clippy::multiple_unsafe_ops_per_block,
    reason = "calls of the C ABI, with pointers to live vectors, or deliberately wrong ones"
)]

use crate::support::{
    Open, SENTINEL, TWO_TABLES, assert_same, bag, dim, i32_bags, i64_bags, last_error, lookup,
    num_embeddings, output, text, u32_bags, workspace_len,
};
use std::{ffi::CString, mem, ptr};
use ttrec::{Bags, Blob, Pooling, bag::pool_tables};
use ttrec_capi::{
    abi::*, ttrec_bags, ttrec_blob, ttrec_pooling, ttrec_status as Status, ttrec_table,
};

const SUM: u32 = ttrec_pooling::Sum as u32;
const POOLINGS: [(u32, Pooling); 3] = [
    (SUM, Pooling::Sum),
    (ttrec_pooling::Mean as u32, Pooling::Mean),
    (ttrec_pooling::Max as u32, Pooling::Max),
];

/// `found` is a failure with this status, and its message contains `said`.
#[track_caller]
fn refused<T: std::fmt::Debug>(found: Result<T, Status>, status: Status, said: &str) {
    assert_eq!(found.unwrap_err(), status, "{}", last_error());
    assert!(last_error().contains(said), "{}", last_error());
}

fn status(status: Status) -> Result<(), Status> {
    if status == Status::Ok { Ok(()) } else { Err(status) }
}

#[test]
fn versions_are_reported() {
    assert_eq!(ttrec_abi_version(), TTREC_ABI_VERSION);
    assert_eq!(text(ttrec_version_string()), env!("CARGO_PKG_VERSION"));
    assert_eq!(text(ttrec_tier_name()), ttrec::Tier::best().name());
}

#[test]
fn null_is_refused_everywhere() {
    let open = Open::borrowed(TWO_TABLES).unwrap();
    let item = open.table("item");
    let name = CString::new("item").unwrap();
    let bytes = TWO_TABLES.as_ptr().cast();
    let len = TWO_TABLES.len();
    let mut blob = ptr::null_mut();
    let mut table = ptr::null();
    unsafe {
        refused(status(ttrec_blob_open(ptr::null(), &mut blob)), Status::Null, "path");
        refused(status(ttrec_blob_open(name.as_ptr(), ptr::null_mut())), Status::Null, "blob");
        refused(
            status(ttrec_blob_open_borrowed(ptr::null(), len, &mut blob)),
            Status::Null,
            "bytes",
        );
        refused(
            status(ttrec_blob_open_borrowed(bytes, len, ptr::null_mut())),
            Status::Null,
            "blob",
        );
        refused(status(ttrec_blob_open_copied(ptr::null(), len, &mut blob)), Status::Null, "bytes");
        refused(status(ttrec_blob_open_copied(bytes, len, ptr::null_mut())), Status::Null, "blob");
        refused(status(ttrec_blob_verify_payload(ptr::null())), Status::Null, "blob");
        refused(
            status(ttrec_blob_table(ptr::null(), name.as_ptr(), &mut table)),
            Status::Null,
            "blob",
        );
        refused(status(ttrec_blob_table(open.0, ptr::null(), &mut table)), Status::Null, "name");
        refused(
            status(ttrec_blob_table(open.0, name.as_ptr(), ptr::null_mut())),
            Status::Null,
            "table",
        );
        assert!(blob.is_null() && table.is_null());
        ttrec_blob_close(ptr::null_mut());
        assert_eq!(ttrec_blob_num_tables(ptr::null()), 0);
        assert!(ttrec_blob_table_at(ptr::null(), 0).is_null());
        assert!(ttrec_table_name(ptr::null()).is_null());
        assert_eq!(ttrec_table_num_embeddings(ptr::null()), 0);
        assert_eq!(ttrec_table_embedding_dim(ptr::null()), 0);
        assert_eq!(ttrec_table_workspace_len(ptr::null()), 0);
        assert_eq!(ttrec_table_batch_workspace_len(ptr::null(), 1), 0);
    }

    let lookup = |table, no_out, no_workspace| {
        output(dim(item), workspace_len(item), |out, len, workspace, workspace_len| unsafe {
            let out = if no_out { ptr::null_mut() } else { out };
            let workspace = if no_workspace { ptr::null_mut() } else { workspace };
            ttrec_table_lookup(table, 0, out, len, workspace, workspace_len)
        })
    };
    refused(lookup(ptr::null(), false, false), Status::Null, "table");
    refused(lookup(item, true, false), Status::Null, "out");
    refused(lookup(item, false, true), Status::Null, "workspace");
    assert!(lookup(item, false, false).is_ok());

    let bags = u32_bags(&[1], &[0, 1], None);
    refused(bag(item, &ttrec_bags { indices: ptr::null(), ..*bags }, SUM), Status::Null, "indices");
    refused(bag(item, &ttrec_bags { offsets: ptr::null(), ..*bags }, SUM), Status::Null, "offsets");
    let no_bags =
        output(dim(item), workspace_len(item), |out, len, workspace, workspace_len| unsafe {
            ttrec_table_bag(item, ptr::null(), SUM, out, len, workspace, workspace_len)
        });
    refused(no_bags, Status::Null, "bags");
}

#[test]
fn null_with_no_elements_is_fine() {
    let open = Open::borrowed(TWO_TABLES).unwrap();
    let (item, user) = (open.table("item"), open.table("user"));
    static OFFSETS: [u32; 3] = [0; 3];
    static WIDE_OFFSETS: [i64; 1] = [0];
    let bags = ttrec_bags_u32(ptr::null(), 0, OFFSETS.as_ptr(), 2, ptr::null());
    assert_eq!(bag(item, &bags, SUM).unwrap(), vec![0.0; 2 * dim(item)]);
    let none = ttrec_bags_i64(ptr::null(), 0, WIDE_OFFSETS.as_ptr(), 0, ptr::null());
    assert_eq!(workspace_len(user), 0);
    let null = ptr::null_mut();
    unsafe {
        assert_eq!(ttrec_table_bag(user, &none, SUM, null, 0, null, 0), Status::Ok);
        assert_eq!(
            ttrec_pool_tables(ptr::null(), ptr::null(), 0, SUM, null, 0, null, 0),
            Status::Ok
        );
        assert_eq!(ttrec_pool_tables([user].as_ptr(), &none, 1, SUM, null, 0, null, 0), Status::Ok);
    }
    let mut row = vec![0.0; dim(user)];
    assert_eq!(
        unsafe { ttrec_table_lookup(user, 0, row.as_mut_ptr(), row.len(), null, 0) },
        Status::Ok
    );
}

#[test]
fn misaligned_pointers_are_refused() {
    let open = Open::borrowed(TWO_TABLES).unwrap();
    let item = open.table("item");
    let bags = u32_bags(&[1, 2], &[0, 2], Some(&[1.0, 2.0]));
    let wide = i64_bags(&[1, 2], &[0, 2], None);
    for by in 1..64 {
        let whole = |size: usize| by % size == 0;
        let shifted = |ptr: *mut f32| ptr.wrapping_byte_add(by);
        // Longer by 16 elements, so that a shift by whole elements stays within the memory.
        let call = |shift_out: bool, shift_workspace: bool| {
            output(
                dim(item) + 16,
                workspace_len(item) + 16,
                |out, len, workspace, workspace_len| unsafe {
                    let out = if shift_out { shifted(out) } else { out };
                    let workspace = if shift_workspace { shifted(workspace) } else { workspace };
                    ttrec_table_lookup(item, 3, out, len - 16, workspace, workspace_len - 16)
                },
            )
        };
        if whole(4) {
            assert!(call(true, false).is_ok() && call(false, true).is_ok());
        } else {
            refused(call(true, false), Status::Misaligned, "out");
            refused(call(false, true), Status::Misaligned, "workspace");
            let weights = bags.per_sample_weights.wrapping_byte_add(by);
            let shifted = ttrec_bags { per_sample_weights: weights, ..*bags };
            refused(bag(item, &shifted, SUM), Status::Misaligned, "per_sample_weights");
            let shifted = ttrec_bags { indices: bags.indices.wrapping_byte_add(by), ..*bags };
            refused(bag(item, &shifted, SUM), Status::Misaligned, "indices");
        }
        if !whole(mem::align_of::<i64>()) {
            let shifted = ttrec_bags { indices: wide.indices.wrapping_byte_add(by), ..*wide };
            refused(bag(item, &shifted, SUM), Status::Misaligned, "indices");
            let shifted = ttrec_bags { offsets: wide.offsets.wrapping_byte_add(by), ..*wide };
            refused(bag(item, &shifted, SUM), Status::Misaligned, "offsets");
            let found = output(
                dim(item),
                workspace_len(item),
                |out, len, workspace, workspace_len| unsafe {
                    ttrec_table_bag(
                        item,
                        (&raw const *bags).wrapping_byte_add(by),
                        SUM,
                        out,
                        len,
                        workspace,
                        workspace_len,
                    )
                },
            );
            refused(found, Status::Misaligned, "bags");
            refused(lookup_raw(item.wrapping_byte_add(by), dim(item)), Status::Misaligned, "table");
            let mut place = [ptr::null_mut::<ttrec_blob>(); 16];
            let found = unsafe {
                ttrec_blob_open_borrowed(
                    TWO_TABLES.as_ptr().cast(),
                    TWO_TABLES.len(),
                    place.as_mut_ptr().wrapping_byte_add(by),
                )
            };
            refused(status(found), Status::Misaligned, "blob");
            assert!(place.iter().all(|blob| blob.is_null()));
        }
    }
}

/// A lookup by a table that may be wrong.
fn lookup_raw(table: *const ttrec_table, dim: usize) -> Result<Vec<f32>, Status> {
    output(dim, 1000, |out, len, workspace, workspace_len| unsafe {
        ttrec_table_lookup(table, 0, out, len, workspace, workspace_len)
    })
}

#[test]
fn wrong_lengths_are_refused() {
    let open = Open::borrowed(TWO_TABLES).unwrap();
    let item = open.table("item");
    let (dim, enough) = (dim(item), workspace_len(item));
    let bags = u32_bags(&[1, 2], &[0, 2], None);
    let with = |out_len: usize, given_workspace: usize, of_bags: bool| {
        output(dim, enough, |out, _, workspace, _| unsafe {
            if of_bags {
                ttrec_table_bag(
                    item,
                    &raw const *bags,
                    SUM,
                    out,
                    out_len,
                    workspace,
                    given_workspace,
                )
            } else {
                ttrec_table_lookup(item, 0, out, out_len, workspace, given_workspace)
            }
        })
    };
    for of_bags in [false, true] {
        assert!(with(dim, enough, of_bags).is_ok());
        for len in [0, 1, dim - 1, dim + 1, 2 * dim] {
            refused(with(len, enough, of_bags), Status::Length, "output of ");
        }
        for len in [0, 1, enough - 1] {
            refused(with(dim, len, of_bags), Status::Length, "workspace of ");
        }
        for len in [usize::MAX, usize::MAX / 4 + 1, isize::MAX as usize / 4 + 1] {
            refused(with(len, enough, of_bags), Status::Length, "out: ");
            refused(with(dim, len, of_bags), Status::Length, "workspace: ");
        }
    }
    for len in [usize::MAX, usize::MAX / 4 + 1] {
        refused(
            bag(item, &ttrec_bags { num_indices: len, ..*bags }, SUM),
            Status::Length,
            "indices: ",
        );
        refused(
            output(dim, enough, |out, len_of_out, workspace, workspace_len| unsafe {
                let bags = ttrec_bags { num_bags: len, ..*bags };
                ttrec_table_bag(item, &bags, SUM, out, len_of_out, workspace, workspace_len)
            }),
            Status::Length,
            "offsets: ",
        );
        let mut blob = ptr::null_mut();
        // So many bytes from there on would end past the last address.
        let found = unsafe {
            ttrec_blob_open_borrowed(TWO_TABLES.as_ptr().cast(), len.max(1 << 63), &mut blob)
        };
        refused(status(found), Status::Length, "bytes: ");
    }
}

#[test]
fn outputs_that_overlap_anything_are_refused() {
    let open = Open::borrowed(TWO_TABLES).unwrap();
    let item = open.table("item");
    let (dim, enough) = (dim(item), workspace_len(item));
    // One piece of memory that everything is cut from.
    const OUT: usize = 1000;
    const WORKSPACE: usize = 3000;
    assert!(dim.max(enough) < OUT);
    let mut memory = vec![SENTINEL; 5000];
    let at = |memory: &mut Vec<f32>, position: usize| memory[position..].as_mut_ptr();
    for (workspace, fine) in [
        (OUT, false),
        (OUT + dim - 1, false),
        (OUT + dim, true),
        (OUT - enough, true),
        (OUT - enough + 1, false),
        (WORKSPACE, true),
    ] {
        let workspace = at(&mut memory, workspace);
        let found =
            unsafe { ttrec_table_lookup(item, 0, at(&mut memory, OUT), dim, workspace, enough) };
        assert_eq!(found, if fine { Status::Ok } else { Status::Overlap });
    }
    for (inside, fine) in [
        (OUT - 1, true),
        (OUT, false),
        (OUT + dim - 1, false),
        (OUT + dim, true),
        (WORKSPACE - 1, true),
        (WORKSPACE, false),
        (WORKSPACE + enough - 1, false),
        (WORKSPACE + enough, true),
    ] {
        for what in ["indices", "offsets", "per_sample_weights"] {
            memory.fill(0.0);
            let one = [0u32, 1];
            let shared = at(&mut memory, inside);
            let mut bags = *u32_bags(&one[..1], &one, None);
            match what {
                "indices" => bags.indices = shared.cast(),
                // One bag of none.
                "offsets" => (bags.num_indices, bags.offsets) = (0, shared.wrapping_sub(1).cast()),
                _ => bags.per_sample_weights = shared,
            }
            if what == "offsets" && [OUT + dim, WORKSPACE + enough].contains(&inside) {
                // The first of the two offsets is still within.
                bags.offsets = shared.cast();
            }
            let (out, workspace) = (at(&mut memory, OUT), at(&mut memory, WORKSPACE));
            let found = unsafe { ttrec_table_bag(item, &bags, SUM, out, dim, workspace, enough) };
            if fine {
                assert_eq!(found, Status::Ok, "{what} at {inside}: {}", last_error());
            } else {
                refused(status(found), Status::Overlap, what);
                assert!(memory.iter().all(|&x| x == 0.0));
            }
        }
    }
    // The struct itself, and a list of tables.
    let bags = u32_bags(&[0], &[0, 1], None);
    let mut place = [*bags; 8];
    let out = place.as_mut_ptr().cast();
    let mut workspace = vec![0.0; enough];
    let found = unsafe {
        ttrec_table_bag(item, place.as_ptr(), SUM, out, dim, workspace.as_mut_ptr(), enough)
    };
    refused(status(found), Status::Overlap, "bags");
    let mut tables = [item; 16];
    let out = tables.as_mut_ptr().cast();
    let found = unsafe {
        ttrec_pool_tables(
            tables.as_ptr(),
            &raw const *bags,
            1,
            SUM,
            out,
            dim,
            workspace.as_mut_ptr(),
            enough,
        )
    };
    refused(status(found), Status::Overlap, "tables");
    assert!(tables.iter().all(|&table| table == item));
}

#[test]
fn numbers_that_name_no_pooling_or_type_are_refused() {
    let open = Open::borrowed(TWO_TABLES).unwrap();
    let item = open.table("item");
    let bags = u32_bags(&[1, 2], &[0, 2], None);
    for wrong in [3, 4, 0x100, u32::MAX] {
        refused(bag(item, &bags, wrong), Status::Argument, "pooling");
        refused(
            bag(item, &ttrec_bags { index_type: wrong, ..*bags }, SUM),
            Status::Argument,
            "index_type",
        );
    }
    for (pooling, _) in &POOLINGS[1..] {
        let weighted = u32_bags(&[1, 2], &[0, 2], Some(&[1.0, 2.0]));
        refused(
            bag(item, &weighted, *pooling),
            Status::Argument,
            "table \"item\": per_sample_weights",
        );
    }
}

#[test]
fn tables_are_found_by_their_names_only() {
    let open = Open::borrowed(TWO_TABLES).unwrap();
    let mut table = ptr::null();
    for name in [&b""[..], b"Item", b"items", b"ite", b"item ", b"\xff\xfe", &[b'a'; 5000]] {
        let name = CString::new(name).unwrap();
        let found = unsafe { ttrec_blob_table(open.0, name.as_ptr(), &mut table) };
        refused(status(found), Status::NoSuchTable, "no table ");
        assert!(table.is_null());
    }
    for position in [2, 3, 1 << 20, usize::MAX] {
        assert!(unsafe { ttrec_blob_table_at(open.0, position) }.is_null());
        assert_eq!(last_error(), format!("no table {position}: the blob has 2"));
    }
}

#[test]
fn indices_and_offsets_out_of_range_are_refused() {
    let open = Open::borrowed(TWO_TABLES).unwrap();
    for table in open.tables() {
        let rows = num_embeddings(table);
        for index in [rows, rows + 1, 1 << 32, 1 << 63, u64::MAX] {
            refused(
                lookup(table, index),
                Status::IndexOutOfRange,
                &format!("index {index} at position 0"),
            );
        }
        let row = rows as u32;
        for (pooling, _) in POOLINGS {
            for wrong in [row, u32::MAX] {
                let said = format!("index {wrong} at position 2");
                refused(
                    bag(table, &u32_bags(&[0, 1, wrong], &[0, 3], None), pooling),
                    Status::IndexOutOfRange,
                    &said,
                );
            }
            for wrong in [-1, i64::MIN, -(i64::from(row))] {
                let said = format!("index {wrong} at position 1 is negative");
                refused(
                    bag(table, &i64_bags(&[0, wrong], &[0, 2], None), pooling),
                    Status::IndexOutOfRange,
                    &said,
                );
            }
            for wrong in [-1, i32::MIN, -row.cast_signed()] {
                let said = format!("index {wrong} at position 1 is negative");
                refused(
                    bag(table, &i32_bags(&[0, wrong], &[0, 2], None), pooling),
                    Status::IndexOutOfRange,
                    &said,
                );
            }
            for wrong in [rows as i64, i64::MAX, 1 << 32] {
                let said = format!("index {wrong} at position 0");
                refused(
                    bag(table, &i64_bags(&[wrong], &[0, 1], None), pooling),
                    Status::IndexOutOfRange,
                    &said,
                );
            }
            for wrong in [-2, i32::MIN] {
                let said = format!("offset {wrong} at position 1 is negative");
                refused(
                    bag(table, &i32_bags(&[0, 1], &[0, wrong, 2], None), pooling),
                    Status::Offsets,
                    &said,
                );
                refused(
                    bag(table, &i64_bags(&[0, 1], &[0, wrong.into(), 2], None), pooling),
                    Status::Offsets,
                    &said,
                );
            }
            for offsets in
                [[0, 1, 1], [1, 2, 2], [0, 3, 2], [0, 2, 1], [0, 1, 3], [2, 2, 2], [0, u32::MAX, 2]]
            {
                refused(
                    bag(table, &u32_bags(&[0, 1], &offsets, None), pooling),
                    Status::Offsets,
                    "offset",
                );
                let wide = offsets.map(|offset| i64::from(offset.cast_signed()));
                refused(
                    bag(table, &i64_bags(&[0, 1], &wide, None), pooling),
                    Status::Offsets,
                    "offset",
                );
            }
        }
    }
}

#[test]
fn bags_have_the_librarys_bits_whatever_type_their_indices_have() {
    let open = Open::borrowed(TWO_TABLES).unwrap();
    let blob = Blob::parse(TWO_TABLES).unwrap();
    for (table, expected) in open.tables().into_iter().zip(blob.tables()) {
        let indices: Vec<u32> =
            (0..200u64).map(|i| (i * 7919 % expected.num_embeddings()) as u32).collect();
        let offsets = [0u32, 1, 1, 5, 70, 200];
        // Not a number is a weight like any other.
        let weights: Vec<f32> =
            (0..200).map(|i| if i == 100 { f32::NAN } else { i as f32 - 50.5 }).collect();
        let wide = |narrow: &[u32]| narrow.iter().map(|&x| i64::from(x)).collect::<Vec<_>>();
        let (wide_indices, wide_offsets) = (wide(&indices), wide(&offsets));
        let signed_indices: Vec<i32> = indices.iter().map(|index| index.cast_signed()).collect();
        let signed_offsets = offsets.map(u32::cast_signed);
        for (number, pooling) in POOLINGS {
            for weights in [None, Some(&weights[..])] {
                let mut bags = Bags::new(&indices, &offsets).unwrap();
                if let Some(weights) = weights {
                    if pooling != Pooling::Sum {
                        continue;
                    }
                    bags = bags.with_per_sample_weights(weights).unwrap();
                }
                let mut out = vec![0.0; bags.len() * expected.embedding_dim()];
                expected
                    .pool(&bags, pooling, &mut out, &mut vec![0.0; expected.workspace_len(200)])
                    .unwrap();
                assert!(out.iter().any(|&x| x != 0.0));
                assert_same(
                    &bag(table, &u32_bags(&indices, &offsets, weights), number).unwrap(),
                    &out,
                );
                assert_same(
                    &bag(table, &i32_bags(&signed_indices, &signed_offsets, weights), number)
                        .unwrap(),
                    &out,
                );
                assert_same(
                    &bag(table, &i64_bags(&wide_indices, &wide_offsets, weights), number).unwrap(),
                    &out,
                );
            }
        }
        // An index is padding only if the struct says so.
        for has_padding_idx in [0, 1, 7] {
            let padding_idx = indices[3].into();
            let padded =
                ttrec_bags { has_padding_idx, padding_idx, ..*u32_bags(&indices, &offsets, None) };
            let mut bags = Bags::new(&indices, &offsets).unwrap();
            if has_padding_idx != 0 {
                bags = bags.with_padding_idx(padding_idx);
            }
            let mut out = vec![0.0; bags.len() * expected.embedding_dim()];
            let mut workspace = vec![0.0; expected.workspace_len(1)];
            expected.pool(&bags, Pooling::Mean, &mut out, &mut workspace).unwrap();
            assert_same(&bag(table, &padded, ttrec_pooling::Mean as u32).unwrap(), &out);
        }
    }
}

#[test]
fn tables_pooled_together_have_the_librarys_bits() {
    let open = Open::borrowed(TWO_TABLES).unwrap();
    let blob = Blob::parse(TWO_TABLES).unwrap();
    // More than are kept without allocating, too.
    for repeats in [1, 16, 40] {
        let tables: Vec<_> = (0..repeats).flat_map(|_| open.tables()).collect();
        let rust: Vec<_> = (0..repeats).flat_map(|_| blob.tables()).collect();
        let indices: Vec<Vec<i64>> =
            (0..tables.len() as i64).map(|t| vec![t % 20, 19, 2 * t % 20]).collect();
        let unsigned: Vec<Vec<u64>> =
            indices.iter().map(|list| list.iter().map(|&i| i as u64).collect()).collect();
        let offsets = [0i64, 1, 3];
        let bags: Vec<ttrec_bags> =
            indices.iter().map(|list| *i64_bags(list, &offsets, None)).collect();
        let together: Vec<_> = rust
            .iter()
            .zip(&unsigned)
            .map(|(table, list)| (table, Bags::new(list, &[0, 1, 3]).unwrap()))
            .collect();
        let width: usize = rust.iter().map(|table| table.embedding_dim()).sum();
        let enough = rust.iter().map(|table| table.workspace_len(1)).max().unwrap();
        let mut expected = vec![0.0; 2 * width];
        pool_tables(&together, Pooling::Mean, &mut expected, &mut vec![0.0; enough]).unwrap();
        let call =
            |tables: &[*const ttrec_table], bags: &[ttrec_bags], len: usize, pooling: u32| {
                output(len, enough, |out, len, workspace, workspace_len| unsafe {
                    ttrec_pool_tables(
                        tables.as_ptr(),
                        bags.as_ptr(),
                        tables.len(),
                        pooling,
                        out,
                        len,
                        workspace,
                        workspace_len,
                    )
                })
            };
        assert_same(&call(&tables, &bags, 2 * width, 1).unwrap(), &expected);

        refused(call(&tables, &bags, 2 * width - 1, 1), Status::Length, "output of ");
        refused(call(&tables, &bags, 2 * width, 3), Status::Argument, "pooling");
        let last = tables.len() - 1;
        let mut wrong = tables.clone();
        wrong[last] = ptr::null();
        refused(call(&wrong, &bags, 2 * width, 1), Status::Null, "table");
        let with = |change: &dyn Fn(&mut ttrec_bags)| {
            let mut bags = bags.clone();
            change(&mut bags[last]);
            call(&tables, &bags, 2 * width, 1)
        };
        refused(with(&|bags| bags.index_type = 0), Status::Argument, "another index_type");
        refused(with(&|bags| bags.index_type = 9), Status::Argument, "another index_type");
        refused(with(&|bags| bags.num_indices = 2), Status::Offsets, "table \"user\": offset");
        refused(with(&|bags| bags.indices = ptr::null()), Status::Null, "indices");
        let few = [0i64, 3];
        refused(
            with(&|bags| *bags = *i64_bags(&[1, 2, 3], &few, None)),
            Status::NumBags,
            "table \"user\": 1 bags",
        );
        refused(
            with(&|bags| *bags = *i64_bags(&[1, -2, 3], &offsets, None)),
            Status::IndexOutOfRange,
            "table \"user\": index -2 at position 1",
        );
    }
    let mut out = [SENTINEL];
    let found = unsafe {
        ttrec_pool_tables(ptr::null(), ptr::null(), 0, SUM, out.as_mut_ptr(), 1, ptr::null_mut(), 0)
    };
    refused(status(found), Status::Length, "output of 1 elements: expected 0");
    assert_eq!(out, [SENTINEL]);
}

#[test]
fn each_thread_has_errors_of_its_own() {
    let open = Open::borrowed(TWO_TABLES).unwrap();
    let item = open.table("item");
    let before = last_error();
    assert!(lookup(item, 5000).is_err());
    let here = last_error();
    assert!(here.contains("index 5000") && here != before);
    let open = &open;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            assert_eq!(last_error(), "");
            assert!(lookup(open.table("user"), 1 << 40).is_err());
            assert!(last_error().contains("table \"user\": index 1099511627776"));
        });
    });
    // Success, too, leaves it alone.
    assert!(lookup(item, 1).is_ok());
    assert_eq!(last_error(), here);
}
