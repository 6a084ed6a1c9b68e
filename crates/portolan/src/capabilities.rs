//! The capabilities of this process: makes effective what the process is permitted.
//!
//! The image's file capabilities are permitted, not effective (`cap_net_admin,cap_net_raw+p`): execve(2) fails with
//! EPERM when an effective file capability is not in the bounding set (capabilities(7), "Safety checking for
//! capability-dumb binaries"), so with the effective bit a container with NET_ADMIN alone, or one with no capability that
//! only copies a file, could not start. A user other than root therefore begins with an empty effective set.

use std::io;

use rustix::thread::{capabilities, set_capabilities};

/// Makes every permitted capability effective. Call it before there are threads: each thread has sets of its own.
pub fn raise() -> io::Result<()> {
    let mut sets = capabilities(None)?;
    if sets.effective == sets.permitted {
        return Ok(());
    }
    sets.effective = sets.permitted;
    Ok(set_capabilities(None, sets)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permitted_capabilities_become_effective_again() {
        let before = capabilities(None).unwrap();
        let mut lowered = before;
        lowered.effective = rustix::thread::CapabilitySet::empty();
        set_capabilities(None, lowered).unwrap();
        raise().unwrap();
        assert_eq!(capabilities(None).unwrap().effective, before.permitted);
    }
}
