//! Many readers of one blob: each row, and each score, has the same bits for all of them.
//!
//! TTREC_CAPI_LOOKUPS sets the number of lookups of all threads together, a quarter of a million by
//! default; TTREC_CAPI_SCORES that of scores, 20,000 by default.

#![allow(
    clippy::undocumented_unsafe_blocks,
    clippy::multiple_unsafe_ops_per_block,
    reason = "calls of the C ABI, with pointers to live vectors"
)]

use crate::support::{DLRM, Open, TWO_TABLES, dim, num_embeddings, u32_bags, workspace_len};
use std::{env, sync::Barrier, thread, time::Instant};
use ttrec_capi::{abi::*, ttrec_status};

const THREADS: u64 = 8;
/// Different samples to score.
const SAMPLES: u32 = 1000;

#[test]
fn eight_readers_of_one_blob_see_the_same_bits() {
    let lookups = number("TTREC_CAPI_LOOKUPS", 250_000);
    let open = Open::borrowed(TWO_TABLES).unwrap();
    let expected: Vec<Vec<Vec<u32>>> = open
        .tables()
        .into_iter()
        .map(|table| {
            (0..num_embeddings(table))
                .map(|index| bits(&crate::support::lookup(table, index).unwrap()))
                .collect()
        })
        .collect();
    at_once("lookups", lookups, |thread| read(&open, &expected, thread, lookups / THREADS));
}

#[test]
fn eight_readers_of_one_model_see_the_same_scores() {
    let scores = number("TTREC_CAPI_SCORES", 20_000);
    let open = Open::borrowed(DLRM).unwrap();
    let expected: Vec<u32> =
        (0..SAMPLES).flat_map(|sample| bits(&scores_of(&open, sample, 1))).collect();
    at_once("scores", scores, |thread| score(&open, &expected, thread, scores / THREADS));
}

fn number(variable: &str, default: u64) -> u64 {
    env::var(variable)
        .map_or(default, |n| n.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

/// Runs `reader` on all threads at once; each returns how many `things` of `all` it has seen.
fn at_once(things: &str, all: u64, reader: impl Fn(u64) -> u64 + Sync) {
    let (reader, together) = (&reader, &Barrier::new(THREADS as usize));
    let start = Instant::now();
    let counts: Vec<u64> = thread::scope(|scope| {
        let readers: Vec<_> = (0..THREADS)
            .map(|thread| {
                scope.spawn(move || {
                    together.wait();
                    reader(thread)
                })
            })
            .collect();
        readers.into_iter().map(|reader| reader.join().unwrap()).collect()
    });
    println!(
        "{} {things} by {THREADS} threads in {:.1?}",
        counts.iter().sum::<u64>(),
        start.elapsed()
    );
    assert!(counts.iter().all(|&count| count >= all / THREADS));
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
            let (mut out, mut workspace) =
                (vec![0.0f32; dim(table)], vec![0.0f32; workspace_len(table)]);
            for _ in 0..200 {
                index = (index * 31 + 7) % 1_000_003;
                let row = index % rows;
                let status = if index.is_multiple_of(5) {
                    let one = [row as u32];
                    let bags = u32_bags(&one, &[0, 1], None);
                    let (out, len) = (out.as_mut_ptr(), out.len());
                    unsafe {
                        ttrec_table_bag(
                            table,
                            &raw const *bags,
                            1,
                            out,
                            len,
                            workspace.as_mut_ptr(),
                            workspace.len(),
                        )
                    }
                } else {
                    let (out, len) = (out.as_mut_ptr(), out.len());
                    unsafe {
                        ttrec_table_lookup(
                            table,
                            row,
                            out,
                            len,
                            workspace.as_mut_ptr(),
                            workspace.len(),
                        )
                    }
                };
                assert_eq!(status, ttrec_status::Ok);
                let same =
                    out.iter().map(|x| x.to_bits()).eq(expected[row as usize].iter().copied());
                assert!(same, "row {row}: {out:?}");
                count += 1;
            }
            // The message is that of this thread's own failure.
            assert!(crate::support::lookup(table, rows + thread).is_err());
            assert!(crate::support::last_error().contains(&format!("index {} at", rows + thread)));
        }
    }
    count
}

/// The scores of `count` samples from `first` on.
fn scores_of(open: &Open, first: u32, count: u32) -> Vec<f32> {
    let samples = || (first..first + count).map(|sample| sample % SAMPLES);
    let dense: Vec<f32> = samples()
        .flat_map(|s| (0..13).map(move |i| ((s * 31 + i * 7) % 64) as f32 / 64.0))
        .collect();
    let indices: [Vec<u32>; 4] =
        [5000, 1200, 300, 40].map(|rows| samples().map(|s| s * 7919 % rows).collect());
    let offsets: Vec<u32> = (0..=count).collect();
    let bags = indices.each_ref().map(|indices| *u32_bags(indices, &offsets, None));
    crate::support::scored(
        ttrec_ranker_score,
        open.ranker().unwrap(),
        &dense,
        &bags,
        count as usize,
    )
    .unwrap()
}

/// Scores batches of several sizes until there were `scores` of them; returns how many.
fn score(open: &Open, expected: &[u32], thread: u64, scores: u64) -> u64 {
    let (mut count, mut first) = (0, thread as u32 * 117);
    while count < scores {
        let len = 1 + first % 9;
        let found = bits(&scores_of(open, first, len));
        let expected = (first..).map(|sample| expected[(sample % SAMPLES) as usize]);
        assert!(found.iter().copied().eq(expected.take(len as usize)), "samples from {first} on");
        (count, first) = (count + u64::from(len), (first + len) % SAMPLES);
    }
    count
}
