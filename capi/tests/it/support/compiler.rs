//! The machine's C and C++ compilers.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Output},
};
use tempfile::TempDir;

const WARNINGS: [&str; 7] =
    ["-Wall", "-Wextra", "-Werror", "-pedantic", "-Wconversion", "-Wshadow", "-Wundef"];

/// A file or folder of this package.
pub(crate) fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Runs a command that must succeed.
pub(crate) fn run(command: &mut Command) -> Output {
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

/// The program that this environment variable names, `name` by default.
pub(crate) fn tool(variable: &str, name: &str) -> String {
    let name = env::var(variable).unwrap_or(name.to_owned());
    let found = Command::new(&name).arg("--version").output();
    assert!(
        found.is_ok_and(|output| output.status.success()),
        "this test needs {name}: install it, or set {variable} to another one"
    );
    name
}

/// A compiler, with a folder for what it builds.
pub(crate) struct Compiler {
    pub(crate) dir: TempDir,
    program: String,
}

impl Compiler {
    pub(crate) fn c() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), program: tool("CC", "cc") }
    }

    pub(crate) fn cpp() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), program: tool("CXX", "c++") }
    }

    /// Compiles `source` with every warning an error.
    pub(crate) fn command(&self, source: &Path, flags: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(WARNINGS).args(flags).arg("-I").arg(here("include")).arg(source);
        command
    }

    /// Compiles `source`, and links it with the static library that cargo built with this test.
    pub(crate) fn build(&self, source: &Path, flags: &[&str]) -> PathBuf {
        let library = env::current_exe().unwrap().with_file_name("libttrec_capi.a");
        assert!(library.exists(), "{} does not exist", library.display());
        let program = self.dir.path().join("program");
        let mut command = self.command(source, flags);
        command
            .arg("-g")
            .arg(&library)
            .args(["-pthread", "-ldl", "-lm", "-o"])
            .arg(&program);
        run(&mut command);
        program
    }
}
