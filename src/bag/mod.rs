//! Bags: several lookups pooled into one row each, as `torch.nn.EmbeddingBag` does.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

pub use crate::{index::Index, kernel::Pooling};

use crate::{
    blob::Weights,
    dtype::with_elements,
    error::LookupError,
    kernel::{Epilogue, PoolRows},
    table::Table,
};

/// Bags of row indices, in `torch.nn.EmbeddingBag`'s form with `include_last_offset=True`: bag b is
/// `indices[offsets[b]..offsets[b + 1]]`.
///
/// ```
/// use ttrec::{Bags, Pooling};
/// # let blob = ttrec::Blob::parse(ttrec::include_blob!("../../tests/golden/two_tables.ttr"))?;
/// let item = blob.table("item")?;
/// let bags = Bags::new(&[3u32, 7, 7, 1], &[0, 2, 2, 4])?; // three bags, the second one empty
/// let mut out = vec![0.0; bags.len() * item.embedding_dim()];
/// item.bag(&bags, Pooling::Sum, &mut out, &mut vec![0.0; item.workspace_len()])?;
/// # assert!(out[..item.embedding_dim()].iter().any(|&x| x != 0.0));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Bags<'a, I = u32> {
    indices: &'a [I],
    offsets: &'a [I],
    per_sample_weights: Option<&'a [f32]>,
}

impl<'a, I: Index> Bags<'a, I> {
    /// `offsets.len() - 1` bags of `indices`. Offsets start at 0, never fall, and end at `indices.len()`.
    ///
    /// # Errors
    /// [`LookupError::OffsetsEmpty`] or [`LookupError::Offsets`].
    pub fn new(indices: &'a [I], offsets: &'a [I]) -> Result<Self, LookupError> {
        let num_indices = indices.len();
        let wrong = |position, found| LookupError::Offsets { position, found, num_indices };
        let mut floor = 0;
        for (position, offset) in offsets.iter().map(|offset| offset.to_u64()).enumerate() {
            if offset < floor || offset > num_indices as u64 || (position == 0 && offset != 0) {
                return Err(wrong(position, offset));
            }
            floor = offset;
        }
        let last = offsets.len().checked_sub(1).ok_or(LookupError::OffsetsEmpty)?;
        if floor != num_indices as u64 {
            return Err(wrong(last, floor));
        }
        Ok(Self { indices, offsets, per_sample_weights: None })
    }

    /// The same bags with one weight per index, for [`Pooling::Sum`].
    ///
    /// # Errors
    /// [`LookupError::WeightsLen`].
    pub fn with_per_sample_weights(self, weights: &'a [f32]) -> Result<Self, LookupError> {
        if weights.len() != self.indices.len() {
            return Err(LookupError::WeightsLen { found: weights.len(), expected: self.indices.len() });
        }
        Ok(Self { per_sample_weights: Some(weights), ..self })
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

    /// Each bag's range of positions in `indices`.
    fn ranges(&self) -> impl Iterator<Item = core::ops::Range<usize>> + '_ {
        let bounds = self.offsets.iter().zip(self.offsets.iter().skip(1));
        // `new` has seen that no offset is above `indices.len()`.
        bounds.map(|(start, end)| start.to_u64() as usize..end.to_u64() as usize)
    }
}

impl Table<'_> {
    /// Pools each bag into one row of `out`, `bags.len() x embedding_dim` elements. `workspace` holds at least
    /// [`workspace_len`](Self::workspace_len) elements.
    ///
    /// A bag's rows are combined in the order of its indices, so its bits do not depend on the batch it came in.
    ///
    /// # Errors
    /// [`LookupError`]: an index out of range (all are checked first), a wrong output or workspace length, or weights with
    /// another pooling than sum. `out` is then as it was.
    pub fn bag<I: Index>(
        &self,
        bags: &Bags<'_, I>,
        pooling: Pooling,
        out: &mut [f32],
        workspace: &mut [f32],
    ) -> Result<(), LookupError> {
        let embedding_dim = self.embedding_dim();
        self.check_buffers(out.len(), bags.len().saturating_mul(embedding_dim), workspace.len())?;
        if bags.per_sample_weights.is_some() && pooling != Pooling::Sum {
            return Err(LookupError::WeightsPooling);
        }
        for (position, index) in bags.indices.iter().enumerate() {
            self.check_row(index.to_u64(), position)?;
        }
        if let (Weights::Dense(rows), None) = (&self.data().weights, &self.data().overrides)
            // Which would rather be small than fast.
            && !self.tier().is_scalar()
        {
            let pooled = with_elements!(rows.elements, stored => self.tier().run(PoolRows {
                stored,
                stride: rows.row_stride(),
                embedding_dim,
                indices: bags.indices,
                offsets: bags.offsets,
                weights: bags.per_sample_weights,
                pooling,
                out,
            }));
            return pooled.ok_or(LookupError::Inconsistent);
        }
        for (range, out) in bags.ranges().zip(out.chunks_exact_mut(embedding_dim.max(1))) {
            self.pool(bags, range, pooling, out, workspace).ok_or(LookupError::Inconsistent)?;
        }
        Ok(())
    }

    /// One bag: the positions `range` of `bags.indices`.
    fn pool<I: Index>(
        &self,
        bags: &Bags<'_, I>,
        range: core::ops::Range<usize>,
        pooling: Pooling,
        out: &mut [f32],
        workspace: &mut [f32],
    ) -> Option<()> {
        let indices = bags.indices.get(range.clone())?;
        out.fill(0.0);
        match (pooling, bags.per_sample_weights) {
            (Pooling::Sum, Some(weights)) => {
                for (index, &weight) in indices.iter().zip(weights.get(range)?) {
                    self.put_row(index.to_u64(), out, workspace, Epilogue::AddScaled(weight))?;
                }
            }
            (Pooling::Sum | Pooling::Mean, _) => {
                for index in indices {
                    self.put_row(index.to_u64(), out, workspace, Epilogue::AddScaled(1.0))?;
                }
                if pooling == Pooling::Mean && indices.len() > 1 {
                    let count = indices.len() as f32;
                    out.iter_mut().for_each(|sum| *sum /= count);
                }
            }
            (Pooling::Max, _) => {
                let Some((first, rest)) = indices.split_first() else { return Some(()) };
                self.put_row(first.to_u64(), out, workspace, Epilogue::Store)?;
                for index in rest {
                    self.put_row(index.to_u64(), out, workspace, Epilogue::Max)?;
                }
            }
        }
        Some(())
    }
}
