//! Checkpoints: everything that learning goes on from, in one safetensors file that `ttrec convert`
//! takes as it is.
//!
//! Parameters have DLRM's names, those of a tensor train and of its cache FBTT's keys; what the
//! optimiser keeps of a tensor is `opt_state_dict.{tensor}.{0 or 1}`. The metadata have one entry,
//! [`FACTS`], a JSON object.

use super::{config::Config, tables::Planned};
use crate::output::Output;
use anyhow::{Context, Result, ensure};
use safetensors::{
    Dtype,
    tensor::{Metadata, TensorInfo},
};
use serde::{Deserialize, Serialize};
use std::{borrow::Cow, collections::HashMap, path::Path};
use ttrec::train::{Dlrm, Parameters};
use ttrec_convert::{Checkpoint, checkpoint::Tensor, spec::TableSpec, trained::FACTS};

/// What a checkpoint says besides its numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Facts {
    /// Of this layout.
    version: u32,
    /// Where and what the tables are.
    pub(crate) tables: Vec<TableSpec>,
    /// What became a checkpoint.
    pub(crate) config: Config,
    /// How far it has come.
    pub(crate) progress: TrainProgress,
    /// Steps of the layers and of each table.
    steps: Vec<u64>,
}

const VERSION: u32 = 1;

/// How far learning has come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct TrainProgress {
    /// Epochs that are done.
    pub(crate) epoch: u32,
    /// Steps that are done of the next.
    pub(crate) step: u64,
    /// Of the examples since the last point: how many, and the sum of their losses.
    pub(crate) examples: u64,
    pub(crate) loss: f64,
    pub(crate) points: Vec<CurvePoint>,
    /// The epoch after which the examples held out were told best, from 1.
    pub(crate) best: Option<Best>,
}

/// A point of the curves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct CurvePoint {
    pub(crate) epoch: u32,
    pub(crate) step: u64,
    pub(crate) learning_rate: f64,
    /// Mean over the examples learned from since the point before.
    pub(crate) loss: f64,
    /// At the end of an epoch, of the examples held out.
    pub(crate) valid: Option<super::metrics::Quality>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Best {
    pub(crate) epoch: u32,
    pub(crate) quality: super::metrics::Quality,
}

/// A tensor to be written.
struct Part<'m> {
    name: String,
    shape: Vec<usize>,
    dtype: Dtype,
    bytes: Cow<'m, [u8]>,
}

impl<'m> Part<'m> {
    fn floats(name: String, shape: Vec<usize>, values: &'m [f32]) -> Self {
        let bytes = if cfg!(target_endian = "little") {
            Cow::Borrowed(bytemuck::cast_slice(values))
        } else {
            values.iter().flat_map(|value| value.to_le_bytes()).collect()
        };
        Self { name, shape, dtype: Dtype::F32, bytes }
    }

    fn integers(name: String, values: impl Iterator<Item = i64>) -> Self {
        let bytes: Vec<u8> = values.flat_map(i64::to_le_bytes).collect();
        Self {
            name,
            shape: vec![bytes.len() / size_of::<i64>()],
            dtype: Dtype::I64,
            bytes: bytes.into(),
        }
    }

    /// A tensor, and what the optimiser keeps of it.
    fn learned(name: String, shape: Vec<usize>, parameters: &'m Parameters) -> Vec<Self> {
        let kept = parameters.state().into_iter().zip(0..).filter(|(state, _)| !state.is_empty());
        let kept =
            kept.map(|(state, at)| Self::floats(state_name(&name, at), vec![state.len()], state));
        let kept: Vec<_> = kept.collect();
        [Self::floats(name, shape, parameters.values())]
            .into_iter()
            .chain(kept)
            .collect()
    }
}

fn state_name(tensor: &str, at: u32) -> String {
    format!("opt_state_dict.{tensor}.{at}")
}

fn counters_name(table: usize) -> String {
    format!("opt_state_dict.emb_l.{table}.counters")
}

/// Writes everything to `path`, whole or not at all.
pub(crate) fn write(
    path: &Path,
    model: &Dlrm,
    tables: &[Planned],
    config: &Config,
    progress: &TrainProgress,
) -> Result<()> {
    let mut parts = Vec::new();
    for (layer, linear) in model.layers() {
        let shapes = [vec![linear.outputs(), linear.inputs()], vec![linear.outputs()]];
        for ((key, parameters), shape) in linear.parameters().into_iter().zip(shapes) {
            parts.extend(Part::learned(format!("{layer}.{key}"), shape, parameters));
        }
    }
    for ((feature, planned), number) in model.features().iter().zip(tables).zip(0..) {
        for ((name, shape), parameters) in
            planned.tensors(number).into_iter().zip(feature.table.parameters())
        {
            parts.extend(Part::learned(name, shape, parameters));
        }
        let strides = planned.strides(number);
        parts.extend(strides.map(|(name, strides)| Part::integers(name, strides.into_iter())));
        let counters = feature.table.counters();
        if !counters.is_empty() {
            parts.push(Part::integers(
                counters_name(number),
                counters.into_iter().map(u64::cast_signed),
            ));
        }
        if let (Some([rows, places]), Some(cached)) =
            (planned.cache_keys(number), feature.table.parameters().last())
        {
            let mut row_of = vec![-1; cached.values().len() / cached.slice_len().max(1)];
            for (row, place) in feature.table.overrides() {
                row_of[place] = row.cast_signed();
            }
            let place_of =
                row_of.iter().zip(0..).map(|(&row, place)| if row < 0 { -1 } else { place });
            parts.push(Part::integers(places, place_of));
            parts.push(Part::integers(rows, row_of.into_iter()));
        }
    }
    // Wider elements first, so that each is aligned.
    parts.sort_by_key(|part| std::cmp::Reverse(part.dtype));

    let steps = [model.steps()]
        .into_iter()
        .chain(model.features().iter().map(|feature| feature.table.steps()));
    let facts = Facts {
        version: VERSION,
        tables: tables.iter().zip(0..).map(|(planned, number)| planned.spec(number)).collect(),
        config: config.clone(),
        progress: progress.clone(),
        steps: steps.collect(),
    };
    let metadata = HashMap::from([(FACTS.to_owned(), serde_json::to_string(&facts)?)]);
    let mut end = 0;
    let infos = parts.iter().map(|part| {
        let start = end;
        end += part.bytes.len();
        (
            part.name.clone(),
            TensorInfo { dtype: part.dtype, shape: part.shape.clone(), data_offsets: (start, end) },
        )
    });
    let metadata = Metadata::new(Some(metadata), infos.collect())?;
    let mut header = serde_json::to_vec(&metadata)?;
    header.resize(header.len().next_multiple_of(8), b' ');

    let mut output = Output::create(path)?;
    output.write(|out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        parts.iter().try_for_each(|part| out.write_all(&part.bytes))
    })?;
    Ok(output.commit()?)
}

/// An open checkpoint of this command's.
pub(crate) struct Learned {
    file: Checkpoint,
    pub(crate) facts: Facts,
}

impl Learned {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = Checkpoint::open(path)?;
        let place = || path.display().to_string();
        let text = file.metadata(FACTS);
        let text = text.with_context(|| {
            format!("{}: not a checkpoint of `ttrec train`: no {FACTS:?} in it", place())
        })?;
        let facts: Facts =
            serde_json::from_str(text).with_context(|| format!("{}: {FACTS:?}", place()))?;
        let found = facts.version;
        ensure!(found == VERSION, "{}: version {found} of the layout: expected {VERSION}", place());
        facts.config.check().with_context(place)?;
        Ok(Self { file, facts })
    }

    /// Restores a model that was made as this one was.
    pub(crate) fn restore(&self, model: &mut Dlrm, tables: &[Planned]) -> Result<()> {
        let specs = tables.iter().zip(0..).map(|(planned, number)| planned.spec(number));
        ensure!(
            specs.eq(self.facts.tables.iter().cloned()),
            "{}: its tables are not those that the config and the data make now",
            self.file.path().display()
        );
        for (layer, linear) in model.layers_mut() {
            for (key, parameters) in linear.parameters_mut() {
                self.read_parameters(&format!("{layer}.{key}"), parameters)?;
            }
        }
        let wrong_steps = || {
            format!("{}: {} counts of steps", self.file.path().display(), self.facts.steps.len())
        };
        let mut steps = self.facts.steps.iter().copied();
        ensure!(self.facts.steps.len() == tables.len() + 1, wrong_steps());
        model.set_steps(steps.next().with_context(wrong_steps)?);
        for ((feature, planned), number) in model.features_mut().iter_mut().zip(tables).zip(0..) {
            for ((name, _), parameters) in
                planned.tensors(number).iter().zip(feature.table.parameters_mut())
            {
                self.read_parameters(name, parameters)?;
            }
            feature.table.set_steps(steps.next().with_context(wrong_steps)?);
            if planned.cache_keys(number).is_some() {
                let tensor = self.tensor(&counters_name(number))?;
                let mut counters = vec![0; usize::try_from(tensor.len())?];
                tensor.read_i64(0, &mut counters)?;
                let counters: Vec<u64> = counters.into_iter().map(i64::cast_unsigned).collect();
                let place =
                    || format!("{}: tensor {:?}", self.file.path().display(), tensor.name());
                feature.table.set_counters(&counters).with_context(place)?;
            }
        }
        Ok(())
    }

    fn read_parameters(&self, name: &str, parameters: &mut Parameters) -> Result<()> {
        self.read(name, parameters.values_mut())?;
        for (state, at) in parameters
            .state_mut()
            .into_iter()
            .zip(0..)
            .filter(|(state, _)| !state.is_empty())
        {
            self.read(&state_name(name, at), state)?;
        }
        Ok(())
    }

    fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.file
            .tensor(name)
            .with_context(|| format!("{}: no tensor {name:?}", self.file.path().display()))
    }

    fn read(&self, name: &str, out: &mut [f32]) -> Result<()> {
        let (path, tensor) = (self.file.path().display(), self.tensor(name)?);
        let (found, expected) = (tensor.len(), out.len());
        ensure!(
            found == expected as u64,
            "{path}: tensor {name:?} has {found} elements: expected {expected}"
        );
        Ok(tensor.read_f32(0, out)?)
    }
}
