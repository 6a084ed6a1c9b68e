//! Writes kubeadm's configuration, and runs kubeadm on a node.

use std::fs;

use anyhow::Result;

use super::node::run_in;
use super::parts::{LOCALHOST_NODE_PORTS, Parts};
use super::place::Node;
use super::programs::Programs;

/// Pod CIDRs of both families. The IPv4 one is flannel's default, as in `deploy/`.
pub(super) const POD_CIDRS: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/56"];
const SERVICE_CIDRS: [&str; 2] = ["10.96.0.0/16", "fd00:10:96::/112"];

/// Bootstrap token. It is no secret: only nodes of the cluster can reach the API server.
const TOKEN: &str = "portol.0123456789abcdef";

/// Skips kubeadm's checks of the machine, which fail without an init system, with swap, and without a registry.
const IGNORE: &str = "--ignore-preflight-errors=all";

/// Runs `kubeadm init` on the first node: certificates, control plane, addons.
pub(super) fn init(node: &Node, programs: &Programs, parts: Parts) -> Result<()> {
    let path = node.folder.join("etc/kubernetes/kubeadm.yaml");
    // Without kube-proxy nothing reads its mode.
    let mode = parts.proxy.mode().unwrap_or("nftables");
    let mut text = configuration(node, &programs.version()?, mode);
    if parts.localhost_node_ports {
        let line = format!("mode: {mode}\n");
        text = text.replace(
            &line,
            &format!("{line}{}\n", LOCALHOST_NODE_PORTS.join("\n")),
        );
    }
    fs::write(&path, text)?;
    let config = "--config=/etc/kubernetes/kubeadm.yaml";
    let mut command = vec!["kubeadm", "init", config, IGNORE];
    if parts.proxy.mode().is_none() {
        command.push("--skip-phases=addon/kube-proxy");
    }
    run_in(node, &command)
}

/// Runs `kubeadm join` on another node.
pub(super) fn join(node: &Node) -> Result<()> {
    let path = node.folder.join("etc/kubernetes/kubeadm.yaml");
    fs::write(&path, join_configuration(node))?;
    run_in(
        node,
        &[
            "kubeadm",
            "join",
            "--config=/etc/kubernetes/kubeadm.yaml",
            IGNORE,
        ],
    )
}

fn configuration(node: &Node, version: &str, mode: &str) -> String {
    let [address, _] = node.addresses();
    let (pods, services) = (POD_CIDRS.join(","), SERVICE_CIDRS.join(","));
    let (registration, timeouts) = (registration(node), TIMEOUTS);
    format!(
        r#"apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
bootstrapTokens: [{{token: {TOKEN}}}]
localAPIEndpoint: {{advertiseAddress: {address}, bindPort: 6443}}
nodeRegistration: {registration}
timeouts: {timeouts}
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
kubernetesVersion: {version}
networking: {{podSubnet: "{pods}", serviceSubnet: "{services}"}}
controlPlaneEndpoint: {address}:6443
etcd:
  local:
    # A cluster to try things does not outlive its machine, and an fsync for every write is half of the time to start.
    extraArgs: [{{name: unsafe-no-fsync, value: "true"}}]
---
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: {mode}
clusterCIDR: {pods}
# The limit belongs to the whole machine.
conntrack: {{maxPerCore: 0}}
---
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
resolvConf: /etc/kubernetes/resolv.conf
imageGCHighThresholdPercent: 100
evictionHard: {{imagefs.available: "0%", nodefs.available: "0%", nodefs.inodesFree: "0%"}}
enforceNodeAllocatable: []
"#
    )
}

fn join_configuration(node: &Node) -> String {
    let (registration, timeouts) = (registration(node), TIMEOUTS);
    format!(
        r#"apiVersion: kubeadm.k8s.io/v1beta4
kind: JoinConfiguration
discovery:
  bootstrapToken: {{apiServerEndpoint: "192.168.88.1:6443", token: {TOKEN}, unsafeSkipCAVerification: true}}
nodeRegistration: {registration}
timeouts: {timeouts}
"#
    )
}

/// Registration of a node that never pulls images and has no taint.
fn registration(node: &Node) -> String {
    format!(
        "{{name: {}, criSocket: \"unix:///run/containerd/containerd.sock\", taints: [], imagePullPolicy: Never}}",
        node.name()
    )
}

/// Longer time limits than kubeadm's defaults, for busy machines.
const TIMEOUTS: &str = "{controlPlaneComponentHealthCheck: 8m, kubeletHealthCheck: 4m, kubernetesAPICall: 4m, \
                        tlsBootstrap: 5m, discovery: 5m}";
