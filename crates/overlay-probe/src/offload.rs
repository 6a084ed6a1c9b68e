//! Whether the kernel leaves checksums of packets that enter a device for later (`tx-checksum-ip-generic`).
//!
//! Where the NIC below a tunnel promises to finish the checksums of what is inside and does not, TCP and UDP between
//! pods fail while pings pass; with the feature off on the tunnel device the kernel finishes them before it wraps the
//! packet. Owns the two questions of ethtool's netlink interface that this takes (`ETHTOOL_MSG_FEATURES_GET` and `_SET`,
//! Linux 5.7); when to switch is left to others.
//!
//! All functions block, for as long as the kernel's lock on network devices is held by others.

use anyhow::{Context, Result, bail, ensure};
use netlink::{Attributes, Connection, Malformed, Message, NetlinkFamily, Reply, Writer, string};

/// As `ethtool -k` prints it: checksums of any protocol, begun by the kernel and finished by the device.
const FEATURE: &str = "tx-checksum-ip-generic";

/// Whether checksums of packets that enter the device are left for later.
///
/// Errors: there is no such device, or the kernel has no netlink interface of ethtool.
pub(super) fn tx_checksum(device: &str) -> Result<bool> {
    Ethtool::open()?.is_active(device)
}

/// Switches the feature. Established connections are affected from their next packet on.
///
/// Errors: as [`tx_checksum`]; the device cannot switch it; EPERM without CAP_NET_ADMIN.
pub(super) fn set_tx_checksum(device: &str, on: bool) -> Result<()> {
    let mut ethtool = Ethtool::open()?;
    let fill = |out: &mut Writer| {
        out.nest(features::WANTED, |out| {
            out.nest(bitset::BITS, |out| {
                out.nest(bits::BIT, |out| {
                    out.put_str(bit::NAME, FEATURE);
                    if on {
                        out.put(bit::VALUE, &[]);
                    }
                });
            });
        });
    };
    ethtool
        .ask(command::FEATURES_SET, device, fill, |_| Ok(()))
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

/// Bytes of `struct genlmsghdr`: command, version, two that are reserved.
const GENLMSGHDR: usize = 4;

/// A connection to generic netlink, in the calling thread's network namespace.
struct Ethtool {
    connection: Connection,
    /// Message type of ethtool's requests, chosen by the kernel.
    family: u16,
}

impl Ethtool {
    fn open() -> Result<Self> {
        /// `GENL_ID_CTRL`, `CTRL_CMD_GETFAMILY` and the attributes of `linux/genetlink.h`.
        const CONTROL: u16 = 0x10;
        const GET_FAMILY: u8 = 3;
        const FAMILY_ID: u16 = 1;
        const FAMILY_NAME: u16 = 2;
        let mut connection = Connection::open(NetlinkFamily::Generic)?;
        let mut family = None;
        let fill = |out: &mut Writer| out.put_str(FAMILY_NAME, "ethtool");
        let absorb = |message: &Message<'_>| {
            let id = message.attributes(GENLMSGHDR)?.find(FAMILY_ID)?;
            family = id.and_then(|id| id.try_into().ok().map(u16::from_ne_bytes));
            Ok(())
        };
        let reply = connection.ask(CONTROL, 0, &[GET_FAMILY, 2, 0, 0], fill, absorb)?;
        if let Reply::Refused(errno) = reply {
            bail!("asking for ethtool's netlink interface (Linux 5.7): {errno}");
        }
        let family = family.context("ethtool's netlink interface has no number")?;
        Ok(Ethtool { connection, family })
    }

    fn is_active(&mut self, device: &str) -> Result<bool> {
        let mut active = None;
        self.ask(
            command::FEATURES_GET,
            device,
            |_| {},
            |message| {
                if message.payload.first() == Some(&command::FEATURES_GET_REPLY) {
                    active = Some(names_feature(message)?);
                }
                Ok(())
            },
        )
        .with_context(|| format!("reading the features of {device}"))?;
        active.with_context(|| format!("the kernel lists no features of {device}"))
    }

    fn ask(
        &mut self,
        command: u8,
        device: &str,
        fill: impl FnOnce(&mut Writer),
        absorb: impl FnMut(&Message<'_>) -> Result<(), Malformed>,
    ) -> Result<()> {
        let is_long = device.len() >= nix::libc::IFNAMSIZ;
        ensure!(!device.is_empty() && !is_long, "{device:?} names no device");
        let fill = |out: &mut Writer| {
            out.nest(features::HEADER, |out| {
                out.put_str(device_header::NAME, device);
            });
            fill(out);
        };
        let header = [command, 1, 0, 0];
        match self.connection.ask(self.family, 0, &header, fill, absorb)? {
            Reply::Refused(errno) => Err(errno.into()),
            Reply::Done | Reply::Interrupted => Ok(()),
        }
    }
}

/// Whether the feature is among the active ones of a reply. They are a list without a mask: a feature that is not
/// named is off.
fn names_feature(reply: &Message<'_>) -> Result<bool, Malformed> {
    let active = reply.attributes(GENLMSGHDR)?.find(features::ACTIVE)?;
    let active = active.ok_or(Malformed::Missing("ETHTOOL_A_FEATURES_ACTIVE"))?;
    let list = Attributes::new(active).find(bitset::BITS)?;
    for item in Attributes::new(list.ok_or(Malformed::Missing("ETHTOOL_A_BITSET_BITS"))?) {
        let name = Attributes::new(item?.payload).find(bit::NAME)?;
        if string(name.unwrap_or_default(), "ETHTOOL_A_BITSET_BIT_NAME")? == FEATURE {
            return Ok(true);
        }
    }
    Ok(false)
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
