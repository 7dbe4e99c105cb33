//! C++ that makes a view of a temporary does not compile. The same code without the temporary
//! compiles, so that nothing else can be what the compiler refuses.

use crate::support::compiler::{Compiler, run};
use std::fs;

const BEFORE: &str = r#"#include <ttrec.hpp>
#include <utility>
inline std::vector<std::uint32_t> list() { return {0, 1}; }
inline const std::vector<std::uint32_t> frozen() { return {0, 1}; }
inline ttrec::Blob open() { return ttrec::Blob::map("model.ttr"); }
static std::vector<std::uint32_t> narrow{0, 1};
static std::vector<std::int64_t> wide{0, 1};
#line 1 "cases.cpp"
"#;

/// Statements that must not compile, what the error must name, and the same statements without the
/// temporary, which must compile.
const CASES: [(&str, &str, &str); 15] = [
    (
        "ttrec::Bags bags(list(), narrow);",
        "Borrowed",
        "auto named = list(); ttrec::Bags bags(named, narrow);",
    ),
    (
        "ttrec::Bags bags(frozen(), narrow);",
        "Borrowed",
        "auto named = frozen(); ttrec::Bags bags(named, narrow);",
    ),
    (
        "ttrec::Bags bags(narrow, list());",
        "Borrowed",
        "auto named = list(); ttrec::Bags bags(narrow, named);",
    ),
    ("ttrec::Bags bags(wide, std::move(wide));", "Borrowed", "ttrec::Bags bags(wide, wide);"),
    (
        "ttrec::Bags bags(narrow, {0, 1});",
        "Borrowed",
        "std::vector<std::uint32_t> named{0, 1}; ttrec::Bags bags(narrow, named);",
    ),
    (
        "ttrec::Bags bags({0, 1}, wide);",
        "Borrowed",
        "std::vector<std::int64_t> named{0, 1}; ttrec::Bags bags(named, wide);",
    ),
    ("ttrec::Bags bags{{0, 1}, wide};", "Borrowed", "ttrec::Bags bags{wide, wide};"),
    (
        "std::vector<ttrec::Bags> all{{narrow, narrow}, {narrow, list()}};",
        "Borrowed",
        "std::vector<ttrec::Bags> all{{narrow, narrow}, {narrow, narrow}};",
    ),
    (
        "ttrec::Bags bags(narrow, narrow, &std::vector<float>{0.5f});",
        "address",
        "std::vector<float> named{0.5f}; ttrec::Bags bags(narrow, narrow, &named);",
    ),
    (
        "auto table = open().table(\"item\");",
        "table",
        "auto blob = open(); auto table = blob.table(\"item\");",
    ),
    (
        "const auto blob = open(); auto table = std::move(blob).table(\"item\");",
        "table",
        "const auto blob = open(); auto table = blob.table(\"item\");",
    ),
    (
        "auto tables = open().tables();",
        "tables",
        "auto blob = open(); auto tables = blob.tables();",
    ),
    (
        "auto ranker = open().ranker();",
        "ranker",
        "auto blob = open(); auto ranker = blob.ranker();",
    ),
    (
        "const ttrec_blob *handle = open();",
        "ttrec_blob",
        "auto blob = open(); const ttrec_blob *handle = blob;",
    ),
    // A temporary Ranker is fine: its tables belong to the Blob.
    (
        "auto tables = open().ranker().tables();",
        "ranker",
        "auto blob = open(); auto tables = blob.ranker().tables(); open().verify_payload();",
    ),
];

#[test]
fn views_of_temporaries_do_not_compile() {
    let cxx = Compiler::cpp();
    let source = cxx.dir.path().join("program.cpp");
    // Line n + 1 of cases.cpp is case n. Most cases leave variables unused.
    let command = |cases: [&str; CASES.len()]| {
        let line = |(n, case)| format!("inline void case{n}() {{ {case} }}\n");
        let lines: String = cases.into_iter().enumerate().map(line).collect();
        fs::write(&source, BEFORE.to_owned() + &lines).unwrap();
        cxx.command(&source, &["-std=c++17", "-fsyntax-only", "-Wno-unused"])
    };
    run(&mut command(CASES.map(|(_, _, accepted)| accepted)));
    let output = command(CASES.map(|(refused, ..)| refused)).output().unwrap();
    assert!(!output.status.success());
    let messages = String::from_utf8(output.stderr).unwrap();
    for (n, (refused, name, _)) in CASES.into_iter().enumerate() {
        // gcc and clang word it differently, but both say that the function is deleted. The address
        // of a temporary is an error of the language.
        let expected = messages.lines().any(|line| {
            line.starts_with(&format!("cases.cpp:{}:", n + 1))
                && line.contains("error: ")
                && line.contains(name)
                && (line.contains("deleted") || name == "address")
        });
        assert!(expected, "{refused}\n{messages}");
    }
}
