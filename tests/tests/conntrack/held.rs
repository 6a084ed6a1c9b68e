//! Connections of outside clients, whose source address the node replaces: they outlive the loss of conntrack entries.

use super::*;

const LOAD_BALANCER: [&str; 2] = ["203.0.113.80", "2001:db8:5::80"];
const CONNECTIONS: usize = 100;

/// Deletes every entry of TCP connections on the node, as `conntrack -F` does.
fn flush(stage: &Stage) -> Result<()> {
    stage.node.run(|| -> Result<()> {
        for family in Family::ALL {
            let all = FlowFilter::all(family, nft::Protocol::Tcp);
            Conntrack::open()?.delete(&all, |_| true)?;
        }
        Ok(())
    })?
}

fn open(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut greeting = String::new();
    BufReader::new(&stream).read_line(&mut greeting)?;
    ensure!(!greeting.is_empty(), "no greeting from {to}");
    Ok(stream)
}

/// The client speaks first: an answer of the server that meets no entry could not be translated back.
fn exchange(stream: &mut TcpStream) -> Result<()> {
    let said = [7; 8];
    stream.write_all(&said)?;
    let mut echoed = [0; 8];
    stream.read_exact(&mut echoed)?;
    ensure!(echoed == said, "another echo");
    Ok(())
}

#[scenario(Nft)]
fn masqueraded_connections_outlive_flushes_of_conntrack() -> Result<()> {
    let stage = Stage::new()?;
    let mut objects = stage.objects(&stage.web, 0..4);
    let object = objects.first_mut().context("no Service")?;
    object["spec"]["type"] = json!("LoadBalancer");
    let ingress = LOAD_BALANCER.map(|ip| json!({ "ip": ip }));
    object["status"] = json!({ "loadBalancer": { "ingress": ingress } });
    stage.manifests.write_objects("web.yaml", &objects)?;
    let _daemon = stage.start_synced(&[])?;
    stage.wait_for_backends(&stage.web, 4)?;
    let outside = stage.lab().client("outside")?;
    for range in [
        "10.96.0.0/16",
        "fd00:96::/64",
        "203.0.113.0/24",
        "2001:db8:5::/64",
    ] {
        outside.route_via(&stage.node, range.parse()?)?;
    }
    let port = stage.web.node_port.context("no node port")?;
    let cluster_ips = stage.web.cluster_ips.iter().map(|ip| ip.parse());
    let load_balancer = LOAD_BALANCER.iter().map(|ip| ip.parse());
    let service: Vec<IpAddr> = cluster_ips.chain(load_balancer).collect::<Result<_, _>>()?;
    let service = service
        .into_iter()
        .map(|ip| SocketAddr::new(ip, stage.web.port));
    let nodes = stage.node.addresses().map(|ip| SocketAddr::new(ip, port));
    for to in service.chain(nodes) {
        let opened =
            outside.run(move || (0..CONNECTIONS).map(|_| open(to)).collect::<Result<_>>())?;
        let mut held: Vec<TcpStream> = opened.with_context(|| format!("connect to {to}"))?;
        for _ in 0..3 {
            flush(&stage)?;
            let lost = held.iter_mut().filter_map(|stream| exchange(stream).err());
            let lost: Vec<_> = lost.collect();
            ensure!(
                lost.is_empty(),
                "{} of {CONNECTIONS} to {to} lost: {lost:?}",
                lost.len()
            );
        }
    }
    Ok(())
}
