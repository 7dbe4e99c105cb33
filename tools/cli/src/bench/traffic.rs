//! Batches of bags, and passes over them.

use super::roofline::Pass;
use crate::{
    bags_file::{BagsFile, Mode},
    random::random,
};
use anyhow::{Context, Result, ensure};
use std::{hint::black_box, ops::Range};
use ttrec::{Bags, BagsError, LookupError, Pooling, Table, Tier};
use ttrec_convert::{add_up, zeros};

/// How row numbers are drawn.
#[derive(Clone, Copy)]
pub(super) enum Ids {
    Uniform,
    /// By Zipf's law with exponent 1.05; popular rows are scattered.
    Zipf,
    /// The same; popular rows come first, as in a table sorted by frequency.
    ZipfSorted,
}

impl Ids {
    pub(super) const ALL: [Self; 3] = [Self::Uniform, Self::Zipf, Self::ZipfSorted];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Zipf => "zipf",
            Self::ZipfSorted => "zipf-sorted",
        }
    }

    fn draw(self, rows: u64, random: u64) -> u32 {
        // 53 bits: every f64 from 0 up to 1.
        let uniform = (random >> 11) as f64 / (1u64 << 53) as f64;
        let rank = || {
            let exponent = 1.0 - 1.05;
            let whole = (rows as f64).powf(exponent) - 1.0;
            ((uniform * whole + 1.0).powf(1.0 / exponent) as u64).saturating_sub(1)
        };
        let row = match self {
            Self::Uniform => (uniform * rows as f64) as u64,
            Self::Zipf => scatter(rank(), rows),
            Self::ZipfSorted => rank(),
        };
        row.min(rows - 1) as u32
    }
}

/// Maps row `row` of a table sorted by frequency to one of an unsorted table of `rows` rows.
fn scatter(row: u64, rows: u64) -> u64 {
    row * 2_654_435_761 % rows
}

/// Batches of bags for one table.
#[derive(Clone)]
pub(super) struct Traffic {
    indices: Vec<u32>,
    offsets: Vec<u32>,
    /// The indices and offsets of each batch.
    batches: Vec<[Range<usize>; 2]>,
}

impl Traffic {
    /// `batches` batches of `bags` bags of `lookups` lookups each, from a table of `rows` rows.
    pub(super) fn draw(
        ids: Ids,
        rows: u64,
        seed: u64,
        [batches, bags, lookups]: [usize; 3],
    ) -> Self {
        let len = bags * lookups;
        Self {
            indices: (0..(batches * len) as u64)
                .map(|position| ids.draw(rows, random(seed, position)))
                .collect(),
            offsets: (0..=bags).map(|bag| (bag * lookups) as u32).collect(),
            batches: (0..batches)
                .map(|batch| [batch * len..(batch + 1) * len, 0..bags + 1])
                .collect(),
        }
    }

    /// The bags of a file in their order, in at most `batches` batches of `bags` bags; the
    /// remainder is skipped.
    pub(super) fn from_file(file: &BagsFile, batches: usize, bags: usize) -> Result<Self> {
        let all = file.offsets(Mode::Sum)?;
        file.bags(&all)?;
        let indices: Result<Vec<u32>, _> =
            file.indices().iter().map(|&index| u32::try_from(index)).collect();
        let mut traffic = Self {
            indices: indices.context("an index is too large")?,
            offsets: Vec::new(),
            batches: Vec::new(),
        };
        for batch in 0..batches {
            let Some(offsets) = all.get(batch * bags..).and_then(|rest| rest.get(..=bags)) else {
                break;
            };
            let (first, last, start) = (offsets[0], offsets[bags], traffic.offsets.len());
            traffic.offsets.extend(offsets.iter().map(|offset| (offset - first) as u32));
            traffic
                .batches
                .push([first as usize..last as usize, start..traffic.offsets.len()]);
        }
        ensure!(!traffic.batches.is_empty(), "fewer than {bags} bags");
        Ok(traffic)
    }

    /// The same lookups in a table of `rows` rows that is not sorted by frequency.
    pub(super) fn scattered(&self, rows: u64) -> Self {
        let indices = self.indices.iter().map(|&row| scatter(row.into(), rows) as u32).collect();
        Self { indices, ..self.clone() }
    }

    pub(super) fn indices(&self) -> &[u32] {
        &self.indices
    }

    /// The rows that occur, ascending, and how often.
    pub(super) fn frequencies(&self) -> Vec<(u64, f64)> {
        let mut counts = self.indices.iter().map(|&row| (row.into(), 1.0)).collect();
        add_up(&mut counts);
        counts
    }

    fn batches(&self) -> Result<Vec<Bags<'_>>, BagsError> {
        let batch = |[indices, offsets]: &[Range<usize>; 2]| {
            Bags::new(&self.indices[indices.clone()], &self.offsets[offsets.clone()])
        };
        self.batches.iter().map(batch).collect()
    }
}

/// Tables, batches and buffers of a pass.
pub(super) struct Run<'a> {
    tables: Vec<Table<'a>>,
    /// The bags of each table, batch after batch.
    bags: Vec<Bags<'a>>,
    pooling: Pooling,
    lookups: usize,
    /// The pooled rows of a batch, table after table.
    out: Vec<f32>,
    workspace: Vec<f32>,
}

impl<'a> Run<'a> {
    /// Sums the bags of as many batches as all tables have.
    pub(super) fn new(tables: Vec<Table<'a>>, traffic: &'a [Traffic]) -> Result<Self> {
        let streams = traffic.iter().map(Traffic::batches).collect::<Result<Vec<_>, _>>()?;
        let count = streams.iter().map(Vec::len).min().unwrap_or(0);
        let bags = (0..count).flat_map(|batch| streams.iter().map(move |bags| bags[batch]));
        Self::of_bags(tables, bags.collect(), Pooling::Sum)
    }

    /// `bags` has one list for each table, batch after batch.
    pub(super) fn of_bags(
        tables: Vec<Table<'a>>,
        bags: Vec<Bags<'a>>,
        pooling: Pooling,
    ) -> Result<Self> {
        let (mut lookups, mut out_len, mut workspace_len) = (0, 0, 0);
        for batch in bags.chunks(tables.len()) {
            ensure!(batch.len() == tables.len(), "not one list of bags for each table");
            let mut pooled_len = 0usize;
            for (table, bags) in tables.iter().zip(batch) {
                let len = bags.num_indices();
                lookups += len;
                pooled_len =
                    pooled_len.saturating_add(bags.len().saturating_mul(table.embedding_dim()));
                workspace_len = table.workspace_len(len).max(workspace_len);
            }
            out_len = pooled_len.max(out_len);
        }
        ensure!(lookups > 0, "the request file contains no lookups");
        let (out, workspace) = (zeros(out_len)?, zeros(workspace_len)?);
        Ok(Self { tables, bags, pooling, lookups, out, workspace })
    }

    /// The same with the smallest workspace that the tables accept.
    pub(super) fn with_least_workspace(mut self) -> Self {
        self.workspace
            .truncate(self.tables.iter().map(|table| table.workspace_len(1)).max().unwrap_or(0));
        self
    }

    /// The number of lookups of a pass.
    pub(super) fn lookups(&self) -> usize {
        self.lookups
    }

    pub(super) fn workspace_bytes(&self) -> usize {
        size_of_val(&self.workspace[..])
    }

    /// Compares the first batch with the scalar tier, row by row. The library's tests compare that
    /// tier with a reference in double precision.
    pub(super) fn check(&mut self, name: &str) -> Result<()> {
        self.pool(0)?;
        let mut out = &self.out[..];
        for (table, bags) in self.tables.iter().zip(&self.bags) {
            let (pooled, rest) = out.split_at(bags.len() * table.embedding_dim());
            let plain = table.with_tier(scalar()?);
            let (mut expected, mut workspace) =
                (zeros(pooled.len())?, vec![0.0; plain.workspace_len(1)]);
            plain.pool(&bags.sequential(), self.pooling, &mut expected, &mut workspace)?;
            compare(name, pooled, &expected)?;
            out = rest;
        }
        Ok(())
    }

    /// Pools every batch once.
    pub(super) fn pass(&mut self) -> Pass<'_> {
        let batches = self.bags.len() / self.tables.len();
        Pass::new(batches, |mut range| range.try_for_each(|batch| self.pool(batch)))
    }

    fn pool(&mut self, batch: usize) -> Result<(), LookupError> {
        let mut out = &mut self.out[..];
        for (table, bags) in self.tables.iter().zip(&self.bags[batch * self.tables.len()..]) {
            let (pooled, rest) = out.split_at_mut(bags.len() * table.embedding_dim());
            table.pool(black_box(bags), self.pooling, pooled, &mut self.workspace)?;
            out = rest;
        }
        black_box(&mut self.out);
        Ok(())
    }
}

/// The tier without vector instructions.
pub(super) fn scalar() -> Result<Tier> {
    Tier::from_name("scalar").context("no scalar tier")
}

/// Refuses `found` if it differs from `expected` by more than the order of f32 sums explains.
/// Accepts anything where f32 overflows.
pub(super) fn compare(name: &str, found: &[f32], expected: &[f32]) -> Result<()> {
    let largest = expected.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    for (at, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let holds = expected.is_finite() && largest.is_finite();
        ensure!(
            !holds || (found - expected).abs() <= 1e-4 * largest + f32::MIN_POSITIVE,
            "{name}: wrong result (this is a bug in ttrec): element {at} is {found}, not \
             {expected}; nothing was measured"
        );
    }
    Ok(())
}
