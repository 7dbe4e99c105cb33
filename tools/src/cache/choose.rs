//! Which rows and prefix products are worth their bytes.
//!
//! Time is modelled in floating-point operations. A lookup costs [`PLANNING`] and what it multiplies: every step, or, if
//! the product of its prefix is stored, the last step and the reading of that product, [`READING`] a byte. A stored row
//! costs its reading alone. What is best for the bytes cannot be seen from rows and prefixes one by one, for each makes
//! the other less useful: so several shares of the budget are tried for the rows, and the best of them is kept.

use crate::frequencies::add_up;
use crate::progress::Progress;
use serde::Serialize;
use std::cmp::Ordering;
use ttrec::{Table, TtShape, blob::TtCores, dtype::Dtype};

/// To find out which slices a row needs, and which lookups share them.
const PLANNING: f64 = 3000.0;
/// A byte that is read from memory.
const READING: f64 = 8.0;
/// The budget is split between rows and prefixes in this many parts.
const PARTS: u64 = 8;
/// Of a stored row or product.
const ID_LEN: u64 = 8;

/// What is asked of a tensor-train table.
pub(crate) struct Demand<'a> {
    table: Table<'a>,
    shape: TtShape,
    /// Prefixes whose products are stored already, ascending.
    prefixes: &'a [u64],
    /// Rows that are not stored yet, ascending, and how often they are asked for.
    rows: Vec<(u64, f64)>,
    /// How often rows that are stored already are asked for.
    stored: f64,
}

/// The rows and prefixes to be stored, by table, ascending.
pub(crate) struct Choice {
    pub(super) rows: Vec<Vec<u64>>,
    pub(super) prefixes: Vec<Vec<u64>>,
}

/// Which share of the lookups finds what.
#[derive(Serialize)]
pub(super) struct Served {
    pub(super) by_row: f64,
    pub(super) by_prefix: f64,
    pub(super) computed: f64,
}

impl<'a> Demand<'a> {
    /// `rows` ascend, and are asked for more often than never.
    pub(crate) fn new(table: &Table<'a>, tt: &TtCores<'a>, mut rows: Vec<(u64, f64)>) -> Self {
        let there = table.data().overrides.map_or(&[][..], |overrides| overrides.ids);
        let mut stored = 0.0;
        rows.retain(|(row, frequency)| {
            let is_stored = there.binary_search(row).is_ok();
            stored += if is_stored { *frequency } else { 0.0 };
            !is_stored
        });
        Self {
            table: *table,
            shape: tt.shape,
            prefixes: tt.prefixes.map_or(&[], |prefixes| prefixes.ids),
            rows,
            stored,
        }
    }

    /// The bytes of a row and its id.
    pub(super) fn row_bytes(&self) -> u64 {
        ID_LEN + Dtype::F32.bytes_of(self.shape.embedding_dim()) as u64
    }

    /// The bytes of a prefix's product and its id.
    pub(super) fn product_bytes(&self) -> u64 {
        ID_LEN + Dtype::F32.bytes_of(self.shape.prefix_len()) as u64
    }

    /// What the table would take as dense f32.
    pub(super) fn dense_bytes(&self) -> f64 {
        self.table.num_embeddings() as f64 * Dtype::F32.bytes_of(self.shape.embedding_dim()) as f64
    }

    /// Shares of the lookups once these rows and prefixes are stored, too; zeros if there are none.
    pub(super) fn served(&self, rows: &[u64], prefixes: &[u64]) -> Served {
        let total = self.stored + self.rows.iter().map(|(_, frequency)| frequency).sum::<f64>();
        let share = |frequency: f64| if total > 0.0 { frequency / total } else { 0.0 };
        let (mut by_row, mut by_prefix, mut computed) = (self.stored, 0.0, 0.0);
        for &(row, frequency) in &self.rows {
            let prefix = self.prefix(row);
            let place = if rows.binary_search(&row).is_ok() {
                &mut by_row
            } else if self.has_prefix(prefix) || prefixes.binary_search(&prefix).is_ok() {
                &mut by_prefix
            } else {
                &mut computed
            };
            *place += frequency;
        }
        Served { by_row: share(by_row), by_prefix: share(by_prefix), computed: share(computed) }
    }

    /// Of the row that an index stands for.
    fn prefix(&self, index: u64) -> u64 {
        self.shape.prefix(self.table.row_of(index))
    }

    fn has_prefix(&self, prefix: u64) -> bool {
        self.prefixes.binary_search(&prefix).is_ok()
    }

    /// The cost of a lookup of which nothing is stored.
    fn computed(&self) -> f64 {
        self.shape.flops_left_to_right() as f64 + PLANNING
    }

    /// The cost of a lookup whose prefix is stored.
    fn with_prefix(&self) -> f64 {
        let (product, columns) = (self.shape.prefix_len(), self.shape.column_factor(self.shape.num_cores() - 1));
        2.0 * product as f64 * columns as f64 + PLANNING + READING * Dtype::F32.bytes_of(product) as f64
    }

    /// What it saves to store each row.
    fn row_savings(&self) -> impl Iterator<Item = (u64, f64)> {
        let stored = READING * Dtype::F32.bytes_of(self.shape.embedding_dim()) as f64;
        let (computed, with_prefix) = (self.computed(), self.with_prefix());
        self.rows.iter().map(move |&(row, frequency)| {
            let before = if self.has_prefix(self.prefix(row)) { with_prefix } else { computed };
            (row, frequency * (before - stored))
        })
    }

    /// What it saves to store the product of each prefix, once these rows, some of its own, are stored.
    fn product_savings(&self, rows: &[u64]) -> impl Iterator<Item = (u64, f64)> {
        let saving = self.computed() - self.with_prefix();
        let mut stored = rows.iter().peekable();
        let mut prefixes: Vec<(u64, f64)> = Vec::new();
        let left = self.rows.iter().filter(|(row, _)| saving > 0.0 && stored.next_if_eq(&row).is_none());
        for &(row, frequency) in left {
            let prefix = self.prefix(row);
            match prefixes.last_mut() {
                Some((last, sum)) if *last == prefix => *sum += frequency,
                _ => prefixes.push((prefix, frequency)),
            }
        }
        add_up(&mut prefixes);
        prefixes
            .into_iter()
            .filter(|(prefix, _)| !self.has_prefix(*prefix))
            .map(move |(prefix, f)| (prefix, f * saving))
    }
}

/// A row or a prefix that could be stored, and the time that it saves for each of its bytes.
struct Item {
    table: usize,
    id: u64,
    saving: f64,
}

impl Item {
    fn best_first(&self, other: &Self) -> Ordering {
        let by_place = (self.table, self.id).cmp(&(other.table, other.id));
        other.saving.total_cmp(&self.saving).then(by_place)
    }
}

/// What was taken of the items: ids by table.
struct Taken {
    ids: Vec<Vec<u64>>,
    bytes: u64,
    saving: f64,
}

/// Chooses what to store in `budget` bytes.
pub(super) fn choose(tables: &[Option<Demand<'_>>], budget: u64) -> Choice {
    let items = rank(tables, budget, Demand::row_bytes, |_, table| table.row_savings());
    let mut progress = Progress::new("rows and prefixes", PARTS + 1);
    let mut best = Choice { rows: vec![Vec::new(); tables.len()], prefixes: vec![Vec::new(); tables.len()] };
    let mut most = 0.0;
    for parts in 0..=PARTS {
        let share = (u128::from(budget) * u128::from(parts) / u128::from(PARTS)) as u64;
        let rows = take(tables, &items, share, Demand::row_bytes);
        let left = budget - rows.bytes;
        let items = rank(tables, left, Demand::product_bytes, |at, table| table.product_savings(&rows.ids[at]));
        let prefixes = take(tables, &items, left, Demand::product_bytes);
        if rows.saving + prefixes.saving > most {
            most = rows.saving + prefixes.saving;
            best = Choice { rows: rows.ids, prefixes: prefixes.ids };
        }
        progress.add(1);
    }
    best
}

/// The items of all tables that save anything and that the budget may reach, best first.
fn rank<'d, 'a, I: Iterator<Item = (u64, f64)>>(
    tables: &'d [Option<Demand<'a>>],
    budget: u64,
    bytes: fn(&Demand<'a>) -> u64,
    savings: impl Fn(usize, &'d Demand<'a>) -> I,
) -> Vec<Item> {
    let mut items = Vec::new();
    for (table, demand) in tables.iter().enumerate() {
        let Some(demand) = demand else { continue };
        let (start, bytes) = (items.len(), bytes(demand));
        // No more of one table than all bytes hold: millions of rows need not be kept and sorted.
        let most = usize::try_from(budget / bytes).unwrap_or(usize::MAX);
        let drop_worst = |items: &mut Vec<Item>| {
            if most < items.len() - start {
                items[start..].select_nth_unstable_by(most, Item::best_first);
                items.truncate(start + most);
            }
        };
        for (id, saving) in savings(table, demand).filter(|(_, saving)| *saving > 0.0) {
            items.push(Item { table, id, saving: saving / bytes as f64 });
            if items.len() - start >= most.saturating_mul(2).max(1 << 16) {
                drop_worst(&mut items);
            }
        }
        drop_worst(&mut items);
    }
    items.sort_unstable_by(Item::best_first);
    items
}

/// Takes what fits, best first.
fn take<'a>(tables: &[Option<Demand<'a>>], items: &[Item], budget: u64, bytes: fn(&Demand<'a>) -> u64) -> Taken {
    let mut taken = Taken { ids: vec![Vec::new(); tables.len()], bytes: 0, saving: 0.0 };
    for &Item { table, id, saving } in items {
        let bytes = tables[table].as_ref().map_or(u64::MAX, bytes);
        if bytes <= budget - taken.bytes {
            taken.ids[table].push(id);
            taken.bytes += bytes;
            taken.saving += saving * bytes as f64;
        }
    }
    taken.ids.iter_mut().for_each(|ids| ids.sort_unstable());
    taken
}
