//! Bags with a `padding_idx` have the bits of bags that do not have the index, however they are
//! pooled.

use crate::support::{random::one_of_each, rng::Rng};
use ttrec::{Bags, Blob, LookupError, Pooling, Table, Tier, bag::pool_tables, cache::RowCache};

/// Lengths of bags: empty, few, more than are sorted together on the stack, and more than have room
/// among the row numbers of a table's parts.
const LENS: [usize; 9] = [3, 0, 1, 2, 20, 1, 300, 7, 5];

struct Lists {
    indices: Vec<u64>,
    offsets: Vec<u64>,
    weights: Vec<f32>,
}

impl Lists {
    /// Bags in which a third of the indices is `padding`: whole bags, too.
    fn with(padding: u64, num_embeddings: u64, rng: &mut Rng) -> Self {
        let mut lists = Self { indices: Vec::new(), offsets: vec![0], weights: Vec::new() };
        for (bag, len) in LENS.into_iter().enumerate() {
            for _ in 0..len {
                let is_padding = bag == 3 || rng.one_in(3);
                lists.indices.push(if is_padding { padding } else { rng.below(num_embeddings) });
                lists.weights.push(rng.below(2000) as f32 * 0.013 - 9.0);
            }
            lists.offsets.push(lists.indices.len() as u64);
        }
        lists
    }

    fn without(&self, padding: u64) -> Self {
        let stays = |&at: &usize| self.indices[at] != padding;
        let kept = |end: u64| (0..end as usize).filter(stays);
        let all = self.indices.len() as u64;
        Self {
            indices: kept(all).map(|at| self.indices[at]).collect(),
            offsets: self.offsets.iter().map(|&end| kept(end).count() as u64).collect(),
            weights: kept(all).map(|at| self.weights[at]).collect(),
        }
    }

    fn bags(&self, mode: usize) -> (Bags<'_>, Pooling) {
        let bags = Bags::new(&self.indices, &self.offsets).unwrap();
        match mode {
            0 => (bags, Pooling::Sum),
            1 => (bags, Pooling::Mean),
            2 => (bags, Pooling::Max),
            _ => (bags.with_per_sample_weights(&self.weights).unwrap(), Pooling::Sum),
        }
    }
}

fn pool(table: &Table<'_>, bags: Bags<'_>, pooling: Pooling, num_lookups: usize) -> Vec<u32> {
    let mut out = vec![f32::NAN; bags.len() * table.embedding_dim()];
    let mut workspace = vec![f32::NAN; table.workspace_len(num_lookups)];
    table.pool(&bags, pooling, &mut out, &mut workspace).unwrap();
    out.iter().map(|x| x.to_bits()).collect()
}

fn check(table: &Table<'_>, padding: u64, rng: &mut Rng) {
    let lists = Lists::with(padding, table.num_embeddings(), rng);
    let expected = lists.without(padding);
    let narrow = |wide: &[u64]| -> Vec<i32> { wide.iter().map(|&n| n as i32).collect() };
    let (indices, offsets) = (narrow(&lists.indices), narrow(&lists.offsets));
    for mode in 0..4 {
        let (bags, pooling) = lists.bags(mode);
        let (without, _) = expected.bags(mode);
        let what = format!("{:?}, mode {mode}", table.name());
        let all = lists.indices.len();
        for num_lookups in [1, all] {
            let answer = pool(table, without, pooling, num_lookups);
            let padded = bags.with_padding_idx(padding);
            assert_eq!(pool(table, padded, pooling, num_lookups), answer, "{what}");
        }
        let pool = |bags| pool(table, bags, pooling, all);
        let sequential = pool(bags.with_padding_idx(padding).sequential());
        assert_eq!(sequential, pool(without.sequential()), "{what}, sequential");
        if mode < 3 {
            let signed = Bags::new(&indices, &offsets).unwrap().with_padding_idx(padding);
            assert_eq!(pool(signed), pool(without), "{what}, i32");
        }
    }
}

#[test]
fn bags_with_padding_have_the_bits_of_bags_without_these_indices() {
    let mut rng = Rng::new(11);
    for buf in one_of_each() {
        let blob = Blob::parse(&buf).unwrap();
        for table in blob.tables() {
            let overrides = table.data().overrides();
            let overridden = overrides.and_then(|of| of.ids().first().copied());
            for tier in Tier::available() {
                let table = table.with_tier(tier);
                check(&table, rng.below(table.num_embeddings()), &mut rng);
                if let Some(padding) = overridden {
                    check(&table, padding, &mut rng);
                }
            }
        }
    }
}

#[test]
fn padding_that_is_cached_is_left_out() {
    let mut rng = Rng::new(12);
    for buf in one_of_each() {
        for table in Blob::parse(&buf).unwrap().tables() {
            let mut memory = vec![0.0; RowCache::memory_len(&table, 8)];
            let Ok(mut cache) = RowCache::new(&table, &mut memory) else { continue };
            cache.record(&(0..table.num_embeddings()).collect::<Vec<_>>());
            cache.refresh(&mut vec![0.0; table.workspace_len(1)]).unwrap();
            let cached = (0..table.num_embeddings()).find(|&row| cache.contains(row));
            let Some(padding) = cached else {
                let overridden = table.data().overrides().map_or(0, |of| of.ids().len());
                assert_eq!(overridden as u64, table.num_embeddings(), "overrides are not cached");
                continue;
            };
            check(&cache.table(), padding, &mut rng);
        }
    }
}

#[test]
fn each_table_of_several_has_a_padding_of_its_own() {
    let buf = one_of_each().swap_remove(0);
    let tables: Vec<Table<'_>> = Blob::parse(&buf).unwrap().tables().collect();
    let mut rng = Rng::new(13);
    let lists: Vec<_> = (0..)
        .zip(&tables)
        .map(|(padding, table)| Lists::with(padding, table.num_embeddings(), &mut rng))
        .collect();
    let expected: Vec<_> = (0..).zip(&lists).map(|(padding, of)| of.without(padding)).collect();
    let pool = |lists: &[Lists], padded: bool| {
        let bags: Vec<_> = (0..)
            .zip(tables.iter().zip(lists))
            .map(|(padding, (table, of))| {
                let bags = of.bags(1).0;
                (table, if padded { bags.with_padding_idx(padding) } else { bags })
            })
            .collect();
        let width: usize = tables.iter().map(Table::embedding_dim).sum();
        let workspace = tables.iter().map(|table| table.workspace_len(1)).max().unwrap();
        let mut out = vec![f32::NAN; LENS.len() * width];
        pool_tables(&bags, Pooling::Mean, &mut out, &mut vec![0.0; workspace]).unwrap();
        out
    };
    assert_eq!(pool(&lists, true), pool(&expected, false));
}

#[test]
fn padding_out_of_range_is_refused_where_a_bag_has_it() {
    let buf = one_of_each().swap_remove(0);
    let table = Blob::parse(&buf).unwrap().tables().next().unwrap();
    let num_embeddings = table.num_embeddings();
    let mut out = vec![0.0; table.embedding_dim()];
    let mut pool = |indices: [u64; 2]| {
        let bags = Bags::new(&indices, &[0, 2]).unwrap().with_padding_idx(num_embeddings);
        table.pool(&bags, Pooling::Sum, &mut out, &mut vec![0.0; table.workspace_len(1)])
    };
    let index = num_embeddings;
    let expected = LookupError::IndexOutOfRange { position: 1, index, num_embeddings };
    assert_eq!(pool([0, num_embeddings]), Err(expected));
    assert_eq!(pool([0, num_embeddings - 1]), Ok(()));
}
