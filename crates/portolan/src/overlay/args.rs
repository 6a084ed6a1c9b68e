//! Flags of the overlay. Flags and environment variables that flannel has too keep flannel's names.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{ArgAction, Args, ValueEnum};
use ipnet::IpNet;
use net_types::PerFamily;
use vxlan_overlay::annotations::DEFAULT_PREFIX;
use vxlan_overlay::{Config, Filter, NEXTHOPS_ABOVE, Names, Preferences, Regex, RuleOptions};

use crate::cli::duration;

/// Where flannel's manifests mount its configuration.
const NET_CONF: &str = "/etc/kube-flannel/net-conf.json";

/// Who carries packets to pods on other nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OverlayKind {
    /// Do not manage pod networking (default)
    #[default]
    None,
    /// Manage a VXLAN tunnel, compatible with flannel's
    Vxlan,
}

/// What to do with forged frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum FilterKind {
    /// Do not filter
    Off,
    /// Count forged frames (default)
    #[default]
    Monitor,
    /// Count and drop forged frames
    Enforce,
}

impl From<FilterKind> for Filter {
    fn from(kind: FilterKind) -> Filter {
        match kind {
            FilterKind::Off => Filter::Off,
            FilterKind::Monitor => Filter::Monitor,
            FilterKind::Enforce => Filter::Enforce,
        }
    }
}

/// Flags of the overlay.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Overlay")]
pub struct OverlayArgs {
    /// Carry packets between pods on different nodes; with vxlan, nodes may run flannel or Portolan
    #[arg(
        long,
        env = "PORTOLAN_OVERLAY",
        value_name = "KIND",
        default_value = "none"
    )]
    pub overlay: OverlayKind,

    /// flannel's net-conf.json: networks, VNI, port, MTU, DirectRouting [default: /etc/kube-flannel/net-conf.json if it
    /// exists, else VNI 1 and port 8472]
    #[arg(long, env = "FLANNELD_NET_CONFIG_PATH", value_name = "FILE")]
    pub net_config_path: Option<PathBuf>,

    /// Name prefix of the tunnel devices: NAME.VNI, and NAME-v6.VNI for IPv6
    #[arg(long, value_name = "NAME", default_value = "flannel")]
    pub overlay_device: String,

    /// Interface to other nodes, by name or address; the first that exists is used
    #[arg(
        long,
        env = "FLANNELD_IFACE",
        value_name = "NAME|IP",
        value_delimiter = ','
    )]
    pub iface: Vec<String>,

    /// Interface to other nodes, by a regular expression for its address or name
    #[arg(long, env = "FLANNELD_IFACE_REGEX", value_name = "REGEX")]
    pub iface_regex: Vec<Regex>,

    /// Interface to other nodes: the one with the route to this address
    #[arg(long, env = "FLANNELD_IFACE_CAN_REACH", value_name = "IP")]
    pub iface_can_reach: Option<IpAddr>,

    /// IPv4 address that other nodes send to
    #[arg(long, env = "FLANNELD_PUBLIC_IP", value_name = "IP")]
    pub public_ip: Option<Ipv4Addr>,

    /// IPv6 address that other nodes send to
    #[arg(long, env = "FLANNELD_PUBLIC_IPV6", value_name = "IP")]
    pub public_ipv6: Option<Ipv6Addr>,

    /// File to write networks and MTU to for the CNI plugin; empty to write none
    #[arg(
        long,
        env = "FLANNELD_SUBNET_FILE",
        value_name = "FILE",
        default_value = "/run/flannel/subnet.env", value_parser = path_or_none
    )]
    pub subnet_file: PathBuf,

    /// File to write a CNI configuration (bridge, host-local, portmap) to once the overlay is ready
    #[arg(long, value_name = "FILE")]
    pub cni_conf: Option<PathBuf>,

    /// Masquerade traffic from pods to destinations outside the cluster
    #[arg(long, env = "FLANNELD_IP_MASQ", value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1,
          require_equals = true, default_value_t = false, default_missing_value = "true")]
    pub ip_masq: bool,

    /// Add a blackhole route for this node's pod CIDRs, so that traffic to unused pod IPs is dropped here
    #[arg(long, env = "FLANNELD_IP_BLACKHOLE_ROUTE", value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1,
          require_equals = true, default_value_t = false, default_missing_value = "true")]
    pub ip_blackhole_route: bool,

    /// Use kernel nexthop objects when there are more IPv4 peers than this
    #[arg(long, value_name = "PEERS", default_value_t = NEXTHOPS_ABOVE)]
    pub nexthop_objects_above: usize,

    /// Filter forged frames: from unknown nodes, or with a source address that does not belong to their node
    #[arg(long, value_name = "MODE", default_value = "monitor")]
    pub overlay_filter: FilterKind,

    /// Prefix of the node annotation keys
    #[arg(long, env = "FLANNELD_KUBE_ANNOTATION_PREFIX", value_name = "PREFIX", default_value = DEFAULT_PREFIX)]
    pub kube_annotation_prefix: String,

    /// Set the condition NetworkUnavailable of this Node to False once the overlay is ready
    #[arg(long, env = "FLANNELD_SET_NODE_NETWORK_UNAVAILABLE", value_name = "BOOL", action = ArgAction::Set,
          num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true")]
    pub set_node_network_unavailable: bool,

    /// UDP and TCP port of the overlay probes, the same on all nodes; 0 to disable probing
    #[arg(long, value_name = "PORT", default_value = "8473")]
    pub overlay_probe_port: u16,

    /// Time between two probe rounds
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = interval)]
    pub overlay_probe_interval: Duration,

    /// File that keeps the peers for a restart without API server; empty to keep none
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/run/portolan/overlay-peers.json", value_parser = path_or_none
    )]
    pub overlay_cache: PathBuf,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub ignored_flannel_flags: IgnoredFlannelFlags,
}

/// Flags of flannel that are accepted and ignored, so that flannel's arguments can stay: Nodes are the only source of pod
/// CIDRs, rules are repaired when they change, masquerading is always fully random.
#[derive(Clone, Debug, Args)]
pub struct IgnoredFlannelFlags {
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "")]
    kube_subnet_mgr: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "")]
    ip_masq_fully_random_disable: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "")]
    iptables_forward_rules: Option<String>,
    #[arg(long, hide = true)]
    iptables_resync: Option<String>,
    #[arg(long, hide = true)]
    subnet_lease_renew_margin: Option<String>,
}

impl IgnoredFlannelFlags {
    /// The flags that were given.
    pub fn given(&self) -> Vec<&'static str> {
        let all = [
            ("--kube-subnet-mgr", &self.kube_subnet_mgr),
            (
                "--ip-masq-fully-random-disable",
                &self.ip_masq_fully_random_disable,
            ),
            ("--iptables-forward-rules", &self.iptables_forward_rules),
            ("--iptables-resync", &self.iptables_resync),
            (
                "--subnet-lease-renew-margin",
                &self.subnet_lease_renew_margin,
            ),
        ];
        let given = all.into_iter().filter(|(_, value)| value.is_some());
        given.map(|(name, _)| name).collect()
    }
}

impl OverlayArgs {
    /// The overlay's configuration. `cluster` are the networks of `--cluster-cidr`, the default for those of
    /// net-conf.json.
    pub fn config(&self, cluster: &[IpNet]) -> anyhow::Result<Config> {
        let usual = Some(Path::new(NET_CONF)).filter(|path| path.exists());
        let mut config = match self.net_config_path.as_deref().or(usual) {
            Some(path) => {
                let text =
                    std::fs::read_to_string(path).with_context(|| format!("reading {path:?}"))?;
                Config::from_net_conf(&text).with_context(|| format!("in {path:?}"))?
            }
            None => Config::default(),
        };
        config.device.clone_from(&self.overlay_device);
        config.blackhole = self.ip_blackhole_route;
        config.nexthops_above = self.nexthop_objects_above;
        let of = |v6: bool| {
            cluster
                .iter()
                .find(|range| range.addr().is_ipv6() == v6)
                .copied()
        };
        config.network = config.network.or(of(false));
        config.ipv6_network = config.ipv6_network.or(of(true));
        config.check()?;
        Ok(config)
    }

    /// The operator's choice of the interface.
    pub fn preferences(&self) -> Preferences {
        Preferences {
            names: self
                .iface
                .iter()
                .filter(|name| !name.is_empty())
                .cloned()
                .collect(),
            patterns: self.iface_regex.clone(),
            can_reach: self.iface_can_reach,
            public_ip: PerFamily::new(
                self.public_ip.map(IpAddr::V4),
                self.public_ipv6.map(IpAddr::V6),
            ),
        }
    }

    /// Options of the overlay's nftables table.
    pub fn rules(&self) -> RuleOptions {
        RuleOptions {
            masquerade: self.ip_masq,
            filter: self.overlay_filter.into(),
        }
    }

    /// Keys of the node annotations.
    pub fn names(&self) -> anyhow::Result<Names> {
        if self.kube_annotation_prefix.is_empty() {
            bail!("--kube-annotation-prefix must not be empty");
        }
        Ok(Names::new(&self.kube_annotation_prefix))
    }
}

/// A path; empty text is allowed, unlike in clap's own parser.
fn path_or_none(text: &str) -> Result<PathBuf, std::convert::Infallible> {
    Ok(PathBuf::from(text))
}

/// A duration above zero.
fn interval(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("must be above 0, such as 10s or 500ms".into()),
        interval => Ok(interval),
    }
}
