//! `rank = "auto"`: ranks that are chosen while training, within one budget for all tables.
//!
//! Tables start with a larger rank. After a warm-up, the singular values of each bond say how much
//! each of its directions carries. Directions are dropped, the one that carries least for its bytes
//! first, until all tables fit in the budget. Training continues from the cores that are left.

use super::{
    config::Model,
    tables::{self, Planned, TrainedForm},
};
use crate::data;
use anyhow::{Context, Result, ensure};
use std::ops::RangeInclusive;
use ttrec::{
    limits::MAX_RANK,
    train::{Embedding, Optimizer, Parameters, TtTable},
};
use ttrec_convert::trained::Bonds;

/// The ranks that tables start with are the largest whose bytes are at most this many budgets.
const START: u64 = 4;

/// Plans the tables of all features.
pub(crate) fn plan(model: &Model, features: &[data::Feature]) -> Result<Vec<Planned>> {
    let least = tables::plan(model, features, 1)?;
    let Some(budget) = budget(&least) else { return Ok(least) };
    let mut searches = least.iter().filter_map(|planned| planned.search);
    let first = searches.next();
    ensure!(
        searches.all(|search| Some(search) == first),
        "tables with `rank = \"auto\"` share one budget: expected the same `budget` and `warm_up` \
         in all"
    );
    let needed = total(&least);
    ensure!(
        needed <= budget,
        "`budget` is {budget} bytes, but with all ranks 1 the tables take {needed}"
    );
    let (mut low, mut high) = (1, MAX_RANK as u32 + 1);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        let fits = |tables: Vec<_>| total(&tables) <= budget.saturating_mul(START);
        // Ranks that are too large to address do not fit either.
        let fits = tables::plan(model, features, middle).is_ok_and(fits);
        *(if fits { &mut low } else { &mut high }) = middle;
    }
    tables::plan(model, features, low)
}

/// The bytes of all tables.
fn total(tables: &[Planned]) -> u64 {
    tables.iter().map(Planned::bytes).sum()
}

/// The bytes that all tables may take, if ranks will be chosen.
fn budget(tables: &[Planned]) -> Option<u64> {
    let search = tables.iter().find_map(|planned| planned.search)?;
    let dense: u64 = tables.iter().map(Planned::dense_bytes).sum();
    Some(search.budget.bytes(dense as f64))
}

/// The bytes that tables may have after training.
pub(crate) fn bytes(tables: &[Planned]) -> RangeInclusive<u64> {
    match budget(tables) {
        Some(budget) => 0..=budget,
        None => total(tables)..=total(tables),
    }
}

/// Chooses the ranks of the tables that wait for theirs, and lowers them. The state of the
/// optimiser starts anew.
pub(super) fn choose(
    tables: &mut [Planned],
    trained: &mut [Box<dyn Embedding>],
    optimizer: Optimizer,
) -> Result<()> {
    let of_table = |(planned, table): (&Planned, &dyn Embedding)| {
        let TrainedForm::Tt { shape, .. } = &planned.stored else { return Ok(None) };
        let cores = table.parameters().iter().map(Parameters::exact);
        planned.search.map(|_| Bonds::new(shape, cores)).transpose()
    };
    let all = tables.iter().zip(trained.iter().map(|table| &**table));
    let bonds: Vec<_> = all.map(of_table).collect::<Result<_, _>>()?;
    let mut chosen = tables.to_vec();
    let Some(budget) = budget(tables) else { return Ok(()) };
    while total(&chosen) > budget {
        let next = cheapest(&chosen, &bonds)?;
        let (at, lowered) = next.context("the tables do not fit in `budget` with any ranks")?;
        chosen[at] = lowered;
    }
    for (((planned, table), chosen), bonds) in
        tables.iter_mut().zip(trained).zip(chosen).zip(&bonds)
    {
        let (Some(bonds), TrainedForm::Tt { shape, .. }) = (bonds, &chosen.stored) else {
            continue;
        };
        let (ranks, cores) = bonds.lower(shape.inner_ranks())?;
        *planned = chosen.with_ranks(&ranks)?;
        let TrainedForm::Tt { shape, .. } = planned.stored else { continue };
        *table = Box::new(TtTable::from_cores(shape, cores, optimizer)?.with_dtype(planned.dtype)?);
        eprintln!("ttrec: table {:?}: ranks {ranks:?}, {} bytes", planned.name, planned.bytes());
    }
    Ok(())
}

/// The table of which a bond has the direction that carries least for its bytes, and the table
/// without it. What a direction carries is its share of the sum of squares of the table's rows.
fn cheapest(tables: &[Planned], bonds: &[Option<Bonds>]) -> Result<Option<(usize, Planned)>> {
    let mut least: Option<(f64, usize, Planned)> = None;
    for (at, (planned, bonds)) in tables.iter().zip(bonds).enumerate() {
        let (Some(bonds), TrainedForm::Tt { shape, .. }) = (bonds, &planned.stored) else {
            continue;
        };
        for (bond, energies) in bonds.energies().iter().enumerate() {
            let mut ranks = shape.inner_ranks().to_vec();
            if ranks[bond] == 1 {
                continue;
            }
            ranks[bond] -= 1;
            let lowered = planned.with_ranks(&ranks)?;
            let saved = planned.bytes().saturating_sub(lowered.bytes());
            let total: f64 = energies.iter().sum();
            let energy = energies.get(ranks[bond] as usize).copied().unwrap_or(0.0);
            let cost = energy / total.max(f64::MIN_POSITIVE) / saved.max(1) as f64;
            if least.as_ref().is_none_or(|(least, ..)| cost < *least) {
                least = Some((cost, at, lowered));
            }
        }
    }
    Ok(least.map(|(_, at, lowered)| (at, lowered)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ttrec::Pooling;

    /// A model of two tables of equal size.
    fn model(budget: &str) -> Result<Vec<Planned>> {
        let toml = format!(
            "embedding_dim = 8\ntable = {{ representation = \"tt\", rank = \"auto\", budget = \
             {budget:?}, warm_up = 1 }}"
        );
        let model: Model = crate::tagged::parse(&toml)?;
        let feature = |(name, table): (&str, usize)| data::Feature {
            table,
            name: name.to_owned(),
            num_embeddings: 1000,
            pooling: Pooling::Sum,
        };
        plan(&model, &[("a", 0), ("b", 1)].map(feature))
    }

    fn ranks(planned: &Planned) -> Vec<u32> {
        let TrainedForm::Tt { shape, .. } = &planned.stored else { panic!("no tensor train") };
        shape.inner_ranks().to_vec()
    }

    #[test]
    fn tables_start_with_the_largest_rank_in_several_budgets() {
        let tables = model("6000B").unwrap();
        let (start, larger) = (ranks(&tables[0]), ranks(&tables[0])[0] + 1);
        assert!(total(&tables) <= 4 * 6000 && start == ranks(&tables[1]));
        let larger: Vec<_> =
            tables.iter().map(|one| one.with_ranks(&[larger, larger]).unwrap()).collect();
        assert!(total(&larger) > 4 * 6000);
        assert_eq!(bytes(&tables), 0..=6000);
        assert_eq!(bytes(&larger), total(&larger)..=total(&larger));
        // A share of dense tables.
        assert_eq!(budget(&model("10%").unwrap()), Some(6400));
        model("100B").unwrap_err();
    }

    #[test]
    fn directions_that_carry_nothing_are_dropped_first() {
        let mut tables = model("6000B").unwrap();
        let build =
            |(planned, seed): (&Planned, u64)| planned.build(Optimizer::ADAM, seed).unwrap();
        let mut trained: Vec<_> = tables.iter().zip(1..).map(build).collect();
        // Table b is a train of ranks 2 and 3.
        let TrainedForm::Tt { shape, .. } = tables[1].stored else { panic!("no tensor train") };
        let kept = [2, 3];
        for (k, core) in trained[1].parameters_mut().iter_mut().enumerate() {
            let sides = [shape.rank(k), shape.column_factor(k), shape.rank(k + 1)];
            for (at, value) in core.values_mut().iter_mut().enumerate() {
                let right = at % sides[2];
                if kept.get(k).is_some_and(|&kept| right >= kept) {
                    *value = 0.0;
                }
            }
        }
        let rows = |table: &dyn Embedding| {
            let (table, mut row) = (table.table(), vec![0.0; 8]);
            let mut workspace = vec![0.0; table.workspace_len(1)];
            let mut all = Vec::new();
            for index in 0..1000 {
                table.lookup(index, &mut row, &mut workspace).unwrap();
                all.extend_from_slice(&row);
            }
            all
        };
        let before = rows(&*trained[1]);
        choose(&mut tables, &mut trained, Optimizer::ADAM).unwrap();
        assert_eq!(ranks(&tables[1]), [2, 3]);
        assert!(ranks(&tables[0]).iter().all(|&rank| rank > 3), "{:?}", ranks(&tables[0]));
        // One direction more does not fit.
        let full = total(&tables);
        assert!((5000..=6000).contains(&full), "{full}");
        let size = before.iter().fold(0.0, |size: f32, x| size.max(x.abs()));
        for (found, wanted) in rows(&*trained[1]).iter().zip(&before) {
            assert!((found - wanted).abs() < 1e-5 * size, "{found} {wanted}");
        }
        assert!(tables.iter().all(|planned| planned.warm_up().is_none()));
    }
}
