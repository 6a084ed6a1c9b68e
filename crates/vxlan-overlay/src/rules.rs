//! The overlay's nftables table, as values: masquerade for what pods send out, and the filter that keeps forged
//! packets out.
//!
//! Whoever can send UDP to the port could otherwise put any frame into the cluster: VXLAN has no authentication
//! (RFC 7348, section 7). So a frame of our VNI must come from a known node, be addressed to our device, and carry a
//! source that this node may have: one of its pods, or one of its own addresses. Other VNIs are other people's and
//! left alone. It must also arrive by the underlay: a container with CAP_NET_RAW writes any source, and reverse-path
//! filters let that pass unless they are strict. Nothing else may speak VXLAN through this node to its peers: spoofed or
//! masqueraded, it would come from a known node. Sets of pairs
//! are hashed, one for each length of pod range, so that a lookup and a change cost the same for any number of peers.
//!
//! Outer packets between nodes pass connection tracking by: they would fill its table with one-way entries.
//!
//! While outer packets have further headers, as with encryption, the segments of TCP connections that leave by the tunnel are
//! clamped to its MTU: pods keep the larger MTU that they were made with, and ICMP errors may not reach them. Where all of
//! them have to be encrypted, packets to other nodes' pods that would leave by another interface are dropped.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use nft::{
    Bytes, Chain, Element, Family, Field, Hook, Name, Operand, Protocol, Rule, Set, SetKind, Side,
    Statement, Table, TableContents, Verdict,
};

use crate::config::Config;
use crate::plan::{Peer, Plan, Tunnel};

mod frame;
mod leaving;

use frame::{
    INNER_DESTINATION, INNER_TYPE, VNI, WHOLE_VNI, WHOLE_VNI_AND_INNER_DESTINATION,
    end_of_inner_source, inner_source, max_prefix, vni, whole_vni,
};

/// The table's name, in both families.
pub const TABLE: &str = "portolan-overlay";

/// The set whose elements count the VXLAN packets that arrive from each address of a peer, before any rule can drop
/// them: the count distinguishes packets lost on the way from packets dropped here. With a filter, frames from pods of a
/// peer are not counted, which would cost each of them as much as the search for its source; or by the pair, where a
/// comparison does not distinguish pods from the tunnel end, which sends all that the probes wait for.
const ARRIVED: &str = "arrived";

/// Sets and keys of the elements that count the VXLAN packets of a peer that the probes wait for, each packet once.
pub fn arrivals(tunnel: &Tunnel, peer: &Peer) -> Vec<(Name, Bytes)> {
    let key = |address| Bytes::new().address(address);
    let all = peer
        .addresses()
        .map(|address| (ARRIVED.into(), key(address)));
    let length = peer.pod_cidr.prefix_len();
    let in_one_lookup = length == tunnel.pod_cidr.prefix_len() && !ends_in_zero(tunnel);
    let pods = peer.addresses().filter(|_| in_one_lookup);
    let pods = pods.map(|address| (source_set(length), key(address).address(peer.gateway())));
    all.chain(pods).collect()
}

/// What becomes of forged frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Filter {
    /// No filter.
    Off,
    /// They are counted, and go on.
    Monitor,
    /// They are counted and dropped.
    #[default]
    Enforce,
}

/// What the table is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleOptions {
    /// Masquerade what pods send out of the cluster, and what comes from outside to other nodes' pods.
    pub masquerade: bool,
    /// What becomes of forged frames.
    pub filter: Filter,
    /// Port of the probes' responders, if there are any: only nodes may send to those of other nodes.
    pub probe_port: Option<u16>,
}

/// Whether the addresses of tunnel ends end in a zero byte, and those of nearly all pods in another one.
fn ends_in_zero(tunnel: &Tunnel) -> bool {
    tunnel.pod_cidr.prefix_len() + 8 <= tunnel.pod_cidr.max_prefix_len()
}

/// The table of a family, if that has a tunnel, or a barrier instead.
pub fn table(
    config: &Config,
    options: RuleOptions,
    plan: &Plan,
    family: Family,
) -> Option<TableContents> {
    let table = Table {
        family,
        name: TABLE.into(),
        comment: "VXLAN overlay, maintained by Portolan".into(),
    };
    let mut contents = TableContents {
        table,
        sets: BTreeMap::new(),
        chains: BTreeMap::new(),
        elements: BTreeMap::new(),
    };
    let Some(tunnel) = &plan.tunnels[family] else {
        let barrier = plan.barriers[family].as_ref()?;
        contents.put_ranges("own_pods", barrier.pod_cidr.as_slice());
        contents.put_ranges("cluster", &barrier.cluster);
        contents.put_chain("sealed", Some(Hook::FilterPostrouting), leaving::barred());
        return Some(contents);
    };
    let peers = &tunnel.peers;
    let outer: BTreeSet<IpAddr> = peers.iter().flat_map(Peer::addresses).collect();
    let mut known: Vec<IpNet> = peers.iter().map(|peer| peer.pod_cidr).collect();
    known.push(tunnel.pod_cidr);
    let cluster = config
        .network(family)
        .map_or(known, |network| vec![network]);

    contents.put_set(
        "peers",
        1,
        outer
            .iter()
            .map(|address| Element::member(Bytes::new().address(*address))),
    );
    contents.put_counters(
        ARRIVED,
        1,
        outer
            .iter()
            .map(|address| Element::member(Bytes::new().address(*address))),
    );
    contents.put_ranges("own_pods", &[tunnel.pod_cidr]);
    contents.put_ranges("cluster", &cluster);
    let mut arriving = vxlan_packets(tunnel);
    match options.filter {
        Filter::Off => arriving.extend(not_tracked(Operand::SourceAddress, ARRIVED)),
        // The port first: it tells nearly every packet apart for the price of a comparison.
        Filter::Monitor | Filter::Enforce => {
            arriving.push(Statement::Verdict(Verdict::Jump("encapsulated".into())));
        }
    }
    contents.put_chain("raw_prerouting", Some(Hook::RawPrerouting), vec![arriving]);
    // By their VNI: a comparison costs less than to find the peer.
    let mut leaving = vxlan_packets(tunnel);
    leaving.extend([equals(WHOLE_VNI, &whole_vni(tunnel)), Statement::NoTrack]);
    contents.put_chain("raw_output", Some(Hook::RawOutput), vec![leaving]);
    if options.masquerade {
        contents.put_ranges("multicast", &[multicast(family)]);
        contents.put_chain(
            "postrouting",
            Some(Hook::NatPostrouting),
            masquerade(options.probe_port),
        );
    }
    if options.filter != Filter::Off {
        contents.put_filter(tunnel, options.filter, &cluster);
    }
    if tunnel.clamps {
        let name = tunnel.device.name.clone().into();
        let rule = vec![Statement::OutputInterface { name }, Statement::ClampMaxseg];
        contents.put_chain("clamp", Some(Hook::FilterForward), vec![rule]);
    }
    if tunnel.sealed {
        let rules = leaving::sealed(tunnel, family);
        contents.put_chain("sealed", Some(Hook::FilterPostrouting), rules);
    }
    let leaving = leaving::of_others(tunnel, options);
    if !leaving.is_empty() {
        contents.put_chain("leaving", Some(Hook::BeforeNatPostrouting), leaving);
    }
    Some(contents)
}

/// Pairs of an outer address and what may come inside from it, by length of the inner prefix.
fn inner_sources(peers: &[Peer], family: Family) -> BTreeMap<u8, BTreeSet<(IpAddr, IpAddr)>> {
    let mut sources: BTreeMap<u8, BTreeSet<(IpAddr, IpAddr)>> = BTreeMap::new();
    let whole = IpNet::from(match family {
        Family::Ip => IpAddr::from([0; 4]),
        Family::Ip6 => IpAddr::from([0; 16]),
    });
    for peer in peers {
        let public = peer.vtep.public_ip;
        for address in peer.addresses() {
            let pods = sources.entry(peer.pod_cidr.prefix_len()).or_default();
            pods.insert((address, peer.pod_cidr.network()));
            // flannel's nftables mode sends on what comes to a node for another node's pod as it is. Not every address
            // with every other: their number would be the square of what a Node says.
            let node = sources.entry(whole.max_prefix_len()).or_default();
            node.extend([(public, address), (address, public), (address, address)]);
        }
    }
    sources
}

/// The set of inner sources that a frame may have from nobody, but as one of a pair: pods, and what no packet on a wire has
/// as its source.
const INSIDE: &str = "inside";
/// The set of this node's own addresses.
const OWN_ADDRESSES: &str = "own_addresses";

/// The rules for VXLAN packets that arrive, before connection tracking.
fn filter<'a>(
    tunnel: &Tunnel,
    family: Family,
    filter: Filter,
    prefixes: impl Iterator<Item = &'a u8>,
) -> Vec<Vec<Statement>> {
    let device = &tunnel.device;
    let inner_type: [u8; 2] = match family {
        Family::Ip => [0x08, 0x00],
        Family::Ip6 => [0x86, 0xdd],
    };
    let passes = || Statement::Verdict(Verdict::Return);
    let from_known = |prefix| Statement::InSet {
        key: vec![Operand::SourceAddress, inner_source(family, prefix)],
        set: source_set(prefix),
        negate: false,
    };
    let unless = |mut statements: Vec<Statement>| {
        statements.extend(refuse(filter));
        statements
    };
    let inner_address = inner_source(family, max_prefix(family));
    let inner_in = |set: &'static str| in_set(inner_address, set, false);
    let mut rules = Vec::new();
    // What pods send, nearly all there is, is through with the first rule: comparisons and one lookup. The others distinguish
    // the rest, also what this rule leaves to them because it compares bytes that other senders may fill.
    let pods = tunnel.pod_cidr.prefix_len();
    let to_device = [&whole_vni(tunnel)[..], &device.mac.0].concat();
    let of_pods = ends_in_zero(tunnel).then(|| differs(end_of_inner_source(family), &[0]));
    let inputs = tunnel.inputs.iter().map(|name| vec![input(name, false)]);
    let inputs: Vec<_> = match tunnel.inputs.is_empty() {
        true => vec![Vec::new()],
        false => inputs.collect(),
    };
    for input in inputs {
        let mut rule = input;
        rule.push(equals(WHOLE_VNI_AND_INNER_DESTINATION, &to_device));
        rule.push(equals(INNER_TYPE, &inner_type));
        rule.extend(of_pods.clone());
        rule.extend([from_known(pods), Statement::NoTrack, passes()]);
        rules.push(rule);
    }
    rules.push(not_tracked(Operand::SourceAddress, ARRIVED));
    // What is not for this node would come from it.
    if !tunnel.inputs.is_empty() {
        let to_peers = in_set(Operand::DestinationAddress, "peers", false);
        rules.push(unless([elsewhere(tunnel), vec![to_peers]].concat()));
    }
    rules.extend([
        vec![differs(VNI, &vni(tunnel)), passes()],
        vec![
            Statement::LocalAddress {
                of: Side::Destination,
                negate: true,
            },
            passes(),
        ],
    ]);
    if !tunnel.inputs.is_empty() {
        rules.push(unless(elsewhere(tunnel)));
    }
    rules.extend([
        unless(vec![in_set(Operand::SourceAddress, "peers", true)]),
        unless(vec![differs(INNER_DESTINATION, &device.mac.0)]),
        unless(vec![differs(INNER_TYPE, &inner_type)]),
    ]);
    rules.extend(prefixes.map(|prefix| vec![from_known(*prefix), passes()]));
    rules.extend([INSIDE, OWN_ADDRESSES].map(|set| unless(vec![inner_in(set)])));
    // A frame without an inner source ends with the last rule.
    rules.push(vec![in_set(inner_address, "peers", true), passes()]);
    rules.push(refuse(filter));
    rules
}

/// Rows 2 to 6 of flannel's chain, as its iptables mode means them (its nftables mode lost row 6).
fn masquerade(probe_port: Option<u16>) -> Vec<Vec<Statement>> {
    let source = |set: &'static str, negate| in_set(Operand::SourceAddress, set, negate);
    let destination = |set: &'static str, negate| in_set(Operand::DestinationAddress, set, negate);
    let stays = || Statement::Verdict(Verdict::Return);
    // With the address of this node, a pod would be answered as a node is.
    let to_probes = to_port_of_peers(probe_port).map(|mut rule| {
        rule.push(stays());
        rule
    });
    let mut rules: Vec<Vec<Statement>> = to_probes.collect();
    rules.extend([
        vec![
            source("own_pods", false),
            destination("cluster", false),
            stays(),
        ],
        // Pods of other nodes and clients outside keep their address on the way to a pod of this node.
        vec![destination("own_pods", false), stays()],
        vec![
            source("cluster", false),
            destination("multicast", true),
            Statement::Masquerade,
        ],
        // The reply must come back here.
        vec![
            source("cluster", true),
            destination("cluster", false),
            Statement::Masquerade,
        ],
    ]);
    rules
}

/// Packets to a port of other nodes, of either protocol.
fn to_port_of_peers(port: Option<u16>) -> impl Iterator<Item = Vec<Statement>> {
    let rule = |(port, protocol): (u16, Protocol)| {
        vec![
            Statement::ProtocolIs(protocol),
            equals(Operand::DestinationPort, &port.to_be_bytes()),
            in_set(Operand::DestinationAddress, "peers", false),
        ]
    };
    let protocols = [Protocol::Udp, Protocol::Tcp].into_iter();
    protocols
        .filter_map(move |protocol| Some((port?, protocol)))
        .map(rule)
}

fn not_tracked(peer: Operand, set: &'static str) -> Vec<Statement> {
    vec![in_set(peer, set, false), Statement::NoTrack]
}

fn input(name: &str, negate: bool) -> Statement {
    Statement::InputInterface {
        name: name.to_owned().into(),
        prefix: false,
        negate,
    }
}

/// The packet arrived by no interface that leads to other nodes.
fn elsewhere(tunnel: &Tunnel) -> Vec<Statement> {
    let inputs = tunnel.inputs.iter();
    inputs.map(|name| input(name, true)).collect()
}

fn vxlan_packets(tunnel: &Tunnel) -> Vec<Statement> {
    let value = Bytes::from_slice(&tunnel.device.port.to_be_bytes()).unwrap_or_default();
    let to_port = Statement::Equals {
        operand: Operand::DestinationPort,
        value,
        negate: false,
    };
    vec![Statement::ProtocolIs(Protocol::Udp), to_port]
}

fn refuse(filter: Filter) -> Vec<Statement> {
    let verdict = match filter {
        Filter::Enforce => Verdict::Drop,
        Filter::Off | Filter::Monitor => Verdict::Return,
    };
    vec![Statement::Counter, Statement::Verdict(verdict)]
}

fn in_set(operand: Operand, set: &'static str, negate: bool) -> Statement {
    Statement::InSet {
        key: vec![operand],
        set: set.into(),
        negate,
    }
}

fn equals(operand: Operand, bytes: &[u8]) -> Statement {
    Statement::Equals {
        operand,
        value: Bytes::from_slice(bytes).unwrap_or_default(),
        negate: false,
    }
}

fn differs(operand: Operand, bytes: &[u8]) -> Statement {
    Statement::Equals {
        operand,
        value: Bytes::from_slice(bytes).unwrap_or_default(),
        negate: true,
    }
}

fn source_set(prefix: u8) -> Name {
    format!("sources_{prefix}").into()
}

/// Addresses that no packet on a wire has as its source, or that mean nothing beyond a link (RFC 6890).
fn never_sources(family: Family) -> Vec<IpNet> {
    let ranges: &[(IpAddr, u8)] = match family {
        Family::Ip => &[
            (IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8),
            (IpAddr::V4(Ipv4Addr::LOCALHOST), 8),
            (IpAddr::V4(Ipv4Addr::new(169, 254, 0, 0)), 16),
            (IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 3),
        ],
        Family::Ip6 => &[
            (IpAddr::V6(Ipv6Addr::UNSPECIFIED), 127),
            (IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), 10),
            (IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)), 8),
        ],
    };
    let range = |(first, length): &(IpAddr, u8)| IpNet::new(*first, *length).ok();
    ranges
        .iter()
        .filter_map(range)
        .map(|range| range.trunc())
        .collect()
}

/// 224.0.0.0/4 (RFC 5771), ff00::/8 (RFC 4291).
fn multicast(family: Family) -> IpNet {
    let (first, length) = match family {
        Family::Ip => (IpAddr::from([224, 0, 0, 0]), 4),
        Family::Ip6 => (IpAddr::from([0xff00, 0, 0, 0, 0, 0, 0, 0]), 8),
    };
    IpNet::new(first, length).unwrap_or_else(|_| IpNet::from(first))
}

/// Building blocks of a table.
trait Build {
    fn put_filter(&mut self, tunnel: &Tunnel, mode: Filter, cluster: &[IpNet]);
    fn put_set(
        &mut self,
        name: impl Into<Name>,
        addresses: usize,
        elements: impl Iterator<Item = Element>,
    );
    fn put_counters(
        &mut self,
        name: impl Into<Name>,
        addresses: usize,
        elements: impl Iterator<Item = Element>,
    );
    fn put_ranges(&mut self, name: &'static str, ranges: &[IpNet]);
    fn put_chain(&mut self, name: &'static str, hook: Option<Hook>, rules: Vec<Vec<Statement>>);
}

impl Build for TableContents {
    fn put_filter(&mut self, tunnel: &Tunnel, mode: Filter, cluster: &[IpNet]) {
        let family = self.table.family;
        let mut sources = inner_sources(&tunnel.peers, family);
        sources.entry(tunnel.pod_cidr.prefix_len()).or_default();
        for (prefix, pairs) in &sources {
            let pair = |(outer, inner): &(IpAddr, IpAddr)| {
                Element::member(Bytes::new().address(*outer).address(*inner))
            };
            let elements = pairs.iter().map(pair);
            match *prefix == tunnel.pod_cidr.prefix_len() && !ends_in_zero(tunnel) {
                true => self.put_counters(source_set(*prefix), 2, elements),
                false => self.put_set(source_set(*prefix), 2, elements),
            }
        }
        let own = tunnel.own_addresses.iter();
        let own = own.map(|address| Element::member(Bytes::new().address(*address)));
        self.put_set(OWN_ADDRESSES, 1, own);
        let inside = [cluster, &never_sources(family)].concat();
        self.put_ranges(INSIDE, &inside);
        let rules = filter(tunnel, family, mode, sources.keys());
        self.put_chain("encapsulated", None, rules);
        // Destination NAT can lead a packet to the port that had another one before.
        let mut translated = vxlan_packets(tunnel);
        translated.extend([Statement::ConnectionIsDnat, equals(VNI, &vni(tunnel))]);
        translated.extend(refuse(mode));
        self.put_chain("translated", Some(Hook::NatInput), vec![translated]);
    }

    fn put_set(
        &mut self,
        name: impl Into<Name>,
        addresses: usize,
        elements: impl Iterator<Item = Element>,
    ) {
        let name = name.into();
        let mut elements: Vec<Element> = elements.collect();
        elements.sort();
        if !elements.is_empty() {
            self.elements.insert(name.clone(), elements);
        }
        let key = vec![Field::Address; addresses];
        let set = Set {
            name: name.clone(),
            key,
            kind: SetKind::Set,
            interval: false,
            comment: Name::default(),
        };
        self.sets.insert(name, set);
    }

    fn put_counters(
        &mut self,
        name: impl Into<Name>,
        addresses: usize,
        elements: impl Iterator<Item = Element>,
    ) {
        let name = name.into();
        self.put_set(name.clone(), addresses, elements);
        if let Some(set) = self.sets.get_mut(&name) {
            set.kind = SetKind::Counters;
        }
    }

    fn put_ranges(&mut self, name: &'static str, ranges: &[IpNet]) {
        let bytes = |address: IpAddr| Bytes::new().address(address);
        // Neighboring ranges become one: the kernel takes no two that touch for different ones.
        let mut elements: Vec<Element> = IpNet::aggregate(&ranges.to_vec())
            .iter()
            .map(|range| Element::range(bytes(range.network()), bytes(range.broadcast())))
            .collect();
        elements.sort();
        self.elements.insert(name.into(), elements);
        let key = vec![Field::Address];
        let set = Set {
            name: name.into(),
            key,
            kind: SetKind::Set,
            interval: true,
            comment: Name::default(),
        };
        self.sets.insert(name.into(), set);
    }

    fn put_chain(&mut self, name: &'static str, hook: Option<Hook>, rules: Vec<Vec<Statement>>) {
        let rules = rules.into_iter().map(Rule::from).collect();
        let chain = Chain {
            name: name.into(),
            hook,
            comment: Name::default(),
            rules,
        };
        self.chains.insert(name.into(), chain);
    }
}

#[cfg(test)]
mod tests;
