//! Returns freed memory to the kernel, and sets this process's oom_score_adj.
//!
//! Reading and committing a first list allocates far more than what is kept. glibc keeps freed pages below pages in use
//! (mallopt(3), M_TRIM_THRESHOLD is about the top only): 14 of 60 MiB at 10,000 Services of 10 endpoints. `malloc_trim`
//! returns them. It takes milliseconds, so it runs on another thread, and only after work on many Services or peers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Minimum number of Services planned in one turn, or of peers, after which memory is returned.
pub const LARGE: usize = 1_000;

/// Time for sources and the commit to free their last buffers.
const SETTLE: Duration = Duration::from_secs(1);

/// Returns freed memory after [`SETTLE`], at most once in that time. Needs a tokio runtime; does not wait.
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

/// Sets oom_score_adj (proc_pid_oom_score_adj(5)). Lowering it needs CAP_SYS_RESOURCE; failures are logged.
pub fn set_oom_score_adj(value: i16) {
    const FILE: &str = "/proc/self/oom_score_adj";
    let is_set =
        || std::fs::read_to_string(FILE).is_ok_and(|text| text.trim() == value.to_string());
    if !is_set()
        && let Err(error) = std::fs::write(FILE, value.to_string())
    {
        match error.kind() {
            // Without the capability, as an unprivileged container is.
            std::io::ErrorKind::PermissionDenied => tracing::info!(
                value,
                "oom_score_adj stays as it is: lowering it needs CAP_SYS_RESOURCE"
            ),
            _ => tracing::warn!(%error, value, "cannot set oom_score_adj"),
        }
    }
}

/// Makes all threads share one heap: by default threads have heaps of their own (mallopt(3), M_ARENA_MAX), and memory freed
/// in one is of no use to the others. 44 instead of 57 MiB at 10,000 Services of 10 endpoints from an API server, with the
/// same latencies. To be called before threads start.
#[cfg(target_env = "gnu")]
#[allow(unsafe_code)]
pub fn share_one_heap() {
    // SAFETY: mallopt(3) takes no pointer; refusing (0) leaves everything as it was.
    unsafe { nix::libc::mallopt(nix::libc::M_ARENA_MAX, 1) };
}

/// Other C libraries share one heap already.
#[cfg(not(target_env = "gnu"))]
pub fn share_one_heap() {}

#[cfg(target_env = "gnu")]
#[allow(unsafe_code)]
fn give_back() {
    // SAFETY: malloc_trim(3) takes no pointer, is thread-safe, and moves nothing that is in use.
    unsafe { nix::libc::malloc_trim(0) };
}

/// Other C libraries have no such call, and return memory by themselves.
#[cfg(not(target_env = "gnu"))]
fn give_back() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oom_score_adj_is_set() {
        let found = || std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
        let before: i16 = found().trim().parse().unwrap();
        // More is always allowed.
        let more = (before + 1).min(1000);
        set_oom_score_adj(more);
        assert_eq!(found().trim(), more.to_string());
        set_oom_score_adj(before);
    }
}
