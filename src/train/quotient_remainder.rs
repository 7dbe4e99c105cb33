//! Trainable quotient-remainder tables, whose rows combine a quotient row and a remainder row.

use super::{
    DenseShape, Embedding, Initializer, Optimizer, Parameters, Quantity, TrainError,
    dense::{rows_of, step_rows},
    rounding::Rounding,
    state::{Sealed, State, Step},
    view,
};
use crate::{
    Table, Tier,
    divisor::Divisor,
    dtype::Dtype,
    kernel::Consistent,
    repr::{Combine, QuotientRemainder, Weights},
    shape::check_num_embeddings,
};
use std::vec::Vec;

/// The shape of a [`QuotientRemainderTable`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuotientRemainderShape {
    /// Indices that can be looked up.
    pub num_embeddings: u64,
    /// Remainder rows. There are `ceil(num_embeddings / num_remainders)` quotient rows.
    pub num_remainders: u32,
    /// Elements of a quotient row and of a remainder row: both are `embedding_dim`, or with
    /// [`Combine::Concat`] their sum is.
    pub columns: [usize; 2],
    /// How a quotient row and a remainder row become one.
    pub combine: Combine,
}

impl QuotientRemainderShape {
    /// Elements of both parts, and `embedding_dim`.
    fn check(&self) -> Result<([usize; 2], usize), TrainError> {
        let Self { num_embeddings, num_remainders, columns, combine } = *self;
        check_num_embeddings(num_embeddings)?;
        let (num_quotients, dim) = combine.check(num_embeddings, num_remainders, columns)?;
        let len = |num_rows: u32, embedding_dim| {
            DenseShape { num_embeddings: num_rows.into(), embedding_dim }.check()
        };
        let [first, second] = columns;
        Ok(([len(num_quotients, first)?, len(num_remainders, second)?], dim))
    }
}

/// A trainable quotient-remainder table (Shi et al., "Compositional embeddings using complementary
/// partitions", 2019): row i combines quotient row `i / num_remainders` and remainder row `i mod
/// num_remainders`. As in DLRM, the quotient rows of a bag are pooled, then its remainder rows, and
/// the two results are combined. Each row of either part is a slice for the [`Optimizer`].
///
/// ```
/// use ttrec::{
///     repr::Combine,
///     train::{
///         Checkpointed, Initializer, Optimizer, QuotientRemainderShape, QuotientRemainderTable,
///     },
/// };
///
/// let shape = QuotientRemainderShape {
///     num_embeddings: 1_000_000,
///     num_remainders: 1000,
///     columns: [8, 8],
///     combine: Combine::Mult,
/// };
/// let table = QuotientRemainderTable::new(shape, Initializer::Uniform, Optimizer::ADAGRAD, 1)?;
/// let lens = table.parameters().iter().map(|part| part.values().len());
/// assert_eq!(lens.sum::<usize>(), 2 * 1000 * 8);
/// # Ok::<(), ttrec::train::TrainError>(())
/// ```
#[derive(Debug)]
pub struct QuotientRemainderTable {
    shape: QuotientRemainderShape,
    embedding_dim: usize,
    /// Its parameters are the quotient rows and the remainder rows.
    state: State,
    buffers: PartBuffers,
}

/// Memory that steps reuse: of each, the quotients' and the remainders'.
#[derive(Debug, Default)]
struct PartBuffers {
    indices: [Vec<u32>; 2],
    pooled: [Vec<f32>; 2],
    gradients: [Vec<f32>; 2],
}

impl QuotientRemainderTable {
    /// A table whose rows `initializer` draws: the same values for the same seed. Elements of the
    /// combined rows have the variance that a dense table's have.
    ///
    /// # Errors
    /// [`TrainError::Shape`].
    pub fn new(
        shape: QuotientRemainderShape,
        initializer: Initializer,
        optimizer: Optimizer,
        seed: u64,
    ) -> Result<Self, TrainError> {
        let (lens, _) = shape.check()?;
        let parts = initializer.parts(shape.num_embeddings, shape.combine, lens, seed);
        Self::from_parts(shape, parts, optimizer)
    }

    /// A table of given quotient rows and remainder rows, each row-major.
    ///
    /// # Errors
    /// As [`new`](Self::new); [`Quantity::Values`] for another number of
    /// values in a part.
    pub fn from_parts(
        shape: QuotientRemainderShape,
        parts: [Vec<f32>; 2],
        optimizer: Optimizer,
    ) -> Result<Self, TrainError> {
        let (lens, embedding_dim) = shape.check()?;
        for (part, (values, len)) in parts.iter().zip(lens).enumerate() {
            Quantity::Values(part).check(values.len(), len as u64)?;
        }
        let parts = parts.into_iter().zip(shape.columns);
        let parts = parts.map(|(values, columns)| Parameters::new(values, columns, optimizer));
        let state = State::new(parts.collect(), optimizer);
        Ok(Self { shape, embedding_dim, state, buffers: PartBuffers::default() })
    }

    /// The same table, whose quotient rows and remainder rows are learned as `dtype`: see
    /// [`TtTable::with_dtype`](super::TtTable::with_dtype).
    #[must_use]
    pub fn with_dtype(mut self, dtype: Dtype) -> Self {
        self.state.round(2, Rounding::Row(dtype));
        self
    }

    /// The same table, with the instructions of `tier`.
    #[must_use]
    pub fn with_tier(mut self, tier: Tier) -> Self {
        self.state.tier = tier;
        self
    }
}

impl Embedding for QuotientRemainderTable {
    fn table(&self) -> Table<'_> {
        let QuotientRemainderShape { num_embeddings, num_remainders, combine, .. } = self.shape;
        let State { parameters, tier, .. } = &self.state;
        let weights = Weights::QuotientRemainder(QuotientRemainder {
            quotients: rows_of(&parameters[0]),
            remainders: rows_of(&parameters[1]),
            num_remainders,
            combine,
        });
        view(weights, num_embeddings, self.embedding_dim, *tier)
    }
}

impl Sealed for QuotientRemainderTable {
    fn state(&self) -> &State {
        &self.state
    }

    fn state_mut(&mut self) -> &mut State {
        &mut self.state
    }

    /// With Q and R for the pooled quotient and remainder rows of a bag and g for the gradient of
    /// their combination: Q * R has `dQ = g * R` and `dR = g * Q`, Q + R has `dQ = dR = g`, and the
    /// concatenation of Q and R has the columns of g.
    fn apply(&mut self, step: &Step<'_>) -> Consistent {
        let PartBuffers { indices, pooled, gradients } = &mut self.buffers;
        let State { parameters, lookups, tier, .. } = &mut self.state;
        let QuotientRemainderShape { num_remainders, combine, columns, .. } = self.shape;
        let (dim, &Step { bags, pooling, gradient, .. }) = (self.embedding_dim, step);
        let num_remainders = Divisor::new(num_remainders);
        indices.iter_mut().for_each(Vec::clear);
        let [quotients, remainders] = &mut *indices;
        for index in bags.indices() {
            let (quotient, remainder) = num_remainders.divide_u64(index);
            quotients.push(quotient as u32);
            remainders.push(remainder);
        }
        if combine == Combine::Mult {
            for ((part, indices), pooled) in parameters.iter().zip(&*indices).zip(&mut *pooled) {
                let num_rows = part.values().len().checked_div(dim)? as u64;
                pooled.resize(bags.len() * dim, 0.0);
                let table = view(Weights::Dense(rows_of(part)), num_rows, dim, *tier);
                table.pool(&bags.with_indices(indices), pooling, pooled, &mut []).ok()?;
            }
        }
        let [first, second] = &*pooled;
        let ranges = [0..columns[0], columns[0]..dim];
        for ((to, other), range) in gradients.iter_mut().zip([second, first]).zip(ranges) {
            to.clear();
            match combine {
                Combine::Mult => to.extend(gradient.iter().zip(other).map(|(g, x)| g * x)),
                Combine::Add => to.extend(gradient),
                Combine::Concat => {
                    for row in gradient.chunks_exact(dim) {
                        to.extend_from_slice(row.get(range.clone())?);
                    }
                }
            }
        }
        for ((part, indices), gradient) in parameters.iter_mut().zip(&*indices).zip(&*gradients) {
            step_rows(
                part,
                lookups,
                &Step { bags: &bags.with_indices(indices), gradient, ..*step },
            )?;
        }
        Some(())
    }
}
