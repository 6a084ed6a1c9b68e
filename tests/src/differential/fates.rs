//! What became of a packet, so that two labs with the same addresses can be compared.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
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

pub(super) fn observe(field: &Field, packet: &Packet, patience: Duration) -> Result<Fate> {
    fate_of(
        field,
        packet,
        field.send_within(packet, patience)?,
        patience,
    )
}

/// What became of an attempt by its outcome.
pub(super) fn fate_of(
    field: &Field,
    packet: &Packet,
    outcome: Outcome,
    patience: Duration,
) -> Result<Fate> {
    Ok(match outcome {
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

/// Whether the fates of a packet are what the reference model expects, with every backend among them. Only to tell
/// whether a difference is the one it seems to be.
pub(super) fn are_as_expected(
    field: &Field,
    node: &Node,
    packet: &Packet,
    expected: &Expected,
    fates: &Fates,
) -> bool {
    let is_whole = match expected {
        Expected::Balanced(backends) => {
            let server = |fate: &Fate| match fate {
                Fate::Answered { server, .. } => Some(server.clone()),
                _ => None,
            };
            let met: BTreeSet<_> = fates.iter().map(server).collect();
            let wanted = backends.keys().map(|to| field.server_name(*to));
            met == wanted.collect()
        }
        _ => true,
    };
    is_whole
        && fates
            .iter()
            .all(|fate| fits(field, node, packet, expected, fate))
}

/// Whether one attempt may have come to this.
pub(super) fn fits(
    field: &Field,
    node: &Node,
    packet: &Packet,
    expected: &Expected,
    fate: &Fate,
) -> bool {
    match expected {
        Expected::Balanced(_) => backend(field, node, packet, expected, fate).is_some(),
        Expected::Refused => *fate == Fate::Refused,
        Expected::Dropped => *fate == Fate::Silent,
        // To the machine with the address, or to none; or no process listens on that port.
        Expected::NotOurs => match fate {
            Fate::Answered { source, .. } => *source == packet.source,
            other => *other == Fate::Refused,
        },
    }
}

/// Which of the expected backends answered, if it saw the source that it should.
pub(super) fn backend(
    field: &Field,
    node: &Node,
    packet: &Packet,
    expected: &Expected,
    fate: &Fate,
) -> Option<SocketAddr> {
    let (Expected::Balanced(backends), Fate::Answered { server, source }) = (expected, fate) else {
        return None;
    };
    let (to, masqueraded) = backends
        .iter()
        .find(|(to, _)| field.server_name(**to).as_ref() == Some(server))?;
    // A masqueraded connection has the address of the interface by which it left; for the node's own connections that
    // may be nothing new.
    let is_source_right = match masqueraded {
        true => node.interfaces.contains(source),
        false => *source == packet.source,
    };
    is_source_right.then_some(*to)
}
