//! What is applied to a cluster after kubeadm: Portolan from `deploy/`, or flannel.
//!
//! Invariant: of the manifests in `deploy/` nothing changes but their ConfigMap, and there only what a guide tells its reader to set: the
//! pod CIDRs of this cluster, and that the limit of conntrack entries belongs to somebody else.

use std::fs;

use anyhow::{Context, Result, ensure};

use super::images::FLANNEL;
use super::kubeadm::POD_CIDRS;
use super::node::run_in;
use super::parts::{Overlay, ServiceProxy, folder};
use super::place::Node;
use crate::run::{output, root};

/// Applies the manifests, by kubectl on the first node.
pub(super) fn apply(first: &Node, proxy: ServiceProxy, overlay: Overlay) -> Result<()> {
    if let Some(folder) = folder(proxy, overlay) {
        let path = root()?.join("deploy").join(folder).join("portolan.yaml");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let text = adapted(&text).with_context(|| format!("adapt {}", path.display()))?;
        apply_text(first, "portolan", &text)?;
    }
    if overlay == Overlay::Flannel {
        apply_text(first, "flannel", &flannel())?;
    }
    Ok(())
}

/// Waits until nodes are ready and what was applied runs; an error shows the pods.
pub(super) fn wait(first: &Node, proxy: ServiceProxy, overlay: Overlay) -> Result<()> {
    wait_for_all(first, proxy, overlay).or_else(|error| {
        let mut pods = first.command("kubectl")?;
        let pods = output(pods.args(["get", "pods", "--all-namespaces"]))?;
        Err(error.context(String::from_utf8_lossy(&pods).into_owned()))
    })
}

fn wait_for_all(first: &Node, proxy: ServiceProxy, overlay: Overlay) -> Result<()> {
    let ready = "--for=condition=Ready";
    run_in(
        first,
        &["kubectl", "wait", ready, "nodes", "--all", "--timeout=300s"],
    )?;
    let mut sets = Vec::new();
    sets.extend(folder(proxy, overlay).map(|_| "ds/portolan"));
    sets.extend((proxy == ServiceProxy::KubeProxy).then_some("ds/kube-proxy"));
    sets.extend((overlay == Overlay::Flannel).then_some("ds/flannel"));
    for set in sets {
        let status = ["rollout", "status", set, "--timeout=300s"];
        let kubectl = ["kubectl", "-n", "kube-system"];
        run_in(first, &[&kubectl[..], &status[..]].concat())?;
    }
    Ok(())
}

fn apply_text(first: &Node, name: &str, text: &str) -> Result<()> {
    let path = format!("etc/kubernetes/{name}.yaml");
    fs::write(first.folder.join(&path), text)?;
    run_in(first, &["kubectl", "apply", "-f", &format!("/{path}")])
}

/// The manifests with the settings of this cluster in their ConfigMap.
fn adapted(manifests: &str) -> Result<String> {
    let first_line = "    apiVersion: kubeproxy.config.k8s.io/v1alpha1\n";
    ensure!(
        manifests.matches(first_line).count() == 1,
        "no KubeProxyConfiguration"
    );
    let conntrack = format!("{first_line}    conntrack: {{maxPerCore: 0}}\n");
    let [v4, _] = POD_CIDRS;
    Ok(manifests.replace(first_line, &conntrack).replace(
        &format!("clusterCIDR: {v4}\n"),
        &format!("clusterCIDR: {}\n", POD_CIDRS.join(",")),
    ))
}

/// flannel as its own manifest has it, without its init containers: plugins are there, and a file is written by hand.
fn flannel() -> String {
    let [v4, v6] = POD_CIDRS;
    format!(
        r#"apiVersion: v1
kind: ServiceAccount
metadata: {{name: flannel, namespace: kube-system}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {{name: flannel}}
rules:
- {{apiGroups: [""], resources: [pods], verbs: [get]}}
- {{apiGroups: [""], resources: [nodes], verbs: [get, list, watch]}}
- {{apiGroups: [""], resources: [nodes/status], verbs: [patch]}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: flannel}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: flannel}}
subjects: [{{kind: ServiceAccount, name: flannel, namespace: kube-system}}]
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: kube-flannel-cfg, namespace: kube-system}}
data:
  cni-conf.json: |
    {{"name": "cbr0", "cniVersion": "0.3.1", "plugins": [
      {{"type": "bridge", "bridge": "cni0", "mtu": 1450, "isGateway": true, "isDefaultGateway": true, "hairpinMode": true, "ipMasq": false, "ipam": {{"type": "host-local"}}}},
      {{"type": "portmap", "capabilities": {{"portMappings": true}}}}]}}
  net-conf.json: |
    {{"Network": "{v4}", "EnableIPv6": true, "IPv6Network": "{v6}", "EnableNFTables": true, "Backend": {{"Type": "vxlan"}}}}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {{name: flannel, namespace: kube-system}}
spec:
  selector: {{matchLabels: {{app: flannel}}}}
  template:
    metadata: {{labels: {{app: flannel}}}}
    spec:
      hostNetwork: true
      priorityClassName: system-node-critical
      serviceAccountName: flannel
      tolerations: [{{operator: Exists}}]
      containers:
      - name: flannel
        image: {FLANNEL}
        imagePullPolicy: Never
        args: [--ip-masq, --kube-subnet-mgr]
        securityContext: {{privileged: true}}
        env:
        - {{name: KUBERNETES_SERVICE_HOST, value: 192.168.88.1}}
        - {{name: KUBERNETES_SERVICE_PORT, value: "6443"}}
        - {{name: POD_NAME, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}
        - {{name: POD_NAMESPACE, valueFrom: {{fieldRef: {{fieldPath: metadata.namespace}}}}}}
        volumeMounts:
        - {{name: run, mountPath: /run/flannel}}
        - {{name: config, mountPath: /etc/kube-flannel}}
      volumes:
      - {{name: run, hostPath: {{path: /run/flannel, type: DirectoryOrCreate}}}}
      - {{name: config, configMap: {{name: kube-flannel-cfg}}}}
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_manifest_gets_the_pod_cidrs_of_the_cluster() -> Result<()> {
        for folder in ["proxy", "proxy-and-overlay", "overlay-only"] {
            let path = root()?.join("deploy").join(folder).join("portolan.yaml");
            let text = adapted(&fs::read_to_string(path)?)?;
            assert!(
                text.contains("    conntrack: {maxPerCore: 0}\n"),
                "{folder}"
            );
            // The proxy alone asks its Node.
            let cidrs = match folder {
                "proxy" => "detectLocalMode: NodeCIDR",
                _ => "clusterCIDR: 10.244.0.0/16,fd00:10:244::/56\n",
            };
            assert!(text.contains(cidrs), "{folder}");
        }
        Ok(())
    }
}
