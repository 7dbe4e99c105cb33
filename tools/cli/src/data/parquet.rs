//! Rows of Apache Parquet files, plain or compressed with Snappy or gzip.

use super::rows::{ColumnNames, Example, RowOutcome, RowReader, Rules};
use anyhow::{Context, Result, bail, ensure};
use parquet::{
    basic::Repetition,
    file::reader::{FileReader, SerializedFileReader},
    record::{Field, Row as Record, reader::RowIter},
    schema::types::Type,
};
use std::{
    fs::File,
    io::Write as _,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::Arc,
};

pub(super) struct Records {
    rows: RowIter<'static>,
    /// The number of rows read so far.
    count: u64,
    label: usize,
    dense: Vec<usize>,
    categorical: Vec<usize>,
    rules: Rules,
    /// Room for the digits of a number.
    digits: Vec<u8>,
    place: String,
}

/// Turns a panic of the reader, as some malformed files cause, into an error.
fn guarded<T>(read: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| bail!("malformed"))
}

impl Records {
    pub(super) fn open(path: &Path, names: &ColumnNames, rules: &Rules) -> Result<Self> {
        let place = path.display().to_string();
        let file = File::open(path).with_context(|| format!("{place}: cannot open"))?;
        let opened = guarded(|| {
            let reader = SerializedFileReader::new(file)?;
            let schema = reader.metadata().file_metadata().schema_descr().root_schema().clone();
            // The projection: no other column is read.
            let mut fields = Vec::new();
            let mut find = |name: &String| -> Result<usize> {
                let mut found = schema.get_fields().iter().filter(|field| field.name() == name);
                let missing = || {
                    let names: Vec<_> =
                        schema.get_fields().iter().map(|field| field.name()).take(60).collect();
                    format!("has no column {name:?}; its columns are {names:?}")
                };
                let field = found.next().with_context(missing)?;
                ensure!(found.next().is_none(), "two columns {name:?}");
                let is_one = field.is_primitive()
                    && field.get_basic_info().repetition() != Repetition::REPEATED;
                ensure!(
                    is_one,
                    "column {name:?} holds lists or groups: expected one value in each row"
                );
                let known = fields.iter().position(|known: &Arc<Type>| known.name() == name);
                Ok(known.unwrap_or_else(|| {
                    fields.push(field.clone());
                    fields.len() - 1
                }))
            };
            let label = find(&names.label)?;
            let dense = names.dense.iter().map(&mut find).collect::<Result<Vec<_>>>()?;
            let categorical =
                names.categorical.iter().map(&mut find).collect::<Result<Vec<_>>>()?;
            let projection = Type::group_type_builder(schema.name()).with_fields(fields).build()?;
            let rows = RowIter::from_file_into(Box::new(reader)).project(Some(projection))?;
            Ok((rows, label, dense, categorical))
        });
        let (rows, label, dense, categorical) = opened.with_context(|| place.clone())?;
        Ok(Self {
            rows,
            count: 0,
            label,
            dense,
            categorical,
            rules: rules.clone(),
            digits: Vec::new(),
            place,
        })
    }

    /// Parses a record into `row`; the error says what is wrong with it.
    fn parse(&mut self, record: &Record, row: &mut Example) -> Result<(), String> {
        let fields: Vec<(&String, &Field)> = record.get_column_iter().collect();
        let field =
            |at: usize| fields.get(at).copied().ok_or_else(|| "fields are missing".to_owned());
        row.clear();
        let (name, label) = field(self.label)?;
        row.label = match label {
            Field::Str(text) => self.rules.label_of_text(text.as_bytes()),
            label => number(label).and_then(|label| self.rules.label(label)),
        }
        .ok_or_else(|| unsuitable(name, label, Rules::LABEL))?;
        for &at in &self.dense {
            let (name, value) = field(at)?;
            let value = if self.is_missing(value) {
                0.0
            } else {
                number(value).ok_or_else(|| unsuitable(name, value, "a number"))?
            };
            row.dense.push(self.rules.dense(value));
        }
        for &at in &self.categorical {
            let (name, value) = field(at)?;
            self.digits.clear();
            match value {
                value if self.is_missing(value) => row.push(b""),
                Field::Str(text) => row.push(text.as_bytes()),
                Field::Bytes(bytes) => row.push(bytes.data()),
                value => match integer(value).or_else(|| whole(value)) {
                    Some(integer) => {
                        // Writing to a vector does not fail.
                        let _ = write!(self.digits, "{integer}");
                        row.push(&self.digits);
                    }
                    None => return Err(unsuitable(name, value, "text or a whole number")),
                },
            }
        }
        Ok(())
    }

    fn is_missing(&self, value: &Field) -> bool {
        match value {
            Field::Null => true,
            Field::Str(text) => self.rules.is_missing(text.as_bytes()),
            Field::Float(value) => value.is_nan() && self.rules.is_missing(b"NaN"),
            Field::Double(value) => value.is_nan() && self.rules.is_missing(b"NaN"),
            _ => false,
        }
    }
}

/// The value of a float that is whole: columns of integers with a missing one are often floats.
fn whole(value: &Field) -> Option<i128> {
    let value = match *value {
        Field::Float(value) => value.into(),
        Field::Double(value) => value,
        _ => return None,
    };
    // Beyond 2^53, neighbouring integers are the same float.
    (value.fract() == 0.0 && value.abs() <= (1u64 << 53) as f64).then_some(value as i128)
}

fn unsuitable(name: &str, value: &Field, expected: &str) -> String {
    let value: String = value.to_string().chars().take(40).collect();
    format!("{name:?} is {value}: expected {expected}")
}

fn integer(value: &Field) -> Option<i128> {
    Some(match *value {
        Field::Bool(value) => value.into(),
        Field::Byte(value) => value.into(),
        Field::Short(value) => value.into(),
        Field::Int(value) => value.into(),
        Field::Long(value) => value.into(),
        Field::UByte(value) => value.into(),
        Field::UShort(value) => value.into(),
        Field::UInt(value) => value.into(),
        Field::ULong(value) => value.into(),
        _ => return None,
    })
}

/// A finite number.
fn number(value: &Field) -> Option<f32> {
    let number = match *value {
        Field::Float16(value) => value.to_f32(),
        Field::Float(value) => value,
        Field::Double(value) => value as f32,
        _ => integer(value)? as f32,
    };
    number.is_finite().then_some(number)
}

impl RowReader for Records {
    fn next(&mut self, row: &mut Example) -> Result<RowOutcome> {
        let rows = &mut self.rows;
        let Some(record) =
            guarded(|| Ok(rows.next().transpose()?)).with_context(|| self.place.clone())?
        else {
            return Ok(RowOutcome::End);
        };
        self.count += 1;
        Ok(match self.parse(&record, row) {
            Ok(()) => RowOutcome::Row,
            Err(reason) => RowOutcome::Bad { line: self.count, reason },
        })
    }
}
