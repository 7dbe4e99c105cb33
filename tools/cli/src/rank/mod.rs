//! `ttrec rank`: one user's candidates, the best ones first.

mod all;

use crate::{
    bags_file::BagOptions,
    blob_file::BlobFile,
    catalogue::keep_best,
    npz::write_npy,
    outcome::Outcome,
    output,
    samples::{Samples, missing},
};
use anyhow::{Context, Result, ensure};
use serde::Serialize;
use std::path::PathBuf;
use ttrec::{Bags, Ranker, Scored};
use ttrec_convert::zeros;

/// Rank candidates for one user with a blob's model.
///
/// Both files have the format of `score`. The user's file has one bag for each table of user
/// features, and `dense` for one sample. The candidates' file has, for each other table, one bag
/// per candidate. (If `dense` differs between candidates, it is in the candidates' file.) The
/// user's part is computed once. Candidates are numbered from 0 in the order of their bags; equal
/// scores keep that order.
///
/// With --all, the candidates are all rows of the one table that the user's file has no bag for,
/// and their numbers are its indices. If the model's logit is the product of two vectors, as in a
/// two-tower model or a DLRM with one top layer, this takes milliseconds for millions of rows.
/// Otherwise the whole model scores each row.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A blob with a model
    blob: PathBuf,
    /// The user's bags and dense features
    #[arg(long, value_name = "FILE.npz")]
    user: PathBuf,
    /// The candidates' bags
    #[arg(long, value_name = "FILE.npz", required_unless_present = "all", conflicts_with = "all")]
    candidates: Option<PathBuf>,
    /// Rank all rows of the candidates' table
    #[arg(long)]
    all: bool,
    /// How many candidates to print
    #[arg(long, value_name = "K", default_value_t = 10)]
    top: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    options: BagOptions,
    /// Also write the scores of all candidates, in the order of their numbers
    #[arg(short, long, value_name = "OUT.npy")]
    output: Option<PathBuf>,
}

#[derive(Serialize)]
struct Ranked {
    candidate: u64,
    score: f32,
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    if let Some(path) = &args.output {
        let inputs = [&args.blob, &args.user].into_iter().chain(&args.candidates);
        output::refuse_inputs(path, &inputs.map(PathBuf::as_path).collect::<Vec<_>>())?;
    }
    let file = BlobFile::open(&args.blob)?;
    let blob = file.blob()?;
    let ranker = file.ranker(&blob)?;
    let user = Samples::read(&args.user, &ranker, &args.options)?;
    let mut ranking = Ranking::new(args.top, args.output.is_some());
    match &args.candidates {
        Some(path) => {
            let candidates = Samples::read(path, &ranker, &args.options)?;
            ranking.add(&rank(&ranker, &user, &candidates)?)?;
        }
        None => all::rank(&ranker, &user, &mut ranking)?,
    }
    if let (Some(path), Some(scores)) = (&args.output, &ranking.all) {
        write_npy(path, &[scores.len() as u64], scores)?;
    }
    let best = ranking.best.iter();
    let places: Vec<Ranked> = best
        .map(|&Scored { index, score }| Ranked { candidate: index, score })
        .collect();
    output::print(|mut out| {
        if args.json {
            serde_json::to_writer_pretty(&mut out, &places)?;
            return writeln!(out);
        }
        places
            .iter()
            .try_for_each(|Ranked { candidate, score }| writeln!(out, "{candidate} {score}"))
    })?;
    Ok(Outcome::Done)
}

/// The best candidates so far, and the scores of all candidates if they are wanted.
struct Ranking {
    top: usize,
    best: Vec<Scored>,
    count: u64,
    all: Option<Vec<f32>>,
}

impl Ranking {
    fn new(top: usize, all: bool) -> Self {
        Self { top, best: Vec::new(), count: 0, all: all.then(Vec::new) }
    }

    /// Adds the scores of the next candidates.
    fn add(&mut self, scores: &[f32]) -> Result<()> {
        let scored = (self.count..).zip(scores);
        self.best.extend(scored.map(|(index, &score)| Scored { index, score }));
        keep_best(&mut self.best, self.top);
        self.count += scores.len() as u64;
        if let Some(all) = &mut self.all {
            let reserved = all.try_reserve(scores.len());
            reserved.with_context(|| format!("{} scores do not fit in memory", self.count))?;
            all.extend_from_slice(scores);
        }
        Ok(())
    }
}

fn rank(ranker: &Ranker<'_>, user: &Samples, candidates: &Samples) -> Result<Vec<f32>> {
    let mut num_candidates = None;
    let bag = |table: usize| -> Result<Bags<'_>> {
        let (of_user, of_candidates) = (user.bags(table)?, candidates.bags(table)?);
        match (of_user, of_candidates) {
            (Some(_), Some(_)) => {
                let (user, candidates) = (user.path(), candidates.path());
                anyhow::bail!(
                    "\"indices_{table}\" is in both {user} and {candidates}: put it in one"
                )
            }
            (None, None) => Err(missing(candidates.path(), ranker, table)),
            (Some(bags), None) => {
                ensure!(
                    bags.len() == 1,
                    "{}: table {table} has {} bags: a user has one",
                    user.path(),
                    bags.len()
                );
                Ok(bags)
            }
            (None, Some(bags)) => {
                let expected = *num_candidates.get_or_insert(bags.len());
                let (path, found) = (candidates.path(), bags.len());
                ensure!(
                    found == expected,
                    "{path}: table {table} has {found} bags, but earlier tables have {expected}"
                );
                Ok(bags)
            }
        }
    };
    let bags: Vec<_> = (0..ranker.num_tables()).map(bag).collect::<Result<_>>()?;
    let dense = match (user.dense(), candidates.dense()) {
        (Some(_), Some(_)) if ranker.num_dense() == 0 => &[],
        (Some(_), Some(_)) => anyhow::bail!(
            "\"dense\" is in both {} and {}: put it in one",
            user.path(),
            candidates.path()
        ),
        (Some(dense), None) => {
            let (found, expected) = (dense.len(), ranker.num_dense());
            ensure!(
                found == expected,
                "{}: \"dense\" has {found} elements: expected {expected}, one sample",
                user.path()
            );
            dense
        }
        (None, Some(dense)) => {
            num_candidates.get_or_insert(dense.len() / ranker.num_dense().max(1));
            dense
        }
        (None, None) => anyhow::bail!("{}: array \"dense\" is missing", user.path()),
    };
    let count = num_candidates.filter(|&count| count > 0);
    let mut out = zeros(
        count.with_context(|| format!("{}: the file has no candidates", candidates.path()))?,
    )?;
    let mut workspace = zeros(ranker.workspace_len(out.len()))?;
    ranker
        .rank(dense, &bags, &mut out, &mut workspace)
        .with_context(|| candidates.path().to_owned())?;
    Ok(out)
}
