//! The cluster as kubectl shows it, and the one namespace that the test writes.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::objects::{LABEL, NAMESPACE, OWNER, Place};
use super::text_of;
use crate::kubectl::{CONTAINER, PODS, PROGRAM};

/// Calls kubectl.
pub(super) struct Cluster {
    context: Option<String>,
}

impl Cluster {
    pub(super) fn new(context: Option<String>) -> Cluster {
        Cluster { context }
    }

    fn kubectl(&self, namespace: &str) -> Command {
        let mut kubectl = Command::new("kubectl");
        kubectl.args(self.context.iter().map(|name| format!("--context={name}")));
        kubectl.arg(format!("--namespace={namespace}"));
        kubectl.stdin(Stdio::null()).stderr(Stdio::inherit());
        kubectl
    }

    fn output(&self, namespace: &str, arguments: &[&str]) -> Result<Vec<u8>> {
        let output = self.kubectl(namespace).args(arguments).output();
        let output = output.context("cannot start kubectl")?;
        let what = arguments.iter().take(2).copied().collect::<Vec<_>>();
        ensure!(output.status.success(), "kubectl {} failed", what.join(" "));
        Ok(output.stdout)
    }

    fn list(&self, namespace: &str, arguments: &[&str]) -> Result<Vec<Value>> {
        let arguments = [&["get"], arguments, &["--output", "json"]].concat();
        let output = self.output(namespace, &arguments)?;
        let mut list: Value =
            serde_json::from_slice(&output).context("cannot read kubectl's list")?;
        match list.get_mut("items").map(Value::take) {
            Some(Value::Array(items)) => Ok(items),
            _ => bail!("kubectl's list has no items"),
        }
    }

    /// Two nodes with a running daemon: those that are named, or the first ones. One, if there are no more.
    pub(super) fn places(
        &self,
        daemons: &str,
        names: &[String],
        image: Option<&str>,
    ) -> Result<Vec<Place>> {
        let pods = self.list(daemons, &["pods", "--selector", PODS])?;
        let running = pods
            .iter()
            .filter(|pod| pod["status"]["phase"] == "Running");
        let mut places: Vec<Place> = running
            .filter_map(|pod| {
                let containers = pod["spec"]["containers"].as_array()?;
                let daemon = containers.iter().find(|one| one["name"] == CONTAINER)?;
                Some(Place {
                    node: text_of(pod, "/spec/nodeName")?,
                    image: match image {
                        Some(image) => image.to_owned(),
                        None => text_of(daemon, "/image")?,
                    },
                })
            })
            .collect();
        places.sort_by(|a, b| a.node.cmp(&b.node));
        places.dedup_by(|a, b| a.node == b.node);
        if !names.is_empty() {
            for name in names {
                let is_there = places.iter().any(|place| place.node == *name);
                ensure!(is_there, "no daemon of Portolan runs on node {name}");
            }
            places.retain(|place| names.contains(&place.node));
        }
        places.truncate(2);
        ensure!(
            !places.is_empty(),
            "no pod with the label {PODS} runs in namespace {daemons}; --daemon-namespace names another one"
        );
        Ok(places)
    }

    /// Deletes what an interrupted test has left. A namespace of somebody else is an error.
    pub(super) fn delete_leftovers(&self) -> Result<()> {
        let arguments = [
            "get",
            "namespace",
            NAMESPACE,
            "--ignore-not-found",
            "--output",
            "json",
        ];
        let output = self.output(NAMESPACE, &arguments)?;
        if output.trim_ascii().is_empty() {
            return Ok(());
        }
        let namespace: Value =
            serde_json::from_slice(&output).context("cannot read kubectl's namespace")?;
        ensure!(
            namespace["metadata"]["labels"][LABEL] == OWNER,
            "namespace {NAMESPACE} is not the test's: it has no label {LABEL}={OWNER}"
        );
        self.delete()
    }

    /// Deletes the namespace with everything in it, and waits until it is gone.
    pub(super) fn delete(&self) -> Result<()> {
        let arguments = [
            "delete",
            "namespace",
            NAMESPACE,
            "--wait=true",
            "--timeout=120s",
        ];
        let deleted = self.output(NAMESPACE, &arguments);
        let advice = format!("delete it yourself: kubectl delete namespace {NAMESPACE}");
        deleted.map(|_| ()).context(advice)
    }

    /// Makes objects.
    pub(super) fn apply(&self, objects: &Value) -> Result<()> {
        let mut kubectl = self.kubectl(NAMESPACE);
        kubectl.args(["apply", "--filename", "-"]);
        kubectl.stdin(Stdio::piped()).stdout(Stdio::null());
        let mut child = kubectl.spawn().context("cannot start kubectl")?;
        let input = child.stdin.take();
        let written = input.context("no input").and_then(|mut input| {
            let text = serde_json::to_vec(objects)?;
            Ok(input.write_all(&text)?)
        });
        let status = child.wait().context("cannot wait for kubectl")?;
        ensure!(status.success(), "kubectl apply failed");
        written.context("cannot write to kubectl")
    }

    /// Gives a Service of the test the status that a load balancer's controller would.
    pub(super) fn set_status(&self, service: &str, status: &Value) -> Result<()> {
        let patch = status.to_string();
        let arguments = [
            "patch",
            "service",
            service,
            "--subresource=status",
            "--type=merge",
            "--patch",
            &patch,
        ];
        self.output(NAMESPACE, &arguments).map(|_| ())
    }

    /// The test's pods.
    pub(super) fn pods(&self) -> Result<Vec<Value>> {
        self.list(NAMESPACE, &["pods"])
    }

    /// The test's Services.
    pub(super) fn services(&self) -> Result<Vec<Value>> {
        self.list(NAMESPACE, &["services"])
    }

    /// The nodes of the cluster.
    pub(super) fn node_addresses(&self) -> Result<Vec<Value>> {
        self.list(NAMESPACE, &["nodes"])
    }

    /// The Services of the cluster's DNS; empty if there is none, or if the user may not see it.
    pub(super) fn dns(&self) -> Vec<Value> {
        let dns = self.list(
            "kube-system",
            &["services", "--selector", "k8s-app=kube-dns"],
        );
        dns.unwrap_or_default()
    }

    /// Runs the program in a pod of the test, and returns its output.
    pub(super) fn exec(&self, pod: &str, arguments: &[&str]) -> Result<Vec<u8>> {
        let program = ["exec", pod, "--", PROGRAM, "selftest"];
        self.output(NAMESPACE, &[&program, arguments].concat())
            .with_context(|| format!("pod {pod} could not be asked"))
    }
}
