//! Rows of Apache Parquet files.

mod pages;
mod unpack;

use super::rows::{ColumnNames, Example, Labels, RowOutcome, RowReader, Rules};
use anyhow::{Context, Result, anyhow, bail, ensure};
use parquet::{
    basic::{ConvertedType, Repetition},
    data_type::Decimal,
    errors::ParquetError,
    file::reader::FileReader as _,
    record::{Field, Row as Record, reader::RowIter},
    schema::types::Type,
};
use std::{
    cell::Cell,
    fs::File,
    io::Write as _,
    panic::{self, AssertUnwindSafe},
    path::Path,
    sync::{Arc, Once},
};

pub(super) struct Records {
    rows: RowIter<'static>,
    /// The number of rows read so far.
    count: u64,
    label: Option<usize>,
    weight: Option<usize>,
    dense: Vec<usize>,
    categorical: Vec<Category>,
    rules: Rules,
    /// Room for the digits of a number.
    digits: Vec<u8>,
    place: String,
}

/// A categorical column.
struct Category {
    /// The position of its field.
    at: usize,
    /// Whether it holds a list in each row.
    is_list: bool,
}

/// Turns a panic of the reader, as some malformed files cause, into an error.
fn guarded<T>(read: impl FnOnce() -> Result<T>) -> Result<T> {
    thread_local! {
        static IS_GUARDED: Cell<bool> = const { Cell::new(false) };
    }
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let print = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if !IS_GUARDED.get() {
                print(panic);
            }
        }));
    });
    IS_GUARDED.set(true);
    let result = panic::catch_unwind(AssertUnwindSafe(read));
    IS_GUARDED.set(false);
    result.unwrap_or_else(|_| bail!(DAMAGED))
}

const DAMAGED: &str = "not a Parquet file, or a damaged one";

/// What is wrong with the file. The reader's own words are about its parts.
fn plain(error: ParquetError) -> anyhow::Error {
    anyhow!(match error {
        ParquetError::NYI(_) => "its data are of a kind that is not read",
        ParquetError::General(text) if text.contains("encrypt") => "it is encrypted",
        _ => DAMAGED,
    })
}

/// Whether a field holds a list of values in each row, or one value; `None` if it holds neither.
fn is_list(field: &Type) -> Option<bool> {
    let repeats = |field: &Type| field.get_basic_info().repetition() == Repetition::REPEATED;
    if field.is_primitive() {
        return Some(repeats(field));
    }
    if repeats(field) || field.get_basic_info().converted_type() != ConvertedType::LIST {
        return None;
    }
    let [repeated] = field.get_fields() else { return None };
    let is_list = repeats(repeated)
        && (repeated.is_primitive()
            || matches!(repeated.get_fields(), [e] if e.is_primitive() && !repeats(e)));
    is_list.then_some(true)
}

impl Records {
    pub(super) fn open(path: &Path, names: &ColumnNames, rules: &Rules) -> Result<Self> {
        let place = path.display().to_string();
        let file = File::open(path).with_context(|| format!("{place}: cannot open"))?;
        let opened = guarded(|| {
            let reader = pages::File::new(file).map_err(plain)?;
            let schema = reader.metadata().file_metadata().schema_descr().root_schema().clone();
            // The projection: no other column is read.
            let mut fields = Vec::new();
            let mut find = |name: &String| -> Result<Category> {
                let mut found = schema.get_fields().iter().filter(|field| field.name() == name);
                let missing = || {
                    let names: Vec<_> =
                        schema.get_fields().iter().map(|field| field.name()).take(60).collect();
                    format!("has no column {name:?}; its columns are {names:?}")
                };
                let field = found.next().with_context(missing)?;
                ensure!(found.next().is_none(), "two columns {name:?}");
                let is_list = is_list(field).with_context(|| {
                    format!(
                        "column {name:?} holds groups: expected one value, or a list of values, \
                         in each row"
                    )
                })?;
                let known = fields.iter().position(|known: &Arc<Type>| known.name() == name);
                let at = known.unwrap_or_else(|| {
                    fields.push(field.clone());
                    fields.len() - 1
                });
                Ok(Category { at, is_list })
            };
            let categorical =
                names.categorical.iter().map(&mut find).collect::<Result<Vec<_>>>()?;
            let mut number = |name: &String| -> Result<usize> {
                let Category { at, is_list } = find(name)?;
                ensure!(!is_list, "column {name:?} holds lists: expected one number in each row");
                Ok(at)
            };
            let is_unlabelled = rules.labels == Labels::Optional
                && schema.get_fields().iter().all(|field| field.name() != names.label);
            let label = if is_unlabelled {
                None
            } else {
                Some(number(&names.label)?)
            };
            let weight = rules.weight(names).map(&mut number).transpose()?;
            let dense = names.dense.iter().map(number).collect::<Result<Vec<_>>>()?;
            let projection = Type::group_type_builder(schema.name()).with_fields(fields).build();
            let rows = projection.and_then(|projection| {
                RowIter::from_file_into(Box::new(reader)).project(Some(projection))
            });
            let rows = rows.map_err(plain)?;
            Ok((rows, label, weight, dense, categorical))
        });
        let (rows, label, weight, dense, categorical) = opened.with_context(|| place.clone())?;
        Ok(Self {
            rows,
            count: 0,
            label,
            weight,
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
        row.label = f32::NAN;
        if let Some(at) = self.label {
            let (name, label) = field(at)?;
            row.label = match label {
                Field::Str(text) => self.rules.label_of_text(text.as_bytes()),
                Field::Bytes(text) => self.rules.label_of_text(text.data()),
                Field::Null => self.rules.label_of_text(b""),
                label => number(label).and_then(|label| self.rules.label(label)),
            }
            .ok_or_else(|| unsuitable(name, label, Rules::LABEL))?;
        }
        row.weight = None;
        if let Some(at) = self.weight {
            let (name, value) = field(at)?;
            let weight = number(value).filter(|weight| *weight >= 0.0);
            row.weight = Some(weight.ok_or_else(|| unsuitable(name, value, Rules::WEIGHT))?);
        }
        for &at in &self.dense {
            let (name, value) = field(at)?;
            row.dense.push(if self.is_missing(value) {
                f32::NAN
            } else {
                let value = number(value).ok_or_else(|| unsuitable(name, value, "a number"))?;
                self.rules.dense(value)
            });
        }
        for &Category { at, is_list } in &self.categorical {
            let (name, value) = field(at)?;
            let values = match value {
                Field::ListInternal(list) => list.elements(),
                Field::Null if is_list => &[],
                value => std::slice::from_ref(value),
            };
            for value in values {
                self.digits.clear();
                match value {
                    // A list has no place for a missing value.
                    value if self.is_missing(value) => {
                        if !is_list {
                            row.push(b"");
                        }
                    }
                    Field::Str(text) => row.push(text.as_bytes()),
                    Field::Bytes(bytes) => row.push(bytes.data()),
                    value => {
                        let number = whole(value)
                            .ok_or_else(|| unsuitable(name, value, "text or a whole number"))?;
                        // Writing to a vector does not fail.
                        let _ = write!(self.digits, "{number}");
                        row.push(&self.digits);
                    }
                }
            }
            row.end_bag();
        }
        Ok(())
    }

    fn is_missing(&self, value: &Field) -> bool {
        match value {
            Field::Null => true,
            Field::Str(text) => self.rules.is_missing(text.as_bytes()),
            Field::Bytes(text) => self.rules.is_missing(text.data()),
            Field::Float16(value) => value.is_nan(),
            Field::Float(value) => value.is_nan(),
            Field::Double(value) => value.is_nan(),
            _ => false,
        }
    }
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

/// A decimal without its decimal point, if it fits.
fn unscaled(decimal: &Decimal) -> Option<i128> {
    let bytes = decimal.data();
    let sign = if *bytes.first()? < 0x80 { 0 } else { 0xff };
    let mut wide = [sign; size_of::<i128>()];
    let start = wide.len().checked_sub(bytes.len())?;
    wide[start..].copy_from_slice(bytes);
    Some(i128::from_be_bytes(wide))
}

/// A whole number, which may be a float or a decimal: columns of integers of which some are missing
/// are often floats.
fn whole(value: &Field) -> Option<i128> {
    let value = match value {
        Field::Float16(value) => value.to_f64(),
        Field::Float(value) => f64::from(*value),
        Field::Double(value) => *value,
        Field::Decimal(decimal) => {
            let unit = 10i128.checked_pow(u32::try_from(decimal.scale()).ok()?)?;
            return unscaled(decimal).filter(|value| value % unit == 0).map(|value| value / unit);
        }
        value => return integer(value),
    };
    // Beyond 2^53, neighbouring integers are the same float.
    (value.fract() == 0.0 && value.abs() <= (1u64 << 53) as f64).then_some(value as i128)
}

/// A finite number.
fn number(value: &Field) -> Option<f32> {
    let number = match value {
        Field::Float16(value) => value.to_f32(),
        Field::Float(value) => *value,
        Field::Double(value) => *value as f32,
        Field::Decimal(decimal) => (unscaled(decimal)? as f64 / 10f64.powi(decimal.scale())) as f32,
        Field::Str(text) => return super::rows::number(text.as_bytes()),
        value => integer(value)? as f32,
    };
    number.is_finite().then_some(number)
}

impl RowReader for Records {
    fn next(&mut self, row: &mut Example) -> Result<RowOutcome> {
        let rows = &mut self.rows;
        let Some(record) = guarded(|| rows.next().transpose().map_err(plain))
            .with_context(|| format!("{}: row {}", self.place, self.count + 1))?
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
