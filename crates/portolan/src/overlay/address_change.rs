//! A change of this node's address: packets leave from the old one until the other nodes know the new one.
//!
//! The filter of the others drops what comes from an address that no Node has. So the device keeps its local address for
//! [`GRACE`] after the Node of this node has the new one, as long as its interface has the old one; the others accept the
//! old one for longer ([`vxlan_overlay::Peers`]).

use std::net::IpAddr;
use std::time::{Duration, Instant};

use net_types::{Family, PerFamily};
use vxlan_overlay::{Plan, Surroundings};

/// How long a changed Node needs to be known to all nodes.
const GRACE: Duration = Duration::from_secs(1);

/// The changes under way.
#[derive(Debug, Default)]
pub(super) struct AddressChange {
    /// The new local address, and since when the Node of this node has what is published for it.
    announced: PerFamily<Option<(IpAddr, Instant)>>,
}

impl AddressChange {
    /// Puts the local addresses of the plan `before` into the `new` one where they are to be kept for now. `announced` is whether
    /// the Node of this node has this published address.
    pub(super) fn keep(
        &mut self,
        before: &Plan,
        new: &mut Plan,
        surroundings: &Surroundings,
        announced: impl Fn(Family, IpAddr) -> bool,
        now: Instant,
    ) {
        for family in Family::ALL {
            let since = self.announced[family].take();
            let before = before.tunnels[family].as_ref();
            let (Some(tunnel), Some(before)) = (new.tunnels[family].as_mut(), before) else {
                continue;
            };
            let (old, wanted) = (&before.device, tunnel.device.local);
            let mut interfaces = surroundings.interfaces.iter();
            let still_there = interfaces.any(|interface| {
                let mut addresses = interface.addresses.iter();
                interface.index == old.parent && addresses.any(|a| a.net.addr() == old.local)
            });
            if old.local == wanted || old.parent != tunnel.device.parent || !still_there {
                continue;
            }
            if announced(family, tunnel.published) {
                let known = since.filter(|(address, _)| *address == wanted);
                let (_, since) = *self.announced[family].insert(known.unwrap_or((wanted, now)));
                if now.saturating_duration_since(since) >= GRACE {
                    continue;
                }
            }
            tunnel.device.local = old.local;
        }
    }

    /// When the next address need not be kept any longer, if that is after `now`.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        let since = self.announced.values().flatten();
        let ends = since.map(|(_, since)| *since + GRACE);
        ends.filter(|end| *end > now).min()
    }
}
