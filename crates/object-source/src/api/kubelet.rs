//! Where this node's kubelet finds the API server: the address and the CA in its kubeconfig, without its credentials.
//!
//! A pod that serves cluster IPs cannot reach the API server through one. The kubelet's kubeconfig has an address that works
//! without any Service, but only root may read the file. Leaves choosing and using a file to the caller.
//!
//! Invariant: no credential of the kubeconfig (token, key, password, exec plugin) is in the result.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use k8s_openapi::ByteString;
use kube::config::{Cluster, Kubeconfig};
use serde_json::{Value, json};

/// Kubeconfigs of the kubelet, by distribution: kubeadm and kind, k3s, RKE2, EKS, Bottlerocket.
pub const KUBELET_KUBECONFIGS: [&str; 5] = [
    "/etc/kubernetes/kubelet.conf",
    "/var/lib/rancher/k3s/agent/kubelet.kubeconfig",
    "/var/lib/rancher/rke2/agent/kubelet.kubeconfig",
    "/var/lib/kubelet/kubeconfig",
    "/etc/kubernetes/kubelet/kubeconfig",
];

/// Reads a kubeconfig and returns a new one, as JSON, with the API server of its current context and no user.
///
/// A CA file is copied into the result where it can be read. If the result has no CA, its reader uses the CA of the pod's
/// service account, which signs the certificate of every API server that pods can talk to.
///
/// # Errors
/// If the file cannot be read or names no server.
pub fn without_credentials(path: &Path) -> Result<String> {
    let kubeconfig = Kubeconfig::read_from(path)
        .with_context(|| format!("cannot read the kubeconfig {path:?}"))?;
    let cluster =
        current_cluster(&kubeconfig).with_context(|| format!("{path:?} names no cluster"))?;
    let server = cluster.server.as_deref().unwrap_or_default();
    ensure!(!server.is_empty(), "{path:?} names no server");
    let fields = [
        ("server", Some(json!(server))),
        ("certificate-authority-data", authority(cluster)),
        (
            "tls-server-name",
            cluster.tls_server_name.as_ref().map(|name| json!(name)),
        ),
    ];
    let kept = fields
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)));
    let kept = Value::Object(kept.collect());
    let written = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "node",
        "clusters": [{ "name": "node", "cluster": kept }],
        "contexts": [{ "name": "node", "context": { "cluster": "node", "user": "" } }],
        "users": [],
    });
    Ok(format!("{written:#}\n"))
}

/// The cluster of the current context; without a current context, the only cluster.
pub(super) fn current_cluster(kubeconfig: &Kubeconfig) -> Option<&Cluster> {
    let current = kubeconfig.current_context.as_deref().unwrap_or_default();
    let context = kubeconfig
        .contexts
        .iter()
        .find(|named| named.name == current);
    let name = context
        .and_then(|named| named.context.as_ref())
        .map(|context| context.cluster.as_str());
    let named = match (name, kubeconfig.clusters.as_slice()) {
        (Some(name), clusters) => clusters.iter().find(|named| named.name == name),
        (None, [only]) => Some(only),
        (None, _) => None,
    };
    named?.cluster.as_ref()
}

/// The CA as base64 text. A file that is not mounted here is skipped.
fn authority(cluster: &Cluster) -> Option<Value> {
    if let Some(data) = &cluster.certificate_authority_data {
        return Some(json!(data));
    }
    let file = cluster.certificate_authority.as_ref()?;
    let bytes = std::fs::read(file).ok()?;
    serde_json::to_value(ByteString(bytes)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The result for a kubeconfig with these lines, in a folder that has `ca.crt`.
    fn located(kubeconfig: &str) -> Result<Value> {
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join("ca.crt"), "authority")?;
        let file = folder.path().join("kubelet.conf");
        std::fs::write(&file, kubeconfig)?;
        Ok(serde_json::from_str(&without_credentials(&file)?)?)
    }

    fn cluster(located: &Value) -> Value {
        located["clusters"][0]["cluster"].clone()
    }

    #[test]
    fn kubeadms_server_and_ca_are_kept_without_the_client_key() -> Result<()> {
        let found = located(
            "apiVersion: v1
kind: Config
current-context: system:node:k1@kubernetes
clusters:
- {name: other, cluster: {server: 'https://192.0.2.9:6443'}}
- {name: kubernetes, cluster: {server: 'https://192.0.2.1:6443', certificate-authority-data: YXV0aG9yaXR5}}
contexts:
- {name: system:node:k1@kubernetes, context: {cluster: kubernetes, user: system:node:k1}}
users:
- {name: system:node:k1, user: {client-key-data: c2VjcmV0, token: secret, client-key: /var/lib/kubelet/secret.pem}}
",
        )?;
        let wanted = json!({
            "server": "https://192.0.2.1:6443", "certificate-authority-data": "YXV0aG9yaXR5",
        });
        assert_eq!(cluster(&found), wanted);
        let text = found.to_string();
        assert!(
            !text.contains("secret") && !text.contains("c2VjcmV0"),
            "{text}"
        );
        Ok(())
    }

    #[test]
    fn a_ca_file_is_copied_and_a_missing_one_is_left_out() -> Result<()> {
        let with = |file: &str| {
            located(&format!(
                "apiVersion: v1\nkind: Config\nclusters:\n- name: local\n  cluster:\n    server: https://127.0.0.1:6444\n    certificate-authority: {file}\n"
            ))
        };
        let wanted = json!({
            "server": "https://127.0.0.1:6444", "certificate-authority-data": "YXV0aG9yaXR5",
        });
        assert_eq!(cluster(&with("ca.crt")?), wanted);
        let without = json!({ "server": "https://127.0.0.1:6444" });
        assert_eq!(cluster(&with("/nonexistent/ca.crt")?), without);
        Ok(())
    }

    #[test]
    fn a_kubeconfig_without_a_server_is_an_error() {
        for text in [
            "",
            "apiVersion: v1\nkind: Config\nclusters: []\n",
            "clusters: {",
        ] {
            assert!(located(text).is_err(), "{text:?}");
        }
    }
}
