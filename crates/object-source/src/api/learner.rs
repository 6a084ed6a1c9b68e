//! Learns the addresses of API servers from the cluster: the endpoints of Service `default/kubernetes`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use service_model::{EndpointSlice, ObjectEvent, ObjectName, Protocol};

use super::remembered::plausible;
use super::servers::Servers;
use crate::SourceEvent;

/// Passes the endpoints of `default/kubernetes` to [`Servers`] as EndpointSlices change.
pub(super) struct Learner {
    slices: BTreeMap<ObjectName, Vec<SocketAddr>>,
    servers: Arc<Servers>,
}

impl Learner {
    pub(super) fn new(servers: Arc<Servers>) -> Learner {
        Learner {
            slices: BTreeMap::new(),
            servers,
        }
    }

    pub(super) fn event(&mut self, event: &SourceEvent) {
        let SourceEvent::EndpointSlice(event) = event else {
            return;
        };
        match event {
            ObjectEvent::Reset { objects, .. } => {
                self.slices.clear();
                objects.iter().for_each(|slice| self.apply(slice));
            }
            ObjectEvent::Apply(slice) if is_of_api_server(slice) => self.apply(slice),
            ObjectEvent::Delete(name) if self.slices.contains_key(name) => {
                self.slices.remove(name);
            }
            ObjectEvent::Apply(_) | ObjectEvent::Delete(_) => return,
        }
        let all = plausible(self.slices.values().flatten().copied());
        // A Service without endpoints does not say where the API server is: keep the known addresses.
        if !all.is_empty() {
            self.servers.learn(&all);
        }
    }

    fn apply(&mut self, slice: &EndpointSlice) {
        if is_of_api_server(slice) {
            let ports = slice
                .ports
                .iter()
                .filter(|port| port.protocol == Protocol::Tcp);
            let ready = slice
                .endpoints
                .iter()
                .filter(|endpoint| endpoint.conditions.ready);
            let addresses = ports.flat_map(|port| {
                let ready = ready.clone();
                ready.map(|endpoint| SocketAddr::new(endpoint.address, port.port))
            });
            let addresses = addresses.collect();
            self.slices.insert(slice.name.clone(), addresses);
        }
    }
}

fn is_of_api_server(slice: &EndpointSlice) -> bool {
    (&*slice.service.namespace, &*slice.service.name) == ("default", "kubernetes")
}
