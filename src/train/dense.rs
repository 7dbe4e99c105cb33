//! Trainable dense tables, which tensor trains are compared with.

use super::{
    Embedding, Initializer, Optimizer, Parameters, Quantity, TrainError,
    lookups::SortedLookups,
    optimizer::Slices,
    rounding::Rounding,
    state::{Sealed, State, Step},
    view,
};
use crate::{
    ShapeError, Table, Tier,
    dtype::{Dtype, Elements},
    kernel::{Consistent, Epilogue, widen},
    repr::{Rows, Weights},
    shape::{check_embedding_dim, check_num_embeddings},
};
use core::ops::Range;
use std::{vec, vec::Vec};

/// The shape of a [`DenseTable`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DenseShape {
    /// Rows.
    pub num_embeddings: u64,
    /// Elements of a row.
    pub embedding_dim: usize,
}

impl DenseShape {
    /// Elements of all rows.
    pub(super) fn check(self) -> Result<usize, TrainError> {
        check_num_embeddings(self.num_embeddings)?;
        check_embedding_dim(self.embedding_dim as u64)?;
        let num_rows = u32::try_from(self.num_embeddings)
            .map_err(|_| Quantity::Rows.above(self.num_embeddings, u32::MAX.into()))?;
        check_len(num_rows as usize, self.embedding_dim)
    }
}

/// Elements of rows that are kept in memory.
pub(super) fn check_len(num_rows: usize, embedding_dim: usize) -> Result<usize, TrainError> {
    let len = num_rows.checked_mul(embedding_dim);
    len.filter(|&len| len <= isize::MAX as usize / size_of::<f32>())
        .ok_or(TrainError::Shape(ShapeError::TooLarge))
}

/// A trainable dense table. Each row is a slice for the [`Optimizer`].
#[derive(Debug)]
pub struct DenseTable {
    shape: DenseShape,
    state: State,
}

impl DenseTable {
    /// A table whose rows `initializer` draws: the same values for the same seed.
    ///
    /// # Errors
    /// [`TrainError::Shape`], or [`Quantity::Rows`] for 2^32 or more rows.
    pub fn new(
        shape: DenseShape,
        initializer: Initializer,
        optimizer: Optimizer,
        seed: u64,
    ) -> Result<Self, TrainError> {
        let rows = initializer.rows(shape.num_embeddings, shape.check()?, seed);
        Self::from_rows(shape, rows, optimizer)
    }

    /// A table of given rows, `num_embeddings x embedding_dim`, row-major.
    ///
    /// # Errors
    /// As [`new`](Self::new); [`Quantity::Values`] for another number of values.
    pub fn from_rows(
        shape: DenseShape,
        rows: Vec<f32>,
        optimizer: Optimizer,
    ) -> Result<Self, TrainError> {
        Quantity::Values(0).check(rows.len(), shape.check()? as u64)?;
        let rows = Parameters::new(rows, shape.embedding_dim, optimizer);
        Ok(Self { shape, state: State::new(vec![rows], optimizer) })
    }

    /// The same table, whose rows are learned as `dtype`: see [`TtTable::with_dtype`].
    ///
    /// [`TtTable::with_dtype`]: super::TtTable::with_dtype
    #[must_use]
    pub fn with_dtype(mut self, dtype: Dtype) -> Self {
        self.state.round(1, Rounding::Row(dtype));
        self
    }

    /// The same table, with the instructions of `tier`.
    #[must_use]
    pub fn with_tier(mut self, tier: Tier) -> Self {
        self.state.tier = tier;
        self
    }
}

/// Moves the rows that the step's bags look up.
pub(super) fn step_rows(
    rows: &mut Parameters,
    lookups: &mut SortedLookups,
    step: &Step<'_>,
) -> Consistent {
    let dim = rows.slice_len();
    let num_rows = rows.values().len().checked_div(dim)?;
    step_slices(&mut rows.slices_mut(), num_rows as u32, lookups, step, (dim, 0..dim), |row| row)
}

/// Moves the slices of the rows that the step's bags look up. There are `num_slices` slices. A row
/// has `dim` columns, and in `columns` it is slice `slice_of(row)`.
pub(super) fn step_slices(
    slices: &mut Slices<'_>,
    num_slices: u32,
    lookups: &mut SortedLookups,
    step: &Step<'_>,
    (dim, columns): (usize, Range<usize>),
    slice_of: impl Fn(u32) -> u32,
) -> Consistent {
    let tier = step.update.tier();
    lookups.sort(step.bags, step.pooling, num_slices, slice_of);
    let mut sum = vec![0.0; columns.len()];
    let mut at = 0;
    while at < lookups.len() {
        let end = lookups.end_of_key(at);
        sum.fill(0.0);
        for lookup in (at..end).map(|at| lookups.lookup(at)) {
            let gradient = step.gradient.get(lookup.bag * dim..)?.get(columns.clone())?;
            let gradient = Elements::from_f32(gradient);
            widen(tier, gradient, 1.0, -0.0, &mut sum, Epilogue::AddScaled(lookup.scale))?;
        }
        slices.update(lookups.key(at) as usize, &sum, &step.update)?;
        at = end;
    }
    Some(())
}

/// Slices, as the rows of a table.
pub(super) fn rows_of(parameters: &Parameters) -> Rows<'_> {
    Rows {
        elements: Elements::from_f32(parameters.values()),
        embedding_dim: parameters.slice_len(),
    }
}

impl Embedding for DenseTable {
    fn table(&self) -> Table<'_> {
        let DenseShape { num_embeddings, embedding_dim } = self.shape;
        let rows = Weights::Dense(rows_of(&self.state.parameters[0]));
        view(rows, num_embeddings, embedding_dim, self.state.tier)
    }
}

impl Sealed for DenseTable {
    fn state(&self) -> &State {
        &self.state
    }

    fn state_mut(&mut self) -> &mut State {
        &mut self.state
    }

    fn apply(&mut self, step: &Step<'_>) -> Consistent {
        let State { parameters, lookups, .. } = &mut self.state;
        step_rows(parameters.first_mut()?, lookups, step)
    }
}
