//! Whole tables: the best rows for queries, and all rows as one user's candidates, against counts
//! of the looked-up rows and of the scores of single candidates.

use crate::support::{Dir, Elements, golden, npy, read_f32, read_npz, ttrec, vector, write_npz};
use safetensors::Dtype::F32;
use std::{
    fs,
    path::{Path, PathBuf},
};

const ROWS: usize = 1000;
const DIM: usize = 64;

/// Numbers from -1 to 1.
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let number = |at: usize| {
        let z = (seed << 32 | at as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let z = (z ^ z >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        ((z ^ z >> 32) >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..count).map(number).collect()
}

/// Blobs of 1,000 rows, "item", and biases: a tensor train, and dense rows with some equal ones.
fn blobs(dir: &Dir) -> [PathBuf; 2] {
    let (rows, biases) = (numbers(1, ROWS * DIM), numbers(2, ROWS));
    let rows = rows.chunks(DIM).cycle().take(700).chain(rows.chunks(DIM).take(300));
    let rows = rows.collect::<Vec<_>>().concat();
    let tensors = [
        ("item", F32, &[ROWS, DIM][..], rows[..].bytes()),
        ("bias", F32, &[ROWS, 1], biases[..].bytes()),
        ("short", F32, &[ROWS - 1, 1], biases[1..].bytes()),
    ];
    let dense = dir.path("dense.safetensors");
    crate::support::write_safetensors(&dense, &tensors);
    let tables = |names: &[&str]| -> String {
        names.iter().map(|name| format!("[[table]]\ntensor = {name:?}\n")).collect()
    };
    let dense = dir.convert(&dense, &tables(&["item", "bias", "short"]), "dense.ttr");
    let spec = fs::read_to_string(golden("fbtt_d3.toml")).unwrap();
    [dense, dir.convert(&golden("fbtt_d3.safetensors"), &spec, "tt.ttr")]
}

/// All rows of a table, in f64.
fn rows(dir: &Dir, blob: &Path, table: &str) -> Vec<Vec<f64>> {
    let (ids, out) = (dir.path("ids.npz"), dir.path("rows.npy"));
    write_npz(&ids, &[("indices", vector(&(0..ROWS as u32).collect::<Vec<_>>()))]);
    ttrec!["lookup", blob, "--table", table, "--bags", &ids, "--mode", "rows", "-o", &out].exits(0);
    let (shape, values) = read_f32(&out);
    let values: Vec<f64> = values.into_iter().map(f64::from).collect();
    values.chunks(shape[1] as usize).map(<[f64]>::to_vec).collect()
}

/// Compares the output of `topk` with the scores of all rows, and returns the indices found.
fn check(out: &Path, k: usize, scores: &[Vec<f64>], excluded: &[Vec<u64>]) -> Vec<i64> {
    let arrays = read_npz(out);
    let (indices, found) = (&arrays["indices"], &arrays["scores"]);
    assert_eq!(
        (&indices.shape[..], &found.shape[..]),
        (&[scores.len(), k][..], &[scores.len(), k][..])
    );
    for (query, scores) in scores.iter().enumerate() {
        let allowed =
            |index: &usize| !excluded.get(query).is_some_and(|x| x.contains(&(*index as u64)));
        let mut order: Vec<usize> = (0..ROWS).filter(allowed).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        let places = query * k..(query + 1) * k;
        let mut seen = Vec::new();
        for (place, at) in places.enumerate() {
            let (index, score) = (indices.values[at], found.values[at]);
            let Some(&expected) = order.get(place) else {
                assert_eq!((index, score), (-1.0, f64::NEG_INFINITY), "query {query}");
                continue;
            };
            // Rows whose scores are nearly equal may change places.
            let (index, tolerance) = (index as usize, 1e-5 * (DIM as f64));
            assert!((score - scores[expected]).abs() <= tolerance, "query {query}, place {place}");
            assert!((score - scores[index]).abs() <= tolerance, "query {query}, place {place}");
            assert!(allowed(&index) && !seen.contains(&index), "query {query}: {index}");
            seen.push(index);
        }
    }
    indices.values.iter().map(|&index| index as i64).collect()
}

fn dot(x: &[f64], y: &[f32]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * f64::from(*y)).sum()
}

#[test]
fn topk_finds_what_a_scan_of_all_rows_finds() {
    let dir = Dir::new();
    let (queries, out) = (dir.path("queries.npy"), dir.path("out.npz"));
    for (blob, has_bias) in blobs(&dir).iter().zip([true, false]) {
        let rows = rows(&dir, blob, "item");
        for (count, k) in [(1, 1), (3, 100), (70, 20), (2, ROWS)] {
            let values = numbers(7 + count as u64, count * DIM);
            fs::write(&queries, npy("<f4", &[count, DIM], &values[..].bytes())).unwrap();
            let scores: Vec<Vec<f64>> = values
                .chunks(DIM)
                .map(|query| rows.iter().map(|row| dot(row, query)).collect())
                .collect();
            let number = k.to_string();
            let run = |more: &[&str]| {
                let mut command = std::process::Command::new(crate::support::TTREC);
                command.args(["topk", "--table", "item", "--k", &number]).arg(blob).args(more);
                command.arg("--queries").arg(&queries).arg("-o").arg(&out);
                crate::support::run(command)
            };
            run(&[])
                .exits(0)
                .prints([format!("out.npz: indices and scores, {count} x {k}")]);
            let indices = check(&out, k, &scores, &[]);
            let bytes = fs::read(&out).unwrap();
            // Threads change no bit, whether they divide the queries or the rows.
            run(&["--threads", "4"]).exits(0);
            assert!(fs::read(&out).unwrap() == bytes, "{count} x {k}");

            // Equal rows have the order of their indices.
            if has_bias && k == ROWS {
                let place = |index: i64| indices[..k].iter().position(|&found| found == index);
                for index in 0..300 {
                    assert!(place(index) < place(index + 700), "{index}");
                }
            }

            // The best ones of each query are left out, in any order; of the last query, nearly all
            // rows, of the first one none.
            let mut excluded: Vec<Vec<u64>> = indices
                .chunks(k)
                .map(|best| best.iter().take(10).rev().map(|index| index.cast_unsigned()).collect())
                .collect();
            if count > 1 {
                excluded[0].clear();
                excluded[count - 1] = (5..ROWS as u64).collect();
            }
            let ends = |lists: &[Vec<u64>]| -> Vec<u64> {
                (0..=lists.len()).map(|n| lists[..n].concat().len() as u64).collect()
            };
            let path = dir.path("exclude.npz");
            let (indices, offsets) = (excluded.concat(), ends(&excluded));
            write_npz(&path, &[("indices", vector(&indices)), ("offsets", vector(&offsets))]);
            run(&["--exclude", path.to_str().unwrap()]).exits(0);
            check(&out, k, &scores, &excluded);
            // The last offset may be left out.
            let bytes = fs::read(&out).unwrap();
            let offsets = vector(&offsets[..count]);
            write_npz(&path, &[("indices", vector(&indices)), ("offsets", offsets)]);
            run(&["--exclude", path.to_str().unwrap(), "--threads", "3"]).exits(0);
            assert!(fs::read(&out).unwrap() == bytes, "{count} x {k}");

            if has_bias {
                let biases = self::rows(&dir, blob, "bias");
                let add = |scores: &Vec<f64>| -> Vec<f64> {
                    scores.iter().zip(&biases).map(|(score, bias)| score + bias[0]).collect()
                };
                run(&["--bias", "bias"]).exits(0);
                check(&out, k, &scores.iter().map(add).collect::<Vec<_>>(), &[]);
            }
        }
    }
}

#[test]
fn topk_refuses_by_name_and_keeps_the_old_output() {
    let dir = Dir::new();
    let [dense, _] = blobs(&dir);
    let (queries, exclude, out) =
        (dir.path("queries.npy"), dir.path("exclude.npz"), dir.file("out.npz", "old"));
    let array = |shape: &[usize], values: &[f32]| npy("<f4", shape, &values.bytes());
    let good = array(&[2, DIM], &numbers(1, 2 * DIM));
    let refused = |array: &[u8], more: &[&str], says: &[&str]| {
        fs::write(&queries, array).unwrap();
        let mut command = std::process::Command::new(crate::support::TTREC);
        command
            .arg("topk")
            .arg(&dense)
            .arg("--queries")
            .arg(&queries)
            .arg("-o")
            .arg(&out);
        let has = |option: &str| more.contains(&option);
        command.args(if has("--table") { &[][..] } else { &["--table", "item"] });
        command.args(if has("--k") { &[][..] } else { &["--k", "5"] });
        command.args(more);
        crate::support::run(command).exits(3).says(says);
        assert_eq!(fs::read_to_string(&out).unwrap(), "old");
    };
    refused(&good, &["--table", "itme"], &["dense.ttr: has no table \"itme\"", "\"item\""]);
    refused(&good, &["--k", "1001"], &["--k 1001: table \"item\" has 1000 rows"]);
    refused(&good, &["--bias", "tiem"], &["has no table \"tiem\""]);
    refused(
        &good,
        &["--bias", "item"],
        &["--bias \"item\": the table has 1000 rows of 64 columns: expected a dense table of 1000"],
    );
    refused(&good, &["--bias", "short"], &["--bias \"short\": the table has 999 rows"]);
    for shape in [&[DIM][..], &[DIM, 2], &[1, 2, DIM]] {
        let count = shape.iter().product();
        let wanted = format!("shape {shape:?}: expected queries x 64");
        refused(&array(shape, &numbers(1, count)), &[], &["queries.npy", &wanted]);
    }
    refused(&array(&[0, DIM], &[]), &[], &["queries.npy: the file has no queries"]);
    let mut nan = numbers(1, 2 * DIM);
    nan[DIM + 3] = f32::NAN;
    let wanted = "column 3 of query 1 is NaN in f32: expected a finite number";
    refused(&array(&[2, DIM], &nan), &[], &["queries.npy", wanted]);
    refused(b"no numpy", &[], &["queries.npy"]);
    let exclude_refused = |arrays: &[(&str, Vec<u8>)], says: &[&str]| {
        write_npz(&exclude, arrays);
        refused(&good, &["--exclude", exclude.to_str().unwrap()], says);
    };
    let (indices, offsets) =
        (("indices", vector(&[1u32, 2, 3])), ("offsets", vector(&[0u32, 2, 3])));
    exclude_refused(std::slice::from_ref(&offsets), &["exclude.npz", "\"indices\" is missing"]);
    exclude_refused(
        &[indices.clone(), ("offsets", vector(&[0u32, 1, 2, 3]))],
        &["exclude.npz: has 3 bags: expected 2, one for each query"],
    );
    exclude_refused(
        &[("indices", vector(&[1u32, 2, 1000])), offsets],
        &["exclude.npz: table \"item\": index 1000 at position 2: the table has 1000 rows"],
    );
    exclude_refused(&[indices], &["exclude.npz: no array of offsets or lengths"]);
    for input in [&dense, &queries] {
        let run = ttrec![
            "topk",
            &dense,
            "--table",
            "item",
            "--queries",
            &queries,
            "--k",
            "1",
            "-o",
            input
        ];
        run.exits(3).says(["is an input: choose another output"]);
    }
    ttrec!["topk", &dense, "--table", "item", "--queries", &queries, "--k", "0", "-o", &out]
        .exits(2)
        .says(["--k"]);
}

/// A file of one user: bags of these tables, and a dense feature for each of `dense`.
fn user(path: &Path, bags: &[(usize, &[u64])], dense: &[f32]) {
    let mut arrays = Vec::new();
    for (table, bag) in bags {
        arrays.push((format!("indices_{table}"), vector(bag)));
        arrays.push((format!("offsets_{table}"), vector(&[0, bag.len() as u64])));
    }
    if !dense.is_empty() {
        arrays.push(("dense".to_owned(), npy("<f4", &[1, dense.len()], &dense.bytes())));
    }
    let arrays: Vec<_> = arrays.iter().map(|(name, npy)| (name.as_str(), npy.clone())).collect();
    write_npz(path, &arrays);
}

/// Compares `rank --all` with `rank` of a file of all `count` rows of `table`; their scores may
/// differ by `error`.
fn compare(dir: &Dir, blob: &Path, user: &Path, table: usize, count: u64, error: f32) {
    let (candidates, all, one) = (dir.path("all.npz"), dir.path("all.npy"), dir.path("one.npy"));
    user_of_all(&candidates, table, count);
    ttrec!["rank", blob, "--user", user, "--candidates", &candidates, "-o", &one].exits(0);
    let expected = read_f32(&one).1;
    let run = ttrec!["rank", blob, "--user", user, "--all", "--top", "12", "-o", &all].exits(0);
    let found = read_f32(&all).1;
    assert_eq!((found.len(), expected.len()), (count as usize, count as usize));
    for (row, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert!((found - expected).abs() <= error, "row {row}: {found} for {expected}");
    }
    let mut order: Vec<usize> = (0..found.len()).collect();
    order.sort_by(|&a, &b| found[b].total_cmp(&found[a]));
    let lines: Vec<String> = order[..12].iter().map(|&at| format!("{at} {}", found[at])).collect();
    assert_eq!(run.stdout.lines().collect::<Vec<_>>(), lines);
    // Without the scores of all rows, the best are the same.
    let alone = ttrec!["rank", blob, "--user", user, "--all", "--top", "12"].exits(0);
    assert_eq!(alone.stdout, run.stdout);
    let json = ttrec!["rank", blob, "--user", user, "--all", "--top", "1", "--json"].exits(0);
    let json: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(json[0]["candidate"], order[0]);
}

fn user_of_all(path: &Path, table: usize, count: u64) {
    let (rows, ends): (Vec<u64>, Vec<u64>) = ((0..count).collect(), (0..=count).collect());
    let names = [format!("indices_{table}"), format!("offsets_{table}")];
    write_npz(path, &[(&names[0], vector(&rows)), (&names[1], vector(&ends))]);
}

#[test]
fn all_rows_rank_as_a_file_of_all_rows_does() {
    // Three layers on top: each row is a sample of its own.
    let dir = Dir::new();
    let (blob, one) = (dir.path("dlrm.ttr"), dir.path("user.npz"));
    ttrec!["convert", golden("dlrm_plain.pt"), "-o", &blob].exits(0);
    let dense = numbers(3, 13);
    user(&one, &[(0, &[3, 77]), (1, &[5]), (3, &[39])], &dense);
    compare(&dir, &blob, &one, 2, 300, 0.0);
    user(&one, &[(1, &[3, 77]), (2, &[5]), (3, &[])], &dense);
    compare(&dir, &blob, &one, 0, 5000, 0.0);

    // One layer, or none: the logit is a product.
    let ids: Vec<u32> = (0..600).collect();
    let of =
        |step: u32, count: u32| -> Vec<u32> { ids.iter().map(|id| id * step % count).collect() };
    write_npz(
        &dir.path("data.npz"),
        &[
            ("train_user", vector(&of(7, 50))),
            ("train_item", vector(&of(11, 80))),
            ("test_user", vector(&[1u32])),
            ("test_item", vector(&[1u32])),
        ],
    );
    for (name, model, constant) in [
        ("none", "", false),
        ("one", "bottom = [5, 8]\ntop = [1]", true),
        ("tt", "top = [1]\ntable = { representation = \"tt\", rank = 4 }", false),
        ("qr", "table = { representation = \"quotient-remainder\", num_remainders = 9 }", false),
    ] {
        let toml = format!(
            "[data]\nformat = \"interactions\"\npath = \"data.npz\"\nconstant = {constant}\n\
             [model]\nembedding_dim = 8\n{model}\n[train]\nlearning_rate = 0.1\nepochs = 3\n"
        );
        let toml = dir.file(&format!("{name}.toml"), toml);
        let (run, blob) = (dir.path(name), dir.path(&format!("{name}.ttr")));
        ttrec!["train", &toml, "-o", &run].exits(0);
        ttrec!["convert", run.join("checkpoint.safetensors"), "-o", &blob].exits(0);
        user(&one, &[(0, &[4])], if constant { &[1.0] } else { &[] });
        compare(&dir, &blob, &one, 1, 80, 1e-6);
        // The users of an item.
        user(&one, &[(1, &[4, 5])], if constant { &[1.0] } else { &[] });
        compare(&dir, &blob, &one, 0, 50, 1e-6);
    }
    // Layers of i8, whose weights have scales.
    let spec = "[model]\ndtype = \"i8\"\n[[table]]\nprefix = \"emb_l.0.\"\n[[table]]\nprefix = \
                \"emb_l.1.\"\n";
    let blob = dir.convert(&dir.path("one/checkpoint.safetensors"), spec, "i8.ttr");
    user(&one, &[(0, &[4])], &[1.0]);
    compare(&dir, &blob, &one, 1, 80, 1e-6);
}

#[test]
fn models_of_other_interactions_score_row_by_row() {
    let dir = Dir::new();
    let (checkpoint, one) = (dir.path("model.safetensors"), dir.path("user.npz"));
    let (users, items, bias) = (numbers(4, 30 * 4), numbers(5, 50 * 4), numbers(6, 1));
    user(&one, &[(0, &[4])], &[]);
    for (interaction, inputs) in [("cat", 8), ("dot-itself", 3)] {
        let weights = numbers(7, inputs);
        let tensors = [
            ("user.weight", F32, &[30, 4][..], users[..].bytes()),
            ("item.weight", F32, &[50, 4], items[..].bytes()),
            ("out.weight", F32, &[1, inputs], weights[..].bytes()),
            ("out.bias", F32, &[1], bias[..].bytes()),
        ];
        crate::support::write_safetensors(&checkpoint, &tensors);
        let spec = format!(
            "[model]\ntop = [\"out.\"]\ntables = [\"user.weight\", \"item.weight\"]\npooling = \
             \"sum\"\ninteraction = {interaction:?}\n[[table]]\ntensor = \"user.weight\"\n\
             [[table]]\ntensor = \"item.weight\"\n"
        );
        let blob = dir.convert(&checkpoint, &spec, &format!("{interaction}.ttr"));
        compare(&dir, &blob, &one, 1, 50, 0.0);
    }
}

#[test]
fn rank_all_asks_for_what_is_missing() {
    let dir = Dir::new();
    let (blob, one, out) = (dir.path("dlrm.ttr"), dir.path("user.npz"), dir.path("all.npy"));
    ttrec!["convert", golden("dlrm_plain.pt"), "-o", &blob].exits(0);
    let dense = numbers(3, 13);
    let bags: [(usize, &[u64]); 4] = [(0, &[3]), (1, &[5]), (2, &[1]), (3, &[2])];
    let refused = |says: &[&str]| {
        ttrec!["rank", &blob, "--user", &one, "--all", "-o", &out].exits(3).says(says);
        assert!(!out.exists());
    };
    user(&one, &bags, &dense);
    refused(&["user.npz: has bags for 4 of the model's 4 tables", "bags for all others"]);
    user(&one, &bags[..2], &dense);
    refused(&["user.npz: has bags for 2 of the model's 4 tables"]);
    user(&one, &bags[..3], &[]);
    refused(&["user.npz: array \"dense\" is missing"]);
    user(&one, &[(0, &[3]), (1, &[5]), (2, &[300])], &dense);
    refused(&["user.npz", "300"]);
    write_npz(
        &one,
        &[
            ("dense", npy("<f4", &[2, 13], &numbers(3, 26)[..].bytes())),
            ("indices_0", npy("<u4", &[2, 1], &[1u32, 2][..].bytes())),
            ("indices_1", vector(&[1u32, 2])),
            ("indices_2", vector(&[1u32, 2])),
        ],
    );
    refused(&["user.npz: table 0 has 2 bags: a user has one"]);
    ttrec!["rank", &blob, "--user", &one].exits(2).says(["--candidates"]);
    ttrec!["rank", &blob, "--user", &one, "--all", "--candidates", &one]
        .exits(2)
        .says(["--all"]);
}
