//! What the kernel should hold and what it holds, as values, and the steps between the two.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use net_types::Family;

use crate::key::{PrivateKey, PublicKey};

/// Seconds between two packets to a peer without traffic: an idle peer keeps a fresh session, so that the age of the last
/// handshake says whether the peer can be reached.
pub const KEEPALIVE: u16 = 15;
/// A session that is older carries no packet (`REJECT_AFTER_TIME`); with [`KEEPALIVE`] it is renewed long before.
pub const SESSION: Duration = Duration::from_secs(180);
/// Priority of the rules that lead to the devices: before the main table, after that of local addresses.
pub const RULE_PRIORITY: u32 = 5182;
/// Priority of the rule that seals a port: after those.
pub const SEAL_PRIORITY: u32 = RULE_PRIORITY + 1;

/// Outer IP and UDP headers and those of WireGuard: 60 bytes over IPv4, 80 over IPv6 (`wg-quick` counts the same).
pub const fn overhead(family: Family) -> u32 {
    match family {
        Family::Ip => 60,
        Family::Ip6 => 80,
    }
}

/// What the kernel should hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The devices, by name.
    pub devices: BTreeMap<&'static str, Device>,
    /// Packets that may leave through the devices only.
    pub seal: Option<Seal>,
}

/// A device as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Private key of this node.
    pub private: PrivateKey,
    /// UDP port.
    pub port: u16,
    /// Largest packet that fits the network below with all headers.
    pub mtu: u32,
    /// Routing table for packets that are sent by this device.
    pub table: u32,
    /// The peers.
    pub peers: BTreeMap<PublicKey, Peer>,
    /// Whether the device may be set up: not before everything that its packets pass is in place.
    pub ready: bool,
}

/// A peer as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Address and port of its device.
    pub endpoint: SocketAddr,
    /// Addresses that packets from and to this peer have. No two peers of a device have one in common.
    pub addresses: BTreeSet<IpAddr>,
}

/// UDP packets of this node to a port, which are looked up in the table of a device whatever interface they name. A last
/// route of this table is unreachable, so nothing passes without the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seal {
    /// The destination port.
    pub port: u16,
    /// The table.
    pub table: u32,
}

/// Stands for the last route of a sealed table, which leads to no device.
pub const UNREACHABLE: u32 = 0;

/// A policy rule of ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// What is sent by the device of this name is looked up in this table.
    Device(String, u32),
    /// What goes to the sealed port is looked up in its table.
    Seal(Seal),
}

/// What the kernel shows at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Devices of our names.
    pub devices: BTreeMap<String, ObservedDevice>,
    /// Rules of our priority, by family.
    pub rules: BTreeSet<(Family, Rule)>,
    /// Default routes of our tables: family, table, index of the device or [`UNREACHABLE`].
    pub routes: BTreeSet<(Family, u32, u32)>,
    /// Families that the kernel has no routing for.
    pub without: BTreeSet<Family>,
}

/// A device as found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedDevice {
    /// Interface index.
    pub index: u32,
    /// Whether it is a WireGuard device.
    pub is_wireguard: bool,
    /// Administrative state.
    pub up: bool,
    /// Largest packet.
    pub mtu: u32,
    /// `net.ipv4.conf.DEVICE.rp_filter`, where the kernel says it.
    pub rp_filter: Option<u32>,
    /// Whether it has an IPv4 address.
    pub has_address: bool,
    /// Private key, if it has one.
    pub private: Option<PrivateKey>,
    /// Public key, which the kernel derives.
    pub public: Option<PublicKey>,
    /// UDP port.
    pub port: u16,
    /// Mark of its own packets.
    pub mark: u32,
    /// Its peers.
    pub peers: BTreeMap<PublicKey, ObservedPeer>,
}

/// A peer as found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedPeer {
    /// Where its last packet came from, or what was set.
    pub endpoint: Option<SocketAddr>,
    /// Whether a pre-shared key is set: none of ours has one.
    pub has_preshared_key: bool,
    /// Seconds between keepalive packets.
    pub keepalive: u16,
    /// Ranges of addresses.
    pub allowed: BTreeSet<(IpAddr, u8)>,
    /// When the last handshake completed, since 1970 by the node's clock.
    pub last_handshake: Option<Duration>,
    /// Received bytes.
    pub received: u64,
    /// Sent bytes.
    pub sent: u64,
}

/// A change of one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerChange {
    /// Adds the peer, or sets everything of it.
    Put(PublicKey, Peer),
    /// Removes the peer.
    Remove(PublicKey),
}

/// One step. A first field of type `u32` is the index of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Creates the device, down and without a key.
    CreateDevice(&'static str, u32),
    /// Deletes the device.
    DeleteDevice(u32, String),
    /// Sets the MTU.
    SetMtu(u32, u32),
    /// Has the kernel accept packets whose source is reached by another interface.
    SetLooseFilter(u32),
    /// Adds an IPv4 address of the link: without any, the kernel takes no packet whose source is reached by another
    /// interface (`__fib_validate_source`).
    AddAddress(u32),
    /// Sets private key and port, and clears the mark.
    SetKey(u32, PrivateKey, u16),
    /// Changes peers.
    ChangePeers(u32, Vec<PeerChange>),
    /// Sets the device up.
    SetUp(u32),
    /// Adds the default route of a table.
    AddRoute(Family, u32, u32),
    /// Deletes the default route of a table.
    DeleteRoute(Family, u32, u32),
    /// Adds a rule.
    AddRule(Family, Rule),
    /// Deletes a rule.
    DeleteRule(Family, Rule),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::CreateDevice(name, mtu) => write!(f, "creating device {name} (MTU {mtu})"),
            Step::DeleteDevice(_, name) => write!(f, "deleting device {name}"),
            Step::SetMtu(_, mtu) => write!(f, "setting the MTU to {mtu}"),
            Step::AddAddress(_) => write!(f, "adding an address to the WireGuard device"),
            Step::SetLooseFilter(_) => write!(f, "making reverse-path filtering loose"),
            Step::SetKey(_, _, port) => write!(f, "setting the private key and port {port}"),
            Step::ChangePeers(_, changes) => write!(f, "changing {} peers", changes.len()),
            Step::SetUp(_) => write!(f, "setting the WireGuard device up"),
            Step::AddRoute(family, table, _) => {
                write!(
                    f,
                    "writing the {} route of table {table}",
                    family.api_name()
                )
            }
            Step::DeleteRoute(family, table, _) => {
                write!(
                    f,
                    "deleting the {} route of table {table}",
                    family.api_name()
                )
            }
            Step::AddRule(family, rule) => {
                write!(f, "writing the {} rule {rule}", family.api_name())
            }
            Step::DeleteRule(family, rule) => {
                write!(f, "deleting the {} rule {rule}", family.api_name())
            }
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rule::Device(name, table) => write!(f, "oif {name} lookup {table}"),
            Rule::Seal(seal) => {
                write!(f, "ipproto udp dport {} lookup {}", seal.port, seal.table)
            }
        }
    }
}
