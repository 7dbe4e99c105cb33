//! The parser: from bytes that may be hostile to a [`Blob`], or an error.

#![forbid(unsafe_code)]

use super::{
    ALIGNMENT, Blob, BlobError, Checksum, Interaction, MAX_LAYERS, MAX_MODEL_TABLES, MAX_NAME_LEN,
    MAX_TABLES, Role, Section, VERSION, align_up, directory_checksum,
    error::{ErrorSlot, Location, Place, Refused, Rule},
    record::{DTYPE_U64, Header, LayerRecord, MAGIC, SectionRecord, TableRecord, index_map, kind},
};
use crate::{
    dtype::{Dtype, Elements},
    repr::{
        CodeDtype, Codebook, Combine, Core, IndexMap, Overrides, Prefixes, Projected,
        QuotientRemainder, RowNumberDtype, RowNumbers, Rows, TableData, TtCores, Weights,
        codebook::{self, Support, entry_len},
        id_index::{self, Line},
    },
    shape::{
        DigitOrder, MAX_CORES, ShapeError, TtShape, check_embedding_dim, check_num_embeddings,
    },
};

/// The most sections of one table: cores with scales; prefix ids, their index and products; an
/// index map; override ids, their index and rows.
const MAX_SECTIONS_PER_TABLE: usize = 2 * MAX_CORES + 7;
/// The most sections of one layer: weights, scales and a bias.
const MAX_SECTIONS_PER_LAYER: usize = 3;

impl<'a> Blob<'a> {
    /// Checks the header and the directory of `bytes`, which must start on a multiple of
    /// [`ALIGNMENT`] and be exactly the blob.
    ///
    /// Only the header and the directory are read. [`verify_payload`](Self::verify_payload) finds
    /// changes of the payload.
    ///
    /// # Errors
    /// A [`BlobError`] for the first field that is wrong.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BlobError> {
        ErrorSlot::with(|slot| Self::parse_or_refuse(bytes, slot))
    }

    fn parse_or_refuse(bytes: &'a [u8], slot: &ErrorSlot) -> Result<Self, Refused> {
        let len = bytes.len() as u64;
        let excess = bytes.as_ptr().addr() % ALIGNMENT;
        if excess != 0 {
            let (found, expected) = (excess as u64, ALIGNMENT as u64);
            return Err(slot.at(Location::Buffer).refuse(Rule::Alignment, found, expected));
        }
        let truncated =
            |needed: u64| slot.at(Location::Buffer).refuse(Rule::Truncated, len, needed);
        let (header, rest) = bytes
            .split_at_checked(size_of::<Header>())
            .ok_or_else(|| truncated(size_of::<Header>() as u64))?;
        let at = slot.at(Location::Header);
        let header = bytemuck::try_from_bytes::<Header>(header).ok();
        let header = header.filter(|header| header.magic == MAGIC);
        let header = header.ok_or_else(|| at.refuse(Rule::Magic, 0, 0))?;
        at.equal(Rule::Version, header.version.into(), VERSION.into())?;
        at.equal(Rule::Flags, header.flags.into(), 0)?;
        at.holds(Rule::Reserved, header.reserved == [0; 15])?;
        slot.at(Location::Buffer).equal(Rule::TotalLen, len, header.total_len)?;

        let check_count = |rule, found: u32, limit: usize| {
            at.at_most(rule, found.into(), limit as u64)?;
            Ok(found as usize)
        };
        let num_tables = check_count(Rule::NumTables, header.num_tables, MAX_TABLES)?;
        let num_layers = check_count(Rule::NumLayers, header.num_layers, MAX_LAYERS)?;
        let num_model_tables =
            check_count(Rule::NumModelTables, header.num_model_tables, MAX_MODEL_TABLES)?;
        let max_sections = num_tables
            .saturating_mul(MAX_SECTIONS_PER_TABLE)
            .saturating_add(num_layers.saturating_mul(MAX_SECTIONS_PER_LAYER));
        let num_sections = check_count(Rule::NumSections, header.num_sections, max_sections)?;
        let max_names_len = num_tables.saturating_mul(MAX_NAME_LEN);
        let names_len = check_count(Rule::NamesLen, header.names_len, max_names_len)?;
        let tables_len = num_tables.saturating_mul(size_of::<TableRecord>());
        let sections_len = num_sections.saturating_mul(size_of::<SectionRecord>());
        let layers_len = num_layers.saturating_mul(size_of::<LayerRecord>());
        let model_tables_len = num_model_tables.saturating_mul(size_of::<u32>());
        let records_len = tables_len.saturating_add(sections_len).saturating_add(layers_len);
        let directory_len = records_len.saturating_add(model_tables_len).saturating_add(names_len);
        let directory_len = directory_len.checked_next_multiple_of(ALIGNMENT).unwrap_or(usize::MAX);
        let needed = (size_of::<Header>() as u64).saturating_add(directory_len as u64);
        let directory = rest.get(..directory_len).ok_or_else(|| truncated(needed))?;
        let computed = directory_checksum(header, directory);
        at.equal(Rule::Checksum, computed.into(), header.checksum.into())?;
        let interaction = match (num_layers, Interaction::from_code(header.interaction)) {
            (0, _) => {
                at.equal(Rule::Interaction, header.interaction.into(), 0)?;
                Interaction::default()
            }
            (_, Some(interaction)) => interaction,
            (_, None) => {
                let last = Interaction::Cat as u64;
                return Err(at.refuse(Rule::Interaction, header.interaction.into(), last));
            }
        };
        let max_model_tables = if num_layers == 0 { 0 } else { MAX_MODEL_TABLES };
        check_count(Rule::NumModelTables, header.num_model_tables, max_model_tables)?;

        let (tables, after) = take(directory, num_tables).ok_or_else(|| truncated(needed))?;
        let (sections, after) = take(after, num_sections).ok_or_else(|| truncated(needed))?;
        let (layers, after) = take(after, num_layers).ok_or_else(|| truncated(needed))?;
        let (model_tables, after) =
            take(after, num_model_tables).ok_or_else(|| truncated(needed))?;
        let (names, padding) =
            after.split_at_checked(names_len).ok_or_else(|| truncated(needed))?;
        let blob = Self { bytes, tables, sections, layers, interaction, model_tables, names };
        let unused = padding.iter().all(|&byte| byte == 0);
        slot.at(Location::Names).holds(Rule::Reserved, unused)?;
        blob.check_names(slot)?;
        blob.check_sections(needed, slot)?;
        for (table, record) in blob.tables.iter().enumerate() {
            blob.read_table(table, record, slot)?;
        }
        blob.check_model(slot)?;
        Ok(blob)
    }

    /// Compares every section with its checksum, and checks what parsing leaves alone: that scales
    /// are positive and finite, offsets finite, codes and row numbers in range, and the ids of
    /// prefixes and overrides ascending and in range. Reads the whole blob.
    ///
    /// # Errors
    /// A [`BlobError`] for the first section of the first table, or else layer, that fails.
    pub fn verify_payload(&self) -> Result<(), BlobError> {
        (0..self.num_tables()).try_for_each(|table| self.verify_table(table))?;
        self.verify_model()
    }

    /// [`verify_payload`](Self::verify_payload) for the layers of the model only.
    ///
    /// # Errors
    /// A [`BlobError`] for the first section that fails.
    pub fn verify_model(&self) -> Result<(), BlobError> {
        ErrorSlot::with(|slot| {
            self.layers.iter().enumerate().try_for_each(|(layer, record)| {
                let sections = self.sections_of_layer(layer, record, slot)?;
                self.verify_checksums(sections, slot)?;
                let scales = sections.find(Role::LayerScales(layer));
                check_scales(slot, scales, self.read_layer(layer, record, slot)?.scales)
            })
        })
    }

    /// [`verify_payload`](Self::verify_payload) for the table at one position.
    pub(crate) fn verify_table(&self, table: usize) -> Result<(), BlobError> {
        let Some(record) = self.tables.get(table) else { return Ok(()) };
        ErrorSlot::with(|slot| self.verify_record(table, record, slot))
    }

    fn verify_record(
        &self,
        table: usize,
        record: &TableRecord,
        slot: &ErrorSlot,
    ) -> Result<(), Refused> {
        let sections = self.sections_of_table(table, record, slot)?;
        self.verify_checksums(sections, slot)?;
        let data = self.read_table(table, record, slot)?;
        let check_rows = |rows: &Rows<'_>, role: Role| match rows.first_bad_header() {
            Some(position) => Err(bad_scale(slot, sections.find(role), position)),
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
            Weights::Codebook(codebook) => {
                check_scales(slot, sections.find(Role::Scales(0)), codebook.scales)?;
                check_codes(slot, sections.find(Role::Codes), codebook, data.num_rows)?;
            }
            Weights::Tt(tt) => {
                for (k, core) in tt.cores.iter().enumerate() {
                    check_scales(slot, sections.find(Role::Scales(k)), core.scales)?;
                }
                if let Some(Prefixes { ids, index, .. }) = tt.prefixes {
                    let section = sections.find(Role::PrefixIds);
                    check_ids(slot, section, ids, index, tt.shape.num_prefixes())?;
                }
            }
        }
        if let IndexMap::Remapped(rows) = data.index_map
            && let Some((position, row)) =
                (0u64..).zip(rows.iter()).find(|&(_, row)| u64::from(row) >= data.num_rows)
        {
            let section = sections.find(Role::RemappedRows);
            let at = slot.at(Location::Element { section, position });
            return Err(at.refuse(Rule::RemappedRow, row.into(), data.num_rows));
        }
        if let Some(Overrides { ids, index, rows }) = &data.overrides {
            check_rows(rows, Role::OverrideRows)?;
            check_ids(slot, sections.find(Role::OverrideIds), ids, index, data.num_embeddings)?;
        }
        Ok(())
    }

    pub(super) fn name_bytes(&self, record: &TableRecord) -> &'a [u8] {
        let start = record.name_offset as usize;
        let range = start..start.saturating_add(record.name_len as usize);
        self.names.get(range).unwrap_or_default()
    }

    pub(super) fn sections_of_table(
        &self,
        table: usize,
        record: &TableRecord,
        slot: &ErrorSlot,
    ) -> Result<Sections<'a>, Refused> {
        let at = slot.at(Location::Table(table));
        self.sections_from(at, record.first_section, record.num_sections)
    }

    pub(super) fn sections_of_layer(
        &self,
        layer: usize,
        record: &LayerRecord,
        slot: &ErrorSlot,
    ) -> Result<Sections<'a>, Refused> {
        let at = slot.at(Location::Layer(layer));
        self.sections_from(at, record.first_section, record.num_sections)
    }

    fn sections_from(
        &self,
        at: Place<'_>,
        first: u32,
        count: u32,
    ) -> Result<Sections<'a>, Refused> {
        let (first, count) = (first as usize, count as usize);
        let end = first.saturating_add(count);
        at.at_most(Rule::LastSection, end as u64, self.sections.len() as u64)?;
        Ok(Sections { first, records: self.sections.get(first..end).unwrap_or_default() })
    }

    fn verify_checksums(&self, sections: Sections<'a>, slot: &ErrorSlot) -> Result<(), Refused> {
        sections.numbered().try_for_each(|(section, record)| {
            let mut checksum = Checksum::new();
            let padded = align_up(record.len).map(|len| SectionRecord { len, ..*record });
            let bytes = padded.and_then(|padded| self.section_bytes(&padded));
            checksum.update(bytes.unwrap_or_default());
            let (found, expected) = (checksum.finish().into(), record.checksum.into());
            slot.at(Location::Section(section)).equal(Rule::Checksum, found, expected)
        })
    }

    fn section_bytes(&self, record: &SectionRecord) -> Option<&'a [u8]> {
        let start = usize::try_from(record.offset).ok()?;
        let len = usize::try_from(record.len).ok()?;
        self.bytes.get(start..start.checked_add(len)?)
    }

    /// Checks that names lie end to end in `names`, and ascend.
    fn check_names(&self, slot: &ErrorSlot) -> Result<(), Refused> {
        let mut end = 0usize;
        let mut previous: &[u8] = &[];
        for (table, record) in self.tables.iter().enumerate() {
            let at = slot.at(Location::Table(table));
            at.one_to(Rule::NameLen, record.name_len.into(), MAX_NAME_LEN as u64)?;
            at.equal(Rule::NameOffset, record.name_offset.into(), end as u64)?;
            end = end.saturating_add(record.name_len as usize);
            at.at_most(Rule::NameEnd, end as u64, self.names.len() as u64)?;
            let name = self.name_bytes(record);
            at.holds(Rule::NameUtf8, core::str::from_utf8(name).is_ok())?;
            at.holds(Rule::NameOrder, previous < name)?;
            previous = name;
        }
        slot.at(Location::Names)
            .equal(Rule::NamesEnd, end as u64, self.names.len() as u64)
    }

    /// Checks that sections lie end to end, each rounded up to the alignment, from the end of the
    /// directory to the end of the blob, and belong to the tables and then to the layers, in order.
    fn check_sections(&self, directory_end: u64, slot: &ErrorSlot) -> Result<(), Refused> {
        let len = self.bytes.len() as u64;
        let mut end = directory_end;
        for (section, record) in self.sections.iter().enumerate() {
            let at = slot.at(Location::Section(section));
            at.holds(Rule::Reserved, record.reserved == [0; 8])?;
            at.equal(Rule::Offset, record.offset, end)?;
            at.holds(Rule::Empty, record.len != 0)?;
            let left = len.saturating_sub(end);
            end = end
                .checked_add(record.len)
                .and_then(align_up)
                .filter(|&end| end <= len)
                .ok_or_else(|| at.refuse(Rule::End, record.len, left))?;
        }
        slot.at(Location::Buffer).equal(Rule::BlobEnd, end, len)?;
        let mut next = 0usize;
        let mut check = |at, first: u32, count| {
            let at = slot.at(at);
            at.equal(Rule::FirstSection, first.into(), next as u64)?;
            next = next.saturating_add(self.sections_from(at, first, count)?.records.len());
            Ok(())
        };
        for (table, record) in self.tables.iter().enumerate() {
            check(Location::Table(table), record.first_section, record.num_sections)?;
        }
        for (layer, record) in self.layers.iter().enumerate() {
            check(Location::Layer(layer), record.first_section, record.num_sections)?;
        }
        slot.at(Location::Section(next)).holds(Rule::Owner, next == self.sections.len())
    }

    /// The table at position `table`. Checks every number of its record, and its sections against
    /// its shape.
    pub(super) fn read_table(
        &self,
        table: usize,
        record: &TableRecord,
        slot: &ErrorSlot,
    ) -> Result<TableData<'a>, Refused> {
        let at = slot.at(Location::Table(table));
        at.one_to(Rule::Kind, record.kind.into(), kind::LAST.into())?;
        at.at_most(Rule::IndexMap, record.index_map.into(), index_map::REMAPPED.into())?;
        at.equal(Rule::Layout, record.layout.into(), 0)?;
        let unused = |holds| at.holds(Rule::Reserved, holds);
        unused(record.reserved_tail == [0; 16])?;
        let wrong_shape = |error| at.refuse_shape(error);
        let mut sections =
            SectionCursor::new(self, at, self.sections_of_table(table, record, slot)?);

        let num_embeddings = record.num_embeddings;
        let embedding_dim = record.embedding_dim as usize;
        check_num_embeddings(num_embeddings).map_err(wrong_shape)?;
        check_embedding_dim(record.embedding_dim.into()).map_err(wrong_shape)?;
        let num_rows = match record.index_map {
            index_map::IDENTITY => {
                at.equal(Rule::NumRowsUnmapped, record.num_rows, 0)?;
                num_embeddings
            }
            _ => {
                at.one_to(Rule::NumRows, record.num_rows, num_embeddings)?;
                record.num_rows
            }
        };
        let of_cores =
            (record.num_cores, record.digit_order, record.column_order, record.inner_ranks);
        unused(record.kind == kind::TT || of_cores == (0, 0, 0, [0; 5]))?;
        let combines = matches!(record.kind, kind::QUOTIENT_REMAINDER | kind::CODEBOOK);
        unused(combines || record.combine == 0)?;
        let shape_fields = (record.row_factors, record.column_factors);
        let weights = match record.kind {
            kind::DENSE => {
                unused(shape_fields == ([0; 6], [0; 6]))?;
                Weights::Dense(sections.rows(Role::Rows, num_rows, embedding_dim)?)
            }
            kind::PROJECTED => {
                let (none, [rank, rest @ ..]) = shape_fields;
                unused(none == [0; 6] && rest == [0; 5])?;
                check_embedding_dim(rank.into()).map_err(wrong_shape)?;
                let rows = sections.rows(Role::Rows, num_rows, rank as usize)?;
                let projection = sections.elements(Role::Projection, rank.into(), embedding_dim)?;
                Weights::Projected(Projected { rows, projection })
            }
            kind::QUOTIENT_REMAINDER => {
                let ([quotients, num_remainders, rest @ ..], [first, second, more @ ..]) =
                    shape_fields;
                unused((rest, more) == ([0; 4], [0; 4]))?;
                let unknown = || at.refuse(Rule::Combine, record.combine.into(), 3);
                let combine = Combine::from_code(record.combine).ok_or_else(unknown)?;
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
            kind::CODEBOOK => {
                let ([book_len, rest @ ..], [num_books, inner_dim, more @ ..]) = shape_fields;
                unused(rest == [0; 5] && more == [0; 4])?;
                let last = Combine::Concat as u8;
                let combine = Combine::from_code(record.combine)
                    .filter(|&combine| combine != Combine::Mult)
                    .ok_or_else(|| {
                        at.refuse(Rule::CodebookCombine, record.combine.into(), last.into())
                    })?;
                let (num_books, book_len) = (num_books as usize, book_len as usize);
                let inner_dim = inner_dim as usize;
                codebook::check(combine, num_books, book_len, inner_dim).map_err(wrong_shape)?;
                let codebook = sections.codebook(
                    num_rows,
                    (combine, num_books, book_len),
                    [inner_dim, embedding_dim],
                )?;
                if codebook.projection.is_none() && inner_dim != embedding_dim {
                    let error = ShapeError::Codebook { num_books, book_len, inner_dim };
                    return Err(wrong_shape(error));
                }
                Weights::Codebook(codebook)
            }
            _ => {
                let shape = read_shape(at, num_rows, record)?;
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
            _ => IndexMap::Remapped(sections.row_numbers(num_embeddings)?),
        };
        let overrides = sections.overrides(num_embeddings, embedding_dim)?;
        sections.finish()?;
        let name = core::str::from_utf8(self.name_bytes(record))
            .map_err(|_| at.refuse(Rule::NameUtf8, 0, 0))?;
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

/// The first `count` records of a directory, and the bytes after them.
fn take<T: bytemuck::Pod>(directory: &[u8], count: usize) -> Option<(&[T], &[u8])> {
    let len = count.checked_mul(size_of::<T>())?;
    let (records, after) = directory.split_at_checked(len)?;
    Some((bytemuck::try_cast_slice(records).ok()?, after))
}

/// Refuses ids that do not ascend, are not below `limit`, or have another position in the index.
fn check_ids(
    slot: &ErrorSlot,
    section: usize,
    ids: &[u64],
    index: &[Line],
    limit: u64,
) -> Result<(), Refused> {
    let mut floor = 0;
    for (position, &id) in ids.iter().enumerate() {
        let at = slot.at(Location::Element { section, position: position as u64 });
        if id < floor || id >= limit {
            return Err(at.refuse(Rule::Ids, id, limit));
        }
        if !index.is_empty() && id_index::position_in(index, id) != Some(position) {
            return Err(at.refuse(Rule::IdIndex, id, limit));
        }
        floor = id.saturating_add(1);
    }
    Ok(())
}

/// Refuses codes that are not below `book_len`. Their positions count codes, not bytes.
fn check_codes(
    slot: &ErrorSlot,
    section: usize,
    codebook: &Codebook<'_>,
    num_rows: u64,
) -> Result<(), Refused> {
    let limit = codebook.book_len as u64;
    let rows = (0..num_rows).map_while(|row| codebook.row_codes(usize::try_from(row).ok()?));
    for (position, code) in (0u64..).zip(rows.flatten()) {
        let at = slot.at(Location::Element { section, position });
        if u64::from(code) >= limit {
            return Err(at.refuse(Rule::Code, code.into(), limit));
        }
    }
    Ok(())
}

/// Refuses scales that are not finite and positive.
fn check_scales(slot: &ErrorSlot, section: usize, scales: &[f32]) -> Result<(), Refused> {
    let bad = scales.iter().position(|scale| !(scale.is_finite() && *scale > 0.0));
    bad.map_or(Ok(()), |position| Err(bad_scale(slot, section, position as u64)))
}

fn bad_scale(slot: &ErrorSlot, section: usize, position: u64) -> Refused {
    slot.at(Location::Element { section, position }).refuse(Rule::Scale, 0, 0)
}

/// The shape of a tensor-train table. Factors and ranks past those of d cores must be 0.
fn read_shape(at: Place<'_>, num_rows: u64, record: &TableRecord) -> Result<TtShape, Refused> {
    let wrong_shape = |error| at.refuse_shape(error);
    let order =
        |rule, code: u8| DigitOrder::from_code(code).ok_or_else(|| at.refuse(rule, code.into(), 1));
    let digit_order = order(Rule::DigitOrder, record.digit_order)?;
    let column_order = order(Rule::ColumnOrder, record.column_order)?;
    let d = usize::from(record.num_cores);
    let wrong_count = || wrong_shape(ShapeError::CoreCount { found: d });
    let (row_factors, row_rest) = record.row_factors.split_at_checked(d).ok_or_else(wrong_count)?;
    let (column_factors, column_rest) =
        record.column_factors.split_at_checked(d).ok_or_else(wrong_count)?;
    let inner = d.checked_sub(1).ok_or_else(wrong_count)?;
    let (ranks, rank_rest) = record.inner_ranks.split_at_checked(inner).ok_or_else(wrong_count)?;
    let mut rest = row_rest.iter().chain(column_rest).chain(rank_rest);
    at.holds(Rule::Reserved, rest.all(|&n| n == 0))?;
    let shape = TtShape::new(num_rows, row_factors, column_factors, ranks).map_err(wrong_shape)?;
    Ok(shape.with_digit_order(digit_order).with_column_order(column_order))
}

/// The sections of a table or layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sections<'a> {
    /// The number of the first one.
    first: usize,
    pub(super) records: &'a [SectionRecord],
}

impl<'a> Sections<'a> {
    /// The sections, in file order.
    pub(super) fn iter(self) -> impl Iterator<Item = Section> + use<'a> {
        self.records.iter().filter_map(Section::read)
    }

    fn numbered(self) -> impl Iterator<Item = (usize, &'a SectionRecord)> {
        (self.first..).zip(self.records)
    }

    /// The number of the section with this role, which exists.
    fn find(self, role: Role) -> usize {
        let found = self.numbered().find(|(_, record)| (record.role, record.core) == role.codes());
        found.map_or(self.first, |(section, _)| section)
    }
}

/// Reads the sections of a table or layer one by one, and checks that each has the role and length
/// that come next.
pub(super) struct SectionCursor<'b, 'a> {
    blob: &'b Blob<'a>,
    /// The table or layer.
    at: Place<'b>,
    sections: Sections<'a>,
    /// Number of sections read so far.
    num_read: usize,
}

impl<'b, 'a> SectionCursor<'b, 'a> {
    pub(super) fn new(blob: &'b Blob<'a>, at: Place<'b>, sections: Sections<'a>) -> Self {
        Self { blob, at, sections, num_read: 0 }
    }

    fn next(&self) -> Option<&'a SectionRecord> {
        self.sections.records.get(self.num_read)
    }

    fn next_place(&self) -> Place<'b> {
        self.at.at(Location::Section(self.sections.first.saturating_add(self.num_read)))
    }

    /// Refuses sections that have not been read.
    pub(super) fn finish(&self) -> Result<(), Refused> {
        let len = self.sections.records.len() as u64;
        self.at.equal(Rule::ExtraSection, len, self.num_read as u64)
    }

    /// Whether the next section has this role.
    fn next_is(&self, role: Role) -> bool {
        self.next().is_some_and(|next| (next.role, next.core) == role.codes())
    }

    /// The next section, which must have this role.
    fn read(&mut self, role: Role) -> Result<(Place<'b>, &'a SectionRecord), Refused> {
        let at = self.next_place();
        let record = self.next();
        let num_read = self.num_read as u64;
        self.num_read = self.num_read.saturating_add(1);
        let missing = || self.at.refuse(Rule::MissingSection, num_read, self.num_read as u64);
        let record = record.ok_or_else(missing)?;
        let (code, core) = role.codes();
        at.equal(Rule::Role, record.role.into(), code.into())?;
        at.equal(Rule::Core, record.core.into(), core.into())?;
        Ok((at, record))
    }

    /// The bytes of a section that must hold `count` runs of `len` bytes.
    fn bytes(
        &self,
        at: Place<'_>,
        record: &SectionRecord,
        count: u64,
        len: usize,
    ) -> Result<&'a [u8], Refused> {
        at.equal(Rule::Len, record.len, count.saturating_mul(len as u64))?;
        self.blob
            .section_bytes(record)
            .ok_or_else(|| at.refuse(Rule::Len, record.len, 0))
    }

    /// The next section: `count` runs of `len` elements, or `count` dense rows if the role is that
    /// of rows.
    pub(super) fn elements(
        &mut self,
        role: Role,
        count: u64,
        len: usize,
    ) -> Result<Elements<'a>, Refused> {
        let (at, record) = self.read(role)?;
        let wrong_dtype = || wrong_dtype(at, role, record.dtype);
        let suits = |dtype: &Dtype| match role {
            Role::Core(_) | Role::Books | Role::LayerWeights(_) => dtype.suits_cores(),
            Role::Projection => dtype.suits_projections(),
            _ => true,
        };
        let dtype = Dtype::from_code(record.dtype).filter(suits).ok_or_else(wrong_dtype)?;
        let len = match role {
            Role::Rows | Role::RemainderRows | Role::OverrideRows => dtype.row_len(len),
            _ => dtype.bytes_of(len),
        };
        let bytes = self.bytes(at, record, count, len)?;
        Elements::from_bytes(bytes, dtype).ok_or_else(wrong_dtype)
    }

    /// The next section: `count` runs of `len` f32.
    pub(super) fn floats(
        &mut self,
        role: Role,
        count: u64,
        len: usize,
    ) -> Result<&'a [f32], Refused> {
        let at = self.next_place();
        let floats = self.elements(role, count, len)?;
        floats.as_f32().ok_or_else(|| wrong_dtype(at, role, floats.dtype() as u8))
    }

    fn rows(&mut self, role: Role, count: u64, embedding_dim: usize) -> Result<Rows<'a>, Refused> {
        let elements = self.elements(role, count, embedding_dim)?;
        Ok(Rows { elements, embedding_dim })
    }

    fn cores(&mut self, shape: TtShape) -> Result<TtCores<'a>, Refused> {
        let mut cores = [Core { slices: Elements::from_f32(&[]), scales: &[] }; MAX_CORES];
        for (k, (core, &p)) in cores.iter_mut().zip(shape.row_factors()).enumerate() {
            core.slices = self.elements(Role::Core(k), p.into(), shape.slice_len(k))?;
            if core.slices.dtype() == Dtype::I8 {
                core.scales = self.floats(Role::Scales(k), p.into(), 1)?;
            }
        }
        let prefixes = self.prefixes(&shape)?;
        Ok(TtCores::new(shape, cores, prefixes))
    }

    /// Codes and books, and then a projection, if it comes next.
    fn codebook(
        &mut self,
        num_rows: u64,
        (combine, num_books, book_len): (Combine, usize, usize),
        [inner_dim, embedding_dim]: [usize; 2],
    ) -> Result<Codebook<'a>, Refused> {
        let unsupported = || self.at.refuse(Rule::Kind, kind::CODEBOOK.into(), kind::LAST.into());
        let support = Support::get().ok_or_else(unsupported)?;
        let (at, record) = self.read(Role::Codes)?;
        let wrong_dtype = || wrong_dtype(at, Role::Codes, record.dtype);
        let code_dtype = CodeDtype::from_code(record.dtype).ok_or_else(wrong_dtype)?;
        let codes = self.bytes(at, record, num_rows, code_dtype.row_len(num_books))?;
        let entries = (num_books as u64).saturating_mul(book_len as u64);
        let entry_len = entry_len(combine, num_books, inner_dim);
        let books = self.elements(Role::Books, entries, entry_len)?;
        let scales = if books.dtype() == Dtype::I8 {
            self.floats(Role::Scales(0), num_books as u64, 1)?
        } else {
            &[]
        };
        let projection = if self.next_is(Role::Projection) {
            Some(self.elements(Role::Projection, inner_dim as u64, embedding_dim)?)
        } else {
            None
        };
        Ok(Codebook {
            codes,
            code_dtype,
            books,
            scales,
            projection,
            combine,
            num_books,
            book_len,
            inner_dim,
            support,
        })
    }

    /// Products of prefixes, if they come next.
    fn prefixes(&mut self, shape: &TtShape) -> Result<Option<Prefixes<'a>>, Refused> {
        if !self.next_is(Role::PrefixIds) {
            return Ok(None);
        }
        let ids = self.ids(Role::PrefixIds, shape.num_prefixes())?;
        let index = self.id_index(Role::PrefixIndex, shape.num_prefixes())?;
        let products = self.floats(Role::PrefixProducts, ids.len() as u64, shape.prefix_len())?;
        Ok(Some(Prefixes { ids, products, index }))
    }

    /// Overrides, if the table has sections left.
    fn overrides(
        &mut self,
        num_embeddings: u64,
        embedding_dim: usize,
    ) -> Result<Option<Overrides<'a>>, Refused> {
        if self.next().is_none() {
            return Ok(None);
        }
        let ids = self.ids(Role::OverrideIds, num_embeddings)?;
        let index = self.id_index(Role::OverrideIndex, num_embeddings)?;
        let rows = self.rows(Role::OverrideRows, ids.len() as u64, embedding_dim)?;
        Ok(Some(Overrides { ids, rows, index }))
    }

    /// The next section: at most `limit` ids.
    fn ids(&mut self, role: Role, limit: u64) -> Result<&'a [u64], Refused> {
        self.numbers(role, DTYPE_U64, |found| found.min(limit))
    }

    /// The next section: integers, of which there must be `count(n)` if the section has room for n.
    fn numbers<T: bytemuck::Pod>(
        &mut self,
        role: Role,
        dtype: u8,
        count: impl Fn(u64) -> u64,
    ) -> Result<&'a [T], Refused> {
        let (at, record) = self.read(role)?;
        let wrong_dtype = || wrong_dtype(at, role, record.dtype);
        if record.dtype != dtype {
            return Err(wrong_dtype());
        }
        let room = record.len.checked_div(size_of::<T>() as u64).unwrap_or(0);
        let bytes = self.bytes(at, record, count(room), size_of::<T>())?;
        bytemuck::try_cast_slice(bytes).map_err(|_| wrong_dtype())
    }

    /// The row number of each index.
    fn row_numbers(&mut self, num_embeddings: u64) -> Result<RowNumbers<'a>, Refused> {
        let (at, record) = self.read(Role::RemappedRows)?;
        let dtype = RowNumberDtype::from_code(record.dtype)
            .ok_or_else(|| wrong_dtype(at, Role::RemappedRows, record.dtype))?;
        let bytes = self.bytes(at, record, num_embeddings, dtype.bytes())?;
        Ok(RowNumbers { bytes, dtype })
    }

    /// The index of ids below `limit`, if it comes next.
    fn id_index(&mut self, role: Role, limit: u64) -> Result<&'a [Line], Refused> {
        if !self.next_is(role) {
            return Ok(&[]);
        }
        let lines = limit.div_ceil(id_index::IDS_PER_LINE);
        self.numbers(role, DTYPE_U64, |_| lines)
    }
}

/// A section whose dtype is unknown, or not allowed for its role.
fn wrong_dtype(at: Place<'_>, role: Role, found: u8) -> Refused {
    at.refuse(Rule::Dtype, found.into(), role.codes().0.into())
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
