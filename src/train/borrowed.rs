//! Tensor trains whose cores belong to the caller, for instance to PyTorch.

use super::{
    Optimizer, Quantity, TrainError,
    backward::Backward,
    lookups,
    optimizer::{Slices, Update},
    state::Step,
    tt::{check_cores, check_shape, table_of},
};
use crate::{Bags, LookupError, Pooling, Table, Tier, TtShape};
use std::vec::Vec;

/// What learning a tensor train needs besides its cores, which the caller lends to each call: core
/// k is `p_k` slices of `r_k x q_k x r_{k+1}` elements, one after another.
///
/// ```
/// use ttrec::{Bags, Pooling, TtShape, train::BorrowedTt};
///
/// let shape = TtShape::new(100, &[10, 10], &[2, 4], &[3])?;
/// let mut tt = BorrowedTt::new(shape)?;
/// let cores = [vec![0.5; 10 * 2 * 3], vec![0.25; 10 * 3 * 4]];
/// let cores = [&cores[0][..], &cores[1][..]];
/// let bags = Bags::new(&[3u32, 7, 99], &[0, 2, 3])?;
///
/// let mut rows = [0.0; 2 * 8];
/// let table = tt.table(&cores)?;
/// table.pool(&bags, Pooling::Sum, &mut rows, &mut vec![0.0; table.workspace_len(3)])?;
///
/// // The gradients of the sum of all elements of `rows`.
/// let (mut first, mut second) = ([0.0; 60], [0.0; 120]);
/// let gradients = &mut [&mut first[..], &mut second[..]];
/// tt.gradients(&cores, &bags, Pooling::Sum, &[1.0; 16], gradients)?;
/// assert_eq!(second[3 * 12], 2.0 * 0.5); // the slice of index 3, in a row of two columns
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct BorrowedTt {
    shape: TtShape,
    backward: Backward,
}

impl BorrowedTt {
    /// # Errors
    /// As [`TtTable::new`](super::TtTable::new).
    pub fn new(shape: TtShape) -> Result<Self, TrainError> {
        let digits = check_shape(&shape)?;
        Ok(Self { shape, backward: Backward::new(&shape, digits) })
    }

    /// Sets whether gradients and steps may use the threads of the current rayon pool. The default
    /// is true. The results have the same bits either way.
    pub fn set_parallel(&mut self, is_parallel: bool) {
        self.backward.is_parallel = is_parallel;
    }

    /// The table of these cores. Its name is empty.
    ///
    /// # Errors
    /// [`Quantity::Cores`] or [`Quantity::Values`].
    pub fn table<'c>(&self, cores: &[&'c [f32]]) -> Result<Table<'c>, TrainError> {
        check_cores(&self.shape, cores.iter().copied())?;
        Ok(table_of(self.shape, cores.iter().copied(), Tier::best()))
    }

    /// Writes the gradient of the loss with respect to each core into `out`, zeros where the bags
    /// look nothing up. `gradient` is that with respect to the rows which the table pools from
    /// `bags`.
    ///
    /// # Errors
    /// As [`Embedding::step`](super::Embedding::step); [`Quantity::Cores`] or
    /// [`Quantity::Values`] for cores and gradients that do not have the lengths of the shape.
    pub fn gradients(
        &mut self,
        cores: &[&[f32]],
        bags: &Bags<'_>,
        pooling: Pooling,
        gradient: &[f32],
        out: &mut [&mut [f32]],
    ) -> Result<(), TrainError> {
        lookups::check(&self.table(cores)?, bags, pooling, gradient)?;
        check_cores(&self.shape, out.iter().map(|out| &**out))?;
        out.iter_mut().for_each(|out| out.fill(0.0));
        let shape = &self.shape;
        let slices = cores.iter().zip(out).enumerate();
        let mut slices: Vec<_> = slices
            .map(|(k, (core, out))| Slices::fixed(core, shape.slice_len(k), out))
            .collect();
        let step = Step { bags, pooling, gradient, update: Update::keep(Tier::best()) };
        let done = self.backward.step(shape, &mut slices, &step);
        done.ok_or(TrainError::Lookup(LookupError::Inconsistent))
    }

    /// Takes step number `number`, counted from 1, of `optimizer`: moves the slices of `cores` that
    /// the bags look up. `state` has the state of each core, which begins as zeros, in two parts:
    /// see [`Parameters::state`](super::Parameters::state).
    ///
    /// # Errors
    /// As [`gradients`](Self::gradients); [`Quantity::Values`] for a state of another length.
    /// Nothing has changed then.
    #[expect(clippy::too_many_arguments, reason = "all of it belongs to the caller")]
    pub fn step(
        &mut self,
        cores: &mut [&mut [f32]],
        state: &mut [[&mut [f32]; 2]],
        bags: &Bags<'_>,
        pooling: Pooling,
        gradient: &[f32],
        optimizer: Optimizer,
        learning_rate: f64,
        number: u64,
    ) -> Result<(), TrainError> {
        let shape = &self.shape;
        check_cores(shape, cores.iter().map(|core| &**core))?;
        let table = table_of(*shape, cores.iter().map(|core| &**core), Tier::best());
        lookups::check(&table, bags, pooling, gradient)?;
        Quantity::Cores.check(state.len(), shape.num_cores() as u64)?;
        for (k, state) in state.iter().enumerate() {
            let (slice_len, num_slices) = (shape.slice_len(k), shape.core_len(k));
            let num_slices = num_slices.checked_div(slice_len as u64).unwrap_or(0);
            for (state, len) in state.iter().zip(optimizer.state_lens(slice_len)) {
                Quantity::Values(k).check(state.len(), num_slices.saturating_mul(len as u64))?;
            }
        }
        let slices = cores.iter_mut().zip(state).enumerate();
        let mut slices: Vec<_> = slices
            .map(|(k, (core, [first, second]))| {
                Slices::moving(core, shape.slice_len(k), optimizer, [first, second])
            })
            .collect();
        let update = optimizer.update(Tier::best(), learning_rate, number);
        let step = Step { bags, pooling, gradient, update };
        let done = self.backward.step(shape, &mut slices, &step);
        done.ok_or(TrainError::Lookup(LookupError::Inconsistent))
    }
}
