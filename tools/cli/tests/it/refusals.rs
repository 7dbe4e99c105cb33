//! Files of the wrong kind, for every command that reads one. `support::run` checks the words of
//! all refusals, here and in the other tests.

use crate::support::{Dir, TTREC, faults, golden, npy, run};
use std::{fs, path::Path, process::Command};

/// Files of other programs, and what is left of some of ours.
fn foreign() -> Vec<(&'static str, Vec<u8>)> {
    let whole = |name: &str| fs::read(golden(name)).unwrap();
    let half = |name: &str| {
        let bytes = whole(name);
        bytes[..bytes.len() / 2].to_vec()
    };
    let text = |text: &str| text.as_bytes().to_vec();
    vec![
        ("empty", Vec::new()),
        ("zeros", vec![0; 4096]),
        ("noise", (0..4096u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect()),
        ("words.txt", text("These are words.\nAnd these, too.\n")),
        ("list.json", text("[1, 2, {\"a\": null}]")),
        ("tensors.json", text("{\"weight_map\": {\"a\": \"../../etc/passwd\"}}")),
        ("page.html", text("<!DOCTYPE html><html><body>404</body></html>")),
        ("picture.png", text("\u{89}PNG\r\n\u{1a}\n")),
        ("model.h5", b"\x89HDF\r\n\x1a\n\0\0\0\0\0\x08\x08\0".to_vec()),
        ("model.gguf", b"GGUF\x03\0\0\0\x01\0\0\0\0\0\0\0".to_vec()),
        ("model.tflite", b"\x1c\0\0\0TFL3\0\0\0\0".to_vec()),
        ("model.onnx", b"\x08\x07\x12\x07pytorch\x3a\x00".to_vec()),
        ("rows.gz", b"\x1f\x8b\x08\0\0\0\0\0\0\x03damaged".to_vec()),
        ("rows.zst", b"\x28\xb5\x2f\xfddamaged".to_vec()),
        ("archive.zip", b"PK\x03\x04\x14\0\0\0\0\0".to_vec()),
        ("pickle.pkl", b"\x80\x04\x95\x10\0\0\0\0\0\0\0}\x94(\x8c\x01a\x94K\x01u.".to_vec()),
        ("words.npy", npy("<U3", &[2], &[0; 24])),
        ("short.npy", npy("<f4", &[1000, 4], &[0; 24])),
        ("half.pt", half("dlrm_plain.pt")),
        ("half.safetensors", half("fbtt_d3.safetensors")),
        ("half.npz", half("fbtt_d3.expected.npz")),
        ("half.parquet", half("rows.zstd.parquet")),
        ("wrong.toml", text("[[table]]\nname = 7\n")),
        ("open.toml", text("[data\n")),
        ("rows.csv", whole("rows.csv")),
        ("rows.parquet", whole("rows.zstd.parquet")),
    ]
}

#[test]
fn files_of_the_wrong_kind_are_refused_in_plain_words() {
    let dir = Dir::new();
    let (checkpoint, spec) = (golden("fbtt_d3.safetensors"), golden("fbtt_d3.toml"));
    let blob = dir.path("good.ttr");
    let arg = |path: &Path| path.to_str().unwrap().to_owned();
    let (good, spec) = (arg(&blob), arg(&spec));
    let made = ["convert", &arg(&checkpoint), "--spec", &spec, "-o", &good].map(str::to_owned);
    let ttrec = |args: &[String]| {
        let mut command = Command::new(TTREC);
        command.args(args);
        run(command)
    };
    ttrec(&made).exits(0);
    let config = |format: &str, file: &str| {
        format!(
            "[data]\nformat = \"{format}\"\ntrain = [{file:?}]\nlabel = \"nothing\"\ncategorical = \
             [\"a\", \"b\"]\n[model]\nembedding_dim = 4\n[train]\nlearning_rate = 0.1\n"
        )
    };
    let mut files: Vec<String> =
        foreign().iter().map(|(name, bytes)| arg(&dir.file(name, bytes))).collect();
    fs::create_dir(dir.path("folder")).unwrap();
    files.extend([arg(&dir.path("folder")), arg(&dir.path("missing"))]);
    for file in files {
        let out = arg(&dir.path("out"));
        let checkpoint = arg(&checkpoint);
        let csv = arg(&dir.file("csv-config.toml", config("csv", &file)));
        let parquet = arg(&dir.file("parquet-config.toml", config("parquet", &file)));
        for args in [
            &["convert", &file, "-o", &out][..],
            &["convert", &checkpoint, "--spec", &file, "-o", &out],
            &["plan", &file, "--budget", "50%", "-o", &out],
            &["inspect", &file],
            &["verify", &file],
            &["verify", &good, "--against", &file, "--spec", &spec],
            &["report", &good, "--against", &file, "-o", &out],
            &["cache", &good, "--frequencies", &file, "--budget", "1KiB", "-o", &out],
            &["lookup", &good, "--table", "item", "--bags", &file, "--mode", "sum", "-o", &out],
            &["score", &good, "--batch", &file, "-o", &out],
            &["topk", &good, "--table", "item", "--queries", &file, "--k", "9", "-o", &out],
            &["train", &file, "-o", &out],
            &["train", &csv, "-o", &out],
            &["train", &parquet, "-o", &out],
            &["sweep", &file, "-o", &out],
            &["eval", &file],
        ] {
            let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
            ttrec(&args).exits(3);
        }
    }
}

#[test]
fn dumps_are_found() {
    let args = ["convert".to_owned(), "/tmp/model.pt".to_owned()];
    for (stderr, fault) in [
        ("ttrec: model.pt: Os { code: 2 }", "the dump \"Os {\""),
        ("thread main panicked", "the dump \"panicked\""),
        ("model.pt: is empty", "no \"ttrec: \" at its start"),
        ("ttrec: model.pt: found [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]", "an array of bytes"),
        ("ttrec: model.pt: One. Two. Three.", "more than two sentences"),
        ("ttrec: cannot be read", "no name of a file or an option"),
    ] {
        let found = faults(stderr, &args);
        assert!(found.iter().any(|found| found == fault), "{stderr}: {found:?}");
    }
    for stderr in [
        "ttrec: warning: A. B. C.\nttrec: model.pt: tensor \"a\" has shape [1, 2, 3]: expected two",
        "ttrec: model.pt: One. Two.",
    ] {
        assert!(faults(stderr, &args).is_empty(), "{:?}", faults(stderr, &args));
    }
}
