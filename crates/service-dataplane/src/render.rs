//! One frontend as elements of the table's sets.
//!
//! A pure function: what a frontend needs does not depend on what was there before, so the same cluster gives
//! the same table whatever the order of events. Slots follow the order of the backends (address, then port).

use nft::{Bytes, Data, Element, Family, Protocol, Verdict};
use service_model::{Disposition, Frontend, Masquerade, Place};

use crate::layout::{EXACT_COUNTS, Pick, SetId};

/// The elements of one frontend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rendered {
    /// Keyed by the frontend itself: no other frontend has them. Sorted.
    pub own: Vec<(SetId, Element)>,
    /// Shared with other frontends: present as long as one of them needs it. Sorted, no two alike.
    pub shared: Vec<(SetId, Bytes)>,
    /// The `pick` chain, with its map, that it needs beyond the constant ones.
    pub large: Option<(Pick, u32)>,
}

/// The family a place is in.
pub fn family(place: Place) -> Family {
    match place.family() {
        service_model::AddressFamily::V4 => Family::Ip,
        service_model::AddressFamily::V6 => Family::Ip6,
    }
}

fn protocol(protocol: service_model::Protocol) -> Protocol {
    match protocol {
        service_model::Protocol::Tcp => Protocol::Tcp,
        service_model::Protocol::Udp => Protocol::Udp,
        service_model::Protocol::Sctp => Protocol::Sctp,
    }
}

/// Which chains and sets serve a place.
fn pick(place: Place) -> Pick {
    match place {
        Place::ClusterIp(_) => Pick::Frontend,
        Place::NodePort(_) => Pick::NodePort,
    }
}

/// Renders `frontend`.
pub fn render(frontend: &Frontend) -> Rendered {
    let pick = pick(frontend.place);
    let key = match frontend.place {
        Place::ClusterIp(address) => Bytes::new().address(address),
        Place::NodePort(_) => Bytes::new(),
    }
    .protocol(protocol(frontend.protocol))
    .port(frontend.port);

    let mut rendered = Rendered::default();
    match &frontend.disposition {
        Disposition::Refuse => rendered
            .own
            .push((pick.no_endpoints(), Element::member(key))),
        Disposition::Balance(backends) => {
            let count = backends.len() as u32;
            for (slot, backend) in (0..).zip(backends.iter()) {
                let value = Bytes::new().address(backend.address).port(backend.port);
                let element = Element::value(key.slot(slot), value);
                if slot == 0 && count > EXACT_COUNTS {
                    rendered.own.push((pick.backends(1), element.clone()));
                }
                rendered.own.push((pick.backends(count), element));
                if backend.local {
                    let pair = Bytes::new()
                        .address(backend.address)
                        .address(backend.address);
                    rendered.shared.push((SetId::Hairpin, pair));
                }
            }
            let mut member = Element::member(key);
            if count > EXACT_COUNTS {
                member.data = Data::Verdict(Verdict::Goto(pick.chain_name(count)));
                rendered.large = Some((pick, count));
            }
            rendered.own.push((pick.sized(count), member));
        }
    }
    match (frontend.place, frontend.masquerade) {
        (Place::ClusterIp(address), _) => {
            rendered
                .shared
                .push((SetId::ClusterIps, Bytes::new().address(address)));
        }
        (Place::NodePort(_), Masquerade::Always) => {
            rendered
                .own
                .push((SetId::MasqueradeNodePorts, Element::member(key)));
        }
        (Place::NodePort(_), Masquerade::OffCluster) => {}
    }
    rendered.own.sort_unstable();
    rendered.shared.sort_unstable();
    rendered.shared.dedup();
    rendered
}
