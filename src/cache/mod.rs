//! A cache of the rows that are asked for most, multiplied out, in memory that the caller lends
//! (TT-Rec, section 4.3: a set-associative cache, least frequently used rows go, refreshed now and
//! then).
//!
//! Unlike rows that a blob stores apart, what is kept here follows the traffic:
//! [`RowCache::record`] counts, and [`RowCache::refresh`] brings in what is asked for often. In
//! between, what is cached does not change, so that readers need no lock, and results do not depend
//! on who asked before.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use crate::{
    index::Index,
    kernel::Epilogue,
    table::{
        LookupError, Table,
        cached::{CachedRows, SET_WORDS, Set, WAYS, known, set_of},
    },
};

/// How often a [`RowCache`] had what it was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStatistics {
    /// Recorded lookups, but of rows that the blob stores apart.
    pub lookups: u64,
    /// Those whose rows were cached.
    pub hits: u64,
}

impl CacheStatistics {
    /// Hits per lookup: 0 to 1.
    pub fn hit_rate(&self) -> f64 {
        if self.lookups == 0 {
            0.0
        } else {
            self.hits as f64 / self.lookups as f64
        }
    }
}

/// Rows of one table by their indices, f32 and multiplied out, in memory that the caller lends. It
/// serves lookups of every kind of table, and the bags of tensor trains. (Other bags are pooled as
/// without it: of dense and of short rows, since nothing would be gained; of quotient and remainder
/// rows, since a bag is not the sum of its rows.)
///
/// ```
/// use ttrec::{Bags, Pooling, cache::RowCache};
/// # let blob = ttrec::Blob::parse(ttrec::include_blob!("../../tests/golden/two_tables.ttr"))?;
/// # let item = blob.table("item")?;
/// # let (indices, offsets) = ([3u32, 7, 7, 7, 1], [0, 2, 5]);
/// let mut workspace = vec![0.0; item.workspace_len()];
/// let mut memory = vec![0.0; RowCache::memory_len(&item, 100)]; // room for 100 rows or more
/// let mut cache = RowCache::new(&item, &mut memory)?;
///
/// cache.record(&indices); // of every request, or of a sample of them
/// cache.refresh(&mut workspace)?; // every now and then
/// let item = cache.table(); // looks rows up in the cache first
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
    /// [`memory_len`](Self::memory_len)), in whole sets of 32. What is in `memory` does not
    /// matter.
    ///
    /// # Errors
    /// [`LookupError::CacheLen`] if there is no room for a set.
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

    /// The f32 elements of memory that hold at least `num_rows` rows of `table`: `embedding_dim`
    /// and 4 more for each row, in whole sets of 32 rows.
    pub fn memory_len(table: &Table<'_>, num_rows: usize) -> usize {
        let of_set = WAYS.saturating_mul(table.embedding_dim()).saturating_add(SET_WORDS);
        num_rows.div_ceil(WAYS).saturating_mul(of_set)
    }

    /// Rows that it has room for.
    pub fn capacity(&self) -> usize {
        self.sets.len().saturating_mul(WAYS)
    }

    /// Whether `row` is cached.
    pub fn contains(&self, row: u64) -> bool {
        self.view().position(row).is_some()
    }

    /// Counts requests for these rows: all that there are, or a fair sample. Indices that the table
    /// does not have, and rows that its blob stores apart, do not count; rows from 2^32 - 1 on
    /// are never cached, and count as lookups alone.
    pub fn record<I: Index>(&mut self, indices: &[I]) {
        let num_sets = self.sets.len();
        for row in indices.iter().map(|index| index.to_u64()) {
            let stored_apart = self.table.position_apart(row).is_some();
            if row >= self.table.num_embeddings() || stored_apart {
                continue;
            }
            self.statistics.lookups = self.statistics.lookups.saturating_add(1);
            let Some(row) = known(row) else { continue };
            if let Some(set) = self.sets.get_mut(set_of(row, num_sets)) {
                self.statistics.hits = self.statistics.hits.saturating_add(set.record(row).into());
            }
        }
    }

    /// Brings in what was asked for more often than what is there, and halves all counts, so that
    /// what was asked for long ago weighs less and less: do so every few times
    /// [`capacity`](Self::capacity) lookups, since what is asked for less than once in between
    /// is forgotten. Returns how many rows were brought in. `workspace` is that of
    /// [`Table::lookup`].
    ///
    /// # Errors
    /// [`LookupError::WorkspaceLen`]; nothing has changed then.
    pub fn refresh(&mut self, workspace: &mut [f32]) -> Result<usize, LookupError> {
        self.table.check_buffers(0, 0, workspace.len())?;
        let dim = self.table.embedding_dim();
        let mut brought_in = 0usize;
        for (set, rows) in self
            .sets
            .iter_mut()
            .zip(self.rows.chunks_exact_mut(WAYS.saturating_mul(dim).max(1)))
        {
            while let Some((way, from, row)) = set.best_exchange() {
                let out =
                    rows.chunks_exact_mut(dim.max(1)).nth(way).ok_or(LookupError::Inconsistent)?;
                // As it is stored: bags add cached rows to others before they put their columns in
                // order.
                let row = self.table.put_row(row.into(), out, workspace, Epilogue::Store);
                row.ok_or(LookupError::Inconsistent)?;
                set.exchange(way, from);
                brought_in = brought_in.saturating_add(1);
            }
            set.halve_counts();
        }
        Ok(brought_in)
    }

    /// The table, looking for rows in the cache before it computes them. Lookups and maxima have
    /// the same bits; in the sums of a tensor-train table cached rows are added before the
    /// others, as rows are that the blob stores apart (`docs/numerics.md`). On another
    /// [tier](Table::with_tier), unless both fuse their multiply-adds, it looks them up without
    /// the cache.
    pub fn table(&self) -> Table<'_> {
        self.table.with_cache(self.view())
    }

    fn view(&self) -> CachedRows<'_> {
        CachedRows { sets: self.sets, rows: self.rows }
    }

    /// Recorded lookups and hits since the beginning, or since the last
    /// [`reset_statistics`](Self::reset_statistics).
    pub fn statistics(&self) -> CacheStatistics {
        self.statistics
    }

    /// Sets the statistics to zero.
    pub fn reset_statistics(&mut self) {
        self.statistics = CacheStatistics::default();
    }
}
