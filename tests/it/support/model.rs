//! A model's scores in f64 from a blob's raw bytes, with a bound on how far an f32 evaluation may
//! be off: perceptrons and interaction by their definitions, rows by [`Reference`].

use super::{
    format::{
        DTYPE_F32, DTYPE_I8, LAYER_LEN, ROLE_LAYER_BIAS, ROLE_LAYER_SCALES, ROLE_LAYER_WEIGHTS,
        STACK_BOTTOM, Section, header, is_mean, layer, layer_at, model_table, num_layers,
        num_model_tables, sections_of_layer, u32_at,
    },
    oracle::{Approx, Mode, Reference, element},
};

/// A blob's model that is known to be valid.
pub(crate) struct Model<'a> {
    bytes: &'a [u8],
    tables: Vec<Reference<'a>>,
    layers: Vec<LayerReference>,
}

struct LayerReference {
    stack: u8,
    activation: u8,
    outputs: usize,
    /// `inputs x outputs`, without scales.
    weights: Vec<f64>,
    /// One if there are none.
    scales: Vec<f64>,
    has_scales: bool,
    bias: Vec<f64>,
}

/// A sample's bag of one table.
#[derive(Clone, Debug)]
pub(crate) struct Bag {
    pub(crate) indices: Vec<u64>,
    pub(crate) weights: Option<Vec<f32>>,
}

impl<'a> Model<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        let tables = (0..num_model_tables(bytes))
            .map(|t| Reference::new(bytes, model_table(bytes, t)))
            .collect();
        let layers = (0..num_layers(bytes)).map(|position| {
            let at = layer_at(bytes, position);
            let outputs = u32_at(bytes, at + layer::OUTPUTS) as usize;
            let count = u32_at(bytes, at + layer::INPUTS) as usize * outputs;
            let sections = sections_of_layer(bytes, position);
            let section = |role| sections.iter().find(|s: &&Section| s.role == role);
            let numbers = |section: &Section, count| -> Vec<f64> {
                (0..count).map(|i| element(&bytes[section.range()], section.dtype, i)).collect()
            };
            let weights = section(ROLE_LAYER_WEIGHTS).unwrap();
            let scales = section(ROLE_LAYER_SCALES);
            let bias = section(ROLE_LAYER_BIAS).unwrap();
            assert_eq!(scales.is_some(), weights.dtype == DTYPE_I8);
            assert_eq!(bias.dtype, DTYPE_F32);
            LayerReference {
                stack: bytes[at + layer::STACK],
                activation: bytes[at + layer::ACTIVATION],
                outputs,
                weights: numbers(weights, count),
                scales: scales.map_or(vec![1.0; outputs], |scales| numbers(scales, outputs)),
                has_scales: scales.is_some(),
                bias: numbers(bias, outputs),
            }
        });
        let layers = layers.collect();
        assert_eq!(LAYER_LEN, 32);
        Self { bytes, tables, layers }
    }

    pub(crate) fn num_dense(&self) -> usize {
        let at = layer_at(self.bytes, 0);
        // Without a bottom there are none.
        if self.layers[0].stack == STACK_BOTTOM {
            u32_at(self.bytes, at + layer::INPUTS) as usize
        } else {
            0
        }
    }

    pub(crate) fn num_tables(&self) -> usize {
        self.tables.len()
    }

    pub(crate) fn num_embeddings(&self, table: usize) -> u64 {
        self.tables[table].num_embeddings()
    }

    /// Whether no number is so large or so small that f32 could not hold what is made of it.
    pub(crate) fn tame(&self) -> bool {
        let numbers =
            |layer: &LayerReference| [&layer.weights[..], &layer.scales, &layer.bias].concat();
        let tame = |x: f64| x == 0.0 || (1e-6..1e4).contains(&x.abs());
        self.tables.iter().all(Reference::tame) && self.layers.iter().flat_map(numbers).all(tame)
    }

    /// A sample's logit.
    pub(crate) fn logit(&self, dense: &[f32], bags: &[Bag]) -> Approx {
        let has_bottom = self.num_dense() > 0;
        assert_eq!(dense.len(), self.num_dense());
        let x: Vec<Approx> = dense.iter().map(|&x| Approx::exact(x.into())).collect();
        let mut vectors = if has_bottom {
            vec![self.perceptron(x, true)]
        } else {
            Vec::new()
        };
        for (position, (table, Bag { indices, weights })) in
            self.tables.iter().zip(bags).enumerate()
        {
            vectors.push(match weights {
                None if is_mean(self.bytes, position) => table.bag(indices, &[], Mode::Mean),
                Some(weights) => table.bag(indices, weights, Mode::Weighted),
                None => table.bag(indices, &[], Mode::Sum),
            });
        }
        let interaction = self.bytes[header::INTERACTION];
        let mut inputs = match interaction {
            3 => vectors.drain(..).flatten().collect(),
            _ if has_bottom => vectors[0].clone(),
            _ => Vec::new(),
        };
        for i in 0..vectors.len() {
            // 2: also each vector with itself.
            for j in 0..i + usize::from(interaction == 2) {
                let products = vectors[i].iter().zip(&vectors[j]).map(|(x, y)| (x.times(*y), 1.0));
                inputs.push(Approx::dot(products, 0));
            }
        }
        self.perceptron(inputs, false)[0]
    }

    fn perceptron(&self, mut x: Vec<Approx>, bottom: bool) -> Vec<Approx> {
        for layer in self.layers.iter().filter(|layer| (layer.stack == STACK_BOTTOM) == bottom) {
            let output = |j: usize| {
                let column = layer.weights.iter().skip(j).step_by(layer.outputs);
                let sum = Approx::dot(x.iter().zip(column).map(|(&x, &w)| (x, w)), 0);
                let scaled = Approx::dot([(sum, layer.scales[j])], 0);
                let sum = if layer.has_scales { scaled } else { sum };
                let y = Approx::dot([(sum, 1.0), (Approx::exact(layer.bias[j]), 1.0)], 0);
                // It moves by no more than what it is made of.
                if layer.activation == 1 {
                    Approx { value: y.value.max(0.0), ..y }
                } else {
                    y
                }
            };
            assert_eq!(x.len() * layer.outputs, layer.weights.len());
            x = (0..layer.outputs).map(output).collect();
        }
        x
    }
}
