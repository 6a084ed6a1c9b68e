//! The subcommands of `portolan`, with the flags of all but `run`.
//!
//! The flags of `portolan run`, and those of other commands that mean the same, are a table of [`kube_proxy_config`]:
//! one truth for names, values, defaults and help.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use kube_proxy_config::{LogFormat, Logging};
use service_model::Family;

mod node_flags;

pub use node_flags::NodeFlags;

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
    #[command(disable_help_flag = true, disable_version_flag = true)]
    Run(RunArgs),
    /// Print one screen about the daemon of this node: source, sync, commits, problems, overlay, kernel
    #[command(after_help = "\
Exit codes:
  0  everything known is in the kernel, or this daemon is on standby
  1  starting or degraded: the reasons are printed
  2  no daemon answers, the user may not ask, or invalid flags")]
    Status(StatusArgs),
    /// List Services with their frontends, endpoints and connections on this node, or describe one
    #[command(after_help = "\
Exit codes:
  0  printed
  2  the Service does not exist, no daemon answers, the user may not ask, or invalid flags")]
    Services(ServicesArgs),
    /// List connections through Services, with the names of Services and nodes
    #[command(after_help = "\
Exit codes:
  0  printed
  2  the Service does not exist, no daemon answers, the user may not ask, or invalid flags")]
    Flows(FlowsArgs),
    /// Explain step by step what becomes of a connection on this node
    #[command(after_help = "\
Exit codes:
  0  goes to an endpoint, or no rule of Portolan concerns it
  1  refused or dropped: the reason is printed; with --live also if the kernel does not do what the daemon says
  2  could not be traced, no packet came, no daemon answers, the user may not ask, or invalid flags")]
    Trace(TraceArgs),
    /// Compare the kernel's tables with what this node should have
    #[command(after_help = "\
Exit codes:
  0  the same
  1  they differ: each difference is printed
  2  could not be compared, no daemon answers, the user may not ask, or invalid flags")]
    Verify(VerifyArgs),
    /// Print the log level of this node's daemon, or change it until the daemon ends
    #[command(after_help = "\
Exit codes:
  0  printed
  2  not a level, no daemon answers, the user may not ask, or invalid flags")]
    LogLevel(LogLevelArgs),
    /// Write an archive for a bug report: documents of the daemon, tables, settings; without credentials
    #[command(after_help = "\
Exit codes:
  0  everything was gathered
  1  something could not be gathered: errors.txt in the archive names it
  2  the archive cannot be written, or invalid flags")]
    Support(SupportArgs),
    /// Print the nftables rules for a directory of manifests, or those in the kernel (--live)
    #[command(after_help = "\
Exit codes:
  0  everything was rendered
  1  the directory or a flag of the node cannot be used, objects or fields were ignored, or a table is not there
  2  invalid flags")]
    Render(RenderArgs),
    /// Remove rules from this node: Portolan's own, or what kube-proxy left behind (--kube-proxy)
    #[command(after_help = "\
Exit codes:
  0  everything that was found is removed
  1  something could not be removed
  2  invalid flags")]
    Cleanup(CleanupArgs),
    /// Examine this node, test the overlay between it and others, and diagnose failures
    #[command(after_help = "\
Exit codes:
  0  healthy
  1  problem found
  2  could not test, or invalid flags")]
    Doctor(DoctorArgs),
    /// Test a cluster with pods and Services of its own on two nodes; needs kubectl
    #[command(after_help = "\
Exit codes:
  0  all checks passed
  1  a check failed: each is printed
  2  could not test, or invalid flags")]
    Selftest(SelftestArgs),
    /// Print where this node's kubelet finds the API server, as a kubeconfig without credentials
    #[command(after_help = "\
Exit codes:
  0  printed; with --write-to also when no kubeconfig of a kubelet is there
  1  no kubeconfig was found, one cannot be used, or the file cannot be written
  2  invalid flags")]
    ApiServer(ApiServerArgs),
    /// Replace the WireGuard key of this node (--overlay-encryption)
    #[command(after_help = "\
Exit codes:
  0  requested: `portolan status` shows the progress
  1  the daemon has no key here, or the request cannot be written
  2  invalid flags")]
    RotateKey(RotateKeyArgs),
    /// Print the completion script of a shell
    #[command(after_help = "\
Exit codes:
  0  printed
  2  invalid flags")]
    Completions(CompletionsArgs),
    /// Write a manual page for each command
    #[command(after_help = "\
Exit codes:
  0  written
  1  the directory cannot be written
  2  invalid flags")]
    Manual(ManualArgs),
    /// Print the version
    #[command(after_help = "\
Exit codes:
  0  printed
  1  kernel features could not be probed
  2  invalid flags")]
    Version(VersionArgs),
}

/// Log level and format.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Logging")]
pub struct LogArgs {
    /// Format of the log
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: OutputForm,

    /// Log level (error to trace), a verbosity, or a list such as info,portolan::control=debug
    #[arg(
        short = 'v',
        long,
        env = "PORTOLAN_LOG",
        value_name = "LEVEL",
        default_value = "info"
    )]
    pub log_level: String,
}

impl LogArgs {
    /// What the flags ask for. A number is a verbosity, as kube-proxy's `-v`.
    pub fn logging(&self) -> Logging {
        Logging {
            format: match self.log_format {
                OutputForm::Text => LogFormat::Text,
                OutputForm::Json => LogFormat::Json,
            },
            filter: match self.log_level.parse() {
                Ok(verbosity) => kube_proxy_config::filter_of(verbosity),
                Err(_) => self.log_level.clone(),
            },
        }
    }
}

/// `portolan run`
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Flags; `portolan run --help` lists them
    #[arg(
        value_name = "FLAGS",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub arguments: Vec<String>,
}

/// `portolan status`
#[derive(Clone, Debug, Args)]
pub struct StatusArgs {
    /// Print the status again every second, until interrupted
    #[arg(long)]
    pub watch: bool,

    /// Wait until the status is good
    #[arg(long)]
    pub wait: bool,

    /// Time that --wait waits, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub timeout: u64,

    /// Format of the status
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub output: OutputForm,
}

/// `portolan services`
#[derive(Clone, Debug, Args)]
pub struct ServicesArgs {
    /// Service to describe, with its endpoints [default: list all]
    #[arg(value_name = "[NAMESPACE/]NAME")]
    pub name: Option<String>,

    /// Print the busiest Services, or the endpoints of one, every second: new connections, packets, bytes
    #[arg(long)]
    pub top: bool,

    /// Format of the report; with --top one JSON object a line
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub output: OutputForm,
}

/// `portolan flows`
#[derive(Clone, Debug, Args)]
pub struct FlowsArgs {
    /// Service whose connections to list [default: all Services]
    #[arg(long, value_name = "[NAMESPACE/]NAME")]
    pub service: Option<String>,

    /// Print new connections every second, until interrupted
    #[arg(long)]
    pub follow: bool,

    /// Format of the list; JSON is one object a line
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub output: OutputForm,
}

/// `portolan support`
#[derive(Clone, Debug, Args)]
pub struct SupportArgs {
    /// File to create, or `-` for standard output [default: portolan-support-TIME.tar.gz]
    #[arg(long, value_name = "FILE")]
    pub to: Option<PathBuf>,
}

/// `portolan completions`
#[derive(Clone, Debug, Args)]
pub struct CompletionsArgs {
    /// Shell that reads the script
    #[arg(value_name = "SHELL")]
    pub shell: clap_complete::Shell,
}

/// `portolan manual`
#[derive(Clone, Debug, Args)]
pub struct ManualArgs {
    /// Directory to write the pages to
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
}

/// `portolan trace`
#[derive(Clone, Debug, Args)]
pub struct TraceArgs {
    /// Address of the client, NAMESPACE/POD for an endpoint of a Service, or `node` for this node itself
    #[arg(long, value_name = "IP")]
    pub from: String,

    /// Destination of the connection; /udp and /sctp for other protocols than TCP
    #[arg(long, value_name = "IP:PORT[/PROTOCOL]")]
    pub to: String,

    /// Trace a real packet in the kernel: the client's next one, or one sent now (--from node)
    #[arg(long)]
    pub live: bool,

    /// Time that --live waits for a packet, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub timeout: u64,

    /// Format of the report
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub output: OutputForm,
}

/// `portolan verify`
#[derive(Clone, Debug, Args)]
pub struct VerifyArgs {
    /// Format of the report
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub output: OutputForm,
}

/// `portolan log-level`
#[derive(Clone, Debug, Args)]
pub struct LogLevelArgs {
    /// Level to change to (error to trace), a verbosity, or a list such as info,portolan::control=debug
    #[arg(value_name = "LEVEL")]
    pub level: Option<String>,

    /// Format of the answer
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub output: OutputForm,
}

/// `portolan cleanup`
#[derive(Clone, Debug, Args)]
pub struct CleanupArgs {
    /// Remove kube-proxy's leftovers, of any mode, instead of Portolan's rules; breaks IPVS connections
    #[arg(long, conflicts_with_all = ["overlay", "services"])]
    pub kube_proxy: bool,

    /// Remove only the overlay's nftables tables; the VXLAN device and its routes stay
    #[arg(long)]
    pub overlay: bool,

    /// After a successful cleanup, wait for SIGTERM, so that a DaemonSet's pod is not restarted
    #[arg(long)]
    pub wait: bool,

    /// Remove only the Services' nftables tables
    #[arg(long)]
    pub services: bool,

    #[command(flatten)]
    pub log: LogArgs,
}

/// `portolan api-server`
#[derive(Clone, Debug, Args)]
pub struct ApiServerArgs {
    /// Kubeconfig of the kubelet; repeat to try several [default: kubeadm, k3s, RKE2, EKS, Bottlerocket]
    #[arg(long, value_name = "FILE")]
    pub from: Vec<PathBuf>,

    /// File to write instead of printing, for an init container [default: standard output]
    #[arg(long, value_name = "FILE")]
    pub write_to: Option<PathBuf>,
}

/// `portolan rotate-key`
#[derive(Clone, Debug, Args)]
pub struct RotateKeyArgs {
    /// File that keeps the private keys of this node, as the daemon has it
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/var/lib/portolan-encryption/keys.json"
    )]
    pub overlay_encryption_key_file: PathBuf,
}

/// `portolan render`
#[derive(Clone, Debug, Args)]
pub struct RenderArgs {
    /// Directory of manifests
    #[arg(
        long,
        value_name = "DIR",
        help_heading = "Source",
        required_unless_present = "live"
    )]
    pub manifests: Option<PathBuf>,

    /// Print Portolan's tables as the kernel has them; needs CAP_NET_ADMIN, and no nft
    #[arg(long, help_heading = "Source", conflicts_with = "manifests")]
    pub live: bool,

    /// Interface addresses to assume, for CIDRs in --nodeport-addresses
    #[arg(
        long,
        value_name = "IP[,IP...]",
        value_delimiter = ',',
        help_heading = "Node"
    )]
    pub interface_addresses: Vec<std::net::IpAddr>,

    #[command(flatten)]
    pub node: NodeFlags,

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

/// `portolan selftest`
#[derive(Clone, Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct SelftestArgs {
    /// What a pod of the test runs
    #[command(subcommand)]
    pub part: Option<SelftestPart>,

    /// Nodes to test, one or two [default: the first two that run Portolan]
    #[arg(long, value_name = "NODE[,NODE]", value_delimiter = ',')]
    pub nodes: Vec<String>,

    /// Context of the kubeconfig [default: the current one]
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,

    /// Namespace of the daemon's pods
    #[arg(long, value_name = "NAMESPACE", default_value = "kube-system")]
    pub daemon_namespace: String,

    /// Image of the test's pods [default: the daemon's]
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<String>,

    /// Time for the pods to start, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub timeout: u64,

    /// Keep the namespace portolan-selftest with its pods and Services
    #[arg(long)]
    pub keep: bool,

    /// Format of the report
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub output: OutputForm,
}

/// What a pod of `portolan selftest` runs.
#[derive(Clone, Debug, Subcommand)]
pub enum SelftestPart {
    /// Answer with a name and the client's address, and then with what the client sends
    #[command(hide = true)]
    Serve {
        /// Name to answer with
        #[arg(long)]
        name: String,
        /// Port of TCP and UDP
        #[arg(long)]
        port: u16,
    },
    /// Make attempts, and print the answers
    #[command(hide = true)]
    Connect {
        /// Attempts, as JSON
        attempts: String,
    },
}

/// Format of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutputForm {
    /// Text for people
    Text,
    /// JSON: a report is one object, a log one object a line
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

#[cfg(test)]
mod tests;
