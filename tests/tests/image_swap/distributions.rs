//! The command lines and files of distributions, unchanged: each starts the program, which serves packets, and the real
//! kube-proxy makes the same configuration of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use lab::{Protocol, node_object, scenario};
use portolan_tests::differential::kube_proxies;
use portolan_tests::stage::{Stage, portolan};
use serde_json::Value;
use tempfile::TempDir;

use super::{KUBE_PROXY, start_as};

const ADDED_BY_KUBEADM: &str = "/var/lib/kube-proxy/kubeconfig.conf";

/// What a pod or a process of a distribution is started with.
struct Distribution {
    arguments: Vec<String>,
    config: Option<String>,
}

impl Distribution {
    fn read(name: &'static str) -> Result<Distribution> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folder = root
            .join("../crates/kube-proxy-config/tests/distributions")
            .join(name);
        let arguments = fs::read_to_string(folder.join("arguments")).context(name)?;
        Ok(Distribution {
            arguments: arguments.lines().map(ToOwned::to_owned).collect(),
            config: fs::read_to_string(folder.join("config")).ok(),
        })
    }

    fn flag(&self, name: &str) -> Option<&str> {
        let start = format!("--{name}=");
        self.arguments
            .iter()
            .find_map(|argument| argument.strip_prefix(&start))
    }

    /// Where its kubeconfig is. kubeadm adds the path to what kind gives to it.
    fn kubeconfig(&self) -> &str {
        let in_file = self.config.as_deref().into_iter().flat_map(str::lines);
        let mut in_file = in_file.filter_map(|line| line.trim().strip_prefix("kubeconfig:"));
        let path = self.flag("kubeconfig").or(in_file.next());
        path.map_or(ADDED_BY_KUBEADM, |path| path.trim().trim_matches('"'))
    }

    /// Folders with its files, and where each belongs.
    fn volumes(&self, kubeconfig: &str) -> Result<Vec<(TempDir, String)>> {
        let mut files = vec![(self.kubeconfig(), kubeconfig)];
        if let (Some(path), Some(text)) = (self.flag("config"), &self.config) {
            files.push((path, text));
        }
        let mut folders: BTreeMap<String, TempDir> = BTreeMap::new();
        for (path, text) in files {
            let (folder, file) = path.rsplit_once('/').context("a relative path")?;
            let folder = match folders.entry(folder.to_owned()) {
                std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
                std::collections::btree_map::Entry::Vacant(new) => new.insert(TempDir::new()?),
            };
            fs::write(folder.path().join(file), text)?;
        }
        Ok(folders
            .into_iter()
            .map(|(path, folder)| (folder, path))
            .collect())
    }
}

/// RKE2's static pod has k3s' arguments. Gardener's and Talos' without a file name an API server that no test can be.
const STARTED: [&str; 6] = [
    "kind",
    "kind-rootless",
    "eks",
    "eks-bottlerocket",
    "talos",
    "k3s",
];

#[scenario(Nft)]
fn files_and_arguments_of_distributions_start_and_serve() -> Result<()> {
    let stage = Stage::new()?;
    let outside = stage.lab().client("outside")?;
    for name in STARTED {
        let distribution = Distribution::read(name)?;
        let mut node = node_object(&stage.node);
        node["metadata"]["name"] = distribution
            .flag("hostname-override")
            .unwrap_or("node-a")
            .into();
        let mut objects = stage.objects(&stage.web, 0..4);
        objects.push(node);
        let (_api, kubeconfig) = stage.serve_api(objects)?;
        let volumes = distribution.volumes(&fs::read_to_string(kubeconfig)?)?;
        let volumes: Vec<(&Path, &str)> = volumes
            .iter()
            .map(|(folder, path)| (folder.path(), path.as_str()))
            .collect();
        let added = format!("--kubeconfig={}", distribution.kubeconfig());
        let mut arguments: Vec<&str> = distribution.arguments.iter().map(String::as_str).collect();
        if distribution.kubeconfig() == ADDED_BY_KUBEADM {
            arguments.push(&added);
        }
        let daemon = start_as(&stage.node, KUBE_PROXY, &volumes, &arguments, &[])?;
        stage
            .wait_until_ready(&daemon)
            .with_context(|| format!("{name}: {:#?}", daemon.lines()))?;
        stage.wait_for_backends(&stage.web, 4).context(name)?;
        let port = stage.web.node_port.context("has a node port")?;
        let outcome = outside.connect(Protocol::Tcp, (stage.node.ipv4(), port))?;
        ensure!(outcome.server().is_some(), "{name}: node port: {outcome:?}");
        daemon.kill()?;
        // The next one has to serve by its own tables.
        let mut cleanup = stage.node.command(portolan()?);
        cleanup.arg("cleanup");
        let output = stage.node.output(cleanup)?;
        ensure!(output.status.success(), "{name}: {output:?}");
    }
    Ok(())
}

/// Fields in which the two differ on purpose, with the folders in which they do.
const DIFFERENCES: [(&str, &[&str]); 9] = [
    // kube-proxy gives defaults to the section of its mode only, and Portolan has no use for any of them.
    ("iptables.minSyncPeriod", &[]),
    ("iptables.syncPeriod", &[]),
    ("ipvs.minSyncPeriod", &[]),
    ("ipvs.syncPeriod", &[]),
    ("nftables.minSyncPeriod", &[]),
    ("nftables.syncPeriod", &[]),
    // On unless Portolan's own document or a flag switches it off.
    ("conntrack.tcpBeLiberal", &[]),
    // kube-proxy ignores these flags beside a file.
    ("conntrack.maxPerCore", &["eks-bottlerocket"]),
    ("conntrack.min", &["eks-bottlerocket"]),
];

/// Makes a program write its configuration, and reads the document of kube-proxy in it.
fn written(program: &Path, distribution: &Distribution) -> Result<BTreeMap<String, Value>> {
    let folder = TempDir::new()?;
    let (config, out) = (folder.path().join("config"), folder.path().join("out"));
    let mut command = Command::new(program);
    command.arg0(KUBE_PROXY);
    for argument in &distribution.arguments {
        match argument.starts_with("--config=") {
            true => command.arg(format!("--config={}", config.display())),
            false => command.arg(argument),
        };
    }
    if let Some(text) = &distribution.config {
        fs::write(&config, text)?;
    }
    command.arg(format!("--write-config-to={}", out.display()));
    let output = command.output()?;
    ensure!(output.status.success(), "{program:?}: {output:?}");
    let text = fs::read_to_string(out)?;
    let document = text.split("\n---").next().unwrap_or_default();
    let mut fields = BTreeMap::new();
    flatten(
        String::new(),
        serde_saphyr::from_str(document)?,
        &mut fields,
    );
    Ok(fields)
}

/// Fields by path. Absent, null and empty mean the same in this file.
fn flatten(path: String, value: Value, fields: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                let path = match path.as_str() {
                    "" => name,
                    path => format!("{path}.{name}"),
                };
                flatten(path, value, fields);
            }
        }
        Value::Null => {}
        Value::String(text) if text.is_empty() => {}
        Value::Array(items) if items.is_empty() => {}
        value => {
            fields.insert(path, value);
        }
    }
}

/// kube-proxy refuses `kind-rootless` (a feature gate of kubelet), and k3s' flags of its own logging.
const COMPARED: [&str; 8] = [
    "kubeadm",
    "kubeadm-dual-stack-ipv6",
    "kind",
    "eks",
    "eks-bottlerocket",
    "talos",
    "talos-arguments",
    "gardener",
];

#[scenario(KubeProxy)]
#[ignore = "needs kube-proxy"]
fn real_kube_proxy_makes_the_same_of_each_distributions_file() -> Result<()> {
    let newest: PathBuf = kube_proxies()?.pop().context("no kube-proxy")?.program;
    let mut different = Vec::new();
    for name in COMPARED {
        let distribution = Distribution::read(name)?;
        let theirs = written(&newest, &distribution)?;
        let ours = written(portolan()?, &distribution)?;
        ensure!(theirs.len() > 20, "{name}: kube-proxy wrote {theirs:?}");
        let paths: BTreeSet<&String> = theirs.keys().chain(ours.keys()).collect();
        for path in paths {
            let on_purpose = DIFFERENCES.iter().any(|(field, folders)| {
                field == path && (folders.is_empty() || folders.contains(&name))
            });
            if theirs.get(path) != ours.get(path) && !on_purpose {
                let (theirs, ours) = (theirs.get(path), ours.get(path));
                different.push(format!(
                    "{name}: {path}: kube-proxy {theirs:?}, Portolan {ours:?}"
                ));
            }
        }
    }
    if !different.is_empty() {
        bail!("{}", different.join("\n"));
    }
    Ok(())
}
