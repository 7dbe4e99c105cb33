//! Checkpoints: the whole state of training in one safetensors file, which `ttrec convert` reads.
//!
//! Parameters have DLRM's names; tensor trains and their caches have FBTT's keys. The optimiser's
//! state of a tensor is `opt_state_dict.{tensor}.{0 or 1}`. If a tensor's values are rounded, their
//! exact values are `opt_state_dict.{tensor}.exact`. Rows of i4 have FBGEMM's format, so that a
//! converter copies their nibbles: decoding the nibbles and encoding the values again would lose
//! some. The metadata has one entry, [`FACTS`], a JSON object.

use super::{
    config::Config,
    directory_of,
    tables::{Coding, Planned, TrainedForm},
};
use crate::output::Output;
use anyhow::{Context, Result, ensure};
use safetensors::{
    Dtype,
    tensor::{Metadata, TensorInfo},
};
use serde::{Deserialize, Serialize};
use std::{
    borrow::Cow,
    collections::HashMap,
    path::{Path, PathBuf},
};
use ttrec::{
    dtype::{
        self,
        Dtype::{F32, I4},
    },
    repr::{Codebook, Weights},
    train::{Dlrm, Embedding, Parameters},
};
use ttrec_convert::{Checkpoint, checkpoint::Tensor, spec::TableSpec, trained::FACTS, zeros};

/// The metadata of a checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Facts {
    /// The version of this layout.
    version: u32,
    /// The tables, as a converter opens them.
    pub(crate) tables: Vec<TableSpec>,
    /// The table of each categorical feature, by name; empty if feature i has table i.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    features: Vec<String>,
    /// The config of the run.
    pub(crate) config: Config,
    /// The directory that relative paths in the config start from, from that of the checkpoint.
    data_dir: PathBuf,
    /// The progress of the run.
    pub(crate) progress: TrainProgress,
    /// The step counts of the layers and of each table.
    steps: Vec<u64>,
}

const VERSION: u32 = 2;

/// The progress of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct TrainProgress {
    /// Finished epochs.
    pub(crate) epoch: u32,
    /// Finished steps of the current epoch.
    pub(crate) step: u64,
    /// Since the last point, and in the current epoch.
    pub(crate) since_point: Losses,
    pub(crate) of_epoch: Losses,
    pub(crate) points: Vec<CurvePoint>,
    /// Evaluations on the validation split.
    pub(crate) evaluations: u32,
    /// The best of them.
    pub(crate) best: Option<Best>,
}

/// The losses of some examples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Losses {
    examples: u64,
    sum: f64,
}

impl Losses {
    /// Adds examples with this mean loss.
    pub(crate) fn add(&mut self, examples: u64, mean: f64) {
        self.examples += examples;
        self.sum += mean * examples as f64;
    }

    /// The mean since it was taken last.
    pub(crate) fn take(&mut self) -> Option<f64> {
        let Self { examples, sum } = std::mem::take(self);
        (examples > 0).then(|| sum / examples as f64)
    }
}

/// A point of the curves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct CurvePoint {
    pub(crate) epoch: u32,
    pub(crate) step: u64,
    pub(crate) learning_rate: f64,
    /// The mean over the training examples since the previous point.
    pub(crate) loss: f64,
    /// At the end of an epoch: the metrics on the validation split.
    pub(crate) valid: Option<super::metrics::Quality>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Best {
    /// From 1.
    pub(crate) epoch: u32,
    /// The number of the evaluation, from 1.
    pub(crate) evaluation: u32,
    pub(crate) quality: super::metrics::Quality,
}

/// A tensor to write.
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

    /// The codes of all rows, as u8 if they fit, otherwise as u16.
    fn codes((name, shape): (String, Vec<usize>), codebook: &Codebook<'_>) -> Self {
        let rows = 0..shape.first().copied().unwrap_or(0);
        let codes = rows.filter_map(|row| codebook.row_codes(row)).flatten();
        let (dtype, bytes) = if codebook.book_len() <= 1 << u8::BITS {
            (Dtype::U8, codes.map(|code| code as u8).collect())
        } else {
            (Dtype::U16, codes.flat_map(u16::to_le_bytes).collect::<Vec<u8>>())
        };
        Self { name, shape, dtype, bytes: bytes.into() }
    }

    /// FBGEMM's rows of i4: nibbles, then the scale and the offset. A blob's rows begin with the
    /// scale and the offset.
    fn nibbles(name: String, shape: &[usize], exact: &[f32]) -> Result<Self> {
        let columns = shape.last().copied().unwrap_or(1);
        let (rows, row_len) = (exact.len() / columns.max(1), I4.row_len(columns));
        let mut bytes = vec![0; rows * row_len];
        dtype::encode_rows(exact, columns, I4, &mut bytes)
            .with_context(|| format!("tensor {name:?}: a smaller `learning_rate` may help"))?;
        let rotate = |row: &mut [u8]| row.rotate_left(I4.row_header_len());
        bytes.chunks_exact_mut(row_len).for_each(rotate);
        Ok(Self { name, shape: vec![rows, row_len], dtype: Dtype::U8, bytes: bytes.into() })
    }

    /// A tensor, its exact values if it is rounded, and its optimiser state.
    fn parameters(
        name: String,
        shape: Vec<usize>,
        parameters: &'m Parameters,
        dtype: ttrec::dtype::Dtype,
    ) -> Result<Vec<Self>> {
        let kept = parameters.state().into_iter().zip(0..).filter(|(state, _)| !state.is_empty());
        let kept =
            kept.map(|(state, at)| Self::floats(state_name(&name, at), vec![state.len()], state));
        let mut parts: Vec<_> = kept.collect();
        if parameters.is_rounded() {
            parts.push(Self::floats(exact_name(&name), shape.clone(), parameters.exact()));
        }
        parts.push(if parameters.is_rounded() && dtype == I4 {
            Self::nibbles(name, &shape, parameters.exact())?
        } else {
            Self::floats(name, shape, parameters.values())
        });
        Ok(parts)
    }
}

fn state_name(tensor: &str, at: u32) -> String {
    format!("opt_state_dict.{tensor}.{at}")
}

fn exact_name(tensor: &str) -> String {
    format!("opt_state_dict.{tensor}.exact")
}

fn counters_name(table: usize) -> String {
    format!("opt_state_dict.emb_l.{table}.counters")
}

/// The table of each categorical feature, by name; none if feature i has table i.
fn features_of(model: &Dlrm, tables: &[Planned]) -> Vec<String> {
    let features = model.features().iter().map(|feature| feature.table);
    if features.clone().eq(0..tables.len()) {
        return Vec::new();
    }
    features.map(|table| tables[table].name.clone()).collect()
}

/// Writes a checkpoint to `path`, atomically.
pub(crate) fn write(
    path: &Path,
    model: &Dlrm,
    tables: &[Planned],
    (config, data_dir): (&Config, &Path),
    progress: &TrainProgress,
) -> Result<()> {
    let mut parts = Vec::new();
    for (layer, linear) in model.layers() {
        let shapes = [vec![linear.outputs(), linear.inputs()], vec![linear.outputs()]];
        for ((key, parameters), shape) in linear.parameters().into_iter().zip(shapes) {
            parts.extend(Part::parameters(format!("{layer}.{key}"), shape, parameters, F32)?);
        }
    }
    for ((trained, planned), number) in model.tables().iter().zip(tables).zip(0..) {
        for ((name, shape), parameters) in
            planned.tensors(number).into_iter().zip(trained.parameters())
        {
            parts.extend(Part::parameters(name, shape, parameters, planned.dtype)?);
        }
        let strides = planned.strides(number);
        parts.extend(strides.map(|(name, strides)| Part::integers(name, strides.into_iter())));
        let table = trained.table();
        if let (Some(codes), Weights::Codebook(codebook)) =
            (planned.codes(number), table.data().weights())
        {
            parts.push(Part::codes(codes, codebook));
        }
        let counters = trained.counters();
        if !counters.is_empty() {
            parts.push(Part::integers(
                counters_name(number),
                counters.into_iter().map(u64::cast_signed),
            ));
        }
        if let (Some([rows, places]), Some(cached)) =
            (planned.cache_keys(number), trained.parameters().last())
        {
            let mut row_of = vec![-1; cached.values().len() / cached.slice_len().max(1)];
            for (row, place) in trained.overrides() {
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

    let of_tables = model.tables().iter().map(|table| table.steps());
    let steps = [model.steps()].into_iter().chain(of_tables);
    let facts = Facts {
        version: VERSION,
        features: features_of(model, tables),
        tables: tables.iter().zip(0..).map(|(planned, number)| planned.spec(number)).collect(),
        config: config.clone(),
        data_dir: data_dir.to_owned(),
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

/// An open checkpoint of `ttrec train`.
pub(crate) struct TrainCheckpoint {
    file: Checkpoint,
    pub(crate) facts: Facts,
}

impl TrainCheckpoint {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = Checkpoint::open(path)?;
        let place = || path.display().to_string();
        let text = file.metadata(FACTS);
        let text = text.with_context(|| {
            format!("{}: not a checkpoint of `ttrec train`: metadata {FACTS:?} is missing", place())
        })?;
        let facts: Facts =
            serde_json::from_str(text).with_context(|| format!("{}: {FACTS:?}", place()))?;
        let found = facts.version;
        ensure!(
            found == VERSION,
            "{}: checkpoint version {found}: this `ttrec` reads version {VERSION}",
            place()
        );
        facts.config.check().with_context(place)?;
        Ok(Self { file, facts })
    }

    /// The directory that relative paths in the config start from: as given, or as in training.
    pub(crate) fn data_dir(&self, given: Option<&Path>) -> PathBuf {
        given.map_or_else(
            || directory_of(self.file.path()).join(&self.facts.data_dir),
            Path::to_owned,
        )
    }

    /// Restores a model that was built from the same config and data.
    pub(crate) fn restore(&self, model: &mut Dlrm, tables: &mut [Planned]) -> Result<()> {
        for ((table, planned), number) in model.tables_mut().iter_mut().zip(&mut *tables).zip(0..) {
            let coded = planned.coded();
            if let Some(coded) =
                coded.filter(|coded| self.facts.tables.get(number) == Some(&coded.spec(number)))
            {
                *planned = coded;
            }
            if let TrainedForm::Codes(coding) = planned.stored {
                *table = self.coded_table(planned, coding, number)?;
            }
        }
        self.restore_ranks(model, tables)?;
        let tables = &*tables;
        let specs = tables.iter().zip(0..).map(|(planned, number)| planned.spec(number));
        ensure!(
            specs.eq(self.facts.tables.iter().cloned())
                && self.facts.features == features_of(model, tables),
            "{}: its tables differ from those of the present config and data",
            self.file.path().display()
        );
        for (layer, linear) in model.layers_mut() {
            for (key, parameters) in linear.parameters_mut() {
                self.read_parameters(&format!("{layer}.{key}"), parameters)?;
            }
        }
        let wrong_steps = || {
            format!(
                "{}: {} step counts, expected {}",
                self.file.path().display(),
                self.facts.steps.len(),
                tables.len() + 1
            )
        };
        let mut steps = self.facts.steps.iter().copied();
        ensure!(self.facts.steps.len() == tables.len() + 1, wrong_steps());
        model.set_steps(steps.next().with_context(wrong_steps)?);
        for ((table, planned), number) in model.tables_mut().iter_mut().zip(tables).zip(0..) {
            for ((name, _), parameters) in
                planned.tensors(number).iter().zip(table.parameters_mut())
            {
                self.read_parameters(name, parameters)?;
            }
            table.set_steps(steps.next().with_context(wrong_steps)?);
            if planned.cache_keys(number).is_some() {
                let tensor = self.tensor(&counters_name(number))?;
                let mut counters = vec![0; usize::try_from(tensor.len())?];
                tensor.read_i64(0, &mut counters)?;
                let counters: Vec<u64> = counters.into_iter().map(i64::cast_unsigned).collect();
                let place =
                    || format!("{}: tensor {:?}", self.file.path().display(), tensor.name());
                table.set_counters(&counters).with_context(place)?;
            }
        }
        Ok(())
    }

    /// Gives tables whose ranks were chosen before the checkpoint these ranks. Their cores are not
    /// restored yet.
    fn restore_ranks(&self, model: &mut Dlrm, tables: &mut [Planned]) -> Result<()> {
        let steps = self.facts.steps.first().copied().unwrap_or(0);
        let optimizer = self.facts.config.train.optimizer.optimizer();
        let specs = self.facts.tables.iter();
        for ((table, planned), spec) in model.tables_mut().iter_mut().zip(tables).zip(specs) {
            let is_chosen = planned.search.is_some_and(|search| search.warm_up <= steps);
            let (true, Some(ranks)) = (is_chosen, &spec.ranks) else { continue };
            let place = || self.file.path().display().to_string();
            let chosen = planned.with_ranks(ranks).with_context(place)?;
            // Otherwise the specs differ.
            if chosen.bytes() <= planned.bytes() {
                *table = chosen.build(optimizer, 0)?;
                *planned = chosen;
            }
        }
        Ok(())
    }

    /// A table of the codes of the checkpoint, whose books and rows are not restored yet.
    fn coded_table(
        &self,
        planned: &Planned,
        coding: Coding,
        number: usize,
    ) -> Result<Box<dyn Embedding>> {
        let (name, expected) = planned.codes(number).context("a table has no codes")?;
        ensure!(
            self.has(&name, &expected),
            "{}: there is no tensor {name:?} of {expected:?} codes",
            self.file.path().display()
        );
        let place = || format!("{}: tensor {name:?}", self.file.path().display());
        let mut codes = vec![0; expected.iter().product()];
        self.tensor(&name)?.read_i64(0, &mut codes)?;
        let codes: Result<Vec<_>, _> = codes.into_iter().map(u16::try_from).collect();
        let (books, optimizer) =
            (zeros(coding.shape.books_len())?, self.facts.config.train.optimizer);
        let codes = codes.with_context(place)?;
        let table = coding.table(&codes, books, optimizer.optimizer());
        Ok(Box::new(table.with_context(place)?))
    }

    fn read_parameters(&self, name: &str, parameters: &mut Parameters) -> Result<()> {
        let exact = exact_name(name);
        let from = if parameters.is_rounded() { &exact } else { name };
        self.read(from, &mut parameters.values_mut())?;
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

    /// The name of the tensor that has the values of tensor `name` before they were rounded.
    pub(super) fn unrounded(&self, name: &str) -> String {
        let exact = exact_name(name);
        if self.file.tensor(&exact).is_some() {
            exact
        } else {
            name.to_owned()
        }
    }

    /// Whether there is a tensor of this name and shape.
    pub(super) fn has(&self, name: &str, shape: &[usize]) -> bool {
        let shape = shape.iter().map(|&len| len as u64);
        self.file
            .tensor(name)
            .is_some_and(|found| found.shape().iter().copied().eq(shape))
    }

    fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.file
            .tensor(name)
            .with_context(|| format!("{}: tensor {name:?} is missing", self.file.path().display()))
    }

    pub(super) fn read(&self, name: &str, out: &mut [f32]) -> Result<()> {
        let (path, tensor) = (self.file.path().display(), self.tensor(name)?);
        let (found, expected) = (tensor.len(), out.len());
        ensure!(
            found == expected as u64,
            "{path}: tensor {name:?} has {found} elements: expected {expected}"
        );
        Ok(tensor.read_f32(0, out)?)
    }
}
