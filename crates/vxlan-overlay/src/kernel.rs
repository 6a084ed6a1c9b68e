//! The one place with effects on the kernel: an rtnetlink socket that reads everything and carries steps out.
//!
//! Owns sequence numbers, dumps that are repeated when they were interrupted, and batches: many steps in one send,
//! of which the refused and the last are answered. What messages mean is left to `encode` and `decode`. The socket is
//! that of the network namespace of the thread that opens it.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use netlink_packet_core::NLM_F_DUMP_INTR;
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nft::Family;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::decode::{self, Found};
use crate::difference::{Observed, ObservedRoute, ObservedTunnel, Operation};
use crate::encode::{self, Question};
use crate::frame::{Body, Frame, each};
use crate::plan::Way;
use crate::underlay::{of, of_mut};

/// The kernel answers before `send` returns; this is for what should never happen.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Steps in one send: should all be refused, the answers, about 1 kB of kernel memory each, fit the socket's default
/// receive space.
const BATCH: usize = 64;
/// The kernel's dumps come in pieces of at most 32 KiB.
const RECEIVE: usize = 64 << 10;
/// A dump that other people's changes keep interrupting is given up after so many.
const READ_ATTEMPTS: usize = 20;

/// What to look for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watched {
    /// Names of our devices, by family.
    pub devices: [String; 2],
    /// The way to these addresses is wanted as well.
    pub can_reach: Option<IpAddr>,
}

/// Why the kernel could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The socket failed.
    #[error("rtnetlink: {action} failed: {error}")]
    Socket {
        /// What was attempted.
        action: &'static str,
        /// Why it failed.
        error: io::Error,
    },
    /// What was asked for keeps changing.
    #[error("rtnetlink: {0} changes faster than it can be read")]
    Unsteady(&'static str),
    /// The kernel refused a question.
    #[error("rtnetlink: reading {what} was refused: {errno}")]
    Refused {
        /// What was read.
        what: &'static str,
        /// Error number.
        errno: Errno,
    },
}

/// A step that the kernel refused. Others of the same batch were carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The step.
    pub operation: Operation,
    /// Error number.
    pub errno: Errno,
}

/// The kernel of a network namespace.
pub struct Kernel {
    socket: Socket,
    port: u32,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Kernel {
    /// Opens the socket.
    pub fn open() -> Result<Kernel, KernelError> {
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(failed("open"))?;
        let port = socket.bind_auto().map_err(failed("bind"))?.port_number();
        socket
            .connect(&SocketAddr::new(0, 0))
            .map_err(failed("connect"))?;
        // Without it (before Linux 4.20) dumps are longer; we look again at what they hold.
        let _ = socket.set_netlink_get_strict_chk(true);
        socket.set_cap_ack(true).map_err(failed("set up"))?;
        Ok(Kernel {
            socket,
            port,
            sequence: 0,
            buffer: vec![0; RECEIVE],
        })
    }

    /// The port of the socket, by which its own changes are told from others'.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Reads all that concerns us.
    pub fn observe(&mut self, watched: &Watched) -> Result<Observed, KernelError> {
        let mut observed = Observed::default();
        self.read_links(watched, &mut observed)?;
        self.read_addresses(&mut observed)?;
        self.read_nexthops(&mut observed)?;
        for family in Family::ALL {
            self.read_routes(family, &mut observed)?;
            if let Some(device) = of(&observed.tunnels, family).device.as_ref() {
                let index = device.index;
                self.read_entries(family, index, of_mut(&mut observed.tunnels, family))?;
            }
        }
        if let Some(to) = watched.can_reach {
            let mut index = None;
            // No route is no failure: it may come.
            let _ = self.ask("a route", Question::WayTo(to), |body| {
                if let Body::Message(Message::NewRoute(message)) = body {
                    index = decode::way_to(message);
                }
            });
            *of_mut(&mut observed.surroundings.reaching, Family::of(to)) = index;
        }
        Ok(observed)
    }

    /// Carries steps out in order, each by itself, and returns those that were refused.
    pub fn apply(&mut self, steps: &[Operation]) -> Result<Vec<Refused>, KernelError> {
        let mut refused = Vec::new();
        for batch in steps.chunks(BATCH) {
            let first = self.sequence.wrapping_add(1);
            let mut bytes = Vec::with_capacity(batch.len() * 96);
            for (place, operation) in batch.iter().enumerate() {
                self.sequence = self.sequence.wrapping_add(1);
                let is_last = place + 1 == batch.len();
                encode::append_step(&mut bytes, operation, self.sequence, is_last);
            }
            self.socket.send(&bytes, 0).map_err(failed("send"))?;
            let mut through = false;
            while !through {
                self.receive(|frame| {
                    let place = frame.sequence.wrapping_sub(first) as usize;
                    if let (Some(operation), Body::End(code)) = (batch.get(place), frame.body) {
                        through |= place + 1 == batch.len();
                        if code != 0 {
                            refused.push(Refused {
                                operation: operation.clone(),
                                errno: Errno::from_raw(code),
                            });
                        }
                    }
                })?;
            }
        }
        for operation in steps {
            if let Operation::CreateDevice(device) = operation {
                settings(&device.name);
            }
        }
        Ok(refused)
    }

    fn read_links(
        &mut self,
        watched: &Watched,
        observed: &mut Observed,
    ) -> Result<(), KernelError> {
        self.dump("links", Question::Links, observed, |observed, message| {
            let Message::NewLink(message) = message else {
                return;
            };
            let Some((interface, device)) = decode::link(message) else {
                return;
            };
            for family in Family::ALL {
                if *of(&watched.devices, family) == interface.name {
                    of_mut(&mut observed.tunnels, family).device = Some(device.clone());
                }
            }
            observed.surroundings.interfaces.push(interface);
        })
    }

    fn read_addresses(&mut self, observed: &mut Observed) -> Result<(), KernelError> {
        self.dump(
            "addresses",
            Question::Addresses,
            observed,
            |observed, message| {
                let Message::NewAddress(message) = message else {
                    return;
                };
                let Some((index, address)) = decode::address(message) else {
                    return;
                };
                for tunnel in &mut observed.tunnels {
                    let ours = tunnel
                        .device
                        .as_ref()
                        .is_some_and(|device| device.index == index);
                    let link_local =
                        matches!(address.net.addr(), IpAddr::V6(v6) if v6.is_unicast_link_local());
                    if ours && !link_local {
                        tunnel.addresses.insert(address.net);
                    }
                }
                let interface = observed
                    .surroundings
                    .interfaces
                    .iter_mut()
                    .find(|i| i.index == index);
                if let Some(interface) = interface {
                    interface.addresses.push(address);
                }
            },
        )
    }

    fn read_routes(&mut self, family: Family, observed: &mut Observed) -> Result<(), KernelError> {
        let index = of(&observed.tunnels, family)
            .device
            .as_ref()
            .map(|device| device.index);
        let mut best = None;
        self.dump(
            "routes",
            Question::Routes(family),
            observed,
            |observed, message| {
                let Message::NewRoute(message) = message else {
                    return;
                };
                match decode::route(message) {
                    Some(Found::Default(out, metric))
                        if best.is_none_or(|(_, least)| metric < least) =>
                    {
                        best = Some((out, metric));
                    }
                    Some(Found::Route(out, route))
                        if route.protocol == crate::PROTOCOL || out.is_some() && out == index =>
                    {
                        let way = match route.way {
                            Some(Way::Direct(gateway, out)) if Some(out) == index => {
                                Some(Way::Tunnel(gateway))
                            }
                            way => way,
                        };
                        let routes = &mut of_mut(&mut observed.tunnels, family).routes;
                        routes.insert(ObservedRoute { way, ..route });
                    }
                    _ => {}
                }
            },
        )?;
        *of_mut(&mut observed.surroundings.default_route, family) = best.map(|(out, _)| out);
        Ok(())
    }

    /// Only IPv4 has any of ours.
    fn read_nexthops(&mut self, observed: &mut Observed) -> Result<(), KernelError> {
        let [v4, _] = &mut observed.tunnels;
        let device = v4.device.as_ref().map(|device| device.index);
        self.dump_any("nexthops", Question::Nexthops, v4, |tunnel, body| {
            let Body::Nexthop(nexthop) = body else {
                return;
            };
            let ours = device.is_some_and(|device| nexthop.is_ours(device));
            let numbers = match ours {
                true => &mut tunnel.nexthops,
                false => &mut tunnel.foreign_nexthops,
            };
            numbers.insert(nexthop.id);
        })
    }

    fn read_entries(
        &mut self,
        family: Family,
        index: u32,
        tunnel: &mut ObservedTunnel,
    ) -> Result<(), KernelError> {
        self.dump(
            "neighbours",
            Question::Neighbours(family, index),
            tunnel,
            |tunnel, message| {
                let Message::NewNeighbour(message) = message else {
                    return;
                };
                if let Some((of, address, mac)) = decode::neighbour(message)
                    && of == index
                {
                    tunnel.neighbours.insert(address, mac);
                }
            },
        )?;
        self.dump(
            "the FDB",
            Question::Forwarding(index),
            tunnel,
            |tunnel, message| {
                let Message::NewNeighbour(message) = message else {
                    return;
                };
                if let Some((of, address, mac)) = decode::neighbour(message)
                    && of == index
                {
                    tunnel.fdb.insert((mac, address));
                }
            },
        )
    }

    /// Asks until an answer was not interrupted. What an interrupted one told is forgotten.
    fn dump<T: Clone>(
        &mut self,
        what: &'static str,
        question: Question,
        into: &mut T,
        mut absorb: impl FnMut(&mut T, &Message),
    ) -> Result<(), KernelError> {
        self.dump_any(what, question, into, |into, body| {
            if let Body::Message(message) = body {
                absorb(into, message);
            }
        })
    }

    fn dump_any<T: Clone>(
        &mut self,
        what: &'static str,
        question: Question,
        into: &mut T,
        mut absorb: impl FnMut(&mut T, &Body),
    ) -> Result<(), KernelError> {
        let before = into.clone();
        for _ in 0..READ_ATTEMPTS {
            if self.ask(what, question, |body| absorb(into, body))? {
                return Ok(());
            }
            *into = before.clone();
        }
        Err(KernelError::Unsteady(what))
    }

    /// Asks once; false when the answer was interrupted.
    fn ask(
        &mut self,
        what: &'static str,
        question: Question,
        mut absorb: impl FnMut(&Body),
    ) -> Result<bool, KernelError> {
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        let mut bytes = Vec::with_capacity(64);
        encode::append_question(&mut bytes, question, sequence);
        self.socket.send(&bytes, 0).map_err(failed("send"))?;
        let (mut whole, mut end) = (true, None);
        while end.is_none() {
            self.receive(|frame| {
                if frame.sequence != sequence {
                    return;
                }
                whole &= frame.flags & NLM_F_DUMP_INTR == 0;
                match frame.body {
                    Body::End(code) => end = Some(code),
                    body => absorb(&body),
                }
            })?;
        }
        match end.map(Errno::from_raw) {
            None => Ok(whole),
            Some(errno) if errno as i32 == 0 => Ok(whole),
            // The device went while we asked, or the kernel has no IPv6.
            Some(Errno::ENODEV | Errno::ENOENT | Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP) => {
                Ok(whole)
            }
            Some(errno) => Err(KernelError::Refused { what, errno }),
        }
    }

    /// Waits for a datagram and hands on its messages.
    fn receive(&mut self, take: impl FnMut(Frame)) -> Result<(), KernelError> {
        if !readable(self.socket.as_fd(), ANSWER_TIMEOUT)? {
            let error = io::Error::from(io::ErrorKind::TimedOut);
            return Err(failed("await an answer")(error));
        }
        let mut space = self.buffer.as_mut_slice();
        let length = self.socket.recv(&mut space, 0).map_err(failed("receive"))?;
        each(self.buffer.get(..length).unwrap_or_default(), take);
        Ok(())
    }
}

/// Whether there is something to read in time.
pub(crate) fn readable(socket: BorrowedFd<'_>, timeout: Duration) -> Result<bool, KernelError> {
    let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
    let mut fds = [PollFd::new(socket, PollFlags::POLLIN)];
    match poll(&mut fds, timeout) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(errno) => Err(failed("wait")(errno.into())),
    }
}

pub(crate) fn failed(action: &'static str) -> impl Fn(io::Error) -> KernelError {
    move |error| KernelError::Socket { action, error }
}

/// Router advertisements mean nothing on a tunnel, and replies may come from sources that are not reached by it.
/// Where `/proc/sys` cannot be written these stay as they are, as they do without IPv6.
fn settings(device: &str) {
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{device}/accept_ra"), "0");
    let _ = std::fs::write(format!("/proc/sys/net/ipv4/conf/{device}/rp_filter"), "2");
}
