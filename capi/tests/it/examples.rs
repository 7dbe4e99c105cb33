//! The C and C++ examples, and the programs of docs/c.md, compiled with every warning an error and
//! run. They print the rows and scores that the Rust library gives, and neither valgrind nor the
//! sanitizers find errors.

use crate::support::compiler::{Compiler, here, run, tool};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use ttrec::{AlignedBytes, Bags, Blob, Pooling, Scored, Search, bag::pool_tables, include_blob};

static TWO_TABLES: &AlignedBytes = include_blob!("../../../tests/golden/two_tables.ttr");
static DLRM: &AlignedBytes = include_blob!("../../../tests/golden/dlrm.ttr");

fn golden(name: &str) -> PathBuf {
    here("../tests/golden").join(name)
}

/// What a program prints for a bundled blob.
fn printed(mut program: Command, blob: &str) -> String {
    let output = run(program.arg(golden(blob)));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// `lines` are these rows, to the bit: nine digits identify a float.
fn assert_rows(lines: &str, rows: &[f32], dim: usize) {
    let read = |line: &str| {
        line.split(' ').map(|x| x.parse::<f32>().unwrap().to_bits()).collect::<Vec<_>>()
    };
    let found: Vec<Vec<u32>> = lines.lines().map(read).collect();
    let expected: Vec<Vec<u32>> =
        rows.chunks(dim).map(|row| row.iter().map(|x| x.to_bits()).collect()).collect();
    assert_eq!(found, expected, "{lines}");
}

/// A row and two pooled bags, as both examples print them, and their length; bags of two tables
/// pooled together, and their length.
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

/// An example: its source, the standards that it is compiled for, its blob, and a check of what it
/// prints.
struct Example {
    source: &'static str,
    standards: &'static [&'static str],
    blob: &'static str,
    check: fn(&str),
}

const C: [Example; 3] = [
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
    Example {
        source: "top_k.c",
        standards: &["-std=c99", "-std=c11"],
        blob: "two_tables.ttr",
        check: assert_best,
    },
];
const CPP: [Example; 3] = [
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
    Example {
        source: "top_k.cpp",
        standards: &["-std=c++17"],
        blob: "two_tables.ttr",
        check: assert_best_and_scores,
    },
];

impl Example {
    /// Builds the example with these flags too, and checks what it prints. `command` makes the
    /// command that runs it.
    fn check(&self, compiler: &Compiler, flags: &[&str], command: impl Fn(PathBuf) -> Command) {
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

/// What the library gives for the queries of both examples: the best rows, as lines, and the scores
/// of the first five rows.
fn expected_best() -> (String, Vec<f32>) {
    let blob = Blob::parse(TWO_TABLES).unwrap();
    let item = blob.table("item").unwrap();
    let mut workspace = vec![0.0; item.retrieval_workspace_len(2).max(item.workspace_len(1))];
    let mut query = vec![0.0; item.embedding_dim()];
    item.lookup(42, &mut query, &mut workspace).unwrap();
    let queries: Vec<f32> = query.iter().copied().chain(query.iter().map(|x| -x)).collect();
    let search = Search::new(10).without(Bags::new(&[7u32, 42, 999], &[0, 2, 3]).unwrap());
    let mut best = [Scored::NONE; 20];
    item.top_k(&queries, &search, &mut best, &mut workspace).unwrap();
    let mut scores = vec![0.0; 10];
    item.scores(&queries, 0..5, &mut scores, &mut workspace).unwrap();
    (best.iter().map(|row| format!("{} {:?}\n", row.index, row.score)).collect(), scores)
}

/// `printed` are these rows, to the bit.
fn assert_best(printed: &str) {
    let read = |lines: &str| -> Vec<(u64, u32)> {
        let row = |line: &str| {
            let (index, score) = line.split_once(' ').unwrap();
            (index.parse().unwrap(), score.parse::<f32>().unwrap().to_bits())
        };
        lines.lines().map(row).collect()
    };
    assert_eq!(read(printed), read(&expected_best().0));
}

fn assert_best_and_scores(printed: &str) {
    let at = printed.match_indices('\n').nth(19).expect("twenty rows").0 + 1;
    assert_best(&printed[..at]);
    assert_rows(&printed[at..], &expected_best().1, 5);
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

#[test]
fn the_c_examples_print_what_the_library_gives() {
    let cc = Compiler::c();
    C.iter().for_each(|example| example.check(&cc, &[], Command::new));
}

#[test]
fn the_cpp_examples_print_what_the_library_gives() {
    let cxx = Compiler::cpp();
    CPP.iter().for_each(|example| example.check(&cxx, &[], Command::new));
}

#[test]
fn the_c_examples_say_what_went_wrong() {
    let cc = Compiler::c();
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
#[ignore = "needs valgrind, which few machines have"]
fn valgrind_finds_no_errors() {
    let (cc, cxx, valgrind) = (Compiler::c(), Compiler::cpp(), tool("VALGRIND", "valgrind"));
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

    // valgrind must be able to find errors: a blob that leaks, and a write past the end.
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
fn the_sanitizers_find_no_errors() {
    let (cc, cxx) = (Compiler::c(), Compiler::cpp());
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

/// The blocks of docs/c.md that are marked as `language`.
fn blocks_of_the_page(language: &str) -> Vec<String> {
    let page = include_str!("../../../docs/c.md");
    let blocks = page.split("\n```").skip(1).step_by(2);
    blocks
        .filter_map(|block| block.strip_prefix(language)?.strip_prefix('\n'))
        .map(|block| format!("{block}\n"))
        .collect()
}

#[test]
fn the_programs_of_the_page_print_what_it_says() {
    let printed = blocks_of_the_page("text");
    let [c, cpp] = &printed[..] else { panic!("{printed:?}") };
    for (language, compiler, standard, expected) in
        [("c", Compiler::c(), "-std=c99", c), ("cpp", Compiler::cpp(), "-std=c++17", cpp)]
    {
        let source = compiler.dir.path().join("first").with_extension(language);
        fs::write(&source, &blocks_of_the_page(language)[0]).unwrap();
        let program = compiler.build(&source, &[standard]);
        // The page runs it in the root of a checkout.
        let output = run(Command::new(program).current_dir(here("..")));
        assert_eq!(&String::from_utf8(output.stdout).unwrap(), expected);
    }
}
