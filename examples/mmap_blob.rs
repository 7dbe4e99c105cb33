//! A blob on disk, mapped: nothing is read but the head and the rows that are asked for. `mmap_blob
//! BLOB` lists its tables and looks up the first row of each.

use std::{env, fs::File};
use ttrec::Blob;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/dlrm.ttr");
    let path = env::args().nth(1).unwrap_or_else(|| golden.to_owned());
    // SAFETY: whoever runs this leaves the file alone meanwhile; one that is cut short would end
    // the process with SIGBUS.
    #[allow(unsafe_code)]
    let bytes = unsafe { memmap2::Mmap::map(&File::open(&path)?)? };
    let blob = Blob::parse(&bytes)?; // a mapping begins on a page, and so on a multiple of 64

    for table in blob.tables() {
        let mut row = vec![0.0; table.embedding_dim()];
        table.lookup(0, &mut row, &mut vec![0.0; table.workspace_len()])?;
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
