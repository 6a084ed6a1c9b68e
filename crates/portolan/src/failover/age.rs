//! Whether the client of an attempt without a reply has sent lately: what it sent long ago says nothing about its node now.
//!
//! The kernel keeps such an entry for a time that begins anew with each packet of the client, so what is left of that time tells
//! how long the client has been silent. Where the time is another one (`ct timeout` rules), all attempts count as old, or all as
//! recent: then they are judged alike.

use std::fs;
use std::path::PathBuf;

use netfilter::Attempt;
use nft::Protocol;

/// Seconds since the client's last packet up to which an attempt is recent.
const RECENT: u32 = 3;
const FOLDER: &str = "/proc/sys/net/netfilter";

/// How many seconds entries without a reply stay, in the network namespace of this thread.
#[derive(Debug)]
pub(super) struct Timeouts {
    tcp: u32,
    udp: u32,
    sctp: u32,
}

impl Timeouts {
    /// Reads the kernel's; its defaults where they cannot be read (net/netfilter/nf_conntrack_proto_*.c).
    pub(super) fn read() -> Timeouts {
        let read = |name: &str, default| {
            let text = fs::read_to_string(PathBuf::from(FOLDER).join(name));
            let value = text.ok().and_then(|text| text.trim().parse().ok());
            value.unwrap_or(default)
        };
        Timeouts {
            tcp: read("nf_conntrack_tcp_timeout_syn_sent", 120),
            udp: read("nf_conntrack_udp_timeout", 30),
            sctp: read("nf_conntrack_sctp_timeout_cookie_wait", 3),
        }
    }

    /// Whether the client has sent within the last few seconds.
    pub(super) fn is_recent(&self, attempt: &Attempt) -> bool {
        self.is_recently_sent(attempt.flow.protocol, attempt.expires_in)
    }

    /// The same for an entry that stays for `left` more seconds; an entry for which the kernel does not say is recent.
    fn is_recently_sent(&self, protocol: Protocol, left: Option<u32>) -> bool {
        let whole = match protocol {
            Protocol::Tcp => self.tcp,
            Protocol::Udp => self.udp,
            Protocol::Sctp => self.sctp,
        };
        left.is_none_or(|left| left.saturating_add(RECENT) >= whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_is_recent_for_three_seconds() {
        let timeouts = Timeouts {
            tcp: 120,
            udp: 30,
            sctp: 10,
        };
        let (tcp, udp, sctp) = (Protocol::Tcp, Protocol::Udp, Protocol::Sctp);
        for (protocol, left, recent) in [
            (tcp, Some(120), true),
            (tcp, Some(117), true),
            (tcp, Some(116), false),
            (tcp, Some(0), false),
            (udp, Some(30), true),
            (udp, Some(27), true),
            (udp, Some(26), false),
            (sctp, Some(7), true),
            (sctp, Some(6), false),
            (tcp, None, true),
            (udp, None, true),
            // Of `ct timeout` rules: 600 s and 20 s.
            (tcp, Some(u32::MAX), true),
            (tcp, Some(600), true),
            (tcp, Some(480), true),
            (tcp, Some(20), false),
        ] {
            let found = timeouts.is_recently_sent(protocol, left);
            assert_eq!(found, recent, "{protocol:?}, {left:?} s left");
        }
    }
}
