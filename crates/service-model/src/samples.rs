//! Objects and intents as short texts, for the tests of plan and index.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::facts::NodeFacts;
use crate::identities::Identities;
use crate::intent::{Disposition, FrontendAddress, Masquerade, ServiceIntent};
use crate::objects::{
    Conditions, Endpoint, EndpointSlice, Family, ObjectName, Protocol, Service, ServicePort,
    SlicePort, TriggerTime,
};

pub(crate) fn name(text: &str) -> ObjectName {
    let (namespace, name) = text.split_once('/').unwrap();
    ObjectName::new(namespace, name)
}

/// `shop/web`, `10.96.0.1 fd00::1`, `http/80/TCP/30080 dns/53/UDP`
pub(crate) fn service(text: &str, cluster_ips: &str, ports: &str) -> Service {
    let port = |text: &str| {
        let mut parts = text.split('/');
        ServicePort {
            name: parts.next().unwrap().into(),
            port: parts.next().unwrap().parse().unwrap(),
            protocol: protocol(parts.next().unwrap()),
            node_port: parts.next().map(|number| number.parse().unwrap()),
        }
    };
    Service {
        created: Some(7),
        cluster_ips: cluster_ips
            .split_whitespace()
            .map(|text| text.parse().unwrap())
            .collect(),
        ports: ports.split_whitespace().map(port).collect(),
        ..Service::named(name(text))
    }
}

/// `shop/web-1` of Service `web`, `http/8080/TCP`, and endpoints: `10.1.0.5@node-1` is ready, `10.1.0.6:st`
/// is serving and terminating only. The first address says the family.
pub(crate) fn slice(text: &str, service: &str, ports: &str, endpoints: &str) -> EndpointSlice {
    let name = name(text);
    let port = |text: &str| {
        let parts: Vec<&str> = text.split('/').collect();
        SlicePort {
            name: parts[0].into(),
            port: parts[1].parse().unwrap(),
            protocol: protocol(parts[2]),
        }
    };
    let endpoints: Vec<Endpoint> = endpoints.split_whitespace().map(endpoint).collect();
    EndpointSlice {
        service: ObjectName {
            namespace: name.namespace.clone(),
            name: service.into(),
        },
        name,
        family: endpoints
            .first()
            .map_or(Family::Ip, |e| Family::of(e.address)),
        ports: ports.split_whitespace().map(port).collect(),
        endpoints,
        identities: Identities::default(),
        excluded: false,
        trigger: TriggerTime::default(),
    }
}

fn endpoint(text: &str) -> Endpoint {
    let (text, node) = match text.split_once('@') {
        Some((text, node)) => (text, Some(node.into())),
        None => (text, None),
    };
    let (address, letters) = match text.parse::<IpAddr>() {
        Ok(address) => (address, "rs"),
        Err(_) => {
            let (address, letters) = text.rsplit_once(':').unwrap();
            (address.parse().unwrap(), letters)
        }
    };
    let has = |letter| letters.contains(letter);
    Endpoint {
        address,
        node,
        conditions: Conditions {
            ready: has('r'),
            serving: has('s'),
            terminating: has('t'),
        },
        hints: None,
    }
}

fn protocol(text: &str) -> Protocol {
    match text {
        "TCP" => Protocol::Tcp,
        "UDP" => Protocol::Udp,
        "SCTP" => Protocol::Sctp,
        other => panic!("{other}"),
    }
}

/// Node `node-1` with an address of each family.
pub(crate) fn facts() -> NodeFacts {
    let own: Vec<IpAddr> = ["192.0.2.1", "2001:db8::1"]
        .map(|text| text.parse().unwrap())
        .into();
    NodeFacts {
        node_name: "node-1".into(),
        zone: None,
        own_addresses: own.clone(),
        node_addresses: own,
        local_sources: vec!["10.1.0.0/24".parse().unwrap()],
        local_interface: None,
        masquerade_all: false,
        service_cidrs: Vec::new(),
        api_servers: Vec::new(),
        allowed_external_ips: None,
        pod_ranges: Vec::new(),
    }
}

/// One line for each frontend: `10.96.0.1 80/TCP off-cluster: 10.1.0.5:8080* 10.1.0.6:8080`, `*` for local; what is
/// out of the ordinary follows: ` outside: ...`, ` from: 192.0.2.0/24`, ` affinity: 10`.
pub(crate) fn lines(intent: &ServiceIntent) -> Vec<String> {
    let outcome = |disposition: &Disposition| match disposition {
        Disposition::Refuse => "refuse".to_owned(),
        Disposition::Drop => "drop".to_owned(),
        Disposition::Balance(backends) => {
            let star = |local| if local { "*" } else { "" };
            let backends = backends
                .iter()
                .map(|b| format!("{}:{}{}", b.address, b.port, star(b.local)));
            backends.collect::<Vec<_>>().join(" ")
        }
    };
    let line = |frontend: &crate::intent::Frontend| {
        let address = match frontend.address {
            FrontendAddress::ClusterIp(address) => address.to_string(),
            FrontendAddress::External(address) => format!("external {address}"),
            FrontendAddress::NodePort(family) => format!("node-{family}"),
        };
        let masquerade = match frontend.masquerade {
            Masquerade::OffCluster => "off-cluster",
            Masquerade::Always => "always",
            Masquerade::OwnNode => "own-node",
        };
        let mut line = format!(
            "{address} {}/{} {masquerade}: {}",
            frontend.port,
            frontend.protocol,
            outcome(&frontend.disposition)
        );
        if let Some(outside) = &frontend.outside {
            line += &format!(" outside: {}", outcome(outside));
        }
        if let Some(ranges) = &frontend.allowed_sources {
            let ranges: Vec<String> = ranges.iter().map(IpNet::to_string).collect();
            line += &format!(" from: {}", ranges.join(","));
        }
        if let Some(affinity) = frontend.affinity {
            line += &format!(" affinity: {}", affinity.seconds);
        }
        line
    };
    intent.frontends.iter().map(line).collect()
}
