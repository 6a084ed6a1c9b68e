//! Compares reference model and table, and describes a difference so that it can be reproduced.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use nft::{Family, TableContents};

use crate::cluster::{Cluster, Node};
use crate::evaluator::{Course, Evaluator, Fate, Fates, Memory, WHOLE};
use crate::oracle::{Expected, Packet, are_to_one_port, has_affinity, outcome_after};
use crate::packets;

/// A packet on which table and reference model differ, or a table that no kernel would take.
#[derive(Debug)]
pub struct Difference {
    /// The node whose table it is.
    pub node: String,
    /// The packet, if the kernel accepts the table.
    pub packet: Option<Packet>,
    /// What the reference model expects.
    pub expected: Option<Expected>,
    /// What the table does, or what is wrong with it.
    pub got: String,
    /// The cluster as manifests.
    pub manifests: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}on {}:", self.manifests, self.node)?;
        if let Some(packet) = &self.packet {
            writeln!(f, "  packet:   {packet}")?;
        }
        if let Some(expected) = &self.expected {
            writeln!(f, "  expected: {expected:?}")?;
        }
        write!(f, "  got:      {}", self.got)
    }
}

/// Outside the addresses of endpoints.
const CLIENT_POD: u8 = 200;

/// For each client and Service port: the number of first packets, of endpoints that are followed, and of packets after
/// each.
const SESSION: (usize, usize, usize) = (2, 3, 5);

/// Compares every interesting packet of `node`, and with affinity the packets after it. Returns their number.
pub fn compare(
    cluster: &Cluster,
    node: &Node,
    contents: &[TableContents],
) -> Result<usize, Box<Difference>> {
    let comparison = Comparison {
        cluster,
        node,
        evaluators: Vec::new(),
    };
    let evaluators = contents
        .iter()
        .map(|table| Ok((table.table.family, Evaluator::new(table)?)))
        .collect::<Result<_, String>>()
        .map_err(|got| comparison.difference(None, None, got))?;
    let comparison = Comparison {
        evaluators,
        ..comparison
    };
    let packets = packets::interesting(cluster, node, CLIENT_POD);
    let mut clients: BTreeMap<IpAddr, Vec<Packet>> = BTreeMap::new();
    for packet in &packets {
        comparison.judge(packet, &[], &Memory::new())?;
        if has_affinity(cluster, node, packet) {
            clients.entry(packet.source).or_default().push(*packet);
        }
    }
    let sessions: Result<usize, _> = clients.values().map(|c| comparison.sessions(c)).sum();
    Ok(packets.len() + sessions?)
}

struct Comparison<'a> {
    cluster: &'a Cluster,
    node: &'a Node,
    evaluators: Vec<(Family, Evaluator<'a>)>,
}

impl Comparison<'_> {
    fn difference(
        &self,
        packet: Option<Packet>,
        expected: Option<Expected>,
        got: String,
    ) -> Box<Difference> {
        Box::new(Difference {
            node: self.node.name.clone(),
            packet,
            expected,
            got,
            manifests: self.cluster.to_manifests(),
        })
    }

    /// The fate of the packet after these, if the fate is as expected.
    fn judge(
        &self,
        packet: &Packet,
        earlier: &[(Packet, SocketAddr)],
        memory: &Memory,
    ) -> Result<Fates, Box<Difference>> {
        let expected = outcome_after(self.cluster, self.node, earlier, packet);
        let family = Family::of(packet.destination);
        let fates = match self.evaluators.iter().find(|(of, _)| *of == family) {
            Some((_, evaluator)) => evaluator.fates(packet, self.node, memory),
            None => Ok(Fates::from([(Fate::Passed, Course::default())])),
        };
        let judged = fates.and_then(|fates| judge(&expected, &fates).map(|()| fates));
        judged.map_err(|got| {
            let after: Vec<_> = earlier
                .iter()
                .map(|(p, to)| format!("{p} to {to}"))
                .collect();
            let got = if after.is_empty() {
                got
            } else {
                format!("{got}, after {after:?}")
            };
            self.difference(Some(*packet), Some(expected), got)
        })
    }

    /// Compares one client's packets after some of its packets.
    fn sessions(&self, packets: &[Packet]) -> Result<usize, Box<Difference>> {
        let (firsts, endpoints, after) = SESSION;
        let mut count = 0;
        let mut begun: Vec<Packet> = Vec::new();
        for first in packets {
            let same_port =
                |other: &&Packet| are_to_one_port(self.cluster, self.node, first, other);
            if begun.iter().filter(same_port).count() >= firsts {
                continue;
            }
            begun.push(*first);
            for (fate, course) in self
                .judge(first, &[], &Memory::new())?
                .iter()
                .take(endpoints)
            {
                let Some(chosen) = fate.destination() else {
                    break;
                };
                for packet in packets.iter().filter(same_port).take(after) {
                    self.judge(packet, &[(*first, chosen)], &course.memory)?;
                    count += 1;
                }
            }
        }
        Ok(count)
    }
}

/// Whether the fates of a packet are as expected, with equal probability for each backend.
pub fn judge(expected: &Expected, fates: &Fates) -> Result<(), String> {
    let only = |fate| fates.len() == 1 && fates.contains_key(&fate);
    let agrees = match expected {
        Expected::Refused => only(Fate::Rejected),
        Expected::Dropped => only(Fate::Dropped),
        Expected::NotOurs => only(Fate::Passed),
        Expected::Balanced(backends) => {
            let wanted = backends.iter().map(|(to, masqueraded)| (*to, *masqueraded));
            let got: Option<Vec<(SocketAddr, bool)>> = fates
                .keys()
                .map(|fate| match fate {
                    Fate::Translated { to, masqueraded } => Some((*to, *masqueraded)),
                    _ => None,
                })
                .collect();
            got.is_some_and(|got| wanted.eq(got)) && is_even(fates)
        }
    };
    if agrees {
        Ok(())
    } else {
        let shares = fates.iter().map(|(fate, course)| (fate, course.share));
        Err(format!("{:?}", shares.collect::<BTreeMap<_, _>>()))
    }
}

/// Every share is the whole divided by their number, give or take the rounding of one slot.
fn is_even(fates: &Fates) -> bool {
    let count = fates.len() as u64;
    fates
        .values()
        .all(|course| (course.share * count).abs_diff(WHOLE) <= count)
}
