//! Asks cheaply whether a small table holds an entry at all: `/proc/net/nf_conntrack` is read without the locks that a dump
//! takes for each bucket (a thirtieth of the time for an empty table), but each entry costs a line of text.
//!
//! Invariant: an answer of "none" is certain for entries that were there before the question. For attempts, whose clients try
//! again, two readings in a row without one are enough; otherwise all entries must have been read. A table that is not small
//! or cannot be read this way (CONFIG_NF_CONNTRACK_PROCFS) is never "none".

use std::fs;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};

use nft::Protocol;

use super::{Flow, FlowFilter};

/// The entries of the namespace of this thread.
const LISTING: &str = "/proc/thread-self/net/nf_conntrack";
/// How many entries that namespace has.
const COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";
/// A namespace with more entries is not small: older kernels write 20 lines a call and start each call at the first bucket.
const FEW: usize = 500;
/// Room for as many lines, of 350 bytes at most.
const ROOM: u64 = (FEW as u64 + 50) * 350;
/// An entry that goes between two calls hides another one, hardly the same one twice.
const READINGS: usize = 2;

/// Whether certainly no entry matches the filter and is wanted.
pub(super) fn has_none(filter: &FlowFilter, wanted: impl Fn(&Flow) -> bool) -> bool {
    has_no_flow(filter.unanswered, |flow| {
        filter.matches(flow) && wanted(flow)
    })
}

/// Whether certainly no entry is that of a translated flow without a reply.
pub(super) fn has_no_attempt() -> bool {
    has_no_flow(true, |flow| flow.is_translated() && !flow.answered)
}

fn has_no_flow(is_attempt: bool, wanted: impl Fn(&Flow) -> bool) -> bool {
    for _ in 0..if is_attempt { READINGS } else { 1 } {
        let Some(before) = count().filter(|count| *count <= FEW) else {
            return false;
        };
        if before == 0 {
            return true;
        }
        let mut text = String::new();
        let file = fs::File::open(LISTING).map(|file| file.take(ROOM));
        let read = file.and_then(|mut file| file.read_to_string(&mut text));
        if !read.is_ok_and(|bytes| (bytes as u64) < ROOM) {
            return false;
        }
        if text.lines().filter_map(flow).any(|flow| wanted(&flow)) {
            return false;
        }
        // Entries that have timed out are counted until the kernel finds them, and are not listed.
        if text.lines().count() == before && count() == Some(before) {
            return true;
        }
    }
    is_attempt
}

fn count() -> Option<usize> {
    fs::read_to_string(COUNT).ok()?.trim().parse().ok()
}

/// The flow of a line; `None` for protocols that Services cannot have. `ipv4 2 tcp 6 117 SYN_SENT src=10.0.0.1 dst=10.96.0.1
/// sport=40000 dport=80 [UNREPLIED] src=...` (`ct_seq_show`): the second half is how replies look.
fn flow(line: &str) -> Option<Flow> {
    let protocol = match line.split_ascii_whitespace().nth(2)? {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => return None,
    };
    let (there, back) = line.split_at_checked(line.rfind(" src=")?)?;
    Some(Flow {
        protocol,
        source: socket(there, "src=", "sport=")?,
        destination: socket(there, "dst=", "dport=")?,
        answers_from: socket(back, "src=", "sport=")?,
        answered: !line.contains("[UNREPLIED]"),
    })
}

fn socket(half: &str, address: &str, port: &str) -> Option<SocketAddr> {
    let value = |key: &str| {
        let mut words = half.split_ascii_whitespace();
        words.find_map(|word| word.strip_prefix(key))
    };
    let ip: IpAddr = value(address)?.parse().ok()?;
    Some(SocketAddr::new(ip, value(port)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "ipv4     2 udp      17 29 src=10.0.0.1 dst=10.96.0.1 sport=40000 dport=53 [UNREPLIED] src=10.1.0.1 dst=10.0.0.1 sport=5353 dport=40000 mark=0 zone=0 use=2";

    #[test]
    fn a_line_has_the_flow_of_its_entry() {
        let socket = |text: &str| -> SocketAddr { text.parse().unwrap() };
        let expected = Flow {
            protocol: Protocol::Udp,
            source: socket("10.0.0.1:40000"),
            destination: socket("10.96.0.1:53"),
            answers_from: socket("10.1.0.1:5353"),
            answered: false,
        };
        assert_eq!(flow(LINE), Some(expected));
        let answered = "ipv6     10 tcp      6 431999 ESTABLISHED src=fd00:0000:0000:0000:0000:0000:0000:0001 dst=fd00:0096:0000:0000:0000:0000:0000:000a sport=1 dport=2 packets=3 bytes=180 src=fd00:0096:0000:0000:0000:0000:0000:000a dst=fd00:0000:0000:0000:0000:0000:0000:0001 sport=2 dport=1 packets=2 bytes=120 [ASSURED] mark=0 zone=0 use=2";
        let expected = Flow {
            protocol: Protocol::Tcp,
            source: socket("[fd00::1]:1"),
            destination: socket("[fd00:96::a]:2"),
            answers_from: socket("[fd00:96::a]:2"),
            answered: true,
        };
        assert_eq!(flow(answered), Some(expected));
    }

    #[test]
    fn a_line_of_another_protocol_has_no_flow() {
        let icmp = "ipv4     2 icmp     1 29 src=10.0.0.1 dst=10.0.0.2 type=8 code=0 id=1 [UNREPLIED] src=10.0.0.2 dst=10.0.0.1 type=0 code=0 id=1";
        assert_eq!(flow(icmp), None);
        assert_eq!(flow(""), None);
        assert_eq!(flow(&LINE.replace("dport=53", "")), None);
    }
}
