//! Rows of delimited text, with a header or in Criteo's columns.

use super::{
    compressed,
    rows::{ColumnNames, Example, RowOutcome, RowReader, Rules, number},
};
use anyhow::{Context, Result, bail, ensure};
use std::{
    io::{self, Read},
    path::Path,
};

/// The format of a line.
#[derive(Clone, Debug)]
pub(super) struct LineLayout {
    /// `None`: Criteo's columns.
    pub(super) names: Option<ColumnNames>,
    pub(super) delimiter: u8,
    /// Whether fields may be quoted.
    pub(super) quote: bool,
    /// The names of all columns, if the file does not have them.
    pub(super) header: Option<Vec<String>>,
    pub(super) rules: Rules,
}

/// The number of Criteo's integers, and of its categories.
pub(super) const CRITEO: [usize; 2] = [13, 26];

/// A file and one more line feed, which ends every record except one with an open quote.
struct Input {
    text: io::Chain<Box<dyn Read>, &'static [u8]>,
    ended: bool,
}

impl Read for Input {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.text.read(out)?;
        self.ended = count == 0;
        Ok(count)
    }
}

/// The most lines of a category: more are rows between two quotes that are text.
const MAX_LINES: usize = 10;

pub(super) struct Lines {
    csv: csv::Reader<Input>,
    record: csv::ByteRecord,
    /// The number of fields of a line.
    width: usize,
    label: usize,
    dense: Vec<usize>,
    categorical: Vec<usize>,
    rules: Rules,
    place: String,
}

impl Lines {
    pub(super) fn open(path: &Path, layout: &LineLayout) -> Result<Self> {
        let place = path.display().to_string();
        let mut builder = csv::ReaderBuilder::new();
        let with_header = layout.names.is_some() && layout.header.is_none();
        builder
            .delimiter(layout.delimiter)
            .flexible(true)
            .has_headers(with_header)
            .quoting(layout.quote);
        let text = compressed::open(path)?.chain(&b"\n"[..]);
        let mut csv = builder.from_reader(Input { text, ended: false });
        let [integers, hashes] = CRITEO;
        let (width, label, dense, categorical) = match &layout.names {
            None => (
                1 + integers + hashes,
                0,
                (1..=integers).collect(),
                (1 + integers..1 + integers + hashes).collect(),
            ),
            Some(names) => {
                let header = match &layout.header {
                    Some(header) => csv::ByteRecord::from(header.as_slice()),
                    None => csv.byte_headers().with_context(|| place.clone())?.clone(),
                };
                ensure_closed(&csv, &header).with_context(|| place.clone())?;
                let find = |name: &String| -> Result<usize> {
                    let mut found =
                        header.iter().zip(0..).filter(|(field, _)| *field == name.as_bytes());
                    let missing = || {
                        format!(
                            "{place}: has no column {name:?}; its columns are {:?}",
                            lossy(&header)
                        )
                    };
                    let (_, at) = found.next().with_context(missing)?;
                    ensure!(found.next().is_none(), "{place}: two columns {name:?}");
                    Ok(at)
                };
                let all = |names: &[String]| names.iter().map(find).collect::<Result<Vec<_>>>();
                (header.len(), find(&names.label)?, all(&names.dense)?, all(&names.categorical)?)
            }
        };
        let (record, rules) = (csv::ByteRecord::new(), layout.rules.clone());
        Ok(Self { csv, record, width, label, dense, categorical, rules, place })
    }

    /// Parses the record into `row`; the error says what is wrong with it.
    fn parse(&self, row: &mut Example) -> Result<(), String> {
        let (found, expected) = (self.record.len(), self.width);
        if found != expected {
            return Err(format!("{found} fields, expected {expected}"));
        }
        let field = |at: usize| self.record.get(at).unwrap_or_default();
        let unsuitable = |at: usize, expected: &str| {
            format!("field {} is {:?}: expected {expected}", at + 1, lossy_field(field(at)))
        };
        row.clear();
        row.label = self
            .rules
            .label_of_text(field(self.label))
            .ok_or_else(|| unsuitable(self.label, Rules::LABEL))?;
        for &at in &self.dense {
            let value = if self.rules.is_missing(field(at)) {
                0.0
            } else {
                number(field(at)).ok_or_else(|| unsuitable(at, "a number"))?
            };
            row.dense.push(self.rules.dense(value));
        }
        for &at in &self.categorical {
            let value = field(at);
            let lines = line_feeds(value) + 1;
            if lines > MAX_LINES {
                return Err(format!(
                    "field {} has {lines} lines: if a quote in it is text, set `quote = false`",
                    at + 1
                ));
            }
            row.push(if self.rules.is_missing(value) { b"" } else { value });
            row.end_bag();
        }
        Ok(())
    }
}

/// Refuses a record that ends in an open quote, which has swallowed the rest of the file.
fn ensure_closed(csv: &csv::Reader<Input>, record: &csv::ByteRecord) -> Result<()> {
    if csv.get_ref().ended
        && let Some(last) = record.iter().next_back()
    {
        let line = csv.position().line().saturating_sub(line_feeds(last) as u64);
        bail!(
            "line {line}: a quote opens a field and never closes: close it, or set `quote = \
             false` to read quotes as text"
        );
    }
    Ok(())
}

fn line_feeds(field: &[u8]) -> usize {
    field.iter().filter(|&&byte| byte == b'\n').count()
}

fn lossy_field(field: &[u8]) -> String {
    String::from_utf8_lossy(&field[..field.len().min(40)]).into_owned()
}

fn lossy(record: &csv::ByteRecord) -> Vec<String> {
    record.iter().take(60).map(lossy_field).collect()
}

impl RowReader for Lines {
    fn next(&mut self, row: &mut Example) -> Result<RowOutcome> {
        if !self
            .csv
            .read_byte_record(&mut self.record)
            .with_context(|| self.place.clone())?
        {
            return Ok(RowOutcome::End);
        }
        ensure_closed(&self.csv, &self.record).with_context(|| self.place.clone())?;
        Ok(match self.parse(row) {
            Ok(()) => RowOutcome::Row,
            Err(reason) => RowOutcome::Bad {
                line: self.record.position().map_or(0, csv::Position::line),
                reason,
            },
        })
    }
}
