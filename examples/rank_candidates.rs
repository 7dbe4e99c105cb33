//! One user's candidates, scored by the model of a blob, the best ones first.

use ttrec::{AlignedBytes, Bags, Blob, Workspace, include_blob};

static MODEL: &AlignedBytes = include_blob!("../tests/golden/dlrm.ttr"); // or mmap a file

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let blob = Blob::parse(MODEL)?;
    let ranker = blob.ranker()?;

    // The user: dense features, and a bag for each of the first two tables.
    let dense = [0.2, 0.7, 0.1, 0.0, 0.9, 0.4, 0.3, 0.5, 0.6, 0.8, 0.25, 0.75, 0.35];
    let first = Bags::new(&[4742u32], &[0, 1])?;
    let second = Bags::new(&[986u32], &[0, 1])?;

    // The candidates: a bag of each for the other two.
    let offsets: Vec<u32> = (0..=40).collect();
    let items: Vec<u32> = (0..40).map(|candidate| candidate * 7 % 300).collect();
    let shelves: Vec<u32> = (0..40).collect();
    let bags = [first, second, Bags::new(&items, &offsets)?, Bags::new(&shelves, &offsets)?];

    let mut scores = [0.0; 40];
    let mut workspace = Workspace::new(); // or any `&mut [f32]`: scoring allocates nothing
    ranker.rank(&dense, &bags, &mut scores, workspace.for_ranker(&ranker, bags[2].len()))?;

    let mut best: Vec<usize> = (0..scores.len()).collect();
    best.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    for candidate in &best[..5] {
        println!("{candidate} {}", scores[*candidate]);
    }
    Ok(())
}
