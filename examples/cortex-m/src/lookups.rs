//! What the program does with the blob, the same on the board and on the host.

use ttrec::{Bags, Blob, Pooling, Tier};

const DIM: usize = 64;
/// Scratch for the largest table that this program takes.
const WORKSPACE: usize = 1024;
const ROWS: [u64; 5] = [0, 1, 42, 500, 999];
/// Three bags: three rows with a repeat, none, and one row.
const INDICES: [u32; 4] = [42, 7, 42, 999];
const OFFSETS: [u32; 4] = [0, 3, 3, 4];
const WEIGHTS: [f32; 4] = [0.5, -2.0, 1.25, 0.1];

/// The blob, a row or a bag was refused. The reasons are left out: their texts would be most of the firmware.
#[derive(Debug)]
pub struct Refused;

/// Gives every element of every row and bag to `show`, in order.
pub fn run(model: &[u8], mut show: impl FnMut(f32)) -> Result<(), Refused> {
    let blob = Blob::parse(model).map_err(|_| Refused)?;
    // The board has this tier only. A host's better ones round each multiply-add once, not twice.
    let scalar = Tier::from_name("scalar").ok_or(Refused)?;
    let item = blob.table("item").map_err(|_| Refused)?.with_tier(scalar);
    let mut workspace = [0.0; WORKSPACE];

    let mut row = [0.0; DIM];
    for index in ROWS {
        item.lookup(index, &mut row, &mut workspace).map_err(|_| Refused)?;
        row.iter().for_each(|&x| show(x));
    }

    // The order that a board takes anyway; a host would plan the batch.
    let bags = Bags::new(&INDICES, &OFFSETS).map_err(|_| Refused)?.in_index_order();
    let weighted = bags.with_per_sample_weights(&WEIGHTS).map_err(|_| Refused)?;
    let mut pooled = [0.0; DIM * (OFFSETS.len() - 1)];
    for (bags, pooling) in [(bags, Pooling::Sum), (bags, Pooling::Mean), (bags, Pooling::Max), (weighted, Pooling::Sum)]
    {
        item.bag(&bags, pooling, &mut pooled, &mut workspace).map_err(|_| Refused)?;
        pooled.iter().for_each(|&x| show(x));
    }
    Ok(())
}
