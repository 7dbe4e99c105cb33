//! Scores of the blob's model, the same on the board and on the host.

use crate::Refused;
use ttrec::{Bags, Blob, Tier};

const NUM_DENSE: usize = 13;
const NUM_TABLES: usize = 4;
/// Samples of a batch, and candidates of a user.
const BATCH: usize = 8;
/// Length of the workspace: more than one sample needs.
const WORKSPACE: usize = 1024;
/// A user: the features, and a row of each of the first two tables.
const DENSE: [f32; NUM_DENSE] =
    [0.2, 0.7, 0.1, 0.0, 0.9, 0.4, 0.3, 0.5, 0.6, 0.8, 0.25, 0.75, 0.35];
const USER: [[u32; 1]; 2] = [[4742], [986]];
/// Candidates: a row of each of the other two.
const CANDIDATES: [[u32; BATCH]; 2] =
    [[7, 299, 0, 42, 128, 5, 76, 210], [0, 39, 1, 20, 7, 7, 13, 31]];
const ONE: [u32; 2] = [0, 1];
const EACH: [u32; BATCH + 1] = [0, 1, 2, 3, 4, 5, 6, 7, 8];
/// A batch of two samples. In each table, one has a bag of three rows and the other an empty bag.
const SEVERAL: [[u32; 3]; NUM_TABLES] = [[0, 4999, 4742], [1, 1, 1199], [42, 7, 299], [39, 20, 0]];
const SEVERAL_OFFSETS: [u32; 3] = [0, 3, 3];

/// The cost of scoring, which the board prints.
#[cfg_attr(
    not(target_os = "none"),
    allow(dead_code, reason = "a host's figures would say nothing of the board's")
)]
pub struct Used {
    /// Bytes of workspace: the least, and those given.
    pub workspace: [usize; 2],
    /// Time of one sample, and of a user's [`BATCH`] candidates.
    pub time: [u32; 2],
}

/// Calls `show` with every logit and score, in order. `now` returns the time, in any unit.
pub fn run(
    model: &[u8],
    now: impl Fn() -> u32,
    mut show: impl FnMut(f32),
) -> Result<Used, Refused> {
    let blob = Blob::parse(model).map_err(|_| Refused)?;
    // The board only has this tier. The other tiers of a host round a multiply-add once, not twice.
    let scalar = Tier::from_name("scalar").ok_or(Refused)?;
    let ranker = blob.ranker().map_err(|_| Refused)?.with_tier(scalar);
    let mut workspace = [0.0; WORKSPACE];

    let one = |indices| Bags::new(indices, &ONE).map_err(|_| Refused);
    let [first, second] = [one(&USER[0])?, one(&USER[1])?];
    let sample = [first, second, one(&CANDIDATES[0][..1])?, one(&CANDIDATES[1][..1])?];
    let mut logit = [0.0];
    let start = now();
    ranker
        .logits(&DENSE, &sample, &mut logit, &mut workspace)
        .map_err(|_| Refused)?;
    let of_sample = now().wrapping_sub(start);
    show(logit[0]);

    let each = |indices| Bags::new(indices, &EACH).map_err(|_| Refused);
    let bags = [first, second, each(&CANDIDATES[0])?, each(&CANDIDATES[1])?];
    let mut scores = [0.0; BATCH];
    let start = now();
    ranker.rank(&DENSE, &bags, &mut scores, &mut workspace).map_err(|_| Refused)?;
    let of_candidates = now().wrapping_sub(start);
    scores.iter().for_each(|&x| show(x));

    let several = |indices| Bags::new(indices, &SEVERAL_OFFSETS).map_err(|_| Refused);
    let [a, b, c, d] = &SEVERAL;
    let bags = [several(a)?, several(b)?, several(c)?, several(d)?];
    let mut dense = [0.0; 2 * NUM_DENSE];
    dense
        .iter_mut()
        .zip(DENSE.iter().chain(&DENSE))
        .for_each(|(to, x)| *to = 1.0 - x);
    let mut logits = [0.0; 2];
    ranker.logits(&dense, &bags, &mut logits, &mut workspace).map_err(|_| Refused)?;
    logits.iter().for_each(|&x| show(x));

    let bytes = |len: usize| len.saturating_mul(size_of::<f32>());
    Ok(Used {
        workspace: [bytes(ranker.workspace_len(1)), bytes(WORKSPACE)],
        time: [of_sample, of_candidates],
    })
}
