//! From what was measured between two nodes to what is wrong, in words.
//!
//! The same packet goes over the host path (outside the tunnel) and through the tunnel, small, full-sized and as a
//! stream; what the peer says over the host path about packets it has received tells the direction. Pure: asking is
//! the daemon's. Nothing is alarming before [`ROUNDS_TO_TELL`] rounds in a row agree that something is.

use serde::{Deserialize, Serialize};

#[cfg(test)]
mod tests;

/// So many bad rounds in a row before anything is said: a node that restarts is no alarm.
pub(crate) const ROUNDS_TO_TELL: u32 = 3;
/// So many good ones before it is taken back.
pub(crate) const ROUNDS_TO_CLEAR: u32 = 2;

/// What became of a question.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It was not asked.
    #[default]
    Untried,
    /// The peer's answerer has answered.
    Answered,
    /// The peer's kernel has: "port unreachable", or a reset. Packets get there and back all the same.
    Refused,
    /// Nothing came back in time.
    Silent,
    /// This node's kernel would not send it (a rule, or no route).
    Unsent,
}

impl Outcome {
    /// Whether a packet went there and another one came back.
    pub fn came_back(self) -> bool {
        matches!(self, Outcome::Answered | Outcome::Refused)
    }

    fn failed(self) -> bool {
        matches!(self, Outcome::Silent | Outcome::Unsent)
    }
}

/// Outcomes over one path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paths {
    /// A small datagram.
    pub udp: Outcome,
    /// A connection with some kilobytes each way.
    pub tcp: Outcome,
    /// ICMP echo.
    pub ping: Outcome,
}

impl Paths {
    fn works(&self) -> Option<&'static str> {
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
    /// The peer says that it has received what was sent to it through the tunnel.
    pub received_there: Option<bool>,
    /// What the peer was asked to send through the tunnel was received here.
    pub received_here: Option<bool>,
    /// VXLAN packets of this node were counted when they arrived at the peer.
    pub counted_there: Option<bool>,
    /// VXLAN packets of the peer were counted when they arrived here.
    pub counted_here: Option<bool>,
    /// Packets with wrong checksums arrived at the peer meanwhile.
    pub corrupt_there: Option<bool>,
    /// And here.
    pub corrupt_here: Option<bool>,
    /// The rule of the peer that dropped such a packet.
    pub rule_there: Option<String>,
    /// The rule of this node.
    pub rule_here: Option<String>,
    /// From the small datagram through the tunnel to its answer, in microseconds.
    pub round_trip: Option<u32>,
}

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
    fn resembles(&self, told: &Verdict) -> bool {
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

/// Who a verdict is about.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    /// This node.
    pub own: &'a str,
    /// The peer.
    pub peer: &'a str,
    /// The VXLAN port.
    pub port: u16,
    /// The interface to other nodes.
    pub interface: &'a str,
    /// The rule of this node that drops packets, where it was found.
    pub rule_here: Option<&'a str>,
    /// The rule of the peer.
    pub rule_there: Option<&'a str>,
}

impl Scene<'_> {
    /// The verdict in words.
    pub fn tell(&self, verdict: &Verdict) -> String {
        let Scene {
            own,
            peer,
            interface,
            ..
        } = self;
        match verdict {
            Verdict::Healthy => format!("pods on {peer} can be reached"),
            Verdict::Silent => format!("{peer} does not answer at all"),
            Verdict::Blocked { forth, back, works } => self.tell_blocked(*forth, *back, works),
            Verdict::Mtu {
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
            Verdict::Checksum { theirs: false } => {
                format!("checksum offload on {interface} corrupts tunnelled packets to {peer}")
            }
            Verdict::Checksum { theirs: true } => {
                format!(
                    "checksum offload on {peer} corrupts tunnelled packets: they arrive at {own} with wrong checksums"
                )
            }
            Verdict::Partly(what) => {
                let text = format!(
                    "{what} through the tunnel to {peer} do not get through, other packets do"
                );
                self.with_rules(vec![text])
            }
        }
    }

    fn tell_blocked(&self, forth: Leg, back: Leg, works: &str) -> String {
        let Scene {
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

/// Hears of one peer's rounds and says when what is to be said changes.
#[derive(Clone, Debug, Default)]
pub struct Judge {
    bad: u32,
    good: u32,
    told: Option<Verdict>,
}

impl Judge {
    /// What is said at present; `None`: nothing is wrong, as far as is known for sure.
    pub fn told(&self) -> Option<&Verdict> {
        self.told.as_ref()
    }

    /// Whether the last round was bad, or one before that has not been taken back: worth another look soon.
    pub fn is_suspicious(&self) -> bool {
        self.bad > 0 || self.told.is_some()
    }

    /// Takes a round's verdict. Whether what is to be said has changed.
    pub fn hear(&mut self, verdict: Verdict) -> bool {
        if verdict.is_healthy() {
            self.bad = 0;
            self.good += 1;
            return self.good >= ROUNDS_TO_CLEAR && self.told.take().is_some();
        }
        self.good = 0;
        self.bad += 1;
        if self.bad < ROUNDS_TO_TELL {
            return false;
        }
        let same = self
            .told
            .as_ref()
            .is_some_and(|told| verdict.resembles(told));
        if !same {
            self.told = Some(verdict);
        }
        !same
    }
}
