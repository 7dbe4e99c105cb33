//! Trainable hashed tables, whose indices share rows.

use super::{
    Embedding, TrainError, Unsupported,
    state::{Sealed, State, Step},
};
use crate::{
    Table,
    divisor::Divisor,
    kernel::Consistent,
    repr::{IndexMap, TableData},
    shape::check_num_embeddings,
};
use std::{boxed::Box, vec::Vec};

/// A trainable table with fewer rows than indices: index i has row i modulo the number of rows (the
/// hashing trick: Weinberger et al., "Feature hashing for large scale multitask learning", 2009).
/// The rows are those of another table, of a tensor train for instance. A blob stores such a table
/// with [`IndexMapSpec::Modulo`](crate::blob::IndexMapSpec::Modulo).
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
    /// A table of `num_embeddings` indices over the rows of `rows`.
    ///
    /// # Errors
    /// [`TrainError::Shape`]; [`Unsupported::HashedRows`] if there are fewer indices than rows, or
    /// if `rows` is hashed itself or has a cache.
    pub fn new(rows: Box<dyn Embedding>, num_embeddings: u64) -> Result<Self, TrainError> {
        check_num_embeddings(num_embeddings)?;
        let table = rows.table();
        let data = *table.data();
        let is_plain = matches!(data.index_map, IndexMap::Identity) && !table.has_stored_rows();
        match u32::try_from(data.num_rows) {
            Ok(num_rows) if is_plain && data.num_rows <= num_embeddings => {
                Ok(Self { rows, num_embeddings, num_rows, indices: Vec::new() })
            }
            _ => Err(TrainError::Unsupported(Unsupported::HashedRows {
                num_rows: data.num_rows,
                num_embeddings,
            })),
        }
    }

    /// The table whose rows the indices share.
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
}

impl Sealed for HashedTable {
    fn state(&self) -> &State {
        self.rows.state()
    }

    fn state_mut(&mut self) -> &mut State {
        self.rows.state_mut()
    }

    fn apply(&mut self, step: &Step<'_>) -> Consistent {
        let (bags, num_rows) = (step.bags, Divisor::new(self.num_rows));
        self.indices.clear();
        self.indices.extend(bags.indices().map(|index| num_rows.divide_u64(index).1));
        self.rows.apply(&Step { bags: &bags.with_indices(&self.indices), ..*step })
    }
}
