//! Chooses by the loss of the whole model, which a caller measures on examples.
//!
//! 1. Each table alone: bisection along its front finds the smallest candidate that the judge
//!    accepts while all other tables are at their best. Between the candidates that this measures,
//!    the loss is taken to be linear in the squared error.
//! 2. All tables together: of the choices with the least sum of these losses, bisection finds the
//!    smallest number of bytes whose choice the judge accepts.
//! 3. Fewer bytes: bisection assumes that the loss grows as the bytes shrink. It may not. So the
//!    choices of least estimated loss and of least squared error are measured at smaller sizes too,
//!    down to three quarters of the bytes. An accepted choice starts this step again from its size.
//! 4. Each table once more, the largest first: bisection along its front, with the others as they
//!    are now.
//!
//! So every choice that is returned was measured. The losses between measured candidates are
//! estimates, and decide only what is measured next.

use super::{
    allowed::{Allowed, Chosen},
    choose::{self, Item, front},
    explain::size,
};
use crate::{
    error::Error,
    progress::{Progress, Step},
    spec::{ModelSpec, Spec, TableSpec},
};
use anyhow::{Context, Result, ensure};
use serde::Serialize;
use std::{collections::BTreeMap, fmt};
use ttrec::{dtype::Dtype, limits::ALIGNMENT};

/// Bytes are found to within this part of them.
const CLOSE: u64 = 500;
/// A search for fewer bytes tries `FEWER` numbers of them, which are a `PART`th of the bytes apart.
const FEWER: u64 = 8;
const PART: u64 = 32;

/// Measures the loss of whole models.
#[derive(Clone, Copy)]
pub struct Judge<'j> {
    /// The metric that gets worse by the increase of the loss, such as "auc".
    pub metric: &'static str,
    /// The most that the loss may increase when tables and layers are stored in fewer bytes. The
    /// plan is then the smallest one that keeps this; without it, the loss of the plan is only
    /// measured.
    pub max_increase: Option<f64>,
    /// The loss of the model that a spec converts to.
    pub loss: &'j dyn Fn(&Spec) -> Result<f64, Error>,
}

/// What a judge found.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Judgement {
    /// [`Judge::metric`].
    pub metric: &'static str,
    /// The loss with all tables and layers as f32.
    pub exact_loss: f64,
    /// How much more the plan loses.
    pub increase: f64,
    /// The most that it may.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_increase: Option<f64>,
    /// All choices that were measured, by bytes.
    pub choices: Vec<JudgedChoice>,
}

/// A choice for all tables and layers that was measured.
#[derive(Clone, Copy, Debug, Serialize)]
#[non_exhaustive]
pub struct JudgedChoice {
    /// The length of the blob.
    pub bytes: u64,
    /// How much more it loses than f32.
    pub increase: f64,
}

impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { metric, increase, max_increase, choices, .. } = self;
        let (by, how) = (increase.abs(), if *increase < 0.0 { "better" } else { "worse" });
        write!(f, "{metric}: {by:.5} {how} than as f32")?;
        let measured = choices.len();
        match max_increase {
            Some(most) => write!(f, ", at most {most}; {measured} choices were measured"),
            None => Ok(()),
        }
    }
}

/// The smallest choice that the judge accepts; or, if it sets no limit, the choice of least squared
/// error.
pub(super) fn choose<'t>(
    allowed: &Allowed<'t>,
    spec: &Spec,
    judge: &Judge<'_>,
    progress: &dyn Progress,
) -> Result<(Chosen<'t>, Judgement)> {
    let exact_loss = (judge.loss)(&as_f32(spec))?;
    let metric = judge.metric;
    ensure!(exact_loss.is_finite(), "the model has no {metric} on these examples");
    let judgement = |increase, choices| Judgement {
        metric,
        exact_loss,
        increase,
        max_increase: judge.max_increase,
        choices,
    };
    let Some(most) = judge.max_increase else {
        let chosen = allowed.choose()?;
        let increase = (judge.loss)(&chosen.spec())? - exact_loss;
        return Ok((chosen, judgement(increase, Vec::new())));
    };
    let fronts: Vec<Vec<usize>> = allowed.items.iter().map(|items| front(items)).collect();
    let bisections = fronts.iter().map(|front| 2 * u64::from(front.len().ilog2() + 1));
    let step = Step::new(progress, "judging", bisections.sum::<u64>() + 12 + 4 * FEWER);
    let mut search =
        Search { allowed, judge, fronts, exact_loss, most, step, known: BTreeMap::new() };
    let places = search.run()?;
    let (chosen, increase) = (search.chosen(&places), search.increase(&places)?);
    let choices = search.known.iter().map(|(places, &increase)| JudgedChoice {
        bytes: allowed.blob_bytes(search.bytes(places)),
        increase,
    });
    let mut choices: Vec<JudgedChoice> = choices.collect();
    choices.sort_by_key(|choice| choice.bytes);
    Ok((chosen, judgement(increase, choices)))
}

/// The spec with everything stored as f32.
fn as_f32(spec: &Spec) -> Spec {
    let dtype = Some(Dtype::F32);
    Spec {
        model: spec.model.clone().map(|model| ModelSpec { dtype, ..model }),
        tables: spec.tables.iter().map(|table| TableSpec { dtype, ..table.clone() }).collect(),
    }
}

/// A search. A choice is a place on each table's front, and on that of the layers.
struct Search<'s, 't> {
    allowed: &'s Allowed<'t>,
    judge: &'s Judge<'s>,
    /// For each table, then for the layers, the candidates that no other beats in bytes and error,
    /// by bytes.
    fronts: Vec<Vec<usize>>,
    exact_loss: f64,
    most: f64,
    step: Step<'s>,
    /// The increase of each choice that was measured.
    known: BTreeMap<Vec<usize>, f64>,
}

impl<'t> Search<'_, 't> {
    fn chosen(&self, places: &[usize]) -> Chosen<'t> {
        let taken = self.fronts.iter().zip(places).map(|(front, &place)| front[place]);
        self.allowed.taken(&taken.collect::<Vec<_>>())
    }

    fn item(&self, table: usize, place: usize) -> Item {
        self.allowed.items[table][self.fronts[table][place]]
    }

    /// The bytes of all tables and layers.
    fn bytes(&self, places: &[usize]) -> u64 {
        places
            .iter()
            .enumerate()
            .map(|(table, &place)| self.item(table, place).bytes)
            .sum()
    }

    /// How much more this choice loses than f32.
    fn increase(&mut self, places: &[usize]) -> Result<f64> {
        if let Some(&known) = self.known.get(places) {
            return Ok(known);
        }
        let increase = (self.judge.loss)(&self.chosen(places).spec())? - self.exact_loss;
        self.step.add(1);
        self.known.insert(places.to_vec(), increase);
        Ok(increase)
    }

    fn is_accepted(&mut self, places: &[usize]) -> Result<bool> {
        // Also false if it is NaN.
        Ok(self.increase(places)? <= self.most)
    }

    /// The first place of a table that is accepted with the others at `places`, which are.
    fn smallest(&mut self, table: usize, places: &[usize], from: usize) -> Result<usize> {
        let (mut refused, mut accepted) = (None, places[table]);
        loop {
            let low = refused.map_or(from, |refused| refused + 1);
            if low == accepted {
                return Ok(accepted);
            }
            let mut trial = places.to_vec();
            trial[table] = low + (accepted - low) / 2;
            if self.is_accepted(&trial)? {
                accepted = trial[table];
            } else {
                refused = Some(trial[table]);
            }
        }
    }

    fn run(&mut self) -> Result<Vec<usize>> {
        let best: Vec<usize> = self.fronts.iter().map(|front| front.len() - 1).collect();
        let least = self.increase(&best)?;
        ensure!(
            least <= self.most,
            "no choice is within the bounds: the one of least error loses {least:.5} more than \
             f32, which is above {}",
            self.most
        );
        let (mut first, mut items) = (Vec::new(), Vec::new());
        for table in 0..best.len() {
            first.push(self.smallest(table, &best, 0)?);
            items.push(self.estimates(table, &best, first[table]));
        }
        let estimated = Ranked { first, items };
        let places = self.together(&best, &estimated)?;
        let squared = Ranked {
            first: vec![0; best.len()],
            items: (0..best.len()).map(|table| self.squared(table, 0)).collect(),
        };
        let mut places = self.fewer(places, &[&estimated, &squared])?;
        let mut order: Vec<usize> = (0..places.len()).collect();
        order.sort_by_key(|&table| std::cmp::Reverse(self.item(table, places[table]).bytes));
        for table in order {
            let from = estimated.first[table].min(places[table]);
            places[table] = self.smallest(table, &places, from)?;
        }
        // The last step ends at a small choice; perhaps not at the smallest that was measured.
        let (capacity, most) = (self.allowed.capacity().unwrap_or(0), self.most);
        let accepted = self.known.iter().filter(|(_, increase)| **increase <= most);
        let sizes = accepted.map(|(places, increase)| (self.bytes(places), increase, places));
        let within = sizes.filter(|(bytes, ..)| *bytes <= capacity);
        let smallest = within.min_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(b.1)));
        Ok(smallest.map_or(places, |(.., places)| places.clone()))
    }

    /// The candidates of a table from `first` on, with their estimated loss in place of their
    /// error.
    fn estimates(&self, table: usize, best: &[usize], first: usize) -> Vec<Item> {
        let alone = |place: usize| {
            let mut places = best.to_vec();
            places[table] = place;
            self.known.get(&places).map(|increase| increase.max(0.0))
        };
        let mut items = self.squared(table, first);
        let errors: Vec<f64> = items.iter().map(|item| item.error).collect();
        let measured: Vec<usize> =
            (0..items.len()).filter(|&at| alone(first + at).is_some()).collect();
        let of = |at: usize| alone(first + at).unwrap_or(0.0);
        for pair in measured.windows(2) {
            let (low, high) = (pair[0], pair[1]);
            for at in low..high {
                let share = (errors[at] - errors[high]) / (errors[low] - errors[high]);
                items[at].error = of(high) + share * (of(low) - of(high));
            }
        }
        if let (Some(last), Some(&place)) = (items.last_mut(), measured.last()) {
            last.error = of(place);
        }
        // Noise must not make a smaller candidate look better than a larger one.
        let mut least = 0.0f64;
        for item in items.iter_mut().rev() {
            least = least.max(item.error);
            item.error = least;
        }
        items
    }

    /// Of the choices with the least estimated loss, the one of fewest bytes that is accepted.
    fn together(&mut self, best: &[usize], estimated: &Ranked) -> Result<Vec<usize>> {
        let mut high = self.bytes(best).min(self.allowed.capacity().unwrap_or(0));
        let mut places = estimated.within(high).with_context(|| {
            format!(
                "no choice within {} loses at most {} more than f32",
                size(self.allowed.blob_bytes(high) as f64),
                self.most
            )
        })?;
        // With little room, the sum of the estimates may be too low.
        if !self.is_accepted(&places)? {
            ensure!(
                high == self.bytes(best),
                "the best choice within {} loses {:.5} more than f32: expected at most {}",
                size(self.allowed.blob_bytes(high) as f64),
                self.increase(&places)?,
                self.most
            );
            places = best.to_vec();
        }
        let mut low = self.bytes(&estimated.first).saturating_sub(1);
        while high.saturating_sub(low) > high / CLOSE + ALIGNMENT as u64 {
            let middle = low + (high - low) / 2;
            match estimated.within(middle) {
                Some(found) if self.is_accepted(&found)? => {
                    high = self.bytes(&found).min(middle);
                    places = found;
                }
                _ => low = middle,
            }
        }
        Ok(places)
    }

    /// The candidates of a table from a place on, with their squared error.
    fn squared(&self, table: usize, first: usize) -> Vec<Item> {
        (first..self.fronts[table].len()).map(|place| self.item(table, place)).collect()
    }

    /// A smaller choice that is accepted, of least error by one of `all`; or else this one.
    fn fewer(&mut self, mut places: Vec<usize>, all: &[&Ranked]) -> Result<Vec<usize>> {
        'smaller: loop {
            let bytes = self.bytes(&places);
            for fewer in (1..=FEWER).rev() {
                for ranked in all {
                    if let Some(found) = ranked.within(bytes - bytes / PART * fewer)
                        && self.bytes(&found) < bytes
                        && self.is_accepted(&found)?
                    {
                        places = found;
                        continue 'smaller;
                    }
                }
            }
            return Ok(places);
        }
    }
}

/// The candidates of each table from a place on. What is summed over tables is in place of their
/// error.
struct Ranked {
    first: Vec<usize>,
    items: Vec<Vec<Item>>,
}

impl Ranked {
    /// The choice of the least sum in so many bytes.
    fn within(&self, capacity: u64) -> Option<Vec<usize>> {
        let taken = choose::choose(&self.items, capacity)?;
        Some(taken.iter().zip(&self.first).map(|(taken, first)| first + taken).collect())
    }
}
