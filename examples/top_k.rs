//! The best ten of all items for two users, without the items that they know, on two threads.

use std::thread;
use ttrec::{AlignedBytes, Bags, Blob, Scored, Search, Workspace, include_blob, merge_top_k};

static MODEL: &AlignedBytes = include_blob!("../tests/golden/two_tables.ttr"); // or mmap a file

const K: usize = 10;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let item = Blob::parse(MODEL)?.table("item")?;
    // One vector for each user, of as many elements as an item's row: here, two items' rows.
    let mut workspace = Workspace::new();
    let mut users = vec![0.0; 2 * item.embedding_dim()];
    for (user, known) in users.chunks_exact_mut(item.embedding_dim()).zip([42, 7]) {
        item.lookup(known, user, workspace.for_table(&item, 1))?;
    }
    let known = Bags::new(&[42u32, 100, 7], &[0, 2, 3])?; // ascending within each bag
    let search = Search::new(K).without(known);

    // Each thread searches a part of the items, with its own output and workspace.
    let part = |part| {
        let mut best = vec![Scored::NONE; 2 * K];
        let mut workspace = Workspace::new();
        let workspace = workspace.for_retrieval(&item, 2);
        item.top_k(&users, &search.part(part, 2), &mut best, workspace).map(|()| best)
    };
    let (first, second) = thread::scope(|scope| {
        let second = scope.spawn(|| part(1));
        (part(0), second.join().expect("a search does not panic"))
    });
    let mut best = first?;
    merge_top_k(K, &mut best, &second?)?;

    for (user, items) in best.chunks_exact(K).enumerate() {
        for Scored { index, score } in items {
            println!("user {user}: item {index}, {score}");
        }
    }
    Ok(())
}
