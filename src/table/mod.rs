//! A table: rows by their indices, in any representation.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

pub(crate) mod cached;
pub(crate) mod codebook;
pub(crate) mod dense;
mod error;
pub(crate) mod index_map;
mod projected;
pub(crate) mod quotient_remainder;
mod tt;

pub use error::{LookupError, NoSuchTable};

use cached::CachedRows;
use index_map::RowOf;
pub(crate) use tt::{reorder_columns, step_size};

use crate::{
    blob::{Blob, BlobError, Section},
    dtype::Elements,
    isa::{PREFERS_SMALL_CODE, Tier},
    kernel::{Consistent, Epilogue, write_small_row},
    repr::{IndexMap, Rows, TableData, Weights},
    shape::{DigitOrder, TtShape},
};

/// A view of one table in a blob. Cheap to copy, `Send` and `Sync`; a lookup allocates nothing.
///
/// ```
/// use ttrec::{Bags, Blob, Pooling, Workspace};
/// # let bytes = ttrec::include_blob!("../../tests/golden/two_tables.ttr");
/// let blob = Blob::parse(bytes)?;
/// let item = blob.table("item")?;
/// let dim = item.embedding_dim();
///
/// // One row.
/// let mut workspace = Workspace::new();
/// let mut row = vec![0.0; dim];
/// item.lookup(42, &mut row, workspace.for_table(&item, 1))?;
///
/// // Three bags, pooled into three rows: indices 3 and 7, none, and 1.
/// let bags = Bags::new(&[3u32, 7, 1], &[0, 2, 2, 3])?;
/// let mut pooled = vec![0.0; bags.len() * dim];
/// item.pool(&bags, Pooling::Sum, &mut pooled, workspace.for_table(&item, 3))?;
/// assert!(pooled[dim..2 * dim].iter().all(|&x| x == 0.0));
///
/// // An index that the table does not have is an error, and leaves the output unmodified.
/// let error = item.lookup(1_000_000, &mut row, workspace.for_table(&item, 1)).unwrap_err();
/// assert!(error.to_string().contains("index 1000000"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Table<'a> {
    data: TableData<'a>,
    tier: Tier,
    cache: Option<CachedRows<'a>>,
    /// Whether each row is computed straight from its index, by the kernel of dense rows or by that
    /// of small ones. Kept, because each lookup asks for it.
    is_direct: bool,
    /// The blob, and the table's position in it, unless the table is being trained.
    origin: Option<(Blob<'a>, usize)>,
}

/// A row that need not be computed, with its position among the cached rows or the overrides.
#[derive(Clone, Copy, Debug)]
pub(crate) enum StoredRow {
    Cached(usize),
    Override(usize),
}

impl<'a> Blob<'a> {
    /// The table called `name`.
    ///
    /// # Errors
    /// [`NoSuchTable`].
    pub fn table(&self, name: &str) -> Result<Table<'a>, NoSuchTable> {
        self.position(name)
            .and_then(|position| self.table_at(position))
            .ok_or(NoSuchTable)
    }

    /// The table at `position`, in name order.
    pub(crate) fn table_at(&self, position: usize) -> Option<Table<'a>> {
        let table = Table::new(self.table_data(position)?);
        Some(Table { origin: Some((*self, position)), ..table })
    }

    /// Every table, in name order.
    pub fn tables(&self) -> impl Iterator<Item = Table<'a>> + use<'a> {
        let blob = *self;
        (0..blob.num_tables()).filter_map(move |position| blob.table_at(position))
    }
}

impl<'a> Table<'a> {
    pub(crate) fn new(data: TableData<'a>) -> Self {
        Self { data, tier: Tier::best(), cache: None, is_direct: false, origin: None }.prepared()
    }

    /// The table with `is_direct`, which follows from the other fields.
    fn prepared(self) -> Self {
        // The scalar tier prefers small code.
        let is_direct = !self.tier.is_scalar()
            && !self.has_stored_rows()
            && matches!(self.data.index_map, IndexMap::Identity)
            && match &self.data.weights {
                Weights::Tt(tt) => {
                    tt.is_small && tt.prefixes.is_none() && self.columns_to_order().is_none()
                }
                Weights::Dense(_) => true,
                _ => false,
            };
        Self { is_direct, ..self }
    }

    /// The same table, whose lookups read the rows that `cache` has.
    pub(crate) fn with_cache<'c>(self, cache: CachedRows<'c>) -> Table<'c>
    where
        'a: 'c,
    {
        Table { cache: Some(cache), ..self }.prepared()
    }

    /// The same table, whose lookups use the instructions of `tier`.
    #[must_use]
    pub fn with_tier(self, tier: Tier) -> Self {
        // Cached rows have the bits of the tier that computed them. All tiers but the scalar one
        // compute the same bits.
        let cache = self.cache.filter(|_| tier.is_scalar() == self.tier.is_scalar());
        Self { tier, cache, ..self }.prepared()
    }

    /// The instructions that lookups use: by default the best that this CPU has.
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// The name of the table in its blob.
    pub fn name(&self) -> &'a str {
        self.data.name
    }

    /// Number of indices that can be looked up: valid ones are `0..num_embeddings`.
    pub fn num_embeddings(&self) -> u64 {
        self.data.num_embeddings
    }

    /// Number of elements of a row.
    pub fn embedding_dim(&self) -> usize {
        self.data.embedding_dim
    }

    /// The number of the stored row that the table's index map gives for `index`. For an index that
    /// is out of range the result is unspecified.
    pub fn row_of(&self, index: u64) -> u64 {
        RowOf::new(&self.data).row(index)
    }

    /// The table's representation and its stored numbers.
    pub fn data(&self) -> &TableData<'a> {
        &self.data
    }

    /// The sections of the blob that hold the table, in file order.
    pub fn sections(&self) -> impl Iterator<Item = Section> + use<'a> {
        self.origin.into_iter().flat_map(|(blob, position)| blob.sections(position))
    }

    /// As [`Blob::verify_payload`], but for this table only.
    ///
    /// # Errors
    /// A [`BlobError`] for the first section that fails.
    pub fn verify(&self) -> Result<(), BlobError> {
        self.origin.map_or(Ok(()), |(blob, position)| blob.verify_table(position))
    }

    /// Number of f32 elements of workspace with which [`pool`](Self::pool) is fastest, if all bags
    /// together have `num_lookups` indices. It stops growing at some 16,000 lookups.
    ///
    /// [`lookup`](Self::lookup) and [`pool`](Self::pool) accept any workspace of at least
    /// `workspace_len(1)` elements, which is 0 for a dense table; [`lookup`](Self::lookup) needs no
    /// more. The length changes the speed, never the result.
    pub fn workspace_len(&self, num_lookups: usize) -> usize {
        let least = self.least_workspace_len();
        if num_lookups > 1 {
            least.max(self.batch_workspace_len(num_lookups))
        } else {
            least
        }
    }

    /// `workspace_len(1)`.
    pub(crate) fn least_workspace_len(&self) -> usize {
        match &self.data.weights {
            Weights::Tt(tt) => tt.workspace_len(),
            Weights::Dense(_) => 0,
            Weights::Projected(table) => table.rank(),
            Weights::QuotientRemainder(table) => quotient_remainder::workspace_len(table),
            Weights::Codebook(table) => codebook::workspace_len(table),
        }
    }

    /// Writes the row of `index` into `out`, which has `embedding_dim` elements. `workspace` has at
    /// least [`workspace_len(1)`](Self::workspace_len) elements; their values do not matter.
    ///
    /// # Errors
    /// [`LookupError::IndexOutOfRange`], [`LookupError::OutputLen`] or
    /// [`LookupError::WorkspaceLen`]. On error `out` is left unmodified.
    pub fn lookup(
        &self,
        index: u64,
        out: &mut [f32],
        workspace: &mut [f32],
    ) -> Result<(), LookupError> {
        self.check_index(index)?;
        // The most frequent kinds of tables make few decisions: all those of `write_row` would take
        // as long as the row itself.
        let is_direct = !PREFERS_SMALL_CODE && self.is_direct && out.len() == self.embedding_dim();
        let written = match &self.data.weights {
            Weights::Tt(tt) if is_direct && workspace.len() >= tt.workspace_len() => {
                write_small_row(self.tier, tt, index, workspace, out)
            }
            Weights::Dense(rows) if is_direct => {
                let position = usize::try_from(index).ok();
                position.and_then(|at| dense::write_row(self.tier, rows, at, out, Epilogue::Store))
            }
            _ => {
                self.check_buffers(out.len(), self.embedding_dim(), workspace.len())?;
                self.write_row_in_order(index, out, workspace)
            }
        };
        written.ok_or(LookupError::Inconsistent)
    }

    /// Writes the product of a prefix ([`TtShape::prefix`](crate::TtShape::prefix)) into `out`,
    /// which has [`TtShape::prefix_len`](crate::TtShape::prefix_len) elements. A blob may store the
    /// products of frequently requested prefixes. `workspace` is as for [`lookup`](Self::lookup).
    ///
    /// # Errors
    /// [`LookupError::PrefixOutOfRange`] for a prefix that the table does not have (only a tensor
    /// train has any), [`LookupError::OutputLen`] or [`LookupError::WorkspaceLen`]. On error `out`
    /// is left unmodified.
    pub fn prefix_product(
        &self,
        prefix: u64,
        out: &mut [f32],
        workspace: &mut [f32],
    ) -> Result<(), LookupError> {
        let refused = |num_prefixes| LookupError::PrefixOutOfRange { prefix, num_prefixes };
        let Weights::Tt(tt) = &self.data.weights else { return Err(refused(0)) };
        if prefix >= tt.shape.num_prefixes() {
            return Err(refused(tt.shape.num_prefixes()));
        }
        self.check_buffers(out.len(), tt.shape.prefix_len(), workspace.len())?;
        let product = tt::prefix_product(self.tier, tt, &tt.shape.prefix_digits(prefix), workspace);
        out.copy_from_slice(
            product
                .filter(|product| product.len() == out.len())
                .ok_or(LookupError::Inconsistent)?,
        );
        Ok(())
    }

    fn check_index(&self, index: u64) -> Result<(), LookupError> {
        let num_embeddings = self.num_embeddings();
        if index < num_embeddings {
            Ok(())
        } else {
            Err(LookupError::IndexOutOfRange { position: 0, index, num_embeddings })
        }
    }

    pub(crate) fn check_buffers(
        &self,
        out: usize,
        expected_out: usize,
        workspace: usize,
    ) -> Result<(), LookupError> {
        if out != expected_out {
            return Err(LookupError::OutputLen { found: out, expected: expected_out });
        }
        let expected = self.least_workspace_len();
        if workspace < expected {
            return Err(LookupError::WorkspaceLen { found: workspace, expected });
        }
        Ok(())
    }

    /// The shape of the tensor train, if the columns of its product must be reordered.
    #[inline(always)]
    pub(crate) fn columns_to_order(&self) -> Option<&TtShape> {
        match &self.data.weights {
            Weights::Tt(tt) if tt.shape.column_order() == DigitOrder::LeastSignificantFirst => {
                Some(&tt.shape)
            }
            _ => None,
        }
    }

    #[inline(never)]
    fn write_row_in_order(&self, index: u64, out: &mut [f32], workspace: &mut [f32]) -> Consistent {
        self.write_row(index, out, workspace, Epilogue::Store)?;
        match self.columns_to_order() {
            Some(shape) => reorder_columns(shape, out, workspace),
            None => Some(()),
        }
    }

    /// Combines the row of `index` with `out`, as `epilogue` says, with the columns in stored
    /// order. The caller has checked `index`, `out` and `workspace`.
    pub(crate) fn write_row(
        &self,
        index: u64,
        out: &mut [f32],
        workspace: &mut [f32],
        epilogue: Epilogue<'_>,
    ) -> Consistent {
        if let Some(stored) = self.stored_row(index) {
            return self.write_stored_row(stored, out, epilogue);
        }
        let row = self.row_of(index);
        match &self.data.weights {
            Weights::Dense(rows) => {
                dense::write_row(self.tier, rows, usize::try_from(row).ok()?, out, epilogue)
            }
            Weights::Tt(tt) => tt::write_row(self.tier, tt, row, out, workspace, epilogue),
            Weights::Projected(table) => projected::write_row(
                self.tier,
                table,
                usize::try_from(row).ok()?,
                out,
                workspace,
                epilogue,
            ),
            Weights::QuotientRemainder(table) => {
                quotient_remainder::write_row(self.tier, table, row, out, workspace, epilogue)
            }
            Weights::Codebook(table) => codebook::write_row(
                self.tier,
                table,
                usize::try_from(row).ok()?,
                out,
                workspace,
                epilogue,
            ),
        }
    }

    pub(crate) fn has_cache(&self) -> bool {
        self.cache.is_some()
    }

    pub(crate) fn without_cache(self) -> Self {
        Self { cache: None, ..self }.prepared()
    }

    /// Whether some rows need not be computed: whether the table has a cache or overrides.
    pub(crate) fn has_stored_rows(&self) -> bool {
        self.cache.is_some() || self.data.overrides.is_some()
    }

    /// Where the row of `index` is stored, if it need not be computed.
    #[inline(always)]
    pub(crate) fn stored_row(&self, index: u64) -> Option<StoredRow> {
        if let Some(position) = self.override_position(index) {
            return Some(StoredRow::Override(position));
        }
        self.cache.as_ref()?.position(index).map(StoredRow::Cached)
    }

    /// The position of the override of `index`, if it has one.
    #[inline(always)]
    pub(crate) fn override_position(&self, index: u64) -> Option<usize> {
        self.data.overrides.as_ref()?.position(index)
    }

    /// [`write_row`](Self::write_row) for a row that need not be computed.
    pub(crate) fn write_stored_row(
        &self,
        stored: StoredRow,
        out: &mut [f32],
        epilogue: Epilogue<'_>,
    ) -> Consistent {
        match stored {
            StoredRow::Override(position) => dense::write_row(
                self.tier,
                &self.data.overrides.as_ref()?.rows,
                position,
                out,
                epilogue,
            ),
            StoredRow::Cached(position) => {
                dense::write_row(self.tier, &self.cached_rows()?, position, out, epilogue)
            }
        }
    }

    /// All cached rows.
    pub(crate) fn cached_rows(&self) -> Option<Rows<'a>> {
        let elements = Elements::from_f32(self.cache.as_ref()?.rows);
        Some(Rows { elements, embedding_dim: self.data.embedding_dim })
    }
}
