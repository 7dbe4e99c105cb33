//! The rows of a file of examples, independent of the container.

use anyhow::Result;

/// The names of the columns to read.
#[derive(Clone, Debug)]
pub(super) struct ColumnNames {
    pub(super) label: String,
    pub(super) dense: Vec<String>,
    pub(super) categorical: Vec<String>,
}

/// One example before its categories are numbered.
#[derive(Debug, Default)]
pub(super) struct Example {
    pub(super) label: f32,
    pub(super) dense: Vec<f32>,
    values: Vec<u8>,
    ends: Vec<usize>,
}

impl Example {
    pub(super) fn clear(&mut self) {
        self.dense.clear();
        self.values.clear();
        self.ends.clear();
    }

    /// Adds the value of the next categorical column.
    pub(super) fn push(&mut self, value: &[u8]) {
        self.values.extend_from_slice(value);
        self.ends.push(self.values.len());
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &[u8]> {
        let starts = [0].into_iter().chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| &self.values[start..end])
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
