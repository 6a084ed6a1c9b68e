//! `portolan doctor` as the scenarios ask it.

use anyhow::{Context, Result, ensure};
use lab::{Host, wait_for};
use serde_json::Value;

use crate::overlay::OverlayStage;
use crate::stage::{PATIENCE, portolan};

/// Arguments for rounds of probes that follow each other as fast as they can.
pub const FAST: &[&str] = &["--overlay-probe-interval", "20ms"];
/// As reports name them.
pub const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];

/// What it says of one peer in one family.
pub struct Diagnosis {
    /// Exit status: 0 healthy, 1 broken, 2 unknown.
    pub code: Option<i32>,
    pub report: Value,
    /// The part about the peer in the family.
    pub peer: Value,
}

impl Diagnosis {
    /// The verdict in one word.
    pub fn verdict(&self) -> &str {
        self.peer["verdict"].as_str().unwrap_or_default()
    }

    /// The verdict in words.
    pub fn text(&self) -> &str {
        self.peer["text"].as_str().unwrap_or_default()
    }
}

/// What it prints, and how it ends.
pub fn doctor(host: &Host, arguments: &[&str]) -> Result<(Option<i32>, String)> {
    let mut command = host.command(portolan()?);
    command.arg("doctor").args(arguments);
    let output = host.output(command)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok((output.status.code(), text + &complaints))
}

/// Asks it about a peer.
pub fn ask(host: &Host, peer: &str, family: &str) -> Result<Diagnosis> {
    let (code, text) = doctor(host, &["--to", peer, "--output", "json"])?;
    let report: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
    let peers = report["peers"].as_array().context("no peers")?;
    let found = peers.iter().find(|entry| entry["family"] == family);
    let peer = found.with_context(|| text.clone())?.clone();
    Ok(Diagnosis { code, report, peer })
}

/// Waits until every node finds every other one healthy in both families, and its answerer up.
pub fn wait_until_healthy(stage: &OverlayStage) -> Result<()> {
    for from in &stage.nodes {
        for to in stage.nodes.iter().filter(|to| to.name() != from.name()) {
            for family in FAMILIES {
                let what = format!("{} to be well at {} ({family})", to.name(), from.name());
                wait_for(&what, PATIENCE, || {
                    let found = ask(from, to.name(), family)?;
                    let measured = &found.peer["measured"];
                    let answered = ["host", "tunnel"].iter().all(|path| {
                        let protocols = ["udp", "tcp"].iter();
                        protocols
                            .map(|name| &measured[path][name])
                            .all(|said| said == "answered")
                    });
                    ensure!(answered && found.peer["healthy"] == true, "{}", found.peer);
                    Ok(())
                })?;
            }
        }
    }
    Ok(())
}
