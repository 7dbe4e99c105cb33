//! Categories and their numbers: for each feature, the values of the training examples, the most
//! frequent first.
//!
//! All other values share the last number, "other", if the feature has one.
//!
//! If dense features are standardised, their means and deviations are here too: a model needs both
//! to encode a row.

use crate::{npz::Npz, output::Output};
use anyhow::{Context, Result, ensure};
use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

/// The name of the number of other values in the file.
const OTHERS: &str = "other";
/// Marks the line with the number of rows of a hashed feature.
const ROWS: &str = "rows";
/// Mark the lines of a dense feature.
const SCALE: [&str; 2] = ["mean", "deviation"];

/// The categories of all features.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Vocabulary {
    features: Vec<Categories>,
    /// One for each dense feature if they are standardised, or none.
    scales: Vec<Scale>,
}

/// How a dense feature is standardised: `(x - mean) / deviation`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Scale {
    pub(super) name: String,
    mean: f64,
    /// More than 0.
    deviation: f64,
    /// The number of values in the training examples.
    count: u64,
}

impl Scale {
    pub(super) fn apply(&self, x: f32) -> f32 {
        ((f64::from(x) - self.mean) / self.deviation) as f32
    }
}

/// The mean and the squared deviations of some numbers (Welford, 1962).
#[derive(Default)]
pub(super) struct Moments {
    count: u64,
    mean: f64,
    squares: f64,
}

impl Moments {
    /// Adds a number, unless it is missing: NaN.
    pub(super) fn add(&mut self, x: f32) {
        if !x.is_nan() {
            self.count += 1;
            let from_old = f64::from(x) - self.mean;
            self.mean += from_old / self.count as f64;
            self.squares += from_old * (f64::from(x) - self.mean);
        }
    }

    /// A feature that is constant is only shifted.
    pub(super) fn scale(self, name: String) -> Scale {
        let Self { count, mean, squares } = self;
        let deviation = (squares / count.max(1) as f64).sqrt();
        let deviation = if deviation > 0.0 { deviation } else { 1.0 };
        Scale { name, mean, deviation, count }
    }
}

/// The categories of one feature.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Categories {
    name: String,
    /// The values by number; empty if numbers are not looked up.
    values: Vec<Box<[u8]>>,
    numbers: HashMap<Box<[u8]>, u32>,
    /// How often each number occurs in the training examples.
    counts: Vec<u64>,
    /// Whether the last number is that of all other values.
    others: bool,
    /// Set if numbers are hashes of values, instead of the fields above.
    hashed: Option<Hashed>,
}

/// Numbers that are hashes, of which few occur.
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

    /// Numbers the values that occur at least `min_count` times; at most `max_rows` numbers,
    /// including that of the others.
    pub(super) fn finish(
        self,
        name: &str,
        min_count: u64,
        max_rows: Option<u32>,
    ) -> Result<Categories> {
        let mut counted: Vec<_> = self.0.into_iter().collect();
        // Equally frequent values are sorted by bytes, so that numbers do not depend on the hash
        // map.
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
    /// The categories of a feature whose numbers are hashes of its values, below `rows`.
    pub(super) fn hashed(name: String, rows: u32, counts: BTreeMap<u32, u64>) -> Self {
        Self { name, hashed: Some(Hashed { rows, counts }), ..Self::default() }
    }

    /// The categories of a feature whose values are integers, by number.
    pub(super) fn integers(name: String, values: &[u32], counts: Vec<u64>) -> Self {
        let values = values.iter().map(|value| value.to_string().into_bytes().into()).collect();
        // `numbers` stays empty: these values are never looked up.
        Self { name, values, counts, ..Self::default() }
    }

    fn with_numbers(mut self) -> Result<Self> {
        // Numbers that are not looked up have no values.
        if !self.others && self.values.iter().all(|value| value.is_empty()) {
            self.values.clear();
        }
        self.numbers = self.values.iter().cloned().zip(0..).collect();
        let Self { name, values, numbers, .. } = &self;
        ensure!(numbers.len() == values.len(), "feature {name:?}: a value occurs twice");
        Ok(self)
    }

    /// How often each value with a number of its own occurs.
    pub(super) fn counts_of_values(&self) -> &[u64] {
        self.counts.get(..self.values.len()).unwrap_or_default()
    }

    /// Renumbers the values: the one whose number is `order[k]` gets the number k.
    pub(super) fn in_order(mut self, order: &[u32]) -> Result<Self> {
        let moved: Vec<_> = order
            .iter()
            .map(|&from| {
                (std::mem::take(&mut self.values[from as usize]), self.counts[from as usize])
            })
            .collect();
        let others = self.counts.split_off(moved.len());
        (self.values, self.counts) = moved.into_iter().unzip();
        self.counts.extend(others);
        self.with_numbers()
    }

    pub(super) fn len(&self) -> u32 {
        self.hashed.as_ref().map_or(self.counts.len() as u32, |hashed| hashed.rows)
    }

    /// The number of a value, unless it is one of the others.
    pub(super) fn number(&self, value: &[u8]) -> Option<u32> {
        self.numbers.get(value).copied()
    }

    /// The number of the others.
    pub(super) fn others(&self) -> u32 {
        self.counts.len().saturating_sub(1) as u32
    }

    /// A number that is a hash: `Err` if it does not occur in the training examples.
    pub(super) fn occurs(&self, number: u32) -> Result<u32, u32> {
        let occurs = self.hashed.as_ref().is_some_and(|hashed| hashed.counts.contains_key(&number));
        if occurs { Ok(number) } else { Err(number) }
    }

    /// The share of the others in the training examples.
    pub(super) fn share_of_others(&self) -> f64 {
        let others = self.counts.last().filter(|_| self.others).copied().unwrap_or_default();
        others as f64 / self.total().max(1) as f64
    }

    /// The number of values in the training examples.
    pub(super) fn total(&self) -> u64 {
        let hashed = self.hashed.iter().flat_map(|hashed| hashed.counts.values());
        self.counts.iter().chain(hashed).sum()
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
        Self { features, scales: Vec::new() }
    }

    pub(super) fn with_scales(self, scales: Vec<Scale>) -> Self {
        Self { scales, ..self }
    }

    pub(super) fn scales(&self) -> &[Scale] {
        &self.scales
    }

    pub(super) fn features(&self) -> &[Categories] {
        &self.features
    }

    /// Writes `feature,number,value,count` lines. Numbers that are not looked up have no value. A
    /// hashed feature has one line with its number of rows, and one for each number that occurs. A
    /// dense feature that is standardised has two, with its mean and its deviation.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let mut output = Output::create(path)?;
        output.write(|out| {
            let mut csv = csv::Writer::from_writer(out);
            csv.write_record(["feature", "number", "value", "count"])?;
            for Scale { name, mean, deviation, count } in &self.scales {
                for (what, value) in SCALE.iter().zip([mean, deviation]) {
                    csv.write_record([name, *what, &value.to_string(), &count.to_string()])?;
                }
            }
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

    /// Reads a file of [`write`](Self::write).
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let place = || path.display().to_string();
        let mut csv = csv::Reader::from_path(path).with_context(place)?;
        let (mut features, mut record) = (Vec::<Categories>::new(), csv::ByteRecord::new());
        let mut scales = Vec::<Scale>::new();
        while csv.read_byte_record(&mut record).with_context(place)? {
            let line = record.position().map_or(0, csv::Position::line);
            let malformed =
                || format!("{}: line {line}: expected feature,number,value,count", path.display());
            let text = |at: usize| record.get(at).and_then(|field| std::str::from_utf8(field).ok());
            let name = text(0).with_context(malformed)?;
            let count = text(3).and_then(|count| count.parse().ok()).with_context(malformed)?;
            if let Some(what) = SCALE.iter().position(|what| text(1) == Some(what)) {
                let value: f64 =
                    text(2).and_then(|value| value.parse().ok()).with_context(malformed)?;
                ensure!(value.is_finite(), malformed());
                if what == 0 {
                    scales.push(Scale {
                        name: name.to_owned(),
                        mean: value,
                        deviation: 1.0,
                        count,
                    });
                } else {
                    let scale = scales.last_mut().filter(|scale| scale.name == name);
                    ensure!(value > 0.0, malformed());
                    scale.with_context(malformed)?.deviation = value;
                }
                continue;
            }
            if features.last().is_none_or(|feature| feature.name != name) {
                features.push(Categories { name: name.to_owned(), ..Categories::default() });
            }
            let feature = features.last_mut().with_context(malformed)?;
            ensure!(
                !feature.others,
                "{}: line {line}: {OTHERS:?} must have the last number of its feature",
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
        Ok(Self { features: features.with_context(place)?, scales })
    }

    /// The weights of the errors of the `count` rows of a feature: how often each row occurs, plus
    /// one. `None` if there is no such feature.
    pub(crate) fn weights(&self, feature: &str, count: usize) -> Option<Vec<f32>> {
        let Categories { counts, hashed, .. } =
            self.features.iter().find(|found| found.name == feature)?;
        let mut weights = vec![1.0; count];
        weights
            .iter_mut()
            .zip(counts)
            .for_each(|(weight, &count)| *weight += count as f32);
        for (&number, &count) in hashed.iter().flat_map(|hashed| &hashed.counts) {
            *weights.get_mut(number as usize)? += count as f32;
        }
        Some(weights)
    }

    /// Writes how often each number occurs, in the format of `--frequencies`: one array for each
    /// feature; for a hashed feature, the numbers that occur and their counts.
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
