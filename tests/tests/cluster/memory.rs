//! Memory of Portolan and of kube-proxy in the same cluster, with the same Services.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use lab::wait_for;

use crate::kubeadm::{Cluster, PATIENCE, xtask};
use crate::migration::follow;

/// Namespaces, and the number of Services when each has been added. A namespace is the fastest way to delete many.
const SIZES: [(&str, usize); 3] = [("ten", 10), ("thousand", 1_000), ("most", 5_000)];

/// Endpoints of each Service.
const ENDPOINTS: usize = 10;

/// Objects in one command.
const BATCH: usize = 500;

#[derive(Clone, Copy)]
struct ServiceProxy {
    process: &'static str,
    set: &'static str,
}

const KUBE_PROXY: ServiceProxy = ServiceProxy {
    process: "kube-proxy",
    set: "ds/kube-proxy",
};

const PORTOLAN: ServiceProxy = ServiceProxy {
    process: "portolan",
    set: "ds/portolan",
};

/// Memory of a pod's container on node2, in KiB.
#[derive(Clone, Copy, Debug)]
struct Memory {
    /// Resident set of the service proxy itself.
    resident: u64,
    /// The most that its container had at one time, other programs that it starts and files included.
    peak: u64,
}

#[test]
#[ignore = "needs cluster"]
fn portolan_needs_no_more_memory_than_kube_proxy() -> Result<()> {
    let Some(xtask) = xtask() else {
        return Ok(());
    };
    let parts = ["--proxy", "kube-proxy", "--overlay", "flannel"];
    let cluster = Cluster::up(&xtask, "memory", &parts)?;
    let mut theirs = Vec::new();
    let mut before = 0;
    for (namespace, number) in SIZES {
        add(&cluster, namespace, before..number)?;
        before = number;
        theirs.push(after_a_restart(&cluster, KUBE_PROXY, number)?);
    }
    follow(&cluster, "## kube-proxy")?;
    let mut ours = Vec::new();
    for (namespace, number) in SIZES.into_iter().rev() {
        ours.push(after_a_restart(&cluster, PORTOLAN, number)?);
        cluster.kubectl(&["delete", "namespace", namespace, "--timeout=600s"])?;
    }
    ours.reverse();
    for ((_, number), (theirs, ours)) in SIZES.iter().zip(theirs.iter().zip(&ours)) {
        println!("| {number} | {} | {} |", shown(*theirs), shown(*ours));
        ensure!(
            ours.resident <= theirs.resident && ours.peak <= theirs.peak,
            "{number} Services: {ours:?} after {theirs:?}"
        );
    }
    Ok(())
}

fn shown(memory: Memory) -> String {
    let megabytes = |kib: u64| kib as f64 / 1024.0;
    let (resident, peak) = (megabytes(memory.resident), megabytes(memory.peak));
    format!("{resident:.1} | {peak:.1}")
}

/// Makes Services with endpoints of nobody.
fn add(cluster: &Cluster, namespace: &str, numbers: std::ops::Range<usize>) -> Result<()> {
    cluster.kubectl(&["create", "namespace", namespace])?;
    let numbers: Vec<usize> = numbers.collect();
    for batch in numbers.chunks(BATCH) {
        let mut text = String::new();
        for number in batch {
            write_service(&mut text, namespace, *number)?;
        }
        cluster.create(&text)?;
    }
    Ok(())
}

/// A Service without a selector, and its EndpointSlice.
fn write_service(text: &mut String, namespace: &str, number: usize) -> Result<()> {
    let name = format!("s{number}");
    let (high, low) = (number / 200, number % 200);
    let mut endpoints = String::new();
    for endpoint in 1..=ENDPOINTS {
        write!(
            endpoints,
            "{{addresses: [10.{}.{high}.{low}]}}, ",
            100 + endpoint
        )?;
    }
    write!(
        text,
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{ports: [{{port: 80, targetPort: 8080}}]}}\n\
         ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{kubernetes.io/service-name: {name}}}}}\n\
         addressType: IPv4\nports: [{{port: 8080, name: ''}}]\nendpoints: [{endpoints}]\n"
    )?;
    Ok(())
}

/// How many cluster IPs are in a service proxy's rules on node2.
fn addresses(cluster: &Cluster, proxy: ServiceProxy) -> Result<usize> {
    let listing = match proxy.process {
        // By the `nft` of its own image: nft 1.0.6 ends with a segmentation fault on what that one has written.
        "kube-proxy" => {
            let pods = cluster.pods("kube-system", "k8s-app=kube-proxy")?;
            let of_node2 = pods.into_iter().find(|(_, node)| node == "node2");
            let (pod, _) = of_node2.context("no kube-proxy on node2")?;
            let exec = ["-n", "kube-system", "exec", &pod, "--"];
            let list = ["nft", "list", "map", "ip", "kube-proxy", "service-ips"];
            cluster.kubectl(&[&exec[..], &list].concat())?
        }
        table => cluster.run_on("node2", &["nft", "list", "table", "ip", table])?,
    };
    // The cluster's range of cluster IPs: 10.96.0.0/16.
    let is_cluster_ip = |ip: &Ipv4Addr| matches!(ip.octets(), [10, 96, ..]);
    let words = listing.split(|c: char| !c.is_ascii_digit() && c != '.');
    let found = words.filter_map(|word| word.parse().ok());
    Ok(found.filter(is_cluster_ip).collect::<BTreeSet<_>>().len())
}

/// Starts a service proxy again on all nodes, and reads its memory when it has written all rules.
fn after_a_restart(cluster: &Cluster, proxy: ServiceProxy, services: usize) -> Result<Memory> {
    cluster.kubectl(&["-n", "kube-system", "rollout", "restart", proxy.set])?;
    cluster.rolled_out("kube-system", proxy.set)?;
    // kubeadm's DaemonSet has no readiness probe; healthy means that the first sync is done.
    let healthz = "/api/v1/nodes/node2:10256/proxy/healthz";
    wait_for("the first sync", PATIENCE, || {
        cluster.kubectl(&["get", "--raw", healthz])
    })?;
    // kube-proxy is healthy before its first sync has all that there is.
    wait_for("all rules", PATIENCE, || {
        let found = addresses(cluster, proxy)?;
        ensure!(
            found >= services,
            "rules of {found} Services, not {services}"
        );
        Ok(())
    })?;
    let read = format!(
        "pid=$(pgrep -x -o {}); sed -n 's/^VmRSS:[^0-9]*\\([0-9]*\\) kB/\\1/p' /proc/$pid/status; \
         if [ -d /sys/fs/cgroup/memory ]; then cat /sys/fs/cgroup/memory$(sed -n 's/^[0-9]*:memory://p' /proc/$pid/cgroup)/memory.max_usage_in_bytes; \
         else cat /sys/fs/cgroup$(sed -n 's/^0:://p' /proc/$pid/cgroup)/memory.peak; fi",
        proxy.process
    );
    let text = cluster.run_on("node2", &["bash", "-c", &read])?;
    let mut numbers = text.split_whitespace().map(str::parse::<u64>);
    let mut next = || numbers.next().context("no number")?.context(text.clone());
    let memory = Memory {
        resident: next()?,
        peak: next()? / 1024,
    };
    println!("{} with {services} Services: {memory:?}", proxy.process);
    Ok(memory)
}
