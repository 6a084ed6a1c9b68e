//! Real processes inside namespaces: how a command is made so that it cannot outlive the lab, and the
//! handle of a running daemon with what it printed.
//!
//! Invariant: a child made by [`command`] is killed by the kernel (`PR_SET_PDEATHSIG`, set by
//! util-linux' `setpriv` between fork and exec) as soon as the namespace thread that started it ends,
//! so neither a panic nor a SIGKILL of the test leaves it behind.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::namespace::{Namespace, lock};
use crate::wait::wait_for;

/// Lines kept of what a daemon prints; older ones are dropped.
const LINES_KEPT: usize = 10_000;

/// Goes on with the command in its arguments if the parent is still the one named by the first: it may
/// have died before `setpriv` asked for the signal, which then never comes.
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

/// A command that ends by itself within milliseconds, so needs no help with it (which would cost as
/// much again). Administrators' directories are searched too.
pub(crate) fn tool(program: &str) -> Command {
    let mut command = Command::new(program);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
}

/// Written by who forks, read by who must not meet a fork.
static FORKS: RwLock<()> = RwLock::new(());

/// Starts a command as a child of the calling thread.
pub(crate) fn start(command: &mut Command) -> io::Result<Child> {
    let _alone = FORKS.write().unwrap_or_else(PoisonError::into_inner);
    command.spawn()
}

/// Closes something for good: between fork and exec, milliseconds, a child has copies of all open
/// sockets, and what its parent closes meanwhile still listens and still has its port.
pub(crate) fn while_none_forks<T>(close: impl FnOnce() -> T) -> T {
    let _none = FORKS.read().unwrap_or_else(PoisonError::into_inner);
    close()
}

/// Writes `input`, closes it, and collects what the child says until it ends.
pub(crate) fn feed(mut child: Child, input: &str) -> Result<Output> {
    let stdin = child.stdin.take();
    thread::scope(|scope| {
        // Beside the reading, so that a child that talks early and much is not waited for in vain.
        scope.spawn(move || {
            // A child that ends before it has read all says why by its exit status.
            stdin.map(|mut stdin| stdin.write_all(input.as_bytes()))
        });
        child.wait_with_output()
    })
    .context("collect the output of a child")
}

/// A process in a namespace. It is killed when the handle or the lab is dropped, and what it printed
/// is shown if that happens in a panic.
#[must_use = "dropping the handle kills the process"]
pub struct Daemon {
    name: String,
    child: Mutex<Child>,
    pid: Pid,
    lines: Arc<Mutex<VecDeque<String>>>,
}

impl Daemon {
    /// Starts `command` in `namespace` with both outputs captured.
    pub(crate) fn start(namespace: &Namespace, name: &str, mut command: Command) -> Result<Daemon> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = namespace.spawn(command)?;
        let lines = Arc::new(Mutex::new(VecDeque::new()));
        if let Some(stdout) = child.stdout.take() {
            capture(stdout, Arc::clone(&lines))?;
        }
        if let Some(stderr) = child.stderr.take() {
            capture(stderr, Arc::clone(&lines))?;
        }
        Ok(Daemon {
            name: format!("{name} in {}", namespace.name()),
            pid: Pid::from_raw(i32::try_from(child.id()).context("process number")?),
            child: Mutex::new(child),
            lines,
        })
    }

    /// The process number.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// The last lines of standard output and standard error together, oldest first.
    pub fn lines(&self) -> Vec<String> {
        lock(&self.lines).iter().cloned().collect()
    }

    /// Whether the process has not ended.
    pub fn is_running(&self) -> bool {
        matches!(lock(&self.child).try_wait(), Ok(None))
    }

    /// Sends a signal to a process that is still ours (not waited for).
    pub fn signal(&self, signal: Signal) -> Result<()> {
        // Under the lock nobody can wait for it, so the number cannot have passed to another process.
        let mut child = lock(&self.child);
        if child.try_wait()?.is_some() {
            return Ok(());
        }
        kill(self.pid, signal).with_context(|| format!("send {signal} to {}", self.name))
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&self) -> Result<ExitStatus> {
        let mut child = lock(&self.child);
        child
            .kill()
            .with_context(|| format!("kill {}", self.name))?;
        child
            .wait()
            .with_context(|| format!("wait for {}", self.name))
    }

    /// Waits until it ends by itself.
    pub fn wait(&self, timeout: Duration) -> Result<ExitStatus> {
        wait_for(&format!("the end of {}", self.name), timeout, || {
            lock(&self.child)
                .try_wait()?
                .ok_or_else(|| anyhow!("it is running"))
        })
    }

    /// Waits until a captured line contains `text` and returns the line.
    pub fn wait_for_line(&self, text: &str, timeout: Duration) -> Result<String> {
        wait_for(
            &format!("a line with {text:?} from {}", self.name),
            timeout,
            || {
                let lines = lock(&self.lines);
                lines
                    .iter()
                    .find(|line| line.contains(text))
                    .cloned()
                    .ok_or_else(|| {
                        anyhow!(
                            "it said\n{}",
                            Vec::from_iter(lines.iter().cloned()).join("\n")
                        )
                    })
            },
        )
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("{error:#}");
        }
        if thread::panicking() {
            eprintln!("--- what {} said:", self.name);
            for line in lock(&self.lines).iter() {
                eprintln!("{line}");
            }
            eprintln!("--- end of {}", self.name);
        }
    }
}

/// Reads lines until the end of `source`, on a thread of its own.
fn capture(source: impl Read + Send + 'static, lines: Arc<Mutex<VecDeque<String>>>) -> Result<()> {
    thread::Builder::new()
        .name("capture".to_owned())
        .spawn(move || {
            let mut source = BufReader::new(source);
            let mut line = Vec::new();
            while matches!(source.read_until(b'\n', &mut line), Ok(1..)) {
                let mut kept = lock(&lines);
                if kept.len() == LINES_KEPT {
                    kept.pop_front();
                }
                kept.push_back(String::from_utf8_lossy(&line).trim_end().to_owned());
                line.clear();
            }
        })
        .map(drop)
        .context("start a thread that captures output")
}
