//! From kube-proxy and flannel to Portolan and back, by the commands of `docs/install/kubeadm.md`, under traffic.

use std::fs;

use anyhow::{Context, Result, ensure};
use lab::{Protocol, wait_for};
use netfilter::ForeignRuleset;
use nft::Family;

use crate::kubeadm::{Cluster, PATIENCE, root, xtask};
use crate::traffic::{PORT, Traffic, Web, pod, serving};

/// The commands of the first block of code after a heading of the guide.
pub(crate) fn commands(heading: &str) -> Result<Vec<String>> {
    let guide = fs::read_to_string(root()?.join("docs/install/kubeadm.md"))?;
    let (_, section) = guide
        .split_once(&format!("\n{heading}\n"))
        .with_context(|| format!("the guide has no {heading}"))?;
    let mut parts = section.split("```\n");
    let block = parts.nth(1).context("no block of code")?;
    Ok(block
        .lines()
        .map(|line| line.split("  #").next().unwrap_or_default().trim())
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.replace("REGISTRY/", "localhost/"))
        .collect())
}

/// Runs them as a reader would.
pub(crate) fn follow(cluster: &Cluster, heading: &str) -> Result<()> {
    let commands = commands(heading)?;
    ensure!(!commands.is_empty(), "no command after {heading}");
    for command in commands {
        println!("$ {command}");
        cluster.shell(&command)?;
    }
    Ok(())
}

/// Whether a node has a table of this name, in either family.
fn has_table(cluster: &Cluster, table: &'static str) -> Result<bool> {
    let mut has = false;
    for node in ["node1", "node2"] {
        has |= cluster.node(node)?.run(move || -> Result<bool> {
            let mut tables = ForeignRuleset::open()?;
            let v4 = tables.has_table(Family::Ip, table)?;
            Ok(v4 || tables.has_table(Family::Ip6, table)?)
        })??;
    }
    Ok(has)
}

#[test]
#[ignore = "needs cluster"]
fn kube_proxy_gives_way_and_comes_back_with_nothing_lost() -> Result<()> {
    let Some(xtask) = xtask() else {
        return Ok(());
    };
    let cluster = Cluster::up(
        &xtask,
        "migration",
        &["--proxy", "kube-proxy", "--overlay", "flannel"],
    )?;
    let web = Web::new(&cluster)?;
    ensure!(
        has_table(&cluster, "kube-proxy")?,
        "kube-proxy has no rules"
    );
    let there = Traffic::start(&web)?;
    there.goes_on(100)?;
    follow(&cluster, "## kube-proxy")?;
    wait_for("the end of kube-proxy's rules", PATIENCE, || {
        ensure!(
            !has_table(&cluster, "kube-proxy")?,
            "kube-proxy's rules are there"
        );
        Ok(())
    })?;
    there.goes_on(200)?;
    there.stop()?.nothing_is_lost("kube-proxy to Portolan")?;
    kubeadm_leaves_kube_proxy_away(&cluster)?;
    let overlay = Traffic::start(&web)?;
    overlay.goes_on(100)?;
    follow(&cluster, "### flannel by changing the image only")?;
    cluster.rolled_out("kube-flannel", "ds/kube-flannel-ds")?;
    overlay.goes_on(200)?;
    a_new_pod_answers(&cluster, &web, "late")?;
    overlay.stop()?.nothing_is_lost("flannel to Portolan")?;
    let back = Traffic::start(&web)?;
    back.goes_on(100)?;
    follow(&cluster, "### flannel again")?;
    cluster.rolled_out("kube-flannel", "ds/kube-flannel-ds")?;
    back.goes_on(200)?;
    a_new_pod_answers(&cluster, &web, "later")?;
    back.stop()?.nothing_is_lost("Portolan to flannel")?;
    let back = Traffic::start(&web)?;
    back.goes_on(100)?;
    follow(&cluster, "## Way back")?;
    ensure!(
        !has_table(&cluster, "portolan")?,
        "Portolan's rules are left"
    );
    ensure!(
        has_table(&cluster, "kube-proxy")?,
        "kube-proxy has no rules"
    );
    back.goes_on(200)?;
    back.stop()?.nothing_is_lost("Portolan to kube-proxy")
}

/// What an upgrade of the cluster does on each node.
fn kubeadm_leaves_kube_proxy_away(cluster: &Cluster) -> Result<()> {
    let upgrade = ["kubeadm", "upgrade", "node", "phase", "addon", "kube-proxy"];
    cluster.run(&upgrade)?;
    let set = cluster.get(&["-n", "kube-system", "ds", "kube-proxy"])?;
    let wanted = set["status"]["desiredNumberScheduled"].as_u64();
    ensure!(
        wanted == Some(0),
        "kube-proxy is wanted on {wanted:?} nodes"
    );
    Ok(())
}

/// A pod that is made now gets an address and can be reached from the other node.
fn a_new_pod_answers(cluster: &Cluster, web: &Web, name: &str) -> Result<()> {
    cluster.apply(&pod(name, "node2", "other", ""))?;
    let late = serving(cluster, name)?;
    for address in late.addresses() {
        let tally = web
            .client
            .connect_many(Protocol::Tcp, (address, PORT), 20)?;
        ensure!(tally.failed() == 0, "{address}: {tally:?}");
    }
    Ok(())
}
