//! The command line: flags, their defaults and the values they take.
//!
//! Flags carry kube-proxy's names where it has one, and accept the values it accepts as far as Portolan can
//! honour them; a value it cannot honour is refused with the values it can, never ignored. What flags mean
//! is decided elsewhere: [`NodeArgs::config`] is the one place where they become a [`NodeConfig`].

use std::path::PathBuf;
use std::sync::Arc;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use service_model::{AddressFamily, DetectLocal, NodeConfig, NodePortAddresses};

mod values;

use crate::overlay::args::OverlayArgs;

pub use values::{CidrList, ListenAddress, NodePortAddressList, NodePortRange};
use values::{detect_local_mode, listen_address, node_name};

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
    /// Remove the overlay's nftables table, once another overlay's daemon has taken over; the tunnel stays
    OverlayUninstall,
    /// Print the version
    Version,
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

    /// How a local pod's source address is recognised: ClusterCIDR or NodeCIDR
    #[arg(long, value_name = "MODE", default_value = "ClusterCIDR", value_parser = detect_local_mode)]
    pub detect_local_mode: DetectLocalMode,

    /// Where node ports are served: primary (the Node object's addresses), or ranges of interface addresses
    #[arg(long, value_name = "primary|CIDR[,CIDR...]", default_value = "primary")]
    pub nodeport_addresses: NodePortAddressList,

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

    /// Level, error to trace, or a list by module: info,portolan::source=debug
    #[arg(short = 'v', long, env = "PORTOLAN_LOG", value_name = "LEVEL", default_value = "info",
          value_parser = values::log_level)]
    pub log_level: String,
}

/// `portolan run`
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Kubeconfig of the API server [default: the pod's service account]
    #[arg(long, value_name = "FILE", help_heading = "Source")]
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
    #[arg(long, value_name = "FAMILY")]
    pub family: Option<Family>,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub log: LogArgs,
}

/// nftables' names of the families.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Family {
    /// IPv4
    Ip,
    /// IPv6
    Ip6,
}

impl From<Family> for AddressFamily {
    fn from(family: Family) -> Self {
        match family {
            Family::Ip => AddressFamily::V4,
            Family::Ip6 => AddressFamily::V6,
        }
    }
}

impl NodeArgs {
    /// What the flags mean. Fails when no node name is given and the host name cannot serve as one.
    pub fn config(&self) -> anyhow::Result<NodeConfig> {
        let node_name = match &self.hostname_override {
            Some(name) => name.clone(),
            None => host_name()?,
        };
        let detect_local = match self.detect_local_mode {
            DetectLocalMode::ClusterCidr => DetectLocal::ClusterCidr(self.cluster_cidr.0.clone()),
            DetectLocalMode::NodeCidr => DetectLocal::NodeCidr,
        };
        let nodeport_addresses = match &self.nodeport_addresses {
            NodePortAddressList::Primary => NodePortAddresses::Primary,
            NodePortAddressList::Cidrs(cidrs) => NodePortAddresses::Cidrs(cidrs.clone()),
        };
        Ok(NodeConfig {
            node_name,
            detect_local,
            nodeport_addresses,
            masquerade_all: self.masquerade_all,
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
