//! Word vectors in the forms of word2vec, GloVe and fastText.

use crate::checkpoint::{file, floats, open};
use flate2::{Compression, write::GzEncoder};
use std::{fmt::Write as _, fs, io::Write as _, path::Path};
use ttrec_convert::Checkpoint;

/// More rows than columns, of numbers that f32 has exactly, so that text has them too.
const ROWS: usize = 40;
const COLUMNS: usize = 3;

fn value(row: usize, column: usize) -> f32 {
    (row as f32 - 7.0) / 8.0 + column as f32
}

/// The rows in text, each ended by `end`.
fn text(header: bool, end: &str) -> String {
    let mut text = String::new();
    if header {
        write!(text, "{ROWS} {COLUMNS}{end}").unwrap();
    }
    for row in 0..ROWS {
        write!(text, "word{row}").unwrap();
        (0..COLUMNS).for_each(|column| write!(text, " {}", value(row, column)).unwrap());
        text += end;
    }
    text
}

fn binary(end: &str) -> Vec<u8> {
    let mut bytes = format!("{ROWS} {COLUMNS}\n").into_bytes();
    for row in 0..ROWS {
        bytes.extend(format!("word{row} ").bytes());
        bytes.extend((0..COLUMNS).flat_map(|column| value(row, column).to_le_bytes()));
        bytes.extend(end.bytes());
    }
    bytes
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

/// All values of the file's only tensor.
fn read(path: &Path) -> Result<Vec<f32>, String> {
    let checkpoint = Checkpoint::open(path).map_err(|error| error.to_string())?;
    let tensor = checkpoint.tensors().next().unwrap();
    let mut values = vec![0.0; tensor.len() as usize];
    tensor.read_f32(0, &mut values).map_err(|error| error.to_string())?;
    Ok(values)
}

#[test]
fn every_form_has_the_rows_in_the_order_of_the_file() {
    let expected: Vec<f32> = (0..ROWS)
        .flat_map(|row| (0..COLUMNS).map(move |column| value(row, column)))
        .collect();
    let directory = tempfile::tempdir().unwrap();
    for (name, tensor, bytes) in [
        ("glove.6B.3d.txt", "glove.6B.3d", text(false, "\n").into_bytes()),
        // word2vec writes a space before the end of a line.
        ("word2vec.txt", "word2vec", text(true, " \n").into_bytes()),
        ("windows.vec", "windows", text(true, "\r\n").into_bytes()),
        ("no_last_line_feed.txt", "no_last_line_feed", text(false, "\n").trim().into()),
        ("cc.en.vec.gz", "cc.en", gzip(text(true, "\n").as_bytes())),
        ("glove.txt.gz", "glove", gzip(text(false, "\n").as_bytes())),
        ("word2vec.bin", "word2vec", binary("\n")),
        ("google.bin.gz", "google", gzip(&binary(""))),
    ] {
        let path = directory.path().join(name);
        fs::write(&path, bytes).unwrap();
        let checkpoint = open(&path);
        let found = checkpoint.tensor(tensor).unwrap_or_else(|| panic!("{name}: no {tensor:?}"));
        assert_eq!(found.shape(), [ROWS as u64, COLUMNS as u64], "{name}");
        assert_eq!(floats(found), expected, "{name}");
    }
}

#[test]
fn what_is_wrong_is_refused_with_its_line() {
    let with = |line: usize, replaced: &str, header| {
        let text = text(header, "\n");
        let mut lines: Vec<&str> = text.lines().collect();
        lines[line - 1] = replaced;
        lines.join("\n")
    };
    for (text, expected) in [
        (with(5, "a 1 2", true), "line 5: \"a\" before the last 2 numbers, expected a word and 3"),
        (with(5, "a 1 2 3 4", true), "line 5: 4 or more numbers after the word, expected 3"),
        (with(5, "a 1 2,5 3", false), "line 5: \"2,5\" before the last 1 numbers"),
        (with(5, "", false), "line 5: 0 numbers after the word, expected 3"),
        (with(1, "41 3", true), "the first line says 41 rows, but the file ends after 40"),
        (with(1, "39 3", true), "the first line says 39 rows, but more follow"),
        (with(1, "99999999999 3", true), "which is more than the file has"),
        (with(1, "18446744073709551615 3", true), "which is more than the file has"),
        ("1 2\n3 4\n".to_owned(), "text of numbers only"),
    ] {
        let file = file(text.as_bytes());
        let error = read(file.path()).unwrap_err();
        assert!(error.contains(expected), "{error}");
        let file = self::file(&gzip(text.as_bytes()));
        let error = read(file.path()).unwrap_err();
        assert!(error.contains(expected) || error.contains("cut short"), "{error}");
    }
    let bytes = binary("\n");
    for (bytes, expected) in [
        (&bytes[..bytes.len() - 3], "row 39 of 40 has 10 bytes of numbers, expected 12"),
        (&bytes[..bytes.len() - 20], "row 39 of 40 has no word"),
        (&[&bytes[..], b"more"].concat(), "the first line says 40 rows, but more follow"),
    ] {
        let file = file(bytes);
        let error = read(file.path()).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn compressed_text_has_a_limit() {
    // 70 MB in 600 KB, with and without a number of rows.
    let row = format!("a{}\n", " 0".repeat(100));
    let rows = row.repeat(70_000_000 / row.len());
    for header in ["", "340000 100\n"] {
        let bomb = gzip(format!("{header}{rows}").as_bytes());
        assert!(bomb.len() < 600_000, "{}", bomb.len());
        let error = read(file(&bomb).path()).unwrap_err();
        assert!(error.contains("expands to more") || error.contains("more than the"), "{error}");
    }
}
