//! Trainable tables: their gradients against central differences, their steps against PyTorch's,
//! and what is promised of threads, checkpoints and blobs.
//!
//! The oracle works in f64 on plain lists, by the definition of a row and its partial derivatives;
//! it shares nothing with the crate, and its own gradients are held against central differences
//! first. `cargo test --workspace` runs this, since the tool asks for the feature; `cargo test -p
//! ttrec` does so with `--features train`.

use crate::support::{rng::Rng, tiers};
use rayon::prelude::*;
use std::{collections::BTreeMap, iter::zip};
use ttrec::{
    Bags, Blob, DigitOrder, LookupError, Pooling, ShapeError, Tier, TtShape,
    blob::{Layout, Role, TableSpec, WeightsSpec},
    dtype::{self, Dtype},
    train::{
        Checkpointed, DenseShape, DenseTable, Embedding, Initializer, Optimizer, Quantity,
        TrainError, TtTable, Unsupported,
    },
};

// The oracle.

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Sum,
    Mean,
    Weighted,
}

impl Mode {
    const ALL: [Self; 3] = [Self::Sum, Self::Mean, Self::Weighted];

    fn pooling(self) -> Pooling {
        if self == Self::Mean {
            Pooling::Mean
        } else {
            Pooling::Sum
        }
    }
}

/// What is looked up, and the rows that are wished for.
#[derive(Clone, Debug)]
struct Batch {
    indices: Vec<u32>,
    offsets: Vec<u32>,
    weights: Vec<f32>,
    mode: Mode,
}

impl Batch {
    fn bags(&self) -> Bags<'_> {
        let bags = Bags::new(&self.indices, &self.offsets).unwrap();
        if self.mode == Mode::Weighted {
            bags.with_per_sample_weights(&self.weights).unwrap()
        } else {
            bags
        }
    }

    fn num_bags(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Row, bag and factor of each lookup.
    fn lookups(&self) -> impl Iterator<Item = (u64, usize, f64)> + '_ {
        (0..self.num_bags()).flat_map(move |bag| {
            let range = self.offsets[bag] as usize..self.offsets[bag + 1] as usize;
            let count = range.len() as f64;
            range.map(move |at| {
                let factor = match self.mode {
                    Mode::Sum => 1.0,
                    Mode::Mean => 1.0 / count,
                    Mode::Weighted => self.weights[at].into(),
                };
                (self.indices[at].into(), bag, factor)
            })
        })
    }

    /// Bags of 0 to 5 rows; rows that come twice, within a bag and elsewhere.
    fn draw(rng: &mut Rng, num_embeddings: u64, num_bags: usize, mode: Mode) -> Self {
        let (mut indices, mut offsets) = (Vec::new(), vec![0]);
        for bag in 0..num_bags {
            let count = if bag % 3 == 0 { 0 } else { rng.below(6) };
            for _ in 0..count {
                let seen = rng.one_in(3) && !indices.is_empty();
                indices.push(if seen {
                    rng.pick(&indices)
                } else {
                    rng.below(num_embeddings) as u32
                });
            }
            if rng.one_in(2) && count > 0 {
                indices.push(*indices.last().unwrap());
            }
            offsets.push(indices.len() as u32);
        }
        let weights = (0..indices.len()).map(|_| real(rng)).collect();
        Self { indices, offsets, weights, mode }
    }
}

fn real(rng: &mut Rng) -> f32 {
    (rng.below(1 << 20) as f32 / (1 << 19) as f32 - 1.0) * 1.5
}

/// A model of either kind, in f64.
#[derive(Clone, Debug)]
enum Model {
    Dense { dim: usize, rows: Vec<f64> },
    Tt { shape: TtShape, cores: Vec<Vec<f64>> },
}

impl Model {
    fn dim(&self) -> usize {
        match self {
            Self::Dense { dim, .. } => *dim,
            Self::Tt { shape, .. } => shape.column_factors().iter().map(|&q| q as usize).product(),
        }
    }

    fn parameters(&self) -> Vec<&Vec<f64>> {
        match self {
            Self::Dense { rows, .. } => vec![rows],
            Self::Tt { cores, .. } => cores.iter().collect(),
        }
    }

    fn parameters_mut(&mut self) -> Vec<&mut Vec<f64>> {
        match self {
            Self::Dense { rows, .. } => vec![rows],
            Self::Tt { cores, .. } => cores.iter_mut().collect(),
        }
    }

    fn slice_lens(&self) -> Vec<usize> {
        match self {
            Self::Dense { dim, .. } => vec![*dim],
            Self::Tt { shape, cores } => zip(cores, shape.row_factors())
                .map(|(core, &p)| core.len() / p as usize)
                .collect(),
        }
    }

    /// For each parameter list, the slice that `row` takes.
    fn slices_of(&self, row: u64) -> Vec<usize> {
        let Self::Tt { shape, .. } = self else { return vec![row as usize] };
        let p: Vec<u64> = shape.row_factors().iter().map(|&p| p.into()).collect();
        let stride = |k: usize| match shape.digit_order() {
            DigitOrder::MostSignificantFirst => p[k + 1..].iter().product::<u64>(),
            DigitOrder::LeastSignificantFirst => p[..k].iter().product(),
        };
        (0..p.len()).map(|k| (row / stride(k) % p[k]) as usize).collect()
    }

    /// The sizes r_k, q_k, r_{k+1} of core k's slices.
    fn slice_shape(shape: &TtShape, k: usize) -> [usize; 3] {
        let rank = |k: usize| {
            if k == 0 || k == shape.num_cores() {
                1
            } else {
                shape.inner_ranks()[k - 1] as usize
            }
        };
        [rank(k), shape.column_factors()[k] as usize, rank(k + 1)]
    }

    /// The product of slices `from..to` of a row, rank x columns x rank.
    fn product(&self, row: u64, from: usize, to: usize) -> (usize, usize, Vec<f64>) {
        let Self::Tt { shape, cores } = self else { panic!("a dense table has no slices") };
        let digits = self.slices_of(row);
        let left = if from == 0 || from == shape.num_cores() {
            1
        } else {
            shape.inner_ranks()[from - 1] as usize
        };
        let (mut columns, mut rank) = (1, left);
        let mut x: Vec<f64> =
            (0..left * left).map(|at| f64::from(u8::from(at / left == at % left))).collect();
        for k in from..to {
            let [r, q, next] = Self::slice_shape(shape, k);
            let slice = &cores[k][digits[k] * r * q * next..][..r * q * next];
            let mut product = vec![0.0; left * columns * q * next];
            for (row, x) in x.chunks(r).enumerate() {
                for (a, x) in x.iter().enumerate() {
                    for at in 0..q * next {
                        product[row * q * next + at] += x * slice[a * q * next + at];
                    }
                }
            }
            (columns, rank, x) = (columns * q, next, product);
        }
        (columns, rank, x)
    }

    fn row(&self, row: u64) -> Vec<f64> {
        match self {
            Self::Dense { dim, rows } => rows[row as usize * dim..][..*dim].to_vec(),
            Self::Tt { shape, .. } => self.product(row, 0, shape.num_cores()).2,
        }
    }

    fn pooled(&self, batch: &Batch) -> Vec<f64> {
        let dim = self.dim();
        let mut out = vec![0.0; batch.num_bags() * dim];
        for (row, bag, factor) in batch.lookups() {
            zip(&mut out[bag * dim..][..dim], self.row(row))
                .for_each(|(out, x)| *out += factor * x);
        }
        out
    }

    /// Half the squared distance of the pooled rows from `target`.
    fn loss(&self, batch: &Batch, target: &[f64]) -> f64 {
        zip(self.pooled(batch), target).map(|(x, y)| (x - y) * (x - y) / 2.0).sum()
    }

    /// The same with the values that lookups in `table` read.
    fn as_read(&self, table: &dyn Embedding) -> Self {
        let mut model = self.clone();
        for (to, from) in zip(model.parameters_mut(), table.parameters()) {
            *to = from.values().iter().map(|&x| x.into()).collect();
        }
        model
    }

    /// The derivatives of the loss whose derivatives by the pooled rows are `gradient`.
    fn gradients(&self, batch: &Batch, gradient: &[f64]) -> Vec<Vec<f64>> {
        let mut gradients: Vec<Vec<f64>> =
            self.parameters().iter().map(|values| vec![0.0; values.len()]).collect();
        let dim = self.dim();
        for (row, bag, factor) in batch.lookups() {
            let g = &gradient[bag * dim..][..dim];
            let Self::Tt { shape, .. } = self else {
                zip(&mut gradients[0][row as usize * dim..], g)
                    .for_each(|(to, g)| *to += factor * g);
                continue;
            };
            let (d, digits) = (shape.num_cores(), self.slices_of(row));
            for k in 0..d {
                let [r, q, next] = Self::slice_shape(shape, k);
                // Of the row's element (l, j, s): sum over a and b of left[l, a] slice[a, j, b]
                // right[b, s].
                let (lefts, _, left) = self.product(row, 0, k);
                let (rights, _, right) = self.product(row, k + 1, d);
                for (a, j, b) in
                    (0..r).flat_map(|a| (0..q).flat_map(move |j| (0..next).map(move |b| (a, j, b))))
                {
                    let pairs = (0..lefts).flat_map(|l| (0..rights).map(move |s| (l, s)));
                    let sum: f64 = pairs
                        .map(|(l, s)| {
                            left[l * r + a] * g[(l * q + j) * rights + s] * right[b * rights + s]
                        })
                        .sum();
                    gradients[k][((digits[k] * r + a) * q + j) * next + b] += factor * sum;
                }
            }
        }
        gradients
    }
}

/// An optimiser by its formulas, in f64, on all slices that a batch touches.
struct Stepper {
    optimizer: Optimizer,
    steps: i32,
    state: Vec<[Vec<f64>; 2]>,
}

impl Stepper {
    fn new(optimizer: Optimizer, model: &Model) -> Self {
        let state = model
            .parameters()
            .iter()
            .map(|values| [0, 1].map(|_| vec![0.0; values.len()]))
            .collect();
        Self { optimizer, steps: 0, state }
    }

    fn step(&mut self, model: &mut Model, batch: &Batch, gradient: &[f64], learning_rate: f64) {
        let read = model.clone();
        self.step_by(model, &read, batch, gradient, learning_rate);
    }

    /// Moves `model` by the derivatives that `read` has.
    fn step_by(
        &mut self,
        model: &mut Model,
        read: &Model,
        batch: &Batch,
        gradient: &[f64],
        learning_rate: f64,
    ) {
        let gradients = read.gradients(batch, gradient);
        self.steps += 1;
        let mut touched: Vec<Vec<usize>> = vec![Vec::new(); gradients.len()];
        for (row, ..) in batch.lookups() {
            zip(&mut touched, model.slices_of(row))
                .for_each(|(touched, slice)| touched.push(slice));
        }
        let slice_lens = model.slice_lens();
        for (k, values) in model.parameters_mut().into_iter().enumerate() {
            touched[k].sort_unstable();
            touched[k].dedup();
            for slice in &touched[k] {
                let len = slice_lens[k];
                let mean_square =
                    gradients[k][slice * len..][..len].iter().map(|g| g * g).sum::<f64>()
                        / len as f64;
                for at in slice * len..(slice + 1) * len {
                    let (g, x, [s, v]) = (gradients[k][at], &mut values[at], &mut self.state[k]);
                    match self.optimizer {
                        Optimizer::Sgd => *x -= learning_rate * g,
                        Optimizer::Adagrad { epsilon } => {
                            s[at] += g * g;
                            *x -= learning_rate * g / (s[at].sqrt() + epsilon);
                        }
                        Optimizer::RowWiseAdagrad { epsilon } => {
                            s[at] += mean_square;
                            *x -= learning_rate * g / (s[at].sqrt() + epsilon);
                        }
                        Optimizer::Adam { betas: [b1, b2], epsilon } => {
                            s[at] = b1 * s[at] + (1.0 - b1) * g;
                            v[at] = b2 * v[at] + (1.0 - b2) * g * g;
                            let mean = s[at] / (1.0 - b1.powi(self.steps));
                            let correction = (1.0 - b2.powi(self.steps)).sqrt();
                            *x -= learning_rate * mean * correction / (v[at].sqrt() + epsilon);
                        }
                        other => panic!("{other:?} has no oracle"),
                    }
                }
            }
        }
    }
}

const OPTIMIZERS: [Optimizer; 4] =
    [Optimizer::Sgd, Optimizer::ADAGRAD, Optimizer::ROW_WISE_ADAGRAD, Optimizer::ADAM];

// Cases.

fn shape(n: u64, p: &[u32], q: &[u32], r: &[u32]) -> TtShape {
    TtShape::new(n, p, q, r).unwrap()
}

/// Of two to five cores, with odd and unit factors and ranks, partly filled, in both digit orders.
fn shapes() -> Vec<TtShape> {
    let least_first = |shape: TtShape| shape.with_digit_order(DigitOrder::LeastSignificantFirst);
    vec![
        shape(11, &[3, 4], &[2, 3], &[2]),
        least_first(shape(12, &[4, 3], &[1, 5], &[3])),
        shape(8, &[8, 1], &[4, 1], &[1]),
        shape(58, &[3, 4, 5], &[2, 1, 3], &[2, 3]),
        shape(60, &[5, 3, 4], &[4, 4, 4], &[5, 3]),
        least_first(shape(29, &[2, 3, 5], &[1, 2, 4], &[4, 1])),
        shape(70, &[2, 3, 4, 3], &[2, 2, 1, 3], &[2, 3, 2]),
        least_first(shape(24, &[2, 3, 1, 4], &[1, 2, 2, 2], &[3, 2, 4])),
        shape(60, &[2, 2, 3, 1, 5], &[1, 2, 1, 2, 2], &[1, 2, 3, 2]),
    ]
}

fn draw_model(rng: &mut Rng, shape: TtShape) -> Model {
    let len = |k| {
        shape.row_factors()[k] as usize * Model::slice_shape(&shape, k).iter().product::<usize>()
    };
    let cores = (0..shape.num_cores())
        .map(|k| (0..len(k)).map(|_| real(rng).into()).collect())
        .collect();
    Model::Tt { shape, cores }
}

fn models(rng: &mut Rng) -> Vec<Model> {
    let mut models: Vec<Model> = shapes().into_iter().map(|shape| draw_model(rng, shape)).collect();
    models.extend(
        [1, 5, 16, 33].map(|dim| Model::Dense {
            dim,
            rows: (0..20 * dim).map(|_| real(rng).into()).collect(),
        }),
    );
    models
}

fn num_embeddings(model: &Model) -> u64 {
    match model {
        Model::Dense { dim, rows } => (rows.len() / dim) as u64,
        Model::Tt { shape, .. } => shape.num_embeddings(),
    }
}

fn dense(num_embeddings: u64, embedding_dim: usize) -> DenseShape {
    DenseShape { num_embeddings, embedding_dim }
}

/// The same as a table of the crate.
fn build(model: &Model, optimizer: Optimizer, tier: Tier) -> Box<dyn Embedding> {
    build_as(model, optimizer, tier, Dtype::F32)
}

/// The same as a table of the crate that is learned as `dtype`.
fn build_as(model: &Model, optimizer: Optimizer, tier: Tier, dtype: Dtype) -> Box<dyn Embedding> {
    let narrow = |xs: &Vec<f64>| xs.iter().map(|&x| x as f32).collect::<Vec<f32>>();
    match model {
        Model::Dense { dim, rows } => {
            let table =
                DenseTable::from_rows(dense(num_embeddings(model), *dim), narrow(rows), optimizer)
                    .unwrap();
            Box::new(table.with_tier(tier).with_dtype(dtype))
        }
        Model::Tt { shape, cores } => {
            let cores = cores.iter().map(narrow).collect();
            let table = TtTable::from_cores(*shape, cores, optimizer).unwrap();
            Box::new(table.with_tier(tier).with_dtype(dtype).unwrap())
        }
    }
}

fn values(table: &dyn Embedding) -> Vec<Vec<f32>> {
    table
        .parameters()
        .iter()
        .map(|parameters| parameters.values().to_vec())
        .collect()
}

fn forward(table: &dyn Embedding, batch: &Batch) -> Vec<f32> {
    let mut out = vec![f32::NAN; batch.num_bags() * table.table().embedding_dim()];
    table
        .forward(&batch.bags(), batch.mode.pooling(), &mut out, &mut Vec::new())
        .unwrap();
    out
}

#[track_caller]
fn assert_close(found: f64, expected: f64, bound: f64, what: impl std::fmt::Debug) {
    assert!((found - expected).abs() <= bound, "{what:?}: {found} is not {expected} by {bound:e}");
}

// Gradients.

#[test]
fn gradients_agree_with_central_differences() {
    const STEP: f64 = 1e-4;
    let mut compared = 0;
    for (seed, mode) in (0..4).flat_map(|seed| Mode::ALL.map(|mode| (seed, mode))) {
        let mut rng = Rng::new(seed);
        for mut model in models(&mut rng) {
            let batch = Batch::draw(&mut rng, num_embeddings(&model), 9, mode);
            let target: Vec<f64> =
                (0..batch.num_bags() * model.dim()).map(|_| real(&mut rng).into()).collect();
            let pooled = model.pooled(&batch);
            let gradient: Vec<f64> = zip(&pooled, &target).map(|(x, y)| x - y).collect();
            let analytic = model.gradients(&batch, &gradient);
            let largest = analytic.iter().flatten().fold(0.0, |max: f64, g| max.max(g.abs()));

            // The oracle against differences of its own loss.
            for (k, expected) in analytic.iter().enumerate() {
                for (at, &expected) in expected.iter().enumerate() {
                    let mut at_offset = |offset: f64| {
                        let before = std::mem::replace(&mut model.parameters_mut()[k][at], 0.0);
                        model.parameters_mut()[k][at] = before + offset;
                        let loss = model.loss(&batch, &target);
                        model.parameters_mut()[k][at] = before;
                        loss
                    };
                    let difference = (at_offset(STEP) - at_offset(-STEP)) / (2.0 * STEP);
                    // The loss is quadratic in each parameter, so that only rounding is left.
                    assert_close(
                        difference,
                        expected,
                        1e-6 * expected.abs() + 1e-8 * largest,
                        (mode, &model, k, at),
                    );
                }
            }

            // The crate against the oracle: a step of SGD with rate 1 is the gradient.
            let narrow: Vec<f32> = gradient.iter().map(|&g| g as f32).collect();
            for tier in tiers::available() {
                let mut table = build(&model, Optimizer::Sgd, tier);
                for (&found, &expected) in zip(&forward(&*table, &batch), &pooled) {
                    assert_close(found.into(), expected, 1e-4 * expected.abs().max(1.0), "pooled");
                }
                let before = values(&*table);
                table.step(&batch.bags(), mode.pooling(), &narrow, 1.0).unwrap();
                for (k, (before, after)) in zip(&before, values(&*table)).enumerate() {
                    for (at, (before, after)) in zip(before, after).enumerate() {
                        let (found, expected) =
                            (f64::from(*before) - f64::from(after), analytic[k][at]);
                        let bound = 1e-3 * expected.abs() + 1e-6 * largest;
                        assert_close(found, expected, bound, (tier, mode, &model, k, at));
                        compared += u32::from(expected != 0.0);
                    }
                }
            }
        }
    }
    assert!(compared > 10_000, "{compared} derivatives that are not 0");
}

#[test]
fn steps_of_every_optimizer_follow_its_formulas_and_leave_what_is_not_touched() {
    for (seed, optimizer) in zip(7.., OPTIMIZERS) {
        let mut rng = Rng::new(seed);
        for model in models(&mut rng) {
            for tier in tiers::available() {
                let mut table = build(&model, optimizer, tier);
                let (mut model, mut rng) = (model.clone(), Rng::new(seed + 100));
                let mut stepper = Stepper::new(optimizer, &model);
                for step in 0..4 {
                    let mode = Mode::ALL[step % 3];
                    let batch = Batch::draw(&mut rng, num_embeddings(&model), 6, mode);
                    let gradient: Vec<f32> =
                        (0..batch.num_bags() * model.dim()).map(|_| real(&mut rng)).collect();
                    let before = values(&*table);
                    table.step(&batch.bags(), mode.pooling(), &gradient, 0.01).unwrap();
                    let wide: Vec<f64> = gradient.iter().map(|&g| g.into()).collect();
                    stepper.step(&mut model, &batch, &wide, 0.01);

                    let slice_lens = model.slice_lens();
                    for (k, found) in values(&*table).iter().enumerate() {
                        for (at, &found) in found.iter().enumerate() {
                            let expected = model.parameters()[k][at];
                            assert_close(
                                found.into(),
                                expected,
                                2e-4,
                                (optimizer, tier, step, k, at),
                            );
                            let is_touched = batch
                                .lookups()
                                .any(|(row, ..)| model.slices_of(row)[k] == at / slice_lens[k]);
                            let is_same = found.to_bits() == before[k][at].to_bits();
                            assert!(
                                is_touched || is_same,
                                "{optimizer:?}: an untouched slice of core {k} moved"
                            );
                        }
                    }
                }
                assert_eq!(table.steps(), 4);
            }
            // Something was asserted of something that moves.
            let mut moved = model.clone();
            let batch = Batch::draw(&mut rng, num_embeddings(&model), 6, Mode::Sum);
            let ones = vec![1.0; batch.num_bags() * model.dim()];
            Stepper::new(optimizer, &moved).step(&mut moved, &batch, &ones, 0.1);
            assert!(
                zip(moved.parameters(), model.parameters()).all(|(moved, still)| moved != still)
            );
        }
    }
}

/// Large enough for many chunks and shards, with prefixes and slices that are met often, and some
/// once.
fn large_batch(rng: &mut Rng, num_embeddings: u64, mode: Mode) -> Batch {
    let (mut indices, mut offsets) = (Vec::new(), vec![0]);
    for _ in 0..1500 {
        for _ in 0..rng.below(9) {
            let limit = if rng.one_in(4) { 40 } else { num_embeddings };
            indices.push(rng.below(limit) as u32);
        }
        offsets.push(indices.len() as u32);
    }
    let weights = (0..indices.len()).map(|_| real(rng)).collect();
    Batch { indices, offsets, weights, mode }
}

/// Shapes for it: with few slices beside the rows, so that there are several shards.
fn large_shapes() -> [TtShape; 4] {
    [
        shape(5000, &[80, 63], &[2, 2], &[3]),
        shape(5000, &[20, 14, 18], &[2, 1, 2], &[2, 3]),
        shape(3000, &[5, 50, 12], &[2, 2, 1], &[1, 2])
            .with_digit_order(DigitOrder::LeastSignificantFirst),
        shape(4000, &[7, 8, 9, 8], &[1, 2, 1, 2], &[2, 2, 3]),
    ]
}

#[test]
fn a_large_batch_has_the_gradients_of_its_lookups() {
    for (seed, (shape, mode)) in large_shapes()
        .into_iter()
        .flat_map(|shape| Mode::ALL.map(|mode| (shape, mode)))
        .enumerate()
    {
        let mut rng = Rng::new(seed as u64);
        let model = draw_model(&mut rng, shape);
        let batch = large_batch(&mut rng, shape.num_embeddings(), mode);
        let gradient: Vec<f32> =
            (0..batch.num_bags() * model.dim()).map(|_| real(&mut rng)).collect();
        let expected =
            model.gradients(&batch, &gradient.iter().map(|&g| g.into()).collect::<Vec<f64>>());
        let mut table = build(&model, Optimizer::Sgd, Tier::best());
        let before = values(&*table);
        table.step(&batch.bags(), mode.pooling(), &gradient, 1.0).unwrap();
        for (k, (before, after)) in zip(&before, values(&*table)).enumerate() {
            let largest = expected[k].iter().fold(0.0, |max: f64, g| max.max(g.abs()));
            for (at, (before, after)) in zip(before, after).enumerate() {
                let found = f64::from(*before) - f64::from(after);
                let bound = 1e-3 * expected[k][at].abs() + 1e-5 * largest;
                assert_close(found, expected[k][at], bound, (shape, mode, k, at));
            }
        }
    }
}

// Rounded values.

/// Compares what a slice of a core or a row is rounded to with what `docs/format.md` stores.
#[track_caller]
fn assert_rounded(exact: &[f32], found: &[f32], dtype: Dtype, is_row: bool) {
    let wide = |x: &f32| f64::from(*x);
    let low = exact.iter().map(wide).fold(f64::INFINITY, f64::min);
    let high = exact.iter().map(wide).fold(f64::NEG_INFINITY, f64::max);
    let largest = low.abs().max(high.abs());
    let on_grid = |scale: f32, offset: f32, x: f64| {
        let (scale, offset) = (f64::from(scale), f64::from(offset));
        scale * ((x - offset) / scale).round_ties_even() + offset
    };
    let all = |expected: &dyn Fn(f64) -> f64, bound: f64| {
        for (x, &found) in zip(exact, found) {
            assert_close(found.into(), expected(wide(x)), bound, (dtype, x, exact));
        }
    };
    match (dtype, is_row) {
        // A row without a range is its offset.
        (Dtype::I8 | Dtype::I4, true) if low == high => all(&|x| x, 1e-3 * largest),
        (Dtype::I8, false) => {
            let scale = (largest / 127.0) as f32;
            all(&|x| on_grid(scale, 0.0, x), 1e-7 * largest);
        }
        (Dtype::I8, true) => {
            let scale = ((high - low) / 255.0) as f32;
            let offset = (low + 128.0 * f64::from(scale)) as f32;
            all(&|x| on_grid(scale, offset, x), 1e-6 * largest);
        }
        // Which grid is a matter of the encoder. This one would do.
        (Dtype::I4, _) => {
            let mut levels: Vec<u32> = bits(found);
            levels.sort_unstable();
            levels.dedup();
            assert!(levels.len() <= 16, "{levels:?}");
            let step = (high - low) / 15.0;
            let each = step / 2.0 + (low.abs() + 15.0 * step) / 2048.0 + 2f64.powi(-21);
            let squares = zip(exact, found).map(|(x, y)| (wide(x) - wide(y)).powi(2));
            assert!(
                squares.sum::<f64>() <= exact.len() as f64 * each * each,
                "{exact:?} {found:?}"
            );
        }
        (Dtype::F16, _) => {
            all(&|x| x, largest / 2048.0);
            assert!(found.iter().all(|x| x.to_bits().is_multiple_of(1 << 13)), "{found:?}");
        }
        other => panic!("{other:?} has no oracle"),
    }
}

/// The types that a table is learned as.
fn learned_as(model: &Model) -> &'static [Dtype] {
    match model {
        Model::Dense { .. } => &[Dtype::I8, Dtype::I4, Dtype::F16],
        Model::Tt { .. } => &[Dtype::I8, Dtype::F16],
    }
}

#[test]
fn exact_values_move_by_the_gradients_of_the_rounded_ones() {
    for (seed, optimizer) in zip(40.., OPTIMIZERS) {
        let mut rng = Rng::new(seed);
        for (model, dtype) in models(&mut rng)
            .into_iter()
            .flat_map(|model| learned_as(&model).iter().map(move |&dtype| (model.clone(), dtype)))
        {
            let is_row = matches!(model, Model::Dense { .. });
            for tier in tiers::available() {
                let mut table = build_as(&model, optimizer, tier, dtype);
                let (mut exact, mut rng) = (model.clone(), Rng::new(seed + 100));
                let mut stepper = Stepper::new(optimizer, &exact);
                for step in 0..4 {
                    let mode = Mode::ALL[step % 3];
                    let batch = Batch::draw(&mut rng, num_embeddings(&model), 6, mode);
                    let gradient: Vec<f32> =
                        (0..batch.num_bags() * model.dim()).map(|_| real(&mut rng)).collect();
                    let read = model.as_read(&*table);
                    for (&found, expected) in zip(&forward(&*table, &batch), read.pooled(&batch)) {
                        assert_close(found.into(), expected, 1e-4 * expected.abs().max(1.0), tier);
                    }
                    table.step(&batch.bags(), mode.pooling(), &gradient, 0.01).unwrap();
                    let wide: Vec<f64> = gradient.iter().map(|&g| g.into()).collect();
                    stepper.step_by(&mut exact, &read, &batch, &wide, 0.01);

                    for (found, expected) in zip(table.parameters(), exact.parameters()) {
                        assert!(found.is_rounded());
                        for (&found, &expected) in zip(found.exact(), expected) {
                            assert_close(found.into(), expected, 2e-4, (optimizer, tier, dtype));
                        }
                        let len = found.slice_len();
                        for (exact, rounded) in
                            zip(found.exact().chunks(len), found.values().chunks(len))
                        {
                            assert_rounded(exact, rounded, dtype, is_row);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_large_batch_moves_rounded_values_by_its_gradients() {
    for (seed, shape) in zip(60.., large_shapes()) {
        let mut rng = Rng::new(seed);
        let model = draw_model(&mut rng, shape);
        let mut table = build_as(&model, Optimizer::Sgd, Tier::best(), Dtype::I8);
        let batch = large_batch(&mut rng, shape.num_embeddings(), Mode::Sum);
        let gradient: Vec<f32> =
            (0..batch.num_bags() * model.dim()).map(|_| real(&mut rng)).collect();
        let wide: Vec<f64> = gradient.iter().map(|&g| g.into()).collect();
        let expected = model.as_read(&*table).gradients(&batch, &wide);
        let before: Vec<Vec<f32>> =
            table.parameters().iter().map(|core| core.exact().to_vec()).collect();
        table.step(&batch.bags(), Pooling::Sum, &gradient, 1.0).unwrap();
        for (k, (before, core)) in zip(&before, table.parameters()).enumerate() {
            let largest = expected[k].iter().fold(0.0, |max: f64, g| max.max(g.abs()));
            for (at, (before, after)) in zip(before, core.exact()).enumerate() {
                let found = f64::from(*before) - f64::from(*after);
                let bound = 1e-3 * expected[k][at].abs() + 1e-5 * largest;
                assert_close(found, expected[k][at], bound, (shape, k, at));
            }
            let len = core.slice_len();
            for (exact, rounded) in zip(core.exact().chunks(len), core.values().chunks(len)) {
                assert_rounded(exact, rounded, Dtype::I8, false);
            }
        }
    }
}

/// The bytes and the scales of all slices or rows.
fn encoded(values: &[f32], slice_len: usize, dtype: Dtype, is_row: bool) -> (Vec<u8>, Vec<f32>) {
    let (mut bytes, mut scales) = (Vec::new(), Vec::new());
    for slice in values.chunks(slice_len) {
        let len = if is_row {
            dtype.row_len(slice_len)
        } else {
            dtype.bytes_of(slice_len)
        };
        let mut out = vec![0; len];
        if is_row {
            dtype::encode_rows(slice, slice_len, dtype, &mut out).unwrap();
        } else {
            scales.push(dtype::encode_slice(slice, dtype, &mut out).unwrap());
        }
        bytes.extend(out);
    }
    (bytes, scales)
}

#[test]
fn storing_what_was_learned_as_it_was_learned_loses_nothing() {
    let mut rng = Rng::new(80);
    let tt = draw_model(&mut rng, shape(60, &[5, 3, 4], &[4, 4, 4], &[5, 3]));
    let rows = (0..60 * 64).map(|_| real(&mut rng).into()).collect();
    for model in [tt, Model::Dense { dim: 64, rows }] {
        let is_row = matches!(model, Model::Dense { .. });
        for &dtype in learned_as(&model) {
            let mut table = build_as(&model, Optimizer::ADAGRAD, Tier::best(), dtype);
            for _ in 0..5 {
                let batch = Batch::draw(&mut rng, 60, 12, Mode::Sum);
                let gradient: Vec<f32> =
                    (0..batch.num_bags() * 64).map(|_| real(&mut rng)).collect();
                table.step(&batch.bags(), Pooling::Sum, &gradient, 0.1).unwrap();
            }
            let weights = match &model {
                Model::Tt { shape, .. } => WeightsSpec::Tt { shape: *shape, dtype },
                Model::Dense { dim, .. } => {
                    WeightsSpec::Dense { num_embeddings: 60, embedding_dim: *dim, dtype }
                }
            };
            // From the exact values, and again from the rounded ones, which a checkpoint has.
            let store = |rounded: bool| {
                let spec = [TableSpec::new("a", weights)];
                Layout::new(&spec).unwrap().build(|section, out| {
                    let (k, is_scales) = match section.role {
                        Role::Core(k) => (k, false),
                        Role::Scales(k) => (k, true),
                        _ => (0, false),
                    };
                    let part = &table.parameters()[k];
                    let values = if rounded { part.values() } else { part.exact() };
                    let (bytes, scales) = encoded(values, part.slice_len(), dtype, is_row);
                    out.copy_from_slice(&if is_scales {
                        scales.iter().flat_map(|scale| scale.to_le_bytes()).collect()
                    } else {
                        bytes
                    });
                })
            };
            // The codes of an i4 row are of a grid that its values do not always tell.
            let stores: &[bool] = if dtype == Dtype::I4 { &[false] } else { &[false, true] };
            for part in table.parameters().iter().filter(|_| stores.len() > 1) {
                let len = part.slice_len();
                let header = if is_row { dtype.row_header_len() } else { 0 };
                let codes = |values| {
                    let bytes = encoded(values, len, dtype, is_row).0;
                    let rows = bytes.chunks(header + dtype.bytes_of(len));
                    rows.flat_map(|row| row[header..].to_vec()).collect::<Vec<u8>>()
                };
                assert_eq!(codes(part.exact()), codes(part.values()), "{dtype:?}");
            }
            for &rounded in stores {
                let blob = store(rounded);
                let blob = Blob::parse(&blob).unwrap();
                let (stored, learned) = (blob.table("a").unwrap(), table.table());
                let mut found = Vec::new();
                for row in 0..60 {
                    let mut rows = [[f32::NAN; 64]; 2];
                    for (table, out) in zip([&stored, &learned], &mut rows) {
                        table.lookup(row, out, &mut vec![0.0; table.workspace_len(1)]).unwrap();
                    }
                    found.push(rows);
                }
                let largest =
                    found.as_flattened().as_flattened().iter().fold(0.0f32, |a, x| a.max(x.abs()));
                for [stored, learned] in &found {
                    for (stored, learned) in zip(stored, learned) {
                        let exact = is_row && !rounded;
                        let bound = if exact { 0.0 } else { 1e-6 * f64::from(largest) };
                        assert_close((*stored).into(), (*learned).into(), bound, dtype);
                    }
                }
            }
        }
    }
}

#[test]
fn values_that_cannot_be_stored_stay_as_they_are() {
    for (dtype, value) in [
        (Dtype::F16, 1e6),
        (Dtype::I8, f32::NAN),
        (Dtype::I4, f32::INFINITY),
        (Dtype::I8, f32::NEG_INFINITY),
    ] {
        let rows = vec![0.5, value, 0.25, 1.0];
        let table = DenseTable::from_rows(dense(2, 2), rows.clone(), Optimizer::Sgd).unwrap();
        let table = table.with_dtype(dtype);
        let parameters = &table.parameters()[0];
        assert_eq!(bits(&parameters.values()[..2]), bits(&rows[..2]), "{dtype:?}");
        assert_eq!(bits(parameters.exact()), bits(&rows));
        // Nor do any once they are learned as f32 again.
        let exact = table.with_dtype(Dtype::F32);
        assert!(!exact.parameters()[0].is_rounded());
        assert_eq!(bits(exact.parameters()[0].values()), bits(&rows));
    }
}

// PyTorch.

#[test]
fn steps_agree_with_pytorch() {
    let text = include_str!("../golden/train/torch.txt");
    let mut lines: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let floats = |xs: &[&str]| xs.iter().map(|x| x.parse::<f32>().unwrap()).collect::<Vec<f32>>();
    let integers = |xs: &[&str]| xs.iter().map(|x| x.parse::<u32>().unwrap()).collect::<Vec<u32>>();
    let mut tables: Vec<(Tier, Box<dyn Embedding>)> = Vec::new();
    let (mut cases, mut steps) = (0, 0);
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let mut words = line.split_whitespace();
        let name = words.next().unwrap();
        lines.insert(name, words.collect());
        let is_tt = lines.contains_key("shape") && lines["shape"] != ["dense"];
        let cores = if is_tt {
            lines.get("p").map_or(usize::MAX, Vec::len)
        } else {
            1
        };
        let all = |when: &str| {
            (0..cores).map(|k| floats(&lines[&*format!("{when}.{k}")])).collect::<Vec<_>>()
        };
        if name == format!("before.{}", cores - 1) {
            cases += 1;
            let optimizer = match lines["optimizer"][0] {
                "sgd" => Optimizer::Sgd,
                "adagrad" => Optimizer::ADAGRAD,
                "row_wise_adagrad" => Optimizer::RowWiseAdagrad { epsilon: 1e-10 },
                "adam" => Optimizer::ADAM,
                other => panic!("{other}"),
            };
            let num_embeddings = lines["num_embeddings"][0].parse().unwrap();
            let build = |tier| -> Box<dyn Embedding> {
                if is_tt {
                    let [p, q, ranks] = ["p", "q", "ranks"].map(|name| integers(&lines[name]));
                    let shape = shape(num_embeddings, &p, &q, &ranks);
                    Box::new(
                        TtTable::from_cores(shape, all("before"), optimizer)
                            .unwrap()
                            .with_tier(tier),
                    )
                } else {
                    let rows = all("before").remove(0);
                    let dim = rows.len() / num_embeddings as usize;
                    Box::new(
                        DenseTable::from_rows(dense(num_embeddings, dim), rows, optimizer)
                            .unwrap()
                            .with_tier(tier),
                    )
                }
            };
            tables = tiers::available().into_iter().map(|tier| (tier, build(tier))).collect();
        }
        if name == format!("after.{}", cores - 1) {
            steps += 1;
            let mode = match lines["mode"][0] {
                "sum" => Mode::Sum,
                "mean" => Mode::Mean,
                "weighted" => Mode::Weighted,
                other => panic!("{other}"),
            };
            let (indices, offsets) = (integers(&lines["indices"]), integers(&lines["offsets"]));
            let batch = Batch { indices, offsets, weights: floats(&lines["weights"]), mode };
            let learning_rate = lines["learning_rate"][0].parse().unwrap();
            for (tier, table) in &mut tables {
                let about = |what: &'static str| (lines["case"][0], *tier, what);
                for (&found, expected) in zip(&forward(&**table, &batch), floats(&lines["pooled"]))
                {
                    assert_close(found.into(), expected.into(), 1e-5, about("pooled"));
                }
                table
                    .step(&batch.bags(), mode.pooling(), &floats(&lines["gradient"]), learning_rate)
                    .unwrap();
                for (found, expected) in zip(values(&**table).concat(), all("after").concat()) {
                    assert_close(found.into(), expected.into(), 1e-5, about("after"));
                }
            }
        }
    }
    assert_eq!((cases, steps), (24, 48));
}

// Promises.

#[test]
fn a_step_has_the_same_bits_on_any_number_of_threads() {
    let train = |threads: usize| -> Vec<Vec<u32>> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut tables: Vec<TtTable> = [Dtype::F32, Dtype::I8]
                .into_iter()
                .flat_map(|dtype| {
                    zip(large_shapes(), OPTIMIZERS).map(move |(shape, optimizer)| {
                        let table = TtTable::new(shape, Initializer::default(), optimizer, 5);
                        table.unwrap().with_dtype(dtype).unwrap()
                    })
                })
                .collect();
            tables.par_iter_mut().for_each(|table| {
                let mut rng = Rng::new(3);
                for mode in Mode::ALL {
                    let batch = large_batch(&mut rng, table.shape().num_embeddings(), mode);
                    let len = batch.num_bags() * table.shape().embedding_dim();
                    let gradient: Vec<f32> = (0..len).map(|_| real(&mut rng)).collect();
                    table.step(&batch.bags(), mode.pooling(), &gradient, 0.01).unwrap();
                }
            });
            tables
                .iter()
                .map(|table| values(table).concat().iter().map(|x| x.to_bits()).collect())
                .collect()
        })
    };
    let alone = train(1);
    for threads in [2, 3, 8] {
        assert!(train(threads) == alone, "{threads} threads");
    }
}

#[test]
fn training_finds_a_target_that_is_of_low_rank() {
    let teacher = draw_model(&mut Rng::new(1), shape(210, &[6, 5, 7], &[2, 2, 2], &[2, 2]));
    for (optimizer, learning_rate) in zip(OPTIMIZERS, [0.002, 0.1, 0.05, 0.02]) {
        let shape = shape(210, &[6, 5, 7], &[2, 2, 2], &[4, 4]);
        let mut table = TtTable::new(shape, Initializer::Gaussian, optimizer, 2).unwrap();
        let mut rng = Rng::new(3);
        let mut losses = Vec::new();
        for step in 0..600 {
            let mut batch = Batch::draw(&mut rng, 210, 40, Mode::ALL[step % 2]);
            batch.weights.fill(1.0);
            let expected = teacher.pooled(&batch);
            let gradient: Vec<f32> =
                zip(forward(&table, &batch), &expected).map(|(x, y)| x - *y as f32).collect();
            losses.push(gradient.iter().map(|g| f64::from(g * g)).sum::<f64>() / 2.0);
            table
                .step(&batch.bags(), batch.mode.pooling(), &gradient, learning_rate)
                .unwrap();
        }
        let [first, last] =
            [&losses[..20], &losses[580..]].map(|losses| losses.iter().sum::<f64>() / 20.0);
        println!("{optimizer:?}: {first:.3} to {last:.3e}");
        assert!(last < first / 20.0, "{optimizer:?}: {first} to {last}");
    }
}

#[test]
fn a_blob_of_learned_cores_gives_the_same_rows_to_the_bit() {
    let shape = shape(60, &[5, 3, 4], &[4, 4, 4], &[5, 3]);
    let mut rng = Rng::new(4);
    let mut tables: [Box<dyn Embedding>; 2] = [
        Box::new(TtTable::new(shape, Initializer::SampledGaussian, Optimizer::ADAGRAD, 1).unwrap()),
        Box::new(DenseTable::new(dense(60, 64), Initializer::Uniform, Optimizer::ADAM, 1).unwrap()),
    ];
    for table in &mut tables {
        for _ in 0..5 {
            let batch = Batch::draw(&mut rng, 60, 12, Mode::Sum);
            let gradient: Vec<f32> = (0..batch.num_bags() * 64).map(|_| real(&mut rng)).collect();
            table.step(&batch.bags(), Pooling::Sum, &gradient, 0.1).unwrap();
        }
    }
    let weights = [
        WeightsSpec::Tt { shape, dtype: Dtype::F32 },
        WeightsSpec::Dense { num_embeddings: 60, embedding_dim: 64, dtype: Dtype::F32 },
    ];
    let spec = |(name, weights): (&str, _)| TableSpec::new(name, weights);
    let specs: Vec<TableSpec> =
        zip(["dense.tt", "dense"].map(|name| name.trim_start_matches("dense.")), weights)
            .map(spec)
            .collect();
    let blob = Layout::new(&specs).unwrap().build(|section, out| {
        let core = if let Role::Core(k) = section.role { k } else { 0 };
        dtype::encode(tables[section.table].parameters()[core].values(), Dtype::F32, out).unwrap();
    });
    let blob = Blob::parse(&blob).unwrap();
    for (name, table) in zip(["tt", "dense"], &tables) {
        let (stored, batch) =
            (blob.table(name).unwrap(), Batch::draw(&mut rng, 60, 30, Mode::Mean));
        let mut out = vec![f32::NAN; batch.num_bags() * 64];
        stored
            .pool(&batch.bags(), Pooling::Mean, &mut out, &mut vec![0.0; stored.workspace_len(100)])
            .unwrap();
        assert_eq!(bits(&out), bits(&forward(&**table, &batch)));
        for row in 0..60 {
            let mut rows = [[f32::NAN; 64]; 2];
            for (table, row_of) in zip([stored, table.table()], &mut rows) {
                table.lookup(row, row_of, &mut vec![0.0; table.workspace_len(1)]).unwrap();
            }
            assert_eq!(bits(&rows[0]), bits(&rows[1]), "{name} row {row}");
        }
    }
}

fn bits(xs: &[f32]) -> Vec<u32> {
    xs.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn what_is_restored_goes_on_to_the_bit() {
    for optimizer in OPTIMIZERS {
        let new = |seed| -> [Box<dyn Embedding>; 4] {
            let shape = shape(58, &[3, 4, 5], &[2, 1, 3], &[2, 3]);
            let tt = |dtype| {
                let table = TtTable::new(shape, Initializer::SampledGaussian, optimizer, seed);
                Box::new(table.unwrap().with_dtype(dtype).unwrap())
            };
            let dense = |dtype| {
                let table = DenseTable::new(dense(58, 6), Initializer::Gaussian, optimizer, seed);
                Box::new(table.unwrap().with_dtype(dtype))
            };
            [tt(Dtype::F32), dense(Dtype::F32), tt(Dtype::I8), dense(Dtype::I4)]
        };
        for (mut table, mut restored) in zip(new(1), new(2)) {
            let mut rng = Rng::new(9);
            for step in 0..6 {
                let batch = Batch::draw(&mut rng, 58, 10, Mode::Weighted);
                let gradient: Vec<f32> =
                    (0..batch.num_bags() * 6).map(|_| real(&mut rng)).collect();
                if step == 3 {
                    assert_ne!(values(&*table), values(&*restored));
                    for (to, from) in zip(restored.parameters_mut(), table.parameters()) {
                        assert_eq!(to.slice_len(), from.slice_len());
                        to.values_mut().copy_from_slice(from.exact());
                        zip(to.state_mut(), from.state())
                            .for_each(|(to, from)| to.copy_from_slice(from));
                    }
                    restored.set_steps(table.steps());
                    assert_eq!(values(&*table), values(&*restored));
                }
                table.step(&batch.bags(), Pooling::Sum, &gradient, 0.1).unwrap();
                if step >= 3 {
                    restored.step(&batch.bags(), Pooling::Sum, &gradient, 0.1).unwrap();
                    assert_eq!(
                        bits(&values(&*table).concat()),
                        bits(&values(&*restored).concat()),
                        "{optimizer:?}"
                    );
                }
            }
        }
    }
}

// Initialisers.

#[test]
fn rows_begin_with_the_variance_of_a_dense_table() {
    for initializer in [Initializer::SampledGaussian, Initializer::Gaussian, Initializer::Uniform] {
        for (p, q, r) in [
            (&[40, 50][..], &[8, 8][..], &[6][..]),
            (&[12, 13, 14], &[4, 4, 4], &[8, 16]),
            (&[6, 7, 8, 6], &[2, 4, 2, 4], &[4, 9, 5]),
        ] {
            let n: u64 = p.iter().map(|&p| u64::from(p)).product();
            let shape = shape(n, p, q, r);
            // One draw of the cores says little, as all rows share them.
            let mean_square = (0..40).map(|seed| {
                let table = TtTable::new(shape, initializer, Optimizer::Sgd, seed).unwrap();
                let table = table.table();
                let (mut row, mut workspace, mut sum) =
                    ([0.0; 64], vec![0.0; table.workspace_len(1)], 0.0);
                for index in (0..n).step_by(7) {
                    table.lookup(index, &mut row, &mut workspace).unwrap();
                    sum += row.iter().map(|x| f64::from(x * x)).sum::<f64>() / 64.0;
                }
                sum / n.div_ceil(7) as f64
            });
            let ratio = mean_square.sum::<f64>() / 40.0 * 3.0 * n as f64;
            println!("{initializer:?} {p:?}: {ratio:.3}");
            assert!((ratio - 1.0).abs() < 0.1, "{initializer:?} {shape:?}: {ratio} times 1/(3N)");
        }
        let table = DenseTable::new(dense(900, 64), initializer, Optimizer::Sgd, 1).unwrap();
        let values = table.parameters()[0].values();
        let ratio =
            values.iter().map(|x| f64::from(x * x)).sum::<f64>() / values.len() as f64 * 2700.0;
        assert!((ratio - 1.0).abs() < 0.03, "{initializer:?} dense: {ratio} times 1/(3N)");
        let bound = 1.0 / 30.0;
        assert_eq!(values.iter().all(|x| x.abs() <= bound), initializer == Initializer::Uniform);
    }
    // The paper's has no element near zero: |x| >= 2 of a standard normal, scaled.
    let sampled =
        TtTable::new(shapes()[4], Initializer::SampledGaussian, Optimizer::Sgd, 1).unwrap();
    let deviation = ((1.0f64 / 180.0).sqrt() / 15f64.sqrt()).powf(1.0 / 3.0);
    let least = values(&sampled).concat().iter().fold(f32::MAX, |min, x| min.min(x.abs()));
    assert!(
        (0.999..1.05).contains(&(f64::from(least) / (2.0 * deviation / 5.746f64.sqrt()))),
        "{least}"
    );
}

#[test]
fn a_seed_names_its_draws() {
    let cores = |seed| {
        values(
            &TtTable::new(shapes()[3], Initializer::SampledGaussian, Optimizer::Sgd, seed).unwrap(),
        )
    };
    assert_eq!(cores(1), cores(1));
    assert_ne!(cores(1), cores(2));
    // On every platform.
    assert_eq!(bits(&cores(1)[0][..2]), FIRST_DRAWS);
}

const FIRST_DRAWS: [u32; 2] = [1049352321, 1049014450];

// Refusals.

#[test]
fn every_refusal_has_its_own_error_and_changes_nothing() {
    let small = shape(11, &[3, 4], &[2, 3], &[2]);
    let new = |shape| TtTable::new(shape, Initializer::Gaussian, Optimizer::ADAM, 1).map(|_| ());
    let huge = shape(1 << 33, &[1 << 16, 1 << 17], &[1, 1], &[1]);
    let (found, limit) = (1 << 33, u32::MAX.into());
    let too_many_rows = TrainError::Limit { of: Quantity::Rows, found, limit };
    assert_eq!(new(huge), Err(too_many_rows));
    let columns_reversed = small.with_column_order(DigitOrder::LeastSignificantFirst);
    assert_eq!(new(columns_reversed), Err(TrainError::Unsupported(Unsupported::ColumnOrder)));
    let count = |of, found, expected| TrainError::Count { of, found, expected };
    let from = |cores: Vec<Vec<f32>>| {
        TtTable::from_cores(small, cores, Optimizer::Sgd).map(|_| ()).unwrap_err()
    };
    assert_eq!(from(vec![vec![0.0; 12]]), count(Quantity::Cores, 1, 2));
    assert_eq!(from(vec![vec![0.0; 12], vec![0.0; 25]]), count(Quantity::Values(1), 25, 24));
    assert_eq!(from(vec![vec![], vec![0.0; 24]]), count(Quantity::Values(0), 0, 12));
    let i4 = TtTable::new(small, Initializer::Gaussian, Optimizer::Sgd, 1).unwrap();
    let i4 = i4.with_dtype(Dtype::I4).map(|_| ()).unwrap_err();
    assert_eq!(i4, TrainError::Unsupported(Unsupported::Dtype { dtype: Dtype::I4 }));
    let refused = |n, dim| {
        DenseTable::new(dense(n, dim), Initializer::Uniform, Optimizer::Sgd, 1)
            .map(|_| ())
            .unwrap_err()
    };
    assert_eq!(refused(0, 4), TrainError::Shape(ShapeError::NumEmbeddings { found: 0 }));
    assert_eq!(refused(4, 0), TrainError::Shape(ShapeError::EmbeddingDim { found: 0 }));
    assert_eq!(refused(1 << 33, 4), too_many_rows);
    let rows = DenseTable::from_rows(dense(4, 2), vec![0.0; 7], Optimizer::Sgd)
        .map(|_| ())
        .unwrap_err();
    assert_eq!(rows, count(Quantity::Values(0), 7, 8));

    let tables: [Box<dyn Embedding>; 2] = [
        Box::new(TtTable::new(small, Initializer::Gaussian, Optimizer::ADAM, 1).unwrap()),
        Box::new(DenseTable::new(dense(11, 6), Initializer::Gaussian, Optimizer::ADAM, 1).unwrap()),
    ];
    for mut table in tables {
        let before = values(&*table);
        let good = Bags::new(&[1u32, 10], &[0, 2]).unwrap();
        let outside = Bags::new(&[1u32, 11], &[0, 2]).unwrap();
        let weighted = good.with_per_sample_weights(&[1.0, 2.0]).unwrap();
        let mut step =
            |bags, pooling, len| table.step(bags, pooling, &vec![1.0; len], 0.1).unwrap_err();
        assert_eq!(step(&good, Pooling::Max, 6), TrainError::Unsupported(Unsupported::MaxPooling));
        let padded = good.with_padding_idx(10);
        assert_eq!(step(&padded, Pooling::Sum, 6), TrainError::Unsupported(Unsupported::Padding));
        assert_eq!(step(&good, Pooling::Sum, 7), count(Quantity::Gradient, 7, 6));
        assert_eq!(
            step(&weighted, Pooling::Mean, 6),
            TrainError::Lookup(LookupError::WeightsPooling)
        );
        let out_of_range =
            LookupError::IndexOutOfRange { position: 1, index: 11, num_embeddings: 11 };
        assert_eq!(step(&outside, Pooling::Sum, 6), TrainError::Lookup(out_of_range));
        assert_eq!((values(&*table), table.steps()), (before.clone(), 0));

        // No lookups and no bags are a step like any other.
        let none: [(&[u32], &[u32]); 2] = [(&[], &[0]), (&[], &[0, 0, 0])];
        for (indices, offsets) in none {
            let bags = Bags::new(indices, offsets).unwrap();
            table.step(&bags, Pooling::Mean, &vec![1.0; bags.len() * 6], 0.1).unwrap();
        }
        assert_eq!((values(&*table), table.steps()), (before, 2));
    }
}
