//! `ttrec cache`: what it stores, that lookups stay as they were, and what it refuses.

use crate::support::{
    Dir, Elements, Run, golden, npy, ttrec, vector, write_npz, write_safetensors,
};
use safetensors::Dtype::F32;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use ttrec::{
    AlignedBuf, Blob, DigitOrder, TtShape,
    blob::{Layout, OverridesSpec, Role, TableSpec, WeightsSpec},
    dtype::{Dtype, encode, encode_rows, encode_slice},
    repr::Weights,
};

/// Runs `cache` on `blob` with these arrays as frequencies; the new blob is `out.ttr`.
fn cache(dir: &Dir, blob: &Path, arrays: &[(&str, Vec<u8>)], budget: &str) -> Run {
    let frequencies = dir.path("frequencies.npz");
    write_npz(&frequencies, arrays);
    let out = dir.path("out.ttr");
    // One lookup in a batch, so that nothing is shared.
    ttrec![
        "cache",
        blob,
        "--frequencies",
        frequencies,
        "--budget",
        budget,
        "--batch",
        "1",
        "-o",
        out,
        "--json"
    ]
}

/// The same, done; what it says.
#[track_caller]
fn cached(dir: &Dir, blob: &Path, arrays: &[(&str, Vec<u8>)], budget: &str) -> serde_json::Value {
    let run = cache(dir, blob, arrays, budget).exits(0);
    ttrec!["verify", dir.path("out.ttr")].exits(0);
    serde_json::from_str(&run.stdout).unwrap()
}

fn read(path: &Path) -> AlignedBuf {
    AlignedBuf::from_slice(&fs::read(path).unwrap())
}

/// The ids of the rows and prefixes that a blob stores.
fn stored(path: &Path, table: &str) -> (Vec<u64>, Vec<u64>) {
    let buf = read(path);
    let blob = Blob::parse(&buf).unwrap();
    let table = *blob.table(table).unwrap().data();
    let Weights::Tt(tt) = table.weights() else { panic!("a dense table") };
    (
        table.overrides().map_or(vec![], |o| o.ids().to_vec()),
        tt.prefixes().map_or(vec![], |p| p.ids().to_vec()),
    )
}

/// The bytes of every section of a table, but those that `cache` adds to.
fn sections(path: &Path, table: &str) -> Vec<Vec<u8>> {
    let buf = read(path);
    let blob = Blob::parse(&buf).unwrap();
    let sections = blob.table(table).unwrap().sections();
    let kept = sections
        .filter(|section| matches!(section.role, Role::Rows | Role::Core(_) | Role::Scales(_)));
    kept.map(|section| buf[section.offset as usize..][..section.len as usize].to_vec())
        .collect()
}

/// What `lookup` gives for these bags of a table.
#[track_caller]
fn look_up(
    dir: &Dir,
    blob: &Path,
    table: &str,
    [indices, offsets]: [&[u64]; 2],
    mode: &str,
) -> Vec<f32> {
    let (bags, out) = (dir.path("bags.npz"), dir.path("out.npy"));
    write_npz(&bags, &[("indices", vector(indices)), ("offsets", vector(offsets))]);
    ttrec!["lookup", blob, "--table", table, "--bags", bags, "--mode", mode, "-o", &out].exits(0);
    crate::support::read_f32(&out).1
}

/// Every row of both blobs, looked up, has the same bits; sums differ by no more than rounding.
#[track_caller]
fn assert_same_rows(dir: &Dir, [before, after]: [&Path; 2], table: &str, rows: u64) {
    let ids: Vec<u64> = (0..rows).collect();
    let bags: Vec<u64> = (0..rows).step_by(7).chain([rows]).collect();
    let all = [before, after].map(|blob| look_up(dir, blob, table, [&ids, &[0, rows]], "rows"));
    let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert!(bits(&all[0]) == bits(&all[1]), "{table}: rows differ");
    let sums = [before, after].map(|blob| look_up(dir, blob, table, [&ids, &bags], "sum"));
    let largest = all[0].iter().fold(0f32, |largest, x| x.abs().max(largest));
    assert!(largest > 0.0);
    for (a, b) in sums[0].iter().zip(&sums[1]) {
        assert!((a - b).abs() <= 7.0 * 2e-6 * largest, "{table}: {a} {b}");
    }
}

/// Bytes of each table, by `inspect`.
fn bytes(blob: &Path) -> Vec<u64> {
    let run = ttrec!["inspect", blob, "--json"].exits(0);
    let summary: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    summary["tables"]
        .as_array()
        .unwrap()
        .iter()
        .map(|table| table["bytes"].as_u64().unwrap())
        .collect()
}

fn random(state: &mut u32) -> f32 {
    *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
    (*state >> 8) as f32 / (1 << 24) as f32 - 0.5
}

/// Counts as logs have them: few rows often, most of them seldom or never.
fn skewed(rows: u64) -> Vec<u32> {
    (0..rows).map(|row| (1_000_000 / (1 + row * 37 % rows).pow(2)) as u32).collect()
}

/// A blob of one table "t" of 64 rows whose prefixes are worth storing: p (2, 2, 16), q (2, 2, 2),
/// ranks (256, 8). A lookup costs 2 x 256 x 2 x 8 x 2 = 16384 for its prefix and 4640 for its last
/// step and planning, 21024. A stored prefix costs 4000 + 8 x 128 = 5024, which saves 11360 for 136
/// bytes; a stored row 4000 + 8 x 32 = 4256, which saves 16768 for 40.
fn small(dir: &Dir) -> PathBuf {
    let mut state = 1;
    let mut core = |p: usize, len: usize| {
        let values: Vec<f32> = (0..p * len).map(|_| random(&mut state)).collect();
        ([1, p, len], values[..].bytes())
    };
    let cores = [core(2, 2 * 256), core(2, 256 * 2 * 8), core(16, 8 * 2)];
    let checkpoint = dir.path("small.safetensors");
    let names = ["tt_cores.0", "tt_cores.1", "tt_cores.2"];
    let tensors: Vec<_> = names
        .into_iter()
        .zip(&cores)
        .map(|(name, (shape, bytes))| (name, F32, &shape[..], bytes.clone()))
        .collect();
    write_safetensors(&checkpoint, &tensors);
    dir.convert(
        &checkpoint,
        "[[table]]\nname = \"t\"\nnum_embeddings = 64\nranks = [256, 8]\n",
        "small.ttr",
    )
}

/// Counts of 64 rows: these, and 0 for the others.
fn counts(of: &[(std::ops::Range<usize>, f32)]) -> Vec<u8> {
    let mut counts = [0f32; 64];
    of.iter().for_each(|(rows, count)| counts[rows.clone()].fill(*count));
    vector(&counts)
}

const ITEM: &str =
    "[[table]]\nname = \"item\"\nnum_embeddings = 1000\ncolumn_factors = [4, 4, 4]\n";

/// A directory with `item.ttr`, converted from `fbtt_d3`.
fn item() -> (Dir, PathBuf) {
    let dir = Dir::new();
    let blob = dir.convert(&golden("fbtt_d3.safetensors"), ITEM, "item.ttr");
    (dir, blob)
}

// What it stores.

#[test]
fn rows_keep_their_bits_and_the_budget_is_kept() {
    for (name, table, rows) in [
        ("fbtt_d2", "user", 5000),
        ("fbtt_d3", "item", 1000),
        ("fbtt_d4", "shop", 3000),
        ("fbtt_d3_cache", "ad", 4000),
    ] {
        let spec = fs::read_to_string(golden(&format!("{name}.toml"))).unwrap();
        for dtype in ["f32", "f16", "i8"] {
            let dir = Dir::new();
            let blob = dir.convert(
                &golden(&format!("{name}.safetensors")),
                &format!("{spec}\ndtype = {dtype:?}\n"),
                "blob.ttr",
            );
            let out = dir.path("out.ttr");
            for budget in ["100", "20000", "5%"] {
                let report = cached(&dir, &blob, &[(table, vector(&skewed(rows)))], budget);
                let limit = report["budget"].as_u64().unwrap();
                let added = bytes(&out)[0] - bytes(&blob)[0];
                assert!(added <= limit, "{name} {dtype} {budget}: {report}");
                assert_eq!(report["tables"][0]["bytes"], added, "{report}");
                assert_eq!(report["bytes"], fs::metadata(&out).unwrap().len());
                // Not much is left of it: no more than a row.
                assert!(limit < 1000 || limit - added <= 300, "{name} {dtype} {budget}: {report}");
                assert_same_rows(&dir, [&blob, &out], table, rows);
                assert_eq!(sections(&blob, table), sections(&out, table));
            }
        }
    }
}

#[test]
fn the_rows_that_are_asked_for_are_stored_and_no_others() {
    let (dir, blob) = item();
    let mut counts = vec![0u32; 1000];
    for row in [3, 500, 999] {
        counts[row] = 1 + row as u32;
    }
    let report = cached(&dir, &blob, &[("item", vector(&counts))], "1MiB");
    assert_eq!(stored(&dir.path("out.ttr"), "item"), (vec![3, 500, 999], vec![]));
    let table = &report["tables"][0];
    assert_eq!(
        (&table["rows"], &table["prefixes"], &table["bytes"]),
        (&3.into(), &0.into(), &(3 * 264).into())
    );
    assert_eq!(table["served"]["by_row"], 1.0);
    assert_same_rows(&dir, [&blob, &dir.path("out.ttr")], "item", 1000);
    // Room for two of them: the most frequent.
    cached(&dir, &blob, &[("item", vector(&counts))], "791");
    assert_eq!(stored(&dir.path("out.ttr"), "item").0, [500, 999]);
    // What f32 could not tell apart.
    let mut large = vec![0u64; 1000];
    (large[3], large[500]) = (1 << 24, (1 << 24) + 1);
    for counts in
        [vector(&large), vector(&large.iter().map(|&count| count as f64).collect::<Vec<_>>())]
    {
        cached(&dir, &blob, &[("item", counts)], "264");
        assert_eq!(stored(&dir.path("out.ttr"), "item").0, [500]);
    }
    // Equal ones: the lower ids.
    let mut equal = [0u8; 1000];
    equal[20..27].fill(2);
    cached(&dir, &blob, &[("item", vector(&equal))], "792");
    assert_eq!(stored(&dir.path("out.ttr"), "item").0, [20, 21, 22]);
    // No room, nothing asked for, or too much else asked for, which would all be searched for in
    // vain: as it was.
    for (counts, budget) in [(vector(&counts), "263"), (vector(&[2u8; 1000]), "792")] {
        cached(&dir, &blob, &[("item", counts)], budget);
        assert!(fs::read(&blob).unwrap() == fs::read(dir.path("out.ttr")).unwrap());
    }
    let report = cached(&dir, &blob, &[("item", vector(&[0f32; 1000]))], "1MiB");
    assert!(fs::read(&blob).unwrap() == fs::read(dir.path("out.ttr")).unwrap());
    assert_eq!(report["tables"][0]["served"]["computed"], 0.0);
}

#[test]
fn rows_and_prefixes_compete_for_the_budget() {
    let dir = Dir::new();
    let (blob, out) = (small(&dir), dir.path("out.ttr"));
    let share =
        |report: &serde_json::Value, of: &str| report["tables"][0]["served"][of].as_f64().unwrap();

    // Row 5, and the sixteen rows of prefix 1 that are worth 170,000 together but 16,000 each.
    let arrays = [("t", counts(&[(5..6, 100.0), (16..32, 1.0), (32..48, 0.25)]))];
    let report = cached(&dir, &blob, &arrays, "176");
    assert_eq!(stored(&out, "t"), (vec![5], vec![1]));
    assert_eq!(report["tables"][0]["bytes"], 176);
    for (of, expected) in [("by_row", 100.0), ("by_prefix", 16.0), ("computed", 4.0)] {
        assert!((share(&report, of) - expected / 120.0).abs() < 1e-12, "{report}");
    }
    assert_same_rows(&dir, [&blob, &out], "t", 64);
    ttrec!["inspect", &out]
        .exits(0)
        .prints(["1 overridden rows", "1 prefix products"]);

    // One byte less: the prefix or four rows; the row is worth most.
    cached(&dir, &blob, &arrays, "175");
    assert_eq!(stored(&out, "t"), (vec![5, 16, 17, 18], vec![]));
    // Without row 5 it is the prefix: 170,000 against 4 x 16,000.
    let arrays = [("t", counts(&[(16..32, 1.0), (32..48, 0.25)]))];
    cached(&dir, &blob, &arrays, "175");
    assert_eq!(stored(&out, "t"), (vec![], vec![1]));
    // A prefix whose rows are all stored is never needed.
    cached(&dir, &blob, &arrays, "1MB");
    assert_eq!(stored(&out, "t"), ((16..48).collect(), vec![]));

    // Again, on top of what is there: it stays, is not counted and not stored twice.
    let arrays = [("t", counts(&[(5..6, 100.0), (16..32, 1.0), (32..48, 0.25)]))];
    cached(&dir, &blob, &arrays, "176");
    let once = dir.path("once.ttr");
    fs::rename(&out, &once).unwrap();
    let report = cached(
        &dir,
        &once,
        &[("t", counts(&[(0..16, 1.0), (16..32, 1.0), (33..34, 90.0)]))],
        "176",
    );
    assert_eq!(stored(&out, "t"), (vec![5, 33], vec![0, 1]));
    assert_eq!(report["tables"][0]["bytes"], 176);
    // Of 90 lookups of a row, where as many rows are seen once as here, 0.75 are taken to be of
    // others.
    for (of, expected) in [("by_row", 90.25), ("by_prefix", 31.0), ("computed", 0.75)] {
        assert!((share(&report, of) - expected / 122.0).abs() < 1e-12, "{report}");
    }
    assert_same_rows(&dir, [&blob, &out], "t", 64);
}

#[test]
fn tables_share_the_budget_and_dense_ones_stay() {
    let dir = Dir::new();
    let spec = fs::read_to_string(golden("two_tables.toml")).unwrap();
    let tt = "[[table]]\nname = \"more\"\nprefix = \"\"\nnum_embeddings = 4000\ncolumn_factors = \
              [2, 2, 4]\n";
    let blob =
        dir.convert(&golden("fbtt_d3_cache.safetensors"), &format!("{spec}\n{tt}"), "blob.ttr");
    let out = dir.path("out.ttr");
    let there = stored(&blob, "item").0;
    let free: Vec<u64> = (0..4000).filter(|row| !there.contains(row)).collect();
    // Equal in both tables: the first table comes first. The dense table's numbers are not used.
    let ones = || vector(&[1u16; 4000]);
    cached(&dir, &blob, &[("item", ones()), ("more", ones()), ("user", vector(&[1i64]))], "300");
    assert_eq!(stored(&out, "item").0.len(), there.len() + 4);
    assert_eq!(stored(&out, "more").0, there);
    assert_eq!(sections(&blob, "user"), sections(&out, "user"));
    // By need, not by halves.
    let mut often = [1u16; 4000];
    often[free[9] as usize..].fill(2);
    cached(&dir, &blob, &[("item", ones()), ("more", vector(&often))], "300");
    assert_eq!(stored(&out, "item").0, there);
    assert_eq!(stored(&out, "more").0.len(), there.len() + 4);
    // Only one of them has frequencies: a percentage is of that one.
    let report = cached(&dir, &blob, &[("more", ones())], "1%");
    assert_eq!(report["budget"], 4000 * 16 * 4 / 100);
    assert_eq!(report["tables"][0]["served"], serde_json::Value::Null);
    assert_eq!(stored(&out, "item").0, there);
    for table in ["item", "more"] {
        assert_same_rows(&dir, [&blob, &out], table, 4000);
    }
    let frequencies = dir.path("frequencies.npz");
    ttrec!["cache", &blob, "--frequencies", frequencies, "--budget", "0.5KiB", "-o", &out]
        .exits(0)
        .prints([
            "item: unchanged",
            "more: 7 rows and 0 prefixes added, 504 bytes",
            "user: unchanged",
            "(budget 512)",
        ]);
}

#[test]
fn rows_that_are_stored_already_stay_exact_and_free() {
    let dir = Dir::new();
    let spec = fs::read_to_string(golden("fbtt_d3_cache.toml")).unwrap();
    let blob =
        dir.convert(&golden("fbtt_d3_cache.pt"), &format!("{spec}\ndtype = \"i8\"\n"), "blob.ttr");
    let there = stored(&blob, "ad").0;
    assert_eq!(there.len(), 20);
    // They are the most frequent, but use none of a budget of two rows.
    let mut often = vec![0u32; 4000];
    there.iter().for_each(|&row| often[row as usize] = 100);
    let free: Vec<usize> = (0..4000).filter(|&row| often[row] == 0).take(3).collect();
    [30, 10, 20].into_iter().zip(&free).for_each(|(count, &row)| often[row] = count);
    let report = cached(&dir, &blob, &[("ad", vector(&often))], "144");
    let mut expected = [&there[..], &[free[0] as u64, free[2] as u64]].concat();
    expected.sort();
    assert_eq!(stored(&dir.path("out.ttr"), "ad").0, expected);
    assert_eq!(
        (&report["tables"][0]["rows"], &report["tables"][0]["bytes"]),
        (&2.into(), &144.into())
    );
    let served = report["tables"][0]["served"]["by_row"].as_f64().unwrap();
    assert!((served - 2050.0 / 2060.0).abs() < 1e-12, "{report}");
    assert_same_rows(&dir, [&blob, &dir.path("out.ttr")], "ad", 4000);
}

#[test]
fn narrow_rows_and_odd_products_keep_their_values() {
    // What no converter writes: core 0 least significant, rows apart in every type, and products
    // that no core gives.
    let shape = TtShape::new(470, &[6, 5, 16], &[4, 2, 2], &[64, 16]).unwrap();
    let shape = shape.with_digit_order(DigitOrder::LeastSignificantFirst);
    let (rows, prefixes) = ([0u64, 7, 8, 469], [2u64, 29]);
    for &dtype in Dtype::ALL {
        let columns = if (dtype as u8).is_multiple_of(2) {
            shape.digit_order()
        } else {
            shape.digit_order().reversed()
        };
        let shape = shape.with_column_order(columns);
        let dir = Dir::new();
        let cores = if dtype == Dtype::I4 { Dtype::I8 } else { dtype };
        let spec = TableSpec {
            num_prefixes: prefixes.len() as u64,
            overrides: Some(OverridesSpec { count: rows.len() as u64, dtype }),
            ..TableSpec::new("t", WeightsSpec::Tt { shape, dtype: cores })
        };
        let mut state = 7;
        let mut values =
            |len: usize| -> Vec<f32> { (0..len).map(|_| random(&mut state)).collect() };
        let buf = Layout::new(&[spec]).unwrap().build(|plan, out| match plan.role {
            Role::Core(k) => {
                for slice in out.chunks_exact_mut(cores.bytes_of(shape.slice_len(k))) {
                    encode_slice(&values(shape.slice_len(k)), cores, slice).unwrap();
                }
            }
            Role::Scales(_) => encode(&vec![0.01; out.len() / 4], Dtype::F32, out).unwrap(),
            Role::OverrideIds => out.copy_from_slice(&rows[..].bytes()),
            Role::PrefixIds => out.copy_from_slice(&prefixes[..].bytes()),
            Role::PrefixProducts => encode(&values(out.len() / 4), Dtype::F32, out).unwrap(),
            _ => encode_rows(&values(16 * rows.len()), 16, dtype, out).unwrap(),
        });
        let (blob, out) = (dir.file("blob.ttr", &buf[..]), dir.path("out.ttr"));
        ttrec!["verify", &blob].exits(0);
        let mut counts = vec![0f64; 470];
        // The rows of prefix 3; one of prefix 2, whose product is there; one that is there itself.
        (3..470).step_by(30).for_each(|row| counts[row] = 5.0);
        counts[32] = 1000.0;
        counts[7] = 1e6;
        let budget = (8 + 64) + (8 + 512);
        cached(&dir, &blob, &[("t", vector(&counts))], &budget.to_string());
        assert_eq!(stored(&out, "t"), (vec![0, 7, 8, 32, 469], vec![2, 3, 29]), "{dtype:?}");
        assert_same_rows(&dir, [&blob, &out], "t", 470);
        // Without new rows, they keep their type.
        counts[32] = 0.0;
        cached(&dir, &blob, &[("t", vector(&counts))], "71");
        assert!(fs::read(&blob).unwrap() == fs::read(&out).unwrap(), "{dtype:?}");
    }
}

#[test]
fn pairs_of_indices_and_counts_say_the_same_as_arrays() {
    let (dir, blob) = item();
    let counts = skewed(1000);
    cached(&dir, &blob, &[("item", vector(&counts))], "10KB");
    let expected = fs::read(dir.path("out.ttr")).unwrap();
    // In any order, in parts, and of any type.
    let indices: Vec<i32> = (0..1000).rev().chain(0..1000).collect();
    let halves: Vec<f64> =
        indices.iter().map(|&row| f64::from(counts[row as usize]) / 2.0).collect();
    cached(
        &dir,
        &blob,
        &[("item.indices", vector(&indices)), ("item.counts", vector(&halves))],
        "10KB",
    );
    assert!(fs::read(dir.path("out.ttr")).unwrap() == expected);
    let whole: Vec<i64> = counts.iter().map(|&count| count.into()).collect();
    for counts in [
        vector(&whole),
        npy(
            ">f8",
            &[1000],
            &counts.iter().flat_map(|&n| f64::from(n).to_be_bytes()).collect::<Vec<_>>(),
        ),
    ] {
        cached(&dir, &blob, &[("item", counts)], "10KB");
        assert!(fs::read(dir.path("out.ttr")).unwrap() == expected);
    }
}

#[test]
fn a_table_may_have_a_name_that_looks_like_half_of_a_pair() {
    let dir = Dir::new();
    let spec = [ITEM.to_owned(), ITEM.replace("\"item\"", "\"item.counts\"")].concat();
    let blob = dir.convert(&golden("fbtt_d3.safetensors"), &spec, "blob.ttr");
    let mut counts = [0u8; 1000];
    counts[77] = 2;
    cached(&dir, &blob, &[("item.counts", vector(&counts))], "1MB");
    assert_eq!(stored(&dir.path("out.ttr"), "item.counts").0, [77]);
    assert!(stored(&dir.path("out.ttr"), "item").0.is_empty());
    let pair = [("item.indices", vector(&[1u8])), ("item.counts", vector(&[1u8; 1000]))];
    refused(&dir, &blob, &pair, &["\"item.indices\" but not \"item.counts\""]);
}

// What it refuses.

#[track_caller]
fn refused(dir: &Dir, blob: &Path, arrays: &[(&str, Vec<u8>)], wanted: &[&str]) {
    let _ = fs::remove_file(dir.path("out.ttr"));
    let run = cache(dir, blob, arrays, "10KB").exits(3).says(wanted);
    run.says([dir.path("frequencies.npz").to_str().unwrap()]);
    assert!(!dir.names().iter().any(|name| name.contains("out.ttr")), "{:?}", dir.names());
}

#[test]
fn frequencies_that_do_not_fit_are_named() {
    let (dir, blob) = item();
    let refused =
        |arrays: &[(&str, Vec<u8>)], wanted: &[&str]| refused(&dir, &blob, arrays, wanted);
    let array = |counts: &[f32]| [("item", vector(counts))];
    refused(&array(&[1.0; 999]), &["\"item\" has 999 numbers", "expected 1000"]);
    refused(&array(&[1.0; 1001]), &["1001", "1000"]);
    let square = npy("<f4", &[10, 100], &[1f32; 1000][..].bytes());
    refused(&[("item", square)], &["\"item\" has shape [10, 100]", "one dimension"]);
    for (value, said) in
        [(f32::NAN, "NaN"), (-1.0, "-1"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")]
    {
        let mut counts = [1.0; 1000];
        counts[444] = value;
        refused(&array(&counts), &[&format!("item[444] is {said}: expected 0 or more")]);
    }
    refused(&[("item", vector(&[1e39f64; 1000]))], &["item[0] is 1", "finite in f32"]);
    let mut counts = [1i64; 1000];
    counts[999] = -3;
    refused(&[("item", vector(&counts))], &["item[999] is -3"]);
    let known = ("item", vector(&[1u8; 1000]));
    refused(
        &[known.clone(), ("itme", vector(&[1u8; 1000]))],
        &["\"itme\" has the name of no table", "\"item\""],
    );
    refused(&[("itme.indices", vector(&[1u8]))], &["\"itme.indices\" has the name of no table"]);

    let pair =
        |indices: Vec<u8>, counts: Vec<u8>| [("item.indices", indices), ("item.counts", counts)];
    refused(
        &pair(vector(&[5u64, 1000]), vector(&[1u8, 1])),
        &["item.indices[1] is 1000", "0 to 999"],
    );
    refused(&pair(vector(&[-1i64]), vector(&[1u8])), &["item.indices[0] is -1"]);
    refused(
        &pair(vector(&[0u64, u64::MAX]), vector(&[1u8, 1])),
        &["item.indices", "element 1", "18446744073709551615"],
    );
    refused(&pair(vector(&[0f32, 0.5]), vector(&[1u8, 1])), &["item.indices", "element 1", "0.5"]);
    refused(
        &pair(vector(&[5u64, 6]), vector(&[1u8])),
        &["\"item.counts\" has 1 numbers", "expected 2"],
    );
    refused(&pair(vector(&[5u64, 6]), vector(&[1f64, f64::NAN])), &["item.counts[1] is NaN"]);
    refused(
        &pair(npy("<u8", &[], &[5u64][..].bytes()), vector(&[1u8])),
        &["item.indices", "one dimension"],
    );
    let [indices, counts] = pair(vector(&[5u64]), vector(&[1u8]));
    refused(std::slice::from_ref(&indices), &["\"item.indices\" but not \"item.counts\""]);
    refused(std::slice::from_ref(&counts), &["\"item.counts\" but not \"item.indices\""]);
    refused(&[known, counts], &["both \"item\" and", "keep one of the two"]);
}

#[test]
fn a_blob_without_a_tensor_train_that_is_asked_for_is_refused() {
    let dir = Dir::new();
    let spec = fs::read_to_string(golden("two_tables.toml")).unwrap();
    let blob = dir.convert(&golden("fbtt_d3_cache.safetensors"), &spec, "blob.ttr");
    refused(
        &dir,
        &blob,
        &[("user", vector(&[1u8; 20]))],
        &["no array has the name of a tensor-train table", "[\"item\"]", "[\"user\"]"],
    );
}

#[test]
fn a_wrong_budget_is_a_wrong_command_line() {
    let (dir, blob) = item();
    for budget in ["0", "0%", "0MiB", "-5", "lots", "5 parsecs", "", "1e3", "nan%"] {
        let run = cache(&dir, &blob, &[("item", vector(&[1u8; 1000]))], budget);
        run.exits(2).says(["--budget", "28MiB"]);
    }
    assert!(!dir.path("out.ttr").exists());
    ttrec!["cache", &blob, "--budget", "1%", "-o", dir.path("out.ttr")]
        .exits(2)
        .says(["--frequencies"]);
    ttrec!["cache", "--help"]
        .exits(0)
        .prints(["item.indices", "item.counts", "padding", "1%"]);
    // Larger than any file: everything that is asked for.
    cached(&dir, &blob, &[("item", vector(&[1u8; 1000]))], "9000000000GB");
    assert_eq!(stored(&dir.path("out.ttr"), "item").0.len(), 1000);
}

#[test]
fn inputs_are_neither_replaced_nor_trusted() {
    let (dir, blob) = item();
    let whole = fs::read(&blob).unwrap();
    let frequencies = dir.path("frequencies.npz");
    write_npz(&frequencies, &[("item", vector(&[1u8; 1000]))]);
    let run = |output: &Path| {
        let mut command = Command::new(crate::support::TTREC);
        command
            .arg("cache")
            .arg(&blob)
            .args(["--budget", "1%", "--frequencies"])
            .arg(&frequencies)
            .arg("-o")
            .arg(output);
        crate::support::run(command)
    };
    for input in [&blob, &frequencies] {
        run(input).exits(3).says([input.to_str().unwrap(), "is an input"]);
    }
    assert!(fs::read(&blob).unwrap() == whole);

    let out = dir.path("out.ttr");
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    fs::write(&blob, &damaged).unwrap();
    run(&out).exits(3).says([blob.to_str().unwrap(), "damaged", "\"item\""]);
    damaged[70] ^= 1;
    fs::write(&blob, &damaged).unwrap();
    run(&out).exits(3).says([blob.to_str().unwrap(), "invalid blob"]);
    fs::write(&blob, &whole).unwrap();
    fs::write(&frequencies, "not an npz file").unwrap();
    run(&out).exits(3).says([frequencies.to_str().unwrap(), ".npz"]);
    assert!(!out.exists());
    write_npz(&frequencies, &[("item", vector(&[1u8; 1000]))]);
    run(&dir.path("missing/out.ttr"))
        .exits(4)
        .says(["missing/out.ttr", "cannot write"]);
    // What a run gives does not depend on the run.
    let outputs = [0, 1].map(|_| {
        run(&out).exits(0);
        fs::read(&out).unwrap()
    });
    assert!(outputs[0] == outputs[1]);
}
