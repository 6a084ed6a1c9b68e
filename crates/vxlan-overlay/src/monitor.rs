//! Hears of changes that others make to links, addresses, routes, neighbours and FDB.
//!
//! What changed is left to [`crate::Kernel::observe`]: a notification is only a reason to look, so lost ones and
//! misread ones do no harm. Our own changes, and the noise of pods that come and go, are passed over.

use std::os::fd::AsFd;
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

    /// Waits for a change that may concern the devices of these numbers or anything they stand on; false when the time
    /// has passed without one.
    pub fn wait(
        &mut self,
        timeout: Duration,
        devices: impl Fn(u32) -> bool,
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
            let mut concerned = false;
            each(self.buffer.get(..length).unwrap_or_default(), |frame| {
                concerned |= frame.port != self.own_port && concerns(&frame.body, &devices);
            });
            if concerned {
                return Ok(true);
            }
        }
    }
}

/// Neighbours of other devices come and go all the time, and so do the routes and links of pods.
fn concerns(body: &Body, devices: &impl Fn(u32) -> bool) -> bool {
    let message = match body {
        Body::Message(message) => message,
        Body::Nexthop(nexthop) => return nexthop.protocol == PROTOCOL,
        Body::End(_) => return false,
    };
    match message {
        Message::NewNeighbour(neighbour) | Message::DelNeighbour(neighbour) => {
            devices(neighbour.header.ifindex)
        }
        Message::NewLink(link) | Message::DelLink(link) => devices(link.header.index),
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
            is_default || u8::from(route.header.protocol) == PROTOCOL || out.is_some_and(devices)
        }
        _ => false,
    }
}
