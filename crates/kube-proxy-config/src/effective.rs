//! The configuration that counts, in plain types: all that the daemon needs, and nothing about where it came from.
//!
//! Each struct names the fields it is made of. Durations of zero leave the kernel's setting alone.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
pub use net_types::NodePortAddress;
use serde::{Serialize, Serializer};

use crate::go;

/// The effective configuration.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Effective {
    /// `mode`: Portolan serves all of them alike, but some defaults differ.
    pub mode: Mode,
    /// `hostnameOverride`, trimmed and in lower case; `None`: the host name.
    pub node_name: Option<String>,
    /// Where the API server is.
    pub api_server: ApiServer,
    /// `bindAddress`, unless it is a wildcard: overrides the Node object's primary address.
    pub node_ip: Option<IpAddr>,
    /// Where the process listens.
    pub listeners: Listeners,
    /// `serviceProxy`
    pub service_proxy: bool,
    /// What Services mean on this node.
    pub services: Services,
    /// `oomScoreAdj`, -1000 to 1000
    pub oom_score_adj: i16,
    /// Settings of connection tracking.
    pub conntrack: Conntrack,
    /// What is logged, and how.
    pub logging: Logging,
    /// `featureGates`, as given.
    pub feature_gates: BTreeMap<String, bool>,
    /// `ipvs.excludeCIDRs`: has no effect, since the clean-up removes only virtual servers at addresses of `kube-ipvs0`.
    pub ipvs_exclude_cidrs: Vec<IpNet>,
    /// `tableOwner`: claim the tables.
    pub table_owner: bool,
    /// `takeOverKubeProxy`: remove what kube-proxy has left. Without a value: when no `serviceProxyName` is given.
    pub take_over_kube_proxy: bool,
    /// `failover`, with a service proxy: skip endpoints of nodes that answer no probe.
    pub failover: bool,
    /// `failover: endpoints`: skip single endpoints that do not answer, of all Services.
    pub failover_endpoints: bool,
    /// `serviceTraffic`, with a service proxy: count connections, packets and bytes of Services.
    pub service_traffic: bool,
    /// `page`: serve the page about this node at the metrics port, to clients of this node.
    pub page: bool,
    /// `enableProfiling`: let clients of this node change the log's verbosity at the metrics port, as kube-proxy does.
    pub profiling: bool,
    /// `withoutFeatures`: kernel features to treat as absent.
    pub without_features: Vec<String>,
    /// `overlay`; `None` for type `none`.
    pub overlay: Option<Overlay>,
}

/// kube-proxy's modes on Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// `iptables`, kube-proxy's default.
    Iptables,
    /// `ipvs`
    Ipvs,
    /// `nftables`
    Nftables,
}

/// Where the API server is: the first that is given counts, except that `master` replaces a kubeconfig's server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ApiServer {
    /// `manifests`: a folder of objects instead of an API server.
    pub manifests: Option<PathBuf>,
    /// `nodePortRange`: node ports that a manifest may ask for, both ends included.
    pub node_port_range: (u16, u16),
    /// `clientConnection.kubeconfig`; `None`: the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// `--master`: a URL; flanneld's `--kube-api-url`.
    pub master: Option<String>,
    /// `apiServerFrom`: kubeconfigs whose server and CA are used with the pod's own token; empty: the usual places.
    pub api_server_from: Vec<PathBuf>,
}

/// Where the process listens; `None` switches a listener off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listeners {
    /// `healthzBindAddress`. A wildcard of either family means both (Go's sockets are dual-stack).
    pub healthz: Option<SocketAddr>,
    /// `metricsBindAddress`, likewise.
    pub metrics: Option<SocketAddr>,
    /// `bindAddressHardFail`: exit when an address cannot be bound.
    pub hard_fail: bool,
}

/// What Services mean on this node.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Services {
    /// `detectLocalMode` with what it needs.
    pub detect_local: DetectLocalMode,
    /// `clusterCIDR`, at most one of a family: for the overlay too, whatever detects local traffic.
    pub cluster_cidrs: Vec<IpNet>,
    /// `nodePortAddresses`, or the default of the mode; never empty.
    #[serde(serialize_with = "as_texts")]
    pub node_port_addresses: Vec<NodePortAddress>,
    /// `masqueradeAll` of the mode's section.
    pub masquerade_all: bool,
    /// `allowedExternalIPs`: ranges of external IPs that are served; `None`: any that belong to nobody in the cluster.
    pub allowed_external_ips: Option<Vec<IpNet>>,
    /// `serviceProxyName`: value of the label `service.kubernetes.io/service-proxy-name` to serve; `None`: no label.
    pub service_proxy_name: Option<String>,
}

/// How traffic of local pods is recognized.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum DetectLocalMode {
    /// By a source within `clusterCIDR`.
    ClusterCidr,
    /// By a source within the Node's pod CIDRs.
    NodeCidr,
    /// By the bridge it arrives on.
    BridgeInterface(String),
    /// By the beginning of the name of the interface it arrives on.
    InterfaceNamePrefix(String),
}

/// Settings of connection tracking; zero leaves the kernel's setting alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Conntrack {
    /// `conntrack.maxPerCore`: entries for each processor.
    pub max_per_core: u32,
    /// `conntrack.min`: entries at least.
    pub min: u32,
    /// `conntrack.tcpEstablishedTimeout`
    #[serde(serialize_with = "as_go")]
    pub tcp_established_timeout: Duration,
    /// `conntrack.tcpCloseWaitTimeout`
    #[serde(serialize_with = "as_go")]
    pub tcp_close_wait_timeout: Duration,
    /// Portolan's `conntrack.tcpBeLiberal`, on by default. A `false` in kube-proxy's document is the zero
    /// value that every generated file has, and does not switch it off; `--conntrack-tcp-be-liberal=false` does.
    pub tcp_be_liberal: bool,
    /// Portolan's `serviceTraffic`: count packets and bytes of entries.
    pub accounting: bool,
    /// `conntrack.udpTimeout`
    #[serde(serialize_with = "as_go")]
    pub udp_timeout: Duration,
    /// `conntrack.udpStreamTimeout`
    #[serde(serialize_with = "as_go")]
    pub udp_stream_timeout: Duration,
}

/// What is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Logging {
    /// `logFormat`, or `logging.format`
    pub format: LogFormat,
    /// A filter in tracing's grammar: `logLevel`, or what `logging.verbosity` (`-v`) means. Errors always pass a filter
    /// that comes from a verbosity.
    pub filter: String,
}

/// Log lines for people or for machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One line of text an event.
    Text,
    /// One JSON object a line.
    Json,
}

/// `overlay`: node-to-node traffic of pods by VXLAN, flannel's scheme.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Overlay {
    /// `device`: the device is called by this and the VNI.
    pub device: String,
    /// `filter`: what becomes of forged frames.
    pub filter: Filter,
    /// `encryption`, with its port, key file and lifetime of keys (zero: none); `None` for `off`.
    pub encryption: Option<Encryption>,
    /// `encryptionKeyFile`, also where encryption is off: devices of an earlier run are removed.
    pub encryption_key_file: PathBuf,
    /// `podMTU`; `None`: what fits.
    pub pod_mtu: Option<u32>,
    /// `cache`: where peers are kept over a restart; `None`: nowhere.
    pub cache: Option<PathBuf>,
    /// `probePort`, the same on all nodes; `None`: do not measure.
    pub probe_port: Option<u16>,
    /// `probeInterval`
    #[serde(serialize_with = "as_go")]
    pub probe_interval: Duration,
    /// `cniBinDir`: where to look for the plugins that the CNI configuration needs; `None`: do not look.
    pub cni_bin_dir: Option<PathBuf>,
    /// `cniConf`: where to write a CNI configuration; `None`: nowhere.
    pub cni_conf: Option<PathBuf>,
    /// `nexthopObjectsAbove`: more IPv4 peers than these are routed to by nexthop objects.
    pub nexthop_objects_above: u32,
    /// `netConfigPath`: flannel's net-conf.json; `None`: the usual place.
    pub net_config_path: Option<PathBuf>,
    /// `iface`: interfaces to other nodes, by name or address, in order of preference.
    pub iface: Vec<String>,
    /// `ifaceRegex`: patterns of interfaces; whoever uses them compiles them.
    pub iface_regex: Vec<String>,
    /// `ifaceCanReach`
    pub iface_can_reach: Option<IpAddr>,
    /// `publicIP`
    pub public_ip: Option<Ipv4Addr>,
    /// `publicIPv6`
    pub public_ipv6: Option<Ipv6Addr>,
    /// `ipMasq`
    pub ip_masq: bool,
    /// `ipBlackholeRoute`
    pub ip_blackhole_route: bool,
    /// `kubeAnnotationPrefix`, never empty.
    pub kube_annotation_prefix: String,
    /// `setNodeNetworkUnavailable`
    pub set_node_network_unavailable: bool,
    /// `subnetFile`: where ranges and MTU are written for the CNI plugin; `None`: nowhere.
    pub subnet_file: Option<PathBuf>,
}

/// `overlay.encryption`, if it is on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Encryption {
    /// Peers without a key are not talked to.
    pub required: bool,
    /// `encryptionPort`
    pub port: u16,
    /// `encryptionKeyLifetime`; zero: keys are rotated on request only.
    #[serde(serialize_with = "as_go")]
    pub key_lifetime: Duration,
}

/// What becomes of forged frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Filter {
    /// There is no filter.
    Off,
    /// They are counted.
    Monitor,
    /// They are counted and dropped.
    Enforce,
}

impl Mode {
    /// kube-proxy's name.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Iptables => "iptables",
            Mode::Ipvs => "ipvs",
            Mode::Nftables => "nftables",
        }
    }
}

fn as_texts<S: Serializer>(
    addresses: &[NodePortAddress],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(addresses.iter().map(NodePortAddress::to_string))
}

fn as_go<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    let nanoseconds = i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
    serializer.serialize_str(&go::format_duration(nanoseconds))
}
