//! A NIC with a fault, as a program between two links of a namespace of its own.
//!
//! The kernel hands packets to a NIC with checksums that are only begun, and says where to finish them. Packet sockets
//! hand both on (`PACKET_VNET_HDR`, `linux/virtio_net.h`): so a packet is passed with what the kernel said of it, or as
//! if its checksum were finished, which is the fault.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket,
};
use nix::unistd::Pid;
use nix::{setsockopt_impl, sockopt_impl};

use crate::namespace::Namespace;

sockopt_impl!(
    VirtioHeader,
    SetOnly,
    libc::SOL_PACKET,
    libc::PACKET_VNET_HDR,
    bool
);

/// Bytes of `struct virtio_net_hdr`; the first has the flags.
const VIRTIO: usize = 10;
/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`
const UNFINISHED: u8 = 1;
/// Largest packet before segmentation (`GSO_MAX_SIZE`), with its headers, in bytes.
const LARGEST: usize = 80 << 10;
/// Longest wait for packets before `stop` is checked, in milliseconds.
const POLL_MS: u8 = 100;

/// A NIC with a fault. Dropping it unplugs the node.
#[must_use = "dropping it unplugs the node"]
pub struct BadNic {
    stop: Arc<AtomicBool>,
    spoilt: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
    _namespace: Namespace,
}

impl BadNic {
    /// The link to the node.
    pub(crate) const INSIDE: &str = "inside";
    /// The link to the network.
    pub(crate) const OUTSIDE: &str = "outside";

    /// Starts the NIC in a namespace of its own, into which `plug` puts both links.
    pub(crate) fn new(vxlan_port: u16, plug: impl FnOnce(Pid) -> Result<()>) -> Result<Self> {
        let namespace = Namespace::new("nic")?;
        plug(namespace.tid())?;
        // Before the links are up: until it is bound, a socket receives from every link.
        let sockets = namespace
            .run(|| -> Result<_> { Ok([open(Self::INSIDE)?, open(Self::OUTSIDE)?]) })??;
        let up = [Self::INSIDE, Self::OUTSIDE]
            .map(|link| format!("link set dev {link} addrgenmode none up promisc on"));
        namespace.ip(&up)?;
        let (stop, spoilt) = <(Arc<AtomicBool>, Arc<AtomicU64>)>::default();
        let (stopping, counter) = (stop.clone(), spoilt.clone());
        let thread = namespace.thread(move || {
            while !stopping.load(Ordering::Relaxed) {
                pass(&sockets, vxlan_port, &counter);
            }
        })?;
        Ok(BadNic {
            stop,
            spoilt,
            thread: Some(thread),
            _namespace: namespace,
        })
    }

    /// Number of packets spoilt so far.
    pub fn spoilt(&self) -> u64 {
        self.spoilt.load(Ordering::Relaxed)
    }
}

impl Drop for BadNic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It does not panic.
            let _ = thread.join();
        }
    }
}

/// A socket for all frames of one link.
fn open(link: &str) -> Result<OwnedFd> {
    let fd = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        SockProtocol::EthAll,
    )?;
    setsockopt(&fd, VirtioHeader, &true).context("ask for unfinished checksums")?;
    bind(fd.as_raw_fd(), &address(link)?).context("bind a packet socket")?;
    Ok(fd)
}

fn address(link: &str) -> Result<LinkAddr> {
    getifaddrs()?
        .filter(|interface| interface.interface_name == link)
        .find_map(|interface| interface.address?.as_link_addr().copied())
        .with_context(|| format!("there is no link {link}"))
}

/// Passes the waiting packets on; if there are none, waits for at most [`POLL_MS`]. A packet that cannot be sent is lost, as
/// on any link.
fn pass([inside, outside]: &[OwnedFd; 2], vxlan_port: u16, spoilt: &AtomicU64) {
    let mut waiting = [inside, outside].map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN));
    let _ = poll(&mut waiting, PollTimeout::from(POLL_MS));
    let mut frame = vec![0; VIRTIO + LARGEST];
    for (from, to) in [(inside, outside), (outside, inside)] {
        loop {
            let length = match recv(from.as_raw_fd(), &mut frame, MsgFlags::empty()) {
                Ok(length) => length,
                Err(Errno::EINTR) => continue,
                Err(_) => break,
            };
            let Some((header, packet)) = frame
                .get_mut(..length)
                .and_then(|frame| frame.split_at_mut_checked(VIRTIO))
            else {
                continue;
            };
            let leaves = std::ptr::eq(from, inside);
            if leaves && is_unfinished_within(header, packet, vxlan_port) {
                header.fill(0);
                spoilt.fetch_add(1, Ordering::Relaxed);
            }
            let _ = send(
                to.as_raw_fd(),
                frame.get(..length).unwrap_or_default(),
                MsgFlags::empty(),
            );
        }
    }
}

/// Whether an Ethernet frame holds a datagram to this port with a checksum to be finished within. That of the datagram
/// itself, where it has one, is one that the NIC knows how to finish.
fn is_unfinished_within(header: &[u8], frame: &[u8], port: u16) -> bool {
    const UDP: u8 = 17;
    const UDP_HEADER: usize = 8;
    /// `csum_start`, from the frame's first byte.
    const START: usize = 6;
    let start = header
        .get(START..START + 2)
        .and_then(|start| start.try_into().ok());
    let start = start.map_or(0, u16::from_ne_bytes);
    let unfinished = header.first().is_some_and(|flags| flags & UNFINISHED != 0);
    let byte = |at: usize| frame.get(at).copied().unwrap_or(0);
    let number = |at: usize| u16::from_be_bytes([byte(at), byte(at + 1)]);
    let (protocol, transport) = match number(12) {
        0x0800 => (byte(23), 14 + usize::from(byte(14) & 0xf) * 4),
        0x86dd => (byte(20), 54),
        _ => return false,
    };
    let within = usize::from(start) >= transport + UDP_HEADER;
    unfinished && within && protocol == UDP && number(transport + 2) == port
}
