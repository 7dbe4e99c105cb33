//! A dense table that learns: what a tensor train is compared with.

use super::{
    Embedding, Initializer, Optimizer, Parameters, TrainError,
    lookups::{self, Lookups},
    optimizer::{Update, check_values},
    view,
};
use crate::{
    Bags, LookupError, Pooling, ShapeError, Table, Tier,
    blob::{Rows, Weights},
    dtype::Elements,
    kernel::{Epilogue, widen},
    shape::{check_embedding_dim, check_num_embeddings},
};
use std::{vec, vec::Vec};

/// A dense table of f32 that learns; each row is a slice to its [`Optimizer`].
#[derive(Debug)]
pub struct DenseTable {
    num_embeddings: u32,
    embedding_dim: usize,
    rows: [Parameters; 1],
    optimizer: Optimizer,
    steps: u64,
    tier: Tier,
    lookups: Lookups,
}

impl DenseTable {
    /// A table of drawn rows: the same ones for the same seed.
    ///
    /// # Errors
    /// [`TrainError::Shape`] or [`TrainError::TooManyRows`].
    pub fn new(
        num_embeddings: u64,
        embedding_dim: usize,
        initializer: Initializer,
        optimizer: Optimizer,
        seed: u64,
    ) -> Result<Self, TrainError> {
        let len = check(num_embeddings, embedding_dim)?;
        let rows = initializer.rows(num_embeddings, len, seed);
        Self::from_rows(num_embeddings, embedding_dim, rows, optimizer)
    }

    /// A table of given rows, one after another.
    ///
    /// # Errors
    /// [`TrainError::Shape`], [`TrainError::TooManyRows`] or [`TrainError::ValuesLen`].
    pub fn from_rows(
        num_embeddings: u64,
        embedding_dim: usize,
        rows: Vec<f32>,
        optimizer: Optimizer,
    ) -> Result<Self, TrainError> {
        check_values(0, &rows, check(num_embeddings, embedding_dim)? as u64)?;
        Ok(Self {
            num_embeddings: num_embeddings as u32,
            embedding_dim,
            rows: [Parameters::new(rows, embedding_dim, optimizer)],
            optimizer,
            steps: 0,
            tier: Tier::best(),
            lookups: Lookups::default(),
        })
    }

    /// The same table, with the instructions of `tier`.
    #[must_use]
    pub fn with_tier(self, tier: Tier) -> Self {
        Self { tier, ..self }
    }
}

/// Moves the rows that `bags` look up, by the gradient of the pooled rows; both have been checked.
pub(super) fn step_rows(
    rows: &mut Parameters,
    lookups: &mut Lookups,
    bags: &Bags<'_>,
    pooling: Pooling,
    gradient: &[f32],
    update: &Update,
) -> Option<()> {
    let (dim, tier) = (rows.slice_len(), update.tier());
    let num_rows = rows.values().len().checked_div(dim)?;
    lookups.sort(bags, pooling, num_rows as u32, |row| row);
    let mut rows = rows.slices_mut();
    let mut sum = vec![0.0; dim];
    let mut at = 0;
    while at < lookups.len() {
        let end = lookups.end_of_key(at);
        sum.fill(0.0);
        for lookup in (at..end).map(|at| lookups.lookup(at)) {
            let gradient = Elements::from_f32(gradient.get(lookup.bag * dim..)?.get(..dim)?);
            widen(tier, gradient, 1.0, -0.0, &mut sum, Epilogue::AddScaled(lookup.scale))?;
        }
        rows.update(lookups.key(at) as usize, &sum, update)?;
        at = end;
    }
    Some(())
}

/// Slices, as rows to be looked up.
pub(super) fn rows_of(parameters: &Parameters) -> Rows<'_> {
    Rows {
        elements: Elements::from_f32(parameters.values()),
        embedding_dim: parameters.slice_len(),
    }
}

/// Elements of all rows.
pub(super) fn check(num_embeddings: u64, embedding_dim: usize) -> Result<usize, TrainError> {
    check_num_embeddings(num_embeddings)?;
    check_embedding_dim(embedding_dim as u64)?;
    let rows = u32::try_from(num_embeddings)
        .map_err(|_| TrainError::TooManyRows { found: num_embeddings })?;
    let len = (rows as usize)
        .checked_mul(embedding_dim)
        .filter(|&len| len <= isize::MAX as usize / size_of::<f32>());
    len.ok_or(TrainError::Shape(ShapeError::TooLarge))
}

impl Embedding for DenseTable {
    fn table(&self) -> Table<'_> {
        let [rows] = &self.rows;
        view(
            Weights::Dense(rows_of(rows)),
            self.num_embeddings.into(),
            self.embedding_dim,
            self.tier,
        )
    }

    fn step(
        &mut self,
        bags: &Bags<'_>,
        pooling: Pooling,
        gradient: &[f32],
        learning_rate: f64,
    ) -> Result<(), TrainError> {
        lookups::check(&self.table(), bags, pooling, gradient)?;
        self.steps += 1;
        let update = self.optimizer.update(self.tier, learning_rate, self.steps);
        let Self { rows: [rows], lookups, .. } = self;
        let done = step_rows(rows, lookups, bags, pooling, gradient, &update);
        done.ok_or(TrainError::Lookup(LookupError::Inconsistent))
    }

    fn parameters(&self) -> &[Parameters] {
        &self.rows
    }

    fn parameters_mut(&mut self) -> &mut [Parameters] {
        &mut self.rows
    }

    fn steps(&self) -> u64 {
        self.steps
    }

    fn set_steps(&mut self, steps: u64) {
        self.steps = steps;
    }
}
