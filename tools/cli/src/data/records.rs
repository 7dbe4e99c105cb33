//! Examples in files of rows, streamed; the training split is shuffled through a buffer.
//!
//! The categories of a column are numbered by a pass over the training rows, or hashed. Rows that
//! cannot be read are skipped and counted; too many of them are an error.

use super::{
    Batch, Dataset, FIXED, Feature, Pass, Split, Unknown, Vocabulary, check_share, files,
    order::{Order, of_left_rows},
    rows::{ColumnNames, Example, Labels, RowOutcome, RowReader, Rules},
    text::{CRITEO, Delimiter, LineLayout, Lines},
    vocabulary::{Categories, Counter, Moments},
};
use crate::{
    progress::Bar,
    random::{below, uniform},
};
use anyhow::{Context, Result, bail, ensure};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error, MapAccess, Unexpected, Visitor, value::MapAccessDeserializer},
};
use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};
use ttrec::Pooling;

/// Criteo's click logs: a label, 13 integers and 26 categories, between tabs. Integers become
/// log(1 + max(x, 0)), as in DLRM; a missing integer is 0, and a missing category is a category.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Criteo {
    train: Vec<PathBuf>,
    #[serde(default)]
    valid: Vec<PathBuf>,
    #[serde(default)]
    pub(super) test: Vec<PathBuf>,
    #[serde(default)]
    valid_fraction: f64,
    /// If set, categories are hashed to this many numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hash_rows: Option<u32>,
    #[serde(default = "default_min_count")]
    min_count: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_rows: Option<u32>,
    #[serde(default = "default_max_bad_fraction")]
    max_bad_fraction: f64,
    #[serde(default)]
    shuffle: Shuffle,
    #[serde(default)]
    standardize: bool,
    /// The order of the rows, if categories are numbered by a vocabulary.
    #[serde(default, skip_serializing_if = "is_default")]
    order: Order,
}

/// Named columns of text or of Parquet files.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Columns {
    train: Vec<PathBuf>,
    #[serde(default)]
    valid: Vec<PathBuf>,
    #[serde(default)]
    pub(super) test: Vec<PathBuf>,
    #[serde(default)]
    valid_fraction: f64,
    label: String,
    /// The column of the rows' weights in the loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    weight: Option<String>,
    #[serde(default)]
    dense: Vec<String>,
    categorical: Vec<Column>,
    /// The delimiter of text; default: a comma.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    delimiter: Option<String>,
    /// The names of all columns of text without a header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    header: Option<Vec<String>>,
    /// Whether fields of text may be quoted; default: yes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    quote: Option<bool>,
    #[serde(default)]
    log1p: bool,
    #[serde(default)]
    standardize: bool,
    /// Texts that stand for a missing value, besides the empty one.
    #[serde(default)]
    missing: Vec<String>,
    /// If set, labels from this number on become 1, and others 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    positive: Option<f32>,
    #[serde(default = "default_min_count")]
    min_count: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_rows: Option<u32>,
    #[serde(default = "default_max_bad_fraction")]
    max_bad_fraction: f64,
    #[serde(default)]
    shuffle: Shuffle,
    /// The order of the rows, if categories are numbered by a vocabulary.
    #[serde(default, skip_serializing_if = "is_default")]
    order: Order,
}

/// A categorical column: its name, or a table with its name and options.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
enum Column {
    Name(String),
    Table(ColumnTable),
}

// By hand, because the error of an untagged enum does not say what is wrong with which field.
impl<'de> Deserialize<'de> for Column {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Column;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "the name of a column, or a table with the key `name`")
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<Column, E> {
                Ok(Column::Name(name.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Column, A::Error> {
                ColumnTable::deserialize(MapAccessDeserializer::new(map)).map(Column::Table)
            }
        }

        deserializer.deserialize_any(Either)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct ColumnTable {
    name: String,
    /// If set, categories are hashed to this many numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hash_rows: Option<u32>,
    /// In the place of the config's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    min_count: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_rows: Option<u32>,
    /// The separator between the categories of a bag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    separator: Option<char>,
    #[serde(default)]
    pooling: Pool,
    /// The column whose categories and table it shares; default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    table: Option<String>,
}

/// The number of rows in the buffer that shuffles the training split: the config has a number,
/// `true` or `false`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Shuffle(u32);

impl Default for Shuffle {
    /// Rows of Criteo's logs take about 100 MB.
    fn default() -> Self {
        Self(1 << 17)
    }
}

impl<'de> Deserialize<'de> for Shuffle {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Rows;

        impl Visitor<'_> for Rows {
            type Value = Shuffle;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "true, false, or a number of rows below 2^32")
            }

            fn visit_bool<E: Error>(self, shuffle: bool) -> Result<Shuffle, E> {
                Ok(if shuffle { Shuffle::default() } else { Shuffle(0) })
            }

            fn visit_u64<E: Error>(self, rows: u64) -> Result<Shuffle, E> {
                let wrong = || E::invalid_value(Unexpected::Unsigned(rows), &self);
                u32::try_from(rows).map(Shuffle).map_err(|_| wrong())
            }

            fn visit_i64<E: Error>(self, rows: i64) -> Result<Shuffle, E> {
                let wrong = || E::invalid_value(Unexpected::Signed(rows), &self);
                u32::try_from(rows).map(Shuffle).map_err(|_| wrong())
            }
        }

        deserializer.deserialize_any(Rows)
    }
}

/// How the rows of a bag are pooled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Pool {
    #[default]
    Sum,
    Mean,
}

fn default_min_count() -> u64 {
    1
}

fn default_max_bad_fraction() -> f64 {
    1e-3
}

fn is_default(order: &Order) -> bool {
    *order == Order::default()
}

/// The container of the files.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Container {
    Text,
    Parquet,
}

/// How the categories of a column are numbered.
#[derive(Clone, Debug)]
struct Encoding {
    name: String,
    hash_rows: Option<u32>,
    min_count: u64,
    max_rows: Option<u32>,
    separator: Option<u8>,
    pooling: Pooling,
    /// The column whose categories and table it has: itself, or another one.
    table: String,
}

impl Encoding {
    fn has_own_table(&self) -> bool {
        self.name == self.table
    }

    fn for_each<'v>(&self, values: impl Iterator<Item = &'v [u8]>, mut put: impl FnMut(&'v [u8])) {
        values.for_each(|value| match self.separator {
            None => put(value),
            Some(separator) => value
                .split(|&byte| byte == separator)
                .filter(|value| !value.is_empty())
                .for_each(&mut put),
        });
    }

    /// The number of a value, if that occurs in the training examples.
    fn number(&self, value: &[u8], categories: &Categories) -> Result<u32, u32> {
        match self.hash_rows {
            Some(rows) => categories.occurs(hash(value, rows)),
            None => categories.number(value).ok_or(categories.others()),
        }
    }
}

/// Checks that columns which share a table suit each other, and lets them number their categories
/// alike.
fn share_tables(encodings: &mut [Encoding]) -> Result<()> {
    let owners: Vec<Encoding> =
        encodings.iter().filter(|encoding| encoding.has_own_table()).cloned().collect();
    for encoding in encodings {
        let Encoding { name, table, .. } = &*encoding;
        let owner = owners.iter().find(|owner| owner.name == *table);
        let owner = owner.with_context(|| {
            let names: Vec<_> = owners.iter().map(|owner| &owner.name).collect();
            format!(
                "`table` of column {name:?} is {table:?}: expected a column that has a table of \
                 its own, one of {names:?}"
            )
        })?;
        ensure!(
            encoding.pooling == owner.pooling,
            "columns {name:?} and {table:?} share a table: set the same `pooling` for both"
        );
        encoding.hash_rows = owner.hash_rows;
    }
    Ok(())
}

/// FNV-1a (Fowler, Noll and Vo) of a value, modulo `rows`, which is not 0.
fn hash(value: &[u8], rows: u32) -> u32 {
    let mix = |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    (value.iter().fold(0xcbf2_9ce4_8422_2325, mix) % u64::from(rows)) as u32
}

/// The number of values from which an order of rows is found, if there are more.
const MOST_VALUES: u64 = 1 << 23;
/// The most other values of an example that a value is paired with. Pairs then take 0.5 GB.
const MOST_PARTNERS: usize = 8;

/// Files of rows.
pub(crate) struct Records {
    container: Container,
    layout: LineLayout,
    dense_dim: usize,
    encodings: Vec<Encoding>,
    /// The position of the table of each column, and the encoding of each table.
    tables: Vec<usize>,
    owners: Vec<Encoding>,
    directory: PathBuf,
    /// The paths, which start in `directory`, of the training, validation and test splits.
    paths: [Vec<PathBuf>; 3],
    valid_fraction: f64,
    max_bad_fraction: f64,
    shuffle: Shuffle,
    vocabulary: Vocabulary,
    features: Vec<Feature>,
}

/// The options that the configs of all formats share.
struct Common<'c> {
    paths: [&'c [PathBuf]; 3],
    valid_fraction: f64,
    max_bad_fraction: f64,
    shuffle: Shuffle,
    standardize: bool,
    order: Order,
}

impl Criteo {
    pub(super) fn open(
        &self,
        directory: &Path,
        vocabulary: Option<Vocabulary>,
        labels: Labels,
    ) -> Result<Records> {
        let encoding = |at: usize| {
            let &Self { hash_rows, min_count, max_rows, .. } = self;
            let (name, separator, pooling) = (format!("C{at}"), None, Pooling::Sum);
            let table = name.clone();
            Encoding { name, hash_rows, min_count, max_rows, separator, pooling, table }
        };
        let [integers, categories] = CRITEO;
        let layout = LineLayout::criteo(labels);
        let common = Common {
            paths: [&self.train, &self.valid, &self.test],
            valid_fraction: self.valid_fraction,
            max_bad_fraction: self.max_bad_fraction,
            shuffle: self.shuffle,
            standardize: self.standardize,
            order: self.order,
        };
        let (layout, encodings) =
            ((Container::Text, layout), (1..=categories).map(encoding).collect());
        Records::open(directory, vocabulary, layout, integers, encodings, &common)
    }
}

impl Columns {
    pub(super) fn open(
        &self,
        directory: &Path,
        vocabulary: Option<Vocabulary>,
        container: Container,
        labels: Labels,
    ) -> Result<Records> {
        let of_text = [
            ("delimiter", self.delimiter.is_some()),
            ("header", self.header.is_some()),
            ("quote", self.quote.is_some()),
        ];
        for (field, is_set) in of_text {
            ensure!(
                container == Container::Text || !is_set,
                "`{field}` applies to text only: remove it, or set format = \"csv\""
            );
        }
        if let Some(positive) = self.positive {
            ensure!(positive.is_finite(), "`positive` is {positive}: expected a number");
        }
        let byte = |character: char| {
            u8::try_from(character).ok().filter(u8::is_ascii).with_context(|| {
                format!("`separator` is {character:?}: expected one ASCII character")
            })
        };
        ensure!(
            !self.standardize || !self.dense.is_empty(),
            "`standardize` is true, but there are no `dense` columns"
        );
        let encodings = self.categorical.iter().map(|column| {
            let ColumnTable { name, hash_rows, min_count, max_rows, separator, pooling, table } =
                match column.clone() {
                    Column::Name(name) => ColumnTable { name, ..ColumnTable::default() },
                    Column::Table(table) => table,
                };
            ensure!(
                hash_rows.is_none() || min_count.is_none() && max_rows.is_none(),
                "column {name:?} has `hash_rows`, which leaves nothing for its `min_count` and \
                 `max_rows` to do: remove them"
            );
            ensure!(
                table.is_none() || hash_rows.is_none() && min_count.is_none() && max_rows.is_none(),
                "column {name:?} has the `table` of another column, which numbers its categories: \
                 remove its `hash_rows`, `min_count` and `max_rows`"
            );
            let (min_count, max_rows) =
                (min_count.unwrap_or(self.min_count), max_rows.or(self.max_rows));
            let separator = separator.map(byte).transpose()?;
            let pooling = match pooling {
                Pool::Sum => Pooling::Sum,
                Pool::Mean => Pooling::Mean,
            };
            let table = table.unwrap_or_else(|| name.clone());
            Ok(Encoding { name, hash_rows, min_count, max_rows, separator, pooling, table })
        });
        let mut encodings = encodings.collect::<Result<Vec<_>>>()?;
        share_tables(&mut encodings)?;
        let names = ColumnNames {
            label: self.label.clone(),
            weight: self.weight.clone(),
            dense: self.dense.clone(),
            categorical: encodings.iter().map(|encoding| encoding.name.clone()).collect(),
        };
        let delimiter = self.delimiter.as_deref().unwrap_or(",");
        let delimiter = match *delimiter.as_bytes() {
            [one] if one.is_ascii() => Delimiter::One(one),
            [first, second] if delimiter.is_ascii() => Delimiter::Two([first, second]),
            _ => bail!("`delimiter` is {delimiter:?}: expected one or two ASCII characters"),
        };
        let can_quote = matches!(delimiter, Delimiter::One(_));
        ensure!(
            can_quote || self.quote != Some(true),
            "`quote` is true, but `delimiter` has two characters: expected one, or `quote = false`"
        );
        let rules = Rules {
            labels,
            log1p: self.log1p,
            missing: self.missing.clone(),
            positive: self.positive,
        };
        let (quote, header) = (self.quote.unwrap_or(can_quote), self.header.clone());
        let layout = LineLayout { names, delimiter, quote, header, rules };
        let common = Common {
            paths: [&self.train, &self.valid, &self.test],
            valid_fraction: self.valid_fraction,
            max_bad_fraction: self.max_bad_fraction,
            shuffle: self.shuffle,
            standardize: self.standardize,
            order: self.order,
        };
        Records::open(
            directory,
            vocabulary,
            (container, layout),
            self.dense.len(),
            encodings,
            &common,
        )
    }
}

impl Records {
    fn open(
        directory: &Path,
        vocabulary: Option<Vocabulary>,
        (container, layout): (Container, LineLayout),
        dense_dim: usize,
        encodings: Vec<Encoding>,
        common: &Common<'_>,
    ) -> Result<Self> {
        let &Common { paths, valid_fraction, max_bad_fraction, shuffle, standardize, order } =
            common;
        check_share("valid_fraction", valid_fraction)?;
        let range = 0.0..=1.0;
        ensure!(
            range.contains(&max_bad_fraction),
            "`max_bad_fraction` is {max_bad_fraction}: expected 0 to 1"
        );
        ensure!(!encodings.is_empty(), "`categorical` is empty: expected at least one column");
        ensure!(!paths[0].is_empty(), "`train` is empty: expected at least one file");
        ensure!(
            paths[1].is_empty() || valid_fraction == 0.0,
            "`valid` and `valid_fraction` are both set: set one of them"
        );
        for encoding in &encodings {
            ensure!(encoding.max_rows != Some(0), "`max_rows` is 0: expected at least 1");
            ensure!(
                encoding.hash_rows != Some(0),
                "`hash_rows` of {:?} is 0: expected at least 1",
                encoding.name
            );
            let same = encodings.iter().filter(|other| other.name == encoding.name).count();
            ensure!(same == 1, "column {:?} occurs twice in `categorical`", encoding.name);
        }
        if order == Order::CoOccurrence {
            let numbered = encodings.iter().filter(|encoding| encoding.hash_rows.is_none());
            let may_be_bag = |encoding: &Encoding| {
                container == Container::Parquet || encoding.separator.is_some()
            };
            ensure!(
                numbered.clone().count() > 1 || numbered.clone().any(may_be_bag),
                "`order` is \"co-occurrence\": expected two columns without `hash_rows`, or one \
                 that has bags (`separator`, or lists in Parquet)"
            );
        }
        ensure!(
            matches!(order, Order::Frequency | Order::CoOccurrence),
            "`order` is \"{}\", which only interactions and sessions have: expected \
             \"frequency\" or \"co-occurrence\"",
            if order == Order::Given { "given" } else { "random" }
        );
        // In the order of the first column of each table.
        let (mut tables, mut owners) = (Vec::new(), Vec::<Encoding>::new());
        for encoding in &encodings {
            let known = owners.iter().position(|owner| owner.name == encoding.table);
            tables.push(known.unwrap_or(owners.len()));
            if known.is_none() {
                owners.extend(encodings.iter().find(|of| of.name == encoding.table).cloned());
            }
        }
        let (directory, paths) = (directory.to_owned(), paths.map(<[PathBuf]>::to_vec));
        let (vocabulary_kept, features) = (vocabulary, Vec::new());
        let vocabulary = Vocabulary::default();
        let mut records = Self {
            container,
            layout,
            dense_dim,
            encodings,
            tables,
            owners,
            directory,
            paths,
            valid_fraction,
            max_bad_fraction,
            shuffle,
            vocabulary,
            features,
        };
        records.vocabulary = match vocabulary_kept {
            Some(kept) => {
                let trained: Vec<&str> = kept.features().iter().map(Categories::name).collect();
                let names = records.owners.iter().map(|encoding| encoding.name.as_str());
                let names: Vec<&str> = names.collect();
                ensure!(
                    names == trained,
                    "the categorical columns are {names:?}, but the model was trained on \
                     {trained:?}"
                );
                let scaled = kept.scales().iter().map(|scale| &scale.name);
                ensure!(
                    !standardize || scaled.eq(&records.layout.names.dense),
                    "the vocabulary lacks the mean of a dense feature: expected that of the \
                     model's training run"
                );
                kept
            }
            None => {
                let counted = records.count(standardize)?;
                if order == Order::CoOccurrence {
                    records.by_co_occurrence(&counted)?
                } else {
                    counted
                }
            }
        };
        let feature = |(encoding, &table): (&Encoding, &usize)| Feature {
            table,
            name: encoding.table.clone(),
            num_embeddings: records.vocabulary.features()[table].len(),
            pooling: encoding.pooling,
        };
        records.features = records.encodings.iter().zip(&records.tables).map(feature).collect();
        Ok(records)
    }

    #[cfg(feature = "parquet")]
    fn open_parquet(&self, path: &Path) -> Result<Box<dyn RowReader>> {
        let LineLayout { names, rules, .. } = &self.layout;
        Ok(Box::new(super::parquet::Records::open(path, names, rules)?))
    }

    #[cfg(not(feature = "parquet"))]
    fn open_parquet(&self, path: &Path) -> Result<Box<dyn RowReader>> {
        bail!(
            "{}: this `ttrec` was built without Parquet: build it with `--features parquet`",
            path.display()
        )
    }

    fn open_file(&self, path: &Path) -> Result<Box<dyn RowReader>> {
        match self.container {
            Container::Parquet => self.open_parquet(path),
            Container::Text => Ok(Box::new(Lines::open(path, &self.layout)?)),
        }
    }

    /// Numbers the categories of the training examples, and finds the means of the dense features
    /// if they are to be standardised.
    fn count(&self, standardize: bool) -> Result<Vocabulary> {
        enum Count {
            Values(Counter),
            Hashed(u32, BTreeMap<u32, u64>),
        }
        let begin = |encoding: &Encoding| match encoding.hash_rows {
            Some(rows) => Count::Hashed(rows, BTreeMap::new()),
            None => Count::Values(Counter::default()),
        };
        let mut counts: Vec<Count> = self.owners.iter().map(begin).collect();
        let names = self.layout.names.dense.iter().filter(|_| standardize);
        let mut moments: Vec<_> = names.map(|name| (name, Moments::default())).collect();
        let mut pass = Stream::new(self, Split::Train)?;
        let progress = Bar::new("vocabulary: rows", 0);
        while pass.advance()? {
            for ((values, encoding), &table) in
                pass.row.bags().zip(&self.encodings).zip(&self.tables)
            {
                let count = &mut counts[table];
                encoding.for_each(values, |value| match count {
                    Count::Values(counter) => counter.add(value),
                    Count::Hashed(rows, counts) => {
                        *counts.entry(hash(value, *rows)).or_default() += 1
                    }
                });
            }
            for ((_, moments), &x) in moments.iter_mut().zip(&pass.row.dense) {
                moments.add(x);
            }
            progress.add(1);
        }
        drop(progress);
        if let Some(complaint) = pass.complaint() {
            eprintln!("ttrec: {complaint}");
        }
        let features = self.owners.iter().zip(counts).map(|(encoding, count)| match count {
            Count::Values(counter) => {
                counter.finish(&encoding.name, encoding.min_count, encoding.max_rows)
            }
            Count::Hashed(rows, counts) => {
                Ok(Categories::hashed(encoding.name.clone(), rows, counts))
            }
        });
        let scales = moments.into_iter().map(|(name, moments)| moments.scale(name.clone()));
        Ok(Vocabulary::new(features.collect::<Result<_>>()?).with_scales(scales.collect()))
    }

    /// Numbers categories so that neighbours occur in examples with the same values of other
    /// columns. Only examples with a label of 0.5 or more count: sampled negatives would hide which
    /// categories occur together.
    fn by_co_occurrence(&self, vocabulary: &Vocabulary) -> Result<Vocabulary> {
        let features = vocabulary.features();
        let counts: Vec<_> = features.iter().map(Categories::counts_of_values).collect();
        let share = MOST_VALUES as f64 / counts.iter().copied().flatten().sum::<u64>() as f64;
        // The values of all tables are numbered one after another.
        let firsts = counts.iter().scan(0, |next, counts| {
            *next += counts.len();
            Some(*next - counts.len())
        });
        let firsts: Vec<usize> = firsts.collect();
        let num_values = counts.iter().map(|counts| counts.len()).sum();
        let mut pairs = vec![Vec::new(); counts.len()];
        let (mut example, mut drawn) = (Vec::<[u32; 2]>::new(), 0);
        let mut pass = Stream::new(self, Split::Train)?;
        let progress = Bar::new("order of rows: examples", 0);
        while pass.advance()? {
            progress.add(1);
            // If there are many examples, a sample of them is enough. `!`: the numbers of the rows
            // themselves draw the validation split.
            if pass.row.label < 0.5 || uniform(FIXED, !pass.rows) >= share {
                continue;
            }
            example.clear();
            for ((values, encoding), &table) in
                pass.row.bags().zip(&self.encodings).zip(&self.tables)
            {
                encoding.for_each(values, |value| {
                    let number = features[table].number(value);
                    example.extend(number.map(|number| [table as u32, number]));
                });
            }
            let others = example.len().saturating_sub(1);
            for (at, &[table, number]) in example.iter().enumerate() {
                for k in 0..others.min(MOST_PARTNERS) {
                    let other = if others > MOST_PARTNERS {
                        drawn += 1;
                        below(others as u32, FIXED, drawn) as usize
                    } else {
                        k
                    };
                    let [of, partner] = example[(at + 1 + other) % example.len()];
                    let partner = firsts[of as usize] as u32 + partner;
                    pairs[table as usize].push([number, partner]);
                }
            }
        }
        drop(progress);
        let features =
            features.iter().zip(counts).zip(pairs).map(|((categories, counts), pairs)| {
                let order = of_left_rows(&pairs, counts, num_values);
                // Hashes stay what they are.
                let categories = categories.clone();
                if order.is_empty() {
                    Ok(categories)
                } else {
                    categories.in_order(&order)
                }
            });
        let scales = vocabulary.scales().to_vec();
        Ok(Vocabulary::new(features.collect::<Result<_>>()?).with_scales(scales))
    }
}

impl Dataset for Records {
    fn dense_dim(&self) -> usize {
        self.dense_dim
    }

    fn features(&self) -> &[Feature] {
        &self.features
    }

    fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    fn num_examples(&self, split: Split) -> Option<u64> {
        // A text without separators has one value in each row.
        let has_one = |table: &usize| {
            let mut columns = self.encodings.iter().zip(&self.tables).filter(|of| of.1 == table);
            self.container == Container::Text && columns.all(|(of, _)| of.separator.is_none())
        };
        let one = (0..self.owners.len()).find(has_one).filter(|_| split == Split::Train)?;
        let columns = self.tables.iter().filter(|&&table| table == one).count();
        Some(self.vocabulary.features().get(one)?.total() / columns as u64)
    }

    fn has(&self, split: Split) -> bool {
        match split {
            Split::Train => true,
            Split::Valid => self.valid_fraction > 0.0 || !self.paths[1].is_empty(),
            Split::Test => !self.paths[2].is_empty(),
        }
    }

    fn pass(&self, split: Split, seed: u64) -> Result<Box<dyn Pass + '_>> {
        ensure!(self.has(split), "the config has no `{}` files", split.name());
        let stream = Stream::new(self, split)?;
        let Shuffle(shuffle) = if split == Split::Train {
            self.shuffle
        } else {
            Shuffle(0)
        };
        Ok(Box::new(Shuffled {
            stream,
            shuffle: shuffle as usize,
            buffer: Vec::new(),
            row: Example::default(),
            seed,
            drawn: 0,
            values: vec![[0; 2]; self.encodings.len()],
        }))
    }
}

/// The number of bad rows that a message names.
const NAMED: usize = 5;
/// The number of rows after which the share of bad rows is checked for the first time.
const ENOUGH: u64 = 10_000;

/// A pass over files.
struct Stream<'r> {
    records: &'r Records,
    split: Split,
    files: std::vec::IntoIter<PathBuf>,
    open: Option<(PathBuf, Box<dyn RowReader>)>,
    row: Example,
    rows: u64,
    bad: u64,
    named: Vec<String>,
}

impl<'r> Stream<'r> {
    fn new(records: &'r Records, split: Split) -> Result<Self> {
        let [train, valid, test] = &records.paths;
        let paths = match split {
            Split::Valid if valid.is_empty() => train,
            Split::Train => train,
            Split::Valid => valid,
            Split::Test => test,
        };
        let files = files::find(&records.directory, paths)?.into_iter();
        let (row, named) = (Example::default(), Vec::new());
        Ok(Self { records, split, files, open: None, row, rows: 0, bad: 0, named })
    }

    /// Reads the next row of the split, if there is one.
    fn advance(&mut self) -> Result<bool> {
        loop {
            let (path, rows) = match &mut self.open {
                Some(open) => open,
                None => {
                    let Some(path) = self.files.next() else {
                        self.check_bad()?;
                        return Ok(false);
                    };
                    let rows = self.records.open_file(&path)?;
                    self.open.insert((path, rows))
                }
            };
            let found = rows.next(&mut self.row)?;
            if matches!(found, RowOutcome::End) {
                self.open = None;
                continue;
            }
            self.rows += 1;
            if let RowOutcome::Bad { line, reason } = found {
                self.bad += 1;
                if self.named.len() < NAMED {
                    let unit = match self.records.container {
                        Container::Text => "line",
                        Container::Parquet => "row",
                    };
                    self.named.push(format!("{}: {unit} {line}: {reason}", path.display()));
                }
                if self.rows >= ENOUGH {
                    self.check_bad()?;
                }
                continue;
            }
            if self.is_of_split() {
                return Ok(true);
            }
        }
    }

    fn is_of_split(&self) -> bool {
        let fraction = self.records.valid_fraction;
        let held_out = fraction > 0.0 && uniform(FIXED, self.rows) < fraction;
        match self.split {
            Split::Train => !held_out,
            Split::Valid => held_out || fraction == 0.0,
            Split::Test => true,
        }
    }

    fn check_bad(&self) -> Result<()> {
        let most = self.records.max_bad_fraction;
        if self.bad as f64 > most * self.rows as f64 {
            let complaint = self.complaint().unwrap_or_default();
            bail!("{complaint}\nat most {} % may be unreadable (`max_bad_fraction`)", most * 100.0);
        }
        Ok(())
    }

    /// A sentence about the rows skipped so far, if any.
    fn complaint(&self) -> Option<String> {
        let (bad, rows) = (self.bad, self.rows);
        let named: String = self.named.iter().map(|line| format!("\n  {line}")).collect();
        let more = if bad > NAMED as u64 { "\n  and others" } else { "" };
        (bad > 0).then(|| format!("skipped {bad} of {rows} rows that cannot be read:{named}{more}"))
    }
}

/// A pass whose rows are drawn from a buffer, into which the stream's rows go.
struct Shuffled<'r> {
    stream: Stream<'r>,
    /// The number of rows in a full buffer.
    shuffle: usize,
    buffer: Vec<Example>,
    /// The row drawn last.
    row: Example,
    seed: u64,
    drawn: u64,
    /// For each column, the number of values, and of those that are unknown.
    values: Vec<[u64; 2]>,
}

impl Shuffled<'_> {
    /// Draws the next row, if there is one. Only the seed and the rows before it decide which, so
    /// that a pass can be resumed.
    fn advance(&mut self) -> Result<bool> {
        while self.buffer.len() < self.shuffle.max(1) && self.stream.advance()? {
            self.buffer.push(std::mem::take(&mut self.stream.row));
        }
        if self.buffer.is_empty() {
            return Ok(false);
        }
        let place = below(self.buffer.len() as u32, self.seed, self.drawn);
        self.drawn += 1;
        // The stream gets the memory of the last row back.
        self.stream.row = std::mem::replace(&mut self.row, self.buffer.swap_remove(place as usize));
        Ok(true)
    }
}

impl Pass for Shuffled<'_> {
    fn next(&mut self, count: usize, batch: &mut Batch) -> Result<()> {
        let Records { encodings, tables, vocabulary, .. } = self.stream.records;
        batch.clear(encodings.len());
        while batch.len() < count && self.advance()? {
            batch.labels.push(self.row.label);
            batch.weights.extend(self.row.weight);
            let mut scales = vocabulary.scales().iter();
            batch.dense.extend(self.row.dense.iter().map(|&x| {
                let scaled = scales.next().map_or(x, |scale| scale.apply(x));
                if scaled.is_nan() { 0.0 } else { scaled }
            }));
            let columns = self.row.bags().zip(encodings).zip(tables);
            for (((values, encoding), &table), (bags, [count, unknown])) in
                columns.zip(batch.features.iter_mut().zip(&mut self.values))
            {
                let categories = &vocabulary.features()[table];
                encoding.for_each(values, |value| {
                    let number = encoding.number(value, categories);
                    *count += 1;
                    *unknown += u64::from(number.is_err());
                    bags.indices.push(number.unwrap_or_else(|others| others));
                });
                bags.end_bag();
            }
        }
        Ok(())
    }

    fn skip(&mut self, count: u64) -> Result<()> {
        let mut left = count;
        while left > 0 && self.advance()? {
            left -= 1;
        }
        Ok(())
    }

    fn complaint(&self) -> Option<String> {
        self.stream.complaint()
    }

    fn unknown(&self) -> Vec<Unknown> {
        let Records { encodings, tables, vocabulary, .. } = self.stream.records;
        let columns = encodings.iter().zip(tables).zip(&self.values);
        let share =
            |((encoding, &table), &[values, unknown]): ((&Encoding, &usize), &[u64; 2])| Unknown {
                column: encoding.name.clone(),
                share: unknown as f64 / values.max(1) as f64,
                trained: vocabulary.features()[table].share_of_others(),
            };
        columns.map(share).collect()
    }
}
