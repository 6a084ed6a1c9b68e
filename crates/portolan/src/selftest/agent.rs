//! What runs in the test's pods: a server that answers with its name and the client's address, and attempts to connect.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use service_model::printable;

use crate::cli::SelftestPart as Part;

/// Time for one attempt: longer than TCP's first retry, so one lost packet is no failure.
const PATIENCE: Duration = Duration::from_millis(2_500);
/// Connections that a server serves at a time; others are closed.
const CONNECTIONS: usize = 256;
/// Largest datagram.
const DATAGRAM: usize = 65_535;
/// Failures after which the other attempts to a destination are not made: each takes its time.
const FAILURES: usize = 2;
/// Characters of a server's name.
const NAME: usize = 253;
/// Identifier of DNS queries.
const QUERY: [u8; 2] = [0x50, 0x6f];

/// How to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Way {
    Tcp,
    Udp,
    /// A question to a health check node port, over HTTP.
    Health,
    /// A query for the address of `kubernetes.default.svc.cluster.local`, over UDP.
    Dns,
}

/// Attempts to one destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Attempt {
    pub(super) way: Way,
    pub(super) to: SocketAddr,
    /// Number of connections, one after the other.
    pub(super) count: usize,
    /// Bytes that go there and back in each.
    pub(super) bytes: usize,
}

/// What became of the attempts to one destination.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Answer {
    /// Answers by the server's name.
    pub(super) servers: BTreeMap<String, usize>,
    /// Failures by their kind: `refused`, `no answer`, or an error.
    pub(super) failures: BTreeMap<String, usize>,
}

/// The answers, in the order of the attempts.
pub(super) type Answers = Vec<Answer>;

/// Runs a part. A server runs until it is ended.
///
/// # Errors
/// The port cannot be bound, or the attempts cannot be read.
pub(super) fn run(part: &Part) -> Result<()> {
    match part {
        Part::Serve { name, port } => serve(name, *port),
        Part::Connect { attempts } => {
            let attempts: Vec<Attempt> =
                serde_json::from_str(attempts).context("cannot read the attempts")?;
            let answers: Answers = std::thread::scope(|scope| {
                let made: Vec<_> = attempts
                    .iter()
                    .map(|attempt| scope.spawn(move || make(attempt)))
                    .collect();
                let answers = made.into_iter().map(|made| made.join().unwrap_or_default());
                answers.collect()
            });
            let text = serde_json::to_string(&answers)?;
            std::io::stdout().write_all(text.as_bytes())?;
            Ok(())
        }
    }
}

/// The wildcard addresses: of both families, or of IPv4 where there is no IPv6.
fn wildcards(port: u16) -> [SocketAddr; 2] {
    [
        (Ipv6Addr::UNSPECIFIED, port).into(),
        (Ipv4Addr::UNSPECIFIED, port).into(),
    ]
}

fn serve(name: &str, port: u16) -> Result<()> {
    let listener = TcpListener::bind(&wildcards(port)[..]).context("cannot listen")?;
    let socket = UdpSocket::bind(&wildcards(port)[..]).context("cannot bind UDP")?;
    let name = name.to_owned();
    let datagrams = name.clone();
    std::thread::spawn(move || answer_datagrams(&socket, &datagrams));
    let served = Arc::new(());
    loop {
        // The client may have gone already.
        let Ok((stream, peer)) = listener.accept() else {
            continue;
        };
        let (name, guard) = (name.clone(), served.clone());
        if Arc::strong_count(&served) > CONNECTIONS {
            continue;
        }
        std::thread::spawn(move || {
            let _guard = guard;
            let _ = answer_stream(stream, &format!("{name} {peer}\n"));
        });
    }
}

fn answer_stream(mut stream: TcpStream, greeting: &str) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(greeting.as_bytes())?;
    let mut buffer = vec![0; 65_536];
    loop {
        let length = stream.read(&mut buffer)?;
        match buffer.get(..length) {
            Some(part) if !part.is_empty() => stream.write_all(part)?,
            _ => return Ok(()),
        }
    }
}

fn answer_datagrams(socket: &UdpSocket, name: &str) {
    let mut buffer = vec![0; DATAGRAM];
    loop {
        // An error is an ICMP message about an earlier answer.
        let Ok((length, peer)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let sent = buffer.get(..length).unwrap_or_default();
        let answer = [format!("{name} {peer}\n").as_bytes(), sent].concat();
        let _ = socket.send_to(&answer, peer);
    }
}

fn make(attempt: &Attempt) -> Answer {
    let mut answer = Answer::default();
    for _ in 0..attempt.count {
        if answer.failures.values().sum::<usize>() >= FAILURES {
            break;
        }
        let made = match attempt.way {
            Way::Tcp => connect(attempt.to, attempt.bytes),
            Way::Udp => exchange(attempt.to, attempt.bytes),
            Way::Health => health(attempt.to),
            Way::Dns => resolve(attempt.to),
        };
        match made {
            Ok(server) => *answer.servers.entry(server).or_default() += 1,
            Err(error) => *answer.failures.entry(failure(&error)).or_default() += 1,
        }
    }
    answer
}

/// The kind of a failure.
fn failure(error: &anyhow::Error) -> String {
    let kind = error
        .downcast_ref::<std::io::Error>()
        .map(std::io::Error::kind);
    match kind {
        Some(ErrorKind::ConnectionRefused) => "refused".to_owned(),
        Some(ErrorKind::WouldBlock | ErrorKind::TimedOut) => "no answer".to_owned(),
        Some(ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable) => {
            "unreachable".to_owned()
        }
        _ => format!("{error:#}"),
    }
}

/// The name in a greeting, which may be another server's.
fn name_in(greeting: &str) -> Result<String> {
    let name = greeting.split_once(' ');
    let name = name.map(|(name, _)| printable(name, NAME));
    name.context("an answer of another server")
}

fn connect(to: SocketAddr, bytes: usize) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut greeting = String::new();
    reader.by_ref().take(1024).read_line(&mut greeting)?;
    let sent: Vec<u8> = (0..bytes).map(|n| (n % 251) as u8).collect();
    let mut received = vec![0; bytes];
    // Both directions at a time: neither side has space for everything.
    std::thread::scope(|scope| -> Result<()> {
        let writing = scope.spawn(|| stream.write_all(&sent));
        let read = reader.read_exact(&mut received);
        if let Ok(written) = writing.join() {
            written?;
        }
        Ok(read?)
    })?;
    ensure!(received == sent, "bytes came back changed");
    name_in(&greeting)
}

/// Asks as a load balancer does: `ready` for the code 200, `not ready` for 503.
fn health(to: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: selftest\r\nConnection: close\r\n\r\n")?;
    let mut line = String::new();
    BufReader::new(stream).take(1024).read_line(&mut line)?;
    match line.split(' ').nth(1) {
        Some("200") => Ok("ready".to_owned()),
        Some("503") => Ok("not ready".to_owned()),
        _ => anyhow::bail!("an answer that is not of a health check"),
    }
}

/// A socket whose errors and answers are those of one destination.
fn datagrams_to(to: SocketAddr) -> Result<UdpSocket> {
    let from = match to {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(from)?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

fn exchange(to: SocketAddr, bytes: usize) -> Result<String> {
    let socket = datagrams_to(to)?;
    let sent: Vec<u8> = (0..bytes.max(1)).map(|n| (n % 251) as u8).collect();
    socket.send(&sent)?;
    let mut buffer = vec![0; DATAGRAM];
    let length = socket.recv(&mut buffer)?;
    let answer = buffer.get(..length).unwrap_or_default();
    let end = answer.iter().position(|byte| *byte == b'\n');
    let end = end.context("an answer of another server")?;
    let (greeting, echo) = answer.split_at_checked(end + 1).unwrap_or_default();
    ensure!(echo == sent, "bytes came back changed");
    name_in(std::str::from_utf8(greeting).context("an answer that is not text")?)
}

/// Asks a name server. Any answer to the query counts: the name depends on the cluster.
fn resolve(to: SocketAddr) -> Result<String> {
    let socket = datagrams_to(to)?;
    // RFC 1035, 4.1: recursion desired, one question.
    let mut query = QUERY.to_vec();
    query.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in ["kubernetes", "default", "svc", "cluster", "local"] {
        query.push(label.len() as u8);
        query.extend(label.bytes());
    }
    // The root, type A, class IN.
    query.extend([0, 0, 1, 0, 1]);
    socket.send(&query)?;
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer)?;
    let answer = buffer.get(..length).unwrap_or_default();
    let is_answer =
        answer.starts_with(&QUERY) && answer.get(2).is_some_and(|flags| flags & 0x80 != 0);
    ensure!(is_answer, "an answer that is not of DNS");
    Ok("DNS".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_in_a_greeting_is_printable() {
        assert_eq!(name_in("server-1 10.0.0.1:80\n").unwrap(), "server-1");
        let name = name_in("\u{1b}[2Jmalice 10.0.0.1:80\n").unwrap();
        assert_eq!(name, "\\u{1b}[2Jmalice");
        assert!(name_in("SSH-2.0\n").is_err());
    }
}
