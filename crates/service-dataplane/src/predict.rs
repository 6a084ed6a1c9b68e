//! What the table does with the first packet of a connection, and why: the rules of [`crate::layout`] as a decision.
//!
//! A function of intents, facts and the packet, for people who ask why. The order of questions is that of the chains, from
//! `prerouting` or `output` to `postrouting`. Leaves other programs' rules, routes and conntrack entries to others: an
//! established connection does not pass these rules. Tests compare it with the reference model and with real packets.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use service_model::{
    Affinity, Backend, Disposition, Family, Frontend, FrontendAddress, LocalInterface, Masquerade,
    NodeFacts, ObjectName, Protocol, ServiceIntent,
};

use crate::claim::Claim;
use crate::ledger::{Conflict, Ledger};

/// Which Service has which frontend.
#[derive(Debug)]
pub struct Frontends(Ledger);

impl Frontends {
    /// Resolves all conflicts between Services, as the table does.
    pub fn of(intents: impl IntoIterator<Item = Arc<ServiceIntent>>) -> Frontends {
        Frontends(Ledger::of(intents))
    }

    /// The Service that has the frontend of a claim, and the frontend.
    pub fn holder(&self, claim: &Claim) -> Option<(&ObjectName, Frontend)> {
        self.0.holder(claim)
    }

    /// Frontends that two Services request, in their order.
    pub fn conflicts(&self) -> Vec<Conflict> {
        self.0.conflicts()
    }
}

/// The first packet of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// A process in the network namespace of the node sends the packet; otherwise the node receives it.
    pub from_node: bool,
    /// Source address.
    pub source: IpAddr,
    /// The interface that the packet comes by; `None` for packets of the node.
    pub interface: Option<Arc<str>>,
    /// Destination address.
    pub destination: IpAddr,
    /// Protocol.
    pub protocol: Protocol,
    /// Destination port.
    pub port: u16,
}

/// The facts about the node that decide.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    /// The facts that the table follows.
    pub facts: &'a NodeFacts,
    /// All addresses of the node, loopback included.
    pub own_addresses: &'a [IpAddr],
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prediction {
    /// The Service that has the frontend, and the frontend.
    pub holder: Option<(ObjectName, Frontend)>,
    /// The client is outside, and the external policy is Local: only endpoints on this node take the connection.
    pub only_local: bool,
    /// What happens.
    pub fate: Fate,
}

/// What happens to the packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// No rule translates or refuses the packet.
    Untouched,
    /// Refused, by a TCP reset or an ICMP error.
    Refused(Refusal),
    /// Dropped without an answer.
    Dropped(Cause),
    /// Sent to one of these endpoints, each as likely as the others.
    Balanced(Vec<Target>),
}

/// Why a packet is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The Service has no endpoint that takes connections.
    NoEndpoints,
    /// No Service has this port at the cluster IP.
    UnknownPort,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refusal::NoEndpoints => "the Service has no endpoint that takes connections",
            Refusal::UnknownPort => "no Service has this port and protocol at the cluster IP",
        })
    }
}

/// Why a packet is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The source is outside of `spec.loadBalancerSourceRanges`.
    SourceNotAllowed,
    /// The traffic policy is Local, and this node has no endpoint.
    NoLocalEndpoints,
    /// The address is in a range of cluster IPs, and no Service has it.
    Unallocated,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Cause::SourceNotAllowed => "the source is outside of spec.loadBalancerSourceRanges",
            Cause::NoLocalEndpoints => {
                "the traffic policy is Local, and this node has no endpoint that takes connections"
            }
            Cause::Unallocated => "no Service has this address of the range of cluster IPs",
        })
    }
}

/// One endpoint that may get the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The endpoint.
    pub backend: Backend,
    /// Why the endpoint sees an address of the node as the source; `None`: it sees the client's.
    pub masquerade: Option<Reason>,
}

/// Why the source address is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The client is the endpoint.
    Hairpin,
    /// `--masquerade-all`
    All,
    /// The source is not a local pod by `--detect-local-mode`.
    OffCluster,
    /// The frontend is external, and the external policy is Cluster.
    External,
    /// The node itself connects to an external frontend under policy Local.
    OwnNode,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::Hairpin => "the client is the endpoint",
            Reason::All => "--masquerade-all",
            Reason::OffCluster => "the client is not a pod by --detect-local-mode",
            Reason::External => "external traffic under policy Cluster",
            Reason::OwnNode => "the node itself is the client",
        })
    }
}

/// Predicts the fate of `packet`. `kept` returns the endpoint that the client keeps by an affinity, if the table has
/// an entry.
pub fn predict(
    frontends: &Frontends,
    around: Surroundings<'_>,
    packet: &Packet,
    kept: impl Fn(Affinity) -> Option<SocketAddr>,
) -> Prediction {
    let question = Question {
        frontends,
        around,
        packet,
    };
    let Some(found) = question.find() else {
        let fate = question.unclaimed();
        return Prediction {
            holder: None,
            only_local: false,
            fate,
        };
    };
    let (service, frontend) = found;
    let (disposition, only_local) = question.disposition(&frontend);
    let fate = match disposition {
        _ if question.is_kept_out(&frontend) => Fate::Dropped(Cause::SourceNotAllowed),
        Disposition::Refuse => Fate::Refused(Refusal::NoEndpoints),
        Disposition::Drop => Fate::Dropped(Cause::NoLocalEndpoints),
        Disposition::Balance(backends) => {
            let entry = frontend.affinity.and_then(kept);
            let is_kept = |b: &&Backend| entry == Some(SocketAddr::new(b.address, b.port));
            let mut targets: Vec<Backend> = backends.iter().filter(is_kept).copied().collect();
            if targets.is_empty() {
                targets = backends.to_vec();
            }
            let targets = targets.into_iter().map(|backend| Target {
                backend,
                masquerade: question.masquerade(&frontend, &backend),
            });
            Fate::Balanced(targets.collect())
        }
    };
    Prediction {
        holder: Some((service.clone(), frontend)),
        only_local,
        fate,
    }
}

struct Question<'a> {
    frontends: &'a Frontends,
    around: Surroundings<'a>,
    packet: &'a Packet,
}

impl<'a> Question<'a> {
    /// The frontend at the destination. A cluster IP comes before an external address, which comes before node ports.
    fn find(&self) -> Option<(&'a ObjectName, Frontend)> {
        let Packet {
            destination,
            protocol,
            port,
            ..
        } = *self.packet;
        let holder = |address| {
            let claim = Claim {
                address,
                protocol,
                port,
            };
            self.frontends.holder(&claim)
        };
        if self.frontends.0.is_cluster_ip(destination) {
            return holder(FrontendAddress::ClusterIp(destination));
        }
        let serves_node_ports = self.around.facts.node_addresses.contains(&destination);
        let node_port = || holder(FrontendAddress::NodePort(Family::of(destination)));
        holder(FrontendAddress::External(destination))
            .or_else(|| serves_node_ports.then(node_port).flatten())
    }

    /// What happens where no Service has a frontend.
    fn unclaimed(&self) -> Fate {
        let destination = self.packet.destination;
        let mut ranges = self.around.facts.service_cidrs.iter();
        if self.frontends.0.is_cluster_ip(destination) {
            Fate::Refused(Refusal::UnknownPort)
        } else if ranges.any(|range| range.contains(&destination)) && !self.is_own(destination) {
            Fate::Dropped(Cause::Unallocated)
        } else {
            Fate::Untouched
        }
    }

    fn is_own(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.around.own_addresses.contains(&address)
    }

    /// The disposition for this client, and whether it is that for clients outside.
    fn disposition<'f>(&self, frontend: &'f Frontend) -> (&'f Disposition, bool) {
        let is_outside = !self.packet.from_node && self.is_local_pod() != Some(true);
        match &frontend.outside {
            Some(outside) if is_outside => (outside, true),
            _ => (&frontend.disposition, false),
        }
    }

    fn is_kept_out(&self, frontend: &Frontend) -> bool {
        let allowed = frontend.allowed_sources.as_deref();
        let source = &self.packet.source;
        allowed.is_some_and(|ranges| !ranges.iter().any(|range| range.contains(source)))
    }

    /// Whether the client is a local pod; `None` where no detector is configured for the family.
    fn is_local_pod(&self) -> Option<bool> {
        let (facts, source) = (self.around.facts, self.packet.source);
        let interface = self.packet.interface.as_deref().unwrap_or_default();
        match &facts.local_interface {
            Some(LocalInterface::Named(name)) => Some(interface == &**name),
            Some(LocalInterface::Prefix(prefix)) => Some(interface.starts_with(&**prefix)),
            None => {
                let family = Family::of(source);
                let ranges = facts.local_sources.iter();
                let mut ranges = ranges.filter(|range| Family::of(range.addr()) == family);
                let first = ranges.next()?;
                Some(first.contains(&source) || ranges.any(|range| range.contains(&source)))
            }
        }
    }

    fn masquerade(&self, frontend: &Frontend, backend: &Backend) -> Option<Reason> {
        // A packet that ends on the node itself does not reach `postrouting`.
        if !self.packet.from_node && self.is_own(backend.address) {
            return None;
        }
        if backend.local && backend.address == self.packet.source {
            return Some(Reason::Hairpin);
        }
        match frontend.masquerade {
            Masquerade::OffCluster if self.around.facts.masquerade_all => Some(Reason::All),
            Masquerade::OffCluster => {
                (self.is_local_pod() == Some(false)).then_some(Reason::OffCluster)
            }
            Masquerade::Always => Some(Reason::External),
            Masquerade::OwnNode => self.is_own(self.packet.source).then_some(Reason::OwnNode),
        }
    }
}
