//! The comparison of reference model and table, with a difference that a person can act on.

use std::fmt;
use std::net::SocketAddr;

use nft::{Family, TableContents};

use crate::cluster::{Cluster, Node};
use crate::evaluator::{Evaluator, Fate, Fates, WHOLE};
use crate::oracle::{Expected, Packet, outcome};
use crate::packets;

/// A packet on which table and reference model differ, or a table that no kernel would take.
#[derive(Debug)]
pub struct Difference {
    /// The node whose table it is.
    pub node: String,
    /// The packet, if it came to that.
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

/// Far from the pods that endpoints are made of.
const CLIENT_POD: u8 = 200;

/// Tries every interesting packet of `node`. Returns how many there were.
pub fn compare(
    cluster: &Cluster,
    node: &Node,
    contents: &[TableContents],
) -> Result<usize, Box<Difference>> {
    let difference = |packet, expected, got| {
        let manifests = cluster.to_manifests();
        Box::new(Difference {
            node: node.name.clone(),
            packet,
            expected,
            got,
            manifests,
        })
    };
    let evaluators: Vec<(Family, Evaluator<'_>)> = contents
        .iter()
        .map(|table| Ok((table.table.family, Evaluator::new(table)?)))
        .collect::<Result<_, String>>()
        .map_err(|got| difference(None, None, got))?;
    let packets = packets::interesting(cluster, node, CLIENT_POD);
    for packet in &packets {
        let expected = outcome(cluster, node, packet);
        let family = Family::of(packet.destination);
        let fates = match evaluators.iter().find(|(of, _)| *of == family) {
            Some((_, evaluator)) => evaluator
                .fates(packet, &node.interfaces)
                .map_err(|got| difference(Some(*packet), Some(expected.clone()), got))?,
            None => Fates::from([(Fate::Passed, WHOLE)]),
        };
        if let Err(got) = judge(&expected, &fates) {
            return Err(difference(Some(*packet), Some(expected), got));
        }
    }
    Ok(packets.len())
}

/// Whether the fates of a packet are what is expected, every backend as likely as the next.
pub fn judge(expected: &Expected, fates: &Fates) -> Result<(), String> {
    let only = |fate| fates.len() == 1 && fates.contains_key(&fate);
    let agrees = match expected {
        Expected::Refused => only(Fate::Rejected),
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
        Err(format!("{fates:?}"))
    }
}

/// Every share is the whole divided by their number, give or take the rounding of one slot.
fn is_even(fates: &Fates) -> bool {
    let count = fates.len() as u64;
    fates
        .values()
        .all(|share| (share * count).abs_diff(WHOLE) <= count)
}
