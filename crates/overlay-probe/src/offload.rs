//! Whether the kernel leaves checksums of packets that enter a device for later (`tx-checksum-ip-generic`).
//!
//! Where the NIC below a tunnel promises to finish the checksums of what is inside and does not, TCP and UDP between
//! pods fail while pings pass; with the feature off on the tunnel device the kernel finishes them before it wraps the
//! packet. Owns the two questions of ethtool's netlink interface that this takes (`ETHTOOL_MSG_FEATURES_GET` and `_SET`,
//! Linux 5.7); when to switch is left to others.
//!
//! All functions block, for as long as the kernel's lock on network devices is held by others.

use std::fmt::Debug;
use std::os::fd::AsFd;

use anyhow::{Context, Result, bail, ensure};
use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NLA_F_NESTED, NLA_HEADER_SIZE, NLM_F_ACK, NLM_F_REQUEST,
    NetlinkHeader, NetlinkMessage, NetlinkPayload, NlasIterator, ParseableParametrized,
};
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};
use netlink_sys::protocols::NETLINK_GENERIC;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// As `ethtool -k` prints it: checksums of any protocol, begun by the kernel and finished by the device.
const FEATURE: &[u8] = b"tx-checksum-ip-generic";
/// The kernel answers before `send` returns; this is for what should never happen.
const ANSWER_TIMEOUT_MS: u16 = 10_000;
/// An answer names every feature of a device: about 3 kB.
const RECEIVE: usize = 64 << 10;

/// Whether checksums of packets that enter the device are left for later.
///
/// Errors: there is no such device, or the kernel has no netlink interface of ethtool.
pub(super) fn tx_checksum(device: &str) -> Result<bool> {
    Ethtool::open()?.is_active(device)
}

/// Leaves them for later, or has the kernel write them at once. Connections that stand feel it from their next packet
/// on.
///
/// Errors: as [`tx_checksum`]; the device cannot do as it is told; EPERM without CAP_NET_ADMIN.
pub(super) fn set_tx_checksum(device: &str, on: bool) -> Result<()> {
    let mut ethtool = Ethtool::open()?;
    let value = if on {
        attribute(bit::VALUE, &[])
    } else {
        Vec::new()
    };
    let bit = nest(
        bits::BIT,
        &[attribute(bit::NAME, &terminated(FEATURE)), value],
    );
    let wanted = nest(features::WANTED, &[nest(bitset::BITS, &[bit])]);
    let request = [header(device)?, wanted].concat();
    ethtool
        .ask(command::FEATURES_SET, request, |_| {})
        .with_context(|| format!("switching transmit checksums of {device}"))?;
    ensure!(
        ethtool.is_active(device)? == on,
        "{device} keeps its transmit checksums as they are"
    );
    Ok(())
}

/// `linux/ethtool_netlink.h`: messages from user space, and the answer.
mod command {
    pub(super) const FEATURES_GET: u8 = 11;
    pub(super) const FEATURES_SET: u8 = 12;
    pub(super) const FEATURES_GET_REPLY: u8 = 11;
}

/// `ETHTOOL_A_HEADER_*`
mod device_header {
    pub(super) const NAME: u16 = 2;
}

/// `ETHTOOL_A_FEATURES_*`
mod features {
    pub(super) const HEADER: u16 = 1;
    pub(super) const WANTED: u16 = 3;
    pub(super) const ACTIVE: u16 = 4;
}

/// `ETHTOOL_A_BITSET_*`
mod bitset {
    pub(super) const BITS: u16 = 3;
}

/// `ETHTOOL_A_BITSET_BITS_*`
mod bits {
    pub(super) const BIT: u16 = 1;
}

/// `ETHTOOL_A_BITSET_BIT_*`
mod bit {
    pub(super) const NAME: u16 = 2;
    pub(super) const VALUE: u16 = 3;
}

/// A message of ethtool's family: its command, and its attributes as they are on the wire.
#[derive(Clone, Debug)]
struct Features {
    command: u8,
    attributes: Vec<u8>,
}

impl GenlFamily for Features {
    fn family_name() -> &'static str {
        "ethtool"
    }

    fn command(&self) -> u8 {
        self.command
    }

    fn version(&self) -> u8 {
        1
    }
}

impl Emitable for Features {
    fn buffer_len(&self) -> usize {
        self.attributes.len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.attributes);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for Features {
    fn parse_with_param(bytes: &[u8], header: GenlHeader) -> Result<Self, DecodeError> {
        Ok(Features {
            command: header.cmd,
            attributes: bytes.to_vec(),
        })
    }
}

/// A socket for generic netlink, in the calling thread's network namespace.
struct Ethtool {
    socket: Socket,
    family: u16,
    sequence: u32,
}

impl Ethtool {
    fn open() -> Result<Self> {
        let mut socket = Socket::new(NETLINK_GENERIC).context("opening a netlink socket")?;
        socket.bind_auto().context("binding a netlink socket")?;
        // Only the kernel is heard.
        socket.connect(&SocketAddr::new(0, 0))?;
        let mut ethtool = Ethtool {
            socket,
            family: 0,
            sequence: 0,
        };
        let who = GenlCtrl {
            cmd: GenlCtrlCmd::GetFamily,
            nlas: vec![GenlCtrlAttrs::FamilyName(
                Features::family_name().to_owned(),
            )],
        };
        let mut family = None;
        ethtool
            .exchange(GenlMessage::from_payload(who), |answer: &GenlCtrl| {
                for attribute in &answer.nlas {
                    if let GenlCtrlAttrs::FamilyId(id) = attribute {
                        family = Some(*id);
                    }
                }
            })
            .context("asking for ethtool's netlink interface (Linux 5.7)")?;
        ethtool.family = family.context("ethtool's netlink interface has no number")?;
        Ok(ethtool)
    }

    fn is_active(&mut self, device: &str) -> Result<bool> {
        let mut active = None;
        self.ask(command::FEATURES_GET, header(device)?, |answer| {
            if answer.command == command::FEATURES_GET_REPLY {
                active = Some(names_feature(&answer.attributes));
            }
        })
        .with_context(|| format!("reading the features of {device}"))?;
        active.with_context(|| format!("the kernel said nothing of {device}"))?
    }

    fn ask(
        &mut self,
        command: u8,
        attributes: Vec<u8>,
        absorb: impl FnMut(&Features),
    ) -> Result<()> {
        let mut message = GenlMessage::from_payload(Features {
            command,
            attributes,
        });
        message.set_resolved_family_id(self.family);
        self.exchange(message, absorb)
    }

    /// Sends a request and reads until it is acknowledged.
    fn exchange<F>(&mut self, message: GenlMessage<F>, mut absorb: impl FnMut(&F)) -> Result<()>
    where
        F: GenlFamily + Emitable + ParseableParametrized<[u8], GenlHeader> + Debug,
    {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut buffer = vec![0; RECEIVE];
        loop {
            let mut waiting = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            match poll(&mut waiting, PollTimeout::from(ANSWER_TIMEOUT_MS)) {
                Ok(0) => bail!("the kernel does not answer"),
                Ok(_) => {}
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            }
            let length = self.socket.recv(&mut buffer.as_mut_slice(), 0)?;
            let mut rest = buffer.get(..length).unwrap_or_default();
            while !rest.is_empty() {
                let answer = NetlinkMessage::<GenlMessage<F>>::deserialize(rest)?;
                let length = usize::try_from(answer.header.length)?;
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => absorb(&message.payload),
                    NetlinkPayload::Error(error) => match error.code {
                        None => return Ok(()),
                        Some(code) => {
                            return Err(Errno::from_raw(code.get().saturating_neg()).into());
                        }
                    },
                    _ => {}
                }
            }
        }
    }
}

/// Whether the feature is among the active ones of an answer. They are a list without a mask: who is not named is off.
fn names_feature(answer: &[u8]) -> Result<bool> {
    let active = find(answer, features::ACTIVE)?.context("no list of active features")?;
    let list = find(active, bitset::BITS)?.context("no list of features")?;
    for item in NlasIterator::new(list) {
        let item = item?;
        let name = find(item.value(), bit::NAME)?.unwrap_or_default();
        if name.strip_suffix(&[0]).unwrap_or(name) == FEATURE {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The payload of the first attribute of this kind.
fn find(attributes: &[u8], kind: u16) -> Result<Option<&[u8]>> {
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute?;
        if attribute.kind() == kind {
            let end = usize::from(attribute.length());
            return Ok(attribute.into_inner().get(NLA_HEADER_SIZE..end));
        }
    }
    Ok(None)
}

/// `ETHTOOL_A_FEATURES_HEADER` with the name of the device.
fn header(device: &str) -> Result<Vec<u8>> {
    let long = device.len() >= nix::libc::IFNAMSIZ;
    ensure!(!device.is_empty() && !long, "{device:?} names no device");
    let name = attribute(device_header::NAME, &terminated(device.as_bytes()));
    Ok(nest(features::HEADER, &[name]))
}

fn terminated(text: &[u8]) -> Vec<u8> {
    [text, &[0]].concat()
}

fn nest(kind: u16, inside: &[Vec<u8>]) -> Vec<u8> {
    attribute(kind | NLA_F_NESTED, &inside.concat())
}

fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    let attribute = DefaultNla::new(kind, payload.to_vec());
    let mut bytes = vec![0; attribute.buffer_len()];
    attribute.emit(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use lab::{Lab, scenario};

    use super::*;

    /// What the sixth word of `ethtool -k`'s line says, where that program is.
    fn by_ethtool(device: &str) -> Option<bool> {
        let output = std::process::Command::new("ethtool")
            .args(["-k", device])
            .output()
            .ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = text
            .lines()
            .find(|line| line.trim().starts_with("tx-checksum-ip-generic:"))?;
        Some(line.contains(": on"))
    }

    #[scenario(Vxlan)]
    fn checksums_of_a_vxlan_device_are_switched_off_and_on_again() -> Result<()> {
        let lab = Lab::new()?;
        let node = lab.node("node-a")?;
        let mut link = node.command("ip");
        link.args("link add tunnel0 type vxlan id 7 dstport 8472 dev eth0".split(' '));
        ensure!(node.output(link)?.status.success(), "no VXLAN device");
        node.run(|| -> Result<()> {
            for on in [false, true] {
                assert_eq!(tx_checksum("tunnel0")?, !on);
                set_tx_checksum("tunnel0", on)?;
                assert_eq!(tx_checksum("tunnel0")?, on);
                assert!(by_ethtool("tunnel0").is_none_or(|said| said == on));
            }
            // Loopback's is fixed: a refusal that must not look like success.
            assert!(tx_checksum("lo")?);
            assert!(set_tx_checksum("lo", false).is_err());
            assert!(tx_checksum("none0").is_err());
            assert!(tx_checksum("a name that is too long").is_err());
            Ok(())
        })?
    }
}
