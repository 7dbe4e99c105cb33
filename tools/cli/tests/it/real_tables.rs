//! Published embedding tables, whole, in every dtype. They are too large to bundle: `TTREC_DATA` is
//! the folder that holds them, and `cargo test -- --ignored` runs these tests.

use crate::support::{Dir, Elements, TTREC, data, ttrec, write_zip};
use half::{bf16, f16};
use std::{
    fs,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

const MINILM: (&str, &str) = ("minilm-l6-v2.safetensors", "embeddings.word_embeddings.weight");
const WORDLLAMA: (&str, &str) = ("wordllama-256.safetensors", "embedding.weight");

/// A tensor read without the tool.
struct Table {
    checkpoint: PathBuf,
    name: &'static str,
    rows: usize,
    columns: usize,
    values: Vec<f32>,
}

impl Table {
    fn read((file, name): (&str, &'static str)) -> Self {
        let checkpoint = data(file);
        let bytes = fs::read(&checkpoint).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let tensor = tensors.tensor(name).unwrap();
        let values = match tensor.dtype() {
            safetensors::Dtype::F32 => tensor
                .data()
                .as_chunks()
                .0
                .iter()
                .map(|&bytes| f32::from_le_bytes(bytes))
                .collect(),
            safetensors::Dtype::F16 => tensor
                .data()
                .as_chunks()
                .0
                .iter()
                .map(|&bytes| f16::from_le_bytes(bytes).to_f32())
                .collect(),
            other => panic!("{other:?}"),
        };
        let &[rows, columns] = tensor.shape() else { panic!("{:?}", tensor.shape()) };
        Self { checkpoint, name, rows, columns, values }
    }

    /// Converts the table; the blob's path.
    fn convert(&self, dir: &Dir, dtype: &str) -> PathBuf {
        let spec = format!("[[table]]\ntensor = {:?}\ndtype = {dtype:?}\n", self.name);
        dir.convert(&self.checkpoint, &spec, &format!("{dtype}.ttr"))
    }

    /// Rows of the blob.
    fn look_up(&self, dir: &Dir, blob: &Path, rows: &[u32]) -> Vec<f32> {
        let (bags, out) = (dir.path("bags.npz"), dir.path("out.npy"));
        let offsets = crate::support::vector(&[0, rows.len() as u32]);
        crate::support::write_npz(
            &bags,
            &[("indices", crate::support::vector(rows)), ("offsets", offsets)],
        );
        ttrec!["lookup", blob, "--table", self.name, "--bags", bags, "--mode", "rows", "-o", &out]
            .exits(0);
        let (shape, values) = crate::support::read_f32(&out);
        assert_eq!(shape, [rows.len() as u64, self.columns as u64]);
        values
    }

    fn all_rows(&self) -> Vec<u32> {
        (0..self.rows as u32).collect()
    }

    /// Every row of the blob is, bit for bit, what `stored` makes of the tensor's.
    fn assert_bits(&self, dir: &Dir, blob: &Path, stored: impl Fn(f32) -> f32) {
        let found = self.look_up(dir, blob, &self.all_rows());
        assert_eq!(found.len(), self.values.len());
        for (at, (found, &value)) in found.iter().zip(&self.values).enumerate() {
            let (row, column) = (at / self.columns, at % self.columns);
            assert_eq!(
                found.to_bits(),
                stored(value).to_bits(),
                "row {row}, column {column}: {found} for {value}"
            );
        }
    }

    /// The relative error that `verify --against` reports.
    fn verified_error(&self, blob: &Path) -> f64 {
        let run = ttrec!["verify", blob, "--against", &self.checkpoint, "--json"].exits(0);
        let report: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
        let table = &report["tables"][0];
        assert_eq!(table["name"], self.name);
        assert_eq!(table["num_embeddings"], self.rows);
        let error = table["relative_error"].as_f64().unwrap();
        let (dtype, row) = (&table["dtype"], &table["largest_row_error_at"]);
        let largest = table["largest_row_error"].as_f64().unwrap();
        eprintln!(
            "{} {dtype}: relative error {error:.3e}, largest row error {largest:.3e} in row {row}",
            self.name
        );
        error
    }

    /// A row of an i4 blob has at most the squared error that half a step of its whole range gives
    /// each element.
    fn assert_i4(&self, dir: &Dir) {
        let blob = self.convert(dir, "i4");
        let found = self.look_up(dir, &blob, &self.all_rows());
        let mut ratio = 0.0f64;
        for (row, (found, values)) in
            found.chunks(self.columns).zip(self.values.chunks(self.columns)).enumerate()
        {
            let low = f64::from(values.iter().copied().fold(f32::INFINITY, f32::min));
            let high = f64::from(values.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            let scale = (high - low) / 15.0;
            // Half a step, and the rounding of scale and offset to f16.
            let bound = scale / 2.0
                + f64::powi(2.0, -11) * (low.abs() + 15.0 * scale)
                + f64::powi(2.0, -21);
            let pairs = found.iter().zip(values);
            let squared =
                pairs.map(|(&found, &value)| (f64::from(found) - f64::from(value)).powi(2));
            let error = (squared.sum::<f64>() / self.columns as f64).sqrt();
            assert!(error <= bound, "row {row}: {error:e}, bound {bound:e}");
            ratio = ratio.max(error / bound);
        }
        assert!(ratio > 0.3, "{ratio}: too good to be i4");
        let error = self.verified_error(&blob);
        eprintln!(
            "{} i4: relative error {error:.3e}, nearest a row came to its bound: {ratio:.4}",
            self.name
        );
        assert!(error > 1e-2 && error < 1.1e-1, "{error}");
    }

    /// Every element of an i8 blob is within half a step of its row's own scale, and the rounding
    /// of its evaluation.
    fn assert_i8(&self, dir: &Dir) {
        const U: f64 = 1.0 / (1 << 24) as f64;
        let blob = self.convert(dir, "i8");
        let found = self.look_up(dir, &blob, &self.all_rows());
        let (mut largest, mut ratio) = (0.0f64, 0.0f64);
        for (row, (found, values)) in
            found.chunks(self.columns).zip(self.values.chunks(self.columns)).enumerate()
        {
            let low = f64::from(values.iter().copied().fold(f32::INFINITY, f32::min));
            let high = f64::from(values.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            let scale = (high - low) / 255.0;
            // The rounding of scale and offset (which moves the ends of the range), of the product
            // and of the sum.
            let bound = scale * (1.0 + U) / 2.0
                + 2.0 * U * (low + 128.0 * scale).abs()
                + (255.0 + 2.0 * 128.0) * U * scale;
            for (column, (&found, &value)) in found.iter().zip(values).enumerate() {
                let error = (f64::from(found) - f64::from(value)).abs();
                assert!(
                    error <= bound,
                    "row {row}, column {column}: {found} for {value}, bound {bound:e}"
                );
                largest = largest.max(error);
                ratio = ratio.max(error / bound);
            }
        }
        eprintln!(
            "{} i8: largest error {largest:.3e}, nearest an element came to its row's bound: \
             {ratio:.4}",
            self.name
        );
        assert!(ratio > 0.5, "{ratio}: too good to be i8");
        let error = self.verified_error(&blob);
        assert!(error > 1e-4 && error < 2e-2, "{error}");
    }
}

#[test]
#[ignore = "needs TTREC_DATA: published tables"]
fn minilm_as_f32_is_bit_exact() {
    let table = Table::read(MINILM);
    let dir = Dir::new();
    let blob = table.convert(&dir, "f32");
    table.assert_bits(&dir, &blob, |x| x);
    // Out of order, repeated, and the edges.
    let last = table.rows as u32 - 1;
    let rows: Vec<u32> = (0..200u64)
        .map(|i| (i * 7_368_787 % table.rows as u64) as u32)
        .chain([last, 0, last, 1])
        .collect();
    for (row, found) in rows.iter().zip(table.look_up(&dir, &blob, &rows).chunks(table.columns)) {
        let expected = &table.values[*row as usize * table.columns..][..table.columns];
        assert!(found.iter().zip(expected).all(|(a, b)| a.to_bits() == b.to_bits()), "row {row}");
    }
    assert_eq!(table.verified_error(&blob), 0.0);
}

#[test]
#[ignore = "needs TTREC_DATA: published tables"]
fn minilm_as_f16_and_bf16_is_the_nearest_of_each() {
    let table = Table::read(MINILM);
    let dir = Dir::new();
    let blob = table.convert(&dir, "f16");
    table.assert_bits(&dir, &blob, |x| f16::from_f32(x).to_f32());
    let error = table.verified_error(&blob);
    assert!(error > 1e-5 && error < f64::powi(2.0, -11), "{error}");
    let blob = table.convert(&dir, "bf16");
    table.assert_bits(&dir, &blob, |x| bf16::from_f32(x).to_f32());
    let error = table.verified_error(&blob);
    assert!(error > 1e-4 && error < f64::powi(2.0, -8), "{error}");
    // `half` rounds as the format asks: each is within its unit roundoff (or half of the smallest
    // subnormal).
    for &x in &table.values {
        let (exact, f16, bf16) =
            (f64::from(x), f64::from(f16::from_f32(x)), f64::from(bf16::from_f32(x)));
        assert!(
            (f16 - exact).abs() <= (exact.abs() * f64::powi(2.0, -11)).max(f64::powi(2.0, -25)),
            "{x}"
        );
        assert!((bf16 - exact).abs() <= exact.abs() * f64::powi(2.0, -8), "{x}");
    }
}

#[test]
#[ignore = "needs TTREC_DATA: published tables"]
fn minilm_as_i8_is_within_half_a_step() {
    let table = Table::read(MINILM);
    table.assert_i8(&Dir::new());
}

#[test]
#[ignore = "needs TTREC_DATA: published tables"]
fn wordllama_f16_in_is_bit_exact_as_f16_and_as_f32() {
    let table = Table::read(WORDLLAMA);
    let dir = Dir::new();
    let mut lens = Vec::new();
    for dtype in ["f16", "f32"] {
        let blob = table.convert(&dir, dtype);
        table.assert_bits(&dir, &blob, |x| x);
        assert_eq!(table.verified_error(&blob), 0.0);
        lens.push(fs::metadata(blob).unwrap().len());
    }
    let elements = table.values.len() as u64;
    assert!(lens[0] < elements * 2 + 1024 && lens[1] >= elements * 4, "{lens:?}");
    // Its own type is the default, and it is the file's only table: no spec is needed.
    let blob = dir.path("default.ttr");
    ttrec!["convert", &table.checkpoint, "-o", &blob].exits(0);
    assert!(fs::read(blob).unwrap() == fs::read(dir.path("f16.ttr")).unwrap());
}

#[test]
#[ignore = "needs TTREC_DATA: published tables"]
fn wordllama_as_i8_is_within_half_a_step() {
    let table = Table::read(WORDLLAMA);
    table.assert_i8(&Dir::new());
}

/// The most memory that the child ever held resident, once it waits to write its output.
///
/// The kernel's own record ends with the process, and what `wait4` reports counts the parent as it
/// was when it forked. So stdout is a pipe that is already full: the child has then done all its
/// work when it comes to wait.
#[cfg(target_os = "linux")]
fn peak_kib(mut command: Command, says: &str) -> u64 {
    let (mut reader, writer) = std::io::pipe().unwrap();
    // How much a pipe holds depends on the system: a thread writes until it cannot, and goes on
    // once we read.
    let mut filler = writer.try_clone().unwrap();
    let written = Arc::new(AtomicUsize::new(0));
    let progress = Arc::clone(&written);
    let filler = thread::spawn(move || {
        for _ in 0..1 << 10 {
            filler.write_all(&[0; 1 << 12]).unwrap();
            progress.fetch_add(1, Ordering::Relaxed);
        }
    });
    let mut before = usize::MAX;
    while before != written.load(Ordering::Relaxed) {
        before = written.load(Ordering::Relaxed);
        thread::sleep(Duration::from_millis(100));
    }
    assert!(!filler.is_finished(), "a pipe that holds 4 MiB");
    let child = command.stdout(writer).spawn().unwrap();
    // The command keeps a writer, too.
    drop(command);
    let child = Reaped(child);

    let status = |key: &str| -> Option<String> {
        let status = fs::read_to_string(format!("/proc/{}/status", child.0.id())).ok()?;
        status
            .lines()
            .find_map(|line| line.strip_prefix(key))
            .map(|value| value.trim().to_owned())
    };
    let started = Instant::now();
    let mut asleep = 0;
    // Asleep in every look for a quarter of a second: it waits for the pipe. (Reading the disk is
    // another state.)
    while asleep < 25 {
        assert!(started.elapsed() < Duration::from_secs(30), "the child never came to its output");
        thread::sleep(Duration::from_millis(10));
        asleep = if status("State:").is_some_and(|state| state.starts_with('S')) {
            asleep + 1
        } else {
            0
        };
    }
    let peak = status("VmHWM:").unwrap().trim_end_matches(" kB").parse().unwrap();
    let mut output = Vec::new();
    reader.read_to_end(&mut output).unwrap();
    filler.join().unwrap();
    output.retain(|&byte| byte != 0);
    let output = String::from_utf8(output).unwrap();
    assert!(output.contains(says), "{output}");
    peak
}

/// A child that does not outlive the test.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

// Beside the same command on a small file: most of what a process holds is its program, whose size
// depends on how it was built.
#[test]
#[ignore = "needs TTREC_DATA: published tables"]
#[cfg(target_os = "linux")]
fn inspect_holds_nothing_of_a_large_blob() {
    let table = Table::read(MINILM);
    let dir = Dir::new();
    let blob = table.convert(&dir, "f32");
    let len = fs::metadata(&blob).unwrap().len();
    assert!(len > 46_000_000);
    let small = Path::new("../../tests/golden/two_tables.ttr");
    for json in [&[][..], &["--json"]] {
        let inspect = |blob: &Path, says| {
            let mut command = Command::new(TTREC);
            command.arg("inspect").arg(blob).args(json).stdin(Stdio::null());
            peak_kib(command, says)
        };
        let [small, large] = [inspect(small, "item"), inspect(&blob, "30522")];
        eprintln!("inspect {json:?}: {small} KiB resident, {large} KiB for {len} bytes");
        assert!(large < small + 1024, "{small} KiB, {large} KiB");
    }
}

/// A `state_dict` of one float32 table, `w`, as `torch.save` writes it: uncompressed.
fn write_torch(path: &Path, shape: [u32; 2], bytes: &[u8]) {
    let text =
        |text: &str| [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
    let number = |number: u32| [b"J", &number.to_le_bytes()[..]].concat();
    let [rows, columns] = shape.map(number);
    let pickle = [
        b"\x80\x02}q\x00",
        &text("w")[..],
        b"ctorch._utils\n_rebuild_tensor_v2\n((",
        &text("storage"),
        b"ctorch\nFloatStorage\n",
        &text("0"),
        &text("cpu"),
        &number(shape[0] * shape[1]),
        b"tQK\x00",
        &[&rows, &columns, &b"\x86"[..]].concat(),
        &[&columns, &number(1), &b"\x86"[..]].concat(),
        b"\x89ccollections\nOrderedDict\n)RtRs.",
    ]
    .concat();
    write_zip(path, &[("m/data.pkl", &pickle), ("m/data/0", bytes), ("m/version", b"3\n")]);
}

#[test]
#[ignore = "needs TTREC_DATA: published tables"]
#[cfg(target_os = "linux")]
fn torch_tables_are_converted_without_being_held() {
    let table = Table::read(MINILM);
    let (dir, bytes) = (Dir::new(), table.values[..].bytes());
    fs::write(dir.path("spec.toml"), "[[table]]\ntensor = \"w\"\ndtype = \"i8\"\n").unwrap();
    write_torch(&dir.path("small.pt"), [1, 384], &bytes[..4 * 384]);
    write_torch(&dir.path("large.pt"), [30522, 384], &bytes);
    let peak = |command: &str, model: &str, says: &str| {
        let [checkpoint, blob] = ["pt", "ttr"].map(|extension| format!("{model}.{extension}"));
        let args = match command {
            "convert" => ["convert", &checkpoint, "--spec", "spec.toml", "-o", &blob],
            _ => ["verify", &blob, "--spec", "spec.toml", "--against", &checkpoint],
        };
        let mut command = Command::new(TTREC);
        command.current_dir(dir.path(".")).args(args).stdin(Stdio::null());
        peak_kib(command, says)
    };
    for (command, says) in [("convert", "1 table, "), ("verify", "every checksum matches")] {
        let [small, large] = ["small", "large"].map(|model| peak(command, model, says));
        eprintln!("{command}: {small} KiB resident, {large} KiB for {} bytes", bytes.len());
        // `verify` maps the blob, a quarter of the checkpoint; both have buffers.
        assert!((large - small) * 1024 < bytes.len() as u64 * 2 / 5, "{small} KiB, {large} KiB");
    }
    assert!(dir.path("large.ttr").exists() && dir.path("spec.toml").exists());
}

#[test]
#[ignore = "needs TTREC_DATA: published tables"]
fn minilm_as_i4_is_within_its_bound() {
    let table = Table::read(MINILM);
    table.assert_i4(&Dir::new());
}

#[test]
#[ignore = "needs TTREC_DATA: published tables"]
fn wordllama_as_i4_is_within_its_bound() {
    let table = Table::read(WORDLLAMA);
    table.assert_i4(&Dir::new());
}
