//! The state of the encryption, for `portolan status`, metrics and the doctor.

use std::sync::Arc;
use std::time::Duration;

use super::Mode;

/// Peers that are named; of the others the number.
const NAMED: usize = 10;

/// How packets to a peer travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerState {
    /// Encrypted.
    Encrypted,
    /// The peer has a key, and no handshake with it has completed of late.
    Waiting,
    /// The peer announces no key.
    NoKey,
}

/// One peer.
#[derive(Clone, Debug)]
pub struct PeerEncryption {
    /// Name of its node.
    pub name: Arc<str>,
    /// How packets to it travel.
    pub state: PeerState,
    /// The node that has its address instead.
    pub replaced_by: Option<Arc<str>>,
    /// Its public key, in base64.
    pub key: Option<String>,
    /// The device of this node for it.
    pub device: &'static str,
    /// Age of the latest handshake.
    pub handshake_age: Option<Duration>,
    /// Received bytes, as WireGuard counts them.
    pub received: u64,
    /// Sent bytes.
    pub sent: u64,
}

/// The whole.
#[derive(Clone, Debug, Default)]
pub struct EncryptionStatus {
    /// What is to be encrypted.
    pub mode: Mode,
    /// Public key of this node, in base64.
    pub key: Option<String>,
    /// Age of that key.
    pub key_age: Option<Duration>,
    /// Whether this node replaces its key.
    pub rotating: bool,
    /// A handshake is later than the node's clock: peers refuse handshakes that this node begins.
    pub clock_was_set_back: bool,
    /// UDP port of the first device.
    pub port: u16,
    /// What went wrong.
    pub problems: Vec<String>,
    /// The peers, by name.
    pub peers: Vec<PeerEncryption>,
}

impl PeerEncryption {
    /// Why packets to the peer are not encrypted. `port`: of this node's first device.
    pub fn reason(&self, port: u16) -> Option<String> {
        if let Some(other) = &self.replaced_by {
            return Some(format!(
                "node {other} has its address and is reached there instead: delete the Node whose machine is gone"
            ));
        }
        Some(match (self.state, self.handshake_age) {
            (PeerState::Encrypted, _) => return None,
            (PeerState::NoKey, _) => "it announces no key".to_owned(),
            (PeerState::Waiting, Some(age)) => format!(
                "no handshake for {} s: UDP port {port} is blocked, or the node is away",
                age.as_secs()
            ),
            (PeerState::Waiting, None) if self.received > 0 => format!(
                "its handshakes arrive, and the answers do not reach it: UDP port {port} is blocked from here to it"
            ),
            (PeerState::Waiting, None) => format!(
                "none of its packets arrive at UDP port {port}: the port is blocked from it to here or both ways, or the node does not have the key that it announces"
            ),
        })
    }
}

impl EncryptionStatus {
    /// What is wrong between this node and peers, and what follows. A peer that is in clear text for want of a key is no
    /// fault with `prefer`.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.clock_was_set_back {
            faults.push(
                "the clock of this node was set back: peers refuse the WireGuard handshakes that it begins until the clock has passed the time of the last one"
                    .to_owned(),
            );
        }
        let follows = match self.mode {
            Mode::Off => return faults,
            Mode::Prefer => "is reached in clear text",
            Mode::Require => "is not reached",
        };
        let concerns =
            |peer: &&PeerEncryption| self.mode == Mode::Require || peer.state == PeerState::Waiting;
        let mut others = self.unencrypted().filter(concerns);
        let fault = |peer: &PeerEncryption| {
            let reason = peer.reason(self.port)?;
            let follows = match peer.replaced_by {
                Some(_) => "is not reached",
                None => follows,
            };
            Some(format!("node {} {follows}: {reason}", peer.name))
        };
        faults.extend(others.by_ref().take(NAMED).filter_map(fault));
        let more = others.count();
        if more > 0 {
            faults.push(format!("{more} more peers are not encrypted"));
        }
        faults
    }

    /// The number of peers in a state.
    pub fn count(&self, state: PeerState) -> usize {
        self.peers.iter().filter(|peer| peer.state == state).count()
    }

    /// Names of the peers that are reached in clear text, or not at all with `require`.
    pub fn unencrypted(&self) -> impl Iterator<Item = &PeerEncryption> {
        let peers = self.peers.iter();
        peers.filter(|peer| peer.state != PeerState::Encrypted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(state: PeerState, received: u64) -> PeerEncryption {
        PeerEncryption {
            name: "node-1".into(),
            state,
            replaced_by: None,
            key: None,
            device: "portolan-wg",
            handshake_age: None,
            received,
            sent: 1,
        }
    }

    #[test]
    fn a_blocked_port_is_named_with_its_direction() {
        let status = |mode, peer| EncryptionStatus {
            mode,
            port: 51820,
            peers: vec![peer],
            ..EncryptionStatus::default()
        };
        let fault = |mode, peer| status(mode, peer).faults().pop().unwrap_or_default();
        let both = fault(Mode::Require, peer(PeerState::Waiting, 0));
        assert!(
            both.contains("is not reached") && both.contains("from it to here"),
            "{both}"
        );
        let there = fault(Mode::Prefer, peer(PeerState::Waiting, 148));
        assert!(
            there.contains("clear text") && there.contains("from here to it"),
            "{there}"
        );
        assert_eq!(fault(Mode::Prefer, peer(PeerState::NoKey, 0)), "");
        assert!(fault(Mode::Require, peer(PeerState::NoKey, 0)).contains("no key"));
        assert_eq!(fault(Mode::Require, peer(PeerState::Encrypted, 1)), "");
    }

    #[test]
    fn a_node_whose_address_another_has_is_named_with_it() {
        let old = PeerEncryption {
            replaced_by: Some("node-2".into()),
            ..peer(PeerState::Waiting, 0)
        };
        let status = EncryptionStatus {
            mode: Mode::Prefer,
            peers: vec![old],
            ..EncryptionStatus::default()
        };
        let faults = status.faults();
        assert!(
            faults.len() == 1 && faults[0].contains("node-1 is not reached: node node-2 has"),
            "{faults:?}"
        );
    }
}
