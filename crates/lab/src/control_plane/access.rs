//! Talking to the API server: `kubectl`, a client for Rust, objects by value, credentials for others.
//!
//! Sockets are opened on the threads of the control plane's own runtime, so in its network namespace; callers are
//! anywhere.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, GetParams, Patch, PatchParams, PostParams,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use kube::{Api, Client, Config};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::{BlockOnWorker, ControlPlane, PORTOLAN_OVERLAY_RBAC, PORTOLAN_RBAC};
use crate::node_object;
use crate::topology::Node;

/// Field manager in the `managedFields` of objects.
const MANAGER: &str = "lab";
/// Life of a token: longer than any test.
const TOKEN_SECONDS: i64 = 24 * 3600;
/// Pause between two reads of an object that is to leave the cache.
const READ_PAUSE: Duration = Duration::from_millis(2);
/// Time limit for a deleted object to leave the API server's cache.
const CACHE_LIMIT: Duration = Duration::from_secs(20);
/// Kinds without a namespace, of those that labs use.
const CLUSTER_SCOPED: [&str; 6] = [
    "ClusterRole",
    "ClusterRoleBinding",
    "IPAddress",
    "Namespace",
    "Node",
    "ServiceCIDR",
];

/// A client with the credentials of a kubeconfig.
pub(super) fn client(runtime: &Runtime, kubeconfig: &Path) -> Result<Client> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    runtime.block_on_worker(async move {
        let config =
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        Ok(Client::try_from(config)?)
    })
}

impl ControlPlane {
    /// A client with all rights. It works in tasks of [`ControlPlane::handle`] and [`ControlPlane::run`] only: other
    /// threads are in other network namespaces.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Runs a job with a client to its end, and returns its value.
    pub fn run<T, F>(&self, job: impl FnOnce(Client) -> F) -> Result<T>
    where
        F: Future<Output = Result<T>> + Send + 'static,
        T: Send + 'static,
    {
        self.runtime()?.block_on_worker(job(self.client()))
    }

    /// Sends GET to a path that is not an object, like `/version`.
    pub fn get_raw(&self, path: &str) -> Result<String> {
        let request = http::Request::get(path).body(Vec::new())?;
        self.run(|client| async move { Ok(client.request_text(request).await?) })
    }

    /// Runs `kubectl` with all rights and returns what it prints; its refusal is an error with what it said.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.kubectl_stdin(arguments, "")
    }

    /// The same with standard input: `kubectl_stdin(&["apply", "-f", "-"], manifests)`.
    pub fn kubectl_stdin(&self, arguments: &[&str], input: &str) -> Result<String> {
        let mut command = self.files.kubectl(&self.machine)?;
        command.args(arguments);
        self.machine.namespace().checked_output(command, input)
    }

    /// Makes an object what is said here, whether it is there or not (server-side apply). A status is left out: see
    /// [`ControlPlane::apply_status`].
    pub fn apply(&self, object: &Value) -> Result<()> {
        self.apply_all([object])
    }

    /// Each of them, in order, over one connection.
    pub fn apply_all<'a>(&self, objects: impl IntoIterator<Item = &'a Value>) -> Result<()> {
        self.patch_all(objects, false)
    }

    /// Makes the status of an object what is said here: addresses of a Node, ingress points of a Service.
    pub fn apply_status(&self, object: &Value) -> Result<()> {
        self.patch_all([object], true)
    }

    fn patch_all<'a>(
        &self,
        objects: impl IntoIterator<Item = &'a Value>,
        status: bool,
    ) -> Result<()> {
        let objects: Vec<Value> = objects.into_iter().cloned().collect();
        self.run(|client| async move {
            let how = PatchParams::apply(MANAGER).force();
            for mut object in objects {
                let (api, name) = dynamic(&client, &object)?;
                let given = object.as_object_mut().and_then(|o| o.remove("status"));
                if status {
                    // Server-side apply cannot hold two node addresses of one type.
                    let patch = Patch::Merge(json!({ "status": given }));
                    api.patch_status(&name, &PatchParams::default(), &patch)
                        .await
                } else {
                    api.patch(&name, &how, &Patch::Apply(&object)).await
                }
                .with_context(|| format!("could not apply {object}"))?;
            }
            Ok(())
        })
    }

    /// Deletes an object; one that does not exist is not an error.
    pub fn delete(&self, object: &Value) -> Result<()> {
        let object = object.clone();
        self.run(|client| async move {
            let (api, name) = dynamic(&client, &object)?;
            match api.delete(&name, &DeleteParams::default()).await {
                Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
                other => Ok(other.map(drop)?),
            }
        })
    }

    /// Deletes an object without finalizers, and waits until the API server's cache has dropped it too.
    ///
    /// Otherwise, about once in some hundred times on a busy machine, a Service that is created again under the same name
    /// fails: the server first tries to update the cached object and then to create a new one, so it allocates the node
    /// port twice. The second allocation is refused, and the first has no owner (apiserver's `Store.Update` makes
    /// allocations final before the transaction that it may have to retry).
    pub fn delete_and_forget(&self, object: &Value) -> Result<()> {
        self.delete(object)?;
        let object = object.clone();
        self.run(|client| async move {
            let (api, name) = dynamic(&client, &object)?;
            let forgotten = async {
                loop {
                    match api.get_with(&name, &GetParams::any()).await {
                        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
                        Err(error) => return Err(error),
                        Ok(_) => tokio::time::sleep(READ_PAUSE).await,
                    }
                }
            };
            let limited = tokio::time::timeout(CACHE_LIMIT, forgotten).await;
            limited.with_context(|| format!("{name} stays in the cache"))??;
            Ok(())
        })
    }

    /// Registers a lab's node as an object, with its addresses and the lab's own pod ranges: for a cluster
    /// [`ControlPlane::without_controllers`], where no [`Kubelet`](crate::Kubelet) does it.
    pub fn register(&self, node: &Node) -> Result<()> {
        let object = node_object(node);
        self.apply(&object)?;
        self.apply_status(&object)
    }

    /// A kubeconfig with a certificate for a user, and for a group if given, as components have them:
    /// `system:kube-proxy`, for whom every API server has a ClusterRole and binding.
    pub fn kubeconfig_for_user(&self, user: &str, group: Option<&str>) -> Result<PathBuf> {
        self.files.kubeconfig_for_user(&self.pki, user, group)
    }

    /// A kubeconfig for Portolan with exactly the rights it is shipped with: the ServiceAccount, ClusterRole and
    /// binding of `deploy/` are applied, and a token of that account goes in.
    pub fn kubeconfig_for_portolan(&self) -> Result<PathBuf> {
        self.kubeconfig_with(&[PORTOLAN_RBAC])
    }

    /// The same for Portolan with an overlay.
    pub fn kubeconfig_for_overlay(&self) -> Result<PathBuf> {
        self.kubeconfig_with(&[PORTOLAN_RBAC, PORTOLAN_OVERLAY_RBAC])
    }

    /// A kubeconfig for kube-proxy as kubeadm gives it: with a token of a ServiceAccount that has the ClusterRole
    /// `system:node-proxier`.
    pub fn kubeconfig_for_kube_proxy(&self) -> Result<PathBuf> {
        let subject =
            json!({ "kind": "ServiceAccount", "name": "kube-proxy", "namespace": "kube-system" });
        let role = json!({
            "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:node-proxier",
        });
        self.apply_all(&[
            json!({
                "apiVersion": "v1", "kind": "ServiceAccount",
                "metadata": { "name": "kube-proxy", "namespace": "kube-system" },
            }),
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
                "metadata": { "name": "lab:kube-proxy" }, "roleRef": role, "subjects": [subject],
            }),
        ])?;
        self.kubeconfig_with_token(&self.token("kube-system", "kube-proxy")?)
    }

    fn kubeconfig_with(&self, manifests: &[&str]) -> Result<PathBuf> {
        for manifest in manifests {
            self.kubectl_stdin(&["apply", "-f", "-"], manifest)?;
        }
        self.kubeconfig_with_token(&self.token("kube-system", "portolan")?)
    }

    /// A kubeconfig with this token.
    pub fn kubeconfig_with_token(&self, token: &str) -> Result<PathBuf> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let user = json!({ "token": token });
        self.files.kubeconfig(&format!("portolan-{number}"), &user)
    }

    /// Patches the status of a Node with a token's rights, as an overlay does: kubectl would read the Node first.
    pub fn patch_node_status(&self, token: &str, node: &str, patch: &Value) -> Result<()> {
        let client = client(self.runtime()?, &self.kubeconfig_with_token(token)?)?;
        let (node, patch) = (node.to_owned(), Patch::Strategic(patch.clone()));
        self.runtime()?.block_on_worker(async move {
            let nodes = Api::<k8s_openapi::api::core::v1::Node>::all(client);
            let patched = nodes
                .patch_status(&node, &PatchParams::default(), &patch)
                .await?;
            drop(patched);
            Ok(())
        })
    }

    /// A token of a service account (TokenRequest).
    pub fn token(&self, namespace: &'static str, account: &'static str) -> Result<String> {
        let request = TokenRequest {
            spec: TokenRequestSpec {
                expiration_seconds: Some(TOKEN_SECONDS),
                ..TokenRequestSpec::default()
            },
            ..TokenRequest::default()
        };
        self.run(|client| async move {
            let answer = Api::<ServiceAccount>::namespaced(client, namespace)
                .create_token_request(account, &PostParams::default(), &request)
                .await?;
            Ok(answer.status.context("no token")?.token)
        })
    }
}

/// The interface to an object's kind, in its namespace, and its name.
fn dynamic(client: &Client, object: &Value) -> Result<(Api<DynamicObject>, String)> {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    let (Some(version), Some(kind), Some(name)) =
        (text("/apiVersion"), text("/kind"), text("/metadata/name"))
    else {
        bail!("an object without apiVersion, kind or name: {object}");
    };
    let (group, version) = version.rsplit_once('/').unwrap_or(("", version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    let api = if CLUSTER_SCOPED.contains(&kind) {
        Api::all_with(client.clone(), &resource)
    } else {
        let namespace = text("/metadata/namespace").unwrap_or("default");
        Api::namespaced_with(client.clone(), namespace, &resource)
    };
    Ok((api, name.to_owned()))
}
