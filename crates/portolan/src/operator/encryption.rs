//! The encryption between nodes in `/v1/status`, as a document and as lines.

use serde::{Deserialize, Serialize};

use crate::overlay::encryption::{EncryptionStatus, Mode, PeerState};

/// Peers in the text; the document has all.
const LISTED: usize = 20;

/// Encryption between nodes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EncryptionDocument {
    /// `prefer` or `require`.
    pub mode: String,
    /// Public key of this node, in base64.
    pub key: Option<String>,
    /// Age of the key in seconds.
    pub key_age_seconds: Option<u64>,
    /// This node replaces its key.
    pub rotating: bool,
    /// UDP port of WireGuard.
    pub port: u16,
    /// Number of peers with a live session.
    pub encrypted: usize,
    /// What went wrong.
    pub problems: Vec<String>,
    /// The peers, by name.
    pub peers: Vec<EncryptedPeer>,
}

/// A peer, as far as encryption goes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EncryptedPeer {
    /// Name of its node.
    pub name: String,
    /// `encrypted`, `clear text`, or `not reached`.
    pub state: String,
    /// Why it is not encrypted.
    pub reason: Option<String>,
    /// Device of this node.
    pub device: String,
    /// Age of the last handshake in seconds.
    pub handshake_seconds: Option<u64>,
    /// Received bytes.
    pub received_bytes: u64,
    /// Sent bytes.
    pub sent_bytes: u64,
}

/// The document of a state; `None` with encryption off.
pub(super) fn document(status: &EncryptionStatus) -> Option<EncryptionDocument> {
    let (mode, otherwise) = match status.mode {
        Mode::Off => return None,
        Mode::Prefer => ("prefer", "clear text"),
        Mode::Require => ("require", "not reached"),
    };
    let peers = status.peers.iter().map(|peer| {
        let reason = peer.reason(status.port);
        let state = match peer.state {
            PeerState::Encrypted => "encrypted",
            PeerState::NoKey | PeerState::Waiting => otherwise,
        };
        EncryptedPeer {
            name: peer.name.to_string(),
            state: state.to_owned(),
            reason,
            device: peer.device.to_owned(),
            handshake_seconds: peer.handshake_age.map(|age| age.as_secs()),
            received_bytes: peer.received,
            sent_bytes: peer.sent,
        }
    });
    Some(EncryptionDocument {
        mode: mode.to_owned(),
        key: status.key.clone(),
        key_age_seconds: status.key_age.map(|age| age.as_secs()),
        rotating: status.rotating,
        port: status.port,
        encrypted: status.count(PeerState::Encrypted),
        problems: status.problems.clone(),
        peers: peers.collect(),
    })
}

impl EncryptionDocument {
    /// Lines for people.
    pub(super) fn lines(&self) -> Vec<String> {
        let rotating = if self.rotating {
            ", key rotation under way"
        } else {
            ""
        };
        let mut lines = vec![format!(
            "{}: {} of {} peers encrypted, UDP port {}{rotating}",
            self.mode,
            self.encrypted,
            self.peers.len(),
            self.port
        )];
        lines.extend(self.problems.iter().cloned());
        let line = |peer: &EncryptedPeer| {
            let reason = peer.reason.iter().map(|reason| format!(" ({reason})"));
            let handshake = peer
                .handshake_seconds
                .map(|age| format!(", handshake {age} s ago"));
            format!(
                "{}: {}{}{}, {} bytes received, {} sent",
                peer.name,
                peer.state,
                reason.collect::<String>(),
                handshake.unwrap_or_default(),
                peer.received_bytes,
                peer.sent_bytes
            )
        };
        // Those that need a look come first.
        let (fine, others): (Vec<_>, Vec<_>) =
            self.peers.iter().partition(|peer| peer.reason.is_none());
        let all = others.into_iter().chain(fine);
        lines.extend(all.take(LISTED).map(line));
        let more = self.peers.len().saturating_sub(LISTED);
        if more > 0 {
            lines.push(format!("and {more} more (--output json)"));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_with_a_reason_are_listed_first_and_the_rest_counted() {
        let peer = |number: usize| EncryptedPeer {
            name: format!("node-{number}"),
            reason: (number >= 997).then(|| "no handshake for 300 s".to_owned()),
            ..EncryptedPeer::default()
        };
        let document = EncryptionDocument {
            peers: (0..1000).map(peer).collect(),
            ..EncryptionDocument::default()
        };
        let lines = document.lines();
        assert_eq!(lines.len(), LISTED + 2);
        assert!(lines[1].starts_with("node-997") && lines[3].starts_with("node-999"));
        assert_eq!(lines.last().unwrap(), "and 980 more (--output json)");
    }
}
