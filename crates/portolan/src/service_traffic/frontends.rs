//! Which Service, and which of its ports, a destination belongs to.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use service_dataplane::Claim;
use service_model::{Family, Frontend, FrontendAddress, ObjectName, Protocol};

/// A port of a Service. `Display` is `80/TCP`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Port {
    pub(super) number: u16,
    pub(super) protocol: Protocol,
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.protocol)
    }
}

/// What a Service requests on this node; nothing for a Service that is gone.
#[derive(Clone, Debug, Default)]
pub(super) struct Request {
    /// Frontends, each with the port of the Service that it leads to.
    pub(super) frontends: Vec<(Claim, Port)>,
    /// Endpoints of a Service with the annotation that asks for metrics.
    pub(super) endpoints: Option<BTreeSet<SocketAddr>>,
}

impl Request {
    /// Of the frontends of a planned Service.
    pub(super) fn of(frontends: &[Frontend]) -> Request {
        let ports = frontends.iter().map(|frontend| {
            let port = Port {
                number: frontend.service_port,
                protocol: frontend.protocol,
            };
            (Claim::from(frontend), port)
        });
        // Each port has one frontend on a cluster IP, and shares its endpoints with all others.
        let is_first = |f: &&Frontend| matches!(f.address, FrontendAddress::ClusterIp(_));
        let first = frontends.iter().filter(is_first);
        let endpoints = first.flat_map(|frontend| &*frontend.serving);
        let endpoints = endpoints.map(|backend| SocketAddr::new(backend.address, backend.port));
        let is_annotated = frontends.iter().any(|frontend| frontend.counted);
        Request {
            frontends: ports.collect(),
            endpoints: is_annotated.then(|| endpoints.collect()),
        }
    }
}

/// The Service that a destination leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) service: ObjectName,
    pub(super) port: Port,
    /// Has the annotation that asks for metrics.
    pub(super) is_annotated: bool,
}

/// Services by frontend.
///
/// Of two Services that request a frontend, the one that was received first has it here. The tables decide by age, so for a
/// contested frontend the other one may be meant until it changes.
#[derive(Debug, Default)]
pub(super) struct Frontends {
    /// By frontend, those that request it, in the order in which they were received.
    requested: HashMap<Claim, Vec<Holder>>,
    of_service: HashMap<ObjectName, Request>,
    node_addresses: Option<HashSet<IpAddr>>,
}

impl Frontends {
    /// Whether the control loop has made a commit, so that all that is known by then is in here.
    pub(super) fn are_known(&self) -> bool {
        self.node_addresses.is_some()
    }

    /// Sets the addresses of this node, where node ports are served.
    pub(super) fn set_node_addresses<'a>(
        &mut self,
        addresses: impl IntoIterator<Item = &'a IpAddr>,
    ) {
        self.node_addresses = Some(addresses.into_iter().copied().collect());
    }

    /// Replaces what a Service requests.
    pub(super) fn set(&mut self, service: ObjectName, request: Request) {
        let before = self.of_service.remove(&service).unwrap_or_default();
        for (claim, _) in &before.frontends {
            let is_kept = request.frontends.iter().any(|(other, _)| other == claim);
            if is_kept {
                continue;
            }
            if let Some(holders) = self.requested.get_mut(claim) {
                holders.retain(|holder| holder.service != service);
                if holders.is_empty() {
                    self.requested.remove(claim);
                }
            }
        }
        for (claim, port) in &request.frontends {
            let holders = self.requested.entry(*claim).or_default();
            let known = holders.iter_mut().find(|holder| holder.service == service);
            let holder = Holder {
                service: service.clone(),
                port: *port,
                is_annotated: request.endpoints.is_some(),
            };
            match known {
                Some(known) => *known = holder,
                None => holders.push(holder),
            }
        }
        if !request.frontends.is_empty() {
            self.of_service.insert(service, request);
        }
    }

    /// The Service that a destination is a frontend of.
    pub(super) fn holder(&self, protocol: Protocol, to: SocketAddr) -> Option<&Holder> {
        let nodes = self.node_addresses.as_ref();
        let is_node = nodes.is_some_and(|addresses| addresses.contains(&to.ip()));
        let node_port = is_node.then(|| FrontendAddress::NodePort(Family::of(to.ip())));
        let addresses = [
            FrontendAddress::ClusterIp(to.ip()),
            FrontendAddress::External(to.ip()),
        ];
        addresses.into_iter().chain(node_port).find_map(|address| {
            let claim = Claim {
                address,
                protocol,
                port: to.port(),
            };
            self.requested.get(&claim)?.first()
        })
    }

    /// What a Service requests; `None` for one that does not exist.
    pub(super) fn request(&self, service: &ObjectName) -> Option<&Request> {
        self.of_service.get(service)
    }

    /// The endpoints of a Service with the annotation that asks for metrics.
    pub(super) fn endpoints(&self, service: &ObjectName) -> Option<&BTreeSet<SocketAddr>> {
        self.request(service)?.endpoints.as_ref()
    }
}
