//! Generates shell completions and manual pages from the definitions of the command line.
//!
//! `run` parses its flags by tables ([`kube_proxy_config`]); here they are added to the command as clap knows it, so that
//! shells and pages know them as well.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, Result};
use clap::{Arg, ArgAction, Command, CommandFactory};
use clap_complete::Shell;
use kube_proxy_config::{Dialect, help};

use crate::cli::Cli;

/// The command line with the flags of `run`.
pub fn command() -> Command {
    Cli::command().mut_subcommand("run", |run| {
        let flags = help::flags(Dialect::Portolan).into_iter().map(|flag| {
            let arg = Arg::new(flag.name)
                .long(flag.name)
                .help(flag.text)
                .help_heading(flag.group);
            match flag.value {
                "" => arg.action(ArgAction::SetTrue),
                value => arg.value_name(value).action(ArgAction::Set),
            }
        });
        let about = run.get_about().cloned().unwrap_or_default();
        Command::new("run")
            .about(about)
            .disable_help_flag(true)
            .disable_version_flag(true)
            .args(flags)
    })
}

/// Prints the completions of a shell.
pub fn completions(shell: Shell) {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command(), "portolan", &mut script);
    // The reader may close the pipe early.
    let _ = io::Write::write_all(&mut io::stdout(), &script);
}

/// Writes a manual page for each command into a directory.
///
/// # Errors
/// The directory cannot be created or written.
pub fn manual(to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot create {}", to.display()))?;
    clap_mangen::generate_to(command(), to)
        .with_context(|| format!("cannot write pages to {}", to.display()))
}
