//! A memory-mapped blob: the system reads only its directory and the rows that are looked up.
//! `mmap_blob BLOB` lists the tables of a blob and looks up the first row of each.

use std::{env, fs::File};
use ttrec::{Blob, Workspace};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/dlrm.ttr");
    let path = env::args().nth(1).unwrap_or_else(|| golden.to_owned());
    // SAFETY: nobody may modify the file while this program runs. A file that is truncated would
    // end the program with SIGBUS.
    #[allow(unsafe_code)]
    let bytes = unsafe { memmap2::Mmap::map(&File::open(&path)?)? };
    let blob = Blob::parse(&bytes)?; // a mapping begins on a page, and so on a multiple of 64

    let mut workspace = Workspace::new();
    for table in blob.tables() {
        let mut row = vec![0.0; table.embedding_dim()];
        table.lookup(0, &mut row, workspace.for_table(&table, 1))?;
        println!(
            "{}: {} x {}, row 0 is {row:?}",
            table.name(),
            table.num_embeddings(),
            table.embedding_dim()
        );
    }
    if let Ok(ranker) = blob.ranker() {
        println!(
            "a model of {} dense features and {} tables",
            ranker.num_dense(),
            ranker.num_tables()
        );
    }
    Ok(())
}
