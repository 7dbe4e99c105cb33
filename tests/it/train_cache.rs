//! Trainable tensor trains with a cache (TT-Rec, section 4.3): which rows the cache holds, how
//! these rows and the cores move, how evicted rows are merged into the cores, and that checkpoints
//! and blobs keep all of it.

use crate::support::{rng::Rng, tiers};
use std::{collections::BTreeMap, iter::zip};
use ttrec::{
    Bags, Blob, Pooling, TtShape,
    blob::{Layout, OverridesSpec, Role, TableSpec, WeightsSpec},
    dtype::{self, Dtype},
    train::{
        CacheSpec, Checkpointed, DenseShape, DenseTable, Embedding, HashedTable, Initializer,
        Optimizer, TrainError, TtTable, Unsupported,
    },
};

const DIM: usize = 8;
const ROWS: u64 = 500;

fn shape() -> TtShape {
    TtShape::new(ROWS, &[9, 8, 7], &[2, 2, 2], &[4, 3]).unwrap()
}

fn plain(optimizer: Optimizer, seed: u64) -> TtTable {
    TtTable::new(shape(), Initializer::Gaussian, optimizer, seed).unwrap()
}

fn cached(optimizer: Optimizer, rows: u32, warm_up: u64, refresh: u64) -> TtTable {
    plain(optimizer, 1).with_cache(CacheSpec { rows, warm_up, refresh }).unwrap()
}

fn real(rng: &mut Rng) -> f32 {
    rng.below(1 << 20) as f32 / (1 << 19) as f32 - 1.0
}

fn reals(rng: &mut Rng, count: usize) -> Vec<f32> {
    (0..count).map(|_| real(rng)).collect()
}

/// The row as the table has it.
fn row(table: &dyn Embedding, index: u64) -> Vec<f32> {
    let table = table.table();
    let mut row = vec![f32::NAN; DIM];
    table.lookup(index, &mut row, &mut vec![0.0; table.workspace_len(1)]).unwrap();
    row
}

fn held(table: &TtTable) -> BTreeMap<u64, Vec<f32>> {
    let rows = table.overrides();
    assert!(rows.is_sorted_by(|a, b| a.0 < b.0));
    let values = table.parameters().last().unwrap().values();
    rows.into_iter()
        .map(|(id, at)| (id, values[at * DIM..][..DIM].to_vec()))
        .collect()
}

fn cores(table: &TtTable) -> Vec<Vec<f32>> {
    table.parameters()[..3].iter().map(|core| core.values().to_vec()).collect()
}

/// Lookups of `ids`, a bag each, with this gradient.
fn step(table: &mut dyn Embedding, ids: &[u32], gradient: &[f32], learning_rate: f64) {
    let offsets = Vec::from_iter(0..=ids.len() as u32);
    table
        .step(&Bags::new(ids, &offsets).unwrap(), Pooling::Sum, gradient, learning_rate)
        .unwrap();
}

fn distance(xs: &[f32], ys: &[f32]) -> f64 {
    zip(xs, ys).map(|(x, y)| f64::from(x - y) * f64::from(x - y)).sum()
}

/// Requests of which a few rows have the most.
fn skewed(rng: &mut Rng, count: usize) -> Vec<u32> {
    let mut one = || {
        if rng.one_in(2) {
            rng.below(25) * 17
        } else {
            rng.below(ROWS)
        }
    };
    (0..count).map(|_| one() as u32).collect()
}

#[test]
fn rows_enter_after_warm_up_as_the_cores_have_them_and_move_by_themselves() {
    let warm: [u32; 4] = [3, 70, 70, 499];
    for (tier, pooling) in tiers::available()
        .into_iter()
        .flat_map(|tier| [(tier, Pooling::Sum), (tier, Pooling::Mean)])
    {
        let mut table = cached(Optimizer::Sgd, 1, 2, 0).with_tier(tier);
        let mut others = plain(Optimizer::Sgd, 1).with_tier(tier);
        for steps in 0..2 {
            assert_eq!(held(&table).len(), 0, "after {steps} steps");
            step(&mut table, &warm, &[0.0; 4 * DIM], 1.0);
        }
        let before = held(&table);
        assert_eq!(before.keys().copied().collect::<Vec<_>>(), [3, 70, 499]);
        before.iter().for_each(|(&id, values)| assert_eq!(*values, row(&others, id)));

        // Bags of rows that are held, of others, of both, and of none.
        let (indices, offsets) = ([3u32, 70, 3, 8, 499, 8, 9, 10], [0u32, 3, 5, 5, 8]);
        let weights = [0.5, -1.0, 2.0, 1.5, 0.25, 1.0, -0.5, 3.0];
        let (mut bags, mut gradient) = (Bags::new(&indices, &offsets).unwrap(), vec![]);
        if pooling == Pooling::Sum {
            bags = bags.with_per_sample_weights(&weights).unwrap();
        }
        gradient.extend(reals(&mut Rng::new(1), 4 * DIM));
        let factor = |bag: usize, at: usize| {
            let count = (offsets[bag + 1] - offsets[bag]) as f32;
            if pooling == Pooling::Sum {
                weights[at]
            } else {
                1.0 / count
            }
        };
        let mut expected_rows = before.clone();
        let mut expected_out = vec![0.0f32; 4 * DIM];
        let mut to_cores = (vec![], vec![0], vec![]);
        for bag in 0..4 {
            let range = offsets[bag] as usize..offsets[bag + 1] as usize;
            for (at, &index) in indices.iter().enumerate().filter(|(at, _)| range.contains(at)) {
                let factor = factor(bag, at);
                let out = &mut expected_out[bag * DIM..][..DIM];
                zip(out, row(&table, index.into())).for_each(|(out, x)| *out += factor * x);
                if let Some(row) = expected_rows.get_mut(&index.into()) {
                    zip(row, &gradient[bag * DIM..]).for_each(|(x, g)| *x -= 0.1 * factor * g);
                } else {
                    to_cores.0.push(index);
                    to_cores.2.push(factor);
                }
            }
            to_cores.1.push(to_cores.0.len() as u32);
        }
        let mut out = vec![f32::NAN; 4 * DIM];
        table.forward(&bags, pooling, &mut out, &mut Vec::new()).unwrap();
        zip(&out, &expected_out)
            .for_each(|(x, y)| assert!((x - y).abs() < 1e-6, "{tier:?} {x} {y}"));

        table.step(&bags, pooling, &gradient, 0.1).unwrap();
        let found = held(&table);
        assert!(found.keys().eq(expected_rows.keys()));
        for (found, expected) in zip(found.values().flatten(), expected_rows.values().flatten()) {
            assert!((found - expected).abs() < 1e-6, "{tier:?} {found} {expected}");
        }
        let bags = Bags::new(&to_cores.0, &to_cores.1)
            .unwrap()
            .with_per_sample_weights(&to_cores.2)
            .unwrap();
        others.step(&bags, Pooling::Sum, &gradient, 0.1).unwrap();
        assert_eq!(cores(&table), cores(&others), "{tier:?}");
    }
}

#[test]
fn rows_that_leave_are_folded_into_the_cores() {
    for optimizer in [Optimizer::Sgd, Optimizer::ADAGRAD, Optimizer::ADAM] {
        // Room for one set of 32.
        let mut table = cached(optimizer, 32, 1, 3);
        let (old, new) =
            (Vec::from_iter(0..32u32), Vec::from_iter((100..132).flat_map(|row| [row; 3])));
        step(&mut table, &old, &[0.0; 32 * DIM], 0.0);
        assert_eq!(held(&table).len(), 32);
        let mut rng = Rng::new(2);
        let gradient = reals(&mut rng, 32 * DIM);
        step(&mut table, &old, &gradient, 0.1);
        let learned = held(&table);
        let unfolded = TtTable::from_cores(shape(), cores(&table), optimizer).unwrap();

        step(&mut table, &new, &vec![0.0; new.len() * DIM], 0.0);
        assert_eq!(held(&table), learned);
        step(&mut table, &new, &vec![0.0; new.len() * DIM], 0.0);
        let after = held(&table);
        assert_eq!(after.len(), 32);
        let left: Vec<u64> =
            learned.keys().copied().filter(|row| !after.contains_key(row)).collect();
        let entered: Vec<u64> =
            after.keys().copied().filter(|row| !learned.contains_key(row)).collect();
        assert_eq!(left.len(), entered.len());
        assert!(left.len() >= 30, "{left:?}");

        // Together they are nearer, and rows that have come begin where they were.
        let sum = |table: &dyn Embedding| {
            left.iter().map(|&id| distance(&row(table, id), &learned[&id])).sum::<f64>()
        };
        let (folded, before) = (sum(&table), sum(&unfolded));
        println!("{optimizer:?}: squared distance {before:.4} to {folded:.4}");
        assert!(folded < 0.8 * before, "{optimizer:?}: {before} to {folded}");
        entered.iter().for_each(|id| assert_eq!(after[id], row(&unfolded, *id)));
    }
}

#[test]
fn a_row_that_the_cores_already_have_leaves_without_a_trace() {
    let mut table = cached(Optimizer::Sgd, 32, 1, 1);
    for (ids, steps) in [(0..32u32, 1), (100..132, 4)] {
        let ids = Vec::from_iter(ids);
        (0..steps).for_each(|_| step(&mut table, &ids, &[0.0; 32 * DIM], 0.1));
    }
    assert_eq!(cores(&table), cores(&plain(Optimizer::Sgd, 1)));
    assert!(held(&table).keys().all(|&row| row >= 100));
}

#[test]
fn frequent_rows_are_learned_better_than_the_cores_can() {
    let mut rng = Rng::new(3);
    let teacher = reals(&mut rng, ROWS as usize * DIM);
    let learn = |mut table: TtTable| {
        let mut rng = Rng::new(4);
        for _ in 0..400 {
            let ids = skewed(&mut rng, 64);
            let rows = ids.iter().flat_map(|&id| row(&table, id.into()));
            let targets = ids.iter().flat_map(|&id| &teacher[id as usize * DIM..][..DIM]);
            let gradient: Vec<f32> = zip(rows, targets).map(|(x, y)| x - y).collect();
            step(&mut table, &ids, &gradient, 0.1);
        }
        let frequent = (0..25).map(|id| id * 17);
        frequent
            .map(|id| distance(&row(&table, id as u64), &teacher[id * DIM..][..DIM]))
            .sum::<f64>()
    };
    let (with, without) =
        (learn(cached(Optimizer::ADAGRAD, 32, 20, 50)), learn(plain(Optimizer::ADAGRAD, 1)));
    println!("{without:.1} without, {with:.1} with a cache");
    assert!(with < without / 20.0, "{without} {with}");
}

/// Takes 20 steps with `table`. After 11 of them, restores its state to `restored`, which takes the
/// others, too.
fn step_and_restore(table: &mut TtTable, restored: &mut TtTable) {
    let mut rng = Rng::new(5);
    for at in 0..20 {
        if at == 11 {
            for (to, from) in zip(restored.parameters_mut(), table.parameters()) {
                to.values_mut().copy_from_slice(from.exact());
                zip(to.state_mut(), from.state()).for_each(|(to, from)| to.copy_from_slice(from));
            }
            restored.set_steps(table.steps());
            restored.set_counters(&table.counters()).unwrap();
        }
        let (ids, gradient) = (skewed(&mut rng, 100), reals(&mut rng, 100 * DIM));
        step(table, &ids, &gradient, 0.01);
        if at >= 11 {
            step(restored, &ids, &gradient, 0.01);
        }
    }
}

#[test]
fn what_is_restored_goes_on_to_the_bit() {
    for optimizer in
        [Optimizer::Sgd, Optimizer::ADAGRAD, Optimizer::ROW_WISE_ADAGRAD, Optimizer::ADAM]
    {
        let (mut table, mut restored) = (cached(optimizer, 64, 5, 4), plain(optimizer, 9));
        restored = restored.with_cache(CacheSpec { rows: 64, warm_up: 5, refresh: 4 }).unwrap();
        step_and_restore(&mut table, &mut restored);
        assert_eq!(held(&table), held(&restored), "{optimizer:?}");
        assert_eq!(cores(&table), cores(&restored), "{optimizer:?}");
        assert_eq!(table.counters(), restored.counters());
    }
}

#[test]
fn a_cache_is_exact_beside_rounded_cores() {
    let spec = CacheSpec { rows: 64, warm_up: 5, refresh: 4 };
    let rounded = |seed| {
        let table = plain(Optimizer::ADAGRAD, seed).with_dtype(Dtype::I8).unwrap();
        table.with_cache(spec).unwrap()
    };
    let (mut table, mut restored) = (rounded(1), rounded(9));
    step_and_restore(&mut table, &mut restored);
    assert_eq!((held(&table), cores(&table)), (held(&restored), cores(&restored)));
    let (rows, cores) = table.parameters().split_last().unwrap();
    assert!(!rows.is_rounded() && cores.iter().all(|core| core.is_rounded()));
    assert!(!held(&table).is_empty());
    for core in cores {
        assert_ne!(core.values(), core.exact());
        for slice in core.values().chunks(core.slice_len()) {
            let scale = slice.iter().fold(0.0f32, |max, x| max.max(x.abs())) / 127.0;
            slice.iter().for_each(|x| {
                let steps = x / scale;
                assert!((steps - steps.round()).abs() < 1e-3, "{steps}");
            });
        }
    }
}

#[test]
fn a_blob_has_the_overrides_and_gives_the_same_bits() {
    let mut table = cached(Optimizer::ADAGRAD, 64, 3, 2);
    let mut rng = Rng::new(6);
    for _ in 0..10 {
        let (ids, gradient) = (skewed(&mut rng, 100), reals(&mut rng, 100 * DIM));
        step(&mut table, &ids, &gradient, 0.05);
    }
    let (ids, rows): (Vec<u64>, Vec<Vec<f32>>) = held(&table).into_iter().unzip();
    let overrides = Some(OverridesSpec { count: ids.len() as u64, dtype: Dtype::F32 });
    let weights = WeightsSpec::Tt { shape: shape(), dtype: Dtype::F32 };
    let spec = TableSpec { overrides, ..TableSpec::new("a", weights) };
    let blob = Layout::new(&[spec]).unwrap().build(|section, out| match section.role {
        Role::Core(k) => dtype::encode(table.parameters()[k].values(), Dtype::F32, out).unwrap(),
        Role::OverrideIds => {
            out.copy_from_slice(&ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>())
        }
        Role::OverrideRows => dtype::encode(&rows.concat(), Dtype::F32, out).unwrap(),
        other => panic!("{other:?}"),
    });
    let blob = Blob::parse(&blob).unwrap();
    let stored = blob.table("a").unwrap();
    let (indices, offsets) = (skewed(&mut rng, 300), [0, 7, 7, 150, 151, 300]);
    let bags = Bags::new(&indices, &offsets).unwrap();
    for pooling in [Pooling::Sum, Pooling::Mean] {
        let mut out = [[f32::NAN; 5 * DIM]; 2];
        stored
            .pool(&bags, pooling, &mut out[0], &mut vec![0.0; stored.workspace_len(300)])
            .unwrap();
        table.forward(&bags, pooling, &mut out[1], &mut Vec::new()).unwrap();
        assert_eq!(out[0].map(f32::to_bits), out[1].map(f32::to_bits));
    }
    let mut found = [f32::NAN; DIM];
    for id in 0..ROWS {
        stored.lookup(id, &mut found, &mut vec![0.0; stored.workspace_len(1)]).unwrap();
        assert_eq!(found.to_vec(), row(&table, id));
    }
}

#[test]
fn counters_of_another_table_are_refused() {
    let spec = CacheSpec { rows: 64, warm_up: 1, refresh: 1 };
    let mut table = cached(Optimizer::Sgd, 64, 1, 1);
    step(&mut table, &[1, 2, 3], &[0.0; 3 * DIM], 0.0);
    let good = table.counters();
    assert_eq!(table.set_counters(&good), Ok(()));
    let refused = |table: &mut dyn Embedding, counters: &[u64]| {
        let before = table.counters();
        assert_eq!(table.set_counters(counters), Err(TrainError::Counters));
        assert_eq!(table.counters(), before);
    };
    refused(&mut table, &good[1..]);
    refused(&mut table, &[]);
    refused(&mut table, &vec![0; good.len()]);
    // A row twice, a row that the table does not have, rows in the wrong set.
    let at = good.iter().position(|word| (1..=3).contains(&(word & 0xffff_ffff))).unwrap();
    let changed = |at: usize, to: u64| {
        let mut counters = good.clone();
        counters[at] = to;
        counters
    };
    let twice = good[at] & 0xffff_ffff;
    refused(&mut table, &changed(at, twice | twice << 32));
    refused(&mut table, &changed(at, 5000 | 0xffff_ffff << 32));
    let mut swapped = good.clone();
    swapped.rotate_left(good.len() / 2);
    refused(&mut table, &swapped);
    refused(&mut plain(Optimizer::Sgd, 1), &good);
    let shape = DenseShape { num_embeddings: 9, embedding_dim: 4 };
    let mut dense = DenseTable::new(shape, Initializer::Uniform, Optimizer::Sgd, 1).unwrap();
    refused(&mut dense, &good);
    assert_eq!(dense.set_counters(&[]), Ok(()));

    let hashed =
        HashedTable::new(Box::new(plain(Optimizer::Sgd, 1).with_cache(spec).unwrap()), 1000);
    let refused = Unsupported::HashedRows { num_rows: ROWS, num_embeddings: 1000 };
    assert_eq!(hashed.map(|_| ()).unwrap_err(), TrainError::Unsupported(refused));
}
