//! A [`PeerVerdict`] in English, for logs, events and `portolan doctor`.

use crate::verdict::{Leg, PeerVerdict};

/// The names and numbers that a description mentions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VerdictContext<'a> {
    /// This node.
    pub(crate) own: &'a str,
    pub(crate) peer: &'a str,
    /// The VXLAN port.
    pub(crate) port: u16,
    /// The interface to the other nodes.
    pub(crate) interface: &'a str,
    /// The rule of this node that drops packets, if one was found.
    pub(crate) rule_here: Option<&'a str>,
    /// The rule of the peer, if one was found.
    pub(crate) rule_there: Option<&'a str>,
}

impl VerdictContext<'_> {
    /// The verdict in a sentence.
    pub(crate) fn describe(&self, verdict: &PeerVerdict) -> String {
        let VerdictContext {
            own,
            peer,
            interface,
            ..
        } = self;
        match verdict {
            PeerVerdict::Healthy => format!("pods on {peer} can be reached"),
            PeerVerdict::Silent => format!("{peer} does not answer at all"),
            PeerVerdict::Blocked { forth, back, works } => {
                self.describe_blocked(*forth, *back, works)
            }
            PeerVerdict::Mtu {
                forth,
                full,
                passes,
            } => {
                let way = if *forth { "at" } else { "from" };
                let less = match passes {
                    0 => "smaller ones do".to_owned(),
                    passes => format!("{passes} do"),
                };
                format!("MTU: packets of {full} bytes do not arrive {way} {peer}, {less}")
            }
            PeerVerdict::Checksum { of_peer: false } => {
                format!("checksum offload on {interface} corrupts tunneled packets to {peer}")
            }
            PeerVerdict::Checksum { of_peer: true } => {
                format!(
                    "checksum offload on {peer} corrupts tunneled packets: they arrive at {own} with wrong checksums"
                )
            }
            PeerVerdict::Partly(what) => {
                let text =
                    format!("{what} through the tunnel to {peer} fail, other packets arrive");
                self.with_rules(vec![text])
            }
        }
    }

    fn describe_blocked(&self, forth: Leg, back: Leg, works: &str) -> String {
        let VerdictContext {
            own, peer, port, ..
        } = self;
        let mut parts = Vec::new();
        let (lost, unknown) = (Leg::Lost, Leg::Unknown);
        let works = format!("({works} to {peer} works)");
        let open = format!("open UDP {port} between the nodes");
        match (forth, back) {
            (Leg::Lost, Leg::Lost) => parts.push(format!(
                "UDP {port} between {own} and {peer} is blocked in both directions {works}: {open}"
            )),
            _ if forth == lost => parts.push(format!(
                "UDP {port} from {own} to {peer} is blocked {works}: {open}"
            )),
            _ if back == lost => parts.push(format!(
                "UDP {port} from {peer} to {own} is blocked {works}: {open}"
            )),
            _ if forth == unknown && back == unknown => parts.push(format!(
                "nothing comes back from {peer} through UDP {port} {works}: {open}"
            )),
            _ => {}
        }
        for (leg, from, to) in [(forth, own, peer), (back, peer, own)] {
            if leg == Leg::Dropped {
                parts.push(format!(
                    "VXLAN packets from {from} arrive at {to} and are dropped there"
                ));
            }
        }
        self.with_rules(parts)
    }

    fn with_rules(&self, mut parts: Vec<String>) -> String {
        for (rule, node) in [(self.rule_here, self.own), (self.rule_there, self.peer)] {
            if let Some(rule) = rule {
                parts.push(format!("on {node} they are dropped by {rule}"));
            }
        }
        parts.join("; ")
    }
}
