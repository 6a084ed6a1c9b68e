//! The fields of `KubeProxyConfiguration` (`kubeproxy.config.k8s.io/v1alpha1`) as of Kubernetes 1.37, and what the
//! command line alone can say.
//!
//! Sources: types.go of k8s.io/kube-proxy/config/v1alpha1, defaults.go and validation.go of pkg/proxy/apis/config, the
//! types of component-base's `config/v1alpha1` and `logs/api/v1`. Order: as Go writes them, by name.

use super::checks::{any, cidr, hidden_version, ip, listener, node_port_address, quantity, server};
use crate::schema::{Field, Preset, Shape};

const INT32: i64 = i32::MAX as i64;
const COUNT: Shape = Shape::Int(0, INT32);
const BIT: Shape = Shape::Int(0, 31);
const TIME: Shape = Shape::Duration(0);
const TEXT: Shape = Shape::Text(any);
const NO: Preset = Preset::Bool(false);
const EMPTY: Preset = Preset::Text("");
const ZERO: Preset = Preset::Seconds(0);

/// `mode`; Windows' `kernelspace` is refused.
pub(crate) const MODES: &[&str] = &["iptables", "ipvs", "nftables"];
/// `detectLocalMode`
pub(crate) const LOCAL_MODES: &[&str] = &[
    "ClusterCIDR",
    "NodeCIDR",
    "BridgeInterface",
    "InterfaceNamePrefix",
];

/// `KubeProxyConfiguration`
pub(crate) const KUBE_PROXY: &[Field] = &[
    Field::new("bindAddress", Shape::Text(ip), Preset::Text("0.0.0.0")),
    Field::new("bindAddressHardFail", Shape::Bool, NO),
    Field::new("clientConnection.acceptContentTypes", TEXT, EMPTY).unused(),
    Field::new("clientConnection.burst", COUNT, Preset::Int(10)).unused(),
    Field::new(
        "clientConnection.contentType",
        TEXT,
        Preset::Text("application/vnd.kubernetes.protobuf"),
    )
    .unused(),
    Field::new("clientConnection.kubeconfig", TEXT, EMPTY),
    Field::new("clientConnection.qps", Shape::Float, Preset::Float(5.0)).unused(),
    Field::new("clusterCIDR", TEXT, EMPTY),
    Field::new("configSyncPeriod", Shape::Duration(1), Preset::Seconds(900)).unused(),
    Field::new("conntrack.maxPerCore", COUNT, Preset::Int(32_768)).pointer(),
    Field::new("conntrack.min", COUNT, Preset::Int(131_072)).pointer(),
    Field::new("conntrack.tcpBeLiberal", Shape::Bool, NO),
    Field::new(
        "conntrack.tcpCloseWaitTimeout",
        TIME,
        Preset::Seconds(3_600),
    )
    .pointer(),
    Field::new(
        "conntrack.tcpEstablishedTimeout",
        TIME,
        Preset::Seconds(86_400),
    )
    .pointer(),
    Field::new("conntrack.udpStreamTimeout", TIME, ZERO),
    Field::new("conntrack.udpTimeout", TIME, ZERO),
    Field::new("detectLocal.bridgeInterface", TEXT, EMPTY),
    Field::new("detectLocal.interfaceNamePrefix", TEXT, EMPTY),
    Field::new(
        "detectLocalMode",
        Shape::Word(LOCAL_MODES),
        Preset::Text("ClusterCIDR"),
    ),
    Field::new("enableProfiling", Shape::Bool, NO),
    Field::new("featureGates", Shape::Gates, Preset::Map).omit_empty(),
    Field::new("healthzBindAddress", Shape::Text(listener), EMPTY),
    Field::new("hostnameOverride", TEXT, EMPTY),
    Field::new(
        "iptables.localhostNodePorts",
        Shape::Bool,
        Preset::Bool(true),
    )
    .pointer(),
    Field::new("iptables.masqueradeAll", Shape::Bool, NO),
    Field::new("iptables.masqueradeBit", BIT, Preset::Int(14))
        .pointer()
        .unused(),
    Field::new("iptables.minSyncPeriod", TIME, Preset::Seconds(1)).unused(),
    Field::new(
        "iptables.syncPeriod",
        Shape::Duration(1),
        Preset::Seconds(30),
    )
    .unused(),
    Field::new("ipvs.excludeCIDRs", Shape::Texts(cidr), Preset::Null),
    Field::new("ipvs.minSyncPeriod", TIME, ZERO).unused(),
    Field::new("ipvs.scheduler", TEXT, EMPTY).unused(),
    Field::new("ipvs.strictARP", Shape::Bool, NO).unused(),
    Field::new("ipvs.syncPeriod", Shape::Duration(1), Preset::Seconds(30)).unused(),
    Field::new("ipvs.tcpFinTimeout", TIME, ZERO).unused(),
    Field::new("ipvs.tcpTimeout", TIME, ZERO).unused(),
    Field::new("ipvs.udpTimeout", TIME, ZERO).unused(),
    Field::new(
        "logging.flushFrequency",
        Shape::Nanoseconds,
        Preset::Seconds(5),
    )
    .unused(),
    Field::new(
        "logging.format",
        Shape::Word(&["text", "json"]),
        Preset::Text("text"),
    ),
    Field::new(
        "logging.options.json.infoBufferSize",
        Shape::Text(quantity),
        Preset::Text("0"),
    )
    .unused(),
    Field::new("logging.options.json.splitStream", Shape::Bool, NO)
        .unused()
        .omit_empty(),
    Field::new(
        "logging.options.text.infoBufferSize",
        Shape::Text(quantity),
        Preset::Text("0"),
    )
    .unused(),
    Field::new("logging.options.text.splitStream", Shape::Bool, NO)
        .unused()
        .omit_empty(),
    Field::new("logging.verbosity", Shape::Level, Preset::Int(0)),
    Field::new("logging.vmodule", Shape::Rules, Preset::List)
        .unused()
        .omit_empty(),
    Field::new("metricsBindAddress", Shape::Text(listener), EMPTY),
    Field::new("mode", Shape::Word(MODES), EMPTY),
    Field::new("nftables.masqueradeAll", Shape::Bool, NO),
    Field::new("nftables.masqueradeBit", BIT, Preset::Int(14))
        .pointer()
        .unused(),
    Field::new("nftables.minSyncPeriod", TIME, Preset::Seconds(1)).unused(),
    Field::new(
        "nftables.syncPeriod",
        Shape::Duration(1),
        Preset::Seconds(30),
    )
    .unused(),
    Field::new(
        "nodePortAddresses",
        Shape::Texts(node_port_address),
        Preset::Null,
    ),
    Field::new("oomScoreAdj", Shape::Int(-1000, 1000), Preset::Int(-999)).pointer(),
    Field::new("portRange", TEXT, EMPTY).unused(),
    Field::new(
        "showHiddenMetricsForVersion",
        Shape::Text(hidden_version),
        EMPTY,
    )
    .unused(),
    Field::new("windowsRunAsService", Shape::Bool, NO)
        .unused()
        .omit_empty(),
    Field::new("winkernel.enableDSR", Shape::Bool, NO).unused(),
    Field::new("winkernel.forwardHealthCheckVip", Shape::Bool, NO).unused(),
    Field::new("winkernel.networkName", TEXT, EMPTY).unused(),
    Field::new("winkernel.rootHnsEndpointName", TEXT, EMPTY).unused(),
    Field::new("winkernel.sourceVip", TEXT, EMPTY).unused(),
];

/// What the command line alone can say; no file has these.
pub(crate) const COMMAND: &[Field] = &[
    Field::new("cleanup", Shape::Bool, NO),
    Field::new("config", TEXT, EMPTY),
    Field::new("healthzIp", Shape::Text(ip), Preset::Text("0.0.0.0")),
    Field::new("healthzPort", Shape::Int(0, 65_535), Preset::Int(10_256)),
    Field::new("help", Shape::Bool, NO),
    Field::new("inert.bool", Shape::Bool, NO).unused(),
    Field::new(
        "inert.number",
        Shape::Int(i64::MIN, i64::MAX),
        Preset::Int(0),
    )
    .unused(),
    Field::new("inert.text", TEXT, EMPTY).unused(),
    Field::new("initOnly", Shape::Bool, NO),
    Field::new("kubeSubnetManager", Shape::Bool, NO),
    Field::new("leaseMargin", Shape::Int(1, 1_439), Preset::Int(60)).unused(),
    Field::new("masqueradeAll", Shape::Bool, Preset::Null),
    Field::new("master", Shape::Text(server), EMPTY),
    Field::new("metricsPort", Shape::Int(0, 65_535), Preset::Int(10_249)),
    Field::new("version", TEXT, EMPTY),
    Field::new("writeConfigTo", TEXT, EMPTY),
];
