use super::*;
use crate::debouncer::{ROUNDS_TO_REPORT, VerdictDebouncer};
use crate::describe::VerdictContext;
use crate::measurement::Paths;

const CONTEXT: VerdictContext<'_> = VerdictContext {
    own: "node-a",
    peer: "node-b",
    port: 8472,
    interface: "eth0",
    rule_here: None,
    rule_there: None,
};

fn healthy() -> Measurement {
    let all = Paths {
        udp: PacketOutcome::Answered,
        tcp: PacketOutcome::Answered,
        ping: PacketOutcome::Untried,
    };
    Measurement {
        host: all,
        tunnel: all,
        sizes: Sizes {
            full: 1450,
            forth: Some(1450),
            back: Some(1450),
        },
        ..Measurement::default()
    }
}

fn silent_tunnel() -> Measurement {
    Measurement {
        tunnel: Paths {
            udp: PacketOutcome::Silent,
            tcp: PacketOutcome::Untried,
            ping: PacketOutcome::Silent,
        },
        sizes: Sizes::default(),
        received_there: Some(false),
        received_here: Some(false),
        counted_there: Some(false),
        counted_here: Some(false),
        ..healthy()
    }
}

fn described(measured: &Measurement) -> String {
    CONTEXT.describe(&measured.verdict())
}

#[test]
fn working_paths_are_healthy_with_and_without_responder() {
    assert_eq!(healthy().verdict(), PeerVerdict::Healthy);
    let kernel_only = Paths {
        udp: PacketOutcome::Refused,
        tcp: PacketOutcome::Refused,
        ping: PacketOutcome::Answered,
    };
    let flannel = Measurement {
        host: kernel_only,
        tunnel: kernel_only,
        ..healthy()
    };
    assert_eq!(flannel.verdict(), PeerVerdict::Healthy);
    // No answer outside the tunnel: pods are not affected.
    let closed = Measurement {
        host: Paths::default(),
        ..healthy()
    };
    assert_eq!(closed.verdict(), PeerVerdict::Healthy);
}

#[test]
fn firewall_of_a_peer_without_responder_raises_no_alarm() {
    let hidden = Paths {
        udp: PacketOutcome::Silent,
        tcp: PacketOutcome::Silent,
        ping: PacketOutcome::Answered,
    };
    let mut measured = Measurement {
        host: hidden,
        tunnel: hidden,
        ..healthy()
    };
    assert_eq!(measured.verdict(), PeerVerdict::Healthy);
    measured.host.udp = PacketOutcome::Answered;
    assert_eq!(measured.verdict(), PeerVerdict::Partly("UDP datagrams"));
    let resets_hidden = Paths {
        udp: PacketOutcome::Refused,
        ..hidden
    };
    measured.tunnel = resets_hidden;
    assert_eq!(measured.verdict(), PeerVerdict::Healthy);
    measured.host.tcp = PacketOutcome::Refused;
    assert_eq!(measured.verdict(), PeerVerdict::Partly("TCP connections"));
}

#[test]
fn blocked_port_is_described_with_its_direction() {
    let both = silent_tunnel();
    assert_eq!(
        described(&both),
        "UDP 8472 between node-a and node-b is blocked in both directions (TCP to node-b works): \
         open UDP 8472 between the nodes"
    );
    let forth = Measurement {
        received_here: Some(true),
        ..silent_tunnel()
    };
    assert_eq!(
        described(&forth),
        "UDP 8472 from node-a to node-b is blocked (TCP to node-b works): open UDP 8472 between the nodes"
    );
    let back = Measurement {
        received_there: Some(true),
        ..silent_tunnel()
    };
    assert_eq!(
        described(&back),
        "UDP 8472 from node-b to node-a is blocked (TCP to node-b works): open UDP 8472 between the nodes"
    );
    let flannel = Measurement {
        received_there: None,
        received_here: None,
        ..silent_tunnel()
    };
    assert!(described(&flannel).starts_with("nothing comes back from node-b through UDP 8472"));
}

#[test]
fn dropped_packets_name_the_rule_and_not_a_blocked_port() {
    let dropped = Measurement {
        received_here: Some(true),
        counted_there: Some(true),
        ..silent_tunnel()
    };
    let verdict = dropped.verdict();
    let context = VerdictContext {
        rule_there: Some("inet firewall input handle 7"),
        ..CONTEXT
    };
    assert_eq!(verdict.kind(), "dropped");
    assert_eq!(
        context.describe(&verdict),
        "VXLAN packets from node-a arrive at node-b and are dropped there; \
         on node-b they are dropped by inet firewall input handle 7"
    );
}

#[test]
fn dead_node_differs_from_a_dead_tunnel() {
    let dead = Measurement {
        host: Paths {
            udp: PacketOutcome::Silent,
            tcp: PacketOutcome::Silent,
            ping: PacketOutcome::Silent,
        },
        received_there: None,
        received_here: None,
        ..silent_tunnel()
    };
    assert_eq!(described(&dead), "node-b does not answer at all");
}

#[test]
fn mtu_verdict_names_the_largest_size_that_arrives() {
    let mut measured = healthy();
    measured.sizes.forth = Some(1400);
    assert_eq!(
        described(&measured),
        "MTU: packets of 1450 bytes do not arrive at node-b, 1400 do"
    );
    measured.sizes.forth = Some(1450);
    measured.sizes.back = Some(1380);
    assert_eq!(
        described(&measured),
        "MTU: packets of 1450 bytes do not arrive from node-b, 1380 do"
    );
}

#[test]
fn wrong_checksums_are_attributed_to_their_sender() {
    let mut measured = healthy();
    measured.tunnel.tcp = PacketOutcome::Silent;
    assert_eq!(measured.verdict().kind(), "partly");
    measured.corrupt_there = Some(true);
    assert_eq!(
        described(&measured),
        "checksum offload on eth0 corrupts tunneled packets to node-b"
    );
    let theirs = Measurement {
        tunnel: Paths {
            udp: PacketOutcome::Silent,
            tcp: PacketOutcome::Silent,
            ping: PacketOutcome::Answered,
        },
        corrupt_here: Some(true),
        ..silent_tunnel()
    };
    assert_eq!(theirs.verdict(), PeerVerdict::Checksum { of_peer: true });
}

#[test]
fn several_rounds_must_agree_to_raise_and_clear_an_alarm() {
    let mut debouncer = VerdictDebouncer::default();
    for _ in 0..ROUNDS_TO_REPORT - 1 {
        assert!(!debouncer.observe(PeerVerdict::Silent));
    }
    assert!(!debouncer.observe(PeerVerdict::Healthy));
    assert_eq!(
        (debouncer.reported(), debouncer.is_suspicious()),
        (None, false)
    );
    for _ in 0..ROUNDS_TO_REPORT - 1 {
        assert!(!debouncer.observe(PeerVerdict::Silent));
    }
    assert!(debouncer.observe(PeerVerdict::Silent));
    assert!(!debouncer.observe(PeerVerdict::Silent));
    assert!(!debouncer.observe(PeerVerdict::Healthy));
    assert_eq!(debouncer.reported(), Some(&PeerVerdict::Silent));
    assert!(debouncer.observe(PeerVerdict::Healthy));
    assert_eq!(debouncer.reported(), None);
}
