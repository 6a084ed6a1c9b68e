//! Portolan beside kube-proxy: two labs that are alike down to the addresses, the same objects in both, and the
//! same packets. Node 1 of one lab is run by kube-proxy in nftables mode, node 1 of the other by Portolan.
//!
//! Owns the comparison. What a packet meets is a set of [`Fate`]s, because both proxies choose backends by
//! chance; both are asked until they have shown the same or chance no longer explains the difference. The
//! reference model has no say in what agrees: it only helps to guess how often to ask, which packets the lab can
//! carry, and whether a disagreement is one of those that [`differences`] lists as deliberate.

pub mod differences;
mod fates;
mod programs;
mod server;
mod side;
mod supply;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::cluster::{Cluster, Node};
use crate::oracle::{Expected, Packet, outcome};

pub use differences::Difference;
pub use fates::{Fate, Fates};
pub use programs::{KubeProxy, kube_proxies};
pub use server::Kind;
pub use side::{CLIENT_POD, NODES, PODS, PORTS, Side};

/// For an answer at first; what differs is asked again with more.
const HASTE: Duration = Duration::from_millis(300);

/// The two labs.
pub struct Arena {
    kube_proxy: Side,
    portolan: Side,
}

/// A packet that met different fates.
#[derive(Debug)]
pub struct Disagreement {
    /// The packet.
    pub packet: Packet,
    /// What kube-proxy made of it.
    pub kube_proxy: Fates,
    /// What Portolan made of it.
    pub portolan: Fates,
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  packet:     {}", self.packet)?;
        writeln!(f, "  kube-proxy: {:?}", self.kube_proxy)?;
        write!(f, "  Portolan:   {:?}", self.portolan)
    }
}

/// What a comparison has seen: packets by the fate that both agree on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Reached a server.
    pub answered: usize,
    /// Refused.
    pub refused: usize,
    /// Got to where nobody answers, or were dropped.
    pub lost: usize,
    /// Differ on purpose, by the first name in [`differences`] that says so.
    pub differing: BTreeMap<&'static str, usize>,
}

impl Seen {
    /// Packets in all.
    pub fn packets(&self) -> usize {
        self.answered + self.refused + self.lost + self.differing.values().sum::<usize>()
    }

    fn count(&mut self, fates: &Fates) {
        let any = |wanted: fn(&Fate) -> bool| fates.iter().any(wanted);
        if any(|fate| matches!(fate, Fate::Answered { .. })) {
            self.answered += 1;
        } else if any(|fate| *fate == Fate::Refused) {
            self.refused += 1;
        } else {
            self.lost += 1;
        }
    }
}

impl std::ops::AddAssign for Seen {
    fn add_assign(&mut self, other: Self) {
        self.answered += other.answered;
        self.refused += other.refused;
        self.lost += other.lost;
        for (name, count) in other.differing {
            *self.differing.entry(name).or_default() += count;
        }
    }
}

impl Arena {
    /// Two labs with nobody to run their nodes yet.
    pub fn new(kind: Kind) -> Result<Arena> {
        let side = |_: &mut ()| Side::new(kind);
        let both = in_step(&mut (), &mut (), side, side)?;
        Ok(Arena {
            kube_proxy: both.0,
            portolan: both.1,
        })
    }

    /// Gives both labs these nodes and starts both programs with these settings, in place of earlier ones.
    pub fn start(&mut self, program: &KubeProxy, cluster: &Cluster) -> Result<()> {
        in_step(
            &mut self.kube_proxy,
            &mut self.portolan,
            |side| side.start_kube_proxy(program, cluster),
            |side| side.start_portolan(cluster),
        )?;
        Ok(())
    }

    /// Leads both to a cluster's Services and slices, and waits until both have come to their end.
    pub fn switch_to(&mut self, cluster: &Cluster) -> Result<()> {
        let change = |side: &mut Side| side.switch_to(cluster);
        in_step(&mut self.kube_proxy, &mut self.portolan, change, change)?;
        Ok(())
    }

    /// Those of the packets that both labs can carry there and back.
    pub fn sendable(&self, cluster: &Cluster, node: &Node, packets: Vec<Packet>) -> Vec<Packet> {
        let seen = differences::as_kube_proxy_sees(cluster);
        let can_send = |packet: &Packet| {
            let mut expected = [cluster, &seen]
                .map(|cluster| outcome(cluster, node, packet))
                .into_iter();
            expected.all(|expected| self.portolan.field().can_send(node, packet, &expected))
        };
        packets.into_iter().filter(can_send).collect()
    }

    /// Sends each packet on both sides. Fails on the first difference that is not a deliberate one.
    pub fn compare(&mut self, cluster: &Cluster, node: &Node, packets: &[Packet]) -> Result<Seen> {
        let planned: Vec<(Packet, usize)> = packets
            .iter()
            .map(|packet| (*packet, attempts(&outcome(cluster, node, packet))))
            .collect();
        let look = |side: &mut Side| -> Result<Vec<Fates>> {
            let all = planned.iter();
            all.map(|(packet, attempts)| side.look(packet, *attempts, HASTE))
                .collect()
        };
        let (theirs, ours) = in_step(&mut self.kube_proxy, &mut self.portolan, look, look)?;
        let mut seen = Seen::default();
        for ((packet, theirs), ours) in packets.iter().zip(theirs).zip(ours) {
            let (theirs, ours) = self.settle(packet, theirs, ours, HASTE)?;
            if theirs == ours {
                seen.count(&ours);
                continue;
            }
            // From nothing, and with all patience there is: a machine that is busy is not a difference.
            let (theirs, ours) =
                self.settle(packet, Fates::new(), Fates::new(), lab::DEFAULT_PATIENCE)?;
            if theirs == ours {
                seen.count(&ours);
                continue;
            }
            let disagreement = Disagreement {
                packet: *packet,
                kube_proxy: theirs,
                portolan: ours,
            };
            let deliberate =
                differences::deliberate(self.portolan.field(), cluster, node, &disagreement);
            match deliberate.as_slice() {
                [first, ..] => *seen.differing.entry(*first).or_default() += 1,
                [] => {
                    let theirs = self.kube_proxy.rules_about(packet.destination)?;
                    let ours = self.portolan.rules_about(packet.destination)?;
                    bail!("{disagreement}\n  rules: {theirs:#?}\n  and: {ours:#?}")
                }
            }
        }
        Ok(seen)
    }

    /// Asks both again and again until they have shown the same, or one of them never shows what the other did.
    fn settle(
        &mut self,
        packet: &Packet,
        mut theirs: Fates,
        mut ours: Fates,
        patience: Duration,
    ) -> Result<(Fates, Fates)> {
        let mut asked = 0;
        while theirs.is_empty() || theirs != ours {
            if asked >= beyond_chance(theirs.union(&ours).count()) {
                break;
            }
            let look = |side: &mut Side| side.look(packet, ROUND, patience);
            let (a, b) = in_step(&mut self.kube_proxy, &mut self.portolan, look, look)?;
            theirs.extend(a);
            ours.extend(b);
            asked += ROUND;
        }
        Ok((theirs, ours))
    }
}

/// Attempts at a time while two sets differ.
const ROUND: usize = 8;

/// Attempts that most likely show every backend: of n, one is missed by n (ln n + 2) attempts in 13 of 100 cases,
/// and then looked for again.
fn attempts(expected: &Expected) -> usize {
    let backends = match expected {
        Expected::Balanced(backends) => backends.len(),
        _ => 1,
    };
    let n = backends as f64;
    (n * (n.ln() + 2.0)).ceil() as usize
}

/// Attempts after which one of `fates` equally likely ones is still missing once in 10^9 cases.
fn beyond_chance(fates: usize) -> usize {
    let n = fates.max(1) as f64;
    (n * (n.ln() + 21.0)).ceil() as usize
}

/// Does both at once.
fn in_step<X: Send, Y: Send, A: Send, B: Send>(
    x: &mut X,
    y: &mut Y,
    one: impl FnOnce(&mut X) -> Result<A> + Send,
    other: impl FnOnce(&mut Y) -> Result<B>,
) -> Result<(A, B)> {
    std::thread::scope(|scope| {
        let beside = scope.spawn(move || one(x));
        let b = other(y);
        let a = beside
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok((a?, b?))
    })
}
