//! Forged frames: written by hand, sent by machines that can, and whether they arrive.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::Result;
use lab::{Host, scenario, wait_until};
use netfilter::{Conntrack, FlowFilter};
use nft::{Family, Feature, Protocol};
use portolan_tests::frame::Frame;
use portolan_tests::overlay::{OverlayStage, mac_of, tool};
use portolan_tests::slowness;
use portolan_tests::stage::{PATIENCE, features};

const VXLAN_PORT: u16 = 8472;
const LISTENER: u16 = 9999;
const BROADCAST: [u8; 6] = [0xff; 6];

/// A listener on a host, of both families.
struct Ears(Vec<UdpSocket>);

impl Ears {
    fn on(host: &Host) -> Result<Ears> {
        let socket = host.run(|| UdpSocket::bind(("::", LISTENER)))??;
        socket.set_read_timeout(Some(Duration::from_millis(200) * slowness()))?;
        Ok(Ears(vec![socket]))
    }

    /// All frames received since.
    fn heard(&self) -> BTreeSet<String> {
        let mut heard = BTreeSet::new();
        let mut buffer = [0; 512];
        for socket in &self.0 {
            while let Ok(length) = socket.recv(&mut buffer) {
                heard.insert(String::from_utf8_lossy(&buffer[..length]).into_owned());
            }
        }
        heard
    }
}

/// Sends a frame to a node, as a datagram of this host.
fn send(from: &Host, to: IpAddr, frame: &Frame) -> Result<()> {
    let any = if to.is_ipv4() { "0.0.0.0" } else { "::" }.parse()?;
    send_as(from, any, to, frame)
}

/// Sends it with this outer source.
fn send_as(from: &Host, source: IpAddr, to: IpAddr, frame: &Frame) -> Result<()> {
    let bytes = frame.bytes();
    from.run(move || -> Result<()> {
        UdpSocket::bind((source, 0))?.send_to(&bytes, SocketAddr::new(to, VXLAN_PORT))?;
        Ok(())
    })?
}

/// Sends it to another port than the tunnel's.
fn send_to_port(from: &Host, to: (IpAddr, u16), frame: &Frame) -> Result<()> {
    let any: IpAddr = if to.0.is_ipv4() { "0.0.0.0" } else { "::" }.parse()?;
    let bytes = frame.bytes();
    from.run(move || -> Result<()> {
        UdpSocket::bind((any, 0))?.send_to(&bytes, to)?;
        Ok(())
    })?
}

fn set(words: &[&str]) -> BTreeSet<String> {
    let families = ["v4", "v6"].into_iter();
    families
        .flat_map(|family| words.iter().map(move |word| format!("{word} {family}")))
        .collect()
}

/// Sends every kind of frame to node-0, and returns what arrived there and in its pod.
fn sent(stage: &OverlayStage, outsider: &Host) -> Result<BTreeSet<String>> {
    let (pod, node) = (Ears::on(&stage.pods[0])?, Ears::on(&stage.nodes[0])?);
    for (family, device) in ["flannel.1", "flannel-v6.1"].into_iter().enumerate() {
        let name = ["v4", "v6"][family];
        let address = |host: &Host| host.addresses()[family];
        let mac = mac_of(&stage.nodes[0], device)?;
        let to = address(&stage.nodes[0]);
        let frame = |word: &str, source: IpAddr| Frame {
            vni: 1,
            mac,
            source,
            destination: address(&stage.pods[0]),
            port: LISTENER,
            payload: format!("{word} {name}"),
        };
        let pods: Vec<IpAddr> = stage.pods.iter().map(|pod| address(pod)).collect();
        send(&stage.nodes[1], to, &frame("right", pods[1]))?;
        send(
            &stage.nodes[1],
            to,
            &frame("from the node itself", address(&stage.nodes[1])),
        )?;
        send(&stage.nodes[1], to, &frame("another node's pod", pods[2]))?;
        send(&stage.nodes[1], to, &frame("this node's own pod", pods[0]))?;
        // A virtual address of the node, or a client whose address a node port keeps.
        send(
            &stage.nodes[1],
            to,
            &frame("an address of nobody", address(outsider)),
        )?;
        let link_local = ["169.254.7.7", "fe80::7"][family].parse()?;
        send(&stage.nodes[1], to, &frame("link-local", link_local))?;
        send(
            &stage.nodes[1],
            to,
            &frame("another node", address(&stage.nodes[2])),
        )?;
        send(outsider, to, &frame("unknown host", pods[1]))?;
        send(
            &stage.nodes[1],
            to,
            &Frame {
                vni: 2,
                ..frame("another VNI", pods[1])
            },
        )?;
        send(&stage.pods[1], to, &frame("sent by a pod", pods[1]))?;
        // To the node's own sockets: no secret is needed for that without a filter.
        let gateway = stage.nodes[0].pod_gateway()[family];
        let to_all = Frame {
            mac: BROADCAST,
            destination: gateway,
            ..frame("broadcast", pods[1])
        };
        send(&stage.nodes[1], to, &to_all)?;
        send(
            outsider,
            to,
            &Frame {
                payload: format!("broadcast by a stranger {name}"),
                ..to_all
            },
        )?;
    }
    let mut heard = pod.heard();
    heard.extend(node.heard());
    Ok(heard)
}

#[scenario(Vxlan, Nft)]
fn forged_frames_arrive_without_a_filter_and_none_does_with_one() -> Result<()> {
    let stage = OverlayStage::new(3)?;
    let outsider = stage.lab().client("outsider")?;
    let right = set(&["right", "from the node itself", "an address of nobody"]);
    {
        let _daemons = stage.start_all(&["--overlay-filter", "monitor", "--ip-masq"])?;
        let heard = sent(&stage, &outsider)?;
        // What the kernel drops by itself (its own addresses as a source) is not for us to prove.
        let forged = set(&[
            "another node's pod",
            "another node",
            "unknown host",
            "broadcast",
            "broadcast by a stranger",
            "sent by a pod",
        ]);
        assert!(
            heard.is_superset(&right) && heard.is_superset(&forged),
            "the frames of this test are no good: {heard:?}"
        );
    }
    let _daemons = stage.start_all(&["--overlay-filter", "enforce", "--ip-masq"])?;
    wait_until("nothing but what is right to arrive", PATIENCE, || {
        sent(&stage, &outsider).is_ok_and(|heard| heard == right)
    })?;
    // The same holds while another process flushes the ruleset, where the table is owned.
    stage.nodes[0].nft(&["flush", "ruleset"])?;
    if features()?.has(Feature::TablePersist) {
        assert_eq!(sent(&stage, &outsider)?, right);
    } else {
        println!(
            "FALLBACK: the filter is repaired after a foreign flush, and forged frames pass until then"
        );
        wait_until("the filter again", PATIENCE, || {
            sent(&stage, &outsider).is_ok_and(|heard| heard == right)
        })?;
    }
    stage.wait_for_mesh()
}

/// Where the spoofed frames go: to the attacker's node by its address and by its device's, and to another node; to the
/// two nodes also as endpoints of a Service.
const SPOOFED: [&str; 5] = [
    "own node",
    "own device",
    "other node",
    "service of own node",
    "service of other node",
];
/// Addresses of those Services, and their port.
const SERVICES: [[&str; 2]; 2] = [["10.96.9.1", "10.96.9.2"], ["fd00:96::1", "fd00:96::2"]];
const SERVICE_PORT: u16 = 5353;
/// Frames of each kind.
const FRAMES: usize = 20;

/// Sends frames from pod-0, in the name of node-1 and with one of its pods inside, to sockets of nodes. Returns how many
/// arrived, by destination and family.
fn spoofed(stage: &OverlayStage) -> Result<BTreeMap<String, usize>> {
    let ears = [Ears::on(&stage.nodes[0])?, Ears::on(&stage.nodes[2])?];
    let mut arrived = BTreeMap::new();
    for (family, device) in ["flannel.1", "flannel-v6.1"].into_iter().enumerate() {
        let address = |host: &Host| host.addresses()[family];
        for kind in SPOOFED {
            let node = &stage.nodes[if kind.ends_with("other node") { 2 } else { 0 }];
            let is_service = kind.starts_with("service");
            let to = match kind {
                "service of own node" => SERVICES[family][0].parse()?,
                "service of other node" => SERVICES[family][1].parse()?,
                "own device" => [
                    node.pod_cidr_v4().network().into(),
                    node.pod_cidr_v6().network().into(),
                ][family],
                _ => address(node),
            };
            let mac = mac_of(node, device)?;
            let word = format!("{kind} {}", ["v4", "v6"][family]);
            for number in 0..FRAMES {
                let frame = Frame {
                    vni: 1,
                    mac,
                    // In the name of its own node, a pod can only be one of the node's.
                    source: address(&stage.pods[if is_service { 0 } else { 1 }]),
                    destination: node.pod_gateway()[family],
                    port: LISTENER,
                    payload: format!("{word} {number}"),
                };
                match is_service {
                    true => send_to_port(&stage.pods[0], (to, SERVICE_PORT), &frame)?,
                    false => send_as(&stage.pods[0], address(&stage.nodes[1]), to, &frame)?,
                }
            }
            arrived.insert(word, 0);
        }
    }
    for frame in ears.iter().flat_map(Ears::heard) {
        let kind = frame.rsplit_once(' ').map(|(kind, _)| kind);
        *arrived
            .entry(kind.unwrap_or_default().to_owned())
            .or_default() += 1;
    }
    Ok(arrived)
}

/// Sets it on all interfaces of a node.
fn set_rp_filter(node: &Host, value: &'static str) -> Result<()> {
    node.run(move || -> Result<()> {
        for interface in std::fs::read_dir("/proc/sys/net/ipv4/conf")? {
            std::fs::write(interface?.path().join("rp_filter"), value)?;
        }
        Ok(())
    })?
}

#[scenario(Vxlan, Nft)]
fn frames_in_a_nodes_name_pass_only_without_a_filter() -> Result<()> {
    let stage = OverlayStage::new(3)?;
    // What a raw socket can write can be bound to as well, once the pod has it.
    for (address, line) in stage.nodes[1]
        .addresses()
        .into_iter()
        .zip(["addr add {}/32 dev lo", "addr add {}/128 dev lo nodad"])
    {
        tool(
            &stage.pods[0],
            "ip",
            &line.replace("{}", &address.to_string()),
        )?;
    }
    // What the rules of a Service without a selector do.
    let to = [&stage.nodes[0], &stage.nodes[2]].map(|node| node.addresses());
    for (family, name) in ["ip", "ip6"].into_iter().enumerate() {
        let rule = |n: usize| {
            let (from, to) = (
                SERVICES[family][n],
                SocketAddr::new(to[n][family], VXLAN_PORT),
            );
            format!("{name} daddr {from} udp dport {SERVICE_PORT} dnat to {to};")
        };
        stage.nodes[0].nft_stdin(&format!(
            "table {name} service {{ chain translate {{ type nat hook prerouting priority dstnat; {} {} }}; }}",
            rule(0),
            rule(1)
        ))?;
    }
    let under = |value| -> Result<BTreeMap<String, usize>> {
        for node in &stage.nodes {
            set_rp_filter(node, value)?;
        }
        spoofed(&stage)
    };
    {
        let _daemons = stage.start_all(&["--overlay-filter", "monitor", "--ip-masq"])?;
        for value in ["0", "2"] {
            let arrived = under(value)?;
            assert!(
                arrived.values().all(|frames| *frames > 0),
                "the frames of this test are no good under rp_filter {value}: {arrived:?}"
            );
        }
    }
    let _daemons = stage.start_all(&["--overlay-filter", "enforce", "--ip-masq"])?;
    // A flow that the Service's rules translated before goes on: chains that translate see the first packet of a connection.
    stage.nodes[0].run(|| -> Result<()> {
        for family in Family::ALL {
            Conntrack::open()?.delete(&FlowFilter::all(family, Protocol::Udp), |_| true)?;
        }
        Ok(())
    })??;
    let none = |arrived: &BTreeMap<String, usize>| arrived.values().all(|frames| *frames == 0);
    wait_until("the filter", PATIENCE, || {
        spoofed(&stage).is_ok_and(|arrived| none(&arrived))
    })?;
    for value in ["0", "2"] {
        let arrived = under(value)?;
        assert!(none(&arrived), "under rp_filter {value}: {arrived:?}");
    }
    stage.wait_for_mesh()
}

#[scenario(Vxlan, Nft)]
fn outer_packets_are_untracked_and_pods_masqueraded_outside() -> Result<()> {
    let stage = OverlayStage::new(2)?;
    let outside = stage.lab().client("outside")?;
    outside.serve(lab::Protocol::Tcp, 80)?;
    let _daemons = stage.start_all(&["--ip-masq"])?;
    for (family, address) in outside.addresses().into_iter().enumerate() {
        let seen = stage.pods[0].connect(lab::Protocol::Tcp, (address, 80))?;
        let node = stage.nodes[0].addresses()[family];
        assert!(
            format!("{seen:?}").contains(&node.to_string()),
            "{seen:?} is not from {node}"
        );
    }
    // Not every kernel shows the table as a file. Entries of packets before the first commit last for 30 s.
    let tracked = || std::fs::read_to_string("/proc/thread-self/net/nf_conntrack");
    wait_until("outer packets to be untracked", 2 * PATIENCE, || {
        let tracked = stage.nodes[0].run(tracked);
        tracked.is_ok_and(|table| !table.is_ok_and(|table| table.contains("dport=8472")))
    })?;
    Ok(())
}
