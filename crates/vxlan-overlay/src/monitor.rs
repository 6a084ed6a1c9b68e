//! Hears of changes that others make to links, addresses, routes, neighbours and FDB.
//!
//! What changed is left to [`crate::Kernel::observe`]: a notification is only a reason to look, so lost ones and
//! misread ones do no harm. Our own changes, and the noise of pods that come and go, are passed over.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::route::RouteAttribute;
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};

use crate::difference::PROTOCOL;
use crate::frame::{Body, each};
use crate::kernel::{KernelError, failed, readable};

/// `RTNLGRP_LINK`, `RTNLGRP_NEIGH`, `RTNLGRP_IPV4_IFADDR`, `RTNLGRP_IPV4_ROUTE`, `RTNLGRP_IPV6_IFADDR` and
/// `RTNLGRP_IPV6_ROUTE` (rtnetlink.h). The FDB's notifications come in the neighbours' group.
const GROUPS: [u32; 6] = [1, 3, 5, 7, 9, 11];
/// `RTNLGRP_NEXTHOP` (Linux 5.3): routes that go with their nexthop object are not told of.
const NEXTHOPS: u32 = 32;
/// Some thousands of notifications: our own, of a start, among them.
const RECEIVE_SPACE: i32 = 4 << 20;
const RECEIVE: usize = 64 << 10;

/// The devices whose changes matter, by their numbers.
#[derive(Clone, Debug, Default)]
pub struct Concern {
    /// Tunnel devices: their neighbours and FDB entries matter as well.
    pub tunnels: BTreeSet<u32>,
    /// Those that tunnels stand on; `None`: that may be any. Their neighbours come and go all the time.
    pub below: Option<BTreeSet<u32>>,
}

impl Concern {
    fn is_with(&self, device: u32) -> bool {
        let is_below = self
            .below
            .as_ref()
            .is_none_or(|below| below.contains(&device));
        is_below || self.tunnels.contains(&device)
    }
}

/// A subscription in the network namespace of the thread that opened it.
pub struct Monitor {
    socket: Socket,
    own_port: u32,
    buffer: Vec<u8>,
}

impl Monitor {
    /// Subscribes to changes, but for those made through the socket of this port ([`crate::Kernel::port`]).
    pub fn open(own_port: u32) -> Result<Monitor, KernelError> {
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(failed("open"))?;
        socket.bind_auto().map_err(failed("bind"))?;
        let _ = socket.set_rx_buf_sz(RECEIVE_SPACE);
        for group in GROUPS {
            socket.add_membership(group).map_err(failed("subscribe"))?;
        }
        // A kernel without has none to tell of.
        let _ = socket.add_membership(NEXTHOPS);
        Ok(Monitor {
            socket,
            own_port,
            buffer: vec![0; RECEIVE],
        })
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
            if !readable(self.socket.as_fd(), left)? {
                continue;
            }
            let mut space = self.buffer.as_mut_slice();
            let length = match self.socket.recv(&mut space, 0) {
                Ok(length) => length,
                // Notifications were lost: anything may have changed.
                Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => return Ok(true),
                Err(error) => return Err(failed("listen")(error)),
            };
            let (mut concerned, concern) = (false, concern());
            each(self.buffer.get(..length).unwrap_or_default(), |frame| {
                concerned |= frame.port != self.own_port && concerns(&frame.body, &concern);
            });
            if concerned {
                return Ok(true);
            }
        }
    }
}

/// Neighbours of other devices come and go all the time, and so do the routes and links of pods.
fn concerns(body: &Body, concern: &Concern) -> bool {
    let message = match body {
        Body::Message(message) => message,
        Body::Nexthop(nexthop) => return nexthop.protocol == PROTOCOL,
        Body::End(_) => return false,
    };
    match message {
        Message::NewNeighbour(neighbour) | Message::DelNeighbour(neighbour) => {
            concern.tunnels.contains(&neighbour.header.ifindex)
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
            is_default
                || u8::from(route.header.protocol) == PROTOCOL
                || out.is_some_and(|device| concern.is_with(device))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::LinkMessage;
    use netlink_packet_route::neighbour::NeighbourMessage;

    use super::*;

    fn neighbour(device: u32) -> Body {
        let mut message = NeighbourMessage::default();
        message.header.ifindex = device;
        Body::Message(Message::NewNeighbour(message))
    }

    fn link(device: u32) -> Body {
        let mut message = LinkMessage::default();
        message.header.index = device;
        Body::Message(Message::NewLink(message))
    }

    /// At 5,000 peers each look takes 80 ms: neighbours of the interface below change every few seconds.
    #[test]
    fn neighbours_matter_on_tunnels_only_and_links_below_them_too() {
        let mut concern = Concern {
            tunnels: [7].into(),
            below: Some([2].into()),
        };
        let matter = |concern: &Concern| {
            let bodies = [neighbour(7), neighbour(2), link(7), link(2), link(9)];
            bodies.map(|body| concerns(&body, concern))
        };
        assert_eq!(matter(&concern), [true, false, true, true, false]);
        concern.below = None;
        assert_eq!(matter(&concern), [true, false, true, true, true]);
    }
}
