//! Applies manifests to a cluster after kubeadm: Portolan's from `deploy/`, or flannel's own.
//!
//! Invariant: the manifests in `deploy/` are applied unchanged except for two settings of their ConfigMap that the guides ask users
//! to set: the pod CIDRs of this cluster, and that another component manages the conntrack limits.

use std::fs;

use anyhow::{Context, Result, ensure};

use super::kubeadm::POD_CIDRS;
use super::node::run_in;
use super::parts::{LOCALHOST_NODE_PORTS, Overlay, Parts, ServiceProxy};
use super::place::Node;
use crate::control_plane::flannel;
use crate::run::{output, root};

/// Applies the manifests with kubectl on the first node.
pub(super) fn apply(first: &Node, parts: Parts) -> Result<()> {
    if let Some(folder) = parts.folder() {
        let path = root()?.join("deploy").join(folder).join("portolan.yaml");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let text = adapted(&text, parts).with_context(|| format!("adapt {}", path.display()))?;
        apply_text(first, "portolan", &text)?;
    }
    if parts.overlay == Overlay::Flannel {
        let text = dual_stack(&flannel::get()?.manifest)?;
        apply_text(first, "kube-flannel", &text)?;
    }
    Ok(())
}

/// Waits until all nodes and the applied pods are ready. An error lists the pods.
pub(super) fn wait(first: &Node, parts: Parts) -> Result<()> {
    wait_for_all(first, parts).or_else(|error| {
        let mut pods = first.command("kubectl")?;
        let pods = output(pods.args(["get", "pods", "--all-namespaces"]))?;
        Err(error.context(String::from_utf8_lossy(&pods).into_owned()))
    })
}

fn wait_for_all(first: &Node, parts: Parts) -> Result<()> {
    let ready = "--for=condition=Ready";
    run_in(
        first,
        &["kubectl", "wait", ready, "nodes", "--all", "--timeout=300s"],
    )?;
    let mut sets = Vec::new();
    if parts.folder().is_some() {
        sets.push(("kube-system", "ds/portolan"));
    }
    if parts.proxy.mode().is_some() {
        sets.push(("kube-system", "ds/kube-proxy"));
    }
    if parts.overlay == Overlay::Flannel {
        sets.push(("kube-flannel", "ds/kube-flannel-ds"));
    }
    // Without Services it waits for the API server.
    if parts.proxy != ServiceProxy::None {
        sets.push(("kube-system", "deploy/coredns"));
    }
    for (namespace, set) in sets {
        let status = ["rollout", "status", set, "--timeout=300s"];
        let kubectl = ["kubectl", "-n", namespace];
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
fn adapted(manifests: &str, parts: Parts) -> Result<String> {
    let first_line = "    apiVersion: kubeproxy.config.k8s.io/v1alpha1\n";
    ensure!(
        manifests.matches(first_line).count() == 1,
        "no KubeProxyConfiguration"
    );
    let mut settings = format!("{first_line}    conntrack: {{maxPerCore: 0}}\n");
    if parts.localhost_node_ports {
        settings.extend(LOCALHOST_NODE_PORTS.map(|field| format!("    {field}\n")));
    }
    let [v4, _] = POD_CIDRS;
    let text = manifests.replace(first_line, &settings).replace(
        &format!("clusterCIDR: {v4}\n"),
        &format!("clusterCIDR: {}\n", POD_CIDRS.join(",")),
    );
    match parts.direct_routing {
        true => routed(&text),
        false => Ok(text),
    }
}

/// The same with direct routing between nodes, as the chart writes it for `overlay.netConf`.
fn routed(manifests: &str) -> Result<String> {
    let changes = [
        (
            "  config.conf: |\n",
            "  net-conf.json: '{\"Backend\": {\"Type\": \"vxlan\", \"DirectRouting\": true}}'\n  config.conf: |\n",
        ),
        (
            "    overlay:\n",
            "    overlay:\n      netConfigPath: /var/lib/portolan/net-conf.json\n",
        ),
    ];
    replaced(manifests, changes)
}

/// Replaces parts of a text. Each part must occur exactly once.
fn replaced<T: AsRef<str>>(
    text: &str,
    changes: impl IntoIterator<Item = (T, T)>,
) -> Result<String> {
    let mut changes = changes.into_iter();
    changes.try_fold(text.to_owned(), |text, (old, new)| {
        let (old, new) = (old.as_ref(), new.as_ref());
        ensure!(text.matches(old).count() == 1, "no {old}");
        Ok(text.replace(old, new))
    })
}

/// Upstream's kube-flannel.yml, changed only to use both IP families, nftables and the CNI plugin's version of this machine.
fn dual_stack(manifest: &str) -> Result<String> {
    let [v4, v6] = POD_CIDRS;
    let changes = [
        (
            format!("\"Network\": \"{v4}\","),
            format!("\"Network\": \"{v4}\", \"EnableIPv6\": true, \"IPv6Network\": \"{v6}\","),
        ),
        (
            "\"EnableNFTables\": false".to_owned(),
            "\"EnableNFTables\": true".to_owned(),
        ),
        (
            "\"cniVersion\": \"1.0.0\"".to_owned(),
            "\"cniVersion\": \"0.4.0\"".to_owned(),
        ),
    ];
    replaced(manifest, changes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Parts = Parts {
        proxy: ServiceProxy::Portolan,
        overlay: Overlay::Portolan,
        direct_routing: false,
        localhost_node_ports: false,
    };

    #[test]
    fn node_ports_on_localhost_are_settings_of_the_proxy() -> Result<()> {
        let path = root()?.join("deploy/proxy-and-overlay/portolan.yaml");
        let parts = Parts {
            localhost_node_ports: true,
            ..PLAIN
        };
        let text = adapted(&fs::read_to_string(path)?, parts)?;
        for field in LOCALHOST_NODE_PORTS {
            assert!(text.contains(&format!("    {field}\n")), "{field}");
        }
        Ok(())
    }

    #[test]
    fn every_manifest_gets_the_pod_cidrs_of_the_cluster() -> Result<()> {
        for folder in ["proxy", "proxy-and-overlay", "overlay-only"] {
            let path = root()?.join("deploy").join(folder).join("portolan.yaml");
            let text = adapted(&fs::read_to_string(path)?, PLAIN)?;
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

    #[test]
    fn routes_without_tunnels_are_a_setting_of_the_overlay() -> Result<()> {
        let path = root()?.join("deploy/overlay-only/portolan.yaml");
        let routed = Parts {
            direct_routing: true,
            ..PLAIN
        };
        let text = adapted(&fs::read_to_string(path)?, routed)?;
        let config = "      netConfigPath: /var/lib/portolan/net-conf.json\n";
        assert!(text.contains(config) && text.contains("\"DirectRouting\": true"));
        let proxy = fs::read_to_string(root()?.join("deploy/proxy/portolan.yaml"))?;
        assert!(adapted(&proxy, routed).is_err());
        Ok(())
    }
}
