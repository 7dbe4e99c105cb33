//! Converts a checkpoint's tables, or its whole model, to a blob.

use crate::{
    allocate::zeros,
    checkpoint::{Checkpoint, Tensor},
    compare,
    contraction_order::ContractionOrder,
    dialect::{
        CodedRows, Core, Model, Source, Survey, TableRows, Weights, named_after_file,
        table_with_qr_operation,
    },
    error::{Error, OutputError},
    factorize::{self, Codebooks, CodesShape, Encoder, Factorized, Job, Key, Request, ResumeCache},
    frequencies::Frequencies,
    progress::{Progress, Step},
    sink::{self, Sink},
    spec::{Spec, TableSpec},
};
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::{
    io::{Seek, Write},
    path::Path,
};
use ttrec::{
    AlignedBuf, Blob,
    blob::{IndexMapSpec, Layout, ModelSpec, OverridesSpec, Role, SectionPlan, WeightsSpec},
    dtype::{self, Dtype, EncodeError},
    repr::{self, CodeDtype, RowNumberDtype},
};

/// How [`convert`] factorises dense tables.
#[derive(Clone, Copy)]
pub struct Options<'o> {
    /// The memory limit of a factorisation in bytes.
    pub memory: u64,
    /// A file of [`Frequencies`], which weigh the errors of rows.
    pub frequencies: Option<&'o Path>,
    /// Keeps finished factorisations, so that an interrupted conversion can continue.
    pub resume: Option<&'o dyn ResumeCache>,
}

impl Default for Options<'_> {
    /// A memory limit of 512 MiB, without frequencies and resume.
    fn default() -> Self {
        Self { memory: factorize::DEFAULT_MEMORY, frequencies: None, resume: None }
    }
}

/// Opens the tables of `spec`, factorises those that it says, and lays the blob out.
///
/// The numbers of all other tables are read when the blob is written.
///
/// # Errors
/// If `spec` does not fit the checkpoint, or a table cannot be factorised as it says.
pub fn convert<'c>(
    checkpoint: &'c Checkpoint,
    spec: &Spec,
    options: &Options<'c>,
    progress: &'c dyn Progress,
) -> Result<Conversion<'c>, Error> {
    Ok(Conversion::new(checkpoint, spec, options, progress)?)
}

/// A blob that is ready to be written.
pub struct Conversion<'c> {
    checkpoint: &'c Checkpoint,
    tables: Vec<ConvertedTable<'c>>,
    model: Option<Model<'c>>,
    layout: Layout,
    resume: Option<&'c dyn ResumeCache>,
    progress: &'c dyn Progress,
}

impl<'c> Conversion<'c> {
    fn new(
        checkpoint: &'c Checkpoint,
        spec: &Spec,
        options: &Options<'c>,
        progress: &'c dyn Progress,
    ) -> Result<Self> {
        let sources = spec
            .tables
            .iter()
            .map(|table| Source::open(checkpoint, table))
            .collect::<Result<Vec<_>>>()?;
        let model = open_model(checkpoint, spec, &sources)?;
        let frequencies = options.frequencies.map(|path| {
            let names = sources.iter().map(|source| source.name.clone()).collect();
            Frequencies::read(path, names)
        });
        let frequencies = frequencies.transpose()?;
        let tables = sources.into_iter().map(|source| {
            let factorized = source
                .factorize(options, frequencies.as_ref(), progress)
                .map_err(|e| source.name_error(checkpoint, e))?;
            Ok(ConvertedTable { source, factorized })
        });
        let tables = tables.collect::<Result<Vec<_>>>()?;
        let layouts: Vec<_> = tables.iter().map(ConvertedTable::layout).collect();
        let layout = Layout::with_model(&layouts, model.as_ref().map(|(_, layout)| layout));
        let layout = layout?;
        let model = model.map(|(model, _)| model);
        Ok(Self { checkpoint, tables, model, layout, resume: options.resume, progress })
    }

    /// The length of the blob in bytes.
    pub fn total_len(&self) -> u64 {
        self.layout.total_len()
    }

    /// Writes the blob, streaming its tables from the checkpoint.
    ///
    /// # Errors
    /// If `out` fails ([`Error::Output`]), or a value of the checkpoint overflows the stored type.
    pub fn write(&self, out: &mut (impl Write + Seek)) -> Result<(), Error> {
        let section = |plan: &SectionPlan, sink: &mut Sink<'_>| self.write_section(plan, sink);
        Ok(sink::write(out, self.layout.clone(), section)?)
    }

    /// The blob in memory.
    ///
    /// # Errors
    /// As [`write`](Self::write), except for `out`.
    pub fn to_blob(&self) -> Result<AlignedBuf, Error> {
        let section = |plan: &SectionPlan, sink: &mut Sink<'_>| self.write_section(plan, sink);
        Ok(sink::build(self.layout.clone(), section)?)
    }

    /// Looks up every row of the tables that were factorised, compares it with the checkpoint's,
    /// and notes the errors; `blob` is what was written.
    ///
    /// # Errors
    /// If `blob` is another one, or the checkpoint cannot be read.
    pub fn note_errors(&self, blob: &Blob<'_>) -> Result<(), Error> {
        for ConvertedTable { source, .. } in
            self.tables.iter().filter(|table| table.factorized.is_some())
        {
            let table = blob.table(&source.name).map_err(anyhow::Error::from)?;
            let error = compare::compare(&table, source, None, self.progress)?.relative_error;
            let name = source.name.escape_debug();
            self.progress.note(&format!("{name}: relative error {error:.3e}"));
        }
        Ok(())
    }

    /// Removes the factorisations of this conversion from [`Options::resume`]: call it once the
    /// blob is safe.
    pub fn forget(&self) {
        let keys = self.tables.iter().filter_map(|table| table.factorized.as_ref()?.key.as_ref());
        for (resume, key) in
            self.resume.iter().flat_map(|resume| keys.clone().map(move |k| (resume, k)))
        {
            resume.remove(key.text());
        }
    }

    fn write_section(&self, plan: &SectionPlan, sink: &mut Sink<'_>) -> Result<()> {
        if let (
            Role::LayerWeights(layer) | Role::LayerScales(layer) | Role::LayerBias(layer),
            Some(model),
        ) = (plan.role, &self.model)
        {
            return model.write_section(layer, plan.role, sink).map_err(|error| {
                if error.is::<OutputError>() {
                    return error;
                }
                error.context(format!(
                    "{}: the layer of tensor {:?}",
                    self.checkpoint.path().display(),
                    model.name(layer)
                ))
            });
        }
        let ConvertedTable { source, factorized } = &self.tables[plan.table];
        let written = match factorized {
            Some(factorized) => {
                source.write_factorized(&factorized.result, plan, sink, self.progress)
            }
            None => source.write_section(plan, sink, self.progress),
        };
        written.map_err(|error| {
            if error.is::<OutputError>() {
                error
            } else {
                source.name_error(self.checkpoint, error)
            }
        })
    }
}

/// The model of the spec and its layout around these tables.
fn open_model<'c>(
    checkpoint: &'c Checkpoint,
    spec: &Spec,
    sources: &[Source<'c>],
) -> Result<Option<(Model<'c>, ModelSpec)>> {
    let Some(model) = &spec.model else { return Ok(None) };
    let in_file = || format!("{}: [model]", checkpoint.path().display());
    let dims: Vec<usize> = sources.iter().map(|source| source.weights.embedding_dim()).collect();
    let model = Model::open(checkpoint, model).with_context(in_file)?;
    let layout = model.layout(&spec.tables, &dims).with_context(in_file)?;
    Ok(Some((model, layout)))
}

/// A table, and its factorisation, if the spec requests one.
struct ConvertedTable<'c> {
    source: Source<'c>,
    factorized: Option<FinishedFactorization>,
}

/// A finished factorisation, and its key in [`Options::resume`].
struct FinishedFactorization {
    result: Factorized,
    key: Option<Key>,
}

impl ConvertedTable<'_> {
    fn layout(&self) -> ttrec::blob::TableSpec {
        let spec = self.source.layout();
        let (Some(FinishedFactorization { result, .. }), dtype) =
            (&self.factorized, self.source.dtype)
        else {
            return spec;
        };
        let index_map = match result {
            Factorized::Tt { places: Some(_), shape, .. } => {
                let num_embeddings = shape.num_embeddings();
                let dtype = RowNumberDtype::for_rows(num_embeddings);
                IndexMapSpec::Remapped { num_embeddings, dtype }
            }
            _ => spec.index_map,
        };
        let weights = match result {
            Factorized::Tt { shape, .. } => {
                WeightsSpec::Tt { shape: *ContractionOrder::of(shape).stored(), dtype }
            }
            Factorized::Codes(codebooks) => codebooks.shape.layout(
                self.source.weights.num_embeddings(),
                self.source.weights.embedding_dim(),
                dtype,
                self.source.projection_dtype(),
            ),
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
                anyhow!("{value} does not fit in {}", dtype.name())
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
            &Weights::Dense(TableRows { num_rows, columns, .. }) => (
                WeightsSpec::Dense { num_embeddings: num_rows, embedding_dim: columns, dtype },
                None,
            ),
            Weights::Tt { shape, overrides, .. } => (
                WeightsSpec::Tt { shape: *ContractionOrder::of(shape).stored(), dtype },
                overrides.as_ref(),
            ),
            &Weights::Projected { rows, embedding_dim, .. } => {
                let projection = self.projection_dtype();
                (
                    WeightsSpec::Projected {
                        num_embeddings: rows.num_rows,
                        embedding_dim,
                        rank: rows.columns,
                        dtype,
                        projection,
                    },
                    None,
                )
            }
            Weights::Codebook(rows) => (rows.layout(dtype, self.projection_dtype()), None),
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
        // Training chose the overridden rows as worth their bytes: they stay exact.
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

    /// Factorises the table as the spec says, or reuses the result of an interrupted conversion,
    /// and notes its shape.
    fn factorize(
        &self,
        options: &Options<'_>,
        frequencies: Option<&Frequencies>,
        progress: &dyn Progress,
    ) -> Result<Option<FinishedFactorization>> {
        let (Some(request), Weights::Dense(rows)) = (&self.factorize, &self.weights) else {
            return Ok(None);
        };
        let (num_embeddings, embedding_dim) = (rows.num_rows, rows.columns);
        let weighing = options.frequencies.filter(|_| !matches!(request, Request::LowRank { .. }));
        let key = options
            .resume
            .map(|_| Key::new(rows.tensor.file(), &rows.label(), request, weighing))
            .transpose()?;
        let found = options.resume.zip(key.as_ref()).and_then(|(resume, key)| {
            key.parse(&resume.get(key.text())?, num_embeddings, embedding_dim)
        });
        let result = match found {
            Some(found) => found,
            None => {
                let weights = match frequencies.filter(|_| weighing.is_some()) {
                    Some(frequencies) => frequencies
                        .of(&self.name)?
                        .map(|counts| weights(&counts.read(num_embeddings)?, num_embeddings)),
                    None => None,
                };
                let weights = weights.transpose()?;
                let job = Job { memory: options.memory, name: &self.name, progress };
                let result = request.run(rows, weights.as_deref(), &job)?;
                if let (Some(resume), Some(key)) = (options.resume, &key) {
                    resume
                        .put(key.text(), &key.bytes(&result, embedding_dim)?)
                        .map_err(OutputError)?;
                }
                result
            }
        };
        progress.note(&self.summary(&result));
        Ok(Some(FinishedFactorization { result, key }))
    }

    fn summary(&self, result: &Factorized) -> String {
        let name = self.name.escape_debug();
        match result {
            Factorized::Tt { shape, .. } => format!(
                "{name}: a tensor train of row factors {:?}, column factors {:?}, ranks {:?}",
                shape.row_factors(),
                shape.column_factors(),
                shape.inner_ranks()
            ),
            Factorized::LowRank { rank, .. } => format!("{name}: rank {rank}"),
            Factorized::Codes(codebooks) => {
                let CodesShape { books, bits, rank, .. } = codebooks.shape;
                format!("{name}: {books} codes of {bits} bits for {rank} columns")
            }
        }
    }

    /// Books as they are stored.
    fn encoder(&self, codebooks: &Codebooks) -> Result<Encoder> {
        Encoder::new(codebooks, self.dtype, self.projection_dtype())
            .map_err(|error| anyhow!(error).context("after factorisation"))
    }

    fn write_factorized(
        &self,
        result: &Factorized,
        plan: &SectionPlan,
        sink: &mut Sink<'_>,
        progress: &dyn Progress,
    ) -> Result<()> {
        let failed = |error: EncodeError| anyhow!(error).context("after factorisation");
        match (plan.role, result, &self.weights) {
            (Role::Core(k) | Role::Scales(k), Factorized::Tt { shape, cores, .. }, _) => {
                let direction = ContractionOrder::of(shape);
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
            (Role::RemappedRows, Factorized::Tt { places: Some(places), shape, .. }, _) => {
                let dtype = RowNumberDtype::for_rows(shape.num_embeddings());
                let mut bytes = Vec::new();
                places.chunks(1 << 16).try_for_each(|places| {
                    bytes.resize(places.len() * dtype.bytes(), 0);
                    dtype.encode(places, &mut bytes);
                    sink.put(&bytes)
                })
            }
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
            (Role::Rows, Factorized::LowRank { rank, basis, .. }, Weights::Dense(rows)) => {
                let step = Step::new(progress, &format!("{}: rows", self.name), rows.num_rows);
                let mut bytes = Vec::new();
                factorize::for_each_short_row(rows, basis, *rank, |short| {
                    bytes.resize(short.len() / rank * self.dtype.row_len(*rank), 0);
                    dtype::encode_rows(short, *rank, self.dtype, &mut bytes).map_err(failed)?;
                    step.add((short.len() / rank) as u64);
                    sink.put(&bytes)
                })
            }
            (Role::Books | Role::Scales(_) | Role::Projection, Factorized::Codes(books), _) => {
                let encoder = self.encoder(books)?;
                sink.put(match plan.role {
                    Role::Books => &encoder.books,
                    Role::Scales(_) => bytemuck::cast_slice(&encoder.scales),
                    _ => &encoder.projection_bytes,
                })
            }
            (Role::Codes, Factorized::Codes(books), Weights::Dense(rows)) => {
                let step = Step::new(progress, &format!("{}: rows", self.name), rows.num_rows);
                let dtype = CodeDtype::for_book_len(books.shape.book_len());
                let (num_books, mut bytes) = (books.shape.books, Vec::new());
                let len = dtype.row_len(num_books);
                self.encoder(books)?.for_each(rows, &step, |codes| {
                    bytes.resize(codes.len() / num_books * len, 0);
                    codes
                        .chunks_exact(num_books)
                        .zip(bytes.chunks_exact_mut(len))
                        .for_each(|(codes, bytes)| dtype.encode_row(codes, bytes));
                    sink.put(&bytes)
                })
            }
            (role, ..) => bail!("no data for section {role:?}"),
        }
    }

    /// A projection is small and affects all rows: it is never narrower than 16 bits.
    fn projection_dtype(&self) -> Dtype {
        match self.dtype {
            Dtype::F32 | Dtype::Bf16 => self.dtype,
            _ => Dtype::F16,
        }
    }

    fn name_error(&self, checkpoint: &Checkpoint, error: anyhow::Error) -> anyhow::Error {
        error.context(format!("{}: table {:?}", checkpoint.path().display(), self.name))
    }

    pub(crate) fn write_section(
        &self,
        plan: &SectionPlan,
        sink: &mut Sink<'_>,
        progress: &dyn Progress,
    ) -> Result<()> {
        match (plan.role, &self.weights) {
            (
                Role::Rows,
                Weights::Dense(rows)
                | Weights::Projected { rows, .. }
                | Weights::QuotientRemainder { parts: [rows, _], .. },
            )
            | (Role::RemainderRows, Weights::QuotientRemainder { parts: [_, rows], .. }) => {
                self.write_rows(rows, sink, progress)
            }
            (Role::Projection, &Weights::Projected { rows, embedding_dim, projection }) => {
                self.write_projection(projection, [embedding_dim, rows.columns], sink)
            }
            (Role::Codes, Weights::Codebook(rows)) => self.write_codes(rows, sink, progress),
            (Role::Books, Weights::Codebook(rows)) => {
                self.for_each_book(rows, |bytes, _| sink.put(bytes))
            }
            (Role::Scales(_), Weights::Codebook(rows)) => {
                self.for_each_book(rows, |_, scale| sink.put(&scale.to_le_bytes()))
            }
            (Role::Projection, &Weights::Codebook(CodedRows { projection, embedding_dim, .. })) => {
                let matrix = projection.context("there is no projection")?;
                self.write_matrix(matrix, embedding_dim, sink)
            }
            (Role::Core(k), Weights::Tt { shape, cores, .. }) => {
                self.for_each_slice(&ContractionOrder::of(shape), k, cores, |bytes, _| {
                    sink.put(bytes)
                })
            }
            (Role::Scales(k), Weights::Tt { shape, cores, .. }) => {
                self.for_each_slice(&ContractionOrder::of(shape), k, cores, |_, scale| {
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
                let direction = ContractionOrder::of(shape);
                let mut row = vec![0.0; shape.embedding_dim()];
                let mut bytes = vec![0; Dtype::F32.row_len(row.len())];
                overrides.ids.iter().try_for_each(|&(_, position)| {
                    overrides.read(position, &mut row)?;
                    dtype::encode_rows(&row, row.len(), Dtype::F32, &mut bytes).map_err(
                        |error| match overrides.tensor.zip(position) {
                            Some((tensor, position)) => {
                                let start = position * row.len() as u64;
                                place(error, tensor.name(), tensor.shape(), |at| start + at as u64)
                            }
                            None => anyhow!(error),
                        },
                    )?;
                    sink.put(bytemuck::cast_slice(&direction.row(&row)))
                })
            }
            (role, _) => bail!("no data for section {role:?}"),
        }
    }

    fn write_rows(
        &self,
        from: &TableRows<'_>,
        sink: &mut Sink<'_>,
        progress: &dyn Progress,
    ) -> Result<()> {
        let (rows, embedding_dim) = (from.num_rows, from.columns);
        let at_once = (1 << 18) / embedding_dim as u64 + 1;
        let mut values = vec![0.0; at_once.min(rows) as usize * embedding_dim];
        let mut bytes = vec![0; at_once.min(rows) as usize * self.dtype.row_len(embedding_dim)];
        let step = Step::new(progress, &format!("{}: rows", self.name), rows);
        let mut row = 0;
        while row < rows {
            let count = at_once.min(rows - row);
            let values = &mut values[..count as usize * embedding_dim];
            let bytes = &mut bytes[..count as usize * self.dtype.row_len(embedding_dim)];
            if !from.copy_codes(row, self.dtype, bytes)? {
                let (start, shape) = (row * embedding_dim as u64, [rows, embedding_dim as u64]);
                from.read(row, values)?;
                dtype::encode_rows(values, embedding_dim, self.dtype, bytes).map_err(|error| {
                    place(error, from.tensor.name(), &shape, |at| start + at as u64)
                })?;
            }
            sink.put(bytes)?;
            row += count;
            step.add(count);
        }
        Ok(())
    }

    /// The codes of all rows.
    fn write_codes(
        &self,
        rows: &CodedRows<'_>,
        sink: &mut Sink<'_>,
        progress: &dyn Progress,
    ) -> Result<()> {
        let (dtype, at_once) = (rows.code_dtype(), (1 << 18) / rows.num_books as u64 + 1);
        let row_len = dtype.row_len(rows.num_books);
        let step = Step::new(progress, &format!("{}: rows", self.name), rows.num_rows);
        let mut bytes = Vec::new();
        for first in (0..rows.num_rows).step_by(at_once as usize) {
            let count = at_once.min(rows.num_rows - first) as usize;
            let codes = rows.read_codes(first, count)?;
            bytes.resize(count * row_len, 0);
            codes
                .chunks_exact(rows.num_books)
                .zip(bytes.chunks_exact_mut(row_len))
                .for_each(|(codes, bytes)| dtype.encode_row(codes, bytes));
            sink.put(&bytes)?;
            step.add(count as u64);
        }
        Ok(())
    }

    /// Calls `put` with each encoded book and its scale.
    fn for_each_book(
        &self,
        rows: &CodedRows<'_>,
        mut put: impl FnMut(&[u8], f32) -> Result<()>,
    ) -> Result<()> {
        let mut book = Vec::new();
        for number in 0..rows.num_books {
            rows.read_book(number, &mut book)?;
            let mut bytes = vec![0; self.dtype.bytes_of(book.len())];
            let scale = dtype::encode_slice(&book, self.dtype, &mut bytes).map_err(|error| {
                let position = |at| (number * book.len() + at) as u64;
                place(error, rows.books.name(), rows.books.shape(), position)
            })?;
            put(&bytes, scale)?;
        }
        Ok(())
    }

    /// The matrix that rows of codes are multiplied by, as the checkpoint has it.
    fn write_matrix(&self, tensor: &Tensor, columns: usize, sink: &mut Sink<'_>) -> Result<()> {
        let dtype = self.projection_dtype();
        let (mut row, mut bytes) = (zeros(columns)?, vec![0; dtype.bytes_of(columns)]);
        for start in (0..tensor.len()).step_by(columns) {
            tensor.read_f32(start, &mut row)?;
            dtype::encode(&row, dtype, &mut bytes).map_err(|error| {
                place(error, tensor.name(), tensor.shape(), |at| start + at as u64)
            })?;
            sink.put(&bytes)?;
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
            zeros(outputs.checked_mul(inputs).context("the projection is too large")?)?;
        tensor.read_f32(0, &mut values)?;
        let dtype = self.projection_dtype();
        let (mut column, mut bytes) = (zeros(outputs)?, vec![0; dtype.bytes_of(outputs)]);
        for input in 0..inputs {
            column
                .iter_mut()
                .zip(values.chunks_exact(inputs))
                .for_each(|(to, row)| *to = row[input]);
            dtype::encode(&column, dtype, &mut bytes).map_err(|error| {
                let position = |at| (at * inputs + input) as u64;
                place(error, tensor.name(), tensor.shape(), position)
            })?;
            sink.put(&bytes)?;
        }
        Ok(())
    }

    /// Calls `put` with each encoded slice of core k and its scale.
    fn for_each_slice(
        &self,
        direction: &ContractionOrder,
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
                let (name, shape) = (core.tensor.name(), core.tensor.shape());
                place(error, name, shape, |at| core.position(slice, direction.element(k, at)))
            })?;
            put(&bytes, scale)?;
        }
        Ok(())
    }
}

/// The weight of each row: its count plus one, so that rows that do not occur are approximated too.
pub(crate) fn weights(counts: &[(u64, f64)], num_embeddings: u64) -> Result<Vec<f32>> {
    let mut weights = vec![1.0; usize::try_from(num_embeddings)?];
    for &(row, count) in counts {
        weights[row as usize] += count as f32;
    }
    Ok(weights)
}

/// Names the tensor and the position of a value that cannot be encoded; `position` maps it to the
/// elements of `shape`.
fn place(
    error: EncodeError,
    name: &str,
    shape: &[u64],
    position: impl FnOnce(usize) -> u64,
) -> anyhow::Error {
    let EncodeError::OutOfRange { position: at, value, dtype } = error else {
        return anyhow!(error);
    };
    let mut rest = position(at);
    let mut index: Vec<u64> = Vec::new();
    for &extent in shape.iter().rev() {
        index.push(rest % extent);
        rest /= extent;
    }
    index.reverse();
    let place = match shape {
        [_, _] | [1, _, _] => {
            format!("row {}, column {}", index[index.len() - 2], index[index.len() - 1])
        }
        _ => format!("element {index:?}"),
    };
    anyhow!("tensor {name:?}, {place}: {value} does not fit in {}", dtype.name())
}

/// The spec of a checkpoint with one table or one model, or whose metadata lists its tables.
/// `qr_operation` is for quotient-remainder tables.
///
/// # Errors
/// If the checkpoint holds anything else: the text has a spec to complete.
pub fn detect(checkpoint: &Checkpoint, qr_operation: Option<repr::Combine>) -> Result<Spec, Error> {
    Ok(only_tables(checkpoint, qr_operation)?)
}

fn only_tables(checkpoint: &Checkpoint, qr_operation: Option<repr::Combine>) -> Result<Spec> {
    let survey = Survey::of(checkpoint);
    let model = Model::around(&survey);
    let suggested = if model.is_none() { Model::suggest(&survey) } else { None };
    let Survey { tables: found, refused, complete, .. } = survey;
    let path = checkpoint.path().display();
    if let Some(model) = model {
        let with_operation =
            |table: &TableSpec| table_with_qr_operation(checkpoint, table.clone(), qr_operation);
        let tables: Vec<_> = found.iter().map(with_operation).collect();
        let spec = Spec { model: Some(model), tables };
        let sources = spec.tables.iter().map(|table| Source::open(checkpoint, table));
        let sources = sources.collect::<Result<Vec<_>>>();
        return match sources.and_then(|sources| open_model(checkpoint, &spec, &sources)) {
            Ok(_) => Ok(spec),
            Err(error) => {
                let offer = toml::to_string(&spec).context("cannot write the offered spec")?;
                bail!("{error:#}\n\nComplete this spec and pass it with --spec:\n\n{offer}")
            }
        };
    }
    if complete {
        return Ok(Spec { model, tables: found });
    }
    if let (Some(model), [_, _, ..], []) = (suggested, &found[..], &refused[..]) {
        let tables = found.len();
        let spec = Spec { model: Some(model), tables: found };
        bail!(
            "{path}: found {tables} embedding tables, and layers that make a model around them: \
             complete this spec and pass it with --spec. Set `pooling` in [model] to \"sum\" or \
             \"mean\" (torch.nn.EmbeddingBag averages, unless its `mode` says otherwise), and \
             list the tables in the order in which the model takes them:\n\n{}",
            toml::to_string(&spec).context("cannot write the offered spec")?
        );
    }
    if let ([table], []) = (found.as_slice(), refused.as_slice()) {
        let table =
            table_with_qr_operation(checkpoint, named_after_file(checkpoint, table), qr_operation);
        match Source::open(checkpoint, &table) {
            Ok(_) => return Ok(Spec { model: None, tables: vec![table] }),
            Err(error) => {
                bail!(
                    "{error:#}\n\nComplete this spec and pass it with --spec:\n\n{}",
                    offer(&[table])?
                )
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
        "{path}: no tensor looks like an embedding table: name one in a --spec. The checkpoint \
         has:\n{}",
        list_tensors(checkpoint)
    );
    let cannot = if refused.is_empty() {
        " ".to_owned()
    } else {
        format!(" Others cannot be converted:{cannot}\n")
    };
    let (count, offer) = (found.len(), offer(&found)?);
    let s = if count == 1 { "" } else { "s" };
    bail!(
        "{path}: found {count} embedding table{s}.{cannot}Put those that you want into a spec and \
         pass it with --spec:\n\n{offer}"
    )
}

fn offer(tables: &[TableSpec]) -> Result<String> {
    toml::to_string(&Spec { model: None, tables: tables.to_vec() })
        .context("cannot write the offered spec")
}

fn list_tensors(checkpoint: &Checkpoint) -> String {
    let line = |t: &Tensor| {
        format!("  {} {} {:?}\n", t.name().escape_debug(), t.element_type(), t.shape())
    };
    let unreadable = |(name, reason): (&str, &str)| {
        format!("  {}: cannot be read: {reason}\n", name.escape_debug())
    };
    let readable = checkpoint.tensors().map(line);
    readable.chain(checkpoint.unreadable().map(unreadable)).take(40).collect()
}
