//! Runs the `ttrec` binary, and writes and reads the files that it takes and gives.

// Each test file uses a part of this.
#![allow(dead_code, unused_imports)]

mod plain;

pub(crate) use plain::faults;
use std::{
    collections::BTreeMap,
    env, fs,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Command, Output},
};
use zip::{CompressionMethod, ZipArchive, ZipWriter, write::SimpleFileOptions};

/// The binary under test.
pub(crate) const TTREC: &str = env!("CARGO_BIN_EXE_ttrec");

/// Runs `ttrec` with these arguments, strings and paths alike.
macro_rules! ttrec {
    ($($arg:expr),* $(,)?) => {{
        let mut command = std::process::Command::new($crate::support::TTREC);
        $(command.arg($arg);)*
        $crate::support::run(command)
    }};
}
pub(crate) use ttrec;

/// What a run came to.
#[derive(Debug)]
pub(crate) struct Run {
    /// `None`: a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

#[track_caller]
pub(crate) fn run(mut command: Command) -> Run {
    let Output { status, stdout, stderr } = command.output().expect("the binary starts");
    let text = |bytes| String::from_utf8(bytes).expect("output is UTF-8");
    let run = Run { code: status.code(), stdout: text(stdout), stderr: text(stderr) };
    if matches!(run.code, Some(3 | 4)) {
        let args = command.get_args().map(|arg| arg.to_string_lossy().into_owned());
        let faults = plain::faults(&run.stderr, &args.collect::<Vec<_>>());
        assert!(faults.is_empty(), "the refusal has {faults:?}: {run:#?}");
    }
    run
}

impl Run {
    /// It exited with this code, and did not panic on the way.
    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Self {
        assert!(!self.stderr.contains("panicked"), "{self:#?}");
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }

    /// Its stderr holds each of these.
    #[track_caller]
    pub(crate) fn says<S: AsRef<str>>(self, wanted: impl IntoIterator<Item = S>) -> Self {
        for wanted in wanted {
            assert!(self.stderr.contains(wanted.as_ref()), "no {:?} in {self:#?}", wanted.as_ref());
        }
        self
    }

    /// Its stdout holds each of these.
    #[track_caller]
    pub(crate) fn prints<S: AsRef<str>>(self, wanted: impl IntoIterator<Item = S>) -> Self {
        for wanted in wanted {
            assert!(self.stdout.contains(wanted.as_ref()), "no {:?} in {self:#?}", wanted.as_ref());
        }
        self
    }
}

/// A file of `tests/golden`.
pub(crate) fn golden(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden")).join(name)
}

/// A file of published tables, which are too large to bundle: tests with them are ignored.
pub(crate) fn data(name: &str) -> PathBuf {
    let folder = env::var_os("TTREC_DATA").expect("TTREC_DATA, the folder of published tables");
    Path::new(&folder).join(name)
}

/// A numpy array in row-major order, whatever type it had in the file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Array {
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Vec<f64>,
}

impl Array {
    pub(crate) fn integers(&self) -> Vec<u64> {
        self.values.iter().map(|&value| value as u64).collect()
    }

    pub(crate) fn largest(&self) -> f64 {
        self.values.iter().fold(0.0, |largest, value| value.abs().max(largest))
    }
}

/// Decodes a `.npy` array.
pub(crate) fn parse_npy(bytes: &[u8]) -> Array {
    let npy = npyz::NpyFile::new(bytes).expect("a .npy array");
    let shape = npy.shape().iter().map(|&n| n as usize).collect();
    let values = match npy.dtype().descr().as_str() {
        "'<f4'" => npy.into_vec::<f32>().map(|values| values.into_iter().map(f64::from).collect()),
        "'<f8'" => npy.into_vec::<f64>(),
        "'<i8'" => npy
            .into_vec::<i64>()
            .map(|values| values.into_iter().map(|value| value as f64).collect()),
        "'<u4'" => npy.into_vec::<u32>().map(|values| values.into_iter().map(f64::from).collect()),
        other => panic!("element type {other}"),
    };
    Array { shape, values: values.expect("as many elements as the header says") }
}

/// A float32 array as `ttrec lookup` writes it, bits untouched.
pub(crate) fn read_f32(path: &Path) -> (Vec<u64>, Vec<f32>) {
    let bytes = fs::read(path).expect("an output");
    let npy = npyz::NpyFile::new(&bytes[..]).expect("a .npy array");
    let shape = npy.shape().to_vec();
    (shape, npy.into_vec().expect("float32 elements"))
}

/// Every array of a `.npz` file.
pub(crate) fn read_npz(path: &Path) -> BTreeMap<String, Array> {
    let mut archive =
        ZipArchive::new(fs::File::open(path).expect("an npz file")).expect("a zip archive");
    let mut arrays = BTreeMap::new();
    for position in 0..archive.len() {
        let mut member = archive.by_index(position).expect("a member");
        let name = member.name().expect("a name").trim_end_matches(".npy").to_owned();
        let mut bytes = Vec::new();
        member.read_to_end(&mut bytes).expect("a member's bytes");
        arrays.insert(name, parse_npy(&bytes));
    }
    arrays
}

/// A `.npy` array of this numpy type and shape over these bytes.
pub(crate) fn npy(descr: &str, shape: &[usize], bytes: &[u8]) -> Vec<u8> {
    let shape: String = shape.iter().map(|n| format!("{n}, ")).collect();
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape}), }}");
    let padded = (10 + header.len() + 1).next_multiple_of(64) - 10;
    let mut out = b"\x93NUMPY\x01\x00".to_vec();
    out.extend((padded as u16).to_le_bytes());
    out.extend(format!("{header:width$}\n", width = padded - 1).as_bytes());
    out.extend(bytes);
    out
}

/// The bytes of integers or floats, little-endian, and numpy's name for their type.
pub(crate) trait Elements {
    const DESCR: &'static str;
    fn bytes(&self) -> Vec<u8>;
}

macro_rules! elements {
    ($($t:ty => $descr:literal),*) => {$(
        impl Elements for [$t] {
            const DESCR: &'static str = $descr;
            fn bytes(&self) -> Vec<u8> {
                self.iter().flat_map(|value| value.to_le_bytes()).collect()
            }
        }
    )*};
}
elements!(i32 => "<i4", i64 => "<i8", u8 => "|u1", u16 => "<u2", u32 => "<u4", u64 => "<u8");
elements!(f32 => "<f4", f64 => "<f8");

/// A one-dimensional `.npy` array.
pub(crate) fn vector<T>(values: &[T]) -> Vec<u8>
where
    [T]: Elements,
{
    npy(<[T]>::DESCR, &[values.len()], &values.bytes())
}

/// Writes a `.npz` file of `.npy` arrays.
pub(crate) fn write_npz(path: &Path, arrays: &[(&str, Vec<u8>)]) {
    let names: Vec<String> = arrays.iter().map(|(name, _)| format!("{name}.npy")).collect();
    let arrays = arrays.iter().map(|(_, npy)| &npy[..]);
    let members: Vec<_> = names.iter().map(String::as_str).zip(arrays).collect();
    write_zip(path, &members);
}

/// Writes an uncompressed zip archive of these members.
pub(crate) fn write_zip(path: &Path, members: &[(&str, &[u8])]) {
    let mut archive = ZipWriter::new(fs::File::create(path).expect("a new file"));
    for (name, bytes) in members {
        let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        archive.start_file(*name, options).expect("a new member");
        archive.write_all(bytes).expect("a member's bytes");
    }
    archive.finish().expect("an archive");
}

/// Writes a `.safetensors` file of tensors: name, type, shape and bytes.
pub(crate) fn write_safetensors(
    path: &Path,
    tensors: &[(&str, safetensors::Dtype, &[usize], Vec<u8>)],
) {
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (
            *name,
            safetensors::tensor::TensorView::new(*dtype, shape.to_vec(), bytes).expect("a tensor"),
        )
    });
    safetensors::serialize_to_file(views, None, path).expect("a new file");
}

/// A temporary directory and files in it.
pub(crate) struct Dir(tempfile::TempDir);

impl Dir {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory"))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file of these bytes.
    pub(crate) fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).expect("a new file");
        path
    }

    /// The names of all files, sorted.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).expect("the directory");
        let mut names: Vec<String> = entries
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// Converts `checkpoint` with this spec; the blob's path.
    #[track_caller]
    pub(crate) fn convert(&self, checkpoint: &Path, spec: &str, blob: &str) -> PathBuf {
        let spec = self.file(&format!("{blob}.toml"), spec);
        let blob = self.path(blob);
        ttrec!["convert", checkpoint, "--spec", spec, "-o", &blob].exits(0);
        blob
    }
}
