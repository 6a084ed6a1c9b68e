//! `portolan doctor`: requests a measurement from the daemon of this node, and prints the report.
//!
//! The daemon listens on a socket of the network namespace, `@portolan-doctor` ([`crate::local_socket`]).

use std::io::{BufRead, BufReader, Write};
use std::sync::Arc;
use std::time::Duration;

use super::measurement::Measurement;
use anyhow::{Context, bail, ensure};
use futures::StreamExt;
use futures::stream;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::counters;
use super::directory::Target;
use super::firewall::{self, untraceable};
use super::forwarding;
use super::local_socket;
use super::measure::Pair;
use super::pod_packet;

mod print;

const SOCKET: &str = "portolan-doctor";
/// Measuring the slowest peer takes about 10 s, and there are several at a time.
const PATIENCE: Duration = Duration::from_secs(120);
/// The daemon waits this long for a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_REQUEST: u64 = 4096;
/// Peers measured when the command names none.
const PEERS: usize = 64;
/// Peers measured at a time.
const AT_A_TIME: usize = 16;
/// Peers for which the dropping rule is traced.
const TRACES: usize = 3;
const RETRY: Duration = Duration::from_secs(5);

/// The request of the command.
#[derive(Debug, Serialize, Deserialize)]
struct Request {
    /// The peer to measure; `None` for all, up to [`PEERS`].
    to: Option<String>,
}

/// The answer of the daemon.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct DoctorReport {
    /// This node.
    pub node: String,
    /// Why nothing could be tested, if so.
    pub trouble: Option<String>,
    /// One entry for each peer and family.
    pub peers: Vec<PeerReport>,
    /// What is wrong with this node itself, and peers that its plan leaves out.
    #[serde(default)]
    pub faults: Vec<String>,
    /// How many pairs of peer and family were not tested.
    pub left_out: usize,
    /// Changes that this node has made because of earlier findings.
    pub remedies: Vec<String>,
    /// Facts about this node's rules that may explain a failure.
    pub notes: Vec<String>,
}

/// The result for one peer in one family.
#[derive(Debug, Serialize, Deserialize)]
pub struct PeerReport {
    /// Its name.
    pub node: String,
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// Whether its pods can be reached.
    pub healthy: bool,
    /// The verdict in one word.
    pub verdict: String,
    /// The verdict in a sentence.
    pub text: String,
    /// What was measured.
    pub measured: Measurement,
}

impl DoctorReport {
    /// Exit status of the command: 0 healthy, 1 problem found, 2 could not test.
    pub fn exit_code(&self) -> u8 {
        match self.faults.is_empty() && self.peers.iter().all(|peer| peer.healthy) {
            _ if self.trouble.is_some() => 2,
            true => 0,
            false => 1,
        }
    }
}

/// Serves the command until canceled.
pub(super) async fn serve(shared: Arc<Shared>, cancel: CancellationToken) {
    let serving = async {
        loop {
            match local_socket::listen(SOCKET) {
                Ok(listener) => accept(&listener, &shared).await,
                Err(error) => tracing::warn!(
                    error = format!("{error:#}"),
                    "cannot serve `portolan doctor`; retrying"
                ),
            }
            tokio::time::sleep(RETRY).await;
        }
    };
    cancel.run_until_cancelled(serving).await;
}

/// Serves one request at a time.
async fn accept(listener: &UnixListener, shared: &Shared) {
    while let Ok((stream, _)) = listener.accept().await {
        if let Err(error) = answer(stream, shared).await {
            tracing::debug!(error = format!("{error:#}"), "cannot answer a request");
        }
    }
}

async fn answer(mut stream: UnixStream, shared: &Shared) -> anyhow::Result<()> {
    let uid = stream.peer_cred()?.uid();
    ensure!(local_socket::may_ask(uid), "request by user {uid}");
    let mut line = String::new();
    let (read, mut write) = stream.split();
    let mut read = tokio::io::BufReader::new(tokio::io::AsyncReadExt::take(read, MAX_REQUEST));
    tokio::time::timeout(REQUEST_TIMEOUT, read.read_line(&mut line)).await??;
    let request: Request = serde_json::from_str(&line)?;
    let mut report = examine(shared, request.to.as_deref()).await;
    let status = shared.environment.status.load();
    report.remedies.clone_from(&status.remedies);
    let mut text = serde_json::to_vec(&report)?;
    text.push(b'\n');
    write.write_all(&text).await?;
    Ok(())
}

/// Packets that a strict `rp_filter` has dropped while peers were measured.
fn reversed_since(before: Option<u64>) -> Option<String> {
    let dropped = counters::reversed()?.saturating_sub(before?);
    (dropped > 0).then(|| {
        format!(
            "net.ipv4.conf.*.rp_filter dropped {dropped} packets meanwhile: they came by another interface than answers \
             leave by; set it to 2 on the interface where packets of other nodes arrive"
        )
    })
}

async fn examine(shared: &Shared, to: Option<&str>) -> DoctorReport {
    let node = shared.config.own.to_string();
    let directory = shared.directory();
    let mut report = DoctorReport {
        node,
        ..DoctorReport::default()
    };
    let names = directory.names().into_iter();
    let asked = names.filter(|name| to.is_none_or(|to| ***name == *to));
    let targets: Vec<Target> = asked.flat_map(|name| directory.targets(name)).collect();
    let mut pairs = Pair::all(shared, &directory, &targets);
    report.faults = (shared.environment.faults)();
    let plan = (shared.environment.plan)();
    let chains = firewall::examine(shared.environment.legacy, &plan).await;
    for found in [forwarding::examine(&plan), chains] {
        report.faults.extend(found.faults);
        report.notes.extend(found.notes);
    }
    if directory.own().next().is_none() {
        let why = report.faults.join("; ");
        report.trouble = Some(format!("the overlay is not up on this node: {why}"));
    } else if let (Some(to), true) = (to, pairs.is_empty()) {
        let about = report.faults.iter().filter(|fault| mentions(fault, to));
        let why: Vec<&str> = about.map(String::as_str).collect();
        report.trouble = Some(format!(
            "{to:?} is not a peer of the overlay: {}",
            why.join("; ")
        ));
    }
    report.left_out = pairs.len().saturating_sub(PEERS);
    pairs.truncate(PEERS);
    let before = counters::reversed();
    let mut measured: Vec<Measurement> = stream::iter(&pairs)
        .map(|pair| pair.measure(to.is_some()))
        .buffered(AT_A_TIME)
        .collect()
        .await;
    if measured.iter().any(|m| !m.verdict().is_healthy()) {
        report.notes.extend(reversed_since(before));
        report.notes.extend(untraceable(shared.environment.legacy));
    }
    let mut traces = 0;
    for (pair, measured) in pairs.iter().zip(&mut measured) {
        if traces < TRACES && !measured.verdict().is_healthy() {
            traces += 1;
            pair.find_rules(measured).await;
        }
    }
    let healthy = pairs.iter().zip(&measured);
    let healthy = healthy.filter(|(_, measured)| measured.verdict().is_healthy());
    let healthy: Vec<&Pair<'_>> = healthy.map(|(pair, _)| pair).collect();
    let legacy = shared.environment.legacy;
    let of_pods = pod_packet::examine(&healthy, legacy, false).await;
    report.faults.extend(of_pods.faults);
    report.notes.extend(of_pods.notes);
    for (pair, measured) in pairs.iter().zip(measured) {
        let verdict = measured.verdict();
        report.peers.push(PeerReport {
            node: pair.peer.node.to_string(),
            family: pair.peer.family.api_name().to_owned(),
            healthy: verdict.is_healthy(),
            verdict: verdict.kind().to_owned(),
            text: pair.describe(&measured, &verdict),
            measured,
        });
    }
    report
}

/// Whether a sentence has this name of a node as a word.
fn mentions(sentence: &str, node: &str) -> bool {
    let is_of_a_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    let mut words = sentence.split(|c| !is_of_a_name(c));
    words.any(|word| word.trim_end_matches('.') == node)
}

/// Requests a report from the daemon of this network namespace.
pub fn ask(to: Option<&str>) -> anyhow::Result<DoctorReport> {
    let mut stream = local_socket::connect(SOCKET).context(
        "no daemon with an overlay answers on this node: it must run with --overlay=vxlan, and this command in the host network namespace",
    )?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let request = Request {
        to: to.map(str::to_owned),
    };
    let mut text = serde_json::to_vec(&request)?;
    text.push(b'\n');
    stream.write_all(&text)?;
    let mut line = String::new();
    BufReader::new(stream)
        .read_line(&mut line)
        .context("waiting for the daemon's answer")?;
    if line.is_empty() {
        bail!("the daemon sent no answer: run this command as root or as the daemon's user");
    }
    serde_json::from_str(&line).context("reading the daemon's answer")
}

impl DoctorReport {
    /// The report as text: one line for each pair, preceded by a table if `tables`.
    pub fn text(&self, tables: bool) -> String {
        print::text(self, tables)
    }
}
