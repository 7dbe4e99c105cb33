//! A step of a whole DLRM of the shapes of Criteo Kaggle: 13 dense features, 26 tables of 16 columns, bottom MLP
//! 13-512-256-64-16, top MLP 512-256-1, batches of 128, ids by Zipf's law (1.05) with the most frequent first, SGD. Its seven
//! largest tables are tensor trains of rank 32, as in TT-Rec, or all are dense; on one thread and on two.
//! `cargo bench --features train --bench dlrm`; the dense tables take 2.2 GB. "elem" counts samples.
//!
//! That both models learn is checked first: a batch's loss must fall.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use ttrec::{
    Bags, Pooling, Tier, TtShape,
    train::{Batch, DenseTable, Dlrm, DlrmSpec, Embedding, Feature, Initializer, Optimizer, TtTable},
};

const SAMPLES: usize = 128;
const DENSE_DIM: usize = 13;
const DIM: usize = 16;
const RANK: u32 = 32;
/// Batches in rotation.
const BATCHES: usize = 20;
/// Rows of each table of Criteo Kaggle, and the row factors of those that TT-Rec compresses (its table 2).
const TABLES: [(u64, [u32; 3]); 26] = [
    (1460, [0; 3]),
    (583, [0; 3]),
    (10_131_227, [200, 220, 250]),
    (2_202_608, [125, 130, 136]),
    (305, [0; 3]),
    (24, [0; 3]),
    (12_517, [0; 3]),
    (633, [0; 3]),
    (3, [0; 3]),
    (93_145, [0; 3]),
    (5683, [0; 3]),
    (8_351_593, [200, 200, 209]),
    (3194, [0; 3]),
    (27, [0; 3]),
    (14_992, [0; 3]),
    (5_461_306, [166, 175, 188]),
    (10, [0; 3]),
    (5652, [0; 3]),
    (2173, [0; 3]),
    (4, [0; 3]),
    (7_046_547, [200, 200, 200]),
    (18, [0; 3]),
    (15, [0; 3]),
    (286_181, [53, 72, 75]),
    (105, [0; 3]),
    (142_572, [50, 52, 55]),
];

fn model(with_tensor_trains: bool) -> Dlrm {
    let features = TABLES.iter().zip(1..).map(|(&(rows, p), seed)| {
        let table: Box<dyn Embedding> = if with_tensor_trains && p != [0; 3] {
            let shape = TtShape::new(rows, &p, &[2, 2, 4], &[RANK, RANK]).expect("a shape");
            Box::new(TtTable::new(shape, Initializer::SampledGaussian, Optimizer::Sgd, seed).expect("a table"))
        } else {
            Box::new(DenseTable::new(rows, DIM, Initializer::Uniform, Optimizer::Sgd, seed).expect("a table"))
        };
        Feature { table, pooling: Pooling::Sum }
    });
    let spec = DlrmSpec {
        dense_dim: DENSE_DIM,
        bottom: vec![512, 256, 64, DIM],
        top: vec![512, 256, 1],
        optimizer: Optimizer::Sgd,
        seed: 1,
        tier: Tier::best(),
    };
    Dlrm::new(&spec, features.collect()).expect("a model")
}

struct Samples {
    dense: Vec<f32>,
    labels: Vec<f32>,
    ids: Vec<Vec<u32>>,
}

fn batches() -> Vec<Samples> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    // The inverse of the distribution of x^-s, x from 1 to n + 1.
    let mut zipf = |n: u64| {
        let power = 1.0 - 1.05;
        let x = (1.0 + uniform() * ((n as f64 + 1.0).powf(power) - 1.0)).powf(1.0 / power);
        (x as u64 - 1).min(n - 1) as u32
    };
    let mut batch = || Samples {
        dense: (0..SAMPLES * DENSE_DIM).map(|_| (f64::from(zipf(100)) + 1.0).ln() as f32).collect(),
        labels: (0..SAMPLES).map(|_| f32::from(u8::from(zipf(100) > 12))).collect(),
        ids: TABLES.iter().map(|&(rows, _)| (0..SAMPLES).map(|_| zipf(rows)).collect()).collect(),
    };
    (0..BATCHES).map(|_| batch()).collect()
}

fn step(model: &mut Dlrm, samples: &Samples, offsets: &[u32]) -> f64 {
    let bags: Vec<_> = samples.ids.iter().map(|ids| Bags::new(ids, offsets).expect("bags")).collect();
    model.step(&Batch { dense: &samples.dense, bags: &bags }, &samples.labels, 0.01).expect("a step")
}

fn train(criterion: &mut Criterion) {
    let (batches, offsets) = (batches(), Vec::from_iter(0..=SAMPLES as u32));
    let mut group = criterion.benchmark_group("kaggle-dlrm");
    group.throughput(Throughput::Elements(SAMPLES as u64));
    for (name, with_tensor_trains) in [("dense", false), ("tt-R32", true)] {
        let mut model = model(with_tensor_trains);
        let losses: Vec<f64> = (0..20).map(|_| step(&mut model, &batches[0], &offsets)).collect();
        assert!(losses[19] < losses[0], "{name}: {losses:?}");
        for threads in [1, 2] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
            let mut turn = batches.iter().cycle();
            group.bench_function(format!("{name}-{threads}"), |bencher| {
                pool.install(|| {
                    bencher.iter(|| step(black_box(&mut model), turn.next().expect("a batch"), &offsets));
                });
            });
        }
    }
}

criterion_group!(benches, train);
criterion_main!(benches);
