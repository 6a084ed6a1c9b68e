//! What random clusters are made of: the addresses of the lab's plan, and how odd things may get.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rand::Rng;
use rand::rngs::SmallRng;

/// What clusters are made of. Node number N (from 1) has addresses 192.168.77.(10+N) and fd00:77::(10+N),
/// and pods 10.244.N.x and fd00:244:N::x, with itself as their gateway at x = 1, as in the lab.
#[derive(Clone, Debug)]
pub struct Space {
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

    pub(super) fn node_number(&self, rng: &mut SmallRng) -> u8 {
        rng.random_range(1..=self.nodes)
    }

    pub(super) fn pod(&self, rng: &mut SmallRng) -> (u8, u8) {
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

/// Node number and x of an address that a pod could have.
pub fn pod_of(address: IpAddr) -> Option<(u8, u8)> {
    let (node, x) = match address {
        IpAddr::V4(a) => (a.octets()[2], a.octets()[3]),
        IpAddr::V6(a) => (number(a.segments()[2])?, number(a.segments()[7])?),
    };
    (pod_address(node, x, address.is_ipv4()) == address).then_some((node, x))
}

/// The number that [`digits`] wrote.
fn number(digits: u16) -> Option<u8> {
    format!("{digits:x}").parse().ok()
}

/// Address of a client outside the cluster.
pub fn outside_address(ipv4: bool) -> IpAddr {
    underlay_address(200, ipv4)
}

pub(super) fn cluster_address(number: u16, ipv4: bool) -> IpAddr {
    match ipv4 {
        true => Ipv4Addr::new(10, 96, 0, 10 + number as u8).into(),
        false => Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0x10 + number).into(),
    }
}

/// The range of all pods' addresses.
pub fn cluster_cidr(ipv4: bool) -> IpNet {
    match ipv4 {
        true => Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 16).into(),
        false => Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, 0), 32).into(),
    }
}

pub(super) fn node_cidr(node: u8, ipv4: bool) -> IpNet {
    match ipv4 {
        true => Ipv4Net::new_assert(Ipv4Addr::new(10, 244, node, 0), 24).into(),
        false => Ipv6Net::new_assert(
            Ipv6Addr::new(0xfd00, 0x244, digits(node), 0, 0, 0, 0, 0),
            64,
        )
        .into(),
    }
}

/// Number `number` of the addresses outside the cluster that Services may ask for.
pub fn external_address(number: u8, ipv4: bool) -> IpAddr {
    match ipv4 {
        true => Ipv4Addr::new(203, 0, 113, number).into(),
        false => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, digits(number)).into(),
    }
}

/// Every [`external_address`].
pub fn external_range(ipv4: bool) -> IpNet {
    match ipv4 {
        true => Ipv4Net::new_assert(Ipv4Addr::new(203, 0, 113, 0), 24).into(),
        false => Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 64).into(),
    }
}

/// The range cluster IPs are taken from.
pub fn service_cidr(ipv4: bool) -> IpNet {
    match ipv4 {
        true => Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 16).into(),
        false => Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0), 112).into(),
    }
}
