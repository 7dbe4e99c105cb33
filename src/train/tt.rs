//! Trainable tensor-train tables: their cores, and the state of their optimiser.

use super::{
    CacheSpec, Embedding, Initializer, Optimizer, Parameters, Quantity, TrainError, Unsupported,
    backward::Backward,
    cache::{Cache, FOLDING_STEPS, Leaving},
    dense::{check_len, step_rows},
    rounding::Rounding,
    state::{Sealed, State, Step},
    view,
};
use crate::{
    Bags, DigitOrder, Pooling, Table, Tier, TtShape,
    bag::Digits,
    dtype::{Dtype, Elements},
    kernel::Consistent,
    repr::{Core, TtCores, Weights},
    shape::MAX_CORES,
};
use std::{vec, vec::Vec};

/// A trainable tensor-train table. Its forward pass has the same bits as the same cores in a blob;
/// `src/train/backward.rs` describes its backward pass.
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
    state: State,
    backward: Backward,
}

impl TtTable {
    /// A table whose cores `initializer` draws: the same values for the same seed.
    ///
    /// # Errors
    /// [`Quantity::Rows`] where the row factors multiply to 2^32 or more;
    /// [`Unsupported::ColumnOrder`].
    pub fn new(
        shape: TtShape,
        initializer: Initializer,
        optimizer: Optimizer,
        seed: u64,
    ) -> Result<Self, TrainError> {
        // Refuse the shape before memory is allocated.
        check_shape(&shape)?;
        Self::from_cores(shape, initializer.cores(&shape, seed), optimizer)
    }

    /// A table of given cores, for instance those of a factorised dense table. Core k holds `p_k`
    /// slices of `r_k x q_k x r_{k+1}` elements, one after another.
    ///
    /// # Errors
    /// As [`new`](Self::new); [`Quantity::Cores`] or [`Quantity::Values`] for another number of
    /// cores, or of values in a core, than the shape has.
    pub fn from_cores(
        shape: TtShape,
        cores: Vec<Vec<f32>>,
        optimizer: Optimizer,
    ) -> Result<Self, TrainError> {
        let digits = check_shape(&shape)?;
        check_cores(&shape, cores.iter().map(Vec::as_slice))?;
        let cores = cores.into_iter().enumerate();
        let parameters = cores
            .map(|(k, core)| Parameters::new(core, shape.slice_len(k), optimizer))
            .collect();
        let state = State::new(parameters, optimizer);
        Ok(Self { shape, state, backward: Backward::new(&shape, digits) })
    }

    /// The same table, with the instructions of `tier`.
    #[must_use]
    pub fn with_tier(mut self, tier: Tier) -> Self {
        self.state.tier = tier;
        self
    }

    /// The same table, whose cores are learned as `dtype`. Lookups and gradients use the values
    /// that a blob of this type stores. The optimiser moves exact values of f32
    /// ([`Parameters::exact`]) by these gradients. So a blob of this type has the rows that were
    /// learned, except for the rounding of scales. A cache stays f32.
    ///
    /// # Errors
    /// [`Unsupported::Dtype`] for a type that cores cannot have.
    pub fn with_dtype(mut self, dtype: Dtype) -> Result<Self, TrainError> {
        if !dtype.suits_cores() {
            return Err(TrainError::Unsupported(Unsupported::Dtype { dtype }));
        }
        self.state.round(self.shape.num_cores(), Rounding::Slice(dtype));
        Ok(self)
    }

    /// The same table with a cache (TT-Rec, section 4.3): after some steps, the rows that were
    /// looked up most are learned as rows of f32 instead of through the cores, until others are
    /// looked up more. The cores then move towards rows that leave the cache, by gradient descent.
    /// The rows of the cache are the last of the [`parameters`](super::Checkpointed::parameters).
    ///
    /// # Errors
    /// [`TrainError::Shape`] if the cache is too large for memory.
    pub fn with_cache(mut self, spec: CacheSpec) -> Result<Self, TrainError> {
        let (state, dim) = (&mut self.state, self.shape.embedding_dim());
        let rows = vec![0.0; check_len(spec.capacity(), dim)?];
        state.parameters.truncate(self.shape.num_cores());
        state.parameters.push(Parameters::new(rows, dim, state.optimizer));
        state.cache = Some(Cache::new(spec, self.shape.num_embeddings()));
        Ok(self)
    }

    /// The factors and ranks of the tensor train.
    pub fn shape(&self) -> &TtShape {
        &self.shape
    }
}

/// A nameless table of these cores, as many as the shape has.
pub(super) fn table_of<'c>(
    shape: TtShape,
    values: impl Iterator<Item = &'c [f32]>,
    tier: Tier,
) -> Table<'c> {
    let mut cores = [Core { slices: Elements::from_f32(&[]), scales: &[] }; MAX_CORES];
    for (to, values) in cores.iter_mut().zip(values).take(shape.num_cores()) {
        to.slices = Elements::from_f32(values);
    }
    let weights = Weights::Tt(TtCores::new(shape, cores, None));
    view(weights, shape.num_embeddings(), shape.embedding_dim(), tier)
}

/// Refuses another number of cores, or of values in a core, than the shape has.
pub(super) fn check_cores<'c>(
    shape: &TtShape,
    cores: impl ExactSizeIterator<Item = &'c [f32]>,
) -> Result<(), TrainError> {
    Quantity::Cores.check(cores.len(), shape.num_cores() as u64)?;
    cores
        .enumerate()
        .try_for_each(|(k, core)| Quantity::Values(k).check(core.len(), shape.core_len(k)))
}

pub(super) fn check_shape(shape: &TtShape) -> Result<Digits, TrainError> {
    if shape.column_order() != DigitOrder::MostSignificantFirst {
        return Err(TrainError::Unsupported(Unsupported::ColumnOrder));
    }
    let rows = || shape.row_factors().iter().fold(1u64, |rows, &p| rows.saturating_mul(p.into()));
    Digits::new(shape).ok_or_else(|| Quantity::Rows.above(rows(), u32::MAX.into()))
}

impl TtTable {
    /// The table of the cores, without the cache.
    fn core_table(&self) -> Table<'_> {
        let State { parameters, tier, .. } = &self.state;
        table_of(self.shape, parameters.iter().map(Parameters::values), *tier)
    }

    fn step_cores(&mut self, step: &Step<'_>) -> Consistent {
        let cores = self.state.parameters.get_mut(..self.shape.num_cores())?;
        let mut cores: Vec<_> = cores.iter_mut().map(Parameters::slices_mut).collect();
        self.backward.step(&self.shape, &mut cores, step)
    }

    /// Moves the rows of the cache, and the cores by the gradient of all other rows; then the cache
    /// may exchange rows.
    fn step_cached(&mut self, mut cache: Cache, step: &Step<'_>) -> Consistent {
        cache.divide(step.bags, step.pooling)?;
        let mut rows = self.state.parameters.pop()?;
        let (held, others) = (cache.held.bags()?, cache.others.bags()?);
        // The weights of both contain what mean pooling divides by.
        let summed = Step { pooling: Pooling::Sum, ..*step };
        step_rows(&mut rows, &mut self.state.lookups, &Step { bags: &held, ..summed })?;
        self.step_cores(&Step { bags: &others, ..summed })?;
        let table = self.core_table();
        let mut workspace = vec![0.0; table.workspace_len(1)];
        let leaving = cache.refresh(self.state.steps, &mut rows, |row, out| {
            table.lookup(row.into(), out, &mut workspace).ok()
        })?;
        self.state.parameters.push(rows);
        self.state.cache = Some(cache);
        self.fold(&leaving)
    }

    /// Moves the cores towards rows that have left the cache: gradient descent on half the sum of
    /// squared distances. A step that does not reduce the sum is undone, and the next one is a
    /// quarter as long; after a step that does, the next one is twice as long.
    fn fold(&mut self, leaving: &Leaving) -> Consistent {
        let offsets = Vec::from_iter(0..=leaving.rows.len() as u32);
        let bags = Bags::new(&leaving.rows, &offsets).ok()?;
        let mut workspace = vec![0.0; self.core_table().workspace_len(leaving.rows.len())];
        let mut gradient = vec![0.0; leaving.values.len()];
        let mut distance = |table: &Self, gradient: &mut [f32]| -> Option<f64> {
            table.core_table().pool(&bags, Pooling::Sum, gradient, &mut workspace).ok()?;
            gradient.iter_mut().zip(&leaving.values).for_each(|(g, x)| *g -= x);
            Some(gradient.iter().map(|&g| f64::from(g) * f64::from(g)).sum())
        };
        let mut least = distance(self, &mut gradient)?;
        let (mut rate, mut next) = (1.0, gradient.clone());
        for _ in 0..FOLDING_STEPS {
            if least == 0.0 {
                break;
            }
            let cores = self.state.parameters.iter().take(self.shape.num_cores());
            let before: Vec<Vec<f32>> = cores.map(|core| core.exact().to_vec()).collect();
            let update = Optimizer::Sgd.update(self.state.tier, rate, 1);
            let (bags, pooling, gradient_now) = (&bags, Pooling::Sum, &gradient);
            self.step_cores(&Step { bags, pooling, gradient: gradient_now, update })?;
            let found = distance(self, &mut next)?;
            if found < least {
                least = found;
                core::mem::swap(&mut gradient, &mut next);
                rate *= 2.0;
            } else {
                let cores = self.state.parameters.iter_mut().zip(&before);
                cores.for_each(|(core, before)| core.values_mut().copy_from_slice(before));
                rate /= 4.0;
            }
        }
        Some(())
    }
}

impl Embedding for TtTable {
    fn table(&self) -> Table<'_> {
        match (&self.state.cache, self.state.parameters.last()) {
            (Some(cache), Some(rows)) => self.core_table().with_cache(cache.view(rows)),
            _ => self.core_table(),
        }
    }
}

impl Sealed for TtTable {
    fn state(&self) -> &State {
        &self.state
    }

    fn state_mut(&mut self) -> &mut State {
        &mut self.state
    }

    fn apply(&mut self, step: &Step<'_>) -> Consistent {
        match self.state.cache.take() {
            Some(cache) => self.step_cached(cache, step),
            None => self.step_cores(step),
        }
    }
}
