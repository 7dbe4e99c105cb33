//! Rows of delimited text.

use super::{
    compressed,
    rows::{ColumnNames, Example, Labels, RowOutcome, RowReader, Rules, number},
};
use anyhow::{Context, Result, bail, ensure};
use std::{
    io::{self, BufRead, BufReader, Read},
    path::Path,
    slice,
};

/// The format of a line.
#[derive(Clone, Debug)]
pub(super) struct LineLayout {
    pub(super) names: ColumnNames,
    pub(super) delimiter: Delimiter,
    /// Whether fields may be quoted.
    pub(super) quote: bool,
    /// The names of all columns, if the file does not have them.
    pub(super) header: Option<Vec<String>>,
    pub(super) rules: Rules,
}

/// What separates fields.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Delimiter {
    One(u8),
    Two([u8; 2]),
}

/// The number of Criteo's integers, and of its categories.
pub(super) const CRITEO: [usize; 2] = [13, 26];

impl LineLayout {
    /// Criteo's click logs.
    pub(super) fn criteo(labels: Labels) -> Self {
        let [integers, categories] = CRITEO;
        let names = ColumnNames {
            label: "label".to_owned(),
            weight: None,
            dense: (1..=integers).map(|at| format!("I{at}")).collect(),
            categorical: (1..=categories).map(|at| format!("C{at}")).collect(),
        };
        let header = [slice::from_ref(&names.label), &names.dense, &names.categorical].concat();
        let rules = Rules { labels, log1p: true, ..Rules::default() };
        let delimiter = Delimiter::One(b'\t');
        Self { names, delimiter, quote: false, header: Some(header), rules }
    }
}

/// A file and one more line feed, which ends every record except one with an open quote.
struct Input {
    text: io::Chain<Box<dyn Read>, &'static [u8]>,
    ended: bool,
    /// The bytes read for the present record.
    of_record: usize,
}

/// The most bytes of a record, which is held in memory: compressed text may have no end of a line.
const MAX_RECORD: usize = 16 << 20;

impl Read for Input {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.text.read(out)?;
        self.ended = count == 0;
        self.of_record += count;
        if self.of_record > MAX_RECORD {
            let error = "the row has more than 16 MiB: if a quote in it is text, set `quote = \
                         false`";
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
        Ok(count)
    }
}

/// Stands for a delimiter of two bytes, because the parser of lines takes one.
const UNIT_SEPARATOR: u8 = 0x1f;

/// Text in which [`UNIT_SEPARATOR`] replaces each delimiter.
struct Separated {
    text: BufReader<Box<dyn Read>>,
    delimiter: [u8; 2],
    /// Whether the last byte may begin a delimiter.
    begun: bool,
}

impl Read for Separated {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let [first, second] = self.delimiter;
        let mut count = 0;
        // A byte after one that may begin a delimiter gives up to two bytes.
        while count + 2 <= out.len() {
            let Some(&byte) = self.text.fill_buf()?.first() else {
                if std::mem::take(&mut self.begun) {
                    out[count] = first;
                    count += 1;
                }
                break;
            };
            self.text.consume(1);
            if byte == UNIT_SEPARATOR {
                let error = "a byte of the text is 0x1f, which a `delimiter` of two bytes excludes";
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
            let begun = std::mem::take(&mut self.begun);
            if begun && byte == second {
                out[count] = UNIT_SEPARATOR;
                count += 1;
                continue;
            }
            if begun {
                out[count] = first;
                count += 1;
            }
            if byte == first {
                self.begun = true;
            } else {
                out[count] = byte;
                count += 1;
            }
        }
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
    label: Option<usize>,
    weight: Option<usize>,
    dense: Vec<usize>,
    categorical: Vec<usize>,
    rules: Rules,
    place: String,
}

impl Lines {
    pub(super) fn open(path: &Path, layout: &LineLayout) -> Result<Self> {
        let place = path.display().to_string();
        let mut text = compressed::open(path)?;
        let delimiter = match layout.delimiter {
            Delimiter::One(delimiter) => delimiter,
            Delimiter::Two(delimiter) => {
                let buffered = BufReader::with_capacity(1 << 16, text);
                text = Box::new(Separated { text: buffered, delimiter, begun: false });
                UNIT_SEPARATOR
            }
        };
        let mut builder = csv::ReaderBuilder::new();
        builder
            .delimiter(delimiter)
            .flexible(true)
            .has_headers(layout.header.is_none())
            .quoting(layout.quote);
        let text = text.chain(&b"\n"[..]);
        let mut csv = builder.from_reader(Input { text, ended: false, of_record: 0 });
        let LineLayout { names, rules, .. } = layout;
        let header = match &layout.header {
            Some(header) => {
                let mut header = csv::ByteRecord::from(header.as_slice());
                // The first row says whether there are labels.
                if rules.labels == Labels::Optional
                    && csv.byte_headers().with_context(|| place.clone())?.len() + 1 == header.len()
                {
                    header = header.iter().filter(|name| *name != names.label.as_bytes()).collect();
                }
                header
            }
            None => csv.byte_headers().with_context(|| place.clone())?.clone(),
        };
        ensure_closed(&csv, &header).with_context(|| place.clone())?;
        let find = |name: &String| -> Result<Option<usize>> {
            let mut found = header.iter().zip(0..).filter(|(field, _)| *field == name.as_bytes());
            let at = found.next().map(|(_, at)| at);
            ensure!(found.next().is_none(), "{place}: two columns {name:?}");
            Ok(at)
        };
        let expect = |name: &String| -> Result<usize> {
            find(name)?.with_context(|| {
                format!("{place}: has no column {name:?}; its columns are {:?}", lossy(&header))
            })
        };
        let all = |names: &[String]| names.iter().map(expect).collect::<Result<Vec<_>>>();
        let label = match rules.labels {
            Labels::Needed => Some(expect(&names.label)?),
            Labels::Optional => find(&names.label)?,
        };
        let weight = rules.weight(names).map(expect).transpose()?;
        let (dense, categorical) = (all(&names.dense)?, all(&names.categorical)?);
        let width = header.len();
        let (record, rules) = (csv::ByteRecord::new(), rules.clone());
        Ok(Self { csv, record, width, label, weight, dense, categorical, rules, place })
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
        row.label = match self.label {
            Some(at) => self
                .rules
                .label_of_text(field(at))
                .ok_or_else(|| unsuitable(at, Rules::LABEL))?,
            None => f32::NAN,
        };
        let weight = |at: usize| {
            let weight = number(field(at)).filter(|weight| *weight >= 0.0);
            weight.ok_or_else(|| unsuitable(at, Rules::WEIGHT))
        };
        row.weight = self.weight.map(weight).transpose()?;
        for &at in &self.dense {
            row.dense.push(if self.rules.is_missing(field(at)) {
                f32::NAN
            } else {
                let value = number(field(at)).ok_or_else(|| unsuitable(at, "a number"))?;
                self.rules.dense(value)
            });
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
        self.csv.get_mut().of_record = 0;
        let line = self.csv.position().line();
        let place = || format!("{}: line {line}", self.place);
        if !self.csv.read_byte_record(&mut self.record).with_context(place)? {
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
