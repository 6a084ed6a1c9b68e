use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};

use proptest::prelude::*;

use super::*;
use crate::namespace::{in_namespace, kernel, listed, load, nft};

const PORT: u16 = 8472;
const PLENTY: Duration = Duration::from_secs(10);
const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

fn to_itself(address: IpAddr) -> Packets {
    Packets {
        source: address,
        destination: address,
        protocol: Protocol::Udp,
        port: PORT,
    }
}

/// Loopback, up.
fn with_loopback(test: impl FnOnce() + Send) {
    in_namespace(|| {
        let up = ["link", "set", "dev", "lo", "up"];
        let status = std::process::Command::new("ip").args(up).status().unwrap();
        assert!(status.success());
        test();
    });
}

fn send(to: IpAddr, port: u16) {
    let socket = UdpSocket::bind((to, 0)).unwrap();
    // A rule that drops on the way out makes this an error.
    let _ = socket.send_to(b"probe", (to, port));
}

/// The handle of the rule whose listing has this text.
fn handle_of(words: &str) -> u64 {
    let listing = nft(&["-a", "list", "ruleset"], "").unwrap();
    let line = listing.lines().find(|line| line.contains(words)).unwrap();
    line.rsplit("# handle ").next().unwrap().parse().unwrap()
}

/// The first step that drops.
fn drop_of(tracer: &mut Tracer) -> Step {
    loop {
        let step = tracer.wait(PLENTY).unwrap().expect("a decision");
        if step.decision == Decision::Drop {
            return step;
        }
    }
}

#[test]
fn the_rule_that_drops_is_named_for_both_directions() {
    with_loopback(|| {
        for (address, hook) in [(V4, "input"), (V6, "input"), (V4, "output"), (V6, "output")] {
            load(&format!(
                "table inet wall {{
                    chain inner {{ udp dport {PORT} counter drop; }}
                    chain outer {{ type filter hook {hook} priority 0; jump inner; }}
                }}"
            ));
            let mut tracer = Tracer::start(&[to_itself(address)]).unwrap();
            send(address, PORT);
            let step = drop_of(&mut tracer);
            assert_eq!(step.decider, Decider::Rule(handle_of("counter")));
            assert_eq!(
                (step.family, step.table.as_str(), step.chain.as_str()),
                (AnyFamily::INET, "wall", "inner")
            );
            load("delete table inet wall");
        }
    });
}

#[test]
fn a_policy_that_drops_is_distinguished_from_a_rule() {
    with_loopback(|| {
        load("table ip6 wall { chain c { type filter hook input priority 5; policy drop; }; }");
        let mut tracer = Tracer::start(&[to_itself(V6)]).unwrap();
        send(V6, PORT);
        let step = drop_of(&mut tracer);
        assert_eq!(step.decider, Decider::Policy);
        assert_eq!((step.family, step.chain.as_str()), (AnyFamily::IP6, "c"));
    });
}

#[test]
fn only_the_given_packets_are_traced_until_the_tracer_drops() {
    with_loopback(|| {
        load("table ip wall { chain c { type filter hook input priority 0; counter accept; }; }");
        let mut tracer = Tracer::start(&[to_itself(V4)]).unwrap();
        send(V4, PORT + 1);
        // Sent after the first, which would have been reported before.
        send(V4, PORT);
        let step = tracer.wait(PLENTY).unwrap().expect("a decision");
        assert_eq!(step.decision, Decision::Accept);
        while let Some(next) = tracer.wait(Duration::ZERO).unwrap() {
            assert_eq!(next.packet, step.packet);
        }
        let tables = || nft(&["list", "tables"], "").unwrap();
        assert!(tables().contains("portolan_trace_"));
        // Two tracers may run at a time.
        let _other = Tracer::start(&[to_itself(V4), to_itself(V6)]).unwrap();
        drop(tracer);
        drop(_other);
        // Programs that other tests start hold copies of the tracers' sockets for a moment.
        let end = Instant::now() + PLENTY;
        while tables() != "table ip wall\n" {
            assert!(Instant::now() < end, "{}", tables());
        }
    });
}

#[test]
fn the_marking_table_reads_back_as_written_and_as_nft_loads_it() {
    in_namespace(|| {
        let mut kernel = kernel(false);
        let name = Name::from("portolan");
        kernel
            .commit(&marking(&name, &[to_itself(V4), to_itself(V6)]))
            .unwrap();
        for (family, address) in [(Family::Ip, V4), (Family::Ip6, V6)] {
            let written = listed(&mut kernel, family);
            let hooks = [Hook::FirstPrerouting, Hook::FirstOutput].map(Some);
            let found: Vec<_> = written.chains.values().map(|chain| chain.hook).collect();
            assert_eq!(found, hooks);
            for chain in written.chains.values() {
                assert_eq!(chain.rules, [mark(&to_itself(address))]);
            }
            let ours = [family.keyword(), "portolan"];
            nft(&[&["delete", "table"], &ours[..]].concat(), "").unwrap();
            load(&crate::text::table(&written));
            assert_eq!(listed(&mut kernel, family), written);
        }
    });
}

#[test]
fn rules_of_iptables_are_traced_too() {
    with_loopback(|| {
        let mut rule = std::process::Command::new("iptables-nft");
        rule.args("-A INPUT -p udp --dport 8472 -j DROP".split(' '));
        match rule.status() {
            Ok(status) => assert!(status.success()),
            Err(error) => {
                assert!(std::env::var_os("CI").is_none(), "iptables-nft: {error}");
                eprintln!("SKIPPED: needs iptables-nft");
                return;
            }
        }
        let mut tracer = Tracer::start(&[to_itself(V4)]).unwrap();
        send(V4, PORT);
        let step = drop_of(&mut tracer);
        assert_eq!(
            (step.family, step.table.as_str(), step.chain.as_str()),
            (AnyFamily::IP, "filter", "INPUT")
        );
    });
}

#[test]
fn verdicts_are_read_without_what_their_upper_bits_say() {
    // Queue 5, of which not every kernel has the expression; a drop with a reason; `NFT_JUMP`.
    let decisions = [5 << 16 | 3, 71 << 16, 1, (-3_i32) as u32].map(decision);
    let expected = [
        Decision::Queue,
        Decision::Drop,
        Decision::Accept,
        Decision::Continue,
    ];
    assert_eq!(decisions, expected);
}

proptest! {
    #[test]
    fn any_datagram_is_read_without_harm(datagram in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(steps(&datagram).count() <= datagram.len());
    }
}
