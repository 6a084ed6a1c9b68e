//! The configuration of the daemon: command line and file, read, checked, and translated for each part.
//!
//! This is the one door between [`kube_proxy_config`], which knows flags and fields, and the parts, which have
//! configurations of their own. Invariant: [`Configuration::read`] changes nothing on the node, and a configuration that
//! it returns can be translated.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use kube_proxy_config as given;
use kube_proxy_config::{CommandLine, Effective, Resolved};
use nft::Feature;
use object_source::api::{ApiClient, Limits};
use serde::Deserialize;
use service_model::{DetectLocal, LocalInterface, NodeConfig};
use tokio::sync::watch;

mod follow;
mod overlay;

pub use follow::{Live, follow};
pub use overlay::overlay;

/// The configuration of Services as it is now: a change of the file changes it.
pub type LiveNodeConfig = watch::Receiver<NodeConfig>;

/// More than any ConfigMap can hold.
const LARGEST_FILE: u64 = 2 << 20;

/// A configuration that can be used.
#[derive(Clone, Debug)]
pub struct Configuration {
    line: CommandLine,
    resolved: Resolved,
}

impl Configuration {
    /// Reads the file that the command line names, and checks everything.
    ///
    /// # Errors
    /// All problems, one a line.
    pub fn read(line: CommandLine) -> Result<Configuration> {
        let resolved = resolve(&line)?;
        Ok(Configuration { line, resolved })
    }

    /// What counts.
    pub fn effective(&self) -> &Effective {
        &self.resolved.effective
    }

    /// All of it, with what is worth a line in the log.
    pub fn resolved(&self) -> &Resolved {
        &self.resolved
    }

    /// Writes the effective configuration to a file (`--write-config-to`).
    pub fn write_to(&self, path: &Path) -> Result<()> {
        let text = self.resolved.write_config()?;
        crate::copy::write(path, text.as_bytes()).with_context(|| format!("cannot write {path:?}"))
    }

    /// Logs what counts and where it is from, one line each.
    pub fn log(&self) {
        let notes = &self.resolved.notes;
        for warning in &notes.warnings {
            tracing::warn!("{warning}");
        }
        let lines = [notes.overridden_line(), notes.unused_line()];
        for line in lines.into_iter().flatten() {
            tracing::info!("{line}");
        }
        if !notes.node_ports.is_empty() {
            tracing::info!("{}", notes.node_ports);
        }
    }
}

/// The text of the file, unless it is longer than any configuration.
fn read(path: &Path) -> Result<String> {
    let mut text = String::new();
    File::open(path)?
        .take(LARGEST_FILE + 1)
        .read_to_string(&mut text)?;
    ensure!(
        text.len() as u64 <= LARGEST_FILE,
        "it is longer than {LARGEST_FILE} bytes"
    );
    Ok(text)
}

/// Reads and checks without keeping the command line.
fn resolve(line: &CommandLine) -> Result<Resolved> {
    let file = match line.config_file() {
        Some(path) => Some(read(&path).with_context(|| format!("cannot read --config {path:?}"))?),
        None => None,
    };
    let resolved = line.resolve(file.as_deref())?;
    let problems = problems(&resolved.effective);
    if !problems.is_empty() {
        bail!("{}", problems.join("\n"));
    }
    Ok(resolved)
}

/// What the pure check cannot find, because only a part knows or a file has to be read.
fn problems(effective: &Effective) -> Vec<String> {
    let mut problems = Vec::new();
    let mut check = |result: Result<()>| {
        if let Err(error) = result {
            problems.push(format!("{error:#}"));
        }
    };
    check(features(effective).map(drop));
    check(crate::log::filter(&effective.logging.filter).map(drop));
    if effective.node_name.is_none() {
        check(host_name().map(drop));
    }
    if let Some(dir) = &effective.api_server.manifests {
        let read = std::fs::read_dir(dir).map(drop);
        check(read.with_context(|| format!("cannot read the directory of --manifests {dir:?}")));
    }
    if effective.overlay.is_some() {
        check(overlay(effective, "".into()).map(drop));
    }
    problems
}

/// The kernel features to treat as absent.
pub fn features(effective: &Effective) -> Result<Vec<Feature>> {
    let named = |name: &String| {
        Feature::from_name(name).with_context(|| {
            let names = Feature::ALL.map(Feature::name).join(", ");
            format!("--without-features={name}: unknown feature; supported: {names}")
        })
    };
    effective.without_features.iter().map(named).collect()
}

/// What decides the meaning of Services on the node of this name.
pub fn node(effective: &Effective, name: Arc<str>) -> NodeConfig {
    let services = &effective.services;
    let interface = |name: &String| Arc::<str>::from(name.as_str());
    let detect_local = match &services.detect_local {
        given::DetectLocalMode::ClusterCidr => {
            DetectLocal::ClusterCidr(services.cluster_cidrs.clone())
        }
        given::DetectLocalMode::NodeCidr => DetectLocal::NodeCidr,
        given::DetectLocalMode::BridgeInterface(name) => {
            DetectLocal::Interface(LocalInterface::Named(interface(name)))
        }
        given::DetectLocalMode::InterfaceNamePrefix(prefix) => {
            DetectLocal::Interface(LocalInterface::Prefix(interface(prefix)))
        }
    };
    NodeConfig {
        node_name: name,
        detect_local,
        nodeport_addresses: services.node_port_addresses.clone(),
        masquerade_all: services.masquerade_all,
        cluster_cidrs: services.cluster_cidrs.clone(),
        allowed_external_ips: services.allowed_external_ips.clone(),
        node_ip: effective.node_ip,
        // Known once the API client is made.
        api_server: None,
    }
}

/// The node's name: as configured, that of the Node that this pod runs on, or the host name.
///
/// flannel's manifests name the pod (`POD_NAME`, `POD_NAMESPACE`) and not the node.
pub async fn node_name(effective: &Effective, client: Option<&ApiClient>) -> Result<Arc<str>> {
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    match (client, variable("POD_NAMESPACE"), variable("POD_NAME")) {
        (Some(client), Some(namespace), Some(name)) if effective.node_name.is_none() => {
            node_of_pod(client, &namespace, &name).await
        }
        _ => static_node_name(effective),
    }
}

/// The node's name as configured, or the host name.
pub fn static_node_name(effective: &Effective) -> Result<Arc<str>> {
    match &effective.node_name {
        Some(name) => Ok(name.as_str().into()),
        None => host_name(),
    }
}

async fn node_of_pod(client: &ApiClient, namespace: &str, name: &str) -> Result<Arc<str>> {
    #[derive(Deserialize)]
    struct Pod {
        spec: Spec,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Spec {
        node_name: String,
    }
    let read = async {
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
        let request = http::Request::get(path).body(Vec::new())?;
        let limits = Limits {
            silence: std::time::Duration::from_secs(10),
            total: std::time::Duration::from_secs(10),
        };
        let answer = client.call(request, limits).await?;
        let pod: Pod = serde_json::from_slice(&answer).context("not a Pod with a node name")?;
        anyhow::Ok(pod.spec.node_name.into())
    };
    read.await.with_context(|| {
        format!("cannot read the pod {namespace}/{name} for its node's name; set NODE_NAME or --hostname-override")
    })
}

/// The host name as kube-proxy and kubelet make a node name of it: trimmed and lower-cased.
fn host_name() -> Result<Arc<str>> {
    let name = nix::unistd::gethostname().context("cannot read the host name")?;
    let name = name.to_string_lossy().trim().to_lowercase();
    let line = CommandLine::read(
        kube_proxy_config::Dialect::Portolan,
        &[format!("--hostname-override={name}")],
        |_| None,
    );
    match line.resolve(None) {
        Ok(Resolved { effective, .. }) if effective.node_name.is_some() => Ok(name.into()),
        _ => bail!("host name {name:?} is not a node name; set --hostname-override"),
    }
}
