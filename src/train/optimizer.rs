//! Optimisers, as `torch.optim` has them for sparse gradients: what a batch does not touch does not
//! move.

use super::TrainError;
use crate::{
    isa::Tier,
    kernel::{AdamFactors, adagrad, adam, row_wise_adagrad, sgd},
};
use std::{vec, vec::Vec};

/// How values follow their gradient g, with the learning rate l of the step. The unit is a slice of
/// a core, or a row of a dense table: a batch that looks up rows through a slice moves all of it,
/// and the state that goes with it, even where g is zero; all other slices, and their states, stay
/// as they are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Optimizer {
    /// `x <- x - l g` (`torch.optim.SGD`).
    Sgd,
    /// `s <- s + g^2`, `x <- x - l g / (sqrt(s) + epsilon)`; s begins at 0 (`torch.optim.Adagrad`).
    Adagrad {
        /// 1e-10 in PyTorch.
        epsilon: f64,
    },
    /// One s for a slice: `s <- s + mean(g^2)`, `x <- x - l g / (sqrt(s) + epsilon)` (FBGEMM's
    /// `EXACT_ROWWISE_ADAGRAD`, DLRM's `RWSAdagrad`, with a slice for a row).
    RowWiseAdagrad {
        /// 1e-8 in FBGEMM, 1e-10 in DLRM.
        epsilon: f64,
    },
    /// `m <- m + (1 - b_1) (g - m)`, `v <- v + (1 - b_2) (g^2 - v)`,
    /// `x <- x - l sqrt(1 - b_2^t) / (1 - b_1^t) m / (sqrt(v) + epsilon)`, t counting all steps of
    /// the table from 1 (`torch.optim.SparseAdam`).
    Adam {
        /// b_1 and b_2: 0.9 and 0.999 in PyTorch.
        betas: [f64; 2],
        /// 1e-8 in PyTorch.
        epsilon: f64,
    },
}

impl Optimizer {
    /// [`Adagrad`](Self::Adagrad) with PyTorch's epsilon.
    pub const ADAGRAD: Self = Self::Adagrad { epsilon: 1e-10 };
    /// [`RowWiseAdagrad`](Self::RowWiseAdagrad) with FBGEMM's epsilon.
    pub const ROW_WISE_ADAGRAD: Self = Self::RowWiseAdagrad { epsilon: 1e-8 };
    /// [`Adam`](Self::Adam) with PyTorch's numbers.
    pub const ADAM: Self = Self::Adam { betas: [0.9, 0.999], epsilon: 1e-8 };

    /// How many numbers of state a slice of `slice_len` elements has, in each of two arrays.
    pub(super) fn state_lens(self, slice_len: usize) -> [usize; 2] {
        match self {
            Self::Sgd => [0, 0],
            Self::Adagrad { .. } => [slice_len, 0],
            Self::RowWiseAdagrad { .. } => [1, 0],
            Self::Adam { .. } => [slice_len, slice_len],
        }
    }

    /// The same of what every batch moves whole, where there are no slices: DLRM's `RWSAdagrad` is
    /// Adagrad there.
    pub(super) fn dense(self) -> Self {
        match self {
            Self::RowWiseAdagrad { epsilon } => Self::Adagrad { epsilon },
            other => other,
        }
    }

    /// [`update`](Self::update) as PyTorch does it for dense gradients: `torch.optim.Adam` adds
    /// epsilon to the root of v after it has corrected v, `SparseAdam` before.
    pub(super) fn dense_update(self, tier: Tier, learning_rate: f64, step: u64) -> Update {
        let optimizer = match self.dense() {
            Self::Adam { betas: [mean, square], epsilon } => {
                let correction = (1.0 - libm::pow(square, step as f64)).sqrt();
                Self::Adam { betas: [mean, square], epsilon: epsilon * correction }
            }
            other => other,
        };
        optimizer.update(tier, learning_rate, step)
    }

    /// What it does in step `step`, counted from 1.
    pub(super) fn update(self, tier: Tier, learning_rate: f64, step: u64) -> Update {
        let rule = match self {
            Self::Sgd => Rule::Sgd(learning_rate as f32),
            Self::Adagrad { epsilon } => Rule::Adagrad([learning_rate as f32, epsilon as f32]),
            Self::RowWiseAdagrad { epsilon } => {
                Rule::RowWiseAdagrad([learning_rate as f32, epsilon as f32])
            }
            Self::Adam { betas: [mean, square], epsilon } => {
                let decayed = |beta: f64| 1.0 - libm::pow(beta, step as f64);
                Rule::Adam(AdamFactors {
                    step_size: (learning_rate * decayed(square).sqrt() / decayed(mean)) as f32,
                    mean: (1.0 - mean) as f32,
                    square: (1.0 - square) as f32,
                    epsilon: epsilon as f32,
                })
            }
        };
        Update { tier, rule }
    }
}

/// One step of an optimiser.
#[derive(Clone, Copy)]
pub(super) struct Update {
    tier: Tier,
    rule: Rule,
}

impl Update {
    pub(super) fn tier(&self) -> Tier {
        self.tier
    }

    /// What is to be multiplied with a gradient and taken from the values, if that is all there is
    /// to the step.
    pub(super) fn learning_rate_of_sum(&self) -> Option<f32> {
        match self.rule {
            Rule::Sgd(learning_rate) => Some(learning_rate),
            _ => None,
        }
    }
}

#[derive(Clone, Copy)]
enum Rule {
    Sgd(f32),
    Adagrad([f32; 2]),
    RowWiseAdagrad([f32; 2]),
    Adam(AdamFactors),
}

/// What an optimiser moves, or a part of it: slices of equal length, and what it keeps of each.
pub(super) struct Slices<'p> {
    /// Number of the first slice.
    first: usize,
    slice_len: usize,
    values: &'p mut [f32],
    state_lens: [usize; 2],
    state: [&'p mut [f32]; 2],
}

impl<'p> Slices<'p> {
    /// Those before slice `at`, and the others.
    pub(super) fn split_at(self, at: usize) -> Option<(Self, Self)> {
        let count = at.checked_sub(self.first)?;
        let (values, values_after) = self.values.split_at_mut_checked(count * self.slice_len)?;
        let ([first, second], [first_len, second_len]) = (self.state, self.state_lens);
        let (first, first_after) = first.split_at_mut_checked(count * first_len)?;
        let (second, second_after) = second.split_at_mut_checked(count * second_len)?;
        let Self { slice_len, state_lens, .. } = self;
        Some((
            Self { first: self.first, slice_len, values, state_lens, state: [first, second] },
            Self {
                first: at,
                slice_len,
                values: values_after,
                state_lens,
                state: [first_after, second_after],
            },
        ))
    }

    /// Number of the first slice.
    pub(super) fn first(&self) -> usize {
        self.first
    }

    pub(super) fn values(&self) -> &[f32] {
        self.values
    }

    /// The same, where a step is more than a slice's [`update`](Self::update).
    pub(super) fn values_mut(&mut self) -> &mut [f32] {
        self.values
    }

    /// Moves slice `slice` by its gradient.
    pub(super) fn update(&mut self, slice: usize, gradient: &[f32], update: &Update) -> Option<()> {
        let at = slice.checked_sub(self.first)?;
        let values = self.values.get_mut(at * self.slice_len..)?.get_mut(..self.slice_len)?;
        let ([first, second], [first_len, second_len]) = (&mut self.state, self.state_lens);
        let first = first.get_mut(at * first_len..)?.get_mut(..first_len)?;
        let second = second.get_mut(at * second_len..)?.get_mut(..second_len)?;
        match update.rule {
            Rule::Sgd(learning_rate) => sgd(update.tier, learning_rate, gradient, values),
            Rule::Adagrad(factors) => adagrad(update.tier, factors, gradient, first, values),
            Rule::RowWiseAdagrad(factors) => {
                row_wise_adagrad(update.tier, factors, gradient, first.first_mut()?, values)
            }
            Rule::Adam(factors) => adam(update.tier, factors, gradient, first, second, values),
        }
    }
}

/// A core, or the rows of a dense table, with the state of its optimiser: what a checkpoint keeps.
#[derive(Clone, Debug)]
pub struct Parameters {
    slice_len: usize,
    values: Vec<f32>,
    state_lens: [usize; 2],
    state: [Vec<f32>; 2],
}

impl Parameters {
    /// `values` are slices of `slice_len` elements.
    pub(super) fn new(values: Vec<f32>, slice_len: usize, optimizer: Optimizer) -> Self {
        let state_lens = optimizer.state_lens(slice_len);
        let num_slices = values.len().checked_div(slice_len).unwrap_or(0);
        let state = state_lens.map(|len| vec![0.0; num_slices * len]);
        Self { slice_len, values, state_lens, state }
    }

    /// Elements of a slice of a core, or of a row.
    pub fn slice_len(&self) -> usize {
        self.slice_len
    }

    /// All slices, one after another.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The same, to be restored.
    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }

    /// What the [`Optimizer`] keeps: nothing (SGD), s (Adagrad: per element, row-wise: per slice),
    /// or m and v (Adam).
    pub fn state(&self) -> [&[f32]; 2] {
        self.state.each_ref().map(Vec::as_slice)
    }

    /// The same, to be restored.
    pub fn state_mut(&mut self) -> [&mut [f32]; 2] {
        self.state.each_mut().map(Vec::as_mut_slice)
    }

    /// Forgets the state of a slice, and returns its values, to be replaced.
    pub(super) fn reset_slice(&mut self, slice: usize) -> Option<&mut [f32]> {
        for (state, len) in self.state.iter_mut().zip(self.state_lens) {
            state.get_mut(slice * len..)?.get_mut(..len)?.fill(0.0);
        }
        self.values.get_mut(slice * self.slice_len..)?.get_mut(..self.slice_len)
    }

    pub(super) fn slices_mut(&mut self) -> Slices<'_> {
        Slices {
            first: 0,
            slice_len: self.slice_len,
            values: &mut self.values,
            state_lens: self.state_lens,
            state: self.state.each_mut().map(Vec::as_mut_slice),
        }
    }
}

/// Refuses values that are not as many as they should be.
pub(super) fn check_values(core: usize, values: &[f32], expected: u64) -> Result<(), TrainError> {
    let found = values.len();
    if found as u64 == expected {
        Ok(())
    } else {
        Err(TrainError::ValuesLen { core, found, expected })
    }
}
