//! `ttrec convert`: a checkpoint's tables into a blob, streamed.

#[cfg(test)]
mod hostile;

use crate::{
    Outcome,
    blob_file::{self, Sink},
    checkpoint::{Checkpoint, Tensor},
    dialect::{Core, Source, Survey, Weights, with_qr_operation},
    lookup::zeros,
    output,
    progress::Progress,
    spec::{Spec, TableSpec},
};
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};
use ttrec::{
    BlobError,
    blob::{self, IndexMapSpec, Layout, MAX_NAME_LEN, OverridesSpec, Role, SectionPlan, WeightsSpec},
    dtype::{self, Dtype, EncodeError},
};

/// Turn a trained checkpoint into a blob.
///
/// Which tensors become which tables is said by a spec, a TOML file with one `[[table]]` each. Without one, the tables that
/// the checkpoint seems to hold are listed, as a spec to begin with; if there is just one and nothing is missing, it is
/// converted.
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
  dlrm       facebookresearch/dlrm: plain, quotient-remainder (`qr_operation` = \"mult\", \"add\" or \"concat\") and mixed
             dimension
  torchrec   TorchRec
  dense      one tensor of rows x columns

A hashed table, whose index i stands for row i modulo its rows, has `index_map = \"modulo\"`, its indices as `num_embeddings`,
and its rows, if the checkpoint does not store them, as `num_rows`.

No tensor train stores `num_embeddings`; tltorch and t3nsor store all other facts.")]
pub(crate) struct Args {
    /// .safetensors, or the .safetensors.index.json of several, torch .pt (zip or legacy), .npy or .npz; nothing in it is
    /// executed
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
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    let checkpoint = Checkpoint::open(&args.checkpoint)?;
    let inputs: Vec<&Path> = checkpoint.files().chain(args.spec.as_deref()).collect();
    output::refuse_inputs(&args.output, &inputs)?;
    let (spec, origin) = match &args.spec {
        Some(path) => (Spec::read(path)?, path.display().to_string()),
        None => {
            let operation = args.qr_operation.as_deref();
            (only_table(&checkpoint, operation)?, "the checkpoint's only table".to_owned())
        }
    };
    let with_operation = |table| with_qr_operation(&checkpoint, table, args.qr_operation.as_deref());
    let spec = Spec { tables: spec.tables.into_iter().map(with_operation).collect() };
    let total_len = convert(&checkpoint, &spec, &args.output).map_err(|error| name_input(error, &origin))?;
    let tables = spec.tables.len();
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "{}: {tables} table{}, {total_len} bytes",
        args.output.display(),
        if tables == 1 { "" } else { "s" }
    )?;
    Ok(Outcome::Done)
}

/// Says where the facts came from, but leaves errors of writing as they are.
fn name_input(error: anyhow::Error, origin: &str) -> anyhow::Error {
    if error.is::<crate::output::WriteError>() { error } else { error.context(format!("with {origin}")) }
}

/// Converts the tables of `spec` to a blob at `path`; returns its length in bytes.
pub(crate) fn convert(checkpoint: &Checkpoint, spec: &Spec, path: &Path) -> Result<u64> {
    let sources = spec.tables.iter().map(|table| Source::open(checkpoint, table)).collect::<Result<Vec<_>>>()?;
    let layouts: Vec<_> = sources.iter().map(Source::layout).collect();
    let layout = Layout::new(&layouts).map_err(|error| name_table(error, &sources))?;

    blob_file::write(path, layout, |plan, sink| {
        let source = &sources[plan.table];
        source.write_section(plan, sink).map_err(|error| {
            if error.is::<crate::output::WriteError>() { error } else { source.name_error(checkpoint, error) }
        })
    })
}

fn name_table(error: BlobError, sources: &[Source<'_>]) -> anyhow::Error {
    let table = match error {
        BlobError::Name { table } | BlobError::NameOrder { table } | BlobError::Shape { table, .. } => {
            sources.get(table)
        }
        _ => None,
    };
    match (table, error) {
        (Some(table), BlobError::NameOrder { .. }) => anyhow!("table {:?} is there twice", table.name),
        (Some(table), BlobError::Name { .. }) => {
            anyhow!("table {:?}: a name has 1 to {MAX_NAME_LEN} bytes, not {}", table.name, table.name.len())
        }
        (Some(table), error) => anyhow!(error).context(format!("table {:?}", table.name)),
        (None, error) => anyhow!(error),
    }
}

impl Source<'_> {
    fn layout(&self) -> ttrec::blob::TableSpec {
        let dtype = self.dtype;
        let (weights, overrides) = match &self.weights {
            &Weights::Dense { num_embeddings, embedding_dim, .. } => {
                (WeightsSpec::Dense { num_embeddings, embedding_dim, dtype }, None)
            }
            Weights::Tt { shape, overrides, .. } => (WeightsSpec::Tt { shape: *shape, dtype }, overrides.as_ref()),
            &Weights::Projected { num_embeddings, rank, embedding_dim, .. } => {
                let projection = self.projection_dtype();
                (WeightsSpec::Projected { num_embeddings, embedding_dim, rank, dtype, projection }, None)
            }
            &Weights::QuotientRemainder { num_embeddings, num_remainders, columns, combine, .. } => {
                (WeightsSpec::QuotientRemainder { num_embeddings, num_remainders, columns, combine, dtype }, None)
            }
        };
        // Overridden rows are the ones that training held to be worth their bytes: they stay exact.
        let overrides = overrides.map(|o| OverridesSpec { count: o.ids.len() as u64, dtype: Dtype::F32 });
        let index_map = match self.hashed {
            Some(num_embeddings) => IndexMapSpec::Modulo { num_embeddings },
            None => IndexMapSpec::Identity,
        };
        ttrec::blob::TableSpec { index_map, overrides, ..ttrec::blob::TableSpec::new(self.name.clone(), weights) }
    }

    /// A projection is small, and all rows depend on it: it is never narrower than 16 bits.
    fn projection_dtype(&self) -> Dtype {
        match self.dtype {
            Dtype::F32 | Dtype::Bf16 => self.dtype,
            Dtype::F16 | Dtype::I8 | Dtype::I4 => Dtype::F16,
        }
    }

    fn name_error(&self, checkpoint: &Checkpoint, error: anyhow::Error) -> anyhow::Error {
        error.context(format!("{}: table {:?}", checkpoint.path().display(), self.name))
    }

    fn write_section(&self, plan: &SectionPlan, sink: &mut Sink<'_>) -> Result<()> {
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
            (Role::Core(k), Weights::Tt { cores, .. }) => self.for_each_slice(&cores[k], |bytes, _| sink.put(bytes)),
            (Role::Scales(k), Weights::Tt { cores, .. }) => {
                self.for_each_slice(&cores[k], |_, scale| sink.put(&scale.to_le_bytes()))
            }
            (Role::OverrideIds, Weights::Tt { overrides: Some(overrides), .. }) => {
                overrides.ids.iter().try_for_each(|(id, _)| sink.put(&id.to_le_bytes()))
            }
            (Role::OverrideIndex, Weights::Tt { shape, overrides: Some(overrides), .. }) => {
                let ids: Vec<u64> = overrides.ids.iter().map(|(id, _)| *id).collect();
                blob::id_index(&ids, shape.num_embeddings()).try_for_each(|line| sink.put(&line))
            }
            (Role::OverrideRows, Weights::Tt { shape, overrides: Some(overrides), .. }) => {
                let mut row = vec![0.0; shape.embedding_dim()];
                let mut bytes = vec![0; Dtype::F32.row_len(row.len())];
                overrides.ids.iter().try_for_each(|&(_, position)| {
                    let start = position * row.len() as u64;
                    overrides.tensor.read_f32(start, &mut row)?;
                    dtype::encode_rows(&row, row.len(), Dtype::F32, &mut bytes)
                        .map_err(|error| place(error, overrides.tensor, |at| start + at as u64))?;
                    sink.put(&bytes)
                })
            }
            (role, _) => bail!("no data for section {role:?}"),
        }
    }

    fn write_rows(&self, tensor: &Tensor, rows: u64, embedding_dim: usize, sink: &mut Sink<'_>) -> Result<()> {
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
            tensor.read_f32(start, values)?;
            dtype::encode_rows(values, embedding_dim, self.dtype, bytes)
                .map_err(|error| place(error, tensor, |at| start + at as u64))?;
            sink.put(bytes)?;
            row += count;
            progress.add(count);
        }
        Ok(())
    }

    /// The transpose of a linear layer's weights, which are outputs x inputs.
    fn write_projection(&self, tensor: &Tensor, [outputs, inputs]: [usize; 2], sink: &mut Sink<'_>) -> Result<()> {
        let mut values = zeros(outputs.checked_mul(inputs).context("a projection of too many numbers")?)?;
        tensor.read_f32(0, &mut values)?;
        let dtype = self.projection_dtype();
        let (mut column, mut bytes) = (zeros(outputs)?, vec![0; dtype.bytes_of(outputs)]);
        for input in 0..inputs {
            column.iter_mut().zip(values.chunks_exact(inputs)).for_each(|(to, row)| *to = row[input]);
            dtype::encode(&column, dtype, &mut bytes)
                .map_err(|error| place(error, tensor, |at| (at * inputs + input) as u64))?;
            sink.put(&bytes)?;
        }
        Ok(())
    }

    /// Gives each slice of a core, encoded, and its scale to `put`.
    fn for_each_slice(&self, core: &Core<'_>, mut put: impl FnMut(&[u8], f32) -> Result<()>) -> Result<()> {
        let mut values = vec![0.0; core.slice_len()];
        let mut bytes = vec![0; self.dtype.bytes_of(values.len())];
        for slice in 0..core.slices() {
            core.read(slice, &mut values)?;
            let scale = dtype::encode_slice(&values, self.dtype, &mut bytes)
                .map_err(|error| place(error, core.tensor, |at| core.position(slice, at)))?;
            put(&bytes, scale)?;
        }
        Ok(())
    }
}

/// Names the tensor and the place of a value that could not be encoded; `position` says where in the tensor it is.
fn place(error: EncodeError, tensor: &Tensor, position: impl FnOnce(usize) -> u64) -> anyhow::Error {
    let EncodeError::OutOfRange { position: at, value, dtype } = error else { return anyhow!(error) };
    let mut rest = position(at);
    let mut index: Vec<u64> = Vec::new();
    for &extent in tensor.shape().iter().rev() {
        index.push(rest % extent);
        rest /= extent;
    }
    index.reverse();
    let place = match tensor.shape() {
        [_, _] | [1, _, _] => format!("row {}, column {}", index[index.len() - 2], index[index.len() - 1]),
        _ => format!("element {index:?}"),
    };
    anyhow!("tensor {:?}, {place}: {value} has no finite {} form", tensor.name(), dtype.name())
}

/// The spec for a checkpoint that holds one table and says all about it; otherwise an error that offers what there is.
fn only_table(checkpoint: &Checkpoint, qr_operation: Option<&str>) -> Result<Spec> {
    let Survey { tables: found, refused, .. } = Survey::of(checkpoint);
    let path = checkpoint.path().display();
    if let ([table], []) = (found.as_slice(), refused.as_slice()) {
        // A bare .npy or an empty prefix gives no name.
        let file_name = || checkpoint.path().file_stem().map(|stem| stem.to_string_lossy().into_owned());
        let unnamed = table.prefix.as_ref().is_some_and(|prefix| prefix.is_empty());
        let name = table.name.clone().or_else(|| file_name().filter(|_| unnamed));
        let table = with_qr_operation(checkpoint, TableSpec { name, ..table.clone() }, qr_operation);
        match Source::open(checkpoint, &table) {
            Ok(_) => return Ok(Spec { tables: vec![table] }),
            Err(error) => bail!("{error:#}\n\nComplete this and give it as --spec:\n\n{}", offer(&[table])?),
        }
    }
    let cannot: String = refused.iter().map(|(_, reason)| format!("\n  {reason}")).collect();
    ensure!(!found.is_empty() || refused.is_empty(), "{path}: none of its tables can be converted:{cannot}");
    ensure!(
        !found.is_empty(),
        "{path}: nothing looks like an embedding table; name one in a --spec. It holds:\n{}",
        list_tensors(checkpoint)
    );
    let cannot = if refused.is_empty() { " ".to_owned() } else { format!(" Others cannot be converted:{cannot}\n") };
    let (look, offer) = (if found.len() == 1 { "tensor looks" } else { "tensors look" }, offer(&found)?);
    bail!("{path}: {} {look} like embedding tables.{cannot}Keep the ones you want in a --spec:\n\n{offer}", found.len())
}

fn offer(tables: &[TableSpec]) -> Result<String> {
    toml::to_string(&Spec { tables: tables.to_vec() }).context("cannot write the offered spec")
}

fn list_tensors(checkpoint: &Checkpoint) -> String {
    let line = |t: &Tensor| format!("  {} {} {:?}\n", t.name().escape_debug(), t.element_type(), t.shape());
    checkpoint.tensors().take(40).map(line).collect()
}
