use std::collections::BTreeSet;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use super::*;
use crate::testing::{in_namespace, load};

/// Loopback with connection tracking, where port 53 is translated and 192.0.2.0/24 leads nowhere.
const RULES: &str = "
table inet test {
    chain output {
        type nat hook output priority -100
        ip daddr 127.0.0.1 udp dport 53 dnat ip to 127.0.0.2:5353
        ip daddr 198.51.100.7 tcp dport 80 dnat ip to 192.0.2.1:8080
        ip6 daddr ::1 udp dport 53 dnat ip6 to [::1]:5353
    }
}";

fn ip(words: &str) {
    let status = Command::new("ip").args(words.split(' ')).status().unwrap();
    assert!(status.success(), "ip {words}");
}

fn in_tracked_namespace(test: impl FnOnce(&mut Conntrack) + Send + 'static) {
    in_namespace(move || {
        ip("link set lo up");
        ip("link add nowhere type veth peer name end");
        ip("link set nowhere up");
        ip("link set end up");
        ip("route add 192.0.2.0/24 dev nowhere");
        ip("neighbor add 192.0.2.1 lladdr 02:00:00:00:00:01 dev nowhere");
        ip("address add 198.51.100.1/32 dev nowhere");
        load(RULES);
        test(&mut Conntrack::open().expect("ctnetlink opens"));
    });
}

/// So many flows, each from a port of its own.
fn datagrams(count: usize, to: &str) -> Vec<SocketAddr> {
    let from = if to.starts_with('[') {
        "[::1]:0"
    } else {
        "127.0.0.1:0"
    };
    // All open at once: a port that was closed may come again.
    let sockets: Vec<UdpSocket> = (0..count).map(|_| UdpSocket::bind(from).unwrap()).collect();
    let send = |socket: &UdpSocket| {
        socket.send_to(b"?", to).unwrap();
        socket.local_addr().unwrap()
    };
    sockets.iter().map(send).collect()
}

fn of_port(family: Family, protocol: Protocol, port: u16) -> FlowFilter {
    FlowFilter {
        port: Some(port),
        ..FlowFilter::all(family, protocol)
    }
}

/// Flows that pass the filter, without deleting any.
fn found(conntrack: &mut Conntrack, filter: &FlowFilter) -> Vec<Flow> {
    let mut found = Vec::new();
    let judge = |flow: &Flow| {
        found.push(*flow);
        false
    };
    assert_eq!(conntrack.walk(filter, judge).unwrap(), 0);
    found
}

#[test]
fn the_kernel_returns_only_entries_that_match_the_filter() {
    in_tracked_namespace(|conntrack| {
        let sources = datagrams(20, "127.0.0.1:53");
        datagrams(30, "127.0.0.1:54");
        datagrams(1, "[::1]:53");
        let filter = FlowFilter {
            destination: Some([127, 0, 0, 1].into()),
            ..of_port(Family::Ip, Protocol::Udp, 53)
        };
        let flows = found(conntrack, &filter);
        assert_eq!(conntrack.entries_seen(), 20);
        for flow in &flows {
            assert!(sources.contains(&flow.source), "{flow:?}");
            assert_eq!(flow.destination, "127.0.0.1:53".parse().unwrap());
            assert_eq!(flow.answers_from, "127.0.0.2:5353".parse().unwrap());
            assert!(flow.is_translated());
        }
        let others = found(conntrack, &of_port(Family::Ip, Protocol::Udp, 54));
        assert_eq!(others.len(), 30);
        assert!(others.iter().all(|flow| !flow.is_translated()));
        let v6 = found(conntrack, &FlowFilter::all(Family::Ip6, Protocol::Udp));
        assert_eq!(v6.len(), 1);
        assert_eq!(v6[0].answers_from, "[::1]:5353".parse().unwrap());
        assert_eq!(conntrack.entries_seen(), 51);
        let elsewhere = FlowFilter {
            destination: Some([127, 0, 0, 9].into()),
            ..filter
        };
        assert_eq!(found(conntrack, &elsewhere), []);
        assert_eq!(conntrack.entries_seen(), 51);
    });
}

#[test]
fn only_stale_entries_are_deleted_with_and_without_filter() {
    for unfiltered in [false, true] {
        in_tracked_namespace(move |conntrack| {
            conntrack.unfiltered = unfiltered;
            let sources = datagrams(40, "127.0.0.1:53");
            datagrams(10, "127.0.0.1:54");
            datagrams(10, "[::1]:53");
            let filter = of_port(Family::Ip, Protocol::Udp, 53);
            let (doomed, kept) = sources.split_at(25);
            let deleted = conntrack.delete(&filter, |flow| doomed.contains(&flow.source));
            assert_eq!(deleted, Ok(25));
            assert_eq!(conntrack.entries_seen() > 40, unfiltered);
            let left = found(conntrack, &filter);
            assert_eq!(left.len(), kept.len());
            assert!(left.iter().all(|flow| kept.contains(&flow.source)));
            assert_eq!(conntrack.delete(&filter, |_| true), Ok(15));
            assert_eq!(
                found(conntrack, &of_port(Family::Ip, Protocol::Udp, 54)).len(),
                10
            );
            let v6 = FlowFilter::all(Family::Ip6, Protocol::Udp);
            assert_eq!(conntrack.delete(&v6, |_| true), Ok(10));
        });
    }
}

#[test]
fn flows_to_an_ipv6_address_are_found() {
    in_tracked_namespace(|conntrack| {
        datagrams(3, "[::1]:53");
        datagrams(4, "[::1]:54");
        let filter = FlowFilter {
            destination: Some("::1".parse().unwrap()),
            ..of_port(Family::Ip6, Protocol::Udp, 53)
        };
        let elsewhere = FlowFilter {
            destination: Some("::2".parse().unwrap()),
            ..filter
        };
        assert_eq!(conntrack.delete(&elsewhere, |_| true), Ok(0));
        assert_eq!(conntrack.delete(&filter, |_| true), Ok(3));
        assert_eq!(
            found(conntrack, &of_port(Family::Ip6, Protocol::Udp, 54)).len(),
            4
        );
    });
}

#[test]
fn more_entries_than_fit_one_datagram_are_deleted() {
    in_tracked_namespace(|conntrack| {
        // The machine may allow a process 1,024 descriptors.
        let flows = 3 * datagrams(DELETIONS / 2 + 1, "127.0.0.1:53").len();
        datagrams(DELETIONS / 2 + 1, "127.0.0.2:53");
        datagrams(DELETIONS / 2 + 1, "127.0.0.3:53");
        let filter = FlowFilter::all(Family::Ip, Protocol::Udp);
        assert_eq!(conntrack.delete(&filter, |_| true), Ok(flows));
        assert_eq!(conntrack.delete(&filter, |_| true), Ok(0));
    });
}

#[test]
fn unanswered_connection_attempts_are_distinguished() {
    in_tracked_namespace(|conntrack| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _connected = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let nowhere = "192.0.2.1:80".parse().unwrap();
        TcpStream::connect_timeout(&nowhere, Duration::from_millis(20)).unwrap_err();
        let unanswered = FlowFilter {
            unanswered: true,
            ..FlowFilter::all(Family::Ip, Protocol::Tcp)
        };
        let flows = found(conntrack, &unanswered);
        assert_eq!(flows.len(), 1);
        assert_eq!(flows[0].destination, nowhere);
        assert_eq!(conntrack.entries_seen(), 1);
        let all = FlowFilter::all(Family::Ip, Protocol::Tcp);
        assert_eq!(found(conntrack, &all).len(), 2);
        assert_eq!(conntrack.delete(&unanswered, |_| true), Ok(1));
        assert!(found(conntrack, &all)[0].answered);
    });
}

#[test]
fn attempts_are_translated_flows_until_their_reply() {
    in_tracked_namespace(|conntrack| {
        ip("route add 198.51.100.7/32 dev nowhere");
        let silent = datagrams(2, "127.0.0.1:53");
        datagrams(3, "127.0.0.1:54");
        let patience = Duration::from_millis(20);
        for to in ["198.51.100.7:80", "192.0.2.1:80"] {
            TcpStream::connect_timeout(&to.parse().unwrap(), patience).unwrap_err();
        }
        let walks = conntrack.walks();
        let attempts = conntrack.attempts(|_| true).unwrap();
        assert_eq!(
            (conntrack.walks() - walks, conntrack.entries_seen()),
            (1, 3)
        );
        let of = |protocol| {
            let flows = attempts.iter().map(|attempt| attempt.flow);
            flows.filter(move |flow| flow.protocol == protocol)
        };
        assert_eq!(of(Protocol::Udp).count(), silent.len());
        for attempt in &attempts {
            // The kernel's defaults, in seconds.
            let whole = match attempt.flow.protocol {
                Protocol::Tcp => 120,
                Protocol::Udp | Protocol::Sctp => 30,
            };
            let left = attempt.expires_in.unwrap();
            assert!((whole - 10..=whole).contains(&left), "{left}");
        }
        let tcp: Vec<Flow> = of(Protocol::Tcp).collect();
        assert_eq!(tcp.len(), 1);
        assert_eq!(tcp[0].destination, "198.51.100.7:80".parse().unwrap());
        assert_eq!(tcp[0].answers_from, "192.0.2.1:8080".parse().unwrap());
        let none = conntrack.attempts(|_| false).unwrap();
        assert!(none.is_empty());
        assert_eq!(Sampler::default().attempts(|_| true).unwrap().len(), 3);
        for attempt in &attempts {
            assert_eq!(conntrack.has_reply(attempt), Ok(Some(false)));
        }
        let all = FlowFilter::all(Family::Ip, Protocol::Udp);
        assert_eq!(
            conntrack.delete(&all, |flow| silent.contains(&flow.source)),
            Ok(2)
        );
        let left = attempts.iter();
        let left = left.filter(|attempt| conntrack.has_reply(attempt).unwrap().is_some());
        assert_eq!(left.count(), 1);
    });
}

#[test]
fn parts_of_a_large_table_make_up_the_whole() {
    /// More of these entries (156 bytes) than fit into a small datagram, which has up to 8 kB; some 200 fit into 32 kB.
    const DATAGRAM: usize = 60;
    in_tracked_namespace(|conntrack| {
        let translated = datagrams(4 * sample::PART, "127.0.0.1:53");
        // So far all entries are attempts, so a part returns all that it has read.
        let mut sampler = Sampler::default();
        for _ in 0..12 {
            let part = sampler.attempts(|_| true).unwrap().len();
            assert!(part < sample::PART + DATAGRAM, "{part} entries in a part");
        }
        for n in 2..4 {
            datagrams(4 * sample::PART, &format!("127.0.0.{n}:54"));
        }
        let mut sampler = Sampler::default();
        let mut found = BTreeSet::new();
        let mut parts = 0;
        while found.len() < translated.len() {
            let part = sampler.attempts(|_| true).unwrap();
            assert!(part.len() < translated.len(), "the whole table at once");
            for attempt in part {
                assert_eq!(conntrack.has_reply(&attempt), Ok(Some(false)));
                found.insert(attempt.flow.source);
            }
            parts += 1;
            assert!(parts < 400, "{} found", found.len());
        }
        assert_eq!(found, translated.into_iter().collect());
        // From the beginning again.
        let again = (0..parts).map(|_| sampler.attempts(|_| true).unwrap().len());
        assert!(again.sum::<usize>() > 0);
        assert_eq!(sampler.attempts(|_| false).unwrap().len(), 0);
    });
}

#[test]
fn a_datagram_that_was_cut_ends_no_sampling() {
    use netlink::faults::{Plan, plan};
    in_tracked_namespace(|_| {
        let translated = datagrams(4 * sample::PART, "127.0.0.1:53");
        let mut sampler = Sampler::default();
        let first = sampler.attempts(|_| true).unwrap();
        assert!(first.len() < translated.len());
        plan(Plan::Once(0, Errno::EMSGSIZE));
        let part = sampler.attempts(|_| true);
        plan(Plan::None);
        // The same dump goes on, and has no entry twice.
        let all = first.into_iter().chain(part.unwrap());
        let sources: Vec<SocketAddr> = all.map(|attempt| attempt.flow.source).collect();
        let distinct: BTreeSet<_> = sources.iter().collect();
        assert_eq!(distinct.len(), sources.len());
    });
}

#[test]
fn an_answered_flow_is_an_attempt_no_more() {
    in_tracked_namespace(|conntrack| {
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let server = UdpSocket::bind("127.0.0.2:5353").unwrap();
        client.send_to(b"?", "127.0.0.1:53").unwrap();
        let attempts = conntrack.attempts(|_| true).unwrap();
        assert_eq!(attempts.len(), 1);
        let (_, from) = server.recv_from(&mut [0; 8]).unwrap();
        server.send_to(b"!", from).unwrap();
        client.recv_from(&mut [0; 8]).unwrap();
        assert_eq!(conntrack.has_reply(&attempts[0]), Ok(Some(true)));
        assert!(conntrack.attempts(|_| true).unwrap().is_empty());
    });
}

#[test]
fn a_small_table_is_walked_only_if_something_is_stale() {
    in_tracked_namespace(|conntrack| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _connected = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let unanswered = FlowFilter {
            unanswered: true,
            ..FlowFilter::all(Family::Ip, Protocol::Tcp)
        };
        let before = conntrack.walks();
        assert_eq!(conntrack.delete(&unanswered, |_| true), Ok(0));
        // An attempt that is not stale leads to no walk either.
        let nowhere = "192.0.2.1:80".parse().unwrap();
        TcpStream::connect_timeout(&nowhere, Duration::from_millis(20)).unwrap_err();
        let elsewhere = |flow: &Flow| flow.destination != nowhere;
        assert_eq!(conntrack.delete(&unanswered, elsewhere), Ok(0));
        assert!(conntrack.attempts(|_| true).unwrap().is_empty());
        assert_eq!(conntrack.walks(), before);
        assert_eq!(conntrack.delete(&unanswered, |_| true), Ok(1));
        assert_eq!(conntrack.walks(), before + 1);
    });
}

#[test]
fn a_small_table_is_walked_for_datagrams_only_if_some_are_stale() {
    in_tracked_namespace(|conntrack| {
        let flows = datagrams(2, "127.0.0.1:53");
        let filter = of_port(Family::Ip, Protocol::Udp, 53);
        // An entry that comes or goes at this moment leads to a walk.
        lab::wait_until("a look without a walk", Duration::from_secs(10), || {
            let before = conntrack.walks();
            assert_eq!(conntrack.delete(&filter, |_| false), Ok(0));
            conntrack.walks() == before
        })
        .unwrap();
        let first = |flow: &Flow| flow.source == flows[0];
        let mut noted = Vec::new();
        let note = |flow: &Flow| noted.push(flow.source);
        assert_eq!(conntrack.delete_noting(&filter, first, note), Ok(1));
        assert_eq!(noted, flows[..1]);
    });
}

/// A dump that fails in the middle goes on in the kernel, which may refuse the next one. `PORTOLAN_ERRNOS` says how many error
/// numbers are tried at each call (1, of 12).
#[test]
fn an_errno_at_every_conntrack_call_deletes_nothing_else() {
    use netlink::faults::{ERRNOS, Plan, plan};
    /// More than fit into one datagram of a dump.
    const OTHERS: usize = 400;
    let errnos = std::env::var("PORTOLAN_ERRNOS").map_or(1, |number| number.parse().unwrap());
    in_tracked_namespace(move |conntrack| {
        let filter = of_port(Family::Ip, Protocol::Udp, 53);
        datagrams(OTHERS, "127.0.0.1:53");
        for call in 0.. {
            let mut calls = 0;
            for errno in ERRNOS.into_iter().cycle().skip(call).take(errnos) {
                let flows = datagrams(8, "127.0.0.1:53");
                let (doomed, kept) = flows.split_at(3);
                let is_stale = |flow: &Flow| doomed.contains(&flow.source);
                plan(Plan::Once(call, errno));
                let failed = conntrack.delete(&filter, is_stale);
                calls = plan(Plan::None);
                let what = format!("{errno} at call {call}: {failed:?}");
                let mut left = (0..3).filter(|_| conntrack.delete(&filter, is_stale) == Ok(0));
                assert!(left.next().is_some(), "{what}: not all deleted");
                let there: BTreeSet<SocketAddr> = found(conntrack, &filter)
                    .iter()
                    .map(|flow| flow.source)
                    .collect();
                assert!(kept.iter().all(|flow| there.contains(flow)), "{what}");
                assert!(!doomed.iter().any(|flow| there.contains(flow)), "{what}");
            }
            if calls <= call {
                assert!(call > 5, "only {call} calls");
                break;
            }
        }
    });
}

#[test]
fn a_deletion_always_has_a_tuple() {
    // Without one it would flush the whole table.
    let mut out = Writer::default();
    let handle = wire::Handle::default();
    handle.put(&mut out);
    let first = netlink::Attributes::new(&out.bytes).next();
    assert_eq!(first.unwrap().unwrap().kind, 1);
}

#[test]
fn a_flow_that_ends_is_received_with_its_bytes() {
    in_tracked_namespace(|conntrack| {
        std::fs::write("/proc/sys/net/netfilter/nf_conntrack_acct", "1").unwrap();
        let mut ended = EndedFlows::open().unwrap();
        let translated = datagrams(3, "127.0.0.1:53");
        datagrams(2, "127.0.0.1:54");
        let mut listed = Vec::new();
        let is_whole = conntrack.list_translated(|flow, volume| listed.push((flow.source, volume)));
        assert_eq!(is_whole, Ok(true));
        assert_eq!(listed.len(), translated.len());
        // A datagram of one byte is 29 with the headers of UDP and IPv4.
        let one = Volume {
            packets: 1,
            bytes: 29,
        };
        assert!(
            listed
                .iter()
                .all(|(source, volume)| translated.contains(source) && *volume == one)
        );
        let mut received = Vec::new();
        let has_lost = ended.receive(|flow, volume| received.push((flow.source, volume)));
        assert_eq!((has_lost, received.len()), (Ok(false), 0), "none has ended");
        let all = FlowFilter::all(Family::Ip, Protocol::Udp);
        assert_eq!(conntrack.delete(&all, |_| true), Ok(5));
        assert_eq!(ended.wait(Duration::from_secs(5)), Ok(true));
        let has_lost = ended.receive(|flow, volume| received.push((flow.source, volume)));
        received.sort_by_key(|(source, _)| *source);
        listed.sort_by_key(|(source, _)| *source);
        assert_eq!((has_lost, received), (Ok(false), listed));
    });
}
