//! Checkpoints that FBTT, tensorly-torch and t3nsor wrote, from file to looked-up rows, against the
//! answers that came with them.

use crate::support::{Array, Dir, golden, read_npz, ttrec};
use half::{bf16, f16};
use std::{collections::BTreeMap, fs, path::Path};

/// As `.pt` and `.safetensors`.
const CHECKPOINTS: [&str; 4] = ["fbtt_d2", "fbtt_d3", "fbtt_d4", "fbtt_d3_cache"];
/// Only as `.pt`.
const TORCH: [&str; 2] = ["tltorch_blocktt", "t3nsor"];
/// `lookup`'s arguments, and the array of the expected file.
const MODES: [(&[&str], &str); 5] = [
    (&["--mode", "rows"], "rows"),
    (&["--mode", "sum"], "sum"),
    (&["--mode", "mean"], "mean"),
    (&["--mode", "max"], "max"),
    (&["--mode", "sum", "--weighted"], "weighted_sum"),
];
/// f32's unit roundoff.
const U: f64 = 1.0 / (1 << 24) as f64;

/// Bound of the relative error of n roundings to f32.
fn gamma(n: usize) -> f64 {
    n as f64 * U / (1.0 - n as f64 * U)
}

fn spec(name: &str) -> String {
    fs::read_to_string(golden(&format!("{name}.toml"))).unwrap()
}

fn look_up(dir: &Dir, blob: &Path, table: &str, bags: &Path, mode: &[&str]) -> Array {
    let out = dir.path("out.npy");
    let mut command = std::process::Command::new(crate::support::TTREC);
    command
        .arg("lookup")
        .arg(blob)
        .arg("--table")
        .arg(table)
        .arg("--bags")
        .arg(bags)
        .args(mode)
        .arg("-o")
        .arg(&out);
    crate::support::run(command).exits(0);
    crate::support::parse_npy(&fs::read(out).unwrap())
}

fn table_name(spec: &str) -> &str {
    spec.lines()
        .find_map(|line| line.strip_prefix("name = "))
        .unwrap()
        .trim_matches('"')
}

/// The largest difference.
fn difference(a: &Array, b: &Array) -> f64 {
    assert_eq!(a.shape, b.shape);
    a.values
        .iter()
        .zip(&b.values)
        .fold(0.0, |largest, (a, b)| (a - b).abs().max(largest))
}

#[test]
fn pt_and_safetensors_give_the_same_blob() {
    for name in CHECKPOINTS {
        let dir = Dir::new();
        let blobs = ["pt", "safetensors"].map(|kind| {
            fs::read(dir.convert(&golden(&format!("{name}.{kind}")), &spec(name), kind)).unwrap()
        });
        assert!(blobs[0] == blobs[1], "{name}");
    }
}

#[test]
fn f32_agrees_with_the_writer_in_every_mode() {
    for name in CHECKPOINTS.into_iter().chain(TORCH) {
        let spec = spec(name);
        let bags = golden(&format!("{name}.expected.npz"));
        let expected = read_npz(&bags);
        let kinds: &[&str] = if TORCH.contains(&name) {
            &["pt"]
        } else {
            &["pt", "safetensors"]
        };
        for kind in kinds {
            let dir = Dir::new();
            let blob = dir.convert(&golden(&format!("{name}.{kind}")), &spec, "blob.ttr");
            for (mode, array) in MODES {
                let found = look_up(&dir, &blob, table_name(&spec), &bags, mode);
                let error = difference(&found, &expected[array]) / expected[array].largest();
                eprintln!(
                    "{name}.{kind} f32 {array}: error {error:.2e} of the largest magnitude, bound \
                     2e-6"
                );
                assert!(error <= 2e-6, "{name}.{kind} {array}: {error:e}");
            }
        }
    }
}

/// A checkpoint in double precision, read without the tool.
struct Reference {
    p: Vec<usize>,
    q: Vec<usize>,
    /// r_0 .. r_d
    ranks: Vec<usize>,
    cores: Vec<Vec<f64>>,
    overrides: BTreeMap<u64, Vec<f64>>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Narrow {
    F16,
    Bf16,
    I8,
}

impl Narrow {
    fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::I8 => "i8",
        }
    }

    /// How far each element of a slice may move when it is stored.
    fn steps(self, slice: &[f64]) -> Vec<f64> {
        let largest = slice.iter().fold(0.0f64, |largest, x| x.abs().max(largest));
        let step = |x: &f64| match self {
            // Half of the last place, and half of the smallest subnormal where there are no places
            // left.
            Self::F16 => x.abs() * f64::powi(2.0, -11) + f64::powi(2.0, -25),
            Self::Bf16 => x.abs() * f64::powi(2.0, -8) + f64::powi(2.0, -134),
            // Half a step; the scale itself is rounded to f32.
            Self::I8 => largest / 127.0 * (1.0 + U) / 2.0,
        };
        slice.iter().map(step).collect()
    }

    /// The spec with this dtype.
    fn of(self, spec: &str) -> String {
        assert!(!spec.contains("dtype"));
        format!("{spec}\ndtype = {:?}\n", self.name())
    }
}

impl Reference {
    fn read(name: &str) -> Self {
        let bytes = fs::read(golden(&format!("{name}.safetensors"))).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let manifest: serde_json::Value =
            serde_json::from_slice(&fs::read(golden("manifest.json")).unwrap()).unwrap();
        let list = |key: &str| -> Vec<usize> {
            manifest[name][key]
                .as_array()
                .unwrap()
                .iter()
                .map(|n| n.as_u64().unwrap() as usize)
                .collect()
        };
        let floats = |name: &str| -> Vec<f64> {
            let (elements, rest) = file.tensor(name).unwrap().data().as_chunks::<4>();
            assert!(rest.is_empty());
            elements.iter().map(|&x| f64::from(f32::from_le_bytes(x))).collect()
        };
        let (p, q) = (list("p"), list("q"));
        let ranks: Vec<usize> = [1].into_iter().chain(list("ranks")).chain([1]).collect();
        let cores: Vec<_> = (0..p.len()).map(|k| floats(&format!("tt_cores.{k}"))).collect();
        for (k, core) in cores.iter().enumerate() {
            assert_eq!(core.len(), p[k] * ranks[k] * q[k] * ranks[k + 1]);
        }
        let mut overrides = BTreeMap::new();
        if manifest[name]["cached_rows"] == true {
            let columns: usize = q.iter().product();
            let weights = floats("cache_weight");
            let slots = file
                .tensor("hashtbl")
                .unwrap()
                .data()
                .as_chunks::<8>()
                .0
                .iter()
                .map(|&x| i64::from_le_bytes(x));
            let states = file
                .tensor("cache_state")
                .unwrap()
                .data()
                .as_chunks::<4>()
                .0
                .iter()
                .map(|&x| i32::from_le_bytes(x));
            for (row, state) in slots.zip(states).filter(|&(row, state)| row >= 0 && state >= 0) {
                overrides
                    .insert(row as u64, weights[state as usize * columns..][..columns].to_vec());
            }
            assert!(!overrides.is_empty());
        }
        Self { p, q, ranks, cores, overrides }
    }

    /// The slice of core k that row `row` needs.
    fn slice(&self, row: u64, k: usize) -> &[f64] {
        let below: usize = self.p[k + 1..].iter().product();
        let digit = row as usize / below % self.p[k];
        let len = self.ranks[k] * self.q[k] * self.ranks[k + 1];
        &self.cores[k][digit * len..][..len]
    }

    /// The row that these slices multiply to.
    fn chain(&self, slices: &[Vec<f64>]) -> Vec<f64> {
        let mut x = vec![1.0];
        for (k, slice) in slices.iter().enumerate() {
            let (r, n) = (self.ranks[k], self.q[k] * self.ranks[k + 1]);
            let element =
                |at: usize| (0..r).map(|j| x[at / n * r + j] * slice[j * n + at % n]).sum();
            x = (0..x.len() / r * n).map(element).collect();
        }
        x
    }

    /// A row, and how far each of its elements may be off when the cores are stored as `dtype` and
    /// multiplied out in f32.
    fn row(&self, row: u64, dtype: Narrow) -> (Vec<f64>, Vec<f64>) {
        if let Some(row) = self.overrides.get(&row) {
            return (row.clone(), row.iter().map(|x| x.abs() * U).collect());
        }
        let d = self.p.len();
        let exact: Vec<Vec<f64>> = (0..d).map(|k| self.slice(row, k).to_vec()).collect();
        let absolute: Vec<Vec<f64>> =
            exact.iter().map(|slice| slice.iter().map(|x| x.abs()).collect()).collect();
        let moved: Vec<Vec<f64>> = exact
            .iter()
            .zip(&absolute)
            .map(|(slice, absolute)| {
                absolute.iter().zip(dtype.steps(slice)).map(|(x, step)| x + step).collect()
            })
            .collect();
        let (row, absolute, moved) =
            (self.chain(&exact), self.chain(&absolute), self.chain(&moved));
        // r_k products and sums a step; for i8 the product of the scales, and that with the first
        // slice.
        let roundings = self.ranks[1..d].iter().sum::<usize>() + d;
        let bound =
            absolute.iter().zip(&moved).map(|(a, m)| m - a + gamma(roundings) * m).collect();
        (row, bound)
    }
}

/// How far each element of `array` of the expected file may be off.
fn bounds(
    reference: &Reference,
    expected: &BTreeMap<String, Array>,
    array: &str,
    dtype: Narrow,
) -> Vec<f64> {
    let rows: Vec<_> = expected["indices"]
        .integers()
        .into_iter()
        .map(|row| reference.row(row, dtype))
        .collect();
    if array == "rows" {
        return rows.into_iter().flat_map(|(_, bound)| bound).collect();
    }
    let columns = expected["rows"].shape[1];
    let offsets = expected["offsets"].integers();
    let mut out = Vec::new();
    for bag in offsets.windows(2) {
        let (rows, weights) = (
            &rows[bag[0] as usize..bag[1] as usize],
            &expected["weights"].values[bag[0] as usize..bag[1] as usize],
        );
        for column in 0..columns {
            if array == "max" {
                out.push(rows.iter().fold(0.0, |largest, (_, bound)| bound[column].max(largest)));
                continue;
            }
            let (mut bound, mut magnitude) = (0.0, 0.0);
            for ((row, row_bound), weight) in rows.iter().zip(weights) {
                let weight = if array == "weighted_sum" { weight.abs() } else { 1.0 };
                bound += weight * row_bound[column];
                magnitude += weight * (row[column].abs() + row_bound[column]);
            }
            // One product and one sum a row, and the division.
            let bound = bound + gamma(2 * rows.len() + 1) * magnitude;
            out.push(if array == "mean" {
                bound / rows.len().max(1) as f64
            } else {
                bound
            });
        }
    }
    out
}

#[test]
fn narrow_dtypes_stay_within_the_bound_that_their_format_gives() {
    for name in CHECKPOINTS {
        let spec = spec(name);
        let bags = golden(&format!("{name}.expected.npz"));
        let (expected, reference) = (read_npz(&bags), Reference::read(name));
        for dtype in [Narrow::F16, Narrow::Bf16, Narrow::I8] {
            let dir = Dir::new();
            let blobs = ["pt", "safetensors"].map(|kind| {
                dir.convert(
                    &golden(&format!("{name}.{kind}")),
                    &dtype.of(&spec),
                    &format!("{kind}.ttr"),
                )
            });
            assert!(
                fs::read(&blobs[0]).unwrap() == fs::read(&blobs[1]).unwrap(),
                "{name} {dtype:?}"
            );
            for (mode, array) in MODES {
                let found = look_up(&dir, &blobs[0], table_name(&spec), &bags, mode);
                let expected_values = &expected[array].values;
                let bounds = bounds(&reference, &expected, array, dtype);
                assert_eq!(found.shape, expected[array].shape);
                assert_eq!(bounds.len(), expected_values.len());
                let (mut largest, mut allowed, mut ratio) = (0.0f64, 0.0f64, 0.0f64);
                for (at, ((x, y), bound)) in
                    found.values.iter().zip(expected_values).zip(&bounds).enumerate()
                {
                    // The expected file itself is rounded to f32.
                    let bound = bound + y.abs() * U;
                    let error = (x - y).abs();
                    assert!(
                        error <= bound,
                        "{name} {dtype:?} {array} element {at}: {x} for {y}, bound {bound:e}"
                    );
                    largest = largest.max(error);
                    allowed = allowed.max(bound);
                    ratio = ratio.max(if error > 0.0 { error / bound } else { 0.0 });
                }
                let scale = expected[array].largest();
                eprintln!(
                    "{name} {} {array}: largest error {:.2e}, largest bound {:.2e} of the largest \
                     magnitude; nearest an element came to its bound: {ratio:.3}",
                    dtype.name(),
                    largest / scale,
                    allowed / scale
                );
                // Far above what f32 itself would be off by: the cores really are narrow. And the
                // bound says something.
                assert!(
                    largest > 2e-5 * scale,
                    "{name} {dtype:?} {array}: {largest:e} is too good to be {dtype:?}"
                );
                assert!(allowed < scale, "{name} {dtype:?} {array}: bound {allowed:e}");
            }
        }
    }
}

#[test]
fn overridden_rows_stay_exact_in_every_dtype() {
    let name = "fbtt_d3_cache";
    let (spec, reference) = (spec(name), Reference::read(name));
    let dir = Dir::new();
    let ids: Vec<u64> = reference.overrides.keys().copied().collect();
    let bags = dir.path("bags.npz");
    let arrays = [
        ("indices", crate::support::vector(&ids)),
        ("offsets", crate::support::vector(&[0, ids.len() as u64])),
    ];
    crate::support::write_npz(&bags, &arrays);
    let expected: Vec<f64> = reference.overrides.values().flatten().copied().collect();
    for dtype in [Narrow::F16, Narrow::Bf16, Narrow::I8] {
        let blob = dir.convert(&golden(&format!("{name}.pt")), &dtype.of(&spec), "blob.ttr");
        let found = look_up(&dir, &blob, table_name(&spec), &bags, &["--mode", "rows"]);
        assert_eq!(found.values, expected, "{dtype:?}");
    }
    eprintln!("{} overridden rows, bit for bit, beside f16, bf16 and i8 cores", ids.len());
}

#[test]
fn stored_narrow_floats_are_the_nearest_ones() {
    // The second core is ones, so a row is the stored slice of the first.
    let dir = Dir::new();
    let values: Vec<f32> = (0..512)
        .map(|i| (i as f32 * 0.37 - 90.0) * f32::powi(2.0, i % 40 - 33))
        .chain([65_504.0, -6e-8])
        .collect();
    let (q, ones) = (values.len(), vec![1.0f32; 2]);
    let tensors = [
        (
            "tt_cores.0",
            safetensors::Dtype::F32,
            &[1, 1, q][..],
            crate::support::Elements::bytes(&values[..]),
        ),
        (
            "tt_cores.1",
            safetensors::Dtype::F32,
            &[1, 2, 1][..],
            crate::support::Elements::bytes(&ones[..]),
        ),
    ];
    let checkpoint = dir.path("ones.safetensors");
    crate::support::write_safetensors(&checkpoint, &tensors);
    let bags = dir.path("bags.npz");
    crate::support::write_npz(
        &bags,
        &[
            ("indices", crate::support::vector(&[1u32])),
            ("offsets", crate::support::vector(&[0u32, 1])),
        ],
    );
    let spec = format!("[[table]]\nname = \"t\"\nnum_embeddings = 2\ncolumn_factors = [{q}, 1]\n");
    for (dtype, round) in [
        (Narrow::F16, (|x| f16::from_f32(x).to_f32()) as fn(f32) -> f32),
        (Narrow::Bf16, |x| bf16::from_f32(x).to_f32()),
    ] {
        let blob = dir.convert(&checkpoint, &dtype.of(&spec), "blob.ttr");
        let found = look_up(&dir, &blob, "t", &bags, &["--mode", "rows"]);
        let expected: Vec<f64> = values.iter().map(|&x| f64::from(round(x))).collect();
        assert_eq!(found.values, expected, "{dtype:?}");
    }
}

#[test]
fn the_demo_prints_rows_beside_the_reference() {
    let run = ttrec!["demo"]
        .exits(0)
        .prints(["ttrec [", "FBTT [", "rows:", "sum:", "mean:", "max:", "agree"]);
    assert!(!run.stdout.contains("DIFFER"), "{run:#?}");
    let digits = |line: &str| line.split_once('[').unwrap().1.to_owned();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for line in run.stdout.lines() {
        if line.starts_with("row ") {
            ours.push(digits(line));
        } else if line.trim_start().starts_with("FBTT [") {
            theirs.push(digits(line));
        }
    }
    assert!(ours.len() >= 3, "{run:#?}");
    assert_eq!(ours.len(), theirs.len());
}

#[test]
fn the_bundled_blob_comes_out_byte_for_byte() {
    let dir = Dir::new();
    let spec = fs::read_to_string(golden("two_tables.toml")).unwrap();
    let blob = dir.convert(&golden("fbtt_d3_cache.safetensors"), &spec, "two_tables.ttr");
    let bundled = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/two_tables.ttr");
    assert!(fs::read(blob).unwrap() == fs::read(bundled).unwrap());
}

#[test]
fn verify_against_finds_every_golden_table_within_its_dtype() {
    for name in CHECKPOINTS.into_iter().chain(TORCH) {
        let spec = spec(name);
        let dir = Dir::new();
        let checkpoint = golden(&format!("{name}.pt"));
        let blobs = [("f32", spec.clone())].into_iter().chain(
            [Narrow::F16, Narrow::Bf16, Narrow::I8].map(|dtype| (dtype.name(), dtype.of(&spec))),
        );
        for (dtype, spec) in blobs {
            let blob = dir.convert(&checkpoint, &spec, "blob.ttr");
            let run = ttrec!["verify", &blob, "--against", &checkpoint].exits(0);
            eprintln!("{name}: {}", run.stdout.lines().last().unwrap());
            run.prints([dtype, "relative error", "largest row error", "in row"]);
        }
    }
}
