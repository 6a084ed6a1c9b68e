//! The command line: flags, their defaults and the values they take.
//!
//! Flags carry kube-proxy's names where it has one, and accept the values it accepts as far as Portolan can
//! honour them; a value it cannot honour is refused with the values it can, never ignored. What flags mean
//! is decided elsewhere: [`NodeArgs::config`] is the one place where they become a [`NodeConfig`].

use std::path::PathBuf;
use std::sync::Arc;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use service_model::{DetectLocal, Family, LocalInterface, NodeConfig};

mod values;

use crate::overlay::args::OverlayArgs;
use crate::sysctl::ConntrackArgs;

pub use values::{CidrList, ListenAddress, NodePortAddressList, NodePortRange, RangeList};
use values::{detect_local_mode, interface_name, label_value, listen_address, node_name};

/// Kubernetes service proxy on nftables maps.
#[derive(Debug, Parser)]
#[command(name = "portolan", version, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Keep the table of this node right until stopped; the rules stay when it stops
    Run(Box<RunArgs>),
    /// Print the table that a folder of manifests makes on a node, without touching a kernel
    Render(RenderArgs),
    /// Take away the rules of this node: ours, or those kube-proxy has left
    Cleanup(CleanupArgs),
    /// Measure now what gets to other nodes' pods through the overlay, and say what is wrong: ends with 0 if nothing
    /// is, 1 if something is, 2 if that cannot be told
    Doctor(DoctorArgs),
    /// Print the version
    Version(VersionArgs),
}

/// What decides the meaning of Services on this node.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "This node")]
pub struct NodeArgs {
    /// Name of this node's Node object [default: the host name, lower-cased]
    #[arg(long, env = "NODE_NAME", value_name = "NAME", value_parser = node_name)]
    pub hostname_override: Option<Arc<str>>,

    /// Pod range of the cluster, one of each family: 10.244.0.0/16,fd00:10:244::/56
    #[arg(long, value_name = "CIDR[,CIDR]", default_value = "")]
    pub cluster_cidr: CidrList,

    /// How a local pod is recognised: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix
    #[arg(long, value_name = "MODE", default_value = "ClusterCIDR", value_parser = detect_local_mode)]
    pub detect_local_mode: DetectLocalMode,

    /// The bridge that local pods are behind, for BridgeInterface
    #[arg(long, value_name = "NAME", value_parser = interface_name)]
    pub pod_bridge_interface: Option<Arc<str>>,

    /// How the names of local pods' interfaces begin, for InterfaceNamePrefix
    #[arg(long, value_name = "PREFIX", value_parser = interface_name)]
    pub pod_interface_name_prefix: Option<Arc<str>>,

    /// Where node ports are served: primary (the Node object's addresses), all (interface addresses), localhost,
    /// and ranges of interface addresses, in any mixture
    #[arg(
        long,
        value_name = "primary|all|localhost|CIDR[,...]",
        default_value = "primary"
    )]
    pub nodeport_addresses: NodePortAddressList,

    /// Ranges that Services may take external IPs from; others are refused and named [default: any]
    #[arg(long, value_name = "CIDR[,CIDR...]")]
    pub allowed_external_ips: Option<RangeList>,

    /// Serve the Services with this value of the label service.kubernetes.io/service-proxy-name, and no others
    /// [default: those without the label]
    #[arg(long, value_name = "NAME", value_parser = label_value)]
    pub service_proxy_name: Option<Arc<str>>,

    /// Masquerade everything sent to a cluster IP
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_value_t = false, default_missing_value = "true")]
    pub masquerade_all: bool,
}

/// The values of `--detect-local-mode` that Portolan supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DetectLocalMode {
    /// Sources within `--cluster-cidr`.
    ClusterCidr,
    /// Sources within the Node object's `spec.podCIDRs`.
    NodeCidr,
    /// What comes in by `--pod-bridge-interface`.
    BridgeInterface,
    /// What comes in by interfaces whose names begin with `--pod-interface-name-prefix`.
    InterfaceNamePrefix,
}

/// Log lines for people or for machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One line of text an event
    Text,
    /// One JSON object a line
    Json,
}

/// How much is logged, and how.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Logging")]
pub struct LogArgs {
    /// Form of the log
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,

    /// Level, error to trace, or a list by module: info,object_source=debug
    #[arg(short = 'v', long, env = "PORTOLAN_LOG", value_name = "LEVEL", default_value = "info",
          value_parser = values::log_level)]
    pub log_level: String,
}

/// `portolan run`
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Kubeconfig of the API server [default: the pod's service account]
    #[arg(
        long,
        alias = "kubeconfig-file",
        env = "FLANNELD_KUBECONFIG_FILE",
        value_name = "FILE",
        help_heading = "Source"
    )]
    pub kubeconfig: Option<PathBuf>,

    /// Folder of manifests to serve instead of an API server's objects
    #[arg(
        long,
        value_name = "DIR",
        conflicts_with = "kubeconfig",
        help_heading = "Source"
    )]
    pub manifests: Option<PathBuf>,

    /// Node ports a manifest may ask for
    #[arg(
        long,
        value_name = "FIRST-LAST",
        default_value = "30000-32767",
        help_heading = "Source"
    )]
    pub node_port_range: NodePortRange,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub node: NodeArgs,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub overlay: OverlayArgs,

    /// Do not claim the table: other programs may change it (changes are repaired)
    #[arg(long, help_heading = "Table")]
    pub no_table_owner: bool,

    /// Do without these features of the kernel: to try what is done on kernels that lack them
    #[arg(long, hide = true, value_name = "FEATURE[,FEATURE...]", value_delimiter = ',', value_parser = values::feature)]
    pub without_features: Vec<nft::Feature>,
    /// Remove what kube-proxy has left on this node, of any mode, once our own rules stand [default: true, unless
    /// --service-proxy-name is given: kube-proxy serves the other Services then]
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", help_heading = "Table")]
    pub take_over_kube_proxy: Option<bool>,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub conntrack: ConntrackArgs,

    /// Make the settings that need privileges (those of connection tracking), then end
    #[arg(long, help_heading = "Connection tracking")]
    pub init_only: bool,

    /// How soon the kernel may end this process when memory is short, -1000 (never) to 1000
    #[arg(long, value_name = "NUMBER", default_value_t = -999, allow_negative_numbers = true,
          value_parser = clap::value_parser!(i16).range(-1000..=1000))]
    pub oom_score_adj: i16,

    /// Address of /healthz, /livez and /readyz; empty: none
    #[arg(long, value_name = "IP:PORT", default_value = "0.0.0.0:10256", help_heading = "Ports",
          value_parser = |s: &str| listen_address(s, 10256))]
    pub healthz_bind_address: ListenAddress,

    /// Address of /metrics and /proxyMode; empty: none
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:10249", help_heading = "Ports",
          value_parser = |s: &str| listen_address(s, 10249))]
    pub metrics_bind_address: ListenAddress,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub log: LogArgs,
}

/// `portolan cleanup`
#[derive(Clone, Debug, Args)]
pub struct CleanupArgs {
    /// Remove what kube-proxy has left, of any mode, instead of ours; established connections through IPVS end
    #[arg(long, conflicts_with = "overlay")]
    pub kube_proxy: bool,

    /// Remove the overlay's table only, once another overlay's daemon has taken over; the tunnel stays
    #[arg(long)]
    pub overlay: bool,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub log: LogArgs,
}

/// `portolan render`
#[derive(Clone, Debug, Args)]
pub struct RenderArgs {
    /// Folder of manifests
    #[arg(long, value_name = "DIR", help_heading = "Source")]
    pub manifests: PathBuf,

    /// Node ports a manifest may ask for
    #[arg(
        long,
        value_name = "FIRST-LAST",
        default_value = "30000-32767",
        help_heading = "Source"
    )]
    pub node_port_range: NodePortRange,

    /// Addresses of this node's interfaces, for --nodeport-addresses with ranges
    #[arg(
        long,
        value_name = "IP[,IP...]",
        value_delimiter = ',',
        help_heading = "This node"
    )]
    pub interface_addresses: Vec<std::net::IpAddr>,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub node: NodeArgs,

    /// Print only this family's table [default: both]
    #[arg(long, value_name = "FAMILY", value_parser = family_parser())]
    pub family: Option<Family>,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub log: LogArgs,
}

/// `portolan doctor`
#[derive(Clone, Debug, Args)]
pub struct DoctorArgs {
    /// Print all that is measured between this node and this one [default: a line for each of 64 peers]
    #[arg(long, value_name = "NODE")]
    pub to: Option<String>,

    /// Form of the report
    #[arg(long, value_name = "FORM", default_value = "text")]
    pub output: OutputForm,
}

/// Reports for people or for machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutputForm {
    /// Lines of text
    Text,
    /// One JSON object
    Json,
}

/// `portolan version`
#[derive(Clone, Debug, Args)]
pub struct VersionArgs {
    /// Also try what the kernel of this machine can do, and say what is done without the rest (needs CAP_NET_ADMIN)
    #[arg(long)]
    pub features: bool,
}

/// Accepts nftables' names of the families.
fn family_parser() -> impl TypedValueParser<Value = Family> {
    PossibleValuesParser::new(Family::ALL.map(Family::keyword)).map(|keyword| {
        match keyword == Family::Ip6.keyword() {
            true => Family::Ip6,
            false => Family::Ip,
        }
    })
}

impl RunArgs {
    /// Whether to remove what kube-proxy has left. Beside a service proxy with a name of its own, kube-proxy goes on.
    pub fn takes_over_kube_proxy(&self) -> bool {
        let default = self.node.service_proxy_name.is_none();
        self.take_over_kube_proxy.unwrap_or(default)
    }
}

impl NodeArgs {
    /// What the flags mean. Fails when no node name is given and the host name cannot serve as one.
    pub fn config(&self) -> anyhow::Result<NodeConfig> {
        let node_name = match &self.hostname_override {
            Some(name) => name.clone(),
            None => host_name()?,
        };
        let interface = |name: &Option<Arc<str>>, flag: &str| {
            let missing = || anyhow::anyhow!("this --detect-local-mode needs {flag}");
            name.clone().ok_or_else(missing)
        };
        let detect_local = match self.detect_local_mode {
            DetectLocalMode::ClusterCidr => DetectLocal::ClusterCidr(self.cluster_cidr.0.clone()),
            DetectLocalMode::NodeCidr => DetectLocal::NodeCidr,
            DetectLocalMode::BridgeInterface => DetectLocal::Interface(LocalInterface::Named(
                interface(&self.pod_bridge_interface, "--pod-bridge-interface")?,
            )),
            DetectLocalMode::InterfaceNamePrefix => {
                DetectLocal::Interface(LocalInterface::Prefix(interface(
                    &self.pod_interface_name_prefix,
                    "--pod-interface-name-prefix",
                )?))
            }
        };
        Ok(NodeConfig {
            node_name,
            detect_local,
            nodeport_addresses: self.nodeport_addresses.0.clone(),
            masquerade_all: self.masquerade_all,
            allowed_external_ips: self.allowed_external_ips.clone().map(|list| list.0),
            // Whoever connects knows.
            api_server: None,
        })
    }
}

/// The host name as kube-proxy and kubelet make a node name of it: trimmed and lower-cased.
fn host_name() -> anyhow::Result<Arc<str>> {
    use anyhow::Context;
    let name = nix::unistd::gethostname().context("reading the host name")?;
    node_name(&name.to_string_lossy()).map_err(|reason| {
        anyhow::anyhow!("host name {name:?} as node name: {reason}; give --hostname-override")
    })
}

#[cfg(test)]
mod tests;
