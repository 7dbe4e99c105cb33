//! A workspace on the heap.

use crate::{dlrm::Ranker, table::Table};
use alloc::vec::Vec;
use core::ops::{Deref, DerefMut};

/// Scratch memory for lookups, bags and scores, on the heap. It grows to the largest length that
/// was asked for and never shrinks, so that one workspace for each thread serves every table, and
/// allocates nothing after the largest request.
///
/// ```
/// use ttrec::{Bags, Blob, Pooling, Workspace};
/// # let blob = Blob::parse(ttrec::include_blob!("../tests/golden/two_tables.ttr"))?;
/// # let bags = Bags::new(&[3u32, 7, 1], &[0, 2, 3])?;
/// let mut workspace = Workspace::new();
/// for table in blob.tables() {
///     let mut out = vec![0.0; bags.len() * table.embedding_dim()];
///     let workspace = workspace.for_table(&table, bags.num_indices());
///     table.pool(&bags, Pooling::Sum, &mut out, workspace)?;
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Without an allocator any `&mut [f32]` is a workspace: see [`Table::workspace_len`].
#[derive(Clone, Debug, Default)]
pub struct Workspace(Vec<f32>);

impl Workspace {
    /// An empty workspace, which has not allocated yet.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// The first [`Table::workspace_len(num_lookups)`](Table::workspace_len) elements: enough for
    /// lookups, and the fastest length for bags of `num_lookups` indices together.
    pub fn for_table(&mut self, table: &Table<'_>, num_lookups: usize) -> &mut [f32] {
        self.first(table.workspace_len(num_lookups))
    }

    /// The first [`Ranker::workspace_len(num_samples)`](Ranker::workspace_len) elements: enough for
    /// any number of samples, and the fastest length for `num_samples` of them.
    pub fn for_ranker(&mut self, ranker: &Ranker<'_>, num_samples: usize) -> &mut [f32] {
        self.first(ranker.workspace_len(num_samples))
    }

    /// The first [`Table::retrieval_workspace_len(num_queries)`](Table::retrieval_workspace_len)
    /// elements: enough for any number of queries, and the fastest length for `num_queries` of
    /// them.
    pub fn for_retrieval(&mut self, table: &Table<'_>, num_queries: usize) -> &mut [f32] {
        self.first(table.retrieval_workspace_len(num_queries))
    }

    fn first(&mut self, len: usize) -> &mut [f32] {
        if self.0.len() < len {
            self.0.resize(len, 0.0);
        }
        &mut self.0[..len]
    }
}

impl Deref for Workspace {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.0
    }
}

impl DerefMut for Workspace {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.0
    }
}
