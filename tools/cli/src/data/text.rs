//! Rows of delimited text, with a header or in Criteo's columns.

use super::{
    gzip,
    rows::{ColumnNames, Example, RowOutcome, RowReader},
};
use anyhow::{Context, Result, ensure};
use std::{io::Read, path::Path};

/// The format of a line.
#[derive(Clone, Debug)]
pub(super) struct LineLayout {
    /// `None`: Criteo's columns, without quoting.
    pub(super) names: Option<ColumnNames>,
    pub(super) delimiter: u8,
    /// Dense numbers become log(1 + max(x, 0)), as in DLRM.
    pub(super) log1p: bool,
}

/// The number of Criteo's integers, and of its categories.
pub(super) const CRITEO: [usize; 2] = [13, 26];

pub(super) struct Lines {
    csv: csv::Reader<Box<dyn Read>>,
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
            .quoting(with_header);
        let mut csv = builder.from_reader(gzip::open(path)?);
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
        Ok(match self.parse(row) {
            Ok(()) => RowOutcome::Row,
            Err(reason) => RowOutcome::Bad {
                line: self.record.position().map_or(0, csv::Position::line),
                reason,
            },
        })
    }
}
