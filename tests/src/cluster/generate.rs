//! Random clusters, small and nasty, the same for the same seed.
//!
//! Every oddity that the API server lets through, or that a reader of it may meet, has a chance of its
//! own here. Invariant: where Kubernetes leaves an outcome open (one address and port in two slices with
//! contradicting conditions), [`Generator`] makes the contradiction go away, so that the reference model has
//! one answer; [`Generator::contradictory`] leaves it in for tests of determinism.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};

use super::{
    Cluster, Detect, Endpoint, Kind, Node, Service, ServicePort, Settings, Slice, SlicePort,
    Transport,
};

/// What clusters are made of. Node number N (from 1) has addresses 192.168.77.(10+N) and fd00:77::(10+N),
/// and pods 10.244.N.x and fd00:244:N::x, with itself as their gateway at x = 1, as in the lab.
#[derive(Clone, Debug)]
pub struct Space {
    /// Number of nodes.
    pub nodes: u8,
    /// Pods of a node have x in 2..2+this.
    pub pods_per_node: u8,
    /// Ports that endpoints listen on.
    pub target_ports: Vec<u16>,
    /// Endpoints whose address, node or family is not what it should be, nodes without an address, and
    /// addresses of nodes as endpoints.
    pub odd: bool,
    /// Most endpoints of one slice, now and then.
    pub crowd: usize,
}

impl Space {
    /// For evaluation: everything that can be written down.
    pub fn anything() -> Self {
        Space {
            nodes: 3,
            pods_per_node: 30,
            target_ports: vec![8080, 8443, 53, 80],
            odd: true,
            crowd: 40,
        }
    }

    /// For real packets: only pods that exist and listen.
    pub fn real(nodes: u8, pods_per_node: u8, target_ports: Vec<u16>) -> Self {
        Space {
            nodes,
            pods_per_node,
            target_ports,
            odd: false,
            crowd: 0,
        }
    }

    fn node_number(&self, rng: &mut SmallRng) -> u8 {
        rng.random_range(1..=self.nodes)
    }

    fn pod(&self, rng: &mut SmallRng) -> (u8, u8) {
        (
            self.node_number(rng),
            rng.random_range(2..2 + self.pods_per_node),
        )
    }
}

/// Name of node number N.
pub fn node_name(node: u8) -> String {
    format!("node-{node}")
}

/// A number whose hexadecimal digits are the decimal digits of `number`: both families read alike.
fn digits(number: u8) -> u16 {
    let number = u16::from(number);
    ((number / 100) << 8) | ((number / 10 % 10) << 4) | (number % 10)
}

/// Address of node number N.
pub fn node_address(node: u8, ipv4: bool) -> IpAddr {
    underlay_address(10 + node, ipv4)
}

fn underlay_address(number: u8, ipv4: bool) -> IpAddr {
    match ipv4 {
        true => Ipv4Addr::new(192, 168, 77, number).into(),
        false => Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, digits(number)).into(),
    }
}

/// Address of a pod on node number N.
pub fn pod_address(node: u8, x: u8, ipv4: bool) -> IpAddr {
    match ipv4 {
        true => Ipv4Addr::new(10, 244, node, x).into(),
        false => Ipv6Addr::new(0xfd00, 0x244, digits(node), 0, 0, 0, 0, digits(x)).into(),
    }
}

/// Address of a client outside the cluster.
pub fn outside_address(ipv4: bool) -> IpAddr {
    underlay_address(200, ipv4)
}

fn cluster_address(number: u16, ipv4: bool) -> IpAddr {
    match ipv4 {
        true => Ipv4Addr::new(10, 96, 0, 10 + number as u8).into(),
        false => Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0x10 + number).into(),
    }
}

fn cluster_cidr(ipv4: bool) -> IpNet {
    match ipv4 {
        true => Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 16).into(),
        false => Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, 0), 32).into(),
    }
}

fn node_cidr(node: u8, ipv4: bool) -> IpNet {
    match ipv4 {
        true => Ipv4Net::new_assert(Ipv4Addr::new(10, 244, node, 0), 24).into(),
        false => Ipv6Net::new_assert(
            Ipv6Addr::new(0xfd00, 0x244, digits(node), 0, 0, 0, 0, 0),
            64,
        )
        .into(),
    }
}

/// Makes clusters and changes to them.
pub struct Generator {
    pub(super) rng: SmallRng,
    pub(super) space: Space,
    pub(super) contradictory: bool,
    next_service: u16,
    next_slice: u16,
}

impl Generator {
    /// A generator of clusters of anything.
    pub fn new(seed: u64) -> Self {
        Generator::in_space(seed, Space::anything())
    }

    /// A generator of clusters over what exists.
    pub fn in_space(seed: u64, space: Space) -> Self {
        let rng = SmallRng::seed_from_u64(seed);
        Generator {
            rng,
            space,
            contradictory: false,
            next_service: 0,
            next_slice: 0,
        }
    }

    /// Leaves contradictions between duplicate endpoints in.
    #[must_use]
    pub fn contradictory(mut self) -> Self {
        self.contradictory = true;
        self
    }

    /// The source of chance, for tests that draw more.
    pub fn rng(&mut self) -> &mut SmallRng {
        &mut self.rng
    }

    /// A new cluster.
    pub fn cluster(&mut self) -> Cluster {
        self.next_service = 0;
        self.next_slice = 0;
        let mut cluster = Cluster {
            nodes: (1..=self.space.nodes).map(|n| self.node(n)).collect(),
            settings: self.settings(),
            ..Cluster::default()
        };
        let services = *[0, 1, 1, 2, 2, 3, 3, 4, 5, 6, 8, 12]
            .choose(&mut self.rng)
            .unwrap_or(&1);
        for _ in 0..services {
            self.add_service(&mut cluster);
        }
        if self.chance(30) {
            let orphan = Some(format!("gone-{}", self.rng.random_range(0..3)));
            let service = if self.chance(50) { orphan } else { None };
            let ports = self.service_ports(&cluster, Kind::ClusterIp);
            let slice = self.slice("default", service, true, &ports, &[]);
            cluster.slices.push(slice);
        }
        cluster.slices.shuffle(&mut self.rng);
        self.settle(&mut cluster);
        cluster
    }

    pub(super) fn chance(&mut self, percent: u32) -> bool {
        self.rng.random_range(0..100) < percent
    }

    fn settings(&mut self) -> Settings {
        let (v4, v6) = (cluster_cidr(true), cluster_cidr(false));
        let detect = match self.rng.random_range(0..10) {
            0..=3 => Detect::ClusterCidr(vec![v4, v6]),
            4 => Detect::ClusterCidr(vec![v4]),
            5 => Detect::ClusterCidr(vec![v6]),
            6 => Detect::ClusterCidr(vec![]),
            _ => Detect::NodeCidr,
        };
        let ranges = [
            "192.168.77.0/24",
            "0.0.0.0/0",
            "172.16.0.0/12",
            "127.0.0.0/8",
            "::/0",
            "fd00:77::/64",
        ];
        let nodeport_addresses = self.chance(40).then(|| {
            let some = self.rng.random_range(1..=3);
            let chosen = ranges.choose_multiple(&mut self.rng, some);
            chosen.filter_map(|range| range.parse().ok()).collect()
        });
        Settings {
            detect,
            nodeport_addresses,
            masquerade_all: self.chance(15),
        }
    }

    pub(super) fn node(&mut self, number: u8) -> Node {
        let both = [true, false];
        let mut addresses: Vec<_> = both
            .iter()
            .map(|v4| ("InternalIP", node_address(number, *v4)))
            .collect();
        let mut pod_cidrs: Vec<_> = both.iter().map(|v4| node_cidr(number, *v4)).collect();
        let mut interfaces: Vec<IpAddr> = addresses.iter().map(|(_, a)| *a).collect();
        interfaces.extend(both.iter().map(|v4| pod_address(number, 1, *v4)));
        interfaces.push(Ipv4Addr::LOCALHOST.into());
        interfaces.push(Ipv6Addr::LOCALHOST.into());
        if self.space.odd {
            interfaces.push(Ipv4Addr::new(172, 16, number, 1).into());
            if self.chance(10) {
                addresses.remove(self.rng.random_range(0..2));
            }
            if self.chance(20) {
                addresses.insert(0, ("ExternalIP", Ipv4Addr::new(172, 16, number, 1).into()));
            }
            if self.chance(20) {
                pod_cidrs.remove(self.rng.random_range(0..2));
            }
        }
        addresses.shuffle(&mut self.rng);
        pod_cidrs.shuffle(&mut self.rng);
        Node {
            name: node_name(number),
            addresses,
            pod_cidrs,
            interfaces,
        }
    }

    pub(super) fn add_service(&mut self, cluster: &mut Cluster) {
        let number = self.next_service;
        self.next_service += 1;
        let kind = match self.rng.random_range(0..100) {
            0..45 => Kind::ClusterIp,
            45..88 => Kind::NodePort,
            88..94 => Kind::LoadBalancer,
            _ => Kind::ExternalName,
        };
        let mut families = vec![
            vec![true],
            vec![false],
            vec![true, false],
            vec![false, true],
        ];
        let families = families.swap_remove(self.rng.random_range(0..4));
        let headless = kind == Kind::ClusterIp && self.chance(12);
        // An ExternalName normally has no cluster IP, but may have kept one from an earlier type.
        let has_address = !headless && (kind != Kind::ExternalName || self.chance(40));
        let addresses = families.iter().map(|v4| cluster_address(number, *v4));
        let service = Service {
            namespace: ["default", "shop"]
                .choose(&mut self.rng)
                .copied()
                .unwrap_or("default")
                .into(),
            // The same names in both namespaces, now and then.
            name: format!("svc-{}", if self.chance(20) { number / 2 } else { number }),
            created: 1_700_000_000 + self.rng.random_range(0..5),
            labels: self.labels(),
            kind,
            cluster_ips: if has_address {
                addresses.collect()
            } else {
                Vec::new()
            },
            headless,
            ports: self.service_ports(cluster, kind),
        };
        let taken = cluster
            .services
            .iter()
            .any(|s| (&s.namespace, &s.name) == (&service.namespace, &service.name));
        if !taken {
            self.add_slices(cluster, &service);
            cluster.services.push(service);
            if self.space.odd && self.chance(3) {
                self.steal_address(cluster);
            }
        }
    }

    /// Makes the last Service claim what another has, which the API server normally prevents.
    fn steal_address(&mut self, cluster: &mut Cluster) {
        let Some((last, others)) = cluster.services.split_last_mut() else {
            return;
        };
        let Some(victim) = others.choose(&mut self.rng) else {
            return;
        };
        if victim.created == last.created {
            return;
        }
        last.cluster_ips = victim.cluster_ips.clone();
        for (mine, theirs) in last.ports.iter_mut().zip(&victim.ports) {
            (mine.transport, mine.port, mine.node_port) =
                (theirs.transport, theirs.port, theirs.node_port);
        }
        unique_ports(&mut last.ports);
    }

    pub(super) fn labels(&mut self) -> Vec<(String, String)> {
        let mut labels = vec![("app".to_owned(), "web".to_owned())];
        if self.chance(5) {
            labels.push((
                "service.kubernetes.io/service-proxy-name".into(),
                "other".into(),
            ));
        }
        if self.chance(4) {
            labels.push(("service.kubernetes.io/headless".into(), String::new()));
        }
        labels
    }

    pub(super) fn service_ports(&mut self, cluster: &Cluster, kind: Kind) -> Vec<ServicePort> {
        let count = *[1, 1, 1, 2, 2, 3, 4].choose(&mut self.rng).unwrap_or(&1);
        let node_ports: BTreeSet<(u16, Transport)> = cluster
            .services
            .iter()
            .flat_map(|s| s.ports.iter().map(|p| (p.node_port, p.transport)))
            .collect();
        let mut ports: Vec<ServicePort> = Vec::new();
        for index in 0..count {
            let transport = *Transport::ALL
                .choose_weighted(&mut self.rng, |t| match t {
                    Transport::Tcp => 5,
                    Transport::Udp => 3,
                    Transport::Sctp => 1,
                })
                .unwrap_or(&Transport::Tcp);
            let node_port = match kind {
                Kind::NodePort => self.rng.random_range(30_000..30_040),
                Kind::LoadBalancer if self.chance(50) => self.rng.random_range(30_000..30_040),
                _ => 0,
            };
            let free = !node_ports.contains(&(node_port, transport));
            ports.push(ServicePort {
                name: if count == 1 && self.chance(50) {
                    String::new()
                } else {
                    format!("port-{index}")
                },
                transport,
                port: *[80, 443, 53, 8080].choose(&mut self.rng).unwrap_or(&80),
                node_port: if free { node_port } else { 0 },
            });
        }
        unique_ports(&mut ports);
        ports
    }

    fn add_slices(&mut self, cluster: &mut Cluster, service: &Service) {
        for ipv4 in [true, false] {
            let wanted = service.cluster_ips.iter().any(|a| a.is_ipv4() == ipv4) || self.chance(20);
            let count = if wanted {
                *[0, 1, 1, 1, 2, 2, 3].choose(&mut self.rng).unwrap_or(&1)
            } else {
                0
            };
            let mut known = Vec::new();
            for _ in 0..count {
                let owner = Some(service.name.clone());
                let mut slice = self.slice(&service.namespace, owner, ipv4, &service.ports, &known);
                // The controller copies the two labels that matter; sometimes it has not yet.
                if self.chance(90) {
                    slice.labels = service.labels.clone();
                }
                known.extend(slice.endpoints.iter().cloned());
                cluster.slices.push(slice);
            }
        }
    }

    pub(super) fn slice(
        &mut self,
        namespace: &str,
        service: Option<String>,
        ipv4: bool,
        ports: &[ServicePort],
        known: &[Endpoint],
    ) -> Slice {
        let number = self.next_slice;
        self.next_slice += 1;
        let count = match self.rng.random_range(0..100) {
            0..15 => 0,
            15..95 => self.rng.random_range(1..=8),
            _ => self.rng.random_range(1..=self.space.crowd.max(8)),
        };
        let address_type = match (ipv4, self.space.odd && self.chance(2)) {
            (_, true) => "FQDN",
            (true, _) => "IPv4",
            (false, _) => "IPv6",
        };
        let mut endpoints: Vec<_> = (0..count).map(|_| self.endpoint(ipv4)).collect();
        // Terminating as a whole, or not ready as a whole: the interesting cases of KEP-1669.
        let mood = self.rng.random_range(0..10);
        for endpoint in &mut endpoints {
            match mood {
                0 => (endpoint.ready, endpoint.terminating) = (Some(false), Some(true)),
                1 => endpoint.ready = Some(false),
                _ => {}
            }
        }
        for endpoint in known {
            if self.chance(25) {
                let mut again = endpoint.clone();
                if self.chance(70) {
                    (again.ready, again.serving, again.terminating) = self.conditions();
                }
                endpoints.push(again);
            }
        }
        endpoints.shuffle(&mut self.rng);
        Slice {
            namespace: namespace.to_owned(),
            name: format!("slice-{number:03}"),
            labels: self.labels(),
            service,
            address_type,
            ports: self.slice_ports(ports),
            endpoints,
        }
    }

    fn slice_ports(&mut self, ports: &[ServicePort]) -> Vec<SlicePort> {
        let mut out = Vec::new();
        for port in ports {
            let mut slice_port = SlicePort {
                name: Some(port.name.clone()),
                transport: Some(port.transport),
                port: self.space.target_ports.choose(&mut self.rng).copied(),
            };
            match self.rng.random_range(0..40) {
                0 => continue,
                1 => slice_port.port = None,
                2 => slice_port.name = Some("other".into()),
                3 => slice_port.transport = Transport::ALL.choose(&mut self.rng).copied(),
                4 if port.transport == Transport::Tcp => slice_port.transport = None,
                5 if port.name.is_empty() => slice_port.name = None,
                6 => slice_port.port = Some(0),
                _ => {}
            }
            out.push(slice_port);
        }
        out.shuffle(&mut self.rng);
        out
    }

    pub(super) fn endpoint(&mut self, ipv4: bool) -> Endpoint {
        let (node, x) = self.space.pod(&mut self.rng);
        let mut address = pod_address(node, x, ipv4).to_string();
        let mut node_name = Some(node_name(node));
        if self.space.odd {
            match self.rng.random_range(0..60) {
                0 => address = pod_address(node, x, !ipv4).to_string(),
                1 => address = odd_address(&mut self.rng, ipv4),
                2 | 3 => address = node_address(node, ipv4).to_string(),
                4 => address = "10.1.2".into(),
                5 => node_name = None,
                6 => node_name = Some("node-unknown".into()),
                _ => {}
            }
        }
        let mut addresses = vec![address];
        if self.chance(2) {
            addresses.push(pod_address(node, 250, ipv4).to_string());
        }
        let (ready, serving, terminating) = self.conditions();
        Endpoint {
            addresses,
            node: node_name,
            ready,
            serving,
            terminating,
        }
    }

    pub(super) fn conditions(&mut self) -> (Option<bool>, Option<bool>, Option<bool>) {
        match self.rng.random_range(0..20) {
            0..9 => (Some(true), Some(true), Some(false)),
            9..12 => (Some(false), Some(true), Some(true)),
            12 => (Some(false), Some(false), Some(true)),
            13 => (Some(false), Some(false), Some(false)),
            14 => (None, None, None),
            _ => (self.condition(), self.condition(), self.condition()),
        }
    }

    fn condition(&mut self) -> Option<bool> {
        *[None, Some(true), Some(false)]
            .choose(&mut self.rng)
            .unwrap_or(&None)
    }
}

/// Addresses that no traffic may be sent to.
fn odd_address(rng: &mut SmallRng, ipv4: bool) -> String {
    let odd: &[&str] = match ipv4 {
        true => &[
            "127.0.0.1",
            "169.254.169.254",
            "224.0.0.1",
            "0.0.0.0",
            "255.255.255.255",
        ],
        false => &["::1", "fe80::1", "ff02::1", "::", "::ffff:10.244.1.5"],
    };
    (*odd.choose(rng).unwrap_or(&"")).to_owned()
}

/// Drops ports that repeat a number and protocol, and node ports that repeat one.
pub(super) fn unique_ports(ports: &mut Vec<ServicePort>) {
    let mut seen = BTreeSet::new();
    ports.retain(|port| seen.insert((port.port, port.transport)));
    let mut node_ports = BTreeSet::new();
    for port in ports {
        if !node_ports.insert((port.node_port, port.transport)) {
            port.node_port = 0;
        }
    }
}
