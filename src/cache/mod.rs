//! A cache of the most frequently requested rows, multiplied out, in memory that the caller lends
//! (TT-Rec, section 4.3: a set-associative cache that evicts the least frequently used rows and is
//! refreshed at intervals).
//!
//! Unlike the overrides of a blob, the cached rows follow the traffic: [`RowCache::record`] counts
//! requests, and [`RowCache::refresh`] loads the rows that are requested often. Between two
//! refreshes the cached rows do not change, so that readers need no lock, and results do not depend
//! on earlier requests.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

mod policy;

use crate::{
    index::{Index, Indices},
    kernel::Epilogue,
    table::{
        LookupError, Table,
        cached::{CachedRows, SET_WORDS, Set, WAYS, cacheable, set_of},
    },
};

/// Hits and lookups of a [`RowCache`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheStatistics {
    /// Recorded lookups. Indices with an override do not count.
    pub lookups: u64,
    /// Recorded lookups whose rows were cached.
    pub hits: u64,
}

impl CacheStatistics {
    /// Hits per lookup, 0 to 1; 0 without lookups.
    pub fn hit_rate(&self) -> f64 {
        if self.lookups == 0 {
            0.0
        } else {
            self.hits as f64 / self.lookups as f64
        }
    }
}

/// Rows of one table by their indices, f32 and multiplied out, in memory that the caller lends.
///
/// The cache serves lookups in tables of every representation, and bags of tensor-train tables.
/// Other bags are pooled as without a cache: dense and projected tables would gain nothing, and a
/// bag of a quotient-remainder table is not the sum of its rows.
///
/// ```
/// use ttrec::{Bags, Pooling, cache::RowCache};
/// # let blob = ttrec::Blob::parse(ttrec::include_blob!("../../tests/golden/two_tables.ttr"))?;
/// # let item = blob.table("item")?;
/// # let (indices, offsets) = ([3u32, 7, 7, 7, 1], [0, 2, 5]);
/// let mut workspace = vec![0.0; item.workspace_len(indices.len())];
/// let mut memory = vec![0.0; RowCache::memory_len(&item, 100)]; // room for 100 rows or more
/// let mut cache = RowCache::new(&item, &mut memory)?;
///
/// cache.record(&indices); // of every request, or of a random sample of requests
/// cache.refresh(&mut workspace)?; // at intervals
/// let item = cache.table(); // its lookups read the cached rows
/// let mut out = vec![0.0; 2 * item.embedding_dim()];
/// item.pool(&Bags::new(&indices, &offsets)?, Pooling::Sum, &mut out, &mut workspace)?;
///
/// cache.record(&indices);
/// assert_eq!(cache.statistics().hits, 5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct RowCache<'m> {
    table: Table<'m>,
    sets: &'m mut [Set],
    rows: &'m mut [f32],
    statistics: CacheStatistics,
}

impl<'m> RowCache<'m> {
    /// An empty cache for `table`, of as many rows as `memory` has room for (see
    /// [`memory_len`](Self::memory_len)), in whole sets of 32. The values in `memory` do not
    /// matter.
    ///
    /// # Errors
    /// [`LookupError::CacheLen`] if `memory` has no room for a set.
    pub fn new(table: &Table<'m>, memory: &'m mut [f32]) -> Result<Self, LookupError> {
        let (found, expected) = (memory.len(), Self::memory_len(table, 1));
        let num_sets = found.checked_div(expected).unwrap_or(0);
        let (sets, rest) = memory.split_at_mut(num_sets.saturating_mul(SET_WORDS).min(found));
        let rows = rest.get_mut(..num_sets.saturating_mul(expected.saturating_sub(SET_WORDS)));
        match (bytemuck::try_cast_slice_mut::<f32, Set>(sets), rows) {
            (Ok(sets), Some(rows)) if num_sets > 0 => {
                sets.fill(Set::EMPTY);
                Ok(Self {
                    table: table.without_cache(),
                    sets,
                    rows,
                    statistics: CacheStatistics::default(),
                })
            }
            _ => Err(LookupError::CacheLen { found, expected }),
        }
    }

    /// Number of f32 elements of memory for at least `num_rows` rows of `table`: `embedding_dim +
    /// 4` for each row, in whole sets of 32 rows.
    pub fn memory_len(table: &Table<'_>, num_rows: usize) -> usize {
        let set_len = WAYS.saturating_mul(table.embedding_dim()).saturating_add(SET_WORDS);
        num_rows.div_ceil(WAYS).saturating_mul(set_len)
    }

    /// Number of rows that the cache has room for.
    pub fn capacity(&self) -> usize {
        self.sets.len().saturating_mul(WAYS)
    }

    /// Whether the row of `index` is cached.
    pub fn contains(&self, index: u64) -> bool {
        self.view().position(index).is_some()
    }

    /// Counts requests for these indices: all requests, or a random sample of them. Indices that
    /// the table does not have, and indices with an override, do not count. Indices from 2^32 - 1
    /// on count as lookups, but are never cached.
    #[inline]
    pub fn record<I: Index>(&mut self, indices: &[I]) {
        self.record_all(I::erase(indices));
    }

    fn record_all(&mut self, indices: Indices<'_>) {
        let num_sets = self.sets.len();
        for index in indices.iter() {
            let is_override = self.table.override_position(index).is_some();
            if index >= self.table.num_embeddings() || is_override {
                continue;
            }
            self.statistics.lookups = self.statistics.lookups.saturating_add(1);
            let Some(index) = cacheable(index) else { continue };
            if let Some(set) = self.sets.get_mut(set_of(index, num_sets)) {
                let hit = set.record(index);
                self.statistics.hits = self.statistics.hits.saturating_add(hit.into());
            }
        }
    }

    /// Replaces cached rows by rows that were requested more often, and halves all counts, so that
    /// old requests weigh less and less. Returns the number of rows that were replaced. `workspace`
    /// is as for [`Table::lookup`].
    ///
    /// A good interval is a few times [`capacity`](Self::capacity) recorded lookups: a row that is
    /// requested less than once per interval loses its place.
    ///
    /// # Errors
    /// [`LookupError::WorkspaceLen`]. On error the cache is left unmodified.
    pub fn refresh(&mut self, workspace: &mut [f32]) -> Result<usize, LookupError> {
        self.table.check_buffers(0, 0, workspace.len())?;
        let dim = self.table.embedding_dim();
        let mut replaced = 0usize;
        for (set, rows) in self
            .sets
            .iter_mut()
            .zip(self.rows.chunks_exact_mut(WAYS.saturating_mul(dim).max(1)))
        {
            while let Some((way, from, index)) = set.best_exchange() {
                let out =
                    rows.chunks_exact_mut(dim.max(1)).nth(way).ok_or(LookupError::Inconsistent)?;
                // Cached rows have their columns in stored order: bags add them to other rows
                // first, and reorder the columns of the sum.
                self.table
                    .write_row(index.into(), out, workspace, Epilogue::Store)
                    .ok_or(LookupError::Inconsistent)?;
                set.exchange(way, from);
                replaced = replaced.saturating_add(1);
            }
            set.halve_counts();
        }
        Ok(replaced)
    }

    /// The table, whose lookups read the rows that are cached and compute the others.
    ///
    /// Lookups and maxima have the same bits as without a cache. In the sums of a tensor-train
    /// table cached rows are added before the others, as overrides are (`docs/numerics.md`).
    /// [`Table::with_tier`] drops the cache where the bits of the two tiers differ: if one of them
    /// is the scalar tier.
    pub fn table(&self) -> Table<'_> {
        self.table.with_cache(self.view())
    }

    fn view(&self) -> CachedRows<'_> {
        CachedRows { sets: self.sets, rows: self.rows }
    }

    /// Recorded lookups and hits since the cache was made or
    /// [`reset_statistics`](Self::reset_statistics) was called.
    pub fn statistics(&self) -> CacheStatistics {
        self.statistics
    }

    /// Sets the statistics to zero.
    pub fn reset_statistics(&mut self) {
        self.statistics = CacheStatistics::default();
    }
}
