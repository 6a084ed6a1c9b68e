//! The lab's topology: underlay, nodes, pods, clients, and the links and routes between them. Owns every interface
//! name and every use of iproute2; leaves servers, packets and processes to `host`.
//!
//! Invariant: when a constructor returns, the new host's links carry packets in both families. The
//! constructor sends a packet each way, since flags do not show that a link carries packets.

mod fault;

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::address::{self, MAX_PODS, Pair, PodRanges, UNDERLAY_LEN_V4, UNDERLAY_LEN_V6};
use crate::host::{FORWARDING, Host};
use crate::lock;
use crate::namespace::Namespace;
use crate::probe::{Outcome, Probe};
use crate::socket::Protocol;
use crate::wait::{wait_for, wait_until};

pub use fault::{Loss, LossyPath, Unplugged};

/// Names of links. Inside a namespace they need not be unique in the lab.
const UPLINK: &str = "eth0";
const UNDERLAY_BRIDGE: &str = "underlay0";
const POD_BRIDGE: &str = "cni0";

/// Time limit for a link to come up; it takes milliseconds on an idle machine.
const LINK_TIMEOUT: Duration = Duration::from_secs(60);
/// Nothing listens there (RFC 863, discard), so the kernel of a reachable host refuses.
const CLOSED_PORT: u16 = 9;

/// The gateway's routing table without routes. Any number that the system does not use is suitable.
const NOWHERE: u32 = 100;

/// How a node's pods are linked to it. Both are in use in real clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PodLinks {
    /// A veth and a host route for each pod, the gateway's address on each (Calico, the `ptp` plugin):
    /// every packet between pods passes the node's IP stack.
    #[default]
    Routed,
    /// A bridge `cni0` with the gateway's address and hairpin ports (flannel, the `bridge` plugin).
    /// A Service's reply between pods of one node reaches the node's rules only by
    /// [`Capability::BridgeNetfilter`](crate::Capability::BridgeNetfilter), as on real nodes.
    Bridged,
}

/// Options of a lab.
#[derive(Debug, Clone, Copy)]
pub struct LabBuilder {
    pod_links: PodLinks,
    plain_pod_routes: bool,
}

impl LabBuilder {
    /// Links pods in this way.
    pub fn pod_links(self, pod_links: PodLinks) -> LabBuilder {
        LabBuilder { pod_links, ..self }
    }

    /// Leaves out the routes between nodes to each other's pods: for an overlay under test.
    pub fn without_pod_routes(self) -> LabBuilder {
        LabBuilder {
            plain_pod_routes: false,
            ..self
        }
    }

    /// Makes the underlay, with no machine on it yet.
    pub fn build(self) -> Result<Lab> {
        let underlay = Host::new("underlay", address::gateway())?;
        underlay.namespace().sysctl(FORWARDING)?;
        let Pair { v4, v6 } = address::gateway();
        underlay.namespace().ip(&[
            "link set dev lo up".to_owned(),
            // Snooping would delay neighbor solicitations until it knows the members of their groups.
            format!("link add name {UNDERLAY_BRIDGE} type bridge mcast_snooping 0"),
            format!("addr add {v4}/{UNDERLAY_LEN_V4} dev {UNDERLAY_BRIDGE}"),
            format!("addr add {v6}/{UNDERLAY_LEN_V6} dev {UNDERLAY_BRIDGE} nodad"),
            format!("link set dev {UNDERLAY_BRIDGE} up"),
        ])?;
        // It knows the way to pods for its own ICMP messages only, and forwards nothing: a packet that
        // no rule translates and no route carries must show in the test, not be routed.
        let forwards_nothing = [
            format!("rule add iif {UNDERLAY_BRIDGE} lookup {NOWHERE}"),
            format!("route add unreachable default table {NOWHERE}"),
        ];
        underlay.namespace().ip(&forwards_nothing)?;
        underlay.namespace().ip6(&forwards_nothing)?;
        Ok(Lab {
            options: self,
            nodes: Mutex::default(),
            clients: Mutex::default(),
            underlay: Arc::new(underlay),
        })
    }
}

/// A cluster of network namespaces. Dropping it ends everything in it, also for handles still held.
pub struct Lab {
    options: LabBuilder,
    nodes: Mutex<Vec<Node>>,
    clients: Mutex<Vec<Client>>,
    underlay: Arc<Host>,
}

impl Lab {
    /// Creates a lab with routed pods and plain routes between nodes.
    pub fn new() -> Result<Lab> {
        Lab::builder().build()
    }

    /// For a lab with other options.
    pub fn builder() -> LabBuilder {
        LabBuilder {
            pod_links: PodLinks::default(),
            plain_pod_routes: true,
        }
    }

    /// Adds a node to the underlay, with its pod ranges. `name` is free text.
    pub fn node(&self, name: &str) -> Result<Node> {
        let mut nodes = lock(&self.nodes);
        let index = u8::try_from(nodes.len())?;
        let host = Host::new(name, address::node(index)?)?;
        host.namespace().sysctl(FORWARDING)?;
        let port = format!("node{index}");
        self.attach(&host, &port)?;
        let node = Node(Arc::new(NodeState {
            host,
            port,
            underlay: Arc::clone(&self.underlay),
            pod_links: self.options.pod_links,
            pods: Mutex::new(Pods {
                ranges: PodRanges::of_node(index)?,
                next: 0,
                made: BTreeMap::new(),
            }),
        }));
        node.prepare_pod_links()?;
        self.underlay.namespace().ip(&node.routes_to_pods())?;
        if self.options.plain_pod_routes {
            let to_others = nodes
                .iter()
                .flat_map(Node::routes_to_pods)
                .collect::<Vec<_>>();
            node.namespace().ip(&to_others)?;
            for other in nodes.iter() {
                other.namespace().ip(&node.routes_to_pods())?;
            }
        }
        nodes.push(node.clone());
        Ok(node)
    }

    /// Adds a machine outside the cluster to the underlay. It has routes to nodes, and to nothing behind them until
    /// [`Client::route_via`]. `name` is free text.
    pub fn client(&self, name: &str) -> Result<Client> {
        let mut clients = lock(&self.clients);
        let index = u8::try_from(clients.len())?;
        let host = Host::new(name, address::client(index)?)?;
        self.attach(&host, &format!("client{index}"))?;
        let client = Client(Arc::new(host));
        clients.push(client.clone());
        Ok(client)
    }

    /// Links a host to the underlay's bridge by `port`, with its addresses and a default route.
    fn attach(&self, host: &Host, port: &str) -> Result<()> {
        let tid = host.namespace().tid();
        self.underlay.namespace().ip(&[
            format!("link add name {port} type veth peer name {UPLINK} netns {tid}"),
            format!("link set dev {port} master {UNDERLAY_BRIDGE}"),
            format!("link set dev {port} up"),
        ])?;
        let (v4, v6, gateway) = (host.ipv4(), host.ipv6(), address::gateway());
        host.namespace().ip(&[
            "link set dev lo up".to_owned(),
            format!("addr add {v4}/{UNDERLAY_LEN_V4} dev {UPLINK}"),
            format!("addr add {v6}/{UNDERLAY_LEN_V6} dev {UPLINK} nodad"),
            format!("link set dev {UPLINK} up"),
            format!("route add default via {}", gateway.v4),
            format!("route add default via {}", gateway.v6),
        ])?;
        wait_for_link_local(host.namespace(), UPLINK)?;
        wait_until_reachable(host, gateway)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for client in lock(&self.clients).drain(..) {
            client.close();
        }
        for node in lock(&self.nodes).drain(..) {
            for pod in std::mem::take(&mut lock(&node.0.pods).made).into_values() {
                pod.close();
            }
            node.close();
        }
        self.underlay.close();
    }
}

struct NodeState {
    host: Host,
    /// The other end of its uplink.
    port: String,
    underlay: Arc<Host>,
    pod_links: PodLinks,
    pods: Mutex<Pods>,
}

/// The pods of a node by their number.
struct Pods {
    ranges: PodRanges,
    /// Where the search for a free number starts: a used number is used again as late as possible.
    next: u8,
    made: BTreeMap<u8, Pod>,
}

impl Pods {
    /// A number that no pod has, or one whose pod is gone.
    fn free_number(&self) -> Result<u8> {
        (self.next..MAX_PODS)
            .chain(0..self.next)
            .find(|number| {
                self.made
                    .get(number)
                    .is_none_or(|pod| pod.namespace().is_closed())
            })
            .with_context(|| format!("a node has at most {MAX_PODS} pods"))
    }
}

/// A machine of the cluster. Clones are the same node.
#[derive(Clone)]
pub struct Node(Arc<NodeState>);

impl Deref for Node {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.0.host
    }
}

impl Node {
    /// The range of its pods' IPv4 addresses.
    pub fn pod_cidr_v4(&self) -> Ipv4Net {
        self.pod_ranges().v4
    }

    /// The range of its pods' IPv6 addresses.
    pub fn pod_cidr_v6(&self) -> Ipv6Net {
        self.pod_ranges().v6
    }

    fn pod_ranges(&self) -> PodRanges {
        lock(&self.0.pods).ranges
    }

    /// Gives the node other ranges, for pods made from now on, instead of the plan's: a cluster's controller has
    /// chosen them. The underlay learns the way; other nodes by [`Node::route_to_pods`]. Ranges must hold 250 pods
    /// and the node's pods must be [`PodLinks::Routed`].
    pub fn set_pod_cidrs(&self, v4: Ipv4Net, v6: Ipv6Net) -> Result<()> {
        ensure!(
            self.0.pod_links == PodLinks::Routed,
            "bridged pods keep their range"
        );
        ensure!(
            v4.prefix_len() <= 24 && v6.prefix_len() <= 112,
            "{v4} or {v6} is too small"
        );
        lock(&self.0.pods).ranges = PodRanges { v4, v6 };
        self.0.underlay.namespace().ip(&self.routes_to_pods())
    }

    /// Sends what is for `range`, of another node's pods, to that node's address `via`.
    pub fn route_to_pods(&self, range: IpNet, via: IpAddr) -> Result<()> {
        self.namespace()
            .ip(&[format!("route replace {range} via {via}")])
    }

    /// The node's own addresses in its pod ranges: what a pod sees as the source of a hairpin
    /// connection, IPv4 first.
    pub fn pod_gateway(&self) -> [IpAddr; 2] {
        let Pair { v4, v6 } = self.pod_ranges().gateway();
        [v4.into(), v6.into()]
    }

    /// Adds a pod. `name` is free text, by which its servers answer.
    pub fn pod(&self, name: &str) -> Result<Pod> {
        let mut pods = lock(&self.0.pods);
        let (number, ranges) = (pods.free_number()?, pods.ranges);
        let host = Host::new(name, ranges.pod(number)?)?;
        let port = format!("pod{number}");
        self.namespace()
            .ip(&self.lines_for_pod(&host, &port, ranges))?;
        host.namespace().ip(&self.lines_inside_pod(&host, ranges))?;
        wait_for_link_local(self.namespace(), &port)?;
        wait_until_reachable(&host, ranges.gateway())?;
        let pod = Pod(Arc::new(host));
        pods.made.insert(number, pod.clone());
        pods.next = (number + 1) % MAX_PODS;
        Ok(pod)
    }

    fn prepare_pod_links(&self) -> Result<()> {
        if self.0.pod_links == PodLinks::Routed {
            return Ok(());
        }
        let ranges = self.pod_ranges();
        let Pair { v4, v6 } = ranges.gateway();
        let (len_v4, len_v6) = (ranges.v4.prefix_len(), ranges.v6.prefix_len());
        self.namespace().ip(&[
            format!("link add name {POD_BRIDGE} type bridge mcast_snooping 0"),
            format!("addr add {v4}/{len_v4} dev {POD_BRIDGE}"),
            format!("addr add {v6}/{len_v6} dev {POD_BRIDGE} nodad"),
            format!("link set dev {POD_BRIDGE} up"),
        ])
    }

    /// What the node does for a pod behind `port`.
    fn lines_for_pod(&self, pod: &Host, port: &str, ranges: PodRanges) -> Vec<String> {
        let tid = pod.namespace().tid();
        let gateway = ranges.gateway();
        let mut lines = vec![format!(
            "link add name {port} type veth peer name {UPLINK} netns {tid}"
        )];
        match self.0.pod_links {
            PodLinks::Bridged => lines.extend([
                format!("link set dev {port} master {POD_BRIDGE}"),
                format!("link set dev {port} type bridge_slave hairpin on"),
                format!("link set dev {port} up"),
            ]),
            PodLinks::Routed => lines.extend([
                format!("addr add {}/32 dev {port}", gateway.v4),
                format!("addr add {}/128 dev {port} nodad", gateway.v6),
                format!("link set dev {port} up"),
                format!("route add {}/32 dev {port}", pod.ipv4()),
                format!("route add {}/128 dev {port}", pod.ipv6()),
            ]),
        }
        lines
    }

    /// What a pod does for itself.
    fn lines_inside_pod(&self, pod: &Host, ranges: PodRanges) -> Vec<String> {
        let (len_v4, len_v6, on_link) = match self.0.pod_links {
            PodLinks::Bridged => (ranges.v4.prefix_len(), ranges.v6.prefix_len(), ""),
            PodLinks::Routed => (32, 128, "onlink"),
        };
        let gateway = ranges.gateway();
        vec![
            "link set dev lo up".to_owned(),
            format!("addr add {}/{len_v4} dev {UPLINK}", pod.ipv4()),
            format!("addr add {}/{len_v6} dev {UPLINK} nodad", pod.ipv6()),
            format!("link set dev {UPLINK} up"),
            format!(
                "route add default via {} dev {UPLINK} {on_link}",
                gateway.v4
            ),
            format!(
                "route add default via {} dev {UPLINK} {on_link}",
                gateway.v6
            ),
        ]
    }

    fn routes_to_pods(&self) -> Vec<String> {
        vec![
            format!("route replace {} via {}", self.pod_cidr_v4(), self.ipv4()),
            format!("route replace {} via {}", self.pod_cidr_v6(), self.ipv6()),
        ]
    }
}

/// A pod of a node. Clones are the same pod.
#[derive(Clone)]
pub struct Pod(Arc<Host>);

impl Deref for Pod {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.0
    }
}

impl Pod {
    /// Takes the pod away with its link, servers and children. Its address is used again as late as possible.
    pub fn delete(&self) {
        self.close();
    }
}

/// A machine outside the cluster. Clones are the same machine.
#[derive(Clone)]
pub struct Client(Arc<Host>);

impl Deref for Client {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.0
    }
}

impl Client {
    /// Sends everything for `range` (of Services or pods) to `node`, instead of an earlier choice.
    pub fn route_via(&self, node: &Node, range: IpNet) -> Result<()> {
        let via: IpAddr = match range {
            IpNet::V4(_) => node.ipv4().into(),
            IpNet::V6(_) => node.ipv6().into(),
        };
        self.namespace()
            .ip(&[format!("route replace {range} via {via}")])
    }
}

/// Waits until `link` can ask for neighbors, which needs a link-local address that is no longer
/// tentative (flags of `include/uapi/linux/if_addr.h`).
fn wait_for_link_local(namespace: &Namespace, link: &str) -> Result<()> {
    const TENTATIVE_OR_FAILED: u8 = 0x40 | 0x08;
    let wanted = link.to_owned();
    let usable = move || -> Result<bool> {
        // Lines of: address, index, prefix length, scope (20: link), flags, name.
        let table = fs::read_to_string("/proc/thread-self/net/if_inet6")?;
        Ok(table.lines().any(|line| {
            let columns = line.split_whitespace().collect::<Vec<_>>();
            matches!(columns.as_slice(), [_, _, _, "20", flags, name]
                if *name == wanted
                && u8::from_str_radix(flags, 16).is_ok_and(|flags| flags & TENTATIVE_OR_FAILED == 0))
        }))
    };
    namespace
        .run(move || {
            wait_for("an IPv6 link-local address", LINK_TIMEOUT, || {
                ensure!(usable()?, "there is none that is ready");
                Ok(())
            })
        })?
        .with_context(|| format!("{link} of {:?}", namespace.name()))
}

/// Waits until packets go to `gateway` and come back.
fn wait_until_reachable(host: &Host, gateway: Pair) -> Result<()> {
    for address in [IpAddr::from(gateway.v4), IpAddr::from(gateway.v6)] {
        let probe =
            Probe::new(Protocol::Udp, (address, CLOSED_PORT)).within(Duration::from_millis(2));
        wait_until(
            &format!("the way from {:?} to its gateway {address}", host.name()),
            LINK_TIMEOUT,
            || matches!(host.probe(probe), Ok(Outcome::Refused)),
        )?;
    }
    Ok(())
}
