//! Optimisers, as in `torch.optim` for sparse gradients: slices that a batch does not look up stay
//! unchanged.

use super::rounding::Rounding;
use crate::{
    isa::Tier,
    kernel::{AdamFactors, Consistent, adagrad, adam, row_wise_adagrad, sgd},
};
use core::ops::{Deref, DerefMut};
use rayon::prelude::*;
use std::{vec, vec::Vec};

/// How a step moves values x by their gradient g, with learning rate l. The unit is a slice of a
/// core, or a row of a dense table. A batch that looks up rows through a slice moves the whole
/// slice and its state, even where g is zero; all other slices and their states stay unchanged.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
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

    /// How many numbers each of the two state arrays has for a slice of `slice_len` elements.
    pub(super) fn state_lens(self, slice_len: usize) -> [usize; 2] {
        match self {
            Self::Sgd => [0, 0],
            Self::Adagrad { .. } => [slice_len, 0],
            Self::RowWiseAdagrad { .. } => [1, 0],
            Self::Adam { .. } => [slice_len, slice_len],
        }
    }

    /// The optimiser of layers, which every batch moves whole: DLRM's `RWSAdagrad` is Adagrad for
    /// dense gradients.
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

    /// Step number `step`, counted from 1.
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
        Update { tier, rule, clip_norm: f64::INFINITY, kept: 1.0 }
    }
}

/// One step of an optimiser.
#[derive(Clone, Copy)]
pub(super) struct Update {
    tier: Tier,
    rule: Rule,
    /// The greatest length of a slice's gradient.
    clip_norm: f64,
    /// What the values are multiplied by before they move.
    kept: f32,
}

impl Update {
    /// Moves no values, and keeps the gradient of each slice as its state.
    pub(super) fn keep(tier: Tier) -> Self {
        Self { tier, rule: Rule::Keep, clip_norm: f64::INFINITY, kept: 1.0 }
    }

    pub(super) fn tier(&self) -> Tier {
        self.tier
    }

    /// The same step with gradients of at most this length.
    pub(super) fn clipped(self, clip_norm: f64) -> Self {
        Self { clip_norm, ..self }
    }

    /// The same step, which first multiplies the values by `kept`.
    pub(super) fn keeping(self, kept: f32) -> Self {
        Self { kept, ..self }
    }

    /// The l of `x <- x - l g`, if the step is only that: then parts of g can be subtracted as they
    /// are computed, with no sum in between.
    pub(super) fn learning_rate_of_sum(&self) -> Option<f32> {
        let is_only_that = self.clip_norm == f64::INFINITY && self.kept == 1.0;
        match self.rule {
            Rule::Sgd(learning_rate) if is_only_that => Some(learning_rate),
            _ => None,
        }
    }

    /// The gradient to use in the place of a longer one.
    fn shortened(&self, gradient: &[f32]) -> Option<Vec<f32>> {
        if self.clip_norm == f64::INFINITY {
            return None;
        }
        let squares = gradient.iter().map(|&g| f64::from(g) * f64::from(g));
        let scale = (self.clip_norm / squares.sum::<f64>().sqrt()) as f32;
        (scale < 1.0).then(|| gradient.iter().map(|g| g * scale).collect())
    }
}

#[derive(Clone, Copy)]
enum Rule {
    /// Moves nothing: the gradient becomes the slice's state.
    Keep,
    Sgd(f32),
    Adagrad([f32; 2]),
    RowWiseAdagrad([f32; 2]),
    Adam(AdamFactors),
}

/// Some slices of a core or of [`Parameters`], to be moved, with their state.
pub(super) struct Slices<'p> {
    /// Number of the first slice.
    first: usize,
    slice_len: usize,
    values: Values<'p>,
    state_lens: [usize; 2],
    state: [&'p mut [f32]; 2],
}

enum Values<'p> {
    Moving(&'p mut [f32]),
    /// The exact values, which move, and the rounded values, which lookups read.
    Rounded {
        exact: &'p mut [f32],
        stored: &'p mut [f32],
        rounding: Rounding,
    },
    /// For [`Update::keep`].
    Fixed(&'p [f32]),
}

impl<'p> Slices<'p> {
    /// All slices of a core, with the state that `optimizer` needs.
    pub(super) fn moving(
        values: &'p mut [f32],
        slice_len: usize,
        optimizer: Optimizer,
        state: [&'p mut [f32]; 2],
    ) -> Self {
        let state_lens = optimizer.state_lens(slice_len);
        Self { first: 0, slice_len, values: Values::Moving(values), state_lens, state }
    }

    /// All slices of a core, with room for their gradients.
    pub(super) fn fixed(values: &'p [f32], slice_len: usize, gradients: &'p mut [f32]) -> Self {
        let state = [gradients, &mut []];
        let values = Values::Fixed(values);
        Self { first: 0, slice_len, values, state_lens: [slice_len, 0], state }
    }

    /// The same slices, for a shorter time.
    pub(super) fn reborrow(&mut self) -> Slices<'_> {
        let values = match &mut self.values {
            Values::Moving(values) => Values::Moving(values),
            Values::Rounded { exact, stored, rounding } => {
                Values::Rounded { exact, stored, rounding: *rounding }
            }
            Values::Fixed(values) => Values::Fixed(values),
        };
        Slices { values, state: self.state.each_mut().map(|state| &mut **state), ..*self }
    }

    /// The slices before slice `at`, and those from `at` on.
    pub(super) fn split_at(self, at: usize) -> Option<(Self, Self)> {
        let count = at.checked_sub(self.first)?;
        let len = count * self.slice_len;
        let (values, values_after) = match self.values {
            Values::Moving(values) => {
                let (before, after) = values.split_at_mut_checked(len)?;
                (Values::Moving(before), Values::Moving(after))
            }
            Values::Rounded { exact, stored, rounding } => {
                let (exact, exact_after) = exact.split_at_mut_checked(len)?;
                let (stored, stored_after) = stored.split_at_mut_checked(len)?;
                let (before, after) = ((exact, stored), (exact_after, stored_after));
                let rounded = |(exact, stored)| Values::Rounded { exact, stored, rounding };
                (rounded(before), rounded(after))
            }
            Values::Fixed(values) => {
                let (before, after) = values.split_at_checked(len)?;
                (Values::Fixed(before), Values::Fixed(after))
            }
        };
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

    /// The values that lookups read.
    pub(super) fn values(&self) -> &[f32] {
        match &self.values {
            Values::Moving(values) | Values::Rounded { stored: values, .. } => values,
            Values::Fixed(values) => values,
        }
    }

    /// The values, to be moved in place. `None` if they do not move, or if they are rounded after
    /// each move.
    pub(super) fn in_place(&mut self) -> Option<&mut [f32]> {
        match &mut self.values {
            Values::Moving(values) => Some(values),
            Values::Rounded { .. } | Values::Fixed(_) => None,
        }
    }

    /// Moves slice `slice` by its `gradient`. `None` if it is not among these.
    pub(super) fn update(&mut self, slice: usize, gradient: &[f32], update: &Update) -> Consistent {
        let at = slice.checked_sub(self.first)?;
        let ([first, second], [first_len, second_len]) = (&mut self.state, self.state_lens);
        let first = first.get_mut(at * first_len..)?.get_mut(..first_len)?;
        let second = second.get_mut(at * second_len..)?.get_mut(..second_len)?;
        if let Rule::Keep = update.rule {
            first.copy_from_slice(gradient.get(..first.len())?);
            return Some(());
        }
        let slice = at * self.slice_len..(at + 1) * self.slice_len;
        let (values, rounded) = match &mut self.values {
            Values::Moving(values) => (values.get_mut(slice)?, None),
            Values::Rounded { exact, stored, rounding } => {
                (exact.get_mut(slice.clone())?, Some((*rounding, stored.get_mut(slice)?)))
            }
            Values::Fixed(_) => return None,
        };
        let shortened = update.shortened(gradient);
        let gradient = shortened.as_deref().unwrap_or(gradient);
        if update.kept != 1.0 {
            values.iter_mut().for_each(|x| *x *= update.kept);
        }
        match update.rule {
            Rule::Keep => return None,
            Rule::Sgd(learning_rate) => sgd(update.tier, learning_rate, gradient, values)?,
            Rule::Adagrad(factors) => adagrad(update.tier, factors, gradient, first, values)?,
            Rule::RowWiseAdagrad(factors) => {
                row_wise_adagrad(update.tier, factors, gradient, first.first_mut()?, values)?;
            }
            Rule::Adam(factors) => adam(update.tier, factors, gradient, first, second, values)?,
        }
        if let Some((rounding, stored)) = rounded {
            rounding.round(values, stored);
        }
        Some(())
    }
}

/// The values of a core, of the rows of a table or of a layer, with the state of their optimiser:
/// what a checkpoint keeps.
#[derive(Clone, Debug)]
pub struct Parameters {
    slice_len: usize,
    values: Vec<f32>,
    rounded: Option<Rounded>,
    state_lens: [usize; 2],
    state: [Vec<f32>; 2],
}

/// How values are rounded, and the exact values.
#[derive(Clone, Debug)]
struct Rounded {
    rounding: Rounding,
    /// The elements that are rounded together: whole slices.
    len: usize,
    exact: Vec<f32>,
}

impl Parameters {
    /// `values` are slices of `slice_len` elements.
    pub(super) fn new(values: Vec<f32>, slice_len: usize, optimizer: Optimizer) -> Self {
        let state_lens = optimizer.state_lens(slice_len);
        let num_slices = values.len().checked_div(slice_len).unwrap_or(0);
        let state = state_lens.map(|len| vec![0.0; num_slices * len]);
        Self { slice_len, values, rounded: None, state_lens, state }
    }

    /// From now on, learns the values as `rounding` stores them, `slices` slices together; with
    /// `None`, without rounding.
    pub(super) fn set_rounding(&mut self, rounding: Option<Rounding>, slices: usize) {
        if let Some(Rounded { exact, .. }) = self.rounded.take() {
            self.values = exact;
        }
        let len = self.slice_len * slices;
        let rounded = |rounding| Rounded { rounding, len, exact: self.values.clone() };
        self.rounded = rounding.map(rounded);
        self.round();
    }

    /// Rounds all values. A step does so for each slice that it moves, unless several slices are
    /// rounded together.
    pub(super) fn round(&mut self) {
        let Self { values, rounded: Some(Rounded { rounding, len, exact }), .. } = self else {
            return;
        };
        exact
            .par_chunks(*len)
            .zip(values.par_chunks_mut(*len))
            .for_each(|(exact, stored)| rounding.round(exact, stored));
    }

    /// Elements of a slice: of a slice of a core, of a row, or of all biases of a layer.
    pub fn slice_len(&self) -> usize {
        self.slice_len
    }

    /// All slices, one after another, as lookups read them: rounded, if they are learned in a type
    /// other than f32.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// As [`values`](Self::values), before they are rounded: what the optimiser moves.
    pub fn exact(&self) -> &[f32] {
        self.rounded.as_ref().map_or(&self.values, |rounded| &rounded.exact)
    }

    /// Whether the values are learned in a type other than f32.
    pub fn is_rounded(&self) -> bool {
        self.rounded.is_some()
    }

    /// As [`exact`](Self::exact), mutable, to restore them. They are rounded when the guard is
    /// dropped.
    pub fn values_mut(&mut self) -> ValuesMut<'_> {
        ValuesMut(self)
    }

    /// The state of the [`Optimizer`]: empty (SGD), s (Adagrad: one for each element, row-wise
    /// Adagrad: one for each slice), or m and v (Adam: one for each element).
    pub fn state(&self) -> [&[f32]; 2] {
        self.state.each_ref().map(Vec::as_slice)
    }

    /// As [`state`](Self::state), mutable, to restore it.
    pub fn state_mut(&mut self) -> [&mut [f32]; 2] {
        self.state.each_mut().map(Vec::as_mut_slice)
    }

    /// Sets the state of a slice to 0, and returns the slice's values, to be replaced. Only for
    /// values without rounding.
    pub(super) fn reset_slice(&mut self, slice: usize) -> Option<&mut [f32]> {
        for (state, len) in self.state.iter_mut().zip(self.state_lens) {
            state.get_mut(slice * len..)?.get_mut(..len)?.fill(0.0);
        }
        self.values.get_mut(slice * self.slice_len..)?.get_mut(..self.slice_len)
    }

    /// If several slices are rounded together, [`round`](Self::round) must follow the step.
    pub(super) fn slices_mut(&mut self) -> Slices<'_> {
        let values = match &mut self.rounded {
            None => Values::Moving(&mut self.values),
            Some(Rounded { rounding, len, exact }) => {
                if *len == self.slice_len {
                    Values::Rounded { exact, stored: &mut self.values, rounding: *rounding }
                } else {
                    Values::Moving(exact)
                }
            }
        };
        Slices {
            first: 0,
            slice_len: self.slice_len,
            values,
            state_lens: self.state_lens,
            state: self.state.each_mut().map(Vec::as_mut_slice),
        }
    }
}

/// The exact values of [`Parameters`], which are rounded when this guard is dropped.
#[derive(Debug)]
pub struct ValuesMut<'p>(&'p mut Parameters);

impl Deref for ValuesMut<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        self.0.exact()
    }
}

impl DerefMut for ValuesMut<'_> {
    fn deref_mut(&mut self) -> &mut [f32] {
        let Parameters { values, rounded, .. } = &mut *self.0;
        rounded.as_mut().map_or(values, |rounded| &mut rounded.exact)
    }
}

impl Drop for ValuesMut<'_> {
    fn drop(&mut self) {
        self.0.round();
    }
}
