//! What people, other programs and the kernel do to the overlay's state between two steps of a walk.

use std::process::Command;

use net_types::Family;
use rand::Rng;
use rand::seq::IndexedRandom;

use super::{World, gateway, range, shell};

/// Pod CIDRs that no node has.
const STALE: u8 = 200;

impl World {
    /// Some acts, one after another. What is impossible at the moment does nothing.
    pub(super) fn disturb(&mut self) {
        for _ in 0..self.rng.random_range(1..=4) {
            let family = Family::ALL[self.rng.random_range(0..2)];
            let (program, lines) = match self.rng.random_range(0..6) {
                0 => ("ip", self.of_device(family)),
                1 => ("ip", self.of_underlay()),
                2..=3 => ("ip", self.of_routes(family)),
                4 => ("ip", self.of_neighbors(family)),
                _ => ("bridge", self.of_fdb(family)),
            };
            for line in &lines {
                self.log.push(format!("{program} {line}"));
            }
            match program {
                "ip" => shell::attempt(program, &lines),
                _ => lines.iter().for_each(|line| {
                    let mut command = Command::new(program);
                    let _ = command.args(line.split(' ')).output();
                }),
            }
        }
    }

    fn device(&self, family: Family) -> String {
        self.config.device_name(family)
    }

    /// A pod CIDR: of a peer, or of nobody.
    fn some_range(&mut self) -> u8 {
        let mut ranges: Vec<u8> = self.members.iter().skip(1).map(|m| m.range).collect();
        ranges.extend([STALE, STALE + 1]);
        ranges.choose(&mut self.rng).copied().unwrap_or(STALE)
    }

    fn some_mac(&mut self) -> String {
        format!("02:00:00:00:00:{:02x}", self.rng.random_range(1..=9))
    }

    fn of_device(&mut self, family: Family) -> Vec<String> {
        let device = self.device(family);
        let mac = self.some_mac();
        let local = match family {
            Family::Ip => "192.168.77.10",
            Family::Ip6 => "fd00:77::10",
        };
        let vxlan = |more: &str| {
            vec![
                format!("link del {device}"),
                format!("link add {device} type vxlan {more}"),
                format!("link set {device} up"),
            ]
        };
        match self.rng.random_range(0..15) {
            0 => vec![format!("link set {device} down")],
            1 => vec![
                format!("link set {device} down"),
                format!("link set {device} up"),
            ],
            2 => vec![format!("link del {device}")],
            3 => vec![format!("link set {device} address {mac}")],
            4 => vec![format!(
                "link set {device} mtu {}",
                self.rng.random_range(1000..1500)
            )],
            5 => vec![format!("addr flush dev {device}")],
            6 => {
                let stray = gateway(family, self.some_range());
                let length = if family == Family::Ip { 32 } else { 128 };
                vec![format!("addr add {stray}/{length} dev {device}")]
            }
            7 => vec![
                format!("link del {device}"),
                format!("link add {device} type bridge"),
            ],
            8 => vxlan(&format!(
                "id 7 dstport 8472 local {local} dev eth0 nolearning"
            )),
            9 => vxlan(&format!(
                "id {} dstport 4790 local {local} dev eth0",
                self.config.vni
            )),
            10 => {
                let (vni, port) = (self.config.vni, self.config.port);
                vxlan(&format!(
                    "id {vni} dstport {port} local {local} dev eth1 learning"
                ))
            }
            11 => {
                let (vni, port) = (self.config.vni, self.config.port);
                let remote = if family == Family::Ip {
                    "192.168.77.99"
                } else {
                    "fd00:77::99"
                };
                vxlan(&format!(
                    "id {vni} dstport {port} local {local} remote {remote}"
                ))
            }
            12 => {
                let (vni, port) = (self.config.vni, self.config.port);
                vxlan(&format!("id {vni} dstport {port}"))
            }
            13 => vec![format!("link set {device} type vxlan local {local}1")],
            _ => vec!["nexthop flush proto 112".to_owned()],
        }
    }

    fn of_underlay(&mut self) -> Vec<String> {
        match self.rng.random_range(0..4) {
            0 => vec![
                "link set eth0 down".to_owned(),
                "link set eth0 up".to_owned(),
            ]
            .into_iter()
            .chain(["route add default via 192.168.77.1".to_owned()])
            .chain(["-6 route add default via fd00:77::1".to_owned()])
            .collect(),
            1 => {
                let mtu = *[1500, 1400, 1340].choose(&mut self.rng).unwrap_or(&1500);
                vec![format!("link set eth0 mtu {mtu}")]
            }
            2 => vec!["addr add 192.168.77.99/24 dev eth1".to_owned()],
            _ => {
                // A DHCP client that configures every device.
                let device = self.device(Family::Ip);
                vec![format!(
                    "addr add 192.168.77.10/24 dev {device} noprefixroute"
                )]
            }
        }
    }

    fn of_routes(&mut self, family: Family) -> Vec<String> {
        let number = self.some_range();
        let (to, device) = (range(family, number), self.device(family));
        let (version, near, far, all) = match family {
            Family::Ip => ("-4", "192.168.77.77", "192.168.88.88", "10.244.0.0/16"),
            Family::Ip6 => ("-6", "fd00:77::77", "fd00:88::88", "fd00:244::/32"),
        };
        let proto = *["3", "4", "112", "186"]
            .choose(&mut self.rng)
            .unwrap_or(&"3");
        let verb = *["add", "replace", "append", "replace"]
            .choose(&mut self.rng)
            .unwrap_or(&"add");
        let own = gateway(family, number);
        let other = gateway(family, STALE + 2);
        let line = match self.rng.random_range(0..13) {
            0 => format!("route flush dev {device}"),
            1 => format!("route del {to} proto 112"),
            2..=3 => format!("route {verb} {to} via {near} dev eth0 proto {proto}"),
            4..=5 => format!("route {verb} {to} via {far} dev eth1 proto {proto}"),
            6 => format!("route {verb} {to} dev eth1 proto {proto}"),
            7 => format!("route {verb} unreachable {to} proto {proto}"),
            8 => format!("route {verb} {all} via {far} dev eth1 proto 4"),
            9 => format!("route {verb} {to} via {own} dev {device} onlink proto {proto}"),
            10 => format!("route {verb} {to} via {other} dev {device} onlink proto {proto}"),
            11 => format!("route {verb} {to} via {far} dev eth1 metric 5000 proto {proto}"),
            _ => format!("route {verb} {to} dev {device} proto {proto}"),
        };
        vec![format!("{version} {line}")]
    }

    fn of_neighbors(&mut self, family: Family) -> Vec<String> {
        let (device, mac) = (self.device(family), self.some_mac());
        let gateway = gateway(family, self.some_range());
        vec![match self.rng.random_range(0..4) {
            0 => format!("neigh flush dev {device} nud permanent"),
            1 => format!("neigh del {gateway} dev {device}"),
            2 => format!("neigh replace {gateway} lladdr {mac} dev {device} nud permanent"),
            _ => format!("neigh replace {gateway} lladdr {mac} dev {device} nud stale"),
        }]
    }

    fn of_fdb(&mut self, family: Family) -> Vec<String> {
        let device = self.device(family);
        let member = self.members.choose(&mut self.rng).map_or(1, |m| m.number);
        let mac = match self.rng.random_bool(0.7) {
            true => vxlan_overlay::Mac::of_node(&format!("node-{member}"), family).to_string(),
            false => self.some_mac(),
        };
        let to = match family {
            Family::Ip => "192.168.77.99",
            Family::Ip6 => "fd00:77::99",
        };
        vec![match self.rng.random_range(0..6) {
            0..=1 => format!("fdb del {mac} dev {device}"),
            2 => format!("fdb replace {mac} dev {device} dst {to}"),
            3 => format!("fdb replace {mac} dev {device} dst {to} port 4789"),
            4 => format!("fdb append 00:00:00:00:00:00 dev {device} dst {to}"),
            _ => format!("fdb replace {mac} dev {device} dst {to} dynamic"),
        }]
    }
}
