//! From kube-proxy and flannel to Portolan and back, by the commands of `docs/install/kubeadm.md`, under traffic.

use std::fs;

use anyhow::{Context, Result, ensure};
use lab::{Protocol, wait_for};
use netfilter::ForeignRuleset;
use nft::Family;

use crate::faults::take_api_server_away;
use crate::kubeadm::{Cluster, PATIENCE, root, xtask};
use crate::traffic::{NODE1, PORT, Traffic, Web, pod, serving};

/// The commands of a block of code of the guide: the first one after its heading has the number 0.
pub(crate) fn commands(heading: &str, block: usize) -> Result<Vec<String>> {
    let guide = fs::read_to_string(root()?.join("docs/install/kubeadm.md"))?;
    let (_, section) = guide
        .split_once(&format!("\n{heading}\n"))
        .with_context(|| format!("the guide has no {heading}"))?;
    let mut parts = section.split("```\n");
    let block = parts.nth(2 * block + 1).context("no block of code")?;
    let commands: Vec<String> = block
        .lines()
        .map(|line| line.split("  #").next().unwrap_or_default().trim())
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.replace("REGISTRY/", "localhost/"))
        .collect();
    ensure!(!commands.is_empty(), "no command after {heading}");
    Ok(commands)
}

/// Runs the commands of the first block after a heading.
pub(crate) fn follow(cluster: &Cluster, heading: &str) -> Result<()> {
    run(cluster, &commands(heading, 0)?)
}

/// Runs commands as a reader would.
fn run(cluster: &Cluster, commands: &[String]) -> Result<()> {
    for command in commands {
        println!("$ {command}");
        cluster.shell(command)?;
    }
    Ok(())
}

/// The commands that replace kube-proxy: up to the installation of Portolan, and after it.
fn around_installation() -> Result<(Vec<String>, Vec<String>)> {
    let mut before = commands("## kube-proxy", 0)?;
    let install = before
        .iter()
        .position(|one| one.contains("apply -k deploy/kubeadm"));
    let after = before.split_off(install.context("no installation")? + 1);
    Ok((before, after))
}

/// Waits until Portolan has written its rules on all nodes, while kube-proxy runs.
fn beside_kube_proxy(cluster: &Cluster) -> Result<()> {
    for node in ["node1", "node2"] {
        wait_for("Portolan beside kube-proxy", PATIENCE, || {
            ensure!(node_has_table(cluster, node, "portolan")?, "no rules");
            Ok(())
        })?;
    }
    Ok(())
}

fn node_has_table(cluster: &Cluster, node: &str, table: &'static str) -> Result<bool> {
    cluster.node(node)?.run(move || -> Result<bool> {
        let mut tables = ForeignRuleset::open()?;
        let v4 = tables.has_table(Family::Ip, table)?;
        Ok(v4 || tables.has_table(Family::Ip6, table)?)
    })?
}

/// Whether a node has a table of this name, in either family.
fn has_table(cluster: &Cluster, table: &'static str) -> Result<bool> {
    let nodes = ["node1", "node2"].into_iter();
    let has = nodes.map(|node| node_has_table(cluster, node, table));
    Ok(has.collect::<Result<Vec<_>>>()?.contains(&true))
}

/// Whether a node has rules of kube-proxy's iptables mode, in this variant's tables: `nft` or `legacy`.
fn has_iptables_rules(cluster: &Cluster, variant: &str) -> Result<bool> {
    let count = format!(
        "for tool in iptables-{variant}-save ip6tables-{variant}-save; do $tool 2>/dev/null; done | grep -cE 'KUBE-(SERVICES|SVC-|SEP-)' || true"
    );
    for node in ["node1", "node2"] {
        let rules = cluster.run_on(node, &["bash", "-c", &count])?;
        if rules.trim() != "0" {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Waits until kube-proxy's rules are away on all nodes.
fn rules_go(cluster: &Cluster, has_rules: impl Fn(&Cluster) -> Result<bool>) -> Result<()> {
    wait_for("the end of kube-proxy's rules", PATIENCE, || {
        ensure!(!has_rules(cluster)?, "kube-proxy's rules are there");
        Ok(())
    })
}

/// Follows the way back from this folder: with the commands `start` in place of the one that starts kube-proxy, unless there are
/// none, and with `before_cleanup` before the clean-up. No pod of Portolan may be left when kube-proxy starts: it would answer
/// where the guide asks kube-proxy whether its rules are written.
fn way_back(
    cluster: &Cluster,
    folder: &str,
    start: &[String],
    before_cleanup: &[String],
) -> Result<()> {
    let mut stop = commands("## Way back", 0)?;
    for command in &mut stop {
        *command = command.replace("delete -k deploy/kubeadm", &format!("delete -k {folder}"));
    }
    let from = |commands: &[String], text: &str| {
        let place = commands.iter().position(|one| one.contains(text));
        place.with_context(|| format!("no {text}"))
    };
    let mut back = stop.split_off(from(&stop, "patch ds kube-proxy")?);
    if !start.is_empty() {
        drop(back.splice(..1, start.iter().cloned()));
    }
    let cleanup = back.split_off(from(&back, "apply -k deploy/cleanup")?);
    run(cluster, &stop)?;
    let left = cluster.pods("kube-system", "app.kubernetes.io/name=portolan")?;
    ensure!(left.is_empty(), "pods of Portolan are left: {left:?}");
    run(cluster, &back)?;
    run(cluster, before_cleanup)?;
    run(cluster, &cleanup)?;
    let is_left = has_table(cluster, "portolan")?;
    ensure!(!is_left, "Portolan's rules are left");
    Ok(())
}

#[test]
#[ignore = "needs cluster"]
fn iptables_mode_gives_way_and_comes_back_with_nothing_lost() -> Result<()> {
    iptables_mode("iptables", "kube-proxy-iptables", "nft", None)
}

#[test]
#[ignore = "needs cluster"]
fn iptables_legacy_gives_way_and_comes_back_with_nothing_lost() -> Result<()> {
    let cleanup = Some("### After legacy iptables");
    iptables_mode("legacy", "kube-proxy-iptables-legacy", "legacy", cleanup)
}

/// There and back again from kube-proxy in iptables mode, with rules in this variant's tables, and with the commands below a
/// heading before kube-proxy is stopped.
fn iptables_mode(name: &str, proxy: &str, variant: &str, cleanup: Option<&str>) -> Result<()> {
    let Some(xtask) = xtask() else {
        return Ok(());
    };
    let parts = ["--proxy", proxy, "--overlay", "flannel"];
    let cluster = Cluster::up(&xtask, name, &parts)?;
    let web = Web::new(&cluster)?;
    let has_rules = |cluster: &Cluster| has_iptables_rules(cluster, variant);
    ensure!(has_rules(&cluster)?, "kube-proxy has no rules");
    let there = Traffic::start(&web)?;
    there.goes_on(100)?;
    let (before, after) = around_installation()?;
    run(&cluster, &before)?;
    beside_kube_proxy(&cluster)?;
    if let Some(heading) = cleanup {
        follow(&cluster, heading)?;
    }
    run(&cluster, &after)?;
    rules_go(&cluster, has_rules)?;
    there.goes_on(200)?;
    there
        .stop()?
        .nothing_is_lost(&format!("{proxy} to Portolan"))?;
    let back = Traffic::start(&web)?;
    back.goes_on(100)?;
    if let Some(heading) = cleanup {
        run(&cluster, &commands(heading, 1)?)?;
    }
    way_back(&cluster, "deploy/kubeadm", &[], &[])?;
    ensure!(has_rules(&cluster)?, "kube-proxy has no rules");
    back.goes_on(200)?;
    back.stop()?
        .nothing_is_lost(&format!("Portolan to {proxy}"))
}

/// Edits the ConfigMap for this cluster as the guide says, and leaves the limit of conntrack, which is the whole machine's, alone.
const EDIT: &str = "cp -rL deploy own && rm deploy && mv own deploy && sed -i 's#clusterCIDR: 10.244.0.0/16#&,fd00:10:244::/56#; \
                    s#^    apiVersion: kubeproxy.*#&\\n    conntrack: {maxPerCore: 0}#' deploy/proxy-and-overlay/portolan.yaml";

#[test]
#[ignore = "needs cluster"]
fn kube_proxy_and_flannel_give_way_together_and_come_back() -> Result<()> {
    let Some(xtask) = xtask() else {
        return Ok(());
    };
    let parts = ["--proxy", "kube-proxy", "--overlay", "flannel"];
    let cluster = Cluster::up(&xtask, "both", &parts)?;
    let web = Web::new(&cluster)?;
    let has_rules = |cluster: &Cluster| has_table(cluster, "kube-proxy");
    cluster.shell(EDIT)?;
    let there = Traffic::start(&web)?;
    there.goes_on(100)?;
    follow(&cluster, "## kube-proxy and flannel")?;
    rules_go(&cluster, has_rules)?;
    there.goes_on(200)?;
    a_new_pod_answers(&cluster, &web, "late")?;
    there.stop()?.nothing_is_lost("both to Portolan")?;
    let back = Traffic::start(&web)?;
    back.goes_on(100)?;
    let flannel = commands("## Way back", 1)?;
    way_back(&cluster, "deploy/proxy-and-overlay", &[], &flannel)?;
    ensure!(has_rules(&cluster)?, "kube-proxy has no rules");
    back.goes_on(200)?;
    a_new_pod_answers(&cluster, &web, "later")?;
    back.stop()?.nothing_is_lost("Portolan to both")
}

#[test]
#[ignore = "needs cluster"]
fn a_take_over_outlives_a_lost_api_server_and_a_reboot() -> Result<()> {
    let Some(xtask) = xtask() else {
        return Ok(());
    };
    let parts = ["--proxy", "kube-proxy", "--overlay", "flannel"];
    let cluster = Cluster::up(&xtask, "midway", &parts)?;
    let web = Web::new(&cluster)?;
    let (before, after) = around_installation()?;
    let traffic = Traffic::start(&web)?;
    traffic.goes_on(100)?;
    run(&cluster, &before)?;
    beside_kube_proxy(&cluster)?;
    take_api_server_away(&cluster)?;
    traffic.goes_on(100)?;
    traffic
        .stop()?
        .nothing_is_lost("API server away for 20 s in the middle")?;
    let traffic = Traffic::near(&web, NODE1)?;
    cluster.reboot("node2")?;
    cluster.node_ready("node2")?;
    run(&cluster, &after)?;
    rules_go(&cluster, |cluster| has_table(cluster, "kube-proxy"))?;
    traffic.goes_on(100)?;
    traffic
        .stop()?
        .nothing_is_lost("node2 rebooted in the middle, on node1")?;
    drop(web);
    let web = Web::new(&cluster)?;
    let traffic = Traffic::start(&web)?;
    traffic.goes_on(100)?;
    traffic.stop()?.nothing_is_lost("after it, on both nodes")?;
    cluster.doctor()?;
    let back = Traffic::start(&web)?;
    back.goes_on(100)?;
    let copy = commands("## kube-proxy", 1)?;
    way_back(&cluster, "deploy/kubeadm", &copy, &[])?;
    let has_rules = has_table(&cluster, "kube-proxy")?;
    ensure!(has_rules, "kube-proxy has no rules");
    back.goes_on(200)?;
    back.stop()?
        .nothing_is_lost("Portolan to kube-proxy, from the copy")
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
    let has_rules = |cluster: &Cluster| has_table(cluster, "kube-proxy");
    ensure!(has_rules(&cluster)?, "kube-proxy has no rules");
    let there = Traffic::start(&web)?;
    there.goes_on(100)?;
    follow(&cluster, "## kube-proxy")?;
    rules_go(&cluster, has_rules)?;
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
    way_back(&cluster, "deploy/kubeadm", &[], &[])?;
    ensure!(has_rules(&cluster)?, "kube-proxy has no rules");
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
