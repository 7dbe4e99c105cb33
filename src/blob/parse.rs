//! The parser: hostile bytes in, a [`Blob`] or the reason why not.

#![forbid(unsafe_code)]

use super::{
    ALIGNMENT, Blob, Checksum, Combine, Core, IndexMap, MAX_LAYERS, MAX_MODEL_TABLES, MAX_NAME_LEN,
    MAX_TABLES, Overrides, Prefixes, Projected, QuotientRemainder, Role, Rows, TableData, TtCores,
    VERSION, Weights, align_up, directory_checksum,
    id_index::{self, Line},
    record::{
        DTYPE_U32, DTYPE_U64, Header, INTERACTION_DOT, LayerRecord, MAGIC, SectionRecord,
        TableRecord, index_map, kind,
    },
};
use crate::{
    dtype::{Dtype, Elements},
    error::{BlobError, ShapeError},
    shape::{DigitOrder, MAX_CORES, TtShape, check_embedding_dim, check_num_embeddings},
};

/// Sections of one table: cores with scales and prefixes, or fewer; an index map; and overrides.
/// Ids may have an index.
const MAX_SECTIONS_PER_TABLE: usize = 2 * MAX_CORES + 7;
/// Sections of one layer: weights, scales and a bias.
const MAX_SECTIONS_PER_LAYER: usize = 3;

impl<'a> Blob<'a> {
    /// Checks the header and the directory of `bytes`, which must start on a multiple of
    /// [`ALIGNMENT`] and be the blob and nothing else.
    ///
    /// Reads only header and directory. A payload that was changed goes unnoticed here:
    /// [`verify_payload`](Self::verify_payload) sees it.
    ///
    /// # Errors
    /// A [`BlobError`] that says which field of which record was wrong.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BlobError> {
        match bytes.as_ptr().addr() % ALIGNMENT {
            0 => {}
            excess => return Err(BlobError::Misaligned { excess }),
        }
        let len = bytes.len() as u64;
        let truncated = |needed: u64| BlobError::Truncated { len, needed };
        let (header, rest) = bytes
            .split_at_checked(size_of::<Header>())
            .ok_or(truncated(size_of::<Header>() as u64))?;
        let header: &Header = bytemuck::try_from_bytes(header).map_err(|_| BlobError::Magic)?;
        if header.magic != MAGIC {
            return Err(BlobError::Magic);
        }
        if header.version != VERSION {
            return Err(BlobError::Version { found: header.version });
        }
        if header.flags != 0 {
            return Err(BlobError::Flags { found: header.flags });
        }
        if header.reserved != [0; 15] {
            return Err(BlobError::Reserved { what: "header", position: 0 });
        }
        if header.total_len != len {
            return Err(BlobError::TotalLength { declared: header.total_len, actual: len });
        }

        let num_tables = check_count("tables", header.num_tables, MAX_TABLES)?;
        let num_layers = check_count("layers", header.num_layers, MAX_LAYERS)?;
        let num_model_tables =
            check_count("tables of the model", header.num_model_tables, MAX_MODEL_TABLES)?;
        let max_sections = num_tables
            .saturating_mul(MAX_SECTIONS_PER_TABLE)
            .saturating_add(num_layers.saturating_mul(MAX_SECTIONS_PER_LAYER));
        let num_sections = check_count("sections", header.num_sections, max_sections)?;
        let names_len =
            check_count("name bytes", header.names_len, num_tables.saturating_mul(MAX_NAME_LEN))?;
        let tables_len = num_tables.saturating_mul(size_of::<TableRecord>());
        let sections_len = num_sections.saturating_mul(size_of::<SectionRecord>());
        let layers_len = num_layers.saturating_mul(size_of::<LayerRecord>());
        let model_tables_len = num_model_tables.saturating_mul(size_of::<u32>());
        let records_len = tables_len.saturating_add(sections_len).saturating_add(layers_len);
        let directory_len = records_len.saturating_add(model_tables_len).saturating_add(names_len);
        let directory_len = directory_len.checked_next_multiple_of(ALIGNMENT).unwrap_or(usize::MAX);
        let needed = (size_of::<Header>() as u64).saturating_add(directory_len as u64);
        let directory = rest.get(..directory_len).ok_or(truncated(needed))?;
        let computed = directory_checksum(header, directory);
        if computed != header.checksum {
            return Err(BlobError::DirectoryChecksum { stored: header.checksum, computed });
        }
        match (num_layers, header.interaction, num_model_tables) {
            (0, 0, 0) | (1.., INTERACTION_DOT, _) => {}
            (_, found, _) => return Err(BlobError::Interaction { found }),
        }

        let (tables, after) = directory.split_at_checked(tables_len).ok_or(truncated(needed))?;
        let (sections, after) = after.split_at_checked(sections_len).ok_or(truncated(needed))?;
        let (layers, after) = after.split_at_checked(layers_len).ok_or(truncated(needed))?;
        let (model_tables, after) =
            after.split_at_checked(model_tables_len).ok_or(truncated(needed))?;
        let (names, padding) = after.split_at_checked(names_len).ok_or(truncated(needed))?;
        if padding.iter().any(|&byte| byte != 0) {
            return Err(BlobError::Reserved { what: "names", position: 0 });
        }
        let blob = Self {
            bytes,
            tables: bytemuck::try_cast_slice(tables).map_err(|_| truncated(needed))?,
            sections: bytemuck::try_cast_slice(sections).map_err(|_| truncated(needed))?,
            layers: bytemuck::try_cast_slice(layers).map_err(|_| truncated(needed))?,
            model_tables: bytemuck::try_cast_slice(model_tables).map_err(|_| truncated(needed))?,
            names,
        };
        blob.check_names()?;
        blob.check_sections(needed)?;
        for table in 0..num_tables {
            blob.read_table(table)?;
        }
        blob.check_model()?;
        Ok(blob)
    }

    /// Compares every section with its checksum, and checks what parsing leaves alone: that scales
    /// are positive and finite, offsets finite, and the ids of prefixes and overrides ascending
    /// and in range. Reads the whole blob.
    ///
    /// # Errors
    /// [`BlobError::PayloadChecksum`], [`BlobError::Scale`], [`BlobError::PrefixIds`] or
    /// [`BlobError::OverrideIds`] for the first table that fails; [`BlobError::LayerChecksum`]
    /// or [`BlobError::LayerScale`] for the first layer.
    pub fn verify_payload(&self) -> Result<(), BlobError> {
        (0..self.num_tables()).try_for_each(|table| self.verify_table(table))?;
        (0..self.num_layers()).try_for_each(|layer| self.verify_layer(layer))
    }

    /// [`verify_payload`](Self::verify_payload) for the layer at one position.
    ///
    /// # Errors
    /// [`BlobError::LayerChecksum`], [`BlobError::LayerScale`]; [`BlobError::NoModel`] past the
    /// last.
    pub fn verify_layer(&self, layer: usize) -> Result<(), BlobError> {
        let record = self.layers.get(layer).ok_or(BlobError::NoModel)?;
        let owned = self.sections_of_layer(record).ok_or(BlobError::LayerSections { layer })?;
        for (section, record) in (record.first_section as usize..).zip(owned) {
            if !self.matches_checksum(record) {
                return Err(BlobError::LayerChecksum { layer, section });
            }
        }
        match first_bad_scale(self.read_layer(layer)?.scales) {
            Some(position) => Err(BlobError::LayerScale { layer, position }),
            None => Ok(()),
        }
    }

    /// [`verify_payload`](Self::verify_payload) for the table at one position.
    ///
    /// # Errors
    /// The same; [`BlobError::NoSuchTable`] past the last.
    pub fn verify_table(&self, table: usize) -> Result<(), BlobError> {
        let record = self.tables.get(table).ok_or(BlobError::NoSuchTable)?;
        let owned = self.owned_sections(record).ok_or(BlobError::SectionOwner { table })?;
        let numbered = || (record.first_section as usize..).zip(owned);
        for (section, record) in numbered() {
            if !self.matches_checksum(record) {
                return Err(BlobError::PayloadChecksum { table, section });
            }
        }

        let data = self.read_table(table)?;
        let section_of = |role: Role| {
            numbered()
                .find(|(_, s)| (s.role, s.core) == role.codes())
                .map_or(0, |(section, _)| section)
        };
        let check_rows = |rows: &Rows<'_>, role: Role| match rows.first_bad_header() {
            Some(position) => Err(BlobError::Scale { table, section: section_of(role), position }),
            None => Ok(()),
        };
        match &data.weights {
            Weights::Dense(rows) | Weights::Projected(Projected { rows, .. }) => {
                check_rows(rows, Role::Rows)?
            }
            Weights::QuotientRemainder(qr) => {
                check_rows(&qr.quotients, Role::Rows)?;
                check_rows(&qr.remainders, Role::RemainderRows)?;
            }
            Weights::Tt(tt) => {
                for (k, core) in tt.cores.iter().enumerate() {
                    if let Some(position) = first_bad_scale(core.scales) {
                        let section = section_of(Role::Scales(k));
                        return Err(BlobError::Scale { table, section, position: position as u64 });
                    }
                }
                if let Some(prefixes) = &tt.prefixes
                    && let Some(position) =
                        first_bad_id(prefixes.ids, prefixes.index, tt.shape.num_prefixes())
                {
                    return Err(BlobError::PrefixIds { table, position });
                }
            }
        }
        if let IndexMap::Remapped(rows) = data.index_map
            && let Some(position) = rows.iter().position(|&row| u64::from(row) >= data.num_rows)
        {
            return Err(BlobError::RemappedRow { table, position });
        }
        if let Some(overrides) = &data.overrides {
            check_rows(&overrides.rows, Role::OverrideRows)?;
            if let Some(position) =
                first_bad_id(overrides.ids, overrides.index, data.num_embeddings)
            {
                return Err(BlobError::OverrideIds { table, position });
            }
        }
        Ok(())
    }

    pub(super) fn name_bytes(&self, record: &TableRecord) -> &'a [u8] {
        let start = record.name_offset as usize;
        let range = start..start.saturating_add(record.name_len as usize);
        self.names.get(range).unwrap_or_default()
    }

    pub(super) fn owned_sections(&self, record: &TableRecord) -> Option<&'a [SectionRecord]> {
        self.section_range(record.first_section, record.num_sections)
    }

    pub(super) fn section_range(&self, first: u32, count: u32) -> Option<&'a [SectionRecord]> {
        let first = first as usize;
        self.sections.get(first..first.checked_add(count as usize)?)
    }

    fn matches_checksum(&self, record: &SectionRecord) -> bool {
        let padded = align_up(record.len).map(|len| SectionRecord { len, ..*record });
        padded.and_then(|padded| self.section_bytes(&padded)).is_some_and(|bytes| {
            let mut checksum = Checksum::new();
            checksum.update(bytes);
            checksum.finish() == record.checksum
        })
    }

    fn section_bytes(&self, record: &SectionRecord) -> Option<&'a [u8]> {
        let start = usize::try_from(record.offset).ok()?;
        let len = usize::try_from(record.len).ok()?;
        self.bytes.get(start..start.checked_add(len)?)
    }

    /// Names lie end to end in `names`, and ascend.
    fn check_names(&self) -> Result<(), BlobError> {
        let mut end = 0usize;
        let mut previous: &[u8] = &[];
        for (table, record) in self.tables.iter().enumerate() {
            let name = self.name_bytes(record);
            let fits =
                (1..=MAX_NAME_LEN).contains(&name.len()) && name.len() == record.name_len as usize;
            if !fits || record.name_offset as usize != end || core::str::from_utf8(name).is_err() {
                return Err(BlobError::Name { table });
            }
            if previous >= name {
                return Err(BlobError::NameOrder { table });
            }
            previous = name;
            end = end.saturating_add(name.len());
        }
        if end == self.names.len() {
            Ok(())
        } else {
            Err(BlobError::Name { table: self.tables.len() })
        }
    }

    /// Sections lie end to end, each rounded up to the alignment, from the directory's end to the
    /// blob's, and belong to the tables, and then the layers, in turn.
    fn check_sections(&self, directory_end: u64) -> Result<(), BlobError> {
        let mut expected = directory_end;
        for (section, record) in self.sections.iter().enumerate() {
            if record.reserved != [0; 8] {
                return Err(BlobError::Reserved { what: "section", position: section });
            }
            if record.offset != expected {
                return Err(BlobError::SectionOffset { section, found: record.offset, expected });
            }
            let end = expected.checked_add(record.len).and_then(align_up);
            expected = end
                .filter(|&end| record.len > 0 && end <= self.bytes.len() as u64)
                .ok_or(BlobError::SectionLength { section, found: record.len, expected: 0 })?;
        }
        if expected != self.bytes.len() as u64 {
            return Err(BlobError::TotalLength {
                declared: self.bytes.len() as u64,
                actual: expected,
            });
        }
        let mut next = 0usize;
        for (table, record) in self.tables.iter().enumerate() {
            if record.first_section as usize != next || self.owned_sections(record).is_none() {
                return Err(BlobError::SectionOwner { table });
            }
            next = next.saturating_add(record.num_sections as usize);
        }
        for (layer, record) in self.layers.iter().enumerate() {
            if record.first_section as usize != next || self.sections_of_layer(record).is_none() {
                return Err(BlobError::LayerSections { layer });
            }
            next = next.saturating_add(record.num_sections as usize);
        }
        if next == self.sections.len() {
            Ok(())
        } else {
            Err(BlobError::SectionOwner { table: self.tables.len() })
        }
    }

    /// The table at `table`, with every number of its record and sections checked against its
    /// shape.
    pub(super) fn read_table(&self, table: usize) -> Result<TableData<'a>, BlobError> {
        let record = self.tables.get(table).ok_or(BlobError::NoSuchTable)?;
        let unknown = |field, found: u32| BlobError::TableCode { table, field, found };
        if !(kind::DENSE..=kind::QUOTIENT_REMAINDER).contains(&record.kind) {
            return Err(unknown("kind", record.kind.into()));
        }
        if record.index_map > index_map::REMAPPED {
            return Err(unknown("index map", record.index_map.into()));
        }
        if record.layout != 0 {
            return Err(unknown("layout", record.layout.into()));
        }
        if record.reserved_tail != [0; 16] {
            return Err(BlobError::Reserved { what: "table", position: table });
        }
        let wrong_shape = |error: ShapeError| BlobError::Shape { table, error };
        let owner = BlobError::SectionOwner { table };
        let mut sections = SectionCursor {
            blob: self,
            owner,
            section: record.first_section as usize,
            rest: self.owned_sections(record).ok_or(owner)?,
        };

        let num_embeddings = record.num_embeddings;
        let embedding_dim = record.embedding_dim as usize;
        check_num_embeddings(num_embeddings).map_err(wrong_shape)?;
        check_embedding_dim(record.embedding_dim.into()).map_err(wrong_shape)?;
        let num_rows = match (record.index_map, record.num_rows) {
            (index_map::IDENTITY, 0) => num_embeddings,
            (index_map::MODULO | index_map::REMAPPED, found)
                if (1..=num_embeddings).contains(&found) =>
            {
                found
            }
            (_, found) => return Err(BlobError::NumRows { table, found, num_embeddings }),
        };
        if record.kind != kind::TT
            && (record.num_cores, record.digit_order, record.column_order, record.inner_ranks)
                != (0, 0, 0, [0; 5])
            || record.kind != kind::QUOTIENT_REMAINDER && record.combine != 0
        {
            return Err(BlobError::Reserved { what: "table", position: table });
        }
        let shape_fields = (record.row_factors, record.column_factors);
        let weights = match record.kind {
            kind::DENSE => {
                if shape_fields != ([0; 6], [0; 6]) {
                    return Err(BlobError::Reserved { what: "table", position: table });
                }
                Weights::Dense(sections.rows(Role::Rows, num_rows, embedding_dim)?)
            }
            kind::PROJECTED => {
                let ([0, 0, 0, 0, 0, 0], [rank, 0, 0, 0, 0, 0]) = shape_fields else {
                    return Err(BlobError::Reserved { what: "table", position: table });
                };
                check_embedding_dim(rank.into()).map_err(wrong_shape)?;
                let rows = sections.rows(Role::Rows, num_rows, rank as usize)?;
                let projection = sections.elements(Role::Projection, rank.into(), embedding_dim)?;
                Weights::Projected(Projected { rows, projection })
            }
            kind::QUOTIENT_REMAINDER => {
                let ([quotients, num_remainders, 0, 0, 0, 0], [first, second, 0, 0, 0, 0]) =
                    shape_fields
                else {
                    return Err(BlobError::Reserved { what: "table", position: table });
                };
                let combine = Combine::from_code(record.combine)
                    .ok_or(unknown("combine", record.combine.into()))?;
                let columns = [first as usize, second as usize];
                let expected =
                    combine.check(num_rows, num_remainders, columns).map_err(wrong_shape)?;
                if (quotients, embedding_dim) != expected {
                    return Err(wrong_shape(ShapeError::QuotientRemainder {
                        rows: [quotients, num_remainders],
                        columns,
                    }));
                }
                let quotients = sections.rows(Role::Rows, quotients.into(), columns[0])?;
                let remainders =
                    sections.rows(Role::RemainderRows, num_remainders.into(), columns[1])?;
                Weights::QuotientRemainder(QuotientRemainder {
                    quotients,
                    remainders,
                    num_remainders,
                    combine,
                })
            }
            _ => {
                let shape = read_shape(table, num_rows, record, unknown, wrong_shape)?;
                if shape.embedding_dim() != embedding_dim {
                    return Err(wrong_shape(ShapeError::EmbeddingDim {
                        found: record.embedding_dim.into(),
                    }));
                }
                Weights::Tt(sections.cores(shape)?)
            }
        };
        let index_map = match record.index_map {
            index_map::IDENTITY => IndexMap::Identity,
            index_map::MODULO => IndexMap::Modulo,
            _ => IndexMap::Remapped(
                sections.numbers(Role::RemappedRows, DTYPE_U32, |_| num_embeddings)?,
            ),
        };
        let overrides = sections.overrides(num_embeddings, embedding_dim)?;
        if !sections.rest.is_empty() {
            return Err(owner);
        }
        let name =
            core::str::from_utf8(self.name_bytes(record)).map_err(|_| BlobError::Name { table })?;
        Ok(TableData {
            name,
            num_embeddings,
            embedding_dim,
            index_map,
            num_rows,
            weights,
            overrides,
        })
    }
}

/// The first of these ids that is not above the one before it and below `limit`, or that the index
/// does not have there.
fn first_bad_id(ids: &[u64], index: &[Line], limit: u64) -> Option<usize> {
    let mut floor = 0;
    ids.iter().enumerate().position(|(position, &id)| {
        let bad = id < floor
            || id >= limit
            || !index.is_empty() && id_index::position(index, id) != Some(position);
        floor = id.saturating_add(1);
        bad
    })
}

/// The first scale that is not finite and positive.
fn first_bad_scale(scales: &[f32]) -> Option<usize> {
    scales.iter().position(|scale| !(scale.is_finite() && *scale > 0.0))
}

fn check_count(what: &'static str, found: u32, limit: usize) -> Result<usize, BlobError> {
    let found = found as usize;
    if found <= limit {
        Ok(found)
    } else {
        Err(BlobError::Count { what, found: found as u64, limit: limit as u64 })
    }
}

/// The shape in a tensor-train table's record; list entries past d cores must be zero.
fn read_shape(
    table: usize,
    num_rows: u64,
    record: &TableRecord,
    unknown: impl Fn(&'static str, u32) -> BlobError,
    wrong_shape: impl Fn(ShapeError) -> BlobError,
) -> Result<TtShape, BlobError> {
    let order = |field, code| match code {
        0 => Ok(DigitOrder::MostSignificantFirst),
        1 => Ok(DigitOrder::LeastSignificantFirst),
        found => Err(unknown(field, u32::from(found))),
    };
    let digit_order = order("digit order", record.digit_order)?;
    let column_order = order("column order", record.column_order)?;
    let d = usize::from(record.num_cores);
    let wrong_count = || wrong_shape(ShapeError::CoreCount { found: d });
    let (row_factors, row_rest) = record.row_factors.split_at_checked(d).ok_or_else(wrong_count)?;
    let (column_factors, column_rest) =
        record.column_factors.split_at_checked(d).ok_or_else(wrong_count)?;
    let inner = d.checked_sub(1).ok_or_else(wrong_count)?;
    let (ranks, rank_rest) = record.inner_ranks.split_at_checked(inner).ok_or_else(wrong_count)?;
    if row_rest.iter().chain(column_rest).chain(rank_rest).any(|&n| n != 0) {
        return Err(BlobError::Reserved { what: "table", position: table });
    }
    let shape = TtShape::new(num_rows, row_factors, column_factors, ranks).map_err(wrong_shape)?;
    Ok(shape.with_digit_order(digit_order).with_column_order(column_order))
}

/// Takes the sections of a table or layer one by one, each with the role and length that it needs
/// next.
pub(super) struct SectionCursor<'b, 'a> {
    pub(super) blob: &'b Blob<'a>,
    /// What there is to say where they end too soon.
    pub(super) owner: BlobError,
    pub(super) section: usize,
    pub(super) rest: &'a [SectionRecord],
}

impl<'a> SectionCursor<'_, 'a> {
    /// Whether the next section has this role.
    fn next_is(&self, role: Role) -> bool {
        self.rest.first().is_some_and(|next| (next.role, next.core) == role.codes())
    }

    /// The next section, which must have this role.
    fn take(&mut self, role: Role) -> Result<(usize, &'a SectionRecord), BlobError> {
        let (record, rest) = self.rest.split_first().ok_or(self.owner)?;
        let section = self.section;
        if (record.role, record.core) != role.codes() {
            return Err(BlobError::SectionRole { section, found: record.role.into() });
        }
        self.rest = rest;
        self.section = section.saturating_add(1);
        Ok((section, record))
    }

    /// The bytes of a section that must hold `count` runs of `len` bytes.
    fn bytes(
        &self,
        section: usize,
        record: &SectionRecord,
        count: u64,
        len: usize,
    ) -> Result<&'a [u8], BlobError> {
        let expected = count.saturating_mul(len as u64);
        if record.len != expected {
            return Err(BlobError::SectionLength { section, found: record.len, expected });
        }
        self.blob.section_bytes(record).ok_or(BlobError::SectionLength {
            section,
            found: record.len,
            expected,
        })
    }

    /// `count` runs of `len` stored elements, or as many dense rows if the role is one of rows.
    pub(super) fn elements(
        &mut self,
        role: Role,
        count: u64,
        len: usize,
    ) -> Result<Elements<'a>, BlobError> {
        let (section, record) = self.take(role)?;
        let wrong_dtype = BlobError::SectionDtype { section, found: record.dtype.into() };
        let dtype = Dtype::from_code(record.dtype).ok_or(wrong_dtype)?;
        let suits = match role {
            Role::Core(_) | Role::LayerWeights(_) => dtype.suits_cores(),
            Role::Projection => dtype.suits_projections(),
            _ => true,
        };
        if !suits {
            return Err(wrong_dtype);
        }
        let len = match role {
            Role::Rows | Role::RemainderRows | Role::OverrideRows => dtype.row_len(len),
            _ => dtype.bytes_of(len),
        };
        let bytes = self.bytes(section, record, count, len)?;
        Elements::from_bytes(bytes, dtype).ok_or(wrong_dtype)
    }

    /// `count` f32.
    pub(super) fn floats(&mut self, role: Role, count: u64) -> Result<&'a [f32], BlobError> {
        let section = self.section;
        let floats = self.elements(role, count, 1)?;
        let found = floats.dtype() as u32;
        floats.as_f32().ok_or(BlobError::SectionDtype { section, found })
    }

    fn rows(
        &mut self,
        role: Role,
        count: u64,
        embedding_dim: usize,
    ) -> Result<Rows<'a>, BlobError> {
        let elements = self.elements(role, count, embedding_dim)?;
        Ok(Rows { elements, embedding_dim })
    }

    fn cores(&mut self, shape: TtShape) -> Result<TtCores<'a>, BlobError> {
        let mut cores = [Core { slices: Elements::from_f32(&[]), scales: &[] }; MAX_CORES];
        for (k, (core, &p)) in cores.iter_mut().zip(shape.row_factors()).enumerate() {
            core.slices = self.elements(Role::Core(k), p.into(), shape.slice_len(k))?;
            if core.slices.dtype() == Dtype::I8 {
                core.scales = self.floats(Role::Scales(k), p.into())?;
            }
        }
        let prefixes = self.prefixes(&shape)?;
        Ok(TtCores { shape, cores, prefixes })
    }

    /// Products of prefixes, if they come next.
    fn prefixes(&mut self, shape: &TtShape) -> Result<Option<Prefixes<'a>>, BlobError> {
        if !self.next_is(Role::PrefixIds) {
            return Ok(None);
        }
        let ids = self.ids(Role::PrefixIds, shape.num_prefixes())?;
        let index = self.id_index(Role::PrefixIndex, shape.num_prefixes())?;
        let section = self.section;
        let products = self.elements(Role::PrefixProducts, ids.len() as u64, shape.prefix_len())?;
        let found = products.dtype() as u32;
        let products = products.as_f32().ok_or(BlobError::SectionDtype { section, found })?;
        Ok(Some(Prefixes { ids, products, index }))
    }

    /// Overrides, if the table has sections left.
    fn overrides(
        &mut self,
        num_embeddings: u64,
        embedding_dim: usize,
    ) -> Result<Option<Overrides<'a>>, BlobError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let ids = self.ids(Role::OverrideIds, num_embeddings)?;
        let index = self.id_index(Role::OverrideIndex, num_embeddings)?;
        let rows = self.rows(Role::OverrideRows, ids.len() as u64, embedding_dim)?;
        Ok(Some(Overrides { ids, rows, index }))
    }

    /// At most `limit` ids.
    fn ids(&mut self, role: Role, limit: u64) -> Result<&'a [u64], BlobError> {
        self.numbers(role, DTYPE_U64, |found| found.min(limit))
    }

    /// Integers: as many as `count` makes of the number that the section has room for.
    fn numbers<T: bytemuck::Pod>(
        &mut self,
        role: Role,
        dtype: u8,
        count: impl Fn(u64) -> u64,
    ) -> Result<&'a [T], BlobError> {
        let (section, record) = self.take(role)?;
        if record.dtype != dtype {
            return Err(BlobError::SectionDtype { section, found: record.dtype.into() });
        }
        let found = record.len.checked_div(size_of::<T>() as u64).unwrap_or(0);
        let bytes = self.bytes(section, record, count(found), size_of::<T>())?;
        bytemuck::try_cast_slice(bytes).map_err(|_| BlobError::SectionLength {
            section,
            found: record.len,
            expected: 0,
        })
    }

    /// The index of ids below `limit`, if it comes next.
    fn id_index(&mut self, role: Role, limit: u64) -> Result<&'a [Line], BlobError> {
        if !self.next_is(role) {
            return Ok(&[]);
        }
        let (section, record) = self.take(role)?;
        if record.dtype != DTYPE_U64 {
            return Err(BlobError::SectionDtype { section, found: record.dtype.into() });
        }
        let expected = id_index::byte_len(limit);
        let wrong_len = BlobError::SectionLength { section, found: record.len, expected };
        let bytes = self.bytes(section, record, expected, 1)?;
        bytemuck::try_cast_slice(bytes).map_err(|_| wrong_len)
    }
}

impl Rows<'_> {
    /// The first row whose scale is not finite and positive or whose offset is not finite.
    fn first_bad_header(&self) -> Option<u64> {
        let count = self.elements.len().checked_div(self.row_stride())?;
        let bad = |&position: &usize| match self.row(position) {
            Some((scale, offset, _)) => !(scale.is_finite() && scale > 0.0 && offset.is_finite()),
            None => true,
        };
        (0..count).find(bad).map(|position| position as u64)
    }
}
