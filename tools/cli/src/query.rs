//! Models whose logit is a product of two vectors: the row of a candidate, and a *query*, computed
//! from everything else.
//!
//! If the top perceptron is one layer without a ReLU, the logit is
//! `w . b + sum of w_ij (x_i . x_j) + bias`. The x are the vectors of the tables and of the bottom
//! perceptron, and b is the vector of the bottom perceptron. So the terms with the vector x_t of a
//! candidate are `x_t . (sum of w_tj x_j)`.

use ttrec::{
    Ranker,
    blob::{Activation, Interaction, Stack},
    train::Dlrm,
};

/// A linear layer, and the ReLU after it if it has one.
struct Layer {
    /// Outputs x inputs.
    weights: Vec<f64>,
    bias: Vec<f64>,
    relu: bool,
}

impl Layer {
    fn run(&self, x: &[f64]) -> Vec<f64> {
        let rows = self.weights.chunks(x.len().max(1)).zip(&self.bias);
        let outputs = rows.map(|(weights, bias)| bias + dot(weights, x));
        outputs.map(|y| if self.relu { y.max(0.0) } else { y }).collect()
    }
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

/// A model whose logit is a product, for given dense features.
pub(crate) struct ProductModel {
    /// Weights of the bottom's vector, then of each pair of vectors: (1,0), (2,0), (2,1), ..
    weights: Vec<f64>,
    bias: f64,
    /// The vector of the bottom perceptron; `None` if the model has no bottom perceptron.
    bottom: Option<Vec<f64>>,
}

impl ProductModel {
    /// The trained model, unless its logit is not a product.
    pub(crate) fn of_trained(model: &Dlrm, dense: &[f32]) -> Option<Self> {
        let layers = model.layers().map(|(name, layer)| {
            let [weights, bias] = [layer.weights(), layer.biases()].map(|of| wide(of.values()));
            (name.starts_with("bot"), Layer { weights, bias, relu: layer.relu() })
        });
        Self::new(layers, dense)
    }

    /// The model of a blob, unless its logit is not a product.
    pub(crate) fn of_ranker(ranker: &Ranker<'_>, dense: &[f32]) -> Option<Self> {
        let layers = ranker.layers().map(|layer| {
            let weight = |output: usize, input: usize| {
                let weight = layer.weights.get(input * layer.outputs + output).unwrap_or(0.0);
                let scale = layer.scales.get(output).copied().unwrap_or(1.0);
                f64::from(weight) * f64::from(scale)
            };
            let of_output =
                |output: usize| (0..layer.inputs).map(move |input| weight(output, input));
            let weights = (0..layer.outputs).flat_map(of_output).collect();
            let relu = layer.activation == Activation::Relu;
            (layer.stack == Stack::Bottom, Layer { weights, bias: wide(layer.bias), relu })
        });
        if ranker.interaction() != Interaction::Dot {
            return None;
        }
        Self::new(layers, dense)
    }

    /// From layers, each with whether it belongs to the bottom perceptron.
    fn new(layers: impl Iterator<Item = (bool, Layer)>, dense: &[f32]) -> Option<Self> {
        let (bottom, mut top): (Vec<_>, Vec<_>) = layers.partition(|(is_bottom, _)| *is_bottom);
        let (weights, bias) = match (top.pop(), top.is_empty()) {
            (None, _) => (vec![1.0], 0.0),
            (Some((_, layer)), true) if !layer.relu && layer.bias.len() == 1 => {
                (layer.weights, layer.bias[0])
            }
            _ => return None,
        };
        let has_bottom = !bottom.is_empty();
        let run = |x: Vec<f64>, (_, layer): &(bool, Layer)| layer.run(&x);
        let bottom = has_bottom.then(|| bottom.iter().fold(wide(dense), run));
        Some(Self { weights, bias, bottom })
    }

    /// The query of a sample, and the part of the logit that is the same for all candidates.
    /// `tables` has the vector of each table, but `None` for the candidate's.
    pub(crate) fn query(&self, tables: &[Option<&[f32]>], dim: usize) -> (Vec<f32>, f64) {
        let mut vectors = Vec::from_iter(self.bottom.clone().map(Some));
        vectors.extend(tables.iter().map(|vector| vector.map(wide)));
        let direct = self.bottom.as_deref().unwrap_or_default();
        let (of_bottom, of_pairs) = self.weights.split_at(direct.len().min(self.weights.len()));
        let (mut query, mut constant) = (vec![0.0; dim], self.bias + dot(of_bottom, direct));
        let pairs = (0..vectors.len()).flat_map(|i| (0..i).map(move |j| (i, j)));
        for ((i, j), weight) in pairs.zip(of_pairs) {
            match (&vectors[i], &vectors[j]) {
                (Some(x), Some(y)) => constant += weight * dot(x, y),
                (Some(x), None) | (None, Some(x)) => {
                    query.iter_mut().zip(x).for_each(|(query, x)| *query += weight * x);
                }
                (None, None) => {}
            }
        }
        (query.into_iter().map(|x| x as f32).collect(), constant)
    }
}
