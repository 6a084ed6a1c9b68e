//! The command line: flags, their defaults and the values they take.
//!
//! Flags that kube-proxy has too carry kube-proxy's names and accept its values as far as Portolan supports them. An
//! unsupported value is an error that lists the supported ones. [`NodeArgs::config`] is the one place where flags
//! become a [`NodeConfig`].

use std::path::PathBuf;
use std::sync::Arc;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use service_model::{DetectLocal, Family, LocalInterface, NodeConfig};

mod values;

use crate::overlay::args::OverlayArgs;
use crate::sysctl::ConntrackArgs;

pub(crate) use values::duration;
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
    /// Run the service proxy on this node. Its rules stay in place when it exits
    #[command(after_help = "\
Exit codes:
  0  stopped by SIGTERM or SIGINT
  1  could not start, or a part failed
  2  invalid flags")]
    Run(Box<RunArgs>),
    /// Print the nftables rules for a directory of manifests, without touching the kernel
    #[command(after_help = "\
Exit codes:
  0  everything was rendered
  1  the directory cannot be read, or objects or fields were ignored
  2  invalid flags")]
    Render(RenderArgs),
    /// Remove rules from this node: Portolan's own, or what kube-proxy left behind (--kube-proxy)
    #[command(after_help = "\
Exit codes:
  0  everything that was found is removed
  1  something could not be removed
  2  invalid flags")]
    Cleanup(CleanupArgs),
    /// Test the overlay between this node and others, and diagnose failures
    #[command(after_help = "\
Exit codes:
  0  healthy
  1  problem found
  2  could not test, or invalid flags")]
    Doctor(DoctorArgs),
    /// Print where this node's kubelet finds the API server, as a kubeconfig without credentials
    #[command(after_help = "\
Exit codes:
  0  printed; with --write-to also when no kubeconfig of a kubelet is there
  1  no kubeconfig was found, one cannot be used, or the file cannot be written
  2  invalid flags")]
    ApiServer(ApiServerArgs),
    /// Print the version
    Version(VersionArgs),
}

/// What decides the meaning of Services on this node.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Node")]
pub struct NodeArgs {
    /// Name of this node's Node object [default: lower-cased host name]
    #[arg(long, env = "NODE_NAME", value_name = "NAME", value_parser = node_name)]
    pub hostname_override: Option<Arc<str>>,

    /// Pod CIDRs of the cluster, at most one per IP family, such as 10.244.0.0/16,fd00:10:244::/56
    #[arg(long, value_name = "CIDR[,CIDR]", default_value = "")]
    pub cluster_cidr: CidrList,

    /// How to recognize local pods: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix
    #[arg(long, value_name = "MODE", default_value = "ClusterCIDR", value_parser = detect_local_mode)]
    pub detect_local_mode: DetectLocalMode,

    /// Bridge that local pods are attached to, for --detect-local-mode=BridgeInterface
    #[arg(long, value_name = "NAME", value_parser = interface_name)]
    pub pod_bridge_interface: Option<Arc<str>>,

    /// Prefix of local pods' interface names, for --detect-local-mode=InterfaceNamePrefix
    #[arg(long, value_name = "PREFIX", value_parser = interface_name)]
    pub pod_interface_name_prefix: Option<Arc<str>>,

    /// Addresses that serve node ports: primary (of the Node object), all, localhost, CIDRs of interface addresses
    #[arg(
        long,
        value_name = "primary|all|localhost|CIDR[,...]",
        default_value = "primary"
    )]
    pub nodeport_addresses: NodePortAddressList,

    /// CIDRs that Services may use external IPs from; others are ignored with a warning [default: any]
    #[arg(long, value_name = "CIDR[,CIDR...]")]
    pub allowed_external_ips: Option<RangeList>,

    /// Value of the label service.kubernetes.io/service-proxy-name that Services must have [default: no such label]
    #[arg(long, value_name = "NAME", value_parser = label_value)]
    pub service_proxy_name: Option<Arc<str>>,

    /// Range of the node ports that manifests may use
    #[arg(
        long,
        value_name = "FIRST-LAST",
        default_value = "30000-32767",
        help_heading = "Source"
    )]
    pub node_port_range: NodePortRange,

    /// Masquerade all connections to cluster IPs
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
    /// Packets that arrive at `--pod-bridge-interface`.
    BridgeInterface,
    /// Packets that arrive at interfaces whose names begin with `--pod-interface-name-prefix`.
    InterfaceNamePrefix,
}

/// Format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One line of text per event
    Text,
    /// One JSON object per line
    Json,
}

/// Log level and format.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Logging")]
pub struct LogArgs {
    /// Format of the log
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,

    /// Log level (error, warn, info, debug, trace), or a list by module such as info,portolan::control=debug
    #[arg(short = 'v', long, env = "PORTOLAN_LOG", value_name = "LEVEL", default_value = "info",
          value_parser = values::log_level)]
    pub log_level: String,
}

/// `portolan run`
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Kubeconfig file of the API server [default: the pod's service account]
    #[arg(
        long,
        alias = "kubeconfig-file",
        env = "FLANNELD_KUBECONFIG_FILE",
        value_name = "FILE",
        help_heading = "Source"
    )]
    pub kubeconfig: Option<PathBuf>,

    /// Directory of manifests to serve instead of an API server's objects
    #[arg(
        long,
        value_name = "DIR",
        conflicts_with = "kubeconfig",
        help_heading = "Source"
    )]
    pub manifests: Option<PathBuf>,

    #[command(flatten)]
    pub node: NodeArgs,

    #[command(flatten)]
    pub overlay: OverlayArgs,

    /// Create tables that other programs may change too; Portolan repairs such changes
    #[arg(long, help_heading = "Table")]
    pub no_table_owner: bool,

    /// Kernel features to treat as absent, to exercise fallbacks
    #[arg(long, hide = true, value_name = "FEATURE[,FEATURE...]", value_delimiter = ',', value_parser = values::feature)]
    pub without_features: Vec<nft::Feature>,

    /// Remove kube-proxy's rules, of any mode, after the initial sync [default: true; false with --service-proxy-name]
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", help_heading = "Table")]
    pub take_over_kube_proxy: Option<bool>,

    #[command(flatten)]
    pub conntrack: ConntrackArgs,

    /// Set the conntrack sysctls, then exit
    #[arg(long, help_heading = "Connection tracking")]
    pub init_only: bool,

    /// Set this process's oom_score_adj, from -1000 (never kill) to 1000
    #[arg(long, value_name = "NUMBER", default_value_t = -999, allow_negative_numbers = true,
          value_parser = clap::value_parser!(i16).range(-1000..=1000))]
    pub oom_score_adj: i16,

    /// Address that serves /healthz, /livez and /readyz; empty to disable
    #[arg(long, value_name = "IP:PORT", default_value = "0.0.0.0:10256", help_heading = "Ports",
          value_parser = |s: &str| listen_address(s, 10256))]
    pub healthz_bind_address: ListenAddress,

    /// Address that serves /metrics and /proxyMode; empty to disable
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:10249", help_heading = "Ports",
          value_parser = |s: &str| listen_address(s, 10249))]
    pub metrics_bind_address: ListenAddress,

    #[command(flatten)]
    pub log: LogArgs,
}

/// `portolan cleanup`
#[derive(Clone, Debug, Args)]
pub struct CleanupArgs {
    /// Remove kube-proxy's leftovers, of any mode, instead of Portolan's rules; breaks established IPVS connections
    #[arg(long, conflicts_with = "overlay")]
    pub kube_proxy: bool,

    /// Remove only the overlay's nftables tables; the VXLAN device and its routes stay
    #[arg(long)]
    pub overlay: bool,

    /// After a successful cleanup, wait for SIGTERM, so that a DaemonSet's pod is not restarted
    #[arg(long)]
    pub wait: bool,

    #[command(flatten)]
    pub log: LogArgs,
}

/// `portolan api-server`
#[derive(Clone, Debug, Args)]
pub struct ApiServerArgs {
    /// Kubeconfig of the kubelet; repeat to try several [default: where kubeadm, k3s, RKE2 and EKS have it]
    #[arg(long, value_name = "FILE")]
    pub from: Vec<PathBuf>,

    /// File to write instead of printing, for an init container [default: standard output]
    #[arg(long, value_name = "FILE")]
    pub write_to: Option<PathBuf>,
}

/// `portolan render`
#[derive(Clone, Debug, Args)]
pub struct RenderArgs {
    /// Directory of manifests
    #[arg(long, value_name = "DIR", help_heading = "Source")]
    pub manifests: PathBuf,

    /// Interface addresses to assume, for CIDRs in --nodeport-addresses
    #[arg(
        long,
        value_name = "IP[,IP...]",
        value_delimiter = ',',
        help_heading = "Node"
    )]
    pub interface_addresses: Vec<std::net::IpAddr>,

    #[command(flatten)]
    pub node: NodeArgs,

    /// Print only the table of this family [default: both]
    #[arg(long, value_name = "FAMILY", value_parser = family_parser())]
    pub family: Option<Family>,

    #[command(flatten)]
    pub log: LogArgs,
}

/// `portolan doctor`
#[derive(Clone, Debug, Args)]
pub struct DoctorArgs {
    /// Print every measurement to this node [default: one line per peer, up to 64 peers]
    #[arg(long, value_name = "NODE")]
    pub to: Option<String>,

    /// Format of the report
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub output: OutputForm,
}

/// Format of a report.
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
    /// Also probe kernel features, and print the fallback for each missing one; needs CAP_NET_ADMIN
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
    /// Whether to remove kube-proxy's rules. With `--service-proxy-name`, kube-proxy keeps serving the other Services.
    pub fn takes_over_kube_proxy(&self) -> bool {
        let default = self.node.service_proxy_name.is_none();
        self.take_over_kube_proxy.unwrap_or(default)
    }
}

impl NodeArgs {
    /// The node configuration that the flags describe. Fails without a usable node name.
    pub fn config(&self) -> anyhow::Result<NodeConfig> {
        let node_name = match &self.hostname_override {
            Some(name) => name.clone(),
            None => host_name()?,
        };
        let interface = |name: &Option<Arc<str>>, flag: &str| {
            let missing = || {
                anyhow::anyhow!(
                    "--detect-local-mode={} needs {flag}",
                    self.detect_local_mode
                )
            };
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
            // Known once the API client is made.
            api_server: None,
        })
    }
}

/// The host name as kube-proxy and kubelet make a node name of it: trimmed and lower-cased.
fn host_name() -> anyhow::Result<Arc<str>> {
    use anyhow::Context;
    let name = nix::unistd::gethostname().context("reading the host name")?;
    node_name(&name.to_string_lossy()).map_err(|reason| {
        anyhow::anyhow!("host name {name:?} is not a node name ({reason}); set --hostname-override")
    })
}

#[cfg(test)]
mod tests;
