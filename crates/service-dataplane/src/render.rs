//! One frontend as elements of the table's sets.
//!
//! A pure function: what a frontend needs does not depend on what was there before, so the same cluster gives
//! the same table whatever the order of events. Which endpoint has which slot is up to `slots`.

use nft::{Bytes, Data, Element, Verdict};
use service_model::{Affinity, Backend, Disposition, Frontend, FrontendAddress, Masquerade};

use crate::claim::Claim;
use crate::layout::{DynamicPart, Pick, SetId};
use crate::slots::in_slots;

/// The elements of one frontend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rendered {
    /// Keyed by the frontend itself: no other frontend has them. Sorted.
    pub own: Vec<(SetId, Element)>,
    /// Shared with other frontends: present as long as one frontend needs the element. Sorted, no two alike.
    pub shared: Vec<(SetId, Bytes)>,
    /// The dynamic parts of the table that it needs. No two alike.
    pub parts: Vec<DynamicPart>,
}

/// Renders `frontend`.
pub fn render(frontend: &Frontend) -> Rendered {
    let address = bytes(frontend.address);
    let key = key(&frontend.into());
    let is_node_port = matches!(frontend.address, FrontendAddress::NodePort(_));
    let by_address = |address: SetId, node_port: SetId| match is_node_port {
        true => node_port,
        false => address,
    };
    let (all, local) = match is_node_port {
        true => (Pick::NodePort, Pick::LocalNodePort),
        false => (Pick::Frontend, Pick::LocalFrontend),
    };

    let mut rendered = Rendered::default();
    let mut member = |set: SetId| rendered.own.push((set, Element::member(key)));
    match (&frontend.disposition, frontend.masquerade) {
        (Disposition::Refuse, _) => {
            member(by_address(SetId::NoEndpoints, SetId::NodePortsNoEndpoints))
        }
        // Only policy Local drops, and only on cluster IPs it is for everyone.
        (Disposition::Drop, _) => member(SetId::NoLocalEndpoints),
        (Disposition::Balance(_), _) => {}
    }
    if frontend.outside.is_some() {
        member(by_address(SetId::LocalPolicy, SetId::LocalPolicyNodePorts));
    }
    if frontend.masquerade == Masquerade::Always {
        member(by_address(
            SetId::MasqueradeFrontends,
            SetId::MasqueradeNodePorts,
        ));
    }
    if frontend.counted {
        member(counted(&frontend.into()).0);
        rendered.parts.push(DynamicPart::Counting);
    }
    if let Some(ranges) = &frontend.allowed_sources {
        member(SetId::Guarded);
        rendered.own.extend(ranges.iter().map(|range| {
            let (first, last) = (key.address(range.network()), key.address(range.broadcast()));
            (SetId::AllowedSources, Element::range(first, last))
        }));
    }
    if let Disposition::Balance(backends) = &frontend.disposition {
        rendered.balance(all, key, backends);
        if let Some(affinity) = frontend.affinity {
            let group = Bytes::new().group(affinity.group);
            let set = by_address(SetId::Sticky, SetId::StickyNodePorts);
            rendered.own.push((set, Element::value(key, group)));
            let Affinity {
                seconds,
                group,
                map,
            } = affinity;
            rendered.parts.extend([
                DynamicPart::AffinityMap(map),
                DynamicPart::AffinityWriter(map, seconds),
                DynamicPart::AffinityGroup {
                    group,
                    map,
                    seconds,
                },
            ]);
        }
    }
    if let Some(Disposition::Balance(backends)) = &frontend.outside {
        rendered.balance(local, key, backends);
    }
    match frontend.address {
        FrontendAddress::ClusterIp(_) => rendered.shared.push((SetId::ClusterIps, address)),
        FrontendAddress::External(_) => rendered.shared.push((SetId::ExternalIps, address)),
        FrontendAddress::NodePort(_) => {}
    }
    rendered.own.sort_unstable();
    rendered.shared.sort_unstable();
    rendered.shared.dedup();
    rendered
}

/// The set that counts new connections to a frontend, where they are counted, and its element there.
pub fn counted(claim: &Claim) -> (SetId, Bytes) {
    let set = match claim.address {
        FrontendAddress::ClusterIp(_) | FrontendAddress::External(_) => SetId::Counted,
        FrontendAddress::NodePort(_) => SetId::CountedNodePorts,
    };
    (set, key(claim))
}

fn key(claim: &Claim) -> Bytes {
    let address = bytes(claim.address);
    address.protocol(claim.protocol).port(claim.port)
}

fn bytes(address: FrontendAddress) -> Bytes {
    let address = address.ip();
    address.map_or_else(Bytes::new, |address| Bytes::new().address(address))
}

impl Rendered {
    fn balance(&mut self, pick: Pick, key: Bytes, backends: &[Backend]) {
        let count = backends.len() as u32;
        for (slot, backend) in (0..).zip(in_slots(backends).iter()) {
            let value = Bytes::new().address(backend.address).port(backend.port);
            let element = Element::value(key.slot(slot), value);
            if slot == 0 && count > pick.exact_counts() {
                self.own.push((pick.backends(1), element.clone()));
            }
            self.own.push((pick.backends(count), element));
            if backend.local {
                let pair = Bytes::new()
                    .address(backend.address)
                    .address(backend.address);
                self.shared.push((SetId::Hairpin, pair));
            }
        }
        let mut member = Element::member(key);
        if count > pick.exact_counts() {
            member.data = Data::Verdict(Verdict::Goto(pick.chain_name(count)));
            self.parts.push(DynamicPart::Count(pick, count));
        }
        self.own.push((pick.sized(count), member));
    }
}
