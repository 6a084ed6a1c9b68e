//! Node ports on the loopback addresses, for `--nodeport-addresses localhost` (KEP-6032).
//!
//! Rules cannot do it without `route_localnet`, which would open the loopback network to the neighbours: an answer to
//! 127.0.0.1 that comes in by another interface is dropped by the kernel. So this process listens on 127.0.0.1 and ::1
//! and relays, TCP and UDP, to the endpoints that this node's own connections would reach. SCTP is not relayed.
//!
//! A port that somebody else has on loopback stays theirs; it is tried again at the Service's next change.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use service_dataplane::Update;
use service_model::{Backend, Disposition, Family, Frontend, ObjectName, Place, Protocol};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// An endpoint that does not answer gives way to the next.
const CONNECT: Duration = Duration::from_secs(3);
/// A UDP client that nobody has heard from for so long is forgotten.
const UDP_IDLE: Duration = Duration::from_secs(60);
/// UDP clients of one port at a time.
const UDP_CLIENTS: usize = 1024;
/// Longest datagram.
const DATAGRAM: usize = 65_535;

/// A node port of a family, TCP or UDP.
type Port = (Family, Protocol, u16);
/// Where a port leads to.
type Endpoints = Arc<[Backend]>;
/// A port to serve, or no more.
type Change = (Port, Option<Endpoints>);

/// What the control loop tells: which Service has which ports.
#[derive(Debug)]
pub struct Announcer {
    ports: BTreeMap<ObjectName, Vec<Port>>,
    changes: mpsc::UnboundedSender<Change>,
}

/// Starts relaying on a runtime, until `cancel`led.
pub fn start(runtime: &Handle, cancel: CancellationToken) -> Announcer {
    let (changes, receiver) = mpsc::unbounded_channel();
    runtime.spawn(cancel.run_until_cancelled_owned(relay(receiver)));
    Announcer {
        ports: BTreeMap::new(),
        changes,
    }
}

impl Announcer {
    /// Takes in what Services need now.
    pub fn announce(&mut self, updates: &[Update]) {
        for update in updates {
            let frontends = update.intent.iter().flat_map(|intent| &intent.frontends);
            let wanted: Vec<(Port, Endpoints)> = frontends.filter_map(relayed).collect();
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
                // The relay ends with the process only.
                let _ = self.changes.send(change);
            }
        }
    }
}

fn relayed(frontend: &Frontend) -> Option<(Port, Endpoints)> {
    let Place::NodePort(family) = frontend.place else {
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
    endpoints: Arc<Choice>,
    task: AbortOnDropHandle<()>,
}

/// Endpoints, one after the other.
#[derive(Debug)]
struct Choice {
    endpoints: ArcSwap<Vec<SocketAddr>>,
    next: AtomicUsize,
}

impl Choice {
    /// All of them, beginning with the one whose turn it is.
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
        match served
            .get(&port)
            .filter(|served| !served.task.is_finished())
        {
            Some(known) => known.endpoints.endpoints.store(Arc::new(endpoints)),
            None => {
                let endpoints = Arc::new(Choice {
                    endpoints: ArcSwap::from_pointee(endpoints),
                    next: AtomicUsize::new(0),
                });
                let task = AbortOnDropHandle::new(tokio::spawn(serve(port, endpoints.clone())));
                served.insert(port, Served { endpoints, task });
            }
        }
    }
}

async fn serve((family, protocol, port): Port, endpoints: Arc<Choice>) {
    let address: IpAddr = match family {
        Family::Ip => Ipv4Addr::LOCALHOST.into(),
        Family::Ip6 => Ipv6Addr::LOCALHOST.into(),
    };
    let address = SocketAddr::new(address, port);
    let result = match protocol {
        Protocol::Tcp => serve_tcp(address, endpoints).await,
        Protocol::Udp => serve_udp(address, endpoints).await,
        Protocol::Sctp => Ok(()),
    };
    if let Err(error) = result {
        tracing::warn!(%address, %protocol, %error, "cannot serve node port on loopback");
    }
}

async fn serve_tcp(address: SocketAddr, endpoints: Arc<Choice>) -> std::io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    loop {
        let Ok((mut client, _)) = listener.accept().await else {
            // Out of descriptors, or the client went away: neither is helped by haste.
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

async fn serve_udp(address: SocketAddr, endpoints: Arc<Choice>) -> std::io::Result<()> {
    let socket = Arc::new(UdpSocket::bind(address).await?);
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

async fn connect_udp(endpoints: &Choice) -> Option<Arc<UdpSocket>> {
    let endpoint = endpoints.in_turn().into_iter().next()?;
    let any: IpAddr = match endpoint {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await.ok()?;
    socket.connect(endpoint).await.ok()?;
    Some(Arc::new(socket))
}

/// Passes answers on to the client, until none has come for a while or the endpoint refuses.
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
