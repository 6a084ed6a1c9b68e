//! Sends a packet the way that packets of pods take: in by an interface of pods, with an address of a pod as its source,
//! forwarded to the tunnel end of a peer, and its answer back.
//!
//! All that decides about forwarded packets takes part: chains of any program (legacy iptables too), settings of the kernel,
//! and what drops unknown sources on the way. The packet is the first one of a TCP connection to the port of the probes,
//! which any kernel answers. It enters by a veth pair that exists meanwhile ([`PodLink`]), since packets of the node itself
//! are not forwarded.

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ipnet::IpNet;
use net_types::{Family, Protocol};
use nix::ifaddrs::getifaddrs;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket,
};
use nix::{libc, setsockopt_impl, sockopt_impl};
use rand::Rng;

use crate::firewall::{Blocker, Suspect, who_drops};
use crate::forwarding::Forwarding;
use crate::measure::Pair;
use crate::{LegacyIptables, result_of};

mod frame;
mod link;

use frame::Syn;
use link::PodLink;

/// Time limit for the packet and its answer.
const PATIENCE: Duration = Duration::from_millis(1200);
/// The same where the packet failed before, and nothing is searched for.
const SHORT: Duration = Duration::from_millis(400);
/// Time after which the packet is sent again.
const AGAIN: Duration = Duration::from_millis(50);
/// Time limit of a search for a rule that drops the packet.
const TRACE: Duration = Duration::from_millis(1500);
/// The longest frame that matters.
const LONGEST: usize = 256;

sockopt_impl!(
    AttachFilter,
    SetOnly,
    libc::SOL_SOCKET,
    libc::SO_ATTACH_FILTER,
    libc::sock_fprog
);

/// The pair has one name: rounds and the doctor take turns.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The way to try.
#[derive(Clone, Debug)]
struct PodPath {
    /// Addresses of this node's pods.
    pods: IpNet,
    /// The interface by which packets to the peer leave this node.
    leaves_by: String,
    /// The tunnel end of the peer.
    to: IpAddr,
    /// A port that the peer's kernel answers.
    port: u16,
    /// Whether the kernel does so at this address.
    answers: bool,
}

/// What became of the packet.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fate {
    /// Its answer was forwarded to the pod, or it left this node and has no answer.
    Answered,
    /// It left this node, and no answer was forwarded.
    Unanswered(Option<Blocker>),
    /// It did not leave this node.
    Stopped(Option<Blocker>),
}

/// Sends a packet as a pod to the first of these peers in each family, and describes what keeps packets of pods from them.
/// Packets of this node itself must reach them. The cause is searched for, which takes seconds, unless the faults are known.
pub(super) async fn examine(
    healthy: &[&Pair<'_>],
    legacy: LegacyIptables,
    are_known: bool,
) -> Forwarding {
    let of_family = |family| healthy.iter().find(move |pair| pair.peer.family == family);
    let mut found = Forwarding::default();
    for pair in Family::ALL.into_iter().filter_map(of_family) {
        let path = pair.pod_path();
        let sent = tokio::task::spawn_blocking(move || send_as_a_pod(&path, are_known));
        match result_of(sent.await) {
            Some(Ok(fate)) => {
                let fault = fate.and_then(|fate| pair.fault(fate, legacy));
                found.faults.extend(fault);
            }
            Some(Err(error)) => found
                .notes
                .push(format!("no packet was sent as a pod: {error:#}")),
            None => {}
        }
    }
    found
}

impl Pair<'_> {
    fn pod_path(&self) -> PodPath {
        let (local, peer) = (self.local, self.peer);
        PodPath {
            pods: local.pods,
            leaves_by: match peer.is_direct {
                true => local.parent.clone(),
                false => local.device.clone(),
            },
            to: peer.tunnel,
            port: self.shared.config.port,
            answers: !self.may_be_anycast(),
        }
    }

    /// What is wrong, if anything is.
    fn fault(&self, fate: Fate, legacy: LegacyIptables) -> Option<String> {
        let (node, family) = (&self.peer.node, self.peer.family.api_name());
        let cause = |blocker: Option<Blocker>, otherwise: &str| {
            let tables = (legacy.tables)();
            match (blocker, tables.is_empty()) {
                (Some(blocker), _) => blocker.to_string(),
                (None, true) => otherwise.to_owned(),
                (None, false) => format!(
                    "{otherwise}, or a rule of legacy iptables ({})",
                    tables.join(", ")
                ),
            }
        };
        match fate {
            Fate::Answered => None,
            Fate::Stopped(blocker) => Some(format!(
                "packets of pods to {node} do not leave this node ({family}): {}",
                cause(
                    blocker,
                    "no rule of nftables drops them; the kernel does (net.ipv4.conf.*.rp_filter, net.*.forwarding)"
                )
            )),
            Fate::Unanswered(blocker) => Some(format!(
                "packets of pods to {node} leave this node, and no answer reaches the pods ({family}): {}",
                cause(
                    blocker,
                    "the network or a firewall drops packets with addresses of pods"
                )
            )),
        }
    }
}

/// Sends the packet until its answer arrives or the time has passed; then searches for the rule that drops one of them, unless
/// that one `is_known`.
/// Blocks. `None` where the interfaces of pods do not allow that.
///
/// Errors: an interface cannot be made (CAP_NET_ADMIN, CAP_NET_RAW).
fn send_as_a_pod(path: &PodPath, is_known: bool) -> Result<Option<Fate>> {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(link) = PodLink::new(path.pods)? else {
        return Ok(None);
    };
    let mut wire = Wire::open(&link, path)?;
    let fate = wire.try_for(if is_known { SHORT } else { PATIENCE });
    if fate == Fate::Answered || is_known {
        return Ok(Some(fate));
    }
    let suspects = wire.syn.suspects();
    let (end, patience) = (Instant::now() + TRACE, PATIENCE);
    let (again, blocker) = std::thread::scope(|scope| {
        let tracing = scope.spawn(|| who_drops(&suspects, TRACE));
        let mut again = wire.try_for(patience);
        while !tracing.is_finished() && Instant::now() < end && again != Fate::Answered {
            again = wire.try_for(AGAIN).or(again);
        }
        let found = tracing.join();
        (again, found.ok().and_then(|found| found.ok().flatten()))
    });
    Ok(Some(match again {
        Fate::Answered => Fate::Answered,
        Fate::Unanswered(_) => Fate::Unanswered(blocker),
        Fate::Stopped(_) => Fate::Stopped(blocker),
    }))
}

impl Fate {
    /// The one of two that got further.
    fn or(self, other: Fate) -> Fate {
        match (&self, &other) {
            (Fate::Answered, _) | (_, Fate::Stopped(_)) => self,
            (_, Fate::Answered) | (Fate::Stopped(_), _) => other,
            _ => self,
        }
    }
}

/// The sockets by which the packet is sent and watched.
struct Wire {
    /// Where the pod would be.
    pod: OwnedFd,
    /// Where packets to the peer leave this node.
    outside: OwnedFd,
    syn: Syn,
    has_answer: bool,
}

impl Wire {
    fn open(link: &PodLink, path: &PodPath) -> Result<Wire> {
        let outside = open(&path.leaves_by, SockType::Datagram)?;
        only_packets_to(&outside, path.to)?;
        let syn = Syn {
            source_mac: link.pod_mac,
            destination_mac: link.gateway_mac,
            source: link.pod,
            destination: path.to,
            source_port: rand::rng().random_range(32_768..60_999),
            destination_port: path.port,
            sequence: rand::random(),
        };
        Ok(Wire {
            pod: open(link::POD_END, SockType::Raw)?,
            outside,
            syn,
            has_answer: path.answers,
        })
    }

    fn try_for(&mut self, limit: Duration) -> Fate {
        let end = Instant::now() + limit;
        let (frame, mut has_left) = (self.syn.frame(), false);
        loop {
            let start = Instant::now();
            if start >= end {
                return match has_left {
                    true => Fate::Unanswered(None),
                    false => Fate::Stopped(None),
                };
            }
            // The interface may not be up yet; the frame is sent again.
            let _ = send(self.pod.as_raw_fd(), &frame, MsgFlags::empty());
            let again = end.min(start + AGAIN);
            while wait(&[&self.pod, &self.outside], again) {
                has_left |= received(&self.outside, |packet| self.syn.is_in(packet));
                // A chain of this node may refuse in the name of the peer.
                let is_answer = |frame: &[u8]| self.syn.is_answered_by(frame, !has_left);
                let is_answered = received(&self.pod, is_answer);
                if is_answered || (has_left && !self.has_answer) {
                    // The peer need not wait for the third packet of the connection.
                    let _ = send(self.pod.as_raw_fd(), &self.syn.reset(), MsgFlags::empty());
                    return Fate::Answered;
                }
            }
        }
    }
}

impl Syn {
    fn suspects(&self) -> Vec<Suspect> {
        let there = Suspect {
            source: self.source,
            destination: self.destination,
            protocol: Protocol::Tcp,
            port: self.destination_port,
        };
        let back = Suspect {
            source: self.destination,
            destination: self.source,
            protocol: Protocol::Tcp,
            port: self.source_port,
        };
        vec![there, back]
    }
}

/// A socket for what passes one interface: whole frames, or what they carry.
fn open(interface: &str, kind: SockType) -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Packet, kind, flags, SockProtocol::EthAll)
        .context("cannot open a packet socket (CAP_NET_RAW)")?;
    let address = link_address(interface)?;
    bind(fd.as_raw_fd(), &address)
        .with_context(|| format!("cannot watch the packets of {interface}"))?;
    Ok(fd)
}

fn link_address(interface: &str) -> Result<LinkAddr> {
    let addresses = getifaddrs().context("cannot list interfaces")?;
    let mut addresses = addresses.filter(|entry| entry.interface_name == interface);
    addresses
        .find_map(|entry| entry.address?.as_link_addr().copied())
        .with_context(|| format!("the interface {interface} does not exist"))
}

/// Has the kernel hand over only IP packets to this address: the interface may be a busy one.
fn only_packets_to(fd: &OwnedFd, address: IpAddr) -> Result<()> {
    let (offset, last) = match address {
        IpAddr::V4(address) => (16, u32::from(address)),
        IpAddr::V6(address) => (36, u128::from(address) as u32),
    };
    let statement = |code: u32, k: u32, if_true: u8, if_false: u8| libc::sock_filter {
        code: code as u16,
        jt: if_true,
        jf: if_false,
        k,
    };
    let mut program = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, last, 1, 0),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        statement(libc::BPF_RET | libc::BPF_K, LONGEST as u32, 0, 0),
    ];
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    setsockopt(fd, AttachFilter, &program).context("cannot filter packets")?;
    Ok(())
}

/// Waits until one of the sockets can be read. Returns whether one can.
fn wait(sockets: &[&OwnedFd], until: Instant) -> bool {
    let mut sockets: Vec<PollFd<'_>> = sockets
        .iter()
        .map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN))
        .collect();
    let left = until.saturating_duration_since(Instant::now());
    let Ok(left) = PollTimeout::try_from(left + Duration::from_millis(1)) else {
        return false;
    };
    Instant::now() < until && poll(&mut sockets, left).is_ok_and(|ready| ready > 0)
}

/// Reads all that has arrived. Returns whether one packet was a wanted one.
fn received(fd: &OwnedFd, is_wanted: impl Fn(&[u8]) -> bool) -> bool {
    let (mut buffer, mut found) = ([0; LONGEST], false);
    while let Ok(length) = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
        found |= is_wanted(buffer.get(..length).unwrap_or_default());
    }
    found
}
