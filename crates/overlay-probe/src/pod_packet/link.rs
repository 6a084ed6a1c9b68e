//! An interface like that of a pod, for a moment: a veth pair on the bridge of the pods, or with a route of its own where
//! pods have no bridge.
//!
//! The pod's end stays in the namespace of the node. It takes part in nothing there: without ARP, and with another hardware
//! address than packets to the pod have, the kernel drops what arrives by it, and only a packet socket sees it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use netlink::{Connection, NetlinkFamily, Reply, Writer, flag};
use nix::errno::Errno;
use nix::libc;
use rand::Rng;

use super::link_address;
use crate::bridge::bridge;
use crate::forwarding::interfaces_within;

/// The pod's end.
pub(super) const POD_END: &str = "vethportolan1";
/// The node's end.
const NODE_END: &str = "vethportolan0";
/// Addresses to try: one that has a neighbor entry belongs to a pod.
const TRIES: usize = 16;
/// Metric of the route to the pod: any other route to the same address is better.
const METRIC: u32 = 0x7fff_ffff;
/// `NUD_REACHABLE`: the entry expires even if it is not deleted.
const REACHABLE: u16 = 0x02;

// Of `if_link.h`, `veth.h`, `neighbour.h` and `rtnetlink.h`.
const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_PRIORITY: u16 = 6;

/// The pair, until dropped.
pub(super) struct PodLink {
    connection: Connection,
    /// An address that no pod has.
    pub(super) pod: IpAddr,
    pub(super) pod_mac: [u8; 6],
    /// Hardware address of the interface that receives what pods send.
    pub(super) gateway_mac: [u8; 6],
    /// Index of that interface.
    gateway: usize,
}

impl PodLink {
    /// Makes the pair. `None` where the bridge of the pods waits before it forwards packets of a new port.
    pub(super) fn new(pods: IpNet) -> Result<Option<PodLink>> {
        let mut interfaces = interfaces_within(pods).into_iter();
        let found = interfaces.find_map(|name| Some((bridge(&name)?, name)));
        if found.as_ref().is_some_and(|(it, _)| it.has_spanning_tree) {
            return Ok(None);
        }
        let bridge = found.map(|(_, name)| name);
        let mut connection = Connection::open(NetlinkFamily::Route)?;
        // Of an earlier process that was killed meanwhile.
        delete(&mut connection)?;
        let master = bridge.as_deref().map(link_address).transpose()?;
        create(&mut connection, master.map(|master| master.ifindex()))
            .context("cannot make a veth pair")?;
        let gateway = link_address(bridge.as_deref().unwrap_or(NODE_END));
        let mut link = PodLink {
            connection,
            pod: pods.addr(),
            pod_mac: locally_administered(),
            gateway_mac: [0; 6],
            gateway: 0,
        };
        let gateway = gateway?;
        link.gateway = gateway.ifindex();
        link.gateway_mac = gateway.addr().context("it has no hardware address")?;
        link.take_address(pods)?;
        if bridge.is_none() {
            link.add_route()?;
        }
        Ok(Some(link))
    }

    /// Takes an address that has no neighbor entry, and gives it one.
    fn take_address(&mut self, pods: IpNet) -> Result<()> {
        for _ in 0..TRIES {
            self.pod = any_address(pods).context("the range of pods has no further address")?;
            match self.neighbor(libc::RTM_NEWNEIGH, flag::CREATE | flag::EXCL)? {
                Reply::Refused(Errno::EEXIST) => {}
                Reply::Refused(errno) => bail!("cannot add a neighbor: {errno}"),
                Reply::Done | Reply::Interrupted => return Ok(()),
            }
        }
        bail!("every address that was tried belongs to a pod")
    }

    fn neighbor(&mut self, kind: u16, flags: u16) -> Result<Reply> {
        let [low, high] = REACHABLE.to_ne_bytes();
        let index = (self.gateway as u32).to_ne_bytes();
        let header = [&[family(self.pod), 0, 0, 0][..], &index, &[low, high, 0, 0]].concat();
        let (pod, mac) = (bytes(self.pod), self.pod_mac);
        let fill = |message: &mut Writer| {
            message.put(NDA_DST, &pod);
            message.put(NDA_LLADDR, &mac);
        };
        let reply = self.connection.ask(kind, flags, &header, fill, |_| Ok(()));
        Ok(reply?)
    }

    fn add_route(&mut self) -> Result<()> {
        let pod = bytes(self.pod);
        let length = if self.pod.is_ipv4() { 32 } else { 128 };
        let header = [
            family(self.pod),
            length,
            0,
            0,
            libc::RT_TABLE_MAIN,
            libc::RTPROT_STATIC,
            libc::RT_SCOPE_LINK,
            libc::RTN_UNICAST,
            0,
            0,
            0,
            0,
        ];
        let index = (self.gateway as u32).to_ne_bytes();
        let fill = |message: &mut Writer| {
            message.put(RTA_DST, &pod);
            message.put(RTA_OIF, &index);
            message.put(RTA_PRIORITY, &METRIC.to_ne_bytes());
        };
        let flags = flag::CREATE | flag::EXCL;
        let reply = self
            .connection
            .ask(libc::RTM_NEWROUTE, flags, &header, fill, |_| Ok(()))?;
        done(reply, "cannot add a route")
    }
}

impl Drop for PodLink {
    fn drop(&mut self) {
        let neighbor = match self.gateway {
            0 => Ok(Reply::Done),
            _ => self.neighbor(libc::RTM_DELNEIGH, 0),
        };
        // Routes go with their interface.
        if let Err(error) = neighbor.and_then(|_| delete(&mut self.connection)) {
            tracing::debug!(
                error = format!("{error:#}"),
                "cannot delete {NODE_END}; the next check does"
            );
        }
    }
}

fn create(connection: &mut Connection, master: Option<usize>) -> Result<()> {
    const UP: u32 = libc::IFF_UP as u32;
    const NO_ARP: u32 = libc::IFF_NOARP as u32;
    let fill = |message: &mut Writer| {
        message.put_str(IFLA_IFNAME, NODE_END);
        if let Some(master) = master {
            message.put(IFLA_MASTER, &(master as u32).to_ne_bytes());
        }
        message.nest(IFLA_LINKINFO, |info| {
            info.put_str(IFLA_INFO_KIND, "veth");
            info.nest(IFLA_INFO_DATA, |data| {
                data.nest(VETH_INFO_PEER, |peer| {
                    // Up only once it has its other end: the kernel refuses that before.
                    peer.bytes.extend(link_header(NO_ARP));
                    peer.put_str(IFLA_IFNAME, POD_END);
                });
            });
        });
    };
    let flags = flag::CREATE | flag::EXCL;
    let reply = connection.ask(libc::RTM_NEWLINK, flags, &link_header(UP), fill, |_| Ok(()))?;
    done(reply, "the kernel refuses")?;
    let name = |message: &mut Writer| message.put_str(IFLA_IFNAME, POD_END);
    let header = link_header(UP);
    let reply = connection.ask(libc::RTM_NEWLINK, 0, &header, name, |_| Ok(()))?;
    done(reply, "the kernel does not switch it on")
}

/// Deletes the pair, if there is one.
fn delete(connection: &mut Connection) -> Result<()> {
    let fill = |message: &mut Writer| message.put_str(IFLA_IFNAME, NODE_END);
    let reply = connection.ask(libc::RTM_DELLINK, 0, &link_header(0), fill, |_| Ok(()))?;
    match reply {
        Reply::Refused(Errno::ENODEV) => Ok(()),
        reply => done(reply, "cannot delete a veth pair"),
    }
}

/// `struct ifinfomsg` with these flags to be set.
fn link_header(flags: u32) -> Vec<u8> {
    let flags = flags.to_ne_bytes();
    [&[0; 8][..], &flags, &flags].concat()
}

fn done(reply: Reply, action: &'static str) -> Result<()> {
    match reply {
        Reply::Done | Reply::Interrupted => Ok(()),
        Reply::Refused(errno) => bail!("{action}: {errno}"),
    }
}

fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
}

fn bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// A hardware address that no manufacturer gives out (IEEE 802).
fn locally_administered() -> [u8; 6] {
    let mut mac: [u8; 6] = rand::random();
    mac[0] = mac[0] & 0xfc | 0x02;
    mac
}

/// An address of this range, neither its first two nor its last one; `None` if there is no other.
fn any_address(range: IpNet) -> Option<IpAddr> {
    let mut random = rand::rng();
    match range {
        IpNet::V4(range) => {
            let (first, last) = (u32::from(range.network()), u32::from(range.broadcast()));
            let (first, last) = (first.checked_add(2)?, last.checked_sub(1)?);
            (first <= last).then(|| Ipv4Addr::from(random.random_range(first..=last)).into())
        }
        IpNet::V6(range) => {
            let (first, last) = (u128::from(range.network()), u128::from(range.broadcast()));
            let (first, last) = (first.checked_add(2)?, last.checked_sub(1)?);
            (first <= last).then(|| Ipv6Addr::from(random.random_range(first..=last)).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_of_pods_and_neither_gateway_nor_broadcast() {
        let range: IpNet = "10.244.3.0/29".parse().unwrap();
        for _ in 0..100 {
            let IpAddr::V4(address) = any_address(range).unwrap() else {
                panic!("another family");
            };
            assert!((2..=6).contains(&address.octets()[3]), "{address}");
        }
        for none in ["10.244.3.4/31", "10.244.3.4/32", "fd00::1/128"] {
            assert_eq!(any_address(none.parse().unwrap()), None);
        }
    }
}
