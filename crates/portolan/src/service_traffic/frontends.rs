//! Which Service a destination belongs to.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use service_dataplane::Claim;
use service_model::{Family, FrontendAddress, ObjectName, Protocol};

/// Services by frontend.
///
/// Of two Services that request a frontend, the one that was received first has it here. The tables decide by age, so for a
/// contested frontend the other one may be meant until it changes.
#[derive(Debug, Default)]
pub(super) struct Frontends {
    /// By frontend, those that request it, in the order in which they were received.
    requested: HashMap<Claim, Vec<ObjectName>>,
    of_service: HashMap<ObjectName, Vec<Claim>>,
    annotated: HashSet<ObjectName>,
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

    /// Replaces the frontends of a Service; none for a Service that is gone.
    pub(super) fn set(&mut self, service: ObjectName, frontends: Vec<(Claim, bool)>) {
        let claims: Vec<Claim> = frontends.iter().map(|(claim, _)| *claim).collect();
        let before = self.of_service.remove(&service).unwrap_or_default();
        for claim in before.iter().filter(|claim| !claims.contains(claim)) {
            if let Some(services) = self.requested.get_mut(claim) {
                services.retain(|other| *other != service);
                if services.is_empty() {
                    self.requested.remove(claim);
                }
            }
        }
        for claim in &claims {
            let services = self.requested.entry(*claim).or_default();
            if !services.contains(&service) {
                services.push(service.clone());
            }
        }
        match frontends.iter().any(|(_, is_annotated)| *is_annotated) {
            true => self.annotated.insert(service.clone()),
            false => self.annotated.remove(&service),
        };
        if !claims.is_empty() {
            self.of_service.insert(service, claims);
        }
    }

    /// The Service that a destination is a frontend of.
    pub(super) fn holder(&self, protocol: Protocol, to: SocketAddr) -> Option<&ObjectName> {
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

    /// Whether a Service exists.
    pub(super) fn has(&self, service: &ObjectName) -> bool {
        self.of_service.contains_key(service)
    }

    /// Whether a Service has the annotation that asks for metrics.
    pub(super) fn is_annotated(&self, service: &ObjectName) -> bool {
        self.annotated.contains(service)
    }
}
