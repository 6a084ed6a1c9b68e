//! What operators use, in a real cluster: scrapes beside kube-proxy's, and the test of a whole cluster.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use lab::wait_for;
use portolan_tests::differential::metrics::missing;
use portolan_tests::stage;

use crate::kubeadm::{Cluster, PATIENCE, xtask};
use crate::migration::follow;
use crate::traffic::Web;

/// kube-proxy's port for metrics (`pkg/cluster/ports`), on localhost of each node.
const METRICS: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 10249);

/// The metrics of the service proxy on node2, once it has written rules.
fn scrape(cluster: &Cluster) -> Result<String> {
    let node = cluster.node("node2")?;
    wait_for("metrics of rules", PATIENCE, || {
        let answer = node.http_get(METRICS.into(), "/metrics")?;
        let (status, text) = answer.context("no answer")?;
        ensure!(status == 200, "{status}");
        let is_synced = text.lines().any(|line| {
            let value = line.strip_prefix("kubeproxy_sync_proxy_rules_last_timestamp_seconds");
            value.is_some_and(|value| !value.ends_with(" 0"))
        });
        ensure!(is_synced, "no rules yet");
        Ok(text)
    })
}

#[test]
#[ignore = "needs cluster"]
fn dashboards_of_kube_proxy_miss_nothing_after_the_change() -> Result<()> {
    let Some(xtask) = xtask() else {
        return Ok(());
    };
    let parts = ["--proxy", "kube-proxy", "--overlay", "flannel"];
    let cluster = Cluster::up(&xtask, "scrapes", &parts)?;
    let _web = Web::new(&cluster)?;
    let theirs = scrape(&cluster)?;
    follow(&cluster, "## kube-proxy")?;
    let ours = wait_for("Portolan's metrics", PATIENCE, || {
        let ours = scrape(&cluster)?;
        ensure!(ours.contains("portolan_build_info"), "kube-proxy answers");
        Ok(ours)
    })?;
    let missing = missing(&theirs, &ours)?;
    ensure!(missing.is_empty(), "{}", missing.join("\n"));
    println!(
        "{} lines of kube-proxy's, {} of Portolan's",
        theirs.lines().count(),
        ours.lines().count()
    );
    Ok(())
}

#[test]
#[ignore = "needs cluster"]
fn selftest_finds_a_new_cluster_whole() -> Result<()> {
    let Some(xtask) = xtask() else {
        return Ok(());
    };
    let cluster = Cluster::up(&xtask, "selftest", &[])?;
    let plugin = format!(
        "mkdir -p plugin && ln -sf {} plugin/kubectl-portolan && PATH=$PWD/plugin:$PATH kubectl portolan selftest",
        stage::portolan()?.display()
    );
    println!("{}", cluster.shell(&plugin)?);
    let namespaces = cluster.kubectl(&["get", "namespaces"])?;
    ensure!(!namespaces.contains("portolan-selftest"), "{namespaces}");
    Ok(())
}
