//! Labelled examples for training and evaluation: batches of dense numbers, bags of indices, and
//! labels.
//!
//! A [`Dataset`] gives its examples in passes over a split. A pass depends only on its seed, so
//! that it can be resumed at any example.

mod compressed;
mod events;
mod files;
mod order;
#[cfg(feature = "parquet")]
mod parquet;
mod queries;
mod records;
mod rows;
#[cfg(test)]
mod tests;
mod text;
mod vocabulary;

use crate::npz::Npz;
use anyhow::{Context, Result, ensure};
use records::Container;
use rows::Labels;
use serde::Serialize;
use std::path::{Path, PathBuf};
use ttrec::{Bags, BagsError, Pooling};

pub(crate) use events::NegativeSampling;
pub(crate) use queries::Queries;
pub(crate) use vocabulary::Vocabulary;

/// Where examples come from: the `[data]` of a config.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "format", rename_all = "kebab-case")]
pub(crate) enum Config {
    /// Criteo's click logs.
    Criteo(records::Criteo),
    /// Text with a header.
    Csv(records::Columns),
    /// Apache Parquet.
    Parquet(records::Columns),
    /// Pairs of users and items.
    Interactions(events::Interactions),
    /// Sequences of items.
    Sessions(events::Sessions),
}

crate::tagged::tagged! { Config, "format",
    "criteo" => Criteo, "csv" => Csv, "parquet" => Parquet, "interactions" => Interactions,
    "sessions" => Sessions
}

impl Config {
    /// Whether the examples are items in contexts.
    pub(crate) fn is_of_items(&self) -> bool {
        self.negative_sampling().is_some()
    }

    /// How negative items are drawn, if the examples are items in contexts.
    pub(crate) fn negative_sampling(&self) -> Option<NegativeSampling> {
        match self {
            Self::Interactions(config) => Some(config.negative_sampling),
            Self::Sessions(config) => Some(config.negative_sampling),
            _ => None,
        }
    }

    /// Opens the data, whose paths start in `directory`. Categories are numbered by `vocabulary`,
    /// or by a pass over the training examples.
    pub(crate) fn open(
        &self,
        directory: &Path,
        vocabulary: Option<Vocabulary>,
    ) -> Result<Box<dyn Dataset + Sync>> {
        self.open_with(directory, vocabulary, Labels::Needed)
    }

    /// Opens other files as the test split. Their rows may have no labels.
    pub(crate) fn open_files(
        mut self,
        files: Vec<PathBuf>,
        vocabulary: Vocabulary,
    ) -> Result<Box<dyn Dataset + Sync>> {
        match &mut self {
            Self::Criteo(config) => config.test = files,
            Self::Csv(config) | Self::Parquet(config) => config.test = files,
            Self::Interactions(events::Interactions { path, .. })
            | Self::Sessions(events::Sessions { path, .. }) => {
                let [file] =
                    <[PathBuf; 1]>::try_from(files).ok().context("expected one npz file")?;
                *path = file;
            }
        }
        self.open_with(Path::new(""), Some(vocabulary), Labels::Optional)
    }

    fn open_with(
        &self,
        directory: &Path,
        vocabulary: Option<Vocabulary>,
        labels: Labels,
    ) -> Result<Box<dyn Dataset + Sync>> {
        Ok(match self {
            Self::Criteo(config) => Box::new(config.open(directory, vocabulary, labels)?),
            Self::Csv(config) => {
                Box::new(config.open(directory, vocabulary, Container::Text, labels)?)
            }
            Self::Parquet(config) => {
                Box::new(config.open(directory, vocabulary, Container::Parquet, labels)?)
            }
            Self::Interactions(config) => Box::new(config.open(directory, vocabulary)?),
            Self::Sessions(config) => Box::new(config.open(directory, vocabulary)?),
        })
    }
}

/// A categorical feature.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Feature {
    /// The position of its table. Tables are numbered in the order of their first features.
    pub(crate) table: usize,
    /// The name of its table.
    pub(crate) name: String,
    pub(crate) num_embeddings: u32,
    /// How the rows of a bag are pooled.
    pub(crate) pooling: Pooling,
}

/// A split of the examples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Split {
    /// The training split.
    Train,
    /// The validation split: chooses epochs and learning rates.
    Valid,
    /// The test split: evaluated once.
    Test,
}

impl Split {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Valid => "valid",
            Self::Test => "test",
        }
    }
}

/// Labelled examples.
pub(crate) trait Dataset {
    /// Dense numbers of an example.
    fn dense_dim(&self) -> usize;

    /// Its bags, in order.
    fn features(&self) -> &[Feature];

    /// How the categories of each table are numbered, and how often each is there to learn from.
    fn vocabulary(&self) -> &Vocabulary;

    /// How many examples a split has, if that is known without reading them.
    fn num_examples(&self, split: Split) -> Option<u64>;

    /// Whether there is any example of a split.
    fn has(&self, split: Split) -> bool;

    /// If the examples are items in contexts: how many examples of the training split, one labelled
    /// 1 and then those labelled 0, are of one item.
    fn group(&self) -> Option<usize> {
        None
    }

    /// The contexts of the validation or the test split to rank all items for; `None` if the
    /// examples are not items in contexts, and for the training split.
    fn queries(&self, _: Split) -> Option<Queries<'_>> {
        None
    }

    /// A pass over the examples of a split. The seed determines their order and the sampled
    /// negatives.
    ///
    /// # Errors
    /// The files cannot be read, or the split is empty.
    fn pass(&self, split: Split, seed: u64) -> Result<Box<dyn Pass + '_>>;
}

/// Examples one after another.
pub(crate) trait Pass {
    /// Puts the next `count` examples, or those that are left, into the emptied `batch`.
    ///
    /// # Errors
    /// They cannot be read, or too many of them are bad.
    fn next(&mut self, count: usize, batch: &mut Batch) -> Result<()>;

    /// Passes over the next `count` examples.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    fn skip(&mut self, count: u64) -> Result<()>;

    /// A sentence about the rows skipped so far, if any.
    fn complaint(&self) -> Option<String> {
        None
    }

    /// The unknown values so far, for each column whose values can be unknown.
    fn unknown(&self) -> Vec<Unknown> {
        Vec::new()
    }
}

/// The values of a column that the vocabulary does not have.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Unknown {
    pub(crate) column: String,
    /// Their share of all values.
    pub(crate) share: f64,
    /// Their share in the training examples, of values that are too rare for a number.
    pub(crate) trained: f64,
}

/// The bags of one feature.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct FeatureBags {
    pub(crate) indices: Vec<u32>,
    /// One more than the number of bags.
    offsets: Vec<u32>,
}

impl FeatureBags {
    fn clear(&mut self) {
        self.indices.clear();
        self.offsets.clear();
        self.offsets.push(0);
    }

    /// Ends a bag: it has the indices added since the last bag.
    fn end_bag(&mut self) {
        self.offsets.push(self.indices.len() as u32);
    }

    /// Appends the bags of `other`.
    fn append(&mut self, other: &Self) -> Result<()> {
        let before = self.indices.len();
        self.indices.extend_from_slice(&other.indices);
        u32::try_from(self.indices.len()).context("too many indices of one feature")?;
        self.offsets
            .extend(other.offsets.iter().skip(1).map(|offset| before as u32 + offset));
        Ok(())
    }

    pub(crate) fn bags(&self) -> Result<Bags<'_>, BagsError> {
        Bags::new(&self.indices, &self.offsets)
    }
}

/// Some examples.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Batch {
    /// Examples x dense numbers.
    pub(crate) dense: Vec<f32>,
    /// One for each feature.
    pub(crate) features: Vec<FeatureBags>,
    /// 0 to 1, one for each example; NaN if it has none.
    pub(crate) labels: Vec<f32>,
    /// The weight of each example in the loss; empty if the data have none.
    pub(crate) weights: Vec<f32>,
    /// In the training split of items in contexts: the logarithm of how often each example's item
    /// is drawn, and infinity for an item that is drawn for itself.
    pub(crate) log_frequencies: Vec<f32>,
}

impl Batch {
    fn clear(&mut self, num_features: usize) {
        self.dense.clear();
        self.labels.clear();
        self.weights.clear();
        self.log_frequencies.clear();
        self.features.resize_with(num_features, FeatureBags::default);
        self.features.iter_mut().for_each(FeatureBags::clear);
    }

    pub(crate) fn len(&self) -> usize {
        self.labels.len()
    }

    /// Appends the examples of `other`, which has the same features.
    pub(crate) fn append(&mut self, other: &Self) -> Result<()> {
        if self.len() == 0 {
            self.clear(other.features.len());
        }
        self.dense.extend_from_slice(&other.dense);
        self.labels.extend_from_slice(&other.labels);
        self.features
            .iter_mut()
            .zip(&other.features)
            .try_for_each(|(bags, other)| bags.append(other))
    }

    /// Writes the examples in the format of `ttrec score`, with their labels, if they have any, and
    /// a model's probabilities.
    pub(crate) fn write(&self, path: &Path, probabilities: &[f32]) -> Result<()> {
        let count = self.len() as u64;
        let mut file = Npz::new();
        file.add("dense", &[count, self.dense.len() as u64 / count.max(1)], &self.dense)?;
        for (t, bags) in self.features.iter().enumerate() {
            file.add(&format!("indices_{t}"), &[bags.indices.len() as u64], &bags.indices)?;
            file.add(&format!("offsets_{t}"), &[bags.offsets.len() as u64], &bags.offsets)?;
        }
        if !self.labels.iter().any(|label| label.is_nan()) {
            file.add("label", &[count], &self.labels)?;
        }
        file.add("prob", &[count], probabilities)?;
        file.write(path)
    }
}

/// Checks the share of the training examples that become the validation split.
fn check_share(field: &str, share: f64) -> Result<()> {
    ensure!((0.0..1.0).contains(&share), "`{field}` is {share}: expected 0 to less than 1");
    Ok(())
}

fn locate(directory: &Path, path: &Path) -> PathBuf {
    directory.join(path)
}

/// The seed of choices that are the same in every run: the validation split, and the test examples.
const FIXED: u64 = 0x7474_7265_6300;
