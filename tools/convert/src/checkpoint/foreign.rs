//! Files of other programs, which are refused by name: what each is, and how to save its tensors in
//! a form that can be read.

use std::path::Path;

use super::protobuf::{Fields, Value};

/// Starts of files, at these positions, and what they are.
const STARTS: [(usize, &[u8], &str); 21] = [
    (0, b"\x89HDF\r\n\x1a\n", HDF5),
    (4, b"TFL3", TFLITE),
    (4, b"ORTM", "ONNX Runtime's own format (.ort): give the .onnx file that it was made from"),
    (0, b"GGUF", GGUF),
    (0, b"ggjt", "a ggml model of llama.cpp: give the checkpoint that it was made from"),
    (0, b"tjgg", "a ggml model of llama.cpp: give the checkpoint that it was made from"),
    (0, b"lmgg", "a ggml model of llama.cpp: give the checkpoint that it was made from"),
    (
        0,
        b"version https://git-lfs.github.com/spec/",
        "a pointer of Git LFS in place of the file: run `git lfs pull`, or download the file",
    ),
    (0, b"model_checkpoint_path:", TF_CHECKPOINT),
    (
        0,
        b"\xba\x16\x4f\x2f",
        "a fastText model (.bin): give the .vec file, which fastText writes too, or write its \
         lines yourself from `model.get_words()` and `model.get_word_vector(word)`",
    ),
    (0, b"\x12\x01\0\0\0\0\0\0", "arrays of MXNet: save them with numpy.savez(\"model.npz\", ...)"),
    (0, b"PAR1", "Parquet: save the numbers of its table with numpy.save(\"table.npy\", ...)"),
    (0, b"ARROW1", "Arrow: save the numbers of its table with numpy.save(\"table.npy\", ...)"),
    (
        0,
        b"MATLAB 5.0",
        "MATLAB: save its arrays with numpy.savez(\"model.npz\", \
        **scipy.io.loadmat(\"model.mat\"))",
    ),
    (
        0,
        b"SQLite format 3\0",
        "an SQLite database: save its table with numpy.save(\"table.npy\", ...)",
    ),
    (0, b"\x1f\x8b", COMPRESSED),
    (0, b"BZh", COMPRESSED),
    (0, b"\xfd7zXZ\0", COMPRESSED),
    (0, b"\x28\xb5\x2f\xfd", COMPRESSED),
    (0, b"7z\xbc\xaf\x27\x1c", COMPRESSED),
    (
        257,
        b"ustar",
        "tar archive: unpack it, and give the file in it. If it is a torch checkpoint \
        of before 2017, save it again with a newer torch",
    ),
];

const COMPRESSED: &str = "a compressed file: decompress it, and give the file that comes out";

const HDF5: &str = "HDF5, as Keras saves it (.h5, .keras). In Python, load the model, then: \
    numpy.savez(\"model.npz\", **{w.path: w.numpy() for w in model.weights}) (`w.name` before \
    Keras 3)";

const TFLITE: &str = "TensorFlow Lite, whose weights are made for its own kernels: save those of \
    the model that it was made from with numpy.savez(\"model.npz\", **{w.path: w.numpy() for w in \
    model.weights})";

const GGUF: &str = "GGUF (llama.cpp): give the checkpoint that it was made from. Or, in Python: \
    numpy.savez(\"model.npz\", **{t.name: gguf.dequantize(t.data, t.tensor_type) for t in \
    gguf.GGUFReader(\"model.gguf\").tensors})";

const TF_CHECKPOINT: &str = "a TensorFlow checkpoint. In Python: r = tf.train.load_checkpoint(\
    \"PREFIX\"); numpy.savez(\"model.npz\", **{k: r.get_tensor(k) for k in \
    r.get_variable_to_shape_map()})";

const SAVED_MODEL: &str = "a TensorFlow SavedModel. In Python: m = tf.saved_model.load(\
    \"DIRECTORY\"); numpy.savez(\"model.npz\", **{v.name: v.numpy() for v in m.variables})";

const CORE_ML: &str = "a Core ML model: give the checkpoint that it was made from, as \
    .safetensors, .pt or .npz";

const TORCH_SCRIPT: &str = "TorchScript. In Python: m = torch.jit.load(\"model.pt\", \
    map_location=\"cpu\"); torch.save(m.state_dict(), \"weights.pt\")";

const TORCH_EXPORT: &str = "a program of torch.export. In Python: p = torch.export.load(\
    \"model.pt2\"); torch.save(dict(p.state_dict), \"weights.pt\")";

const PICKLE: &str = "a pickle of a Python object, which only Python can read. In Python, load it, \
    then save its arrays: numpy.savez(\"model.npz\", table=array), or \
    torch.save(model.state_dict(), \"model.pt\")";

const JOBLIB: &str = "a Python object that joblib saved, which only Python can read. In Python: \
    m = joblib.load(\"model.joblib\"); numpy.savez(\"model.npz\", table=...) of its arrays";

/// What a file with these bytes is, if it is known; `path` is its name.
pub(super) fn describe(path: &Path, bytes: &[u8]) -> Option<&'static str> {
    if bytes.is_empty() {
        return Some("the file is empty: was its download or copy interrupted?");
    }
    let at = |&(at, magic, _): &(usize, &[u8], _)| {
        bytes.get(at..).is_some_and(|bytes| bytes.starts_with(magic))
    };
    if let Some((_, _, found)) = STARTS.into_iter().find(at) {
        return Some(found);
    }
    let text = bytes[..bytes.len().min(1 << 10)].trim_ascii_start().to_ascii_lowercase();
    if [&b"<!doctype html"[..], b"<html", b"<?xml"]
        .iter()
        .any(|tag| text.starts_with(tag))
    {
        return Some(
            "a web page in place of the file, as a download gives that failed or needs a login: \
             download the file itself",
        );
    }
    // A table of keys, as in LevelDB, ends with this number; its data have no mark.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if bytes.ends_with(b"\x57\xfb\x80\x8b\x24\x75\x47\xdb") || name.contains(".data-0000") {
        return Some(TF_CHECKPOINT);
    }
    // Protocols 2 to 5, and 0, which is text.
    let text_pickle = [&b"(dp"[..], b"(lp", b"ccopy_reg\n", b"cnumpy"];
    if matches!(bytes, [0x80, 2..=5, ..])
        || text_pickle.iter().any(|opcodes| bytes.starts_with(opcodes))
    {
        let start = &bytes[..bytes.len().min(64 << 10)];
        let by_joblib = start.windows(6).any(|window| window == b"joblib");
        return Some(if by_joblib { JOBLIB } else { PICKLE });
    }
    messages(bytes)
}

/// What the protobuf message of a whole file is.
fn messages(bytes: &[u8]) -> Option<&'static str> {
    let mut fields = Fields::new(bytes, 0..bytes.len()).take(1 << 10);
    let Some(Ok((1, Value::Number(version)))) = fields.next() else { return None };
    let mut numbers = Vec::new();
    for field in fields {
        numbers.push(field.ok()?.0);
    }
    // One field for each kind of model.
    if numbers.iter().any(|number| (200..3000).contains(number)) {
        return Some(CORE_ML);
    }
    let is_saved_model = version == 1 && !numbers.is_empty();
    (is_saved_model && numbers.iter().all(|&number| number == 2)).then_some(SAVED_MODEL)
}

/// What an archive with members of these names is, if it is neither torch's nor numpy's.
pub(super) fn describe_archive(names: &[String]) -> Option<String> {
    let has = |end: &str| names.iter().any(|name| name.ends_with(end));
    let root = names.iter().find_map(|name| name.strip_suffix("data.pkl"));
    if root.is_some_and(|root| names.contains(&format!("{root}constants.pkl"))) {
        return Some(TORCH_SCRIPT.to_owned());
    }
    if has("serialized_exported_program.json") || has("archive_format") {
        return Some(TORCH_EXPORT.to_owned());
    }
    if has("data.pkl") || has(".npy") {
        return None;
    }
    if has(".weights.h5") {
        return Some(HDF5.to_owned());
    }
    let files: Vec<_> = names.iter().filter(|name| !name.ends_with('/')).take(3).collect();
    let first = files.first()?;
    Some(format!(
        "zip archive without data.pkl (torch) or .npy members (numpy). It has {files:?}: unpack \
         it, and give a file in it, such as {first:?}"
    ))
}

/// What a directory is, and the file in it to give.
pub(super) fn describe_directory(path: &Path) -> String {
    let has = |name: &&&str| path.join(name).exists();
    if has(&&"saved_model.pb") {
        return SAVED_MODEL.to_owned();
    }
    if has(&&"Manifest.json") {
        return CORE_ML.to_owned();
    }
    let known = [
        "model.safetensors.index.json",
        "model.safetensors",
        "pytorch_model.bin.index.json",
        "pytorch_model.bin",
        "diffusion_pytorch_model.safetensors",
        "model.onnx",
        "model.npz",
    ];
    match known.iter().find(has) {
        Some(name) => format!("a directory: give the file {name:?} in it"),
        None => "a directory: give a file in it, such as a .safetensors, .pt or .npz".to_owned(),
    }
}
