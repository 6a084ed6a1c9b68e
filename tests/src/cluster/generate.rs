//! Random clusters, small and nasty, the same for the same seed.
//!
//! Every oddity that the API server lets through, or that a reader of it may meet, has a chance of its
//! own here. Invariant: where Kubernetes leaves an outcome open (one address and port in two slices with
//! contradicting conditions), [`Generator`] makes the contradiction go away, so that the reference model has
//! one answer; [`Generator::contradictory`] leaves it in for tests of determinism.

mod service;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};

use super::space::{
    Space, cluster_cidr, external_address, node_address, node_cidr, node_name, pod_address,
    service_cidr,
};
use super::{
    Cluster, Detect, Endpoint, Kind, Node, ServicePort, Settings, Slice, SlicePort, Transport,
};

pub(super) use self::service::unique_ports;

/// Makes clusters and changes to them.
pub struct Generator {
    pub(super) rng: SmallRng,
    pub(super) space: Space,
    pub(super) contradictory: bool,
    next_service: u16,
    next_slice: u16,
    /// Of the cluster being made: most of its objects carry it then.
    proxy_name: Option<String>,
}

/// The name of a service proxy that some Services are for.
const OTHER_PROXY: &str = "other";

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
            proxy_name: None,
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

    pub fn cluster(&mut self) -> Cluster {
        self.next_service = 0;
        self.next_slice = 0;
        let mut cluster = Cluster {
            nodes: (1..=self.space.nodes).map(|n| self.node(n)).collect(),
            settings: self.settings(),
            service_cidrs: self.service_cidrs(),
            suspects: self.suspects(),
            ..Cluster::default()
        };
        self.proxy_name = cluster.settings.service_proxy_name.clone();
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
        let detect = match self.rng.random_range(0..14) {
            0..=3 => Detect::ClusterCidr(vec![v4, v6]),
            4 => Detect::ClusterCidr(vec![v4]),
            5 => Detect::ClusterCidr(vec![v6]),
            6 => Detect::ClusterCidr(vec![]),
            7..=9 => Detect::NodeCidr,
            10 => Detect::Interface("eth0".into()),
            11 => Detect::Interface("pod3".into()),
            12 => Detect::InterfacePrefix("pod".into()),
            _ => Detect::InterfacePrefix(self.one_of(&["eth", "eth0", "cni", "pod1"]).into()),
        };
        let ranges = [
            "primary",
            "all",
            "192.168.77.0/24",
            "0.0.0.0/0",
            "172.16.0.0/12",
            "127.0.0.0/8",
            "::/0",
            "fd00:77::/64",
        ];
        let some = self.rng.random_range(1..=3);
        let some = if self.chance(50) { some } else { 0 };
        let chosen = ranges.choose_multiple(&mut self.rng, some);
        let nodeport_addresses = chosen.filter_map(|item| (*item).to_owned().try_into().ok());
        let nodeport_addresses = nodeport_addresses.collect();
        let allowed = [
            "203.0.113.0/29",
            "2001:db8::/124",
            "192.168.77.0/24",
            "::/0",
        ];
        let some = self.rng.random_range(1..=2);
        let allowed = allowed.choose_multiple(&mut self.rng, some);
        let allowed = allowed.filter_map(|range| range.parse().ok()).collect();
        Settings {
            detect,
            nodeport_addresses,
            masquerade_all: self.chance(15),
            allowed_external_ips: self.chance(15).then_some(allowed),
            service_proxy_name: self.chance(4).then(|| OTHER_PROXY.to_owned()),
        }
    }

    pub(super) fn service_cidrs(&mut self) -> Vec<(String, Vec<IpNet>)> {
        let both = vec![service_cidr(true), service_cidr(false)];
        match self.rng.random_range(0..6) {
            0 | 1 => vec![("kubernetes".into(), both)],
            2 => vec![("kubernetes".into(), vec![service_cidr(true)])],
            3 => {
                let [v4, v6] = [both[0], both[1]];
                vec![("kubernetes".into(), vec![v6]), ("more".into(), vec![v4])]
            }
            _ => Vec::new(),
        }
    }

    /// Suspect nodes, where clusters are not for real packets: nobody measures nodes there.
    pub(super) fn suspects(&mut self) -> BTreeSet<String> {
        if !self.space.odd || self.chance(60) {
            return BTreeSet::new();
        }
        let names = (1..=self.space.nodes).map(node_name);
        names.filter(|_| self.rng.random_bool(0.4)).collect()
    }

    fn one_of<'a>(&mut self, words: &[&'a str]) -> &'a str {
        words.choose(&mut self.rng).copied().unwrap_or_default()
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
            // Some tools give nodes the addresses of load balancers.
            if self.chance(15) {
                interfaces.push(external_address(6, self.chance(50)));
            }
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
            zone: match self.rng.random_range(0..5) {
                0 => None,
                n => Some(format!("zone-{}", n % 2)),
            },
            interfaces,
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
        self.add_hints(&mut endpoints);
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
            zone_hints: Vec::new(),
            node_hints: Vec::new(),
        }
    }

    /// Hints as the slice controller gives them: for all endpoints or, on the way there, for some.
    fn add_hints(&mut self, endpoints: &mut [Endpoint]) {
        let (zones, nodes) = (self.chance(30), self.chance(20));
        for endpoint in endpoints {
            if zones && self.chance(95) {
                endpoint.zone_hints = self.hints(&["zone-0", "zone-1", "zone-2"]);
            }
            if nodes && self.chance(95) {
                endpoint.node_hints = self.hints(&["node-1", "node-2", "node-3"]);
            }
        }
    }

    fn hints(&mut self, places: &[&str]) -> Vec<String> {
        let count = self.rng.random_range(1..=2);
        let chosen = places.choose_multiple(&mut self.rng, count);
        chosen.map(|place| (*place).to_owned()).collect()
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
