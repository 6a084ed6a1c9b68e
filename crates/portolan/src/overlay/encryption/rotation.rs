//! Facts about the progress of a key rotation, from the sessions and the traffic of the devices.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use vxlan_overlay::Peers;
use wireguard::PublicKey;

use super::announced::{Announced, Plane};
use super::handshakes::Handshakes;
use super::keys::{Keys, PATIENCE, Phase, Progress};
use super::{Encryption, request_file};

/// In so long, a plane without traffic receives less than this from each peer: keepalive packets and handshakes.
const QUIET: Duration = Duration::from_secs(8);
const QUIET_BYTES: u64 = 600;

/// The planes in which a session with a peer lives.
#[derive(Clone, Copy, Debug)]
struct Sessions {
    first: bool,
    second: bool,
}

impl Sessions {
    fn with(peer: &Announced, handshakes: &Handshakes, now: Instant) -> Sessions {
        let live = |plane| handshakes.is_live_with(plane, peer, now);
        Sessions {
            first: live(Plane::First),
            second: live(Plane::Second),
        }
    }

    fn any(self) -> bool {
        self.first || self.second
    }
}

/// What the sessions with the peers say about a rotation. Peers that do not answer in any plane are not waited for.
fn progress(peers: &[Sessions]) -> Progress {
    let mut answering = peers.iter().filter(|peer| peer.any());
    Progress {
        all_in_first: answering.clone().all(|peer| peer.first),
        all_in_second: answering.clone().all(|peer| peer.second),
        reached: peers.is_empty() || answering.next().is_some(),
        ..Progress::default()
    }
}

/// The peers that announce a rotation: what they announce, and since when.
#[derive(Debug, Default)]
pub(super) struct RotatingPeers(BTreeMap<Arc<str>, (Announced, Instant)>);

impl RotatingPeers {
    /// Records the peers that announce a rotation, each with whether a session with it lives. Returns whether one of them
    /// is to be helped: a peer without a session may be dead, and is helped for [`PATIENCE`] after it has announced
    /// something new.
    fn record<'a>(
        &mut self,
        peers: impl Iterator<Item = (&'a Arc<str>, &'a Announced, bool)>,
        now: Instant,
    ) -> bool {
        let (before, mut helps) = (std::mem::take(&mut self.0), false);
        for (name, announced, lives) in peers {
            let known = before.get(name).filter(|(other, _)| other == announced);
            let since = known.map_or(now, |(_, since)| *since);
            helps |= lives || now.saturating_duration_since(since) < PATIENCE;
            self.0.insert(name.clone(), (announced.clone(), since));
        }
        helps
    }
}

impl Encryption {
    /// Goes on with a rotation of this node's key, or helps with another node's.
    pub(super) fn rotate(&mut self, peers: &Peers, now: Instant) -> Result<()> {
        let handshakes = &self.handshakes;
        let sessions = |peer: &Announced| Sessions::with(peer, handshakes, now);
        let all: Vec<Sessions> = self.roster.values().map(sessions).collect();
        let rotating = self.roster.iter().filter(|(_, peer)| peer.rotating);
        let rotating = rotating.map(|(name, peer)| (name, peer, sessions(peer).any()));
        let others_rotate = self.rotating.record(rotating, now);
        let given_up = match self.keys.as_ref().map(Keys::phase) {
            Some(Phase::Replace) => Some(Plane::First),
            Some(Phase::Retire) => Some(Plane::Second),
            _ => None,
        };
        self.measure_quiet(given_up, now);
        let request = request_file(&self.config.encryption.key_file);
        let Some(keys) = &mut self.keys else {
            return Ok(());
        };
        if !peers.is_listed() {
            return Ok(());
        }
        let progress = Progress {
            quiet: self.quiet,
            others_rotate,
            requested: keys.phase() == Phase::Steady && request.exists(),
            ..progress(&all)
        };
        if let Some(what) = keys.advance(progress, now)? {
            tracing::info!("{what}");
            self.changed = now;
            self.mark = None;
            self.quiet = false;
            if progress.requested {
                let _ = std::fs::remove_file(&request);
            }
        }
        Ok(())
    }

    /// Compares what each peer sent to a plane that is given up with what it had sent some seconds ago.
    fn measure_quiet(&mut self, plane: Option<Plane>, now: Instant) {
        let Some(plane) = plane else {
            (self.mark, self.quiet) = (None, false);
            return;
        };
        let device = self.observed.devices.get(plane.device());
        let received: BTreeMap<PublicKey, u64> = device
            .iter()
            .flat_map(|device| &device.peers)
            .map(|(key, peer)| (*key, peer.received))
            .collect();
        match &self.mark {
            Some((at, of, _)) if *of == plane && now.saturating_duration_since(*at) < QUIET => {}
            Some((_, of, before)) if *of == plane => {
                self.quiet = received.iter().all(|(key, bytes)| {
                    let before = before.get(key).copied().unwrap_or_default();
                    bytes.saturating_sub(before) < QUIET_BYTES
                });
                self.mark = Some((now, plane, received));
            }
            _ => self.mark = Some((now, plane, received)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_that_do_not_answer_have_not_moved() {
        let sessions = |first, second| Sessions { first, second };
        let (none, old) = (sessions(false, false), sessions(true, false));
        let (new, both) = (sessions(false, true), sessions(true, true));
        assert!(!progress(&[none, none]).reached);
        // A node without peers waits for none.
        assert!(progress(&[]).reached && progress(&[]).all_in_second);
        let moved = progress(&[none, new, both]);
        assert!(moved.reached && moved.all_in_second && !moved.all_in_first);
        let waiting = progress(&[old, both]);
        assert!(waiting.reached && waiting.all_in_first && !waiting.all_in_second);
    }

    #[test]
    fn a_dead_node_amid_a_rotation_is_helped_for_a_while() {
        let (mut rotating, start) = (RotatingPeers::default(), Instant::now());
        let name: Arc<str> = "node-1".into();
        let announced = |plane| Announced {
            keys: vec![(plane, PublicKey([7; 32]), 51820)],
            rotating: true,
        };
        let (replacing, returning) = (announced(Plane::Second), announced(Plane::First));
        let mut helps = |peer: Option<&Announced>, lives: bool, after: Duration| {
            let peer = peer.into_iter().map(|peer| (&name, peer, lives));
            rotating.record(peer, start + after)
        };
        assert!(helps(Some(&replacing), false, Duration::ZERO));
        assert!(helps(Some(&replacing), false, PATIENCE / 2));
        assert!(!helps(Some(&replacing), false, PATIENCE));
        assert!(helps(Some(&replacing), true, PATIENCE * 2));
        assert!(!helps(Some(&replacing), false, PATIENCE * 3));
        // It is back, and goes on by itself.
        assert!(helps(Some(&returning), false, PATIENCE * 4));
        assert!(!helps(None, false, PATIENCE * 5));
        assert!(helps(Some(&returning), false, PATIENCE * 6));
    }
}
