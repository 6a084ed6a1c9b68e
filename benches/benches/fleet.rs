//! 500 nodes with Portolan on one real API server, and 20 with kube-proxy itself on the same server: see `portolan_benches::fleet`.
//!
//! Needs the programs of `cargo xtask control-plane` in `PORTOLAN_CONTROL_PLANE`. Portolan is its source only, as the daemon
//! starts it; kube-proxy is the whole program. They run one after the other. 20 Portolans as well, since a server that has to refuse
//! requests is not comparable with one that has not. Each fleet has a name (`fleet Portolan 500`, `fleet kube-proxy`), so a filter
//! runs a part.

use std::time::Duration;

use anyhow::Result;
use lab::Capability;
use portolan_benches::fleet::{Cluster, KubeProxies, Plan, Sources, measure, table};
use portolan_benches::{Shape, quick, wanted};

const BENCH: &str = "fleet";

/// What is measured.
struct Size {
    shape: Shape,
    /// Of each fleet of Portolans, the largest first.
    portolans: Vec<u32>,
    kube_proxies: u32,
    plan: Plan,
}

fn main() -> Result<()> {
    let size = size();
    let portolan = |nodes: &u32| wanted(&format!("{BENCH} Portolan {nodes}"));
    let portolans: Vec<u32> = size.portolans.iter().copied().filter(portolan).collect();
    let has_kube_proxy = wanted(&format!("{BENCH} kube-proxy"));
    if portolans.is_empty() && !has_kube_proxy {
        return Ok(());
    }
    if let Some(why) = Capability::ControlPlane.missing() {
        eprintln!("SKIPPED: {BENCH}: no real API server: {why}");
        return Ok(());
    }
    let nodes = size.portolans.iter().max().copied().unwrap_or_default();
    let mut cluster = Cluster::start(size.shape, nodes.max(size.kube_proxies))?;
    let baseline = cluster.baseline(size.plan.rate, size.plan.idle / 2)?;
    let mut results = Vec::new();
    for nodes in portolans {
        let mut sources = Sources::new(&cluster, nodes)?;
        results.push(measure(&mut cluster, &mut sources, &size.plan)?);
        // What took minutes until here is not lost.
        eprintln!("{}", table::table(size.shape, &baseline, &results));
    }
    match Capability::KubeProxy.missing() {
        Some(why) => eprintln!("SKIPPED: {BENCH}: no kube-proxy: {why}"),
        None if !has_kube_proxy => {}
        None => {
            let mut kube_proxies = KubeProxies::new(&cluster, size.kube_proxies)?;
            results.push(measure(&mut cluster, &mut kube_proxies, &size.plan)?);
        }
    }
    print!("{}", table::table(size.shape, &baseline, &results));
    Ok(())
}

fn size() -> Size {
    let plan = |seconds, outage, after, patience| Plan {
        idle: Duration::from_secs(seconds),
        churn: Duration::from_secs(seconds),
        rate: 10,
        outage: Duration::from_secs(outage),
        after: Duration::from_secs(after),
        patience: Duration::from_secs(patience),
    };
    if quick() {
        return Size {
            shape: Shape::new(20, 10),
            portolans: vec![5],
            kube_proxies: 1,
            plan: plan(3, 0, 5, 60),
        };
    }
    Size {
        shape: Shape::new(1_000, 10),
        portolans: vec![500, 20],
        kube_proxies: 20,
        plan: plan(60, 60, 60, 600),
    }
}
