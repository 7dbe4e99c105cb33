//! The best of all rows of a table, on several threads.

use crate::progress::Bar;
use anyhow::{Context, Result, anyhow};
use rayon::prelude::*;
use std::cmp::Ordering;
use ttrec::{Bags, Scored, Search, Table, Workspace, merge_top_k};

/// Queries that are searched for together.
const BLOCK: usize = 64;

pub(crate) fn threads(count: usize) -> Result<rayon::ThreadPool> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(count)
        .build()
        .context("cannot start threads")
}

/// A search for the rows with the largest products with a query.
pub(crate) struct Catalogue<'t, E> {
    pub(crate) table: Table<'t>,
    /// The number of rows to find.
    pub(crate) k: usize,
    /// A table of one column, which is added to the products.
    pub(crate) bias: Option<Table<'t>>,
    /// Appends the indices that are left out for a query, in ascending order.
    pub(crate) known: E,
}

impl<E: Fn(usize, &mut Vec<u64>) + Sync> Catalogue<'_, E> {
    /// The best rows of each query, best first, on the threads of the current pool. They do not
    /// depend on the number of threads.
    pub(crate) fn best(&self, queries: &[f32], bar: &Bar) -> Result<Vec<Scored>> {
        let (k, dim) = (self.k, self.table.embedding_dim());
        let count = queries.len() / dim.max(1);
        let mut best = places(count, k)?;
        let threads = rayon::current_num_threads();
        if best.is_empty() {
            return Ok(best);
        }
        if count >= threads {
            let block = count.div_ceil(threads).min(BLOCK);
            let blocks = best.par_chunks_mut(block * k).zip(queries.par_chunks(block * dim));
            blocks.enumerate().try_for_each_init(
                Workspace::new,
                |workspace, (at, (out, queries))| {
                    let search = Search::new(k);
                    self.search(queries, at * block, search, out, workspace)?;
                    bar.add((out.len() / k) as u64);
                    Ok::<_, anyhow::Error>(())
                },
            )?;
            return Ok(best);
        }
        let parts = (0..threads).into_par_iter().map_init(Workspace::new, |workspace, part| {
            let mut out = places(count, k)?;
            self.search(queries, 0, Search::new(k).part(part, threads), &mut out, workspace)?;
            Ok(out)
        });
        for part in parts.collect::<Result<Vec<_>>>()? {
            merge_top_k(k, &mut best, &part)?;
        }
        bar.add(count as u64);
        Ok(best)
    }

    /// Searches for some queries. The first of them is query `first`.
    fn search(
        &self,
        queries: &[f32],
        first: usize,
        search: Search<'_>,
        out: &mut [Scored],
        workspace: &mut Workspace,
    ) -> Result<()> {
        let count = out.len() / self.k.max(1);
        let (mut known, mut offsets) = (Vec::new(), vec![0]);
        for query in first..first + count {
            (self.known)(query, &mut known);
            offsets.push(known.len() as u64);
        }
        let search = search.without(Bags::new(&known, &offsets)?);
        let search = self.bias.map_or(search, |bias| search.with_bias(bias));
        let workspace = workspace.for_retrieval(&self.table, count);
        Ok(self.table.top_k(queries, &search, out, workspace)?)
    }
}

/// Empty places for `k` rows of each of `count` queries.
fn places(count: usize, k: usize) -> Result<Vec<Scored>> {
    let too_many = || anyhow!("the best {k} rows of {count} queries do not fit in memory");
    let len = count.checked_mul(k).ok_or_else(too_many)?;
    let mut places = Vec::new();
    places.try_reserve_exact(len).map_err(|_| too_many())?;
    places.resize(len, Scored::NONE);
    Ok(places)
}

/// Keeps the best `k`, best first: equal scores by the smaller index, and no NaN.
pub(crate) fn keep_best(scored: &mut Vec<Scored>, k: usize) {
    let order = |a: &Scored, b: &Scored| {
        let by_score = b.score.partial_cmp(&a.score).unwrap_or(Ordering::Equal);
        by_score.then(a.index.cmp(&b.index))
    };
    scored.retain(|row| !row.score.is_nan());
    if k < scored.len() {
        scored.select_nth_unstable_by(k, order);
        scored.truncate(k);
    }
    scored.sort_unstable_by(order);
}
