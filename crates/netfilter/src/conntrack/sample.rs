//! Reads conntrack's table in parts, one after the other, so that looking costs little where the table is large.
//!
//! The socket stays open: the end of any socket of this netlink family holds up nftables commits until the kernel has freed what
//! they deleted (`nft_rcv_nl_event`, net/netfilter/nf_tables_api.c).

use std::time::{Duration, Instant};

use netlink::{Connection, DumpUnderWay, Error, NetlinkFamily, Reply, failed};
use nft::wire::header::header;
use nix::errno::Errno;

use super::{Attempt, attempt, wire};

/// A part ends with the first datagram after this many entries; six datagrams of a page hold about as many.
pub(super) const PART: usize = 100;
/// A part ends with the first datagram after this time: in a table with few entries the kernel walks many buckets for each, and a
/// single datagram may take longer. Short parts are read often, so where many attempts fail one is seen soon.
const TIME: Duration = Duration::from_micros(200);

/// Reads a part of the table of one network namespace at a time.
#[derive(Debug, Default)]
pub struct Sampler(Option<Reading>);

#[derive(Debug)]
struct Reading {
    connection: Connection,
    /// None between the end of the table and its beginning.
    dump: Option<DumpUnderWay>,
}

impl Sampler {
    /// The attempts that `keeps` wants among the entries of the next part, or up to the end of the table. An entry may be gone by
    /// now, or may have its reply: a datagram of them may have waited since the part before.
    ///
    /// Errors: EPERM without CAP_NET_ADMIN in the network namespace of this thread.
    pub fn attempts(
        &mut self,
        mut keeps: impl FnMut(&Attempt) -> bool,
    ) -> Result<Vec<Attempt>, Error> {
        let mut reading = match self.0.take() {
            Some(reading) => reading,
            None => Reading {
                connection: Connection::open_for_small_parts(NetlinkFamily::Netfilter)?,
                dump: None,
            },
        };
        let mut attempts = Vec::new();
        let dump = match reading.dump.take() {
            Some(dump) => dump,
            None => reading
                .connection
                .begin_dump(wire::GET, &header(None), |_| {})?,
        };
        let (start, mut seen) = (Instant::now(), 0);
        let end = loop {
            let read = reading.connection.read_on(&dump, 1, |message| {
                seen += 1;
                attempts.extend(attempt(message).filter(|found| keeps(found)));
            });
            let end = match read {
                // Longer datagrams fit from now on. The next dump has what was cut.
                Err(Error::Failed {
                    errno: Errno::EMSGSIZE,
                    ..
                }) => None,
                read => read?,
            };
            if end.is_some() || seen >= PART || start.elapsed() >= TIME {
                break end;
            }
        };
        match end {
            Some(Reply::Refused(errno)) => {
                return Err(failed("read conntrack entries")(errno));
            }
            Some(Reply::Done | Reply::Interrupted) => {}
            None => reading.dump = Some(dump),
        }
        // After any other failure the next part begins with a new socket.
        self.0 = Some(reading);
        Ok(attempts)
    }
}
