//! `ttrec bench BLOB --batch`: measures a model of the user.

use super::{
    roofline::{Caches, Pass, Roofline},
    traffic::scalar,
};
use crate::{
    bags_file::BagOptions,
    blob_file::BlobFile,
    samples::{Samples, missing},
};
use anyhow::{Context, Result, ensure};
use std::hint::black_box;
use ttrec::{
    Bags, LookupError, Pooling, Ranker,
    blob::{Activation, Layer, Stack},
};
use ttrec_convert::zeros;

/// The number of samples that are checked.
const CHECKED: usize = 8;

/// The measurement of a model.
pub(super) struct ModelTiming {
    pub(super) samples: usize,
    pub(super) batch: usize,
    /// Seconds to score all samples, batch by batch.
    pub(super) seconds: f64,
    pub(super) workspace_bytes: usize,
}

/// Scores the samples of the file at `path`, `batch` of them at a time; the remainder is skipped.
pub(super) fn measure(
    roofline: &mut Roofline,
    file: &BlobFile,
    path: &std::path::Path,
    batch: usize,
) -> Result<ModelTiming> {
    let blob = file.blob()?;
    let ranker = file.ranker(&blob)?.with_tier(roofline.tier());
    let samples = Samples::read(path, &ranker, &BagOptions::default())?;
    measure_samples(roofline, &ranker, &samples, batch).with_context(|| samples.path().to_owned())
}

fn measure_samples(
    roofline: &mut Roofline,
    ranker: &Ranker<'_>,
    samples: &Samples,
    batch: usize,
) -> Result<ModelTiming> {
    let dense = samples.dense().context("array \"dense\" is missing")?;
    let all = |table| samples.bags(table)?.ok_or_else(|| missing(samples.path(), ranker, table));
    let all: Vec<Bags<'_>> = (0..ranker.num_tables()).map(all).collect::<Result<_>>()?;
    let count = samples.count(ranker)?;
    ensure!(
        all.iter().all(|bags| bags.len() == count),
        "each table needs {count} bags, one for each sample"
    );
    let batches = count / batch;
    ensure!(batches > 0, "the file has {count} samples, but --samples is {batch}");
    // Each batch needs its own offsets.
    let indices: Vec<Vec<u64>> = all.iter().map(|bags| bags.indices().collect()).collect();
    let ends: Vec<Vec<u64>> = all.iter().map(|bags| bags.offsets().collect()).collect();
    let mut offsets = Vec::new();
    for start in (0..batches * batch).step_by(batch) {
        for ends in &ends {
            let of_batch = &ends[start..=start + batch];
            offsets.push(of_batch.iter().map(|offset| offset - of_batch[0]).collect::<Vec<_>>());
        }
    }
    let mut lists = Vec::new();
    for (offsets, at) in offsets.iter().zip(0..) {
        let (table, start) = (at % all.len(), at / all.len() * batch);
        let range = ends[table][start] as usize..ends[table][start + batch] as usize;
        let list = Bags::new(&indices[table][range.clone()], offsets)?;
        lists.push(match all[table].per_sample_weights() {
            Some(weights) => list.with_per_sample_weights(&weights[range])?,
            None => list,
        });
    }
    let mut workspace = zeros(ranker.workspace_len(batch))?;
    let mut out = zeros(batch)?;
    let of_batch = |at: usize| {
        let bags = &lists[at * all.len()..][..all.len()];
        (&dense[at * batch * ranker.num_dense()..][..batch * ranker.num_dense()], bags)
    };

    let (first_dense, first_bags) = of_batch(0);
    ranker.logits(first_dense, first_bags, &mut out, &mut workspace)?;
    for (sample, &found) in out.iter().enumerate().take(CHECKED) {
        let expected = plain(ranker, &all, dense, sample)?;
        let error = (f64::from(found) - expected).abs();
        ensure!(
            error <= 1e-3 * expected.abs().max(1.0),
            "sample {sample}: wrong result (this is a bug in ttrec): logit {found}, expected \
             {expected}; nothing was measured"
        );
    }

    let workspace_bytes = size_of_val(&workspace[..]);
    let pass = Pass::new(batches, |mut range| {
        range.try_for_each(|at| {
            let (dense, bags) = of_batch(at);
            let scored = ranker.score(black_box(dense), bags, &mut out, &mut workspace);
            black_box(&mut out);
            scored.map_err(|_| LookupError::Inconsistent)
        })
    });
    let [seconds] = roofline.fastest(Caches::Warm, [pass])?;
    Ok(ModelTiming { samples: batches * batch, batch, seconds, workspace_bytes })
}

/// The logit of a sample by plain loops, from rows of the scalar tier.
fn plain(ranker: &Ranker<'_>, bags: &[Bags<'_>], dense: &[f32], sample: usize) -> Result<f64> {
    let stack = |stack, x: Vec<f64>| {
        ranker
            .layers()
            .filter(|layer| layer.stack == stack)
            .fold(x, |x, layer| mlp_layer(&layer, &x))
    };
    let dense = &dense[sample * ranker.num_dense()..][..ranker.num_dense()];
    let bottom = (ranker.num_dense() > 0)
        .then(|| stack(Stack::Bottom, dense.iter().map(|&x| x.into()).collect()));
    let mut vectors = Vec::from_iter(bottom);
    for ((table, pooling), bags) in ranker.tables().zip(ranker.poolings()).zip(bags) {
        let table = table.with_tier(scalar()?);
        let (mut row, mut workspace) =
            (vec![0.0; table.embedding_dim()], vec![0.0; table.workspace_len(1)]);
        let start = bags.offsets().nth(sample).unwrap_or(0) as usize;
        let end = bags.offsets().nth(sample + 1).unwrap_or(0) as usize;
        let mut sum = vec![0.0; ranker.embedding_dim()];
        let count = (end - start).max(1) as f64;
        for (at, index) in (start..end).zip(bags.indices().skip(start)) {
            let weight = bags.per_sample_weights().map_or(1.0, |weights| weights[at].into());
            table.lookup(index, &mut row, &mut workspace)?;
            sum.iter_mut().zip(&row).for_each(|(sum, &x)| *sum += weight * f64::from(x));
        }
        if pooling == Pooling::Mean {
            sum.iter_mut().for_each(|sum| *sum /= count);
        }
        vectors.push(sum);
    }
    let mut x = if ranker.num_dense() > 0 {
        vectors[0].clone()
    } else {
        Vec::new()
    };
    for (i, a) in vectors.iter().enumerate() {
        x.extend(vectors[..i].iter().map(|b| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>()));
    }
    stack(Stack::Top, x).first().copied().context("a model without outputs")
}

fn mlp_layer(layer: &Layer<'_>, x: &[f64]) -> Vec<f64> {
    let weights = layer.weights;
    let weights: Vec<f64> =
        (0..weights.len()).filter_map(|at| weights.get(at)).map(f64::from).collect();
    let output = |j: usize| {
        let sum: f64 = x
            .iter()
            .zip(weights.iter().skip(j).step_by(layer.outputs))
            .map(|(x, w)| x * w)
            .sum();
        let scale = layer.scales.get(j).map_or(1.0, |&scale| scale.into());
        let y = sum * scale + f64::from(layer.bias[j]);
        if layer.activation == Activation::Relu {
            y.max(0.0)
        } else {
            y
        }
    };
    (0..layer.outputs).map(output).collect()
}
