//! The backward pass of a tensor train's bags, and the step that it ends in.
//!
//! With the notation of [`crate::table`]: a row is `X_d`, where `X_1 = G_0[i_0]` is `q_0 x r_1` and
//! `X_{k+1} = X_k . G_k[i_k]`, with `X_k` read as `(q_0 .. q_{k-1}) x r_k` and `G_k[i_k]` as `r_k x
//! (q_k r_{k+1})`. Let `dX` and `dG` be the gradients of the loss, and read `dX_{k+1}` as `(q_0 ..
//! q_{k-1}) x (q_k r_{k+1})`. `dX_d` is the gradient of the row. By the chain rule (TT-Rec, section
//! 4.2)
//!
//! ```text
//! dG_k[i_k] += X_k' . dX_{k+1}    dX_k = dX_{k+1} . G_k[i_k]'    k = d-1 .. 1
//! dG_0[i_0] += dX_1
//! ```
//!
//! All of it is linear in `dX_d`, so gradients are summed before they are multiplied: first those
//! of one row, then, as `dX_{d-1}`, those of one prefix. (FBTT's `tt_embeddings_cuda.cu` computes
//! this chain for every lookup.) Lookups are sorted by row, in the order of [`Digits::prefix_key`]:
//! prefixes with the same slice of the *middle* core, the last but one, are adjacent. This slice is
//! the largest. It is read once, its products have as many rows as there are prefixes, and its
//! gradient is complete, and applied, before the next slice begins; SGD even subtracts each product
//! while it is computed. X is computed again instead of kept from the forward pass: it stays in the
//! nearest cache, while a kept X would have to come from memory for every prefix.
//!
//! Ranges of middle slices form *shards*, whose number and bounds depend on the batch alone. Shards
//! run in parallel; each sums the gradients of the other cores by itself, and these sums are added
//! in the order of the shards. So a step has the same bits on any number of threads.

use super::{
    lookups::SortedLookups,
    optimizer::{Slices, Update},
    state::Step,
};
use crate::{
    Tier, TtShape,
    bag::{Digits, MAX_CHUNK, gather, step},
    dtype::Elements,
    kernel::{
        Consistent, Dims, Epilogue, FEW, Job, add_products, sgd_of_few, store_products, transpose,
        widen,
    },
    shape::MAX_CORES,
    table::step_size,
};
use core::ops::Range;
use rayon::prelude::*;
use std::{vec, vec::Vec};

/// Bytes of the largest X of a chunk of prefixes, so that the chunk's X and their gradients stay in
/// the nearest caches.
const CHUNK_BYTES: usize = 64 << 10;
/// Rows whose products with the last core are computed by one call.
const ROWS: usize = 32;
/// Rows of a shard at least: fewer are not worth sums of their own.
const MIN_SHARD_ROWS: usize = 1024;
/// Rows of a shard at least, for each slice whose sums it may have.
const SHARD_ROWS_PER_SLICE: usize = 4;

/// The backward pass of one table. Steps reuse its memory.
#[derive(Debug)]
pub(super) struct Backward {
    digits: Digits,
    lookups: SortedLookups,
    rows: Vec<RowGroup>,
    prefixes: Vec<PrefixGroup>,
    /// For each core.
    touched: Vec<Touched>,
    /// The touched slices of each core but the middle one and the first, transposed.
    transposed: Vec<Vec<f32>>,
    /// The gradient of each bag, `q_{d-1} x (q_0 .. q_{d-2})`.
    transposed_gradient: Vec<f32>,
    shards: Vec<Shard>,
    /// Whether shards may run side by side.
    pub(super) is_parallel: bool,
}

/// The lookups of one row: from `first_lookup` to that of the next row.
#[derive(Clone, Copy, Debug)]
struct RowGroup {
    first_lookup: u32,
    /// Position of the row's slice of the last core among the touched ones.
    slot: u32,
}

/// The rows of one prefix: from `first_row` to that of the next prefix.
#[derive(Clone, Copy, Debug)]
struct PrefixGroup {
    first_row: u32,
    key: u32,
}

/// The slices of a core that a batch looks up, in the order of their first lookups.
#[derive(Clone, Debug)]
struct Touched {
    /// The position of each slice in `digits`, or [`UNTOUCHED`].
    slots: Vec<u32>,
    digits: Vec<u32>,
}

const UNTOUCHED: u32 = u32::MAX;

impl Touched {
    fn new(num_slices: u32) -> Self {
        Self { slots: vec![UNTOUCHED; num_slices as usize], digits: Vec::new() }
    }

    fn touch(&mut self, digit: u32) -> u32 {
        let slot = &mut self.slots[digit as usize];
        if *slot == UNTOUCHED {
            *slot = self.digits.len() as u32;
            self.digits.push(digit);
        }
        *slot
    }

    fn slot(&self, digit: u32) -> usize {
        self.slots[digit as usize] as usize
    }

    fn clear(&mut self) {
        self.digits.drain(..).for_each(|digit| self.slots[digit as usize] = UNTOUCHED);
    }
}

/// A table and a batch, which all shards read.
struct Inputs<'b> {
    shape: &'b TtShape,
    digits: &'b Digits,
    update: Update,
    tier: Tier,
    /// All cores but the middle one, which is empty here.
    cores: [&'b [f32]; MAX_CORES],
    lookups: &'b SortedLookups,
    /// Both end with a group that is only the end of the one before it.
    rows: &'b [RowGroup],
    prefixes: &'b [PrefixGroup],
    touched: &'b [Touched],
    transposed: &'b [Vec<f32>],
    gradient: &'b [f32],
    transposed_gradient: &'b [f32],
}

impl Backward {
    pub(super) fn new(shape: &TtShape, digits: Digits) -> Self {
        Self {
            digits,
            lookups: SortedLookups::default(),
            rows: Vec::new(),
            prefixes: Vec::new(),
            touched: shape.row_factors().iter().map(|&p| Touched::new(p)).collect(),
            transposed: vec![Vec::new(); shape.num_cores()],
            transposed_gradient: Vec::new(),
            shards: Vec::new(),
            is_parallel: true,
        }
    }

    /// Moves the cores by one step. `None` is a defect of this crate.
    pub(super) fn step(
        &mut self,
        shape: &TtShape,
        cores: &mut [Slices<'_>],
        step: &Step<'_>,
    ) -> Consistent {
        self.group(shape, step)?;
        self.transpose(shape, cores, step)?;
        let middle = shape.num_cores().checked_sub(2)?;
        let ranges = self.shards(middle);
        self.shards.resize_with(self.shards.len().max(ranges.len()), Shard::default);

        let (before, rest) = cores.split_at_mut_checked(middle)?;
        let (middle_core, after) = rest.split_first_mut()?;
        let mut others: [&[f32]; MAX_CORES] = [&[]; MAX_CORES];
        before.iter().zip(&mut others).for_each(|(core, to)| *to = core.values());
        others[middle + 1] = after.first()?.values();
        let inputs = Inputs {
            shape,
            digits: &self.digits,
            update: step.update,
            tier: step.update.tier(),
            cores: others,
            lookups: &self.lookups,
            rows: &self.rows,
            prefixes: &self.prefixes,
            touched: &self.touched,
            transposed: &self.transposed,
            gradient: step.gradient,
            transposed_gradient: &self.transposed_gradient,
        };
        let num_shards = ranges.len();
        let mut rest = middle_core.reborrow();
        let mut work = Vec::with_capacity(num_shards);
        for (shard, range) in self.shards.iter_mut().zip(ranges).rev() {
            let first = inputs.digit(range.start, middle);
            let (left, slices) = rest.split_at(first as usize)?;
            work.push((shard, range, Middle { slices, is_open: false }));
            rest = left;
        }
        let run = |(shard, range, middle): &mut (&mut Shard, Range<usize>, Middle<'_>)| {
            shard.run(&inputs, range.clone(), middle)
        };
        if self.is_parallel && num_shards > 1 {
            work.par_iter_mut().try_for_each(run)?;
        } else {
            work.iter_mut().try_for_each(run)?;
        }
        drop(work);
        self.move_other_cores(shape, cores, num_shards, &step.update)
    }

    /// Moves the touched slices of all cores but the middle one, by the sums of all shards.
    fn move_other_cores(
        &mut self,
        shape: &TtShape,
        cores: &mut [Slices<'_>],
        num_shards: usize,
        update: &Update,
    ) -> Consistent {
        let last = shape.num_cores().checked_sub(1)?;
        let shards = self.shards.get_mut(..num_shards)?;
        let mut slice = Vec::new();
        for (k, core) in cores.iter_mut().enumerate().filter(|&(k, _)| k + 1 != last) {
            let len = shape.slice_len(k);
            slice.resize(len, 0.0);
            for (slot, &digit) in self.touched[k].digits.iter().enumerate() {
                let (first, others) = shards.split_first_mut()?;
                let sum = first.gradients[k].get_mut(slot * len..)?.get_mut(..len)?;
                for other in others {
                    sum.iter_mut()
                        .zip(&other.gradients[k][slot * len..])
                        .for_each(|(sum, x)| *sum += x);
                }
                if k == last {
                    transpose(update.tier(), sum, shape.rank(last), &mut slice)?;
                    core.update(digit as usize, &slice, update)?;
                } else {
                    core.update(digit as usize, sum, update)?;
                }
            }
        }
        Some(())
    }

    /// Sorts the lookups, and groups them into rows, prefixes and slices.
    fn group(&mut self, shape: &TtShape, step: &Step<'_>) -> Consistent {
        let (bags, digits) = (step.bags, &self.digits);
        self.touched.iter_mut().for_each(Touched::clear);
        self.rows.clear();
        self.prefixes.clear();
        let p = *shape.row_factors().last()?;
        let (touched, lower) = self.touched.split_last_mut()?;
        let middle = lower.len().checked_sub(1)?;
        self.lookups.sort(bags, step.pooling, digits.num_prefixes() * p, |row| {
            digits.prefix_key(row) * p + digits.last(row)
        });
        let mut at = 0;
        while at < self.lookups.len() {
            let row = bags.index(self.lookups.lookup(at).position)? as u32;
            let key = digits.prefix_key(row);
            if self.prefixes.last().is_none_or(|last| last.key != key) {
                self.prefixes.push(PrefixGroup { first_row: self.rows.len() as u32, key });
                let digits = digits.prefix_digits(key);
                lower.iter_mut().zip(digits).take(middle).for_each(|(touched, digit)| {
                    touched.touch(digit);
                });
            }
            let slot = touched.touch(digits.last(row));
            self.rows.push(RowGroup { first_lookup: at as u32, slot });
            at = self.lookups.end_of_key(at);
        }
        self.prefixes
            .push(PrefixGroup { first_row: self.rows.len() as u32, key: u32::MAX });
        self.rows.push(RowGroup { first_lookup: at as u32, slot: UNTOUCHED });
        Some(())
    }

    /// Transposes what the products need the other way round: the touched slices that are right
    /// operands as `G_k'`, and the gradient of each bag, which is a left operand as `dX_d'`.
    fn transpose(&mut self, shape: &TtShape, cores: &[Slices<'_>], step: &Step<'_>) -> Consistent {
        let (tier, gradient) = (step.update.tier(), step.gradient);
        let (last, dim) = (shape.num_cores().checked_sub(1)?, shape.embedding_dim());
        for k in (1..=last).filter(|&k| k + 1 != last) {
            let (len, (_, n)) = (shape.slice_len(k), step_size(shape, k));
            self.transposed[k].resize(self.touched[k].digits.len() * len, 0.0);
            for (&digit, out) in
                self.touched[k].digits.iter().zip(self.transposed[k].chunks_exact_mut(len))
            {
                let slice = cores[k].values().get(digit as usize * len..)?.get(..len)?;
                transpose(tier, slice, n, out)?;
            }
        }
        self.transposed_gradient.resize(gradient.len(), 0.0);
        let n = shape.column_factor(last);
        for (g, out) in
            gradient.chunks_exact(dim).zip(self.transposed_gradient.chunks_exact_mut(dim))
        {
            transpose(tier, g, n, out)?;
        }
        Some(())
    }

    /// The ranges of prefixes that are shards: each begins with another slice of the middle core.
    fn shards(&self, middle: usize) -> Vec<Range<usize>> {
        let slices: usize = self.touched.iter().map(|touched| touched.digits.len()).sum();
        let least = MIN_SHARD_ROWS.max(SHARD_ROWS_PER_SLICE * slices) as u32;
        let mut ranges = Vec::new();
        let mut first = 0;
        let count = self.prefixes.len() - 1;
        for at in 1..=count {
            let digit = |at: usize| self.digits.prefix_digits(self.prefixes[at].key)[middle];
            let is_long = || self.prefixes[at].first_row - self.prefixes[first].first_row >= least;
            if at == count || is_long() && digit(at) != digit(at - 1) {
                ranges.push(first..at);
                first = at;
            }
        }
        ranges
    }
}

impl Inputs<'_> {
    /// Digit k of the prefix at this position.
    fn digit(&self, prefix: usize, k: usize) -> u32 {
        self.digits.prefix_digits(self.prefixes[prefix].key)[k]
    }

    /// The elements and the rows of X_k, which is `(q_0 .. q_{k-1}) x r_k`.
    fn partial(&self, k: usize) -> (usize, usize) {
        let m = self.shape.column_factors().iter().take(k).map(|&q| q as usize).product();
        (m * self.shape.rank(k), m)
    }

    fn middle(&self) -> usize {
        self.shape.num_cores() - 2
    }
}

/// The slices of the middle core that one shard moves.
struct Middle<'s> {
    slices: Slices<'s>,
    /// Whether the gradient of the next chunk's first slice has begun in the chunk before, and is
    /// in [`Shard::slice_gradient`].
    is_open: bool,
}

/// Adjacent prefixes whose X fit the nearest caches.
struct Chunk<'c> {
    /// Positions of the prefixes.
    prefixes: Range<usize>,
    /// The digits of each.
    digits: &'c [[u32; MAX_CORES]],
    /// Digit of the middle core of the prefix after these, if the shard has one.
    next: Option<u32>,
}

/// Adjacent prefixes of a chunk with the same slice of core k: the operands of two products,
/// `dG_k += X_k' . dX_{k+1}` and `dX_k = dX_{k+1} . G_k'`.
struct Run {
    k: usize,
    digit: u32,
    /// Rows of X_k in the prefixes of the chunk before these.
    first: usize,
    /// Rows of X_k and dX_{k+1} in all of these.
    rows: usize,
    /// Rows and columns of the slice.
    r: usize,
    n: usize,
}

impl Run {
    /// Where the run's rows are in the X_k and dX_k of a chunk.
    fn x(&self) -> Range<usize> {
        self.first * self.r..(self.first + self.rows) * self.r
    }

    /// Where the run's rows are in the dX_{k+1} of a chunk.
    fn d(&self) -> Range<usize> {
        self.first * self.n..(self.first + self.rows) * self.n
    }

    /// The elements of the slice at position `slot`.
    fn slice(&self, slot: usize) -> Range<usize> {
        slot * self.r * self.n..(slot + 1) * self.r * self.n
    }

    /// `X_k' . dX_{k+1}`, `r x rows . rows x n`, to be added at `out`.
    fn slice_gradient<'j>(
        &self,
        transposed_x: &'j [f32],
        d: &'j [f32],
        out: usize,
    ) -> Job<'j, f32> {
        Job { m: self.r, x: transposed_x, slice: d, out, scale: 1.0 }
    }
}

/// The buffers of one range of a batch's prefixes, and the sums of its gradients. Steps reuse them.
#[derive(Debug, Default)]
struct Shard {
    /// X_1, X_2, .. X_{d-1} of each prefix of a chunk.
    x: Vec<Vec<f32>>,
    /// dX_{k+1} of each prefix of a chunk, and dX_k, into which it is multiplied.
    d: [Vec<f32>; 2],
    /// X_k of a run, transposed.
    transposed_x: Vec<f32>,
    /// The current slice of the middle core, transposed, and its gradient so far.
    transposed_slice: Vec<f32>,
    slice_gradient: Vec<f32>,
    /// Gradients of rows that are looked up more than once, and the same transposed.
    row_gradients: [Vec<f32>; 2],
    /// The gradients of the touched slices of each core but the middle one; those of the last core
    /// are transposed.
    gradients: Vec<Vec<f32>>,
}

impl Shard {
    /// Processes `prefixes`, and moves their middle slices.
    fn run(
        &mut self,
        batch: &Inputs<'_>,
        prefixes: Range<usize>,
        middle_core: &mut Middle<'_>,
    ) -> Consistent {
        let (shape, middle) = (batch.shape, batch.middle());
        let chunk = (CHUNK_BYTES / (shape.partial_len() * size_of::<f32>())).clamp(1, MAX_CHUNK);
        self.x.resize_with(middle + 1, Vec::new);
        for (x, k) in self.x.iter_mut().zip(1..) {
            x.resize(chunk * batch.partial(k).0, 0.0);
        }
        self.d.iter_mut().for_each(|d| d.resize(chunk * shape.partial_len(), 0.0));
        self.transposed_x.resize(chunk * shape.partial_len(), 0.0);
        self.transposed_slice.resize(shape.slice_len(middle), 0.0);
        self.slice_gradient.resize(shape.slice_len(middle), 0.0);
        self.row_gradients
            .iter_mut()
            .for_each(|rows| rows.resize(ROWS * shape.embedding_dim(), 0.0));
        self.gradients.resize_with(shape.num_cores(), Vec::new);
        for (k, (gradients, touched)) in self.gradients.iter_mut().zip(batch.touched).enumerate() {
            gradients.clear();
            gradients.resize(touched.digits.len() * shape.slice_len(k), 0.0);
        }

        let mut first = prefixes.start;
        while first < prefixes.end {
            let these = first..(first + chunk).min(prefixes.end);
            let mut digits = [[0; MAX_CORES]; MAX_CHUNK];
            for (to, prefix) in digits.iter_mut().zip(&batch.prefixes[these.clone()]) {
                *to = batch.digits.prefix_digits(prefix.key);
            }
            // The prefix after the last one of a shard has another shard's slice.
            let next = (these.end < prefixes.end).then(|| batch.digit(these.end, middle));
            let chunk = Chunk { digits: &digits[..these.len()], prefixes: these, next };
            self.forward(batch, &chunk, &middle_core.slices)?;
            self.backward_to_prefixes(batch, &chunk)?;
            self.backward_to_cores(batch, &chunk, middle_core)?;
            first = chunk.prefixes.end;
        }
        Some(())
    }

    /// Computes X_1 .. X_{d-1} of each prefix: `X_{k+1} = X_k . G_k[i_k]`.
    fn forward(
        &mut self,
        batch: &Inputs<'_>,
        chunk: &Chunk<'_>,
        slices: &Slices<'_>,
    ) -> Consistent {
        let (shape, tier, middle) = (batch.shape, batch.tier, batch.middle());
        // `slices` begins with the shard's first slice of the middle core.
        let mut local = [[0; MAX_CORES]; MAX_CHUNK];
        for (to, digits) in local.iter_mut().zip(chunk.digits) {
            *to = *digits;
            to[middle] -= slices.first() as u32;
        }
        let local = &local[..chunk.digits.len()];
        let core = |k: usize| if k == middle { slices.values() } else { batch.cores[k] };
        gather(tier, shape, core(0), &[], local, &mut self.x[0])?;
        for k in 1..=middle {
            let (x, out) = self.x.split_at_mut(k);
            step(tier, shape, k, core(k), &[], local, &x[k - 1], &mut out[0])?;
        }
        Some(())
    }

    /// From rows to prefixes. For each row of a prefix, with g for its gradient dX_d, `m x n` (m is
    /// q_0 .. q_{d-2}, n is q_{d-1}), and G for its slice of the last core, `r x n`:
    ///
    /// - `dX_{d-1} += g . G'`, `m x n . n x r`;
    /// - `dG' += g' . X_{d-1}`, `n x m . m x r`: the transpose of dG, because X_{d-1} is then a
    ///   right operand in the layout in which it was computed.
    fn backward_to_prefixes(&mut self, batch: &Inputs<'_>, chunk: &Chunk<'_>) -> Consistent {
        let prefixes = chunk.prefixes.clone();
        let (shape, tier, dim) = (batch.shape, batch.tier, batch.shape.embedding_dim());
        let last = shape.num_cores() - 1;
        let (r, n) = step_size(shape, last);
        let (x_len, m) = batch.partial(last);
        let Self { x, d: [d, _], row_gradients: [row_gradients, transposed], gradients, .. } = self;
        d[..prefixes.len() * x_len].fill(0.0);
        let mut prefix = prefixes.start;
        let rows = batch.prefixes[prefixes.start].first_row as usize
            ..batch.prefixes[prefixes.end].first_row as usize;
        for first in rows.clone().step_by(ROWS) {
            let these = first..(first + ROWS).min(rows.end);
            let bounds = |row: usize| {
                batch.rows[row].first_lookup as usize..batch.rows[row + 1].first_lookup as usize
            };
            for (row, at) in
                these.clone().zip((0..).step_by(dim)).filter(|&(row, _)| bounds(row).len() > 1)
            {
                let sum = &mut row_gradients[at..at + dim];
                sum.fill(0.0);
                for lookup in bounds(row).map(|at| batch.lookups.lookup(at)) {
                    let gradient = Elements::from_f32(&batch.gradient[lookup.bag * dim..][..dim]);
                    widen(tier, gradient, 1.0, -0.0, sum, Epilogue::AddScaled(lookup.scale))?;
                }
                transpose(tier, sum, n, &mut transposed[at..at + dim])?;
            }
            let mut to_x = [Job::EMPTY; ROWS];
            let mut to_slices = [Job::EMPTY; ROWS];
            for (at, row) in these.clone().enumerate() {
                while batch.prefixes[prefix + 1].first_row as usize <= row {
                    prefix += 1;
                }
                let lookups = bounds(row);
                let (g, g_transposed, scale) = if lookups.len() == 1 {
                    let lookup = batch.lookups.lookup(lookups.start);
                    let row = lookup.bag * dim..(lookup.bag + 1) * dim;
                    (
                        batch.gradient.get(row.clone())?,
                        batch.transposed_gradient.get(row)?,
                        lookup.scale,
                    )
                } else {
                    let row = at * dim..(at + 1) * dim;
                    (row_gradients.get(row.clone())?, transposed.get(row)?, 1.0)
                };
                let slice = batch.rows[row].slot as usize * r * n;
                let at_x = (prefix - prefixes.start) * x_len;
                to_x[at] = Job {
                    m,
                    x: g,
                    slice: batch.transposed[last].get(slice..)?.get(..r * n)?,
                    out: at_x,
                    scale,
                };
                to_slices[at] = Job {
                    m: n,
                    x: g_transposed,
                    slice: x[last - 1].get(at_x..)?.get(..x_len)?,
                    out: slice,
                    scale,
                };
            }
            add_products(tier, Dims { m, r: n, n: r }, &to_x[..these.len()], d)?;
            add_products(
                tier,
                Dims { m: n, r: m, n: r },
                &to_slices[..these.len()],
                &mut gradients[last],
            )?;
        }
        Some(())
    }

    /// From prefixes to cores: the gradients of all cores but the last. A middle slice moves as
    /// soon as its gradient is complete.
    fn backward_to_cores(
        &mut self,
        batch: &Inputs<'_>,
        chunk: &Chunk<'_>,
        middle: &mut Middle<'_>,
    ) -> Consistent {
        let digits = chunk.digits;
        for k in (1..=batch.middle()).rev() {
            let ((r, n), (_, m)) = (step_size(batch.shape, k), batch.partial(k));
            let mut first = 0;
            while let Some(digit) = digits.get(first).map(|digits| digits[k]) {
                let same = digits[first..].iter().take_while(|digits| digits[k] == digit).count();
                let run = Run { k, digit, first: first * m, rows: same * m, r, n };
                first += same;
                if k == batch.middle() {
                    let stays_open = first == digits.len() && chunk.next == Some(digit);
                    self.middle_slice(batch, &run, middle, stays_open)?;
                } else {
                    self.lower_slice(batch, &run)?;
                }
            }
            self.d.swap(0, 1);
        }
        // dG_0[i_0] += dX_1
        let len = batch.shape.slice_len(0);
        for (digits, d) in digits.iter().zip(self.d[0].chunks_exact(len)) {
            if batch.middle() == 0 {
                middle.slices.update(digits[0] as usize, d, &batch.update)?;
            } else {
                let at = batch.touched[0].slot(digits[0]) * len;
                let sum = self.gradients[0].get_mut(at..)?.get_mut(..len)?;
                widen(batch.tier, Elements::from_f32(d), 1.0, -0.0, sum, Epilogue::AddScaled(1.0))?;
            }
        }
        Some(())
    }

    /// Both products of a slice below the middle core; the gradient goes to the shard's sums.
    fn lower_slice(&mut self, batch: &Inputs<'_>, run: &Run) -> Consistent {
        let Self { x, d: [d, dx], transposed_x, gradients, .. } = self;
        let &Run { k, rows, r, n, .. } = run;
        let d = d.get(run.d())?;
        let transposed_x = &mut transposed_x[..rows * r];
        transpose(batch.tier, x[k - 1].get(run.x())?, r, transposed_x)?;
        let at = run.slice(batch.touched[k].slot(run.digit));
        let job = run.slice_gradient(transposed_x, d, at.start);
        add_products(batch.tier, Dims { m: r, r: rows, n }, &[job], &mut gradients[k])?;
        input_gradient(batch.tier, run, d, &batch.transposed[k][at], dx)
    }

    /// Both products of a middle slice, and its step, unless its gradient `stays_open`: the prefix
    /// after the chunk has the same slice.
    fn middle_slice(
        &mut self,
        batch: &Inputs<'_>,
        run: &Run,
        middle: &mut Middle<'_>,
        stays_open: bool,
    ) -> Consistent {
        let Self { x, d: [d, dx], transposed_x, transposed_slice, slice_gradient, .. } = self;
        let (tier, update, &Run { k, rows, r, n, .. }) = (batch.tier, &batch.update, run);
        let Middle { slices, is_open } = middle;
        let d = d.get(run.d())?;
        let at = run.slice(run.digit as usize - slices.first());
        // With SGD, and all of the slice's prefixes in this run, G -= rate X_k' . dX_{k+1} needs
        // no gradient in between.
        let is_whole = !*is_open && !stays_open;
        let rate = update.learning_rate_of_sum();
        let rate = rate.filter(|_| is_whole && slices.in_place().is_some());
        if let Some(rate) = rate.filter(|_| rows <= FEW) {
            let (x, dx) = (x[k - 1].get(run.x())?, dx.get_mut(run.x())?);
            let slice = slices.in_place()?.get_mut(at)?;
            return sgd_of_few(tier, Dims { m: rows, r, n }, rate, x, d, slice, dx);
        }
        let transposed_x = &mut transposed_x[..rows * r];
        transpose(tier, x[k - 1].get(run.x())?, r, transposed_x)?;
        // dX_k needs the slice before its step.
        if !*is_open {
            transpose(tier, slices.values().get(at.clone())?, n, transposed_slice)?;
        }
        if let Some(rate) = rate {
            let job = Job { scale: -rate, ..run.slice_gradient(transposed_x, d, at.start) };
            add_products(tier, Dims { m: r, r: rows, n }, &[job], slices.in_place()?)?;
        } else {
            let job = run.slice_gradient(transposed_x, d, 0);
            if *is_open {
                add_products(tier, Dims { m: r, r: rows, n }, &[job], slice_gradient)?;
            } else {
                store_products(tier, rows, n, &[job], slice_gradient)?;
            }
            if !stays_open {
                slices.update(run.digit as usize, slice_gradient, update)?;
            }
        }
        *is_open = stays_open;
        input_gradient(tier, run, d, transposed_slice, dx)
    }
}

/// `dX_k = dX_{k+1} . G_k'`, `rows x n . n x r`.
fn input_gradient(
    tier: Tier,
    run: &Run,
    d: &[f32],
    transposed_slice: &[f32],
    dx: &mut [f32],
) -> Consistent {
    let &Run { rows, r, n, .. } = run;
    let job = Job { m: rows, x: d, slice: transposed_slice, out: run.x().start, scale: 1.0 };
    store_products(tier, n, r, &[job], dx)
}
