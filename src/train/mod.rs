//! Tables that learn (feature `train`): a forward pass on the crate's batch engine, a backward pass
//! on its kernels, and an optimiser's step fused with it.
//!
//! [`Embedding`] is what a trainer holds, one for each feature: [`TtTable`], whose cores are
//! learned (TT-Rec, MLSys 2021, sections 3 and 4), and what it is compared with: [`DenseTable`],
//! [`QuotientRemainderTable`], and [`HashedTable`], whose rows may be a tensor train's. A step
//! takes the gradient of the pooled rows, as the layers above hand it down, and moves the slices
//! that the batch has touched ([`Optimizer`]), and no others. Where a table begins is an
//! [`Initializer`]'s choice.
//!
//! [`Dlrm`] is a whole model: tables, the MLPs around them ([`Linear`]), and the loss.
//!
//! Steps of different tables are independent: [`Dlrm`] runs them in parallel. A large batch is
//! besides divided within a step. Everything is the same, bit for bit, for a seed and a tier, on
//! any number of threads.

mod backward;
mod cache;
mod dense;
mod dlrm;
mod error;
mod hashed;
mod initializer;
mod lookups;
mod mlp;
mod optimizer;
mod quotient_remainder;
mod tt;

pub use cache::CacheSpec;
pub use dense::DenseTable;
pub use dlrm::{Batch, Dlrm, DlrmSpec, Feature, LearningRates};
pub use error::TrainError;
pub use hashed::HashedTable;
pub use initializer::Initializer;
pub use mlp::Linear;
pub use optimizer::{Optimizer, Parameters};
pub use quotient_remainder::QuotientRemainderTable;
pub use tt::TtTable;

use crate::{
    Bags, LookupError, Pooling, Table, Tier,
    blob::{IndexMap, TableData, Weights},
};
use std::vec::Vec;

/// A table that learns.
pub trait Embedding: Send + Sync {
    /// The table as it is now: to look rows up, and to be written into a blob ([`Table::data`]).
    /// Its name is empty.
    fn table(&self) -> Table<'_>;

    /// Pools each bag into one row of `out`, as [`Table::pool`] does. `workspace` grows as needed.
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

    /// One step of the optimiser: `gradient`, `bags.len() x embedding_dim` elements, is that of the
    /// rows which [`forward`](Self::forward) pooled from the same bags.
    ///
    /// # Errors
    /// [`TrainError`]: bags that do not suit the table, a gradient of another length, or max pooling. Nothing has changed
    /// then.
    fn step(
        &mut self,
        bags: &Bags<'_>,
        pooling: Pooling,
        gradient: &[f32],
        learning_rate: f64,
    ) -> Result<(), TrainError>;

    /// What is learned, with the state of the optimiser: one for each core (and for the rows of a
    /// cache, if there is one), for each part of a quotient-remainder table, or for all rows of
    /// a dense one.
    fn parameters(&self) -> &[Parameters];

    /// The same, to be restored from a checkpoint.
    fn parameters_mut(&mut self) -> &mut [Parameters];

    /// How many steps have been taken: a part of the state of [`Optimizer::Adam`].
    fn steps(&self) -> u64;

    /// The same, to be restored from a checkpoint.
    fn set_steps(&mut self, steps: u64);

    /// Rows that are learned beside what [`table`](Self::table)'s [`data`](Table::data) holds:
    /// their ids, ascending, and the position of each among the slices of the last of the
    /// [`parameters`](Self::parameters). A blob stores them apart
    /// ([`OverridesSpec`](crate::blob::OverridesSpec)). None but of a table with a cache.
    fn rows_apart(&self) -> Vec<(u64, usize)> {
        Vec::new()
    }

    /// What a checkpoint keeps besides: nothing but of a table that counts what it is asked for.
    fn counters(&self) -> Vec<u64> {
        Vec::new()
    }

    /// The same, to be restored from a checkpoint.
    ///
    /// # Errors
    /// [`TrainError::Counters`]: such as these are not a table's of this kind and size. Nothing has changed then.
    fn set_counters(&mut self, counters: &[u64]) -> Result<(), TrainError> {
        if counters.is_empty() {
            Ok(())
        } else {
            Err(TrainError::Counters)
        }
    }
}

/// A nameless table with a row of its own for each index.
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
