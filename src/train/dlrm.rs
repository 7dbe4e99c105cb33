//! Trainable DLRMs: the whole model (Naumov et al., "Deep learning recommendation model for
//! personalization and recommendation systems", 2019; facebookresearch/dlrm).

use super::{
    Embedding, Linear, Objective, Optimizer, Quantity, Regularization, TrainError, Unsupported,
    features::{FeatureBuffers, Features},
    initializer::Draws,
    mlp::{Dropout, Mlp, seed_of_part},
    objective::in_batch,
    optimizer::Update,
};
use crate::{
    Bags, LookupError, Tier,
    blob::ModelTable,
    dtype::Elements,
    kernel::{
        Consistent, Dims, Epilogue, chain_step, dot_interaction, dot_interaction_workspace_len,
    },
};
use rayon::prelude::*;
use std::{boxed::Box, format, string::String, vec, vec::Vec};

/// Samples whose interaction one thread computes together.
const SAMPLES: usize = 32;

/// The parts of a [`Dlrm`] besides its tables.
#[derive(Clone, Debug)]
pub struct DlrmSpec {
    /// Dense features of a sample. With 0 there is no bottom MLP: only the tables' vectors
    /// interact.
    pub dense_dim: usize,
    /// Outputs of each layer of the bottom MLP; the last layer has `embedding_dim` outputs.
    pub bottom: Vec<usize>,
    /// Outputs of each layer of the top MLP; the last layer has 1 output, the logit. Without layers
    /// the logit is the dot product of two vectors (matrix factorisation).
    pub top: Vec<usize>,
    /// The optimiser of the layers. For them, [`Optimizer::RowWiseAdagrad`] is Adagrad, as in
    /// DLRM, and [`Optimizer::Adam`] is `torch.optim.Adam`, which adds its epsilon after the
    /// correction of bias.
    pub optimizer: Optimizer,
    /// The seed of the layers' first weights.
    pub seed: u64,
    /// The instructions of the layers and the interaction; each table has its own.
    pub tier: Tier,
}

/// Samples: their dense features, and their bags for each categorical feature.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'b> {
    /// Samples x `dense_dim`, row-major.
    pub dense: &'b [f32],
    /// One `Bags` for each categorical feature, with one bag for each sample.
    pub bags: &'b [Bags<'b>],
}

/// The learning rates of a step. A number converts into the same rate for both.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearningRates {
    /// The rate of the MLPs' layers.
    pub layers: f64,
    /// The rate of the tables.
    pub tables: f64,
}

impl From<f64> for LearningRates {
    fn from(rate: f64) -> Self {
        Self { layers: rate, tables: rate }
    }
}

/// A trainable DLRM, which predicts clicks. The bottom MLP turns the dense features of a sample
/// into a vector, and the tables turn its categorical features into one vector each. Features can
/// share a table. All vectors have `embedding_dim` elements. The interaction is the bottom MLP's
/// vector followed by the dot products of all pairs of vectors, (1,0), (2,0), (2,1), ... The top
/// MLP turns it into one logit. A step reduces the mean binary cross-entropy
/// (`torch.nn.BCEWithLogitsLoss`), or another [`Objective`].
///
/// A step has the same bits on any number of threads.
///
/// ```
/// use ttrec::{
///     Bags, Tier,
///     train::{Batch, DenseShape, DenseTable, Dlrm, DlrmSpec, Initializer, Optimizer},
/// };
///
/// let shape = DenseShape { num_embeddings: 100, embedding_dim: 4 };
/// let table = DenseTable::new(shape, Initializer::Uniform, Optimizer::Sgd, 1)?;
/// let spec = DlrmSpec {
///     dense_dim: 2,
///     bottom: vec![8, 4],
///     top: vec![8, 1],
///     optimizer: Optimizer::Sgd,
///     seed: 2,
///     tier: Tier::best(),
/// };
/// let mut model = Dlrm::new(&spec, vec![Box::new(table)], &[0.into()])?; // sums rows of table 0
/// let bags = [Bags::new(&[7u32, 42, 99], &[0, 2, 3])?];
/// let batch = Batch { dense: &[0.5, 1.0, -1.0, 0.0], bags: &bags };
/// let first = model.step(&batch, &[1.0, 0.0], 0.1)?;
/// for _ in 0..98 {
///     model.step(&batch, &[1.0, 0.0], 0.1)?;
/// }
/// assert!(model.step(&batch, &[1.0, 0.0], 0.1)? < first / 2.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Dlrm {
    dense_dim: usize,
    interaction: Interaction,
    bottom: Mlp,
    top: Mlp,
    features: Features,
    /// Steps that the layers have taken.
    steps: u64,
    optimizer: Optimizer,
    regularization: Regularization,
    seed: u64,
    tier: Tier,
    buffers: Buffers,
}

/// The sizes of the interaction.
#[derive(Clone, Copy)]
struct Interaction {
    /// Elements of a vector.
    dim: usize,
    /// `dim` if one of the vectors is the bottom MLP's, else 0.
    bottom_len: usize,
    /// Number of vectors of a sample.
    count: usize,
    /// Elements of the result: the bottom MLP's vector, and a dot product for each pair.
    width: usize,
}

impl Interaction {
    fn new(dim: usize, num_features: usize, has_bottom: bool) -> Self {
        let (count, bottom_len) = if has_bottom {
            (num_features + 1, dim)
        } else {
            (num_features, 0)
        };
        Self { dim, bottom_len, count, width: bottom_len + count * count.saturating_sub(1) / 2 }
    }
}

/// Memory that steps reuse.
#[derive(Default)]
struct Buffers {
    /// The vectors of each sample: samples x vectors x `embedding_dim`.
    vectors: Vec<f32>,
    /// The inputs of the top MLP: samples x `width`.
    interactions: Vec<f32>,
    d_vectors: Vec<f32>,
}

impl Dlrm {
    /// A model of the given tables, and of layers whose weights are drawn: the same values for the
    /// same seed. Each categorical feature has a table, by its position, and a pooling: sum or
    /// mean. Features of the same table share its rows, and all of them move it.
    ///
    /// # Errors
    /// [`TrainError::Unsupported`] for a model that cannot be trained; [`TrainError::NoTable`] for
    /// a feature of a table that is not there; [`Quantity::Columns`] for a table of another
    /// `embedding_dim`, [`Quantity::Outputs`] for a top MLP that does not end in one output, and
    /// [`Quantity::LayerWidth`].
    pub fn new(
        spec: &DlrmSpec,
        tables: Vec<Box<dyn Embedding>>,
        features: &[ModelTable],
    ) -> Result<Self, TrainError> {
        let DlrmSpec { dense_dim, bottom, top, optimizer, seed, tier } = spec;
        let dims = || tables.iter().map(|table| table.table().embedding_dim());
        if (*dense_dim == 0) != bottom.is_empty() {
            let (dense_dim, layers) = (*dense_dim, bottom.len());
            return Err(TrainError::Unsupported(Unsupported::BottomMlp { dense_dim, layers }));
        }
        let embedding_dim = bottom
            .last()
            .copied()
            .or_else(|| dims().next())
            .ok_or(TrainError::Unsupported(Unsupported::NoFeatures))?;
        for (table, dim) in dims().enumerate() {
            Quantity::Columns(table).check(dim, embedding_dim as u64)?;
        }
        let features = Features::new(tables, features)?;
        let interaction = Interaction::new(embedding_dim, features.len(), *dense_dim > 0);
        match (*dense_dim, features.len()) {
            (0, 0) => return Err(TrainError::Unsupported(Unsupported::NoFeatures)),
            (0, 1) => return Err(TrainError::Unsupported(Unsupported::NoInteraction)),
            _ => {}
        }
        Quantity::Outputs.check(top.last().copied().unwrap_or(interaction.width), 1)?;
        let mut draws = Draws::new(*seed);
        Ok(Self {
            dense_dim: *dense_dim,
            interaction,
            bottom: Mlp::new(*dense_dim, bottom, true, *optimizer, &mut draws)?,
            top: Mlp::new(interaction.width, top, false, *optimizer, &mut draws)?,
            features,
            steps: 0,
            optimizer: *optimizer,
            regularization: Regularization::default(),
            seed: *seed,
            tier: *tier,
            buffers: Buffers::default(),
        })
    }

    /// The same model, with steps that are regularised.
    ///
    /// # Errors
    /// [`TrainError::Regularization`] for a number that is out of range.
    pub fn with_regularization(
        mut self,
        regularization: Regularization,
    ) -> Result<Self, TrainError> {
        regularization.check()?;
        self.regularization = regularization;
        Ok(self)
    }

    /// Writes the logit of each sample to `out`, which has as many elements as the batch has
    /// samples. The sigmoid of a logit is the probability of a click.
    ///
    /// # Errors
    /// As [`step`](Self::step), except those of labels and learning rates.
    pub fn logits(&mut self, batch: &Batch<'_>, out: &mut [f32]) -> Result<(), TrainError> {
        self.check(batch, out.len())?;
        self.forward(batch, out.len(), 0.0).ok_or(LookupError::Inconsistent)?;
        out.copy_from_slice(self.top.outputs(&self.buffers.interactions));
        Ok(())
    }

    /// Takes one step of all optimisers, and returns the mean binary cross-entropy before it. Each
    /// sample has one label from 0 to 1 (1 for a click).
    ///
    /// # Errors
    /// As [`minimize`](Self::minimize).
    pub fn step(
        &mut self,
        batch: &Batch<'_>,
        labels: &[f32],
        learning_rates: impl Into<LearningRates>,
    ) -> Result<f64, TrainError> {
        let objective = Objective::CrossEntropy { labels, weights: &[] };
        self.minimize(batch, &objective, learning_rates.into())
    }

    /// Takes one step of all optimisers, and returns the loss before it.
    ///
    /// # Errors
    /// [`TrainError`] for another number of lists of bags, bags or dense features than the samples
    /// need, bags that do not suit their table, a dense feature that is not finite, an objective
    /// that does not suit the samples or the model, or a learning rate that is negative or not
    /// finite. Nothing has changed then.
    pub fn minimize(
        &mut self,
        batch: &Batch<'_>,
        objective: &Objective<'_>,
        rates: LearningRates,
    ) -> Result<f64, TrainError> {
        let samples = objective.num_samples(batch);
        objective.check(samples)?;
        if ![rates.layers, rates.tables]
            .iter()
            .all(|rate| (0.0..f64::INFINITY).contains(rate))
        {
            return Err(TrainError::LearningRate);
        }
        self.check(batch, samples)?;
        if let Objective::InBatch { ids, log_frequencies } = *objective {
            let is_product = self.dense_dim == 0 && self.top.layers.is_empty();
            if !is_product || self.features.len() != 2 {
                return Err(TrainError::Unsupported(Unsupported::InBatch));
            }
            return self
                .step_in_batch(batch, (ids, log_frequencies), rates.tables)
                .ok_or(LookupError::Inconsistent)?;
        }
        let Regularization { weight_decay, clip_norm, dropout, .. } = self.regularization;
        self.forward(batch, samples, dropout).ok_or(LookupError::Inconsistent)?;
        let (logits, gradient) = self.top.outputs_and_gradient(&self.buffers.interactions);
        let loss = objective.loss(logits, gradient);
        self.steps += 1;
        let update = self
            .optimizer
            .dense_update(self.tier, rates.layers, self.steps)
            .clipped(clip_norm)
            .keeping((1.0 - weight_decay * rates.layers) as f32);
        self.backward(batch, samples, rates.tables, &update)
            .ok_or(LookupError::Inconsistent)??;
        Ok(loss)
    }

    /// The layers of the bottom MLP, then those of the top MLP, with DLRM's names: `bot_l.0`,
    /// `bot_l.2`, .., `top_l.0`, .. (DLRM counts the ReLU after each layer).
    pub fn layers(&self) -> impl Iterator<Item = (String, &Linear)> {
        let name = |mlp: &'static str| move |(at, layer)| (layer_name(mlp, at), layer);
        let bottom = self.bottom.layers.iter().enumerate().map(name("bot_l"));
        bottom.chain(self.top.layers.iter().enumerate().map(name("top_l")))
    }

    /// As [`layers`](Self::layers), mutable, to restore them from a checkpoint.
    pub fn layers_mut(&mut self) -> impl Iterator<Item = (String, &mut Linear)> {
        let name = |mlp: &'static str| move |(at, layer)| (layer_name(mlp, at), layer);
        let bottom = self.bottom.layers.iter_mut().enumerate().map(name("bot_l"));
        bottom.chain(self.top.layers.iter_mut().enumerate().map(name("top_l")))
    }

    /// The tables, in the order given to [`new`](Self::new): DLRM's `emb_l.0`, `emb_l.1`, ..
    pub fn tables(&self) -> &[Box<dyn Embedding>] {
        &self.features.tables
    }

    /// As [`tables`](Self::tables), mutable, to restore them from a checkpoint, or to replace a
    /// table by one of as many columns.
    pub fn tables_mut(&mut self) -> &mut [Box<dyn Embedding>] {
        &mut self.features.tables
    }

    /// The table and the pooling of each categorical feature, in the order given to
    /// [`new`](Self::new).
    pub fn features(&self) -> &[ModelTable] {
        &self.features.list
    }

    /// Number of steps that the layers have taken, on which [`Optimizer::Adam`] depends. Each table
    /// counts its own.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Restores the number of steps.
    pub fn set_steps(&mut self, steps: u64) {
        self.steps = steps;
    }

    /// Refuses batches that do not suit the model.
    fn check(&self, batch: &Batch<'_>, samples: usize) -> Result<(), TrainError> {
        let expected = samples.saturating_mul(self.dense_dim) as u64;
        Quantity::DenseFeatures.check(batch.dense.len(), expected)?;
        if let Some(position) = batch.dense.iter().position(|x| !x.is_finite()) {
            return Err(TrainError::DenseFeature { position });
        }
        self.features.check(batch.bags, samples)
    }

    /// Computes the logits, which are then the outputs of the top MLP, with this share of hidden
    /// outputs dropped. `None` is a defect of this crate.
    fn forward(&mut self, batch: &Batch<'_>, samples: usize, dropout: f64) -> Consistent {
        let step = (dropout > 0.0).then(|| seed_of_part(self.seed, self.steps));
        let dropout =
            |mlp: u64| step.map(|seed| Dropout { share: dropout, seed: seed_of_part(seed, mlp) });
        let Self { interaction, bottom, top, features, tier, buffers, .. } = self;
        let (Interaction { dim, bottom_len, count, width }, tier) = (*interaction, *tier);
        let Buffers { vectors, interactions, .. } = buffers;
        let (bottom, (prepared, pooled)) = rayon::join(
            || {
                bottom.prepare(tier)?;
                bottom.forward(tier, batch.dense, samples, dropout(0))
            },
            || rayon::join(|| top.prepare(tier), || features.pool(batch.bags, samples * dim)),
        );
        prepared?;
        let (bottom, ()) = bottom.zip(pooled)?;

        vectors.resize(samples * count * dim, 0.0);
        interactions.resize(samples * width, 0.0);
        let chunks = vectors
            .par_chunks_mut(SAMPLES * count * dim)
            .zip(interactions.par_chunks_mut(SAMPLES * width));
        chunks.enumerate().try_for_each(|(chunk, (vectors, interactions))| {
            let mut workspace = vec![0.0; dot_interaction_workspace_len(count, dim)];
            let samples =
                vectors.chunks_exact_mut(count * dim).zip(interactions.chunks_exact_mut(width));
            for ((vectors, interactions), sample) in samples.zip(chunk * SAMPLES..) {
                let (first, pairs) = interactions.split_at_mut_checked(bottom_len)?;
                let rows = (bottom_len > 0).then_some(bottom).into_iter();
                let rows = rows.chain(features.vectors());
                for (to, rows) in vectors.chunks_exact_mut(dim).zip(rows) {
                    to.copy_from_slice(rows.get(sample * dim..)?.get(..dim)?);
                }
                first.copy_from_slice(vectors.get(..bottom_len)?);
                dot_interaction(tier, vectors, count, pairs, &mut workspace)?;
            }
            Some(())
        })?;
        top.forward(tier, interactions, samples, dropout(1)).map(|_| ())
    }

    /// One step towards [`Objective::InBatch`]. `None` is a defect of this crate.
    fn step_in_batch(
        &mut self,
        batch: &Batch<'_>,
        items: (&[u32], &[f32]),
        rate: f64,
    ) -> Option<Result<f64, TrainError>> {
        let Self { interaction: Interaction { dim, .. }, features, tier, .. } = self;
        let samples = items.0.len();
        features.pool(batch.bags, samples * *dim)?;
        let [contexts, others] = features.buffers_mut() else { return None };
        for FeatureBuffers { gradient, .. } in [&mut *contexts, &mut *others] {
            gradient.resize(samples * *dim, 0.0);
        }
        let vectors = [&contexts.pooled[..], &others.pooled];
        let gradients = [&mut contexts.gradient[..], &mut others.gradient];
        let loss = in_batch(*tier, *dim, vectors, items, gradients)?;
        self.steps += 1;
        let l2 = self.regularization.l2_of_sample(samples);
        let stepped = features.step(batch.bags, rate, &self.regularization, |_, of_feature| {
            if l2 > 0.0 {
                let FeatureBuffers { pooled, gradient, .. } = of_feature;
                gradient.iter_mut().zip(&*pooled).for_each(|(d, x)| *d += l2 * x);
            }
        });
        Some(stepped.map(|()| loss))
    }

    /// Computes all gradients, from the logits to the first layers, and moves layers and tables.
    /// With V for the `count x dim` vectors of a sample and P for the symmetric `count x count`
    /// matrix of the gradients of their dot products, `dV = P . V`. On the diagonal of P is the
    /// factor of the squared lengths in the loss. `None` is a defect of this crate.
    fn backward(
        &mut self,
        batch: &Batch<'_>,
        samples: usize,
        rate: f64,
        update: &Update,
    ) -> Option<Result<(), TrainError>> {
        let Self { interaction, bottom, top, features, tier, buffers, regularization, .. } = self;
        let (Interaction { dim, bottom_len, count, width }, tier) = (*interaction, *tier);
        let Buffers { vectors, interactions, d_vectors } = buffers;
        let l2 = regularization.l2_of_sample(samples);
        let d_interactions = top.backward(interactions, samples, true, update)?;

        d_vectors.resize(samples * count * dim, 0.0);
        let chunks = vectors
            .par_chunks(SAMPLES * count * dim)
            .zip(d_interactions.par_chunks(SAMPLES * width));
        chunks.zip(d_vectors.par_chunks_mut(SAMPLES * count * dim)).try_for_each(
            |((vectors, d_interactions), d_vectors)| {
                let mut d_products = vec![0.0; count * count];
                let diagonal = d_products.iter_mut().step_by(count + 1);
                diagonal.skip(usize::from(bottom_len > 0)).for_each(|d| *d = l2);
                let samples =
                    vectors.chunks_exact(count * dim).zip(d_interactions.chunks_exact(width));
                for ((vectors, d_interactions), d_vectors) in
                    samples.zip(d_vectors.chunks_exact_mut(count * dim))
                {
                    let (d_first, d_pairs) = d_interactions.split_at_checked(bottom_len)?;
                    let pairs = (0..count).flat_map(|i| (0..i).map(move |j| (i, j)));
                    for ((i, j), &d) in pairs.zip(d_pairs) {
                        d_products[i * count + j] = d;
                        d_products[j * count + i] = d;
                    }
                    let vectors = Elements::from_f32(vectors);
                    chain_step(
                        tier,
                        Dims { m: count, r: count, n: dim },
                        &d_products,
                        vectors,
                        d_vectors,
                        Epilogue::Store,
                    )?;
                    d_vectors.iter_mut().zip(d_first).for_each(|(d, first)| *d += first);
                }
                Some(())
            },
        )?;

        let gather = |vector: usize, out: &mut [f32]| {
            let rows = out.chunks_exact_mut(dim).zip(d_vectors.chunks_exact(count * dim));
            rows.for_each(|(to, from)| to.copy_from_slice(&from[vector * dim..][..dim]));
        };
        let (bottom, stepped) = rayon::join(
            || {
                gather(0, bottom.gradient_mut(samples * bottom_len));
                bottom.backward(batch.dense, samples, false, update).map(|_| ())
            },
            || {
                features.step(
                    batch.bags,
                    rate,
                    regularization,
                    |at, FeatureBuffers { gradient, .. }| {
                        gradient.resize(samples * dim, 0.0);
                        gather(at + usize::from(bottom_len > 0), gradient);
                    },
                )
            },
        );
        bottom.map(|()| stepped)
    }
}

fn layer_name(mlp: &str, at: usize) -> String {
    format!("{mlp}.{}", 2 * at)
}
