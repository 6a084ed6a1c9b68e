//! A lab in which packets of the reference model really go: pods that all serve the same ports, a client
//! outside, and one node whose table is ours.
//!
//! Owns the translation of packets into connection attempts and of their outcomes back. Left out are
//! packets the lab cannot send or answer (see [`Field::can_send`]).
//!
//! Every attempt has a source port of its own, so that no connection of an earlier table, still known to
//! conntrack, is met again.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab::{Capability, Client, Host, Lab, Outcome, Pod, Probe};
use nft::{Backend, Kernel, KernelConfig, TableContents};

use crate::cluster::space::{external_range, service_cidr};
use crate::cluster::{Node, Transport};
use crate::oracle::{Expected, Origin, Packet, Protocol};

/// A lab with its machines by address.
pub struct Field {
    nodes: Vec<lab::Node>,
    pods: Vec<Pod>,
    client: Client,
    hosts: BTreeMap<IpAddr, Machine>,
    served: BTreeSet<(Transport, u16)>,
    next_port: Cell<u16>,
    /// Dropped last: with it everything above ends.
    lab: Lab,
}

#[derive(Clone, Copy)]
enum Machine {
    Node(usize),
    Pod(usize),
    Client,
}

/// Our table on one node.
pub struct Installed {
    kernel: Kernel,
    contents: Vec<TableContents>,
}

impl Field {
    /// Nodes 1 to `nodes`, each with pods at x = 2 to `last_pod`, all of them and the nodes serving `ports`
    /// over TCP, UDP and, where the kernel knows it, SCTP; and a client.
    pub fn new(nodes: u8, last_pod: u8, ports: &[u16]) -> Result<Field> {
        let lab = Lab::new()?;
        // The lab counts from 0.
        lab.node("node-0")?;
        let client = lab.client("outside")?;
        let mut field = Field {
            nodes: Vec::new(),
            pods: Vec::new(),
            client,
            hosts: BTreeMap::new(),
            served: BTreeSet::new(),
            next_port: Cell::new(FIRST_PORT),
            lab,
        };
        for transport in Transport::ALL.into_iter().filter(|t| is_known(*t)) {
            field
                .served
                .extend(ports.iter().map(|port| (transport, *port)));
        }
        for number in 1..=nodes {
            let node = field.lab.node(&format!("node-{number}"))?;
            field.note(&node, Machine::Node(field.nodes.len()))?;
            for x in 2..=last_pod {
                let pod = node.pod(&format!("pod-{number}-{x}"))?;
                field.note(&pod, Machine::Pod(field.pods.len()))?;
                field.pods.push(pod);
            }
            field.nodes.push(node);
        }
        for address in field.client.addresses() {
            field.hosts.insert(address, Machine::Client);
        }
        Ok(field)
    }

    fn note(&mut self, host: &Host, machine: Machine) -> Result<()> {
        for (transport, port) in &self.served {
            host.serve(lab_protocol(*transport), *port)?;
        }
        self.hosts
            .extend(host.addresses().map(|address| (address, machine)));
        Ok(())
    }

    /// Opens the kernel of a node, and leads the client's packets for Services there.
    pub fn install_on(&self, node: &Node) -> Result<Installed> {
        let machine = self.machine(&node.name)?;
        self.lead_client_to(machine)?;
        let config = KernelConfig {
            table: service_dataplane::layout::TABLE.into(),
            owner: true,
        };
        let kernel = machine.run(move || Kernel::open(config))??;
        Ok(Installed {
            kernel,
            contents: Vec::new(),
        })
    }

    /// The node of that name.
    pub fn machine(&self, name: &str) -> Result<&lab::Node> {
        let found = self.nodes.iter().find(|node| node.name() == name);
        found.with_context(|| format!("there is no node {name}"))
    }

    /// All nodes of the cluster.
    pub fn machines(&self) -> &[lab::Node] {
        &self.nodes
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The lab, for more machines.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Leads the client's packets for Services to a node.
    pub fn lead_client_to(&self, machine: &lab::Node) -> Result<()> {
        for ipv4 in [true, false] {
            for range in [service_cidr(ipv4), external_range(ipv4)] {
                self.client.route_via(machine, range)?;
            }
        }
        Ok(())
    }

    /// Whether the lab can send this packet on `node`, and the answer would find its way back.
    ///
    /// Only one node has a table. A pod elsewhere reaches it by the node's own addresses, not by a
    /// cluster IP; and a client whose address is kept is answered by endpoints elsewhere directly, past
    /// the node that would have to translate the answer.
    pub fn can_send(&self, node: &Node, packet: &Packet, expected: &Expected) -> bool {
        let Protocol::Transport(transport) = packet.protocol else {
            return false;
        };
        let is_here = |address: IpAddr| node.pod_cidrs.iter().any(|range| range.contains(&address));
        let from_here = packet.origin == Origin::Node || is_here(packet.source);
        let sender = self.sends_from(packet.source);
        let is_sent_here = match sender {
            None => false,
            Some(Machine::Pod(_) | Machine::Node(_)) => {
                from_here || node.interfaces.contains(&packet.destination)
            }
            // It knows no way to what is behind nodes, the gateway of pods included.
            Some(Machine::Client) => !self.is_behind_a_node(packet.destination),
        };
        let comes_back = match expected {
            Expected::Balanced(backends) => {
                from_here
                    || backends
                        .iter()
                        .all(|(to, masqueraded)| *masqueraded || is_here(to.ip()))
            }
            // The client, in turn, knows no way to pods.
            _ => {
                let to_client =
                    matches!(self.hosts.get(&packet.destination), Some(Machine::Client));
                !to_client || packet.origin == Origin::Node
            }
        };
        is_known(transport) && is_sent_here && comes_back
    }

    /// Sends `packet` as `attempts` connections and compares what came of them. With `all`, every backend
    /// must have answered at least once.
    pub fn check(
        &self,
        node: &Node,
        packet: &Packet,
        expected: &Expected,
        attempts: usize,
        all: bool,
    ) -> Result<()> {
        let mut answered = BTreeSet::new();
        for _ in 0..attempts {
            answered.extend(self.check_once(node, packet, expected)?);
        }
        match expected {
            Expected::Balanced(backends) if all && answered.len() != backends.len() => {
                bail!("only {answered:?} answered {attempts} connections")
            }
            _ => Ok(()),
        }
    }

    /// Sends one attempt and compares what came of it. Returns the backend that answered.
    pub fn check_once(
        &self,
        node: &Node,
        packet: &Packet,
        expected: &Expected,
    ) -> Result<Option<SocketAddr>> {
        let outcome = self.send(packet, expected)?;
        match expected {
            Expected::Refused => ensure!(self.is_refused(packet, &outcome)?, "{outcome:?}"),
            Expected::Dropped => ensure!(outcome == Outcome::TimedOut, "{outcome:?}"),
            Expected::NotOurs => self.check_untouched(packet, &outcome)?,
            Expected::Balanced(backends) => {
                return self
                    .check_translated(node, packet, backends, &outcome)
                    .map(Some);
            }
        }
        Ok(None)
    }

    /// Sends one attempt. What is expected decides how long to wait for an answer.
    pub fn send(&self, packet: &Packet, expected: &Expected) -> Result<Outcome> {
        let to_nowhere = !self.is_machine(packet.destination);
        if *expected == Expected::Dropped || *expected == Expected::NotOurs && to_nowhere {
            self.send_within(packet, NOWHERE_PATIENCE)
        } else {
            self.send_within(packet, lab::DEFAULT_PATIENCE)
        }
    }

    /// Sends one attempt and waits for an answer.
    pub fn send_within(&self, packet: &Packet, patience: Duration) -> Result<Outcome> {
        let probe = self.attempt(packet, patience)?;
        self.sender(packet)?.probe(probe)
    }

    /// Sends one attempt that others shall not wait for.
    pub fn send_aside(
        &self,
        packet: &Packet,
        patience: Duration,
    ) -> Result<JoinHandle<Result<Outcome>>> {
        let probe = self.attempt(packet, patience)?;
        self.sender(packet)?.probe_aside(probe)
    }

    fn attempt(&self, packet: &Packet, patience: Duration) -> Result<Probe> {
        let Protocol::Transport(transport) = packet.protocol else {
            bail!("ICMP is not sent")
        };
        let to = SocketAddr::new(packet.destination, packet.port);
        let probe = Probe::new(lab_protocol(transport), to);
        Ok(probe.from_port(self.source_port()).within(patience))
    }

    /// Who sends from this address. Nobody serves at the gateways of pods, but nodes send from them.
    fn sends_from(&self, address: IpAddr) -> Option<Machine> {
        let is_gateway = |node: &lab::Node| node.pod_gateway().contains(&address);
        let gateway = || self.nodes.iter().position(is_gateway).map(Machine::Node);
        self.hosts.get(&address).copied().or_else(gateway)
    }

    fn sender(&self, packet: &Packet) -> Result<&Host> {
        let place = self.sends_from(packet.source).context("no such sender")?;
        Ok(match place {
            Machine::Node(index) => &self.nodes[index],
            Machine::Pod(index) => &self.pods[index],
            Machine::Client => &self.client,
        })
    }

    fn source_port(&self) -> u16 {
        let port = self.next_port.get();
        self.next_port.set(if port == LAST_PORT {
            FIRST_PORT
        } else {
            port + 1
        });
        port
    }

    /// Whether the sender received a refusal.
    fn is_refused(&self, packet: &Packet, outcome: &Outcome) -> Result<bool> {
        Ok(match outcome {
            Outcome::Refused => true,
            Outcome::TimedOut => self.hears_refusal(packet, lab::DEFAULT_PATIENCE)?,
            _ => false,
        })
    }

    /// Whether the sender of a lost packet receives an error after all. A datagram that is rejected
    /// where it is made fails to be sent (`EPERM`), which the lab cannot tell from a drop; the ICMP error
    /// comes besides.
    pub fn hears_refusal(&self, packet: &Packet, patience: Duration) -> Result<bool> {
        let is_datagram = packet.protocol == Protocol::Transport(Transport::Udp);
        let (from, port) = (packet.source, self.source_port());
        let to = SocketAddr::new(packet.destination, packet.port);
        let Some(Machine::Node(index)) = self.sends_from(from) else {
            return Ok(false);
        };
        if packet.origin != Origin::Node || !is_datagram {
            return Ok(false);
        }
        let answer = self.nodes[index].run(move || {
            let socket = UdpSocket::bind((from, port))?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(patience))?;
            let _ = socket.send(b"?");
            socket.recv(&mut [0])
        })?;
        Ok(answer.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused))
    }

    /// The backend that answered.
    fn check_translated(
        &self,
        node: &Node,
        packet: &Packet,
        backends: &BTreeMap<SocketAddr, bool>,
        outcome: &Outcome,
    ) -> Result<SocketAddr> {
        let Outcome::Answered { server, peer } = outcome else {
            bail!("{outcome:?}")
        };
        let by_name = |to: &&SocketAddr| self.server_name(**to).as_ref() == Some(server);
        let to = backends
            .keys()
            .find(by_name)
            .with_context(|| format!("{server} answered"))?;
        let is_source_right = match backends[to] {
            // The address of the interface by which it left. Where the node itself is the client, its own
            // address may be the same.
            true => node.interfaces.contains(&peer.ip()),
            false => peer.ip() == packet.source,
        };
        ensure!(is_source_right, "{server} saw {peer}");
        Ok(*to)
    }

    /// The outcome of a packet that no rule translates.
    fn check_untouched(&self, packet: &Packet, outcome: &Outcome) -> Result<()> {
        let to = SocketAddr::new(packet.destination, packet.port);
        let is_served = |transport| self.served.contains(&(transport, packet.port));
        let Protocol::Transport(transport) = packet.protocol else {
            return Ok(());
        };
        let right = match (self.is_machine(to.ip()), outcome) {
            (false, outcome) => matches!(outcome, Outcome::Unreachable | Outcome::TimedOut),
            (true, Outcome::Answered { server, peer }) => {
                self.server_name(to).as_ref() == Some(server) && peer.ip() == packet.source
            }
            (true, outcome) => {
                *outcome == Outcome::Refused
                    && !(is_served(transport) && self.server_name(to).is_some())
            }
        };
        ensure!(right, "{outcome:?}");
        Ok(())
    }

    /// How the server at an address calls itself.
    pub(crate) fn server_name(&self, at: SocketAddr) -> Option<String> {
        let name = match self.hosts.get(&at.ip())? {
            Machine::Node(index) => self.nodes[*index].name(),
            Machine::Pod(index) => self.pods[*index].name(),
            Machine::Client => return None,
        };
        Some(format!("{name}:{}", at.port()))
    }

    fn is_behind_a_node(&self, address: IpAddr) -> bool {
        self.nodes.iter().any(|node| match address {
            IpAddr::V4(address) => node.pod_cidr_v4().contains(&address),
            IpAddr::V6(address) => node.pod_cidr_v6().contains(&address),
        })
    }

    fn is_machine(&self, address: IpAddr) -> bool {
        self.hosts.contains_key(&address)
            || address.is_loopback()
            || self
                .nodes
                .iter()
                .any(|node| node.pod_gateway().contains(&address))
    }
}

impl Installed {
    /// Leads from the tables in force to these, in one transaction, and reads them back.
    pub fn replace(&mut self, tables: &[TableContents]) -> Result<()> {
        let mut transaction = nft::Transaction::new();
        for table in tables {
            let before = self
                .contents
                .iter()
                .find(|t| t.table.family == table.table.family);
            transaction
                .operations
                .extend(nft::diff::diff(before, table).operations);
        }
        self.kernel.commit(&transaction)?;
        self.contents = tables.to_vec();
        for table in tables {
            let found = self
                .kernel
                .list(table.table.family)?
                .context("the table is gone")?;
            let rest = nft::diff::diff(Some(&found), table);
            ensure!(rest.is_empty(), "the kernel holds something else: {rest:?}");
        }
        self.forget()
    }

    /// Takes away what packets have left behind: endpoints that the next tables may not have.
    fn forget(&mut self) -> Result<()> {
        let mut transaction = nft::Transaction::new();
        for table in &self.contents {
            let is_dynamic = |set: &&nft::Set| matches!(set.kind, nft::SetKind::Dynamic(_));
            for set in table.sets.values().filter(is_dynamic) {
                let elements = self
                    .kernel
                    .dynamic_elements(table.table.family, &set.name)?;
                if !elements.is_empty() {
                    let set = set.name.clone();
                    let gone = nft::Operation::DeleteElements { set, elements };
                    transaction.push(table.table.family, gone);
                }
            }
        }
        Ok(self.kernel.commit(&transaction)?)
    }

    /// Takes the tables away.
    pub fn remove(mut self) -> Result<()> {
        let mut transaction = nft::Transaction::new();
        for table in &self.contents {
            transaction.push(table.table.family, nft::Operation::DeleteTable);
        }
        Ok(self.kernel.commit(&transaction)?)
    }
}

/// For packets that are dropped, and for packets to nowhere. The lab's gateway answers them, but Linux limits the rate of its answers (ip_error() in
/// net/ipv4/route.c: five at once to one host, then one a second), so silence must do, too.
const NOWHERE_PATIENCE: Duration = Duration::from_millis(100);

/// Source ports of attempts: above the ports of servers and of daemons (10249, 10256), below the ranges of masquerading.
const FIRST_PORT: u16 = 11_000;
const LAST_PORT: u16 = 29_999;

fn lab_protocol(transport: Transport) -> lab::Protocol {
    match transport {
        Transport::Tcp => lab::Protocol::Tcp,
        Transport::Udp => lab::Protocol::Udp,
        Transport::Sctp => lab::Protocol::Sctp,
    }
}

fn is_known(transport: Transport) -> bool {
    transport != Transport::Sctp || Capability::Sctp.missing().is_none()
}
