//! The programs of a control plane, where they are found, and what each is started with.
//!
//! Flags are chosen for a short start and a quiet machine where nothing under test depends on them; each that is not
//! plain wiring has its reason beside it.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::audit::{KUBE_PROXY_USER, PORTOLAN_USER};
use super::pki::{Identity, Pki};
use crate::address::{CLUSTER_CIDR_V4, CLUSTER_CIDR_V6, SERVICE_CIDR_V4, SERVICE_CIDR_V6};
use crate::topology;

/// Where the API server listens, on all addresses of its machine.
pub const API_SERVER_PORT: u16 = 6443;
/// Where etcd listens, on the machine's loopback.
const ETCD_PORT: u16 = 2379;
const ETCD_PEER_PORT: u16 = 2380;

/// Names the folder with the programs.
const VARIABLE: &str = "PORTOLAN_CONTROL_PLANE";
/// Names the program Helm.
const HELM: &str = "PORTOLAN_HELM";
const NEEDED: [&str; 6] = [
    "etcd",
    "etcdctl",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubectl",
];

/// The controllers that a lab needs. Each one costs watches and start-up time.
const CONTROLLERS: &[&str] = &[
    "deployment-controller",
    "disruption-controller",
    "endpointslice-controller",
    "endpointslice-mirroring-controller",
    "endpoints-controller",
    "garbage-collector-controller",
    "namespace-controller",
    "node-ipam-controller",
    "node-lifecycle-controller",
    "pod-garbage-collector-controller",
    "replicaset-controller",
    "root-ca-certificate-publisher-controller",
    "service-cidr-controller",
    "serviceaccount-controller",
    "taint-eviction-controller",
];

/// The folder with the programs, if there is one.
pub fn programs() -> Option<PathBuf> {
    std::env::var_os(VARIABLE).map(PathBuf::from)
}

/// The path of one of them: `etcd`, `kubectl`, `kube-proxy-1.36`, `flanneld`, ...
pub fn program(name: &str) -> Result<PathBuf> {
    let folder = programs().with_context(|| format!("{VARIABLE} is not set"))?;
    let path = folder.join(name);
    if !path.is_file() {
        bail!("{VARIABLE} has no {name} ({})", path.display());
    }
    Ok(path)
}

/// The path of Helm, which has a folder of its own.
pub fn helm() -> Result<PathBuf> {
    let path = std::env::var_os(HELM).with_context(|| format!("{HELM} is not set"))?;
    let path = PathBuf::from(path);
    if !path.is_file() {
        bail!("{HELM} names no file ({})", path.display());
    }
    Ok(path)
}

/// Whether there is a kube-proxy of any version.
pub(crate) fn kube_proxy() -> Result<()> {
    let folder = programs().with_context(|| format!("{VARIABLE} is not set"))?;
    let mut files = std::fs::read_dir(&folder).with_context(|| format!("read {folder:?}"))?;
    let is_one = |name: &OsStr| name.as_encoded_bytes().starts_with(b"kube-proxy-1.");
    match files.any(|file| file.is_ok_and(|file| is_one(&file.file_name()))) {
        true => Ok(()),
        false => bail!("{VARIABLE} has no kube-proxy ({})", folder.display()),
    }
}

/// What is missing of the programs.
pub(crate) fn missing() -> Option<anyhow::Error> {
    NEEDED.iter().find_map(|name| program(name).err())
}

/// A command with the name it has in messages.
pub(super) struct Component {
    pub(super) name: &'static str,
    pub(super) command: Command,
}

/// The folder of one control plane's files.
pub(super) struct Files {
    folder: PathBuf,
    server: String,
}

impl Files {
    /// Writes what all components read.
    pub(super) fn write(folder: &Path, pki: &Pki, machine: &topology::Client) -> Result<Files> {
        let files = Files {
            folder: folder.to_owned(),
            server: format!("https://{}:{API_SERVER_PORT}", machine.ipv4()),
        };
        let [private, public] = &pki.token_keys;
        files.put("ca.crt", &pki.authority)?;
        files.put("tokens.key", private)?;
        files.put("tokens.pub", public)?;
        files.put_identity("api-server", &pki.api_server)?;
        files.put("audit-policy.json", &audit_policy().to_string())?;
        for (name, user, group) in [
            ("admin", "lab", Some("system:masters")),
            ("controller-manager", "system:kube-controller-manager", None),
            ("scheduler", "system:kube-scheduler", None),
        ] {
            files.put_identity(name, &pki.user(user, group)?)?;
            files.kubeconfig(name, &files.certificate_of(name))?;
        }
        Ok(files)
    }

    fn put(&self, name: &str, text: &str) -> Result<()> {
        fs::write(self.folder.join(name), text).with_context(|| format!("could not write {name}"))
    }

    fn put_identity(&self, name: &str, identity: &Identity) -> Result<()> {
        self.put(&format!("{name}.crt"), &identity.certificate)?;
        self.put(&format!("{name}.key"), &identity.key)
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn certificate_of(&self, name: &str) -> Value {
        json!({
            "client-certificate": self.path(&format!("{name}.crt")),
            "client-key": self.path(&format!("{name}.key")),
        })
    }

    /// Writes a kubeconfig with these credentials.
    pub(super) fn kubeconfig(&self, name: &str, credentials: &Value) -> Result<PathBuf> {
        let cluster =
            json!({ "server": self.server, "certificate-authority": self.path("ca.crt") });
        let file = format!("{name}.kubeconfig");
        // JSON is YAML.
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "lab",
            "clusters": [{ "name": "lab", "cluster": cluster }],
            "users": [{ "name": "lab", "user": credentials }],
            "contexts": [{ "name": "lab", "context": { "cluster": "lab", "user": "lab" } }],
        });
        self.put(&file, &config.to_string())?;
        Ok(self.folder.join(file))
    }

    pub(super) fn kubeconfig_for_user(
        &self,
        pki: &Pki,
        user: &str,
        group: Option<&str>,
    ) -> Result<PathBuf> {
        let name = format!(
            "user-{}",
            user.replace(|c: char| !c.is_ascii_alphanumeric(), "-")
        );
        self.put_identity(&name, &pki.user(user, group)?)?;
        self.kubeconfig(&name, &self.certificate_of(&name))
    }

    pub(super) fn admin(&self) -> PathBuf {
        self.folder.join("admin.kubeconfig")
    }

    pub(super) fn audit_log(&self) -> PathBuf {
        self.folder.join("audit.log")
    }

    pub(super) fn etcd(&self, machine: &topology::Client) -> Result<Component> {
        let (clients, peers) = (
            format!("http://127.0.0.1:{ETCD_PORT}"),
            format!("http://127.0.0.1:{ETCD_PEER_PORT}"),
        );
        let mut command = machine.command(program("etcd")?);
        command
            .arg(format!("--data-dir={}", self.path("etcd")))
            .arg(format!("--listen-client-urls={clients}"))
            .arg(format!("--advertise-client-urls={clients}"))
            .arg(format!("--listen-peer-urls={peers}"))
            .arg(format!("--initial-advertise-peer-urls={peers}"))
            .arg(format!("--initial-cluster=default={peers}"))
            // Nothing outlives the test.
            .arg("--unsafe-no-fsync")
            .arg("--log-level=warn");
        Ok(Component {
            name: "etcd",
            command,
        })
    }

    pub(super) fn api_server(&self, machine: &topology::Client) -> Result<Component> {
        let mut command = machine.command(program("kube-apiserver")?);
        command
            .arg(format!("--etcd-servers=http://127.0.0.1:{ETCD_PORT}"))
            // Tests compact; the server does not, unasked.
            .arg("--etcd-compaction-interval=0")
            .arg(format!("--secure-port={API_SERVER_PORT}"))
            .arg(format!("--advertise-address={}", machine.ipv4()))
            .arg(format!("--cert-dir={}", self.path("cert-dir")))
            .arg(format!("--tls-cert-file={}", self.path("api-server.crt")))
            .arg(format!(
                "--tls-private-key-file={}",
                self.path("api-server.key")
            ))
            .arg(format!("--client-ca-file={}", self.path("ca.crt")))
            .arg("--authorization-mode=RBAC")
            // As kubeadm has it: DaemonSets of the node's own programs are privileged in part.
            .arg("--allow-privileged")
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg(format!(
                "--service-account-key-file={}",
                self.path("tokens.pub")
            ))
            .arg(format!(
                "--service-account-signing-key-file={}",
                self.path("tokens.key")
            ))
            .arg(format!(
                "--service-cluster-ip-range={SERVICE_CIDR_V4},{SERVICE_CIDR_V6}"
            ))
            .arg(format!(
                "--audit-policy-file={}",
                self.path("audit-policy.json")
            ))
            .arg(format!("--audit-log-path={}", self.audit_log().display()));
        Ok(Component {
            name: "kube-apiserver",
            command,
        })
    }

    pub(super) fn controllers(&self, machine: &topology::Client) -> Result<[Component; 2]> {
        let mut manager = machine.command(program("kube-controller-manager")?);
        manager
            .arg(format!(
                "--kubeconfig={}",
                self.path("controller-manager.kubeconfig")
            ))
            .arg(format!("--controllers={}", CONTROLLERS.join(",")))
            .arg("--use-service-account-credentials")
            .arg(format!(
                "--service-account-private-key-file={}",
                self.path("tokens.key")
            ))
            .arg(format!("--root-ca-file={}", self.path("ca.crt")))
            .arg("--allocate-node-cidrs")
            .arg(format!(
                "--cluster-cidr={CLUSTER_CIDR_V4},{CLUSTER_CIDR_V6}"
            ))
            .arg(format!(
                "--service-cluster-ip-range={SERVICE_CIDR_V4},{SERVICE_CIDR_V6}"
            ))
            .arg("--node-cidr-mask-size-ipv4=24")
            // At most 16 bits longer than the cluster's.
            .arg("--node-cidr-mask-size-ipv6=48")
            // An API server that a test stops for minutes is not the nodes' fault.
            .arg("--node-monitor-grace-period=20m")
            .args(["--kube-api-qps=500", "--kube-api-burst=1000"])
            .args(["--leader-elect=false", "--secure-port=0"]);
        let mut scheduler = machine.command(program("kube-scheduler")?);
        scheduler
            .arg(format!(
                "--kubeconfig={}",
                self.path("scheduler.kubeconfig")
            ))
            .args(["--kube-api-qps=500", "--kube-api-burst=1000"])
            .args(["--leader-elect=false", "--secure-port=0"]);
        Ok([
            Component {
                name: "kube-controller-manager",
                command: manager,
            },
            Component {
                name: "kube-scheduler",
                command: scheduler,
            },
        ])
    }

    pub(super) fn etcdctl(&self, machine: &topology::Client) -> Result<Command> {
        let mut command = machine.command(program("etcdctl")?);
        command.arg(format!("--endpoints=http://127.0.0.1:{ETCD_PORT}"));
        Ok(command)
    }

    pub(super) fn kubectl(&self, machine: &topology::Client) -> Result<Command> {
        let mut command = machine.command(program("kubectl")?);
        command
            .env("KUBECONFIG", self.admin())
            // Where it caches discovery.
            .env("HOME", &self.folder);
        Ok(command)
    }
}

/// Only requests of service proxies, and of them who, what and the answer's status.
fn audit_policy() -> Value {
    json!({
        "apiVersion": "audit.k8s.io/v1", "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [{ "level": "Metadata", "users": [PORTOLAN_USER, KUBE_PROXY_USER] }],
    })
}
