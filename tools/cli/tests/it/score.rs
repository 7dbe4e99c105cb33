//! Whole models: DLRM's checkpoints score as DLRM has scored them, and one user's candidates rank
//! by these scores.

use crate::support::{
    Array, Dir, Elements, golden, npy, read_f32, read_npz, ttrec, vector, write_npz,
    write_safetensors,
};
use safetensors::Dtype::F32;
use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
};

/// The tensors of `dlrm_plain.pt`, in the order of their storages.
const PLAIN: [(&str, [usize; 2]); 14] = [
    ("emb_l.0.weight", [5000, 16]),
    ("emb_l.1.weight", [1200, 16]),
    ("emb_l.2.weight", [300, 16]),
    ("emb_l.3.weight", [40, 16]),
    ("bot_l.0.weight", [64, 13]),
    ("bot_l.0.bias", [64, 0]),
    ("bot_l.2.weight", [16, 64]),
    ("bot_l.2.bias", [16, 0]),
    ("top_l.0.weight", [64, 26]),
    ("top_l.0.bias", [64, 0]),
    ("top_l.2.weight", [32, 64]),
    ("top_l.2.bias", [32, 0]),
    ("top_l.4.weight", [1, 32]),
    ("top_l.4.bias", [1, 0]),
];

/// Storage `number` of a golden checkpoint, which stores whole tensors one by one.
fn stored(checkpoint: &str, number: usize) -> Vec<f32> {
    let mut archive =
        zip::ZipArchive::new(fs::File::open(golden(&format!("{checkpoint}.pt"))).unwrap()).unwrap();
    let mut bytes = Vec::new();
    archive
        .by_name(&format!("{checkpoint}/data/{number}"))
        .unwrap()
        .read_to_end(&mut bytes)
        .unwrap();
    bytes.as_chunks::<4>().0.iter().map(|&x| f32::from_le_bytes(x)).collect()
}

/// The tensors of `dlrm_plain.pt`, renamed.
fn write_plain(
    path: &Path,
    rename: impl Fn(&str) -> String,
    change: impl Fn(&str, Vec<f32>) -> Vec<f32>,
) {
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = PLAIN
        .iter()
        .enumerate()
        .map(|(number, &(name, shape))| {
            let shape: Vec<usize> = shape.into_iter().filter(|&n| n > 0).collect();
            (rename(name), shape, change(name, stored("dlrm_plain", number))[..].bytes())
        })
        .collect();
    let views: Vec<_> = tensors
        .iter()
        .map(|(name, shape, bytes)| (name.as_str(), F32, &shape[..], bytes.clone()))
        .collect();
    write_safetensors(path, &views);
}

fn convert(dir: &Dir, checkpoint: &Path, more: &[&str]) -> PathBuf {
    let blob = dir.path("model.ttr");
    let mut command = std::process::Command::new(crate::support::TTREC);
    command.arg("convert").arg(checkpoint).args(more).arg("-o").arg(&blob);
    crate::support::run(command).exits(0).prints(["and a model"]);
    blob
}

fn score(dir: &Dir, blob: &Path, batch: &Path, logits: bool) -> Vec<f32> {
    let out = dir.path("scores.npy");
    if logits {
        ttrec!["score", blob, "--batch", batch, "--logits", "-o", &out].exits(0);
    } else {
        ttrec!["score", blob, "--batch", batch, "-o", &out].exits(0);
    }
    let (shape, values) = read_f32(&out);
    assert_eq!(shape, [values.len() as u64]);
    values
}

#[test]
fn dlrm_checkpoints_score_as_dlrm_does() {
    for (name, more) in [
        ("dlrm_plain", &[][..]),
        ("dlrm_qr", &["--qr-operation", "mult"]),
        ("dlrm_qradd", &["--qr-operation", "add"]),
    ] {
        let dir = Dir::new();
        let blob = convert(&dir, &golden(&format!("{name}.pt")), more);
        let batch = golden(&format!("{name}.expected.npz"));
        let expected = read_npz(&batch);
        let found = score(&dir, &blob, &batch, true);
        assert_eq!(found.len(), 50);
        for (sample, (&found, &expected)) in found.iter().zip(&expected["logit"].values).enumerate()
        {
            let error = (f64::from(found) - expected).abs();
            assert!(
                error <= 1e-5 * expected.abs(),
                "{name} sample {sample}: {found} for {expected}"
            );
        }
        for (&found, &expected) in
            score(&dir, &blob, &batch, false).iter().zip(&expected["prob"].values)
        {
            assert!((f64::from(found) - expected).abs() <= 1e-6, "{name}: {found} for {expected}");
        }
        let checkpoint = golden(&format!("{name}.pt"));
        ttrec!["verify", &blob, "--against", checkpoint]
            .exits(0)
            .prints(["top_l.4.weight: 32 x 1", "within"]);
        ttrec!["inspect", &blob].exits(0).prints([
            "13 dense features",
            "4 tables x 16",
            "sigmoid",
            "emb_l.3",
        ]);
    }
}

/// A matrix as `torch.nn.Linear` and `torch.nn.EmbeddingBag` store it.
struct Matrix {
    columns: usize,
    values: Vec<f64>,
}

impl Matrix {
    fn stored(number: usize, columns: usize) -> Self {
        Self { columns, values: stored("dlrm_md", number).into_iter().map(f64::from).collect() }
    }

    fn row(&self, row: usize) -> &[f64] {
        &self.values[row * self.columns..][..self.columns]
    }

    /// This matrix times a vector.
    fn times(&self, x: &[f64]) -> Vec<f64> {
        self.values
            .chunks(self.columns)
            .map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum())
            .collect()
    }
}

/// `dlrm_s_pytorch.py`, `DLRM_Net.sequential_forward` with `PrEmbeddingBag`s, in f64.
fn mixed_dimension_logit(dense: &[f64], bags: &[Vec<usize>]) -> f64 {
    let linear = |number: usize, columns: usize, x: &[f64], relu: bool| -> Vec<f64> {
        let bias = Matrix::stored(number + 1, 1);
        let sums = Matrix::stored(number, columns)
            .times(x)
            .into_iter()
            .zip(bias.values)
            .map(|(x, b)| x + b);
        sums.map(|x| if relu { x.max(0.0) } else { x }).collect()
    };
    let x = linear(8, 64, &linear(6, 13, dense, true), true);
    let mut vectors = vec![x.clone()];
    for (table, bag) in bags.iter().enumerate() {
        let (rows, projection) = match table {
            0 | 1 => (Matrix::stored(2 * table, 8), Some(Matrix::stored(2 * table + 1, 8))),
            _ => (Matrix::stored(2 + table, 16), None),
        };
        let mut sum = vec![0.0; rows.columns];
        for &index in bag {
            sum.iter_mut().zip(rows.row(index)).for_each(|(sum, x)| *sum += x);
        }
        vectors.push(projection.map_or(sum.clone(), |projection| projection.times(&sum)));
    }
    let mut inputs = x;
    for i in 0..vectors.len() {
        inputs.extend(
            (0..i).map(|j| vectors[i].iter().zip(&vectors[j]).map(|(x, y)| x * y).sum::<f64>()),
        );
    }
    linear(14, 32, &linear(12, 64, &linear(10, 26, &inputs, true), true), false)[0]
}

#[test]
fn mixed_dimension_models_score_as_dlrm_defines_them() {
    let dir = Dir::new();
    let blob = convert(&dir, &golden("dlrm_md.pt"), &[]);
    let dense: Vec<f32> = (0..6 * 13).map(|i| ((i * 37) % 101) as f32 / 100.0).collect();
    let sizes = [5000, 1200, 300, 240];
    // Bags of 0 to 3.
    let bag = |sample: usize, table: usize| -> Vec<usize> {
        (0..(sample + table) % 4)
            .map(|k| (sample * 977 + table * 131 + k * 7919) % sizes[table])
            .collect()
    };
    let mut arrays = vec![("dense".to_owned(), npy("<f4", &[6, 13], &dense[..].bytes()))];
    for table in 0..4 {
        let bags: Vec<Vec<usize>> = (0..6).map(|sample| bag(sample, table)).collect();
        let indices: Vec<i64> = bags.iter().flatten().map(|&index| index as i64).collect();
        let offsets: Vec<i64> = (0..=6)
            .map(|end| bags[..end].iter().map(Vec::len).sum::<usize>() as i64)
            .collect();
        arrays.push((format!("indices_{table}"), vector(&indices)));
        arrays.push((format!("offsets_{table}"), vector(&offsets)));
    }
    let batch = dir.path("batch.npz");
    write_npz(
        &batch,
        &arrays
            .iter()
            .map(|(name, npy)| (name.as_str(), npy.clone()))
            .collect::<Vec<_>>(),
    );
    let found = score(&dir, &blob, &batch, true);
    for (sample, (&found, dense)) in found.iter().zip(dense.chunks(13)).enumerate() {
        let dense: Vec<f64> = dense.iter().map(|&x| x.into()).collect();
        let bags: Vec<_> = (0..4).map(|table| bag(sample, table)).collect();
        let expected = mixed_dimension_logit(&dense, &bags);
        assert!(
            (f64::from(found) - expected).abs() <= 1e-5 * expected.abs(),
            "{sample}: {found} for {expected}"
        );
    }
    assert_eq!(found.len(), 6);
}

#[test]
fn safetensors_of_dlrm_and_torchrec_names_score_the_same() {
    let dir = Dir::new();
    let batch = golden("dlrm_plain.expected.npz");
    let expected = score(&dir, &convert(&dir, &golden("dlrm_plain.pt"), &[]), &batch, true);

    let checkpoint = dir.path("dlrm.safetensors");
    write_plain(&checkpoint, str::to_owned, |_, values| values);
    assert_eq!(score(&dir, &convert(&dir, &checkpoint, &[]), &batch, true), expected);

    let rename = |name: &str| {
        let (path, key) = name.rsplit_once('.').unwrap();
        let path = match path {
            "bot_l.0" => "dense_arch.model._mlp.0._linear".to_owned(),
            "bot_l.2" => "dense_arch.model._mlp.1._linear".to_owned(),
            "top_l.0" => "over_arch.model.0._mlp.0._linear".to_owned(),
            "top_l.2" => "over_arch.model.0._mlp.1._linear".to_owned(),
            "top_l.4" => "over_arch.model.1".to_owned(),
            table => table
                .replace("emb_l.", "sparse_arch.embedding_bag_collection.embedding_bags.t_cat_"),
        };
        format!("model.{path}.{key}")
    };
    // TorchRec's pairs are (0, 1), (0, 2) .. (3, 4); DLRM's (1, 0), (2, 0), (2, 1) .. (4, 3).
    let upper: Vec<(usize, usize)> = (0..5).flat_map(|i| (i + 1..5).map(move |j| (i, j))).collect();
    let change = |name: &str, values: Vec<f32>| {
        if name != "top_l.0.weight" {
            return values;
        }
        let row = |row: &[f32]| -> Vec<f32> {
            let pairs = upper.iter().map(|&(i, j)| row[16 + j * (j - 1) / 2 + i]);
            row[..16].iter().copied().chain(pairs).collect()
        };
        values.chunks(26).flat_map(row).collect()
    };
    let checkpoint = dir.path("torchrec.safetensors");
    write_plain(&checkpoint, rename, change);
    assert_eq!(score(&dir, &convert(&dir, &checkpoint, &[]), &batch, true), expected);
}

#[test]
fn smaller_layers_and_tables_score_nearly_the_same() {
    let dir = Dir::new();
    let batch = golden("dlrm_plain.expected.npz");
    let exact = read_npz(&batch)["logit"].values.clone();
    let mut sizes = Vec::new();
    for (dtype, tolerance) in [("f32", 1e-5), ("f16", 2e-3), ("bf16", 2e-2), ("i8", 3e-2)] {
        let tables: String = (0..4)
            .map(|t| format!("[[table]]\nprefix = \"emb_l.{t}.\"\ndtype = \"f32\"\n"))
            .collect();
        let spec = format!("[model]\ndtype = \"{dtype}\"\n{tables}");
        let blob = dir.convert(&golden("dlrm_plain.pt"), &spec, &format!("{dtype}.ttr"));
        for (&found, expected) in score(&dir, &blob, &batch, true).iter().zip(&exact) {
            assert!(
                (f64::from(found) - expected).abs() <= tolerance * expected.abs(),
                "{dtype}: {found} for {expected}"
            );
        }
        ttrec!["verify", &blob, "--against", golden("dlrm_plain.pt")]
            .exits(0)
            .prints([format!("32 x 1, {dtype}")]);
        sizes.push(fs::metadata(blob).unwrap().len());
    }
    assert!(sizes[0] > sizes[1] && sizes[1] == sizes[2] && sizes[2] > sizes[3], "{sizes:?}");
}

#[test]
fn the_library_s_golden_model_is_what_convert_makes() {
    let dir = Dir::new();
    let spec = fs::read_to_string(golden("dlrm.toml")).unwrap();
    let blob = dir.convert(&golden("dlrm_qr.pt"), &spec, "dlrm.ttr");
    let kept =
        fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/dlrm.ttr")).unwrap();
    assert!(fs::read(blob).unwrap() == kept);
}

/// Sample `sample` of a batch: what `ttrec rank` takes of it, as arrays.
fn bags_of(
    batch: &std::collections::BTreeMap<String, Array>,
    table: usize,
    samples: std::ops::Range<usize>,
) -> [Vec<i64>; 2] {
    let integers =
        |name: &str| -> Vec<i64> { batch[name].values.iter().map(|&x| x as i64).collect() };
    let (indices, offsets) =
        (integers(&format!("indices_{table}")), integers(&format!("offsets_{table}")));
    let offsets = &offsets[samples.start..=samples.end];
    let (start, end) = (offsets[0], offsets[offsets.len() - 1]);
    [
        indices[start as usize..end as usize].to_vec(),
        offsets.iter().map(|offset| offset - start).collect(),
    ]
}

#[test]
fn candidates_rank_by_the_scores_of_a_batch() {
    let dir = Dir::new();
    let blob = convert(&dir, &golden("dlrm_plain.pt"), &[]);
    let batch = read_npz(&golden("dlrm_plain.expected.npz"));
    let dense: Vec<f32> = batch["dense"].values[..13].iter().map(|&x| x as f32).collect();
    // Tables 0 and 1 are the user's.
    let mut files =
        [vec![("dense".to_owned(), npy("<f4", &[1, 13], &dense[..].bytes()))], Vec::new()];
    let mut whole =
        vec![("dense".to_owned(), npy("<f4", &[50, 13], &dense.repeat(50)[..].bytes()))];
    for table in 0..4 {
        let user = table < 2;
        let [indices, offsets] = bags_of(&batch, table, if user { 2..3 } else { 0..50 });
        for (name, values) in [("indices", &indices), ("offsets", &offsets)] {
            files[usize::from(!user)].push((format!("{name}_{table}"), vector(values)));
        }
        let (indices, offsets) = if user {
            let len = indices.len() as i64;
            (indices.repeat(50), (0..=50).map(|i| i * len).collect())
        } else {
            (indices, offsets)
        };
        whole.push((format!("indices_{table}"), vector(&indices)));
        whole.push((format!("offsets_{table}"), vector(&offsets)));
    }
    let write = |name: &str, arrays: &[(String, Vec<u8>)]| {
        let path = dir.path(name);
        write_npz(
            &path,
            &arrays
                .iter()
                .map(|(name, npy)| (name.as_str(), npy.clone()))
                .collect::<Vec<_>>(),
        );
        path
    };
    let (user, candidates) = (write("user.npz", &files[0]), write("candidates.npz", &files[1]));
    let expected = score(&dir, &blob, &write("whole.npz", &whole), false);
    let out = dir.path("all.npy");
    let run = ttrec![
        "rank",
        &blob,
        "--user",
        &user,
        "--candidates",
        &candidates,
        "--top",
        "7",
        "-o",
        &out
    ]
    .exits(0);
    assert_eq!(read_f32(&out).1, expected);
    let mut order: Vec<usize> = (0..50).collect();
    order.sort_by(|&a, &b| expected[b].total_cmp(&expected[a]));
    let lines: Vec<String> =
        order[..7].iter().map(|&at| format!("{at} {}", expected[at])).collect();
    assert_eq!(run.stdout.lines().collect::<Vec<_>>(), lines);

    let refused = |user: &Path, candidates: &Path, says: &str| {
        ttrec!["rank", &blob, "--user", user, "--candidates", candidates]
            .exits(3)
            .says([says]);
    };
    refused(&user, &user, "both");
    let (no_dense, only_dense) =
        (write("no_dense.npz", &files[0][1..]), write("only_dense.npz", &files[0][..1]));
    refused(&no_dense, &candidates, "array \"dense\" is missing");
    refused(&only_dense, &candidates, "indices_0");
}

#[test]
fn inputs_that_do_not_fit_the_model_are_refused_by_name() {
    let dir = Dir::new();
    let blob = convert(&dir, &golden("dlrm_plain.pt"), &[]);
    let out = dir.path("scores.npy");
    let refused = |arrays: &[(&str, Vec<u8>)], says: &[&str]| {
        let batch = dir.path("batch.npz");
        write_npz(&batch, arrays);
        ttrec!["score", &blob, "--batch", &batch, "-o", &out].exits(3).says(says);
        assert!(!out.exists());
    };
    let dense = || npy("<f4", &[1, 13], &[0.5f32; 13][..].bytes());
    refused(
        &[("dense", npy("<f4", &[1, 12], &[0.5f32; 12][..].bytes()))],
        &["\"dense\"", "[1, 12]", "samples x 13"],
    );
    for (value, text) in [(f64::NAN, "NaN"), (f64::NEG_INFINITY, "-inf"), (1e300, "inf in f32")] {
        let mut dense = [0.5; 2 * 13];
        dense[13 + 4] = value;
        refused(
            &[("dense", npy("<f8", &[2, 13], &dense[..].bytes()))],
            &["batch.npz", "feature 4 of sample 1", text],
        );
    }
    refused(&[("dense", dense())], &["indices_0", "\"emb_l.0\""]);
    let mut arrays = vec![("dense", dense())];
    for (indices, offsets) in [
        ("indices_0", "offsets_0"),
        ("indices_1", "offsets_1"),
        ("indices_2", "offsets_2"),
        ("indices_3", "offsets_3"),
    ] {
        arrays.extend([(indices, vector(&[7i64])), (offsets, vector(&[0i64, 1]))]);
    }
    let with = |at: usize, array: Vec<u8>| {
        let mut arrays = arrays.clone();
        arrays[at].1 = array;
        arrays
    };
    refused(&with(7, vector(&[40i64])), &["batch.npz", "table 3", "index 40", "40 rows"]);
    // The whole sentence, once.
    let once = ttrec!["score", &blob, "--batch", dir.path("batch.npz"), "-o", &out].exits(3);
    assert_eq!(once.stderr.matches("index 40").count(), 1, "{once:#?}");
    refused(&with(7, vector(&[-1i64])), &["indices_3[0]"]);
    let weights = [arrays.clone(), vec![("weights_3", vector(&[f32::NAN]))]].concat();
    refused(&weights, &["weights_3[0] is NaN"]);
    refused(&with(8, vector(&[0i64, 2])), &["indices_3", "offset 2 at position 1"]);
    refused(&with(8, vector(&[0i64, 0, 1])), &["table 3", "2 bags"]);
    let tables = dir.path("tables.ttr");
    let spec = dir.file("tables.toml", "[[table]]\nprefix = \"emb_l.3.\"\n");
    ttrec!["convert", golden("dlrm_plain.pt"), "--spec", spec, "-o", &tables].exits(0);
    ttrec!["score", &tables, "--batch", golden("dlrm_plain.expected.npz"), "-o", &out]
        .exits(3)
        .says(["no model"]);
}

/// The scores of five samples, whose table 3 has the bags that these arrays say.
fn score_five(blob: &Path, bags: &[(&str, Vec<u8>)], more: &[&str]) -> crate::support::Run {
    let dir = Dir::new();
    let dense: Vec<f32> = (0..5 * 13).map(|i| (i % 7) as f32 / 8.0).collect();
    let column = npy("<i8", &[5, 1], &[7i64, 0, 3, 3, 9][..].bytes());
    let mut arrays = vec![("dense", npy("<f4", &[5, 13], &dense[..].bytes()))];
    arrays.extend(["indices_0", "indices_1", "indices_2"].map(|name| (name, column.clone())));
    arrays.extend_from_slice(bags);
    let (batch, out) = (dir.path("batch.npz"), dir.path("scores.npy"));
    write_npz(&batch, &arrays);
    let mut command = std::process::Command::new(crate::support::TTREC);
    command
        .arg("score")
        .arg(blob)
        .arg("--batch")
        .arg(&batch)
        .args(more)
        .arg("-o")
        .arg(&out);
    let mut run = crate::support::run(command);
    if run.code == Some(0) {
        run.stdout = format!("{:?}", read_f32(&out));
    }
    run
}

#[test]
fn the_same_samples_in_any_form_score_the_same() {
    let dir = Dir::new();
    let blob = convert(&dir, &golden("dlrm_plain.pt"), &[]);
    let scores = |bags: &[(&str, Vec<u8>)]| score_five(&blob, bags, &[]).exits(0).stdout;
    let indices = || ("indices_3", vector(&[3i64, 9, 7, 4, 1]));
    let offsets = |offsets: &[i64]| ("offsets_3", vector(offsets));

    let expected = scores(&[indices(), offsets(&[0, 1, 2, 3, 4, 5])]);
    assert!(expected.starts_with("([5]"), "{expected}");
    assert_eq!(scores(&[indices()]), expected, "one index per sample");
    assert_eq!(scores(&[indices(), ("lengths_3", vector(&[1i64; 5]))]), expected);

    let expected = scores(&[indices(), offsets(&[0, 2, 2, 3, 5, 5])]);
    // The number of samples says that these are all but the last one.
    assert_eq!(scores(&[indices(), offsets(&[0, 2, 2, 3, 5])]), expected);
    assert_eq!(scores(&[indices(), ("lengths_3", vector(&[2u8, 0, 1, 2, 0]))]), expected);
    score_five(&blob, &[indices(), offsets(&[0, 2, 3, 5])], &[])
        .exits(3)
        .says(["table 3", "3 bags", "5"]);
    score_five(&blob, &[indices(), offsets(&[0, 2, 2, 3, 5])], &["--include-last-offset", "true"])
        .exits(3)
        .says(["table 3", "4 bags"]);
    // Index 0 of the other tables stays.
    let padded = [("indices_3", vector(&[3i64, 39, 9, 7, 39, 4, 1])), offsets(&[0, 3, 3, 5, 7])];
    let run = score_five(&blob, &padded, &["--padding-idx", "39"]).exits(0);
    assert_eq!(run.stdout, expected);
    let run = score_five(&blob, &padded, &["--padding-idx", "emb_l.3=39"]).exits(0);
    assert_eq!(run.stdout, expected);
    let both = ["--padding-idx", "emb_l.3=39", "--padding-idx", "0"];
    assert_ne!(score_five(&blob, &padded, &both).exits(0).stdout, expected, "0 of other tables");
    for (padding, says) in [
        ("emb_l.4=0", "no table \"emb_l.4\": expected one of"),
        ("emb_l.3=40", "--padding-idx 40: table \"emb_l.3\" has 40 rows"),
    ] {
        score_five(&blob, &padded, &["--padding-idx", padding]).exits(3).says([says]);
    }
    let few = ("indices_3", vector(&[3i64, 9, 7, 4]));
    score_five(&blob, &[few], &[])
        .exits(3)
        .says(["indices_3", "offsets or lengths"]);
}

#[test]
fn models_that_contradict_themselves_are_refused() {
    let dir = Dir::new();
    let blob = dir.path("model.ttr");
    let refused = |checkpoint: &Path, spec: &str, says: &[&str]| {
        let spec = dir.file("spec.toml", spec);
        ttrec!["convert", checkpoint, "--spec", spec, "-o", &blob].exits(3).says(says);
        assert!(!blob.exists());
    };
    let plain = golden("dlrm_plain.pt");
    let tables = |count: usize| -> String {
        (0..count).map(|t| format!("[[table]]\nprefix = \"emb_l.{t}.\"\n")).collect()
    };
    refused(
        &plain,
        &format!("[model]\n{}", tables(3)),
        &["[model]", "top_l.0.weight", "26 inputs", "give 22"],
    );
    refused(
        &plain,
        &format!("[model]\nprefix = \"x.\"\n{}", tables(4)),
        &["no layers after prefix \"x.\""],
    );
    refused(
        &plain,
        &format!("[model]\ndialect = \"x\"\n{}", tables(4)),
        &["dialect \"x\"", "dlrm", "torchrec"],
    );
    refused(
        &plain,
        &format!("[model]\ndtype = \"i4\"\n{}", tables(4)),
        &["i4", "f32, f16, bf16 or i8"],
    );
    let md = golden("dlrm_md.pt");
    refused(
        &md,
        &format!("[model]\n{}[[table]]\ntensor = \"emb_l.0.embs.weight\"\n", tables(3)),
        &["emb_l.0.embs.weight", "embedding_dim is 8", "other vectors of the model have 16"],
    );
    let renamed = dir.path("renamed.safetensors");
    write_plain(&renamed, |name| name.replace("top_l.4.bias", "top_l.4.bas"), |_, values| values);
    let layers = "expected the weight or the bias of a linear layer";
    refused(&renamed, &format!("[model]\n{}", tables(4)), &["top_l.4.bas", layers]);
    let large = dir.path("large.safetensors");
    write_plain(&large, str::to_owned, |name, mut values| {
        if name == "top_l.2.weight" {
            values[3] = 1e6;
        }
        values
    });
    refused(
        &large,
        &format!("[model]\ndtype = \"f16\"\n{}", tables(4)),
        &["top_l.2.weight", "1000000", "f16"],
    );
    // Without an operation for its quotients and remainders, a model is offered as a spec.
    ttrec!["convert", golden("dlrm_qr.pt"), "-o", &blob].exits(3).says([
        "qr_operation",
        "[model]",
        "[[table]]",
    ]);
}

#[test]
fn a_blob_with_hot_rows_stored_keeps_its_model() {
    let dir = Dir::new();
    let tables: String = (1..4).map(|t| format!("[[table]]\nprefix = \"emb_l.{t}.\"\n")).collect();
    let first = "[[table]]\nprefix = \"emb_l.0.\"\nrepresentation = \"tt\"\nrank = 6\n";
    let spec = format!("[model]\ndtype = \"i8\"\n{first}{tables}");
    let blob = dir.convert(&golden("dlrm_plain.pt"), &spec, "model.ttr");
    let (counts, hot) = (dir.path("counts.npz"), dir.path("hot.ttr"));
    let frequencies: Vec<i64> =
        (0..5000).map(|row| if row < 50 { 5000 / (row + 1) } else { 0 }).collect();
    write_npz(&counts, &[("emb_l.0", vector(&frequencies))]);
    ttrec!["cache", &blob, "--frequencies", &counts, "--budget", "20%", "-o", &hot].exits(0);
    assert!(fs::metadata(&hot).unwrap().len() > fs::metadata(&blob).unwrap().len());
    let batch = golden("dlrm_plain.expected.npz");
    for (hot, before) in
        score(&dir, &hot, &batch, true).iter().zip(score(&dir, &blob, &batch, true))
    {
        assert!((hot - before).abs() <= 1e-5 * before.abs(), "{hot} was {before}");
    }
}

#[test]
fn two_towers_score_the_product_of_their_rows() {
    let dir = Dir::new();
    let users: Vec<f32> = (0..7 * 4).map(|i| ((i * 5) % 13) as f32 / 8.0 - 0.75).collect();
    let items: Vec<f32> = (0..5 * 4).map(|i| ((i * 7) % 11) as f32 / 8.0 - 0.5).collect();
    let checkpoint = dir.path("towers.safetensors");
    write_safetensors(
        &checkpoint,
        &[
            ("emb_l.0.weight", F32, &[7, 4], users[..].bytes()),
            ("emb_l.1.weight", F32, &[5, 4], items[..].bytes()),
            ("top_l.0.weight", F32, &[1, 1], [1.0f32][..].bytes()),
            ("top_l.0.bias", F32, &[1], [0.0f32][..].bytes()),
        ],
    );
    let blob = convert(&dir, &checkpoint, &[]);
    // Numbers of eighths: their products and sums are exact.
    let product = |user: i64, item: i64| -> f32 {
        let row = |table: &[f32], row: i64| table[row as usize * 4..][..4].to_vec();
        row(&users, user).iter().zip(row(&items, item)).map(|(x, y)| x * y).sum()
    };
    let (of_users, of_items) = ([6i64, 0, 3, 3], [4i64, 1, 0, 2]);
    let each = vector(&[0i64, 1, 2, 3, 4]);
    let batch = dir.path("batch.npz");
    let arrays = [
        ("indices_0", vector(&of_users)),
        ("offsets_0", each.clone()),
        ("indices_1", vector(&of_items)),
        ("offsets_1", each.clone()),
    ];
    write_npz(&batch, &arrays);
    let expected: Vec<f32> =
        of_users.iter().zip(of_items).map(|(&user, item)| product(user, item)).collect();
    assert_eq!(score(&dir, &blob, &batch, true), expected);
    ttrec!["bench", &blob, "--quick", "--batch", &batch, "--samples", "2"].exits(0);

    // One user and all items.
    let (user, candidates, out) =
        (dir.path("user.npz"), dir.path("candidates.npz"), dir.path("ranked.npy"));
    write_npz(&user, &[("indices_0", vector(&[6i64])), ("offsets_0", vector(&[0i64, 1]))]);
    write_npz(
        &candidates,
        &[
            ("indices_1", vector(&[0i64, 1, 2, 3, 4])),
            ("offsets_1", vector(&[0i64, 1, 2, 3, 4, 5])),
        ],
    );
    ttrec!["rank", &blob, "--user", &user, "--candidates", &candidates, "-o", &out].exits(0);
    let sigmoid = |x: f32| 1.0 / (1.0 + (-f64::from(x)).exp());
    let (_, scores) = read_f32(&out);
    assert_eq!(scores.len(), 5);
    for (item, score) in (0..).zip(scores) {
        assert!((f64::from(score) - sigmoid(product(6, item))).abs() <= 1e-6, "{item}: {score}");
    }
}

/// A model with names of its own: three tables of two columns, a layer of three dense features, and
/// a top layer without bias.
struct Small {
    tables: [Vec<f32>; 3],
    bottom: Vec<f32>,
}

/// The rows of each bag of the sample.
const BAGS: [&[usize]; 3] = [&[4, 0], &[1], &[2, 3, 3]];
const DENSE: [f32; 3] = [0.5, -1.0, 2.0];

impl Small {
    fn new() -> Self {
        // Numbers of eighths: their products and sums are exact.
        let eighths = |count: usize, seed: usize| -> Vec<f32> {
            (0..count).map(|i| ((i * 5 + seed) % 13) as f32 / 8.0 - 0.75).collect()
        };
        Self { tables: [5, 4, 6].map(|rows| eighths(rows * 2, rows)), bottom: eighths(2 * 3, 1) }
    }

    /// The vectors of the sample.
    fn vectors(&self, with_bottom: bool, mean: bool) -> Vec<[f32; 2]> {
        let dense = |weights: &[f32]| weights.iter().zip(DENSE).map(|(w, x)| w * x).sum::<f32>();
        let bottom = [&self.bottom[..3], &self.bottom[3..]].map(|weights| dense(weights).max(0.0));
        let of_tables = self.tables.iter().zip(BAGS).map(|(table, bag)| {
            let divisor = if mean { bag.len() as f32 } else { 1.0 };
            [0, 1].map(|c| bag.iter().map(|row| table[row * 2 + c]).sum::<f32>() / divisor)
        });
        with_bottom.then_some(bottom).into_iter().chain(of_tables).collect()
    }

    /// Writes the checkpoint. The weights of the top are 1, 2, 3 and so on.
    fn write(&self, path: &Path, names: [&str; 5], top_inputs: usize) {
        let top: Vec<f32> = (1..=top_inputs).map(|weight| weight as f32).collect();
        let mut tensors: Vec<_> = self
            .tables
            .iter()
            .zip(names)
            .map(|(table, name)| (name, vec![table.len() / 2, 2], table[..].bytes()))
            .collect();
        tensors.push((names[3], vec![2, 3], self.bottom[..].bytes()));
        tensors.push((names[4], vec![1, top_inputs], top[..].bytes()));
        tensors.retain(|(name, ..)| !name.is_empty());
        let views: Vec<_> = tensors
            .iter()
            .map(|(name, shape, bytes)| (*name, F32, &shape[..], bytes.clone()))
            .collect();
        write_safetensors(path, &views);
    }

    /// The sample's logit, by the blob.
    fn score(dir: &Dir, blob: &Path, with_bottom: bool) -> f32 {
        let batch = dir.path("batch.npz");
        let mut arrays = vec![("dense", npy("<f4", &[1, 3], &DENSE[..].bytes()))];
        arrays.truncate(usize::from(with_bottom));
        for (bag, [indices, lengths]) in BAGS.iter().zip([
            ["indices_0", "lengths_0"],
            ["indices_1", "lengths_1"],
            ["indices_2", "lengths_2"],
        ]) {
            let bag: Vec<i64> = bag.iter().map(|&row| row as i64).collect();
            arrays.extend([(indices, vector(&bag)), (lengths, vector(&[bag.len() as i64]))]);
        }
        write_npz(&batch, &arrays);
        score(dir, blob, &batch, true)[0]
    }
}

/// The top's inputs, times 1, 2, 3 and so on.
fn weighted(inputs: impl IntoIterator<Item = f32>) -> f32 {
    inputs.into_iter().zip(1..).map(|(x, weight)| x * weight as f32).sum()
}

fn product(a: &[f32; 2], b: &[f32; 2]) -> f32 {
    a[0] * b[0] + a[1] * b[1]
}

const OWN: [&str; 5] =
    ["net.user.weight", "net.item.weight", "net.tag.weight", "net.deep.0.weight", "net.out.weight"];

#[test]
fn models_with_names_and_interactions_of_their_own_score_by_definition() {
    let (dir, model) = (Dir::new(), Small::new());
    let checkpoint = dir.path("own.safetensors");
    for with_bottom in [true, false] {
        let bottom = if with_bottom { "bottom = \"deep.\"\n" } else { "" };
        for (interaction, itself) in [("dot", 0), ("dot-itself", 1), ("cat", 0)] {
            for mean in [false, true] {
                let v = model.vectors(with_bottom, mean);
                let direct = if with_bottom { v[0].to_vec() } else { Vec::new() };
                let pairs = (0..v.len()).flat_map(|i| (0..i + itself).map(move |j| (i, j)));
                let products = pairs.map(|(i, j)| product(&v[i], &v[j]));
                let inputs: Vec<f32> = match interaction {
                    "cat" => v.concat(),
                    _ => direct.into_iter().chain(products).collect(),
                };
                let mut names = OWN;
                if !with_bottom {
                    names[3] = "";
                }
                model.write(&checkpoint, names, inputs.len());
                let pooling = if mean { "mean" } else { "sum" };
                let spec = format!(
                    "[model]\nprefix = \"net.\"\n{bottom}top = \"out.\"\n\
                     interaction = \"{interaction}\"\npooling = \"{pooling}\"\n\
                     tables = [\"user.weight\", \"item.weight\", \"tag.weight\"]\n"
                );
                let blob = dir.convert(&checkpoint, &spec, "own.ttr");
                let found = Small::score(&dir, &blob, with_bottom);
                let expected = weighted(inputs);
                assert!(
                    (found - expected).abs() <= 1e-5 * expected.abs(),
                    "{spec}{found} {expected}"
                );
                ttrec!["inspect", &blob].exits(0).prints([
                    format!("{interaction} interaction of 3 tables"),
                    format!("pooling: {pooling}"),
                    "tables in order: user.weight item.weight tag.weight\n".to_owned(),
                ]);
                ttrec![
                    "verify",
                    &blob,
                    "--against",
                    &checkpoint,
                    "--spec",
                    dir.path("own.ttr.toml")
                ]
                .exits(0);
            }
        }
    }
}

#[test]
fn a_table_that_a_model_takes_twice_is_stored_once() {
    let (dir, model) = (Dir::new(), Small::new());
    let checkpoint = dir.path("own.safetensors");
    let mut names = OWN;
    names[3] = "";
    model.write(&checkpoint, names, 3);
    // `item` is both a user's last item and the candidate.
    let spec = "[model]\ntop = \"net.out.\"\ntables = [\"user\", \"item\", \"user\"]\n\
                [[table]]\nname = \"item\"\ntensor = \"net.item.weight\"\npooling = \"mean\"\n\
                [[table]]\nname = \"user\"\ntensor = \"net.tag.weight\"\npooling = \"sum\"\n";
    let blob = dir.convert(&checkpoint, spec, "own.ttr");
    ttrec!["inspect", &blob].exits(0).prints([
        "2 tables",
        "in order: user item user",
        "pooling in order: sum mean sum",
    ]);
    let rows = |table: usize, bag: &[usize]| -> [f32; 2] {
        [0, 1].map(|c| bag.iter().map(|row| model.tables[table][row * 2 + c]).sum())
    };
    let v = [rows(2, BAGS[0]), rows(1, BAGS[1]), rows(2, BAGS[2])];
    let inputs = [product(&v[1], &v[0]), product(&v[2], &v[0]), product(&v[2], &v[1])];
    assert_eq!(Small::score(&dir, &blob, false), weighted(inputs));
}

#[test]
fn what_a_model_with_its_own_names_does_not_say_is_asked_for() {
    let (dir, model) = (Dir::new(), Small::new());
    let (checkpoint, blob) = (dir.path("own.safetensors"), dir.path("own.ttr"));
    let refused = |spec: &str, says: &[&str]| {
        let spec = dir.file("spec.toml", spec);
        ttrec!["convert", &checkpoint, "--spec", spec, "-o", &blob].exits(3).says(says);
        assert!(!blob.exists());
    };
    let tables = "tables = [\"user.weight\", \"item.weight\", \"tag.weight\"]\n";
    let spec = |rest: &str| format!("[model]\nprefix = \"net.\"\n{tables}{rest}");
    let names = "bottom = \"deep.\"\ntop = \"out.\"\n";
    model.write(&checkpoint, OWN, 2 + 6);
    refused(&spec(""), &["no layers after prefix \"net.\"", "`top`", "`top = []`"]);
    refused(&spec("bottom = \"deep.\"\n"), &["the top MLP is missing"]);
    refused(&spec("top = \"exit.\"\n"), &["no layers after \"net.exit.\"", "net.exit.*.weight"]);
    refused(&spec("top = 3\n"), &["expected a prefix, or a list of prefixes"]);
    refused(&spec("interaction = \"sum\"\n"), &["\"dot\", \"dot-itself\" or \"cat\""]);
    refused(
        &spec(names),
        &["table \"user.weight\": `pooling` is missing", "EmbeddingBag averages"],
    );
    // Eight inputs are the dot products of four vectors of two, and also these vectors.
    refused(
        &spec(&format!("{names}pooling = \"sum\"\n")),
        &["8 inputs", "several", "\"dot\"` or", "\"cat\""],
    );
    refused(
        &spec(&format!("{names}pooling = \"sum\"\ninteraction = \"dot-itself\"\n")),
        &["8 inputs", "give 12", "dot-itself"],
    );
    refused(
        &spec("top = []\npooling = \"sum\"\n"),
        &["without a top MLP", "one number", "3 tables give 3"],
    );
    refused(
        "[model]\ntop = \"net.out.\"\npooling = \"sum\"\ntables = [\"net.user\"]\n",
        &["no tensor \"net.user\""],
    );
    // A table of a dot product is missing, or each vector is multiplied with itself: the widths
    // are the same.
    let two = "[model]\nprefix = \"net.\"\nbottom = \"deep.\"\ntop = \"out.\"\n\
               pooling = \"sum\"\ntables = [\"user.weight\", \"item.weight\"]\n";
    refused(two, &["8 inputs", "give 5", "list all tables", "interaction = \"dot-itself\""]);
    // Layers of other kinds.
    let mut tensors = vec![("net.out.running_mean", F32, &[1usize][..], [0.0f32][..].bytes())];
    tensors.push(("net.out.weight", F32, &[1, 1], [1.0f32][..].bytes()));
    tensors.push(("net.user.weight", F32, &[2, 2], [0.0f32; 4][..].bytes()));
    write_safetensors(&checkpoint, &tensors);
    refused(
        "[model]\ntop = \"net.out.\"\npooling = \"sum\"\ntables = [\"net.user.weight\"]\n",
        &["net.out.running_mean", "a linear layer"],
    );
}

#[test]
fn a_model_with_its_own_names_is_offered_as_a_spec() {
    let dir = Dir::new();
    let checkpoint = dir.path("own.safetensors");
    let zeros = |count: usize| vec![0.0f32; count][..].bytes();
    let shapes: [(&str, &[usize]); 8] = [
        ("model.deep.0.weight", &[4, 3]),
        ("model.deep.0.bias", &[4]),
        ("model.item.weight", &[50, 4]),
        ("model.user.weight", &[90, 4]),
        ("model.top.0.weight", &[5, 7]),
        ("model.top.0.bias", &[5]),
        ("model.out.weight", &[1, 5]),
        ("model.out.bias", &[1]),
    ];
    let tensors: Vec<_> = shapes
        .iter()
        .map(|(name, shape)| (*name, F32, *shape, zeros(shape.iter().product())))
        .collect();
    write_safetensors(&checkpoint, &tensors);
    let blob = dir.path("own.ttr");
    let run = ttrec!["convert", &checkpoint, "-o", &blob].exits(3).says([
        "2 embedding tables, and layers",
        "`pooling`",
        "EmbeddingBag averages",
    ]);
    let (_, offer) = run.stderr.split_once("\n\n").unwrap();
    let spec = offer.replacen("[model]", "[model]\npooling = \"mean\"", 1);
    for line in ["bottom = \"model.deep.\"", "top = [\"model.top.\", \"model.out.\"]"] {
        assert!(spec.contains(line), "{spec}");
    }
    let blob = dir.convert(&checkpoint, &spec, "own.ttr");
    ttrec!["inspect", &blob]
        .exits(0)
        .prints(["3 dense features", "dot interaction of 2 tables"]);
}

#[test]
fn a_trained_model_without_a_top_scores_the_product() {
    let (dir, model) = (Dir::new(), Small::new());
    let path = dir.path("checkpoint.safetensors");
    let facts = "{\"tables\": [{\"prefix\": \"emb_l.0.\", \"dialect\": \"dlrm\"}, \
                 {\"prefix\": \"emb_l.1.\", \"dialect\": \"dlrm\", \"pooling\": \"mean\"}]}";
    let tensor = |at: usize, shape| {
        let bytes: &'static [u8] = Vec::leak(model.tables[at][..].bytes());
        safetensors::tensor::TensorView::new(F32, shape, bytes).unwrap()
    };
    let tensors =
        [("emb_l.0.weight", tensor(0, vec![5, 2])), ("emb_l.1.weight", tensor(2, vec![6, 2]))];
    let metadata = [("ttrec".to_owned(), facts.to_owned())].into();
    safetensors::serialize_to_file(tensors, Some(metadata), &path).unwrap();
    let blob = convert(&dir, &path, &[]);
    let batch = dir.path("batch.npz");
    write_npz(
        &batch,
        &[
            ("indices_0", npy("<i8", &[1, 2], &[4i64, 0][..].bytes())),
            ("indices_1", npy("<i8", &[1, 2], &[3i64, 1][..].bytes())),
        ],
    );
    let sum = |table: usize, rows: [usize; 2]| {
        [0, 1].map(|c| rows.iter().map(|row| model.tables[table][row * 2 + c]).sum::<f32>())
    };
    let expected = product(&sum(0, [4, 0]), &sum(2, [3, 1])) / 2.0;
    assert_eq!(score(&dir, &blob, &batch, true), [expected]);
    ttrec!["verify", &blob, "--against", &path].exits(0);
}

#[test]
fn a_dlrm_whose_vectors_meet_themselves_needs_no_spec() {
    let (dir, model) = (Dir::new(), Small::new());
    let checkpoint = dir.path("dlrm.safetensors");
    let names =
        ["emb_l.0.weight", "emb_l.1.weight", "emb_l.2.weight", "bot_l.0.weight", "top_l.0.weight"];
    model.write(&checkpoint, names, 2 + 10);
    let blob = convert(&dir, &checkpoint, &[]);
    let v = model.vectors(true, false);
    let pairs = (0..4).flat_map(|i| (0..=i).map(move |j| (i, j)));
    let products: Vec<f32> = pairs.map(|(i, j)| product(&v[i], &v[j])).collect();
    let expected = weighted([&v[0][..], &products].concat());
    let found = Small::score(&dir, &blob, true);
    assert!((found - expected).abs() <= 1e-5 * expected.abs(), "{found} {expected}");
}

#[test]
fn a_model_is_proved_by_the_scores_of_its_training_program() {
    let dir = Dir::new();
    let (checkpoint, batch) = (golden("dlrm_plain.pt"), golden("dlrm_plain.expected.npz"));
    let arrays = read_npz(&batch);
    let write = |name: &str, values: &[f64]| dir.file(name, npy("<f8", &[50, 1], &values.bytes()));
    let (scores, logits) =
        (write("prob.npy", &arrays["prob"].values), write("logit.npy", &arrays["logit"].values));
    let blob = dir.path("model.ttr");
    ttrec!["convert", &checkpoint, "-o", &blob, "--check", &batch, &scores]
        .exits(0)
        .prints(["and a model", "greatest difference", "within 1e-4"]);
    ttrec!["convert", &checkpoint, "-o", &blob, "--check", &batch, &logits, "--logits"].exits(0);
    ttrec!["score", &blob, "--batch", &batch, "--against", &scores]
        .exits(0)
        .prints(["within"]);
    ttrec!["score", &blob, "--batch", &batch, "--against", &logits]
        .exits(1)
        .prints(["above 1e-4", "pass --logits"]);
    ttrec!["score", &blob, "--batch", &batch, "--against", &scores, "--logits"]
        .exits(1)
        .prints(["leave --logits out"]);
    let mut changed = arrays["prob"].values.clone();
    changed[31] += 0.25;
    let changed = write("changed.npy", &changed);
    let run = ttrec!["score", &blob, "--batch", &batch, "--against", &changed].exits(1);
    let expected =
        ["2.500e-1, at sample 31", "indices_3 are of table \"emb_l.3\"", "summed", "\"dot\""];
    assert!(!run.stdout.contains("f32"), "{run:?}");
    run.prints(expected);
    ttrec!["score", &blob, "--batch", &batch, "--against", &changed, "--max-error", "0.3"].exits(0);

    // Averaged in place of summed.
    let tables: String = (0..4)
        .map(|t| format!("[[table]]\nprefix = \"emb_l.{t}.\"\ndtype = \"i8\"\n"))
        .collect();
    let spec = dir.file("mean.toml", format!("[model]\npooling = \"mean\"\n{tables}"));
    ttrec!["convert", &checkpoint, "--spec", &spec, "-o", &blob, "--check", &batch, &scores]
        .exits(1)
        .prints(["above", "averaged", "stored as i8", "as f32"]);
    assert!(blob.exists());

    let refused = |expected: &Path, says: &str| {
        ttrec!["score", &blob, "--batch", &batch, "--against", expected]
            .exits(3)
            .says([says]);
    };
    refused(&dir.file("49.npy", vector(&[0.5f32; 49])), "49 values, but");
    refused(&dir.file("nan.npy", vector(&[f32::NAN; 50])), "value 0 is NaN");
    refused(&dir.file("wide.npy", npy("<f4", &[25, 2], &[0.5f32; 50][..].bytes())), "[25, 2]");
    refused(&batch, "expected one, of scores");
    let spec = dir.file("tables.toml", "[[table]]\nprefix = \"emb_l.3.\"\n");
    let other = dir.path("tables.ttr");
    ttrec!["convert", &checkpoint, "--spec", spec, "-o", &other, "--check", &batch, &scores]
        .exits(3)
        .says(["--check scores a model"]);
    assert!(!other.exists());
}
