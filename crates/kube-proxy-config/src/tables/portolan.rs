//! The fields of `PortolanConfiguration`, the second document of the file, and the flags that set them.
//!
//! Flags of the overlay have flannel's names where flannel has one; kube-proxy has none of them.

use super::checks::{
    any, cidr_or_ip, device_name, ip, ipv4, ipv6, label_value, log_filter, port_range, prefix,
};
use crate::flag::{Flag, Target};
use crate::schema::{Field, Preset, Shape};

/// The group of Portolan's own document.
pub const PORTOLAN_GROUP: &str = "portolan.io";
/// The version of Portolan's own document.
pub const PORTOLAN_VERSION: &str = "v1alpha1";
/// The kind of Portolan's own document.
pub const PORTOLAN_KIND: &str = "PortolanConfiguration";

const SWITCH: Shape = Shape::Word(&["on", "off"]);
const TEXT: Shape = Shape::Text(any);
const EMPTY: Preset = Preset::Text("");

/// `PortolanConfiguration`. `null` means the default; zero values count where the field is marked as a pointer.
pub(crate) const PORTOLAN: &[Field] = &[
    Field::new("allowedExternalIPs", Shape::Texts(cidr_or_ip), Preset::Null).pointer(),
    Field::new("apiServerFrom", Shape::Lines(any), Preset::List).pointer(),
    Field::new("conntrack.tcpBeLiberal", Shape::Bool, Preset::Bool(true)).pointer(),
    Field::new(
        "failover",
        Shape::Word(&["on", "off", "endpoints"]),
        Preset::Text("on"),
    ),
    Field::new("logFormat", Shape::Word(&["text", "json"]), EMPTY),
    Field::new("logLevel", Shape::Text(log_filter), EMPTY),
    Field::new("manifests", TEXT, EMPTY),
    Field::new(
        "nodePortRange",
        Shape::Text(port_range),
        Preset::Text("30000-32767"),
    ),
    Field::new(
        "overlay.cache",
        TEXT,
        Preset::Text("/run/portolan/overlay-peers.json"),
    )
    .pointer(),
    Field::new("overlay.cniBinDir", TEXT, Preset::Text("/opt/cni/bin")).pointer(),
    Field::new("overlay.cniConf", TEXT, EMPTY),
    Field::new(
        "overlay.device",
        Shape::Text(device_name),
        Preset::Text("flannel"),
    ),
    Field::new(
        "overlay.encryption",
        Shape::Word(&["off", "prefer", "require"]),
        Preset::Text("off"),
    ),
    Field::new(
        "overlay.encryptionKeyFile",
        TEXT,
        Preset::Text("/var/lib/portolan-encryption/keys.json"),
    ),
    Field::new(
        "overlay.encryptionKeyLifetime",
        Shape::Duration(0),
        Preset::Seconds(0),
    )
    .pointer(),
    Field::new(
        "overlay.encryptionPort",
        Shape::Int(1, 65_534),
        Preset::Int(51_820),
    ),
    Field::new(
        "overlay.filter",
        Shape::Word(&["off", "monitor", "enforce"]),
        Preset::Text("enforce"),
    ),
    Field::new("overlay.iface", Shape::Texts(any), Preset::List).pointer(),
    Field::new("overlay.ifaceCanReach", Shape::Text(ip), EMPTY),
    Field::new("overlay.ifaceRegex", Shape::Lines(any), Preset::List).pointer(),
    Field::new("overlay.ipBlackholeRoute", Shape::Bool, Preset::Bool(false)),
    Field::new("overlay.ipMasq", Shape::Bool, Preset::Bool(false)),
    Field::new(
        "overlay.kubeAnnotationPrefix",
        Shape::Text(prefix),
        Preset::Text("flannel.alpha.coreos.com"),
    ),
    Field::new("overlay.netConfigPath", TEXT, EMPTY),
    Field::new(
        "overlay.nexthopObjectsAbove",
        Shape::Int(0, u32::MAX as i64),
        Preset::Int(1000),
    )
    .pointer(),
    Field::new("overlay.podMTU", Shape::Int(0, 65_535), Preset::Int(0)),
    Field::new(
        "overlay.probeInterval",
        Shape::Duration(1_000_000),
        Preset::Seconds(10),
    ),
    Field::new(
        "overlay.probePort",
        Shape::Int(0, 65_535),
        Preset::Int(8473),
    )
    .pointer(),
    Field::new("overlay.publicIP", Shape::Text(ipv4), EMPTY),
    Field::new("overlay.publicIPv6", Shape::Text(ipv6), EMPTY),
    Field::new(
        "overlay.setNodeNetworkUnavailable",
        Shape::Bool,
        Preset::Bool(true),
    )
    .pointer(),
    Field::new(
        "overlay.subnetFile",
        TEXT,
        Preset::Text("/run/flannel/subnet.env"),
    )
    .pointer(),
    Field::new(
        "overlay.type",
        Shape::Word(&["none", "vxlan"]),
        Preset::Text("none"),
    ),
    Field::new("page", SWITCH, Preset::Text("on")),
    Field::new("serviceProxy", SWITCH, Preset::Text("on")),
    Field::new("serviceProxyName", Shape::Text(label_value), EMPTY),
    Field::new("serviceTraffic", SWITCH, Preset::Text("off")),
    Field::new("tableOwner", Shape::Bool, Preset::Bool(true)).pointer(),
    Field::new("takeOverKubeProxy", Shape::Bool, Preset::Null).pointer(),
    Field::new("withoutFeatures", Shape::Texts(any), Preset::List),
];

const fn own(name: &'static str, path: &'static str) -> Flag {
    Flag::new(name, Target::Own(path))
}

/// Portolan's own flags, accepted under every name of the program.
pub(crate) const FLAGS: &[Flag] = &[
    own("allowed-external-ips", "allowedExternalIPs"),
    own("api-server-from", "apiServerFrom"),
    own("cni-bin-dir", "overlay.cniBinDir"),
    own("cni-conf", "overlay.cniConf"),
    own("failover", "failover"),
    own("iface", "overlay.iface").env("FLANNELD_IFACE"),
    own("iface-can-reach", "overlay.ifaceCanReach").env("FLANNELD_IFACE_CAN_REACH"),
    own("iface-regex", "overlay.ifaceRegex").env("FLANNELD_IFACE_REGEX"),
    own("ip-blackhole-route", "overlay.ipBlackholeRoute").env("FLANNELD_IP_BLACKHOLE_ROUTE"),
    own("ip-masq", "overlay.ipMasq").env("FLANNELD_IP_MASQ"),
    own("kube-annotation-prefix", "overlay.kubeAnnotationPrefix")
        .env("FLANNELD_KUBE_ANNOTATION_PREFIX"),
    own("log-format", "logFormat"),
    own("log-level", "logLevel").env("PORTOLAN_LOG"),
    own("manifests", "manifests"),
    own("net-config-path", "overlay.netConfigPath").env("FLANNELD_NET_CONFIG_PATH"),
    own("nexthop-objects-above", "overlay.nexthopObjectsAbove"),
    own("no-table-owner", "tableOwner").inverted(),
    own("node-port-range", "nodePortRange"),
    own("overlay", "overlay.type").env("PORTOLAN_OVERLAY"),
    own("overlay-cache", "overlay.cache"),
    own("overlay-device", "overlay.device"),
    own("overlay-encryption", "overlay.encryption"),
    own("overlay-encryption-key-file", "overlay.encryptionKeyFile"),
    own(
        "overlay-encryption-key-lifetime",
        "overlay.encryptionKeyLifetime",
    ),
    own("overlay-encryption-port", "overlay.encryptionPort"),
    own("overlay-filter", "overlay.filter"),
    own("overlay-probe-interval", "overlay.probeInterval"),
    own("overlay-probe-port", "overlay.probePort"),
    own("page", "page"),
    own("pod-mtu", "overlay.podMTU"),
    own("public-ip", "overlay.publicIP").env("FLANNELD_PUBLIC_IP"),
    own("public-ipv6", "overlay.publicIPv6").env("FLANNELD_PUBLIC_IPV6"),
    own("service-proxy", "serviceProxy"),
    own("service-proxy-name", "serviceProxyName"),
    own("service-traffic", "serviceTraffic"),
    own(
        "set-node-network-unavailable",
        "overlay.setNodeNetworkUnavailable",
    )
    .env("FLANNELD_SET_NODE_NETWORK_UNAVAILABLE"),
    own("subnet-file", "overlay.subnetFile").env("FLANNELD_SUBNET_FILE"),
    own("table-owner", "tableOwner"),
    own("take-over-kube-proxy", "takeOverKubeProxy"),
    own("without-features", "withoutFeatures"),
];
