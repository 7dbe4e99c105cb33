//! The writer. A [`Layout`] fixes the position of every byte before the first one is written, so
//! that a file of any size can be streamed: the sections in order, and last the head, which has
//! their checksums.

use super::{
    Activation, Checksum, Interaction, LayoutError, MAX_LAYER_WIDTH, MAX_LAYERS, MAX_MODEL_TABLES,
    MAX_NAME_LEN, MAX_TABLES, Role, Stack, VERSION, align_up, directory_checksum,
    model::ModelTable,
    record::{DTYPE_U64, Header, LayerRecord, MAGIC, SectionRecord, TableRecord, index_map, kind},
};
use crate::{
    AlignedBuf,
    dtype::Dtype,
    repr::{
        CodeDtype, Combine, RowNumberDtype,
        codebook::{self, entry_len},
        id_index_len,
    },
    shape::{ShapeError, TtShape, check_embedding_dim, check_num_embeddings},
};
use alloc::{string::String, vec::Vec};
use bytemuck::Zeroable;

/// A table to be written: its name and what its sections will hold.
#[derive(Clone, Debug)]
pub struct TableSpec {
    /// A name that is unique in the blob, of 1 to [`MAX_NAME_LEN`] bytes.
    pub name: String,
    /// Representation, shape and dtype.
    pub weights: WeightsSpec,
    /// How an index becomes the number of a row.
    pub index_map: IndexMapSpec,
    /// Number of prefixes whose products are stored, up to [`TtShape::num_prefixes`]; 0 for other
    /// tables than tensor trains.
    pub num_prefixes: u64,
    /// The rows that replace those of some indices, if any.
    pub overrides: Option<OverridesSpec>,
}

impl TableSpec {
    /// A table with a row for each index, without overrides, and without products of prefixes.
    pub fn new(name: impl Into<String>, weights: WeightsSpec) -> Self {
        Self {
            name: name.into(),
            weights,
            index_map: IndexMapSpec::Identity,
            num_prefixes: 0,
            overrides: None,
        }
    }
}

/// The index map of a table to be written ([`IndexMap`](crate::repr::IndexMap)).
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IndexMapSpec {
    /// Index i is row i.
    #[default]
    Identity,
    /// Index i is row i modulo the number of rows.
    Modulo {
        /// Indices: as many as rows, or more.
        num_embeddings: u64,
    },
    /// A list gives the row of each index. It is written as [`Role::RemappedRows`].
    Remapped {
        /// Indices: as many as rows, or more.
        num_embeddings: u64,
        /// Stored type of the row numbers.
        dtype: RowNumberDtype,
    },
}

/// The representation of a table to be written. `num_embeddings` is the number of stored rows. With
/// an [`IndexMapSpec`], indices share these rows.
#[non_exhaustive]
#[derive(Clone, Copy, Debug)]
pub enum WeightsSpec {
    /// Every row.
    Dense {
        /// Number of stored rows.
        num_embeddings: u64,
        /// Elements of a row that a lookup gives.
        embedding_dim: usize,
        /// Stored type of the rows.
        dtype: Dtype,
    },
    /// Cores of a tensor train.
    Tt {
        /// Rows, factors and ranks.
        shape: TtShape,
        /// Stored type of the slices.
        dtype: Dtype,
    },
    /// Short rows, and a matrix that widens them ([`Projected`](crate::repr::Projected)).
    Projected {
        /// Number of stored rows.
        num_embeddings: u64,
        /// Elements of a row that a lookup gives.
        embedding_dim: usize,
        /// Columns of the short rows.
        rank: usize,
        /// Stored type of the short rows.
        dtype: Dtype,
        /// Stored type of the projection: f32, f16 or bf16.
        projection: Dtype,
    },
    /// Quotient and remainder rows ([`QuotientRemainder`](crate::repr::QuotientRemainder)).
    QuotientRemainder {
        /// Number of stored rows.
        num_embeddings: u64,
        /// Remainder rows.
        num_remainders: u32,
        /// Columns of quotient and remainder rows.
        columns: [usize; 2],
        /// How a quotient row and a remainder row become one.
        combine: Combine,
        /// Stored type of both parts.
        dtype: Dtype,
    },
    /// Codes of entries of a few books ([`Codebook`](crate::repr::Codebook)).
    Codebook {
        /// Number of stored rows.
        num_embeddings: u64,
        /// Elements of a row that a lookup gives.
        embedding_dim: usize,
        /// Codes of a row.
        num_books: usize,
        /// Entries of a book.
        book_len: usize,
        /// Columns before the projection; without one, `embedding_dim`.
        inner_dim: usize,
        /// Whether the entries of a row are put end to end or added.
        combine: Combine,
        /// Stored type of the codes.
        codes: CodeDtype,
        /// Stored type of the books: f32, f16, bf16 or i8.
        dtype: Dtype,
        /// Stored type of the projection, if there is one: f32, f16 or bf16.
        projection: Option<Dtype>,
    },
}

impl WeightsSpec {
    /// The stored type of the rows, the cores, both parts or the books.
    pub fn dtype(&self) -> Dtype {
        match *self {
            Self::Dense { dtype, .. }
            | Self::Tt { dtype, .. }
            | Self::Projected { dtype, .. }
            | Self::QuotientRemainder { dtype, .. }
            | Self::Codebook { dtype, .. } => dtype,
        }
    }
}

/// The overrides of a table to be written.
#[derive(Clone, Copy, Debug)]
pub struct OverridesSpec {
    /// Number of overrides: 1 to the number of indices.
    pub count: u64,
    /// Stored type of these rows.
    pub dtype: Dtype,
}

/// A model to be written around some tables: DLRM's.
#[derive(Clone, Debug, Default)]
pub struct ModelSpec {
    /// Its tables, by their positions among those given to [`Layout::with_model`], in the order of
    /// the interaction.
    pub tables: Vec<ModelTable>,
    /// How its vectors become the inputs of the top perceptron.
    pub interaction: Interaction,
    /// Layers of the bottom perceptron: none if there are no dense features.
    pub bottom: Vec<LayerSpec>,
    /// Layers of the top perceptron.
    pub top: Vec<LayerSpec>,
}

/// A layer to be written ([`Layer`](super::Layer)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerSpec {
    /// Number of inputs.
    pub inputs: usize,
    /// Number of outputs.
    pub outputs: usize,
    /// What follows the linear part.
    pub activation: Activation,
    /// Stored type of the weights: any but i4.
    pub dtype: Dtype,
}

/// The position of one section, and what it must hold.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectionPlan {
    /// Position of the section's table among those given to [`Layout::new`]. For a section of a
    /// layer, whose position is part of the role, the number of tables.
    pub table: usize,
    /// Which part of the table or layer the section holds.
    pub role: Role,
    /// Its element type; `None` for ids and their index, which are u64, for
    /// [`Role::RemappedRows`] and for [`Role::Codes`].
    pub dtype: Option<Dtype>,
    /// Bytes from the start of the blob, a multiple of 64.
    pub offset: u64,
    /// Bytes to write. Zeros follow up to the next multiple of 64.
    pub len: u64,
}

/// The directory of a blob to be written. It needs the checksum of each section
/// ([`set_checksum`](Self::set_checksum)) before the [`head`](Self::head) is complete.
///
/// ```
/// use ttrec::{Blob, TtShape, blob::{Layout, Role, TableSpec, WeightsSpec}, dtype::{self, Dtype}};
///
/// let shape = TtShape::new(6, &[2, 3], &[2, 2], &[1])?;
/// let weights = WeightsSpec::Tt { shape, dtype: Dtype::F32 };
/// let layout = Layout::new(&[TableSpec::new("user", weights)])?;
/// let buf = layout.build(|section, out| match section.role {
///     Role::Core(0) => dtype::encode(&[1.0, 2.0, 3.0, 4.0], Dtype::F32, out).unwrap(),
///     _ => dtype::encode(&[1.0, 10.0, 2.0, 20.0, 3.0, 30.0], Dtype::F32, out).unwrap(),
/// });
/// let blob = Blob::parse(&buf)?;
/// let mut row = [0.0; 4];
/// let user = blob.table("user")?;
/// user.lookup(5, &mut row, &mut vec![0.0; user.workspace_len(1)])?;
/// // Row 5 has the digits (1, 2): the product of the column [3, 4] and the row [3, 30].
/// assert_eq!(row, [9.0, 90.0, 12.0, 120.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Layout {
    header: Header,
    tables: Vec<TableRecord>,
    sections: Vec<SectionRecord>,
    layers: Vec<LayerRecord>,
    model_tables: Vec<u32>,
    names: Vec<u8>,
    plans: Vec<SectionPlan>,
}

impl Layout {
    /// Lays out these tables, which may come in any order.
    ///
    /// # Errors
    /// [`LayoutError`]: a name that is empty, too long or a duplicate, a shape that is not valid,
    /// i4 cores or books, a projection that is i8 or i4, more rows or overrides than indices, more
    /// prefix products than prefixes (of which only a tensor train has any), too many tables or
    /// bytes.
    pub fn new(tables: &[TableSpec]) -> Result<Self, LayoutError> {
        Self::with_model(tables, None)
    }

    /// As [`new`](Self::new), with a model around the tables.
    ///
    /// # Errors
    /// [`LayoutError`]: also layers that do not fit each other or the tables, i4 weights, and too
    /// many layers or tables of the model.
    pub fn with_model(
        tables: &[TableSpec],
        model: Option<&ModelSpec>,
    ) -> Result<Self, LayoutError> {
        if tables.len() > MAX_TABLES {
            return Err(LayoutError::NumTables { found: tables.len() });
        }
        let mut by_name: Vec<(usize, &TableSpec)> = tables.iter().enumerate().collect();
        by_name.sort_by(|a, b| a.1.name.cmp(&b.1.name));

        let mut layout = Self {
            header: Header { magic: MAGIC, version: VERSION, ..Header::zeroed() },
            tables: Vec::new(),
            sections: Vec::new(),
            layers: Vec::new(),
            model_tables: Vec::new(),
            names: Vec::new(),
            plans: Vec::new(),
        };
        // The position in the blob of each table given.
        let mut sorted: Vec<u32> = tables.iter().map(|_| 0).collect();
        for (to, &(position, _)) in (0u32..).zip(&by_name) {
            sorted.get_mut(position).into_iter().for_each(|place| *place = to);
        }
        for (position, spec) in by_name {
            if !(1..=MAX_NAME_LEN).contains(&spec.name.len()) {
                return Err(LayoutError::Name { table: spec.name.clone() });
            }
            if layout
                .tables
                .last()
                .is_some_and(|last| layout.name(last) == spec.name.as_bytes())
            {
                return Err(LayoutError::DuplicateName { table: spec.name.clone() });
            }
            layout.push_table(position, spec)?;
        }
        if let Some(model) = model {
            layout.push_model(model, &sorted)?;
        }

        let mut offset = align_up(layout.head_len()).ok_or(LayoutError::TooLarge)?;
        for (record, plan) in layout.sections.iter_mut().zip(&mut layout.plans) {
            record.offset = offset;
            plan.offset = offset;
            offset =
                offset.checked_add(record.len).and_then(align_up).ok_or(LayoutError::TooLarge)?;
        }
        layout.header.total_len = offset;
        layout.header.num_tables = layout.tables.len() as u32;
        layout.header.num_sections = layout.sections.len() as u32;
        layout.header.names_len = layout.names.len() as u32;
        layout.header.num_layers = layout.layers.len() as u32;
        layout.header.num_model_tables = layout.model_tables.len() as u32;
        Ok(layout)
    }

    /// Bytes of the whole blob.
    pub fn total_len(&self) -> u64 {
        self.header.total_len
    }

    /// The sections in file order.
    pub fn sections(&self) -> &[SectionPlan] {
        &self.plans
    }

    /// Sets the checksum of section `position`.
    pub fn set_checksum(&mut self, position: usize, section: SectionChecksum) {
        if let Some(record) = self.sections.get_mut(position) {
            record.checksum = section.finish();
        }
    }

    /// The head of the file, to be written at offset 0 once every section's checksum is known.
    pub fn head(&self) -> Vec<u8> {
        let mut directory: Vec<u8> = Vec::new();
        directory.extend_from_slice(bytemuck::cast_slice(&self.tables));
        directory.extend_from_slice(bytemuck::cast_slice(&self.sections));
        directory.extend_from_slice(bytemuck::cast_slice(&self.layers));
        directory.extend_from_slice(bytemuck::cast_slice(&self.model_tables));
        directory.extend_from_slice(&self.names);
        directory.resize(directory.len().next_multiple_of(super::ALIGNMENT), 0);
        let header =
            Header { checksum: directory_checksum(&self.header, &directory), ..self.header };
        let mut head = bytemuck::bytes_of(&header).to_vec();
        head.append(&mut directory);
        head
    }

    /// Builds the whole blob in memory; `fill` writes each section's `len` bytes.
    ///
    /// # Panics
    /// If the blob is larger than the address space.
    pub fn build(mut self, mut fill: impl FnMut(&SectionPlan, &mut [u8])) -> AlignedBuf {
        let mut buf = AlignedBuf::zeroed(
            usize::try_from(self.total_len()).expect("the blob fits the address space"),
        );
        for (position, plan) in self.plans.clone().iter().enumerate() {
            let (_, rest) = buf.split_at_mut(plan.offset as usize);
            let (section, _) = rest.split_at_mut(plan.len as usize);
            fill(plan, section);
            let mut checksum = SectionChecksum::new();
            checksum.update(section);
            self.set_checksum(position, checksum);
        }
        let head = self.head();
        let (start, _) = buf.split_at_mut(head.len());
        start.copy_from_slice(&head);
        buf
    }

    fn name(&self, record: &TableRecord) -> &[u8] {
        let (_, rest) = self.names.split_at(record.name_offset as usize);
        rest.split_at(record.name_len as usize).0
    }

    fn head_len(&self) -> u64 {
        let records = size_of_val(self.tables.as_slice()) as u64;
        let sections = size_of_val(self.sections.as_slice()) as u64;
        let layers = size_of_val(self.layers.as_slice()) as u64;
        let model_tables = size_of_val(self.model_tables.as_slice()) as u64;
        [
            size_of::<Header>() as u64,
            records,
            sections,
            layers,
            model_tables,
            self.names.len() as u64,
        ]
        .iter()
        .sum()
    }

    /// `sorted` has the position in the blob of each table given.
    fn push_model(&mut self, model: &ModelSpec, sorted: &[u32]) -> Result<(), LayoutError> {
        let num_layers = model.bottom.len().saturating_add(model.top.len());
        if num_layers > MAX_LAYERS {
            return Err(LayoutError::NumLayers { found: num_layers });
        }
        let num_tables = model.tables.len();
        if num_tables > MAX_MODEL_TABLES {
            return Err(LayoutError::NumModelTables { found: num_tables });
        }
        if model.top.is_empty() {
            return Err(LayoutError::NoTop);
        }
        // Without a bottom perceptron, the pairs of tables are the only inputs of the top.
        if model.bottom.is_empty() && num_tables < 2 {
            return Err(LayoutError::NoBottom { num_tables });
        }
        let dim_of = |place: u32| {
            self.tables
                .get(place as usize)
                .map_or(0, |record| record.embedding_dim as usize)
        };
        let first_dim = || {
            model
                .tables
                .first()
                .and_then(|of| sorted.get(of.table))
                .map_or(0, |&place| dim_of(place))
        };
        let embedding_dim = model.bottom.last().map_or_else(first_dim, |last| last.outputs);
        let has_bottom = !model.bottom.is_empty();
        let num_vectors = num_tables.saturating_add(usize::from(has_bottom));
        let expected = model.interaction.top_inputs(num_vectors, embedding_dim, has_bottom);
        for (position, &ModelTable { table, pooling }) in model.tables.iter().enumerate() {
            let missing =
                LayoutError::ModelTable { position, found: table, num_tables: sorted.len() };
            let &place = sorted.get(table).ok_or(missing)?;
            let found = dim_of(place);
            if found != embedding_dim {
                let name = self.tables.get(place as usize).map(|record| self.name(record));
                let table = String::from_utf8_lossy(name.unwrap_or_default()).into_owned();
                return Err(LayoutError::ModelDim { table, found, expected: embedding_dim });
            }
            self.model_tables.push(ModelTable::code(place, pooling));
        }
        self.header.interaction = model.interaction as u8;
        let mut inputs = None;
        let layers = model.bottom.iter().map(|layer| (Stack::Bottom, layer));
        let layers = layers.chain(model.top.iter().map(|layer| (Stack::Top, layer)));
        for (position, (stack, layer)) in layers.enumerate() {
            if position == model.bottom.len() {
                inputs = Some(expected);
            }
            let is_last = position.saturating_add(1) == num_layers;
            if layer.activation == Activation::Sigmoid && !is_last {
                return Err(LayoutError::Sigmoid { layer: position });
            }
            let outputs = is_last.then_some(1);
            for (field, found, expected) in
                [("inputs", layer.inputs, inputs), ("outputs", layer.outputs, outputs)]
            {
                if !(1..=MAX_LAYER_WIDTH).contains(&(found as u64)) {
                    return Err(LayoutError::LayerWidth { layer: position, field, found });
                }
                if let Some(expected) = expected.filter(|&expected| expected != found) {
                    return Err(LayoutError::LayerFit { layer: position, field, found, expected });
                }
            }
            self.push_layer(position, stack, layer, sorted.len())?;
            inputs = Some(layer.outputs);
        }
        Ok(())
    }

    fn push_layer(
        &mut self,
        position: usize,
        stack: Stack,
        layer: &LayerSpec,
        owner: usize,
    ) -> Result<(), LayoutError> {
        let &LayerSpec { inputs, outputs, activation, dtype } = layer;
        let first_section = self.sections.len() as u32;
        if !dtype.suits_cores() {
            return Err(LayoutError::LayerDtype { layer: position, found: dtype });
        }
        let weights = Role::LayerWeights(position);
        self.push_section(owner, weights, dtype, inputs as u64, dtype.bytes_of(outputs))?;
        if dtype == Dtype::I8 {
            self.push_section(owner, Role::LayerScales(position), Dtype::F32, outputs as u64, 4)?;
        }
        self.push_section(owner, Role::LayerBias(position), Dtype::F32, outputs as u64, 4)?;
        self.layers.push(LayerRecord {
            inputs: inputs as u32,
            outputs: outputs as u32,
            first_section,
            num_sections: (self.sections.len() as u32).saturating_sub(first_section),
            stack: stack as u8,
            activation: activation as u8,
            reserved: [0; 14],
        });
        Ok(())
    }

    fn push_table(&mut self, position: usize, spec: &TableSpec) -> Result<(), LayoutError> {
        let table = || spec.name.clone();
        let wrong_shape = |error| LayoutError::Shape { table: table(), error };
        let mut record = TableRecord {
            name_offset: self.names.len() as u32,
            name_len: spec.name.len() as u32,
            first_section: self.sections.len() as u32,
            ..TableRecord::zeroed()
        };
        let (num_rows, embedding_dim) = match spec.weights {
            WeightsSpec::Dense { num_embeddings, embedding_dim, dtype } => {
                check_num_embeddings(num_embeddings).map_err(wrong_shape)?;
                check_embedding_dim(embedding_dim as u64).map_err(wrong_shape)?;
                record.kind = kind::DENSE;
                self.push_section(
                    position,
                    Role::Rows,
                    dtype,
                    num_embeddings,
                    dtype.row_len(embedding_dim),
                )?;
                (num_embeddings, embedding_dim)
            }
            WeightsSpec::Projected { projection, .. } if !projection.suits_projections() => {
                return Err(LayoutError::Dtype { table: table(), found: projection });
            }
            WeightsSpec::Projected { num_embeddings, embedding_dim, rank, dtype, projection } => {
                check_num_embeddings(num_embeddings).map_err(wrong_shape)?;
                check_embedding_dim(embedding_dim as u64).map_err(wrong_shape)?;
                check_embedding_dim(rank as u64).map_err(wrong_shape)?;
                record.kind = kind::PROJECTED;
                copy_prefix(&mut record.column_factors, &[rank as u32]);
                self.push_section(
                    position,
                    Role::Rows,
                    dtype,
                    num_embeddings,
                    dtype.row_len(rank),
                )?;
                let row_len = projection.bytes_of(embedding_dim);
                self.push_section(position, Role::Projection, projection, rank as u64, row_len)?;
                (num_embeddings, embedding_dim)
            }
            WeightsSpec::QuotientRemainder {
                num_embeddings,
                num_remainders,
                columns,
                combine,
                dtype,
            } => {
                check_num_embeddings(num_embeddings).map_err(wrong_shape)?;
                let (quotients, embedding_dim) =
                    combine.check(num_embeddings, num_remainders, columns).map_err(wrong_shape)?;
                let [first, second] = columns;
                record.kind = kind::QUOTIENT_REMAINDER;
                record.combine = combine as u8;
                copy_prefix(&mut record.row_factors, &[quotients, num_remainders]);
                copy_prefix(&mut record.column_factors, &[first as u32, second as u32]);
                self.push_section(
                    position,
                    Role::Rows,
                    dtype,
                    quotients.into(),
                    dtype.row_len(first),
                )?;
                let row_len = dtype.row_len(second);
                self.push_section(
                    position,
                    Role::RemainderRows,
                    dtype,
                    num_remainders.into(),
                    row_len,
                )?;
                (num_embeddings, embedding_dim)
            }
            WeightsSpec::Codebook {
                num_embeddings,
                embedding_dim,
                num_books,
                book_len,
                inner_dim,
                combine,
                codes,
                dtype,
                projection,
            } => {
                check_num_embeddings(num_embeddings).map_err(wrong_shape)?;
                check_embedding_dim(embedding_dim as u64).map_err(wrong_shape)?;
                codebook::check(combine, num_books, book_len, inner_dim).map_err(wrong_shape)?;
                if projection.is_none() && inner_dim != embedding_dim {
                    let error = ShapeError::Codebook { num_books, book_len, inner_dim };
                    return Err(wrong_shape(error));
                }
                if combine == Combine::Mult {
                    return Err(LayoutError::Combine { table: table() });
                }
                let books = Some(dtype).filter(|dtype| !dtype.suits_cores());
                let projections = projection.filter(|dtype| !dtype.suits_projections());
                if let Some(found) = books.or(projections) {
                    return Err(LayoutError::Dtype { table: table(), found });
                }
                record.kind = kind::CODEBOOK;
                record.combine = combine as u8;
                copy_prefix(&mut record.row_factors, &[book_len as u32]);
                copy_prefix(&mut record.column_factors, &[num_books as u32, inner_dim as u32]);
                let row_len = codes.row_len(num_books);
                let code = codes as u8;
                self.push_integers(position, Role::Codes, code, num_embeddings, row_len)?;
                let entries = (num_books as u64).saturating_mul(book_len as u64);
                let len = dtype.bytes_of(entry_len(combine, num_books, inner_dim));
                self.push_section(position, Role::Books, dtype, entries, len)?;
                if dtype == Dtype::I8 {
                    let scales = Role::Scales(0);
                    self.push_section(position, scales, Dtype::F32, num_books as u64, 4)?;
                }
                if let Some(dtype) = projection {
                    let row_len = dtype.bytes_of(embedding_dim);
                    self.push_section(
                        position,
                        Role::Projection,
                        dtype,
                        inner_dim as u64,
                        row_len,
                    )?;
                }
                (num_embeddings, embedding_dim)
            }
            WeightsSpec::Tt { dtype, .. } if !dtype.suits_cores() => {
                return Err(LayoutError::Dtype { table: table(), found: dtype });
            }
            WeightsSpec::Tt { shape, dtype } => {
                record.kind = kind::TT;
                record.num_cores = shape.num_cores() as u8;
                record.digit_order = shape.digit_order() as u8;
                record.column_order = shape.column_order() as u8;
                copy_prefix(&mut record.row_factors, shape.row_factors());
                copy_prefix(&mut record.column_factors, shape.column_factors());
                copy_prefix(&mut record.inner_ranks, shape.inner_ranks());
                for (k, &p) in shape.row_factors().iter().enumerate() {
                    let slice_len = dtype.bytes_of(shape.slice_len(k));
                    self.push_section(position, Role::Core(k), dtype, p.into(), slice_len)?;
                    if dtype == Dtype::I8 {
                        self.push_section(position, Role::Scales(k), Dtype::F32, p.into(), 4)?;
                    }
                }
                (shape.num_embeddings(), shape.embedding_dim())
            }
        };
        if spec.num_prefixes > 0 {
            let found = spec.num_prefixes;
            let wrong =
                |num_prefixes| LayoutError::NumPrefixes { table: table(), found, num_prefixes };
            let WeightsSpec::Tt { shape, .. } = spec.weights else { return Err(wrong(0)) };
            if found > shape.num_prefixes() {
                return Err(wrong(shape.num_prefixes()));
            }
            let product_len = Dtype::F32.bytes_of(shape.prefix_len());
            let ids = [Role::PrefixIds, Role::PrefixIndex];
            self.push_ids(position, ids, spec.num_prefixes, shape.num_prefixes(), product_len)?;
            self.push_section(
                position,
                Role::PrefixProducts,
                Dtype::F32,
                spec.num_prefixes,
                product_len,
            )?;
        }
        let (index_map, num_embeddings) = match spec.index_map {
            IndexMapSpec::Identity => (index_map::IDENTITY, num_rows),
            IndexMapSpec::Modulo { num_embeddings } => (index_map::MODULO, num_embeddings),
            IndexMapSpec::Remapped { num_embeddings, .. } => (index_map::REMAPPED, num_embeddings),
        };
        record.index_map = index_map;
        if index_map != index_map::IDENTITY {
            check_num_embeddings(num_embeddings).map_err(wrong_shape)?;
            if num_rows > num_embeddings {
                let table = table();
                return Err(LayoutError::NumRows { table, found: num_rows, num_embeddings });
            }
            record.num_rows = num_rows;
        }
        if let IndexMapSpec::Remapped { dtype, .. } = spec.index_map {
            // A number that does not fit would be another row.
            if dtype.bytes() < RowNumberDtype::for_rows(num_rows).bytes() {
                return Err(LayoutError::RowNumbers { table: table(), found: dtype, num_rows });
            }
            let (role, len) = (Role::RemappedRows, dtype.bytes());
            self.push_integers(position, role, dtype as u8, num_embeddings, len)?;
        }
        if let Some(OverridesSpec { count, dtype }) = spec.overrides {
            if count == 0 || count > num_embeddings {
                let table = table();
                return Err(LayoutError::NumOverrides { table, found: count, num_embeddings });
            }
            let row_len = dtype.row_len(embedding_dim);
            self.push_ids(
                position,
                [Role::OverrideIds, Role::OverrideIndex],
                count,
                num_embeddings,
                row_len,
            )?;
            self.push_section(position, Role::OverrideRows, dtype, count, row_len)?;
        }
        record.num_embeddings = num_embeddings;
        record.embedding_dim = embedding_dim as u32;
        record.num_sections = (self.sections.len() as u32).saturating_sub(record.first_section);
        self.names.extend_from_slice(spec.name.as_bytes());
        self.tables.push(record);
        Ok(())
    }

    /// A section of `count` ids below `limit`, each of an item of `len` bytes, and a section of
    /// their index if [`id_index_len`] says so.
    fn push_ids(
        &mut self,
        table: usize,
        [ids, index]: [Role; 2],
        count: u64,
        limit: u64,
        len: usize,
    ) -> Result<(), LayoutError> {
        self.push_integers(table, ids, DTYPE_U64, count, 8)?;
        match id_index_len(count, limit, len) {
            0 => Ok(()),
            bytes => self.push_integers(table, index, DTYPE_U64, bytes, 1),
        }
    }

    /// A section of `count` runs of `len` bytes.
    fn push_section(
        &mut self,
        table: usize,
        role: Role,
        dtype: Dtype,
        count: u64,
        len: usize,
    ) -> Result<(), LayoutError> {
        self.push(table, role, (Some(dtype), dtype as u8), count, len)
    }

    /// A section of `count` runs of `len` bytes that hold integers, whose type has this code.
    fn push_integers(
        &mut self,
        table: usize,
        role: Role,
        code: u8,
        count: u64,
        len: usize,
    ) -> Result<(), LayoutError> {
        self.push(table, role, (None, code), count, len)
    }

    fn push(
        &mut self,
        table: usize,
        role: Role,
        (dtype, code): (Option<Dtype>, u8),
        count: u64,
        len: usize,
    ) -> Result<(), LayoutError> {
        let len = count.checked_mul(len as u64).ok_or(LayoutError::TooLarge)?;
        let (role_code, core) = role.codes();
        self.sections.push(SectionRecord {
            len,
            role: role_code,
            core,
            dtype: code,
            ..SectionRecord::zeroed()
        });
        self.plans.push(SectionPlan { table, role, dtype, offset: 0, len });
        Ok(())
    }
}

/// The checksum of a section that is being streamed: CRC-32C of its bytes and their padding.
pub struct SectionChecksum {
    checksum: Checksum,
    len: u64,
}

impl Default for SectionChecksum {
    fn default() -> Self {
        Self::new()
    }
}

impl SectionChecksum {
    /// The checksum of no bytes.
    pub fn new() -> Self {
        Self { checksum: Checksum::new(), len: 0 }
    }

    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.checksum.update(bytes);
        self.len = self.len.saturating_add(bytes.len() as u64);
    }

    fn finish(mut self) -> u32 {
        let padding = align_up(self.len).unwrap_or(self.len).saturating_sub(self.len);
        self.checksum.update([0; super::ALIGNMENT].split_at(padding as usize).0);
        self.checksum.finish()
    }
}

fn copy_prefix(to: &mut [u32], from: &[u32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
}
