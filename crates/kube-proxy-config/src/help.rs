//! Help of the flags: one line a flag, in groups; defaults and variables come from the tables.
//!
//! Invariant (tested): every flag that has an effect is here once, every other one is listed as accepted without effect.

use std::fmt::Write as _;

use crate::command_line::{CommandLine, Dialect};
use crate::flag::Flag;
use crate::schema::Shape;
use crate::tables::{field_of, is_switch};

/// A flag, as a help text shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlagHelp {
    /// The name without its dashes.
    pub name: &'static str,
    /// The heading that the flag is under.
    pub group: &'static str,
    /// What the value is; empty for a flag that needs none.
    pub value: &'static str,
    /// What the flag does, with its variable and its default.
    pub text: String,
}

type Group = (
    &'static str,
    &'static [(&'static str, &'static str, &'static str)],
);

/// Heading, then name, value and text of each flag.
const GROUPS: &[Group] = &[
    (
        "Configuration",
        &[
            (
                "config",
                "FILE",
                "KubeProxyConfiguration, and a PortolanConfiguration after `---`; reloaded on change; flags win",
            ),
            (
                "write-config-to",
                "FILE",
                "Write the effective configuration to this file, then exit",
            ),
            ("init-only", "", "Set the conntrack sysctls, then exit"),
            (
                "cleanup",
                "",
                "Remove kube-proxy's rules, of any mode, then exit; breaks established IPVS connections",
            ),
            (
                "version",
                "",
                "Print the version, then exit; `raw` prints its parts",
            ),
            ("help", "", "Print this help, then exit"),
        ],
    ),
    (
        "Source",
        &[
            (
                "kubeconfig",
                "FILE",
                "Kubeconfig file of the API server [default: the pod's service account]",
            ),
            (
                "kubeconfig-file",
                "FILE",
                "Kubeconfig file of the API server; flanneld's name of --kubeconfig",
            ),
            (
                "master",
                "URL",
                "URL of the API server, instead of the kubeconfig's or the service account's",
            ),
            (
                "kube-api-url",
                "URL",
                "URL of the API server; flanneld's name of --master",
            ),
            (
                "api-server-from",
                "FILE",
                "Kubeconfig to take only server and CA from; repeat for several [default: the kubelet's]",
            ),
            (
                "manifests",
                "DIR",
                "Directory of manifests to serve instead of an API server's objects",
            ),
            (
                "node-port-range",
                "FIRST-LAST",
                "Range of the node ports that manifests may use",
            ),
            (
                "kube-subnet-mgr",
                "",
                "Take pod CIDRs from Node objects, as Portolan always does",
            ),
        ],
    ),
    (
        "Node",
        &[
            (
                "hostname-override",
                "NAME",
                "Name of this node's Node object [default: lower-cased host name]",
            ),
            (
                "bind-address",
                "IP",
                "Primary address of this node, unless a wildcard; its family is that of the listeners",
            ),
            (
                "cluster-cidr",
                "CIDR[,CIDR]",
                "Pod CIDRs of the cluster, at most one per IP family, such as 10.244.0.0/16,fd00:10:244::/56",
            ),
            (
                "detect-local-mode",
                "MODE",
                "Method to recognize local pods: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix",
            ),
            (
                "pod-bridge-interface",
                "NAME",
                "Bridge that local pods are attached to, for --detect-local-mode=BridgeInterface",
            ),
            (
                "pod-interface-name-prefix",
                "PREFIX",
                "Prefix of local pods' interface names, for --detect-local-mode=InterfaceNamePrefix",
            ),
            (
                "oom-score-adj",
                "NUMBER",
                "Set this process's oom_score_adj, from -1000 (never kill) to 1000",
            ),
        ],
    ),
    (
        "Services",
        &[
            (
                "service-proxy",
                "on|off",
                "Serve Services; off leaves them to another proxy [default: on; off as flanneld]",
            ),
            (
                "service-proxy-name",
                "NAME",
                "Serve Services whose label service.kubernetes.io/service-proxy-name has this value [default: without the label]",
            ),
            (
                "proxy-mode",
                "MODE",
                "Take the defaults of kube-proxy's iptables, ipvs or nftables mode",
            ),
            (
                "nodeport-addresses",
                "primary|all|localhost|CIDR[,...]",
                "Addresses that serve node ports [default: by mode; nftables: primary, ipvs: all, iptables: all and 127.0.0.1]",
            ),
            (
                "iptables-localhost-nodeports",
                "",
                "Serve node ports on 127.0.0.1 as well, in mode iptables",
            ),
            (
                "masquerade-all",
                "",
                "Masquerade all connections to cluster IPs",
            ),
            (
                "allowed-external-ips",
                "CIDR[,CIDR...]",
                "CIDRs that Services may use external IPs from; others are ignored with a warning [default: any that belong to no pod, other Node or cluster IP]",
            ),
            (
                "failover",
                "on|off",
                "Skip endpoints of nodes that answer no probe, while others are eligible",
            ),
            (
                "service-traffic",
                "on|off",
                "Count connections, packets and bytes of Services, from conntrack, for metrics",
            ),
            (
                "feature-gates",
                "NAME=BOOL[,...]",
                "kube-proxy's feature gates; only KubeProxyNFTablesLocalhostNodePorts has an effect",
            ),
        ],
    ),
    (
        "Table",
        &[
            (
                "table-owner",
                "",
                "Own the tables, so that a foreign flush does not remove them",
            ),
            (
                "no-table-owner",
                "",
                "Create tables that other programs may change too; Portolan repairs their changes",
            ),
            (
                "take-over-kube-proxy",
                "",
                "Remove kube-proxy's rules, of any mode, after the initial sync [default: true; false with --service-proxy-name]",
            ),
            (
                "ipvs-exclude-cidrs",
                "CIDR[,CIDR...]",
                "Accepted without effect: --cleanup removes only virtual servers at addresses of kube-ipvs0",
            ),
            (
                "without-features",
                "FEATURE[,FEATURE...]",
                "Kernel features to treat as absent, to exercise fallbacks",
            ),
        ],
    ),
    (
        "Connection tracking",
        &[
            (
                "conntrack-max-per-core",
                "NUMBER",
                "Set nf_conntrack_max per CPU core, --conntrack-min to 1,048,576 in total; 0 leaves it unchanged",
            ),
            (
                "conntrack-min",
                "NUMBER",
                "Minimum nf_conntrack_max, in entries",
            ),
            (
                "conntrack-tcp-timeout-established",
                "DURATION",
                "Conntrack timeout of idle established TCP connections; 0 leaves it unchanged",
            ),
            (
                "conntrack-tcp-timeout-close-wait",
                "DURATION",
                "Conntrack timeout of TCP connections in CLOSE_WAIT; 0 leaves it unchanged",
            ),
            (
                "conntrack-tcp-be-liberal",
                "",
                "Set nf_conntrack_tcp_be_liberal: translate out-of-window TCP packets; false leaves it unchanged [default: true]",
            ),
            (
                "conntrack-udp-timeout",
                "DURATION",
                "Conntrack timeout of unanswered UDP flows; 0 leaves it unchanged",
            ),
            (
                "conntrack-udp-timeout-stream",
                "DURATION",
                "Conntrack timeout of answered UDP flows; 0 leaves it unchanged",
            ),
        ],
    ),
    (
        "Ports",
        &[
            (
                "healthz-bind-address",
                "IP:PORT",
                "Address that serves /healthz, /livez and /readyz; empty to disable [default: 0.0.0.0:10256, both families]",
            ),
            (
                "metrics-bind-address",
                "IP:PORT",
                "Address that serves /metrics, /configz and /proxyMode; empty to disable [default: 127.0.0.1:10249]",
            ),
            (
                "page",
                "on|off",
                "Serve a page about this node at the metrics address, for clients of this node",
            ),
            (
                "healthz-ip",
                "IP",
                "Address that serves /healthz and /readyz",
            ),
            (
                "healthz-port",
                "PORT",
                "Port that serves /healthz and /readyz; 0 to disable [default: 10256; as flanneld 0]",
            ),
            (
                "metrics-port",
                "PORT",
                "Port of --metrics-bind-address; 0 to disable",
            ),
            (
                "profiling",
                "",
                "Let clients of this node set the log's verbosity by PUT /debug/flags/v at the metrics address",
            ),
            (
                "bind-address-hard-fail",
                "",
                "Exit when an address cannot be bound, instead of retrying",
            ),
        ],
    ),
    (
        "Overlay",
        &[
            (
                "overlay",
                "none|vxlan",
                "Carry packets between pods on different nodes; with vxlan, nodes may run flannel or Portolan",
            ),
            (
                "net-config-path",
                "FILE",
                "flannel's net-conf.json [default: /etc/kube-flannel/net-conf.json if it exists, else VNI 1 and port 8472]",
            ),
            (
                "overlay-device",
                "NAME",
                "Name prefix of the tunnel devices: NAME.VNI, and NAME-v6.VNI for IPv6",
            ),
            (
                "iface",
                "NAME|IP[,...]",
                "Interface to other nodes, by name or address; the first that exists is used",
            ),
            (
                "iface-regex",
                "REGEX",
                "Interface to other nodes, by a regular expression for its address or name",
            ),
            (
                "iface-can-reach",
                "IP",
                "Interface to other nodes: the one with the route to this address",
            ),
            ("public-ip", "IP", "IPv4 address that other nodes send to"),
            ("public-ipv6", "IP", "IPv6 address that other nodes send to"),
            (
                "subnet-file",
                "FILE",
                "File to write networks and MTU to for the CNI plugin; empty to write none",
            ),
            (
                "cni-bin-dir",
                "DIR",
                "Directory to look in for the plugins that --cni-conf needs; empty to not look",
            ),
            (
                "cni-conf",
                "FILE",
                "File to write a CNI configuration (bridge, host-local, portmap) to once the overlay is ready",
            ),
            (
                "ip-masq",
                "",
                "Masquerade traffic from pods to destinations outside the cluster",
            ),
            (
                "ip-blackhole-route",
                "",
                "Add a blackhole route for this node's pod CIDRs, so that traffic to unused pod IPs is dropped here",
            ),
            (
                "nexthop-objects-above",
                "PEERS",
                "Use kernel nexthop objects when there are more IPv4 peers than this",
            ),
            (
                "overlay-filter",
                "MODE",
                "Filter frames with forged source addresses: off, monitor (count) or enforce (drop)",
            ),
            (
                "overlay-encryption",
                "MODE",
                "Encrypt packets between nodes by WireGuard: off, prefer (where both nodes have a key) or require",
            ),
            (
                "overlay-encryption-port",
                "PORT",
                "UDP port of WireGuard; the next port is used while keys are rotated",
            ),
            (
                "overlay-encryption-key-file",
                "FILE",
                "File that keeps the private keys of this node",
            ),
            (
                "overlay-encryption-key-lifetime",
                "DURATION",
                "Time after which the key of this node is rotated; 0 to rotate on request only",
            ),
            (
                "pod-mtu",
                "BYTES",
                "Largest MTU of pods; 0 for what fits the network below",
            ),
            (
                "kube-annotation-prefix",
                "PREFIX",
                "Prefix of the node annotation keys",
            ),
            (
                "set-node-network-unavailable",
                "",
                "Set the condition NetworkUnavailable of this Node to False once the overlay is ready",
            ),
            (
                "overlay-probe-port",
                "PORT",
                "UDP and TCP port of the overlay probes, the same on all nodes; 0 to disable probing",
            ),
            (
                "overlay-probe-interval",
                "DURATION",
                "Time between two probe rounds",
            ),
            (
                "overlay-cache",
                "FILE",
                "File that keeps the peers for a restart without API server; empty to keep none",
            ),
        ],
    ),
    (
        "Logging",
        &[
            (
                "v",
                "NUMBER",
                "Verbosity: 0 to 3 info, 4 and 5 debug, 6 and more trace",
            ),
            (
                "log-level",
                "LEVEL",
                "Log level (error to trace), or a list by module such as info,portolan::control=debug [default: info]",
            ),
            (
                "log-format",
                "text|json",
                "Format of the log [default: text]",
            ),
            (
                "logging-format",
                "text|json",
                "Format of the log; kube-proxy's name of --log-format",
            ),
        ],
    ),
];

/// Longest line of the help, in characters, without variable and default.
const LONGEST: usize = 100;

/// The flags of a dialect that have an effect, in the order of the help.
pub fn flags(dialect: Dialect) -> Vec<FlagHelp> {
    let known: Vec<&'static Flag> = CommandLine::flags_of(dialect).collect();
    let find = |name: &str| known.iter().find(|flag| flag.name == name);
    let mut found = Vec::new();
    for (group, rows) in GROUPS {
        for (name, value, text) in *rows {
            if let Some(flag) = find(name) {
                found.push(FlagHelp {
                    name: flag.name,
                    group,
                    value,
                    text: described(flag, text),
                });
            }
        }
    }
    found
}

/// The help of all flags of a dialect, in groups.
pub fn text(dialect: Dialect) -> String {
    let mut text = String::new();
    let mut group = "";
    for flag in flags(dialect) {
        if flag.group != group {
            group = flag.group;
            let _ = writeln!(text, "\n{group}:");
        }
        let dashes = match flag.name.len() {
            1 => "  -",
            _ => "      --",
        };
        let _ = match flag.value {
            "" => writeln!(text, "{dashes}{}", flag.name),
            value => writeln!(text, "{dashes}{} <{value}>", flag.name),
        };
        let _ = writeln!(text, "          {}", flag.text);
    }
    text.push_str("\nAccepted without effect:\n");
    let mut line = String::new();
    for name in without_effect(dialect) {
        if line.len() + 1 + name.len() > LONGEST {
            let _ = writeln!(text, " {line}");
            line.clear();
        }
        let _ = write!(line, " {name}");
    }
    let _ = writeln!(text, " {line}");
    text
}

/// Flags that are accepted and that nothing follows from.
pub(crate) fn without_effect(dialect: Dialect) -> Vec<String> {
    let shown = flags(dialect);
    let mut names: Vec<String> = CommandLine::flags_of(dialect)
        .filter(|flag| !shown.iter().any(|help| help.name == flag.name))
        .map(|flag| format!("--{}", flag.name))
        .collect();
    names.dedup();
    names
}

fn described(flag: &Flag, text: &str) -> String {
    let mut text = text.to_owned();
    if let Some(name) = flag.env {
        let _ = write!(text, " [env: {name}]");
    }
    let default = field_of(flag).map(|field| match (flag.inverted, field.shape) {
        (true, _) => "false".to_owned(),
        (false, Shape::Texts(_) | Shape::Lines(_) | Shape::Gates) => String::new(),
        (false, _) => field.default().describe(),
    });
    let default = default.filter(|default| !default.is_empty() && default != "null");
    let is_obvious = is_switch(flag) && default.as_deref() == Some("false");
    if let Some(default) = default.filter(|_| !is_obvious && !text.contains("[default:")) {
        let _ = write!(text, " [default: {default}]");
    }
    text
}

#[cfg(test)]
mod tests;
