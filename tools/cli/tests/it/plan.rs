//! `ttrec plan`: that its blobs keep the budget and have the error that it foretold, that nothing
//! better was at hand, what it says, and what it refuses.

use crate::support::{Dir, Elements, data, golden, ttrec, vector, write_npz, write_safetensors};
use safetensors::Dtype::{F32, U8};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Numbers that look like a normal distribution's.
struct Random(u64);

impl Random {
    fn uniform(&mut self) -> f32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1 << 24) as f32
    }

    fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.uniform()).sum::<f32>() - 6.0
    }

    fn matrix(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.normal()).collect()
    }
}

/// a (m x k) times b (k x n).
fn product(a: &[f32], b: &[f32], k: usize, n: usize) -> Vec<f32> {
    a.chunks(k)
        .flat_map(|row| (0..n).map(move |j| (0..k).map(|i| row[i] * b[i * n + j]).sum()))
        .collect()
}

/// Three dense tables: "noise" without any structure, "flat", of rank 6 and some noise, and
/// "train", which is a tensor train of rank 3 exactly, in row factors 16 x 16 and column factors 4
/// x 8.
fn checkpoint(dir: &Dir) -> PathBuf {
    let mut random = Random(11);
    let noise = random.matrix(900 * 24);
    let (short, wide) = (random.matrix(1200 * 6), random.matrix(6 * 32));
    let mut flat = product(&short, &wide, 6, 32);
    flat.iter_mut().for_each(|x| *x += 0.05 * random.normal());
    let (first, last) = (random.matrix(16 * 4 * 3), random.matrix(3 * 16 * 8));
    // Row (i, i'), column (j, j'): the sum over the rank of first[i, j, .] last[., i', j'].
    let both = product(&first, &last, 3, 128);
    let element = |at: usize| {
        let (row, column) = (at / 32, at % 32);
        both[(row / 16 * 4 + column / 8) * 128 + row % 16 * 8 + column % 8]
    };
    let train: Vec<f32> = (0..256 * 32).map(element).collect();
    let path = dir.path("model.safetensors");
    write_safetensors(
        &path,
        &[
            ("emb.noise", F32, &[900, 24], noise.bytes()),
            ("emb.flat", F32, &[1200, 32], flat.bytes()),
            ("emb.train", F32, &[256, 32], train.bytes()),
        ],
    );
    path
}

/// Runs `plan` with `--json`: what it says, and its spec.
#[track_caller]
fn plan(dir: &Dir, checkpoint: &Path, args: &[&str]) -> (Value, PathBuf) {
    let spec = dir.path("plan.toml");
    let mut command = std::process::Command::new(crate::support::TTREC);
    command
        .arg("plan")
        .arg(checkpoint)
        .args(args)
        .arg("-o")
        .arg(&spec)
        .arg("--json");
    let run = crate::support::run(command).exits(0);
    (serde_json::from_str(&run.stdout).expect("JSON"), spec)
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("not a number: {value}"))
}

fn table<'p>(plan: &'p Value, name: &str) -> &'p Value {
    plan["tables"]
        .as_array()
        .unwrap()
        .iter()
        .find(|table| table["name"] == name)
        .unwrap()
}

/// What `verify` finds in a blob.
#[track_caller]
fn verified(blob: &Path, checkpoint: &Path, spec: &Path) -> Value {
    let run = ttrec![
        "verify",
        blob,
        "--against",
        checkpoint,
        "--spec",
        spec,
        "--max-error",
        "2",
        "--json"
    ];
    serde_json::from_str(&run.exits(0).stdout).unwrap()
}

/// The spec converts to a blob of the length that the plan said, which `verify` finds as far off as
/// the plan said.
#[track_caller]
fn assert_foretold(dir: &Dir, checkpoint: &Path, plan: &Value, spec: &Path) {
    let blob = dir.path("plan.ttr");
    ttrec!["convert", checkpoint, "--spec", spec, "-o", &blob].exits(0);
    assert_eq!(fs::metadata(&blob).unwrap().len(), plan["bytes"].as_u64().unwrap());
    let verified = verified(&blob, checkpoint, spec);
    let tables = verified["tables"].as_array().unwrap();
    assert_eq!(tables.len(), plan["tables"].as_array().unwrap().len());
    for found in tables {
        let table = table(plan, found["name"].as_str().unwrap());
        let (foretold, found) = (number(&table["error"]), number(&found["relative_error"]));
        assert!(
            (found - foretold).abs() <= 0.06 * foretold + 1e-5,
            "{}: {foretold}, verify {found}",
            table["name"]
        );
    }
}

/// The length of the blob of a spec of one table, and the error that `verify` finds.
#[track_caller]
fn stored(dir: &Dir, checkpoint: &Path, spec: &Path) -> (usize, f64) {
    let blob = dir.path("stored.ttr");
    ttrec!["convert", checkpoint, "--spec", spec, "-o", &blob].exits(0);
    let verified = verified(&blob, checkpoint, spec);
    let error = number(&verified["tables"][0]["relative_error"]);
    (usize::try_from(fs::metadata(&blob).unwrap().len()).unwrap(), error)
}

/// The layers of a model as the plan said, and its blob scores as many samples as there are.
#[track_caller]
fn assert_scores(
    dir: &Dir,
    checkpoint: &Path,
    batch: &Path,
    plan: &Value,
    spec: &Path,
) -> Vec<f32> {
    assert_foretold(dir, checkpoint, plan, spec);
    let (blob, scores) = (dir.path("plan.ttr"), dir.path("scores.npy"));
    let run = ttrec![
        "verify",
        &blob,
        "--against",
        checkpoint,
        "--spec",
        spec,
        "--max-error",
        "2",
        "--json"
    ]
    .exits(0);
    let verified: Value = serde_json::from_str(&run.stdout).unwrap();
    let (layers, foretold) =
        (verified["layers"].as_array().unwrap(), number(&plan["layers"]["error"]));
    assert_eq!(plan["layers"]["count"], layers.len());
    let errors = || layers.iter().map(|layer| number(&layer["relative_error"]));
    assert!(layers.iter().all(|layer| layer["dtype"] == plan["layers"]["dtype"]), "{verified}");
    // All of them together are between the best and the worst.
    assert!(
        errors().any(|error| error >= foretold) && errors().any(|error| error <= foretold),
        "{foretold} {verified}"
    );
    let stored: u64 = layers.iter().map(|layer| layer["bytes"].as_u64().unwrap()).sum();
    assert!(stored <= plan["layers"]["bytes"].as_u64().unwrap());
    ttrec!["score", &blob, "--batch", batch, "--logits", "-o", &scores].exits(0);
    let (shape, scores) = crate::support::read_f32(&scores);
    assert_eq!(shape, [50]);
    scores
}

/// No candidate of any table has less error in as few bytes, nor the same in less time.
#[track_caller]
fn assert_unbeaten(plan: &Value) {
    for table in plan["tables"].as_array().unwrap() {
        let candidates = table["candidates"].as_array().unwrap();
        assert!(candidates.len() > 3);
        assert!(candidates.iter().any(|candidate| candidate["bytes"] == table["bytes"]
            && candidate["error"] == table["error"]));
        for candidate in candidates {
            let beats = number(&candidate["bytes"]) <= number(&table["bytes"])
                && number(&candidate["error"]) < number(&table["error"]);
            assert!(!beats, "{table}");
        }
    }
}

#[test]
fn a_plan_keeps_its_budget_and_its_word() {
    let dir = Dir::new();
    let checkpoint = checkpoint(&dir);
    let f32_bytes = 4 * (900 * 24 + 1200 * 32 + 256 * 32);
    let mut before = 0.0;
    for percent in [60, 20, 6] {
        let (plan, spec) = plan(&dir, &checkpoint, &["--budget", &format!("{percent}%")]);
        assert_eq!(plan["f32_bytes"], f32_bytes);
        assert_eq!(plan["budget"], f32_bytes * percent / 100);
        assert!(number(&plan["bytes"]) <= number(&plan["budget"]), "{percent} %");
        assert!(
            number(&plan["error"]) > before,
            "{percent} %: {} in fewer bytes than {before}",
            plan["error"]
        );
        before = number(&plan["error"]);
        assert_unbeaten(&plan);
        assert_foretold(&dir, &checkpoint, &plan, &spec);
    }
}

#[test]
fn one_table_gets_the_best_that_fits() {
    let dir = Dir::new();
    let checkpoint = checkpoint(&dir);
    let only = dir.file("only.toml", "[[table]]\ntensor = \"emb.flat\"\n");
    let only = only.to_str().unwrap();
    let (all, _) = plan(&dir, &checkpoint, &["--budget", "10MB", "--spec", only]);
    let candidates = all["tables"][0]["candidates"].as_array().unwrap().clone();
    let mut families = Vec::new();
    for budget in [200_000, 60_000, 25_000, 12_000] {
        let (plan, _) = plan(&dir, &checkpoint, &["--budget", &budget.to_string(), "--spec", only]);
        let head = number(&plan["bytes"]) - number(&plan["tables"][0]["bytes"]);
        let fitting = candidates
            .iter()
            .filter(|candidate| number(&candidate["bytes"]) + head <= f64::from(budget));
        let best = fitting
            .map(|candidate| number(&candidate["error"]))
            .fold(f64::INFINITY, f64::min);
        assert!(
            number(&plan["error"]) <= best * (1.0 + 1e-9),
            "{budget}: {} {best}",
            plan["error"]
        );
        families.push(plan["tables"][0]["representation"].as_str().unwrap().to_owned());
    }
    assert_eq!((families[0].as_str(), families[2].as_str()), ("dense", "codes"), "{families:?}");
}

#[test]
fn a_tensor_train_is_found_where_there_is_one_and_nowhere_else() {
    let dir = Dir::new();
    let checkpoint = checkpoint(&dir);
    // 32,768 bytes; a train of rank 3 has 576 numbers.
    let only = |name: &str| dir.file("only.toml", format!("[[table]]\ntensor = \"emb.{name}\"\n"));
    let (found, spec) =
        plan(&dir, &checkpoint, &["--budget", "15%", "--spec", only("train").to_str().unwrap()]);
    let table = &found["tables"][0];
    assert_eq!(table["representation"], "tt", "{table}");
    assert!(number(&table["error"]) < 1e-3, "{table}");
    assert!(
        table["why"]
            .as_str()
            .unwrap()
            .contains("No quantised rows, low-rank rows or codes match the tensor train"),
        "{table}"
    );
    assert_foretold(&dir, &checkpoint, &found, &spec);
    for name in ["noise", "flat"] {
        for budget in ["50%", "20%", "10%"] {
            let (found, _) = plan(
                &dir,
                &checkpoint,
                &["--budget", budget, "--spec", only(name).to_str().unwrap()],
            );
            let table = &found["tables"][0];
            let is_train = table["representation"] == "tt";
            let beaten = |c: &Value| {
                number(&c["bytes"]) <= number(&table["bytes"])
                    && number(&c["error"]) < number(&table["error"])
            };
            assert!(
                !is_train || !table["candidates"].as_array().unwrap().iter().any(beaten),
                "{name} {budget}"
            );
            if !is_train {
                assert!(
                    table["why"].as_str().unwrap().contains("a tensor train, error "),
                    "{table}"
                );
            }
        }
    }
}

/// Rows near a few hundred sums of patterns: codes name the patterns, and no other form of as many
/// bytes comes near.
#[test]
fn codes_are_found_where_rows_are_made_of_patterns() {
    let dir = Dir::new();
    let mut random = Random(5);
    let patterns: Vec<Vec<f32>> = (0..4).map(|_| random.matrix(24 * 6)).collect();
    let mut values = Vec::new();
    for _ in 0..3000 {
        for patterns in &patterns {
            let taken = (random.uniform() * 24.0) as usize;
            values.extend(patterns[taken * 6..][..6].iter().map(|x| x + 0.01 * random.normal()));
        }
    }
    let path = dir.path("patterns.safetensors");
    write_safetensors(&path, &[("emb", F32, &[3000, 24], values.bytes())]);
    let (found, spec) = plan(&dir, &path, &["--budget", "8%"]);
    let table = &found["tables"][0];
    assert_eq!(table["representation"], "codes", "{table}");
    assert_eq!((&table["books"], table["ranks"].is_null()), (&Value::from(4), true), "{table}");
    assert!(number(&table["error"]) < 0.05, "{table}");
    assert_foretold(&dir, &path, &found, &spec);
    assert_unbeaten(&found);
}

/// Rows near sums of a few patterns of all columns, and rows of even noise: added codes name
/// the patterns. The test stores added codes of many numbers of columns, as many codes as fit, and
/// none of them has much less error than the plan, which chooses added codes where they win.
#[test]
fn added_codes_are_found_where_rows_are_sums() {
    let dir = Dir::new();
    let mut random = Random(23);
    let (rows, columns) = (6000, 16);
    let patterns: Vec<Vec<f32>> = (0..3).map(|_| random.matrix(32 * columns)).collect();
    let mut sums = vec![0.0; rows * columns];
    for row in sums.chunks_exact_mut(columns) {
        for patterns in &patterns {
            let taken = (random.uniform() * 32.0) as usize;
            row.iter_mut().zip(&patterns[taken * columns..]).for_each(|(x, y)| *x += y);
        }
        row.iter_mut().for_each(|x| *x += 0.02 * random.normal());
    }
    let even: Vec<f32> = (0..rows * columns).map(|_| random.uniform() - 0.5).collect();
    let path = dir.path("sums.safetensors");
    for (values, budget) in [(&sums, 26_000), (&sums, 34_000), (&even, 26_000)] {
        write_safetensors(&path, &[("emb", F32, &[rows, columns], values.bytes())]);
        let (found, spec) = plan(&dir, &path, &["--budget", &budget.to_string()]);
        assert_foretold(&dir, &path, &found, &spec);
        assert_unbeaten(&found);
        let (len, planned) = stored(&dir, &path, &spec);
        assert!(len <= budget);
        let mut best = f64::INFINITY;
        for (bits, rank) in [8, 7, 6].iter().flat_map(|&bits| [8, 12, 16].map(|rank| (bits, rank)))
        {
            let len = |books: usize| {
                let projection = 2 * rank * columns;
                rows * books + books * ((rank << bits) + 4) + projection + 768
            };
            let Some(books) = (1..=8).rev().find(|&books| len(books) <= budget) else { continue };
            let text = format!(
                "[[table]]\ntensor = \"emb\"\nrepresentation = \"codes\"\nbooks = {books}\n\
                 combine = \"add\"\nbits = {bits}\nrank = {rank}\nrotation = true\n\
                 dtype = \"i8\"\n"
            );
            let (found, error) = stored(&dir, &path, &dir.file("codes.toml", text));
            assert!(found <= budget);
            best = best.min(error);
        }
        assert!(planned <= 1.05 * best, "{budget}: {planned} {best}");
        let combine = if values == &sums { "add" } else { "concat" };
        assert_eq!(found["tables"][0]["combine"], combine, "{found}");
    }
}

/// One more code for each row takes a large part of these budgets. The test stores codes of many
/// numbers of columns, as many codes as fit, and none of them has much less error than the plan.
#[test]
fn few_codes_have_the_columns_that_go_best_with_them() {
    let dir = Dir::new();
    let mut random = Random(17);
    let (rows, columns) = (1500, 32);
    let mut values = random.matrix(rows * columns);
    values
        .iter_mut()
        .enumerate()
        .for_each(|(at, x)| *x /= ((1 + at % columns) as f32).sqrt());
    let path = dir.path("small.safetensors");
    write_safetensors(&path, &[("emb", F32, &[rows, columns], values.bytes())]);
    for budget in [9_600, 13_440, 19_200] {
        let (_, spec) = plan(&dir, &path, &["--budget", &budget.to_string()]);
        let (len, planned) = stored(&dir, &path, &spec);
        assert!(len <= budget);
        let mut best = f64::INFINITY;
        for (bits, rank) in
            [8, 7].iter().flat_map(|&bits| (3..=8).map(move |at: usize| (bits, 4 * at)))
        {
            // Codes, books in i8, a projection in f16, and padding.
            let len = |books: usize| {
                let inner = rank.div_ceil(books) * books;
                rows * books + (inner << bits) + 4 * books + 2 * inner * columns + 768
            };
            let fitting = (1..=rank).rev().find(|&books| len(books) <= budget);
            let Some(books) = fitting else { continue };
            let text = format!(
                "[[table]]\ntensor = \"emb\"\nrepresentation = \"codes\"\nbooks = {books}\n\
                 bits = {bits}\nrank = {rank}\nrotation = true\ndtype = \"i8\"\n"
            );
            let (found, error) = stored(&dir, &path, &dir.file("codes.toml", text));
            assert!(found <= budget);
            best = best.min(error);
        }
        // It tries fewer numbers of columns than this.
        assert!(planned <= 1.07 * best, "{budget}: {planned} {best}");
    }
}

#[test]
fn an_error_bound_alone_gives_the_smallest_blob() {
    let dir = Dir::new();
    let checkpoint = checkpoint(&dir);
    let only = "[[table]]\ntensor = \"emb.flat\"\n[[table]]\ntensor = \"emb.train\"\n";
    let only = dir.file("only.toml", only);
    let plan = |args: &[&str]| {
        plan(&dir, &checkpoint, &[&["--spec", only.to_str().unwrap()], args].concat())
    };
    let (loose, spec) = plan(&["--max-error", "0.1"]);
    for table in loose["tables"].as_array().unwrap() {
        assert!(number(&table["error"]) <= 0.1, "{table}");
        let smaller = |candidate: &Value| {
            number(&candidate["error"]) <= 0.1
                && number(&candidate["bytes"]) < number(&table["bytes"])
        };
        assert!(!table["candidates"].as_array().unwrap().iter().any(smaller), "{table}");
    }
    assert_foretold(&dir, &checkpoint, &loose, &spec);
    let (exact, _) = plan(&["--max-error", "0"]);
    assert_eq!(number(&exact["error"]), 0.0);
    assert!(number(&exact["bytes"]) > number(&loose["bytes"]));
    // Both: the bound holds for each table, and the budget is spent.
    let (both, _) = plan(&["--max-error", "0.1", "--budget", "60%"]);
    assert!(
        number(&both["bytes"]) <= number(&both["budget"])
            && number(&both["error"]) < number(&loose["error"])
    );
    // Rows of a projection take longer than plain ones.
    let (fast, _) = plan(&["--budget", "60%", "--max-nanoseconds", "8"]);
    for table in fast["tables"].as_array().unwrap() {
        assert!(
            table["representation"] == "dense" && number(&table["nanoseconds"]) <= 8.0,
            "{table}"
        );
    }
}

#[test]
fn trained_tables_stay_what_they_are() {
    let dir = Dir::new();
    let manifest: Value =
        serde_json::from_slice(&fs::read(golden("manifest.json")).unwrap()).unwrap();
    let facts = &manifest["fbtt_d3"];
    let facts = format!(
        "[[table]]\nname = \"item\"\nnum_embeddings = {}\ncolumn_factors = {}\n",
        facts["num_embeddings"], facts["q"]
    );
    let spec = dir.file("facts.toml", facts);
    let checkpoint = golden("fbtt_d3.safetensors");
    for (budget, dtype) in [("10MB", "f32"), ("60%", "")] {
        let (plan, written) =
            plan(&dir, &checkpoint, &["--budget", budget, "--spec", spec.to_str().unwrap()]);
        let table = &plan["tables"][0];
        assert_eq!(table["representation"], "tensor train");
        assert!(dtype.is_empty() || table["dtype"] == dtype, "{table}");
        assert!(table["why"].as_str().unwrap().contains("Trained as tensor train"), "{table}");
        assert_foretold(&dir, &checkpoint, &plan, &written);
    }
    // Without the facts it says what is missing.
    let run = ttrec!["plan", &checkpoint, "--budget", "50%", "-o", dir.path("none.toml")];
    run.exits(3).says(["num_embeddings", "--spec"]);
    assert!(!dir.path("none.toml").exists());
}

/// A table of eight u8 codes of four columns each, plain and hashed. `lookups.csv` has the measured
/// time of a lookup in such a table.
#[test]
fn codes_of_a_checkpoint_take_the_time_that_was_measured() {
    let measured = include_str!("../../../convert/src/plan/lookups.csv").lines();
    let measured: Vec<f64> = measured
        .filter_map(|line| line.strip_prefix("codes,6000,8,32,0,")?.split(',').nth(1))
        .map(|nanoseconds| nanoseconds.parse().unwrap())
        .collect();
    assert_eq!(measured.len(), 2);
    let dir = Dir::new();
    let mut random = Random(13);
    let codes: Vec<u8> = (0..6000 * 8).map(|_| (random.uniform() * 256.0) as u8).collect();
    let books = random.matrix(8 * 256 * 4);
    let checkpoint = dir.path("codes.safetensors");
    let tensors =
        [("codes", U8, &[6000, 8][..], codes), ("books", F32, &[8, 256, 4], books.bytes())];
    write_safetensors(&checkpoint, &tensors);
    let text = "[[table]]\nname = \"t\"\nprefix = \"\"\ncombine = \"concat\"\n";
    for facts in ["", "index_map = \"modulo\"\nnum_embeddings = 1000000\nnum_rows = 6000\n"] {
        let spec = dir.file("facts.toml", format!("{text}{facts}"));
        let args = ["--budget", "75KB", "--spec", spec.to_str().unwrap()];
        let (plan, written) = plan(&dir, &checkpoint, &args);
        let table = &plan["tables"][0];
        assert_eq!((&table["representation"], &table["dtype"]), (&"codes".into(), &"f16".into()));
        let estimate = number(&table["nanoseconds"]);
        // The estimates of codes are within this factor of all measurements.
        for measured in &measured {
            assert!((measured / 2.08..measured * 2.08).contains(&estimate), "{facts} {table}");
        }
        assert_foretold(&dir, &checkpoint, &plan, &written);
    }
}

#[test]
fn a_model_is_planned_with_its_layers() {
    let dir = Dir::new();
    let (checkpoint, batch) = (golden("dlrm_plain.pt"), golden("dlrm_plain.expected.npz"));
    let expected = &crate::support::read_npz(&batch)["logit"].values;
    // Tables of 5000, 1200, 300 and 40 rows; layers of 13-64-16 and 26-64-32-1, each with its
    // biases.
    let layers = 4 * (14 * 64 + 65 * 16 + 27 * 64 + 65 * 32 + 33);
    let f32_bytes = 4 * 6540 * 16 + layers;
    for (percent, dtype, most) in [(110, "f32", 1e-5), (25, "f16", 0.2), (6, "f16", f64::MAX)] {
        let (plan, spec) = plan(&dir, &checkpoint, &["--budget", &format!("{percent}%")]);
        assert_eq!(
            (&plan["f32_bytes"], &plan["layers"]["f32_bytes"]),
            (&f32_bytes.into(), &layers.into())
        );
        assert_eq!(plan["budget"], f32_bytes * percent / 100);
        assert_eq!(plan["layers"]["dtype"], dtype, "{percent} %");
        let scores = assert_scores(&dir, &checkpoint, &batch, &plan, &spec);
        let largest = expected.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
        for (&found, expected) in scores.iter().zip(expected) {
            assert!(
                (f64::from(found) - expected).abs() <= most * largest,
                "{percent} %: {found} for {expected}"
            );
        }
        assert!(number(&plan["bytes"]) <= number(&plan["budget"]), "{percent} %");
    }
    let run = ttrec!["plan", &checkpoint, "--budget", "25%", "-o", dir.path("plan.toml")].exits(0);
    run.prints(["5 layers: 23.1 kB as f32 -> f16, ", "emb_l.0: 5000 x 16"]);
    let written = fs::read_to_string(dir.path("plan.toml")).unwrap();
    assert!(
        written.contains("# 5 layers: ")
            && written.contains("[model]\ndialect = \"dlrm\"\ndtype = \"f16\"\n"),
        "{written}"
    );
}

/// A checkpoint of `ttrec train`: the metadata lists the tables, and there are layers.
#[test]
fn a_checkpoint_that_names_its_tables_is_planned_with_its_layers() {
    let dir = Dir::new();
    let mut random = Random(2);
    let shapes: [(&str, &[usize]); 5] = [
        ("emb_l.0.weight", &[500, 8]),
        ("bot_l.0.weight", &[8, 3]),
        ("bot_l.0.bias", &[8]),
        ("top_l.0.weight", &[1, 9]),
        ("top_l.0.bias", &[1]),
    ];
    let bytes = shapes.map(|(_, shape)| random.matrix(shape.iter().product()).bytes());
    let views = shapes.iter().zip(&bytes).map(|((name, shape), bytes)| {
        (*name, safetensors::tensor::TensorView::new(F32, shape.to_vec(), bytes).unwrap())
    });
    let facts =
        r#"{"tables":[{"name":"user","prefix":"emb_l.0.","dialect":"dlrm","pooling":"mean"}]}"#;
    let metadata = [("ttrec".to_owned(), facts.to_owned())].into();
    let checkpoint = dir.path("model.safetensors");
    safetensors::serialize_to_file(views, Some(metadata), &checkpoint).unwrap();
    let (plan, spec) = plan(&dir, &checkpoint, &["--budget", "60%"]);
    assert_eq!((&plan["layers"]["count"], &plan["tables"][0]["name"]), (&2.into(), &"user".into()));
    assert!(number(&plan["bytes"]) <= number(&plan["budget"]));
    assert!(fs::read_to_string(&spec).unwrap().contains("pooling = \"mean\""));
    assert_foretold(&dir, &checkpoint, &plan, &spec);
    ttrec!["inspect", dir.path("plan.ttr")]
        .exits(0)
        .prints(["3 dense features", "1 tables x 8"]);
}

#[test]
fn layers_are_stored_as_asked_for() {
    let dir = Dir::new();
    let (checkpoint, batch) = (golden("dlrm_qr.pt"), golden("dlrm_qr.expected.npz"));
    for dtype in ["f32", "f16", "bf16", "i8"] {
        let (plan, spec) = plan(
            &dir,
            &checkpoint,
            &["--budget", "40%", "--layers", dtype, "--qr-operation", "mult"],
        );
        assert_eq!(plan["layers"]["dtype"], dtype);
        assert_scores(&dir, &checkpoint, &batch, &plan, &spec);
        // A spec says so as well, and is as good as the checkpoint's own names.
        let facts = dir.file("facts.toml", fs::read(spec).unwrap());
        let (again, spec) =
            self::plan(&dir, &checkpoint, &["--budget", "40%", "--spec", facts.to_str().unwrap()]);
        assert_eq!((&again["layers"], &again["bytes"]), (&plan["layers"], &plan["bytes"]));
        assert_scores(&dir, &checkpoint, &batch, &again, &spec);
    }
    // Tables that a spec names alone are planned alone.
    let only = dir.file("only.toml", "[[table]]\nprefix = \"emb_l.0.\"\n");
    let plain = golden("dlrm_plain.pt");
    let (tables, _) = plan(&dir, &plain, &["--budget", "40%", "--spec", only.to_str().unwrap()]);
    assert!(
        tables["layers"].is_null() && tables["tables"].as_array().unwrap().len() == 1,
        "{tables}"
    );
    let run = ttrec![
        "plan",
        &plain,
        "--budget",
        "40%",
        "--spec",
        &only,
        "--layers",
        "f16",
        "-o",
        dir.path("x.toml")
    ];
    run.exits(3).says(["the checkpoint has no model"]);
    let run = ttrec!["plan", &plain, "--budget", "40%", "--layers", "i4", "-o", dir.path("x.toml")];
    run.exits(2).says(["f32, f16, bf16 or i8"]);
    assert!(!dir.path("x.toml").exists());
}

#[test]
fn a_budget_below_the_layers_is_refused_with_the_least_that_would_do() {
    let dir = Dir::new();
    let (checkpoint, spec) = (golden("dlrm_plain.pt"), dir.path("plan.toml"));
    let least = |budget: &str, before: &str| -> u64 {
        let run = ttrec!["plan", &checkpoint, "--budget", budget, "-o", &spec].exits(3);
        let (_, rest) = run
            .stderr
            .split_once(before)
            .unwrap_or_else(|| panic!("no {before:?}: {run:#?}"));
        rest.split(' ').next().unwrap().parse().unwrap()
    };
    let layers = least("2KB", "2.00 kB is too small: the model's layers alone need ");
    let all = least(&layers.to_string(), "the tables and layers need at least ");
    assert!(layers > 2 * 5777 && all > layers, "{layers} {all}");
    assert_eq!(least(&(all - 1).to_string(), "the tables and layers need at least "), all);
    assert!(!spec.exists());
    let (plan, spec) = plan(&dir, &checkpoint, &["--budget", &all.to_string()]);
    assert!(number(&plan["bytes"]) <= all as f64);
    assert_scores(&dir, &checkpoint, &golden("dlrm_plain.expected.npz"), &plan, &spec);
}

#[test]
fn frequencies_weigh_rows() {
    let dir = Dir::new();
    let mut random = Random(5);
    // Rows 0 to 99 have one large column each, which coarse steps have to span; the others do not.
    let mut rows = random.matrix(400 * 16);
    (0..100).for_each(|row| rows[row * 16 + row % 16] *= 30.0);
    let checkpoint = dir.path("model.safetensors");
    write_safetensors(&checkpoint, &[("emb", F32, &[400, 16], rows.bytes())]);
    let counts: Vec<f32> = (0..400)
        .map(|row| if row < 100 { 0.0 } else { 1.0 + (row % 7) as f32 })
        .collect();
    let file = dir.path("counts.npz");
    write_npz(&file, &[("emb", vector(&counts))]);
    let (weighted, spec) =
        plan(&dir, &checkpoint, &["--budget", "20%", "--frequencies", file.to_str().unwrap()]);

    // The plan's error, found row by row.
    let blob = dir.path("plan.ttr");
    ttrec!["convert", &checkpoint, "--spec", &spec, "-o", &blob].exits(0);
    let ids: Vec<u64> = (0..400).collect();
    let bags = dir.path("bags.npz");
    write_npz(&bags, &[("indices", vector(&ids)), ("offsets", vector(&[0u64, 400]))]);
    let out = dir.path("out.npy");
    ttrec!["lookup", &blob, "--table", "emb", "--bags", &bags, "--mode", "rows", "-o", &out]
        .exits(0);
    let (_, stored) = crate::support::read_f32(&out);
    let (mut error, mut norm) = (0.0, 0.0);
    for (at, (x, y)) in rows.iter().zip(&stored).enumerate() {
        let count = f64::from(counts[at / 16]);
        error += count * f64::from(x - y).powi(2);
        norm += count * f64::from(*x).powi(2);
    }
    let (found, foretold) = ((error / norm).sqrt(), number(&weighted["error"]));
    assert!(found > 0.0 && (found / foretold - 1.0).abs() < 0.03, "{foretold}, found {found}");
    let (unweighted, _) = plan(&dir, &checkpoint, &["--budget", "20%"]);
    assert!(
        (number(&unweighted["error"]) / foretold - 1.0).abs() > 0.1,
        "frequencies change nothing"
    );

    write_npz(&file, &[("other", vector(&counts))]);
    let run = ttrec!["plan", &checkpoint, "--budget", "20%", "--frequencies", &file, "-o", &spec];
    run.exits(3).says(["other", "has the name of no table"]);
}

#[test]
fn it_says_why_in_words() {
    let dir = Dir::new();
    let checkpoint = checkpoint(&dir);
    let spec = dir.path("plan.toml");
    let run = ttrec!["plan", &checkpoint, "--budget", "10%", "-o", &spec].exits(0);
    let run = run.prints([
        "emb.noise: 900 x 24, 86.4 kB as f32 -> ",
        " ns a lookup",
        "At this size: ",
        "a tensor train, ",
        "plan.toml: ",
    ]);
    let written = fs::read_to_string(&spec).unwrap();
    for line in run
        .stdout
        .lines()
        .filter(|line| line.starts_with("emb.") || line.starts_with("  "))
    {
        assert!(
            written.contains(&format!("# {}\n", line.trim_start())),
            "{line:?} is not in the spec: {written}"
        );
    }
}

#[test]
fn nonsense_is_refused() {
    let dir = Dir::new();
    let checkpoint = checkpoint(&dir);
    let spec = dir.file("plan.toml", "before");
    for args in [
        &["--budget", "0"][..],
        &["--budget", "0%"],
        &["--budget", "-1"],
        &["--budget", "nan%"],
        &["--budget", "1e3"],
        &["--max-error", "nan"],
        &["--max-error", "-0.1"],
        &["--max-error", "1.5"],
        &["--max-error", "inf"],
        &["--budget", "10%", "--max-nanoseconds", "0"],
        &["--budget", "10%", "--max-nanoseconds", "nan"],
        &["--budget", "10%", "--memory", "0"],
        &["--budget", "10%", "--memory", "5%"],
        &[],
    ] {
        let mut command = std::process::Command::new(crate::support::TTREC);
        command.arg("plan").arg(&checkpoint).args(args).arg("-o").arg(&spec);
        crate::support::run(command).exits(2);
    }
    ttrec!["plan", &checkpoint, "--budget", "700", "-o", &spec]
        .exits(3)
        .says(["is too small", "need"]);
    ttrec!["plan", &checkpoint, "--budget", "1", "-o", &spec]
        .exits(3)
        .says(["is too small", "need"]);
    let run =
        ttrec!["plan", &checkpoint, "--max-error", "0", "--max-nanoseconds", "1", "-o", &spec];
    run.exits(3).says(["no representation meets --max-error and --max-nanoseconds"]);
    ttrec!["plan", &checkpoint, "--budget", "10%", "-o", &checkpoint]
        .exits(3)
        .says(["is an input"]);
    ttrec!["plan", dir.path("none"), "--budget", "10%", "-o", &spec].exits(3);
    assert_eq!(fs::read_to_string(&spec).unwrap(), "before");
    // More than f32 rows take is no nonsense.
    let (plan, _) = plan(&dir, &checkpoint, &["--budget", "101%"]);
    assert_eq!(number(&plan["error"]), 0.0);

    let mut rows = Random(1).matrix(64 * 4);
    rows[4 * 9 + 2] = f32::NAN;
    let broken = dir.path("broken.safetensors");
    write_safetensors(&broken, &[("emb", F32, &[64, 4], rows.bytes())]);
    ttrec!["plan", &broken, "--budget", "50%", "-o", dir.path("x.toml")]
        .exits(3)
        .says(["emb", "row 9, column 2"]);
    let empty = dir.path("empty.safetensors");
    write_safetensors(&empty, &[("bias", F32, &[4], [0.0f32; 4].bytes())]);
    ttrec!["plan", &empty, "--budget", "50%", "-o", dir.path("x.toml")]
        .exits(3)
        .says(["no tensor looks like an embedding table"]);
    assert!(!dir.path("x.toml").exists());
}

#[test]
fn edges_are_planned() {
    let dir = Dir::new();
    let mut random = Random(9);
    let zeros = vec![0.0f32; 40 * 8];
    let mut large = random.matrix(50 * 8);
    large.iter_mut().for_each(|x| *x *= 1e6);
    let checkpoint = dir.path("model.safetensors");
    write_safetensors(
        &checkpoint,
        &[
            ("emb.one_row", F32, &[1, 8], random.matrix(8).bytes()),
            ("emb.one_column", F32, &[30, 1], random.matrix(30).bytes()),
            ("emb.zeros", F32, &[40, 8], zeros.bytes()),
            // Beyond f16 and i4.
            ("emb.large", F32, &[50, 8], large.bytes()),
        ],
    );
    for budget in ["200%", "120%", "80%"] {
        let (plan, spec) = plan(&dir, &checkpoint, &["--budget", budget]);
        assert!(number(&plan["bytes"]) <= number(&plan["budget"]));
        assert_eq!(number(&table(&plan, "emb.zeros")["error"]), 0.0);
        assert_foretold(&dir, &checkpoint, &plan, &spec);
    }
}

/// Published tables: each budget is met, with no more error than the best single representation has
/// in these bytes.
#[track_caller]
fn assert_planned(file: &str, name: &str) {
    let checkpoint = data(file);
    let dir = Dir::new();
    let (plan, spec) = plan(&dir, &checkpoint, &["--budget", "12%"]);
    assert!(number(&plan["bytes"]) <= number(&plan["budget"]));
    assert_unbeaten(&plan);
    let table = table(&plan, name);
    assert_eq!(table["representation"], "codes", "{table}");
    assert!(table["why"].as_str().unwrap().contains("; a tensor train, "), "{table}");
    assert_foretold(&dir, &checkpoint, &plan, &spec);
}

#[test]
#[ignore = "needs TTREC_DATA: published tables"]
fn minilm_is_planned() {
    assert_planned("minilm-l6-v2.safetensors", "embeddings.word_embeddings.weight");
}

#[test]
#[ignore = "needs TTREC_DATA: published tables"]
fn wordllama_is_planned() {
    assert_planned("wordllama-256.safetensors", "embedding.weight");
}
