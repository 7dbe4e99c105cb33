//! ONNX models, which the package onnx wrote, and hostile ones.

use crate::checkpoint::{assert_refused, file, fixture, floats, integers, open};
use std::fs;
use ttrec_convert::checkpoint::{Checkpoint, ElementType};

const VALUES: [i64; 6] = [0, 1, 2, 3, 4, 100];

#[test]
fn every_element_type_decodes_in_each_form() {
    use ElementType::{Bf16, F16, F32, F64, I8, I16, I32, I64, U8, U16, U32, U64};
    let checkpoint = open(&fixture("initializers.onnx"));
    for form in ["raw", "listed"] {
        for (name, element_type) in [
            ("float", F32),
            ("double", F64),
            ("float16", F16),
            ("bfloat16", Bf16),
            ("int8", I8),
            ("int16", I16),
            ("int32", I32),
            ("int64", I64),
            ("uint8", U8),
            ("uint16", U16),
            ("uint32", U32),
            ("uint64", U64),
        ] {
            let tensor = checkpoint.tensor(&format!("{form}.{name}")).unwrap();
            assert_eq!(tensor.element_type(), element_type);
            assert_eq!(tensor.shape(), [2, 3], "{form}.{name}");
            assert_eq!(integers(tensor), VALUES, "{form}.{name}");
            assert_eq!(floats(tensor), VALUES.map(|x| x as f32), "{form}.{name}");
        }
        let bools = checkpoint.tensor(&format!("{form}.bool")).unwrap();
        assert_eq!(integers(bools), [0, 1, 1, 1, 1, 1]);
    }
    assert_eq!(integers(checkpoint.tensor("listed.negative").unwrap()), [-1, -128]);
    assert_eq!(floats(checkpoint.tensor("scalar").unwrap()), [2.5]);
    assert!(floats(checkpoint.tensor("empty").unwrap()).is_empty());
    assert_eq!(checkpoint.tensors().count(), 2 * 13 + 3);
}

#[test]
fn other_tensors_are_refused_only_if_they_are_asked_for() {
    let checkpoint = open(&fixture("initializers.onnx"));
    let names: Vec<_> = checkpoint.unreadable().map(|(name, _)| name).collect();
    assert_eq!(names, ["complex", "float8", "sparse", "text"]);
    for (name, expected) in [
        ("complex", "`complex`: its elements are COMPLEX64: expected"),
        ("float8", "`float8`: its elements are FLOAT8E4M3FN: expected"),
        ("sparse", "`sparse`: it is sparse: expected"),
        ("text", "`text`: its elements are STRING: expected"),
    ] {
        let error = checkpoint.find(name).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn elements_in_a_file_beside_the_model_are_read() {
    let checkpoint = open(&fixture("external.onnx"));
    for name in ["float", "int8"] {
        assert_eq!(integers(checkpoint.tensor(name).unwrap()), VALUES, "{name}");
    }
    let data = fixture("external.onnx.data");
    assert!(checkpoint.files().any(|file| file == data));

    let directory = tempfile::tempdir().unwrap();
    let model = directory.path().join("external.onnx");
    fs::copy(fixture("external.onnx"), &model).unwrap();
    let refusal = || Checkpoint::open(&model).err().unwrap().to_string();
    let error = refusal();
    assert!(error.contains("has to be in the same directory"), "{error}");
    fs::write(directory.path().join("external.onnx.data"), [0; 20]).unwrap();
    let error = refusal();
    assert!(error.contains("bytes from byte 0 on, but the file has 20: it was cut"), "{error}");
}

/// A field of a message: its number and the bytes of its value.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let len = (bytes.len() as u32) << 1;
    // A length of up to 2^14 in two bytes.
    [&[number << 3 | 2, (len as u8 >> 1) | 0x80, (len >> 8) as u8], bytes].concat()
}

fn number(number: u8, value: u8) -> Vec<u8> {
    vec![number << 3, value]
}

/// A model of these initializers.
fn model(initializers: &[Vec<u8>]) -> Vec<u8> {
    let graph: Vec<u8> = initializers.iter().flat_map(|tensor| field(5, tensor)).collect();
    [number(1, 8), field(2, b"me"), field(7, &graph)].concat()
}

#[test]
fn hostile_models_are_refused() {
    let named =
        |name: &[u8], more: &[Vec<u8>]| [number(2, 1), field(8, name), more.concat()].concat();
    let entry = |key: &[u8], value: &[u8]| field(13, &[field(1, key), field(2, value)].concat());
    let stored = |place: &[u8]| model(&[named(b"w", &[number(14, 1), entry(b"location", place)])]);
    for place in ["../weights", "/etc/passwd", "a/b", "..", ".", "", "a\\b", "a\0b"] {
        assert_refused(&stored(place.as_bytes()), "expected the name of a file in the same");
    }
    let sound = named(b"w", &[number(1, 1), field(9, &[0; 4])]);
    let whole = model(std::slice::from_ref(&sound));
    assert_eq!(floats(open(file(&whole).path()).tensor("w").unwrap()), [0.0]);
    assert_refused(&model(&[sound.clone(), sound]), "`w`: duplicate tensor name");
    assert_refused(&whole[..whole.len() - 1], "ONNX model: malformed, or cut short");
    for (what, tensor, expected) in [
        ("too few bytes", vec![number(1, 2), field(9, &[0; 4])], "takes 8 bytes, but the file"),
        ("too few numbers", vec![number(1, 2), field(4, &[0; 4])], "takes 8 bytes, but the file"),
        ("no elements", vec![number(1, 2)], "takes 8 bytes, but the file holds 0"),
        (
            "2^63 rows",
            vec![field(1, &[255, 255, 255, 255, 255, 255, 255, 255, 127, 3])],
            "exceeds the address space",
        ),
        ("a part", vec![number(1, 1), field(3, &[]), field(9, &[0; 4])], "it is a part of"),
        (
            "an int8 of 300",
            vec![number(2, 3), number(1, 1), field(5, &[172, 2])],
            "300 does not fit in i8",
        ),
        (
            "an endless number",
            vec![number(2, 3), number(1, 1), field(5, &[255; 11])],
            "its elements are malformed",
        ),
        (
            "a double of no fixed size",
            vec![number(2, 11), number(1, 1), number(10, 0)],
            "its elements are malformed",
        ),
        ("an unknown type", vec![number(2, 99), number(1, 1)], "its elements are of type 99"),
    ] {
        eprintln!("{what}");
        assert_refused(&model(&[named(b"w", &tensor)]), expected);
    }
    assert_refused(&model(&[named(b"w", &vec![number(1, 1); 65])]), "malformed");
}
