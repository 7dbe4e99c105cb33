//! Rows to learn from.

use crate::{
    data::{Batch, Config, Dataset, Split, Vocabulary},
    refused, tagged, write,
};
use anyhow::Result;
use std::path::Path;

/// Rows of a split that are read.
const MOST: usize = 1 << 12;

/// The formats of text, by the first byte of the input. Columns are x, u and v.
const TEXT: [&str; 7] = [
    "format = \"criteo\"",
    "format = \"csv\"\nlabel = \"y\"\ndense = [\"x\"]\ncategorical = [\"u\", \"v\"]",
    "format = \"csv\"\nlabel = \"y\"\ndense = [\"x\"]\ndelimiter = \"\\t\"\nquote = false\n\
     missing = [\"NaN\"]\ncategorical = [{ name = \"u\", separator = \"|\" }, \"v\"]",
    "format = \"csv\"\nlabel = \"y\"\nheader = [\"y\", \"x\", \"u\", \"v\"]\npositive = 4\n\
     categorical = [{ name = \"u\", hash_rows = 7 }]\nlog1p = true\ndense = [\"x\"]",
    "format = \"criteo\"\nhash_rows = 100\nmin_count = 2",
    "format = \"csv\"\nlabel = \"y\"\ndense = [\"x\", \"price\"]\n\
     categorical = [\"shop\", \"code\", { name = \"ids\", separator = \"|\" }]",
    "format = \"csv\"\nlabel = \"y\"\ndense = []\ncategorical = [\"u\"]\nmax_rows = 3\n\
     shuffle = false",
];

/// The columns of the project's Parquet files.
const PARQUET: [&str; 2] = [
    "format = \"parquet\"\nlabel = \"y\"\ndense = [\"x\"]\ncategorical = [\"c\", \"n\"]",
    "format = \"parquet\"\nlabel = \"y\"\ndense = [\"x\", \"price\"]\n\
     categorical = [\"shop\", \"code\", \"ids\", { name = \"tags\", hash_rows = 9 }]",
];

/// Reads the bytes after the first as rows of text, and as a vocabulary.
pub fn text(bytes: &[u8]) {
    let Some((&form, rows)) = bytes.split_first() else { return };
    read(TEXT[usize::from(form) % TEXT.len()], rows);
    if let Err(error) = Vocabulary::read(&write("vocabulary.csv", rows)) {
        refused(error);
    }
}

/// Reads the bytes as rows of Parquet.
pub fn parquet(bytes: &[u8]) {
    PARQUET.into_iter().for_each(|config| read(config, bytes));
}

fn read(config: &str, rows: &[u8]) {
    let path = write("rows", rows);
    let config = format!(
        "{config}\ntrain = [\"rows\"]\ntest = [\"rows\"]\nvalid_fraction = 0.25\n\
         max_bad_fraction = 1.0\n"
    );
    let config: Config = tagged::parse(&config).expect("a config");
    let directory = path.parent().unwrap_or(Path::new(""));
    match config.open(directory, None) {
        Ok(dataset) => {
            for split in [Split::Train, Split::Valid, Split::Test] {
                if let Err(error) = pass(&*dataset, split) {
                    refused(error);
                }
            }
            let vocabulary = path.with_file_name("written.csv");
            dataset.vocabulary().write(&vocabulary).expect("a new file");
            assert_eq!(Vocabulary::read(&vocabulary).expect("as written"), *dataset.vocabulary());
        }
        Err(error) => refused(error),
    }
}

/// Reads a split, whose examples must be whole.
fn pass(dataset: &dyn Dataset, split: Split) -> Result<()> {
    let mut pass = dataset.pass(split, 1)?;
    let (mut batch, mut count) = (Batch::default(), 0);
    while count < MOST {
        pass.next(64, &mut batch)?;
        if batch.len() == 0 {
            break;
        }
        count += batch.len();
        assert_eq!(batch.dense.len(), batch.len() * dataset.dense_dim());
        assert!(batch.dense.iter().chain(&batch.labels).all(|x| x.is_finite()));
        assert!(batch.labels.iter().all(|label| (0.0..=1.0).contains(label)));
        for (feature, bags) in dataset.features().iter().zip(&batch.features) {
            let bags = bags.bags()?;
            assert_eq!(bags.len(), batch.len());
            let mut indices = bags.indices();
            assert!(indices.all(|index| index < u64::from(feature.num_embeddings)));
        }
    }
    if let Some(complaint) = pass.complaint() {
        refused(complaint);
    }
    for unknown in pass.unknown() {
        assert!((0.0..=1.0).contains(&unknown.share));
    }
    Ok(())
}
