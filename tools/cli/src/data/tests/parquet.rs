//! Parquet, against the same rows as CSV.

use super::{batches, config, open};
use crate::{
    data::{Batch, Dataset, Split},
    random::random,
};
use ::parquet::{
    basic::Compression as Codec,
    data_type::{ByteArray, ByteArrayType, DoubleType, Int32Type, Int64Type, Int96Type},
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::parser::parse_message_type,
};
use std::{fs, path::Path, sync::Arc};

/// Rows of a label, a number, a text and an integer; the second and third may be null.
type ParquetRow = (i32, Option<f64>, Option<String>, i64);

/// Writes a row group for each slice of rows.
fn write_parquet(path: &Path, groups: &[&[ParquetRow]], compression: Codec) {
    let schema = "message m { REQUIRED INT32 y; OPTIONAL INT96 unread; OPTIONAL DOUBLE x; \
                  OPTIONAL BYTE_ARRAY c (UTF8);
        REQUIRED INT64 n; REPEATED INT32 list; }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = Arc::new(WriterProperties::builder().set_compression(compression).build());
    let mut file =
        SerializedFileWriter::new(fs::File::create(path).unwrap(), schema, properties).unwrap();
    for rows in groups {
        let mut group = file.next_row_group().unwrap();
        let nulls = vec![0; rows.len()];
        let known = |is_there: fn(&ParquetRow) -> bool| {
            rows.iter().map(|row| i16::from(is_there(row))).collect::<Vec<_>>()
        };
        let labels: Vec<i32> = rows.iter().map(|row| row.0).collect();
        let xs: Vec<f64> = rows.iter().filter_map(|row| row.1).collect();
        let texts: Vec<ByteArray> =
            rows.iter().filter_map(|row| Some(row.2.as_deref()?.into())).collect();
        let integers: Vec<i64> = rows.iter().map(|row| row.3).collect();
        for at in 0.. {
            let Some(mut column) = group.next_column().unwrap() else { break };
            match at {
                0 => column.typed::<Int32Type>().write_batch(&labels, None, None),
                1 => column.typed::<Int96Type>().write_batch(&[], Some(&nulls), None),
                2 => column.typed::<DoubleType>().write_batch(
                    &xs,
                    Some(&known(|row| row.1.is_some())),
                    None,
                ),
                3 => column.typed::<ByteArrayType>().write_batch(
                    &texts,
                    Some(&known(|row| row.2.is_some())),
                    None,
                ),
                4 => column.typed::<Int64Type>().write_batch(&integers, None, None),
                _ => column.typed::<Int32Type>().write_batch(&[], Some(&nulls), Some(&nulls)),
            }
            .unwrap();
            column.close().unwrap();
        }
        group.close().unwrap();
    }
    file.close().unwrap();
}

const COLUMNS: &str = "label = \"y\"\ndense = [\"x\"]\nlog1p = true\nvalid_fraction = \
                       0.2\ncategorical = [\"n\", { name = \"c\", separator = \" \" }]\n";

#[test]
fn parquet_is_read_as_csv_is() {
    let dir = tempfile::tempdir().unwrap();
    let row = |at: u64| -> ParquetRow {
        let draw = |field: u64| random(at, field);
        let text = ["a", "b c", "\u{e9}", ""].map(str::to_owned);
        (
            (draw(0) % 2) as i32,
            (draw(1) % 4 > 0).then(|| (draw(2) % 100) as f64 / 8.0 - 2.0),
            (draw(3) % 5 > 0).then(|| text[(draw(4) % 4) as usize].clone()),
            draw(5) as i64 % 20,
        )
    };
    let rows: Vec<ParquetRow> = (0..700).map(row).collect();
    let line = |(y, x, c, n): &ParquetRow| {
        let x = x.map_or_else(String::new, |x| x.to_string());
        format!("{n},{},{x},{y}\n", c.as_deref().unwrap_or_default())
    };
    fs::write(
        dir.path().join("a.csv"),
        "n,c,x,y\n".to_owned() + &rows.iter().map(line).collect::<String>(),
    )
    .unwrap();
    let expected =
        open(dir.path(), &format!("format = \"csv\"\ntrain = [\"a.csv\"]\n{COLUMNS}")).unwrap();
    let gzip = Codec::GZIP(Default::default());
    for compression in [Codec::UNCOMPRESSED, Codec::SNAPPY, gzip, Codec::LZ4, Codec::LZ4_RAW] {
        write_parquet(&dir.path().join("a.parquet"), &[&rows[..300], &rows[300..650]], compression);
        write_parquet(&dir.path().join("b.parquet"), &[&rows[650..]], compression);
        let source =
            format!("format = \"parquet\"\ntrain = [\"a.parquet\", \"b.parquet\"]\n{COLUMNS}");
        let dataset = open(dir.path(), &source).unwrap();
        assert_eq!(dataset.vocabulary(), expected.vocabulary());
        for split in [Split::Train, Split::Valid] {
            let found = batches(&*dataset, split, 1, 64);
            assert!(found.len() > 1);
            assert_eq!(found, batches(&*expected, split, 1, 64), "{compression:?}");
        }
    }
}

#[test]
fn a_file_of_pyarrow_is_read() {
    // pyarrow 26: pages of version 2, Snappy, dictionaries, two row groups, and a column of lists
    // that the config does not name.
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let dir = tempfile::tempdir().unwrap();
    fs::write(
        dir.path().join("a.csv"),
        "n,c,x,y\n7,a,0.5,1\n8,b c,,0\n7,,3,1\n9,\u{e9},-1,1\n8,a,2.25,0\n7,,8,0\n",
    )
    .unwrap();
    let columns = "label = \"y\"\ndense = [\"x\"]\ncategorical = [\"c\", \"n\"]";
    let expected =
        open(dir.path(), &format!("format = \"csv\"\ntrain = [\"a.csv\"]\n{columns}")).unwrap();
    let found =
        open(&golden, &format!("format = \"parquet\"\ntrain = [\"pyarrow.parquet\"]\n{columns}"))
            .unwrap();
    assert_eq!(found.vocabulary(), expected.vocabulary());
    let batches = |dataset: &dyn Dataset| batches(dataset, Split::Train, 0, 10);
    assert_eq!(batches(&*found)[0].len(), 6);
    assert_eq!(batches(&*found), batches(&*expected));
}

#[test]
fn zstandard_brotli_lists_and_decimals_are_read() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let columns = |separator: &str| {
        format!(
            "label = \"y\"\ndense = [\"x\", \"price\"]\nvalid_fraction = 0.2\ncategorical = \
             [\"shop\", \"code\", {{ name = \"ids\"{separator} }}, {{ name = \"tags\"{separator}, \
             pooling = \"mean\" }}]\n"
        )
    };
    let text = columns(", separator = \"|\"");
    let text = format!("format = \"csv\"\ntrain = [\"rows.csv\"]\n{text}");
    let expected = open(&golden, &text).unwrap();
    for file in ["rows.zstd.parquet", "rows.brotli.parquet"] {
        let source = format!("format = \"parquet\"\ntrain = [{file:?}]\n{}", columns(""));
        let dataset = open(&golden, &source).unwrap();
        assert_eq!(dataset.vocabulary(), expected.vocabulary());
        let mut count = 0;
        for split in [Split::Train, Split::Valid] {
            let found = batches(&*dataset, split, 1, 64);
            count += found.iter().map(Batch::len).sum::<usize>();
            assert_eq!(found, batches(&*expected, split, 1, 64), "{file}");
        }
        assert_eq!(count, 240);
    }
    let refused = |columns: &str| {
        let source = format!("format = \"parquet\"\ntrain = [\"rows.zstd.parquet\"]\n{columns}");
        format!("{:#}", open(&golden, &source).err().unwrap())
    };
    let error = refused("label = \"y\"\ndense = [\"ids\"]\ncategorical = [\"shop\"]");
    assert!(
        error.contains("rows.zstd.parquet: column \"ids\" holds lists: expected one"),
        "{error}"
    );
    let error = refused("label = \"y\"\ncategorical = [\"price\"]");
    assert!(error.contains("row 1: \"price\" is 45.74: expected text or a whole"), "{error}");
}

#[test]
fn parquet_that_is_only_scored_needs_no_label() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let source = |label: &str| {
        config(&format!(
            "format = \"parquet\"\ntrain = [\"rows.zstd.parquet\"]\nlabel = {label:?}\ncategorical \
             = [\"shop\"]\nshuffle = false\n"
        ))
    };
    let trained = source("y").open(&golden, None).unwrap();
    let file = vec![golden.join("rows.brotli.parquet")];
    let rows = source("click").open_files(file, trained.vocabulary().clone()).unwrap();
    let (found, expected) =
        (batches(&*rows, Split::Test, 0, 500), batches(&*trained, Split::Train, 0, 500));
    assert_eq!(found[0].features, expected[0].features);
    assert!(found[0].labels.len() == 240 && found[0].labels.iter().all(|label| label.is_nan()));
    let error = format!("{:#}", source("click").open(&golden, None).err().unwrap());
    assert!(error.contains("has no column \"click\""), "{error}");
}

#[test]
fn whole_floats_and_nan_can_be_categories() {
    let dir = tempfile::tempdir().unwrap();
    let xs = [Some(5.0), None, Some(f64::NAN), Some(-7.0), Some(5.0)];
    let rows: Vec<ParquetRow> = xs.into_iter().map(|x| (4, x, None, 1)).collect();
    write_parquet(&dir.path().join("a.parquet"), &[&rows], Codec::SNAPPY);
    let source = "format = \"parquet\"\ntrain = [\"a.parquet\"]\nlabel = \"y\"\npositive = \
                  4\ncategorical = [\"x\"]\nshuffle = false\n";
    let dataset = open(dir.path(), source).unwrap();
    let batch = &batches(&*dataset, Split::Train, 0, 10)[0];
    // "", "5" and "-7" in the order of counts, then of bytes.
    assert_eq!(batch.features[0].indices, [1, 0, 0, 2, 1]);
    assert_eq!(batch.labels, [1.0; 5]);
}

#[test]
fn parquet_that_cannot_be_read_is_an_error_that_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    let rows: Vec<ParquetRow> = (0..40)
        .map(|at| (1 + i32::from(at == 7), Some(1.5), Some("a".to_owned()), at))
        .collect();
    write_parquet(&path, &[&rows], Codec::SNAPPY);
    let config =
        |columns: &str| format!("format = \"parquet\"\ntrain = [\"a.parquet\"]\n{columns}");
    let refused = |text: &str, wanted: &[&str]| {
        let error =
            format!("{:#}", open(dir.path(), text).err().unwrap_or_else(|| panic!("{text}")));
        wanted
            .iter()
            .for_each(|wanted| assert!(error.contains(wanted), "{error}: no {wanted:?}"));
    };
    refused(
        &config(COLUMNS),
        &["skipped 1 of 40 rows", "a.parquet: row 8: \"y\" is 2: expected a label, 0 to 1"],
    );
    let ok = config(COLUMNS) + "max_bad_fraction = 0.1\n";
    assert!(open(dir.path(), &ok).is_ok());
    refused(
        &ok.replace("\"n\"", "\"m\""),
        &["a.parquet: has no column \"m\"; its columns are [\"y\", \"unread\", \"x\""],
    );
    refused(&ok.replace("dense = [\"x\"]", "dense = [\"list\"]"), &["column \"list\" holds lists"]);
    refused(
        &ok.replace("[\"n\", ", "[\"x\", "),
        &["\"x\" is 1.5: expected text or a whole number"],
    );
    for option in ["delimiter = \";\"", "quote = false", "header = [\"y\"]"] {
        refused(&format!("{ok}{option}\n"), &["applies to text only"]);
    }

    // Damaged files give an error or rows, never a panic.
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 9]).unwrap();
    refused(&ok, &["a.parquet: not a Parquet file, or a damaged one"]);
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/rows.zstd.parquet");
    let lists = config("label = \"y\"\ndense = [\"x\"]\ncategorical = [\"ids\", \"tags\"]");
    for (whole, config) in [(whole, ok), (fs::read(golden).unwrap(), lists)] {
        for at in (0..whole.len()).step_by(1 + whole.len() / 500) {
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << (at % 8);
            fs::write(&path, &damaged).unwrap();
            let _ = open(dir.path(), &config);
        }
    }
}
