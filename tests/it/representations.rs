//! Projected and quotient-remainder tables, and mapped ones of every kind: bags agree with the f64
//! oracle at sizes around the edges of tiles and of what is done at once, and their bits depend on
//! nothing but the bag.

use crate::support::{
    format::{self, ROLE_REMAPPED_ROWS, section, section_at, sections_of},
    oracle::{Mode, Reference},
    random::{CORE_DTYPES, Values, build, codebook, num_rows, remapped},
    rng::Rng,
    tiers,
};
use ttrec::{
    AlignedBuf, Bags, Blob, Pooling, Table, TtShape,
    bag::pool_tables,
    blob::{IndexMapSpec, Layout, Location, OverridesSpec, Role, Rule, TableSpec, WeightsSpec},
    cache::RowCache,
    dtype::Dtype,
    repr::{CodeDtype, Combine, RowNumberDtype},
};

/// Columns around the edges of tiles.
const SIZES: [usize; 10] = [1, 2, 3, 4, 7, 8, 16, 17, 33, 64];

/// Bags, empty ones among them, and one that is longer than what is looked up at once.
struct Batch {
    indices: Vec<u64>,
    offsets: Vec<u64>,
    weights: Vec<f32>,
}

impl Batch {
    fn draw(lengths: &[usize], num_embeddings: u64, rng: &mut Rng) -> Self {
        let mut batch = Self { indices: vec![], offsets: vec![0], weights: vec![] };
        for &len in lengths {
            batch.indices.extend((0..len).map(|_| rng.below(num_embeddings)));
            batch.weights.extend((0..len).map(|_| rng.below(9) as f32 / 4.0 - 1.0));
            batch.offsets.push(batch.indices.len() as u64);
        }
        batch
    }

    fn pool(&self, table: &Table<'_>, mode: Mode, workspace_len: usize) -> Vec<f32> {
        self.pool_as(table, mode, workspace_len, |bags| bags)
    }

    fn pool_as(
        &self,
        table: &Table<'_>,
        mode: Mode,
        workspace_len: usize,
        change: impl Fn(Bags<'_>) -> Bags<'_>,
    ) -> Vec<f32> {
        let (bags, pooling) = self.bags(mode);
        let mut out = vec![f32::NAN; bags.len() * table.embedding_dim()];
        table
            .pool(&change(bags), pooling, &mut out, &mut vec![f32::NAN; workspace_len])
            .unwrap();
        out
    }

    fn bags(&self, mode: Mode) -> (Bags<'_>, Pooling) {
        let bags = Bags::new(&self.indices, &self.offsets).unwrap();
        match mode {
            Mode::Sum => (bags, Pooling::Sum),
            Mode::Weighted => (bags.with_per_sample_weights(&self.weights).unwrap(), Pooling::Sum),
            Mode::Mean => (bags, Pooling::Mean),
            Mode::Max => (bags, Pooling::Max),
        }
    }

    fn ranges(&self) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
        self.offsets.windows(2).map(|offsets| offsets[0] as usize..offsets[1] as usize)
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

fn projected(
    num_embeddings: u64,
    [rank, embedding_dim]: [usize; 2],
    dtype: Dtype,
    projection: Dtype,
) -> WeightsSpec {
    WeightsSpec::Projected { num_embeddings, embedding_dim, rank, dtype, projection }
}

fn parts(
    num_embeddings: u64,
    num_remainders: u32,
    columns: [usize; 2],
    combine: Combine,
    dtype: Dtype,
) -> WeightsSpec {
    WeightsSpec::QuotientRemainder { num_embeddings, num_remainders, columns, combine, dtype }
}

fn overridden(count: u64, weights: WeightsSpec) -> TableSpec {
    let overrides = (count > 0).then_some(OverridesSpec { count, dtype: Dtype::F32 });
    TableSpec { overrides, ..TableSpec::new("t", weights) }
}

/// Rows and bags on every tier, with every workspace that makes a difference, by the oracle.
fn check_by_the_oracle(spec: TableSpec, seed: u64) {
    let buf = build(&[spec], seed, Values::Reals);
    let blob = Blob::parse(&buf).unwrap();
    blob.verify_payload().unwrap();
    let reference = Reference::new(&buf, 0);
    let mut rng = Rng::new(seed);
    let table = blob.table("t").unwrap();
    let n = table.num_embeddings();
    let batch = Batch::draw(&[1, 0, 3, 2, 0, 40, 5], n, &mut rng);
    let what = || format!("{:?} {:?}", table.data().weights(), table.data().index_map());
    for table in tiers::available().into_iter().map(|tier| table.with_tier(tier)) {
        let tier = table.tier().name();
        for index in [0, n / 2, n - 1] {
            let mut row = vec![f32::NAN; table.embedding_dim()];
            table
                .lookup(index, &mut row, &mut vec![f32::NAN; table.workspace_len(1)])
                .unwrap();
            for (x, y) in row.iter().zip(reference.row(index)) {
                assert!(y.admits(*x), "{tier} row {index}: {x} for {y:?} of {}", what());
            }
        }
        for mode in Mode::ALL {
            let found = batch.pool(&table, mode, table.workspace_len(1));
            for (range, found) in batch.ranges().zip(found.chunks(table.embedding_dim())) {
                let expected = reference.bag(
                    &batch.indices[range.clone()],
                    &batch.weights[range.clone()],
                    mode,
                );
                for (x, y) in found.iter().zip(expected) {
                    assert!(y.admits(*x), "{tier} {mode:?} {range:?}: {x} for {y:?} of {}", what());
                }
            }
            for len in
                [table.workspace_len(1) + 1, 3 * table.workspace_len(1), table.workspace_len(51)]
            {
                assert_eq!(
                    bits(&batch.pool(&table, mode, len)),
                    bits(&found),
                    "{tier} {mode:?} workspace of {len}"
                );
            }
        }
    }
}

#[test]
fn projected_tables_agree_with_the_oracle_around_the_edges_of_tiles() {
    for (i, rank) in SIZES.into_iter().enumerate() {
        for (j, dim) in SIZES.into_iter().enumerate() {
            let dtype = Dtype::ALL[(i + j) % 5];
            let weights = projected(37, [rank, dim], dtype, CORE_DTYPES[(i + 2 * j) % 3]);
            check_by_the_oracle(overridden([0, 5][(i + j) % 2], weights), (i * 10 + j) as u64);
        }
    }
}

#[test]
fn quotient_remainder_tables_agree_with_the_oracle_around_the_edges_of_tiles() {
    for (i, first) in SIZES.into_iter().enumerate() {
        for (j, combine) in Combine::ALL.iter().copied().enumerate() {
            for (k, num_remainders) in [1, 4, 37, 50].into_iter().enumerate() {
                let columns = [
                    first,
                    if combine == Combine::Concat {
                        SIZES[(i + k) % 10]
                    } else {
                        first
                    },
                ];
                let weights =
                    parts(37, num_remainders, columns, combine, Dtype::ALL[(i + j + k) % 5]);
                check_by_the_oracle(
                    overridden([0, 7][(i + k) % 2], weights),
                    (i * 100 + j * 10 + k) as u64,
                );
            }
        }
    }
}

/// Codebook tables of 37 rows, whose entries have around as many columns as a vector has lanes.
#[test]
fn codebook_tables_agree_with_the_oracle_around_the_edges_of_tiles() {
    for (i, width) in SIZES.into_iter().enumerate() {
        for (j, num_books) in [1, 2, 3, 8, 9, 17].into_iter().enumerate() {
            for combine in [Combine::Concat, Combine::Add] {
                let at = i + j + combine as usize;
                let inner = if combine == Combine::Concat {
                    num_books * width
                } else {
                    width
                };
                let projection = [None, None, Some(CORE_DTYPES[at % 3])][at % 3];
                let dims = [inner, projection.map_or(inner, |_| SIZES[(i + 3 * j) % 10])];
                let codes = CodeDtype::ALL[(i + 2 * j) % 3];
                let books = [num_books, [1, 16, 300][j % 3]];
                let dtype = CORE_DTYPES[(i + j) % 4];
                let weights = codebook(37, combine, books, dims, codes, dtype, projection);
                check_by_the_oracle(overridden([0, 5][at % 2], weights), (at * 100 + i) as u64);
            }
        }
    }
}

/// Tables of every kind, of 37 rows.
fn kinds() -> Vec<WeightsSpec> {
    let shape = |p: &[u32], q: &[u32], r: &[u32]| TtShape::new(37, p, q, r).unwrap();
    let dense = |dtype| WeightsSpec::Dense { num_embeddings: 37, embedding_dim: 19, dtype };
    let mut kinds = Dtype::ALL.iter().copied().map(dense).collect::<Vec<_>>();
    kinds.extend([
        WeightsSpec::Tt { shape: shape(&[3, 4, 5], &[2, 2, 4], &[5, 3]), dtype: Dtype::F32 },
        WeightsSpec::Tt { shape: shape(&[7, 6], &[4, 4], &[4]), dtype: Dtype::I8 },
        projected(37, [6, 21], Dtype::F16, Dtype::F32),
        parts(37, 5, [12, 12], Combine::Mult, Dtype::F32),
        parts(37, 8, [12, 12], Combine::Add, Dtype::I8),
        parts(37, 6, [9, 4], Combine::Concat, Dtype::F32),
        codebook(37, Combine::Concat, [5, 9], [20, 20], CodeDtype::U8, Dtype::F32, None),
        codebook(37, Combine::Add, [3, 9], [13, 13], CodeDtype::U12, Dtype::I8, None),
        codebook(
            37,
            Combine::Concat,
            [2, 9],
            [18, 21],
            CodeDtype::U16,
            Dtype::F16,
            Some(Dtype::F32),
        ),
    ]);
    kinds
}

/// The same table without an index map.
fn unmapped(buf: &[u8], weights: WeightsSpec) -> AlignedBuf {
    let mut sections = sections_of(buf, 0)
        .into_iter()
        .filter(|section| section.role != ROLE_REMAPPED_ROWS);
    Layout::new(&[TableSpec::new("t", weights)]).unwrap().build(|_, out| {
        out.copy_from_slice(&buf[sections.next().unwrap().range()]);
    })
}

#[test]
fn a_mapped_index_has_the_bits_of_its_row_alone_and_in_bags() {
    for weights in kinds() {
        for index_map in [
            IndexMapSpec::Modulo { num_embeddings: 1000 },
            IndexMapSpec::Modulo { num_embeddings: 1 << 40 },
            remapped(90, RowNumberDtype::U8),
            remapped(90, RowNumberDtype::U16),
            remapped(90, RowNumberDtype::U32),
        ] {
            let buf =
                build(&[TableSpec { index_map, ..TableSpec::new("t", weights) }], 5, Values::Reals);
            let plain = unmapped(&buf, weights);
            let reference = Reference::new(&buf, 0);
            let mut rng = Rng::new(7);
            let mapped = Blob::parse(&buf).unwrap().table("t").unwrap();
            assert_eq!(mapped.data().num_rows(), num_rows(&weights));
            let mut lengths = vec![3, 0, 700, 256, 1, 0];
            lengths.extend([2; 70]);
            let batch = Batch::draw(&lengths, mapped.num_embeddings(), &mut rng);
            let rows: Vec<u64> =
                batch.indices.iter().map(|&index| reference.row_of(index)).collect();
            let by_row = Batch {
                indices: rows,
                offsets: batch.offsets.clone(),
                weights: batch.weights.clone(),
            };
            for tier in tiers::available() {
                let mapped = mapped.with_tier(tier);
                let plain = Blob::parse(&plain).unwrap().table("t").unwrap().with_tier(tier);
                let mut workspace = vec![0.0; mapped.workspace_len(1)];
                for (&index, &row) in batch.indices.iter().zip(&by_row.indices).take(40) {
                    let (mut found, mut expected) =
                        (vec![0.0; mapped.embedding_dim()], vec![1.0; plain.embedding_dim()]);
                    mapped.lookup(index, &mut found, &mut workspace).unwrap();
                    plain.lookup(row, &mut expected, &mut workspace).unwrap();
                    assert_eq!(bits(&found), bits(&expected));
                }
                for mode in Mode::ALL {
                    for len in [mapped.workspace_len(1), mapped.workspace_len(batch.indices.len())]
                    {
                        let (found, expected) =
                            (batch.pool(&mapped, mode, len), by_row.pool(&plain, mode, len));
                        assert_eq!(
                            bits(&found),
                            bits(&expected),
                            "{} {mode:?} {index_map:?} {weights:?}",
                            tier.name()
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn bits_of_a_bag_depend_neither_on_the_batch_nor_on_the_workspace() {
    let maps = [
        IndexMapSpec::Identity,
        IndexMapSpec::Modulo { num_embeddings: 61 },
        remapped(61, RowNumberDtype::U24),
    ];
    for (i, weights) in kinds().into_iter().enumerate() {
        let weights_spec = weights;
        for index_map in maps {
            let spec = TableSpec { index_map, ..overridden([0, 9][i % 2], weights) };
            let buf = build(&[spec], 11, Values::Reals);
            let table = Blob::parse(&buf).unwrap().table("t").unwrap();
            // More bags than are done at once, more lookups than are, and bags that are longer.
            let mut lengths: Vec<usize> = (0..150).map(|bag| bag % 4).collect();
            lengths.extend([300, 0, 256, 255, 257]);
            let batch = Batch::draw(&lengths, table.num_embeddings(), &mut Rng::new(3));
            for table in tiers::available().into_iter().map(|tier| table.with_tier(tier)) {
                for mode in Mode::ALL {
                    let len = table.workspace_len(1);
                    let together = batch.pool(&table, mode, len);
                    assert_eq!(
                        bits(&batch.pool(&table, mode, table.workspace_len(1 << 20))),
                        bits(&together)
                    );
                    for (range, together) in
                        batch.ranges().zip(together.chunks(table.embedding_dim()))
                    {
                        let indices = batch.indices[range.clone()].to_vec();
                        let weights = batch.weights[range.clone()].to_vec();
                        let alone =
                            Batch { offsets: vec![0, indices.len() as u64], indices, weights };
                        assert_eq!(
                            bits(&alone.pool(&table, mode, len)),
                            bits(together),
                            "{mode:?} {range:?} {weights_spec:?}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_cache_changes_no_lookup_and_no_bag_but_by_the_order_of_sums() {
    for weights in kinds() {
        let spec = TableSpec {
            index_map: IndexMapSpec::Modulo { num_embeddings: 64 },
            ..overridden(4, weights)
        };
        let buf = build(&[spec], 2, Values::Reals);
        let reference = Reference::new(&buf, 0);
        let table = Blob::parse(&buf).unwrap().table("t").unwrap();
        for table in tiers::available().into_iter().map(|tier| table.with_tier(tier)) {
            let mut memory = vec![0.0; RowCache::memory_len(&table, 32)];
            let mut cache = RowCache::new(&table, &mut memory).unwrap();
            let indices: Vec<u64> = (0..64).collect();
            (0..3).for_each(|_| cache.record(&indices));
            let mut workspace = vec![0.0; table.workspace_len(1)];
            assert!(cache.refresh(&mut workspace).unwrap() > 16);
            let cached = cache.table();
            for &index in &indices {
                let (mut found, mut expected) =
                    (vec![0.0; table.embedding_dim()], vec![1.0; table.embedding_dim()]);
                cached.lookup(index, &mut found, &mut workspace).unwrap();
                table.lookup(index, &mut expected, &mut workspace).unwrap();
                assert_eq!(bits(&found), bits(&expected));
            }
            let batch = Batch::draw(&[5, 0, 60, 1], 64, &mut Rng::new(1));
            for mode in Mode::ALL {
                let len = table.workspace_len(1);
                let found = batch.pool(&cached, mode, len);
                for (range, found) in batch.ranges().zip(found.chunks(table.embedding_dim())) {
                    let expected = reference.bag(
                        &batch.indices[range.clone()],
                        &batch.weights[range.clone()],
                        mode,
                    );
                    for (x, y) in found.iter().zip(expected) {
                        // Last slices of a tensor train are summed first where that is less work.
                        let slack = if matches!(weights, WeightsSpec::Tt { .. }) {
                            1e-4
                        } else {
                            0.0
                        };
                        let admits = (f64::from(*x) - y.value).abs()
                            <= y.error + slack * y.value.abs().max(1e-3);
                        assert!(admits, "{mode:?}: {x} for {y:?} of {weights:?}");
                    }
                }
                let in_order =
                    |table: &Table<'_>| batch.pool_as(table, mode, len, |bags| bags.sequential());
                assert_eq!(
                    bits(&in_order(&cached)),
                    bits(&in_order(&table)),
                    "{mode:?} {weights:?}"
                );
                if !matches!(weights, WeightsSpec::Tt { .. }) {
                    let plain = batch.pool(&table, mode, len);
                    assert_eq!(bits(&found), bits(&plain), "{mode:?} {weights:?}");
                }
            }
        }
    }
}

#[test]
fn rows_in_index_order_are_what_a_plain_loop_over_lookups_adds() {
    for weights in kinds()
        .into_iter()
        .filter(|weights| !matches!(weights, WeightsSpec::QuotientRemainder { .. }))
    {
        let buf = build(&[overridden(6, weights)], 9, Values::Reals);
        let table = Blob::parse(&buf).unwrap().table("t").unwrap();
        let batch = Batch::draw(&[9, 0, 2, 30], 37, &mut Rng::new(8));
        for table in tiers::available().into_iter().map(|tier| table.with_tier(tier)) {
            let found =
                batch.pool_as(&table, Mode::Max, table.workspace_len(1), |bags| bags.sequential());
            for (range, found) in batch.ranges().zip(found.chunks(table.embedding_dim())) {
                let mut expected: Option<Vec<f32>> = None;
                for &index in &batch.indices[range] {
                    let mut row = vec![0.0; table.embedding_dim()];
                    table.lookup(index, &mut row, &mut vec![0.0; table.workspace_len(1)]).unwrap();
                    let larger = |largest: Vec<f32>| {
                        largest.iter().zip(&row).map(|(a, b)| a.max(*b)).collect()
                    };
                    expected = Some(expected.map_or_else(|| row.clone(), larger));
                }
                assert_eq!(found, expected.unwrap_or(vec![0.0; table.embedding_dim()]));
            }
        }
    }
}

#[test]
fn a_dense_bag_of_one_row_is_the_row_added_to_zeros() {
    for &dtype in Dtype::ALL {
        for embedding_dim in SIZES.into_iter().chain([5, 12, 15, 31, 48]) {
            let weights = WeightsSpec::Dense { num_embeddings: 300, embedding_dim, dtype };
            let buf = build(&[TableSpec::new("t", weights)], 11, Values::Reals);
            let table = Blob::parse(&buf).unwrap().table("t").unwrap();
            // More bags than rows are prefetched ahead.
            let batch = Batch::draw(&[1; 80], 300, &mut Rng::new(12));
            let narrow: Vec<u32> = batch.indices.iter().map(|&index| index as u32).collect();
            let ends: Vec<u32> = (0..=80).collect();
            let narrow = Bags::new(&narrow, &ends).unwrap();
            for table in tiers::available().into_iter().map(|tier| table.with_tier(tier)) {
                let what = || format!("{} {dtype:?} {embedding_dim}", table.tier().name());
                for mode in [Mode::Sum, Mode::Weighted, Mode::Mean, Mode::Max] {
                    let found = batch.pool(&table, mode, 0);
                    for (bag, found) in found.chunks(embedding_dim).enumerate() {
                        let mut row = vec![f32::NAN; embedding_dim];
                        table.lookup(batch.indices[bag], &mut row, &mut []).unwrap();
                        match mode {
                            Mode::Weighted => {
                                row.iter_mut().for_each(|x| *x = batch.weights[bag] * *x + 0.0);
                            }
                            Mode::Sum | Mode::Mean => row.iter_mut().for_each(|x| *x += 0.0),
                            Mode::Max => {}
                        }
                        assert_eq!(bits(found), bits(&row), "{mode:?} {}", what());
                    }
                }
                // The same beside another table, and with indices of another type.
                let sums = batch.pool(&table, Mode::Sum, 0);
                let (bags, pooling) = batch.bags(Mode::Sum);
                let mut both = vec![f32::NAN; 2 * sums.len()];
                pool_tables(&[(table, bags), (table, narrow)], pooling, &mut both, &mut [])
                    .unwrap();
                for (both, sum) in both.chunks(2 * embedding_dim).zip(sums.chunks(embedding_dim)) {
                    assert_eq!(bits(both), bits(&[sum, sum].concat()), "{}", what());
                }
            }
        }
    }
}

#[test]
fn remapped_rows_out_of_range_are_reported_and_lookups_stay_within_bounds() {
    for weights in kinds() {
        let index_map = remapped(50, RowNumberDtype::U32);
        let mut buf =
            build(&[TableSpec { index_map, ..TableSpec::new("t", weights) }], 5, Values::Reals);
        let rows = sections_of(&buf, 0)
            .into_iter()
            .find(|section| section.role == ROLE_REMAPPED_ROWS)
            .unwrap();
        for (index, row) in [(3, 37u32), (4, u32::MAX)] {
            format::put(&mut buf, rows.offset + 4 * index, &row.to_le_bytes());
        }
        // Another that is the last row anyway.
        format::put(&mut buf, rows.offset + 4 * 5, &36u32.to_le_bytes());
        format::reseal_section(&mut buf, rows.position);
        let blob = Blob::parse(&buf).unwrap();
        let error = blob.verify_payload().unwrap_err();
        let at = Location::Element { section: rows.position, position: 3 };
        assert_eq!((error.location(), error.rule()), (at, Rule::RemappedRow));
        for table in tiers::available()
            .into_iter()
            .map(|tier| blob.table("t").unwrap().with_tier(tier))
        {
            let row = |index: u64| {
                let mut row = vec![f32::NAN; table.embedding_dim()];
                table.lookup(index, &mut row, &mut vec![0.0; table.workspace_len(1)]).unwrap();
                row
            };
            assert_eq!(bits(&row(3)), bits(&row(5)));
            assert_eq!(bits(&row(4)), bits(&row(5)));
            let batch = |indices: [u64; 3]| Batch {
                indices: indices.to_vec(),
                offsets: vec![0, 2, 3],
                weights: vec![1.0, 0.5, 2.0],
            };
            for mode in Mode::ALL {
                let pool =
                    |indices| bits(&batch(indices).pool(&table, mode, table.workspace_len(1)));
                assert_eq!(pool([3, 0, 4]), pool([5, 0, 5]), "{mode:?} {weights:?}");
            }
        }
    }
}

/// DLRM pools each part with the weights and then combines: a product of sums, not a sum of
/// products.
#[test]
fn quotient_remainder_bags_combine_after_pooling() {
    let weights = |combine| parts(4, 2, [1, 1], combine, Dtype::F32);
    let values = |role| match role {
        Role::Rows => [2.0f32, 3.0],
        _ => [5.0, 7.0],
    };
    for (combine, row, sum, weighted, max) in [
        (
            Combine::Mult,
            vec![21.0],
            vec![5.0 * 12.0],
            vec![(4.0 - 3.0) * (10.0 - 7.0)],
            vec![3.0 * 7.0],
        ),
        (Combine::Add, vec![10.0], vec![5.0 + 12.0], vec![1.0 + 3.0], vec![3.0 + 7.0]),
        (Combine::Concat, vec![3.0, 7.0], vec![5.0, 12.0], vec![1.0, 3.0], vec![3.0, 7.0]),
    ] {
        let buf =
            Layout::new(&[TableSpec::new("t", weights(combine))])
                .unwrap()
                .build(|plan, out| {
                    out.copy_from_slice(&values(plan.role).map(f32::to_le_bytes).concat());
                });
        for tier in tiers::available() {
            let table = Blob::parse(&buf).unwrap().table("t").unwrap().with_tier(tier);
            let (mut out, mut workspace) =
                (vec![0.0; table.embedding_dim()], vec![0.0; table.workspace_len(1)]);
            // Row 3 is quotient row 1 and remainder row 1; rows 0 and 3 take one of each.
            table.lookup(3, &mut out, &mut workspace).unwrap();
            assert_eq!(out, row);
            let bags = Bags::new(&[0u32, 3], &[0, 2]).unwrap();
            table.pool(&bags, Pooling::Sum, &mut out, &mut workspace).unwrap();
            assert_eq!(out, sum);
            table.pool(&bags, Pooling::Max, &mut out, &mut workspace).unwrap();
            assert_eq!(out, max);
            let bags = bags.with_per_sample_weights(&[2.0, -1.0]).unwrap();
            table.pool(&bags, Pooling::Sum, &mut out, &mut workspace).unwrap();
            assert_eq!(out, weighted);
        }
    }
}

/// A part of a blob that these tests lay out has the record that the page says it has.
#[test]
fn the_second_part_is_field_one_of_core() {
    let buf = build(
        &[TableSpec::new("t", parts(9, 4, [3, 3], Combine::Add, Dtype::F16))],
        1,
        Values::Integers,
    );
    let cores: Vec<u8> =
        (0..2).map(|position| buf[section_at(&buf, position) + section::CORE]).collect();
    assert_eq!(cores, [0, 1]);
}
