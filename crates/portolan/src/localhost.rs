//! Relays node ports from the loopback addresses, for `--nodeport-addresses localhost` (KEP-6032).
//!
//! Rules would need `route_localnet`, which opens the loopback network to neighbors: the kernel drops answers to
//! 127.0.0.1 that arrive at another interface. So this process listens on 127.0.0.1 and ::1 and relays TCP and UDP to the
//! endpoints that this node's own connections would reach. SCTP is not relayed.
//!
//! A loopback port that another process has is retried every second.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use service_dataplane::Update;
use service_model::{
    Backend, Disposition, Family, Frontend, FrontendAddress, ObjectName, Protocol,
};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use crate::bind::bind;
use crate::config::LiveNodeConfig;
use crate::observer::Observer;
use crate::parts::Parts;

/// Time for an endpoint to accept a connection; then the next one is tried.
const CONNECT: Duration = Duration::from_secs(3);
/// Lifetime of an idle UDP client.
const UDP_IDLE: Duration = Duration::from_secs(60);
/// Maximum number of UDP clients per port.
const UDP_CLIENTS: usize = 1024;
/// Maximum size of a datagram.
const DATAGRAM: usize = 65_535;

/// A node port of a family, TCP or UDP.
type Port = (Family, Protocol, u16);
/// The endpoints of a port.
type Endpoints = Arc<[Backend]>;
/// The endpoints of a port to serve, or none when it is no longer served.
type Change = (Port, Option<Endpoints>);

/// Passes the node ports of Services on to the relay.
#[derive(Debug)]
pub struct Announcer {
    config: LiveNodeConfig,
    ports: BTreeMap<ObjectName, Vec<Port>>,
    changes: mpsc::UnboundedSender<Change>,
}

/// Starts relaying on a runtime, on loopback addresses of the families for which the configuration asks for that.
pub fn start(parts: &Parts, runtime: &Handle, config: LiveNodeConfig) -> Announcer {
    let (changes, receiver) = mpsc::unbounded_channel();
    parts.task("node-port-relay", runtime, async {
        relay(receiver).await;
        Ok(())
    });
    Announcer {
        config,
        ports: BTreeMap::new(),
        changes,
    }
}

impl Observer for Announcer {
    /// All Services are planned again when the configuration has changed.
    fn planned(&mut self, updates: &[Update]) {
        let config = self.config.borrow().clone();
        for update in updates {
            let frontends = update.intent.iter().flat_map(|intent| &intent.frontends);
            let wanted: Vec<(Port, Endpoints)> = frontends
                .filter_map(relayed)
                .filter(|((family, ..), _)| config.covers_loopback(*family))
                .collect();
            let ports: Vec<Port> = wanted.iter().map(|(port, _)| *port).collect();
            let known = match ports.is_empty() {
                true => self.ports.remove(&update.service),
                false => self.ports.insert(update.service.clone(), ports.clone()),
            };
            let gone = known
                .into_iter()
                .flatten()
                .filter(|port| !ports.contains(port));
            let gone = gone.map(|port| (port, None));
            let wanted = wanted
                .into_iter()
                .map(|(port, endpoints)| (port, Some(endpoints)));
            for change in gone.chain(wanted) {
                // The receiver is gone only when the daemon is ending.
                let _ = self.changes.send(change);
            }
        }
    }
}

fn relayed(frontend: &Frontend) -> Option<(Port, Endpoints)> {
    let FrontendAddress::NodePort(family) = frontend.address else {
        return None;
    };
    let port = (family, frontend.protocol, frontend.port);
    match &frontend.disposition {
        Disposition::Balance(backends) if frontend.protocol != Protocol::Sctp => {
            Some((port, backends.clone()))
        }
        Disposition::Balance(_) | Disposition::Refuse | Disposition::Drop => None,
    }
}

/// A port that is served.
struct Served {
    endpoints: Arc<RoundRobin>,
    _task: AbortOnDropHandle<()>,
}

/// Endpoints in turn.
#[derive(Debug)]
struct RoundRobin {
    endpoints: ArcSwap<Vec<SocketAddr>>,
    next: AtomicUsize,
}

impl RoundRobin {
    /// All endpoints, beginning with the next one.
    fn in_turn(&self) -> Vec<SocketAddr> {
        let mut endpoints = self.endpoints.load().to_vec();
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let first = turn.checked_rem(endpoints.len()).unwrap_or_default();
        endpoints.rotate_left(first);
        endpoints
    }
}

async fn relay(mut changes: mpsc::UnboundedReceiver<Change>) {
    let mut served: HashMap<Port, Served> = HashMap::new();
    while let Some((port, endpoints)) = changes.recv().await {
        let Some(endpoints) = endpoints else {
            served.remove(&port);
            continue;
        };
        let endpoints: Vec<SocketAddr> = endpoints
            .iter()
            .map(|b| SocketAddr::new(b.address, b.port))
            .collect();
        match served.get(&port) {
            Some(known) => known.endpoints.endpoints.store(Arc::new(endpoints)),
            None => {
                let endpoints = Arc::new(RoundRobin {
                    endpoints: ArcSwap::from_pointee(endpoints),
                    next: AtomicUsize::new(0),
                });
                let task = AbortOnDropHandle::new(tokio::spawn(serve(port, endpoints.clone())));
                served.insert(
                    port,
                    Served {
                        endpoints,
                        _task: task,
                    },
                );
            }
        }
    }
}

async fn serve((family, protocol, port): Port, endpoints: Arc<RoundRobin>) {
    let address: IpAddr = match family {
        Family::Ip => Ipv4Addr::LOCALHOST.into(),
        Family::Ip6 => Ipv6Addr::LOCALHOST.into(),
    };
    let address = SocketAddr::new(address, port);
    let report = |error: &std::io::Error| {
        tracing::warn!(%address, %protocol, %error, "cannot serve node port on loopback; retrying every second");
    };
    match protocol {
        Protocol::Tcp => {
            let listener = bind(|| TcpListener::bind(address), report).await;
            serve_tcp(listener, endpoints).await;
        }
        Protocol::Udp => {
            let socket = bind(|| UdpSocket::bind(address), report).await;
            serve_udp(socket, endpoints).await;
        }
        Protocol::Sctp => {}
    }
}

async fn serve_tcp(listener: TcpListener, endpoints: Arc<RoundRobin>) {
    loop {
        let Ok((mut client, _)) = listener.accept().await else {
            // Out of file descriptors, or the client is gone.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let endpoints = endpoints.in_turn();
        // Established connections outlive the port, as they do in the kernel.
        tokio::spawn(async move {
            for endpoint in endpoints {
                if let Ok(Ok(mut server)) = timeout(CONNECT, TcpStream::connect(endpoint)).await {
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                    return;
                }
            }
        });
    }
}

async fn serve_udp(socket: UdpSocket, endpoints: Arc<RoundRobin>) {
    let socket = Arc::new(socket);
    let mut clients: HashMap<SocketAddr, (Arc<UdpSocket>, AbortOnDropHandle<()>)> = HashMap::new();
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        clients.retain(|_, (_, answers)| !answers.is_finished());
        if !clients.contains_key(&client) && clients.len() < UDP_CLIENTS {
            let Some(server) = connect_udp(&endpoints).await else {
                continue;
            };
            let task = tokio::spawn(answer(socket.clone(), server.clone(), client));
            clients.insert(client, (server, AbortOnDropHandle::new(task)));
        }
        if let (Some((server, _)), Some(datagram)) = (clients.get(&client), buffer.get(..length)) {
            let _ = server.send(datagram).await;
        }
    }
}

async fn connect_udp(endpoints: &RoundRobin) -> Option<Arc<UdpSocket>> {
    let endpoint = endpoints.in_turn().into_iter().next()?;
    let any: IpAddr = match endpoint {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await.ok()?;
    socket.connect(endpoint).await.ok()?;
    Some(Arc::new(socket))
}

/// Passes answers on to the client, until the client is idle or the endpoint refuses.
async fn answer(socket: Arc<UdpSocket>, server: Arc<UdpSocket>, client: SocketAddr) {
    let mut buffer = vec![0; DATAGRAM];
    while let Ok(Ok(length)) = timeout(UDP_IDLE, server.recv(&mut buffer)).await {
        if let Some(datagram) = buffer.get(..length) {
            let _ = socket.send_to(datagram, client).await;
        }
    }
}

#[cfg(test)]
mod tests;
