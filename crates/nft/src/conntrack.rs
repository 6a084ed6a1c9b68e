//! Connection tracking entries of translated flows, found by a filter in the kernel and deleted one by one.
//!
//! Owns the ctnetlink messages (net/netfilter/nf_conntrack_netlink.c). Which flows shall go is the caller's question.
//!
//! The table is never read whole where the kernel can help it: a dump carries a filter (`CTA_FILTER`, Linux 5.8;
//! `CTA_STATUS`, Linux 5.15), entries are judged as they stream by, and only what identifies the condemned ones is
//! kept. A kernel that does not know the filter ignores or refuses it; then everything streams by, and is judged by
//! the same rules. (From about Linux 6.7 on, one message could delete all that a filter finds. It would not say how
//! many, nor could it tell "to none of these endpoints".)
//!
//! Invariant: an entry is deleted by its tuple and the kernel's number for it, so never a newer one of the same
//! addresses and ports.

#[cfg(test)]
mod tests;
mod wire;

use std::net::{IpAddr, SocketAddr};

use nix::errno::Errno;

use crate::link::{Asked, Link, failed};
use crate::model::{Family, Protocol};
use crate::transaction::CommitError;
use crate::wire::abi::flag;
use crate::wire::attribute::Writer;

/// Deletions in one datagram; each refused one is answered with about 1 kB of kernel memory.
const DELETIONS: usize = 512;
const RECEIVE_SPACE: usize = 4 << 20;
/// Dumps are only interrupted while the kernel resizes its table.
const ATTEMPTS: usize = 10;

/// A tracked flow, as seen from the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Protocol.
    pub protocol: Protocol,
    /// The client.
    pub source: SocketAddr,
    /// Where the client sends to: the frontend, if there is one.
    pub destination: SocketAddr,
    /// Where answers come from: the endpoint, if the flow was translated, else the destination.
    pub answers_from: SocketAddr,
    /// Whether there has been an answer (`IPS_SEEN_REPLY`).
    pub answered: bool,
}

impl Flow {
    /// Whether its destination was translated.
    pub fn is_translated(&self) -> bool {
        self.destination != self.answers_from
    }
}

/// What the kernel should look for. Every given condition must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowFilter {
    /// Family.
    pub family: Family,
    /// Protocol.
    pub protocol: Protocol,
    /// Where the client sends to.
    pub destination: Option<IpAddr>,
    /// The port the client sends to.
    pub port: Option<u16>,
    /// Only flows without an answer.
    pub unanswered: bool,
}

impl FlowFilter {
    /// Everything of a protocol.
    pub fn all(family: Family, protocol: Protocol) -> Self {
        FlowFilter {
            family,
            protocol,
            destination: None,
            port: None,
            unanswered: false,
        }
    }

    /// Whether it lets the flow through.
    pub fn matches(&self, flow: &Flow) -> bool {
        flow.protocol == self.protocol
            && flow.destination.is_ipv4() == (self.family == Family::Ip)
            && self.destination.is_none_or(|a| a == flow.destination.ip())
            && self.port.is_none_or(|port| port == flow.destination.port())
            && !(self.unanswered && flow.answered)
    }
}

/// Connection tracking of one network namespace: that of the thread that opened it.
#[derive(Debug)]
pub struct Conntrack {
    link: Link,
    /// The kernel has refused a filter.
    unfiltered: bool,
    entries_seen: u64,
}

impl Conntrack {
    /// Errors: EPERM without CAP_NET_ADMIN in this network namespace.
    pub fn open() -> Result<Self, CommitError> {
        Ok(Conntrack {
            link: Link::open(RECEIVE_SPACE)?,
            unfiltered: false,
            entries_seen: 0,
        })
    }

    /// Entries that the kernel has handed over so far: what filters spare us.
    pub fn entries_seen(&self) -> u64 {
        self.entries_seen
    }

    /// Deletes the flows that pass the filter and are condemned; answers how many there were.
    ///
    /// Errors leave some of them in place; to call it again is always right.
    pub fn delete(
        &mut self,
        filter: &FlowFilter,
        mut condemned: impl FnMut(&Flow) -> bool,
    ) -> Result<usize, CommitError> {
        let mut deleted = 0;
        for _ in 0..ATTEMPTS {
            let mut handles = Vec::new();
            let mut seen = 0;
            let asked = self.link.ask(
                wire::GET,
                flag::DUMP,
                Some(filter.family),
                |out| {
                    if !self.unfiltered {
                        wire::put_filter(out, filter);
                    }
                },
                |message| {
                    seen += 1;
                    // Other protocols have no ports, and an entry that does not decode is none of ours.
                    if let Ok(Some((flow, handle))) = wire::read(message)
                        && filter.matches(&flow)
                        && condemned(&flow)
                    {
                        handles.push(handle);
                    }
                    Ok(())
                },
            )?;
            self.entries_seen += seen;
            match asked {
                Asked::Done => return Ok(deleted + self.delete_all(filter.family, &handles)?),
                // What was found goes; what a resize hid is found by the next attempt.
                Asked::Interrupted => deleted += self.delete_all(filter.family, &handles)?,
                Asked::Refused(Errno::EINVAL | Errno::EOPNOTSUPP) if !self.unfiltered => {
                    self.unfiltered = true;
                }
                Asked::Refused(errno) => return Err(failed("read connection tracking")(errno)),
            }
        }
        Err(failed("read connection tracking unchanged")(Errno::EAGAIN))
    }

    fn delete_all(
        &mut self,
        family: Family,
        handles: &[wire::Handle],
    ) -> Result<usize, CommitError> {
        let mut deleted = 0;
        for chunk in handles.chunks(DELETIONS) {
            let mut out = Writer::default();
            let first = self.link.sequence;
            let mut last = first;
            for (position, handle) in (0..).zip(chunk) {
                let acknowledge = match position as usize + 1 == chunk.len() {
                    true => flag::ACK,
                    false => 0,
                };
                last = first.wrapping_add(position);
                out.request(wire::DELETE, acknowledge, last, Some(family), |out| {
                    handle.put(out)
                });
            }
            let (mut gone, mut failure) = (0, None);
            self.link.tell(&out.bytes, first, last, |_, errno| {
                match errno {
                    // It ended by itself.
                    Errno::ENOENT => gone += 1,
                    errno => failure = Some(errno),
                }
                true
            })?;
            if let Some(errno) = failure {
                return Err(failed("delete a tracked flow")(errno));
            }
            deleted += chunk.len() - gone;
        }
        Ok(deleted)
    }
}
