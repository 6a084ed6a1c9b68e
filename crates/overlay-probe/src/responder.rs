//! Answers the probes of peers, and remembers which have arrived.
//!
//! Listens on one port, at this node's own address and at that of its tunnel device. Answers only known nodes, on the
//! path that their address belongs to, and never with more bytes than they sent. In the name of a node that probes nobody
//! (with flannel, which masquerades its pods) a request gets no more than an echo.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use net_types::Family;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::directory::{Directory, Path, Target};
use super::request::{LARGEST, datagrams};
use super::wire::{ANSWER, HEADER, Packet, REQUEST, STREAM, has, headers, want};
use super::{Shared, result_of, trace};

/// Time between two checks of this node's addresses.
const REFRESH: Duration = Duration::from_millis(500);
/// Time limit of a stream.
const STREAM_TIMEOUT: Duration = Duration::from_secs(5);
/// Streams at one time.
const STREAMS: usize = 64;

/// Serves until canceled.
pub(super) async fn run(shared: Arc<Shared>, cancel: CancellationToken) {
    let mut tasks = JoinSet::new();
    let mut serving: BTreeMap<IpAddr, AbortHandle> = BTreeMap::new();
    let mut refresh = tokio::time::interval(REFRESH);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = refresh.tick() => {}
        }
        while let Some(end) = tasks.try_join_next() {
            result_of(end);
        }
        let wanted: BTreeMap<IpAddr, Path> = shared.directory().own().collect();
        serving.retain(|address, task| {
            let stays = wanted.contains_key(address) && !task.is_finished();
            if !stays {
                task.abort();
            }
            stays
        });
        for (address, path) in wanted {
            serving
                .entry(address)
                .or_insert_with(|| tasks.spawn(serve(shared.clone(), address, path)));
        }
    }
}

/// Ends when it cannot serve, for instance while the address does not exist yet; the caller starts it again.
async fn serve(shared: Arc<Shared>, address: IpAddr, path: Path) {
    let at = SocketAddr::new(address, shared.config.port);
    let result = async {
        let socket = datagrams(at)?;
        let listener = TcpListener::bind(at).await?;
        tokio::try_join!(
            answer_datagrams(&shared, &socket, path),
            answer_streams(&shared, &listener, path)
        )?;
        io::Result::Ok(())
    };
    if let Err(error) = result.await {
        tracing::debug!(%at, %error, "cannot answer probes; retrying");
    }
}

async fn answer_datagrams(shared: &Arc<Shared>, socket: &UdpSocket, path: Path) -> io::Result<()> {
    let mut buffer = vec![0; LARGEST];
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // An ICMP error about an answer sent before.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
            Err(error) => return Err(error),
        };
        let directory = shared.directory();
        let Some(peer) = directory.known(from.ip(), path) else {
            continue;
        };
        match Packet::decode(buffer.get(..length).unwrap_or_default()) {
            Some(Packet::Request {
                want,
                nonce,
                earlier,
            }) => {
                if path == Path::Tunnel {
                    shared.remember(peer.tunnel, nonce);
                }
                let answer = match path {
                    Path::Tunnel => Packet::Answer {
                        has: 0,
                        nonce,
                        counted: 0,
                        corrupt: 0,
                        text: String::new(),
                    },
                    Path::Host => about(shared, &peer, want, nonce, earlier),
                };
                let size = match want & want::FULL_SIZE {
                    0 => length.min(ANSWER),
                    _ => length.min(largest(&directory, peer.family)),
                };
                // An answer that cannot be sent counts as lost.
                let _ = socket.send_to(&answer.encode(size), from).await;
                if path == Path::Host && want & want::ARRIVAL != 0 && length >= REQUEST {
                    arrive(shared, &peer, nonce).await;
                }
            }
            Some(Packet::Arrival { nonce }) if path == Path::Tunnel => {
                shared.remember(peer.tunnel, nonce);
            }
            _ => {}
        }
    }
}

/// The answer to a request over the host path.
fn about(shared: &Arc<Shared>, peer: &Target, want: u16, nonce: u64, earlier: u64) -> Packet {
    let mut has = 0;
    if shared.has_received(peer.tunnel, earlier) {
        has |= has::RECEIVED;
    }
    let (mut counted, mut corrupt) = (0, 0);
    let want = if peer.probes { want } else { 0 };
    if want & want::COUNTERS != 0 {
        if let Some(packets) = shared.counted(peer) {
            (counted, has) = (packets, has | has::COUNTED);
        }
        if let Some(packets) = super::counters::corrupt() {
            (corrupt, has) = (packets, has | has::CORRUPT);
        }
    }
    if want & want::TRACE != 0 {
        trace::begin_for(shared, peer);
    }
    let text = match want & want::RULE {
        0 => String::new(),
        _ => trace::found_for(shared, peer),
    };
    Packet::Answer {
        has,
        nonce,
        counted,
        corrupt,
        text,
    }
}

/// The largest answer that this node can send through the tunnel: a peer may have a larger MTU, by its own configuration or
/// because it encrypts nothing.
fn largest(directory: &Directory, family: Family) -> usize {
    let mtu = directory.local(family).map(|local| local.mtu);
    mtu.map_or(usize::MAX, |mtu| {
        (mtu as usize).saturating_sub(headers(family))
    })
}

/// Sends a packet through the tunnel to the peer's responder.
async fn arrive(shared: &Shared, peer: &Target, nonce: u64) {
    let directory = shared.directory();
    let Some(end) = directory.local(peer.family) else {
        return;
    };
    let sent = async {
        let socket = datagrams(SocketAddr::new(end.tunnel, 0))?;
        let to = SocketAddr::new(peer.tunnel, shared.config.port);
        let bytes = Packet::Arrival { nonce }.encode(HEADER);
        socket.send_to(&bytes, to).await
    };
    let _ = sent.await;
}

/// Echoes streams, [`STREAMS`] at one time.
async fn answer_streams(shared: &Shared, listener: &TcpListener, path: Path) -> io::Result<()> {
    let mut streams = FuturesUnordered::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if streams.len() < STREAMS => match accepted {
                Ok((stream, from)) if shared.directory().known(from.ip(), path).is_some() => {
                    streams.push(tokio::time::timeout(STREAM_TIMEOUT, echo(stream)));
                }
                Ok(_) => {}
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            },
            Some(_) = streams.next() => {}
        }
    }
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut bytes = vec![0; STREAM];
    stream.read_exact(&mut bytes).await?;
    match Packet::decode(&bytes) {
        Some(Packet::Request { .. }) => stream.write_all(&bytes).await,
        _ => Ok(()),
    }
}
