//! The program `ttrec`.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(ttrec_cli::run(std::env::args_os()))
}
