//! Recall and NDCG over all items, against a count of what the converted model scores.

use super::train::tensors;
use crate::support::{Dir, Elements, npy, read_f32, read_npz, ttrec, vector, write_npz};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

const USERS: u32 = 40;
const ITEMS: u32 = 60;
const METRICS: [&str; 4] = ["recall@10", "ndcg@10", "recall@20", "ndcg@20"];

fn random(seed: u32, at: u32) -> u32 {
    let z = seed.wrapping_mul(0x9E37_79B9) ^ at.wrapping_mul(0x85EB_CA6B);
    let z = (z ^ z >> 16).wrapping_mul(0x7FEB_352D);
    let z = (z ^ z >> 15).wrapping_mul(0x846C_A68B);
    z ^ z >> 16
}

/// Pairs of users and items of the same fifth, for the most part; ids have gaps.
fn pairs(seed: u32, count: u32) -> [Vec<u32>; 2] {
    let pair = |at: u32| {
        let (user, draw) = (random(seed, 3 * at) % USERS, random(seed, 3 * at + 1));
        let fifth = if draw.is_multiple_of(4) { draw / 4 % 5 } else { user % 5 };
        [10 + 3 * user, 7 + 2 * (fifth + 5 * (random(seed, 3 * at + 2) % (ITEMS / 5)))]
    };
    let pairs = (0..count).map(pair);
    [pairs.clone().map(|pair| pair[0]).collect(), pairs.map(|pair| pair[1]).collect()]
}

/// The data, and the contexts, targets and known items of the test split, by id.
struct Planted {
    dir: Dir,
    format: &'static str,
    history: usize,
    shared_table: bool,
    queries: Vec<(Vec<u32>, BTreeSet<u32>, BTreeSet<u32>)>,
}

fn interactions() -> Planted {
    let dir = Dir::new();
    let ([users, items], [test_users, test_items]) = (pairs(1, 900), pairs(2, 150));
    let mut queries = BTreeMap::new();
    for (user, item) in test_users.iter().zip(&test_items) {
        let query: &mut (BTreeSet<u32>, BTreeSet<u32>) = queries.entry(*user).or_default();
        query.0.insert(*item);
    }
    for (user, item) in users.iter().zip(&items) {
        if let Some((_, known)) = queries.get_mut(user) {
            known.insert(*item);
        }
    }
    write_npz(
        &dir.path("data.npz"),
        &[
            ("train_user", vector(&users)),
            ("train_item", vector(&items)),
            ("test_user", vector(&test_users)),
            ("test_item", vector(&test_items)),
        ],
    );
    let queries = queries.into_iter().map(|(user, (found, known))| (vec![user], found, known));
    let queries = queries.collect();
    Planted { dir, format: "interactions", history: 0, shared_table: false, queries }
}

/// The same, but the context is what the user did, and not the user.
fn histories() -> Planted {
    let planted = interactions();
    let of_items = |(_, found, known): &(_, BTreeSet<u32>, BTreeSet<u32>)| {
        (known.iter().copied().collect(), found.clone(), known.clone())
    };
    let queries = planted.queries.iter().map(of_items).collect();
    Planted { history: ITEMS as usize, queries, ..planted }
}

const HISTORY: usize = 3;

fn sessions() -> Planted {
    let dir = Dir::new();
    // Sessions of the items of one user after another.
    let session = |seed: u32| -> Vec<Vec<u32>> {
        let [users, items] = pairs(seed, 600);
        let of = |user: u32| {
            let all = users.iter().zip(&items).filter(|pair| *pair.0 == 10 + 3 * user);
            all.map(|pair| *pair.1).collect()
        };
        (0..USERS).map(of).collect()
    };
    let (train, test) = (session(1), session(2));
    let offsets = |sessions: &[Vec<u32>]| -> Vec<u64> {
        let end = |count: usize| sessions[..count].iter().map(|s| s.len() as u64).sum();
        (0..=sessions.len()).map(end).collect()
    };
    // The first items are known; the last is the target, which may be among them.
    let split: Vec<(Vec<u32>, u32)> = test
        .iter()
        .filter_map(|s| Some((s[..s.len() - 1].to_vec(), *s.last()?)))
        .collect();
    let (before, targets): (Vec<_>, Vec<u32>) = split.into_iter().unzip();
    write_npz(
        &dir.path("data.npz"),
        &[
            ("offsets", vector(&offsets(&train))),
            ("items", vector(&train.concat())),
            ("test_offsets", vector(&offsets(&before))),
            ("test_items", vector(&before.concat())),
            ("test_target", vector(&targets)),
        ],
    );
    let queries = before.into_iter().zip(targets).map(|(before, target)| {
        let known = before.iter().copied().filter(|item| *item != target).collect();
        let recent = before[before.len().saturating_sub(HISTORY)..].to_vec();
        (recent, BTreeSet::from([target]), known)
    });
    let queries = queries.collect();
    Planted { dir, format: "sessions", history: HISTORY, shared_table: false, queries }
}

impl Planted {
    /// The same, but contexts and items have one table.
    fn shared(self) -> Self {
        Self { shared_table: true, ..self }
    }

    fn config(&self, model: &str, constant: bool, train: &str) -> String {
        let (format, mut data) = (self.format, String::new());
        if self.history > 0 {
            data += &format!("history = {}\n", self.history);
        }
        if self.shared_table {
            data += "shared_table = true\n";
        }
        let bottom = if constant { "bottom = [4, 8]" } else { "" };
        format!(
            "[data]\nformat = {format:?}\npath = \"data.npz\"\nvalid_fraction = 0.2\nconstant = \
             {constant}\n{data}\n[model]\nembedding_dim = 8\n{bottom}\n{model}\n\n[train]\n\
             optimizer = \"adam\"\nlearning_rate = 0.02\nbatch = 64\n{train}\n"
        )
    }

    fn train(&self, name: &str, config: &str) -> PathBuf {
        let toml = self.dir.file(&format!("{name}.toml"), config);
        let out = self.dir.path(name);
        let printed = if config.contains("6, 1") {
            " examples\n"
        } else {
            " examples; recall@10 0."
        };
        ttrec!["train", &toml, "-o", &out].exits(0).prints([printed]);
        out
    }

    /// The metrics of a run's model.
    fn expected(&self, run: &Path) -> [f64; 4] {
        let blob = run.join("model.ttr");
        ttrec!["convert", run.join("best.safetensors"), "-o", &blob].exits(0);
        self.counted(run, &blob)
    }

    /// The metrics of a blob, from the logits of all pairs of a query and an item.
    fn counted(&self, run: &Path, blob: &Path) -> [f64; 4] {
        let [contexts, items] = [0, 1].map(|feature| {
            let text = fs::read_to_string(run.join("vocabulary.csv")).unwrap();
            let mut names: Vec<&str> = Vec::new();
            let mut numbers = [BTreeMap::new(), BTreeMap::new()];
            for line in text.lines().skip(1) {
                let fields: Vec<&str> = line.split(',').collect();
                if names.last() != Some(&fields[0]) {
                    names.push(fields[0]);
                }
                let of = &mut numbers[names.len() - 1];
                of.insert(fields[2].parse::<u32>().unwrap(), fields[1].parse::<u32>().unwrap());
            }
            assert_eq!(names.len(), if self.shared_table { 1 } else { 2 });
            numbers[feature.min(names.len() - 1)].clone()
        });
        let (batch, scores) = (run.join("batch.npz"), run.join("logits.npy"));
        let count = self.queries.len() * items.len();
        let (mut bags, mut offsets, mut candidates) = (Vec::new(), vec![0u64], Vec::new());
        for (context, _, _) in &self.queries {
            for item in 0..items.len() as u64 {
                bags.extend(context.iter().map(|id| u64::from(contexts[id])));
                offsets.push(bags.len() as u64);
                candidates.push(item);
            }
        }
        let ends: Vec<u64> = (0..=count as u64).collect();
        let mut arrays = vec![
            ("indices_0", vector(&bags)),
            ("offsets_0", vector(&offsets)),
            ("indices_1", vector(&candidates)),
            ("offsets_1", vector(&ends)),
        ];
        let config = fs::read_to_string(run.with_extension("toml")).unwrap();
        if config.contains("constant = true") {
            arrays.push(("dense", npy("<f4", &[count, 1], &vec![1f32; count][..].bytes())));
        }
        write_npz(&batch, &arrays);
        ttrec!["score", blob, "--batch", &batch, "--logits", "-o", &scores].exits(0);
        let logits = read_f32(&scores).1;
        let mut sums = [0.0; 4];
        for ((_, targets, known), logits) in self.queries.iter().zip(logits.chunks(items.len())) {
            let known: Vec<u32> = known.iter().filter_map(|id| items.get(id).copied()).collect();
            let mut order: Vec<u32> =
                (0..items.len() as u32).filter(|item| !known.contains(item)).collect();
            order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
            let targets: Vec<u32> = targets.iter().map(|id| items[id]).collect();
            for (at, k) in [10, 20].into_iter().enumerate() {
                let (mut hits, mut gain, mut most) = (0.0, 0.0, 0.0);
                for (place, item) in order.iter().take(k).enumerate() {
                    let of_place = 1.0 / (place as f64 + 2.0).log2();
                    if targets.contains(item) {
                        hits += 1.0;
                        gain += of_place;
                    }
                    if place < targets.len() {
                        most += of_place;
                    }
                }
                sums[2 * at] += hits / targets.len() as f64;
                sums[2 * at + 1] += gain / most;
            }
        }
        sums.map(|sum| sum / self.queries.len() as f64)
    }
}

fn evaluated(planted: &Planted, run: &Path, more: &[&str]) -> serde_json::Value {
    let mut command = std::process::Command::new(crate::support::TTREC);
    command.arg("eval").arg(run.join("best.safetensors")).arg("--data-dir");
    command.arg(planted.dir.path("")).arg("--json").args(more);
    serde_json::from_str(&crate::support::run(command).exits(0).stdout).unwrap()
}

#[test]
fn recall_and_ndcg_are_what_counting_gives() {
    let tables = [
        ("dense", "{ representation = \"dense\" }"),
        ("tt", "{ representation = \"tt\", rank = 4, scale = 3.0 }"),
        ("cached", "{ representation = \"tt\", rank = 2, cache = { rows = 32, warm_up = 5 } }"),
        ("hashed", "{ representation = \"hashed\", num_rows = 30 }"),
        ("qr", "{ representation = \"quotient-remainder\", num_remainders = 7 }"),
    ];
    let shared = [histories().shared(), sessions().shared()];
    for planted in [interactions(), histories(), sessions()].into_iter().chain(shared) {
        let kinds = if planted.history > 0 { 2 } else { tables.len() };
        for (name, table) in &tables[..kinds] {
            // The logit is a product; or a weighted one, with biases of the rows; or neither.
            for (layers, constant, top) in
                [("none", false, ""), ("one", true, "top = [1]"), ("two", true, "top = [6, 1]")]
            {
                if layers != "one" && !["dense", "tt"].contains(name) {
                    continue;
                }
                let model = format!("{top}\ntable = {table}");
                let name = format!("{name}-{layers}");
                let config = planted.config(&model, constant, "epochs = 4");
                let run = planted.train(&name, &config);
                let found = evaluated(&planted, &run, &[]);
                let expected = planted.expected(&run);
                for (metric, expected) in METRICS.iter().zip(expected) {
                    let found = found[metric].as_f64().unwrap();
                    let Planted { format, shared_table, .. } = &planted;
                    let of = format!("{name}, {format}, {shared_table}: {metric}");
                    assert!((found - expected).abs() < 1e-9, "{of}: {found} for {expected}");
                    assert!((0.01..0.99).contains(&found), "{of}: {found} tells nothing");
                }
                assert_eq!(found["queries"], planted.queries.len());
                // Threads change nothing.
                if name == "tt-one" {
                    assert_eq!(evaluated(&planted, &run, &["--threads", "3"]), found);
                }
            }
        }
    }
}

#[test]
fn losses_that_rank_items_learn_and_go_on_to_the_bit() {
    for planted in [interactions(), sessions(), histories().shared()] {
        for (name, sampling, loss) in [
            ("bpr", "negatives = 2", "bpr"),
            ("uniform", "negatives = 7", "softmax"),
            ("popular", "negatives = 7\nnegative_sampling = \"popularity\"", "softmax"),
            ("batch", "negative_sampling = \"in-batch\"", "softmax"),
        ] {
            let config = |epochs: u32, more: &str| {
                let train = format!(
                    "loss = {loss:?}\nl2 = 0.001\nepochs = {epochs}\npatience = 30\n{more}"
                );
                let config = planted.config("", false, &train);
                config.replace("valid_fraction", &format!("{sampling}\nvalid_fraction"))
            };
            let run = planted.train(name, &config(8, ""));
            let found = evaluated(&planted, &run, &[]);
            let auc = found["auc"].as_f64().unwrap();
            assert!(auc > 0.55, "{name}, {}: {auc}", planted.format);
            let expected = tensors(&run.join("checkpoint.safetensors"));
            let threads = planted.train(&format!("{name}-threads"), &config(8, "threads = 3"));
            assert!(
                tensors(&threads.join("checkpoint.safetensors")) == expected,
                "{name}: threads"
            );
            let parts = format!("{name}-parts");
            planted.train(&parts, &config(3, "checkpoint_every = 2"));
            let toml = planted.dir.path(&format!("{name}.toml"));
            ttrec!["train", &toml, "-o", planted.dir.path(&parts), "--resume"].exits(0);
            assert!(
                tensors(&planted.dir.path(&parts).join("checkpoint.safetensors")) == expected,
                "{name}: in parts"
            );
        }
    }
}

#[test]
fn losses_that_do_not_suit_the_model_are_refused() {
    let planted = interactions();
    let softmax = planted.config("", false, "loss = \"softmax\"");
    let in_batch =
        softmax.replace("valid_fraction", "negative_sampling = \"in-batch\"\nvalid_fraction");
    let change = |from: &str, to: &str| in_batch.replace(from, to);
    for (config, wanted) in [
        (softmax.clone() + "select = \"log-loss\"", &["`select` is \"log-loss\"", "\"ndcg\""][..]),
        (softmax.clone() + "label_smoothing = 0.1", &["`label_smoothing` is for labels"]),
        (softmax.clone() + "weight_decay = 0.1", &["`weight_decay` is of layers", "`l2`"]),
        (softmax.replace("batch = 64", "batch = 16777216"), &["16777216 items with 1 negatives"]),
        (change("softmax", "bce"), &["\"in-batch\": expected `loss` to be \"softmax\""]),
        (change("softmax", "bpr"), &["\"in-batch\": expected `loss` to be \"softmax\""]),
        (change("[train]", "top = [1]\n[train]"), &["expected a model without `top`"]),
        (change("path =", "negatives = 3\npath ="), &["`negatives` is set", "none are drawn"]),
        (change("\"in-batch\"", "\"all\""), &["unknown variant `all`", "`popularity`"]),
    ] {
        let toml = planted.dir.file("bad.toml", config);
        ttrec!["train", &toml, "-o", planted.dir.path("bad")]
            .exits(3)
            .says(wanted.iter().copied());
    }
}

#[test]
fn the_best_epoch_has_the_largest_ndcg_on_request() {
    let planted = interactions();
    let config = planted.config("", false, "epochs = 8\nselect = \"ndcg\"");
    let run = planted.train("ndcg", &config.replace("0.02", "0.1"));
    let curves = fs::read_to_string(run.join("curves.csv")).unwrap();
    let column = |name: &str| -> Vec<f64> {
        let at = curves.lines().next().unwrap().split(',').position(|other| other == name);
        let field = |line: &str| line.split(',').nth(at.unwrap()).unwrap().parse().unwrap();
        curves.lines().skip(1).map(field).collect()
    };
    let (ndcg, losses) = (column("valid_ndcg@20"), column("valid_log_loss"));
    let largest = ndcg.iter().copied().fold(0.0, f64::max);
    let at = ndcg.iter().position(|&value| value == largest).unwrap();
    let valid = evaluated(&planted, &run, &["--split", "valid"]);
    assert_eq!(valid["ndcg@20"], largest);
    assert_eq!(valid["log_loss"], losses[at]);
    let least = losses.iter().copied().fold(f64::INFINITY, f64::min);
    assert!(losses[at] > least, "the log-loss would have chosen the same epoch: {curves}");

    // All items of the training split are known.
    let train = evaluated(&planted, &run, &["--split", "train"]);
    assert!(train["auc"].is_f64() && train["ndcg@20"].is_null(), "{train}");
    let path = planted.dir.file("a.csv", "y,a,b\n1,x,z\n");
    let csv =
        "format = \"csv\"\ntrain = [\"a.csv\"]\nlabel = \"y\"\ncategorical = [\"a\", \"b\"]\n";
    let text = format!(
        "[data]\n{csv}[model]\nembedding_dim = 4\n[train]\nlearning_rate = 0.1\nselect = \"ndcg\""
    );
    ttrec!["train", planted.dir.file("csv.toml", text), "-o", path.with_extension("out")]
        .exits(3)
        .says(["csv.toml: `select` is \"ndcg\"", "\"interactions\" or \"sessions\""]);
}

#[test]
fn a_sweep_compares_by_ndcg() {
    let planted = interactions();
    let sweep = "[sweep]\nseeds = [1, 2]\nlearning_rates = [0.0001, 0.05]\nrepresentations = [\
                 { representation = \"dense\" }, { representation = \"tt\", rank = 4 }]\n";
    let config = planted.config("", false, "epochs = 3\nselect = \"ndcg\"") + sweep;
    let toml = planted.dir.file("sweep.toml", config);
    let out = planted.dir.path("sweep");
    let run = ttrec!["sweep", &toml, "-o", &out].exits(0).prints(["| recall@20 | NDCG@20 |"]);
    let csv = fs::read_to_string(out.join("results.csv")).unwrap();
    let columns: Vec<&str> = csv.lines().next().unwrap().split(',').collect();
    let at = |name: &str| columns.iter().position(|other| *other == name).unwrap();
    let rows: Vec<Vec<&str>> = csv.lines().skip(1).map(|line| line.split(',').collect()).collect();
    assert_eq!(rows.len(), 6);
    for tables in ["dense", "tt rank 4"] {
        let of = |rate: &str, name: &str| -> Vec<f64> {
            let chosen = rows.iter().filter(|row| row[0] == tables && row[3] == rate);
            chosen.map(|row| row[at(name)].parse().unwrap()).collect()
        };
        let (low, high) = (of("0.0001", "valid_ndcg@20"), of("0.05", "valid_ndcg@20"));
        let best = if high[0] > low[0] { "0.05" } else { "0.0001" };
        let (test, recall) = (of(best, "test_ndcg@20"), of(best, "test_recall@20"));
        assert_eq!(test.len(), 2, "both seeds: {csv}");
        let mean = |of: &[f64]| format!("{:.4} ± ", (of[0] + of[1]) / 2.0);
        let line = run.stdout.lines().find(|line| line.starts_with(&format!("| {tables} |")));
        let line = line.unwrap();
        assert!(line.contains(&mean(&test)) && line.contains(&mean(&recall)), "{line}");
    }
    assert!(fs::read_to_string(out.join("results.svg")).unwrap().contains("NDCG@20"));
}

#[test]
fn a_sweep_varies_any_field() {
    let planted = interactions();
    let sweep = |vary: &str| {
        let sweep = format!("[sweep]\nseeds = [1, 2]\n[sweep.vary]\n{vary}\n");
        planted.dir.file("vary.toml", planted.config("", false, "epochs = 1") + &sweep)
    };
    let toml = sweep("\"model.embedding_dim\" = [4, 6]\n\"data.negatives\" = [1, 3]");
    let out = planted.dir.path("vary");
    let first = ttrec!["sweep", &toml, "-o", &out].exits(0);
    let csv = fs::read(out.join("results.csv")).unwrap();
    let mut rows = csv::Reader::from_reader(&csv[..]);
    let found: Vec<_> = rows
        .records()
        .map(|row| {
            let row = row.unwrap();
            (row[0].to_owned(), row[1].parse::<u32>().unwrap(), row[4].to_owned())
        })
        .collect();
    let mut expected = Vec::new();
    for (negatives, dim) in [(1, 4), (1, 6), (3, 4), (3, 6)] {
        let name = format!("dense, negatives {negatives}, embedding_dim {dim}");
        let bytes = (USERS + ITEMS) * dim * 4;
        expected.extend(["1", "2"].map(|seed| (name.clone(), bytes, seed.to_owned())));
    }
    assert_eq!(found, expected);
    // Its own negatives in the validation split tell that each has its own data.
    assert!(out.join("--negatives-1/vocabulary.csv").exists());
    let again = ttrec!["sweep", &toml, "-o", &out].exits(0);
    assert!(first.stdout.ends_with(&again.stdout) && !again.stdout.contains(", seed "));

    for (vary, wanted) in [
        ("\"model.embeding_dim\" = [4]", &["with `vary`, embeding_dim 4", "unknown field"][..]),
        ("\"model.embedding_dim\" = [4, 0]", &["embedding_dim 0", "`embedding_dim` is 0"]),
        ("\"train.batch\" = [4, \"a\"]", &["with `vary`, batch a", "invalid type"]),
        ("\"model.embedding_dim.x\" = [4]", &["embedding_dim.x", "there is no such field"]),
        ("\"train.seed\" = [4]", &["\"train.seed\": put its values into `seeds`"]),
        ("\"train.batch\" = []", &["no values of \"train.batch\""]),
        ("\"train.select\" = [\"ndcg\", \"best\"]", &["select best", "unknown variant `best`"]),
    ] {
        let run = ttrec!["sweep", sweep(vary), "-o", planted.dir.path("refused")].exits(3);
        run.says(wanted.iter().copied());
    }
}

/// AUC and log-loss of a blob on samples with labels, by their definitions.
fn of_samples(samples: &Path, blob: &Path) -> [f64; 2] {
    let scores = samples.with_extension("npy");
    ttrec!["score", blob, "--batch", samples, "--logits", "-o", &scores].exits(0);
    let (logits, labels) = (read_f32(&scores).1, &read_npz(samples)["label"].values);
    let (mut won, mut pairs, mut loss) = (0.0, 0.0, 0.0);
    for (&a, &label) in logits.iter().zip(labels) {
        let probability = 1.0 / (1.0 + f64::from(-a).exp());
        loss -= (label * probability + (1.0 - label) * (1.0 - probability)).ln();
        for (&b, _) in logits.iter().zip(labels).filter(|(_, other)| label == 1.0 && **other == 0.0)
        {
            pairs += 1.0;
            won += f64::from(u8::from(a > b)) + 0.5 * f64::from(u8::from(a == b));
        }
    }
    [won / pairs, loss / logits.len() as f64]
}

#[test]
fn a_plan_stores_a_shared_table_once_in_the_type_that_it_was_learned_in() {
    let planted = sessions().shared();
    let table = "table = { representation = \"tt\", rank = 4, scale = 3.0, dtype = \"i8\" }";
    let run = planted.train("learned", &planted.config(table, false, "epochs = 4"));
    let best = run.join("best.safetensors");
    let (spec, blob) = (planted.dir.path("plan.toml"), planted.dir.path("plan.ttr"));
    ttrec!["plan", &best, "--budget", "100%", "-o", &spec].exits(0);
    let text = fs::read_to_string(&spec).unwrap();
    assert_eq!(text.matches("[[table]]").count(), 1, "{text}");
    assert!(text.contains("dtype = \"i8\""), "{text}");
    assert!(text.contains("tables = [\"item\", \"item\"]"), "{text}");
    ttrec!["convert", &best, "--spec", &spec, "-o", &blob].exits(0);
    for (found, expected) in planted.counted(&run, &blob).iter().zip(planted.expected(&run)) {
        assert!((found - expected).abs() < 1e-9, "{found} {expected}");
    }

    // The type of a spec is no type that values were learned in.
    let table = table.replace(", dtype = \"i8\"", "");
    let run = planted.train("exact", &planted.config(&table, false, "epochs = 1"));
    let exact = run.join("best.safetensors");
    let [small, large] = ["small", "large"].map(|name| planted.dir.path(name));
    ttrec!["plan", &exact, "--budget", "1100", "-o", &small].exits(0);
    ttrec!["plan", &exact, "--budget", "9000", "--spec", &small, "-o", &large].exits(0);
    for (spec, dtype) in [(small, "f16"), (large, "f32")] {
        let text = fs::read_to_string(&spec).unwrap();
        let (_, of_table) = text.split_once("[[table]]").unwrap();
        assert!(of_table.contains(&format!("dtype = {dtype:?}")), "{text}");
    }
}

#[test]
fn metadata_that_names_other_features_is_refused() {
    let planted = sessions().shared();
    let run = planted.train("shared", &planted.config("", false, "epochs = 1"));
    let best = run.join("best.safetensors");
    let bytes = fs::read(&best).unwrap();
    let features = br#"\"features\":[\"item\",\"item\"]"#;
    let at = bytes.windows(features.len()).position(|found| found == features).unwrap();
    for other in [
        r#"\"features\":[\"item\",\"iten\"]"#,
        r#"\"features\":[\"item\"       ]"#,
        r#"\"features\":[\"i\",\"i\",\"i\"]"#,
        r#"\"features\":[              ]"#,
    ] {
        let mut edited = bytes.clone();
        let end = at + other.len();
        edited[at..end].copy_from_slice(other.as_bytes());
        edited[end..at + features.len()].fill(b' ');
        fs::write(&best, edited).unwrap();
        ttrec!["convert", &best, "-o", planted.dir.path("x.ttr")].exits(3);
        ttrec!["eval", &best, "--data-dir", planted.dir.path("")]
            .exits(3)
            .says(["its tables differ from those of the present config"]);
    }
}

#[test]
fn a_judged_plan_loses_what_it_says() {
    let planted = interactions();
    let dir = &planted.dir;
    let run = planted.train("judged", &planted.config("top = [1]", true, "epochs = 8"));
    let best = run.join("best.safetensors");
    let samples = dir.path("samples.npz");
    let found = evaluated(&planted, &run, &["--samples", samples.to_str().unwrap()]);
    let number = |value: &serde_json::Value| value.as_f64().unwrap();
    for (args, of_model) in [
        (&["--judge", "auc", "--max-loss", "0.004", "--split", "test"][..], "auc"),
        (&["--max-auc-loss", "0.004", "--samples"], "auc"),
        (&["--max-logloss-increase", "0.003", "--split", "test"], "log_loss"),
        (&["--judge", "recall@20", "--max-loss", "0.02", "--split", "test"], "recall@20"),
    ] {
        let (spec, blob) = (dir.path("plan.toml"), dir.path("plan.ttr"));
        let mut command = std::process::Command::new(crate::support::TTREC);
        command.arg("plan").arg(&best).arg("-o").arg(&spec).arg("--json").args(args);
        if args.contains(&"--samples") {
            command.arg(&samples);
        } else {
            command.arg("--data-dir").arg(dir.path(""));
        }
        let plan: serde_json::Value =
            serde_json::from_str(&crate::support::run(command).exits(0).stdout).unwrap();
        let judged = &plan["judgement"];
        let [exact, increase, most] =
            ["exact_loss", "increase", "max_increase"].map(|of| number(&judged[of]));
        let sign = if of_model == "log_loss" { 1.0 } else { -1.0 };
        let metric = |loss: f64| if sign < 0.0 { 1.0 - loss } else { loss };
        // The judge compares with the trained model.
        assert!((metric(exact) - number(&found[of_model])).abs() < 1e-6, "{args:?} {judged}");
        assert!(increase <= most, "{args:?}: {judged}");

        ttrec!["convert", &best, "--spec", &spec, "-o", &blob].exits(0);
        assert_eq!(fs::metadata(&blob).unwrap().len(), plan["bytes"].as_u64().unwrap());
        let [auc, log_loss] = of_samples(&samples, &blob);
        let measured = match of_model {
            "auc" => auc,
            "log_loss" => log_loss,
            _ => planted.counted(&run, &blob)[2],
        };
        let said = metric(exact + increase);
        assert!((measured - said).abs() < 1e-6, "{args:?}: {measured}, the plan says {said}");
        // Of all that was measured, nothing smaller is within the limit.
        let choices = judged["choices"].as_array().unwrap();
        assert!(choices.len() > 5, "{judged}");
        assert!(choices.iter().any(|choice| number(&choice["increase"]) > most), "{judged}");
        for choice in choices.iter().filter(|choice| number(&choice["increase"]) <= most) {
            assert!(choice["bytes"].as_u64() >= plan["bytes"].as_u64(), "{judged}");
        }
        assert!(plan["bytes"].as_u64() < plan["f32_bytes"].as_u64(), "{plan}");
    }

    // With a budget alone, the loss is only measured.
    let text = ttrec![
        "plan",
        &best,
        "--judge",
        "auc",
        "--budget",
        "60%",
        "--data-dir",
        dir.path(""),
        "-o",
        dir.path("x.toml")
    ];
    text.exits(0).prints(["auc: 0.0", " than as f32\n"]);
    // A small budget and a small loss exclude each other.
    let run = ttrec![
        "plan",
        &best,
        "--max-auc-loss",
        "0.0001",
        "--budget",
        "7%",
        "--samples",
        &samples,
        "-o",
        dir.path("y.toml")
    ];
    run.exits(3).says(["best.safetensors: "]);
    assert!(!dir.path("y.toml").exists());
}

#[test]
fn a_model_without_layers_starts_from_another() {
    let planted = interactions();
    let first = planted.train("first", &planted.config("", false, "epochs = 3"));
    let init = "epochs = 1\ninit = \"first/best.safetensors\"";
    let config = planted.config("", false, init).replace("0.02", "1e-9");
    let second = planted.train("second", &config);
    let loss = |run: &Path| evaluated(&planted, run, &[])["log_loss"].as_f64().unwrap();
    assert!((loss(&first) - loss(&second)).abs() < 1e-6);
    // But not from a model with a layer.
    planted.train("first-layer", &planted.config("top = [1]", false, "epochs = 1"));
    let toml = planted.dir.file("third.toml", config.replace("first/", "first-layer/"));
    let run = ttrec!["train", &toml, "-o", planted.dir.path("third")].exits(3);
    run.says(["the layers have [(1, 1)]", "the model's have []"]);
}

#[test]
fn a_sweep_compares_what_is_stored() {
    let planted = interactions();
    let dir = &planted.dir;
    let config = planted.config("top = [1]", true, "epochs = 4");
    let run = planted.train("trained", &config);
    let best = run.join("best.safetensors");
    let samples = dir.path("samples.npz");
    evaluated(&planted, &run, &["--samples", samples.to_str().unwrap()]);

    let toml = dir.file(
        "stored.toml",
        config.clone() + "[sweep]\nseeds = [0]\nstored = [\"60%\", \"110%\", \"10B\"]\n",
    );
    let out = dir.path("stored");
    let first = ttrec!["sweep", &toml, "-o", &out].exits(0);
    let csv = fs::read(out.join("results.csv")).unwrap();
    let mut reader = csv::Reader::from_reader(&csv[..]);
    let names = reader.headers().unwrap().clone();
    let rows: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
    let value = |row: usize, name: &str| -> f64 {
        rows[row][names.iter().position(|other| other == name).unwrap()]
            .parse()
            .unwrap()
    };
    let tables: Vec<&str> = rows.iter().map(|row| &row[0]).collect();
    assert_eq!(tables, ["dense", "dense, stored in 60%", "dense, stored in 110%"]);
    for (row, budget) in [(1, "60%"), (2, "110%")] {
        let (spec, blob) = (dir.path("plan.toml"), dir.path("plan.ttr"));
        let plan = ttrec!["plan", &best, "--budget", budget, "-o", &spec, "--json"].exits(0).stdout;
        let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
        let bytes: u64 = plan["tables"]
            .as_array()
            .unwrap()
            .iter()
            .map(|t| t["bytes"].as_u64().unwrap())
            .sum();
        assert_eq!(value(row, "bytes"), bytes as f64);
        ttrec!["convert", &best, "--spec", &spec, "-o", &blob].exits(0);
        let [auc, log_loss] = of_samples(&samples, &blob);
        let recall = planted.counted(&run, &blob)[2];
        for (name, expected) in
            [("test_auc", auc), ("test_log_loss", log_loss), ("test_recall@20", recall)]
        {
            let found = value(row, name);
            assert!((found - expected).abs() < 1e-6, "{budget}: {name} {found}, {expected}");
        }
    }
    assert_ne!(value(0, "test_log_loss"), value(1, "test_log_loss"));
    let (printed, said) = (&first.stdout, &first.stderr);
    assert!(said.contains("dense, stored in 10B, seed 0: skipped: "), "{said}");

    let again = ttrec!["sweep", &toml, "-o", &out].exits(0);
    assert!(printed.ends_with(&again.stdout) && again.stdout.len() < printed.len(), "{printed}");
    assert_eq!(fs::read(out.join("results.csv")).unwrap(), csv);
    let toml = dir.file("nonsense.toml", config + "[sweep]\nseeds = [0]\nstored = [\"much\"]\n");
    ttrec!["sweep", &toml, "-o", &out]
        .exits(3)
        .says(["`stored` has \"much\": expected a size"]);
}

#[test]
fn nonsense_of_a_judge_is_refused() {
    let planted = interactions();
    let dir = &planted.dir;
    let run = planted.train("judge", &planted.config("", false, "epochs = 1"));
    let best = run.join("best.safetensors");
    let samples = dir.path("none.npz");
    let (index, offsets) = (|| vector(&[0u32]), || vector(&[0u32, 1]));
    let arrays = [
        ("indices_0", index()),
        ("offsets_0", offsets()),
        ("indices_1", index()),
        ("offsets_1", offsets()),
    ];
    write_npz(&samples, &arrays);
    let tables = dir.path("tables.safetensors");
    let rows = [0.5f32; 40];
    crate::support::write_safetensors(
        &tables,
        &[("emb", safetensors::Dtype::F32, &[10, 4], rows[..].bytes())],
    );
    let samples = samples.to_str().unwrap();
    for (checkpoint, args, says) in [
        (&tables, &["--max-auc-loss", "0.1", "--samples", samples][..], "has only tables"),
        (&best, &["--max-auc-loss", "0.1", "--samples", samples], "array \"label\" is missing"),
        (&best, &["--budget", "50%", "--samples", samples], "pass --judge METRIC"),
        (
            &best,
            &["--judge", "recall@20", "--max-loss", "0.1", "--samples", samples],
            "has no contexts",
        ),
        (&best, &["--max-auc-loss", "0.1", "--padding-idx", "1"], "are for --samples"),
    ] {
        let mut command = std::process::Command::new(crate::support::TTREC);
        command.arg("plan").arg(checkpoint).args(args).arg("-o").arg(dir.path("x.toml"));
        crate::support::run(command).exits(3).says([says]);
    }
    for args in [
        &["--max-auc-loss", "0"][..],
        &["--max-loss", "0.1"],
        &["--judge", "auc"],
        &["--max-auc-loss", "0.1", "--max-logloss-increase", "0.1"],
        &["--judge", "accuracy", "--max-loss", "0.1"],
    ] {
        let mut command = std::process::Command::new(crate::support::TTREC);
        command.arg("plan").arg(&best).args(args).arg("-o").arg(dir.path("x.toml"));
        crate::support::run(command).exits(2);
    }
    assert!(!dir.path("x.toml").exists());
}
