//! The C and C++ examples, compiled with every warning an error and run: they print the rows and
//! scores that the Rust library gives, and neither valgrind nor the sanitizers have anything to
//! say.
//!
//! A machine may lack compilers or valgrind: what needs them is then skipped, and says so, unless
//! EXPECT_CC=1 or EXPECT_VALGRIND=1.

use std::{
    env, fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::{Command, Output},
};
use ttrec::{AlignedBytes, Bags, Blob, Pooling, bag::pool_tables, include_blob};

static TWO_TABLES: &AlignedBytes = include_blob!("../../../tests/golden/two_tables.ttr");
static DLRM: &AlignedBytes = include_blob!("../../../tests/golden/dlrm.ttr");

const WARNINGS: [&str; 7] =
    ["-Wall", "-Wextra", "-Werror", "-pedantic", "-Wconversion", "-Wshadow", "-Wundef"];

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn golden(name: &str) -> PathBuf {
    here("../tests/golden").join(name)
}

/// The program called `name`, or the one that the variable names; none if it is not there.
fn tool(variable: &str, name: &str, expected: &str) -> Option<String> {
    let name = env::var(variable).unwrap_or(name.to_owned());
    if Command::new(&name)
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success())
    {
        return Some(name);
    }
    assert!(
        env::var_os(expected).is_none_or(|value| value != "1"),
        "{expected}=1, but there is no {name}"
    );
    // Not with a macro, whose output is kept from who runs the tests.
    let mut terminal = io::stderr();
    writeln!(terminal, "SKIPPED: there is no {name}; {expected}=1 makes this a failure").unwrap();
    None
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{command:?}\n{}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    output
}

/// A program being built in a folder of its own.
struct Program {
    dir: tempfile::TempDir,
    compiler: String,
}

impl Program {
    fn new(compiler: String) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), compiler }
    }

    /// Compiles and links `source` with the static library that stands beside this test.
    fn build(&self, source: &Path, flags: &[&str]) -> PathBuf {
        let library = env::current_exe().unwrap().with_file_name("libttrec_capi.a");
        assert!(library.exists(), "{} is not there", library.display());
        let program = self.dir.path().join("program");
        let mut compile = Command::new(&self.compiler);
        compile.args(WARNINGS).args(flags).arg("-g").arg("-I").arg(here("include"));
        compile
            .arg(source)
            .arg(&library)
            .args(["-pthread", "-ldl", "-lm", "-o"])
            .arg(&program);
        run(&mut compile);
        program
    }
}

/// What a program prints of a bundled blob.
fn printed(mut program: Command, blob: &str) -> String {
    let output = run(program.arg(golden(blob)));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// `lines` are these rows, to the bit: nine digits tell every float.
fn assert_rows(lines: &str, rows: &[f32], dim: usize) {
    let read = |line: &str| {
        line.split(' ').map(|x| x.parse::<f32>().unwrap().to_bits()).collect::<Vec<_>>()
    };
    let found: Vec<Vec<u32>> = lines.lines().map(read).collect();
    let expected: Vec<Vec<u32>> =
        rows.chunks(dim).map(|row| row.iter().map(|x| x.to_bits()).collect()).collect();
    assert_eq!(found, expected, "{lines}");
}

/// A row, and the mean of two bags, as both examples print them; and two tables' bags pooled
/// together, and how wide they are.
fn expected() -> (Vec<f32>, usize, Vec<f32>, usize) {
    let blob = Blob::parse(TWO_TABLES).unwrap();
    let item = blob.table("item").unwrap();
    let dim = item.embedding_dim();
    let mut workspace = vec![0.0; item.workspace_len(1)];
    let mut rows = vec![0.0; 3 * dim];
    item.lookup(42, &mut rows[..dim], &mut workspace).unwrap();
    let bags = Bags::new(&[42u32, 7, 999], &[0, 2, 3]).unwrap();
    item.pool(&bags, Pooling::Mean, &mut rows[dim..], &mut workspace).unwrap();
    let user = blob.table("user").unwrap();
    let width = dim + user.embedding_dim();
    let features = [(item, bags), (user, Bags::new(&[4u32, 0, 19], &[0, 2, 3]).unwrap())];
    let mut pooled = vec![0.0; 2 * width];
    pool_tables(&features, Pooling::Sum, &mut pooled, &mut workspace).unwrap();
    (rows, dim, pooled, width)
}

/// A checked example: its source, how it is compiled, its blob, and what to say of its output.
struct Example {
    source: &'static str,
    standards: &'static [&'static str],
    blob: &'static str,
    check: fn(&str),
}

const C: [Example; 2] = [
    Example {
        source: "lookup.c",
        standards: &["-std=c99", "-std=c11"],
        blob: "two_tables.ttr",
        check: assert_c,
    },
    Example {
        source: "rank.c",
        standards: &["-std=c99", "-std=c11"],
        blob: "dlrm.ttr",
        check: assert_c_scores,
    },
];
const CPP: [Example; 2] = [
    Example {
        source: "lookup.cpp",
        standards: &["-std=c++17"],
        blob: "two_tables.ttr",
        check: assert_cpp,
    },
    Example {
        source: "rank.cpp",
        standards: &["-std=c++17"],
        blob: "dlrm.ttr",
        check: assert_cpp_scores,
    },
];

impl Example {
    /// Builds it with these flags as well, and looks at what it prints, run by what `command` makes
    /// of it.
    fn check(&self, compiler: &Program, flags: &[&str], command: impl Fn(PathBuf) -> Command) {
        for &standard in self.standards {
            let source = here("examples").join(self.source);
            let program = compiler.build(&source, &[flags, &[standard]].concat());
            (self.check)(&printed(command(program), self.blob));
        }
    }
}

/// The scores of the candidates of both examples, and the logit of the first.
fn expected_scores() -> (Vec<f32>, f32) {
    let blob = Blob::parse(DLRM).unwrap();
    let ranker = blob.ranker().unwrap();
    let dense = [0.2, 0.7, 0.1, 0.0, 0.9, 0.4, 0.3, 0.5, 0.6, 0.8, 0.25, 0.75, 0.35];
    let mut workspace = vec![0.0; ranker.workspace_len(1)];
    let score = |i: u32| {
        let (indices, mut score, mut logit) = ([4742, 986, i * 7 % 300, i], [0.0], [0.0]);
        let bags = indices
            .each_ref()
            .map(|index| Bags::new(std::slice::from_ref(index), &[0, 1]).unwrap());
        ranker.score(&dense, &bags, &mut score, &mut workspace).unwrap();
        ranker.logits(&dense, &bags, &mut logit, &mut workspace).unwrap();
        (score[0], logit[0])
    };
    let (scores, logits): (Vec<f32>, Vec<f32>) = (0..40).map(score).unzip();
    (scores, logits[0])
}

/// The best candidate, and the scores of all.
fn assert_c_scores(printed: &str) {
    let (scores, _) = expected_scores();
    let best = (0..scores.len()).max_by(|&a, &b| scores[a].total_cmp(&scores[b])).unwrap();
    let (first, scored) = printed.split_once('\n').unwrap();
    let (position, score) = first.split_once(' ').unwrap();
    assert_eq!(position, best.to_string());
    assert_rows(score, &scores[best..=best], 1);
    assert_rows(scored, &scores, scores.len());
}

fn assert_cpp_scores(printed: &str) {
    let (scores, logit) = expected_scores();
    let end = printed.match_indices('\n').nth(1).expect("the best, and all").0 + 1;
    assert_c_scores(&printed[..end]);
    let lines: Vec<&str> = printed[end..].lines().collect();
    let [score, found, model, error] = lines[..] else { panic!("{printed}") };
    assert_rows(score, &scores[..1], 1);
    assert_rows(found, &[logit], 1);
    assert_eq!(model, "13 dense features, rows of 16: emb_l.0 emb_l.1 emb_l.2 emb_l.3");
    assert_eq!(error, "3: 1 dense features: expected 13");
}

fn assert_c(printed: &str) {
    let (rows, dim, _, _) = expected();
    assert!(rows.iter().any(|&x| x != 0.0));
    assert_rows(printed, &rows, dim);
}

fn assert_cpp(printed: &str) {
    let (rows, dim, pooled, width) = expected();
    let at = printed.match_indices('\n').nth(2).expect("three lines of rows").0 + 1;
    let end = printed.match_indices('\n').nth(4).expect("two lines of pooled rows").0 + 1;
    assert_rows(&printed[..at], &rows, dim);
    assert_rows(&printed[at..end], &pooled, width);
    assert_eq!(
        &printed[end..],
        "13: table \"item\": index 4000 at position 0: the table has 4000 rows\n"
    );
}

fn cc() -> Option<Program> {
    tool("CC", "cc", "EXPECT_CC").map(Program::new)
}

fn cxx() -> Option<Program> {
    tool("CXX", "c++", "EXPECT_CC").map(Program::new)
}

#[test]
fn the_c_examples_print_what_the_library_gives() {
    let Some(cc) = cc() else { return };
    C.iter().for_each(|example| example.check(&cc, &[], Command::new));
}

#[test]
fn the_cpp_examples_print_what_the_library_gives() {
    let Some(cxx) = cxx() else { return };
    CPP.iter().for_each(|example| example.check(&cxx, &[], Command::new));
}

#[test]
fn the_c_examples_say_what_went_wrong() {
    let Some(cc) = cc() else { return };
    let says = |program: &Path, path: &Path, start: &str, text: &str| {
        let output = Command::new(program).arg(path).output().unwrap();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.starts_with(start) && said.contains(text), "{said}");
    };
    let program = cc.build(&here("examples/lookup.c"), &["-std=c99"]);
    for (path, text) in [
        (here("no/such.ttr"), "no/such.ttr: No such file or directory"),
        (here("Cargo.toml"), "Cargo.toml: not a usable blob: not a ttrec blob"),
        (here("examples"), "examples: not a regular file"),
    ] {
        says(&program, &path, "lookup: ", text);
    }
    let program = cc.build(&here("examples/rank.c"), &["-std=c99"]);
    says(&program, &golden("two_tables.ttr"), "rank: ", "no model");
}

#[test]
fn valgrind_has_nothing_to_say() {
    let (Some(cc), Some(cxx), Some(valgrind)) =
        (cc(), cxx(), tool("VALGRIND", "valgrind", "EXPECT_VALGRIND"))
    else {
        return;
    };
    let under_valgrind = |program: PathBuf| {
        let mut command = Command::new(&valgrind);
        command.args([
            "-q",
            "--error-exitcode=9",
            "--leak-check=full",
            "--show-leak-kinds=definite,indirect,possible",
        ]);
        command
            .args(["--errors-for-leak-kinds=definite,indirect,possible"])
            .arg(program);
        command
    };
    C.iter().for_each(|example| example.check(&cc, &[], under_valgrind));
    CPP.iter().for_each(|example| example.check(&cxx, &[], under_valgrind));

    // It must be at work: a leaked blob and a float past the end are seen.
    let wrong = |line: &str| {
        let source = fs::read_to_string(here("examples/lookup.c")).unwrap();
        let (before, after) = source.split_once("    ttrec_blob_close(blob);\n").unwrap();
        let path = cc.dir.path().join("wrong.c");
        fs::write(&path, format!("{before}{line}{after}")).unwrap();
        let mut command = under_valgrind(cc.build(&path, &["-std=c99"]));
        let output = command.arg(golden("two_tables.ttr")).output().unwrap();
        assert_eq!(output.status.code(), Some(9), "{line}");
        String::from_utf8(output.stderr).unwrap()
    };
    let said = wrong("    blob = NULL;\n");
    assert!(said.contains("lost in loss record") && said.contains("ttrec_blob_open"), "{said}");
    let said = wrong(
        "    rows = malloc((dim - 1) * sizeof *rows);\n    workspace = malloc(len * sizeof \
         *workspace);\n    check(ttrec_table_lookup(item, 42, rows, dim, workspace, len));\n    \
         free(rows);\n    free(workspace);\n    ttrec_blob_close(blob);\n",
    );
    assert!(said.contains("Invalid write") && said.contains("ttrec_table_lookup"), "{said}");
}

#[test]
fn the_sanitizers_have_nothing_to_say() {
    let (Some(cc), Some(cxx)) = (cc(), cxx()) else { return };
    let flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"];
    C.iter().for_each(|example| example.check(&cc, &flags, Command::new));
    CPP.iter().for_each(|example| example.check(&cxx, &flags, Command::new));
}

#[test]
fn the_readme_shows_the_c_example() {
    let (_, example) = include_str!("../../examples/lookup.c").split_once("\n\n").unwrap();
    let (_, shown) = include_str!("../../../README.md")
        .split_once("```c\n")
        .expect("C in the README");
    let (shown, _) = shown.split_once("```").unwrap();
    assert_eq!(shown, example);
}
