//! Connections that no endpoint can take.

use std::io::ErrorKind;
use std::net::TcpStream;

use anyhow::{Context, Result, ensure};
use lab::{Outcome, scenario, wait_until};
use portolan_tests::stage::{PATIENCE, Stage, service};

/// Times this thread's network namespace has sent a SYN again (`TCPSynRetrans` of RFC 4022's extensions).
fn syns_sent_again() -> Result<u64> {
    let table = std::fs::read_to_string("/proc/thread-self/net/netstat")?;
    let mut lines = table.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (
        lines.next().context("names")?,
        lines.next().context("values")?,
    );
    let found = names
        .split(' ')
        .zip(values.split(' '))
        .find(|(name, _)| *name == "TCPSynRetrans");
    Ok(found.context("TCPSynRetrans")?.1.parse()?)
}

#[scenario(Nft)]
fn clients_are_refused_at_their_first_syn() -> Result<()> {
    let stage = Stage::new()?;
    let empty = service("empty", 81);
    stage.add(&empty, 0..0)?;
    let _daemon = stage.start_synced(&[])?;
    stage.wait_for_backends(&stage.web, 4)?;
    let refused = || {
        stage
            .connect(&stage.client, &empty)
            .is_ok_and(|outcome| outcome == Outcome::Refused)
    };
    wait_until("the Service without endpoints to refuse", PATIENCE, refused)?;
    let node_port = format!(
        "{}:{}",
        stage.node.ipv4(),
        empty.node_port.context("it has one")?
    );
    let unknown_port = format!("{}:{}", stage.web.cluster_ips[0], 81);
    for address in [
        format!("{}:80", empty.cluster_ips[0]),
        format!("[{}]:80", empty.cluster_ips[1]),
        node_port,
        unknown_port,
    ] {
        for host in [&*stage.client, &*stage.node] {
            let to = address.clone();
            let (error, again) = host.run(move || {
                let before = syns_sent_again()?;
                let error = TcpStream::connect(&to).err().map(|error| error.kind());
                anyhow::Ok((error, syns_sent_again()? - before))
            })??;
            ensure!(
                error == Some(ErrorKind::ConnectionRefused),
                "{address}: {error:?}"
            );
            ensure!(
                again == 0,
                "{address} from {}: {again} SYNs sent again",
                host.name()
            );
        }
    }
    Ok(())
}
