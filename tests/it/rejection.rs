//! One test per reason to refuse a blob: a valid one is patched, resealed where the checksum would
//! otherwise hide the patch, and must be refused with exactly this error.

use crate::support::{
    format::{
        self, header, layer, layer_at, put, reseal, reseal_section, section, section_at, table,
        table_at,
    },
    random::{Values, build, build_model, codebook, model, remapped},
};
use ttrec::{
    AlignedBuf, Blob, BlobError, NoSuchTable, ShapeError, TtShape,
    blob::{
        Activation, IndexMapSpec, LayerSpec, Layout, LayoutError,
        Location::{
            self, Buffer, Element, Header, Layer, Model, ModelTable, Names, Section, Table,
        },
        ModelSpec, OverridesSpec, Role, Rule, TableSpec, WeightsSpec,
    },
    dtype::Dtype,
    limits::{MAX_BOOK_LEN, MAX_LAYERS, MAX_MODEL_TABLES, MAX_NAME_LEN, MAX_NUM_BOOKS, MAX_TABLES},
    repr::{CodeDtype, Combine, RowNumberDtype},
};

fn dense(name: &str, num_embeddings: u64, embedding_dim: usize, dtype: Dtype) -> TableSpec {
    TableSpec::new(name, WeightsSpec::Dense { num_embeddings, embedding_dim, dtype })
}

fn tt(name: &str, shape: TtShape, dtype: Dtype) -> TableSpec {
    TableSpec::new(name, WeightsSpec::Tt { shape, dtype })
}

fn overridden(table: TableSpec, count: u64, dtype: Dtype) -> TableSpec {
    TableSpec { overrides: Some(OverridesSpec { count, dtype }), ..table }
}

// Positions in `sample()`.
const DENSE: usize = 0;
const DENSE_I8: usize = 1;
const TT: usize = 2;
const TT_I8: usize = 3;
const NUM_TABLES: usize = 4;
const NUM_SECTIONS: usize = 11;
/// The name bytes of `sample()`.
const NAMES: &[u8] = b"a.denseb.dense.i8c.ttd.tt.i8";

/// Four tables in eleven sections:
/// `a.dense`: 0 rows;
/// `b.dense.i8`: 1 rows, 2 override ids, 3 override rows (i8);
/// `c.tt`: 4, 5, 6 cores (f32);
/// `d.tt.i8`: 7 core, 8 its scales, 9 core, 10 its scales.
fn sample() -> AlignedBuf {
    let three = TtShape::new(23, &[2, 3, 4], &[2, 3, 2], &[5, 3]).unwrap();
    let two = TtShape::new(30, &[6, 5], &[2, 8], &[4]).unwrap();
    let tables = [
        dense("a.dense", 6, 5, Dtype::F32),
        overridden(dense("b.dense.i8", 9, 4, Dtype::I8), 3, Dtype::I8),
        tt("c.tt", three, Dtype::F32),
        tt("d.tt.i8", two, Dtype::I8),
    ];
    let mut buf = build(&tables, 7, Values::Reals);
    // Resealing must reproduce what the writer wrote, or the tests below would test the checksum
    // only.
    let original = buf.to_vec();
    assert!(reseal(&mut buf));
    assert_eq!(buf[..], original[..]);
    assert_eq!((format::num_tables(&buf), format::num_sections(&buf)), (NUM_TABLES, NUM_SECTIONS));
    assert_eq!(buf[format::names_at(&buf)..][..NAMES.len()], *NAMES);
    Blob::parse(&buf).unwrap().verify_payload().unwrap();
    buf
}

/// Where a rule does not hold, which one, what was found, and what was expected.
type Refusal = (Location, Broken, u64, u64);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Broken {
    Rule(Rule),
    Shape(ShapeError),
}

impl From<Rule> for Broken {
    fn from(rule: Rule) -> Self {
        Self::Rule(rule)
    }
}

/// A refusal that is about no number.
fn broken(location: Location, rule: Rule) -> Refusal {
    (location, rule.into(), 0, 0)
}

fn refusal(result: Result<(), BlobError>) -> Result<(), Refusal> {
    result.map_err(|error| {
        let rule = error.rule();
        assert_eq!(error.shape().is_some(), rule == Rule::Shape);
        let broken = error.shape().map_or(rule.into(), Broken::Shape);
        (error.location(), broken, error.found(), error.expected())
    })
}

fn parse(bytes: &[u8]) -> Result<(), Refusal> {
    refusal(Blob::parse(bytes).map(drop))
}

fn verify(bytes: &[u8]) -> Result<(), Refusal> {
    refusal(Blob::parse(bytes).unwrap().verify_payload())
}

/// The refusal of a section whose bytes changed.
fn bad_checksum(bytes: &[u8], section: usize) -> Refusal {
    let format::Section { checksum, .. } = format::Section::read(bytes, section);
    let range = format::Section::read(bytes, section).padded_range();
    let found = format::crc32c(&bytes[range]);
    (Section(section), Rule::Checksum.into(), found.into(), checksum.into())
}

/// Patches, reseals and parses `sample()`.
fn patched(patch: impl FnOnce(&mut AlignedBuf)) -> Refusal {
    let mut buf = sample();
    patch(&mut buf);
    assert!(reseal(&mut buf));
    parse(&buf).unwrap_err()
}

fn with_header(field: usize, value: &[u8]) -> Refusal {
    patched(|buf| put(buf, field, value))
}

fn with_table(position: usize, field: usize, value: &[u8]) -> Refusal {
    patched(|buf| put(buf, table_at(position) + field, value))
}

fn with_section(position: usize, field: usize, value: &[u8]) -> Refusal {
    patched(|buf| {
        let at = section_at(buf, position) + field;
        put(buf, at, value);
    })
}

fn shape_error(position: usize, error: ShapeError) -> Refusal {
    (Table(position), Broken::Shape(error), 0, 0)
}

fn bad_shape(table: &str, error: ShapeError) -> LayoutError {
    LayoutError::Shape { table: table.into(), error }
}

// Buffer and header.

#[test]
fn misaligned_buffers() {
    let valid = sample();
    let mut buf = AlignedBuf::zeroed(valid.len() + 64);
    for excess in 1..64 {
        buf[excess..][..valid.len()].copy_from_slice(&valid);
        assert_eq!(
            parse(&buf[excess..][..valid.len()]),
            Err((Buffer, Rule::Alignment.into(), excess as u64, 64))
        );
    }
    buf[64..].copy_from_slice(&valid);
    assert_eq!(parse(&buf[64..]), Ok(()));
}

#[test]
fn truncated_header() {
    let valid = sample();
    for len in 0..format::HEADER_LEN {
        let expected = (Buffer, Rule::Truncated.into(), len as u64, 64);
        assert_eq!(parse(&valid[..len]), Err(expected));
    }
}

#[test]
fn bytes_cut_off_anywhere() {
    let valid = sample();
    for len in format::HEADER_LEN..valid.len() {
        let expected = (Buffer, Rule::TotalLen.into(), len as u64, valid.len() as u64);
        assert_eq!(parse(&valid[..len]), Err(expected));
    }
}

#[test]
fn bytes_appended() {
    let valid = sample();
    for more in [1, 63, 64, 65, 4096] {
        let mut longer = AlignedBuf::zeroed(valid.len() + more);
        longer[..valid.len()].copy_from_slice(&valid);
        let (declared, actual) = (valid.len() as u64, longer.len() as u64);
        assert_eq!(parse(&longer), Err((Buffer, Rule::TotalLen.into(), actual, declared)));
    }
}

#[test]
fn truncated_directory_whose_header_admits_it() {
    let valid = sample();
    let needed = format::head_len(&valid) as u64;
    for len in format::HEADER_LEN as u64..needed {
        let mut cut = AlignedBuf::from_slice(&valid[..len as usize]);
        put(&mut cut, header::TOTAL_LEN, &len.to_le_bytes());
        assert_eq!(parse(&cut), Err((Buffer, Rule::Truncated.into(), len, needed)));
    }
}

#[test]
fn directory_counts_that_reach_past_the_end() {
    let mut buf = sample();
    put(&mut buf, header::NUM_TABLES, &(MAX_TABLES as u32).to_le_bytes());
    let needed =
        (64 + MAX_TABLES * 128 + NUM_SECTIONS * 32 + NAMES.len()).next_multiple_of(64) as u64;
    assert_eq!(parse(&buf), Err((Buffer, Rule::Truncated.into(), buf.len() as u64, needed)));
}

#[test]
fn wrong_magic() {
    for position in 0..8 {
        assert_eq!(patched(|buf| buf[position] ^= 0x20), broken(Header, Rule::Magic));
    }
}

#[test]
fn unknown_version() {
    for found in [0, 2, 1 << 8, 1 << 24, u32::MAX] {
        assert_eq!(
            with_header(header::VERSION, &found.to_le_bytes()),
            (Header, Rule::Version.into(), found.into(), 1)
        );
    }
}

#[test]
fn unknown_flags() {
    for found in (0..32).map(|bit| 1u32 << bit) {
        assert_eq!(
            with_header(header::FLAGS, &found.to_le_bytes()),
            (Header, Rule::Flags.into(), found.into(), 0)
        );
    }
}

#[test]
fn reserved_header_bytes() {
    for position in header::RESERVED..format::HEADER_LEN {
        let expected = broken(Header, Rule::Reserved);
        assert_eq!(with_header(position, &[1]), expected);
    }
}

#[test]
fn wrong_total_length() {
    let actual = sample().len() as u64;
    for declared in [0, 1, actual - 1, actual + 1, actual + 64, u64::MAX] {
        let expected = (Buffer, Rule::TotalLen.into(), actual, declared);
        assert_eq!(with_header(header::TOTAL_LEN, &declared.to_le_bytes()), expected);
    }
}

#[test]
fn too_many_tables() {
    for found in [MAX_TABLES as u32 + 1, u32::MAX] {
        let mut buf = sample();
        put(&mut buf, header::NUM_TABLES, &found.to_le_bytes());
        let expected = (Header, Rule::NumTables.into(), found.into(), 1 << 16);
        assert_eq!(parse(&buf), Err(expected));
    }
}

#[test]
fn more_sections_than_the_tables_can_have() {
    // Six cores with their scales, two for prefixes, one for an index map, and two for overrides.
    let limit = NUM_TABLES as u64 * 19;
    for found in [limit as u32 + 1, u32::MAX] {
        let mut buf = sample();
        put(&mut buf, header::NUM_SECTIONS, &found.to_le_bytes());
        assert_eq!(parse(&buf), Err((Header, Rule::NumSections.into(), found.into(), limit)));
    }
}

#[test]
fn more_name_bytes_than_the_tables_can_have() {
    let limit = (NUM_TABLES * MAX_NAME_LEN) as u64;
    for found in [limit as u32 + 1, u32::MAX] {
        let mut buf = sample();
        put(&mut buf, header::NAMES_LEN, &found.to_le_bytes());
        assert_eq!(parse(&buf), Err((Header, Rule::NamesLen.into(), found.into(), limit)));
    }
}

#[test]
fn directory_checksum() {
    let valid = sample();
    let stored = format::u32_at(&valid, header::CHECKSUM);
    for position in format::HEADER_LEN..format::head_len(&valid) {
        let mut buf = valid.clone();
        buf[position] ^= 1 << (position % 8);
        let mut sealed = buf.clone();
        assert!(reseal(&mut sealed));
        let computed = format::u32_at(&sealed, header::CHECKSUM);
        assert_eq!(
            parse(&buf),
            Err((Header, Rule::Checksum.into(), computed.into(), stored.into()))
        );
    }
    for bit in 0..32 {
        let mut buf = valid.clone();
        buf[header::CHECKSUM + bit / 8] ^= 1 << (bit % 8);
        let expected = (Header, Rule::Checksum.into(), stored.into(), (stored ^ (1 << bit)).into());
        assert_eq!(parse(&buf), Err(expected));
    }
}

// Names.

#[test]
fn padding_after_the_names() {
    let valid = sample();
    let end = format::names_at(&valid) + NAMES.len();
    assert!(end < format::head_len(&valid));
    for position in end..format::head_len(&valid) {
        let expected = broken(Names, Rule::Reserved);
        assert_eq!(patched(|buf| buf[position] = 1), expected);
    }
}

#[test]
fn empty_name() {
    assert_eq!(
        with_table(TT, table::NAME_LEN, &0u32.to_le_bytes()),
        (Table(TT), Rule::NameLen.into(), 0, 1024)
    );
}

#[test]
fn name_longer_than_the_limit() {
    let names = ["x".repeat(MAX_NAME_LEN), "y".repeat(MAX_NAME_LEN)];
    let mut buf = build(&names.map(|name| dense(&name, 1, 1, Dtype::F32)), 1, Values::Reals);
    assert_eq!(parse(&buf), Ok(()));
    put(&mut buf, table_at(0) + table::NAME_LEN, &(MAX_NAME_LEN as u32 + 1).to_le_bytes());
    assert!(reseal(&mut buf));
    assert_eq!(parse(&buf), Err((Table(0), Rule::NameLen.into(), 1025, 1024)));
}

#[test]
fn name_past_the_end_of_the_names() {
    let start = NAMES.len() as u64 - 7;
    for len in [b"d.tt.i8".len() as u32 + 1, 1024] {
        let expected =
            (Table(TT_I8), Rule::NameEnd.into(), start + u64::from(len), NAMES.len() as u64);
        assert_eq!(with_table(TT_I8, table::NAME_LEN, &len.to_le_bytes()), expected);
    }
    let expected = (Table(TT_I8), Rule::NameLen.into(), u32::MAX.into(), 1024);
    assert_eq!(with_table(TT_I8, table::NAME_LEN, &u32::MAX.to_le_bytes()), expected);
}

#[test]
fn name_that_does_not_start_where_the_one_before_ends() {
    let end = b"a.dense".len() as u32;
    for offset in [0, end - 1, end + 1, u32::MAX] {
        let found = with_table(DENSE_I8, table::NAME_OFFSET, &offset.to_le_bytes());
        assert_eq!(found, (Table(DENSE_I8), Rule::NameOffset.into(), offset.into(), end.into()));
    }
}

#[test]
fn name_that_is_not_utf8() {
    let at = format::names_at(&sample());
    for byte in [0x80, 0xc3, 0xff] {
        assert_eq!(patched(|buf| buf[at + 3] = byte), broken(Table(DENSE), Rule::NameUtf8));
    }
}

#[test]
fn name_bytes_left_over() {
    let shorter = b"d.tt.i".len() as u32;
    let found = with_table(TT_I8, table::NAME_LEN, &shorter.to_le_bytes());
    let len = NAMES.len() as u64;
    assert_eq!(found, (Names, Rule::NamesEnd.into(), len - 1, len));
}

#[test]
fn names_that_do_not_ascend() {
    let at = format::names_at(&sample());
    assert_eq!(patched(|buf| buf[at] = b'c'), broken(Table(DENSE_I8), Rule::NameOrder));
}

#[test]
fn name_that_is_there_twice() {
    let mut buf = build(&["u1", "u2"].map(|name| dense(name, 1, 1, Dtype::F32)), 1, Values::Reals);
    let at = format::names_at(&buf) + 3;
    buf[at] = b'1';
    assert!(reseal(&mut buf));
    assert_eq!(parse(&buf), Err(broken(Table(1), Rule::NameOrder)));
}

// Sections as such.

#[test]
fn reserved_section_bytes() {
    for position in 0..NUM_SECTIONS {
        for byte in section::RESERVED..format::SECTION_LEN {
            let expected = broken(Section(position), Rule::Reserved);
            assert_eq!(with_section(position, byte, &[0x80]), expected);
        }
    }
}

#[test]
fn section_that_does_not_start_where_the_one_before_ends() {
    let valid = sample();
    for position in 0..NUM_SECTIONS {
        let expected = format::Section::read(&valid, position).offset as u64;
        for found in [0, expected - 64, expected + 1, expected + 64, u64::MAX] {
            let error = (Section(position), Rule::Offset.into(), found, expected);
            assert_eq!(with_section(position, section::OFFSET, &found.to_le_bytes()), error);
        }
    }
}

#[test]
fn empty_section() {
    for position in 0..NUM_SECTIONS {
        let expected = broken(Section(position), Rule::Empty);
        assert_eq!(with_section(position, section::LEN, &0u64.to_le_bytes()), expected);
    }
}

#[test]
fn section_past_the_end_of_the_blob() {
    let valid = sample();
    for position in 0..NUM_SECTIONS {
        let rest = (valid.len() - format::Section::read(&valid, position).offset) as u64;
        // The last two overflow: the sum with the offset, and its rounding up.
        for found in [rest + 1, u64::MAX / 2, u64::MAX, u64::MAX - (valid.len() as u64 - rest)] {
            let expected = (Section(position), Rule::End.into(), found, rest);
            assert_eq!(with_section(position, section::LEN, &found.to_le_bytes()), expected);
        }
    }
}

#[test]
fn bytes_after_the_last_section() {
    let valid = sample();
    for more in [1, 64] {
        let mut buf = AlignedBuf::zeroed(valid.len() + more);
        buf[..valid.len()].copy_from_slice(&valid);
        let declared = buf.len() as u64;
        put(&mut buf, header::TOTAL_LEN, &declared.to_le_bytes());
        assert!(reseal(&mut buf));
        let actual = valid.len() as u64;
        assert_eq!(parse(&buf), Err((Buffer, Rule::BlobEnd.into(), actual, declared)));
    }
}

// Sections and the tables that own them.

#[test]
fn table_that_does_not_own_the_next_section() {
    for found in [0, 2, u32::MAX] {
        let expected = (Table(DENSE_I8), Rule::FirstSection.into(), found.into(), 1);
        assert_eq!(with_table(DENSE_I8, table::FIRST_SECTION, &found.to_le_bytes()), expected);
    }
}

#[test]
fn table_that_owns_sections_past_the_last() {
    let count = format::sections_of(&sample(), TT_I8).len() as u32;
    for found in [count + 1, u32::MAX] {
        let end = 7 + u64::from(found);
        let expected = (Table(TT_I8), Rule::LastSection.into(), end, NUM_SECTIONS as u64);
        assert_eq!(with_table(TT_I8, table::NUM_SECTIONS, &found.to_le_bytes()), expected);
    }
}

#[test]
fn section_that_no_table_owns() {
    let count = format::sections_of(&sample(), TT_I8).len() as u32;
    let found = with_table(TT_I8, table::NUM_SECTIONS, &(count - 1).to_le_bytes());
    assert_eq!(found, broken(Section(NUM_SECTIONS - 1), Rule::Owner));
}

/// `sample()` with the border between the sections of tables `position` and `position + 1` moved.
fn border_moved(position: usize, by: i32) -> Refusal {
    patched(|buf| {
        let mut add = |at: usize, by: i32| {
            let value = format::u32_at(buf, at).checked_add_signed(by).unwrap();
            put(buf, at, &value.to_le_bytes());
        };
        add(table_at(position) + table::NUM_SECTIONS, by);
        add(table_at(position + 1) + table::FIRST_SECTION, by);
        add(table_at(position + 1) + table::NUM_SECTIONS, -by);
    })
}

#[test]
fn table_without_sections() {
    assert_eq!(border_moved(DENSE, -1), (Table(DENSE), Rule::MissingSection.into(), 0, 1));
}

#[test]
fn overrides_without_rows() {
    assert_eq!(border_moved(DENSE_I8, -1), (Table(DENSE_I8), Rule::MissingSection.into(), 2, 3));
}

#[test]
fn tensor_train_without_its_last_core() {
    assert_eq!(border_moved(TT, -1), (Table(TT), Rule::MissingSection.into(), 2, 3));
}

#[test]
fn i8_core_without_scales() {
    let mut buf = build(
        &[
            tt("a", TtShape::new(4, &[2, 2], &[2, 2], &[2]).unwrap(), Dtype::I8),
            dense("b", 1, 1, Dtype::F32),
        ],
        1,
        Values::Reals,
    );
    let patches =
        [(0, table::NUM_SECTIONS, 3), (1, table::FIRST_SECTION, 3), (1, table::NUM_SECTIONS, 2u32)];
    for (position, field, value) in patches {
        put(&mut buf, table_at(position) + field, &value.to_le_bytes());
    }
    assert!(reseal(&mut buf));
    assert_eq!(parse(&buf), Err((Table(0), Rule::MissingSection.into(), 3, 4)));
}

#[test]
fn table_with_a_section_after_its_overrides() {
    assert_eq!(border_moved(DENSE_I8, 1), (Table(DENSE_I8), Rule::ExtraSection.into(), 4, 3));
}

#[test]
fn dense_table_with_another_tables_section_instead_of_overrides() {
    let found = border_moved(DENSE, 1);
    assert_eq!(found, (Section(1), Rule::Role.into(), format::ROLE_ROWS.into(), 4));
}

// Table records.

#[test]
fn unknown_index_map() {
    for found in 3..=u8::MAX {
        let expected = (Table(TT), Rule::IndexMap.into(), found.into(), 2);
        assert_eq!(with_table(TT, table::INDEX_MAP, &[found]), expected);
    }
}

#[test]
fn unknown_layout() {
    for found in 1..=u8::MAX {
        let expected = (Table(DENSE), Rule::Layout.into(), found.into(), 0);
        assert_eq!(with_table(DENSE, table::LAYOUT, &[found]), expected);
    }
}

#[test]
fn unknown_kind() {
    for found in [0, 6, 0x0101, u16::MAX] {
        let expected = (Table(TT_I8), Rule::Kind.into(), found.into(), 5);
        assert_eq!(with_table(TT_I8, table::KIND, &found.to_le_bytes()), expected);
    }
    let mut buf = sample();
    put(&mut buf, table_at(TT_I8) + table::KIND, &6u16.to_le_bytes());
    assert!(reseal(&mut buf));
    let message = Blob::parse(&buf).unwrap_err().to_string();
    assert!(message.contains("a newer ttrec may have written this blob"), "{message}");
}

#[test]
fn unknown_orders_of_digits() {
    for (at, rule) in
        [(table::DIGIT_ORDER, Rule::DigitOrder), (table::COLUMN_ORDER, Rule::ColumnOrder)]
    {
        for found in 2..=u8::MAX {
            let expected = (Table(TT), rule.into(), found.into(), 1);
            assert_eq!(with_table(TT, at, &[found]), expected);
        }
    }
}

#[test]
fn reserved_table_bytes() {
    for position in 0..NUM_TABLES {
        let bytes = table::RESERVED_TAIL..format::TABLE_LEN;
        assert_eq!(bytes.len(), 16);
        for byte in bytes {
            assert_eq!(with_table(position, byte, &[1]), broken(Table(position), Rule::Reserved));
        }
    }
}

#[test]
fn dense_table_with_a_tensor_train_shape() {
    let fields = [table::NUM_CORES, table::DIGIT_ORDER, table::COMBINE, table::COLUMN_ORDER];
    let fields = fields.into_iter().chain(table::ROW_FACTORS..table::NUM_ROWS);
    for byte in fields {
        let expected = broken(Table(DENSE), Rule::Reserved);
        assert_eq!(with_table(DENSE, byte, &[1]), expected);
    }
}

#[test]
fn impossible_row_count() {
    for found in [0, (1 << 40) + 1, u64::MAX] {
        for position in 0..NUM_TABLES {
            let expected = shape_error(position, ShapeError::NumEmbeddings { found });
            assert_eq!(with_table(position, table::NUM_EMBEDDINGS, &found.to_le_bytes()), expected);
        }
    }
}

#[test]
fn impossible_column_count() {
    for found in [0, (1 << 16) + 1, u32::MAX] {
        let expected = shape_error(DENSE, ShapeError::EmbeddingDim { found: found.into() });
        assert_eq!(with_table(DENSE, table::EMBEDDING_DIM, &found.to_le_bytes()), expected);
    }
}

#[test]
fn column_count_that_is_not_the_product_of_the_column_factors() {
    for found in [0, 11, 13, u32::MAX] {
        let expected = shape_error(TT, ShapeError::EmbeddingDim { found: found.into() });
        assert_eq!(with_table(TT, table::EMBEDDING_DIM, &found.to_le_bytes()), expected);
    }
}

#[test]
fn impossible_core_count() {
    for found in [0, 1, 7, u8::MAX] {
        let error = patched(|buf| {
            let at = table_at(TT);
            buf[at + table::NUM_CORES] = found;
            if found < 2 {
                // No list entries past the cores, so that the count itself is the fault.
                let used = usize::from(found);
                buf[at + table::ROW_FACTORS + 4 * used..at + table::COLUMN_FACTORS].fill(0);
                buf[at + table::COLUMN_FACTORS + 4 * used..at + table::INNER_RANKS].fill(0);
                buf[at + table::INNER_RANKS..at + table::RESERVED_TAIL].fill(0);
            }
        });
        assert_eq!(error, shape_error(TT, ShapeError::CoreCount { found: found.into() }));
    }
}

#[test]
fn list_entries_past_the_cores() {
    let entries =
        [(table::ROW_FACTORS, 3..6), (table::COLUMN_FACTORS, 3..6), (table::INNER_RANKS, 2..5)];
    for (list, unused) in entries {
        for entry in unused {
            let expected = broken(Table(TT), Rule::Reserved);
            assert_eq!(with_table(TT, list + 4 * entry, &1u32.to_le_bytes()), expected);
        }
    }
    let expected = broken(Table(TT), Rule::Reserved);
    assert_eq!(with_table(TT, table::NUM_CORES, &[2]), expected, "a core too few");
}

#[test]
fn impossible_factors_and_ranks() {
    let lists = [
        (table::ROW_FACTORS, 3, "row factor", (1 << 31) - 1),
        (table::COLUMN_FACTORS, 3, "column factor", 1 << 16),
        (table::INNER_RANKS, 2, "rank", 1 << 16),
    ];
    for (list, len, what, limit) in lists {
        for position in 0..len {
            for found in [0, limit as u32 + 1, u32::MAX] {
                let error = ShapeError::Factor { what, position, found: found.into(), limit };
                let found = with_table(TT, list + 4 * position, &found.to_le_bytes());
                assert_eq!(found, shape_error(TT, error));
            }
        }
    }
}

#[test]
fn row_factors_that_hold_too_few_rows_or_far_too_many() {
    let error = |product, num_embeddings| {
        shape_error(TT, ShapeError::RowFactors { product, num_embeddings })
    };
    assert_eq!(with_table(TT, table::NUM_EMBEDDINGS, &25u64.to_le_bytes()), error(24, 25));
    assert_eq!(with_table(TT, table::ROW_FACTORS, &1u32.to_le_bytes()), error(12, 23));
    let wide = |factors: [u32; 3]| {
        let factors = factors.map(u32::to_le_bytes).concat();
        with_table(TT, table::ROW_FACTORS, &factors)
    };
    assert_eq!(wide([1 << 24, 1 << 24, 2]), error(1 << 49, 23));
    assert_eq!(wide([i32::MAX as u32; 3]), error(u64::MAX, 23));
}

#[test]
fn shape_that_does_not_fit_the_address_space() {
    let found = patched(|buf| {
        let at = table_at(TT);
        put(buf, at + table::ROW_FACTORS, &[1u32 << 16, 1 << 30, 1].map(u32::to_le_bytes).concat());
        put(buf, at + table::COLUMN_FACTORS, &[1u32, 1 << 16, 1].map(u32::to_le_bytes).concat());
        put(buf, at + table::INNER_RANKS, &[1u32 << 16, 1 << 16].map(u32::to_le_bytes).concat());
    });
    assert_eq!(found, shape_error(TT, ShapeError::TooLarge));
}

// Sections against the shape.

/// Position of the first section of a table of `sample()` with this role.
fn section_of(position: usize, role: u16) -> usize {
    format::sections_of(&sample(), position)
        .iter()
        .find(|s| s.role == role)
        .unwrap()
        .position
}

#[test]
fn section_with_another_role_than_its_place_needs() {
    let valid = sample();
    for position in 0..NUM_SECTIONS {
        let role = format::Section::read(&valid, position).role;
        for found in [0, 1, 2, 3, 4, 5, 6, 0x0100 | role, u16::MAX] {
            if found != role {
                let expected = (Section(position), Rule::Role.into(), found.into(), role.into());
                assert_eq!(with_section(position, section::ROLE, &found.to_le_bytes()), expected);
            }
        }
    }
}

#[test]
fn section_of_another_core_than_its_place_needs() {
    let valid = sample();
    for position in 0..NUM_SECTIONS {
        let core = format::Section::read(&valid, position).core;
        for found in [core ^ 1, 6, 255] {
            let expected = (Section(position), Rule::Core.into(), found.into(), core.into());
            assert_eq!(with_section(position, section::CORE, &[found]), expected);
        }
    }
}

#[test]
fn unknown_dtype() {
    let valid = sample();
    for position in 0..NUM_SECTIONS {
        let role = format::Section::read(&valid, position).role;
        for found in [0, 6, 0x3f, 0x41, 0xff] {
            let expected = (Section(position), Rule::Dtype.into(), found.into(), role.into());
            assert_eq!(with_section(position, section::DTYPE, &[found]), expected);
        }
        if role != format::ROLE_OVERRIDE_IDS {
            let expected = (Section(position), Rule::Dtype.into(), 0x40, role.into());
            assert_eq!(with_section(position, section::DTYPE, &[format::DTYPE_U64]), expected);
        }
    }
}

#[test]
fn override_ids_that_are_no_ids() {
    let position = section_of(DENSE_I8, format::ROLE_OVERRIDE_IDS);
    for found in 1..=5 {
        let expected = (Section(position), Rule::Dtype.into(), found.into(), 4);
        assert_eq!(with_section(position, section::DTYPE, &[found]), expected);
    }
}

#[test]
fn cores_that_are_i4() {
    let valid = sample();
    let cores = [TT, TT_I8]
        .into_iter()
        .flat_map(|position| format::sections_of(&valid, position));
    let cores: Vec<_> = cores.filter(|s| s.role == format::ROLE_CORE).collect();
    assert_eq!(cores.len(), 5);
    for core in cores {
        let expected = (Section(core.position), Rule::Dtype.into(), 5, 2);
        assert_eq!(with_section(core.position, section::DTYPE, &[format::DTYPE_I4]), expected);
    }
}

#[test]
fn scales_that_are_not_f32() {
    let position = section_of(TT_I8, format::ROLE_SCALES);
    for dtype in [format::DTYPE_F16, format::DTYPE_BF16, format::DTYPE_I8, format::DTYPE_I4] {
        // With the length that this dtype would need, so that the dtype is the only fault.
        let size = format::bytes_of(dtype, 1);
        let found = patched(|buf| {
            let at = section_at(buf, position);
            buf[at + section::DTYPE] = dtype;
            put(buf, at + section::LEN, &(6 * size as u64).to_le_bytes());
        });
        assert_eq!(found, (Section(position), Rule::Dtype.into(), dtype.into(), 3));
    }
}

#[test]
fn section_lengths_that_the_shape_does_not_need() {
    let valid = sample();
    for position in 0..NUM_SECTIONS {
        let format::Section { len, role, .. } = format::Section::read(&valid, position);
        if role == format::ROLE_OVERRIDE_IDS {
            continue; // any count will do: `override_ids_*` below
        }
        // Other lengths that end in the same 64 bytes, so that the sections after it stay where
        // they are.
        let others = (len - 1) / 64 * 64 + 1..=len.next_multiple_of(64);
        assert_eq!(others.clone().count(), 64);
        for found in others.filter(|&other| other != len) {
            let (found, expected) = (found as u64, len as u64);
            let error = (Section(position), Rule::Len.into(), found, expected);
            assert_eq!(with_section(position, section::LEN, &found.to_le_bytes()), error);
        }
    }
}

#[test]
fn dtype_whose_elements_do_not_fill_the_section() {
    let expected = (Section(0), Rule::Len.into(), 6 * 5 * 4, 6 * 5 * 2);
    assert_eq!(with_section(0, section::DTYPE, &[format::DTYPE_F16]), expected);
    let expected = (Section(0), Rule::Len.into(), 6 * 5 * 4, 6 * (8 + 5));
    assert_eq!(with_section(0, section::DTYPE, &[format::DTYPE_I8]), expected);
    // Five half-bytes take three bytes.
    let expected = (Section(0), Rule::Len.into(), 6 * 5 * 4, 6 * (4 + 3));
    assert_eq!(with_section(0, section::DTYPE, &[format::DTYPE_I4]), expected);
}

#[test]
fn row_count_that_the_rows_do_not_fill() {
    let expected = (Section(0), Rule::Len.into(), 120, 140);
    assert_eq!(with_table(DENSE, table::NUM_EMBEDDINGS, &7u64.to_le_bytes()), expected);
}

#[test]
fn override_ids_of_which_one_is_cut() {
    let position = section_of(DENSE_I8, format::ROLE_OVERRIDE_IDS);
    for found in [1u64, 7, 9, 23, 25] {
        let expected = (Section(position), Rule::Len.into(), found, found / 8 * 8);
        assert_eq!(with_section(position, section::LEN, &found.to_le_bytes()), expected);
    }
}

#[test]
fn more_override_ids_than_rows() {
    let mut buf =
        build(&[overridden(dense("a", 3, 4, Dtype::F32), 3, Dtype::F32)], 1, Values::Reals);
    let at = section_at(&buf, 1);
    put(&mut buf, at + section::LEN, &32u64.to_le_bytes());
    assert!(reseal(&mut buf));
    assert_eq!(parse(&buf), Err((Section(1), Rule::Len.into(), 32, 24)));
}

#[test]
fn override_ids_that_are_not_as_many_as_the_rows() {
    let position = section_of(DENSE_I8, format::ROLE_OVERRIDE_IDS);
    for ids in [1u64, 2, 4, 8] {
        let (found, expected) = (3 * (8 + 4), ids * (8 + 4));
        let error = (Section(position + 1), Rule::Len.into(), found, expected);
        assert_eq!(with_section(position, section::LEN, &(ids * 8).to_le_bytes()), error);
    }
}

// What a valid blob is asked for.

#[test]
fn no_such_table() {
    let buf = sample();
    let blob = Blob::parse(&buf).unwrap();
    for name in ["", "a", "a.dens", "a.dense\0", "A.DENSE", "e", "a.denseb.dense.i8"] {
        assert_eq!(blob.table(name).map(|_| ()), Err(NoSuchTable), "{name:?}");
    }
    assert!(blob.table("a.dense").is_ok());
}

#[test]
fn a_blob_without_tables_is_valid_and_has_none() {
    let buf = Layout::new(&[]).unwrap().build(|_, _| unreachable!());
    let blob = Blob::parse(&buf).unwrap();
    assert_eq!((buf.len(), blob.num_tables(), blob.tables().count()), (64, 0, 0));
    assert_eq!(blob.verify_payload(), Ok(()));
}

// The payload, which parsing leaves alone.

#[test]
fn payload_checksum() {
    let valid = sample();
    for position in 0..NUM_TABLES {
        for owned in format::sections_of(&valid, position) {
            // Padding is under the checksum too.
            for at in owned.padded_range() {
                let mut buf = valid.clone();
                buf[at] ^= 1 << (at % 8);
                let blob = Blob::parse(&buf).unwrap();
                let expected = Err(bad_checksum(&buf, owned.position));
                let verify = |table| refusal(blob.tables().nth(table).unwrap().verify());
                assert_eq!(refusal(blob.verify_payload()), expected);
                assert_eq!(verify(position), expected);
                assert_eq!(verify((position + 1) % NUM_TABLES), Ok(()));
            }
        }
    }
}

/// `sample()` with `value` at byte `at` of section `position`, checksums and all.
fn with_payload(position: usize, at: usize, value: &[u8]) -> Result<(), Refusal> {
    let mut buf = sample();
    let start = format::Section::read(&buf, position).offset;
    put(&mut buf, start + at, value);
    reseal_section(&mut buf, position);
    verify(&buf)
}

const BAD_SCALES: [f32; 8] =
    [0.0, -0.0, -1.0, -f32::MIN_POSITIVE, f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY];

#[test]
fn scale_of_a_slice() {
    for (role_index, slices) in [(0, 6), (1, 5)] {
        let scales: Vec<_> = format::sections_of(&sample(), TT_I8)
            .into_iter()
            .filter(|s| s.role == format::ROLE_SCALES)
            .collect();
        let section = scales[role_index].position;
        for slice in 0..slices {
            for scale in BAD_SCALES {
                let expected = broken(Element { section, position: slice as u64 }, Rule::Scale);
                assert_eq!(
                    with_payload(section, 4 * slice, &scale.to_le_bytes()),
                    Err(expected),
                    "{scale}"
                );
            }
            assert_eq!(with_payload(section, 4 * slice, &f32::MIN_POSITIVE.to_le_bytes()), Ok(()));
        }
    }
}

#[test]
fn scale_or_offset_of_a_dense_or_override_row() {
    for (role, rows) in [(format::ROLE_ROWS, 9), (format::ROLE_OVERRIDE_ROWS, 3)] {
        let section = section_of(DENSE_I8, role);
        for row in 0..rows {
            let at = row * (8 + 4);
            let expected = broken(Element { section, position: row as u64 }, Rule::Scale);
            for scale in BAD_SCALES {
                assert_eq!(
                    with_payload(section, at, &scale.to_le_bytes()),
                    Err(expected),
                    "scale {scale}"
                );
            }
            for offset in BAD_SCALES {
                let found = with_payload(section, at + 4, &offset.to_le_bytes());
                assert_eq!(
                    found,
                    if offset.is_finite() { Ok(()) } else { Err(expected) },
                    "offset {offset}"
                );
            }
        }
    }
}

#[test]
fn scale_or_offset_of_an_i4_row() {
    // 1.0, the least f16 above zero, and the largest finite one, with either sign.
    let good = [0x3c00u16, 0x0001, 0x7bff];
    let bad = [0x0000u16, 0x8000, 0x8001, 0xbc00, 0x7c00, 0xfc00, 0x7c01, 0x7e00, 0xfe00];
    for dim in [4, 5] {
        let row_len = format::row_len(format::DTYPE_I4, dim);
        let table = overridden(dense("a", 6, dim, Dtype::I4), 3, Dtype::I4);
        let valid = build(&[table], 1, Values::Reals);
        for (section, rows) in [(0, 6), (2, 3)] {
            let verify = |at: usize, value: u16| {
                let mut buf = valid.clone();
                let start = format::Section::read(&buf, section).offset;
                put(&mut buf, start + at, &value.to_le_bytes());
                reseal_section(&mut buf, section);
                self::verify(&buf)
            };
            for row in 0..rows {
                let expected = Err(broken(Element { section, position: row as u64 }, Rule::Scale));
                for scale in bad {
                    assert_eq!(verify(row * row_len, scale), expected, "scale {scale:#x}");
                }
                for value in good {
                    assert_eq!(verify(row * row_len, value), Ok(()), "scale {value:#x}");
                    assert_eq!(verify(row * row_len + 2, value), Ok(()), "offset {value:#x}");
                    assert_eq!(
                        verify(row * row_len + 2, value | 0x8000),
                        Ok(()),
                        "offset -{value:#x}"
                    );
                }
                for offset in bad.into_iter().filter(|offset| offset & 0x7c00 == 0x7c00) {
                    assert_eq!(verify(row * row_len + 2, offset), expected, "offset {offset:#x}");
                }
            }
        }
    }
}

/// `sample()` with these override ids (of a table of nine rows).
fn with_ids(ids: [u64; 3]) -> Result<(), Refusal> {
    with_payload(
        section_of(DENSE_I8, format::ROLE_OVERRIDE_IDS),
        0,
        &ids.map(u64::to_le_bytes).concat(),
    )
}

/// The refusal of one of these ids.
fn bad_id(position: u64, id: u64) -> Result<(), Refusal> {
    let section = section_of(DENSE_I8, format::ROLE_OVERRIDE_IDS);
    Err((Element { section, position }, Rule::Ids.into(), id, 9))
}

#[test]
fn override_ids_that_descend() {
    assert_eq!(with_ids([5, 3, 8]), bad_id(1, 3));
    assert_eq!(with_ids([1, 8, 7]), bad_id(2, 7));
    assert_eq!(with_ids([0, 7, 8]), Ok(()));
}

#[test]
fn override_ids_that_are_there_twice() {
    assert_eq!(with_ids([0, 0, 1]), bad_id(1, 0));
    assert_eq!(with_ids([2, 4, 4]), bad_id(2, 4));
}

#[test]
fn override_ids_of_rows_that_do_not_exist() {
    for bad in [9, 1 << 32, u64::MAX] {
        assert_eq!(with_ids([0, 1, bad]), bad_id(2, bad));
        assert_eq!(with_ids([bad, 1, 2]), bad_id(0, bad));
    }
}

/// One tensor train in seven sections: cores 0 to 2 (f32), 3 and 4 products of two of its six
/// prefixes, 5 and 6 overrides.
fn with_prefixes() -> AlignedBuf {
    let shape = TtShape::new(23, &[2, 3, 4], &[2, 3, 2], &[5, 3]).unwrap();
    let table =
        overridden(TableSpec { num_prefixes: 2, ..tt("a", shape, Dtype::F32) }, 3, Dtype::F32);
    let buf = build(&[table], 7, Values::Reals);
    let roles = format::sections_of(&buf, 0)
        .into_iter()
        .map(|section| section.role)
        .collect::<Vec<_>>();
    assert_eq!(roles[3..], [format::ROLE_PREFIX_IDS, format::ROLE_PREFIX_PRODUCTS, 4, 5]);
    Blob::parse(&buf).unwrap().verify_payload().unwrap();
    buf
}

/// Patches, reseals and parses `with_prefixes()`.
fn patched_prefixes(position: usize, field: usize, value: &[u8]) -> Refusal {
    let mut buf = with_prefixes();
    let at = section_at(&buf, position);
    put(&mut buf, at + field, value);
    assert!(reseal(&mut buf));
    parse(&buf).unwrap_err()
}

#[test]
fn prefix_ids_that_are_no_ids_or_too_many_or_cut() {
    for found in 1..=5 {
        let expected = (Section(3), Rule::Dtype.into(), found.into(), 6);
        assert_eq!(patched_prefixes(3, section::DTYPE, &[found]), expected);
    }
    for (found, expected) in [(15u64, 8), (17, 16), (56, 48)] {
        let expected = (Section(3), Rule::Len.into(), found, expected);
        assert_eq!(patched_prefixes(3, section::LEN, &found.to_le_bytes()), expected);
    }
}

#[test]
fn prefix_products_that_are_not_f32_or_not_as_many_as_the_ids() {
    // Six rows of three: 72 bytes each.
    let expected = (Section(4), Rule::Len.into(), 144, 72);
    assert_eq!(patched_prefixes(3, section::LEN, &8u64.to_le_bytes()), expected);
    let mut buf = with_prefixes();
    let at = section_at(&buf, 4);
    buf[at + section::DTYPE] = format::DTYPE_F16;
    put(&mut buf, at + section::LEN, &72u64.to_le_bytes());
    // The sections after it would have to move: the dtype is what is wrong first.
    assert!(reseal(&mut buf));
    assert!(matches!(
        parse(&buf),
        Err((Section(5), Broken::Rule(Rule::Offset), ..)
            | (Section(4), Broken::Rule(Rule::Dtype), ..))
    ));
}

#[test]
fn prefix_ids_without_products_or_in_another_place() {
    let role = |section, found: u16| patched_prefixes(section, section::ROLE, &found.to_le_bytes());
    assert_eq!(role(4, 5), (Section(4), Rule::Role.into(), 5, 7));
    assert_eq!(role(5, 6), (Section(5), Rule::Role.into(), 6, 4));
    // Not what may come next: overrides are then expected.
    assert_eq!(patched_prefixes(3, section::CORE, &[1]), (Section(3), Rule::Role.into(), 6, 4));
}

#[test]
fn prefix_ids_that_descend_are_there_twice_or_do_not_exist() {
    for (ids, position) in [([3u64, 2], 1), ([2, 2], 1), ([0, 6], 1), ([u64::MAX, 1], 0usize)] {
        let mut buf = with_prefixes();
        let at = format::Section::read(&buf, 3).offset;
        put(&mut buf, at, &ids.map(u64::to_le_bytes).concat());
        format::reseal_section(&mut buf, 3);
        let place = Element { section: 3, position: position as u64 };
        assert_eq!(verify(&buf), Err((place, Rule::Ids.into(), ids[position], 6)), "{ids:?}");
    }
}

/// Sections of `with_indices()`: cores 0 and 1, 2 prefix ids, 3 their index, 4 products, 5 override
/// ids, 6 their index, 7 rows.
const PREFIX_INDEX: usize = 3;
const OVERRIDE_INDEX: usize = 6;

/// One tensor train with so many prefixes and overrides that their ids have an index.
fn with_indices() -> AlignedBuf {
    let shape = TtShape::new(2000, &[400, 5], &[2, 8], &[4]).unwrap();
    let table =
        overridden(TableSpec { num_prefixes: 300, ..tt("a", shape, Dtype::F32) }, 256, Dtype::F32);
    let buf = build(&[table], 7, Values::Reals);
    let sections = format::sections_of(&buf, 0);
    let found = [PREFIX_INDEX, OVERRIDE_INDEX].map(|at| (sections[at].role, sections[at].len));
    // Two runs for 400 prefixes, six for 2,000 rows.
    assert_eq!(found, [(format::ROLE_PREFIX_INDEX, 128), (format::ROLE_OVERRIDE_INDEX, 384)]);
    Blob::parse(&buf).unwrap().verify_payload().unwrap();
    buf
}

#[test]
fn indices_of_another_dtype_length_or_place() {
    let patched = |position: usize, field: usize, value: &[u8]| {
        let mut buf = with_indices();
        let at = section_at(&buf, position);
        put(&mut buf, at + field, value);
        assert!(reseal(&mut buf));
        parse(&buf).unwrap_err()
    };
    for (section, role, len) in [
        (PREFIX_INDEX, format::ROLE_PREFIX_INDEX, 128u64),
        (OVERRIDE_INDEX, format::ROLE_OVERRIDE_INDEX, 384),
    ] {
        for found in 1..=5 {
            let expected = (Section(section), Rule::Dtype.into(), found.into(), role.into());
            assert_eq!(patched(section, section::DTYPE, &[found]), expected);
        }
        for found in [len - 1, len - 63] {
            let expected = (Section(section), Rule::Len.into(), found, len);
            assert_eq!(patched(section, section::LEN, &found.to_le_bytes()), expected);
        }
    }
    // Each where the other belongs: products or rows are then expected.
    for (section, role, needed) in [
        (PREFIX_INDEX, format::ROLE_OVERRIDE_INDEX, format::ROLE_PREFIX_PRODUCTS),
        (OVERRIDE_INDEX, format::ROLE_PREFIX_INDEX, format::ROLE_OVERRIDE_ROWS),
    ] {
        let expected = (Section(section), Rule::Role.into(), role.into(), needed.into());
        assert_eq!(patched(section, section::ROLE, &role.to_le_bytes()), expected);
    }
}

#[test]
fn indices_that_have_an_id_elsewhere_or_not_at_all() {
    for (section, byte) in
        [(PREFIX_INDEX, 0), (PREFIX_INDEX, 64), (OVERRIDE_INDEX, 4), (OVERRIDE_INDEX, 3 * 64 + 20)]
    {
        for value in [0xff, 0x55] {
            let mut buf = with_indices();
            let at = format::Section::read(&buf, section).offset + byte;
            buf[at] ^= value;
            reseal_section(&mut buf, section);
            let blob = Blob::parse(&buf).unwrap();
            let found = blob.verify_payload().unwrap_err();
            let ids = section - 1;
            assert_eq!(found.rule(), Rule::IdIndex);
            assert!(
                matches!(found.location(), Element { section, .. } if section == ids),
                "{found:?}"
            );
            // A lookup may get a wrong row, but gets one.
            let table = blob.table("a").unwrap();
            let (mut row, mut workspace) = ([0.0; 16], vec![0.0; table.workspace_len(1)]);
            (0..2000).for_each(|id| table.lookup(id, &mut row, &mut workspace).unwrap());
        }
    }
}

// Projected and quotient-remainder tables, and index maps.

fn with_map(index_map: IndexMapSpec, table: TableSpec) -> TableSpec {
    TableSpec { index_map, ..table }
}

fn projected(
    num_embeddings: u64,
    [rank, embedding_dim]: [usize; 2],
    projection: Dtype,
) -> WeightsSpec {
    WeightsSpec::Projected { num_embeddings, embedding_dim, rank, dtype: Dtype::I8, projection }
}

fn parts(
    num_embeddings: u64,
    num_remainders: u32,
    columns: [usize; 2],
    combine: Combine,
) -> WeightsSpec {
    WeightsSpec::QuotientRemainder {
        num_embeddings,
        num_remainders,
        columns,
        combine,
        dtype: Dtype::I8,
    }
}

// Positions in `newer()`.
const HASHED: usize = 0;
const PROJECTED: usize = 1;
const PARTS: usize = 2;
const CONCAT: usize = 3;
const REMAPPED: usize = 4;

/// `a`: 0 rows, hashed; `b`: 1 rows of 3 columns (i8), 2 projection to 4 (f16); `c`: 3 and 4 parts,
/// 4 x 5 and 3 x 5, to be multiplied (i8); `d`: 5 and 6 parts, 2 x 2 and 5 x 3, end to end; `e`: 7
/// rows, 8 the row of each of 6 indices.
fn newer() -> AlignedBuf {
    let tables = [
        with_map(IndexMapSpec::Modulo { num_embeddings: 9 }, dense("a", 4, 5, Dtype::F32)),
        TableSpec::new("b", projected(6, [3, 4], Dtype::F16)),
        TableSpec::new("c", parts(11, 3, [5, 5], Combine::Mult)),
        TableSpec::new("d", parts(10, 5, [2, 3], Combine::Concat)),
        with_map(remapped(6, RowNumberDtype::U32), dense("e", 4, 2, Dtype::F32)),
    ];
    let buf = build(&tables, 7, Values::Reals);
    assert_eq!(format::num_sections(&buf), 9);
    Blob::parse(&buf).unwrap().verify_payload().unwrap();
    buf
}

/// Patches, reseals and parses `newer()`.
fn newer_patched(patch: impl FnOnce(&mut AlignedBuf)) -> Refusal {
    let mut buf = newer();
    patch(&mut buf);
    assert!(reseal(&mut buf));
    parse(&buf).unwrap_err()
}

fn newer_table(position: usize, field: usize, value: &[u8]) -> Refusal {
    newer_patched(|buf| put(buf, table_at(position) + field, value))
}

fn newer_section(position: usize, field: usize, value: &[u8]) -> Refusal {
    newer_patched(|buf| {
        let at = section_at(buf, position) + field;
        put(buf, at, value);
    })
}

#[test]
fn stored_rows_of_mapped_tables_that_are_none_or_more_than_indices() {
    for (table, num_embeddings) in [(HASHED, 9), (REMAPPED, 6)] {
        for found in [0, num_embeddings + 1, u64::MAX] {
            let expected = (Table(table), Rule::NumRows.into(), found, num_embeddings);
            assert_eq!(newer_table(table, table::NUM_ROWS, &found.to_le_bytes()), expected);
        }
        // Another number is one, but not that of the rows that are there.
        let found = newer_table(table, table::NUM_ROWS, &3u64.to_le_bytes());
        assert!(matches!(found, (Section(_), Broken::Rule(Rule::Len), ..)), "{found:?}");
    }
}

#[test]
fn stored_rows_of_tables_without_a_map() {
    for (table, num_embeddings) in [(PROJECTED, 6u64), (PARTS, 11)] {
        let expected = (Table(table), Rule::NumRowsUnmapped.into(), num_embeddings, 0);
        assert_eq!(newer_table(table, table::NUM_ROWS, &num_embeddings.to_le_bytes()), expected);
    }
    let expected = (Table(REMAPPED), Rule::NumRowsUnmapped.into(), 4, 0);
    assert_eq!(newer_table(REMAPPED, table::INDEX_MAP, &[0]), expected);
}

#[test]
fn row_numbers_that_are_missing_in_excess_or_not_u32() {
    // A map that has none, on a table that brings them, and the other way round.
    assert_eq!(
        newer_table(REMAPPED, table::INDEX_MAP, &[1]),
        (Section(8), Rule::Role.into(), 9, 4)
    );
    assert_eq!(
        newer_table(HASHED, table::INDEX_MAP, &[2]),
        (Table(HASHED), Rule::MissingSection.into(), 1, 2)
    );
    for found in [format::DTYPE_F32, format::DTYPE_U64, 0] {
        let expected = (Section(8), Rule::Dtype.into(), found.into(), 9);
        assert_eq!(newer_section(8, section::DTYPE, &[found]), expected);
    }
    for found in [20u64, 23, 28] {
        let expected = (Section(8), Rule::Len.into(), found, 24);
        assert_eq!(newer_section(8, section::LEN, &found.to_le_bytes()), expected);
    }
    // u8, u16 and u24 instead of u32.
    for (dtype, len) in [(0x42, 6), (0x44, 12), (0x45, 18)] {
        let expected = (Section(8), Rule::Len.into(), 24, len);
        assert_eq!(newer_section(8, section::DTYPE, &[dtype]), expected);
    }
}

#[test]
fn rows_of_remapped_indices_that_do_not_exist() {
    for (bad, position) in [(4u32, 0), (u32::MAX, 5)] {
        let mut buf = newer();
        let at = format::Section::read(&buf, 8).offset + 4 * position;
        put(&mut buf, at, &bad.to_le_bytes());
        reseal_section(&mut buf, 8);
        let place = Element { section: 8, position: position as u64 };
        assert_eq!(verify(&buf), Err((place, Rule::RemappedRow.into(), bad.into(), 4)));
    }
}

#[test]
fn shape_fields_that_projected_tables_do_not_have() {
    let expected = broken(Table(PROJECTED), Rule::Reserved);
    for (field, value) in [
        (table::NUM_CORES, &[2][..]),
        (table::DIGIT_ORDER, &[1]),
        (table::COMBINE, &[1]),
        (table::COLUMN_ORDER, &[1]),
        (table::ROW_FACTORS, &[1]),
        (table::COLUMN_FACTORS + 4, &[1]),
        (table::INNER_RANKS, &[1]),
        (table::RESERVED_TAIL, &[1]),
    ] {
        assert_eq!(newer_table(PROJECTED, field, value), expected, "{field}");
    }
}

#[test]
fn ranks_that_are_no_number_of_columns_or_not_those_of_the_rows() {
    for found in [0u32, 65_537, u32::MAX] {
        let expected = shape_error(PROJECTED, ShapeError::EmbeddingDim { found: found.into() });
        assert_eq!(newer_table(PROJECTED, table::COLUMN_FACTORS, &found.to_le_bytes()), expected);
    }
    let expected = (Section(1), Rule::Len.into(), 6 * 11, 6 * 12);
    assert_eq!(newer_table(PROJECTED, table::COLUMN_FACTORS, &4u32.to_le_bytes()), expected);
}

#[test]
fn projections_that_are_missing_of_another_size_or_have_scales() {
    assert_eq!(newer_section(2, section::ROLE, &[1]), (Section(2), Rule::Role.into(), 1, 8));
    for found in [format::DTYPE_I8, format::DTYPE_I4, format::DTYPE_U64, 9] {
        let expected = (Section(2), Rule::Dtype.into(), found.into(), 8);
        assert_eq!(newer_section(2, section::DTYPE, &[found]), expected);
    }
    let expected = (Section(2), Rule::Len.into(), 22, 24);
    assert_eq!(newer_section(2, section::LEN, &22u64.to_le_bytes()), expected);
}

#[test]
fn unknown_combinations_and_shape_fields_that_quotient_remainder_tables_do_not_have() {
    for found in [0, 4, 255] {
        let expected = (Table(PARTS), Rule::Combine.into(), found.into(), 3);
        assert_eq!(newer_table(PARTS, table::COMBINE, &[found]), expected);
    }
    let expected = broken(Table(PARTS), Rule::Reserved);
    for (field, value) in [
        (table::NUM_CORES, &[2][..]),
        (table::DIGIT_ORDER, &[1]),
        (table::COLUMN_ORDER, &[1]),
        (table::ROW_FACTORS + 8, &[1]),
        (table::COLUMN_FACTORS + 8, &[1]),
        (table::INNER_RANKS, &[1]),
        (table::RESERVED_TAIL, &[1]),
    ] {
        assert_eq!(newer_table(PARTS, field, value), expected, "{field}");
    }
}

#[test]
fn parts_that_do_not_make_the_rows_of_the_table() {
    let wrong =
        |table, rows, columns| shape_error(table, ShapeError::QuotientRemainder { rows, columns });
    // Rows: 11 of 3 remainders need 4 quotients.
    let factor = |n: u32| n.to_le_bytes();
    for bad in [3, 5, 0] {
        assert_eq!(
            newer_table(PARTS, table::ROW_FACTORS, &factor(bad)),
            wrong(PARTS, [bad, 3], [5, 5])
        );
    }
    assert_eq!(
        newer_table(PARTS, table::ROW_FACTORS + 4, &factor(4)),
        wrong(PARTS, [4, 4], [5, 5])
    );
    for found in [0u32, 1 << 31] {
        let (what, limit) = ("row factor", i32::MAX as u64);
        let expected = ShapeError::Factor { what, position: 1, found: found.into(), limit };
        assert_eq!(
            newer_table(PARTS, table::ROW_FACTORS + 4, &factor(found)),
            shape_error(PARTS, expected)
        );
    }
    // Columns: both have all of them, or all of them in sum.
    assert_eq!(newer_table(PARTS, table::COLUMN_FACTORS, &factor(4)), wrong(PARTS, [4, 3], [4, 5]));
    assert_eq!(newer_table(PARTS, table::EMBEDDING_DIM, &factor(6)), wrong(PARTS, [4, 3], [5, 5]));
    assert_eq!(
        newer_table(CONCAT, table::COLUMN_FACTORS, &factor(3)),
        wrong(CONCAT, [2, 5], [3, 3])
    );
    assert_eq!(
        newer_table(CONCAT, table::COLUMN_FACTORS, &factor(0)),
        wrong(CONCAT, [2, 5], [0, 3])
    );
    assert_eq!(newer_table(CONCAT, table::COMBINE, &[1]), wrong(CONCAT, [2, 5], [2, 3]));
}

#[test]
fn parts_that_are_missing_or_in_another_place() {
    assert_eq!(newer_section(4, section::CORE, &[0]), (Section(4), Rule::Core.into(), 0, 1));
    assert_eq!(newer_section(3, section::CORE, &[1]), (Section(3), Rule::Core.into(), 1, 0));
    assert_eq!(newer_section(3, section::CORE, &[2]), (Section(3), Rule::Core.into(), 2, 0));
}

#[test]
fn scales_of_short_rows_and_of_parts() {
    for (section, row_len) in [(1, 11), (3, 13), (4, 13), (6, 11)] {
        let mut buf = newer();
        let at = format::Section::read(&buf, section).offset + row_len;
        put(&mut buf, at, &0f32.to_le_bytes());
        reseal_section(&mut buf, section);
        assert_eq!(verify(&buf), Err(broken(Element { section, position: 1 }, Rule::Scale)));
    }
}

// Codebook tables.

/// `a`: 0 codes (u8, 3 a row), 1 books of 5 entries of 2 columns (i8), 2 scales, 3 projection from
/// 6 to 4 columns (f16); `b`: 4 codes (u12, 3 a row), 5 books of 7 entries of 4 columns, to be
/// added.
fn coded() -> AlignedBuf {
    let (concat, add) = (Combine::Concat, Combine::Add);
    let half = Some(Dtype::F16);
    let first = codebook(9, concat, [3, 5], [6, 4], CodeDtype::U8, Dtype::I8, half);
    let second = codebook(8, add, [3, 7], [4, 4], CodeDtype::U12, Dtype::F32, None);
    let buf = build(&[TableSpec::new("a", first), TableSpec::new("b", second)], 3, Values::Reals);
    assert_eq!(format::num_sections(&buf), 6);
    Blob::parse(&buf).unwrap().verify_payload().unwrap();
    buf
}

const CODED_CONCAT: usize = 0;
const CODED_ADD: usize = 1;

/// Patches, reseals and parses `coded()`.
fn coded_table(position: usize, field: usize, value: &[u8]) -> Refusal {
    let mut buf = coded();
    put(&mut buf, table_at(position) + field, value);
    assert!(reseal(&mut buf));
    parse(&buf).unwrap_err()
}

fn coded_section(position: usize, field: usize, value: &[u8]) -> Refusal {
    let mut buf = coded();
    let at = section_at(&buf, position) + field;
    put(&mut buf, at, value);
    assert!(reseal(&mut buf));
    parse(&buf).unwrap_err()
}

#[test]
fn combinations_of_entries_that_are_unknown_or_products() {
    for found in [0, 1, 4, 255] {
        let expected = (Table(CODED_ADD), Rule::CodebookCombine.into(), found.into(), 3);
        assert_eq!(coded_table(CODED_ADD, table::COMBINE, &[found]), expected);
    }
}

#[test]
fn shape_fields_that_codebook_tables_do_not_have() {
    let expected = broken(Table(CODED_CONCAT), Rule::Reserved);
    for (field, value) in [
        (table::NUM_CORES, &[2][..]),
        (table::DIGIT_ORDER, &[1]),
        (table::COLUMN_ORDER, &[1]),
        (table::ROW_FACTORS + 4, &[1]),
        (table::COLUMN_FACTORS + 8, &[1]),
        (table::INNER_RANKS, &[1]),
        (table::RESERVED_TAIL, &[1]),
    ] {
        assert_eq!(coded_table(CODED_CONCAT, field, value), expected, "{field}");
    }
}

#[test]
fn books_that_do_not_make_the_rows_of_the_table() {
    let number = |n: u32| n.to_le_bytes();
    let wrong = |table, num_books, book_len, inner_dim| {
        shape_error(table, ShapeError::Codebook { num_books, book_len, inner_dim })
    };
    for found in [0, MAX_BOOK_LEN as u32 + 1, u32::MAX] {
        assert_eq!(
            coded_table(CODED_ADD, table::ROW_FACTORS, &number(found)),
            wrong(CODED_ADD, 3, found as usize, 4)
        );
    }
    for found in [0, MAX_NUM_BOOKS as u32 + 1, u32::MAX] {
        assert_eq!(
            coded_table(CODED_ADD, table::COLUMN_FACTORS, &number(found)),
            wrong(CODED_ADD, found as usize, 7, 4)
        );
    }
    for found in [0, 65_537] {
        assert_eq!(
            coded_table(CODED_ADD, table::COLUMN_FACTORS + 4, &number(found)),
            shape_error(CODED_ADD, ShapeError::EmbeddingDim { found: found.into() })
        );
    }
    // Entries that are put end to end share the columns among them.
    assert_eq!(
        coded_table(CODED_CONCAT, table::COLUMN_FACTORS + 4, &number(7)),
        wrong(CODED_CONCAT, 3, 5, 7)
    );
    // Without a projection, they have all columns.
    assert_eq!(coded_table(CODED_ADD, table::EMBEDDING_DIM, &number(5)), wrong(CODED_ADD, 3, 7, 4));
}

#[test]
fn codes_and_books_that_are_missing_of_another_type_or_size() {
    assert_eq!(coded_section(0, section::ROLE, &[17]), (Section(0), Rule::Role.into(), 17, 16));
    assert_eq!(coded_section(1, section::ROLE, &[16]), (Section(1), Rule::Role.into(), 16, 17));
    assert_eq!(coded_section(2, section::ROLE, &[8]), (Section(2), Rule::Role.into(), 8, 3));
    for found in [format::DTYPE_I8, format::DTYPE_U32, 0x45, 0] {
        let expected = (Section(0), Rule::Dtype.into(), found.into(), 16);
        assert_eq!(coded_section(0, section::DTYPE, &[found]), expected);
    }
    for found in [format::DTYPE_I4, format::DTYPE_U8, 9] {
        let expected = (Section(1), Rule::Dtype.into(), found.into(), 17);
        assert_eq!(coded_section(1, section::DTYPE, &[found]), expected);
    }
    for (section, expected) in [(0, 9u64 * 3), (1, 3 * 5 * 2), (2, 3 * 4), (4, 8 * 5)] {
        for found in [expected - 1, expected + 1] {
            let expected = (Section(section), Rule::Len.into(), found, expected);
            let found = found.to_le_bytes();
            assert_eq!(coded_section(section, section::LEN, &found), expected);
        }
    }
    // Codes of another type need another number of bytes.
    assert_eq!(
        coded_section(4, section::DTYPE, &[format::DTYPE_U16]),
        (Section(4), Rule::Len.into(), 8 * 5, 8 * 6)
    );
}

#[test]
fn codes_that_are_no_entries_are_found_in_the_payload_and_read_as_the_last() {
    // The last code of row 2, as a byte and as the low bits of two bytes.
    for (section, at, table, limit) in [(0, 2 * 3 + 2, "a", 5u8), (4, 2 * 5 + 3, "b", 7)] {
        let mut buf = coded();
        let offset = format::Section::read(&buf, section).offset + at;
        let mut rows = [limit - 1, limit].map(|code| {
            buf[offset] = code;
            if section == 4 {
                buf[offset + 1] = 0xF0;
            }
            reseal_section(&mut buf, section);
            let place = Element { section, position: 8 };
            let expected = (place, Rule::Code.into(), code.into(), limit.into());
            let verified = if code < limit { Ok(()) } else { Err(expected) };
            assert_eq!(verify(&buf), verified);
            let table = Blob::parse(&buf).unwrap().table(table).unwrap();
            let (mut row, mut workspace) = ([f32::NAN; 4], vec![0.0; table.workspace_len(1)]);
            table.lookup(2, &mut row, &mut workspace).unwrap();
            row
        });
        assert_eq!(rows[0], rows[1]);
        rows[0].iter_mut().for_each(|x| assert!(x.is_finite()));
    }
}

#[test]
fn scales_of_books() {
    for bad in [0.0f32, -1.0, f32::NAN, f32::INFINITY] {
        let mut buf = coded();
        let at = format::Section::read(&buf, 2).offset + 4;
        put(&mut buf, at, &bad.to_le_bytes());
        reseal_section(&mut buf, 2);
        assert_eq!(verify(&buf), Err(broken(Element { section: 2, position: 1 }, Rule::Scale)));
    }
}

#[test]
fn writer_refuses_books_that_no_reader_takes() {
    let table = |combine, books, dims, dtype, projection| {
        TableSpec::new("a", codebook(4, combine, books, dims, CodeDtype::U8, dtype, projection))
    };
    let (concat, add, f32) = (Combine::Concat, Combine::Add, Dtype::F32);
    assert!(Layout::new(&[table(concat, [3, 5], [6, 6], Dtype::I8, None)]).is_ok());
    for (combine, [num_books, book_len], [inner_dim, dim]) in [
        (concat, [4, 5], [6, 6]),
        (add, [0, 5], [6, 6]),
        (add, [MAX_NUM_BOOKS + 1, 5], [6, 6]),
        (add, [3, 0], [6, 6]),
        (add, [3, MAX_BOOK_LEN + 1], [6, 6]),
        (add, [3, 5], [6, 7]),
    ] {
        let error = ShapeError::Codebook { num_books, book_len, inner_dim };
        let spec = table(combine, [num_books, book_len], [inner_dim, dim], f32, None);
        assert_eq!(refused(&[spec]), bad_shape("a", error));
    }
    assert_eq!(
        refused(&[table(Combine::Mult, [3, 5], [6, 6], f32, None)]),
        LayoutError::Combine { table: "a".into() }
    );
    for (dtype, projection, found) in
        [(Dtype::I4, None, Dtype::I4), (f32, Some(Dtype::I8), Dtype::I8)]
    {
        let expected = LayoutError::Dtype { table: "a".into(), found };
        assert_eq!(refused(&[table(add, [3, 5], [6, 6], dtype, projection)]), expected);
    }
}

// The writer.

#[test]
fn the_writer_gives_an_index_to_ids_that_are_many_and_not_scarce() {
    let has_index = |num_embeddings, count| {
        let table = overridden(dense("a", num_embeddings, 4, Dtype::F32), count, Dtype::F32);
        Layout::new(&[table])
            .unwrap()
            .sections()
            .iter()
            .any(|section| section.role == Role::OverrideIndex)
    };
    assert_eq!([255, 256, 1000].map(|count| has_index(1000, count)), [false, true, true]);
    // 256 rows of 16 bytes serve 32 runs of 64 bytes, for 12,288 rows.
    assert_eq!([12_288, 12_289].map(|rows| has_index(rows, 256)), [true, false]);
}

#[test]
fn writer_refuses_more_rows_than_indices() {
    for map in [
        |num_embeddings| IndexMapSpec::Modulo { num_embeddings },
        |num_embeddings| remapped(num_embeddings, RowNumberDtype::U8),
    ] {
        let table = |num_embeddings| with_map(map(num_embeddings), dense("a", 4, 1, Dtype::F32));
        assert!(Layout::new(&[table(4)]).is_ok());
        assert_eq!(
            refused(&[table(3)]),
            LayoutError::NumRows { table: "a".into(), found: 4, num_embeddings: 3 }
        );
        for found in [0, (1 << 40) + 1] {
            assert_eq!(
                refused(&[table(found)]),
                bad_shape("a", ShapeError::NumEmbeddings { found })
            );
        }
    }
}

#[test]
fn writer_refuses_row_numbers_that_do_not_fit_their_type() {
    for (dtype, most) in [
        (RowNumberDtype::U8, 1 << 8),
        (RowNumberDtype::U16, 1 << 16),
        (RowNumberDtype::U24, 1 << 24),
    ] {
        let table =
            |num_rows| with_map(remapped(num_rows + 1, dtype), dense("a", num_rows, 1, Dtype::I8));
        assert!(Layout::new(&[table(most)]).is_ok());
        let num_rows = most + 1;
        let error = LayoutError::RowNumbers { table: "a".into(), found: dtype, num_rows };
        assert_eq!(refused(&[table(num_rows)]), error);
    }
}

#[test]
fn writer_refuses_projections_with_scales_and_ranks_that_are_none() {
    for dtype in [Dtype::I8, Dtype::I4] {
        let expected = LayoutError::Dtype { table: "a".into(), found: dtype };
        assert_eq!(refused(&[TableSpec::new("a", projected(4, [2, 2], dtype))]), expected);
    }
    for found in [0, (1 << 16) + 1] {
        let expected = bad_shape("a", ShapeError::EmbeddingDim { found: found as u64 });
        assert_eq!(refused(&[TableSpec::new("a", projected(4, [found, 2], Dtype::F32))]), expected);
        assert_eq!(refused(&[TableSpec::new("a", projected(4, [2, found], Dtype::F32))]), expected);
    }
}

#[test]
fn writer_refuses_parts_that_do_not_fit_each_other() {
    let refused = |weights| refused(&[TableSpec::new("a", weights)]);
    let expected =
        |columns| bad_shape("a", ShapeError::QuotientRemainder { rows: [3, 2], columns });
    assert_eq!(refused(parts(5, 2, [2, 3], Combine::Mult)), expected([2, 3]));
    assert_eq!(refused(parts(5, 2, [0, 3], Combine::Concat)), expected([0, 3]));
    let expected = bad_shape("a", ShapeError::EmbeddingDim { found: 65_537 });
    assert_eq!(refused(parts(5, 2, [65_536, 1], Combine::Concat)), expected);
    let factor = |position, found| ShapeError::Factor {
        what: "row factor",
        position,
        found,
        limit: i32::MAX as u64,
    };
    assert_eq!(refused(parts(5, 0, [1, 1], Combine::Add)), bad_shape("a", factor(1, 0)));
    assert_eq!(
        refused(parts(1 << 40, 1, [1, 1], Combine::Add)),
        bad_shape("a", factor(0, u32::MAX.into()))
    );
}

#[test]
fn writer_refuses_more_prefixes_than_there_are() {
    let shape = TtShape::new(23, &[2, 3, 4], &[2, 3, 2], &[5, 3]).unwrap();
    let table = |num_prefixes| TableSpec { num_prefixes, ..tt("a", shape, Dtype::I8) };
    assert!(Layout::new(&[table(6)]).is_ok());
    for found in [7, u64::MAX] {
        assert_eq!(
            refused(&[table(found)]),
            LayoutError::NumPrefixes { table: "a".into(), found, num_prefixes: 6 }
        );
    }
    let table = TableSpec { num_prefixes: 1, ..dense("a", 4, 4, Dtype::F32) };
    let expected = LayoutError::NumPrefixes { table: "a".into(), found: 1, num_prefixes: 0 };
    assert_eq!(refused(&[table]), expected);
}

fn refused(tables: &[TableSpec]) -> LayoutError {
    Layout::new(tables).map(|_| ()).unwrap_err()
}

#[test]
fn writer_refuses_an_empty_name() {
    let tables = [dense("a", 1, 1, Dtype::F32), dense("", 1, 1, Dtype::F32)];
    assert_eq!(refused(&tables), LayoutError::Name { table: String::new() });
}

#[test]
fn writer_refuses_a_name_longer_than_the_limit() {
    let named = |len| [dense(&"é".repeat(len / 2), 1, 1, Dtype::F32)];
    let table = "é".repeat(MAX_NAME_LEN / 2 + 1);
    assert_eq!(refused(&named(MAX_NAME_LEN + 2)), LayoutError::Name { table });
    assert!(Layout::new(&named(MAX_NAME_LEN)).is_ok());
}

#[test]
fn writer_refuses_a_name_that_is_there_twice() {
    let tables = ["b", "a", "c", "a"].map(|name| dense(name, 1, 1, Dtype::F32));
    assert_eq!(refused(&tables), LayoutError::DuplicateName { table: "a".into() });
}

#[test]
fn writer_refuses_impossible_row_counts() {
    for found in [0, (1 << 40) + 1] {
        let tables = [dense("b", 1, 1, Dtype::F32), dense("a", found, 1, Dtype::I8)];
        assert_eq!(refused(&tables), bad_shape("a", ShapeError::NumEmbeddings { found }));
    }
}

#[test]
fn writer_refuses_impossible_column_counts() {
    for found in [0, (1 << 16) + 1, usize::MAX] {
        let expected = bad_shape("a", ShapeError::EmbeddingDim { found: found as u64 });
        assert_eq!(refused(&[dense("a", 1, found, Dtype::I8)]), expected);
    }
}

#[test]
fn writer_refuses_overrides_of_no_rows_or_more_than_there_are() {
    let shape = TtShape::new(5, &[2, 3], &[1, 2], &[1]).unwrap();
    for table in [dense("a", 5, 2, Dtype::F32), tt("a", shape, Dtype::F32)] {
        for found in [0, 6, u64::MAX] {
            let expected =
                LayoutError::NumOverrides { table: "a".into(), found, num_embeddings: 5 };
            assert_eq!(refused(&[overridden(table.clone(), found, Dtype::F32)]), expected);
        }
        assert!(Layout::new(&[overridden(table, 5, Dtype::F32)]).is_ok());
    }
}

#[test]
fn writer_refuses_i4_cores() {
    let shape = TtShape::new(5, &[2, 3], &[1, 2], &[1]).unwrap();
    let tables = [tt("b", shape, Dtype::I4), dense("a", 1, 1, Dtype::I4)];
    assert_eq!(refused(&tables), LayoutError::Dtype { table: "b".into(), found: Dtype::I4 });
    assert!(Layout::new(&[overridden(tt("b", shape, Dtype::I8), 2, Dtype::I4)]).is_ok());
}

#[test]
fn writer_refuses_too_many_tables() {
    let mut tables: Vec<TableSpec> =
        (0..=MAX_TABLES).map(|i| dense(&i.to_string(), 1, 1, Dtype::F32)).collect();
    let expected = LayoutError::NumTables { found: MAX_TABLES + 1 };
    assert_eq!(refused(&tables), expected);
    tables.pop();
    let buf = Layout::new(&tables).unwrap().build(|_, out| out.fill(0));
    assert_eq!(Blob::parse(&buf).unwrap().num_tables(), MAX_TABLES);
}

#[test]
fn writer_refuses_more_bytes_than_an_offset_can_count() {
    // 2^40 rows x 2^16 columns x 4 bytes: sixty-four of them are 2^64 bytes.
    let tables = |count: usize| -> Vec<TableSpec> {
        (0..count)
            .map(|i| dense(&format!("{i:02}"), 1 << 40, 1 << 16, Dtype::F32))
            .collect()
    };
    assert!(Layout::new(&tables(63)).is_ok());
    assert_eq!(refused(&tables(64)), LayoutError::TooLarge);
}

// Models.

/// Two tables and four layers in eleven sections: `t.a` 0; `t.b` 1; bottom layer 0 (3 x 5): 2
/// weights, 3 bias; bottom layer 1 (5 x 4, i8): 4 weights, 5 scales, 6 bias; top layer 2 (7 x 6):
/// 7, 8; top layer 3 (6 x 1): 9, 10.
fn ranker() -> AlignedBuf {
    let mut model = ranker_model();
    model.bottom[1].dtype = Dtype::I8;
    let buf = build_model(&ranker_tables(), Some(&model), 3, Values::Reals);
    Blob::parse(&buf).unwrap().verify_payload().unwrap();
    assert_eq!(
        (format::num_layers(&buf), format::num_model_tables(&buf), format::num_sections(&buf)),
        (4, 2, 11)
    );
    buf
}

fn ranker_tables() -> [TableSpec; 2] {
    [dense("t.b", 6, 4, Dtype::F32), dense("t.a", 9, 4, Dtype::F32)]
}

fn ranker_model() -> ModelSpec {
    model(&[0, 1], &[3, 5, 4], &[6], [Dtype::F32; 2])
}

/// Patches, reseals and parses `ranker()`.
fn patched_ranker(patch: impl FnOnce(&mut AlignedBuf)) -> Refusal {
    let mut buf = ranker();
    patch(&mut buf);
    assert!(reseal(&mut buf));
    parse(&buf).unwrap_err()
}

fn with_layer(position: usize, field: usize, value: &[u8]) -> Refusal {
    patched_ranker(|buf| {
        let at = layer_at(buf, position) + field;
        put(buf, at, value);
    })
}

#[test]
fn too_many_layers_or_model_tables() {
    for (field, rule, limit) in [
        (header::NUM_LAYERS, Rule::NumLayers.into(), MAX_LAYERS as u32),
        (header::NUM_MODEL_TABLES, Rule::NumModelTables.into(), MAX_MODEL_TABLES as u32),
    ] {
        for found in [limit + 1, u32::MAX] {
            let mut buf = ranker();
            put(&mut buf, field, &found.to_le_bytes());
            let expected = (Header, rule, found.into(), limit.into());
            assert_eq!(parse(&buf), Err(expected));
        }
    }
}

#[test]
fn more_sections_than_tables_and_layers_can_have() {
    let mut buf = ranker();
    put(&mut buf, header::NUM_SECTIONS, &51u32.to_le_bytes());
    let expected = (Header, Rule::NumSections.into(), 51, 2 * 19 + 4 * 3);
    assert_eq!(parse(&buf), Err(expected));
}

#[test]
fn layer_records_that_reach_past_the_end() {
    let mut buf = ranker();
    put(&mut buf, header::NUM_LAYERS, &64u32.to_le_bytes());
    let len = format::head_len(&ranker()) as u64;
    put(&mut buf, header::TOTAL_LEN, &len.to_le_bytes());
    let needed = format::head_len(&buf) as u64;
    let cut = AlignedBuf::from_slice(&buf[..len as usize]);
    assert_eq!(parse(&cut), Err((Buffer, Rule::Truncated.into(), len, needed)));
}

#[test]
fn interactions_that_are_unknown_or_without_layers() {
    for found in [0, 4, 255] {
        assert_eq!(
            patched_ranker(|buf| buf[header::INTERACTION] = found),
            (Header, Rule::Interaction.into(), found.into(), 3)
        );
    }
    // Others need other widths.
    for (interaction, expected) in [(2, 4 + 6), (3, 3 * 4)] {
        assert_eq!(
            patched_ranker(|buf| buf[header::INTERACTION] = interaction),
            (Layer(2), Rule::InputWidth.into(), 4 + 3, expected)
        );
    }
    assert_eq!(with_header(header::INTERACTION, &[1]), (Header, Rule::Interaction.into(), 1, 0));
    assert_eq!(
        with_header(header::NUM_MODEL_TABLES, &[1]),
        (Header, Rule::NumModelTables.into(), 1, 0)
    );
}

#[test]
fn unknown_stacks_and_activations() {
    for found in [0, 3, 255] {
        let expected = (Layer(1), Rule::Stack.into(), found.into(), 2);
        assert_eq!(with_layer(1, layer::STACK, &[found]), expected);
    }
    for found in [3, 255] {
        let expected = (Layer(2), Rule::Activation.into(), found.into(), 2);
        assert_eq!(with_layer(2, layer::ACTIVATION, &[found]), expected);
    }
}

#[test]
fn reserved_layer_bytes() {
    for byte in layer::RESERVED..format::LAYER_LEN {
        assert_eq!(with_layer(3, byte, &[1]), broken(Layer(3), Rule::Reserved));
    }
}

#[test]
fn layers_of_no_width_or_too_much() {
    for (at, rule) in [(layer::INPUTS, Rule::Inputs), (layer::OUTPUTS, Rule::Outputs)] {
        for found in [0, (1 << 20) + 1, u32::MAX] {
            let expected = (Layer(0), rule.into(), found.into(), 1 << 20);
            assert_eq!(with_layer(0, at, &found.to_le_bytes()), expected);
        }
    }
}

#[test]
fn layers_that_do_not_fit_what_is_before_them() {
    // Longer ones that take no more than the padding there was.
    for (position, found, len, expected) in [(1, 6u32, 24u64, 5), (2, 8, 192, 7)] {
        let error = patched_ranker(|buf| {
            let section = section_at(buf, [2, 4, 7, 9][position]);
            put(buf, section + section::LEN, &len.to_le_bytes());
            let at = layer_at(buf, position);
            put(buf, at + layer::INPUTS, &found.to_le_bytes());
        });
        assert_eq!(error, (Layer(position), Rule::InputWidth.into(), found.into(), expected));
    }
    // One output more, of the last layer and of the bottom's.
    let more_outputs = |position: usize, outputs: u32, lens: &[(usize, u64)]| {
        patched_ranker(|buf| {
            for &(section, len) in lens {
                let at = section_at(buf, section);
                put(buf, at + section::LEN, &len.to_le_bytes());
            }
            let at = layer_at(buf, position);
            put(buf, at + layer::OUTPUTS, &outputs.to_le_bytes());
        })
    };
    let expected = (Layer(3), Rule::OutputWidth.into(), 2, 1);
    assert_eq!(more_outputs(3, 2, &[(9, 48), (10, 8)]), expected);
    let expected = (Table(1), Rule::ModelDim.into(), 4, 5);
    assert_eq!(more_outputs(1, 5, &[(4, 25), (5, 20), (6, 20)]), expected);
}

#[test]
fn model_tables_that_are_not_there() {
    // The highest bit is not of the number.
    for found in [2, u32::MAX >> 1] {
        let error = patched_ranker(|buf| {
            let at = format::model_table_at(buf, 1);
            put(buf, at, &found.to_le_bytes());
        });
        assert_eq!(error, (ModelTable(1), Rule::ModelTable.into(), found.into(), 2));
    }
}

#[test]
fn perceptrons_out_of_order_or_missing() {
    // A top alone takes nothing but the products of tables, here one.
    let too_wide = (Layer(0), Rule::InputWidth.into(), 3, 1);
    assert_eq!(with_layer(0, layer::STACK, &[format::STACK_TOP]), too_wide);
    assert_eq!(
        with_layer(3, layer::STACK, &[format::STACK_BOTTOM]),
        broken(Layer(3), Rule::StackOrder)
    );
    for position in 0..3 {
        assert_eq!(
            with_layer(position, layer::ACTIVATION, &[2]),
            broken(Layer(position), Rule::Sigmoid)
        );
    }
    // And there is no such product of one table, or none.
    for tables in [&[0][..], &[]] {
        let model = model(tables, &[6, 4], &[1], [Dtype::F32; 2]);
        let mut buf = build_model(&ranker_tables(), Some(&model), 1, Values::Reals);
        let at = layer_at(&buf, 0);
        buf[at + layer::STACK] = format::STACK_TOP;
        assert!(reseal(&mut buf));
        assert_eq!(parse(&buf), Err((Model, Rule::NoBottom.into(), tables.len() as u64, 2)));
    }
    let mut buf =
        build_model(&[], Some(&model(&[], &[6, 1], &[1], [Dtype::F32; 2])), 1, Values::Reals);
    for position in 1..3 {
        let at = layer_at(&buf, position);
        buf[at + layer::STACK] = format::STACK_BOTTOM;
    }
    assert!(reseal(&mut buf));
    assert_eq!(parse(&buf), Err(broken(Model, Rule::NoTop)));
}

#[test]
fn layers_that_do_not_own_their_sections() {
    let number = |position, field, value: u32| with_layer(position, field, &value.to_le_bytes());
    for found in [0, 1, 3, u32::MAX] {
        let expected = (Layer(0), Rule::FirstSection.into(), found.into(), 2);
        assert_eq!(number(0, layer::FIRST_SECTION, found), expected);
    }
    for found in [1, 3] {
        let expected = (Layer(1), Rule::FirstSection.into(), 4, 2 + u64::from(found));
        assert_eq!(number(0, layer::NUM_SECTIONS, found), expected);
    }
    for found in [10, u32::MAX] {
        let expected = (Layer(0), Rule::LastSection.into(), 2 + u64::from(found), 11);
        assert_eq!(number(0, layer::NUM_SECTIONS, found), expected);
    }
    assert_eq!(number(3, layer::NUM_SECTIONS, 1), broken(Section(10), Rule::Owner));
    // One too few or too many, made up for by the next layer.
    for (position, count, next, rule, expected) in
        [(0, 3u32, 2u32, Rule::ExtraSection.into(), 2), (1, 2, 3, Rule::MissingSection.into(), 3)]
    {
        let error = patched_ranker(|buf| {
            let at = layer_at(buf, position);
            let first = format::u32_at(buf, at + layer::FIRST_SECTION) + count;
            put(buf, at + layer::NUM_SECTIONS, &count.to_le_bytes());
            put(buf, at + format::LAYER_LEN + layer::FIRST_SECTION, &first.to_le_bytes());
            put(buf, at + format::LAYER_LEN + layer::NUM_SECTIONS, &next.to_le_bytes());
        });
        assert_eq!(error, (Layer(position), rule, count.into(), expected));
    }
}

/// Patches a section's record, reseals and parses `ranker()`.
fn with_layer_section(position: usize, fields: &[(usize, &[u8])]) -> Refusal {
    patched_ranker(|buf| {
        let at = section_at(buf, position);
        fields.iter().for_each(|(field, value)| put(buf, at + field, value));
    })
}

#[test]
fn layer_sections_of_another_role_layer_dtype_or_length() {
    let role =
        |section, role: u16| with_layer_section(section, &[(section::ROLE, &role.to_le_bytes())]);
    assert_eq!(role(2, format::ROLE_ROWS), (Section(2), Rule::Role.into(), 1, 12));
    assert_eq!(role(3, format::ROLE_LAYER_SCALES), (Section(3), Rule::Role.into(), 13, 14));
    assert_eq!(role(5, format::ROLE_LAYER_BIAS), (Section(5), Rule::Role.into(), 14, 13));
    assert_eq!(
        with_layer_section(2, &[(section::CORE, &[1])]),
        (Section(2), Rule::Core.into(), 1, 0)
    );
    for found in [0, format::DTYPE_I4, format::DTYPE_U64, format::DTYPE_U32] {
        let expected = (Section(2), Rule::Dtype.into(), found.into(), 12);
        assert_eq!(with_layer_section(2, &[(section::DTYPE, &[found])]), expected);
    }
    // Scales and biases are f32, whatever their length.
    for (section, role, count) in [(3, 14, 5u64), (5, 13, 4), (6, 14, 4)] {
        let error = with_layer_section(
            section,
            &[(section::DTYPE, &[2]), (section::LEN, &(2 * count).to_le_bytes())],
        );
        assert_eq!(error, (Section(section), Rule::Dtype.into(), 2, role));
        let (found, expected) = (4 * count + 4, 4 * count);
        let error = with_layer_section(section, &[(section::LEN, &found.to_le_bytes())]);
        assert_eq!(error, (Section(section), Rule::Len.into(), found, expected));
    }
    let error = with_layer_section(2, &[(section::LEN, &59u64.to_le_bytes())]);
    assert_eq!(error, (Section(2), Rule::Len.into(), 59, 60));
}

#[test]
fn layers_whose_payload_changed_or_has_bad_scales() {
    for position in 2..11 {
        let mut buf = ranker();
        let range = format::Section::read(&buf, position).padded_range();
        buf[range.start] ^= 1;
        let blob = Blob::parse(&buf).unwrap();
        let expected = Err(bad_checksum(&buf, position));
        assert_eq!(refusal(blob.verify_payload()), expected);
        assert_eq!(refusal(blob.verify_model()), expected);
        assert!(blob.tables().all(|table| table.verify().is_ok()));
    }
    for scale in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let mut buf = ranker();
        let start = format::Section::read(&buf, 5).offset;
        put(&mut buf, start + 8, &scale.to_le_bytes());
        reseal_section(&mut buf, 5);
        let expected = broken(Element { section: 5, position: 2 }, Rule::Scale);
        assert_eq!(verify(&buf), Err(expected));
    }
    let buf = ranker();
    assert!(Blob::parse(&buf).unwrap().layer(4).is_none());
}

#[test]
fn models_that_cannot_be_written() {
    let refused = |change: &dyn Fn(&mut ModelSpec)| {
        let mut spec = ranker_model();
        change(&mut spec);
        Layout::with_model(&ranker_tables(), Some(&spec)).map(drop).unwrap_err()
    };
    let width = |layer, field, found| LayoutError::LayerWidth { layer, field, found };
    let fit =
        |layer, field, found, expected| LayoutError::LayerFit { layer, field, found, expected };
    assert_eq!(refused(&|spec| spec.bottom.clear()), fit(0, "inputs", 7, 1));
    for count in [0, 1] {
        let alone = |spec: &mut ModelSpec| {
            spec.bottom.clear();
            spec.tables.truncate(count);
        };
        assert_eq!(refused(&alone), LayoutError::NoBottom { num_tables: count });
    }
    assert_eq!(refused(&|spec| spec.top.clear()), LayoutError::NoTop);
    assert_eq!(
        refused(&|spec| spec.bottom[1].activation = Activation::Sigmoid),
        LayoutError::Sigmoid { layer: 1 }
    );
    assert_eq!(refused(&|spec| spec.bottom[0].inputs = 0), width(0, "inputs", 0));
    assert_eq!(refused(&|spec| spec.bottom[0].outputs = 1 << 21), width(0, "outputs", 1 << 21));
    assert_eq!(refused(&|spec| spec.bottom[1].inputs = 4), fit(1, "inputs", 4, 5));
    assert_eq!(refused(&|spec| spec.top[0].inputs = 8), fit(2, "inputs", 8, 7));
    assert_eq!(refused(&|spec| spec.top[1].outputs = 2), fit(3, "outputs", 2, 1));
    let table = LayoutError::ModelDim { table: "t.b".into(), found: 4, expected: 3 };
    assert_eq!(refused(&|spec| spec.bottom[1].outputs = 3), table);
    assert_eq!(
        refused(&|spec| spec.tables[1].table = 2),
        LayoutError::ModelTable { position: 1, found: 2, num_tables: 2 }
    );
    let dtype = LayoutError::LayerDtype { layer: 3, found: Dtype::I4 };
    assert_eq!(refused(&|spec| spec.top[1].dtype = Dtype::I4), dtype);
    assert_eq!(
        refused(&|spec| spec.tables = vec![spec.tables[0]; 1025]),
        LayoutError::NumModelTables { found: 1025 }
    );
    let same = LayerSpec { inputs: 3, outputs: 3, activation: Activation::Relu, dtype: Dtype::F32 };
    assert_eq!(refused(&|spec| spec.bottom = vec![same; 63]), LayoutError::NumLayers { found: 65 });
}

#[test]
fn tables_of_other_widths_without_a_bottom() {
    let tables = [dense("t.a", 9, 4, Dtype::F32), dense("t.b", 6, 3, Dtype::F32)];
    let spec = model(&[0, 1], &[], &[6], [Dtype::F32; 2]);
    let expected = LayoutError::ModelDim { table: "t.b".into(), found: 3, expected: 4 };
    assert_eq!(Layout::with_model(&tables, Some(&spec)).map(drop), Err(expected));
    // The same in a blob: of two tables as wide as each other, the model's second one is exchanged
    // for another.
    let tables = [
        dense("t.a", 9, 4, Dtype::F32),
        dense("t.b", 6, 4, Dtype::F32),
        dense("t.c", 6, 3, Dtype::F32),
    ];
    let mut buf = build_model(&tables, Some(&spec), 1, Values::Reals);
    assert!(Blob::parse(&buf).unwrap().ranker().is_ok_and(|ranker| ranker.num_dense() == 0));
    let at = format::model_table_at(&buf, 1);
    put(&mut buf, at, &2u32.to_le_bytes());
    assert!(reseal(&mut buf));
    assert_eq!(parse(&buf), Err((Table(2), Rule::ModelDim.into(), 3, 4)));
}
