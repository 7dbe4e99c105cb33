//! `ttrec bench`: every measurement is there and is a number. How fast anything is, no test can
//! say.

use crate::support::{Dir, Run, TTREC, golden, run, vector, write_npz};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

fn bench(isa: Option<&str>, args: &[&str]) -> Run {
    let mut command = Command::new(TTREC);
    command
        .args(["bench", "--quick"])
        .args(args)
        .env_remove("TTREC_ISA")
        .envs(isa.map(|isa| ("TTREC_ISA", isa)));
    run(command)
}

fn json(run: Run) -> Value {
    serde_json::from_str(&run.exits(0).stdout).expect("JSON and nothing else")
}

/// The figures of a suite by name; each has its tier, and every number in it is positive.
#[track_caller]
fn names<'r>(report: &'r Value, suite: &str, numbers: &[&str]) -> Vec<&'r str> {
    let figures = report[suite].as_array().unwrap_or_else(|| panic!("no {suite} in {report}"));
    for figure in figures {
        assert_eq!(figure["tier"], report["tier"], "{figure}");
        for number in numbers {
            assert!(
                figure[number].as_f64().is_some_and(|number| number.is_finite() && number > 0.0),
                "{figure}"
            );
        }
    }
    figures.iter().map(|figure| figure["name"].as_str().expect("a name")).collect()
}

#[test]
fn every_kernel_is_measured() {
    let report = json(bench(None, &["--suite", "kernels", "--json"]));
    let mut wanted = Vec::new();
    for dtype in ["f32", "f16", "bf16", "i8"] {
        wanted.extend(
            ["m24-r32-n128", "m24-r64-n256", "m24-r16-n64"]
                .map(|size| format!("step-{dtype}-{size}")),
        );
        if dtype == "f32" {
            wanted.extend(
                ["m4-r32-n128", "m2-r32-n64", "m5-r33-n129"].map(|size| format!("step-f32-{size}")),
            );
        }
    }
    wanted.extend([4, 8, 16, 64].map(|n| format!("last-f32-m16-r32-n{n}")));
    assert_eq!(names(&report, "kernels", &["gflops", "peak_fraction"]), wanted);
    for number in ["fma_peak_gflops", "memory_gbps"] {
        assert!(
            report[number].as_f64().is_some_and(|number| number.is_finite() && number > 0.0),
            "{report}"
        );
    }
    assert!(report.get("tables").is_none(), "{report}");
}

#[test]
fn every_table_is_measured() {
    let report = json(bench(None, &["--suite", "tables", "--json"]));
    let mut wanted = Vec::new();
    for dtype in ["f32", "f16", "i8", "i4"] {
        wanted.extend(["uniform", "zipf", "zipf-sorted"].map(|ids| format!("dense-{dtype}-{ids}")));
    }
    for num_books in [8, 16] {
        for dtype in ["f16", "i8"] {
            wanted.extend(
                ["uniform", "zipf", "zipf-sorted"]
                    .map(|ids| format!("codes-{dtype}-m{num_books}-{ids}")),
            );
        }
    }
    for q in ["4x4x4", "2x2x16"] {
        for rank in [16, 32, 64] {
            for dtype in ["f32", "i8"] {
                wanted.extend(
                    ["uniform", "zipf-sorted"].map(|ids| format!("tt-{dtype}-q{q}-r{rank}-{ids}")),
                );
            }
        }
    }
    assert_eq!(names(&report, "tables", &["ns_per_lookup"]), wanted);
    let (dense, tt) = report["tables"].as_array().expect("an array").split_at(24);
    assert!(dense.iter().all(|table| table["memory_fraction"].is_f64()), "{report}");
    assert!(tt.iter().all(|table| table["peak_fraction"].is_f64()), "{report}");
    assert!(
        report["notes"].to_string().contains("dense tables have"),
        "smaller tables go unsaid: {report}"
    );
}

#[test]
fn every_table_of_the_catalogue_is_measured() {
    let report = json(bench(None, &["--suite", "catalogue", "--json"]));
    let ranks = [8, 16, 32, 64].map(|rank| format!("tt-f32-q2x2x16-r{rank}"));
    let others = ["tt-i8-q2x2x16-r16", "train-q2x1x32-r16", "train-q2x1x32-r32"];
    let tables = ["dense-f32", "dense-i8"].map(String::from).into_iter().chain(ranks);
    let wanted: Vec<String> = tables
        .chain(others.map(String::from))
        .flat_map(|name| [name.clone(), name.clone(), name])
        .collect();
    let numbers = ["queries", "ms_per_query", "dense_times", "workspace_bytes"];
    assert_eq!(names(&report, "catalogue", &numbers), wanted);
    let (dense, tt) = report["catalogue"].as_array().expect("an array").split_at(6);
    assert!(dense.iter().all(|table| table["memory_fraction"].is_f64()), "{report}");
    assert!(tt.iter().all(|table| table["peak_fraction"].is_f64()), "{report}");
}

/// Baskets as `--retail` takes them.
fn baskets(dir: &Dir, bags: u32, items: &[u16]) -> PathBuf {
    let path = dir.path("retail.npz");
    let offsets: Vec<u32> = (0..=bags).map(|bag| bag * items.len() as u32 / bags).collect();
    write_npz(&path, &[("offsets", vector(&offsets)), ("items", vector(items))]);
    path
}

#[test]
fn every_workload_is_measured() {
    let dir = Dir::new();
    let items: Vec<u16> = (0..2_000).map(|at| (at * 37 % 16_470) as u16).collect();
    let retail = baskets(&dir, 600, &items);
    let report =
        json(bench(None, &["--suite", "batch", "--json", "--retail", retail.to_str().unwrap()]));
    let mut wanted = Vec::new();
    for (name, ranks, cached) in [
        ("W1", [16, 32, 64], false),
        ("W2", [16, 32, 64], true),
        ("W3-uniform", [16, 32, 64], false),
        ("W3-zipf", [16, 32, 64], true),
        ("W6-uniform", [8, 16, 32], false),
        ("W6-zipf", [8, 16, 32], true),
    ] {
        for rank in ranks {
            wanted.push(format!("{name}-R{rank}"));
            if cached && rank == 32 {
                wanted.extend(["cached", "lfu"].map(|kind| format!("{name}-R{rank}-{kind}")));
            }
        }
    }
    for rank in [16, 32] {
        for bags in [1, 128, 2048] {
            wanted.push(format!("W4-R{rank}-B{bags}"));
            wanted.extend((rank == 16 && bags > 1).then(|| format!("W4-R{rank}-B{bags}-cached")));
        }
    }
    wanted.push("W5-R16".to_owned());
    let beside_dense = wanted.len();
    wanted.extend(
        ["single-R32", "bag20-R32", "growth-1000", "growth-10000", "growth-100000"]
            .map(str::to_owned),
    );
    assert_eq!(names(&report, "workloads", &["ns_per_lookup", "workspace_bytes"]), wanted);

    let workloads = report["workloads"].as_array().expect("an array");
    for (at, workload) in workloads.iter().enumerate() {
        let has = |number: &str| {
            workload[number]
                .as_f64()
                .is_some_and(|number| number.is_finite() && number > 0.0)
        };
        let name = workload["name"].as_str().expect("a name");
        assert_eq!(has("dense_ns_per_lookup"), at < beside_dense, "{workload}");
        assert_eq!(has("times_dense"), at < beside_dense, "{workload}");
        assert_eq!(
            has("cold_ns_per_lookup") && has("cold_times_dense"),
            at < beside_dense,
            "{workload}"
        );
        assert_eq!(
            has("hit_rate") && has("record_ns_per_lookup"),
            name.ends_with("-lfu"),
            "{workload}"
        );
        assert_eq!(has("peak_fraction"), !name.starts_with("W4"), "{workload}");
        assert_eq!(has("bare_ns_per_lookup"), name == "single-R32", "{workload}");
        assert_eq!(has("single_ns_per_lookup"), name == "bag20-R32", "{workload}");
    }
    let notes = report["notes"].to_string();
    assert!(
        notes.contains("dense tables have") && notes.contains("dense tables of W4 have"),
        "{report}"
    );
    assert!(!notes.contains("W5"), "{report}");
}

#[test]
fn baskets_that_do_not_fit_are_refused() {
    let dir = Dir::new();
    let refused = |path: &Path, wanted: &[&str]| {
        let path = path.to_str().unwrap();
        bench(None, &["--suite", "batch", "--retail", path])
            .exits(3)
            .says([path])
            .says(wanted);
    };
    refused(&baskets(&dir, 511, &[1; 600]), &["fewer than 512 bags"]);
    refused(&baskets(&dir, 512, &[16_470; 600]), &["index 16470 at position 0", "16470 rows"]);
    refused(&golden("fbtt_d3.expected.npz"), &["array \"items\" is missing"]);
    refused(&dir.path("missing.npz"), &["missing.npz"]);
}

#[test]
fn all_suites_are_printed_for_people() {
    bench(None, &[]).exits(0).prints([
        "GFLOP/s",
        "GB/s",
        "step-f32-m24-r32-n128",
        "ns/lookup",
        "dense-i4-uniform",
        "W2-R32-cached",
        "train-q2x1x32-r32",
        "skipped W5 (a retailer's baskets)",
    ]);
}

/// A blob of a table with overrides and a dense one, and a file of bags.
fn own(dir: &Dir) -> (String, String) {
    let spec = fs::read_to_string(golden("two_tables.toml")).unwrap();
    let blob = dir.convert(&golden("fbtt_d3_cache.safetensors"), &spec, "blob.ttr");
    let bags = dir.path("bags.npz");
    let weights = vector(&[0.5f32, -2.0, 1.0, 3.0]);
    let arrays = [
        ("indices", vector(&[3i64, 7, 7, 0])),
        ("offsets", vector(&[0i64, 2, 2, 4])),
        ("weights", weights),
    ];
    write_npz(&bags, &arrays);
    (blob.to_str().unwrap().to_owned(), bags.to_str().unwrap().to_owned())
}

#[test]
fn a_blob_of_ones_own_is_measured_in_every_mode() {
    let dir = Dir::new();
    let (blob, bags) = own(&dir);
    for mode in [
        &["--mode", "sum"][..],
        &["--mode", "mean"],
        &["--mode", "max"],
        &["--mode", "rows"],
        &["--weighted"],
    ] {
        let own = json(bench(
            None,
            &[&[&blob, "--bags", &bags, "--table", "item", "--json"], mode].concat(),
        ));
        let own = &own["own"];
        assert_eq!(own["table"], "item", "{own}");
        assert_eq!(own["bags"], if mode.contains(&"rows") { 4 } else { 3 }, "{own}");
        assert_eq!(own["lookups"], 4, "{own}");
        for number in ["ns_per_lookup", "ns_per_bag", "peak_fraction", "workspace_bytes"] {
            assert!(
                own[number].as_f64().is_some_and(|number| number.is_finite() && number > 0.0),
                "{own}"
            );
        }
    }
    bench(None, &[&blob, "--bags", &bags, "--table", "item"]).exits(0).prints([
        "item: 3 bags, 4 lookups",
        "bytes of workspace",
        "ns/lookup",
        "ns/bag",
        "of peak",
    ]);
}

#[test]
fn what_of_ones_own_cannot_be_measured_is_refused() {
    let dir = Dir::new();
    let (blob, bags) = own(&dir);
    bench(None, &[&blob, "--bags", &bags])
        .exits(3)
        .says([&blob, "--table", "\"item\""]);
    bench(None, &[&blob, "--bags", &bags, "--table", "shop"])
        .exits(3)
        .says([&blob, "\"shop\"", "\"item\""]);
    bench(None, &[&blob, "--bags", &bags, "--table", "item", "--weighted", "--mode", "max"])
        .exits(3)
        .says([&bags]);
    for (indices, wanted) in
        [(&[1i64 << 40][..], "index 1099511627776 at position 0"), (&[], "no lookups")]
    {
        let file = dir.path("wrong.npz");
        write_npz(
            &file,
            &[("indices", vector(indices)), ("offsets", vector(&[0, indices.len() as i64]))],
        );
        let file = file.to_str().unwrap();
        bench(None, &[&blob, "--bags", file, "--table", "item"])
            .exits(3)
            .says([file, "\"item\"", wanted]);
    }
    bench(None, &[&blob]).exits(2).says(["--bags"]);
    bench(None, &["--bags", &bags]).exits(2).says(["BLOB"]);
    bench(None, &[&blob, "--bags", &bags, "--suite", "batch"])
        .exits(2)
        .says(["--suite"]);
}

#[test]
fn a_lower_tier_can_be_forced_and_an_unknown_one_is_refused() {
    let report = json(bench(Some("scalar"), &["--suite", "kernels", "--json"]));
    assert_eq!(report["tier"], "scalar");
    names(&report, "kernels", &["gflops", "peak_fraction"]);
    bench(Some("nonsense"), &[]).exits(3).says(["nonsense", "scalar"]);
    bench(None, &["--suite", "everything"])
        .exits(2)
        .says(["kernels", "tables", "batch"]);
}
