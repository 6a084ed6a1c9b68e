//! An rtnetlink socket that reads links, addresses, routes, neighbors and FDB, and applies steps.
//!
//! Owns sequence numbers, repeated dumps (after an interruption) and batches: many steps in one send, of which the
//! refused and the last are acknowledged. What messages mean is left to `encode` and `decode`. The socket belongs to the
//! network namespace of the thread that opens it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use net_types::{Family, PerFamily};
use netlink::{Connection, NetlinkFamily, Reply, Writer};
use netlink_packet_route::RouteNetlinkMessage as Message;
use nix::errno::Errno;

use super::decode::{self, Entry, Found};
use super::encode::{self, Question};
use super::frame::Body;
use crate::carriers::Outer;
use crate::difference::{Observed, ObservedRoute, ObservedTunnel, Operation};
use crate::marks::PROTOCOL;
use crate::plan::Way;
use crate::underlay::{OnLink, Surroundings};

/// Steps in one send: should all be refused, the answers, about 1 kB of kernel memory each, fit the socket's default
/// receive space.
const BATCH: usize = 64;
/// Attempts at a dump that changes of other programs keep interrupting.
const READ_ATTEMPTS: usize = 20;

/// What to observe.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watched {
    /// Names of our devices, by family.
    pub devices: PerFamily<String>,
    /// Also look up the route to this address.
    pub can_reach: Option<IpAddr>,
    /// The ranges of all pods, as far as they are known: routes to other destinations are of no concern.
    pub networks: PerFamily<Option<IpNet>>,
}

/// Why the kernel could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The socket failed.
    #[error(transparent)]
    Socket(#[from] netlink::Error),
    /// Every dump was interrupted by changes.
    #[error("rtnetlink: {0} changes faster than it can be read")]
    Unsteady(&'static str),
    /// The kernel refused a request.
    #[error("rtnetlink: reading {what} was refused: {errno}")]
    Refused {
        /// What was read.
        what: &'static str,
        /// Error number.
        errno: Errno,
    },
}

/// A step that the kernel refused. The others of its batch were applied.
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
        // What dumps hold is filtered here again.
        connection.socket().filter_dumps();
        Ok(Kernel { connection })
    }

    /// The port of the socket, which identifies its own changes among notifications.
    pub fn port(&self) -> u32 {
        self.connection.socket().port()
    }

    /// Reads the tunnel devices and the underlay.
    pub fn observe(&mut self, watched: &Watched) -> Result<Observed, KernelError> {
        let mut observed = Observed::default();
        self.read_links(watched, &mut observed)?;
        self.read_addresses(&mut observed)?;
        self.read_nexthops(&mut observed)?;
        for family in Family::ALL {
            self.read_routes(family, watched.networks[family], &mut observed)?;
            if let Some(device) = observed.tunnels[family].device.as_ref() {
                let index = device.index;
                self.read_entries(family, index, &mut observed.tunnels[family])?;
            }
        }
        if let Some(to) = watched.can_reach {
            let mut index = None;
            // A missing route is not a failure: it may be added later.
            let _ = self.ask("a route", Question::WayTo(to), |body| {
                if let Body::Message(Message::NewRoute(message)) = body {
                    index = decode::way_to(message);
                }
            });
            observed.surroundings.reaching[Family::of(to)] = index;
        }
        Ok(observed)
    }

    /// Looks up how the kernel sends to an address.
    pub fn way_to(&mut self, address: IpAddr) -> Result<Option<OnLink>, KernelError> {
        let mut way = None;
        let answer = self.ask("a route", Question::WayTo(address), |body| {
            if let Body::Message(Message::NewRoute(message)) = body {
                way = decode::on_link(message);
            }
        });
        match answer {
            // No route leads there.
            Ok(_) | Err(KernelError::Refused { .. }) => Ok(way),
            Err(error) => Err(error),
        }
    }

    /// Applies steps in order, each by itself, and returns those that were refused.
    pub fn apply(&mut self, steps: &[Operation]) -> Result<Vec<Refused>, KernelError> {
        let mut refused = Vec::new();
        for batch in steps.chunks(BATCH) {
            let requests: Vec<_> = batch
                .iter()
                .filter_map(|operation| Some((operation, encode::step_request(operation)?)))
                .collect();
            let mut told = Vec::new();
            self.send(&requests, |operation, errno| {
                told.push(Refused {
                    operation: (*operation).clone(),
                    errno,
                });
            })?;
            let (guided, others): (Vec<_>, Vec<_>) = told.into_iter().partition(wants_a_guide);
            refused.extend(others);
            refused.extend(self.put_guided(guided)?);
        }
        for operation in steps {
            if let Operation::CreateDevice(device) = operation {
                settings(&device.name);
            }
        }
        Ok(refused)
    }

    /// Sends requests in order, each with what it is for, and names those that the kernel refuses.
    fn send<T>(
        &mut self,
        requests: &[(T, encode::Request)],
        mut refused: impl FnMut(&T, Errno),
    ) -> Result<(), KernelError> {
        let write = |(_, request): &(T, encode::Request), sequence, out: &mut Writer| {
            let (kind, flags, payload) = request;
            let start = out.start(*kind, *flags, sequence, payload);
            out.finish(start);
            start
        };
        let sent = self
            .connection
            .send_each(requests, write, |(of, _), errno| refused(of, errno));
        Ok(sent?)
    }

    /// Puts routes through the tunnel while a route to their gateways leads there. The kernel refuses an IPv6 gateway
    /// that another route reaches through another device (`ip6_route_check_nh_onlink`), and such a route is often the
    /// very one that is to be replaced. With the guide it is replaced in place, without a moment without a route.
    fn put_guided(&mut self, wanted: Vec<Refused>) -> Result<Vec<Refused>, KernelError> {
        let mut refused = Vec::new();
        for batch in wanted.chunks(BATCH / 3) {
            let mut requests = Vec::new();
            for Refused { operation, .. } in batch {
                let (Some((index, gateway)), Some(put)) =
                    (gateway_of(operation), encode::step_request(operation))
                else {
                    continue;
                };
                let [add, delete] = encode::guide_requests(index, gateway);
                requests.extend([(None, add), (Some(operation), put), (None, delete)]);
            }
            self.send(&requests, |operation, errno| {
                refused.extend(operation.map(|operation| Refused {
                    operation: operation.clone(),
                    errno,
                }));
            })?;
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
                if watched.devices[family] == interface.name {
                    observed.tunnels[family].device = Some(device.clone());
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
                for (_, tunnel) in observed.tunnels.iter_mut() {
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

    fn read_routes(
        &mut self,
        family: Family,
        network: Option<IpNet>,
        observed: &mut Observed,
    ) -> Result<(), KernelError> {
        let (mut best, mut uplinks) = (None, BTreeSet::new());
        let question = Question::Routes(family);
        let tunnel = &mut observed.tunnels[family];
        self.dump("routes", question, tunnel, |tunnel, message| {
            let Message::NewRoute(message) = message else {
                return;
            };
            uplinks.extend(decode::uplinks(message, network));
            match decode::route(message) {
                Some(Found::Default(out, metric))
                    if best.as_ref().is_none_or(|(_, least)| metric < *least) =>
                {
                    best = Some((out, metric));
                }
                Some(Found::Route(out, route)) => sort_route(tunnel, network, out, route),
                _ => {}
            }
        })?;
        observed.surroundings.uplinks[family] = uplinks;
        // Of several ways at once, that with the least MTU decides what fits.
        let Surroundings {
            interfaces,
            default_route,
            ..
        } = &mut observed.surroundings;
        let ways = best.map_or_else(Vec::new, |(out, _)| out);
        let mtu = |index: &u32| {
            let mut interfaces = interfaces.iter();
            interfaces.find(|i| i.index == *index).map(|i| i.mtu)
        };
        default_route[family] = ways.into_iter().min_by_key(mtu);
        Ok(())
    }

    /// Reads nexthop objects. Only IPv4 has any of Portolan's.
    fn read_nexthops(&mut self, observed: &mut Observed) -> Result<(), KernelError> {
        let v4 = &mut observed.tunnels[Family::Ip];
        let device = v4.device.as_ref().map(|device| device.index);
        self.dump_any("nexthops", Question::Nexthops, v4, |tunnel, body| {
            let Body::Nexthop(nexthop) = body else {
                return;
            };
            let numbers = match nexthop.is_ours() {
                true if nexthop.out == device => &mut tunnel.nexthops,
                true => &mut tunnel.misplaced_nexthops,
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
        let entry = |message: &Message| match message {
            Message::NewNeighbour(message) => {
                decode::neighbor(message).filter(|entry| entry.device == index)
            }
            _ => None,
        };
        let mut guests = BTreeSet::new();
        let question = Question::Neighbors(family, index);
        self.dump("neighbors", question, tunnel, |tunnel, message| {
            let Some(Entry {
                address: Some(address),
                mac,
                ..
            }) = entry(message)
            else {
                return;
            };
            if tunnel.guests.contains(&address) {
                guests.insert(mac);
            } else {
                tunnel.neighbors.insert(address, mac);
            }
        })?;
        let question = Question::Forwarding(index);
        self.dump("the FDB", question, tunnel, |tunnel, message| {
            let Some(Entry {
                address,
                mac,
                via,
                is_odd,
                ..
            }) = entry(message)
            else {
                return;
            };
            match address.filter(|_| !is_odd) {
                _ if guests.contains(&mac) => {}
                Some(node) => drop(tunnel.fdb.insert((mac, Outer { node, via }))),
                None => drop(tunnel.odd_fdb.insert(mac)),
            }
        })
    }

    /// Repeats a request until its dump is not interrupted. What an interrupted dump returned is discarded.
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

    /// Sends a request and reads its dump. Returns false if the dump was interrupted.
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
            // The device was deleted meanwhile, or the kernel has no IPv6.
            Reply::Refused(
                Errno::ENODEV | Errno::ENOENT | Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP,
            ) => Ok(true),
            Reply::Refused(errno) => Err(KernelError::Refused { what, errno }),
        }
    }
}

/// Files a route where it belongs: with the overlay's, with other programs' routes to pods, or with those of guests.
fn sort_route(
    tunnel: &mut ObservedTunnel,
    network: Option<IpNet>,
    out: Option<u32>,
    route: ObservedRoute,
) {
    let device = tunnel.device.as_ref().map(|device| device.index);
    let through = device.is_some() && out == device;
    let way = match route.way {
        Some(Way::Direct(gateway, _)) if through => Some(Way::Tunnel(gateway)),
        way => way,
    };
    let route = ObservedRoute { way, ..route };
    let is_to_pods = network.is_none_or(|network| network.contains(&route.destination));
    if route.protocol == PROTOCOL || through && is_to_pods && route.is_flannels() {
        tunnel.routes.insert(route);
    } else if is_to_pods {
        tunnel.rivals.insert(route);
    } else if let (true, Some(Way::Tunnel(gateway))) = (through, way) {
        tunnel.guests.insert(gateway);
    }
}

fn wants_a_guide(refused: &Refused) -> bool {
    refused.errno == Errno::EINVAL && gateway_of(&refused.operation).is_some()
}

/// The tunnel device and gateway of an IPv6 route through it.
fn gateway_of(operation: &Operation) -> Option<(u32, IpAddr)> {
    match operation {
        Operation::PutRoute(index, _, Way::Tunnel(gateway)) if gateway.is_ipv6() => {
            Some((*index, *gateway))
        }
        _ => None,
    }
}

/// Disables router advertisements on the tunnel, and makes reverse-path filtering loose: replies may have sources whose
/// route does not lead through it. Errors are ignored: `/proc/sys` may be read-only, or the kernel without IPv6.
fn settings(device: &str) {
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{device}/accept_ra"), "0");
    let _ = std::fs::write(format!("/proc/sys/net/ipv4/conf/{device}/rp_filter"), "2");
}
