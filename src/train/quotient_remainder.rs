//! A quotient-remainder table that learns: rows made of two.

use super::{
    Embedding, Initializer, Optimizer, Parameters, TrainError,
    dense::{self, rows_of, step_rows},
    lookups::{self, Lookups},
    optimizer::{Update, check_values},
    view,
};
use crate::{
    Bags, LookupError, Pooling, Table, Tier,
    blob::{Combine, QuotientRemainder, Weights},
    divisor::Divisor,
    shape::check_num_embeddings,
};
use std::vec::Vec;

/// A quotient-remainder table that learns (Shi et al., "Compositional embeddings using
/// complementary partitions", 2019): row i is made of quotient row `i / num_remainders` and
/// remainder row `i mod num_remainders`. As in DLRM, a bag's quotient rows are pooled, and its
/// remainder rows, and then the two are combined. Each row of either part is a slice to the
/// [`Optimizer`].
///
/// ```
/// use ttrec::{blob::Combine, train::{Embedding, Initializer, Optimizer, QuotientRemainderTable}};
///
/// let (initializer, optimizer) = (Initializer::Uniform, Optimizer::ADAGRAD);
/// let table = QuotientRemainderTable::new(1_000_000, 1000, [8, 8], Combine::Mult, initializer, optimizer, 1)?;
/// assert_eq!(table.parameters().iter().map(|part| part.values().len()).sum::<usize>(), 2 * 1000 * 8);
/// # Ok::<(), ttrec::train::TrainError>(())
/// ```
#[derive(Debug)]
pub struct QuotientRemainderTable {
    num_embeddings: u64,
    num_remainders: u32,
    combine: Combine,
    embedding_dim: usize,
    /// Quotient rows, and remainder rows.
    parts: [Parameters; 2],
    optimizer: Optimizer,
    steps: u64,
    tier: Tier,
    buffers: Buffers,
}

/// What is kept from step to step, for its memory.
#[derive(Debug, Default)]
struct Buffers {
    lookups: Lookups,
    /// The quotients of the indices, and the remainders; so of all that follows.
    indices: [Vec<u32>; 2],
    pooled: [Vec<f32>; 2],
    gradients: [Vec<f32>; 2],
}

impl QuotientRemainderTable {
    /// A table of drawn rows: the same ones for the same seed. Elements of the rows that two make
    /// have the variance of a dense table's. `columns` are those of the quotient rows and of
    /// the remainder rows: the same, unless they are put end to end.
    ///
    /// # Errors
    /// [`TrainError::Shape`] or [`TrainError::TooManyRows`].
    pub fn new(
        num_embeddings: u64,
        num_remainders: u32,
        columns: [usize; 2],
        combine: Combine,
        initializer: Initializer,
        optimizer: Optimizer,
        seed: u64,
    ) -> Result<Self, TrainError> {
        let (lens, _) = check(num_embeddings, num_remainders, columns, combine)?;
        let parts = initializer.parts(num_embeddings, combine, lens, seed);
        Self::from_parts(num_embeddings, num_remainders, columns, combine, parts, optimizer)
    }

    /// A table of given quotient rows and remainder rows, one after another.
    ///
    /// # Errors
    /// [`TrainError::Shape`], [`TrainError::TooManyRows`] or [`TrainError::ValuesLen`], whose core
    /// is the part.
    pub fn from_parts(
        num_embeddings: u64,
        num_remainders: u32,
        columns: [usize; 2],
        combine: Combine,
        parts: [Vec<f32>; 2],
        optimizer: Optimizer,
    ) -> Result<Self, TrainError> {
        let (lens, embedding_dim) = check(num_embeddings, num_remainders, columns, combine)?;
        for (part, (values, len)) in parts.iter().zip(lens).enumerate() {
            check_values(part, values, len as u64)?;
        }
        let [quotients, remainders] = parts;
        let [first, second] = columns;
        Ok(Self {
            num_embeddings,
            num_remainders,
            combine,
            embedding_dim,
            parts: [
                Parameters::new(quotients, first, optimizer),
                Parameters::new(remainders, second, optimizer),
            ],
            optimizer,
            steps: 0,
            tier: Tier::best(),
            buffers: Buffers::default(),
        })
    }

    /// The same table, with the instructions of `tier`.
    #[must_use]
    pub fn with_tier(self, tier: Tier) -> Self {
        Self { tier, ..self }
    }

    fn apply(
        &mut self,
        bags: &Bags<'_>,
        pooling: Pooling,
        gradient: &[f32],
        update: &Update,
    ) -> Option<()> {
        let Buffers { lookups, indices, pooled, gradients } = &mut self.buffers;
        let (num_remainders, dim) = (Divisor::new(self.num_remainders), self.embedding_dim);
        indices.iter_mut().for_each(Vec::clear);
        let [quotients, remainders] = &mut *indices;
        for index in bags.indices() {
            let (quotient, remainder) = num_remainders.divide_u64(index);
            quotients.push(quotient as u32);
            remainders.push(remainder);
        }
        if self.combine == Combine::Mult {
            for ((part, indices), pooled) in self.parts.iter().zip(&*indices).zip(&mut *pooled) {
                let num_rows = part.values().len().checked_div(dim)? as u64;
                pooled.resize(bags.len() * dim, 0.0);
                let table = view(Weights::Dense(rows_of(part)), num_rows, dim, self.tier);
                table.pool(&bags.with_indices(indices), pooling, pooled, &mut []).ok()?;
            }
        }
        let first_columns = self.parts[0].slice_len();
        // What each part's pooled rows are multiplied by: those of the other.
        let [first, second] = &*pooled;
        for (at, (to, by)) in gradients.iter_mut().zip([second, first]).enumerate() {
            to.clear();
            match self.combine {
                Combine::Mult => to.extend(gradient.iter().zip(by).map(|(g, x)| g * x)),
                Combine::Add => to.extend(gradient),
                Combine::Concat => {
                    let columns = if at == 0 { 0..first_columns } else { first_columns..dim };
                    for row in gradient.chunks_exact(dim) {
                        to.extend_from_slice(row.get(columns.clone())?);
                    }
                }
            }
        }
        for ((part, indices), gradient) in self.parts.iter_mut().zip(&*indices).zip(&*gradients) {
            step_rows(part, lookups, &bags.with_indices(indices), pooling, gradient, update)?;
        }
        Some(())
    }
}

/// Elements of both parts, and columns of the rows that they make.
fn check(
    num_embeddings: u64,
    num_remainders: u32,
    columns: [usize; 2],
    combine: Combine,
) -> Result<([usize; 2], usize), TrainError> {
    check_num_embeddings(num_embeddings)?;
    let (num_quotients, embedding_dim) = combine.check(num_embeddings, num_remainders, columns)?;
    let [first, second] = columns;
    let lens =
        [dense::check(num_quotients.into(), first)?, dense::check(num_remainders.into(), second)?];
    Ok((lens, embedding_dim))
}

impl Embedding for QuotientRemainderTable {
    fn table(&self) -> Table<'_> {
        let [quotients, remainders] = &self.parts;
        let weights = Weights::QuotientRemainder(QuotientRemainder {
            quotients: rows_of(quotients),
            remainders: rows_of(remainders),
            num_remainders: self.num_remainders,
            combine: self.combine,
        });
        view(weights, self.num_embeddings, self.embedding_dim, self.tier)
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
        self.apply(bags, pooling, gradient, &update)
            .ok_or(TrainError::Lookup(LookupError::Inconsistent))
    }

    fn parameters(&self) -> &[Parameters] {
        &self.parts
    }

    fn parameters_mut(&mut self) -> &mut [Parameters] {
        &mut self.parts
    }

    fn steps(&self) -> u64 {
        self.steps
    }

    fn set_steps(&mut self, steps: u64) {
        self.steps = steps;
    }
}
