//! Case folders: one behavior each, in objects and packets.
//!
//! `objects.yaml` holds manifests as kubectl would apply them; `case.yaml` the node, its flags, and packets
//! with what must become of them:
//!
//! ```yaml
//! # What the behavior is, in a sentence.
//! node: node-1
//! flags:
//!   clusterCidr: [10.244.0.0/16, "fd00:244::/32"]
//! packets:
//!   - from: 10.244.1.2            # an address, or `node`: the node itself
//!     to: "10.96.0.10:80/tcp"
//!     expect:                     # or: refused, dropped, passes
//!       "10.244.1.5:8080": kept   # an endpoint, and the source address it sees: kept or masqueraded
//! sessions:                       # connections of one client, one after another, all to the endpoint of the first
//!   - from: 10.244.1.2
//!     to: ["10.96.0.10:80/tcp", "10.96.0.10:80/tcp"]
//! ```
//!
//! Addresses follow the lab's plan, so that every case runs on the reference model, on the evaluator and
//! on the kernel alike.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use ipnet::IpNet;
use serde::Deserialize;

use crate::cluster::{Cluster, Detect, Node, NodePortAddresses, Settings, Transport};
use crate::oracle::{Expected, Origin, Packet, Protocol, primary_address};

/// A case folder as it was read.
#[derive(Debug)]
pub struct Case {
    /// Name of its folder: the behavior.
    pub name: String,
    pub cluster: Cluster,
    /// `objects.yaml` as it is.
    pub manifests: String,
    /// Whose table is looked at.
    pub node: Node,
    /// Packets and what must become of them.
    pub packets: Vec<(Packet, Expected)>,
    /// Packets of one client, of which the later ones must go where the first went.
    pub sessions: Vec<Vec<Packet>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    node: String,
    #[serde(default)]
    flags: Flags,
    packets: Vec<PacketLine>,
    #[serde(default)]
    sessions: Vec<SessionLine>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Flags {
    cluster_cidr: Vec<IpNet>,
    detect_local_mode: Option<DetectLocalMode>,
    pod_bridge_interface: String,
    pod_interface_name_prefix: String,
    nodeport_addresses: Vec<NodePortAddresses>,
    masquerade_all: bool,
    allowed_external_ips: Option<Vec<IpNet>>,
    service_proxy_name: Option<String>,
}

#[derive(Deserialize)]
enum DetectLocalMode {
    #[serde(rename = "ClusterCIDR")]
    ClusterCidr,
    #[serde(rename = "NodeCIDR")]
    NodeCidr,
    BridgeInterface,
    InterfaceNamePrefix,
}

impl Flags {
    fn settings(self) -> Settings {
        Settings {
            detect: match self.detect_local_mode {
                Some(DetectLocalMode::NodeCidr) => Detect::NodeCidr,
                Some(DetectLocalMode::BridgeInterface) => {
                    Detect::Interface(self.pod_bridge_interface)
                }
                Some(DetectLocalMode::InterfaceNamePrefix) => {
                    Detect::InterfacePrefix(self.pod_interface_name_prefix)
                }
                Some(DetectLocalMode::ClusterCidr) | None => Detect::ClusterCidr(self.cluster_cidr),
            },
            nodeport_addresses: self.nodeport_addresses,
            masquerade_all: self.masquerade_all,
            allowed_external_ips: self.allowed_external_ips,
            service_proxy_name: self.service_proxy_name,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PacketLine {
    from: String,
    to: String,
    expect: Expectation,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SessionLine {
    from: String,
    to: Vec<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Expectation {
    Word(Word),
    Balanced(BTreeMap<SocketAddr, Source>),
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    Refused,
    Dropped,
    Passes,
}

#[derive(PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Source {
    Kept,
    Masqueraded,
}

/// All cases, by name.
pub fn all() -> Result<Vec<Case>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
    let mut folders: Vec<PathBuf> = fs::read_dir(&root)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    folders.sort();
    folders
        .iter()
        .map(|path| read(path).with_context(|| path.display().to_string()))
        .collect()
}

fn read(folder: &Path) -> Result<Case> {
    let manifests = fs::read_to_string(folder.join("objects.yaml")).context("objects.yaml")?;
    let mut cluster = Cluster::from_manifests(&manifests)?;
    let text = fs::read_to_string(folder.join("case.yaml")).context("case.yaml")?;
    let file: File = serde_saphyr::from_str(&text).context("case.yaml")?;
    cluster.settings = file.flags.settings();
    let node = cluster.node(&file.node).context("no such node")?.clone();
    ensure!(!file.packets.is_empty(), "no packets");
    let packets = file.packets.into_iter().map(|line| {
        let packet = packet(&line.from, &line.to, &node)?;
        Ok((packet, expected(line.expect)))
    });
    let packets = packets.collect::<Result<_>>()?;
    let sessions = file.sessions.iter().map(|line| {
        let to = line.to.iter().map(|to| packet(&line.from, to, &node));
        to.collect()
    });
    let sessions = sessions.collect::<Result<_>>()?;
    let name = folder
        .file_name()
        .context("no name")?
        .to_string_lossy()
        .into_owned();
    Ok(Case {
        name,
        cluster,
        manifests,
        node,
        packets,
        sessions,
    })
}

fn packet(from: &str, to: &str, node: &Node) -> Result<Packet> {
    read_packet(from, to, node).with_context(|| format!("from {from} to {to}"))
}

fn read_packet(from: &str, to: &str, node: &Node) -> Result<Packet> {
    let (to, protocol) = to.rsplit_once('/').context("no protocol")?;
    let transport = Transport::ALL
        .into_iter()
        .find(|t| t.name().eq_ignore_ascii_case(protocol));
    let to: SocketAddr = to.parse()?;
    let (origin, source) = match from {
        // What the node sends to an address of its own has that for its source.
        "node" if node.interfaces.contains(&to.ip()) => (Origin::Node, to.ip()),
        "node" => {
            let own = primary_address(node, to.is_ipv4());
            (Origin::Node, own.context("the node has no address")?)
        }
        address => (Origin::Elsewhere, address.parse::<IpAddr>()?),
    };
    ensure!(source.is_ipv4() == to.is_ipv4(), "families differ");
    Ok(Packet {
        origin,
        source,
        destination: to.ip(),
        protocol: Protocol::Transport(transport.context("unknown protocol")?),
        port: to.port(),
    })
}

fn expected(expectation: Expectation) -> Expected {
    match expectation {
        Expectation::Word(Word::Refused) => Expected::Refused,
        Expectation::Word(Word::Dropped) => Expected::Dropped,
        Expectation::Word(Word::Passes) => Expected::NotOurs,
        Expectation::Balanced(backends) => Expected::Balanced(
            backends
                .into_iter()
                .map(|(to, source)| (to, source == Source::Masqueraded))
                .collect(),
        ),
    }
}
