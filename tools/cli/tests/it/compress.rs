//! Dense tables factorised by `ttrec convert`: what it tells is what `ttrec verify` measures, and
//! nonsense is refused.

use crate::support::{Dir, Elements, TTREC, run, ttrec, vector, write_npz, write_safetensors};
use safetensors::{Dtype::F32, SafeTensors};
use std::{fs, path::PathBuf, process::Command};

const ROWS: usize = 500;
const COLUMNS: usize = 24;

/// A table that a few ranks describe well, but not exactly.
fn values() -> Vec<f32> {
    let value = |at: usize| {
        let (row, column) = ((at / COLUMNS) as f32, (at % COLUMNS) as f32);
        (row * 0.013 + column * 0.4).sin()
            + 0.5 * (row * 0.11).cos()
            + 0.02 * ((at * 7919 % 1009) as f32 / 500.0 - 1.0)
    };
    (0..ROWS * COLUMNS).map(value).collect()
}

fn checkpoint(dir: &Dir) -> PathBuf {
    let path = dir.path("dense.safetensors");
    write_safetensors(&path, &[("emb.weight", F32, &[ROWS, COLUMNS], values()[..].bytes())]);
    path
}

fn spec(lines: &str) -> String {
    format!("[[table]]\nname = \"item\"\ntensor = \"emb.weight\"\n{lines}\n")
}

/// The number after "relative error ".
#[track_caller]
fn told(text: &str) -> f64 {
    let (_, rest) = text
        .split_once("relative error ")
        .unwrap_or_else(|| panic!("no error told: {text}"));
    rest.split([' ', '\n', ',']).next().unwrap().parse().unwrap()
}

/// The errors are equal to the four digits that `convert` prints.
#[track_caller]
fn assert_told(told: f64, measured: f64, lines: &str) {
    assert!(
        (told - measured).abs() <= 6e-4 * measured,
        "{lines}: told {told}, measured {measured}"
    );
}

#[test]
fn what_convert_tells_is_what_verify_measures() {
    for (lines, below) in [
        ("representation = \"tt\"\nrank = 8", 0.1),
        ("representation = \"tt\"\nrank = 8\nsweeps = 0", 0.1),
        (
            "representation = \"tt\"\nranks = [5, 9]\nrow_factors = [8, 8, 8]\ncolumn_factors = \
             [2, 3, 4]",
            0.1,
        ),
        ("representation = \"tt\"\nranks = [12]", 0.1),
        ("representation = \"tt\"\ntolerance = 0.03", 0.03),
        ("representation = \"tt\"\nrank = 8\ndtype = \"f16\"", 0.1),
        ("representation = \"low-rank\"\nrank = 6", 0.1),
        ("representation = \"low-rank\"\ntolerance = 0.02", 0.02),
        ("representation = \"low-rank\"\nrank = 6\ndtype = \"i8\"", 0.1),
        // Of full rank, so that all of the error is rounding.
        ("representation = \"low-rank\"\nrank = 24\ndtype = \"i8\"", 0.1),
    ] {
        let dir = Dir::new();
        let (checkpoint, spec, blob) =
            (checkpoint(&dir), dir.file("spec.toml", spec(lines)), dir.path("item.ttr"));
        let told =
            told(&ttrec!["convert", &checkpoint, "--spec", &spec, "-o", &blob].exits(0).stdout);
        assert!(told > 1e-4 && told <= below, "{lines}: {told}");
        // Found by its shape, and by the spec: the same.
        let json = ttrec!["verify", &blob, "--against", &checkpoint, "--json"].exits(0).stdout;
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let measured = json["tables"][0]["relative_error"].as_f64().unwrap();
        assert!(json["tables"][0].get("max_error").is_none(), "{json}");
        assert_told(told, measured, lines);
        let run = ttrec!["verify", &blob, "--against", &checkpoint, "--spec", &spec].exits(0);
        run.prints([if lines.contains("tolerance") {
            "(within"
        } else {
            "factorised: pass --max-error to check the error"
        }]);
        ttrec!["verify", &blob, "--against", &checkpoint, "--max-error", "0.2"].exits(0);
        ttrec!["verify", &blob, "--against", &checkpoint, "--max-error", "0.0001"]
            .exits(1)
            .prints(["ABOVE"]);
    }
}

/// Shuffled rows of a table that a train describes well.
/// Codes of every stored type, put end to end and added, are what `verify` reads.
#[test]
fn codes_are_converted() {
    for (lines, most) in [
        ("books = 12", 0.05),
        ("books = 8\nbits = 5\ndtype = \"f16\"", 0.1),
        ("books = 5\nrotation = true\ndtype = \"i8\"", 0.06),
        ("books = 3\nrank = 4\nbits = 9\ndtype = \"bf16\"", 0.06),
        ("books = 2\nrank = 4\nbits = 13", 0.05),
        ("books = 3\ncombine = \"add\"\ndtype = \"i8\"", 0.06),
        ("books = 2\ncombine = \"add\"\nbits = 6\nrank = 5", 0.1),
    ] {
        let dir = Dir::new();
        let (checkpoint, blob) = (checkpoint(&dir), dir.path("item.ttr"));
        let spec = dir.file("spec.toml", spec(&format!("representation = \"codes\"\n{lines}")));
        ttrec!["convert", &checkpoint, "--spec", &spec, "-o", &blob].exits(0);
        ttrec!["verify", &blob].exits(0);
        let most = most.to_string();
        ttrec!["verify", &blob, "--against", &checkpoint, "--spec", &spec, "--max-error", most]
            .exits(0);
    }
}

#[test]
fn codes_are_resumed() {
    let dir = Dir::new();
    let (checkpoint, kept, blob) = (checkpoint(&dir), dir.path("kept"), dir.path("item.ttr"));
    let lines = "representation = \"codes\"\nbooks = 3\nrotation = true\nbits = 4";
    let spec = dir.file("spec.toml", spec(lines));
    let nowhere = dir.path("nowhere").join("item.ttr");
    ttrec!["convert", &checkpoint, "--spec", &spec, "-o", &nowhere, "--resume", &kept].exits(4);
    let kept_file = fs::read_dir(&kept).unwrap().next().unwrap().unwrap().path();
    // The last element of the last array: with it the blob is another one.
    let mut bytes = fs::read(&kept_file).unwrap();
    let end = bytes.len() - 4;
    bytes[end..].copy_from_slice(&0.75f32.to_le_bytes());
    fs::write(&kept_file, bytes).unwrap();
    ttrec!["convert", &checkpoint, "--spec", &spec, "-o", &blob, "--resume", &kept].exits(0);
    let resumed = fs::read(&blob).unwrap();
    assert_eq!(fs::read_dir(&kept).unwrap().count(), 0, "nothing needs it any more");
    ttrec!["convert", &checkpoint, "--spec", &spec, "-o", &blob].exits(0);
    let anew = fs::read(&blob).unwrap();
    assert!(resumed != anew && resumed.len() == anew.len());
}

#[test]
fn sorted_rows_lose_less_and_are_found_again() {
    let dir = Dir::new();
    let sorted = values();
    let mut order: Vec<usize> = (0..ROWS).collect();
    order.sort_by_key(|row| (row * row * 31 + row * 17) % 1009);
    let shuffled: Vec<f32> = order
        .iter()
        .flat_map(|row| &sorted[row * COLUMNS..][..COLUMNS])
        .copied()
        .collect();
    let checkpoint = dir.path("dense.safetensors");
    write_safetensors(&checkpoint, &[("emb.weight", F32, &[ROWS, COLUMNS], shuffled[..].bytes())]);
    // Frequencies descend in the order of `sorted`.
    let counts: Vec<u32> = order.iter().map(|row| (2 * ROWS - row) as u32).collect();
    let frequencies = dir.path("counts.npz");
    write_npz(&frequencies, &[("item", vector(&counts))]);
    let blob = dir.path("item.ttr");
    let error = |lines: &str| {
        let spec =
            dir.file("spec.toml", spec(&format!("representation = \"tt\"\nrank = 8\n{lines}")));
        let run = ttrec![
            "convert",
            &checkpoint,
            "--spec",
            &spec,
            "--frequencies",
            &frequencies,
            "-o",
            &blob
        ]
        .exits(0);
        let told = told(&run.stdout);
        let json = ttrec!["verify", &blob, "--against", &checkpoint, "--json"].exits(0).stdout;
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let measured = json["tables"][0]["relative_error"].as_f64().unwrap();
        assert_told(told, measured, lines);
        measured
    };
    let as_they_are = error("");
    for order in ["similarity", "frequency"] {
        let sorted = error(&format!("row_order = {order:?}"));
        assert!(sorted < 0.7 * as_they_are, "{order}: {sorted}, {as_they_are} as they are");
        ttrec!["inspect", &blob].exits(0).prints(["remapped"]);
        // The same bytes for any number of threads.
        let first = fs::read(&blob).unwrap();
        let mut again = Command::new(TTREC);
        again
            .arg("convert")
            .arg(&checkpoint)
            .arg("--spec")
            .arg(dir.path("spec.toml"))
            .arg("-o")
            .arg(&blob);
        again.arg("--frequencies").arg(&frequencies).env("RAYON_NUM_THREADS", "1");
        run(again).exits(0);
        assert!(fs::read(&blob).unwrap() == first, "{order}");
    }
}

#[test]
fn specs_that_make_no_sense_are_refused() {
    for (lines, wanted) in [
        ("representation = \"tt\"", "`rank`, `ranks` or `tolerance` is missing"),
        ("representation = \"low-rank\"", "`rank` or `tolerance` is missing"),
        ("representation = \"tt\"\ntolerance = 0.0", "expected more than 0 and less than 1"),
        ("representation = \"tt\"\ntolerance = 1.0", "expected more than 0 and less than 1"),
        ("representation = \"low-rank\"\ntolerance = nan", "expected more than 0 and less than 1"),
        ("representation = \"low-rank\"\ntolerance = -0.5", "expected more than 0 and less than 1"),
        ("representation = \"tt\"\nrank = 0", "`rank` is 0"),
        ("representation = \"tt\"\nrank = 4\nranks = [4, 4]", "are both set"),
        ("representation = \"tt\"\ntolerance = 0.1\nranks = [4, 4]", "are both set"),
        ("representation = \"tt\"\nranks = [500, 4]", "rank 0 can be at most 16"),
        ("representation = \"tt\"\nranks = [0, 4]", "rank"),
        ("representation = \"tt\"\nranks = [4, 4, 4, 4, 4, 4, 4]", "8 cores"),
        ("representation = \"tt\"\nranks = []", "1 cores"),
        ("representation = \"tt\"\nrank = 4\nrow_factors = [7, 8, 8]", "448"),
        (
            "representation = \"tt\"\nrank = 4\ncolumn_factors = [2, 2, 4]",
            "make 16 columns: the table has 24",
        ),
        (
            "representation = \"tt\"\nrank = 4\nrow_factors = [30, 30]\ncolumn_factors = [2, 3, 4]",
            "`row_factors` [30, 30]",
        ),
        ("representation = \"tt\"\nrank = 4\ndtype = \"i4\"", "cannot be i4"),
        ("representation = \"low-rank\"\nrank = 25", "the table has 24 columns"),
        ("representation = \"low-rank\"\nrank = 4\nsweeps = 1", "`sweeps` does not apply to"),
        (
            "representation = \"low-rank\"\nrank = 4\nrow_factors = [8, 8, 8]",
            "`row_factors` does not apply to",
        ),
        (
            "representation = \"low-rank\"\nrank = 4\nrow_order = \"similarity\"",
            "`row_order` does not apply to",
        ),
        ("row_order = \"similarity\"", "`row_order` does not apply to"),
        ("representation = \"tt\"\nrank = 4\nrow_order = \"frequency\"", "needs --frequencies"),
        (
            "index_map = \"modulo\"\nnum_embeddings = 3000\nrepresentation = \"tt\"\nrank = 4\n\
             row_order = \"similarity\"",
            "`row_order` does not apply to a hashed table",
        ),
        ("representation = \"codes\"", "`books` is missing"),
        ("representation = \"codes\"\nbooks = 0", "expected 1 to 1024"),
        ("representation = \"codes\"\nbooks = 1025", "expected 1 to 1024"),
        ("representation = \"codes\"\nbooks = 4\nbits = 3", "expected 4 to 16"),
        ("representation = \"codes\"\nbooks = 4\nbits = 17", "expected 4 to 16"),
        ("representation = \"codes\"\nbooks = 4\nrank = 25", "expected 1 to 24"),
        ("representation = \"codes\"\nbooks = 5", "must divide the 24 columns"),
        ("representation = \"codes\"\nbooks = 25\nrotation = true", "need a column each"),
        ("representation = \"codes\"\nbooks = 9\nrank = 8", "need a column each"),
        ("representation = \"codes\"\nbooks = 4\nrank = 8\nrotation = false", "needs a rotation"),
        (
            "representation = \"codes\"\nbooks = 3\nbits = 12\ncombine = \"add\"",
            "can be at most 8192",
        ),
        ("representation = \"codes\"\nbooks = 4\ncombine = \"mult\"", "concat"),
        ("representation = \"codes\"\nbooks = 4\ntolerance = 0.1", "`tolerance` does not apply"),
        ("representation = \"codes\"\nbooks = 4\ndtype = \"i4\"", "cannot be i4"),
        ("representation = \"codes\"\nbooks = 4\npadding_idx = 0", "`padding_idx`"),
        ("books = 4", "`books` does not apply to"),
        ("representation = \"tt\"\nrank = 4\nbits = 8", "`bits` does not apply to"),
        (
            "representation = \"low-rank\"\nrank = 4\nrotation = true",
            "`rotation` does not apply to",
        ),
        ("pooling = \"mean\"", "`pooling` applies only to the tables of a model"),
        ("representation = \"tt\"\nrank = 4\nrow_order = \"random\"", "similarity"),
        ("rank = 4", "`rank` does not apply to"),
        ("tolerance = 0.5", "`tolerance` does not apply to"),
        ("representation = \"svd\"\nrank = 4", "svd"),
    ] {
        let dir = Dir::new();
        let (checkpoint, spec) = (checkpoint(&dir), dir.file("spec.toml", spec(lines)));
        let run =
            ttrec!["convert", &checkpoint, "--spec", &spec, "-o", dir.path("item.ttr")].exits(3);
        assert!(run.stderr.contains(wanted), "{lines}: {run:#?}");
        assert_eq!(dir.names(), ["dense.safetensors", "spec.toml"], "{lines}");
    }
}

#[test]
fn what_is_not_finite_is_named() {
    for (lines, value) in [("tt", f32::NAN), ("tt", f32::INFINITY), ("low-rank", f32::NEG_INFINITY)]
    {
        let dir = Dir::new();
        let checkpoint = dir.path("dense.safetensors");
        let mut values = values();
        values[123 * COLUMNS + 7] = value;
        write_safetensors(
            &checkpoint,
            &[("emb.weight", F32, &[ROWS, COLUMNS], values[..].bytes())],
        );
        let spec = dir.file("spec.toml", spec(&format!("representation = \"{lines}\"\nrank = 4")));
        ttrec!["convert", &checkpoint, "--spec", &spec, "-o", dir.path("item.ttr")]
            .exits(3)
            .says(["table \"item\"", "tensor \"emb.weight\", row 123, column 7"]);
        assert_eq!(dir.names(), ["dense.safetensors", "spec.toml"]);
    }
}

#[test]
fn memory_is_bounded_and_the_error_says_what_it_takes() {
    let dir = Dir::new();
    let (checkpoint, blob) = (checkpoint(&dir), dir.path("item.ttr"));
    let spec = dir.file("spec.toml", spec("representation = \"tt\"\nrank = 4"));
    let run =
        ttrec!["convert", &checkpoint, "--spec", &spec, "-o", &blob, "--memory", "1KiB"].exits(3);
    run.says(["memory limit", "bytes"]);
    for nonsense in ["0", "1%", "lots"] {
        ttrec!["convert", &checkpoint, "--spec", &spec, "-o", &blob, "--memory", nonsense].exits(2);
    }
    ttrec!["convert", &checkpoint, "--spec", &spec, "-o", &blob, "--memory", "1MiB"].exits(0);
}

#[test]
fn a_finished_factorisation_is_resumed_once() {
    let dir = Dir::new();
    let (checkpoint, kept, blob) = (checkpoint(&dir), dir.path("kept"), dir.path("item.ttr"));
    let sorted = "representation = \"tt\"\nrow_order = \"similarity\"\nrank = 6";
    for lines in
        ["representation = \"tt\"\nrank = 6", sorted, "representation = \"low-rank\"\nrank = 6"]
    {
        let spec = dir.file("spec.toml", spec(lines));
        let nowhere = dir.path("nowhere").join("item.ttr");
        ttrec!["convert", &checkpoint, "--spec", &spec, "-o", &nowhere, "--resume", &kept].exits(4);
        let [file] = fs::read_dir(&kept)
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect::<Vec<_>>()
            .try_into()
            .unwrap();
        // A mark that only a file that is used leaves: the sign of a number.
        let mut bytes = fs::read(&file).unwrap();
        let name = if lines.contains("tt") { "core0" } else { "basis" };
        let numbers = SafeTensors::deserialize(&bytes).unwrap().tensor(name).unwrap().data();
        let at = numbers.as_ptr().addr() - bytes.as_ptr().addr();
        bytes[at + 3] ^= 0x80;
        fs::write(&file, bytes).unwrap();
        // Another request does not take it.
        let other = dir.file("other.toml", self::spec(&lines.replace('6', "5")));
        let run = ttrec!["convert", &checkpoint, "--spec", &other, "-o", &blob, "--resume", &kept]
            .exits(0);
        assert!(told(&run.stdout) < 0.5, "{run:#?}");
        assert!(file.exists());
        ttrec!["convert", &checkpoint, "--spec", &spec, "-o", &blob, "--resume", &kept].exits(0);
        let resumed = fs::read(&blob).unwrap();
        assert_eq!(fs::read_dir(&kept).unwrap().count(), 0, "nothing needs it any more");
        ttrec!["convert", &checkpoint, "--spec", &spec, "-o", &blob].exits(0);
        assert!(resumed != fs::read(&blob).unwrap(), "the kept one was not used");
    }
}

#[test]
fn frequencies_draw_the_error_to_rows_that_are_rarely_asked_for() {
    let dir = Dir::new();
    let (checkpoint, frequencies) = (checkpoint(&dir), dir.path("counts.npz"));
    let spec = dir.file("spec.toml", spec("representation = \"tt\"\nrank = 2\nsweeps = 4"));
    // Those of one slice of the first core.
    let hot = |row: usize| row < 64;
    let counts: Vec<f64> = (0..ROWS).map(|row| if hot(row) { 1000.0 } else { 0.0 }).collect();
    write_npz(&frequencies, &[("item", vector(&counts))]);
    let error_of_hot_rows = |blob: PathBuf, extra: &[&str]| {
        let mut command = std::process::Command::new(crate::support::TTREC);
        command
            .arg("convert")
            .arg(&checkpoint)
            .arg("--spec")
            .arg(&spec)
            .arg("-o")
            .arg(&blob)
            .args(extra);
        crate::support::run(command).exits(0);
        let bytes = ttrec::AlignedBuf::from_slice(&fs::read(&blob).unwrap());
        let parsed = ttrec::Blob::parse(&bytes).unwrap();
        let table = parsed.table("item").unwrap();
        let (mut row, mut workspace, values) =
            ([0.0; COLUMNS], vec![0.0; table.workspace_len(1)], values());
        let mut sum = 0.0;
        for i in (0..ROWS).filter(|&row| hot(row)) {
            table.lookup(i as u64, &mut row, &mut workspace).unwrap();
            sum += row
                .iter()
                .zip(&values[i * COLUMNS..])
                .map(|(a, b)| f64::from(a - b).powi(2))
                .sum::<f64>();
        }
        sum
    };
    let plain = error_of_hot_rows(dir.path("plain.ttr"), &[]);
    let weighted = error_of_hot_rows(
        dir.path("weighted.ttr"),
        &["--frequencies", frequencies.to_str().unwrap()],
    );
    assert!(weighted < 0.8 * plain, "{weighted} with frequencies, {plain} without");

    write_npz(&frequencies, &[("nobody", vector(&counts))]);
    ttrec![
        "convert",
        &checkpoint,
        "--spec",
        &spec,
        "-o",
        dir.path("x.ttr"),
        "--frequencies",
        &frequencies
    ]
    .exits(3)
    .says(["array \"nobody\" has the name of no table"]);
}
