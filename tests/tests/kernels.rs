//! What kernels lack, and what is done then: forced by `--without-features` on kernels that have everything, and for
//! real where `cargo xtask kernels` boots others. What a kernel cannot do is reported by a line "FALLBACK: ...".

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Daemon, Outcome, Probe, Protocol, TcpService, scenario, wait_until};
use nft::Feature;
use portolan_tests::overlay::tool;
use portolan_tests::stage::{PATIENCE, Stage, features, portolan, service};
use portolan_tests::{number_from_env, slowness};
use service_dataplane::guard;

/// Held through all flushes.
const HELD: usize = 100;

/// A hundred, but where there is less time.
fn flushes() -> u64 {
    number_from_env("PORTOLAN_FLUSHES", 100)
}

/// So many Services beside the one that is looked at, each with four endpoints: the goal is a thousand.
fn add_services(stage: &Stage, count: u64) -> Result<()> {
    let mut objects = Vec::new();
    for n in 0..count {
        let (high, low) = (n / 250 + 1, n % 250 + 1);
        let service = TcpService {
            name: format!("many-{n}"),
            cluster_ips: [
                format!("10.96.{high}.{low}"),
                format!("fd00:96::{high:x}:{low:x}"),
            ],
            port: 80,
            target_port: 8080,
            node_port: None,
        };
        objects.extend(stage.objects(&service, 0..4));
    }
    stage.manifests.write_objects("many.yaml", &objects)
}

/// What foreign flushes did.
struct Flushed {
    /// Held connections that were lost.
    lost: usize,
    /// From the end of each flush to the first new connection that is answered.
    outages: Vec<Duration>,
}

impl Flushed {
    /// Runs `nft flush ruleset` this number of times while `HELD` connections go on.
    fn on(stage: &Stage, flushes: u64) -> Result<Flushed> {
        let to = Stage::address(&stage.web)?;
        let pause = Duration::from_millis(100) * slowness();
        let held = stage.client.hold(to, HELD, pause)?;
        let mut outages = Vec::new();
        for _ in 0..flushes {
            stage.node.nft(&["flush", "ruleset"])?;
            let flushed = Instant::now();
            // What is sent into the gap has no answer; a machine that is slow to answer is given more time.
            let mut patience = Duration::from_millis(3);
            wait_until("a new connection", PATIENCE, || {
                let probe = Probe::new(Protocol::Tcp, to).within(patience);
                patience = (patience * 2).min(Duration::from_secs(1));
                matches!(stage.client.probe(probe), Ok(Outcome::Answered { .. }))
            })?;
            outages.push(flushed.elapsed());
            // Every held connection says something between two flushes.
            let before = held.report().exchanges;
            wait_until("held connections", PATIENCE, || {
                let report = held.report();
                report.exchanges >= before + HELD as u64 || !report.lost.is_empty()
            })?;
        }
        outages.sort();
        let report = held.stop();
        for (at, why) in report.lost.iter().take(5) {
            println!("lost after {at:?}: {why}");
        }
        Ok(Flushed {
            lost: report.lost.len(),
            outages,
        })
    }

    fn print(&self, what: &str) {
        let nth = |percent: usize| {
            self.outages
                .get(self.outages.len() * percent / 100)
                .copied()
        };
        println!(
            "{what}: {} of {HELD} held connections lost over {} flushes; new ones back after {:?} \
             (median), {:?} (95th of 100), {:?} (longest)",
            self.lost,
            self.outages.len(),
            nth(50).unwrap_or_default(),
            nth(95).unwrap_or_default(),
            self.outages.last().copied().unwrap_or_default(),
        );
    }
}

fn start_without_persistence(stage: &Stage) -> Result<Daemon> {
    stage.start_synced(&["--without-features=table-persist"])
}

#[scenario(Nft)]
fn guard_keeps_connections_through_a_hundred_foreign_flushes() -> Result<()> {
    let stage = Stage::new()?;
    add_services(&stage, number_from_env("PORTOLAN_SERVICES", 1000))?;
    let _daemon = start_without_persistence(&stage)?;
    stage.wait_for_backends(&stage.web, 4)?;
    let before = stage.tables()?;
    let flushed = Flushed::on(&stage, flushes())?;
    let healed = || stage.tables().is_ok_and(|tables| tables == before);
    wait_until("the tables as they were", PATIENCE, healed)?;
    match features()?.has(Feature::TableOwner) {
        true => flushed.print("with a guard table"),
        false => flushed.print("FALLBACK: with a guard chain in iptables' legacy variant"),
    }
    ensure!(flushed.lost == 0, "established connections were lost");
    Ok(())
}

#[scenario(Nft, Iptables)]
fn iptables_guard_keeps_connections_without_owned_tables() -> Result<()> {
    let stage = Stage::new()?;
    let guards = || -> Result<usize> {
        let mut chains = 0;
        for program in ["iptables-legacy", "ip6tables-legacy"] {
            let mut command = stage.node.command(program);
            command.args(["-t", "nat", "-S"]);
            let listed = stage.node.output(command)?;
            let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
            chains += listed
                .lines()
                .filter(|line| line.starts_with("-N "))
                .count();
        }
        Ok(chains)
    };
    for round in 0..2 {
        let daemon = stage.start_synced(&["--without-features=table-owner,table-persist"])?;
        stage.wait_for_backends(&stage.web, 4)?;
        ensure!(guards()? == 2, "one chain a family, in round {round}");
        let flushed = Flushed::on(&stage, flushes().div_ceil(10))?;
        flushed.print("with a guard chain");
        ensure!(flushed.lost == 0, "established connections were lost");
        // It stays for the next daemon.
        daemon.kill()?;
    }
    let mut command = stage.node.command(portolan()?);
    command.arg("cleanup");
    let output = stage.node.output(command)?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    ensure!(guards()? == 0, "cleaned up");
    Ok(())
}

#[scenario(Nft)]
fn the_guard_goes_with_the_daemon_and_leaves_the_table() -> Result<()> {
    let stage = Stage::new()?;
    let daemon = start_without_persistence(&stage)?;
    let has_guard = || {
        let tables = stage.node.nft(&["list", "tables"]);
        tables.is_ok_and(|tables| tables.contains(guard::TABLE))
    };
    ensure!(
        has_guard() == features()?.has(Feature::TableOwner),
        "a guard where it can be one"
    );
    stage.wait_for_backends(&stage.web, 4)?;
    daemon.kill()?;
    wait_until("the guard to go", PATIENCE, || !has_guard())?;
    stage.wait_for_backends(&stage.web, 4)?;
    // The next daemon has a guard of its own, and finds the table right.
    let _daemon = start_without_persistence(&stage)?;
    ensure!(
        has_guard() == features()?.has(Feature::TableOwner),
        "a guard again"
    );
    Ok(())
}

#[scenario(Nft)]
fn missing_feature_is_named_and_existing_rules_keep_working() -> Result<()> {
    let stage = Stage::new()?;
    stage.start_synced(&[])?.kill()?;
    let before = stage.tables()?;
    let daemon = stage.start(&["--without-features=symhash,fib"])?;
    let status = daemon.wait(PATIENCE)?;
    ensure!(!status.success(), "it went on");
    ensure!(
        daemon.lines().iter().any(|line| line.contains("symhash")),
        "what is missing has no name: {:?}",
        daemon.lines()
    );
    ensure!(stage.tables()? == before, "the tables have changed");
    stage.wait_for_backends(&stage.web, 4)
}

/// Entries of conntrack in the node's network namespace.
fn connections(stage: &Stage) -> Result<usize> {
    let path = "/proc/sys/net/netfilter/nf_conntrack_count";
    let text = stage.node.run(move || std::fs::read_to_string(path))?;
    Ok(text.context("conntrack is there")?.trim().parse()?)
}

#[scenario(Nft)]
fn version_lists_every_kernel_feature_and_changes_nothing() -> Result<()> {
    let stage = Stage::new()?;
    let _daemon = stage.start_synced(&[])?;
    stage.wait_for_backends(&stage.web, 4)?;
    let held = stage
        .client
        .hold(Stage::address(&stage.web)?, 20, Duration::from_millis(20))?;
    let ruleset = stage.node.nft(&["list", "ruleset"])?;
    let mut command = stage.node.command(portolan()?);
    command.args(["version", "--features"]);
    let output = stage.node.output(command)?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{printed}");
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // The trial of deletion by a filter deletes nothing, on any kernel.
    ensure!(connections(&stage)? >= 20, "connections are gone");
    ensure!(
        stage.node.nft(&["list", "ruleset"])? == ruleset,
        "another ruleset"
    );
    ensure!(held.stop().lost.is_empty(), "a connection was lost");
    let told: BTreeMap<&str, bool> = printed
        .lines()
        .skip(1)
        .filter_map(|line| line.split_once(' '))
        .map(|(name, words)| (name, words.trim() == "yes"))
        .collect();
    for (feature, found) in features()?.iter() {
        let told = told
            .get(feature.name())
            .with_context(|| format!("{feature} is not listed"))?;
        ensure!(
            *told == found.is_ok(),
            "{feature}: {found:?}, told is {told}"
        );
    }
    Ok(())
}

/// Loss, delay and reordering on what leaves a host; `false`, loudly, on kernels without netem.
fn disturb(hosts: &[&lab::Host]) -> Result<bool> {
    for host in hosts {
        let mut command = host.command("tc");
        command.args(["qdisc", "add", "dev", "eth0", "root", "netem"]);
        command.args(["delay", "2ms", "1ms", "loss", "2%", "reorder", "25%", "50%"]);
        let output = host.output(command)?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr).into_owned();
            eprintln!(
                "SKIPPED: no netem: {}",
                words.lines().next().unwrap_or_default()
            );
            return Ok(false);
        }
    }
    Ok(true)
}

#[scenario(Nft)]
fn kills_and_flushes_on_a_lossy_link_lose_no_connection() -> Result<()> {
    let stage = Stage::new()?;
    let mut hosts: Vec<&lab::Host> = stage.pods.iter().map(|pod| &**pod).collect();
    hosts.push(&stage.client);
    if !disturb(&hosts)? {
        return Ok(());
    }
    let persists = features()?.has(Feature::TablePersist);
    let churning = service("churning", 81);
    let mut daemon = stage.start_synced(&[])?;
    let to = Stage::address(&stage.web)?;
    wait_until("the Service", PATIENCE, || {
        stage
            .connect(&stage.client, &stage.web)
            .is_ok_and(|o| o.server().is_some())
    })?;
    let pause = Duration::from_millis(20) * slowness();
    let held = stage.client.hold(to, 20, pause)?;
    // A lost SYN is sent again after 1, 3, 7, 15 and 31 s.
    let patient = Probe::new(Protocol::Tcp, to).within(Duration::from_secs(60));
    let new = stage
        .client
        .stream_connections(patient, Duration::from_millis(5) * slowness())?;
    for round in 0..10 {
        stage.add(&churning, 0..round % 4 + 1)?;
        // Without persistence a new connection may meet the gap; that is another scenario.
        if persists {
            stage.node.nft(&["flush", "ruleset"])?;
        }
        let made = new.report().tally.answered();
        wait_until("traffic", PATIENCE, || {
            new.report().tally.answered() >= made + 10
        })?;
        daemon.kill()?;
        daemon = stage.start_synced(&[])?;
    }
    let (held, new) = (held.stop(), new.stop());
    println!(
        "{} exchanges, {} new connections",
        held.exchanges,
        new.tally.answered()
    );
    ensure!(held.lost.is_empty(), "lost: {:?}", held.lost);
    ensure!(new.failures.is_empty(), "failed: {:?}", new.failures);
    if !persists {
        println!(
            "FALLBACK: kills only, since new connections meet the gap that a foreign flush leaves"
        );
    }
    Ok(())
}

/// Real servers of kube-proxy's IPVS mode, where kernel and program for it are there.
struct Ipvs(Option<String>);

impl Ipvs {
    /// What kube-proxy's IPVS mode leaves on a node: cluster IPs on a link, and a virtual server that leads nowhere.
    fn leave(stage: &Stage) -> Result<Ipvs> {
        let made = ["dummy", "bridge"]
            .into_iter()
            .any(|kind| tool(&stage.node, "ip", &format!("link add {DEVICE} type {kind}")).is_ok());
        ensure!(made, "no link of any kind");
        for address in ["10.96.0.80/32", "fd00:96::80/128", "10.96.0.99/32"] {
            tool(
                &stage.node,
                "ip",
                &format!("addr add {address} dev {DEVICE}"),
            )?;
        }
        let Ok(ipvsadm) = std::env::var("PORTOLAN_IPVSADM") else {
            eprintln!("SKIPPED: virtual servers of IPVS, PORTOLAN_IPVSADM names no program");
            return Ok(Ipvs(None));
        };
        if let Err(error) = tool(&stage.node, &ipvsadm, "-A -t 10.96.0.80:80 -s rr") {
            eprintln!("SKIPPED: no virtual servers of IPVS can be made: {error:#}");
            return Ok(Ipvs(None));
        }
        let gone = "10.244.0.250:8080";
        tool(
            &stage.node,
            &ipvsadm,
            &format!("-a -t 10.96.0.80:80 -r {gone} -m"),
        )?;
        Ok(Ipvs(Some(ipvsadm)))
    }
}

const DEVICE: &str = "kube-ipvs0";

#[scenario(Nft)]
fn leftovers_of_ipvs_mode_do_not_break_services() -> Result<()> {
    let stage = Stage::new()?;
    let ipvs = Ipvs::leave(&stage)?;
    let outside = stage.lab().client("outside")?;
    let daemon = stage.start_synced(&[])?;
    stage.wait_for_backends(&stage.web, 4)?;
    let to = Stage::address(&stage.web)?;
    let from_the_node = stage.node.connect_many(Protocol::Tcp, to, 60)?;
    ensure!(
        from_the_node.failed() == 0,
        "from the node: {from_the_node:?}"
    );
    let node_port = (
        stage.node.ipv4(),
        stage.web.node_port.context("a node port")?,
    );
    let from_outside = outside.connect_many(Protocol::Tcp, node_port, 60)?;
    ensure!(from_outside.failed() == 0, "from outside: {from_outside:?}");
    // Connections may use them: they are named in the log, and stay.
    daemon.wait_for_line("IPVS", PATIENCE)?;
    tool(&stage.node, "ip", &format!("link show {DEVICE}"))?;
    if let Ipvs(Some(ipvsadm)) = ipvs {
        let servers = tool(&stage.node, &ipvsadm, "--save --numeric")?;
        ensure!(servers.contains("10.96.0.80:80"), "it is gone: {servers}");
    }
    Ok(())
}

#[scenario(Nft)]
fn cleanup_removes_leftovers_of_ipvs_mode_only() -> Result<()> {
    let stage = Stage::new()?;
    let Ipvs(ipvsadm) = Ipvs::leave(&stage)?;
    let mut cleanup = stage.node.command(portolan()?);
    cleanup.args(["cleanup", "--kube-proxy"]);
    // It is looked for by name.
    let programs = tempfile::tempdir()?;
    if let Some(ipvsadm) = &ipvsadm {
        tool(&stage.node, ipvsadm, "-A -t 198.51.100.7:80 -s rr")?;
        std::os::unix::fs::symlink(ipvsadm, programs.path().join("ipvsadm"))?;
        let path = std::env::var("PATH")?;
        cleanup.env("PATH", format!("{}:{path}", programs.path().display()));
    }
    let output = stage.node.output(cleanup)?;
    ensure!(output.status.success(), "{output:?}");
    ensure!(
        tool(&stage.node, "ip", &format!("link show {DEVICE}")).is_err(),
        "the device is there"
    );
    if let Some(ipvsadm) = ipvsadm {
        let servers = tool(&stage.node, &ipvsadm, "--save --numeric")?;
        ensure!(
            !servers.contains("10.96.0.80"),
            "its server stays: {servers}"
        );
        ensure!(
            servers.contains("198.51.100.7:80"),
            "another's is gone: {servers}"
        );
    }
    Ok(())
}
