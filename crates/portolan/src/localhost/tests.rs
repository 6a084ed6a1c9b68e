use service_model::{Masquerade, ServiceIntent};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

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
    let backends: Endpoints = backends.into();
    let disposition = match backends.is_empty() {
        true => Disposition::Refuse,
        false => Disposition::Balance(backends.clone()),
    };
    Update::from(ServiceIntent {
        service: ObjectName::new("default", format!("{protocol}-{port}")),
        created: None,
        frontends: vec![Frontend {
            place: Place::NodePort(family),
            protocol,
            port,
            disposition,
            serving: backends,
            outside: None,
            masquerade: Masquerade::Always,
            allowed_sources: None,
            affinity: None,
            counted: false,
        }],
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
async fn a_node_port_on_loopback_leads_to_its_endpoints_in_turn_and_follows_them() {
    let cancel = CancellationToken::new();
    let mut announcer = start(&Handle::current(), cancel.clone());
    let (one, two) = (server("one").await, server("two").await);
    let port = free_port();
    let v4 = Family::Ip;
    announcer.announce(&[update(v4, Protocol::Tcp, port, &[one, two])]);
    let mut said = [says(port).await, says(port).await];
    said.sort_unstable();
    assert_eq!(said, ["one", "two"]);
    announcer.announce(&[update(v4, Protocol::Tcp, port, &[two])]);
    while says(port).await != "two" || says(port).await != "two" {}
    // Without endpoints the port is closed.
    announcer.announce(&[update(v4, Protocol::Tcp, port, &[])]);
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
async fn an_endpoint_that_refuses_gives_way_to_the_next() {
    let mut announcer = start(&Handle::current(), CancellationToken::new());
    let (dead, port) = (
        SocketAddr::new(Ipv4Addr::LOCALHOST.into(), free_port()),
        free_port(),
    );
    let alive = server("alive").await;
    announcer.announce(&[update(Family::Ip, Protocol::Tcp, port, &[dead, alive])]);
    for _ in 0..4 {
        assert_eq!(says(port).await, "alive");
    }
}

#[tokio::test]
async fn udp_answers_come_back_to_the_client_that_asked() {
    let mut announcer = start(&Handle::current(), CancellationToken::new());
    let echo = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let endpoint = echo.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 64];
        while let Ok((length, from)) = echo.recv_from(&mut buffer).await {
            echo.send_to(&buffer[..length], from).await.unwrap();
        }
    });
    let port = free_port();
    announcer.announce(&[update(Family::Ip, Protocol::Udp, port, &[endpoint])]);
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
