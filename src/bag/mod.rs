//! Bags: several lookups pooled into one row each, as `torch.nn.EmbeddingBag` does.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

mod batch;
mod dense;
mod digits;
mod error;
mod sort;

pub use crate::{index::Index, kernel::Pooling};
pub use error::{BagsError, PoolTablesError};
#[cfg(feature = "train")]
pub(crate) use {
    batch::{MAX_CHUNK, gather, step},
    digits::Digits,
    sort::sort,
};

use batch::{Output, Pool};
use dense::PoolParts;

use crate::{
    blob::{IndexMap, Rows, Weights},
    dtype::with_elements,
    isa::Tier,
    kernel::{Epilogue, PoolRows},
    table::{LookupError, Table, put_columns_in_order},
};
use core::borrow::Borrow;

/// Whether the lookups of a batch are planned together. Not on 32-bit boards without a system,
/// whose flash is dearer than the time: it takes three quarters as much code again as parsing and
/// pooling row by row.
const PLANS_BATCHES: bool = !cfg!(all(target_os = "none", target_pointer_width = "32"));

/// Bags of row indices, in `torch.nn.EmbeddingBag`'s form with `include_last_offset=True`: bag b is
/// `indices[offsets[b]..offsets[b + 1]]`.
///
/// ```
/// use ttrec::{Bags, Pooling};
/// # let blob = ttrec::Blob::parse(ttrec::include_blob!("../../tests/golden/two_tables.ttr"))?;
/// let item = blob.table("item")?;
/// let bags = Bags::new(&[3u32, 7, 7, 1], &[0, 2, 2, 4])?; // three bags, the second one empty
/// let mut out = vec![0.0; bags.len() * item.embedding_dim()];
/// item.pool(&bags, Pooling::Sum, &mut out, &mut vec![0.0; item.workspace_len()])?;
/// # assert!(out[..item.embedding_dim()].iter().any(|&x| x != 0.0));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Bags<'a, I = u32> {
    indices: &'a [I],
    offsets: &'a [I],
    per_sample_weights: Option<&'a [f32]>,
    sequential: bool,
}

impl<'a, I: Index> Bags<'a, I> {
    /// `offsets.len() - 1` bags of `indices`. Offsets start at 0, never fall, and end at
    /// `indices.len()`.
    ///
    /// # Errors
    /// [`BagsError::OffsetsEmpty`] or [`BagsError::Offsets`].
    pub fn new(indices: &'a [I], offsets: &'a [I]) -> Result<Self, BagsError> {
        let num_indices = indices.len();
        let wrong = |position, found| BagsError::Offsets { position, found, num_indices };
        let mut floor = 0;
        for (position, offset) in offsets.iter().map(|offset| offset.to_u64()).enumerate() {
            if offset < floor || offset > num_indices as u64 || (position == 0 && offset != 0) {
                return Err(wrong(position, offset));
            }
            floor = offset;
        }
        let last = offsets.len().checked_sub(1).ok_or(BagsError::OffsetsEmpty)?;
        if floor != num_indices as u64 {
            return Err(wrong(last, floor));
        }
        Ok(Self { indices, offsets, per_sample_weights: None, sequential: false })
    }

    /// The same bags with one weight per index, for [`Pooling::Sum`].
    ///
    /// # Errors
    /// [`BagsError::WeightsLen`].
    pub fn with_per_sample_weights(self, weights: &'a [f32]) -> Result<Self, BagsError> {
        if weights.len() != self.indices.len() {
            return Err(BagsError::WeightsLen {
                found: weights.len(),
                expected: self.indices.len(),
            });
        }
        Ok(Self { per_sample_weights: Some(weights), ..self })
    }

    /// The same bags, whose rows are to be added one by one in the order of their indices, as a
    /// plain loop would: slower, but whatever others the table stores apart, and without
    /// looking into a [cache](crate::cache).
    #[must_use]
    pub fn sequential(self) -> Self {
        Self { sequential: true, ..self }
    }

    /// Number of bags.
    pub fn len(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// Whether there are no bags.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All indices, bag after bag.
    pub fn indices(&self) -> &'a [I] {
        self.indices
    }

    /// Where each bag begins among the [`indices`](Self::indices), and the end of the last: one
    /// more than bags.
    pub fn offsets(&self) -> &'a [I] {
        self.offsets
    }

    /// The weight of each index, if there are any.
    pub fn per_sample_weights(&self) -> Option<&'a [f32]> {
        self.per_sample_weights
    }

    /// Some of the bags.
    pub(crate) fn slice(&self, bags: core::ops::Range<usize>) -> Option<Self> {
        let offsets = self.offsets.get(bags.start..=bags.end)?;
        Some(Self { offsets, ..*self })
    }

    /// The same bags of other indices, as many.
    #[cfg(feature = "train")]
    pub(crate) fn with_indices<'b>(&self, indices: &'b [I]) -> Bags<'b, I>
    where
        'a: 'b,
    {
        debug_assert_eq!(indices.len(), self.indices.len());
        Bags { indices, ..*self }
    }

    /// A bag's positions in `indices`.
    pub(crate) fn range(&self, bag: usize) -> Option<core::ops::Range<usize>> {
        let [start, end] = self.offsets.get(bag..)?.first_chunk()?;
        Some(start.to_usize()?..end.to_usize()?)
    }
}

impl Table<'_> {
    /// Pools each bag into one row of `out`, `bags.len() x embedding_dim` elements. `workspace`
    /// holds at least [`workspace_len`](Self::workspace_len) elements; with up to
    /// [`batch_workspace_len`](Self::batch_workspace_len) of them, bags get faster unless the table
    /// is dense. (On 32-bit boards without an operating system a tensor train's do not: there
    /// rows are taken one by one, which needs less code.)
    ///
    /// Bags of a quotient-remainder table are pooled as DLRM pools them: the two parts apart, each
    /// with the weights if there are any, and then combined. Where the parts are multiplied,
    /// that is another thing than the sum of the rows, but for bags of one index.
    ///
    /// The order in which a bag's rows are added is chosen by the bag alone (`docs/numerics.md`),
    /// so its bits depend neither on the batch that it came in nor on the workspace.
    ///
    /// # Errors
    /// [`LookupError`]: an index out of range (all are checked first), a wrong output or workspace length, or weights with
    /// another pooling than sum. `out` is then as it was.
    pub fn pool<I: Index>(
        &self,
        bags: &Bags<'_, I>,
        pooling: Pooling,
        out: &mut [f32],
        workspace: &mut [f32],
    ) -> Result<(), LookupError> {
        let embedding_dim = self.embedding_dim();
        self.check_buffers(out.len(), bags.len().saturating_mul(embedding_dim), workspace.len())?;
        self.check_bags(bags, pooling)?;
        let mut out = Output { rows: out, stride: embedding_dim, first: 0, embedding_dim };
        self.pool_into(bags, pooling, &mut out, workspace)
            .ok_or(LookupError::Inconsistent)
    }

    /// The f32 elements of workspace with which [`pool`](Self::pool) is fastest, if all bags together
    /// have `num_lookups` indices: at least [`workspace_len`](Self::workspace_len). It stops
    /// growing at some 16,000 lookups.
    pub fn batch_workspace_len(&self, num_lookups: usize) -> usize {
        match &self.data().weights {
            Weights::Dense(_) => 0,
            Weights::Tt(tt) if PLANS_BATCHES => batch::best_workspace_len(&tt.shape, num_lookups),
            Weights::Tt(_) => self.workspace_len(),
            Weights::Projected(table) => dense::best_workspace_len(table.rank(), num_lookups),
            Weights::QuotientRemainder(table) => {
                let len = dense::best_workspace_len(table.remainders.embedding_dim, num_lookups);
                len.max(self.workspace_len())
            }
        }
    }

    /// A workspace for batches of up to `num_lookups` indices:
    /// [`batch_workspace_len`](Self::batch_workspace_len) zeros on the heap.
    #[cfg(feature = "alloc")]
    pub fn batch_workspace(&self, num_lookups: usize) -> alloc::vec::Vec<f32> {
        alloc::vec![0.0; self.batch_workspace_len(num_lookups)]
    }

    /// Refuses indices out of range, and weights with another pooling than sum.
    pub(crate) fn check_bags<I: Index>(
        &self,
        bags: &Bags<'_, I>,
        pooling: Pooling,
    ) -> Result<(), LookupError> {
        check_bags(bags, self.num_embeddings(), pooling)
    }

    /// Pools checked bags: the row of bag b goes to the `embedding_dim` elements of `rows` from `b
    /// * stride + first` on.
    pub(crate) fn pool_strided<I: Index>(
        &self,
        bags: &Bags<'_, I>,
        pooling: Pooling,
        rows: &mut [f32],
        stride: usize,
        first: usize,
        workspace: &mut [f32],
    ) -> Option<()> {
        let mut out = Output { rows, stride, first, embedding_dim: self.embedding_dim() };
        self.pool_into(bags, pooling, &mut out, workspace)
    }

    /// Pools checked bags. `None` if the view contradicts itself.
    fn pool_into<I: Index>(
        &self,
        bags: &Bags<'_, I>,
        pooling: Pooling,
        out: &mut Output<'_>,
        workspace: &mut [f32],
    ) -> Option<()> {
        self.pool_stored(bags, pooling, out, workspace)?;
        // Once for each bag, whatever is in it.
        match self.columns_to_order() {
            None => Some(()),
            Some(shape) => (0..bags.len())
                .try_for_each(|bag| put_columns_in_order(shape, out.row(bag)?, workspace)),
        }
    }

    /// The same with rows as they are stored, by whichever way is the fastest for this table.
    fn pool_stored<I: Index>(
        &self,
        bags: &Bags<'_, I>,
        pooling: Pooling,
        out: &mut Output<'_>,
        workspace: &mut [f32],
    ) -> Option<()> {
        if bags.is_empty() {
            return Some(());
        }
        if bags.sequential && self.has_cache() {
            return self.without_cache().pool_stored(bags, pooling, out, workspace);
        }
        match &self.data().weights {
            // The scalar tier would rather be small than fast.
            Weights::Dense(rows) if self.data().overrides.is_none() && !self.tier().is_scalar() => {
                match self.data().index_map {
                    IndexMap::Identity => pool_dense(
                        self.tier(),
                        rows,
                        bags,
                        pooling,
                        out.rows.get_mut(out.first..)?,
                        out.stride,
                    ),
                    _ => PoolParts::new(self, bags, pooling).pool_mapped(rows, out),
                }
            }
            Weights::Projected(table) if !bags.sequential && pooling != Pooling::Max => {
                PoolParts::new(self, bags, Pooling::Sum).pool_projected(
                    table,
                    pooling == Pooling::Mean,
                    out,
                    workspace,
                )
            }
            Weights::QuotientRemainder(table) => {
                PoolParts::new(self, bags, pooling).pool_quotient_remainder(table, out, workspace)
            }
            Weights::Tt(tt)
                if PLANS_BATCHES
                    && !bags.sequential
                    && pooling != Pooling::Max
                    && bags.indices.len() > 1 =>
            {
                match Pool::new(self, tt, bags) {
                    Some(pool) => pool.pool(bags, pooling == Pooling::Mean, out, workspace),
                    None => self.pool_in_order(bags, pooling, out, workspace),
                }
            }
            _ => self.pool_in_order(bags, pooling, out, workspace),
        }
    }

    /// Pools bags row by row, in the order of their indices.
    fn pool_in_order<I: Index>(
        &self,
        bags: &Bags<'_, I>,
        pooling: Pooling,
        out: &mut Output<'_>,
        workspace: &mut [f32],
    ) -> Option<()> {
        (0..bags.len()).try_for_each(|bag| {
            pool_bag(bags, bag, pooling, out.row(bag)?, |index, out, epilogue| {
                self.put_row(index, out, workspace, epilogue)?;
                Some(true)
            })
        })
    }
}

/// Refuses indices that a table of so many does not have, and weights with another pooling than
/// sum.
pub(crate) fn check_bags<I: Index>(
    bags: &Bags<'_, I>,
    num_embeddings: u64,
    pooling: Pooling,
) -> Result<(), LookupError> {
    if bags.per_sample_weights.is_some() && pooling != Pooling::Sum {
        return Err(LookupError::WeightsPooling);
    }
    match bags.indices.iter().position(|index| index.to_u64() >= num_embeddings) {
        Some(position) => {
            let index = bags.indices.get(position).map_or(0, |index| index.to_u64());
            Err(LookupError::IndexOutOfRange { position, index, num_embeddings })
        }
        None => Ok(()),
    }
}

/// Pools one bag row by row, in the order of its indices: `put` gives the row of an index to an
/// epilogue, or says that it is not part of the bag.
fn pool_bag<I: Index>(
    bags: &Bags<'_, I>,
    bag: usize,
    pooling: Pooling,
    out: &mut [f32],
    mut put: impl FnMut(u64, &mut [f32], Epilogue<'_>) -> Option<bool>,
) -> Option<()> {
    out.fill(0.0);
    let mut count = 0usize;
    for position in bags.range(bag)? {
        let epilogue = match (pooling, bags.per_sample_weights) {
            (Pooling::Max, _) if count == 0 => Epilogue::Store,
            (Pooling::Max, _) => Epilogue::MaxScaled(1.0),
            (_, Some(weights)) => Epilogue::AddScaled(*weights.get(position)?),
            (_, None) => Epilogue::AddScaled(1.0),
        };
        if put(bags.indices.get(position)?.to_u64(), out, epilogue)? {
            count = count.saturating_add(1);
        }
    }
    if pooling == Pooling::Mean {
        divide(out, count);
    }
    Some(())
}

/// Pools bags of dense rows that are all there, the next bag's `out_stride` further.
fn pool_dense<I: Index>(
    tier: Tier,
    rows: &Rows<'_>,
    bags: &Bags<'_, I>,
    pooling: Pooling,
    out: &mut [f32],
    out_stride: usize,
) -> Option<()> {
    with_elements!(rows.elements, stored => tier.run(PoolRows {
        stored,
        row_stride: rows.row_stride(),
        embedding_dim: rows.embedding_dim,
        indices: bags.indices,
        offsets: bags.offsets,
        weights: bags.per_sample_weights,
        pooling,
        out,
        out_stride,
    }))
}

/// Pools one list of bags per table, as a ranker's sample has one bag per feature: bag b of every
/// table goes to row b of `out`, `num_bags x (sum of embedding_dim)`, those of the first table
/// first (the layout of TorchRec's `KeyedTensor`).
///
/// Tables (or references to them) may differ in everything but the number of bags. `workspace`
/// holds as much as the one that needs the most ([`Table::workspace_len`], or better
/// [`Table::batch_workspace_len`]). Tables are `Sync`: a caller may also split them over threads.
///
/// ```
/// use ttrec::{Bags, Pooling, bag::pool_tables};
/// # let blob = ttrec::Blob::parse(ttrec::include_blob!("../../tests/golden/two_tables.ttr"))?;
/// let (item, user) = (blob.table("item")?, blob.table("user")?);
/// let two = Bags::new(&[3u32, 7, 12], &[0, 2, 3])?;
/// let width = item.embedding_dim() + user.embedding_dim();
/// let mut out = vec![0.0; two.len() * width];
/// let mut workspace = vec![0.0; item.workspace_len().max(user.workspace_len())];
/// pool_tables(&[(item, two), (user, two)], Pooling::Sum, &mut out, &mut workspace)?;
/// # let mut row = vec![0.0; user.embedding_dim()];
/// # user.lookup(12, &mut row, &mut workspace)?;
/// assert_eq!(out[2 * width - user.embedding_dim()..], row);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`PoolTablesError`]: whatever [`Table::pool`] would refuse, and different numbers of bags. `out` is then as it was.
pub fn pool_tables<'t, T: Borrow<Table<'t>>, I: Index>(
    tables: &[(T, Bags<'_, I>)],
    pooling: Pooling,
    out: &mut [f32],
    workspace: &mut [f32],
) -> Result<(), PoolTablesError> {
    let at = |table| move |error| PoolTablesError { table: Some(table), error };
    let num_bags = tables.first().map_or(0, |(_, bags)| bags.len());
    let stride = tables
        .iter()
        .fold(0usize, |width, (table, _)| width.saturating_add(table.borrow().embedding_dim()));
    let expected = num_bags.saturating_mul(stride);
    if out.len() != expected {
        let error = LookupError::OutputLen { found: out.len(), expected };
        return Err(PoolTablesError { table: None, error });
    }
    for (position, (table, bags)) in tables.iter().enumerate() {
        let table = table.borrow();
        if bags.len() != num_bags {
            return Err(at(position)(LookupError::NumBags {
                found: bags.len(),
                expected: num_bags,
            }));
        }
        table.check_buffers(0, 0, workspace.len()).map_err(at(position))?;
        table.check_bags(bags, pooling).map_err(at(position))?;
    }
    let mut first = 0usize;
    for (position, (table, bags)) in tables.iter().enumerate() {
        let table = table.borrow();
        let embedding_dim = table.embedding_dim();
        let mut out = Output { rows: &mut *out, stride, first, embedding_dim };
        table
            .pool_into(bags, pooling, &mut out, workspace)
            .ok_or(at(position)(LookupError::Inconsistent))?;
        first = first.saturating_add(embedding_dim);
    }
    Ok(())
}

/// Makes a sum of `count` rows their mean.
fn divide(sums: &mut [f32], count: usize) {
    if count > 1 {
        sums.iter_mut().for_each(|sum| *sum /= count as f32);
    }
}
