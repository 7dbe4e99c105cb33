//! `ttrec demo`: converts a bundled checkpoint and checks the result.

use crate::{
    bags_file::{BagOptions, BagsFile, Mode},
    blob_file::BlobFile,
    convert,
    outcome::Outcome,
    output,
};
use anyhow::{Context, Result};
use std::{fs, io::Write};
use ttrec_convert::{Checkpoint, Options, Spec};

const CHECKPOINT: &[u8] = include_bytes!("../tests/golden/fbtt_d3.safetensors");
const SPEC: &str = include_str!("../tests/golden/fbtt_d3.toml");
const EXPECTED: &[u8] = include_bytes!("../tests/golden/fbtt_d3.expected.npz");

/// The largest difference that f32 rounding explains, relative to the largest value.
const TOLERANCE: f32 = 2e-6;

/// Convert a bundled FBTT checkpoint and compare its rows with FBTT's own results.
#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_: &Args) -> Result<Outcome> {
    let directory = tempfile::tempdir().context("cannot create a temporary directory")?;
    let place = |name: &str, bytes: &[u8]| -> Result<std::path::PathBuf> {
        let path = directory.path().join(name);
        fs::write(&path, bytes).with_context(|| format!("{}: cannot write", path.display()))?;
        Ok(path)
    };
    let checkpoint = place("fbtt_d3.safetensors", CHECKPOINT)?;
    let expected_path = place("fbtt_d3.expected.npz", EXPECTED)?;
    let blob_path = directory.path().join("fbtt_d3.ttr");

    let bytes = convert::write(
        &Checkpoint::open(&checkpoint)?,
        &Spec::from_toml(SPEC)?,
        &Options::default(),
        &blob_path,
    )?;
    let file = BlobFile::open(&blob_path)?;
    let blob = file.blob()?;
    let table = file.table(&blob, "item")?;
    let mut out = Vec::new();
    let dense = table.num_embeddings() * table.embedding_dim() as u64 * 4;
    writeln!(
        out,
        "converted fbtt_d3.safetensors: table \"item\", {} x {}, {bytes} bytes ({:.1}x smaller \
         than dense f32)\n",
        table.num_embeddings(),
        table.embedding_dim(),
        dense as f64 / bytes as f64
    )?;

    let expected = Checkpoint::open(&expected_path)?;
    let bags = BagsFile::read(&expected_path, false, &BagOptions::default())?;
    let mut good = true;
    for (mode, name) in
        [(Mode::Rows, "rows"), (Mode::Sum, "sum"), (Mode::Mean, "mean"), (Mode::Max, "max")]
    {
        let ours = bags.look_up(&table, mode)?;
        let reference =
            expected.tensor(name).with_context(|| format!("array {name:?} is missing"))?;
        let mut theirs = vec![0.0; ours.len()];
        reference.read_f32(0, &mut theirs)?;
        if mode == Mode::Rows {
            for (at, (a, b)) in ours
                .chunks(table.embedding_dim())
                .zip(theirs.chunks(table.embedding_dim()))
                .take(4)
                .enumerate()
            {
                writeln!(out, "row {:>3}  ttrec {:>9.6?} ...", bags.indices()[at], &a[..5])?;
                writeln!(out, "          FBTT {:>9.6?} ...", &b[..5])?;
            }
            writeln!(out)?;
        }
        let largest = theirs.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        let difference = ours
            .iter()
            .zip(&theirs)
            .fold(0.0f32, |largest, (a, b)| largest.max((a - b).abs()));
        let agrees = difference <= TOLERANCE * largest;
        good &= agrees;
        let verdict = if agrees { "agree" } else { "DIFFER" };
        let count = ours.len() / table.embedding_dim();
        writeln!(
            out,
            "{name:>4}: {count} x {} values {verdict} with FBTT: largest difference {:.1e} \
             (relative to the largest value)",
            table.embedding_dim(),
            difference / largest
        )?;
    }
    output::print(|stdout| stdout.write_all(&out))?;
    Ok(if good { Outcome::Done } else { Outcome::Differs })
}
