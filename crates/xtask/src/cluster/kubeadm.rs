//! kubeadm's configuration, and its runs.

use std::fs;

use anyhow::Result;

use super::node::run_in;
use super::parts::ServiceProxy;
use super::place::Node;
use super::programs::Programs;

/// Both families; flannel's usual network for IPv4, which `deploy/` has too.
pub(super) const POD_CIDRS: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/56"];
const SERVICE_CIDRS: [&str; 2] = ["10.96.0.0/16", "fd00:10:96::/112"];

/// Nobody but the nodes of one cluster can reach the API server that takes it.
const TOKEN: &str = "portol.0123456789abcdef";

/// The flags that a machine like this needs: no init system, swap, no pulling.
const IGNORE: &str = "--ignore-preflight-errors=all";

/// The first node: certificates, control plane, addons.
pub(super) fn init(node: &Node, programs: &Programs, proxy: ServiceProxy) -> Result<()> {
    let path = node.folder.join("etc/kubernetes/kubeadm.yaml");
    // Without kube-proxy nothing reads its mode.
    let mode = proxy.mode().unwrap_or("nftables");
    fs::write(&path, configuration(node, &programs.version()?, mode))?;
    let config = "--config=/etc/kubernetes/kubeadm.yaml";
    let mut command = vec!["kubeadm", "init", config, IGNORE];
    if proxy.mode().is_none() {
        command.push("--skip-phases=addon/kube-proxy");
    }
    run_in(node, &command)
}

/// One more node.
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
localStorageCapacityIsolation: false
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

/// Every image is there already, and every node takes pods.
fn registration(node: &Node) -> String {
    format!(
        "{{name: {}, criSocket: \"unix:///run/containerd/containerd.sock\", taints: [], imagePullPolicy: Never}}",
        node.name()
    )
}

/// Longer than kubeadm's own: this machine may be busy.
const TIMEOUTS: &str = "{controlPlaneComponentHealthCheck: 8m, kubeletHealthCheck: 4m, kubernetesAPICall: 4m, \
                        tlsBootstrap: 5m, discovery: 5m}";
