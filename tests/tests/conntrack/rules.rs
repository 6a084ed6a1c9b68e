//! Flows whose rules change by something other than the loss of an endpoint: source ranges, node addresses.

use lab::{Client, node_object};

use super::*;

const LOAD_BALANCER: [&str; 2] = ["203.0.113.53", "2001:db8:5::53"];
/// An address that the node gets later, and its range.
const LATE: &str = "192.168.77.99";
const LATE_RANGE: &str = "192.168.77.0/24";

/// The UDP Service with load balancer addresses that these ranges may use.
fn guarded(stage: &Stage, ranges: &[String]) -> Result<()> {
    let mut objects = dns_objects(stage, ready(&[0]))?;
    let object = objects.first_mut().context("no Service")?;
    object["spec"]["type"] = json!("LoadBalancer");
    object["spec"]["loadBalancerSourceRanges"] = json!(ranges);
    let ingress = LOAD_BALANCER.map(|ip| json!({ "ip": ip }));
    object["status"] = json!({ "loadBalancer": { "ingress": ingress } });
    stage.manifests.write_objects("dns.yaml", &objects)
}

fn outside(stage: &Stage) -> Result<Client> {
    let outside = stage.lab().client("outside")?;
    for range in ["203.0.113.0/24", "2001:db8:5::/64", LATE_RANGE] {
        outside.route_via(&stage.node, range.parse()?)?;
    }
    Ok(outside)
}

#[scenario(Nft)]
fn a_flow_ends_when_its_source_range_is_withdrawn() -> Result<()> {
    let stage = stage()?;
    let outside = outside(&stage)?;
    let allowed = outside.addresses().map(|ip| ip.to_string());
    let allowed = allowed.map(|ip| format!("{ip}/{}", if ip.contains(':') { 128 } else { 32 }));
    let others = ["198.51.100.0/24".to_owned(), "2001:db8:9::/64".to_owned()];
    guarded(&stage, &allowed)?;
    let mut daemon = stage.start_synced(&[])?;
    for address in LOAD_BALANCER {
        let to = SocketAddr::new(address.parse()?, UDP_PORT);
        wait_for(&outside, to, |o| server(o).is_some())?;
        guarded(&stage, &others)?;
        wait_for(&outside, to, |o| server(o).is_none())?;
        guarded(&stage, &allowed)?;
        wait_for(&outside, to, |o| server(o).is_some())?;
        // While no daemon runs.
        daemon.kill()?;
        guarded(&stage, &others)?;
        daemon = stage.start_synced(&[])?;
        wait_for(&outside, to, |o| server(o).is_none())?;
        guarded(&stage, &allowed)?;
        wait_for(&outside, to, |o| server(o).is_some())?;
    }
    Ok(())
}

fn ip(stage: &Stage, line: &str) -> Result<()> {
    let mut command = stage.node.command("ip");
    command.args(line.split(' '));
    let output = stage.node.output(command)?;
    ensure!(output.status.success(), "ip {line}: {output:?}");
    Ok(())
}

#[scenario(Nft)]
fn flows_to_a_node_address_that_comes_later_find_it() -> Result<()> {
    let stage = stage()?;
    dns(&stage, ready(&[0]))?;
    let _daemon = stage.start_synced(&["--nodeport-addresses", LATE_RANGE])?;
    lead_nowhere(&stage, LATE)?;
    let to = SocketAddr::new(LATE.parse()?, NODE_PORT);
    ask(&stage.client, to)?;
    ensure!(
        !flows(&stage, Family::Ip, nft::Protocol::Udp, NODE_PORT)?.is_empty(),
        "the flow is not tracked"
    );
    let web = SocketAddr::new(LATE.parse()?, stage.web.node_port.context("no node port")?);
    let client = stage.client.clone();
    let waiting = std::thread::spawn(move || {
        client.probe(Probe::new(Protocol::Tcp, web).within(Duration::from_secs(40)))
    });
    wait_until("the SYN to pass", PATIENCE, || {
        flows(&stage, Family::Ip, nft::Protocol::Tcp, web.port())
            .is_ok_and(|flows| flows.iter().any(|flow| flow.destination == web))
    })?;
    ip(&stage, &format!("address add {LATE}/32 dev eth0"))?;
    wait_for(&stage.client, to, |o| server(o) == Some("web-0"))?;
    let outcome = waiting.join().ok().context("the client panicked")??;
    ensure!(outcome.server().is_some(), "the SYN is lost: {outcome:?}");
    Ok(())
}

#[scenario(Nft)]
fn flows_to_an_address_that_the_node_object_gains_find_it() -> Result<()> {
    let stage = stage()?;
    dns(&stage, ready(&[0]))?;
    ip(&stage, &format!("address add {LATE}/32 dev eth0"))?;
    let _daemon = stage.start_synced(&[])?;
    let to = SocketAddr::new(LATE.parse()?, NODE_PORT);
    let outcome = ask(&stage.client, to)?;
    ensure!(outcome == Outcome::Refused, "{outcome:?}");
    let mut node = node_object(&stage.node);
    node["status"]["addresses"] = json!([{ "type": "InternalIP", "address": LATE }]);
    stage.manifests.write_objects("nodes.yaml", &[node])?;
    wait_for(&stage.client, to, |o| server(o) == Some("web-0"))
}
