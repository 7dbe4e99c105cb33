//! Many readers of one blob: each row has the same bits for all of them.
//!
//! TTREC_CAPI_LOOKUPS sets the number of lookups of all threads together; a quarter of a million is the default.

#![allow(
    clippy::undocumented_unsafe_blocks,
    clippy::multiple_unsafe_ops_per_block,
    reason = "calls of the C ABI, with pointers of live vectors"
)]

mod support;

use std::{sync::Barrier, thread, time::Instant};
use support::{Open, TWO_TABLES, dim, num_embeddings, u32_bags, workspace_len};
use ttrec_capi::{abi::*, ttrec_status};

const THREADS: u64 = 8;

#[test]
fn eight_readers_of_one_blob_see_the_same_bits() {
    let lookups: u64 = match std::env::var("TTREC_CAPI_LOOKUPS") {
        Ok(n) => n.parse().expect("TTREC_CAPI_LOOKUPS is a number"),
        Err(_) => 250_000,
    };
    let open = Open::borrowed(TWO_TABLES).unwrap();
    let expected: Vec<Vec<Vec<u32>>> = open
        .tables()
        .into_iter()
        .map(|table| (0..num_embeddings(table)).map(|index| bits(&support::lookup(table, index).unwrap())).collect())
        .collect();
    let (open, expected, together) = (&open, &expected, &Barrier::new(THREADS as usize));
    let start = Instant::now();
    let counts: Vec<u64> = thread::scope(|scope| {
        let readers: Vec<_> = (0..THREADS)
            .map(|thread| {
                scope.spawn(move || {
                    together.wait();
                    read(open, expected, thread, lookups / THREADS)
                })
            })
            .collect();
        readers.into_iter().map(|reader| reader.join().unwrap()).collect()
    });
    let all: u64 = counts.iter().sum();
    println!("{all} lookups by {THREADS} threads in {:.1?}", start.elapsed());
    assert!(counts.iter().all(|&count| count >= lookups / THREADS));
}

fn bits(row: &[f32]) -> Vec<u32> {
    row.iter().map(|x| x.to_bits()).collect()
}

/// Looks up and pools until there were `lookups` of them; returns how many.
fn read(open: &Open, expected: &[Vec<Vec<u32>>], thread: u64, lookups: u64) -> u64 {
    let mut count = 0;
    let mut index = thread * 977;
    while count < lookups {
        for (table, expected) in open.tables().into_iter().zip(expected) {
            let rows = expected.len() as u64;
            let (mut out, mut workspace) = (vec![0.0f32; dim(table)], vec![0.0f32; workspace_len(table)]);
            for _ in 0..200 {
                index = (index * 31 + 7) % 1_000_003;
                let row = index % rows;
                let status = if index.is_multiple_of(5) {
                    let one = [row as u32];
                    let bags = u32_bags(&one, &[0, 1], None);
                    let (out, len) = (out.as_mut_ptr(), out.len());
                    unsafe {
                        ttrec_table_bag(table, &raw const *bags, 1, out, len, workspace.as_mut_ptr(), workspace.len())
                    }
                } else {
                    let (out, len) = (out.as_mut_ptr(), out.len());
                    unsafe { ttrec_table_lookup(table, row, out, len, workspace.as_mut_ptr(), workspace.len()) }
                };
                assert_eq!(status, ttrec_status::Ok);
                let same = out.iter().map(|x| x.to_bits()).eq(expected[row as usize].iter().copied());
                assert!(same, "row {row}: {out:?}");
                count += 1;
            }
            // A failure here is nobody else's.
            assert!(support::lookup(table, rows + thread).is_err());
            assert!(support::last_error().contains(&format!("index {} at", rows + thread)));
        }
    }
    count
}
