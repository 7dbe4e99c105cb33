//! Linear layers that learn, one after another: DLRM's multilayer perceptrons.
//!
//! A layer of n outputs is `y = max(0, x . W' + b)`, the last one perhaps without the maximum; W is
//! n x inputs, as in `torch.nn.Linear`. With dy for the gradient of what comes before the maximum:
//!
//! ```text
//! dW = dy' . x    db = sum of dy's rows    dx = dy . W
//! ```
//!
//! All three are products of [`chain_step`]'s, whose elements are chains of their own. Work is
//! divided by rows of the outcome, of y and dx by samples and of dW by outputs: so nothing is
//! summed in parts, and neither the bits of a step nor those of a sample depend on the number of
//! threads.

use super::{
    Optimizer, Parameters, TrainError,
    initializer::Draws,
    optimizer::{Slices, Update},
};
use crate::{
    Tier,
    dtype::Elements,
    kernel::{Epilogue, chain_step, transpose},
};
use rayon::prelude::*;
use std::vec::Vec;

/// Rows of an outcome that one thread computes together.
const ROWS: usize = 32;
/// The largest number of inputs or outputs of a layer.
const MAX_LAYER_LEN: usize = 1 << 16;

/// A linear layer that learns: `torch.nn.Linear`.
#[derive(Debug)]
pub struct Linear {
    /// Outputs x inputs, and a number for each output.
    parameters: [Parameters; 2],
    relu: bool,
    /// The weights, inputs x outputs.
    transposed: Vec<f32>,
    /// One row for each sample of the last forward pass.
    outputs: Vec<f32>,
    gradients: Gradients,
}

/// Of the last backward pass, kept for their memory.
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
            gradients: Gradients::default(),
        }
    }

    /// How many inputs it has.
    pub fn inputs(&self) -> usize {
        self.weights().slice_len()
    }

    /// How many outputs it has.
    pub fn outputs(&self) -> usize {
        self.biases().values().len()
    }

    /// Whether what is below zero becomes zero.
    pub fn relu(&self) -> bool {
        self.relu
    }

    /// W, outputs x inputs.
    pub fn weights(&self) -> &Parameters {
        let [weights, _] = &self.parameters;
        weights
    }

    /// b, one for each output, in one slice.
    pub fn biases(&self) -> &Parameters {
        let [_, biases] = &self.parameters;
        biases
    }

    /// W and b, by the names that PyTorch gives them: `weight` and `bias`.
    pub fn parameters(&self) -> [(&'static str, &Parameters); 2] {
        let [weights, biases] = &self.parameters;
        [("weight", weights), ("bias", biases)]
    }

    /// The same, to be restored from a checkpoint.
    pub fn parameters_mut(&mut self) -> [(&'static str, &mut Parameters); 2] {
        let [weights, biases] = &mut self.parameters;
        [("weight", weights), ("bias", biases)]
    }

    /// What [`forward`](Self::forward) multiplies by, unless the weights have changed since.
    fn transpose_weights(&mut self, tier: Tier) -> Option<()> {
        let [weights, _] = &self.parameters;
        self.transposed.resize(weights.values().len(), 0.0);
        transpose(tier, weights.values(), weights.slice_len(), &mut self.transposed)
    }

    fn forward(&mut self, tier: Tier, x: &[f32], samples: usize) -> Option<()> {
        let (r, n) = (self.inputs(), self.outputs());
        let [_, biases] = &self.parameters;
        self.outputs.resize(samples * n, 0.0);
        let epilogue = Epilogue::Bias { scales: &[], bias: biases.values(), relu: self.relu };
        multiply_rows(tier, [r, n], x, &self.transposed, &mut self.outputs, epilogue)
    }

    /// Takes the gradient of the outputs in `d`, which it changes, writes that of the inputs to
    /// `d_inputs` if they are asked for, and moves the weights.
    fn backward(
        &mut self,
        x: &[f32],
        samples: usize,
        d: &mut [f32],
        d_inputs: Option<&mut Vec<f32>>,
        update: &Update,
    ) -> Option<()> {
        let (r, n, tier) = (self.inputs(), self.outputs(), update.tier());
        let [weights, biases] = &mut self.parameters;
        if self.relu {
            // Without a jump, which would be taken at random.
            d.iter_mut()
                .zip(&self.outputs)
                .for_each(|(d, &y)| *d = if y > 0.0 { *d } else { 0.0 });
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
                    multiply_rows(tier, [n, r], d, weights.values(), d_inputs, Epilogue::Store)
                }
                None => Some(()),
            },
            || {
                ones.resize(samples, 1.0);
                d_biases.resize(n, 0.0);
                outputs_transposed.resize(n * samples, 0.0);
                chain_step(
                    tier,
                    [1, samples, n],
                    ones,
                    Elements::from_f32(d),
                    d_biases,
                    Epilogue::Store,
                )?;
                biases.slices_mut().update(0, d_biases, update)?;
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
                    [d.len() / samples, samples, r],
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

/// Slices in parts of [`ROWS`].
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

/// `out <- x . g`, g being r x n, the rows divided among threads.
fn multiply_rows(
    tier: Tier,
    [r, n]: [usize; 2],
    x: &[f32],
    g: &[f32],
    out: &mut [f32],
    epilogue: Epilogue<'_>,
) -> Option<()> {
    let rows = x.par_chunks(ROWS * r).zip(out.par_chunks_mut(ROWS * n));
    rows.map(|(x, out)| {
        chain_step(tier, [out.len() / n, r, n], x, Elements::from_f32(g), out, epilogue)
    })
    .collect()
}

/// Layers, each of which takes the outputs of the one before.
#[derive(Debug)]
pub(super) struct Mlp {
    pub(super) layers: Vec<Linear>,
    /// Gradients of outputs and inputs, which change their places from layer to layer.
    d: [Vec<f32>; 2],
}

impl Mlp {
    /// Layers of `outputs`, the first one of `inputs`; the last one has a ReLU only with
    /// `last_relu`.
    pub(super) fn new(
        inputs: usize,
        outputs: &[usize],
        last_relu: bool,
        optimizer: Optimizer,
        draws: &mut Draws,
    ) -> Result<Self, TrainError> {
        let mut lens = outputs.iter().chain(outputs.first().map(|_| &inputs));
        if let Some(&found) = lens.find(|&&len| len == 0 || len > MAX_LAYER_LEN) {
            return Err(TrainError::LayerLen { found, limit: MAX_LAYER_LEN });
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

    /// What a [`forward`](Self::forward) pass needs to know of the weights: all that does not wait
    /// for its inputs.
    pub(super) fn prepare(&mut self, tier: Tier) -> Option<()> {
        self.layers
            .par_iter_mut()
            .with_max_len(1)
            .try_for_each(|layer| layer.transpose_weights(tier))
    }

    /// What comes out, a row for each sample; `x` itself if there are no layers.
    pub(super) fn forward<'m>(
        &'m mut self,
        tier: Tier,
        x: &'m [f32],
        samples: usize,
    ) -> Option<&'m [f32]> {
        for at in 0..self.layers.len() {
            let (before, rest) = self.layers.split_at_mut(at);
            let x = before.last().map_or(x, |layer| &layer.outputs);
            rest.first_mut()?.forward(tier, x, samples)?;
        }
        Some(self.outputs(x))
    }

    /// The outputs of the last forward pass, of `x`.
    pub(super) fn outputs<'m>(&'m self, x: &'m [f32]) -> &'m [f32] {
        self.layers.last().map_or(x, |layer| &layer.outputs)
    }

    /// Both at once.
    pub(super) fn outputs_and_gradient<'m>(
        &'m mut self,
        x: &'m [f32],
    ) -> (&'m [f32], &'m mut [f32]) {
        let Self { layers, d: [d, _] } = self;
        let outputs = layers.last().map_or(x, |layer| &layer.outputs);
        d.resize(outputs.len(), 0.0);
        (outputs, d)
    }

    /// Room for the gradient of the outputs, where [`backward`](Self::backward) looks for it.
    pub(super) fn gradient_mut(&mut self, len: usize) -> &mut [f32] {
        let [d, _] = &mut self.d;
        d.resize(len, 0.0);
        d
    }

    /// Moves all weights, and returns the gradient of `x` if it `is_wanted`.
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
