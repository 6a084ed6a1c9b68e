//! Relays node ports from the loopback addresses, for `--nodeport-addresses localhost` (KEP-6032).
//!
//! Rules would need `route_localnet`, which opens the loopback network to neighbors: the kernel drops answers to
//! 127.0.0.1 that arrive at another interface. So this process listens on 127.0.0.1 and ::1 and relays TCP and UDP to the
//! Service's frontend on its cluster IP. Rules select the endpoint, so session affinity, conntrack clean-up, resets and
//! counters are those of every other frontend; clients share the node's address. Where the cluster IP has another policy
//! (internal traffic policy Local), the relay connects to endpoints in turn. SCTP is not relayed.
//!
//! A loopback port that another process has is retried every second. [`CONNECTIONS`] and [`UDP_CLIENTS`] bound what
//! clients may take.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use service_dataplane::Update;
use service_model::{
    Disposition, Family, Frontend, FrontendAddress, ObjectName, Protocol, ServiceIntent,
};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_util::task::AbortOnDropHandle;

use crate::bind::bind;
use crate::config::LiveNodeConfig;
use crate::observer::Observer;
use crate::parts::{Parts, Tasks};

/// Name of the part.
const PART: &str = "node-port-relay";
/// Time for an endpoint to accept a connection; then the next one is tried.
const CONNECT: Duration = Duration::from_secs(3);
/// Lifetime of a UDP client that neither sends nor receives anything.
const UDP_IDLE: Duration = Duration::from_secs(60);
/// Maximum number of UDP clients per port; a further one replaces the client that was silent for longest.
const UDP_CLIENTS: usize = 512;
/// Maximum number of UDP clients, all ports together; a further one replaces one of its port, or is not served.
const ALL_UDP_CLIENTS: usize = 4096;
/// Maximum number of TCP connections, all ports together; further ones are closed.
const CONNECTIONS: usize = 4096;
/// Pause between log lines about that.
const COMPLAIN: Duration = Duration::from_secs(60);
/// Maximum size of a datagram.
const DATAGRAM: usize = 65_535;

/// A node port of a family, TCP or UDP.
type Port = (Family, Protocol, u16);
/// Where connections to a port go: its Service's frontend, or its endpoints. A port without targets is not served.
type Targets = Vec<SocketAddr>;
/// A port and its targets from now on.
type Change = (Port, Targets);

/// Passes the node ports of Services on to the relay.
#[derive(Debug)]
pub struct Announcer {
    config: LiveNodeConfig,
    /// The ports that each Service claims.
    ports: BTreeMap<ObjectName, Vec<Port>>,
    /// The claims of each port. The oldest Service gets the port, then the first by name, as in the tables: a port that
    /// passes to another Service is served whatever the order of the updates.
    claims: BTreeMap<Port, BTreeMap<ObjectName, Claim>>,
    changes: mpsc::UnboundedSender<Change>,
}

/// A Service's request for a port.
#[derive(Debug)]
struct Claim {
    created: i64,
    targets: Targets,
}

/// Starts relaying on a runtime, on loopback addresses of the families for which the configuration asks for that.
pub fn start(parts: &Parts, runtime: &Handle, config: LiveNodeConfig) -> Announcer {
    let (changes, receiver) = mpsc::unbounded_channel();
    let tasks = parts.tasks(PART);
    parts.task(PART, runtime, async {
        relay(receiver, tasks).await;
        Ok(())
    });
    Announcer {
        config,
        ports: BTreeMap::new(),
        claims: BTreeMap::new(),
        changes,
    }
}

impl Observer for Announcer {
    /// All Services are planned again when the configuration has changed.
    fn planned(&mut self, updates: &[Update]) {
        let config = self.config.borrow().clone();
        let mut changed = BTreeSet::new();
        for update in updates {
            let service = &update.service;
            for port in self.ports.remove(service).unwrap_or_default() {
                if let Some(claims) = self.claims.get_mut(&port) {
                    claims.remove(service);
                }
                changed.insert(port);
            }
            let Some(intent) = &update.intent else {
                continue;
            };
            let wanted = intent.frontends.iter().filter_map(|f| relayed(intent, f));
            for (port, targets) in wanted.filter(|((of, ..), _)| config.covers_loopback(*of)) {
                let claim = Claim {
                    // Without a time of creation, a Service is the youngest.
                    created: intent.created.unwrap_or(i64::MAX),
                    targets,
                };
                let claims = self.claims.entry(port).or_default();
                claims.insert(service.clone(), claim);
                self.ports.entry(service.clone()).or_default().push(port);
                changed.insert(port);
            }
        }
        for port in changed {
            let claims = self.claims.get(&port).into_iter().flatten();
            let winner = claims.min_by_key(|(_, claim)| claim.created);
            let targets = winner.map(|(_, claim)| claim.targets.clone());
            if targets.is_none() {
                self.claims.remove(&port);
            }
            // The receiver is gone only when the daemon is ending.
            let _ = self.changes.send((port, targets.unwrap_or_default()));
        }
    }
}

fn relayed(intent: &ServiceIntent, frontend: &Frontend) -> Option<(Port, Targets)> {
    let FrontendAddress::NodePort(family) = frontend.address else {
        return None;
    };
    let port = (family, frontend.protocol, frontend.port);
    match (&frontend.disposition, intent.relays.get(&port)) {
        _ if frontend.protocol == Protocol::Sctp => None,
        (Disposition::Balance(_), Some(frontend)) => Some((port, vec![*frontend])),
        (Disposition::Balance(backends), None) => {
            let endpoints = backends.iter();
            let endpoints = endpoints.map(|b| SocketAddr::new(b.address, b.port));
            Some((port, endpoints.collect()))
        }
        (Disposition::Refuse | Disposition::Drop, _) => Some((port, Vec::new())),
    }
}

/// Limits the TCP connections and the UDP clients of all ports.
struct Limit {
    permits: Arc<Semaphore>,
    udp_clients: Arc<Semaphore>,
    complained: Mutex<Option<Instant>>,
}

impl Limit {
    fn new() -> Self {
        Limit {
            permits: Arc::new(Semaphore::new(CONNECTIONS)),
            udp_clients: Arc::new(Semaphore::new(ALL_UDP_CLIENTS)),
            complained: Mutex::new(None),
        }
    }

    /// A permit for a connection, to be kept as long as the connection; `None` when there are too many.
    fn take(&self) -> Option<OwnedSemaphorePermit> {
        let permit = self.permits.clone().try_acquire_owned().ok();
        if permit.is_none() {
            self.complain(
                "too many connections to node ports on loopback; closing new ones",
                CONNECTIONS,
            );
        }
        permit
    }

    /// The same for a UDP client, whose datagrams are dropped where there are too many.
    fn take_udp(&self) -> Option<OwnedSemaphorePermit> {
        let permit = self.udp_clients.clone().try_acquire_owned().ok();
        if permit.is_none() {
            self.complain(
                "too many UDP clients of node ports on loopback; dropping datagrams of new ones",
                ALL_UDP_CLIENTS,
            );
        }
        permit
    }

    fn complain(&self, what: &str, limit: usize) {
        let mut complained = self
            .complained
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if complained.is_none_or(|at| at.elapsed() >= COMPLAIN) {
            *complained = Some(Instant::now());
            tracing::warn!(limit, "{what}");
        }
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

async fn relay(mut changes: mpsc::UnboundedReceiver<Change>, tasks: Tasks) {
    let mut served: HashMap<Port, Served> = HashMap::new();
    let limit = Arc::new(Limit::new());
    while let Some((port, endpoints)) = changes.recv().await {
        if endpoints.is_empty() {
            served.remove(&port);
            continue;
        }
        match served.get(&port) {
            Some(known) => known.endpoints.endpoints.store(Arc::new(endpoints)),
            None => {
                let endpoints = Arc::new(RoundRobin {
                    endpoints: ArcSwap::from_pointee(endpoints),
                    next: AtomicUsize::new(0),
                });
                let task = tasks.spawn(serve(port, endpoints.clone(), limit.clone()));
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

async fn serve((family, protocol, port): Port, endpoints: Arc<RoundRobin>, limit: Arc<Limit>) {
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
            serve_tcp(listener, endpoints, &limit).await;
        }
        Protocol::Udp => {
            let socket = bind(|| UdpSocket::bind(address), report).await;
            serve_udp(socket, endpoints, &limit).await;
        }
        Protocol::Sctp => {}
    }
}

async fn serve_tcp(listener: TcpListener, endpoints: Arc<RoundRobin>, limit: &Limit) {
    loop {
        let Ok((mut client, _)) = listener.accept().await else {
            // Out of file descriptors, or the client is gone.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let Some(permit) = limit.take() else {
            continue;
        };
        let endpoints = endpoints.in_turn();
        // Established connections outlive the port, as they do in the kernel.
        tokio::spawn(async move {
            let _permit = permit;
            for endpoint in endpoints {
                if let Ok(Ok(mut server)) = timeout(CONNECT, TcpStream::connect(endpoint)).await {
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                    return;
                }
            }
        });
    }
}

async fn serve_udp(socket: UdpSocket, endpoints: Arc<RoundRobin>, limit: &Limit) {
    let socket = Arc::new(socket);
    let mut clients: HashMap<SocketAddr, UdpClient> = HashMap::new();
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        let known = clients.get(&client);
        let is_served = known.is_some_and(|known| known.is_served(&endpoints));
        if !is_served {
            make_room(&mut clients, client, limit).await;
            let Some(known) = UdpClient::connect(client, &socket, &endpoints, limit).await else {
                continue;
            };
            clients.insert(client, known);
        }
        if let (Some(known), Some(datagram)) = (clients.get(&client), buffer.get(..length)) {
            known.heard_at.send_replace(Instant::now());
            // An earlier refusal is reported here, and the datagram is not sent: once more then.
            if known.server.send(datagram).await.is_err() {
                let _ = known.server.send(datagram).await;
            }
        }
    }
}

/// Ends what a client had before, or, where there are too many clients, the one that was silent for longest.
async fn make_room(
    clients: &mut HashMap<SocketAddr, UdpClient>,
    client: SocketAddr,
    limit: &Limit,
) {
    clients.retain(|_, known| !known.answers.is_finished());
    let mut ended = clients.remove(&client);
    let is_full = clients.len() >= UDP_CLIENTS || limit.udp_clients.available_permits() == 0;
    if ended.is_none() && is_full {
        let silent = clients
            .iter()
            .min_by_key(|(_, known)| *known.heard_at.borrow());
        let silent = silent.map(|(address, _)| *address);
        ended = silent.and_then(|address| clients.remove(&address));
    }
    if let Some(ended) = ended {
        ended.answers.abort();
        // The permit is free once the task has ended.
        let _ = ended.answers.await;
    }
}

/// A client of a UDP port.
struct UdpClient {
    endpoint: SocketAddr,
    server: Arc<UdpSocket>,
    heard_at: watch::Sender<Instant>,
    /// Passes answers on and keeps the permit of the client. Ends when the client is idle.
    answers: AbortOnDropHandle<()>,
}

impl UdpClient {
    /// Connects a client to the next endpoint; `None` where that fails or there are too many clients.
    async fn connect(
        client: SocketAddr,
        socket: &Arc<UdpSocket>,
        endpoints: &RoundRobin,
        limit: &Limit,
    ) -> Option<Self> {
        let permit = limit.take_udp()?;
        let endpoint = endpoints.in_turn().into_iter().next()?;
        let server = Arc::new(connect_udp(endpoint).await?);
        let (heard_at, heard) = watch::channel(Instant::now());
        let answers = answer(socket.clone(), server.clone(), client, heard);
        let task = tokio::spawn(async move {
            let _permit = permit;
            answers.await;
        });
        Some(UdpClient {
            endpoint,
            server,
            heard_at,
            answers: AbortOnDropHandle::new(task),
        })
    }

    /// Whether the client gets answers, and from an endpoint that the port still has.
    fn is_served(&self, endpoints: &RoundRobin) -> bool {
        !self.answers.is_finished() && endpoints.endpoints.load().contains(&self.endpoint)
    }
}

async fn connect_udp(endpoint: SocketAddr) -> Option<UdpSocket> {
    let any: IpAddr = match endpoint {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await.ok()?;
    socket.connect(endpoint).await.ok()?;
    Some(socket)
}

/// Passes answers on to the client, until the client is idle. A refusal ends nothing: the next datagram may reach another
/// endpoint.
async fn answer(
    socket: Arc<UdpSocket>,
    server: Arc<UdpSocket>,
    client: SocketAddr,
    heard_at: watch::Receiver<Instant>,
) {
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let Ok(received) = timeout(UDP_IDLE, server.recv(&mut buffer)).await else {
            if heard_at.borrow().elapsed() >= UDP_IDLE {
                return;
            }
            // The client sends datagrams that nobody answers: its flow stays at its endpoint.
            continue;
        };
        let datagram = received.ok().and_then(|length| buffer.get(..length));
        if let Some(datagram) = datagram {
            let _ = socket.send_to(datagram, client).await;
        }
    }
}

#[cfg(test)]
mod tests;
