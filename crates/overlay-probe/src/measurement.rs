//! What one round measures between this node and a peer: values only.
//!
//! The same packet goes over the host path (outside the tunnel) and through the tunnel, small, full-sized and as a
//! stream; what the peer reports over the host path about packets it has received gives the direction.

use serde::{Deserialize, Serialize};

/// The outcome of a probe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PacketOutcome {
    /// It was not sent.
    #[default]
    Untried,
    /// The peer's responder answered.
    Answered,
    /// The peer's kernel answered: "port unreachable", or a reset. Packets pass in both directions.
    Refused,
    /// No answer came in time.
    Silent,
    /// This node's kernel would not send it (a rule, or no route).
    Unsent,
}

impl PacketOutcome {
    /// Whether a packet went there and another one came back.
    pub fn came_back(self) -> bool {
        matches!(self, PacketOutcome::Answered | PacketOutcome::Refused)
    }

    pub(crate) fn failed(self) -> bool {
        matches!(self, PacketOutcome::Silent | PacketOutcome::Unsent)
    }
}

/// Outcomes over one path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paths {
    /// A small datagram.
    pub udp: PacketOutcome,
    /// A connection with some kilobytes each way.
    pub tcp: PacketOutcome,
    /// ICMP echo.
    pub ping: PacketOutcome,
}

impl Paths {
    fn was_tried(&self) -> bool {
        [self.udp, self.tcp, self.ping]
            .into_iter()
            .any(|outcome| outcome != PacketOutcome::Untried)
    }

    pub(crate) fn works(&self) -> Option<&'static str> {
        [(self.tcp, "TCP"), (self.udp, "UDP"), (self.ping, "ping")]
            .into_iter()
            .find_map(|(outcome, name)| outcome.came_back().then_some(name))
    }
}

/// Packets of the largest size that pods may send, unfragmented.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizes {
    /// What they may send: the device's MTU, in bytes of IP packet.
    pub full: u32,
    /// Largest that got there; `None`: not tried, 0: not even the smallest.
    pub forth: Option<u32>,
    /// Largest that came back.
    pub back: Option<u32>,
}

/// One round between this node and a peer, in one family.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measurement {
    /// To the peer's own address, outside the tunnel.
    pub host: Paths,
    /// To the address of its device, through the tunnel.
    pub tunnel: Paths,
    /// Full-sized packets through the tunnel.
    pub sizes: Sizes,
    /// Whether the peer received the probe through the tunnel.
    pub received_there: Option<bool>,
    /// Whether this node received the packet that it requested through the tunnel.
    pub received_here: Option<bool>,
    /// Whether the peer counted VXLAN packets of this node.
    pub counted_there: Option<bool>,
    /// Whether this node counted VXLAN packets of the peer.
    pub counted_here: Option<bool>,
    /// Whether packets with wrong checksums arrived at the peer meanwhile.
    pub corrupt_there: Option<bool>,
    /// Whether packets with wrong checksums arrived here meanwhile.
    pub corrupt_here: Option<bool>,
    /// The rule of the peer that dropped a packet.
    pub rule_there: Option<String>,
    /// The rule of this node that dropped a packet.
    pub rule_here: Option<String>,
    /// From the small datagram through the tunnel to its answer, in microseconds.
    pub round_trip: Option<u32>,
}

impl Measurement {
    /// Whether packets went both ways, and none came back.
    pub(crate) fn is_silent(&self) -> bool {
        let paths = [self.host, self.tunnel];
        paths
            .iter()
            .all(|path| path.was_tried() && path.works().is_none())
    }
}
