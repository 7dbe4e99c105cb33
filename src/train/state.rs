//! What all trainable tables share: their parameters, and what a step is made of.

use super::{
    Optimizer, Parameters, TrainError, cache::Cache, lookups::SortedLookups, optimizer::Update,
    rounding::Rounding,
};
use crate::{Bags, Pooling, Tier, dtype::Dtype, kernel::Consistent};
use std::vec::Vec;

/// Seals [`Embedding`](super::Embedding) and [`Checkpointed`].
pub trait Sealed {
    #[doc(hidden)]
    fn state(&self) -> &State;

    #[doc(hidden)]
    fn state_mut(&mut self) -> &mut State;

    /// Moves the parameters by one checked step. `None` is a defect of this crate.
    #[doc(hidden)]
    fn apply(&mut self, step: &Step<'_>) -> Consistent;
}

/// The parameters of a table, and what its steps need besides.
#[derive(Debug)]
pub struct State {
    /// Of a tensor train with a cache, the rows of the cache are the last.
    pub(super) parameters: Vec<Parameters>,
    pub(super) optimizer: Optimizer,
    pub(super) steps: u64,
    /// The greatest length of a slice's gradient.
    pub(super) clip_norm: f64,
    pub(super) tier: Tier,
    pub(super) cache: Option<Cache>,
    pub(super) lookups: SortedLookups,
}

impl State {
    pub(super) fn new(parameters: Vec<Parameters>, optimizer: Optimizer) -> Self {
        let (tier, lookups) = (Tier::best(), SortedLookups::default());
        let (steps, clip_norm) = (0, f64::INFINITY);
        Self { parameters, optimizer, steps, clip_norm, tier, cache: None, lookups }
    }

    /// From now on, learns the first `count` parameters as `rounding` stores them, each slice by
    /// itself.
    pub(super) fn round(&mut self, count: usize, rounding: Rounding) {
        self.round_together(count, rounding, 1);
    }

    /// As [`round`](Self::round), with `slices` slices rounded together.
    pub(super) fn round_together(&mut self, count: usize, rounding: Rounding, slices: usize) {
        let is_exact = matches!(rounding, Rounding::Slice(Dtype::F32) | Rounding::Row(Dtype::F32));
        let rounding = (!is_exact).then_some(rounding);
        let parameters = self.parameters.iter_mut().take(count);
        parameters.for_each(|parameters| parameters.set_rounding(rounding, slices));
    }

    /// Counts a step, and returns what the optimiser does in it.
    pub(super) fn next_update(&mut self, learning_rate: f64) -> Update {
        self.steps += 1;
        self.optimizer
            .update(self.tier, learning_rate, self.steps)
            .clipped(self.clip_norm)
    }
}

/// A step's bags and the gradient of their pooled rows, both checked.
#[derive(Clone, Copy)]
pub struct Step<'s> {
    pub(super) bags: &'s Bags<'s>,
    pub(super) pooling: Pooling,
    /// `bags.len() x embedding_dim`, row-major.
    pub(super) gradient: &'s [f32],
    pub(super) update: Update,
}

/// What a checkpoint keeps of a trainable table. A table that is built with the same arguments, and
/// to which all of it is restored, continues with the same bits. This trait is sealed: all
/// [`Embedding`](super::Embedding)s implement it.
pub trait Checkpointed: Sealed {
    /// The learned values, with the state of the optimiser: one [`Parameters`] for each core of a
    /// tensor train and one more for the rows of its cache; two for the quotient rows and the
    /// remainder rows of a quotient-remainder table; one for the rows of a dense table; one for
    /// all books of a table of codes, and one more for its rows if they are learned.
    fn parameters(&self) -> &[Parameters] {
        &self.state().parameters
    }

    /// As [`parameters`](Self::parameters), mutable, to restore them.
    fn parameters_mut(&mut self) -> &mut [Parameters] {
        &mut self.state_mut().parameters
    }

    /// Number of steps taken so far, on which [`Optimizer::Adam`] and the refreshes of a cache
    /// depend.
    fn steps(&self) -> u64 {
        self.state().steps
    }

    /// Restores the number of steps.
    fn set_steps(&mut self, steps: u64) {
        self.state_mut().steps = steps;
    }

    /// Rows that override those of the cores, because the cache holds them: the index of each,
    /// ascending, and its position among the slices of the last of the
    /// [`parameters`](Self::parameters). A blob stores them as
    /// [`OverridesSpec`](crate::blob::OverridesSpec). Empty without a cache.
    fn overrides(&self) -> Vec<(u64, usize)> {
        self.state().cache.as_ref().map_or_else(Vec::new, Cache::rows)
    }

    /// Which rows the cache holds and counts, and how often they were looked up, in a form of this
    /// crate's own. Empty without a cache.
    fn counters(&self) -> Vec<u64> {
        self.state().cache.as_ref().map_or_else(Vec::new, Cache::counters)
    }

    /// Restores the counters.
    ///
    /// # Errors
    /// [`TrainError::Counters`] for counters of a table of another kind or size; nothing has
    /// changed then.
    fn set_counters(&mut self, counters: &[u64]) -> Result<(), TrainError> {
        match &mut self.state_mut().cache {
            Some(cache) => cache.set_counters(counters),
            None if counters.is_empty() => Ok(()),
            None => Err(TrainError::Counters),
        }
    }
}

impl<T: Sealed> Checkpointed for T {}
