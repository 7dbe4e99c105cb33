//! Recall and NDCG: how many of the items that follow a context are among the best of all items.

use crate::{
    catalogue::{Catalogue, keep_best},
    data::{Dataset, Queries, Split},
    progress::Bar,
    query::ProductModel,
};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::{fmt, ops::Range};
use ttrec::{
    Bags, Scored, Workspace,
    train::{
        self, Checkpointed, DenseShape, DenseTable, Dlrm, Embedding, Feature, Initializer,
        Optimizer,
    },
};

/// The means over all queries: the contexts of a split.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ranking {
    queries: u64,
    /// The share of a query's items that are among the best 10.
    #[serde(rename = "recall@10")]
    recall_10: f64,
    /// The sum of 1 / log2(1 + rank) of a query's items that are among the best 10, over the
    /// largest that this sum can be.
    #[serde(rename = "ndcg@10")]
    ndcg_10: f64,
    #[serde(rename = "recall@20")]
    pub(crate) recall_20: f64,
    #[serde(rename = "ndcg@20")]
    pub(crate) ndcg_20: f64,
}

/// The items that are ranked for a query.
const BEST: usize = 20;
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

    /// The means, of sums.
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

/// Ranks all items for each context of a split. `None` if the examples are not items in contexts;
/// and, unless `exhaustive`, if a logit is not a product of two vectors: then each item is scored
/// on its own, which takes long.
pub(super) fn rank(
    model: &mut Dlrm,
    dataset: &dyn Dataset,
    split: Split,
    exhaustive: bool,
) -> Result<Option<Ranking>> {
    let Some(queries) = dataset.queries(split) else { return Ok(None) };
    let dense = vec![1.0; dataset.dense_dim()];
    let bar = Bar::new(&format!("{}: rankings", split.name()), queries.len() as u64);
    let mut sums = Ranking::default();
    if let Some(product) = ProductModel::of_trained(model, &dense) {
        let item = model.features().get(1).context("the model has one table")?;
        let looked_up = looked_up(item)?;
        let items = looked_up.as_ref().map_or(&*item.table, |table| table);
        for first in (0..queries.len()).step_by(QUERIES) {
            let count = QUERIES.min(queries.len() - first);
            let best = by_products(model, items, &product, &queries, first..first + count, &bar)?;
            for (query, best) in (first..).zip(best.chunks(BEST)) {
                sums.add(best, queries.targets(query));
            }
        }
    } else if exhaustive {
        for query in 0..queries.len() {
            sums.add(&by_logits(model, &dense, &queries, query)?, queries.targets(query));
            bar.add(1);
        }
    }
    Ok(sums.means())
}

/// The rows of a table whose cache has rows that the cores do not give: a search does not read it.
fn looked_up(item: &Feature) -> Result<Option<DenseTable>> {
    let table = item.table.table();
    if item.table.overrides().is_empty() {
        return Ok(None);
    }
    let (num_embeddings, embedding_dim) = (table.num_embeddings(), table.embedding_dim());
    let shape = DenseShape { num_embeddings, embedding_dim };
    let mut rows = DenseTable::new(shape, Initializer::Uniform, Optimizer::Sgd, 0)?;
    let mut workspace = Workspace::new();
    let values = rows
        .parameters_mut()
        .iter_mut()
        .flat_map(|of| of.values_mut().chunks_mut(embedding_dim));
    for (index, row) in (0..).zip(values) {
        table.lookup(index, row, workspace.for_table(&table, 1))?;
    }
    Ok(Some(rows))
}

/// The best items of some queries, where the logit is a product with the item's row.
fn by_products(
    model: &Dlrm,
    items: &dyn Embedding,
    product: &ProductModel,
    queries: &Queries<'_>,
    range: Range<usize>,
    bar: &Bar,
) -> Result<Vec<Scored>> {
    let [context, _] = model.features() else { return Ok(Vec::new()) };
    let (mut indices, mut offsets) = (Vec::new(), vec![0]);
    for query in range.clone() {
        indices.extend_from_slice(queries.context(query));
        offsets.push(u32::try_from(indices.len()).context("too many indices of contexts")?);
    }
    let table = items.table();
    let dim = table.embedding_dim();
    let mut contexts = ttrec_convert::zeros(range.len().saturating_mul(dim))?;
    let bags = Bags::new(&indices, &offsets)?;
    context.table.forward(&bags, context.pooling, &mut contexts, &mut Vec::new())?;
    for vector in contexts.chunks_mut(dim) {
        let (query, _) = product.query(&[Some(vector), None], dim);
        vector.copy_from_slice(&query);
    }
    let known = |query: usize, out: &mut Vec<u64>| {
        let mut items = Vec::new();
        queries.add_known(range.start + query, &mut items);
        out.extend(items.into_iter().map(u64::from));
    };
    Catalogue { table, k: BEST, bias: None, known }.best(&contexts, bar)
}

/// The best items of one query, by the logits of a model of any kind.
fn by_logits(
    model: &mut Dlrm,
    dense: &[f32],
    queries: &Queries<'_>,
    query: usize,
) -> Result<Vec<Scored>> {
    let items = model.features().get(1).map_or(0, |item| item.table.table().num_embeddings());
    let items = u32::try_from(items).context("too many items")?;
    let (context, mut known, mut best) = (queries.context(query), Vec::new(), Vec::new());
    queries.add_known(query, &mut known);
    for first in (0..items).step_by(ITEMS) {
        let block: Vec<u32> = (first..items).take(ITEMS).collect();
        let (contexts, dense) = (context.repeat(block.len()), dense.repeat(block.len()));
        let ends = |len: usize| -> Result<Vec<u32>> {
            let ends = (0..=block.len()).map(|bags| u32::try_from(bags * len));
            ends.collect::<Result<_, _>>().context("too many indices of contexts")
        };
        let (of_contexts, of_items) = (ends(context.len())?, ends(1)?);
        let bags = [Bags::new(&contexts, &of_contexts)?, Bags::new(&block, &of_items)?];
        let mut logits = vec![0.0; block.len()];
        model.logits(&train::Batch { dense: &dense, bags: &bags }, &mut logits)?;
        let stays = |item: &(u32, f32)| known.binary_search(&item.0).is_err();
        let scored = block.iter().copied().zip(logits).filter(stays);
        best.extend(scored.map(|(item, score)| Scored { index: item.into(), score }));
        keep_best(&mut best, BEST);
    }
    Ok(best)
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
