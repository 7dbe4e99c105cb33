//! Whatever interrupts a writer, its output path holds the whole old file or the whole new one.

use crate::support::{Dir, Elements, TTREC, golden, run, ttrec};
use std::{
    fs,
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
        process::ExitStatusExt,
    },
    path::Path,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

const SPEC: &str =
    "[[table]]\nname = \"item\"\nnum_embeddings = 1000\ncolumn_factors = [4, 4, 4]\n";
const OLD: &[u8] = b"what stood there before";

/// Runs a shell script with `$TTREC` and these variables.
fn shell(script: &str, variables: &[(&str, &Path)]) -> crate::support::Run {
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg(script)
        .env("TTREC", TTREC)
        .envs(variables.iter().copied());
    run(command)
}

/// `convert`'s command line, for scripts.
const CONVERT: &str = r#""$TTREC" convert "$CHECKPOINT" --spec "$SPEC" -o "$BLOB""#;

/// A directory with the spec, and an old file at the path of the blob.
fn directory() -> Dir {
    let dir = Dir::new();
    dir.file("spec.toml", SPEC);
    dir.file("blob.ttr", OLD);
    dir
}

fn variables<'a>(
    checkpoint: &'a Path,
    spec: &'a Path,
    blob: &'a Path,
) -> [(&'static str, &'a Path); 3] {
    [("CHECKPOINT", checkpoint), ("SPEC", spec), ("BLOB", blob)]
}

/// Dense f32, large enough that a convert takes long enough to be hit.
fn large_checkpoint(dir: &Dir) -> std::path::PathBuf {
    const ROWS: usize = 1 << 18;
    const COLUMNS: usize = 128;
    let path = dir.path("large.safetensors");
    let mut state = 1u32;
    let values: Vec<f32> = (0..ROWS * COLUMNS)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        })
        .collect();
    crate::support::write_safetensors(
        &path,
        &[("emb", safetensors::Dtype::F32, &[ROWS, COLUMNS], values[..].bytes())],
    );
    path
}

fn parts(dir: &Dir) -> Vec<String> {
    dir.names().into_iter().filter(|name| name.ends_with(".part")).collect()
}

#[test]
fn kill_9_leaves_the_old_blob_or_the_new_one() {
    let dir = Dir::new();
    let checkpoint = large_checkpoint(&dir);
    let (blob, spec) = (
        dir.path("blob.ttr"),
        dir.file("spec.toml", "[[table]]\ntensor = \"emb\"\ndtype = \"f16\"\n"),
    );
    let command = || {
        let mut command = Command::new(TTREC);
        command
            .arg("convert")
            .arg(&checkpoint)
            .arg("-o")
            .arg(&blob)
            .arg("--spec")
            .arg(&spec);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let started = Instant::now();
    assert!(command().status().unwrap().success());
    let whole = started.elapsed();
    let new = fs::read(&blob).unwrap();
    ttrec!["verify", &blob, "--against", &checkpoint, "--spec", &spec].exits(0);
    assert!(parts(&dir).is_empty());

    // The delays cover a whole run and a little more; if none of them hits the middle of it,
    // another set follows.
    let (mut midway, mut old_left, mut new_left) = (0, 0, 0);
    for (attempt, round) in (0..60).map(|attempt| (attempt, attempt / 15)) {
        if attempt >= 15 && midway > 0 {
            break;
        }
        fs::write(&blob, OLD).unwrap();
        let mut child = command().spawn().unwrap();
        let share = (f64::from(attempt % 15) + f64::from(round) / 4.0) / 13.0;
        thread::sleep(whole.mul_f64(share));
        child.kill().unwrap();
        let status = child.wait().unwrap();
        let found = fs::read(&blob).unwrap();
        if found == OLD {
            old_left += 1;
            // Killed: had it come to an end by itself, the new blob would be there.
            assert_eq!(status.signal(), Some(9), "{status}");
        } else {
            assert!(found == new, "neither the old file nor the new one: {} bytes", found.len());
            new_left += 1;
        }
        for part in parts(&dir) {
            let path = dir.path(&part);
            midway += usize::from(fs::metadata(&path).unwrap().len() > 0 && found == OLD);
            fs::remove_file(path).unwrap();
        }
    }
    eprintln!(
        "kill -9: {midway} runs hit with a part written; the old file was left {old_left} times, \
         the new {new_left}"
    );
    assert!(midway > 0, "no kill came while the file was being written");
    // And what a killed run leaves behind is not in the way of the next one.
    assert!(command().status().unwrap().success());
    assert!(fs::read(&blob).unwrap() == new);
}

fn send(signal: &str, to: &Child) {
    assert!(
        Command::new("kill")
            .args(["-s", signal, &to.id().to_string()])
            .status()
            .unwrap()
            .success()
    );
}

#[test]
fn an_interrupt_leaves_the_old_blob_and_nothing_else() {
    let dir = Dir::new();
    let checkpoint = large_checkpoint(&dir);
    let (blob, spec) = (
        dir.path("blob.ttr"),
        dir.file("spec.toml", "[[table]]\ntensor = \"emb\"\ndtype = \"i8\"\n"),
    );
    let start = || {
        let mut command = Command::new(TTREC);
        command
            .arg("convert")
            .arg(&checkpoint)
            .arg("-o")
            .arg(&blob)
            .arg("--spec")
            .arg(&spec);
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let started = Instant::now();
    assert!(start().wait().unwrap().success());
    let whole = started.elapsed();
    let new = fs::read(&blob).unwrap();

    let (mut midway, mut longest) = (0, Duration::ZERO);
    for attempt in 0..60 {
        // The delays cover a whole run; if none of them hits the middle of it, another set follows.
        if attempt >= 20 && midway >= 2 {
            break;
        }
        let (signal, number) = [("INT", 2), ("TERM", 15)][attempt % 2];
        fs::write(&blob, OLD).unwrap();
        let child = start();
        thread::sleep(whole.mul_f64((attempt % 20) as f64 / 19.0 + attempt as f64 / 2000.0));
        let part = parts(&dir);
        send(signal, &child);
        let sent = Instant::now();
        let Output { status, stderr, .. } = child.wait_with_output().unwrap();
        longest = longest.max(sent.elapsed());
        assert!(parts(&dir).is_empty(), "{:?} stayed after {signal}", parts(&dir));
        let (found, stderr) = (fs::read(&blob).unwrap(), String::from_utf8(stderr).unwrap());
        match status.code() {
            Some(0) => assert!(found == new),
            Some(code) => {
                assert_eq!(code, 128 + number, "{stderr}");
                assert!(
                    stderr.starts_with("ttrec: interrupted") && stderr.lines().count() == 1,
                    "{stderr}"
                );
                // After the rename nothing is said about the path.
                let untouched = stderr.contains(&format!("; {} was not modified", blob.display()));
                assert!(
                    if untouched {
                        found == OLD
                    } else {
                        found == OLD || found == new
                    },
                    "{stderr}"
                );
                midway += usize::from(untouched && !part.is_empty());
            }
            // Before it listened.
            None => {
                assert_eq!(status.signal(), Some(number));
                assert_eq!(found, OLD);
            }
        }
    }
    eprintln!(
        "{midway} interrupts came while the file was being written; the longest took {longest:?} \
         to end"
    );
    assert!(midway > 0, "no interrupt came while the file was being written");
}

#[test]
fn a_call_that_blocks_is_interrupted_too() {
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let dir = directory();
        let pipe = dir.path("pipe");
        assert_eq!(shell(r#"mkfifo "$PIPE""#, &[("PIPE", &pipe)]).code, Some(0));
        let mut command = Command::new(TTREC);
        command
            .arg("convert")
            .arg(golden("fbtt_d3.safetensors"))
            .arg("-o")
            .arg(dir.path("blob.ttr"));
        let child = command.arg("--spec").arg(&pipe).stderr(Stdio::piped()).spawn().unwrap();
        // Opens once there is a reader, who then waits for what never comes.
        let writer = fs::File::options().write(true).open(&pipe).unwrap();
        send(signal, &child);
        let Output { status, stderr, .. } = child.wait_with_output().unwrap();
        drop(writer);
        assert_eq!(status.code(), Some(code));
        assert_eq!(String::from_utf8(stderr).unwrap(), "ttrec: interrupted\n");
        assert_untouched(&dir, &["blob.ttr", "pipe", "spec.toml"]);
    }
}

/// Nothing but the old files is in `dir`, and they are as they were.
#[track_caller]
fn assert_untouched(dir: &Dir, names: &[&str]) {
    assert_eq!(dir.names(), names);
    assert_eq!(fs::read(dir.path("blob.ttr")).unwrap(), OLD);
}

#[test]
fn a_file_size_limit_is_a_full_disk() {
    // 46 KB into 8, 16, 32 KiB: fails in the first flush of the buffer. `ulimit -f` counts 512
    // bytes.
    let dir = directory();
    let (checkpoint, spec, blob) =
        (golden("fbtt_d3.safetensors"), dir.path("spec.toml"), dir.path("blob.ttr"));
    for blocks in [0, 16, 32, 64] {
        let script = format!(r#"trap "" XFSZ; ulimit -f {blocks}; exec {CONVERT}"#);
        let run = shell(&script, &variables(&checkpoint, &spec, &blob)).exits(4);
        run.says([blob.to_str().unwrap(), "cannot write"]);
        assert_untouched(&dir, &["blob.ttr", "spec.toml"]);
    }
    // And 1 MiB is filled in the middle of a larger one.
    let values = vec![0.5f32; 1 << 20];
    let large = dir.path("large.safetensors");
    crate::support::write_safetensors(
        &large,
        &[("emb", safetensors::Dtype::F32, &[1 << 14, 64], values[..].bytes())],
    );
    let dense = dir.file("dense.toml", "[[table]]\ntensor = \"emb\"\n");
    let script = format!(r#"trap "" XFSZ; ulimit -f 2048; exec {CONVERT}"#);
    shell(&script, &variables(&large, &dense, &blob))
        .exits(4)
        .says([blob.to_str().unwrap(), "cannot write"]);
    assert_untouched(&dir, &["blob.ttr", "dense.toml", "large.safetensors", "spec.toml"]);
}

#[test]
fn lookup_writes_atomically_too() {
    let dir = directory();
    let blob = dir.convert(&golden("fbtt_d3.safetensors"), SPEC, "table.ttr");
    let bags = golden("fbtt_d3.expected.npz");
    let out = dir.path("blob.ttr");
    let script = r#"trap "" XFSZ; ulimit -f 16
        exec "$TTREC" lookup "$BLOB" --table item --bags "$BAGS" --mode rows -o "$OUT""#;
    let run = shell(script, &[("BLOB", &blob), ("BAGS", &bags), ("OUT", &out)]).exits(4);
    run.says([out.to_str().unwrap(), "cannot write"]);
    assert_untouched(&dir, &["blob.ttr", "spec.toml", "table.ttr", "table.ttr.toml"]);
}

/// A command that gives the rest of its command line a mount table of its own, where that is
/// allowed.
fn private_mounts() -> &'static str {
    let found = ["unshare -m", "unshare -rm"].into_iter().find(|unshare| {
        let script = format!(r#"{unshare} sh -c 'mount -t tmpfs -o size=1m none "$DIR"'"#);
        let dir = Dir::new();
        shell(&script, &[("DIR", &dir.path("."))]).code == Some(0)
    });
    found.expect("nothing can be mounted here")
}

/// Runs `convert` onto a 1 MiB disk of its own, which `prepare` has changed.
fn on_a_small_disk(unshare: &str, prepare: &str, dense: bool) {
    let dir = directory();
    let disk = dir.path("disk");
    fs::create_dir(&disk).unwrap();
    let (checkpoint, spec) = if dense {
        let values = vec![0.5f32; 1 << 20];
        let path = dir.path("large.safetensors");
        crate::support::write_safetensors(
            &path,
            &[("emb", safetensors::Dtype::F32, &[1 << 14, 64], values[..].bytes())],
        );
        (path, dir.file("dense.toml", "[[table]]\ntensor = \"emb\"\n"))
    } else {
        (golden("fbtt_d3.safetensors"), dir.path("spec.toml"))
    };
    let blob = disk.join("blob.ttr");
    let old = dir.path("blob.ttr");
    let inner = format!(
        r#"mount -t tmpfs -o size=1m none "$DISK" && cp "$OLD" "$BLOB" && {prepare} || exit 99
        {CONVERT}; code=$?
        cmp "$OLD" "$BLOB" || exit 98
        [ "$(ls -A "$DISK" | grep -c part)" = 0 ] || exit 97
        exit $code"#
    );
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg(format!(r#"{unshare} sh -c "$INNER""#))
        .env("INNER", inner)
        .env("TTREC", TTREC);
    command
        .env("DISK", &disk)
        .env("OLD", &old)
        .envs(variables(&checkpoint, &spec, &blob));
    run(command).exits(4).says([blob.to_str().unwrap(), "cannot write"]);
}

#[test]
#[ignore = "needs mounts: root, or user namespaces"]
fn a_full_disk_leaves_the_old_file() {
    on_a_small_disk(private_mounts(), ":", true);
}

#[test]
#[ignore = "needs mounts: root, or user namespaces"]
fn a_read_only_disk_is_said_to_be_one() {
    on_a_small_disk(private_mounts(), r#"mount -o remount,ro "$DISK""#, false);
}

#[test]
fn a_directory_that_takes_no_files_is_refused() {
    let dir = directory();
    let (checkpoint, spec) = (golden("fbtt_d3.safetensors"), dir.path("spec.toml"));
    for blob in ["/proc/ttrec-test.ttr", dir.path("missing/blob.ttr").to_str().unwrap()] {
        ttrec!["convert", &checkpoint, "--spec", &spec, "-o", blob]
            .exits(4)
            .says([blob, "cannot write"]);
        assert!(!Path::new(blob).exists());
    }
    assert_untouched(&dir, &["blob.ttr", "spec.toml"]);
}

#[test]
fn directories_devices_and_pipes_are_no_outputs() {
    let dir = directory();
    let (checkpoint, spec, pipe) =
        (golden("fbtt_d3.safetensors"), dir.path("spec.toml"), dir.path("pipe"));
    let refused = |blob: &Path| {
        let run = ttrec!["convert", &checkpoint, "--spec", &spec, "-o", blob].exits(4);
        run.says([blob.to_str().unwrap().trim_end_matches('/'), "not a regular file"]);
    };
    for device in ["/dev/null", "/dev/full"] {
        refused(Path::new(device));
        assert!(fs::metadata(device).unwrap().file_type().is_char_device(), "{device}");
    }
    assert_eq!(shell(r#"mkfifo "$PIPE""#, &[("PIPE", &pipe)]).code, Some(0));
    refused(&pipe);
    assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo());
    fs::create_dir(dir.path("inside")).unwrap();
    refused(&dir.path("inside"));
    // A link to a device is no way around it.
    symlink("/dev/null", dir.path("link")).unwrap();
    let run = ttrec!["convert", &checkpoint, "--spec", &spec, "-o", dir.path("link")].exits(4);
    run.says(["not a regular file"]);
    assert_untouched(&dir, &["blob.ttr", "inside", "link", "pipe", "spec.toml"]);
    assert!(fs::read_dir(dir.path("inside")).unwrap().next().is_none());
}

#[test]
fn no_input_is_replaced_by_an_output() {
    let dir = directory();
    let spec = dir.path("spec.toml");
    let (checkpoint, bags) = (dir.path("checkpoint.safetensors"), dir.path("bags.npz"));
    fs::copy(golden("fbtt_d3.safetensors"), &checkpoint).unwrap();
    fs::copy(golden("fbtt_d3.expected.npz"), &bags).unwrap();
    let blob = dir.path("model.ttr");
    ttrec!["convert", &checkpoint, "--spec", &spec, "-o", &blob].exits(0);
    symlink(&checkpoint, dir.path("link")).unwrap();
    let inputs =
        [&checkpoint, &spec, &bags, &blob].map(|path| (path.clone(), fs::read(path).unwrap()));
    for output in ["checkpoint.safetensors", "link", "./checkpoint.safetensors", "spec.toml"] {
        let output = dir.path(output);
        let run = ttrec!["convert", &checkpoint, "--spec", &spec, "-o", &output].exits(3);
        run.says([output.to_str().unwrap(), "is an input"]);
    }
    for output in [&blob, &bags] {
        let run =
            ttrec!["lookup", &blob, "--table", "t", "--bags", &bags, "--mode", "sum", "-o", output]
                .exits(3);
        run.says([output.to_str().unwrap(), "is an input"]);
    }
    for (path, bytes) in &inputs {
        assert!(fs::read(path).unwrap() == *bytes, "{}", path.display());
    }
    assert_untouched(
        &dir,
        &["bags.npz", "blob.ttr", "checkpoint.safetensors", "link", "model.ttr", "spec.toml"],
    );
}

#[test]
fn a_link_to_nowhere_leads_where_it_says() {
    let dir = directory();
    symlink("new.ttr", dir.path("link.ttr")).unwrap();
    let checkpoint = golden("fbtt_d3.safetensors");
    ttrec!["convert", &checkpoint, "--spec", dir.path("spec.toml"), "-o", dir.path("link.ttr")]
        .exits(0);
    assert!(fs::symlink_metadata(dir.path("link.ttr")).unwrap().is_symlink());
    assert!(fs::symlink_metadata(dir.path("new.ttr")).unwrap().is_file());
    symlink("round.ttr", dir.path("round.ttr")).unwrap();
    ttrec!["convert", &checkpoint, "--spec", dir.path("spec.toml"), "-o", dir.path("round.ttr")]
        .exits(4);
}

#[test]
fn the_umask_decides_the_mode() {
    let dir = directory();
    let (checkpoint, spec, blob) =
        (golden("fbtt_d3.safetensors"), dir.path("spec.toml"), dir.path("new.ttr"));
    for (umask, mode) in [("022", 0o644), ("027", 0o640), ("077", 0o600), ("002", 0o664)] {
        shell(&format!("umask {umask}; exec {CONVERT}"), &variables(&checkpoint, &spec, &blob))
            .exits(0);
        assert_eq!(
            fs::metadata(&blob).unwrap().permissions().mode() & 0o7777,
            mode,
            "umask {umask}"
        );
        fs::remove_file(&blob).unwrap();
    }
}

#[test]
fn a_link_stays_a_link_and_what_it_points_to_is_replaced() {
    let dir = directory();
    fs::create_dir(dir.path("elsewhere")).unwrap();
    let target = dir.file("elsewhere/real.ttr", OLD);
    let link = dir.path("link.ttr");
    symlink("elsewhere/real.ttr", &link).unwrap();
    let (checkpoint, spec) = (golden("fbtt_d3.safetensors"), dir.path("spec.toml"));
    ttrec!["convert", &checkpoint, "--spec", &spec, "-o", &link].exits(0);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_ne!(fs::read(&target).unwrap(), OLD);
    ttrec!["verify", &link].exits(0);
    assert_eq!(fs::read_dir(dir.path("elsewhere")).unwrap().count(), 1);
    assert_untouched(&dir, &["blob.ttr", "elsewhere", "link.ttr", "spec.toml"]);
}

#[test]
fn a_hard_link_to_the_old_blob_keeps_the_old_bytes() {
    // Whoever has the old blob mapped goes on reading it: the new one is another file.
    let dir = directory();
    fs::hard_link(dir.path("blob.ttr"), dir.path("kept.ttr")).unwrap();
    let before = fs::metadata(dir.path("blob.ttr")).unwrap().ino();
    let (checkpoint, spec) = (golden("fbtt_d3.safetensors"), dir.path("spec.toml"));
    ttrec!["convert", &checkpoint, "--spec", &spec, "-o", dir.path("blob.ttr")].exits(0);
    assert_eq!(fs::read(dir.path("kept.ttr")).unwrap(), OLD);
    assert_ne!(fs::metadata(dir.path("blob.ttr")).unwrap().ino(), before);
}

#[test]
fn a_refused_input_leaves_no_trace() {
    let dir = directory();
    // Only the last value cannot be stored, so that the writing has begun.
    let mut values = vec![0.25f32; 1 << 16];
    *values.last_mut().unwrap() = f32::NAN;
    let checkpoint = dir.path("nan.safetensors");
    crate::support::write_safetensors(
        &checkpoint,
        &[("emb", safetensors::Dtype::F32, &[1 << 12, 16], values[..].bytes())],
    );
    let run = ttrec!["convert", &checkpoint, "-o", dir.path("blob.ttr")].exits(3);
    run.says([checkpoint.to_str().unwrap(), "\"emb\"", "row 4095, column 15", "NaN"]);
    assert_untouched(&dir, &["blob.ttr", "nan.safetensors", "spec.toml"]);
}
