//! Makes the state of the encryption for readers.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use vxlan_overlay::Plan;

use super::announced::{Choice, Plane};
use super::keys::Keys;
use super::{Encryption, EncryptionStatus, PeerEncryption, PeerState};

impl Encryption {
    pub(super) fn report(&mut self, plan: &Plan, now: Instant) {
        let mut names: BTreeSet<&Arc<str>> = BTreeSet::new();
        for tunnel in plan.tunnels.values().flatten() {
            names.extend(tunnel.peers.iter().map(|peer| &peer.name));
        }
        let own = self.own_announced();
        let peer = |name: &Arc<str>| {
            let announced = self.roster.get(name);
            let choice = announced.map(|announced| self.choice(name, announced, &own, now));
            let state = match choice {
                None => PeerState::NoKey,
                Some(Choice::Nothing | Choice::Waiting(_)) => PeerState::Waiting,
                Some(Choice::Live(_)) => PeerState::Encrypted,
            };
            let plane = match choice {
                Some(Choice::Live(plane) | Choice::Waiting(plane)) => plane,
                _ => Plane::First,
            };
            let key = announced.and_then(|announced| announced.key(plane));
            let device = self.observed.devices.get(plane.device());
            let found = key.and_then(|(key, _)| device?.peers.get(&key));
            PeerEncryption {
                name: name.clone(),
                state,
                replaced_by: self.replaced.get(name).cloned(),
                key: key.map(|(key, _)| key.to_string()),
                device: plane.device(),
                handshake_age: key.and_then(|(key, _)| self.handshakes.age(plane, key, now)),
                received: found.map_or(0, |found| found.received),
                sent: found.map_or(0, |found| found.sent),
            }
        };
        self.status = Arc::new(EncryptionStatus {
            mode: self.mode(),
            key: own.keys.first().map(|(_, key, _)| key.to_string()),
            key_age: self.keys.as_ref().map(Keys::age),
            rotating: self.keys.as_ref().is_some_and(Keys::is_rotating),
            clock_was_set_back: self.handshakes.clock_was_set_back,
            port: self.config.encryption.port,
            problems: self.problems().cloned().collect(),
            peers: names.into_iter().map(peer).collect(),
        });
    }
}
