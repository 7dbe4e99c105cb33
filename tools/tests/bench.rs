//! `ttrec bench`: every measurement is there and is a number. How fast anything is, no test can say.

mod support;

use serde_json::Value;
use std::process::Command;
use support::{Run, TTREC, run};

fn bench(isa: Option<&str>, args: &[&str]) -> Run {
    let mut command = Command::new(TTREC);
    command.args(["bench", "--quick"]).args(args).env_remove("TTREC_ISA").envs(isa.map(|isa| ("TTREC_ISA", isa)));
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
            assert!(figure[number].as_f64().is_some_and(|number| number.is_finite() && number > 0.0), "{figure}");
        }
    }
    figures.iter().map(|figure| figure["name"].as_str().expect("a name")).collect()
}

#[test]
fn every_kernel_is_measured() {
    let report = json(bench(None, &["--suite", "kernels", "--json"]));
    let mut wanted = Vec::new();
    for dtype in ["f32", "f16", "bf16", "i8"] {
        wanted.extend(["m24-r32-n128", "m24-r64-n256", "m24-r16-n64"].map(|size| format!("step-{dtype}-{size}")));
        if dtype == "f32" {
            wanted.extend(["m4-r32-n128", "m2-r32-n64", "m5-r33-n129"].map(|size| format!("step-f32-{size}")));
        }
    }
    wanted.extend([4, 8, 16, 64].map(|n| format!("last-f32-m16-r32-n{n}")));
    assert_eq!(names(&report, "kernels", &["gflops", "peak_fraction"]), wanted);
    for number in ["fma_peak_gflops", "memory_gbps"] {
        assert!(report[number].as_f64().is_some_and(|number| number.is_finite() && number > 0.0), "{report}");
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
    for q in ["4x4x4", "2x2x16"] {
        for rank in [16, 32, 64] {
            for dtype in ["f32", "i8"] {
                wanted.extend(["uniform", "zipf-sorted"].map(|ids| format!("tt-{dtype}-q{q}-r{rank}-{ids}")));
            }
        }
    }
    assert_eq!(names(&report, "tables", &["ns_per_lookup"]), wanted);
    let (dense, tt) = report["tables"].as_array().expect("an array").split_at(12);
    assert!(dense.iter().all(|table| table["memory_fraction"].is_f64()), "{report}");
    assert!(tt.iter().all(|table| table["peak_fraction"].is_f64()), "{report}");
    assert!(report["notes"].to_string().contains("dense tables have"), "smaller tables go unsaid: {report}");
}

#[test]
fn both_suites_are_printed_for_people() {
    bench(None, &[]).exits(0).prints(["GFLOP/s", "GB/s", "step-f32-m24-r32-n128", "ns/lookup", "dense-i4-uniform"]);
}

#[test]
fn a_lower_tier_can_be_forced_and_an_unknown_one_is_refused() {
    let report = json(bench(Some("scalar"), &["--suite", "kernels", "--json"]));
    assert_eq!(report["tier"], "scalar");
    names(&report, "kernels", &["gflops", "peak_fraction"]);
    bench(Some("nonsense"), &[]).exits(3).says(["nonsense", "scalar"]);
    bench(None, &["--suite", "everything"]).exits(2).says(["kernels", "tables"]);
}
