//! Codes that other programs learned: indexes of FAISS, with its own decoding as the answer
//! (`tests/golden/faiss.py`), and arrays, by the formula.

use crate::support::{
    Dir, Elements, golden, parse_npy, ttrec, vector, write_npz, write_safetensors,
};
use safetensors::Dtype::{F32, I32, U8};
use std::{fs, path::Path};

/// The first rows of the only table of a blob.
fn rows(dir: &Dir, blob: &Path, table: &str, count: usize) -> Vec<f64> {
    let (bags, out) = (dir.path("bags.npz"), dir.path("rows.npy"));
    let indices: Vec<u64> = (0..count as u64).collect();
    write_npz(&bags, &[("indices", vector(&indices)), ("offsets", vector(&[0, count as u64]))]);
    ttrec!["lookup", blob, "--table", table, "--bags", bags, "--mode", "rows", "-o", &out].exits(0);
    parse_npy(&fs::read(out).unwrap()).values
}

#[test]
fn indexes_of_faiss_have_the_rows_that_faiss_decodes() {
    const DECODED: usize = 40;
    let answers = parse_npy(&fs::read(golden("faiss.expected.npy")).unwrap()).values;
    let dir = Dir::new();
    for (name, expected) in ["faiss_pq", "faiss_pq3", "faiss_opq", "faiss_residual"]
        .iter()
        .zip(answers.chunks(DECODED * 16))
    {
        let (index, blob) = (golden(&format!("{name}.faiss")), dir.path("codes.ttr"));
        ttrec!["convert", &index, "-o", &blob].exits(0);
        let found = rows(&dir, &blob, name, DECODED);
        assert_eq!(found.len(), expected.len());
        for (at, (x, y)) in found.iter().zip(expected).enumerate() {
            // The projection has a chain of eight products; other rows are sums of three entries.
            assert!((x - y).abs() <= 2e-6 * y.abs().max(1.0), "{name} {at}: {x} for {y}");
        }
        ttrec!["verify", &blob, "--against", &index].exits(0);
        let listed = ttrec!["inspect", &blob].exits(0).stdout;
        assert!(listed.contains("entries, u8 codes"), "{listed}");
    }
}

#[test]
fn indexes_of_faiss_that_are_cut_or_of_another_kind_are_refused() {
    let dir = Dir::new();
    let (path, blob) = (dir.path("cut.faiss"), dir.path("codes.ttr"));
    for name in ["faiss_pq3", "faiss_opq", "faiss_residual"] {
        let bytes = fs::read(golden(&format!("{name}.faiss"))).unwrap();
        for len in (24..200).chain([bytes.len() - 1]) {
            fs::write(&path, &bytes[..len]).unwrap();
            let stderr = ttrec!["convert", &path, "-o", &blob].exits(3).stderr;
            assert!(stderr.contains("FAISS index"), "{len}: {stderr}");
        }
        fs::write(&path, [&bytes[..], &[0]].concat()).unwrap();
        let stderr = ttrec!["convert", &path, "-o", &blob].exits(3).stderr;
        assert!(stderr.contains("1 bytes follow it"), "{stderr}");
        let other = [b"IxFI", &bytes[4..]].concat();
        fs::write(&path, other).unwrap();
        let stderr = ttrec!["convert", &path, "-o", &blob].exits(3).stderr;
        assert!(stderr.contains("of type \"IxFI\""), "{stderr}");
    }
    // Another matrix than a rotation.
    let mut bytes = fs::read(golden("faiss_opq.faiss")).unwrap();
    bytes[54..58].copy_from_slice(&9f32.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    let stderr = ttrec!["convert", &path, "-o", &blob].exits(3).stderr;
    assert!(stderr.contains("not orthonormal"), "{stderr}");
}

#[test]
fn arrays_of_codes_are_combined_as_the_spec_says() {
    let (num_rows, num_books, book_len, width) = (7, 3, 5, 2);
    let codes: Vec<u8> = (0..num_rows * num_books).map(|at| (at * 7 % 5) as u8).collect();
    let books: Vec<f32> = (0..num_books * book_len * width)
        .map(|at| (at * 11 % 17) as f32 - 8.0)
        .collect();
    let entry = |row: usize, book: usize, j: usize| {
        let code = usize::from(codes[row * num_books + book]);
        f64::from(books[(book * book_len + code) * width + j])
    };
    let concat: Vec<f64> = (0..num_rows)
        .flat_map(|row| (0..num_books * width).map(move |j| (row, j)))
        .map(|(row, j)| entry(row, j / width, j % width))
        .collect();
    let add: Vec<f64> = (0..num_rows)
        .flat_map(|row| (0..width).map(move |j| (row, j)))
        .map(|(row, j)| (0..num_books).map(|book| entry(row, book, j)).sum())
        .collect();
    let dir = Dir::new();
    let (checkpoint, spec, blob) =
        (dir.path("codes.safetensors"), dir.path("spec.toml"), dir.path("codes.ttr"));
    let wide: Vec<i32> = codes.iter().map(|&code| code.into()).collect();
    write_safetensors(
        &checkpoint,
        &[
            ("emb.codes", U8, &[num_rows, num_books], codes.clone()),
            ("emb.books", F32, &[num_books, book_len, width], books[..].bytes()),
            ("wide.codes", I32, &[num_rows, num_books], wide[..].bytes()),
            ("wide.books", F32, &[num_books, book_len, width], books[..].bytes()),
        ],
    );
    for (prefix, combine, expected) in
        [("emb.", "concat", &concat), ("emb.", "add", &add), ("wide.", "add", &add)]
    {
        let text = format!("[[table]]\nprefix = \"{prefix}\"\ncombine = \"{combine}\"\n");
        fs::write(&spec, text).unwrap();
        ttrec!["convert", &checkpoint, "--spec", &spec, "-o", &blob].exits(0);
        let found = rows(&dir, &blob, prefix.trim_end_matches('.'), num_rows);
        assert_eq!(&found, expected, "{prefix} {combine}");
        ttrec!["verify", &blob, "--against", &checkpoint, "--spec", &spec].exits(0);
    }
    fs::write(&spec, "[[table]]\nprefix = \"emb.\"\n").unwrap();
    let stderr = ttrec!["convert", &checkpoint, "--spec", &spec, "-o", &blob].exits(3).stderr;
    assert!(stderr.contains("`combine` is missing"), "{stderr}");
}

#[test]
fn codes_that_are_no_entries_and_arrays_that_do_not_fit_are_refused() {
    let dir = Dir::new();
    let (checkpoint, spec, blob) =
        (dir.path("codes.safetensors"), dir.path("spec.toml"), dir.path("codes.ttr"));
    fs::write(&spec, "[[table]]\nprefix = \"\"\nname = \"t\"\ncombine = \"add\"\n").unwrap();
    let books = [0f32; 2 * 3 * 4];
    for (codes, shape, books_shape, message) in [
        (vec![0, 1, 2, 3], [2, 2], [2, 3, 4], "row 1 has the code 3: a book has 3 entries"),
        (vec![0, 1, 2], [1, 3], [2, 3, 4], "3 codes in a row, but there are 2 books"),
        (vec![0, 1, 2, 0], [2, 2], [2, 12, 1], ""),
    ] {
        write_safetensors(
            &checkpoint,
            &[("codes", U8, &shape, codes), ("books", F32, &books_shape, books[..].bytes())],
        );
        let run = ttrec!["convert", &checkpoint, "--spec", &spec, "-o", &blob];
        if message.is_empty() {
            run.exits(0);
        } else {
            let stderr = run.exits(3).stderr;
            assert!(stderr.contains(message), "{stderr}");
        }
    }
}
