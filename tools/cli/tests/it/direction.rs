//! Cores whose wide factor comes first are multiplied out from the other end, and nobody notices
//! but the clock.

use crate::support::{Dir, Elements, parse_npy, ttrec, vector, write_npz, write_safetensors};
use safetensors::Dtype::{F32, I64};
use std::{fs, path::Path};

const P: [usize; 3] = [3, 4, 5];
const Q: [usize; 3] = [6, 2, 1];
const RANKS: [usize; 4] = [1, 12, 10, 1];
const ROWS: usize = 58;
/// Overridden rows, and the positions of their values.
const APART: [(usize, usize); 2] = [(7, 1), (40, 0)];

/// Small integers, so that every product and sum is exact.
fn element(k: usize, i: usize, a: usize, b: usize, c: usize) -> f32 {
    ((k * 3 + i * 7 + a * 11 + b * 13 + c * 17 + i * b + a * c) % 7) as f32 - 3.0
}

fn apart(position: usize, column: usize) -> f32 {
    (100 * position + column) as f32
}

/// By the sum that a tensor train is.
fn row(row: usize) -> Vec<f64> {
    let columns = (0..Q[0]).flat_map(|a| (0..Q[1]).map(move |b| (a, b)));
    if let Some((_, position)) = APART.into_iter().find(|(id, _)| *id == row) {
        return (0..12).map(|column| apart(position, column).into()).collect();
    }
    let [i0, i1, i2] = [row / (P[1] * P[2]), row / P[2] % P[1], row % P[2]];
    let sum = |(j0, j1): (usize, usize)| {
        let ranks = (0..RANKS[1]).flat_map(|a| (0..RANKS[2]).map(move |b| (a, b)));
        ranks
            .map(|(a, b)| {
                element(0, i0, 0, j0, a) * element(1, i1, a, j1, b) * element(2, i2, b, 0, 0)
            })
            .sum::<f32>()
    };
    columns.map(|column| sum(column).into()).collect()
}

/// As FBTT has it.
fn write_checkpoint(path: &Path) {
    let core = |k: usize| -> Vec<f32> {
        let mut out = Vec::new();
        for (i, a, b) in (0..P[k])
            .flat_map(|i| (0..RANKS[k]).map(move |a| (i, a)))
            .flat_map(|(i, a)| (0..Q[k]).map(move |b| (i, a, b)))
        {
            out.extend((0..RANKS[k + 1]).map(|c| element(k, i, a, b, c)));
        }
        out
    };
    let cores = [0, 1, 2].map(core);
    let shapes = [0, 1, 2].map(|k| [1, P[k], RANKS[k] * Q[k] * RANKS[k + 1]]);
    let names = [0, 1, 2].map(|k| format!("item.tt_cores.{k}"));
    let cached: Vec<f32> = (0..2)
        .flat_map(|position| (0..12).map(move |column| apart(position, column)))
        .collect();
    let ids: Vec<i64> = APART.iter().map(|(id, _)| *id as i64).collect();
    let slots: Vec<i64> = APART.iter().map(|(_, position)| *position as i64).collect();
    let mut tensors: Vec<_> = (0..3)
        .map(|k| (names[k].as_str(), F32, &shapes[k][..], cores[k][..].bytes()))
        .collect();
    tensors.push(("item.hashtbl", I64, &[2], ids[..].bytes()));
    tensors.push(("item.cache_state", I64, &[2], slots[..].bytes()));
    tensors.push(("item.cache_weight", F32, &[2, 12], cached[..].bytes()));
    write_safetensors(path, &tensors);
}

/// What `lookup` gives for these bags.
fn looked_up(dir: &Dir, blob: &Path, mode: &str, indices: &[u64], offsets: &[u64]) -> Vec<f64> {
    let (bags, out) = (dir.path("bags.npz"), dir.path("out.npy"));
    write_npz(&bags, &[("indices", vector(indices)), ("offsets", vector(offsets))]);
    ttrec!["lookup", blob, "--table", "item", "--bags", bags, "--mode", mode, "-o", &out].exits(0);
    parse_npy(&fs::read(out).unwrap()).values
}

#[test]
fn wide_factors_that_come_first_are_multiplied_last_and_columns_stay_in_order() {
    let dir = Dir::new();
    let checkpoint = dir.path("c.safetensors");
    write_checkpoint(&checkpoint);
    let spec = "[[table]]\nname = \"item\"\nprefix = \"item.\"\nnum_embeddings = \
                58\ncolumn_factors = [6, 2, 1]\nranks = [12, 10]\n";
    let all: Vec<u64> = (0..ROWS as u64).collect();
    let rows: Vec<Vec<f64>> = (0..ROWS).map(row).collect();
    let sums = |bags: [&[usize]; 3]| -> Vec<f64> {
        bags.iter()
            .flat_map(|bag| (0..12).map(|column| bag.iter().map(|&at| rows[at][column]).sum()))
            .collect()
    };
    // All of them, some of one prefix, and overridden rows among others.
    let others = [5, 6, 7, 8, 9, 40, 41];
    let every: Vec<usize> = (0..ROWS).collect();
    let indices: Vec<u64> = every.iter().chain(&others).map(|&at| at as u64).collect();
    for dtype in ["f32", "f16", "i8"] {
        let blob = dir.convert(&checkpoint, &format!("{spec}dtype = \"{dtype}\"\n"), "blob.ttr");
        ttrec!["inspect", &blob]
            .exits(0)
            .prints(["p [5, 4, 3] q [1, 2, 6] ranks [10, 12], cores reversed"]);
        ttrec!["inspect", &blob, "--json"].exits(0).prints([
            r#""digit_order": "least_significant_first""#,
            r#""column_order": "least_significant_first""#,
        ]);
        ttrec!["verify", &blob, "--against", &checkpoint].exits(0);
        if dtype == "i8" {
            continue;
        }
        assert_eq!(
            looked_up(&dir, &blob, "rows", &all, &[0, ROWS as u64]),
            rows.concat(),
            "{dtype}"
        );
        let offsets = [0, ROWS as u64, ROWS as u64, indices.len() as u64];
        assert_eq!(
            looked_up(&dir, &blob, "sum", &indices, &offsets),
            sums([&every, &[], &others]),
            "{dtype}"
        );

        // Rows that are added to the overrides have the same order.
        let (frequencies, out) = (dir.path("frequencies.npz"), dir.path("cached.ttr"));
        let counts: Vec<u32> =
            (0..ROWS as u32).map(|at| if at % 9 == 0 { 1000 } else { 1 }).collect();
        write_npz(&frequencies, &[("item", vector(&counts))]);
        ttrec!["cache", &blob, "--frequencies", frequencies, "--budget", "400", "-o", &out]
            .exits(0);
        let kept = ttrec!["inspect", &out, "--json"].exits(0).stdout;
        assert!(!kept.contains(r#""overrides": 2,"#), "{kept}");
        assert_eq!(
            looked_up(&dir, &out, "rows", &all, &[0, ROWS as u64]),
            rows.concat(),
            "{dtype}"
        );
        assert_eq!(
            looked_up(&dir, &out, "sum", &indices, &offsets),
            sums([&every, &[], &others]),
            "{dtype}"
        );
        ttrec!["bench", &out, "--quick", "--bags", dir.path("bags.npz")].exits(0);
    }
}
