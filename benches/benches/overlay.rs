//! The overlay's way into the kernel: all peers from nothing, an audit that finds nothing to do, and one changed node.
//!
//! `cargo bench --bench overlay`. A namespace of its own, a bridge without ports as the network below.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vxlan_overlay::{
    Config, Deletions, Facts, Kernel, Names, Node, Observed, Plan, Preferences, Watched,
    difference, plan,
};

fn main() -> Result<()> {
    let runs = [100, 1_000, 5_000].map(|peers| {
        std::thread::spawn(move || -> Result<()> {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
                .context("a namespace needs root")?;
            measure(peers)
        })
        .join()
    });
    for run in runs {
        run.map_err(|_| anyhow::anyhow!("a run panicked"))??;
    }
    Ok(())
}

fn measure(peers: u32) -> Result<()> {
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
    let watched = Watched {
        devices: nft::Family::ALL.map(|family| config.device_name(family)),
        can_reach: None,
    };

    let (programmed, steps) = settle(&mut kernel, &watched, &config, &nodes)?;
    let (audited, nothing) = settle(&mut kernel, &watched, &config, &nodes)?;
    ensure!(nothing == 0, "an audit found {nothing} steps to do");
    let mut one = Vec::new();
    for round in 0..20_u32 {
        nodes[1].addresses = vec![
            format!("198.51.100.{round}").parse()?,
            format!("2001:db8:2::{round}").parse()?,
        ];
        let observed = kernel.observe(&watched)?;
        let steps = steps_of(&planned(&config, &nodes, &observed), &observed)?;
        let start = Instant::now();
        ensure!(
            kernel.apply(&steps)?.is_empty(),
            "the kernel refused a change of one node"
        );
        one.push(start.elapsed());
    }
    one.sort();
    println!(
        "{peers:>5} peers, both families: {steps} steps in {programmed:?} from nothing; audit {audited:?}; \
         one node's new address {:?} (median of {})",
        one[one.len() / 2],
        one.len()
    );
    Ok(())
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
        found: [None, None],
        surroundings: &observed.surroundings,
    };
    plan(facts, nodes.iter())
}

fn steps_of(plan: &Plan, observed: &Observed) -> Result<Vec<vxlan_overlay::Operation>> {
    let mut steps = Vec::new();
    for (wanted, found) in plan.tunnels.iter().zip(&observed.tunnels) {
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
        annotations: Arc::default(),
    }
}
