//! Damaged checkpoints through `convert`: each gives a valid blob or an error, within a time limit.

use crate::{
    checkpoint::{Checkpoint, Tensor},
    convert::{Options, convert, detect},
    dialect::{Model, Survey},
    error::Error,
    spec::{Spec, TableSpec},
};
use std::{
    fs,
    io::Cursor,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use ttrec::{AlignedBuf, Blob, dtype::Dtype};

/// Far more than any of these files takes, even on a machine under load.
const LIMIT: Duration = Duration::from_secs(60);

/// Every checkpoint of the test directories, with its spec, if there is one.
fn checkpoints() -> Vec<(PathBuf, Option<Spec>)> {
    let files = ["../cli/tests/golden", "tests/data"]
        .map(|dir| Path::new(env!("CARGO_MANIFEST_DIR")).join(dir));
    let files = files
        .iter()
        .flat_map(|dir| fs::read_dir(dir).unwrap())
        .map(|entry| entry.unwrap().path());
    let is_checkpoint = |path: &PathBuf| {
        let extension = path.extension().unwrap_or_default();
        ["pt", "safetensors", "npz", "npy", "onnx"]
            .iter()
            .any(|known| extension == *known)
    };
    let mut found: Vec<_> = files
        .filter(is_checkpoint)
        .map(|path| {
            let spec = path.with_extension("toml");
            let spec = spec.exists().then(|| Spec::open(&spec).unwrap());
            (path, spec)
        })
        .collect();
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    assert!(found.len() > 20 && found.iter().filter(|(_, spec)| spec.is_some()).count() > 5);
    found
}

/// The specs to try on a checkpoint: its own, one of all tables that it seems to hold, and every
/// matrix as a dense table.
fn specs(checkpoint: &Checkpoint, made_for: Option<&Spec>) -> Vec<Spec> {
    let facts = |found: TableSpec| TableSpec {
        num_embeddings: found.num_embeddings.or(Some(1000)),
        ..found
    };
    let named =
        |(k, found): (usize, TableSpec)| TableSpec { name: Some(format!("t{k:04}")), ..found };
    let found: Vec<TableSpec> = Survey::of(checkpoint).tables;
    let trains = found.iter().filter(|found| found.tensor.is_none()).cloned().map(facts);
    let matrices = checkpoint
        .tensors()
        .filter(|tensor| tensor.shape().len() == 2)
        .map(Tensor::name);
    let dense = matrices.map(|name| TableSpec {
        tensor: Some(name.to_owned()),
        dialect: Some("dense".to_owned()),
        dtype: Some(Dtype::I8),
        ..TableSpec::default()
    });
    let lists: [Vec<TableSpec>; 3] = [found.clone(), trains.collect(), dense.collect()];
    let offered = lists.into_iter().filter(|tables| !tables.is_empty());
    let offered = offered.map(|tables| Spec {
        model: None,
        tables: tables.into_iter().enumerate().map(named).collect(),
    });
    // The first one has all tables, and the model if there is one.
    let whole = Model::detect(checkpoint).into_iter().next();
    let whole = whole.map(|model| Spec { model: Some(model), tables: found });
    made_for.cloned().into_iter().chain(whole).chain(offered).collect()
}

/// A directory in memory, if there is one.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Converts the file at `path` with all specs; returns the number of blobs.
fn exercise(path: &Path, made_for: Option<&Spec>, what: &dyn Fn() -> String) -> usize {
    let started = Instant::now();
    let mut made = 0;
    let error = |error: Error| {
        let text = error.to_string();
        assert!(!text.is_empty() && !text.contains("malformed"), "{}: {text}", what());
    };
    match Checkpoint::open(path) {
        Err(refused) => drop(refused.to_string()),
        Ok(checkpoint) => {
            drop(detect(&checkpoint, None));
            for spec in specs(&checkpoint, made_for) {
                let mut out = Cursor::new(Vec::new());
                let conversion = convert(&checkpoint, &spec, &Options::default(), &());
                let written = conversion.and_then(|conversion| {
                    conversion.write(&mut out)?;
                    Ok(conversion.total_len())
                });
                match written {
                    Err(refused) => error(refused),
                    Ok(len) => {
                        let bytes = AlignedBuf::from_slice(out.get_ref());
                        assert_eq!(bytes.len() as u64, len, "{}", what());
                        let blob = Blob::parse(&bytes)
                            .unwrap_or_else(|error| panic!("{}: {error:#}", what()));
                        blob.verify_payload().unwrap_or_else(|error| panic!("{}: {error}", what()));
                        made += 1;
                    }
                }
            }
        }
    }
    assert!(started.elapsed() < LIMIT, "{}: took {:?}", what(), started.elapsed());
    made
}

/// xorshift64*: a fixed sequence, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }
}

#[test]
fn damaged_checkpoints_give_a_sound_blob_or_an_error() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let directory = directory();
    let (mut blobs, mut cases) = (0, 0);
    for (path, spec) in checkpoints() {
        let bytes = fs::read(&path).unwrap();
        let damaged = directory.path().join(path.file_name().unwrap());
        let mut run = |bytes: &[u8], what: &dyn Fn() -> String| {
            fs::write(&damaged, bytes).unwrap();
            cases += 1;
            blobs +=
                exercise(&damaged, spec.as_ref(), &|| format!("{}, {}", path.display(), what()));
        };
        run(&bytes, &|| "whole".to_owned());
        for len in (0..bytes.len()).step_by((bytes.len() / 100).max(1)) {
            run(&bytes[..len], &|| format!("cut to {len}"));
        }
        for round in 0..200 {
            let mut flipped = bytes.clone();
            let mut flips = Vec::new();
            for _ in 0..=round % 4 {
                // Headers are at the start or the end, and only they can mislead.
                let at = match round % 3 {
                    0 => random.below(bytes.len()),
                    1 => random.below(bytes.len().min(1500)),
                    _ => bytes.len() - 1 - random.below(bytes.len().min(1500)),
                };
                let bit = random.below(8);
                flipped[at] ^= 1 << bit;
                flips.push((at, bit));
            }
            run(&flipped, &|| format!("byte and bit flipped: {flips:?}"));
        }
    }
    eprintln!("{cases} cases, {blobs} blobs");
    assert!(blobs > 100 && blobs < 3 * cases);
}
