//! Bags: several lookups pooled into one row each, as `torch.nn.EmbeddingBag` does.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

mod chain;
mod digits;
mod error;
mod parts;
mod small_rows;
mod sort;

pub use crate::index::Index;
pub use crate::pooling::Pooling;
pub use error::{BagsError, PoolTablesError};
#[cfg(feature = "train")]
pub(crate) use {
    chain::{MAX_CHUNK, gather, step},
    digits::Digits,
    sort::sort,
};

use chain::{Output, Pool};
use parts::{PoolParts, Stored};

use crate::{
    dtype::with_elements,
    index::{Indices, Integer, with_integers},
    isa::{PREFERS_SMALL_CODE, Tier},
    kernel::{Consistent, Epilogue, PoolRows, TakeRows, takes_rows},
    repr::{IndexMap, Rows, Weights},
    table::{LookupError, Table, reorder_columns},
};
use core::borrow::Borrow;

/// Whether the lookups of a batch are multiplied out together. `chain` would add three quarters to
/// the code that parsing and pooling row by row need.
const PLANS_BATCHES: bool = !PREFERS_SMALL_CODE;

/// Bags of row indices, in `torch.nn.EmbeddingBag`'s form with `include_last_offset=True`: bag b is
/// `indices[offsets[b]..offsets[b + 1]]`.
///
/// ```
/// use ttrec::{Bags, Pooling};
/// # let blob = ttrec::Blob::parse(ttrec::include_blob!("../../tests/golden/two_tables.ttr"))?;
/// let item = blob.table("item")?;
/// let bags = Bags::new(&[3u32, 7, 7, 1], &[0, 2, 2, 4])?; // three bags, the second one empty
/// let mut out = vec![0.0; bags.len() * item.embedding_dim()];
/// item.pool(&bags, Pooling::Sum, &mut out, &mut vec![0.0; item.workspace_len(1)])?;
/// # assert!(out[..item.embedding_dim()].iter().any(|&x| x != 0.0));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Bags<'a> {
    indices: Indices<'a>,
    offsets: Indices<'a>,
    /// Whether the caller's integer type is signed.
    is_signed: bool,
    per_sample_weights: Option<&'a [f32]>,
    padding: Padding,
    sequential: bool,
}

/// The index that is left out of the bags. It is aligned like the other fields of [`Bags`] on a
/// 32-bit board, where copying larger bags would take more code.
#[derive(Clone, Copy, Debug)]
#[repr(C, packed(4))]
struct Padding(u64);

impl Padding {
    /// No padding: an index that no table has. So one comparison finds padding, even if there is
    /// none.
    const NONE: Self = Self(u64::MAX);
}

impl<'a> Bags<'a> {
    /// `offsets.len() - 1` bags of `indices`. Offsets start at 0, never fall, and end at
    /// `indices.len()`.
    ///
    /// # Errors
    /// [`BagsError::OffsetsEmpty`], [`BagsError::NegativeOffset`] or [`BagsError::Offsets`].
    #[inline]
    pub fn new<I: Index>(indices: &'a [I], offsets: &'a [I]) -> Result<Self, BagsError> {
        let (indices, offsets) = (I::erase(indices), I::erase(offsets));
        check_offsets(offsets, indices.len(), I::IS_SIGNED)?;
        Ok(Self {
            indices,
            offsets,
            is_signed: I::IS_SIGNED,
            per_sample_weights: None,
            padding: Padding::NONE,
            sequential: false,
        })
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

    /// The same bags without the index `padding_idx`, which `torch.nn.EmbeddingBag` leaves out in
    /// the same way. Its row is not added to a sum, not compared for a maximum, and not counted in
    /// a mean; its weights are not read. A bag that has no other index is pooled as an empty bag. A
    /// bag with an index that the table does not have is refused, even if that index is
    /// `padding_idx`.
    ///
    /// The pooled rows have the same bits as those of bags that do not contain the index.
    #[must_use]
    pub fn with_padding_idx(self, padding_idx: u64) -> Self {
        Self { padding: Padding(padding_idx), ..self }
    }

    /// The same bags, whose rows are added one by one in the order of their indices, as a plain
    /// loop would add them. That is slower, but the order is the same whichever rows have an
    /// override, and a [cache](crate::cache) is not read.
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

    /// Number of indices in all bags together, padding included.
    pub fn num_indices(&self) -> usize {
        self.indices.len()
    }

    /// All indices, padding included, bag after bag. A negative index, which every table refuses,
    /// becomes the unsigned integer of the same bits.
    pub fn indices(&self) -> impl ExactSizeIterator<Item = u64> + Clone + 'a {
        self.indices.iter()
    }

    /// The position in [`indices`](Self::indices) where each bag begins, and where the last one
    /// ends: one more than there are bags.
    pub fn offsets(&self) -> impl ExactSizeIterator<Item = u64> + Clone + 'a {
        self.offsets.iter()
    }

    /// The weight of each index, if there are any.
    pub fn per_sample_weights(&self) -> Option<&'a [f32]> {
        self.per_sample_weights
    }

    /// The index at a position in [`indices`](Self::indices).
    pub(crate) fn index(&self, position: usize) -> Option<u64> {
        self.indices.get(position)
    }

    /// Some of the bags.
    pub(crate) fn slice(&self, bags: core::ops::Range<usize>) -> Option<Self> {
        let offsets = self.offsets.slice(bags.start..bags.end.checked_add(1)?)?;
        Some(Self { offsets, ..*self })
    }

    /// The same bags with other indices, of the same number.
    #[cfg(feature = "train")]
    pub(crate) fn with_indices<'b>(&self, indices: &'b [u32]) -> Bags<'b>
    where
        'a: 'b,
    {
        debug_assert_eq!(indices.len(), self.indices.len());
        Bags { indices: Indices::U32(indices), is_signed: false, ..*self }
    }

    /// A bag's positions in `indices`.
    pub(crate) fn range(&self, bag: usize) -> Option<core::ops::Range<usize>> {
        self.offsets.range(bag)
    }

    /// Whether an index is left out.
    #[inline(always)]
    fn is_padding(&self, index: u64) -> bool {
        index == { self.padding.0 }
    }

    /// Whether there may be indices that are left out.
    pub(crate) fn has_padding(&self) -> bool {
        !self.is_padding(Padding::NONE.0)
    }

    /// Whether every bag has one index.
    fn have_one_index_each(&self) -> bool {
        // Offsets start at 0, never fall and end at the number of indices.
        self.indices.len() == self.len()
            && with_integers!(self.offsets, offsets => {
                let numbers = offsets.iter().zip(0u64..);
                numbers.fold(true, |so_far, (offset, bag)| so_far & (offset.to_u64() == bag))
            })
    }

    /// The number of rows that a bag pools: one for each index that is not padding.
    fn num_rows(&self, bag: usize) -> Option<usize> {
        let range = self.range(bag)?;
        if !self.has_padding() {
            return Some(range.len());
        }
        let indices = self.indices.slice(range)?.iter();
        Some(indices.filter(|&index| !self.is_padding(index)).count())
    }
}

/// Refuses offsets that do not start at 0, fall, or do not end at `num_indices`. A function of its
/// own, so that [`Bags::new`] is inlined and its result is not copied.
fn check_offsets(
    offsets: Indices<'_>,
    num_indices: usize,
    is_signed: bool,
) -> Result<(), BagsError> {
    let last = num_indices as u64;
    let fits = last < offsets.first_negative(is_signed);
    // Looking for the first wrong offset would take longer.
    if !PREFERS_SMALL_CODE && fits && with_integers!(offsets, all => are_offsets(all, last)) {
        return Ok(());
    }
    let end = offsets.len().checked_sub(1).ok_or(BagsError::OffsetsEmpty)?;
    let ceiling = offsets.first_negative(is_signed).saturating_sub(1).min(last);
    let mut range = 0..=0;
    let wrong = offsets.iter().position(|offset| {
        let is_right = range.contains(&offset);
        range = offset..=ceiling;
        !is_right
    });
    let position = match wrong {
        Some(position) => position,
        None if offsets.get(end) == Some(last) => return Ok(()),
        None => end,
    };
    Err(match offsets.negative(position) {
        Some(offset) if is_signed => BagsError::NegativeOffset { position, offset },
        _ => {
            let found = offsets.get(position).unwrap_or_default();
            BagsError::Offsets { position, found, num_indices }
        }
    })
}

/// Whether offsets start at 0, never fall, and end at `last`.
fn are_offsets<X: Integer>(offsets: &[X], last: u64) -> bool {
    let (Some(start), Some(end)) = (offsets.first(), offsets.last()) else { return false };
    // Without an early exit, so that the compiler compares several at once.
    let never_fall = offsets
        .iter()
        .zip(offsets.iter().skip(1))
        .fold(true, |so_far, (offset, next)| so_far & (offset <= next));
    never_fall && start.to_u64() == 0 && end.to_u64() == last
}

impl Table<'_> {
    /// Pools each bag into one row of `out`, `bags.len() x embedding_dim` elements. `workspace` has
    /// at least [`workspace_len(1)`](Self::workspace_len) elements; up to
    /// `workspace_len(bags.num_indices())` elements make it faster. (Not for a tensor train on a
    /// 32-bit board without an operating system: rows are computed one by one there, which needs
    /// less code.)
    ///
    /// Bags of a quotient-remainder table are pooled as DLRM pools them: each part is pooled
    /// separately, with the weights if there are any, and the results are combined. If the parts
    /// are multiplied, the result differs from the sum of the rows, except in bags of one index.
    ///
    /// The order in which a bag's rows are added depends on the bag alone (`docs/numerics.md`), so
    /// its bits depend neither on the other bags nor on the workspace.
    ///
    /// # Errors
    /// [`LookupError`]: an index out of range (all are checked first), a wrong output or workspace
    /// length, or weights with another pooling than sum. On error `out` is left unmodified.
    pub fn pool(
        &self,
        bags: &Bags<'_>,
        pooling: Pooling,
        out: &mut [f32],
        workspace: &mut [f32],
    ) -> Result<(), LookupError> {
        let embedding_dim = self.embedding_dim();
        self.check_buffers(out.len(), bags.len().saturating_mul(embedding_dim), workspace.len())?;
        check_bags(bags, self.num_embeddings(), pooling)?;
        let mut out = Output { rows: out, stride: embedding_dim, first: 0, embedding_dim };
        self.pool_into(bags, pooling, &mut out, workspace)
            .ok_or(LookupError::Inconsistent)
    }

    /// The workspace with which bags of `num_lookups` indices, more than one, are pooled fastest.
    pub(crate) fn batch_workspace_len(&self, num_lookups: usize) -> usize {
        match &self.data().weights {
            Weights::Dense(_) => 0,
            Weights::Tt(tt) if tt.is_small => {
                small_rows::best_workspace_len(&tt.shape, num_lookups)
            }
            Weights::Tt(tt) if PLANS_BATCHES => chain::best_workspace_len(&tt.shape, num_lookups),
            Weights::Tt(_) => 0,
            Weights::Projected(table) => parts::best_workspace_len(table.rank(), num_lookups),
            Weights::QuotientRemainder(table) => {
                parts::best_workspace_len(table.remainders.embedding_dim, num_lookups)
            }
            Weights::Codebook(table) if table.projection.is_some() => table
                .inner_dim
                .saturating_add(parts::best_workspace_len(table.inner_dim, num_lookups)),
            Weights::Codebook(_) => 0,
        }
    }

    /// Pools checked bags: the row of bag b goes to the `embedding_dim` elements of `rows` from `b
    /// * stride + first` on.
    pub(crate) fn pool_strided(
        &self,
        bags: &Bags<'_>,
        pooling: Pooling,
        rows: &mut [f32],
        stride: usize,
        first: usize,
        workspace: &mut [f32],
    ) -> Consistent {
        let mut out = Output { rows, stride, first, embedding_dim: self.embedding_dim() };
        self.pool_into(bags, pooling, &mut out, workspace)
    }

    /// Pools checked bags. `None` if the view contradicts itself.
    fn pool_into(
        &self,
        bags: &Bags<'_>,
        pooling: Pooling,
        out: &mut Output<'_>,
        workspace: &mut [f32],
    ) -> Consistent {
        self.pool_stored(bags, pooling, out, workspace)?;
        // Once per bag: columns of sums and maxima can be reordered as those of rows.
        match self.columns_to_order() {
            None => Some(()),
            Some(shape) => {
                (0..bags.len()).try_for_each(|bag| reorder_columns(shape, out.row(bag)?, workspace))
            }
        }
    }

    /// Pools checked bags with the columns in stored order, in the way that is fastest for this
    /// table.
    fn pool_stored(
        &self,
        bags: &Bags<'_>,
        pooling: Pooling,
        out: &mut Output<'_>,
        workspace: &mut [f32],
    ) -> Consistent {
        if bags.is_empty() {
            return Some(());
        }
        if bags.sequential && self.has_cache() {
            return self.without_cache().pool_stored(bags, pooling, out, workspace);
        }
        match &self.data().weights {
            // The scalar tier prefers small code: it pools row by row.
            Weights::Dense(rows) if self.data().overrides.is_none() && !self.tier().is_scalar() => {
                match self.data().index_map {
                    IndexMap::Identity if !bags.has_padding() => pool_dense(
                        self.tier(),
                        rows,
                        bags,
                        pooling,
                        out.rows.get_mut(out.first..)?,
                        out.stride,
                    ),
                    _ => PoolParts::new(self, bags, pooling).pool_mapped(
                        Stored::Rows(rows),
                        out,
                        workspace,
                    ),
                }
            }
            Weights::Projected(table) if !bags.sequential && pooling != Pooling::Max => {
                PoolParts::new(self, bags, Pooling::Sum).pool_projected(
                    Stored::Rows(&table.rows),
                    table.projection,
                    pooling == Pooling::Mean,
                    out,
                    workspace,
                )
            }
            Weights::Codebook(table) => match table.projection {
                Some(projection) if !bags.sequential && pooling != Pooling::Max => {
                    PoolParts::new(self, bags, Pooling::Sum).pool_projected(
                        Stored::Codes(table),
                        projection,
                        pooling == Pooling::Mean,
                        out,
                        workspace,
                    )
                }
                None if self.data().overrides.is_none() && !self.tier().is_scalar() => {
                    PoolParts::new(self, bags, pooling).pool_mapped(
                        Stored::Codes(table),
                        out,
                        workspace,
                    )
                }
                _ => self.pool_in_order(bags, pooling, out, workspace),
            },
            Weights::QuotientRemainder(table) => {
                PoolParts::new(self, bags, pooling).pool_quotient_remainder(table, out, workspace)
            }
            // Fewer lookups than `FEW` go to the last case, row by row. So do tables with stored
            // products of prefixes, which small rows hardly need.
            Weights::Tt(tt)
                if tt.is_small
                    && tt.prefixes.is_none()
                    && bags.indices.len() >= small_rows::FEW
                    && pooling != Pooling::Max
                    && !self.tier().is_scalar() =>
            {
                small_rows::pool(self, tt, bags, pooling == Pooling::Mean, out, workspace)
            }
            Weights::Tt(tt)
                if PLANS_BATCHES
                    && !tt.is_small
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
    fn pool_in_order(
        &self,
        bags: &Bags<'_>,
        pooling: Pooling,
        out: &mut Output<'_>,
        workspace: &mut [f32],
    ) -> Consistent {
        (0..bags.len()).try_for_each(|bag| {
            pool_bag(bags, bag, pooling, out.row(bag)?, |index, out, epilogue| {
                if bags.is_padding(index) {
                    return Some(false);
                }
                self.write_row(index, out, workspace, epilogue)?;
                Some(true)
            })
        })
    }
}

/// Refuses indices out of range, and weights with another pooling than sum.
pub(crate) fn check_bags(
    bags: &Bags<'_>,
    num_embeddings: u64,
    pooling: Pooling,
) -> Result<(), LookupError> {
    if bags.per_sample_weights.is_some() && pooling != Pooling::Sum {
        return Err(LookupError::WeightsPooling);
    }
    let limit = num_embeddings.min(bags.indices.first_negative(bags.is_signed));
    // Looking for the first wrong index would take longer: the compiler compares several indices at
    // once to find the largest.
    if !PREFERS_SMALL_CODE {
        let largest = with_integers!(bags.indices, indices => {
            indices.iter().copied().max().map(Integer::to_u64)
        });
        if largest.is_none_or(|largest| largest < limit) {
            return Ok(());
        }
    }
    let mut indices = bags.indices.iter();
    let Some(position) = indices.position(|index| index >= limit) else { return Ok(()) };
    Err(match bags.indices.negative(position) {
        Some(index) if bags.is_signed => LookupError::NegativeIndex { position, index },
        _ => {
            let index = bags.indices.get(position).unwrap_or_default();
            LookupError::IndexOutOfRange { position, index, num_embeddings }
        }
    })
}

/// Pools one bag row by row, in the order of its indices. `write` combines the row of an index with
/// the output, or returns false to leave it out.
fn pool_bag(
    bags: &Bags<'_>,
    bag: usize,
    pooling: Pooling,
    out: &mut [f32],
    mut write: impl FnMut(u64, &mut [f32], Epilogue<'_>) -> Option<bool>,
) -> Consistent {
    out.fill(0.0);
    let mut count = 0usize;
    for position in bags.range(bag)? {
        let epilogue = match (pooling, bags.per_sample_weights) {
            (Pooling::Max, _) if count == 0 => Epilogue::Store,
            (Pooling::Max, _) => Epilogue::MaxScaled(1.0),
            (_, Some(weights)) => Epilogue::AddScaled(*weights.get(position)?),
            (_, None) => Epilogue::AddScaled(1.0),
        };
        if write(bags.indices.get(position)?, out, epilogue)? {
            count = count.saturating_add(1);
        }
    }
    if pooling == Pooling::Mean {
        divide(out, count);
    }
    Some(())
}

/// Pools bags of dense rows whose numbers have been checked, on a tier other than the scalar one.
/// The pooled rows are `out_stride` elements apart.
fn pool_dense(
    tier: Tier,
    rows: &Rows<'_>,
    bags: &Bags<'_>,
    pooling: Pooling,
    out: &mut [f32],
    out_stride: usize,
) -> Consistent {
    let one_each =
        pooling != Pooling::Max && bags.per_sample_weights.is_none() && bags.have_one_index_each();
    // Compiled for both integer types: converting the indices first would take more time.
    with_integers!(bags.indices, indices => with_elements!(rows.elements, stored => {
        let (row_stride, embedding_dim) = (rows.row_stride(), rows.embedding_dim);
        if one_each && takes_rows(stored, embedding_dim) {
            return tier.run_vector(TakeRows {
                stored,
                row_stride,
                embedding_dim,
                indices,
                out,
                out_stride,
            })?;
        }
        tier.run_vector(PoolRows {
            stored,
            row_stride,
            embedding_dim,
            indices,
            offsets: bags.offsets,
            weights: bags.per_sample_weights,
            pooling,
            out,
            out_stride,
        })?
    }))
}

/// Pools one list of bags per table, as a ranker does, whose samples have one bag per feature. Bag
/// b of every table goes to row b of `out`, `num_bags x (sum of embedding_dim)`: the columns of the
/// first table first (the layout of TorchRec's `KeyedTensor`).
///
/// The lists must have the same number of bags. `workspace` is as for the table that needs the
/// longest one ([`Table::workspace_len`]). Tables are `Sync`: a caller may also pool them on
/// several threads.
///
/// ```
/// use ttrec::{Bags, Pooling, bag::pool_tables};
/// # let blob = ttrec::Blob::parse(ttrec::include_blob!("../../tests/golden/two_tables.ttr"))?;
/// let (item, user) = (blob.table("item")?, blob.table("user")?);
/// let two = Bags::new(&[3u32, 7, 12], &[0, 2, 3])?;
/// let width = item.embedding_dim() + user.embedding_dim();
/// let mut out = vec![0.0; two.len() * width];
/// let mut workspace = vec![0.0; item.workspace_len(1).max(user.workspace_len(1))];
/// pool_tables(&[(item, two), (user, two)], Pooling::Sum, &mut out, &mut workspace)?;
/// # let mut row = vec![0.0; user.embedding_dim()];
/// # user.lookup(12, &mut row, &mut workspace)?;
/// assert_eq!(out[2 * width - user.embedding_dim()..], row);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`PoolTablesError`]: as [`Table::pool`], and for different numbers of bags. On error `out` is
/// left unmodified.
#[inline]
pub fn pool_tables<'t, T: Borrow<Table<'t>>>(
    tables: &[(T, Bags<'_>)],
    pooling: Pooling,
    out: &mut [f32],
    workspace: &mut [f32],
) -> Result<(), PoolTablesError> {
    let nth = |position: usize| tables.get(position).map(|(table, bags)| (table.borrow(), bags));
    pool_each_table(&nth, pooling, out, workspace)
}

/// A table with its bags, by their position in a list.
type NthTable<'s, 't> = dyn Fn(usize) -> Option<(&'s Table<'t>, &'s Bags<'s>)> + 's;

/// [`pool_tables`], compiled once for tables and for references to tables.
fn pool_each_table<'s>(
    nth: &NthTable<'s, '_>,
    pooling: Pooling,
    out: &mut [f32],
    workspace: &mut [f32],
) -> Result<(), PoolTablesError> {
    let tables = || (0..).map_while(nth).zip(0..);
    let at = |table| move |error| PoolTablesError { table: Some(table), error };
    let num_bags = nth(0).map_or(0, |(_, bags)| bags.len());
    let stride =
        tables().fold(0usize, |width, ((table, _), _)| width.saturating_add(table.embedding_dim()));
    let expected = num_bags.saturating_mul(stride);
    if out.len() != expected {
        let error = LookupError::OutputLen { found: out.len(), expected };
        return Err(PoolTablesError { table: None, error });
    }
    for ((table, bags), position) in tables() {
        if bags.len() != num_bags {
            return Err(at(position)(LookupError::NumBags {
                found: bags.len(),
                expected: num_bags,
            }));
        }
        table.check_buffers(0, 0, workspace.len()).map_err(at(position))?;
        check_bags(bags, table.num_embeddings(), pooling).map_err(at(position))?;
    }
    let mut first = 0usize;
    for ((table, bags), position) in tables() {
        let embedding_dim = table.embedding_dim();
        let mut out = Output { rows: &mut *out, stride, first, embedding_dim };
        table
            .pool_into(bags, pooling, &mut out, workspace)
            .ok_or(at(position)(LookupError::Inconsistent))?;
        first = first.saturating_add(embedding_dim);
    }
    Ok(())
}

/// Divides a sum of `count` rows by their number.
fn divide(sums: &mut [f32], count: usize) {
    if count > 1 {
        sums.iter_mut().for_each(|sum| *sum /= count as f32);
    }
}
