//! From a [`Measurement`] to a [`Verdict`]: what is wrong between this node and a peer. Pure.

use crate::measurement::{Measurement, Outcome, Sizes};

#[cfg(test)]
mod tests;

/// One direction of the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leg {
    /// Packets get through.
    Passes,
    /// VXLAN packets do not arrive.
    Lost,
    /// They arrive, and what is in them does not get through.
    Dropped,
    /// Nobody there can tell.
    Unknown,
}

/// What a [`Measurement`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Packets of all kinds and sizes get through.
    Healthy,
    /// Nothing comes back on any path: the node or the network below, no matter of the overlay.
    Silent,
    /// The host path works, and the tunnel does not.
    Blocked {
        /// To the peer.
        forth: Leg,
        /// From the peer.
        back: Leg,
        /// What works over the host path.
        works: &'static str,
    },
    /// Packets below some size get through.
    Mtu {
        /// To the peer; else from it.
        forth: bool,
        /// Size that pods may send.
        full: u32,
        /// Largest that gets through; 0 if none is known.
        passes: u32,
    },
    /// What is sent with a checksum to be filled in later arrives with a wrong one.
    Checksum {
        /// The peer's packets are wrong; else this node's.
        theirs: bool,
    },
    /// Through the tunnel, this does not get through while other packets do.
    Partly(&'static str),
}

impl Measurement {
    /// What it says.
    pub fn verdict(&self) -> Verdict {
        if !self.tunnel.udp.came_back() {
            return self.verdict_without_udp();
        }
        let corruption = self.corruption().filter(|_| self.tunnel.tcp.failed());
        if let Some(corruption) = corruption {
            return corruption;
        }
        // Before TCP, whose larger segments get lost by the same.
        let Sizes { full, forth, back } = self.sizes;
        for (size, forth) in [(forth, true), (back, false)] {
            if let Some(passes) = size.filter(|size| *size < full) {
                return Verdict::Mtu {
                    forth,
                    full,
                    passes,
                };
            }
        }
        // Without an answerer, a firewall that hides closed ports makes as much silence: outside the tunnel too.
        let speaks = self.tunnel.udp == Outcome::Answered || self.host.tcp.came_back();
        match self.tunnel.tcp.failed() && speaks {
            true => Verdict::Partly("TCP connections"),
            false => Verdict::Healthy,
        }
    }

    fn verdict_without_udp(&self) -> Verdict {
        if self.tunnel.ping.came_back() || self.tunnel.tcp.came_back() {
            // The kernel writes checksums of ICMP itself, and leaves those of UDP and TCP for later.
            return match (self.corruption(), self.host.udp.came_back()) {
                (Some(corruption), _) => corruption,
                (None, true) => Verdict::Partly("UDP datagrams"),
                (None, false) => Verdict::Healthy,
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
            None => Verdict::Silent,
            // By now they pass: what was lost before was no more than that.
            Some(_) if forth == Leg::Passes && back == Leg::Passes => Verdict::Healthy,
            Some(works) => Verdict::Blocked { forth, back, works },
        }
    }

    fn corruption(&self) -> Option<Verdict> {
        match (self.corrupt_there, self.corrupt_here) {
            (Some(true), _) => Some(Verdict::Checksum { theirs: false }),
            (_, Some(true)) => Some(Verdict::Checksum { theirs: true }),
            _ => None,
        }
    }
}

impl Verdict {
    /// Whether pods can be reached.
    pub fn is_healthy(&self) -> bool {
        *self == Verdict::Healthy
    }

    /// Whether it is worth no new word after that one: what varies from round to round makes no difference.
    pub(crate) fn resembles(&self, told: &Verdict) -> bool {
        match (self, told) {
            (
                Verdict::Blocked { forth, back, .. },
                Verdict::Blocked {
                    forth: told_forth,
                    back: told_back,
                    ..
                },
            ) => (forth, back) == (told_forth, told_back),
            _ => self.kind() == told.kind(),
        }
    }

    /// One word for labels.
    pub fn kind(&self) -> &'static str {
        match self {
            Verdict::Healthy => "healthy",
            Verdict::Silent => "silent",
            Verdict::Blocked { forth, back, .. }
                if [forth, back].into_iter().any(|leg| *leg == Leg::Dropped) =>
            {
                "dropped"
            }
            Verdict::Blocked { .. } => "blocked",
            Verdict::Mtu { .. } => "mtu",
            Verdict::Checksum { .. } => "checksum",
            Verdict::Partly(_) => "partly",
        }
    }
}
