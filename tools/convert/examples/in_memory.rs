//! Converts a checkpoint to a blob in memory, and looks a row up.
//!
//! `cargo run -p ttrec-convert --example in_memory -- CHECKPOINT [SPEC.toml]`

use std::{env, error::Error, path::Path};
use ttrec::Blob;
use ttrec_convert::{Checkpoint, Options, Progress, Spec, convert, detect};

/// Prints notes, and no progress.
struct Notes;

impl Progress for Notes {
    fn note(&self, text: &str) {
        println!("{text}");
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = env::args().skip(1);
    let checkpoint = args.next().ok_or("expected a checkpoint")?;
    let checkpoint = Checkpoint::open(Path::new(&checkpoint))?;
    let spec = match args.next() {
        Some(path) => Spec::open(Path::new(&path))?,
        None => detect(&checkpoint, None)?,
    };
    let bytes = convert(&checkpoint, &spec, &Options::default(), &Notes)?.to_blob()?;

    let blob = Blob::parse(&bytes)?;
    println!("{} bytes", bytes.len());
    for table in blob.tables() {
        let (mut row, mut workspace) =
            (vec![0.0; table.embedding_dim()], vec![0.0; table.workspace_len(1)]);
        table.lookup(0, &mut row, &mut workspace)?;
        println!("{}, index 0: {:?}", table.name(), &row[..row.len().min(4)]);
    }
    Ok(())
}
