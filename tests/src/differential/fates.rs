//! What became of a packet, so that two labs with the same addresses can be compared.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use lab::Outcome;

use crate::field::Field;
use crate::oracle::Packet;

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
