//! Facts about the progress of a key rotation, from the sessions and the traffic of the devices.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use vxlan_overlay::Peers;
use wireguard::PublicKey;

use super::announced::{Announced, Plane};
use super::keys::{Keys, Phase, Progress};
use super::{Encryption, request_file};

/// In so long, a plane without traffic receives less than this from each peer: keepalive packets and handshakes.
const QUIET: Duration = Duration::from_secs(8);
const QUIET_BYTES: u64 = 600;

impl Encryption {
    /// Goes on with a rotation of this node's key, or helps with another node's.
    pub(super) fn rotate(&mut self, peers: &Peers, now: Instant) -> Result<()> {
        let others_rotate = self.roster.values().any(|announced| announced.rotating);
        let (all_in_first, all_in_second) = (
            self.all_live_in(Plane::First, now),
            self.all_live_in(Plane::Second, now),
        );
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
            all_in_first,
            all_in_second,
            quiet: self.quiet,
            others_rotate,
            requested: keys.phase() == Phase::Steady && request.exists(),
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

    /// Whether every peer that answers at all, in any plane, has a live session in this one.
    fn all_live_in(&self, plane: Plane, now: Instant) -> bool {
        let live = |announced: &Announced, plane| {
            let key = announced.key(plane);
            key.is_some_and(|(key, _)| self.handshakes.is_live(plane, key, now))
        };
        let mut answering = self.roster.values().filter(|announced| {
            let mut planes = Plane::ALL.into_iter();
            planes.any(|plane| live(announced, plane))
        });
        answering.all(|announced| live(announced, plane))
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
