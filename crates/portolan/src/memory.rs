//! This process and the machine's memory: it gives back what work on the whole cluster took, and asks to be spared when
//! there is none left.
//!
//! Reading a first list and committing it allocates far more than what stays. glibc keeps the freed pages that lie below
//! pages in use (mallopt(3), M_TRIM_THRESHOLD looks at the top only): measured at 10,000 Services of 10 endpoints, 14 of
//! 60 MiB. `malloc_trim` gives them back; it takes milliseconds, so it runs beside the control loops and only after work
//! on many Services or peers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// From this many Services planned in one turn, or peers, on, memory is given back afterwards.
pub const LARGE: usize = 1_000;

/// Sources and the commit free their last buffers within this time.
const SETTLE: Duration = Duration::from_secs(1);

/// Gives freed memory back once what led here has settled, at most once in that time. Needs a tokio runtime; does not wait.
pub fn give_back_soon() {
    static IS_COMING: AtomicBool = AtomicBool::new(false);
    if IS_COMING.swap(true, Ordering::Relaxed) {
        return;
    }
    tokio::spawn(async {
        tokio::time::sleep(SETTLE).await;
        IS_COMING.store(false, Ordering::Relaxed);
        let _ = tokio::task::spawn_blocking(give_back).await;
    });
}

/// Says how soon the kernel may end this process when memory is short (`--oom-score-adj`; proc_pid_oom_score_adj(5)). To
/// be spared more than before needs CAP_SYS_RESOURCE; without it, this is said and nothing else.
pub fn set_oom_score_adj(value: i16) {
    const FILE: &str = "/proc/self/oom_score_adj";
    let is_set =
        || std::fs::read_to_string(FILE).is_ok_and(|text| text.trim() == value.to_string());
    if !is_set()
        && let Err(error) = std::fs::write(FILE, value.to_string())
    {
        tracing::warn!(%error, value, "cannot set oom_score_adj; run with CAP_SYS_RESOURCE to lower it");
    }
}

/// One heap for all threads: by default many have one of their own (mallopt(3), M_ARENA_MAX), and what is freed in one
/// is of no use to the others. Measured at 10,000 Services of 10 endpoints from an API server: 44 instead of 57 MiB, with
/// the same times. To be called before there are threads.
#[cfg(target_env = "gnu")]
#[allow(unsafe_code)]
pub fn share_one_heap() {
    // SAFETY: mallopt(3) takes no pointer; refusing (0) leaves everything as it was.
    unsafe { nix::libc::mallopt(nix::libc::M_ARENA_MAX, 1) };
}

/// Other C libraries have one already.
#[cfg(not(target_env = "gnu"))]
pub fn share_one_heap() {}

#[cfg(target_env = "gnu")]
#[allow(unsafe_code)]
fn give_back() {
    // SAFETY: malloc_trim(3) takes no pointer, is thread-safe, and moves nothing that is in use.
    unsafe { nix::libc::malloc_trim(0) };
}

/// Other C libraries have no such call, and give back by themselves.
#[cfg(not(target_env = "gnu"))]
fn give_back() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_asked_to_spare_this_process() {
        let found = || std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
        let before: i16 = found().trim().parse().unwrap();
        // More is always allowed.
        let more = (before + 1).min(1000);
        set_oom_score_adj(more);
        assert_eq!(found().trim(), more.to_string());
        set_oom_score_adj(before);
    }
}
