//! Lookups in the blob's first table, the same on the board and on the host.

use crate::Refused;
use ttrec::{Bags, Blob, Pooling, Tier};

const DIM: usize = 16;
/// Length of the workspace: enough for the largest table that this program supports.
const WORKSPACE: usize = 256;
const ROWS: [u64; 5] = [0, 1, 42, 500, 4999];
/// Three bags: of three rows, one of them twice; empty; and of one row.
const INDICES: [u32; 4] = [42, 7, 42, 299];
const OFFSETS: [u32; 4] = [0, 3, 3, 4];
const WEIGHTS: [f32; 4] = [0.5, -2.0, 1.25, 0.1];

/// Calls `show` with every element of every row and bag, in order.
pub fn run(model: &[u8], mut show: impl FnMut(f32)) -> Result<(), Refused> {
    let blob = Blob::parse(model).map_err(|_| Refused)?;
    // The board only has this tier. The other tiers of a host round a multiply-add once, not twice.
    let scalar = Tier::from_name("scalar").ok_or(Refused)?;
    let table = blob.tables().next().ok_or(Refused)?.with_tier(scalar);
    let mut workspace = [0.0; WORKSPACE];

    let mut row = [0.0; DIM];
    for index in ROWS.into_iter().filter(|&index| index < table.num_embeddings()) {
        table.lookup(index, &mut row, &mut workspace).map_err(|_| Refused)?;
        row.iter().for_each(|&x| show(x));
    }

    // A board always adds rows in this order. A host would multiply out a batch together.
    let bags = Bags::new(&INDICES, &OFFSETS).map_err(|_| Refused)?.sequential();
    let weighted = bags.with_per_sample_weights(&WEIGHTS).map_err(|_| Refused)?;
    let mut pooled = [0.0; DIM * (OFFSETS.len() - 1)];
    for (bags, pooling) in [
        (bags, Pooling::Sum),
        (bags, Pooling::Mean),
        (bags, Pooling::Max),
        (weighted, Pooling::Sum),
    ] {
        table.pool(&bags, pooling, &mut pooled, &mut workspace).map_err(|_| Refused)?;
        pooled.iter().for_each(|&x| show(x));
    }
    Ok(())
}
