//! The rows of a file of examples, whatever container they are in.

use anyhow::Result;

/// Which columns of the header are what.
#[derive(Clone, Debug)]
pub(super) struct ColumnNames {
    pub(super) label: String,
    pub(super) dense: Vec<String>,
    pub(super) categorical: Vec<String>,
}

/// One example, as it is read.
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

    /// The value of the next column of categories.
    pub(super) fn push(&mut self, value: &[u8]) {
        self.values.extend_from_slice(value);
        self.ends.push(self.values.len());
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &[u8]> {
        let starts = [0].into_iter().chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| &self.values[start..end])
    }
}

/// What reading a row came to.
pub(super) enum RowOutcome {
    Row,
    /// It is not one; the line (of text) or row, from 1, and why.
    Bad {
        line: u64,
        reason: String,
    },
    End,
}

/// The rows of a file.
pub(super) trait RowReader {
    /// Reads the next one.
    ///
    /// # Errors
    /// Nothing more can be read.
    fn next(&mut self, row: &mut Example) -> Result<RowOutcome>;
}
