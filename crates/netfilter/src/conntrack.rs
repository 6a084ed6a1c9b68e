//! Conntrack entries, found by a filter in the kernel and deleted one by one.
//!
//! Owns the ctnetlink messages (net/netfilter/nf_conntrack_netlink.c). Which entries are stale is the caller's decision.
//!
//! A dump carries a filter (`CTA_FILTER`, Linux 5.8; `CTA_STATUS`, Linux 5.15), the caller decides on each entry as it
//! is received, and only the identifiers of stale entries are kept. A kernel that does not know the filter ignores or
//! refuses it; then all entries are received, and filtered here. A dump walks the whole table, so the [`listing`] of a small
//! table is asked first whether there is anything to delete. (From about Linux 6.7 on, one message could delete all
//! entries that match a filter. It would not report how many, and no filter says "to none of these endpoints".)
//!
//! Invariant: an entry is deleted by its tuple and its kernel id, so never a newer one of the same addresses and ports.

mod ended;
mod listing;
mod sample;
#[cfg(test)]
mod tests;
mod wire;

pub use ended::EndedFlows;
pub use sample::Sampler;

use std::net::{IpAddr, SocketAddr};

use netlink::{Connection, Error, Message, NetlinkFamily, Reply, Writer, failed, flag};
use nft::wire::header::header;
use nft::{Family, Protocol};
use nix::errno::Errno;

/// Deletions in one datagram; each refused one is answered with about 1 kB of kernel memory.
const DELETIONS: usize = 512;
const RECEIVE_SPACE: usize = 4 << 20;
/// Dumps are interrupted only while the kernel resizes its table.
const ATTEMPTS: usize = 10;

/// A conntrack entry: a flow, as seen from the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Protocol.
    pub protocol: Protocol,
    /// The client.
    pub source: SocketAddr,
    /// Where the client sends to: a frontend, if the flow was translated.
    pub destination: SocketAddr,
    /// Where replies come from: the endpoint, if the flow was translated, else the destination.
    pub answers_from: SocketAddr,
    /// Whether there was a reply (`IPS_SEEN_REPLY`).
    pub answered: bool,
}

impl Flow {
    /// Whether its destination was translated.
    pub fn is_translated(&self) -> bool {
        self.destination != self.answers_from
    }
}

/// What the packets of an entry add up to, in both directions together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Volume {
    /// Number of packets.
    pub packets: u64,
    /// Bytes of IP packets.
    pub bytes: u64,
}

/// Which entries to find. All conditions that are set must hold.
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
    /// Only flows without a reply.
    pub unanswered: bool,
}

impl FlowFilter {
    /// All entries of a protocol.
    pub fn all(family: Family, protocol: Protocol) -> Self {
        FlowFilter {
            family,
            protocol,
            destination: None,
            port: None,
            unanswered: false,
        }
    }

    /// Whether the flow matches.
    pub fn matches(&self, flow: &Flow) -> bool {
        flow.protocol == self.protocol
            && flow.destination.is_ipv4() == (self.family == Family::Ip)
            && self.destination.is_none_or(|a| a == flow.destination.ip())
            && self.port.is_none_or(|port| port == flow.destination.port())
            && !(self.unanswered && flow.answered)
    }
}

/// A translated flow without a reply, as the kernel knows it: an attempt to connect, or datagrams to a silent endpoint.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// The flow.
    pub flow: Flow,
    /// Seconds that the entry stays if its client sends nothing more.
    pub expires_in: Option<u32>,
    handle: wire::Handle,
}

/// Connection tracking of one network namespace: that of the thread that opened the socket.
#[derive(Debug)]
pub struct Conntrack {
    connection: Connection,
    /// The kernel has refused a filter.
    unfiltered: bool,
    entries_seen: u64,
    walks: u64,
}

impl Conntrack {
    /// Errors: EPERM without CAP_NET_ADMIN in this network namespace.
    pub fn open() -> Result<Self, Error> {
        let connection = Connection::open(NetlinkFamily::Netfilter)?;
        connection.socket().set_receive_space(RECEIVE_SPACE)?;
        Ok(Conntrack {
            connection,
            unfiltered: false,
            entries_seen: 0,
            walks: 0,
        })
    }

    /// Number of entries received so far: how well filters work.
    pub fn entries_seen(&self) -> u64 {
        self.entries_seen
    }

    /// Number of walks of the kernel's table so far. Each locks all buckets in turn (4 ms for 262,144).
    pub fn walks(&self) -> u64 {
        self.walks
    }

    /// Deletes the entries that match the filter and are stale, and returns their number.
    ///
    /// Errors leave some of them in place; calling again is safe.
    pub fn delete(
        &mut self,
        filter: &FlowFilter,
        is_stale: impl Fn(&Flow) -> bool,
    ) -> Result<usize, Error> {
        self.delete_noting(filter, is_stale, |_| {})
    }

    /// The same, and calls `note` with each entry before its deletion; after an error also with entries that are left.
    pub fn delete_noting(
        &mut self,
        filter: &FlowFilter,
        is_stale: impl Fn(&Flow) -> bool,
        mut note: impl FnMut(&Flow),
    ) -> Result<usize, Error> {
        if listing::has_none(filter, &is_stale) {
            return Ok(0);
        }
        self.walk(filter, |flow| {
            let goes = is_stale(flow);
            if goes {
                note(flow);
            }
            goes
        })
    }

    /// Walks the table, and deletes the entries that match the filter and are stale.
    fn walk(
        &mut self,
        filter: &FlowFilter,
        mut is_stale: impl FnMut(&Flow) -> bool,
    ) -> Result<usize, Error> {
        let mut deleted = 0;
        for _ in 0..ATTEMPTS {
            self.walks += 1;
            let mut handles = Vec::new();
            let mut seen = 0;
            let reply = self.connection.ask(
                wire::GET,
                flag::DUMP,
                &header(Some(filter.family)),
                |out| {
                    if !self.unfiltered {
                        wire::put_filter(out, filter);
                    }
                },
                |message| {
                    seen += 1;
                    // Entries of other protocols have no ports, and entries that do not decode are skipped.
                    if let Ok(Some((flow, handle))) = wire::read(message)
                        && filter.matches(&flow)
                        && is_stale(&flow)
                    {
                        handles.push(handle);
                    }
                    Ok(())
                },
            )?;
            self.entries_seen += seen;
            match reply {
                Reply::Done => return Ok(deleted + self.delete_all(filter.family, &handles)?),
                // Entries that the resize hid are found by the next attempt.
                Reply::Interrupted => deleted += self.delete_all(filter.family, &handles)?,
                Reply::Refused(Errno::EINVAL | Errno::EOPNOTSUPP) if !self.unfiltered => {
                    self.unfiltered = true;
                }
                Reply::Refused(errno) => return Err(failed("read conntrack entries")(errno)),
            }
        }
        Err(failed("read conntrack entries between changes")(
            Errno::EAGAIN,
        ))
    }

    /// Calls `visit` with each entry of a family, and what the kernel has counted for the entry (0 unless
    /// `net.netfilter.nf_conntrack_acct` is set). While the kernel resizes its table, entries may come twice or not at all.
    ///
    /// Errors: the kernel refuses to list entries.
    pub fn list(
        &mut self,
        family: Family,
        mut visit: impl FnMut(&Flow, Volume),
    ) -> Result<(), Error> {
        self.walks += 1;
        let mut seen = 0;
        let reply = self.connection.ask(
            wire::GET,
            flag::DUMP,
            &header(Some(family)),
            |_| {},
            |message| {
                seen += 1;
                if let Ok(Some((flow, _))) = wire::read(message) {
                    visit(&flow, wire::read_volume(message)?);
                }
                Ok(())
            },
        )?;
        self.entries_seen += seen;
        match reply {
            Reply::Done | Reply::Interrupted => Ok(()),
            Reply::Refused(errno) => Err(failed("list conntrack entries")(errno)),
        }
    }

    /// Calls `visit` with each translated entry of all families, and what the kernel has counted for the entry, as
    /// [`Conntrack::list`] does. Returns whether the table was listed as a whole: while the kernel resizes the table,
    /// entries may come twice or not at all.
    ///
    /// Errors: the kernel refuses to list entries.
    pub fn list_translated(&mut self, mut visit: impl FnMut(&Flow, Volume)) -> Result<bool, Error> {
        self.walks += 1;
        let mut seen = 0;
        // Kernels that do not know this filter ignore it.
        let reply = self.connection.ask(
            wire::GET,
            flag::DUMP,
            &header(None),
            wire::put_translated_filter,
            |message| {
                seen += 1;
                if let Ok(Some((flow, _))) = wire::read(message)
                    && flow.is_translated()
                {
                    visit(&flow, wire::read_volume(message)?);
                }
                Ok(())
            },
        )?;
        self.entries_seen += seen;
        match reply {
            Reply::Done => Ok(true),
            Reply::Interrupted => Ok(false),
            Reply::Refused(errno) => Err(failed("list conntrack entries")(errno)),
        }
    }

    /// The attempts of all families and protocols at this moment that `keeps` wants. Those that the kernel's resizing of
    /// its table hides are missing.
    pub fn attempts(
        &mut self,
        mut keeps: impl FnMut(&Attempt) -> bool,
    ) -> Result<Vec<Attempt>, Error> {
        if listing::has_no_attempt() {
            return Ok(Vec::new());
        }
        let (mut attempts, mut seen) = (Vec::new(), 0);
        self.walks += 1;
        // Kernels that do not know this filter ignore it.
        let reply = self.connection.ask(
            wire::GET,
            flag::DUMP,
            &header(None),
            wire::put_attempts_filter,
            |message| {
                seen += 1;
                attempts.extend(attempt(message).filter(|found| keeps(found)));
                Ok(())
            },
        )?;
        self.entries_seen += seen;
        match reply {
            Reply::Done | Reply::Interrupted => Ok(attempts),
            Reply::Refused(errno) => Err(failed("read conntrack entries")(errno)),
        }
    }

    /// Whether the entry of the attempt has a reply by now; `None` if the entry is gone. The kernel looks one entry up.
    pub fn has_reply(&mut self, attempt: &Attempt) -> Result<Option<bool>, Error> {
        let family = Family::of(attempt.flow.destination.ip());
        let mut has_reply = None;
        let reply = self.connection.ask(
            wire::GET,
            0,
            &header(Some(family)),
            |out| attempt.handle.put(out),
            |message| {
                let found = wire::read(message)?;
                // A newer entry may have the same addresses and ports.
                let same = found.filter(|(_, handle)| *handle == attempt.handle);
                has_reply = same.map(|(flow, _)| flow.answered);
                Ok(())
            },
        )?;
        match reply {
            Reply::Refused(Errno::ENOENT) => Ok(None),
            Reply::Refused(errno) => Err(failed("read a conntrack entry")(errno)),
            Reply::Done | Reply::Interrupted => Ok(has_reply),
        }
    }

    fn delete_all(&mut self, family: Family, handles: &[wire::Handle]) -> Result<usize, Error> {
        let mut deleted = 0;
        for chunk in handles.chunks(DELETIONS) {
            let write = |handle: &wire::Handle, sequence, out: &mut Writer| {
                let start = out.start(wire::DELETE, 0, sequence, &header(Some(family)));
                handle.put(out);
                out.finish(start);
                start
            };
            let (mut gone, mut failure) = (0, None);
            self.connection
                .send_each(chunk, write, |_, errno| match errno {
                    // The entry expired.
                    Errno::ENOENT => gone += 1,
                    errno => failure = Some(errno),
                })?;
            if let Some(errno) = failure {
                return Err(failed("delete conntrack entries")(errno));
            }
            deleted += chunk.len() - gone;
        }
        Ok(deleted)
    }
}

/// The entry of a message, if it is of a translated flow without a reply.
fn attempt(message: &Message<'_>) -> Option<Attempt> {
    let (flow, handle) = wire::read(message).ok()??;
    if flow.answered || !flow.is_translated() {
        return None;
    }
    Some(Attempt {
        flow,
        expires_in: wire::read_timeout(message).ok()?,
        handle,
    })
}
