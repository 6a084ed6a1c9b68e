//! The sockets that processes of this node listen on, among those that Services ask for.
//!
//! A Service may name an address of the node as an external IP or have it from a load balancer (k3s does that). Its
//! frontend must not hide the node's own ssh or kubelet: where a process listens, the process keeps the port, as with
//! kube-proxy before 1.23, which skipped ports that it could not open itself. The kernel is not asked while no Service
//! asks for an address of the Node object. Other addresses of the node are not protected, since they may have been added
//! for the Service (kube-vip).
//!
//! The kernel does not notify about listening sockets, so they are listed regularly (sock_diag(7); SCTP is not listed).
//! A listener counts for a while after it was last seen, so that a daemon that restarts finds its port free. Two kinds of
//! sockets do not count:
//! * An endpoint of the Service itself, a pod in the node's network namespace (ingress controllers): while it restarts,
//!   endpoints of other nodes serve.
//! * A client's UDP socket, which looks like a listener's. Within the range of ephemeral ports a socket counts only after
//!   [`SETTLED`], unless it was there before a Service asked for its port: that may be WireGuard's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use netlink::{Connection, Malformed, Message, NetlinkFamily, Reply, failed, flag};
use netlink_packet_core::{Emitable, Parseable};
use netlink_packet_sock_diag::constants::{
    AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP, SOCK_DIAG_BY_FAMILY,
};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags,
};
use service_model::{Protocol, Socket};

/// Interval between lists.
const INTERVAL: Duration = Duration::from_secs(10);
/// How long a listener counts after it was last seen.
const HOLD: Duration = Duration::from_secs(30);

/// How long a socket counts as an endpoint of the Service after EndpointSlices last had it: a process may end later than
/// its endpoint.
const ENDPOINT_HOLD: Duration = Duration::from_secs(60);
/// Lifetime from which a UDP socket at an ephemeral port is taken for a listener.
const SETTLED: Duration = Duration::from_secs(8);
/// The kernel's default range of ephemeral ports.
const EPHEMERAL: RangeInclusive<u16> = 32768..=60999;

/// The listening sockets among those that Services ask for.
#[derive(Debug, Default)]
pub struct Listeners {
    asked: BTreeSet<Socket>,
    seen: BTreeMap<Socket, Instant>,
    /// Sockets with an endpoint of the Service, and since when EndpointSlices have none there any more.
    endpoints: BTreeMap<Socket, Option<Instant>>,
    /// UDP sockets at ephemeral ports that do not count yet: inode, and when it was first seen.
    young: BTreeMap<Socket, (u32, Instant)>,
    looked_at: Option<Instant>,
    is_blind: bool,
}

impl Listeners {
    /// The sockets among `wanted` that a process listens on; true are those where the Service has an endpoint. Lists them
    /// anew when the sockets changed or a list is due. To be called whenever `wanted` changes, and when something is due.
    pub fn among(&mut self, wanted: &BTreeMap<Socket, bool>, now: Instant) -> Vec<Socket> {
        if wanted.is_empty() && self.asked.is_empty() {
            return Vec::new();
        }
        for (socket, _) in wanted.iter().filter(|(_, has_endpoint)| **has_endpoint) {
            self.endpoints.insert(*socket, None);
        }
        self.endpoints
            .retain(|socket, ended| match wanted.get(socket) {
                Some(true) => true,
                Some(false) => {
                    let ended = *ended.get_or_insert(now);
                    now.saturating_duration_since(ended) < ENDPOINT_HOLD
                }
                None => false,
            });
        let others = wanted
            .keys()
            .filter(|socket| !self.endpoints.contains_key(socket));
        let asked: &BTreeSet<Socket> = &others.copied().collect();
        let last = self.looked_at;
        let is_due = last.is_none_or(|at| at + INTERVAL <= now);
        if !asked.is_empty() && (is_due || *asked != self.asked) {
            self.looked_at = Some(now);
            match listening() {
                Ok(found) => self.found(asked, &found, now),
                Err(error) if !self.is_blind => {
                    self.is_blind = true;
                    tracing::warn!(%error, "cannot list listening sockets; external frontends at node addresses may hide local processes");
                }
                Err(_) => {}
            }
        }
        if *asked != self.asked {
            self.asked = asked.clone();
        }
        self.seen.retain(|place, at| {
            self.asked.contains(place) && now.saturating_duration_since(*at) < HOLD
        });
        self.seen.keys().copied().collect()
    }

    /// When the next list is due, or a socket ceases to count as an endpoint.
    pub fn due(&self) -> Option<Instant> {
        let is_wanted = !self.asked.is_empty();
        let list = self.looked_at.filter(|_| is_wanted).map(|at| at + INTERVAL);
        let ended = self.endpoints.values().flatten().min();
        let ended = ended.map(|ended| *ended + ENDPOINT_HOLD);
        list.into_iter().chain(ended).min()
    }

    fn found(&mut self, asked: &BTreeSet<Socket>, found: &[Listening], now: Instant) {
        let is_blind = std::mem::replace(&mut self.is_blind, false);
        if is_blind {
            tracing::info!("listing listening sockets works again");
        }
        let ephemeral = ephemeral_ports();
        let mut at_port: BTreeMap<(Protocol, u16), Vec<&Listening>> = BTreeMap::new();
        for listening in found {
            let port = (listening.protocol, listening.local.port());
            at_port.entry(port).or_default().push(listening);
        }
        for place in asked {
            let at_port = at_port
                .get(&(place.0, place.1.port()))
                .into_iter()
                .flatten();
            let there = { at_port }.find(|listening| listening.is_at(place));
            let may_be_client = place.0 == Protocol::Udp && ephemeral.contains(&place.1.port());
            if there.is_some_and(|at| !may_be_client || self.is_settled(place, at.inode, now)) {
                self.seen.insert(*place, now);
            }
        }
        self.young.retain(|place, _| asked.contains(place));
    }

    /// Whether the socket has been there for a while, or since before a Service asked for its port.
    fn is_settled(&mut self, place: &Socket, inode: u32, now: Instant) -> bool {
        if !self.asked.contains(place) || self.seen.contains_key(place) {
            return true;
        }
        let first = self.young.entry(*place).or_insert((inode, now));
        if first.0 != inode {
            *first = (inode, now);
        }
        now.saturating_duration_since(first.1) >= SETTLED
    }
}

/// A socket that accepts packets from any peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Listening {
    protocol: Protocol,
    local: SocketAddr,
    /// An unspecified IPv6 address does not include IPv4 (ipv6(7), IPV6_V6ONLY).
    v6_only: bool,
    /// Identifies the socket.
    inode: u32,
}

/// The ports that the kernel gives to sockets without one.
fn ephemeral_ports() -> RangeInclusive<u16> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let read = |text: String| {
        let mut ports = text.split_whitespace().map(|port| port.parse().ok());
        Some(ports.next()??..=ports.next()??)
    };
    text.ok().and_then(read).unwrap_or(EPHEMERAL)
}

impl Listening {
    fn is_at(&self, (protocol, place): &Socket) -> bool {
        let is_everywhere = match self.local.ip() {
            IpAddr::V4(ip) => ip.is_unspecified() && place.is_ipv4(),
            IpAddr::V6(ip) => ip.is_unspecified() && (place.is_ipv6() || !self.v6_only),
        };
        self.protocol == *protocol
            && self.local.port() == place.port()
            && (is_everywhere || self.local.ip().to_canonical() == place.ip())
    }
}

/// All TCP and UDP listeners of this network namespace.
fn listening() -> Result<Vec<Listening>, netlink::Error> {
    let mut connection = Connection::open(NetlinkFamily::SockDiag)?;
    let mut found = Vec::new();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for family in [AF_INET, AF_INET6] {
            dump(&mut connection, protocol, family, &mut found)?;
        }
    }
    Ok(found)
}

fn dump(
    connection: &mut Connection,
    protocol: Protocol,
    family: u8,
    found: &mut Vec<Listening>,
) -> Result<(), netlink::Error> {
    let (number, states) = match protocol {
        Protocol::Udp => (IPPROTO_UDP, StateFlags::CLOSE),
        _ => (IPPROTO_TCP, StateFlags::LISTEN),
    };
    let request = InetRequest {
        family,
        protocol: number,
        extensions: ExtensionFlags::empty(),
        states,
        socket_id: SocketId::new_v4(),
    };
    let mut header = vec![0; request.buffer_len()];
    request.emit(&mut header);
    let absorb = |message: &Message<'_>| {
        found.push(read(message, protocol)?);
        Ok(())
    };
    let kind = SOCK_DIAG_BY_FAMILY;
    match connection.ask(kind, flag::DUMP, &header, |_| {}, absorb)? {
        Reply::Refused(errno) => Err(failed("list listeners")(errno)),
        // Listeners that an interrupted dump lacks are found by the next.
        Reply::Done | Reply::Interrupted => Ok(()),
    }
}

fn read(message: &Message<'_>, protocol: Protocol) -> Result<Listening, Malformed> {
    let undecodable = |_| Malformed::Value("a listener");
    let response = InetResponse::parse(message.payload).map_err(undecodable)?;
    let id = &response.header.socket_id;
    Ok(Listening {
        protocol,
        local: SocketAddr::new(id.source_address, id.source_port),
        v6_only: response.nlas.contains(&Nla::SkV6Only(true)),
        inode: response.header.inode,
    })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    /// A listener as a dump lists it (`struct inet_diag_msg`), with an attribute.
    fn listed(family: u8, port: u16) -> Vec<u8> {
        let mut header = vec![family, 10, 0, 0];
        header.extend(port.to_be_bytes());
        header.extend([0; 2 + 16 + 16 + 4 + 8]);
        header.extend([0; 4 * 4]);
        header.extend(77_u32.to_ne_bytes());
        let mut out = netlink::Writer::default();
        let start = out.start(SOCK_DIAG_BY_FAMILY, 0, 1, &header);
        out.put(11, &[1]);
        out.finish(start);
        out.bytes
    }

    #[test]
    fn mutated_lists_of_sockets_do_no_harm() {
        let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/sock-diag");
        let seeds = [listed(AF_INET, 22), listed(AF_INET6, 443)];
        fuzz::fuzz(&corpus, seeds, |datagram| {
            let read = |message: Message<'_>| match read(&message, Protocol::Tcp) {
                Ok(found) => format!("{} {}", found.local.is_ipv4(), found.v6_only),
                Err(error) => error.to_string(),
            };
            let found = netlink::messages(datagram).flatten().map(read);
            fuzz::outcome(found.collect::<Vec<_>>())
        });
    }

    fn at(protocol: Protocol, place: SocketAddr, address: &str) -> Socket {
        (
            protocol,
            SocketAddr::new(address.parse().unwrap(), place.port()),
        )
    }

    #[test]
    fn a_listening_socket_counts_and_a_connected_one_does_not() {
        let everywhere = TcpListener::bind("[::]:0").unwrap().local_addr().unwrap();
        let everywhere = TcpListener::bind(everywhere).unwrap();
        let one = UdpSocket::bind("127.0.0.2:0").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let talks = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (everywhere, one) = (everywhere.local_addr().unwrap(), one.local_addr().unwrap());
        let there = [
            at(Protocol::Tcp, everywhere, "192.0.2.1"),
            at(Protocol::Tcp, everywhere, "2001:db8::1"),
            at(Protocol::Udp, one, "127.0.0.2"),
        ];
        let not_there = [
            at(Protocol::Udp, everywhere, "192.0.2.1"),
            at(Protocol::Udp, one, "127.0.0.3"),
            at(Protocol::Tcp, talks.local_addr().unwrap(), "127.0.0.1"),
        ];
        let asked = asked(&there.into_iter().chain(not_there).collect::<Vec<_>>());
        let found = Listeners::default().among(&asked, Instant::now());
        assert_eq!(BTreeSet::from_iter(found), BTreeSet::from(there));
    }

    #[test]
    fn a_listener_counts_for_a_while_after_it_closed() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let place = at(Protocol::Udp, socket.local_addr().unwrap(), "127.0.0.1");
        let (mut listeners, start) = (Listeners::default(), Instant::now());
        assert_eq!(listeners.due(), None);
        let asked = asked(&[place]);
        assert_eq!(listeners.among(&asked, start), [place]);
        drop(socket);
        assert_eq!(listeners.due(), Some(start + INTERVAL));
        assert_eq!(listeners.among(&asked, start + HOLD / 2), [place]);
        assert_eq!(listeners.among(&asked, start + HOLD), []);
        listeners.among(&BTreeMap::new(), start + HOLD);
        assert_eq!(listeners.due(), None);
    }

    fn asked(sockets: &[Socket]) -> BTreeMap<Socket, bool> {
        sockets.iter().map(|socket| (*socket, false)).collect()
    }

    #[test]
    fn an_endpoint_of_the_service_itself_is_no_listener() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let place = at(Protocol::Tcp, socket.local_addr().unwrap(), "127.0.0.1");
        let (mut listeners, start) = (Listeners::default(), Instant::now());
        let as_endpoint = BTreeMap::from([(place, true)]);
        assert_eq!(listeners.among(&as_endpoint, start), []);
        assert_eq!(listeners.due(), None);
        // Its slice lets it go before its process ends, however long it was there.
        let ended = start + 60 * ENDPOINT_HOLD;
        assert_eq!(listeners.among(&asked(&[place]), ended), []);
        assert_eq!(listeners.among(&asked(&[place]), ended + HOLD), []);
        let later = ended + ENDPOINT_HOLD;
        assert_eq!(listeners.due(), Some(later));
        assert_eq!(listeners.among(&asked(&[place]), later), [place]);
        // A process that was there before is none any more once it is an endpoint.
        assert_eq!(listeners.among(&as_endpoint, later), []);
    }

    /// In a network namespace of its own, where nobody else takes the port.
    #[test]
    fn a_client_at_an_ephemeral_port_is_no_listener() {
        let test = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
                .expect("the tests run as root");
            client_at_an_ephemeral_port();
        });
        test.join().unwrap();
    }

    fn client_at_an_ephemeral_port() {
        let free = UdpSocket::bind("0.0.0.0:0").unwrap();
        let place = at(Protocol::Udp, free.local_addr().unwrap(), "192.0.2.1");
        let (mut listeners, start) = (Listeners::default(), Instant::now());
        // It was there when the Service came: perhaps it is WireGuard's.
        assert_eq!(listeners.among(&asked(&[place]), start), [place]);
        drop(free);
        let now = start + HOLD;
        assert_eq!(listeners.among(&asked(&[place]), now), []);
        let client = UdpSocket::bind(("0.0.0.0", place.1.port())).unwrap();
        assert_eq!(listeners.among(&asked(&[place]), now + INTERVAL), []);
        drop(client);
        let other = UdpSocket::bind(("0.0.0.0", place.1.port())).unwrap();
        assert_eq!(listeners.among(&asked(&[place]), now + 2 * INTERVAL), []);
        // One that stays is a server.
        assert_eq!(
            listeners.among(&asked(&[place]), now + 3 * INTERVAL),
            [place]
        );
        drop(other);
    }
}
