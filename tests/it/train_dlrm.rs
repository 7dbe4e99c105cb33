//! Training of whole models: gradients against central differences, steps against PyTorch's, and
//! the guarantees about threads and checkpoints.
//!
//! The oracle is the loss of a model by its definition, on plain lists, in f64 and in dual numbers,
//! which carry the derivative by one parameter along. It shares nothing with the crate; its
//! derivatives are held against central differences first.

use crate::support::{rng::Rng, tiers};
use std::{
    collections::BTreeMap,
    iter::zip,
    ops::{Add, Mul},
};
use ttrec::{
    Bags, Blob, LookupError, PoolTablesError, Pooling, Tier, TtShape,
    blob::{IndexMapSpec, Layout, ModelTable, Role, TableSpec, WeightsSpec},
    dtype::{self, Dtype},
    repr::{Combine, IndexMap, Weights},
    train::{
        Batch, CacheSpec, DenseShape, DenseTable, Dlrm, DlrmSpec, Embedding, HashedTable,
        Initializer, LearningRates, Objective, Optimizer, Quantity, QuotientRemainderShape,
        QuotientRemainderTable, Regularization, TrainError, TtTable, Unsupported,
    },
};

// The oracle.

/// f64, or a dual number.
trait Number: Copy + Add<Output = Self> + Mul<Output = Self> + From<f64> {
    fn value(self) -> f64;
    /// ln(1 + e^x).
    fn softplus(self) -> Self;
}

impl Number for f64 {
    fn value(self) -> f64 {
        self
    }

    fn softplus(self) -> f64 {
        self.max(0.0) + (-self.abs()).exp().ln_1p()
    }
}

/// A value and its derivative.
#[derive(Clone, Copy)]
struct Dual(f64, f64);

impl From<f64> for Dual {
    fn from(x: f64) -> Self {
        Self(x, 0.0)
    }
}

impl Add for Dual {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0, self.1 + other.1)
    }
}

impl Mul for Dual {
    type Output = Self;
    fn mul(self, other: Self) -> Self {
        Self(self.0 * other.0, self.0 * other.1 + self.1 * other.0)
    }
}

impl Number for Dual {
    fn value(self) -> f64 {
        self.0
    }

    fn softplus(self) -> Self {
        Self(self.0.softplus(), self.1 / (1.0 + (-self.0).exp()))
    }
}

fn dot<T: Number>(xs: &[T], ys: &[T]) -> T {
    zip(xs, ys).fold(T::from(0.0), |sum, (&x, &y)| sum + x * y)
}

/// A table as it is defined.
#[derive(Clone, Debug)]
enum Table {
    Dense { rows: u64 },
    Tt { p: Vec<u32>, q: Vec<u32>, ranks: Vec<u32>, rows: u64, cache: Option<CacheSpec> },
    Hashed { table: Box<Table>, indices: u64 },
    QuotientRemainder { rows: u64, remainders: u32, columns: [usize; 2], combine: Combine },
}

impl Table {
    fn num_embeddings(&self) -> u64 {
        match self {
            Self::Dense { rows } | Self::Tt { rows, .. } | Self::QuotientRemainder { rows, .. } => {
                *rows
            }
            Self::Hashed { indices, .. } => *indices,
        }
    }

    /// The pooled rows of a bag of indices and factors.
    fn pool<T: Number>(&self, parameters: &[Vec<T>], dim: usize, bag: &[(u64, f64)]) -> Vec<T> {
        let sum = |dim: usize, row: &dyn Fn(u64) -> Vec<T>| {
            bag.iter().fold(vec![T::from(0.0); dim], |sum, &(index, factor)| {
                zip(sum, row(index)).map(|(sum, x)| sum + x * T::from(factor)).collect()
            })
        };
        match self {
            Self::Dense { .. } => {
                sum(dim, &|row| parameters[0][row as usize * dim..][..dim].to_vec())
            }
            Self::Hashed { table, .. } => {
                let rows = table.num_embeddings();
                let bag: Vec<_> =
                    bag.iter().map(|&(index, factor)| (index % rows, factor)).collect();
                table.pool(parameters, dim, &bag)
            }
            Self::QuotientRemainder { remainders, columns: [first, second], combine, .. } => {
                let m = u64::from(*remainders);
                let part = |part: usize, dim: usize, row: &dyn Fn(u64) -> u64| {
                    sum(dim, &|index| parameters[part][row(index) as usize * dim..][..dim].to_vec())
                };
                let (first, second) =
                    (part(0, *first, &|row| row / m), part(1, *second, &|row| row % m));
                match combine {
                    Combine::Mult => zip(first, second).map(|(x, y)| x * y).collect(),
                    Combine::Add => zip(first, second).map(|(x, y)| x + y).collect(),
                    Combine::Concat => [first, second].concat(),
                    other => panic!("{other:?} has no reference"),
                }
            }
            Self::Tt { p, q, ranks, .. } => sum(dim, &|row| {
                let mut x = vec![T::from(1.0)];
                for k in 0..p.len() {
                    let rank = |k: usize| {
                        if k == 0 || k == p.len() {
                            1
                        } else {
                            ranks[k - 1] as usize
                        }
                    };
                    let (r, n) = (rank(k), q[k] as usize * rank(k + 1));
                    let digit = row / p[k + 1..].iter().map(|&p| u64::from(p)).product::<u64>()
                        % u64::from(p[k]);
                    let slice = &parameters[k][digit as usize * r * n..][..r * n];
                    let column =
                        |j: usize| (0..r).map(move |a| slice[a * n + j]).collect::<Vec<T>>();
                    x = x
                        .chunks(r)
                        .flat_map(|x| (0..n).map(|j| dot(x, &column(j))).collect::<Vec<T>>())
                        .collect();
                }
                x
            }),
        }
    }

    /// The same as a table of the crate.
    fn build(
        &self,
        parameters: &[Vec<f32>],
        dim: usize,
        optimizer: Optimizer,
        tier: Tier,
    ) -> Box<dyn Embedding> {
        let values = |at: usize| parameters[at].clone();
        match self {
            Self::Dense { rows } => Box::new(
                DenseTable::from_rows(dense(*rows, dim), values(0), optimizer)
                    .unwrap()
                    .with_tier(tier),
            ),
            Self::Tt { p, q, ranks, rows, cache } => {
                let shape = TtShape::new(*rows, p, q, ranks).unwrap();
                let table = TtTable::from_cores(shape, parameters.to_vec(), optimizer)
                    .unwrap()
                    .with_tier(tier);
                Box::new(match cache {
                    Some(cache) => table.with_cache(*cache).unwrap(),
                    None => table,
                })
            }
            Self::Hashed { table, indices } => Box::new(
                HashedTable::new(table.build(parameters, dim, optimizer, tier), *indices).unwrap(),
            ),
            &Self::QuotientRemainder { rows, remainders, columns, combine } => {
                let (num_embeddings, num_remainders) = (rows, remainders);
                let shape =
                    QuotientRemainderShape { num_embeddings, num_remainders, columns, combine };
                let parts = [values(0), values(1)];
                let table = QuotientRemainderTable::from_parts(shape, parts, optimizer).unwrap();
                Box::new(table.with_tier(tier))
            }
        }
    }

    /// Elements of each of its parameters.
    fn lens(&self, dim: usize) -> Vec<usize> {
        match self {
            Self::Dense { rows } => vec![*rows as usize * dim],
            Self::Hashed { table, .. } => table.lens(dim),
            Self::QuotientRemainder { rows, remainders, columns: [first, second], .. } => {
                vec![
                    rows.div_ceil((*remainders).into()) as usize * first,
                    *remainders as usize * second,
                ]
            }
            Self::Tt { p, q, ranks, .. } => {
                let ranks: Vec<u32> = [&[1][..], ranks, &[1]].concat();
                (0..p.len()).map(|k| (p[k] * ranks[k] * q[k] * ranks[k + 1]) as usize).collect()
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Sum,
    Mean,
    Weighted,
}

/// A model as it is defined: parameters are lists, of the bottom MLP, the top one, then the tables.
#[derive(Clone, Debug)]
struct Model {
    dense_dim: usize,
    dim: usize,
    bottom: Vec<usize>,
    top: Vec<usize>,
    /// Each with a feature.
    tables: Vec<(Table, Mode)>,
    /// More features, each of one of these tables.
    sharing: Vec<(usize, Mode)>,
}

/// What a step learns from, owned.
#[derive(Clone, Debug)]
struct Samples {
    dense: Vec<f32>,
    labels: Vec<f32>,
    /// Of each feature: indices, offsets and weights.
    bags: Vec<(Vec<u32>, Vec<u32>, Vec<f32>)>,
}

impl Samples {
    fn bags(&self, model: &Model) -> Vec<Bags<'_>> {
        let bags =
            zip(&self.bags, model.features()).map(|((indices, offsets, weights), (_, mode))| {
                let bags = Bags::new(indices, offsets).unwrap();
                if mode == Mode::Weighted {
                    bags.with_per_sample_weights(weights).unwrap()
                } else {
                    bags
                }
            });
        bags.collect()
    }

    fn draw(rng: &mut Rng, model: &Model, count: usize) -> Self {
        let bags = model.features().into_iter().map(|(table, _)| {
            let (table, _) = &model.tables[table];
            let (mut indices, mut offsets) = (Vec::new(), vec![0]);
            for _ in 0..count {
                for _ in 0..rng.below(4) {
                    let seen = rng.one_in(3) && !indices.is_empty();
                    indices.push(if seen {
                        rng.pick(&indices)
                    } else {
                        rng.below(table.num_embeddings()) as u32
                    });
                }
                offsets.push(indices.len() as u32);
            }
            let weights = indices.iter().map(|_| real(rng)).collect();
            (indices, offsets, weights)
        });
        let bags = bags.collect();
        Self {
            dense: (0..count * model.dense_dim).map(|_| real(rng)).collect(),
            labels: (0..count).map(|_| rng.below(2) as f32).collect(),
            bags,
        }
    }
}

impl Model {
    /// The table and the mode of each feature.
    fn features(&self) -> Vec<(usize, Mode)> {
        let own = self.tables.iter().enumerate().map(|(table, &(_, mode))| (table, mode));
        own.chain(self.sharing.iter().copied()).collect()
    }

    fn mlp_inputs(&self) -> [usize; 2] {
        let bottom = if self.dense_dim > 0 { self.dim } else { 0 };
        let vectors = self.features().len() + usize::from(self.dense_dim > 0);
        [self.dense_dim, bottom + vectors * (vectors - 1) / 2]
    }

    fn lens(&self) -> Vec<usize> {
        let [dense_dim, interactions] = self.mlp_inputs();
        let mut lens = Vec::new();
        for (mut inputs, outputs) in [(dense_dim, &self.bottom), (interactions, &self.top)] {
            for &outputs in outputs {
                lens.extend([inputs * outputs, outputs]);
                inputs = outputs;
            }
        }
        lens.extend(self.tables.iter().flat_map(|(table, _)| table.lens(self.dim)));
        lens
    }

    fn draw(&self, rng: &mut Rng) -> Vec<Vec<f32>> {
        self.lens()
            .into_iter()
            .map(|len| (0..len).map(|_| real(rng) * 0.6).collect())
            .collect()
    }

    /// The vectors that the tables give each sample.
    fn pooled<T: Number>(&self, parameters: &[Vec<T>], samples: &Samples) -> Vec<Vec<Vec<T>>> {
        let mut rest = &parameters[2 * (self.bottom.len() + self.top.len())..];
        let mut of_tables = Vec::new();
        for (table, _) in &self.tables {
            let (these, after) = rest.split_at(table.lens(self.dim).len());
            of_tables.push((table, these));
            rest = after;
        }
        let mut vectors = vec![Vec::new(); samples.labels.len()];
        for ((table, mode), (indices, offsets, weights)) in zip(self.features(), &samples.bags) {
            let (table, these) = of_tables[table];
            for (vectors, ends) in zip(&mut vectors, offsets.windows(2)) {
                let range = ends[0] as usize..ends[1] as usize;
                let count = range.len() as f64;
                let bag = range.map(|at| match mode {
                    Mode::Sum => (indices[at].into(), 1.0),
                    Mode::Mean => (indices[at].into(), 1.0 / count),
                    Mode::Weighted => (indices[at].into(), weights[at].into()),
                });
                vectors.push(table.pool(these, self.dim, &bag.collect::<Vec<_>>()));
            }
        }
        vectors
    }

    /// The logit of each sample.
    fn logits<T: Number>(&self, parameters: &[Vec<T>], samples: &Samples) -> Vec<T> {
        let mlp = |parameters: &[Vec<T>], mut x: Vec<T>, last_relu: bool| {
            for (at, pair) in parameters.chunks(2).enumerate() {
                let [weights, biases] = pair else { panic!("weights and biases") };
                let is_relu = last_relu || at + 1 < parameters.len() / 2;
                let rows = zip(weights.chunks(x.len()), biases);
                let y = rows.map(|(w, &b)| dot(w, &x) + b);
                x = y.map(|y| if is_relu && y.value() <= 0.0 { T::from(0.0) } else { y }).collect();
            }
            x
        };
        let (bottom, rest) = parameters.split_at(2 * self.bottom.len());
        let top = &rest[..2 * self.top.len()];
        let one = |(sample, pooled): (usize, Vec<Vec<T>>)| {
            let mut vectors: Vec<Vec<T>> = Vec::new();
            if self.dense_dim > 0 {
                let dense = &samples.dense[sample * self.dense_dim..][..self.dense_dim];
                vectors.push(mlp(bottom, dense.iter().map(|&x| T::from(x.into())).collect(), true));
            }
            let mut interactions = vectors.concat();
            vectors.extend(pooled);
            for i in 0..vectors.len() {
                interactions.extend((0..i).map(|j| dot(&vectors[i], &vectors[j])));
            }
            mlp(top, interactions, false)[0]
        };
        self.pooled(parameters, samples).into_iter().enumerate().map(one).collect()
    }

    /// Half the mean squared length of the samples' vectors.
    fn half_squares<T: Number>(&self, parameters: &[Vec<T>], samples: &Samples) -> T {
        let vectors = self.pooled(parameters, samples).concat();
        let squares = vectors.iter().fold(T::from(0.0), |sum, vector| sum + dot(vector, vector));
        squares * T::from(0.5 / samples.labels.len() as f64)
    }

    /// The same as a model of the crate.
    fn build(&self, parameters: &[Vec<f32>], optimizer: Optimizer, tier: Tier) -> Dlrm {
        let mut rest = &parameters[2 * (self.bottom.len() + self.top.len())..];
        let tables = self.tables.iter().map(|(table, _)| {
            let (these, after) = rest.split_at(table.lens(self.dim).len());
            rest = after;
            table.build(these, self.dim, optimizer, tier)
        });
        let tables = tables.collect();
        let features = self.features().into_iter().map(|(table, mode)| {
            let is_mean = mode == Mode::Mean;
            ModelTable { table, pooling: if is_mean { Pooling::Mean } else { Pooling::Sum } }
        });
        let features: Vec<_> = features.collect();
        let mut model = Dlrm::new(&self.spec(optimizer, tier), tables, &features).unwrap();
        let layers = model.layers_mut().flat_map(|(_, layer)| layer.parameters_mut());
        for ((_, to), from) in zip(layers, parameters) {
            to.values_mut().copy_from_slice(from);
        }
        model
    }

    fn spec(&self, optimizer: Optimizer, tier: Tier) -> DlrmSpec {
        let (bottom, top) = (self.bottom.clone(), self.top.clone());
        DlrmSpec { dense_dim: self.dense_dim, bottom, top, optimizer, seed: 1, tier }
    }
}

/// An objective as it is defined.
#[derive(Clone, Debug)]
enum Goal {
    Labels,
    Weighted(Vec<f32>),
    Bpr(usize),
    Softmax(usize, Vec<f32>),
    InBatch(Vec<u32>, Vec<f32>),
}

/// The mean.
fn mean<T: Number>(xs: &[T]) -> T {
    xs.iter().fold(T::from(0.0), |sum, &x| sum + x) * T::from(1.0 / xs.len() as f64)
}

/// The cross-entropy of a softmax over some logits, of which the first is to be chosen.
fn softmax_loss<T: Number>(logits: &[T]) -> T {
    let minus = |a: T, b: T| a + b * T::from(-1.0);
    // ln(e^a + e^b) = a + ln(1 + e^(b - a))
    let all = logits.iter().copied().reduce(|a, b| a + minus(b, a).softplus()).unwrap();
    minus(all, logits[0])
}

impl Goal {
    fn loss<T: Number>(&self, model: &Model, parameters: &[Vec<T>], samples: &Samples) -> T {
        let corrected = |logits: &[T], c: &[f32]| -> Vec<T> {
            let known = zip(logits, c).filter(|(_, c)| c.is_finite());
            known.map(|(&z, &c)| z + T::from(-f64::from(c))).collect()
        };
        let logits = model.logits(parameters, samples);
        match self {
            Self::Labels | Self::Weighted(_) => {
                let labelled = zip(&logits, &samples.labels).enumerate();
                let losses = labelled.map(|(at, (z, &label))| {
                    let weight = match self {
                        Self::Weighted(weights) => f64::from(weights[at]),
                        _ => 1.0,
                    };
                    (z.softplus() + *z * T::from(-f64::from(label))) * T::from(weight)
                });
                mean(&losses.collect::<Vec<_>>())
            }
            Self::Bpr(group) => {
                let losses = logits.chunks(*group).flat_map(|z| {
                    z[1..].iter().map(|&other| (other + z[0] * T::from(-1.0)).softplus())
                });
                mean(&losses.collect::<Vec<_>>())
            }
            Self::Softmax(group, c) => {
                let groups = zip(logits.chunks(*group), c.chunks(*group));
                let losses = groups.map(|(z, c)| softmax_loss(&corrected(z, c)));
                mean(&losses.collect::<Vec<_>>())
            }
            Self::InBatch(ids, c) => {
                // Each context with each item, as samples of their own.
                let count = ids.len();
                let losses = (0..count).map(|context| {
                    let others = (0..count).filter(|&other| ids[other] != ids[context]);
                    let items: Vec<usize> = [context].into_iter().chain(others).collect();
                    let mut pairs = Samples {
                        dense: vec![],
                        labels: vec![0.0; items.len()],
                        bags: vec![(vec![], vec![0], vec![]); 2],
                    };
                    for &item in &items {
                        let chosen = zip(&mut pairs.bags, zip(&samples.bags, [context, item]));
                        for (to, (from, at)) in chosen {
                            let bag = from.1[at] as usize..from.1[at + 1] as usize;
                            to.0.extend_from_slice(&from.0[bag.clone()]);
                            to.2.extend_from_slice(&from.2[bag]);
                            to.1.push(to.0.len() as u32);
                        }
                    }
                    let c: Vec<f32> = items.iter().map(|&item| c[item]).collect();
                    softmax_loss(&corrected(&model.logits(parameters, &pairs), &c))
                });
                mean(&losses.collect::<Vec<_>>())
            }
        }
    }

    fn objective<'g>(&'g self, samples: &'g Samples) -> Objective<'g> {
        let labels = &samples.labels[..];
        match self {
            Self::Labels => Objective::CrossEntropy { labels, weights: &[] },
            Self::Weighted(weights) => Objective::CrossEntropy { labels, weights },
            &Self::Bpr(group) => Objective::Bpr { group },
            Self::Softmax(group, c) => Objective::Softmax { group: *group, log_frequencies: c },
            Self::InBatch(ids, c) => Objective::InBatch { ids, log_frequencies: c },
        }
    }
}

fn real(rng: &mut Rng) -> f32 {
    rng.below(1 << 20) as f32 / (1 << 19) as f32 - 1.0
}

/// All parameters, in the order of [`Model`]; after a tensor train's cores the rows of its cache.
fn values(model: &Dlrm) -> Vec<Vec<f32>> {
    let layers = model
        .layers()
        .flat_map(|(_, layer)| layer.parameters())
        .map(|(_, parameters)| parameters);
    let tables = model.tables().iter().flat_map(|table| table.parameters());
    layers.chain(tables).map(|parameters| parameters.values().to_vec()).collect()
}

fn bits(xs: &[f32]) -> Vec<u32> {
    xs.iter().map(|x| x.to_bits()).collect()
}

/// With every kind of table and pooling, with and without dense features, deep and as shallow as it
/// gets.
fn models() -> Vec<Model> {
    use Mode::{Mean, Sum, Weighted};
    let tt = |rows| Table::Tt {
        p: vec![3, 2, 4],
        q: vec![1, 2, 2],
        ranks: vec![2, 3],
        rows,
        cache: None,
    };
    let two = |rows| Table::Tt { p: vec![4, 3], q: vec![2, 2], ranks: vec![2], rows, cache: None };
    let qr = |combine| {
        let columns = if combine == Combine::Concat { [1, 3] } else { [4, 4] };
        Table::QuotientRemainder { rows: 11, remainders: 4, columns, combine }
    };
    let hashed = |table: Table| Table::Hashed { table: Box::new(table), indices: 40 };
    let all = vec![
        (Table::Dense { rows: 9 }, Sum),
        (tt(22), Mean),
        (hashed(two(11)), Weighted),
        (qr(Combine::Mult), Weighted),
        (qr(Combine::Add), Mean),
        (qr(Combine::Concat), Sum),
        (hashed(Table::Dense { rows: 7 }), Mean),
    ];
    let of_one = |mode| vec![(tt(24), mode), (qr(Combine::Mult), mode)];
    let model = |dense_dim, bottom: &[usize], top: &[usize], tables, sharing: &[_]| Model {
        dense_dim,
        dim: 4,
        bottom: bottom.to_vec(),
        top: top.to_vec(),
        tables,
        sharing: sharing.to_vec(),
    };
    let sharing = [(2, Mean), (0, Weighted), (2, Sum), (6, Sum)];
    vec![
        model(3, &[5, 4], &[6, 3, 1], all.clone(), &sharing),
        model(0, &[], &[5, 1], all, &[]),
        model(2, &[4], &[1], of_one(Sum), &[]),
        model(2, &[4], &[2, 1], of_one(Mean), &[(1, Mean)]),
        model(0, &[], &[], of_one(Weighted), &[]),
        model(0, &[], &[], vec![(tt(24), Mean)], &[(0, Sum)]),
        model(3, &[4], &[3, 1], vec![], &[]),
    ]
}

// Gradients.

#[test]
fn gradients_of_every_parameter_agree_with_central_differences() {
    let compared = (0..2).flat_map(|seed| models().into_iter().map(move |model| (seed, model)));
    let compared = compared.map(|(seed, model)| {
        let mut rng = Rng::new(seed);
        let samples = Samples::draw(&mut rng, &model, 13);
        assert_gradients(&model, &Goal::Labels, 0.0, &samples, &mut rng)
    });
    assert!(compared.sum::<u32>() > 2000);
}

#[test]
fn gradients_of_every_objective_agree_with_central_differences() {
    let mut compared = 0;
    for (at, model) in models().into_iter().enumerate().filter(|(at, _)| [0, 3, 4, 5].contains(at))
    {
        let mut rng = Rng::new(at as u64);
        let samples = Samples::draw(&mut rng, &model, 12);
        let weights = (0..12).map(|at| [0.0, 2.5, 0.25][at % 3]).collect();
        let mut c: Vec<f32> = (0..12).map(|_| real(&mut rng)).collect();
        let ids = vec![7, 3, 7, 1, 0, 4, 3, 3, 9, 8, 2, 5];
        let mut goals = vec![
            (Goal::Labels, 0.3),
            (Goal::Weighted(weights), 0.0),
            (Goal::Bpr(2), 0.1),
            (Goal::Bpr(4), 0.0),
            (Goal::Softmax(3, c.clone()), 0.2),
        ];
        if at >= 4 {
            goals.extend([0.0, 0.5].map(|l2| (Goal::InBatch(ids.clone(), c.clone()), l2)));
        }
        [1, 6, 7].iter().for_each(|&hidden: &usize| c[hidden] = f32::INFINITY);
        goals.push((Goal::Softmax(4, c), 0.0));
        for (goal, l2) in goals {
            compared += assert_gradients(&model, &goal, l2, &samples, &mut rng);
        }
    }
    assert!(compared > 2000, "{compared}");
}

/// Compares the gradients of a model, and returns how many are not 0.
#[track_caller]
fn assert_gradients(model: &Model, goal: &Goal, l2: f64, samples: &Samples, rng: &mut Rng) -> u32 {
    const STEP: f64 = 1e-5;
    fn total<T: Number>(
        (model, goal, l2): (&Model, &Goal, f64),
        parameters: &[Vec<T>],
        samples: &Samples,
    ) -> T {
        let loss = goal.loss(model, parameters, samples);
        loss + model.half_squares(parameters, samples) * T::from(l2)
    }
    let mut compared = 0;
    {
        let what = (model, goal, l2);
        let parameters = model.draw(rng);
        let wide: Vec<Vec<f64>> =
            parameters.iter().map(|xs| xs.iter().map(|&x| x.into()).collect()).collect();
        let duals: Vec<Vec<Dual>> =
            wide.iter().map(|xs| xs.iter().map(|&x| x.into()).collect()).collect();
        let derivative = |list: usize, at: usize| {
            let mut duals = duals.clone();
            duals[list][at].1 = 1.0;
            total(what, &duals, samples).1
        };
        let expected: Vec<Vec<f64>> = wide
            .iter()
            .enumerate()
            .map(|(k, xs)| (0..xs.len()).map(|at| derivative(k, at)).collect())
            .collect();
        let largest = expected.iter().flatten().fold(0.0, |max: f64, g| max.max(g.abs()));

        // The oracle against differences of its loss, of the fourth order.
        for (list, expected) in expected.iter().enumerate() {
            for (at, &expected) in expected.iter().enumerate() {
                let moved = |by: f64| {
                    let mut moved = wide.clone();
                    moved[list][at] += by * STEP;
                    total(what, &moved, samples)
                };
                let difference =
                    (8.0 * (moved(1.0) - moved(-1.0)) - (moved(2.0) - moved(-2.0))) / (12.0 * STEP);
                // The last: the loss is rounded, and divided by the step.
                let bound = 1e-6 * expected.abs() + 1e-9 * largest + 1e-10;
                assert!(
                    (difference - expected).abs() <= bound,
                    "{list} {at}: {difference}, {expected}, {model:?}"
                );
            }
        }

        // The crate against the oracle: a step of SGD with rate 1 is the gradient.
        for tier in tiers::available() {
            let mut learned = model.build(&parameters, Optimizer::Sgd, tier);
            let regularization = Regularization { l2, ..Regularization::default() };
            learned = learned.with_regularization(regularization).unwrap();
            let bags = samples.bags(model);
            let batch = Batch { dense: &samples.dense, bags: &bags };
            let mut logits = vec![f32::NAN; samples.labels.len()];
            learned.logits(&batch, &mut logits).unwrap();
            for (found, expected) in zip(logits, model.logits(&wide, samples)) {
                assert!(
                    (f64::from(found) - expected).abs() <= 1e-5 * expected.abs().max(1.0),
                    "{found} {expected}"
                );
            }
            let loss = learned.minimize(&batch, &goal.objective(samples), 1.0.into()).unwrap();
            let expected_loss = goal.loss(model, &wide, samples);
            assert!((loss - expected_loss).abs() < 1e-5, "{goal:?}: {loss} {expected_loss}");
            for (list, (before, after)) in zip(&parameters, values(&learned)).enumerate() {
                for (at, (before, after)) in zip(before, after).enumerate() {
                    let (found, expected) =
                        (f64::from(*before) - f64::from(after), expected[list][at]);
                    // The last: what it moved from and to is rounded.
                    let rounded = f64::from(f32::EPSILON) * f64::from(before.abs());
                    let bound = 1e-3 * expected.abs() + 1e-6 * largest + rounded;
                    assert!(
                        (found - expected).abs() <= bound,
                        "{tier:?} {goal:?} {list} {at}: {found} {expected} {model:?}"
                    );
                    compared += u32::from(expected != 0.0);
                }
            }
        }
    }
    compared
}

/// The parameters after one step of SGD with rate 0.5.
fn after_a_step(
    model: &Model,
    parameters: &[Vec<f32>],
    samples: &Samples,
    regularization: Regularization,
) -> Vec<Vec<f32>> {
    let learned = model.build(parameters, Optimizer::Sgd, Tier::best());
    let mut learned = learned.with_regularization(regularization).unwrap();
    let bags = samples.bags(model);
    learned
        .step(&Batch { dense: &samples.dense, bags: &bags }, &samples.labels, 0.5)
        .unwrap();
    values(&learned)
}

#[test]
fn long_gradients_are_shortened_and_only_weights_of_layers_decay() {
    let model = models().remove(0);
    let mut rng = Rng::new(1);
    let (samples, parameters) = (Samples::draw(&mut rng, &model, 13), model.draw(&mut rng));
    let none = Regularization::default();
    let plain = after_a_step(&model, &parameters, &samples, none);
    // Every slice moves by half its gradient.
    let learned = model.build(&parameters, Optimizer::Sgd, Tier::best());
    let layers = learned.layers().flat_map(|(_, layer)| layer.parameters().map(|(_, p)| p));
    let tables = learned.tables().iter().flat_map(|table| table.parameters());
    let slice_lens: Vec<usize> = layers.chain(tables).map(|p| p.slice_len()).collect();
    let clip_norm = 0.01;
    let clipped = after_a_step(&model, &parameters, &samples, Regularization { clip_norm, ..none });
    let (mut long, mut short) = (0, 0);
    for (at, len) in slice_lens.iter().enumerate() {
        let slices = zip(plain[at].chunks(*len), clipped[at].chunks(*len));
        for ((plain, clipped), before) in slices.zip(parameters[at].chunks(*len)) {
            let moved = |after: &[f32]| -> Vec<f64> {
                zip(before, after).map(|(&a, &b)| 2.0 * (f64::from(a) - f64::from(b))).collect()
            };
            let (gradient, found) = (moved(plain), moved(clipped));
            let norm = gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
            let scale = (clip_norm / norm).min(1.0);
            let counter = if scale < 1.0 { &mut long } else { &mut short };
            *counter += u32::from(norm > 0.0);
            for (found, g) in zip(found, gradient) {
                assert!((found - g * scale).abs() < 1e-6, "{at}: {found} {g} {scale}");
            }
        }
    }
    assert!(long > 5 && short > 5, "{long} {short}");

    let weight_decay = 0.1;
    let decayed =
        after_a_step(&model, &parameters, &samples, Regularization { weight_decay, ..none });
    for (at, before) in parameters.iter().enumerate() {
        // The lists of layers are weights and biases in turn.
        let is_weight = at < 2 * (model.bottom.len() + model.top.len()) && at % 2 == 0;
        let decay = if is_weight { 0.05 } else { 0.0 };
        for ((plain, found), before) in zip(&plain[at], &decayed[at]).zip(before) {
            assert!((found - (plain - decay * before)).abs() < 1e-6, "{at}: {found} {plain}");
        }
    }
}

/// A layer whose outputs are all 1, so that the next layer's gradient shows what was dropped.
#[test]
fn dropout_drops_its_share_and_scales_the_rest() {
    const WIDTH: usize = 4000;
    let model = Model {
        dense_dim: 1,
        dim: 1,
        bottom: vec![WIDTH, 1],
        top: vec![1],
        tables: vec![],
        sharing: vec![],
    };
    let mut parameters: Vec<Vec<f32>> = model.lens().iter().map(|&len| vec![0.0; len]).collect();
    let mut rng = Rng::new(3);
    parameters[1].fill(1.0);
    parameters[2].fill_with(|| (real(&mut rng) + 1.5) / WIDTH as f32);
    parameters[4].fill(1.0);
    let samples = Samples { dense: vec![0.5], labels: vec![0.0], bags: vec![] };
    let batch = Batch { dense: &samples.dense, bags: &[] };
    let dropout = |dropout| Regularization { dropout, ..Regularization::default() };
    let mut seen = Vec::new();
    for share in [0.25, 0.5] {
        let learned = model.build(&parameters, Optimizer::Sgd, Tier::best());
        let mut learned = learned.with_regularization(dropout(share)).unwrap();
        for step in 0..2 {
            learned.set_steps(step);
            let lists =
                zip(learned.layers_mut().flat_map(|(_, l)| l.parameters_mut()), &parameters);
            lists.for_each(|((_, to), from)| to.values_mut().copy_from_slice(from));
            let loss = learned.step(&batch, &samples.labels, 1.0).unwrap();
            let after = values(&learned);
            let moved = |list: usize, at: usize| parameters[list][at] - after[list][at];
            let kept: Vec<bool> = (0..WIDTH).map(|at| moved(2, at) != 0.0).collect();
            let count = kept.iter().filter(|kept| **kept).count() as f64 / WIDTH as f64;
            assert!((count - (1.0 - share)).abs() < 0.03, "{count} of {share}");
            let scale = 1.0 / (1.0 - share);
            let weights = zip(&parameters[2], &kept).filter(|(_, kept)| **kept);
            let logit = weights.map(|(&w, _)| f64::from(w)).sum::<f64>() * scale;
            assert!((loss - logit.softplus()).abs() < 1e-5, "{loss} {logit}");
            let d = 1.0 / (1.0 + (-logit).exp());
            for (at, kept) in kept.iter().enumerate() {
                let kept = f64::from(u8::from(*kept));
                let of_bias = d * f64::from(parameters[2][at]) * scale * kept;
                assert!((f64::from(moved(2, at)) - d * scale * kept).abs() < 1e-5);
                assert!((f64::from(moved(1, at)) - of_bias).abs() < 1e-6);
            }
            seen.push(kept);
            // Predictions drop nothing.
            let mut logits = [0.0];
            learned.logits(&batch, &mut logits).unwrap();
            let mut again = model.build(&after, Optimizer::Sgd, Tier::best());
            let mut expected = [1.0];
            again.logits(&batch, &mut expected).unwrap();
            assert_eq!(logits, expected);
        }
    }
    // Each step drops others.
    assert!(seen[0] != seen[1] && seen[2] != seen[3]);
}

// PyTorch.

#[test]
fn two_steps_agree_with_pytorch() {
    let text = include_str!("../golden/train/dlrm.txt");
    let lines: BTreeMap<&str, Vec<&str>> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            line.split_once(' ')
                .map_or((line, vec![]), |(name, values)| (name, values.split(' ').collect()))
        })
        .collect();
    let floats =
        |name: &str| -> Vec<f32> { lines[name].iter().map(|x| x.parse().unwrap()).collect() };
    let integers =
        |name: &str| -> Vec<u32> { lines[name].iter().map(|x| x.parse().unwrap()).collect() };
    // As `make_dlrm.py` has it.
    let model = Model {
        dense_dim: 3,
        dim: 4,
        bottom: vec![6, 4],
        top: vec![5, 1],
        tables: vec![
            (
                Table::Tt {
                    p: vec![3, 2, 4],
                    q: vec![1, 2, 2],
                    ranks: vec![2, 3],
                    rows: 22,
                    cache: None,
                },
                Mode::Sum,
            ),
            (Table::Dense { rows: 9 }, Mode::Mean),
            (
                Table::QuotientRemainder {
                    rows: 11,
                    remainders: 4,
                    columns: [4, 4],
                    combine: Combine::Mult,
                },
                Mode::Weighted,
            ),
        ],
        sharing: vec![],
    };
    let lists = |when: &str| -> Vec<Vec<f32>> {
        (0..model.lens().len()).map(|list| floats(&format!("{when}.{list}"))).collect()
    };
    let before = lists("before");
    let rates = LearningRates { layers: 0.05, tables: 0.2 };
    for (name, optimizer) in [
        ("sgd", Optimizer::Sgd),
        ("adagrad", Optimizer::ADAGRAD),
        ("row_wise_adagrad", Optimizer::RowWiseAdagrad { epsilon: 1e-10 }),
        ("adam", Optimizer::ADAM),
    ] {
        for tier in tiers::available() {
            let mut learned = model.build(&before, optimizer, tier);
            for step in 0..2 {
                let bags = (0..3).map(|table| {
                    let [indices, offsets] =
                        ["indices", "offsets"].map(|of| integers(&format!("{of}.{step}.{table}")));
                    (indices, offsets, floats(&format!("weights.{step}.{table}")))
                });
                let bags = bags.collect();
                let (dense, labels) =
                    (floats(&format!("dense.{step}")), floats(&format!("labels.{step}")));
                let samples = Samples { dense, labels, bags };
                let bags = samples.bags(&model);
                let batch = Batch { dense: &samples.dense, bags: &bags };
                let loss = learned.step(&batch, &samples.labels, rates).unwrap();
                let expected = f64::from(floats(&format!("loss.{name}"))[step]);
                assert!(
                    (loss - expected).abs() < 2e-6 * expected.max(1.0),
                    "{name} {tier:?}: {loss} {expected}"
                );
            }
            for (list, (found, expected)) in zip(values(&learned), lists(name)).enumerate() {
                for (at, (found, expected)) in zip(found, expected).enumerate() {
                    let error = (found - expected).abs();
                    assert!(
                        error <= 1e-5 * expected.abs().max(1.0),
                        "{name} {tier:?} {list} {at}: {found} {expected}"
                    );
                }
            }
        }
    }
}

// Promises.

/// A model whose batches are large enough to be divided everywhere.
fn large() -> (Model, Vec<Samples>) {
    let cache = Some(CacheSpec { rows: 64, warm_up: 2, refresh: 3 });
    let model = Model {
        dense_dim: 5,
        dim: 8,
        bottom: vec![70, 8],
        top: vec![40, 33, 1],
        tables: vec![
            (
                Table::Tt {
                    p: vec![9, 8, 7],
                    q: vec![2, 2, 2],
                    ranks: vec![8, 5],
                    rows: 500,
                    cache,
                },
                Mode::Sum,
            ),
            (Table::Dense { rows: 300 }, Mode::Mean),
            (
                Table::QuotientRemainder {
                    rows: 99,
                    remainders: 10,
                    columns: [8, 8],
                    combine: Combine::Mult,
                },
                Mode::Weighted,
            ),
        ],
        sharing: vec![(1, Mode::Sum), (0, Mode::Mean), (1, Mode::Weighted)],
    };
    let samples = [1500, 1, 40, 333].iter().enumerate();
    let samples = samples
        .map(|(seed, &count)| Samples::draw(&mut Rng::new(seed as u64), &model, count))
        .collect();
    (model, samples)
}

/// Something of everything.
const REGULARIZED: Regularization =
    Regularization { l2: 0.01, weight_decay: 0.01, clip_norm: 0.05, dropout: 0.2 };

fn train(learned: &mut Dlrm, model: &Model, samples: &[Samples]) -> Vec<u64> {
    let step = |samples: &Samples| {
        let bags = samples.bags(model);
        let loss =
            learned.step(&Batch { dense: &samples.dense, bags: &bags }, &samples.labels, 0.1);
        loss.unwrap().to_bits()
    };
    samples.iter().map(step).collect()
}

const OPTIMIZERS: [Optimizer; 4] =
    [Optimizer::Sgd, Optimizer::ADAGRAD, Optimizer::ROW_WISE_ADAGRAD, Optimizer::ADAM];

#[test]
fn a_step_has_the_same_bits_on_any_number_of_threads() {
    let (model, samples) = large();
    for optimizer in OPTIMIZERS {
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let learned = model.build(&model.draw(&mut Rng::new(1)), optimizer, Tier::best());
            let mut learned = learned.with_regularization(REGULARIZED).unwrap();
            let losses = pool.install(|| train(&mut learned, &model, &samples));
            (losses, bits(&values(&learned).concat()))
        };
        let alone = run(1);
        for threads in [2, 3, 8] {
            assert!(run(threads) == alone, "{optimizer:?}, {threads} threads");
        }
    }
}

#[test]
fn a_step_over_the_items_of_a_batch_has_the_same_bits_on_any_number_of_threads() {
    let own =
        vec![(Table::Dense { rows: 300 }, Mode::Mean), (Table::Dense { rows: 90 }, Mode::Sum)];
    let one = vec![(Table::Dense { rows: 90 }, Mode::Mean)];
    for (tables, sharing) in [(own, vec![]), (one, vec![(0, Mode::Sum)])] {
        let (bottom, top) = (vec![], vec![]);
        steps_over_a_batch(&Model { dense_dim: 0, dim: 8, bottom, top, tables, sharing });
    }
}

/// Steps have the same bits on any number of threads.
fn steps_over_a_batch(model: &Model) {
    let samples = Samples::draw(&mut Rng::new(1), model, 333);
    let ids: Vec<u32> = (0..333).map(|at| at * 7 % 90).collect();
    let goal = Goal::InBatch(ids, (0..333).map(|at| at as f32 / -50.0).collect());
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let learned = model.build(&model.draw(&mut Rng::new(1)), Optimizer::ADAM, Tier::best());
        let mut learned = learned.with_regularization(REGULARIZED).unwrap();
        let bags = samples.bags(model);
        let batch = Batch { dense: &[], bags: &bags };
        let losses: Vec<u64> = (0..3)
            .map(|_| {
                let step = || learned.minimize(&batch, &goal.objective(&samples), 0.1.into());
                pool.install(step).unwrap().to_bits()
            })
            .collect();
        (losses, bits(&values(&learned).concat()))
    };
    let alone = run(1);
    assert!(alone.0[2] < alone.0[0]);
    for threads in [2, 3, 8] {
        assert!(run(threads) == alone, "{threads} threads");
    }
}

#[test]
fn what_is_restored_goes_on_to_the_bit() {
    let (model, samples) = large();
    for optimizer in OPTIMIZERS {
        let new = |seed| {
            let model = model.build(&model.draw(&mut Rng::new(seed)), optimizer, Tier::best());
            model.with_regularization(REGULARIZED).unwrap()
        };
        let (mut learned, mut restored) = (new(1), new(2));
        train(&mut learned, &model, &samples);
        let layers = zip(restored.layers_mut(), learned.layers());
        let layers = layers.flat_map(|((to_name, to), (name, from))| {
            assert_eq!(to_name, name);
            zip(to.parameters_mut(), from.parameters()).map(|((_, to), (_, from))| (to, from))
        });
        layers.for_each(|(to, from)| restore(to, from));
        restored.set_steps(learned.steps());
        for (to, from) in zip(restored.tables_mut(), learned.tables()) {
            zip(to.parameters_mut(), from.parameters()).for_each(|(to, from)| restore(to, from));
            to.set_steps(from.steps());
            to.set_counters(&from.counters()).unwrap();
        }
        assert_eq!(
            train(&mut learned, &model, &samples),
            train(&mut restored, &model, &samples),
            "{optimizer:?}"
        );
        assert_eq!(
            bits(&values(&learned).concat()),
            bits(&values(&restored).concat()),
            "{optimizer:?}"
        );
    }
}

#[test]
fn a_blob_of_learned_tables_gives_the_same_rows_to_the_bit() {
    let (mut rng, model) = (Rng::new(3), models().remove(0));
    let mut learned = model.build(&model.draw(&mut rng), Optimizer::ADAGRAD, Tier::best());
    train(&mut learned, &model, &[Samples::draw(&mut rng, &model, 30)]);
    let specs: Vec<TableSpec> = zip(learned.tables(), "abcdefg".chars())
        .map(|(table, name)| {
            let table = table.table();
            let (dtype, data) = (Dtype::F32, table.data());
            let weights = match data.weights() {
                Weights::Dense(rows) => WeightsSpec::Dense {
                    num_embeddings: data.num_rows(),
                    embedding_dim: rows.embedding_dim(),
                    dtype,
                },
                Weights::Tt(tt) => WeightsSpec::Tt { shape: *tt.shape(), dtype },
                Weights::QuotientRemainder(table) => WeightsSpec::QuotientRemainder {
                    num_embeddings: data.num_rows(),
                    num_remainders: table.num_remainders(),
                    columns: [
                        table.quotients().embedding_dim(),
                        table.remainders().embedding_dim(),
                    ],
                    combine: table.combine(),
                    dtype,
                },
                other => panic!("{other:?}"),
            };
            let index_map = match data.index_map() {
                IndexMap::Modulo => IndexMapSpec::Modulo { num_embeddings: table.num_embeddings() },
                _ => IndexMapSpec::Identity,
            };
            TableSpec { index_map, ..TableSpec::new(name, weights) }
        })
        .collect();
    let blob = Layout::new(&specs).unwrap().build(|section, out| {
        let part = match section.role {
            Role::Core(k) => k,
            Role::RemainderRows => 1,
            _ => 0,
        };
        let parameters = &learned.tables()[section.table].parameters()[part];
        dtype::encode(parameters.values(), Dtype::F32, out).unwrap();
    });
    let blob = Blob::parse(&blob).unwrap();
    let samples = Samples::draw(&mut rng, &model, 50);
    for (&ModelTable { table, pooling }, bags) in zip(learned.features(), samples.bags(&model)) {
        let (stored, table) = (blob.tables().nth(table).unwrap(), &learned.tables()[table]);
        let mut out = [[f32::NAN; 50 * 4]; 2];
        stored
            .pool(&bags, pooling, &mut out[0], &mut vec![0.0; stored.workspace_len(200)])
            .unwrap();
        table.forward(&bags, pooling, &mut out[1], &mut Vec::new()).unwrap();
        assert_eq!(bits(&out[0]), bits(&out[1]), "{}", stored.name());
        assert!(out[0].iter().any(|&x| x != 0.0));
        assert_eq!(stored.num_embeddings(), table.table().num_embeddings());
    }
}

fn restore(to: &mut ttrec::train::Parameters, from: &ttrec::train::Parameters) {
    assert_eq!(to.slice_len(), from.slice_len());
    to.values_mut().copy_from_slice(from.values());
    zip(to.state_mut(), from.state()).for_each(|(to, from)| to.copy_from_slice(from));
}

#[test]
fn layers_have_dlrms_names_shapes_and_first_weights() {
    let model = Model {
        dense_dim: 200,
        dim: 100,
        bottom: vec![300, 100],
        top: vec![250, 1],
        tables: vec![],
        sharing: vec![],
    };
    let learned = Dlrm::new(&model.spec(Optimizer::Sgd, Tier::best()), vec![], &[]).unwrap();
    let found: Vec<_> = learned
        .layers()
        .map(|(name, layer)| (name, layer.inputs(), layer.outputs(), layer.relu()))
        .collect();
    let expected = [
        ("bot_l.0", 200, 300, true),
        ("bot_l.2", 300, 100, true),
        ("top_l.0", 100, 250, true),
        ("top_l.2", 250, 1, false),
    ];
    assert_eq!(
        found,
        expected.map(|(name, inputs, outputs, relu)| (name.to_owned(), inputs, outputs, relu))
    );
    let mean_square =
        |xs: &[f32]| xs.iter().map(|x| f64::from(x * x)).sum::<f64>() / xs.len() as f64;
    let first = learned.layers().next().unwrap().1;
    assert!((mean_square(first.weights().values()) * 250.0 - 1.0).abs() < 0.03);
    assert!((mean_square(first.biases().values()) * 300.0 - 1.0).abs() < 0.25);
}

#[test]
fn a_model_learns_what_a_teacher_knows() {
    let (model, _) = large();
    let teacher: Vec<Vec<f64>> = model
        .draw(&mut Rng::new(5))
        .iter()
        .map(|xs| xs.iter().map(|&x| 2.0 * f64::from(x)).collect())
        .collect();
    let mut rng = Rng::new(6);
    for (optimizer, rate) in zip(OPTIMIZERS, [0.1, 0.05, 0.05, 0.01]) {
        let mut learned = model.build(&model.draw(&mut Rng::new(7)), optimizer, Tier::best());
        let mut losses = Vec::new();
        for _ in 0..300 {
            let mut samples = Samples::draw(&mut rng, &model, 100);
            let logits = model.logits(&teacher, &samples);
            zip(&mut samples.labels, logits)
                .for_each(|(label, z)| *label = f32::from(u8::from(z > 0.0)));
            let bags = samples.bags(&model);
            let batch = Batch { dense: &samples.dense, bags: &bags };
            losses.push(learned.step(&batch, &samples.labels, rate).unwrap());
        }
        let [first, last] =
            [&losses[..10], &losses[290..]].map(|losses| losses.iter().sum::<f64>() / 10.0);
        println!("{optimizer:?}: {first:.3} to {last:.3}");
        assert!(last < 0.75 * first, "{optimizer:?}: {first} to {last}");
    }
}

// Refusals.

fn dense(num_embeddings: u64, embedding_dim: usize) -> DenseShape {
    DenseShape { num_embeddings, embedding_dim }
}

#[test]
fn every_refusal_has_its_own_error_and_changes_nothing() {
    let table = |dim| -> Box<dyn Embedding> {
        let table = DenseTable::new(dense(5, dim), Initializer::Uniform, Optimizer::Sgd, 1);
        Box::new(table.unwrap())
    };
    let new = |dense_dim, bottom: &[usize], top: &[usize], features: Vec<_>| {
        let (bottom, top) = (bottom.to_vec(), top.to_vec());
        let (tables, sharing) = (vec![], vec![]);
        let model = Model { dense_dim, dim: 0, bottom, top, tables, sharing };
        let of_each: Vec<_> = (0..features.len()).map(ModelTable::from).collect();
        Dlrm::new(&model.spec(Optimizer::ADAM, Tier::best()), features, &of_each)
    };
    let refused = |dense_dim, bottom: &[usize], top: &[usize], features| {
        new(dense_dim, bottom, top, features).map(|_| ()).unwrap_err()
    };
    assert_eq!(refused(0, &[], &[1], vec![]), TrainError::Unsupported(Unsupported::NoFeatures));
    assert_eq!(
        refused(0, &[4], &[1], vec![table(4)]),
        TrainError::Unsupported(Unsupported::BottomMlp { dense_dim: 0, layers: 1 })
    );
    assert_eq!(
        refused(3, &[], &[1], vec![table(4)]),
        TrainError::Unsupported(Unsupported::BottomMlp { dense_dim: 3, layers: 0 })
    );
    let count = |of, found, expected| TrainError::Count { of, found, expected };
    let other_dim = |table, found| count(Quantity::Columns(table), found, 4);
    assert_eq!(refused(3, &[4], &[1], vec![table(4), table(5)]), other_dim(1, 5));
    assert_eq!(refused(0, &[], &[1], vec![table(4), table(5)]), other_dim(1, 5));
    assert_eq!(refused(3, &[4], &[2], vec![table(4)]), count(Quantity::Outputs, 2, 1));
    assert_eq!(refused(3, &[4], &[], vec![table(4)]), count(Quantity::Outputs, 5, 1));
    let layer_len = |found| TrainError::Limit { of: Quantity::LayerWidth, found, limit: 1 << 16 };
    assert_eq!(refused(3, &[0, 4], &[1], vec![table(4)]), layer_len(0));
    assert_eq!(refused(1 << 17, &[4], &[1], vec![table(4)]), layer_len(1 << 17));
    // One vector, which has nothing to interact with.
    let lonely = TrainError::Unsupported(Unsupported::NoInteraction);
    assert_eq!(refused(0, &[], &[1], vec![table(4)]), lonely);
    assert_eq!(refused(0, &[], &[], vec![table(4)]), lonely);
    let refused_features = |dense_dim, features: &[ModelTable]| {
        let (bottom, top) = (if dense_dim > 0 { vec![4] } else { vec![] }, vec![1]);
        let spec = DlrmSpec {
            dense_dim,
            bottom,
            top,
            optimizer: Optimizer::Sgd,
            seed: 1,
            tier: Tier::best(),
        };
        Dlrm::new(&spec, vec![table(4), table(4)], features).map(|_| ()).unwrap_err()
    };
    let max = ModelTable { table: 0, pooling: Pooling::Max };
    let no_max = TrainError::Unsupported(Unsupported::MaxPooling);
    assert_eq!(refused_features(3, &[max]), no_max);
    let no_table = TrainError::NoTable { feature: 1, table: 2, num_tables: 2 };
    assert_eq!(refused_features(3, &[1.into(), 2.into()]), no_table);
    assert_eq!(refused_features(0, &[1.into()]), lonely);
    assert_eq!(refused_features(0, &[]), TrainError::Unsupported(Unsupported::NoFeatures));

    let hashed = |rows: u64, indices| {
        let table =
            DenseTable::new(dense(rows, 4), Initializer::Uniform, Optimizer::Sgd, 1).unwrap();
        HashedTable::new(Box::new(table), indices)
    };
    let not_hashable = |num_rows, num_embeddings| {
        TrainError::Unsupported(Unsupported::HashedRows { num_rows, num_embeddings })
    };
    assert_eq!(hashed(5, 4).map(|_| ()).unwrap_err(), not_hashable(5, 4));
    let twice = HashedTable::new(Box::new(hashed(5, 9).unwrap()), 20);
    assert_eq!(twice.map(|_| ()).unwrap_err(), not_hashable(5, 20));
    let parts = [vec![0.0; 12], vec![0.0; 15]];
    let shape = QuotientRemainderShape {
        num_embeddings: 11,
        num_remainders: 4,
        columns: [4, 4],
        combine: Combine::Add,
    };
    let parts = QuotientRemainderTable::from_parts(shape, parts, Optimizer::Sgd);
    assert_eq!(parts.map(|_| ()).unwrap_err(), count(Quantity::Values(1), 15, 16));

    let mut model = new(2, &[4], &[3, 1], vec![table(4), table(4)]).unwrap();
    let before = values(&model);
    let good = Bags::new(&[1u32, 4], &[0, 2]).unwrap();
    let outside = Bags::new(&[1u32, 5], &[0, 2]).unwrap();
    let two = Bags::new(&[1u32, 4], &[0, 1, 2]).unwrap();
    let mut step = |dense: &[f32], bags: &[Bags<'_>], labels: &[f32]| {
        model.step(&Batch { dense, bags }, labels, 0.1).unwrap_err()
    };
    let in_table = |table, error| TrainError::Table(PoolTablesError { table: Some(table), error });
    assert_eq!(step(&[0.0; 3], &[good, good], &[1.0]), count(Quantity::DenseFeatures, 3, 2));
    assert_eq!(
        step(&[0.0, f32::NAN], &[good, good], &[1.0]),
        TrainError::DenseFeature { position: 1 }
    );
    assert_eq!(step(&[0.0; 2], &[good], &[1.0]), count(Quantity::BagLists, 1, 2));
    let num_bags = LookupError::NumBags { found: 2, expected: 1 };
    assert_eq!(step(&[0.0; 2], &[good, two], &[1.0]), in_table(1, num_bags));
    let out_of_range = LookupError::IndexOutOfRange { position: 1, index: 5, num_embeddings: 5 };
    assert_eq!(step(&[0.0; 2], &[good, outside], &[1.0]), in_table(1, out_of_range));
    for label in [-0.1, 1.5, f32::NAN] {
        assert_eq!(step(&[0.0; 2], &[good, good], &[label]), TrainError::Label { sample: 0 });
    }
    for rate in [-0.1, f64::NAN, f64::INFINITY] {
        let batch = Batch { dense: &[0.0; 2], bags: &[good, good] };
        for rates in [
            LearningRates { layers: rate, tables: 0.1 },
            LearningRates { layers: 0.1, tables: rate },
        ] {
            assert_eq!(model.step(&batch, &[1.0], rates), Err(TrainError::LearningRate));
        }
    }
    let batch = Batch { dense: &[0.0; 4], bags: &[two, two] };
    let mut minimize = |objective: Objective<'_>| {
        model.minimize(&batch, &objective, LearningRates::from(0.1)).unwrap_err()
    };
    fn weights(weights: &[f32]) -> Objective<'_> {
        Objective::CrossEntropy { labels: &[1.0, 0.0], weights }
    }
    assert_eq!(minimize(weights(&[1.0])), count(Quantity::Weights, 1, 2));
    for weight in [-1.0, f32::NAN, f32::INFINITY] {
        assert_eq!(minimize(weights(&[1.0, weight])), TrainError::Weight { sample: 1 });
    }
    for group in [0, 1] {
        let wrong = TrainError::Unsupported(Unsupported::Group { group });
        assert_eq!(minimize(Objective::Bpr { group }), wrong);
        assert_eq!(minimize(Objective::Softmax { group, log_frequencies: &[] }), wrong);
    }
    assert_eq!(minimize(Objective::Bpr { group: 3 }), count(Quantity::Samples, 2, 3));
    fn softmax(log_frequencies: &[f32]) -> Objective<'_> {
        Objective::Softmax { group: 2, log_frequencies }
    }
    assert_eq!(minimize(softmax(&[0.0; 3])), count(Quantity::LogFrequencies, 3, 2));
    let infinite = f32::INFINITY;
    for (wrong, sample) in [([infinite, 0.0], 0), ([0.0, f32::NAN], 1), ([0.0, -infinite], 1)] {
        assert_eq!(minimize(softmax(&wrong)), TrainError::LogFrequency { sample });
    }
    let in_batch = Objective::InBatch { ids: &[1, 4], log_frequencies: &[] };
    assert_eq!(minimize(in_batch), TrainError::Unsupported(Unsupported::InBatch));
    let none = Regularization::default();
    for (field, wrong) in [
        ("l2", Regularization { l2: -1.0, ..none }),
        ("weight_decay", Regularization { weight_decay: f64::INFINITY, ..none }),
        ("clip_norm", Regularization { clip_norm: 0.0, ..none }),
        ("clip_norm", Regularization { clip_norm: f64::NAN, ..none }),
        ("dropout", Regularization { dropout: 1.0, ..none }),
    ] {
        let model = new(0, &[], &[], vec![table(4), table(4)]).unwrap();
        let error = model.with_regularization(wrong).map(|_| ()).unwrap_err();
        assert_eq!(error, TrainError::Regularization { field });
    }
    assert_eq!((values(&model), model.steps(), model.tables()[0].steps()), (before.clone(), 0, 0));

    // No samples are a step like any other.
    let none = Bags::new(&[], &[0u32]).unwrap();
    assert_eq!(model.step(&Batch { dense: &[], bags: &[none, none] }, &[], 0.1), Ok(0.0));
    assert_eq!((values(&model), model.steps()), (before, 1));
}
