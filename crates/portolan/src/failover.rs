//! Failover by measurement: finds nodes that are down long before EndpointSlices say so.
//!
//! Connections and datagrams through Services that conntrack shows without a reply are a reason to probe the node of their
//! endpoint, and so is a silent round of the overlay's probes ([`reason`]); probes alone decide ([`probe`], [`suspicions`]).
//! The suspects are a fact that planning gets ([`service_model::select`] says what follows), so the control loop only
//! plans the Services concerned. Without a reason,
//! no packet is sent: the one regular effort is to read conntrack ([`pace`]).
//!
//! Where the node answers and an endpoint does not, the endpoint alone can be a suspect ([`endpoints`]).
//!
//! The part has a thread of its own, since reading conntrack blocks. Its end leaves the suspects as they are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::future::{BoxFuture, FutureExt};
use futures::stream::{FuturesUnordered, StreamExt};
use netfilter::{Attempt, Conntrack, Sampler};
use rand::seq::SliceRandom;
use rustix::time::{ClockId, clock_gettime};
use service_model::{Family, Suspects};
use tokio::sync::watch;

use crate::observer::Observer;
use crate::overlay::SharedOverlayStatus;
use crate::parts::Parts;
use crate::silent::SilentPeers;

mod age;
mod directory;
mod endpoints;
mod ignored;
mod pace;
mod probe;
mod reason;
mod reports;
mod suspicions;

pub use reports::{FailoverReports, SharedFailoverStatus};

use age::Timeouts;
use directory::{Nodes, SharedDirectory};
use endpoints::Endpoints;
use ignored::{Ignored, Key};
use pace::Pace;
use probe::{Answer, Rounds};
use reason::Reason;
use reports::{Reporter, Suspect};
use suspicions::Suspicions;

/// Time that a reply may take. Attempts that are younger say nothing yet.
const REPLY: Duration = Duration::from_millis(100);
/// Attempts to follow from one reading, of one endpoint and in all.
const OF_AN_ENDPOINT: usize = 2;
const OF_A_READING: usize = 256;
/// Nodes that are probed at a time because of attempts.
const AT_ONCE: usize = 32;
const NO_ANSWER: &str = "has answered no probe, so a rule may drop probes";

/// What the part knows from its start.
pub struct Config {
    /// Name of this node, which is never a suspect.
    pub own: Arc<str>,
    /// The overlay and the port of its probes: a node that answers at its own address or at that of its tunnel is alive.
    pub overlay: Option<(SharedOverlayStatus, u16)>,
    /// Where the overlay's probes tell of peers that answer nothing.
    pub silent: SilentPeers,
    /// Single endpoints of all Services can be suspects, not only of those that ask for it.
    pub endpoints_of_all: bool,
}

/// Starts the part. The observer has to follow the control loop, which has to apply the suspects.
///
/// Errors: without CAP_NET_ADMIN.
pub(crate) fn start(
    parts: &Parts,
    config: Config,
    reports: FailoverReports,
) -> Result<(Box<dyn Observer>, watch::Receiver<Suspects>)> {
    let directory = SharedDirectory::new(config.own.clone());
    let (publish, suspects) = watch::channel(Suspects::default());
    let part = Failover {
        conntrack: Conntrack::open().context("cannot open the conntrack socket")?,
        overlay: config.overlay,
        silent: config.silent,
        directory: directory.clone(),
        publish,
        reporter: Reporter::new(reports),
        whole: Pace::new(pace::WHOLE, Instant::now()),
        sampler: Sampler::default(),
        sample: Pace::new(pace::SAMPLE, Instant::now()),
        timeouts: Timeouts::read(),
        ignored: Ignored::default(),
        suspicions: Suspicions::default(),
        endpoints: Endpoints::new(config.endpoints_of_all),
        seen: None,
        probes: FuturesUnordered::new(),
        probing: BTreeSet::new(),
        is_blind: false,
    };
    let cancel = parts.cancel();
    parts.runtime("failover", move || async move {
        cancel.run_until_cancelled(part.run()).await;
        Ok(())
    })?;
    Ok((Box::new(directory), suspects))
}

struct Failover {
    conntrack: Conntrack,
    overlay: Option<(SharedOverlayStatus, u16)>,
    silent: SilentPeers,
    directory: SharedDirectory,
    publish: watch::Sender<Suspects>,
    reporter: Reporter,
    /// Paces readings of all entries, which walk the kernel's table.
    whole: Pace,
    /// Reads a large table in parts: where many connections fail, one of them is there soon.
    sampler: Sampler,
    /// Paces readings of parts.
    sample: Pace,
    /// As of the last reading of all entries.
    timeouts: Timeouts,
    ignored: Ignored<Attempt>,
    suspicions: Suspicions<Arc<str>>,
    endpoints: Endpoints,
    /// Attempts of the last reading, and when a reply must have come.
    seen: Option<(Instant, Vec<Attempt>)>,
    probes: FuturesUnordered<BoxFuture<'static, Probed>>,
    /// Nodes that are being probed.
    probing: BTreeSet<Arc<str>>,
    /// Conntrack could not be read, and the log says so.
    is_blind: bool,
}

/// A node or an endpoint, and what it said.
struct Probed {
    suspect: Suspect,
    reason: Reason,
    /// Nodes of the cluster with endpoints.
    nodes: usize,
    answer: Answer,
}

impl Failover {
    async fn run(mut self) {
        let silent = self.silent.clone();
        loop {
            let due = tokio::time::sleep_until(self.due().into());
            tokio::select! {
                biased;
                Some(probed) = self.probes.next(), if !self.probes.is_empty() => self.probed(probed),
                nodes = silent.take() => self.probe_silent(nodes, Instant::now()),
                () = due => self.turn(Instant::now()),
            }
        }
    }

    fn due(&self) -> Instant {
        let seen = self.seen.as_ref().map(|(at, _)| *at);
        let reading = seen.unwrap_or_else(|| self.whole.due().min(self.sample_due()));
        let suspects = [self.suspicions.due(), self.endpoints.suspicions.due()];
        suspects.into_iter().flatten().fold(reading, Instant::min)
    }

    /// When the next sample is due: never later than the next whole reading, which makes it superfluous.
    fn sample_due(&self) -> Instant {
        match self.whole.is_shortest() {
            true => self.whole.due(),
            false => self.sample.due(),
        }
    }

    fn turn(&mut self, now: Instant) {
        if let Some((_, attempts)) = self.seen.take_if(|(at, _)| *at <= now) {
            self.judge(attempts, now);
        } else if self.seen.is_none() && self.whole.due() <= now {
            self.read(now, false);
        } else if self.seen.is_none() && self.sample_due() <= now {
            self.read(now, true);
        }
        if self.suspicions.due().is_some_and(|at| at <= now) {
            self.probe_suspects(now);
        }
        let endpoints = self.endpoints.suspicions.due();
        if endpoints.is_some_and(|at| at <= now) {
            self.probe_suspect_endpoints(now);
        }
    }

    /// Reads the attempts at this moment, all or those in a sample.
    fn read(&mut self, now: Instant, sample: bool) {
        if !self.directory.has_others() {
            self.whole.read(now, Duration::ZERO);
            return;
        }
        let before = processor_time();
        if !sample {
            self.timeouts = Timeouts::read();
        }
        let (ignored, timeouts) = (&self.ignored, &self.timeouts);
        let (mut counts, mut all) = (BTreeMap::<Key, usize>::new(), 0);
        let keeps = |attempt: &Attempt| {
            let endpoint = Key::of(attempt, timeouts);
            if all >= OF_A_READING || ignored.has(&endpoint, now) {
                return false;
            }
            let count = counts.entry(endpoint).or_insert(0);
            *count += 1;
            let keeps = *count <= OF_AN_ENDPOINT;
            all += usize::from(keeps);
            keeps
        };
        let attempts = match sample {
            true => self.sampler.attempts(keeps),
            false => self.conntrack.attempts(keeps),
        };
        let cost = processor_time().saturating_sub(before);
        let pace = if sample {
            &mut self.sample
        } else {
            &mut self.whole
        };
        pace.read(now, cost);
        self.reporter.metrics().failover.read();
        self.reporter.metrics().failover.spent(cost);
        match attempts {
            Ok(attempts) => {
                self.is_blind = false;
                let seen = (Instant::now() + REPLY, attempts);
                self.seen = Some(seen).filter(|(_, attempts)| !attempts.is_empty());
            }
            Err(error) if !self.is_blind => {
                self.is_blind = true;
                tracing::warn!(%error, "cannot read conntrack entries; nodes that are down are not noticed");
            }
            Err(_) => {}
        }
    }

    /// Probes the nodes to which attempts are still without a reply.
    fn judge(&mut self, mut attempts: Vec<Attempt>, now: Instant) {
        let before = processor_time();
        attempts.retain(|attempt| is_unanswered(&mut self.conntrack, attempt));
        if !attempts.is_empty() {
            self.probe_nodes_of(attempts, now);
        }
        let cost = processor_time().saturating_sub(before);
        self.whole.add(cost);
        self.sample.add(cost);
        self.reporter.metrics().failover.spent(cost);
    }

    fn probe_nodes_of(&mut self, attempts: Vec<Attempt>, now: Instant) {
        let addresses = attempts
            .iter()
            .map(|attempt| attempt.flow.answers_from.ip());
        let nodes = self.directory.nodes_of(&addresses.collect());
        let mut reasons: BTreeMap<Arc<str>, Vec<Attempt>> = BTreeMap::new();
        let mut of_no_interest = Vec::new();
        for attempt in attempts {
            let mut is_of_interest = false;
            let named = nodes.get(&attempt.flow.answers_from.ip());
            for node in named.into_iter().flatten() {
                let is_known = self.suspicions.is_suspect(node) || self.probing.contains(node);
                let may_probe = !is_known && self.suspicions.may_probe(node, now);
                if may_probe {
                    let evidence = reasons.entry(node.clone()).or_default();
                    evidence.push(attempt.clone());
                }
                is_of_interest |= is_known || may_probe;
            }
            if !is_of_interest {
                of_no_interest.push(attempt);
            }
        }
        self.ignore(&of_no_interest, now);
        let names: BTreeSet<Arc<str>> = reasons.keys().cloned().collect();
        if names.is_empty() {
            return;
        }
        let known = self.directory.nodes(&names);
        let room = self.suspicions.room(AT_ONCE, &self.probing);
        // Names that tenants choose must not always come first.
        let mut reasons: Vec<_> = reasons.into_iter().collect();
        reasons.shuffle(&mut rand::rng());
        for (node, evidence) in reasons.into_iter().take(room) {
            let first = evidence.first().map(|attempt| attempt.flow.answers_from);
            let reason = Reason::Attempts(evidence);
            self.probe(node, reason, (first, &known), probe::QUICK);
        }
    }

    /// Probes nodes with endpoints that were silent for a round of the overlay. Suspects are silent in each: they cost nothing here.
    fn probe_silent(&mut self, mut nodes: BTreeSet<Arc<str>>, now: Instant) {
        nodes.retain(|node| self.suspicions.may_probe(node, now) && !self.probing.contains(node));
        if nodes.is_empty() {
            return;
        }
        let known = self.directory.nodes(&nodes);
        let room = self.suspicions.room(AT_ONCE, &self.probing);
        nodes.retain(|node| known.names.contains(node));
        for node in nodes.into_iter().take(room) {
            self.probe(node, Reason::Round, (None, &known), probe::QUICK);
        }
    }

    /// Probes the suspects that are due, and ends suspicions that have become pointless.
    fn probe_suspects(&mut self, now: Instant) {
        let nodes = self.suspicions.take_due(now);
        let known = self.directory.nodes(&nodes);
        let gone = self.suspicions.retain(|node| known.names.contains(node));
        for node in &gone {
            let why = "has no endpoints any longer";
            self.reporter.ended(&Suspect::Node(node.clone()), None, why);
        }
        let expired = self.suspicions.expire(now);
        for node in &expired {
            self.reporter
                .ended(&Suspect::Node(node.clone()), None, NO_ANSWER);
        }
        self.publish();
        for node in nodes {
            if self.suspicions.is_suspect(&node) && !self.probing.contains(&node) {
                self.probe(node, Reason::Again, (None, &known), probe::PATIENT);
            }
        }
    }

    fn probe(
        &mut self,
        node: Arc<str>,
        reason: Reason,
        (first, known): (Option<SocketAddr>, &Nodes),
        rounds: Rounds,
    ) {
        let addresses = self.addresses(&node, first, known);
        self.probing.insert(node.clone());
        let of = (Suspect::Node(node), known.names.len());
        self.ask(of, addresses, reason, rounds);
    }

    fn ask(
        &mut self,
        (suspect, nodes): (Suspect, usize),
        addresses: Vec<SocketAddr>,
        reason: Reason,
        rounds: Rounds,
    ) {
        self.reporter.metrics().failover.probed();
        let probe = async move {
            let answer = probe::ask(&addresses, rounds).await;
            Probed {
                suspect,
                reason,
                nodes,
                answer,
            }
        };
        self.probes.push(probe.boxed());
    }

    /// Probes the endpoints of attempts whose node has answered, where Services ask for that.
    fn probe_endpoints(&mut self, attempts: &[Attempt], now: Instant) {
        if attempts.is_empty() || !self.endpoints.are_wanted(&self.directory) {
            return;
        }
        let conntrack = &mut self.conntrack;
        let open = attempts
            .iter()
            .filter(|attempt| is_unanswered(conntrack, attempt));
        let open = open.cloned().collect();
        for (endpoint, attempts) in self.endpoints.reasons(open, &self.directory, now) {
            self.probe_endpoint(endpoint, Reason::Attempts(attempts), probe::QUICK);
        }
    }

    /// Probes suspect endpoints that are due, and ends suspicions that have become pointless.
    fn probe_suspect_endpoints(&mut self, now: Instant) {
        for endpoint in self.endpoints.forget(&self.directory) {
            let why = "is not one that a Service asks about any longer";
            self.reporter.ended(&Suspect::Endpoint(endpoint), None, why);
        }
        for endpoint in self.endpoints.suspicions.expire(now) {
            let suspect = Suspect::Endpoint(endpoint);
            self.reporter.ended(&suspect, None, NO_ANSWER);
        }
        self.publish();
        for endpoint in self.endpoints.take_due(now) {
            self.probe_endpoint(endpoint, Reason::Again, probe::PATIENT);
        }
    }

    fn probe_endpoint(&mut self, endpoint: SocketAddr, reason: Reason, rounds: Rounds) {
        self.endpoints.begin(endpoint);
        let of = (Suspect::Endpoint(endpoint), 0);
        self.ask(of, vec![endpoint], reason, rounds);
    }

    /// Where to ask a node: at its own addresses as the overlay knows them, at the endpoint that gave the reason, and at
    /// others of as many namespaces as possible.
    fn addresses(&self, node: &str, first: Option<SocketAddr>, known: &Nodes) -> Vec<SocketAddr> {
        let mut addresses = Vec::new();
        if let Some((overlay, port)) = &self.overlay {
            let plan = overlay.load().plan.clone();
            for family in Family::ALL {
                let peers = plan.peers(family);
                let found = peers.binary_search_by(|peer| (*peer.name).cmp(node));
                if let Some(peer) = found.ok().and_then(|place| peers.get(place)) {
                    let own = [peer.vtep.public_ip, peer.gateway()];
                    addresses.extend(own.map(|address| SocketAddr::new(address, *port)));
                }
            }
        }
        addresses.extend(first);
        let mut namespaces: Vec<Vec<SocketAddr>> = known
            .addresses
            .get(node)
            .map(|namespaces| namespaces.values().cloned().collect())
            .unwrap_or_default();
        let mut random = rand::rng();
        namespaces.shuffle(&mut random);
        for of_namespace in &mut namespaces {
            of_namespace.shuffle(&mut random);
        }
        while addresses.len() < probe::MOST && namespaces.iter().any(|some| !some.is_empty()) {
            for address in namespaces.iter_mut().filter_map(Vec::pop) {
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
        }
        addresses.truncate(probe::MOST);
        addresses
    }

    fn probed(&mut self, probed: Probed) {
        let now = Instant::now();
        match &probed.suspect {
            Suspect::Node(node) => drop(self.probing.remove(node)),
            Suspect::Endpoint(endpoint) => self.endpoints.end(*endpoint),
        }
        match probed.answer {
            Answer::None(probes) => self.unanswered(&probed, probes, now),
            Answer::Untried => self.ignore(probed.reason.attempts(), now),
            Answer::From(address) => self.answered(&probed, address, now),
        }
    }

    /// Ends a suspicion. An endpoint of a node that answers may be down all the same.
    fn answered(&mut self, probed: &Probed, address: SocketAddr, now: Instant) {
        let (suspect, attempts) = (&probed.suspect, probed.reason.attempts());
        tracing::debug!(%suspect, %address, "there is an answer");
        let lasted = match suspect {
            Suspect::Node(node) => {
                self.probe_endpoints(attempts, now);
                self.suspicions.answered(node, now)
            }
            Suspect::Endpoint(endpoint) => self.endpoints.answered(*endpoint, now),
        };
        self.ignore(attempts, now);
        if lasted.is_some() {
            self.reporter.ended(suspect, lasted, "answers again");
            self.publish();
        }
    }

    /// Makes a node or an endpoint a suspect, unless a reply has come after all or too many seem to be down.
    fn unanswered(&mut self, probed: &Probed, probes: usize, now: Instant) {
        let conntrack = &mut self.conntrack;
        let evidence = probed
            .reason
            .evidence(probes, |attempt| is_unanswered(conntrack, attempt));
        let mut suspect = || match &probed.suspect {
            Suspect::Node(node) => self.suspicions.suspect(node.clone(), probed.nodes, now),
            Suspect::Endpoint(endpoint) => self.endpoints.suspect(*endpoint, now),
        };
        match evidence.filter(|_| suspect()) {
            Some(evidence) => {
                self.reporter
                    .suspected(probed.suspect.clone(), &evidence, now);
                self.publish();
            }
            None => self.ignore(probed.reason.attempts(), now),
        }
    }

    /// Ignores the endpoints of these attempts for a while.
    fn ignore(&mut self, attempts: &[Attempt], now: Instant) {
        let keyed = attempts
            .iter()
            .map(|attempt| (Key::of(attempt, &self.timeouts), attempt.clone()));
        let conntrack = &mut self.conntrack;
        self.ignored.add(keyed, now, |attempt| {
            matches!(conntrack.has_reply(attempt), Ok(Some(true)))
        });
    }

    fn publish(&self) {
        let endpoints = self.endpoints.suspicions.all().copied();
        let suspects = Suspects::new(self.suspicions.all().cloned())
            .with_endpoints(endpoints, self.endpoints.are_for_all());
        self.publish.send_if_modified(|published| {
            let is_new = *published != suspects;
            *published = suspects;
            is_new
        });
    }
}

/// The processor time that this thread has taken.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// Whether there is no reply to an attempt yet. An entry that cannot be read says nothing.
fn is_unanswered(conntrack: &mut Conntrack, attempt: &Attempt) -> bool {
    let reply = conntrack.has_reply(attempt).unwrap_or_else(|error| {
        tracing::debug!(%error, "cannot read a conntrack entry");
        None
    });
    reply == Some(false)
}
