//! `ttrec completions`: shell completions.

use crate::{outcome::Outcome, output};
use anyhow::Result;
use clap::Command;
use clap_complete::Shell;

/// Print the completions of a shell: source them, or save them where the shell looks.
///
/// bash: ~/.local/share/bash-completion/completions/ttrec; zsh: a file _ttrec in a directory of
/// $fpath; fish: ~/.config/fish/completions/ttrec.fish.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(value_enum)]
    shell: Shell,
}

pub(crate) fn run(args: &Args, mut command: Command) -> Result<Outcome> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "ttrec", &mut script);
    output::print(|out| out.write_all(&script))?;
    Ok(Outcome::Done)
}
