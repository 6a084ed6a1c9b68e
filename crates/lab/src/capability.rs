//! What this machine can do, and the rule for tests that need more: a skip is loud, and with `CI` set a missing
//! capability is a failure where a stock Linux 6.18 or the gate's preparation has it.

use std::fmt;
use std::io::{self, Write};
use std::sync::OnceLock;

use anyhow::{Context, Result};

use crate::command;
use crate::control_plane;
use crate::namespace::Namespace;
use crate::socket::{self, Protocol};

/// Something that a test may need from the kernel or from installed programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Capability {
    /// Network namespaces can be made: root, or an owned user namespace.
    Namespaces,
    /// `setpriv` of util-linux.
    Setpriv,
    /// `ip` of iproute2, and veth links.
    Veth,
    Bridge,
    /// Bridged packets pass the rules for IP packets (`br_netfilter`).
    BridgeNetfilter,
    Vxlan,
    /// WireGuard links. Absent from small kernels, so never demanded.
    Wireguard,
    /// VRF links. Absent from small kernels, so never demanded.
    Vrf,
    /// The `nft` program, and NAT through a map.
    Nft,
    /// Tables that belong to a socket (Linux 5.12).
    TableOwner,
    /// SCTP sockets. Absent from small kernels, so never demanded.
    Sctp,
    /// Both variants of iptables.
    Iptables,
    /// The programs of a control plane, see [`crate::ControlPlane`].
    ControlPlane,
    /// A kube-proxy, beside the programs of a control plane.
    KubeProxy,
    /// `flanneld`, beside the programs of a control plane.
    Flanneld,
    /// Helm, for the chart.
    Helm,
}

/// Every capability with its probe's error, if it is missing.
static PROBED: OnceLock<Vec<(Capability, Option<String>)>> = OnceLock::new();

impl Capability {
    /// All capabilities; one that others need comes before them.
    pub const ALL: [Capability; 16] = [
        Capability::Namespaces,
        Capability::Setpriv,
        Capability::Veth,
        Capability::Bridge,
        Capability::BridgeNetfilter,
        Capability::Vxlan,
        Capability::Wireguard,
        Capability::Vrf,
        Capability::Nft,
        Capability::TableOwner,
        Capability::Sctp,
        Capability::Iptables,
        Capability::ControlPlane,
        Capability::KubeProxy,
        Capability::Flanneld,
        Capability::Helm,
    ];

    /// Why it is missing, or nothing. Probed once in a process, in a namespace of its own.
    pub fn missing(self) -> Option<&'static str> {
        capabilities()
            .iter()
            .find(|(capability, _)| *capability == self)
            .and_then(|(_, missing)| missing.as_deref())
    }

    fn is_demanded_in_ci(self) -> bool {
        !matches!(
            self,
            Capability::Sctp | Capability::Wireguard | Capability::Vrf
        )
    }

    fn probe(self) -> Result<()> {
        let namespace = Namespace::new("probe")?;
        let ip = |line: &str| namespace.ip(&[line.to_owned()]);
        let nft = |ruleset: &str| {
            let mut command = command::tool("nft");
            command.args(["-f", "-"]);
            namespace.checked_output(command, ruleset).map(drop)
        };
        match self {
            Capability::Namespaces => Ok(()),
            Capability::Setpriv => namespace
                .checked_output(command::command("true"), "")
                .map(drop),
            Capability::Veth => ip("link add name a0 type veth peer name b0"),
            Capability::Bridge => ip("link add name a0 type bridge mcast_snooping 0"),
            Capability::BridgeNetfilter => {
                let path = "/proc/sys/net/bridge/bridge-nf-call-iptables";
                namespace
                    .run(move || std::fs::read_to_string(path))?
                    .map(drop)
                    .with_context(|| format!("read {path} (is br_netfilter loaded?)"))
            }
            Capability::Wireguard => ip("link add name a0 type wireguard"),
            Capability::Vrf => ip("link add name a0 type vrf table 10"),
            Capability::Vxlan => ip("link add name a0 type vxlan id 1 dstport 4789"),
            Capability::Nft => nft(NAT_BY_MAP),
            Capability::TableOwner => nft("table ip probe { flags owner; }"),
            Capability::Sctp => Ok(socket::is_known(Protocol::Sctp)?),
            Capability::Iptables => {
                ["iptables-nft", "iptables-legacy"]
                    .iter()
                    .try_for_each(|name| {
                        let mut command = command::tool(name);
                        command.arg("--version");
                        namespace.checked_output(command, "").map(drop)
                    })
            }
            Capability::ControlPlane => control_plane::missing().map_or(Ok(()), Err),
            Capability::KubeProxy => control_plane::kube_proxy(),
            Capability::Flanneld => control_plane::program("flanneld").map(drop),
            Capability::Helm => control_plane::helm().map(drop),
        }
    }
}

/// One rule of each kind the Service table is made of.
const NAT_BY_MAP: &str = "table ip probe {
    map backends {
        typeof ip daddr . meta l4proto . th dport . numgen random mod 65536 : ip daddr . th dport
        elements = { 10.96.0.1 . tcp . 80 . 0 : 10.244.1.5 . 8080 }
    }
    chain prerouting {
        type nat hook prerouting priority dstnat
        dnat ip to ip daddr . meta l4proto . th dport . symhash mod 2 map @backends
        reject
    }
    chain postrouting {
        type nat hook postrouting priority srcnat
        ct status dnat masquerade
    }
}";

impl fmt::Display for Capability {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Capability::Namespaces => "network namespaces",
            Capability::Setpriv => "setpriv",
            Capability::Veth => "veth links by ip",
            Capability::Bridge => "bridges",
            Capability::BridgeNetfilter => "netfilter on bridges",
            Capability::Vxlan => "VXLAN links",
            Capability::Wireguard => "WireGuard links (CONFIG_WIREGUARD)",
            Capability::Vrf => "VRF links (CONFIG_NET_VRF)",
            Capability::Nft => "nft with NAT by map",
            Capability::TableOwner => "owned nftables tables",
            Capability::Sctp => "SCTP sockets",
            Capability::Iptables => "iptables in both variants",
            Capability::ControlPlane => "control plane (`cargo xtask control-plane`)",
            Capability::KubeProxy => "kube-proxy",
            Capability::Flanneld => "flanneld",
            Capability::Helm => "helm (`cargo xtask test --all` builds it)",
        })
    }
}

/// Every capability, with the reason where it is missing.
pub fn capabilities() -> &'static [(Capability, Option<String>)] {
    PROBED.get_or_init(|| {
        Capability::ALL
            .map(|capability| {
                let missing = capability.probe().err().map(|error| format!("{error:#}"));
                (capability, missing)
            })
            .to_vec()
    })
}

/// Whether a test can run: the guard of [`macro@crate::scenario`]. What every lab needs (namespaces, `setpriv`, veths
/// and bridges) is always required. A skip is printed even if the test harness captures output.
///
/// # Panics
///
/// When `CI` is set and a capability is missing that a stock Linux 6.18 with nftables and iproute2 has: in CI, a test that
/// does not run must not pass.
#[track_caller]
#[must_use = "the test cannot go on when this is false"]
pub fn require(needed: &[Capability]) -> bool {
    let always = [
        Capability::Namespaces,
        Capability::Setpriv,
        Capability::Veth,
        Capability::Bridge,
    ];
    let first_missing = always
        .iter()
        .chain(needed)
        .find_map(|&capability| Some((capability, capability.missing()?)));
    let Some((capability, why)) = first_missing else {
        return true;
    };
    let place = std::panic::Location::caller();
    assert!(
        std::env::var_os("CI").is_none() || !capability.is_demanded_in_ci(),
        "{place} needs {capability}, which a CI machine must have: {why}"
    );
    // Not eprintln: a passing test's output is captured. Nowhere to report that stderr is closed.
    let _ = writeln!(
        io::stderr(),
        "SKIPPED: {place} because of no {capability}: {why}"
    );
    false
}
