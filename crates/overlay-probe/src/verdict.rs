//! From a [`Measurement`] to a [`PeerVerdict`]: what is wrong between this node and a peer. Pure.

use crate::measurement::{Measurement, PacketOutcome, Sizes};

#[cfg(test)]
mod tests;

/// One direction of the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leg {
    /// Packets get through.
    Passes,
    /// VXLAN packets do not arrive.
    Lost,
    /// VXLAN packets arrive, and inner packets are dropped.
    Dropped,
    /// Unknown: the receiver has no responder.
    Unknown,
}

/// What a [`Measurement`] shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerVerdict {
    /// Packets of all kinds and sizes arrive.
    Healthy,
    /// No answer on any path: the node or the underlay is down.
    Silent,
    /// The host path works, the tunnel does not.
    Blocked {
        /// To the peer.
        forth: Leg,
        /// From the peer.
        back: Leg,
        /// What works over the host path.
        works: &'static str,
    },
    /// Only packets below some size arrive.
    Mtu {
        /// To the peer; else from it.
        forth: bool,
        /// Size that pods may send.
        full: u32,
        /// Largest that gets through; 0 if none is known.
        passes: u32,
    },
    /// Checksum offload writes wrong checksums.
    Checksum {
        /// Whether the peer's packets are wrong; otherwise this node's are.
        of_peer: bool,
    },
    /// These packets are lost in the tunnel, others arrive.
    Partly(&'static str),
}

impl Measurement {
    /// The verdict of this measurement.
    pub fn verdict(&self) -> PeerVerdict {
        if !self.tunnel.udp.came_back() {
            return self.verdict_without_udp();
        }
        let corruption = self.corruption().filter(|_| self.tunnel.tcp.failed());
        if let Some(corruption) = corruption {
            return corruption;
        }
        // Before TCP, whose larger segments get lost for the same reason.
        let Sizes { full, forth, back } = self.sizes;
        for (size, forth) in [(forth, true), (back, false)] {
            if let Some(passes) = size.filter(|size| *size < full) {
                return PeerVerdict::Mtu {
                    forth,
                    full,
                    passes,
                };
            }
        }
        // Without a responder, a firewall that drops packets to closed ports looks the same, also outside the tunnel.
        let speaks = self.tunnel.udp == PacketOutcome::Answered || self.host.tcp.came_back();
        match self.tunnel.tcp.failed() && speaks {
            true => PeerVerdict::Partly("TCP connections"),
            false => PeerVerdict::Healthy,
        }
    }

    fn verdict_without_udp(&self) -> PeerVerdict {
        if self.tunnel.ping.came_back() || self.tunnel.tcp.came_back() {
            // The kernel computes ICMP checksums itself, and offloads those of UDP and TCP.
            return match (self.corruption(), self.host.udp.came_back()) {
                (Some(corruption), _) => corruption,
                (None, true) => PeerVerdict::Partly("UDP datagrams"),
                (None, false) => PeerVerdict::Healthy,
            };
        }
        let leg = |received, counted| match (received, counted) {
            (Some(true), _) => Leg::Passes,
            (Some(false), Some(true)) => Leg::Dropped,
            (Some(false), _) => Leg::Lost,
            (None, _) => Leg::Unknown,
        };
        let forth = leg(self.received_there, self.counted_there);
        let back = leg(self.received_here, self.counted_here);
        match self.host.works() {
            None => PeerVerdict::Silent,
            // Packets pass by now: the earlier loss was temporary.
            Some(_) if forth == Leg::Passes && back == Leg::Passes => PeerVerdict::Healthy,
            Some(works) => PeerVerdict::Blocked { forth, back, works },
        }
    }

    fn corruption(&self) -> Option<PeerVerdict> {
        match (self.corrupt_there, self.corrupt_here) {
            (Some(true), _) => Some(PeerVerdict::Checksum { of_peer: false }),
            (_, Some(true)) => Some(PeerVerdict::Checksum { of_peer: true }),
            _ => None,
        }
    }
}

impl PeerVerdict {
    /// Whether pods can be reached.
    pub fn is_healthy(&self) -> bool {
        *self == PeerVerdict::Healthy
    }

    /// Whether a report of the verdict `reported` covers this one: details that vary between rounds are ignored.
    pub(crate) fn resembles(&self, reported: &PeerVerdict) -> bool {
        match (self, reported) {
            (
                PeerVerdict::Blocked { forth, back, .. },
                PeerVerdict::Blocked {
                    forth: reported_forth,
                    back: reported_back,
                    ..
                },
            ) => (forth, back) == (reported_forth, reported_back),
            _ => self.kind() == reported.kind(),
        }
    }

    /// The verdict in one word, for labels.
    pub fn kind(&self) -> &'static str {
        match self {
            PeerVerdict::Healthy => "healthy",
            PeerVerdict::Silent => "silent",
            PeerVerdict::Blocked { forth, back, .. }
                if [forth, back].into_iter().any(|leg| *leg == Leg::Dropped) =>
            {
                "dropped"
            }
            PeerVerdict::Blocked { .. } => "blocked",
            PeerVerdict::Mtu { .. } => "mtu",
            PeerVerdict::Checksum { .. } => "checksum",
            PeerVerdict::Partly(_) => "partly",
        }
    }
}
