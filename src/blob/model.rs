//! The model of a blob: the layers around its tables, and their checks.

#![forbid(unsafe_code)]

use super::{
    Blob, MAX_LAYER_WIDTH, Role, Section,
    error::{ErrorSlot, Location, Refused, Rule},
    parse::{SectionCursor, Sections},
    record::LayerRecord,
};
use crate::{
    Pooling,
    codes::codes,
    dtype::{Dtype, Elements},
};

/// Which of a model's two perceptrons a layer belongs to. The discriminants are the codes of
/// `docs/format.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[repr(u8)]
pub enum Stack {
    /// The perceptron of the dense features. Its last layer has `embedding_dim` outputs.
    Bottom = 1,
    /// The perceptron of the interaction. Its last layer has one output, the score.
    Top = 2,
}

/// What follows the linear part of a layer. The discriminants are the codes of `docs/format.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[repr(u8)]
pub enum Activation {
    /// Nothing.
    None = 0,
    /// `max(0, x)`.
    Relu = 1,
    /// `1 / (1 + exp(-x))`: the last layer only.
    Sigmoid = 2,
}

/// How the vectors of a sample become the inputs of the top perceptron. Vector 0 is the bottom's,
/// if there is one; then come those of the tables. The discriminants are the codes of
/// `docs/format.md`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
#[repr(u8)]
pub enum Interaction {
    /// The bottom's vector, then the dot product of each pair of vectors.
    #[default]
    Dot = 1,
    /// As [`Dot`](Self::Dot), and the dot product of each vector with itself.
    DotItself = 2,
    /// The vectors, one after another.
    Cat = 3,
}

codes!(Interaction: Dot "dot", DotItself "dot-itself", Cat "cat");
codes!(Stack: Bottom "bottom", Top "top");
codes!(Activation: None "none", Relu "relu", Sigmoid "sigmoid");

/// A table that the model looks up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelTable {
    /// The table's position in the blob, or among the tables of a trained model.
    pub table: usize,
    /// How a bag is pooled: by [`Pooling::Sum`] or [`Pooling::Mean`].
    pub pooling: Pooling,
}

/// The bit in a code that means [`Pooling::Mean`].
const MEAN: u32 = 1 << 31;

impl From<usize> for ModelTable {
    /// The table at this position, whose bags are summed.
    fn from(table: usize) -> Self {
        Self { table, pooling: Pooling::Sum }
    }
}

impl ModelTable {
    fn from_code(code: u32) -> Self {
        let pooling = if code & MEAN != 0 { Pooling::Mean } else { Pooling::Sum };
        Self { table: (code & !MEAN) as usize, pooling }
    }

    #[cfg(feature = "alloc")]
    pub(super) fn code(place: u32, pooling: Pooling) -> u32 {
        place | if pooling == Pooling::Mean { MEAN } else { 0 }
    }
}

/// One layer, whose elements lie in the blob: `activation(x . weights * scales + bias)`.
#[non_exhaustive]
#[derive(Clone, Copy, Debug)]
pub struct Layer<'a> {
    /// The perceptron it belongs to.
    pub stack: Stack,
    /// Number of inputs.
    pub inputs: usize,
    /// Number of outputs.
    pub outputs: usize,
    /// What follows the linear part.
    pub activation: Activation,
    /// `inputs x outputs`, row-major: the transpose of `torch.nn.Linear`'s.
    pub weights: Elements<'a>,
    /// One scale per output if the weights are i8, else empty.
    pub scales: &'a [f32],
    /// One bias per output.
    pub bias: &'a [f32],
}

impl Interaction {
    /// Number of inputs of the top perceptron for `num_vectors` vectors of `embedding_dim`
    /// elements, the first one of which is the bottom's if there is a bottom.
    pub fn top_inputs(self, num_vectors: usize, embedding_dim: usize, has_bottom: bool) -> usize {
        let direct = if has_bottom { embedding_dim } else { 0 };
        let others = match self {
            Self::Dot => num_vectors.saturating_sub(1),
            Self::DotItself => num_vectors.saturating_add(1),
            Self::Cat => return num_vectors.saturating_mul(embedding_dim),
        };
        direct.saturating_add(num_vectors.saturating_mul(others) / 2)
    }
}

impl<'a> Blob<'a> {
    /// Number of layers of the model, those of the bottom perceptron first; 0 if the blob has no
    /// model.
    pub fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// The layer at `position`; `None` past the last.
    pub fn layer(&self, position: usize) -> Option<Layer<'a>> {
        let record = self.layers.get(position)?;
        ErrorSlot::with(|slot| self.read_layer(position, record, slot)).ok()
    }

    /// Every layer, in order.
    pub fn layers(&self) -> impl Iterator<Item = Layer<'a>> + use<'a> {
        let blob = *self;
        (0..blob.num_layers()).filter_map(move |position| blob.layer(position))
    }

    /// The interaction of the model; `None` if the blob has no model.
    pub fn interaction(&self) -> Option<Interaction> {
        (self.num_layers() > 0).then_some(self.interaction)
    }

    /// How many tables the model looks up.
    pub fn num_model_tables(&self) -> usize {
        self.model_tables.len()
    }

    /// The tables that the model looks up, in the model's order. A table may occur several times.
    pub fn model_tables(&self) -> impl Iterator<Item = ModelTable> + use<'a> {
        self.model_tables.iter().map(|&code| ModelTable::from_code(code))
    }

    /// The sections of the layer at `position`, in file order.
    pub fn layer_sections(&self, position: usize) -> impl Iterator<Item = Section> + '_ {
        let record = self.layers.get(position);
        let sections = record.and_then(|record| {
            ErrorSlot::with(|slot| self.sections_of_layer(position, record, slot)).ok()
        });
        sections.into_iter().flat_map(Sections::iter)
    }

    /// The layer at position `layer`. Checks its sections against its widths.
    pub(super) fn read_layer(
        &self,
        layer: usize,
        record: &LayerRecord,
        slot: &ErrorSlot,
    ) -> Result<Layer<'a>, Refused> {
        let at = slot.at(Location::Layer(layer));
        let unknown = |rule, found: u8| at.refuse(rule, found.into(), 2);
        let stack =
            Stack::from_code(record.stack).ok_or_else(|| unknown(Rule::Stack, record.stack))?;
        let activation = Activation::from_code(record.activation)
            .ok_or_else(|| unknown(Rule::Activation, record.activation))?;
        at.holds(Rule::Reserved, record.reserved == [0; 14])?;
        at.one_to(Rule::Inputs, record.inputs.into(), MAX_LAYER_WIDTH)?;
        at.one_to(Rule::Outputs, record.outputs.into(), MAX_LAYER_WIDTH)?;
        let mut sections =
            SectionCursor::new(self, at, self.sections_of_layer(layer, record, slot)?);
        let (inputs, outputs) = (record.inputs as usize, record.outputs as usize);
        let weights =
            sections.elements(Role::LayerWeights(layer), record.inputs.into(), outputs)?;
        let scales = if weights.dtype() == Dtype::I8 {
            sections.floats(Role::LayerScales(layer), outputs as u64, 1)?
        } else {
            &[]
        };
        let bias = sections.floats(Role::LayerBias(layer), outputs as u64, 1)?;
        sections.finish()?;
        Ok(Layer { stack, inputs, outputs, activation, weights, scales, bias })
    }

    /// Checks the model as a whole: its tables, and that each layer takes what the one before
    /// makes.
    pub(super) fn check_model(&self, slot: &ErrorSlot) -> Result<(), Refused> {
        for (position, ModelTable { table, .. }) in self.model_tables().enumerate() {
            let at = slot.at(Location::ModelTable(position));
            if table >= self.num_tables() {
                let (found, expected) = (table as u64, self.num_tables() as u64);
                return Err(at.refuse(Rule::ModelTable, found, expected));
            }
        }
        let num_tables = self.model_tables.len();
        let mut before: Option<Layer<'_>> = None;
        for (position, record) in self.layers.iter().enumerate() {
            let at = slot.at(Location::Layer(position));
            let layer = self.read_layer(position, record, slot)?;
            let expected = match (before, layer.stack) {
                (None, Stack::Bottom) => layer.inputs,
                (None, Stack::Top) if num_tables > 1 => {
                    let dim = self.model_dim();
                    self.check_embedding_dims(dim, slot)?;
                    self.interaction.top_inputs(num_tables, dim, false)
                }
                (None, Stack::Top) => {
                    let found = num_tables as u64;
                    return Err(slot.at(Location::Model).refuse(Rule::NoBottom, found, 2));
                }
                (Some(Layer { stack: Stack::Bottom, outputs, .. }), Stack::Top) => {
                    self.check_embedding_dims(outputs, slot)?;
                    self.interaction.top_inputs(num_tables.saturating_add(1), outputs, true)
                }
                (Some(Layer { stack: Stack::Top, .. }), Stack::Bottom) => {
                    return Err(at.refuse(Rule::StackOrder, 0, 0));
                }
                (Some(before), _) => before.outputs,
            };
            at.equal(Rule::InputWidth, layer.inputs as u64, expected as u64)?;
            let is_last = position.saturating_add(1) == self.layers.len();
            at.holds(Rule::Sigmoid, is_last || layer.activation != Activation::Sigmoid)?;
            if layer.stack == Stack::Top && is_last {
                at.equal(Rule::OutputWidth, layer.outputs as u64, 1)?;
            }
            before = Some(layer);
        }
        let last = before.map(|layer| layer.stack);
        slot.at(Location::Model).holds(Rule::NoTop, last != Some(Stack::Bottom))
    }

    /// Length of the model's vectors: `embedding_dim` of its tables.
    pub(crate) fn model_dim(&self) -> usize {
        let bottom = self.layers().take_while(|layer| layer.stack == Stack::Bottom).last();
        let first = || self.model_tables().next().and_then(|of| self.tables.get(of.table));
        bottom.map_or_else(
            || first().map_or(0, |record| record.embedding_dim as usize),
            |layer| layer.outputs,
        )
    }

    /// `num_embeddings` of the table at `position`; 0 past the last.
    pub(crate) fn num_embeddings(&self, position: usize) -> u64 {
        self.tables.get(position).map_or(0, |record| record.num_embeddings)
    }

    /// Refuses tables of the model whose rows do not have `expected` elements.
    fn check_embedding_dims(&self, expected: usize, slot: &ErrorSlot) -> Result<(), Refused> {
        self.model_tables().try_for_each(|ModelTable { table, .. }| {
            let found = self.tables.get(table).map_or(0, |record| record.embedding_dim);
            slot.at(Location::Table(table))
                .equal(Rule::ModelDim, found.into(), expected as u64)
        })
    }
}
