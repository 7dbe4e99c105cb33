//! Orders of rows. [`Order::CoOccurrence`] makes rows with similar interactions neighbours.
//!
//! To find it, each side of the pairs gets coordinates: the leading singular vectors of the
//! matrix of pairs, divided by the roots of both sides' counts (Dhillon, "Co-clustering documents
//! and words using bipartite spectral graph partitioning", 2001). The vectors are multiplied by the
//! squares of their singular values, so that weaker ones count less. Only the direction of a row's
//! coordinates counts: their length depends on how frequent the row is. Rows are then halved along
//! the axis in which their coordinates differ most, and each half again, down to [`LEAF`] rows,
//! which are sorted by frequency.

use crate::{progress::Bar, random::uniform};
use serde::{Deserialize, Serialize};

/// The number of coordinates. The first one only depends on how frequent a row is.
const COORDINATES: usize = 48;
/// Iterations that find the coordinates.
const ROUNDS: usize = 12;
/// Iterations that find an axis.
const AXIS_ROUNDS: usize = 12;
/// The number of rows that are no longer split.
const LEAF: usize = 32;

type Coordinates = [f32; COORDINATES];

/// The order of the rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Order {
    /// The most frequent first.
    #[default]
    Frequency,
    /// Ascending ids.
    Given,
    /// As if ids were hashed.
    Random,
    /// Rows with similar interactions are neighbours, so that they share slices of a tensor train.
    CoOccurrence,
}

/// The order of the rows of both sides; `counts` says how often each occurs.
pub(super) fn by_co_occurrence(pairs: &[[u32; 2]], counts: [&[u64]; 2]) -> [Vec<u32>; 2] {
    let [left, right] = coordinates(pairs, counts.map(<[u64]>::len));
    [sorted(&left, counts[0]), sorted(&right, counts[1])]
}

/// The order of the rows of the left side. `counts` says how often each row occurs.
pub(super) fn of_left_rows(pairs: &[[u32; 2]], counts: &[u64], num_right: usize) -> Vec<u32> {
    let [left, _] = coordinates(pairs, [counts.len(), num_right]);
    sorted(&left, counts)
}

/// The coordinates of the rows of both sides.
fn coordinates(pairs: &[[u32; 2]], lens: [usize; 2]) -> [Vec<Coordinates>; 2] {
    let mut degrees = lens.map(|len| vec![0u32; len]);
    for pair in pairs {
        degrees
            .iter_mut()
            .zip(pair)
            .for_each(|(degrees, &row)| degrees[row as usize] += 1);
    }
    let scales = degrees
        .map(|degrees| degrees.iter().map(|&n| 1.0 / (n.max(1) as f32).sqrt()).collect::<Vec<_>>());
    let draw = |at: u64| (uniform(at, 0) - 0.5) as f32;
    let mut right: Vec<Coordinates> = (0..lens[1] as u64)
        .map(|row| std::array::from_fn(|k| draw(row * COORDINATES as u64 + k as u64)))
        .collect();
    let mut left = vec![[0.0; COORDINATES]; lens[0]];
    let bar = Bar::new("order of rows: rounds", ROUNDS as u64);
    for _ in 0..ROUNDS {
        orthonormalize(&mut right);
        multiply(pairs, [&scales[1], &scales[0]], |[l, r]| (r, l), &right, &mut left);
        orthonormalize(&mut left);
        multiply(pairs, [&scales[0], &scales[1]], |[l, r]| (l, r), &left, &mut right);
        bar.add(1);
    }
    // The right vectors are multiplied by their singular values, which are then their lengths.
    let mut squares = [0.0f64; COORDINATES];
    for row in &right {
        squares.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x * x));
    }
    for (rows, factors) in [(&mut left, squares), (&mut right, squares.map(f64::sqrt))] {
        for row in rows {
            row.iter_mut()
                .zip(&factors)
                .for_each(|(x, factor)| *x = (f64::from(*x) * factor) as f32);
            row[0] = 0.0;
            let length = row.iter().map(|x| x * x).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
            row.iter_mut().for_each(|x| *x /= length);
        }
    }
    [left, right]
}

/// The order in which similar rows are neighbours.
fn sorted(rows: &[Coordinates], counts: &[u64]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..rows.len() as u32).collect();
    halve(rows, counts, &mut order);
    order
}

/// The scaled matrix of pairs, or its transpose, times `from`.
fn multiply(
    pairs: &[[u32; 2]],
    [from_scales, to_scales]: [&[f32]; 2],
    sides: impl Fn([u32; 2]) -> (u32, u32),
    from: &[Coordinates],
    to: &mut [Coordinates],
) {
    to.fill([0.0; COORDINATES]);
    for &pair in pairs {
        let (source, target) = sides(pair);
        let scale = from_scales[source as usize] * to_scales[target as usize];
        let target = &mut to[target as usize];
        target.iter_mut().zip(&from[source as usize]).for_each(|(t, f)| *t += scale * f);
    }
}

/// Makes the columns orthonormal, each by means of those before it, as Gram-Schmidt does. The
/// factors come from the Cholesky decomposition of the products of all columns, so that there are
/// two passes over the rows. A column that depends on others becomes zeros.
fn orthonormalize(rows: &mut [Coordinates]) {
    let mut lower = [[0.0f64; COORDINATES]; COORDINATES];
    for row in &*rows {
        for (line, &x) in lower.iter_mut().zip(row) {
            line.iter_mut()
                .zip(row)
                .for_each(|(sum, &y)| *sum += f64::from(x) * f64::from(y));
        }
    }
    for i in 0..COORDINATES {
        let whole = lower[i][i];
        for j in 0..=i {
            let known: f64 = lower[i][..j].iter().zip(&lower[j]).map(|(x, y)| x * y).sum();
            let left = lower[i][j] - known;
            lower[i][j] = match lower[j][j] {
                _ if i == j && left > 1e-12 * whole => left.sqrt(),
                diagonal if i != j && diagonal > 0.0 => left / diagonal,
                _ => 0.0,
            };
        }
    }
    for row in rows {
        let mut done = [0.0f64; COORDINATES];
        for (i, x) in row.iter_mut().enumerate() {
            let known: f64 = lower[i][..i].iter().zip(&done).map(|(factor, x)| factor * x).sum();
            let diagonal = lower[i][i];
            done[i] = if diagonal > 0.0 {
                (f64::from(*x) - known) / diagonal
            } else {
                0.0
            };
            *x = done[i] as f32;
        }
    }
}

/// Sorts rows so that similar rows are neighbours.
fn halve(rows: &[Coordinates], counts: &[u64], order: &mut [u32]) {
    if order.len() <= LEAF {
        order.sort_by_key(|&row| (std::cmp::Reverse(counts[row as usize]), row));
        return;
    }
    let axis = main_axis(rows, order);
    let place = |row: u32| {
        rows[row as usize]
            .iter()
            .zip(&axis)
            .map(|(x, a)| f64::from(*x) * a)
            .sum::<f64>()
    };
    order.sort_by(|&a, &b| place(a).total_cmp(&place(b)).then(a.cmp(&b)));
    let (low, high) = order.split_at_mut(order.len() / 2);
    halve(rows, counts, low);
    halve(rows, counts, high);
}

/// The axis of the largest variance.
fn main_axis(rows: &[Coordinates], order: &[u32]) -> [f64; COORDINATES] {
    let mut mean = [0.0; COORDINATES];
    for &row in order {
        mean.iter_mut()
            .zip(&rows[row as usize])
            .for_each(|(sum, &x)| *sum += f64::from(x) / order.len() as f64);
    }
    let mut covariance = [[0.0; COORDINATES]; COORDINATES];
    for &row in order {
        let centered: [f64; COORDINATES] =
            std::array::from_fn(|k| f64::from(rows[row as usize][k]) - mean[k]);
        for (line, x) in covariance.iter_mut().zip(centered) {
            line.iter_mut().zip(&centered).for_each(|(sum, y)| *sum += x * y);
        }
    }
    let mut axis = [1.0; COORDINATES];
    for _ in 0..AXIS_ROUNDS {
        let product: [f64; COORDINATES] = std::array::from_fn(|i| {
            covariance[i].iter().zip(&axis).map(|(c, a)| c * a).sum::<f64>()
        });
        let norm = product.iter().map(|x| x * x).sum::<f64>().sqrt();
        if norm == 0.0 {
            break;
        }
        axis = product.map(|x| x / norm);
    }
    axis
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::random;

    #[test]
    fn groups_that_take_alike_stand_together() {
        // 8 groups of 64 users and 64 items, scattered; a user takes from its own group nine times
        // in ten.
        let group = |side: u64, row: u64| row * [37, 141][side as usize] % 512 / 64;
        let pairs: Vec<[u32; 2]> = (0..60_000u64)
            .filter_map(|at| {
                let [user, item] = [0, 1].map(|field| random(9, 3 * at + field) % 512);
                let alike = group(0, user) == group(1, item);
                (alike || random(9, 3 * at + 2).is_multiple_of(63))
                    .then_some([user as u32, item as u32])
            })
            .collect();
        let counts = vec![1u64; 512];
        let orders = by_co_occurrence(&pairs, [&counts, &counts]);
        for (side, order) in orders.iter().enumerate() {
            let mut all = order.clone();
            all.sort_unstable();
            assert!(all.into_iter().eq(0..512));
            let same = order.windows(2).filter(|pair| {
                group(side as u64, pair[0].into()) == group(side as u64, pair[1].into())
            });
            // By chance one neighbour in 8 is of the same group.
            assert!(same.clone().count() > 400, "{}", same.count());
        }
        assert_eq!(orders, by_co_occurrence(&pairs, [&counts, &counts]));
    }
}
