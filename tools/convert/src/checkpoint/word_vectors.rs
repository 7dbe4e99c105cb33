//! Word vectors: the text of word2vec, GloVe and fastText, and the binary form of word2vec, each
//! also through gzip.
//!
//! A row is a word and its numbers. word2vec and fastText first say how many rows and columns
//! follow; GloVe does not. The words are not kept: row i is that of the i-th word.

use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::Path;
use std::sync::Arc;

use flate2::bufread::MultiGzDecoder;

use super::mapped::Mapped;
use super::tensor::{Data, DecodedCache, ElementLayout};
use super::{CheckpointError, ElementType, Tensor, archive, contain};

/// The longest line: beyond the widest table that a blob can have.
const MAX_LINE: usize = 4 << 20;

/// The longest word of the binary form, which has no lines.
const MAX_WORD: usize = 64 << 10;

/// The form of a file.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    Text,
    /// Text after a line that says the number of rows and of columns.
    TextWithHeader,
    /// Words in text and little-endian f32 numbers, after a line as that of the text.
    Binary,
}

/// A file of word vectors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Layout {
    form: Form,
    /// The number of rows, if the file says it.
    rows: Option<u64>,
    columns: usize,
}

pub(super) fn is_gzip(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0x1f, 0x8b, 8])
}

/// The text of a file, through gzip if the file is compressed, and the most bytes that it has.
fn text(map: &Mapped) -> (Box<dyn BufRead>, u64) {
    let (bytes, len) = (Cursor::new(map.clone()), map.as_ref().len() as u64);
    if !is_gzip(map.as_ref()) {
        return (Box::new(bytes), len);
    }
    let most = archive::expanded(len);
    (Box::new(BufReader::new(Limited { text: MultiGzDecoder::new(bytes), left: most })), most)
}

/// What is decompressed, with an error where it exceeds the limit.
struct Limited<R> {
    text: R,
    left: u64,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.text.read(out)?;
        self.left = self.left.checked_sub(count as u64).ok_or_else(|| {
            io::Error::other("it expands to more than text does: decompress it first")
        })?;
        Ok(count)
    }
}

/// The layout of word vectors, if the file seems to have them.
///
/// # Errors
/// If it is text of numbers only.
pub(super) fn find(map: &Mapped) -> Result<Option<Layout>, String> {
    let mut start = Vec::new();
    // What cannot be decompressed is no text.
    let _ = text(map).0.take(2 * MAX_LINE as u64).read_to_end(&mut start);
    layout(&start)
}

/// The layout of word vectors that begin with `start`.
fn layout(start: &[u8]) -> Result<Option<Layout>, String> {
    let Some((first, rest)) = split_line(start) else { return Ok(None) };
    let (fields, numbers) = count(first);
    if let Some((rows, columns)) = header(first) {
        let (fields, numbers) = split_line(rest).map_or((0, 0), |(line, _)| count(line));
        // The word may be a number too, unless the lines are then those of a matrix.
        let is_row = numbers > 0 && (fields > numbers || columns > 1 && numbers > columns);
        let form = match is_text(rest) {
            true if is_row => Some(Form::TextWithHeader),
            true => None,
            false => Some(Form::Binary),
        };
        if let Some(form) = form {
            return Ok(Some(Layout { form, rows: Some(rows), columns }));
        }
    }
    if numbers < 2 || !is_text(start) {
        return Ok(None);
    }
    if numbers == fields {
        return Err(
            "text of numbers only. If the first number of each line is a word, put a line \
                    with the number of rows and of columns before the first; if not, save the \
                    array with numpy.save(\"table.npy\", numpy.loadtxt(...))"
                .to_owned(),
        );
    }
    Ok(Some(Layout { form: Form::Text, rows: None, columns: numbers }))
}

/// The first line and what follows; `None` if there is no line.
fn split_line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    if bytes.is_empty() {
        return None;
    }
    let end = bytes.iter().position(|&byte| byte == b'\n').unwrap_or(bytes.len());
    Some((&bytes[..end], bytes.get(end + 1..).unwrap_or_default()))
}

/// The fields of a line. Words may have other white space in them.
fn fields(line: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    let is_separator = |&byte: &u8| matches!(byte, b' ' | b'\t' | b'\r');
    line.split(is_separator).filter(|field| !field.is_empty())
}

/// How many fields a line has, and how many of the last ones are finite numbers.
fn count(line: &[u8]) -> (usize, usize) {
    let is_number = |field: &&[u8]| number(field).is_some_and(f32::is_finite);
    (fields(line).count(), fields(line).rev().take_while(is_number).count())
}

fn number(field: &[u8]) -> Option<f32> {
    str::from_utf8(field).ok()?.parse().ok()
}

/// The numbers of rows and columns, if the line has nothing else.
fn header(line: &[u8]) -> Option<(u64, usize)> {
    let mut fields = fields(line).map(|field| str::from_utf8(field).ok());
    let (rows, columns) = (fields.next()??, fields.next()??);
    let found = (rows.parse().ok()?, columns.parse().ok()?);
    (fields.next().is_none() && found.0 > 0 && found.1 > 0).then_some(found)
}

/// Whether `bytes`, which may end within a character, are text.
fn is_text(bytes: &[u8]) -> bool {
    let is_control = |byte: &u8| *byte < b' ' && !matches!(byte, b'\t' | b'\n' | b'\r');
    let is_utf8 = str::from_utf8(bytes).map_or_else(|e| e.error_len().is_none(), |_| true);
    is_utf8 && !bytes.iter().any(is_control)
}

/// The table of the rows, named after the file.
pub(super) fn read(
    path: &Arc<Path>,
    map: &Mapped,
    layout: Layout,
) -> Result<Vec<Tensor>, CheckpointError> {
    let refused = |reason: String| CheckpointError::file(path, format!("word vectors: {reason}"));
    let (mut reader, most) = text(map);
    let Layout { form, rows, columns } = layout;
    let rows = match rows {
        Some(rows) => rows,
        None => count_lines(&mut reader).map_err(refused)?,
    };
    // Each number takes a separator and a digit, or four bytes.
    let least = if form == Form::Binary { 4 } else { 2 };
    let len = rows.checked_mul(columns as u64);
    if len.and_then(|len| len.checked_mul(least)).is_none_or(|least| least > most) {
        return Err(refused(format!(
            "the first line says {rows} rows of {columns}, which is more than the file has: it was \
             cut short"
        )));
    }
    let name = path.file_name().map(Path::new).unwrap_or(path);
    let is_compressed = is_gzip(map.as_ref()) && name.extension().is_some_and(|e| e == "gz");
    let name = if is_compressed {
        Path::new(name.file_stem().unwrap_or_default())
    } else {
        name
    };
    let name = name.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let map = map.clone();
    let load = move || contain(|| decode(&mut text(&map).0, form, rows, columns))?;
    let data =
        Data::Decoded { cache: Arc::new(DecodedCache::default()), id: 0, load: Box::new(load) };
    let shape = vec![rows, columns as u64];
    let layout = ElementLayout::ROW_MAJOR_LE;
    Ok(vec![Tensor::new(path, name, ElementType::F32, shape, layout, data)?])
}

/// Reads the next line, without its end, into `line`; whether there is one.
fn next_line(reader: &mut dyn BufRead, line: &mut Vec<u8>) -> Result<bool, String> {
    line.clear();
    reader
        .take(MAX_LINE as u64)
        .read_until(b'\n', line)
        .map_err(|error| error.to_string())?;
    if line.len() == MAX_LINE && !line.ends_with(b"\n") {
        return Err(format!("a line of more than {MAX_LINE} bytes"));
    }
    let any = !line.is_empty();
    line.truncate(line.len() - usize::from(line.ends_with(b"\n")));
    Ok(any)
}

/// The number of lines that are not blank.
fn count_lines(reader: &mut dyn BufRead) -> Result<u64, String> {
    let (mut line, mut count) = (Vec::new(), 0);
    while next_line(reader, &mut line)? {
        count += u64::from(fields(&line).next().is_some());
    }
    Ok(count)
}

/// The numbers of all rows, as bytes.
fn decode(
    reader: &mut dyn BufRead,
    form: Form,
    rows: u64,
    columns: usize,
) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    // The number of rows was compared with the size of the file.
    let len = usize::try_from(rows)
        .ok()
        .and_then(|rows| rows.checked_mul(columns)?.checked_mul(4));
    out.try_reserve_exact(len.unwrap_or(usize::MAX))
        .map_err(|_| format!("{rows} rows of {columns} do not fit in memory"))?;
    let mut line = Vec::new();
    if form != Form::Text {
        next_line(reader, &mut line)?;
    }
    if form == Form::Binary {
        (0..rows).try_for_each(|row| {
            binary_row(reader, columns, &mut line, &mut out).map_err(|reason| {
                format!("row {row} of {rows} {reason}: the file was cut short, or is damaged")
            })
        })?;
    } else {
        let header = u64::from(form == Form::TextWithHeader);
        for row in 0..rows {
            if !next_line(reader, &mut line)? {
                return Err(format!(
                    "the first line says {rows} rows, but the file ends after {row}: it was cut \
                     short"
                ));
            }
            text_row(&line, columns, &mut out)
                .map_err(|reason| format!("line {}: {reason}", row + header + 1))?;
        }
    }
    while next_line(reader, &mut line)? {
        if fields(&line).next().is_some() {
            return Err(format!("the first line says {rows} rows, but more follow"));
        }
    }
    Ok(out)
}

/// Appends the numbers of a line, whose word may contain spaces.
fn text_row(line: &[u8], columns: usize, out: &mut Vec<u8>) -> Result<(), String> {
    let start = out.len();
    let mut fields = fields(line).rev();
    for field in fields.by_ref().take(columns) {
        let Some(value) = number(field) else {
            let found = String::from_utf8_lossy(&field[..field.len().min(40)]);
            let numbers = (out.len() - start) / 4;
            return Err(format!(
                "{found:?} before the last {numbers} numbers, expected a word and {columns} numbers"
            ));
        };
        out.extend_from_slice(&value.to_le_bytes());
    }
    // A number where the word ends is one too many; the whole word may be a number. A line that
    // starts with a space has an empty word, as some of fastText's.
    let (last, is_whole) = (fields.next(), fields.next().is_none());
    let found = (out.len() - start) / 4;
    let is_long = !is_whole && last.and_then(number).is_some();
    let has_word =
        last.is_some() || line.first().is_some_and(|&byte| byte == b' ' || byte == b'\t');
    if found < columns || !has_word || is_long {
        let (more, found) = if is_long {
            (" or more", found + 1)
        } else {
            ("", found - usize::from(!has_word && found > 0))
        };
        return Err(format!("{found}{more} numbers after the word, expected {columns}"));
    }
    out[start..].as_chunks_mut::<4>().0.reverse();
    Ok(())
}

/// Appends the numbers of the next row. `word` is room for its word.
fn binary_row(
    reader: &mut dyn BufRead,
    columns: usize,
    word: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> Result<(), String> {
    word.clear();
    let failed = |error: std::io::Error| error.to_string();
    reader.take(MAX_WORD as u64).read_until(b' ', word).map_err(failed)?;
    if !word.ends_with(b" ") {
        return Err("has no word".to_owned());
    }
    let before = out.len();
    let len = 4 * columns as u64;
    reader.take(len).read_to_end(out).map_err(failed)?;
    if (out.len() - before) as u64 != len {
        return Err(format!("has {} bytes of numbers, expected {len}", out.len() - before));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(line: &str, columns: usize) -> Result<Vec<f32>, String> {
        let mut out = Vec::new();
        text_row(line.as_bytes(), columns, &mut out)?;
        Ok(out.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect())
    }

    #[test]
    fn a_line_is_a_word_and_its_numbers() {
        for line in ["a 1 -2.5e-3", "a\t1\t-2.5e-3\r", ". . . 1 -2.5e-3 ", "2008 1 -2.5e-3"] {
            assert_eq!(row(line, 2), Ok(vec![1.0, -2.5e-3]), "{line:?}");
        }
        // The word of this line is a space of another kind, and that of the next is empty.
        assert_eq!(row("\u{a0} 1 2", 2), Ok(vec![1.0, 2.0]));
        assert_eq!(row(" 1 2", 2), Ok(vec![1.0, 2.0]));
        for (line, expected) in [
            ("a 1", "\"a\" before the last 1 numbers, expected a word and 2 numbers"),
            ("2008 1", "1 numbers after the word, expected 2"),
            ("a 1 2 3", "3 or more numbers after the word, expected 2"),
            ("a 1 x", "\"x\" before the last 0 numbers, expected a word and 2 numbers"),
            ("", "0 numbers after the word, expected 2"),
        ] {
            assert_eq!(row(line, 2), Err(expected.to_owned()), "{line:?}");
        }
    }

    #[test]
    fn the_start_of_a_file_says_its_layout() {
        let found = |start: &[u8]| {
            layout(start).map(|found| found.map(|found| (found.form, found.rows, found.columns)))
        };
        for (start, form, rows, columns) in [
            (&b"the 0.1 0.2\nof 0.3 0.4\n"[..], Form::Text, None, 2),
            (b"2 2\nthe 0.1 0.2\nof 0.3 0.4\n", Form::TextWithHeader, Some(2), 2),
            // Words that are numbers, such as the ids of items.
            (b"2 2 \n10 0.1 0.2\n11 0.3 0.4\n", Form::TextWithHeader, Some(2), 2),
            // One row has fewer numbers than the header says: its line is the error.
            (b"2 3\nthe 0.1 0.2\nof 0.3 0.4\n", Form::TextWithHeader, Some(2), 3),
            (b"1 1\na \x00\x00\x80\x3f\n", Form::Binary, Some(1), 1),
        ] {
            assert_eq!(found(start), Ok(Some((form, rows, columns))), "{start:?}");
        }
        for start in [&b""[..], b"hello", b"hello world\n", b"a,b\n1,2\n", b"a 1\nb 2\n"] {
            assert_eq!(found(start), Ok(None), "{start:?}");
        }
        for start in [&b"1.0 2.0\n3.0 4.0\n"[..], b"10 0.1 0.2\n11 0.3 0.4\n", b"5 3\n1 2\n"] {
            assert!(found(start).unwrap_err().contains("text of numbers only"), "{start:?}");
        }
    }
}
