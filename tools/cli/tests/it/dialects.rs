//! Dialects without a checkpoint of their own program at hand, by the formula of their layout; and
//! what each dialect refuses.

use crate::support::{
    Dir, Elements, golden, ttrec, vector, write_npz, write_safetensors, write_zip,
};
use safetensors::Dtype::{F32, I64};
use std::{
    fs,
    path::{Path, PathBuf},
};

const P: [usize; 3] = [3, 4, 5];
const Q: [usize; 3] = [2, 3, 2];
const RANKS: [usize; 4] = [1, 3, 2, 1];
const ROWS: usize = 50;

/// Element [a, b, c] of slice i of core k of a table: small integers, so that every product and sum
/// is exact.
fn element(table: usize, k: usize, i: usize, a: usize, b: usize, c: usize) -> f32 {
    ((table * 5 + k * 3 + i * 7 + a * 11 + b * 13 + c * 17 + i * b + a * c) % 9) as f32 - 4.0
}

/// Core k as `p_k x r_k x q_k x r_{k+1}`.
fn flat_core(table: usize, k: usize) -> Vec<f32> {
    let mut out = Vec::new();
    for i in 0..P[k] {
        for a in 0..RANKS[k] {
            for b in 0..Q[k] {
                out.extend((0..RANKS[k + 1]).map(|c| element(table, k, i, a, b, c)));
            }
        }
    }
    out
}

/// Core k as `r_k x p_k x q_k x r_{k+1}`.
fn block_core(k: usize) -> Vec<f32> {
    let mut out = Vec::new();
    for a in 0..RANKS[k] {
        for i in 0..P[k] {
            for b in 0..Q[k] {
                out.extend((0..RANKS[k + 1]).map(|c| element(0, k, i, a, b, c)));
            }
        }
    }
    out
}

/// Row with digits i: column (b0, b1, b2) is the sum over a1, a2 of the product of the elements.
fn row(table: usize, i: [usize; 3]) -> Vec<f64> {
    let mut out = Vec::new();
    for b0 in 0..Q[0] {
        for b1 in 0..Q[1] {
            for b2 in 0..Q[2] {
                let mut sum = 0.0;
                for a1 in 0..RANKS[1] {
                    for a2 in 0..RANKS[2] {
                        sum += element(table, 0, i[0], 0, b0, a1)
                            * element(table, 1, i[1], a1, b1, a2)
                            * element(table, 2, i[2], a2, b2, 0);
                    }
                }
                out.push(f64::from(sum));
            }
        }
    }
    out
}

fn most_significant_first(row: usize) -> [usize; 3] {
    [row / (P[1] * P[2]), row / P[2] % P[1], row % P[2]]
}

fn least_significant_first(row: usize) -> [usize; 3] {
    [row % P[0], row / P[0] % P[1], row / (P[0] * P[1])]
}

/// All rows of a table of the blob.
fn rows(dir: &Dir, blob: &Path, table: &str, count: usize) -> Vec<f64> {
    let (bags, out) = (dir.path("bags.npz"), dir.path("rows.npy"));
    let indices: Vec<u64> = (0..count as u64).collect();
    write_npz(&bags, &[("indices", vector(&indices)), ("offsets", vector(&[0, count as u64]))]);
    ttrec!["lookup", blob, "--table", table, "--bags", bags, "--mode", "rows", "-o", &out].exits(0);
    crate::support::parse_npy(&fs::read(out).unwrap()).values
}

fn expected(table: usize, digits: fn(usize) -> [usize; 3]) -> Vec<f64> {
    (0..ROWS).flat_map(|at| row(table, digits(at))).collect()
}

/// Two-dimensional cores with this prefix.
fn write_el_rec(path: &Path, prefix: &str) {
    let cores: Vec<_> = (0..3)
        .map(|k| {
            (
                format!("{prefix}tt_cores.{k}"),
                [P[k], RANKS[k] * Q[k] * RANKS[k + 1]],
                flat_core(0, k),
            )
        })
        .collect();
    let tensors: Vec<_> = cores
        .iter()
        .map(|(name, shape, values)| (name.as_str(), F32, &shape[..], values[..].bytes()))
        .collect();
    write_safetensors(path, &tensors);
}

/// Cores of several tables.
fn write_fbtt(path: &Path, tables: usize, more: &[(&str, safetensors::Dtype, &[usize], Vec<u8>)]) {
    let cores: Vec<_> = (0..3)
        .map(|k| {
            let values: Vec<f32> = (0..tables).flat_map(|table| flat_core(table, k)).collect();
            (format!("emb.tt_cores.{k}"), [tables, P[k], RANKS[k] * Q[k] * RANKS[k + 1]], values)
        })
        .collect();
    let tensors: Vec<_> = cores
        .iter()
        .map(|(name, shape, values)| (name.as_str(), F32, &shape[..], values[..].bytes()))
        .chain(more.iter().cloned())
        .collect();
    write_safetensors(path, &tensors);
}

/// Cores in four dimensions; `change` may spoil the shapes.
fn write_blocks(
    path: &Path,
    stem: &str,
    change: impl Fn(&mut [[usize; 4]; 3]),
    values: impl Fn(usize) -> Vec<f32>,
) {
    let mut shapes = [0, 1, 2].map(|k| [RANKS[k], P[k], Q[k], RANKS[k + 1]]);
    change(&mut shapes);
    let cores: Vec<_> = (0..3).map(|k| (format!("{stem}{k}"), values(k))).collect();
    let tensors: Vec<_> = cores
        .iter()
        .zip(&shapes)
        .map(|((name, values), shape)| (name.as_str(), F32, &shape[..], values[..].bytes()))
        .collect();
    write_safetensors(path, &tensors);
}

/// Converting is refused in these words, and leaves nothing behind.
#[track_caller]
fn refused(checkpoint: &Path, spec: &str, wanted: &[&str]) {
    let dir = Dir::new();
    let (spec, blob) = (dir.file("spec.toml", spec), dir.path("blob.ttr"));
    ttrec!["convert", checkpoint, "--spec", &spec, "-o", &blob]
        .exits(3)
        .says([spec.to_str().unwrap(), checkpoint.to_str().unwrap()])
        .says(wanted);
    assert_eq!(dir.names(), ["spec.toml"]);
}

#[track_caller]
fn refused_without_a_spec(checkpoint: &Path, wanted: &[&str]) -> String {
    let dir = Dir::new();
    let run = ttrec!["convert", checkpoint, "-o", dir.path("blob.ttr")].exits(3).says(wanted);
    assert!(dir.names().is_empty());
    run.stderr
}

#[test]
fn el_rec_takes_the_most_significant_digit_first_and_hetu_the_least() {
    let dir = Dir::new();
    let checkpoint = dir.path("c.safetensors");
    write_el_rec(&checkpoint, "emb.item.");
    let facts = "num_embeddings = 50\nranks = [3, 2]\n";
    let spec = format!("[[table]]\nprefix = \"emb.item.\"\n{facts}");
    let blob = dir.convert(&checkpoint, &spec, "el.ttr");
    assert_eq!(rows(&dir, &blob, "emb.item", ROWS), expected(0, most_significant_first));
    ttrec!["verify", &blob, "--against", &checkpoint].exits(0);
    let hetu = format!("{spec}dialect = \"hetu\"\n");
    let blob = dir.convert(&checkpoint, &hetu, "hetu.ttr");
    assert_eq!(rows(&dir, &blob, "emb.item", ROWS), expected(0, least_significant_first));
    ttrec!["inspect", &blob, "--json"].exits(0).prints(["least_significant_first"]);
    ttrec!["verify", &blob, "--against", &checkpoint, "--spec", dir.path("hetu.ttr.toml")].exits(0);
    // The blob's order of digits tells whose the cores are.
    ttrec!["verify", &blob, "--against", &checkpoint].exits(0);
}

#[test]
fn el_rec_cores_are_offered_once_and_asked_for_what_they_lack() {
    let dir = Dir::new();
    let checkpoint = dir.path("c.safetensors");
    write_el_rec(&checkpoint, "emb.");
    let said = refused_without_a_spec(
        &checkpoint,
        &["`num_embeddings` is missing: EL-Rec", "at most 60", "\"el-rec\""],
    );
    assert_eq!(said.matches("[[table]]").count(), 1, "{said}");
    let table = "[[table]]\nprefix = \"emb.\"\n";
    refused(
        &checkpoint,
        &format!("{table}dialect = \"hetu\"\n"),
        &["Hetu does not store it", "at most 60"],
    );
    refused(
        &checkpoint,
        &format!("{table}num_embeddings = 50\n"),
        &["`column_factors` or `ranks` is missing"],
    );
    let full = format!("{table}num_embeddings = 50\nranks = [3, 2]\n");
    refused(&checkpoint, &format!("{full}row_factors = [3, 4, 6]\n"), &["[3, 4, 6]", "[3, 4, 5]"]);
    refused(
        &checkpoint,
        &format!("{full}column_factors = [2, 3, 3]\n"),
        &["`column_factors` = [2, 3, 3]"],
    );
    refused(&checkpoint, &full.replace("50", "61"), &["`num_embeddings` is 61", "[3, 4, 5]"]);
    refused(
        &checkpoint,
        &format!("{full}table = 0\n"),
        &["`table` does not apply to dialect \"el-rec\""],
    );
    refused(
        &checkpoint,
        &format!("{full}dialect = \"fbtt\"\n"),
        &["\"emb.tt_cores.0\" has shape [3, 6]"],
    );
    write_fbtt(&checkpoint, 1, &[]);
    refused(
        &checkpoint,
        &format!("{full}dialect = \"el-rec\"\n"),
        &["\"emb.tt_cores.0\" has shape [1, 3, 6]"],
    );
}

#[test]
fn one_table_of_several_in_fbtt_cores_is_picked() {
    let dir = Dir::new();
    let checkpoint = dir.path("c.safetensors");
    write_fbtt(&checkpoint, 3, &[("emb.L", I64, &[3], [20i64, 5, 1].bytes())]);
    let facts = "num_embeddings = 50\nranks = [3, 2]\n";
    // Each is offered.
    let said = refused_without_a_spec(
        &checkpoint,
        &["found 3 embedding tables", "table = 0", "table = 1", "table = 2"],
    );
    let offer = said[said.find("[[table]]").unwrap()..]
        .replace("[[table]]", &format!("[[table]]\n{facts}"));
    let blob = dir.convert(&checkpoint, &offer, "all.ttr");
    for table in 0..3 {
        let found = rows(&dir, &blob, &format!("emb.{table}"), ROWS);
        assert_eq!(found, expected(table, most_significant_first), "{table}");
    }
    ttrec!["verify", &blob, "--against", &checkpoint].exits(0);
    let table = format!("[[table]]\nprefix = \"emb.\"\n{facts}");
    refused(&checkpoint, &table, &["`table` is missing", "\"emb.tt_cores.0\" holds 3 tables"]);
    refused(&checkpoint, &format!("{table}table = 3\n"), &["`table` is 3", "holds 3"]);
    // A cache would be shared by them.
    for (name, shape) in [("emb.hashtbl", &[2][..]), ("emb.cache_weight", &[1, 2])] {
        let dtype = if shape.len() == 1 { I64 } else { F32 };
        let bytes = if shape.len() == 1 {
            [-1i64, -1].bytes()
        } else {
            [0.5f32, 0.5].bytes()
        };
        write_fbtt(&checkpoint, 3, &[(name, dtype, shape, bytes)]);
        refused(
            &checkpoint,
            &format!("{table}table = 1\n"),
            &[name, "a cache that 3 tables share"],
        );
    }
    let one = [("emb.tt_cores.3", F32, &[2, 1, 1][..], [1.0f32, 1.0].bytes())];
    write_fbtt(&checkpoint, 3, &one);
    refused(
        &checkpoint,
        &format!("{table}table = 1\n"),
        &["\"emb.tt_cores.3\" holds 2 tables", "\"emb.tt_cores.0\" 3"],
    );
}

#[test]
fn cores_in_four_dimensions_multiply_to_the_rows_of_the_formula() {
    for (stem, dialect) in [("weight.factors.factor_", "tltorch"), ("parameters.", "t3nsor")] {
        let dir = Dir::new();
        let checkpoint = dir.path("c.safetensors");
        write_blocks(&checkpoint, &format!("emb.{stem}"), |_| (), block_core);
        let said = refused_without_a_spec(
            &checkpoint,
            &["`num_embeddings` is missing", "at most 60", dialect],
        );
        assert_eq!(said.matches("[[table]]").count(), 1, "{said}");
        let spec = "[[table]]\nprefix = \"emb.\"\nnum_embeddings = 50\n";
        let blob = dir.convert(&checkpoint, spec, "blob.ttr");
        assert_eq!(rows(&dir, &blob, "emb", ROWS), expected(0, most_significant_first));
        for dtype in ["f32", "i8"] {
            let blob = dir.convert(&checkpoint, &format!("{spec}dtype = {dtype:?}\n"), "blob.ttr");
            ttrec!["verify", &blob, "--against", &checkpoint].exits(0);
        }
        // What contradicts the file.
        refused(
            &checkpoint,
            &format!("{spec}row_factors = [3, 4, 4]\n"),
            &["[3, 4, 4]", "[3, 4, 5]"],
        );
        refused(
            &checkpoint,
            &format!("{spec}column_factors = [2, 3, 3]\n"),
            &["[2, 3, 3]", "[2, 3, 2]"],
        );
        refused(&checkpoint, &format!("{spec}ranks = [3, 3]\n"), &["`ranks` is [3, 3]", "[3, 2]"]);
        refused(&checkpoint, &spec.replace("50", "61"), &["`num_embeddings` is 61", "[3, 4, 5]"]);
        refused(&checkpoint, &format!("{spec}table = 0\n"), &["`table`", dialect]);
        let spec = &format!("{spec}dialect = {dialect:?}\n");
        refused(
            &checkpoint,
            &spec.replace("emb.", "shop."),
            &[&format!("has no tensor \"shop.{stem}0\"")],
        );
        // A value that cannot be stored is named by its place in the tensor.
        let bad = |k: usize| {
            let mut values = block_core(k);
            // [2, 1, 0, 1] of 3 x 4 x 3 x 2
            if k == 1 {
                values[2 * 24 + 6 + 1] = f32::NAN;
            }
            values
        };
        write_blocks(&checkpoint, &format!("emb.{stem}"), |_| (), bad);
        refused(
            &checkpoint,
            spec,
            &[&format!("tensor \"emb.{stem}1\", element [2, 1, 0, 1]: NaN")],
        );
        // Ranks that do not meet, or do not end in 1.
        write_blocks(
            &checkpoint,
            &format!("emb.{stem}"),
            |shapes| shapes[1] = [2, 4, 3, 3],
            block_core,
        );
        refused(
            &checkpoint,
            spec,
            &[&format!("\"emb.{stem}1\" has shape [2, 4, 3, 3]"), "the first dimension must be 3"],
        );
        write_blocks(
            &checkpoint,
            &format!("emb.{stem}"),
            |shapes| shapes[2] = [2, 5, 1, 2],
            block_core,
        );
        refused(
            &checkpoint,
            spec,
            &[
                &format!("\"emb.{stem}2\" has shape [2, 5, 1, 2]"),
                "the last dimension of the last core must be 1",
            ],
        );
    }
}

#[test]
fn other_kinds_of_tensorly_torch_are_refused() {
    let dir = Dir::new();
    let checkpoint = dir.path("c.safetensors");
    let factor = vec![0.5f32; 60];
    write_safetensors(
        &checkpoint,
        &[
            ("emb.weight.factors.factor_0", F32, &[30, 2], factor[..].bytes()),
            ("emb.weight.factors.factor_1", F32, &[30, 2], factor[..].bytes()),
        ],
    );
    refused_without_a_spec(&checkpoint, &["none of its tables", "[30, 2]", "only blocktt"]);
    let spec = "[[table]]\nprefix = \"emb.\"\nnum_embeddings = 30\n";
    refused(&checkpoint, spec, &["[30, 2]", "expected r_k x p_k x q_k x r_k+1"]);
}

#[test]
fn linear_layers_of_tensorly_torch_are_no_tables() {
    let dir = Dir::new();
    let checkpoint = dir.path("c.safetensors");
    let factor = |shape: [usize; 4]| (shape, vec![0.5f32; shape.iter().product()]);
    let (first, last) = (factor([1, 30, 2, 3]), factor([3, 30, 2, 1]));
    let bias = vec![0.5f32; 900];
    let layer = [
        ("fc.weight.factors.factor_0", F32, &first.0[..], first.1[..].bytes()),
        ("fc.weight.factors.factor_1", F32, &last.0[..], last.1[..].bytes()),
        ("fc.bias", F32, &[900][..], bias[..].bytes()),
    ];
    write_safetensors(&checkpoint, &layer);
    refused_without_a_spec(
        &checkpoint,
        &["none of its tables", "\"fc.bias\" makes \"fc.\" a linear layer"],
    );
    // Without a bias nothing tells, and the offer says so.
    write_safetensors(&checkpoint, &layer[..2]);
    refused_without_a_spec(
        &checkpoint,
        &["`num_embeddings` is missing", "a linear layer without bias has the same keys"],
    );
}

#[test]
fn plain_dlrm_tables_come_out_bit_for_bit() {
    let dir = Dir::new();
    let checkpoint = golden("dlrm_plain.pt");
    let tables: String = (0..4).map(|t| format!("[[table]]\nprefix = \"emb_l.{t}.\"\n")).collect();
    let blob = dir.convert(&checkpoint, &tables, "blob.ttr");
    ttrec!["verify", &blob, "--against", &checkpoint, "--max-error", "0"].exits(0);
    // The storages are stored as they are in the archive; data/0 to data/3 are the tables.
    let mut archive = zip::ZipArchive::new(fs::File::open(&checkpoint).unwrap()).unwrap();
    for (t, count) in [5000, 1200, 300, 40].into_iter().enumerate() {
        let mut bytes = Vec::new();
        let mut member = archive.by_name(&format!("dlrm_plain/data/{t}")).unwrap();
        std::io::Read::read_to_end(&mut member, &mut bytes).unwrap();
        let tensor: Vec<f64> = bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|&x| f64::from(f32::from_le_bytes(x)))
            .collect();
        assert_eq!(rows(&dir, &blob, &format!("emb_l.{t}"), count), tensor, "{t}");
    }
    let table = "[[table]]\nprefix = \"emb_l.1.\"\n";
    refused(
        &checkpoint,
        &format!("{table}num_embeddings = 7\n"),
        &["`num_embeddings` is 7", "1200 rows"],
    );
    refused(
        &checkpoint,
        &format!("{table}ranks = [2]\n"),
        &["`ranks` does not apply to dialect \"dlrm\""],
    );
    refused(&checkpoint, &table.replace('1', "9"), &["\"emb_l.9.\""]);
    refused(&checkpoint, "[[table]]\nname = \"t\"\ndialect = \"dlrm\"\n", &["`prefix` is missing"]);
}

#[test]
fn quotient_remainder_tables_of_dlrm_are_offered_whole() {
    let says = ["`qr_operation` is missing", "[model]", "\"emb_l.0.\"", "\"emb_l.3.\""];
    let said = refused_without_a_spec(&golden("dlrm_qr.pt"), &says);
    assert_eq!(said.matches("[[table]]").count(), 4, "{said}");
    assert!(
        !said.contains("weight_q") && !said.contains("bot_l") && !said.contains("top_l"),
        "{said}"
    );
}

#[test]
fn torchrec_tables_are_called_by_their_names() {
    let dir = Dir::new();
    let checkpoint = dir.path("c.safetensors");
    let (a, b): (Vec<f32>, Vec<f32>) =
        ((0..12).map(|i| i as f32).collect(), (0..12).map(|i| -0.5 * i as f32).collect());
    for prefix in ["", "model.", "module.", "model.sparse_arch.embedding_bag_collection."] {
        let names = ["t_cat_0", "user"].map(|name| format!("{prefix}embedding_bags.{name}.weight"));
        write_safetensors(
            &checkpoint,
            &[
                (&names[0], F32, &[6, 2], a[..].bytes()),
                (&names[1], F32, &[4, 3], b[..].bytes()),
                // As tall as a table, but a perceptron's.
                ("model.dense_arch.model._mlp.0._linear.weight", F32, &[12, 1], a[..].bytes()),
                ("model.over_arch.model.1.weight", F32, &[12, 1], a[..].bytes()),
            ],
        );
        let said = refused_without_a_spec(&checkpoint, &["found 2 embedding tables", "torchrec"]);
        let blob = dir.convert(&checkpoint, &said[said.find("[[table]]").unwrap()..], "blob.ttr");
        assert_eq!(
            rows(&dir, &blob, "t_cat_0", 6),
            a.iter().map(|&x| x.into()).collect::<Vec<f64>>()
        );
        assert_eq!(rows(&dir, &blob, "user", 4), b.iter().map(|&x| x.into()).collect::<Vec<f64>>());
        ttrec!["verify", &blob, "--against", &checkpoint, "--max-error", "0"].exits(0);
    }
    write_safetensors(
        &checkpoint,
        &[("model.embedding_bags.t_cat_0.weight", F32, &[6, 2], a[..].bytes())],
    );
    let blob = dir.path("only.ttr");
    ttrec!["convert", &checkpoint, "-o", &blob].exits(0);
    assert_eq!(rows(&dir, &blob, "t_cat_0", 6).len(), 12);
    let table = "[[table]]\nprefix = \"model.embedding_bags.t_cat_0.\"\n";
    refused(
        &checkpoint,
        &format!("{table}num_embeddings = 5\n"),
        &["`num_embeddings` is 5", "6 rows"],
    );
    refused(
        &checkpoint,
        &format!("{table}column_factors = [2]\n"),
        &["`column_factors`", "\"torchrec\""],
    );
}

/// A tensor in each of two files, and an index of them.
fn shards(dir: &Dir) -> PathBuf {
    let values: Vec<f32> = (0..12).map(|i| i as f32).collect();
    write_safetensors(
        &dir.path("a.safetensors"),
        &[("user.emb", F32, &[4, 3], values[..].bytes())],
    );
    write_safetensors(
        &dir.path("b.safetensors"),
        &[("item.emb", F32, &[6, 2], values[..].bytes())],
    );
    dir.file(
        "model.safetensors.index.json",
        r#"{"metadata": {"total_size": 96},
            "weight_map": {"user.emb": "a.safetensors", "item.emb": "b.safetensors"}}"#,
    )
}

#[test]
fn safetensors_in_several_files_are_one_checkpoint() {
    let dir = Dir::new();
    let index = shards(&dir);
    let expected: Vec<f64> = (0..12).map(f64::from).collect();
    let spec = "[[table]]\ntensor = \"user.emb\"\n[[table]]\ntensor = \"item.emb\"\n";
    let blob = dir.convert(&index, spec, "blob.ttr");
    assert_eq!(rows(&dir, &blob, "user.emb", 4), expected);
    assert_eq!(rows(&dir, &blob, "item.emb", 6), expected);
    ttrec!["verify", &blob, "--against", &index, "--max-error", "0"].exits(0);
    // A brace where a safetensors file has one, and a tensor that the index leaves out.
    let (listed, other) = ([0.5f32; 12], [0.25f32; 12]);
    write_safetensors(
        &dir.path("a.safetensors"),
        &[
            ("user.emb", F32, &[4, 3], listed[..].bytes()),
            ("other.emb", F32, &[4, 3], other[..].bytes()),
        ],
    );
    let index = dir.file("short.json", r#"{"m"   :{},"weight_map":{"user.emb":"a.safetensors"}}"#);
    ttrec!["convert", &index, "-o", dir.path("one.ttr")].exits(0);
    assert_eq!(rows(&dir, &dir.path("one.ttr"), "user.emb", 4), [0.5; 12]);
    // A file that is read is not written.
    let spec = dir.file("one.toml", "[[table]]\ntensor = \"user.emb\"\n");
    let before = fs::read(dir.path("a.safetensors")).unwrap();
    ttrec!["convert", &index, "--spec", &spec, "-o", dir.path("a.safetensors")]
        .exits(3)
        .says(["is an input"]);
    assert!(fs::read(dir.path("a.safetensors")).unwrap() == before);
}

#[test]
fn an_index_that_lies_is_refused() {
    let dir = Dir::new();
    let index = shards(&dir);
    fs::create_dir(dir.path("sub")).unwrap();
    fs::copy(dir.path("a.safetensors"), dir.path("sub/a.safetensors")).unwrap();
    fs::create_dir(dir.path("sub.safetensors")).unwrap();
    let before = dir.names();
    let case = |text: &str, wanted: &[&str]| {
        fs::write(&index, text).unwrap();
        ttrec!["convert", &index, "-o", dir.path("blob.ttr")].exits(3).says(wanted);
        assert_eq!(dir.names(), before);
    };
    let absolute = dir.path("a.safetensors").display().to_string();
    for file in [
        "sub/a.safetensors",
        "../a.safetensors",
        "..",
        ".",
        "",
        "./a.safetensors",
        "a.safetensors/",
        &absolute,
        "sub\\a.safetensors",
        "a\0",
    ] {
        let text = serde_json::json!({ "weight_map": { "user.emb": file } }).to_string();
        case(
            &text,
            &["`user.emb`", "model.safetensors.index.json", "name of a file in the same directory"],
        );
    }
    let map = |entries: &str| format!("{{\"weight_map\": {{{entries}}}}}");
    case(&map(r#""user.emb": "c.safetensors""#), &["c.safetensors", "No such file"]);
    case(&map(r#""user.emb": "sub.safetensors""#), &["sub.safetensors", "not a regular file"]);
    case(
        &map(r#""shop.emb": "a.safetensors""#),
        &["a.safetensors", "`shop.emb`", "not in the file"],
    );
    case(
        &map(r#""user.emb": "b.safetensors""#),
        &["b.safetensors", "`user.emb`", "not in the file"],
    );
    case(
        &map(r#""user.emb": "a.safetensors", "user.emb": "b.safetensors""#),
        &["two tensors named `user.emb`"],
    );
    case(
        &map(r#""user.emb": "model.safetensors.index.json""#),
        &["model.safetensors.index.json", "an index of other files"],
    );
    case(&map(r#""user.emb": 3"#), &["model.safetensors.index.json", "index of shards", "string"]);
    case("{}", &["index of shards", "`weight_map`"]);
    case("{\"weight_map\": {}, \"weight_map\": {}}", &["duplicate field `weight_map`"]);
    case(&format!("{{\"weight_map\": {}", "[".repeat(100_000)), &["index of shards"]);
    case("{\"weight_map\": {}}", &["no tensor looks like"]);
    // The same tensor in the other file, too.
    let one = [0.5f32; 2];
    let both =
        [("item.emb", F32, &[1, 2][..], one.bytes()), ("user.emb", F32, &[1, 2], one.bytes())];
    write_safetensors(&dir.path("b.safetensors"), &both);
    let entries = r#""user.emb": "a.safetensors", "item.emb": "b.safetensors""#;
    case(&map(entries), &["b.safetensors", "`user.emb`", "\"a.safetensors\""]);
    // No truncation is taken for the whole.
    let whole = map(entries);
    for len in 0..whole.len() {
        case(&whole[..len], &["model.safetensors.index.json"]);
    }
}

/// Writes `name` with tensors of f32 zeros, each of these shapes.
fn write_zeros(dir: &Dir, name: &str, shapes: &[(&str, &[usize])]) -> PathBuf {
    let path = dir.path(name);
    let tensors: Vec<_> = shapes
        .iter()
        .map(|&(name, shape)| (name, F32, shape, vec![0.0f32; shape.iter().product()].bytes()))
        .collect();
    write_safetensors(&path, &tensors);
    path
}

/// Writes what `torch.save` writes of these tensors, in this order, all zeros.
fn write_pt_of_zeros(path: &Path, shapes: &[(&str, &[usize])]) {
    let text =
        |text: &str| [&b"X"[..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
    let numbers = |numbers: &[usize]| -> Vec<u8> {
        let number = |&n: &usize| [&b"J"[..], &(n as u32).to_le_bytes()].concat();
        [&b"("[..], &numbers.iter().flat_map(number).collect::<Vec<_>>(), b"t"].concat()
    };
    let mut pickle = b"\x80\x02}(".to_vec();
    for (name, shape) in shapes {
        let strides: Vec<usize> =
            (0..shape.len()).map(|k| shape[k + 1..].iter().product()).collect();
        pickle.extend(text(name));
        pickle.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        pickle.extend(text("storage"));
        pickle.extend(b"ctorch\nFloatStorage\n");
        pickle.extend([text("0"), text("cpu"), b"K\0tQK\0".to_vec()].concat());
        pickle.extend([numbers(shape), numbers(&strides), b"\x89}tR".to_vec()].concat());
    }
    pickle.extend(b"u.");
    let longest = shapes.iter().map(|(_, shape)| shape.iter().product::<usize>()).max().unwrap();
    write_zip(path, &[("m/data.pkl", &pickle), ("m/data/0", &vec![0; 4 * longest])]);
}

#[test]
fn what_only_looks_like_a_table_is_not_offered() {
    let dir = Dir::new();
    let checkpoint = write_zeros(
        &dir,
        "model.safetensors",
        &[
            ("item_emb.weight", &[40, 4]),
            ("user_emb.weight", &[40, 4]),
            // A linear layer, taller than wide.
            ("head.weight", &[64, 4]),
            ("head.bias", &[64]),
            // What optimizers keep has the shapes of the tables.
            ("optimizer.state.0.exp_avg", &[40, 4]),
            ("emb.momentum_buffer", &[40, 4]),
            ("optimizer_states.0.state.1.sum", &[40, 4]),
            // t3nsor's TTLinear.
            ("fc.parameters.0", &[1, 2, 2, 2]),
            ("fc.parameters.1", &[2, 2, 2, 1]),
            ("fc.bias", &[4]),
        ],
    );
    let run = ttrec!["convert", &checkpoint, "-o", dir.path("x.ttr")].exits(3);
    assert!(run.stderr.contains("item_emb.weight"), "{run:?}");
    for other in ["head", "exp_avg", "momentum", "optimizer", "fc."] {
        assert!(!run.stderr.contains(other), "{other}: {run:?}");
    }
}

#[test]
fn an_order_or_interaction_that_the_file_lost_is_asked_for() {
    let dir = Dir::new();
    let names: Vec<String> = (0..11)
        .map(|t| format!("sparse_arch.embedding_bag_collection.embedding_bags.t_{t}.weight"))
        .collect();
    let mut shapes: Vec<(&str, &[usize])> =
        names.iter().map(|name| (name.as_str(), &[5, 4][..])).collect();
    shapes.extend([
        ("dense_arch.model._mlp.0._linear.weight", &[4, 3][..]),
        ("dense_arch.model._mlp.0._linear.bias", &[4]),
        ("over_arch.model.1.weight", &[1, 70]),
        ("over_arch.model.1.bias", &[1]),
    ]);
    let checkpoint = write_zeros(&dir, "torchrec.safetensors", &shapes);
    ttrec!["convert", &checkpoint, "-o", dir.path("x.ttr")].exits(3).says([
        "lost the order",
        "11 tables",
        "spec",
    ]);
    // A `.pt` file has lost it if its names are sorted.
    let (checkpoint, blob) = (dir.path("torchrec.pt"), dir.path("model.ttr"));
    write_pt_of_zeros(&checkpoint, &shapes);
    ttrec!["convert", &checkpoint, "-o", &blob].exits(0);
    shapes.sort_unstable();
    write_pt_of_zeros(&checkpoint, &shapes);
    ttrec!["convert", &checkpoint, "-o", &blob]
        .exits(3)
        .says(["lost the order", "11 tables"]);

    // Four vectors of two columns have six dot products: with the dense vector they make as many
    // inputs as the vectors end to end.
    let checkpoint = write_zeros(
        &dir,
        "dlrm.safetensors",
        &[
            ("emb_l.0.weight", &[5, 2]),
            ("emb_l.1.weight", &[5, 2]),
            ("emb_l.2.weight", &[5, 2]),
            ("bot_l.0.weight", &[2, 3]),
            ("bot_l.0.bias", &[2]),
            ("top_l.0.weight", &[1, 8]),
            ("top_l.0.bias", &[1]),
        ],
    );
    ttrec!["convert", &checkpoint, "-o", dir.path("x.ttr")]
        .exits(3)
        .says(["\"cat\"", "interaction = \"dot\""]);
    let tables: String = (0..3).map(|t| format!("[[table]]\nprefix = \"emb_l.{t}.\"\n")).collect();
    let spec = dir.path("spec.toml");
    fs::write(&spec, format!("[model]\ninteraction = \"dot\"\n{tables}")).unwrap();
    ttrec!["convert", &checkpoint, "--spec", &spec, "-o", dir.path("x.ttr")].exits(0);
}

#[test]
fn the_interaction_of_a_whole_dlrm_is_told_by_its_widths() {
    let dir = Dir::new();
    for (interaction, inputs) in [("dot", 5 + 3), ("dot-itself", 5 + 6), ("cat", 3 * 5)] {
        let shapes: [(&str, &[usize]); 6] = [
            ("emb_l.0.weight", &[4, 5]),
            ("emb_l.1.weight", &[4, 5]),
            ("bot_l.0.weight", &[5, 3]),
            ("bot_l.0.bias", &[5]),
            ("top_l.0.weight", &[1, inputs]),
            ("top_l.0.bias", &[1]),
        ];
        let checkpoint = write_zeros(&dir, "dlrm.safetensors", &shapes);
        let blob = dir.path("dlrm.ttr");
        ttrec!["convert", &checkpoint, "-o", &blob].exits(0);
        ttrec!["inspect", &blob]
            .exits(0)
            .prints([format!("{interaction} interaction of 2 tables")]);
        // A spec that lists the tables says what the widths may only suggest.
        let spec = "[model]\n[[table]]\nprefix = \"emb_l.0.\"\n[[table]]\nprefix = \"emb_l.1.\"\n";
        let spec = dir.file("spec.toml", spec);
        let run = ttrec!["convert", &checkpoint, "--spec", &spec, "-o", &blob];
        match interaction {
            "dot" => drop(run.exits(0)),
            other => {
                drop(run.exits(3).says([
                    "list all tables".to_owned(),
                    format!("set `interaction = \"{other}\"`"),
                ]))
            }
        }
        let planned = dir.path("plan.toml");
        ttrec!["plan", &checkpoint, "--budget", "4KB", "-o", &planned].exits(0);
        ttrec!["convert", &checkpoint, "--spec", &planned, "-o", &blob].exits(0);
        ttrec!["inspect", &blob]
            .exits(0)
            .prints([format!("{interaction} interaction of 2 tables")]);
    }
}

#[test]
fn a_model_without_dense_features_is_planned() {
    let dir = Dir::new();
    let checkpoint = write_zeros(
        &dir,
        "model.safetensors",
        &[
            ("emb_l.0.weight", &[50, 4]),
            ("emb_l.1.weight", &[50, 4]),
            ("top_l.0.weight", &[1, 1]),
            ("top_l.0.bias", &[1]),
        ],
    );
    let spec = dir.path("spec.toml");
    ttrec!["plan", &checkpoint, "--budget", "100%", "-o", &spec].exits(0);
    ttrec!["convert", &checkpoint, "--spec", &spec, "-o", dir.path("x.ttr")].exits(0);
}

#[test]
fn one_table_of_several_in_tensorly_torch_s_factors_is_picked() {
    let dir = Dir::new();
    let checkpoint = dir.path("joint.safetensors");
    let core = |k: usize| -> Vec<f32> {
        let mut out = Vec::new();
        for a in 0..RANKS[k] {
            for table in 0..2 {
                for i in 0..P[k] {
                    for b in 0..Q[k] {
                        out.extend((0..RANKS[k + 1]).map(|c| element(table, k, i, a, b, c)));
                    }
                }
            }
        }
        out
    };
    let cores: Vec<_> = (0..3)
        .map(|k| {
            let name = format!("emb.weight.factors.factor_{k}");
            (name, [RANKS[k], 2, P[k], Q[k], RANKS[k + 1]], core(k))
        })
        .collect();
    let mut tensors: Vec<_> = cores
        .iter()
        .map(|(name, shape, values)| (name.as_str(), F32, &shape[..], values[..].bytes()))
        .collect();
    write_safetensors(&checkpoint, &tensors);
    let facts = "num_embeddings = 50\n";
    let said = refused_without_a_spec(&checkpoint, &["found 2 embedding tables", "table = 1"]);
    let offer = said[said.find("[[table]]").unwrap()..]
        .replace("[[table]]", &format!("[[table]]\n{facts}"));
    let blob = dir.convert(&checkpoint, &offer, "all.ttr");
    for table in 0..2 {
        let found = rows(&dir, &blob, &format!("emb.{table}"), ROWS);
        assert_eq!(found, expected(table, most_significant_first), "{table}");
    }
    ttrec!["verify", &blob, "--against", &checkpoint].exits(0);
    let table = format!("[[table]]\nprefix = \"emb.\"\n{facts}");
    refused(&checkpoint, &table, &["`table` is missing", "factor_0\" holds 2 tables"]);
    refused(&checkpoint, &format!("{table}table = 2\n"), &["`table` is 2", "holds 2"]);
    let four = [RANKS[1], P[1], Q[1] * 2, RANKS[2]];
    tensors[1].2 = &four;
    write_safetensors(&checkpoint, &tensors);
    refused(&checkpoint, &format!("{table}table = 1\n"), &["factor_1", "r_k x 2 x p_k x q_k"]);
}
