//! Receives notifications of foreign changes to links, addresses, routes, neighbors and FDB.
//!
//! What has changed is left to [`crate::Kernel::observe`]: a notification is only a reason to observe, so lost and
//! misread ones are safe. Portolan's own changes and those of pods are skipped.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use netlink::{NetlinkFamily, Socket, failed, messages};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use nix::errno::Errno;

use super::decode::{self, Found};
use super::frame::Body;
use super::kernel::KernelError;
use crate::marks::PROTOCOL;

/// `RTNLGRP_LINK`, `RTNLGRP_NEIGH`, `RTNLGRP_IPV4_IFADDR`, `RTNLGRP_IPV4_ROUTE`, `RTNLGRP_IPV4_RULE`, `RTNLGRP_IPV6_IFADDR`,
/// `RTNLGRP_IPV6_ROUTE` and `RTNLGRP_IPV6_RULE` (rtnetlink.h). The FDB's notifications come in the neighbors' group.
const GROUPS: [i32; 8] = [1, 3, 5, 7, 8, 9, 11, 19];
/// `RTNLGRP_NEXTHOP` (Linux 5.3): no notification is sent for routes that are deleted with their nexthop object.
const NEXTHOPS: i32 = 32;
/// Some thousands of notifications: our own, of a start, among them.
const RECEIVE_SPACE: usize = 4 << 20;

/// The devices whose changes matter, by their numbers.
#[derive(Clone, Debug, Default)]
pub struct Concern {
    /// Tunnel devices: their neighbors and FDB entries matter as well.
    pub tunnels: BTreeSet<u32>,
    /// Devices below tunnels; `None`: any device may be one. Their neighbors change all the time.
    pub below: Option<BTreeSet<u32>>,
    /// Interfaces that are known to lead to gateways.
    pub uplinks: BTreeSet<u32>,
    /// Ranges of all pods: no notification says that a route of another program has replaced one of the overlay's, so
    /// all routes into these matter, but for those to single pods.
    pub networks: Vec<IpNet>,
    /// Public addresses of peers, sorted, where a peer on the link is reached without the tunnel: routes to these decide.
    pub hosts: Vec<IpAddr>,
}

impl Concern {
    fn is_with(&self, device: u32) -> bool {
        let is_below = self
            .below
            .as_ref()
            .is_none_or(|below| below.contains(&device));
        is_below || self.tunnels.contains(&device)
    }

    fn is_with_route(&self, message: &RouteMessage) -> bool {
        let Some(Found::Route(_, route)) = decode::route(message) else {
            return false;
        };
        let destination = route.destination;
        let next = self
            .hosts
            .partition_point(|host| *host < destination.network());
        let leads_to_host = |host: &IpAddr| destination.contains(host);
        if self.hosts.get(next).is_some_and(leads_to_host) {
            return true;
        }
        let is_to_one = destination.prefix_len() == destination.max_prefix_len();
        let mut networks = self.networks.iter();
        !is_to_one && networks.any(|network| network.contains(&destination))
    }
}

/// A subscription in the network namespace of the thread that opened it.
pub struct Monitor {
    socket: Socket,
    own_port: u32,
}

impl Monitor {
    /// Subscribes to changes, but for those made through the socket of this port ([`crate::Kernel::port`]).
    pub fn open(own_port: u32) -> Result<Monitor, KernelError> {
        let socket = Socket::open(NetlinkFamily::Route)?;
        socket.set_receive_space(RECEIVE_SPACE)?;
        for group in GROUPS {
            socket.join(group)?;
        }
        // Older kernels have no nexthop objects.
        let _ = socket.join(NEXTHOPS);
        Ok(Monitor { socket, own_port })
    }

    /// Waits for a change that may be of concern, as it is when it comes; false when the time has passed without one.
    pub fn wait(
        &mut self,
        timeout: Duration,
        concern: impl Fn() -> Arc<Concern>,
    ) -> Result<bool, KernelError> {
        let end = Instant::now() + timeout;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let datagram = match self.socket.try_receive() {
                Ok(Some(datagram)) => datagram,
                Ok(None) => {
                    self.socket.wait(left)?;
                    continue;
                }
                // Notifications were lost: anything may have changed.
                Err(Errno::ENOBUFS | Errno::EMSGSIZE) => return Ok(true),
                Err(errno) => return Err(failed("receive notifications")(errno).into()),
            };
            let concern = concern();
            let concerned = messages(datagram).flatten().any(|message| {
                message.port != self.own_port
                    && Body::of(&message).is_some_and(|body| concerns(&body, &concern))
            });
            if concerned {
                return Ok(true);
            }
        }
    }
}

/// Neighbors of other devices change all the time, and so do the routes and links of pods.
fn concerns(body: &Body, concern: &Concern) -> bool {
    let message = match body {
        Body::Message(message) => message,
        Body::Nexthop(nexthop) => return nexthop.protocol == PROTOCOL,
    };
    match message {
        Message::NewNeighbour(neighbor) | Message::DelNeighbour(neighbor) => {
            concern.tunnels.contains(&neighbor.header.ifindex)
        }
        Message::NewLink(link) | Message::DelLink(link) => concern.is_with(link.header.index),
        // The external interface may be chosen by any address, and by the default route.
        Message::NewAddress(_) | Message::DelAddress(_) => true,
        Message::NewRoute(route) | Message::DelRoute(route) => {
            let out = route
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    RouteAttribute::Oif(index) => Some(*index),
                    _ => None,
                });
            let is_default = route.header.destination_prefix_length == 0;
            let gateways = decode::uplinks(route, None);
            let mut gateways = gateways.iter();
            is_default
                || gateways.any(|uplink| !concern.uplinks.contains(uplink))
                || u8::from(route.header.protocol) == PROTOCOL
                || out.is_some_and(|device| concern.is_with(device))
                || concern.is_with_route(route)
        }
        // Few and seldom: those of carriers are among them.
        Message::NewRule(_) | Message::DelRule(_) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::LinkMessage;
    use netlink_packet_route::neighbour::NeighbourMessage;

    use super::*;

    fn neighbor(device: u32) -> Body {
        let mut message = NeighbourMessage::default();
        message.header.ifindex = device;
        Body::Message(Message::NewNeighbour(message))
    }

    fn link(device: u32) -> Body {
        let mut message = LinkMessage::default();
        message.header.index = device;
        Body::Message(Message::NewLink(message))
    }

    /// At 5,000 peers each look takes 80 ms: neighbors of the interface below change every few seconds.
    #[test]
    fn neighbors_matter_on_tunnels_only_and_links_below_them_too() {
        let mut concern = Concern {
            tunnels: [7].into(),
            below: Some([2].into()),
            ..Concern::default()
        };
        let matter = |concern: &Concern| {
            let bodies = [neighbor(7), neighbor(2), link(7), link(2), link(9)];
            bodies.map(|body| concerns(&body, concern))
        };
        assert_eq!(matter(&concern), [true, false, true, true, false]);
        concern.below = None;
        assert_eq!(matter(&concern), [true, false, true, true, true]);
    }

    #[test]
    fn foreign_routes_to_pod_cidrs_matter_whatever_their_device() {
        let route = |destination: &str, prefix| {
            let mut message = RouteMessage::default();
            message.header.address_family = netlink_packet_route::AddressFamily::Inet;
            message.header.destination_prefix_length = prefix;
            message.header.table = 254;
            let destination: std::net::Ipv4Addr = destination.parse().unwrap();
            message.attributes = vec![
                RouteAttribute::Destination(destination.into()),
                RouteAttribute::Oif(9),
            ];
            Body::Message(Message::NewRoute(message))
        };
        let concern = Concern {
            tunnels: [7].into(),
            below: Some([2].into()),
            uplinks: [2].into(),
            networks: vec!["10.244.0.0/16".parse().unwrap()],
            hosts: vec!["192.0.2.7".parse().unwrap(), "192.0.2.9".parse().unwrap()],
        };
        let matters = |destination, prefix| concerns(&route(destination, prefix), &concern);
        assert!(matters("10.244.3.0", 24));
        assert!(!matters("10.244.0.7", 32) && !matters("10.96.0.0", 16));
        assert!(matters("192.0.2.9", 32) && matters("192.0.2.0", 28));
        assert!(!matters("192.0.2.8", 32) && !matters("192.0.2.128", 25));
    }
}
