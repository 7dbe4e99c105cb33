//! Recall and NDCG: how many of the items that follow a context are among the best of all items.

use crate::{
    catalogue::{Catalogue, keep_best},
    data::{Dataset, Queries, Split},
    progress::Bar,
    query::ProductModel,
};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::{fmt, ops::Range};
use ttrec::{
    Bags, Pooling, Ranker, Scored, Table,
    blob::ModelTable,
    train::{self, DenseShape, DenseTable, Dlrm, Embedding, Optimizer},
};
use ttrec_convert::zeros;

/// Means over all queries. Each context of a split is a query.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ranking {
    queries: u64,
    /// The share of a query's items that are among the best 10.
    #[serde(rename = "recall@10")]
    recall_10: f64,
    /// The sum of 1 / log2(1 + rank) over a query's items that are among the best 10, divided by
    /// the largest value that this sum can have.
    #[serde(rename = "ndcg@10")]
    ndcg_10: f64,
    #[serde(rename = "recall@20")]
    pub(crate) recall_20: f64,
    #[serde(rename = "ndcg@20")]
    pub(crate) ndcg_20: f64,
}

/// The number of best items that are kept for a query: the largest k of the metrics.
const BEST: usize = 20;
/// Appends the items that are left out for one of some queries.
type Known<'k> = dyn Fn(usize, &mut Vec<u64>) + Sync + 'k;

/// The features of the model.
const CONTEXT: usize = 0;
const ITEM: usize = 1;

/// Queries whose best items are in memory together.
const QUERIES: usize = 1024;
/// Items that are scored together where the logit is not a product.
const ITEMS: usize = 1024;

impl Ranking {
    pub(crate) const NAMES: [&str; 4] = ["recall@10", "ndcg@10", "recall@20", "ndcg@20"];

    /// The metrics, in the order of their names.
    pub(crate) fn values(ranking: Option<Self>) -> [Option<f64>; 4] {
        let known = |Self { recall_10, ndcg_10, recall_20, ndcg_20, .. }| {
            [recall_10, ndcg_10, recall_20, ndcg_20].map(Some)
        };
        ranking.map_or([None; 4], known)
    }

    /// Adds the metrics of one query, whose `targets` are in ascending order.
    fn add(&mut self, best: &[Scored], targets: &[u32]) {
        let is_hit = |found: &Scored| {
            u32::try_from(found.index).is_ok_and(|item| targets.binary_search(&item).is_ok())
        };
        let gain = |place: usize| 1.0 / (place as f64 + 2.0).log2();
        let within = |k: usize| {
            let hits = || best.iter().take(k).enumerate().filter(|(_, found)| is_hit(found));
            let most: f64 = (0..targets.len().min(k)).map(gain).sum();
            let found: f64 = hits().map(|(place, _)| gain(place)).sum();
            (hits().count() as f64 / targets.len() as f64, found / most)
        };
        let ((recall_10, ndcg_10), (recall_20, ndcg_20)) = (within(10), within(20));
        self.queries += 1;
        self.recall_10 += recall_10;
        self.ndcg_10 += ndcg_10;
        self.recall_20 += recall_20;
        self.ndcg_20 += ndcg_20;
    }

    /// The means, if `self` has the sums.
    fn means(self) -> Option<Self> {
        let Self { queries, recall_10, ndcg_10, recall_20, ndcg_20 } = self;
        let [recall_10, ndcg_10, recall_20, ndcg_20] =
            [recall_10, ndcg_10, recall_20, ndcg_20].map(|sum| sum / queries as f64);
        (queries > 0).then_some(Self { queries, recall_10, ndcg_10, recall_20, ndcg_20 })
    }
}

impl fmt::Display for Ranking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { queries, recall_10, ndcg_10, recall_20, ndcg_20 } = self;
        write!(
            f,
            "recall@10 {recall_10:.5}, NDCG@10 {ndcg_10:.5}, recall@20 {recall_20:.5}, NDCG@20 \
             {ndcg_20:.5}, {queries} queries"
        )
    }
}

/// Ranks all items for each context of a split. `None` if the examples are not items in contexts.
/// If a logit is not a product of two vectors, the model has to score each pair of a context and an
/// item, which takes long: the result is then `None`, unless `exhaustive`.
pub(super) fn rank(
    model: &mut Dlrm,
    dataset: &dyn Dataset,
    split: Split,
    exhaustive: bool,
) -> Result<Option<Ranking>> {
    let Some(queries) = dataset.queries(split) else { return Ok(None) };
    let dense = vec![1.0; dataset.dense_dim()];
    let product = ProductModel::of_trained(model, &dense);
    if product.is_none() && !exhaustive {
        return Ok(None);
    }
    let cached = product.as_ref().map(|_| cached_rows(model)).transpose()?;
    let bar = Bar::new(&format!("{}: rankings", split.name()), queries.len() as u64);
    means(&queries, |range, known| {
        let bags = range.map(|query| queries.context(query));
        let mut contexts = pooled(model, CONTEXT, bags)?;
        match &product {
            Some(product) => {
                let table = cached.iter().flatten().next();
                let table = table.map_or(item_table(model), |rows| rows).table();
                best_products(product, table, &mut contexts, known, &bar)
            }
            None => by_logits(model, &dense, &contexts, known, &bar),
        }
    })
}

/// Ranks all items for each context of a split with the model of a blob.
pub(crate) fn rank_stored(
    ranker: &Ranker<'_>,
    dataset: &dyn Dataset,
    split: Split,
) -> Result<Ranking> {
    let queries = dataset.queries(split);
    let queries = queries.context("only interactions and sessions have items to rank")?;
    let dense = vec![1.0; dataset.dense_dim()];
    let product = ProductModel::of_ranker(ranker, &dense);
    let product = product.context(
        "the logit of this model is not a product: ranking all items for each choice would take \
         too long",
    )?;
    let tables: Vec<(Table<'_>, Pooling)> = ranker.tables().zip(ranker.poolings()).collect();
    let [(context, pooling), (item, _)] = tables[..] else {
        bail!("a model of {} tables: expected two, of contexts and of items", tables.len());
    };
    let ranking = means(&queries, |range, known| {
        let (indices, offsets) = gathered(range.map(|query| queries.context(query)))?;
        let bags = Bags::new(&indices, &offsets)?;
        let mut contexts = zeros(bags.len().saturating_mul(context.embedding_dim()))?;
        let mut workspace = zeros(context.workspace_len(indices.len()))?;
        context.pool(&bags, pooling, &mut contexts, &mut workspace)?;
        best_products(&product, item, &mut contexts, known, &Bar::hidden())
    });
    ranking?.with_context(|| format!("the {} split has no contexts", split.name()))
}

/// The means over all queries; `best` has the best items of some queries, without those that are
/// left out.
fn means(
    queries: &Queries<'_>,
    mut best: impl FnMut(Range<usize>, &Known<'_>) -> Result<Vec<Scored>>,
) -> Result<Option<Ranking>> {
    let mut sums = Ranking::default();
    for first in (0..queries.len()).step_by(QUERIES) {
        let range = first..queries.len().min(first + QUERIES);
        let known = |query: usize, out: &mut Vec<u64>| queries.add_known(first + query, out);
        let best = best(range.clone(), &known)?;
        for (query, best) in range.zip(best.chunks(BEST)) {
            sums.add(best, queries.targets(query));
        }
    }
    Ok(sums.means())
}

/// The items with the largest products with these contexts, which become queries.
fn best_products(
    product: &ProductModel,
    table: Table<'_>,
    contexts: &mut [f32],
    known: &Known<'_>,
    bar: &Bar,
) -> Result<Vec<Scored>> {
    let dim = table.embedding_dim();
    for vector in contexts.chunks_mut(dim) {
        let (query, _) = product.query(&[Some(vector), None], dim);
        vector.copy_from_slice(&query);
    }
    Catalogue { table, k: BEST, bias: None, known }.best(contexts, bar)
}

/// The indices of some bags, one after another, and their offsets.
fn gathered<'b>(bags: impl Iterator<Item = &'b [u32]>) -> Result<(Vec<u32>, Vec<u32>)> {
    let (mut indices, mut offsets) = (Vec::new(), vec![0]);
    for bag in bags {
        indices.extend_from_slice(bag);
        offsets.push(u32::try_from(indices.len()).context("too many indices of contexts")?);
    }
    Ok((indices, offsets))
}

/// The vector that a feature of the model has for each bag.
fn pooled<'b>(
    model: &Dlrm,
    feature: usize,
    bags: impl Iterator<Item = &'b [u32]>,
) -> Result<Vec<f32>> {
    let ModelTable { table, pooling } = model.features()[feature];
    let (table, (indices, offsets)) = (&model.tables()[table], gathered(bags)?);
    let (bags, dim) = (Bags::new(&indices, &offsets)?, table.table().embedding_dim());
    let mut vectors = zeros(bags.len().saturating_mul(dim))?;
    table.forward(&bags, pooling, &mut vectors, &mut Vec::new())?;
    Ok(vectors)
}

fn item_table(model: &Dlrm) -> &dyn Embedding {
    &*model.tables()[model.features()[ITEM].table]
}

/// All items.
fn items(model: &Dlrm) -> Vec<u32> {
    let count = item_table(model).table().num_embeddings();
    (0..u32::try_from(count).unwrap_or(u32::MAX)).collect()
}

/// A table of these rows.
fn dense_table(rows: &[f32], embedding_dim: usize) -> Result<DenseTable> {
    let shape = DenseShape { num_embeddings: (rows.len() / embedding_dim) as u64, embedding_dim };
    Ok(DenseTable::from_rows(shape, rows.to_vec(), Optimizer::Sgd)?)
}

/// The rows of all items, if their table has a cache: a search for the best rows does not read the
/// cache.
fn cached_rows(model: &Dlrm) -> Result<Option<DenseTable>> {
    let table = item_table(model);
    if table.overrides().is_empty() {
        return Ok(None);
    }
    let rows = pooled(model, ITEM, items(model).chunks(1))?;
    dense_table(&rows, table.table().embedding_dim()).map(Some)
}

/// The best items for each context, by the logits of a model of any kind. `contexts` has the
/// vectors of the contexts.
fn by_logits(
    model: &mut Dlrm,
    dense: &[f32],
    contexts: &[f32],
    known: &Known<'_>,
    bar: &Bar,
) -> Result<Vec<Scored>> {
    let (items, dim) = (items(model), item_table(model).table().embedding_dim());
    let mut best = vec![Vec::new(); contexts.len() / dim];
    for items in items.chunks(ITEMS) {
        // Tables that hold the vectors of contexts and items take the place of the tables that
        // compute them.
        let vectors = [contexts, &pooled(model, ITEM, items.chunks(1))?].concat();
        let hold = |_: &_| Ok(Box::new(dense_table(&vectors, dim)?) as Box<dyn Embedding>);
        let mut tables = model.tables().iter().map(hold).collect::<Result<Vec<_>>>()?;
        model.tables_mut().swap_with_slice(&mut tables);
        let scored = score_pairs(model, dense, items, known, &mut best);
        model.tables_mut().swap_with_slice(&mut tables);
        scored?;
    }
    bar.add(best.len() as u64);
    for best in &mut best {
        best.resize(BEST, Scored::NONE);
    }
    Ok(best.concat())
}

/// Scores each context with each of some items, and keeps the best items of each context. The rows
/// of the model's tables are the vectors of the contexts, and then those of these items.
fn score_pairs(
    model: &mut Dlrm,
    dense: &[f32],
    items: &[u32],
    known: &Known<'_>,
    best: &mut [Vec<Scored>],
) -> Result<()> {
    let ends: Vec<u32> = (0..=items.len() as u32).collect();
    let rows: Vec<u32> = (best.len() as u32..).take(items.len()).collect();
    let (rows, dense) = (Bags::new(&rows, &ends)?, dense.repeat(items.len()));
    let (mut logits, mut left_out) = (vec![0.0; items.len()], Vec::new());
    for (context, best) in best.iter_mut().enumerate() {
        let contexts = vec![context as u32; items.len()];
        let bags = [Bags::new(&contexts, &ends)?, rows];
        model.logits(&train::Batch { dense: &dense, bags: &bags }, &mut logits)?;
        left_out.clear();
        known(context, &mut left_out);
        let scored = items.iter().zip(&logits);
        let scored = scored.map(|(&item, &score)| Scored { index: item.into(), score });
        best.extend(scored.filter(|item| left_out.binary_search(&item.index).is_err()));
        keep_best(best, BEST);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_by_definition() {
        let best: Vec<Scored> = (0..20)
            .map(|place| Scored { index: 100 + place, score: -(place as f32) })
            .collect();
        let of = |targets: &[u32]| {
            let mut sums = Ranking::default();
            sums.add(&best, targets);
            Ranking::values(sums.means()).map(Option::unwrap)
        };
        assert_eq!(of(&[100]), [1.0; 4]);
        // The third, and one that is not found.
        let both = 1.0 + 1.0 / 3f64.log2();
        assert_eq!(of(&[7, 102]), [0.5, 0.5 / both, 0.5, 0.5 / both]);
        // The eleventh.
        assert_eq!(of(&[110]), [0.0, 0.0, 1.0, 1.0 / 12f64.log2()]);
        // More targets than places: the recall is below 1, but the NDCG is not.
        let all: Vec<u32> = (100..140).collect();
        assert_eq!(of(&all), [0.25, 1.0, 0.5, 1.0]);
        // Fewer items than places.
        let mut sums = Ranking::default();
        sums.add(&[best[0], Scored::NONE], &[100, u32::MAX]);
        assert_eq!(sums.recall_20, 0.5);
        sums.add(&best, &[100]);
        assert_eq!(Ranking::values(sums.means())[2], Some(0.75));
        assert_eq!(Ranking::default().means(), None);
    }
}
