//! What a step reduces: the loss of a batch as a function of its logits, with its gradient.

use super::{Batch, Quantity, TrainError, Unsupported};
use crate::{
    Tier,
    dtype::Elements,
    kernel::{Dims, Epilogue, chain_step, exponentials, transpose},
};
use rayon::prelude::*;
use std::{vec, vec::Vec};

/// What a step reduces, with z for the logit of a sample.
#[derive(Clone, Copy, Debug)]
pub enum Objective<'o> {
    /// Binary cross-entropy: the mean of `w (ln(1 + exp(z)) - y z)` over the samples
    /// (`torch.nn.BCEWithLogitsLoss`).
    CrossEntropy {
        /// y of each sample, from 0 to 1 (1 for a click).
        labels: &'o [f32],
        /// w of each sample, 0 or more. All are 1 if this is empty.
        weights: &'o [f32],
    },
    /// Bayesian personalised ranking (Rendle et al., 2009). The samples are groups of a positive
    /// one and then negative ones. The loss is the mean of `ln(1 + exp(z - z_positive))` over the
    /// negative ones of all groups.
    Bpr {
        /// Samples of a group, at least 2.
        group: usize,
    },
    /// A softmax over groups of a positive sample and then negative ones. The loss is the mean of
    /// `ln(sum of exp(z - c)) - (z_positive - c_positive)` over the groups.
    Softmax {
        /// Samples of a group, at least 2.
        group: usize,
        /// c of each sample: the logarithm of how often its item is drawn. It makes up for smaller
        /// logits of items that are drawn often (Bengio and Senecal, 2008). A negative sample whose
        /// c is infinite does not count. All c are 0 if this is empty.
        log_frequencies: &'o [f32],
    },
    /// As [`Softmax`](Self::Softmax), with one sample for each positive item. The negative items of
    /// a sample are the items of all other samples, except those with the same id (Yi et al.,
    /// "Sampling-bias-corrected neural modeling for large corpus item recommendations", 2019). The
    /// model is a product of two categorical features, without dense features and without layers.
    InBatch {
        /// The item of each sample.
        ids: &'o [u32],
        /// c of each sample. All are 0 if this is empty.
        log_frequencies: &'o [f32],
    },
}

impl Objective<'_> {
    /// The number of samples that it suits, or else that of the batch.
    pub(super) fn num_samples(&self, batch: &Batch<'_>) -> usize {
        match self {
            Self::CrossEntropy { labels, .. } => labels.len(),
            Self::InBatch { ids, .. } => ids.len(),
            _ => batch.bags.first().map_or(0, |bags| bags.len()),
        }
    }

    /// Refuses what does not suit this many samples.
    pub(super) fn check(&self, samples: usize) -> Result<(), TrainError> {
        let is_weight = |weight: &f32| (0.0..f32::INFINITY).contains(weight);
        let (group, log_frequencies) = match *self {
            Self::CrossEntropy { labels, weights } => {
                if let Some(sample) = labels.iter().position(|label| !(0.0..=1.0).contains(label)) {
                    return Err(TrainError::Label { sample });
                }
                Quantity::Weights.check_unless_empty(weights.len(), samples)?;
                let wrong = weights.iter().position(|weight| !is_weight(weight));
                return wrong.map_or(Ok(()), |sample| Err(TrainError::Weight { sample }));
            }
            Self::Bpr { group } => (group, &[][..]),
            Self::Softmax { group, log_frequencies } => (group, log_frequencies),
            Self::InBatch { log_frequencies, .. } => (0, log_frequencies),
        };
        if group == 1 || group == 0 && !matches!(self, Self::InBatch { .. }) {
            return Err(TrainError::Unsupported(Unsupported::Group { group }));
        }
        Quantity::Samples.check(samples, samples.next_multiple_of(group.max(1)) as u64)?;
        Quantity::LogFrequencies.check_unless_empty(log_frequencies.len(), samples)?;
        let is_negative = |sample: usize| group > 0 && !sample.is_multiple_of(group);
        let is_known = |(sample, &c): (usize, &f32)| {
            c.is_finite() || c == f32::INFINITY && is_negative(sample)
        };
        let wrong = log_frequencies.iter().enumerate().position(|c| !is_known(c));
        wrong.map_or(Ok(()), |sample| Err(TrainError::LogFrequency { sample }))
    }

    /// The loss, and its gradient with respect to each logit. That of [`InBatch`](Self::InBatch)
    /// is no function of these logits: see [`in_batch`].
    pub(super) fn loss(&self, logits: &[f32], gradient: &mut [f32]) -> f64 {
        let mut sum = 0.0;
        match *self {
            Self::CrossEntropy { labels, weights } => {
                let scale = 1.0 / labels.len().max(1) as f64;
                let mut weights = weights.iter();
                for ((d, &logit), &label) in gradient.iter_mut().zip(logits).zip(labels) {
                    let weight = weights.next().map_or(1.0, |&weight| f64::from(weight));
                    let (logit, label) = (f64::from(logit), f64::from(label));
                    let (softplus, probability) = softplus(logit);
                    sum += weight * (softplus - logit * label);
                    *d = (weight * (probability - label) * scale) as f32;
                }
                sum * scale
            }
            Self::Bpr { group } => {
                let scale = 1.0 / (logits.len() - logits.len() / group).max(1) as f64;
                for (d, z) in gradient.chunks_mut(group).zip(logits.chunks(group)) {
                    let ([to_positive, d @ ..], [positive, z @ ..]) = (d, z) else { continue };
                    let mut pull = 0.0;
                    for (d, &z) in d.iter_mut().zip(z) {
                        let (loss, slope) = softplus(f64::from(z) - f64::from(*positive));
                        sum += loss;
                        pull += slope;
                        *d = (slope * scale) as f32;
                    }
                    *to_positive = (-pull * scale) as f32;
                }
                sum * scale
            }
            Self::Softmax { group, log_frequencies } => {
                let scale = 1.0 / (logits.len() / group).max(1) as f64;
                let mut log_frequencies = log_frequencies.chunks(group);
                let mut corrected = vec![0.0; group];
                for (d, z) in gradient.chunks_mut(group).zip(logits.chunks(group)) {
                    corrected.iter_mut().zip(z).for_each(|(to, &z)| *to = f64::from(z));
                    for (to, &c) in corrected.iter_mut().zip(log_frequencies.next().unwrap_or(&[]))
                    {
                        *to -= f64::from(c);
                    }
                    let largest = corrected.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let positive = corrected.first().map_or(0.0, |first| first - largest);
                    corrected.iter_mut().for_each(|z| *z = libm::exp(*z - largest));
                    let total: f64 = corrected.iter().sum();
                    sum += libm::log(total) - positive;
                    for (d, e) in d.iter_mut().zip(&corrected) {
                        *d = (e / total * scale) as f32;
                    }
                    if let (Some(d), Some(e)) = (d.first_mut(), corrected.first()) {
                        *d = ((e / total - 1.0) * scale) as f32;
                    }
                }
                sum * scale
            }
            Self::InBatch { .. } => 0.0,
        }
    }
}

/// `ln(1 + exp(x)) = max(x, 0) + ln(1 + exp(-|x|))`, where no exponential overflows, and its
/// derivative, the sigmoid of x.
fn softplus(x: f64) -> (f64, f64) {
    let e = libm::exp(-x.abs());
    let sigmoid = if x >= 0.0 { 1.0 / (1.0 + e) } else { e / (1.0 + e) };
    (x.max(0.0) + libm::log1p(e), sigmoid)
}

/// Contexts or items whose products with all others one thread computes together.
const ROWS: usize = 32;

/// The loss of [`Objective::InBatch`], and its gradients with respect to the vectors of `dim`
/// elements of the contexts and of the items.
///
/// The products of all contexts with all items are computed twice, once by contexts and once by
/// items, in blocks of [`ROWS`]: they are never in memory together, threads share the blocks, and
/// no sum depends on the number of threads. `None` is a defect of this crate.
pub(super) fn in_batch(
    tier: Tier,
    dim: usize,
    [contexts, items]: [&[f32]; 2],
    (ids, log_frequencies): (&[u32], &[f32]),
    [d_contexts, d_items]: [&mut [f32]; 2],
) -> Option<f64> {
    let scale = 1.0 / ids.len().max(1) as f32;
    let hide = |at: usize, scores: &mut [f32]| {
        for ((score, other), id) in scores.iter_mut().zip(0..).zip(ids) {
            if *id == ids[at] && at != other {
                *score = f32::NEG_INFINITY;
            }
        }
    };
    let by_context = |at: usize, scores: &mut [f32]| {
        scores.iter_mut().zip(log_frequencies).for_each(|(score, c)| *score -= c);
        hide(at, scores);
        let (positive, largest) =
            (scores[at], scores.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let total = exponentials(tier, largest, scores);
        scores.iter_mut().for_each(|p| *p *= scale / total);
        scores[at] -= scale;
        let log = libm::log(total.into()) + f64::from(largest);
        (log, log - f64::from(positive))
    };
    let results = products(tier, dim, contexts, items, d_contexts, &by_context)?;
    let logs: Vec<f32> = results.iter().map(|&(log, _)| log as f32).collect();
    let by_item = |at: usize, scores: &mut [f32]| {
        scores.iter_mut().zip(&logs).for_each(|(score, log)| *score -= log);
        hide(at, scores);
        exponentials(tier, log_frequencies.get(at).copied().unwrap_or(0.0), scores);
        scores.iter_mut().for_each(|p| *p *= scale);
        scores[at] -= scale;
        (0.0, 0.0)
    };
    products(tier, dim, items, contexts, d_items, &by_item)?;
    Some(results.iter().map(|&(_, loss)| loss).sum::<f64>() / ids.len().max(1) as f64)
}

/// Turns the products of the row at this position into weights.
type Weigh<'w> = dyn Fn(usize, &mut [f32]) -> (f64, f64) + Sync + 'w;

/// `out <- weigh(rows . others') . others`. Also what `weigh` returned for each row.
fn products(
    tier: Tier,
    dim: usize,
    rows: &[f32],
    others: &[f32],
    out: &mut [f32],
    weigh: &Weigh<'_>,
) -> Option<Vec<(f64, f64)>> {
    let count = others.len() / dim;
    let mut transposed = vec![0.0; others.len()];
    transpose(tier, others, dim, &mut transposed)?;
    let chunks = rows.par_chunks(ROWS * dim).zip(out.par_chunks_mut(ROWS * dim));
    let results = chunks.enumerate().map(|(chunk, (rows, out))| {
        let m = rows.len() / dim;
        let mut scores = vec![0.0; m * count];
        let (dims, other_rows) = (Dims { m, r: dim, n: count }, Elements::from_f32(&transposed));
        chain_step(tier, dims, rows, other_rows, &mut scores, Epilogue::Store)?;
        let weighed = scores.chunks_exact_mut(count).zip(chunk * ROWS..);
        let results: Vec<_> = weighed.map(|(scores, at)| weigh(at, scores)).collect();
        let (dims, others) = (Dims { m, r: count, n: dim }, Elements::from_f32(others));
        chain_step(tier, dims, &scores, others, out, Epilogue::Store)?;
        Some(results)
    });
    Some(results.collect::<Option<Vec<_>>>()?.concat())
}
