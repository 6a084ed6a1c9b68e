//! The phases that every fleet goes through: a start of all at once, idleness, changes, and an outage of the API server.

use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Result, ensure};

use super::cluster::Cluster;
use super::fleets::{Fleet, Return};
use super::load::{Beginning, Load, busiest_second};
use crate::Samples;

/// Between two checks of the nodes.
const EVERY: Duration = Duration::from_millis(250);
/// A start is over when this few bytes a node have come in [`QUIET`].
const FEW_BYTES: u64 = 2_000;
const QUIET: Duration = Duration::from_secs(5);

/// How long each phase takes.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Without changes.
    pub idle: Duration,
    /// With changes.
    pub churn: Duration,
    /// Changes a second.
    pub rate: u32,
    /// The API server is away for this long at least.
    pub outage: Duration,
    /// The load of a return is measured for this long at least.
    pub after: Duration,
    /// Whatever is waited for comes within this time.
    pub patience: Duration,
}

/// What was measured of one fleet. Loads are of all nodes together.
#[derive(Clone, Debug)]
pub struct Figures {
    /// The proxy.
    pub name: String,
    /// Number of nodes.
    pub nodes: u32,
    /// Open watches without the fleet.
    pub watches_before: u64,
    /// From the start until all nodes have all watches.
    pub watching: Duration,
    /// From the start until the last bytes of lists.
    pub listed: Duration,
    /// Of the start.
    pub start: Load,
    /// Without changes.
    pub idle: Load,
    /// With changes.
    pub churn: Load,
    /// Their number.
    pub changes: u32,
    /// How long they were made.
    pub churning: Duration,
    /// From the request for a change until a node has it; `None` if that cannot be seen.
    pub deliveries: Option<Samples>,
    /// Pairs of a node and a Service without the last change, after the changes.
    pub lost_changes: usize,
    /// The return after the outage.
    pub back: Back,
}

/// The return of all nodes after an outage. Times are from the first answer to any node on.
#[derive(Clone, Debug, Default)]
pub struct Back {
    /// How long the server was away.
    pub away: Duration,
    /// From the start of the server's process until the first answer.
    pub until_first: Duration,
    /// Of each node, the first answer.
    pub first: Samples,
    /// Of each node, when all its watches were open for good.
    pub watching: Samples,
    /// Nodes without all watches at the end.
    pub absent: usize,
    /// The most requests of all nodes in one second.
    pub busiest: u32,
    /// From the start of the server's process.
    pub load: Load,
    /// Processor time of a start without nodes.
    pub startup: Duration,
    /// Lists that proxies got; `None` if unknown.
    pub whole_lists: Option<usize>,
    /// Pairs of a node and a Service without the last change, after the return.
    pub lost_changes: usize,
}

/// Takes a fleet through all phases.
pub fn measure(cluster: &mut Cluster, fleet: &mut impl Fleet, plan: &Plan) -> Result<Figures> {
    let (name, nodes) = (fleet.name(), fleet.nodes());
    let watches_before = cluster.metrics()?.watches;
    eprintln!("{name}: start of {nodes} nodes");
    let beginning = Beginning::now(cluster, fleet)?;
    let (watching, listed) = start(cluster, fleet, plan)?;
    let start = beginning.until_now(cluster, fleet)?;

    eprintln!("{name}: idle, after {start:?}");
    let beginning = Beginning::now(cluster, fleet)?;
    sleep(plan.idle);
    let idle = beginning.until_now(cluster, fleet)?;

    eprintln!("{name}: changes, after {idle:?}");
    let beginning = Beginning::now(cluster, fleet)?;
    let churning = Instant::now();
    let changes = cluster.changes(plan.rate, plan.churn)?;
    let churning = churning.elapsed();
    let churn = beginning.until_now(cluster, fleet)?;
    let lost_changes = lost_changes(cluster, fleet, plan)?;
    let deliveries = fleet.deliveries();

    eprintln!("{name}: outage, after {churn:?}, {changes} changes");
    let back = back(cluster, fleet, plan)?;
    eprintln!("{name}: is back: {:?}", back.load);
    Ok(Figures {
        name,
        nodes,
        watches_before,
        watching,
        listed,
        start,
        idle,
        churn,
        changes,
        churning,
        deliveries,
        lost_changes,
        back,
    })
}

/// Starts the fleet. Returns the times until all watches were open and until no more bytes of lists came.
fn start(cluster: &Cluster, fleet: &mut impl Fleet, plan: &Plan) -> Result<(Duration, Duration)> {
    let start = Instant::now();
    fleet.start()?;
    let few = FEW_BYTES * u64::from(fleet.nodes());
    let (mut bytes, mut grew, mut watching) = (0, start, None);
    loop {
        sleep(EVERY);
        let received = fleet.traffic()?.received;
        if received > bytes + few {
            (bytes, grew) = (received, Instant::now());
        }
        if watching.is_none() && fleet.is_watching(cluster)? {
            watching = Some(start.elapsed());
        }
        if let Some(watching) = watching.filter(|_| grew.elapsed() > QUIET) {
            return Ok((watching, grew - start));
        }
        ensure!(
            start.elapsed() < plan.patience,
            "not all nodes watch after {:?}",
            plan.patience
        );
    }
}

/// Waits until all nodes have the last change of every Service, or for long enough. Returns how many pairs are missing.
fn lost_changes(cluster: &Cluster, fleet: &impl Fleet, plan: &Plan) -> Result<usize> {
    let start = Instant::now();
    loop {
        let missing = fleet.missing(cluster.last_changes())?;
        if missing == 0 || start.elapsed() > plan.patience / 4 {
            return Ok(missing);
        }
        sleep(EVERY);
    }
}

fn back(cluster: &mut Cluster, fleet: &impl Fleet, plan: &Plan) -> Result<Back> {
    let lists_before = fleet.whole_lists();
    let start = Instant::now();
    let startup = cluster.stop_server(plan.rate)?;
    sleep(plan.outage.saturating_sub(start.elapsed()));
    let (away, traffic) = (start.elapsed(), fleet.traffic()?);
    let since = cluster.start_server()?;
    let beginning = Beginning::of_server(since, traffic);
    let ago = || since.elapsed().unwrap_or_default();
    let mut returns = Vec::new();
    while ago() < plan.patience {
        sleep(EVERY);
        returns = fleet.returns(since, cluster)?;
        let are_all = returns.iter().all(|node| node.watching.is_some());
        if are_all && ago() > plan.after {
            break;
        }
    }
    let load = beginning.until_now(cluster, fleet)?;
    let lost_changes = lost_changes(cluster, fleet, plan)?;
    let audit = cluster.audit(fleet.user())?;
    let first = returns.iter().filter_map(|node| node.first).min();
    let first = first.unwrap_or(since);
    let after_first = |time: fn(&Return) -> Option<SystemTime>| {
        let mut samples = Samples::new();
        for time in returns.iter().filter_map(time) {
            samples.push(time.duration_since(first).unwrap_or_default());
        }
        samples
    };
    let watching = after_first(|node| node.watching);
    Ok(Back {
        away,
        until_first: first.duration_since(since).unwrap_or_default(),
        first: after_first(|node| node.first),
        absent: returns.len() - watching.len(),
        watching,
        busiest: busiest_second(&audit, first),
        load,
        startup,
        whole_lists: fleet
            .whole_lists()
            .zip(lists_before)
            .map(|(after, before)| after - before),
        lost_changes,
    })
}
