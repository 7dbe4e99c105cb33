//! Bags and samples, in arrays of numpy.

use crate::{
    bags_file::{BagOptions, BagsFile, Mode},
    refused,
    samples::Samples,
    write, zip_of,
};
use anyhow::Result;
use clap::Parser;
use std::sync::OnceLock;
use ttrec::{AlignedBuf, Blob, Ranker};

/// What begins an array.
const MAGIC: &[u8] = b"\x93NUMPY";

/// The names of arrays, in the order in which they are looked for in the input.
const NAMES: [&str; 12] = [
    "indices",
    "offsets",
    "lengths",
    "weights",
    "dense",
    "indices_0",
    "offsets_0",
    "weights_0",
    "indices_1",
    "offsets_1",
    "indices_2",
    "indices_3",
];

/// The options of a request, by the first byte of the input.
const OPTIONS: [&[&str]; 4] = [
    &[""],
    &["", "--padding-idx", "3"],
    &["", "--include-last-offset", "true"],
    &["", "--include-last-offset", "false", "--padding-idx", "0", "--padding-idx", "item=2"],
];

#[derive(Parser)]
struct Options {
    #[command(flatten)]
    options: BagOptions,
}

fn blob(bytes: &'static [u8], place: &'static OnceLock<AlignedBuf>) -> Blob<'static> {
    let bytes = place.get_or_init(|| AlignedBuf::from_slice(bytes));
    Blob::parse(bytes).expect("a bundled blob")
}

/// Answers the request in the bytes after the first: the arrays that begin with numpy's magic
/// number become those of an npz file, and the first one a .npy file.
pub fn requests(bytes: &[u8]) {
    let Some((&options, bytes)) = bytes.split_first() else { return };
    let options = Options::parse_from(OPTIONS[usize::from(options) % OPTIONS.len()]).options;
    let starts: Vec<usize> = (0..bytes.len())
        .filter(|&at| bytes[at..].starts_with(MAGIC))
        .take(NAMES.len())
        .collect();
    let ends = starts.iter().copied().skip(1).chain([bytes.len()]);
    let names: Vec<String> = NAMES.iter().map(|name| format!("{name}.npy")).collect();
    let members: Vec<(&str, &[u8])> = starts
        .iter()
        .zip(ends)
        .zip(&names)
        .map(|((&start, end), name)| (name.as_str(), &bytes[start..end]))
        .collect();
    if let Some((_, array)) = members.first() {
        write("indices.npy", array);
    }
    write("request.npz", &zip_of(&members));
    let answers = [bags("indices.npy", &options), bags("request.npz", &options), score(&options)];
    answers
        .into_iter()
        .filter_map(Result::err)
        .for_each(|error| refused(format!("{error:#}")));
}

fn bags(name: &str, options: &BagOptions) -> Result<()> {
    static PLACE: OnceLock<AlignedBuf> = OnceLock::new();
    let blob = blob(include_bytes!("../../tests/golden/two_tables.ttr"), &PLACE);
    let path = crate::path(name);
    for table in blob.tables() {
        for (mode, weighted) in
            [(Mode::Rows, false), (Mode::Sum, true), (Mode::Sum, false), (Mode::Max, false)]
        {
            let bags = BagsFile::read(&path, weighted, options)?;
            let bags = bags.excluding(options.padding_idx(&table));
            let out = bags.look_up(&table, mode)?;
            let shape = bags.shape(&table, mode)?;
            assert_eq!(shape.iter().product::<u64>(), out.len() as u64);
        }
    }
    Ok(())
}

fn score(options: &BagOptions) -> Result<()> {
    static PLACE: OnceLock<AlignedBuf> = OnceLock::new();
    let blob = blob(include_bytes!("../../tests/golden/dlrm.ttr"), &PLACE);
    let ranker: Ranker<'_> = blob.ranker()?;
    let samples = Samples::read(&crate::path("request.npz"), &ranker, options)?;
    let count = samples.count(&ranker)?;
    let mut bags = Vec::new();
    for table in 0..ranker.num_tables() {
        let Some(found) = samples.bags(table)? else { return Ok(()) };
        bags.push(found);
    }
    let mut scores = vec![f32::NAN; count];
    let mut workspace = vec![0.0; ranker.workspace_len(1)];
    ranker.score(samples.dense().unwrap_or_default(), &bags, &mut scores, &mut workspace)?;
    assert!(scores.iter().all(|score| !score.is_infinite()));
    Ok(())
}
