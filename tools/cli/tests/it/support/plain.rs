//! What no refusal may contain: every run of a test that is refused is checked.

use std::path::Path;

/// Parts of dumps, and of the messages of libraries that readers of files cannot know.
const DUMPS: [&str; 24] = [
    "called `Option",
    "called `Result",
    "panicked",
    "RUST_BACKTRACE",
    "untagged enum",
    "internally tagged",
    "Error(",
    "Error {",
    "Err(",
    "Some(",
    "None,",
    "Os {",
    "kind: ",
    "TOML parse error",
    "  |",
    "^^",
    "CSV error",
    "Parquet error",
    ": EOF: ",
    ": NYI: ",
    "thrift",
    "Disabled feature",
    "at line 1 column",
    "\u{1b}",
];

/// The extensions of files that a refusal may name without being given them.
const EXTENSIONS: [&str; 12] = [
    ".csv",
    ".npy",
    ".npz",
    ".parquet",
    ".pt",
    ".safetensors",
    ".toml",
    ".ttr",
    ".json",
    ".txt",
    ".tsv",
    ".gz",
];

/// What is wrong with the refusal of a command with these arguments.
pub(crate) fn faults(stderr: &str, args: &[String]) -> Vec<String> {
    let mut faults: Vec<String> = DUMPS
        .iter()
        .filter(|dump| stderr.contains(*dump))
        .map(|dump| format!("the dump {dump:?}"))
        .collect();
    // Warnings may come before the refusal, which is last.
    let last = stderr.rfind("\nttrec: ").map_or(0, |at| at + 1);
    let refusal = &stderr[last..];
    if !refusal.starts_with("ttrec: ") {
        faults.push("no \"ttrec: \" at its start".to_owned());
    }
    if has_many_numbers(refusal) {
        faults.push("an array of bytes".to_owned());
    }
    let words = || refusal.split(|c: char| c.is_whitespace() || c == '"');
    if words()
        .zip(words().skip(1))
        .filter(|(word, next)| ends_sentence(word, next))
        .count()
        > 1
    {
        faults.push("more than two sentences".to_owned());
    }
    let names: Vec<_> = args.iter().filter_map(|arg| Path::new(arg).file_name()).collect();
    let is_name = |word: &str| {
        let path = Path::new(word.trim_matches(|c: char| ":,;()".contains(c)));
        path.file_name().is_some_and(|name| names.contains(&name))
    };
    let is_named = words().any(is_name)
        || EXTENSIONS.iter().any(|extension| refusal.contains(extension))
        || ["--", "standard output", "TTREC_ISA"]
            .iter()
            .any(|place| refusal.contains(place));
    if !is_named {
        faults.push("no name of a file or an option".to_owned());
    }
    faults
}

/// Whether more numbers follow each other than a shape has.
fn has_many_numbers(text: &str) -> bool {
    let mut count = 0;
    text.split([',', '[', ']']).any(|part| {
        count = if part.trim().parse::<u8>().is_ok() {
            count + 1
        } else {
            0
        };
        count > 8
    })
}

fn ends_sentence(word: &str, next: &str) -> bool {
    word.ends_with('.') && !word.ends_with("..") && next.starts_with(char::is_uppercase)
}
