//! Echo servers: each answers with its own name and the client address it saw, `NAME:PORT peer
//! ADDRESS:PORT` and a line end; over a stream it then echoes every byte until the end of input, so
//! that a long connection can be checked.
//!
//! Sockets are made on a namespace's thread and stay in that namespace; one shared runtime serves them
//! all, so hundreds of pods cost two threads. Owns that runtime and the end of a server.

use std::io;
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::{Builder, Runtime};
use tokio::task::{AbortHandle, JoinSet};

use crate::command;
use crate::namespace::Namespace;
use crate::socket::{self, Protocol};

/// Longest answer, name included.
pub(crate) const MAX_ANSWER_BYTES: usize = 512;

/// The runtime that serves all namespaces of the process. It lives as long as the process.
pub(crate) fn runtime() -> Result<&'static Runtime> {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("lab-runtime")
        .enable_all()
        .build()
        .context("start the lab's runtime")?;
    Ok(RUNTIME.get_or_init(|| runtime))
}

/// A server on one port. Dropping it closes its sockets and connections before the drop returns.
pub(crate) struct Server {
    tasks: Vec<AbortHandle>,
    /// Disconnected as soon as the last task is gone: nothing is ever sent.
    ended: mpsc::Receiver<()>,
}

impl Server {
    /// Serves on `port` of each address, which must be the namespace's.
    pub(crate) fn start(
        namespace: &Namespace,
        name: &str,
        protocol: Protocol,
        addresses: &[SocketAddr],
    ) -> Result<Server> {
        let runtime = runtime()?;
        let (running, ended) = mpsc::channel();
        let mut server = Server {
            tasks: Vec::new(),
            ended,
        };
        for &at in addresses {
            let name = format!("{name}:{}", at.port());
            let running = running.clone();
            let task = match protocol {
                Protocol::Tcp | Protocol::Sctp => {
                    let listener = namespace.run(move || socket::listening(protocol, at))??;
                    runtime.spawn(accept(listener, name, running))
                }
                Protocol::Udp => {
                    let socket = namespace.run(move || socket::datagram(at))??;
                    runtime.spawn(answer_datagrams(socket, name, running))
                }
            };
            server.tasks.push(task.abort_handle());
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        command::while_none_forks(|| {
            for task in &self.tasks {
                task.abort();
            }
            // Bounded, so that a test that is already unwinding does not hang.
            let _ = self.ended.recv_timeout(Duration::from_secs(5));
        });
    }
}

/// Held by every task of a server; gone when they are.
type Running = mpsc::Sender<()>;

async fn accept(listener: std::net::TcpListener, name: String, running: Running) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    connections.spawn(echo(stream, answer(&name, peer), running.clone()));
                }
                // Out of descriptors, or the client has gone already: accept the next one.
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            },
            // The client ends the connection.
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn echo(mut stream: TcpStream, greeting: String, _running: Running) -> io::Result<()> {
    // SCTP sockets lack the option, and do not wait either.
    let _ = stream.set_nodelay(true);
    stream.write_all(greeting.as_bytes()).await?;
    let mut buffer = [0; 2048];
    loop {
        let length = stream.read(&mut buffer).await?;
        match buffer.get(..length) {
            Some(received) if !received.is_empty() => stream.write_all(received).await?,
            _ => return Ok(()),
        }
    }
}

async fn answer_datagrams(
    socket: std::net::UdpSocket,
    name: String,
    _running: Running,
) -> io::Result<()> {
    let socket = UdpSocket::from_std(socket)?;
    let mut ignored = [0; MAX_ANSWER_BYTES];
    loop {
        // An error here is an ICMP message about an earlier answer: its client has gone.
        if let Ok((_, peer)) = socket.recv_from(&mut ignored).await {
            let _ = socket.send_to(answer(&name, peer).as_bytes(), peer).await;
        }
    }
}

fn answer(name: &str, peer: SocketAddr) -> String {
    format!("{name} peer {peer}\n")
}

/// The server's name with its port, and the peer it saw.
pub(crate) fn parse_answer(line: &str) -> Result<(String, SocketAddr)> {
    line.trim_end()
        .rsplit_once(" peer ")
        .and_then(|(server, peer)| Some((server.to_owned(), peer.parse().ok()?)))
        .with_context(|| format!("{line:?} is no echo server's answer"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_back_whatever_the_server_is_called() -> Result<()> {
        let peer: SocketAddr = "[fd00:244:1::2]:40112".parse()?;
        assert_eq!(
            parse_answer(&answer("a peer b:80", peer))?,
            ("a peer b:80".to_owned(), peer)
        );
        assert!(parse_answer("HTTP/1.1 200 OK").is_err());
        assert!(parse_answer("").is_err());
        Ok(())
    }
}
