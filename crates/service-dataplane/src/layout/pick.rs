//! The kinds of frontends with endpoints: how each kind identifies a frontend, and the names of its chains.
//!
//! Leaves the sets of a kind to [`super::sets`] and its chains to [`super::picking`].

use nft::{Field, Name, Operand};

/// A kind of frontends with a list of endpoints each: its sets, maps and chains are its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pick {
    /// Frontends on cluster IPs, external and load balancer addresses.
    Frontend,
    /// Node ports.
    NodePort,
    /// External policy Local: frontends on external and load balancer addresses, for outside clients.
    LocalFrontend,
    /// External policy Local: node ports, for outside clients.
    LocalNodePort,
}

impl Pick {
    /// Every kind.
    pub const ALL: [Pick; 4] = [
        Pick::Frontend,
        Pick::NodePort,
        Pick::LocalFrontend,
        Pick::LocalNodePort,
    ];

    /// Numbers of endpoints that have a plain set of their own. A set missed costs a new connection about 0.05 us
    /// (measured); a larger number costs a verdict element instead. More than a few endpoints of one Service on one
    /// node are rare.
    pub const fn exact_counts(self) -> u32 {
        match self {
            Pick::Frontend | Pick::NodePort => 16,
            Pick::LocalFrontend | Pick::LocalNodePort => 6,
        }
    }

    /// The chain that picks one of `count` backends.
    pub fn chain_name(self, count: u32) -> Name {
        match self {
            Pick::Frontend => format!("pick_{count}"),
            Pick::NodePort => format!("pick_nodeport_{count}"),
            Pick::LocalFrontend => format!("pick_local_{count}"),
            Pick::LocalNodePort => format!("pick_local_nodeport_{count}"),
        }
        .into()
    }

    pub(super) const fn is_node_port(self) -> bool {
        matches!(self, Pick::NodePort | Pick::LocalNodePort)
    }

    /// The fields that identify a frontend of the kind.
    pub(super) fn fields(self) -> Vec<Field> {
        match self.is_node_port() {
            true => vec![Field::Protocol, Field::Port],
            false => vec![Field::Address, Field::Protocol, Field::Port],
        }
    }

    /// Those fields of a new connection.
    pub(super) fn key(self) -> Vec<Operand> {
        match self.is_node_port() {
            true => vec![Operand::Protocol, Operand::DestinationPort],
            false => vec![
                Operand::DestinationAddress,
                Operand::Protocol,
                Operand::DestinationPort,
            ],
        }
    }

    pub(super) const fn backends_comment(self) -> &'static str {
        match self {
            Pick::Frontend => {
                "Where a connection goes: address . protocol . port . slot : endpoint"
            }
            Pick::NodePort => "Where a connection to a node port goes",
            Pick::LocalFrontend => "Where an outsider's connection goes",
            Pick::LocalNodePort => "Where an outsider's connection to a node port goes",
        }
    }
}
