//! What the command line promises: exit codes, and errors that name the file, the table, the field
//! and what was expected.

use crate::support::{
    Dir, Elements, Run, TTREC, golden, ttrec, vector, write_npz, write_safetensors,
};
use safetensors::Dtype::{F16, F32, F64, I64};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The spec that `fbtt_d3` needs.
const ITEM: &str =
    "[[table]]\nname = \"item\"\nnum_embeddings = 1000\ncolumn_factors = [4, 4, 4]\n";

fn d3() -> PathBuf {
    golden("fbtt_d3.safetensors")
}

/// A directory with `item.ttr`, converted from `fbtt_d3`.
fn item() -> (Dir, PathBuf) {
    let dir = Dir::new();
    let blob = dir.convert(&d3(), ITEM, "item.ttr");
    (dir, blob)
}

/// Converting `checkpoint` with `spec` is refused; the error names both files, or at least the one
/// at fault.
#[track_caller]
fn refused(checkpoint: &Path, spec: &str, wanted: &[&str]) {
    let dir = Dir::new();
    let (spec, blob) = (dir.file("spec.toml", spec), dir.path("blob.ttr"));
    let run = ttrec!["convert", checkpoint, "--spec", &spec, "-o", &blob]
        .exits(3)
        .says([spec.to_str().unwrap()]);
    assert!(run.stdout.is_empty(), "{run:#?}");
    run.says(wanted);
    assert_eq!(dir.names(), ["spec.toml"]);
}

/// As `refused`, of `fbtt_d3` with a table "item" of these lines.
#[track_caller]
fn item_refused(lines: &str, wanted: &[&str]) {
    let checkpoint = d3();
    let mut all = vec![checkpoint.to_str().unwrap(), "table \"item\""];
    all.extend(wanted);
    refused(&checkpoint, &format!("[[table]]\nname = \"item\"\n{lines}\n"), &all);
}

// The whole.

#[test]
fn help_says_the_exit_codes() {
    let run = ttrec!["--help"].exits(0).prints([
        "Exit codes",
        "convert",
        "cache",
        "inspect",
        "lookup",
        "verify",
        "demo",
    ]);
    for code in 0..=4 {
        assert!(
            run.stdout
                .lines()
                .any(|line| line.trim_start().starts_with(&format!("{code}  "))),
            "{code}: {run:#?}"
        );
    }
    for command in ["convert", "cache", "inspect", "lookup", "verify", "demo"] {
        ttrec![command, "--help"].exits(0).prints(["Usage: ttrec"]);
    }
    ttrec!["convert", "--help"].exits(0).prints([
        "[[table]]",
        "num_embeddings",
        "column_factors",
        "dtype",
    ]);
    ttrec!["--version"].exits(0).prints([env!("CARGO_PKG_VERSION")]);
}

#[test]
fn every_shell_has_completions() {
    for (shell, sign) in [
        ("bash", "complete -F _ttrec"),
        ("zsh", "#compdef ttrec"),
        ("fish", "complete -c ttrec"),
        ("powershell", "Register-ArgumentCompleter"),
        ("elvish", "edit:completion"),
    ] {
        ttrec!["completions", shell].exits(0).prints([sign, "convert", "max-error"]);
    }
    ttrec!["completions", "tcsh"].exits(2).says(["tcsh", "bash"]);
}

#[test]
fn every_command_has_a_manual_page() {
    ttrec!["man"].exits(0).prints([".TH ttrec 1", "ttrec\\-convert(1)"]);
    let dir = Dir::new();
    let pages = dir.path("man1");
    ttrec!["man", &pages].exits(0).prints(["pages"]);
    for (page, sign) in
        [("ttrec.1", "Exit codes"), ("ttrec-convert.1", "qr\\-operation"), ("ttrec-man.1", "DIR")]
    {
        let text = fs::read_to_string(pages.join(page)).unwrap();
        assert!(text.contains(".TH") && text.contains(sign), "{page}: {text}");
    }
    assert!(fs::read_dir(&pages).unwrap().count() > 14);
}

#[test]
fn a_wrong_command_line_exits_with_2() {
    let (_dir, blob) = item();
    crate::support::run(Command::new(TTREC)).exits(2);
    ttrec!["transmogrify"].exits(2);
    ttrec!["convert", d3()].exits(2).says(["--output"]);
    ttrec!["inspect", &blob, "--yaml"].exits(2).says(["--yaml"]);
    let bags = golden("fbtt_d3.expected.npz");
    ttrec!["lookup", &blob, "--table", "item", "--bags", &bags, "-o", "x"]
        .exits(2)
        .says(["--mode"]);
    ttrec!["lookup", &blob, "--table", "item", "--bags", &bags, "--mode", "median", "-o", "x"]
        .exits(2)
        .says(["median", "rows", "sum", "mean", "max"]);
    ttrec!["verify", &blob, "--max-error", "1e-3"].exits(2).says(["--against"]);
    ttrec!["verify", &blob, "--against", d3(), "--max-error", "little"]
        .exits(2)
        .says(["little"]);
}

// Specs.

#[test]
fn a_file_that_is_not_there_or_not_a_checkpoint_is_named() {
    let dir = Dir::new();
    let (blob, missing) = (dir.path("blob.ttr"), dir.path("missing"));
    ttrec!["convert", &missing, "-o", &blob]
        .exits(3)
        .says([missing.to_str().unwrap(), "No such file"]);
    ttrec!["convert", d3(), "--spec", &missing, "-o", &blob]
        .exits(3)
        .says([missing.to_str().unwrap(), "No such file"]);
    let text = dir.file("text", "not a checkpoint");
    ttrec!["convert", &text, "-o", &blob].exits(3).says([
        text.to_str().unwrap(),
        ".safetensors",
        ".npz",
    ]);
    let empty = dir.file("empty", "");
    ttrec!["convert", &empty, "-o", &blob].exits(3).says([empty.to_str().unwrap()]);
    ttrec!["convert", dir.path("."), "-o", &blob]
        .exits(3)
        .says(["a directory: give a file in it"]);
    for command in ["inspect", "verify"] {
        ttrec![command, &missing].exits(3).says([missing.to_str().unwrap()]);
        ttrec![command, &empty].exits(3).says([empty.to_str().unwrap()]);
        ttrec![command, &text].exits(3).says([text.to_str().unwrap(), "blob"]);
    }
}

#[test]
fn a_spec_with_an_unknown_key_or_value_is_refused() {
    let known = [
        "name",
        "tensor",
        "prefix",
        "dialect",
        "num_embeddings",
        "row_factors",
        "column_factors",
        "ranks",
    ];
    refused(&d3(), &format!("{ITEM}rows = 1000\n"), &[&["`rows`", "line 5"][..], &known].concat());
    refused(&d3(), "tables = 3\n", &["`tables`", "`table`"]);
    refused(
        &d3(),
        &format!("{ITEM}dtype = \"f8\"\n"),
        &["\"f8\"", "expected f32, f16, bf16, i8 or i4", "line 5"],
    );
    refused(&d3(), "", &["no [[table]]"]);
    refused(&d3(), "[[table]\n", &["line 1"]);
    refused(&d3(), "[[table]]\nname = \"item\"\nnum_embeddings = -1\n", &["num_embeddings", "-1"]);
    refused(&d3(), "[[table]]\nname = \"item\"\nranks = [4294967296]\n", &["ranks", "4294967296"]);
    item_refused("dialect = \"tucker\"", &["dialect \"tucker\"", "fbtt", "dense"]);
}

#[test]
fn a_table_without_a_name_is_refused() {
    refused(&d3(), "[[table]]\nnum_embeddings = 1000\n", &["[[table]]", "`name` is missing"]);
    refused(&d3(), "[[table]]\nname = \"\"\nnum_embeddings = 1000\n", &["`name` is missing"]);
}

#[test]
fn what_fbtt_does_not_store_is_asked_for_by_name() {
    item_refused(
        "column_factors = [4, 4, 4]",
        &["`num_embeddings` is missing", "at most 1000", "[10, 10, 10]"],
    );
    item_refused(
        "num_embeddings = 1000",
        &["`column_factors` or `ranks` is missing", "[64, 1024, 64]"],
    );
}

#[test]
fn facts_that_contradict_the_cores_are_refused() {
    let factors = "column_factors = [4, 4, 4]";
    item_refused(&format!("num_embeddings = 1001\n{factors}"), &["1001", "[10, 10, 10]", "1000"]);
    item_refused(&format!("num_embeddings = 0\n{factors}"), &["num_embeddings is 0"]);
    let rows = "num_embeddings = 1000";
    item_refused(
        &format!("{rows}\ncolumn_factors = [4, 4, 3]"),
        &["`column_factors` = [4, 4, 3]", "[64, 1024, 64]"],
    );
    item_refused(
        &format!("{rows}\ncolumn_factors = [4, 4]"),
        &["`column_factors` is [4, 4]", "expected 3"],
    );
    item_refused(&format!("{rows}\nranks = [16, 15]"), &["`ranks` = [16, 15]", "[64, 1024, 64]"]);
    item_refused(&format!("{rows}\nranks = [16]"), &["`ranks` is [16]", "expected 2"]);
    item_refused(
        &format!("{rows}\n{factors}\nranks = [16, 8]"),
        &["`column_factors`", "`ranks` = [16, 8]"],
    );
    item_refused(
        &format!("{rows}\n{factors}\nrow_factors = [10, 11, 10]"),
        &["`row_factors` is [10, 11, 10]", "[10, 10, 10]"],
    );
    item_refused(
        "dialect = \"dense\"\ntensor = \"tt_cores.0\"\nranks = [16, 16]",
        &["`ranks`", "\"dense\""],
    );
    item_refused("dialect = \"fbtt\"\ntensor = \"tt_cores.0\"", &["`tensor`", "\"fbtt\""]);
    item_refused("prefix = \"emb.0.\"", &["\"emb.0.\""]);
    item_refused(
        "dialect = \"fbtt\"\nprefix = \"emb.0.\"",
        &["\"emb.0.tt_cores.0\"", "tt_cores.0"],
    );
}

#[test]
fn fewer_rows_than_the_factors_hold_are_taken_as_said() {
    // FBTT pads: 10,131,227 rows in (200, 220, 250). So a small number is no contradiction, and it
    // is what bounds lookups.
    let dir = Dir::new();
    let blob = dir.convert(&d3(), &ITEM.replace("1000", "7"), "blob.ttr");
    let (bags, out) = (dir.path("bags.npz"), dir.path("out.npy"));
    write_npz(&bags, &[("indices", vector(&[6u32, 7])), ("offsets", vector(&[0u32, 2]))]);
    ttrec!["lookup", blob, "--table", "item", "--bags", bags, "--mode", "sum", "-o", out]
        .exits(3)
        .says(["index 7 at position 1", "7 rows"]);
}

#[test]
fn l_says_the_order_of_digits() {
    let dir = Dir::new();
    let checkpoint = dir.path("c.safetensors");
    let core = [0.5f32; 20];
    let write = |strides: &[i64]| {
        let tensors = [
            ("tt_cores.0", F32, &[1, 5, 4][..], core[..].bytes()),
            ("tt_cores.1", F32, &[1, 4, 5], core[..].bytes()),
            ("L", I64, &[strides.len()], strides.bytes()),
        ];
        write_safetensors(&checkpoint, &tensors);
    };
    let spec = "[[table]]\nname = \"t\"\nnum_embeddings = 20\nranks = [1]\n";
    write(&[4, 1]);
    dir.convert(&checkpoint, spec, "blob.ttr");
    ttrec!["inspect", dir.path("blob.ttr"), "--json"]
        .exits(0)
        .prints(["\"digit_order\": \"most_significant_first\""]);
    write(&[1, 5]);
    let least = dir.convert(&checkpoint, spec, "least.ttr");
    ttrec!["inspect", &least, "--json"]
        .exits(0)
        .prints(["\"digit_order\": \"least_significant_first\""]);
    ttrec!["verify", &least, "--against", &checkpoint].exits(0);
    // And a blob of the other order is not of this checkpoint.
    ttrec!["verify", dir.path("blob.ttr"), "--against", &checkpoint].exits(3);
    write(&[5, 1]);
    let path = checkpoint.to_str().unwrap();
    let says = [
        path,
        "table \"t\"",
        "\"L\" is [5, 1]",
        "expected the digit strides [4, 1] of [5, 4], or [1, 5]",
    ];
    refused(&checkpoint, spec, &says);
    write(&[4, 1, 1]);
    refused(&checkpoint, spec, &["\"L\" has 3 elements"]);
}

#[test]
fn a_dense_tensor_must_be_a_table_of_floats() {
    let dir = Dir::new();
    let checkpoint = dir.path("c.safetensors");
    let (floats, integers) = (vec![0.5f32; 12], vec![1i64; 12]);
    let tensors = [
        ("emb.weight", F32, &[4, 3][..], floats[..].bytes()),
        ("flat", F32, &[12], floats[..].bytes()),
        ("cube", F32, &[2, 2, 3], floats[..].bytes()),
        ("ids", I64, &[4, 3], integers[..].bytes()),
        ("no_rows", F32, &[0, 3], Vec::new()),
        ("no_columns", F32, &[3, 0], Vec::new()),
    ];
    write_safetensors(&checkpoint, &tensors);
    let path = checkpoint.to_str().unwrap();
    let case = |tensor: &str, more: &str, wanted: &[&str]| {
        let table = format!("table {tensor:?}");
        let mut all = vec![table.as_str()];
        all.extend(wanted);
        refused(&checkpoint, &format!("[[table]]\ntensor = {tensor:?}\n{more}"), &all);
    };
    case("emb.wieght", "", &[path, "has no tensor \"emb.wieght\"", "emb.weight"]);
    case("flat", "", &[path, "[12]", "expected rows x columns"]);
    case("cube", "", &[path, "[2, 2, 3]", "expected rows x columns"]);
    case("ids", "", &[path, "i64", "expected a float"]);
    case("no_rows", "", &["num_embeddings is 0"]);
    case("no_columns", "", &["embedding_dim is 0"]);
    for rows in [3, 5] {
        let said = format!("`num_embeddings` is {rows}");
        case("emb.weight", &format!("num_embeddings = {rows}\n"), &[path, &said, "4 rows"]);
    }
    case("emb.weight", "column_factors = [3]\n", &[path, "`column_factors`", "\"dense\""]);
}

#[test]
fn two_tables_of_one_name_are_refused() {
    refused(&d3(), &format!("{ITEM}{ITEM}"), &["duplicate table name \"item\""]);
}

#[test]
fn values_without_a_finite_form_name_tensor_row_and_column() {
    let dir = Dir::new();
    let checkpoint = dir.path("c.safetensors");
    let path = checkpoint.to_str().unwrap();
    for (value, dtype) in [
        (f32::NAN, "f32"),
        (f32::INFINITY, "f32"),
        (65_520.0, "f16"),
        (f32::MAX, "bf16"),
        (f32::NAN, "i8"),
    ] {
        let mut values = [0.5f32; 12];
        values[7] = value;
        write_safetensors(&checkpoint, &[("emb", F32, &[4, 3], values.bytes())]);
        let wanted = [path, "table \"emb\"", "tensor \"emb\", row 2, column 1", dtype];
        refused(&checkpoint, &format!("[[table]]\ntensor = \"emb\"\ndtype = {dtype:?}\n"), &wanted);
        // In a core it is the slice that has rows and columns.
        let tensors = [
            ("tt_cores.0", F32, &[1, 4, 3][..], values.bytes()),
            ("tt_cores.1", F32, &[1, 4, 3], [0.5f32; 12].bytes()),
        ];
        write_safetensors(&checkpoint, &tensors);
        let spec = format!(
            "[[table]]\nname = \"t\"\nnum_embeddings = 16\nranks = [1]\ndtype = {dtype:?}\n"
        );
        refused(
            &checkpoint,
            &spec,
            &[path, "table \"t\"", "tensor \"tt_cores.0\", row 2, column 1", dtype],
        );
    }
    // The largest f16 is 65504; what rounds to it is within.
    write_safetensors(&checkpoint, &[("emb", F32, &[1, 1], [65_519.0f32].bytes())]);
    dir.convert(&checkpoint, "[[table]]\ntensor = \"emb\"\ndtype = \"f16\"\n", "blob.ttr");
}

#[test]
fn f64_numbers_need_a_dtype() {
    let dir = Dir::new();
    let checkpoint = dir.path("c.safetensors");
    write_safetensors(&checkpoint, &[("emb", F64, &[2, 2], [0.1f64, 0.2, 0.3, 0.4].bytes())]);
    let spec = "[[table]]\ntensor = \"emb\"\n";
    refused(
        &checkpoint,
        spec,
        &[checkpoint.to_str().unwrap(), "table \"emb\"", "f64", "`dtype`", "f32"],
    );
    dir.convert(&checkpoint, &format!("{spec}dtype = \"f32\"\n"), "blob.ttr");
}

#[test]
fn without_a_spec_the_candidates_are_offered_as_one() {
    let dir = Dir::new();
    let (checkpoint, blob) = (dir.path("c.safetensors"), dir.path("blob.ttr"));
    let values = [0.5f32; 12];
    let tensors = [
        ("user.emb.weight", F32, &[4, 3][..], values.bytes()),
        ("item.emb.weight", F32, &[6, 2], values.bytes()),
        ("bias", F32, &[12], values.bytes()),
    ];
    write_safetensors(&checkpoint, &tensors);
    let run = ttrec!["convert", &checkpoint, "-o", &blob]
        .exits(3)
        .says([checkpoint.to_str().unwrap(), "found 2 embedding tables"]);
    assert!(!blob.exists());
    // The offered spec works unchanged.
    let offer = &run.stderr[run.stderr.find("[[table]]").expect("an offer")..];
    let offered = dir.convert(&checkpoint, offer, "offered.ttr");
    ttrec!["inspect", &offered]
        .exits(0)
        .prints(["user.emb.weight", "item.emb.weight"]);

    // One table that lacks a fact is offered, too.
    let run = ttrec!["convert", d3(), "-o", &blob]
        .exits(3)
        .says(["`num_embeddings` is missing", "--spec"]);
    let offer = &run.stderr[run.stderr.find("[[table]]").expect("an offer")..];
    let completed =
        format!("{}\nnum_embeddings = 1000\ncolumn_factors = [4, 4, 4]\n", offer.trim_end());
    dir.convert(&d3(), &completed, "completed.ttr");

    // Nothing that looks like a table: the tensors are listed.
    write_safetensors(&checkpoint, &tensors[2..]);
    ttrec!["convert", &checkpoint, "-o", &blob]
        .exits(3)
        .says(["no tensor looks like", "bias f32 [12]"]);
    assert!(!blob.exists());
}

#[test]
fn without_a_spec_the_only_table_is_converted() {
    let dir = Dir::new();
    let (checkpoint, blob) = (dir.path("c.safetensors"), dir.path("blob.ttr"));
    let halves: Vec<u8> =
        (0..12).flat_map(|i| half::f16::from_f32(i as f32).to_le_bytes()).collect();
    write_safetensors(
        &checkpoint,
        &[("emb.weight", F16, &[4, 3], halves), ("bias", F32, &[1], [0f32].bytes())],
    );
    ttrec!["convert", &checkpoint, "-o", &blob]
        .exits(0)
        .prints([blob.to_str().unwrap(), "1 table,"]);
    ttrec!["inspect", &blob].exits(0).prints(["emb.weight", "f16"]);
}

// Lookups.

/// Looks bags of these arrays up in `item.ttr`.
fn look_up(arrays: &[(&str, Vec<u8>)], mode: &[&str]) -> (Run, Option<Vec<f32>>) {
    let (dir, blob) = item();
    let (bags, out) = (dir.path("bags.npz"), dir.path("out.npy"));
    write_npz(&bags, arrays);
    let mut command = Command::new(TTREC);
    command
        .arg("lookup")
        .arg(&blob)
        .arg("--bags")
        .arg(&bags)
        .args(["--table", "item"])
        .args(mode)
        .arg("-o")
        .arg(&out);
    let run = crate::support::run(command);
    if run.code == Some(0) {
        let values = crate::support::read_f32(&out).1;
        return (run, Some(values));
    }
    assert!(!out.exists());
    (run.says([bags.to_str().unwrap()]), None)
}

#[track_caller]
fn lookup_refused(arrays: &[(&str, Vec<u8>)], mode: &[&str], wanted: &[&str]) {
    look_up(arrays, mode).0.exits(3).says(wanted);
}

const SUM: &[&str] = &["--mode", "sum"];
const WEIGHTED: &[&str] = &["--mode", "sum", "--weighted"];

#[test]
fn an_unknown_table_is_answered_with_the_names_there_are() {
    let dir = Dir::new();
    let spec = fs::read_to_string(golden("two_tables.toml")).unwrap();
    let blob = dir.convert(&golden("fbtt_d3_cache.safetensors"), &spec, "blob.ttr");
    let (bags, out) = (golden("fbtt_d3_cache.expected.npz"), dir.path("out.npy"));
    ttrec!["lookup", &blob, "--table", "shop", "--bags", bags, "--mode", "sum", "-o", &out]
        .exits(3)
        .says([blob.to_str().unwrap(), "\"shop\"", "\"item\"", "\"user\""]);
    assert!(!out.exists());
}

#[test]
fn arrays_that_are_missing_or_of_another_shape_are_named() {
    let (indices, offsets) = (("indices", vector(&[1u32, 2])), ("offsets", vector(&[0u32, 2])));
    lookup_refused(std::slice::from_ref(&offsets), SUM, &["array \"indices\" is missing"]);
    lookup_refused(
        std::slice::from_ref(&indices),
        SUM,
        &["no array of offsets or lengths", "two dimensions"],
    );
    lookup_refused(
        &[indices.clone(), offsets.clone()],
        WEIGHTED,
        &["array \"weights\" is missing"],
    );
    let square = ("indices", crate::support::npy("<u4", &[1, 2], &[1u32, 2][..].bytes()));
    lookup_refused(&[square, offsets.clone()], SUM, &["\"indices\"", "[1, 2]", "\"offsets\""]);
    let cube = ("indices", crate::support::npy("<u4", &[1, 2, 1], &[1u32, 2][..].bytes()));
    lookup_refused(&[cube], SUM, &["\"indices\"", "[1, 2, 1]", "one dimension"]);
    let lengths = ("lengths", vector(&[1u32, 2]));
    lookup_refused(&[indices.clone(), lengths], SUM, &["\"lengths\" is 3", "indices, 2"]);
    let endless = ("lengths", vector(&[i64::MAX, i64::MAX, 4]));
    lookup_refused(&[indices.clone(), endless], SUM, &["\"lengths\" is 18446744073709551618"]);
    let none = ("indices", crate::support::npy("<u4", &[1 << 40, 0], &[]));
    lookup_refused(&[none], SUM, &["[1099511627776, 0]", "one column or more"]);
    let few = ("weights", vector(&[0.5f32]));
    lookup_refused(&[indices, offsets, few], WEIGHTED, &["1 per_sample_weights", "2"]);
    let (dir, blob) = item();
    let missing = dir.path("missing.npz");
    ttrec![
        "lookup",
        blob,
        "--table",
        "item",
        "--bags",
        &missing,
        "--mode",
        "sum",
        "-o",
        dir.path("out.npy")
    ]
    .exits(3)
    .says([missing.to_str().unwrap()]);
}

#[test]
fn indices_out_of_range_are_named_with_their_position() {
    let offsets = || ("offsets", vector(&[0u32, 3]));
    lookup_refused(&[("indices", vector(&[1i64, -2, 3])), offsets()], SUM, &["indices[1] is -2"]);
    for mode in ["rows", "sum", "mean", "max"] {
        let arrays = [("indices", vector(&[1i64, 999, 1000])), offsets()];
        lookup_refused(
            &arrays,
            &["--mode", mode],
            &["table \"item\"", "index 1000 at position 2", "1000 rows"],
        );
    }
    let largest = ("indices", vector(&[0u64, u64::MAX, 0]));
    lookup_refused(&[largest, offsets()], SUM, &["indices", "element 1", &u64::MAX.to_string()]);
    let fraction = ("indices", vector(&[0f64, 1.0, 1.5]));
    lookup_refused(&[fraction, offsets()], SUM, &["indices", "element 2", "1.5", "integer"]);
    let nan = ("indices", vector(&[0f32, f32::NAN, 1.0]));
    lookup_refused(&[nan, offsets()], SUM, &["indices", "element 1", "NaN"]);
}

#[test]
fn offsets_that_are_no_bags_are_refused() {
    let indices = || ("indices", vector(&[1u32, 2, 3]));
    for (offsets, wanted) in [
        (&[][..], "offsets is empty"),
        (&[1, 3], "offset 1 at position 0"),
        (&[0, 2, 1, 3], "offset 1 at position 2"),
        (&[0, 4], "offset 4 at position 1"),
        (&[0, -1, 3], "offsets[1] is -1"),
    ] {
        lookup_refused(&[indices(), ("offsets", vector::<i32>(offsets))], SUM, &[wanted]);
    }
    let fraction = ("offsets", vector(&[0f32, 0.5, 3.0]));
    lookup_refused(&[indices(), fraction], SUM, &["offsets", "element 1", "0.5"]);
}

#[test]
fn the_same_bags_in_any_form_give_the_same_rows() {
    let indices = || ("indices", vector(&[3i64, 200, 7, 3]));
    let weights = || ("weights", vector(&[0.5f32, -2.0, 0.25, 1.0]));
    let ends = |offsets: &[i64]| ("offsets", vector(offsets));
    for mode in [&["--mode", "mean"][..], &["--mode", "max"], SUM, WEIGHTED] {
        let values = |bags: (&'static str, Vec<u8>)| {
            let (run, values) = look_up(&[indices(), bags, weights()], mode);
            run.exits(0).prints(["3 x 64"]);
            values
        };
        let expected = values(ends(&[0, 2, 2, 4]));
        assert_eq!(values(ends(&[0, 2, 2])), expected, "without the last offset");
        assert_eq!(values(("lengths", vector(&[2i32, 0, 2]))), expected);

        let square =
            |name, bytes: Vec<u8>, descr| (name, crate::support::npy(descr, &[2, 2], &bytes));
        let rows = [
            square("indices", [3i64, 200, 7, 3][..].bytes(), "<i8"),
            square("weights", [0.5f32, -2.0, 0.25, 1.0][..].bytes(), "<f4"),
        ];
        let (run, pooled) = look_up(&rows, mode);
        run.exits(0).prints(["2 x 64"]);
        assert_eq!(pooled, look_up(&[indices(), ends(&[0, 2, 4]), weights()], mode).1);
    }
}

#[test]
fn rows_need_no_bags_and_have_the_shape_of_their_indices() {
    const ROWS: &[&str] = &["--mode", "rows"];
    let (run, expected) = look_up(&[("indices", vector(&[3u8, 200, 7, 3]))], ROWS);
    run.exits(0).prints(["4 x 64"]);
    let square = crate::support::npy("|u1", &[2, 2], &[3, 200, 7, 3]);
    let (run, values) = look_up(&[("indices", square.clone())], ROWS);
    run.exits(0).prints(["2 x 2 x 64"]);
    assert_eq!(values, expected);

    let (dir, blob) = item();
    let out = dir.path("out.npy");
    // A .npy file holds the indices, whatever its name.
    for name in ["indices.npy", "offsets.npy", "weights.npy"] {
        let file = dir.file(name, &square);
        ttrec!["lookup", &blob, "--table", "item", "--bags", file, "--mode", "rows", "-o", &out]
            .exits(0);
        assert_eq!(Some(crate::support::read_f32(&out).1), expected);
    }
    let header = fs::read(&out).unwrap()[..128].to_vec();
    let numpy = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2, 64), }";
    assert_eq!(
        header,
        format!("\u{93}NUMPY\u{1}\0v\0{numpy:117}\n")
            .chars()
            .map(|c| c as u8)
            .collect::<Vec<_>>()
    );
    let lookup = |mode: &str| {
        let ids = "3,200,7,3";
        ttrec!["lookup", &blob, "--table", "item", "--ids", ids, "--mode", mode, "-o", &out]
            .exits(0);
        crate::support::read_f32(&out)
    };
    assert_eq!(Some(lookup("rows").1), expected);
    let bag = [("indices", vector(&[3u8, 200, 7, 3])), ("offsets", vector(&[0u8, 4]))];
    let (shape, mean) = lookup("mean");
    assert_eq!(shape, [1, 64]);
    assert_eq!(Some(mean), look_up(&bag, &["--mode", "mean"]).1);
    ttrec!["lookup", &blob, "--table", "item", "--ids", "3,1000", "--mode", "sum", "-o", &out]
        .exits(3)
        .says(["--ids", "index 1000 at position 1"]);
    ttrec!["lookup", &blob, "--table", "item", "--mode", "rows", "-o", &out]
        .exits(2)
        .says(["--bags"]);
}

#[test]
fn an_option_says_whether_an_empty_bag_ends_the_offsets() {
    let arrays = [("indices", vector(&[1u32, 2, 3])), ("offsets", vector(&[0u32, 2, 3]))];
    let with = |value: &'static str| [SUM, &["--include-last-offset", value]].concat();
    let (run, two) = look_up(&arrays, SUM);
    run.exits(0).prints(["2 x 64"]);
    assert_eq!(look_up(&arrays, &with("true")).1, two);
    let (run, three) = look_up(&arrays, &with("false"));
    run.exits(0).prints(["3 x 64"]);
    let expected = [two.unwrap(), vec![0.0; 64]].concat();
    assert_eq!(three, Some(expected));
    let open = [("indices", vector(&[1u32, 2, 3])), ("offsets", vector(&[0u32, 2]))];
    lookup_refused(&open, &with("true"), &["offset 2 at position 1"]);
}

#[test]
fn padding_is_left_out_of_bags() {
    let padding = |mode: &[&'static str]| [mode, &["--padding-idx", "5"]].concat();
    let padded = [
        ("indices", vector(&[3u32, 5, 200, 5, 5, 5, 7])),
        ("offsets", vector(&[0u32, 3, 5, 5, 7])),
        ("weights", vector(&[0.5f32, 9.0, -2.0, 9.0, 9.0, 9.0, 4.0])),
    ];
    let plain = [
        ("indices", vector(&[3u32, 200, 7])),
        ("offsets", vector(&[0u32, 2, 2, 2, 3])),
        ("weights", vector(&[0.5f32, -2.0, 4.0])),
    ];
    for mode in [&["--mode", "mean"][..], &["--mode", "max"], SUM, WEIGHTED] {
        let (run, values) = look_up(&padded, &padding(mode));
        run.exits(0).prints(["4 x 64"]);
        assert_eq!(values, look_up(&plain, mode).1, "{mode:?}");
        let other = [mode, &["--padding-idx", "999"]].concat();
        assert_eq!(look_up(&padded, &other).1, look_up(&padded, mode).1, "{mode:?}");
    }
    // Errors name positions in the file.
    let wrong = [("indices", vector(&[5u32, 5, 1000])), ("offsets", vector(&[0u32, 3]))];
    lookup_refused(&wrong, &padding(SUM), &["\"item\"", "index 1000 at position 2", "1000 rows"]);
    let few = [padded[0].clone(), padded[1].clone(), ("weights", vector(&[0.5f32]))];
    lookup_refused(&few, &padding(WEIGHTED), &["1 per_sample_weights", "7"]);
    let ends = [padded[0].clone(), ("offsets", vector(&[0u32, 8]))];
    lookup_refused(&ends, &padding(SUM), &["offset 8 at position 1"]);
    lookup_refused(&padded[..1], &padding(SUM), &["no array of offsets or lengths"]);
    let (dir, blob) = item();
    for (mode, padding, wanted) in
        [("rows", "5", "torch.nn.Embedding"), ("sum", "1000", "has 1000 rows")]
    {
        let mut command = Command::new(TTREC);
        command.arg("lookup").arg(&blob).args(["--table", "item", "--ids", "1,5"]);
        command
            .args(["--mode", mode, "--padding-idx", padding, "-o"])
            .arg(dir.path("out.npy"));
        crate::support::run(command).exits(3).says(["--padding-idx", wanted]);
    }
}

#[test]
fn arrays_that_nothing_asks_for_do_not_matter() {
    let bags = || vec![("indices", vector(&[3u32, 7])), ("offsets", vector(&[0u32, 1, 2]))];
    let array = |descr: &str, bytes: &[u8]| crate::support::npy(descr, &[1], bytes);
    let mut structured = array("@", &[0; 12]);
    let at = structured.windows(3).position(|part| part == b"'@'").unwrap();
    // As many bytes as the header keeps for padding.
    let fields = "[('a', '<i4'), ('b', '<f8')]";
    structured.splice(at..at + 3, fields.bytes());
    let end = structured.iter().position(|&byte| byte == b'\n').unwrap();
    structured.drain(end - (fields.len() - 3)..end);
    let beside = [
        ("bytes", array("|S3", b"abc")),
        ("text", array("<U1", &[b'a', 0, 0, 0])),
        ("object", array("|O", b"\x80\x04K\x01.")),
        ("structured", structured),
        ("time", array("<M8[s]", &[0; 8])),
        ("complex", array("<c8", &[0; 8])),
    ];
    let expected = look_up(&bags(), SUM).1;
    for (name, npy) in beside {
        let arrays = [bags(), vec![(name, npy.clone())]].concat();
        let (run, values) = look_up(&arrays, SUM);
        run.exits(0);
        assert_eq!(values, expected, "{name}");
        // They do where they are what is asked for.
        let arrays = [("indices", vector(&[3u32, 7])), ("offsets", npy.clone())];
        lookup_refused(&arrays, SUM, &["`offsets`", "element type"]);
        lookup_refused(&[("indices", npy)], SUM, &["`indices`", "element type"]);
    }
}

#[test]
fn weights_go_with_sums_only() {
    let arrays = [
        ("indices", vector(&[1u32, 2])),
        ("offsets", vector(&[0u32, 2])),
        ("weights", vector(&[0.5f32, 2.0])),
    ];
    for mode in ["rows", "mean", "max"] {
        lookup_refused(&arrays, &["--mode", mode, "--weighted"], &["sum pooling only"]);
    }
}

#[test]
fn every_number_type_is_taken_for_indices_offsets_and_weights() {
    fn arrays<T>(indices: &[T], offsets: &[T]) -> Vec<(&'static str, Vec<u8>)>
    where
        [T]: Elements,
    {
        vec![
            ("indices", vector(indices)),
            ("offsets", vector(offsets)),
            ("weights", vector::<f32>(&[0.5, -2.0, 0.25])),
        ]
    }
    macro_rules! of {
        ($t:ty) => {
            (
                stringify!($t),
                arrays::<$t>(&[3 as $t, 200 as $t, 3 as $t], &[0 as $t, 2 as $t, 2 as $t, 3 as $t]),
            )
        };
    }
    let (_, reference) = look_up(&of!(u32).1, WEIGHTED);
    let reference = reference.expect("u32 is taken");
    assert!(reference.iter().any(|&x| x != 0.0));
    assert!(reference[64..128].iter().all(|&x| x == 0.0), "the empty bag");
    for (name, arrays) in [of!(i32), of!(i64), of!(u8), of!(u16), of!(u64), of!(f32), of!(f64)] {
        assert_eq!(look_up(&arrays, WEIGHTED).1.as_ref(), Some(&reference), "{name}");
    }
    let mut doubles = of!(i64).1;
    doubles[2].1 = vector(&[0.5f64, -2.0, 0.25]);
    assert_eq!(look_up(&doubles, WEIGHTED).1, Some(reference));
}

#[test]
fn no_bags_and_no_indices_are_no_error() {
    let empty = [("indices", vector::<i64>(&[])), ("offsets", vector(&[0i64]))];
    for mode in ["rows", "sum", "mean", "max"] {
        let (run, values) = look_up(&empty, &["--mode", mode]);
        run.exits(0).prints(["0 x 64"]);
        assert_eq!(values, Some(Vec::new()));
    }
}

// Verification.

/// Changes one byte of the file at `path`.
fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_flipped_payload_byte_names_the_table_and_exits_with_1() {
    let dir = Dir::new();
    let spec = fs::read_to_string(golden("two_tables.toml")).unwrap();
    let checkpoint = golden("fbtt_d3_cache.safetensors");
    let blob = dir.convert(&checkpoint, &spec, "blob.ttr");
    ttrec!["verify", &blob]
        .exits(0)
        .prints([blob.to_str().unwrap(), "every checksum matches"]);
    let len = fs::metadata(&blob).unwrap().len() as usize;
    for (at, table) in [(len - 1, "\"user\""), (len / 2, "\"item\"")] {
        flip(&blob, at);
        ttrec!["verify", &blob]
            .exits(1)
            .prints([blob.to_str().unwrap(), "damaged", table]);
        ttrec!["verify", &blob, "--against", &checkpoint]
            .exits(1)
            .prints(["damaged", table]);
        let run = ttrec!["verify", &blob, "--json"].exits(1);
        let report: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
        assert_eq!(report["payload"], "damaged");
        assert!(report["damage"].as_str().unwrap().contains(table), "{report}");
        // The directory is whole, and all that `inspect` reads.
        ttrec!["inspect", &blob].exits(0);
        flip(&blob, at);
    }
    ttrec!["verify", &blob].exits(0);
}

#[test]
fn a_damaged_head_or_a_cut_blob_is_refused_by_every_command() {
    let (dir, blob) = item();
    let whole = fs::read(&blob).unwrap();
    let bags = golden("fbtt_d3.expected.npz");
    let mut head = whole.clone();
    head[70] ^= 1;
    let mut longer = whole.clone();
    longer.extend([0; 64]);
    let broken = [
        &whole[..whole.len() - 1],
        &whole[..whole.len() - 64],
        &whole[..63],
        &whole[..8],
        &head,
        &longer,
    ];
    for (case, bytes) in broken.into_iter().enumerate() {
        let path = dir.file("broken.ttr", bytes);
        let name = path.to_str().unwrap();
        ttrec!["inspect", &path].exits(3).says([name, "invalid blob"]);
        ttrec!["inspect", &path, "--json"].exits(3).says([name]);
        ttrec!["verify", &path].exits(3).says([name]);
        ttrec!["verify", &path, "--against", d3()].exits(3).says([name]);
        let out = dir.path("out.npy");
        ttrec!["lookup", &path, "--table", "item", "--bags", &bags, "--mode", "sum", "-o", &out]
            .exits(3)
            .says([name]);
        ttrec!["topk", &path, "--table", "item", "--queries", &bags, "--k", "9", "-o", &out]
            .exits(3)
            .says([name]);
        assert!(!out.exists(), "case {case}");
    }
}

#[test]
fn an_error_above_the_limit_exits_with_1() {
    let dir = Dir::new();
    let blob = dir.convert(&d3(), &format!("{ITEM}dtype = \"f16\"\n"), "blob.ttr");
    let verify = |limit: &str| ttrec!["verify", &blob, "--against", d3(), "--max-error", limit];
    verify("1e-3").exits(0).prints(["item", "within"]);
    verify("1e-5")
        .exits(1)
        .prints(["item", "relative error", "ABOVE 1.000e-5", "in row"]);
    verify("0").exits(1);
    verify("nan").exits(1);
    let run = ttrec!["verify", &blob, "--against", d3(), "--max-error", "1e-5", "--json"].exits(1);
    let report: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    let table = &report["tables"][0];
    let error = table["relative_error"].as_f64().unwrap();
    assert!(error > 1e-5 && error < 1e-3, "{report}");
    assert!(table["largest_row_error"].as_f64().unwrap() >= error, "{report}");
    assert!(table["largest_row_error_at"].as_u64().unwrap() < 1000, "{report}");
}

#[test]
fn the_largest_row_error_is_in_the_row_that_differs() {
    // Two checkpoints that differ in one element: the blob of one against the other.
    let dir = Dir::new();
    let (a, b) = (dir.path("a.safetensors"), dir.path("b.safetensors"));
    let mut values: Vec<f32> = (0..60).map(|i| i as f32 / 60.0).collect();
    write_safetensors(&a, &[("emb", F32, &[20, 3], values[..].bytes())]);
    values[17 * 3 + 1] += 0.5;
    write_safetensors(&b, &[("emb", F32, &[20, 3], values[..].bytes())]);
    let blob = dir.convert(&a, "[[table]]\ntensor = \"emb\"\n", "blob.ttr");
    ttrec!["verify", &blob, "--against", &a]
        .exits(0)
        .prints(["relative error 0.000e0"]);
    ttrec!["verify", &blob, "--against", &b].exits(1).prints(["ABOVE", "in row 17"]);
    let norm = values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    let run = ttrec!["verify", &blob, "--against", &b, "--json"].exits(1);
    let report: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    let relative = report["tables"][0]["relative_error"].as_f64().unwrap();
    assert!((relative - 0.5 / norm).abs() < 1e-6, "{relative}");
    let row = report["tables"][0]["largest_row_error"].as_f64().unwrap();
    assert!((row - 0.5 / (norm / f64::sqrt(20.0))).abs() < 1e-6, "{row}");
}

#[test]
fn a_blob_of_another_checkpoint_does_not_pass() {
    let (dir, blob) = item();
    ttrec!["verify", &blob, "--against", golden("fbtt_d2.safetensors")]
        .exits(3)
        .says(["the shape of \"item\"", "fbtt_d2"]);
    // Of the same shapes, but other numbers.
    let bytes = fs::read(d3()).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for (name, view) in file.tensors().into_iter().filter(|(name, _)| name.starts_with("tt_cores"))
    {
        let (values, _) = view.data().as_chunks::<4>();
        let reversed: Vec<u8> = values.iter().rev().flatten().copied().collect();
        tensors.push((name, view.shape().to_vec(), reversed));
    }
    let views: Vec<_> = tensors
        .iter()
        .map(|(name, shape, bytes)| (name.as_str(), F32, &shape[..], bytes.clone()))
        .collect();
    let checkpoint = dir.path("other.safetensors");
    write_safetensors(&checkpoint, &views);
    ttrec!["verify", &blob, "--against", &checkpoint]
        .exits(1)
        .prints(["item", "ABOVE"]);
    // A spec that does not have the table, or not that shape.
    let spec = dir.file("other.toml", ITEM.replace("item", "shop"));
    ttrec!["verify", &blob, "--against", d3(), "--spec", spec]
        .exits(3)
        .says(["\"item\"", "not in the spec"]);
    let spec = dir.file("shape.toml", ITEM.replace("1000", "999"));
    ttrec!["verify", &blob, "--against", d3(), "--spec", spec]
        .exits(3)
        .says(["\"item\"", "shape"]);
}

#[test]
fn verify_asks_for_a_spec_where_two_tensors_fit() {
    let dir = Dir::new();
    let checkpoint = dir.path("c.safetensors");
    let (a, b) = ([0.5f32; 12], [0.25f32; 12]);
    write_safetensors(
        &checkpoint,
        &[("a.emb", F32, &[4, 3], a.bytes()), ("b.emb", F32, &[4, 3], b.bytes())],
    );
    let spec = "[[table]]\nname = \"t\"\ntensor = \"b.emb\"\n";
    let blob = dir.convert(&checkpoint, spec, "blob.ttr");
    ttrec!["verify", &blob, "--against", &checkpoint]
        .exits(3)
        .says(["2 tables of the checkpoint have the shape of \"t\"", "--spec"]);
    ttrec!["verify", &blob, "--against", &checkpoint, "--spec", dir.path("blob.ttr.toml")].exits(0);
}

// Output.

#[test]
fn inspect_gives_the_right_numbers_as_json() {
    let dir = Dir::new();
    let spec = fs::read_to_string(golden("two_tables.toml")).unwrap();
    let blob = dir.convert(&golden("fbtt_d3_cache.safetensors"), &spec, "blob.ttr");
    let run = ttrec!["inspect", &blob, "--json"].exits(0);
    let found: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(found["format_version"], 1);
    assert_eq!(found["bytes"], fs::metadata(&blob).unwrap().len());
    assert_eq!(found["dense_f32_bytes"], 4000 * 16 * 4 + 20 * 16 * 4);
    let tables = found["tables"].as_array().unwrap();
    assert_eq!(tables.len(), 2);
    let item = &tables[0];
    assert_eq!(
        (&item["name"], &item["representation"], &item["dtype"]),
        (&"item".into(), &"tt".into(), &"f32".into())
    );
    assert_eq!(item["num_embeddings"], 4000);
    assert_eq!(item["embedding_dim"], 16);
    assert_eq!(item["overrides"], 20);
    assert_eq!(item["tt"]["row_factors"], serde_json::json!([15, 16, 17]));
    assert_eq!(item["tt"]["column_factors"], serde_json::json!([2, 2, 4]));
    assert_eq!(item["tt"]["ranks"], serde_json::json!([8, 12]));
    assert_eq!(item["tt"]["digit_order"], "most_significant_first");
    let parameters = 15 * 16 + 16 * 192 + 17 * 48;
    assert_eq!(item["tt"]["num_parameters"], parameters);
    // Per row: (2 x 8)(8 x 24), then (4 x 12)(12 x 4), two operations each.
    assert_eq!(item["tt"]["flops_per_row"], 2 * (2 * 8 * 24 + 4 * 12 * 4));
    // The cores, and 20 ids of 8 bytes with 20 rows of f32.
    assert_eq!(item["bytes"], parameters * 4 + 20 * 8 + 20 * 16 * 4);
    let user = &tables[1];
    assert_eq!(
        (&user["name"], &user["representation"], &user["dtype"]),
        (&"user".into(), &"dense".into(), &"i8".into())
    );
    assert_eq!(user["num_embeddings"], 20);
    assert_eq!(user["bytes"], 20 * (8 + 16));
    assert_eq!(user["workspace_len"], 0);
    assert_eq!(user["overrides"], 0);
    assert!(user["tt"].is_null());
    let run = ttrec!["inspect", &blob].exits(0);
    run.prints([
        "2 tables",
        "item",
        "user",
        "4000 x 16",
        "p [15, 16, 17] q [2, 2, 4] ranks [8, 12]",
        "20 overridden rows",
    ]);
}

/// Runs `ttrec` with a closed stdout.
fn unread(args: &[&str]) -> Run {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(TTREC);
    let child = command.args(args).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
    let output = child.wait_with_output().unwrap();
    Run {
        code: output.status.code(),
        stdout: String::new(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

#[test]
fn output_that_nobody_reads_is_no_error() {
    let (_dir, blob) = item();
    let blob = blob.to_str().unwrap();
    for args in [&["inspect", blob][..], &["inspect", blob, "--json"], &["verify", blob], &["demo"]]
    {
        let run = unread(args).exits(0);
        assert!(run.stderr.is_empty(), "{run:#?}");
    }
    // What was asked for is there all the same.
    let dir = Dir::new();
    let (checkpoint, made) = (golden("dlrm_plain.pt"), dir.path("model.ttr"));
    let run =
        unread(&["convert", checkpoint.to_str().unwrap(), "-o", made.to_str().unwrap()]).exits(0);
    assert!(run.stderr.is_empty(), "{run:#?}");
    ttrec!["verify", &made, "--against", &checkpoint].exits(0);
}

#[test]
fn a_damaged_blob_fails_even_if_nobody_reads_why() {
    let (_dir, blob) = item();
    flip(&blob, fs::metadata(&blob).unwrap().len() as usize - 1);
    unread(&["verify", blob.to_str().unwrap()]).exits(1);
    unread(&["verify", blob.to_str().unwrap(), "--json"]).exits(1);
}
