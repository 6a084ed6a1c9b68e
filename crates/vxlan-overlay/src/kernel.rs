//! The one place with effects on the kernel: an rtnetlink socket that reads everything and carries steps out.
//!
//! Owns sequence numbers, dumps that are repeated when they were interrupted, and batches: many steps in one send,
//! of which the refused and the last are answered. What messages mean is left to `encode` and `decode`. The socket is
//! that of the network namespace of the thread that opens it.

use std::net::IpAddr;

use netlink::{Connection, NetlinkFamily, Reply, Writer};
use netlink_packet_route::RouteNetlinkMessage as Message;
use nft::Family;
use nix::errno::Errno;

use crate::decode::{self, Found};
use crate::difference::{Observed, ObservedRoute, ObservedTunnel, Operation};
use crate::encode::{self, Question};
use crate::frame::Body;
use crate::plan::Way;
use crate::underlay::{of, of_mut};

/// Steps in one send: should all be refused, the answers, about 1 kB of kernel memory each, fit the socket's default
/// receive space.
const BATCH: usize = 64;
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
    #[error(transparent)]
    Socket(#[from] netlink::Error),
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
    connection: Connection,
}

impl Kernel {
    /// Opens the socket.
    pub fn open() -> Result<Kernel, KernelError> {
        let connection = Connection::open(NetlinkFamily::Route)?;
        // We filter again what dumps hold.
        connection.socket().filter_dumps();
        Ok(Kernel { connection })
    }

    /// The port of the socket, by which its own changes are told from others'.
    pub fn port(&self) -> u32 {
        self.connection.socket().port()
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
            let requests: Vec<_> = batch
                .iter()
                .filter_map(|operation| Some((operation, encode::step_request(operation)?)))
                .collect();
            let write = |(_, request): &(_, encode::Request), sequence, out: &mut Writer| {
                let (kind, flags, payload) = request;
                let start = out.start(*kind, *flags, sequence, payload);
                out.finish(start);
                start
            };
            self.connection
                .send_each(&requests, write, |(operation, _), errno| {
                    refused.push(Refused {
                        operation: (*operation).clone(),
                        errno,
                    });
                })?;
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
        let (kind, flags, payload) = encode::question_request(question);
        let reply = self.connection.ask(
            kind,
            flags,
            &payload,
            |_| {},
            |message| {
                if let Some(body) = Body::of(message) {
                    absorb(&body);
                }
                Ok(())
            },
        )?;
        match reply {
            Reply::Done => Ok(true),
            Reply::Interrupted => Ok(false),
            // The device went while we asked, or the kernel has no IPv6.
            Reply::Refused(
                Errno::ENODEV | Errno::ENOENT | Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP,
            ) => Ok(true),
            Reply::Refused(errno) => Err(KernelError::Refused { what, errno }),
        }
    }
}

/// Router advertisements mean nothing on a tunnel, and replies may come from sources that are not reached by it.
/// Where `/proc/sys` cannot be written these stay as they are, as they do without IPv6.
fn settings(device: &str) {
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{device}/accept_ra"), "0");
    let _ = std::fs::write(format!("/proc/sys/net/ipv4/conf/{device}/rp_filter"), "2");
}
