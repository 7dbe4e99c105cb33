//! Categories and their numbers: for each feature, the values that the examples to learn from have,
//! the most frequent first.
//!
//! A value that is not among them has the last number, "other", where there is one.

use crate::{npz::Npz, output::Output};
use anyhow::{Context, Result, ensure};
use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

/// What the number of others is called.
const OTHERS: &str = "other";
/// What stands for a number where it is said how many there are.
const ROWS: &str = "rows";

/// The categories of all features.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Vocabulary {
    features: Vec<Categories>,
}

/// The categories of one feature.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Categories {
    name: String,
    /// By number; empty where numbers are values rather than looked up.
    values: Vec<Box<[u8]>>,
    numbers: HashMap<Box<[u8]>, u32>,
    /// How often each number is there to learn from.
    counts: Vec<u64>,
    /// Whether the last number is that of all values that have none.
    others: bool,
    /// What there is instead where numbers are hashes of values.
    hashed: Option<Hashed>,
}

/// Numbers that are hashes: few of many.
#[derive(Clone, Debug, Default, PartialEq)]
struct Hashed {
    rows: u32,
    counts: BTreeMap<u32, u64>,
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

    /// Numbers the values that are there at least `min_count` times, at most `max_rows` numbers
    /// with the one of others.
    pub(super) fn finish(
        self,
        name: &str,
        min_count: u64,
        max_rows: Option<u32>,
    ) -> Result<Categories> {
        let mut counted: Vec<_> = self.0.into_iter().collect();
        // What is as frequent stands in the order of bytes, so that numbers are the same wherever
        // they are made.
        counted.sort_unstable_by(|(a, m), (b, n)| n.cmp(m).then_with(|| a.cmp(b)));
        let frequent = counted.partition_point(|(_, count)| *count >= min_count);
        let most = max_rows.unwrap_or(u32::MAX).max(1) as usize - 1;
        let others =
            counted.split_off(frequent.min(most)).into_iter().map(|(_, count)| count).sum();
        let (values, mut counts): (Vec<_>, Vec<_>) = counted.into_iter().unzip();
        counts.push(others);
        Categories { name: name.to_owned(), values, counts, others: true, ..Categories::default() }
            .with_numbers()
    }
}

impl Categories {
    /// Those of a feature whose numbers are hashes of its values, below `rows`.
    pub(super) fn hashed(name: String, rows: u32, counts: BTreeMap<u32, u64>) -> Self {
        Self { name, hashed: Some(Hashed { rows, counts }), ..Self::default() }
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
        self.hashed.as_ref().map_or(self.counts.len() as u32, |hashed| hashed.rows)
    }

    /// The number of a value: that of others if it has none.
    pub(super) fn number(&self, value: &[u8]) -> u32 {
        self.numbers
            .get(value)
            .copied()
            .unwrap_or(self.counts.len().saturating_sub(1) as u32)
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

    /// Writes `feature,number,value,count` lines; what has a number of its own has no value. Of a
    /// feature whose numbers are hashes one says how many there are, and the others are of
    /// those that occur.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let mut output = Output::create(path)?;
        output.write(|out| {
            let mut csv = csv::Writer::from_writer(out);
            csv.write_record(["feature", "number", "value", "count"])?;
            for Categories { name, values, counts, others, hashed, .. } in &self.features {
                if let Some(Hashed { rows, counts }) = hashed {
                    csv.write_record([
                        name,
                        ROWS,
                        &rows.to_string(),
                        &counts.values().sum::<u64>().to_string(),
                    ])?;
                    for (number, count) in counts {
                        csv.write_record([name, &number.to_string(), "", &count.to_string()])?;
                    }
                }
                for (number, count) in counts.iter().enumerate() {
                    let value = values.get(number).map_or(&b""[..], |value| value);
                    let of_others = *others && number + 1 == counts.len();
                    let number = if of_others {
                        OTHERS.to_owned()
                    } else {
                        number.to_string()
                    };
                    csv.write_record([
                        name.as_bytes(),
                        number.as_bytes(),
                        value,
                        count.to_string().as_bytes(),
                    ])?;
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
            let malformed =
                || format!("{}: line {line}: expected feature,number,value,count", path.display());
            let text = |at: usize| record.get(at).and_then(|field| std::str::from_utf8(field).ok());
            let name = text(0).with_context(malformed)?;
            let count = text(3).and_then(|count| count.parse().ok()).with_context(malformed)?;
            if features.last().is_none_or(|feature| feature.name != name) {
                features.push(Categories { name: name.to_owned(), ..Categories::default() });
            }
            let feature = features.last_mut().with_context(malformed)?;
            ensure!(
                !feature.others,
                "{}: line {line}: a number after that of {OTHERS:?}",
                path.display()
            );
            if let Some(Hashed { rows, counts }) = &mut feature.hashed {
                let number = text(1)
                    .and_then(|number| number.parse().ok())
                    .filter(|number: &u32| *number < *rows);
                let number = number.with_context(malformed)?;
                ensure!(counts.insert(number, count).is_none(), malformed());
                continue;
            }
            if feature.counts.is_empty() && text(1) == Some(ROWS) {
                let rows = text(2).and_then(|rows| rows.parse().ok()).with_context(malformed)?;
                feature.hashed = Some(Hashed { rows, counts: BTreeMap::new() });
                continue;
            }
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

    /// Writes how often each number is there, as `--frequencies` takes it: an array for each
    /// feature, or, where they are hashes, those that occur and an array of their counts.
    pub(crate) fn write_frequencies(&self, path: &Path) -> Result<()> {
        let mut file = Npz::new();
        for Categories { name, counts, hashed, .. } in &self.features {
            match hashed {
                None => file.add(name, &[counts.len() as u64], counts)?,
                Some(Hashed { counts, .. }) => {
                    let (indices, counts): (Vec<u64>, Vec<u64>) =
                        counts.iter().map(|(&number, &count)| (u64::from(number), count)).unzip();
                    let len = [counts.len() as u64];
                    file.add(&format!("{name}.indices"), &len, &indices)?;
                    file.add(&format!("{name}.counts"), &len, &counts)?;
                }
            }
        }
        file.write(path)
    }
}
