use service_model::{Backend, Masquerade, NodeConfig, NodePortAddress, ServiceIntent};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use tokio_util::sync::CancellationToken;

use super::*;
use crate::parts::parts;

fn config() -> LiveNodeConfig {
    let config = NodeConfig {
        nodeport_addresses: vec![NodePortAddress::Localhost],
        ..NodeConfig::named("node-a")
    };
    tokio::sync::watch::channel(config).1
}

fn update(family: Family, protocol: Protocol, port: u16, endpoints: &[SocketAddr]) -> Update {
    let mut backends: Vec<Backend> = endpoints
        .iter()
        .map(|endpoint| Backend {
            address: endpoint.ip(),
            port: endpoint.port(),
            local: false,
        })
        .collect();
    backends.sort_unstable();
    let backends: std::sync::Arc<[Backend]> = backends.into();
    let disposition = match backends.is_empty() {
        true => Disposition::Refuse,
        false => Disposition::Balance(backends.clone()),
    };
    Update::from(ServiceIntent {
        service: ObjectName::new("default", format!("{protocol}-{port}")),
        created: None,
        frontends: vec![Frontend {
            address: FrontendAddress::NodePort(family),
            protocol,
            port,
            service_port: port,
            disposition,
            serving: backends,
            outside: None,
            masquerade: Masquerade::Always,
            allowed_sources: None,
            affinity: None,
            counted: false,
        }],
        load_balancer_ips: Vec::new(),
        relays: Default::default(),
        reset_removed: false,
        health_check: None,
    })
}

/// A server that says its name and closes.
async fn server(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            client.write_all(name.as_bytes()).await.unwrap();
        }
    });
    address
}

/// A UDP server that sends back what it receives.
async fn echo() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 64];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            socket.send_to(&buffer[..length], from).await.unwrap();
        }
    });
    address
}

/// A UDP server that answers with its name.
async fn udp_server(name: &'static str) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = socket.recv_from(&mut buffer).await {
            socket.send_to(name.as_bytes(), from).await.unwrap();
        }
    });
    address
}

/// A UDP port that is served.
struct UdpPort {
    address: SocketAddr,
    endpoints: Arc<RoundRobin>,
    _task: AbortOnDropHandle<()>,
}

async fn udp_port(endpoint: SocketAddr, limit: Arc<Limit>) -> UdpPort {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let endpoints = Arc::new(RoundRobin {
        endpoints: ArcSwap::from_pointee(vec![endpoint]),
        next: AtomicUsize::new(0),
    });
    let served = endpoints.clone();
    let task = tokio::spawn(async move { serve_udp(socket, served, &limit).await });
    UdpPort {
        address,
        endpoints,
        _task: AbortOnDropHandle::new(task),
    }
}

/// A limit of one UDP client, all ports together.
fn one_udp_client() -> Arc<Limit> {
    Arc::new(Limit {
        udp_clients: Arc::new(Semaphore::new(1)),
        ..Limit::new()
    })
}

async fn udp_client(port: &UdpPort) -> UdpSocket {
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.connect(port.address).await.unwrap();
    client
}

/// The answer to one datagram.
async fn ask(client: &UdpSocket) -> String {
    client.send(b"hello").await.unwrap();
    let mut buffer = [0; 64];
    let received = timeout(Duration::from_secs(10), client.recv(&mut buffer)).await;
    let length = received.expect("no answer").unwrap();
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

/// Lets the runtime's clock pass over a duration.
async fn pass(duration: Duration) {
    tokio::time::pause();
    tokio::time::advance(duration).await;
    tokio::time::resume();
    // Tasks whose time is over run before the caller goes on.
    tokio::task::yield_now().await;
}

async fn until(mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(10), waiting).await.unwrap();
}

/// The same for a Service of this name and time of creation.
fn of(service: &str, created: i64, update: Update) -> Update {
    let mut intent = Arc::unwrap_or_clone(update.intent.unwrap());
    intent.service = ObjectName::new("default", service);
    intent.created = Some(created);
    Update::from(intent)
}

fn removal(service: &str) -> Update {
    Update {
        service: ObjectName::new("default", service),
        intent: None,
    }
}

fn announcer() -> Announcer {
    let parts = parts(CancellationToken::new()).0;
    start(&parts, &Handle::current(), config())
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// What the port says, once it says anything.
async fn says(port: u16) -> String {
    let asked = async {
        loop {
            let mut text = String::new();
            if let Ok(mut client) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await
                && client.read_to_string(&mut text).await.is_ok()
                && !text.is_empty()
            {
                return text;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(10), asked).await.unwrap()
}

/// Waits until the port says this.
async fn says_soon(port: u16, expected: &str) {
    let said = async { while says(port).await != expected {} };
    let said = timeout(Duration::from_secs(10), said).await;
    assert!(said.is_ok(), "the port never says {expected}");
}

#[tokio::test]
async fn a_loopback_node_port_serves_its_endpoints_in_turn() {
    let cancel = CancellationToken::new();
    let mut announcer = start(&parts(cancel.clone()).0, &Handle::current(), config());
    let (one, two) = (server("one").await, server("two").await);
    let port = free_port();
    let v4 = Family::Ip;
    announcer.planned(&[update(v4, Protocol::Tcp, port, &[one, two])]);
    let mut said = [says(port).await, says(port).await];
    said.sort_unstable();
    assert_eq!(said, ["one", "two"]);
    announcer.planned(&[update(v4, Protocol::Tcp, port, &[two])]);
    while says(port).await != "two" || says(port).await != "two" {}
    // Without endpoints the port is closed.
    announcer.planned(&[update(v4, Protocol::Tcp, port, &[])]);
    let closed = async {
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port))
            .await
            .is_ok()
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(10), closed).await.unwrap();
    cancel.cancel();
}

#[tokio::test]
async fn a_refused_connection_goes_to_the_next_endpoint() {
    let mut announcer = announcer();
    let (dead, port) = (
        SocketAddr::new(Ipv4Addr::LOCALHOST.into(), free_port()),
        free_port(),
    );
    let alive = server("alive").await;
    announcer.planned(&[update(Family::Ip, Protocol::Tcp, port, &[dead, alive])]);
    for _ in 0..4 {
        assert_eq!(says(port).await, "alive");
    }
}

#[tokio::test]
async fn udp_answers_reach_the_client_that_asked() {
    let mut announcer = announcer();
    let endpoint = echo().await;
    let port = free_port();
    announcer.planned(&[update(Family::Ip, Protocol::Udp, port, &[endpoint])]);
    for name in ["first", "second"] {
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        let mut buffer = [0; 64];
        let answered = async {
            loop {
                let _ = client.send(name.as_bytes()).await;
                let answer = timeout(Duration::from_millis(50), client.recv(&mut buffer));
                if let Ok(Ok(length)) = answer.await {
                    return length;
                }
            }
        };
        let length = timeout(Duration::from_secs(10), answered).await.unwrap();
        assert_eq!(&buffer[..length], name.as_bytes());
    }
}

#[tokio::test]
async fn a_taken_loopback_port_is_served_once_it_is_free() {
    let mut announcer = announcer();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let endpoint = server("served").await;
    announcer.planned(&[update(Family::Ip, Protocol::Tcp, port, &[endpoint])]);
    tokio::task::yield_now().await;
    drop(taken);
    assert_eq!(says(port).await, "served");
}

#[tokio::test]
async fn more_udp_clients_than_the_limit_are_all_answered() {
    let mut announcer = announcer();
    let endpoint = echo().await;
    let port = free_port();
    announcer.planned(&[update(Family::Ip, Protocol::Udp, port, &[endpoint])]);
    for n in 0..UDP_CLIENTS + 20 {
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        let mut buffer = [0; 64];
        let answered = async {
            loop {
                let _ = client.send(b"hello").await;
                let answer = timeout(Duration::from_millis(500), client.recv(&mut buffer));
                if let Ok(Ok(_)) = answer.await {
                    return;
                }
            }
        };
        let answered = timeout(Duration::from_secs(20), answered).await;
        assert!(answered.is_ok(), "client {n} has no answer");
    }
}

#[tokio::test]
async fn a_node_port_passes_from_service_to_service() {
    let mut announcer = announcer();
    let (first, second, third) = (
        server("first").await,
        server("second").await,
        server("third").await,
    );
    let port = free_port();
    let to = |endpoint| update(Family::Ip, Protocol::Tcp, port, &[endpoint]);
    announcer.planned(&[of("z", 1, to(first))]);
    says_soon(port, "first").await;
    // Updates of a batch are in the order of names.
    announcer.planned(&[of("a", 2, to(second)), removal("z")]);
    says_soon(port, "second").await;
    announcer.planned(&[of("m", 3, to(third))]);
    announcer.planned(&[removal("a")]);
    says_soon(port, "third").await;
}

#[tokio::test]
async fn the_oldest_service_has_a_contested_loopback_port() {
    let mut announcer = announcer();
    let (older, younger) = (server("older").await, server("younger").await);
    let port = free_port();
    let to = |endpoint| update(Family::Ip, Protocol::Tcp, port, &[endpoint]);
    announcer.planned(&[of("z", 1, to(older))]);
    announcer.planned(&[of("a", 2, to(younger))]);
    says_soon(port, "older").await;
    announcer.planned(&[removal("z")]);
    says_soon(port, "younger").await;
}

#[tokio::test]
async fn a_udp_client_is_answered_again_after_a_pause() {
    let limit = Arc::new(Limit::new());
    let port = udp_port(udp_server("one").await, limit.clone()).await;
    let client = udp_client(&port).await;
    assert_eq!(ask(&client).await, "one");
    pass(UDP_IDLE).await;
    until(|| limit.udp_clients.available_permits() == ALL_UDP_CLIENTS).await;
    assert_eq!(ask(&client).await, "one");
}

#[tokio::test]
async fn a_udp_client_that_only_sends_keeps_its_endpoint() {
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let endpoint = server.local_addr().unwrap();
    let port = udp_port(endpoint, Arc::new(Limit::new())).await;
    let client = udp_client(&port).await;
    let mut sources = BTreeSet::new();
    for _ in 0..4 {
        client.send(b"hello").await.unwrap();
        let received = timeout(Duration::from_secs(10), server.recv_from(&mut [0; 64])).await;
        sources.insert(received.unwrap().unwrap().1);
        pass(UDP_IDLE * 2 / 3).await;
    }
    assert_eq!(sources.len(), 1);
}

#[tokio::test]
async fn a_udp_client_moves_when_its_endpoint_is_removed() {
    let (one, two) = (udp_server("one").await, udp_server("two").await);
    let port = udp_port(one, one_udp_client()).await;
    let client = udp_client(&port).await;
    assert_eq!(ask(&client).await, "one");
    port.endpoints.endpoints.store(Arc::new(vec![two, one]));
    assert_eq!(ask(&client).await, "one");
    port.endpoints.endpoints.store(Arc::new(vec![two]));
    assert_eq!(ask(&client).await, "two");
}

#[tokio::test]
async fn an_idle_udp_client_frees_its_place_for_other_ports() {
    let limit = one_udp_client();
    let one = udp_port(udp_server("one").await, limit.clone()).await;
    let two = udp_port(udp_server("two").await, limit.clone()).await;
    assert_eq!(ask(&udp_client(&one).await).await, "one");
    pass(UDP_IDLE).await;
    until(|| limit.udp_clients.available_permits() == 1).await;
    assert_eq!(ask(&udp_client(&two).await).await, "two");
}

#[tokio::test]
async fn a_new_udp_client_takes_a_place_at_the_limit() {
    let port = udp_port(udp_server("one").await, one_udp_client()).await;
    for _ in 0..3 {
        assert_eq!(ask(&udp_client(&port).await).await, "one");
    }
}
