//! Categories and their numbers: for each feature, the values that the examples to learn from have, the most frequent first.
//!
//! A value that is not among them has the last number, "other", where there is one.

use crate::{npz::Npz, output::Output};
use anyhow::{Context, Result, ensure};
use std::{collections::HashMap, path::Path};

/// What the number of others is called.
const OTHERS: &str = "other";

/// The categories of all features.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Vocabulary {
    features: Vec<Categories>,
}

/// The categories of one feature.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Categories {
    name: String,
    /// By number; empty where numbers are made of values rather than looked up.
    values: Vec<Box<[u8]>>,
    numbers: HashMap<Box<[u8]>, u32>,
    /// How often each number is there to learn from.
    counts: Vec<u64>,
    /// Whether the last number is that of all values that have none.
    others: bool,
}

/// Counts values.
#[derive(Default)]
pub(super) struct Counter(HashMap<Box<[u8]>, u64>);

impl Counter {
    pub(super) fn add(&mut self, value: &[u8]) {
        match self.0.get_mut(value) {
            Some(count) => *count += 1,
            None => drop(self.0.insert(value.into(), 1)),
        }
    }

    /// Numbers the values that are there at least `min_count` times, at most `max_rows` numbers with the one of others.
    pub(super) fn finish(self, name: &str, min_count: u64, max_rows: Option<u32>) -> Result<Categories> {
        let mut counted: Vec<_> = self.0.into_iter().collect();
        // What is as frequent stands in the order of bytes, so that numbers are the same wherever they are made.
        counted.sort_unstable_by(|(a, m), (b, n)| n.cmp(m).then_with(|| a.cmp(b)));
        let frequent = counted.partition_point(|(_, count)| *count >= min_count);
        let most = max_rows.unwrap_or(u32::MAX).max(1) as usize - 1;
        let others = counted.split_off(frequent.min(most)).into_iter().map(|(_, count)| count).sum();
        let (values, mut counts): (Vec<_>, Vec<_>) = counted.into_iter().unzip();
        counts.push(others);
        Categories { name: name.to_owned(), values, counts, others: true, ..Categories::default() }.with_numbers()
    }
}

impl Categories {
    /// Those of a feature whose numbers are its values, or are made of them.
    pub(super) fn counted(name: String, counts: Vec<u64>) -> Self {
        Self { name, counts, ..Self::default() }
    }

    /// Those of a feature whose values are integers, by number.
    pub(super) fn integers(name: String, values: &[u32], counts: Vec<u64>) -> Self {
        let values = values.iter().map(|value| value.to_string().into_bytes().into()).collect();
        // Nobody asks for the number of a value.
        Self { name, values, counts, ..Self::default() }
    }

    fn with_numbers(mut self) -> Result<Self> {
        // Where numbers are not looked up there is no value.
        if !self.others && self.values.iter().all(|value| value.is_empty()) {
            self.values.clear();
        }
        self.numbers = self.values.iter().cloned().zip(0..).collect();
        let Self { name, values, numbers, .. } = &self;
        ensure!(numbers.len() == values.len(), "feature {name:?}: a value is there twice");
        Ok(self)
    }

    /// How many numbers there are.
    pub(super) fn len(&self) -> u32 {
        self.counts.len() as u32
    }

    /// The number of a value: that of others if it has none.
    pub(super) fn number(&self, value: &[u8]) -> u32 {
        self.numbers.get(value).copied().unwrap_or(self.counts.len().saturating_sub(1) as u32)
    }

    pub(super) fn values(&self) -> &[Box<[u8]>] {
        &self.values
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

impl Vocabulary {
    pub(super) fn new(features: Vec<Categories>) -> Self {
        Self { features }
    }

    pub(super) fn features(&self) -> &[Categories] {
        &self.features
    }

    /// Writes `feature,number,value,count` lines; what has a number of its own has no value.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let mut output = Output::create(path)?;
        output.write(|out| {
            let mut csv = csv::Writer::from_writer(out);
            csv.write_record(["feature", "number", "value", "count"])?;
            for Categories { name, values, counts, others, .. } in &self.features {
                for (number, count) in counts.iter().enumerate() {
                    let value = values.get(number).map_or(&b""[..], |value| value);
                    let of_others = *others && number + 1 == counts.len();
                    let number = if of_others { OTHERS.to_owned() } else { number.to_string() };
                    csv.write_record([name.as_bytes(), number.as_bytes(), value, count.to_string().as_bytes()])?;
                }
            }
            csv.flush()
        })?;
        Ok(output.commit()?)
    }

    /// Reads what [`write`](Self::write) has written.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let place = || path.display().to_string();
        let mut csv = csv::Reader::from_path(path).with_context(place)?;
        let (mut features, mut record) = (Vec::<Categories>::new(), csv::ByteRecord::new());
        while csv.read_byte_record(&mut record).with_context(place)? {
            let line = record.position().map_or(0, csv::Position::line);
            let malformed = || format!("{}: line {line}: expected feature,number,value,count", path.display());
            let text = |at: usize| record.get(at).and_then(|field| std::str::from_utf8(field).ok());
            let name = text(0).with_context(malformed)?;
            let count = text(3).and_then(|count| count.parse().ok()).with_context(malformed)?;
            if features.last().is_none_or(|feature| feature.name != name) {
                features.push(Categories { name: name.to_owned(), ..Categories::default() });
            }
            let feature = features.last_mut().with_context(malformed)?;
            ensure!(!feature.others, "{}: line {line}: a number after that of {OTHERS:?}", path.display());
            feature.others = text(1) == Some(OTHERS);
            if !feature.others {
                ensure!(text(1) == Some(&feature.counts.len().to_string()), malformed());
                feature.values.push(record.get(2).with_context(malformed)?.into());
            }
            feature.counts.push(count);
        }
        let features = features.into_iter().map(Categories::with_numbers).collect::<Result<_>>();
        Ok(Self { features: features.with_context(place)? })
    }

    /// Writes how often each number is there, as `--frequencies` takes it: an array for each feature.
    pub(crate) fn write_frequencies(&self, path: &Path) -> Result<()> {
        let mut file = Npz::new();
        for Categories { name, counts, .. } in &self.features {
            file.add(name, &[counts.len() as u64], counts)?;
        }
        file.write(path)
    }
}
