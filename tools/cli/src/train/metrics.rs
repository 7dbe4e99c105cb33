//! Metrics of scores.

use super::{config::Select, ranking::Ranking};
use serde::{Deserialize, Serialize};

/// The logits and labels of examples.
#[derive(Default)]
pub(crate) struct Scores {
    pub(crate) logits: Vec<f32>,
    pub(crate) labels: Vec<f32>,
}

/// The metrics of some scores.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Quality {
    pub(crate) examples: u64,
    /// The probability that an example labelled 1 has a higher score than one labelled 0; ties
    /// count half. `None` if either label is missing.
    pub(crate) auc: Option<f64>,
    /// Mean binary cross-entropy, in nats.
    pub(crate) log_loss: f64,
    /// The share of examples whose probability and label are on the same side of 1/2.
    pub(crate) accuracy: f64,
    /// The sum of the probabilities over the sum of the labels.
    pub(crate) calibration: Option<f64>,
    /// If the examples are items in contexts: the ranking of all items in each context.
    #[serde(flatten)]
    pub(crate) ranking: Option<Ranking>,
}

fn probability(logit: f64) -> f64 {
    1.0 / (1.0 + (-logit).exp())
}

impl Quality {
    pub(crate) fn is_better_than(&self, other: &Self, select: Select) -> bool {
        let larger = match select {
            Select::LogLoss => None,
            Select::Auc => self.auc.zip(other.auc),
            Select::Ndcg => self.ranking.zip(other.ranking).map(|(a, b)| (a.ndcg_20, b.ndcg_20)),
        };
        larger.map_or(self.log_loss < other.log_loss, |(found, other)| found > other)
    }
}

impl Scores {
    pub(crate) fn probabilities(&self) -> Vec<f32> {
        self.logits.iter().map(|&logit| probability(logit.into()) as f32).collect()
    }

    pub(crate) fn quality(&self) -> Quality {
        let Self { logits, labels } = self;
        let pairs = || {
            logits
                .iter()
                .zip(labels)
                .map(|(&logit, &label)| (f64::from(logit), f64::from(label)))
        };
        let count = logits.len().max(1) as f64;
        let loss = |(logit, label): (f64, f64)| {
            logit.max(0.0) - logit * label + (-logit.abs()).exp().ln_1p()
        };
        let right = pairs().filter(|(logit, label)| (*logit > 0.0) == (*label > 0.5)).count();
        let probabilities: f64 = pairs().map(|(logit, _)| probability(logit)).sum();
        let clicks: f64 = pairs().map(|(_, label)| label).sum();
        Quality {
            examples: logits.len() as u64,
            auc: self.auc(),
            log_loss: pairs().map(loss).sum::<f64>() / count,
            accuracy: right as f64 / count,
            calibration: (clicks > 0.0).then(|| probabilities / clicks),
            ranking: None,
        }
    }

    /// Sorts by score. An example of label y counts as y positives and 1 - y negatives. With labels
    /// of 0 and 1 all sums are multiples of 1/2, and exact.
    fn auc(&self) -> Option<f64> {
        let mut order: Vec<(f32, f32)> =
            self.logits.iter().copied().zip(self.labels.iter().copied()).collect();
        order.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        let (mut below, mut positives, mut pairs) = (0.0, 0.0, 0.0);
        // Equal scores, including 0 and -0, are ties.
        for ties in order.chunk_by(|a, b| a.0 == b.0) {
            let tied_positives: f64 = ties.iter().map(|(_, label)| f64::from(*label)).sum();
            let tied_negatives = ties.len() as f64 - tied_positives;
            pairs += tied_positives * (below + tied_negatives / 2.0);
            below += tied_negatives;
            positives += tied_positives;
        }
        (positives > 0.0 && below > 0.0).then(|| pairs / (positives * below))
    }
}

/// How labels of neighbouring examples correlate.
#[derive(Default)]
pub(super) struct Neighbours {
    last: Option<f64>,
    count: f64,
    sum: f64,
    squares: f64,
    products: f64,
}

impl Neighbours {
    pub(super) fn add(&mut self, labels: &[f32]) {
        for label in labels.iter().copied().map(f64::from) {
            if let Some(last) = self.last.replace(label) {
                self.count += 1.0;
                self.sum += label;
                self.squares += label * label;
                self.products += label * last;
            }
        }
    }

    /// The correlation; `None` if one of the labels is too rare for it to mean anything. Otherwise
    /// a random order of labels exceeds 0.2 in fewer than one pass in a million.
    pub(super) fn correlation(&self) -> Option<f64> {
        let mean = self.sum / self.count;
        let variance = self.squares / self.count - mean * mean;
        (self.count * variance >= 100.0)
            .then(|| (self.products / self.count - mean * mean) / variance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::random;

    #[test]
    fn auc_is_what_counting_all_pairs_gives() {
        for (count, values) in [(1, 1), (2, 1), (50, 3), (300, 7), (300, 100_000)] {
            let logits: Vec<f32> =
                (0..count).map(|i| (random(1, i) % values) as f32 - 3.0).collect();
            let labels: Vec<f32> = (0..count).map(|i| (random(2, i) % 2) as f32).collect();
            let (mut won, mut pairs) = (0.0, 0.0);
            for (a, _) in logits.iter().zip(&labels).filter(|(_, label)| **label == 1.0) {
                for (b, _) in logits.iter().zip(&labels).filter(|(_, label)| **label == 0.0) {
                    pairs += 1.0;
                    won += if a > b {
                        1.0
                    } else if a == b {
                        0.5
                    } else {
                        0.0
                    };
                }
            }
            let expected = (pairs > 0.0).then(|| won / pairs);
            assert_eq!(Scores { logits, labels }.quality().auc, expected, "{count} {values}");
        }
    }

    #[test]
    fn the_rest_is_by_definition() {
        let scores =
            Scores { logits: vec![0.0, 2.0, -1.0, 800.0], labels: vec![0.0, 1.0, 1.0, 1.0] };
        let Quality { examples, log_loss, accuracy, calibration, .. } = scores.quality();
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let loss = -(0.5f64.ln() + sigmoid(2.0).ln() + sigmoid(-1.0).ln()) / 4.0;
        assert!((log_loss - loss).abs() < 1e-12, "{log_loss} {loss}");
        assert_eq!((examples, accuracy), (4, 0.75));
        let probabilities = 0.5 + sigmoid(2.0) + sigmoid(-1.0) + 1.0;
        assert!((calibration.unwrap() - probabilities / 3.0).abs() < 1e-12);
        assert_eq!(Scores::default().quality().auc, None);
    }

    #[test]
    fn neighbours_correlate_if_labels_are_sorted() {
        let mut labels: Vec<f32> = (0..4000).map(|at| (random(5, at) % 2) as f32).collect();
        let correlation = |labels: &[f32]| {
            let mut neighbours = Neighbours::default();
            labels.chunks(7).for_each(|labels| neighbours.add(labels));
            neighbours.correlation()
        };
        assert!(correlation(&labels).unwrap().abs() < 0.1);
        labels.sort_by(f32::total_cmp);
        assert!(correlation(&labels).unwrap() > 0.99);
        assert_eq!(correlation(&labels[1900..2100]), None);
        assert_eq!(correlation(&[1.0; 4000]), None);
    }
}
