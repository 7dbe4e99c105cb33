//! Models: the MLPs around a checkpoint's tables, as DLRM and TorchRec name their layers.

use super::{Survey, require, require_float};
use crate::{
    checkpoint::{Checkpoint, Tensor},
    spec::{ModelSpec, Pooling, Prefixes, TableSpec},
};
use anyhow::{Context, Result, bail, ensure};
use ttrec::{
    blob::{self, Activation, Interaction, LayerSpec, ModelTable},
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
    LayerNames { dialect: "dlrm", stacks: ["bot_l.", "top_l."], pairs: Pairs::Lower, others: &[] },
    // `InteractionArch` takes its pairs from `triu_indices`.
    LayerNames {
        dialect: "torchrec",
        stacks: ["dense_arch.", "over_arch."],
        pairs: Pairs::Upper,
        others: &[("inter_arch.", "an interaction that is trained")],
    },
];

/// More prefixes of layers than these are of no model that can be converted.
const MAX_STEMS: usize = 4;

/// A model of a checkpoint, ready to be read.
pub(crate) struct Model<'c> {
    pub(crate) dtype: Dtype,
    pub(crate) bottom: Vec<Linear<'c>>,
    pub(crate) top: Vec<Linear<'c>>,
    pairs: Pairs,
    /// The interaction, if it is known.
    interaction: Option<Interaction>,
    /// How the rows of a bag are pooled where a table does not say it, if that is known.
    pooling: Option<Pooling>,
    /// Some of DLRM's learned weights of rows, if there are any.
    row_weights: Option<&'c Tensor>,
    spec: ModelSpec,
}

/// A `torch.nn.Linear`: outputs x inputs.
pub(crate) struct Linear<'c> {
    /// `None`: the only input is the output.
    weight: Option<&'c Tensor>,
    /// `None`: zeros.
    bias: Option<&'c Tensor>,
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
        // `ttrec train` needs no top MLP where the interaction is one product.
        if found.is_empty() && checkpoint.metadata(super::FACTS).is_some() {
            let (dialect, top) = (Some("dlrm".to_owned()), Some(Prefixes::default()));
            found.push(ModelSpec { dialect, top, ..ModelSpec::default() });
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
        let is_whole = all && !survey.tables.is_empty();
        // Since no table is missing, the widths of the layers tell the interaction.
        is_whole.then(|| {
            let opened = Self::open(survey.checkpoint, model).ok();
            let dims = survey.dims();
            let fitting = opened.and_then(|opened| match opened.fitting(&dims)[..] {
                [interaction] => Some(interaction),
                _ => None,
            });
            let interaction = fitting.filter(|&interaction| interaction != Interaction::Dot);
            ModelSpec { interaction, ..model.clone() }
        })
    }

    /// The model of a whole checkpoint, or of one whose metadata lists its tables.
    pub(crate) fn around(survey: &Survey<'c>) -> Option<ModelSpec> {
        if survey.complete {
            let model = Self::detect(survey.checkpoint).into_iter().next()?;
            Some(ModelSpec { tables: survey.of_model.clone(), ..model })
        } else {
            Self::whole(survey)
        }
    }

    /// The only model that layers with names of their own make around all tables that were found,
    /// by the widths of the layers.
    pub(crate) fn suggest(survey: &Survey<'c>) -> Option<ModelSpec> {
        let dims = survey.dims();
        let stems = stems(survey.checkpoint);
        if dims.contains(&0) || stems.len() > MAX_STEMS {
            return None;
        }
        let stack = |stems: &[&String]| Prefixes(stems.iter().map(|&stem| stem.clone()).collect());
        // A stack has one stem, or two: `mlp.0`, `mlp.2`, `out`.
        let pairs = stems.iter().flat_map(|a| stems.iter().map(move |b| vec![a, b]));
        let stacks: Vec<Vec<&String>> = stems
            .iter()
            .map(|stem| vec![stem])
            .chain(pairs.filter(|pair| pair[0] != pair[1]))
            .collect();
        let mut found = Vec::new();
        for top in &stacks {
            for bottom in [Vec::new()].iter().chain(&stacks) {
                if bottom.len() + top.len() < stems.len() || bottom.iter().any(|b| top.contains(b))
                {
                    continue;
                }
                let spec = ModelSpec {
                    bottom: Some(stack(bottom)).filter(|bottom| !bottom.0.is_empty()),
                    top: Some(stack(top)),
                    pooling: Some(Pooling::Sum),
                    ..ModelSpec::default()
                };
                let Ok(model) = Self::open(survey.checkpoint, &spec) else { continue };
                for interaction in model.fitting(&dims) {
                    let spec = ModelSpec { interaction: Some(interaction), ..spec.clone() };
                    let model = Self::open(survey.checkpoint, &spec).ok();
                    if model.is_some_and(|model| model.layout(&survey.tables, &dims).is_ok()) {
                        found.push(ModelSpec { pooling: None, ..spec });
                    }
                }
            }
        }
        if found.len() == 1 { found.pop() } else { None }
    }

    /// The model that `spec` describes.
    pub(crate) fn open(checkpoint: &'c Checkpoint, spec: &ModelSpec) -> Result<Self> {
        let own = spec.bottom.is_some() || spec.top.is_some();
        let naming = match spec.dialect.as_deref() {
            Some(name) => {
                let naming = NAMINGS.iter().find(|naming| naming.dialect == name);
                Some(naming.with_context(|| {
                    let known = NAMINGS.map(|naming| naming.dialect);
                    format!("dialect {name:?}: expected one of {known:?}")
                })?)
            }
            None if own => None,
            None => {
                let has = |naming: &&LayerNames| {
                    let of = |stack: &&str| layers(checkpoint, &spec.full_name(stack));
                    naming.stacks.iter().any(|stack| !of(stack).is_empty())
                };
                Some(NAMINGS.iter().find(has).with_context(|| {
                    let prefix = spec.prefix.as_deref().unwrap_or_default();
                    format!(
                        "no layers after prefix {prefix:?}: expected {prefix}bot_l.0.weight or \
                         {prefix}dense_arch...; if the layers have other names, set `top` and \
                         `bottom` to the prefixes of these (`top = []`: the score is the product \
                         of the rows of two tables)"
                    )
                })?)
            }
        };
        for (key, what) in naming.iter().flat_map(|naming| naming.others) {
            let prefix = spec.full_name(key);
            if let Some(tensor) =
                checkpoint.tensors().find(|tensor| tensor.name().starts_with(&prefix))
            {
                bail!("tensor {:?}: {what} is not supported", tensor.name());
            }
        }
        let stack = |given: &Option<Prefixes>, position: usize| -> Result<Vec<Linear<'c>>> {
            let usual = || naming.iter().map(|naming| spec.full_name(naming.stacks[position]));
            let prefixes: Vec<String> = match given {
                Some(Prefixes(given)) => given.iter().map(|given| spec.full_name(given)).collect(),
                None => usual().collect(),
            };
            let mut stack = Vec::new();
            for prefix in prefixes {
                let layers = open_layers(checkpoint, &prefix)?;
                // A model without dense features has no bottom MLP.
                ensure!(
                    !layers.is_empty() || given.is_none(),
                    "no layers after {prefix:?}: the checkpoint has no tensor {prefix}*.weight"
                );
                stack.extend(layers);
            }
            Ok(stack)
        };
        let (bottom, mut top) = (stack(&spec.bottom, 0)?, stack(&spec.top, 1)?);
        if top.is_empty() {
            let usual = naming.map_or("", |naming| naming.stacks[1]);
            ensure!(
                spec.top.is_some(),
                "the top MLP is missing: no tensor {}*.weight",
                spec.full_name(usual)
            );
            top.push(Linear { weight: None, bias: None, inputs: 1, outputs: 1 });
        }
        let dtype = spec.dtype.unwrap_or(Dtype::F32);
        ensure!(
            dtype.suits_cores(),
            "layers cannot be {}: set `dtype` of [model] to f32, f16, bf16 or i8",
            dtype.name()
        );
        let pairs = naming.map_or(Pairs::Lower, |naming| naming.pairs);
        ensure!(
            pairs == Pairs::Lower || spec.interaction != Some(Interaction::DotItself),
            "`interaction` is \"dot-itself\", which TorchRec's models do not have"
        );
        // `ttrec train` and TorchRec have no other interaction.
        let is_dot = pairs == Pairs::Upper || checkpoint.metadata(super::FACTS).is_some();
        let interaction = spec.interaction.or(is_dot.then_some(Interaction::Dot));
        // DLRM and TorchRec sum.
        let pooling = spec.pooling.or(naming.map(|_| Pooling::Sum));
        let row_weights = spec.full_name("v_W_l.");
        let row_weights =
            checkpoint.tensors().find(|tensor| tensor.name().starts_with(&row_weights));
        let spec = spec.clone();
        Ok(Self { dtype, bottom, top, pairs, interaction, pooling, row_weights, spec })
    }

    /// The layers of the bottom MLP, then those of the top MLP.
    pub(crate) fn layers(&self) -> impl Iterator<Item = &Linear<'c>> {
        self.bottom.iter().chain(&self.top)
    }

    /// The inputs that an interaction of tables of `dims` columns gives the top MLP.
    fn top_inputs(&self, interaction: Interaction, dims: &[usize]) -> usize {
        let bottom = self.bottom.last().map(|linear| linear.outputs);
        let dim = bottom.or(dims.first().copied()).unwrap_or(0);
        let num_vectors = dims.len() + usize::from(bottom.is_some());
        interaction.top_inputs(num_vectors, dim, bottom.is_some())
    }

    /// The interactions that fit the first layer of the top MLP.
    fn fitting(&self, dims: &[usize]) -> Vec<Interaction> {
        if let Some(interaction) = self.interaction {
            return vec![interaction];
        }
        let inputs = self.top[0].inputs;
        let fits = |of: &Interaction| self.top_inputs(*of, dims) == inputs;
        Interaction::ALL.iter().copied().filter(fits).collect()
    }

    /// The interaction of tables of `dims` columns.
    fn interaction(&self, dims: &[usize]) -> Result<Interaction> {
        let first = &self.top[0];
        let fitting = self.fitting(dims);
        let usual = self.interaction.unwrap_or(Interaction::Dot);
        let expected = self.top_inputs(usual, dims);
        let is_usual = expected == first.inputs;
        if is_usual && fitting == [usual] {
            return Ok(usual);
        }
        let tables = match dims.len() {
            1 => "1 table".to_owned(),
            count => format!("{count} tables"),
        };
        let vectors = match self.bottom.last() {
            Some(last) => format!("{tables} and a bottom MLP of {} outputs", last.outputs),
            None => tables,
        };
        let Some(weight) = first.weight else {
            bail!(
                "without a top MLP, the interaction has to be one number, but {vectors} give \
                 {expected}"
            );
        };
        let (name, inputs) = (weight.name(), first.inputs);
        let settings: Vec<String> =
            fitting.iter().map(|of| format!("`interaction = {:?}`", of.name())).collect();
        if is_usual {
            bail!(
                "tensor {name:?} has {inputs} inputs, which fit several interactions of {vectors}: \
                 set {} in [model]",
                settings.join(" or ")
            );
        }
        let hint = match (self.interaction, &settings[..]) {
            (None, [_, ..]) => format!(" If so, set {} in [model].", settings.join(" or ")),
            _ => String::new(),
        };
        bail!(
            "tensor {name:?} has {inputs} inputs, but {vectors} give {expected} (`interaction = \
             {:?}`): does the spec list all tables of the model?{hint}",
            usual.name()
        );
    }

    /// The model's tables, by their positions among those of the spec.
    fn tables(&self, tables: &[TableSpec]) -> Result<Vec<ModelTable>> {
        let positions = if self.spec.tables.is_empty() {
            (0..tables.len()).collect()
        } else {
            let position = |name: &String| {
                let found = tables.iter().position(|table| self.spec.lists(name, table));
                found.with_context(|| format!("no [[table]] has the name {name:?} of `tables`"))
            };
            self.spec.tables.iter().map(position).collect::<Result<Vec<_>>>()?
        };
        let of_model = |table: usize| {
            let spec = &tables[table];
            if let Some(weights) = self.row_weights {
                // Another reader of the tensor would leave them out.
                ensure!(
                    spec.prefix.is_some() && spec.dialect.as_deref().is_none_or(|of| of == "dlrm"),
                    "table {:?}: tensor {:?} has learned weights of rows: name the table by its \
                     `prefix`, such as \"emb_l.0.\", so that they are multiplied into the rows",
                    spec.blob_name().unwrap_or_default(),
                    weights.name()
                );
            }
            let pooling = spec.pooling.or(self.pooling).with_context(|| {
                format!(
                    "table {:?}: `pooling` is missing: the checkpoint does not say how the model \
                     pools the rows of a bag: set it to \"sum\" or \"mean\" in [model] or in \
                     [[table]] (torch.nn.EmbeddingBag averages, unless its `mode` says otherwise; \
                     for one index in each bag, both are right)",
                    spec.blob_name().unwrap_or_default()
                )
            })?;
            let pooling = match pooling {
                Pooling::Mean if spec.padding_idx.is_some() => bail!(
                    "table {:?}: `padding_idx` does not apply to a table that is averaged, because \
                     a row of zeros counts in the mean: leave the index out of the bags",
                    spec.blob_name().unwrap_or_default()
                ),
                Pooling::Mean => ttrec::Pooling::Mean,
                Pooling::Sum => ttrec::Pooling::Sum,
            };
            Ok(ModelTable { table, pooling })
        };
        positions.into_iter().map(of_model).collect()
    }

    /// The model of the blob with these tables, which have `dims` columns. ReLU follows every layer
    /// except the last, whose sigmoid TorchRec and many others compute in the loss.
    pub(crate) fn layout(&self, tables: &[TableSpec], dims: &[usize]) -> Result<blob::ModelSpec> {
        let tables = self.tables(tables)?;
        let dims: Vec<usize> = tables.iter().map(|of| dims[of.table]).collect();
        let interaction = self.interaction(&dims)?;
        for stack in [&self.bottom, &self.top] {
            for [before, after] in stack.array_windows() {
                ensure!(
                    after.inputs == before.outputs,
                    "tensor {:?} has {} inputs, but the layer before has {} outputs",
                    after.weight_name(),
                    after.inputs,
                    before.outputs
                );
            }
        }
        let outputs = self.top.last().map_or(0, |linear| linear.outputs);
        ensure!(outputs == 1, "the last layer of the top MLP has {outputs} outputs: expected 1");
        let layers = |stack: &[Linear<'_>], end: Activation| -> Vec<LayerSpec> {
            let layer = |(left, linear): (usize, &Linear<'_>)| LayerSpec {
                inputs: linear.inputs,
                outputs: linear.outputs,
                activation: if left == 0 { end } else { Activation::Relu },
                dtype: self.dtype,
            };
            (0..stack.len()).rev().zip(stack).map(layer).collect()
        };
        Ok(blob::ModelSpec {
            tables,
            interaction,
            bottom: layers(&self.bottom, Activation::Relu),
            top: layers(&self.top, Activation::Sigmoid),
        })
    }

    /// The weights of a layer in the blob's order, inputs x outputs, and its bias.
    pub(crate) fn read(&self, layer: usize) -> Result<(Vec<f32>, Vec<f32>)> {
        let linear = self.layers().nth(layer).context("no such layer")?;
        let (inputs, outputs) = (linear.inputs, linear.outputs);
        let mut weights = crate::allocate::zeros(
            inputs.checked_mul(outputs).context("a layer of too many weights")?,
        )?;
        match linear.weight {
            Some(weight) => weight.read_f32(0, &mut weights)?,
            None => weights.fill(1.0),
        }
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
        if let Some(tensor) = linear.bias {
            tensor.read_f32(0, &mut bias)?;
        }
        Ok((transposed, bias))
    }

    /// For each input of the top MLP in the blob, its position in the checkpoint.
    fn input_order(&self, inputs: usize) -> Vec<usize> {
        let dim = self.bottom.last().map_or(0, |linear| linear.outputs);
        if self.pairs == Pairs::Lower || self.interaction != Some(Interaction::Dot) {
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
        let tensors = self.layers().nth(layer).map(|linear| [linear.weight, linear.bias]);
        let tensors = tensors.into_iter().flatten().flatten();
        tensors.map(bytes).fold(0, u64::saturating_add)
    }

    /// The name of a layer's weights.
    pub(crate) fn name(&self, layer: usize) -> &'c str {
        self.layers().nth(layer).map_or("", Linear::weight_name)
    }
}

impl<'c> Linear<'c> {
    fn weight_name(&self) -> &'c str {
        self.weight.map_or("no layer", Tensor::name)
    }

    fn open(checkpoint: &'c Checkpoint, name: &str) -> Result<Self> {
        let bias = format!("{}bias", name.strip_suffix("weight").unwrap_or(name));
        let weight = require(checkpoint, name)?;
        let bias = checkpoint.find(&bias)?;
        require_float(weight)?;
        let &[outputs, inputs] = weight.shape() else {
            bail!(
                "tensor {name:?} has shape {:?}: expected outputs x inputs, because only linear \
                 layers with ReLU between them can be converted",
                weight.shape()
            );
        };
        if let Some(bias) = bias {
            require_float(bias)?;
            ensure!(
                bias.shape() == [outputs],
                "tensor {:?} has shape {:?}: expected [{outputs}]",
                bias.name(),
                bias.shape()
            );
        }
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
        Ok(Self { weight: Some(weight), bias, inputs, outputs })
    }
}

/// The layers whose names start with `stem`, which must be all that has such a name.
fn open_layers<'c>(checkpoint: &'c Checkpoint, stem: &str) -> Result<Vec<Linear<'c>>> {
    let names = layers(checkpoint, stem);
    let is_layer = |tensor: &&Tensor| {
        let name = tensor.name();
        let of_layer = |weight: &String| {
            name == weight || name.strip_suffix("bias") == weight.strip_suffix("weight")
        };
        names.iter().any(of_layer) || checkpoint.is_optimizer_state(name)
    };
    let of_stack = checkpoint.tensors().filter(|tensor| tensor.name().starts_with(stem));
    if let Some(other) = of_stack.filter(|_| !names.is_empty()).find(|tensor| !is_layer(tensor)) {
        bail!(
            "tensor {:?}: expected the weight or the bias of a linear layer, because only linear \
             layers with ReLU between them can be converted",
            other.name()
        );
    }
    names.iter().map(|name| Linear::open(checkpoint, name)).collect()
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

/// The prefixes of linear layers, which have a bias, without the numbers at the ends.
fn stems(checkpoint: &Checkpoint) -> Vec<String> {
    let stem = |tensor: &Tensor| {
        let layer = tensor.name().strip_suffix("weight")?;
        let bias = checkpoint.tensor(&format!("{layer}bias"))?;
        let is_linear = tensor.shape().len() == 2 && bias.shape() == &tensor.shape()[..1];
        let whole = layer.trim_end_matches('.');
        let stem = whole.trim_end_matches(|c: char| c.is_ascii_digit());
        let stem = if stem.len() < whole.len() && !stem.is_empty() {
            stem
        } else {
            layer
        };
        (is_linear && !checkpoint.is_optimizer_state(tensor.name())).then(|| stem.to_owned())
    };
    let mut stems: Vec<String> = checkpoint.tensors().filter_map(stem).collect();
    stems.dedup();
    stems
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
