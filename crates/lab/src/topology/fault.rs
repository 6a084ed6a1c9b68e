//! Faulty networks: paths that silently lose certain packets, and a NIC that spoils packets inside of tunnels.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;

use super::{Node, UNDERLAY_BRIDGE};
use crate::host::Host;
use crate::nic::BadNic;

/// Which packets a path loses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// Datagrams to this port, like a firewall or security group that does not allow the port.
    Udp(u16),
    /// Packets of more bytes than these, IP header and all, and no ICMP message for them: an MTU black hole.
    LargerThan(u16),
    Everything,
}

/// A path that loses packets, until this is dropped.
#[must_use = "dropping it mends the path"]
pub struct LossyPath {
    underlay: Arc<Host>,
    table: String,
}

impl Drop for LossyPath {
    fn drop(&mut self) {
        let line = ["delete", "table", "bridge", self.table.as_str()];
        // The lab may have been closed before; then there is nothing to mend.
        let _ = self.underlay.nft(&line);
    }
}

/// A node whose cable is pulled, until this is dropped.
#[must_use = "dropping it plugs the cable in again"]
pub struct Unplugged {
    underlay: Arc<Host>,
    port: String,
}

impl Drop for Unplugged {
    fn drop(&mut self) {
        let line = format!("link set dev {} master {UNDERLAY_BRIDGE}", self.port);
        // The lab may have been closed before; then there is no cable.
        let _ = self.underlay.namespace().ip(&[line]);
    }
}

impl Node {
    /// Pulls the cable between the node and the underlay. Neither the node nor others are notified: its packets and those
    /// for it vanish.
    pub fn unplug(&self) -> Result<Unplugged> {
        let (underlay, port) = (Arc::clone(&self.0.underlay), self.0.port.clone());
        let line = format!("link set dev {port} nomaster");
        underlay.namespace().ip(&[line])?;
        Ok(Unplugged { underlay, port })
    }

    /// Makes the underlay lose packets from here to `to`, which is on the underlay too, in that direction only.
    pub fn lose(&self, to: &Host, loss: Loss) -> Result<LossyPath> {
        let which = match loss {
            Loss::Udp(port) => format!("udp dport {port}"),
            Loss::LargerThan(bytes) => format!("meta length > {bytes}"),
            Loss::Everything => String::new(),
        };
        let rules = self.addresses().into_iter().zip(to.addresses());
        let rules: String = rules
            .map(|(from, to)| {
                let family = match from {
                    IpAddr::V4(_) => "ip",
                    IpAddr::V6(_) => "ip6",
                };
                format!("{family} saddr {from} {family} daddr {to} {which} drop\n")
            })
            .collect();
        self.lose_by(&rules)
    }

    /// Makes the underlay lose a part of all packets from and to the node, those of its pods included, by chance: 1 to 99
    /// of a hundred.
    pub fn lose_percent(&self, percent: u8) -> Result<LossyPath> {
        let port = &self.0.port;
        let rules = ["iifname", "oifname"]
            .map(|side| format!("{side} {port} numgen random mod 100 < {percent} drop\n"));
        self.lose_by(&rules.concat())
    }

    fn lose_by(&self, rules: &str) -> Result<LossyPath> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let table = format!("lossy_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let chain = format!("type filter hook forward priority 0\n{rules}");
        let ruleset = format!("table bridge {table} {{\nchain forward {{\n{chain}}}\n}}\n");
        let underlay = Arc::clone(&self.0.underlay);
        underlay.nft_stdin(&ruleset)?;
        Ok(LossyPath { underlay, table })
    }

    /// Gives the node a NIC with a known fault: it announces that it finishes checksums, and does not inside of VXLAN
    /// packets to this port. All other packets pass unchanged.
    pub fn break_nic(&self, vxlan_port: u16) -> Result<BadNic> {
        let outside = format!("{}nic", self.0.port);
        let underlay = self.0.underlay.namespace();
        let nic = BadNic::new(vxlan_port, |tid| {
            let port = &self.0.port;
            underlay.ip(&[
                format!("link set dev {port} nomaster"),
                format!("link set dev {port} netns {tid} name {}", BadNic::INSIDE),
                format!(
                    "link add name {outside} type veth peer name {} netns {tid}",
                    BadNic::OUTSIDE
                ),
                format!("link set dev {outside} master {UNDERLAY_BRIDGE}"),
                format!("link set dev {outside} up"),
            ])
        })?;
        super::wait_until_reachable(self, crate::address::gateway())?;
        // The kernel would resolve a neighbor that failed while the node was unplugged only a second later
        // (`retrans_time_ms`).
        self.namespace().ip(&["neigh flush dev eth0".to_owned()])?;
        Ok(nic)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::probe::{Outcome, Probe};
    use crate::scenario;
    use crate::socket::Protocol;
    use crate::topology::Lab;
    use crate::wait::wait_until;

    const PORT: u16 = 8472;

    fn answered(from: &Host, protocol: Protocol, to: impl Into<std::net::SocketAddr>) -> bool {
        let probe = Probe::new(protocol, to).within(Duration::from_millis(300));
        matches!(from.probe(probe), Ok(Outcome::Answered { .. }))
    }

    #[scenario(Nft)]
    fn lossy_path_drops_its_packets_in_one_direction_until_dropped() -> Result<()> {
        let lab = Lab::new()?;
        let (a, b) = (lab.node("node-a")?, lab.node("node-b")?);
        for node in [&a, &b] {
            node.serve(Protocol::Udp, PORT)?;
            node.serve(Protocol::Tcp, PORT)?;
        }
        let lossy = a.lose(&b, Loss::Udp(PORT))?;
        for (to_b, to_a) in b.addresses().into_iter().zip(a.addresses()) {
            assert!(!answered(&a, Protocol::Udp, (to_b, PORT)));
            assert!(answered(&a, Protocol::Tcp, (to_b, PORT)));
            assert!(answered(&b, Protocol::Udp, (to_a, PORT)));
        }
        drop(lossy);
        assert!(answered(&a, Protocol::Udp, (b.ipv4(), PORT)));
        let _all = b.lose(&a, Loss::Everything)?;
        assert!(!answered(&a, Protocol::Tcp, (b.ipv4(), PORT)));
        Ok(())
    }

    #[scenario(Nft)]
    fn lost_percent_of_packets_concerns_pods_too() -> Result<()> {
        let lab = Lab::new()?;
        let (a, b) = (lab.node("node-a")?, lab.node("node-b")?);
        let pod = b.pod("pod")?;
        pod.serve(Protocol::Udp, PORT)?;
        let answers = || answered(&a, Protocol::Udp, (pod.ipv4(), PORT));
        let _lossy = b.lose_percent(50)?;
        let patience = Duration::from_secs(30);
        wait_until("an answer", patience, answers)?;
        wait_until("a lost packet", patience, || !answers())
    }

    #[scenario]
    fn unplugged_node_answers_nobody_until_it_is_plugged_in() -> Result<()> {
        let lab = Lab::new()?;
        let (a, b) = (lab.node("node-a")?, lab.node("node-b")?);
        let pod = b.pod("pod")?;
        pod.serve(Protocol::Tcp, PORT)?;
        let answers = || answered(&a, Protocol::Tcp, (pod.ipv4(), PORT));
        assert!(answers());
        let unplugged = b.unplug()?;
        assert!(!answers());
        drop(unplugged);
        wait_until("the node to answer", Duration::from_secs(10), answers)
    }

    #[scenario(Nft)]
    fn a_path_for_small_packets_only_loses_the_large_ones() -> Result<()> {
        let lab = Lab::new()?;
        let (a, b) = (lab.node("node-a")?, lab.node("node-b")?);
        b.serve(Protocol::Udp, PORT)?;
        let _lossy = a.lose(&b, Loss::LargerThan(1400))?;
        for address in b.addresses() {
            let headers = if address.is_ipv4() { 28 } else { 48 };
            let arrives = move |bytes: usize| {
                let any = if address.is_ipv4() {
                    "0.0.0.0:0"
                } else {
                    "[::]:0"
                };
                let socket = std::net::UdpSocket::bind(any)?;
                socket.set_read_timeout(Some(Duration::from_millis(300)))?;
                socket.send_to(&vec![0; bytes - headers], (address, PORT))?;
                Ok::<_, std::io::Error>(socket.recv(&mut [0; 64]).is_ok())
            };
            assert!(a.run(move || arrives(1400))??);
            assert!(!a.run(move || arrives(1401))??);
        }
        Ok(())
    }

    #[scenario(Vxlan)]
    fn a_bad_nic_spoils_tcp_inside_of_a_tunnel_and_nothing_else() -> Result<()> {
        let lab = Lab::new()?;
        let (a, b) = (lab.node("node-a")?, lab.node("node-b")?);
        for (node, other, number) in [(&a, &b, 1), (&b, &a, 2)] {
            node.namespace().ip(&[
                format!(
                    "link add tunnel0 type vxlan id 5 dstport {PORT} local {} remote {} dev eth0",
                    node.ipv4(),
                    other.ipv4()
                ),
                format!("addr add 10.99.0.{number}/24 dev tunnel0"),
                "link set dev tunnel0 up".to_owned(),
            ])?;
        }
        let inside = std::net::SocketAddr::from(([10, 99, 0, 2], 80));
        let serve = crate::socket::listening;
        let _server = b.run(move || serve(Protocol::Tcp, inside))??;
        let connects = |a: &Node| {
            let timeout = Duration::from_millis(300);
            a.run(move || std::net::TcpStream::connect_timeout(&inside, timeout).is_ok())
        };
        wait_until("the tunnel", Duration::from_secs(10), || {
            connects(&a).unwrap_or(false)
        })?;
        // Somebody on the node who does not stop asking for the other one while the NIC is changed.
        let asking = Probe::new(Protocol::Udp, (b.ipv4(), PORT)).within(Duration::from_millis(1));
        let asking = a.stream_connections(asking, Duration::from_millis(1))?;
        let nic = a.break_nic(PORT)?;
        drop(asking);
        assert!(!connects(&a)?);
        assert!(nic.spoilt() > 0);
        b.serve(Protocol::Tcp, 81)?;
        for address in b.addresses() {
            assert!(answered(&a, Protocol::Tcp, (address, 81)));
        }
        Ok(())
    }
}
