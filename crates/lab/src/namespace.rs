//! One anonymous network namespace, held by one thread. Owns the thread and the way work reaches it;
//! what is inside the namespace (links, addresses, servers) belongs to the layers above.
//!
//! Invariant: nothing but the thread, its sockets and its children refers to the namespace (no bind
//! mount, no file under `/run/netns`), so the kernel removes it, links and rules and all, when they
//! are gone, however the process ended.

use std::any::Any;
use std::fs::{self, File};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::mpsc;
use std::thread::{self, JoinHandle, ThreadId};

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{Pid, gettid};

use crate::{command, lock};

/// Jobs need little stack, and a lab may have hundreds of these threads.
const STACK_BYTES: usize = 512 * 1024;

type Job = Box<dyn FnOnce() + Send>;
type Panic = Box<dyn Any + Send>;

/// A network namespace and the thread that lives in it.
pub struct Namespace {
    name: String,
    /// The kernel's thread number: `ip link ... netns TID` takes it like a process number.
    tid: Pid,
    thread_id: ThreadId,
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Namespace {
    /// A fresh namespace: loopback only, and that still down. `name` serves error messages.
    ///
    /// Errors without `CAP_SYS_ADMIN` in the user namespace.
    pub fn new(name: &str) -> Result<Namespace> {
        Self::start(name, || unshare(CloneFlags::CLONE_NEWNET))
            .context("make a network namespace (this needs root, or `unshare -rn`)")
    }

    /// One that exists and belongs to somebody else, by a file such as `/proc/PID/ns/net`.
    pub fn entered(name: &str, file: &Path) -> Result<Namespace> {
        let opened = File::open(file).with_context(|| format!("open {}", file.display()))?;
        Self::start(name, move || setns(opened, CloneFlags::CLONE_NEWNET))
            .with_context(|| format!("enter {}", file.display()))
    }

    fn start(
        name: &str,
        enter: impl FnOnce() -> nix::Result<()> + Send + 'static,
    ) -> Result<Namespace> {
        let (ready, started) = mpsc::sync_channel(1);
        let (jobs, queue) = mpsc::channel::<Job>();
        let thread = thread::Builder::new()
            .name("netns".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                let entered = enter().map(|()| gettid());
                let failed = entered.is_err();
                if ready.send(entered).is_err() || failed {
                    return;
                }
                for job in queue {
                    job();
                }
            })
            .context("start a namespace thread")?;
        let tid = started
            .recv()
            .context("the namespace thread died at its start")??;
        Ok(Namespace {
            name: name.to_owned(),
            tid,
            thread_id: thread.thread().id(),
            jobs: Mutex::new(Some(jobs)),
            thread: Mutex::new(Some(thread)),
        })
    }

    /// The name given at the start, free text.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The thread number by which `ip link` can address this namespace.
    pub(crate) fn tid(&self) -> Pid {
        self.tid
    }

    /// Runs `job` on the thread inside the namespace and waits for its value; a panic of the job
    /// continues in the caller. Jobs of one namespace run one after another.
    ///
    /// Errors when the lab has been closed.
    pub fn run<T, F>(&self, job: F) -> Result<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        if thread::current().id() == self.thread_id {
            return Ok(job());
        }
        let (reply, answer) = mpsc::sync_channel::<Result<T, Panic>>(1);
        let gone = || anyhow!("the namespace {:?} is closed", self.name);
        lock(&self.jobs)
            .as_ref()
            .ok_or_else(gone)?
            .send(Box::new(move || {
                // A caller that went away has no use for the value.
                let _ = reply.send(catch_unwind(AssertUnwindSafe(job)));
            }))
            .map_err(|_| gone())?;
        match answer.recv().map_err(|_| gone())? {
            Ok(value) => Ok(value),
            Err(panic) => resume_unwind(panic),
        }
    }

    /// Starts a further thread inside the namespace, for work that goes on beside the jobs. It keeps
    /// the namespace alive until it ends.
    pub fn thread<T, F>(&self, work: F) -> Result<JoinHandle<T>>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        // A new thread is born in the network namespace of the one that makes it.
        self.run(move || {
            thread::Builder::new()
                .name("netns-work".to_owned())
                .stack_size(STACK_BYTES)
                .spawn(work)
        })?
        .context("start a thread in the namespace")
    }

    /// Starts a command made by [`command::command`] or [`command::tool`].
    pub(crate) fn spawn(&self, mut command: Command) -> Result<Child> {
        let described = format!("{command:?}");
        self.run(move || command::start(&mut command))?
            .with_context(|| format!("start {described} in {:?}", self.name))
    }

    /// Runs a command to its end with `input` as its standard input.
    pub(crate) fn output(&self, mut command: Command, input: &str) -> Result<Output> {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command::feed(self.spawn(command)?, input)
    }

    /// Like [`Namespace::output`], and an exit status other than 0 is an error that carries what the
    /// command said.
    pub(crate) fn checked_output(&self, command: Command, input: &str) -> Result<String> {
        let described = format!("{command:?}");
        let output = self.output(command, input)?;
        if !output.status.success() {
            bail!(
                "{described} in {:?}: {}\n{}{}",
                self.name,
                output.status,
                String::from_utf8_lossy(&output.stderr),
                String::from_utf8_lossy(&output.stdout),
            );
        }
        String::from_utf8(output.stdout).with_context(|| format!("output of {described}"))
    }

    /// Runs lines of iproute2, all in one process. The lines are ours: no foreign text goes in.
    pub(crate) fn ip(&self, lines: &[String]) -> Result<()> {
        self.ip_batch(&["-batch", "-"], lines)
    }

    /// The same for lines that say nothing of a family and mean IPv6.
    pub(crate) fn ip6(&self, lines: &[String]) -> Result<()> {
        self.ip_batch(&["-6", "-batch", "-"], lines)
    }

    fn ip_batch(&self, options: &[&str], lines: &[String]) -> Result<()> {
        let mut command = command::tool("ip");
        command.args(options);
        self.checked_output(command, &lines.join("\n"))
            .map(drop)
            .with_context(|| format!("ip -batch with\n  {}", lines.join("\n  ")))
    }

    /// Writes sysctls, given as paths below `/proc/sys/net`, in order.
    pub(crate) fn sysctl(&self, settings: &'static [Sysctl]) -> Result<()> {
        self.run(move || {
            settings.iter().try_for_each(|setting| {
                let path = format!("/proc/sys/net/{}", setting.path);
                match fs::write(&path, setting.value) {
                    Err(_) if setting.optional => Ok(()),
                    done => done.with_context(|| format!("write {:?} to {path}", setting.value)),
                }
            })
        })?
    }

    /// Whether it was given up.
    pub(crate) fn is_closed(&self) -> bool {
        lock(&self.jobs).is_none()
    }

    /// Ends the thread after the job at hand; its children get SIGKILL. Done at drop as well.
    pub(crate) fn close(&self) {
        drop(lock(&self.jobs).take());
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread
            && thread::current().id() != self.thread_id
        {
            // The thread catches the panics of its jobs, so there is none to pass on.
            let _ = thread.join();
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.close();
    }
}

/// One kernel setting of a namespace.
pub(crate) struct Sysctl {
    /// Below `/proc/sys/net`.
    pub(crate) path: &'static str,
    pub(crate) value: &'static str,
    /// Absent on some kernels, and the lab can do without.
    pub(crate) optional: bool,
}
