//! Chooses a candidate for each table, so that the model has the least squared error within the
//! budget.
//!
//! Tables are added one after another. Of the choices for the tables so far, those are kept that no
//! other beats in bytes and error. So the result is exact while they are few, and always for a
//! single table. If they become too many, the budget is divided into narrow bands and the best
//! choice of each band is kept; unused bytes are spent on single tables at the end.

use std::cmp::Ordering;

/// The most choices that are carried from one table to the next.
const KEPT: usize = 4096;
/// The most combinations that are compared one by one.
const COMPARED: usize = 1 << 20;

/// The properties of a candidate that decide.
#[derive(Clone, Copy, Debug)]
pub(super) struct Item {
    pub(super) bytes: u64,
    /// The squared absolute error, which adds up over tables.
    pub(super) error: f64,
    /// Decides between candidates of equal bytes and error.
    pub(super) nanoseconds: f64,
}

impl Item {
    fn by_bytes(&self, other: &Self) -> Ordering {
        self.bytes.cmp(&other.bytes).then(self.by_error(other))
    }

    fn by_error(&self, other: &Self) -> Ordering {
        self.error
            .total_cmp(&other.error)
            .then(self.nanoseconds.total_cmp(&other.nanoseconds))
    }
}

/// The items that no item of at most the same bytes beats in error, or in time at equal error; by
/// bytes.
pub(super) fn front(items: &[Item]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by(|&a, &b| items[a].by_bytes(&items[b]));
    let mut least = f64::INFINITY;
    order.retain(|&at| {
        items[at].error < least && {
            least = items[at].error;
            true
        }
    });
    order
}

/// A choice for the tables so far: the last one's candidate, and what came before it.
#[derive(Clone, Copy)]
struct State {
    sum: Item,
    taken: usize,
    before: usize,
}

/// The candidate of each table, in at most `capacity` bytes together; `None` if no choice fits.
pub(super) fn choose(tables: &[Vec<Item>], capacity: u64) -> Option<Vec<usize>> {
    let fronts: Vec<Vec<usize>> = tables.iter().map(|items| front(items)).collect();
    let least = |at: usize| fronts[at].first().map(|&first| tables[at][first].bytes);
    // The least bytes of the tables after each one.
    let mut needed = vec![0u64; tables.len() + 1];
    for at in (0..tables.len()).rev() {
        needed[at] = needed[at + 1].saturating_add(least(at)?);
    }
    if needed[0] > capacity {
        return None;
    }
    let start = State { sum: Item { bytes: 0, error: 0.0, nanoseconds: 0.0 }, taken: 0, before: 0 };
    let mut steps = vec![vec![start]];
    for (at, items) in tables.iter().enumerate() {
        let states = extend(&steps[at], items, &fronts[at], capacity - needed[at + 1]);
        steps.push(states);
    }
    let mut taken = vec![0; tables.len()];
    // Of the last states the one of most bytes has the least error.
    let mut state = *steps.last()?.last()?;
    for at in (0..tables.len()).rev() {
        taken[at] = state.taken;
        state = steps[at][state.before];
    }
    spend(tables, &fronts, capacity, &mut taken);
    Some(taken)
}

/// Every state with every candidate that fits, without those that others beat.
fn extend(states: &[State], items: &[Item], front: &[usize], capacity: u64) -> Vec<State> {
    let low = states.iter().map(|state| state.sum.bytes).min().unwrap_or(0);
    let band = |bytes: u64| {
        (u128::from(bytes - low) * (KEPT as u128 - 1) / u128::from((capacity - low).max(1)))
            as usize
    };
    let few = states.len().saturating_mul(front.len()) <= COMPARED;
    let (mut all, mut bands): (Vec<State>, Vec<Option<State>>) =
        (Vec::new(), vec![None; if few { 0 } else { KEPT }]);
    let keep = |bands: &mut Vec<Option<State>>, state: State| {
        let place = &mut bands[band(state.sum.bytes)];
        if place.is_none_or(|there| state.sum.by_error(&there.sum) == Ordering::Less) {
            *place = Some(state);
        }
    };
    for (before, state) in states.iter().enumerate() {
        for &taken in front {
            let item = &items[taken];
            let Some(bytes) =
                state.sum.bytes.checked_add(item.bytes).filter(|&bytes| bytes <= capacity)
            else {
                break;
            };
            let error = state.sum.error + item.error;
            let nanoseconds = state.sum.nanoseconds + item.nanoseconds;
            let state = State { sum: Item { bytes, error, nanoseconds }, taken, before };
            if few { all.push(state) } else { keep(&mut bands, state) }
        }
    }
    let mut kept = if few {
        unbeaten(all)
    } else {
        unbeaten(bands.into_iter().flatten().collect())
    };
    if kept.len() > KEPT {
        let mut bands = vec![None; KEPT];
        kept.iter().for_each(|&state| keep(&mut bands, state));
        kept = unbeaten(bands.into_iter().flatten().collect());
    }
    kept
}

/// The states that no other beats, by bytes.
fn unbeaten(mut states: Vec<State>) -> Vec<State> {
    states.sort_by(|a, b| a.sum.by_bytes(&b.sum));
    let mut least = f64::INFINITY;
    states.retain(|state| {
        state.sum.error < least && {
            least = state.sum.error;
            true
        }
    });
    states
}

/// Spends unused bytes on the table that gains most, as long as one gains.
fn spend(tables: &[Vec<Item>], fronts: &[Vec<usize>], capacity: u64, taken: &mut [usize]) {
    loop {
        let used: u64 = tables.iter().zip(&*taken).map(|(items, &taken)| items[taken].bytes).sum();
        let better = tables.iter().zip(fronts).enumerate().filter_map(|(at, (items, front))| {
            let now = items[taken[at]];
            let room = capacity - used + now.bytes;
            let best = front.iter().rev().find(|&&other| items[other].bytes <= room)?;
            let gain = now.error - items[*best].error;
            (gain > 0.0).then_some((at, *best, gain))
        });
        let Some((at, best, _)) = better.max_by(|a, b| a.2.total_cmp(&b.2)) else { return };
        taken[at] = best;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(state: &mut u32) -> u64 {
        *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        u64::from(*state >> 8)
    }

    fn item(bytes: u64, error: f64, nanoseconds: f64) -> Item {
        Item { bytes, error, nanoseconds }
    }

    /// The least error of all combinations that fit.
    fn brute_force(tables: &[Vec<Item>], capacity: u64) -> Option<f64> {
        let Some((first, rest)) = tables.split_first() else { return Some(0.0) };
        let fitting = first.iter().filter(|item| item.bytes <= capacity);
        let sums =
            fitting.filter_map(|item| Some(item.error + brute_force(rest, capacity - item.bytes)?));
        sums.min_by(f64::total_cmp)
    }

    fn sum(tables: &[Vec<Item>], taken: &[usize]) -> Item {
        tables.iter().zip(taken).fold(item(0, 0.0, 0.0), |sum, (items, &at)| {
            let next = items[at];
            item(sum.bytes + next.bytes, sum.error + next.error, sum.nanoseconds + next.nanoseconds)
        })
    }

    #[test]
    fn few_candidates_are_chosen_as_brute_force_does() {
        let mut state = 7;
        let (mut fitting, mut too_large) = (0, 0);
        for _ in 0..2000 {
            let mut table = |_| {
                let items = 1 + random(&mut state) % 6;
                // Integers, so that sums are exact and equal ones occur.
                let mut item = |_| {
                    let mut up_to = |n| random(&mut state) % n;
                    item(64 * up_to(12), up_to(40) as f64, up_to(5) as f64)
                };
                (0..items).map(&mut item).collect::<Vec<_>>()
            };
            let tables: Vec<Vec<Item>> = (0..4).map(&mut table).collect();
            let capacity = 64 * (random(&mut state) % 40);
            match (choose(&tables, capacity), brute_force(&tables, capacity)) {
                (Some(taken), Some(error)) => {
                    let found = sum(&tables, &taken);
                    assert!(found.bytes <= capacity);
                    assert_eq!(found.error, error, "{tables:?} {capacity}");
                    fitting += 1;
                }
                (None, None) => too_large += 1,
                other => panic!("{other:?} for {tables:?} in {capacity}"),
            }
        }
        assert!(fitting > 500 && too_large > 100, "{fitting} {too_large}");
    }

    /// Thirty tables of three hundred candidates on curves of falling error: the bound of a
    /// Lagrange multiplier is below the error of every choice, so that a choice near the bound is
    /// near the best.
    #[test]
    fn many_candidates_come_near_the_best() {
        let mut state = 3;
        let tables: Vec<Vec<Item>> = (0..30)
            .map(|table| {
                let scale = 1.5f64.powi(table % 11) * (1 + random(&mut state) % 9) as f64;
                (1..=300u64)
                    .map(|k| item(64 * k * (1 + table as u64), scale / k as f64, 1.0))
                    .collect()
            })
            .collect();
        let total: u64 = tables.iter().map(|items| items[299].bytes).sum();
        for share in [2, 10, 40, 90] {
            let capacity = total * share / 100;
            let taken = choose(&tables, capacity).unwrap();
            let found = sum(&tables, &taken);
            assert!(found.bytes <= capacity);
            // For any price of a byte, the least sum of error and price bounds the least error from
            // below.
            let bound = (0..400).map(|step| {
                let price = 1e-7 * 1.06f64.powi(step);
                let least = |items: &Vec<Item>| {
                    items
                        .iter()
                        .map(|item| item.error + price * item.bytes as f64)
                        .fold(f64::INFINITY, f64::min)
                };
                tables.iter().map(least).sum::<f64>() - price * capacity as f64
            });
            let bound = bound.fold(0.0, f64::max);
            assert!(
                found.error >= bound * 0.999_999 && found.error <= bound * 1.02,
                "{} {bound}",
                found.error
            );
        }
    }

    #[test]
    fn what_is_beaten_is_never_taken() {
        let items = [
            item(64, 5.0, 1.0),
            item(64, 5.0, 0.5),
            item(128, 5.0, 0.1),
            item(128, 4.0, 9.0),
            item(192, 6.0, 0.1),
        ];
        assert_eq!(front(&items), [1, 3]);
        assert_eq!(choose(&[items.to_vec()], 1000), Some(vec![3]));
        assert_eq!(choose(&[items.to_vec()], 127), Some(vec![1]));
        assert_eq!(choose(&[items.to_vec()], 63), None);
        assert_eq!(choose(&[], 0), Some(vec![]));
        assert_eq!(choose(&[vec![]], 1 << 40), None);
    }
}
