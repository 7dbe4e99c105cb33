//! Rows of delimited text, with a header or in Criteo's columns.

use super::{
    gzip,
    rows::{ColumnNames, Example, RowOutcome, RowReader},
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
    /// Dense numbers become log(1 + max(x, 0)), as in DLRM.
    pub(super) log1p: bool,
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

pub(super) struct Lines {
    csv: csv::Reader<Input>,
    record: csv::ByteRecord,
    /// The number of fields of a line.
    width: usize,
    label: usize,
    dense: Vec<usize>,
    categorical: Vec<usize>,
    log1p: bool,
    place: String,
}

impl Lines {
    pub(super) fn open(path: &Path, layout: &LineLayout) -> Result<Self> {
        let place = path.display().to_string();
        let mut builder = csv::ReaderBuilder::new();
        let with_header = layout.names.is_some();
        builder
            .delimiter(layout.delimiter)
            .flexible(true)
            .has_headers(with_header)
            .quoting(layout.quote);
        let text = gzip::open(path)?.chain(&b"\n"[..]);
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
                let header = csv.byte_headers().with_context(|| place.clone())?.clone();
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
        let (record, log1p) = (csv::ByteRecord::new(), layout.log1p);
        Ok(Self { csv, record, width, label, dense, categorical, log1p, place })
    }

    /// Parses the record into `row`; the error says what is wrong with it.
    fn parse(&self, row: &mut Example) -> Result<(), String> {
        let (found, expected) = (self.record.len(), self.width);
        if found != expected {
            return Err(format!("{found} fields, expected {expected}"));
        }
        let field = |at: usize| self.record.get(at).unwrap_or_default();
        let number = |at: usize, what: &str| -> Result<f32, String> {
            let text = std::str::from_utf8(field(at)).ok().map(str::trim);
            let value =
                text.and_then(|text| text.parse::<f32>().ok()).filter(|value| value.is_finite());
            value.ok_or_else(|| {
                format!("field {} is {:?}: expected {what}", at + 1, lossy_field(field(at)))
            })
        };
        row.clear();
        row.label = number(self.label, "a label, 0 to 1")?;
        if !(0.0..=1.0).contains(&row.label) {
            return Err(format!(
                "field {} is {}: expected a label, 0 to 1",
                self.label + 1,
                row.label
            ));
        }
        for &at in &self.dense {
            let value = if field(at).is_empty() {
                0.0
            } else {
                number(at, "a number")?
            };
            row.dense.push(if self.log1p { value.max(0.0).ln_1p() } else { value });
        }
        for &at in &self.categorical {
            row.push(field(at));
        }
        Ok(())
    }
}

/// Refuses a record that ends in an open quote, which has swallowed the rest of the file.
fn ensure_closed(csv: &csv::Reader<Input>, record: &csv::ByteRecord) -> Result<()> {
    if csv.get_ref().ended
        && let Some(last) = record.iter().next_back()
    {
        let swallowed = last.iter().filter(|&&byte| byte == b'\n').count() as u64;
        let line = csv.position().line().saturating_sub(swallowed);
        bail!(
            "line {line}: a quote opens a field and never closes: close it, or set `quote = \
             false` to read quotes as text"
        );
    }
    Ok(())
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
