//! Scores of all rows of a tensor train, without the rows.
//!
//! A [walk](Walk) takes the cores from core 0 on, or in reverse, from the last core on. It is cut
//! before core c. A column of the query has d digits: the query is `x[j_0, .., j_{d-1}]`. `U_d` is
//! x, and each step contracts its last digit with a core:
//!
//! ```text
//! U_k[i_k, ..][j_0, .., j_{k-1}, a] = sum over (j_k, b) of U_{k+1}[i_{k+1}, ..][j_0, .., j_k, b]
//!                                                         . G_k[i_k][a, j_k, b]
//! ```
//!
//! for k from d - 1 down to c. The first c slices are the *prefix* of a row. Their product has as
//! many elements as `U_c` has for each combination of the other digits, and the score is the inner
//! product of the two. So one matrix product gives all scores.
//!
//! `U_{d-1}` is computed at once for a block of values of the last digit. The digits before it are
//! contracted one combination after another, so that the workspace does not grow with the number of
//! combinations.

#![allow(
    clippy::arithmetic_side_effects,
    reason = "sizes of slices and partial products, which `TtShape` has checked, and indices of \
              padded rows, of at most 2^48"
)]

use super::{Scope, receiver::Receiver};
use crate::{
    dtype::Elements,
    isa::Tier,
    kernel::{
        Consistent, Dims, Epilogue, MAX_PANEL, MAX_TILE, Reaching, chain_step, panel_widths,
        panels, transpose, widen,
    },
    repr::TtCores,
    shape::{DigitOrder, TtShape},
};
use core::ops::Range;

/// The most elements of the products of prefixes that are held at once, and of the largest
/// contraction. Both together fit the second-level cache.
const PREFIXES: usize = 1 << 16;
const CONTRACTED: usize = 1 << 16;
/// Queries that are contracted together.
const QUERIES: usize = 8;
/// Rows of the last product that are computed before their scores are handed on.
const TILE: usize = 32;

/// A tensor train, walked from core 0 or from the last core, and cut before core `cut` of the walk.
/// Cores are numbered in the order of the walk.
#[derive(Clone, Copy)]
struct Walk<'s> {
    shape: &'s TtShape,
    is_reversed: bool,
    cut: usize,
}

impl<'s> Walk<'s> {
    /// The walk with the fewest multiply-adds for the scores of all rows. Only walks with prefixes
    /// of one slice, and walks that hold the products of all prefixes at once, are considered.
    fn new(shape: &'s TtShape) -> Self {
        let walks = (1..shape.num_cores())
            .flat_map(|cut| [false, true].map(|is_reversed| Self { shape, is_reversed, cut }))
            .filter(|walk| walk.cut == 1 || walk.prefixes_len(walk.cut, walk.p(0)) <= PREFIXES);
        walks
            .min_by_key(Self::multiply_adds)
            .unwrap_or(Self { shape, is_reversed: false, cut: 1 })
    }

    fn num_cores(&self) -> usize {
        self.shape.num_cores()
    }

    /// The number of core k in the order of storage.
    fn stored(&self, k: usize) -> usize {
        if self.is_reversed { self.num_cores() - 1 - k } else { k }
    }

    /// Row factor k.
    fn p(&self, k: usize) -> u64 {
        self.shape.row_factors().get(self.stored(k)).map_or(1, |&p| p.into())
    }

    /// Column factor k.
    fn q(&self, k: usize) -> usize {
        self.shape.column_factor(self.stored(k))
    }

    /// The rank before core k.
    fn rank(&self, k: usize) -> usize {
        let k = if self.is_reversed { self.num_cores() - k } else { k };
        self.shape.rank(k)
    }

    /// Whether core 0 has the most significant digit of a row.
    fn is_most_significant_first(&self) -> bool {
        (self.shape.digit_order() == DigitOrder::MostSignificantFirst) != self.is_reversed
    }

    fn num_combinations(&self, cores: Range<usize>) -> u64 {
        cores.map(|k| self.p(k)).product()
    }

    /// What digit k is multiplied by in the index of a row.
    fn place(&self, k: usize) -> u64 {
        if self.is_most_significant_first() {
            self.num_combinations(k + 1..self.num_cores())
        } else {
            self.num_combinations(0..k)
        }
    }

    /// The core that has the most significant digit.
    fn most_significant(&self) -> usize {
        if self.is_most_significant_first() {
            0
        } else {
            self.num_cores() - 1
        }
    }

    /// Columns that belong to the first k cores.
    fn columns_before(&self, k: usize) -> usize {
        (0..k).map(|k| self.q(k)).product()
    }

    /// Elements of `U_k`, and of the product of a prefix of k slices.
    fn partial_len(&self, k: usize) -> usize {
        self.columns_before(k).saturating_mul(self.rank(k))
    }

    /// Elements of the products of all prefixes of k slices that have one of `digits` digits of
    /// core 0.
    fn prefixes_len(&self, k: usize, digits: u64) -> usize {
        let combinations = (1..k).fold(digits, |product, k| product.saturating_mul(self.p(k)));
        usize::try_from(combinations)
            .unwrap_or(usize::MAX)
            .saturating_mul(self.partial_len(k))
    }

    /// Multiply-adds for the scores of all rows with one query.
    fn multiply_adds(&self) -> u128 {
        let d = self.num_cores();
        let step = |k: usize, combinations: u64| {
            u128::from(combinations)
                .saturating_mul(self.partial_len(k) as u128)
                .saturating_mul((self.q(k) * self.rank(k + 1)) as u128)
        };
        let prefixes = (1..self.cut).map(|k| step(k, self.num_combinations(0..k + 1)));
        let contractions = (self.cut..d).map(|k| step(k, self.num_combinations(k..d)));
        // Adjacent lanes have adjacent prefixes, and the last lanes may be empty.
        let lanes = self.num_combinations(0..self.cut).next_multiple_of(8);
        let scores = u128::from(lanes)
            .saturating_mul(self.num_combinations(self.cut..d).into())
            .saturating_mul(self.partial_len(self.cut) as u128);
        prefixes.chain(contractions).fold(scores, u128::saturating_add)
    }

    /// Digits of core 0 whose prefixes are held at once.
    fn first_digits(&self) -> u64 {
        let most = PREFIXES.checked_div(self.prefixes_len(self.cut, 1)).unwrap_or(1) as u64;
        most.clamp(1, self.p(0))
    }

    /// The most contracted rows that are held at once: one for each query and digit of the last
    /// core. It does not fall with the number of queries.
    fn contracted_rows(&self, num_queries: usize) -> usize {
        let largest = (self.cut..self.num_cores()).map(|k| self.partial_len(k)).max().unwrap_or(1);
        let most = CONTRACTED.checked_div(largest).unwrap_or(1).max(num_queries);
        let digits = usize::try_from(self.p(self.num_cores() - 1)).unwrap_or(usize::MAX);
        digits.saturating_mul(num_queries).min(most)
    }

    /// Digits of the last core that are contracted at once.
    fn last_digits(&self, num_queries: usize) -> u64 {
        let digits = self.contracted_rows(num_queries).checked_div(num_queries).unwrap_or(1);
        digits.max(1) as u64
    }

    /// The lengths of the parts of a workspace: the queries, a slice, the slice in another order,
    /// the products of prefixes, a tile of scores, and the room that the contractions and the
    /// making of prefixes need in turn.
    fn workspace_lens(&self, num_queries: usize) -> [usize; 6] {
        let (d, digits) = (self.num_cores(), self.first_digits());
        let slice = (0..d).map(|k| self.shape.slice_len(k)).max().unwrap_or(0);
        let prefixes = self.prefixes_len(self.cut, digits);
        let rows = self.contracted_rows(num_queries);
        let contracted = (self.cut..d)
            .map(|k| self.partial_len(k))
            .fold(0, usize::saturating_add)
            .saturating_mul(rows);
        let making = (1..=self.cut).map(|k| self.prefixes_len(k, digits)).max().unwrap_or(0);
        let per_prefix = self.partial_len(self.cut);
        [
            self.shape.embedding_dim().saturating_mul(num_queries),
            slice,
            slice,
            // The last panel may repeat columns.
            prefixes.saturating_add(per_prefix.saturating_mul(MAX_PANEL)),
            rows.min(TILE).saturating_mul(MAX_PANEL),
            contracted.max(making.saturating_mul(2)),
        ]
    }

    fn workspace_len(&self, num_queries: usize) -> usize {
        self.workspace_lens(num_queries).into_iter().fold(0, usize::saturating_add)
    }

    /// Writes the columns of a query in the order of the walk.
    fn order_columns(&self, query: &[f32], out: &mut [f32]) -> Consistent {
        for (column, &x) in query.iter().enumerate() {
            let mut rest = self.shape.position_of_column(column);
            let mut digits = [0; crate::shape::MAX_CORES];
            for (digit, &q) in digits.iter_mut().zip(self.shape.column_factors()).rev() {
                let q = (q as usize).max(1);
                (*digit, rest) = (rest % q, rest / q);
            }
            let position = (0..self.num_cores()).try_fold(0, |position, k| {
                Some(position * self.q(k) + digits.get(self.stored(k))?)
            })?;
            *out.get_mut(position)? = x;
        }
        Some(())
    }
}

/// Multiply-adds for the scores of all rows with one query.
pub fn multiply_adds(shape: &TtShape) -> u64 {
    u64::try_from(Walk::new(shape).multiply_adds()).unwrap_or(u64::MAX)
}

/// The workspace for `num_queries` queries.
pub(super) fn workspace_len(tt: &TtCores<'_>, num_queries: usize) -> usize {
    Walk::new(&tt.shape).workspace_len(num_queries.clamp(1, QUERIES))
}

/// Hands on the scores of all rows of a scope, and of some other rows, which the receiver ignores.
pub(super) fn visit(
    tier: Tier,
    tt: &TtCores<'_>,
    queries: &[f32],
    scope: &Scope,
    receiver: &mut Receiver<'_>,
    workspace: &mut [f32],
) -> Consistent {
    let walk = Walk::new(&tt.shape);
    let dim = tt.shape.embedding_dim();
    let first_query = receiver.first_query;
    let mut group = queries.len().checked_div(dim)?.clamp(1, QUERIES);
    while group > 1 && walk.workspace_len(group) > workspace.len() {
        group -= 1;
    }
    // A short range that begins with one digit and ends with the next one is walked as two ranges.
    // In each, only the other digits that occur in it are contracted.
    let place = walk.place(walk.most_significant());
    let Range { start, end } = scope.rows;
    let boundary = (start / place + 1).saturating_mul(place);
    let middle = if end - start <= place { boundary.min(end) } else { end };
    for (number, queries) in queries.chunks(group * dim).enumerate() {
        receiver.first_query = first_query + number * group;
        for rows in [start..middle, middle..end] {
            if !rows.is_empty() {
                let scope = Scope { rows, ..scope.clone() };
                visit_some(tier, tt, walk, queries, &scope, receiver, workspace)?;
            }
        }
    }
    receiver.first_query = first_query;
    Some(())
}

/// As [`visit`], for queries that are contracted together.
fn visit_some(
    tier: Tier,
    tt: &TtCores<'_>,
    walk: Walk<'_>,
    queries: &[f32],
    scope: &Scope,
    receiver: &mut Receiver<'_>,
    workspace: &mut [f32],
) -> Consistent {
    let dim = walk.shape.embedding_dim();
    let num_queries = queries.len().checked_div(dim)?;
    let [ordered, stored, slice, prefixes, scores, rest] = walk.workspace_lens(num_queries);
    let (ordered, workspace) = workspace.split_at_mut_checked(ordered)?;
    let (stored, workspace) = workspace.split_at_mut_checked(stored)?;
    let (slice, workspace) = workspace.split_at_mut_checked(slice)?;
    let (prefixes, workspace) = workspace.split_at_mut_checked(prefixes)?;
    let (scores, workspace) = workspace.split_at_mut_checked(scores)?;
    let rest = workspace.get_mut(..rest)?;
    for (query, ordered) in queries.chunks_exact(dim).zip(ordered.chunks_exact_mut(dim)) {
        walk.order_columns(query, ordered)?;
    }
    let visit = Visit {
        tier,
        tt,
        walk,
        scope,
        num_queries,
        receiver,
        stored,
        slice,
        prefixes,
        widths: panel_widths(tier),
        scores,
        last: 0..0,
        first: 0,
        step: 1,
        num_prefixes: 0,
    };
    visit.run(ordered, rest)
}

/// The digits of a core that occur in some rows, if it has the most significant digit.
fn digits_of(rows: &Range<u64>, place: u64) -> Range<u64> {
    let last = rows.end.saturating_sub(1).checked_div(place).unwrap_or(0);
    rows.start.checked_div(place).unwrap_or(0)..last + 1
}

/// One walk for some queries.
struct Visit<'v, 'r, 'c> {
    tier: Tier,
    tt: &'v TtCores<'c>,
    walk: Walk<'v>,
    scope: &'v Scope,
    num_queries: usize,
    receiver: &'v mut Receiver<'r>,
    /// A slice as it is stored, and the same slice in the order that a product needs.
    stored: &'v mut [f32],
    slice: &'v mut [f32],
    /// The products of the prefixes of a block, one in each column, in panels.
    prefixes: &'v mut [f32],
    /// The widths of panels.
    widths: [usize; 2],
    scores: &'v mut [f32],
    /// The digits of the last core that are contracted at once.
    last: Range<u64>,
    /// The index of the first prefix of the block, with zeros for the other digits.
    first: u64,
    /// The difference of the indices of adjacent prefixes.
    step: u64,
    num_prefixes: usize,
}

/// The order of the elements of a slice `G_k[i_k]`.
#[derive(Clone, Copy, PartialEq)]
enum Order {
    /// `a` before `(j, b)`: the right operand of a prefix.
    Rows,
    /// `(j, b)` before `a`: the right operand of a contraction.
    Columns,
}

impl Visit<'_, '_, '_> {
    fn run(mut self, queries: &[f32], rest: &mut [f32]) -> Consistent {
        let (walk, d) = (self.walk, self.walk.num_cores());
        let all = self.digits(0);
        let mut first = all.start;
        while first < all.end {
            let digits = first..all.end.min(first + walk.first_digits());
            self.make_prefixes(digits.clone(), rest)?;
            let last = self.digits(d - 1);
            let mut first_last = last.start;
            while first_last < last.end {
                self.last =
                    first_last..last.end.min(first_last + walk.last_digits(self.num_queries));
                let len = self.num_rows()? * walk.partial_len(d - 1);
                let (contracted, rest) = rest.split_at_mut_checked(len)?;
                self.contract_last(queries, contracted)?;
                self.descend(d - 1, contracted, rest, first_last * walk.place(d - 1))?;
                first_last = self.last.end;
            }
            first = digits.end;
        }
        Some(())
    }

    /// The digits of core k that the scope needs.
    fn digits(&self, k: usize) -> Range<u64> {
        let digits = if k == self.walk.most_significant() {
            digits_of(&self.scope.rows, self.walk.place(k))
        } else {
            0..self.walk.p(k)
        };
        // Parts divide the first digit after the cut: no score is computed twice, and parts repeat
        // the least work.
        if k == self.walk.cut {
            self.scope.part_of(digits)
        } else {
            digits
        }
    }

    /// Rows of the left operand of the last product: one for each query and last digit.
    fn num_rows(&self) -> Option<usize> {
        usize::try_from(self.last.end - self.last.start)
            .ok()?
            .checked_mul(self.num_queries)
    }

    /// Writes slice `digit` of core k, times its scale, into `self.slice`.
    fn load(&mut self, k: usize, digit: u64, order: Order) -> Option<&[f32]> {
        let walk = self.walk;
        let (core, digit) = (walk.stored(k), usize::try_from(digit).ok()?);
        let len = walk.shape.slice_len(core);
        let (stored, slice) = (self.stored.get_mut(..len)?, self.slice.get_mut(..len)?);
        let core = self.tt.cores.get(core)?;
        let (elements, scale) = (core.slices.chunk(digit, len)?, core.scale(digit)?);
        let (a, q, b) = (walk.rank(k), walk.q(k), walk.rank(k + 1));
        match (order, walk.is_reversed) {
            (Order::Rows, false) => {
                widen(self.tier, elements, scale, -0.0, slice, Epilogue::Store)?;
            }
            (Order::Columns, false) => {
                widen(self.tier, elements, scale, -0.0, stored, Epilogue::Store)?;
                transpose(self.tier, stored, q * b, slice)?;
            }
            // Stored as `b`, `j`, `a`.
            (Order::Columns, true) => {
                widen(self.tier, elements, scale, -0.0, stored, Epilogue::Store)?;
                for (position, run) in stored.chunks_exact(a).enumerate() {
                    let to = position % q * b + position / q;
                    copy(run, slice.get_mut(to * a..)?)?;
                }
            }
            (Order::Rows, true) => {
                widen(self.tier, elements, scale, -0.0, stored, Epilogue::Store)?;
                for (position, &x) in stored.iter().enumerate() {
                    let (row, of_a) = (position / a, position % a);
                    *slice.get_mut((of_a * q + row % q) * b + row / q)? = x;
                }
            }
        }
        Some(slice)
    }

    /// Computes the products of all prefixes whose first digit is one of `digits`.
    fn make_prefixes(&mut self, digits: Range<u64>, rest: &mut [f32]) -> Consistent {
        let (walk, tier) = (self.walk, self.tier);
        let (mut from, mut to) = rest.split_at_mut_checked(rest.len() / 2)?;
        let mut count = 0;
        for (position, digit) in digits.clone().enumerate() {
            let slice = self.load(0, digit, Order::Columns)?;
            copy(slice, from.get_mut(position * slice.len()..)?)?;
            count = position + 1;
        }
        // Digit 0 changes fastest.
        for k in 1..walk.cut {
            let (m, r) = (count * walk.columns_before(k), walk.rank(k));
            let n = walk.q(k) * walk.rank(k + 1);
            let (mut out, x) = (&mut *to, from.get(..m * r)?);
            let mut num_digits = 0;
            for digit in 0..walk.p(k) {
                let (product, after) = out.split_at_mut_checked(m * n)?;
                let slice = Elements::from_f32(self.load(k, digit, Order::Rows)?);
                chain_step(tier, Dims { m, r, n }, x, slice, product, Epilogue::Store)?;
                (out, num_digits) = (after, num_digits + 1);
            }
            count *= num_digits;
            core::mem::swap(&mut from, &mut to);
        }
        let len = walk.partial_len(walk.cut);
        if walk.is_most_significant_first() && walk.cut > 1 {
            // The last digit has to change fastest.
            for (position, product) in from.chunks_exact(len).take(count).enumerate() {
                let (mut rest, mut rank) = (position as u64, 0);
                for k in 0..walk.cut {
                    let p = if k == 0 { digits.end - digits.start } else { walk.p(k) };
                    (rank, rest) = (rank * p + rest % p, rest / p);
                }
                copy(product, to.get_mut(usize::try_from(rank).ok()? * len..)?)?;
            }
            core::mem::swap(&mut from, &mut to);
        }
        let mut rest = &mut *self.prefixes;
        for columns in panels(self.widths, count) {
            let (panel, after) = rest.split_at_mut_checked(columns.len() * len)?;
            let products = from.get(columns.start * len..columns.end * len)?;
            transpose(tier, products, len, panel)?;
            rest = after;
        }
        self.num_prefixes = count;
        self.first = digits.start * walk.place(0);
        self.step = if walk.is_most_significant_first() {
            walk.place(walk.cut - 1)
        } else {
            1
        };
        Some(())
    }

    /// Contracts the queries with some slices of the last core.
    fn contract_last(&mut self, queries: &[f32], out: &mut [f32]) -> Consistent {
        let (walk, k) = (self.walk, self.walk.num_cores() - 1);
        let (m, r, n) = (walk.columns_before(k), walk.q(k), walk.rank(k));
        let stride = usize::try_from(self.last.end - self.last.start).ok()?;
        for (position, digit) in self.last.clone().enumerate() {
            let tier = self.tier;
            let slice = Elements::from_f32(self.load(k, digit, Order::Columns)?);
            for (query, x) in queries.chunks_exact(m * r).enumerate() {
                let out = out.get_mut((query * stride + position) * m * n..)?.get_mut(..m * n)?;
                chain_step(tier, Dims { m, r, n }, x, slice, out, Epilogue::Store)?;
            }
        }
        Some(())
    }

    /// Contracts `contracted`, `U_k`, with each combination of slices of the cores from the cut to
    /// k, the last one first, and hands on the scores. `base` is the index of the first score,
    /// without the digits of these cores and of the prefix.
    fn descend(&mut self, k: usize, contracted: &[f32], rest: &mut [f32], base: u64) -> Consistent {
        let walk = self.walk;
        if k == walk.cut {
            return self.give(contracted, base);
        }
        let k = k - 1;
        let m = self.num_rows()? * walk.columns_before(k);
        let (r, n) = (walk.q(k) * walk.rank(k + 1), walk.rank(k));
        let (out, rest) = rest.split_at_mut_checked(m * n)?;
        for digit in self.digits(k) {
            let base = base + digit * walk.place(k);
            if k == walk.cut && !self.has_rows(base) {
                continue;
            }
            let tier = self.tier;
            let slice = Elements::from_f32(self.load(k, digit, Order::Columns)?);
            chain_step(tier, Dims { m, r, n }, contracted, slice, out, Epilogue::Store)?;
            self.descend(k, out, rest, base)?;
        }
        Some(())
    }

    /// Whether the scores from `base` on may have rows of the scope among them.
    fn has_rows(&self, base: u64) -> bool {
        let last_digits = (self.last.end - self.last.start).saturating_sub(1);
        let prefixes = (self.num_prefixes as u64).saturating_sub(1) * self.step;
        let first = base + self.first;
        let last = first + last_digits * self.walk.place(self.walk.num_cores() - 1) + prefixes;
        first < self.scope.rows.end && last >= self.scope.rows.start
    }

    /// Multiplies `U_c` with the prefixes.
    fn give(&mut self, contracted: &[f32], base: u64) -> Consistent {
        let walk = self.walk;
        let r = walk.partial_len(walk.cut);
        let digits = usize::try_from(self.last.end - self.last.start).ok()?;
        let (place, step) = (walk.place(walk.num_cores() - 1), self.step);
        let (tier, receiver) = (self.tier, &mut *self.receiver);
        let (mut rest, mut end, mut tile) = (&*self.prefixes, 0, [0.0; MAX_TILE]);
        for columns in panels(self.widths, self.num_prefixes) {
            let panel;
            (panel, rest) = rest.split_at_checked(r * columns.len())?;
            let width = columns.len();
            // The first columns may be those of the panel before.
            let new = end - columns.start;
            let first = base + self.first + end as u64 * step;
            end = columns.end;
            for (query, x) in contracted.chunks_exact(digits * r).enumerate() {
                let index = |row: usize| first + row as u64 * place;
                if let Some(bound) = receiver.bound(query)
                    && width >= self.widths[0]
                    && !tier.is_scalar()
                {
                    let mut found = |row, scores: &[f32]| {
                        receiver.run(query, index(row), step, scores.get(new..)?)?;
                        receiver.bound(query)
                    };
                    let found = &mut found;
                    let tile = &mut tile;
                    tier.run_vector(Reaching { x, r, panel, width, bound, tile, found })??;
                    continue;
                }
                let slice = Elements::from_f32(panel);
                for (tile, x) in x.chunks(TILE * r).enumerate() {
                    let m = x.len() / r;
                    let scores = self.scores.get_mut(..m * width)?;
                    chain_step(tier, Dims { m, r, n: width }, x, slice, scores, Epilogue::Store)?;
                    for (row, scores) in scores.chunks_exact(width).enumerate() {
                        receiver.run(query, index(tile * TILE + row), step, scores.get(new..)?)?;
                    }
                }
            }
        }
        Some(())
    }
}

fn copy(from: &[f32], to: &mut [f32]) -> Consistent {
    let to = to.get_mut(..from.len())?;
    to.iter_mut().zip(from).for_each(|(to, &from)| *to = from);
    Some(())
}
