//! Bags over a tensor-train table: lookups that share slices are multiplied out together.
//!
//! The lookups of a batch are sorted by prefix: lookups with the same prefix become adjacent, and
//! so do prefixes with the same slice of the last core but one. Prefixes are multiplied out a chunk
//! at a time, each once. The left operands of a slice are stacked into one tall product, and the
//! last step follows while the chunk's products are in the nearest cache. Where a bag has several
//! lookups of one prefix, their last slices are summed before they are multiplied, if that is less
//! work: pooling is linear.
//!
//! The order in which a bag's rows are added depends on that bag alone: stored rows first, in the
//! order of its indices; then the others by prefix, in the order of [`Digits::prefix_key`], and
//! within a prefix in the order of its indices. Last slices are summed [`MAX_SUMMED`] at a time,
//! counted from the first lookup of the prefix, so that such a group never has to be split. So a
//! bag's bits depend neither on the batch nor on the workspace.

#![allow(
    clippy::arithmetic_side_effects,
    reason = "sizes and positions within slices, and products that `TtShape::new` has checked"
)]

use super::{Bags, digits::Digits, divide, sort::sort};
use crate::{
    dtype::{Elements, Weight, with_core_elements, with_elements},
    index::{Indices, Integer, with_integers},
    isa::Tier,
    kernel::{
        AddRow, AddRows, Consistent, Dims, Epilogue, GatherRows, Job, Prefetch, ZeroRows,
        add_products, chain_step, store_products, widen,
    },
    repr::{Core, TtCores},
    shape::{MAX_CORES, TtShape},
    table::{StoredRow, Table, index_map::RowOf, step_size},
};
use core::ops::Range;

/// The most lookups that are sorted together. At 20 bytes each they take 320 KiB, which fits the
/// second-level cache, and more lookups would share few more prefixes.
const MAX_LOOKUPS: usize = 1 << 14;
/// Lookups that are sorted on the stack, if the workspace has room for fewer.
const FEW_LOOKUPS: usize = 32;
/// The most lookups of one prefix in one bag whose last slices are summed together. A bag with more
/// lookups than there is room for is sorted in parts of at least half of [`FEW_LOOKUPS`], and such
/// a group must fit the smallest part, or the bits of the sum would depend on the workspace.
const MAX_SUMMED: usize = FEW_LOOKUPS / 2;
/// The most prefixes of a chunk: their operands are kept on the stack.
pub(crate) const MAX_CHUNK: usize = 32;
/// Bytes of a chunk's partial products: half of a first-level cache of 32 KiB. The slice that they
/// are multiplied by needs room too.
const CHUNK_BYTES: usize = 16 << 10;
/// Products that one call of a kernel computes: as many as it computes side by side.
const JOBS: usize = 8;
/// Lookups that are searched for among the stored rows before any of these rows is added, so that
/// cache misses overlap.
const SEARCHED: usize = 32;
/// Stored rows that are added by one call: several times as many as [`AddRows`] prefetches ahead,
/// because the first ones of a call are not prefetched.
const ROWS: usize = 128;

/// The f32 elements of workspace with which a batch of `num_lookups` is fastest.
pub(super) fn best_workspace_len(shape: &TtShape, num_lookups: usize) -> usize {
    let partials = shape
        .partial_len()
        .saturating_mul(shape.num_partials())
        .saturating_mul(best_chunk(shape));
    let sorting = SORTING_LEN.saturating_mul(num_lookups.min(MAX_LOOKUPS)).saturating_add(1);
    partials.saturating_add(last_slice_len(shape)).saturating_add(sorting)
}

/// f32 elements of workspace for each sorted lookup: an entry and its copy, of two elements each,
/// and the lookup's bag.
const SORTING_LEN: usize = 2 + 2 + 1;

fn last_slice_len(shape: &TtShape) -> usize {
    shape.slice_len(shape.num_cores().saturating_sub(1))
}

fn best_chunk(shape: &TtShape) -> usize {
    let bytes = shape.partial_len().saturating_mul(size_of::<f32>()).max(1);
    (CHUNK_BYTES / bytes).clamp(1, MAX_CHUNK)
}

/// The output: the pooled row of bag b goes to the `embedding_dim` elements of `rows` from
/// `b * stride + first` on.
pub(super) struct Output<'o> {
    pub(super) rows: &'o mut [f32],
    pub(super) stride: usize,
    pub(super) first: usize,
    pub(super) embedding_dim: usize,
}

impl Output<'_> {
    pub(super) fn start(&self, bag: usize) -> usize {
        bag * self.stride + self.first
    }

    pub(super) fn fill_zero(&mut self, tier: Tier, bags: Range<usize>) -> Consistent {
        if self.stride == self.embedding_dim {
            self.rows.get_mut(self.start(bags.start)..self.start(bags.end))?.fill(0.0);
            return Some(());
        }
        tier.run(ZeroRows {
            out: self.rows.get_mut(self.start(bags.start)..)?,
            count: bags.len(),
            stride: self.stride,
            embedding_dim: self.embedding_dim,
        })
    }

    pub(super) fn row(&mut self, bag: usize) -> Option<&mut [f32]> {
        let start = self.start(bag);
        self.rows.get_mut(start..)?.get_mut(..self.embedding_dim)
    }
}

/// The parts of a caller's workspace.
struct Buffers<'w> {
    /// The sum of some last slices.
    last_slice: &'w mut [f32],
    /// Partial products of a chunk, used in turn.
    partials: [&'w mut [f32]; 2],
    chunk: usize,
    /// Lookups to sort, and memory to move them to.
    entries: &'w mut [u64],
    spare: &'w mut [u64],
    /// The bag of each lookup of a segment.
    bag_of: &'w mut [u32],
}

impl<'w> Buffers<'w> {
    fn new(shape: &TtShape, num_lookups: usize, workspace: &'w mut [f32]) -> Option<Self> {
        let (last_slice, rest) = workspace.split_at_mut_checked(last_slice_len(shape))?;
        let prefix_len = shape.partial_len() * shape.num_partials();
        let sorting_len = SORTING_LEN * num_lookups.min(MAX_LOOKUPS) + 1;
        // If there is not enough room for both, partial products get half.
        let for_partials = rest.len().saturating_sub(sorting_len).max(rest.len() / 2);
        let chunk = (for_partials / prefix_len.max(1)).clamp(1, best_chunk(shape));
        let (partials, rest) = rest.split_at_mut_checked(chunk * prefix_len)?;
        let (even, odd) = partials.split_at_mut_checked(chunk * shape.partial_len())?;
        let lookups = (rest.len().saturating_sub(1) / SORTING_LEN).min(MAX_LOOKUPS);
        let (bag_of, rest) = rest.split_at_mut_checked(lookups)?;
        let (_, entries, _) = bytemuck::pod_align_to_mut::<f32, u64>(rest);
        let (entries, rest) = entries.split_at_mut_checked(lookups)?;
        let spare = rest.get_mut(..lookups)?;
        Some(Self {
            last_slice,
            partials: [even, odd],
            chunk,
            entries,
            spare,
            bag_of: bytemuck::cast_slice_mut(bag_of),
        })
    }
}

impl Buffers<'_> {
    /// Sorts the first `count` entries, whose prefix keys are below `limit`.
    fn sort(&mut self, count: usize, limit: u32) {
        if sort(self.entries.get_mut(..count).unwrap_or_default(), self.spare, limit) {
            core::mem::swap(&mut self.entries, &mut self.spare);
        }
    }
}

/// Adjacent bags whose lookups are sorted together. A lookup's entry is `prefix key << 32 |
/// position`, the position counted from the segment's first lookup.
#[derive(Clone, Copy)]
struct Segment<'s> {
    indices: Indices<'s>,
    row_of: RowOf<'s>,
    weights: Option<&'s [f32]>,
    padding_idx: u64,
    bags: BagOf<'s>,
}

/// Which bag a lookup belongs to.
#[derive(Clone, Copy)]
enum BagOf<'s> {
    One(usize),
    Each(&'s [u32]),
}

impl Segment<'_> {
    /// The lookup's position in the segment.
    #[inline(always)]
    fn position(entry: u64) -> usize {
        entry as u32 as usize
    }

    #[inline(always)]
    fn row(&self, entry: u64) -> Option<u32> {
        Some(self.row_of_index(self.indices.get(Self::position(entry))?))
    }

    #[inline(always)]
    fn row_of_index(&self, index: u64) -> u32 {
        match self.row_of {
            RowOf::Identity => index as u32,
            _ => mapped_row(&self.row_of, index),
        }
    }

    #[inline(always)]
    fn bag(&self, entry: u64) -> Option<usize> {
        match self.bags {
            BagOf::One(bag) => Some(bag),
            BagOf::Each(bags) => bags.get(Self::position(entry)).map(|&bag| bag as usize),
        }
    }

    #[inline(always)]
    fn weight(&self, entry: u64) -> Option<f32> {
        self.weights
            .map_or(Some(1.0), |weights| weights.get(Self::position(entry)).copied())
    }
}

/// Not inlined: it would slow down the loops over tables without an index map.
#[inline(never)]
fn mapped_row(row_of: &RowOf<'_>, index: u64) -> u32 {
    row_of.row(index) as u32
}

/// A prefix of a chunk.
#[derive(Clone, Copy)]
struct Prefix<'e> {
    lookups: &'e [u64],
    /// Its product, if the table stores it.
    stored: Option<&'e [f32]>,
}

/// A table whose bags are pooled.
pub(super) struct Pool<'t, 'a> {
    table: &'t Table<'a>,
    tt: &'t TtCores<'a>,
    row_of: RowOf<'a>,
    digits: Digits,
    tier: Tier,
    /// Sizes of the last step of one lookup.
    last_step: Dims,
    /// The least number of a bag's lookups of one prefix whose last slices are summed first.
    pool_slices_from: usize,
}

impl<'t, 'a> Pool<'t, 'a> {
    /// `None` if the rows of the table, the lookups or the bags do not fit 32 bits.
    pub(super) fn new(table: &'t Table<'a>, tt: &'t TtCores<'a>, bags: &Bags<'_>) -> Option<Self> {
        u32::try_from(bags.indices.len().max(bags.len())).ok()?;
        let last = tt.shape.num_cores().checked_sub(1)?;
        let n = tt.shape.column_factor(last);
        let m = table.embedding_dim().checked_div(n)?;
        Some(Self {
            table,
            tt,
            row_of: RowOf::new(table.data()),
            digits: Digits::new(&tt.shape)?,
            tier: table.tier(),
            last_step: Dims { m, r: tt.shape.rank(last), n },
            pool_slices_from: pool_slices_from(m),
        })
    }

    /// Sums or averages each bag. `None` if lengths contradict each other.
    pub(super) fn pool(
        &self,
        bags: &Bags<'_>,
        mean: bool,
        out: &mut Output<'_>,
        workspace: &mut [f32],
    ) -> Consistent {
        let mut buffers = Buffers::new(&self.tt.shape, bags.indices.len(), workspace)?;
        let mut few = [0; FEW_LOOKUPS];
        if buffers.entries.len() < FEW_LOOKUPS {
            (buffers.entries, buffers.spare, buffers.bag_of) = (&mut few, &mut [], &mut []);
        }
        let mut first = 0;
        while first < bags.len() {
            let end = self.segment_end(bags, first, &buffers)?;
            out.fill_zero(self.tier, first..end)?;
            let lookups = bags.range(first)?.start..bags.range(end - 1)?.end;
            let mut segment = Segment {
                indices: bags.indices.slice(lookups.clone())?,
                row_of: self.row_of,
                weights: match bags.per_sample_weights {
                    Some(weights) => Some(weights.get(lookups.clone())?),
                    None => None,
                },
                padding_idx: bags.padding.0,
                bags: BagOf::One(first),
            };
            if end - first > 1 {
                // Moved out of `buffers`, so that the segment can borrow it.
                let bag_of = core::mem::take(&mut buffers.bag_of);
                let mut rest = &mut *bag_of;
                for bag in first..end {
                    let (bag_lookups, after) = rest.split_at_mut_checked(bags.range(bag)?.len())?;
                    bag_lookups.iter_mut().for_each(|to| *to = bag as u32);
                    rest = after;
                }
                segment.bags = BagOf::Each(bag_of);
                self.pool_segment(&segment, out, &mut buffers)?;
                buffers.bag_of = bag_of;
            } else {
                self.pool_segment(&segment, out, &mut buffers)?;
            }
            if mean {
                for bag in first..end {
                    divide(out.row(bag)?, bags.num_rows(bag)?);
                }
            }
            first = end;
        }
        Some(())
    }

    /// The end of the bags that are sorted together with bag `first`: as many whole bags as there
    /// is room for, but at least one.
    fn segment_end(&self, bags: &Bags<'_>, first: usize, buffers: &Buffers<'_>) -> Option<usize> {
        let start = bags.range(first)?.start;
        let room = buffers.entries.len().min(buffers.bag_of.len());
        let mut end = first + 1;
        while end < bags.len() && bags.range(end)?.end - start <= room {
            end += 1;
        }
        Some(end)
    }

    /// Adds up the bags of a segment.
    fn pool_segment(
        &self,
        segment: &Segment<'_>,
        out: &mut Output<'_>,
        buffers: &mut Buffers<'_>,
    ) -> Consistent {
        if segment.indices.len() <= buffers.entries.len() {
            let mut count = 0;
            self.each_entry(segment, Some(out), |entry| {
                *buffers.entries.get_mut(count)? = entry;
                count += 1;
                Some(())
            })?;
            buffers.sort(count, self.digits.num_prefixes());
            return self.multiply_out(segment, count, out, buffers);
        }
        // One bag with more lookups than there is room for: passes over its lookups take the least
        // keys, then the least of the rest, and so on. When the room is full, the upper half is
        // dropped for a later pass, and with it everything above `ceiling`.
        let mut floor = None;
        loop {
            let mut count = 0;
            let mut ceiling = u64::MAX;
            let rows = if floor.is_none() { Some(&mut *out) } else { None };
            self.each_entry(segment, rows, |entry| {
                if floor.is_some_and(|floor| entry <= floor) || entry > ceiling {
                    return Some(());
                }
                if count == buffers.entries.len() {
                    buffers.sort(count, self.digits.num_prefixes());
                    count = count.div_ceil(2);
                    ceiling = *buffers.entries.get(count - 1)?;
                    if entry > ceiling {
                        return Some(());
                    }
                }
                *buffers.entries.get_mut(count)? = entry;
                count += 1;
                Some(())
            })?;
            if count == 0 {
                return Some(());
            }
            buffers.sort(count, self.digits.num_prefixes());
            if ceiling < u64::MAX {
                count -= unfinished(buffers.entries.get(..count)?);
            }
            floor = buffers.entries.get(count - 1).copied();
            self.multiply_out(segment, count, out, buffers)?;
        }
    }

    /// Calls `take` with the entry of each lookup whose row is not stored, and adds stored rows to
    /// their bags, if `out` is given. Padding is left out.
    #[inline(always)]
    fn each_entry(
        &self,
        segment: &Segment<'_>,
        mut out: Option<&mut Output<'_>>,
        mut take: impl FnMut(u64) -> Consistent,
    ) -> Consistent {
        let entry = |index: u64, position: u32| {
            u64::from(self.digits.prefix_key(segment.row_of_index(index))) << 32
                | u64::from(position)
        };
        if !self.table.has_stored_rows() {
            return with_integers!(segment.indices, indices => {
                let lookups = indices.iter().map(|index| index.to_u64()).zip(0u32..);
                let mut lookups = lookups.filter(|(index, _)| *index != segment.padding_idx);
                lookups.try_for_each(|(index, position)| take(entry(index, position)))
            });
        }
        let mut jobs = [AddRow::EMPTY; ROWS];
        let mut count = 0;
        let mut are_cached = false;
        for (start, base) in
            (0..segment.indices.len()).step_by(SEARCHED).zip((0u32..).step_by(SEARCHED))
        {
            let indices =
                segment.indices.slice(start..segment.indices.len().min(start + SEARCHED))?;
            // Search for all of them first, so that cache misses overlap.
            let mut stored = [None; SEARCHED];
            stored
                .iter_mut()
                .zip(indices.iter())
                .for_each(|(to, index)| *to = self.table.stored_row(index));
            for ((index, stored), position) in indices.iter().zip(stored).zip(base..) {
                if index == segment.padding_idx {
                    continue;
                }
                let Some(stored) = stored else {
                    take(entry(index, position))?;
                    continue;
                };
                let Some(out) = &mut out else { continue };
                let (row, is_cached) = match stored {
                    StoredRow::Cached(row) => (row, true),
                    StoredRow::Override(row) => (row, false),
                };
                if count == ROWS || is_cached != are_cached {
                    self.add_stored(are_cached, jobs.get(..count)?, out)?;
                    (count, are_cached) = (0, is_cached);
                }
                let (bag, weight) =
                    (segment.bag(position.into())?, segment.weight(position.into())?);
                *jobs.get_mut(count)? = AddRow { row, out: out.start(bag), weight };
                count += 1;
            }
        }
        match out {
            Some(out) => self.add_stored(are_cached, jobs.get(..count)?, out),
            None => Some(()),
        }
    }

    /// Adds cached rows, or overrides, to their bags.
    fn add_stored(&self, are_cached: bool, jobs: &[AddRow], out: &mut Output<'_>) -> Consistent {
        let overrides = self.table.data().overrides.as_ref().map(|overrides| overrides.rows);
        let Some(rows) = (if are_cached {
            self.table.cached_rows()
        } else {
            overrides
        }) else {
            return Some(());
        };
        with_elements!(rows.elements, stored => self.tier.run(AddRows {
            stored,
            row_stride: rows.row_stride(),
            embedding_dim: out.embedding_dim,
            jobs,
            out: out.rows,
        }))
    }

    /// Adds the rows of the first `count` entries, which are sorted, to their bags.
    fn multiply_out(
        &self,
        segment: &Segment<'_>,
        count: usize,
        out: &mut Output<'_>,
        buffers: &mut Buffers<'_>,
    ) -> Consistent {
        let entries = buffers.entries.get(..count)?;
        let [even, odd] = &mut buffers.partials;
        let (even, odd, last_slice) = (&mut **even, &mut **odd, &mut *buffers.last_slice);
        let mut prefixes = [Prefix { lookups: &[], stored: None }; MAX_CHUNK];
        let mut to_compute = [[0; MAX_CORES]; MAX_CHUNK];
        let mut rest = entries;
        while !rest.is_empty() {
            let prefixes = prefixes.get_mut(..buffers.chunk)?;
            let (length, computed);
            (rest, length, computed) = self.chunk(segment, rest, prefixes, &mut to_compute)?;
            let (prefixes, to_compute) = (prefixes.get(..length)?, to_compute.get(..computed)?);
            let (shape, core) = (&self.tt.shape, self.tt.cores.first()?);
            with_core_elements!(core.slices, slices => {
                gather(self.tier, shape, slices, core.scales, to_compute, even)
            })??;
            let (mut x, mut spare) = (&mut *even, &mut *odd);
            for k in 1..shape.num_cores() - 1 {
                let core = self.tt.cores.get(k)?;
                with_core_elements!(core.slices, slices => {
                    step(self.tier, shape, k, slices, core.scales, to_compute, x, spare)
                })??;
                core::mem::swap(&mut x, &mut spare);
            }
            let core = self.tt.cores.get(shape.num_cores() - 1)?;
            with_core_elements!(core.slices, slices => {
                self.last_step(slices, core, segment, prefixes, x, last_slice, out)
            })??;
        }
        Some(())
    }

    /// Divides the first entries into `prefixes`, and lists the digits of those whose products are
    /// not stored. Returns the other entries, and the lengths of the two lists.
    #[inline(never)]
    fn chunk<'e>(
        &self,
        segment: &Segment<'_>,
        mut rest: &'e [u64],
        prefixes: &mut [Prefix<'e>],
        to_compute: &mut [[u32; MAX_CORES]; MAX_CHUNK],
    ) -> Option<(&'e [u64], usize, usize)>
    where
        'a: 'e,
    {
        let (mut length, mut computed) = (0, 0);
        for prefix in prefixes {
            let Some((&entry, others)) = rest.split_first() else { break };
            let key = (entry >> 32) as u32;
            let mut after = others;
            while let Some((&other, others)) = after.split_first()
                && (other >> 32) as u32 == key
            {
                after = others;
            }
            let lookups = rest.get(..rest.len() - after.len())?;
            let stored = self.stored_product(segment, entry);
            if let Some(xs) = stored {
                self.tier.run(Prefetch { xs });
            } else {
                self.digits.write_prefix(key, to_compute.get_mut(computed)?);
                computed += 1;
            }
            *prefix = Prefix { lookups, stored };
            rest = after;
            length += 1;
        }
        Some((rest, length, computed))
    }

    /// The product of a lookup's prefix, if it is stored.
    #[inline(always)]
    fn stored_product(&self, segment: &Segment<'_>, entry: u64) -> Option<&'a [f32]> {
        let prefixes = self.tt.prefixes.as_ref()?;
        let Dims { m, r, .. } = self.last_step;
        prefixes.product(self.digits.prefix(segment.row(entry)?).into(), m * r)
    }

    /// Adds the last product of each lookup to its bag.
    // Inlined, it and the others would share the registers of one function.
    #[inline(never)]
    #[expect(clippy::too_many_arguments, reason = "the state of the loop over chunks")]
    fn last_step<W: Weight>(
        &self,
        slices: &[W],
        core: &Core<'_>,
        segment: &Segment<'_>,
        prefixes: &[Prefix<'_>],
        x: &[f32],
        last_slice: &mut [f32],
        out: &mut Output<'_>,
    ) -> Consistent {
        let Dims { m, r, n } = self.last_step;
        let mut jobs = [Job::EMPTY; JOBS];
        let mut count = 0;
        let mut computed = x.chunks_exact((m * r).max(1));
        for &Prefix { mut lookups, stored } in prefixes {
            let x = match stored {
                Some(product) => product,
                None => computed.next()?,
            };
            while let Some((&entry, others)) = lookups.split_first() {
                let bag = segment.bag(entry)?;
                let same = if lookups.len() < self.pool_slices_from {
                    1
                } else {
                    let others = others.iter().take(MAX_SUMMED - 1);
                    1 + others.take_while(|&&other| segment.bag(other) == Some(bag)).count()
                };
                if same < self.pool_slices_from {
                    lookups = others;
                    let digit = self.digits.last(segment.row(entry)?) as usize;
                    let weight = segment.weight(entry)?;
                    *jobs.get_mut(count)? = Job {
                        m,
                        x,
                        slice: slices.get(digit * r * n..)?.get(..r * n)?,
                        out: out.start(bag),
                        scale: if W::SCALED {
                            weight * *core.scales.get(digit)?
                        } else {
                            weight
                        },
                    };
                    count += 1;
                    if count == JOBS {
                        add_products(self.tier, Dims { m, r, n }, &jobs, out.rows)?;
                        count = 0;
                    }
                    continue;
                }
                let (these, rest) = lookups.split_at_checked(same)?;
                lookups = rest;
                // Entries are added in order: first the jobs of the entries before these.
                add_products(self.tier, Dims { m, r, n }, jobs.get(..count)?, out.rows)?;
                count = 0;
                last_slice.fill(0.0);
                for &entry in these {
                    let digit = self.digits.last(segment.row(entry)?) as usize;
                    let slice = core.slices.chunk(digit, r * n)?;
                    let scale = segment.weight(entry)? * core.scale(digit)?;
                    widen(self.tier, slice, 1.0, -0.0, last_slice, Epilogue::AddScaled(scale))?;
                }
                let slice = Elements::from_f32(last_slice);
                chain_step(
                    self.tier,
                    Dims { m, r, n },
                    x,
                    slice,
                    out.row(bag)?,
                    Epilogue::AddScaled(1.0),
                )?;
            }
        }
        add_products(self.tier, Dims { m, r, n }, jobs.get(..count)?, out.rows)
    }
}

/// Copies the slice of core 0 of each prefix, one after another: X_1 of each.
pub(crate) fn gather<W: Weight>(
    tier: Tier,
    shape: &TtShape,
    stored: &[W],
    scales: &[f32],
    prefixes: &[[u32; MAX_CORES]],
    out: &mut [f32],
) -> Consistent {
    let rows = prefixes.iter().map(|&[digit, ..]| digit as usize);
    tier.run(GatherRows { stored, scales, len: shape.slice_len(0), rows, out })
}

/// Step k of up to [`MAX_CHUNK`] prefixes, from X_k to X_{k+1}. Adjacent prefixes with the same
/// slice are one product.
#[inline(never)]
#[expect(clippy::too_many_arguments, reason = "the operands of a product and their layout")]
pub(crate) fn step<W: Weight>(
    tier: Tier,
    shape: &TtShape,
    k: usize,
    slices: &[W],
    scales: &[f32],
    prefixes: &[[u32; MAX_CORES]],
    x: &[f32],
    out: &mut [f32],
) -> Consistent {
    let (r, n) = step_size(shape, k);
    let m = shape.column_factors().get(..k)?.iter().map(|&q| q as usize).product::<usize>();
    let mut jobs = [Job::EMPTY; JOBS];
    let mut count = 0;
    let mut first = 0;
    while let Some(prefix) = prefixes.get(first) {
        let digit = *prefix.get(k)?;
        let same = prefixes
            .get(first..)?
            .iter()
            .take_while(|other| other.get(k) == Some(&digit))
            .count();
        *jobs.get_mut(count)? = Job {
            m: same * m,
            x: x.get(first * m * r..)?.get(..same * m * r)?,
            slice: slices.get(digit as usize * r * n..)?.get(..r * n)?,
            out: first * m * n,
            scale: if W::SCALED { *scales.get(digit as usize)? } else { 1.0 },
        };
        count += 1;
        first += same;
        if count == JOBS {
            store_products(tier, r, n, &jobs, out)?;
            count = 0;
        }
    }
    store_products(tier, r, n, jobs.get(..count)?, out)
}

/// How many of the last entries are left for the next pass: the incomplete group of last slices, to
/// which that pass may bring more lookups of the same prefix.
fn unfinished(entries: &[u64]) -> usize {
    let prefix = |entry: &u64| entry >> 32;
    let last = entries.last().map(prefix);
    entries.iter().rev().take_while(|entry| Some(prefix(entry)) == last).count() % MAX_SUMMED
}

/// The number of lookups of one prefix in one bag from which it is less work to sum their last
/// slices (k sums of `r n` elements) and multiply once (`m r n`) than to multiply each slice by the
/// prefix (k products). A multiply-add of a product takes about 0.6 of the time of a vector
/// multiply-add, and one of a sum, which loads and stores, takes about 2.5 times as long as one of
/// a product (`ttrec bench` on AVX2, slices in the second-level cache).
fn pool_slices_from(m: usize) -> usize {
    // k m > 1.15 (m + 2.5 k)
    (2..=MAX_SUMMED).find(|k| 20 * k * m > 23 * m + 58 * k).unwrap_or(usize::MAX)
}
