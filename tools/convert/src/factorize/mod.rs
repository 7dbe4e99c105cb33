//! Factorisation: a dense table into a tensor train, a low-rank product or codes, streamed.
//!
//! The table is never held in memory: it is read in blocks of rows, once for the Gram matrix of its
//! first unfolding, and once to project it on the leading eigenvectors. The result is small, and
//! smaller ranks come from it without reading the table again. `docs/compress.md` describes the
//! passes, their memory and their precision.

mod als;
mod codes;
mod gram;
mod low_rank;
mod normal;
mod order;
mod request;
mod resume;
mod rows;
mod shape;
#[cfg(test)]
mod tests;
mod train;
mod tt_svd;
mod unfolding;

pub(crate) use codes::{Codebooks, Encoder, Learner, Shape as CodesShape};
pub(crate) use low_rank::{LowRank, for_each_short_row, mixing};
pub(crate) use request::{DEFAULT_SWEEPS, Factorized, Request};
pub(crate) use resume::Key;
pub use resume::ResumeCache;
pub(crate) use rows::Rows;
pub use shape::{Factors, suggest_shape, widest_first};
pub(crate) use train::{Train, of_slices, slices};
pub(crate) use tt_svd::{Limits, TtSvd};

use crate::progress::Progress;

/// The default memory limit of a factorisation in bytes.
pub(crate) const DEFAULT_MEMORY: u64 = 512 << 20;

/// The options that all steps of a factorisation share.
#[derive(Clone, Copy)]
pub(crate) struct Job<'j> {
    /// The table's name, for progress.
    pub(crate) name: &'j str,
    /// The most bytes of memory to hold.
    pub(crate) memory: u64,
    pub(crate) progress: &'j dyn Progress,
}

impl Default for Job<'_> {
    fn default() -> Self {
        Self { name: "table", memory: DEFAULT_MEMORY, progress: &() }
    }
}
