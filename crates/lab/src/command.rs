//! Commands that cannot outlive the lab, and how they are started.
//!
//! Invariant: a child made by [`command`] is killed by the kernel (`PR_SET_PDEATHSIG`, set by
//! util-linux' `setpriv` between fork and exec) as soon as the namespace thread that started it ends,
//! so neither a panic nor a SIGKILL of the test leaves it behind.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::process::{Child, Command, Output};
use std::sync::{PoisonError, RwLock};
use std::thread;

use anyhow::{Context, Result};

/// Executes the command if the parent is still the process of the first argument. A parent that died before `setpriv`
/// asked for the signal would never cause the signal.
const UNLESS_ORPHANED: &str = r#"test "$PPID" = "$0" && exec "$@""#;

/// A command that dies with the thread that starts it.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = tool("setpriv");
    command
        .args(["--pdeathsig", "KILL", "--", "sh", "-c", UNLESS_ORPHANED])
        .arg(std::process::id().to_string())
        .arg(program);
    command
}

/// A command that ends by itself within milliseconds, without `setpriv`, which would double its time. Searches
/// `/usr/sbin` and `/sbin` too.
pub(crate) fn tool(program: &str) -> Command {
    let mut command = Command::new(program);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
}

/// [`start`] locks it for writing while a child forks and executes; [`while_none_forks`] locks it for reading.
static FORKS: RwLock<()> = RwLock::new(());

/// Starts a command as a child of the calling thread.
pub(crate) fn start(command: &mut Command) -> io::Result<Child> {
    let _alone = FORKS.write().unwrap_or_else(PoisonError::into_inner);
    command.spawn()
}

/// Closes sockets while no child is between fork and exec. During these milliseconds a child has copies of all open
/// sockets, so a socket that the parent closes would still listen and keep its port.
pub(crate) fn while_none_forks<T>(close: impl FnOnce() -> T) -> T {
    let _none = FORKS.read().unwrap_or_else(PoisonError::into_inner);
    close()
}

/// Writes `input`, closes it, and collects what the child says until it ends.
pub(crate) fn feed(mut child: Child, input: &str) -> Result<Output> {
    let stdin = child.stdin.take();
    thread::scope(|scope| {
        // Write while reading: a child whose output nobody reads would block before it reads all its input.
        scope.spawn(move || {
            // A child that ends before it has read all says why by its exit status.
            stdin.map(|mut stdin| stdin.write_all(input.as_bytes()))
        });
        child.wait_with_output()
    })
    .context("collect the output of a child")
}
