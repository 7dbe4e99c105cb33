//! Exact retrieval: the inner products of queries with all rows of a table, and the best of them.
//!
//! The rows of a tensor train are never computed. A score is the contraction of a query with one
//! slice of each core, and rows share most of this work. The query is contracted with the slices of
//! some digits, once for each combination of these digits. The results are multiplied with the
//! products of the other slices: this one matrix product gives the scores of all rows
//! (`tensor_train.rs`). Tables of other representations are read row by row (`stream.rs`).
//!
//! A walk over the rows produces scores in runs, and `receiver.rs` writes them out or keeps the
//! best. Another walk scores the overrides. A [cache](crate::cache::RowCache) is not read, so
//! scores do not depend on what it holds.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

mod best;
mod error;
mod receiver;
mod stream;
mod tensor_train;

pub use best::{Scored, merge_top_k};
pub use error::RetrievalError;
#[doc(hidden)]
pub use tensor_train::multiply_adds;

use crate::{
    bag::{Bags, Pooling, check_bags},
    kernel::Consistent,
    repr::{IndexMap, Weights},
    table::Table,
};
use best::Heap;
use core::ops::Range;
use receiver::{Receiver, Target};

/// Which rows [`Table::top_k`] looks for.
///
/// ```
/// use ttrec::{Bags, Blob, Scored, Search, Workspace};
/// # let blob = Blob::parse(ttrec::include_blob!("../../tests/golden/two_tables.ttr"))?;
/// let item = blob.table("item")?;
/// let queries = vec![0.5; 2 * item.embedding_dim()];
/// // The best ten items for each of two users, without the items that they know.
/// let known = Bags::new(&[3u32, 42, 7], &[0, 2, 3])?;
/// let search = Search::new(10).without(known);
/// let mut best = [Scored::NONE; 2 * 10];
/// let mut workspace = Workspace::new();
/// item.top_k(&queries, &search, &mut best, workspace.for_retrieval(&item, 2))?;
/// assert!(best[..10].iter().all(|row| row.index != 42));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Search<'a> {
    k: usize,
    /// The first index, and the one after the last.
    rows: Option<[u64; 2]>,
    part: usize,
    parts: usize,
    excluded: Option<Bags<'a>>,
    bias: Option<Table<'a>>,
}

impl<'a> Search<'a> {
    /// The best `k` of all rows.
    pub fn new(k: usize) -> Self {
        Self { k, rows: None, part: 0, parts: 1, excluded: None, bias: None }
    }

    /// The best of the rows with these indices.
    #[must_use]
    pub fn in_rows(self, rows: Range<u64>) -> Self {
        Self { rows: Some([rows.start, rows.end]), ..self }
    }

    /// The best of the rows in part `part`, from 0, of `parts` parts of about the same size. Each
    /// thread can search one part; [`merge_top_k`] merges the results. Each row is in exactly one
    /// part. The parts of a tensor train are not ranges of indices: they are chosen so that threads
    /// repeat the least work.
    #[must_use]
    pub fn part(self, part: usize, parts: usize) -> Self {
        Self { part, parts, ..self }
    }

    /// The best of the rows that are not excluded. `excluded` has one bag of indices for each
    /// query, or one bag for all queries. The indices of a bag are in ascending order.
    #[must_use]
    pub fn without(self, excluded: Bags<'a>) -> Self {
        Self { excluded: Some(excluded), ..self }
    }

    /// Adds a bias to each score: the row of the same index in `bias`, a dense table of one column.
    #[must_use]
    pub fn with_bias(self, bias: Table<'a>) -> Self {
        Self { bias: Some(bias), ..self }
    }

    /// The number of rows to find for each query.
    pub fn k(&self) -> usize {
        self.k
    }
}

/// The checked rows that a walk visits.
#[derive(Clone)]
struct Scope {
    rows: Range<u64>,
    part: usize,
    parts: usize,
}

impl Scope {
    /// The part of `range` that belongs to this scope's part.
    fn part_of(&self, range: Range<u64>) -> Range<u64> {
        let len = u128::from(range.end.saturating_sub(range.start));
        let bound = |part: usize| {
            let before = len.saturating_mul(part as u128).checked_div(self.parts as u128);
            range.start.saturating_add(before.unwrap_or(0) as u64)
        };
        bound(self.part)..bound(self.part.saturating_add(1))
    }
}

impl Table<'_> {
    /// Number of f32 elements of workspace with which [`scores`](Self::scores) and
    /// [`top_k`](Self::top_k) are fastest for `num_queries` queries. It does not grow with the
    /// number of rows, and beyond a certain number of queries it does not grow with them.
    ///
    /// Both accept any workspace of at least `retrieval_workspace_len(1)` elements. The length
    /// changes the speed, never the result.
    pub fn retrieval_workspace_len(&self, num_queries: usize) -> usize {
        let dim = self.embedding_dim();
        let by_row =
            stream::workspace_len(dim, num_queries).saturating_add(self.least_workspace_len());
        let walk = match (&self.data().weights, self.data().index_map) {
            (Weights::Tt(tt), IndexMap::Identity) => tensor_train::workspace_len(tt, num_queries),
            (Weights::Projected(table), _) => stream::projected_workspace_len(table, num_queries),
            (Weights::Codebook(table), _) if stream::stores_products(table) => {
                stream::codebook_workspace_len(table, dim, num_queries)
            }
            _ => by_row,
        };
        match self.data().overrides {
            Some(_) => walk.max(by_row),
            None => walk,
        }
    }

    /// Writes the inner product of each query with each row of a range of indices. The score of
    /// query i and index `rows.start + j` is element `i * rows.len() + j` of `out`.
    ///
    /// `queries` has one query after another, `embedding_dim` elements each. `workspace` has at
    /// least [`retrieval_workspace_len(1)`](Self::retrieval_workspace_len) elements; up to
    /// `retrieval_workspace_len(n)` elements make n queries faster. The bits of a score depend only
    /// on the query, the row and the table's tier (`docs/numerics.md`).
    ///
    /// ```
    /// use ttrec::{Blob, Workspace};
    /// # let blob = Blob::parse(ttrec::include_blob!("../../tests/golden/two_tables.ttr"))?;
    /// let item = blob.table("item")?;
    /// let query = vec![0.5; item.embedding_dim()];
    /// let mut scores = [0.0; 100];
    /// let mut workspace = Workspace::new();
    /// item.scores(&query, 500..600, &mut scores, workspace.for_retrieval(&item, 1))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`RetrievalError`]: a wrong length, or a range that is not within the table. On error `out`
    /// is left unmodified.
    pub fn scores(
        &self,
        queries: &[f32],
        rows: Range<u64>,
        out: &mut [f32],
        workspace: &mut [f32],
    ) -> Result<(), RetrievalError> {
        let scope = Scope { rows, part: 0, parts: 1 };
        let num_queries = self.check_queries(queries, &scope, workspace)?;
        let len = usize::try_from(scope.rows.end.saturating_sub(scope.rows.start)).ok();
        let expected = len.and_then(|len| len.checked_mul(num_queries)).unwrap_or(usize::MAX);
        if out.len() != expected {
            return Err(RetrievalError::OutputLen { found: out.len(), expected });
        }
        let target = Target::All { out, len: len.unwrap_or(0) };
        self.visit(queries, &scope, None, None, target, workspace)
            .ok_or(RetrievalError::Inconsistent)
    }

    /// Writes the best rows of each query, best first. The search is exact: no other row of the
    /// search has a higher score, or the same score and a smaller index. `out` has a list of
    /// [`search.k()`](Search::k) rows for each query. A row whose score is NaN is left out. If
    /// there are fewer than k rows, [`Scored::NONE`] fills the rest of the list.
    ///
    /// `queries` and `workspace` are as for [`scores`](Self::scores). A score has the bits that
    /// `scores` gives it. A bias, if there is one, is then added with one rounding.
    ///
    /// # Errors
    /// [`RetrievalError`]: a wrong length, rows that the table does not have, a part that does not
    /// exist, lists of excluded indices that are not sorted, or a table of biases that does not
    /// fit. On error `out` is left unmodified.
    pub fn top_k(
        &self,
        queries: &[f32],
        search: &Search<'_>,
        out: &mut [Scored],
        workspace: &mut [f32],
    ) -> Result<(), RetrievalError> {
        let [start, end] = search.rows.unwrap_or([0, self.num_embeddings()]);
        let scope = Scope { rows: start..end, part: search.part, parts: search.parts };
        let num_queries = self.check_queries(queries, &scope, workspace)?;
        let expected = num_queries.saturating_mul(search.k);
        if out.len() != expected {
            return Err(RetrievalError::OutputLen { found: out.len(), expected });
        }
        if let Some(excluded) = &search.excluded {
            self.check_excluded(excluded, num_queries)?;
        }
        if let Some(bias) = &search.bias {
            let found = (bias.num_embeddings(), bias.embedding_dim());
            if found != (self.num_embeddings(), 1)
                || !matches!(bias.data().weights, Weights::Dense(_))
            {
                let ((num_embeddings, embedding_dim), expected) = (found, self.num_embeddings());
                return Err(RetrievalError::Bias { num_embeddings, embedding_dim, expected });
            }
        }
        out.fill(Scored::NONE);
        if search.k == 0 {
            return Ok(());
        }
        let target = Target::Best { out: &mut *out, k: search.k };
        let (excluded, bias) = (search.excluded.as_ref(), search.bias.as_ref());
        let visited = self.visit(queries, &scope, excluded, bias, target, workspace);
        out.chunks_exact_mut(search.k).for_each(|list| Heap(list).sort());
        visited.ok_or(RetrievalError::Inconsistent)
    }

    /// The number of queries.
    fn check_queries(
        &self,
        queries: &[f32],
        scope: &Scope,
        workspace: &[f32],
    ) -> Result<usize, RetrievalError> {
        let (embedding_dim, num_embeddings) = (self.embedding_dim(), self.num_embeddings());
        if queries.len().checked_rem(embedding_dim) != Some(0) {
            return Err(RetrievalError::QueriesLen { found: queries.len(), embedding_dim });
        }
        let Range { start, end } = scope.rows;
        if start > end || end > num_embeddings {
            return Err(RetrievalError::Rows { start, end, num_embeddings });
        }
        if scope.part >= scope.parts {
            return Err(RetrievalError::Part { part: scope.part, parts: scope.parts });
        }
        let expected = self.retrieval_workspace_len(1);
        if workspace.len() < expected {
            return Err(RetrievalError::WorkspaceLen { found: workspace.len(), expected });
        }
        Ok(queries.len().checked_div(embedding_dim).unwrap_or(0))
    }

    fn check_excluded(&self, lists: &Bags<'_>, num_queries: usize) -> Result<(), RetrievalError> {
        if lists.len() != num_queries && lists.len() != 1 {
            let found = lists.len();
            return Err(RetrievalError::ExcludedLists { found, expected: num_queries });
        }
        // Lists have no pooling: their weights, if there are any, do not matter.
        check_bags(lists, self.num_embeddings(), Pooling::Sum)
            .map_err(RetrievalError::ExcludedIndex)?;
        for list in 0..lists.len() {
            let mut before = 0;
            for position in lists.range(list).unwrap_or_default() {
                let index = lists.index(position).unwrap_or_default();
                if index < before {
                    return Err(RetrievalError::ExcludedOrder { position });
                }
                before = index;
            }
        }
        Ok(())
    }

    /// Visits the scores of all rows of a scope, some queries at a time.
    fn visit(
        &self,
        queries: &[f32],
        scope: &Scope,
        excluded: Option<&Bags<'_>>,
        bias: Option<&Table<'_>>,
        target: Target<'_>,
        workspace: &mut [f32],
    ) -> Consistent {
        let dim = self.embedding_dim();
        let mut group = queries.len().checked_div(dim)?.min(MAX_QUERIES);
        while group > 1 && self.retrieval_workspace_len(group) > workspace.len() {
            group = group.checked_sub(1)?;
        }
        let mut receiver = Receiver {
            rows: scope.rows.clone(),
            first_query: 0,
            overrides: None,
            excluded,
            bias,
            target,
        };
        if scope.rows.is_empty() {
            return Some(());
        }
        for queries in queries.chunks(group.checked_mul(dim)?.max(1)) {
            receiver.overrides = self.data().overrides;
            match (&self.data().weights, self.data().index_map) {
                (Weights::Tt(tt), IndexMap::Identity) => {
                    tensor_train::visit(self.tier(), tt, queries, scope, &mut receiver, workspace)?
                }
                (Weights::Projected(table), _) => {
                    stream::visit_projected(self, table, queries, scope, &mut receiver, workspace)?;
                }
                (Weights::Codebook(table), _) if stream::stores_products(table) => {
                    stream::visit_codes(self, table, queries, scope, &mut receiver, workspace)?;
                }
                _ => stream::visit_rows(self, queries, scope, &mut receiver, workspace)?,
            }
            if let Some(overrides) = &self.data().overrides {
                receiver.overrides = None;
                let ids = overrides.ids;
                stream::visit_overrides(self, ids, queries, scope, &mut receiver, workspace)?;
            }
            receiver.first_query =
                receiver.first_query.checked_add(queries.len().checked_div(dim)?)?;
        }
        Some(())
    }
}

/// The most queries that share a walk over the rows.
const MAX_QUERIES: usize = 64;
