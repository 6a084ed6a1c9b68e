//! What befalls Portolan's pods and a node while users connect: how many requests fail, how many connections end.
//!
//! The clock is not moved: `CLOCK_REALTIME` belongs to the whole machine, and a time namespace (time_namespaces(7)) has only the
//! monotonic clocks, with offsets that no process in it can change.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::wait_for;

use crate::kubeadm::{Cluster, PATIENCE, xtask};
use crate::traffic::{NODE1, NODE2, Traffic, Web};

pub(crate) const SET: &str = "ds/portolan";
const LABEL: &str = "app.kubernetes.io/name=portolan";

/// A fault, and what ends it.
type Fault = (&'static str, fn(&Cluster) -> Result<()>);

/// None of these takes rules from the kernel, so none may cost a request.
const FAULTS: &[Fault] = &[
    ("SIGKILL to Portolan on both nodes", kill),
    ("pods of Portolan evicted", evict),
    ("rolling restart of the DaemonSet", restart),
    (
        "Portolan OOM-killed at its limit, again and again",
        limit_memory,
    ),
    ("kubelet killed on both nodes", kill_kubelet),
    ("containerd killed on both nodes", kill_containerd),
    ("API server away for 20 s", take_api_server_away),
    ("/run full on node1 while Portolan restarts", fill_run),
];

#[test]
#[ignore = "needs cluster"]
fn faults_beside_the_rules_cost_no_request() -> Result<()> {
    let Some(xtask) = xtask() else {
        return Ok(());
    };
    let cluster = Cluster::up(&xtask, "faults", &[])?;
    let web = Web::new(&cluster)?;
    let mut failed = Vec::new();
    for (what, fault) in FAULTS {
        let traffic = Traffic::start(&web)?;
        traffic.goes_on(50)?;
        fault(&cluster).context(*what)?;
        wait_for("Portolan's pods", PATIENCE, || {
            cluster.rolled_out("kube-system", SET)
        })?;
        traffic.goes_on(100)?;
        if let Err(error) = traffic.stop()?.nothing_is_lost(what) {
            failed.push(format!("{error:#}"));
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    drain(&cluster, &web)?;
    cluster.doctor()
}

/// The pods of users leave node2, and Portolan's stays: node2 still forwards what comes to its node ports.
fn drain(cluster: &Cluster, web: &Web) -> Result<()> {
    let traffic = Traffic::near(web, NODE2)?;
    traffic.goes_on(50)?;
    let drain = ["drain", "node2", "--ignore-daemonsets", "--force"];
    cluster.kubectl(&[&drain[..], &["--delete-emptydir-data"]].concat())?;
    let pod = cluster.kubectl(&["get", "pod", "web-1", "--ignore-not-found"])?;
    ensure!(pod.trim().is_empty(), "still on node2: {pod}");
    traffic.goes_on(100)?;
    cluster.kubectl(&["uncordon", "node2"])?;
    let count = traffic.stop()?;
    count.nothing_is_lost("node2 drained, through its node ports")
}

#[test]
#[ignore = "needs cluster"]
fn a_rebooted_node_serves_again_by_itself() -> Result<()> {
    let Some(xtask) = xtask() else {
        return Ok(());
    };
    let cluster = Cluster::up(&xtask, "reboot", &[])?;
    cluster.rolled_out("kube-system", SET)?;
    cluster.reboot("node2")?;
    cluster.node_ready("node2")?;
    for set in [SET, "deploy/coredns"] {
        cluster.rolled_out("kube-system", set)?;
    }
    let web = Web::new(&cluster)?;
    let traffic = Traffic::start(&web)?;
    traffic.goes_on(100)?;
    traffic.stop()?.nothing_is_lost("after a reboot of node2")?;
    cluster.doctor()
}

#[test]
#[ignore = "needs cluster"]
fn a_node_under_another_address_is_reached_by_its_peers() -> Result<()> {
    let Some(xtask) = xtask() else {
        return Ok(());
    };
    let cluster = Cluster::up(&xtask, "moved", &[])?;
    let web = Web::new(&cluster)?;
    let traffic = Traffic::near(&web, NODE1)?;
    traffic.goes_on(100)?;
    cluster.replace("node2", 12)?;
    cluster.node_ready("node2")?;
    cluster.rolled_out("kube-system", SET)?;
    traffic.goes_on(100)?;
    let count = traffic.stop()?;
    count.nothing_is_lost("node2 deleted and added under another address, on node1")?;
    drop(web);
    remake(&cluster, "web-1")?;
    let web = Web::new(&cluster)?;
    let traffic = Traffic::start(&web)?;
    traffic.goes_on(100)?;
    let count = traffic.stop()?;
    count.nothing_is_lost("after node2 has another address")?;
    cluster.doctor()
}

/// Deletes a pod of a node that is gone; [`Web::new`] makes it again.
fn remake(cluster: &Cluster, pod: &str) -> Result<()> {
    let delete = ["delete", "pod", pod, "--force", "--ignore-not-found"];
    cluster.kubectl(&delete).map(drop).context("delete the pod")
}

fn on_both(cluster: &Cluster, command: &[&str]) -> Result<()> {
    for node in ["node1", "node2"] {
        cluster.run_on(node, command)?;
    }
    Ok(())
}

fn kill(cluster: &Cluster) -> Result<()> {
    on_both(cluster, &["pkill", "-KILL", "-x", "portolan"])
}

fn evict(cluster: &Cluster) -> Result<()> {
    for (pod, _) in cluster.pods("kube-system", LABEL)? {
        let eviction = format!(
            r#"echo '{{"apiVersion":"policy/v1","kind":"Eviction","metadata":{{"name":"{pod}","namespace":"kube-system"}}}}' | kubectl create --raw /api/v1/namespaces/kube-system/pods/{pod}/eviction -f -"#
        );
        cluster.shell(&eviction)?;
        wait_for("the next pod", PATIENCE, || {
            cluster.rolled_out("kube-system", SET)
        })?;
    }
    Ok(())
}

fn restart(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["-n", "kube-system", "rollout", "restart", SET])?;
    cluster.rolled_out("kube-system", SET)
}

/// Less memory than the program needs, until a container was killed for it; then as much as before.
fn limit_memory(cluster: &Cluster) -> Result<()> {
    let limit = |memory: &str| {
        let container = format!(
            r#"{{"name":"portolan","resources":{{"requests":{{"memory":"{memory}"}},"limits":{{"memory":"{memory}"}}}}}}"#
        );
        let patch =
            format!(r#"{{"spec":{{"template":{{"spec":{{"containers":[{container}]}}}}}}}}"#);
        cluster.kubectl(&["-n", "kube-system", "patch", SET, "-p", &patch])
    };
    limit("6Mi")?;
    wait_for("a container that was killed", PATIENCE, || {
        let pods = cluster.get(&["pods", "-n", "kube-system", "-l", LABEL])?;
        let text = pods.to_string();
        ensure!(
            text.contains("OOMKilled") || text.contains("StartError"),
            "no container was killed"
        );
        Ok(())
    })?;
    limit("256Mi")?;
    // A DaemonSet replaces a pod that cannot become ready as well.
    cluster.kubectl(&["-n", "kube-system", "delete", "pods", "-l", LABEL])?;
    cluster.rolled_out("kube-system", SET)
}

fn kill_kubelet(cluster: &Cluster) -> Result<()> {
    on_both(cluster, &["pkill", "-KILL", "-x", "kubelet"])
}

fn kill_containerd(cluster: &Cluster) -> Result<()> {
    on_both(cluster, &["pkill", "-KILL", "-x", "containerd"])?;
    wait_for("containerd", PATIENCE, || {
        on_both(cluster, &["ctr", "version"])
    })
}

/// kubelet stops a static pod whose manifest goes, and starts it when it comes back. Portolan restarts meanwhile.
pub(crate) fn take_api_server_away(cluster: &Cluster) -> Result<()> {
    let (manifest, away) = (
        "/etc/kubernetes/manifests/kube-apiserver.yaml",
        "/etc/kubernetes/kube-apiserver.yaml",
    );
    cluster.run(&["mv", manifest, away])?;
    wait_for("the end of the API server", PATIENCE, || {
        ensure!(cluster.kubectl(&["version"]).is_err(), "it answers");
        Ok(())
    })?;
    kill(cluster)?;
    std::thread::sleep(Duration::from_secs(20));
    cluster.run(&["mv", away, manifest])?;
    wait_for("the API server", PATIENCE, || cluster.kubectl(&["version"])).map(drop)
}

/// Portolan's state is below /run, a file system of the node's own.
fn fill_run(cluster: &Cluster) -> Result<()> {
    let fill =
        "mount -o remount,size=1m /run; dd if=/dev/zero of=/run/full bs=4096 2>/dev/null || true";
    cluster.shell(fill)?;
    kill(cluster)?;
    let rolled_out = wait_for("Portolan", PATIENCE, || {
        cluster.rolled_out("kube-system", SET)
    });
    cluster.shell("rm /run/full; mount -o remount,size=50% /run")?;
    rolled_out
}
