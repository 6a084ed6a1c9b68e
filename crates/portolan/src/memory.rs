//! Gives memory back to the system after work on the whole cluster.
//!
//! Reading a first list and committing it allocates far more than what stays. glibc keeps the freed pages that lie below
//! pages in use (mallopt(3), M_TRIM_THRESHOLD looks at the top only): measured at 10,000 Services of 10 endpoints, 14 of
//! 60 MiB. `malloc_trim` gives them back; it takes milliseconds, so it runs beside the control loop and only after large
//! commits.

use std::time::Duration;

/// From this many Services planned in one turn on, memory is given back afterwards.
pub const LARGE: usize = 1_000;

/// Sources and the commit free their last buffers within this time.
const SETTLE: Duration = Duration::from_secs(1);

/// Gives freed memory back once what led here has settled. Needs a tokio runtime; does not wait.
pub fn give_back_soon() {
    tokio::spawn(async {
        tokio::time::sleep(SETTLE).await;
        let _ = tokio::task::spawn_blocking(give_back).await;
    });
}

#[cfg(target_env = "gnu")]
#[allow(unsafe_code)]
fn give_back() {
    // SAFETY: malloc_trim(3) takes no pointer, is thread-safe, and moves nothing that is in use.
    unsafe { nix::libc::malloc_trim(0) };
}

/// Other C libraries have no such call, and give back by themselves.
#[cfg(not(target_env = "gnu"))]
fn give_back() {}
