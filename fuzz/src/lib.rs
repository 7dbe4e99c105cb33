//! The readers of files as functions of bytes: each target gives one of them any bytes.
//!
//! A reader returns or refuses; it does not panic, and does not take long or much memory, which the
//! fuzzer watches. What it returns is used, and must agree with itself.
//!
//! The readers of training data and of requests are modules of the command, which is no library.
//! They are compiled here a second time, at the root, as they are there.

// What only the command uses is dead code here.
#![allow(dead_code, unused_macros)]

#[path = "../../tools/cli/src/bags_file.rs"]
mod bags_file;
#[path = "../../tools/cli/src/data/mod.rs"]
mod data;
#[path = "../../tools/cli/src/npz.rs"]
mod npz;
#[path = "../../tools/cli/src/output.rs"]
mod output;
#[path = "../../tools/cli/src/progress.rs"]
mod progress;
#[path = "../../tools/cli/src/random.rs"]
mod random;
#[path = "../../tools/cli/src/samples.rs"]
mod samples;
#[path = "../../tools/cli/src/tagged.rs"]
mod tagged;
mod train;

mod archives;
mod checkpoints;
mod configs;
mod requests;
mod rows;

use archives::zip_of;
pub use checkpoints::{checkpoint, distributed, pickle};
pub use configs::config;
pub use requests::requests;
pub use rows::{parquet, text};

use std::{env, fs, path::PathBuf, process, sync::OnceLock};

/// The path of a file of this name, in a directory of this process.
fn path(name: &str) -> PathBuf {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    let directory = DIRECTORY.get_or_init(|| {
        let directory = env::temp_dir().join(format!("ttrec-fuzz-{}", process::id()));
        fs::create_dir_all(&directory).expect("a new directory");
        directory
    });
    directory.join(name)
}

/// Writes a file of these bytes.
fn write(name: &str, bytes: &[u8]) -> PathBuf {
    let path = path(name);
    fs::write(&path, bytes).expect("a new file");
    path
}

/// An error must say something.
fn refused(error: impl std::fmt::Display) {
    assert!(!error.to_string().is_empty());
}
