//! Asks cheaply whether a small table holds an entry at all: `/proc/net/nf_conntrack` is read without the locks that a dump
//! takes for each bucket (a thirtieth of the time for an empty table), but each entry costs a line of text.
//!
//! Invariant: an answer of "none" is certain as far as entries are concerned that were there before the question. A table
//! that is not small, changes meanwhile or cannot be read this way (CONFIG_NF_CONNTRACK_PROCFS) is never "none".

use std::fs;
use std::io::Read;

use nft::{Family, Protocol};

use super::FlowFilter;

/// The entries of the namespace of this thread.
const LISTING: &str = "/proc/thread-self/net/nf_conntrack";
/// How many entries that namespace has.
const COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";
/// A namespace with more entries is not small: older kernels write 20 lines a call and start each call at the first bucket.
const FEW: usize = 500;
/// Room for as many lines, of 350 bytes at most.
const ROOM: u64 = (FEW as u64 + 50) * 350;

/// Whether certainly no entry matches the protocol, family, port and state of the filter.
pub(super) fn has_none(filter: &FlowFilter) -> bool {
    has_no_line(|line| matches(line, filter))
}

/// Whether certainly no entry is that of a translated flow without a reply.
pub(super) fn has_no_attempt() -> bool {
    has_no_line(is_attempt)
}

fn has_no_line(wanted: impl Fn(&str) -> bool) -> bool {
    let Some(before) = count().filter(|count| *count <= FEW) else {
        return false;
    };
    if before == 0 {
        return true;
    }
    let mut text = String::new();
    let read = fs::File::open(LISTING).and_then(|file| file.take(ROOM).read_to_string(&mut text));
    // An entry that goes between two calls hides another one: then there are fewer lines than entries.
    let is_whole = read.is_ok() && text.lines().count() == before && count() == Some(before);
    is_whole && !text.lines().any(wanted)
}

fn count() -> Option<usize> {
    fs::read_to_string(COUNT).ok()?.trim().parse().ok()
}

/// Whether a line may be about an entry that the filter matches. `ipv4 2 tcp 6 117 SYN_SENT src=10.0.0.1 dst=10.96.0.1
/// sport=40000 dport=80 [UNREPLIED] src=...` (`ct_seq_show`).
fn matches(line: &str, filter: &FlowFilter) -> bool {
    let mut words = line.split_ascii_whitespace();
    let (family, _, protocol) = (words.next(), words.next(), words.next());
    let is_of_kind = family == Some(family_name(filter.family))
        && protocol == Some(protocol_name(filter.protocol));
    let found = || words.clone().find_map(|word| word.strip_prefix("dport="));
    let is_at_port = || {
        let wanted = filter.port.map(|port| port.to_string());
        wanted.is_none_or(|port| found() == Some(port.as_str()))
    };
    let is_unanswered = || words.clone().any(|word| word == "[UNREPLIED]");
    is_of_kind && is_at_port() && (!filter.unanswered || is_unanswered())
}

/// Whether a line is about a flow without a reply that goes elsewhere than its client sends to. Replies would come from the
/// second `src=`.
fn is_attempt(line: &str) -> bool {
    let values = |key: &'static str| {
        let words = line.split_ascii_whitespace();
        words.filter_map(move |word| word.strip_prefix(key))
    };
    let there = (values("dst=").next(), values("dport=").next());
    let back = (values("src=").nth(1), values("sport=").nth(1));
    line.contains("[UNREPLIED]") && there != back
}

fn family_name(family: Family) -> &'static str {
    match family {
        Family::Ip => "ipv4",
        Family::Ip6 => "ipv6",
    }
}

fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_is_translated_and_has_no_reply() {
        let line = "ipv4     2 udp      17 29 src=10.0.0.1 dst=10.96.0.1 sport=40000 dport=53 [UNREPLIED] src=10.1.0.1 dst=10.0.0.1 sport=53 dport=40000 mark=0 zone=0 use=2";
        assert!(is_attempt(line));
        assert!(!is_attempt(&line.replace("[UNREPLIED] ", "")));
        assert!(!is_attempt(&line.replace("10.96.0.1", "10.1.0.1")));
        let other_port = line
            .replace("10.96.0.1", "10.1.0.1")
            .replace("sport=53", "sport=5353");
        assert!(is_attempt(&other_port));
        let icmp = "ipv4     2 icmp     1 29 src=10.0.0.1 dst=10.0.0.2 type=8 code=0 id=1 [UNREPLIED] src=10.0.0.2 dst=10.0.0.1 type=0 code=0 id=1";
        assert!(!is_attempt(icmp));
    }

    #[test]
    fn a_line_matches_by_family_protocol_port_and_state() {
        let line = "ipv4     2 tcp      6 117 SYN_SENT src=10.0.0.1 dst=10.96.0.1 sport=40000 dport=80 [UNREPLIED] src=10.1.0.1 dst=10.0.0.1 sport=8080 dport=40000 mark=0 zone=0 use=2";
        let answered = line.replace("[UNREPLIED] ", "");
        let filter = FlowFilter {
            port: Some(80),
            unanswered: true,
            ..FlowFilter::all(Family::Ip, Protocol::Tcp)
        };
        assert!(matches(line, &filter));
        assert!(!matches(&answered, &filter));
        let any_state = FlowFilter {
            unanswered: false,
            ..filter
        };
        assert!(matches(&answered, &any_state));
        for other in [
            FlowFilter {
                port: Some(8080),
                ..filter
            },
            FlowFilter {
                port: Some(40000),
                ..filter
            },
            FlowFilter {
                family: Family::Ip6,
                ..filter
            },
            FlowFilter {
                protocol: Protocol::Udp,
                ..filter
            },
        ] {
            assert!(!matches(line, &other), "{other:?}");
        }
    }
}
