//! From nodes to kernel: all peers from nothing, an audit that finds nothing to do, one changed node.

use std::fs::File;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use net_types::{Family, PerFamily};
use nft::{Backend, KernelConfig, TableContents};
use vxlan_overlay::{
    Carriers, Config, Deletions, Facts, Filter, Kernel, Names, Node, Observed, Operation,
    ParsedAnnotations, Plan, Preferences, RuleOptions, TABLE, Watched, difference, plan, table,
};

use crate::{Report, Row, Samples, milliseconds};

/// Times that it is done from nothing.
const RUNS: u32 = 5;
/// Changes of one node that are measured in each.
const CHANGES: u32 = 10;
const RULES: RuleOptions = RuleOptions {
    masquerade: true,
    filter: Filter::Enforce,
    probe_port: None,
};

/// Measures with this number of peers, and returns the namespaces in which it did.
///
/// They shall stay until nothing is measured any more: while the kernel clears one away nobody can change a link or a
/// route.
pub fn measure(report: &mut Report, peers: u32, target: &str) -> Result<Vec<File>> {
    let (mut namespaces, mut measured) = (Vec::new(), Measured::default());
    for _ in 0..RUNS {
        let run = || -> Result<File> {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
                .context("a namespace needs root")?;
            run(peers, &mut measured)?;
            Ok(File::open("/proc/thread-self/ns/net")?)
        };
        let ended = std::thread::scope(|scope| scope.spawn(run).join());
        namespaces.push(ended.map_err(|_| anyhow::anyhow!("a run panicked"))??);
    }
    let whole = |samples: &Samples| {
        let (median, most) = (samples.median(), samples.max());
        format!("{}, at most {}", milliseconds(median), milliseconds(most))
    };
    let mut row = |quantity: String, target: &str, value: String| {
        report.row(Row {
            quantity,
            target: target.into(),
            measured: value,
            ..Row::default()
        });
    };
    row(
        format!(
            "{peers} peers, both families: {} steps over rtnetlink, from nothing",
            measured.steps
        ),
        target,
        whole(&measured.programmed),
    );
    row(
        format!("{peers} peers: nftables tables, from nothing"),
        "",
        whole(&measured.tables),
    );
    row(
        format!("{peers} peers: an audit that finds nothing to do"),
        "",
        whole(&measured.audited),
    );
    let spread = |samples: &Samples| {
        let (median, p99) = (samples.median(), samples.p99());
        format!("{}, p99 {}", milliseconds(median), milliseconds(p99))
    };
    row(
        format!("{peers} peers: one node's new address, in the kernel"),
        "< 1 ms",
        spread(&measured.one_in_kernel),
    );
    row(
        format!("{peers} peers: of which nftables"),
        "",
        spread(&measured.one_in_table),
    );
    row(
        format!("{peers} peers: planning and comparing for it"),
        "",
        spread(&measured.one_planned),
    );
    Ok(namespaces)
}

#[derive(Default)]
struct Measured {
    steps: usize,
    programmed: Samples,
    tables: Samples,
    audited: Samples,
    one_in_kernel: Samples,
    one_in_table: Samples,
    one_planned: Samples,
}

fn run(peers: u32, measured: &mut Measured) -> Result<()> {
    for line in [
        "link set lo up",
        "link add eth0 type bridge",
        "addr add 192.0.2.1/24 dev eth0",
        "addr add 2001:db8::1/64 dev eth0 nodad",
        "link set eth0 up",
    ] {
        let status = Command::new("ip").args(line.split(' ')).status()?;
        ensure!(status.success(), "ip {line}");
    }
    let config = Config::default();
    let mut nodes: Vec<Node> = (0..=peers).map(node).collect();
    let mut kernel = Kernel::open()?;
    let mut in_nftables = nft::Kernel::open(KernelConfig {
        table: TABLE.into(),
        owner: true,
    })?;
    let watched = Watched {
        devices: PerFamily::from_fn(|family| config.device_name(family)),
        ..Watched::default()
    };
    let (programmed, steps) = settle(&mut kernel, &watched, &config, &nodes)?;
    let (audited, nothing) = settle(&mut kernel, &watched, &config, &nodes)?;
    ensure!(nothing == 0, "an audit found {nothing} steps to do");

    let mut observed = kernel.observe(&watched)?;
    let mut before = planned(&config, &nodes, &observed);
    let start = Instant::now();
    commit(&mut in_nftables, &[None, None], &tables(&config, &before))?;
    measured.steps = steps;
    measured.programmed.push(programmed);
    measured.tables.push(start.elapsed());
    measured.audited.push(audited);

    for round in 0..CHANGES {
        nodes[1].addresses = [
            format!("198.51.100.{round}").parse()?,
            format!("2001:db8:2::{round}").parse()?,
        ]
        .into();
        // What the daemon does when it knows how it left the kernel.
        let start = Instant::now();
        let plan = planned(&config, &nodes, &observed);
        let steps = steps_of(&plan, &observed)?;
        // The table before is made again rather than kept.
        let (old, wanted) = (tables(&config, &before), tables(&config, &plan));
        let planned = start.elapsed();
        let start = Instant::now();
        ensure!(kernel.apply(&steps)?.is_empty(), "refused");
        let applied = start.elapsed();
        let start = Instant::now();
        observed = observed.after(&plan.tunnels).context("no device")?;
        let compared = start.elapsed();
        let (differing, committed) = commit(&mut in_nftables, &old, &wanted)?;
        before = plan;
        let planning = planned + compared + differing;
        measured.one_planned.push(planning);
        measured.one_in_table.push(committed);
        measured.one_in_kernel.push(applied + committed);
    }
    Ok(())
}

fn tables(config: &Config, plan: &Plan) -> [Option<TableContents>; 2] {
    Family::ALL.map(|family| table(config, RULES, plan, family))
}

/// Time for the difference, and time of the kernel.
fn commit(
    kernel: &mut nft::Kernel,
    before: &[Option<TableContents>; 2],
    wanted: &[Option<TableContents>; 2],
) -> Result<(Duration, Duration)> {
    let (mut differing, mut committed) = (Duration::ZERO, Duration::ZERO);
    for (before, wanted) in before.iter().zip(wanted) {
        let start = Instant::now();
        let wanted = wanted.as_ref().context("no table")?;
        let transaction = nft::diff::diff(before.as_ref(), wanted);
        differing += start.elapsed();
        let start = Instant::now();
        kernel.commit(&transaction)?;
        committed += start.elapsed();
    }
    Ok((differing, committed))
}

/// Time and steps until nothing is left to do.
fn settle(
    kernel: &mut Kernel,
    watched: &Watched,
    config: &Config,
    nodes: &[Node],
) -> Result<(Duration, usize)> {
    let (start, mut all) = (Instant::now(), 0);
    loop {
        let observed = kernel.observe(watched)?;
        let steps = steps_of(&planned(config, nodes, &observed), &observed)?;
        if steps.is_empty() {
            return Ok((start.elapsed(), all));
        }
        let refused = kernel.apply(&steps)?;
        ensure!(refused.is_empty(), "refused: {:?}", refused.first());
        all += steps.len();
    }
}

fn planned(config: &Config, nodes: &[Node], observed: &Observed) -> Plan {
    let facts = Facts {
        config,
        preferences: &Preferences::default(),
        names: &Names::default(),
        own: "node-0",
        infer: true,
        found: PerFamily::default(),
        surroundings: &observed.surroundings,
        carriers: &Carriers::default(),
    };
    plan(facts, nodes.iter())
}

fn steps_of(plan: &Plan, observed: &Observed) -> Result<Vec<Operation>> {
    let mut steps = Vec::new();
    for (family, wanted) in &plan.tunnels {
        let found = &observed.tunnels[family];
        let wanted = wanted.as_ref().context("no tunnel")?;
        steps.extend(difference(wanted, found, Deletions::Allowed)?);
    }
    Ok(steps)
}

fn node(number: u32) -> Node {
    let (high, low) = (number >> 8, number & 255);
    let address =
        |v4: String, v6: String| vec![v4.parse(), v6.parse()].into_iter().flatten().collect();
    let own = number == 0;
    Node {
        name: format!("node-{number}").into(),
        created: None,
        pod_cidrs: [
            format!("10.{}.{low}.0/24", 128 + high),
            format!("fd00:244:{number:x}::/64"),
        ]
        .iter()
        .filter_map(|range| range.parse().ok())
        .collect(),
        addresses: match own {
            true => address("192.0.2.1".into(), "2001:db8::1".into()),
            false => address(
                format!("172.{}.{high}.{low}", 16),
                format!("2001:db8:1::{number:x}"),
            ),
        },
        parsed: ParsedAnnotations::Absent,
        encryption: None,
        probes: true,
        annotations: Arc::default(),
        held: false,
        stale: false,
        former: Default::default(),
    }
}
