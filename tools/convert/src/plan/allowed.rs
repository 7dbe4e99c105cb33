//! The candidates within the bounds of a plan, and the choices among them.

use super::{
    Bounds,
    candidate::{Candidate, Candidates, head_bytes},
    choose::{Item, choose},
    explain::size,
    layers::{Layers, StoredLayers},
};
use crate::spec::Spec;
use anyhow::{Context, Result, ensure};
use ttrec::limits::ALIGNMENT;

/// A plan of more relative error is hardly better than a table of zeros.
pub(super) const SENSELESS: f64 = 0.9;
/// A sensible budget is found to within this part of it.
const CLOSE: u64 = 200;

/// The candidates of each table and of the layers that are within the bounds.
pub(super) struct Allowed<'t> {
    pub(super) tables: Vec<Vec<&'t Candidate>>,
    /// Empty if there is no model.
    layers: Vec<&'t StoredLayers>,
    /// The budget in bytes; `u64::MAX` if there is none.
    budget: u64,
    /// The bytes of a blob without tables and layers.
    head: u64,
    /// The candidates of each table, then of the layers, as a choice by squared error sees them.
    pub(super) items: Vec<Vec<Item>>,
    /// The squared norm of all tables and layers.
    energy: f64,
}

/// The choice: a candidate for each table, and a type of the layers.
#[derive(Clone)]
pub(super) struct Chosen<'t> {
    pub(super) tables: Vec<&'t Candidate>,
    pub(super) layers: Option<&'t StoredLayers>,
}

impl Chosen<'_> {
    /// The spec to convert with.
    pub(super) fn spec(&self) -> Spec {
        Spec {
            model: self.layers.map(|stored| stored.spec.clone()),
            tables: self.tables.iter().map(|candidate| candidate.spec.clone()).collect(),
        }
    }
}

impl<'t> Allowed<'t> {
    pub(super) fn new(
        tables: &'t [Candidates],
        layers: Option<&'t Layers>,
        budget: Option<u64>,
        bounds: &Bounds<'_>,
    ) -> Result<Self> {
        let mut allowed: Vec<Vec<&Candidate>> = Vec::new();
        for table in tables {
            let within = |candidate: &&Candidate| {
                bounds.max_error.is_none_or(|most| candidate.error <= most)
                    && bounds.max_nanoseconds.is_none_or(|most| candidate.nanoseconds <= most)
            };
            let list: Vec<&Candidate> = table.list.iter().filter(within).collect();
            let name = &table.name;
            ensure!(
                !list.is_empty(),
                "table {name:?}: no representation meets --max-error and --max-nanoseconds"
            );
            allowed.push(list);
        }
        let within =
            |stored: &&StoredLayers| bounds.max_error.is_none_or(|most| stored.error <= most);
        let stored: Vec<&StoredLayers> =
            layers.iter().flat_map(|layers| &layers.list).filter(within).collect();
        ensure!(layers.is_none() || !stored.is_empty(), "no type of the layers meets --max-error");
        // Without a budget and a judge, only bytes count.
        let counts = budget.is_some() || bounds.judge.is_some();
        let squared = |error: f64, energy: f64| if counts { error.powi(2) * energy } else { 0.0 };
        let of_table = |(table, list): (&Candidates, &Vec<&Candidate>)| {
            let item = |candidate: &&Candidate| Item {
                bytes: candidate.bytes,
                error: squared(candidate.error, table.energy),
                nanoseconds: candidate.nanoseconds,
            };
            list.iter().map(item).collect()
        };
        let of_layers = |layers: &Layers| {
            let item = |stored: &&StoredLayers| Item {
                bytes: stored.bytes,
                error: squared(stored.error, layers.energy),
                nanoseconds: 0.0,
            };
            stored.iter().map(item).collect()
        };
        let items: Vec<Vec<Item>> =
            tables.iter().zip(&allowed).map(of_table).chain(layers.map(of_layers)).collect();
        let energies = tables.iter().map(|table| table.energy);
        Ok(Self {
            tables: allowed,
            layers: stored,
            budget: budget.unwrap_or(u64::MAX),
            head: head_bytes()?,
            items,
            energy: energies.chain(layers.map(|layers| layers.energy)).sum(),
        })
    }

    /// The bytes that tables and layers may take in a blob of `budget` bytes, a whole number of
    /// lines.
    fn in_blob(&self, budget: u64) -> Option<u64> {
        (budget - budget % ALIGNMENT as u64).checked_sub(self.head)
    }

    /// The bytes that tables and layers may take within the budget.
    pub(super) fn capacity(&self) -> Option<u64> {
        self.in_blob(self.budget)
    }

    /// The bytes of a blob whose tables and layers take so many.
    pub(super) fn blob_bytes(&self, bytes: u64) -> u64 {
        self.head + bytes
    }

    /// The choice of least squared error within the budget.
    pub(super) fn choose(&self) -> Result<Chosen<'t>> {
        let taken = self.capacity().and_then(|capacity| choose(&self.items, capacity));
        let taken = taken.with_context(|| {
            let least = |items: &Vec<Item>| items.iter().map(|item| item.bytes).min();
            let least = self.items.iter().filter_map(least).sum::<u64>() + self.head;
            let of = if self.layers.is_empty() {
                "tables"
            } else {
                "tables and layers"
            };
            format!(
                "a budget of {} is too small: the {of} need at least {least} bytes",
                size(self.budget as f64)
            )
        })?;
        Ok(self.taken(&taken))
    }

    /// The choice of these candidates, one for each table and one for the layers.
    pub(super) fn taken(&self, taken: &[usize]) -> Chosen<'t> {
        Chosen {
            layers: taken.get(self.tables.len()).map(|&taken| self.layers[taken]),
            tables: self.tables.iter().zip(taken).map(|(list, &taken)| list[taken]).collect(),
        }
    }

    /// Returns the smallest useful budget, or `None` if this budget is large enough.
    pub(super) fn sensible_budget(&self) -> Option<u64> {
        let most = SENSELESS.powi(2) * self.energy;
        let squared = |taken: &[usize]| -> f64 {
            self.items.iter().zip(taken).map(|(items, &taken)| items[taken].error).sum()
        };
        let senseless = |budget: u64| {
            let taken = self.in_blob(budget).and_then(|capacity| choose(&self.items, capacity));
            taken.is_none_or(|taken| squared(&taken) > most)
        };
        if self.budget == u64::MAX || !senseless(self.budget) {
            return None;
        }
        let all = |items: &Vec<Item>| items.iter().map(|item| item.bytes).max();
        let (mut low, mut high) =
            (self.budget, self.items.iter().filter_map(all).sum::<u64>() + self.head);
        if senseless(high) {
            return None;
        }
        while high.saturating_sub(low) > low / CLOSE + ALIGNMENT as u64 {
            let middle = low + (high - low) / 2;
            *(if senseless(middle) { &mut low } else { &mut high }) = middle;
        }
        Some(high.next_multiple_of(ALIGNMENT as u64))
    }
}
