//! Checkpoints: the content decides how they are read.

use crate::{refused, write, zip_of};
use std::{path::Path, sync::Once};
use ttrec_convert::{
    Checkpoint,
    checkpoint::{ElementType, Tensor},
    detect,
};

/// Elements of a tensor that are read: an expanded view is larger than its file.
const MOST: u64 = 1 << 14;

/// Opens the bytes as a checkpoint, and reads all of its tensors.
pub fn checkpoint(bytes: &[u8]) {
    static BESIDE: Once = Once::new();
    // What an index of shards and a model of ONNX may refer to.
    BESIDE.call_once(|| {
        let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        let shard = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[1; 8]].concat();
        write("shard.safetensors", &shard);
        write("external.onnx.data", &[1; 64]);
    });
    read_all(&write("checkpoint", bytes));
}

/// Opens the bytes as the `.metadata` of a directory of `torch.distributed.checkpoint`, with the
/// files of a small one beside them.
pub fn distributed(bytes: &[u8]) {
    const FILES: [(&str, &[u8]); 2] = [
        ("__0_0.distcp", include_bytes!("../../tools/convert/tests/data/distributed/__0_0.distcp")),
        ("__1_0.distcp", include_bytes!("../../tools/convert/tests/data/distributed/__1_0.distcp")),
    ];
    static BESIDE: Once = Once::new();
    BESIDE.call_once(|| FILES.iter().for_each(|(name, bytes)| drop(write(name, bytes))));
    read_all(&write(".metadata", bytes));
}

/// Opens a file as a checkpoint, and reads all of its tensors.
fn read_all(path: &Path) {
    let checkpoint = match Checkpoint::open(path) {
        Ok(checkpoint) => checkpoint,
        Err(error) => return refused(error),
    };
    checkpoint.tensors().for_each(read);
    for (name, _) in checkpoint.unreadable() {
        checkpoint.find(name).map(|_| ()).expect_err("a tensor that cannot be read");
    }
    if let Err(error) = detect(&checkpoint, None) {
        refused(error);
    }
}

/// Reads the start and the end of a tensor in each way.
fn read(tensor: &Tensor) {
    let len = tensor.len().min(MOST);
    let (mut floats, mut streamed) = (vec![0.0; len as usize], vec![1.0; len as usize]);
    let (mut doubles, mut integers) = (vec![0.0; len as usize], vec![0; len as usize]);
    for start in [0, tensor.len() - len] {
        let read = tensor.read_f32(start, &mut floats);
        assert_eq!(read.is_ok(), tensor.stream_f32(start, &mut streamed).is_ok());
        assert_eq!(read.is_ok(), tensor.read_f64(start, &mut doubles).is_ok());
        match read {
            Err(error) => refused(error),
            Ok(()) => {
                let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits();
                assert!(floats.iter().zip(&streamed).all(same), "{}", tensor.name());
                // Integers of 64 bits are rounded once to f32, and here twice.
                let is_long = matches!(tensor.element_type(), ElementType::I64 | ElementType::U64);
                let same = |(&a, &b): (&f32, &f64)| a == b as f32 || a.is_nan() && b.is_nan();
                assert!(is_long || floats.iter().zip(&doubles).all(same), "{}", tensor.name());
            }
        }
        if tensor.read_i64(start, &mut integers).is_ok() {
            let same = |(&a, &b): (&f64, &i64)| a == b as f64;
            assert!(doubles.iter().zip(&integers).all(same), "{}", tensor.name());
        }
    }
    tensor
        .read_f32(tensor.len(), &mut [0.0])
        .expect_err("an element beyond the last");
}

/// Opens the bytes as the pickle of a torch checkpoint, in an archive and in the form before it.
pub fn pickle(bytes: &[u8]) {
    // Pickles of the magic number, of the version, and of a dict that names the byte order.
    const BEFORE: &[u8] = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\
        \x80\x02}q\x00X\r\x00\x00\x00little_endianq\x01\x88s.";
    let storage = [1; 64];
    let members = [("a/data.pkl", bytes), ("a/data/0", &storage), ("a/data/1", &storage)];
    checkpoint(&zip_of(&members));
    // The names of the storages, and the storages of 12 elements.
    let count = 12_u64.to_le_bytes();
    let after = [&b"]q\x00(X\x01\x00\x00\x000X\x01\x00\x00\x001e."[..], &count, &storage].concat();
    checkpoint(&[BEFORE, bytes, &after].concat());
}
