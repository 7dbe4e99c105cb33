//! `ttrec man`: manual pages.

use crate::{
    outcome::Outcome,
    output::{self, Output},
};
use anyhow::{Context, Result};
use clap::Command;
use clap_mangen::Man;
use std::{fs, path::PathBuf};

/// Write the manual pages: ttrec.1, and ttrec-convert.1 and so on, one for each command.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Directory for the pages, such as ~/.local/share/man/man1; created if missing [default: print
    /// ttrec.1]
    #[arg(value_name = "DIR")]
    directory: Option<PathBuf>,
}

pub(crate) fn run(args: &Args, command: Command) -> Result<Outcome> {
    let Some(directory) = &args.directory else {
        let page = page(command)?;
        output::print(|out| out.write_all(&page))?;
        return Ok(Outcome::Done);
    };
    fs::create_dir_all(directory)
        .with_context(|| format!("{}: cannot create", directory.display()))?;
    let mut pages = Vec::new();
    for subcommand in command.get_subcommands() {
        // clap keeps names for as long as the program runs.
        let name: &'static str = format!("ttrec-{}", subcommand.get_name()).leak();
        pages.push((name, page(subcommand.clone().name(name).bin_name(name))?));
    }
    pages.push(("ttrec", page(command)?));
    let count = pages.len();
    for (name, page) in pages {
        let mut output = Output::create(&directory.join(format!("{name}.1")))?;
        output.write(|file| file.write_all(&page))?;
        output.commit()?;
    }
    output::print(|out| writeln!(out, "{}: {count} pages", directory.display()))?;
    Ok(Outcome::Done)
}

fn page(command: Command) -> Result<Vec<u8>> {
    let mut page = Vec::new();
    Man::new(command).render(&mut page)?;
    Ok(page)
}
