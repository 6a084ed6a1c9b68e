//! Probes kernel features of links and routes, which the overlay uses.
//!
//! Nexthop objects are probed by a request for an unused ID. A VXLAN link is created in a temporary network namespace;
//! without CAP_SYS_ADMIN it is not tried.

use std::fmt;
use std::net::Ipv4Addr;

use anyhow::{Result, anyhow};
use netlink::{Connection, NetlinkFamily, Reply, Writer};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use rtnetlink::LinkVxlan;

/// A kernel feature of links and routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkFeature {
    /// Nexthop objects (Linux 5.3).
    NexthopObjects,
    /// VXLAN links with learning off, a local address and a port (CONFIG_VXLAN).
    Vxlan,
}

impl LinkFeature {
    /// A short name without spaces.
    pub const fn name(self) -> &'static str {
        match self {
            LinkFeature::NexthopObjects => "nexthop-objects",
            LinkFeature::Vxlan => "vxlan",
        }
    }

    pub const fn instead(self) -> &'static str {
        match self {
            LinkFeature::NexthopObjects => "plain routes",
            LinkFeature::Vxlan => "Services work, --overlay=vxlan does not",
        }
    }
}

impl fmt::Display for LinkFeature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Result of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// The kernel has the feature.
    Yes,
    /// The kernel lacks the feature, for this reason.
    No(String),
    /// Not known, for this reason.
    Untried(String),
}

/// Probes all features. Changes nothing in the calling thread's network namespace.
pub fn probe() -> [(LinkFeature, Found); 2] {
    [
        (LinkFeature::NexthopObjects, nexthop_objects()),
        (LinkFeature::Vxlan, vxlan()),
    ]
}

/// Whether routes can name nexthop objects.
pub(crate) fn nexthop_objects() -> Found {
    match ask_for_nexthop() {
        Ok(Reply::Refused(Errno::ENOENT)) => Found::Yes,
        Ok(reply) => Found::No(format!("the kernel answers {reply:?}")),
        Err(error) => Found::Untried(error.to_string()),
    }
}

/// Asks for a nexthop that does not exist: refused with ENOENT where the kernel knows the request.
fn ask_for_nexthop() -> Result<Reply, netlink::Error> {
    /// `RTM_GETNEXTHOP`, the bytes of `struct nhmsg`, and `NHA_ID`.
    const GET_NEXTHOP: u16 = 106;
    const HEADER: [u8; 8] = [0; 8];
    const ID: u16 = 1;
    let mut connection = Connection::open(NetlinkFamily::Route)?;
    let fill = |out: &mut Writer| out.put(ID, &u32::MAX.to_ne_bytes());
    connection.ask(GET_NEXTHOP, 0, &HEADER, fill, |_| Ok(()))
}

fn vxlan() -> Found {
    let trial = std::thread::Builder::new()
        .name("vxlan-trial".into())
        .spawn(|| {
            if let Err(errno) = unshare(CloneFlags::CLONE_NEWNET) {
                return Found::Untried(format!("cannot create a network namespace: {errno}"));
            }
            match make_vxlan() {
                Ok(()) => Found::Yes,
                Err(error) => Found::No(format!("{error:#}")),
            }
        });
    match trial.map(std::thread::JoinHandle::join) {
        Ok(Ok(found)) => found,
        Ok(Err(_)) => Found::Untried("the probe panicked".into()),
        Err(error) => Found::Untried(error.to_string()),
    }
}

/// In the namespace of the calling thread, which is made for it.
fn make_vxlan() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let connection = tokio::spawn(connection);
        let link = LinkVxlan::new("trial", 1)
            .learning(false)
            .local(Ipv4Addr::LOCALHOST)
            .port(4789)
            .build();
        let made = handle.link().add(link).execute().await;
        connection.abort();
        made.map_err(|error| anyhow!("the kernel says {error}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[lab::scenario(Vxlan)]
    fn every_link_feature_is_found() -> Result<()> {
        for (feature, found) in probe() {
            assert!(
                matches!(found, Found::Yes),
                "{feature} is in every kernel since 5.3: {found:?}"
            );
        }
        Ok(())
    }
}
