//! What a plan depends on besides its Service and the node facts: of each change here, only the Services are planned again that
//! ask for what has changed, however many others there are.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::node_ranges::NodeRanges;
use crate::objects::Protocol;
use crate::suspects::Suspects;

/// A protocol, address and port at which a process may listen and for which a Service may ask.
pub type Socket = (Protocol, SocketAddr);

/// See the module.
#[derive(Debug, Default)]
pub struct Surroundings {
    /// Nodes that seem to be down.
    pub(crate) suspects: Suspects,
    /// What belongs to which Node.
    pub(crate) nodes: NodeRanges,
    /// Where processes of this node listen at addresses of its Node object: external frontends there are ignored.
    pub(crate) listeners: Arc<BTreeSet<Socket>>,
}

impl Surroundings {
    /// Whether an address belongs to a Node of another name than this.
    pub(crate) fn belongs_to_other_node(&self, address: IpAddr, own: &str) -> bool {
        self.nodes.belongs_to_other(address, own)
    }

    /// Whether a process of this node listens there.
    pub(crate) fn is_listener(&self, socket: &Socket) -> bool {
        self.listeners.contains(socket)
    }
}
