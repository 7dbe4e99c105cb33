//! One row, and two pooled bags, from a blob in the binary.

use ttrec::{AlignedBytes, Bags, Blob, Pooling, Workspace, include_blob};

static MODEL: &AlignedBytes = include_blob!("../tests/golden/two_tables.ttr"); // or mmap a file

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let blob = Blob::parse(MODEL)?; // checks the directory, touches nothing else
    let item = blob.table("item")?;

    let mut workspace = Workspace::new(); // or any `&mut [f32]`: lookups allocate nothing
    let mut row = vec![0.0; item.embedding_dim()];
    item.lookup(42, &mut row, workspace.for_table(&item, 1))?;

    let bags = Bags::new(&[42u32, 7, 999], &[0, 2, 3])?; // indices 42 and 7, then index 999
    let mut pooled = vec![0.0; bags.len() * item.embedding_dim()];
    item.pool(&bags, Pooling::Mean, &mut pooled, workspace.for_table(&item, 3))?;

    println!("{row:?}\n{pooled:?}");
    Ok(())
}
