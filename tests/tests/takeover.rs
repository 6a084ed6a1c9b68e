//! Taking over from kube-proxy in every mode that this kernel has, and cleaning up, while connections come and stay.

use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab::{CLUSTER_CIDR_V4, CLUSTER_CIDR_V6, Daemon, HEALTH_PORT, scenario, wait_for, wait_until};
use nft::Feature;
use portolan_tests::differential::{KubeProxy, kube_proxies};
use portolan_tests::overlay::tool;
use portolan_tests::slowness;
use portolan_tests::stage::{PATIENCE, Stage, features, portolan};
use portolan_tests::traffic::Traffic;
use serde_json::json;

/// Nor was one sent again: a lost SYN would be, after a second. (Slow machines take that long without a loss.)
fn no_packet_was_lost(traffic: Traffic) -> Result<()> {
    let slowest = traffic.lost_nothing()?;
    ensure!(
        slowest < Duration::from_secs(1) * slowness(),
        "a packet was lost: {slowest:?}"
    );
    Ok(())
}

/// Runs a program on the node and returns what it prints.
fn run(stage: &Stage, line: &str) -> Result<String> {
    let (program, arguments) = line.split_once(' ').unwrap_or((line, ""));
    tool(&stage.node, program, arguments)
}

/// All that a node has of kube-proxy's, by name, in one text.
fn kube_proxys(stage: &Stage) -> Result<String> {
    let mut found = String::new();
    for listing in [
        "nft -s list ruleset",
        "iptables-legacy-save",
        "ip6tables-legacy-save",
    ] {
        let all = run(stage, listing)?;
        let theirs = all.lines().filter(|line| {
            let line = line.trim_start();
            let chain = line.strip_prefix("chain ").or(line.strip_prefix(':'));
            chain.is_some_and(|chain| {
                chain.starts_with("KUBE-") && !chain.starts_with("KUBE-FIREWALL")
            }) || line.ends_with(" kube-proxy {")
        });
        theirs.for_each(|line| found.push_str(&format!("{line}\n")));
    }
    Ok(found)
}

fn wait_until_clean(stage: &Stage) -> Result<()> {
    wait_until("kube-proxy's rules to be gone", PATIENCE, || {
        kube_proxys(stage).is_ok_and(|found| found.is_empty())
    })
}

/// The rules of kube-proxy's iptables mode for the Service with two endpoints, and foreign rules beside them.
fn iptables_rules(stage: &Stage) -> String {
    let vip = &stage.web.cluster_ips[0];
    let [one, two] = [0, 1].map(|n| stage.pods[n].ipv4());
    format!(
        r#"*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-SEP-1 - [0:0]
:KUBE-SEP-2 - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-1 - [0:0]
:OTHERS - [0:0]
-A PREROUTING -d 198.51.100.7/32 -j OTHERS
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
-A KUBE-SEP-1 -s {one}/32 -m comment --comment "default/web" -j KUBE-MARK-MASQ
-A KUBE-SEP-1 -p tcp -m comment --comment "default/web" -m tcp -j DNAT --to-destination {one}:8080
-A KUBE-SEP-2 -s {two}/32 -m comment --comment "default/web" -j KUBE-MARK-MASQ
-A KUBE-SEP-2 -p tcp -m comment --comment "default/web" -m tcp -j DNAT --to-destination {two}:8080
-A KUBE-SERVICES -d {vip}/32 -p tcp -m comment --comment "default/web cluster IP" -m tcp --dport 80 -j KUBE-SVC-1
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-SVC-1 -m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-1
-A KUBE-SVC-1 -j KUBE-SEP-2
-A OTHERS -p tcp -j DNAT --to-destination 198.51.100.8
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
"#
    )
}

/// Serves by rules of kube-proxy's iptables mode, starts the program, and looks at what is left of them.
fn takes_over_from_iptables(variant: &str) -> Result<()> {
    let stage = Stage::new()?;
    let rules = stage.manifests.path().join("rules");
    std::fs::write(&rules, iptables_rules(&stage))?;
    run(
        &stage,
        &format!("iptables-{variant}-restore {}", rules.display()),
    )?;
    stage.wait_for_backends(&stage.web, 2)?;
    let traffic = Traffic::start(&stage)?;
    traffic.goes_on(200)?;
    let _daemon = stage.start_synced(&[])?;
    wait_until(&format!("{variant} rules to be gone"), PATIENCE, || {
        kube_proxys(&stage).is_ok_and(|found| found.lines().all(|line| line.contains("KUBELET")))
    })?;
    stage.wait_for_backends(&stage.web, 4)?;
    traffic.goes_on(200)?;
    no_packet_was_lost(traffic)?;
    let saved = run(&stage, &format!("iptables-{variant}-save"))?;
    for stays in [
        "-j OTHERS",
        "198.51.100.8",
        ":KUBE-FIREWALL",
        "-j KUBE-FIREWALL",
        ":KUBE-KUBELET-CANARY",
    ] {
        ensure!(saved.contains(stays), "{stays} is gone:\n{saved}");
    }
    Ok(())
}

#[scenario(Nft, Iptables)]
fn rules_of_iptables_in_its_nft_variant_are_taken_over() -> Result<()> {
    takes_over_from_iptables("nft")
}

#[scenario(Nft, Iptables)]
fn rules_of_legacy_iptables_are_taken_over() -> Result<()> {
    takes_over_from_iptables("legacy")
}

/// Writes the tables of kube-proxy's iptables mode in the legacy variant.
fn write_legacy_rules(stage: &Stage) -> Result<()> {
    let rules = stage.manifests.path().join("rules");
    std::fs::write(&rules, iptables_rules(stage))?;
    run(
        stage,
        &format!("iptables-legacy-restore {}", rules.display()),
    )?;
    run(stage, "iptables-legacy -t mangle -N KUBE-PROXY-CANARY").map(drop)
}

/// What the daemon answers at this port of the node.
fn get(stage: &Stage, port: u16, path: &'static str) -> Result<String> {
    let to = SocketAddr::new([127, 0, 0, 1].into(), port);
    Ok(stage.node.http_get(to, path)?.context("no answer")?.1)
}

/// The alarm is in `/readyz`, with what to run, and in the metrics.
fn is_alarmed(stage: &Stage) -> Result<()> {
    let ready = get(stage, HEALTH_PORT, "/readyz")?;
    ensure!(ready.contains("kube-proxy --cleanup"), "{ready}");
    let metrics = get(stage, 10_249, "/metrics")?;
    let alarm = "portolan_foreign_rules{kind=\"legacy-iptables\"} 3";
    ensure!(metrics.contains(alarm), "{metrics}");
    Ok(())
}

#[scenario(Nft, Iptables)]
fn legacy_rules_without_programs_raise_an_alarm() -> Result<()> {
    let stage = Stage::new()?;
    write_legacy_rules(&stage)?;
    let (api, kubeconfig) = stage.serve_api(stage.all_objects())?;
    let mut command = stage.node.command("env");
    command
        .arg("PATH=/nonexistent")
        .arg(portolan()?)
        .args(["run", "--hostname-override=node-a"])
        .arg(format!("--kubeconfig={kubeconfig}"));
    let daemon = stage.node.spawn("portolan", command)?;
    stage.wait_until_ready(&daemon)?;
    wait_for("the alarm", PATIENCE, || {
        is_alarmed(&stage)?;
        let events = api.events();
        let mut alarms = events
            .iter()
            .filter(|event| event["reason"] == "LegacyIptablesRules");
        let event = alarms.next().context("no Event")?;
        ensure!(event["regarding"]["kind"] == "Node", "{event}");
        let note = event["note"].as_str().unwrap_or_default();
        ensure!(note.contains("kube-proxy --cleanup"), "{event}");
        Ok(())
    })
}

/// The daemon as the manifests run it: another user, NET_ADMIN alone. The kernel shows the list of tables to group 0.
#[scenario(Nft, Iptables)]
fn unprivileged_daemon_with_group_0_sees_legacy_rules() -> Result<()> {
    let stage = Stage::new()?;
    write_legacy_rules(&stage)?;
    // The checkout may be in a folder that only root can enter.
    let folder = tempfile::tempdir()?;
    let program = folder.path().join("portolan");
    std::fs::copy(portolan()?, &program)?;
    for folder in [folder.path(), stage.manifests.path()] {
        std::fs::set_permissions(folder, Permissions::from_mode(0o755))?;
    }
    let mut command = stage.node.command("setpriv");
    command.args([
        "--reuid=65532",
        "--regid=65532",
        "--groups=0",
        "--inh-caps=+net_admin",
        "--ambient-caps=+net_admin",
        "env",
        "PATH=/nonexistent",
    ]);
    command
        .arg(&program)
        .args(["run", "--hostname-override=node-a", "--manifests"])
        .arg(stage.manifests.path());
    let daemon = stage.node.spawn("portolan", command)?;
    stage.wait_until_ready(&daemon)?;
    wait_for("the alarm", PATIENCE, || is_alarmed(&stage))
}

#[scenario(Nft, Iptables)]
fn no_take_over_with_a_proxy_name_or_when_switched_off() -> Result<()> {
    let stage = Stage::new()?;
    let rules = stage.manifests.path().join("rules");
    std::fs::write(&rules, iptables_rules(&stage))?;
    run(&stage, &format!("iptables-nft-restore {}", rules.display()))?;
    let before = kube_proxys(&stage)?;
    for flags in [
        &["--service-proxy-name=other"][..],
        &["--take-over-kube-proxy=false"],
    ] {
        let daemon = stage.start_synced(flags)?;
        ensure!(kube_proxys(&stage)? == before, "{flags:?}");
        daemon.kill()?;
    }
    let mut cleanup = stage.node.command(portolan()?);
    cleanup.args(["cleanup", "--kube-proxy"]);
    let output = stage.node.output(cleanup)?;
    ensure!(output.status.success(), "{output:?}");
    ensure!(
        kube_proxys(&stage)?
            .lines()
            .all(|line| line.contains("KUBELET"))
    );
    ensure!(
        stage.tables()?.iter().all(Option::is_some),
        "our own tables are gone"
    );
    Ok(())
}

#[scenario(Nft)]
fn cleanup_removes_our_tables_and_nothing_else() -> Result<()> {
    let stage = Stage::new()?;
    stage
        .node
        .nft_stdin("table ip others { chain c { type filter hook input priority 0; accept; }; }")?;
    let cleanup = || {
        let mut command = stage.node.command(portolan()?);
        command.arg("cleanup");
        stage.node.output(command)
    };
    let daemon = stage.start_synced(&[])?;
    let refused = !cleanup()?.status.success();
    let are_there = || {
        stage
            .tables()
            .is_ok_and(|tables| tables.iter().all(Option::is_some))
    };
    if features()?.has(Feature::TablePersist) {
        ensure!(refused, "the tables of a running daemon are its own");
        ensure!(are_there(), "it took them all the same");
    } else {
        println!("FALLBACK: a running daemon is not asked, and puts its tables back");
        wait_until("the tables again", PATIENCE, are_there)?;
    }
    daemon.kill()?;
    ensure!(cleanup()?.status.success(), "{:?}", cleanup()?);
    ensure!(stage.tables()? == [None, None], "tables are left");
    let left = run(&stage, "nft list tables")?;
    ensure!(left.trim() == "table ip others", "{left}");
    ensure!(cleanup()?.status.success(), "nothing to do is no failure");
    Ok(())
}

#[scenario(Nft)]
fn cleanup_of_services_leaves_the_overlays_tables() -> Result<()> {
    let stage = Stage::new()?;
    let daemon = stage.start_synced(&[])?;
    daemon.kill()?;
    let overlay = vxlan_overlay::TABLE;
    stage.node.nft_stdin(&format!(
        "table ip {overlay} {{ }}\ntable ip6 {overlay} {{ }}"
    ))?;
    let cleanup = |part| {
        let mut command = stage.node.command(portolan()?);
        command.args(["cleanup", part]);
        let output = stage.node.output(command)?;
        ensure!(output.status.success(), "{output:?}");
        run(&stage, "nft list tables")
    };
    ensure!(
        stage.tables()?.iter().all(Option::is_some),
        "there were no tables"
    );
    let left = cleanup("--services")?;
    let expected = format!("table ip {overlay}\ntable ip6 {overlay}");
    ensure!(left.trim() == expected, "{left}");
    let left = cleanup("--overlay")?;
    ensure!(left.trim().is_empty(), "{left}");
    Ok(())
}

/// Starts a kube-proxy on the node under test.
fn start_kube_proxy(stage: &Stage, program: &Path, mode: &str, kubeconfig: &str) -> Result<Daemon> {
    let config = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
        "clientConnection": {
            "kubeconfig": kubeconfig,
            "contentType": "application/json", "acceptContentTypes": "application/json",
        },
        "hostnameOverride": "node-a",
        "mode": mode,
        "nftables": { "minSyncPeriod": "1ms" },
        "iptables": { "minSyncPeriod": "1ms" },
        "detectLocalMode": "ClusterCIDR",
        "clusterCIDR": format!("{CLUSTER_CIDR_V4},{CLUSTER_CIDR_V6}"),
        // The machine's limits are not this test's.
        "conntrack": { "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s" },
        "oomScoreAdj": 0,
    });
    let file = stage.manifests.path().join("kube-proxy-config");
    std::fs::write(&file, config.to_string())?;
    let mut command = stage.node.command(program);
    command.arg("--config").arg(&file);
    stage.node.spawn("kube-proxy", command)
}

/// Starts the program beside a running kube-proxy and ends kube-proxy: no connection fails.
fn takes_over_from_kube_proxy(mode: &str) -> Result<()> {
    for KubeProxy { program, .. } in kube_proxies()? {
        println!("{} in mode {mode}", program.display());
        let stage = Stage::new()?;
        let (api, kubeconfig) = stage.serve_api(stage.all_objects())?;
        let kube_proxy = start_kube_proxy(&stage, &program, mode, &kubeconfig)?;
        if let Err(error) = stage.wait_for_backends(&stage.web, 4) {
            bail!(
                "kube-proxy does not serve: {error:#}\n{}",
                kube_proxy.lines().join("\n")
            );
        }
        ensure!(
            !kube_proxys(&stage)?.is_empty(),
            "kube-proxy has other names now"
        );
        let traffic = Traffic::start(&stage)?;
        traffic.goes_on(200)?;
        // kube-proxy has the usual ports while both run.
        let daemon = stage.start_with(
            &["--kubeconfig", &kubeconfig],
            &[
                "--healthz-bind-address=127.0.0.1:10299",
                "--metrics-bind-address=",
            ],
        )?;
        stage.node.wait_until_ready(&daemon, 10299, PATIENCE)?;
        wait_until_clean(&stage)?;
        traffic.goes_on(100)?;
        kube_proxy.kill()?;
        // It may have written once more before it ended.
        wait_until_clean(&stage)?;
        traffic.goes_on(200)?;
        // From here on, what the cluster says is done by us.
        api.apply_all(stage.objects(&stage.web, 0..4))?;
        stage.wait_for_backends(&stage.web, 4)?;
        no_packet_was_lost(traffic)?;
    }
    Ok(())
}

#[scenario(Nft, Iptables, KubeProxy)]
#[ignore = "needs kube-proxy"]
fn take_over_from_kube_proxy_nftables_loses_no_packet() -> Result<()> {
    takes_over_from_kube_proxy("nftables")
}

#[scenario(Nft, Iptables, KubeProxy)]
#[ignore = "needs kube-proxy"]
fn take_over_from_kube_proxy_iptables_loses_no_packet() -> Result<()> {
    takes_over_from_kube_proxy("iptables")
}
