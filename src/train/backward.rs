//! The backward pass of a tensor train's bags, and the step that it ends in.
//!
//! With the notation of [`crate::table`]: a row is `X_{d-1} . G_{d-1}[i_{d-1}]`, and `X_{k+1} = X_k
//! . G_k[i_k]`. Let g be the row's gradient, read as `X_d` is, `(q_0 .. q_{d-2}) x q_{d-1}`. Then
//! (TT-Rec, section 4.2; the chain rule)
//!
//! ```text
//! dG_{d-1}[i_{d-1}] += X_{d-1}' . g       dX_{d-1} = g . G_{d-1}[i_{d-1}]'
//! dG_k[i_k]         += X_k' . dX_{k+1}    dX_k     = dX_{k+1} . G_k[i_k]'      k = d-2 .. 1
//! dG_0[i_0]         += dX_1
//! ```
//!
//! All of it is linear in g, so gradients are summed before they are multiplied: those of one row
//! first, then, as `dX_{d-1}`, those of one prefix. FBTT does this chain for every lookup
//! (`tt_embeddings_cuda.cu`); here lookups are sorted by row, in the order of
//! [`Digits::prefix_key`], so that prefixes with the same slice of the *middle* core, the last but
//! one, stand together. That slice, which is the largest, is read once, its products are as tall as
//! the prefixes are many, and its gradient is complete, and applied, before the next one begins: by
//! SGD as it is multiplied out, where the products of one chunk are all there is. X is multiplied
//! out again rather than kept from the forward pass: it stays in the nearest cache, where keeping
//! it would take a trip to memory for every prefix.
//!
//! Groups of middle slices are dealt out to *shards*, whose number and bounds depend on the batch
//! alone. Shards run in parallel; each sums the gradients of the other cores by itself, and these
//! sums are added in the order of the shards. So a step has the same bits on any number of threads.

use super::{
    lookups::Lookups,
    optimizer::{Parameters, Slices, Update},
};
use crate::{
    Bags, Pooling, Tier, TtShape,
    bag::{Digits, MAX_CHUNK, gather, step},
    dtype::Elements,
    kernel::{Epilogue, FEW, Job, add_products, sgd_of_few, store_products, transpose, widen},
    shape::MAX_CORES,
    table::step_size,
};
use core::ops::Range;
use rayon::prelude::*;
use std::{vec, vec::Vec};

/// Bytes of the products of a chunk of prefixes, so that they and their gradients stay near.
const CHUNK_BYTES: usize = 64 << 10;
/// Rows whose last step is taken together.
const ROWS: usize = 32;
/// Rows below which another shard is not worth its own sums.
const MIN_SHARD_ROWS: usize = 1024;
/// Rows that a shard has at least for each slice that it may have to sum.
const SHARD_ROWS_PER_SLICE: usize = 4;

/// What is kept from step to step, for its memory.
#[derive(Debug)]
pub(super) struct Workspace {
    lookups: Lookups,
    rows: Vec<Row>,
    prefixes: Vec<Prefix>,
    touched: Vec<Touched>,
    /// Of each core but the middle one and the first: the touched slices, transposed.
    transposed: Vec<Vec<f32>>,
    /// The gradient of each bag, `q_{d-1} x (q_0 .. q_{d-2})`.
    transposed_gradient: Vec<f32>,
    shards: Vec<Shard>,
}

/// A row that is looked up, by its first entry among the lookups.
#[derive(Clone, Copy, Debug)]
struct Row {
    first_lookup: u32,
    /// Position of its last slice among the touched ones.
    slot: u32,
}

/// A prefix that is looked up, by its first row.
#[derive(Clone, Copy, Debug)]
struct Prefix {
    first_row: u32,
    key: u32,
}

/// The slices of a core that a batch touches, in the order in which they are met.
#[derive(Clone, Debug)]
struct Touched {
    /// The position of each slice in `digits`.
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

/// A table and a batch, for everyone to read.
struct Batch<'b> {
    shape: &'b TtShape,
    digits: &'b Digits,
    tier: Tier,
    /// All but the middle one.
    cores: [&'b [f32]; MAX_CORES],
    lookups: &'b Lookups,
    /// With one more behind the last, as have `prefixes`.
    rows: &'b [Row],
    prefixes: &'b [Prefix],
    touched: &'b [Touched],
    transposed: &'b [Vec<f32>],
    gradient: &'b [f32],
    transposed_gradient: &'b [f32],
}

impl Workspace {
    pub(super) fn new(shape: &TtShape) -> Self {
        Self {
            lookups: Lookups::default(),
            rows: Vec::new(),
            prefixes: Vec::new(),
            touched: shape.row_factors().iter().map(|&p| Touched::new(p)).collect(),
            transposed: vec![Vec::new(); shape.num_cores()],
            transposed_gradient: Vec::new(),
            shards: Vec::new(),
        }
    }

    /// Moves the cores by the gradient of the pooled rows of `bags`, which have been checked.
    /// `None` would be a defect.
    #[expect(clippy::too_many_arguments, reason = "a table and a batch, in their parts")]
    pub(super) fn step(
        &mut self,
        shape: &TtShape,
        digits: &Digits,
        tier: Tier,
        cores: &mut [Parameters],
        (bags, pooling): (&Bags<'_>, Pooling),
        gradient: &[f32],
        update: &Update,
    ) -> Option<()> {
        self.plan(shape, digits, bags, pooling)?;
        self.transpose(shape, tier, cores, gradient)?;
        let (middle, last) = (shape.num_cores().checked_sub(2)?, shape.num_cores().checked_sub(1)?);
        let ranges = self.shards(digits, middle);
        self.shards.resize_with(self.shards.len().max(ranges.len()), Shard::default);
        let shards = &mut self.shards[..ranges.len()];

        let (before, rest) = cores.split_at_mut_checked(middle)?;
        let (middle_core, after) = rest.split_first_mut()?;
        let mut others: [&[f32]; MAX_CORES] = [&[]; MAX_CORES];
        before.iter().zip(&mut others).for_each(|(core, to)| *to = core.values());
        others[last] = after.first()?.values();
        let batch = Batch {
            shape,
            digits,
            tier,
            cores: others,
            lookups: &self.lookups,
            rows: &self.rows,
            prefixes: &self.prefixes,
            touched: &self.touched,
            transposed: &self.transposed,
            gradient,
            transposed_gradient: &self.transposed_gradient,
        };
        let mut rest = middle_core.slices_mut();
        let mut work = Vec::with_capacity(ranges.len());
        for (shard, range) in shards.iter_mut().zip(ranges).rev() {
            let first = batch.digit(range.start, middle);
            let (left, slices) = rest.split_at(first as usize)?;
            work.push((shard, range, slices));
            rest = left;
        }
        let run = |(shard, range, slices): &mut (&mut Shard, Range<usize>, Slices<'_>)| {
            shard.run(&batch, range.clone(), slices, update)
        };
        match &mut work[..] {
            [] => {}
            [work] => run(work)?,
            work => work.par_iter_mut().try_for_each(run)?,
        }
        drop(work);

        let mut slice = Vec::new();
        for (k, core) in cores.iter_mut().enumerate().filter(|&(k, _)| k != middle) {
            let (len, mut core) = (shape.slice_len(k), core.slices_mut());
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
                    transpose(tier, sum, shape.rank(last), &mut slice)?;
                    core.update(digit as usize, &slice, update)?;
                } else {
                    core.update(digit as usize, sum, update)?;
                }
            }
        }
        Some(())
    }

    /// Sorts the lookups and says which rows, prefixes and slices there are.
    fn plan(
        &mut self,
        shape: &TtShape,
        digits: &Digits,
        bags: &Bags<'_>,
        pooling: Pooling,
    ) -> Option<()> {
        self.touched.iter_mut().for_each(Touched::clear);
        self.rows.clear();
        self.prefixes.clear();
        let p = *shape.row_factors().last()?;
        let (touched, lower) = self.touched.split_last_mut()?;
        let middle = lower.len().checked_sub(1)?;
        self.lookups.sort(bags, pooling, digits.num_prefixes() * p, |row| {
            digits.prefix_key(row) * p + digits.last(row)
        });
        let mut at = 0;
        while at < self.lookups.len() {
            let row = bags.index(self.lookups.lookup(at).position)? as u32;
            let key = digits.prefix_key(row);
            if self.prefixes.last().is_none_or(|last| last.key != key) {
                self.prefixes.push(Prefix { first_row: self.rows.len() as u32, key });
                let digits = digits.of_prefix(key);
                lower.iter_mut().zip(digits).take(middle).for_each(|(touched, digit)| {
                    touched.touch(digit);
                });
            }
            self.rows
                .push(Row { first_lookup: at as u32, slot: touched.touch(digits.last(row)) });
            at = self.lookups.end_of_key(at);
        }
        self.prefixes.push(Prefix { first_row: self.rows.len() as u32, key: u32::MAX });
        self.rows.push(Row { first_lookup: at as u32, slot: UNTOUCHED });
        Some(())
    }

    /// Transposes what is a right operand the other way round: slices, and the gradient of each
    /// bag.
    fn transpose(
        &mut self,
        shape: &TtShape,
        tier: Tier,
        cores: &[Parameters],
        gradient: &[f32],
    ) -> Option<()> {
        let (last, dim) = (shape.num_cores().checked_sub(1)?, shape.embedding_dim());
        for k in (1..=last).filter(|&k| k + 1 != last) {
            let (len, (_, n)) = (shape.slice_len(k), step_size(shape, k));
            self.transposed[k].resize(self.touched[k].digits.len() * len, 0.0);
            for (&digit, out) in
                self.touched[k].digits.iter().zip(self.transposed[k].chunks_exact_mut(len))
            {
                transpose(
                    tier,
                    cores[k].values().get(digit as usize * len..)?.get(..len)?,
                    n,
                    out,
                )?;
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

    /// Ranges of prefixes, between different slices of the middle core.
    fn shards(&self, digits: &Digits, middle: usize) -> Vec<Range<usize>> {
        let slices: usize = self.touched.iter().map(|touched| touched.digits.len()).sum();
        let least = MIN_SHARD_ROWS.max(SHARD_ROWS_PER_SLICE * slices) as u32;
        let mut ranges = Vec::new();
        let mut first = 0;
        let count = self.prefixes.len() - 1;
        for at in 1..=count {
            let digit = |at: usize| digits.of_prefix(self.prefixes[at].key)[middle];
            let is_long = || self.prefixes[at].first_row - self.prefixes[first].first_row >= least;
            if at == count || is_long() && digit(at) != digit(at - 1) {
                ranges.push(first..at);
                first = at;
            }
        }
        ranges
    }
}

impl Batch<'_> {
    /// Digit k of a prefix.
    fn digit(&self, prefix: usize, k: usize) -> u32 {
        self.digits.of_prefix(self.prefixes[prefix].key)[k]
    }

    /// Elements of X_k, and its rows: `q_0 .. q_{k-1} x r_k`.
    fn partial(&self, k: usize) -> (usize, usize) {
        let m = self.shape.column_factors().iter().take(k).map(|&q| q as usize).product();
        (m * self.shape.rank(k), m)
    }

    fn middle(&self) -> usize {
        self.shape.num_cores() - 2
    }
}

/// A part of a batch's prefixes, and room for what becomes of them.
#[derive(Debug, Default)]
struct Shard {
    /// X_1, X_2, .. X_{d-1} of each prefix of a chunk.
    x: Vec<Vec<f32>>,
    /// The gradients of two of them.
    d: [Vec<f32>; 2],
    /// Some X_k, transposed.
    transposed_x: Vec<f32>,
    /// The middle slice that is being worked on, transposed, and its gradient so far.
    transposed_slice: Vec<f32>,
    slice_gradient: Vec<f32>,
    /// Gradients of rows that are looked up more than once, and the same transposed.
    row_gradients: [Vec<f32>; 2],
    /// The gradients of the touched slices of each core but the middle one; those of the last one
    /// transposed.
    gradients: Vec<Vec<f32>>,
}

impl Shard {
    /// Works through `prefixes` and moves their middle slices.
    fn run(
        &mut self,
        batch: &Batch<'_>,
        prefixes: Range<usize>,
        slices: &mut Slices<'_>,
        update: &Update,
    ) -> Option<()> {
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
        let mut is_open = false;
        while first < prefixes.end {
            let these = first..(first + chunk).min(prefixes.end);
            let mut digits = [[0; MAX_CORES]; MAX_CHUNK];
            for (to, prefix) in digits.iter_mut().zip(&batch.prefixes[these.clone()]) {
                *to = batch.digits.of_prefix(prefix.key);
            }
            let digits = &digits[..these.len()];
            // Not the digit behind the end: that one's slice is another shard's.
            let next = (these.end < prefixes.end).then(|| batch.digit(these.end, middle));
            self.multiply_out(batch, digits, slices)?;
            self.step_back_to_prefixes(batch, these.clone())?;
            is_open = self.step_back(batch, digits, next, slices, update, is_open)?;
            first = these.end;
        }
        Some(())
    }

    /// X_1 .. X_{d-1} of each prefix.
    fn multiply_out(
        &mut self,
        batch: &Batch<'_>,
        digits: &[[u32; MAX_CORES]],
        slices: &Slices<'_>,
    ) -> Option<()> {
        let (shape, tier, middle) = (batch.shape, batch.tier, batch.middle());
        // The middle core is the part of it that is this shard's.
        let mut local = [[0; MAX_CORES]; MAX_CHUNK];
        for (to, digits) in local.iter_mut().zip(digits) {
            *to = *digits;
            to[middle] -= slices.first() as u32;
        }
        let local = &local[..digits.len()];
        let core = |k: usize| if k == middle { slices.values() } else { batch.cores[k] };
        gather(tier, shape, core(0), &[], local, &mut self.x[0])?;
        for k in 1..=middle {
            let (x, out) = self.x.split_at_mut(k);
            step(tier, shape, k, core(k), &[], local, &x[k - 1], &mut out[0])?;
        }
        Some(())
    }

    /// From rows to prefixes: dX_{d-1} of each, and the gradients of the last core.
    fn step_back_to_prefixes(&mut self, batch: &Batch<'_>, prefixes: Range<usize>) -> Option<()> {
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
            add_products(tier, [m, n, r], &to_x[..these.len()], d)?;
            add_products(tier, [n, m, r], &to_slices[..these.len()], &mut gradients[last])?;
        }
        Some(())
    }

    /// From prefixes to core 0, and the step of each middle slice whose gradient is complete.
    /// Returns whether that of the last one is not: whether the prefix after these has the same
    /// slice. `is_open` says so of the first one.
    fn step_back(
        &mut self,
        batch: &Batch<'_>,
        digits: &[[u32; MAX_CORES]],
        next: Option<u32>,
        slices: &mut Slices<'_>,
        update: &Update,
        mut is_open: bool,
    ) -> Option<bool> {
        let (shape, tier, middle) = (batch.shape, batch.tier, batch.middle());
        let Self {
            x,
            d: [d, spare],
            transposed_x,
            transposed_slice,
            slice_gradient,
            gradients,
            ..
        } = self;
        let (mut d, mut spare) = (d, spare);
        for k in (1..=middle).rev() {
            let (r, n) = step_size(shape, k);
            let (_, m) = batch.partial(k);
            let mut first = 0;
            while let Some(digit) = digits.get(first).map(|digits| digits[k]) {
                let same = digits[first..].iter().take_while(|digits| digits[k] == digit).count();
                let rows = same * m;
                let d_next = d.get(first * m * n..)?.get(..rows * n)?;
                let stays_open = k == middle && first + same == digits.len() && next == Some(digit);
                // Where all of the slice's gradient is here, and can be added where it goes.
                let rate = update
                    .learning_rate_of_sum()
                    .filter(|_| k == middle && !is_open && !stays_open);
                if let Some(rate) = rate.filter(|_| rows <= FEW) {
                    let x = x[k - 1].get(first * m * r..)?.get(..rows * r)?;
                    let dx = spare.get_mut(first * m * r..)?.get_mut(..rows * r)?;
                    let at = (digit as usize - slices.first()) * r * n;
                    let slice = slices.values_mut().get_mut(at..)?.get_mut(..r * n)?;
                    sgd_of_few(tier, [rows, r, n], rate, x, d_next, slice, dx)?;
                    first += same;
                    continue;
                }
                let transposed_x = &mut transposed_x[..rows * r];
                transpose(tier, x[k - 1].get(first * m * r..)?.get(..rows * r)?, r, transposed_x)?;
                let slice = |slot: usize| slot * r * n..(slot + 1) * r * n;
                let to_slice =
                    |out| Job { m: r, x: &*transposed_x, slice: d_next, out, scale: 1.0 };
                let transposed_slice = if k < middle {
                    let at = slice(batch.touched[k].slot(digit));
                    add_products(tier, [r, rows, n], &[to_slice(at.start)], &mut gradients[k])?;
                    &batch.transposed[k][at]
                } else {
                    let at = slice(digit as usize - slices.first());
                    if !is_open {
                        transpose(tier, slices.values().get(at.clone())?, n, transposed_slice)?;
                    }
                    match rate {
                        Some(rate) => {
                            let job = Job { scale: -rate, ..to_slice(at.start) };
                            add_products(tier, [r, rows, n], &[job], slices.values_mut())?;
                        }
                        None => {
                            if is_open {
                                add_products(tier, [r, rows, n], &[to_slice(0)], slice_gradient)?;
                            } else {
                                store_products(tier, [rows, n], &[to_slice(0)], slice_gradient)?;
                            }
                            if !stays_open {
                                slices.update(digit as usize, slice_gradient, update)?;
                            }
                        }
                    }
                    is_open = stays_open;
                    &*transposed_slice
                };
                let to_x = Job {
                    m: rows,
                    x: d_next,
                    slice: transposed_slice,
                    out: first * m * r,
                    scale: 1.0,
                };
                store_products(tier, [n, r], &[to_x], spare)?;
                first += same;
            }
            core::mem::swap(&mut d, &mut spare);
        }
        let len = shape.slice_len(0);
        for (digits, d) in digits.iter().zip(d.chunks_exact(len)) {
            if middle == 0 {
                slices.update(digits[0] as usize, d, update)?;
            } else {
                let at = batch.touched[0].slot(digits[0]) * len;
                let sum = gradients[0].get_mut(at..)?.get_mut(..len)?;
                widen(tier, Elements::from_f32(d), 1.0, -0.0, sum, Epilogue::AddScaled(1.0))?;
            }
        }
        Some(is_open)
    }
}
