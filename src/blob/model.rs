//! The model of a blob: the layers around its tables, as `docs/format.md` lays them out, checked.

#![forbid(unsafe_code)]

use super::{
    Blob, MAX_LAYER_WIDTH, Role, Section,
    parse::SectionCursor,
    record::{LayerRecord, SectionRecord},
};
use crate::{
    dtype::{Dtype, Elements},
    error::BlobError,
};

/// Which of a model's two perceptrons a layer belongs to. The discriminants are the codes of
/// `docs/format.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stack {
    /// Of dense features; as wide as a row at its end.
    Bottom = 1,
    /// Of what the interaction makes; its end is the score.
    Top = 2,
}

/// What follows the linear part of a layer. The discriminants are the codes of `docs/format.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Activation {
    /// Nothing.
    None = 0,
    /// `max(0, x)`.
    Relu = 1,
    /// `1 / (1 + exp(-x))`: at the model's end only.
    Sigmoid = 2,
}

impl Activation {
    /// The name used in listings: `none`, `relu`, `sigmoid`.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Relu => "relu",
            Self::Sigmoid => "sigmoid",
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        [Self::None, Self::Relu, Self::Sigmoid]
            .into_iter()
            .find(|&activation| activation as u8 == code)
    }
}

/// A table that the model looks up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelTable {
    /// Its position among the tables.
    pub table: usize,
    /// Whether the rows of a bag are averaged, and not summed.
    pub mean: bool,
}

/// The bit of a model's table that says [`ModelTable::mean`].
const MEAN: u32 = 1 << 31;

impl From<usize> for ModelTable {
    /// The table at this position, its rows summed.
    fn from(table: usize) -> Self {
        Self { table, mean: false }
    }
}

impl ModelTable {
    fn from_code(code: u32) -> Self {
        Self { table: (code & !MEAN) as usize, mean: code & MEAN != 0 }
    }

    #[cfg(feature = "alloc")]
    pub(super) fn code(place: u32, mean: bool) -> u32 {
        place | if mean { MEAN } else { 0 }
    }
}

/// One layer as it lies in a blob: `activation(x . weights * scales + bias)`.
#[derive(Clone, Copy, Debug)]
pub struct Layer<'a> {
    /// The perceptron it belongs to.
    pub stack: Stack,
    /// Width of x.
    pub inputs: usize,
    /// Width of what becomes of it.
    pub outputs: usize,
    /// What comes last.
    pub activation: Activation,
    /// `inputs x outputs`, row-major: the transpose of `torch.nn.Linear`'s.
    pub weights: Elements<'a>,
    /// One scale per output if the weights are i8, else empty.
    pub scales: &'a [f32],
    /// One per output.
    pub bias: &'a [f32],
}

/// Inputs of the top perceptron: the elements of the bottom's vector, if there is one, and the dot
/// product of each pair among `num_vectors`.
pub(crate) fn top_inputs(num_vectors: usize, direct_len: usize) -> usize {
    let pairs = num_vectors.saturating_mul(num_vectors.saturating_sub(1)) / 2;
    direct_len.saturating_add(pairs)
}

impl<'a> Blob<'a> {
    /// Number of layers of the model, those of the bottom perceptron first; 0 if the blob is of
    /// tables only.
    pub fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// The layer at `position`; `None` past the last.
    pub fn layer(&self, position: usize) -> Option<Layer<'a>> {
        self.read_layer(position).ok()
    }

    /// Every layer, in order.
    pub fn layers(&self) -> impl Iterator<Item = Layer<'a>> + use<'a> {
        let blob = *self;
        (0..blob.num_layers()).filter_map(move |position| blob.layer(position))
    }

    /// How many tables the model looks up.
    pub fn num_model_tables(&self) -> usize {
        self.model_tables.len()
    }

    /// The tables that the model looks up, in its order; one may be there several times.
    pub fn model_tables(&self) -> impl Iterator<Item = ModelTable> + use<'a> {
        self.model_tables.iter().map(|&code| ModelTable::from_code(code))
    }

    /// The sections of the layer at `position`, in file order.
    pub fn layer_sections(&self, position: usize) -> impl Iterator<Item = Section> + '_ {
        let owned = self.layers.get(position).and_then(|layer| self.sections_of_layer(layer));
        owned.unwrap_or_default().iter().filter_map(Section::read)
    }

    pub(super) fn sections_of_layer(&self, record: &LayerRecord) -> Option<&'a [SectionRecord]> {
        self.section_range(record.first_section, record.num_sections)
    }

    /// The layer at `position`, its sections checked against its widths.
    pub(super) fn read_layer(&self, layer: usize) -> Result<Layer<'a>, BlobError> {
        let record = self.layers.get(layer).ok_or(BlobError::NoModel)?;
        let unknown = |field, found: u8| BlobError::LayerCode { layer, field, found };
        let stack = match record.stack {
            1 => Stack::Bottom,
            2 => Stack::Top,
            found => return Err(unknown("stack", found)),
        };
        let activation = Activation::from_code(record.activation)
            .ok_or(unknown("activation", record.activation))?;
        if record.reserved != [0; 14] {
            return Err(BlobError::Reserved { what: "layer", position: layer });
        }
        for (field, found) in [("inputs", record.inputs), ("outputs", record.outputs)] {
            if !(1..=MAX_LAYER_WIDTH).contains(&found.into()) {
                return Err(BlobError::LayerWidth { layer, field, found, expected: 0 });
            }
        }
        let owner = BlobError::LayerSections { layer };
        let rest = self.sections_of_layer(record).ok_or(owner)?;
        let mut sections =
            SectionCursor { blob: self, owner, section: record.first_section as usize, rest };
        let (inputs, outputs) = (record.inputs as usize, record.outputs as usize);
        let weights =
            sections.elements(Role::LayerWeights(layer), record.inputs.into(), outputs)?;
        let scales = if weights.dtype() == Dtype::I8 {
            sections.floats(Role::LayerScales(layer), outputs as u64)?
        } else {
            &[]
        };
        let bias = sections.floats(Role::LayerBias(layer), outputs as u64)?;
        if !sections.rest.is_empty() {
            return Err(owner);
        }
        Ok(Layer { stack, inputs, outputs, activation, weights, scales, bias })
    }

    /// The model as a whole: its tables, and how its layers follow each other.
    pub(super) fn check_model(&self) -> Result<(), BlobError> {
        let mut tables = self.model_tables().enumerate();
        if let Some((position, ModelTable { table, .. })) =
            tables.find(|(_, of)| of.table >= self.num_tables())
        {
            return Err(BlobError::ModelTable { position, found: table as u32 });
        }
        let Some(last) = self.layers.len().checked_sub(1) else { return Ok(()) };
        let mut before: Option<Layer<'_>> = None;
        for position in 0..self.layers.len() {
            let layer = self.read_layer(position)?;
            let expected = match (before, layer.stack) {
                (None, Stack::Bottom) => layer.inputs,
                (None, Stack::Top) if self.model_tables.len() > 1 => {
                    self.check_embedding_dims(self.model_dim())?;
                    top_inputs(self.model_tables.len(), 0)
                }
                (Some(Layer { stack: Stack::Bottom, outputs, .. }), Stack::Top) => {
                    self.check_embedding_dims(outputs)?;
                    top_inputs(self.model_tables.len().saturating_add(1), outputs)
                }
                (Some(before), stack) if before.stack == stack => before.outputs,
                _ => return Err(BlobError::LayerOrder { layer: position }),
            };
            if layer.inputs != expected {
                let (found, expected) = (layer.inputs as u32, expected as u64);
                return Err(BlobError::LayerWidth {
                    layer: position,
                    field: "inputs",
                    found,
                    expected,
                });
            }
            if layer.activation == Activation::Sigmoid && position != last {
                return Err(BlobError::LayerOrder { layer: position });
            }
            before = Some(layer);
        }
        match before {
            Some(Layer { stack: Stack::Top, outputs: 1, .. }) => Ok(()),
            Some(Layer { stack: Stack::Top, outputs, .. }) => {
                let found = outputs as u32;
                Err(BlobError::LayerWidth { layer: last, field: "outputs", found, expected: 1 })
            }
            _ => Err(BlobError::LayerOrder { layer: self.layers.len() }),
        }
    }

    /// Columns of the model's tables.
    pub(crate) fn model_dim(&self) -> usize {
        let bottom = self.layers().take_while(|layer| layer.stack == Stack::Bottom).last();
        let first = || self.model_tables().next().and_then(|of| self.tables.get(of.table));
        bottom.map_or_else(
            || first().map_or(0, |record| record.embedding_dim as usize),
            |layer| layer.outputs,
        )
    }

    /// Indices that the table at `position` has rows for; 0 past the last.
    pub(crate) fn num_embeddings(&self, position: usize) -> u64 {
        self.tables.get(position).map_or(0, |record| record.num_embeddings)
    }

    /// The rows of the model's tables are as wide as what the bottom perceptron makes, or as the
    /// first one's.
    fn check_embedding_dims(&self, expected: usize) -> Result<(), BlobError> {
        self.model_tables().try_for_each(|ModelTable { table, .. }| {
            let found = self.tables.get(table).map_or(0, |record| record.embedding_dim);
            if found as usize == expected {
                Ok(())
            } else {
                Err(BlobError::ModelDim { table, found, expected })
            }
        })
    }
}
