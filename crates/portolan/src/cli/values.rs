//! The values that flags take: parsing and printing, nothing else.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use kube_proxy_config::go::parse_duration;
use service_model::NodePortAddress;

use super::DetectLocalMode;

/// CIDRs, at most one of each family (kube-proxy's `--cluster-cidr`); host bits are dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CidrList(pub Vec<IpNet>);

impl FromStr for CidrList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let cidrs = cidrs(text)?;
        for family in [false, true] {
            if cidrs
                .iter()
                .filter(|c| c.addr().is_ipv6() == family)
                .count()
                > 1
            {
                return Err(
                    "more than one CIDR of an IP family; give at most one IPv4 and one IPv6 CIDR"
                        .into(),
                );
            }
        }
        Ok(CidrList(cidrs))
    }
}

impl fmt::Display for CidrList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_list(f, &self.0)
    }
}

/// `--nodeport-addresses`; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePortAddressList(pub Vec<NodePortAddress>);

impl FromStr for NodePortAddressList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // kube-proxy reads an empty list as the default of its mode.
        if text.is_empty() {
            return Ok(NodePortAddressList(vec![NodePortAddress::Primary]));
        }
        let item = |item: &str| match item.trim() {
            "primary" => Ok(NodePortAddress::Primary),
            "all" => Ok(NodePortAddress::All),
            "localhost" => Ok(NodePortAddress::Localhost),
            cidr => match cidr.parse::<IpNet>() {
                Ok(net) => Ok(NodePortAddress::Cidr(net.trunc())),
                Err(_) => Err(format!(
                    "{cidr:?} is not a CIDR; supported: primary, all, localhost and CIDRs"
                )),
            },
        };
        let items = text.split(',').map(item).collect::<Result<_, _>>()?;
        Ok(NodePortAddressList(items))
    }
}

impl fmt::Display for NodePortAddressList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, item) in self.0.iter().enumerate() {
            f.write_str(if i == 0 { "" } else { "," })?;
            match item {
                NodePortAddress::Primary => f.write_str("primary")?,
                NodePortAddress::All => f.write_str("all")?,
                NodePortAddress::Localhost => f.write_str("localhost")?,
                NodePortAddress::Cidr(cidr) => cidr.fmt(f)?,
            }
        }
        Ok(())
    }
}

/// `--allowed-external-ips`: any number of CIDRs and addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeList(pub Vec<IpNet>);

impl FromStr for RangeList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let range = |text: &str| match text.parse::<IpAddr>() {
            Ok(address) => Ok(IpNet::from(address)),
            Err(_) => cidr(text),
        };
        let items = text.split(',').map(str::trim).filter(|_| !text.is_empty());
        items.map(range).collect::<Result<_, _>>().map(RangeList)
    }
}

impl fmt::Display for RangeList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_list(f, &self.0)
    }
}

/// Address of a listener, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenAddress(pub Option<SocketAddr>);

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(address) => address.fmt(f),
            None => f.write_str("off"),
        }
    }
}

impl fmt::Display for DetectLocalMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DetectLocalMode::ClusterCidr => "ClusterCIDR",
            DetectLocalMode::NodeCidr => "NodeCIDR",
            DetectLocalMode::BridgeInterface => "BridgeInterface",
            DetectLocalMode::InterfaceNamePrefix => "InterfaceNamePrefix",
        })
    }
}

/// `IP:PORT`, `IP` with the flag's default port as kube-proxy takes it, or empty for no listener.
pub(super) fn listen_address(text: &str, default_port: u16) -> Result<ListenAddress, String> {
    if text.is_empty() {
        return Ok(ListenAddress(None));
    }
    text.parse::<SocketAddr>()
        .or_else(|_| {
            text.parse::<IpAddr>()
                .map(|ip| SocketAddr::new(ip, default_port))
        })
        .map(|address| ListenAddress(Some(address)))
        .map_err(|_| "not IP:PORT or IP; put an IPv6 address with a port in brackets".into())
}

/// Node ports that manifests may use, both ends included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePortRange(pub RangeInclusive<u16>);

impl Default for NodePortRange {
    /// The API server's `--service-node-port-range`.
    fn default() -> Self {
        NodePortRange(30000..=32767)
    }
}

impl FromStr for NodePortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text
            .split_once('-')
            .and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
        match parsed {
            Some((first, last)) if 1 <= first && first <= last => Ok(NodePortRange(first..=last)),
            _ => Err("not FIRST-LAST with 1 <= FIRST <= LAST <= 65535".into()),
        }
    }
}

impl fmt::Display for NodePortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0.start(), self.0.end())
    }
}

/// A node name: trimmed, lower-cased, and a DNS subdomain (RFC 1123), which is safe in a field selector.
pub(super) fn node_name(text: &str) -> Result<Arc<str>, String> {
    let name = text.trim().to_lowercase();
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    if name.is_empty() {
        Err("empty".into())
    } else if name.len() > 253 {
        Err("longer than 253 characters".into())
    } else if !name.split('.').all(label) {
        Err("not a valid Node name; use letters, digits, '-' and '.'".into())
    } else {
        Ok(name.into())
    }
}

/// kube-proxy's modes.
pub(super) fn detect_local_mode(text: &str) -> Result<DetectLocalMode, String> {
    match text {
        "ClusterCIDR" | "" => Ok(DetectLocalMode::ClusterCidr),
        "NodeCIDR" => Ok(DetectLocalMode::NodeCidr),
        "BridgeInterface" => Ok(DetectLocalMode::BridgeInterface),
        "InterfaceNamePrefix" => Ok(DetectLocalMode::InterfaceNamePrefix),
        _ => Err(
            "unknown mode; supported: ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix"
                .into(),
        ),
    }
}

/// An interface name or a prefix of one: 1 to 15 bytes (`IFNAMSIZ` less the final zero) without a meaning in nft's
/// grammar.
pub(super) fn interface_name(text: &str) -> Result<Arc<str>, String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'@');
    match (text.len(), text.bytes().all(allowed)) {
        (1..=15, true) => Ok(text.into()),
        (1..=15, false) => Err(
            "unsupported character in an interface name; use letters, digits, '-', '_', '.' and '@'"
                .into(),
        ),
        _ => Err("an interface name has 1 to 15 bytes".into()),
    }
}

/// A non-empty label value (apimachinery `IsValidLabelValue`), which is safe in a label selector.
pub(super) fn label_value(text: &str) -> Result<Arc<str>, String> {
    let bytes = text.as_bytes();
    let end = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let inner = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if bytes.len() <= 63 && end(bytes.first()) && end(bytes.last()) && bytes.iter().all(inner) {
        Ok(text.into())
    } else {
        Err("not a label value; use 1 to 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends".into())
    }
}

/// A level or a list of `module=level`.
pub(super) fn log_level(text: &str) -> Result<String, String> {
    match tracing_subscriber::EnvFilter::try_new(text) {
        Ok(_) if !text.trim().is_empty() => Ok(text.to_owned()),
        Ok(_) => Err("empty; use error, warn, info, debug or trace".into()),
        Err(error) => Err(format!("{error}; use error, warn, info, debug or trace")),
    }
}

/// A duration in Go's grammar that is not negative: `24h`, `1h30m`, `1.5s`, `100us`, `0`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let nanoseconds = parse_duration(text).and_then(|number| u64::try_from(number).ok());
    let duration = nanoseconds.map(Duration::from_nanos);
    duration.ok_or_else(|| "not a duration such as 24h, 1h30m, 1.5s or 0".into())
}

/// A comma-separated list; empty text is the empty list.
fn cidrs(text: &str) -> Result<Vec<IpNet>, String> {
    let items = text.split(',').map(str::trim).filter(|_| !text.is_empty());
    items.map(cidr).collect()
}

fn cidr(text: &str) -> Result<IpNet, String> {
    text.parse()
        .map(|net: IpNet| net.trunc())
        .map_err(|_| format!("{text:?} is not a CIDR"))
}

fn write_list(f: &mut fmt::Formatter<'_>, cidrs: &[IpNet]) -> fmt::Result {
    for (i, cidr) in cidrs.iter().enumerate() {
        write!(f, "{}{cidr}", if i == 0 { "" } else { "," })?;
    }
    Ok(())
}

/// A kernel feature by name.
pub(super) fn feature(name: &str) -> Result<nft::Feature, String> {
    nft::Feature::from_name(name).ok_or_else(|| {
        let names = nft::Feature::ALL.map(nft::Feature::name);
        format!("unknown feature; supported: {}", names.join(", "))
    })
}
