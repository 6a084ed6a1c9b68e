//! Each kind of Service through Portolan's rules, from pods and from outside, over both families.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use lab::{Host, Protocol, wait_for};

use crate::dns::resolve;
use crate::kubeadm::{Cluster, PATIENCE, xtask};
use crate::traffic::{HOST_PORT, NODE_PORT, PORTS, Web, cluster_ips, service};

/// Attempts of each kind.
const ATTEMPTS: usize = 40;

/// Asks, and expects every attempt to be answered by these servers and no others. Returns the number.
fn check(from: &Host, to: impl Into<SocketAddr>, servers: &[&str]) -> Result<usize> {
    let to = to.into();
    let expected: Vec<String> = servers.iter().map(|name| format!("{name}:8080")).collect();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let tally = from.connect_many(protocol, to, ATTEMPTS)?;
        ensure!(
            tally.failed() == 0 && tally.server_names() == expected,
            "{protocol} from {} to {to}: {tally:?}",
            from.name()
        );
    }
    Ok(2 * ATTEMPTS)
}

/// The Services besides `web`.
fn more_services() -> String {
    [
        service("one", &format!("selector: {{pod: web-0}}\n  {PORTS}")),
        service("headless", &format!("clusterIP: None\n  selector: {{app: web}}\n  {PORTS}")),
        service("balanced", &format!("type: LoadBalancer\n  selector: {{app: web}}\n  {PORTS}")),
        "---\napiVersion: v1\nkind: Service\nmetadata: {name: external}\nspec: {type: ExternalName, externalName: web.default.svc.cluster.local}\n".to_owned(),
    ]
    .concat()
}

#[test]
#[ignore = "needs cluster"]
fn every_kind_of_service_answers_pods_and_outside_hosts() -> Result<()> {
    let Some(xtask) = xtask() else {
        return Ok(());
    };
    let cluster = Cluster::up(&xtask, "services", &[])?;
    let web = Web::new(&cluster)?;
    cluster.apply(&more_services())?;
    let mut requests = 0;
    for ip in web.cluster_ips {
        requests += check(&web.client, (ip, 80), &["web-0", "web-1"])?;
    }
    requests += outside(&cluster, &web)?;
    let [one, _] = &web.servers;
    for ip in cluster_ips(&cluster, "one")? {
        wait_for("the rules of the new Service", PATIENCE, || {
            check(one, (ip, 80), &["web-0"])
        })?;
        requests += check(one, (ip, 80), &["web-0"])?;
    }
    requests += names(&cluster, &web)?;
    println!("{requests} requests, all answered");
    cluster.doctor()
}

/// Node ports, host port and load balancer, from a host outside of the cluster.
fn outside(cluster: &Cluster, web: &Web) -> Result<usize> {
    let both = ["web-0", "web-1"];
    let mut requests = 0;
    for node in [cluster.node("node1")?, cluster.node("node2")?] {
        for ip in node.addresses() {
            requests += check(&web.outside, (ip, NODE_PORT), &both)?;
        }
    }
    let [v4, _] = cluster.node("node2")?.addresses();
    let tally = web
        .outside
        .connect_many(Protocol::Tcp, (v4, HOST_PORT), ATTEMPTS)?;
    ensure!(
        tally.failed() == 0 && tally.server_names() == ["web-1:8080"],
        "host port: {tally:?}"
    );
    let status =
        r#"{"status":{"loadBalancer":{"ingress":[{"ip":"203.0.113.10"},{"ip":"2001:db8::10"}]}}}"#;
    cluster.kubectl(&[
        "patch",
        "service",
        "balanced",
        "--subresource=status",
        "--type=merge",
        "-p",
        status,
    ])?;
    for (range, via, address) in [
        ("203.0.113.0/24", "192.168.88.1", "203.0.113.10"),
        ("2001:db8::/64", "fd88::2", "2001:db8::10"),
    ] {
        let mut route = web.outside.command("ip");
        route.args(["route", "add", range, "via", via]);
        let output = web.outside.output(route)?;
        ensure!(output.status.success(), "{output:?}");
        let address: IpAddr = address.parse()?;
        wait_for("the load balancer's address", PATIENCE, || {
            check(&web.outside, (address, 80), &both)
        })?;
        requests += check(&web.outside, (address, 80), &both)?;
        requests += check(&web.client, (address, 80), &both)?;
    }
    Ok(requests + ATTEMPTS)
}

/// Cluster DNS, which is a Service itself.
fn names(cluster: &Cluster, web: &Web) -> Result<usize> {
    let pods = |v6: bool| -> BTreeSet<IpAddr> {
        let ips = web
            .servers
            .iter()
            .map(|server| server.addresses()[usize::from(v6)]);
        ips.collect()
    };
    let mut questions = 0;
    for v6 in [false, true] {
        let service = BTreeSet::from([web.cluster_ips[usize::from(v6)]]);
        for (name, expected) in [
            ("web", &service),
            ("external", &service),
            ("headless", &pods(v6)),
        ] {
            let name = format!("{name}.default.svc.cluster.local");
            for _ in 0..ATTEMPTS {
                let found = resolve(&web.client, &name, v6)?;
                ensure!(found == *expected, "{name}: {found:?}, not {expected:?}");
                questions += 1;
            }
        }
    }
    // The resolver of a pod, with the search list that kubelet writes.
    let exec = [
        "exec",
        "client",
        "--",
        "nslookup",
        "web.default.svc.cluster.local",
    ];
    let shown = cluster.kubectl(&exec)?;
    let first = web.cluster_ips.first().context("no cluster IP")?;
    ensure!(shown.contains(&first.to_string()), "{shown}");
    Ok(questions + 1)
}
