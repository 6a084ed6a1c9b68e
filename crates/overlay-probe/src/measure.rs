//! Measures the path to one peer and back: which probes are sent, in which order.
//!
//! A healthy path takes four probes: a datagram over the host path, and through the tunnel a small datagram, a full-sized
//! one and a TCP stream. When one fails, the peer reports over the host path what it has received.

use std::net::SocketAddr;
use std::time::Duration;

use super::measurement::{Measurement, PacketOutcome, Sizes};
use super::verdict::PeerVerdict;
use futures::future::{join, join_all, join4};
use net_types::Family;
use tokio::time::{Instant, sleep};

use super::directory::{Directory, LocalVtep, Target};
use super::wire::{HEADER, Packet, REQUEST, has, headers, want};
use super::{Shared, counters, ping, request, trace};

/// Time limit of a probe, all tries together.
const PATIENCE: Duration = Duration::from_millis(1200);
/// How long to wait for a requested packet after the peer's answer.
const ARRIVAL: Duration = Duration::from_millis(300);
/// The smallest size to try.
const SMALLEST: u32 = 500;
/// Sizes tried at a time.
const FANOUT: u32 = 16;

/// One pair of nodes in one family.
pub(super) struct Pair<'a> {
    pub(super) shared: &'a Shared,
    pub(super) local: &'a LocalVtep,
    pub(super) peer: &'a Target,
}

/// What the peer reports about itself.
#[derive(Clone, Copy, Debug, Default)]
struct PeerCounters {
    received: bool,
    counted: Option<u64>,
    corrupt: Option<u64>,
}

impl<'a> Pair<'a> {
    /// A pair for each target whose family this node has a tunnel in.
    pub(super) fn all(
        shared: &'a Shared,
        directory: &'a Directory,
        targets: &'a [Target],
    ) -> Vec<Pair<'a>> {
        let pair = |peer: &'a Target| {
            let local = directory.local(peer.family)?;
            Some(Pair {
                shared,
                local,
                peer,
            })
        };
        targets.iter().filter_map(pair).collect()
    }

    /// Measures once. A thorough measurement sends every probe.
    pub(super) async fn measure(&self, thorough: bool) -> Measurement {
        let mut measured = Measurement::default();
        let (counted, corrupt) = (self.shared.counted(self.peer), counters::corrupt());
        let nonce = rand::random();
        let probe = Packet::Request {
            want: 0,
            nonce,
            earlier: 0,
        };
        let (host, tunnel) = join(
            self.over_host(want::COUNTERS, rand::random(), 0),
            request::udp(
                self.local.tunnel,
                self.at_tunnel(),
                &probe,
                HEADER,
                PATIENCE,
            ),
        )
        .await;
        let before = peer_counters(host.answer.as_ref());
        measured.host.udp = host.outcome;
        measured.tunnel.udp = tunnel.outcome;
        if tunnel.is_answered() {
            measured.round_trip = u32::try_from(tunnel.elapsed.as_micros()).ok();
        }
        if tunnel.outcome.came_back() {
            let (tcp, sizes) = join(
                self.tcp(true),
                self.sizes(tunnel.outcome == PacketOutcome::Answered),
            )
            .await;
            (measured.tunnel.tcp, measured.sizes) = (tcp, sizes);
        }
        // The verdict may depend on the host path, which is not measured yet.
        let tcp_is_shown = measured.tunnel.tcp.came_back() || self.may_be_anycast();
        let suspicious = !measured.verdict().is_healthy() || !tcp_is_shown;
        if suspicious || thorough {
            self.ask_more(&mut measured).await;
        }
        if suspicious {
            self.ask_back(&mut measured, before, nonce).await;
            measured.counted_here = grown(counted, self.shared.counted(self.peer));
            measured.corrupt_here = grown(corrupt, counters::corrupt());
        }
        measured
    }

    /// Sends the probes that were not needed so far.
    async fn ask_more(&self, measured: &mut Measurement) {
        let (size, nonce) = (HEADER + 48, rand::random());
        let (local, peer) = (self.local, self.peer);
        let (host_tcp, host_ping, tunnel_tcp, tunnel_ping) = join4(
            self.tcp(false),
            ping::ping(local.host, peer.host, nonce, size, PATIENCE),
            async {
                match measured.tunnel.tcp {
                    PacketOutcome::Untried => self.tcp(true).await,
                    known => known,
                }
            },
            ping::ping(local.tunnel, peer.tunnel, nonce, size, PATIENCE),
        )
        .await;
        (measured.host.tcp, measured.host.ping) = (host_tcp, host_ping);
        (measured.tunnel.tcp, measured.tunnel.ping) = (tunnel_tcp, tunnel_ping);
    }

    /// Requests what the peer has received, and whether a packet from it arrives.
    async fn ask_back(&self, measured: &mut Measurement, before: PeerCounters, probe: u64) {
        if measured.host.udp != PacketOutcome::Answered {
            return;
        }
        let nonce = rand::random();
        let answer = self
            .over_host(want::COUNTERS | want::ARRIVAL, nonce, probe)
            .await;
        if !answer.is_answered() {
            return;
        }
        let after = peer_counters(answer.answer.as_ref());
        measured.received_there = Some(after.received);
        measured.counted_there = grown(before.counted, after.counted);
        measured.corrupt_there = grown(before.corrupt, after.corrupt);
        let until = Instant::now() + ARRIVAL;
        let mut received = false;
        while !received && Instant::now() < until {
            received = self.shared.has_received(self.peer.tunnel, nonce);
            sleep(Duration::from_millis(10)).await;
        }
        measured.received_here = Some(received);
    }

    /// Traces on both nodes for rules that drop packets sent meanwhile. Only where small datagrams get lost.
    pub(super) async fn find_rules(&self, measured: &mut Measurement) {
        if measured.tunnel.udp.came_back() || measured.verdict() == PeerVerdict::Silent {
            return;
        }
        let answers = measured.host.udp == PacketOutcome::Answered;
        let until = Instant::now() + trace::DURATION;
        let sending = async {
            while Instant::now() < until {
                let brief = Duration::from_millis(90);
                let (nonce, earlier) = (rand::random(), 0);
                let probe = Packet::Request {
                    want: 0,
                    nonce,
                    earlier,
                };
                let (local, to) = (self.local.tunnel, self.at_tunnel());
                let probing = request::udp(local, to, &probe, HEADER, brief);
                if answers {
                    // Repeated, since the peer may be busy with a trace for another node.
                    let asking = want::ARRIVAL | want::TRACE;
                    join(probing, self.over_host(asking, rand::random(), 0)).await;
                } else {
                    probing.await;
                }
            }
        };
        let tracing = trace::trace(self.local, self.peer, self.shared.config.port);
        let (found, ()) = join(tracing, sending).await;
        measured.rule_here = found;
        if !answers {
            return;
        }
        // The peer began a little later.
        for _ in 0..10 {
            let answer = self.over_host(want::RULE, rand::random(), 0).await.answer;
            if let Some(Packet::Answer { text, .. }) = answer
                && !text.is_empty()
            {
                measured.rule_there = Some(text);
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    async fn over_host(&self, want: u16, nonce: u64, earlier: u64) -> request::Reply {
        let to = SocketAddr::new(self.peer.host, self.shared.config.port);
        let request = Packet::Request {
            want,
            nonce,
            earlier,
        };
        request::udp(self.local.host, to, &request, REQUEST, PATIENCE).await
    }

    fn at_tunnel(&self) -> SocketAddr {
        SocketAddr::new(self.peer.tunnel, self.shared.config.port)
    }

    async fn tcp(&self, tunnel: bool) -> PacketOutcome {
        let (local, to) = match tunnel {
            true => (self.local.tunnel, self.peer.tunnel),
            false => (self.local.host, self.peer.host),
        };
        let to = SocketAddr::new(to, self.shared.config.port);
        let outcome = request::tcp(local, to, rand::random(), PATIENCE).await;
        match outcome.failed() && tunnel && self.may_be_anycast() {
            true => PacketOutcome::Untried,
            false => outcome,
        }
    }

    /// Whether the peer's kernel may take the address of its device for the subnet-router anycast address of its pods'
    /// bridge (RFC 4291, section 2.6.1), at which it accepts no connections. It tells them apart by the interface that a
    /// packet arrives by, which is neither of them where packets do not pass the tunnel.
    pub(super) fn may_be_anycast(&self) -> bool {
        self.peer.is_direct && self.peer.family == Family::Ip6
    }

    /// The largest sizes that arrive. Without a responder, ICMP echo is used, which does not show the direction.
    async fn sizes(&self, answers: bool) -> Sizes {
        let full = self.local.mtu;
        let sizes = |forth, back| Sizes { full, forth, back };
        if !answers {
            return match join(self.echoed(full), self.echoed(SMALLEST)).await {
                (true, _) => sizes(Some(full), Some(full)),
                (false, true) => sizes(Some(self.search(|size| self.echoed(size)).await), None),
                // The peer does not answer echo requests, or none can be sent from here.
                (false, false) => sizes(None, None),
            };
        }
        if self.passes(full, want::FULL_SIZE).await {
            return sizes(Some(full), Some(full));
        }
        if self.passes(full, 0).await {
            let back = self.search(|size| self.passes(size, want::FULL_SIZE)).await;
            return sizes(Some(full), Some(back));
        }
        sizes(Some(self.search(|size| self.passes(size, 0)).await), None)
    }

    /// The largest size below the full one for which `passes` holds; 0 if there is none.
    async fn search<F: Future<Output = bool>>(&self, passes: impl Fn(u32) -> F) -> u32 {
        // `low` passes, or nothing is known to; `high` does not.
        let (mut low, mut high) = (0, self.local.mtu);
        while high > low.max(SMALLEST - 1) + 1 {
            let from = low.max(SMALLEST - 1);
            let step = (high - from).div_ceil(FANOUT).max(1);
            let tried: Vec<u32> = (1..FANOUT)
                .map(|n| from + n * step)
                .filter(|size| *size < high)
                .collect();
            let passed = join_all(tried.iter().map(|size| passes(*size))).await;
            match tried.iter().zip(passed).rfind(|(_, passed)| *passed) {
                Some((size, _)) => {
                    low = *size;
                    high = high.min(low + step);
                }
                None => high = tried.first().copied().unwrap_or(high - 1),
            }
        }
        low
    }

    /// Whether an IP packet of this size arrives and, with [`want::FULL_SIZE`], one of the same size comes back.
    async fn passes(&self, size: u32, want: u16) -> bool {
        let request = Packet::Request {
            want,
            nonce: rand::random(),
            earlier: 0,
        };
        let size = (size as usize).saturating_sub(headers(self.peer.family));
        let (local, to) = (self.local.tunnel, self.at_tunnel());
        request::udp(local, to, &request, size, PATIENCE)
            .await
            .is_answered()
    }

    async fn echoed(&self, size: u32) -> bool {
        let (local, to) = (self.local.tunnel, self.peer.tunnel);
        let outcome = ping::ping(local, to, rand::random(), size as usize, PATIENCE);
        outcome.await == PacketOutcome::Answered
    }
}

fn peer_counters(answer: Option<&Packet>) -> PeerCounters {
    let Some(Packet::Answer {
        has,
        counted,
        corrupt,
        ..
    }) = answer
    else {
        return PeerCounters::default();
    };
    PeerCounters {
        received: has & has::RECEIVED != 0,
        counted: (has & has::COUNTED != 0).then_some(*counted),
        corrupt: (has & has::CORRUPT != 0).then_some(*corrupt),
    }
}

fn grown(before: Option<u64>, after: Option<u64>) -> Option<bool> {
    Some(after? > before?)
}
