//! The distribution of errors in constant memory: counts in 64 steps for each factor of two, which
//! are equally wide on a logarithmic scale.

use std::ops::Range;

/// Steps for each factor of two.
const PER_OCTAVE: usize = 64;
/// Smaller errors count as 0: differences of f32 numbers are never smaller.
const SMALLEST: f64 = f64::from_bits((1023 - 160) << 52);
/// Steps from [`SMALLEST`] to the largest error of f32 rows, and one for NaN.
const STEPS: usize = (160 + 140) * PER_OCTAVE;

/// Counts of positive numbers by their magnitude.
pub(super) struct Distribution {
    zeros: u64,
    steps: Vec<u64>,
}

/// A bar of a histogram. All bars are equally wide on a logarithmic scale, so that the counts are
/// in proportion to the density on that scale.
#[derive(Clone, Debug, PartialEq)]
pub struct HistogramBar {
    /// The errors that it counts.
    pub errors: Range<f64>,
    /// The number of rows.
    pub count: u64,
}

impl Distribution {
    pub(super) fn new() -> Self {
        Self { zeros: 0, steps: vec![0; STEPS] }
    }

    pub(super) fn add(&mut self, error: f64) {
        if error < SMALLEST {
            self.zeros += 1;
        } else {
            self.steps[step(error)] += 1;
        }
    }

    pub(super) fn zeros(&self) -> u64 {
        self.zeros
    }

    /// The quantile of a share of the numbers, to within half a step.
    pub(super) fn quantile(&self, share: f64) -> f64 {
        let total = self.zeros + self.steps.iter().sum::<u64>();
        let wanted = (share * total as f64).ceil() as u64;
        let mut seen = self.zeros;
        if seen >= wanted {
            return 0.0;
        }
        let at = self.steps.iter().position(|&count| {
            seen += count;
            seen >= wanted
        });
        at.map_or(f64::INFINITY, |at| (start(at) + start(at + 1)) / 2.0)
    }

    /// A histogram of the positive numbers, divided by `unit`, in at most `count` bars.
    pub(super) fn bars(&self, count: usize, unit: f64) -> Vec<HistogramBar> {
        let taken = |&count: &u64| count > 0;
        let (Some(first), Some(last)) =
            (self.steps.iter().position(taken), self.steps.iter().rposition(taken))
        else {
            return Vec::new();
        };
        let width = (last + 1 - first).div_ceil(count.max(1));
        let bars = self.steps[first..=last].chunks(width).zip((first..).step_by(width));
        bars.map(|(steps, at)| HistogramBar {
            errors: start(at) / unit..start(at + width) / unit,
            count: steps.iter().sum(),
        })
        .collect()
    }
}

/// The step of a number of at least [`SMALLEST`].
fn step(error: f64) -> usize {
    // NaN has the last step, like infinity.
    let steps = (error / SMALLEST).log2() * PER_OCTAVE as f64;
    if steps < STEPS as f64 {
        steps as usize
    } else {
        STEPS - 1
    }
}

/// The smallest number of a step.
fn start(step: usize) -> f64 {
    SMALLEST * (step as f64 / PER_OCTAVE as f64).exp2()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_a_step() {
        let mut distribution = Distribution::new();
        (1..=1000).for_each(|i| distribution.add(f64::from(i) * 1e-3));
        for (share, expected) in [(0.001, 0.001), (0.5, 0.5), (0.9, 0.9), (0.99, 0.99), (1.0, 1.0)]
        {
            let found = distribution.quantile(share);
            assert!((found / expected - 1.0).abs() < 0.01, "{share}: {found}");
        }
        (0..1000).for_each(|_| distribution.add(0.0));
        assert_eq!((distribution.zeros(), distribution.quantile(0.5)), (1000, 0.0));
        assert!((distribution.quantile(0.75) / 0.5 - 1.0).abs() < 0.01);
    }

    #[test]
    fn bars_count_every_number_where_it_is() {
        let mut distribution = Distribution::new();
        let numbers: Vec<f64> = (0..500).map(|i| 1e-4 * 1.013_f64.powi(i)).collect();
        numbers.iter().for_each(|&x| distribution.add(x));
        for count in [1, 2, 7, 24, 1000] {
            let bars = distribution.bars(count, 2.0);
            assert!(bars.len() <= count, "{count}: {}", bars.len());
            for bar in &bars {
                let within =
                    numbers.iter().filter(|&&x| bar.errors.contains(&(x / 2.0))).count() as u64;
                assert_eq!(bar.count, within, "{count}: {:?}", bar.errors);
            }
            assert_eq!(bars.iter().map(|bar| bar.count).sum::<u64>(), 500);
            assert!(bars.windows(2).all(|pair| pair[0].errors.end == pair[1].errors.start));
            let width = |bar: &HistogramBar| bar.errors.end / bar.errors.start;
            for bar in &bars {
                assert!((width(bar) / width(&bars[0]) - 1.0).abs() < 1e-9, "{count}: {bar:?}");
            }
        }
    }

    #[test]
    fn extremes_have_a_place() {
        let mut distribution = Distribution::new();
        assert_eq!(distribution.bars(10, 1.0), []);
        for x in [
            0.0,
            1e-300,
            f64::from(f32::MIN_POSITIVE),
            f64::from(f32::MAX) * 256.0,
            f64::INFINITY,
            f64::NAN,
        ] {
            distribution.add(x);
        }
        assert_eq!(distribution.zeros(), 2);
        assert_eq!(distribution.bars(10, 1.0).iter().map(|bar| bar.count).sum::<u64>(), 4);
    }
}
