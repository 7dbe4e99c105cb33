//! The `ttrec` command: turns trained checkpoints into blobs, and inspects, reads and verifies
//! them. It is a library, so that the Python package has the same command.

mod bags_file;
mod bench;
mod blob_file;
mod cache;
mod cancel;
mod catalogue;
mod completions;
mod convert;
mod data;
mod demo;
mod expected;
mod inspect;
mod lookup;
mod man;
mod npz;
mod outcome;
mod output;
mod plan;
mod progress;
mod query;
mod random;
mod rank;
mod report;
mod resume;
mod rows_file;
mod samples;
mod score;
mod sweep;
mod tagged;
mod topk;
mod train;
mod verify;

use clap::{CommandFactory, Parser, Subcommand};
pub use output::{refuse_inputs, write_blob};

use outcome::Outcome;
use std::ffi::OsString;

const AFTER_HELP: &str = "\
Environment:
  TTREC_ISA  the instruction set to use: scalar, avx2, avx512 or neon (default: the best one of
             this CPU)

Exit codes:
  0  done
  1  verify: the blob is damaged, or differs from the checkpoint by more than --max-error; score
     --against and convert --check: scores differ by more than --max-error; demo: the results
     differ
  2  invalid command line
  3  an input was refused: a checkpoint, spec, blob or npz file
  4  the output could not be written; an existing output is not modified
  130, 143  interrupted (Ctrl-C) or terminated; outputs are not modified";

/// Tensor-train embedding tables for the edge: checkpoints in, one small blob out.
///
/// A checkpoint holds trained tables (.safetensors, .pt, .npy, .npz, .onnx). `convert` turns them
/// into a blob, one flat file that the ttrec library reads in place. Start with `ttrec demo`, or
/// with `ttrec convert CHECKPOINT -o model.ttr`, which lists the tables that it finds and the facts
/// that are missing.
#[derive(Parser)]
#[command(name = "ttrec", version, after_help = AFTER_HELP, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Plan(plan::Args),
    Convert(convert::Args),
    Cache(cache::Args),
    Inspect(inspect::Args),
    Lookup(lookup::Args),
    Score(score::Args),
    Rank(rank::Args),
    Topk(topk::Args),
    Verify(verify::Args),
    Report(report::Args),
    Bench(bench::Args),
    Train(train::Args),
    Eval(train::EvalArgs),
    Sweep(sweep::Args),
    Demo(demo::Args),
    Completions(completions::Args),
    Man(man::Args),
}

/// Runs the command whose words are `args`, the name of the program first, and returns its exit
/// code. From then on SIGINT and SIGTERM end the process.
pub fn run(args: impl IntoIterator<Item = OsString>) -> u8 {
    let command = match Cli::try_parse_from(args) {
        Ok(cli) => cli.command,
        Err(error) => {
            // Nothing is left to do if the message cannot be printed.
            let _ = error.print();
            return error.exit_code() as u8;
        }
    };
    if let Err(error) = cancel::watch() {
        eprintln!("ttrec: cannot listen for signals: {error}");
    }
    let result = match command {
        Command::Plan(args) => plan::run(&args),
        Command::Convert(args) => convert::run(&args),
        Command::Cache(args) => cache::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Lookup(args) => lookup::run(&args),
        Command::Score(args) => score::run(&args),
        Command::Rank(args) => rank::run(&args),
        Command::Topk(args) => topk::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Train(args) => train::run(&args),
        Command::Eval(args) => train::evaluate(&args),
        Command::Sweep(args) => sweep::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Completions(args) => completions::run(&args, Cli::command()),
        Command::Man(args) => man::run(&args, Cli::command()),
    };
    match result {
        Ok(Outcome::Done) => 0,
        Ok(Outcome::Differs) => 1,
        Err(error) => {
            eprintln!("ttrec: {}", printable(&format!("{error:#}")));
            if error.is::<output::WriteError>() { 4 } else { 3 }
        }
    }
}

/// Escapes the names from files that errors of libraries quote, so that they cannot inject terminal
/// control sequences.
fn printable(text: &str) -> String {
    let harmless = |c: &char| !c.is_control() || *c == '\n';
    text.chars()
        .map(|c| {
            if harmless(&c) {
                c.to_string()
            } else {
                c.escape_default().to_string()
            }
        })
        .collect()
}
