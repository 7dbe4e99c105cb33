//! Models: the MLPs around a checkpoint's tables, as DLRM and TorchRec name their layers.

use super::{Survey, require_float};
use crate::{
    checkpoint::{Checkpoint, Tensor},
    spec::{ModelSpec, Pooling, TableSpec},
};
use anyhow::{Context, Result, bail, ensure};
use ttrec::{
    blob::{self, Activation, LayerSpec, ModelTable},
    dtype::Dtype,
};

/// The names of a training program's layers.
pub(super) struct LayerNames {
    pub(super) dialect: &'static str,
    /// The prefixes of the layers of the bottom MLP, which is optional, and of the top MLP.
    stacks: [&'static str; 2],
    pairs: Pairs,
    /// The prefixes of tensors of models that are not supported, and the names of these.
    others: &'static [(&'static str, &'static str)],
}

/// The order of the dot products in the interaction.
#[derive(Clone, Copy, PartialEq)]
enum Pairs {
    /// (1, 0), (2, 0), (2, 1), (3, 0): as in the blob.
    Lower,
    /// (0, 1), (0, 2), .. (1, 2), (1, 3): `torch.triu_indices`.
    Upper,
}

/// The programs whose models are supported.
const NAMINGS: [LayerNames; 2] = [
    // `interact_features` takes its pairs from `li` and `lj`.
    LayerNames {
        dialect: "dlrm",
        stacks: ["bot_l.", "top_l."],
        pairs: Pairs::Lower,
        others: &[("v_W_l.", "weighted pooling")],
    },
    // `InteractionArch` takes its pairs from `triu_indices`.
    LayerNames {
        dialect: "torchrec",
        stacks: ["dense_arch.", "over_arch."],
        pairs: Pairs::Upper,
        others: &[("inter_arch.", "an interaction that is trained")],
    },
];

/// A model of a checkpoint, ready to be read.
pub(crate) struct Model<'c> {
    pub(crate) dtype: Dtype,
    pub(crate) bottom: Vec<Linear<'c>>,
    pub(crate) top: Vec<Linear<'c>>,
    pairs: Pairs,
    /// Whether the interaction is known to be that of dot products.
    is_dot: bool,
}

/// A `torch.nn.Linear`: outputs x inputs.
pub(crate) struct Linear<'c> {
    weight: &'c Tensor,
    bias: &'c Tensor,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
}

impl<'c> Model<'c> {
    /// The models whose layers are in the checkpoint.
    pub(crate) fn detect(checkpoint: &'c Checkpoint) -> Vec<ModelSpec> {
        let mut found = Vec::new();
        for LayerNames { dialect, stacks: [bottom, top], .. } in &NAMINGS {
            let prefix_of =
                |t: &'c Tensor| prefix(t.name(), bottom).or_else(|| prefix(t.name(), top));
            let mut prefixes: Vec<&str> = checkpoint.tensors().filter_map(prefix_of).collect();
            prefixes.sort_unstable();
            prefixes.dedup();
            for prefix in prefixes {
                if !layers(checkpoint, &format!("{prefix}{top}")).is_empty() {
                    let dialect = Some((*dialect).to_owned());
                    let prefix = Some(prefix.to_owned()).filter(|prefix| !prefix.is_empty());
                    found.push(ModelSpec { prefix, dialect, ..ModelSpec::default() });
                }
            }
        }
        found
    }

    /// The model, if the checkpoint is a whole one: its tables are numbered without gaps, and all
    /// of them can be read.
    fn whole(survey: &Survey<'c>) -> Option<ModelSpec> {
        let [model] = &Self::detect(survey.checkpoint)[..] else { return None };
        let prefix = model.prefix.as_deref().unwrap_or_default();
        let of_model = |table: &TableSpec| {
            table.dialect == model.dialect
                && table.prefix.as_deref().is_some_and(|table| table.starts_with(prefix))
        };
        // The order of the file is that of the model; without it, the numbers of the tables are.
        let numbered = survey
            .tables
            .iter()
            .zip(0u64..)
            .all(|(table, expected)| number(table.prefix.as_deref()) == Some(expected));
        let numbered =
            numbered || model.dialect.as_deref() == Some("torchrec") && survey.is_ordered();
        let all = survey.refused.is_empty() && survey.tables.iter().all(of_model) && numbered;
        (all && !survey.tables.is_empty()).then(|| model.clone())
    }

    /// The model of a whole checkpoint, or of one whose metadata lists its tables.
    pub(crate) fn around(survey: &Survey<'c>) -> Option<ModelSpec> {
        if survey.complete {
            Self::detect(survey.checkpoint).into_iter().next()
        } else {
            Self::whole(survey)
        }
    }

    /// The model that `spec` describes.
    pub(crate) fn open(checkpoint: &'c Checkpoint, spec: &ModelSpec) -> Result<Self> {
        let prefix = spec.prefix.as_deref().unwrap_or_default();
        let naming = match spec.dialect.as_deref() {
            Some(name) => {
                NAMINGS.iter().find(|naming| naming.dialect == name).with_context(|| {
                    let known = NAMINGS.map(|naming| naming.dialect);
                    format!("dialect {name:?}: expected one of {known:?}")
                })?
            }
            None => {
                let has = |naming: &&LayerNames| {
                    naming
                        .stacks
                        .iter()
                        .any(|stack| !layers(checkpoint, &format!("{prefix}{stack}")).is_empty())
                };
                NAMINGS.iter().find(has).with_context(|| {
                    format!(
                        "no layers after prefix {prefix:?}: expected {prefix}bot_l.0.weight or \
                         {prefix}dense_arch..."
                    )
                })?
            }
        };
        for (key, what) in naming.others {
            let prefix = format!("{prefix}{key}");
            if let Some(tensor) =
                checkpoint.tensors().find(|tensor| tensor.name().starts_with(&prefix))
            {
                bail!(
                    "tensor {:?}: {what} is not supported: ttrec converts only DLRMs with \
                     dot-product interaction",
                    tensor.name()
                );
            }
        }
        let [bottom, top] = naming.stacks.map(|stack| {
            let stem = format!("{prefix}{stack}");
            let names = layers(checkpoint, &stem);
            // A model without dense features has no bottom MLP.
            ensure!(
                !names.is_empty() || stack == naming.stacks[0],
                "the top MLP is missing: no tensor {stem}*.weight"
            );
            names
                .into_iter()
                .map(|name| Linear::open(checkpoint, &name))
                .collect::<Result<Vec<_>>>()
        });
        let dtype = spec.dtype.unwrap_or(Dtype::F32);
        ensure!(
            dtype.suits_cores(),
            "layers cannot be {}: set `dtype` of [model] to f32, f16, bf16 or i8",
            dtype.name()
        );
        // `ttrec train` and TorchRec have no other interaction.
        let is_dot = spec.interaction.is_some()
            || naming.pairs == Pairs::Upper
            || checkpoint.metadata(super::FACTS).is_some();
        Ok(Self { dtype, bottom: bottom?, top: top?, pairs: naming.pairs, is_dot })
    }

    /// The layers of the bottom MLP, then those of the top MLP.
    pub(crate) fn layers(&self) -> impl Iterator<Item = &Linear<'c>> {
        self.bottom.iter().chain(&self.top)
    }

    /// The model of the blob with these tables in this order. In DLRM and TorchRec, ReLU follows
    /// every layer except the last, whose sigmoid TorchRec computes in the loss.
    pub(crate) fn layout(&self, tables: &[TableSpec]) -> Result<blob::ModelSpec> {
        let num_tables = tables.len();
        let last = self.top.len() - 1;
        let layer = |linear: &Linear<'_>, activation| {
            let &Linear { inputs, outputs, .. } = linear;
            LayerSpec { inputs, outputs, activation, dtype: self.dtype }
        };
        let mut inputs = None;
        let embedding_dim = self.bottom.last().map_or(0, |linear| linear.outputs);
        let num_vectors = num_tables + usize::from(!self.bottom.is_empty());
        for (position, linear) in self.layers().enumerate() {
            if position == self.bottom.len() {
                let expected = embedding_dim + num_vectors * num_vectors.saturating_sub(1) / 2;
                ensure!(
                    linear.inputs == expected,
                    "tensor {:?} has {} inputs, but {num_tables} tables{} give {expected}: does \
                     the spec list all tables of the model?",
                    linear.weight.name(),
                    linear.inputs,
                    if embedding_dim > 0 {
                        format!(" and a bottom MLP of {embedding_dim} outputs")
                    } else {
                        String::new()
                    }
                );
                ensure!(
                    self.is_dot || embedding_dim == 0 || expected != num_vectors * embedding_dim,
                    "tensor {:?} has {} inputs, which fit the dot products of {num_vectors} \
                     vectors of {embedding_dim} and also the vectors end to end (`cat`): if the \
                     interaction is `dot`, set `interaction = \"dot\"` in [model]; ttrec cannot \
                     convert `cat`",
                    linear.weight.name(),
                    linear.inputs
                );
            } else if let Some(expected) = inputs {
                ensure!(
                    linear.inputs == expected,
                    "tensor {:?} has {} inputs, but the layer before has {expected} outputs",
                    linear.weight.name(),
                    linear.inputs
                );
            }
            inputs = Some(linear.outputs);
        }
        ensure!(
            inputs == Some(1),
            "the last layer of the top MLP has {} outputs: expected 1",
            inputs.unwrap_or(0)
        );
        let top = self.top.iter().enumerate();
        let of_model = |(table, spec): (usize, &TableSpec)| ModelTable {
            table,
            pooling: match spec.pooling {
                Some(Pooling::Mean) => ttrec::Pooling::Mean,
                Some(Pooling::Sum) | None => ttrec::Pooling::Sum,
            },
        };
        Ok(blob::ModelSpec {
            tables: tables.iter().enumerate().map(of_model).collect(),
            interaction: blob::Interaction::Dot,
            bottom: self.bottom.iter().map(|linear| layer(linear, Activation::Relu)).collect(),
            top: top
                .map(|(at, linear)| {
                    layer(
                        linear,
                        if at == last {
                            Activation::Sigmoid
                        } else {
                            Activation::Relu
                        },
                    )
                })
                .collect(),
        })
    }

    /// The weights of a layer in the blob's order, inputs x outputs, and its bias.
    pub(crate) fn read(&self, layer: usize) -> Result<(Vec<f32>, Vec<f32>)> {
        let linear = self.layers().nth(layer).context("no such layer")?;
        let (inputs, outputs) = (linear.inputs, linear.outputs);
        let mut weights = crate::allocate::zeros(
            inputs.checked_mul(outputs).context("a layer of too many weights")?,
        )?;
        linear.weight.read_f32(0, &mut weights)?;
        let mut transposed = crate::allocate::zeros(weights.len())?;
        let from = if layer == self.bottom.len() {
            self.input_order(inputs)
        } else {
            (0..inputs).collect()
        };
        for (to, from) in transposed.chunks_exact_mut(outputs).zip(from) {
            to.iter_mut()
                .zip(weights.chunks_exact(inputs))
                .for_each(|(to, row)| *to = row[from]);
        }
        let mut bias = vec![0.0; outputs];
        linear.bias.read_f32(0, &mut bias)?;
        Ok((transposed, bias))
    }

    /// For each input of the top MLP in the blob, its position in the checkpoint.
    fn input_order(&self, inputs: usize) -> Vec<usize> {
        let dim = self.bottom.last().map_or(0, |linear| linear.outputs);
        if self.pairs == Pairs::Lower {
            return (0..inputs).collect();
        }
        // f vectors make f (f - 1) / 2 pairs.
        let f = (1..=inputs + 1).find(|f| dim + f * (f - 1) / 2 >= inputs).unwrap_or(1);
        let upper = |i: usize, j: usize| dim + i * f - i * (i + 1) / 2 + (j - i - 1);
        (0..dim).chain((1..f).flat_map(|j| (0..j).map(move |i| upper(i, j)))).collect()
    }

    /// The bytes of a layer in the checkpoint.
    pub(crate) fn checkpoint_bytes(&self, layer: usize) -> u64 {
        let bytes = |tensor: &Tensor| tensor.len().saturating_mul(tensor.element_type().size());
        self.layers()
            .nth(layer)
            .map_or(0, |linear| bytes(linear.weight).saturating_add(bytes(linear.bias)))
    }

    /// The names of a layer's tensors.
    pub(crate) fn names(&self, layer: usize) -> Option<(&'c str, &'c str)> {
        self.layers()
            .nth(layer)
            .map(|linear| (linear.weight.name(), linear.bias.name()))
    }
}

impl<'c> Linear<'c> {
    fn open(checkpoint: &'c Checkpoint, name: &str) -> Result<Self> {
        let bias = format!("{}bias", name.strip_suffix("weight").unwrap_or(name));
        let weight = checkpoint.tensor(name).with_context(|| format!("no tensor {name:?}"))?;
        let bias = checkpoint
            .tensor(&bias)
            .with_context(|| format!("no tensor {bias:?}: expected a bias"))?;
        require_float(weight)?;
        require_float(bias)?;
        let (&[outputs, inputs], shape) = (weight.shape(), bias.shape()) else {
            bail!("tensor {name:?} has shape {:?}: expected outputs x inputs", weight.shape());
        };
        ensure!(
            shape == [outputs],
            "tensor {:?} has shape {shape:?}: expected [{outputs}]",
            bias.name()
        );
        let width = |n: u64| {
            usize::try_from(n)
                .ok()
                .filter(|&n| n as u64 <= ttrec::limits::MAX_LAYER_WIDTH && n > 0)
        };
        let (Some(outputs), Some(inputs)) = (width(outputs), width(inputs)) else {
            bail!(
                "tensor {name:?} has shape {:?}: expected 1 to {} each",
                weight.shape(),
                ttrec::limits::MAX_LAYER_WIDTH
            );
        };
        Ok(Self { weight, bias, inputs, outputs })
    }
}

/// The weights of the layers whose names start with `stem`, in numeric order.
fn layers(checkpoint: &Checkpoint, stem: &str) -> Vec<String> {
    let of_stack = checkpoint.tensors().map(Tensor::name);
    let mut names: Vec<&str> = of_stack
        .filter(|name| name.starts_with(stem) && name.ends_with(".weight"))
        .collect();
    names.sort_by_cached_key(|name| natural(name));
    names.into_iter().map(str::to_owned).collect()
}

/// The prefix of `part` in a tensor's name: empty, or the path of the model.
fn prefix<'n>(name: &'n str, part: &str) -> Option<&'n str> {
    name.find(part)
        .map(|at| &name[..at])
        .filter(|prefix| prefix.is_empty() || prefix.ends_with('.'))
}

/// A sort key that compares runs of digits as numbers.
pub(super) fn natural(name: &str) -> Vec<(u64, String)> {
    let mut key = vec![(0u64, String::new())];
    let mut in_digits = false;
    for c in name.chars() {
        match (c.to_digit(10), key.last_mut()) {
            (Some(digit), Some((number, _))) if in_digits => {
                *number = number.saturating_mul(10).saturating_add(digit.into());
            }
            (Some(digit), _) => key.push((u64::from(digit), String::new())),
            (None, Some((_, text))) => text.push(c),
            (None, None) => {}
        }
        in_digits = c.is_ascii_digit();
    }
    key
}

/// The number at the end of a table's prefix.
fn number(prefix: Option<&str>) -> Option<u64> {
    let name = prefix?.trim_end_matches('.');
    let digits = name.len() - name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    name[name.len() - digits..].parse().ok()
}
