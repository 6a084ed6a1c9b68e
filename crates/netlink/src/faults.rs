//! Faults for tests: netlink calls of a thread fail as the test has planned.
//!
//! A call is what a caller of this crate waits for: a datagram sent, a datagram received, or the kernel's verdict on one request.

use std::cell::Cell;

use nix::errno::Errno;

/// The error numbers that netlink calls are known to fail with.
pub const ERRNOS: [Errno; 12] = [
    Errno::EINTR,
    Errno::EAGAIN,
    Errno::ENOBUFS,
    Errno::ENOMEM,
    Errno::EBUSY,
    Errno::EEXIST,
    Errno::ENOENT,
    Errno::EPERM,
    Errno::ENOSPC,
    Errno::EMSGSIZE,
    Errno::EOPNOTSUPP,
    Errno::EINVAL,
];

/// Which calls fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Plan {
    /// None.
    #[default]
    None,
    /// The one after this many calls, with this error number.
    Once(usize, Errno),
    /// One in five, with any of [`ERRNOS`]. The number seeds the choice and must not be 0.
    Fifth(u64),
}

thread_local! {
    static PLAN: Cell<Plan> = const { Cell::new(Plan::None) };
    static CALLS: Cell<usize> = const { Cell::new(0) };
}

/// Replaces the plan of the calling thread, and returns how many calls the last plan has seen.
pub fn plan(plan: Plan) -> usize {
    PLAN.set(plan);
    CALLS.replace(0)
}

/// Counts a call, and returns the error that it fails with.
pub(crate) fn due() -> Option<Errno> {
    let call = CALLS.get();
    CALLS.set(call + 1);
    match PLAN.get() {
        Plan::None => None,
        Plan::Once(after, errno) => (call == after).then_some(errno),
        Plan::Fifth(seed) => {
            // Marsaglia's xorshift.
            let mut next = seed ^ (seed << 13);
            next ^= next >> 7;
            next ^= next << 17;
            PLAN.set(Plan::Fifth(next));
            let errno = ERRNOS.get((next >> 8) as usize % ERRNOS.len()).copied();
            errno.filter(|_| next % 5 == 0)
        }
    }
}
