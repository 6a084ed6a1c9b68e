//! From a frontend to one of its endpoints: the sets of frontends by number of endpoints, and the chains that pick.

use nft::{Chain, Field, Name, Operand, Rule, Statement, Verdict};

use super::SetId;
use super::rules::{goto, in_set, jump};

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
    /// All of them.
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

    /// Set of frontends with exactly `count` backends, or the map of larger ones.
    pub const fn sized(self, count: u32) -> SetId {
        match count <= self.exact_counts() {
            true => SetId::Sized(self, count),
            false => SetId::Large(self),
        }
    }

    /// Map of backends of frontends that have `count` of them.
    pub const fn backends(self, count: u32) -> SetId {
        match count <= self.exact_counts() {
            true => SetId::Backends(self),
            false => SetId::LargeBackends(self, count),
        }
    }

    const fn is_node_port(self) -> bool {
        matches!(self, Pick::NodePort | Pick::LocalNodePort)
    }

    /// The fields that identify a frontend of the kind.
    pub(super) fn fields(self) -> Vec<Field> {
        match self.is_node_port() {
            true => vec![Field::Protocol, Field::Port],
            false => vec![Field::Address, Field::Protocol, Field::Port],
        }
    }

    /// The same, of a new connection.
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

    /// The chain that picks one of `count` backends. Its second rule catches a packet that meets a commit
    /// half way: rules are read under one generation, but each look-up reads the generation anew, so a
    /// packet may see the old count and the new elements. The first backend of every frontend is in the map that
    /// the chain for one looks up.
    pub fn chain(self, count: u32) -> Chain {
        let mut key = self.key();
        key.push(Operand::SymHash { modulus: count });
        let map = self.backends(count).name();
        let mut rules: Vec<Rule> = vec![vec![Statement::DnatMap { key, map }].into()];
        if count > 1 {
            rules.push(vec![Statement::Verdict(Verdict::Goto(self.chain_name(1)))].into());
        }
        Chain {
            name: self.chain_name(count),
            hook: None,
            comment: "One of as many endpoints as the name says, by a hash of the flow".into(),
            rules,
        }
    }

    /// From a frontend to the endpoint of its client's affinity entry, or through the sized sets to any endpoint. The
    /// `last` rules handle the rest.
    pub(super) fn dispatch(
        self,
        name: &'static str,
        comment: &'static str,
        last: Vec<Rule>,
    ) -> Chain {
        let sticky = match self.is_node_port() {
            true => SetId::StickyNodePorts,
            false => SetId::Sticky,
        };
        let keeps = Statement::SetPriority {
            key: self.key(),
            map: sticky.name(),
        };
        let count = match self.is_node_port() {
            true => jump("counting_nodeports"),
            false => jump("counting"),
        };
        let mut rules: Vec<Rule> = vec![vec![count].into(), vec![keeps, jump("sticky")].into()];
        rules.extend((1..=self.exact_counts()).map(|n| -> Rule {
            let pick = Statement::Verdict(Verdict::Goto(self.chain_name(n)));
            vec![in_set(self.key(), self.sized(n)), pick].into()
        }));
        let large = Statement::VerdictMap {
            key: self.key(),
            map: SetId::Large(self).name(),
        };
        rules.push(vec![large].into());
        let refused = match self {
            Pick::Frontend => Some(SetId::NoEndpoints),
            Pick::NodePort => Some(SetId::NodePortsNoEndpoints),
            Pick::LocalFrontend | Pick::LocalNodePort => None,
        };
        rules.extend(
            refused.map(|set| -> Rule { vec![in_set(self.key(), set), goto("refuse")].into() }),
        );
        // A packet that meets a commit half way may have missed every set.
        rules.push(vec![Statement::Verdict(Verdict::Jump(self.chain_name(1)))].into());
        rules.extend(last);
        Chain {
            name: name.into(),
            hook: None,
            comment: comment.into(),
            rules,
        }
    }
}
