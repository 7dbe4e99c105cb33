//! Checkpoints made to mislead, through the whole command and in little memory: refused with the
//! file's name, silently otherwise, and without a trace.

use crate::support::{Dir, Elements, Run, TTREC, golden, run, ttrec, write_safetensors};
use safetensors::Dtype::F32;
use std::{
    fs,
    io::{Cursor, Write},
    path::Path,
    process::Command,
};
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

/// KB of address space for a conversion, mapped files included.
const MEMORY: u32 = 100_000;
/// What a pickle may take, by the reader's budget.
const MEMORY_FOR_PICKLES: u32 = 400_000;

/// Converts in a directory of its own, `dir`.
fn convert_within(memory: u32, dir: &Dir, checkpoint: &Path, spec: Option<&Path>) -> Run {
    let mut command = Command::new("sh");
    let script = format!(r#"ulimit -v {memory}; exec "$TTREC" convert "$@""#);
    command
        .arg("-c")
        .arg(script)
        .arg("sh")
        .arg(checkpoint)
        .arg("-o")
        .arg(dir.path("blob.ttr"));
    if let Some(spec) = spec {
        command.arg("--spec").arg(spec);
    }
    // glibc sometimes reserves 64 MB of address space for the second thread that allocates.
    command
        .env("TTREC", TTREC)
        .env("MALLOC_ARENA_MAX", "1")
        .current_dir(dir.path("."));
    run(command)
}

fn convert(dir: &Dir, checkpoint: &Path, spec: Option<&Path>) -> Run {
    convert_within(MEMORY, dir, checkpoint, spec)
}

/// Converting these bytes is refused in these words.
#[track_caller]
fn refused(what: &str, bytes: &[u8], wanted: &str) {
    refused_within(MEMORY, what, bytes, wanted);
}

#[track_caller]
fn refused_within(memory: u32, what: &str, bytes: &[u8], wanted: &str) {
    let dir = Dir::new();
    let checkpoint = dir.file("checkpoint", bytes);
    let run = convert_within(memory, &dir, &checkpoint, None);
    assert!(
        run.stderr.contains(checkpoint.to_str().unwrap()) && run.stderr.contains(wanted),
        "{what}: {run:#?}"
    );
    run.exits(3);
    assert_eq!(dir.names(), ["checkpoint"], "{what}");
}

fn zip_of(method: CompressionMethod, members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, data) in members {
        writer
            .start_file(*name, SimpleFileOptions::default().compression_method(method))
            .unwrap();
        writer.write_all(data).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

/// A torch archive around this pickle and one storage of six f32.
fn torch(pickle: &[u8]) -> Vec<u8> {
    zip_of(
        CompressionMethod::Deflated,
        &[("archive/data.pkl", pickle), ("archive/data/0", &[0; 24])],
    )
}

#[test]
fn pickles_that_call_something_call_nothing() {
    let touch = "touch ttrec-was-here";
    for (what, pickle) in [
        ("os.system", format!("cos\nsystem\n(V{touch}\ntR.")),
        ("posix.system", format!("cposix\nsystem\n(V{touch}\ntR.")),
        ("eval", format!("cbuiltins\neval\n(V__import__('os').system('{touch}')\ntR.")),
        ("INST", format!("(V{touch}\nios\nsystem\n.")),
        ("OBJ", format!("(cos\nsystem\nV{touch}\no.")),
        ("NEWOBJ", format!("\u{2}csubprocess\nPopen\n(V{touch}\nt\u{81}.")),
        (
            "copyreg",
            format!(
                "ccopyreg\n_reconstructor\n(csubprocess\nPopen\nc__builtin__\nobject\n\
                  NtR(dV{touch}\nNsb."
            ),
        ),
        (
            "nested",
            format!("cbuiltins\nmap\n(cos\nsystem\n(lV{touch}\natRcbuiltins\nlist\n(g0\ntR."),
        ),
        ("a call in a dict key", format!("(dcos\nsystem\n(V{touch}\ntRNs.")),
        ("a storage of no class", format!("((Vstorage\ncos\nsystem\nV{touch}\nVcpu\nI6\ntQ.")),
    ] {
        refused(what, &torch(pickle.as_bytes()), "");
    }
}

#[test]
fn pickle_bombs_take_neither_memory_nor_time() {
    let many = |item: &str, count: usize| {
        [b"(".as_slice(), &item.as_bytes().repeat(count), b"l."].concat()
    };
    let tensor = "ctorch._utils\n_rebuild_tensor_v2\n((Vstorage\nctorch\nFloatStorage\nV0\nVcpu\n\
                  I6\ntQI0\n(I2\nI3\nt(I3\nI1\ntI00\n(dtR";
    let tensors = |count: usize| {
        let entries: String = (0..count).map(|i| format!("Vk{i}\n{tensor}")).collect();
        format!("({entries}d.").into_bytes()
    };
    let refused =
        |what, bytes: &[u8], wanted| refused_within(MEMORY_FOR_PICKLES, what, bytes, wanted);
    refused("constants", &torch(&many("N", 900_000)), "no tensor looks like an embedding table");
    refused("more constants", &torch(&many("N", 8 << 20)), "too complex to read within");
    refused("dicts", &torch(&many("}", 900_000)), "");
    refused("tensors", &torch(&tensors(20_000)), "no tensor looks like an embedding table");
    refused(
        "a doubled tuple",
        &torch(&[b"N".as_slice(), &b"2\x86".repeat(60), b"."].concat()),
        "no tensor looks like an embedding table",
    );
    let memo = [b"(Vk\n(]]]]]]]]l".as_slice(), b"q\0", &b"h\0".repeat(200_000), b"l."].concat();
    refused("fetches", &torch(&memo), "no tensor looks like an embedding table");
    refused(
        "nesting",
        &torch(&[b"(".repeat(500_000), b"l".repeat(500_000), b".".to_vec()].concat()),
        "",
    );
}

/// An archive of one deflated member, listed in the directory `times` times under other names.
fn overlapping(member: &[u8], times: usize) -> Vec<u8> {
    let one = zip_of(CompressionMethod::Deflated, &[("a00000.npy", member)]);
    let start = one.windows(4).rposition(|window| window == b"PK\x01\x02").unwrap();
    let end = one.windows(4).rposition(|window| window == b"PK\x05\x06").unwrap();
    let (record, mut tail) = (&one[start..end], one[end..].to_vec());
    let at = record.windows(6).position(|window| window == b"a00000").unwrap();
    let mut bytes = one[..start].to_vec();
    for i in 0..times {
        let mut record = record.to_vec();
        record[at..at + 6].copy_from_slice(format!("a{i:05}").as_bytes());
        bytes.extend(record);
    }
    for at in [8, 10] {
        tail[at..at + 2].copy_from_slice(&(times as u16).to_le_bytes());
    }
    tail[12..16].copy_from_slice(&((times * record.len()) as u32).to_le_bytes());
    [bytes, tail].concat()
}

#[test]
fn archives_do_not_expand_beyond_what_is_asked_for() {
    let array = |len: usize| crate::support::npy("<f4", &[len / 40, 10], &vec![0; len]);
    refused(
        "70 MB of zeros",
        &zip_of(CompressionMethod::Deflated, &[("a.npy", &array(70_000_000))]),
        "expands from",
    );
    // 60 GB in 60 KB, were all of them expanded.
    refused(
        "one member listed a thousand times",
        &overlapping(&array(60_000_000), 1000),
        "embedding tables",
    );
}

/// A safetensors file with this header.
fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

#[test]
fn safetensors_that_contradict_themselves_are_refused() {
    let entry = |name: &str, shape: &str, start: u64, end: u64| {
        format!(r#""{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[{start},{end}]}}"#)
    };
    for (what, entries, wanted) in [
        ("overlap", [entry("a", "[2]", 0, 8), entry("b", "[2]", 4, 12)], "safetensors header"),
        ("a gap", [entry("a", "[1]", 0, 4), entry("b", "[1]", 8, 12)], "safetensors header"),
        ("one name", [entry("a", "[1]", 0, 4), entry("a", "[2]", 4, 12)], "two tensors named `a`"),
        (
            "an end beyond the file",
            [entry("a", "[1]", 0, 4), entry("b", "[9]", 4, 40)],
            "safetensors header",
        ),
        (
            "an end before the start",
            [entry("a", "[3]", 12, 0), entry("b", "[0]", 0, 0)],
            "safetensors header",
        ),
        (
            "2^63 rows",
            [entry("a", "[9223372036854775808, 2]", 0, 12), entry("b", "[0]", 12, 12)],
            "safetensors header",
        ),
        (
            "2^64 - 1",
            [entry("a", "[18446744073709551615, 3]", 0, 12), entry("b", "[0]", 12, 12)],
            "safetensors header",
        ),
        (
            "a negative shape",
            [entry("a", "[-3]", 0, 12), entry("b", "[0]", 12, 12)],
            "safetensors header",
        ),
    ] {
        refused(what, &safetensors(&format!("{{{}}}", entries.join(",")), &[0; 12]), wanted);
    }
    let many: Vec<String> =
        (0..20_000).map(|i| entry(&format!("emb{i}"), "[0, 4]", 0, 0)).collect();
    refused(
        "20000 empty tables",
        &safetensors(&format!("{{{}}}", many.join(",")), &[]),
        "found 20000 embedding tables",
    );
    let header = format!(r#"{{"__metadata__":{{"a":"{}"}}}}"#, "x".repeat(2 << 20));
    refused(
        "2 MB of metadata",
        &safetensors(&header, &[]),
        "no tensor looks like an embedding table",
    );
    refused("a header of 17 MB", &safetensors(&" ".repeat(17 << 20), &[]), "");
}

#[test]
fn no_table_has_a_value_that_is_no_number() {
    for dtype in ["f32", "f16", "bf16", "i8", "i4"] {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let dir = Dir::new();
            let (checkpoint, mut values) = (dir.path("c.safetensors"), vec![0.25f32; 400]);
            values[7 * 20 + 13] = value;
            write_safetensors(&checkpoint, &[("emb", F32, &[20, 20], values[..].bytes())]);
            let spec =
                dir.file("spec.toml", format!("[[table]]\ntensor = \"emb\"\ndtype = {dtype:?}\n"));
            let run = convert(&dir, &checkpoint, Some(&spec)).exits(3);
            run.says([
                "tensor \"emb\", row 7, column 13",
                &format!("{value} does not fit in {dtype}"),
            ]);
            assert_eq!(dir.names(), ["c.safetensors", "spec.toml"]);
        }
    }
}

#[test]
fn names_command_neither_the_terminal_nor_the_file_system() {
    let dir = Dir::new();
    let checkpoint = dir.path("c.safetensors");
    for name in [
        "\u{1b}]0;owned\u{7}\u{1b}[2Jemb",
        "emb\r\u{9b}31m",
        "../../emb",
        "/etc/emb",
        "emb\0\u{202e}",
    ] {
        let values = [0.5f32; 64];
        write_safetensors(&checkpoint, &[(name, F32, &[32, 2], values[..].bytes())]);
        let harmless = |run: Run| {
            let text = [run.stdout, run.stderr].concat();
            assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
        };
        let blob = dir.path("blob.ttr");
        harmless(convert(&dir, &checkpoint, None).exits(0));
        assert_eq!(dir.names(), ["blob.ttr", "c.safetensors"]);
        harmless(ttrec!["inspect", &blob].exits(0));
        harmless(ttrec!["verify", &blob].exits(0));
        harmless(ttrec!["verify", &blob, "--against", &checkpoint].exits(0));
        harmless(
            ttrec![
                "lookup",
                &blob,
                "--table",
                "x",
                "--bags",
                &checkpoint,
                "--mode",
                "sum",
                "-o",
                "x.npy"
            ]
            .exits(3),
        );
        fs::remove_file(&blob).unwrap();
        // Errors name it, whoever finds them.
        let integers = safetensors(
            &format!(
                "{{{}:{{\"dtype\":\"F8_E4M3\",\"shape\":[1],\"data_offsets\":[0,1]}}}}",
                serde_json::json!(name)
            ),
            &[0],
        );
        harmless(convert(&dir, &dir.file("f8.safetensors", integers), None).exits(3));
        fs::remove_file(dir.path("f8.safetensors")).unwrap();
    }
}

#[test]
fn damaged_checkpoints_keep_within_memory() {
    let (mut done, mut refused) = (0, 0);
    let files = fs::read_dir(golden(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut files: Vec<String> = files
        .filter(|name| name.ends_with(".pt") || name.ends_with(".safetensors"))
        .collect();
    files.sort();
    assert_eq!(files.len(), 14, "{files:?}");
    for name in files.iter().map(String::as_str) {
        let dir = Dir::new();
        let bytes = fs::read(golden(name)).unwrap();
        let spec = golden(if name.starts_with("dlrm_qr") { "dlrm.toml" } else { name })
            .with_extension("toml");
        let spec = Some(spec).filter(|spec| spec.exists());
        for k in 0..40 {
            let mut damaged = bytes.clone();
            match k % 2 {
                0 => damaged.truncate(bytes.len() * k / 40),
                // The last bytes are the directory of an archive, the first a header.
                _ => {
                    let from_end = k * 37 % 1500.min(bytes.len());
                    let at = if k % 4 == 1 {
                        from_end
                    } else {
                        bytes.len() - 1 - from_end
                    };
                    damaged[at] ^= 1 << (k % 8);
                }
            }
            let checkpoint = dir.file(name, &damaged);
            let run = convert(&dir, &checkpoint, spec.as_deref());
            match run.code {
                Some(0) => done += 1,
                Some(3) => refused += 1,
                _ => panic!("{name}, case {k}: {run:#?}"),
            }
            assert!(!run.stderr.contains("panicked"), "{name}, case {k}: {run:#?}");
            let expected: &[&str] = if run.code == Some(0) {
                &["blob.ttr", name]
            } else {
                &[name]
            };
            assert_eq!(dir.names(), expected, "case {k}");
            let _ = fs::remove_file(dir.path("blob.ttr"));
        }
    }
    assert!(done > 5 && refused > 50, "{done} converted, {refused} refused");
}
