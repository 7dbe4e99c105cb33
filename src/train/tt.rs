//! A tensor-train table that learns: cores of f32, and the state of their optimiser.

use super::{
    CacheSpec, Embedding, Initializer, Optimizer, Parameters, TrainError,
    backward::Workspace,
    cache::{Cache, FOLDING_STEPS, Leaving},
    dense::step_rows,
    lookups::{self, Lookups},
    optimizer::{Update, check_values},
    view,
};
use crate::{
    Bags, DigitOrder, LookupError, Pooling, ShapeError, Table, Tier, TtShape,
    bag::Digits,
    blob::{Core, TtCores, Weights},
    dtype::Elements,
    shape::MAX_CORES,
};
use std::{vec, vec::Vec};

/// A tensor-train table that learns. Its forward pass is that of any [`Table`], with the same bits
/// as in a blob; the backward pass is as `src/train/backward.rs` says.
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
    /// The cores, and the rows of the cache if there is one.
    parameters: Vec<Parameters>,
    cache: Option<Cache>,
    optimizer: Optimizer,
    steps: u64,
    tier: Tier,
    workspace: Workspace,
    lookups: Lookups,
}

impl TtTable {
    /// A table of drawn cores: the same ones for the same seed.
    ///
    /// # Errors
    /// [`TrainError::TooManyRows`] where the row factors multiply to 2^32 or more;
    /// [`TrainError::ColumnOrder`].
    pub fn new(
        shape: TtShape,
        initializer: Initializer,
        optimizer: Optimizer,
        seed: u64,
    ) -> Result<Self, TrainError> {
        // Before memory is asked for.
        check_shape(&shape)?;
        Self::from_cores(shape, initializer.cores(&shape, seed), optimizer)
    }

    /// A table of given cores, for instance from a factorised dense table: slices `r_k x q_k x
    /// r_{k+1}`, one after another.
    ///
    /// # Errors
    /// [`TrainError::ColumnOrder`], [`TrainError::TooManyRows`], [`TrainError::CoreCount`] or
    /// [`TrainError::ValuesLen`].
    pub fn from_cores(
        shape: TtShape,
        cores: Vec<Vec<f32>>,
        optimizer: Optimizer,
    ) -> Result<Self, TrainError> {
        let digits = check_shape(&shape)?;
        let (found, expected) = (cores.len(), shape.num_cores());
        if found != expected {
            return Err(TrainError::CoreCount { found, expected });
        }
        for (k, core) in cores.iter().enumerate() {
            check_values(k, core, shape.core_len(k))?;
        }
        let cores = cores.into_iter().enumerate();
        let parameters = cores
            .map(|(k, core)| Parameters::new(core, shape.slice_len(k), optimizer))
            .collect();
        let (workspace, lookups) = (Workspace::new(&shape), Lookups::default());
        let (steps, tier, cache) = (0, Tier::best(), None);
        Ok(Self { shape, digits, parameters, cache, optimizer, steps, tier, workspace, lookups })
    }

    /// The same table, with the instructions of `tier`.
    #[must_use]
    pub fn with_tier(self, tier: Tier) -> Self {
        Self { tier, ..self }
    }

    /// The same table, with a cache (TT-Rec, section 4.3): after some steps the rows that were
    /// looked up most are learned as they are, no longer through the cores, until others are
    /// looked up more. Rows that leave the cache are folded into the cores: by gradient descent
    /// these come nearer to them. The rows of the cache are the last of
    /// [`parameters`](Embedding::parameters).
    ///
    /// # Errors
    /// [`TrainError::Shape`] if the cache is too large for memory.
    pub fn with_cache(mut self, spec: CacheSpec) -> Result<Self, TrainError> {
        let (cache, dim) = (Cache::new(spec), self.shape.embedding_dim());
        let len = spec
            .capacity()
            .checked_mul(dim)
            .filter(|&len| len <= isize::MAX as usize / size_of::<f32>());
        let rows = vec![0.0; len.ok_or(TrainError::Shape(ShapeError::TooLarge))?];
        self.parameters.truncate(self.shape.num_cores());
        self.parameters.push(Parameters::new(rows, dim, self.optimizer));
        self.cache = Some(cache);
        Ok(self)
    }

    /// Rows, factors and ranks.
    pub fn shape(&self) -> &TtShape {
        &self.shape
    }
}

fn check_shape(shape: &TtShape) -> Result<Digits, TrainError> {
    if shape.column_order() != DigitOrder::MostSignificantFirst {
        return Err(TrainError::ColumnOrder);
    }
    let rows = || shape.row_factors().iter().fold(1u64, |rows, &p| rows.saturating_mul(p.into()));
    Digits::new(shape).ok_or_else(|| TrainError::TooManyRows { found: rows() })
}

impl TtTable {
    /// What the cores say, without the cache.
    fn of_cores(&self) -> Table<'_> {
        let mut cores = [Core { slices: Elements::from_f32(&[]), scales: &[] }; MAX_CORES];
        for (to, core) in cores.iter_mut().zip(&self.parameters).take(self.shape.num_cores()) {
            to.slices = Elements::from_f32(core.values());
        }
        let weights = Weights::Tt(TtCores { shape: self.shape, cores, prefixes: None });
        view(weights, self.shape.num_embeddings(), self.shape.embedding_dim(), self.tier)
    }

    /// Moves the cores by the gradient of the rows of checked bags. `None` would be a defect, as
    /// below.
    fn step_cores(
        &mut self,
        bags: &Bags<'_>,
        pooling: Pooling,
        gradient: &[f32],
        update: &Update,
    ) -> Option<()> {
        let Self { shape, digits, tier, parameters, workspace, .. } = self;
        let cores = parameters.get_mut(..shape.num_cores())?;
        workspace.step(shape, digits, *tier, cores, (bags, pooling), gradient, update)
    }

    /// The same, of the rows that are in the cache as well; which ones are may change then.
    fn step_cached(
        &mut self,
        mut cache: Cache,
        bags: &Bags<'_>,
        pooling: Pooling,
        gradient: &[f32],
        update: &Update,
    ) -> Option<()> {
        cache.divide(bags, pooling)?;
        let mut rows = self.parameters.pop()?;
        step_rows(&mut rows, &mut self.lookups, &cache.held()?, Pooling::Sum, gradient, update)?;
        self.step_cores(&cache.others.bags()?, Pooling::Sum, gradient, update)?;
        let table = self.of_cores();
        let mut workspace = vec![0.0; table.workspace_len(1)];
        let leaving = cache.refresh(self.steps, &mut rows, |row, out| {
            table.lookup(row.into(), out, &mut workspace).ok()
        })?;
        self.parameters.push(rows);
        self.cache = Some(cache);
        self.fold(&leaving)
    }

    /// Brings the cores nearer to rows that the cache no longer holds: gradient descent on half
    /// their squared distance.
    fn fold(&mut self, leaving: &Leaving) -> Option<()> {
        let offsets = Vec::from_iter(0..=leaving.rows.len() as u32);
        let bags = Bags::new(&leaving.rows, &offsets).ok()?;
        let mut workspace = vec![0.0; self.of_cores().workspace_len(leaving.rows.len())];
        let mut gradient = vec![0.0; leaving.values.len()];
        let mut distance = |table: &Self, gradient: &mut [f32]| -> Option<f64> {
            table.of_cores().pool(&bags, Pooling::Sum, gradient, &mut workspace).ok()?;
            gradient.iter_mut().zip(&leaving.values).for_each(|(g, x)| *g -= x);
            Some(gradient.iter().map(|&g| f64::from(g) * f64::from(g)).sum())
        };
        let mut least = distance(self, &mut gradient)?;
        let (mut rate, mut next) = (1.0, gradient.clone());
        for _ in 0..FOLDING_STEPS {
            if least == 0.0 {
                break;
            }
            let cores = || self.parameters.iter().take(self.shape.num_cores());
            let before: Vec<Vec<f32>> = cores().map(|core| core.values().to_vec()).collect();
            self.step_cores(
                &bags,
                Pooling::Sum,
                &gradient,
                &Optimizer::Sgd.update(self.tier, rate, 1),
            )?;
            let found = distance(self, &mut next)?;
            if found < least {
                least = found;
                core::mem::swap(&mut gradient, &mut next);
                rate *= 2.0;
            } else {
                let cores = self.parameters.iter_mut().zip(&before);
                cores.for_each(|(core, before)| core.values_mut().copy_from_slice(before));
                rate /= 4.0;
            }
        }
        Some(())
    }
}

impl Embedding for TtTable {
    fn table(&self) -> Table<'_> {
        match (&self.cache, self.parameters.last()) {
            (Some(cache), Some(rows)) => self.of_cores().with_cache(cache.view(rows)),
            _ => self.of_cores(),
        }
    }

    fn step(
        &mut self,
        bags: &Bags<'_>,
        pooling: Pooling,
        gradient: &[f32],
        learning_rate: f64,
    ) -> Result<(), TrainError> {
        lookups::check(&self.of_cores(), bags, pooling, gradient)?;
        self.steps += 1;
        let update = self.optimizer.update(self.tier, learning_rate, self.steps);
        let done = match self.cache.take() {
            Some(cache) => self.step_cached(cache, bags, pooling, gradient, &update),
            None => self.step_cores(bags, pooling, gradient, &update),
        };
        done.ok_or(TrainError::Lookup(LookupError::Inconsistent))
    }

    fn parameters(&self) -> &[Parameters] {
        &self.parameters
    }

    fn parameters_mut(&mut self) -> &mut [Parameters] {
        &mut self.parameters
    }

    fn steps(&self) -> u64 {
        self.steps
    }

    fn set_steps(&mut self, steps: u64) {
        self.steps = steps;
    }

    fn counters(&self) -> Vec<u64> {
        self.cache.as_ref().map_or(Vec::new(), Cache::counters)
    }

    fn set_counters(&mut self, counters: &[u64]) -> Result<(), TrainError> {
        match &mut self.cache {
            Some(cache) => cache.set_counters(counters, self.shape.num_embeddings()),
            None if counters.is_empty() => Ok(()),
            None => Err(TrainError::Counters),
        }
    }

    fn rows_apart(&self) -> Vec<(u64, usize)> {
        self.cache.as_ref().map_or(Vec::new(), Cache::rows)
    }
}
