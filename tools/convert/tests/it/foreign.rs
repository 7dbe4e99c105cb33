//! Files that are not read, each refused by its name and with the way out.

use crate::checkpoint::{assert_refused, zip_of};
use std::{fs, path::Path};
use ttrec_convert::Checkpoint;
use zip::CompressionMethod;

#[test]
fn files_of_other_programs_are_refused_by_name() {
    let tar = [&[0; 257][..], b"ustar", &[0; 250]].concat();
    let core_ml = [&[8, 7, 0x12, 0][..], &[0xa2, 0x1f, 0]].concat();
    let joblib = b"\x80\x04\x95\x10\0\0\0\0\0\0\0\x8c\x13joblib.numpy_pickle\x94.";
    for (bytes, what, way_out) in [
        (&b""[..], "the file is empty", "interrupted"),
        (b"\x89HDF\r\n\x1a\n\0\0", "HDF5, as Keras saves it", "numpy.savez(\"model.npz\""),
        (b"\x1c\0\0\0TFL3\0\0", "TensorFlow Lite", "numpy.savez(\"model.npz\""),
        (b"\x1c\0\0\0ORTM\0\0", "ONNX Runtime", "give the .onnx file"),
        (b"GGUF\x03\0\0\0", "GGUF (llama.cpp)", "gguf.GGUFReader(\"model.gguf\")"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS", "`git lfs pull`"),
        (b"<!DOCTYPE html>\n<html>", "a web page", "download the file itself"),
        (b"\n <html lang=\"en\">", "a web page", "download the file itself"),
        (b"model_checkpoint_path: \"ckpt-1\"\n", "a TensorFlow checkpoint", "load_checkpoint"),
        (b"\0\0key\x57\xfb\x80\x8b\x24\x75\x47\xdb", "a TensorFlow checkpoint", "numpy.savez"),
        (b"\x08\x01\x12\x02\x0a\x00", "a TensorFlow SavedModel", "tf.saved_model.load"),
        (&core_ml, "a Core ML model", ".safetensors"),
        (b"\x80\x04\x95\x05\0\0\0\0\0\0\0}\x94.", "a pickle of a Python object", "state_dict()"),
        (b"(dp0\nVa\np1\nI1\ns.", "a pickle of a Python object", "state_dict()"),
        (joblib, "joblib", "joblib.load"),
        (b"\xba\x16\x4f\x2f\x0c\0\0\0", "a fastText model", ".vec"),
        (b"\x1f\x8b\x08\0\0\0\0\0", "a compressed file", "decompress it"),
        (b"BZh91AY", "a compressed file", "decompress it"),
        (&tar, "tar archive", "save it again with a newer torch"),
        (b"PAR1\x15\x04", "Parquet", "numpy.save"),
    ] {
        assert_refused(bytes, what);
        assert_refused(bytes, way_out);
    }
}

#[test]
fn archives_that_are_not_read_are_refused_by_name() {
    let refused = |names: &[&str], expected: &str| {
        let members: Vec<_> = names.iter().map(|name| (*name, &b"x"[..])).collect();
        assert_refused(&zip_of(CompressionMethod::Stored, &members), expected);
    };
    refused(&["net/data.pkl", "net/code/__torch__.py", "net/constants.pkl"], "TorchScript");
    refused(&["net/archive_format", "net/models/model.json"], "torch.export");
    refused(&["metadata.json", "config.json", "model.weights.h5"], "HDF5, as Keras saves it");
    refused(&["glove/", "glove/glove.6B.50d.txt"], "such as \"glove/glove.6B.50d.txt\"");
    // A torch checkpoint that was saved as code.pt.
    let members = [("code/data.pkl", &b"N."[..]), ("code/data/0", b"")];
    let archive = zip_of(CompressionMethod::Stored, &members);
    let file = crate::checkpoint::file(&archive);
    assert_eq!(Checkpoint::open(file.path()).unwrap().tensors().count(), 0);
}

#[test]
fn files_that_were_cut_short_are_said_to_be() {
    let header = r#"{"t":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}"#;
    let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 12]].concat();
    assert_refused(&bytes, "describes 36 bytes of tensors, but the file, which was cut short, has");
    assert_refused(&bytes[..40], "longer than the file, which was cut short");
    assert_refused(b"{\"architectures\": []}", "JSON without `weight_map`: expected an index of");
    assert_refused(b"{\"weight_map\": {", "JSON that is malformed or cut short at line 1");
    let whole = zip_of(CompressionMethod::Stored, &[("a.npy", &[0; 1000])]);
    for len in [30, 500, whole.len() - 22] {
        assert_refused(&whole[..len], "zip archive (torch or numpy) without an end: it was cut");
    }
}

#[test]
fn directories_are_refused_with_the_file_to_give() {
    let refusal = |path: &Path| Checkpoint::open(path).err().unwrap().to_string();
    for (file, expected) in [
        ("saved_model.pb", "a TensorFlow SavedModel. In Python"),
        ("Manifest.json", "a Core ML model"),
        ("model.safetensors", "a directory: give the file \"model.safetensors\" in it"),
        ("pytorch_model.bin", "a directory: give the file \"pytorch_model.bin\" in it"),
        ("notes.txt", "a directory: give a file in it"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(file), "").unwrap();
        let error = refusal(directory.path());
        assert!(error.contains(expected), "{error}");
    }
    // A part of a TensorFlow checkpoint has nothing but its name.
    let directory = tempfile::tempdir().unwrap();
    let part = directory.path().join("ckpt.data-00000-of-00001");
    fs::write(&part, [0; 100]).unwrap();
    assert!(refusal(&part).contains("a TensorFlow checkpoint"));
}
