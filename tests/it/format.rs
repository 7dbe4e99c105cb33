//! Reads a blob by `docs/format.md` alone: field offsets come from the page's tables, so that page
//! and code stay in step.

use std::collections::HashMap;
use ttrec::{Blob, include_blob};

const PAGE: &str = include_str!("../../docs/format.md");

/// The fields of the table under `heading`: name -> (offset, bytes). Checks that they lie end to
/// end and fill `total`.
fn fields(heading: &str, total: usize) -> HashMap<&'static str, (usize, usize)> {
    let (_, section) = PAGE.split_once(&format!("\n## {heading}\n")).expect(heading);
    let mut fields = HashMap::new();
    let mut end = 0;
    for line in section
        .lines()
        .skip_while(|line| !line.starts_with("| 0 |"))
        .take_while(|line| line.starts_with('|'))
    {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, offset, kind, name, ..] = cells[..] else { panic!("{line}") };
        assert_eq!(offset.parse(), Ok(end), "{heading}: {line}");
        let scalar = |kind: &str| match kind {
            "u8" | "byte" | "bytes" => 1,
            "u16" => 2,
            "u32" => 4,
            "u64" => 8,
            other => panic!("{other}: {line}"),
        };
        let words: Vec<&str> = kind.split_whitespace().collect();
        let len = match words[..] {
            [kind] => scalar(kind),
            [count, "x", kind] | [count, kind] => {
                count.parse::<usize>().expect(line) * scalar(kind)
            }
            _ => panic!("{line}"),
        };
        // `reserved` may stand twice; nothing reads it by name.
        fields.insert(name, (end, len));
        end += len;
    }
    assert_eq!(end, total, "{heading}");
    fields
}

struct Record<'a> {
    bytes: &'a [u8],
    fields: &'a HashMap<&'static str, (usize, usize)>,
}

impl Record<'_> {
    fn number(&self, name: &str) -> u64 {
        let (offset, len) = self.fields[name];
        number(&self.bytes[offset..offset + len])
    }

    fn list(&self, name: &str) -> Vec<u64> {
        let (offset, len) = self.fields[name];
        self.bytes[offset..offset + len].chunks(4).map(number).collect()
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |n, &byte| n << 8 | u64::from(byte))
}

fn float(bytes: &[u8]) -> f64 {
    f64::from(f32::from_bits(number(&bytes[..4]) as u32))
}

/// CRC-32C, bit by bit, as the page defines it.
fn crc32c(chunks: &[&[u8]]) -> u32 {
    let bits = |crc: u32, &byte: &u8| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            if crc & 1 == 1 { crc >> 1 ^ 0x82F6_3B78 } else { crc >> 1 }
        })
    };
    !chunks.iter().copied().flatten().fold(u32::MAX, bits)
}

#[test]
fn the_checksum_is_the_one_the_page_names() {
    assert_eq!(crc32c(&[b"123456789"]), 0xE306_9283);
}

#[test]
fn a_reader_written_from_the_page_agrees_with_the_library() {
    let file: &[u8] = include_blob!("../golden/two_tables.ttr");
    let (header_fields, table_fields, section_fields) =
        (fields("Header", 64), fields("Table record", 128), fields("Section record", 32));
    let header = Record { bytes: &file[..64], fields: &header_fields };
    assert_eq!(file[..8], [0x89, 0x54, 0x54, 0x52, 0x0D, 0x0A, 0x1A, 0x0A]);
    assert_eq!(header.number("version"), 1);
    assert_eq!(header.number("total_len"), file.len() as u64);
    let tables_end = 64 + 128 * header.number("num_tables") as usize;
    let sections_end = tables_end + 32 * header.number("num_sections") as usize;
    let names_end = sections_end + header.number("names_len") as usize;
    let head_end = names_end.next_multiple_of(64);
    let checksum_at = header_fields["checksum"].0;
    let head = [&file[..checksum_at], &[0; 4], &file[checksum_at + 4..head_end]];
    assert_eq!(u64::from(crc32c(&head)), header.number("checksum"));

    let mut end = head_end;
    let mut sections = Vec::new();
    for bytes in file[tables_end..sections_end].chunks(32) {
        let record = Record { bytes, fields: &section_fields };
        let (offset, len) = (record.number("offset") as usize, record.number("len") as usize);
        assert_eq!(offset, end);
        end = (offset + len).next_multiple_of(64);
        assert_eq!(u64::from(crc32c(&[&file[offset..end]])), record.number("checksum"));
        let key = (record.number("role"), record.number("dtype"), record.number("core"));
        sections.push((key, &file[offset..offset + len]));
    }
    assert_eq!(end, file.len());

    let blob = Blob::parse(file).unwrap();
    let names: Vec<&str> = blob.tables().map(|table| table.name()).collect();
    assert_eq!(names, ["item", "user"]);
    for bytes in file[64..tables_end].chunks(128) {
        let record = Record { bytes, fields: &table_fields };
        let name_at = sections_end + record.number("name_offset") as usize;
        let name =
            core::str::from_utf8(&file[name_at..name_at + record.number("name_len") as usize])
                .unwrap();
        let first = record.number("first_section") as usize;
        let owned = &sections[first..first + record.number("num_sections") as usize];
        let columns = record.number("embedding_dim") as usize;
        let row_of: Box<dyn Fn(u64) -> Vec<f64>> = match record.number("kind") {
            1 => {
                let [((1, 4, 0), rows)] = owned else { panic!("{name}: {:?}", owned[0].0) };
                Box::new(move |row| {
                    let row = &rows[row as usize * (8 + columns)..][..8 + columns];
                    let (scale, offset) = (float(row), float(&row[4..]));
                    row[8..].iter().map(|&q| scale * f64::from(q as i8) + offset).collect()
                })
            }
            2 => {
                let [
                    ((2, 1, 0), g0),
                    ((2, 1, 1), g1),
                    ((2, 1, 2), g2),
                    ((4, 0x40, 0), ids),
                    ((5, 1, 0), rows),
                ] = owned
                else {
                    panic!("{name}")
                };
                assert_eq!((record.number("num_cores"), record.number("digit_order")), (3, 0));
                let (p, q, r) = (
                    record.list("row_factors"),
                    record.list("column_factors"),
                    record.list("inner_ranks"),
                );
                let size = |n: u64| n as usize;
                let (q, r) = ([size(q[0]), size(q[1]), size(q[2])], [1, size(r[0]), size(r[1]), 1]);
                assert_eq!(q.iter().product::<usize>(), columns);
                Box::new(move |row| {
                    if let Some(at) = ids.chunks(8).position(|id| number(id) == row) {
                        return rows[at * 4 * columns..]
                            .chunks(4)
                            .take(columns)
                            .map(float)
                            .collect();
                    }
                    let digits = [row / (p[1] * p[2]), row / p[2] % p[1], row % p[2]];
                    let at = |core: &[u8], k: usize, a: usize, b: usize, c: usize| {
                        let slice = digits[k] as usize * r[k] * q[k] * r[k + 1];
                        float(&core[4 * (slice + (a * q[k] + b) * r[k + 1] + c)..])
                    };
                    let mut values = Vec::new();
                    for (j0, j1, j2) in (0..q[0]).flat_map(|a| {
                        (0..q[1]).flat_map(move |b| (0..q[2]).map(move |c| (a, b, c)))
                    }) {
                        let mut sum = 0.0;
                        for (a, b) in (0..r[1]).flat_map(|a| (0..r[2]).map(move |b| (a, b))) {
                            sum += at(g0, 0, 0, j0, a) * at(g1, 1, a, j1, b) * at(g2, 2, b, j2, 0);
                        }
                        values.push(sum);
                    }
                    values
                })
            }
            other => panic!("kind {other}"),
        };

        let table = blob.table(name).unwrap();
        assert_eq!(
            (table.num_embeddings(), table.embedding_dim()),
            (record.number("num_embeddings"), columns)
        );
        let (mut row, mut workspace) = (vec![0.0; columns], vec![0.0; table.workspace_len(1)]);
        for index in 0..table.num_embeddings() {
            table.lookup(index, &mut row, &mut workspace).unwrap();
            let expected = row_of(index);
            let largest = expected.iter().fold(1.0f64, |largest, x| largest.max(x.abs()));
            for (ours, theirs) in row.iter().zip(&expected) {
                assert!(
                    (f64::from(*ours) - theirs).abs() <= 4e-6 * largest,
                    "{name} row {index}: {ours} for {theirs}"
                );
            }
        }
    }
}

/// Projected, quotient-remainder, codebook, hashed and remapped tables by the page. All elements
/// but those of i8 books are f32.
#[cfg(feature = "alloc")]
#[test]
fn newer_kinds_and_maps_are_read_by_the_page_too() {
    use ttrec::{
        blob::{IndexMapSpec, Layout, Role, TableSpec, WeightsSpec},
        dtype::Dtype::{self, F32},
        repr::{CodeDtype, Combine, RowNumberDtype},
    };

    let mut tables = vec![TableSpec::new(
        "projected",
        WeightsSpec::Projected {
            num_embeddings: 7,
            embedding_dim: 5,
            rank: 3,
            dtype: F32,
            projection: F32,
        },
    )];
    for &combine in Combine::ALL {
        let columns = [4, if combine == Combine::Concat { 2 } else { 4 }];
        let weights = WeightsSpec::QuotientRemainder {
            num_embeddings: 10,
            num_remainders: 4,
            columns,
            combine,
            dtype: F32,
        };
        tables.push(TableSpec::new(combine.name(), weights));
    }
    let dense = WeightsSpec::Dense { num_embeddings: 5, embedding_dim: 3, dtype: F32 };
    let mapped = |name, index_map| TableSpec { index_map, ..TableSpec::new(name, dense) };
    tables.push(mapped("hashed", IndexMapSpec::Modulo { num_embeddings: 12 }));
    for dtype in RowNumberDtype::ALL {
        let index_map = IndexMapSpec::Remapped { num_embeddings: 8, dtype: *dtype };
        tables.push(mapped(dtype.name(), index_map));
    }
    for (name, combine, codes, dtype, projection) in [
        ("codes.add", Combine::Add, CodeDtype::U16, F32, None),
        ("codes.concat", Combine::Concat, CodeDtype::U8, F32, None),
        ("codes.i8", Combine::Concat, CodeDtype::U12, Dtype::I8, None),
        ("codes.projected", Combine::Add, CodeDtype::U12, F32, Some(F32)),
    ] {
        let weights = WeightsSpec::Codebook {
            num_embeddings: 6,
            embedding_dim: if projection.is_some() { 4 } else { 6 },
            num_books: 3,
            book_len: 5,
            inner_dim: 6,
            combine,
            codes,
            dtype,
            projection,
        };
        tables.push(TableSpec::new(name, weights));
    }
    let file = Layout::new(&tables).unwrap().build(|plan, out| {
        if plan.role == Role::RemappedRows {
            // Eight numbers.
            let width = out.len() / 8;
            for (at, out) in (0u32..).zip(out.chunks_exact_mut(width)) {
                out.copy_from_slice(&((at * 3 + 1) % 5).to_le_bytes()[..width]);
            }
            return;
        }
        if plan.role == Role::Codes {
            // Six rows of three codes below 5. The last four bits of a row of u12 belong to none.
            for (row, out) in (0u8..).zip(out.chunks_exact_mut(out.len() / 6)) {
                let [a, b, c] = [row % 5, (row + 3) % 5, (2 * row + 1) % 5];
                let bytes = match out.len() {
                    3 => vec![a, b, c],
                    5 => vec![a, b << 4, 0, c, 0xF0],
                    6 => vec![a, 0, b, 0, c, 0],
                    other => panic!("rows of {other} bytes"),
                };
                out.copy_from_slice(&bytes);
            }
            return;
        }
        if plan.dtype == Some(Dtype::I8) {
            return (0u8..).zip(out).for_each(|(at, out)| *out = at.wrapping_mul(7) % 11);
        }
        if plan.role == Role::Scales(0) {
            return out
                .chunks_exact_mut(4)
                .for_each(|out| out.copy_from_slice(&2f32.to_le_bytes()));
        }
        for (at, out) in (0u32..).zip(out.chunks_exact_mut(4)) {
            let value = ((at * 7 + plan.offset as u32 / 64 * 5) % 11) as f32 - 5.0;
            out.copy_from_slice(&value.to_le_bytes());
        }
    });

    let (table_fields, section_fields) =
        (fields("Table record", 128), fields("Section record", 32));
    let tables_end = 64 + 128 * tables.len();
    let blob = Blob::parse(&file).unwrap();
    for (position, bytes) in file[64..tables_end].chunks(128).enumerate() {
        let record = Record { bytes, fields: &table_fields };
        let owned: Vec<(_, &[u8])> = (0..record.number("num_sections"))
            .map(|i| {
                let at = tables_end + 32 * (record.number("first_section") + i) as usize;
                let section = Record { bytes: &file[at..at + 32], fields: &section_fields };
                let (offset, len) =
                    (section.number("offset") as usize, section.number("len") as usize);
                (
                    (section.number("role"), section.number("dtype"), section.number("core")),
                    &file[offset..offset + len],
                )
            })
            .collect();
        let columns = record.number("embedding_dim") as usize;
        let dense = |rows: &[u8], columns: usize, row: u64| -> Vec<f64> {
            rows[row as usize * 4 * columns..].chunks(4).take(columns).map(float).collect()
        };
        let (p, q) = (record.list("row_factors"), record.list("column_factors"));
        let num_rows = record.number("num_rows");
        let expected = |index: u64| -> Vec<f64> {
            let row = match (record.number("index_map"), owned.last().unwrap()) {
                (0, _) => index,
                (1, _) => index % num_rows,
                (2, ((9, 0x42, 0), rows)) => number(&rows[index as usize..][..1]),
                (2, ((9, 0x44, 0), rows)) => number(&rows[2 * index as usize..][..2]),
                (2, ((9, 0x45, 0), rows)) => number(&rows[3 * index as usize..][..3]),
                (2, ((9, 0x41, 0), rows)) => number(&rows[4 * index as usize..][..4]),
                other => panic!("{other:?}"),
            };
            match (record.number("kind"), &owned[..]) {
                (1, [((1, 1, 0), rows), ..]) => dense(rows, columns, row),
                (3, [((1, 1, 0), rows), ((8, 1, 0), projection)]) => {
                    let short = dense(rows, q[0] as usize, row);
                    let entry = |k: usize, j: usize| float(&projection[4 * (k * columns + j)..]);
                    (0..columns)
                        .map(|j| short.iter().enumerate().map(|(k, x)| x * entry(k, j)).sum())
                        .collect()
                }
                (4, [((1, 1, 0), quotients), ((1, 1, 1), remainders)]) => {
                    assert_eq!(p[0], record.number("num_embeddings").div_ceil(p[1]));
                    let first = dense(quotients, q[0] as usize, row / p[1]);
                    let second = dense(remainders, q[1] as usize, row % p[1]);
                    match record.number("combine") {
                        1 => first.iter().zip(second).map(|(x, y)| x * y).collect(),
                        2 => first.iter().zip(second).map(|(x, y)| x + y).collect(),
                        3 => [first, second].concat(),
                        other => panic!("combine {other}"),
                    }
                }
                (5, [((16, code_dtype, 0), codes), ((17, dtype, 0), books), rest @ ..]) => {
                    let (num_books, inner) = (q[0] as usize, q[1] as usize);
                    let code = |book: usize| match code_dtype {
                        0x42 => codes[row as usize * num_books + book].into(),
                        0x43 => {
                            let row = &codes[row as usize * (3 * num_books).div_ceil(2)..];
                            let pair = &row[book / 2 * 3..];
                            if book.is_multiple_of(2) {
                                number(&pair[..2]) % 4096
                            } else {
                                number(&pair[1..3]) / 16
                            }
                        }
                        0x44 => number(&codes[(row as usize * num_books + book) * 2..][..2]),
                        other => panic!("codes of {other}"),
                    };
                    let is_concat = record.number("combine") == 3;
                    let width = if is_concat { inner / num_books } else { inner };
                    let entry = |book: usize, j: usize| {
                        let at = (book * p[0] as usize + code(book) as usize) * width + j;
                        match (dtype, rest) {
                            (1, _) => float(&books[4 * at..]),
                            (4, [((3, 1, 0), scales), ..]) => {
                                float(&scales[4 * book..]) * f64::from(books[at] as i8)
                            }
                            other => panic!("{other:?}"),
                        }
                    };
                    let decoded: Vec<f64> = if is_concat {
                        (0..inner).map(|j| entry(j / width, j % width)).collect()
                    } else {
                        (0..inner)
                            .map(|j| (0..num_books).map(|book| entry(book, j)).sum())
                            .collect()
                    };
                    let Some(((8, 1, 0), projection)) = rest.last() else {
                        assert_eq!(inner, columns);
                        return decoded;
                    };
                    let cell = |k: usize, j: usize| float(&projection[4 * (k * columns + j)..]);
                    (0..columns)
                        .map(|j| decoded.iter().enumerate().map(|(k, x)| x * cell(k, j)).sum())
                        .collect()
                }
                (kind, _) => panic!("kind {kind}"),
            }
        };
        let table = blob.tables().nth(position).unwrap();
        let mut row = vec![0.0; columns];
        for index in 0..record.number("num_embeddings") {
            table.lookup(index, &mut row, &mut vec![0.0; table.workspace_len(1)]).unwrap();
            // Small integers: exact.
            assert_eq!(
                row.iter().map(|&x| f64::from(x)).collect::<Vec<_>>(),
                expected(index),
                "{} {index}",
                table.name()
            );
        }
    }
}

/// The model of a blob by the page, in f64: its layers, tables and interaction by their
/// definitions.
#[cfg(feature = "alloc")]
#[test]
fn a_model_is_read_by_the_page_too() {
    use ttrec::blob::Interaction::{Cat, Dot, DotItself};
    // The inputs of the top for three vectors of two elements, and their order.
    read_a_model_by_the_page(Dot, 2 + 3, |v| {
        [&v[0][..], &[(1, 0), (2, 0), (2, 1)].map(|(i, j)| dot(&v[i], &v[j]))].concat()
    });
    read_a_model_by_the_page(DotItself, 2 + 6, |v| {
        let pairs = [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)];
        [&v[0][..], &pairs.map(|(i, j)| dot(&v[i], &v[j]))].concat()
    });
    read_a_model_by_the_page(Cat, 3 * 2, |v| v.concat());
}

#[cfg(feature = "alloc")]
fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

#[cfg(feature = "alloc")]
fn read_a_model_by_the_page(
    interaction: ttrec::blob::Interaction,
    top_inputs: usize,
    interact: impl Fn(&[Vec<f64>]) -> Vec<f64>,
) {
    use ttrec::{
        Bags, Pooling,
        blob::{
            Activation, LayerSpec, Layout, ModelSpec, ModelTable, Role, TableSpec, WeightsSpec,
        },
        dtype::Dtype::{self, F32, I8},
    };

    let dense = WeightsSpec::Dense { num_embeddings: 5, embedding_dim: 2, dtype: F32 };
    let tables = ["z", "a", "m"].map(|name| TableSpec::new(name, dense));
    let layer = |inputs, outputs, dtype: Dtype| LayerSpec {
        inputs,
        outputs,
        activation: Activation::Relu,
        dtype,
    };
    let model = ModelSpec {
        tables: vec![0.into(), ModelTable { table: 2, pooling: Pooling::Mean }],
        interaction,
        bottom: vec![layer(3, 4, F32), layer(4, 2, I8)],
        top: vec![
            layer(top_inputs, 3, I8),
            LayerSpec { activation: Activation::Sigmoid, ..layer(3, 1, F32) },
        ],
    };
    // Small integers, and scales of 0.5.
    let file = Layout::with_model(&tables, Some(&model)).unwrap().build(|plan, out| {
        let value = |at: usize| ((at * 7 + plan.offset as usize / 64 * 3) % 5) as i8 - 2;
        match (plan.dtype, plan.role) {
            (Some(I8), _) => (0..).zip(out).for_each(|(at, out)| *out = value(at) as u8),
            (_, role) => (0..).zip(out.chunks_exact_mut(4)).for_each(|(at, out)| {
                let number = if matches!(role, Role::LayerScales(_)) {
                    0.5f32
                } else {
                    value(at).into()
                };
                out.copy_from_slice(&number.to_le_bytes());
            }),
        }
    });

    let (header_fields, table_fields) = (fields("Header", 64), fields("Table record", 128));
    let (section_fields, layer_fields) = (fields("Section record", 32), fields("Layer record", 32));
    let header = Record { bytes: &file[..64], fields: &header_fields };
    assert_eq!(header.number("interaction"), interaction as u64);
    let sections_at = 64 + 128 * header.number("num_tables") as usize;
    let layers_at = sections_at + 32 * header.number("num_sections") as usize;
    let tables_at = layers_at + 32 * header.number("num_layers") as usize;
    let names_at = tables_at + 4 * header.number("num_model_tables") as usize;
    let section = |number: u64| {
        let at = sections_at + 32 * number as usize;
        let section = Record { bytes: &file[at..at + 32], fields: &section_fields };
        let (offset, len) = (section.number("offset") as usize, section.number("len") as usize);
        let key = (section.number("role"), section.number("dtype"), section.number("core"));
        (key, &file[offset..offset + len])
    };
    let floats = |bytes: &[u8]| bytes.chunks(4).map(float).collect::<Vec<f64>>();
    let run = |mut x: Vec<f64>, stack: u64| {
        for (number, bytes) in (0u64..).zip(file[layers_at..tables_at].chunks(32)) {
            let layer = Record { bytes, fields: &layer_fields };
            if layer.number("stack") != stack {
                continue;
            }
            let outputs = layer.number("outputs") as usize;
            let first = layer.number("first_section");
            let owned: Vec<_> =
                (first..first + layer.number("num_sections")).map(section).collect();
            assert!(owned.iter().all(|((.., core), _)| *core == number));
            let (weights, scales, bias): (Vec<f64>, _, _) = match &owned[..] {
                [((12, 1, _), weights), ((14, 1, _), bias)] => {
                    (floats(weights), vec![1.0; outputs], floats(bias))
                }
                [((12, 4, _), weights), ((13, 1, _), scales), ((14, 1, _), bias)] => (
                    weights.iter().map(|&q| f64::from(q as i8)).collect(),
                    floats(scales),
                    floats(bias),
                ),
                _ => panic!("layer {number}"),
            };
            assert_eq!(x.len() as u64, layer.number("inputs"));
            let sum = |j: usize| {
                x.iter().enumerate().map(|(i, x)| x * weights[i * outputs + j]).sum::<f64>()
            };
            let activation = |y: f64| match layer.number("activation") {
                1 => y.max(0.0),
                2 => 1.0 / (1.0 + (-y).exp()),
                other => panic!("activation {other}"),
            };
            x = (0..outputs).map(|j| activation(scales[j] * sum(j) + bias[j])).collect();
        }
        x
    };
    let row = |table: u64, row: usize| {
        let at = 64 + 128 * table as usize;
        let record = Record { bytes: &file[at..at + 128], fields: &table_fields };
        let ((1, 1, 0), rows) = section(record.number("first_section")) else {
            panic!("table {table}")
        };
        floats(&rows[row * 8..][..8])
    };

    let ranker = Blob::parse(&file).unwrap().ranker().unwrap();
    let mut scores = std::collections::BTreeSet::new();
    for case in 0..5 {
        let dense = [case as f32 - 2.0, 1.0, -1.0];
        let rows = [[case, 0], [4 - case, 2]];
        let mut vectors = vec![run(dense.iter().map(|&x| x.into()).collect(), 1)];
        for (table, rows) in file[tables_at..names_at].chunks(4).zip(rows) {
            let (code, count) = (number(table), rows.len() as f64);
            let (table, divisor) = (code & 0x7FFF_FFFF, if code >> 31 == 1 { count } else { 1.0 });
            let [first, second] = rows.map(|at| row(table, at));
            vectors.push(first.iter().zip(second).map(|(x, y)| (x + y) / divisor).collect());
        }
        let expected = run(interact(&vectors), 2)[0];
        let indices = rows.map(|rows| rows.map(|row| row as u32));
        let bags = indices.each_ref().map(|indices| Bags::new(indices, &[0, 2]).unwrap());
        let mut score = [0.0];
        ranker
            .score(&dense, &bags, &mut score, &mut vec![0.0; ranker.workspace_len(1)])
            .unwrap();
        assert!((f64::from(score[0]) - expected).abs() <= 1e-6, "{} for {expected}", score[0]);
        scores.insert(score[0].to_bits());
    }
    assert!(scores.len() > 1, "{scores:?}");
}
