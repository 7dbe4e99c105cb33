//! Which rows and prefix products are worth their bytes.
//!
//! Time is modelled in floating-point operations. A lookup costs [`PLANNING`] and its last step.
//! Its prefix is computed or, if it is stored, found and read ([`SEARCHING`], and [`READING`] per
//! byte), once for all lookups of a batch that share it. So very frequent prefixes are cheap
//! already, and moderately frequent ones gain most. A stored row is found and read, too. Once a
//! table has stored rows or products, lookups of all others search in vain, so that storing nothing
//! may be better. Rows and prefixes cannot be chosen separately, because each makes the other less
//! useful: several splits of the budget are tried, and the best one is kept.
//!
//! Counts of a log overestimate rare rows: most rows that occur once will not occur again. So a
//! constant is subtracted from each (absolute discounting: Ney, Essen and Kneser, "On structuring
//! probabilistic dependences in stochastic language modelling", 1994), which goes to other rows of
//! the same prefix.

use crate::frequencies::add_up;
use crate::progress::{Progress, Step};
use serde::Serialize;
use std::cmp::Ordering;
use ttrec::{
    Table, TtShape,
    dtype::Dtype,
    repr::{self, TtCores},
};

/// The cost of the digits of a row, and of grouping lookups that share slices.
const PLANNING: f64 = 4000.0;
/// The cost of searching for a row or a product, whether or not it is stored.
const SEARCHING: f64 = 4000.0;
/// The number of columns of the last step's slices that leave a multiply-add unit half idle.
const NARROW: f64 = 8.0;
/// The cost of reading a byte from memory.
const READING: f64 = 8.0;
/// The budget is split between rows and prefixes in this many parts.
const PARTS: u64 = 8;
/// Of a stored row or product.
const ID_LEN: u64 = 8;

/// The demand on a tensor-train table.
pub struct Demand<'a> {
    table: Table<'a>,
    shape: TtShape,
    /// Prefixes whose products are stored already, ascending.
    prefixes: &'a [u64],
    /// Rows that are not stored yet, ascending, and their frequencies.
    rows: Vec<(u64, f64)>,
    /// The number of rows that are stored already, and the sum of their frequencies.
    stored_rows: usize,
    stored: f64,
    /// The discount of each count.
    discount: f64,
    /// The sum of all counts, divided by the number of batches.
    per_batch: f64,
}

/// The rows and prefixes to store, by table, ascending.
pub struct Choice {
    /// By table.
    pub rows: Vec<Vec<u64>>,
    /// By table.
    pub prefixes: Vec<Vec<u64>>,
}

/// The shares of lookups by how their row is found.
#[derive(Serialize)]
pub struct Hits {
    /// Lookups of stored rows.
    pub by_row: f64,
    /// Lookups whose prefix is stored.
    pub by_prefix: f64,
    /// All other lookups.
    pub computed: f64,
}

impl<'a> Demand<'a> {
    /// `rows` ascend, and have frequencies above 0. Lookups come in batches of `batch_lookups`.
    pub fn new(
        table: &Table<'a>,
        tt: &TtCores<'a>,
        mut rows: Vec<(u64, f64)>,
        batch_lookups: u64,
    ) -> Self {
        let total: f64 = rows.iter().map(|(_, frequency)| frequency).sum();
        let discount = discount(&rows);
        let existing = table.data().overrides().map_or(&[][..], |overrides| overrides.ids());
        let mut stored = 0.0;
        rows.retain(|(row, frequency)| {
            let is_stored = existing.binary_search(row).is_ok();
            stored += if is_stored { *frequency } else { 0.0 };
            !is_stored
        });
        let prefixes = tt.prefixes().map_or(&[][..], |prefixes| prefixes.ids());
        let per_batch = total / batch_lookups.max(1) as f64;
        Self {
            table: *table,
            shape: *tt.shape(),
            prefixes,
            rows,
            stored_rows: existing.len(),
            stored,
            discount,
            per_batch,
        }
    }

    /// The bytes of `count` more rows.
    pub fn bytes_of_rows(&self, count: usize) -> u64 {
        let len = Dtype::F32.bytes_of(self.shape.embedding_dim());
        bytes_of(self.stored_rows, count, len, self.table.num_embeddings())
    }

    /// The bytes of `count` more prefix products.
    pub fn bytes_of_products(&self, count: usize) -> u64 {
        bytes_of(
            self.prefixes.len(),
            count,
            Dtype::F32.bytes_of(self.shape.prefix_len()),
            self.shape.num_prefixes(),
        )
    }

    /// The bytes of the table as dense f32.
    pub fn dense_bytes(&self) -> f64 {
        self.table.num_embeddings() as f64 * Dtype::F32.bytes_of(self.shape.embedding_dim()) as f64
    }

    /// The shares of lookups if these rows and prefixes are added; zeros if there are no lookups.
    pub fn hits(&self, rows: &[u64], prefixes: &[u64]) -> Hits {
        let total = self.stored + self.rows.iter().map(|(_, frequency)| frequency).sum::<f64>();
        let share = |frequency: f64| if total > 0.0 { frequency / total } else { 0.0 };
        let (mut by_row, mut by_prefix, mut computed) = (self.stored, 0.0, 0.0);
        for &(row, mut frequency) in &self.rows {
            let prefix = self.prefix(row);
            if rows.binary_search(&row).is_ok() {
                by_row += frequency - self.discount;
                frequency = self.discount;
            }
            let is_stored = self.has_prefix(prefix) || prefixes.binary_search(&prefix).is_ok();
            *(if is_stored { &mut by_prefix } else { &mut computed }) += frequency;
        }
        Hits { by_row: share(by_row), by_prefix: share(by_prefix), computed: share(computed) }
    }

    /// The prefix of the row of an index.
    fn prefix(&self, index: u64) -> u64 {
        self.shape.prefix(self.table.row_of(index))
    }

    fn has_prefix(&self, prefix: u64) -> bool {
        self.prefixes.binary_search(&prefix).is_ok()
    }

    /// How often a prefix is computed or read, if `frequency` lookups need it.
    fn uses(&self, frequency: f64) -> f64 {
        // Lookups are a Poisson process: a batch has none with probability e^-mean.
        -(-frequency / self.per_batch).exp_m1() * self.per_batch
    }

    /// The cost of a lookup after its prefix.
    fn last_step(&self) -> f64 {
        let columns = self.shape.column_factor(self.shape.num_cores() - 1) as f64;
        2.0 * self.shape.prefix_len() as f64 * (columns + NARROW) + PLANNING
    }

    /// The cost of computing a prefix.
    fn product(&self) -> f64 {
        let columns = self.shape.column_factor(self.shape.num_cores() - 1) as f64;
        self.shape.flops_left_to_right() as f64 - 2.0 * self.shape.prefix_len() as f64 * columns
    }

    /// The cost of finding and reading a prefix.
    fn stored_product(&self) -> f64 {
        SEARCHING + READING * Dtype::F32.bytes_of(self.shape.prefix_len()) as f64
    }

    /// The saving of storing each row.
    fn row_savings(&self) -> impl Iterator<Item = (u64, f64)> {
        let stored = SEARCHING + READING * Dtype::F32.bytes_of(self.shape.embedding_dim()) as f64;
        let prefixes = self.demand_by_prefix(&[]);
        let (last_step, product, stored_product) =
            (self.last_step(), self.product(), self.stored_product());
        self.rows.iter().map(move |&(row, frequency)| {
            let prefix = self.prefix(row);
            let of_prefix = prefixes.binary_search_by_key(&prefix, |(prefix, _)| *prefix);
            let of_prefix = of_prefix.map_or(frequency, |at| prefixes[at].1);
            let before = if self.has_prefix(prefix) {
                stored_product
            } else {
                product
            };
            let share = before * self.uses(of_prefix) / of_prefix;
            (row, (frequency - self.discount) * (last_step + share - stored))
        })
    }

    /// The cost of searching in vain for rows, if these are the first that are stored.
    fn vain_row_searches(&self, rows: &[u64]) -> f64 {
        if self.stored_rows > 0 || rows.is_empty() {
            return 0.0;
        }
        let is_stored = |row: &u64| rows.binary_search(row).is_ok();
        let vain = |&(row, frequency): &(u64, f64)| {
            if is_stored(&row) { self.discount } else { frequency }
        };
        SEARCHING * self.rows.iter().map(vain).sum::<f64>()
    }

    /// The cost of searching in vain for prefixes, if these are the first that are stored; `rows`
    /// are stored too.
    fn vain_prefix_searches(&self, rows: &[u64], prefixes: &[u64]) -> f64 {
        if !self.prefixes.is_empty() || prefixes.is_empty() {
            return 0.0;
        }
        let demand = self.demand_by_prefix(rows).into_iter();
        let vain = demand.filter(|(prefix, _)| prefixes.binary_search(prefix).is_err());
        SEARCHING * vain.map(|(_, frequency)| self.uses(frequency)).sum::<f64>()
    }

    /// The saving of storing each prefix product, if these rows are stored.
    fn product_savings(&self, rows: &[u64]) -> impl Iterator<Item = (u64, f64)> {
        let saving = (self.product() - self.stored_product()).max(0.0);
        let prefixes = self.demand_by_prefix(rows).into_iter();
        prefixes
            .filter(|(prefix, _)| !self.has_prefix(*prefix))
            .map(move |(prefix, frequency)| (prefix, self.uses(frequency) * saving))
    }

    /// How often each prefix is needed, if these rows are stored; by prefix, ascending.
    fn demand_by_prefix(&self, rows: &[u64]) -> Vec<(u64, f64)> {
        let mut stored = rows.iter().peekable();
        let mut prefixes: Vec<(u64, f64)> = Vec::new();
        for &(row, frequency) in &self.rows {
            let left = if stored.next_if_eq(&&row).is_some() {
                self.discount
            } else {
                frequency
            };
            let prefix = self.prefix(row);
            match prefixes.last_mut() {
                Some((last, sum)) if *last == prefix => *sum += left,
                _ => prefixes.push((prefix, left)),
            }
        }
        add_up(&mut prefixes);
        prefixes
    }
}

/// The bytes that `count` items of `len` bytes and their ids add to `existing` items; ids are below
/// `limit`.
fn bytes_of(existing: usize, count: usize, len: usize, limit: u64) -> u64 {
    let index = |count: usize| repr::id_index_len(count as u64, limit, len);
    (ID_LEN + len as u64) * count as u64 + index(existing + count) - index(existing)
}

/// The discount of these frequencies: for counts, computed from the numbers of ones and twos;
/// otherwise 0.
fn discount(rows: &[(u64, f64)]) -> f64 {
    let are = |count: f64| rows.iter().filter(|(_, frequency)| *frequency == count).count() as f64;
    if rows.iter().any(|(_, frequency)| frequency.fract() != 0.0) || are(1.0) == 0.0 {
        return 0.0;
    }
    // Without twos there is no estimate.
    (are(1.0) / (are(1.0) + 2.0 * are(2.0))).min(0.75)
}

/// A row or a prefix that could be stored, and the time that it saves.
struct Item {
    table: usize,
    id: u64,
    saving: f64,
    bytes: u64,
}

impl Item {
    fn best_first(&self, other: &Self) -> Ordering {
        let by_place = (self.table, self.id).cmp(&(other.table, other.id));
        let per_byte = |item: &Self| item.saving / item.bytes as f64;
        per_byte(other).total_cmp(&per_byte(self)).then(by_place)
    }
}

/// The chosen items of a table.
#[derive(Clone, Default)]
struct Taken {
    ids: Vec<u64>,
    bytes: u64,
    saving: f64,
}

/// Chooses what to store in `budget` bytes.
pub fn choose(tables: &[Option<Demand<'_>>], budget: u64, progress: &dyn Progress) -> Choice {
    let items = rank(tables, budget, Demand::bytes_of_rows, |_, table| table.row_savings());
    let step = Step::new(progress, "rows and prefixes", PARTS + 1);
    let mut best =
        Choice { rows: vec![Vec::new(); tables.len()], prefixes: vec![Vec::new(); tables.len()] };
    let mut most = 0.0;
    for parts in 0..=PARTS {
        let share = (u128::from(budget) * u128::from(parts) / u128::from(PARTS)) as u64;
        let rows = take(tables, &items, share, Demand::bytes_of_rows, |_, demand, rows| {
            demand.vain_row_searches(rows)
        });
        let left = budget - rows.iter().map(|rows| rows.bytes).sum::<u64>();
        let items = rank(tables, left, Demand::bytes_of_products, |at, table| {
            table.product_savings(&rows[at].ids)
        });
        let prefixes =
            take(tables, &items, left, Demand::bytes_of_products, |at, demand, prefixes| {
                demand.vain_prefix_searches(&rows[at].ids, prefixes)
            });
        let saving = rows.iter().chain(&prefixes).map(|taken| taken.saving).sum();
        if saving > most {
            most = saving;
            let ids = |taken: Vec<Taken>| taken.into_iter().map(|taken| taken.ids).collect();
            best = Choice { rows: ids(rows), prefixes: ids(prefixes) };
        }
        step.add(1);
    }
    best
}

/// The items with a saving that the budget may reach, of all tables, best first.
fn rank<'d, 'a, I: Iterator<Item = (u64, f64)>>(
    tables: &'d [Option<Demand<'a>>],
    budget: u64,
    bytes_of: fn(&Demand<'a>, usize) -> u64,
    savings: impl Fn(usize, &'d Demand<'a>) -> I,
) -> Vec<Item> {
    let mut items = Vec::new();
    for (table, demand) in tables.iter().enumerate() {
        let Some(demand) = demand else { continue };
        let (start, bytes) = (items.len(), bytes_of(demand, 1));
        // At most as many per table as fit into the budget, so that millions of rows are not
        // sorted.
        let most = usize::try_from(budget / bytes).unwrap_or(usize::MAX);
        let drop_worst = |items: &mut Vec<Item>| {
            if most < items.len() - start {
                items[start..].select_nth_unstable_by(most, Item::best_first);
                items.truncate(start + most);
            }
        };
        for (id, saving) in savings(table, demand).filter(|(_, saving)| *saving > 0.0) {
            items.push(Item { table, id, saving, bytes });
            if items.len() - start >= most.saturating_mul(2).max(1 << 16) {
                drop_worst(&mut items);
            }
        }
        drop_worst(&mut items);
    }
    items.sort_unstable_by(Item::best_first);
    items
}

/// Chooses the best items that fit, by table; nothing for a table where the search costs more than
/// the items save.
fn take<'a>(
    tables: &[Option<Demand<'a>>],
    items: &[Item],
    budget: u64,
    bytes_of: fn(&Demand<'a>, usize) -> u64,
    vain_searches: impl Fn(usize, &Demand<'a>, &[u64]) -> f64,
) -> Vec<Taken> {
    let mut taken = vec![Taken::default(); tables.len()];
    let mut left = budget;
    for &Item { table, id, saving, .. } in items {
        let (Some(demand), of_table) = (&tables[table], &mut taken[table]) else { continue };
        let count = of_table.ids.len();
        let bytes = bytes_of(demand, count + 1) - bytes_of(demand, count);
        if bytes <= left {
            left -= bytes;
            of_table.ids.push(id);
            of_table.bytes += bytes;
            of_table.saving += saving;
        }
    }
    for (at, (taken, demand)) in taken.iter_mut().zip(tables).enumerate() {
        let Some(demand) = demand else { continue };
        taken.ids.sort_unstable();
        taken.saving -= vain_searches(at, demand, &taken.ids);
        if taken.saving <= 0.0 {
            *taken = Taken::default();
        }
    }
    taken
}
