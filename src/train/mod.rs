//! Trainable tables and models (feature `train`): a forward pass on the crate's pooling engine, a
//! backward pass on its kernels, and optimisers whose step is fused with the backward pass.
//!
//! **This module is exempt from semantic versioning until version 1.0**: any release may change it.
//!
//! [`Embedding`] is a trainable table. [`TtTable`] learns the cores of a tensor train (TT-Rec,
//! MLSys 2021, sections 3 and 4). [`DenseTable`], [`QuotientRemainderTable`], [`HashedTable`] and
//! [`CodesTable`] are what tensor trains are compared with; a hashed table's rows may be a tensor
//! train's. An [`Initializer`] draws the first values of a table, and an [`Optimizer`] moves them.
//! A step takes the gradient of the pooled rows and moves the slices that the batch looked up, no
//! others.
//!
//! A table can be learned in a type other than f32 ([`TtTable::with_dtype`]). Its lookups and
//! gradients then use the values that a blob will store, so that storing the table loses nothing.
//!
//! [`BorrowedTt`] computes the gradients of a tensor train whose cores belong to the caller.
//!
//! [`Checkpointed`] is what a checkpoint has to keep of a table. [`Dlrm`] is a whole model: tables,
//! the MLPs around them ([`Linear`]), the loss ([`Objective`]), and what keeps the parameters small
//! ([`Regularization`]).
//!
//! Steps of different tables are independent, and [`Dlrm`] runs them in parallel. A large batch is
//! also divided within a step. For a seed and a [`Tier`], all results have the same bits on any
//! number of threads.

mod backward;
mod borrowed;
mod cache;
mod codes;
mod dense;
mod dlrm;
mod error;
mod features;
mod hashed;
mod initializer;
mod lookups;
mod mlp;
mod objective;
mod optimizer;
mod quotient_remainder;
mod regularization;
mod rounding;
mod state;
mod tt;

pub use borrowed::BorrowedTt;
pub use cache::CacheSpec;
pub use codes::{CodesShape, CodesTable};
pub use dense::{DenseShape, DenseTable};
pub use dlrm::{Batch, Dlrm, DlrmSpec, LearningRates};
pub use error::{Quantity, TrainError, Unsupported};
pub use hashed::HashedTable;
pub use initializer::Initializer;
pub use mlp::Linear;
pub use objective::Objective;
pub use optimizer::{Optimizer, Parameters, ValuesMut};
pub use quotient_remainder::{QuotientRemainderShape, QuotientRemainderTable};
pub use regularization::Regularization;
pub use state::Checkpointed;
pub use tt::TtTable;

use crate::{
    Bags, LookupError, Pooling, Table, Tier,
    repr::{IndexMap, TableData, Weights},
};
use state::Step;
use std::vec::Vec;

/// A trainable table. This trait is sealed: the tables of this module implement it.
pub trait Embedding: Checkpointed + Send + Sync {
    /// The table with its current values, to look rows up and to write it into a blob
    /// ([`Table::data`]). Its name is empty.
    fn table(&self) -> Table<'_>;

    /// Pools each bag into one row of `out` (`bags.len() x embedding_dim`), as [`Table::pool`]
    /// does. `workspace` grows as needed.
    ///
    /// # Errors
    /// As [`Table::pool`].
    fn forward(
        &self,
        bags: &Bags<'_>,
        pooling: Pooling,
        out: &mut [f32],
        workspace: &mut Vec<f32>,
    ) -> Result<(), LookupError> {
        let table = self.table();
        let len = table.workspace_len(bags.num_indices());
        workspace.resize(workspace.len().max(len), 0.0);
        table.pool(bags, pooling, out, workspace)
    }

    /// Takes one step of the optimiser. `gradient` (`bags.len() x embedding_dim`) is the gradient
    /// of the loss with respect to the rows that [`forward`](Self::forward) pools from `bags`.
    ///
    /// # Errors
    /// [`TrainError::Lookup`] for bags that do not suit the table, [`TrainError::Count`] for a
    /// gradient of another length, [`TrainError::Limit`] for more than 2^32 - 1 lookups or bags,
    /// [`Unsupported::MaxPooling`] and [`Unsupported::Padding`]. Nothing has changed then.
    fn step(
        &mut self,
        bags: &Bags<'_>,
        pooling: Pooling,
        gradient: &[f32],
        learning_rate: f64,
    ) -> Result<(), TrainError> {
        lookups::check(&self.table(), bags, pooling, gradient)?;
        let update = self.state_mut().next_update(learning_rate);
        let done = self.apply(&Step { bags, pooling, gradient, update });
        done.ok_or(TrainError::Lookup(LookupError::Inconsistent))
    }
}

/// A nameless table with a row for each index.
fn view(weights: Weights<'_>, num_embeddings: u64, embedding_dim: usize, tier: Tier) -> Table<'_> {
    let (num_rows, index_map) = (num_embeddings, IndexMap::Identity);
    let data = TableData {
        name: "",
        num_embeddings,
        num_rows,
        embedding_dim,
        index_map,
        weights,
        overrides: None,
    };
    Table::new(data).with_tier(tier)
}
