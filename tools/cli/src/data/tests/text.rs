//! Text in many forms, against the same rows in another one.

use super::{batches, config, open};
use crate::data::{Batch, Split, Vocabulary};
use flate2::{Compression, write::GzEncoder};
use std::{fs, io::Write, path::Path};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

/// All training rows of files, in their order.
fn rows(directory: &Path, source: &str) -> Result<Batch, String> {
    let source = format!("format = \"csv\"\nshuffle = false\nlabel = \"y\"\n{source}");
    let dataset = open(directory, &source).map_err(|error| format!("{error:#}"))?;
    Ok(batches(&*dataset, Split::Train, 0, 10_000).remove(0))
}

#[test]
fn compressed_text_is_read_and_damage_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let source = |name: &str| {
        format!("train = [{name:?}]\ndense = [\"x\"]\ncategorical = [\"shop\", \"tags\"]")
    };
    let expected = rows(Path::new(GOLDEN), &source("rows.csv")).unwrap();
    assert_eq!(expected.len(), 240);
    for (name, format) in
        [("rows.csv.bz2", "bzip2"), ("rows.csv.xz", "xz"), ("rows.csv.zst", "Zstandard")]
    {
        // The name says nothing.
        let whole = fs::read(Path::new(GOLDEN).join(name)).unwrap();
        fs::write(dir.path().join("a"), &whole).unwrap();
        assert_eq!(rows(dir.path(), &source("a")).unwrap(), expected, "{name}");

        for len in [12, whole.len() / 3, whole.len() - 2] {
            fs::write(dir.path().join("a"), &whole[..len]).unwrap();
            let error = rows(dir.path(), &source("a")).unwrap_err();
            let wanted = format!(": its {format} data end too early");
            assert!(error.ends_with(&wanted), "{name}, {len}: {error}");
        }
        // Checksums find every change of the text.
        for at in (20..whole.len()).step_by(41) {
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << (at % 8);
            fs::write(dir.path().join("a"), damaged).unwrap();
            if let Ok(found) = rows(dir.path(), &source("a")) {
                assert_eq!(found, expected, "{name}, byte {at}");
            }
        }
    }
    // 20 MiB without the end of a line.
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(b"y,x,shop,tags\n1,2,3,\"").unwrap();
    gzip.write_all(&vec![b'a'; 20 << 20]).unwrap();
    fs::write(dir.path().join("a"), gzip.finish().unwrap()).unwrap();
    let error = rows(dir.path(), &source("a")).unwrap_err();
    assert!(error.contains("a: line 2: the row has more than 16 MiB"), "{error}");
    for (start, wanted) in [
        (&b"PK\x03\x04zip"[..], "is a zip archive: extract its files"),
        (b"PAR1....", "is a Parquet file: set `format = \"parquet\"`"),
        (b"\x04\x22\x4d\x18....", "is compressed with LZ4: decompress it"),
    ] {
        fs::write(dir.path().join("a"), start).unwrap();
        let error = rows(dir.path(), &source("a")).unwrap_err();
        assert!(error.contains(wanted), "{error}");
    }
}

#[test]
fn a_delimiter_may_have_two_characters() {
    let dir = tempfile::tempdir().unwrap();
    let read = |text: &str, options: &str| {
        fs::write(dir.path().join("a"), text).unwrap();
        let columns = "train = [\"a\"]\ndense = [\"x\"]\ncategorical = [\"a\"]\n";
        rows(dir.path(), &format!("{columns}{options}"))
    };
    // A single colon, a quote, and a colon at the end are text.
    let text = "a::x::y\nb:c::1::1\nb::2::0\n\"b::3::0\nb::4::1\n:c::5::1\nb:::6::1";
    let error = read(text, "delimiter = \"::\"").unwrap_err();
    assert!(error.contains("line 7: field 2 is \":6\": expected a number"), "{error}");
    let batch = read(&text.replace(":::", "::"), "delimiter = \"::\"").unwrap();
    assert_eq!(batch.dense, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    assert_eq!(batch.labels, [1.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
    // "b" three times, then "\"b", ":c" and "b:c".
    assert_eq!(batch.features[0].indices, [3, 0, 1, 0, 2, 0]);
    // Across the ends of buffers.
    let line = |at: usize| format!("{}::{at}::1\n", ":b".repeat(at % 97));
    let text: String = (0..3000).map(line).collect();
    let batch = read(&format!("a::x::y\n{text}"), "delimiter = \"::\"").unwrap();
    assert!(batch.dense.iter().copied().eq((0..3000).map(|at| at as f32)));
    let number = |at: usize| batch.features[0].indices[at];
    assert!((97..3000).all(|at| number(at) == number(at - 97)));

    let batch = read("b||1||1\n", "delimiter = \"||\"\nheader = [\"a\", \"x\", \"y\"]").unwrap();
    assert_eq!((batch.dense, batch.labels), (vec![1.0], vec![1.0]));
    for (text, options, wanted) in [
        ("", "delimiter = \":::\"", "`delimiter` is \":::\": expected one or two ASCII characters"),
        ("", "delimiter = \"\u{e9}\"", "expected one or two ASCII characters"),
        ("", "delimiter = \"::\"\nquote = true", "`delimiter` has two characters: expected one"),
        ("a::x::y\n\x1f::1::1\n", "delimiter = \"::\"", "a byte of the text is 0x1f"),
    ] {
        let error = read(text, options).unwrap_err();
        assert!(error.contains(wanted), "{error}");
    }
}

#[test]
fn paths_may_be_patterns_and_directories() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, x: u32| {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("y,x,a\n1,{x},b\n")).unwrap();
    };
    for (name, x) in [
        ("d/part-2.csv", 2),
        ("d/part-1.csv", 1),
        ("d/part-3.csv", 3),
        ("d/.part-1.csv.crc", 90),
        ("d/_SUCCESS", 91),
        ("days/day=2/b.csv", 5),
        ("days/day=1/b.csv", 4),
        ("days/day=1/a.csv", 6),
        ("e[1].csv", 7),
    ] {
        write(name, x);
    }
    let read = |train: &str| {
        let source = format!("train = {train}\ndense = [\"x\"]\ncategorical = [\"a\"]");
        rows(dir.path(), &source).map(|batch| batch.dense)
    };
    for (train, expected) in [
        ("[\"d\"]", &[1.0, 2.0, 3.0][..]),
        ("[\"d/\"]", &[1.0, 2.0, 3.0]),
        ("[\"d/part-*.csv\"]", &[1.0, 2.0, 3.0]),
        ("[\"d/part-[13].csv\", \"days/day=2/b.csv\"]", &[1.0, 3.0, 5.0]),
        ("[\"days/*/*.csv\"]", &[6.0, 4.0, 5.0]),
        ("[\"days/*\"]", &[6.0, 4.0, 5.0]),
        ("[\"**/b.csv\"]", &[4.0, 5.0]),
        ("[\"e[1].csv\"]", &[7.0]),
    ] {
        assert_eq!(read(train).unwrap(), expected, "{train}");
    }
    let all = format!("[{:?}]", dir.path().join("d/*.csv").to_str().unwrap());
    assert_eq!(read(&all).unwrap(), [1.0, 2.0, 3.0]);
    fs::create_dir(dir.path().join("none")).unwrap();
    for (train, wanted) in [
        ("[\"d/part-9*.csv\"]", "d/part-9*.csv: the pattern matches no file"),
        ("[\"none\"]", "none: the directory has no files"),
        ("[\"days\"]", "has the directory \"day="),
        ("[\"d/[.csv\"]", "is no file, and no pattern either"),
        ("[\"d/part-4.csv\"]", "part-4.csv: cannot open"),
    ] {
        let error = read(train).unwrap_err();
        assert!(error.contains(wanted), "{error}");
    }
    // The directory's own name is no pattern.
    let odd = dir.path().join("o[d]d");
    fs::create_dir(&odd).unwrap();
    fs::write(odd.join("a.csv"), "y,x,a\n1,8,b\n").unwrap();
    let source = "train = [\"*.csv\"]\ndense = [\"x\"]\ncategorical = [\"a\"]";
    assert_eq!(rows(&odd, source).unwrap().dense, [8.0]);
}

#[test]
fn rows_that_are_only_scored_need_no_label() {
    let dir = tempfile::tempdir().unwrap();
    let source = "format = \"csv\"\ntrain = [\"a.csv\"]\nlabel = \"y\"\ndense = \
                  [\"x\"]\ncategorical = [\"a\"]\n";
    fs::write(dir.path().join("a.csv"), "x,y,a\n1,1,b\n2,0,c\n2,1,c\n").unwrap();
    let dataset = open(dir.path(), source).unwrap();
    let path = dir.path().join("vocabulary.csv");
    dataset.vocabulary().write(&path).unwrap();
    let read = |text: &str, options: &str| -> Result<Batch, String> {
        let file = dir.path().join("b");
        fs::write(&file, text).unwrap();
        let config = config(&format!("{source}{options}"));
        let dataset = config.open_files(vec![file], Vocabulary::read(&path).unwrap()).unwrap();
        let mut pass = dataset.pass(Split::Test, 0).unwrap();
        let mut batch = Batch::default();
        match pass.next(100, &mut batch) {
            Ok(()) => pass.complaint().map_or(Ok(batch), Err),
            Err(error) => Err(format!("{error:#}")),
        }
    };
    let header = "header = [\"x\", \"y\", \"a\"]";
    for (text, options, labels) in [
        ("a,x\nb,1\nc,2\nd,\n", "", None),
        ("b,2,a,x\n7,9,b,1\n7,9,c,2\n7,9,d,0\n", "", None),
        ("y,a,x\n1,b,1\n0,c,2\n1,d,0\n", "", Some([1.0, 0.0, 1.0])),
        ("y,a,x\n,b,1\n,c,2\n,d,0\n", "", None),
        ("1,b\n2,c\n0,d\n", header, None),
        ("1,1,b\n2,1,c\n0,0,d\n", header, Some([1.0, 1.0, 0.0])),
    ] {
        let batch = read(text, options).unwrap();
        assert_eq!(batch.dense, [1.0, 2.0, 0.0]);
        // c is more frequent than b, and d is unknown.
        assert_eq!(batch.features[0].indices, [1, 0, 2]);
        match labels {
            Some(labels) => assert_eq!(batch.labels, labels),
            None => assert!(batch.labels.iter().all(|label| label.is_nan()), "{text:?}"),
        }
        let samples = dir.path().join("samples.npz");
        batch.write(&samples, &[0.5; 3]).unwrap();
        let file = ttrec_convert::Checkpoint::open(&samples).unwrap();
        assert_eq!(file.find("label").unwrap().is_some(), labels.is_some());
    }
    for (text, options, wanted) in [
        ("y,a\n1,b\n", "", "has no column \"x\""),
        ("1\n", header, "line 1: 1 fields, expected 3"),
        ("1,b\n1,1,b\n", header, "line 2: 3 fields, expected 2"),
    ] {
        let error = read(text, options).unwrap_err();
        assert!(error.contains(wanted), "{error}");
    }
    // Rows to learn from need one.
    fs::write(dir.path().join("a.csv"), "x,a\n1,b\n").unwrap();
    let error = open(dir.path(), source).err().unwrap().to_string();
    assert!(error.contains("has no column \"y\""), "{error}");
}
