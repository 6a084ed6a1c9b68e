//! Nodes with kube-proxy itself, each in a network namespace of its own.
//!
//! They get what kubeadm gives: a service account, and otherwise defaults, so protobuf. Only what reaches beyond a
//! namespace is switched off. They write their rules as well, which takes the processors that the API server uses.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use lab::{AuditEvent, Daemon, KUBE_PROXY_USER, Node};
use serde_json::json;

use super::cluster::{Cluster, change_address, node_name};
use super::fleets::{Fleet, KINDS, Return, Traffic};
use crate::Samples;
use crate::shape::CLUSTER_CIDR;

/// A number of kube-proxies.
pub struct KubeProxies {
    version: String,
    program: PathBuf,
    daemons: Vec<Daemon>,
    nodes: Vec<(Node, PathBuf)>,
    server: std::net::SocketAddr,
}

impl KubeProxies {
    /// Prepares this number of nodes with the newest kube-proxy that there is; nothing is started yet.
    pub fn new(cluster: &Cluster, nodes: u32) -> Result<KubeProxies> {
        let folder = lab::programs().context("no programs of a control plane")?;
        let versions = fs::read_to_string(folder.join("versions")).context("read versions")?;
        let newest = versions
            .lines()
            .filter_map(|line| line.split_once(' '))
            .filter(|(name, _)| name.starts_with("kube-proxy-"))
            .max();
        let (name, version) = newest.context("no kube-proxy")?;
        let kubeconfig = cluster.plane().kubeconfig_for_kube_proxy()?;
        let mut all = Vec::new();
        for number in 0..nodes {
            let name = node_name(number);
            let file = format!("kube-proxy-{number}.json");
            let file = cluster.plane().folder().join(file);
            let config = json!({
                "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
                "kind": "KubeProxyConfiguration",
                "mode": "nftables",
                "hostnameOverride": name,
                "clusterCIDR": CLUSTER_CIDR,
                "clientConnection": { "kubeconfig": kubeconfig },
                // Settings of the machine, not of a namespace.
                "conntrack": {
                    "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s",
                },
                "oomScoreAdj": 0,
            });
            fs::write(&file, config.to_string()).context("write a configuration")?;
            all.push((cluster.lab().node(&name)?, file));
        }
        Ok(KubeProxies {
            version: version.to_owned(),
            program: lab::program(name)?,
            daemons: Vec::new(),
            nodes: all,
            server: cluster.server(),
        })
    }

    /// By the address of the node and the resource, when the watch began that is open. Watches before `since` are omitted.
    fn watches(
        since: SystemTime,
        audit: &[AuditEvent],
    ) -> BTreeMap<IpAddr, BTreeMap<&str, SystemTime>> {
        let mut watches: BTreeMap<IpAddr, BTreeMap<&str, (&str, SystemTime)>> = BTreeMap::new();
        for event in audit {
            let is_watch = event.right.verb == "watch" && event.code < 400;
            let Some(source) = event.source.filter(|_| is_watch && event.received >= since) else {
                continue;
            };
            let of_node = watches.entry(source).or_default();
            let resource = event.right.resource.as_str();
            if event.is_begin {
                of_node.insert(resource, (&event.request, event.answered));
            } else if of_node
                .get(resource)
                .is_some_and(|(open, _)| *open == event.request)
            {
                // A server that has forgotten the version of a watch begins an answer, and ends it with 410 at once.
                of_node.remove(resource);
            }
        }
        watches
            .into_iter()
            .map(|(source, kinds)| {
                let kinds = kinds.into_iter().map(|(kind, (_, began))| (kind, began));
                (source, kinds.collect())
            })
            .collect()
    }
}

impl Fleet for KubeProxies {
    fn name(&self) -> String {
        format!("kube-proxy {}", self.version)
    }

    fn nodes(&self) -> u32 {
        self.nodes.len() as u32
    }

    fn user(&self) -> &'static str {
        KUBE_PROXY_USER
    }

    fn start(&mut self) -> Result<()> {
        for (node, config) in &self.nodes {
            let mut command = node.command(&self.program);
            command.arg("--config").arg(config);
            // It runs nft.
            let path = std::env::var("PATH").unwrap_or_default();
            command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
            self.daemons.push(node.spawn("kube-proxy", command)?);
        }
        Ok(())
    }

    fn is_watching(&self, cluster: &Cluster) -> Result<bool> {
        let audit = cluster.audit(self.user())?;
        let watches = Self::watches(SystemTime::UNIX_EPOCH, &audit);
        let full = watches.values().filter(|kinds| kinds.len() >= KINDS);
        Ok(full.count() == self.nodes.len())
    }

    fn traffic(&self) -> Result<Traffic> {
        let mut sum = Traffic::default();
        for (node, _) in &self.nodes {
            sum = sum + Traffic::of(node, self.server)?;
        }
        Ok(sum)
    }

    fn missing(&self, expected: &BTreeMap<u32, u32>) -> Result<usize> {
        let mut missing = 0;
        for (daemon, (node, _)) in self.daemons.iter().zip(&self.nodes) {
            ensure!(daemon.is_running(), "{}", daemon.lines().join("\n"));
            let rules = node.nft(&["list", "table", "ip", "kube-proxy"])?;
            let is_part = |c: char| c.is_ascii_digit() || c == '.';
            let words: BTreeSet<&str> = rules.split(|c| !is_part(c)).collect();
            let addresses = expected
                .values()
                .map(|change| change_address(*change).to_string());
            missing += addresses.filter(|a| !words.contains(a.as_str())).count();
        }
        Ok(missing)
    }

    fn returns(&self, since: SystemTime, cluster: &Cluster) -> Result<Vec<Return>> {
        let audit = cluster.audit(self.user())?;
        let watches = Self::watches(since, &audit);
        let of = |(node, _): &(Node, PathBuf)| {
            let address = IpAddr::from(node.ipv4());
            let own = audit.iter().filter(|event| event.source == Some(address));
            let after = own.filter(|event| event.received >= since);
            let kinds = watches.get(&address).filter(|kinds| kinds.len() >= KINDS);
            Return {
                first: after.map(|event| event.answered).min(),
                watching: kinds.and_then(|kinds| kinds.values().max().copied()),
            }
        };
        Ok(self.nodes.iter().map(of).collect())
    }

    fn whole_lists(&self) -> Option<usize> {
        None
    }

    fn deliveries(&self) -> Option<Samples> {
        None
    }
}
