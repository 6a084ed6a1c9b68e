//! Where node ports are served, and the line that says why.
//!
//! kube-proxy's defaults differ by mode, and so does what can be reached after its image is swapped for Portolan's:
//! iptables mode serves all addresses and 127.0.0.1 (it sets `route_localnet`, unless `localhostNodePorts` is false or the
//! list leaves loopback out), ipvs mode all addresses, nftables mode the node's primary ones (`platformApplyDefaults`).

use std::net::IpAddr;

use crate::effective::{Mode, NodePortAddress};
use crate::go;
use crate::problem::{Origin, Problem};
use crate::schema::Settings;
use crate::value::Value;

const PATH: &str = "nodePortAddresses";
/// The gate without which kube-proxy's nftables mode never serves loopback addresses.
pub(crate) const LOCALHOST_GATE: &str = "KubeProxyNFTablesLocalhostNodePorts";

/// Addresses, with the line that explains them.
pub(crate) struct NodePorts {
    pub(crate) addresses: Vec<NodePortAddress>,
    pub(crate) explanation: String,
    pub(crate) warning: Option<String>,
}

/// Resolves the list, or the default of the mode. `mode_source` says where the mode is from.
pub(crate) fn resolve(proxy: &Settings, mode: Mode, mode_source: &str) -> NodePorts {
    let mut addresses: Vec<_> = proxy
        .texts(PATH)
        .iter()
        .filter_map(|text| parse(text))
        .collect();
    let is_default = addresses.is_empty();
    if is_default {
        addresses.push(match mode {
            Mode::Iptables | Mode::Ipvs => NodePortAddress::All,
            Mode::Nftables => NodePortAddress::Primary,
        });
    }
    let asked = addresses.contains(&NodePortAddress::Localhost);
    let forbidden = forbids_localhost(proxy, mode);
    let mut warning = None;
    if let Some(setting) = forbidden.filter(|_| asked) {
        addresses.retain(|address| *address != NodePortAddress::Localhost);
        warning = Some(format!("node ports are not served on localhost: {setting}"));
        if addresses.is_empty() {
            addresses.push(NodePortAddress::Primary);
        }
    } else if mode == Mode::Iptables && !asked && proxy.bool("iptables.localhostNodePorts") {
        let covered = addresses.iter().any(iptables_serves_loopback);
        addresses.extend(covered.then_some(NodePortAddress::LocalhostIpv4));
    }
    let list: Vec<String> = addresses.iter().map(NodePortAddress::to_string).collect();
    let reason = match is_default {
        true => mode_source.to_owned(),
        false => proxy.source(PATH),
    };
    NodePorts {
        explanation: format!("node ports: {} ({reason})", list.join(",")),
        addresses,
        warning,
    }
}

/// Where the mode is from, for the line about node ports.
pub(crate) fn mode_source(proxy: &Settings, mode: Mode, default: &str) -> String {
    match proxy.given("mode").filter(|(value, _)| !value.is_zero()) {
        Some((_, Origin::File { .. })) => format!("mode {} in the configuration", mode.name()),
        Some(_) => proxy.source("mode"),
        None => default.to_owned(),
    }
}

/// Key words that are given twice (kube-proxy refuses them since 1.37).
pub(crate) fn repeated(proxy: &Settings) -> Option<Problem> {
    let texts = proxy.texts(PATH);
    let is_word = |text: &&String| matches!(text.as_str(), "primary" | "localhost" | "all");
    let words: Vec<&String> = texts.iter().filter(is_word).collect();
    let twice = words
        .iter()
        .find(|word| words.iter().filter(|other| other == word).count() > 1)?;
    Some(proxy.problem(PATH, format!("{twice} is given twice")))
}

/// What says that node ports must not be served on localhost, though the list asks for it.
fn forbids_localhost(proxy: &Settings, mode: Mode) -> Option<String> {
    match mode {
        Mode::Iptables => {
            let off = !proxy.bool("iptables.localhostNodePorts");
            off.then(|| proxy.source("iptables.localhostNodePorts"))
        }
        Mode::Nftables => {
            let Value::Map(gates) = proxy.value("featureGates") else {
                return None;
            };
            let off = gates
                .iter()
                .any(|(name, value)| name == LOCALHOST_GATE && value.is_zero());
            off.then(|| format!("feature gate {LOCALHOST_GATE}=false"))
        }
        Mode::Ipvs => None,
    }
}

/// Whether kube-proxy's iptables mode serves this item on 127.0.0.0/8 (`ContainsIPv4Loopback`): unlike
/// [`NodePortAddress::covers_loopback`], all addresses contain it.
fn iptables_serves_loopback(address: &NodePortAddress) -> bool {
    match address {
        NodePortAddress::All => true,
        NodePortAddress::Cidr(range) => match range.addr() {
            IpAddr::V4(first) => first.is_loopback() || range.prefix_len() == 0,
            IpAddr::V6(_) => false,
        },
        NodePortAddress::Primary | NodePortAddress::Localhost | NodePortAddress::LocalhostIpv4 => {
            false
        }
    }
}

fn parse(text: &str) -> Option<NodePortAddress> {
    match text {
        "primary" => Some(NodePortAddress::Primary),
        "all" => Some(NodePortAddress::All),
        "localhost" => Some(NodePortAddress::Localhost),
        range => go::parse_cidr(range).map(NodePortAddress::Cidr),
    }
}
