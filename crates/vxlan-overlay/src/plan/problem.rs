//! Why something is left out of a plan, in words for the log and `/readyz`.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use net_types::Family;

use super::{MAX_ADDRESSES, MIN_MTU_V6};

/// A reason why something is skipped.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Problem {
    /// The Node object of this node does not exist.
    #[error("the Node object of this node does not exist yet")]
    NoOwnNode,
    /// This node has no pod CIDR.
    #[error(
        "this node has no pod CIDR (spec.podCIDRs): does the controller manager run with --allocate-node-cidrs?"
    )]
    NoPodCidr,
    /// No interface leads to the other nodes.
    #[error(
        "no interface with an {name} address leads to the other nodes: set --iface, or add a default route; {name} pods are not carried",
        name = .0.api_name()
    )]
    NoExternal(Family),
    /// Packets of this family do not fit through the interface.
    #[error(
        "MTU {mtu} of {interface} leaves {inner} bytes for IPv6 pods, which need {MIN_MTU_V6}: IPv6 pods are not carried; raise it to {needed}"
    )]
    SmallMtu {
        /// The interface to the other nodes.
        interface: String,
        /// Its MTU, or the configured one.
        mtu: u32,
        /// What the tunnel device would have.
        inner: u32,
        /// The least that will do.
        needed: u32,
    },
    /// A peer with invalid annotations.
    #[error("node {node}: invalid annotations: {reason}")]
    Unusable {
        /// Its name.
        node: Arc<str>,
        /// What is wrong.
        reason: &'static str,
    },
    /// A peer with annotations, but none for a family of its pods.
    #[error(
        "node {node} publishes no public IP and hardware address of {family}: its {family} pods cannot be reached"
    )]
    NoVtep {
        /// Its name.
        node: Arc<str>,
        /// The family, as the Kubernetes API names it.
        family: &'static str,
    },
    /// The pod CIDRs of two nodes overlap.
    #[error(
        "nodes {kept} and {left_out} both have pod CIDR {range}: using {kept}, ignoring {left_out}"
    )]
    DuplicateRange {
        /// The pod CIDR of the ignored node.
        range: IpNet,
        /// The node that is used.
        kept: Arc<str>,
        /// The node that is ignored.
        left_out: Arc<str>,
    },
    /// Two nodes claim the same address or hardware address, and packets can lead to one of them only.
    #[error("nodes {kept} and {left_out} both claim {what}: using {kept}, ignoring {left_out}")]
    DuplicateEnd {
        /// The address.
        what: String,
        /// The node that is used.
        kept: Arc<str>,
        /// The node that is ignored.
        left_out: Arc<str>,
    },
    /// A Node with more addresses than count.
    #[error(
        "node {node} has more than {MAX_ADDRESSES} {family} addresses: ignoring {dropped} of them"
    )]
    TooManyAddresses {
        /// Its name.
        node: Arc<str>,
        /// Their family.
        family: Family,
        /// How many are ignored.
        dropped: usize,
    },
    /// Routes of other programs come before the overlay's.
    #[error(
        "the route {route} of another program comes before the overlay's to pods of a peer, and {others} more do: delete it, or give it a metric of 1024 or more"
    )]
    Overridden {
        /// The first of them.
        route: String,
        /// How many more there are.
        others: usize,
    },
    /// A pod CIDR that holds the address of a node.
    #[error(
        "pod CIDR {range} of node {node} holds {address}, the address of a node: ignoring node {left_out}"
    )]
    HoldsAddress {
        /// The node of the range.
        node: Arc<str>,
        /// The range.
        range: IpNet,
        /// The address.
        address: IpAddr,
        /// The node that is ignored.
        left_out: Arc<str>,
    },
    /// A pod CIDR outside the cluster's network.
    #[error("node {node}: pod CIDR {range} is outside the cluster's network; ignoring the node")]
    OutsideNetwork {
        /// Its name.
        node: Arc<str>,
        /// The range.
        range: IpNet,
    },
}

impl Problem {
    /// Whether pods cannot be reached because of it.
    pub fn cuts_off(&self) -> bool {
        !matches!(self, Problem::TooManyAddresses { .. })
    }

    /// The two nodes of a conflict, which the state of their Nodes may settle otherwise.
    pub fn contenders(&self) -> Option<[&Arc<str>; 2]> {
        match self {
            Problem::DuplicateRange { kept, left_out, .. }
            | Problem::DuplicateEnd { kept, left_out, .. } => Some([kept, left_out]),
            Problem::HoldsAddress { node, left_out, .. } => Some([node, left_out]),
            _ => None,
        }
    }

    /// Whether it is a conflict of this node with another one, or this node's own pod CIDR that is refused.
    pub fn is_conflict_of(&self, own: &str) -> bool {
        match self {
            Problem::DuplicateRange { kept, left_out, .. }
            | Problem::DuplicateEnd { kept, left_out, .. } => **kept == *own || **left_out == *own,
            Problem::HoldsAddress { node, left_out, .. } => **node == *own || **left_out == *own,
            _ => false,
        }
    }

    /// The problem of routes of other programs that lead packets for pods of peers elsewhere.
    pub fn overridden<T: fmt::Display>(routes: &[T]) -> Option<Problem> {
        let first = routes.first()?;
        Some(Problem::Overridden {
            route: first.to_string(),
            others: routes.len() - 1,
        })
    }
}
