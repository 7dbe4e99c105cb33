//! Rows and bags agree with the f64 oracle; wrong arguments are refused and change nothing.

use crate::support::{
    format,
    oracle::{Approx, Mode, Reference},
    random::{Values, build, one_of_each, tables},
    rng::Rng,
    tiers,
};
use proptest::{
    prelude::*,
    test_runner::{TestError, TestRunner},
};
use std::cell::Cell;
use ttrec::{
    AlignedBuf, Bags, BagsError, Blob, LookupError, Pooling, Table, Tier, TtShape,
    blob::{Layout, OverridesSpec, Role, TableSpec, WeightsSpec},
    dtype::{self, Dtype},
};

/// What outputs and workspaces hold before: a value no test produces.
const SENTINEL: f32 = -7.0e37;

fn lookup(table: &Table<'_>, row: u64) -> Vec<f32> {
    let mut out = vec![SENTINEL; table.embedding_dim()];
    table
        .lookup(row, &mut out, &mut vec![f32::NAN; table.workspace_len(1)])
        .unwrap();
    out
}

/// Pools with u64 and with u32 indices, which must give the same bits.
fn bag(
    table: &Table<'_>,
    indices: &[u64],
    offsets: &[u64],
    weights: &[f32],
    mode: Mode,
) -> Vec<f32> {
    let pooling = match mode {
        Mode::Sum | Mode::Weighted => Pooling::Sum,
        Mode::Mean => Pooling::Mean,
        Mode::Max => Pooling::Max,
    };
    let len = (offsets.len() - 1) * table.embedding_dim();
    let mut wide = Bags::new(indices, offsets).unwrap();
    let (narrow_indices, narrow_offsets) = (narrow(indices), narrow(offsets));
    let mut thin = Bags::new(&narrow_indices, &narrow_offsets).unwrap();
    if mode == Mode::Weighted {
        wide = wide.with_per_sample_weights(weights).unwrap();
        thin = thin.with_per_sample_weights(weights).unwrap();
    }
    let mut out = vec![SENTINEL; len];
    table
        .pool(&wide, pooling, &mut out, &mut vec![f32::NAN; table.workspace_len(1)])
        .unwrap();
    let mut again = vec![f32::NAN; len];
    table
        .pool(&thin, pooling, &mut again, &mut vec![f32::INFINITY; table.workspace_len(1)])
        .unwrap();
    assert_eq!(bits(&out), bits(&again), "u64 and u32 indices");
    out
}

/// Every table of a blob on every tier.
fn tables_on_every_tier(bytes: &[u8]) -> Vec<Table<'_>> {
    let mut tables = Vec::new();
    for table in Blob::parse(bytes).unwrap().tables() {
        tables.extend(tiers::available().into_iter().map(|tier| table.with_tier(tier)));
    }
    tables
}

fn narrow(wide: &[u64]) -> Vec<u32> {
    wide.iter().map(|&n| n.try_into().unwrap()).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// What the random cases covered.
#[derive(Default)]
struct Coverage {
    rows: Cell<usize>,
    overridden: Cell<usize>,
    empty_bags: Cell<usize>,
    /// Pairs of different rows, and how many of them the bound told apart.
    pairs: Cell<usize>,
    told_apart: Cell<usize>,
    /// By kind (from dense on) and dtype code; no core and no book is i4.
    kinds: [[Cell<usize>; 5]; 5],
    /// By index map and kind.
    maps: [[Cell<usize>; 5]; 3],
    overridden_as: [Cell<usize>; 5],
    /// By position among the tiers.
    tiers: [Cell<usize>; 8],
}

fn count(cell: &Cell<usize>) {
    cell.set(cell.get() + 1);
}

/// Looks up and pools a sample of the rows of every table and hands what was found and what was
/// expected to `check`.
fn compare(
    bytes: &AlignedBuf,
    specs: &[TableSpec],
    seed: u64,
    coverage: &Coverage,
    check: fn(f32, Approx) -> bool,
) {
    let blob = Blob::parse(bytes).unwrap();
    blob.verify_payload().unwrap();
    assert_eq!(blob.num_tables(), specs.len());
    let mut rng = Rng::new(seed);
    for (position, table) in blob.tables().enumerate() {
        let name = format::name_of(bytes, position);
        let reference = Reference::new(bytes, position);
        assert!(specs.iter().any(|spec| spec.name == name));
        assert_eq!(blob.table(name).unwrap().name(), name);
        let (n, dim) = (table.num_embeddings(), table.embedding_dim());
        assert_eq!((n, dim), (reference.num_embeddings(), reference.embedding_dim()));
        let kind = usize::from(reference.kind()) - 1;
        count(&coverage.kinds[kind][usize::from(reference.dtype()) - 1]);
        count(&coverage.maps[usize::from(reference.index_map())][kind]);
        for section in format::sections_of(bytes, position) {
            if section.role == format::ROLE_OVERRIDE_ROWS {
                count(&coverage.overridden_as[usize::from(section.dtype) - 1]);
            }
        }

        let ids = reference.override_ids();
        let mut rows = vec![0, n - 1, rng.below(n), rng.below(n)];
        rows.extend(ids.first().into_iter().chain(ids.last()));
        rows.extend(ids.first().map(|id| (id + 1) % n));
        let expected: Vec<Vec<Approx>> = rows.iter().map(|&row| reference.row(row)).collect();
        let agree =
            |found: &[f32], expected: &[Approx], what: &dyn std::fmt::Debug, exact: bool| {
                assert_eq!(found.len(), expected.len());
                let check = if exact {
                    check
                } else {
                    |found, expected: Approx| expected.admits(found)
                };
                for (j, (&x, &y)) in found.iter().zip(expected).enumerate() {
                    assert!(check(x, y), "{name:?} {what:?} column {j}: {x} is not {y:?}");
                }
            };
        let tables: Vec<Table<'_>> =
            tiers::available().into_iter().map(|tier| table.with_tier(tier)).collect();
        for (&row, expected_row) in rows.iter().zip(&expected) {
            let found: Vec<_> =
                tables.iter().map(|table| (table.tier(), bits(&lookup(table, row)))).collect();
            tiers::assert_fused_agree(&found);
            for ((tier, found), cell) in found.iter().zip(&coverage.tiers) {
                let found: Vec<f32> = found.iter().map(|&bits| f32::from_bits(bits)).collect();
                agree(&found, expected_row, &(tier.name(), "row", row), true);
                count(cell);
            }
            count(&coverage.rows);
            if ids.contains(&row) {
                count(&coverage.overridden);
            }
            let same = |other: u64| {
                other == row
                    || !ids.contains(&row)
                        && !ids.contains(&other)
                        && reference.row_of(other) == reference.row_of(row)
            };
            for (_, other_row) in rows.iter().zip(&expected).filter(|&(&other, _)| !same(other)) {
                let apart = |(x, y): (&Approx, &Approx)| (x.value - y.value).abs() > x.error;
                count(&coverage.pairs);
                if expected_row.iter().zip(other_row).any(apart) {
                    count(&coverage.told_apart);
                }
            }
        }

        let mut picks = Vec::new();
        let mut offsets = vec![0];
        for _ in 0..5 {
            let len = if rng.one_in(4) { 0 } else { 1 + rng.index(7) };
            picks.extend((0..len).map(|_| rng.index(rows.len())));
            offsets.push(picks.len() as u64);
        }
        let indices: Vec<u64> = picks.iter().map(|&pick| rows[pick]).collect();
        let weights: Vec<f32> = indices.iter().map(|_| rng.index(7) as f32 - 3.0).collect();
        for mode in Mode::ALL {
            let found: Vec<(Tier, Vec<f32>)> = tables
                .iter()
                .map(|table| (table.tier(), bag(table, &indices, &offsets, &weights, mode)))
                .collect();
            tiers::assert_fused_agree(
                &found.iter().map(|(tier, found)| (*tier, bits(found))).collect::<Vec<_>>(),
            );
            for b in 0..offsets.len() - 1 {
                let range = offsets[b] as usize..offsets[b + 1] as usize;
                let bag = &indices[range.clone()];
                let expected = reference.bag(bag, &weights[range.clone()], mode);
                for (tier, found) in &found {
                    // Means that are multiplied are rounded more than once.
                    let exact =
                        mode != Mode::Mean || reference.kind() != format::KIND_QUOTIENT_REMAINDER;
                    agree(
                        &found[b * dim..][..dim],
                        &expected,
                        &(tier.name(), mode, &indices[range.clone()]),
                        exact,
                    );
                }
                if bag.is_empty() {
                    count(&coverage.empty_bags);
                }
            }
        }
    }
}

fn run_random_cases(
    max_rank: u32,
    max_dim: u32,
    values: Values,
    check: fn(f32, Approx) -> bool,
) -> Coverage {
    let coverage = Coverage::default();
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    let result =
        TestRunner::new(config).run(&(tables(max_rank, max_dim), any::<u64>()), |(specs, seed)| {
            compare(&build(&specs, seed, values), &specs, seed, &coverage, check);
            Ok(())
        });
    if let Err(TestError::Fail(reason, (specs, seed))) = result {
        panic!("{reason}\nseed {seed}\n{specs:#?}");
    }
    assert!(
        coverage.rows.get() > 0 && coverage.overridden.get() > 0 && coverage.empty_bags.get() > 0
    );
    let [dense, tt, projected, parts, codebooks] = &coverage.kinds;
    let met = |cells: &[Cell<usize>]| cells.iter().all(|cell| cell.get() > 0);
    assert!(met(dense) && met(projected) && met(parts), "a kind and dtype that no case had");
    for kinds in [tt, codebooks] {
        assert!(
            met(&kinds[..4]) && kinds[4].get() == 0,
            "a dtype of cores or books that no case had"
        );
    }
    assert!(coverage.maps.iter().all(|kinds| met(kinds)), "an index map and kind that no case had");
    assert!(met(&coverage.overridden_as), "a dtype of overrides that no case had");
    assert!(met(&coverage.tiers[..tiers::available().len()]), "a tier that no case had");
    coverage
}

#[test]
fn random_blobs_agree_with_the_oracle() {
    let coverage =
        run_random_cases(33, 512, Values::Reals, |found, expected| expected.admits(found));
    // A bound that lets another row pass checks nothing: it must tell nearly all pairs of rows
    // apart (rows of one or two columns can be close by chance).
    let (pairs, told_apart) = (coverage.pairs.get(), coverage.told_apart.get());
    assert!(told_apart * 100 > pairs * 99, "the bound tells {told_apart} of {pairs} pairs apart");
}

#[test]
fn integer_valued_blobs_agree_exactly() {
    // 5^5 paths of units, scales of at most 2^6 in all, 7 rows to a bag, weights of at most 3:
    // every partial sum is an integer below 4.2e6, which f32 holds exactly. (i4 elements are
    // below 2^5, scale and offset included.) A mean is one rounding of the exact quotient.
    run_random_cases(5, 512, Values::Integers, |found, expected| {
        let exact = expected.value as f32;
        found == exact && exact.is_finite()
    });
}

#[test]
fn rows_and_prefixes_are_found_by_their_index() {
    let shape = TtShape::new(2000, &[20, 25, 4], &[2, 2, 3], &[4, 3]).unwrap();
    let overrides = |count| Some(OverridesSpec { count, dtype: Dtype::F32 });
    let tt = TableSpec::new("tt", WeightsSpec::Tt { shape, dtype: Dtype::F32 });
    let dense = WeightsSpec::Dense { num_embeddings: 1000, embedding_dim: 5, dtype: Dtype::I8 };
    let specs = [
        TableSpec { num_prefixes: 300, overrides: overrides(700), ..tt },
        TableSpec { overrides: overrides(1000), ..TableSpec::new("dense", dense) },
    ];
    let buf = build(&specs, 3, Values::Reals);
    let indices = |role| {
        (0..format::num_sections(&buf))
            .filter(|&at| format::Section::read(&buf, at).role == role)
            .count()
    };
    assert_eq!([format::ROLE_OVERRIDE_INDEX, format::ROLE_PREFIX_INDEX].map(indices), [2, 1]);
    let coverage = Coverage::default();
    for seed in 0..20 {
        compare(&buf, &specs, seed, &coverage, |found, expected| expected.admits(found));
    }
    assert!(coverage.overridden.get() > 100);
    // Every row, whether it is there or not.
    let blob = Blob::parse(&buf).unwrap();
    for (position, table) in blob.tables().enumerate() {
        let reference = Reference::new(&buf, position);
        for row in 0..table.num_embeddings() {
            assert!(
                lookup(&table, row)
                    .iter()
                    .zip(reference.row(row))
                    .all(|(&found, expected)| expected.admits(found))
            );
        }
    }
}

#[test]
fn dense_f32_rows_come_back_bit_for_bit() {
    let mut rng = Rng::new(1);
    let mut values: Vec<f32> = (0..999)
        .map(|_| f32::from_bits(rng.next() as u32))
        .filter(|x| x.is_finite())
        .collect();
    values.extend([
        0.0,
        -0.0,
        f32::MIN_POSITIVE,
        -f32::MIN_POSITIVE / 8.0,
        f32::from_bits(1),
        f32::MAX,
        f32::MIN,
    ]);
    values.truncate(values.len() / 7 * 7);
    let num_embeddings = values.len() as u64 / 7;
    let weights = WeightsSpec::Dense { num_embeddings, embedding_dim: 7, dtype: Dtype::F32 };
    let table = TableSpec::new("dense", weights);
    let buf = Layout::new(&[table])
        .unwrap()
        .build(|_, out| dtype::encode_rows(&values, 7, Dtype::F32, out).unwrap());
    for table in tables_on_every_tier(&buf) {
        for (row, expected) in (0..).zip(values.chunks(7)) {
            assert_eq!(
                bits(&lookup(&table, row)),
                bits(expected),
                "{} row {row}",
                table.tier().name()
            );
        }
    }
}

/// A dense table of one row that holds these bytes.
fn one_row(bytes: &[u8], embedding_dim: usize, dtype: Dtype) -> AlignedBuf {
    let weights = WeightsSpec::Dense { num_embeddings: 1, embedding_dim, dtype };
    let table = TableSpec::new("t", weights);
    Layout::new(&[table]).unwrap().build(|_, out| out.copy_from_slice(bytes))
}

#[test]
fn every_bit_pattern_of_the_narrow_dtypes_decodes_exactly() {
    let halves: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let mut scaled = [1.0f32.to_le_bytes(), 0.5f32.to_le_bytes()].concat();
    scaled.extend(0..=u8::MAX);
    // Every pair of half-bytes, with scale 2 and offset -3.5; an odd number of columns.
    let mut nibbles = [0x4000u16.to_le_bytes(), 0xc300u16.to_le_bytes()].concat();
    nibbles.extend(0..=u8::MAX);
    for (dtype, bytes, dim) in [
        (Dtype::F16, &halves, 1 << 16),
        (Dtype::Bf16, &halves, 1 << 16),
        (Dtype::I8, &scaled, 256),
        (Dtype::I4, &nibbles, 511),
    ] {
        let buf = one_row(bytes, dim, dtype);
        let expected = Reference::new(&buf, 0).row(0);
        for table in tables_on_every_tier(&buf) {
            let found = lookup(&table, 0);
            assert_eq!(found.len(), dim);
            for (pattern, (&x, y)) in found.iter().zip(&expected).enumerate() {
                let same = f64::from(x) == y.value || (x.is_nan() && y.value.is_nan());
                assert!(same, "{} {pattern:#x}: {x} is not {}", dtype.name(), y.value);
                assert!(
                    y.value != 0.0 || x.is_sign_negative() == y.value.is_sign_negative(),
                    "sign of zero"
                );
            }
        }
    }
}

#[test]
fn half_floats_are_encoded_to_the_nearest_and_ties_to_even() {
    for (dtype, code) in [(Dtype::F16, format::DTYPE_F16), (Dtype::Bf16, format::DTYPE_BF16)] {
        let value =
            |pattern: u16| crate::support::oracle::element(&pattern.to_le_bytes(), code, 0) as f32;
        let encode = |x: f32| {
            let mut out = [0; 2];
            dtype::encode(&[x], dtype, &mut out).map(|()| u16::from_le_bytes(out))
        };
        let finite: Vec<u16> =
            (0..0x7fff).filter(|&pattern| value(pattern + 1).is_finite()).collect();
        assert!(finite.len() > 30_000);
        for low in finite {
            // f32 has the bits for the middle of two neighbours, except among the smallest bf16
            // subnormals.
            let middle = ((f64::from(value(low)) + f64::from(value(low + 1))) / 2.0) as f32;
            let even = low + low % 2;
            assert_eq!(encode(value(low)), Ok(low));
            assert_eq!(encode(middle), Ok(even), "{} between {low:#x} and the next", dtype.name());
            assert_eq!(encode(-middle), Ok(even | 0x8000));
            assert_eq!(encode(middle.next_down()), Ok(low));
            assert_eq!(encode(middle.next_up()), Ok(low + 1));
        }
    }
}

#[test]
fn many_small_i8_scales_do_not_underflow() {
    // Each scale is fine; the product of all six is below the least f32.
    let shape = TtShape::new(1, &[1; 6], &[1; 6], &[16; 5]).unwrap();
    let row = |dtype| {
        let table = TableSpec::new("t", WeightsSpec::Tt { shape, dtype });
        let scale = Cell::new(1.0f32);
        let buf = Layout::new(&[table]).unwrap().build(|section, out| match section.role {
            Role::Core(_) => {
                let values =
                    vec![3e-6; section.len as usize / if dtype == Dtype::F32 { 4 } else { 1 }];
                scale.set(dtype::encode_slice(&values, dtype, out).unwrap());
            }
            _ => out.copy_from_slice(&scale.get().to_le_bytes()),
        });
        tables_on_every_tier(&buf)
            .iter()
            .map(|table| lookup(table, 0)[0])
            .collect::<Vec<_>>()
    };
    for (exact, quantised) in row(Dtype::F32).into_iter().zip(row(Dtype::I8)) {
        assert!(
            exact > 0.0 && ((quantised - exact) / exact).abs() < 1e-5,
            "{quantised} for {exact}"
        );
    }
}

#[test]
fn encoded_values_read_back_within_the_error_the_encoder_promises() {
    let mut rng = Rng::new(5);
    let values: Vec<f32> =
        (0..600).map(|_| (rng.below(1 << 20) as f32 / 1e5 - 5.0) * 0.37).collect();
    for &dtype in Dtype::ALL {
        let buf = {
            let weights = WeightsSpec::Dense { num_embeddings: 30, embedding_dim: 20, dtype };
            let dense = TableSpec::new("dense", weights);
            let shape = TtShape::new(30, &[1, 30], &[1, 20], &[1]).unwrap();
            let tt = TableSpec::new("tt", WeightsSpec::Tt { shape, dtype });
            let tables = if dtype.suits_cores() {
                vec![dense, tt]
            } else {
                vec![dense]
            };
            // The first core is 1: what the second core's slices hold are the rows.
            let scales = Cell::new([0.0; 30]);
            Layout::new(&tables).unwrap().build(|section, out| match section.role {
                Role::Rows => dtype::encode_rows(&values, 20, dtype, out).unwrap(),
                // With a scale of 1.
                Role::Core(0) if dtype == Dtype::I8 => out[0] = 1,
                Role::Core(0) => dtype::encode(&[1.0], dtype, out).unwrap(),
                Role::Scales(0) => out.copy_from_slice(&1.0f32.to_le_bytes()),
                Role::Core(_) => {
                    let len = out.len() / 30;
                    let mut found = [0.0; 30];
                    for ((values, out), scale) in
                        values.chunks(20).zip(out.chunks_mut(len)).zip(&mut found)
                    {
                        *scale = dtype::encode_slice(values, dtype, out).unwrap();
                    }
                    scales.set(found);
                }
                Role::Scales(_) => {
                    out.chunks_mut(4)
                        .zip(scales.get())
                        .for_each(|(out, s)| out.copy_from_slice(&s.to_le_bytes()));
                }
                role => panic!("{role:?}"),
            })
        };
        let blob = Blob::parse(&buf).unwrap();
        blob.verify_payload().unwrap();
        for table in tables_on_every_tier(&buf) {
            let name = table.name();
            let steps = if name == "dense" { 255.0 } else { 127.0 };
            for (row, values) in (0..).zip(values.chunks(20)) {
                let largest = values.iter().fold(f32::MIN, |a, &x| a.max(x));
                let least = values.iter().fold(f32::MAX, |a, &x| a.min(x));
                let range = if name == "dense" {
                    largest - least
                } else {
                    largest.max(-least)
                };
                let (mut squares, mut bounds) = (0.0, 0.0);
                for (&x, &found) in values.iter().zip(&lookup(&table, row)) {
                    let error = (f64::from(found) - f64::from(x)).abs();
                    // Half a unit in the last place, or half a step and the rounding of `scale * q
                    // + offset` in f32.
                    let bound = match dtype {
                        Dtype::F32 => 0.0,
                        Dtype::F16 => f64::from(x.abs()) * 2f64.powi(-11) + 2f64.powi(-25),
                        Dtype::Bf16 => f64::from(x.abs()) * 2f64.powi(-8),
                        // Of the row, since its range is chosen by the sum of squares. The scale is
                        // off by 2^-11 of itself, of which an element has up to fifteen; so is the
                        // offset.
                        Dtype::I4 => {
                            f64::from(range) * (0.5 / 15.0 + 1.1 * 2f64.powi(-11))
                                + f64::from(least.abs()) * 2f64.powi(-11)
                                + 2f64.powi(-21)
                        }
                        Dtype::I8 => {
                            f64::from(range) * (0.5 / steps + 4.0 * 2f64.powi(-24))
                                + f64::from(x.abs()) * 2f64.powi(-23)
                        }
                        _ => unreachable!(),
                    };
                    squares += error * error;
                    bounds += bound * bound;
                    assert!(
                        error <= bound || dtype == Dtype::I4,
                        "{name} {}: {x} became {found}, off by {error}",
                        dtype.name()
                    );
                }
                assert!(squares <= bounds, "{name} {}: row {row}: {squares:e}", dtype.name());
            }
        }
    }
}

/// A dense and a tensor-train table, 6 rows of 4 columns each.
fn two_kinds() -> AlignedBuf {
    let shape = TtShape::new(6, &[2, 2, 2], &[1, 2, 2], &[3, 2]).unwrap();
    let tt = WeightsSpec::Tt { shape, dtype: Dtype::F32 };
    let dense = WeightsSpec::Dense { num_embeddings: 6, embedding_dim: 4, dtype: Dtype::F16 };
    let table = |(name, weights): (&str, _)| TableSpec::new(name, weights);
    build(&[("dense", dense), ("tt", tt)].map(table), 3, Values::Reals)
}

/// `refused` must say so in the same words every time and leave the sentinels in `out`.
fn assert_refused(
    len: usize,
    expected: LookupError,
    refused: impl Fn(&mut [f32]) -> Result<(), LookupError>,
) {
    let mut out = vec![SENTINEL; len];
    assert_eq!(refused(&mut out), Err(expected));
    assert!(out.iter().all(|&x| x == SENTINEL), "{expected:?} wrote to the output");
}

#[test]
fn rows_out_of_range_are_refused_and_nothing_is_written() {
    let buf = two_kinds();
    for table in tables_on_every_tier(&buf) {
        for index in [6, 7, 8, u64::from(u32::MAX), 1 << 32, (1 << 32) + 1, u64::MAX] {
            let expected = LookupError::IndexOutOfRange { position: 0, index, num_embeddings: 6 };
            assert_refused(4, expected, |out| {
                table.lookup(index, out, &mut vec![0.0; table.workspace_len(1)])
            });
        }
    }
}

#[test]
fn an_index_out_of_range_at_any_position_of_a_bag_is_named_and_nothing_is_written() {
    let buf = two_kinds();
    for table in tables_on_every_tier(&buf) {
        for position in 0..9 {
            for bad in [6, 1 << 33, u64::MAX] {
                let mut indices = [0u64, 1, 2, 3, 4, 5, 0, 1, 2];
                indices[position] = bad;
                // The first of two is the one that is named.
                if position + 1 < indices.len() {
                    indices[position + 1] = bad - 1 + u64::from(bad == 6);
                }
                let bags = Bags::new(&indices, &[0, 3, 3, 9]).unwrap();
                for pooling in [Pooling::Sum, Pooling::Mean, Pooling::Max] {
                    let expected =
                        LookupError::IndexOutOfRange { position, index: bad, num_embeddings: 6 };
                    assert_refused(12, expected, |out| {
                        table.pool(&bags, pooling, out, &mut vec![0.0; table.workspace_len(1)])
                    });
                }
                let Ok(bad) = u32::try_from(bad) else { continue };
                let mut indices = [0u32; 9];
                indices[position] = bad;
                let bags = Bags::new(&indices, &[0, 3, 3, 9]).unwrap();
                let expected =
                    LookupError::IndexOutOfRange { position, index: bad.into(), num_embeddings: 6 };
                assert_refused(12, expected, |out| {
                    table.pool(&bags, Pooling::Sum, out, &mut vec![0.0; table.workspace_len(1)])
                });
            }
        }
    }
}

#[test]
fn outputs_of_the_wrong_length_are_refused_and_nothing_is_written() {
    let buf = two_kinds();
    for table in tables_on_every_tier(&buf) {
        for found in [0, 3, 5, 8] {
            let expected = LookupError::OutputLen { found, expected: 4 };
            assert_refused(found, expected, |out| {
                table.lookup(0, out, &mut vec![0.0; table.workspace_len(1)])
            });
        }
        let bags = Bags::new(&[0u32, 1, 2], &[0, 1, 3]).unwrap();
        for found in [0, 4, 7, 9, 12] {
            let expected = LookupError::OutputLen { found, expected: 8 };
            assert_refused(found, expected, |out| {
                table.pool(&bags, Pooling::Sum, out, &mut vec![0.0; table.workspace_len(1)])
            });
        }
    }
}

#[test]
fn short_workspaces_are_refused_and_nothing_is_written() {
    let buf = two_kinds();
    let blob = Blob::parse(&buf).unwrap();
    assert_eq!(blob.table("dense").unwrap().workspace_len(1), 0);
    let table = blob.table("tt").unwrap();
    let expected = table.workspace_len(1);
    assert!(expected > 0);
    let bags = Bags::new(&[0u32], &[0, 1]).unwrap();
    for found in 0..expected {
        let error = LookupError::WorkspaceLen { found, expected };
        assert_refused(4, error, |out| table.lookup(0, out, &mut vec![0.0; found]));
        assert_refused(4, error, |out| table.pool(&bags, Pooling::Max, out, &mut vec![0.0; found]));
    }
    let (mut exact, mut longer) = ([0.0; 4], [0.0; 4]);
    table.lookup(5, &mut exact, &mut vec![f32::NAN; expected]).unwrap();
    table.lookup(5, &mut longer, &mut vec![f32::NAN; expected + 9]).unwrap();
    assert_eq!(exact, longer);
}

#[test]
fn offsets_that_are_no_offsets_are_refused() {
    let refused = |num_indices: usize, offsets: &[u64]| {
        let indices = vec![0u64; num_indices];
        let wide = Bags::new(&indices, offsets).map(|_| ());
        if offsets.iter().all(|&offset| u32::try_from(offset).is_ok()) {
            assert_eq!(Bags::new(&narrow(&indices), &narrow(offsets)).map(|_| ()), wide);
        }
        wide.unwrap_err()
    };
    let wrong = |position, found, num_indices| BagsError::Offsets { position, found, num_indices };
    assert_eq!(refused(0, &[]), BagsError::OffsetsEmpty);
    assert_eq!(refused(3, &[]), BagsError::OffsetsEmpty);
    assert_eq!(refused(3, &[1, 3]), wrong(0, 1, 3), "does not start at 0");
    assert_eq!(refused(3, &[0, 2, 1, 3]), wrong(2, 1, 3), "falls");
    assert_eq!(refused(3, &[0, 4]), wrong(1, 4, 3), "ends past the last index");
    assert_eq!(refused(3, &[0, 4, 3]), wrong(1, 4, 3), "passes the last index");
    assert_eq!(refused(3, &[0, 2]), wrong(1, 2, 3), "ends before the last index");
    assert_eq!(refused(3, &[0]), wrong(0, 0, 3), "no bags, but indices");
    assert_eq!(refused(3, &[0, u64::MAX, 3]), wrong(1, u64::MAX, 3));
    assert_eq!(
        refused(1, &[0, (1 << 32) + 1]),
        wrong(1, (1 << 32) + 1, 1),
        "right only in 32 bits"
    );
}

#[test]
fn signed_indices_and_offsets_are_those_of_their_unsigned_type_unless_they_are_negative() {
    let buf = two_kinds();
    for table in tables_on_every_tier(&buf) {
        let pool = |bags: &Bags<'_>| {
            let mut out = [0.0; 8];
            let pooled =
                table.pool(bags, Pooling::Sum, &mut out, &mut vec![0.0; table.workspace_len(3)]);
            pooled.map(|()| out)
        };
        let unsigned = pool(&Bags::new(&[3u32, 0, 5], &[0, 2, 3]).unwrap());
        assert!(unsigned.is_ok());
        assert_eq!(pool(&Bags::new(&[3i32, 0, 5], &[0, 2, 3]).unwrap()), unsigned);
        assert_eq!(pool(&Bags::new(&[3i64, 0, 5], &[0, 2, 3]).unwrap()), unsigned);
        let negative = |index| Err(LookupError::NegativeIndex { position: 1, index });
        assert_eq!(pool(&Bags::new(&[3i32, -7, 5], &[0, 2, 3]).unwrap()), negative(-7));
        assert_eq!(pool(&Bags::new(&[3, i64::MIN, 5], &[0, 2, 3]).unwrap()), negative(i64::MIN));
        let far = i32::MAX as u64;
        assert_eq!(
            pool(&Bags::new(&[3, i32::MAX, 5], &[0, 2, 3]).unwrap()),
            Err(LookupError::IndexOutOfRange {
                position: 1,
                index: far,
                num_embeddings: table.num_embeddings()
            })
        );
    }
    let negative = BagsError::NegativeOffset { position: 1, offset: -1 };
    assert_eq!(Bags::new(&[0i32, 1], &[0, -1, 2]).unwrap_err(), negative);
    assert_eq!(Bags::new(&[0i64, 1], &[0, -1, 2]).unwrap_err(), negative);
}

#[test]
fn no_bags_need_no_output() {
    let buf = two_kinds();
    for table in tables_on_every_tier(&buf) {
        let bags = Bags::new(&[], &[0u32]).unwrap();
        assert!(bags.is_empty());
        table
            .pool(&bags, Pooling::Max, &mut [], &mut vec![0.0; table.workspace_len(1)])
            .unwrap();
        let expected = LookupError::OutputLen { found: 4, expected: 0 };
        assert_refused(4, expected, |out| {
            table.pool(&bags, Pooling::Max, out, &mut vec![0.0; table.workspace_len(1)])
        });
    }
}

#[test]
fn weights_are_one_per_index_and_for_sums_only() {
    let bags = Bags::new(&[0u32, 1, 2], &[0, 1, 3]).unwrap();
    for found in [0, 1, 2, 4] {
        let error = bags.with_per_sample_weights(&vec![1.0; found]).unwrap_err();
        assert_eq!(error, BagsError::WeightsLen { found, expected: 3 });
    }
    let weighted = bags.with_per_sample_weights(&[1.0, 2.0, 3.0]).unwrap();
    let buf = two_kinds();
    for table in tables_on_every_tier(&buf) {
        for pooling in [Pooling::Mean, Pooling::Max] {
            let refused = |out: &mut [f32]| {
                table.pool(&weighted, pooling, out, &mut vec![0.0; table.workspace_len(1)])
            };
            assert_refused(8, LookupError::WeightsPooling, refused);
        }
    }
}

#[test]
fn a_bag_has_the_same_bits_in_whatever_batch_it_comes() {
    for (seed, buf) in (0..).zip(one_of_each()) {
        let mut rng = Rng::new(seed);
        for table in tables_on_every_tier(&buf) {
            let dim = table.embedding_dim();
            let mut draw = |len: usize| -> (Vec<u64>, Vec<f32>) {
                let draw =
                    |_| (rng.below(table.num_embeddings()), rng.below(1000) as f32 / 300.0 - 1.5);
                (0..len).map(draw).unzip()
            };
            let (indices, weights) = draw(5);
            for mode in Mode::ALL {
                let alone = bag(&table, &indices, &[0, 5], &weights, mode);
                for before in [0usize, 1, 2, 7] {
                    for after in [0usize, 1, 3, 8] {
                        let (mut batch, mut batch_weights) = draw(before);
                        batch.extend(&indices);
                        batch_weights.extend(&weights);
                        let (more, more_weights) = draw(after);
                        batch.extend(more);
                        batch_weights.extend(more_weights);
                        let (start, end) = (before as u64, before as u64 + 5);
                        let offsets = [0, start, start, end, end + after as u64];
                        let found = bag(&table, &batch, &offsets, &batch_weights, mode);
                        assert_eq!(
                            bits(&found[2 * dim..3 * dim]),
                            bits(&alone),
                            "{mode:?} {}",
                            table.name()
                        );
                        assert!(
                            found[dim..2 * dim].iter().all(|x| x.to_bits() == 0),
                            "the empty bag"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_a_bag_of_one() {
    for buf in one_of_each() {
        for table in tables_on_every_tier(&buf) {
            for row in 0..table.num_embeddings() {
                // A sum starts at 0, which takes the sign from a negative zero; a product of sums
                // may give it back.
                let unsigned =
                    |row: Vec<f32>| bits(&row.iter().map(|x| x + 0.0).collect::<Vec<_>>());
                for mode in [Mode::Sum, Mode::Mean] {
                    let found = bag(&table, &[row], &[0, 1], &[], mode);
                    assert_eq!(unsigned(found), unsigned(lookup(&table, row)));
                }
                assert_eq!(bag(&table, &[row], &[0, 1], &[], Mode::Max), lookup(&table, row));
                assert_eq!(
                    bag(&table, &[row], &[0, 1], &[1.0], Mode::Weighted),
                    lookup(&table, row)
                );
            }
        }
    }
}
