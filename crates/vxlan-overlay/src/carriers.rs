//! Devices that carry the outer packets to peers instead of the underlay, such as encrypting ones.
//!
//! The overlay knows no keys: whoever owns these devices says by which one a peer is reached, how many bytes they add, and
//! by which of them packets may arrive.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use net_types::PerFamily;

/// Where the outer packets for a hardware address go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Outer {
    /// The node.
    pub node: IpAddr,
    /// The interface that the route is looked up for; `None`: the kernel's routes decide.
    pub via: Option<u32>,
}

impl From<IpAddr> for Outer {
    fn from(node: IpAddr) -> Self {
        Outer { node, via: None }
    }
}

/// What carries outer packets. The default: the underlay alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Carriers {
    /// Bytes that the devices add, by the family of what they send; zero without such devices.
    pub overhead: PerFamily<u32>,
    /// Interfaces, by names of peers.
    pub by_peer: BTreeMap<Arc<str>, u32>,
    /// For all other peers; `None`: the underlay.
    pub otherwise: Option<u32>,
    /// Names of devices that outer packets may arrive by.
    pub inputs: Vec<String>,
    /// Outer packets may arrive by no other interface, and packets to other nodes' pods leave by the tunnel device alone.
    pub sealed: bool,
}

impl Carriers {
    /// The interface for a peer.
    pub(crate) fn of(&self, peer: &str) -> Option<u32> {
        self.by_peer.get(peer).copied().or(self.otherwise)
    }

    /// Whether there are such devices.
    pub(crate) fn are_used(&self) -> bool {
        !self.inputs.is_empty()
    }

    /// The interfaces that outer packets may arrive by, from those of the underlay. None: any.
    pub(crate) fn inputs(&self, underlay: Vec<String>) -> Vec<String> {
        match (self.sealed, underlay.is_empty()) {
            (true, _) => self.inputs.clone(),
            (false, true) => underlay,
            (false, false) => [underlay, self.inputs.clone()].concat(),
        }
    }
}
