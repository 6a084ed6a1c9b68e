//! kube-proxy's flags: all of 1.37's, the hidden and deprecated ones, cadvisor's, and those of klog that k3s passes.
//!
//! Sources: `Options.AddFlags` in cmd/kube-proxy/app/options.go, `AddFlags` of component-base's `logs/api/v1`, klog's
//! `InitFlags`, cadvisor's machine package. The shape of a flag is that of its field.

use crate::flag::{Flag, Target};

const fn proxy(name: &'static str, path: &'static str) -> Flag {
    Flag::new(name, Target::Proxy(path))
}

pub(crate) const fn command(name: &'static str, path: &'static str) -> Flag {
    Flag::new(name, Target::Command(path))
}

const INERT_BOOL: &str = "inert.bool";
const INERT_NUMBER: &str = "inert.number";
const INERT_TEXT: &str = "inert.text";

/// kube-proxy's flags.
pub(crate) const FLAGS: &[Flag] = &[
    command("cleanup", "cleanup"),
    command("config", "config"),
    command("healthz-port", "healthzPort").deprecated("--healthz-bind-address"),
    command("help", "help"),
    command("init-only", "initOnly"),
    command("masquerade-all", "masqueradeAll"),
    command("master", "master"),
    command("metrics-port", "metricsPort").deprecated("--metrics-bind-address"),
    command("version", "version"),
    command("write-config-to", "writeConfigTo"),
    proxy("bind-address", "bindAddress"),
    proxy("bind-address-hard-fail", "bindAddressHardFail"),
    proxy("cluster-cidr", "clusterCIDR"),
    proxy("config-sync-period", "configSyncPeriod"),
    proxy("conntrack-max-per-core", "conntrack.maxPerCore"),
    proxy("conntrack-min", "conntrack.min"),
    proxy("conntrack-tcp-be-liberal", "conntrack.tcpBeLiberal"),
    proxy(
        "conntrack-tcp-timeout-close-wait",
        "conntrack.tcpCloseWaitTimeout",
    ),
    proxy(
        "conntrack-tcp-timeout-established",
        "conntrack.tcpEstablishedTimeout",
    ),
    proxy("conntrack-udp-timeout", "conntrack.udpTimeout"),
    proxy("conntrack-udp-timeout-stream", "conntrack.udpStreamTimeout"),
    proxy("detect-local-mode", "detectLocalMode"),
    proxy("feature-gates", "featureGates"),
    proxy("healthz-bind-address", "healthzBindAddress"),
    proxy("hostname-override", "hostnameOverride").env("NODE_NAME"),
    proxy(
        "iptables-localhost-nodeports",
        "iptables.localhostNodePorts",
    ),
    proxy("iptables-masquerade-bit", "iptables.masqueradeBit"),
    proxy("iptables-min-sync-period", "iptables.minSyncPeriod"),
    proxy("iptables-sync-period", "iptables.syncPeriod"),
    proxy("ipvs-exclude-cidrs", "ipvs.excludeCIDRs"),
    proxy("ipvs-min-sync-period", "ipvs.minSyncPeriod"),
    proxy("ipvs-scheduler", "ipvs.scheduler"),
    proxy("ipvs-strict-arp", "ipvs.strictARP"),
    proxy("ipvs-sync-period", "ipvs.syncPeriod"),
    proxy("ipvs-tcp-timeout", "ipvs.tcpTimeout"),
    proxy("ipvs-tcpfin-timeout", "ipvs.tcpFinTimeout"),
    proxy("ipvs-udp-timeout", "ipvs.udpTimeout"),
    proxy("kube-api-burst", "clientConnection.burst"),
    proxy("kube-api-content-type", "clientConnection.contentType"),
    proxy("kube-api-qps", "clientConnection.qps"),
    proxy("kubeconfig", "clientConnection.kubeconfig"),
    proxy("log-flush-frequency", "logging.flushFrequency"),
    proxy(
        "log-json-info-buffer-size",
        "logging.options.json.infoBufferSize",
    ),
    proxy("log-json-split-stream", "logging.options.json.splitStream"),
    proxy(
        "log-text-info-buffer-size",
        "logging.options.text.infoBufferSize",
    ),
    proxy("log-text-split-stream", "logging.options.text.splitStream"),
    proxy("logging-format", "logging.format"),
    proxy("metrics-bind-address", "metricsBindAddress"),
    proxy("nodeport-addresses", "nodePortAddresses"),
    proxy("oom-score-adj", "oomScoreAdj"),
    proxy("pod-bridge-interface", "detectLocal.bridgeInterface"),
    proxy(
        "pod-interface-name-prefix",
        "detectLocal.interfaceNamePrefix",
    ),
    proxy("profiling", "enableProfiling"),
    proxy("proxy-mode", "mode"),
    proxy(
        "show-hidden-metrics-for-version",
        "showHiddenMetricsForVersion",
    ),
    proxy("v", "logging.verbosity"),
    proxy("vmodule", "logging.vmodule"),
    // cadvisor's.
    command("boot-id-file", INERT_TEXT),
    command("machine-id-file", INERT_TEXT),
    // klog's, which Kubernetes took away in 1.26 and k3s has kept.
    command("add-dir-header", INERT_BOOL),
    command("alsologtostderr", INERT_BOOL),
    command("alsologtostderrthreshold", INERT_TEXT),
    command("legacy-stderr-threshold-behavior", INERT_BOOL),
    command("log-backtrace-at", INERT_TEXT),
    command("log-dir", INERT_TEXT),
    command("log-file", INERT_TEXT),
    command("log-file-max-size", INERT_NUMBER),
    command("logtostderr", INERT_BOOL),
    command("one-output", INERT_BOOL),
    command("skip-headers", INERT_BOOL),
    command("skip-log-headers", INERT_BOOL),
    command("stderrthreshold", INERT_TEXT),
];
