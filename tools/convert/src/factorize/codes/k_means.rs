//! k-means: a book whose entries are near all points.

use super::nearest::Searched;
use rayon::prelude::*;

/// Points for each entry that the first entries are chosen from.
const CHOSEN_FROM: usize = 8;
/// Points that one thread compares at once.
const AT_ONCE: usize = 4096;
/// By how much the halves of a split entry differ from it, relative to its size.
const SPLIT: f32 = 1.0 / 1024.0;

/// Points, column by column.
#[derive(Clone, Copy)]
pub(super) struct Points<'p> {
    pub(super) columns: &'p [f32],
    pub(super) count: usize,
    /// How much each point counts.
    pub(super) weights: Option<&'p [f32]>,
}

/// A book and the entry of each point.
#[derive(Clone)]
pub(super) struct Clusters {
    pub(super) width: usize,
    pub(super) entries: Vec<f32>,
    pub(super) codes: Vec<u16>,
}

impl Points<'_> {
    fn width(&self) -> usize {
        self.columns.len() / self.count
    }

    fn weight(&self, at: usize) -> f32 {
        self.weights.map_or(1.0, |weights| weights[at])
    }

    /// k-means++ (Arthur and Vassilvitskii, 2007), on some of the points: each entry is a point,
    /// drawn in proportion to its squared distance from the entries before it.
    pub(super) fn start(&self, book_len: usize, seed: u64) -> Clusters {
        let width = self.width();
        let count = self.count.min(book_len * CHOSEN_FROM);
        let place = |at: usize| at * self.count / count;
        let few: Vec<f32> = self
            .columns
            .chunks_exact(self.count)
            .flat_map(|column| (0..count).map(move |at| column[place(at)]))
            .collect();
        let weights: Vec<f32> = (0..count).map(|at| self.weight(place(at))).collect();
        let mut random = Random(seed);
        let mut entries = Vec::with_capacity(book_len * width);
        let (mut distances, mut squares) = (vec![f32::INFINITY; count], vec![0.0f32; count]);
        let mut taken = random.below(count);
        loop {
            let entry = few.chunks_exact(count).map(|column| column[taken]);
            entries.extend(entry);
            if entries.len() == book_len * width {
                break;
            }
            squares.fill(0.0);
            let entry = &entries[entries.len() - width..];
            for (column, &center) in few.chunks_exact(count).zip(entry) {
                squares.iter_mut().zip(column).for_each(|(sum, x)| {
                    *sum += (x - center) * (x - center);
                });
            }
            distances.iter_mut().zip(&squares).for_each(|(d, &square)| *d = d.min(square));
            let shares = distances.iter().zip(&weights).map(|(&d, &weight)| f64::from(d * weight));
            let mut left = random.fraction() * shares.clone().sum::<f64>();
            let reached = shares.take_while(|share| {
                left -= share;
                left >= 0.0
            });
            taken = reached.count().min(count - 1);
        }
        let mut clusters = Clusters { width, entries, codes: vec![0; self.count] };
        self.assign(&mut clusters);
        clusters
    }

    /// Moves each entry to the mean of its points, and finds the nearest entries again.
    pub(super) fn improve(&self, clusters: &mut Clusters) {
        let width = clusters.width;
        let (means, mut masses) = self.means(&clusters.codes, clusters.entries.len() / width);
        for (at, mean) in means.chunks_exact(width).enumerate() {
            if masses[at] > 0.0 {
                clusters.entries[at * width..][..width].copy_from_slice(mean);
            }
        }
        // An entry without points takes half of those of the entry that has most.
        for empty in 0..masses.len() {
            if masses[empty] > 0.0 {
                continue;
            }
            let most = (0..masses.len()).max_by(|&a, &b| masses[a].total_cmp(&masses[b]));
            let Some(most) = most else { return };
            masses[most] /= 2.0;
            masses[empty] = masses[most];
            for column in 0..width {
                let x = clusters.entries[most * width + column];
                clusters.entries[empty * width + column] = x * (1.0 + SPLIT);
                clusters.entries[most * width + column] = x * (1.0 - SPLIT);
            }
        }
        self.assign(clusters);
    }

    /// The mean of the points of each entry, and their weight; no number where it is 0.
    pub(super) fn means(&self, codes: &[u16], book_len: usize) -> (Vec<f32>, Vec<f64>) {
        let width = self.width();
        let mut masses = vec![0.0f64; book_len];
        for (at, &code) in codes.iter().enumerate() {
            masses[usize::from(code)] += f64::from(self.weight(at));
        }
        let mut means = vec![0.0; book_len * width];
        let mut sums = vec![0.0f64; book_len];
        for (column, values) in self.columns.chunks_exact(self.count).enumerate() {
            sums.fill(0.0);
            match self.weights {
                None => codes
                    .iter()
                    .zip(values)
                    .for_each(|(&code, &x)| sums[usize::from(code)] += f64::from(x)),
                Some(weights) => {
                    codes.iter().zip(values).zip(weights).for_each(|((&code, &x), &weight)| {
                        sums[usize::from(code)] += f64::from(weight) * f64::from(x);
                    });
                }
            }
            let means = means[column..].iter_mut().step_by(width);
            means
                .zip(sums.iter().zip(&masses))
                .for_each(|(mean, (sum, mass))| *mean = (sum / mass) as f32);
        }
        (means, masses)
    }

    /// The nearest entry of each point.
    fn assign(&self, clusters: &mut Clusters) {
        let book = Searched::new(&clusters.entries, clusters.width);
        let parts = clusters.codes.par_chunks_mut(AT_ONCE).enumerate();
        parts.for_each_init(
            || vec![0.0; AT_ONCE],
            |distances, (part, codes)| {
                let columns = &self.columns[part * AT_ONCE..];
                book.nearest(columns, self.count, codes, &mut distances[..codes.len()]);
            },
        );
    }
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    fn below(&mut self, count: usize) -> usize {
        ((u128::from(self.next()) * count as u128) >> 64) as usize
    }

    fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}
