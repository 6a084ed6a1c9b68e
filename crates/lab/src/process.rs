//! The handle of a running daemon in a namespace, with what it printed.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lock;
use crate::namespace::Namespace;
use crate::wait::wait_for;

/// Lines kept of what a daemon prints; older ones are dropped.
const LINES_KEPT: usize = 10_000;

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

    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// The last lines of standard output and standard error together, oldest first.
    pub fn lines(&self) -> Vec<String> {
        lock(&self.lines).iter().cloned().collect()
    }

    /// What each thread waits for: its name, and its stack in the kernel where root may read that.
    pub fn threads(&self) -> String {
        let folder = format!("/proc/{}/task", self.pid);
        let threads = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        let describe = |thread: std::fs::DirEntry| {
            let read = |file| std::fs::read_to_string(thread.path().join(file));
            let (name, stack) = (read("comm"), read("stack"));
            let state = read("status").unwrap_or_default();
            let state = state.lines().find(|line| line.starts_with("State:"));
            format!(
                "{}: {}\n{}",
                name.unwrap_or_default().trim(),
                state.unwrap_or_default(),
                stack.unwrap_or_default()
            )
        };
        threads.map(describe).collect()
    }

    /// Whether the process has not ended.
    pub fn is_running(&self) -> bool {
        matches!(lock(&self.child).try_wait(), Ok(None))
    }

    /// Sends a signal to a process that is still ours (not waited for).
    pub fn signal(&self, signal: Signal) -> Result<()> {
        // Under the lock no other thread can wait for it, so the number cannot belong to another process.
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
