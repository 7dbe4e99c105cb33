//! A training step, and the forward pass alone, on one thread: FBTT's benchmark shape at rank 32
//! (11,000,000 x 64, 512 bags of 20 uniform ids), and the largest table of Criteo Kaggle (128 bags
//! of 1) in two shapes. SGD. `cargo bench -p ttrec-benches --bench train`.
//!
//! Gradients are compared with plain f64 loops before anything is timed. "elem" counts lookups.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use ttrec::{
    Bags, Pooling, TtShape,
    train::{Checkpointed, Embedding, Initializer, Optimizer, TtTable},
};

/// Batches in rotation.
const BATCHES: usize = 20;

struct Workload {
    name: &'static str,
    shape: TtShape,
    bags: usize,
    bag: usize,
}

impl Workload {
    fn batches(&self) -> Vec<Vec<u32>> {
        let mut state = 1u64;
        let mut id = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            ((state >> 33) % self.shape.num_embeddings()) as u32
        };
        (0..BATCHES)
            .map(|_| (0..self.bags * self.bag).map(|_| id()).collect())
            .collect()
    }

    fn offsets(&self) -> Vec<u32> {
        (0..=self.bags).map(|bag| (bag * self.bag) as u32).collect()
    }

    /// The gradient of the pooled rows.
    fn gradient(&self) -> Vec<f32> {
        (0..self.bags * self.shape.embedding_dim())
            .map(|at| (at % 13) as f32 / 8.0 - 0.75)
            .collect()
    }

    fn table(&self) -> TtTable {
        TtTable::new(self.shape, Initializer::SampledGaussian, Optimizer::Sgd, 1).expect("a table")
    }
}

fn workloads() -> [Workload; 3] {
    let shape = |n, q| TtShape::new(n, &[200, 220, 250], q, &[32, 32]).expect("a shape");
    [
        Workload { name: "fbtt-R32", shape: shape(11_000_000, &[4, 4, 4]), bags: 512, bag: 20 },
        Workload { name: "kaggle-R32", shape: shape(10_131_227, &[2, 2, 4]), bags: 128, bag: 1 },
        Workload {
            name: "kaggle-R32-wide",
            shape: shape(10_131_227, &[2, 1, 8]),
            bags: 128,
            bag: 1,
        },
    ]
}

/// Compares the change of the slices of the first lookup in one step with the sums that define
/// their gradients, for three cores.
fn check(workload: &Workload, ids: &[u32]) {
    const RATE: f64 = 0.5;
    let (shape, gradient) = (workload.shape, workload.gradient());
    let mut table = workload.table();
    let before: Vec<Vec<f32>> =
        table.parameters().iter().map(|core| core.values().to_vec()).collect();
    let offsets = workload.offsets();
    table
        .step(&Bags::new(ids, &offsets).expect("bags"), Pooling::Sum, &gradient, RATE)
        .expect("a step");

    let [q0, q1, q2] = [0, 1, 2].map(|k| shape.column_factor(k));
    let [r1, r2] = [1, 2].map(|k| shape.rank(k));
    let dim = shape.embedding_dim();
    let mine: Vec<u32> = shape.digits(ids[0].into()).collect();
    let mut expected: Vec<Vec<f64>> = (0..3).map(|k| vec![0.0; shape.slice_len(k)]).collect();
    for (at, &id) in ids.iter().enumerate() {
        let digits: Vec<u32> = shape.digits(id.into()).collect();
        let g = &gradient[at / workload.bag * dim..][..dim];
        let [s0, s1, s2] = [0, 1, 2]
            .map(|k| &before[k][digits[k] as usize * shape.slice_len(k)..][..shape.slice_len(k)]);
        let is_mine = [0, 1, 2].map(|k| digits[k] == mine[k]);
        if is_mine == [false; 3] {
            continue;
        }
        for (i, j, a, b) in (0..q0).flat_map(|i| {
            (0..q1).flat_map(move |j| (0..r1).flat_map(move |a| (0..r2).map(move |b| (i, j, a, b))))
        }) {
            let (left, middle) = (i * r1 + a, (a * q1 + j) * r2 + b);
            for l in 0..q2 {
                let (right, g) = (b * q2 + l, f64::from(g[(i * q1 + j) * q2 + l]));
                let [x, y, z] = [s0[left], s1[middle], s2[right]].map(f64::from);
                if is_mine[0] {
                    expected[0][left] += g * y * z;
                }
                if is_mine[1] {
                    expected[1][middle] += g * x * z;
                }
                if is_mine[2] {
                    expected[2][right] += g * x * y;
                }
            }
        }
    }
    for (k, expected) in expected.iter().enumerate() {
        let start = mine[k] as usize * shape.slice_len(k);
        let largest = expected.iter().fold(0.0, |max: f64, g| max.max(g.abs()));
        for (at, expected) in expected.iter().enumerate() {
            let (was, is) = (before[k][start + at], table.parameters()[k].values()[start + at]);
            let found = (f64::from(was) - f64::from(is)) / RATE;
            // Rounding of sums, and of the value that moved.
            let bound = 1e-4 * largest + 2e-7 * f64::from(was.abs());
            assert!(
                (found - expected).abs() <= bound,
                "{} core {k} at {at}: {found}, {expected}",
                workload.name
            );
        }
    }
}

fn train(criterion: &mut Criterion) {
    // This one: forward and step on the same core.
    rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .use_current_thread()
        .build_global()
        .expect("a thread");
    for workload in workloads() {
        let (batches, offsets, gradient) =
            (workload.batches(), workload.offsets(), workload.gradient());
        check(&workload, &batches[0]);
        let mut group = criterion.benchmark_group(workload.name);
        group.throughput(Throughput::Elements(batches[0].len() as u64));
        let mut table = workload.table();
        let mut out = vec![0.0; gradient.len()];
        let mut workspace = Vec::new();
        let mut turn = batches.iter().cycle();
        let mut next = || Bags::new(turn.next().expect("a batch"), &offsets).expect("bags");
        group.bench_function("forward", |bencher| {
            bencher
                .iter(|| table.forward(&next(), Pooling::Sum, black_box(&mut out), &mut workspace));
        });
        group.bench_function("forward-and-step", |bencher| {
            bencher.iter(|| {
                let bags = next();
                table.forward(&bags, Pooling::Sum, black_box(&mut out), &mut workspace)?;
                table.step(&bags, Pooling::Sum, black_box(&gradient), 1e-6)
            });
        });
    }
}

criterion_group!(benches, train);
criterion_main!(benches);
