//! The checkpoint reader against files of every container, sound and hostile.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::NamedTempFile;
use ttrec_convert::checkpoint::{Checkpoint, CheckpointError, ElementType, Tensor};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// A machine under load takes a few seconds for what is bounded; what is not never ends.
const HANG: Duration = Duration::from_secs(60);

fn golden(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../cli/tests/golden")).join(name)
}

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data")).join(name)
}

pub(crate) fn open(path: &Path) -> Checkpoint {
    Checkpoint::open(path).unwrap_or_else(|e| panic!("{e}"))
}

/// A file of these bytes, under a name that says nothing of its container.
pub(crate) fn file(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// The error of opening a file of these bytes or of reading its only tensor; it must name the file.
fn refusal(bytes: &[u8]) -> String {
    let file = file(bytes);
    let error = match Checkpoint::open(file.path()) {
        Ok(checkpoint) => {
            if let Some((name, reason)) = checkpoint.unreadable().next() {
                return format!("`{name}`: {reason}");
            }
            let tensor = checkpoint.tensors().next().expect("opened, expected a refusal");
            tensor.read_f32(0, &mut [0.0]).expect_err("read, expected a refusal")
        }
        Err(error) => error,
    };
    let error = error.to_string();
    assert!(error.starts_with(file.path().to_str().unwrap()), "{error}");
    error
}

#[track_caller]
pub(crate) fn assert_refused(bytes: &[u8], expected: &str) {
    let error = refusal(bytes);
    assert!(error.contains(expected), "{error}");
}

pub(crate) fn floats(tensor: &Tensor) -> Vec<f32> {
    let mut out = vec![0.0; tensor.len() as usize];
    tensor.read_f32(0, &mut out).unwrap_or_else(|e| panic!("{e}"));
    out
}

pub(crate) fn integers(tensor: &Tensor) -> Vec<i64> {
    let mut out = vec![0; tensor.len() as usize];
    tensor.read_i64(0, &mut out).unwrap_or_else(|e| panic!("{e}"));
    out
}

/// Names and shapes, in the order of the checkpoint.
fn listing(checkpoint: &Checkpoint) -> Vec<(&str, &[u64])> {
    checkpoint.tensors().map(|t| (t.name(), t.shape())).collect()
}

// Sound files.

#[test]
fn torch_and_safetensors_agree_bit_for_bit() {
    for name in ["fbtt_d2", "fbtt_d3", "fbtt_d3_cache", "fbtt_d4"] {
        let torch = open(&golden(&format!("{name}.pt")));
        let safe = open(&golden(&format!("{name}.safetensors")));
        assert!(safe.tensors().count() >= 3, "{name}");
        for expected in safe.tensors() {
            let tensor = torch.tensor(expected.name()).unwrap();
            assert_eq!(tensor.element_type(), expected.element_type(), "{name} {}", tensor.name());
            assert_eq!(tensor.shape(), expected.shape(), "{name} {}", tensor.name());
            let bits = |tensor| floats(tensor).into_iter().map(f32::to_bits).collect::<Vec<_>>();
            assert_eq!(bits(tensor), bits(expected), "{name} {}", tensor.name());
            if tensor.element_type() == ElementType::I64 {
                assert_eq!(integers(tensor), integers(expected));
            }
        }
        // What safetensors lacks is what it need not hold: empty tensors.
        for tensor in torch.tensors().filter(|t| safe.tensor(t.name()).is_none()) {
            assert_eq!(tensor.len(), 0, "{name} {}", tensor.name());
        }
    }
}

/// Opens a torch file, and holds every tensor to what pytorch-reader reads of it.
fn as_the_library_reads(path: &Path) -> Checkpoint {
    let checkpoint = open(path);
    let library = pytorch_reader::PytorchReader::new(path).unwrap();
    assert_eq!(checkpoint.tensors().count(), library.len(), "{}", path.display());
    for (name, expected) in library.tensors() {
        let name = name.strip_prefix("state_dict.").unwrap_or(name);
        let tensor = checkpoint.tensor(name).unwrap();
        assert_eq!(tensor.len(), expected.num_elements() as u64);
        let bytes = expected.read().unwrap();
        match expected.dtype() {
            pytorch_reader::DType::F32 => {
                let expected: Vec<f32> =
                    bytes.as_chunks().0.iter().map(|&x| f32::from_le_bytes(x)).collect();
                assert_eq!(floats(tensor), expected, "{} {name}", path.display());
                let mut streamed = vec![0.0; expected.len()];
                tensor.stream_f32(0, &mut streamed).unwrap();
                assert_eq!(streamed, expected, "{} {name}", path.display());
            }
            pytorch_reader::DType::I64 => {
                let expected: Vec<i64> =
                    bytes.as_chunks().0.iter().map(|&x| i64::from_le_bytes(x)).collect();
                assert_eq!(integers(tensor), expected, "{} {name}", path.display());
            }
            _ => {}
        }
    }
    checkpoint
}

#[test]
fn tensors_read_in_place_are_what_the_library_gathers() {
    let golden = [
        "fbtt_d2.pt",
        "fbtt_d3.pt",
        "fbtt_d3_cache.pt",
        "fbtt_d4.pt",
        "tltorch_blocktt.pt",
        "t3nsor.pt",
    ];
    let dlrm = ["dlrm_plain.pt", "dlrm_qr.pt", "dlrm_qradd.pt", "dlrm_md.pt"];
    let fixtures = ["views.pt", "legacy.pt"].map(fixture);
    for path in golden.into_iter().chain(dlrm).map(self::golden).chain(fixtures) {
        as_the_library_reads(&path);
    }
}

/// The opcodes by which `torch.save` writes six `f32` of storage `key`, or fewer of them.
fn written(key: &str, offset: u8, shape: &[u8], strides: &[u8]) -> Vec<u8> {
    let text =
        |text: &str| [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
    let numbers = |numbers: &[u8]| {
        let numbers: Vec<u8> = numbers.iter().flat_map(|&n| [b'K', n]).collect();
        [b"(", &numbers[..], b"t"].concat()
    };
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec(),
        text("storage"),
        b"ctorch\nFloatStorage\n".to_vec(),
        text(key),
        text("cpu"),
        b"K\x06tQK".to_vec(),
        vec![offset],
        numbers(shape),
        numbers(strides),
        b"\x89ccollections\nOrderedDict\n)RtR".to_vec(),
    ]
    .concat()
}

/// What names say once, twice, in a memo, or in other ways than `torch.save` does: wherever a
/// tensor is said to lie, it is the one that the library takes for it.
#[test]
fn no_pickle_leads_to_another_tensor_than_the_library_finds() {
    let key = |key: &str| [b"X", &(key.len() as u32).to_le_bytes()[..], key.as_bytes()].concat();
    let (zero, one, tail) = (
        written("0", 0, &[2, 3], &[3, 1]),
        written("1", 0, &[2, 3], &[3, 1]),
        written("1", 2, &[2, 2], &[2, 1]),
    );
    // The same in opcodes of another protocol, which are left to the library.
    let other = tensor_pickle(&[2, 3], &[3, 1]);
    let other = other.strip_prefix(b"(dVw\n").unwrap().strip_suffix(b"s.").unwrap();
    let (w, a, b, ab) = (key("w"), key("a"), key("b"), key("a.b"));
    let (epoch, state) = (key("epoch"), key("state_dict"));
    let transposed = written("1", 0, &[3, 2], &[1, 3]);
    let pickles: [(&str, Vec<&[u8]>); 12] = [
        ("one tensor", vec![b"}", &w, &zero, b"s."]),
        ("an offset", vec![b"}", &w, &tail, b"s."]),
        ("another order", vec![b"}", &w, &transposed, b"s."]),
        ("an ordered dict", vec![b"ccollections\nOrderedDict\n)R(", &w, &one, &a, &tail, b"u."]),
        (
            "its attributes",
            vec![b"ccollections\nOrderedDict\n)R(", &w, &one, b"u}", &a, b"K\x01sb."],
        ),
        ("a state_dict", vec![b"}(", &epoch, b"K\x07", &state, b"}", &w, &one, b"su."]),
        ("dicts in dicts", vec![b"}", &a, b"}", &b, b"}", &w, &one, b"sss."]),
        ("a key twice", vec![b"}(", &w, &zero, &w, &one, b"u."]),
        ("a key again, in other words", vec![b"}(", &w, &one, &w, other, b"u."]),
        ("a key again, for a number", vec![b"}(", &w, &one, &a, &zero, &w, b"K\x01u."]),
        (
            "a dict given up for another",
            vec![b"}(", &ab, other, &a, b"}", &b, &one, b"s", &a, b"}u."],
        ),
        ("a tensor in the memo", vec![b"}(", &w, &one, b"q\x01", &a, b"h\x01u."]),
    ];
    let storage =
        |start: u8| (0..6).flat_map(|i| f32::from(start + i).to_le_bytes()).collect::<Vec<u8>>();
    for (what, pickle) in pickles {
        let members = [
            ("x/data.pkl", &pickle.concat()[..]),
            ("x/data/0", &storage(0)),
            ("x/data/1", &storage(10)),
        ];
        for method in [CompressionMethod::Stored, CompressionMethod::Deflated] {
            let file = file(&zip_of(method, &members));
            eprintln!("{what}, {method:?}");
            as_the_library_reads(file.path());
        }
    }
}

/// Objects by the reading of Python, whose memo has the objects themselves: each is what it became.
#[test]
fn what_is_not_a_tensor_does_not_matter() {
    let text =
        |text: &str| [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
    let (a, b, w) = (text("a"), text("b"), text("w"));
    let one = written("1", 0, &[2, 3], &[3, 1]);
    let negative = {
        let plain = written("1", 0, &[2, 3], &[3, 1]);
        let arguments = plain.strip_suffix(b"tR").unwrap();
        [arguments, b"}", &text("neg"), b"\x88stR"].concat()
    };
    let at = one.windows(5).position(|bytes| bytes == b"Float").unwrap();
    let complex = [&one[..at], b"Complex", &one[at..]].concat();
    let sparse = b"ctorch._utils\n_rebuild_sparse_tensor\n(NNNtR".to_vec();
    let (values, opposite) =
        ([10.0, 11.0, 12.0, 13.0, 14.0, 15.0], [-10.0, -11.0, -12.0, -13.0, -14.0, -15.0]);
    let dict = |function: &[u8]| [function, b"(", &w, &one, b"u"].concat();
    for (what, pickle, name, expected) in [
        ("memo", [b"}q\0", &w[..], &one, b"s0}(", &a, b"h\0", &b, b"Nu"].concat(), "a.w", values),
        ("a defaultdict", dict(b"ccollections\ndefaultdict\n)R"), "w", values),
        ("a subclass", dict(b"cmine\nDict\n)\x81"), "w", values),
        ("a number", [b"}K\x07", &one[..], b"s"].concat(), "7", values),
        ("a tuple beside", [b"}(K\x01K\x02\x86N", &w[..], &one, b"u"].concat(), "w", values),
        ("a list", [b"](N", &one[..], b"e"].concat(), "1", values),
        ("complex beside", [b"}(", &a[..], &complex, &w, &one, b"u"].concat(), "w", values),
        ("sparse beside", [b"}(", &a[..], &sparse, &w, &one, b"u"].concat(), "w", values),
        ("a negative view", [b"}", &w[..], &negative, b"s"].concat(), "w", opposite),
        (
            "a module",
            [b"cmine\nNet\n)\x81}", &text("_parameters")[..], b"}", &w, &one, b"ssb"].concat(),
            "w",
            values,
        ),
    ] {
        let pickle = [&pickle[..], b"."].concat();
        let storage: Vec<u8> = values.iter().flat_map(|x: &f32| x.to_le_bytes()).collect();
        let members = [("x/data.pkl", &pickle[..]), ("x/data/1", &storage[..])];
        let file = file(&zip_of(CompressionMethod::Stored, &members));
        let checkpoint = open(file.path());
        assert_eq!(checkpoint.tensors().count(), 1, "{what}");
        let tensor = checkpoint.tensor(name).unwrap_or_else(|| panic!("{what}: no {name:?}"));
        assert_eq!(floats(tensor), expected, "{what}");
    }
    let both = [b"}(K\x07", &one[..], &text("7"), &one, b"u."].concat();
    assert_refused(&torch(&both), "two tensors named `7`");
}

/// Archives have checksums: a changed byte of a tensor is not taken for its value.
#[test]
fn a_changed_byte_in_an_archive_is_noticed() {
    let names = ["fbtt_d3.pt", "tltorch_blocktt.pt", "dlrm_plain.pt", "dlrm_qr.pt"].map(golden);
    for path in names
        .into_iter()
        .chain(["views.pt", "arrays.npz", "arrays_compressed.npz"].map(fixture))
    {
        let bytes = std::fs::read(&path).unwrap();
        let mut archive = zip::ZipArchive::new(std::io::Cursor::new(&bytes)).unwrap();
        let mut flipped = 0;
        for index in 0..archive.len() {
            let member = archive.by_index(index).unwrap();
            let name = member.name().unwrap().into_owned();
            let (start, len) =
                (member.data_start().unwrap() as usize, member.compressed_size() as usize);
            // `version` and the like are no tensors.
            if !(name.contains("/data/") || name.ends_with(".npy")) || len == 0 {
                continue;
            }
            let mut bytes = bytes.clone();
            bytes[start + len / 2] ^= 1;
            assert!(!exercise(&bytes), "{}: {name}", path.display());
            flipped += 1;
        }
        assert!(flipped > 0, "{}", path.display());
    }
}

/// A tensor without elements needs no bytes of its storage: both ways of reading agree, whatever
/// the storage's checksum.
#[test]
fn an_empty_tensor_of_a_damaged_archive_is_read_both_ways() {
    let (pickle, storage) = (tensor_pickle(&[0], &[1]), [7; 24]);
    let members = [("archive/data.pkl", &pickle[..]), ("archive/data/0", &storage)];
    let mut bytes = zip_of(CompressionMethod::Stored, &members);
    let start = bytes.windows(24).position(|bytes| bytes == storage).unwrap();
    bytes[start] = 8;
    let file = file(&bytes);
    let checkpoint = open(file.path());
    let tensor = checkpoint.tensor("w").unwrap();
    assert_eq!(tensor.shape(), [0]);
    tensor.read_f32(0, &mut []).unwrap();
    tensor.stream_f32(0, &mut []).unwrap();
}

#[test]
fn a_state_dict_lists_its_tensors_by_name() {
    let checkpoint = open(&golden("fbtt_d3.pt"));
    let cores: Vec<_> = listing(&checkpoint)
        .into_iter()
        .filter(|(name, _)| name.starts_with("tt_cores."))
        .collect();
    let expected: [(&str, &[u64]); 3] = [
        ("tt_cores.0", &[1, 10, 64]),
        ("tt_cores.1", &[1, 10, 1024]),
        ("tt_cores.2", &[1, 10, 64]),
    ];
    assert_eq!(cores, expected);
    assert_eq!(integers(checkpoint.tensor("L").unwrap()), [100, 10, 1]);
}

#[test]
fn the_legacy_container_is_read_and_its_state_dict_unwrapped() {
    let checkpoint = open(&fixture("legacy.pt"));
    let expected: [(&str, &[u64]); 3] =
        [("index", &[3]), ("optimizer.state.0.momentum", &[1]), ("weight", &[2, 3])];
    assert_eq!(listing(&checkpoint), expected);
    assert_eq!(floats(checkpoint.tensor("weight").unwrap()), [0.5, 1.5, 2.5, 3.5, 4.5, 5.5]);
    assert_eq!(integers(checkpoint.tensor("index").unwrap()), [-1, 1 << 62, 7]);
    assert_eq!(floats(checkpoint.tensor("optimizer.state.0.momentum").unwrap()), [9.0]);
}

#[test]
fn a_tensor_that_one_process_has_whole_is_read() {
    let checkpoint = open(&fixture("sharded.pt"));
    for name in ["whole_dtensor", "whole_wrapper", "whole_sharded"] {
        let tensor = checkpoint.tensor(name).unwrap();
        assert_eq!(tensor.shape(), [2, 3]);
        assert_eq!(floats(tensor), [0.5, 1.5, 2.5, 3.5, 4.5, 5.5]);
    }
    assert_eq!(checkpoint.tensor("plain").unwrap().shape(), [3, 2]);
    for name in ["columns", "columns_of_wrapper"] {
        let tensor = checkpoint.tensor(name).unwrap();
        assert_eq!(tensor.shape(), [3, 4]);
        assert_eq!(floats(tensor), (0..12).map(|x| x as f32).collect::<Vec<_>>());
    }
    let error = checkpoint.find("overlapping").err().unwrap().to_string();
    assert!(error.contains("two of its parts overlap"), "{error}");
    for name in
        ["part_of_dtensor", "part_of_wrapper", "part_of_sharded", "no_shards", "columns_of_nowhere"]
    {
        let error = checkpoint.find(name).err().unwrap().to_string();
        assert!(
            error.contains("only a part of it") && error.contains("full_state_dict"),
            "{error}"
        );
    }
}

#[test]
fn a_directory_of_several_processes_is_one_checkpoint() {
    let folder = fixture("distributed");
    for path in [folder.clone(), folder.join(".metadata")] {
        let checkpoint = open(&path);
        let table: Vec<f32> = (0..24).map(|x| x as f32).collect();
        for (name, expected) in [
            ("model.whole.weight", &[0.5, 1.5, 2.5, 3.5, 4.5, 5.5][..]),
            ("model.rows.weight", &table),
            ("model.columns.weight", &table),
        ] {
            let tensor = checkpoint.tensor(name).unwrap();
            assert_eq!(floats(tensor), expected, "{name}");
            let (mut streamed, middle) = (vec![0.0; 4], 2);
            tensor.stream_f32(middle, &mut streamed).unwrap();
            assert_eq!(streamed, expected[2..6], "{name}");
        }
        for (name, reason) in [
            ("model.incomplete.weight", "parts of it are missing"),
            ("model.overlapping.weight", "parts overlap"),
            ("model.lost.weight", "__2_0.distcp"),
            ("model.outside.weight", "in the same directory"),
        ] {
            let error = checkpoint.find(name).err().unwrap().to_string();
            assert!(error.contains(name) && error.contains(reason), "{error}");
        }
        assert!(checkpoint.is_optimizer_state("optim.state.rows.exp_avg"));
        assert!(checkpoint.tensor("epoch").is_none());
    }
    let refused = |path: &Path| Checkpoint::open(path).err().unwrap().to_string();
    let error = refused(&folder.join("__0_0.distcp"));
    assert!(error.contains("give its directory"), "{error}");
    let error = refused(folder.parent().unwrap());
    assert!(error.contains("a directory: give a file in it"), "{error}");
}

#[test]
fn a_changed_byte_in_the_list_of_a_directory_does_no_harm() {
    let (folder, copy) = (fixture("distributed"), tempfile::tempdir().unwrap());
    for file in ["__0_0.distcp", "__1_0.distcp"] {
        std::fs::copy(folder.join(file), copy.path().join(file)).unwrap();
    }
    let bytes = std::fs::read(folder.join(".metadata")).unwrap();
    let sound = open(&folder);
    let mut refused = 0;
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1 << (at % 8);
        std::fs::write(copy.path().join(".metadata"), &changed).unwrap();
        let Ok(checkpoint) = Checkpoint::open(copy.path()) else {
            refused += 1;
            continue;
        };
        for tensor in checkpoint.tensors().filter(|tensor| tensor.len() < 1000) {
            let mut out = vec![0.0; tensor.len() as usize];
            let read = tensor.read_f32(0, &mut out);
            // Of the same name and shape, it is the same or refused.
            let same = sound.tensor(tensor.name()).filter(|same| same.shape() == tensor.shape());
            if let (Ok(()), Some(same)) = (read, same) {
                assert_eq!(out.len(), floats(same).len());
            }
        }
    }
    assert!(refused > 100, "{refused}");
}

#[test]
fn strided_views_decode_row_major() {
    let checkpoint = open(&fixture("views.pt"));
    let floats = |name| floats(checkpoint.tensor(name).unwrap());
    assert_eq!(floats("plain"), [0.5, 1.5, 2.5, 3.5, 4.5, 5.5]);
    assert_eq!(floats("transposed"), [0.5, 3.5, 1.5, 4.5, 2.5, 5.5]);
    assert_eq!(floats("column"), [1.5, 4.5]);
    assert_eq!(floats("expanded"), [4.5, 5.5, 4.5, 5.5]);
    assert_eq!(floats("scalar"), [5.5]);
    assert!(floats("empty").is_empty());
    let permuted: Vec<f32> = (0..4)
        .flat_map(|i| (0..2).flat_map(move |j| (0..3).map(move |k| (i + 12 * j + 4 * k) as f32)))
        .collect();
    assert_eq!(floats("permuted"), permuted);
}

#[test]
fn every_torch_element_type_decodes() {
    use ElementType::{Bf16, Bool, F16, F32, F64, I8, I16, I32, I64, U8};
    let checkpoint = open(&fixture("views.pt"));
    for (index, expected) in
        [F32, F64, F16, Bf16, I64, I32, I16, I8, U8, Bool].into_iter().enumerate()
    {
        let tensor = checkpoint.tensor(&format!("types.{index}")).unwrap();
        assert_eq!(tensor.element_type(), expected);
        let values = if expected == Bool { [0, 1, 1, 0] } else { [0, 1, 2, 100] };
        assert_eq!(integers(tensor), values, "{expected}");
        assert_eq!(floats(tensor), values.map(|v| v as f32), "{expected}");
    }
}

#[test]
fn every_numpy_element_type_and_order_decodes() {
    for name in ["arrays.npz", "arrays_compressed.npz"] {
        let checkpoint = open(&fixture(name));
        let numbers = checkpoint.tensors().filter(|t| t.name().contains("e_"));
        let mut types = Vec::new();
        for tensor in numbers {
            assert_eq!(tensor.shape(), [2, 3]);
            assert_eq!(integers(tensor), [0, 1, 2, 3, 4, 100], "{name} {}", tensor.name());
            assert_eq!(
                floats(tensor),
                [0.0, 1.0, 2.0, 3.0, 4.0, 100.0],
                "{name} {}",
                tensor.name()
            );
            types.push(format!("{} {}", tensor.name(), tensor.element_type()));
        }
        types.sort();
        assert_eq!(
            types.join(", "),
            "be_f2 f16, be_f4 f32, be_f8 f64, be_i2 i16, be_i8 i64, be_u4 u32, le_f2 f16, le_f4 \
             f32, le_f8 f64, le_i2 i16, le_i4 i32, le_i8 i64, le_u2 u16, le_u4 u32, le_u8 u64, \
             ne_i1 i8, ne_u1 u8"
        );
        assert_eq!(integers(checkpoint.tensor("bool").unwrap()), [0, 1, 1, 1, 1, 1]);
        assert_eq!(floats(checkpoint.tensor("scalar").unwrap()), [2.5]);
        assert!(floats(checkpoint.tensor("empty").unwrap()).is_empty());
        let fortran = checkpoint.tensor("fortran").unwrap();
        let expected: Vec<f32> = (0..24_u8).map(f32::from).collect();
        assert_eq!(fortran.shape(), [2, 3, 4]);
        assert_eq!(floats(fortran), expected);
        let mut part = [0.0; 7];
        fortran.read_f32(9, &mut part).unwrap();
        assert_eq!(part, expected[9..16]);
    }
}

#[test]
fn a_npy_file_is_one_tensor_named_after_it() {
    let fortran = open(&fixture("fortran_be.npy"));
    assert_eq!(listing(&fortran), [("fortran_be", [2, 3].as_slice())]);
    assert_eq!(floats(fortran.tensor("fortran_be").unwrap()), [0.0, 1.0, 2.0, 3.0, 4.0, 100.0]);
    let row_major = open(&fixture("row_major.npy"));
    assert_eq!(integers(row_major.tensor("row_major").unwrap()), [0, 1, 2, 3, 4, 100]);
}

// What a tensor is asked for.

#[test]
fn chunks_join_to_the_whole_and_ranges_are_checked() {
    for path in
        [golden("fbtt_d4.safetensors"), golden("fbtt_d4.pt"), fixture("arrays_compressed.npz")]
    {
        let checkpoint = open(&path);
        let tensor = checkpoint.tensors().max_by_key(|t| t.len()).unwrap();
        let whole = floats(tensor);
        let mut joined = vec![0.0; whole.len()];
        for (index, chunk) in joined.chunks_mut(7).enumerate() {
            tensor.read_f32(7 * index as u64, chunk).unwrap();
        }
        assert_eq!(joined, whole);
        tensor.read_f32(tensor.len(), &mut []).unwrap();
        for start in [tensor.len(), tensor.len() - 1, u64::MAX] {
            let error = tensor.read_f32(start, &mut [0.0; 2]).unwrap_err();
            assert!(matches!(error, CheckpointError::Tensor { .. }));
            assert!(
                error.to_string().contains(&format!("`{}`: elements {start}..", tensor.name())),
                "{error}"
            );
        }
    }
}

#[test]
fn integers_are_exact_or_refused_with_their_position() {
    let read = |dtype: &str, data: &[u8]| {
        let bytes = safetensors(&[("t", dtype, "[2]", data)]);
        let file = file(&bytes);
        let mut out = [0; 2];
        open(file.path())
            .tensor("t")
            .unwrap()
            .read_i64(0, &mut out)
            .map(|()| out)
            .map_err(|e| e.to_string())
    };
    let f64s = |values: [f64; 2]| values.map(f64::to_le_bytes).concat();
    assert_eq!(read("F64", &f64s([-3.0, 9_007_199_254_740_992.0])), Ok([-3, 1 << 53]));
    assert_eq!(read("F64", &f64s([0.0, -9_223_372_036_854_775_808.0])), Ok([0, i64::MIN]));
    for value in [1.5, f64::NAN, f64::INFINITY, 9_223_372_036_854_775_808.0] {
        let error = read("F64", &f64s([0.0, value])).unwrap_err();
        assert!(error.contains(&format!("`t`: element 1 is {value}")), "{error}");
    }
    let u64s = |values: [u64; 2]| values.map(u64::to_le_bytes).concat();
    assert_eq!(read("U64", &u64s([7, i64::MAX as u64])), Ok([7, i64::MAX]));
    let error = read("U64", &u64s([7, 1 << 63])).unwrap_err();
    assert!(error.contains("element 1 is 9223372036854775808"), "{error}");
}

#[test]
fn wide_types_round_to_the_nearest_f32() {
    let read = |dtype, data: [u8; 8]| {
        let file = file(&safetensors(&[("t", dtype, "[1]", &data)]));
        floats(open(file.path()).tensor("t").unwrap())[0]
    };
    assert_eq!(read("F64", 0.1_f64.to_le_bytes()), 0.1_f32);
    assert_eq!(read("I64", ((1_i64 << 24) + 3).to_le_bytes()), ((1 << 24) + 4) as f32);
    assert_eq!(read("U64", u64::MAX.to_le_bytes()), 18_446_744_073_709_551_616.0);
}

// Hostile files.

/// A safetensors file of these (name, type, shape, data), names repeated as they come.
fn safetensors(tensors: &[(&str, &str, &str, &[u8])]) -> Vec<u8> {
    let (mut entries, mut data) = (Vec::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let (start, end) = (data.len(), data.len() + bytes.len());
        entries.push(format!(
            r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}"#
        ));
        data.extend_from_slice(bytes);
    }
    safetensors_of(&format!("{{{}}}", entries.join(",")), &data)
}

fn safetensors_of(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

fn npy(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let text = format!("{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n");
    [b"\x93NUMPY\x01\x00".as_slice(), &(text.len() as u16).to_le_bytes(), text.as_bytes(), data]
        .concat()
}

pub(crate) fn zip_of(method: CompressionMethod, members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, data) in members {
        writer
            .start_file(*name, SimpleFileOptions::default().compression_method(method))
            .unwrap();
        writer.write_all(data).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

/// A torch zip around this pickle and one storage of six `f32`.
fn torch(pickle: &[u8]) -> Vec<u8> {
    zip_of(
        CompressionMethod::Deflated,
        &[("archive/data.pkl", pickle), ("archive/data/0", &[0; 24])],
    )
}

/// A pickle of `{"w": tensor}` over six `f32` with this shape and these strides.
fn tensor_pickle(shape: &[u64], stride: &[u64]) -> Vec<u8> {
    let tuple = |items: &[u64]| {
        let items: String = items.iter().map(|item| format!("L{item}L\n")).collect();
        format!("({items}t")
    };
    format!(
        "(dVw\nctorch._utils\n_rebuild_tensor_v2\n((Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI6\n\
                  tQI0\n{}{}I00\n(dtRs.",
        tuple(shape),
        tuple(stride)
    )
    .into_bytes()
}

/// Replaces `from` by `to`, of the same length, wherever it stands.
fn replace_all(mut bytes: Vec<u8>, from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let at: Vec<_> = (0..bytes.len() - from.len())
        .filter(|&at| bytes[at..].starts_with(from))
        .collect();
    assert!(!at.is_empty());
    for at in at {
        bytes[at..at + to.len()].copy_from_slice(to);
    }
    bytes
}

#[test]
fn commands_in_pickles_do_not_run() {
    for name in ["command.pt", "command_legacy.pt"] {
        let pickle = std::fs::read(fixture(name)).unwrap();
        assert!(pickle.windows(5).any(|w| w == b"touch"), "{name} holds no command");
        let checkpoint = open(&fixture(name));
        assert_eq!(listing(&checkpoint), [("weight", [2, 3].as_slice())]);
        assert_eq!(floats(checkpoint.tensor("weight").unwrap())[5], 5.5);
        assert!(!Path::new("ttrec-was-here").exists());
    }
}

#[test]
fn other_files_are_refused_with_what_was_expected() {
    for bytes in [b"x".as_slice(), b"hello, this is no checkpoint", &[0; 512]] {
        assert_refused(bytes, "expected .safetensors, .safetensors.index.json, torch .pt");
    }
    assert_refused(&zip_of(CompressionMethod::Stored, &[]), "expected data.pkl (torch) or .npy");
    assert!(matches!(Checkpoint::open(Path::new("no such file")), Err(CheckpointError::Io { .. })));
    let directory = tempfile::tempdir().unwrap();
    let error = Checkpoint::open(directory.path()).err().unwrap().to_string();
    assert!(error.contains("a directory: give a file in it"), "{error}");
    let mut tar = vec![0; 512];
    tar[257..262].copy_from_slice(b"ustar");
    assert_refused(&tar, "save it again with a newer torch");
}

#[test]
fn unsupported_element_types_are_refused_by_name() {
    assert_refused(
        &safetensors(&[("t", "F8_E4M3", "[2]", &[0; 2])]),
        "`t`: its elements are F8_E4M3: expected",
    );
    assert_refused(&npy("'<c8'", "(1,)", &[0; 8]), "element type '<c8', expected");
    assert_refused(&npy("[('a', '<f4'), ('b', '<f4')]", "(1,)", &[0; 8]), "expected a plain one");
    let text = std::fs::read(fixture("text.npy")).unwrap();
    assert_refused(&text, "element type '<U1', expected");
}

#[test]
fn equal_names_are_refused() {
    let same = ("t", "F32", "[1]", [0; 4].as_slice());
    assert_refused(&safetensors(&[same, same]), "two tensors named `t`");
    // The same bytes under two types: nothing but the name gives it away.
    let header = r#"{"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
        "t":{"dtype":"I32","shape":[1],"data_offsets":[0,4]}}"#;
    assert_refused(&safetensors_of(header, &[0; 4]), "two tensors named `t`");

    let array = npy("'<f4'", "(1,)", &[0; 4]);
    let members = [("a.npy", array.as_slice()), ("b.npy", array.as_slice())];
    let twice = replace_all(zip_of(CompressionMethod::Stored, &members), b"b.npy", b"a.npy");
    assert_refused(&twice, "two members of one name");
    // numpy ends a name at a null.
    let members = [("a.npy", array.as_slice()), ("a.npy\0", array.as_slice())];
    assert_refused(&zip_of(CompressionMethod::Stored, &members), "`a`: duplicate tensor name");

    let error = Checkpoint::open(&fixture("same_names.pt")).err().unwrap().to_string();
    assert!(error.contains("two tensors named `a.b`"), "{error}");
    let error = Checkpoint::open(&fixture("same_names_state.pt")).err().unwrap().to_string();
    assert!(error.contains("`w`: duplicate tensor name"), "{error}");
}

#[test]
fn absurd_shapes_are_refused() {
    const HUGE: u64 = 1 << 63;
    for shape in [
        "[9223372036854775808,9223372036854775808]",
        "[9223372036854775808,2]",
        "[18446744073709551615]",
    ] {
        assert_refused(&safetensors(&[("t", "F32", shape, &[0; 4])]), "overflow");
        let shape = shape.replace('[', "(").replace(']', ",)");
        assert!(refusal(&npy("'<f4'", &shape, &[0; 4])).contains(": "));
        let array = npy("'<f4'", &shape, &[0; 4]);
        for method in [CompressionMethod::Stored, CompressionMethod::Deflated] {
            assert!(refusal(&zip_of(method, &[("a.npy", &array)])).contains(": "));
        }
    }
    assert_refused(&npy("'<f4'", "(5,)", &[0; 4]), "takes 20 bytes, but the file holds 4");
    assert_refused(&npy("'<f4'", "(1,)", &[0; 8]), "takes 4 bytes, but the file holds 8");
    assert_refused(&npy("'<f4'", "(-1,)", &[0; 4]), "negative");

    let tensor = torch(&tensor_pickle(&[2, 3], &[3, 1]));
    assert_eq!(floats(open(file(&tensor).path()).tensor("w").unwrap()), [0.0; 6]);
    for (shape, stride) in [(HUGE, 1), (HUGE - 1, 1), (7, 1), (2, HUGE - 1)] {
        let error = refusal(&torch(&tensor_pickle(&[shape, shape], &[stride, 1])));
        assert!(error.contains("shape") || error.contains("stride"), "{error}");
    }
    // Stride 0 makes any shape of one element: 4 GiB of it from a file of 400 bytes.
    let expanded = torch(&tensor_pickle(&[1 << 30], &[0]));
    assert_refused(&expanded, "`w`: 4294967296 bytes in a file of");
}

#[test]
fn zip_bombs_are_refused_before_they_expand() {
    // 70 MB of zeros in 70 KB.
    let mut array = npy("'<f4'", "(17500000,)", &[]);
    array.resize(array.len() + 70_000_000, 0);
    let bomb = zip_of(CompressionMethod::Deflated, &[("a.npy", &array)]);
    assert!(bomb.len() < 200_000);
    let start = Instant::now();
    assert_refused(&bomb, "`a.npy`: expands from");
    assert!(start.elapsed() < HANG);
    assert_refused(&replace_all(bomb, b"a.npy", b"a/0.x"), "`a/0.x`: expands from");

    // One that declares less than comes out.
    let array = npy("'<f4'", "(4,)", &[0; 400]);
    let liar = zip_of(CompressionMethod::Deflated, &[("a.npy", &array)]);
    let (size, lie) = (array.len() as u32, array.len() as u32 - 384);
    let liar = replace_all(liar, &size.to_le_bytes(), &lie.to_le_bytes());
    assert_refused(&liar, "`a`: File is larger than its declared");
}

#[test]
fn pickle_bombs_take_neither_memory_nor_time() {
    let long = "x".repeat(200_000);
    let fetches = b"h\0".repeat(100_000);
    let bomb =
        |memoized: &str| [b"(".as_slice(), memoized.as_bytes(), b"q\0", &fetches, b"l."].concat();
    let extents = format!("({}t", "K\x01".repeat(50_000));
    let shape =
        format!("((Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI6\ntQI0\n{extents}{extents}I00\n(dt");
    // Each list has the one before it many times, and the first one a tensor.
    let tensor = tensor_pickle(&[2, 3], &[3, 1]);
    let lists = b"]q\x01(h\x00h\x00h\x00h\x00h\x00h\x00h\x00h\x00eq\x00".repeat(40);
    let paths = [&tensor[..tensor.len() - 1], b"q\x00", &lists, b"."].concat();
    for (what, pickle) in [
        ("class name", bomb(&format!("c{long}\nx\n"))),
        ("dict key", bomb(&format!("(V{long}\nNd"))),
        ("storage key", bomb(&format!("(Vstorage\nctorch\nFloatStorage\nV{long}\nVcpu\nI6\ntQ"))),
        ("shape", bomb(&format!("ctorch._utils\n_rebuild_tensor_v2\n{shape}R"))),
        ("constants", [b"(".as_slice(), &b"N".repeat(8 << 20), b"l."].concat()),
        ("lists", [b"(".as_slice(), &b"]".repeat(8 << 20), b"l."].concat()),
        ("doubling", [b"N".as_slice(), &b"2\x86".repeat(60), b"."].concat()),
        ("nesting", [b"N".as_slice(), &b"\x85".repeat(1 << 20), b"."].concat()),
        ("itself", [b"]q\0".as_slice(), &b"h\0a".repeat(1 << 20), b"."].concat()),
        ("paths", paths),
    ] {
        let start = Instant::now();
        let file = file(&torch(&pickle));
        if let Ok(checkpoint) = Checkpoint::open(file.path()) {
            assert!(checkpoint.tensors().count() <= 50_000, "{what}");
        }
        assert!(start.elapsed() < HANG, "{what}: {:?}", start.elapsed());
    }
    // Tensors under a long path: short in the file, long by name.
    let tensor = tensor_pickle(&[2, 3], &[3, 1]);
    let tensor = &tensor[b"(dVw\n".len()..tensor.len() - b"s.".len()];
    let members: Vec<u8> = (0..500)
        .flat_map(|i| [format!("V{i}\n").as_bytes(), b"h\x01s"].concat())
        .collect();
    let pickle =
        [b"(V_\n".as_slice(), tensor, b"q\x01dV", long.as_bytes(), b"\n(d", &members, b"s."]
            .concat();
    assert_refused(&torch(&pickle), "tensor names beyond");
}

#[test]
fn deep_nesting_neither_overflows_the_stack_nor_takes_long() {
    let start = Instant::now();
    for (open, close) in [("[", "]"), ("(", ")"), ("{", "}"), ("{1:", "}")] {
        for depth in [3, 40, 1500] {
            let nested = format!("{}{}", open.repeat(depth), close.repeat(depth));
            assert!(refusal(&npy("'<f4'", &nested, &[0; 4])).contains(": "));
            refusal(&safetensors(&[("t", "F32", &nested, &[0; 4])]));
        }
    }
    let nested = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    refusal(&safetensors(&[("t", "F32", &nested, &[0; 4])]));
    assert!(start.elapsed() < HANG);
}

#[test]
fn oversized_headers_are_refused_before_they_are_allocated() {
    let mut bytes = b"\x93NUMPY\x02\x00\xff\xff\xff\xff".to_vec();
    bytes.resize(200, b' ');
    assert_refused(&bytes, "header of 4294967295 bytes");
    for len in [u64::MAX, 1 << 40, 100_000_000] {
        assert_refused(&[&len.to_le_bytes(), b"{}".as_slice()].concat(), "expected at most");
    }
    assert_refused(&[&100_u64.to_le_bytes(), b"{}".as_slice()].concat(), "longer than the file");
}

/// Opens the file and reads every tensor both ways; whether all of it worked. The point is that it
/// returns, and soon.
fn exercise(bytes: &[u8]) -> bool {
    let file = file(bytes);
    let start = Instant::now();
    let sound = Checkpoint::open(file.path()).is_ok_and(|checkpoint| {
        let all = checkpoint.unreadable().next().is_none();
        checkpoint.tensors().fold(all, |sound, tensor| {
            // All of any of these files, but only the start of a view that a flip has expanded.
            let len = tensor.len().min(100_000) as usize;
            let floats = tensor.read_f32(0, &mut vec![0.0; len]).is_ok();
            let _ = tensor.read_i64(tensor.len() - len as u64, &mut vec![0; len]);
            sound && floats
        })
    });
    assert!(start.elapsed() < HANG, "took {:?}", start.elapsed());
    sound
}

/// Every checkpoint that another program wrote, and files of all kinds of elements and orders.
fn small_files() -> Vec<(PathBuf, Vec<u8>)> {
    let golden = std::fs::read_dir(golden("")).unwrap().map(|entry| entry.unwrap().path());
    let is_checkpoint =
        |path: &PathBuf| path.extension().is_some_and(|kind| kind == "pt" || kind == "safetensors");
    let mut golden: Vec<PathBuf> = golden.filter(is_checkpoint).collect();
    golden.sort();
    assert_eq!(golden.len(), 14, "{golden:?}");
    let fixtures =
        ["legacy.pt", "views.pt", "arrays.npz", "arrays_compressed.npz", "fortran_be.npy"]
            .map(fixture);
    golden
        .into_iter()
        .chain(fixtures)
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect()
}

#[test]
fn no_truncation_is_taken_for_the_whole() {
    for (path, bytes) in small_files() {
        assert!(exercise(&bytes), "{}", path.display());
        let step = (bytes.len() / 500).max(1);
        for len in (0..bytes.len()).step_by(step) {
            assert!(!exercise(&bytes[..len]), "{} cut to {len}", path.display());
        }
    }
}

#[test]
fn bit_flips_never_panic() {
    // xorshift64*: a fixed sequence, so that a failure can be repeated.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % below
    };
    for (path, bytes) in small_files() {
        let (mut survived, rounds) = (0, 1500);
        for round in 0..rounds {
            let mut flipped = bytes.clone();
            for _ in 0..=round % 4 {
                // Headers stand at either end, and only they can mislead.
                let at = match round % 3 {
                    0 => random(bytes.len()),
                    1 => random(bytes.len().min(1500)),
                    _ => bytes.len() - 1 - random(bytes.len().min(1500)),
                };
                flipped[at] ^= 1 << random(8);
            }
            survived += usize::from(exercise(&flipped));
        }
        assert!(survived < rounds, "{}: no flip noticed", path.display());
    }
}
