//! What became of a packet, so that two labs with the same addresses can be compared.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use lab::Outcome;

use crate::cluster::Node;
use crate::field::Field;
use crate::oracle::{Expected, Packet};

/// Everything that became of one packet on one side.
pub type Fates = BTreeSet<Fate>;

/// What became of one attempt.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// A server answered.
    Answered {
        /// `POD:PORT`, as it calls itself.
        server: String,
        /// The address it saw as the client's.
        source: IpAddr,
    },
    /// A reset, or ICMP "port unreachable": to a client the same.
    Refused,
    /// Another ICMP "unreachable".
    Unreachable,
    /// Nothing came back.
    Silent,
}

/// Sends one attempt.
pub(super) fn observe(field: &Field, packet: &Packet, patience: Duration) -> Result<Fate> {
    Ok(match field.send_within(packet, patience)? {
        Outcome::Answered { server, peer } => Fate::Answered {
            server,
            source: peer.ip(),
        },
        Outcome::Refused => Fate::Refused,
        Outcome::Unreachable => Fate::Unreachable,
        Outcome::TimedOut if field.hears_refusal(packet, patience)? => Fate::Refused,
        Outcome::TimedOut => Fate::Silent,
    })
}

/// Whether the fates of a packet are what the reference model expects. Only to tell whether a difference is the one it
/// seems to be.
pub(super) fn are_as_expected(
    field: &Field,
    node: &Node,
    packet: &Packet,
    expected: &Expected,
    fates: &Fates,
) -> bool {
    // A masqueraded connection has the address of the interface by which it left; for the node's own connections
    // that is nothing new.
    let is_own = node.interfaces.contains(&packet.source);
    let masqueraded =
        |source: &IpAddr| !is_own && *source != packet.source && node.interfaces.contains(source);
    match expected {
        Expected::Balanced(backends) => {
            let servers = backends
                .iter()
                .map(|(to, masqueraded)| (field.server_name(*to), *masqueraded && !is_own));
            let wanted: BTreeSet<(Option<String>, bool)> = servers.collect();
            let got = fates.iter().map(|fate| match fate {
                Fate::Answered { server, source } => {
                    Some((Some(server.clone()), masqueraded(source)))
                }
                _ => None,
            });
            got.collect::<Option<BTreeSet<_>>>() == Some(wanted)
        }
        Expected::Refused => fates.iter().eq([&Fate::Refused]),
        Expected::Dropped => fates.iter().eq([&Fate::Silent]),
        // To who has the address, or to nowhere; or there is nobody at that port.
        Expected::NotOurs => fates.iter().all(|fate| match fate {
            Fate::Answered { source, .. } => *source == packet.source,
            other => *other == Fate::Refused,
        }),
    }
}
