//! DLRM's quotient-remainder and mixed-dimension tables, and hashed ones: what `lookup` gives
//! against the tensors themselves, worked out here in f64.

use crate::support::{
    Dir, Elements, golden, npy, parse_npy, ttrec, vector, write_npz, write_safetensors,
};
use safetensors::Dtype;
use std::{fs, io::Read, path::Path};

/// A matrix of a checkpoint.
struct Matrix {
    columns: usize,
    values: Vec<f64>,
}

impl Matrix {
    /// Storage `number` of a golden checkpoint, which stores whole tensors one by one.
    fn stored(checkpoint: &str, number: usize, columns: usize) -> Self {
        let mut archive =
            zip::ZipArchive::new(fs::File::open(golden(&format!("{checkpoint}.pt"))).unwrap())
                .unwrap();
        let mut bytes = Vec::new();
        archive
            .by_name(&format!("{checkpoint}/data/{number}"))
            .unwrap()
            .read_to_end(&mut bytes)
            .unwrap();
        let values = bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|&x| f64::from(f32::from_le_bytes(x)))
            .collect();
        Self { columns, values }
    }

    fn row(&self, row: usize) -> &[f64] {
        &self.values[row * self.columns..][..self.columns]
    }
}

/// How the rows of a table come about.
enum Reference {
    QuotientRemainder { parts: [Matrix; 2], num_remainders: usize, multiply: bool },
    Projected { rows: Matrix, projection: Matrix },
}

impl Reference {
    /// Bags, as DLRM pools them: parts first. `mode` is that of `ttrec lookup`.
    fn bag(&self, indices: &[u64], weights: &[f64], mode: &str) -> Vec<f64> {
        match self {
            Self::QuotientRemainder { parts: [first, second], num_remainders, multiply } => {
                let pooled = |matrix: &Matrix, row: &dyn Fn(usize) -> usize| {
                    let rows: Vec<&[f64]> =
                        indices.iter().map(|&index| matrix.row(row(index as usize))).collect();
                    pool(&rows, weights, mode, matrix.columns)
                };
                let first = pooled(first, &|index| index / num_remainders);
                let second = pooled(second, &|index| index % num_remainders);
                first
                    .iter()
                    .zip(second)
                    .map(|(x, y)| if *multiply { x * y } else { x + y })
                    .collect()
            }
            Self::Projected { rows, projection } => {
                let wide = |&index: &u64| -> Vec<f64> {
                    let short = rows.row(index as usize);
                    projection
                        .values
                        .chunks(projection.columns)
                        .map(|w| w.iter().zip(short).map(|(w, x)| w * x).sum())
                        .collect()
                };
                let wide: Vec<Vec<f64>> = indices.iter().map(wide).collect();
                let rows: Vec<&[f64]> = wide.iter().map(|row| &row[..]).collect();
                pool(&rows, weights, mode, projection.values.len() / projection.columns)
            }
        }
    }
}

fn pool(rows: &[&[f64]], weights: &[f64], mode: &str, columns: usize) -> Vec<f64> {
    let pool = |j: usize| {
        let column = rows.iter().map(|row| row[j]);
        match mode {
            _ if rows.is_empty() => 0.0,
            "max" => column.fold(f64::MIN, f64::max),
            "weighted" => column.zip(weights).map(|(x, w)| x * w).sum(),
            "mean" => column.sum::<f64>() / rows.len() as f64,
            _ => column.sum(),
        }
    };
    (0..columns).map(pool).collect()
}

/// `lookup` in every mode is within 2e-6 of the largest magnitude of what the tensors say.
fn check(dir: &Dir, blob: &Path, table: &str, reference: &Reference, num_embeddings: u64) {
    let lengths = [1usize, 0, 3, 7, 2, 40, 0, 1];
    let mut offsets = vec![0u64];
    lengths
        .iter()
        .for_each(|&len| offsets.push(offsets[offsets.len() - 1] + len as u64));
    let count = offsets[lengths.len()];
    let mut indices: Vec<u64> = (0..count).map(|at| at * 7919 % num_embeddings).collect();
    indices[0] = num_embeddings - 1;
    let weights: Vec<f32> = (0..count).map(|at| at as f32 % 5.0 - 1.75).collect();
    let exact: Vec<f64> = weights.iter().map(|&w| w.into()).collect();
    let (bags, out) = (dir.path("bags.npz"), dir.path("out.npy"));
    write_npz(
        &bags,
        &[
            ("indices", vector(&indices)),
            ("offsets", vector(&offsets)),
            ("weights", vector(&weights)),
        ],
    );
    for mode in ["rows", "sum", "mean", "max", "weighted"] {
        let pooling = match mode {
            "weighted" => "sum",
            mode => mode,
        };
        let mut command = std::process::Command::new(crate::support::TTREC);
        command
            .arg("lookup")
            .arg(blob)
            .args(["--table", table, "--mode", pooling])
            .arg("--bags")
            .arg(&bags)
            .arg("-o")
            .arg(&out);
        if mode == "weighted" {
            command.arg("--weighted");
        }
        crate::support::run(command).exits(0);
        let found = parse_npy(&fs::read(&out).unwrap()).values;
        let expected: Vec<f64> = match mode {
            "rows" => indices
                .iter()
                .flat_map(|&index| reference.bag(&[index], &[1.0], "sum"))
                .collect(),
            _ => offsets
                .windows(2)
                .map(|ends| ends[0] as usize..ends[1] as usize)
                .flat_map(|range| reference.bag(&indices[range.clone()], &exact[range], mode))
                .collect(),
        };
        assert_eq!(found.len(), expected.len(), "{table} {mode}");
        let largest = expected.iter().fold(0.0f64, |largest, x| largest.max(x.abs()));
        assert!(largest > 0.0, "{table} {mode}: nothing to compare");
        for (at, (x, y)) in found.iter().zip(&expected).enumerate() {
            assert!((x - y).abs() <= 2e-6 * largest, "{table} {mode} {at}: {x} for {y}");
        }
    }
}

#[test]
fn quotient_remainder_tables_pool_as_dlrm_does() {
    let dir = Dir::new();
    for (name, operation) in [("dlrm_qr", "mult"), ("dlrm_qradd", "add")] {
        let checkpoint = golden(&format!("{name}.pt"));
        let tables = (0..3)
            .map(|t| format!("[[table]]\nprefix = \"emb_l.{t}.\"\n"))
            .collect::<String>();
        // Once in the spec, once as a flag; one table of fewer rows than there are pairs.
        let spec = tables.replace(
            "0.\"\n",
            &format!("0.\"\nqr_operation = {operation:?}\nnum_embeddings = 4997\n"),
        );
        let (spec, blob) = (dir.file("spec.toml", spec), dir.path("blob.ttr"));
        ttrec!["convert", &checkpoint, "--spec", &spec, "-o", &blob, "--qr-operation", operation]
            .exits(0);
        ttrec!["verify", &blob, "--against", &checkpoint, "--spec", &spec]
            .exits(3)
            .says(["`qr_operation` is missing"]);
        ttrec!["verify", &blob, "--against", &checkpoint].exits(0);
        ttrec!["inspect", &blob].exits(0).prints([
            "qr",
            &format!("{operation} of 4 remainders"),
            "4997",
        ]);
        for (t, num_embeddings) in [4997, 1200, 300].into_iter().enumerate() {
            let parts = [0, 1].map(|part| Matrix::stored(name, 2 * t + part, 16));
            let reference = Reference::QuotientRemainder {
                parts,
                num_remainders: 4,
                multiply: operation == "mult",
            };
            check(&dir, &blob, &format!("emb_l.{t}"), &reference, num_embeddings);
        }
        for dtype in ["f16", "bf16", "i8", "i4"] {
            let spec = format!(
                "[[table]]\nprefix = \"emb_l.1.\"\nqr_operation = {operation:?}\ndtype = \
                 {dtype:?}\n"
            );
            let blob = dir.convert(&checkpoint, &spec, "blob.ttr");
            ttrec!["verify", &blob, "--against", &checkpoint].exits(0);
        }
    }
}

#[test]
fn mixed_dimension_tables_are_projected() {
    let dir = Dir::new();
    let checkpoint = golden("dlrm_md.pt");
    let spec: String = (0..4).map(|t| format!("[[table]]\nprefix = \"emb_l.{t}.\"\n")).collect();
    let blob = dir.convert(&checkpoint, &spec, "blob.ttr");
    ttrec!["verify", &blob, "--against", &checkpoint].exits(0);
    ttrec!["inspect", &blob]
        .exits(0)
        .prints(["proj", "rank 8, projection f32", "dense"]);
    for (t, num_embeddings) in [5000, 1200].into_iter().enumerate() {
        let [rows, projection] = [0, 1].map(|part| Matrix::stored("dlrm_md", 2 * t + part, 8));
        check(
            &dir,
            &blob,
            &format!("emb_l.{t}"),
            &Reference::Projected { rows, projection },
            num_embeddings,
        );
    }
    for (dtype, projection) in [("f16", "f16"), ("bf16", "bf16"), ("i8", "f16"), ("i4", "f16")] {
        let spec = format!("[[table]]\nprefix = \"emb_l.1.\"\ndtype = {dtype:?}\n");
        let blob = dir.convert(&checkpoint, &spec, "blob.ttr");
        ttrec!["verify", &blob, "--against", &checkpoint].exits(0);
        ttrec!["inspect", &blob].exits(0).prints([format!("projection {projection}")]);
    }
}

#[test]
fn facts_that_do_not_fit_a_dlrm_table_are_refused() {
    let dir = Dir::new();
    let refused = |checkpoint: &Path, fields: &str, wanted: &[&str]| {
        let spec = dir.file("spec.toml", format!("[[table]]\nprefix = \"emb_l.0.\"\n{fields}"));
        let out = dir.path("none.ttr");
        ttrec!["convert", checkpoint, "--spec", spec, "-o", &out].exits(3).says(wanted);
        assert!(!out.exists());
    };
    let (qr, md) = (golden("dlrm_qr.pt"), golden("dlrm_md.pt"));
    refused(&qr, "", &["`qr_operation` is missing", "16 columns", "--qr-operation"]);
    refused(&qr, "qr_operation = \"product\"\n", &["\"product\"", "mult, add or concat"]);
    let mult = "qr_operation = \"mult\"\n";
    for bad in [4996, 5001, 0] {
        refused(
            &qr,
            &format!("{mult}num_embeddings = {bad}\n"),
            &[&format!("`num_embeddings` is {bad}"), "1250", "5000"],
        );
    }
    refused(&qr, &format!("{mult}ranks = [2]\n"), &["`ranks` does not apply to dialect \"dlrm\""]);
    refused(&md, mult, &["`qr_operation` applies only to quotient-remainder tables"]);
    refused(&md, "num_embeddings = 7\n", &["`num_embeddings` is 7", "5000 rows"]);

    let checkpoint = dir.path("c.safetensors");
    let write = |parts: [&[usize]; 2], keys: [&str; 2]| {
        let values = parts.map(|shape| vec![0.5f32; shape.iter().product()]);
        let names = keys.map(|key| format!("emb_l.0.{key}"));
        let f32 = safetensors::Dtype::F32;
        let tensors: Vec<_> = (0..2)
            .map(|i| (names[i].as_str(), f32, parts[i], values[i][..].bytes()))
            .collect();
        write_safetensors(&checkpoint, &tensors);
    };
    // Columns that differ can only be put end to end, and need no one to say so.
    write([&[3, 4], &[2, 5]], ["weight_q", "weight_r"]);
    refused(&checkpoint, mult, &["`qr_operation` is \"mult\"", "4 and 5 columns"]);
    let blob = dir.convert(&checkpoint, "[[table]]\nprefix = \"emb_l.0.\"\n", "blob.ttr");
    ttrec!["inspect", &blob].exits(0).prints(["concat of 2 remainders", "6 x 9"]);
    ttrec!["verify", &blob, "--against", &checkpoint].exits(0);
    write([&[3, 4], &[5, 3]], ["embs.weight", "proj.weight"]);
    refused(&checkpoint, "", &["\"emb_l.0.proj.weight\" has shape [5, 3]", "embedding_dim x 4"]);
    write([&[3, 4], &[2, 4]], ["weight_q", "other"]);
    refused(&checkpoint, mult, &["no tensor \"emb_l.0.weight_r\""]);
}

#[test]
fn hashed_tables_take_indices_modulo_their_rows() {
    let dir = Dir::new();
    let dense = dir.file(
        "table.npy",
        npy("<f4", &[50, 3], &(0..150).map(|x| x as f32).collect::<Vec<_>>()[..].bytes()),
    );
    let fbtt = golden("fbtt_d3.safetensors");
    let facts = fs::read_to_string(golden("fbtt_d3.toml")).unwrap();
    let hashed_fbtt = facts.replace(
        "num_embeddings = 1000",
        "num_embeddings = 70000\nindex_map = \"modulo\"\nnum_rows = 1000",
    );
    assert_ne!(hashed_fbtt, facts);
    let (bags, out) = (dir.path("bags.npz"), dir.path("rows.npy"));
    let rows = |blob: &Path, table: &str, indices: &[u64]| {
        write_npz(
            &bags,
            &[("indices", vector(indices)), ("offsets", vector(&[0, indices.len() as u64]))],
        );
        ["rows", "sum", "max"].map(|mode| {
            ttrec!["lookup", blob, "--table", table, "--bags", &bags, "--mode", mode, "-o", &out]
                .exits(0);
            parse_npy(&fs::read(&out).unwrap()).values
        })
    };
    let tensor = "[[table]]\nname = \"t\"\ntensor = \"table\"\n".to_owned();
    let hashed_dense = format!("{tensor}index_map = \"modulo\"\nnum_embeddings = 1000000\n");
    for (table, checkpoint, plain, hashed, num_rows, last) in [
        ("t", &dense, &tensor, &hashed_dense, 50, 999_999),
        ("item", &fbtt, &facts, &hashed_fbtt, 1000, 69_999),
    ] {
        let (plain, hashed_blob) = (
            dir.convert(checkpoint, plain, "plain.ttr"),
            dir.convert(checkpoint, hashed, "hashed.ttr"),
        );
        let indices: Vec<u64> = (0..300).map(|at| at * 7919 % last).chain([0, last]).collect();
        let by_row: Vec<u64> = indices.iter().map(|index| index % num_rows).collect();
        assert_eq!(rows(&hashed_blob, table, &indices), rows(&plain, table, &by_row));
        ttrec!["inspect", &hashed_blob]
            .exits(0)
            .prints([format!("modulo of {num_rows} rows"), format!("{}", last + 1)]);
        ttrec!["verify", &hashed_blob, "--against", checkpoint].exits(0);
        let spec = dir.file("hashed.toml", hashed);
        ttrec!["verify", &hashed_blob, "--against", checkpoint, "--spec", spec].exits(0);
        write_npz(&bags, &[("indices", vector(&[last + 1])), ("offsets", vector(&[0u64, 1]))]);
        ttrec![
            "lookup",
            &hashed_blob,
            "--table",
            table,
            "--bags",
            &bags,
            "--mode",
            "sum",
            "-o",
            &out
        ]
        .exits(3)
        .says([format!("{}", last + 1)]);
    }
    let refused = |fields: &str, wanted: &[&str]| {
        let spec = dir.file("spec.toml", format!("{tensor}{fields}"));
        ttrec!["convert", &dense, "--spec", spec, "-o", dir.path("none.ttr")]
            .exits(3)
            .says(wanted);
    };
    refused("index_map = \"modulo\"\n", &["`num_embeddings` is missing"]);
    refused("index_map = \"hash\"\nnum_embeddings = 60\n", &["\"hash\"", "expected \"modulo\""]);
    refused(
        "index_map = \"modulo\"\nnum_embeddings = 49\n",
        &["`num_embeddings` is 49", "rows (50)"],
    );
    refused("index_map = \"modulo\"\nnum_embeddings = 60\nnum_rows = 49\n", &["49", "50 rows"]);
    refused("num_rows = 50\n", &["`num_rows` needs `index_map`"]);
}

/// All rows of a table of the blob.
fn all_rows(dir: &Dir, blob: &Path, table: &str, count: u64) -> Vec<f64> {
    let (bags, out) = (dir.path("all.npz"), dir.path("all.npy"));
    write_npz(&bags, &[("indices", vector(&(0..count).collect::<Vec<u64>>()))]);
    ttrec!["lookup", blob, "--table", table, "--bags", bags, "--mode", "rows", "-o", &out].exits(0);
    parse_npy(&fs::read(out).unwrap()).values
}

/// The greatest difference of numbers, in units of the greatest number.
#[track_caller]
fn assert_near(found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= tolerance * largest, "{at}: {found} for {expected}");
    }
}

/// Rows of eight columns, quantised as FBGEMM does: the codes, and the scale and offset of each
/// row. Row 3 is constant.
struct QuantizedTable {
    codes: Vec<[u8; 8]>,
    headers: Vec<[f32; 2]>,
    levels: u8,
}

impl QuantizedTable {
    /// `levels` is the greatest code. Scales and offsets are exact in f16.
    fn new(rows: usize, levels: u8) -> Self {
        let code = |row: usize, column: usize| match column {
            0 => 0,
            1 => levels,
            _ => ((row * 37 + column * 101) % (usize::from(levels) + 1)) as u8,
        };
        let codes = (0..rows).map(|row| [0, 1, 2, 3, 4, 5, 6, 7].map(|column| code(row, column)));
        let header = |row: usize| {
            let scale = if row == 3 && levels == 255 {
                0.0
            } else {
                (row % 7 + 1) as f32 / 1024.0
            };
            [scale, row as f32 / 64.0 - 0.125]
        };
        Self { codes: codes.collect(), headers: (0..rows).map(header).collect(), levels }
    }

    fn values(&self) -> Vec<f64> {
        let rows = self.codes.iter().zip(&self.headers);
        rows.flat_map(|(codes, header)| {
            let [scale, offset] = header.map(f64::from);
            codes.map(|code| scale * f64::from(code) + offset)
        })
        .collect()
    }

    /// The bytes of the codes of a row.
    fn packed(&self, codes: &[u8; 8]) -> Vec<u8> {
        if self.levels == 255 {
            return codes.to_vec();
        }
        codes.chunks(2).map(|pair| pair[0] | pair[1] << 4).collect()
    }

    /// The rows with their scales and offsets at the end: the columns and the bytes.
    fn fused(&self) -> (usize, Vec<u8>) {
        let row = |(codes, header): (&[u8; 8], &[f32; 2])| -> Vec<u8> {
            let mut row = self.packed(codes);
            for number in header {
                if self.levels == 255 {
                    row.extend(number.to_le_bytes());
                } else {
                    row.extend(half::f16::from_f32(*number).to_le_bytes());
                }
            }
            row
        };
        let rows: Vec<Vec<u8>> = self.codes.iter().zip(&self.headers).map(row).collect();
        (rows[0].len(), rows.concat())
    }
}

#[test]
fn quantised_rows_are_stored_as_they_are() {
    let dir = Dir::new();
    let checkpoint = dir.path("q.safetensors");
    let table = "[[table]]\ntensor = \"emb.weight\"\n";
    for (levels, dtype) in [(255, "i8"), (15, "i4")] {
        let quantized = QuantizedTable::new(20, levels);
        let (columns, bytes) = quantized.fused();
        write_safetensors(&checkpoint, &[("emb.weight", Dtype::U8, &[20, columns], bytes)]);
        let expected = quantized.values();
        for spec in [table.to_owned(), format!("{table}dtype = \"{dtype}\"\n")] {
            let blob = dir.convert(&checkpoint, &spec, "q.ttr");
            assert_near(&all_rows(&dir, &blob, "emb.weight", 20), &expected, 1e-7);
            ttrec!["inspect", &blob].exits(0).prints([dtype, "20 x 8"]);
            ttrec!["verify", &blob, "--against", &checkpoint, "--max-error", "1e-7"].exits(0);
        }
        // Without a spec, the numbers tell the form.
        let blob = dir.path("none.ttr");
        ttrec!["convert", &checkpoint, "-o", &blob].exits(0);
        assert_near(&all_rows(&dir, &blob, "emb.weight", 20), &expected, 1e-7);
        // Every other type holds the numbers.
        for (other, tolerance) in [("f32", 1e-7), ("f16", 1e-3), ("i8", 4e-3), ("i4", 0.1)] {
            let spec = format!("{table}dtype = \"{other}\"\n");
            let blob = dir.convert(&checkpoint, &spec, "other.ttr");
            assert_near(&all_rows(&dir, &blob, "emb.weight", 20), &expected, tolerance);
        }
        let spec = format!("{table}dtype = \"f32\"\nrepresentation = \"low-rank\"\nrank = 8\n");
        let blob = dir.convert(&checkpoint, &spec, "low.ttr");
        assert_near(&all_rows(&dir, &blob, "emb.weight", 20), &expected, 1e-2);
    }
}

#[test]
fn torchrec_s_quantised_rows_have_their_scales_beside() {
    let dir = Dir::new();
    let checkpoint = dir.path("q.safetensors");
    let prefix = "ebc.embedding_bags.t_0.";
    let [weight, scale, offset] =
        ["weight", "weight_qscale", "weight_qbias"].map(|key| format!("{prefix}{key}"));
    for (levels, form, dtype) in [(255, "byte", "i8"), (15, "nibble", "i4")] {
        let quantized = QuantizedTable::new(20, levels);
        let codes: Vec<u8> =
            quantized.codes.iter().flat_map(|codes| quantized.packed(codes)).collect();
        let header = |at: usize| -> Vec<u8> {
            let halves = quantized.headers.iter().map(|header| half::f16::from_f32(header[at]));
            halves.flat_map(half::f16::to_le_bytes).collect()
        };
        write_safetensors(
            &checkpoint,
            &[
                (&weight, Dtype::U8, &[20, codes.len() / 20], codes.clone()),
                (&scale, Dtype::F16, &[20, 1], header(0)),
                (&offset, Dtype::F16, &[20, 1], header(1)),
            ],
        );
        // Bytes could be codes, or two codes each.
        let blob = dir.path("none.ttr");
        ttrec!["convert", &checkpoint, "-o", &blob].exits(3).says([
            "`quantized` is missing",
            &format!("\"byte\" (embedding_dim {})", codes.len() / 20),
            "\"nibble\"",
        ]);
        let spec =
            format!("[[table]]\nname = \"t\"\nprefix = \"{prefix}\"\nquantized = \"{form}\"\n");
        let blob = dir.convert(&checkpoint, &spec, "q.ttr");
        assert_near(&all_rows(&dir, &blob, "t", 20), &quantized.values(), 1e-7);
        ttrec!["inspect", &blob].exits(0).prints([dtype, "20 x 8"]);
    }
    // Rows that begin with them end with padding.
    write_safetensors(&checkpoint, &[(&weight, Dtype::U8, &[20, 16], vec![0; 320])]);
    for given in ["", "quantized = \"byte\"\n"] {
        let spec = format!("[[table]]\nname = \"t\"\nprefix = \"{prefix}\"\n{given}");
        let spec = dir.file("spec.toml", spec);
        ttrec!["convert", &checkpoint, "--spec", spec, "-o", dir.path("none.ttr")]
            .exits(3)
            .says([
                &*weight,
                "without",
                &scale,
                "quant_prep_enable_quant_state_dict_split_scale_bias",
            ]);
    }
}

#[test]
fn bytes_that_are_no_quantised_rows_are_refused() {
    let dir = Dir::new();
    let (checkpoint, blob) = (dir.path("q.safetensors"), dir.path("q.ttr"));
    let refused = |shape: &[usize], bytes: Vec<u8>, more: &str, says: &[&str]| {
        write_safetensors(&checkpoint, &[("emb.weight", Dtype::U8, shape, bytes)]);
        let spec = dir.file("spec.toml", format!("[[table]]\ntensor = \"emb.weight\"\n{more}"));
        ttrec!["convert", &checkpoint, "--spec", spec, "-o", &blob].exits(3).says(says);
        assert!(!blob.exists());
    };
    let noise: Vec<u8> =
        (0..30 * 16u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    refused(&[30, 16], noise.clone(), "", &["emb.weight", "is u8", "a scale and an offset"]);
    let given = "quantized = \"byte\"\n";
    refused(&[30, 16], noise, given, &["emb.weight", "row ", "scale is", "no negative scale"]);
    refused(&[30, 8], vec![0; 240], given, &["8 columns", "too few"]);
    let given = "quantized = \"bits\"\n";
    refused(&[30, 8], vec![0; 240], given, &["quantized", "`byte` or `nibble`"]);
    // In a few rows, other bytes may be scales by chance.
    let (columns, bytes) = QuantizedTable::new(2, 255).fused();
    refused(&[2, columns], bytes, "", &["`quantized` is missing", "\"byte\" (embedding_dim 8)"]);
    let floats = [0.5f32; 8][..].bytes();
    write_safetensors(&checkpoint, &[("emb.weight", Dtype::F32, &[2, 4], floats)]);
    let spec = "[[table]]\ntensor = \"emb.weight\"\nquantized = \"byte\"\n";
    let spec = dir.file("spec.toml", spec);
    ttrec!["convert", &checkpoint, "--spec", spec, "-o", &blob]
        .exits(3)
        .says(["`quantized` is set, but tensor \"emb.weight\" is f32"]);
}

/// Writes tensors of these shapes: numbers of eighths.
fn write_eighths(path: &Path, shapes: &[(&str, &[usize])]) -> Vec<Vec<f32>> {
    let number = |at: usize, seed: usize| ((at * 5 + seed * 3) % 13) as f32 / 8.0 - 0.75;
    let values: Vec<Vec<f32>> = (0..)
        .zip(shapes)
        .map(|(seed, (_, shape))| (0..shape.iter().product()).map(|at| number(at, seed)).collect())
        .collect();
    let tensors: Vec<_> = shapes
        .iter()
        .zip(&values)
        .map(|((name, shape), values)| (*name, Dtype::F32, *shape, values[..].bytes()))
        .collect();
    write_safetensors(path, &tensors);
    values
}

#[test]
fn learned_weights_of_lookups_are_multiplied_into_the_rows() {
    let dir = Dir::new();
    let checkpoint = dir.path("dlrm.safetensors");
    let values = write_eighths(
        &checkpoint,
        &[
            ("emb_l.0.weight", &[5, 4]),
            ("v_W_l.0", &[5]),
            ("emb_l.1.embs.weight", &[6, 2]),
            ("emb_l.1.proj.weight", &[4, 2]),
            ("v_W_l.1", &[6]),
            ("top_l.0.weight", &[1, 1]),
        ],
    );
    let blob = dir.path("model.ttr");
    ttrec!["convert", &checkpoint, "-o", &blob]
        .exits(0)
        .prints(["2 tables and a model"]);
    // Products of eighths: exact.
    let [rows, weights, short, projection, short_weights, _] = &values[..] else { panic!() };
    let expected: Vec<f64> = (0..5 * 4).map(|at| f64::from(rows[at] * weights[at / 4])).collect();
    assert_eq!(all_rows(&dir, &blob, "emb_l.0", 5), expected);
    let widened = |row: usize, column: usize| {
        let sum: f32 = (0..2).map(|k| short[row * 2 + k] * projection[column * 2 + k]).sum();
        f64::from(sum * short_weights[row])
    };
    let expected: Vec<f64> = (0..6 * 4).map(|at| widened(at / 4, at % 4)).collect();
    assert_near(&all_rows(&dir, &blob, "emb_l.1", 6), &expected, 1e-3);
    ttrec!["verify", &blob, "--against", &checkpoint].exits(0);

    let refused = |spec: &str, says: &[&str]| {
        let spec = dir.file("spec.toml", spec);
        ttrec!["convert", &checkpoint, "--spec", spec, "-o", dir.path("x.ttr")]
            .exits(3)
            .says(says);
    };
    refused(
        "[model]\n[[table]]\ntensor = \"emb_l.0.weight\"\n[[table]]\nprefix = \"emb_l.1.\"\n",
        &["emb_l.0.weight", "v_W_l.0", "by its `prefix`"],
    );
    write_eighths(&checkpoint, &[("emb_l.0.weight", &[5, 4]), ("v_W_l.0", &[4])]);
    refused("[[table]]\nprefix = \"emb_l.0.\"\n", &["\"v_W_l.0\" has shape [4]", "[5]"]);
    write_eighths(
        &checkpoint,
        &[("emb_l.0.weight_q", &[3, 4]), ("emb_l.0.weight_r", &[2, 4]), ("v_W_l.0", &[6])],
    );
    refused(
        "[[table]]\nprefix = \"emb_l.0.\"\nqr_operation = \"add\"\n",
        &["v_W_l.0", "quotient-remainder"],
    );
}

#[test]
fn the_row_of_a_padding_index_is_zeros() {
    let dir = Dir::new();
    let checkpoint = dir.path("padding.safetensors");
    let shapes: [(&str, &[usize]); 6] = [
        ("emb.weight", &[6, 4]),
        ("tt.parameters.0", &[1, 2, 2, 2]),
        ("tt.parameters.1", &[2, 3, 2, 1]),
        ("emb_l.0.weight_q", &[3, 4]),
        ("emb_l.0.weight_r", &[2, 4]),
        ("top_l.0.weight", &[1, 1]),
    ];
    write_eighths(&checkpoint, &shapes);
    for (name, table, more) in [
        ("emb.weight", "tensor = \"emb.weight\"", ""),
        ("emb.weight", "tensor = \"emb.weight\"", "dtype = \"i8\"\n"),
        ("tt", "prefix = \"tt.\"", "num_embeddings = 6\n"),
    ] {
        let spec = format!("[[table]]\n{table}\n{more}");
        let plain = dir.convert(&checkpoint, &spec, "plain.ttr");
        let mut expected = all_rows(&dir, &plain, name, 6);
        let padded = format!("{spec}padding_idx = 4\n");
        let blob = dir.convert(&checkpoint, &padded, "padded.ttr");
        assert!(expected[16..20].iter().any(|&x| x != 0.0));
        expected[16..20].fill(0.0);
        assert_eq!(all_rows(&dir, &blob, name, 6), expected);
        ttrec!["verify", &blob, "--against", &checkpoint, "--spec", dir.path("padded.ttr.toml")]
            .exits(0);
    }
    let refused = |spec: &str, says: &[&str]| {
        let spec = dir.file("spec.toml", spec);
        ttrec!["convert", &checkpoint, "--spec", spec, "-o", dir.path("x.ttr")]
            .exits(3)
            .says(says);
    };
    let table = "[[table]]\ntensor = \"emb.weight\"\n";
    refused(&format!("{table}padding_idx = 6\n"), &["`padding_idx` is 6", "6 rows"]);
    refused(
        &format!("{table}padding_idx = 1\nrepresentation = \"tt\"\nrank = 2\n"),
        &["`padding_idx` does not apply", "becomes a tensor train"],
    );
    let low = format!("{table}padding_idx = 1\nrepresentation = \"low-rank\"\nrank = 2\n");
    let blob = dir.convert(&checkpoint, &low, "low.ttr");
    assert_eq!(all_rows(&dir, &blob, "emb.weight", 6)[4..8], [0.0; 4]);
    refused(
        &format!("{table}padding_idx = 1\nindex_map = \"modulo\"\nnum_embeddings = 9\n"),
        &["`padding_idx` does not apply", "share rows"],
    );
    refused(
        "[[table]]\nprefix = \"emb_l.0.\"\nqr_operation = \"add\"\npadding_idx = 1\n",
        &["`padding_idx` does not apply to quotient-remainder"],
    );
    let other = "[[table]]\nname = \"other\"\ntensor = \"emb.weight\"\n";
    refused(
        &format!("[model]\npooling = \"mean\"\n{table}padding_idx = 1\n{other}"),
        &["emb.weight", "`padding_idx`", "averaged", "leave the index out"],
    );
}
