//! flanneld's flags and variables, as of flannel 0.28.
//!
//! Sources: `init` in flannel's main.go, and `SetFlagsFromEnv` of coreos/pkg/flagutil: a flag that is not given takes
//! its value from `FLANNELD_` and its name in capitals, an empty variable is none, and a variable with a wrong value is
//! reported and ignored. Flags that Portolan has under the same name are in [`super::portolan`].

use super::flags::command;
use crate::flag::{Flag, Target};

const fn proxy(name: &'static str, path: &'static str) -> Flag {
    Flag::new(name, Target::Proxy(path))
}

/// flanneld's flags whose name or meaning is flanneld's alone.
pub(crate) const FLAGS: &[Flag] = &[
    command("healthz-ip", "healthzIp").env("FLANNELD_HEALTHZ_IP"),
    command("healthz-port", "healthzPort").env("FLANNELD_HEALTHZ_PORT"),
    command("help", "help"),
    command("kube-api-url", "master").env("FLANNELD_KUBE_API_URL"),
    proxy("kubeconfig-file", "clientConnection.kubeconfig").env("FLANNELD_KUBECONFIG_FILE"),
    command("kube-subnet-mgr", "kubeSubnetManager").env("FLANNELD_KUBE_SUBNET_MGR"),
    command("version", "version").env("FLANNELD_VERSION"),
    proxy("v", "logging.verbosity").env("FLANNELD_V"),
    proxy("vmodule", "logging.vmodule").env("FLANNELD_VMODULE"),
    command("log_backtrace_at", "inert.text").env("FLANNELD_LOG_BACKTRACE_AT"),
    // Rules are repaired when they change, masquerading keeps the port of a pod where it is free, Nodes are the only source of ranges.
    command("etcd-cafile", "inert.text").env("FLANNELD_ETCD_CAFILE"),
    command("etcd-certfile", "inert.text").env("FLANNELD_ETCD_CERTFILE"),
    command("etcd-endpoints", "inert.text").env("FLANNELD_ETCD_ENDPOINTS"),
    command("etcd-keyfile", "inert.text").env("FLANNELD_ETCD_KEYFILE"),
    command("etcd-password", "inert.text").env("FLANNELD_ETCD_PASSWORD"),
    command("etcd-prefix", "inert.text").env("FLANNELD_ETCD_PREFIX"),
    command("etcd-username", "inert.text").env("FLANNELD_ETCD_USERNAME"),
    command("ip-masq-fully-random-disable", "inert.bool")
        .env("FLANNELD_IP_MASQ_FULLY_RANDOM_DISABLE"),
    command("iptables-forward-rules", "inert.bool").env("FLANNELD_IPTABLES_FORWARD_RULES"),
    command("iptables-resync", "inert.number").env("FLANNELD_IPTABLES_RESYNC"),
    command("subnet-lease-renew-margin", "leaseMargin").env("FLANNELD_SUBNET_LEASE_RENEW_MARGIN"),
];

/// Those that today's `portolan run` accepts as well, so that flanneld's arguments can be moved there.
pub(crate) const ALSO_IN_RUN: &[&str] = &[
    "kubeconfig-file",
    "kube-subnet-mgr",
    "ip-masq-fully-random-disable",
    "iptables-forward-rules",
    "iptables-resync",
    "subnet-lease-renew-margin",
];
