//! Nodes and endpoints that seem to be down while EndpointSlices still call them ready.
//!
//! Whoever measures publishes the suspects as a whole ([`crate::Index::set_suspects`]); [`mod@crate::select`] decides
//! what follows.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// The names of suspect nodes, and single endpoints. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suspects {
    nodes: Arc<BTreeSet<Arc<str>>>,
    endpoints: Arc<BTreeSet<SocketAddr>>,
    for_all: bool,
}

impl Suspects {
    /// Exactly these nodes.
    pub fn new(nodes: impl IntoIterator<Item = Arc<str>>) -> Self {
        Suspects {
            nodes: Arc::new(nodes.into_iter().collect()),
            ..Suspects::default()
        }
    }

    /// The same nodes, and these endpoints of TCP, which count for all Services or for those alone that ask for it
    /// ([`crate::ServiceOptions::failover`]).
    pub fn with_endpoints(
        self,
        endpoints: impl IntoIterator<Item = SocketAddr>,
        for_all: bool,
    ) -> Self {
        Suspects {
            endpoints: Arc::new(endpoints.into_iter().collect()),
            for_all,
            ..self
        }
    }

    /// Whether the node of this name is a suspect.
    pub fn has(&self, node: &str) -> bool {
        self.nodes.contains(node)
    }

    /// Whether this endpoint is a suspect to a Service that asks for it or not.
    pub fn has_endpoint(&self, endpoint: SocketAddr, is_asked: bool) -> bool {
        (is_asked || self.for_all) && self.endpoints.contains(&endpoint)
    }

    /// Whether each of these is one of the others.
    pub fn are_among(&self, others: &Suspects) -> bool {
        self.nodes.is_subset(&others.nodes) && self.endpoints.is_subset(&others.endpoints)
    }

    /// What is a suspect in only one of both: names of nodes, and addresses of endpoints.
    pub(crate) fn difference<'a>(
        &'a self,
        other: &'a Suspects,
    ) -> (BTreeSet<&'a str>, BTreeSet<IpAddr>) {
        let names = self.nodes.symmetric_difference(&other.nodes);
        let endpoints = self.endpoints.symmetric_difference(&other.endpoints);
        let addresses = endpoints.map(|endpoint| endpoint.ip());
        (names.map(|name| &**name).collect(), addresses.collect())
    }
}
