//! What a process and its children take: processor time and memory, as `/proc` has them.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};

/// The kernel counts time in `/proc` in these parts of a second (`USER_HZ`, on all machines that Rust knows).
const TICKS: u32 = 100;

/// Between looks at the memory: a `nft` that loads a whole cluster runs far longer.
const EVERY: Duration = Duration::from_millis(20);

/// Processor time of a process and of all its children that have ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// In the programs.
    pub user: Duration,
    /// In the kernel on their behalf. What it does later in threads of its own is not in it.
    pub kernel: Duration,
}

impl Usage {
    /// Of a process so far.
    pub fn of(pid: i32) -> Result<Usage> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        Usage::parse(&stat).with_context(|| format!("times of {pid} in {stat:?}"))
    }

    /// Both together.
    pub fn total(self) -> Duration {
        self.user + self.kernel
    }

    /// What has come to it since `before`.
    pub fn since(self, before: Usage) -> Usage {
        Usage {
            user: self.user.saturating_sub(before.user),
            kernel: self.kernel.saturating_sub(before.kernel),
        }
    }

    /// Of a line of `/proc/PID/stat` (proc_pid_stat(5)): utime, stime, cutime, cstime are fields 14 to 17.
    fn parse(stat: &str) -> Option<Usage> {
        let times: Vec<u32> = fields(stat)?
            .skip(11)
            .take(4)
            .filter_map(|field| field.parse().ok())
            .collect();
        let [user, kernel, children_user, children_kernel] = times.try_into().ok()?;
        let time = |own: u32, children: u32| Duration::from_secs(1) / TICKS * (own + children);
        Some(Usage {
            user: time(user, children_user),
            kernel: time(kernel, children_kernel),
        })
    }
}

/// The fields of `/proc/PID/stat` from the third on: the second is a name in brackets that may hold anything.
fn fields(stat: &str) -> Option<impl Iterator<Item = &str>> {
    Some(stat.rsplit_once(')')?.1.split_whitespace())
}

/// Looks at a process and its descendants until it is dropped, and keeps the most memory that they had together.
#[derive(Debug)]
pub(super) struct Peak {
    kib: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Peak {
    pub(super) fn watch(pid: i32) -> Result<Peak> {
        let (kib, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (peak, stopped) = (Arc::clone(&kib), Arc::clone(&stop));
        let thread = std::thread::Builder::new()
            .name("peak memory".to_owned())
            .spawn(move || {
                while !stopped.load(Ordering::Relaxed) {
                    peak.fetch_max(resident_with_children(pid), Ordering::Relaxed);
                    std::thread::sleep(EVERY);
                }
            })?;
        Ok(Peak {
            kib,
            stop,
            thread: Some(thread),
        })
    }

    /// In bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.kib.load(Ordering::Relaxed) * 1024
    }
}

impl Drop for Peak {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// In KiB. What has ended meanwhile counts nothing; of the process itself the kernel knows its own peak.
fn resident_with_children(pid: i32) -> u64 {
    resident(pid).max(memory(pid, "VmHWM:"))
}

/// Memory of a process and its descendants in RAM, in KiB.
pub(super) fn resident(pid: i32) -> u64 {
    let family = family(pid).into_iter();
    family.map(|member| memory(member, "VmRSS:")).sum()
}

/// A process and its descendants that run.
pub(super) fn family(pid: i32) -> BTreeSet<i32> {
    let mut family = BTreeSet::from([pid]);
    // Children have higher numbers than their parents, as long as the numbers do not begin anew.
    for child in processes().range(pid + 1..) {
        let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        let parent = fields(&stat)
            .and_then(|mut fields| fields.nth(1))
            .and_then(|parent| parent.parse().ok());
        if parent.is_some_and(|parent| family.contains(&parent)) {
            family.insert(*child);
        }
    }
    family
}

fn processes() -> BTreeSet<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// A line of `/proc/PID/status`, in KiB.
fn memory(pid: i32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(field));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_children_are_counted_and_a_strange_name_is_no_field() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 150 50 30 20 20 0 1 0";
        let usage = Usage {
            user: Duration::from_millis(1800),
            kernel: Duration::from_millis(700),
        };
        assert_eq!(Usage::parse(stat), Some(usage));
        assert_eq!(Usage::parse("7 (a) S 1"), None);
    }

    #[test]
    fn children_are_found() -> Result<()> {
        let own = i32::try_from(std::process::id())?;
        let mut child = std::process::Command::new("sleep").arg("60").spawn()?;
        let found = family(own);
        child.kill()?;
        child.wait()?;
        assert!(found.contains(&own) && found.contains(&i32::try_from(child.id())?));
        Ok(())
    }
}
