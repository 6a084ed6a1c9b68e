//! The sockets at addresses of this node that Services ask for as external frontends, kept up to date by one Service at a time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::external_addresses;
use crate::objects::{EndpointSlice, ObjectName, Service};
use crate::surroundings::Socket;

/// The requests of one Service; true where an endpoint of the Service is just there.
type Requests = BTreeMap<Socket, bool>;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct RequestedSockets {
    /// The node's addresses.
    pub(super) addresses: Vec<IpAddr>,
    of_service: HashMap<ObjectName, Requests>,
    services: BTreeMap<Socket, Requesters>,
    /// Counts changes of the answer of [`RequestedSockets::all`].
    pub(super) revision: u64,
}

/// The Services that ask for one socket.
#[derive(Debug, Default)]
struct Requesters {
    all: BTreeSet<ObjectName>,
    /// How many of them have an endpoint just there.
    with_endpoint: usize,
}

impl RequestedSockets {
    /// Replaces what one Service asks for. `programmed`: the Service with its slices, if it is programmed at all.
    pub(super) fn update(
        &mut self,
        name: &ObjectName,
        programmed: Option<(&Service, &[Arc<EndpointSlice>])>,
    ) {
        let new = programmed.map(|(service, slices)| self.requests(service, slices));
        let new = new.unwrap_or_default();
        let old = self.of_service.remove(name).unwrap_or_default();
        if new == old {
            if !old.is_empty() {
                self.of_service.insert(name.clone(), old);
            }
            return;
        }
        self.revision += 1;
        for (socket, has_endpoint) in old {
            if let Some(requesters) = self.services.get_mut(&socket) {
                requesters.all.remove(name);
                requesters.with_endpoint -= usize::from(has_endpoint);
                if requesters.all.is_empty() {
                    self.services.remove(&socket);
                }
            }
        }
        for (socket, has_endpoint) in &new {
            let requesters = self.services.entry(*socket).or_default();
            requesters.all.insert(name.clone());
            requesters.with_endpoint += usize::from(*has_endpoint);
        }
        if !new.is_empty() {
            self.of_service.insert(name.clone(), new);
        }
    }

    fn requests(&self, service: &Service, slices: &[Arc<EndpointSlice>]) -> Requests {
        let mut requests = Requests::new();
        for address in external_addresses(service).filter(|at| self.addresses.contains(at)) {
            for port in &service.ports {
                let socket = SocketAddr::new(*address, port.port);
                requests.insert((port.protocol, socket), false);
            }
        }
        if requests.is_empty() {
            return requests;
        }
        for slice in slices {
            let endpoints = slice.endpoints.iter().map(|endpoint| endpoint.address);
            for address in endpoints.filter(|at| self.addresses.contains(at)) {
                for port in &slice.ports {
                    let socket = SocketAddr::new(address, port.port);
                    if let Some(has_endpoint) = requests.get_mut(&(port.protocol, socket)) {
                        *has_endpoint = true;
                    }
                }
            }
        }
        requests
    }

    /// All sockets, and whether an endpoint of a Service that asks for it is just there.
    pub(super) fn all(&self) -> BTreeMap<Socket, bool> {
        let all = self.services.iter();
        all.map(|(socket, requesters)| (*socket, requesters.with_endpoint > 0))
            .collect()
    }

    /// The Services that ask for a socket.
    pub(super) fn requesters(&self, socket: &Socket) -> impl Iterator<Item = &ObjectName> {
        let requesters = self.services.get(socket).into_iter();
        requesters.flat_map(|requesters| &requesters.all)
    }
}
