//! What is applied to a cluster after kubeadm: Portolan from `deploy/`.
//!
//! Invariant: of the manifests in `deploy/` nothing changes but their ConfigMap, and there only what a guide tells its reader to set: the
//! pod CIDRs of this cluster, and that the limit of conntrack entries belongs to somebody else.

use std::fs;

use anyhow::{Context, Result, ensure};

use super::kubeadm::POD_CIDRS;
use super::node::run_in;
use super::parts::{ServiceProxy, folder};
use super::place::Node;
use crate::run::{output, root};

/// Applies the manifests, by kubectl on the first node.
pub(super) fn apply(first: &Node, proxy: ServiceProxy) -> Result<()> {
    let folder = folder(proxy);
    let path = root()?.join("deploy").join(folder).join("portolan.yaml");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let text = adapted(&text).with_context(|| format!("adapt {}", path.display()))?;
    apply_text(first, "portolan", &text)
}

/// Waits until nodes are ready and what was applied runs; an error shows the pods.
pub(super) fn wait(first: &Node, proxy: ServiceProxy) -> Result<()> {
    wait_for_all(first, proxy).or_else(|error| {
        let mut pods = first.command("kubectl")?;
        let pods = output(pods.args(["get", "pods", "--all-namespaces"]))?;
        Err(error.context(String::from_utf8_lossy(&pods).into_owned()))
    })
}

fn wait_for_all(first: &Node, proxy: ServiceProxy) -> Result<()> {
    let ready = "--for=condition=Ready";
    run_in(
        first,
        &["kubectl", "wait", ready, "nodes", "--all", "--timeout=300s"],
    )?;
    let mut sets = vec!["ds/portolan"];
    sets.extend((proxy == ServiceProxy::KubeProxy).then_some("ds/kube-proxy"));
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
