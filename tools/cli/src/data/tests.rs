//! Datasets against the files that the tests write.

use super::{Batch, Config, Dataset, Feature, Split, Vocabulary, vocabulary::Categories};
use crate::random::random;
use flate2::{Compression, write::GzEncoder};
use std::{collections::BTreeSet, fs, io::Write, path::Path};
use ttrec::Pooling;
use ttrec_convert::{Checkpoint, Frequencies};

#[cfg(feature = "parquet")]
mod parquet;
mod text;

fn config(text: &str) -> Config {
    crate::tagged::parse(text).unwrap()
}

fn open(directory: &Path, text: &str) -> anyhow::Result<Box<dyn Dataset + Sync>> {
    config(text).open(directory, None)
}

/// All examples of a pass, in batches of `count`.
fn batches(dataset: &dyn Dataset, split: Split, seed: u64, count: usize) -> Vec<Batch> {
    let mut pass = dataset.pass(split, seed).unwrap();
    let (mut batches, mut batch) = (Vec::new(), Batch::default());
    loop {
        pass.next(count, &mut batch).unwrap();
        if batch.len() == 0 {
            return batches;
        }
        batches.push(batch.clone());
    }
}

/// The fields of lines in Criteo's format.
fn criteo_lines(count: u64) -> Vec<Vec<String>> {
    let line = |at: u64| {
        let draw = |field: u64| random(at, field);
        let label = (draw(0) % 2).to_string();
        let integer = |field: u64| match draw(field) % 5 {
            0 => String::new(),
            value => (draw(field + 50) as i64 % 1000 - i64::from(value == 1)).to_string(),
        };
        let category = |field: u64| match draw(field) % 7 {
            0 => String::new(),
            value => format!("{:08x}", value * value * 77_777_777 + field),
        };
        [label]
            .into_iter()
            .chain((1..=13).map(integer))
            .chain((14..40).map(category))
            .collect()
    };
    (0..count).map(line).collect()
}

fn write_gzip(path: &Path, text: &str) {
    let mut gzip = GzEncoder::new(fs::File::create(path).unwrap(), Compression::fast());
    gzip.write_all(text.as_bytes()).unwrap();
    gzip.finish().unwrap();
}

#[test]
fn criteo_plain_and_compressed_and_as_csv_are_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let lines = criteo_lines(300);
    let text =
        |delimiter: &str| lines.iter().map(|line| line.join(delimiter) + "\n").collect::<String>();
    fs::write(dir.path().join("plain.tsv"), text("\t")).unwrap();
    write_gzip(&dir.path().join("log.gz"), &text("\t"));
    let names: Vec<String> = ["label".to_owned()]
        .into_iter()
        .chain((1..=13).map(|i| format!("I{i}")))
        .chain((1..=26).map(|i| format!("C{i}")))
        .collect();
    fs::write(dir.path().join("log.csv"), names.join(",") + "\n" + &text(",")).unwrap();
    let quoted = |names: &[String]| format!("{names:?}");
    let sources = [
        "format = \"criteo\"\ntrain = [\"plain.tsv\"]".to_owned(),
        "format = \"criteo\"\ntrain = [\"log.gz\"]".to_owned(),
        format!(
            "format = \"csv\"\ntrain = [\"log.csv\"]\nlabel = \"label\"\ndense = {}\ncategorical \
             = {}\nlog1p = true",
            quoted(&names[1..14]),
            quoted(&names[14..])
        ),
    ];
    let datasets = sources.map(|source| open(dir.path(), &(source + "\nshuffle = false")).unwrap());
    let expected = batches(&*datasets[0], Split::Train, 0, 32);
    assert_eq!(expected.iter().map(Batch::len).sum::<usize>(), 300);
    for dataset in &datasets[1..] {
        assert_eq!(dataset.vocabulary(), datasets[0].vocabulary());
        assert_eq!(batches(&**dataset, Split::Train, 0, 32), expected);
    }

    // Compare with the fields.
    for (at, line) in lines.iter().enumerate() {
        let (batch, row) = (&expected[at / 32], at % 32);
        assert_eq!(batch.labels[row], line[0].parse::<f32>().unwrap());
        for (field, &found) in line[1..14].iter().zip(&batch.dense[row * 13..]) {
            let value = field.parse::<f32>().unwrap_or(0.0).max(0.0);
            assert!(
                (f64::from(found) - f64::from(value).ln_1p()).abs() < 1e-6,
                "{field:?}: {found}"
            );
        }
        for (column, bags) in batch.features.iter().enumerate() {
            let index = bags.indices[row];
            // A value's number is the count of values that are more frequent, or as frequent and
            // smaller.
            let values: Vec<&String> = lines.iter().map(|line| &line[14 + column]).collect();
            let count = |value: &String| values.iter().filter(|other| **other == value).count();
            let own = &line[14 + column];
            let mut distinct = values.clone();
            distinct.sort_unstable();
            distinct.dedup();
            let before =
                distinct.iter().filter(|other| (count(own), **other) < (count(other), own));
            assert_eq!(index as usize, before.count(), "line {at}, column {column}");
        }
    }
}

#[test]
fn rare_and_unknown_values_are_others() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("train.csv"), "y,c\n1,b\n0,a\n1,b\n0,c\n1,a\n0,\"d\"\"\n,\"\n1,b\n")
        .unwrap();
    fs::write(dir.path().join("test.csv"), "y,c\n1,zzz\n0,b\n1,c\n").unwrap();
    let source = "format = \"csv\"\ntrain = [\"train.csv\"]\ntest = [\"test.csv\"]\nlabel = \
                  \"y\"\ncategorical = [\"c\"]\nshuffle = false\n";
    let indices = |source: &str, split: Split| {
        let dataset = open(dir.path(), source).unwrap();
        let batch = &batches(&*dataset, split, 0, 100)[0];
        (dataset.features()[0].num_embeddings, batch.features[0].indices.clone())
    };
    // b, a, c and d are in the order of counts, then of bytes.
    assert_eq!(indices(source, Split::Train), (5, vec![0, 1, 0, 2, 1, 3, 0]));
    assert_eq!(indices(source, Split::Test), (5, vec![4, 0, 2]));
    assert_eq!(indices(&format!("{source}min_count = 2"), Split::Test), (3, vec![2, 0, 2]));
    assert_eq!(
        indices(&format!("{source}max_rows = 2"), Split::Train),
        (2, vec![0, 1, 0, 1, 1, 1, 0])
    );
    assert_eq!(indices(&format!("{source}max_rows = 1"), Split::Train), (1, vec![0; 7]));

    // The vocabulary is the same once written and read, and so are the frequencies.
    let dataset = open(dir.path(), &format!("{source}min_count = 2")).unwrap();
    let (vocabulary, counts) = (dir.path().join("vocabulary.csv"), dir.path().join("counts.npz"));
    dataset.vocabulary().write(&vocabulary).unwrap();
    let again = Vocabulary::read(&vocabulary).unwrap();
    assert_eq!(again, *dataset.vocabulary());
    let again = config(source).open(dir.path(), Some(again)).unwrap();
    assert_eq!(batches(&*again, Split::Test, 0, 2), batches(&*dataset, Split::Test, 0, 2));
    dataset.vocabulary().write_frequencies(&counts).unwrap();
    Checkpoint::open(&counts).unwrap();
    let frequencies = Frequencies::open(&counts, ["c"]).unwrap();
    assert_eq!(frequencies.rows("c", 3).unwrap().unwrap(), [(0, 3.0), (1, 2.0), (2, 2.0)]);
}

#[test]
fn bags_are_split_hashed_and_pooled() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.csv"), "y;x;tags;site\n1;2.5;a b;s\n0;;;t\n0.5;-3;b  b;s\n")
        .unwrap();
    let source = "format = \"csv\"\ntrain = [\"a.csv\"]\nlabel = \"y\"\ndense = \
                  [\"x\"]\ndelimiter = \";\"\ncategorical = [{ name = \"tags\", separator = \" \", \
                     pooling = \"mean\" }, { name = \"site\", hash_rows = 3 }]\nshuffle = false\n";
    let dataset = open(dir.path(), source).unwrap();
    let batch = &batches(&*dataset, Split::Train, 0, 10)[0];
    assert_eq!(
        (&batch.dense[..], &batch.labels[..]),
        (&[2.5, 0.0, -3.0][..], &[1.0, 0.0, 0.5][..])
    );
    assert_eq!(batch.features[0].indices, [1, 0, 0, 0]);
    assert_eq!(batch.features[0].offsets, [0, 2, 2, 4]);
    // FNV-1a of "s" is 0xaf63ee4c86020b22, of "t" 0xaf63e94c860202a3.
    let site = [0xaf63_ee4c_8602_0b22_u64 % 3, 0xaf63_e94c_8602_02a3 % 3].map(|hash| hash as u32);
    assert_eq!(batch.features[1].indices, [site[0], site[1], site[0]]);
    let pooling: Vec<Pooling> = dataset.features().iter().map(|feature| feature.pooling).collect();
    assert_eq!(pooling, [Pooling::Mean, Pooling::Sum]);
    let (vocabulary, counts) = (dir.path().join("vocabulary.csv"), dir.path().join("counts.npz"));
    dataset.vocabulary().write(&vocabulary).unwrap();
    assert_eq!(Vocabulary::read(&vocabulary).unwrap(), *dataset.vocabulary());
    // A hashed feature has the numbers that occur.
    assert_eq!(dataset.vocabulary().features()[1].len(), 3);
    dataset.vocabulary().write_frequencies(&counts).unwrap();
    let frequencies = Frequencies::open(&counts, ["tags", "site"]).unwrap();
    let mut expected = [(u64::from(site[0]), 2.0), (u64::from(site[1]), 1.0)];
    expected.sort_by_key(|(number, _)| *number);
    assert_eq!(frequencies.rows("site", 3).unwrap().unwrap(), expected);
    let written = fs::read_to_string(&vocabulary).unwrap();
    for bad in ["site,3,,1", "site,x,,1", &format!("site,{},,1", site[0]), "site,rows,4,1"] {
        fs::write(&vocabulary, format!("{written}{bad}\n")).unwrap();
        Vocabulary::read(&vocabulary).unwrap_err();
    }
}

#[test]
fn columns_of_one_table_number_their_categories_alike() {
    let dir = tempfile::tempdir().unwrap();
    let text = "y,history,user,item\n1,b|c|b,u,a\n0,,u,b\n1,a|x,v,c\n0,a,v,b\n";
    fs::write(dir.path().join("a.csv"), text).unwrap();
    let history = "name = \"history\", separator = \"|\", pooling = \"mean\", table = \"item\"";
    let item = "name = \"item\", pooling = \"mean\", min_count = 2";
    let source = |history: &str, item: &str| {
        format!(
            "format = \"csv\"\ntrain = [\"a.csv\"]\nlabel = \"y\"\nshuffle = false\n\
             categorical = [{{ {history} }}, \"user\", {{ {item} }}]\n"
        )
    };
    let dataset = open(dir.path(), &source(history, item)).unwrap();
    let tables: Vec<_> = dataset
        .features()
        .iter()
        .map(|feature| (feature.table, feature.name.as_str()))
        .collect();
    assert_eq!(tables, [(0, "item"), (1, "user"), (0, "item")]);
    // b occurs four times, a three times, c twice, and x is rare.
    let vocabulary = dataset.vocabulary();
    let names: Vec<_> = vocabulary.features().iter().map(Categories::name).collect();
    assert_eq!(names, ["item", "user"]);
    assert_eq!(vocabulary.features()[0].counts_of_values(), [4, 3, 2]);
    let batch = &batches(&*dataset, Split::Train, 0, 10)[0];
    assert_eq!(batch.features[0].indices, [0, 2, 0, 1, 3, 1]);
    assert_eq!(batch.features[0].offsets, [0, 3, 3, 5, 6]);
    assert_eq!(batch.features[2].indices, [1, 0, 2, 0]);
    assert_eq!(dataset.num_examples(Split::Train), Some(4));
    // Unknown values are those of a column, not of its table.
    fs::write(dir.path().join("b.csv"), "y,history,user,item\n1,b|z,u,q\n0,a,w,q\n").unwrap();
    let test = dir.path().join("b.csv");
    let kept = config(&source(history, item))
        .open_files(vec![test], vocabulary.clone())
        .unwrap();
    let mut pass = kept.pass(Split::Test, 0).unwrap();
    pass.next(10, &mut Batch::default()).unwrap();
    let unknown: Vec<_> = pass.unknown().into_iter().map(|of| (of.column, of.share)).collect();
    let expected = [("history", 1.0 / 3.0), ("user", 0.5), ("item", 1.0)];
    assert_eq!(unknown, expected.map(|(column, share)| (column.to_owned(), share)));
    drop(pass);
    // Similar categories are neighbours, in one order for both columns.
    let ordered = format!("{}order = \"co-occurrence\"\n", source(history, item));
    assert_eq!(open(dir.path(), &ordered).unwrap().vocabulary().features().len(), 2);
    // With hashes, too.
    let hashed = open(dir.path(), &source(history, &item.replace("min_count", "hash_rows")));
    assert!(
        hashed
            .unwrap()
            .features()
            .iter()
            .all(|of| of.num_embeddings == 2 || of.table == 1)
    );

    let error = |history: &str| open(dir.path(), &source(history, item)).err().unwrap().to_string();
    for (history, wanted) in [
        (history.replace("\"item\"", "\"price\""), "is \"price\": expected a column"),
        (history.replace("mean", "sum"), "share a table: set the same `pooling`"),
        (format!("{history}, max_rows = 7"), "which numbers its categories: remove"),
    ] {
        let error = error(&history);
        assert!(error.contains(wanted), "{error}");
    }
    // A column whose table is another one's has none to share.
    let item = format!("{item}, table = \"history\"").replace(", min_count = 2", "");
    let error = open(dir.path(), &source(history, &item)).err().unwrap().to_string();
    assert!(error.contains("one of [\"user\"]"), "{error}");
}

#[test]
fn bad_lines_are_left_out_and_named_and_too_many_are_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let mut lines = vec!["1,2,a"; 2000];
    let bad = [
        (10, "2,2,a"),
        (20, "1,x,a"),
        (30, "1,2"),
        (40, "1,2,a,b"),
        (50, "nan,2,a"),
        (60, "1,inf,a"),
        (70, ",1,a"),
    ];
    for (at, line) in bad {
        lines[at] = line;
    }
    fs::write(dir.path().join("a.csv"), format!("y,x,c\n{}\n", lines.join("\n"))).unwrap();
    let source = "format = \"csv\"\ntrain = [\"a.csv\"]\nlabel = \"y\"\ndense = \
                  [\"x\"]\ncategorical = [\"c\"]\n";
    let error = open(dir.path(), source).err().unwrap().to_string();
    // The header is line 1.
    for part in [
        "skipped 7 of 2000 rows",
        "a.csv: line 12: field 1 is \"2\": expected a label",
        "line 22: field 2 is \"x\"",
        "line 32: 2 fields, expected 3",
        "and others",
        "at most 0.1 %",
    ] {
        assert!(error.contains(part), "no {part:?} in {error}");
    }
    let dataset = open(dir.path(), &format!("{source}max_bad_fraction = 0.01")).unwrap();
    let mut pass = dataset.pass(Split::Train, 0).unwrap();
    let mut batch = Batch::default();
    pass.next(5000, &mut batch).unwrap();
    assert_eq!(batch.len(), 1993);
    assert!(pass.complaint().unwrap().contains("7 of 2000"));
}

#[test]
fn a_damaged_file_is_an_error_and_not_an_end() {
    let dir = tempfile::tempdir().unwrap();
    let text: String = criteo_lines(200).iter().map(|line| line.join("\t") + "\n").collect();
    write_gzip(&dir.path().join("whole.gz"), &text);
    let bytes = fs::read(dir.path().join("whole.gz")).unwrap();
    fs::write(dir.path().join("cut.gz"), &bytes[..bytes.len() / 2]).unwrap();
    let error =
        open(dir.path(), "format = \"criteo\"\ntrain = [\"cut.gz\"]\nmax_bad_fraction = 1.0")
            .err()
            .unwrap();
    assert!(format!("{error:#}").contains("cut.gz"), "{error:#}");
    let error = open(dir.path(), "format = \"criteo\"\ntrain = [\"none.gz\"]").err().unwrap();
    assert!(format!("{error:#}").contains("none.gz: cannot open"), "{error:#}");
}

#[test]
fn the_validation_split_is_not_in_the_training_split() {
    let dir = tempfile::tempdir().unwrap();
    let lines: String = (0..5000).map(|at| format!("1,{at}\n")).collect();
    fs::write(dir.path().join("a.csv"), format!("y,x\n{lines}")).unwrap();
    let source = "format = \"csv\"\ntrain = [\"a.csv\"]\nlabel = \"y\"\ndense = \
                  [\"x\"]\ncategorical = [\"y\"]\nvalid_fraction = 0.2";
    let dataset = open(dir.path(), source).unwrap();
    let all = |split| {
        batches(&*dataset, split, 0, 77)
            .into_iter()
            .flat_map(|batch| batch.dense)
            .collect::<Vec<f32>>()
    };
    let (train, valid) = (all(Split::Train), all(Split::Valid));
    assert!((900..1100).contains(&valid.len()), "{}", valid.len());
    let mut both = [train, valid].concat();
    both.sort_by(f32::total_cmp);
    assert!(both.into_iter().eq((0..5000).map(|at| at as f32)));
}

/// Writes an npz of u32 arrays.
fn write_npz(path: &Path, arrays: &[(&str, &[u32])]) {
    let mut file = crate::npz::Npz::new();
    for (name, values) in arrays {
        file.add(name, &[values.len() as u64], values).unwrap();
    }
    file.write(path).unwrap();
}

#[test]
fn interactions_come_once_each_beside_what_is_drawn() {
    let dir = tempfile::tempdir().unwrap();
    let users: Vec<u32> = (0..1000).map(|at| random(1, at) as u32 % 50).collect();
    let items: Vec<u32> = (0..1000).map(|at| random(2, at) as u32 % 90).collect();
    write_npz(
        &dir.path().join("a.npz"),
        &[
            ("train_user", &users),
            ("train_item", &items),
            ("test_user", &[49]),
            ("test_item", &[89]),
        ],
    );
    let source = "format = \"interactions\"\npath = \"a.npz\"\nnegatives = 3\nvalid_fraction = \
                  0.1\norder = \"given\"";
    let dataset = open(dir.path(), source).unwrap();
    let pairs = |split: Split, seed: u64, wanted: f32| -> Vec<(u32, u32)> {
        let all = batches(&*dataset, split, seed, 64);
        let pairs = all.iter().flat_map(|batch| {
            let [user, item] = [0, 1].map(|at| batch.features[at].indices.clone());
            user.into_iter().zip(item).zip(batch.labels.clone())
        });
        pairs.filter(|(_, label)| *label == wanted).map(|(pair, _)| pair).collect()
    };
    let (train, valid) = (pairs(Split::Train, 1, 1.0), pairs(Split::Valid, 1, 1.0));
    let mut both = [train.clone(), valid].concat();
    let mut expected: Vec<(u32, u32)> = users.iter().copied().zip(items.iter().copied()).collect();
    both.sort_unstable();
    expected.sort_unstable();
    assert_eq!(both, expected);
    assert_ne!(pairs(Split::Train, 2, 1.0), train, "another seed, the same order");
    assert_eq!(
        pairs(Split::Valid, 1, 0.0),
        pairs(Split::Valid, 2, 0.0),
        "the validation split is always the same"
    );

    // Three negatives of the same user follow each event; items are drawn evenly.
    let drawn = pairs(Split::Train, 1, 0.0);
    assert_eq!(drawn.len(), 3 * train.len());
    assert!(
        drawn
            .chunks(3)
            .zip(&train)
            .all(|(three, (user, _))| three.iter().all(|(other, _)| other == user))
    );
    let mut counts = [0u32; 90];
    drawn.iter().for_each(|(_, item)| counts[*item as usize] += 1);
    let expected = drawn.len() as f64 / 90.0;
    let chi_square: f64 =
        counts.iter().map(|&n| (f64::from(n) - expected).powi(2) / expected).sum();
    // With 89 degrees of freedom, chi-square exceeds 150 once in 20,000 cases.
    assert!(chi_square < 150.0, "{chi_square}");

    // A resumed pass is the rest of the whole pass.
    for done in [0, 1, 7, 64, 1000, 10_000] {
        let mut pass = dataset.pass(Split::Train, 1).unwrap();
        let (mut rest, mut whole) = (Batch::default(), Batch::default());
        pass.skip(done).unwrap();
        pass.next(50, &mut rest).unwrap();
        let mut pass = dataset.pass(Split::Train, 1).unwrap();
        pass.next(done as usize, &mut whole).unwrap();
        pass.next(50, &mut whole).unwrap();
        assert_eq!(rest, whole, "after {done}");
    }
}

#[test]
fn rows_by_frequency_are_the_same_pairs_renamed() {
    let dir = tempfile::tempdir().unwrap();
    let (users, items) = ([5, 5, 5, 2, 2, 0], [1, 1, 1, 1, 3, 3]);
    write_npz(
        &dir.path().join("a.npz"),
        &[("train_user", &users), ("train_item", &items), ("test_user", &[4]), ("test_item", &[2])],
    );
    let dataset = open(dir.path(), "format = \"interactions\"\npath = \"a.npz\"").unwrap();
    assert_eq!(
        dataset
            .features()
            .iter()
            .map(|feature| feature.num_embeddings)
            .collect::<Vec<_>>(),
        [4, 3]
    );
    // Users 5, 2, 0, then 4, which only the test split has. Items 1, 3, 2. No id between occurs.
    let test = &batches(&*dataset, Split::Test, 0, 10)[0];
    assert_eq!(test.features[0].indices, [3, 3]);
    assert_eq!(test.features[1].indices[0], 2);
    let path = dir.path().join("vocabulary.csv");
    dataset.vocabulary().write(&path).unwrap();
    let again = config("format = \"interactions\"\npath = \"a.npz\"");
    let again = again.open(dir.path(), Some(Vocabulary::read(&path).unwrap())).unwrap();
    assert_eq!(batches(&*again, Split::Train, 3, 4), batches(&*dataset, Split::Train, 3, 4));
}

#[test]
fn gaps_between_ids_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let users: Vec<u32> = (0..2000).map(|at| random(1, at) as u32 % 30).collect();
    let items: Vec<u32> = (0..2000).map(|at| random(2, at) as u32 % 40).collect();
    let write = |name: &str, factor: u32| {
        let wide = |ids: &[u32]| ids.iter().map(|id| id * factor).collect::<Vec<u32>>();
        let (users, items) = (wide(&users), wide(&items));
        write_npz(
            &dir.path().join(name),
            &[
                ("train_user", &users),
                ("train_item", &items),
                ("test_user", &users[..50]),
                ("test_item", &items[..50]),
                ("offsets", &[0, 900, 2000]),
                ("items", &items),
                ("test_offsets", &[0, 5, 9]),
                ("test_items", &items[..9]),
                ("test_target", &items[1998..]),
            ],
        );
    };
    write("dense.npz", 1);
    write("gaps.npz", 100_000_000);
    for format in ["interactions", "sessions"] {
        for order in ["frequency", "given", "co-occurrence"] {
            let source = |name: &str| {
                format!(
                    "format = {format:?}\norder = {order:?}\npath = {name:?}\nvalid_fraction = \
                     0.1\nnegatives = 4"
                )
            };
            let [dense, gaps] =
                ["dense.npz", "gaps.npz"].map(|name| open(dir.path(), &source(name)).unwrap());
            assert_eq!(
                gaps.features().iter().map(|feature| feature.num_embeddings).collect::<Vec<_>>(),
                [if format == "interactions" { 30 } else { 40 }, 40]
            );
            for split in [Split::Train, Split::Valid, Split::Test] {
                assert_eq!(batches(&*gaps, split, 7, 64), batches(&*dense, split, 7, 64));
            }

            // A trained model does not know the ids of the other file.
            let path = dir.path().join("vocabulary.csv");
            gaps.vocabulary().write(&path).unwrap();
            let kept = |name: &str| {
                config(&source(name)).open(dir.path(), Some(Vocabulary::read(&path).unwrap()))
            };
            let again = kept("gaps.npz").unwrap();
            assert_eq!(batches(&*again, Split::Train, 7, 64), batches(&*gaps, Split::Train, 7, 64));
            let error = kept("dense.npz").err().unwrap().to_string();
            assert!(error.contains("1 is not in the vocabulary of the model"), "{error}");
        }
    }
}

#[test]
fn a_random_order_is_that_of_hashed_ids() {
    let dir = tempfile::tempdir().unwrap();
    let order_of = |count: u32, format: &str| -> Vec<u32> {
        let ids: Vec<u32> = (0..count).collect();
        let names = ["train_user", "train_item", "test_user", "test_item"];
        write_npz(&dir.path().join("a.npz"), &names.map(|name| (name, &ids[..])));
        let toml = format!("format = \"interactions\"\npath = \"a.npz\"\n{format}");
        let dataset = open(dir.path(), &toml).unwrap();
        let [users, items] = dataset.vocabulary().features() else { panic!("two tables") };
        assert_eq!(users.values(), items.values());
        let ids = items
            .values()
            .iter()
            .map(|id| std::str::from_utf8(id).unwrap().parse().unwrap());
        ids.collect()
    };
    let all = order_of(1000, "order = \"random\"");
    let mut sorted = all.clone();
    sorted.sort_unstable();
    assert!(sorted.into_iter().eq(0..1000));
    // Half of the neighbours ascend, few are near each other, and other ids change nothing.
    let ascending = all.windows(2).filter(|pair| pair[0] < pair[1]).count();
    let near = all.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) < 10).count();
    assert!((400..600).contains(&ascending) && near < 50, "{ascending} {near}");
    let fewer: Vec<u32> = all.into_iter().filter(|&id| id < 500).collect();
    assert_eq!(order_of(500, "order = \"random\""), fewer);
}

#[test]
fn categories_of_the_same_examples_are_neighbours() {
    let dir = tempfile::tempdir().unwrap();
    // 8 groups of 64 users, items and tags, scattered. In 8 of 9 examples, the user, the item and
    // the tag are of one group.
    let group = |column: u64, row: u64| row * [37, 141, 59][column as usize] % 512 / 64;
    let mut text = "y,user,item,tags,hashed\n".to_owned();
    for at in 0..600_000u64 {
        let [user, item, tag] = [0, 1, 2].map(|column| random(9, 4 * at + column) % 512);
        let alike = group(0, user) == group(1, item) && group(0, user) == group(2, tag);
        if alike || random(9, 4 * at + 3).is_multiple_of(63 * 8) {
            text += &format!("{},u{user},i{item},t{tag}|t{tag},{user}\n", at % 2);
        }
    }
    text += "1,u0,i0,rare,0\n";
    fs::write(dir.path().join("a.csv"), &text).unwrap();
    let source = "format = \"csv\"\ntrain = [\"a.csv\"]\nlabel = \"y\"\nmin_count = 2\n\
                  categorical = [\"user\", \"item\", { name = \"tags\", separator = \"|\" }, \
                  { name = \"hashed\", hash_rows = 100 }]\n";
    let ordered = format!("{source}order = \"co-occurrence\"\n");
    let [by_frequency, by_order] =
        [source, &ordered].map(|source| open(dir.path(), source).unwrap());
    let features = |data: &dyn Dataset| data.vocabulary().features().to_vec();
    let pairs = features(&*by_frequency).into_iter().zip(features(&*by_order));
    for (column, (plain, found)) in pairs.enumerate() {
        if column == 3 {
            assert_eq!(plain, found);
            continue;
        }
        // The same values and counts, in another order; the last number is that of the others.
        let counted = |categories: &Categories| {
            let mut counted: Vec<_> = categories
                .values()
                .iter()
                .cloned()
                .zip(categories.counts_of_values().to_vec())
                .collect();
            counted.sort();
            counted
        };
        assert_eq!(counted(&plain), counted(&found));
        assert_eq!((plain.others(), plain.len()), (found.others(), found.len()));
        let groups: Vec<u64> = found
            .values()
            .iter()
            .map(|value| {
                let digits = std::str::from_utf8(&value[1..]).unwrap();
                group(column as u64, digits.parse().unwrap())
            })
            .collect();
        let same = groups.windows(2).filter(|pair| pair[0] == pair[1]).count();
        // By chance one neighbour in 8 is of the same group: 64.
        assert!(same > 250, "column {column}: {same}");
    }
    // A trained model keeps its order.
    let path = dir.path().join("vocabulary.csv");
    by_order.vocabulary().write(&path).unwrap();
    let again = config(source).open(dir.path(), Some(Vocabulary::read(&path).unwrap())).unwrap();
    assert_eq!(batches(&*again, Split::Train, 7, 64), batches(&*by_order, Split::Train, 7, 64));

    let error = |source: String| open(dir.path(), &source).err().unwrap().to_string();
    let given = error(format!("{source}order = \"given\"\n"));
    assert!(given.contains("`order` is \"given\", which only interactions"), "{given}");
    let one =
        ordered.replace("\"user\", \"item\", { name = \"tags\", separator = \"|\" }", "\"user\"");
    let one = error(one);
    assert!(one.contains("expected two columns without `hash_rows`"), "{one}");
}

#[test]
fn a_fraction_that_takes_no_event_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let ids = [0, 1, 2];
    let names = ["train_user", "train_item", "test_user", "test_item"];
    write_npz(&dir.path().join("a.npz"), &names.map(|name| (name, &ids[..])));
    let source = "format = \"interactions\"\npath = \"a.npz\"\nvalid_fraction = ";
    let dataset = open(dir.path(), &format!("{source}1e-9")).unwrap();
    assert!(dataset.has(Split::Valid));
    let error = dataset.pass(Split::Valid, 0).err().unwrap().to_string();
    assert!(error.contains("a.npz: the valid split is empty"), "{error}");
    assert!(!open(dir.path(), &format!("{source}0")).unwrap().has(Split::Valid));
}

#[test]
fn an_open_quote_is_an_error_that_names_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let source = "format = \"csv\"\ntrain = [\"a.csv\"]\nlabel = \"y\"\ncategorical = [\"a\", \
                  \"b\"]\nshuffle = false\n";
    let read = |text: &str, options: &str| {
        fs::write(dir.path().join("a.csv"), text).unwrap();
        open(dir.path(), &format!("{source}{options}")).map_err(|error| format!("{error:#}"))
    };
    for (text, line) in [
        ("y,a,b\n1,x,\"z\n0,x,z\n1,x,z\n", 2),
        ("y,a,b\n1,x,z\n\n0,x,\"z", 4),
        ("y,a,b\n1,\"two\nlines\",\"z\"\" open\n\n\n1,x,z\n", 3),
        ("y,a,b\r\n1,x,z\r\n0,\"x,z\r\n1,x,z\r\n", 3),
        ("y,a,\"b\n1,x,z\n", 1),
    ] {
        let error = read(text, "").err().unwrap();
        let wanted = format!("a.csv: line {line}: a quote opens a field and never closes");
        assert!(error.contains(&wanted) && error.contains("quote = false"), "{text:?}: {error}");
    }
    // Two quotes that are text hide the rows between them.
    let hidden = format!("y,a,b\n1,x,\"z\n{}1,x,\"z\n", "0,x,z\n".repeat(20));
    let error = read(&hidden, "max_bad_fraction = 0").err().unwrap();
    assert!(error.contains("line 2: field 3 has 22 lines"), "{error}");
    let rows = |text: &str, options: &str| {
        let dataset = read(text, options).unwrap();
        batches(&*dataset, Split::Train, 0, 100)[0].len()
    };
    assert_eq!(rows("y,a,b\n1,\"two\nlines\",z\n0,x,\"last\"", ""), 2);
    assert_eq!(rows("y,a,b\n1,x,5\" pipe\n0,x,z\r", ""), 2);
    // Without quoting, as many rows as lines.
    assert_eq!(rows("y,a,b\n1,x,\"z\n0,x,z\n1,x,\"z\n0,x,z\n", ""), 2);
    assert_eq!(rows("y,a,b\n1,x,\"z\n0,x,z\n1,x,\"z\n0,x,z\n", "quote = false"), 4);
    assert_eq!(rows("y,a,b\n1,x,\"z", "quote = false"), 1);
}

#[test]
fn rows_are_shuffled_and_a_pass_can_be_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let lines: String = (0..2000).map(|at| format!("1,{at}\n")).collect();
    fs::write(dir.path().join("a.csv"), format!("y,x\n{lines}")).unwrap();
    let source = "format = \"csv\"\ntrain = [\"a.csv\"]\ntest = [\"a.csv\"]\nlabel = \
                  \"y\"\ndense = [\"x\"]\ncategorical = [\"y\"]\n";
    let in_order: Vec<f32> = (0..2000).map(|at| at as f32).collect();
    for (shuffle, largest_move) in [
        ("", 2000.0),
        ("shuffle = true", 2000.0),
        ("shuffle = 100", 100.0),
        ("shuffle = 1", 0.0),
        ("shuffle = false", 0.0),
    ] {
        let dataset = open(dir.path(), &format!("{source}{shuffle}")).unwrap();
        let all = |split, seed| -> Vec<f32> {
            let batches = batches(&*dataset, split, seed, 77);
            batches.into_iter().flat_map(|batch| batch.dense).collect()
        };
        let order = all(Split::Train, 5);
        let mut sorted = order.clone();
        sorted.sort_by(f32::total_cmp);
        assert_eq!(sorted, in_order);
        assert_eq!(all(Split::Test, 5), in_order, "the test split is shuffled");
        let is_shuffled = largest_move > 0.0;
        assert_eq!(order != in_order, is_shuffled, "{shuffle}");
        assert_eq!(all(Split::Train, 6) != order, is_shuffled, "{shuffle}");
        // A row does not come before it is in the buffer.
        assert!(order.iter().zip(&in_order).all(|(row, at)| row - at <= largest_move));

        for done in [0, 1, 77, 1000, 1999, 2000, 5000] {
            let mut pass = dataset.pass(Split::Train, 5).unwrap();
            let mut rest = Batch::default();
            pass.skip(done as u64).unwrap();
            pass.next(9999, &mut rest).unwrap();
            assert_eq!(rest.dense, order[done.min(2000)..], "{shuffle}, after {done}");
        }
    }
    for wrong in ["-1", "\"yes\"", "4294967296", "0.5"] {
        let text = format!("{source}shuffle = {wrong}");
        let error = crate::tagged::parse::<Config>(&text).err().unwrap().to_string();
        assert!(error.contains("true, false, or a number of rows"), "{error}");
    }
}

#[test]
fn negatives_by_popularity_and_none_in_a_batch() {
    let dir = tempfile::tempdir().unwrap();
    // Item i occurs i times, of 45.
    let items: Vec<u32> = (1..10).flat_map(|item| vec![item; item as usize].repeat(40)).collect();
    let users: Vec<u32> = (0..items.len() as u32).map(|at| at % 7).collect();
    let arrays = [
        ("train_user", &users[..]),
        ("train_item", &items),
        ("test_user", &[1]),
        ("test_item", &[20]),
    ];
    write_npz(&dir.path().join("a.npz"), &arrays);
    let source = "format = \"interactions\"\npath = \"a.npz\"\norder = \"given\"\nvalid_fraction \
                  = 0.2\n";
    let popular = format!("{source}negatives = 4\nnegative_sampling = \"popularity\"\n");
    let popular = open(dir.path(), &popular).unwrap();
    assert_eq!(popular.group(), Some(5));
    let all = batches(&*popular, Split::Train, 3, 500);
    let count = |of: &dyn Fn(usize) -> bool| {
        let mut counts = [0.0f64; 10];
        for batch in &all {
            let chosen = batch.features[1].indices.iter().enumerate().filter(|(at, _)| of(*at));
            chosen.for_each(|(_, &item)| counts[item as usize] += 1.0);
        }
        counts
    };
    let (positive, drawn) = (count(&|at| at % 5 == 0), count(&|at| at % 5 > 0));
    let total: f64 = positive.iter().sum();
    let chi_square: f64 = (0..9)
        .map(|item| (drawn[item] - 4.0 * positive[item]).powi(2) / (4.0 * positive[item]))
        .sum();
    // With 8 degrees of freedom, chi-square exceeds 35 once in 30,000 cases.
    assert!(chi_square < 35.0, "{chi_square}: {drawn:?} {positive:?}");
    assert_eq!(drawn[9], 0.0, "an item of the test split only");
    for batch in &all {
        let items = &batch.features[1].indices;
        for (at, (&item, &c)) in items.iter().zip(&batch.log_frequencies).enumerate() {
            if at % 5 > 0 && item == items[at - at % 5] {
                assert_eq!(c, f32::INFINITY);
            } else {
                let expected = (positive[item as usize] / total).ln();
                assert!((f64::from(c) - expected).abs() < 1e-6, "{c} {expected}");
            }
        }
    }

    // The other splits are the same whatever the training split draws.
    let in_batch = format!("{source}negative_sampling = \"in-batch\"\n");
    let in_batch = open(dir.path(), &in_batch).unwrap();
    let plain = open(dir.path(), source).unwrap();
    for split in [Split::Valid, Split::Test] {
        assert_eq!(batches(&*in_batch, split, 0, 64), batches(&*plain, split, 0, 64));
    }
    let alone = batches(&*in_batch, Split::Train, 3, 10_000).remove(0);
    assert_eq!((in_batch.group(), alone.len() as f64), (Some(1), total));
    assert_eq!(in_batch.num_examples(Split::Train), Some(alone.len() as u64));
    assert!(alone.labels.iter().all(|&label| label == 1.0));
    assert!(alone.log_frequencies.iter().all(|c| c.is_finite()));
    let both = format!("{source}negatives = 2\nnegative_sampling = \"in-batch\"\n");
    let error = open(dir.path(), &both).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("`negatives` is set"), "{error}");
}

#[test]
fn dense_features_are_standardised_as_in_training() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.csv"), "y,x,z,a\n1,1,5,p\n0,,5,q\n1,4,5,p\n0,7,5,p\n").unwrap();
    fs::write(dir.path().join("b.csv"), "y,x,z,a\n1,10,6,p\n0,,,q\n").unwrap();
    let source = "format = \"csv\"\ntrain = [\"a.csv\"]\ntest = [\"b.csv\"]\nlabel = \
                  \"y\"\nshuffle = false\nstandardize = true\ndense = [\"x\", \
                  \"z\"]\ncategorical = [\"a\"]\n";
    let dataset = open(dir.path(), source).unwrap();
    let path = dir.path().join("vocabulary.csv");
    dataset.vocabulary().write(&path).unwrap();
    let read = Vocabulary::read(&path).unwrap();
    assert_eq!(read, *dataset.vocabulary());
    // Of 1, 4 and 7 the mean is 4 and the variance 6; a constant is only shifted.
    let d = 6.0f32.sqrt();
    let again = config(source).open(dir.path(), Some(read)).unwrap();
    for dataset in [&dataset, &again] {
        let of = |split| batches(&**dataset, split, 0, 10).remove(0).dense;
        let close = |found: Vec<f32>, expected: &[f32]| {
            assert_eq!(found.len(), expected.len());
            let all = found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6);
            assert!(all, "{found:?} {expected:?}");
        };
        close(of(Split::Train), &[-3.0 / d, 0.0, 0.0, 0.0, 0.0, 0.0, 3.0 / d, 0.0]);
        close(of(Split::Test), &[6.0 / d, 1.0, 0.0, 0.0]);
    }
    // After the logarithm.
    let log = open(dir.path(), &format!("{source}log1p = true\n")).unwrap();
    let dense = batches(&*log, Split::Train, 0, 10).remove(0).dense;
    let sum: f32 = dense.iter().sum();
    assert!(sum.abs() < 1e-5 && dense[0] < -1.3, "{dense:?}");

    let plain = source.replace("standardize = true\n", "");
    let without = open(dir.path(), &plain).unwrap().vocabulary().clone();
    let error = config(source).open(dir.path(), Some(without)).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("lacks the mean"), "{error}");
    let written = fs::read_to_string(&path).unwrap();
    assert!(written.contains("x,mean,4,3\nx,deviation,2.449"), "{written}");
    for (from, to) in [
        ("x,mean,4,3\n", ""),
        ("x,deviation,", "y,deviation,"),
        ("deviation,2", "deviation,-2"),
        ("x,mean,4,3", "x,mean,inf,3"),
    ] {
        fs::write(&path, written.replace(from, to)).unwrap();
        Vocabulary::read(&path).unwrap_err();
    }
}

#[test]
fn rows_have_weights_and_columns_their_own_least_counts() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.csv"), "y,w,a,b\n1,0.5,p,p\n0,0,q,q\n1,3,p,p\n").unwrap();
    let source = |options: &str, b: &str| {
        format!(
            "format = \"csv\"\ntrain = [\"a.csv\"]\nlabel = \"y\"\nshuffle = \
             false\ncategorical = [\"a\", {b}]\n{options}"
        )
    };
    let weighted = open(dir.path(), &source("weight = \"w\"\n", "\"b\"")).unwrap();
    assert_eq!(batches(&*weighted, Split::Train, 0, 10)[0].weights, [0.5, 0.0, 3.0]);
    let plain = open(dir.path(), &source("", "\"b\"")).unwrap();
    assert!(batches(&*plain, Split::Train, 0, 10)[0].weights.is_empty());
    fs::write(dir.path().join("bad.csv"), "y,w,a,b\n1,-1,p,p\n").unwrap();
    let bad = source("weight = \"w\"\n", "\"b\"").replace("a.csv", "bad.csv");
    let error = open(dir.path(), &bad).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("field 2 is \"-1\": expected a weight, 0 or more"), "{error}");

    for (options, b, expected) in [
        ("", "{ name = \"b\", min_count = 2 }", [3, 2]),
        ("min_count = 2\n", "{ name = \"b\", min_count = 1 }", [2, 3]),
        ("max_rows = 2\n", "{ name = \"b\", max_rows = 9 }", [2, 3]),
    ] {
        let dataset = open(dir.path(), &source(options, b)).unwrap();
        let rows = dataset.features().iter().map(|feature| feature.num_embeddings);
        assert!(rows.eq(expected), "{options} {b}");
    }
    let both = source("", "{ name = \"b\", hash_rows = 9, min_count = 2 }");
    let error = open(dir.path(), &both).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("\"b\" has `hash_rows`"), "{error}");
}

#[test]
fn unknown_values_are_counted_for_each_column() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.csv"), "y,a,b,c\n1,5,p q,s\n0,6,q,s\n1,5,q,t\n0,7,p,s\n").unwrap();
    fs::write(dir.path().join("b.csv"), "y,a,b,c\n1,5.0,p r,s\n0,6,q q,u\n").unwrap();
    let source = "format = \"csv\"\ntrain = [\"a.csv\"]\ntest = [\"b.csv\"]\nlabel = \
                  \"y\"\nmin_count = 2\ncategorical = [\"a\", { name = \"b\", separator = \" \" }, \
                  { name = \"c\", hash_rows = 1000000 }]\n";
    let dataset = open(dir.path(), source).unwrap();
    for (split, expected) in [(Split::Train, [0.5, 0.0, 0.0]), (Split::Test, [1.0, 0.25, 0.5])] {
        let mut pass = dataset.pass(split, 0).unwrap();
        pass.next(100, &mut Batch::default()).unwrap();
        let found = pass.unknown();
        assert!(found.iter().map(|unknown| unknown.share).eq(expected), "{found:?}");
        // Two of four values of `a` are too rare for a number of their own.
        assert!(found.iter().map(|unknown| unknown.trained).eq([0.5, 0.0, 0.0]), "{found:?}");
        assert!(found.iter().map(|unknown| &*unknown.column).eq(["a", "b", "c"]), "{found:?}");
    }
}

#[test]
fn labels_and_missing_values_have_many_forms() {
    let dir = tempfile::tempdir().unwrap();
    let read = |text: &str, options: &str| -> Result<Batch, String> {
        fs::write(dir.path().join("a.csv"), text).unwrap();
        let source = format!(
            "format = \"csv\"\ntrain = [\"a.csv\"]\nlabel = \"y\"\ndense = \
             [\"x\"]\ncategorical = [\"a\"]\nshuffle = false\n{options}"
        );
        let dataset = open(dir.path(), &source).map_err(|error| format!("{error:#}"))?;
        Ok(batches(&*dataset, Split::Train, 0, 100).remove(0))
    };
    let labels = |text: &str, options: &str| read(text, options).unwrap().labels;
    assert_eq!(labels("y,x,a\nTrue,1,b\nfalse,1,b\n 1.0,1,b\n", ""), [1.0, 0.0, 1.0]);
    assert_eq!(labels("y,x,a\n-1,1,b\n1,1,b\n", "positive = 1"), [0.0, 1.0]);
    assert_eq!(labels("y,x,a\n4,1,b\n3.5,1,b\n5,1,b\n", "positive = 4"), [1.0, 0.0, 1.0]);
    let error = read("y,x,a\n4,1,b\n", "").unwrap_err();
    assert!(error.contains("`positive` makes labels of other numbers"), "{error}");
    let error = read("y,x,a\n4,1,b\n", "positive = nan").unwrap_err();
    assert!(error.contains("`positive` is NaN"), "{error}");

    let text = "y,x,a\n1,NaN,\n1,\\N,b\n1, ,NaN\n1,2,\\N\n";
    let batch = read(text, "missing = [\"NaN\", '\\N']").unwrap();
    assert_eq!(batch.dense, [0.0, 0.0, 0.0, 2.0]);
    assert_eq!(batch.features[0].indices, [0, 1, 0, 0]);
    let error = read(text, "").unwrap_err();
    assert!(error.contains("line 2: field 2 is \"NaN\": expected a number"), "{error}");

    // The first line is a row.
    let batch = read("b,1,0\nc,2,1\n", "header = [\"a\", \"x\", \"y\"]").unwrap();
    assert_eq!((batch.dense, batch.labels), (vec![1.0, 2.0], vec![0.0, 1.0]));
    let error = read("b,1,0\n", "header = [\"a\", \"x\"]").unwrap_err();
    assert!(error.contains("has no column \"y\""), "{error}");
}

#[test]
fn sessions_tell_an_item_from_those_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.npz");
    let arrays: [(&str, &[u32]); 5] = [
        ("offsets", &[0, 4, 5, 7]),
        ("items", &[10, 11, 12, 13, 14, 15, 16]),
        ("test_offsets", &[0, 3]),
        ("test_items", &[1, 2, 3]),
        ("test_target", &[4]),
    ];
    write_npz(&path, &arrays);
    let source = "format = \"sessions\"\npath = \"a.npz\"\norder = \"given\"\nhistory = 2";
    let dataset = open(dir.path(), source).unwrap();
    let taken = |split: Split| {
        let batch = batches(&*dataset, split, 5, 100).remove(0);
        let [history, item] = [0, 1].map(|at| &batch.features[at]);
        let id = |feature: usize, index: u32| -> u32 {
            let values = dataset.vocabulary().features()[feature].values();
            std::str::from_utf8(&values[index as usize]).unwrap().parse().unwrap()
        };
        let bag = |at: usize| -> Vec<u32> {
            history.indices[history.offsets[at] as usize..history.offsets[at + 1] as usize]
                .iter()
                .map(|&index| id(0, index))
                .collect()
        };
        let mut taken: Vec<(Vec<u32>, u32)> = (0..batch.len())
            .filter(|&at| batch.labels[at] == 1.0)
            .map(|at| (bag(at), id(1, item.indices[at])))
            .collect();
        taken.sort();
        taken
    };
    let expected = [(vec![10], 11), (vec![10, 11], 12), (vec![11, 12], 13), (vec![15], 16)];
    assert_eq!(taken(Split::Train), expected);
    assert_eq!(taken(Split::Test), [(vec![2, 3], 4)]);

    for (name, values) in [
        ("offsets", &[0, 8][..]),
        ("offsets", &[1, 7]),
        ("offsets", &[0, 5, 4, 7]),
        ("test_target", &[1, 2]),
    ] {
        let arrays = arrays.map(|(other, old)| (other, if other == name { values } else { old }));
        write_npz(&path, &arrays);
        let error = open(dir.path(), source).err().unwrap().to_string();
        assert!(error.contains("a.npz") && error.contains(name), "{error}");
    }
}

/// The context, the targets and the known items of each query.
fn queries(dataset: &dyn Dataset, split: Split) -> Vec<[Vec<u32>; 3]> {
    let queries = dataset.queries(split).unwrap();
    let of = |query: usize| {
        let mut known = Vec::new();
        queries.add_known(query, &mut known);
        known.dedup();
        let known = known.into_iter().map(|item| item as u32).collect();
        [queries.context(query).to_vec(), queries.targets(query).to_vec(), known]
    };
    (0..queries.len()).map(of).collect()
}

#[test]
fn each_user_has_items_to_find_and_items_to_leave_out() {
    let dir = tempfile::tempdir().unwrap();
    let write = |arrays: &[(&str, &[u32])]| write_npz(&dir.path().join("a.npz"), arrays);
    // Items that occur twice count once. Item 4 of user 2 is in both files; user 3 is in one.
    write(&[
        ("train_user", &[2, 0, 2, 1, 2]),
        ("train_item", &[4, 3, 1, 0, 4]),
        ("test_user", &[2, 3, 2, 0, 2]),
        ("test_item", &[4, 1, 0, 2, 0]),
    ]);
    let source = "format = \"interactions\"\npath = \"a.npz\"\norder = \"given\"";
    let dataset = open(dir.path(), source).unwrap();
    let expected = [
        [vec![0], vec![2], vec![3]],
        [vec![2], vec![0, 4], vec![1, 4]],
        [vec![3], vec![1], vec![]],
    ];
    assert_eq!(queries(&*dataset, Split::Test), expected);
    assert!(dataset.queries(Split::Train).is_none());

    // The validation split is known in the test, and unknown before.
    let users: Vec<u32> = (0..400).map(|at| at % 7).collect();
    let items: Vec<u32> = (0..400).map(|at| random(3, at) as u32 % 50).collect();
    write(&[
        ("train_user", &users),
        ("train_item", &items),
        ("test_user", &[3]),
        ("test_item", &[5]),
    ]);
    let dataset = open(dir.path(), &format!("{source}\nvalid_fraction = 0.2")).unwrap();
    let of_user = |split: Split, user: u32| -> Vec<u32> {
        let pairs = batches(&*dataset, split, 0, 1000).remove(0);
        let pairs = pairs.features[0].indices.iter().zip(&pairs.features[1].indices);
        let mut items: Vec<u32> =
            pairs.step_by(2).filter(|pair| *pair.0 == user).map(|pair| *pair.1).collect();
        items.sort_unstable();
        items.dedup();
        items
    };
    let valid = queries(&*dataset, Split::Valid);
    assert_eq!(valid.len(), 7);
    for ([context, targets, known], user) in valid.into_iter().zip(0..) {
        assert_eq!(context, [user]);
        assert_eq!(targets, of_user(Split::Valid, user));
        assert_eq!(known, of_user(Split::Train, user));
    }
    let mut all = [of_user(Split::Train, 3), of_user(Split::Valid, 3)].concat();
    all.sort_unstable();
    all.dedup();
    assert_eq!(queries(&*dataset, Split::Test), [[vec![3], vec![5], all]]);
}

#[test]
fn histories_are_the_other_items_of_the_user() {
    let dir = tempfile::tempdir().unwrap();
    let users: Vec<u32> = (0..400).map(|at| at % 7).collect();
    let items: Vec<u32> = (0..400).map(|at| random(3, at) as u32 % 50).collect();
    // User 9 is in the test only; user 8 has one item.
    write_npz(
        &dir.path().join("a.npz"),
        &[
            ("train_user", &[&users[..], &[8]].concat()),
            ("train_item", &[&items[..], &[5]].concat()),
            ("test_user", &[3, 9, 3, 8]),
            ("test_item", &[5, 1, 50, 6]),
        ],
    );
    let source = "format = \"interactions\"\npath = \"a.npz\"\norder = \"given\"\n\
                  valid_fraction = 0.2\n";
    let by_user = open(dir.path(), source).unwrap();
    let pairs = |split: Split| -> Vec<[u32; 2]> {
        let batch = batches(&*by_user, split, 5, 1000).remove(0);
        let [users, items] = [0, 1].map(|at| batch.features[at].indices.iter());
        users.zip(items).map(|(&user, &item)| [user, item]).step_by(2).collect()
    };
    let of_user = |split: Split, user: u32| -> BTreeSet<u32> {
        pairs(split).iter().filter(|pair| pair[0] == user).map(|pair| pair[1]).collect()
    };
    for (history, shared) in [(3, false), (1000, false), (1000, true)] {
        let toml = format!("{source}history = {history}\nshared_table = {shared}");
        let dataset = open(dir.path(), &toml).unwrap();
        let id = |feature: usize, index: u32| -> u32 {
            let table = dataset.features()[feature].table;
            let values = dataset.vocabulary().features()[table].values();
            std::str::from_utf8(&values[index as usize]).unwrap().parse().unwrap()
        };
        // Items have the numbers that they have without histories, and only some are in one.
        let item = Feature { table: usize::from(!shared), ..by_user.features()[1].clone() };
        assert_eq!(dataset.features()[1], item);
        let tables = if shared { vec!["item"] } else { vec!["history", "item"] };
        assert!(dataset.vocabulary().features().iter().map(Categories::name).eq(tables));
        if shared {
            assert_eq!(dataset.features()[0], item);
            // What the training split looks up in both ways.
            let batch = batches(&*dataset, Split::Train, 5, 1000).remove(0);
            let mut counts = vec![0; item.num_embeddings as usize];
            let looked_up = &batch.features[0];
            for bag in looked_up.offsets.windows(2).step_by(2) {
                let bag = &looked_up.indices[bag[0] as usize..bag[1] as usize];
                bag.iter().for_each(|&index| counts[index as usize] += 1);
            }
            let all = [&items[..], &[5]].concat();
            for (index, count) in counts.iter_mut().enumerate() {
                *count += all.iter().filter(|&&item| item == id(1, index as u32)).count() as u64;
            }
            let found = dataset.vocabulary().features()[0].counts_of_values();
            assert_eq!(found, counts);
        }
        let check = |context: &[u32], expected: &BTreeSet<u32>| {
            let context: Vec<u32> = context.iter().map(|&index| id(0, index)).collect();
            let found: BTreeSet<u32> = context.iter().copied().collect();
            assert!(found.is_subset(expected), "{found:?} {expected:?}");
            if history == 1000 {
                assert_eq!(found, *expected);
            } else {
                assert_eq!(context.len(), expected.len().min(3));
            }
        };
        for split in [Split::Train, Split::Valid, Split::Test] {
            let batch = batches(&*dataset, split, 5, 1000).remove(0);
            let [contexts, found] = [0, 1].map(|at| &batch.features[at]);
            let pairs = pairs(split);
            assert_eq!(batch.len(), 2 * pairs.len());
            for (at, &[user, item]) in pairs.iter().enumerate() {
                let at = 2 * at;
                assert_eq!(found.indices[at], item);
                let mut expected = of_user(Split::Train, user);
                match split {
                    Split::Train => assert!(expected.remove(&item)),
                    Split::Valid => {}
                    Split::Test => expected.extend(of_user(Split::Valid, user)),
                }
                let ends = [at, at + 1].map(|bag| contexts.offsets[bag] as usize);
                let context = &contexts.indices[ends[0]..ends[1]];
                let expected = expected.iter().map(|&item| id(1, item)).collect();
                check(context, &expected);
            }
        }
        for split in [Split::Valid, Split::Test] {
            let all = queries(&*by_user, split).into_iter().zip(queries(&*dataset, split));
            for ([user, targets, known], [context, found, left_out]) in all {
                assert_eq!((found, left_out), (targets, known.clone()));
                let known: BTreeSet<u32> = known.into_iter().map(|item| id(1, item)).collect();
                assert!(user.len() == 1 && (context.is_empty() || !known.is_empty()));
                check(&context, &known);
            }
        }
    }
    let error = open(dir.path(), &format!("{source}history = 0")).err().unwrap().to_string();
    assert!(error.contains("`history` is 0"), "{error}");
    let error = open(dir.path(), &format!("{source}shared_table = true"))
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("its user: set `history`"), "{error}");
}

#[test]
fn each_session_leaves_out_all_its_items_but_the_target() {
    let dir = tempfile::tempdir().unwrap();
    let arrays: [(&str, &[u32]); 5] = [
        ("offsets", &[0, 5, 7]),
        ("items", &[10, 11, 12, 11, 13, 10, 12]),
        ("test_offsets", &[0, 4, 4]),
        ("test_items", &[10, 13, 11, 13]),
        ("test_target", &[13, 11]),
    ];
    write_npz(&dir.path().join("a.npz"), &arrays);
    let source = "format = \"sessions\"\npath = \"a.npz\"\norder = \"given\"\nhistory = 2";
    let dataset = open(dir.path(), source).unwrap();
    // Histories are numbered from 10, items from 11: 10 is no item.
    let expected = [[vec![1, 3], vec![2], vec![0]], [vec![], vec![0], vec![]]];
    assert_eq!(queries(&*dataset, Split::Test), expected);

    let dataset = open(dir.path(), &format!("{source}\nvalid_fraction = 0.9")).unwrap();
    let all = [
        [vec![0], vec![0], vec![]],
        [vec![0, 1], vec![1], vec![0]],
        [vec![1, 2], vec![0], vec![1]],
        [vec![2, 1], vec![2], vec![0, 1]],
        [vec![0], vec![1], vec![]],
    ];
    let valid = queries(&*dataset, Split::Valid);
    assert!(valid.len() > 2 && valid.iter().all(|query| all.contains(query)), "{valid:?}");
}
