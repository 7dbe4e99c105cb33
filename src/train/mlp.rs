//! Trainable linear layers in a row: DLRM's multilayer perceptrons.
//!
//! A layer of n outputs is `y = max(0, z)` with `z = x . W' + b`, or `y = z` without a ReLU. x is
//! `samples x inputs` and W is `n x inputs`, as in `torch.nn.Linear`. With dz for the gradient of
//! z, `samples x n`:
//!
//! ```text
//! dW = dz' . x    db = sum of dz's rows = 1' . dz    dx = dz . W
//! ```
//!
//! [`chain_step`] computes all three: each element of a product is one chain of sums. Threads
//! divide the rows of a product: those of y and dx are samples, those of dW outputs. So no element
//! is summed in parts, and neither the bits of a step nor those of a sample depend on the number
//! of threads.
//!
//! With dropout, a hidden output y becomes 0 or `y / (1 - dropout)`. The draws of [`ROWS`] samples
//! come from one generator, whose seed is that of the layer and the position of these samples.

use super::{
    Optimizer, Parameters, Quantity, TrainError,
    initializer::Draws,
    optimizer::{Slices, Update},
};
use crate::{
    Tier,
    dtype::Elements,
    kernel::{Consistent, Dims, Epilogue, chain_step, transpose},
};
use rayon::prelude::*;
use std::vec::Vec;

/// Rows of a product that one thread computes together.
const ROWS: usize = 32;
/// The largest number of inputs or outputs of a layer.
const MAX_LAYER_LEN: usize = 1 << 16;

/// A trainable linear layer, `torch.nn.Linear`, and the ReLU after it if it has one.
#[derive(Debug)]
pub struct Linear {
    /// W (outputs x inputs) and b (one for each output).
    parameters: [Parameters; 2],
    relu: bool,
    /// W', inputs x outputs.
    transposed: Vec<f32>,
    /// y of the last forward pass, samples x outputs.
    outputs: Vec<f32>,
    /// What dropout multiplied them by in this pass, where it did not set them to 0.
    scale: f32,
    gradients: Gradients,
}

/// Dropout of hidden outputs.
#[derive(Clone, Copy)]
pub(super) struct Dropout {
    /// The share of outputs that become 0.
    pub(super) share: f64,
    /// A different one for each step and each MLP.
    pub(super) seed: u64,
}

/// The seed of part `part` of what `seed` is the seed of.
pub(super) fn seed_of_part(seed: u64, part: u64) -> u64 {
    Draws::new(seed ^ part.wrapping_mul(0x9E37_79B9_7F4A_7C15)).bits()
}

/// dz', dW and db of a backward pass. Steps reuse their memory.
#[derive(Debug, Default)]
struct Gradients {
    outputs_transposed: Vec<f32>,
    weights: Vec<f32>,
    biases: Vec<f32>,
    ones: Vec<f32>,
}

impl Linear {
    /// Weights from N(0, 2 / (inputs + outputs)) and biases from N(0, 1 / outputs), as DLRM's
    /// `create_mlp`.
    fn new(
        inputs: usize,
        outputs: usize,
        relu: bool,
        optimizer: Optimizer,
        draws: &mut Draws,
    ) -> Self {
        let mut normals = |count: usize, variance: f64| -> Vec<f32> {
            (0..count).map(|_| (draws.normal() * variance.sqrt()) as f32).collect()
        };
        let weights = normals(inputs * outputs, 2.0 / (inputs + outputs) as f64);
        let biases = normals(outputs, 1.0 / outputs as f64);
        let parameters = [(weights, inputs), (biases, outputs)];
        Self {
            parameters: parameters
                .map(|(values, slice_len)| Parameters::new(values, slice_len, optimizer.dense())),
            relu,
            transposed: Vec::new(),
            outputs: Vec::new(),
            scale: 1.0,
            gradients: Gradients::default(),
        }
    }

    /// Number of inputs.
    pub fn inputs(&self) -> usize {
        self.weights().slice_len()
    }

    /// Number of outputs.
    pub fn outputs(&self) -> usize {
        self.biases().values().len()
    }

    /// Whether a ReLU follows.
    pub fn relu(&self) -> bool {
        self.relu
    }

    /// W, outputs x inputs, row-major.
    pub fn weights(&self) -> &Parameters {
        let [weights, _] = &self.parameters;
        weights
    }

    /// b, one for each output, in one slice.
    pub fn biases(&self) -> &Parameters {
        let [_, biases] = &self.parameters;
        biases
    }

    /// W and b, by PyTorch's names: `weight` and `bias`.
    pub fn parameters(&self) -> [(&'static str, &Parameters); 2] {
        let [weights, biases] = &self.parameters;
        [("weight", weights), ("bias", biases)]
    }

    /// As [`parameters`](Self::parameters), mutable, to restore them from a checkpoint.
    pub fn parameters_mut(&mut self) -> [(&'static str, &mut Parameters); 2] {
        let [weights, biases] = &mut self.parameters;
        [("weight", weights), ("bias", biases)]
    }

    /// Computes the W' that [`forward`](Self::forward) multiplies by. W must not change in between.
    fn transpose_weights(&mut self, tier: Tier) -> Consistent {
        let [weights, _] = &self.parameters;
        self.transposed.resize(weights.values().len(), 0.0);
        transpose(tier, weights.values(), weights.slice_len(), &mut self.transposed)
    }

    fn forward(
        &mut self,
        tier: Tier,
        x: &[f32],
        samples: usize,
        dropout: Option<Dropout>,
    ) -> Consistent {
        let (r, n) = (self.inputs(), self.outputs());
        let [_, biases] = &self.parameters;
        self.outputs.resize(samples * n, 0.0);
        let epilogue = Epilogue::Bias { scales: &[], bias: biases.values(), relu: self.relu };
        multiply_rows(tier, r, n, x, &self.transposed, &mut self.outputs, epilogue)?;
        self.scale = dropout.map_or(1.0, |Dropout { share, .. }| (1.0 / (1.0 - share)) as f32);
        if let Some(Dropout { share, seed }) = dropout {
            let (scale, chunks) = (self.scale, self.outputs.par_chunks_mut(ROWS * n));
            chunks.enumerate().for_each(|(chunk, outputs)| {
                let mut draws = Draws::new(seed_of_part(seed, chunk as u64));
                for y in outputs {
                    *y = if draws.uniform() < share { 0.0 } else { *y * scale };
                }
            });
        }
        Some(())
    }

    /// Moves W and b by the gradient dy of the outputs in `d`, which becomes dz, and writes dx to
    /// `d_inputs`. `x` are the inputs of the last forward pass.
    fn backward(
        &mut self,
        x: &[f32],
        samples: usize,
        d: &mut [f32],
        d_inputs: Option<&mut Vec<f32>>,
        update: &Update,
    ) -> Consistent {
        let (r, n, tier) = (self.inputs(), self.outputs(), update.tier());
        let [weights, biases] = &mut self.parameters;
        if self.relu {
            // dz = dy where z > 0, else 0, without a branch, which could not be predicted. What
            // dropout set to 0 has no gradient either.
            let scale = self.scale;
            d.iter_mut()
                .zip(&self.outputs)
                .for_each(|(d, &y)| *d = if y > 0.0 { *d * scale } else { 0.0 });
        }
        if samples == 0 {
            if let Some(d_inputs) = d_inputs {
                d_inputs.clear();
            }
            return Some(());
        }
        let Gradients { outputs_transposed, weights: d_weights, biases: d_biases, ones } =
            &mut self.gradients;
        let (inputs, prepared) = rayon::join(
            || match d_inputs {
                Some(d_inputs) => {
                    d_inputs.resize(samples * r, 0.0);
                    multiply_rows(tier, n, r, d, weights.values(), d_inputs, Epilogue::Store)
                }
                None => Some(()),
            },
            || {
                ones.resize(samples, 1.0);
                d_biases.resize(n, 0.0);
                outputs_transposed.resize(n * samples, 0.0);
                chain_step(
                    tier,
                    Dims { m: 1, r: samples, n },
                    ones,
                    Elements::from_f32(d),
                    d_biases,
                    Epilogue::Store,
                )?;
                biases.slices_mut().update(0, d_biases, &update.keeping(1.0))?;
                transpose(tier, d, n, outputs_transposed)
            },
        );
        inputs.and(prepared)?;
        d_weights.resize(n * r, 0.0);
        let chunks = outputs_transposed
            .par_chunks(ROWS * samples)
            .zip(d_weights.par_chunks_mut(ROWS * r));
        chunks.zip(chunks_of(weights.slices_mut(), n)?).try_for_each(
            |((d, d_weights), mut slices)| {
                chain_step(
                    tier,
                    Dims { m: d.len() / samples, r: samples, n: r },
                    d,
                    Elements::from_f32(x),
                    d_weights,
                    Epilogue::Store,
                )?;
                let first = slices.first();
                d_weights
                    .chunks_exact(r)
                    .zip(first..)
                    .try_for_each(|(row, slice)| slices.update(slice, row, update))
            },
        )
    }
}

/// Divides slices into parts of [`ROWS`].
fn chunks_of(mut slices: Slices<'_>, count: usize) -> Option<Vec<Slices<'_>>> {
    let mut chunks = Vec::with_capacity(count.div_ceil(ROWS));
    for at in (ROWS..count).step_by(ROWS) {
        let (chunk, rest) = slices.split_at(at)?;
        chunks.push(chunk);
        slices = rest;
    }
    chunks.push(slices);
    Some(chunks)
}

/// `out <- x . g`, where g is `r x n`. Threads divide the rows.
fn multiply_rows(
    tier: Tier,
    r: usize,
    n: usize,
    x: &[f32],
    g: &[f32],
    out: &mut [f32],
    epilogue: Epilogue<'_>,
) -> Consistent {
    let rows = x.par_chunks(ROWS * r).zip(out.par_chunks_mut(ROWS * n));
    rows.map(|(x, out)| {
        chain_step(tier, Dims { m: out.len() / n, r, n }, x, Elements::from_f32(g), out, epilogue)
    })
    .collect()
}

/// Layers, each of which takes the outputs of the layer before.
#[derive(Debug)]
pub(super) struct Mlp {
    pub(super) layers: Vec<Linear>,
    /// dy and dx of a layer, which swap from layer to layer.
    d: [Vec<f32>; 2],
}

impl Mlp {
    /// Layers with these outputs, the first of which has `inputs` inputs. The last layer has a ReLU
    /// only with `last_relu`.
    pub(super) fn new(
        inputs: usize,
        outputs: &[usize],
        last_relu: bool,
        optimizer: Optimizer,
        draws: &mut Draws,
    ) -> Result<Self, TrainError> {
        let mut lens = outputs.iter().chain(outputs.first().map(|_| &inputs));
        if let Some(&found) = lens.find(|&&len| len == 0 || len > MAX_LAYER_LEN) {
            return Err(Quantity::LayerWidth.above(found as u64, MAX_LAYER_LEN as u64));
        }
        let mut layers = Vec::with_capacity(outputs.len());
        let mut from = inputs;
        for (at, &to) in outputs.iter().enumerate() {
            layers.push(Linear::new(
                from,
                to,
                last_relu || at + 1 < outputs.len(),
                optimizer,
                draws,
            ));
            from = to;
        }
        Ok(Self { layers, d: Default::default() })
    }

    /// The part of a [`forward`](Self::forward) pass that does not need its inputs.
    pub(super) fn prepare(&mut self, tier: Tier) -> Consistent {
        self.layers
            .par_iter_mut()
            .with_max_len(1)
            .try_for_each(|layer| layer.transpose_weights(tier))
    }

    /// The outputs of the last layer, samples x outputs; `x` itself if there are no layers.
    pub(super) fn forward<'m>(
        &'m mut self,
        tier: Tier,
        x: &'m [f32],
        samples: usize,
        dropout: Option<Dropout>,
    ) -> Option<&'m [f32]> {
        let hidden = self.layers.len().saturating_sub(1);
        for at in 0..self.layers.len() {
            let (before, rest) = self.layers.split_at_mut(at);
            let x = before.last().map_or(x, |layer| &layer.outputs);
            let seeded =
                |Dropout { share, seed }| Dropout { share, seed: seed_of_part(seed, at as u64) };
            let dropout = dropout.filter(|_| at < hidden).map(seeded);
            rest.first_mut()?.forward(tier, x, samples, dropout)?;
        }
        Some(self.outputs(x))
    }

    /// The outputs of the last forward pass, whose inputs were `x`.
    pub(super) fn outputs<'m>(&'m self, x: &'m [f32]) -> &'m [f32] {
        self.layers.last().map_or(x, |layer| &layer.outputs)
    }

    /// The outputs of the last forward pass, and room for their gradient.
    pub(super) fn outputs_and_gradient<'m>(
        &'m mut self,
        x: &'m [f32],
    ) -> (&'m [f32], &'m mut [f32]) {
        let Self { layers, d: [d, _] } = self;
        let outputs = layers.last().map_or(x, |layer| &layer.outputs);
        d.resize(outputs.len(), 0.0);
        (outputs, d)
    }

    /// Room for the gradient of the outputs, which [`backward`](Self::backward) reads.
    pub(super) fn gradient_mut(&mut self, len: usize) -> &mut [f32] {
        let [d, _] = &mut self.d;
        d.resize(len, 0.0);
        d
    }

    /// Moves all layers, and returns the gradient of `x` if it `is_wanted`.
    pub(super) fn backward(
        &mut self,
        x: &[f32],
        samples: usize,
        is_wanted: bool,
        update: &Update,
    ) -> Option<&[f32]> {
        let [d, spare] = &mut self.d;
        for at in (0..self.layers.len()).rev() {
            let (before, rest) = self.layers.split_at_mut(at);
            let x = before.last().map_or(x, |layer| &layer.outputs);
            let d_inputs = (at > 0 || is_wanted).then_some(&mut *spare);
            rest.first_mut()?.backward(x, samples, d, d_inputs, update)?;
            core::mem::swap(d, spare);
        }
        Some(d)
    }
}
