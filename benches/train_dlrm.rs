//! A step of a whole DLRM of the shapes of Criteo Kaggle: 13 dense features, 26 tables of 16
//! columns, bottom MLP 13-512-256-64-16, top MLP 512-256-1, batches of 128, ids by Zipf's law
//! (1.05) with the most frequent first, SGD. Its seven largest tables are tensor trains of rank 32,
//! or all are dense; on one thread and on two. `cargo bench -p ttrec-benches --bench train_dlrm`;
//! the dense tables take 2.2 GB.
//!
//! The result is a ratio of models, one of which waits for memory, so the models take turns. First,
//! each model must learn: the loss of a batch must fall.

use std::{hint::black_box, time::Instant};
use ttrec::{
    Bags, DigitOrder, Tier, TtShape,
    blob::ModelTable,
    train::{
        Batch, DenseShape, DenseTable, Dlrm, DlrmSpec, Embedding, Initializer, Optimizer, TtTable,
    },
};

const SAMPLES: usize = 128;
const DENSE_DIM: usize = 13;
const DIM: usize = 16;
const RANK: u32 = 32;
/// Batches in rotation.
const BATCHES: usize = 20;
/// Rows of each table of Criteo Kaggle, and the row factors of those that TT-Rec compresses (its
/// table 2).
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

/// Column factors, with core 0 taking the most significant digit of a row or the least significant
/// one.
#[derive(Clone, Copy)]
struct Columns([u32; 3], DigitOrder);

/// Dense; with TT-Rec's column factors; with those of `ttrec train`.
const MODELS: [(&str, Option<Columns>); 3] = [
    ("dense", None),
    ("2 x 2 x 4", Some(Columns([2, 2, 4], DigitOrder::MostSignificantFirst))),
    ("2 x 1 x 8", Some(Columns([2, 1, 8], DigitOrder::LeastSignificantFirst))),
];

fn model(columns: Option<Columns>) -> Dlrm {
    let tables = TABLES.iter().zip(1..).map(|(&(rows, p), seed)| {
        let table: Box<dyn Embedding> =
            if let Some(Columns(q, order)) = columns.filter(|_| p != [0; 3]) {
                let shape = TtShape::new(rows, &p, &q, &[RANK, RANK])
                    .expect("a shape")
                    .with_digit_order(order);
                Box::new(
                    TtTable::new(shape, Initializer::SampledGaussian, Optimizer::Sgd, seed)
                        .expect("a table"),
                )
            } else {
                let shape = DenseShape { num_embeddings: rows, embedding_dim: DIM };
                Box::new(
                    DenseTable::new(shape, Initializer::Uniform, Optimizer::Sgd, seed)
                        .expect("a table"),
                )
            };
        table
    });
    let spec = DlrmSpec {
        dense_dim: DENSE_DIM,
        bottom: vec![512, 256, 64, DIM],
        top: vec![512, 256, 1],
        optimizer: Optimizer::Sgd,
        seed: 1,
        tier: Tier::best(),
    };
    let tables: Vec<_> = tables.collect();
    let features: Vec<_> = (0..tables.len()).map(ModelTable::from).collect();
    Dlrm::new(&spec, tables, &features).expect("a model")
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
        dense: (0..SAMPLES * DENSE_DIM)
            .map(|_| (f64::from(zipf(100)) + 1.0).ln() as f32)
            .collect(),
        labels: (0..SAMPLES).map(|_| f32::from(u8::from(zipf(100) > 12))).collect(),
        ids: TABLES
            .iter()
            .map(|&(rows, _)| (0..SAMPLES).map(|_| zipf(rows)).collect())
            .collect(),
    };
    (0..BATCHES).map(|_| batch()).collect()
}

fn step(model: &mut Dlrm, samples: &Samples, offsets: &[u32]) -> f64 {
    let bags: Vec<_> =
        samples.ids.iter().map(|ids| Bags::new(ids, offsets).expect("bags")).collect();
    model
        .step(&Batch { dense: &samples.dense, bags: &bags }, &samples.labels, 0.01)
        .expect("a step")
}

/// Rounds, in each of which every model takes a step with every batch on one thread, then on two,
/// so that other load on the machine slows all of them.
const ROUNDS: usize = 40;

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    // Not as a test.
    if std::env::args().all(|argument| argument != "--bench") {
        return;
    }
    let (batches, offsets) = (batches(), Vec::from_iter(0..=SAMPLES as u32));
    let mut models = MODELS.map(|(name, columns)| {
        let mut model = model(columns);
        let losses: Vec<f64> = (0..20).map(|_| step(&mut model, &batches[0], &offsets)).collect();
        assert!(losses[19] < losses[0], "{name}: {losses:?}");
        model
    });
    let pools = [1, 2].map(|threads| {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads")
    });
    let rounds: Vec<_> = (0..ROUNDS)
        .map(|_| {
            models.each_mut().map(|model| {
                pools.each_ref().map(|pool| {
                    let start = Instant::now();
                    pool.install(|| {
                        batches.iter().for_each(|batch| _ = step(black_box(model), batch, &offsets))
                    });
                    start.elapsed().as_secs_f64() * 1e3 / BATCHES as f64
                })
            })
        })
        .collect();
    println!("medians of {ROUNDS} rounds; ratios are of one round each");
    println!(
        "{:<12} {:>12} {:>12} {:>12} {:>12} {:>12}",
        "tables", "ms, 1 thread", "of dense", "ms, 2", "of dense", "1 to 2"
    );
    for (at, (name, _)) in MODELS.iter().enumerate() {
        let of = |f: &dyn Fn(&[[f64; 2]; 3]) -> f64| median(rounds.iter().map(f));
        println!(
            "{name:<12} {:12.3} {:12.3} {:12.3} {:12.3} {:12.3}",
            of(&|round| round[at][0]),
            of(&|round| round[at][0] / round[0][0]),
            of(&|round| round[at][1]),
            of(&|round| round[at][1] / round[0][1]),
            of(&|round| round[at][0] / round[at][1]),
        );
    }
}
