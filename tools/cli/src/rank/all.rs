//! All rows of a table as one user's candidates.

use super::Ranking;
use crate::{catalogue::Catalogue, progress::Bar, query::ProductModel, samples::Samples};
use anyhow::{Context, Result, bail, ensure};
use ttrec::{Bags, Pooling, Ranker, Table, Workspace, blob::Activation};
use ttrec_convert::zeros;

/// Rows whose products with a query are computed at once: many, because each time the query is
/// contracted again.
const PRODUCTS: usize = 1 << 20;
/// Rows that the ranker scores at once.
const SAMPLES: usize = 1 << 12;

/// Ranks all rows of the table that the user has no bag for.
pub(super) fn rank(ranker: &Ranker<'_>, user: &Samples, ranking: &mut Ranking) -> Result<()> {
    let path = user.path();
    let tables: Vec<Table<'_>> = ranker.tables().collect();
    let bags = (0..tables.len()).map(|table| user.bags(table)).collect::<Result<Vec<_>>>()?;
    let mut others = (0..tables.len()).filter(|&table| bags[table].is_none());
    let (Some(candidates), None) = (others.next(), others.next()) else {
        let (found, all) = (bags.iter().flatten().count(), tables.len());
        bail!(
            "{path}: has bags for {found} of the model's {all} tables: --all ranks the rows of one \
             table, and expects bags for all others"
        );
    };
    for (table, bags) in bags.iter().enumerate() {
        let found = bags.as_ref().map_or(1, Bags::len);
        ensure!(found == 1, "{path}: table {table} has {found} bags: a user has one");
    }
    let dense = user.dense().with_context(|| format!("{path}: array \"dense\" is missing"))?;
    let (found, expected) = (dense.len(), ranker.num_dense());
    ensure!(
        found == expected,
        "{path}: \"dense\" has {found} elements: expected {expected}, one sample"
    );
    let ranked = match ProductModel::of_ranker(ranker, dense) {
        Some(product) => by_products(ranker, &product, &bags, candidates, ranking),
        None => by_samples(ranker, dense, &bags, candidates, ranking),
    };
    ranked.with_context(|| path.to_owned())
}

/// The first elements of ranges of `step` that cover the rows of a table, and their lengths.
fn blocks(table: &Table<'_>, step: usize) -> impl Iterator<Item = (u64, usize)> {
    let rows = table.num_embeddings();
    (0..rows)
        .step_by(step)
        .map(move |first| (first, (rows - first).min(step as u64) as usize))
}

/// Where the logit is the product of a candidate's row and a query.
fn by_products(
    ranker: &Ranker<'_>,
    product: &ProductModel,
    bags: &[Option<Bags<'_>>],
    candidates: usize,
    ranking: &mut Ranking,
) -> Result<()> {
    let (mut workspace, dim) = (Workspace::new(), ranker.embedding_dim());
    let vector = |((table, pooling), bags): ((Table<'_>, Pooling), &Option<Bags<'_>>)| {
        let Some(bags) = bags else { return Ok(None) };
        let (mut vector, len) = (zeros(dim)?, bags.num_indices());
        table.pool(bags, pooling, &mut vector, workspace.for_table(&table, len))?;
        Ok(Some(vector))
    };
    let vectors = ranker.tables().zip(ranker.poolings()).zip(bags).map(vector);
    let vectors = vectors.collect::<Result<Vec<_>>>()?;
    let vectors: Vec<_> = vectors.iter().map(Option::as_deref).collect();
    let (query, constant) = product.query(&vectors, dim);

    let table = ranker.tables().nth(candidates).context("the model has too few tables")?;
    let bar = Bar::new("rows", table.num_embeddings());
    if ranking.all.is_none() {
        let k = usize::try_from(table.num_embeddings()).map_or(ranking.top, |n| n.min(ranking.top));
        ranking.best =
            Catalogue { table, k, bias: None, known: |_, _: &mut _| {} }.best(&query, &bar)?;
        ranking.best.retain(|best| !best.is_none());
    } else {
        let mut out = Vec::new();
        for (first, count) in blocks(&table, PRODUCTS) {
            out.resize(count, 0.0);
            let rows = first..first + count as u64;
            table.scores(&query, rows, &mut out, workspace.for_retrieval(&table, 1))?;
            ranking.add(&out)?;
            bar.add(count as u64);
        }
    }
    let is_probability = ranker
        .layers()
        .last()
        .is_some_and(|layer| layer.activation == Activation::Sigmoid);
    let score = |product: &mut f32| {
        let logit = f64::from(*product) + constant;
        *product = if is_probability {
            1.0 / (1.0 + (-logit).exp())
        } else {
            logit
        } as f32;
    };
    ranking.best.iter_mut().for_each(|best| score(&mut best.score));
    ranking.all.iter_mut().flatten().for_each(score);
    Ok(())
}

/// Where only the model itself can score a candidate.
fn by_samples(
    ranker: &Ranker<'_>,
    dense: &[f32],
    bags: &[Option<Bags<'_>>],
    candidates: usize,
    ranking: &mut Ranking,
) -> Result<()> {
    let table = ranker.tables().nth(candidates).context("the model has too few tables")?;
    let bar = Bar::new("rows", table.num_embeddings());
    let offsets: Vec<u64> = (0..=SAMPLES as u64).collect();
    let (mut out, mut workspace) = (Vec::new(), zeros(ranker.workspace_len(SAMPLES))?);
    for (first, count) in blocks(&table, SAMPLES) {
        let rows: Vec<u64> = (first..first + count as u64).collect();
        let rows = Bags::new(&rows, &offsets[..=count])?;
        let bags: Vec<Bags<'_>> = bags.iter().map(|bags| bags.unwrap_or(rows)).collect();
        out.resize(count, 0.0);
        ranker.rank(dense, &bags, &mut out, &mut workspace)?;
        ranking.add(&out)?;
        bar.add(count as u64);
    }
    Ok(())
}
