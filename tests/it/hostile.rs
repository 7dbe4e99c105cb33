//! Blobs with bytes changed, cut, added and swapped: no panic, and never another answer without an
//! error, unless the directory itself was forged to say something else.
//!
//! What is asserted of a mutant, by what was done to it:
//!
//! - its length changed and nothing was resealed: refused, as [`ttrec::BlobError`];
//! - its head (header, directory, names) changed and was not resealed: refused;
//! - only its payload changed: it parses, since parsing does not read the payload. `verify_payload`
//!   names the first section that changed; tables of which no section changed verify, and answer
//!   with the same bits as before;
//! - its head was changed and resealed, as a forger would: refused, or it parses to a directory
//!   that holds together. Then a table whose record (names aside) and bytes are as before answers
//!   with the same bits as before; any other answers what its new directory says, by the oracle.
//!
//! For every mutant that parses: its sections lie end to end and cover the blob; `Table::verify`
//! agrees with a naive check of checksums, scales, offsets, codes and ids; indices out of range are
//! refused with the right error and leave the output unmodified; and every other lookup and bag
//! succeeds.
//!
//! `TTREC_MUTATIONS` sets the number of mutants, which must be enough to meet every assertion:
//! 20,000 (the default) are.

use crate::support::{
    format::{self, header, layer, section, sections_of, sections_of_layer, table, table_at},
    model::{Bag, Model},
    oracle::{Approx, Reference, element},
    random::one_of_each,
    rng::Rng,
    tiers,
};
use std::collections::BTreeSet;
use ttrec::{
    AlignedBuf, Bags, Blob, BlobError, LookupError, NoModel, Pooling, Table,
    blob::{
        Location::{self, Element, Section},
        Rule,
    },
};

const SENTINEL: f32 = -7.0e37;
/// A forged shape may ask for scratch far larger than its blob; this is what a careful caller
/// grants (in elements).
const MAX_SCRATCH: usize = 1 << 20;

/// How many mutants met each assertion.
#[derive(Debug, Default)]
struct Seen {
    refused_for_length: usize,
    refused_for_head: usize,
    payload_changed: usize,
    other_tables_same: usize,
    forged_and_refused: usize,
    forged_and_parsed: usize,
    same_table_same_bits: usize,
    other_table_by_the_oracle: usize,
    other_table_with_wild_values: usize,
    verified: usize,
    not_verified: usize,
    out_of_range: usize,
    /// Models that were scored; by the oracle, too, if their numbers are tame.
    scored: usize,
    scored_by_the_oracle: usize,
    /// Tables that were not looked up, for what scratch they ask.
    too_large: usize,
}

/// The number of mutants.
fn num_mutants() -> u64 {
    match std::env::var("TTREC_MUTATIONS") {
        Ok(n) => n.parse().expect("TTREC_MUTATIONS is a number"),
        Err(_) => 20_000,
    }
}

#[test]
fn mutants_are_refused_or_answer_as_before_or_as_forged() {
    let originals = one_of_each();
    let mut seen = Seen::default();
    let mut errors = BTreeSet::new();
    for case in 0..num_mutants() {
        let _named = NameOnPanic(case);
        let mut rng = Rng::new(case);
        let original = &originals[case as usize % originals.len()];
        let forge = rng.one_in(2);
        let mutant = mutate(original, forge, &mut rng);
        check(original, &mutant, forge, &mut rng, &mut seen, &mut errors);
    }
    println!("{seen:#?}\n{errors:?}");

    let Seen { refused_for_length, refused_for_head, payload_changed, other_tables_same, .. } =
        seen;
    assert!(
        [refused_for_length, refused_for_head, payload_changed, other_tables_same]
            .iter()
            .all(|&n| n > 100)
    );
    assert!(seen.forged_and_refused > 100 && seen.forged_and_parsed > 100);
    assert!(seen.same_table_same_bits > 100 && seen.other_table_by_the_oracle > 50);
    assert!(seen.verified > 100 && seen.not_verified > 100 && seen.out_of_range > 100);
    assert!(seen.scored > 100 && seen.scored_by_the_oracle > 20);
    assert!(
        seen.too_large * 1000 < seen.verified + seen.not_verified,
        "tables that were never looked up"
    );
    // Forged heads reach every check behind the checksum.
    for reason in [
        "Activation",
        "Core",
        "Dtype",
        "Empty",
        "FirstSection",
        "Flags",
        "IndexMap",
        "InputWidth",
        "Inputs",
        "Interaction",
        "Kind",
        "LastSection",
        "Layout",
        "Len",
        "Magic",
        "MissingSection",
        "ModelDim",
        "ModelTable",
        "NameLen",
        "NameOffset",
        "NameOrder",
        "NumLayers",
        "NumRows",
        "NumSections",
        "NumTables",
        "Offset",
        "Reserved",
        "Role",
        "Shape",
        "Sigmoid",
        "Stack",
        "TotalLen",
        "Truncated",
        "Version",
    ] {
        assert!(errors.contains(reason), "no mutant was refused for {reason}");
    }
}

/// Says which case it was when the crate panics.
struct NameOnPanic(u64);

impl Drop for NameOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("in case {}", self.0);
        }
    }
}

/// `original`, changed in one or two places, resealed if `forge`; never equal to it.
fn mutate(original: &[u8], forge: bool, rng: &mut Rng) -> AlignedBuf {
    loop {
        let mut bytes = original.to_vec();
        for _ in 0..1 + rng.below(3) / 2 {
            mutate_once(original, &mut bytes, rng);
        }
        if forge {
            if bytes.len() >= format::HEADER_LEN && !rng.one_in(8) {
                let len = bytes.len() as u64;
                format::put(&mut bytes, header::TOTAL_LEN, &len.to_le_bytes());
            }
            format::reseal(&mut bytes);
        }
        if bytes != original {
            return AlignedBuf::from_slice(&bytes);
        }
    }
}

fn mutate_once(original: &[u8], bytes: &mut Vec<u8>, rng: &mut Rng) {
    if bytes.is_empty() {
        return;
    }
    // Half of the changes go to the head, which is the smaller part of a real blob and the one that
    // is parsed.
    let reach = if rng.one_in(2) {
        bytes.len()
    } else {
        format::head_len(original).min(bytes.len())
    };
    let at = rng.index(reach);
    match rng.below(10) {
        0 => bytes[at] ^= 1 << rng.below(8),
        1 => bytes[at] = rng.next() as u8,
        2 => overwrite(bytes, at, 1 << rng.below(4), rng),
        3 => {
            let bytes = &mut bytes[at..reach.min(at + 16)];
            bytes.iter_mut().for_each(|byte| *byte = rng.next() as u8);
        }
        4 => {
            // Two ranges of equal length change places.
            let len = 1 + rng.index(32.min(reach));
            let (a, b) = (rng.index(reach - len + 1), rng.index(reach - len + 1));
            let (from_a, from_b) = (bytes[a..a + len].to_vec(), bytes[b..b + len].to_vec());
            bytes[a..a + len].copy_from_slice(&from_b);
            bytes[b..b + len].copy_from_slice(&from_a);
        }
        5 if rng.one_in(2) => bytes.truncate(at),
        5 => {
            let more = 1 + rng.index(130);
            bytes.extend((0..more).map(|_| rng.next() as u8 & 0x81));
        }
        _ => mutate_field(original, bytes, rng),
    }
}

/// Overwrites, or moves by one, the little-endian number of `width` bytes around `at`.
fn overwrite(bytes: &mut [u8], at: usize, width: usize, rng: &mut Rng) {
    let at = at / width * width;
    let Some(field) = bytes.get_mut(at..at + width) else { return };
    let mut number = [0; 8];
    number[..width].copy_from_slice(field);
    let number = u64::from_le_bytes(number);
    let top = 1u64 << (8 * width - 1);
    let interesting = [
        0,
        1,
        2,
        63,
        64,
        65,
        top - 1,
        top,
        top + (top - 1),
        top - 64,
        1 << 16,
        (1 << 16) + 1,
        1 << 31,
    ];
    let new = match rng.below(6) {
        0 => number.wrapping_add(1),
        1 => number.wrapping_sub(1),
        2 => number.wrapping_mul(2),
        3 => number / 2,
        _ => rng.pick(&interesting),
    };
    field.copy_from_slice(&new.to_le_bytes()[..width]);
}

/// Changes one whole field of one record, or swaps it with its neighbour or with another record's.
fn mutate_field(original: &[u8], bytes: &mut [u8], rng: &mut Rng) {
    const HEADER_FIELDS: [(usize, usize); 10] = [
        (header::VERSION, 4),
        (header::FLAGS, 4),
        (header::TOTAL_LEN, 8),
        (header::NUM_TABLES, 4),
        (header::NUM_SECTIONS, 4),
        (header::NAMES_LEN, 4),
        (header::CHECKSUM, 4),
        (header::NUM_LAYERS, 4),
        (header::NUM_MODEL_TABLES, 4),
        (header::INTERACTION, 1),
    ];
    const TABLE_FIELDS: [(usize, usize); 17] = [
        (table::KIND, 2),
        (table::INDEX_MAP, 1),
        (table::LAYOUT, 1),
        (table::NAME_OFFSET, 4),
        (table::NAME_LEN, 4),
        (table::FIRST_SECTION, 4),
        (table::NUM_SECTIONS, 4),
        (table::EMBEDDING_DIM, 4),
        (table::NUM_EMBEDDINGS, 8),
        (table::NUM_CORES, 1),
        (table::DIGIT_ORDER, 1),
        (table::COLUMN_ORDER, 1),
        (table::ROW_FACTORS, 4),
        (table::COLUMN_FACTORS, 4),
        (table::INNER_RANKS, 4),
        (table::COMBINE, 1),
        (table::NUM_ROWS, 8),
    ];
    const SECTION_FIELDS: [(usize, usize); 6] = [
        (section::OFFSET, 8),
        (section::LEN, 8),
        (section::CHECKSUM, 4),
        (section::ROLE, 2),
        (section::DTYPE, 1),
        (section::CORE, 1),
    ];
    const LAYER_FIELDS: [(usize, usize); 6] = [
        (layer::INPUTS, 4),
        (layer::OUTPUTS, 4),
        (layer::FIRST_SECTION, 4),
        (layer::NUM_SECTIONS, 4),
        (layer::STACK, 1),
        (layer::ACTIVATION, 1),
    ];
    let (num_layers, num_tables) = (format::num_layers(original), format::num_tables(original));
    let (records, record_len, start, (field, width)) = match rng.below(8) {
        0 => (0..1, 0, 0, rng.pick(&HEADER_FIELDS)),
        1 if num_layers > 0 && rng.one_in(4) => (
            0..format::num_model_tables(original).max(1),
            4,
            format::model_table_at(original, 0),
            (0, 4),
        ),
        1..4 if num_layers > 0 => (
            0..num_layers,
            format::LAYER_LEN,
            format::layer_at(original, 0),
            rng.pick(&LAYER_FIELDS),
        ),
        1..5 if num_tables > 0 => {
            (0..num_tables, format::TABLE_LEN, table_at(0), rng.pick(&TABLE_FIELDS))
        }
        _ => {
            let start = format::section_at(original, 0);
            (
                0..format::num_sections(original),
                format::SECTION_LEN,
                start,
                rng.pick(&SECTION_FIELDS),
            )
        }
    };
    // Factors and ranks are lists of four-byte entries.
    let in_list =
        record_len == format::TABLE_LEN && (table::ROW_FACTORS..table::NUM_ROWS).contains(&field);
    let entry = if in_list { 4 * rng.index(5) } else { 0 };
    let at = start + rng.index(records.len()) * record_len + field + entry;
    let other = if in_list && rng.one_in(2) {
        start + (at - start) / format::TABLE_LEN * format::TABLE_LEN + field + 4 * rng.index(5)
    } else {
        start + rng.index(records.len()) * record_len + field + entry
    };
    if at.max(other) + width > bytes.len() {
        return;
    }
    match rng.below(4) {
        0 => (0..width).for_each(|i| bytes.swap(at + i, other + i)),
        1 => bytes.copy_within(other..other + width, at),
        _ => {
            // Not through `overwrite`, which would align down.
            let mut number = bytes[at..at + width].to_vec();
            overwrite(&mut number, 0, width, rng);
            bytes[at..at + width].copy_from_slice(&number);
        }
    }
}

fn check(
    original: &AlignedBuf,
    mutant: &AlignedBuf,
    forged: bool,
    rng: &mut Rng,
    seen: &mut Seen,
    errors: &mut BTreeSet<String>,
) {
    let parsed = Blob::parse(mutant);
    if let Err(error) = parsed {
        errors.insert(format!("{:?}", error.rule()));
        assert!(!error.to_string().is_empty());
    }
    let head = format::head_len(original);
    let same_head = mutant.len() == original.len() && mutant[..head] == original[..head];
    if !same_head && !forged {
        assert!(parsed.is_err(), "a change of the length or the head went unnoticed");
        let of_length = mutant.len() != original.len();
        *(if of_length {
            &mut seen.refused_for_length
        } else {
            &mut seen.refused_for_head
        }) += 1;
        return;
    }
    let Ok(blob) = parsed else {
        assert!(!same_head, "refused for its payload: {parsed:?}");
        seen.forged_and_refused += 1;
        return;
    };
    check_parsed(mutant, &blob, rng, seen);

    let before = Blob::parse(original).unwrap();
    if same_head {
        seen.payload_changed += 1;
        let changed = (0..format::num_sections(original)).find(|&section| {
            let range = format::Section::read(original, section).padded_range();
            mutant[range.clone()] != original[range]
        });
        let section = changed.expect("the payload is nothing but sections");
        let found = blob.verify_payload().unwrap_err();
        assert_eq!((found.location(), found.rule()), (Section(section), Rule::Checksum));
    } else {
        seen.forged_and_parsed += 1;
    }

    for position in 0..blob.num_tables() {
        let tier = rng.pick(&tiers::available());
        let table = blob.table(format::name_of(mutant, position)).unwrap().with_tier(tier);
        let same_table = position < before.num_tables()
            && meaning(mutant, position) == meaning(original, position);
        if same_table {
            let same_padding = same_head && {
                let padding = |bytes: &[u8]| {
                    sections_of(original, position)
                        .iter()
                        .flat_map(|s| bytes[s.padded_range()].to_vec())
                        .collect()
                };
                let (after, before): (Vec<u8>, Vec<u8>) = (padding(mutant), padding(original));
                after == before
            };
            if same_padding {
                assert_eq!(table.verify(), Ok(()));
                seen.other_tables_same += 1;
            }
            let before = before.table(format::name_of(original, position)).unwrap().with_tier(tier);
            for row in sample_rows(&before, &Reference::new(original, position), rng) {
                assert_eq!(bits(&lookup(&table, row)), bits(&lookup(&before, row)), "row {row}");
            }
            seen.same_table_same_bits += 1;
        } else if table.workspace_len(1) <= MAX_SCRATCH {
            check_by_the_oracle(&table, &Reference::new(mutant, position), rng, seen);
        }
    }
}

/// What decides a table's answers: its record without name and section numbers, and the kind and
/// bytes of its sections.
fn meaning(bytes: &[u8], position: usize) -> impl PartialEq + use<'_> {
    let record = &bytes[table_at(position)..][..format::TABLE_LEN];
    let numbers = [&record[..table::NAME_OFFSET], &record[table::EMBEDDING_DIM..]].concat();
    let sections = sections_of(bytes, position);
    (
        numbers,
        sections
            .iter()
            .map(|s| (s.role, s.dtype, s.core, &bytes[s.range()]))
            .collect::<Vec<_>>(),
    )
}

/// Holds of every mutant that parses.
fn check_parsed(mutant: &AlignedBuf, blob: &Blob<'_>, rng: &mut Rng, seen: &mut Seen) {
    let mut end = format::head_len(mutant) as u64;
    for (position, table) in blob.tables().enumerate() {
        for section in table.sections() {
            assert_eq!(section.offset, end);
            assert!(section.len > 0);
            end = (section.offset + section.len).next_multiple_of(format::ALIGNMENT as u64);
        }
        let expected = naive_verification(mutant, position);
        assert_eq!(refusal(table.verify()), expected);
        *(if expected.is_ok() {
            &mut seen.verified
        } else {
            &mut seen.not_verified
        }) += 1;
    }
    let mut model = Ok(());
    for position in 0..blob.num_layers() {
        for section in blob.layer_sections(position) {
            assert_eq!(section.offset, end);
            end = (section.offset + section.len).next_multiple_of(format::ALIGNMENT as u64);
        }
        let sections = sections_of_layer(mutant, position);
        let damaged = sections
            .iter()
            .find(|s| format::crc32c(&mutant[s.padded_range()]) != s.checksum);
        let scales = sections.iter().find(|s| s.role == format::ROLE_LAYER_SCALES);
        let bad_scale = scales.and_then(|s| {
            (0..s.len / 4).find(|&i| {
                let scale = element(&mutant[s.range()], format::DTYPE_F32, i);
                !(scale > 0.0 && scale.is_finite())
            })
        });
        model = model.and(match (damaged, bad_scale) {
            (Some(section), _) => Err((Section(section.position), Rule::Checksum)),
            (None, Some(position)) => {
                let section = scales.unwrap().position;
                Err((Element { section, position: position as u64 }, Rule::Scale))
            }
            (None, None) => Ok(()),
        });
    }
    assert_eq!(refusal(blob.verify_model()), model);
    assert_eq!(end, mutant.len() as u64);
    check_model(mutant, blob, rng, seen);

    for (position, table) in blob.tables().enumerate() {
        let table = table.with_tier(rng.pick(&tiers::available()));
        let reference = Reference::new(mutant, position);
        let num_embeddings = reference.num_embeddings();
        assert_eq!(
            (table.num_embeddings(), table.embedding_dim()),
            (num_embeddings, reference.embedding_dim())
        );
        if table.workspace_len(1) > MAX_SCRATCH {
            seen.too_large += 1;
            continue;
        }
        let dim = table.embedding_dim();
        let rows = sample_rows(&table, &reference, rng);
        let offsets = [0, 2, 2, rows.len() as u64];
        let mut out = vec![SENTINEL; 3 * dim];
        for pooling in [Pooling::Sum, Pooling::Mean, Pooling::Max] {
            let bags = Bags::new(&rows, &offsets).unwrap();
            table
                .pool(&bags, pooling, &mut out, &mut vec![0.0; table.workspace_len(1)])
                .unwrap();
            assert!(out[dim..2 * dim].iter().all(|x| x.to_bits() == 0), "the empty bag");
        }
        let weights = vec![0.5; rows.len()];
        let weighted =
            Bags::new(&rows, &offsets).unwrap().with_per_sample_weights(&weights).unwrap();
        table
            .pool(&weighted, Pooling::Sum, &mut out, &mut vec![0.0; table.workspace_len(1)])
            .unwrap();
        check_batch(&table, &rows);

        for index in [num_embeddings, num_embeddings + rng.below(1 << 41), u64::MAX] {
            let mut out = vec![SENTINEL; dim];
            let expected =
                |position| LookupError::IndexOutOfRange { position, index, num_embeddings };
            assert_eq!(
                table.lookup(index, &mut out, &mut vec![0.0; table.workspace_len(1)]),
                Err(expected(0))
            );
            let indices = [rows[0], index];
            let bags = Bags::new(&indices, &[0, 2]).unwrap();
            assert_eq!(
                table.pool(&bags, Pooling::Sum, &mut out, &mut vec![0.0; table.workspace_len(1)]),
                Err(expected(1))
            );
            assert!(out.iter().all(|&x| x == SENTINEL));
            seen.out_of_range += 1;
        }
    }
}

/// A model scores, the same with the least workspace and the best, and as the oracle has it if all
/// it reads is tame.
fn check_model(mutant: &AlignedBuf, blob: &Blob<'_>, rng: &mut Rng, seen: &mut Seen) {
    if blob.num_layers() == 0 {
        assert_eq!(blob.ranker().map(drop), Err(NoModel));
        return;
    }
    let ranker = blob.ranker().unwrap().with_tier(rng.pick(&tiers::available()));
    if ranker.workspace_len(1) > MAX_SCRATCH {
        seen.too_large += 1;
        return;
    }
    let model = Model::new(mutant);
    let dense: Vec<f32> = (0..2 * ranker.num_dense()).map(|i| (i % 5) as f32 - 2.0).collect();
    let indices: Vec<_> = ranker.tables().map(|table| [0, table.num_embeddings() - 1, 0]).collect();
    let bags: Vec<_> =
        indices.iter().map(|indices| Bags::new(indices, &[0, 2, 3]).unwrap()).collect();
    let score = |workspace_len| {
        let mut out = [SENTINEL; 2];
        ranker
            .logits(&dense, &bags, &mut out, &mut vec![f32::NAN; workspace_len])
            .unwrap();
        out
    };
    let found = score(ranker.workspace_len(1));
    let again = score(ranker.workspace_len(2).min(MAX_SCRATCH));
    assert!(
        found
            .iter()
            .zip(again)
            .all(|(x, y)| x.to_bits() == y.to_bits() || (x.is_nan() && y.is_nan()))
    );
    seen.scored += 1;
    if blob.verify_payload().is_ok() && model.tame() {
        let bag = |indices: &[u64]| Bag { indices: indices.to_vec(), weights: None };
        let samples = [0..2, 2..3]
            .map(|range| indices.iter().map(|i| bag(&i[range.clone()])).collect::<Vec<_>>());
        for (s, (x, bags)) in found.into_iter().zip(&samples).enumerate() {
            let dense = &dense[s * ranker.num_dense()..][..ranker.num_dense()];
            let expected = model.logit(dense, bags);
            assert!(expected.admits(x), "{x} is not {expected:?}");
        }
        seen.scored_by_the_oracle += 1;
    }
}

/// More lookups of these rows than are sorted by insertion: a bag is the same with room for all of
/// them and with the least.
fn check_batch(table: &Table<'_>, rows: &[u64]) {
    let indices: Vec<u64> = rows.iter().copied().cycle().take(60).collect();
    let bags = Bags::new(&indices, &[0, 7, 60]).unwrap();
    let pool = |workspace_len| {
        let mut out = vec![SENTINEL; 2 * table.embedding_dim()];
        table
            .pool(&bags, Pooling::Sum, &mut out, &mut vec![f32::NAN; workspace_len])
            .unwrap();
        out
    };
    let (least, best) = (pool(table.workspace_len(1)), pool(table.workspace_len(indices.len())));
    // Of a NaN, only that it is one.
    let same = |(x, y): (&f32, &f32)| x.to_bits() == y.to_bits() || (x.is_nan() && y.is_nan());
    assert!(least.iter().zip(&best).all(same), "{least:?} is not {best:?}");
}

/// The first, the last and some other rows, among them an overridden one and its neighbour.
fn sample_rows(table: &Table<'_>, reference: &Reference<'_>, rng: &mut Rng) -> Vec<u64> {
    let n = table.num_embeddings();
    let mut rows = vec![0, n - 1, rng.below(n)];
    if reference.kind() == format::KIND_TT {
        let ids = reference.prefix_ids();
        rows.extend(
            (0..n.min(50)).find(|&row| ids.contains(&reference.prefix(reference.row_of(row)))),
        );
    }
    if let Some(&id) = reference.override_ids().first().filter(|&&id| id < n) {
        rows.extend([id, (id + 1) % n]);
    }
    rows
}

fn lookup(table: &Table<'_>, row: u64) -> Vec<f32> {
    let mut out = vec![SENTINEL; table.embedding_dim()];
    table
        .lookup(row, &mut out, &mut vec![f32::NAN; table.workspace_len(1)])
        .unwrap();
    out
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// Rows whose stored numbers are tame, by the oracle; forged dtypes and swapped bytes also make
/// NaNs and numbers whose products leave f32's range, of which nothing is asserted but that they
/// are looked up.
fn check_by_the_oracle(
    table: &Table<'_>,
    reference: &Reference<'_>,
    rng: &mut Rng,
    seen: &mut Seen,
) {
    let ids = reference.override_ids();
    let ascending =
        ids.is_sorted_by(|a, b| a < b) && reference.prefix_ids().is_sorted_by(|a, b| a < b);
    for row in sample_rows(table, reference, rng) {
        let found = lookup(table, row);
        // With ids out of order it is undefined which of them a search finds; `verify_payload`
        // reports them.
        if !ascending || !reference.tame() {
            seen.other_table_with_wild_values += 1;
            continue;
        }
        let expected: Vec<Approx> = reference.row(row);
        assert_eq!(found.len(), expected.len());
        for (j, (&x, y)) in found.iter().zip(expected).enumerate() {
            assert!(y.admits(x), "row {row} column {j}: {x} is not {y:?}");
        }
        seen.other_table_by_the_oracle += 1;
    }
}

/// Where a rule does not hold, and which one.
fn refusal(result: Result<(), BlobError>) -> Result<(), (Location, Rule)> {
    result.map_err(|error| (error.location(), error.rule()))
}

/// `Table::verify`, from the format's description.
fn naive_verification(bytes: &[u8], table: usize) -> Result<(), (Location, Rule)> {
    let sections = sections_of(bytes, table);
    for s in &sections {
        if format::crc32c(&bytes[s.padded_range()]) != s.checksum {
            return Err((Section(s.position), Rule::Checksum));
        }
    }
    let num_embeddings = Reference::new(bytes, table).num_embeddings();
    for s in &sections {
        let stored = &bytes[s.range()];
        let good_scale = |scale: f64| scale > 0.0 && scale.is_finite();
        let bad = match (s.role, format::row_header(s.dtype)) {
            (format::ROLE_SCALES, _) => {
                (0..stored.len() / 4).find(|&i| !good_scale(element(stored, format::DTYPE_F32, i)))
            }
            (format::ROLE_ROWS | format::ROLE_OVERRIDE_ROWS, Some(header)) => stored
                .chunks(format::row_len(
                    s.dtype,
                    Reference::new(bytes, table).columns_of(s.role, s.core),
                ))
                .position(|row| {
                    !good_scale(element(row, header, 0)) || !element(row, header, 1).is_finite()
                }),
            _ => None,
        };
        if let Some(position) = bad {
            let at = Element { section: s.position, position: position as u64 };
            return Err((at, Rule::Scale));
        }
    }
    let reference = Reference::new(bytes, table);
    let bad = |ids: &[u64], limit| {
        (0..ids.len()).find(|&i| ids[i] >= limit || (i > 0 && ids[i - 1] >= ids[i]))
    };
    let refused = |role, rule, position: Option<usize>| {
        let position = position? as u64;
        let section = sections.iter().find(|s| s.role == role)?.position;
        Some((Element { section, position }, rule))
    };
    let prefixes = bad(&reference.prefix_ids(), reference.num_prefixes());
    let prefixes = refused(format::ROLE_PREFIX_IDS, Rule::Ids, prefixes);
    let overrides = bad(reference.override_ids(), num_embeddings);
    let overrides = refused(format::ROLE_OVERRIDE_IDS, Rule::Ids, overrides);
    let codes = refused(format::ROLE_CODES, Rule::Code, reference.first_bad_code());
    let remapped = reference.remapped_rows().iter().position(|&row| row >= reference.num_rows());
    let remapped = refused(format::ROLE_REMAPPED_ROWS, Rule::RemappedRow, remapped);
    prefixes.or(codes).or(remapped).or(overrides).map_or(Ok(()), Err)
}
