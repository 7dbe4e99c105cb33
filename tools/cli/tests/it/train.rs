//! Training, from files of examples to an evaluated model, with interruptions.

use crate::support::{Dir, TTREC, run, ttrec};
use safetensors::SafeTensors;
use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// SplitMix64 by position, from 0 up to 1.
fn uniform(seed: u64, position: u64) -> f64 {
    let z = seed
        .wrapping_mul(0xD134_2543_DE82_EF95)
        .wrapping_add(position.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ z >> 31) >> 11) as f64 / (1u64 << 53) as f64
}

const USERS: u64 = 150;
const ITEMS: u64 = 100;

/// Examples whose clicks follow from a user, an item and a number; returns the AUC of the true
/// odds.
fn plant(path: &Path, count: u64, seed: u64) -> f64 {
    let taste = |kind: u64, who: u64, k: u64| 2.0 * uniform(kind, who * 7 + k) - 1.0;
    let mut text = String::from("click,age,user,item\n");
    let mut odds = Vec::new();
    for at in 0..count {
        let draw = |field: u64| uniform(seed, at * 5 + field);
        let (user, item) =
            ((draw(0) * USERS as f64) as u64, (draw(1).powi(2) * ITEMS as f64) as u64);
        let age = draw(2) * 4.0 - 2.0;
        let liking: f64 = (0..3).map(|k| taste(1, user, k) * taste(2, item, k)).sum();
        let logit = 3.0 * liking + 1.2 * age;
        let click = draw(3) < 1.0 / (1.0 + (-logit).exp());
        odds.push((logit, click));
        writeln!(text, "{},{age:.3},u{user},i{item}", u8::from(click)).unwrap();
    }
    fs::write(path, text).unwrap();
    auc(&odds)
}

/// By counting all pairs.
fn auc(scored: &[(f64, bool)]) -> f64 {
    let of = |wanted: bool| {
        scored
            .iter()
            .filter(move |(_, click)| *click == wanted)
            .map(|(score, _)| *score)
    };
    let won: f64 = of(true)
        .map(|a| of(false).map(|b| f64::from(u8::from(a > b))).sum::<f64>())
        .sum();
    won / (of(true).count() * of(false).count()) as f64
}

const DATA: &str = r#"
[data]
format = "csv"
train = ["train.csv"]
test = ["test.csv"]
valid_fraction = 0.1
label = "click"
dense = ["age"]
categorical = ["user", "item"]
"#;

/// A config; `model` and `train` are lines of these sections.
fn config(model: &str, train: &str) -> String {
    format!(
        "{DATA}\n[model]\nembedding_dim = 8\nbottom = [16, 8]\ntop = [16, \
         1]\n{model}\n\n[train]\noptimizer = \"adam\"\nlearning_rate = 0.005\nbatch = 64\n{train}\n"
    )
}

/// A directory with planted examples, and the AUC that nothing exceeds but by luck.
fn planted(count: u64) -> (Dir, f64) {
    let dir = Dir::new();
    plant(&dir.path("train.csv"), count, 3);
    let best = plant(&dir.path("test.csv"), 3000, 4);
    (dir, best)
}

/// A number of what `ttrec eval --json` prints.
#[track_caller]
fn judged(checkpoint: &Path, data_dir: &Path, what: &str) -> f64 {
    let run = ttrec!["eval", checkpoint, "--data-dir", data_dir, "--json"].exits(0);
    let value: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    value[what].as_f64().unwrap()
}

#[test]
fn every_kind_of_table_learns_and_converts() {
    let (dir, possible) = planted(30_000);
    let root = dir.path("");
    assert!((0.8..0.9).contains(&possible), "{possible}");
    // Beside the AUC, what is least of it for half of it to be learned.
    for (name, table, least) in [
        ("dense", "{ representation = \"dense\" }", 0.78),
        ("tt", "{ representation = \"tt\", rank = 12, scale = 10.0 }", 0.78),
        (
            "tt-narrow",
            "{ representation = \"tt\", rank = 8, column_factors = [2, 1, 4], scale = 10.0 }",
            0.7,
        ),
        (
            "cached",
            "{ representation = \"tt\", rank = 4, cache = { rows = 40, warm_up = 50, refresh = \
             100 } }",
            0.7,
        ),
        ("hashed", "{ representation = \"hashed\", num_rows = 80 }", 0.7),
        (
            "hashed-tt",
            "{ representation = \"hashed-tt\", share = 0.9, rank = 8, scale = 10.0 }",
            0.7,
        ),
        (
            "qr",
            "{ representation = \"quotient-remainder\", num_remainders = 10, operation = \"add\" }",
            0.7,
        ),
        ("codes", "{ representation = \"codes\", books = 4, bits = 5, warm_up = 800 }", 0.7),
        (
            "auto",
            "{ representation = \"tt\", rank = \"auto\", budget = \"60%\", warm_up = 600, scale = \
             10.0 }",
            0.7,
        ),
        (
            "codes-i8",
            "{ representation = \"codes\", books = 4, bits = 5, warm_up = 600, recode_every = 100, \
             dtype = \"i8\" }",
            0.7,
        ),
        ("i8", "{ representation = \"tt\", rank = 12, scale = 10.0, dtype = \"i8\" }", 0.78),
        ("i4", "{ representation = \"dense\", dtype = \"i4\" }", 0.78),
        (
            "qr-i4",
            "{ representation = \"quotient-remainder\", num_remainders = 10, operation = \"add\", \
             dtype = \"i4\" }",
            0.7,
        ),
    ] {
        let text = config(&format!("table = {table}"), "epochs = 4");
        let toml = dir.file(&format!("{name}.toml"), text);
        let out = dir.path(name);
        let run = ttrec!["train", &toml, "-o", &out].exits(0).prints([
            "epoch 4: loss",
            "validation: AUC",
            "test: AUC",
        ]);
        let best = out.join("best.safetensors");
        let (auc, log_loss) = (judged(&best, &root, "auc"), judged(&best, &root, "log_loss"));
        assert!((least..possible + 0.005).contains(&auc), "{name}: {auc} of {possible}");
        assert!((0.3..0.65).contains(&log_loss), "{name}: {log_loss}");
        assert!((0.9..1.1).contains(&judged(&best, &root, "calibration")), "{name}");
        assert!(run.stdout.contains(&format!("test: AUC {auc:.5}")), "{name}: {}", run.stdout);

        // All of its tables, without a spec.
        let blob = dir.path(&format!("{name}.ttr"));
        let tables = ttrec!["convert", &best, "-o", &blob].exits(0);
        assert!(tables.stdout.contains("2 tables"), "{}", tables.stdout);
        let listed = ttrec!["inspect", &blob].exits(0).stdout;
        assert!(listed.contains("user") && listed.contains("item"), "{listed}");
        // The blob's ranker scores as the trainer does.
        let (samples, scores) = (dir.path("samples.npz"), dir.path("scores.npy"));
        ttrec!["eval", &best, "--data-dir", &root, "--samples", &samples].exits(0);
        ttrec!["score", &blob, "--batch", &samples, "-o", &scores].exits(0);
        let (found, wanted) =
            (crate::support::read_f32(&scores).1, &crate::support::read_npz(&samples)["prob"]);
        assert_eq!((found.len(), wanted.values.len()), (3000, 3000));
        for (sample, (found, wanted)) in found.iter().zip(&wanted.values).enumerate() {
            assert!(
                (f64::from(*found) - wanted).abs() <= 1e-6,
                "{name}, sample {sample}: {found} for {wanted}"
            );
        }
        // The blob has the type that was learned, so that storing it loses nothing.
        if let Some(dtype) = name.split('-').next_back().filter(|name| ["i8", "i4"].contains(name))
        {
            assert_eq!(listed.matches(&format!(" {dtype} ")).count(), 2, "{listed}");
            ttrec!["verify", &blob, "--against", &best, "--max-error", "1e-6"].exits(0);
        }
        if name == "auto" {
            // The ranks that it said, in the budget for both tables, of which they leave little.
            let found = run.stderr.lines().filter(|line| line.contains(": ranks ["));
            let bytes = |line: &str| -> u64 {
                let words: Vec<_> = line.split(' ').collect();
                words[words.len() - 2].parse().unwrap()
            };
            let (bytes, dense) = (found.map(bytes).collect::<Vec<_>>(), (151 + 101) * 8 * 4);
            let total: u64 = bytes.iter().sum();
            assert_eq!(bytes.len(), 2, "{}", run.stderr);
            assert!((dense / 2..=dense * 6 / 10).contains(&total), "{bytes:?} of {dense}");
            assert!(run.stdout.contains(&format!("tables of {total} bytes")), "{}", run.stdout);
            assert!(bytes.iter().all(|bytes| listed.contains(&bytes.to_string())), "{listed}");
        }
        if name == "codes" {
            assert_eq!(listed.matches("codes f32").count(), 2, "{listed}");
        }
        // The rows of the cache are overrides in the blob.
        if name == "cached" {
            assert!(listed.contains("64 overridden rows"), "{listed}");
        }
        // The cores stand in the order that is less work: the wide factor last.
        for (of, order) in [("tt", "least"), ("tt-narrow", "most")]
            .into_iter()
            .filter(|&(of, _)| of == name)
        {
            let orders = [("digit", order), ("column", "most")];
            let orders = orders
                .map(|(what, order)| format!("\"{what}_order\": \"{order}_significant_first\""));
            let json = ttrec!["inspect", &blob, "--json"].exits(0).prints(&orders).stdout;
            // The tensors say so to any spec.
            let table = &serde_json::from_str::<serde_json::Value>(&json).unwrap()["tables"][0];
            let spec = format!(
                "[[table]]\nname = {}\nprefix = \"emb_l.0.\"\nnum_embeddings = {}\ncolumn_factors \
                 = {}\n",
                table["name"], table["num_embeddings"], table["tt"]["column_factors"]
            );
            let one = dir.convert(&best, &spec, &format!("{of}-one.ttr"));
            ttrec!["inspect", &one, "--json"].exits(0).prints(&orders);
            ttrec!["verify", &one, "--against", &best].exits(0);
        }
        // And its frequencies suit them, where there is something to keep for them.
        if name == "tt" {
            let counts = out.join("frequencies.npz");
            ttrec![
                "cache",
                &blob,
                "--frequencies",
                counts,
                "--budget",
                "8KiB",
                "-o",
                dir.path("cached.ttr")
            ]
            .exits(0);
        }
    }
    let toml = dir.path("tt.toml");
    // With `--data` the result is the same, because the files are the same.
    let best = dir.path("tt/best.safetensors");
    let run = ttrec!["eval", &best, "--data-dir", &root, "--data", dir.path("test.csv")].exits(0);
    assert!(
        run.stdout.contains(&format!("AUC {:.5}", judged(&best, &root, "auc"))),
        "{}",
        run.stdout
    );
    // What is there is not written over by accident.
    ttrec!["train", &toml, "-o", dir.path("tt")]
        .exits(3)
        .says(["already exists", "--resume"]);
}

/// Everything that a finished run leaves.
fn left(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| !entry.file_name().to_string_lossy().ends_with(".part"))
        .map(|entry| {
            (entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path()).unwrap())
        })
        .collect();
    files.sort();
    files
}

#[test]
fn kill_9_at_any_moment_changes_nothing() {
    let (dir, _) = planted(6000);
    let decayed = "patience = 2\ndecay = 0.7";
    for (optimizer, table, options) in [
        (
            "adam",
            "{ representation = \"codes\", books = 4, bits = 4, combine = \"add\", warm_up = 100, \
             dtype = \"i8\" }\n[model.tables]\nitem = { representation = \"codes\", books = 2, \
             bits = 4, warm_up = 60, recode_every = 25 }",
            decayed,
        ),
        ("row-wise-adagrad", CACHED, decayed),
        (
            "adagrad",
            "{ representation = \"tt\", rank = \"auto\", budget = \"1500B\", warm_up = 110, \
             dtype = \"i8\" }",
            decayed,
        ),
        (
            "sgd",
            "{ representation = \"hashed\", num_rows = 50, dtype = \"i4\" }",
            "dropout = 0.2\nweight_decay = 0.01\nl2 = 0.01\nclip_norm = 0.1\nwarm_up = \
             50\nschedule = \"cosine\"\nlabel_smoothing = 0.1\nevaluate_every = 35\npatience = 50",
        ),
    ] {
        let train = format!("epochs = 3\ncheckpoint_every = 10\nseed = 9\n{options}");
        let text = config(&format!("table = {table}"), &train)
            .replace("\"adam\"", &format!("{optimizer:?}"));
        let toml = dir.file("config.toml", text);
        let whole = dir.path(&format!("{optimizer}-whole"));
        let started = Instant::now();
        ttrec!["train", &toml, "-o", &whole].exits(0);
        let whole_time = started.elapsed();
        let expected = left(&whole);
        assert_eq!(
            expected.len(),
            6,
            "{:?}",
            expected.iter().map(|(name, _)| name).collect::<Vec<_>>()
        );

        // Delays that differ, so that kills come while it reads, learns, judges and writes.
        let (mut kills, mut midway) = (0, 0);
        let broken = dir.path(&format!("{optimizer}-broken"));
        let command = || {
            let mut command = Command::new(TTREC);
            command.args(["train", "--resume", "-o"]).arg(&broken).arg(&toml);
            command.stdout(Stdio::null()).stderr(Stdio::null());
            command
        };
        for attempt in 0..12u64 {
            let mut child = command().spawn().unwrap();
            let delay = whole_time.mul_f64(0.05 + 0.35 * uniform(11, attempt));
            thread::sleep(delay + Duration::from_millis(3));
            // On a busy machine all delays may be too short for a checkpoint.
            while attempt == 0
                && !broken.join("checkpoint.safetensors").exists()
                && child.try_wait().unwrap().is_none()
            {
                thread::sleep(Duration::from_millis(1));
            }
            if child.try_wait().unwrap().is_some() {
                break;
            }
            child.kill().unwrap();
            child.wait().unwrap();
            kills += 1;
            midway += u32::from(broken.join("checkpoint.safetensors").exists());
        }
        let status = command().status().unwrap();
        assert!(status.success(), "{status}");
        eprintln!("{optimizer}: {kills} kills, {midway} of them with a checkpoint to go on from");
        assert!(midway > 0, "no kill came between the first checkpoint and the end");
        for ((name, found), (expected_name, expected)) in left(&broken).iter().zip(&expected) {
            assert_eq!(name, expected_name);
            assert!(found == expected, "{optimizer}: {name} differs");
        }
    }
}

/// Rows enter the cache, and soon others take their places.
const CACHED: &str =
    "{ representation = \"tt\", rank = 4, cache = { share = 0.2, warm_up = 20, refresh = 15 } }";

/// The integers of a tensor.
fn integers(bytes: &[u8]) -> Vec<i64> {
    bytes
        .chunks_exact(8)
        .map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap()))
        .collect()
}

#[test]
fn a_checkpoint_has_the_cache_as_fbtt_has_it() {
    let (dir, _) = planted(3000);
    let toml = dir.file("a.toml", config(&format!("table = {CACHED}"), "epochs = 1"));
    ttrec!["train", &toml, "-o", dir.path("a")].exits(0);
    let checkpoint = dir.path("a/checkpoint.safetensors");
    let all = tensors(&checkpoint);
    let find = |name: &str| {
        &all.iter()
            .find(|(found, _)| found == name)
            .unwrap_or_else(|| panic!("{name}"))
            .1
    };
    let rows = integers(find("emb_l.1.hashtbl"));
    // 20 of 101 items, in one set of 32 places.
    assert_eq!((rows.len(), find("emb_l.1.cache_weight").len()), (32, 32 * 8 * 4));
    let held: Vec<i64> = rows.iter().copied().filter(|&row| row >= 0).collect();
    assert!(held.len() > 20 && held.iter().all(|&row| row < 101), "{rows:?}");
    for (place, (row, state)) in rows.iter().zip(integers(find("emb_l.1.cache_state"))).enumerate()
    {
        assert_eq!(state, if *row < 0 { -1 } else { place as i64 });
    }
    // Its optimiser's state and its counts are there too, and needed.
    for name in ["emb_l.1.cache_weight.0", "emb_l.1.cache_weight.1", "emb_l.1.counters"] {
        assert!(find(&format!("opt_state_dict.{name}")).iter().any(|&byte| byte != 0), "{name}");
    }

    // The blob has those rows, and none of them is lost: it is compared with the checkpoint row by
    // row.
    let blob = dir.path("a.ttr");
    ttrec!["convert", &checkpoint, "-o", &blob].exits(0);
    ttrec!["verify", &blob, "--against", &checkpoint].exits(0);
}

/// The tensors of a checkpoint, without what it says of how it was made.
pub(super) fn tensors(path: &Path) -> Vec<(String, Vec<u8>)> {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<_> = file
        .iter()
        .map(|(name, view)| (name.to_owned(), view.data().to_vec()))
        .collect();
    tensors.sort();
    tensors
}

#[test]
fn what_is_learned_depends_on_neither_threads_nor_where_it_stopped() {
    let (dir, _) = planted(3000);
    let with = |name: &str, train: &str| -> PathBuf {
        let toml = dir.file(
            &format!("{name}.toml"),
            config("table = { representation = \"tt\", rank = 4 }", train),
        );
        ttrec!["train", &toml, "-o", dir.path(name)].exits(0);
        dir.path(name).join("checkpoint.safetensors")
    };
    let expected = tensors(&with("one", "epochs = 2"));
    assert!(expected.len() > 20, "parameters and what Adam keeps");
    assert_eq!(tensors(&with("two", "epochs = 2\nthreads = 3\ncheckpoint_every = 7")), expected);
    assert_ne!(tensors(&with("other", "epochs = 2\nseed = 1")), expected);

    // One epoch, and then another.
    let first = with("longer", "epochs = 1");
    assert_ne!(tensors(&first), expected);
    ttrec!["train", dir.path("one.toml"), "-o", dir.path("longer"), "--resume"].exits(0);
    assert_eq!(tensors(&first), expected);
    // A cosine schedule depends on how many there are.
    let cosine = |epochs: &str| format!("schedule = \"cosine\"\nepochs = {epochs}");
    with("cosine", &cosine("1"));
    let toml = dir
        .file("cosine.toml", config("table = { representation = \"tt\", rank = 4 }", &cosine("2")));
    let run = ttrec!["train", &toml, "-o", dir.path("cosine"), "--resume"].exits(3);
    run.says(["another config", "`epochs` unless a cosine schedule depends on it"]);
    // But not with another model.
    let toml = dir
        .file("model.toml", config("table = { representation = \"tt\", rank = 5 }", "epochs = 3"));
    let run = ttrec!["train", &toml, "-o", dir.path("longer"), "--resume"].exits(3);
    run.says(["longer/checkpoint.safetensors", "another config"]);
    assert_eq!(tensors(&first), expected);
}

#[test]
fn learning_ends_when_it_no_longer_helps() {
    let (dir, _) = planted(1500);
    // Too few examples for so many parameters: the validation split soon gets worse.
    let toml = dir.file("a.toml", config("", "epochs = 60\npatience = 2").replace("0.005", "0.02"));
    let run = ttrec!["train", &toml, "-o", dir.path("a")].exits(0);
    let epochs = run.stdout.lines().filter(|line| line.contains(": loss ")).count();
    let best: usize = run.stdout.lines().find(|line| line.contains("tables of")).unwrap()[6..]
        .split(':')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert!(epochs < 60 && epochs == best + 2, "{epochs} epochs, the best {best}");
    let curves = fs::read_to_string(dir.path("a/curves.csv")).unwrap();
    assert_eq!(curves.lines().count(), epochs + 1);
    let losses: Vec<f64> = curves
        .lines()
        .skip(1)
        .map(|line| line.split(',').nth(4).unwrap().parse().unwrap())
        .collect();
    assert!(losses.iter().all(|loss| *loss >= losses[best - 1]), "{losses:?}, the best {best}");
    let picture = fs::read_to_string(dir.path("a/curves.svg")).unwrap();
    assert!(picture.starts_with("<svg") && picture.contains("log-loss") && picture.contains("AUC"));
}

/// The numbers of a column of `curves.csv`, without empty ones.
fn column(run: &Path, name: &str) -> Vec<f64> {
    let curves = fs::read_to_string(run.join("curves.csv")).unwrap();
    let at = curves
        .lines()
        .next()
        .unwrap()
        .split(',')
        .position(|other| other == name)
        .unwrap();
    let fields = curves.lines().skip(1).map(|line| line.split(',').nth(at).unwrap());
    fields
        .filter(|field| !field.is_empty())
        .map(|field| field.parse().unwrap())
        .collect()
}

#[test]
fn an_epochs_loss_is_of_all_its_steps() {
    let (dir, _) = planted(2000);
    let losses = |name: &str, every: &str| -> Vec<String> {
        let toml = dir.file(&format!("{name}.toml"), config("", &format!("epochs = 2\n{every}")));
        let run = ttrec!["train", &toml, "-o", dir.path(name)].exits(0);
        let lines = run.stdout.lines().filter(|line| line.contains(": loss "));
        lines.map(|line| line.split(',').next().unwrap().to_owned()).collect()
    };
    let whole = losses("whole", "checkpoint_every = 0");
    assert_eq!(whole.len(), 2);
    assert_eq!(losses("often", "checkpoint_every = 7"), whole);
    assert_eq!(losses("judged", "evaluate_every = 9"), whole);
}

#[test]
fn models_are_judged_within_an_epoch() {
    let (dir, _) = planted(3000);
    let text =
        config("", "epochs = 60\nevaluate_every = 10\npatience = 3").replace("0.005", "0.03");
    let toml = dir.file("a.toml", text);
    let run = ttrec!["train", &toml, "-o", dir.path("a")].exits(0);
    let lines = run.stdout.lines().filter(|line| line.contains(", step ")).count();
    let losses = column(&dir.path("a"), "valid_log_loss");
    assert_eq!(lines, losses.len(), "{}", run.stdout);
    let least = losses.iter().copied().fold(f64::INFINITY, f64::min);
    let best = losses.iter().position(|&loss| loss == least).unwrap();
    assert_eq!(losses.len(), best + 1 + 3, "{losses:?}");
    // The model that is kept is that of the best evaluation. Its data are found without help.
    let checkpoint = dir.path("a/best.safetensors");
    let mut command = Command::new(TTREC);
    command.arg("eval").arg(&checkpoint).args(["--split", "valid", "--json"]);
    let found = run_in(command, Path::new("/"));
    assert_eq!(found["log_loss"].as_f64(), Some(least));
    // A directory of runs and data can be moved.
    fs::create_dir(dir.path("moved")).unwrap();
    for name in ["a", "train.csv", "test.csv"] {
        fs::rename(dir.path(name), dir.path("moved").join(name)).unwrap();
    }
    let mut command = Command::new(TTREC);
    command.args(["eval", "moved/a/best.safetensors", "--split", "valid", "--json"]);
    assert_eq!(run_in(command, &dir.path(""))["log_loss"].as_f64(), Some(least));
}

/// What a command that runs in `directory` prints.
fn run_in(mut command: Command, directory: &Path) -> serde_json::Value {
    command.current_dir(directory);
    serde_json::from_str(&run(command).exits(0).stdout).unwrap()
}

#[test]
fn learning_rates_follow_their_schedule() {
    let (dir, _) = planted(1000);
    // 900 examples or so in steps of 64.
    let rates = |name: &str, options: &str| {
        let text = config("", &format!("epochs = 2\ncheckpoint_every = 1\n{options}"));
        let toml = dir.file(&format!("{name}.toml"), text);
        ttrec!["train", &toml, "-o", dir.path(name)].exits(0);
        column(&dir.path(name), "learning_rate")
    };
    let check = |found: Vec<f64>, expected: &dyn Fn(f64, f64) -> f64| {
        // The end of an epoch has a point of its own, with the rate of its last step.
        let steps = (found.len() / 2 - 1) as f64;
        for (at, found) in found.iter().enumerate() {
            let epoch = (at as f64 / (steps + 1.0)).floor();
            let step = (at as f64 - epoch).min(steps * (epoch + 1.0) - 1.0);
            let expected = 0.005 * expected(step, 2.0 * steps);
            assert!((found - expected).abs() < 1e-12, "{at}: {found} {expected}");
        }
    };
    check(rates("none", ""), &|_, _| 1.0);
    check(rates("rise", "warm_up = 20"), &|step, _| ((step + 1.0) / 20.0).min(1.0));
    check(rates("steps", "decay = 0.5\ndecay_every = 4"), &|step, _| {
        0.5f64.powi((step / 4.0) as i32)
    });
    let half = |share: f64| (1.0 + (std::f64::consts::PI * share.min(1.0)).cos()) / 2.0;
    check(rates("cosine", "schedule = \"cosine\""), &|step, all| half(step / all));
    check(rates("short", "schedule = \"cosine\"\ncosine_steps = 11"), &|step, _| half(step / 11.0));
    let decayed = rates("epochs", "decay = 0.5");
    assert_eq!((decayed[0], *decayed.last().unwrap()), (0.005, 0.0025));
}

#[test]
fn training_starts_from_another_checkpoint() {
    let (dir, _) = planted(12_000);
    let run = |name: &str, table: &str, train: &str| {
        let toml = dir.file(&format!("{name}.toml"), config(&format!("table = {table}"), train));
        let run = ttrec!["train", &toml, "-o", dir.path(name)].exits(0);
        (dir.path(name).join("best.safetensors"), run.stderr)
    };
    let loss = |path: &Path| judged(path, &dir.path(""), "log_loss");
    let (dense, _) = run("dense", "{ representation = \"dense\" }", "epochs = 6");
    let init = "init = \"dense/best.safetensors\"\nepochs = 1\nlearning_rate = 1e-9";
    let init = |more: &str| init.to_owned() + more;
    let strip = |text: String| text.replace("learning_rate = 0.005\n", "");
    let warm = |name: &str, table: &str, train: String| {
        let toml =
            dir.file(&format!("{name}.toml"), strip(config(&format!("table = {table}"), &train)));
        let run = ttrec!["train", &toml, "-o", dir.path(name)].exits(0);
        (dir.path(name).join("best.safetensors"), run.stderr)
    };
    // All of it, unchanged but for a step that is next to nothing.
    let (same, said) = warm("same", "{ representation = \"dense\" }", init(""));
    assert!(said.contains("took tables [\"user\", \"item\"] and 4 layers"), "{said}");
    assert!((loss(&same) - loss(&dense)).abs() < 1e-6, "{} {}", loss(&same), loss(&dense));
    // A factorisation of full rank has the same rows, and one of a low rank is near them.
    let full = "{ representation = \"tt\", cores = 2, rank = 99, column_factors = [4, 2] }";
    let (full, _) = warm("full", full, init(""));
    assert!((loss(&full) - loss(&dense)).abs() < 1e-5, "{} {}", loss(&full), loss(&dense));
    let low = "{ representation = \"tt\", rank = 6 }";
    let (near, _) = warm("near", low, init(""));
    let (cold, _) = run("cold", low, "epochs = 1");
    let (tuned, _) = warm("tuned", low, init("").replace("1e-9", "5e-3"));
    let losses = [loss(&dense), loss(&tuned), loss(&near), loss(&cold)];
    assert!(losses[1] < losses[2] && losses[1] < losses[3], "{losses:?}");
    let (hashed, _) = warm("hashed", "{ representation = \"hashed\", num_rows = 140 }", init(""));
    assert!(loss(&hashed) < losses[3] + 0.1);
    // With nearly as many entries as rows, codes lose little.
    let codes = "{ representation = \"codes\", books = 8, bits = 7 }";
    let (coded, _) = warm("coded", codes, init(""));
    assert!((loss(&coded) - loss(&dense)).abs() < 1e-2, "{} {}", loss(&coded), loss(&dense));
    // Ranks of the checkpoint's rows, without a warm-up.
    let auto = "{ representation = \"tt\", rank = \"auto\", budget = \"90%\" }";
    let (auto, said) = warm("auto", auto, init(""));
    assert!(said.contains("table \"item\": ranks ["), "{said}");
    assert!(loss(&auto) < losses[2], "{} {losses:?}", loss(&auto));
    // A run with the same tables gives its parameters, whatever they are.
    let qr = "{ representation = \"quotient-remainder\", num_remainders = 10 }";
    let (parts, _) = run("qr", qr, "epochs = 2");
    let from_qr = init("").replace("dense/", "qr/");
    let (again, _) = warm("qr-again", qr, from_qr);
    assert!((loss(&again) - loss(&parts)).abs() < 1e-6);
    // So does a run that learned the same tables in another type.
    let rounded = "{ representation = \"tt\", rank = 6, dtype = \"i8\" }";
    let (rounded, _) = warm("rounded", rounded, init("").replace("dense/", "cold/"));
    assert!((loss(&rounded) - losses[3]).abs() < 1e-3, "{} {losses:?}", loss(&rounded));
    let tt_again = warm("tt-again", low, init("").replace("dense/", "rounded/")).0;
    assert!((loss(&tt_again) - losses[3]).abs() < 1e-6, "{} {losses:?}", loss(&tt_again));
    // It is not read again when the run goes on.
    fs::remove_file(&dense).unwrap();
    ttrec!["train", dir.path("near.toml"), "-o", dir.path("near"), "--resume"].exits(0);

    let refused = |table: &str, more: &str, wanted: &[&str]| {
        let text = strip(config(&format!("table = {table}"), &init(more)));
        let text = text.replace("dense/best", "qr/best");
        let toml = dir.file("bad.toml", text);
        let run = ttrec!["train", &toml, "-o", dir.path("bad")].exits(3);
        run.says(wanted.iter().copied());
    };
    let other = qr.replace("10", "9");
    refused(&other, "", &["`init`", "\"user\"", "quotients and remainders are not found"]);
    let spec = dir.file(
        "spec.toml",
        "[[table]]\nname = \"x\"\nprefix = \"emb_l.0.\"\nqr_operation = \"mult\"\nnum_embeddings = \
         151\n",
    );
    refused(qr, &format!("\ninit_spec = {spec:?}"), &["has none of the tables", "\"user\""]);
    let text = strip(config("", &init(""))).replace("dense/best", "qr/best");
    let toml = dir.file("wide.toml", text.replace("[16, 8]", "[32, 8]"));
    ttrec!["train", &toml, "-o", dir.path("wide")]
        .exits(3)
        .says(["the layers have [(1, 16), ", "the model's have [(1, 32), "]);
    let text = strip(config("", &init(""))).replace("dense/best", "nowhere/best");
    let toml = dir.file("nowhere.toml", text);
    ttrec!["train", &toml, "-o", dir.path("nowhere")]
        .exits(3)
        .says(["`init`: ", "nowhere/best"]);
    assert!(left(&dir.path("nowhere")).is_empty(), "the data were read first");
    let toml = dir.file("spec-only.toml", config("", "init_spec = \"spec.toml\""));
    ttrec!["train", &toml, "-o", dir.path("spec")]
        .exits(3)
        .says(["there is no `init`"]);
}

#[cfg(unix)]
#[test]
fn a_full_disk_leaves_the_old_checkpoint() {
    let (dir, _) = planted(2000);
    let wide = |train: &str| {
        config("", train)
            .replace("embedding_dim = 8", "embedding_dim = 32")
            .replace("[16, 8]", "[16, 32]")
    };
    let (short, long) =
        (dir.file("short.toml", wide("epochs = 1")), dir.file("long.toml", wide("epochs = 2")));
    let out = dir.path("out");
    ttrec!["train", &short, "-o", &out].exits(0);
    let before = left(&out);
    let checkpoint = out.join("checkpoint.safetensors");
    // The curves fit into 32 KiB, the checkpoint does not.
    assert!(fs::metadata(&checkpoint).unwrap().len() > 64 << 10);
    let mut command = Command::new("sh");
    let script = r#"trap "" XFSZ; ulimit -f 64; exec "$TTREC" train "$LONG" -o "$OUT" --resume"#;
    command
        .arg("-c")
        .arg(script)
        .env("TTREC", TTREC)
        .env("LONG", &long)
        .env("OUT", &out);
    run(command).exits(4).says(["safetensors", "cannot write"]);
    for (name, bytes) in left(&out).iter().filter(|(name, _)| name.ends_with("safetensors")) {
        assert!(before.iter().any(|(old, old_bytes)| old == name && old_bytes == bytes), "{name}");
    }
    // And goes on once there is room.
    ttrec!["train", &long, "-o", &out, "--resume"].exits(0);
    ttrec!["train", &long, "-o", dir.path("whole")].exits(0);
    assert_eq!(tensors(&checkpoint), tensors(&dir.path("whole/checkpoint.safetensors")));
}

#[test]
fn mistakes_of_a_config_are_named() {
    let (dir, _) = planted(200);
    let good = config("", "epochs = 1");
    let refused = |text: String, wanted: &[&str]| {
        assert_ne!(text, good);
        let toml = dir.file("bad.toml", text);
        let run = ttrec!["train", &toml, "-o", dir.path("out")].exits(3);
        assert!(!dir.path("out/checkpoint.safetensors").exists());
        run.says(wanted.iter().copied());
    };
    let change = |from: &str, to: &str| good.replace(from, to);
    for (from, to, wanted) in [
        ("epochs = 1", "epoch = 1", &["bad.toml", "unknown field `epoch`"][..]),
        ("embedding_dim = 8", "", &["bad.toml", "missing field `embedding_dim`"]),
        (
            "embedding_dim = 8",
            "embedding_dim = 4294967291",
            &["`embedding_dim` is 4294967291", "1 to 65536"],
        ),
        ("\"csv\"", "\"xml\"", &["unknown variant `xml`", "`criteo`"]),
        ("\"adam\"", "\"adamw\"", &["unknown variant `adamw`", "`row-wise-adagrad`"]),
        ("0.005", "-1", &["`learning_rate` is -1: expected more than 0"]),
        ("0.005", "nan", &["`learning_rate` is NaN"]),
        ("batch = 64", "batch = 0", &["`batch` is 0"]),
        ("epochs = 1", "epochs = 0", &["`epochs` is 0"]),
        ("epochs = 1", "epochs = 1\nthreads = 0", &["`threads` is 0"]),
        ("valid_fraction = 0.1", "valid_fraction = 1.0", &["`valid_fraction` is 1"]),
        ("valid_fraction = 0.1", "valid_fraction = 0.1\nvalid = [\"test.csv\"]", &["are both set"]),
        ("\"item\"]", "\"itme\"]", &["train.csv: has no column \"itme\"", "\"item\""]),
        ("\"item\"]", "\"user\"]", &["column \"user\" occurs twice"]),
        (
            "\"item\"]",
            "{ name = \"item\", seperator = \"|\" }]",
            &["line 9", "unknown field `seperator`", "`separator`"],
        ),
        (
            "\"item\"]",
            "{ name = \"item\", pooling = \"max\" }]",
            &["line 9: `", "pooling = \"max\"`", "unknown variant `max`", "`mean`"],
        ),
        ("\"item\"]", "7]", &["line 9", "the name of a column, or a table"]),
        (
            "label =",
            "delimiter = \":::\"\nlabel =",
            &["`delimiter` is \":::\"", "one or two ASCII characters"],
        ),
        ("label =", "delimiter = 1\nlabel =", &["line 7: `delimiter = 1`"]),
        ("label =", "lable =", &["line 7", "unknown field `lable`", "`label`"]),
        ("format = \"csv\"\n", "", &["line 2", "missing field `format`"]),
        (
            "embedding_dim",
            "table = { rank = 4, core = 3, representation = \"tt\" }\nembedding_dim",
            &["line 12", "unknown field `core`", "`cores`"],
        ),
        ("train.csv", "trian.csv", &["trian.csv: cannot open"]),
        ("[16, 8]", "[16, 9]", &["[model]", "8 columns in table 0: expected 9"]),
        ("top = [16, 1]", "top = [16]", &["[model]", "16 outputs of the model: expected 1"]),
        (
            "[train]",
            "[model.tables]\nuzer = { representation = \"dense\" }\n[train]",
            &["names \"uzer\"", "\"user\""],
        ),
        ("[train]", "table = { representation = \"tt\" }\n[train]", &["missing field `rank`"]),
        (
            "[train]",
            "table = { representation = \"tt\", rank = 0 }\n[train]",
            &["\"user\"", "`rank` is 0"],
        ),
        (
            "[train]",
            "table = { representation = \"tt\", rank = 2, column_factors = [2, 2, 3] }\n[train]",
            &["\"user\"", "[2, 2, 3]", "8"],
        ),
        (
            "[train]",
            "table = { representation = \"tt\", rank = 2, cores = 9 }\n[train]",
            &["9 cores"],
        ),
        (
            "[train]",
            "table = { representation = \"tt\", rank = 2, cache = { warm_up = 9 } }\n[train]",
            &["`cache`", "set either `rows` or `share`"],
        ),
        (
            "[train]",
            "table = { representation = \"hashed\" }\n[train]",
            &["set exactly one of `num_rows`, `bytes` and `like_rank`"],
        ),
        (
            "[train]",
            "table = { representation = \"hashed\", bytes = 3 }\n[train]",
            &["3 bytes are less than one row"],
        ),
        (
            "[train]",
            "table = { representation = \"quotient-remainder\", bytes = 100 }\n[train]",
            &["3 rows fit"],
        ),
        ("[train]", "table = { representation = \"low\" }\n[train]", &["unknown variant `low`"]),
        (
            "[train]",
            "table = { representation = \"dense\", dtype = \"i7\" }\n[train]",
            &["unknown variant `i7`", "`i8`"],
        ),
        (
            "[train]",
            "table = { representation = \"tt\", rank = 2, dtype = \"i4\" }\n[train]",
            &["\"user\"", "`dtype` is \"i4\"", "f32, f16, bf16 or i8"],
        ),
        (
            "[train]",
            "table = { representation = \"codes\", books = 3 }\n[train]",
            &["\"user\"", "`books` is 3: it must divide the 8 columns"],
        ),
        (
            "[train]",
            "table = { representation = \"codes\", books = 4, bits = 3 }\n[train]",
            &["\"user\"", "`bits` is 3: expected 4 to 16"],
        ),
        (
            "[train]",
            "table = { representation = \"codes\", books = 4, dtype = \"i4\" }\n[train]",
            &["\"user\"", "`dtype` is \"i4\", which books cannot be", "f32, f16, bf16 or i8"],
        ),
        (
            "[train]",
            "table = { representation = \"codes\", books = 4, warm_up = 3 }\n[train]",
            &["\"user\"", "`warm_up` is 3 steps, but training has 3"],
        ),
        (
            "[train]",
            "table = { representation = \"codes\", books = 4, recode_every = 0 }\n[train]",
            &["recode_every = 0`", "nonzero"],
        ),
        (
            "[train]",
            "table = { representation = \"tt\", rank = \"some\" }\n[train]",
            &["rank = \"some\"", "expected a number or \"auto\""],
        ),
        (
            "[train]",
            "table = { representation = \"tt\", rank = -1 }\n[train]",
            &["rank = -1", "expected a number or \"auto\""],
        ),
        (
            "[train]",
            "table = { representation = \"tt\", rank = \"auto\", warm_up = 1 }\n[train]",
            &["\"user\"", "`rank` is \"auto\": set `budget`"],
        ),
        (
            "[train]",
            "table = { representation = \"tt\", rank = 4, budget = \"1%\" }\n[train]",
            &["\"user\"", "`budget` and `warm_up` are for `rank = \"auto\"`"],
        ),
        (
            "[train]",
            "table = { representation = \"tt\", rank = \"auto\", budget = \"tiny\" \
             }\n[train]",
            &["\"user\"", "`budget` is \"tiny\": expected a size above 0"],
        ),
        (
            "[train]",
            "table = { representation = \"tt\", rank = \"auto\", budget = \"1%\", \
             warm_up = 1 }\n[train]",
            &["with all ranks 1 the tables take 260"],
        ),
        (
            "[train]",
            "table = { representation = \"tt\", rank = \"auto\", budget = \"90%\" }\n[train]",
            &["without a `warm_up`", "set `warm_up`, or `init`"],
        ),
        (
            "[train]",
            "table = { representation = \"tt\", rank = \"auto\", budget = \"90%\", \
             warm_up = 3 }\n[train]",
            &["\"user\"", "`warm_up` is 3 steps, but training has 3"],
        ),
        (
            "[train]",
            "table = { representation = \"tt\", rank = \"auto\", budget = \"90%\", cache = { \
             rows = 9 } }\n[train]",
            &["\"user\"", "a table with a `cache`"],
        ),
        (
            "[train]",
            "table = { representation = \"tt\", rank = \"auto\", budget = \"90%\", warm_up = 1 \
             }\n[model.tables]\nuser = { representation = \"tt\", rank = \"auto\", budget = \
             \"80%\", warm_up = 1 }\n[train]",
            &["share one budget"],
        ),
        (
            "embedding_dim = 8",
            "embedding_dim = 7\ntable = { representation = \"dense\", dtype = \"i4\" }",
            &["`embedding_dim` is 7: expected an even number"],
        ),
        ("valid_fraction = 0.1", "max_bad_fraction = 2.0", &["`max_bad_fraction` is 2"]),
        ("label =", "weight = \"wait\"\nlabel =", &["train.csv: has no column \"wait\""]),
        ("epochs = 1", "loss = \"bpr\"", &["`loss` ranks an item", "the data have no items"]),
        ("epochs = 1", "loss = \"hinge\"", &["unknown variant `hinge`", "`softmax`"]),
        ("epochs = 1", "label_smoothing = 1.0", &["`label_smoothing` is 1: expected 0 to less"]),
        ("epochs = 1", "dropout = 1.0", &["`dropout` is out of range: expected 0 to less than 1"]),
        ("epochs = 1", "clip_norm = 0.0", &["`clip_norm` is out of range: expected more than 0"]),
        ("epochs = 1", "l2 = -1.0", &["`l2` is out of range: expected 0 or more, and finite"]),
        ("epochs = 1", "weight_decay = nan", &["`weight_decay` is out of range"]),
        (
            "bottom = [16, 8]\ntop = [16, 1]\n\n\n[train]",
            "bottom = [8]\ntop = [1]\n[train]\ndropout = 0.1",
            &["`dropout` is of hidden layers, but the model has none"],
        ),
        ("epochs = 1", "cosine_steps = 9", &["`cosine_steps` is for `schedule = \"cosine\"`"]),
        (
            "epochs = 1",
            "schedule = \"cosine\"\ndecay = 0.5",
            &["`schedule` is \"cosine\", which `decay`"],
        ),
        ("epochs = 1", "decay_every = 9", &["`decay_every` has nothing to do while `decay` is 1"]),
        ("epochs = 1", "decay_every = 0", &["line 21: `decay_every = 0`", "nonzero"]),
        ("epochs = 1", "patience = 0", &["`patience = 0`", "nonzero"]),
        (
            "dense = [\"age\"]\ncategorical",
            "standardize = true\ncategorical",
            &["`standardize` is true, but there are no `dense` columns"],
        ),
    ] {
        refused(change(from, to), wanted);
    }
    for key in ["patience", "evaluate_every"] {
        refused(
            change("valid_fraction = 0.1", "") + &format!("{key} = 1\n"),
            &[&format!("`{key}` needs a validation split")],
        );
    }
    // A rate that is too high is said to be one.
    let (toml, out) =
        (dir.file("high.toml", change("0.005", "1e30").replace("adam", "sgd")), dir.path("high"));
    ttrec!["train", &toml, "-o", &out]
        .exits(3)
        .says(["the loss is", "a smaller `learning_rate`"]);
    // What is no checkpoint of this kind, or is damaged, is refused.
    let run = ttrec!["eval", crate::support::golden("fbtt_d3.safetensors")].exits(3);
    run.says(["not a checkpoint of `ttrec train`"]);
}

#[test]
fn codes_of_a_checkpoint_that_are_no_entries_are_refused() {
    let (dir, _) = planted(2000);
    let codes = "{ representation = \"codes\", books = 4, bits = 4, warm_up = 9 }";
    let toml = dir.file("a.toml", config(&format!("table = {codes}"), "epochs = 1"));
    ttrec!["train", &toml, "-o", dir.path("a")].exits(0);
    let checkpoint = dir.path("a/checkpoint.safetensors");
    let good = fs::read(&checkpoint).unwrap();
    let at = {
        let file = SafeTensors::deserialize(&good).unwrap();
        let codes = file.tensor("emb_l.1.codes").unwrap();
        assert_eq!(codes.shape(), [101, 4]);
        assert!(codes.data().iter().all(|&code| code < 16));
        codes.data().as_ptr().addr() - good.as_ptr().addr()
    };
    let mut bad = good.clone();
    bad[at + 7] = 16;
    fs::write(&checkpoint, bad).unwrap();
    for command in ["eval", "convert"] {
        let out = dir.path("a.ttr");
        let run = match command {
            "eval" => ttrec!["eval", &checkpoint].exits(3),
            _ => ttrec!["convert", &checkpoint, "-o", &out].exits(3),
        };
        run.says(["a book has 16 entries"]);
    }
}

#[test]
fn bad_lines_are_told_and_too_many_end_it() {
    let (dir, _) = planted(3000);
    let mut text = fs::read_to_string(dir.path("train.csv")).unwrap();
    text.push_str("1,abc,u1,i1\n1,1\n");
    fs::write(dir.path("train.csv"), &text).unwrap();
    let toml = dir.file("a.toml", config("", "epochs = 1"));
    let run = ttrec!["train", &toml, "-o", dir.path("a")].exits(0);
    run.says([
        "skipped 2 of 3002 rows",
        "train.csv: line 3002: field 2 is \"abc\"",
        "line 3003: 2 fields, expected 4",
    ]);
    text.push_str("1,1\n1,1\n");
    fs::write(dir.path("train.csv"), &text).unwrap();
    let run = ttrec!["train", &toml, "-o", dir.path("b")].exits(3);
    run.says(["skipped 4 of 3004 rows", "max_bad_fraction"]);
}

#[test]
fn a_split_without_examples_is_an_error() {
    let (dir, _) = planted(300);
    dir.file("none.csv", "click,age,user,item\n");
    dir.file("bad.csv", "click,age,user,item\n7,1,u1,i1\n");
    let good = config("", "epochs = 2\npatience = 1");
    for (from, to, split) in [
        ("valid_fraction = 0.1", "valid = [\"none.csv\"]", "valid"),
        ("valid_fraction = 0.1", "valid_fraction = 1e-9", "valid"),
        ("test = [\"test.csv\"]", "test = [\"none.csv\"]", "test"),
        ("test = [\"test.csv\"]", "test = [\"bad.csv\"]\nmax_bad_fraction = 1", "test"),
    ] {
        let toml = dir.file("a.toml", good.replace(from, to));
        let wanted = format!("the {split} split has no examples");
        ttrec!["train", &toml, "-o", dir.path("a")].exits(3).says([&*wanted]);
        assert!(!dir.path("a/checkpoint.safetensors").exists());
    }

    let toml = dir.file("b.toml", &good);
    ttrec!["train", &toml, "-o", dir.path("b")].exits(0);
    let run = ttrec!["eval", dir.path("b/best.safetensors"), "--data", dir.path("none.csv")];
    run.exits(3).says(["the test split has no examples"]);

    let sweep = "[sweep]\nseeds = [1]\nrepresentations = [{ representation = \"dense\" }]\n";
    let text = config("", "epochs = 1") + sweep;
    let text = text
        .replace("valid_fraction = 0.1\n", "")
        .replace("test = [\"test.csv\"]\n", "");
    let toml = dir.file("sweep.toml", text);
    let run = ttrec!["sweep", &toml, "-o", dir.path("sweep")].exits(3);
    run.says(["set `test`, `valid` or `valid_fraction`"]);
}

#[test]
fn sorted_rows_are_shuffled_or_warned_of() {
    let (dir, _) = planted(6000);
    let text = fs::read_to_string(dir.path("train.csv")).unwrap();
    let (header, rows) = text.split_once('\n').unwrap();
    let mut rows: Vec<&str> = rows.lines().collect();
    rows.sort_by_key(|row| row.split(',').next().map(str::to_owned));
    dir.file("train.csv", format!("{header}\n{}\n", rows.join("\n")));
    let train = |name: &str, shuffle: &str| {
        let text = config("", "epochs = 3").replace("label =", &format!("{shuffle}\nlabel ="));
        let toml = dir.file(&format!("{name}.toml"), text);
        let run = ttrec!["train", &toml, "-o", dir.path(name)].exits(0);
        (judged(&dir.path(name).join("best.safetensors"), &dir.path(""), "auc"), run.stderr)
    };
    let (shuffled, stderr) = train("shuffled", "");
    assert!(!stderr.contains("warning"), "{stderr}");
    let (sorted, stderr) = train("sorted", "shuffle = false");
    assert!(stderr.contains("the training examples are sorted"), "{stderr}");
    assert!(shuffled > sorted + 0.02, "{shuffled} {sorted}");
}

#[test]
fn unknown_values_are_reported() {
    let (dir, _) = planted(3000);
    let toml = dir.file("a.toml", config("", "epochs = 1"));
    let run = ttrec!["train", &toml, "-o", dir.path("a")].exits(0);
    let run =
        run.prints(["valid: unknown values: user 0.00 %, item ", "test: unknown values: user "]);
    assert!(!run.stderr.contains("warning"), "{}", run.stderr);
    let text = fs::read_to_string(dir.path("test.csv")).unwrap();
    let (header, rows) = text.split_once('\n').unwrap();
    let strange = dir.file("strange.csv", format!("{header}\n{}", rows.replace(",u", ",U")));
    let best = dir.path("a/best.safetensors");
    let run = ttrec!["eval", &best, "--data", &strange].exits(0);
    run.prints(["test: unknown values: user 100.00 %, item 0"])
        .says(["100.0 % of the values of column \"user\" in the test split are unknown"]);
    let run = ttrec!["eval", &best, "--data", &strange, "--json"].exits(0);
    let value: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(value["unknown"]["user"], 1.0);
}

#[test]
fn a_column_that_shares_a_table_is_trained_converted_and_scored() {
    let dir = Dir::new();
    // A click means that the item was viewed.
    let line = |at: u32| {
        let item = |k: u64| (12.0 * uniform(7 + k, at.into())) as u32;
        let viewed = [item(1), item(2), item(3)];
        let clicked = u32::from(viewed.contains(&item(0)));
        let viewed = viewed.map(|item| format!("i{item}")).join("|");
        format!("{clicked},i{},{viewed},u{}\n", item(0), at % 5)
    };
    let lines = |range: std::ops::Range<u32>| range.map(line).collect::<String>();
    for (name, range) in [("train.csv", 0..6000), ("test.csv", 6000..7000)] {
        dir.file(name, format!("click,item,viewed,user\n{}", lines(range)));
    }
    let toml = r#"
[data]
format = "csv"
train = ["train.csv"]
test = ["test.csv"]
label = "click"
valid_fraction = 0.1
categorical = ["user", { name = "viewed", separator = "|", table = "item" }, "item"]

[model]
embedding_dim = 8
top = [1]

[model.tables]
item = { representation = "tt", rank = 8, dtype = "i8" }

[train]
optimizer = "adam"
learning_rate = 0.02
epochs = 4
"#;
    let (toml, run) = (dir.file("a.toml", toml), dir.path("run"));
    ttrec!["train", &toml, "-o", &run].exits(0);
    let (best, blob) = (run.join("best.safetensors"), dir.path("a.ttr"));
    ttrec!["convert", &best, "-o", &blob].exits(0);
    ttrec!["inspect", &blob].exits(0).prints(["item"]);
    let (samples, scores) = (dir.path("samples.npz"), dir.path("scores.npy"));
    let eval = ttrec!["eval", &best, "--samples", &samples, "--json"].exits(0);
    let found: serde_json::Value = serde_json::from_str(&eval.stdout).unwrap();
    assert!(found["auc"].as_f64().unwrap() > 0.95, "{found}");
    let vocabulary = run.join("vocabulary.csv");
    let (data, of) = (dir.path("test.csv"), "--vocabulary");
    ttrec!["score", &blob, "--data", &data, of, &vocabulary, "-o", &scores].exits(0);
    let wanted = &crate::support::read_npz(&samples)["prob"].values;
    let found = crate::support::read_f32(&scores).1;
    assert_eq!((found.len(), wanted.len()), (1000, 1000));
    for (found, wanted) in found.iter().zip(wanted) {
        assert!((f64::from(*found) - wanted).abs() < 1e-6, "{found} {wanted}");
    }
    // The blob has two tables, and its model three features.
    let names: Vec<String> = tensors(&best).into_iter().map(|(name, _)| name).collect();
    assert!(names.contains(&"emb_l.1.tt_cores.0".to_owned()), "{names:?}");
    assert!(names.iter().all(|name| !name.starts_with("emb_l.2")), "{names:?}");
}

#[test]
fn rows_are_scored_as_training_encoded_them() {
    let (dir, _) = planted(3000);
    let data = DATA.replace("\"item\"]", "{ name = \"item\", hash_rows = 50 }]");
    let text = config("", "epochs = 1").replace(DATA, &data);
    let toml = dir.file("a.toml", text.replace("[model]", "log1p = true\n[model]"));
    let run = dir.path("run");
    ttrec!["train", &toml, "-o", &run].exits(0);
    let (best, blob) = (run.join("best.safetensors"), dir.path("a.ttr"));
    ttrec!["convert", &best, "-o", &blob].exits(0);
    let (samples, scores) = (dir.path("samples.npz"), dir.path("scores.npy"));
    ttrec!["eval", &best, "--data-dir", dir.path(""), "--samples", &samples].exits(0);
    let wanted = &crate::support::read_npz(&samples)["prob"].values;

    // The same rows in two files, without labels, and with other columns.
    let text = fs::read_to_string(dir.path("test.csv")).unwrap();
    let row = |line: &str| {
        let fields: Vec<&str> = line.split(',').collect();
        format!("{},{},other,{}\n", fields[3], fields[1], fields[2])
    };
    let rows: Vec<String> = text.lines().skip(1).map(row).collect();
    for (name, rows) in [("rows/1.csv", &rows[..1000]), ("rows/2.csv", &rows[1000..])] {
        fs::create_dir_all(dir.path("rows")).unwrap();
        dir.file(name, format!("item,age,note,user\n{}", rows.concat()));
    }
    let vocabulary = run.join("vocabulary.csv");
    let score = |data: &Path, vocabulary: &Path| {
        ttrec!["score", &blob, "--data", data, "--vocabulary", vocabulary, "-o", &scores]
    };
    score(&dir.path("rows"), &vocabulary)
        .exits(0)
        .prints(["data: unknown values: user ", "scores.npy: 3000 float32"]);
    let found = crate::support::read_f32(&scores).1;
    assert_eq!((found.len(), wanted.len()), (3000, 3000));
    let differs = |(found, wanted): (&f32, &f64)| (f64::from(*found) - wanted).abs() > 1e-6;
    assert!(!found.iter().zip(wanted).any(differs));
    ttrec!["eval", &best, "--data", dir.path("rows"), "--samples", &samples]
        .exits(0)
        .prints(["test: 3000 examples without labels"]);
    let arrays = crate::support::read_npz(&samples);
    assert!(arrays["prob"].values == *wanted && !arrays.contains_key("label"));

    let mixed = dir.file("mixed.csv", "item,age,user,click\ni1,1,u1,1\ni1,1,u1,\n");
    let unwritten = dir.path("mixed.npz");
    ttrec!["eval", &best, "--data", &mixed, "--samples", &unwritten]
        .exits(3)
        .says(["1 of 2 rows have a label: expected all or none"]);
    assert!(!unwritten.exists());

    let strange = dir.file("strange.csv", "item,age,user\ni1,1,U1\n");
    score(&strange, &vocabulary)
        .exits(0)
        .says(["100.0 % of the values of column \"user\" in the data are unknown"]);
    // No row is left out, because each needs a score.
    let bad = dir.file("bad.csv", "item,age,user\ni1,1,u1\ni1,x,u1\n");
    fs::remove_file(&scores).unwrap();
    score(&bad, &vocabulary).exits(3).says(["bad.csv: line 3: field 2 is \"x\""]);
    let none = dir.file("none.csv", "item,age,user\n");
    score(&none, &vocabulary).exits(3).says(["none.csv: has no rows"]);
    let short = dir.file("short.csv", "age,user\n1,u1\n");
    score(&short, &vocabulary).exits(3).says(["short.csv: has no column \"item\""]);
    let alone = dir.file("vocabulary.csv", fs::read(&vocabulary).unwrap());
    score(&bad, &alone).exits(3).says(["checkpoint.safetensors"]);
    plant(&dir.path("train.csv"), 300, 9);
    ttrec!["train", &toml, "-o", dir.path("other")].exits(0);
    score(&bad, &dir.path("other/vocabulary.csv"))
        .exits(3)
        .says(["other/vocabulary.csv: has ", "the vocabulary of the blob's training run"]);

    let users = crate::support::vector(&[0u32, 1, 2, 3]);
    let arrays = ["train_user", "train_item", "test_user", "test_item"];
    crate::support::write_npz(&dir.path("x.npz"), &arrays.map(|name| (name, users.clone())));
    let toml = "[data]\nformat = \"interactions\"\npath = \"x.npz\"\n[model]\nembedding_dim = \
                4\n[train]\nlearning_rate = 0.1\n";
    ttrec!["train", dir.file("x.toml", toml), "-o", dir.path("x")].exits(0);
    score(&dir.path("x.npz"), &dir.path("x/vocabulary.csv"))
        .exits(3)
        .says(["x/vocabulary.csv: is of interactions", "--batch"]);
    assert!(!scores.exists());
}

#[test]
fn one_column_is_too_few() {
    let (dir, _) = planted(300);
    let text = config("", "epochs = 1")
        .replace("[\"user\", \"item\"]", "[\"user\"]")
        .replace("dense = [\"age\"]", "")
        .replace("bottom = [16, 8]", "");
    let toml = dir.file("a.toml", text);
    let run = ttrec!["train", &toml, "-o", dir.path("a")].exits(3);
    run.says(["at least two columns", "`categorical` or `dense`"]);
}

#[test]
fn a_sweep_tunes_each_representation_and_runs_nothing_twice() {
    let (dir, possible) = planted(8000);
    let sweep = r#"
[sweep]
seeds = [1, 2]
learning_rates = [0.0001, 0.01]
budget = "7000"
representations = [
    { representation = "dense" },
    { representation = "tt", rank = 4 },
    { representation = "tt", rank = "auto", budget = "3000B", warm_up = 120 },
]
"#;
    let toml = dir.file("sweep.toml", config("", "epochs = 3") + sweep);
    let out = dir.path("sweep");
    let first = ttrec!["sweep", &toml, "-o", &out].exits(0).says(["dense", "exceed the budget"]);
    // Two rates with one seed, and the better one with the other.
    assert_eq!(first.stdout.matches("learning rate 0.0001, seed 1").count(), 2);
    assert_eq!(first.stdout.matches("learning rate 0.01, seed 2").count(), 2);
    assert_eq!(first.stdout.matches(", seed ").count(), 6);
    let (csv, table) = (
        fs::read(out.join("results.csv")).unwrap(),
        fs::read_to_string(out.join("results.md")).unwrap(),
    );
    assert!(first.stdout.ends_with(&table) && table.contains("± "), "{table}");
    assert!(
        table.lines().count() == 5
            && table.contains("| tt rank 4 |")
            && table.contains("| dense | skipped: 8064 bytes exceed the budget of 7000 |")
            && table.contains("0.01 (at the edge)"),
        "{table}"
    );
    let text = String::from_utf8(csv.clone()).unwrap();
    assert_eq!(text.lines().count(), 7, "{text}");
    let field = |line: &str, name: &str| -> f64 {
        let at = text.lines().next().unwrap().split(',').position(|other| other == name).unwrap();
        line.split(',').nth(at).unwrap().parse().unwrap()
    };
    for line in text.lines().skip(1) {
        assert!((0.4..possible).contains(&field(line, "test_auc")), "{line}");
        let most = if line.contains("auto") { 3000.0 } else { 7000.0 };
        assert!(field(line, "bytes") <= most, "{line}");
    }
    assert!(fs::read_to_string(out.join("results.svg")).unwrap().contains("tt, rank auto"));

    // Again: nothing is left to do. And with a run taken away, that one.
    let again = ttrec!["sweep", &toml, "-o", &out].exits(0);
    assert_eq!(again.stdout, table);
    fs::remove_file(out.join("tt-rank-4-rate-0.01-seed-2/result.json")).unwrap();
    let again = ttrec!["sweep", &toml, "-o", &out].exits(0);
    assert_eq!(again.stdout.matches(", seed ").count(), 1);
    assert!(fs::read(out.join("results.csv")).unwrap() == csv);
}

#[test]
fn a_sweep_goes_on_past_what_cannot_be_trained() {
    let (dir, _) = planted(1000);
    let sweep = r#"
[sweep]
seeds = [1, 2]
learning_rates = [0.003, 0.01, 1e30]
representations = [
    { representation = "tt", rank = 4, column_factors = [2, 2, 3] },
    { representation = "hashed", num_rows = 9 },
    { representation = "quotient-remainder", bytes = 100 },
]
"#;
    let text = config("", "epochs = 1").replace("\"adam\"", "\"sgd\"") + sweep;
    let toml = dir.file("sweep.toml", &text);
    let out = dir.path("sweep");
    let run = ttrec!["sweep", &toml, "-o", &out].exits(0);
    let first_run = run.stdout.find(", seed ").unwrap();
    let table = fs::read_to_string(out.join("results.md")).unwrap();
    assert!(run.stdout.ends_with(&table) && run.stdout.len() > table.len() + first_run);
    for (name, reason) in [
        ("tt column_factors [2, 2, 3] rank 4", "table \"user\": the product of `column_factors`"),
        (&*format!("hashed num_rows 9, learning rate {}, seed 1", 1e30), "the loss is "),
        ("quotient-remainder bytes 100", "table \"user\": 3 rows fit"),
    ] {
        assert!(run.stderr.contains(&format!("{name}: skipped: {reason}")), "{}", run.stderr);
        assert!(table.contains(&format!("| {name} | skipped: {reason}")), "{table}");
    }
    assert!(table.contains("| hashed num_rows 9 | 576 |"), "{table}");
    // A larger rate was tried: the chosen one is not at the edge.
    assert!(table.contains("| 0.01 |"), "{table}");
    // Representations are checked before the first run.
    assert!(run.stderr.find("quotient").unwrap() < run.stderr.find("hashed").unwrap());

    let none = text.replace("{ representation = \"hashed\", num_rows = 9 },", "");
    let toml = dir.file("none.toml", none);
    ttrec!["sweep", &toml, "-o", dir.path("none")]
        .exits(3)
        .says(["none.toml: no representation can be trained: tt column_factors [2, 2, 3] rank 4"]);
}
