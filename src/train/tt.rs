//! A tensor-train table that learns: cores of f32, and the state of their optimiser.

use super::{
    Embedding, Initializer, Optimizer, Parameters, TrainError, backward::Workspace, lookups, optimizer::check_values,
    view,
};
use crate::{
    Bags, LookupError, Pooling, Table, Tier, TtShape,
    bag::Digits,
    blob::{Core, TtCores, Weights},
    dtype::Elements,
    shape::MAX_CORES,
};
use std::vec::Vec;

/// A tensor-train table that learns. Its forward pass is that of any [`Table`], with the same bits as in a blob; the backward
/// pass is as `src/train/backward.rs` says.
///
/// ```
/// use ttrec::{Bags, Pooling, TtShape, train::{Embedding, Initializer, Optimizer, TtTable}};
///
/// let shape = TtShape::new(1000, &[10, 10, 10], &[2, 2, 2], &[4, 4])?;
/// let mut table = TtTable::new(shape, Initializer::SampledGaussian, Optimizer::ADAGRAD, 1)?;
/// let bags = Bags::new(&[3u32, 7, 999], &[0, 2, 3])?;
/// let (mut rows, mut workspace) = ([0.0; 2 * 8], Vec::new());
/// let mut losses = Vec::new();
/// for _ in 0..50 {
///     table.forward(&bags, Pooling::Sum, &mut rows, &mut workspace)?;
///     let gradient = rows.map(|x| x - 1.0); // of half the squared distance from ones
///     losses.push(gradient.iter().map(|g| g * g / 2.0).sum::<f32>());
///     table.step(&bags, Pooling::Sum, &gradient, 0.1)?;
/// }
/// assert!(losses[49] < losses[0] / 10.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct TtTable {
    shape: TtShape,
    digits: Digits,
    cores: Vec<Parameters>,
    optimizer: Optimizer,
    steps: u64,
    tier: Tier,
    workspace: Workspace,
}

impl TtTable {
    /// A table of drawn cores: the same ones for the same seed.
    ///
    /// # Errors
    /// [`TrainError::TooManyRows`] where the row factors multiply to 2^32 or more.
    pub fn new(shape: TtShape, initializer: Initializer, optimizer: Optimizer, seed: u64) -> Result<Self, TrainError> {
        // Before memory is asked for.
        check_rows(&shape)?;
        Self::from_cores(shape, initializer.cores(&shape, seed), optimizer)
    }

    /// A table of given cores, for instance from a factorised dense table: slices `r_k x q_k x r_{k+1}`, one after another.
    ///
    /// # Errors
    /// [`TrainError::TooManyRows`], [`TrainError::CoreCount`] or [`TrainError::ValuesLen`].
    pub fn from_cores(shape: TtShape, cores: Vec<Vec<f32>>, optimizer: Optimizer) -> Result<Self, TrainError> {
        let digits = check_rows(&shape)?;
        let (found, expected) = (cores.len(), shape.num_cores());
        if found != expected {
            return Err(TrainError::CoreCount { found, expected });
        }
        for (k, core) in cores.iter().enumerate() {
            check_values(k, core, shape.core_len(k))?;
        }
        let cores = cores.into_iter().enumerate();
        let cores = cores.map(|(k, core)| Parameters::new(core, shape.slice_len(k), optimizer)).collect();
        let workspace = Workspace::new(&shape);
        Ok(Self { shape, digits, cores, optimizer, steps: 0, tier: Tier::best(), workspace })
    }

    /// The same table, with the instructions of `tier`.
    #[must_use]
    pub fn with_tier(self, tier: Tier) -> Self {
        Self { tier, ..self }
    }

    /// Rows, factors and ranks.
    pub fn shape(&self) -> &TtShape {
        &self.shape
    }
}

fn check_rows(shape: &TtShape) -> Result<Digits, TrainError> {
    let rows = || shape.row_factors().iter().fold(1u64, |rows, &p| rows.saturating_mul(p.into()));
    Digits::new(shape).ok_or_else(|| TrainError::TooManyRows { found: rows() })
}

impl Embedding for TtTable {
    fn table(&self) -> Table<'_> {
        let mut cores = [Core { slices: Elements::F32(&[]), scales: &[] }; MAX_CORES];
        for (to, core) in cores.iter_mut().zip(&self.cores) {
            to.slices = Elements::F32(core.values());
        }
        let weights = Weights::Tt(TtCores { shape: self.shape, cores, prefixes: None });
        view(weights, self.shape.num_embeddings(), self.shape.embedding_dim(), self.tier)
    }

    fn step(
        &mut self,
        bags: &Bags<'_, u32>,
        pooling: Pooling,
        gradient: &[f32],
        learning_rate: f64,
    ) -> Result<(), TrainError> {
        lookups::check(&self.table(), bags, pooling, gradient)?;
        self.steps += 1;
        let update = self.optimizer.update(self.tier, learning_rate, self.steps);
        let Self { shape, digits, tier, cores, workspace, .. } = self;
        let done = workspace.step(shape, digits, *tier, cores, (bags, pooling), gradient, &update);
        done.ok_or(TrainError::Lookup(LookupError::Inconsistent))
    }

    fn parameters(&self) -> &[Parameters] {
        &self.cores
    }

    fn parameters_mut(&mut self) -> &mut [Parameters] {
        &mut self.cores
    }

    fn steps(&self) -> u64 {
        self.steps
    }

    fn set_steps(&mut self, steps: u64) {
        self.steps = steps;
    }
}
