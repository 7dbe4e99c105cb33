//! A hashed table that learns: indices share rows.

use super::{Embedding, Parameters, TrainError, lookups};
use crate::{
    Bags, Pooling, Table,
    blob::{IndexMap, TableData},
    divisor::Divisor,
    shape::check_num_embeddings,
};
use std::{boxed::Box, vec::Vec};

/// A table of fewer rows than indices: index i is row i modulo the number of rows (the hashing
/// trick: Weinberger et al., "Feature hashing for large scale multitask learning", 2009). The rows
/// are those of any other table, so of a tensor train as well. In a blob it is an
/// [`IndexMapSpec::Modulo`](crate::blob::IndexMapSpec::Modulo).
///
/// ```
/// use ttrec::{TtShape, train::{Embedding, HashedTable, Initializer, Optimizer, TtTable}};
///
/// let shape = TtShape::new(1000, &[10, 10, 10], &[2, 2, 2], &[4, 4])?;
/// let rows = TtTable::new(shape, Initializer::SampledGaussian, Optimizer::ADAGRAD, 1)?;
/// let table = HashedTable::new(Box::new(rows), 1_000_000)?;
/// assert_eq!(table.table().row_of(123_456), 456);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct HashedTable {
    rows: Box<dyn Embedding>,
    num_embeddings: u64,
    num_rows: u32,
    indices: Vec<u32>,
}

impl HashedTable {
    /// A table of `num_embeddings` indices over the rows of another.
    ///
    /// # Errors
    /// [`TrainError::Shape`]; [`TrainError::NotHashable`] if there are fewer indices than rows, or
    /// if the rows are hashed themselves, or some of them stored apart.
    pub fn new(rows: Box<dyn Embedding>, num_embeddings: u64) -> Result<Self, TrainError> {
        check_num_embeddings(num_embeddings)?;
        let table = rows.table();
        let data = *table.data();
        let is_plain = matches!(data.index_map, IndexMap::Identity) && !table.has_stored_rows();
        match u32::try_from(data.num_rows) {
            Ok(num_rows) if is_plain && data.num_rows <= num_embeddings => {
                Ok(Self { rows, num_embeddings, num_rows, indices: Vec::new() })
            }
            _ => Err(TrainError::NotHashable { num_rows: data.num_rows, num_embeddings }),
        }
    }

    /// The table whose rows they are.
    pub fn rows(&self) -> &dyn Embedding {
        &*self.rows
    }
}

impl Embedding for HashedTable {
    fn table(&self) -> Table<'_> {
        let rows = self.rows.table();
        let (num_embeddings, index_map) = (self.num_embeddings, IndexMap::Modulo);
        Table::new(TableData { num_embeddings, index_map, ..*rows.data() }).with_tier(rows.tier())
    }

    fn step(
        &mut self,
        bags: &Bags<'_>,
        pooling: Pooling,
        gradient: &[f32],
        learning_rate: f64,
    ) -> Result<(), TrainError> {
        lookups::check(&self.table(), bags, pooling, gradient)?;
        let num_rows = Divisor::new(self.num_rows);
        self.indices.clear();
        self.indices.extend(bags.indices().map(|index| num_rows.divide_u64(index).1));
        self.rows
            .step(&bags.with_indices(&self.indices), pooling, gradient, learning_rate)
    }

    fn parameters(&self) -> &[Parameters] {
        self.rows.parameters()
    }

    fn parameters_mut(&mut self) -> &mut [Parameters] {
        self.rows.parameters_mut()
    }

    fn steps(&self) -> u64 {
        self.rows.steps()
    }

    fn set_steps(&mut self, steps: u64) {
        self.rows.set_steps(steps);
    }

    fn counters(&self) -> Vec<u64> {
        self.rows.counters()
    }

    fn set_counters(&mut self, counters: &[u64]) -> Result<(), TrainError> {
        self.rows.set_counters(counters)
    }
}
