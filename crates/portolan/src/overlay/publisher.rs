//! Decides what the Node of this daemon should state: its VTEP annotations, and whether its network is available.
//!
//! Sending is left to [`super::publish`], which receives each change.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;
use vxlan_overlay::{Peers, Plan, Tunnel, Vtep};

use super::OverlayConfig;
use super::condition::{Availability, Cause};
use super::publish::Publication;

/// Publishes what follows from the plan.
pub(super) struct NodePublisher {
    config: Arc<OverlayConfig>,
    sender: watch::Sender<Publication>,
    availability: Availability,
}

impl NodePublisher {
    pub(super) fn new(config: Arc<OverlayConfig>, sender: watch::Sender<Publication>) -> Self {
        NodePublisher {
            config,
            sender,
            availability: Availability::default(),
        }
    }

    /// When the condition may change although nothing else does.
    pub(super) fn due(&self) -> Option<Instant> {
        self.availability.due()
    }

    /// Publishes what this node's Node should state and does not: its VTEPs, and its keys if they are to change. `devices` is
    /// the number of usable tunnel devices.
    pub(super) fn publish(
        &mut self,
        (plan, peers, encryption): (&Plan, &Peers, Option<String>),
        complete: bool,
        devices: usize,
        now: Instant,
    ) {
        let cause = Cause::of(plan, devices).filter(|_| peers.is_listed());
        let verdict = self.availability.judge(complete, cause, now);
        if peers.get(&self.config.own).is_none() {
            return;
        }
        let vtep = |tunnel: &Tunnel| Vtep {
            mac: tunnel.device.mac,
            public_ip: tunnel.published,
        };
        let vteps = plan
            .tunnels
            .as_ref()
            .map(|_, tunnel| tunnel.as_ref().map(vtep));
        let mut annotations = match vteps.values().any(Option::is_some) {
            true => self.config.names.write(self.config.config.vni, &vteps),
            false => Default::default(),
        };
        let names = &self.config.names;
        for (family, tunnel) in &plan.tunnels {
            if let Some(tunnel) = tunnel.as_ref().filter(|tunnel| tunnel.chosen) {
                names.write_chosen(&mut annotations, family, tunnel.published);
            }
        }
        let probes = self.config.rules.probe_port.is_some();
        if !annotations.is_empty() && (probes || names.probes(peers.own_annotations())) {
            names.write_probes(&mut annotations, probes);
        }
        if let Some(keys) = encryption.filter(|_| !annotations.is_empty()) {
            names.write_encryption(&mut annotations, &keys);
        }
        annotations.retain(|name, value| peers.own_annotations().get(name) != Some(value));
        let publication = Publication {
            annotations,
            verdict,
        };
        self.sender.send_if_modified(|old| {
            let changed = *old != publication;
            *old = publication;
            changed
        });
    }
}
