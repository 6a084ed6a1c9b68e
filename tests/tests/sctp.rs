//! Real SCTP associations through Services, where the kernel has SCTP: balanced, on node ports, in both families,
//! refused without endpoints, and kept through a kill and a foreign flush.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, ensure};
use lab::{Host, Outcome, Probe, Protocol, scenario, wait_until};
use nft::Feature;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, connect, socket,
};
use portolan_tests::stage::{PATIENCE, Stage, features, service};
use serde_json::Value;

/// A Service of TCP, changed to SCTP.
fn over_sctp(mut objects: Vec<Value>) -> Vec<Value> {
    for object in &mut objects {
        for place in ["/ports/0/protocol", "/spec/ports/0/protocol"] {
            if let Some(protocol) = object.pointer_mut(place) {
                *protocol = "SCTP".into();
            }
        }
    }
    objects
}

/// A stage whose pods serve SCTP as well, with the Service `streams` on n = 90.
fn stage() -> Result<Stage> {
    let stage = Stage::new()?;
    for pod in &stage.pods {
        pod.serve(Protocol::Sctp, 8080)?;
    }
    serve_with(&stage, 4)?;
    Ok(stage)
}

fn serve_with(stage: &Stage, pods: usize) -> Result<()> {
    let objects = over_sctp(stage.objects(&service("streams", 90), 0..pods));
    stage.manifests.write_objects("streams.yaml", &objects)
}

fn to(address: &str, port: u16) -> Result<SocketAddr> {
    Ok(SocketAddr::new(
        address.parse().context("an address")?,
        port,
    ))
}

/// Associates until exactly this number of pods has answered.
fn wait_for_servers(from: &Host, at: SocketAddr, count: usize) -> Result<()> {
    wait_until(&format!("{count} servers behind {at}"), PATIENCE, || {
        let mut servers = BTreeSet::new();
        for _ in 0..60 {
            match from.probe(Probe::new(Protocol::Sctp, at)) {
                Ok(Outcome::Answered { server, .. }) => servers.insert(server),
                _ => return false,
            };
        }
        servers.len() == count
    })
}

#[scenario(Nft, Sctp)]
fn sctp_is_balanced_in_both_families_from_everywhere() -> Result<()> {
    let stage = stage()?;
    let outside = stage.lab().client("outside")?;
    let _daemon = stage.start_synced(&[])?;
    let node: [IpAddr; 2] = [stage.node.ipv4().into(), stage.node.ipv6().into()];
    for cluster_ip in ["10.96.0.90", "fd00:96::90"] {
        wait_for_servers(&stage.client, to(cluster_ip, 80)?, 4)?;
        wait_for_servers(&stage.node, to(cluster_ip, 80)?, 4)?;
        // To itself among others.
        wait_for_servers(&stage.pods[0], to(cluster_ip, 80)?, 4)?;
    }
    for address in node {
        wait_for_servers(&outside, SocketAddr::new(address, 30090), 4)?;
    }
    serve_with(&stage, 0)?;
    let at = to("10.96.0.90", 80)?;
    wait_until("a refusal", PATIENCE, || {
        let outcome = stage.client.probe(Probe::new(Protocol::Sctp, at));
        matches!(outcome, Ok(Outcome::Refused | Outcome::Unreachable))
    })
}

/// An association from the calling thread's namespace, and who greeted.
fn associate(at: SocketAddr) -> Result<TcpStream> {
    let family = if at.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let socket = socket(
        family,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::Sctp,
    )?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(at))?;
    // One-to-one style: the calls of a stream are the same.
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut greeting = [0; 256];
    let length = stream.read(&mut greeting)?;
    ensure!(length > 0, "no greeting");
    Ok(stream)
}

fn exchange(stream: &mut TcpStream, number: u64) -> Result<()> {
    stream.write_all(&number.to_be_bytes())?;
    let mut echoed = [0; 8];
    stream
        .read_exact(&mut echoed)
        .with_context(|| format!("the echo of {number}"))?;
    ensure!(u64::from_be_bytes(echoed) == number, "another echo");
    Ok(())
}

#[scenario(Nft, Sctp)]
fn associations_outlive_kills_and_foreign_flushes() -> Result<()> {
    let stage = stage()?;
    let mut daemon = stage.start_synced(&[])?;
    let at = to("10.96.0.90", 80)?;
    wait_for_servers(&stage.client, at, 4)?;
    let mut streams = stage
        .client
        .run(move || (0..20).map(|_| associate(at)).collect::<Result<Vec<_>>>())??;
    let is_owned = features()?.has(Feature::TableOwner);
    let before = stage.tables()?;
    for round in 0..10 {
        daemon.kill()?;
        daemon = stage.start_synced(&[])?;
        if is_owned {
            stage.node.nft(&["flush", "ruleset"])?;
        }
        for stream in &mut streams {
            exchange(stream, round)?;
        }
        // A guard table goes with its daemon: only a repaired table outlives the next kill.
        let healed = || stage.tables().is_ok_and(|tables| tables == before);
        wait_until("the tables as they were", PATIENCE, healed)?;
    }
    if !is_owned {
        println!("FALLBACK: no flushes, since no owned tables keep associations through them");
    }
    Ok(())
}
