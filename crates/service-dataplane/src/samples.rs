//! Intents for tests, random ones too: few names, addresses and ports, so that Services conflict.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;
use service_model::{
    Affinity, Backend, Disposition, Family, Frontend, FrontendAddress, LocalInterface, Masquerade,
    NodeFacts, ObjectName, Protocol, ServiceIntent,
};

use crate::ledger::Update;

pub(crate) fn name(n: u8) -> ObjectName {
    ObjectName::new("default", format!("service-{n}"))
}

fn address(family: Family, network: u8, host: u8) -> IpAddr {
    match family {
        Family::Ip => Ipv4Addr::new(10, network, 0, host).into(),
        Family::Ip6 => Ipv6Addr::new(0xfd00, network.into(), 0, 0, 0, 0, 0, host.into()).into(),
    }
}

fn frontend_address() -> impl Strategy<Value = FrontendAddress> {
    let family = prop_oneof![Just(Family::Ip), Just(Family::Ip6)];
    // Some external addresses are cluster IPs as well.
    (family, 0..4u8, 1..4u8).prop_map(|(family, kind, host)| match kind {
        0 => FrontendAddress::NodePort(family),
        1 => FrontendAddress::External(address(family, 96, host)),
        2 => FrontendAddress::External(address(family, 97, host)),
        _ => FrontendAddress::ClusterIp(address(family, 96, host)),
    })
}

/// Up to 20 backends, so that both sides of [`crate::layout::Pick::exact_counts`] occur.
fn disposition(family: Family) -> impl Strategy<Value = Disposition> {
    let backend = (1..40u8, any::<bool>());
    btree_map(1..40u8, backend, 0..20).prop_map(move |backends| {
        let backends: Arc<[Backend]> = backends
            .into_iter()
            .map(|(host, (port, local))| Backend {
                address: address(family, 244, host),
                port: port.into(),
                local,
            })
            .collect();
        if backends.is_empty() {
            Disposition::Refuse
        } else {
            Disposition::Balance(backends)
        }
    })
}

/// With an ordinary policy, everyone allowed and no affinity.
pub(crate) fn frontend(
    address: FrontendAddress,
    protocol: Protocol,
    port: u16,
    disposition: Disposition,
) -> Frontend {
    let serving = match &disposition {
        Disposition::Balance(backends) => backends.clone(),
        Disposition::Refuse | Disposition::Drop => [].into(),
    };
    Frontend {
        address,
        protocol,
        port,
        service_port: port,
        disposition,
        serving,
        outside: None,
        masquerade: match address {
            FrontendAddress::ClusterIp(_) => Masquerade::OffCluster,
            FrontendAddress::External(_) | FrontendAddress::NodePort(_) => Masquerade::Always,
        },
        allowed_sources: None,
        affinity: None,
        counted: false,
    }
}

/// As plans do it: cluster IPs have no outsiders, and only external addresses have source ranges.
fn restricted(mut frontend: Frontend, outside: Option<Disposition>, guarded: bool) -> Frontend {
    let refused = frontend.disposition == Disposition::Refuse;
    if let FrontendAddress::External(address) = frontend.address
        && guarded
    {
        let range = match address {
            IpAddr::V4(_) => "172.16.0.0/12",
            IpAddr::V6(_) => "2001:db8::/32",
        };
        let ranges = [range.parse().unwrap(), IpNet::from(address)];
        frontend.allowed_sources = Some(Arc::from(ranges));
    }
    match (frontend.address, outside) {
        (FrontendAddress::ClusterIp(_), _) if refused && guarded => {
            frontend.disposition = Disposition::Drop
        }
        (FrontendAddress::External(_) | FrontendAddress::NodePort(_), Some(outside))
            if !refused =>
        {
            frontend.masquerade = Masquerade::OwnNode;
            frontend.outside = Some(match outside {
                Disposition::Refuse => Disposition::Drop,
                other => other,
            });
        }
        _ => {}
    }
    frontend
}

fn frontends() -> impl Strategy<Value = Vec<Frontend>> {
    let protocol = prop_oneof![
        Just(Protocol::Tcp),
        Just(Protocol::Udp),
        Just(Protocol::Sctp)
    ];
    // All frontends of a Service have one time-out.
    let claims = btree_set((frontend_address(), protocol, 80..83u16), 0..4);
    (claims, 1..3u32).prop_flat_map(|(claims, minutes)| {
        claims
            .into_iter()
            .map(move |(at, protocol, port)| {
                let outside = prop::option::of(disposition(at.family()));
                // Few groups, so that they collide.
                let affinity = prop::option::of(1..4u32);
                let values = (disposition(at.family()), outside, affinity, any::<bool>());
                values.prop_map(move |(disposition, outside, affinity, guarded)| {
                    let mut frontend = frontend(at, protocol, port, disposition);
                    frontend.affinity = affinity.map(|group| Affinity {
                        seconds: minutes * 60,
                        group,
                        map: 0,
                    });
                    frontend.counted = guarded && port == 80;
                    restricted(frontend, outside, guarded)
                })
            })
            .collect::<Vec<_>>()
    })
}

/// The intent of Service `n` with these frontends and nothing else.
pub(crate) fn intent(n: u8, created: Option<i64>, frontends: Vec<Frontend>) -> ServiceIntent {
    ServiceIntent {
        service: name(n),
        created,
        frontends,
        load_balancer_ips: Vec::new(),
        relays: Default::default(),
        reset_removed: false,
        health_check: None,
    }
}

/// The update that removes Service `n`.
pub(crate) fn removal(n: u8) -> Update {
    Update {
        service: name(n),
        intent: None,
    }
}

/// A backend at port 8080 of another node.
pub(crate) fn backend(network: u8, host: u8) -> Backend {
    Backend {
        address: address(Family::Ip, network, host),
        port: 8080,
        local: false,
    }
}

pub(crate) fn update() -> impl Strategy<Value = Update> {
    let wanted = prop::option::weighted(0.8, (frontends(), prop::option::of(0..3i64)));
    (0..5u8, wanted).prop_map(|(n, wanted)| match wanted {
        Some((mut frontends, created)) => {
            for affinity in frontends.iter_mut().filter_map(|f| f.affinity.as_mut()) {
                affinity.map = n.into();
            }
            intent(n, created, frontends).into()
        }
        None => removal(n),
    })
}

/// Batches as the control loop makes them: at most one update for each Service.
pub(crate) fn batches() -> impl Strategy<Value = Vec<Vec<Update>>> {
    let batch = vec(update(), 0..4).prop_map(|mut batch: Vec<Update>| {
        batch.sort_by(|a, b| a.service.cmp(&b.service));
        batch.dedup_by(|a, b| a.service == b.service);
        batch
    });
    vec(batch, 0..8)
}

pub(crate) fn facts() -> NodeFacts {
    NodeFacts {
        node_name: "node-a".into(),
        zone: None,
        own_addresses: vec![],
        node_addresses: vec![address(Family::Ip, 1, 1), address(Family::Ip6, 1, 1)],
        local_sources: ["10.244.0.0/16", "fd00:244::/32"]
            .map(|net| net.parse().unwrap())
            .to_vec(),
        local_interface: None,
        masquerade_all: false,
        service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
        api_servers: Vec::new(),
        allowed_external_ips: None,
        pod_ranges: Vec::new(),
    }
}

pub(crate) fn other_facts() -> NodeFacts {
    NodeFacts {
        node_addresses: vec![address(Family::Ip, 1, 2)],
        local_sources: vec![],
        local_interface: Some(LocalInterface::Prefix("veth".into())),
        service_cidrs: vec![],
        masquerade_all: true,
        ..facts()
    }
}
