//! Listens at a link and searches what passes for text that should not be readable there.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail, ensure};
use lab::Host;
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket,
    sockopt,
};

/// How often a listener without packets looks whether it shall stop.
const POLL_MS: u16 = 20;
const LARGEST: usize = 1 << 16;
const SPACE: usize = 64 << 20;

/// What passed a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Frames.
    pub frames: u64,
    /// Frames with the text.
    pub readable: u64,
    /// UDP packets to the port of VXLAN.
    pub vxlan: u64,
    /// UDP packets to the ports of WireGuard.
    pub wireguard: u64,
}

/// Listens at one link of a host until it is stopped.
pub struct Listener {
    stop: Arc<AtomicBool>,
    counts: Arc<[AtomicU64; 4]>,
    thread: JoinHandle<Result<()>>,
}

impl Listener {
    /// Listens at a link of a host for frames with this text.
    pub fn start(host: &Host, link: &'static str, text: &'static [u8]) -> Result<Listener> {
        let fd = host.run(move || open(link))??;
        let stop = Arc::new(AtomicBool::new(false));
        let counts: Arc<[AtomicU64; 4]> = Arc::default();
        let (stopping, counting) = (stop.clone(), counts.clone());
        let thread = std::thread::spawn(move || listen(&fd, text, &stopping, &counting));
        Ok(Listener {
            stop,
            counts,
            thread,
        })
    }

    /// What has passed so far.
    pub fn heard(&self) -> Heard {
        let count = |place: usize| {
            let counter = self.counts.get(place);
            counter.map_or(0, |counter| counter.load(Ordering::Relaxed))
        };
        Heard {
            frames: count(0),
            readable: count(1),
            vxlan: count(2),
            wireguard: count(3),
        }
    }

    /// Stops, and returns what has passed.
    pub fn stop(self) -> Result<Heard> {
        self.stop.store(true, Ordering::Relaxed);
        let heard = self.heard();
        match self.thread.join() {
            Ok(result) => result.map(|()| heard),
            Err(_) => bail!("the thread of a listener panicked"),
        }
    }
}

fn open(link: &str) -> Result<OwnedFd> {
    let fd = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        SockProtocol::EthAll,
    )?;
    setsockopt(&fd, sockopt::RcvBufForce, &SPACE)?;
    let address = getifaddrs()?
        .filter(|interface| interface.interface_name == link)
        .find_map(|interface| interface.address?.as_link_addr().copied());
    let address = address.with_context(|| format!("there is no link {link}"))?;
    bind(fd.as_raw_fd(), &address)?;
    // Until it is bound, a socket receives from every link.
    let mut frame = vec![0; LARGEST];
    while recv(fd.as_raw_fd(), &mut frame, MsgFlags::empty()).is_ok() {}
    Ok(fd)
}

fn listen(fd: &OwnedFd, text: &[u8], stop: &AtomicBool, counts: &[AtomicU64; 4]) -> Result<()> {
    let [frames, readable, vxlan, wireguard] = counts;
    let mut frame = vec![0; LARGEST];
    let finder = |frame: &[u8]| frame.windows(text.len()).any(|window| window == text);
    loop {
        let length = match recv(fd.as_raw_fd(), &mut frame, MsgFlags::empty()) {
            Ok(length) => length,
            Err(Errno::EINTR) => continue,
            Err(Errno::EAGAIN) if stop.load(Ordering::Relaxed) => return Ok(()),
            Err(Errno::EAGAIN) => {
                let mut waiting = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
                let _ = poll(&mut waiting, PollTimeout::from(POLL_MS));
                continue;
            }
            Err(errno) => bail!("receiving frames: {errno}"),
        };
        let frame = frame.get(..length).unwrap_or_default();
        frames.fetch_add(1, Ordering::Relaxed);
        if finder(frame) {
            readable.fetch_add(1, Ordering::Relaxed);
        }
        match udp_port(frame) {
            Some(8472) => drop(vxlan.fetch_add(1, Ordering::Relaxed)),
            Some(51820 | 51821) => drop(wireguard.fetch_add(1, Ordering::Relaxed)),
            _ => {}
        }
    }
}

/// Destination port of an Ethernet frame with UDP.
fn udp_port(frame: &[u8]) -> Option<u16> {
    const UDP: u8 = 17;
    let byte = |at: usize| frame.get(at).copied();
    let kind = u16::from_be_bytes([byte(12)?, byte(13)?]);
    let (protocol, transport) = match kind {
        0x0800 => (byte(23)?, 14 + usize::from(byte(14)? & 0xf) * 4),
        0x86dd => (byte(20)?, 54),
        _ => return None,
    };
    (protocol == UDP).then_some(u16::from_be_bytes([
        byte(transport + 2)?,
        byte(transport + 3)?,
    ]))
}

/// Fails unless nothing readable passed, and something encrypted did.
pub fn ensure_sealed(heard: Heard) -> Result<()> {
    ensure!(
        heard.readable == 0 && heard.vxlan == 0 && heard.wireguard > 0,
        "packets could be read on the wire: {heard:?}"
    );
    Ok(())
}
