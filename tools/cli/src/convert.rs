//! `ttrec convert`: a checkpoint's tables, or its whole model, into a blob, streamed.

#[cfg(test)]
mod hostile;

use crate::{
    Outcome,
    blob_file::{self, Sink},
    budget::Budget,
    checkpoint::{Checkpoint, Tensor},
    dialect::{Core, Model, Source, Survey, Weights, with_qr_operation},
    direction::Direction,
    factorize::{self, Factorized, Kept, Key, Request, TensorRows},
    frequencies::Frequencies,
    lookup::zeros,
    output,
    progress::Progress,
    spec::{Spec, TableSpec},
};
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::path::{Path, PathBuf};
use ttrec::{
    blob::{IndexMapSpec, Layout, OverridesSpec, Role, SectionPlan, WeightsSpec},
    dtype::{self, Dtype, EncodeError},
    repr,
};

/// Turn a trained checkpoint into a blob.
///
/// Which tensors become which tables is said by a spec, a TOML file with one `[[table]]` each.
/// Without one, the tables that the checkpoint seems to hold are listed, as a spec to begin with;
/// if there is just one, or they are those of a DLRM, and nothing is missing, they are converted: a
/// DLRM whole, with its perceptrons, so that `ttrec score` and `ttrec rank` can run it.
#[derive(clap::Args)]
#[command(after_help = "\
A spec:
  [[table]]
  name = \"item\"                 # in the blob
  prefix = \"emb.item.\"          # what stands before the dialect's own keys (default: nothing)
  dialect = \"fbtt\"              # or another (default: as the keys show)
  num_embeddings = 1000         # FBTT does not store it
  column_factors = [4, 4, 4]    # nor these; `ranks` (the inner ones) would do as well
  dtype = \"f16\"                 # f32, f16, bf16, i8; i4 if dense (default: as in the checkpoint)

  [[table]]
  name = \"word\"
  tensor = \"embeddings.word_embeddings.weight\"   # a dense tensor, by its full name

Dialects:
  fbtt       FBTT; `table = 1` picks the second of several tables in one set of cores
  el-rec     EL-Rec
  hetu       Hetu; never recognised by itself, as its keys are EL-Rec's
  tltorch    tensorly-torch (blocktt)
  t3nsor     t3nsor
  dlrm       facebookresearch/dlrm: plain, quotient-remainder (`qr_operation` = \"mult\", \"add\" \
                        or \"concat\") and mixed
             dimension
  torchrec   TorchRec
  dense      one tensor of rows x columns

A DLRM (its own names, or TorchRec's) becomes one with a [model] before the tables, which are then \
                        its own, in its order:
  [model]
  dtype = \"f16\"                 # f32, f16, bf16, i8: of the layers' weights (default: f32)
  prefix = \"model.\"             # what stands before bot_l.0.weight or dense_arch. (default: \
                        nothing)

A dense table becomes a tensor train with `representation = \"tt\"` and `rank`, `ranks` or \
                        `tolerance` (relative error), and,
if wanted, `row_factors`, `column_factors`, `sweeps` (refinements); or short rows and a projection \
                        with
`representation = \"low-rank\"` and `rank` or `tolerance`. The rows of the former may be sorted \
                        first, so that those that share
slices are alike, for four bytes an index: `row_order = \"similarity\"`, or \"frequency\" with \
                        --frequencies.

A hashed table, whose index i stands for row i modulo its rows, has `index_map = \"modulo\"`, its \
                        indices as `num_embeddings`,
and its rows, if the checkpoint does not store them, as `num_rows`.

No tensor train stores `num_embeddings`; tltorch and t3nsor store all other facts.")]
pub(crate) struct Args {
    /// .safetensors, or the .safetensors.index.json of several, torch .pt (zip or legacy), .npy or
    /// .npz; nothing in it is executed
    checkpoint: PathBuf,
    /// Where the blob goes; it appears whole or not at all
    #[arg(short, long, value_name = "BLOB")]
    output: PathBuf,
    /// Which tensors become which tables
    #[arg(long, value_name = "SPEC.toml")]
    spec: Option<PathBuf>,
    /// What makes one row of two in DLRM's quotient-remainder tables, where the spec does not say
    #[arg(long, value_name = "OPERATION", value_parser = ["mult", "add", "concat"])]
    qr_operation: Option<String>,
    /// How often each row is asked for, as `ttrec cache` reads it: a factorisation then counts a
    /// row's error by it
    #[arg(long, value_name = "FILE.npz")]
    frequencies: Option<PathBuf>,
    /// How much a factorisation may hold in memory: 2GiB, 500MB
    #[arg(long, value_name = "SIZE", default_value = "512MiB", value_parser = memory_size)]
    memory: u64,
    /// Keep each finished factorisation in DIR until the blob is written: a conversion that was
    /// interrupted goes on from there
    #[arg(long, value_name = "DIR")]
    resume: Option<PathBuf>,
}

pub(crate) fn memory_size(text: &str) -> Result<u64, String> {
    match text.parse()? {
        Budget::Bytes(bytes) => Ok(bytes),
        Budget::Percent(_) => Err("expected a size, such as 512MiB".to_owned()),
    }
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    let checkpoint = Checkpoint::open(&args.checkpoint)?;
    let inputs: Vec<&Path> = checkpoint
        .files()
        .chain(args.spec.as_deref())
        .chain(args.frequencies.as_deref())
        .collect();
    output::refuse_inputs(&args.output, &inputs)?;
    let (spec, origin) = match &args.spec {
        Some(path) => (Spec::read(path)?, path.display().to_string()),
        None => {
            let operation = args.qr_operation.as_deref();
            (only_tables(&checkpoint, operation)?, "what the checkpoint says of itself".to_owned())
        }
    };
    let with_operation =
        |table| with_qr_operation(&checkpoint, table, args.qr_operation.as_deref());
    let spec = Spec { tables: spec.tables.into_iter().map(with_operation).collect(), ..spec };
    let how = How {
        memory: args.memory,
        frequencies: args.frequencies.as_deref(),
        kept: args.resume.as_deref().map(Kept::open).transpose()?,
    };
    let total_len = convert(&checkpoint, &spec, &args.output, &how)
        .map_err(|error| name_input(error, &origin))?;
    let tables = spec.tables.len();
    let (s, model) = (
        if tables == 1 { "" } else { "s" },
        if spec.model.is_some() { " and a model" } else { "" },
    );
    output::print(|out| {
        writeln!(out, "{}: {tables} table{s}{model}, {total_len} bytes", args.output.display())
    })?;
    Ok(Outcome::Done)
}

/// Says where the facts came from, but leaves errors of writing as they are.
fn name_input(error: anyhow::Error, origin: &str) -> anyhow::Error {
    if error.is::<crate::output::WriteError>() {
        error
    } else {
        error.context(format!("with {origin}"))
    }
}

/// How dense tables are factorised.
pub(crate) struct How<'h> {
    /// Bytes to hold at most.
    pub(crate) memory: u64,
    /// A file that weighs the rows.
    pub(crate) frequencies: Option<&'h Path>,
    /// Where what is finished is kept.
    pub(crate) kept: Option<Kept>,
}

impl Default for How<'_> {
    fn default() -> Self {
        Self { memory: factorize::DEFAULT_MEMORY, frequencies: None, kept: None }
    }
}

/// Converts the tables of `spec` to a blob at `path`; returns its length in bytes.
pub(crate) fn convert(
    checkpoint: &Checkpoint,
    spec: &Spec,
    path: &Path,
    how: &How<'_>,
) -> Result<u64> {
    let sources = spec
        .tables
        .iter()
        .map(|table| Source::open(checkpoint, table))
        .collect::<Result<Vec<_>>>()?;
    let model = spec.model.as_ref().map(|model| {
        let in_file = || format!("{}: [model]", checkpoint.path().display());
        let model = Model::open(checkpoint, model).with_context(in_file)?;
        let layout = model.layout(&spec.tables).with_context(in_file)?;
        Ok::<_, anyhow::Error>((model, layout))
    });
    let model = model.transpose()?;
    let frequencies = how.frequencies.map(|path| {
        let names = sources.iter().map(|source| source.name.clone()).collect();
        Frequencies::open(path, names)
    });
    let frequencies = frequencies.transpose()?;
    let tables = sources.into_iter().map(|source| {
        let factorized = source
            .factorize(how, frequencies.as_ref())
            .map_err(|e| source.name_error(checkpoint, e))?;
        Ok(Table { source, factorized })
    });
    let tables = tables.collect::<Result<Vec<_>>>()?;
    let layouts: Vec<_> = tables.iter().map(Table::layout).collect();
    let layout = Layout::with_model(&layouts, model.as_ref().map(|(_, layout)| layout));
    let layout = layout?;

    let len = blob_file::write(path, layout, |plan, sink| {
        if let (
            Role::LayerWeights(layer) | Role::LayerScales(layer) | Role::LayerBias(layer),
            Some((model, _)),
        ) = (plan.role, &model)
        {
            return model.write_section(layer, plan.role, sink).map_err(|error| {
                if error.is::<crate::output::WriteError>() {
                    return error;
                }
                let (weight, _) = model.names(layer).unwrap_or_default();
                error.context(format!(
                    "{}: the layer of tensor {weight:?}",
                    checkpoint.path().display()
                ))
            });
        }
        let Table { source, factorized } = &tables[plan.table];
        let written = match factorized {
            Some(factorized) => source.write_factorized(&factorized.result, plan, sink),
            None => source.write_section(plan, sink),
        };
        written.map_err(|error| {
            if error.is::<crate::output::WriteError>() {
                error
            } else {
                source.name_error(checkpoint, error)
            }
        })
    })?;
    for key in tables.iter().filter_map(|table| table.factorized.as_ref()?.key.as_ref()) {
        how.kept.iter().for_each(|kept| kept.forget(key));
    }
    Ok(len)
}

/// A table, and what a factorisation made of it, if the spec asked for one.
struct Table<'c> {
    source: Source<'c>,
    factorized: Option<Done>,
}

/// A finished factorisation, and what it is kept by.
struct Done {
    result: Factorized,
    key: Option<Key>,
}

impl Table<'_> {
    fn layout(&self) -> ttrec::blob::TableSpec {
        let spec = self.source.layout();
        let (Some(Done { result, .. }), dtype) = (&self.factorized, self.source.dtype) else {
            return spec;
        };
        let index_map = match result {
            Factorized::Tt { places: Some(_), shape, .. } => {
                IndexMapSpec::Remapped { num_embeddings: shape.num_embeddings() }
            }
            _ => spec.index_map,
        };
        let weights = match result {
            Factorized::Tt { shape, .. } => {
                WeightsSpec::Tt { shape: *Direction::of(shape).stored(), dtype }
            }
            &Factorized::LowRank { rank, .. } => WeightsSpec::Projected {
                num_embeddings: self.source.weights.num_embeddings(),
                embedding_dim: self.source.weights.embedding_dim(),
                rank,
                dtype,
                projection: self.source.projection_dtype(),
            },
        };
        ttrec::blob::TableSpec { weights, index_map, ..spec }
    }
}

impl Model<'_> {
    pub(crate) fn write_section(
        &self,
        layer: usize,
        role: Role,
        sink: &mut Sink<'_>,
    ) -> Result<()> {
        let (weights, bias) = self.read(layer)?;
        let no_finite_form = |error: EncodeError| match error {
            EncodeError::OutOfRange { value, dtype, .. } => {
                anyhow!("{value} has no finite {} form", dtype.name())
            }
            error => anyhow!(error),
        };
        if let Role::LayerBias(_) = role {
            let mut bytes = vec![0; Dtype::F32.bytes_of(bias.len())];
            dtype::encode(&bias, Dtype::F32, &mut bytes).map_err(no_finite_form)?;
            return sink.put(&bytes);
        }
        let mut bytes = vec![0; self.dtype.bytes_of(weights.len())];
        let mut scales = bias;
        dtype::encode_layer(&weights, self.dtype, &mut bytes, &mut scales)
            .map_err(no_finite_form)?;
        sink.put(if let Role::LayerWeights(_) = role {
            &bytes
        } else {
            bytemuck::cast_slice(&scales)
        })
    }
}

impl Source<'_> {
    pub(crate) fn layout(&self) -> ttrec::blob::TableSpec {
        let dtype = self.dtype;
        let (weights, overrides) = match &self.weights {
            &Weights::Dense { num_embeddings, embedding_dim, .. } => {
                (WeightsSpec::Dense { num_embeddings, embedding_dim, dtype }, None)
            }
            Weights::Tt { shape, overrides, .. } => (
                WeightsSpec::Tt { shape: *Direction::of(shape).stored(), dtype },
                overrides.as_ref(),
            ),
            &Weights::Projected { num_embeddings, rank, embedding_dim, .. } => {
                let projection = self.projection_dtype();
                (
                    WeightsSpec::Projected {
                        num_embeddings,
                        embedding_dim,
                        rank,
                        dtype,
                        projection,
                    },
                    None,
                )
            }
            &Weights::QuotientRemainder {
                num_embeddings,
                num_remainders,
                columns,
                combine,
                ..
            } => (
                WeightsSpec::QuotientRemainder {
                    num_embeddings,
                    num_remainders,
                    columns,
                    combine,
                    dtype,
                },
                None,
            ),
        };
        // Overridden rows are the ones that training held to be worth their bytes: they stay exact.
        let overrides =
            overrides.map(|o| OverridesSpec { count: o.ids.len() as u64, dtype: Dtype::F32 });
        let index_map = match self.hashed {
            Some(num_embeddings) => IndexMapSpec::Modulo { num_embeddings },
            None => IndexMapSpec::Identity,
        };
        ttrec::blob::TableSpec {
            index_map,
            overrides,
            ..ttrec::blob::TableSpec::new(self.name.clone(), weights)
        }
    }

    /// What the spec asks for, found or made, and told.
    fn factorize(&self, how: &How<'_>, frequencies: Option<&Frequencies>) -> Result<Option<Done>> {
        let (Some(request), &Weights::Dense { num_embeddings, embedding_dim, tensor }) =
            (&self.factorize, &self.weights)
        else {
            return Ok(None);
        };
        let weighing = how.frequencies.filter(|_| matches!(request, Request::Tt { .. }));
        let key = how
            .kept
            .as_ref()
            .map(|_| Key::new(tensor.file(), tensor.name(), request, weighing))
            .transpose()?;
        let found = how
            .kept
            .as_ref()
            .zip(key.as_ref())
            .and_then(|(kept, key)| kept.find(key, num_embeddings, embedding_dim));
        let result = match found {
            Some(found) => found,
            None => {
                let weights = match frequencies.filter(|_| weighing.is_some()) {
                    Some(frequencies) => frequencies
                        .of(&self.name)?
                        .map(|counts| weights(&counts.read(num_embeddings)?, num_embeddings)),
                    None => None,
                };
                let rows = TensorRows::new(tensor)?;
                let result =
                    request.run(&rows, weights.transpose()?.as_deref(), how.memory, &self.name)?;
                if let (Some(kept), Some(key)) = (&how.kept, &key) {
                    kept.keep(key, &result, embedding_dim)?;
                }
                result
            }
        };
        self.tell(&result)?;
        Ok(Some(Done { result, key }))
    }

    fn tell(&self, result: &Factorized) -> Result<()> {
        let name = self.name.escape_debug();
        output::print(|out| match result {
            Factorized::Tt { shape, error, .. } => writeln!(
                out,
                "{name}: a tensor train of row factors {:?}, column factors {:?}, ranks {:?}: \
                 relative error {error:.3e}",
                shape.row_factors(),
                shape.column_factors(),
                shape.inner_ranks()
            ),
            Factorized::LowRank { rank, error, .. } => {
                writeln!(out, "{name}: rank {rank}: relative error {error:.3e}")
            }
        })?;
        Ok(())
    }

    fn write_factorized(
        &self,
        result: &Factorized,
        plan: &SectionPlan,
        sink: &mut Sink<'_>,
    ) -> Result<()> {
        let failed = |error: EncodeError| anyhow!(error).context("after factorisation");
        match (plan.role, result, &self.weights) {
            (Role::Core(k) | Role::Scales(k), Factorized::Tt { shape, cores, .. }, _) => {
                let direction = Direction::of(shape);
                let len = direction.stored().slice_len(k);
                let mut bytes = vec![0; self.dtype.bytes_of(len)];
                cores[direction.core(k)].chunks_exact(len).try_for_each(|slice| {
                    let slice = direction.slice(k, slice);
                    let scale =
                        dtype::encode_slice(&slice, self.dtype, &mut bytes).map_err(failed)?;
                    sink.put(if let Role::Core(_) = plan.role {
                        &bytes
                    } else {
                        bytemuck::bytes_of(&scale)
                    })
                })
            }
            (Role::RemappedRows, Factorized::Tt { places: Some(places), .. }, _) => places
                .chunks(1 << 16)
                .try_for_each(|places| sink.put(bytemuck::cast_slice(places))),
            (Role::Projection, Factorized::LowRank { rank, basis, .. }, _) => {
                let dtype = self.projection_dtype();
                let dim = basis.len() / rank;
                let mut bytes = vec![0; dtype.bytes_of(dim)];
                (0..*rank).try_for_each(|s| {
                    let row: Vec<f32> = basis.chunks_exact(*rank).map(|column| column[s]).collect();
                    dtype::encode(&row, dtype, &mut bytes).map_err(failed)?;
                    sink.put(&bytes)
                })
            }
            (
                Role::Rows,
                Factorized::LowRank { rank, basis, .. },
                Weights::Dense { num_embeddings, tensor, .. },
            ) => {
                let mut progress = Progress::new(&format!("{}: rows", self.name), *num_embeddings);
                let mut bytes = Vec::new();
                factorize::for_each_short_row(&TensorRows::new(tensor)?, basis, *rank, |short| {
                    bytes.resize(short.len() / rank * self.dtype.row_len(*rank), 0);
                    dtype::encode_rows(short, *rank, self.dtype, &mut bytes).map_err(failed)?;
                    progress.add((short.len() / rank) as u64);
                    sink.put(&bytes)
                })
            }
            (role, ..) => bail!("no data for section {role:?}"),
        }
    }

    /// A projection is small, and all rows depend on it: it is never narrower than 16 bits.
    fn projection_dtype(&self) -> Dtype {
        match self.dtype {
            Dtype::F32 | Dtype::Bf16 => self.dtype,
            _ => Dtype::F16,
        }
    }

    fn name_error(&self, checkpoint: &Checkpoint, error: anyhow::Error) -> anyhow::Error {
        error.context(format!("{}: table {:?}", checkpoint.path().display(), self.name))
    }

    pub(crate) fn write_section(&self, plan: &SectionPlan, sink: &mut Sink<'_>) -> Result<()> {
        match (plan.role, &self.weights) {
            (Role::Rows, &Weights::Dense { num_embeddings, embedding_dim, tensor }) => {
                self.write_rows(tensor, num_embeddings, embedding_dim, sink)
            }
            (Role::Rows, &Weights::Projected { num_embeddings, rank, tensor, .. }) => {
                self.write_rows(tensor, num_embeddings, rank, sink)
            }
            (Role::Projection, &Weights::Projected { rank, embedding_dim, projection, .. }) => {
                self.write_projection(projection, [embedding_dim, rank], sink)
            }
            (Role::Rows, &Weights::QuotientRemainder { columns, tensors, .. }) => {
                self.write_rows(tensors[0], tensors[0].shape()[0], columns[0], sink)
            }
            (Role::RemainderRows, &Weights::QuotientRemainder { columns, tensors, .. }) => {
                self.write_rows(tensors[1], tensors[1].shape()[0], columns[1], sink)
            }
            (Role::Core(k), Weights::Tt { shape, cores, .. }) => {
                self.for_each_slice(&Direction::of(shape), k, cores, |bytes, _| sink.put(bytes))
            }
            (Role::Scales(k), Weights::Tt { shape, cores, .. }) => {
                self.for_each_slice(&Direction::of(shape), k, cores, |_, scale| {
                    sink.put(&scale.to_le_bytes())
                })
            }
            (Role::OverrideIds, Weights::Tt { overrides: Some(overrides), .. }) => {
                overrides.ids.iter().try_for_each(|(id, _)| sink.put(&id.to_le_bytes()))
            }
            (Role::OverrideIndex, Weights::Tt { shape, overrides: Some(overrides), .. }) => {
                let ids: Vec<u64> = overrides.ids.iter().map(|(id, _)| *id).collect();
                repr::id_index(&ids, shape.num_embeddings()).try_for_each(|line| sink.put(&line))
            }
            (Role::OverrideRows, Weights::Tt { shape, overrides: Some(overrides), .. }) => {
                let direction = Direction::of(shape);
                let mut row = vec![0.0; shape.embedding_dim()];
                let mut bytes = vec![0; Dtype::F32.row_len(row.len())];
                overrides.ids.iter().try_for_each(|&(_, position)| {
                    let start = position * row.len() as u64;
                    overrides.tensor.read_f32(start, &mut row)?;
                    dtype::encode_rows(&row, row.len(), Dtype::F32, &mut bytes)
                        .map_err(|error| place(error, overrides.tensor, |at| start + at as u64))?;
                    sink.put(bytemuck::cast_slice(&direction.row(&row)))
                })
            }
            (role, _) => bail!("no data for section {role:?}"),
        }
    }

    fn write_rows(
        &self,
        tensor: &Tensor,
        rows: u64,
        embedding_dim: usize,
        sink: &mut Sink<'_>,
    ) -> Result<()> {
        let at_once = (1 << 18) / embedding_dim as u64 + 1;
        let mut values = vec![0.0; at_once.min(rows) as usize * embedding_dim];
        let mut bytes = vec![0; at_once.min(rows) as usize * self.dtype.row_len(embedding_dim)];
        let mut progress = Progress::new(&format!("{}: rows", self.name), rows);
        let mut row = 0;
        while row < rows {
            let count = at_once.min(rows - row);
            let values = &mut values[..count as usize * embedding_dim];
            let bytes = &mut bytes[..count as usize * self.dtype.row_len(embedding_dim)];
            let start = row * embedding_dim as u64;
            tensor.stream_f32(start, values)?;
            dtype::encode_rows(values, embedding_dim, self.dtype, bytes)
                .map_err(|error| place(error, tensor, |at| start + at as u64))?;
            sink.put(bytes)?;
            row += count;
            progress.add(count);
        }
        Ok(())
    }

    /// The transpose of a linear layer's weights, which are outputs x inputs.
    fn write_projection(
        &self,
        tensor: &Tensor,
        [outputs, inputs]: [usize; 2],
        sink: &mut Sink<'_>,
    ) -> Result<()> {
        let mut values =
            zeros(outputs.checked_mul(inputs).context("a projection of too many numbers")?)?;
        tensor.read_f32(0, &mut values)?;
        let dtype = self.projection_dtype();
        let (mut column, mut bytes) = (zeros(outputs)?, vec![0; dtype.bytes_of(outputs)]);
        for input in 0..inputs {
            column
                .iter_mut()
                .zip(values.chunks_exact(inputs))
                .for_each(|(to, row)| *to = row[input]);
            dtype::encode(&column, dtype, &mut bytes)
                .map_err(|error| place(error, tensor, |at| (at * inputs + input) as u64))?;
            sink.put(&bytes)?;
        }
        Ok(())
    }

    /// Gives each slice of core k, encoded, and its scale to `put`.
    fn for_each_slice(
        &self,
        direction: &Direction,
        k: usize,
        cores: &[Core<'_>],
        mut put: impl FnMut(&[u8], f32) -> Result<()>,
    ) -> Result<()> {
        let core = &cores[direction.core(k)];
        let mut values = vec![0.0; core.slice_len()];
        let mut bytes = vec![0; self.dtype.bytes_of(values.len())];
        for slice in 0..core.slices() {
            core.read(slice, &mut values)?;
            let scale = dtype::encode_slice(&direction.slice(k, &values), self.dtype, &mut bytes)
                .map_err(|error| {
                place(error, core.tensor, |at| core.position(slice, direction.element(k, at)))
            })?;
            put(&bytes, scale)?;
        }
        Ok(())
    }
}

/// A weight for each row: its count and one more, so that no row is free to become anything.
pub(crate) fn weights(counts: &[(u64, f64)], num_embeddings: u64) -> Result<Vec<f32>> {
    let mut weights = vec![1.0; usize::try_from(num_embeddings)?];
    for &(row, count) in counts {
        weights[row as usize] += count as f32;
    }
    Ok(weights)
}

/// Names the tensor and the place of a value that could not be encoded; `position` says where in
/// the tensor it is.
fn place(
    error: EncodeError,
    tensor: &Tensor,
    position: impl FnOnce(usize) -> u64,
) -> anyhow::Error {
    let EncodeError::OutOfRange { position: at, value, dtype } = error else {
        return anyhow!(error);
    };
    let mut rest = position(at);
    let mut index: Vec<u64> = Vec::new();
    for &extent in tensor.shape().iter().rev() {
        index.push(rest % extent);
        rest /= extent;
    }
    index.reverse();
    let place = match tensor.shape() {
        [_, _] | [1, _, _] => {
            format!("row {}, column {}", index[index.len() - 2], index[index.len() - 1])
        }
        _ => format!("element {index:?}"),
    };
    anyhow!("tensor {:?}, {place}: {value} has no finite {} form", tensor.name(), dtype.name())
}

/// The spec for a checkpoint that holds one table, or one model, or tables that it says all about;
/// otherwise an error that offers what there is.
fn only_tables(checkpoint: &Checkpoint, qr_operation: Option<&str>) -> Result<Spec> {
    let survey = Survey::of(checkpoint);
    let model = Model::around(&survey);
    let Survey { tables: found, refused, complete, .. } = survey;
    let path = checkpoint.path().display();
    if let Some(model) = model {
        let with_operation =
            |table: &TableSpec| with_qr_operation(checkpoint, table.clone(), qr_operation);
        let tables: Vec<_> = found.iter().map(with_operation).collect();
        let spec = Spec { model: Some(model), tables };
        return match spec.tables.iter().find_map(|table| Source::open(checkpoint, table).err()) {
            None => Ok(spec),
            Some(error) => {
                let offer = toml::to_string(&spec).context("cannot write the offered spec")?;
                bail!("{error:#}\n\nComplete this and give it as --spec:\n\n{offer}")
            }
        };
    }
    if complete {
        return Ok(Spec { model, tables: found });
    }
    if let ([table], []) = (found.as_slice(), refused.as_slice()) {
        let table =
            with_qr_operation(checkpoint, named_after_file(checkpoint, table), qr_operation);
        match Source::open(checkpoint, &table) {
            Ok(_) => return Ok(Spec { model: None, tables: vec![table] }),
            Err(error) => {
                bail!("{error:#}\n\nComplete this and give it as --spec:\n\n{}", offer(&[table])?)
            }
        }
    }
    let cannot: String = refused.iter().map(|(_, reason)| format!("\n  {reason}")).collect();
    ensure!(
        !found.is_empty() || refused.is_empty(),
        "{path}: none of its tables can be converted:{cannot}"
    );
    ensure!(
        !found.is_empty(),
        "{path}: nothing looks like an embedding table; name one in a --spec. It holds:\n{}",
        list_tensors(checkpoint)
    );
    let cannot = if refused.is_empty() {
        " ".to_owned()
    } else {
        format!(" Others cannot be converted:{cannot}\n")
    };
    let (look, offer) = (
        if found.len() == 1 {
            "tensor looks"
        } else {
            "tensors look"
        },
        offer(&found)?,
    );
    bail!(
        "{path}: {} {look} like embedding tables.{cannot}Keep the ones you want in a \
         --spec:\n\n{offer}",
        found.len()
    )
}

/// The only table of a checkpoint; where an empty prefix gives it no name, it has that of the file.
pub(crate) fn named_after_file(checkpoint: &Checkpoint, table: &TableSpec) -> TableSpec {
    let file_name =
        || checkpoint.path().file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let unnamed = table.prefix.as_ref().is_some_and(|prefix| prefix.is_empty());
    TableSpec {
        name: table.name.clone().or_else(|| file_name().filter(|_| unnamed)),
        ..table.clone()
    }
}

fn offer(tables: &[TableSpec]) -> Result<String> {
    toml::to_string(&Spec { model: None, tables: tables.to_vec() })
        .context("cannot write the offered spec")
}

fn list_tensors(checkpoint: &Checkpoint) -> String {
    let line = |t: &Tensor| {
        format!("  {} {} {:?}\n", t.name().escape_debug(), t.element_type(), t.shape())
    };
    checkpoint.tensors().take(40).map(line).collect()
}
