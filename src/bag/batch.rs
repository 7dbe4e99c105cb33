//! Bags over a tensor-train table: lookups that share slices are multiplied out together.
//!
//! The lookups of a batch are sorted by prefix, so that those which share the slice of the last core but one stand together,
//! and those which share their whole prefix side by side. Prefixes are then multiplied out a chunk at a time, each once: the
//! left operands of a slice are stacked into one tall product, and the last step is done while they are in the nearest
//! cache. Where a bag has several lookups of one prefix, their last slices are summed before they are multiplied, if that is
//! less work: pooling is linear.
//!
//! In which order a bag's rows are added depends on that bag alone: stored rows first, in the order of its indices; then by
//! prefix, in the order of [`Digits::prefix_key`], and by the order of its indices among equals. So its bits depend neither
//! on the batch nor on the workspace.

#![allow(
    clippy::arithmetic_side_effects,
    reason = "sizes and positions of what is in memory, and products of `TtShape` that its constructor has checked"
)]

use super::{Bags, Index, digits::Digits, divide, sort::sort};
use crate::{
    blob::{Core, TtCores},
    dtype::{Elements, Weight, with_core_elements},
    isa::Tier,
    kernel::{Epilogue, Job, add_products, chain_step, store_products, widen},
    shape::{MAX_CORES, TtShape},
    table::{Table, num_partials, step_size},
};
use core::ops::Range;

/// Lookups that are sorted together: more would share little more, and their memory would no longer fit a cache.
const MAX_LOOKUPS: usize = 1 << 14;
/// Lookups that are sorted on the stack, where the workspace has no room for more.
const FEW_LOOKUPS: usize = 32;
/// Prefixes of a chunk at most.
const MAX_CHUNK: usize = 32;
/// Bytes of their products, so that they and a slice fit the nearest cache.
const CHUNK_BYTES: usize = 16 << 10;
/// Products that are handed to a kernel together.
const JOBS: usize = 32;

/// f32 elements of workspace beyond which a batch of `num_lookups` gets no faster.
pub(super) fn best_workspace_len(shape: &TtShape, num_lookups: usize) -> usize {
    let partials = shape.partial_len().saturating_mul(num_partials(shape)).saturating_mul(best_chunk(shape));
    let sorting = SORTING_LEN.saturating_mul(num_lookups.min(MAX_LOOKUPS)).saturating_add(1);
    partials.saturating_add(last_slice_len(shape)).saturating_add(sorting)
}

/// Words of workspace for each lookup that is sorted: an entry, room to move it to, and its bag.
const SORTING_LEN: usize = 2 + 2 + 1;

fn last_slice_len(shape: &TtShape) -> usize {
    shape.slice_len(shape.num_cores().saturating_sub(1))
}

fn best_chunk(shape: &TtShape) -> usize {
    let bytes = shape.partial_len().saturating_mul(size_of::<f32>()).max(1);
    (CHUNK_BYTES / bytes).clamp(1, MAX_CHUNK)
}

/// Where pooled rows go: that of bag b to the `embedding_dim` elements of `rows` from `b * stride + first` on.
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

    pub(super) fn row(&mut self, bag: usize) -> Option<&mut [f32]> {
        let start = self.start(bag);
        self.rows.get_mut(start..)?.get_mut(..self.embedding_dim)
    }
}

/// A caller's workspace, divided.
struct Buffers<'w> {
    /// The sum of some last slices.
    last_slice: &'w mut [f32],
    /// Partial products of a chunk, used in turn.
    partials: [&'w mut [f32]; 2],
    chunk: usize,
    /// Lookups to be sorted, and room to move them to.
    entries: &'w mut [u64],
    spare: &'w mut [u64],
    /// The bag of each lookup of a segment.
    bag_of: &'w mut [u32],
}

impl<'w> Buffers<'w> {
    fn new(shape: &TtShape, num_lookups: usize, workspace: &'w mut [f32]) -> Option<Self> {
        let (last_slice, rest) = workspace.split_at_mut_checked(last_slice_len(shape))?;
        let prefix_len = shape.partial_len() * num_partials(shape);
        let sorting_len = SORTING_LEN * num_lookups.min(MAX_LOOKUPS) + 1;
        // Where there is not room for everything, half of it is for partial products.
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

/// Some lookups of a batch: entries are `prefix key << 32 | position`, positions counted from `start`.
#[derive(Clone, Copy)]
struct Segment<'s, X> {
    indices: &'s [X],
    weights: Option<&'s [f32]>,
    bags: BagOf<'s>,
}

/// Which bag a lookup belongs to.
#[derive(Clone, Copy)]
enum BagOf<'s> {
    One(usize),
    Each(&'s [u32]),
}

impl<X: Index> Segment<'_, X> {
    /// The lookup's position in the segment.
    #[inline(always)]
    fn position(entry: u64) -> usize {
        entry as u32 as usize
    }

    #[inline(always)]
    fn row(&self, entry: u64) -> Option<u32> {
        Some(self.indices.get(Self::position(entry))?.to_u64() as u32)
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
        self.weights.map_or(Some(1.0), |weights| weights.get(Self::position(entry)).copied())
    }
}

/// A prefix of a chunk.
#[derive(Clone, Copy)]
struct Prefix<'e> {
    digits: [u32; MAX_CORES],
    lookups: &'e [u64],
}

/// A table whose bags are pooled.
pub(super) struct Pool<'t, 'a> {
    table: &'t Table<'a>,
    tt: &'t TtCores<'a>,
    digits: Digits,
    tier: Tier,
    /// Rows and columns of the last step's left operand, and columns of its slices.
    last_step: [usize; 3],
    /// The least number of a bag's lookups of one prefix whose last slices are summed first.
    pool_slices_from: usize,
}

impl<'t, 'a> Pool<'t, 'a> {
    /// `None` if the rows of the table or the lookups do not fit 32 bits.
    pub(super) fn new(table: &'t Table<'a>, tt: &'t TtCores<'a>, num_lookups: usize) -> Option<Self> {
        u32::try_from(num_lookups).ok()?;
        let last = tt.shape.num_cores().checked_sub(1)?;
        let n = tt.shape.column_factor(last);
        let m = table.embedding_dim().checked_div(n)?;
        Some(Self {
            table,
            tt,
            digits: Digits::new(&tt.shape)?,
            tier: table.tier(),
            last_step: [m, tt.shape.rank(last), n],
            pool_slices_from: pool_slices_from(m),
        })
    }

    /// Sums or averages each bag. `None` if lengths contradict each other.
    pub(super) fn pool<X: Index>(
        &self,
        bags: &Bags<'_, X>,
        mean: bool,
        out: &mut Output<'_>,
        workspace: &mut [f32],
    ) -> Option<()> {
        let mut buffers = Buffers::new(&self.tt.shape, bags.indices.len(), workspace)?;
        let mut few = [0; FEW_LOOKUPS];
        if buffers.entries.len() < FEW_LOOKUPS {
            (buffers.entries, buffers.spare, buffers.bag_of) = (&mut few, &mut [], &mut []);
        }
        let mut first = 0;
        while first < bags.len() {
            let end = self.segment_end(bags, first, &buffers)?;
            for bag in first..end {
                out.row(bag)?.fill(0.0);
            }
            let lookups = bags.range(first)?.start..bags.range(end - 1)?.end;
            let mut segment = Segment {
                indices: bags.indices.get(lookups.clone())?,
                weights: match bags.per_sample_weights {
                    Some(weights) => Some(weights.get(lookups.clone())?),
                    None => None,
                },
                bags: BagOf::One(first),
            };
            if end - first > 1 {
                // Out of the buffers while the segment borrows it.
                let bag_of = core::mem::take(&mut buffers.bag_of);
                for bag in first..end {
                    let Range { start, end } = bags.range(bag)?;
                    let of_bag = bag_of.get_mut(start - lookups.start..end - lookups.start)?;
                    of_bag.fill(u32::try_from(bag).ok()?);
                }
                segment.bags = BagOf::Each(bag_of);
                self.pool_segment(&segment, out, &mut buffers)?;
                buffers.bag_of = bag_of;
            } else {
                self.pool_segment(&segment, out, &mut buffers)?;
            }
            if mean {
                for bag in first..end {
                    divide(out.row(bag)?, bags.range(bag)?.len());
                }
            }
            first = end;
        }
        Some(())
    }

    /// The end of the bags that are sorted together with bag `first`: as many whole ones as there is room for, or one.
    fn segment_end<X: Index>(&self, bags: &Bags<'_, X>, first: usize, buffers: &Buffers<'_>) -> Option<usize> {
        let start = bags.range(first)?.start;
        let room = buffers.entries.len().min(buffers.bag_of.len());
        let mut end = first + 1;
        while end < bags.len() && bags.range(end)?.end - start <= room {
            end += 1;
        }
        Some(end)
    }

    /// Adds up the bags of a segment.
    fn pool_segment<X: Index>(
        &self,
        segment: &Segment<'_, X>,
        out: &mut Output<'_>,
        buffers: &mut Buffers<'_>,
    ) -> Option<()> {
        self.add_stored_rows(segment, out)?;
        if segment.indices.len() <= buffers.entries.len() {
            let mut count = 0;
            for entry in self.entries(segment) {
                *buffers.entries.get_mut(count)? = entry;
                count += 1;
            }
            buffers.sort(count, self.digits.num_prefixes());
            return self.multiply_out(segment, count, out, buffers);
        }
        // A bag of more lookups than there is room for: those with the least keys, then the least of the rest, and so on.
        let mut floor = None;
        loop {
            let mut count = 0;
            let mut ceiling = u64::MAX;
            for entry in self.entries(segment) {
                if floor.is_some_and(|floor| entry <= floor) || entry > ceiling {
                    continue;
                }
                if count == buffers.entries.len() {
                    buffers.sort(count, self.digits.num_prefixes());
                    count = count.div_ceil(2);
                    ceiling = *buffers.entries.get(count - 1)?;
                    if entry > ceiling {
                        continue;
                    }
                }
                *buffers.entries.get_mut(count)? = entry;
                count += 1;
            }
            if count == 0 {
                return Some(());
            }
            buffers.sort(count, self.digits.num_prefixes());
            floor = buffers.entries.get(count - 1).copied();
            self.multiply_out(segment, count, out, buffers)?;
        }
    }

    /// The entries of lookups whose rows are not stored.
    #[inline(always)]
    fn entries<'s, X: Index>(&'s self, segment: &Segment<'s, X>) -> impl Iterator<Item = u64> + 's {
        segment.indices.iter().zip(0u32..).filter_map(|(index, position)| {
            let row = index.to_u64() as u32;
            if self.table.stored_row(row.into()).is_some() {
                return None;
            }
            Some(u64::from(self.digits.prefix_key(row)) << 32 | u64::from(position))
        })
    }

    fn add_stored_rows<X: Index>(&self, segment: &Segment<'_, X>, out: &mut Output<'_>) -> Option<()> {
        if self.table.data().overrides.is_none() {
            return Some(());
        }
        for (index, position) in segment.indices.iter().zip(0u64..) {
            if let Some(stored) = self.table.stored_row(index.to_u64()) {
                let out = out.row(segment.bag(position)?)?;
                self.table.put_stored_row(stored, out, Epilogue::AddScaled(segment.weight(position)?))?;
            }
        }
        Some(())
    }

    /// Adds the first `count` entries, which are sorted.
    fn multiply_out<X: Index>(
        &self,
        segment: &Segment<'_, X>,
        count: usize,
        out: &mut Output<'_>,
        buffers: &mut Buffers<'_>,
    ) -> Option<()> {
        let entries = buffers.entries.get(..count)?;
        let [even, odd] = &mut buffers.partials;
        let (even, odd, last_slice) = (&mut **even, &mut **odd, &mut *buffers.last_slice);
        let mut prefixes = [Prefix { digits: [0; MAX_CORES], lookups: &[] }; MAX_CHUNK];
        let mut rest = entries;
        while !rest.is_empty() {
            let mut length = 0;
            for prefix in prefixes.iter_mut().take(buffers.chunk) {
                let Some(&entry) = rest.first() else { break };
                let key = (entry >> 32) as u32;
                let same = rest.iter().take_while(|&&other| (other >> 32) as u32 == key).count();
                let (lookups, after) = rest.split_at_checked(same)?;
                *prefix = Prefix { digits: self.digits.of_prefix(key), lookups };
                rest = after;
                length += 1;
            }
            let prefixes = prefixes.get(..length)?;
            self.gather(prefixes, even)?;
            let (mut x, mut spare) = (&mut *even, &mut *odd);
            for k in 1..self.tt.shape.num_cores() - 1 {
                let core = self.tt.cores.get(k)?;
                with_core_elements!(core.slices, slices => self.step(k, slices, core.scales, prefixes, x, spare))??;
                core::mem::swap(&mut x, &mut spare);
            }
            let core = self.tt.cores.get(self.tt.shape.num_cores() - 1)?;
            with_core_elements!(core.slices, slices => {
                self.last_step(slices, core, segment, prefixes, x, last_slice, out)
            })??;
        }
        Some(())
    }

    /// The slices of core 0 of each prefix, one after another.
    fn gather(&self, prefixes: &[Prefix<'_>], x: &mut [f32]) -> Option<()> {
        let core = self.tt.cores.first()?;
        let len = self.tt.shape.slice_len(0);
        for (prefix, x) in prefixes.iter().zip(x.chunks_exact_mut(len)) {
            let digit = prefix.digits[0] as usize;
            match core.slices.chunk(digit, len)? {
                Elements::F32(slice) => x.copy_from_slice(slice),
                slice => widen(self.tier, slice, slice_scale(core, digit)?, -0.0, x, Epilogue::Store)?,
            }
        }
        Some(())
    }

    /// Step k of each prefix: those with the same slice as one product.
    fn step<W: Weight>(
        &self,
        k: usize,
        slices: &[W],
        scales: &[f32],
        prefixes: &[Prefix<'_>],
        x: &[f32],
        out: &mut [f32],
    ) -> Option<()> {
        let (r, n) = step_size(&self.tt.shape, k);
        let m = self.tt.shape.column_factors().get(..k)?.iter().map(|&q| q as usize).product::<usize>();
        let mut jobs = [Job::EMPTY; JOBS];
        let mut count = 0;
        let mut first = 0;
        while let Some(prefix) = prefixes.get(first) {
            let digit = *prefix.digits.get(k)?;
            let same = prefixes.get(first..)?.iter().take_while(|other| other.digits.get(k) == Some(&digit)).count();
            *jobs.get_mut(count)? = Job {
                m: same * m,
                x: x.get(first * m * r..)?.get(..same * m * r)?,
                slice: slices.get(digit as usize * r * n..)?.get(..r * n)?,
                out: first * m * n,
                scale: if W::SCALED { *scales.get(digit as usize)? } else { 1.0 },
            };
            count += 1;
            first += same;
        }
        store_products(self.tier, [r, n], jobs.get(..count)?, out)
    }

    /// The last step of each lookup, added to its bag.
    #[expect(clippy::too_many_arguments, reason = "what the loop over chunks has, and nothing that belongs together")]
    fn last_step<W: Weight, X: Index>(
        &self,
        slices: &[W],
        core: &Core<'_>,
        segment: &Segment<'_, X>,
        prefixes: &[Prefix<'_>],
        x: &[f32],
        last_slice: &mut [f32],
        out: &mut Output<'_>,
    ) -> Option<()> {
        let [m, r, n] = self.last_step;
        let mut jobs = [Job::EMPTY; JOBS];
        let mut count = 0;
        for (prefix, x) in prefixes.iter().zip(x.chunks_exact(m * r)) {
            let mut lookups = prefix.lookups;
            while let Some(&entry) = lookups.first() {
                let bag = segment.bag(entry)?;
                let same = if lookups.len() < self.pool_slices_from {
                    1
                } else {
                    lookups.iter().take_while(|&&other| segment.bag(other) == Some(bag)).count()
                };
                let (these, rest) = lookups.split_at_checked(if same < self.pool_slices_from { 1 } else { same })?;
                lookups = rest;
                if these.len() == 1 {
                    let digit = self.digits.last(segment.row(entry)?) as usize;
                    *jobs.get_mut(count)? = Job {
                        m,
                        x,
                        slice: slices.get(digit * r * n..)?.get(..r * n)?,
                        out: out.start(bag),
                        scale: segment.weight(entry)? * if W::SCALED { *core.scales.get(digit)? } else { 1.0 },
                    };
                    count += 1;
                    if count == JOBS {
                        add_products(self.tier, [m, r, n], &jobs, out.rows)?;
                        count = 0;
                    }
                    continue;
                }
                // In the order of the entries: what comes before must be added before.
                add_products(self.tier, [m, r, n], jobs.get(..count)?, out.rows)?;
                count = 0;
                last_slice.fill(0.0);
                for &entry in these {
                    let digit = self.digits.last(segment.row(entry)?) as usize;
                    let slice = core.slices.chunk(digit, r * n)?;
                    let scale = segment.weight(entry)? * slice_scale(core, digit)?;
                    widen(self.tier, slice, 1.0, -0.0, last_slice, Epilogue::AddScaled(scale))?;
                }
                let slice = Elements::F32(last_slice);
                chain_step(self.tier, [m, r, n], x, slice, out.row(bag)?, Epilogue::AddScaled(1.0))?;
            }
        }
        add_products(self.tier, [m, r, n], jobs.get(..count)?, out.rows)
    }
}

/// The scale of a slice; 1 where there are none.
fn slice_scale(core: &Core<'_>, digit: usize) -> Option<f32> {
    if core.scales.is_empty() { Some(1.0) } else { core.scales.get(digit).copied() }
}

/// From how many lookups of one prefix in one bag on it is less work to sum their last slices (of `r n` elements each) and
/// multiply once, than to multiply each by the prefix (`m r n`). A multiply-add of a product takes about 0.6 of a vector
/// multiply-add's slot and one of a sum, which loads and stores, about 2.5 times as long (`ttrec bench` on AVX2, slices in
/// the second cache).
fn pool_slices_from(m: usize) -> usize {
    // k m > 1.15 (m + 2.5 k)
    (2..64).find(|k| 20 * k * m > 23 * m + 58 * k).unwrap_or(usize::MAX)
}
