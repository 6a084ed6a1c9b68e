//! The programs that are compared, and how each is started. The invariant: they get the same API server, the same
//! node name and the same cluster range, and otherwise what they do by default.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Daemon, Node};
use serde_json::json;

use crate::overlay::OVERLAY;
use crate::shape::{CLUSTER_CIDR, OWN_NODE};

/// A program that programs Services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contender {
    /// Ours.
    Portolan {
        /// The file to run.
        program: PathBuf,
        /// With an overlay, for a stage with peers.
        has_overlay: bool,
    },
    /// kube-proxy in nftables mode.
    KubeProxy {
        /// The file to run.
        program: PathBuf,
        /// `v1.37.1`
        version: String,
        /// Its `nftables.minSyncPeriod`: at most one sync in so much time. 1 s by default, also where 0 is asked for
        /// (`SetDefaults_KubeProxyConfiguration`), so zero here is a nanosecond there.
        min_sync: Duration,
    },
}

impl Contender {
    /// Portolan, and each kube-proxy in the folder that `cargo xtask control-plane` made, newest first, without and
    /// with the default `minSyncPeriod`.
    pub fn all(portolan: &Path, control_plane: &Path) -> Result<Vec<Contender>> {
        let path = control_plane.join("versions");
        let versions = fs::read_to_string(&path).with_context(|| format!("read {path:?}"))?;
        let mut releases: Vec<(&str, &str)> = versions
            .lines()
            .filter_map(|line| line.split_once(' '))
            .filter(|(name, _)| name.starts_with("kube-proxy-"))
            .collect();
        ensure!(!releases.is_empty(), "no kube-proxy in {path:?}");
        // 1.9 is older than 1.10, but nftables mode is younger than both.
        releases.sort_unstable_by(|a, b| b.cmp(a));
        let portolan = Contender::Portolan {
            program: portolan.to_owned(),
            has_overlay: false,
        };
        let peers = releases.iter().flat_map(|(name, version)| {
            [0, 1].map(|seconds| Contender::KubeProxy {
                program: control_plane.join(name),
                version: (*version).to_owned(),
                min_sync: Duration::from_secs(seconds),
            })
        });
        Ok(std::iter::once(portolan).chain(peers).collect())
    }

    /// Its name in tables.
    pub fn name(&self) -> String {
        match self {
            Contender::Portolan { .. } => "Portolan".to_owned(),
            Contender::KubeProxy {
                version, min_sync, ..
            } => format!("kube-proxy {version}, {} s", min_sync.as_secs()),
        }
    }

    /// Starts it on a node.
    pub fn start(&self, node: &Node, kubeconfig: &Path) -> Result<Daemon> {
        let command = match self {
            Contender::Portolan {
                program,
                has_overlay,
            } => {
                let mut command = node.command(program);
                command
                    .arg("run")
                    .arg("--kubeconfig")
                    .arg(kubeconfig)
                    .args(["--hostname-override", OWN_NODE]);
                match has_overlay {
                    // Peers' pods are outside the range of those of Services.
                    true => command
                        .args(OVERLAY)
                        .args(["--cluster-cidr", "10.0.0.0/8,fd00:244::/32"]),
                    false => command.args(["--cluster-cidr", CLUSTER_CIDR]),
                };
                command
            }
            Contender::KubeProxy {
                program, min_sync, ..
            } => {
                let config = kubeconfig.with_extension("kube-proxy");
                fs::write(&config, kube_proxy_config(kubeconfig, *min_sync))
                    .with_context(|| format!("write {config:?}"))?;
                let mut command = node.command(program);
                command.arg("--config").arg(config);
                let path = std::env::var("PATH").unwrap_or_default();
                // It runs nft.
                command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
                command
            }
        };
        node.spawn(&self.name(), command)
    }
}

/// A `KubeProxyConfiguration`. JSON is YAML.
fn kube_proxy_config(kubeconfig: &Path, min_sync: Duration) -> String {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "hostnameOverride": OWN_NODE,
        "clusterCIDR": CLUSTER_CIDR,
        "detectLocalMode": "ClusterCIDR",
        "clientConnection": {
            "kubeconfig": kubeconfig,
            "contentType": "application/json",
            "acceptContentTypes": "application/json",
        },
        "nftables": { "minSyncPeriod": format!("{}ns", min_sync.as_nanos().max(1)), "syncPeriod": "30s" },
        // Settings of the machine, not of a namespace.
        "conntrack": {
            "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s",
        },
    })
    .to_string()
}
