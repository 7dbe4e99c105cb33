//! Bags over tables whose rows are made from other rows: rows of mapped indices, rows that are
//! multiplied by a projection, rows of codes, and the two parts of a quotient-remainder table.
//!
//! The indices of a few whole bags at a time become row numbers, and these are pooled as bags of a
//! dense or codebook table. The projection, or the combination of two parts, then follows for many
//! bags at once. Indices with an override are left out, and their rows are added to the bags at the
//! end.

#![allow(
    clippy::arithmetic_side_effects,
    reason = "counts and positions within slices, and quotients of rows"
)]

use super::{Bags, Padding, Pooling, chain::Output, divide, pool_bag, pool_dense};
use crate::{
    divisor::Divisor,
    dtype::Elements,
    index::Indices,
    isa::Tier,
    kernel::{CodeBags, Consistent, Dims, Epilogue, pool_codes, store_rows},
    repr::{Codebook, Combine, IndexMap, QuotientRemainder, Rows},
    table::{StoredRow, Table, codebook, dense, index_map::RowOf, quotient_remainder::combine},
};
use core::ops::Range;

/// The most lookups whose row numbers are kept on the stack: 2 KiB with their weights.
const LOOKUPS: usize = 256;
/// The most bags of these lookups.
const BAGS: usize = 64;

/// The f32 elements of workspace with which a batch of `num_lookups` is fastest, if each bag needs
/// `len` elements.
pub(super) fn best_workspace_len(len: usize, num_lookups: usize) -> usize {
    len.saturating_mul(num_lookups.clamp(1, BAGS))
}

/// The rows that are pooled: dense ones, or rows of codes as they are before the projection.
#[derive(Clone, Copy)]
pub(super) enum Stored<'s> {
    Rows(&'s Rows<'s>),
    Codes(&'s Codebook<'s>),
}

impl Stored<'_> {
    fn dim(self) -> usize {
        match self {
            Self::Rows(rows) => rows.embedding_dim,
            Self::Codes(table) => table.inner_dim,
        }
    }

    /// Pools bags of row numbers; `None` on the scalar tier, too.
    fn pool(
        self,
        tier: Tier,
        bags: &Bags<'_>,
        pooling: Pooling,
        out: &mut [f32],
        stride: usize,
    ) -> Consistent {
        let table = match self {
            Self::Rows(rows) => return pool_dense(tier, rows, bags, pooling, out, stride),
            Self::Codes(table) => table,
        };
        let Indices::U32(rows) = bags.indices else { return None };
        let (offsets, weights) = (bags.offsets, bags.per_sample_weights);
        let bags = CodeBags { rows, offsets, weights, pooling };
        pool_codes(tier, table, &bags, out, stride)
    }

    /// Combines a row with `out`. A row of codes is first written into `scratch`.
    fn write_row(
        self,
        tier: Tier,
        row: usize,
        out: &mut [f32],
        scratch: &mut [f32],
        epilogue: Epilogue<'_>,
    ) -> Consistent {
        match self {
            Self::Rows(rows) => dense::write_row(tier, rows, row, out, epilogue),
            Self::Codes(table) => {
                codebook::write_inner_row(tier, table, row, out, scratch, epilogue)
            }
        }
    }
}

/// A table and the bags that are pooled.
pub(super) struct PoolParts<'t, 'a, 'b> {
    table: &'t Table<'a>,
    row_of: RowOf<'a>,
    bags: &'t Bags<'b>,
    pooling: Pooling,
}

/// How a row of the table becomes a row of the dense rows that are pooled.
#[derive(Clone, Copy)]
enum RowPart {
    Whole,
    Quotient(Divisor),
    Remainder(Divisor),
}

impl RowPart {
    #[inline(always)]
    fn row(self, row: u64) -> u64 {
        match self {
            Self::Whole => row,
            Self::Quotient(by) => by.divide_u64(row).0,
            Self::Remainder(by) => by.divide_u64(row).1.into(),
        }
    }
}

/// The pooled rows of some bags, `stride` elements apart.
struct Part<'o> {
    out: &'o mut [f32],
    stride: usize,
}

impl<'t, 'a, 'b> PoolParts<'t, 'a, 'b> {
    pub(super) fn new(table: &'t Table<'a>, bags: &'t Bags<'b>, pooling: Pooling) -> Self {
        Self { table, row_of: RowOf::new(table.data()), bags, pooling }
    }

    /// A table without overrides and without a projection.
    pub(super) fn pool_mapped(
        &self,
        stored: Stored<'_>,
        out: &mut Output<'_>,
        scratch: &mut [f32],
    ) -> Consistent {
        let part = Part { stride: out.stride, out: out.rows.get_mut(out.first..)? };
        self.pool_part(stored, 0..self.bags.len(), RowPart::Whole, part, scratch)
    }

    /// Sums the rows of each bag as they are before the projection, and then multiplies the sum
    /// once: a projection is linear.
    pub(super) fn pool_projected(
        &self,
        stored: Stored<'_>,
        projection: Elements<'_>,
        mean: bool,
        out: &mut Output<'_>,
        workspace: &mut [f32],
    ) -> Consistent {
        let rank = stored.dim();
        let scratch = if matches!(stored, Stored::Codes(_)) { rank } else { 0 };
        let (scratch, workspace) = workspace.split_at_mut_checked(scratch)?;
        self.for_some(rank, workspace, |range, short| {
            let (num_bags, stride) = (range.len(), out.stride);
            self.pool_part(
                stored,
                range.clone(),
                RowPart::Whole,
                Part { out: short, stride: rank },
                scratch,
            )?;
            let wide = out.rows.get_mut(out.start(range.start)..)?;
            let size = Dims { m: num_bags, r: rank, n: out.embedding_dim };
            store_rows(
                self.table.tier(),
                size,
                short.get(..num_bags * rank)?,
                projection,
                wide,
                stride,
            )?;
            self.add_overrides(range.clone(), out)?;
            for bag in range {
                match self.bags.num_rows(bag)? {
                    // 0 times infinity or NaN in the projection would not be 0.
                    0 => out.row(bag)?.fill(0.0),
                    len if mean => divide(out.row(bag)?, len),
                    _ => {}
                }
            }
            Some(())
        })
    }

    /// Pools each part, and then combines the two results, as DLRM does.
    pub(super) fn pool_quotient_remainder(
        &self,
        table: &QuotientRemainder<'_>,
        out: &mut Output<'_>,
        workspace: &mut [f32],
    ) -> Consistent {
        let num_remainders = Divisor::new(table.num_remainders);
        let (quotient, remainder) =
            (RowPart::Quotient(num_remainders), RowPart::Remainder(num_remainders));
        let second_len = table.remainders.embedding_dim;
        self.for_some(second_len, workspace, |range, second| {
            let (start, stride) = (out.start(range.start), out.stride);
            let first = Part { out: out.rows.get_mut(start..)?, stride };
            let (quotients, remainders) =
                (Stored::Rows(&table.quotients), Stored::Rows(&table.remainders));
            self.pool_part(quotients, range.clone(), quotient, first, &mut [])?;
            if table.combine == Combine::Concat {
                let second = out.rows.get_mut(start + table.quotients.embedding_dim..)?;
                self.pool_part(
                    remainders,
                    range.clone(),
                    remainder,
                    Part { out: second, stride },
                    &mut [],
                )?;
            } else {
                self.pool_part(
                    remainders,
                    range.clone(),
                    remainder,
                    Part { out: second, stride: second_len },
                    &mut [],
                )?;
                for (bag, second) in range.clone().zip(second.chunks_exact(second_len.max(1))) {
                    combine(table.combine, out.row(bag)?, second);
                }
            }
            self.add_overrides(range, out)
        })
    }

    /// Calls `pool` with as many bags at a time as `workspace` has `len` elements for.
    fn for_some(
        &self,
        len: usize,
        workspace: &mut [f32],
        mut pool: impl FnMut(Range<usize>, &mut [f32]) -> Consistent,
    ) -> Consistent {
        let at_once = workspace.len().checked_div(len)?.clamp(1, BAGS);
        let workspace = workspace.get_mut(..at_once * len)?;
        let mut first = 0;
        while first < self.bags.len() {
            let end = (first + at_once).min(self.bags.len());
            pool(first..end, workspace)?;
            first = end;
        }
        Some(())
    }

    /// Pools `row_part` of the rows of these bags, without padding and the indices that have an
    /// override.
    fn pool_part(
        &self,
        stored: Stored<'_>,
        bags: Range<usize>,
        row_part: RowPart,
        part: Part<'_>,
        scratch: &mut [f32],
    ) -> Consistent {
        let row_of = |index: u64| {
            if self.bags.is_padding(index) || self.table.override_position(index).is_some() {
                None
            } else {
                Some(row_part.row(self.row_of.row(index)))
            }
        };
        let (tier, data) = (self.table.tier(), self.table.data());
        // The scalar tier prefers small code: it pools row by row.
        let several = !tier.is_scalar() && u32::try_from(data.num_rows).is_ok();
        let Part { out, stride } = part;
        let are_rows = matches!(row_part, RowPart::Whole)
            && matches!(data.index_map, IndexMap::Identity)
            && matches!(self.bags.indices, Indices::U32(_))
            && data.overrides.is_none()
            && !self.bags.has_padding();
        if several && are_rows {
            return stored.pool(tier, &self.bags.slice(bags)?, self.pooling, out, stride);
        }
        let mut done = 0;
        while done < bags.len() {
            let out = out.get_mut(done * stride..)?;
            let first = bags.start + done;
            if several {
                let count = self.pool_some(stored, first..bags.end, row_of, out, stride)?;
                done += count;
                if count > 0 {
                    continue;
                }
            }
            let out = out.get_mut(..stored.dim())?;
            pool_bag(self.bags, first, self.pooling, out, |index, out, epilogue| {
                let Some(row) = row_of(index) else { return Some(false) };
                stored.write_row(tier, usize::try_from(row).ok()?, out, scratch, epilogue)?;
                Some(true)
            })?;
            done += 1;
        }
        Some(())
    }

    /// Pools the first of these bags: as many whole bags as there is room for on the stack. Returns
    /// their number, which is 0 if the first bag has too many lookups.
    fn pool_some(
        &self,
        stored: Stored<'_>,
        bags: Range<usize>,
        row_of: impl Fn(u64) -> Option<u64>,
        out: &mut [f32],
        stride: usize,
    ) -> Option<usize> {
        let (mut indices, mut weights, mut offsets) =
            ([0u32; LOOKUPS], [0.0; LOOKUPS], [0u32; BAGS + 1]);
        let (mut num_bags, mut count) = (0, 0);
        let start = self.bags.range(bags.start)?.start;
        for (bag, end) in bags.zip(offsets.iter_mut().skip(1)) {
            let range = self.bags.range(bag)?;
            if range.end - start > LOOKUPS {
                break;
            }
            for (index, position) in self.bags.indices.slice(range.clone())?.iter().zip(range) {
                let Some(row) = row_of(index) else { continue };
                *indices.get_mut(count)? = row as u32;
                if let Some(from) = self.bags.per_sample_weights {
                    *weights.get_mut(count)? = *from.get(position)?;
                }
                count += 1;
            }
            *end = count as u32;
            num_bags += 1;
        }
        let bags = Bags {
            indices: Indices::U32(indices.get(..count)?),
            offsets: Indices::U32(offsets.get(..=num_bags)?),
            is_signed: false,
            per_sample_weights: if self.bags.per_sample_weights.is_some() {
                Some(weights.get(..count)?)
            } else {
                None
            },
            padding: Padding::NONE,
            sequential: false,
        };
        if num_bags > 0 {
            stored.pool(self.table.tier(), &bags, self.pooling, out, stride)?;
        }
        Some(num_bags)
    }

    /// Adds overrides to bags that have been pooled without them.
    fn add_overrides(&self, bags: Range<usize>, out: &mut Output<'_>) -> Consistent {
        if self.table.data().overrides.is_none() {
            return Some(());
        }
        for bag in bags {
            let range = self.bags.range(bag)?;
            let indices = self.bags.indices.slice(range.clone())?;
            let override_of = |index: u64| {
                if self.bags.is_padding(index) {
                    None
                } else {
                    self.table.override_position(index)
                }
            };
            let num_overrides =
                indices.iter().filter(|&index| override_of(index).is_some()).count();
            if num_overrides == 0 {
                continue;
            }
            let out = out.row(bag)?;
            let num_rows = self.bags.num_rows(bag)?;
            let others = num_rows - num_overrides;
            let mut are_none = others == 0;
            if self.pooling == Pooling::Mean && !are_none {
                out.iter_mut().for_each(|mean| *mean *= others as f32);
            } else if are_none {
                out.fill(0.0);
            }
            for (index, position) in indices.iter().zip(range) {
                let Some(row) = override_of(index) else { continue };
                let epilogue = match (self.pooling, self.bags.per_sample_weights) {
                    (Pooling::Max, _) if are_none => Epilogue::Store,
                    (Pooling::Max, _) => Epilogue::MaxScaled(1.0),
                    (_, Some(weights)) => Epilogue::AddScaled(*weights.get(position)?),
                    (_, None) => Epilogue::AddScaled(1.0),
                };
                self.table.write_stored_row(StoredRow::Override(row), out, epilogue)?;
                are_none = false;
            }
            if self.pooling == Pooling::Mean {
                divide(out, num_rows);
            }
        }
        Some(())
    }
}
