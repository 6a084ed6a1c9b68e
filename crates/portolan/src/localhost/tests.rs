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
