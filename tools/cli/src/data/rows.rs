//! The rows of a file of examples, independent of the container.

use anyhow::Result;

/// The names of the columns to read.
#[derive(Clone, Debug)]
pub(super) struct ColumnNames {
    pub(super) label: String,
    pub(super) weight: Option<String>,
    pub(super) dense: Vec<String>,
    pub(super) categorical: Vec<String>,
}

/// Whether rows must have labels.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) enum Labels {
    #[default]
    Needed,
    /// Rows that are only scored.
    Optional,
}

/// How fields become numbers.
#[derive(Clone, Debug, Default)]
pub(super) struct Rules {
    pub(super) labels: Labels,
    /// Dense numbers become log(1 + max(x, 0)), as in DLRM.
    pub(super) log1p: bool,
    /// Texts that stand for a missing value, besides the empty one.
    pub(super) missing: Vec<String>,
    /// If set, labels from this number on become 1, and others 0.
    pub(super) positive: Option<f32>,
}

impl Rules {
    /// What an error about a label says.
    pub(super) const LABEL: &str = "a label, 0 to 1 (`positive` makes labels of other numbers)";

    /// What an error about a weight says.
    pub(super) const WEIGHT: &str = "a weight, 0 or more";

    /// The name of the column of weights, which only the loss of labelled rows needs.
    pub(super) fn weight<'n>(&self, names: &'n ColumnNames) -> Option<&'n String> {
        names.weight.as_ref().filter(|_| self.labels == Labels::Needed)
    }

    pub(super) fn label(&self, number: f32) -> Option<f32> {
        match self.positive {
            Some(positive) => Some(if number >= positive { 1.0 } else { 0.0 }),
            None => Some(number).filter(|number| (0.0..=1.0).contains(number)),
        }
    }

    pub(super) fn label_of_text(&self, text: &[u8]) -> Option<f32> {
        let text = text.trim_ascii();
        if self.labels == Labels::Optional && self.is_missing(text) {
            return Some(f32::NAN);
        }
        let truth =
            [&b"false"[..], b"true"].iter().position(|name| text.eq_ignore_ascii_case(name));
        self.label(truth.map(|truth| truth as f32).or_else(|| number(text))?)
    }

    pub(super) fn dense(&self, number: f32) -> f32 {
        if self.log1p { number.max(0.0).ln_1p() } else { number }
    }

    pub(super) fn is_missing(&self, text: &[u8]) -> bool {
        let text = text.trim_ascii();
        text.is_empty() || self.missing.iter().any(|missing| missing.as_bytes() == text)
    }
}

/// A finite number.
pub(super) fn number(text: &[u8]) -> Option<f32> {
    let text = std::str::from_utf8(text).ok()?.trim();
    text.parse().ok().filter(|number: &f32| number.is_finite())
}

/// One example before its categories are numbered.
#[derive(Debug, Default)]
pub(super) struct Example {
    /// NaN if the row has none.
    pub(super) label: f32,
    /// If the config names a column of weights.
    pub(super) weight: Option<f32>,
    /// NaN where a number is missing.
    pub(super) dense: Vec<f32>,
    /// All values, end to end.
    values: Vec<u8>,
    /// The end of each value.
    ends: Vec<usize>,
    /// The number of values after those of each categorical column.
    bags: Vec<usize>,
}

impl Example {
    pub(super) fn clear(&mut self) {
        self.dense.clear();
        self.values.clear();
        self.ends.clear();
        self.bags.clear();
    }

    /// Adds a value to the bag of the next categorical column.
    pub(super) fn push(&mut self, value: &[u8]) {
        self.values.extend_from_slice(value);
        self.ends.push(self.values.len());
    }

    /// Ends the bag of the next categorical column.
    pub(super) fn end_bag(&mut self) {
        self.bags.push(self.ends.len());
    }

    /// The values of each categorical column.
    pub(super) fn bags(&self) -> impl Iterator<Item = impl Iterator<Item = &[u8]>> {
        let end = |of: &[usize], at: usize| if at == 0 { 0 } else { of[at - 1] };
        (0..self.bags.len()).map(move |column| {
            (end(&self.bags, column)..self.bags[column])
                .map(move |at| &self.values[end(&self.ends, at)..self.ends[at]])
        })
    }
}

/// The result of reading a row.
pub(super) enum RowOutcome {
    Row,
    /// A row that cannot be read: its line (of text) or row, from 1, and the reason.
    Bad {
        line: u64,
        reason: String,
    },
    End,
}

pub(super) trait RowReader {
    /// Reads the next one.
    ///
    /// # Errors
    /// If the rest of the file cannot be read.
    fn next(&mut self, row: &mut Example) -> Result<RowOutcome>;
}
